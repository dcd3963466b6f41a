//! The changes of a database after a backup: where an engine that archives them puts them, and what it gets to
//! bring a restored backup to a moment.

use async_trait::async_trait;
use bytes::Bytes;
use fettler_model::{LogMoment, LogPosition, LogSpan, LogUnit, Timestamp};

use crate::{EngineError, StreamReader};

/// Changes in the server's order, and what is known of their times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeBatch {
    /// Whose order (see [`LogPosition`]).
    pub history: String,
    /// The offset of the first byte; that of the last change before, where offsets are numbers.
    pub begin: u64,
    /// The number of the last change, where offsets are numbers that changes bear, and not bytes.
    pub last_number: Option<u64>,
    /// Whether nothing lies between what was archived before and this.
    pub continues: bool,
    /// The changes, as the server sent them. They may be cut anywhere where offsets are bytes, and are whole otherwise.
    pub bytes: Bytes,
    /// Moments whose offsets lie in the batch or at its end, in order.
    pub moments: Vec<LogMoment>,
}

impl ChangeBatch {
    /// The offset behind the last byte, or the number of the last change.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.last_number
            .unwrap_or(self.begin + self.bytes.len() as u64)
    }

    /// What offsets count.
    #[must_use]
    pub fn unit(&self) -> LogUnit {
        match self.last_number {
            Some(_) => LogUnit::Numbers,
            None => LogUnit::Bytes,
        }
    }

    /// What it is, as a log has it.
    #[must_use]
    pub fn span(&self, continues: bool) -> LogSpan {
        LogSpan::new(
            self.history.clone(),
            self.begin,
            self.end(),
            continues,
            &self.moments,
        )
        .counted_in(self.unit())
    }
}

/// Where archiving begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveStart {
    /// The end of what is archived; the server is asked for what comes next.
    pub end: Option<LogPosition>,
    /// What the newest backup needs, where the server's answer to the first is that it does not have that any more.
    pub base: Option<LogPosition>,
    /// The last moment that is archived: those that follow lie behind it.
    pub last_moment: Option<LogMoment>,
}

/// Where changes go.
#[async_trait]
pub trait ChangeSink: Send + Sync {
    /// Adds a batch. It is durable when this returns, and may then be acknowledged to the server.
    ///
    /// # Errors
    ///
    /// [`EngineError::Stopped`] or [`EngineError::Outside`] when another attempt archives by now, or the store refuses.
    async fn append(&self, batch: ChangeBatch) -> Result<(), EngineError>;

    /// Told now and then how far everything is archived.
    async fn is_at(&self, _moment: Timestamp) {}

    /// Told what a person should know of while it is archived.
    async fn warn(&self, _what: &str) {}
}

/// Where the changes between a backup and a moment come from.
#[async_trait]
pub trait ChangeSource: Send + Sync {
    /// The offset at which the changes begin: where those begin that the backup needs. Where offsets are numbers, some before it
    /// may come too, and some behind the end.
    fn begin(&self) -> u64;

    /// The offset behind the last change that is to be played.
    fn end(&self) -> u64;

    /// The changes from the first on.
    async fn read(&self) -> Result<StreamReader, EngineError>;
}
