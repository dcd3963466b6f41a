//! The stored form of keys: the bytes of a backup's streams.
//!
//! ```text
//! stream  := "frk" version record*             version: one byte, 1
//! record  := frame(head) value
//! frame   := length bytes                      length: of the bytes, as a number
//! head    := kind [module] [expiry] database elements bytes largest first_field_expiry key
//! value   := bytes                             of strings and modules: as many as the head says
//!          | frame(element)*                   of lists, sets, sorted sets and hashes: as many as the head says
//!          | frame(part)* frame()              of streams
//! element := item | member                     of lists and sets
//!          | score member                      of sorted sets
//!          | field_length*2+expires [expiry] field value
//! part    := 1 id (length bytes)*              an entry, with fields and values by turns
//!          | 2 last_id max_deleted_id entries_added groups
//!          | 3 last_id known [entries_read] pending name
//!          | 4 id delivered deliveries         pending in the group
//!          | 5 consumers
//!          | 6 seen known [active] pending name
//!          | 7 id                              pending at the consumer
//! id      := milliseconds sequence
//! ```
//!
//! Numbers have seven bits a byte, the least significant first, the upper bit saying that another byte follows; `kind`,
//! `known`, the tags of parts are one byte; module ids, scores, and moments but those of fields are eight bytes, the
//! least significant first. `kind` is 0 to 6 in the order of [`Kind`], plus 128 where an expiry follows. What stands
//! last in a frame (a key, a member, a value, a name) takes the rest of it.

use super::{Element, KeyHead, Kind, Size, StreamId};

/// What a stream begins with.
pub(super) const HEADER: [u8; 4] = *b"frk\x01";

/// Added to a kind where an expiry follows.
const EXPIRES: u8 = 0x80;

/// The tags of a stream's parts.
mod part {
    pub(super) const ENTRY: u8 = 1;
    pub(super) const FACTS: u8 = 2;
    pub(super) const GROUP: u8 = 3;
    pub(super) const PENDING: u8 = 4;
    pub(super) const CONSUMERS: u8 = 5;
    pub(super) const CONSUMER: u8 = 6;
    pub(super) const CONSUMER_PENDING: u8 = 7;
}

