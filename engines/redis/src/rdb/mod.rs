//! The file format of Redis, in which a primary hands its data to a replica, a server saves itself, and single values
//! pass through `DUMP` and `RESTORE`.
//!
//! [`Reader`] and [`read_payload`] turn all encodings of all versions up to [`NEWEST_VERSION`] into the
//! [`Element`](crate::records::Element)s of values; [`Writer`] and [`Payload`] write the plainest encoding that servers since
//! Redis 5 load, and choose the small ones themselves as they load it.

mod encode;
mod error;
mod format;
mod input;
mod packed;
mod reader;
mod value;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use encode::needed_version;
pub(crate) use error::RdbError;
#[cfg(test)]
pub(crate) use reader::RdbSummary;
pub(crate) use reader::{Event, Reader, read_payload};
pub(crate) use writer::{Payload, Writer};

/// The newest version of the format that is understood: that of Redis 7.4.
pub(crate) const NEWEST_VERSION: u32 = 12;
