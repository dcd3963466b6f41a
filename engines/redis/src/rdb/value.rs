//! Reads values in all their encodings.

use std::io::Read;

use super::{
    RdbError,
    format::{entry_flag, list_node, module_opcode, text_score, value_type},
    input::Input,
    packed::{self, Digits, ListPack, Packed, Wrong, ZipList, ZipMap},
};
use crate::records::{Element, Kind, StreamId};

/// Buffers that are used for element after element.
#[derive(Debug, Default)]
pub(super) struct Room {
    first: Vec<u8>,
    second: Vec<u8>,
    digits: (Digits, Digits),
    fields: Vec<Vec<u8>>,
}

/// What a value of this encoding is; nothing for a module's, which names its type itself, and for unknown ones.
pub(super) fn kind(encoding: u8) -> Option<Kind> {
    Some(match encoding {
        value_type::STRING => Kind::String,
        value_type::LIST
        | value_type::LIST_ZIPLIST
        | value_type::LIST_QUICKLIST
        | value_type::LIST_QUICKLIST_2 => Kind::List,
        value_type::SET | value_type::SET_INTSET | value_type::SET_LISTPACK => Kind::Set,
        value_type::SORTED_SET
        | value_type::SORTED_SET_2
        | value_type::SORTED_SET_ZIPLIST
        | value_type::SORTED_SET_LISTPACK => Kind::SortedSet,
        value_type::HASH
        | value_type::HASH_ZIPMAP
        | value_type::HASH_ZIPLIST
        | value_type::HASH_LISTPACK
        | value_type::HASH_EXPIRING_OF_CANDIDATES
        | value_type::HASH_EXPIRING_LISTPACK_OF_CANDIDATES
        | value_type::HASH_EXPIRING
        | value_type::HASH_EXPIRING_LISTPACK => Kind::Hash,
        value_type::STREAM | value_type::STREAM_2 | value_type::STREAM_3 => Kind::Stream,
        _ => return None,
    })
}

