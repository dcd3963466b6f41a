//! Jobs: what is asked for, in which state it is, what may run beside it.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DatabaseId, JobId, JobKindName, JobWindow, PolicyId, TenantId, Timestamp};

/// The state of a job (rule 1). Everything else is the outcome of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a worker; [`WaitReason`] says why.
    Queued,
    /// An attempt runs.
    Running,
    /// Done.
    Succeeded,
    /// Failed for good; a person decides whether it is tried again, as a new job.
    Dead,
    /// Stopped by request.
    Cancelled,
    /// Its deadline passed before it could end.
    Expired,
}

impl JobState {
    /// Whether nothing will happen to the job any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The state's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [
            Self::Queued,
            Self::Running,
            Self::Succeeded,
            Self::Dead,
            Self::Cancelled,
            Self::Expired,
        ]
        .into_iter()
        .find(|state| state.as_str() == text)
        .ok_or_else(|| {
            format!(
                "{text:?} is not a job state: one of queued, running, succeeded, dead, cancelled, expired"
            )
        })
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// The work is done.
    Succeeded,
    /// The work failed; the job is tried again or dead.
    Failed,
    /// The worker stopped and handed the job back; no try is spent.
    Interrupted,
    /// Not now; no try is spent.
    Snoozed,
    /// The worker vanished: its lease ran out.
    Lost,
    /// Stopped by request.
    Cancelled,
}

impl AttemptOutcome {
    /// The outcome's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Snoozed => "snoozed",
            Self::Lost => "lost",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How urgent a job is: five levels; a waiting job rises one level per ageing interval (rule 16).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// When nothing else is to do.
    Lowest,
    /// Below the usual.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// Above the usual.
    High,
    /// Before everything else.
    Highest,
}

impl Priority {
    /// 0 for the lowest to 4 for the highest.
    #[must_use]
    pub const fn level(self) -> i64 {
        self as i64
    }

    /// The priority's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lowest => "lowest",
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Highest => "highest",
        }
    }

    /// The priority of this level, the nearest one when there is none.
    #[must_use]
    pub const fn from_level(level: i64) -> Self {
        match level {
            i64::MIN..=0 => Self::Lowest,
            1 => Self::Low,
            2 => Self::Normal,
            3 => Self::High,
            _ => Self::Highest,
        }
    }
}

/// What may run together on one database. Jobs of one database whose classes exclude each other wait
/// for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExclusionClass {
    /// Touches no database, or only looks briefly: runs beside everything.
    Free,
    /// Reads the whole database: one at a time, and not beside a writer.
    Backup,
    /// Writes to the database: alone.
    Write,
}

impl ExclusionClass {
    /// The one table of what may run together on one database: a row and a column for each class, in the
    /// order of their declaration. A health check (free) runs beside a backup, a cleanup (write) does not.
    const TOGETHER: [[bool; 3]; 3] = [
        // Free, Backup, Write
        [true, true, true],
        [true, false, false],
        [true, false, false],
    ];

    /// Whether jobs of these classes must not run on one database at the same time.
    #[must_use]
    pub const fn excludes(self, other: Self) -> bool {
        !Self::TOGETHER[self as usize][other as usize]
    }

    /// The class's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Backup => "backup",
            Self::Write => "write",
        }
    }
}

/// Which of a worker's slots a job takes (rule 17): a long job never delays a short one.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SlotClass {
    /// Minutes to hours: never prefetched.
    Long,
    /// Seconds.
    Short,
}

impl SlotClass {
    /// The class's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Long => "long",
            Self::Short => "short",
        }
    }
}

/// The terms under which a job runs, beside what it does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct JobTerms {
    /// An attempt that runs longer is stopped: a transient failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// The hours in which it may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<JobWindow>,
    /// The policy that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyId>,
    /// Where in a trace it was asked for, as a header `traceparent` has it: its attempts are part of that trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// A request for a job, as the ledger takes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobRequest {
    /// Who asks.
    pub tenant: TenantId,
    /// What is to be done.
    pub kind: JobKindName,
    /// The version of the kind whose arguments it holds: older workers leave it to newer ones.
    #[serde(default = "first_version")]
    pub kind_version: u32,
    /// The database that it is about, if it is about one.
    pub database: Option<DatabaseId>,
    /// The kind's arguments: references to secrets only, never secrets.
    pub arguments: serde_json::Value,
    /// What may run beside it on its database.
    pub exclusion: ExclusionClass,
    /// Which slot of a worker it takes.
    pub slot: SlotClass,
    /// How urgent it is.
    pub priority: Priority,
    /// Not before this moment.
    pub not_before: Option<Timestamp>,
    /// Expired after this moment.
    pub deadline: Option<Timestamp>,
    /// Dead after this many tries.
    pub max_tries: u32,
    /// At most one queued or running job of the tenant has this key.
    pub unique_key: Option<String>,
    /// The job that this one repeats.
    pub retry_of: Option<JobId>,
    /// Free words of the user's.
    pub tags: Vec<String>,
    /// The terms under which it runs.
    #[serde(default)]
    pub terms: JobTerms,
}

const fn first_version() -> u32 {
    1
}

/// How far a running job is. Zero totals mean that nobody knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Progress {
    /// What is being done, such as `reading tables`.
    pub phase: String,
    /// Bytes done in this phase.
    pub bytes: u64,
    /// Bytes to do in this phase.
    pub bytes_total: u64,
    /// Rows done.
    pub rows: u64,
    /// Rows to do.
    pub rows_total: u64,
    /// What is being worked on, such as a table's name.
    pub item: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_17_what_excludes_is_excluded() {
        use ExclusionClass::{Backup, Free, Write};
        for one in [Free, Backup, Write] {
            for other in [Free, Backup, Write] {
                assert_eq!(one.excludes(other), other.excludes(one));
                // One row a database says who works on it: whoever excludes anything excludes all that do.
                assert_eq!(
                    one.excludes(other),
                    one.excludes(one) && other.excludes(other)
                );
            }
        }
        assert!(!Free.excludes(Backup) && Write.excludes(Backup) && Backup.excludes(Backup));
    }
}
