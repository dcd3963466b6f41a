//! Named streams of bytes: what an engine writes a backup to and reads it from.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::EngineError;

/// How a stream is cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cut", rename_all = "snake_case")]
pub enum Cut {
    /// At places that the content decides: an insertion moves few cuts.
    Content,
    /// At multiples of a database page: for files whose pages change in place.
    Pages {
        /// Bytes a page.
        page_bytes: u32,
    },
}

/// What an engine says of a stream when its last byte is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamEnd {
    /// Rows in it.
    pub rows: u64,
    /// Says which state of the source this stream is: a later backup whose source still says the same
    /// takes the stream over unread.
    pub unchanged_marker: Option<String>,
}

/// One stream of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamFacts {
    /// Its name, unique in the backup, such as `table/16384/0003`.
    pub name: String,
    /// Bytes in it.
    pub bytes: u64,
    /// Rows in it.
    pub rows: u64,
}

/// Where a backup's streams go. Streams may be written at the same time.
#[async_trait]
pub trait StreamSink: Send + Sync {
    /// Begins a stream. A name may be used once.
    async fn open(&self, name: &str, cut: Cut) -> Result<Box<dyn StreamWriter>, EngineError>;

    /// Takes the parent's stream of this name over unread if it ended with this marker, and says
    /// what is in it; nothing when it must be read.
    async fn take_over(
        &self,
        name: &str,
        unchanged_marker: &str,
    ) -> Result<Option<StreamFacts>, EngineError>;

    /// The marker with which the parent's stream of this name ended, where the parent's word counts. An engine may
    /// have put into it what it wants to know again of a stream that it takes over unread.
    async fn parent_marker(&self, name: &str) -> Result<Option<String>, EngineError> {
        let _no_parent_is_known = name;
        Ok(None)
    }
}

/// A stream that is being written. Dropping it without [`StreamWriter::finish`] leaves no stream.
#[async_trait]
pub trait StreamWriter: Send {
    /// Adds bytes; waits while the pipeline behind is full. Buffers of 64 KiB and more keep the cost of
    /// the call out of sight.
    async fn write(&mut self, bytes: Bytes) -> Result<(), EngineError>;

    /// Ends the stream.
    async fn finish(self: Box<Self>, end: StreamEnd) -> Result<StreamFacts, EngineError>;
}

/// The bytes of a stream, authenticated before they are handed out.
pub type StreamReader = BoxStream<'static, Result<Bytes, EngineError>>;

/// Where a backup's streams come from. Streams may be read at the same time.
#[async_trait]
pub trait StreamSource: Send + Sync {
    /// All streams of the backup.
    fn streams(&self) -> &[StreamFacts];

    /// Reads a stream from its beginning.
    async fn read(&self, name: &str) -> Result<StreamReader, EngineError>;
}