/// Reads a value of this encoding.
pub(super) fn read<R: Read, E: From<RdbError>>(
    input: &mut Input<R>,
    room: &mut Room,
    encoding: u8,
    on: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E> {
    match encoding {
        value_type::STRING => input.string_in_pieces(&mut |piece| on(Element::StringPiece(piece))),
        value_type::LIST => each_string(input, room, &mut |item| on(Element::Item(item))),
        value_type::SET => each_string(input, room, &mut |member| on(Element::Member(member))),
        value_type::LIST_ZIPLIST => list_ziplist(input, room, on),
        value_type::LIST_QUICKLIST => {
            for _ in 0..input.length()? {
                list_ziplist(input, room, on)?;
            }
            Ok(())
        }
        value_type::LIST_QUICKLIST_2 => quicklist(input, room, on),
        value_type::SET_INTSET => {
            input.string(&mut room.first)?;
            let members = packed::integers(&room.first);
            for member in members.map_err(|wrong| input.malformed(wrong))? {
                on(Element::Member(packed::digits(member, &mut room.digits.0)))?;
            }
            Ok(())
        }
        value_type::SET_LISTPACK => {
            each_packed(input, &mut room.first, ListPack::new, &mut |member, _| {
                on(Element::Member(member.text(&mut room.digits.0)))
            })
        }
        value_type::SORTED_SET | value_type::SORTED_SET_2 => {
            sorted_set(input, room, encoding == value_type::SORTED_SET, on)
        }
        value_type::SORTED_SET_ZIPLIST => packed_sorted_set(input, room, ZipList::new, on),
        value_type::SORTED_SET_LISTPACK => packed_sorted_set(input, room, ListPack::new, on),
        value_type::HASH => {
            for _ in 0..input.length()? {
                input.string(&mut room.first)?;
                input.string(&mut room.second)?;
                on(Element::Field {
                    field: &room.first,
                    value: &room.second,
                    expiry: None,
                })?;
            }
            Ok(())
        }
        value_type::HASH_ZIPMAP => {
            input.string(&mut room.first)?;
            for entry in ZipMap::new(&room.first).map_err(|wrong| input.malformed(wrong))? {
                let (field, value) = entry.map_err(|wrong| input.malformed(wrong))?;
                on(Element::Field {
                    field,
                    value,
                    expiry: None,
                })?;
            }
            Ok(())
        }
        value_type::HASH_ZIPLIST => packed_hash(input, room, ZipList::new, on),
        value_type::HASH_LISTPACK => packed_hash(input, room, ListPack::new, on),
        value_type::HASH_EXPIRING | value_type::HASH_EXPIRING_OF_CANDIDATES => {
            expiring_hash(input, room, encoding == value_type::HASH_EXPIRING, on)
        }
        value_type::HASH_EXPIRING_LISTPACK | value_type::HASH_EXPIRING_LISTPACK_OF_CANDIDATES => {
            if encoding == value_type::HASH_EXPIRING_LISTPACK {
                // The first expiry, which the fields say too.
                input.long()?;
            }
            packed_expiring_hash(input, room, on)
        }
        value_type::STREAM | value_type::STREAM_2 | value_type::STREAM_3 => {
            stream(input, room, encoding, on)
        }
        value_type::MODULE_2 => module_parts(input, &mut |piece| on(Element::ModulePiece(piece))),
        _ => Err(input
            .unsupported(format!("no type of value has the number {encoding}"))
            .into()),
    }
}

fn each_string<R: Read, E: From<RdbError>>(
    input: &mut Input<R>,
    room: &mut Room,
    on: &mut impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    for _ in 0..input.length()? {
        input.string(&mut room.first)?;
        on(&room.first)?;
    }
    Ok(())
}

/// Reads a packed value and calls `on` with each entry and the ones after it.
fn each_packed<'a, R, I, E>(
    input: &mut Input<R>,
    room: &'a mut Vec<u8>,
    open: impl FnOnce(&'a [u8]) -> Result<I, Wrong>,
    on: &mut impl FnMut(Packed<'a>, &mut Entries<I>) -> Result<(), E>,
) -> Result<(), E>
where
    R: Read,
    I: Iterator<Item = Result<Packed<'a>, Wrong>>,
    E: From<RdbError>,
{
    input.string(room)?;
    let mut entries = Entries {
        packed: open(room).map_err(|wrong| input.malformed(wrong))?,
        offset: input.offset(),
    };
    while let Some(entry) = entries.next()? {
        on(entry, &mut entries)?;
    }
    Ok(())
}

/// The entries of a packed value, whose damage is told by where it ends in the file.
struct Entries<I> {
    packed: I,
    offset: u64,
}

impl<'a, I: Iterator<Item = Result<Packed<'a>, Wrong>>> Entries<I> {
    fn wrong(&self, what: &str) -> RdbError {
        RdbError::Malformed {
            offset: self.offset,
            what: what.to_owned(),
        }
    }

    fn next(&mut self) -> Result<Option<Packed<'a>>, RdbError> {
        self.packed
            .next()
            .transpose()
            .map_err(|wrong| self.wrong(wrong))
    }

    /// The entry that must come.
    fn expect(&mut self) -> Result<Packed<'a>, RdbError> {
        self.next()?
            .ok_or_else(|| self.wrong("a packed value ends in the middle"))
    }

    fn expect_integer(&mut self) -> Result<i64, RdbError> {
        self.expect()?
            .integer()
            .ok_or_else(|| self.wrong("a packed value holds a text where a number must be"))
    }

    /// A count of what follows.
    fn expect_count(&mut self) -> Result<u64, RdbError> {
        u64::try_from(self.expect_integer()?)
            .map_err(|_| self.wrong("a packed value counts less than nothing"))
    }
}

