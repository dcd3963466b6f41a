//! Where the worker loop's jobs come from in the embedded size: claims in the ledger, as an apalis
//! backend. A task in the background claims as many jobs as there are free slots, so that nothing is
//! taken that could not start at once, and waits to be told when there is nothing to claim.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use apalis_core::{
    backend::{Backend, BackendConfig, finalize::Ephemeral},
    task::Task,
    worker::context::WorkerContext,
};
use fettler_ledger::{ClaimRequest, Claimed, Ending, Fencing, Ledger, LedgerError};
use fettler_model::{ErrorClass, JobId, JobKindName, Problem, SlotClass};
use futures::task::AtomicWaker;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tower::layer::util::Identity;

/// Jobs that another process submitted without being able to say so are found within this time.
const SAFETY_NET: Duration = Duration::from_secs(1);
/// The pauses between claims while the ledger is away.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a worker takes from the queue.
#[derive(Clone, Debug)]
pub(crate) struct QueueOptions {
    /// The worker's id.
    pub(crate) worker: String,
    /// The kinds that it can run.
    pub(crate) kinds: Vec<JobKindName>,
    /// Slots for long jobs.
    pub(crate) long: usize,
    /// Slots for short jobs.
    pub(crate) short: usize,
    /// How long a claim holds.
    pub(crate) lease: Duration,
    /// Only these jobs.
    pub(crate) only: Option<Vec<JobId>>,
}

/// A claimed job on its way to the worker loop.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The claim.
    pub(crate) claimed: Claimed,
    /// When the claim was sent, on this machine's clock.
    pub(crate) asked: Instant,
    /// The slot that it takes until it is dropped.
    pub(crate) slot: Option<Slot>,
}

/// A slot of the worker, taken.
#[derive(Debug)]
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The slot is free before it is said.
        drop(self.permit.take());
        self.freed.notify_one();
    }
}

/// The backend.
#[derive(Debug)]
pub(crate) struct LedgerQueue {
    ready: Arc<Ready>,
    stop: CancellationToken,
    claimer: Option<JoinHandle<()>>,
}

/// Claimed jobs that the worker loop has not taken yet: never more than there are slots.
#[derive(Debug, Default)]
struct Ready {
    deliveries: Mutex<VecDeque<Delivery>>,
    waker: AtomicWaker,
}

impl Ready {
    fn deliveries(&self) -> MutexGuard<'_, VecDeque<Delivery>> {
        self.deliveries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl LedgerQueue {
    /// The jobs of this ledger for a worker.
    pub(crate) fn new(ledger: Ledger, options: QueueOptions) -> Self {
        let ready = Arc::new(Ready::default());
        let stop = CancellationToken::new();
        let claimer = Claimer {
            long: Arc::new(Semaphore::new(options.long)),
            short: Arc::new(Semaphore::new(options.short)),
            freed: Arc::new(Notify::new()),
            ledger,
            options,
            ready: ready.clone(),
            stop: stop.clone(),
        };
        Self {
            ready,
            stop,
            claimer: Some(tokio::spawn(claimer.run())),
        }
    }
}

impl Drop for LedgerQueue {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Backend for LedgerQueue {
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
        self.ready.waker.register(cx.waker());
        let next = self.ready.deliveries().pop_front();
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
        match &mut self.claimer {
            Some(claimer) => {
                let ended = std::task::ready!(std::pin::Pin::new(claimer).poll(cx));
                if let Err(error) = ended {
                    tracing::error!(%error, "the task that claims jobs panicked");
                }
                self.claimer = None;
                Poll::Ready(Ok(()))
            }
            None => Poll::Ready(Ok(())),
        }
    }
}

impl BackendConfig for LedgerQueue {
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

struct Claimer {
    ledger: Ledger,
    options: QueueOptions,
    long: Arc<Semaphore>,
    short: Arc<Semaphore>,
    freed: Arc<Notify>,
    ready: Arc<Ready>,
    stop: CancellationToken,
}

impl Claimer {
    async fn run(self) {
        let mut wakeups = self.ledger.wakeups();
        let mut pause = FIRST_PAUSE;
        while !self.stop.is_cancelled() {
            let (long, short) = (
                self.long.available_permits(),
                self.short.available_permits(),
            );
            if long + short == 0 {
                tokio::select! {
                    () = self.freed.notified() => {}
                    () = self.stop.cancelled() => break,
                }
                continue;
            }
            let asked = Instant::now();
            let request = ClaimRequest {
                worker: self.options.worker.clone(),
                kinds: self.options.kinds.clone(),
                long,
                short,
                lease: self.options.lease,
                only: self.options.only.clone(),
            };
            // Not raced against the stop: a claim that was committed and not heard of would be lost
            // until its lease is over.
            let wait = match self.ledger.claim(&request).await {
                Ok(batch) => {
                    pause = FIRST_PAUSE;
                    let claimed = !batch.jobs.is_empty();
                    self.deliver(batch.jobs, asked);
                    if claimed {
                        continue;
                    }
                    batch
                        .next_due_in
                        .map_or(SAFETY_NET, |due| due.min(SAFETY_NET))
                }
                Err(error) => {
                    Self::say(&error);
                    let now = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    now
                }
            };
            tokio::select! {
                () = wakeups.changed() => {}
                () = self.freed.notified() => {}
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => {}
            }
        }
        self.hand_back().await;
    }

    fn say(error: &LedgerError) {
        if error.class() == ErrorClass::Transient {
            tracing::warn!(%error, "no jobs could be claimed for the moment");
        } else {
            tracing::error!(%error, "no jobs can be claimed");
        }
    }

    fn deliver(&self, jobs: Vec<Claimed>, asked: Instant) {
        let mut deliveries = self.ready.deliveries();
        for claimed in jobs {
            let slots = match claimed.job.slot {
                SlotClass::Long => &self.long,
                SlotClass::Short => &self.short,
            };
            deliveries.push_back(Delivery {
                // Only this task takes slots, and no more jobs were claimed than were free.
                slot: Some(Slot {
                    permit: slots.clone().try_acquire_owned().ok(),
                    freed: self.freed.clone(),
                }),
                claimed,
                asked,
            });
        }
        drop(deliveries);
        self.ready.waker.wake();
    }

    /// Gives jobs back that were claimed and never started.
    async fn hand_back(&self) {
        let left = std::mem::take(&mut *self.ready.deliveries());
        for delivery in left {
            let fencing = Fencing {
                job: delivery.claimed.job.id,
                token: delivery.claimed.token,
            };
            let ending = Ending::Failed {
                problem: Problem::interrupted(),
            };
            if let Err(error) = self.ledger.complete(fencing, ending).await {
                tracing::warn!(job.id = %fencing.job, %error, "a job that had not started could not be handed back: its lease runs out");
            }
        }
    }
}
