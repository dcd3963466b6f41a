//! The scheduler: turns policies into jobs when they are due, and keeps what they imply going: proofs,
//! retention, collection, the history's size, the watch for silence.
//!
//! Several may run. A lease in the ledger makes one lead (rule 18), and each due time of a policy is one
//! row under a unique key, so that it is decided once whoever leads, and a handover loses none. Each duty
//! is a service that starts and stops by itself; what the leader does ends when its lead does.
//!
//! [`calendar`] says when, [`PolicyPlan`] what becomes of a due time; both are plain arithmetic.

pub mod calendar;
mod plan;
mod request;
mod tick;
mod upkeep;

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fettler_jobs::Registry;
use fettler_ledger::{Leadership, Ledger, LedgerError, Result as LedgerResult};
use fettler_model::Secret;
use fettler_telemetry::metric;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use fettler_model::{ClockWindow, InvalidWindow};
pub use plan::{
    Decision, InvalidPolicy, LastJob, MAX_CAUGHT_UP_JOBS, ON_TIME_WITHIN, PolicyPlan, jitter,
};
pub use request::{
    RequestOptions, UnusablePolicy, check_policy, needs_database, policy_request, request,
};

/// What schedulers of one ledger take the lead of.
const LEAD: &str = "scheduler";
/// The lead is renewed this often within its time.
const RENEWALS: u32 = 3;

/// Settings of a scheduler.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// How long the lead holds without renewal: a handover after a crash takes no longer.
    pub lead: Duration,
    /// How old the history of ended jobs may become.
    pub history_kept: Duration,
    /// How large it may become.
    pub history_bytes: u64,
    /// A policy that is overdue by this much is reported (P11).
    pub silent_after: Duration,
    /// How much longer than its policy says a backup may wait for its proof before that is reported.
    pub proof_late: Duration,
    /// How often is looked for silence.
    pub silence_every: Duration,
    /// What the leader asks while it does its work, so that a fleet that is gone altogether is noticed outside
    /// (rule 18). Such URLs often hold a key.
    pub heartbeat_url: Option<Secret>,
    /// How often it asks.
    pub heartbeat_every: Duration,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self {
            lead: Duration::from_secs(15),
            history_kept: Duration::from_secs(90 * 24 * 3600),
            history_bytes: 1 << 30,
            silent_after: Duration::from_secs(300),
            proof_late: Duration::from_secs(6 * 3600),
            silence_every: Duration::from_secs(15),
            heartbeat_url: None,
            heartbeat_every: Duration::from_secs(60),
        }
    }
}

/// A scheduler.
#[derive(Clone, Debug)]
pub struct Scheduler {
    shared: Arc<Shared>,
}

/// What all duties share.
pub(crate) struct Shared {
    pub(crate) ledger: Ledger,
    pub(crate) registry: Arc<Registry>,
    pub(crate) options: SchedulerOptions,
    holder: String,
    /// When the ledger last answered who leads.
    answered: Mutex<Option<Instant>>,
}

/// Tells whether a scheduler leads or stands by.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Shared>);

