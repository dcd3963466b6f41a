//! Encodes values plainly.

use super::{
    format::{entry_flag, value_type},
    packed::back_length_bytes,
};
use crate::records::{Element, Kind, Size, StreamId};

/// The version of the format since Redis 5, which holds all that has no newer encoding here.
const PLAIN_VERSION: u32 = 9;

/// Since Redis 7.0, streams say how many entries were ever added and what their groups have read.
const STREAM_2_VERSION: u32 = 10;

/// Since Redis 7.2, streams say when a consumer was active last.
const STREAM_3_VERSION: u32 = 11;

/// Since Redis 7.4, fields of hashes can expire.
const EXPIRING_FIELDS_VERSION: u32 = 12;

/// Entries of a stream in one of its nodes, at most: what servers put there by default.
const ENTRIES_PER_NODE: u64 = 100;

/// About how many bytes a node of a stream may hold, unless one entry alone holds more.
const NODE_BYTES: u64 = 1 << 20;

/// The version of the format without which a value cannot be written whole: 12 where fields of a hash expire, else
/// 9. (Streams are written for any version, with what it can say of them.)
pub(crate) fn needed_version(kind: Kind, size: &Size) -> u32 {
    match kind {
        Kind::Hash if size.first_field_expiry > 0 => EXPIRING_FIELDS_VERSION,
        _ => PLAIN_VERSION,
    }
}

/// Adds a length.
pub(super) fn put_length(length: u64, to: &mut Vec<u8>) {
    if length < 1 << 6 {
        to.push(length as u8);
    } else if length < 1 << 14 {
        to.extend_from_slice(&(0x4000 | length as u16).to_be_bytes());
    } else if let Ok(length) = u32::try_from(length) {
        to.push(0x80);
        to.extend_from_slice(&length.to_be_bytes());
    } else {
        to.push(0x81);
        to.extend_from_slice(&length.to_be_bytes());
    }
}

/// Adds a string.
pub(super) fn put_string(string: &[u8], to: &mut Vec<u8>) {
    put_length(string.len() as u64, to);
    to.extend_from_slice(string);
}

/// Encodes one value.
#[derive(Debug)]
pub(super) struct Encoder {
    encoding: u8,
    size: Size,
    node: Node,
}

impl Encoder {
    pub(super) fn new(kind: Kind, size: &Size, at_most_version: u32) -> Self {
        let encoding = match kind {
            Kind::String => value_type::STRING,
            Kind::List => value_type::LIST,
            Kind::Set => value_type::SET,
            Kind::SortedSet => value_type::SORTED_SET_2,
            Kind::Hash if size.first_field_expiry > 0 => value_type::HASH_EXPIRING,
            Kind::Hash => value_type::HASH,
            Kind::Stream if at_most_version >= STREAM_3_VERSION => value_type::STREAM_3,
            Kind::Stream if at_most_version >= STREAM_2_VERSION => value_type::STREAM_2,
            Kind::Stream => value_type::STREAM,
            Kind::Module(_) => value_type::MODULE_2,
        };
        Self {
            encoding,
            size: *size,
            node: Node::default(),
        }
    }

    /// The number of the encoding, which stands before the value (and its key).
    pub(super) fn encoding(&self) -> u8 {
        self.encoding
    }

    /// The version of the format that knows the encoding.
    pub(super) fn version(&self) -> u32 {
        match self.encoding {
            value_type::HASH_EXPIRING => EXPIRING_FIELDS_VERSION,
            value_type::STREAM_3 => STREAM_3_VERSION,
            value_type::STREAM_2 => STREAM_2_VERSION,
            _ => PLAIN_VERSION,
        }
    }

    /// Entries that each node of the stream takes; the last one takes the rest.
    fn entries_per_node(&self) -> u64 {
        (NODE_BYTES / self.size.largest.max(1)).clamp(1, ENTRIES_PER_NODE)
    }

