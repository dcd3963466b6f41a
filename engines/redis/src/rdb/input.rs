//! Reads the elementary parts of an RDB: bytes, lengths, strings.

use std::io::{self, Read, Write as _};

use crc::{Digest, Table};

use super::{
    RdbError,
    format::{CHECKSUM, string_encoding},
};

/// Bytes that are read from the source at once.
const BUFFER_BYTES: usize = 128 << 10;

/// Pieces in which long strings are handed on.
const PIECE_BYTES: usize = 256 << 10;

/// How far LZF looks back at most.
const LZF_WINDOW: usize = 8192;

/// What a buffer may keep of its size for the next element.
const KEPT_CAPACITY: usize = 1 << 20;

/// A number that says how much follows, or how a string is encoded.
enum Length {
    Plain(u64),
    Encoded(u8),
}

/// The source of an RDB: counts and checks what is read, and allocates only for what is there, whatever a length
/// claims.
pub(super) struct Input<R> {
    source: R,
    buffer: Box<[u8]>,
    /// What of the buffer is read, and what is filled.
    at: usize,
    filled: usize,
    /// Bytes before the buffer.
    before: u64,
    checksum: Digest<'static, u64, Table<16>>,
    /// What of the buffer the checksum knows.
    summed: usize,
    /// A copy of what is read, where one is wanted.
    copy: Option<Vec<u8>>,
}

impl<R> std::fmt::Debug for Input<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("offset", &(self.before + self.at as u64))
            .finish_non_exhaustive()
    }
}

