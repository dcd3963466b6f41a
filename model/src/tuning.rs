//! What would make a database faster, as a plan: actions with their way back, and what became of those that were taken.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{JobId, Timestamp};

/// What an action does.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    /// Makes an index.
    CreateIndex,
    /// Removes an index.
    DropIndex,
    /// Changes how one table is stored or kept in order.
    SetTable,
    /// Changes what is known of one column's values.
    SetColumn,
    /// Changes a setting of the server, or of the whole file.
    SetSetting,
    /// Has the planner learn anew what there is.
    RefreshStatistics,
}

/// Who has judged what an action would bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JudgedBy {
    /// The server's own planner, with hypothetical indexes (HypoPG).
    Hypopg,
    /// Fettler's own estimate from the server's statistics: coarser, and to be measured.
    Estimate,
    /// What the statements took on a copy of the database.
    Copy,
}

/// What an action is expected to bring, over the time that the recorded statements span.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Expectation {
    /// By whom.
    pub judged_by: JudgedBy,
    /// Milliseconds that the statements in question took.
    pub statements_ms: f64,
    /// Milliseconds that they would have taken.
    pub statements_ms_after: f64,
    /// Milliseconds that writes would have taken longer.
    pub writes_ms: f64,
    /// Bytes that it takes (or gives back, where it is negative).
    pub bytes: i64,
}

/// One thing that could be done, with its way back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TuningAction {
    /// The same for the same change of the same thing, from one look to the next.
    pub id: String,
    /// What it does.
    pub kind: ActionKind,
    /// What it makes or changes: an index, a table, a column, a setting.
    pub object: String,
    /// The table that it is about; empty for the whole server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub table: String,
    /// The finding that it answers.
    pub finding: String,
    /// What it does and why, in words.
    pub reason: String,
    /// Whether it may be taken without a person's look.
    pub safe: bool,
    /// Why not, where it may not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unsafe_because: String,
    /// The statements, each run by itself.
    pub apply: Vec<String>,
    /// The statements that take it back.
    pub undo: Vec<String>,
    /// The recorded statements that it is meant to help, by the server's own ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub helps: Vec<String>,
    /// What it is expected to bring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expectation>,
}

/// What has become of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TuningState {
    /// It was begun; whether it is made is not known.
    Applying,
    /// It is made, and is looked at.
    Observing,
    /// It has helped and stays.
    Kept,
    /// It has not helped, or has done harm, and was taken back.
    TakenBack,
    /// Somebody has taken it back.
    Undone,
    /// It could not be made, and has left nothing.
    Failed,
}

impl TuningState {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applying => "applying",
            Self::Observing => "observing",
            Self::Kept => "kept",
            Self::TakenBack => "taken_back",
            Self::Undone => "undone",
            Self::Failed => "failed",
        }
    }

    /// Whether there is still something to be done about it.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Applying | Self::Observing)
    }
}

/// How one recorded statement fared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatementTime {
    /// The server's own id of it.
    pub id: String,
    /// How often it ran.
    pub calls: f64,
    /// Milliseconds that it took in all.
    pub total_ms: f64,
    /// Blocks that it read and wrote in all, found in memory or not: work that does not depend on the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<f64>,
}

/// What was measured of the statements on a table, as counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measurement {
    /// The statements.
    pub statements: Vec<StatementTime>,
    /// How often the index was read, where the action is about one.
    pub index_reads: f64,
    /// Statements that have nothing to do with the table: how they fare says how the machine fares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<StatementTime>,
    /// When it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// How a statement fared before and after an action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Compared {
    /// The server's own id of it.
    pub id: String,
    /// Milliseconds a call before.
    pub ms_before: f64,
    /// Milliseconds a call after.
    pub ms_after: f64,
    /// Calls after.
    pub calls: f64,
    /// Blocks a call before, where the server counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks_before: Option<f64>,
    /// Blocks a call after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks_after: Option<f64>,
    /// How many times as long the statements elsewhere took a call after as before: the machine's own doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<f64>,
}

/// An action that was taken, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TuningRecord {
    /// The action, with its way back.
    pub action: TuningAction,
    /// The job that took it.
    pub job: JobId,
    /// What has become of it.
    pub state: TuningState,
    /// When it was begun.
    pub begun: Timestamp,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Timestamp>,
    /// What was measured before it was made.
    #[serde(default)]
    pub before: Measurement,
    /// What was measured when it was made.
    #[serde(default)]
    pub made: Measurement,
    /// What was measured, again and again, shortly before it was made; kept until it is decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baseline: Vec<Measurement>,
    /// How the statements fared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compared: Vec<Compared>,
    /// Why it is as it is, in words.
    #[serde(default)]
    pub why: String,
}
