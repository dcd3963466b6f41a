//! What `fettler cleanup` takes.

use clap::{Args, Subcommand};

use super::{DatabaseArg, ReferenceArg, SubmissionArgs};
use crate::units::{bytes, duration_seconds, duration_seconds_above_0};

/// `fettler cleanup`.
#[derive(Debug, Args)]
#[command(
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  fettler cleanup postgres://host/shop --rows public.events --column at --older-than 90d --dry-run
  fettler cleanup shop --partitions metrics --older-than 365d --keep-undo 14
  fettler cleanup shop --slots --inactive-for 7d --retained 10GiB
  fettler cleanup cache --keys 'session:*' --idle-for 30d
  fettler cleanup elasticsearch://host --indices 'logs-*' --older-than 90d
  fettler cleanup clickhouse://host --detached-parts --older-than 30d
  fettler cleanup undo 1a2b3c

Name one action. `--dry-run` prints the plan and changes nothing. What can be put back is archived and read back
first, and comes back with `fettler cleanup undo JOB`. docs/cleanup.md tells the rest.
Exit codes: 0 done (also when nothing was old), 1 refused or failed, 3 not all that was archived is accounted for."
)]
pub(crate) struct CleanupArgs {
    #[command(subcommand)]
    pub(crate) command: Option<CleanupCommand>,
    /// postgres://user@host/database, or the name of a known database
    #[arg(value_name = "DATABASE", required = true)]
    pub(crate) database: Option<String>,
    /// Where the password lies, env:NAME or file:PATH
    #[arg(long = "password-from", alias = "password", value_name = "REFERENCE")]
    pub(crate) password: Option<ReferenceArg>,
    #[command(flatten)]
    pub(crate) action: CleanupActionArgs,
    #[command(flatten)]
    pub(crate) how: CleanupHowArgs,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}

impl CleanupArgs {
    /// The database as other commands name it.
    pub(crate) fn database(&self) -> DatabaseArg {
        DatabaseArg {
            database: self.database.clone().unwrap_or_default(),
            password: self.password.clone(),
        }
    }
}

