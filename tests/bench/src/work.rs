//! A worker process: the fleet's own worker with the benchmarks' kinds, on the ledger and the Redis that it is told.

use std::{io::Write as _, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use clap::Args;
use fettler_engine::SandboxSpec;
use fettler_jobs::{BackupPlace, Services};
use fettler_ledger::{Ledger, LedgerOptions};
use fettler_model::{Problem, Secret, SecretReference, TenantId};
use fettler_queue_redis::{RedisQueue, RedisQueueOptions};
use fettler_repository::TenantRepository;
use fettler_telemetry::LogForm;
use fettler_worker::{Slots, WorkerBuilder};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use crate::{Result, kinds};

/// What a worker says once it takes jobs, before its id.
pub const READY: &str = "ready";

#[derive(Args)]
pub struct Options {
    #[arg(long)]
    ledger: String,
    /// The ledger is the queue where none is named.
    #[arg(long)]
    redis: Option<String>,
    /// How many jobs it runs at once.
    #[arg(long)]
    slots: usize,
    #[arg(long)]
    scratch: PathBuf,
}

/// Runs until its standard input ends, as it does when whoever started it is gone.
pub async fn run(options: Options) -> Result<()> {
    let _telemetry = fettler_telemetry::start(&fettler_telemetry::Options {
        log_filter: "info".to_owned(),
        log_form: LogForm::Json,
        traces_to: None,
        sample: 0.0,
        service: "fettler-bench",
        instance: "worker".to_owned(),
    })?;
    let ledger = Ledger::open(&options.ledger).await?;
    let mut builder = builder(&ledger, &options.ledger, options.slots, options.scratch);
    if let Some(url) = options.redis {
        let queue = RedisQueue::start(ledger.clone(), RedisQueueOptions::new(url))?;
        builder = builder.queue(Arc::new(queue));
    }
    let worker = builder.build();
    let (readiness, id) = (worker.readiness(), worker.id().to_owned());
    let stop = CancellationToken::new();
    let until_left_alone = stop.clone();
    tokio::spawn(async move {
        let _ended = tokio::io::stdin().read(&mut [0]).await;
        until_left_alone.cancel();
    });
    tokio::spawn(async move {
        while readiness.check().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut out = std::io::stdout();
        // Whoever waits for it may be gone.
        let _told = writeln!(out, "{READY} {id}").and_then(|()| out.flush());
    });
    worker.run(stop).await?;
    Ok(())
}

/// A worker of the benchmarks on this ledger, which is its queue too unless it is given another.
pub fn builder(ledger: &Ledger, url: &str, slots: usize, scratch: PathBuf) -> WorkerBuilder {
    WorkerBuilder::new(
        "bench",
        ledger.clone(),
        Arc::new(kinds::registry()),
        Arc::new(NothingBesideJobs { scratch }),
    )
    .heartbeat_over(url, LedgerOptions::default())
    .slots(Slots {
        long: 0,
        short: slots,
    })
}

/// The jobs of benchmarks touch nothing but the fleet itself.
struct NothingBesideJobs {
    scratch: PathBuf,
}

#[async_trait]
impl Services for NothingBesideJobs {
    async fn secret(&self, _: &TenantId, _: &SecretReference) -> Result<Secret, Problem> {
        Err(nothing_there())
    }

    async fn repository(
        &self,
        _: &TenantId,
        _: &BackupPlace,
    ) -> Result<(TenantRepository, String), Problem> {
        Err(nothing_there())
    }

    fn parallel(&self) -> usize {
        1
    }

    fn scratch(&self) -> PathBuf {
        self.scratch.clone()
    }

    fn collection_grace(&self) -> Duration {
        Duration::from_secs(24 * 3600)
    }

    fn default_sandbox(&self) -> SandboxSpec {
        SandboxSpec::Automatic
    }
}

fn nothing_there() -> Problem {
    Problem::permanent("bench.nothing", "a benchmark's job asks for nothing", "")
}