fn put_number(mut number: u64, to: &mut Vec<u8>) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn number_bytes(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_id(id: StreamId, to: &mut Vec<u8>) {
    put_number(id.milliseconds, to);
    put_number(id.sequence, to);
}

/// Adds a frame that `fill` fills.
fn put_frame(to: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let begin = to.len();
    // Room for the length of most frames.
    to.push(0);
    fill(to);
    let length = to.len() - begin - 1;
    if length < 0x80 {
        to[begin] = length as u8;
        return;
    }
    let mut head = Vec::with_capacity(number_bytes(length as u64));
    put_number(length as u64, &mut head);
    to.splice(begin..=begin, head);
}

/// Adds the head of a record.
pub(super) fn put_head(head: &KeyHead<'_>, size: &Size, to: &mut Vec<u8>) {
    put_frame(to, |to| {
        let (kind, module) = match head.kind {
            Kind::String => (0, None),
            Kind::List => (1, None),
            Kind::Set => (2, None),
            Kind::SortedSet => (3, None),
            Kind::Hash => (4, None),
            Kind::Stream => (5, None),
            Kind::Module(id) => (6, Some(id)),
        };
        to.push(kind | if head.expiry.is_some() { EXPIRES } else { 0 });
        to.extend(module.iter().flat_map(|id| id.to_le_bytes()));
        to.extend(head.expiry.iter().flat_map(|moment| moment.to_le_bytes()));
        put_number(u64::from(head.database), to);
        put_number(size.elements, to);
        put_number(size.bytes, to);
        put_number(size.largest, to);
        put_number(size.first_field_expiry, to);
        to.extend_from_slice(head.key);
    });
}

/// Adds what stands after the elements of a value.
pub(super) fn put_end(kind: Kind, to: &mut Vec<u8>) {
    if kind == Kind::Stream {
        to.push(0);
    }
}

/// Adds an element, and counts it in the size of its value.
pub(super) fn put_element(element: &Element<'_>, size: &mut Size, to: &mut Vec<u8>) {
    let begin = to.len();
    match *element {
        Element::StringPiece(piece) | Element::ModulePiece(piece) => {
            to.extend_from_slice(piece);
            size.bytes += piece.len() as u64;
            return;
        }
        Element::Item(string) | Element::Member(string) => {
            size.elements += 1;
            put_number(string.len() as u64, to);
            to.extend_from_slice(string);
        }
        Element::Scored { member, score } => {
            size.elements += 1;
            put_number(8 + member.len() as u64, to);
            to.extend_from_slice(&score.to_bits().to_le_bytes());
            to.extend_from_slice(member);
        }
        Element::Field {
            field,
            value,
            expiry,
        } => {
            size.elements += 1;
            if let Some(moment) = expiry {
                let first = &mut size.first_field_expiry;
                *first = if *first == 0 {
                    moment
                } else {
                    moment.min(*first)
                };
            }
            let head = (field.len() as u64) << 1 | u64::from(expiry.is_some());
            let length =
                number_bytes(head) + expiry.map_or(0, number_bytes) + field.len() + value.len();
            put_number(length as u64, to);
            put_number(head, to);
            if let Some(moment) = expiry {
                put_number(moment, to);
            }
            to.extend_from_slice(field);
            to.extend_from_slice(value);
        }
        _ => {
            size.elements += u64::from(matches!(element, Element::Entry { .. }));
            put_frame(to, |to| put_part(element, to));
        }
    }
    let bytes = (to.len() - begin) as u64;
    size.bytes += bytes;
    size.largest = size.largest.max(bytes);
}

/// Adds a part of a stream.
fn put_part(element: &Element<'_>, to: &mut Vec<u8>) {
    match *element {
        Element::Entry { id, fields } => {
            to.push(part::ENTRY);
            put_id(id, to);
            for text in fields {
                put_number(text.len() as u64, to);
                to.extend_from_slice(text);
            }
        }
        Element::StreamFacts {
            last_id,
            max_deleted_id,
            entries_added,
            groups,
        } => {
            to.push(part::FACTS);
            put_id(last_id, to);
            put_id(max_deleted_id, to);
            put_number(entries_added, to);
            put_number(groups, to);
        }
        Element::Group {
            name,
            last_id,
            entries_read,
            pending,
        } => {
            to.push(part::GROUP);
            put_id(last_id, to);
            to.push(u8::from(entries_read.is_some()));
            if let Some(read) = entries_read {
                put_number(read, to);
            }
            put_number(pending, to);
            to.extend_from_slice(name);
        }
        Element::Pending {
            id,
            delivered,
            deliveries,
        } => {
            to.push(part::PENDING);
            put_id(id, to);
            to.extend_from_slice(&delivered.to_le_bytes());
            put_number(deliveries, to);
        }
        Element::Consumers(count) => {
            to.push(part::CONSUMERS);
            put_number(count, to);
        }
        Element::Consumer {
            name,
            seen,
            active,
            pending,
        } => {
            to.push(part::CONSUMER);
            to.extend_from_slice(&seen.to_le_bytes());
            to.push(u8::from(active.is_some()));
            to.extend(active.iter().flat_map(|moment| moment.to_le_bytes()));
            put_number(pending, to);
            to.extend_from_slice(name);
        }
        Element::ConsumerPending(id) => {
            to.push(part::CONSUMER_PENDING);
            put_id(id, to);
        }
        Element::StringPiece(_)
        | Element::ModulePiece(_)
        | Element::Item(_)
        | Element::Member(_)
        | Element::Scored { .. }
        | Element::Field { .. } => {}
    }
}

/// Takes things off the front of bytes. Nothing where they end too early.
#[derive(Clone, Copy)]
struct Front<'a>(&'a [u8]);

impl<'a> Front<'a> {
    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number; as if the bytes had ended where it is too large.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn moment(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn id(&mut self) -> Option<StreamId> {
        Some(StreamId {
            milliseconds: self.number()?,
            sequence: self.number()?,
        })
    }

    /// The bytes of a frame, if they are all there.
    fn frame(&mut self) -> Option<Front<'a>> {
        let mut ahead = *self;
        let length = ahead.number()?;
        let frame = ahead.take(length)?;
        *self = ahead;
        Some(Front(frame))
    }

