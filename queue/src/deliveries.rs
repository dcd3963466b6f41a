//! Deliveries as an apalis backend. A task in the background takes from the queue whenever a slot is free
//! and something may be there; the worker loop gets what was claimed. So nothing depends on how often
//! the loop asks, and no error of queue or ledger reaches it: the task waits and tries again.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future as _,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use apalis_core::{
    backend::{Backend, BackendConfig, finalize::Ephemeral},
    task::Task,
    worker::context::WorkerContext,
};
use fettler_ledger::{ClaimRequest, Claimed, Ending, Fencing, Ledger, WorkerSkills};
use fettler_model::{ErrorClass, JobId, JobKindName, Problem};
use futures::task::AtomicWaker;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::layer::util::Identity;

use crate::{
    Queue, QueueError,
    slots::{Slot, Slots},
};

/// The first pause while queue or ledger are away; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a job that never started is tried to be handed back when the worker ends. After that its
/// lease runs out.
const HAND_BACK_WAIT: Duration = Duration::from_secs(5);

/// What a worker takes.
#[derive(Clone, Debug)]
pub struct DeliveryOptions {
    /// The worker's own id, never used by another process or after a restart.
    pub worker: String,
    /// The kinds that it can run: no other is claimed.
    pub kinds: Vec<JobKindName>,
    /// Slots for long jobs.
    pub long: usize,
    /// Slots for short jobs.
    pub short: usize,
    /// How long a claim holds.
    pub lease: Duration,
    /// Only these jobs.
    pub only: Option<Vec<JobId>>,
    /// What the worker can beside its kinds.
    pub skills: WorkerSkills,
    /// The queue is looked at this often though nothing was said: for jobs of processes that cannot
    /// say so.
    pub look_every: Duration,
}

impl DeliveryOptions {
    /// The usual: two long slots, sixteen short ones, a lease of 30 s, a look every two seconds.
    #[must_use]
    pub fn new(worker: impl Into<String>, kinds: Vec<JobKindName>) -> Self {
        Self {
            worker: worker.into(),
            kinds,
            long: 2,
            short: 16,
            lease: Duration::from_secs(30),
            only: None,
            skills: WorkerSkills::default(),
            look_every: Duration::from_secs(2),
        }
    }
}

/// A claimed job on its way to the worker loop.
#[derive(Debug)]
pub struct Delivery {
    /// The claim.
    pub claimed: Claimed,
    /// When the claim was sent, on this machine's clock: the lease is counted from here (rule 5).
    pub asked: Instant,
    /// The slot that it holds until it is dropped, or until [`Slot::work_is_over`].
    pub slot: Option<Slot>,
}

/// The backend. Dropping it stops the taking; closing it hands back what never started.
#[derive(Debug)]
pub struct Deliveries {
    arrived: Arc<Arrived>,
    stop: CancellationToken,
    taker: Option<JoinHandle<()>>,
}

/// What was claimed and not yet given to the worker loop: never more than there are slots.
#[derive(Debug, Default)]
struct Arrived {
    deliveries: Mutex<VecDeque<Delivery>>,
    waker: AtomicWaker,
}

