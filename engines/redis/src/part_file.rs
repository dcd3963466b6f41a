//! The keys of one database, or those that a pattern fits, as NDJSON or as an RDB.
//!
//! Keys are spread over all streams of a backup by a hash, so that all are read, whatever is chosen.

mod lines;

use std::io::{self, Write};

use bytes::Bytes;
use fettler_engine::{
    BackupReport, EngineContext, EngineError, ExtractFormat, ExtractReport, Extraction, PartWriter,
    StreamSource, no_such_part,
};
use futures::TryStreamExt as _;
use tokio::{io::AsyncWrite, sync::mpsc};

use crate::{
    blocking,
    extract::rdb_version,
    rdb::{Writer, needed_version},
    records::{RecordEvent, RecordReader, StoredError},
    restore::KEY_STREAMS,
    select::Selection,
};

use lines::Lines;

/// The forms, the usual one first.
pub(crate) const FORMATS: [ExtractFormat; 2] = [ExtractFormat::Ndjson, ExtractFormat::Rdb];
/// Pieces that wait, on the way in and on the way out.
const PIECES_AHEAD: usize = 8;
/// Bytes that are handed on at once.
const PIECE_BYTES: usize = 256 * 1024;

/// What the writing thread is told.
enum Piece {
    Bytes(Bytes),
    /// A stream is whole.
    End,
    /// All streams are whole.
    Done,
}

/// Why a piece could not be written.
enum Failure {
    Stored(StoredError),
    /// Nobody takes what is written any more.
    Gone,
    TooOld,
}

impl From<StoredError> for Failure {
    fn from(error: StoredError) -> Self {
        Self::Stored(error)
    }
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// Writes the keys.
pub(crate) async fn extract(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    what: &Extraction,
    out: &mut (dyn AsyncWrite + Send + Unpin),
) -> Result<ExtractReport, EngineError> {
    let selection = chosen(report, &what.part)?;
    let (send_in, pieces_in) = mpsc::channel(PIECES_AHEAD);
    let (send_out, mut pieces_out) = mpsc::channel(PIECES_AHEAD);
    let server = report.identity.version.clone();
    let format = what.format;
    let working = blocking(move || {
        let to = Outward {
            send: send_out,
            buffer: Vec::with_capacity(PIECE_BYTES),
        };
        match format {
            ExtractFormat::Rdb => run(RdbSink::new(to, &server), &selection, pieces_in),
            _ => run(Ok(Lines::new(to)), &selection, pieces_in),
        }
        .map_err(|failure| told(failure, &server))
    });
    let reading = async move {
        for stream in backup.streams() {
            if !stream.name.starts_with(KEY_STREAMS) {
                continue;
            }
            let mut bytes = backup.read(&stream.name).await?;
            while let Some(piece) = bytes.try_next().await? {
                context.check_stop()?;
                if send_in.send(Piece::Bytes(piece)).await.is_err() {
                    // Whoever listened has the reason.
                    return Ok(());
                }
            }
            let _heard = send_in.send(Piece::End).await;
        }
        let _heard = send_in.send(Piece::Done).await;
        Ok(())
    };
    let writing = async {
        let mut writer = PartWriter::new(context, out);
        while let Some(piece) = pieces_out.recv().await {
            let piece: Bytes = piece;
            writer.pass(&piece).await?;
        }
        drop(pieces_out);
        writer.finish().await
    };
    let (read, worked, written): (Result<(), EngineError>, _, _) =
        tokio::join!(reading, working, writing);
    read?;
    let written = match (worked, written) {
        (Err(EngineError::Stopped), Err(error)) => return Err(error),
        (worked, written) => {
            let keys = worked?;
            let mut written = written?;
            written.rows = keys;
            written
        }
    };
    if written.rows == 0 {
        return Err(EngineError::Missing {
            code: "part",
            what: format!("no key of the backup is meant by {:?}", what.part),
            remedy:
                "write `db0` for a database, or `db0/user:*` for the keys of it that a pattern fits"
                    .to_owned(),
        });
    }
    context.progress.add(0, written.rows);
    Ok(written)
}

/// What a path means: `db0`, or `db0/user:*`.
fn chosen(report: &BackupReport, part: &str) -> Result<Selection, EngineError> {
    let selection = Selection::of_restore(&[part.to_owned()])?;
    let mut databases: Vec<String> = report
        .objects
        .iter()
        .filter_map(|object| object.name.split('/').next())
        .filter(|name| name.starts_with("db"))
        .map(str::to_owned)
        .collect();
    databases.sort_unstable();
    databases.dedup();
    let database = part.split('/').next().unwrap_or(part);
    if databases.iter().any(|name| name == database) {
        Ok(selection)
    } else {
        Err(no_such_part(part, &databases))
    }
}

fn told(failure: Failure, server: &str) -> EngineError {
    match failure {
        Failure::Stored(error) => EngineError::Unusable {
            what: error.to_string(),
            remedy: "verify the backup, and take another one".to_owned(),
        },
        Failure::TooOld => EngineError::Unusable {
            what: format!("the backup holds what Redis {server} cannot have in its files"),
            remedy: "say `--format ndjson`, or restore it to a server".to_owned(),
        },
        Failure::Gone => EngineError::Stopped,
    }
}

/// Takes the keys that are meant.
trait KeySink {
    fn take(&mut self, event: RecordEvent<'_>) -> Result<(), Failure>;
    fn finish(self) -> Result<(), Failure>;
}

/// Writes what comes; gives the number of keys.
fn run<S: KeySink>(
    sink: Result<S, Failure>,
    selection: &Selection,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<u64, Failure> {
    let mut sink = sink?;
    let mut reader = RecordReader::new();
    let (mut keys, mut is_meant) = (0, false);
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Bytes(bytes) => {
                reader.feed(&bytes, &mut |event| {
                    if let RecordEvent::Begin(head, _) = &event {
                        is_meant = selection.has(head.database, head.key);
                        keys += u64::from(is_meant);
                    }
                    if is_meant { sink.take(event) } else { Ok(()) }
                })?;
            }
            Piece::End => {
                std::mem::take(&mut reader).finish()?;
            }
            Piece::Done => return sink.finish().map(|()| keys),
        }
    }
    // Whoever read the backup has the reason.
    Err(Failure::Gone)
}

/// Hands bytes on to whoever writes them.
struct Outward {
    send: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Write for Outward {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        self.send
            .blocking_send(piece)
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// Writes an RDB.
struct RdbSink {
    writer: Writer<Outward>,
    version: u32,
}

impl RdbSink {
    fn new(to: Outward, server: &str) -> Result<Self, Failure> {
        let version = rdb_version(server);
        let mut writer = Writer::new(to, version)?;
        writer.aux(b"redis-ver", server.as_bytes())?;
        Ok(Self { writer, version })
    }
}

impl KeySink for RdbSink {
    fn take(&mut self, event: RecordEvent<'_>) -> Result<(), Failure> {
        match event {
            RecordEvent::Begin(head, size) => {
                if needed_version(head.kind, &size) > self.version {
                    return Err(Failure::TooOld);
                }
                self.writer.begin(&head, &size)?;
            }
            RecordEvent::Element(element) => self.writer.element(&element)?,
            RecordEvent::End => self.writer.end()?,
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Failure> {
        self.writer.finish()?;
        Ok(())
    }
}
