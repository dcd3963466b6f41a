//! Reads RDBs and payloads of `DUMP` as they pass.

use std::io::Read;

use super::{
    NEWEST_VERSION, RdbError,
    format::{CHECKSUM, CHECKSUM_SINCE, MAGIC, PAYLOAD_FOOTER, module_opcode, opcode, value_type},
    input::Input,
    value::{self, Room},
};
use crate::records::{Element, KeyHead, Kind};

/// What an RDB holds, in its order.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// The keys that follow are of this database.
    Database(u32),
    /// How many keys the database has.
    SizeHint {
        /// Keys.
        keys: u64,
    },
    /// The code of a library of functions, as `FUNCTION LOAD` takes it.
    Function(&'a [u8]),
    /// A module keeps something beside keys.
    ModuleAux {
        /// The id of the module's type.
        module: u64,
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
///
/// Memory is bounded by the largest element, whatever the lengths in the file claim: strings and the payloads of
/// modules pass in pieces, other values element by element (an encoding that packs several elements into one string is
/// held whole, as the server holds it). How recently and how often a key was used is dropped: it changes from file to
/// file without any change to the data.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: Input<R>,
    room: Room,
}

impl<R: Read> Reader<R> {
    /// A reader of what `source` gives, which needs no buffer of its own.
    pub(crate) fn new(source: R) -> Self {
        Self {
            input: Input::new(source),
            room: Room::default(),
        }
    }

    /// Reads all of it. The source may be read beyond the RDB's end.
    pub(crate) fn read<E: From<RdbError>>(
        mut self,
        on: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<RdbSummary, E> {
        let version = self.version()?;
        let mut database = 0;
        let mut keys = 0;
        let mut key = Vec::new();
        let mut text = Vec::new();
        let mut expiry = None;
        loop {
            match self.input.byte()? {
                opcode::END => break,
                opcode::DATABASE => {
                    database = self.input.database()?;
                    on(Event::Database(database))?;
                }
                opcode::RESIZE => {
                    let keys = self.input.length()?;
                    // Of these, so many expire.
                    self.input.length()?;
                    on(Event::SizeHint { keys })?;
                }
                opcode::SLOT_INFO => {
                    // A slot, its keys, and those that expire.
                    for _ in 0..3 {
                        self.input.length()?;
                    }
                }
                opcode::AUX => {
                    // The name of a fact of the server that wrote this, and the fact.
                    self.input.string(&mut text)?;
                    self.input.string(&mut text)?;
                }
                opcode::EXPIRY_SECONDS => {
                    let seconds = i32::from_le_bytes(self.input.array()?);
                    expiry = Some(i64::from(seconds) * 1000);
                }
                opcode::EXPIRY_MILLISECONDS => {
                    expiry = Some(i64::from_le_bytes(self.input.array()?));
                }
                opcode::IDLE => {
                    self.input.length()?;
                }
                opcode::FREQUENCY => {
                    self.input.byte()?;
                }
                opcode::FUNCTION => {
                    self.input.string(&mut text)?;
                    on(Event::Function(&text))?;
                }
                opcode::FUNCTION_OF_CANDIDATES => {
                    return Err(self
                        .input
                        .unsupported(
                            "it holds functions as only release candidates of Redis 7.0 wrote them",
                        )
                        .into());
                }
                opcode::MODULE_AUX => self.module_aux(on)?,
                encoding => {
                    self.input.string(&mut key)?;
                    let expiry = expiry.take();
                    self.key(encoding, database, &key, expiry, on)?;
                    keys += 1;
                }
            }
        }
        let checked = version >= CHECKSUM_SINCE && self.check()?;
        Ok(RdbSummary {
            version,
            bytes: self.input.offset(),
            keys,
            checked,
        })
    }

    fn version(&mut self) -> Result<u32, RdbError> {
        let magic: [u8; 5] = self.input.array()?;
        let digits: [u8; 4] = self.input.array()?;
        if &magic == b"VALKE" {
            return Err(self
                .input
                .unsupported("it is of Valkey 9 or newer, whose format has another name"));
        }
        let version = std::str::from_utf8(&digits)
            .ok()
            .and_then(|digits| digits.parse().ok())
            .filter(|version| *version > 0 && &magic == MAGIC)
            .ok_or_else(|| self.input.malformed("this is not the beginning of an RDB"))?;
        if version > NEWEST_VERSION {
            return Err(self.input.unsupported(format!(
                "its version is {version}, and versions up to {NEWEST_VERSION} are understood"
            )));
        }
        Ok(version)
    }

    /// Whether there is a checksum, which is compared.
    fn check(&mut self) -> Result<bool, RdbError> {
        let computed = self.input.checksum();
        let written = self.input.long()?;
        // The server writes 0 where it is told not to compute it.
        if written != 0 && written != computed {
            return Err(self.input.malformed(format!(
                "its checksum says {written:016x}, and its bytes have {computed:016x}"
            )));
        }
        Ok(written != 0)
    }

    fn module_aux<E: From<RdbError>>(
        &mut self,
        on: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let module = self.input.length()?;
        let (when, _when) = (self.input.length()?, self.input.length()?);
        if when != module_opcode::UNSIGNED {
            return Err(self
                .input
                .malformed("a module's data do not say when they are to be loaded")
                .into());
        }
        value::module_parts(&mut self.input, &mut |_| Ok::<_, E>(()))?;
        on(Event::ModuleAux { module })
    }

    /// A key and its value, whose encoding was read.
    fn key<E: From<RdbError>>(
        &mut self,
        encoding: u8,
        database: u32,
        key: &[u8],
        expiry: Option<i64>,
        on: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let kind = if encoding == value_type::MODULE_2 {
            self.input.begin_copy();
            Kind::Module(self.input.length()?)
        } else {
            value::kind(encoding).ok_or_else(|| {
                self.input
                    .unsupported(format!("no type of value has the number {encoding}"))
            })?
        };
        on(Event::Begin(KeyHead {
            database,
            key,
            expiry,
            kind,
        }))?;
        value::read(&mut self.input, &mut self.room, encoding, &mut |element| {
            on(Event::Element(element))
        })?;
        on(Event::End)
    }
}

/// Reads what `DUMP` gave of a key, after comparing its checksum: a [`Event::Begin`], the elements, an
/// [`Event::End`].
pub(crate) fn read_payload<E: From<RdbError>>(
    payload: &[u8],
    database: u32,
    key: &[u8],
    expiry: Option<i64>,
    on: &mut impl FnMut(Event<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let value = payload.len().saturating_sub(PAYLOAD_FOOTER);
    let malformed = |what: &str| RdbError::Malformed {
        offset: payload.len() as u64,
        what: what.to_owned(),
    };
    let (value, footer) = payload.split_at(value);
    let Some((version, checksum)) = footer.split_first_chunk::<2>() else {
        return Err(malformed("it is too short for a key's payload").into());
    };
    let summed = payload.len() - checksum.len();
    if checksum != CHECKSUM.checksum(&payload[..summed]).to_le_bytes() {
        return Err(malformed("the payload's checksum is not that of its bytes").into());
    }
    let version = u32::from(u16::from_le_bytes(*version));
    if version > NEWEST_VERSION {
        return Err(RdbError::Unsupported {
            offset: value.len() as u64,
            what: format!(
                "the payload's version is {version}, and versions up to {NEWEST_VERSION} are understood"
            ),
        }
        .into());
    }
    let mut reader = Reader::new(value);
    let encoding = reader.input.byte()?;
    reader.key(encoding, database, key, expiry, on)?;
    if reader.input.is_at_end()? {
        Ok(())
    } else {
        Err(reader
            .input
            .malformed("the payload goes on after its value")
            .into())
    }
}
