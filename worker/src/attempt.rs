//! One attempt of a job: from the claim to the report of its end.
//!
//! The work runs in a task of its own, so that a job that blocks a thread holds up no other. A stop (a
//! cancellation, a drain, a newer attempt) is asked for first; a job that does not stop in time is
//! aborted. The report is repeated while the ledger is away, with the lease kept meanwhile.

use std::{
    future::Future,
    pin::Pin,
    process::Stdio,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use fettler_engine::ProgressMeter;
use fettler_fault_points::{Point, reached};
use fettler_jobs::{DynKind, JobContext, JobRecord, StopReason, Stopping, check_load};
use fettler_ledger::{Claimed, Ended, Ending, Fencing, LedgerError};
use fettler_model::{ErrorClass, JobState, JobWindow, LoadLimits, Problem, SlotClass};
use fettler_telemetry::metric;
use serde_json::Value;
use tokio::task::{JoinError, JoinHandle};
use tracing::Instrument;

use crate::{Shared, drain::Drain, isolate, lease::Lease, ports::Ports};

/// How long an aborted job may take to reach the next point at which it can be dropped.
const ABORT_WITHIN: Duration = Duration::from_secs(2);
/// How long a job may go on after its attempt was superseded: nothing that it does counts any more.
const SUPERSEDED_GRACE: Duration = Duration::from_secs(5);
/// A job for a newer version of its kind is tried again after this time, by a newer worker if there is one.
const NEWER_VERSION_WAIT: Duration = Duration::from_secs(60);
/// The pauses between reports while the ledger is away.
const FIRST_REPORT_PAUSE: Duration = Duration::from_millis(50);
/// The longest of these pauses.
const LONGEST_REPORT_PAUSE: Duration = Duration::from_secs(2);
/// So many times within the time of a stall it is looked for signs of life.
const STALL_LOOKS: u32 = 10;
/// What the problem of a job that panicked is called.
const PANICKED: &str = "job.panicked";

/// An attempt that runs in this worker.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) claimed: Arc<Claimed>,
    pub(crate) stopping: Stopping,
    pub(crate) lease: Arc<Lease>,
    pub(crate) progress: Arc<ProgressMeter>,
    began: Instant,
}

/// Why an attempt gave no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The job said so.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The job's code panicked.
    #[error("{0}")]
    Panicked(String),
    /// The process of its own that the job ran in died.
    #[error("{0}")]
    ProcessDied(Problem),
    /// Somebody else has reported the end, or a job that could not be stopped still runs: nothing is
    /// written, and its lease decides.
    #[error("the end of the attempt is not this worker's to report")]
    NotOurs,
}

impl Attempt {
    /// Takes up a claim that was sent at `asked`. Its lease is kept until [`Attempt::report`].
    pub(crate) fn begin(shared: &Shared, claimed: Claimed, asked: Instant) -> Self {
        let stopping = Stopping::default();
        let lease = Lease::new(asked, shared.timing.lease, stopping.clone());
        let progress = Arc::new(ProgressMeter::default());
        shared
            .heart
            .add(&claimed, lease.clone(), stopping.clone(), progress.clone());
        reached(Point::AttemptBegun);
        if claimed.job.cancel_requested.is_some() {
            stopping.stop(StopReason::Cancelled);
        }
        shared.drain.take_off_one();
        // A drain that asked before the attempt was known has asked all jobs but this one.
        if shared.drain.asks(claimed.job.slot) {
            stopping.stop(StopReason::Interrupted);
        }
        Self {
            claimed: Arc::new(claimed),
            stopping,
            lease,
            progress,
            began: asked,
        }
    }

    pub(crate) fn fencing(&self) -> Fencing {
        Fencing {
            job: self.claimed.job.id,
            token: self.claimed.token,
        }
    }

    /// Does the work.
    pub(crate) async fn run(&self, shared: &Shared) -> Result<Value, Failure> {
        if self.stopping.reason().is_some() {
            return Err(self.stopping.problem().into());
        }
        let kind = shared
            .registry
            .get(self.claimed.job.kind.as_str())
            .map_err(|unknown| {
                Problem::permanent(
                    "job.unknown_kind",
                    unknown.to_string(),
                    "use a newer worker",
                )
            })?;
        if self.claimed.job.kind_version > kind.version() {
            return Err(Problem::snooze(
                "job.newer_version",
                format!(
                    "the job needs version {} of {}, and this worker has {}",
                    self.claimed.job.kind_version,
                    self.claimed.job.kind,
                    kind.version()
                ),
                NEWER_VERSION_WAIT,
            )
            .into());
        }
        match &shared.isolate {
            Some(isolate) if self.claimed.job.isolated => {
                let command = isolate.command(self.claimed.job.id, self.claimed.token);
                self.run_in_child(shared, command).await
            }
            _ => self.run_here(shared, kind.clone()).await,
        }
    }

