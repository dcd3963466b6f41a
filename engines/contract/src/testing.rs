//! What tests of engines need of the world around them, in memory: streams, checkpoints, a record of what
//! was made outside.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use fettler_model::{AttemptToken, JobId, LogMoment, LogSpan, LogUnit, Plan};
use futures::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use crate::{
    Artefact, Artefacts, AttemptName, Checkpoints, Cut, EngineContext, EngineError, ProgressMeter,
    RateLimit, StreamEnd, StreamFacts, StreamReader, StreamSink, StreamSource, StreamWriter,
    Unfenced,
};

/// A stream that was finished.
#[derive(Clone, Debug)]
pub struct MemoryStream {
    /// What was said of it.
    pub facts: StreamFacts,
    /// How it was to be cut.
    pub cut: Cut,
    /// What was said at its end.
    pub end: StreamEnd,
    /// Its bytes, in the buffers in which they came.
    pub buffers: Vec<Bytes>,
}

impl MemoryStream {
    /// Its bytes in one piece.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.buffers.concat()
    }
}

/// Changes a buffer on its way into the stream of a name: for readers that are broken on purpose (rule 30).
pub type Tamper = Arc<dyn Fn(&str, u64, Bytes) -> Bytes + Send + Sync>;

/// Keeps all streams in memory; takes nothing over but what `parent` holds.
#[derive(Clone, Default)]
pub struct MemorySink {
    streams: Arc<Mutex<BTreeMap<String, MemoryStream>>>,
    /// Streams that may be taken over.
    pub parent: BTreeMap<String, MemoryStream>,
    /// What happens to each buffer, which is given with its stream's name and its offset.
    pub tamper: Option<Tamper>,
}

impl std::fmt::Debug for MemorySink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemorySink").finish_non_exhaustive()
    }
}

impl MemorySink {
    /// A sink behind a reader that is broken on purpose (rule 30).
    #[must_use]
    pub fn behind(tamper: Tamper) -> Self {
        Self {
            tamper: Some(tamper),
            ..Self::default()
        }
    }

    /// The finished streams.
    #[must_use]
    pub fn streams(&self) -> BTreeMap<String, MemoryStream> {
        self.streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The backup that was written, for a restore.
    #[must_use]
    pub fn source(&self) -> MemorySource {
        MemorySource::new(self.streams())
    }
}

#[async_trait]
impl StreamSink for MemorySink {
    async fn open(&self, name: &str, cut: Cut) -> Result<Box<dyn StreamWriter>, EngineError> {
        Ok(Box::new(MemoryWriter {
            sink: self.clone(),
            stream: MemoryStream {
                facts: StreamFacts {
                    name: name.to_owned(),
                    bytes: 0,
                    rows: 0,
                },
                cut,
                end: StreamEnd::default(),
                buffers: Vec::new(),
            },
        }))
    }

    async fn take_over(
        &self,
        name: &str,
        unchanged_marker: &str,
    ) -> Result<Option<StreamFacts>, EngineError> {
        let Some(stream) = self
            .parent
            .get(name)
            .filter(|stream| stream.end.unchanged_marker.as_deref() == Some(unchanged_marker))
        else {
            return Ok(None);
        };
        self.streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), stream.clone());
        Ok(Some(stream.facts.clone()))
    }

    async fn parent_marker(&self, name: &str) -> Result<Option<String>, EngineError> {
        let stream = self.parent.get(name);
        Ok(stream.and_then(|stream| stream.end.unchanged_marker.clone()))
    }
}

struct MemoryWriter {
    sink: MemorySink,
    stream: MemoryStream,
}

#[async_trait]
impl StreamWriter for MemoryWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), EngineError> {
        let facts = &mut self.stream.facts;
        let bytes = match &self.sink.tamper {
            Some(tamper) => tamper(&facts.name, facts.bytes, bytes),
            None => bytes,
        };
        facts.bytes += bytes.len() as u64;
        self.stream.buffers.push(bytes);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, end: StreamEnd) -> Result<StreamFacts, EngineError> {
        self.stream.facts.rows = end.rows;
        self.stream.end = end;
        let facts = self.stream.facts.clone();
        let earlier = self
            .sink
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(facts.name.clone(), self.stream);
        assert!(earlier.is_none(), "stream {} was written twice", facts.name);
        Ok(facts)
    }
}

/// Streams in memory.
#[derive(Clone, Debug)]
pub struct MemorySource {
    facts: Vec<StreamFacts>,
    streams: BTreeMap<String, MemoryStream>,
    /// A read fails after so many bytes, as if the store had gone away.
    pub fails_after: Option<u64>,
}

impl MemorySource {
    /// A backup of these streams.
    #[must_use]
    pub fn new(streams: BTreeMap<String, MemoryStream>) -> Self {
        Self {
            facts: streams
                .values()
                .map(|stream| stream.facts.clone())
                .collect(),
            streams,
            fails_after: None,
        }
    }
}

#[async_trait]
impl StreamSource for MemorySource {
    fn streams(&self) -> &[StreamFacts] {
        &self.facts
    }