impl Readiness {
    /// Whether the scheduler does its work.
    ///
    /// # Errors
    ///
    /// In words, why it does not.
    pub fn check(&self) -> Result<(), String> {
        let answered = *self
            .0
            .answered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match answered.map(|at| at.elapsed()) {
            Some(ago) if ago < self.0.options.lead => Ok(()),
            Some(ago) => Err(format!(
                "the ledger last said who leads {} s ago",
                ago.as_secs()
            )),
            None => Err("the ledger has not said yet who leads".to_owned()),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("holder", &self.holder)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// A scheduler of this name on a ledger. The registry says what slot, exclusion and number of tries
    /// the jobs of each kind have.
    #[must_use]
    pub fn new(
        name: &str,
        ledger: Ledger,
        registry: Arc<Registry>,
        options: SchedulerOptions,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                ledger,
                registry,
                options,
                // Names may be shared; who leads is one process, since it was started.
                holder: format!("{name}-{}", Uuid::now_v7().simple()),
                answered: Mutex::default(),
            }),
        }
    }

    /// Runs until `shutdown` is cancelled: leads when nobody else does, and gives the lead up at the
    /// end, so that another scheduler goes on at once. Errors of the ledger end nothing.
    pub async fn run(self, shutdown: CancellationToken) {
        let watch = tokio::spawn(upkeep::silence(self.shared.clone()));
        while !shutdown.is_cancelled() {
            if let Some(leadership) = self.take_lead(&shutdown).await {
                self.lead(leadership, &shutdown).await;
            }
        }
        watch.abort();
    }

    /// Waits for the lead.
    async fn take_lead(&self, shutdown: &CancellationToken) -> Option<Leadership> {
        let mut away = false;
        loop {
            match self.ask_for_lead().await {
                Ok(Some(leadership)) => return Some(leadership),
                Ok(None) => away = false,
                Err(error) => {
                    if !away {
                        tracing::warn!(%error, "the scheduler could not ask for the lead");
                    }
                    away = true;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.shared.options.lead / RENEWALS) => {}
                () = shutdown.cancelled() => return None,
            }
        }
    }

    async fn ask_for_lead(&self) -> LedgerResult<Option<Leadership>> {
        let answer = self
            .shared
            .ledger
            .lead(LEAD, &self.shared.holder, self.shared.options.lead)
            .await?;
        *self
            .shared
            .answered
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(answer)
    }

    /// Tells whether the scheduler does its work, from now until it has ended.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        Readiness(self.shared.clone())
    }

    /// Does the leader's duties for as long as the lead holds.
    async fn lead(&self, leadership: Leadership, shutdown: &CancellationToken) {
        tracing::info!(
            holder = leadership.holder,
            term = leadership.term,
            "the scheduler leads"
        );
        metrics::gauge!(metric::SCHEDULER_LEADS).set(1.0);
        let leadership = Arc::new(leadership);
        let mut duties = JoinSet::new();
        let shared = || self.shared.clone();
        duties.spawn(tick::tick_policies(shared(), leadership.clone()));
        duties.spawn(tick::correct_due_times(shared()));
        duties.spawn(upkeep::follow_backups(shared()));
        duties.spawn(upkeep::collect_daily(shared()));
        duties.spawn(upkeep::prune_history(shared()));
        duties.spawn(upkeep::tell_outside(shared()));
        let lost = self.keep_lead(&leadership);
        tokio::select! {
            () = lost => {
                tracing::warn!(term = leadership.term, "the scheduler lost the lead");
            }
            () = shutdown.cancelled() => {}
            Some(ended) = duties.join_next() => {
                // A duty ends by a panic only: the lead is given up and taken anew.
                tracing::error!(?ended, "a duty of the scheduler ended");
            }
        }
        metrics::gauge!(metric::SCHEDULER_LEADS).set(0.0);
        duties.shutdown().await;
        if let Err(error) = self.shared.ledger.resign(&leadership).await {
            tracing::debug!(%error, "the lead was not given up: it runs out");
        }
    }

    /// Renews the lead; returns when it is lost, or when it ran out while the ledger was away.
    async fn keep_lead(&self, leadership: &Leadership) {
        let lead = self.shared.options.lead;
        let mut held_until = tokio::time::Instant::now() + lead;
        loop {
            tokio::time::sleep(lead / RENEWALS).await;
            let asked = tokio::time::Instant::now();
            let answer = tokio::time::timeout_at(held_until, self.ask_for_lead()).await;
            match answer {
                Ok(Ok(Some(renewed))) if renewed.term == leadership.term => {
                    held_until = asked + lead;
                }
                Ok(Ok(_)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the lead could not be renewed");
                    if tokio::time::Instant::now() >= held_until {
                        return;
                    }
                }
            }
        }
    }
}

/// Does a duty again and again: at once, then whenever this time has passed. An error waits for the
/// next time and is told once.
async fn again_and_again<F, Fut>(what: &'static str, every: Duration, mut duty: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = LedgerResult<()>>,
{
    let mut failing = false;
    loop {
        match duty().await {
            Ok(()) => failing = false,
            Err(error) => tell_once(&mut failing, what, &error),
        }
        tokio::time::sleep(every).await;
    }
}

fn tell_once(failing: &mut bool, what: &'static str, error: &LedgerError) {
    if *failing {
        tracing::debug!(%error, what, "a duty of the scheduler still fails");
    } else {
        tracing::warn!(%error, what, "a duty of the scheduler failed");
    }
    *failing = true;
}