    fn head(mut self) -> Option<(KeyHead<'a>, Size)> {
        let kind = self.byte()?;
        let expires = kind & EXPIRES != 0;
        let kind = match kind & !EXPIRES {
            0 => Kind::String,
            1 => Kind::List,
            2 => Kind::Set,
            3 => Kind::SortedSet,
            4 => Kind::Hash,
            5 => Kind::Stream,
            6 => Kind::Module(self.array().map(u64::from_le_bytes)?),
            _ => return None,
        };
        let expiry = if expires { Some(self.moment()?) } else { None };
        let database = u32::try_from(self.number()?).ok()?;
        let size = Size {
            elements: self.number()?,
            bytes: self.number()?,
            largest: self.number()?,
            first_field_expiry: self.number()?,
        };
        let head = KeyHead {
            database,
            key: self.0,
            expiry,
            kind,
        };
        Some((head, size))
    }

    /// An element of a list, a set, a sorted set or a hash.
    fn element(mut self, kind: Kind) -> Option<Element<'a>> {
        Some(match kind {
            Kind::List => Element::Item(self.0),
            Kind::Set => Element::Member(self.0),
            Kind::SortedSet => Element::Scored {
                score: f64::from_bits(self.array().map(u64::from_le_bytes)?),
                member: self.0,
            },
            Kind::Hash => {
                let head = self.number()?;
                let expiry = if head & 1 == 1 {
                    Some(self.number()?)
                } else {
                    None
                };
                Element::Field {
                    field: self.take(head >> 1)?,
                    value: self.0,
                    expiry,
                }
            }
            Kind::String | Kind::Stream | Kind::Module(_) => return None,
        })
    }

    /// A part of a stream.
    fn part<'b>(mut self, fields: &'b mut Vec<Vec<u8>>) -> Option<Element<'b>>
    where
        'a: 'b,
    {
        Some(match self.byte()? {
            part::ENTRY => {
                let id = self.id()?;
                let mut used = 0;
                while !self.0.is_empty() {
                    let length = self.number()?;
                    let text = self.take(length)?;
                    if fields.len() == used {
                        fields.push(Vec::new());
                    }
                    fields[used].clear();
                    fields[used].extend_from_slice(text);
                    used += 1;
                }
                fields.truncate(used);
                Element::Entry { id, fields }
            }
            part::FACTS => Element::StreamFacts {
                last_id: self.id()?,
                max_deleted_id: self.id()?,
                entries_added: self.number()?,
                groups: self.number()?,
            },
            part::GROUP => Element::Group {
                last_id: self.id()?,
                entries_read: if self.byte()? == 0 {
                    None
                } else {
                    Some(self.number()?)
                },
                pending: self.number()?,
                name: self.0,
            },
            part::PENDING => Element::Pending {
                id: self.id()?,
                delivered: self.moment()?,
                deliveries: self.number()?,
            },
            part::CONSUMERS => Element::Consumers(self.number()?),
            part::CONSUMER => Element::Consumer {
                seen: self.moment()?,
                active: if self.byte()? == 0 {
                    None
                } else {
                    Some(self.moment()?)
                },
                pending: self.number()?,
                name: self.0,
            },
            part::CONSUMER_PENDING => Element::ConsumerPending(self.id()?),
            _ => return None,
        })
    }
}

/// The head at the front of a record.
pub(super) fn head_of(record: &[u8]) -> Option<KeyHead<'_>> {
    let (head, _) = Front(record).frame()?.head()?;
    Some(head)
}

/// Why stored bytes cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the stored keys cannot be read at byte {offset}: {what}")]
pub(crate) struct StoredError {
    /// Byte of the stream.
    pub(crate) offset: u64,
    /// What was found there.
    pub(crate) what: &'static str,
}

/// What a stream of stored records holds, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RecordEvent<'a> {
    /// A key begins.
    Begin(KeyHead<'a>, Size),
    /// A piece of its value.
    Element(Element<'a>),
    /// The key ends.
    End,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default)]
enum Next {
    #[default]
    Header,
    Head,
    /// Bytes of a string, or of a module's payload.
    Raw {
        is_string: bool,
        left: u64,
    },
    Elements {
        kind: Kind,
        left: u64,
    },
    Parts,
}

/// Reads the stored form as its bytes come. Keeps at most the bytes of one element.
#[derive(Debug, Default)]
pub(crate) struct RecordReader {
    next: Next,
    /// The beginning of what is not whole yet.
    begun: Vec<u8>,
    offset: u64,
    keys: u64,
    fields: Vec<Vec<u8>>,
}

