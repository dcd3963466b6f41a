//! The worker: runs jobs that it has claimed, keeps their leases, and reports how they ended.
//!
//! What it keeps: a job has one running attempt, and what a superseded one still writes is refused (P2);
//! a job whose worker died is taken up again within its lease and a moment (P1); a drain, a snooze and an
//! outage of the ledger spend no try (rule 2). It knows nothing of what a job does: that is the kind's.
//!
//! The worker loop is apalis's (its `Monitor`, its layers for spans and panics); jobs come from the queue
//! as deliveries that the ledger has claimed. The heartbeat has a thread of its own.

mod artefact;
mod attempt;
mod drain;
mod heart;
mod isolate;
mod lease;
mod ports;
mod readiness;
mod rescue;
mod service;

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use apalis::layers::{catch_panic::CatchPanicLayer, tracing::TraceLayer};
use apalis_core::{
    monitor::Monitor, task::Task, worker::builder::WorkerBuilder as ApalisWorkerBuilder,
};
use fettler_jobs::{Registry, Services, StopReason};
use fettler_ledger::{Beat, BeatAnswer, Claimed, Ledger, LedgerError, LedgerOptions, WorkerSkills};
use fettler_model::{
    AttemptToken, ErrorClass, JobId, JobKindName, JobState, Problem, Progress, SlotClass,
};
use fettler_queue::{Deliveries, Delivery, DeliveryOptions, LedgerQueue, Queue};
use fettler_telemetry::metric;
use thiserror::Error;
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tower::limit::ConcurrencyLimitLayer;
use tracing::Span;
use uuid::Uuid;

pub use isolate::Isolate;
pub use readiness::Readiness;

use drain::{Drain, UntilDrain};
use heart::{Heart, HeartLedger};
use readiness::LastAsked;
use service::{ReportLayer, RunJob};

/// How many jobs of each class run at once (rule 17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// For jobs of minutes to hours.
    pub long: usize,
    /// For jobs of seconds.
    pub short: usize,
}

impl Default for Slots {
    fn default() -> Self {
        Self { long: 2, short: 16 }
    }
}

/// The worker's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a claim holds without renewal.
    pub lease: Duration,
    /// How often leases are renewed.
    pub heartbeat: Duration,
    /// How long jobs may take to stop when the worker does.
    pub drain: Duration,
    /// How long a job may take to stop when it is cancelled.
    pub cancel_grace: Duration,
    /// An attempt that gives no sign of life for so long has stalled: it is stopped, and tried again. None lets it
    /// take for ever.
    pub stall: Option<Duration>,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            heartbeat: Duration::from_secs(10),
            drain: Duration::from_secs(30),
            cancel_grace: Duration::from_secs(30),
            stall: Some(Duration::from_secs(30 * 60)),
        }
    }
}

/// At the end of a drain: how long the reports of the last jobs may take while the ledger is away.
const LAST_REPORTS: Duration = Duration::from_secs(10);
/// A worker that was started for certain jobs looks at them this often, beside being told: they may
/// run and end in another process.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// Why a worker ended otherwise than by request.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The ledger failed in a way that does not pass.
    #[error("the worker cannot use the ledger: {0}")]
    Ledger(#[from] LedgerError),
    /// The worker loop failed.
    #[error("the worker loop failed: {0}")]
    Loop(String),
    /// The heartbeat could not be started.
    #[error("the heartbeat's thread could not be started: {0}")]
    Heartbeat(std::io::Error),
    /// The lease is no longer than the time between two heartbeats.
    #[error(
        "a lease of {lease:?} cannot be kept with a heartbeat every {heartbeat:?}: make the lease at least twice as long"
    )]
    Timing {
        /// The lease.
        lease: Duration,
        /// The time between heartbeats.
        heartbeat: Duration,
    },
    /// The claim that was to be adopted is gone.
    #[error(
        "the attempt {token} of job {job} has ended or was superseded: there is nothing to run"
    )]
    NothingToAdopt {
        /// The job.
        job: JobId,
        /// The attempt.
        token: AttemptToken,
    },
}

