//! What `fettler audit` takes.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use fettler_model::Severity;

use super::{DatabaseArg, SubmissionArgs};

/// `fettler audit`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 nothing graver than `--fail-on`, 3 something is, 1 the audit failed.
A check that lacks a permission is told as `could not be made`, and never passes.
The first audit of a database keeps its roles, grants, settings and schema; later ones tell what is not as it was.")]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArg,
    /// From which severity on the exit code says that something is wrong
    #[arg(long, value_name = "SEVERITY", default_value = "medium")]
    pub(crate) fail_on: Severity,
    /// Tell of each finding why it matters and how to fix it, and of each check that could not be made why
    #[arg(long)]
    pub(crate) explain: bool,
    /// Take a change for well: the key of its finding, a check such as postgres.drift_roles, or `all`
    #[arg(long, value_name = "KEY")]
    pub(crate) accept: Vec<String>,
    /// Compare with this file instead of what was kept; it is written where it is not there, and by --accept
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "detach")]
    pub(crate) baseline: Option<PathBuf>,
    /// A newer list of releases, their ends of life and vulnerabilities
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) releases: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) submission: SubmissionArgs,
}
