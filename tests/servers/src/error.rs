//! What can go wrong when a test's server is started or used, worded for whoever reads a failed test: what happened, the
//! end of the server's own log, and what to do.

use std::path::PathBuf;
use std::time::Duration;

/// A server could not be started or used.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A program is not installed. Never a reason to skip a test.
    #[error("{program} is not installed (looked for it at {}); run tests/servers/install.sh", list(.looked_at))]
    NotInstalled {
        /// The program, as a person calls it.
        program: String,
        /// Where it was looked for.
        looked_at: Vec<PathBuf>,
    },

    /// A server ended or did not become ready.
    #[error("{server} did not start: {why}\n--- the end of its log ---\n{log}")]
    Start {
        /// The server, as a person calls it.
        server: String,
        /// What was seen.
        why: String,
        /// The last lines of its log.
        log: String,
    },

    /// A program such as `psql` reported a failure.
    #[error("{program} failed ({status}): {stderr}")]
    Command {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// What it wrote to standard error.
        stderr: String,
    },

    /// A condition did not come true in time.
    #[error("waited {after:?} for {what}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },

    /// What was asked for cannot be had of this server.
    #[error("{0}")]
    Unsupported(String),

    /// The operating system refused something.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl ServerError {
    /// Turns an I/O error into one that says what was tried: `.map_err(ServerError::io("make the folder"))`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}
