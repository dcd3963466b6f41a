//! What the command line takes. The sentences here are the help texts.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use fettler_engine::{ExtractFormat, Purpose};
use fettler_model::{
    CatchUp, DatabaseName, InvalidReference, JobId, JobKindName, JobState, KeepRules, Overlap,
    PolicyName, Priority, ProveEvery, Role, SecretReference, SlotClass, TenantId, Timestamp,
    TokenName,
};

mod audit;
mod cleanup;
mod looks;
mod tune;

pub(crate) use audit::AuditArgs;
pub(crate) use cleanup::{
    CleanupActionArgs, CleanupArgs, CleanupCommand, CleanupUndoArgs, ReferencedArg,
};
pub(crate) use looks::{
    ChecksCommand, FindingsArgs, FindingsCommand, FindingsFilterArgs, HealthArgs, SuppressArgs,
};
pub(crate) use tune::{TuneArgs, TuneCommand};

use crate::{
    failure::Failure,
    units::{
        bytes, duration_seconds, duration_seconds_above_0, moment_or_span, past_moment, percent,
    },
};

/// Keeps databases in order: backs them up, proves that the backups restore, and restores them.
#[derive(Debug, Parser)]
#[command(
    name = "fettler",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
Begin with `fettler demo`, or with `fettler backup ./some.sqlite`.
BACKUP is `latest`, an id, or any beginning or ending of one that is unique.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 found something wrong, 4 nothing to do."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// The folder of this installation [FETTLER_FOLDER; ~/.local/share/fettler]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub(crate) folder: Option<PathBuf>,
    /// Where backups go: a folder or s3://bucket/prefix [FETTLER_REPOSITORY; in the folder]
    #[arg(long, global = true, value_name = "PLACE")]
    pub(crate) repository: Option<String>,
    /// The file that opens the backups, instead of the passphrase in FETTLER_PASSPHRASE
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) key_file: Option<PathBuf>,
    /// Whose things the command works on
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) tenant: Option<TenantId>,
    /// The file of settings [FETTLER_CONFIG; fettler.toml here or in the folder]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Ask the Fettler that answers at this URL, with the token in FETTLER_TOKEN [FETTLER_SERVER]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "FETTLER_SERVER",
        hide_env = true
    )]
    pub(crate) server: Option<String>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print the result only
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Say more; twice says everything
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show all of it at work, with a database made for the purpose
    Demo(DemoArgs),
    /// Ask a database who it is, and see that it is reached
    Ping(PingArgs),
    /// Say what would make a database faster, and do what is safe where that is asked for
    #[command(args_conflicts_with_subcommands = true)]
    Tune(TuneArgs),
    /// Look at a database's health: findings, and a score of 100 with its account
    Health(HealthArgs),
    /// Audit a database: who may do what, what is encrypted and logged, what is out of care, what has changed
    Audit(AuditArgs),
    /// What looks at databases have found, and what became of it
    #[command(args_conflicts_with_subcommands = true)]
    Findings(FindingsArgs),
    /// The checks that looks are made of
    #[command(subcommand)]
    Checks(ChecksCommand),
    /// Back up a database
    Backup(BackupArgs),
    /// List backups
    Backups(BackupsArgs),
    /// Archive the changes of a database as they happen, so that it can be restored to any second
    Archive(ArchiveArgs),
    /// Show one backup: what is in it, what came of it
    Show(BackupArg),
    /// List what is inside a backup: databases, tables, keys, rows, bytes
    Browse(BrowseArgs),
    /// Write one part of a backup in an open format
    Extract(ExtractArgs),
    /// Read a backup and see whether anything of it is damaged
    Verify(VerifyArgs),
    /// Show that a backup restores, by restoring it into a sandbox and comparing
    Prove(ProveArgs),
    /// Put a backup back, or a database as it was at a moment
    Restore(RestoreArgs),
    /// Copy a database into another of the same engine, and compare both
    CopyData(CopyDataArgs),
    /// Remove what is old or abandoned in a database, by plan, and put it back
    Cleanup(Box<CleanupArgs>),
    /// Say which tables differ between two backups, and by how many rows
    Diff(DiffArgs),
    /// Forget backups, by name or by what is to be kept
    Forget(ForgetArgs),
    /// Keep a backup from being forgotten, or let it go
    Hold(HoldArgs),
    /// Give back the space of what no backup needs any more
    Collect(CollectArgs),
    /// Check the whole repository
    Check(CheckArgs),
    /// The list of backups in the ledger
    #[command(subcommand)]
    Catalogue(CatalogueCommand),
    /// The keys that open the backups
    #[command(subcommand)]
    Key(KeyCommand),
    /// Run scheduler and worker in this folder until stopped
    Up(UpArgs),
    /// Tenants
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Databases that are looked after
    #[command(subcommand)]
    Database(DatabaseCommand),
    /// What is done by itself, and when
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What was asked for and what came of it
    #[command(args_conflicts_with_subcommands = true)]
    Jobs(JobsArgs),
    /// How many jobs of a tenant, database, server, kind or slot class run at once
    #[command(subcommand)]
    Limit(LimitCommand),
    /// Let no more jobs start: none at all, or none of a tenant, database, policy or kind
    Pause(PauseArgs),
    /// Let them start again
    Resume(ResumeArgs),
    /// The kinds of jobs and what they take
    Kinds(KindsArgs),
    /// Say what a database's server allows, before any byte is read
    Preflight(PreflightArgs),
    /// The settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a script that completes commands in a shell
    Completions(CompletionsArgs),
    /// Run jobs of the fleet until stopped: as many processes as there is work for
    Worker(WorkerArgs),
    /// Run policies for the fleet until stopped: one leads, others stand by
    Scheduler(SchedulerArgs),
    /// Answer over HTTP for the fleet until stopped: as many processes as there are to be
    Api(ApiArgs),
    /// Who may use the HTTP interface
    #[command(subcommand)]
    Token(TokenCommand),
}

