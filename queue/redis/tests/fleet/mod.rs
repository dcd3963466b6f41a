//! A fleet for one test: a ledger in a folder of its own, and a name of its own on a real Redis.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    future::Future,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use fettler_ledger::{ClaimRequest, Ending, Fencing, Ledger, LedgerOptions, WorkerSkills};
use fettler_model::{ExclusionClass, JobId, JobRequest, JobTerms, Priority, SlotClass, TenantId};
use fettler_queue::Queue;
use fettler_queue_redis::{RedisQueue, RedisQueueOptions};
use fettler_test_servers::{RedisOptions, RedisServer};

/// Longer than anything takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(120);

/// The Redis that all tests of one binary share which leave it alone.
fn shared() -> &'static RedisServer {
    static SERVER: OnceLock<RedisServer> = OnceLock::new();
    SERVER.get_or_init(|| RedisServer::start(RedisOptions::new()).unwrap())
}

pub struct Fleet {
    folder: tempfile::TempDir,
    pub options: RedisQueueOptions,
    pub ledger_options: LedgerOptions,
}

impl Fleet {
    /// On the shared server.
    pub fn new() -> Self {
        Self::at(shared().url())
    }

    /// On a server of the test's own.
    pub fn at(url: String) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut options = RedisQueueOptions::new(url);
        options.fleet = format!("test-{}", COUNT.fetch_add(1, SeqCst));
        options.sweep_every = Duration::from_millis(200);
        Self {
            folder: tempfile::tempdir().unwrap(),
            options,
            ledger_options: LedgerOptions::default(),
        }
    }

    /// The ledger, as one more process opens it.
    pub async fn open_ledger(&self) -> Ledger {
        self.open_ledger_with(self.ledger_options.clone()).await
    }

    /// The same with other options.
    pub async fn open_ledger_with(&self, options: LedgerOptions) -> Ledger {
        let url = format!("sqlite:{}", self.folder.path().join("ledger.db").display());
        Ledger::open_with(&url, options).await.unwrap()
    }

    /// The queue, as the process of this ledger uses it.
    pub fn start_queue(&self, ledger: &Ledger) -> RedisQueue {
        RedisQueue::start(ledger.clone(), self.options.clone()).unwrap()
    }

    /// What all keys of the fleet begin with.
    pub fn base(&self) -> String {
        format!("fettler:{{{}}}:", self.options.fleet)
    }

    /// A connection beside the queue's own.
    pub async fn redis(&self) -> redis::aio::MultiplexedConnection {
        let patient = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(SOON))
            .set_response_timeout(Some(SOON));
        redis::Client::open(self.options.url.as_str())
            .unwrap()
            .get_multiplexed_async_connection_with_config(&patient)
            .await
            .unwrap()
    }
}

pub fn request(tenant: &str, priority: Priority) -> JobRequest {
    JobRequest {
        tenant: tenant.parse().unwrap(),
        kind: "noop".parse().unwrap(),
        kind_version: 1,
        database: None,
        arguments: serde_json::Value::Null,
        exclusion: ExclusionClass::Free,
        slot: SlotClass::Short,
        priority,
        not_before: None,
        deadline: None,
        max_tries: 1,
        unique_key: None,
        retry_of: None,
        tags: Vec::new(),
        terms: JobTerms::default(),
    }
}

pub fn room(short: usize) -> ClaimRequest {
    ClaimRequest {
        worker: "worker".to_owned(),
        kinds: vec!["noop".parse().unwrap()],
        long: 0,
        short,
        lease: Duration::from_secs(3600),
        skills: WorkerSkills::default(),
        only: None,
    }
}

/// Submits that many jobs of a tenant.
pub async fn submit_many(ledger: &Ledger, count: usize, tenant: &str) -> Vec<JobId> {
    let requests = (0..count)
        .map(|_| (request(tenant, Priority::Normal), None))
        .collect();
    ledger
        .submit_batch(requests)
        .await
        .into_iter()
        .map(|submitted| submitted.unwrap().job)
        .collect()
}

/// Waits until a look finds something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < SOON, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Takes and ends jobs until there were so many; gives them back in the order in which they came.
pub async fn work_off(
    queue: &dyn Queue,
    ledger: &Ledger,
    room: &ClaimRequest,
    count: usize,
) -> Vec<(JobId, TenantId)> {
    let mut done = Vec::with_capacity(count);
    let mut arrivals = queue.arrivals();
    let started = Instant::now();
    while done.len() < count {
        assert!(
            started.elapsed() < SOON,
            "{} of {count} jobs came",
            done.len()
        );
        // As the worker's loop does, a ledger or queue that is busy is asked again.
        let batch = queue.take(room).await.unwrap_or_default();
        if batch.jobs.is_empty() {
            let wait = batch
                .next_due_in
                .unwrap_or(Duration::from_secs(1))
                .min(Duration::from_secs(1));
            tokio::select! {
                () = arrivals.next() => {}
                () = tokio::time::sleep(wait) => {}
            }
            continue;
        }
        let ends = batch.jobs.into_iter().map(|claimed| {
            let fencing = Fencing {
                job: claimed.job.id,
                token: claimed.token,
            };
            async move {
                let ending = Ending::Succeeded {
                    result: serde_json::Value::Null,
                };
                ledger.complete(fencing, ending).await.unwrap();
                (claimed.job.id, claimed.job.tenant)
            }
        });
        done.extend(futures::future::join_all(ends).await);
    }
    done
}
