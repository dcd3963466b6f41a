//! What would make a database faster: its statements and statistics go in, findings and a plan of actions come out, and what
//! was done is measured. Nothing here reaches a ledger; the database is reached through a [`fettler_engine::Workbench`].
//!
//! A folder for each engine, and [`look`], [`apply`] and the others for whichever it is. What an action may do without a
//! person's look is decided where it is planned, whether it stays is decided by what was measured ([`judge`]).

mod advice;
mod clickhouse;
mod elasticsearch;
mod measured;
mod mongodb;
pub mod postgres;
mod redis;
mod series;
mod sqlite;
mod statements;
mod steps;

pub use measured::{Verdict, judge};
pub use statements::{MOST_STATEMENT_BYTES, MOST_STATEMENTS, statements};
pub use steps::{apply, count, end_sessions, judged, lock, look, measure, take_back};

use std::collections::BTreeSet;

use fettler_model::{Finding, JudgedBy, TuningAction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a user says that the server does not tell, and what is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Wishes {
    /// Bytes of memory of the server's machine; asked of the server where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processors of the server's machine; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processors: Option<u32>,
    /// Whether its disks turn: then a page out of order costs more.
    pub turning_disks: bool,
    /// After how many days without use an index counts as unused.
    pub unused_days: u32,
    /// How much of the database's size all new indexes together may have, in percent.
    pub index_percent: u32,
    /// Statements that are to be quick, for engines that record none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statements: Vec<String>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            processors: None,
            turning_disks: false,
            unused_days: 30,
            index_percent: 30,
            statements: Vec::new(),
        }
    }
}

/// What a look gave.
#[derive(Clone, Debug)]
pub struct Look {
    /// The server's version.
    pub version: String,
    /// How many recorded statements were judged, and how many of those that were recorded could not be read.
    pub statements: (usize, usize),
    /// How many seconds the recorded statements span; 0 where that is not told.
    pub span_seconds: f64,
    /// Who has judged indexes.
    pub judged_by: JudgedBy,
    /// What was found.
    pub findings: Vec<Finding>,
    /// The checks that have seen all there is.
    pub conclusive: BTreeSet<String>,
    /// What could be done, in the order in which it is to be done.
    pub plan: Vec<TuningAction>,
    /// What is to be kept, for looks to come.
    pub sample: Value,
}
