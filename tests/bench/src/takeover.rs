//! What a crash costs: how long after `kill -9` of its worker a job runs again. Nobody publishes that.

use std::{collections::HashMap, time::Duration};

use clap::Args;

use crate::{
    Result,
    figures::{head, percentile, row},
    kinds::micros,
    stand::{Stand, WorkerProcess},
    throughput::submit,
};

/// How many workers share the jobs: one is killed at a time, and another takes its place.
const WORKERS: usize = 4;
/// How many jobs each runs at once.
const AT_ONCE: usize = 5;
/// How long a job takes.
const WAIT_MS: u64 = 2000;
/// How long after one kill the next one follows.
const BETWEEN: Duration = Duration::from_millis(1500);

#[derive(Args)]
pub struct Options {
    /// How many workers are killed.
    #[arg(long, default_value_t = 40)]
    kills: usize,
}

/// Kills one worker after the other amid jobs, with leases and heartbeats as they are in production.
pub async fn run(options: &Options) -> Result<()> {
    let stand = Stand::start()?;
    let fleet = stand.fleet().await?;
    let seconds = BETWEEN.as_secs_f64() * options.kills as f64;
    let jobs = (seconds * 1000.0 / WAIT_MS as f64) as usize * WORKERS * AT_ONCE;
    submit(&fleet, jobs, 4, WAIT_MS).await?;
    let start = || fleet.worker(AT_ONCE);
    let mut workers: Vec<WorkerProcess> = (0..WORKERS).map(|_| start()).collect::<Result<_>>()?;
    let mut killed = HashMap::new();
    for _ in 0..options.kills {
        tokio::time::sleep(BETWEEN).await;
        let worker = workers.remove(0);
        killed.insert(worker.name().to_owned(), micros());
        worker.kill()?;
        workers.push(start()?);
    }
    fleet.all_ended().await?;
    drop(workers);
    // The attempt after a lost one is another such row or, as the job's last, part of the history.
    let rows = fleet
        .sql
        .query(
            "SELECT lost.worker, COALESCE(
                 (SELECT next.started FROM attempt next WHERE next.job = lost.job AND next.number = lost.number + 1),
                 (SELECT ended.started FROM history ended WHERE ended.id = lost.job))
             FROM attempt lost WHERE lost.outcome = 4",
            &[],
        )
        .await?;
    let mut seconds = Vec::with_capacity(rows.len());
    for row in rows {
        let (worker, started): (&str, i64) = (row.get(0), row.get(1));
        let at = killed
            .get(worker)
            .ok_or("a worker was lost that nobody killed")?;
        seconds.push((started as f64 - *at as f64) / 1_000_000.0);
    }
    head(&["kill -9 of a worker", "p50 s", "p99 s", "most s"]);
    let mut cells = vec!["until its job runs again".to_owned()];
    cells
        .extend([50.0, 99.0, 100.0].map(|percent| format!("{:.2}", percentile(&seconds, percent))));
    row(&cells);
    println!(
        "{} kills, {} running attempts were lost, {} of {jobs} jobs ended well",
        options.kills,
        seconds.len(),
        fleet.succeeded().await?,
    );
    Ok(())
}