/// See [`Command::Demo`].
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How large the database is to be
    #[arg(long, value_name = "SIZE", default_value = "256MB", value_parser = bytes)]
    pub(crate) size: u64,
    /// Keep running, with a policy that backs up every minute
    #[arg(long)]
    pub(crate) stay: bool,
}

/// A reference to a secret as it was typed. It is judged later than by the reader of the command line,
/// whose errors repeat what was typed: it may be the secret itself (P9).
#[derive(Clone)]
pub(crate) struct ReferenceArg(Result<SecretReference, InvalidReference>);

impl std::fmt::Debug for ReferenceArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReferenceArg(…)")
    }
}

impl std::str::FromStr for ReferenceArg {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.parse()))
    }
}

impl ReferenceArg {
    /// The reference, with a file's path made absolute.
    pub(crate) fn get(&self) -> Result<SecretReference, Failure> {
        match &self.0 {
            Ok(SecretReference::Sealed(_)) => Err(Failure::usage(
                "what is sealed in the ledger cannot be referred to",
                "write `env:NAME` or `file:/path`",
            )),
            Ok(SecretReference::File(path)) => std::path::absolute(path)
                .map(SecretReference::File)
                .map_err(|error| Failure::local("the current folder cannot be told", &error)),
            Ok(reference) => Ok(reference.clone()),
            Err(error) => Err(Failure::usage(
                error.to_string(),
                "the secret itself does not belong on the command line, where others can see it",
            )),
        }
    }
}

/// A database as a command names it.
#[derive(Debug, Clone, Args)]
pub(crate) struct DatabaseArg {
    /// postgres://user@host/database, redis://host, mongodb://host, clickhouse://host, elasticsearch://host, the path of a SQLite file, or the name of a known database
    #[arg(value_name = "DATABASE")]
    pub(crate) database: String,
    /// Where the password lies, env:NAME or file:PATH
    #[arg(long = "password-from", alias = "password", value_name = "REFERENCE")]
    pub(crate) password: Option<ReferenceArg>,
}

/// See [`Command::Backup`].
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArg,
    /// What to call the database, when it is backed up for the first time
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<DatabaseName>,
    /// Leave out the rows of these tables, such as public.log_*
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
    /// Read at most so many bytes a second
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(crate) max_rate: Option<u64>,
    /// Do not read more slowly while the server answers late
    #[arg(long)]
    pub(crate) full_speed: bool,
    /// A word for keep rules and for people
    #[arg(long = "tag", value_name = "WORD")]
    pub(crate) tags: Vec<String>,
    /// Read everything, also what is known to be unchanged
    #[arg(long)]
    pub(crate) read_everything: bool,
    /// Let the server make a backup of its own: a snapshot of Elasticsearch or OpenSearch into a repository that it knows, fs:/folder, s3:bucket, gcs:bucket or azure:container; a BACKUP of ClickHouse to file:folder, disk:name/folder, s3:collection/folder or s3:https://bucket
    #[arg(long, value_name = "PLACE")]
    pub(crate) by_server: Option<String>,
    /// Prove the backup as soon as it is complete
    #[arg(long)]
    pub(crate) prove: bool,
    /// A command to run before; its failure fails the backup
    #[arg(long, value_name = "COMMAND")]
    pub(crate) before: Option<String>,
    /// A command to run after; its failure fails the job, the backup stays
    #[arg(long, value_name = "COMMAND")]
    pub(crate) after: Option<String>,
    /// How long either command may take
    #[arg(long, value_name = "TIME", value_parser = duration_seconds)]
    pub(crate) hook_timeout: Option<u64>,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}

/// See [`Command::Archive`].
#[derive(Debug, Args)]
pub(crate) struct ArchiveArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArg,
    /// What to call the database, when it is seen for the first time
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<DatabaseName>,
    /// End after so long; without it, only when it is cancelled
    #[arg(long = "for", value_name = "TIME", value_parser = duration_seconds)]
    pub(crate) for_seconds: Option<u64>,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}

