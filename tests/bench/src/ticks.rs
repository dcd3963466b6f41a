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

use crate::{
    Result,
    figures::{head, row},
    kinds,
    stand::{Fleet, Stand},
};

/// The scheduler leads and sleeps by then, and has looked for changes by others since.
const AHEAD: Duration = Duration::from_secs(7);
/// Between two looks at what was decided.
const LOOK_EVERY: Duration = Duration::from_millis(2);

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 1_000_000)]
    policies: i64,
    /// How many are due at one moment.
    #[arg(long, default_value_t = 1000)]
    due: i64,
    /// How often that is measured.
    #[arg(long, default_value_t = 5)]
    rounds: i64,
    /// Tells which statements the ledger's database ran.
    #[arg(long)]
    statements: bool,
}

pub async fn run(options: &Options) -> Result<()> {
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
    let stop = CancellationToken::new();
    let scheduler = Scheduler::new(
        "bench",
        fleet.ledger.clone(),
        Arc::new(kinds::registry()),
        SchedulerOptions::default(),
    );
    let running = tokio::spawn(scheduler.run(stop.clone()));
    head(&[
        "round",
        "first decision begun, ms after",
        "all to be seen, ms after",
    ]);
    let mut took = Vec::new();
    for round in 0..=options.rounds {
        let (begun, seen) = one_round(&fleet, options.due).await?;
        // In the first one, connections prepare their statements.
        if round > 0 {
            row(&[
                round.to_string(),
                format!("{begun:.1}"),
                format!("{seen:.1}"),
            ]);
            took.push(seen);
        }
        if round == 0 && options.statements {
            fleet.count_statements().await?;
        }
    }
    stop.cancel();
    running.await?;
    if options.statements {
        fleet.tell_statements().await?;
    }
    took.sort_by(f64::total_cmp);
    println!(
        "{} policies, {} of them due at once: all decided after {:.1} ms (median)",
        options.policies,
        options.due,
        took[took.len() / 2],
    );
    Ok(())
}

/// Makes so many policies due at one moment that the scheduler has slept through, and tells how many milliseconds later the
/// first decision began and all were there.
async fn one_round(fleet: &Fleet<'_>, policies: i64) -> Result<(f64, f64)> {
    let due = Timestamp::now().plus(AHEAD);
    fleet
        .sql
        .execute(
            "UPDATE policy SET next_due = $1
             WHERE id IN (SELECT id FROM policy WHERE last_job IS NULL LIMIT $2)",
            &[&due.micros(), &policies],
        )
        .await?;
    tokio::time::sleep(AHEAD).await;
    loop {
        // What counts is when others can see it: a due time's row says when its transaction began.
        let is_left: bool = fleet
            .sql
            .query_one(
                "SELECT EXISTS (SELECT 1 FROM policy WHERE next_due <= $1)",
                &[&due.micros()],
            )
            .await?
            .get(0);
        let seen = Timestamp::now();
        if is_left {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        }
        let begun: i64 = fleet
            .sql
            .query_one(
                "SELECT min(decided) FROM tick WHERE due = $1",
                &[&due.micros()],
            )
            .await?
            .get(0);
        let after = |moment: i64| (moment - due.micros()) as f64 / 1000.0;
        return Ok((after(begun), after(seen.micros())));
    }
}
