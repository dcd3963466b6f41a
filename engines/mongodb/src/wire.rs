//! The wire protocol: messages of the kind `OP_MSG`, which all servers since MongoDB 3.6 speak (MongoDB manual,
//! "MongoDB Wire Protocol").
//!
//! A client of its own, since a driver would connect to whatever a replica set tells of its members: a server that a tenant
//! may name stands for itself alone. And documents pass as the bytes that the server sent.

use std::io;

use bson::{RawDocument, RawDocumentBuf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The kind of message.
const OP_MSG: i32 = 2013;
/// Bytes of a message's header: its length, two ids, the kind.
const HEADER: usize = 16;
/// The longest message that a server sends or takes, in bytes (`maxMessageSizeBytes`).
pub(crate) const LONGEST_MESSAGE: usize = 48_000_000;
/// `checksumPresent`: four bytes at the end are a checksum.
const CHECKSUM: u32 = 1;

/// Bytes to and from a server, with or without TLS.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Wire for T {}

/// Documents that go beside a command, one after another, as the protocol's section of kind 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence<'a> {
    /// The command's field that they stand for.
    pub(crate) name: &'a str,
    /// The documents.
    pub(crate) documents: &'a [u8],
}

/// Writes a command.
pub(crate) fn encode(id: i32, command: &RawDocument, sequence: Option<Sequence<'_>>) -> Vec<u8> {
    let beside = sequence.map_or(0, |one| 1 + 4 + one.name.len() + 1 + one.documents.len());
    let length = HEADER + 4 + 1 + command.as_bytes().len() + beside;
    let mut message = Vec::with_capacity(length);
    for number in [length as i32, id, 0, OP_MSG, 0] {
        message.extend_from_slice(&number.to_le_bytes());
    }
    message.push(0);
    message.extend_from_slice(command.as_bytes());
    if let Some(one) = sequence {
        message.push(1);
        message.extend_from_slice(&((beside - 1) as i32).to_le_bytes());
        message.extend_from_slice(one.name.as_bytes());
        message.push(0);
        message.extend_from_slice(one.documents);
    }
    message
}

/// Reads one answer: the document of its only section.
pub(crate) async fn read_answer(wire: &mut dyn Wire, id: i32) -> io::Result<RawDocumentBuf> {
    let mut header = [0; HEADER];
    wire.read_exact(&mut header).await?;
    let number = |at: usize| i32::from_le_bytes(std::array::from_fn(|byte| header[at * 4 + byte]));
    let length = usize::try_from(number(0)).unwrap_or(0);
    if !(HEADER + 4 + 1 + 5..=LONGEST_MESSAGE + 16 * 1024).contains(&length) {
        return Err(malformed(format!("a message of {length} bytes")));
    }
    if number(3) != OP_MSG || number(2) != id {
        return Err(malformed(format!(
            "a message of the kind {} that answers {}",
            number(3),
            number(2)
        )));
    }
    let mut body = vec![0; length - HEADER];
    wire.read_exact(&mut body).await?;
    decode(body)
}

/// Reads what follows the header.
fn decode(mut body: Vec<u8>) -> io::Result<RawDocumentBuf> {
    let flags = u32::from_le_bytes(std::array::from_fn(|at| body[at]));
    if flags & CHECKSUM != 0 {
        let end = body.len().saturating_sub(4);
        body.truncate(end);
    }
    if body.get(4) != Some(&0) {
        return Err(malformed(
            "an answer that begins with no document".to_owned(),
        ));
    }
    body.drain(..5);
    RawDocumentBuf::from_bytes(body).map_err(|error| malformed(error.to_string()))
}

fn malformed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Sends bytes whole.
pub(crate) async fn send(wire: &mut dyn Wire, message: &[u8]) -> io::Result<()> {
    wire.write_all(message).await?;
    wire.flush().await
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    #[tokio::test]
    async fn what_was_written_is_read() {
        let command = rawdoc! { "ping": 1 };
        let mut message = encode(7, &command, None);
        // An answer names what it answers where a command has nothing.
        message[8..12].copy_from_slice(&7i32.to_le_bytes());
        let (mut near, mut far) = tokio::io::duplex(1024);
        send(&mut near, &message).await.unwrap();
        assert_eq!(read_answer(&mut far, 7).await.unwrap(), command);
        send(&mut near, &message).await.unwrap();
        assert!(read_answer(&mut far, 8).await.is_err());
    }

    #[test]
    fn documents_beside_a_command_have_their_length_and_name() {
        let command = rawdoc! { "insert": "c" };
        let one = rawdoc! { "_id": 1 };
        let sequence = Sequence {
            name: "documents",
            documents: one.as_bytes(),
        };
        let message = encode(1, &command, Some(sequence));
        let at = HEADER + 5 + command.as_bytes().len();
        assert_eq!(message.len(), at + 1 + 4 + 10 + one.as_bytes().len());
        assert_eq!(message[at], 1);
        assert_eq!(message[at + 1], (4 + 10 + one.as_bytes().len()) as u8);
        assert_eq!(
            i32::from_le_bytes(message[..4].try_into().unwrap()) as usize,
            message.len()
        );
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(decode(vec![0, 0, 0, 0, 1, 5, 0, 0, 0, 0]).is_err());
        assert!(decode(vec![0, 0, 0, 0, 0, 9, 0, 0, 0, 0]).is_err());
    }
}