impl Arrived {
    fn deliveries(&self) -> MutexGuard<'_, VecDeque<Delivery>> {
        self.deliveries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deliveries {
    /// Starts taking from a queue over this ledger.
    #[must_use]
    pub fn start(queue: Arc<dyn Queue>, ledger: Ledger, options: DeliveryOptions) -> Self {
        let arrived = Arc::new(Arrived::default());
        let stop = CancellationToken::new();
        let taker = Taker {
            queue,
            ledger,
            slots: Slots::new(options.long, options.short),
            options,
            arrived: arrived.clone(),
            stop: stop.clone(),
        };
        Self {
            arrived,
            stop,
            taker: Some(tokio::spawn(taker.run())),
        }
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Backend for Deliveries {
    type Task = Task<Delivery>;
    type Error = Infallible;

    fn poll_ready(
        &mut self,
        _: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Option<Result<Self::Task, Infallible>>> {
        // Registered before the look, so that nothing that arrives between the two is missed.
        self.arrived.waker.register(cx.waker());
        let next = self.arrived.deliveries().pop_front();
        next.map_or(Poll::Pending, |delivery| {
            Poll::Ready(Some(Ok(Task::new(delivery))))
        })
    }

    fn poll_close(
        &mut self,
        cx: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Result<(), Infallible>> {
        self.stop.cancel();
        if let Some(taker) = &mut self.taker {
            if let Err(error) = ready!(Pin::new(taker).poll(cx)) {
                tracing::error!(%error, "the task that takes jobs ended by a panic");
            }
            self.taker = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Deliveries {
    type Args = Delivery;
    type Id = JobId;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}

/// The task in the background.
struct Taker {
    queue: Arc<dyn Queue>,
    ledger: Ledger,
    slots: Slots,
    options: DeliveryOptions,
    arrived: Arc<Arrived>,
    stop: CancellationToken,
}

impl Taker {
    async fn run(self) {
        let mut arrivals = self.queue.arrivals();
        let mut pause = FIRST_PAUSE;
        while !self.stop.is_cancelled() {
            let (long, short) = self.slots.free();
            if long + short == 0 {
                tokio::select! {
                    () = self.slots.freed() => {}
                    () = self.stop.cancelled() => {}
                }
                continue;
            }
            // Not raced against the stop: a claim that was committed and not heard of would be lost
            // until its lease is over.
            let wait = match self.take(long, short).await {
                Ok(None) => {
                    pause = FIRST_PAUSE;
                    continue;
                }
                Ok(Some(wait)) => {
                    pause = FIRST_PAUSE;
                    wait
                }
                Err(error) => {
                    say(&error);
                    // Alone: what arrives while the ledger is away cannot be taken either.
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.stop.cancelled() => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
            };
            tokio::select! {
                () = arrivals.next() => {}
                () = self.slots.freed() => {}
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => {}
            }
        }
        self.hand_back().await;
    }

    /// Takes what there is; says how long to wait when there is nothing.
    async fn take(&self, long: usize, short: usize) -> Result<Option<Duration>, QueueError> {
        let request = ClaimRequest {
            worker: self.options.worker.clone(),
            kinds: self.options.kinds.clone(),
            long,
            short,
            lease: self.options.lease,
            only: self.options.only.clone(),
            skills: self.options.skills.clone(),
        };
        let asked = Instant::now();
        let batch = self.queue.take(&request).await?;
        if batch.jobs.is_empty() {
            let look_every = self.options.look_every;
            return Ok(Some(
                batch
                    .next_due_in
                    .map_or(look_every, |due| due.min(look_every)),
            ));
        }
        let mut deliveries = self.arrived.deliveries();
        deliveries.extend(batch.jobs.into_iter().map(|claimed| Delivery {
            slot: Some(self.slots.take(claimed.job.slot)),
            claimed,
            asked,
        }));
        drop(deliveries);
        self.arrived.waker.wake();
        Ok(None)
    }

    /// Gives jobs back that were claimed and never started; no try is spent.
    async fn hand_back(&self) {
        let left = std::mem::take(&mut *self.arrived.deliveries());
        let backs = left.into_iter().map(|delivery| async move {
            let fencing = Fencing {
                job: delivery.claimed.job.id,
                token: delivery.claimed.token,
            };
            let ending = Ending::Failed {
                problem: Problem::interrupted(),
            };
            let back = self.ledger.complete(fencing, ending);
            match tokio::time::timeout(HAND_BACK_WAIT, back).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(job.id = %fencing.job, %error, "a job that had not started could not be handed back: its lease runs out");
                }
                Err(_) => {
                    tracing::warn!(job.id = %fencing.job, "a job that had not started was not handed back in time: its lease runs out");
                }
            }
        });
        futures::future::join_all(backs).await;
    }
}

fn say(error: &QueueError) {
    if error.class() == ErrorClass::Transient {
        tracing::warn!(%error, "no jobs can be taken for the moment");
    } else {
        tracing::error!(%error, remedy = error.remedy(), "no jobs can be taken");
    }
}
