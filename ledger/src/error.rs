//! What can go wrong between Fettler and its ledger, sorted by what the caller can do.

use fettler_model::{AttemptToken, ErrorClass, JobId, Problem};
use thiserror::Error;

/// An error of the ledger. Messages hold no secrets and no arguments of jobs.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// The URL names no ledger that Fettler can open.
    #[error("{what}")]
    BadUrl {
        /// What is wrong with it.
        what: String,
        /// How to write it.
        remedy: String,
    },
    /// The ledger does not answer, or the connection was lost. What was asked for may or may not
    /// have happened.
    #[error("the ledger cannot be reached while {doing}: {what}")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// What the database said.
        what: String,
    },
    /// Somebody else holds what is needed; the same call may succeed a moment later.
    #[error("the ledger is busy while {doing}: {what}")]
    Busy {
        /// What was being done.
        doing: &'static str,
        /// What the database said.
        what: String,
    },
    /// A newer Fettler has changed this ledger so that this one cannot go on with it.
    #[error(
        "the ledger has schema version {found}, and this Fettler knows versions up to {known} only"
    )]
    NewerSchema {
        /// The version that was found.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The write came from an attempt that is not the job's newest any more (P2), or whose job has
    /// ended.
    #[error("the attempt {token} of job {job} was superseded: what it writes is refused")]
    Superseded {
        /// The job.
        job: JobId,
        /// The token that was refused.
        token: AttemptToken,
    },
    /// There is no such thing.
    #[error("there is no {what} {name:?}")]
    NotFound {
        /// What sort of thing.
        what: &'static str,
        /// The name or id that was asked for.
        name: String,
    },
    /// Several things fit.
    #[error("{name:?} fits more than one {what}")]
    Ambiguous {
        /// What sort of thing.
        what: &'static str,
        /// What was asked for.
        name: String,
    },
    /// There is one already.
    #[error("there is a {what} {name:?} already")]
    Exists {
        /// What sort of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Something else still needs it, or its state does not allow what was asked for.
    #[error("{what}")]
    Conflict {
        /// What stands against it.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// It is not what its changer has seen: somebody else was quicker.
    #[error("the {what} was changed by somebody else meanwhile")]
    Changed {
        /// What sort of thing.
        what: &'static str,
    },
    /// The same idempotency key came with another request (rule 12).
    #[error("the idempotency key {key:?} was used with another request, which made job {job}")]
    IdempotencyMismatch {
        /// The key.
        key: String,
        /// The job that the first request made.
        job: JobId,
    },
    /// What was given cannot be stored.
    #[error("{what}")]
    Refused {
        /// What is wrong with it.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A row cannot be read: the ledger was changed by hand or is damaged.
    #[error("the ledger holds a row that cannot be read while {doing}: {what}")]
    Damaged {
        /// What was being done.
        doing: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The database refused a statement for a reason that is not the caller's.
    #[error("the ledger refused a statement while {doing}: {what}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What the database said.
        what: String,
    },
    /// The ledger is being closed.
    #[error("the ledger is closed")]
    Closed,
}

impl LedgerError {
    /// What it means for an attempt that met it.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable { .. } | Self::Busy { .. } | Self::Closed => ErrorClass::Transient,
            Self::Superseded { .. } => ErrorClass::Cancelled,
            _ => ErrorClass::Permanent,
        }
    }

    /// A stable name of this kind of error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadUrl { .. } => "ledger.url",
            Self::Unavailable { .. } => "ledger.unavailable",
            Self::Busy { .. } => "ledger.busy",
            Self::NewerSchema { .. } => "ledger.newer_schema",
            Self::Superseded { .. } => "ledger.superseded",
            Self::NotFound { .. } => "ledger.not_found",
            Self::Ambiguous { .. } => "ledger.ambiguous",
            Self::Exists { .. } => "ledger.exists",
            Self::Conflict { .. } => "ledger.conflict",
            Self::Changed { .. } => "ledger.changed",
            Self::IdempotencyMismatch { .. } => "ledger.idempotency_mismatch",
            Self::Refused { .. } => "ledger.refused",
            Self::Damaged { .. } => "ledger.damaged",
            Self::Database { .. } => "ledger.database",
            Self::Closed => "ledger.closed",
        }
    }

    /// What the reader can do about it; empty when there is nothing to do.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::BadUrl { remedy, .. }
            | Self::Conflict { remedy, .. }
            | Self::Refused { remedy, .. } => remedy.clone(),
            Self::Unavailable { .. } => {
                "see whether the ledger's database runs and whether this machine reaches it; work goes on by itself once it does".to_owned()
            }
            Self::Busy { .. } => "try again in a moment".to_owned(),
            Self::NewerSchema { .. } => {
                "use the newest Fettler that works on this ledger".to_owned()
            }
            Self::Ambiguous { .. } => "give more of it".to_owned(),
            Self::Exists { .. } => "choose another name, or edit the one that is there".to_owned(),
            Self::Changed { .. } => "look at it again, and then change it".to_owned(),
            Self::IdempotencyMismatch { .. } => {
                "use a new key for a new request".to_owned()
            }
            Self::Damaged { .. } => {
                "restore the ledger from a backup, or rebuild it from the repository".to_owned()
            }
            Self::Superseded { .. }
            | Self::NotFound { .. }
            | Self::Database { .. }
            | Self::Closed => String::new(),
        }
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        Self::new(
            error.class(),
            error.code(),
            error.to_string(),
            error.remedy(),
        )
    }
}
