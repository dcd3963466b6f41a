//! What the commands take that look at databases: `health`, `findings`, `checks`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use fettler_checks::Form;
use fettler_model::{Area, Engine, Severity, Timestamp};

use super::{DatabaseArg, SubmissionArgs};
use crate::units::moment_or_span;

/// `fettler health`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 nothing graver than `--fail-on`, 3 something is, 1 the look failed.
What is not a database's own fault but a missing permission is told as `not evaluable`, and never passes.")]
pub(crate) struct HealthArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArg,
    /// Only what is cheap enough for every minute
    #[arg(long, conflicts_with = "full")]
    pub(crate) basic: bool,
    /// All checks, which is what happens anyway
    #[arg(long)]
    pub(crate) full: bool,
    /// From which severity on the exit code says that something is wrong
    #[arg(long, value_name = "SEVERITY", default_value = "medium")]
    pub(crate) fail_on: Severity,
    /// Tell of each finding why it matters and how to fix it
    #[arg(long)]
    pub(crate) explain: bool,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}

/// `fettler findings`.
#[derive(Debug, Args)]
pub(crate) struct FindingsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<FindingsCommand>,
    #[command(flatten)]
    pub(crate) filter: FindingsFilterArgs,
}

/// Which findings.
#[derive(Debug, Clone, Args)]
pub(crate) struct FindingsFilterArgs {
    /// Only those of this database
    #[arg(long, value_name = "NAME")]
    pub(crate) database: Option<String>,
    /// Only those in these states: open, resolved, suppressed, not_evaluable [open]
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    pub(crate) state: Vec<StateArg>,
    /// Only those about this: health, security, performance, retention, compliance
    #[arg(long, value_name = "AREA")]
    pub(crate) area: Option<Area>,
    /// Only those at least so grave
    #[arg(long, value_name = "SEVERITY")]
    pub(crate) severity: Option<Severity>,
    /// Only those of checks whose names begin like this
    #[arg(long, value_name = "CHECK")]
    pub(crate) check: Option<String>,
    /// At most so many, the gravest
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) limit: usize,
}

/// A state of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum StateArg {
    /// Seen by the last look
    Open,
    /// Not seen any more
    Resolved,
    /// Set aside
    Suppressed,
    /// Could not be looked at
    NotEvaluable,
}

impl StateArg {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Resolved => "resolved",
            Self::Suppressed => "suppressed",
            Self::NotEvaluable => "not_evaluable",
        }
    }
}

/// A form of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FormArg {
    /// As Fettler itself has them
    Json,
    /// Open Cybersecurity Schema Framework, Compliance Finding (class 2003)
    Ocsf,
    /// Static Analysis Results Interchange Format 2.1.0
    Sarif,
    /// JUnit XML
    Junit,
    /// A page for people
    Html,
}

impl From<FormArg> for Form {
    fn from(form: FormArg) -> Self {
        match form {
            FormArg::Json => Self::Json,
            FormArg::Ocsf => Self::Ocsf,
            FormArg::Sarif => Self::Sarif,
            FormArg::Junit => Self::Junit,
            FormArg::Html => Self::Html,
        }
    }
}

/// What is done with findings.
#[derive(Debug, Subcommand)]
pub(crate) enum FindingsCommand {
    /// Set a finding aside: it costs no points and is not listed until its time is over
    Suppress(SuppressArgs),
    /// Take that back
    Unsuppress {
        /// The database
        #[arg(value_name = "DATABASE")]
        database: String,
        /// The finding
        #[arg(value_name = "KEY")]
        key: String,
    },
    /// Say how a finding came to be what it is
    History {
        /// The database
        #[arg(value_name = "DATABASE")]
        database: String,
        /// The finding
        #[arg(value_name = "KEY")]
        key: String,
    },
    /// Print findings in a form that other tools read
    Export {
        /// The form
        #[arg(value_name = "FORM")]
        form: FormArg,
        #[command(flatten)]
        filter: FindingsFilterArgs,
    },
    /// Say what differs between two looks
    Diff {
        /// The job of the older look, by its id or a beginning or ending of it
        #[arg(value_name = "JOB")]
        from: String,
        /// The job of the newer look
        #[arg(value_name = "JOB")]
        to: String,
    },
}

/// `fettler findings suppress`.
#[derive(Debug, Args)]
pub(crate) struct SuppressArgs {
    /// The database
    #[arg(value_name = "DATABASE")]
    pub(crate) database: String,
    /// The finding
    #[arg(value_name = "KEY")]
    pub(crate) key: String,
    /// Why, for those who ask later
    #[arg(long, value_name = "WHY")]
    pub(crate) because: String,
    /// Until when: a moment such as 2026-01-31T22:00:00Z, or a time from now such as 30d [for good]
    #[arg(long, value_name = "WHEN", value_parser = moment_or_span)]
    pub(crate) until: Option<Timestamp>,
}

/// `fettler checks`.
#[derive(Debug, Subcommand)]
pub(crate) enum ChecksCommand {
    /// List the checks: those that ship, and your own from the folder `checks` of this installation
    List {
        /// Only those of this engine
        #[arg(long, value_name = "ENGINE", value_parser = engine)]
        engine: Option<Engine>,
    },
    /// Say what a check asks, what it makes of the answer, and why
    Explain {
        /// The check
        #[arg(value_name = "CHECK")]
        check: String,
        /// Print its file, as a model for one of your own
        #[arg(long)]
        source: bool,
    },
    /// Try checks of your own before they are used: each on its own examples
    Test {
        /// The folder [checks in the folder of this installation]
        #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        folder: Option<PathBuf>,
    },
}

fn engine(text: &str) -> Result<Engine, String> {
    const ALL: [Engine; 6] = [
        Engine::Postgres,
        Engine::Sqlite,
        Engine::Redis,
        Engine::Mongodb,
        Engine::Clickhouse,
        Engine::Elasticsearch,
    ];
    ALL.into_iter()
        .find(|engine| engine.as_str() == text)
        .ok_or_else(|| format!("there are {}", ALL.map(Engine::as_str).join(", ")))
}