/// What is cleaned.
#[derive(Debug, Args)]
#[command(next_help_heading = "What is cleaned (one of these)")]
pub(crate) struct CleanupActionArgs {
    /// Old rows of this table, or documents of this collection
    #[arg(
        long,
        alias = "documents",
        value_name = "TABLE",
        group = "action",
        requires = "older_than",
        requires = "column"
    )]
    pub(crate) rows: Option<String>,
    /// Old partitions of this table (PostgreSQL, ClickHouse)
    #[arg(long, value_name = "TABLE", group = "action", requires = "older_than")]
    pub(crate) partitions: Option<String>,
    /// Whole indices of this pattern whose newest document is old, by --field (@timestamp where nothing is said)
    #[arg(
        long,
        value_name = "PATTERN",
        group = "action",
        requires = "older_than"
    )]
    pub(crate) indices: Option<String>,
    /// Parts that ClickHouse has left detached, broken or replaced; see --only
    #[arg(long, group = "action", requires = "older_than")]
    pub(crate) detached_parts: bool,
    /// Also parts that somebody has detached by hand
    #[arg(long, requires = "detached_parts")]
    pub(crate) by_hand: bool,
    /// Replication slots without a reader
    #[arg(long, group = "action")]
    pub(crate) slots: bool,
    /// Prepared transactions that were never ended
    #[arg(long, group = "action", requires = "older_than")]
    pub(crate) prepared_transactions: bool,
    /// Sessions that do nothing, see --idle and --idle-in-transaction
    #[arg(long, group = "action")]
    pub(crate) sessions: bool,
    /// Temporary tables whose session is gone (version 16 and later)
    #[arg(long, group = "action")]
    pub(crate) temporary_tables: bool,
    /// Keys of Redis of this pattern, without an end, see --idle-for
    #[arg(
        long,
        value_name = "PATTERN",
        group = "action",
        requires = "idle_for",
        conflicts_with = "older_than"
    )]
    pub(crate) keys: Option<String>,
    /// Dead rows or free pages, by VACUUM
    #[arg(long, group = "action")]
    pub(crate) vacuum: bool,
    /// Tables whose files are mostly empty, by pg_repack where it is installed
    #[arg(long, group = "action")]
    pub(crate) repack: bool,
    /// Invalid indexes, by REINDEX CONCURRENTLY
    #[arg(long, group = "action")]
    pub(crate) reindex: bool,
    /// What is in the WAL of SQLite, by a checkpoint
    #[arg(long, group = "action")]
    pub(crate) checkpoint: bool,
    /// How old it must be, such as 90d
    #[arg(long, value_name = "TIME", value_parser = duration_seconds_above_0)]
    pub(crate) older_than: Option<u64>,
    /// The column or field that says how old it is: a timestamp or a date, read as UTC where it has no zone
    #[arg(long, alias = "field", value_name = "COLUMN")]
    pub(crate) column: Option<String>,
    /// What becomes of rows that others refer to by a foreign key
    #[arg(long, value_name = "WORD", value_enum, default_value_t = ReferencedArg::Refuse, requires = "rows")]
    pub(crate) referenced: ReferencedArg,
    /// Let triggers fire when rows are deleted
    #[arg(long, requires = "rows")]
    pub(crate) fire_triggers: bool,
    /// Only these slots, tables or indexes: names, or patterns with *
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Slots that had no reader for so long (version 17 and later)
    #[arg(long, value_name = "TIME", value_parser = duration_seconds, requires = "slots")]
    pub(crate) inactive_for: Option<u64>,
    /// Slots that hold back at least so much WAL, such as 10GiB
    #[arg(long, value_name = "SIZE", value_parser = bytes, requires = "slots")]
    pub(crate) retained: Option<u64>,
    /// Keys that nobody read or wrote for so long
    #[arg(long, value_name = "TIME", value_parser = duration_seconds_above_0, requires = "keys")]
    pub(crate) idle_for: Option<u64>,
    /// Let the keys live for so long instead of removing them
    #[arg(long, value_name = "TIME", value_parser = duration_seconds_above_0, requires = "keys")]
    pub(crate) expire_in: Option<u64>,
    /// Sessions that are idle in a transaction for so long
    #[arg(long, value_name = "TIME", value_parser = duration_seconds_above_0, requires = "sessions")]
    pub(crate) idle_in_transaction: Option<u64>,
    /// Sessions that are idle for so long
    #[arg(long, value_name = "TIME", value_parser = duration_seconds_above_0, requires = "sessions")]
    pub(crate) idle: Option<u64>,
    /// Tables of whose rows at least so many in a hundred are dead
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100), requires = "vacuum")]
    pub(crate) dead_percent: Option<u32>,
    /// Tables of whose file at least so many in a hundred are empty (50)
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=99), requires = "repack")]
    pub(crate) empty_percent: Option<u32>,
}

/// What becomes of rows that others refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ReferencedArg {
    /// Nothing is done while there are any
    Refuse,
    /// They stay
    Keep,
}

/// How it is done.
#[derive(Debug, Args)]
#[command(next_help_heading = "How it is done")]
pub(crate) struct CleanupHowArgs {
    /// Print the plan, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Forget the archive as soon as the work is done: nothing can be put back
    #[arg(long, conflicts_with = "keep_undo")]
    pub(crate) no_archive: bool,
    /// For how many days what was removed can be put back [30]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) keep_undo: Option<u32>,
    /// Rows that one transaction removes at most [1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) batch_rows: Option<u64>,
    /// At most so many rows a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_rows: Option<u64>,
    /// Do not rest between batches; replicas are waited for all the same
    #[arg(long)]
    pub(crate) full_speed: bool,
    /// Wait while a replica is behind by more than this [10s]
    #[arg(long, value_name = "TIME", value_parser = duration_seconds_above_0)]
    pub(crate) replica_lag: Option<u64>,
}

/// What is done with a cleanup.
#[derive(Debug, Subcommand)]
pub(crate) enum CleanupCommand {
    /// Put back what a cleanup removed; what is there already stays
    Undo(CleanupUndoArgs),
}

/// `fettler cleanup undo`.
#[derive(Debug, Args)]
pub(crate) struct CleanupUndoArgs {
    /// The cleanup's job, or a part of its id
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    /// Say what would be put back, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}
