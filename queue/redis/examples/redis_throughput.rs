//! Prints how many no-op jobs a second the wire moves: pushed, taken (popped, claimed in the ledger, settled) and ended, in
//! batches of 1, 10 and 100, by one caller that waits for each answer.
//!
//! ```text
//! cargo run --release -p fettler-queue-redis --example redis_throughput -- [REDIS-URL [LEDGER-URL]]
//! ```
//!
//! Without URLs it starts a Redis of its own, and the ledger is a SQLite file in a temporary folder.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use fettler_ledger::{ClaimRequest, Ending, Fencing, Ledger, WorkerSkills};
use fettler_model::{
    ExclusionClass, JobKindName, JobRequest, JobTerms, Priority, SlotClass, TenantId,
};
use fettler_queue::{Queue as _, WireItem};
use fettler_queue_redis::{RedisQueue, RedisQueueOptions};
use fettler_test_servers::{RedisOptions, RedisServer};

/// For each batch size, how many jobs.
const RUNS: [(usize, usize); 3] = [(1, 2_000), (10, 10_000), (100, 20_000)];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = tempfile::tempdir()?;
    let (_server, redis) = match arguments.next() {
        Some(url) => (None, url),
        None => {
            let server = RedisServer::start(RedisOptions::new())?;
            let url = server.url();
            (Some(server), url)
        }
    };
    let ledger_url = arguments
        .next()
        .unwrap_or_else(|| format!("sqlite:{}", folder.path().join("ledger.db").display()));

    println!("batch     jobs    push/s    take/s     end/s");
    for (batch, jobs) in RUNS {
        let [push, take, end] = run(&redis, &ledger_url, batch, jobs).await?;
        let rate = |time: Duration| jobs as f64 / time.as_secs_f64();
        println!(
            "{batch:5} {jobs:8} {:9.0} {:9.0} {:9.0}",
            rate(push),
            rate(take),
            rate(end)
        );
    }
    Ok(())
}

/// How long the pushes, the takes and the ends took.
async fn run(
    redis: &str,
    ledger_url: &str,
    batch: usize,
    jobs: usize,
) -> Result<[Duration; 3], Box<dyn Error>> {
    let kind: JobKindName = format!("noop-{batch}-{}", std::process::id()).parse()?;
    let request = JobRequest {
        tenant: TenantId::default_tenant(),
        kind: kind.clone(),
        kind_version: 1,
        database: None,
        arguments: serde_json::Value::Null,
        exclusion: ExclusionClass::Free,
        slot: SlotClass::Short,
        priority: Priority::Normal,
        not_before: None,
        deadline: None,
        max_tries: 1,
        unique_key: None,
        retry_of: None,
        tags: Vec::new(),
        terms: JobTerms::default(),
    };
    // Submitted through a handle that no queue listens to, so that the pushes can be timed.
    let submitting = Ledger::open(ledger_url).await?;
    let mut items = Vec::with_capacity(jobs);
    while items.len() < jobs {
        let requests = (0..1_000.min(jobs - items.len()))
            .map(|_| (request.clone(), None))
            .collect();
        for submitted in submitting.submit_batch(requests).await {
            items.push(submitted?.job);
        }
    }
    let mut wire = Vec::with_capacity(jobs);
    for some in items.chunks(500) {
        for job in submitting.queued_among(some).await? {
            wire.push(WireItem {
                id: job.id,
                generation: job.attempt,
                tenant: job.tenant,
                priority: job.priority,
                kind: job.kind,
                kind_version: job.kind_version,
                line: String::new(),
                slot: job.slot,
                since: job.rank.plus(submitting.ageing() * 2),
            });
        }
    }
    submitting.close().await;

    let ledger = Ledger::open(ledger_url).await?;
    let mut options = RedisQueueOptions::new(redis);
    options.fleet = format!("throughput-{}-{batch}", std::process::id());
    options.sweep_every = Duration::from_secs(3600);
    options.filler_lease = Duration::from_secs(3600);
    // The first look at a new memory would fill it: it finds that somebody else is at it.
    occupy(redis, &options.fleet).await?;
    let queue = RedisQueue::start(ledger.clone(), options)?;
    while !queue.is_up() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let started = Instant::now();
    for some in wire.chunks(batch) {
        queue.push(some).await?;
    }
    let pushed = started.elapsed();

    let room = ClaimRequest {
        worker: "throughput".to_owned(),
        kinds: vec![kind],
        long: 0,
        short: batch,
        lease: Duration::from_secs(3600),
        skills: WorkerSkills::default(),
        only: None,
    };
    let (mut taking, mut ending, mut done) = (Duration::ZERO, Duration::ZERO, 0);
    while done < jobs {
        let started = Instant::now();
        let taken = queue.take(&room).await?.jobs;
        taking += started.elapsed();
        done += taken.len();
        let started = Instant::now();
        let ends = taken.into_iter().map(|claimed| {
            let fencing = Fencing {
                job: claimed.job.id,
                token: claimed.token,
            };
            let ending = Ending::Succeeded {
                result: serde_json::Value::Null,
            };
            ledger.complete(fencing, ending)
        });
        for ended in futures::future::join_all(ends).await {
            ended?;
        }
        ending += started.elapsed();
    }
    Ok([pushed, taking, ending])
}

/// Holds the place of the one that fills.
async fn occupy(redis: &str, fleet: &str) -> Result<(), Box<dyn Error>> {
    let mut connection = redis::Client::open(redis)?
        .get_multiplexed_async_connection()
        .await?;
    redis::cmd("SET")
        .arg(format!("fettler:{{{fleet}}}:filler"))
        .arg("throughput")
        .arg("EX")
        .arg(60)
        .query_async::<()>(&mut connection)
        .await?;
    Ok(())
}
