//! The archive of a cleanup as records: each thing that goes by its key and its content, in segments, so that a removal that was
//! interrupted need not read all of it again. Engines whose own format serves (PostgreSQL's COPY) do without.

use bytes::{Buf as _, Bytes, BytesMut};
use fettler_model::{Fingerprint, ObjectFacts, ObjectKind};
use futures::StreamExt as _;

use crate::{
    Cut, EngineContext, EngineError, RowHasher, StreamEnd, StreamReader, StreamSink, StreamSource,
    StreamWriter,
};

/// How records are written, as facts name it.
pub const RECORD_FORMAT: &str = "records-1";

/// Bytes of a segment.
const SEGMENT_BYTES: u64 = 8 << 20;
/// Bytes that are given to a stream at once.
const BUFFER_BYTES: usize = 256 << 10;
/// Two lengths of 32 bits.
const HEAD_BYTES: usize = 8;

/// A thing as the archive holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// By what it is found again.
    pub key: Bytes,
    /// What it was.
    pub content: Bytes,
}

impl Record {
    /// Its bytes in the archive.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (HEAD_BYTES + self.key.len() + self.content.len()) as u64
    }
}

/// Writes records.
pub struct RecordWriter<'a> {
    sink: &'a dyn StreamSink,
    hasher: RowHasher,
    print: Fingerprint,
    name: String,
    prefix: String,
    number: usize,
    open: Option<Box<dyn StreamWriter>>,
    buffer: BytesMut,
    segment_rows: u64,
    segment_bytes: u64,
    bytes: u64,
}

impl std::fmt::Debug for RecordWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordWriter")
            .field("name", &self.name)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl<'a> RecordWriter<'a> {
    /// Begins the records of one thing, such as a table, which is the `number`th of the archive.
    #[must_use]
    pub fn new(
        context: &EngineContext,
        sink: &'a dyn StreamSink,
        name: &str,
        number: usize,
    ) -> Self {
        Self {
            sink,
            hasher: RowHasher::new(&context.fingerprint_key),
            print: Fingerprint::empty(),
            name: name.to_owned(),
            prefix: record_prefix(number),
            number: 0,
            open: None,
            buffer: BytesMut::new(),
            segment_rows: 0,
            segment_bytes: 0,
            bytes: 0,
        }
    }

    /// Adds a record.
    ///
    /// # Errors
    ///
    /// Those of the sink, and [`EngineError::Unusable`] for what is larger than 4 GiB.
    pub async fn put(&mut self, key: &[u8], content: &[u8]) -> Result<(), EngineError> {
        let (Ok(key_bytes), Ok(content_bytes)) =
            (u32::try_from(key.len()), u32::try_from(content.len()))
        else {
            return Err(EngineError::Unusable {
                what: format!("{} holds something larger than 4 GiB", self.name),
                remedy: "remove it by hand".to_owned(),
            });
        };
        let mut row = self.hasher.begin();
        for part in [
            &key_bytes.to_le_bytes()[..],
            &content_bytes.to_le_bytes(),
            key,
            content,
        ] {
            row.update(part);
            self.buffer.extend_from_slice(part);
        }
        row.add(&mut self.print);
        let bytes = (HEAD_BYTES + key.len() + content.len()) as u64;
        self.segment_rows += 1;
        self.segment_bytes += bytes;
        self.bytes += bytes;
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush().await?;
        }
        if self.segment_bytes >= SEGMENT_BYTES {
            self.close().await?;
        }
        Ok(())
    }

    /// Records so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.print.rows
    }

    async fn flush(&mut self) -> Result<(), EngineError> {
        if self.open.is_none() {
            let name = format!("{}{:06}", self.prefix, self.number);
            self.open = Some(self.sink.open(&name, Cut::Content).await?);
        }
        if let Some(open) = &mut self.open {
            open.write(self.buffer.split().freeze()).await?;
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), EngineError> {
        if self.segment_rows == 0 {
            return Ok(());
        }
        self.flush().await?;
        if let Some(open) = self.open.take() {
            open.finish(StreamEnd {
                rows: self.segment_rows,
                unchanged_marker: None,
            })
            .await?;
        }
        self.number += 1;
        (self.segment_rows, self.segment_bytes) = (0, 0);
        Ok(())
    }

    /// Ends the records; says what they were. `counted` is the server's own count at the same moment, where there is one.
    ///
    /// # Errors
    ///
    /// Those of the sink; a transient [`EngineError::Database`] where the server counts another number.
    pub async fn finish(mut self, counted: Option<u64>) -> Result<ObjectFacts, EngineError> {
        self.close().await?;
        if let Some(counted) = counted.filter(|counted| *counted != self.print.rows) {
            return Err(EngineError::Database {
                what: format!(
                    "archiving {}: {} rows were read where the server counts {counted}",
                    self.name, self.print.rows
                ),
                transient: true,
            });
        }
        Ok(ObjectFacts {
            kind: ObjectKind::Table,
            name: self.name,
            fingerprint: Some(self.print),
            independent_rows: counted,
            bytes: self.bytes,
            value: Some(self.prefix),
            format: Some(RECORD_FORMAT.to_owned()),
        })
    }
}