impl WorkerError {
    /// What it means for whoever started the worker.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::Ledger(error) => error.class(),
            Self::Loop(_) | Self::Heartbeat(_) => ErrorClass::Transient,
            Self::Timing { .. } => ErrorClass::Permanent,
            Self::NothingToAdopt { .. } => ErrorClass::Cancelled,
        }
    }
}

impl From<WorkerError> for Problem {
    fn from(error: WorkerError) -> Self {
        let class = error.class();
        match error {
            WorkerError::Ledger(error) => error.into(),
            other => Self::new(class, "worker.failed", other.to_string(), ""),
        }
    }
}

/// How far a job is that runs in a worker; none when it does not. See [`Worker::live_progress`].
pub type LiveProgress = Arc<dyn Fn(JobId) -> Option<Progress> + Send + Sync>;

/// What all parts of a running worker share.
pub(crate) struct Shared {
    pub(crate) ledger: Ledger,
    pub(crate) registry: Arc<Registry>,
    pub(crate) services: Arc<dyn Services>,
    pub(crate) timing: Timing,
    pub(crate) isolate: Option<Arc<dyn Isolate>>,
    pub(crate) heart: Arc<Heart>,
    /// How far the worker is in its end.
    pub(crate) drain: Arc<Drain>,
    /// Reports that could not be made so far are given up.
    pub(crate) report_no_more: CancellationToken,
    /// An attempt or a job has ended.
    pub(crate) ended: Notify,
    /// Something may have been left by an ended attempt.
    pub(crate) tidy: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("registry", &self.registry)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

/// Says how a worker is to be.
pub struct WorkerBuilder {
    name: String,
    ledger: Ledger,
    heart_ledger: HeartLedger,
    registry: Arc<Registry>,
    services: Arc<dyn Services>,
    slots: Slots,
    timing: Timing,
    only: Option<Vec<JobId>>,
    adopt: Option<(JobId, AttemptToken)>,
    isolate: Option<Arc<dyn Isolate>>,
    queue: Option<Arc<dyn Queue>>,
    labels: BTreeMap<String, String>,
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder")
            .field("name", &self.name)
            .field("slots", &self.slots)
            .field("timing", &self.timing)
            .field("only", &self.only)
            .field("adopt", &self.adopt)
            .finish_non_exhaustive()
    }
}

impl WorkerBuilder {
    /// A worker of this name with the usual slots and times.
    #[must_use]
    pub fn new(
        name: &str,
        ledger: Ledger,
        registry: Arc<Registry>,
        services: Arc<dyn Services>,
    ) -> Self {
        Self {
            // Names may be shared, by replicas or by a worker that was started again; ids never are.
            name: format!("{name}-{}", Uuid::now_v7().simple()),
            heart_ledger: HeartLedger::Shared(ledger.clone()),
            ledger,
            registry,
            services,
            slots: Slots::default(),
            timing: Timing::default(),
            only: None,
            adopt: None,
            isolate: None,
            queue: None,
            labels: BTreeMap::new(),
        }
    }

    /// Where jobs come from; the ledger itself when nothing is said.
    #[must_use]
    pub fn queue(mut self, queue: Arc<dyn Queue>) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Gives the heartbeat connections of its own to this ledger, which is the worker's: jobs that use
    /// up the others cannot hold it up then.
    #[must_use]
    pub fn heartbeat_over(mut self, url: &str, options: LedgerOptions) -> Self {
        self.heart_ledger = HeartLedger::Own {
            url: url.to_owned(),
            options,
        };
        self
    }

    /// The worker's labels: databases that ask for some of them can be reached by it (rule 17).
    #[must_use]
    pub fn labels(mut self, labels: BTreeMap<String, String>) -> Self {
        self.labels = labels;
        self
    }

    /// How many jobs run at once.
    #[must_use]
    pub const fn slots(mut self, slots: Slots) -> Self {
        self.slots = slots;
        self
    }

    /// The worker's times.
    #[must_use]
    pub const fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// Runs these jobs only; the worker ends once all of them are final, whoever ran them.
    #[must_use]
    pub fn only(mut self, jobs: Vec<JobId>) -> Self {
        self.only = Some(jobs);
        self
    }

