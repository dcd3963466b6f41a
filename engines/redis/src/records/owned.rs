//! Keys with their whole values in memory, for tests: from files, from stored bytes, and by the server's commands.

use std::collections::BTreeMap;

use redis::{Connection, Value, cmd};

use super::{Element, KeyHead, Kind, RecordEvent, RecordReader, Size, StoredError, StreamId};
use crate::rdb::{Event, RdbError, RdbSummary, Reader};

/// An element that borrows nothing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Owned {
    Bytes(Vec<u8>),
    Scored(Vec<u8>, u64),
    Field(Vec<u8>, Vec<u8>, Option<u64>),
    Entry(StreamId, Vec<Vec<u8>>),
    Facts(StreamId, StreamId, u64, u64),
    Group(Vec<u8>, StreamId, Option<u64>, u64),
    Pending(StreamId, i64, u64),
    Consumers(u64),
    Consumer(Vec<u8>, i64, u64),
    ConsumerPending(StreamId),
}

impl Owned {
    fn of(element: &Element<'_>) -> Self {
        match *element {
            Element::StringPiece(bytes)
            | Element::ModulePiece(bytes)
            | Element::Item(bytes)
            | Element::Member(bytes) => Self::Bytes(bytes.to_vec()),
            Element::Scored { member, score } => Self::Scored(member.to_vec(), score.to_bits()),
            Element::Field {
                field,
                value,
                expiry,
            } => Self::Field(field.to_vec(), value.to_vec(), expiry),
            Element::Entry { id, fields } => Self::Entry(id, fields.to_vec()),
            Element::StreamFacts {
                last_id,
                max_deleted_id,
                entries_added,
                groups,
            } => Self::Facts(last_id, max_deleted_id, entries_added, groups),
            Element::Group {
                name,
                last_id,
                entries_read,
                pending,
            } => Self::Group(name.to_vec(), last_id, entries_read, pending),
            Element::Pending {
                id,
                delivered,
                deliveries,
            } => Self::Pending(id, delivered, deliveries),
            Element::Consumers(count) => Self::Consumers(count),
            Element::Consumer {
                name,
                seen,
                active: _,
                pending,
            } => Self::Consumer(name.to_vec(), seen, pending),
            Element::ConsumerPending(id) => Self::ConsumerPending(id),
        }
    }

    pub(crate) fn element(&self, kind: Kind) -> Element<'_> {
        match self {
            Self::Bytes(bytes) => match kind {
                Kind::String => Element::StringPiece(bytes),
                Kind::List => Element::Item(bytes),
                Kind::Set => Element::Member(bytes),
                _ => Element::ModulePiece(bytes),
            },
            Self::Scored(member, score) => Element::Scored {
                member,
                score: f64::from_bits(*score),
            },
            Self::Field(field, value, expiry) => Element::Field {
                field,
                value,
                expiry: *expiry,
            },
            Self::Entry(id, fields) => Element::Entry { id: *id, fields },
            Self::Facts(last_id, max_deleted_id, entries_added, groups) => Element::StreamFacts {
                last_id: *last_id,
                max_deleted_id: *max_deleted_id,
                entries_added: *entries_added,
                groups: *groups,
            },
            Self::Group(name, last_id, entries_read, pending) => Element::Group {
                name,
                last_id: *last_id,
                entries_read: *entries_read,
                pending: *pending,
            },
            Self::Pending(id, delivered, deliveries) => Element::Pending {
                id: *id,
                delivered: *delivered,
                deliveries: *deliveries,
            },
            Self::Consumers(count) => Element::Consumers(*count),
            Self::Consumer(name, seen, pending) => Element::Consumer {
                name,
                seen: *seen,
                active: None,
                pending: *pending,
            },
            Self::ConsumerPending(id) => Element::ConsumerPending(*id),
        }
    }
}

/// A key with its value. Elements without an order are sorted; a string is one element.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OwnedKey {
    pub(crate) expiry: Option<i64>,
    pub(crate) kind: Kind,
    pub(crate) elements: Vec<Owned>,
}

impl OwnedKey {
    /// What a record's head says of the value.
    pub(crate) fn size(&self) -> Size {
        let mut size = Size::default();
        for element in &self.elements {
            super::stored::put_element(&element.element(self.kind), &mut size, &mut Vec::new());
        }
        size
    }