/// See [`Command::Backups`].
#[derive(Debug, Args)]
pub(crate) struct BackupsArgs {
    /// Only those of this database
    #[arg(long, value_name = "NAME")]
    pub(crate) database: Option<DatabaseName>,
    /// Also those that were forgotten or have vanished
    #[arg(long)]
    pub(crate) all: bool,
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: usize,
}

/// A backup.
#[derive(Debug, Args)]
pub(crate) struct BackupArg {
    /// `latest`, an id, or a beginning or ending of one
    #[arg(value_name = "BACKUP")]
    pub(crate) backup: String,
}

/// See [`Command::Browse`].
#[derive(Debug, Args)]
pub(crate) struct BrowseArgs {
    #[command(flatten)]
    pub(crate) backup: BackupArg,
    /// Only this: a database, a schema, a table, or a pattern such as `shop.log_*`
    #[arg(value_name = "PATH")]
    pub(crate) path: Option<String>,
}

/// See [`Command::Extract`].
#[derive(Debug, Args)]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    pub(crate) backup: BackupArg,
    /// The part, as `fettler browse` names it; of Redis a database or keys of it, such as `db0/user:*`
    #[arg(value_name = "PATH")]
    pub(crate) path: String,
    /// csv, sql, ndjson, bson, rdb or native; without it the usual one of the engine
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<ExtractFormat>,
    /// The file to write; the standard output when nothing is said
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Replace the file
    #[arg(long, requires = "output")]
    pub(crate) overwrite: bool,
}

/// See [`Command::Verify`].
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) backup: BackupArg,
    /// Read only about this share of the stored bytes
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) sample: Option<f64>,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}

/// See [`Command::Prove`].
#[derive(Debug, Args)]
pub(crate) struct ProveArgs {
    #[command(flatten)]
    pub(crate) backup: BackupArg,
    /// `automatic`, `source-server`, or a server as postgres://user@host/database
    #[arg(long, value_name = "WHERE")]
    pub(crate) sandbox: Option<String>,
    /// Where the sandbox server's password lies, env:NAME or file:PATH
    #[arg(
        long = "sandbox-password-from",
        alias = "sandbox-password",
        value_name = "REFERENCE",
        requires = "sandbox"
    )]
    pub(crate) sandbox_password: Option<ReferenceArg>,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}

/// How the job that a command submits is to be done.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "The job")]
pub(crate) struct SubmissionArgs {
    /// Only submit the job, for `fettler up` or the fleet to run it
    #[arg(long)]
    pub(crate) detach: bool,
    /// How urgent it is
    #[arg(long, value_name = "LEVEL")]
    pub(crate) priority: Option<PriorityArg>,
    /// How long an attempt may take before it is stopped and tried again
    #[arg(long, value_name = "TIME", value_parser = duration_seconds_above_0)]
    pub(crate) timeout: Option<u64>,
    /// How often it is tried before it is dead
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) max_tries: Option<u32>,
    /// Start it no earlier: a moment such as 2026-01-31T22:00:00Z, or a time from now such as 2h
    #[arg(long, value_name = "WHEN", value_parser = moment_or_span, requires = "detach")]
    pub(crate) not_before: Option<Timestamp>,
    /// Do not start it later than this, given likewise
    #[arg(long, value_name = "WHEN", value_parser = moment_or_span)]
    pub(crate) deadline: Option<Timestamp>,
    /// Do nothing while another job of the tenant with this key waits or runs
    #[arg(long, value_name = "KEY", requires = "detach")]
    pub(crate) unique: Option<String>,
    /// A word by which the job is found
    #[arg(long = "job-tag", value_name = "WORD")]
    pub(crate) job_tags: Vec<String>,
}

/// See [`Command::Restore`].
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// `latest`, an id, or a beginning or ending of one; with `--to-time` also the name of a database
    #[arg(value_name = "BACKUP")]
    pub(crate) backup: String,
    /// The moment to bring the database to, such as 2026-11-22T17:00:00Z; `fettler backups` shows which there are
    #[arg(long, value_name = "TIME", value_parser = past_moment)]
    pub(crate) to_time: Option<Timestamp>,
    /// Where to: postgres://user@host/database, redis://host, mongodb://host, clickhouse://host, elasticsearch://host or the path of a SQLite file
    #[arg(long, value_name = "URL")]
    pub(crate) to: String,
    /// Where the password lies, env:NAME or file:PATH
    #[arg(long = "password-from", alias = "password", value_name = "REFERENCE")]
    pub(crate) password: Option<ReferenceArg>,
    /// Only these: a table, a schema or a pattern; of Elasticsearch also the documents that a query finds, 'shop?status:open'
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Replace what is there
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Remove the half-done work of an earlier restore first
    #[arg(long)]
    pub(crate) start_again: bool,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}