    /// Adds what stands before the elements.
    pub(super) fn begin(&self, to: &mut Vec<u8>) {
        match self.encoding {
            value_type::MODULE_2 => {}
            value_type::STRING => put_length(self.size.bytes, to),
            value_type::STREAM | value_type::STREAM_2 | value_type::STREAM_3 => {
                put_length(self.size.elements.div_ceil(self.entries_per_node()), to);
            }
            value_type::HASH_EXPIRING => {
                to.extend_from_slice(&self.size.first_field_expiry.to_le_bytes());
                put_length(self.size.elements, to);
            }
            _ => put_length(self.size.elements, to),
        }
    }

    /// Adds an element.
    pub(super) fn element(&mut self, element: &Element<'_>, to: &mut Vec<u8>) {
        match *element {
            Element::StringPiece(piece) | Element::ModulePiece(piece) => {
                to.extend_from_slice(piece);
            }
            Element::Item(string) | Element::Member(string) => put_string(string, to),
            Element::Scored { member, score } => {
                put_string(member, to);
                to.extend_from_slice(&score.to_bits().to_le_bytes());
            }
            Element::Field {
                field,
                value,
                expiry,
            } => {
                if self.encoding == value_type::HASH_EXPIRING {
                    // Counted from the first, which is 1.
                    let after =
                        expiry.map_or(0, |at| at.saturating_sub(self.size.first_field_expiry) + 1);
                    put_length(after, to);
                }
                put_string(field, to);
                put_string(value, to);
            }
            Element::Entry { id, fields } => {
                self.node.add(id, fields);
                if self.node.entries == self.entries_per_node() {
                    self.node.end(to);
                }
            }
            Element::StreamFacts {
                last_id,
                max_deleted_id,
                entries_added,
                groups,
            } => {
                if self.node.entries > 0 {
                    self.node.end(to);
                }
                put_length(self.size.elements, to);
                put_id(last_id, to);
                if self.encoding != value_type::STREAM {
                    put_id(self.node.first_id, to);
                    put_id(max_deleted_id, to);
                    put_length(entries_added, to);
                }
                put_length(groups, to);
            }
            Element::Group {
                name,
                last_id,
                entries_read,
                pending,
            } => {
                put_string(name, to);
                put_id(last_id, to);
                if self.encoding != value_type::STREAM {
                    // -1 for not known.
                    put_length(entries_read.unwrap_or(u64::MAX), to);
                }
                put_length(pending, to);
            }
            Element::Pending {
                id,
                delivered,
                deliveries,
            } => {
                to.extend_from_slice(&id_bytes(id));
                to.extend_from_slice(&delivered.to_le_bytes());
                put_length(deliveries, to);
            }
            Element::Consumers(count) => put_length(count, to),
            Element::Consumer {
                name,
                seen,
                active,
                pending,
            } => {
                put_string(name, to);
                to.extend_from_slice(&seen.to_le_bytes());
                if self.encoding == value_type::STREAM_3 {
                    to.extend_from_slice(&active.unwrap_or(seen).to_le_bytes());
                }
                put_length(pending, to);
            }
            Element::ConsumerPending(id) => to.extend_from_slice(&id_bytes(id)),
        }
    }
}

fn put_id(id: StreamId, to: &mut Vec<u8>) {
    put_length(id.milliseconds, to);
    put_length(id.sequence, to);
}

fn id_bytes(id: StreamId) -> [u8; 16] {
    (u128::from(id.milliseconds) << 64 | u128::from(id.sequence)).to_be_bytes()
}

/// The node of a stream that is being filled.
#[derive(Debug, Default)]
struct Node {
    entries: u64,
    /// The id of the node's first entry, from which the others count.
    base: StreamId,
    /// The fields of the node's first entry, which the others need not repeat.
    common: Vec<Vec<u8>>,
    packed: Packing,
    /// The id of the first entry of the whole stream.
    first_id: StreamId,
}