    pub(crate) fn head<'a>(&self, database: u32, key: &'a [u8]) -> KeyHead<'a> {
        KeyHead {
            database,
            key,
            expiry: self.expiry,
            kind: self.kind,
        }
    }
}

/// Keys by database and name.
pub(crate) type Keys = BTreeMap<(u32, Vec<u8>), OwnedKey>;

/// Gathers keys from what readers tell.
#[derive(Default)]
pub(crate) struct Collector {
    pub(crate) keys: Keys,
    current: Option<((u32, Vec<u8>), OwnedKey)>,
}

impl Collector {
    pub(crate) fn begin(&mut self, head: &KeyHead<'_>) {
        let key = OwnedKey {
            expiry: head.expiry,
            kind: head.kind,
            elements: Vec::new(),
        };
        self.current = Some(((head.database, head.key.to_vec()), key));
    }

    pub(crate) fn element(&mut self, element: &Element<'_>) {
        let (_, key) = self.current.as_mut().expect("a key has begun");
        let is_piece = matches!(element, Element::StringPiece(_) | Element::ModulePiece(_));
        match (Owned::of(element), key.elements.first_mut()) {
            (Owned::Bytes(piece), Some(Owned::Bytes(whole))) if is_piece => whole.extend(piece),
            (owned, _) => key.elements.push(owned),
        }
    }

    pub(crate) fn end(&mut self) {
        let (name, mut key) = self.current.take().expect("a key has begun");
        if key.kind == Kind::String && key.elements.is_empty() {
            key.elements.push(Owned::Bytes(Vec::new()));
        }
        if key.kind.is_unordered() {
            key.elements
                .sort_by_cached_key(|element| format!("{element:?}"));
        }
        assert!(self.keys.insert(name, key).is_none(), "a key came twice");
    }
}

/// The keys of an RDB.
pub(crate) fn of_rdb(rdb: &[u8]) -> Result<(Keys, RdbSummary), RdbError> {
    let mut collector = Collector::default();
    let summary = Reader::new(rdb).read(&mut |event| {
        match event {
            Event::Begin(head) => collector.begin(&head),
            Event::Element(element) => collector.element(&element),
            Event::End => collector.end(),
            _ => {}
        }
        Ok::<_, RdbError>(())
    })?;
    Ok((collector.keys, summary))
}

/// The keys of stored bytes, which come in pieces of this size.
pub(crate) fn of_stored(stored: &[u8], piece: usize) -> Result<Keys, StoredError> {
    let mut collector = Collector::default();
    let mut reader = RecordReader::new();
    for piece in stored.chunks(piece) {
        reader.feed(piece, &mut |event| {
            match event {
                RecordEvent::Begin(head, _) => collector.begin(&head),
                RecordEvent::Element(element) => collector.element(&element),
                RecordEvent::End => collector.end(),
            }
            Ok::<_, StoredError>(())
        })?;
    }
    assert_eq!(reader.finish()?, collector.keys.len() as u64);
    Ok(collector.keys)
}

