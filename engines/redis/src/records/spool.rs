//! signatures only in this commit

use std::path::Path;

use super::{Element, KeyHead};

/// How many streams the keys are spread over, by a keyed hash of database and key alone.
pub(crate) const STREAMS: u8 = 64;

/// The name of a stream of keys: `keys/00` to `keys/63`.
pub(crate) fn stream_name(stream: u8) -> String {
    format!("keys/{stream:02}")
}

/// Why keys could not be put in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    /// A file of the scratch folder failed.
    #[error("ordering the keys in {folder}: {source}")]
    Io {
        /// The scratch folder.
        folder: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Puts keys in the order of a backup, whatever order they come in, within bounded memory. Blocks.
#[derive(Debug)]
pub(crate) struct Spool {}

impl Spool {
    /// A spool whose files lie in `folder`, which exists, is empty and is left empty; the order is that of a keyed
    /// hash under `order_key` (the same for all backups of a database, or unchanged keys are not found again).
    pub(crate) fn new(folder: &Path, order_key: &[u8; 32]) -> Self {
        let _ = (folder, order_key);
        unimplemented!()
    }

    /// Begins a key. A key that comes twice is kept as it came last.
    pub(crate) fn begin(&mut self, head: &KeyHead<'_>) -> Result<(), SpoolError> {
        let _ = head;
        unimplemented!()
    }

    /// Adds a piece of its value.
    pub(crate) fn element(&mut self, element: &Element<'_>) -> Result<(), SpoolError> {
        let _ = element;
        unimplemented!()
    }

    /// Ends the key.
    pub(crate) fn end(&mut self) -> Result<(), SpoolError> {
        unimplemented!()
    }

    /// All keys are there.
    pub(crate) fn finish(self) -> OrderedStreams {
        unimplemented!()
    }
}

/// What a stream of keys held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamTotals {
    /// Keys.
    pub(crate) keys: u64,
    /// Bytes in the stored form.
    pub(crate) bytes: u64,
}

/// The keys in order, to be read once. Blocks.
#[derive(Debug)]
pub(crate) struct OrderedStreams {}

impl OrderedStreams {
    /// The numbers of the streams that hold a key.
    pub(crate) fn numbers(&self) -> Vec<u8> {
        unimplemented!()
    }

    /// Gives the stored form of a stream in pieces of about 256 KiB, and removes its files. A second
    /// reading gives nothing.
    pub(crate) fn read<E: From<SpoolError>>(
        &mut self,
        stream: u8,
        on: &mut impl FnMut(bytes::Bytes) -> Result<(), E>,
    ) -> Result<StreamTotals, E> {
        let _ = (stream, on);
        unimplemented!()
    }
}