    /// Runs this attempt only, which another process has claimed for this one (see [`Isolate`]), and
    /// ends with it.
    #[must_use]
    pub const fn adopt(mut self, job: JobId, token: AttemptToken) -> Self {
        self.adopt = Some((job, token));
        self
    }

    /// How a job is run in a process of its own (rule 7). Without it such jobs run in this one.
    #[must_use]
    pub fn isolate(mut self, isolate: impl Isolate) -> Self {
        self.isolate = Some(Arc::new(isolate));
        self
    }

    /// The worker.
    #[must_use]
    pub fn build(self) -> Worker {
        let heart = Heart::new(&self.name, self.timing.lease, self.timing.heartbeat);
        let queue = self
            .queue
            .unwrap_or_else(|| Arc::new(LedgerQueue::new(self.ledger.clone())));
        let shared = Arc::new(Shared {
            ledger: self.ledger,
            registry: self.registry,
            services: self.services,
            timing: self.timing,
            // A process that was started for one attempt is that attempt's own.
            isolate: self.isolate.filter(|_| self.adopt.is_none()),
            heart,
            drain: Arc::default(),
            report_no_more: CancellationToken::new(),
            ended: Notify::new(),
            tidy: Notify::new(),
        });
        Worker {
            name: self.name,
            shared,
            queue,
            heart_ledger: self.heart_ledger,
            slots: self.slots,
            only: self.only,
            adopt: self.adopt,
            asked: Arc::default(),
            labels: self.labels,
        }
    }
}

/// A worker.
#[derive(Debug)]
pub struct Worker {
    name: String,
    shared: Arc<Shared>,
    queue: Arc<dyn Queue>,
    heart_ledger: HeartLedger,
    slots: Slots,
    only: Option<Vec<JobId>>,
    adopt: Option<(JobId, AttemptToken)>,
    asked: Arc<LastAsked>,
    labels: BTreeMap<String, String>,
}

