//! No-op jobs a second, from the first bulk submission to the last job's end in the ledger: client, ledger, Redis, worker,
//! ledger. BullMQ, Celery and awa run as many jobs at once in every round, awa in the same PostgreSQL.

use std::time::Instant;

use clap::Args;
use fettler_ledger::Ledger;
use fettler_model::TenantId;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    Result,
    figures::{head, median, per_second, row},
    kinds, peers,
    stand::{Fleet, Stand, redis},
};

/// The most jobs of one call (the HTTP interface takes as many).
const CALL: usize = 1000;

#[derive(Args)]
pub struct Options {
    /// How often each is run; medians are shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Jobs of a round.
    #[arg(long, default_value_t = 50_000)]
    jobs: usize,
    /// Jobs of a round of Celery, which takes much longer.
    #[arg(long, default_value_t = 5_000)]
    celery_jobs: usize,
    /// How many jobs run at once.
    #[arg(long, default_value_t = 100)]
    concurrency: usize,
    /// How many bulk calls are on their way at once.
    #[arg(long, default_value_t = 4)]
    submitters: usize,
    /// Tells which statements the ledger's database ran.
    #[arg(long)]
    statements: bool,
    /// Only Fettler.
    #[arg(long)]
    alone: bool,
}

pub async fn run(options: &Options) -> Result<()> {
    let stand = Stand::start()?;
    let others = if options.alone {
        None
    } else {
        Some((peers::Peers::install()?, peers::Awa::build()?, redis()?))
    };
    let (mut ours, mut bullmq, mut celery, mut awa) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        ours.push(fettler(&stand, options).await?);
        if let Some((peers, built_awa, redis)) = &others {
            redis.flush_all()?;
            bullmq.push(peers.bullmq(
                &redis.url(),
                options.jobs,
                options.concurrency,
                options.submitters,
            )?);
            redis.flush_all()?;
            celery.push(peers.celery(&redis.url(), options.celery_jobs, options.concurrency)?);
            let database = stand.postgres.create_database("awa")?;
            awa.push(built_awa.rate(
                &database.url(),
                options.jobs,
                options.concurrency,
                options.submitters,
            )?);
        }
        eprintln!(
            "round {}: fettler {:.0}/s, BullMQ {:.0}/s, Celery {:.0}/s, awa {:.0}/s",
            round + 1,
            ours[round],
            bullmq.get(round).unwrap_or(&f64::NAN),
            celery.get(round).unwrap_or(&f64::NAN),
            awa.get(round).unwrap_or(&f64::NAN)
        );
    }
    head(&["no-op jobs a second", "median", "ratio to ours"]);
    for (name, rates) in [
        ("fettler", &ours),
        ("BullMQ", &bullmq),
        ("Celery", &celery),
        ("awa", &awa),
    ] {
        row(&[
            name.to_owned(),
            format!("{:.0}", median(rates)),
            format!("{:.2}", median(rates) / median(&ours)),
        ]);
    }
    Ok(())
}

async fn fettler(stand: &Stand, options: &Options) -> Result<f64> {
    let fleet = stand.fleet().await?;
    let worker = fleet.worker(options.concurrency)?;
    if options.statements {
        fleet.count_statements().await?;
    }
    let begun = Instant::now();
    submit(&fleet, options.jobs, options.submitters, 0).await?;
    fleet.all_ended().await?;
    let rate = per_second(options.jobs, begun.elapsed());
    if fleet.succeeded().await? != options.jobs {
        return Err("not every job ended well".into());
    }
    if options.statements {
        fleet.tell_statements().await?;
    }
    drop(worker);
    Ok(rate)
}

/// Submits so many jobs that wait for so long by bulk calls.
pub async fn submit(fleet: &Fleet<'_>, jobs: usize, submitters: usize, wait_ms: u64) -> Result<()> {
    submit_to(&fleet.ledger, jobs, submitters, wait_ms).await
}

/// The same to a ledger that need not be a fleet's.
pub async fn submit_to(
    ledger: &Ledger,
    jobs: usize,
    submitters: usize,
    wait_ms: u64,
) -> Result<()> {
    let tenant = TenantId::default_tenant();
    let calls = (0..jobs).step_by(CALL).map(|from| {
        let count = CALL.min(jobs - from);
        let requests = (0..count)
            .map(|_| (kinds::request(&tenant, wait_ms), None))
            .collect();
        async move {
            for submitted in ledger.submit_batch(requests).await {
                submitted?;
            }
            Result::<()>::Ok(())
        }
    });
    stream::iter(calls)
        .buffer_unordered(submitters)
        .try_collect()
        .await
}
