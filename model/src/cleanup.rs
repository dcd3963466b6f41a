//! The words of a cleanup: what is to go, what a plan says of it, and what was done.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Engine, Timestamp};

/// What becomes of rows that other rows refer to by a foreign key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Referenced {
    /// The plan refuses while there are such rows.
    #[default]
    Refuse,
    /// They stay, and are counted.
    Keep,
}

/// What is to be cleaned: one action a job, and nothing that was not named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum CleanupAction {
    /// Rows of a table that are older than a time.
    Rows {
        /// The table, `schema.table` or a name that only one schema has.
        table: String,
        /// The column that says how old a row is: a timestamp or a date.
        column: String,
        /// Rows that are older than so many seconds go.
        older_than_seconds: u64,
        /// What becomes of rows that others refer to.
        #[serde(default)]
        referenced: Referenced,
        /// Whether triggers that fire on a delete may fire.
        #[serde(default)]
        fire_triggers: bool,
    },
    /// Partitions of a table that hold nothing younger than a time.
    Partitions {
        /// The partitioned table.
        table: String,
        /// The column that says how old a row is; that by which the table is partitioned where nothing is said.
        #[serde(default)]
        column: Option<String>,
        /// Partitions whose whole range (PostgreSQL) or newest row (ClickHouse) is older than so many seconds go.
        older_than_seconds: u64,
    },
    /// Parts that a server took out of its tables and left in its folders.
    DetachedParts {
        /// Only those of these tables or patterns; all where nothing is named.
        #[serde(default)]
        only: Vec<String>,
        /// Parts that were written last more than so many seconds ago go.
        older_than_seconds: u64,
        /// Also those that somebody has taken out by hand.
        #[serde(default)]
        by_hand: bool,
    },
    /// Whole indices whose newest document is older than a time.
    Indices {
        /// Their names, where `*` stands for any run of letters.
        pattern: String,
        /// The field that says how old a document is, `@timestamp` where nothing is said; `creation_date` where no field is called
        /// so means when the index was made.
        #[serde(default)]
        field: Option<String>,
        /// Indices that hold nothing younger than so many seconds go.
        older_than_seconds: u64,
    },
    /// Replication slots that nobody reads.
    Slots {
        /// Only slots of these names, where `*` stands for any run of letters; all where nothing is named.
        #[serde(default)]
        only: Vec<String>,
        /// Slots without a reader for at least so many seconds (version 17 and later tell since when; before, a slot counts that
        /// holds back at least `retained_bytes`).
        #[serde(default)]
        inactive_for_seconds: u64,
        /// Slots that hold back at least so many bytes of WAL.
        #[serde(default)]
        retained_bytes: u64,
    },
    /// Transactions that were prepared and never ended.
    PreparedTransactions {
        /// Those that are older than so many seconds are rolled back.
        older_than_seconds: u64,
    },
    /// Sessions that do nothing.
    Sessions {
        /// Ends sessions that are idle in a transaction for so many seconds.
        #[serde(default)]
        idle_in_transaction_seconds: Option<u64>,
        /// Ends sessions that are idle for so many seconds.
        #[serde(default)]
        idle_seconds: Option<u64>,
    },
    /// Temporary tables whose session is gone.
    TemporaryTables {},
    /// Tables that hold many dead rows.
    Vacuum {
        /// Only these tables or patterns; all where nothing is named.
        #[serde(default)]
        only: Vec<String>,
        /// Tables of whose rows at least so many in a hundred are dead.
        #[serde(default = "twenty")]
        dead_percent: u32,
    },
    /// Tables whose files are mostly empty room, written anew by `pg_repack`.
    Repack {
        /// Only these tables or patterns; all where nothing is named.
        #[serde(default)]
        only: Vec<String>,
        /// Tables of whose file at least so much in a hundred is empty.
        #[serde(default = "fifty")]
        empty_percent: u32,
    },
    /// A log of changes that was written and not yet moved into its database: SQLite's WAL.
    Checkpoint {},
    /// Keys that nobody used for a time and that would never expire.
    Keys {
        /// Their names, where `*` stands for any run of letters, as the server reads a pattern.
        pattern: String,
        /// Keys that nobody read or wrote for so many seconds go.
        idle_for_seconds: u64,
        /// They are not removed but get so many seconds to live.
        #[serde(default)]
        expire_in_seconds: Option<u64>,
    },
    /// Indexes that are invalid.
    Reindex {
        /// Only indexes of these tables or patterns; all where nothing is named.
        #[serde(default)]
        only: Vec<String>,
    },
}

const fn twenty() -> u32 {
    20
}

const fn fifty() -> u32 {
    50
}

