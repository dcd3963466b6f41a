//! A session's own end of the wire: simple queries, and COPY in both directions.
//!
//! Logging in is tokio-postgres's work. For the data its client is the wrong tool: it hands out each row as
//! a buffer of its own and holds a row of 300 MB whole. Here a row passes in pieces of one buffer's
//! size, is hashed while it passes, and is copied once; a session needs the same memory whatever its rows are.

use std::{fmt, io, sync::Arc};

use bytes::{Buf, Bytes, BytesMut};
use fettler_engine::EngineError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{ServerMessage, WireError, WireErrorKind};

/// Bytes asked from the system at once.
const READ_BUFFER_BYTES: usize = 256 * 1024;
/// Bytes in one CopyData message that is sent. The server reads a message whole before it uses it.
const SEND_MESSAGE_BYTES: usize = 256 * 1024;
/// The largest message other than a row of COPY that is taken: a catalogue's row has far less.
const MESSAGE_LIMIT_BYTES: usize = 256 * 1024 * 1024;
/// Tag and length of a message.
const HEADER_BYTES: usize = 5;

/// A stream of bytes to a server, with or without TLS.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// One row of a simple query, in the server's text form.
#[derive(Debug)]
pub(crate) struct Row(Vec<Option<Bytes>>);

impl Row {
    /// How many columns it has.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The text of a column; null is an error.
    pub(crate) fn text(&self, column: usize) -> Result<&str, EngineError> {
        self.maybe(column)?
            .ok_or_else(|| unreadable(column, "it is null"))
    }

    /// The text of a column, or nothing where it is null.
    pub(crate) fn maybe(&self, column: usize) -> Result<Option<&str>, EngineError> {
        self.0
            .get(column)
            .ok_or_else(|| unreadable(column, "it is missing"))?
            .as_deref()
            .map(|bytes| {
                std::str::from_utf8(bytes).map_err(|_| unreadable(column, "it is not UTF-8"))
            })
            .transpose()
    }

    /// A column as an owned text.
    pub(crate) fn string(&self, column: usize) -> Result<String, EngineError> {
        self.text(column).map(str::to_owned)
    }

    /// A column as an owned text, or nothing where it is null.
    pub(crate) fn maybe_string(&self, column: usize) -> Result<Option<String>, EngineError> {
        Ok(self.maybe(column)?.map(str::to_owned))
    }

    /// A column as a number or alike.
    pub(crate) fn get<T: std::str::FromStr>(&self, column: usize) -> Result<T, EngineError> {
        self.text(column)?
            .parse()
            .map_err(|_| unreadable(column, "it has another form than expected"))
    }

    /// A column as true or false.
    pub(crate) fn flag(&self, column: usize) -> Result<bool, EngineError> {
        Ok(self.text(column)? == "t")
    }
}

fn unreadable(column: usize, why: &str) -> EngineError {
    EngineError::Database {
        what: format!("column {column} of a catalogue query cannot be read: {why}"),
        transient: false,
    }
}

/// Why [`Session::copy_rows`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// Whoever takes the rows has enough for now.
    Enough,
    /// Nothing more has arrived yet.
    Wait,
    /// The copy has ended.
    End,
}

/// A logged-in session.
pub(crate) struct Session {
    wire: Box<dyn Wire>,
    server: Arc<str>,
    read: BytesMut,
    /// Bytes of the current row's message that were not handed out yet.
    row_left: usize,
    send: BytesMut,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(wire: Box<dyn Wire>, server: Arc<str>) -> Self {
        Self {
            wire,
            server,
            read: BytesMut::with_capacity(2 * READ_BUFFER_BYTES),
            row_left: 0,
            send: BytesMut::new(),
        }
    }

    /// Hands the session to another task; until [`Session::give_back`], this one answers nothing.
    pub(crate) fn lend(&mut self) -> Self {
        let closed = Self {
            wire: Box::new(tokio::io::join(tokio::io::empty(), tokio::io::sink())),
            server: Arc::clone(&self.server),
            read: BytesMut::new(),
            row_left: 0,
            send: BytesMut::new(),
        };
        std::mem::replace(self, closed)
    }

    /// Takes a session back that was lent.
    pub(crate) fn give_back(&mut self, lent: Self) {
        *self = lent;
    }