    async fn run_here(&self, shared: &Shared, kind: Arc<dyn DynKind>) -> Result<Value, Failure> {
        let context = self.context(shared);
        let arguments = self.claimed.job.arguments.clone();
        let load = self.load_limits(shared).await?;
        let mut task = AbortOnDrop(tokio::spawn(
            async move {
                check_load(&context, &load).await?;
                kind.run(&context, arguments).await
            }
            .in_current_span(),
        ));
        tokio::select! {
            ended = &mut task => return self.read_end(ended),
            () = self.stopping.token().cancelled() => {}
            () = self.terms_end() => {}
            () = self.stalled(shared.timing.stall) => {}
        }
        let grace = self.grace(shared);
        if let Ok(ended) = tokio::time::timeout(grace, &mut task).await {
            return self.read_end(ended);
        }
        tracing::warn!(
            grace_seconds = grace.as_secs(),
            "the job did not stop when it was asked to, and was aborted"
        );
        task.0.abort();
        match tokio::time::timeout(ABORT_WITHIN, &mut task).await {
            Ok(ended) => self.read_end(ended),
            Err(_) => {
                tracing::error!(
                    "the job blocks a thread and cannot be stopped: its lease runs out"
                );
                Err(Failure::NotOurs)
            }
        }
    }

    /// How long the job may take to stop, after it was asked to.
    fn grace(&self, shared: &Shared) -> Duration {
        match self.stopping.reason() {
            Some(StopReason::Cancelled | StopReason::TimedOut | StopReason::Stalled) => {
                shared.timing.cancel_grace
            }
            Some(StopReason::Superseded) => SUPERSEDED_GRACE,
            _ => Drain::grace(shared.timing.drain, self.claimed.job.slot),
        }
    }

    /// How busy the server of a long job's database may be.
    async fn load_limits(&self, shared: &Shared) -> Result<LoadLimits, Problem> {
        let job = &self.claimed.job;
        match job.database {
            Some(database) if job.slot == SlotClass::Long => {
                match shared.ledger.database(database).await {
                    Ok(record) => Ok(record.terms.load),
                    // That it is gone is for the kind to say, if it needs it.
                    Err(LedgerError::NotFound { .. }) => Ok(LoadLimits::default()),
                    Err(error) => Err(error.into()),
                }
            }
            _ => Ok(LoadLimits::default()),
        }
    }