    async fn read(&self, name: &str) -> Result<StreamReader, EngineError> {
        let stream = self
            .streams
            .get(name)
            .ok_or_else(|| EngineError::Unusable {
                what: format!("there is no stream {name}"),
                remedy: String::new(),
            })?;
        let mut left = self.fails_after.unwrap_or(u64::MAX);
        let buffers = stream.buffers.clone();
        Ok(stream::iter(buffers)
            .map(move |bytes| {
                let count = bytes.len() as u64;
                if count > left {
                    return Err(EngineError::Unreachable {
                        server: "the store".to_owned(),
                        what: "gone away on purpose".to_owned(),
                    });
                }
                left -= count;
                Ok(bytes)
            })
            .boxed())
    }
}

/// What attempts of one job leave for each other, in memory.
#[derive(Debug, Default)]
pub struct MemoryRecord {
    checkpoint: Mutex<Option<serde_json::Value>>,
    artefacts: Mutex<Vec<Artefact>>,
}

impl MemoryRecord {
    /// Forgets the checkpoint: what follows is another job's.
    pub fn begin_job(&self) {
        *self
            .checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The last checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> Option<serde_json::Value> {
        self.checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What was recorded and is not said to be gone.
    #[must_use]
    pub fn artefacts(&self) -> Vec<Artefact> {
        self.artefacts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[async_trait]
impl Checkpoints for MemoryRecord {
    async fn load(&self) -> Result<Option<serde_json::Value>, EngineError> {
        Ok(self.checkpoint())
    }

    async fn save(&self, checkpoint: serde_json::Value) -> Result<(), EngineError> {
        *self
            .checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(checkpoint);
        Ok(())
    }
}

#[async_trait]
impl Artefacts for MemoryRecord {
    async fn record(&self, artefact: &Artefact) -> Result<(), EngineError> {
        self.removed(artefact).await?;
        self.artefacts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(artefact.clone());
        Ok(())
    }

    async fn removed(&self, artefact: &Artefact) -> Result<(), EngineError> {
        self.artefacts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|recorded| {
                (recorded.engine, &recorded.kind, &recorded.name)
                    != (artefact.engine, &artefact.kind, &artefact.name)
            });
        Ok(())
    }

    async fn left(&self) -> Result<Vec<Artefact>, EngineError> {
        let mut left = self.artefacts();
        left.retain(|artefact| artefact.until_job_ends);
        Ok(left)
    }
}

/// What the engine's calls are given in the attempt of this number; attempts with the same record are of
/// one job.
#[must_use]
pub fn context(
    job: JobId,
    attempt_number: u32,
    scratch: &Path,
    record: &Arc<MemoryRecord>,
) -> EngineContext {
    EngineContext {
        attempt: AttemptName {
            job,
            token: AttemptToken::new(attempt_number, 0x00c0_ffee),
        },
        stop: CancellationToken::new(),
        progress: Arc::new(ProgressMeter::default()),
        fence: Arc::new(Unfenced),
        artefacts: record.clone(),
        checkpoints: record.clone(),
        fingerprint_key: [7; 32],
        rate: Arc::new(RateLimit::default()),
        scratch: scratch.to_path_buf(),
        kept: scratch.to_path_buf(),
        parallel: 2,
    }
}

/// A log of changes in memory, for engines that archive.
#[derive(Debug, Default)]
pub struct MemoryLog {
    batches: Mutex<Vec<crate::ChangeBatch>>,
}

#[async_trait]
impl crate::ChangeSink for MemoryLog {
    async fn append(&self, batch: crate::ChangeBatch) -> Result<(), EngineError> {
        self.batches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(batch);
        Ok(())
    }
}

impl MemoryLog {
    /// What was archived so far.
    #[must_use]
    pub fn batches(&self) -> Vec<crate::ChangeBatch> {
        self.batches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The batches as a timeline sees them, and their moments.
    #[must_use]
    pub fn spans(&self) -> (Vec<LogSpan>, Vec<Vec<LogMoment>>) {
        self.batches()
            .into_iter()
            .map(|batch| {
                let span = batch.span(batch.continues);
                (span, batch.moments)
            })
            .unzip()
    }

    /// The changes that a plan names.
    #[must_use]
    pub fn changes(&self, plan: &Plan) -> MemoryChanges {
        let bytes: Vec<u8> = self.batches()[plan.spans.clone()]
            .iter()
            .flat_map(|batch| {
                let skip = match batch.unit() {
                    LogUnit::Bytes => plan.begin.saturating_sub(batch.begin),
                    LogUnit::Numbers => 0,
                };
                batch
                    .bytes
                    .slice(usize::try_from(skip).unwrap_or(0).min(batch.bytes.len())..)
            })
            .collect();
        MemoryChanges {
            begin: plan.begin,
            end: plan.end,
            bytes: bytes.into(),
        }
    }
}

/// Changes in memory.
#[derive(Clone, Debug)]
pub struct MemoryChanges {
    begin: u64,
    end: u64,
    bytes: Bytes,
}

#[async_trait]
impl crate::ChangeSource for MemoryChanges {
    fn begin(&self) -> u64 {
        self.begin
    }

    fn end(&self) -> u64 {
        self.end
    }

    async fn read(&self) -> Result<StreamReader, EngineError> {
        // In small pieces, so that commands are cut.
        let pieces: Vec<Result<Bytes, EngineError>> = self
            .bytes
            .chunks(1000)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        Ok(stream::iter(pieces).boxed())
    }
}