/// What the names of the streams begin with that hold the records of the `number`th thing of an archive.
#[must_use]
pub fn record_prefix(number: usize) -> String {
    format!("records/{number:04}/")
}

/// The names of the segments of an archive that begin with this, in order.
#[must_use]
pub fn record_segments(archive: &dyn StreamSource, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = archive
        .streams()
        .iter()
        .filter(|stream| stream.name.starts_with(prefix))
        .map(|stream| stream.name.clone())
        .collect();
    names.sort_unstable();
    names
}

/// Reads the records of an archive back, and compares them with what was read of the server.
///
/// # Errors
///
/// [`EngineError::Unusable`] where they differ; those of the archive's streams.
pub async fn prove_records(
    context: &EngineContext,
    archive: &dyn StreamSource,
    objects: &[ObjectFacts],
) -> Result<(), EngineError> {
    let hasher = RowHasher::new(&context.fingerprint_key);
    for object in objects {
        let prefix = object.value.as_deref().unwrap_or_default();
        let mut print = Fingerprint::empty();
        for name in record_segments(archive, prefix) {
            let mut reader = RecordReader::open(archive, &name).await?;
            while let Some(record) = reader.next().await? {
                context.check_stop()?;
                context.progress.add(record.bytes(), 0);
                let mut row = hasher.begin();
                row.update(&length(&record.key));
                row.update(&length(&record.content));
                row.update(&record.key);
                row.update(&record.content);
                row.add(&mut print);
            }
        }
        if object.fingerprint.as_ref() != Some(&print) {
            return Err(EngineError::Unusable {
                what: format!(
                    "the archive of {} is not what was read of the server; nothing was removed",
                    object.name
                ),
                remedy: "run `fettler check` on the repository, then start the cleanup anew"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

fn length(bytes: &Bytes) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

/// Reads the records of one segment.
pub struct RecordReader {
    stream: StreamReader,
    held: BytesMut,
    name: String,
}

impl std::fmt::Debug for RecordReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordReader")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl RecordReader {
    /// Opens a segment.
    ///
    /// # Errors
    ///
    /// Those of the archive.
    pub async fn open(archive: &dyn StreamSource, name: &str) -> Result<Self, EngineError> {
        Ok(Self {
            stream: archive.read(name).await?,
            held: BytesMut::new(),
            name: name.to_owned(),
        })
    }

    /// The next record; nothing at the end.
    ///
    /// # Errors
    ///
    /// Those of the stream, and [`EngineError::Unusable`] for one that ends within a record.
    pub async fn next(&mut self) -> Result<Option<Record>, EngineError> {
        loop {
            if let Some(record) = self.held_record() {
                return Ok(Some(record));
            }
            match self.stream.next().await {
                Some(piece) => self.held.extend_from_slice(&piece?),
                None if self.held.is_empty() => return Ok(None),
                None => {
                    return Err(EngineError::Unusable {
                        what: format!("{} of the archive ends within a record", self.name),
                        remedy: "run `fettler verify` on it".to_owned(),
                    });
                }
            }
        }
    }

    fn held_record(&mut self) -> Option<Record> {
        let (head, _) = self.held.split_first_chunk::<HEAD_BYTES>()?;
        let of = |at: usize| {
            u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize
        };
        let (key, content) = (of(0), of(4));
        if self.held.len() < HEAD_BYTES + key + content {
            return None;
        }
        self.held.advance(HEAD_BYTES);
        Some(Record {
            key: self.held.split_to(key).freeze(),
            content: self.held.split_to(content).freeze(),
        })
    }
}
