//! Why an RDB cannot be read.

use std::io;

/// Why an RDB, or a payload of `DUMP`, cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RdbError {
    /// The source failed.
    #[error("reading the RDB failed at byte {offset}: {source}")]
    Io {
        /// Byte of the RDB.
        offset: u64,
        /// What the source said.
        source: io::Error,
    },
    /// It ends too early.
    #[error("the RDB ends at byte {offset}, in the middle")]
    Truncated {
        /// Byte of the RDB.
        offset: u64,
    },
    /// It is not as the format says.
    #[error("the RDB is damaged before byte {offset}: {what}")]
    Malformed {
        /// Byte of the RDB.
        offset: u64,
        /// What was found there.
        what: String,
    },
    /// It is of a newer server, or holds what no released server writes.
    #[error("the RDB cannot be understood at byte {offset}: {what}")]
    Unsupported {
        /// Byte of the RDB.
        offset: u64,
        /// What was found there.
        what: String,
    },
}
