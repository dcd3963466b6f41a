//! Rows on their way out of the server: taken from the wire, hashed one by one, and handed on in
//! large buffers. Runs as a task of its own for each session, so that sessions use all processors.

use bytes::{Bytes, BytesMut};
use fettler_engine::EngineError;
use fettler_model::Fingerprint;
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use fettler_engine::{EngineContext, LongRow, ProgressMeter, RateLimit, RowHasher};

use crate::wire::{Arrived, Session};

/// Bytes that are handed on at once.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;
/// Buffers that may wait for whoever takes them, a session.
pub(crate) const BUFFERS_WAITING: usize = 4;
/// Room in a buffer: what is handed on at once, and the row that fills it up.
const ROOM_BYTES: usize = BUFFER_BYTES + BUFFER_BYTES / 4;
/// Buffers that are kept to be filled again: those that wait, one that is being used up, one more that is about to be.
const BUFFERS_KEPT: usize = BUFFERS_WAITING + 2;
/// How the file form of binary COPY begins: signature, flags, length of the header's extension.
pub(crate) const BINARY_HEADER: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// How it ends: a row of -1 fields.
pub(crate) const BINARY_TRAILER: [u8; 2] = [0xff, 0xff];

/// How the rows of a table are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Format {
    Binary,
    Text,
}

impl Format {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Text => "text",
        }
    }

    /// The options of COPY.
    pub(crate) const fn clause(self) -> &'static str {
        match self {
            Self::Binary => "(FORMAT binary)",
            Self::Text => "(FORMAT text)",
        }
    }
}

/// What a reader needs of its attempt; it lives in a task of its own.
#[derive(Clone)]
pub(crate) struct Reading {
    hasher: RowHasher,
    stop: CancellationToken,
    progress: Arc<ProgressMeter>,
    rate: Arc<RateLimit>,
}

impl Reading {
    pub(crate) fn of(context: &EngineContext, stop: &CancellationToken) -> Self {
        Self {
            hasher: RowHasher::new(&context.fingerprint_key),
            stop: stop.clone(),
            progress: Arc::clone(&context.progress),
            rate: Arc::clone(&context.rate),
        }
    }
}

/// What was read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Copied {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) bytes: u64,
    /// Bytes of the largest row.
    pub(crate) largest_row: u64,
}

/// Runs one `COPY … TO STDOUT` to its end. Buffers go to `out`, where somebody wants them.
pub(crate) async fn copy_out(
    session: &mut Session,
    sql: &str,
    format: Format,
    reading: &Reading,
    out: Option<&mpsc::Sender<Bytes>>,
    doing: &str,
) -> Result<Copied, EngineError> {
    let waiting = async |session: &mut Session, beginning: bool| {
        let step = async {
            if beginning {
                session.begin_copy_out(sql).await
            } else {
                session.copy_wait().await
            }
        };
        match reading.stop.run_until_cancelled(step).await {
            None => Err(EngineError::Stopped),
            Some(answer) => answer.map_err(|error| error.doing(doing)),
        }
    };
    waiting(session, true).await?;
    let mut rows = Rows::new(reading.hasher.clone(), format);
    let mut copied = Copied::default();
    let mut told_rows = 0;
    loop {
        let take = |piece: &[u8], ends_row| {
            rows.add(piece, ends_row);
            rows.buffer.len() >= BUFFER_BYTES
        };
        match session
            .copy_rows(take)
            .map_err(|error| error.doing(doing))?
        {
            Arrived::Wait => waiting(session, false).await?,
            Arrived::End => break,
            Arrived::Enough => {
                let buffer = rows.take();
                copied.bytes += buffer.len() as u64;
                reading.rate.pass(buffer.len() as u64).await;
                let row_count = rows.fingerprint.rows;
                reading
                    .progress
                    .add(buffer.len() as u64, row_count - told_rows);
                told_rows = row_count;
                if let Some(out) = out {
                    // The other end hangs up when it failed; its error is the one to tell.
                    out.send(buffer).await.map_err(|_| EngineError::Stopped)?;
                }
            }
        }
    }
    let rest = rows.take();
    copied.bytes += rest.len() as u64;
    copied.largest_row = rows.largest_row;
    copied.fingerprint = rows.finish().ok_or_else(|| EngineError::Database {
        what: format!("{doing}: the server's binary COPY has a form that is not known"),
        transient: false,
    })?;
    reading
        .progress
        .add(rest.len() as u64, copied.fingerprint.rows - told_rows);
    if let Some(out) = out.filter(|_| !rest.is_empty()) {
        out.send(rest).await.map_err(|_| EngineError::Stopped)?;
    }
    Ok(copied)
}

/// Gathers rows into buffers and adds their hashes up. A row is one message of the server; in binary the
/// first one has the header before it, and the last one is the trailer.
struct Rows {
    hasher: RowHasher,
    fingerprint: Fingerprint,
    buffer: BytesMut,
    /// What is left of buffers that were handed on, oldest first: each is filled again once whoever took it has let it go.
    /// Memory that is new each time costs the system a fault a page.
    handed_on: VecDeque<BytesMut>,
    /// Bytes of the current row so far, and of the largest one.
    row_bytes: u64,
    largest_row: u64,
    /// Where in the buffer the part of the current row begins that is not hashed yet.
    row_start: usize,
    /// A row that did not end in the buffer that it began in.
    cut_row: Option<CutRow>,
    /// Bytes of the binary header that are still to come.
    header_left: usize,
    binary: bool,
    trailer_seen: bool,
    header_wrong: bool,
}