    fn fail(&self, kind: WireErrorKind) -> WireError {
        WireError {
            server: Arc::clone(&self.server),
            kind,
        }
    }

    fn unexpected(&self, what: impl Into<String>) -> WireError {
        self.fail(WireErrorKind::Protocol(what.into()))
    }

    /// Runs statements and gives back the rows of all of them.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<Row>, WireError> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            let (tag, mut body) = self.message().await?;
            match tag {
                b'D' => rows.push(self.data_row(&mut body)?),
                b'E' => refused = refused.or_else(|| Some(server_message(&body))),
                b'Z' => break,
                b'T' | b'C' | b'I' | b'N' | b'S' | b'A' => {}
                other => return Err(self.unexpected(format!("message {:?}", char::from(other)))),
            }
        }
        match refused {
            None => Ok(rows),
            Some(message) => Err(self.fail(WireErrorKind::Server(Box::new(message)))),
        }
    }

    /// Runs statements whose rows do not matter.
    pub(crate) async fn execute(&mut self, sql: &str) -> Result<(), WireError> {
        self.query(sql).await.map(drop)
    }

    /// Runs a statement that gives one row.
    pub(crate) async fn one(&mut self, sql: &str) -> Result<Row, WireError> {
        let mut rows = self.query(sql).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            (_, _) => Err(self.unexpected("one row was expected")),
        }
    }

    /// Begins a `COPY … TO STDOUT`.
    pub(crate) async fn begin_copy_out(&mut self, sql: &str) -> Result<(), WireError> {
        self.send_query(sql).await?;
        loop {
            let (tag, body) = self.message().await?;
            match tag {
                b'H' => return Ok(()),
                b'E' => return Err(self.refused(&body).await),
                b'N' | b'S' | b'A' => {}
                other => return Err(self.unexpected(format!("message {:?}", char::from(other)))),
            }
        }
    }

    /// Hands out what has arrived of a running `COPY … TO STDOUT`: pieces of rows, and whether the row ends with the piece; `take` says
    /// whether it has enough for now. At the end the session is ready for the next statement; after an error it is not to
    /// be used again.
    pub(crate) fn copy_rows(
        &mut self,
        mut take: impl FnMut(&[u8], bool) -> bool,
    ) -> Result<Arrived, WireError> {
        loop {
            // Rows are short, so that this is the inner loop of every backup: the buffer moves on once for all of them.
            let mut rest = &self.read[..];
            let mut enough = false;
            while !enough {
                if self.row_left == 0 {
                    let Some(([b'd', length @ ..], behind)) =
                        rest.split_first_chunk::<HEADER_BYTES>()
                    else {
                        break;
                    };
                    let Some(body) = u32::from_be_bytes(*length).checked_sub(4) else {
                        return Err(self.unexpected("a message of negative length"));
                    };
                    self.row_left = body as usize;
                    rest = behind;
                } else if rest.is_empty() {
                    break;
                } else {
                    let (piece, behind) = rest.split_at(self.row_left.min(rest.len()));
                    self.row_left -= piece.len();
                    rest = behind;
                    enough = take(piece, self.row_left == 0);
                }
            }
            let taken = self.read.len() - rest.len();
            self.read.advance(taken);
            if enough {
                return Ok(Arrived::Enough);
            }
            let Some([tag, length @ ..]) = self.read.first_chunk::<HEADER_BYTES>() else {
                return Ok(Arrived::Wait);
            };
            let tag = *tag;
            let Some(body) = (u32::from_be_bytes(*length) as usize).checked_sub(4) else {
                return Err(self.unexpected("a message of negative length"));
            };
            if self.read.len() < HEADER_BYTES + body {
                if body > MESSAGE_LIMIT_BYTES {
                    return Err(self.unexpected(format!("a message of {body} bytes")));
                }
                return Ok(Arrived::Wait);
            }
            self.read.advance(HEADER_BYTES);
            let message = self.read.split_to(body);
            match tag {
                b'c' | b'C' | b'N' | b'S' | b'A' => {}
                b'Z' => return Ok(Arrived::End),
                b'E' => {
                    let message = server_message(&message);
                    return Err(self.fail(WireErrorKind::Server(Box::new(message))));
                }
                other => return Err(self.unexpected(format!("message {:?}", char::from(other)))),
            }
        }
    }

    /// Waits for more of a running `COPY … TO STDOUT`.
    pub(crate) async fn copy_wait(&mut self) -> Result<(), WireError> {
        self.fill().await
    }

    /// Begins a `COPY … FROM STDIN`.
    pub(crate) async fn begin_copy_in(&mut self, sql: &str) -> Result<(), WireError> {
        self.send_query(sql).await?;
        loop {
            let (tag, body) = self.message().await?;
            match tag {
                b'G' => return Ok(()),
                b'E' => return Err(self.refused(&body).await),
                b'N' | b'S' | b'A' => {}
                other => return Err(self.unexpected(format!("message {:?}", char::from(other)))),
            }
        }
    }

    /// Sends bytes of a running `COPY … FROM STDIN`. Where the server has refused a row meanwhile, its
    /// words come with [`Session::end_copy_in`].
    pub(crate) async fn copy_in(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        for part in bytes.chunks(SEND_MESSAGE_BYTES) {
            let length = u32::try_from(part.len() + 4).expect("a part is far below 4 GB");
            let mut header = [b'd', 0, 0, 0, 0];
            header[1..].copy_from_slice(&length.to_be_bytes());
            let mut message = Buf::chain(&header[..], part);
            while message.has_remaining() {
                if let Err(error) = self.wire.write_buf(&mut message).await {
                    return Err(self.fail(WireErrorKind::Io(error)));
                }
            }
        }
        Ok(())
    }

    /// Ends a `COPY … FROM STDIN` and says how many rows the server took.
    pub(crate) async fn end_copy_in(&mut self) -> Result<u64, WireError> {
        self.send.clear();
        self.send.extend_from_slice(&[b'c', 0, 0, 0, 4]);
        self.flush().await?;
        let mut rows = 0;
        loop {
            let (tag, body) = self.message().await?;
            match tag {
                b'C' => {
                    let text = String::from_utf8_lossy(&body);
                    rows = text
                        .trim_end_matches('\0')
                        .rsplit(' ')
                        .next()
                        .and_then(|count| count.parse().ok())
                        .ok_or_else(|| self.unexpected("COPY did not say how many rows it took"))?;
                }
                b'Z' => return Ok(rows),
                b'E' => return Err(self.refused(&body).await),
                b'N' | b'S' | b'A' => {}
                other => return Err(self.unexpected(format!("message {:?}", char::from(other)))),
            }
        }
    }

    /// Gives a `COPY … FROM STDIN` up; the session can be used again.
    pub(crate) async fn abandon_copy_in(&mut self) -> Result<(), WireError> {
        self.send.clear();
        self.send.extend_from_slice(&[b'f', 0, 0, 0, 5, 0]);
        self.flush().await?;
        while self.message().await?.0 != b'Z' {}
        Ok(())
    }

    /// Says good-bye, so that the server does not log a lost connection.
    pub(crate) async fn close(mut self) {
        self.send.clear();
        self.send.extend_from_slice(&[b'X', 0, 0, 0, 4]);
        // The session ends either way.
        let _polite = self.flush().await;
    }

    async fn send_query(&mut self, sql: &str) -> Result<(), WireError> {
        if sql.contains('\0') {
            return Err(self.unexpected("a statement holds a NUL"));
        }
        let length =
            u32::try_from(sql.len() + 5).map_err(|_| self.unexpected("a statement above 4 GB"))?;
        self.send.clear();
        self.send.extend_from_slice(b"Q");
        self.send.extend_from_slice(&length.to_be_bytes());
        self.send.extend_from_slice(sql.as_bytes());
        self.send.extend_from_slice(&[0]);
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), WireError> {
        let sent = match self.wire.write_all(&self.send).await {
            Ok(()) => self.wire.flush().await,
            Err(error) => Err(error),
        };
        sent.map_err(|error| self.fail(WireErrorKind::Io(error)))
    }

    /// Reads more bytes; at least one.
    async fn fill(&mut self) -> Result<(), WireError> {
        // What is left moves to the front of the buffer once little room is left behind it.
        if self.read.capacity() - self.read.len() < READ_BUFFER_BYTES / 4 {
            self.read.reserve(READ_BUFFER_BYTES);
        }
        match self.wire.read_buf(&mut self.read).await {
            Ok(0) => Err(self.fail(WireErrorKind::Io(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection",
            )))),
            Ok(_) => Ok(()),
            Err(error) => Err(self.fail(WireErrorKind::Io(error))),
        }
    }

    /// Reads one whole message.
    async fn message(&mut self) -> Result<(u8, Bytes), WireError> {
        while self.read.len() < HEADER_BYTES {
            self.fill().await?;
        }
        let tag = self.read[0];
        let length =
            u32::from_be_bytes([self.read[1], self.read[2], self.read[3], self.read[4]]) as usize;
        if !(4..MESSAGE_LIMIT_BYTES).contains(&length) {
            return Err(self.unexpected(format!("a message of {length} bytes")));
        }
        if self.read.len() < length + 1 {
            self.read.reserve(length + 1 - self.read.len());
        }
        while self.read.len() < length + 1 {
            self.fill().await?;
        }
        self.read.advance(HEADER_BYTES);
        Ok((tag, Bytes::copy_from_slice(&self.read.split_to(length - 4))))
    }

    /// Reads on to where the server is ready again, and gives back its error.
    async fn refused(&mut self, body: &[u8]) -> WireError {
        let message = server_message(body);
        // After FATAL the server hangs up, and the first error says more than that.
        while let Ok((tag, _)) = self.message().await {
            if tag == b'Z' {
                break;
            }
        }
        self.fail(WireErrorKind::Server(Box::new(message)))
    }

    fn data_row(&self, body: &mut Bytes) -> Result<Row, WireError> {
        let cut_short = || self.unexpected("a row that ends early");
        let count = body.try_get_u16().map_err(|_| cut_short())?;
        let mut values = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let length = body.try_get_i32().map_err(|_| cut_short())?;
            values.push(match usize::try_from(length) {
                Err(_) => None,
                Ok(length) if length <= body.len() => Some(body.split_to(length)),
                Ok(_) => return Err(cut_short()),
            });
        }
        Ok(Row(values))
    }
}