/// All keys of a server, by its commands alone.
pub(crate) fn of_server(url: &str) -> Keys {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut collector = Collector::default();
    for database in 0..16 {
        cmd("SELECT").arg(database).exec(&mut connection).unwrap();
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut cursor = 0u64;
        loop {
            let (next, some): (u64, Vec<Vec<u8>>) = cmd("SCAN")
                .arg(cursor)
                .arg("COUNT")
                .arg(1000)
                .query(&mut connection)
                .unwrap();
            names.extend(some);
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        names.sort();
        names.dedup();
        for name in names {
            key_of_server(&mut connection, &mut collector, database, &name);
        }
    }
    collector.keys
}

fn ask<T: redis::FromRedisValue>(connection: &mut Connection, name: &str, args: &[&[u8]]) -> T {
    cmd(name).arg(args).query(connection).unwrap()
}

fn key_of_server(
    connection: &mut Connection,
    collector: &mut Collector,
    database: u32,
    key: &[u8],
) {
    let kind: String = ask(connection, "TYPE", &[key]);
    let expiry: i64 = ask(connection, "PEXPIRETIME", &[key]);
    let kind = [
        Kind::String,
        Kind::List,
        Kind::Set,
        Kind::SortedSet,
        Kind::Hash,
        Kind::Stream,
    ]
    .into_iter()
    .find(|known| known.name() == kind)
    .expect("a known kind");
    collector.begin(&KeyHead {
        database,
        key,
        expiry: Some(expiry).filter(|moment| *moment >= 0),
        kind,
    });
    let list = |connection: &mut Connection, name: &str, args: &[&[u8]]| {
        ask::<Vec<Vec<u8>>>(connection, name, args)
    };
    match kind {
        Kind::String => {
            let string: Vec<u8> = ask(connection, "GET", &[key]);
            collector.element(&Element::StringPiece(&string));
        }
        Kind::List => {
            for item in list(connection, "LRANGE", &[key, b"0", b"-1"]) {
                collector.element(&Element::Item(&item));
            }
        }
        Kind::Set => {
            for member in list(connection, "SMEMBERS", &[key]) {
                collector.element(&Element::Member(&member));
            }
        }
        Kind::SortedSet => {
            for pair in list(connection, "ZRANGE", &[key, b"0", b"-1", b"WITHSCORES"]).chunks(2) {
                collector.element(&Element::Scored {
                    member: &pair[0],
                    score: std::str::from_utf8(&pair[1]).unwrap().parse().unwrap(),
                });
            }
        }
        Kind::Hash => {
            for pair in list(connection, "HGETALL", &[key]).chunks(2) {
                collector.element(&Element::Field {
                    field: &pair[0],
                    value: &pair[1],
                    expiry: None,
                });
            }
        }
        Kind::Stream => stream_of_server(connection, collector, key),
        Kind::Module(_) => unreachable!("no module is loaded"),
    }
    collector.end();
}

/// What a flat list of names and values says under a name.
fn named<'a>(map: &'a [Value], name: &str) -> &'a Value {
    map.chunks(2)
        .find(|pair| bytes(&pair[0]) == name.as_bytes())
        .map_or_else(|| panic!("{name} is missing"), |pair| &pair[1])
}

fn bytes(value: &Value) -> Vec<u8> {
    redis::from_redis_value(value.clone()).unwrap()
}

fn number(value: &Value) -> i64 {
    redis::from_redis_value(value.clone()).unwrap()
}

fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        other => panic!("{other:?} is no list"),
    }
}

fn id(value: &Value) -> StreamId {
    let text = String::from_utf8(bytes(value)).unwrap();
    let (milliseconds, sequence) = text.split_once('-').unwrap();
    StreamId {
        milliseconds: milliseconds.parse().unwrap(),
        sequence: sequence.parse().unwrap(),
    }
}

fn stream_of_server(connection: &mut Connection, collector: &mut Collector, key: &[u8]) {
    let entries: Value = ask(connection, "XRANGE", &[key, b"-", b"+"]);
    for entry in items(&entries) {
        let entry = items(entry);
        let fields: Vec<Vec<u8>> = items(&entry[1]).iter().map(bytes).collect();
        collector.element(&Element::Entry {
            id: id(&entry[0]),
            fields: &fields,
        });
    }
    let full: Value = ask(
        connection,
        "XINFO",
        &[b"STREAM", key, b"FULL", b"COUNT", b"0"],
    );
    let full = items(&full);
    let groups = items(named(full, "groups"));
    collector.element(&Element::StreamFacts {
        last_id: id(named(full, "last-generated-id")),
        max_deleted_id: id(named(full, "max-deleted-entry-id")),
        entries_added: number(named(full, "entries-added")) as u64,
        groups: groups.len() as u64,
    });
    for group in groups {
        let group = items(group);
        let pending = items(named(group, "pending"));
        collector.element(&Element::Group {
            name: &bytes(named(group, "name")),
            last_id: id(named(group, "last-delivered-id")),
            entries_read: match named(group, "entries-read") {
                Value::Nil => None,
                read => Some(number(read) as u64),
            },
            pending: pending.len() as u64,
        });
        for entry in pending {
            let entry = items(entry);
            collector.element(&Element::Pending {
                id: id(&entry[0]),
                delivered: number(&entry[2]),
                deliveries: number(&entry[3]) as u64,
            });
        }
        let consumers = items(named(group, "consumers"));
        collector.element(&Element::Consumers(consumers.len() as u64));
        for consumer in consumers {
            let consumer = items(consumer);
            let pending = items(named(consumer, "pending"));
            collector.element(&Element::Consumer {
                name: &bytes(named(consumer, "name")),
                seen: number(named(consumer, "seen-time")),
                active: None,
                pending: pending.len() as u64,
            });
            for entry in pending {
                collector.element(&Element::ConsumerPending(id(&items(entry)[0])));
            }
        }
    }
}
