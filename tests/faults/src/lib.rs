//! The fault harness: a real fleet (two interfaces, two schedulers, four workers, Redis, a ledger in PostgreSQL, MinIO)
//! under a seeded plan of faults, and a checker that looks from outside (at the ledger by SQL, at the store by listing it, at
//! databases, processes, folders and logs) whether what Fettler promises held all the same.
//!
//! A run is: [`servers`] that all runs share, a fresh [`fleet`] on them, a [`plan`] made from a seed, [`load`] from clients
//! that keep what they were promised, a time for everything to come to rest, and the [`check`]. What the faults did is
//! counted ([`tally`]): a list of runs in which nothing bit shows nothing.
//!
//! `docs/testing.md` says how to run it and how to read what it prints.

pub mod audit;
pub mod check;
pub mod fleet;
pub mod history;
pub mod load;
pub mod plan;
pub mod program;
pub mod run;
pub mod scan;
pub mod series;
pub mod servers;
pub mod tally;
mod trouble;

pub use trouble::{Result, Trouble};