/// Takes an ErrorResponse apart.
fn server_message(body: &[u8]) -> ServerMessage {
    let mut message = ServerMessage::default();
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, text)) = field.split_first() else {
            continue;
        };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'S' => message.severity = text,
            b'C' => message.code = text,
            b'M' => message.message = text,
            b'D' => message.detail = text,
            b'H' => message.hint = text,
            _ => {}
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_row_larger_than_any_buffer_passes_in_pieces() {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let mut session = Session::new(Box::new(ours), "test".into());
        let rows: [usize; 4] = [3_000_000, 0, 7, 900_000];
        let server = tokio::spawn(async move {
            let mut question = vec![0; 1 + 4 + "COPY x".len() + 1];
            theirs.read_exact(&mut question).await.unwrap();
            theirs
                .write_all(&[b'H', 0, 0, 0, 7, 0, 0, 0])
                .await
                .unwrap();
            for row in rows {
                theirs.write_all(b"d").await.unwrap();
                theirs
                    .write_all(&u32::try_from(row + 4).unwrap().to_be_bytes())
                    .await
                    .unwrap();
                theirs.write_all(&vec![9; row]).await.unwrap();
            }
            theirs
                .write_all(&[b'c', 0, 0, 0, 4, b'Z', 0, 0, 0, 5, b'I'])
                .await
                .unwrap();
        });
        session.begin_copy_out("COPY x").await.unwrap();
        let mut seen = Vec::new();
        let mut row = 0;
        loop {
            let take = |piece: &[u8], ends_row| {
                assert!(piece.len() <= 2 * READ_BUFFER_BYTES);
                row += piece.len();
                if ends_row {
                    seen.push(std::mem::take(&mut row));
                }
                ends_row
            };
            match session.copy_rows(take).unwrap() {
                Arrived::End => break,
                Arrived::Wait => session.copy_wait().await.unwrap(),
                Arrived::Enough => assert_eq!(row, 0),
            }
        }
        server.await.unwrap();
        // An empty message holds no row.
        assert_eq!(seen, [3_000_000, 7, 900_000]);
    }
}
