//! Submissions over HTTP at a fixed rate, by connections that stay open, to the interface's own process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    Result,
    figures::{head, percentile, row},
    programs::Programs,
    stand::Stand,
};

/// Submissions that warm connections and plans up before anything is counted.
const WARM_UP: usize = 500;
/// How often it is looked which submissions are due.
const TICK: Duration = Duration::from_millis(2);

#[derive(Args)]
pub struct Options {
    /// Submissions a second.
    #[arg(long, default_value_t = 1000)]
    rate: usize,
    /// For how long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Submits single jobs, whatever becomes of them, and shows how long the answers took.
pub async fn run(options: &Options) -> Result<()> {
    let stand = Stand::start()?;
    let fleet = stand.fleet().await?;
    let programs = Programs::of(&stand, &fleet.url)?;
    std::fs::write(stand.folder().join("bench.sqlite"), "")?;
    programs.told(&["database", "add", "bench", "bench.sqlite"])?;
    let api = programs.interface().await?;
    let client = Arc::new(api.client()?);
    for _ in 0..WARM_UP {
        submit(&client, &api.jobs).await?;
    }
    let (begun, mut sent) = (Instant::now(), 0_usize);
    let mut every = tokio::time::interval(TICK);
    let mut calls: JoinSet<Result<f64>> = JoinSet::new();
    let mut took = Vec::new();
    while begun.elapsed() < Duration::from_secs(options.seconds) {
        every.tick().await;
        let due = (begun.elapsed().as_secs_f64() * options.rate as f64) as usize;
        for _ in sent..due {
            let (client, url) = (client.clone(), api.jobs.clone());
            calls.spawn(async move { submit(&client, &url).await });
        }
        sent = due;
        while let Some(done) = calls.try_join_next() {
            took.push(done??);
        }
    }
    while let Some(done) = calls.join_next().await {
        took.push(done??);
    }
    let rate = took.len() as f64 / begun.elapsed().as_secs_f64();
    head(&["submissions a second", "p50 ms", "p99 ms", "most ms"]);
    let mut cells = vec![format!("{rate:.0}")];
    cells.extend([50.0, 99.0, 100.0].map(|percent| format!("{:.2}", percentile(&took, percent))));
    row(&cells);
    Ok(())
}

/// Submits a job; gives how long the answer took, in milliseconds.
async fn submit(client: &reqwest::Client, url: &str) -> Result<f64> {
    let begun = Instant::now();
    let answer = client
        .post(url)
        .header(reqwest::header::CONTENT_TYPE, "application/json")
        .body(json!({"kind": "ping", "database": "bench"}).to_string())
        .send()
        .await?;
    let status = answer.status();
    let body = answer.text().await?;
    if status.as_u16() != 202 {
        return Err(format!("{status}: {body}").into());
    }
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
}