    /// Waits until the job's terms let the attempt run no longer, and asks it to stop.
    async fn terms_end(&self) {
        let terms = &self.claimed.job.terms;
        let timeout = async {
            match terms.timeout_seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                None => std::future::pending().await,
            }
        };
        let window = async {
            let job = &self.claimed.job;
            let (Some(Ok(window)), Some(started)) =
                (terms.window.as_ref().map(JobWindow::clock), job.started)
            else {
                return std::future::pending().await;
            };
            // The claim was made within the window, by the ledger's clock.
            tokio::time::sleep(window.next_close(started).since(started)).await;
        };
        let reason = tokio::select! {
            () = timeout => StopReason::TimedOut,
            () = window => StopReason::WindowClosed,
        };
        tracing::warn!(
            ?reason,
            "the attempt is asked to stop: its terms have ended"
        );
        self.stopping.stop(reason);
    }

    /// Waits until the attempt has given no sign of life for so long, and asks it to stop.
    async fn stalled(&self, after: Option<Duration>) {
        let Some(after) = after else {
            return std::future::pending().await;
        };
        let mut seen = self.progress.pulses();
        let mut since = Instant::now();
        loop {
            tokio::time::sleep(after / STALL_LOOKS).await;
            let pulses = self.progress.pulses();
            // While the ledger is away a job waits for it, which is no failure of its own (rule 2).
            if pulses != seen || self.lease.in_doubt() {
                seen = pulses;
                since = Instant::now();
            } else if since.elapsed() >= after {
                break;
            }
        }
        metrics::counter!(metric::STALLS, "kind" => self.claimed.job.kind.to_string()).increment(1);
        tracing::error!(
            after_seconds = after.as_secs(),
            doing = ?self.progress.read(),
            "the attempt stalled: it is asked to stop, and is tried again"
        );
        self.stopping.stop(StopReason::Stalled);
    }

    fn read_end(&self, ended: Result<Result<Value, Problem>, JoinError>) -> Result<Value, Failure> {
        match ended {
            Ok(result) => result.map_err(Failure::Problem),
            // The panic goes on in the worker's own stack, where the layer that catches panics is.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_aborted) => Err(self.stopping.problem().into()),
        }
    }

    async fn run_in_child(
        &self,
        shared: &Shared,
        mut command: tokio::process::Command,
    ) -> Result<Value, Failure> {
        tracing::info!("the job runs in a process of its own, since its last worker died");
        let mut child = command
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| isolate::cannot_start(&error))?;
        // It ends with this process, however that ends. Waiting for the child would close it.
        let _tie = child.stdin.take();
        let status = tokio::select! {
            status = child.wait() => status,
            () = self.stopping.token().cancelled() => {
                // The child hears of a cancellation by its own heartbeat; of this worker's end it
                // does not, so that it is told as any process is.
                self.ask_child_to_stop(&child);
                let grace = self.grace(shared) + ABORT_WITHIN;
                match tokio::time::timeout(grace, child.wait()).await {
                    Ok(status) => status,
                    Err(_) => {
                        child.kill().await.map_err(|error| isolate::cannot_start(&error))?;
                        child.wait().await
                    }
                }
            }
        };
        match status {
            // Whether the child has reported an end is for the ledger to say: if it has, this report
            // is refused.
            Ok(status) => Err(Failure::ProcessDied(isolate::died(status))),
            Err(error) => Err(Failure::Problem(isolate::cannot_start(&error))),
        }
    }

    fn ask_child_to_stop(&self, child: &tokio::process::Child) {
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid
            && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        {
            tracing::debug!(%error, "the job's process could not be asked to stop");
        }
    }

    fn context(&self, shared: &Shared) -> JobContext {
        let job = &self.claimed.job;
        let ports = Arc::new(Ports {
            ledger: shared.ledger.clone(),
            fencing: self.fencing(),
            tenant: job.tenant.clone(),
            lease: self.lease.clone(),
            stopping: self.stopping.clone(),
        });
        JobContext {
            job: JobRecord {
                id: job.id,
                tenant: job.tenant.clone(),
                kind: job.kind.clone(),
                database: job.database,
                token: self.claimed.token,
                tries_spent: job.tries,
                tags: job.tags.clone(),
                submitted: job.submitted,
            },
            stopping: self.stopping.clone(),
            progress: self.progress.clone(),
            fence: self.lease.clone(),
            artefacts: ports.clone(),
            checkpoints: ports.clone(),
            catalogue: ports.clone(),
            ledger: ports,
            services: shared.services.clone(),
        }
    }

    /// Reports how the attempt ended, until the ledger has taken it in.
    pub(crate) async fn report(&self, shared: &Shared, outcome: Result<Value, Failure>) {
        if let Some(ending) = self.ending(shared, outcome).await {
            reached(Point::AttemptDone);
            self.tell_ledger(shared, ending).await;
        }
        shared.heart.remove(self.claimed.job.id, self.claimed.token);
        shared.ended.notify_waiters();
        // What the attempt left is removed at once and not only at the next round.
        shared.tidy.notify_one();
    }

    async fn ending(&self, shared: &Shared, outcome: Result<Value, Failure>) -> Option<Ending> {
        let problem = match outcome {
            Ok(result) => return Some(Ending::Succeeded { result }),
            Err(Failure::NotOurs) => return None,
            Err(Failure::ProcessDied(problem)) => return Some(Ending::Died { problem }),
            Err(Failure::Problem(problem)) => problem,
            Err(Failure::Panicked(what)) => self.panicked(shared, &what).await,
        };
        // What fails while it is being stopped fails because it is being stopped.
        let passing = matches!(
            problem.class,
            ErrorClass::Transient
                | ErrorClass::Snooze
                | ErrorClass::Cancelled
                | ErrorClass::Interrupted
        );
        let problem = match self.stopping.reason() {
            Some(StopReason::Superseded) => return None,
            Some(StopReason::Cancelled) if passing => Problem::cancelled(),
            Some(StopReason::Interrupted) if passing => Problem::interrupted(),
            Some(StopReason::TimedOut | StopReason::WindowClosed | StopReason::Stalled)
                if passing =>
            {
                self.stopping.problem()
            }
            _ => problem,
        };
        Some(Ending::Failed { problem })
    }

    /// The first panic of a job may have had a cause that passes; a second one in a row has not.
    async fn panicked(&self, shared: &Shared, what: &str) -> Problem {
        let problem = Problem::transient(
            PANICKED,
            format!("the job's code panicked: {what}"),
            "this is a mistake in Fettler: report it with the job's log",
        );
        let before = match shared.ledger.attempts(self.claimed.job.id).await {
            Ok(attempts) => attempts
                .iter()
                .rfind(|attempt| attempt.token != self.claimed.token)
                .and_then(|attempt| attempt.problem.as_ref())
                .is_some_and(|last| last.code == PANICKED),
            Err(error) => {
                tracing::debug!(%error, "the job's earlier attempts could not be read");
                false
            }
        };
        if before {
            Problem {
                class: ErrorClass::Permanent,
                ..problem
            }
        } else {
            problem
        }
    }

    async fn tell_ledger(&self, shared: &Shared, mut ending: Ending) {
        let mut pause = FIRST_REPORT_PAUSE;
        loop {
            let error = match shared.ledger.complete(self.fencing(), ending.clone()).await {
                // Its own process, which counts for nobody, has told of its end, and was not killed.
                Ok(Ended::Final(JobState::Succeeded)) if matches!(ending, Ending::Died { .. }) => {
                    return self.count_end("succeeded");
                }
                Ok(ended) => {
                    self.count_end(outcome(&ending));
                    return self.log_end(&ending, &ended);
                }
                Err(error) => error,
            };
            match (&error, &ending) {
                (LedgerError::Superseded { .. }, Ending::Died { .. }) => return,
                (LedgerError::Superseded { .. }, _) => {
                    metrics::counter!(metric::REFUSED_ZOMBIES, "what" => "end").increment(1);
                    tracing::warn!("the attempt was superseded: its end was refused");
                    return;
                }
                (error, _) if error.class() == ErrorClass::Transient => {
                    tracing::warn!(%error, "the end of the attempt could not be reported yet");
                }
                // A result that cannot be stored fails its own job only (rule 8).
                (error, Ending::Succeeded { .. }) => {
                    ending = Ending::Failed {
                        problem: Problem::permanent(
                            "job.result",
                            format!("the work is done, but its result cannot be kept: {error}"),
                            error.remedy(),
                        ),
                    };
                }
                (error, _) => {
                    tracing::error!(%error, "the end of the attempt was refused: its lease runs out");
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shared.report_no_more.cancelled() => {
                    tracing::warn!("the worker ends before the ledger is back: the job's lease runs out");
                    return;
                }
            }
            pause = (pause * 2).min(LONGEST_REPORT_PAUSE);
        }
    }

    fn count_end(&self, outcome: &'static str) {
        let job = &self.claimed.job;
        metrics::counter!(
            metric::ATTEMPTS,
            "tenant" => job.tenant.to_string(),
            "kind" => job.kind.to_string(),
            "outcome" => outcome,
        )
        .increment(1);
        metrics::histogram!(metric::ATTEMPT_SECONDS, "kind" => job.kind.to_string())
            .record(self.began.elapsed());
    }

    fn log_end(&self, ending: &Ending, ended: &Ended) {
        match (ending, ended) {
            (Ending::Succeeded { .. }, _) => {
                let seconds = self.began.elapsed().as_secs_f64();
                tracing::info!(seconds, "the job succeeded");
            }
            (
                Ending::Failed { problem } | Ending::Died { problem },
                Ended::Queued { not_before },
            ) => {
                tracing::warn!(
                    %problem,
                    again = not_before.map(tracing::field::display),
                    "the attempt ended, and the job waits for the next one"
                );
            }
            (Ending::Failed { problem } | Ending::Died { problem }, Ended::Final(state)) => {
                tracing::warn!(%problem, %state, "the job ended");
            }
        }
    }
}

/// What the counters call the end of an attempt.
const fn outcome(ending: &Ending) -> &'static str {
    match ending {
        Ending::Succeeded { .. } => "succeeded",
        Ending::Died { .. } => "lost",
        Ending::Failed { problem } => match problem.class {
            ErrorClass::Snooze => "snoozed",
            ErrorClass::Interrupted => "interrupted",
            ErrorClass::Cancelled => "cancelled",
            ErrorClass::Transient | ErrorClass::Permanent => "failed",
        },
    }
}

/// Aborts the task when the attempt is dropped, so that nothing runs on without its lease being kept.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
