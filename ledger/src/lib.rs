//! The ledger: the SQL truth of who there is, what was asked for, what runs and what came of it. It
//! lives in a SQLite file or in a PostgreSQL database; both pass one suite, and no caller can tell
//! them apart.
//!
//! What it keeps, above all: an accepted job ends in a final state (P1); a job has one running attempt,
//! and what a superseded one still writes is refused (P2); a job that waits says why (P12). A job is
//! one narrow row while it lives, which nothing but its own claim, heartbeats and end touch, and which
//! moves to the history when it ends (rule 9).
//!
//! A [`Ledger`] is cheap to clone. All times that it compares are its own: [`Ledger::now`].

mod baselines;
mod batch;
mod catalogue;
mod codes;
mod dialect;
mod error;
mod events;
mod findings;
mod job;
mod ledger;
mod migrate;
mod pages;
mod policies;
mod records;
mod row;
mod silences;
mod steps;
mod store;
mod tenancy;
mod tokens;
mod tuning;
mod wake;

pub use error::LedgerError;
pub use findings::{FindingFilter, FindingRecord, FindingsSeen};
pub use ledger::{Ledger, LedgerOptions};
pub use records::*;
pub use silences::{Silence, SilenceChange, SilenceKind};
pub use steps::{StepFate, StepKind, Steps};
pub use wake::Wakeups;

/// A result with the ledger's error.
pub type Result<T, E = LedgerError> = std::result::Result<T, E>;
