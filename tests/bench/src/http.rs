//! Submissions over HTTP at a fixed rate, by connections that stay open, to the interface's own process.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use fettler_test_servers::free_port;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    Result,
    figures::{head, percentile, row},
    stand::Stand,
};

/// Submissions that warm connections and plans up before anything is counted.
const WARM_UP: usize = 500;
/// How often it is looked which submissions are due.
const TICK: Duration = Duration::from_millis(2);
/// How long the interface may take to answer for the first time.
const READY_WITHIN: Duration = Duration::from_secs(30);

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
    let api = Interface::start(&stand, &fleet.url)?;
    let client = Arc::new(api.client()?);
    let begun = Instant::now();
    while client.get(&api.ready).send().await.is_err() {
        if begun.elapsed() > READY_WITHIN {
            return Err("the interface does not answer".into());
        }
        tokio::time::sleep(TICK).await;
    }
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

/// The interface's process, which is killed when this is dropped.
struct Interface {
    process: Child,
    token: String,
    jobs: String,
    ready: String,
}

impl Interface {
    fn start(stand: &Stand, ledger: &str) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("fettler");
        if !program.exists() {
            return Err("build the binary first: cargo build --release".into());
        }
        let command = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            command
                .args(arguments)
                .current_dir(stand.folder())
                .env("FETTLER_FOLDER", stand.folder().join("fettler"))
                .env("FETTLER_LEDGER__URL", ledger)
                .env("FETTLER_QUEUE__URL", stand.redis.url())
                .env("FETTLER_API__REQUESTS_PER_SECOND", "100000")
                .stdin(Stdio::null());
            command
        };
        let told = |arguments: &[&str]| -> Result<Value> {
            let output = command(arguments).arg("--json").output()?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
            }
            Ok(serde_json::from_slice(&output.stdout)?)
        };
        std::fs::write(stand.folder().join("bench.sqlite"), "")?;
        told(&["database", "add", "bench", "bench.sqlite"])?;
        let token = told(&["token", "add", "bench", "--role", "operator"])?;
        let address = format!("127.0.0.1:{}", free_port());
        let log = std::fs::File::create(stand.folder().join("api.log"))?;
        let process = command(&["api", "--listen", &address])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self {
            process,
            token: token["text"].as_str().ok_or("no token")?.to_owned(),
            jobs: format!("http://{address}/api/v1/jobs"),
            ready: format!("http://{address}/readyz"),
        })
    }

    fn client(&self) -> Result<reqwest::Client> {
        let mut headers = reqwest::header::HeaderMap::new();
        let value = format!("Bearer {}", self.token);
        headers.insert(reqwest::header::AUTHORIZATION, value.parse()?);
        Ok(reqwest::Client::builder()
            .default_headers(headers)
            .no_proxy()
            .build()?)
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
