//! signatures only in this commit

use std::io::{Read, Write};

use crate::records::{Element, KeyHead, Kind, Size};

/// The newest version of the format that is understood: that of Redis 7.4.
pub(crate) const NEWEST_VERSION: u32 = 12;

/// Why an RDB, or a payload of `DUMP`, cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RdbError {
    /// The source failed.
    #[error("reading the RDB at byte {offset}: {source}")]
    Io {
        /// Byte of the RDB.
        offset: u64,
        /// What the source said.
        source: std::io::Error,
    },
    /// It ends too early.
    #[error("the RDB ends at byte {offset}, in the middle")]
    Truncated {
        /// Byte of the RDB.
        offset: u64,
    },
    /// It is not as the format says.
    #[error("the RDB is damaged at byte {offset}: {what}")]
    Malformed {
        /// Byte of the RDB.
        offset: u64,
        /// What was found there.
        what: String,
    },
    /// It is of a newer server, or holds what no server since Redis 4 writes.
    #[error("the RDB cannot be understood at byte {offset}: {what}")]
    Unsupported {
        /// Byte of the RDB.
        offset: u64,
        /// What was found there.
        what: String,
    },
}

/// What an RDB holds, in its order.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A fact of the server that wrote it, such as `redis-ver`, `repl-stream-db`, `repl-id`, `repl-offset`.
    Aux {
        /// Its name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// The keys that follow are of this database.
    Database(u32),
    /// How many keys the database has, and how many of them expire.
    SizeHint {
        /// Keys.
        keys: u64,
        /// Keys that expire.
        expiring: u64,
    },
    /// The code of a library of functions, as `FUNCTION LOAD` takes it.
    Function(&'a [u8]),
    /// What a module keeps beside keys: its bytes in the file after the opcode, the module's id first.
    ModuleAux {
        /// The id of the module's type.
        module: u64,
        /// All of it.
        payload: &'a [u8],
    },
    /// A key begins.
    Begin(KeyHead<'a>),
    /// A piece of its value.
    Element(Element<'a>),
    /// The key ends.
    End,
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RdbSummary {
    /// The version of the format.
    pub(crate) version: u32,
    /// Bytes, the checksum included.
    pub(crate) bytes: u64,
    /// Keys.
    pub(crate) keys: u64,
    /// Whether the server wrote a checksum (which was right).
    pub(crate) checked: bool,
}

/// Reads an RDB. Blocks.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    source: R,
}

impl<R: Read> Reader<R> {
    /// A reader of what `source` gives, which needs no buffer of its own.
    pub(crate) fn new(source: R) -> Self {
        Self { source }
    }

    /// Reads all of it. The source may be read beyond the RDB's end.
    pub(crate) fn read<E: From<RdbError>>(
        self,
        on: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<RdbSummary, E> {
        let _ = (self.source, on);
        unimplemented!()
    }
}

/// Reads what `DUMP` gave of a key, after checking its checksum: a begin, the elements, an end.
pub(crate) fn read_payload<E: From<RdbError>>(
    payload: &[u8],
    database: u32,
    key: &[u8],
    expiry: Option<i64>,
    on: &mut impl FnMut(Event<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let _ = (payload, database, key, expiry, on);
    unimplemented!()
}

/// Builds what `RESTORE` takes from the elements of a value, which lies in memory whole.
#[derive(Debug)]
pub(crate) struct Payload {}

impl Payload {
    /// Begins a payload for a server that reads RDBs up to `at_most_version` (9: Redis 5 and 6; 10: 7.0; 11: 7.2; 12: 7.4).
    pub(crate) fn begin(kind: Kind, size: &Size, at_most_version: u32) -> Self {
        let _ = (kind, size, at_most_version);
        unimplemented!()
    }

    /// Adds a piece of the value.
    pub(crate) fn element(&mut self, element: &Element<'_>) {
        let _ = element;
        unimplemented!()
    }

    /// The payload.
    pub(crate) fn end(self) -> Vec<u8> {
        unimplemented!()
    }
}

/// Writes an RDB that servers load at their start. Blocks.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    target: W,
}

impl<W: Write> Writer<W> {
    /// Begins an RDB of a version of the format (as for [`Payload::begin`]); writes to `target` in large pieces.
    pub(crate) fn new(target: W, version: u32) -> std::io::Result<Self> {
        let _ = version;
        Ok(Self { target })
    }

    /// Adds a fact, before all functions and keys.
    pub(crate) fn aux(&mut self, name: &[u8], value: &[u8]) -> std::io::Result<()> {
        let _ = (name, value);
        unimplemented!()
    }

    /// Adds a library of functions, before all keys. Version 10 and newer.
    pub(crate) fn function(&mut self, code: &[u8]) -> std::io::Result<()> {
        let _ = code;
        unimplemented!()
    }

    /// Adds what a module keeps beside keys, as [`Event::ModuleAux`] gave it.
    pub(crate) fn module_aux(&mut self, payload: &[u8]) -> std::io::Result<()> {
        let _ = payload;
        unimplemented!()
    }

    /// Begins a key. Databases may come in any order, and often.
    pub(crate) fn begin(&mut self, head: &KeyHead<'_>, size: &Size) -> std::io::Result<()> {
        let _ = (head, size);
        unimplemented!()
    }

    /// Adds a piece of its value.
    pub(crate) fn element(&mut self, element: &Element<'_>) -> std::io::Result<()> {
        let _ = element;
        unimplemented!()
    }

    /// Ends the key.
    pub(crate) fn end(&mut self) -> std::io::Result<()> {
        unimplemented!()
    }

    /// Ends the RDB with its checksum and gives the target back.
    pub(crate) fn finish(self) -> std::io::Result<W> {
        let _ = self.target;
        unimplemented!()
    }
}
