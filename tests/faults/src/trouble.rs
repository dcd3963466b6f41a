//! What keeps the harness itself from working. A promise of Fettler's that is broken is no such thing: that is a
//! [`crate::check::Violation`].

use std::path::PathBuf;

use fettler_test_servers::ServerError;

/// A result with the error of this crate.
pub type Result<T, E = Trouble> = std::result::Result<T, E>;

/// The harness cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// A server of the tests could not be started or asked.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The operating system refused something.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A command of Fettler failed that no fault touches.
    #[error("`fettler {command}` failed with {code}: {said}")]
    Command {
        /// Its arguments.
        command: String,
        /// Its exit code.
        code: i32,
        /// What it told.
        said: String,
    },
    /// Something answered what the harness cannot read.
    #[error("{what} cannot be read: {why}")]
    Unreadable {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
    /// The fleet did not start.
    #[error("{what} within {seconds} s\n{log}")]
    NotReady {
        /// What did not happen.
        what: String,
        /// In which time.
        seconds: u64,
        /// The end of the logs.
        log: String,
    },
    /// A program that the faults need is missing.
    #[error("{program} is missing (looked for it at {}); run tests/servers/install.sh", .looked_at.display())]
    Missing {
        /// What.
        program: String,
        /// Where.
        looked_at: PathBuf,
    },
}

impl Trouble {
    /// Turns an I/O error into one that says what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Says that something answered nonsense.
    pub(crate) fn unreadable(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Unreadable {
            what: what.into(),
            why: why.to_string(),
        }
    }
}
