//! Very many policies of which some are due at the same moment: how long until all of those are decided.

use std::{sync::Arc, time::Duration};

use clap::Args;
use fettler_ledger::PolicyRecord;
use fettler_model::{
    CatchUp, Overlap, PolicyId, PolicySpec, Priority, ProveEvery, TenantId, Timestamp,
};
use fettler_scheduler::{Scheduler, SchedulerOptions};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{Result, kinds, stand::Stand};

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 1_000_000)]
    policies: i64,
    /// How many are due at one moment.
    #[arg(long, default_value_t = 1000)]
    due: i64,
}

pub async fn run(options: &Options) -> Result<()> {
    /// The scheduler leads and sleeps by then.
    const AHEAD: Duration = Duration::from_secs(5);
    let stand = Stand::start()?;
    let fleet = stand.fleet().await?;
    let tenant = TenantId::default_tenant();
    let first = PolicyRecord {
        id: PolicyId::new(),
        tenant: tenant.clone(),
        name: "first".parse()?,
        database: None,
        spec: PolicySpec {
            kind: kinds::request(&tenant, 0).kind,
            arguments: json!({}),
            cron: "0 3 1 1 *".to_owned(),
            time_zone: "UTC".to_owned(),
            catch_up: CatchUp::default(),
            overlap: Overlap::default(),
            window: None,
            jitter_seconds: 0,
            priority: Priority::Normal,
            keep: None,
            prove: ProveEvery::Never,
            timeout_seconds: None,
            paused: false,
        },
        next_due: Some(Timestamp::now().plus(Duration::from_secs(30 * 24 * 3600))),
        last_job: None,
        created: Timestamp::now(),
    };
    fleet.ledger.add_policy(&first).await?;
    // The others are its copies, due a month from now.
    fleet
        .sql
        .execute(
            "INSERT INTO policy (id, tenant, name, database_id, spec, next_due, created)
             SELECT gen_random_uuid()::text, tenant, 'p' || n, database_id, spec, next_due, created
             FROM policy, generate_series(2, $1::bigint) n",
            &[&options.policies],
        )
        .await?;
    fleet.sql.batch_execute("VACUUM ANALYZE policy").await?;
    let due = Timestamp::now().plus(AHEAD);
    fleet
        .sql
        .execute(
            "UPDATE policy SET next_due = $1 WHERE id IN (SELECT id FROM policy LIMIT $2)",
            &[&due.micros(), &options.due],
        )
        .await?;
    let stop = CancellationToken::new();
    let scheduler = Scheduler::new(
        "bench",
        fleet.ledger.clone(),
        Arc::new(kinds::registry()),
        SchedulerOptions::default(),
    );
    let running = tokio::spawn(scheduler.run(stop.clone()));
    let decided = loop {
        let row = fleet
            .sql
            .query_one("SELECT count(*), min(decided), max(decided) FROM tick", &[])
            .await?;
        let count: i64 = row.get(0);
        if count >= options.due {
            let (begun, ended): (i64, i64) = (row.get(1), row.get(2));
            break (begun, ended);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    stop.cancel();
    running.await?;
    println!(
        "{} policies, {} due at once: the first decided {:.1} ms after its time, the last {:.1} ms",
        options.policies,
        options.due,
        (decided.0 - due.micros()) as f64 / 1000.0,
        (decided.1 - due.micros()) as f64 / 1000.0,
    );
    Ok(())
}
