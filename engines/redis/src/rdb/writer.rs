//! Writes RDBs, and payloads for `RESTORE`.

use std::io::{self, Write};

use crc::{Digest, Table};

use super::{
    encode::{Encoder, put_length, put_string},
    format::{CHECKSUM, CHECKSUM_SINCE, MAGIC, opcode},
};
use crate::records::{Element, KeyHead, Kind, Size};

/// Bytes that are written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Builds what `RESTORE` takes from the elements of a value, which lies in memory whole.
#[derive(Debug)]
pub(crate) struct Payload {
    encoder: Encoder,
    version: u32,
    bytes: Vec<u8>,
}

impl Payload {
    /// Begins a payload for a server that reads RDBs up to this version (9: Redis 5 and 6; 10: 7.0; 11: 7.2; 12: 7.4).
    /// A server of less than [`needed_version`](super::needed_version) refuses it.
    pub(crate) fn begin(kind: Kind, size: &Size, at_most_version: u32) -> Self {
        let encoder = Encoder::new(kind, size, at_most_version);
        let mut bytes = vec![encoder.encoding()];
        encoder.begin(&mut bytes);
        Self {
            version: encoder.version(),
            encoder,
            bytes,
        }
    }

    /// Adds a piece of the value.
    pub(crate) fn element(&mut self, element: &Element<'_>) {
        self.encoder.element(element, &mut self.bytes);
    }

    /// The payload.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes
            .extend_from_slice(&(self.version as u16).to_le_bytes());
        let checksum = CHECKSUM.checksum(&self.bytes);
        self.bytes.extend_from_slice(&checksum.to_le_bytes());
        self.bytes
    }
}

/// Writes an RDB that servers load at their start. Blocks.
pub(crate) struct Writer<W> {
    target: W,
    version: u32,
    checksum: Digest<'static, u64, Table<16>>,
    buffer: Vec<u8>,
    database: Option<u32>,
    encoder: Option<Encoder>,
}

impl<W> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl<W: Write> Writer<W> {
    /// Begins an RDB of a version of the format (as for [`Payload::begin`]); writes to `target` in large pieces.
    pub(crate) fn new(target: W, version: u32) -> io::Result<Self> {
        let mut writer = Self {
            target,
            version,
            checksum: CHECKSUM.digest(),
            buffer: Vec::new(),
            database: None,
            encoder: None,
        };
        writer.buffer.extend_from_slice(MAGIC);
        write!(writer.buffer, "{version:04}")?;
        Ok(writer)
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.checksum.update(&self.buffer);
        self.target.write_all(&self.buffer)?;
        self.buffer.clear();
        self.buffer.shrink_to(2 * BUFFER_BYTES);
        Ok(())
    }

    fn write_out_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() < BUFFER_BYTES {
            return Ok(());
        }
        self.write_out()
    }

    /// Adds a fact, before all functions and keys.
    pub(crate) fn aux(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        self.buffer.push(opcode::AUX);
        put_string(name, &mut self.buffer);
        put_string(value, &mut self.buffer);
        self.write_out_if_full()
    }

    /// Adds a library of functions, before all keys. For version 10 and newer.
    pub(crate) fn function(&mut self, code: &[u8]) -> io::Result<()> {
        self.buffer.push(opcode::FUNCTION);
        put_string(code, &mut self.buffer);
        self.write_out_if_full()
    }

    /// Begins a key. Databases may come in any order, and often.
    pub(crate) fn begin(&mut self, head: &KeyHead<'_>, size: &Size) -> io::Result<()> {
        if self.database != Some(head.database) {
            self.database = Some(head.database);
            self.buffer.push(opcode::DATABASE);
            put_length(u64::from(head.database), &mut self.buffer);
        }
        if let Some(expiry) = head.expiry {
            self.buffer.push(opcode::EXPIRY_MILLISECONDS);
            self.buffer.extend_from_slice(&expiry.to_le_bytes());
        }
        let encoder = Encoder::new(head.kind, size, self.version);
        self.buffer.push(encoder.encoding());
        put_string(head.key, &mut self.buffer);
        encoder.begin(&mut self.buffer);
        self.encoder = Some(encoder);
        self.write_out_if_full()
    }

    /// Adds a piece of its value.
    pub(crate) fn element(&mut self, element: &Element<'_>) -> io::Result<()> {
        if let Some(encoder) = &mut self.encoder {
            encoder.element(element, &mut self.buffer);
        }
        self.write_out_if_full()
    }

    /// Ends the key.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.encoder = None;
        self.write_out_if_full()
    }

    /// Ends the RDB with its checksum and gives the target back, flushed.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.buffer.push(opcode::END);
        self.write_out()?;
        if self.version >= CHECKSUM_SINCE {
            let checksum = self.checksum.clone().finalize();
            self.target.write_all(&checksum.to_le_bytes())?;
        }
        self.target.flush()?;
        Ok(self.target)
    }
}
