//! Keys with their values, element by element: in the order of a server, in the order of a backup, as stored bytes
//! and as rows of a fingerprint.
//!
//! A server keeps its keys in the order of a hash table whose seed changes with each start, and writes small and
//! large values in different encodings. A backup knows neither: see [`Element`] for what a value is, [`stored`] for
//! the bytes that a backup keeps, [`Spool`] for the order in which it keeps them.

mod key_hash;
mod model;
mod spool;
mod stored;

pub(crate) use key_hash::KeyHasher;
pub(crate) use model::{Element, KeyHead, Kind, Size, StreamId};
pub(crate) use spool::{OrderedStreams, Spool, SpoolError, StreamTotals, stream_name};
pub(crate) use stored::{RecordEvent, RecordReader, StoredError};

#[cfg(test)]
pub(crate) mod owned;
#[cfg(test)]
mod tests;