/// See [`Command::CopyData`].
#[derive(Debug, Args)]
pub(crate) struct CopyDataArgs {
    /// What to copy: a URL, the path of a SQLite file, or the name of a known database
    #[arg(value_name = "SOURCE")]
    pub(crate) from: String,
    /// Where to: postgres://user@host/database, redis://host, mongodb://host, clickhouse://host, elasticsearch://host or the path of a SQLite file
    #[arg(value_name = "TARGET")]
    pub(crate) to: String,
    /// Where the source's password lies, env:NAME or file:PATH
    #[arg(long = "password-from", alias = "password", value_name = "REFERENCE")]
    pub(crate) password: Option<ReferenceArg>,
    /// Where the target's password lies, env:NAME or file:PATH
    #[arg(long = "target-password-from", value_name = "REFERENCE")]
    pub(crate) target_password: Option<ReferenceArg>,
    /// What to call the source, when it is seen for the first time
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<DatabaseName>,
    /// Only these: a table, a schema or a pattern
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Replace what is there
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Look at both ends and say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Read at most so many bytes a second
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(crate) max_rate: Option<u64>,
    /// Do not read more slowly while the source answers late
    #[arg(long)]
    pub(crate) full_speed: bool,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}

impl CopyDataArgs {
    /// The source as other commands name a database.
    pub(crate) fn source(&self) -> DatabaseArg {
        DatabaseArg {
            database: self.from.clone(),
            password: self.password.clone(),
        }
    }
}

/// See [`Command::Diff`].
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The older backup
    #[arg(value_name = "BACKUP")]
    pub(crate) from: String,
    /// The newer backup
    #[arg(value_name = "BACKUP")]
    pub(crate) to: String,
    /// Show what is the same too
    #[arg(long)]
    pub(crate) all: bool,
}

/// The keep rules, as commands take them.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "What is kept")]
pub(crate) struct KeepArgs {
    /// Keep the newest N
    #[arg(long, value_name = "N")]
    pub(crate) keep_last: Option<u32>,
    /// Keep the newest of each of the last N hours that have one
    #[arg(long, value_name = "N")]
    pub(crate) keep_hourly: Option<u32>,
    /// Keep the newest of each of the last N days that have one
    #[arg(long, value_name = "N")]
    pub(crate) keep_daily: Option<u32>,
    /// Keep the newest of each of the last N weeks that have one
    #[arg(long, value_name = "N")]
    pub(crate) keep_weekly: Option<u32>,
    /// Keep the newest of each of the last N months that have one
    #[arg(long, value_name = "N")]
    pub(crate) keep_monthly: Option<u32>,
    /// Keep the newest of each of the last N years that have one
    #[arg(long, value_name = "N")]
    pub(crate) keep_yearly: Option<u32>,
    /// Keep all that are younger, such as 30d
    #[arg(long, value_name = "TIME", value_parser = duration_seconds)]
    pub(crate) keep_within: Option<u64>,
    /// Keep all that carry this tag
    #[arg(long, value_name = "WORD")]
    pub(crate) keep_tag: Vec<String>,
}

impl KeepArgs {
    /// The rules, if any was given.
    pub(crate) fn rules(&self) -> Option<KeepRules> {
        let rules = KeepRules {
            last: self.keep_last.unwrap_or(0),
            hourly: self.keep_hourly.unwrap_or(0),
            daily: self.keep_daily.unwrap_or(0),
            weekly: self.keep_weekly.unwrap_or(0),
            monthly: self.keep_monthly.unwrap_or(0),
            yearly: self.keep_yearly.unwrap_or(0),
            within_seconds: self.keep_within,
            tags: self.keep_tag.clone(),
        };
        (!rules.is_empty()).then_some(rules)
    }
}

/// See [`Command::Forget`].
#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// These, whatever the rules say
    #[arg(value_name = "BACKUP", conflicts_with = "database")]
    pub(crate) backups: Vec<String>,
    /// By the rules, those of this database only
    #[arg(long, value_name = "NAME")]
    pub(crate) database: Option<DatabaseName>,
    /// Only say what would be forgotten
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) keep: KeepArgs,
}

/// See [`Command::Hold`].
#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    #[command(flatten)]
    pub(crate) backup: BackupArg,
    /// Let it go
    #[arg(long)]
    pub(crate) release: bool,
}

/// See [`Command::Ping`].
#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArg,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}

/// See [`Command::Collect`].
#[derive(Debug, Args)]
pub(crate) struct CollectArgs {
    /// How long what nobody needs is kept, such as 24h
    #[arg(long, value_name = "TIME", value_parser = duration_seconds)]
    pub(crate) grace: Option<u64>,
    /// Only say what would be deleted
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,
}

/// See [`Command::Check`].
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Read the stored bytes too, all or a share of them, such as 5%
    #[arg(
        long,
        value_name = "PERCENT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "100",
        value_parser = percent
    )]
    pub(crate) read_data: Option<f64>,
}

/// See [`Command::Catalogue`].
#[derive(Debug, Subcommand)]
pub(crate) enum CatalogueCommand {
    /// Write the list anew from what the repository holds
    Rebuild,
}

/// See [`Command::Key`].
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// List the keys
    List,
    /// Let another key open the backups too
    Add(NewKeyArgs),
    /// Replace the key in use by another one
    Rotate(NewKeyArgs),
    /// Take a key away; the last one stays
    Remove {
        /// The key's id, as `fettler key list` shows it
        id: String,
    },
}

