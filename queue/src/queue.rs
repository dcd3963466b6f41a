//! What a queue is.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use fettler_ledger::{ClaimRequest, ClaimedBatch, JobRecord, LedgerError, QueuedJob};
use fettler_model::{
    ErrorClass, JobId, JobKindName, Priority, Problem, SlotClass, TenantId, Timestamp,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What the wire carries of a job (rule 13): enough to order it and to choose a worker, no arguments and
/// no secrets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WireItem {
    /// The job.
    pub id: JobId,
    /// How often it was taken from the queue before: a push is idempotent by id and generation.
    pub generation: u32,
    /// Whose it is.
    pub tenant: TenantId,
    /// How urgent it is.
    pub priority: Priority,
    /// Its kind.
    pub kind: JobKindName,
    /// The version of its kind.
    pub kind_version: u32,
    /// What it asks of a worker beside its kind; empty for nothing.
    #[serde(default)]
    pub line: String,
    /// Which of a worker's slots it takes (rule 17).
    pub slot: SlotClass,
    /// When its age begins to count (rule 16).
    pub since: Timestamp,
}

impl From<&JobRecord> for WireItem {
    fn from(job: &JobRecord) -> Self {
        Self {
            id: job.id,
            generation: job.attempt,
            tenant: job.tenant.clone(),
            priority: job.priority,
            kind: job.kind.clone(),
            kind_version: job.kind_version,
            line: job.line.clone(),
            slot: job.slot,
            since: job
                .not_before
                .map_or(job.submitted, |at| at.max(job.submitted)),
        }
    }
}

impl WireItem {
    /// What the wire carries of a claimable job, where a job rises one level in this time.
    #[must_use]
    pub fn of_queued(job: &QueuedJob, ageing: Duration) -> Self {
        let levels = u32::try_from(job.priority.level()).unwrap_or(0);
        Self {
            id: job.id,
            generation: job.attempt,
            tenant: job.tenant.clone(),
            priority: job.priority,
            kind: job.kind.clone(),
            kind_version: job.kind_version,
            line: job.line.clone(),
            slot: job.slot,
            since: job.rank.plus(ageing.saturating_mul(levels)),
        }
    }
}

/// Why nothing could be taken or pushed. None of these ends a worker.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QueueError {
    /// The ledger refused or is away.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The wire is away. The ledger's own order still holds.
    #[error("the queue cannot be reached while {doing}: {what}")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        what: String,
    },
}

impl QueueError {
    /// What it means for whoever met it.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::Ledger(error) => error.class(),
            Self::Unavailable { .. } => ErrorClass::Transient,
        }
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Ledger(error) => error.remedy(),
            Self::Unavailable { .. } => {
                "see whether the queue's server runs; jobs are taken from the ledger, slowly, until it does".to_owned()
            }
        }
    }
}

impl From<QueueError> for Problem {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Ledger(error) => error.into(),
            other => Self::new(
                other.class(),
                "queue.unavailable",
                other.to_string(),
                other.remedy(),
            ),
        }
    }
}

/// A queue. Every implementation passes the suite in `tests/suite`.
#[async_trait]
pub trait Queue: fmt::Debug + Send + Sync + 'static {
    /// Says that these jobs are queued. Saying it twice, or of a job that has gone on since, changes
    /// nothing; not saying it costs time, since somebody will look.
    ///
    /// # Errors
    ///
    /// When the wire is away.
    async fn push(&self, items: &[WireItem]) -> Result<(), QueueError>;

    /// Takes what there is for a worker now, of the kinds that it knows and as much as it has room for, and
    /// claims it in the ledger. A delivery is acknowledged once the ledger has claimed or refused it
    /// (rule 13). Not cancellation safe: what was claimed would wait for the end of its lease.
    ///
    /// # Errors
    ///
    /// When the wire or the ledger is away.
    async fn take(&self, request: &ClaimRequest) -> Result<ClaimedBatch, QueueError>;

    /// Tells when there may be something to take.
    fn arrivals(&self) -> Box<dyn Arrivals>;
}

/// Tells when a queue may hold something. See [`Queue::arrivals`].
#[async_trait]
pub trait Arrivals: Send {
    /// Waits until something may have arrived since the last call. Cancellation safe.
    async fn next(&mut self);
}
