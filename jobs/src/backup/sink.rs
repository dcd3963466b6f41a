//! Where an engine's streams meet the repository.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fettler_engine::{Cut, EngineError, StreamEnd, StreamFacts, StreamSink, StreamWriter};
use fettler_model::Problem;
use fettler_repository::{BackupWriter, Chunking, StreamRecord};

/// A backup in the repository, as an engine writes to it.
pub(crate) struct RepositorySink {
    writer: Arc<BackupWriter>,
    /// Whether the parent is of the same server, timeline and file, so that its word on what is
    /// unchanged counts (rule 24).
    trusts_parent: bool,
}

impl RepositorySink {
    pub(crate) const fn new(writer: Arc<BackupWriter>, trusts_parent: bool) -> Self {
        Self {
            writer,
            trusts_parent,
        }
    }
}

fn facts(record: StreamRecord) -> StreamFacts {
    StreamFacts {
        name: record.name,
        bytes: record.bytes,
        rows: record.rows,
    }
}

#[async_trait]
impl StreamSink for RepositorySink {
    async fn open(&self, name: &str, cut: Cut) -> Result<Box<dyn StreamWriter>, EngineError> {
        let chunking = match cut {
            Cut::Content => Chunking::Content,
            Cut::Pages { page_bytes } => Chunking::Pages { page_bytes },
        };
        let stream = self
            .writer
            .open_stream(name, chunking)
            .map_err(Problem::from)?;
        Ok(Box::new(RepositoryStream(stream)))
    }

    async fn take_over(
        &self,
        name: &str,
        unchanged_marker: &str,
    ) -> Result<Option<StreamFacts>, EngineError> {
        if !self.trusts_parent {
            return Ok(None);
        }
        let taken = self
            .writer
            .take_over(name, unchanged_marker)
            .await
            .map_err(Problem::from)?;
        Ok(taken.map(facts))
    }

    async fn parent_marker(&self, name: &str) -> Result<Option<String>, EngineError> {
        let marker = self.writer.parent_marker(name);
        Ok(marker.filter(|_| self.trusts_parent).map(str::to_owned))
    }
}

struct RepositoryStream(fettler_repository::StreamWriter);

#[async_trait]
impl StreamWriter for RepositoryStream {
    async fn write(&mut self, bytes: Bytes) -> Result<(), EngineError> {
        self.0
            .write(bytes)
            .await
            .map_err(|error| EngineError::Outside(error.into()))
    }

    async fn finish(self: Box<Self>, end: StreamEnd) -> Result<StreamFacts, EngineError> {
        let end = fettler_repository::StreamEnd {
            rows: end.rows,
            unchanged_marker: end.unchanged_marker,
        };
        let record = self.0.finish(end).await.map_err(Problem::from)?;
        Ok(facts(record))
    }
}
