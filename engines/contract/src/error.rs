//! What can go wrong between Fettler and a database, sorted by what it means.

use std::time::Duration;

use fettler_model::{ErrorClass, Problem};
use thiserror::Error;

/// An error of an engine. Messages hold no secrets and no rows.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The server does not answer, or the connection was lost.
    #[error("{server} cannot be reached: {what}")]
    Unreachable {
        /// Which server.
        server: String,
        /// What the attempt to reach it said.
        what: String,
    },
    /// The server refuses the user or the password.
    #[error("{server} refuses the login: {what}")]
    LoginRefused {
        /// Which server.
        server: String,
        /// What it said.
        what: String,
    },
    /// A right, a tool, a version or a setting is missing.
    #[error("{what}")]
    Missing {
        /// A stable name of what is missing, such as `pg_dump`.
        code: &'static str,
        /// What is missing, for what.
        what: String,
        /// How to get it.
        remedy: String,
    },
    /// The target holds something already.
    #[error("{what}")]
    NotEmpty {
        /// What is there.
        what: String,
        /// How to go on.
        remedy: String,
    },
    /// The disk of the target, or the scratch folder, is too small.
    #[error("{place} has {free_bytes} bytes free, and {needed_bytes} are needed")]
    NoSpace {
        /// Where.
        place: String,
        /// Bytes free.
        free_bytes: u64,
        /// Bytes needed.
        needed_bytes: u64,
    },
    /// The database is busy; not an error of anybody's.
    #[error("{what}")]
    Busy {
        /// What was found.
        what: String,
        /// How long to wait.
        wait: Duration,
    },
    /// The database said no in the middle of the work.
    #[error("{what}")]
    Database {
        /// What was done and what the database said.
        what: String,
        /// Whether trying again may help.
        transient: bool,
    },
    /// The backup cannot be used as it is.
    #[error("{what}")]
    Unusable {
        /// What is wrong with it.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The work was asked to stop.
    #[error("stopped")]
    Stopped,
    /// Something beside the database failed: the sink, the source, the fence, a checkpoint.
    #[error(transparent)]
    Outside(#[from] Problem),
    /// A file or a process of this machine failed.
    #[error("{what}: {source}")]
    Local {
        /// What was done.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl EngineError {
    /// An error of this machine's files or processes.
    pub fn local(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Local {
            what: what.into(),
            source,
        }
    }

    /// What it means for the attempt.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unreachable { .. } => ErrorClass::Transient,
            Self::Database { transient, .. } if *transient => ErrorClass::Transient,
            Self::Busy { .. } => ErrorClass::Snooze,
            Self::Stopped => ErrorClass::Cancelled,
            Self::Outside(problem) => problem.class,
            Self::Local { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::PermissionDenied => {
                    ErrorClass::Permanent
                }
                _ => ErrorClass::Transient,
            },
            _ => ErrorClass::Permanent,
        }
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Self {
        let class = error.class();
        let what = error.to_string();
        let (code, remedy) = match error {
            EngineError::Outside(problem) => return problem,
            EngineError::Unreachable { .. } => (
                "engine.unreachable",
                "check host, port and firewall, and that the server runs".to_owned(),
            ),
            EngineError::LoginRefused { .. } => (
                "engine.login_refused",
                "check the user, the password (or the reference to it) and the server's access rules"
                    .to_owned(),
            ),
            EngineError::Missing { code, remedy, .. } => {
                return Self::permanent(format!("engine.missing.{code}"), what, remedy);
            }
            EngineError::NotEmpty { remedy, .. } => ("engine.not_empty", remedy),
            EngineError::NoSpace { .. } => (
                "engine.no_space",
                "free some space, or name another place".to_owned(),
            ),
            EngineError::Busy { wait, .. } => return Self::snooze("engine.busy", what, wait),
            EngineError::Database { .. } => ("engine.database", String::new()),
            EngineError::Unusable { remedy, .. } => ("engine.unusable_backup", remedy),
            EngineError::Stopped => return Self::cancelled(),
            EngineError::Local { .. } => ("engine.local", String::new()),
        };
        Self::new(class, code, what, remedy)
    }
}