impl Worker {
    /// The worker's id, as the ledger knows it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.name
    }

    /// Tells how far a job is at this moment, while the worker runs it: more often than heartbeats do.
    #[must_use]
    pub fn live_progress(&self) -> LiveProgress {
        let heart = self.shared.heart.clone();
        Arc::new(move |job| heart.progress(job))
    }

    /// Tells whether the worker works, from now until it has ended.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        Readiness {
            asked: self.asked.clone(),
            heart: self.shared.heart.clone(),
            slots: self.slots.long + self.slots.short,
        }
    }

    /// Runs jobs until `shutdown` is cancelled, then drains: running jobs are asked to stop, and go back
    /// to the queue with no try spent. A worker for certain jobs ends by itself.
    ///
    /// # Errors
    ///
    /// When the heartbeat or the worker loop cannot be started. Errors of the ledger and of jobs end no
    /// worker.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let timing = self.shared.timing;
        if timing.lease < timing.heartbeat {
            return Err(WorkerError::Timing {
                lease: timing.lease,
                heartbeat: timing.heartbeat,
            });
        }
        let heart_stop = CancellationToken::new();
        let heart = self
            .shared
            .heart
            .start(self.heart_ledger.clone(), heart_stop.clone())
            .map_err(WorkerError::Heartbeat)?;
        let stop_heart = heart_stop.drop_guard();

        let mut duties = JoinSet::new();
        duties.spawn(rescue::cancellations(self.shared.clone()));
        let result = match self.adopt {
            Some((job, token)) => self.run_adopted(job, token, shutdown).await,
            None => {
                duties.spawn(rescue::rescue(self.shared.clone()));
                duties.spawn(rescue::expire(self.shared.clone()));
                duties.spawn(rescue::tidy(self.shared.clone()));
                self.run_loop(shutdown).await
            }
        };

        duties.shutdown().await;
        drop(stop_heart);
        let joined = tokio::task::spawn_blocking(move || heart.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the heartbeat's thread panicked");
        }
        if self.adopt.is_none()
            && let Err(error) = self.shared.ledger.remove_worker(&self.name).await
        {
            tracing::debug!(%error, "the ledger was not told that the worker is gone");
        }
        result
    }

    async fn run_loop(&self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let shared = &self.shared;
        let kinds: Vec<JobKindName> = shared.registry.iter().map(|kind| kind.name()).collect();
        let options = DeliveryOptions {
            long: self.slots.long,
            short: self.slots.short,
            lease: shared.timing.lease,
            only: self.only.clone(),
            skills: WorkerSkills {
                versions: shared
                    .registry
                    .iter()
                    .map(|kind| (kind.name(), kind.version()))
                    .filter(|(_, version)| *version > 1)
                    .collect(),
                labels: self.labels.clone(),
            },
            ..DeliveryOptions::new(self.name.clone(), kinds)
        };
        let queue = Arc::new(UntilDrain {
            queue: self.queue.clone(),
            drain: shared.drain.clone(),
            asked: self.asked.clone(),
        });
        for (slot, count) in [("long", self.slots.long), ("short", self.slots.short)] {
            metrics::gauge!(metric::SLOTS, "slot" => slot).set(count as f64);
        }
        let (name, most) = (self.name.clone(), self.slots.long + self.slots.short);
        let factory_shared = shared.clone();
        let monitor = Monitor::new()
            // Nothing fails this loop but a mistake in it, and jobs must not wait for that.
            .should_restart(|_, error| {
                tracing::error!(%error, "the worker loop failed and starts again");
                true
            })
            .register(move |_| {
                let shared = factory_shared.clone();
                ApalisWorkerBuilder::new(name.as_str())
                    .backend(Deliveries::start(
                        queue.clone(),
                        shared.ledger.clone(),
                        options.clone(),
                    ))
                    .layer(
                        TraceLayer::new()
                            .make_span_with(job_span)
                            .on_request(say_started)
                            .on_response(())
                            .on_failure(()),
                    )
                    .layer(ReportLayer {
                        shared: shared.clone(),
                    })
                    .layer(CatchPanicLayer::with_panic_handler(service::on_panic))
                    .layer(ConcurrencyLimitLayer::new(most))
                    .build(RunJob { shared })
            });
        let monitor_context = monitor.context();
        let drain = async {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.all_final() => {}
            }
            shared.drain.begin();
            let running = shared.heart.count();
            if running > 0 {
                tracing::info!(
                    running,
                    "the worker drains: long jobs are asked to stop, short ones may end"
                );
            }
            shared
                .heart
                .stop_all(&[SlotClass::Long], StopReason::Interrupted);
            let whole = shared.timing.drain;
            let patience = Drain::patience(whole);
            let begun = Instant::now();
            // What was claimed and has not begun by then is handed back.
            let _ = tokio::time::timeout(patience, shared.drain.all_begun()).await;
            if let Err(error) = monitor_context.shutdown() {
                tracing::error!(%error, "the worker loop could not be asked to end");
            }
            tokio::time::sleep(patience.saturating_sub(begun.elapsed())).await;
            shared.drain.hurry();
            shared.heart.stop_all(
                &[SlotClass::Long, SlotClass::Short],
                StopReason::Interrupted,
            );
            tokio::time::sleep(whole.saturating_sub(begun.elapsed())).await;
            // Past the deadline only what the ledger holds up is left: it gets a last moment.
            tokio::time::sleep(LAST_REPORTS).await;
            shared.report_no_more.cancel();
            tokio::time::sleep(LAST_REPORTS).await;
        };
        tokio::select! {
            ended = monitor.run() => ended.map_err(|error| WorkerError::Loop(error.to_string())),
            () = drain => {
                tracing::error!(running = shared.heart.count(), "the worker ends though jobs have not stopped: their leases run out");
                Ok(())
            }
        }
    }

    /// Returns once all jobs that the worker was started for are final; never, if it was started for all.
    async fn all_final(&self) {
        let Some(mut left) = self.only.clone() else {
            return std::future::pending().await;
        };
        loop {
            let mut ended = std::pin::pin!(self.shared.ended.notified());
            ended.as_mut().enable();
            let mut still = Vec::with_capacity(left.len());
            for job in left {
                match self.shared.ledger.job(job).await {
                    Ok(record) if record.state.is_final() => {}
                    Err(LedgerError::NotFound { .. }) => {
                        tracing::error!(job.id = %job, "the job is not in the ledger any more");
                    }
                    Ok(_) => still.push(job),
                    Err(error) => {
                        tracing::debug!(%error, "a job could not be looked at");
                        still.push(job);
                    }
                }
            }
            if still.is_empty() {
                return;
            }
            left = still;
            tokio::select! {
                () = ended => {}
                () = tokio::time::sleep(WATCH_EVERY) => {}
            }
        }
    }

    /// Runs one attempt that another process has claimed.
    async fn run_adopted(
        &self,
        job: JobId,
        token: AttemptToken,
        shutdown: CancellationToken,
    ) -> Result<(), WorkerError> {
        let shared = &self.shared;
        let nothing = WorkerError::NothingToAdopt { job, token };
        let asked = Instant::now();
        let beat = Beat {
            job,
            token,
            progress: None,
        };
        let answers = shared
            .ledger
            .heartbeat(&self.name, &[beat], shared.timing.lease)
            .await?;
        if !matches!(
            answers.first(),
            Some(BeatAnswer::Renewed | BeatAnswer::CancelRequested)
        ) {
            return Err(nothing);
        }
        let record = shared.ledger.job(job).await?;
        if record.state != JobState::Running {
            return Err(nothing);
        }
        let lease_until = record.lease_until.unwrap_or(record.submitted);
        let delivery = Delivery {
            claimed: Claimed {
                job: record,
                token,
                lease_until,
            },
            asked,
            slot: None,
        };
        let stop = async {
            shutdown.cancelled().await;
            shared.drain.begin();
            shared.drain.hurry();
            shared.heart.stop_all(
                &[SlotClass::Long, SlotClass::Short],
                StopReason::Interrupted,
            );
            std::future::pending::<()>().await;
        };
        let mut service = tower::ServiceBuilder::new()
            .layer(
                TraceLayer::new()
                    .make_span_with(job_span)
                    .on_request(say_started)
                    .on_response(())
                    .on_failure(()),
            )
            .layer(ReportLayer {
                shared: shared.clone(),
            })
            .layer(CatchPanicLayer::with_panic_handler(service::on_panic))
            .service(RunJob {
                shared: shared.clone(),
            });
        tokio::select! {
            Ok(()) = tower::Service::call(&mut service, Task::new(delivery)) => Ok(()),
            () = stop => Ok(()),
        }
    }
}