impl<R: Read> Input<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            at: 0,
            filled: 0,
            before: 0,
            checksum: CHECKSUM.digest(),
            summed: 0,
            copy: None,
        }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> u64 {
        self.before + self.at as u64
    }

    /// The checksum of all bytes read so far.
    pub(super) fn checksum(&mut self) -> u64 {
        self.checksum.update(&self.buffer[self.summed..self.at]);
        self.summed = self.at;
        self.checksum.clone().finalize()
    }

    pub(super) fn malformed(&self, what: impl Into<String>) -> RdbError {
        RdbError::Malformed {
            offset: self.offset(),
            what: what.into(),
        }
    }

    pub(super) fn unsupported(&self, what: impl Into<String>) -> RdbError {
        RdbError::Unsupported {
            offset: self.offset(),
            what: what.into(),
        }
    }

    /// Begins to copy what is read.
    pub(super) fn begin_copy(&mut self) {
        self.copy = Some(Vec::new());
    }

    /// The copy so far where it is worth handing on; it begins anew.
    pub(super) fn full_copy(&mut self) -> Option<Vec<u8>> {
        self.copy
            .as_mut()
            .filter(|copy| copy.len() >= PIECE_BYTES)
            .map(std::mem::take)
    }

    /// The rest of the copy, which ends.
    pub(super) fn end_copy(&mut self) -> Vec<u8> {
        self.copy.take().unwrap_or_default()
    }

    /// Whether the source has nothing more.
    pub(super) fn is_at_end(&mut self) -> Result<bool, RdbError> {
        if self.at < self.filled {
            return Ok(false);
        }
        self.checksum.update(&self.buffer[self.summed..self.filled]);
        self.before += self.filled as u64;
        (self.at, self.filled, self.summed) = (0, 0, 0);
        loop {
            match self.source.read(&mut self.buffer) {
                Ok(count) => {
                    self.filled = count;
                    return Ok(count == 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(RdbError::Io {
                        offset: self.before,
                        source,
                    });
                }
            }
        }
    }

    /// The next bytes: at least one, at most `max`, which is not 0.
    pub(super) fn some(&mut self, max: u64) -> Result<&[u8], RdbError> {
        if self.is_at_end()? {
            return Err(RdbError::Truncated {
                offset: self.offset(),
            });
        }
        let begin = self.at;
        let there = self.filled - begin;
        self.at += usize::try_from(max).map_or(there, |max| max.min(there));
        let bytes = &self.buffer[begin..self.at];
        if let Some(copy) = &mut self.copy {
            copy.extend_from_slice(bytes);
        }
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], RdbError> {
        let mut array = [0; N];
        let mut filled = 0;
        while filled < N {
            let some = self.some((N - filled) as u64)?;
            array[filled..filled + some.len()].copy_from_slice(some);
            filled += some.len();
        }
        Ok(array)
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, RdbError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Eight bytes, least significant first.
    pub(super) fn long(&mut self) -> Result<u64, RdbError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Adds so many bytes to `to`, which grows as they come.
    fn append(&mut self, mut count: u64, to: &mut Vec<u8>) -> Result<(), RdbError> {
        while count > 0 {
            let some = self.some(count)?;
            to.extend_from_slice(some);
            count -= some.len() as u64;
        }
        Ok(())
    }

    fn length_or_encoding(&mut self) -> Result<Length, RdbError> {
        let first = self.byte()?;
        Ok(match first >> 6 {
            0 => Length::Plain(u64::from(first)),
            1 => Length::Plain(u64::from(first & 63) << 8 | u64::from(self.byte()?)),
            2 => match first {
                0x80 => Length::Plain(u64::from(u32::from_be_bytes(self.array()?))),
                0x81 => Length::Plain(u64::from_be_bytes(self.array()?)),
                _ => return Err(self.malformed(format!("{first:#04x} begins no length"))),
            },
            _ => Length::Encoded(first & 63),
        })
    }

    /// A number.
    pub(super) fn length(&mut self) -> Result<u64, RdbError> {
        match self.length_or_encoding()? {
            Length::Plain(length) => Ok(length),
            Length::Encoded(_) => Err(self.malformed("a string stands where a number must")),
        }
    }

    /// The number of a database.
    pub(super) fn database(&mut self) -> Result<u32, RdbError> {
        let number = self.length()?;
        u32::try_from(number).map_err(|_| self.malformed(format!("there is no database {number}")))
    }

    /// A string, whole.
    pub(super) fn string(&mut self, to: &mut Vec<u8>) -> Result<(), RdbError> {
        to.clear();
        to.shrink_to(KEPT_CAPACITY);
        match self.length_or_encoding()? {
            Length::Plain(length) => self.append(length, to),
            Length::Encoded(string_encoding::LZF) => {
                self.lzf(to, &mut |_, _| Ok::<_, RdbError>(()))
            }
            Length::Encoded(encoding) => self.integer(encoding, to),
        }
    }

    /// A string in pieces.
    pub(super) fn string_in_pieces<E: From<RdbError>>(
        &mut self,
        on: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.length_or_encoding()? {
            Length::Plain(mut left) => {
                while left > 0 {
                    let some = self.some(left)?;
                    left -= some.len() as u64;
                    on(some)?;
                }
                Ok(())
            }
            Length::Encoded(string_encoding::LZF) => {
                let mut window = Vec::new();
                self.lzf(&mut window, &mut |window: &mut Vec<u8>, is_end| {
                    if is_end {
                        return on(window);
                    }
                    if window.len() >= PIECE_BYTES {
                        let done = window.len() - LZF_WINDOW;
                        on(&window[..done])?;
                        window.drain(..done);
                    }
                    Ok(())
                })
            }
            Length::Encoded(encoding) => {
                let mut digits = Vec::new();
                self.integer(encoding, &mut digits)?;
                on(&digits)
            }
        }
    }

    /// Reads over a string, for the sake of its copy, and hands the copy on when it is worth it.
    pub(super) fn skip_string<E: From<RdbError>>(
        &mut self,
        on: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = match self.length_or_encoding()? {
            Length::Plain(length) => length,
            Length::Encoded(string_encoding::LZF) => {
                let compressed = self.length()?;
                self.length()?;
                compressed
            }
            Length::Encoded(encoding) => return Ok(self.integer(encoding, &mut Vec::new())?),
        };
        while left > 0 {
            left -= self.some(left)?.len() as u64;
            if let Some(piece) = self.full_copy() {
                on(&piece)?;
            }
        }
        Ok(())
    }

    /// A string that is an integer.
    fn integer(&mut self, encoding: u8, to: &mut Vec<u8>) -> Result<(), RdbError> {
        let value = match encoding {
            string_encoding::INT8 => i64::from(i8::from_le_bytes(self.array()?)),
            string_encoding::INT16 => i64::from(i16::from_le_bytes(self.array()?)),
            string_encoding::INT32 => i64::from(i32::from_le_bytes(self.array()?)),
            _ => return Err(self.malformed(format!("strings have no encoding {encoding}"))),
        };
        write!(to, "{value}").map_err(|source| RdbError::Io {
            offset: self.offset(),
            source,
        })
    }

    /// A string that LZF has made smaller. `turn` is called with what lies there after each step of the
    /// compression, and may take all but the last [`LZF_WINDOW`] bytes; and at the end.
    fn lzf<E: From<RdbError>>(
        &mut self,
        to: &mut Vec<u8>,
        turn: &mut impl FnMut(&mut Vec<u8>, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        let compressed = self.length()?;
        let plain = self.length()?;
        let end = self
            .offset()
            .checked_add(compressed)
            .ok_or_else(|| self.malformed("a compressed string is longer than any file"))?;
        let mut left = plain;
        while self.offset() < end {
            let control = self.byte()?;
            let count = if control < 32 {
                let count = u64::from(control) + 1;
                if count <= left {
                    self.append(count, to)?;
                }
                count
            } else {
                let mut count = u64::from(control >> 5) + 2;
                if count == 9 {
                    count += u64::from(self.byte()?);
                }
                let back = (usize::from(control & 31) << 8 | usize::from(self.byte()?)) + 1;
                let Some(from) = to.len().checked_sub(back) else {
                    return Err(self
                        .malformed("a compressed string refers to what is before it")
                        .into());
                };
                if count <= left {
                    for at in from..from + count as usize {
                        let byte = to[at];
                        to.push(byte);
                    }
                }
                count
            };
            left = left
                .checked_sub(count)
                .ok_or_else(|| self.malformed("a compressed string is longer than it says"))?;
            turn(to, false)?;
        }
        if left > 0 || self.offset() > end {
            return Err(self
                .malformed("a compressed string is not as long as it says")
                .into());
        }
        turn(to, true)
    }
}
