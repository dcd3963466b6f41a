//! The embedded size: client, ledger, queue and worker in one process, on a SQLite file that is synced with every commit.

use std::time::{Duration, Instant};

use clap::Args;
use fettler_ledger::Ledger;
use fettler_model::TenantId;
use tokio_util::sync::CancellationToken;

use crate::{
    Result,
    figures::{head, median, per_second, row},
    throughput::submit_to,
    work,
};

/// How often it is looked whether all jobs have ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Args)]
pub struct Options {
    /// Jobs of a round.
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many jobs run at once.
    #[arg(long, default_value_t = 100)]
    concurrency: usize,
}

/// No-op jobs a second.
pub async fn run(options: &Options) -> Result<()> {
    let mut rates = Vec::new();
    for _ in 0..options.rounds {
        let folder = tempfile::tempdir()?;
        let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
        let ledger = Ledger::open(&url).await?;
        ledger.ensure_tenant(&TenantId::default_tenant()).await?;
        let worker = work::builder(
            &ledger,
            &url,
            options.concurrency,
            folder.path().to_path_buf(),
        )
        .build();
        let stop = CancellationToken::new();
        let running = tokio::spawn(worker.run(stop.clone()));
        let begun = Instant::now();
        submit_to(&ledger, options.jobs, 4, 0).await?;
        loop {
            let counts = ledger.counts().await?;
            if counts.queued + counts.running == 0 {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        rates.push(per_second(options.jobs, begun.elapsed()));
        stop.cancel();
        running.await??;
    }
    head(&["embedded", "no-op jobs a second"]);
    row(&["median".to_owned(), format!("{:.0}", median(&rates))]);
    Ok(())
}