impl RecordReader {
    /// A reader at the beginning of a stream.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes, cut anywhere, and tells what they complete. After an error the reader is of no more use.
    pub(crate) fn feed<E: From<StoredError>>(
        &mut self,
        bytes: &[u8],
        on: &mut impl FnMut(RecordEvent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.begun.is_empty() {
            let left = self.read(bytes, on)?;
            self.begun.extend_from_slice(left);
            return Ok(());
        }
        let mut begun = std::mem::take(&mut self.begun);
        begun.extend_from_slice(bytes);
        let left = self.read(&begun, on)?.len();
        begun.drain(..begun.len() - left);
        begun.shrink_to(left.max(1 << 20));
        self.begun = begun;
        Ok(())
    }

    /// Says that the stream ended here; how many keys it held.
    pub(crate) fn finish(self) -> Result<u64, StoredError> {
        if matches!(self.next, Next::Head) && self.begun.is_empty() {
            Ok(self.keys)
        } else {
            Err(self.error("it ends in the middle"))
        }
    }

    fn error(&self, what: &'static str) -> StoredError {
        StoredError {
            offset: self.offset,
            what,
        }
    }

    /// Tells what these bytes hold and gives back what is not whole.
    fn read<'a, E: From<StoredError>>(
        &mut self,
        bytes: &'a [u8],
        on: &mut impl FnMut(RecordEvent<'_>) -> Result<(), E>,
    ) -> Result<&'a [u8], E> {
        let mut front = Front(bytes);
        loop {
            let before = front.0.len();
            // What has no element left ends before more bytes come.
            match self.next {
                Next::Raw { left: 0, .. } | Next::Elements { left: 0, .. } => {
                    self.end(on)?;
                    continue;
                }
                _ if front.0.is_empty() => return Ok(front.0),
                Next::Header => match front.array() {
                    None => return Ok(front.0),
                    Some(HEADER) => self.next = Next::Head,
                    Some(_) => {
                        return Err(self.error("these are no keys in a form known here").into());
                    }
                },
                Next::Head => {
                    let Some(frame) = front.frame() else {
                        return self.incomplete(front);
                    };
                    let (head, size) = frame
                        .head()
                        .ok_or_else(|| self.error("the head of a key is damaged"))?;
                    self.next = match head.kind {
                        Kind::String | Kind::Module(_) => Next::Raw {
                            is_string: head.kind == Kind::String,
                            left: size.bytes,
                        },
                        Kind::Stream => Next::Parts,
                        kind => Next::Elements {
                            kind,
                            left: size.elements,
                        },
                    };
                    on(RecordEvent::Begin(head, size))?;
                }
                Next::Raw { is_string, left } => {
                    let count = left.min(front.0.len() as u64);
                    let piece = front.take(count).unwrap_or_default();
                    self.next = Next::Raw {
                        is_string,
                        left: left - count,
                    };
                    on(RecordEvent::Element(if is_string {
                        Element::StringPiece(piece)
                    } else {
                        Element::ModulePiece(piece)
                    }))?;
                }
                Next::Elements { kind, left } => {
                    let Some(frame) = front.frame() else {
                        return self.incomplete(front);
                    };
                    let element = frame
                        .element(kind)
                        .ok_or_else(|| self.error("an element is damaged"))?;
                    self.next = Next::Elements {
                        kind,
                        left: left - 1,
                    };
                    on(RecordEvent::Element(element))?;
                }
                Next::Parts => {
                    let Some(frame) = front.frame() else {
                        return self.incomplete(front);
                    };
                    if frame.0.is_empty() {
                        self.end(on)?;
                    } else {
                        let mut fields = std::mem::take(&mut self.fields);
                        let part = frame
                            .part(&mut fields)
                            .ok_or_else(|| self.error("a part of a stream is damaged"))?;
                        on(RecordEvent::Element(part))?;
                        self.fields = fields;
                    }
                }
            }
            self.offset += (before - front.0.len()) as u64;
        }
    }

    fn end<E>(&mut self, on: &mut impl FnMut(RecordEvent<'_>) -> Result<(), E>) -> Result<(), E> {
        self.next = Next::Head;
        self.keys += 1;
        on(RecordEvent::End)
    }

    /// Waits for the rest of a frame, unless its length can be no length.
    fn incomplete<'a, E: From<StoredError>>(&self, front: Front<'a>) -> Result<&'a [u8], E> {
        let mut ahead = front;
        if ahead.number().is_none() && front.0.len() >= 10 {
            return Err(self.error("a length is damaged").into());
        }
        Ok(front.0)
    }
}