fn list_ziplist<R: Read, E: From<RdbError>>(
    input: &mut Input<R>,
    room: &mut Room,
    on: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E> {
    each_packed(input, &mut room.first, ZipList::new, &mut |item, _| {
        on(Element::Item(item.text(&mut room.digits.0)))
    })
}

fn quicklist<R: Read, E: From<RdbError>>(
    input: &mut Input<R>,
    room: &mut Room,
    on: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E> {
    for _ in 0..input.length()? {
        match input.length()? {
            list_node::PLAIN => {
                input.string(&mut room.first)?;
                on(Element::Item(&room.first))?;
            }
            list_node::PACKED => {
                each_packed(input, &mut room.first, ListPack::new, &mut |item, _| {
                    on(Element::Item(item.text(&mut room.digits.0)))
                })?;
            }
            other => {
                return Err(input
                    .malformed(format!("nodes of lists have no format {other}"))
                    .into());
            }
        }
    }
    Ok(())
}

fn sorted_set<R: Read, E: From<RdbError>>(
    input: &mut Input<R>,
    room: &mut Room,
    scores_are_texts: bool,
    on: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E> {
    for _ in 0..input.length()? {
        input.string(&mut room.first)?;
        let score = if scores_are_texts {
            score_of_text(input)?
        } else {
            f64::from_bits(input.long()?)
        };
        if score.is_nan() {
            return Err(input.malformed("a score is not a number").into());
        }
        on(Element::Scored {
            member: &room.first,
            score,
        })?;
    }
    Ok(())
}

fn score_of_text<R: Read>(input: &mut Input<R>) -> Result<f64, RdbError> {
    match input.byte()? {
        text_score::NAN => Ok(f64::NAN),
        text_score::INFINITY => Ok(f64::INFINITY),
        text_score::NEG_INFINITY => Ok(f64::NEG_INFINITY),
        length => {
            let mut text = [0; u8::MAX as usize];
            let text = &mut text[..usize::from(length)];
            for byte in text.iter_mut() {
                *byte = input.byte()?;
            }
            packed::score(text).ok_or_else(|| input.malformed("a score is not a number"))
        }
    }
}

fn packed_sorted_set<'a, R, I, E>(
    input: &mut Input<R>,
    room: &'a mut Room,
    open: impl FnOnce(&'a [u8]) -> Result<I, Wrong>,
    on: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E>
where
    R: Read,
    I: Iterator<Item = Result<Packed<'a>, Wrong>>,
    E: From<RdbError>,
{
    let digits = &mut room.digits.0;
    each_packed(input, &mut room.first, open, &mut |member, rest| {
        let score = rest
            .expect()?
            .score()
            .ok_or_else(|| rest.wrong("a score is not a number"))?;
        on(Element::Scored {
            member: member.text(digits),
            score,
        })
    })
}

fn packed_hash<'a, R, I, E>(
    input: &mut Input<R>,
    room: &'a mut Room,
    open: impl FnOnce(&'a [u8]) -> Result<I, Wrong>,
    on: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E>
where
    R: Read,
    I: Iterator<Item = Result<Packed<'a>, Wrong>>,
    E: From<RdbError>,
{
    let digits = &mut room.digits;
    each_packed(input, &mut room.first, open, &mut |field, rest| {
        let value = rest.expect()?;
        on(Element::Field {
            field: field.text(&mut digits.0),
            value: value.text(&mut digits.1),
            expiry: None,
        })
    })
}

/// A hash some of whose fields expire: each field's expiry is 0 for never, else counted from the first.
fn expiring_hash<R: Read, E: From<RdbError>>(
    input: &mut Input<R>,
    room: &mut Room,
    has_first: bool,
    on: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let first = if has_first { input.long()? } else { 1 };
    for _ in 0..input.length()? {
        let after = input.length()?;
        let expiry =
            match after {
                0 => None,
                after => Some(first.checked_add(after - 1).ok_or_else(|| {
                    input.malformed("a field expires later than any clock can say")
                })?),
            };
        input.string(&mut room.first)?;
        input.string(&mut room.second)?;
        on(Element::Field {
            field: &room.first,
            value: &room.second,
            expiry,
        })?;
    }
    Ok(())
}

fn packed_expiring_hash<R: Read, E: From<RdbError>>(
    input: &mut Input<R>,
    room: &mut Room,
    on: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let digits = &mut room.digits;
    each_packed(input, &mut room.first, ListPack::new, &mut |field, rest| {
        let value = rest.expect()?;
        let expiry = rest.expect_count()?;
        on(Element::Field {
            field: field.text(&mut digits.0),
            value: value.text(&mut digits.1),
            expiry: Some(expiry).filter(|expiry| *expiry > 0),
        })
    })
}

/// What is known of a stream's entries once they are read.
#[derive(Default)]
struct Entered {
    count: u64,
    first: StreamId,
}

fn stream<R: Read, E: From<RdbError>>(
    input: &mut Input<R>,
    room: &mut Room,
    encoding: u8,
    on: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut entered = Entered::default();
    for _ in 0..input.length()? {
        stream_node(input, room, &mut entered, on)?;
    }
    if input.length()? != entered.count {
        return Err(input
            .malformed("a stream does not hold as many entries as it says")
            .into());
    }
    let last_id = id_of_lengths(input)?;
    // Redis before 7.0 knew nothing of these; this is what 7.0 makes of its files.
    let (mut max_deleted_id, mut entries_added) = (StreamId::default(), entered.count);
    if encoding != value_type::STREAM {
        // The first entry's id, which the entries say too.
        id_of_lengths(input)?;
        max_deleted_id = id_of_lengths(input)?;
        entries_added = input.length()?;
    }
    let groups = input.length()?;
    on(Element::StreamFacts {
        last_id,
        max_deleted_id,
        entries_added,
        groups,
    })?;
    for _ in 0..groups {
        input.string(&mut room.first)?;
        let group_last_id = id_of_lengths(input)?;
        let entries_read = if encoding == value_type::STREAM {
            entries_read_before_redis_7(group_last_id, last_id, &entered)
        } else {
            // -1 for not known.
            Some(input.length()?).filter(|read| *read != u64::MAX)
        };
        group(input, room, encoding, group_last_id, entries_read, on)?;
    }
    Ok(())
}

/// How many entries a group has read, which older servers did not write: what can be said by where it stands.
fn entries_read_before_redis_7(
    group: StreamId,
    stream: StreamId,
    entered: &Entered,
) -> Option<u64> {
    if entered.count == 0 || group < entered.first {
        Some(0)
    } else if group == stream {
        Some(entered.count)
    } else if group == entered.first {
        Some(1)
    } else {
        None
    }
}

fn id_of_lengths<R: Read>(input: &mut Input<R>) -> Result<StreamId, RdbError> {
    Ok(StreamId {
        milliseconds: input.length()?,
        sequence: input.length()?,
    })
}

/// An id of 16 bytes, the most significant first.
fn id_of_bytes(bytes: [u8; 16]) -> StreamId {
    let id = u128::from_be_bytes(bytes);
    StreamId {
        milliseconds: (id >> 64) as u64,
        sequence: id as u64,
    }
}

/// A node holds a listpack of entries whose ids count from the node's own and whose fields are mostly those of its
/// first entry.
fn stream_node<R: Read, E: From<RdbError>>(
    input: &mut Input<R>,
    room: &mut Room,
    entered: &mut Entered,
    on: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E> {
    input.string(&mut room.first)?;
    let base = <[u8; 16]>::try_from(room.first.as_slice())
        .map(id_of_bytes)
        .map_err(|_| input.malformed("the id of a stream's node has not 16 bytes"))?;
    input.string(&mut room.first)?;
    let mut entries = Entries {
        packed: ListPack::new(&room.first).map_err(|wrong| input.malformed(wrong))?,
        offset: input.offset(),
    };
    let (there, deleted) = (entries.expect_count()?, entries.expect_count()?);
    let count = there
        .checked_add(deleted)
        .ok_or_else(|| entries.wrong("a node of a stream holds more than can be"))?;
    let mut common = Vec::new();
    for _ in 0..entries.expect_count()? {
        common.push(entries.expect()?);
    }
    // The end of the common fields.
    entries.expect()?;
    let mut live = 0;
    for _ in 0..count {
        let flags = entries.expect_integer()?;
        let id = StreamId {
            milliseconds: base
                .milliseconds
                .wrapping_add(entries.expect_integer()? as u64),
            sequence: base.sequence.wrapping_add(entries.expect_integer()? as u64),
        };
        let has_common = flags & entry_flag::SAME_FIELDS != 0;
        let fields = if has_common {
            common.len() as u64
        } else {
            entries.expect_count()?
        };
        let mut used = 0;
        for at in 0..fields {
            let field = if has_common {
                common[at as usize]
            } else {
                entries.expect()?
            };
            for text in [field, entries.expect()?] {
                if room.fields.len() == used {
                    room.fields.push(Vec::new());
                }
                let place = &mut room.fields[used];
                place.clear();
                place.extend_from_slice(text.text(&mut room.digits.0));
                used += 1;
            }
        }
        // How many of the listpack's entries this was, for readers that go backwards.
        entries.expect()?;
        if flags & entry_flag::DELETED == 0 {
            if entered.count == 0 {
                entered.first = id;
            }
            entered.count += 1;
            live += 1;
            on(Element::Entry {
                id,
                fields: &room.fields[..used],
            })?;
        }
    }
    if live != there || entries.next()?.is_some() {
        return Err(entries
            .wrong("a node of a stream does not hold as many entries as it says")
            .into());
    }
    // What an unusual entry took is given back.
    if room.fields.len() > 1024 || room.fields.iter().any(|text| text.capacity() > 64 << 10) {
        room.fields = Vec::new();
    }
    Ok(())
}

fn group<R: Read, E: From<RdbError>>(
    input: &mut Input<R>,
    room: &mut Room,
    encoding: u8,
    last_id: StreamId,
    entries_read: Option<u64>,
    on: &mut impl FnMut(Element<'_>) -> Result<(), E>,
) -> Result<(), E> {
    // How many consumers there are stands after the pending entries.
    let pending = input.length()?;
    on(Element::Group {
        name: &room.first,
        last_id,
        entries_read,
        pending,
    })?;
    for _ in 0..pending {
        let id = id_of_bytes(input.array()?);
        let delivered = i64::from_le_bytes(input.array()?);
        on(Element::Pending {
            id,
            delivered,
            deliveries: input.length()?,
        })?;
    }
    let consumers = input.length()?;
    on(Element::Consumers(consumers))?;
    for _ in 0..consumers {
        input.string(&mut room.first)?;
        let seen = i64::from_le_bytes(input.array()?);
        let active = if encoding == value_type::STREAM_3 {
            Some(i64::from_le_bytes(input.array()?))
        } else {
            None
        };
        let pending = input.length()?;
        on(Element::Consumer {
            name: &room.first,
            seen,
            active,
            pending,
        })?;
        for _ in 0..pending {
            on(Element::ConsumerPending(id_of_bytes(input.array()?)))?;
        }
    }
    Ok(())
}

/// Walks a module's parts to their end and hands on everything that was copied since the copy began.
pub(super) fn module_parts<R: Read, E: From<RdbError>>(
    input: &mut Input<R>,
    on: &mut impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    loop {
        match input.length()? {
            module_opcode::END => break,
            module_opcode::SIGNED | module_opcode::UNSIGNED => {
                input.length()?;
            }
            module_opcode::FLOAT => {
                input.array::<4>()?;
            }
            module_opcode::DOUBLE => {
                input.array::<8>()?;
            }
            module_opcode::STRING => input.skip_string(on)?,
            other => {
                return Err(input
                    .malformed(format!("data of a module have no part {other}"))
                    .into());
            }
        }
        if let Some(piece) = input.full_copy() {
            on(&piece)?;
        }
    }
    on(&input.end_copy())
}