/// A key that is to be used from now on.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct NewKeyArgs {
    /// A key file; it is made when it is not there
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) new_key_file: Option<PathBuf>,
    /// A passphrase, as env:NAME or file:PATH
    #[arg(long, value_name = "REFERENCE")]
    pub(crate) new_passphrase: Option<ReferenceArg>,
}

/// See [`Command::Up`].
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Run no policies, only jobs
    #[arg(long)]
    pub(crate) no_scheduler: bool,
    /// Answer over HTTP too, at this address, such as 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
}

/// See [`Command::Api`].
#[derive(Debug, Args)]
pub(crate) struct ApiArgs {
    /// Where to listen [127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// The certificate chain for TLS, a PEM file [plain HTTP]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, requires = "tls_key")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// The certificate's key, a PEM file
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// See [`Command::Token`].
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, and show it once
    Add(TokenAddArgs),
    /// List tokens: those of `--tenant`, or all
    List,
    /// Take a token away
    Remove {
        /// Its name or its id
        token: String,
    },
}

/// See [`TokenCommand::Add`].
#[derive(Debug, Args)]
pub(crate) struct TokenAddArgs {
    /// What to call it
    pub(crate) name: TokenName,
    /// viewer, auditor, operator, restorer or admin
    #[arg(long)]
    pub(crate) role: Role,
    /// It sees all tenants, as an operator of the fleet does
    #[arg(long)]
    pub(crate) all_tenants: bool,
    /// For how long it is good, such as 90d
    #[arg(long, value_name = "TIME", value_parser = duration_seconds)]
    pub(crate) expires: Option<u64>,
}

/// See [`Command::Tenant`].
#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Add a tenant
    Add {
        /// Its name
        name: TenantId,
    },
    /// List tenants
    List,
    /// Show a tenant
    Show {
        /// Its name
        name: TenantId,
    },
    /// Change a tenant; its own settings stand in config/tenants/NAME.toml
    Edit {
        /// Its name
        name: TenantId,
        /// How many turns it has for each of another tenant's, from 0.001 to 1000
        #[arg(long, value_name = "N")]
        weight: Option<f64>,
        /// The highest priority that its jobs are given from now on
        #[arg(long, value_name = "LEVEL")]
        priority_ceiling: Option<PriorityArg>,
    },
    /// Remove a tenant that has nothing any more
    Remove {
        /// Its name
        name: TenantId,
    },
}

/// See [`Command::Database`].
#[derive(Debug, Subcommand)]
pub(crate) enum DatabaseCommand {
    /// Add a database
    Add(DatabaseAddArgs),
    /// List databases
    List,
    /// Show a database
    Show {
        /// Its name, id or URL
        name: String,
    },
    /// Change a database
    Edit(DatabaseEditArgs),
    /// Print what a role needs on the server, in the engine's own language; asks nobody
    GrantSql(GrantSqlArgs),
    /// Remove a database; its backups stay
    Remove {
        /// Its name, id or URL
        name: String,
    },
}

/// What a role is for, as commands take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PurposeArg {
    /// To read everything: backups, and the source of a copy
    Backup,
    /// To write: restores, and (with `prove`) the target of a copy
    Restore,
    /// To make, fill, read and remove sandboxes on this server
    Prove,
    /// To answer health checks
    Health,
    /// To answer an audit
    Audit,
    /// Remove what is old or abandoned, and put it back
    Cleanup,
    /// To see what there is to tune, and to tune it
    Tune,
    /// All of these
    All,
}

/// See [`DatabaseCommand::GrantSql`].
#[derive(Debug, Args)]
pub(crate) struct GrantSqlArgs {
    /// A URL, the path of a SQLite file, or the name of a known database
    #[arg(value_name = "DATABASE")]
    pub(crate) database: String,
    /// What the role is for
    #[arg(
        long = "for",
        value_enum,
        value_delimiter = ',',
        default_value = "backup",
        value_name = "PURPOSE"
    )]
    pub(crate) purposes: Vec<PurposeArg>,
    /// The name of the role
    #[arg(long, default_value = "fettler", value_name = "NAME")]
    pub(crate) role: String,
}

impl GrantSqlArgs {
    /// What the role is for, in a fixed order and each once.
    pub(crate) fn purposes(&self) -> Vec<Purpose> {
        let asked = |purpose: &Purpose| {
            self.purposes.iter().any(|one| {
                matches!(
                    (one, purpose),
                    (PurposeArg::All, _)
                        | (PurposeArg::Backup, Purpose::Backup)
                        | (PurposeArg::Restore, Purpose::Restore)
                        | (PurposeArg::Prove, Purpose::Prove)
                        | (PurposeArg::Health, Purpose::Health)
                        | (PurposeArg::Audit, Purpose::Audit)
                        | (PurposeArg::Cleanup, Purpose::Cleanup)
                        | (PurposeArg::Tune, Purpose::Tune)
                )
            })
        };
        Purpose::ALL.into_iter().filter(asked).collect()
    }
}

