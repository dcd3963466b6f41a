//! A session in which statements are tried, timed and run one by one: what tuning works with.

use async_trait::async_trait;
use thiserror::Error;

use crate::EngineError;

/// Why a statement has no result.
#[derive(Debug, Error)]
pub enum StatementError {
    /// The server refuses it; the session can be used on.
    #[error("{message} ({code})")]
    Refused {
        /// The server's own code, such as PostgreSQL's SQLSTATE.
        code: String,
        /// Its words.
        message: String,
    },
    /// There is no session any more.
    #[error(transparent)]
    Lost(#[from] EngineError),
}

impl StatementError {
    /// The error for whoever cannot go on without the statement.
    #[must_use]
    pub fn doing(self, doing: &str) -> EngineError {
        match self {
            Self::Refused { code, message } => EngineError::Database {
                what: format!("{doing}: {message} ({code})"),
                transient: false,
            },
            Self::Lost(error) => error,
        }
    }
}

/// One line of a result, each value as the server writes it.
pub type Line = Vec<Option<String>>;

/// A session of its own on a database, under the attempt's name.
#[async_trait]
pub trait Workbench: Send {
    /// Runs one statement, outside any transaction, and gives its lines.
    ///
    /// # Errors
    ///
    /// Those of [`StatementError`].
    async fn run(&mut self, statement: &str) -> Result<Vec<Line>, StatementError>;

    /// Ends the session in good order.
    async fn close(self: Box<Self>);
}
