//! What every queue does, shown through real apalis workers: functions over a place that has a ledger
//! and a queue. No test sleeps for luck; where a test says "at once", the slow look is an hour away.

mod order;

use std::{
    collections::{BTreeMap, HashSet},
    convert::Infallible,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use apalis_core::{task::Task, worker::builder::WorkerBuilder};
use async_trait::async_trait;
use fettler_ledger::{
    ClaimRequest, ClaimedBatch, DatabaseRecord, DatabaseTerms, Ending, Fencing, JobFilter, Ledger,
    LedgerError, WorkerSkills,
};
use fettler_model::{
    DatabaseId, DatabaseUrl, ExclusionClass, JobId, JobRequest, JobState, JobTerms, Priority,
    Problem, Scope, SlotClass, TenantId, Timestamp,
};
use fettler_queue::{Arrivals, Deliveries, Delivery, DeliveryOptions, Queue, QueueError, WireItem};
pub use order::*;
use tokio::{sync::Semaphore, task::JoinHandle};

/// Nothing is found by looking within a test.
const NEVER: Duration = Duration::from_secs(3600);
/// Longer than any delivery takes on a busy machine, and far below [`NEVER`].
const SOON: Duration = Duration::from_secs(30);

/// Where a queue is tried.
#[async_trait]
pub trait Place: Send + Sync {
    /// The ledger, as one more process opens it.
    async fn ledger(&self) -> Ledger;
    /// The same, with another time in which a job rises one level.
    async fn ledger_that_ages(&self, ageing: Duration) -> Ledger;
    /// The queue, as the process of this ledger uses it.
    async fn queue(&self, ledger: &Ledger) -> Arc<dyn Queue>;
}

fn request(kind: &str) -> JobRequest {
    JobRequest {
        tenant: TenantId::default_tenant(),
        kind: kind.parse().unwrap(),
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
    }
}

fn long() -> JobRequest {
    JobRequest {
        slot: SlotClass::Long,
        ..request("noop")
    }
}

async fn submit(ledger: &Ledger, request: JobRequest) -> JobId {
    ledger.submit(request, None).await.unwrap().job
}

fn options(worker: &str) -> DeliveryOptions {
    DeliveryOptions {
        look_every: NEVER,
        lease: NEVER,
        ..DeliveryOptions::new(worker, vec!["noop".parse().unwrap()])
    }
}

/// Waits until a look finds something.
async fn eventually<T, F: Future<Output = Option<T>>>(
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

/// What a worker's jobs do: each says that it started, and ends when the gate has a place for it.
struct Work {
    ledger: Ledger,
    gate: Semaphore,
    started: Mutex<Vec<JobId>>,
    now: [AtomicUsize; 2],
    most: [AtomicUsize; 2],
    ending: fn() -> Ending,
}

impl Work {
    fn new(ledger: &Ledger, gate: usize) -> Arc<Self> {
        Self::ending(ledger, gate, || Ending::Succeeded {
            result: serde_json::Value::Null,
        })
    }

    fn ending(ledger: &Ledger, gate: usize, ending: fn() -> Ending) -> Arc<Self> {
        Arc::new(Self {
            ledger: ledger.clone(),
            gate: Semaphore::new(gate),
            started: Mutex::default(),
            now: Default::default(),
            most: Default::default(),
            ending,
        })
    }

    async fn run(&self, delivery: Delivery) -> Result<(), Infallible> {
        let class = usize::from(delivery.claimed.job.slot == SlotClass::Short);
        let now = self.now[class].fetch_add(1, SeqCst) + 1;
        self.most[class].fetch_max(now, SeqCst);
        self.started.lock().unwrap().push(delivery.claimed.job.id);
        self.gate.acquire().await.unwrap().forget();
        self.now[class].fetch_sub(1, SeqCst);
        let fencing = Fencing {
            job: delivery.claimed.job.id,
            token: delivery.claimed.token,
        };
        self.ledger
            .complete(fencing, (self.ending)())
            .await
            .unwrap();
        Ok(())
    }

    fn started(&self) -> Vec<JobId> {
        self.started.lock().unwrap().clone()
    }

    async fn wait_started(&self, count: usize) -> Vec<JobId> {
        eventually("jobs to start", || async {
            let started = self.started();
            (started.len() >= count).then_some(started)
        })
        .await
    }
}

/// A running apalis worker.
struct Running {
    context: apalis_core::worker::context::WorkerContext,
    task: JoinHandle<()>,
}

impl Running {
    fn start(queue: &Arc<dyn Queue>, work: &Arc<Work>, options: DeliveryOptions) -> Self {
        let context = apalis_core::worker::context::WorkerContext::from(options.worker.clone());
        let backend = Deliveries::start(queue.clone(), work.ledger.clone(), options);
        let work = work.clone();
        let worker = WorkerBuilder::new(context.clone())
            .backend(backend)
            .build(tower::service_fn(move |task: Task<Delivery>| {
                let work = work.clone();
                async move { work.run(task.args).await }
            }));
        let task = tokio::spawn(async move { worker.run().await.unwrap() });
        Self { context, task }
    }

    /// Stops it: what runs is waited for.
    async fn stop(self) {
        self.context.stop().unwrap();
        tokio::time::timeout(SOON, self.task)
            .await
            .unwrap()
            .unwrap();
    }
}

async fn wait_ended(ledger: &Ledger, count: usize) {
    eventually("jobs to end", || async {
        let filter = JobFilter {
            states: vec![JobState::Succeeded, JobState::Dead],
            limit: 1000,
            ..JobFilter::default()
        };
        (ledger.jobs(&filter).await.unwrap().len() >= count).then_some(())
    })
    .await;
}

pub async fn a_submitted_job_is_delivered_without_a_poll(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let work = Work::new(&ledger, 10);
    let worker = Running::start(&queue, &work, options("worker"));
    for count in 1..=3 {
        let id = submit(&ledger, request("noop")).await;
        assert_eq!(work.wait_started(count).await.last(), Some(&id));
        wait_ended(&ledger, count).await;
    }
    worker.stop().await;
}

pub async fn a_job_of_another_process_is_delivered_at_once_when_it_is_pushed(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let work = Work::new(&ledger, 10);
    let worker = Running::start(&queue, &work, options("worker"));
    let other = place.ledger().await;
    let id = submit(&other, request("noop")).await;
    let item = WireItem::from(&other.job(id).await.unwrap());
    // The worker's process is told, as the socket of `up` does it.
    queue.push(&[item]).await.unwrap();
    assert_eq!(work.wait_started(1).await, [id]);
    worker.stop().await;
}

pub async fn a_job_of_another_process_is_found_when_nobody_says_so(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let work = Work::new(&ledger, 10);
    let looking = DeliveryOptions {
        look_every: Duration::from_millis(20),
        ..options("worker")
    };
    let worker = Running::start(&queue, &work, looking);
    let other = place.ledger().await;
    let id = submit(&other, request("noop")).await;
    assert_eq!(work.wait_started(1).await, [id]);
    worker.stop().await;
}

pub async fn a_delayed_job_is_delivered_when_it_is_due(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let work = Work::new(&ledger, 10);
    let worker = Running::start(&queue, &work, options("worker"));
    let at = ledger.now().await.unwrap().plus(Duration::from_millis(200));
    let later = JobRequest {
        not_before: Some(at),
        ..request("noop")
    };
    let id = submit(&ledger, later).await;
    assert_eq!(work.wait_started(1).await, [id]);
    assert!(ledger.now().await.unwrap() >= at);
    worker.stop().await;
}

pub async fn a_push_that_is_repeated_delivers_nothing_twice(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let work = Work::new(&ledger, 10);
    let id = submit(&ledger, request("noop")).await;
    let item = WireItem::from(&ledger.job(id).await.unwrap());
    queue.push(&[item.clone(), item.clone()]).await.unwrap();
    let worker = Running::start(&queue, &work, options("worker"));
    queue.push(std::slice::from_ref(&item)).await.unwrap();
    wait_ended(&ledger, 1).await;
    // Late ones speak of a job that has ended.
    queue.push(&[item]).await.unwrap();
    let next = submit(&ledger, request("noop")).await;
    assert_eq!(work.wait_started(2).await, [id, next]);
    wait_ended(&ledger, 2).await;
    worker.stop().await;
    assert_eq!(ledger.attempts(id).await.unwrap().len(), 1);
}

pub async fn p2_every_job_is_delivered_to_one_of_many_workers(place: &dyn Place) {
    const JOBS: usize = 300;
    let ledger = place.ledger().await;
    let mut workers = Vec::new();
    for n in 0..3 {
        let own = place.ledger().await;
        let queue = place.queue(&own).await;
        let work = Work::new(&own, JOBS);
        let options = DeliveryOptions {
            look_every: Duration::from_millis(20),
            ..options(&format!("worker-{n}"))
        };
        workers.push((Running::start(&queue, &work, options), work));
    }
    let requests = (0..JOBS).map(|_| (request("noop"), None)).collect();
    let submitted: HashSet<JobId> = ledger
        .submit_batch(requests)
        .await
        .into_iter()
        .map(|submitted| submitted.unwrap().job)
        .collect();
    wait_ended(&ledger, JOBS).await;
    let mut started = Vec::new();
    for (worker, work) in workers {
        worker.stop().await;
        started.extend(work.started());
    }
    assert_eq!(started.len(), JOBS);
    assert_eq!(started.into_iter().collect::<HashSet<_>>(), submitted);
}

pub async fn p12_a_kind_that_no_worker_announced_is_not_delivered(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let work = Work::new(&ledger, 10);
    let unknown = submit(&ledger, request("unknown")).await;
    let known = submit(&ledger, request("noop")).await;
    let worker = Running::start(&queue, &work, options("worker"));
    assert_eq!(work.wait_started(1).await, [known]);
    wait_ended(&ledger, 1).await;
    worker.stop().await;
    assert_eq!(ledger.job(unknown).await.unwrap().attempt, 0);
}

pub async fn rule_17_a_job_is_delivered_only_where_its_database_is_reached(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let labels: BTreeMap<String, String> = [("zone".to_owned(), "dmz".to_owned())].into();
    let (url, _) = DatabaseUrl::parse_with_password("/data/shop.sqlite").unwrap();
    let database = DatabaseRecord {
        id: DatabaseId::new(),
        tenant: TenantId::default_tenant(),
        name: "shop".parse().unwrap(),
        url,
        password: None,
        identity_key: None,
        labels: BTreeMap::new(),
        sandbox: serde_json::Value::Null,
        created: Timestamp::now(),
        terms: DatabaseTerms {
            reach: labels.clone(),
            ..DatabaseTerms::default()
        },
    };
    let database = ledger.add_database(&database).await.unwrap().id;
    let about = JobRequest {
        database: Some(database),
        ..request("noop")
    };
    let newer = JobRequest {
        kind_version: 2,
        ..request("noop")
    };
    let (about, newer) = (submit(&ledger, about).await, submit(&ledger, newer).await);
    let known = submit(&ledger, request("noop")).await;
    let plain_work = Work::new(&ledger, 10);
    let plain = Running::start(&queue, &plain_work, options("plain"));
    assert_eq!(plain_work.wait_started(1).await, [known]);
    wait_ended(&ledger, 1).await;
    plain.stop().await;
    let skilled = DeliveryOptions {
        skills: WorkerSkills {
            versions: [("noop".parse().unwrap(), 2)].into(),
            labels,
        },
        ..options("skilled")
    };
    let work = Work::new(&ledger, 10);
    let worker = Running::start(&queue, &work, skilled);
    let started: HashSet<JobId> = work.wait_started(2).await.into_iter().collect();
    assert_eq!(started, HashSet::from([about, newer]));
    wait_ended(&ledger, 3).await;
    worker.stop().await;
}

pub async fn rule_4_a_limit_lets_as_many_run_and_wakes_the_next(place: &dyn Place) {
    const JOBS: usize = 60;
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let limited = Scope::Tenant(TenantId::default_tenant());
    ledger.set_limit(&limited, 2).await.unwrap();
    let work = Work::new(&ledger, 0);
    let worker = Running::start(&queue, &work, options("worker"));
    let requests = (0..JOBS).map(|_| (request("noop"), None)).collect();
    for submitted in ledger.submit_batch(requests).await {
        submitted.unwrap();
    }
    // Two stand at the gate; each that goes through it lets in the next.
    work.wait_started(2).await;
    work.gate.add_permits(1);
    work.wait_started(3).await;
    assert_eq!(ledger.counts().await.unwrap().running, 2);
    work.gate.add_permits(JOBS + 2);
    wait_ended(&ledger, JOBS).await;
    assert_eq!(work.most[1].load(SeqCst), 2);
    // Paused, nothing starts; afterwards it goes on.
    ledger.pause(&limited, None).await.unwrap();
    let waits = submit(&ledger, request("noop")).await;
    let other = JobRequest {
        tenant: "other".parse().unwrap(),
        ..request("noop")
    };
    let other = submit(&ledger, other).await;
    assert_eq!(work.wait_started(JOBS + 1).await.last(), Some(&other));
    assert_eq!(ledger.job(waits).await.unwrap().attempt, 0);
    ledger.resume(&limited).await.unwrap();
    assert_eq!(work.wait_started(JOBS + 2).await.last(), Some(&waits));
    wait_ended(&ledger, JOBS + 2).await;
    worker.stop().await;
}

pub async fn rule_16_what_is_urgent_is_delivered_first(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let mut expected = Vec::new();
    for priority in [Priority::Lowest, Priority::Normal, Priority::Highest] {
        let request = JobRequest {
            priority,
            ..request("noop")
        };
        expected.push(submit(&ledger, request).await);
    }
    expected.reverse();
    let work = Work::new(&ledger, 10);
    let one_slot = DeliveryOptions {
        short: 1,
        ..options("worker")
    };
    let worker = Running::start(&queue, &work, one_slot);
    assert_eq!(work.wait_started(3).await, expected);
    worker.stop().await;
}

pub async fn rule_17_a_long_job_never_delays_a_short_one(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let work = Work::new(&ledger, 0);
    for _ in 0..6 {
        submit(&ledger, long()).await;
    }
    let worker = Running::start(&queue, &work, options("worker"));
    // Two long jobs stand at the gate, four wait for a long slot.
    work.wait_started(2).await;
    let mut short = HashSet::new();
    for _ in 0..5 {
        short.insert(submit(&ledger, request("noop")).await);
    }
    let started = work.wait_started(7).await;
    assert_eq!(started[2..].iter().copied().collect::<HashSet<_>>(), short);
    work.gate.add_permits(100);
    wait_ended(&ledger, 11).await;
    assert_eq!(work.most[0].load(SeqCst), 2);
    worker.stop().await;
}

pub async fn rule_17_no_more_is_claimed_than_there_are_slots(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let work = Work::new(&ledger, 0);
    for _ in 0..20 {
        submit(&ledger, request("noop")).await;
        submit(&ledger, long()).await;
    }
    let few = DeliveryOptions {
        long: 1,
        short: 3,
        ..options("worker")
    };
    let worker = Running::start(&queue, &work, few);
    work.wait_started(4).await;
    assert_eq!(
        ledger.counts().await.unwrap().running,
        4,
        "nothing is prefetched"
    );
    work.gate.add_permits(100);
    wait_ended(&ledger, 40).await;
    assert_eq!(
        (work.most[0].load(SeqCst), work.most[1].load(SeqCst)),
        (1, 3)
    );
    worker.stop().await;
}

pub async fn a_slot_is_free_again_after_a_failure(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let work = Work::ending(&ledger, 100, || Ending::Failed {
        problem: Problem::permanent("test.failed", "failed", ""),
    });
    let one_slot = DeliveryOptions {
        short: 1,
        ..options("worker")
    };
    let worker = Running::start(&queue, &work, one_slot);
    for _ in 0..5 {
        submit(&ledger, request("noop")).await;
    }
    wait_ended(&ledger, 5).await;
    worker.stop().await;
}

/// A queue whose first calls fail.
#[derive(Debug)]
struct Flaky {
    inner: Arc<dyn Queue>,
    failures: AtomicUsize,
}

#[async_trait]
impl Queue for Flaky {
    async fn push(&self, items: &[WireItem]) -> Result<(), QueueError> {
        self.inner.push(items).await
    }

    async fn take(&self, request: &ClaimRequest) -> Result<ClaimedBatch, QueueError> {
        let left = self
            .failures
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(left) if left % 2 == 0 => Err(QueueError::Unavailable {
                doing: "testing",
                what: "it was cut".to_owned(),
            }),
            Ok(_) => Err(LedgerError::Unavailable {
                doing: "testing",
                what: "it was cut".to_owned(),
            }
            .into()),
            Err(_) => self.inner.take(request).await,
        }
    }

    fn arrivals(&self) -> Box<dyn Arrivals> {
        self.inner.arrivals()
    }
}

pub async fn an_error_of_ledger_or_queue_ends_no_worker(place: &dyn Place) {
    let ledger = place.ledger().await;
    let flaky = Arc::new(Flaky {
        inner: place.queue(&ledger).await,
        failures: AtomicUsize::new(4),
    });
    let queue: Arc<dyn Queue> = flaky.clone();
    let work = Work::new(&ledger, 100);
    let worker = Running::start(&queue, &work, options("worker"));
    let first = submit(&ledger, request("noop")).await;
    assert_eq!(work.wait_started(1).await, [first]);
    flaky.failures.store(2, SeqCst);
    let second = submit(&ledger, request("noop")).await;
    assert_eq!(work.wait_started(2).await, [first, second]);
    worker.stop().await;
}

pub async fn what_never_started_is_handed_back_at_the_end(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(submit(&ledger, request("noop")).await);
    }
    // Taken by the backend, but no worker loop asks for them.
    let mut backend = Deliveries::start(queue.clone(), ledger.clone(), options("worker"));
    eventually("the claims", || async {
        (ledger.counts().await.unwrap().running == 5).then_some(())
    })
    .await;
    let context = apalis_core::worker::context::WorkerContext::from("worker".to_owned());
    std::future::poll_fn(|cx| {
        apalis_core::backend::Backend::poll_close(&mut backend, cx, &context)
    })
    .await
    .unwrap();
    let counts = ledger.counts().await.unwrap();
    assert_eq!((counts.queued, counts.running), (5, 0));
    let job = ledger.job(ids[0]).await.unwrap();
    assert_eq!((job.tries, job.attempt, job.isolated), (0, 1, false));
    // They are there for the next worker.
    let work = Work::new(&ledger, 10);
    let worker = Running::start(&queue, &work, options("next"));
    wait_ended(&ledger, 5).await;
    worker.stop().await;
    // An attempt that was ended by its worker is not ended again.
    let again = ledger.attempts(ids[0]).await.unwrap();
    let repeated = Fencing {
        job: ids[0],
        token: again[0].token,
    };
    let refused = ledger
        .complete(
            repeated,
            Ending::Failed {
                problem: Problem::interrupted(),
            },
        )
        .await;
    assert!(
        matches!(refused, Err(LedgerError::Superseded { .. })),
        "{refused:?}"
    );
}