/// The span in which a job runs and its end is reported, within the trace in which the job was asked for.
fn job_span(task: &Task<Delivery>) -> Span {
    let job = &task.args.claimed.job;
    let span = tracing::info_span!(
        "job",
        otel.name = format!("process {}", job.kind),
        otel.kind = "consumer",
        job.id = %job.id,
        job.kind = %job.kind,
        tenant = %job.tenant,
        database = job.database.map(tracing::field::display),
        attempt = task.args.claimed.token.attempt_number(),
    );
    let asked_in = job.terms.trace.as_deref();
    if let Some(parent) = asked_in.and_then(|trace| trace.parse().ok()) {
        fettler_telemetry::continue_trace(&span, &parent);
    }
    // By OpenTelemetry's conventions for messaging.
    fettler_telemetry::describe(
        &span,
        [
            ("messaging.system", "fettler".to_owned()),
            ("messaging.operation.type", "process".to_owned()),
            ("messaging.operation.name", "run".to_owned()),
            ("messaging.destination.name", job.kind.to_string()),
            ("messaging.message.id", job.id.to_string()),
        ],
    );
    span
}

/// In the job's span, when its attempt starts. Of a short one it is enough to be told of its end.
fn say_started(task: &Task<Delivery>, _: &Span) {
    match task.args.claimed.job.slot {
        SlotClass::Long => tracing::info!("the job started"),
        SlotClass::Short => tracing::debug!("the job started"),
    }
}