impl CleanupAction {
    /// The word for it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Rows { .. } => "rows",
            Self::Partitions { .. } => "partitions",
            Self::DetachedParts { .. } => "detached_parts",
            Self::Indices { .. } => "indices",
            Self::Slots { .. } => "slots",
            Self::PreparedTransactions { .. } => "prepared_transactions",
            Self::Sessions { .. } => "sessions",
            Self::TemporaryTables {} => "temporary_tables",
            Self::Vacuum { .. } => "vacuum",
            Self::Repack { .. } => "repack",
            Self::Checkpoint {} => "checkpoint",
            Self::Keys { .. } => "keys",
            Self::Reindex { .. } => "reindex",
        }
    }

    /// How old something must be to go, where the action is about age.
    #[must_use]
    pub const fn older_than_seconds(&self) -> Option<u64> {
        match self {
            Self::Rows {
                older_than_seconds, ..
            }
            | Self::Partitions {
                older_than_seconds, ..
            }
            | Self::DetachedParts {
                older_than_seconds, ..
            }
            | Self::Indices {
                older_than_seconds, ..
            }
            | Self::PreparedTransactions { older_than_seconds } => Some(*older_than_seconds),
            Self::Keys {
                idle_for_seconds, ..
            } => Some(*idle_for_seconds),
            _ => None,
        }
    }

    /// Whether it takes things as a whole, each of which holds many rows.
    #[must_use]
    pub const fn takes_wholes(&self) -> bool {
        matches!(self, Self::Partitions { .. } | Self::Indices { .. })
    }
}

/// One thing that a plan speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CleanupItem {
    /// Its name: a table, a partition, a slot.
    pub name: String,
    /// Rows, keys or documents that would go.
    pub rows: u64,
    /// About how many bytes they have.
    pub bytes: u64,
    /// The oldest of it.
    pub oldest: Option<String>,
    /// The newest of it.
    pub newest: Option<String>,
    /// What else is to be known of it, such as the statement that would be run.
    pub note: String,
}

/// Why a plan refuses, and what would help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CleanupRefusal {
    /// What stands in the way.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What a cleanup is going to do. It is made once; an attempt that goes on after a death keeps to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CleanupPlan {
    /// The engine.
    pub engine: Engine,
    /// What is to go.
    pub what: CleanupAction,
    /// The moment of the plan, by the database's own clock where it has one.
    pub made: Timestamp,
    /// What is older than this moment goes, and nothing else.
    pub cutoff: Option<Timestamp>,
    /// What would go.
    pub items: Vec<CleanupItem>,
    /// What depends on it: foreign keys, triggers, partitions, publications.
    pub depends: Vec<String>,
    /// Why nothing is done.
    pub refusals: Vec<CleanupRefusal>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Whether what goes can be archived, and put back from there.
    pub can_be_undone: bool,
    /// What the engine needs to carry it out.
    pub engine_data: serde_json::Value,
}

impl CleanupPlan {
    /// Rows of all items.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.items.iter().map(|item| item.rows).sum()
    }

    /// Bytes of all items.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.bytes).sum()
    }
}

/// What came of a removal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CleanupRemoved {
    /// Rows, keys, slots or whatever it was that were removed.
    pub removed: u64,
    /// Those that were not there any more: removed by others, or by an attempt that died before it could say so.
    pub gone: u64,
    /// Those that were changed since they were archived, and stay.
    pub changed: u64,
    /// Those that others refer to, and stay.
    pub referenced: u64,
    /// Those that somebody else held whenever they were tried, and stay.
    pub busy: u64,
    /// Some of those that stay, by their keys, at most a hundred.
    pub kept: Vec<String>,
    /// What is older than the cut-off after the work, where that can be counted.
    pub remaining: Option<u64>,
    /// The longest time that one transaction of the work took, in milliseconds.
    pub longest_transaction_ms: u64,
    /// How often the work waited for replicas to catch up.
    pub waits_for_replicas: u64,
    /// How often a batch was put off because somebody held a lock.
    pub waits_for_locks: u64,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl CleanupRemoved {
    /// What stays of what was archived.
    #[must_use]
    pub const fn stayed(&self) -> u64 {
        self.changed + self.referenced + self.busy
    }
}

/// What came of putting things back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CleanupUndone {
    /// Those that were put back, or would be.
    pub restored: u64,
    /// Those that are there as they were: never removed, or put back before.
    pub there: u64,
    /// Those whose place is taken by something else, which stays.
    pub taken: u64,
    /// Those that refer to something that is not there any more, and were left out.
    pub without_parent: u64,
    /// Some of what was left out, by their keys, at most a hundred.
    pub skipped: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_read_as_it_is_written_and_a_slip_is_told() {
        let text = r#"{"action":"rows","table":"t","column":"at","older_than_seconds":60}"#;
        let action: CleanupAction = serde_json::from_str(text).unwrap();
        assert_eq!(action.name(), "rows");
        assert_eq!(action.older_than_seconds(), Some(60));
        let slip = text.replace("column", "colum");
        assert!(serde_json::from_str::<CleanupAction>(&slip).is_err());
        let unknown = r#"{"action":"vacuum","percent":1}"#;
        assert!(serde_json::from_str::<CleanupAction>(unknown).is_err());
    }
}