impl Node {
    fn add(&mut self, id: StreamId, fields: &[Vec<u8>]) {
        if self.first_id == StreamId::default() {
            self.first_id = id;
        }
        let names = || fields.iter().step_by(2);
        if self.entries == 0 {
            self.base = id;
            self.common = names().cloned().collect();
            self.packed = Packing::default();
        }
        self.entries += 1;
        let is_common = names().eq(&self.common);
        self.packed.integer(if is_common {
            entry_flag::SAME_FIELDS
        } else {
            0
        });
        let after = |id: u64, base: u64| id.wrapping_sub(base) as i64;
        self.packed
            .integer(after(id.milliseconds, self.base.milliseconds));
        self.packed.integer(after(id.sequence, self.base.sequence));
        let count = (fields.len() / 2) as i64;
        if is_common {
            for value in fields.iter().skip(1).step_by(2) {
                self.packed.string(value);
            }
            self.packed.integer(count + 3);
        } else {
            self.packed.integer(count);
            for text in fields {
                self.packed.string(text);
            }
            self.packed.integer(2 * count + 4);
        }
    }

    /// Adds the node, which is whole; the next one begins.
    fn end(&mut self, to: &mut Vec<u8>) {
        put_string(&id_bytes(self.base), to);
        let mut head = Packing::default();
        head.integer(self.entries as i64);
        // None of them is deleted.
        head.integer(0);
        head.integer(self.common.len() as i64);
        self.common.iter().for_each(|field| head.string(field));
        head.integer(0);
        let entries = std::mem::take(&mut self.packed);
        head.end(&entries, to);
        self.entries = 0;
    }
}

/// A listpack that is being filled.
#[derive(Debug, Default)]
struct Packing {
    count: u64,
    bytes: Vec<u8>,
}

impl Packing {
    fn integer(&mut self, value: i64) {
        let begin = self.bytes.len();
        if let Ok(small @ 0..=127) = u8::try_from(value) {
            self.bytes.push(small);
        } else {
            self.bytes.push(0xf4);
            self.bytes.extend_from_slice(&value.to_le_bytes());
        }
        self.end_entry(begin);
    }

    fn string(&mut self, string: &[u8]) {
        let begin = self.bytes.len();
        match string.len() {
            short @ 0..64 => self.bytes.push(0x80 | short as u8),
            middle @ 64..4096 => self
                .bytes
                .extend_from_slice(&(0xe000 | middle as u16).to_be_bytes()),
            long => {
                self.bytes.push(0xf0);
                self.bytes.extend_from_slice(&(long as u32).to_le_bytes());
            }
        }
        self.bytes.extend_from_slice(string);
        self.end_entry(begin);
    }

    /// Adds the entry's length, seven bits a byte, so that it can be read from its end: the most significant byte
    /// comes first, and all but that one have the upper bit.
    fn end_entry(&mut self, begin: usize) {
        self.count += 1;
        let length = self.bytes.len() - begin;
        let count = back_length_bytes(length);
        for at in (0..count).rev() {
            let more = if at + 1 == count { 0 } else { 0x80 };
            self.bytes.push((length >> (7 * at)) as u8 & 0x7f | more);
        }
    }

    /// Adds the listpack, with the entries of another one at its end, as a string.
    fn end(self, rest: &Self, to: &mut Vec<u8>) {
        const AROUND: usize = 4 + 2 + 1;
        let bytes = self.bytes.len() + rest.bytes.len() + AROUND;
        put_length(bytes as u64, to);
        to.extend_from_slice(&(bytes as u32).to_le_bytes());
        // The greatest number stands for any greater one.
        let count = u16::try_from(self.count + rest.count).unwrap_or(u16::MAX);
        to.extend_from_slice(&count.to_le_bytes());
        to.extend_from_slice(&self.bytes);
        to.extend_from_slice(&rest.bytes);
        to.push(0xff);
    }
}

/// A listpack of texts.
#[cfg(test)]
pub(super) fn packed_for_tests(texts: &[&[u8]]) -> Vec<u8> {
    let mut packing = Packing::default();
    texts.iter().for_each(|text| packing.string(text));
    let mut string = Vec::new();
    packing.end(&Packing::default(), &mut string);
    // Without the length of the string, which is one byte.
    string.split_off(1)
}
