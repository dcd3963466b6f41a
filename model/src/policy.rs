//! Policies: what is to be done to which database, when.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{JobId, JobKindName, KeepRules, Priority};

/// What happens with due times that passed while no scheduler ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// They are recorded as skipped.
    Skip,
    /// The last one runs, the others are recorded as skipped.
    #[default]
    Once,
    /// All run, oldest first.
    All,
}

/// What happens when a due time comes while the policy's last job has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The due time is recorded as skipped.
    #[default]
    Skip,
    /// The new job waits behind the old one.
    Queue,
    /// The old job is cancelled, the new one runs.
    Cancel,
}

/// The hours in which a policy's jobs may start, in the policy's time zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Hash)]
pub struct Window {
    /// `HH:MM`, when it opens.
    pub from: String,
    /// `HH:MM`, when it closes; earlier than `from` means the next day.
    pub to: String,
}

/// How often a policy's backups are proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProveEvery {
    /// Not by this policy.
    #[default]
    Never,
    /// Every backup, at once.
    Backup,
    /// The first backup of each day.
    Daily,
    /// The first backup of each ISO week.
    Weekly,
    /// The first backup of each month.
    Monthly,
}

/// What a policy says. The ledger keeps it beside its id, name, database and next due time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PolicySpec {
    /// What is to be done.
    pub kind: JobKindName,
    /// The kind's arguments.
    #[serde(default)]
    pub arguments: serde_json::Value,
    /// When: a cron expression.
    pub cron: String,
    /// The IANA time zone in which the expression is read.
    pub time_zone: String,
    /// What happens with due times that were missed.
    #[serde(default)]
    pub catch_up: CatchUp,
    /// What happens when the last job still runs.
    #[serde(default)]
    pub overlap: Overlap,
    /// The hours in which jobs may start.
    #[serde(default)]
    pub window: Option<Window>,
    /// Spread of the start over this many seconds, by a hash of the policy's id.
    #[serde(default)]
    pub jitter_seconds: u32,
    /// How urgent its jobs are.
    #[serde(default)]
    pub priority: Priority,
    /// Which backups are kept; none given keeps all.
    #[serde(default)]
    pub keep: Option<KeepRules>,
    /// How often its backups are proven.
    #[serde(default)]
    pub prove: ProveEvery,
    /// An attempt of its jobs that runs longer is stopped, and tried again.
    #[serde(default)]
    pub timeout_seconds: Option<u64>,
    /// Whether it is switched off.
    #[serde(default)]
    pub paused: bool,
}

/// What became of one due time of a policy (rule 18): exactly one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum TickOutcome {
    /// A job was made.
    Job {
        /// The job.
        job: JobId,
    },
    /// It was missed while no scheduler ran, and the catch-up rule says to let it be.
    SkippedMissed,
    /// The policy's last job had not ended.
    SkippedOverlap {
        /// The job that still ran.
        job: JobId,
    },
    /// The window was closed.
    SkippedWindow,
    /// The policy was paused.
    SkippedPaused,
}