/// A database's own terms for the jobs about it.
#[derive(Debug, Default, Args)]
pub(crate) struct DatabaseTermsArgs {
    /// The hours in which jobs about it run that have none of their own, such as 22:00-04:00; `none` takes them away
    #[arg(long, value_name = "FROM-TO")]
    pub(crate) window: Option<String>,
    /// The IANA time zone of the hours; this machine's when not given
    #[arg(long, value_name = "ZONE", requires = "window")]
    pub(crate) time_zone: Option<String>,
    /// How many clients may be connected to its server when a long job on it begins; 0 for any number
    #[arg(long, value_name = "N")]
    pub(crate) max_connections: Option<u64>,
    /// How far its replicas may be behind, such as 30s; 0 for any time
    #[arg(long, value_name = "TIME", value_parser = duration_seconds)]
    pub(crate) max_lag: Option<u64>,
    /// How many milliseconds its server may take for an answer; 0 for any number
    #[arg(long, value_name = "MS")]
    pub(crate) max_latency: Option<u64>,
    /// A label that a worker must have to reach it, such as zone=dmz; `zone=` takes it away
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    pub(crate) reach: Vec<(String, String)>,
}

/// Where a database's proofs restore to.
#[derive(Debug, Default, Args)]
pub(crate) struct SandboxArgs {
    /// Where its proofs restore to: `automatic`, `source-server`, or postgres://user@host/database
    #[arg(long, value_name = "WHERE")]
    pub(crate) sandbox: Option<String>,
    /// Where the sandbox server's password lies, env:NAME or file:PATH
    #[arg(
        long = "sandbox-password-from",
        alias = "sandbox-password",
        value_name = "REFERENCE",
        requires = "sandbox"
    )]
    pub(crate) sandbox_password: Option<ReferenceArg>,
}

/// See [`DatabaseCommand::Add`].
#[derive(Debug, Args)]
pub(crate) struct DatabaseAddArgs {
    /// What to call it
    pub(crate) name: DatabaseName,
    /// postgres://user@host/database, redis://host, mongodb://host, clickhouse://host, elasticsearch://host or the path of a SQLite file
    pub(crate) url: String,
    /// Where the password lies, env:NAME or file:PATH
    #[arg(long = "password-from", alias = "password", value_name = "REFERENCE")]
    pub(crate) password: Option<ReferenceArg>,
    /// A label, such as zone=dmz
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    #[command(flatten)]
    pub(crate) terms: DatabaseTermsArgs,
}

/// See [`DatabaseCommand::Edit`].
#[derive(Debug, Args)]
pub(crate) struct DatabaseEditArgs {
    /// Its name, id or URL
    pub(crate) name: String,
    /// A new name
    #[arg(long, value_name = "NAME")]
    pub(crate) rename: Option<DatabaseName>,
    /// A new place
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Where the password lies, env:NAME or file:PATH
    #[arg(long = "password-from", alias = "password", value_name = "REFERENCE")]
    pub(crate) password: Option<ReferenceArg>,
    /// Take the password away
    #[arg(long, conflicts_with = "password")]
    pub(crate) no_password: bool,
    /// A label, such as zone=dmz; `zone=` takes it away
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    #[command(flatten)]
    pub(crate) terms: DatabaseTermsArgs,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

/// See [`Command::Policy`].
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Add a policy
    Add(PolicyAddArgs),
    /// List policies
    List,
    /// Show a policy, its next due times and what became of the last ones
    Show {
        /// Its name
        name: String,
    },
    /// Change a policy
    Edit(PolicyEditArgs),
    /// Remove a policy
    Remove {
        /// Its name
        name: String,
    },
    /// Say when policies are due next
    Next(PolicyNextArgs),
}

/// What a policy says beside what it does.
#[derive(Debug, Args)]
pub(crate) struct PolicyFields {
    /// The IANA time zone of the expression, such as Europe/Berlin
    #[arg(long, value_name = "ZONE")]
    pub(crate) time_zone: Option<String>,
    /// What happens with due times that were missed while nothing ran
    #[arg(long, value_name = "RULE")]
    pub(crate) catch_up: Option<CatchUpArg>,
    /// What happens when the last job still runs
    #[arg(long, value_name = "RULE")]
    pub(crate) overlap: Option<OverlapArg>,
    /// The hours in which its jobs may start, such as 22:00-04:00
    #[arg(long, value_name = "FROM-TO")]
    pub(crate) window: Option<String>,
    /// How long an attempt of its jobs may take before it is stopped and tried again
    #[arg(long, value_name = "TIME", value_parser = duration_seconds)]
    pub(crate) timeout: Option<u64>,
    /// Spread the start over so much time
    #[arg(long, value_name = "TIME", value_parser = duration_seconds)]
    pub(crate) jitter: Option<u64>,
    /// How urgent its jobs are
    #[arg(long, value_name = "LEVEL")]
    pub(crate) priority: Option<PriorityArg>,
    /// How often its backups are proven
    #[arg(long, value_name = "HOW OFTEN")]
    pub(crate) prove: Option<ProveArg>,
    /// A field of the kind's arguments, such as exclude='["log"]'; the value is JSON or text
    #[arg(long = "argument", value_name = "FIELD=VALUE", value_parser = label)]
    pub(crate) arguments: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) keep: KeepArgs,
}

