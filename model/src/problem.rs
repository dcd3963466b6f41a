//! What went wrong, told to a person: every room's errors end as a [`Problem`], and the class of the
//! error decides what becomes of the attempt.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an error means for the attempt that met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// It may pass by itself (a connection was lost): tried again with backoff and jitter.
    Transient,
    /// Trying again gives the same (a wrong password): the job is dead until a person acts.
    Permanent,
    /// Not now (the database is busy): tried again later, no try spent.
    Snooze,
    /// The job was asked to stop.
    Cancelled,
    /// The worker drains: the job goes back at once, no try spent.
    Interrupted,
}

/// An error as its reader sees it: what happened and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{what}")]
pub struct Problem {
    /// A stable name of this kind of problem, `room.subject`, such as `repository.wrong_key`.
    pub code: String,
    /// What happened and where, in one sentence, without secrets.
    pub what: String,
    /// What the reader can do about it; empty when there is nothing to do but wait.
    pub remedy: String,
    /// What it means for the attempt.
    pub class: ErrorClass,
    /// For [`ErrorClass::Snooze`]: how long to wait, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

impl Problem {
    /// A problem of this class.
    pub fn new(
        class: ErrorClass,
        code: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            code: code.into(),
            what: what.into(),
            remedy: remedy.into(),
            class,
            retry_after_seconds: None,
        }
    }

    /// A problem that trying again will not solve.
    pub fn permanent(
        code: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(ErrorClass::Permanent, code, what, remedy)
    }

    /// A problem that may pass by itself.
    pub fn transient(
        code: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(ErrorClass::Transient, code, what, remedy)
    }

    /// A database or a store that is not to be bothered now.
    pub fn snooze(code: impl Into<String>, what: impl Into<String>, wait: Duration) -> Self {
        Self {
            retry_after_seconds: Some(wait.as_secs()),
            ..Self::new(ErrorClass::Snooze, code, what, "")
        }
    }

    /// The job was asked to stop.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new(
            ErrorClass::Cancelled,
            "job.cancelled",
            "the job was cancelled",
            "",
        )
    }

    /// The worker is stopping and hands the job back.
    #[must_use]
    pub fn interrupted() -> Self {
        Self::new(
            ErrorClass::Interrupted,
            "job.interrupted",
            "the worker is stopping",
            "",
        )
    }

    /// The same problem, with what was being done when it happened put before it.
    #[must_use]
    pub fn while_doing(mut self, doing: &str) -> Self {
        self.what = format!("{doing}: {}", self.what);
        self
    }
}
