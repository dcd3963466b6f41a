//! signatures only in this commit

use super::{Element, KeyHead, Size};

/// Why stored bytes cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the stored keys cannot be read at byte {offset}: {what}")]
pub(crate) struct StoredError {
    /// Byte of the stream.
    pub(crate) offset: u64,
    /// What was found there.
    pub(crate) what: String,
}

/// What a stream of stored records holds, in order.
#[derive(Debug)]
pub(crate) enum RecordEvent<'a> {
    /// A key begins.
    Begin(KeyHead<'a>, Size),
    /// A piece of its value.
    Element(Element<'a>),
    /// The key ends.
    End,
}

/// Reads the stored form as its bytes come.
#[derive(Debug, Default)]
pub(crate) struct RecordReader {}

impl RecordReader {
    /// A reader at the beginning of a stream.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes, cut anywhere, and tells what they complete.
    pub(crate) fn feed<E: From<StoredError>>(
        &mut self,
        bytes: &[u8],
        on: &mut impl FnMut(RecordEvent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let _ = (bytes, on);
        unimplemented!()
    }

    /// Says that the stream ended here; how many keys it held.
    pub(crate) fn finish(self) -> Result<u64, StoredError> {
        unimplemented!()
    }
}