/// The hash of a row that comes in several buffers.
struct CutRow {
    hash: Box<LongRow>,
    /// Its first byte, where it has no more than one yet: the trailer may be cut in two like any row.
    only_byte: Option<u8>,
}

impl Rows {
    fn new(hasher: RowHasher, format: Format) -> Self {
        let binary = format == Format::Binary;
        Self {
            hasher,
            fingerprint: Fingerprint::empty(),
            buffer: BytesMut::with_capacity(ROOM_BYTES),
            handed_on: VecDeque::with_capacity(BUFFERS_KEPT),
            row_bytes: 0,
            largest_row: 0,
            row_start: 0,
            cut_row: None,
            header_left: if binary { BINARY_HEADER.len() } else { 0 },
            binary,
            trailer_seen: false,
            header_wrong: false,
        }
    }

    #[inline]
    fn add(&mut self, piece: &[u8], ends_row: bool) {
        self.buffer.extend_from_slice(piece);
        self.row_bytes += piece.len() as u64;
        if self.header_left > 0 {
            let skip = self.header_left.min(piece.len());
            let from = BINARY_HEADER.len() - self.header_left;
            self.header_wrong |= piece[..skip] != BINARY_HEADER[from..from + skip];
            self.header_left -= skip;
            self.row_start += skip;
        }
        if !ends_row {
            return;
        }
        self.largest_row = self.largest_row.max(self.row_bytes);
        self.row_bytes = 0;
        let rest = &self.buffer[self.row_start..];
        if let Some(mut row) = self.cut_row.take() {
            if self.binary
                && row.only_byte == Some(BINARY_TRAILER[0])
                && rest == &BINARY_TRAILER[1..]
            {
                self.trailer_seen = true;
            } else {
                row.hash.update(rest);
                row.hash.add(&mut self.fingerprint);
            }
        } else if self.binary && rest == BINARY_TRAILER {
            self.trailer_seen = true;
        } else if !rest.is_empty() {
            self.hasher.add(rest, &mut self.fingerprint);
        }
        self.row_start = self.buffer.len();
    }

    /// Takes what was gathered.
    fn take(&mut self) -> Bytes {
        let rest = &self.buffer[self.row_start..];
        if let [first, others @ ..] = rest {
            match &mut self.cut_row {
                Some(row) => {
                    row.only_byte = None;
                    row.hash.update(rest);
                }
                None => {
                    let mut hash = Box::new(self.hasher.begin());
                    hash.update(rest);
                    self.cut_row = Some(CutRow {
                        hash,
                        only_byte: others.is_empty().then_some(*first),
                    });
                }
            }
        }
        self.row_start = 0;
        let taken = self.buffer.split().freeze();
        let next = self.empty_buffer();
        self.handed_on
            .push_back(std::mem::replace(&mut self.buffer, next));
        taken
    }

    fn empty_buffer(&mut self) -> BytesMut {
        if let Some(oldest) = self.handed_on.front_mut()
            && oldest.try_reclaim(ROOM_BYTES)
            && let Some(free) = self.handed_on.pop_front()
        {
            return free;
        }
        if self.handed_on.len() == BUFFERS_KEPT {
            self.handed_on.pop_front();
        }
        BytesMut::with_capacity(ROOM_BYTES)
    }

    fn finish(self) -> Option<Fingerprint> {
        let whole =
            !self.binary || (self.trailer_seen && self.header_left == 0 && !self.header_wrong);
        (whole && self.cut_row.is_none()).then_some(self.fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fingerprint(rows: &[Vec<u8>], format: Format, cut: usize) -> Fingerprint {
        let mut gathered = Rows::new(RowHasher::new(&[7; 32]), format);
        let mut messages: Vec<Vec<u8>> = rows.to_vec();
        if format == Format::Binary {
            messages.push(BINARY_TRAILER.to_vec());
            messages[0].splice(..0, BINARY_HEADER);
        }
        let mut bytes = 0;
        for message in &messages {
            let mut pieces = message.chunks(cut).peekable();
            while let Some(piece) = pieces.next() {
                gathered.add(piece, pieces.peek().is_none());
                if gathered.buffer.len() > cut * 2 {
                    bytes += gathered.take().len();
                }
            }
        }
        bytes += gathered.take().len();
        assert_eq!(bytes, messages.iter().map(Vec::len).sum::<usize>());
        gathered.finish().unwrap()
    }

    proptest! {
        #[test]
        fn a_fingerprint_does_not_depend_on_how_the_bytes_arrive(
            rows in prop::collection::vec(prop::collection::vec(0u8..3, 3..50), 1..20),
            cut in 1usize..60,
        ) {
            for format in [Format::Binary, Format::Text] {
                let mut expected = Fingerprint::empty();
                for row in &rows {
                    RowHasher::new(&[7; 32]).add(row, &mut expected);
                }
                prop_assert_eq!(fingerprint(&rows, format, cut), expected);
            }
        }
    }

    #[test]
    fn a_binary_copy_without_its_trailer_is_not_whole() {
        let mut rows = Rows::new(RowHasher::new(&[7; 32]), Format::Binary);
        rows.add(&BINARY_HEADER, true);
        rows.add(&[0, 0], true);
        assert!(rows.finish().is_none());
    }
}
