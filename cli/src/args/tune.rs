//! What `fettler tune` takes.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use fettler_jobs::TuneArguments;
use fettler_tuning::Wishes;

use super::{JobArg, ReferenceArg, SubmissionArgs};
use crate::units::{bytes, duration_seconds};

/// `fettler tune`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without `--apply` nothing is changed. With it, only what the plan calls safe is done: one thing at a time, its way back
written down first, measured before and after, and taken back where it did not help.")]
pub(crate) struct TuneArgs {
    #[command(subcommand)]
    pub(crate) command: Option<TuneCommand>,
    /// postgres://user@host/database, redis://host, mongodb://host, clickhouse://host, elasticsearch://host, the path of a
    /// SQLite file, or the name of a known database
    #[arg(value_name = "DATABASE")]
    pub(crate) database: Option<String>,
    /// Where the password lies, env:NAME or file:PATH
    #[arg(long = "password-from", alias = "password", value_name = "REFERENCE")]
    pub(crate) password: Option<ReferenceArg>,
    /// Do what is safe
    #[arg(long)]
    pub(crate) apply: bool,
    /// Print the plan and change nothing, whatever else is said
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How long statements are watched after each change, at most, before it is decided whether it stays
    #[arg(long, value_name = "TIME", value_parser = duration_seconds, default_value = "10m")]
    pub(crate) observe: u64,
    /// Make at most so many changes, those that bring the most
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) most: u32,
    /// A known standby of it, which may read indexes that it does not; may be given several times
    #[arg(long = "replica", value_name = "NAME")]
    pub(crate) replicas: Vec<String>,
    /// How much memory its machine has, where the server does not tell, such as 16GiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(crate) memory: Option<u64>,
    /// How many processors its machine has, where the server does not tell
    #[arg(long, value_name = "N")]
    pub(crate) processors: Option<u32>,
    /// Its disks turn
    #[arg(long)]
    pub(crate) turning_disks: bool,
    /// After how many days without use an index counts as unused
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    pub(crate) unused_days: u32,
    /// How much of the database's size all new indexes may have together, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 30)]
    pub(crate) index_percent: u32,
    /// A file of statements that are to be quick, each ended by a semicolon: for SQLite, which records none, MongoDB and ClickHouse
    #[arg(long, value_name = "FILE")]
    pub(crate) statements: Option<PathBuf>,
    /// Show commands and what was seen
    #[arg(long)]
    pub(crate) explain: bool,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}

impl TuneArgs {
    /// The job's arguments, but for standbys and statements.
    pub(crate) fn arguments(&self) -> TuneArguments {
        TuneArguments {
            apply: self.apply && !self.dry_run,
            observe_seconds: self.observe,
            most_actions: self.most,
            undo: None,
            replicas: Vec::new(),
            wishes: Wishes {
                memory_bytes: self.memory,
                processors: self.processors,
                turning_disks: self.turning_disks,
                unused_days: self.unused_days,
                index_percent: self.index_percent,
                statements: Vec::new(),
            },
        }
    }
}

/// What is done with what tuning has done.
#[derive(Debug, Subcommand)]
pub(crate) enum TuneCommand {
    /// Take back what a job of tuning has changed, as far as it is still there
    Undo {
        #[command(flatten)]
        job: JobArg,
        #[command(flatten)]
        submission: SubmissionArgs,
    },
}