/// See [`PolicyCommand::Add`].
#[derive(Debug, Args)]
pub(crate) struct PolicyAddArgs {
    /// What to call it; made of database and kind when not given
    pub(crate) name: Option<PolicyName>,
    /// The database that it is about, by name, id or URL
    #[arg(long, value_name = "DATABASE")]
    pub(crate) database: Option<String>,
    /// What is to be done
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: JobKindName,
    /// When: minute, hour, day of month, month, day of week
    #[arg(long, value_name = "EXPRESSION")]
    pub(crate) cron: String,
    /// Add it switched off
    #[arg(long)]
    pub(crate) paused: bool,
    #[command(flatten)]
    pub(crate) fields: PolicyFields,
}

/// See [`PolicyCommand::Edit`].
#[derive(Debug, Args)]
pub(crate) struct PolicyEditArgs {
    /// Its name
    pub(crate) name: String,
    /// A new name
    #[arg(long, value_name = "NAME")]
    pub(crate) rename: Option<PolicyName>,
    /// When: minute, hour, day of month, month, day of week
    #[arg(long, value_name = "EXPRESSION")]
    pub(crate) cron: Option<String>,
    /// Switch it off
    #[arg(long, conflicts_with = "resume")]
    pub(crate) pause: bool,
    /// Switch it on
    #[arg(long)]
    pub(crate) resume: bool,
    /// Keep all backups, whatever rules it had
    #[arg(long)]
    pub(crate) keep_all: bool,
    #[command(flatten)]
    pub(crate) fields: PolicyFields,
}

/// See [`PolicyCommand::Next`].
#[derive(Debug, Args)]
pub(crate) struct PolicyNextArgs {
    /// Its name; all policies when not given
    pub(crate) name: Option<String>,
    /// An expression instead of a policy
    #[arg(long, value_name = "EXPRESSION", conflicts_with = "name")]
    pub(crate) cron: Option<String>,
    /// The expression's time zone
    #[arg(long, value_name = "ZONE", requires = "cron", default_value = "UTC")]
    pub(crate) time_zone: String,
    /// How many times
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) count: usize,
}

macro_rules! value_enum {
    ($(#[$doc:meta])* $name:ident => $model:ident { $($(#[$inner:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, ValueEnum)]
        pub(crate) enum $name {
            $($(#[$inner])* $variant,)+
        }

        impl From<$name> for $model {
            fn from(given: $name) -> Self {
                match given {
                    $($name::$variant => Self::$variant,)+
                }
            }
        }
    };
}

value_enum! {
    /// See [`CatchUp`].
    CatchUpArg => CatchUp {
        /// Let them be
        Skip,
        /// Run once
        Once,
        /// Run each
        All,
    }
}
value_enum! {
    /// See [`Overlap`].
    OverlapArg => Overlap {
        /// Let the new one be
        Skip,
        /// Let the new one wait
        Queue,
        /// Cancel the old one
        Cancel,
    }
}
value_enum! {
    /// See [`Priority`].
    PriorityArg => Priority { Lowest, Low, Normal, High, Highest }
}
value_enum! {
    /// See [`SlotClass`].
    ClassArg => SlotClass {
        /// Minutes to hours
        Long,
        /// Seconds
        Short,
    }
}
value_enum! {
    /// See [`ProveEvery`].
    ProveArg => ProveEvery {
        /// Not by this policy
        Never,
        /// Each backup
        Backup,
        /// The first of each day
        Daily,
        /// The first of each week
        Weekly,
        /// The first of each month
        Monthly,
    }
}

/// See [`Command::Jobs`].
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<JobsCommand>,
    #[command(flatten)]
    pub(crate) list: JobsListArgs,
}

/// Which jobs are listed.
#[derive(Debug, Args)]
pub(crate) struct JobsListArgs {
    /// Also those that ended more than a day ago
    #[arg(long)]
    pub(crate) all: bool,
    /// Only those in this state
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Vec<JobState>,
    /// Only those of this kind
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Option<JobKindName>,
    /// Only those about this database
    #[arg(long, value_name = "NAME")]
    pub(crate) database: Option<String>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: usize,
}

/// See [`Command::Jobs`].
#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// Show a job with its attempts and its log
    Show(JobArg),
    /// Follow a job until it ends
    Watch(JobArg),
    /// Stop a job, or all that match
    Cancel(JobsCancelArgs),
    /// Do an ended job again, as a new one
    Retry(JobArg),
    /// Do all dead jobs again that match, each as a new one
    Replay(JobsMatchArgs),
    /// Give a job that waits another priority
    Priority {
        /// Its id, or a beginning or ending of it
        #[arg(value_name = "JOB")]
        job: String,
        /// The new priority
        #[arg(value_name = "LEVEL")]
        level: PriorityArg,
    },
}

/// See [`JobsCommand::Cancel`].
#[derive(Debug, Args)]
pub(crate) struct JobsCancelArgs {
    /// Its id, or a beginning or ending of it
    #[arg(value_name = "JOB", conflicts_with = "all_matching")]
    pub(crate) job: Option<String>,
    #[command(flatten)]
    pub(crate) matching: JobsMatchArgs,
}

/// Which jobs a command is about.
#[derive(Debug, Args)]
pub(crate) struct JobsMatchArgs {
    /// All of the tenant's that match the options below
    #[arg(long)]
    pub(crate) all_matching: bool,
    /// Only those in this state
    #[arg(long, value_name = "STATE", requires = "all_matching")]
    pub(crate) state: Vec<JobState>,
    /// Only those of this kind
    #[arg(long, value_name = "KIND", requires = "all_matching")]
    pub(crate) kind: Option<JobKindName>,
    /// Only those about this database
    #[arg(long, value_name = "NAME", requires = "all_matching")]
    pub(crate) database: Option<String>,
    /// Only those with this tag
    #[arg(long, value_name = "WORD", requires = "all_matching")]
    pub(crate) tag: Option<String>,
    /// Only say how many there are
    #[arg(long, short = 'n', requires = "all_matching")]
    pub(crate) dry_run: bool,
}

/// See [`Command::Limit`].
#[derive(Debug, Subcommand)]
pub(crate) enum LimitCommand {
    /// Set or change a limit
    Set {
        /// How many run at once
        #[arg(value_name = "N")]
        most: u64,
        #[command(flatten)]
        scope: LimitScopeArgs,
    },
    /// List all limits, with how many jobs run under each
    List,
    /// Take a limit away
    Remove {
        #[command(flatten)]
        scope: LimitScopeArgs,
    },
}

/// What a limit counts: the jobs of the tenant of `--tenant` when nothing else is named.
#[derive(Debug, Default, Args)]
#[group(multiple = false)]
pub(crate) struct LimitScopeArgs {
    /// Those about this database
    #[arg(long, value_name = "NAME")]
    pub(crate) database: Option<String>,
    /// Those about all databases of this server
    #[arg(
        id = "database_server",
        long = "database-server",
        value_name = "HOST:PORT"
    )]
    pub(crate) server: Option<String>,
    /// Those of this kind, whosever they are
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Option<JobKindName>,
    /// Those that take this slot, whosever they are: long or short
    #[arg(long, value_name = "CLASS")]
    pub(crate) class: Option<ClassArg>,
}

/// What a pause stops: the jobs of the tenant of `--tenant`, or all jobs, when nothing else is named.
#[derive(Debug, Default, Args)]
#[group(multiple = false)]
pub(crate) struct PauseScopeArgs {
    /// Those about this database
    #[arg(long, value_name = "NAME")]
    pub(crate) database: Option<String>,
    /// Those that this policy made
    #[arg(long, value_name = "NAME")]
    pub(crate) policy: Option<String>,
    /// Those of this kind, whosever they are
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Option<JobKindName>,
}

/// See [`Command::Pause`].
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    pub(crate) scope: PauseScopeArgs,
    /// What those who wait are told
    #[arg(long, value_name = "WORDS")]
    pub(crate) because: Option<String>,
    /// Only list what is paused
    #[arg(long, conflicts_with_all = ["database", "policy", "kind", "because"])]
    pub(crate) list: bool,
}

/// See [`Command::Resume`].
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) scope: PauseScopeArgs,
}

/// A job.
#[derive(Debug, Args)]
pub(crate) struct JobArg {
    /// Its id, or a beginning or ending of it
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
}

/// See [`Command::Kinds`].
#[derive(Debug, Args)]
pub(crate) struct KindsArgs {
    /// Only this one, with what it takes
    pub(crate) kind: Option<String>,
}

/// See [`Command::Preflight`].
#[derive(Debug, Args)]
pub(crate) struct PreflightArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArg,
    /// Leave out the rows of these tables
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
}

/// See [`Command::Config`].
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show all settings with where each comes from; secrets are hidden
    Show,
    /// Look for mistakes in all files, variables and options
    Check,
}

/// See [`Command::Completions`].
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// See [`Command::Worker`].
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// Run this job only, and end with it
    #[arg(long, value_name = "JOB")]
    pub(crate) only: Option<JobId>,
    /// A label, such as zone=dmz: databases that ask for it can be reached from here [worker.labels]
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// The attempt that another process has claimed for this one
    #[arg(long, value_name = "TOKEN", requires = "only", hide = true)]
    pub(crate) token: Option<i64>,
    #[command(flatten)]
    pub(crate) probes: ProbesArg,
}

/// See [`Command::Scheduler`].
#[derive(Debug, Args)]
pub(crate) struct SchedulerArgs {
    #[command(flatten)]
    pub(crate) probes: ProbesArg,
}

/// Where a role without an API answers an orchestrator.
#[derive(Debug, Default, Args)]
pub(crate) struct ProbesArg {
    /// Answer GET /healthz, /readyz and /metrics here, such as 127.0.0.1:9090
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
}
