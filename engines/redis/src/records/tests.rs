//! Tests of the stored form, the order and the rows.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use fettler_engine::RowHasher;
use fettler_model::Fingerprint;
use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use redis::{cmd, pipe};

use super::{
    Element, KeyHasher, KeyHead, Kind, RecordEvent, RecordReader, Size, Spool, SpoolError,
    StoredError, StreamId,
    owned::{Keys, Owned, OwnedKey, of_rdb, of_server, of_stored},
    stream_name,
};
use crate::rdb::{
    Event, RdbError, Reader,
    tests::{assert_same, connect, fill, save, server},
};

/// The streams of these keys, which come in this order.
fn streams_of<'a>(
    keys: impl IntoIterator<Item = (&'a (u32, Vec<u8>), &'a OwnedKey)>,
) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::new(folder.path(), &[9; 32]);
    for ((database, name), key) in keys {
        spool.begin(&key.head(*database, name)).unwrap();
        for element in &key.elements {
            // Long strings come in pieces.
            if let (Kind::String, Owned::Bytes(whole)) = (key.kind, element) {
                for piece in whole.chunks(100_000) {
                    spool.element(&Element::StringPiece(piece)).unwrap();
                }
            } else {
                spool.element(&element.element(key.kind)).unwrap();
            }
        }
        spool.end().unwrap();
    }
    let streams = streams(spool);
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    streams
}

/// All that a spool holds.
fn streams(spool: Spool) -> BTreeMap<String, Vec<u8>> {
    let mut ordered = spool.finish();
    let mut streams = BTreeMap::new();
    for number in ordered.numbers() {
        assert!(number < 64);
        let mut bytes = Vec::new();
        let totals = ordered
            .read(number, &mut |piece: Bytes| {
                bytes.extend_from_slice(&piece);
                Ok::<_, SpoolError>(())
            })
            .unwrap();
        assert_eq!(totals.bytes, bytes.len() as u64);
        assert!(totals.keys > 0);
        streams.insert(stream_name(number), bytes);
    }
    assert!(ordered.numbers().is_empty());
    streams
}

fn keys_of(streams: &BTreeMap<String, Vec<u8>>, piece: usize) -> Keys {
    streams
        .values()
        .flat_map(|stored| of_stored(stored, piece).unwrap())
        .collect()
}

/// The streams of an RDB.
fn streams_of_rdb(rdb: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::new(folder.path(), &[9; 32]);
    Reader::new(rdb)
        .read(&mut |event| {
            match event {
                Event::Begin(head) => spool.begin(&head).unwrap(),
                Event::Element(element) => spool.element(&element).unwrap(),
                Event::End => spool.end().unwrap(),
                _ => {}
            }
            Ok::<_, RdbError>(())
        })
        .unwrap();
    streams(spool)
}

/// The fingerprints of these keys by database and kind.
fn rows_of(keys: &Keys, key: u8) -> BTreeMap<(u32, Kind), Fingerprint> {
    let mut hasher = KeyHasher::new(RowHasher::new(&[key; 32]));
    let mut rows = BTreeMap::new();
    for ((database, name), key) in keys {
        hasher.begin(&key.head(*database, name));
        for element in &key.elements {
            hasher.element(&element.element(key.kind));
        }
        hasher.end(rows.entry((*database, key.kind)).or_default());
    }
    rows
}

/// Keys and values as large as wanted, without a server.
fn made(count: usize, large_bytes: usize) -> Keys {
    let bytes = |text: String| Owned::Bytes(text.into_bytes());
    let mut keys = Keys::new();
    let mut add = |name: String, kind, elements| {
        let key = OwnedKey {
            expiry: None,
            kind,
            elements,
        };
        keys.insert(((name.len() % 3) as u32, name.into_bytes()), key);
    };
    for at in 0..count {
        add(
            format!("string {at}"),
            Kind::String,
            vec![bytes(format!("value of {at} ").repeat(at % 40))],
        );
        add(format!("hash {at}"), Kind::Hash, hash(at % 20));
    }
    let members = large_bytes / 40;
    add("large hash".to_owned(), Kind::Hash, hash(members));
    add(
        "large list".to_owned(),
        Kind::List,
        (0..members)
            .map(|at| bytes(format!("item {at:034}")))
            .collect(),
    );
    add(
        "large set".to_owned(),
        Kind::Set,
        (0..members)
            .map(|at| bytes(format!("member {at:032}")))
            .collect(),
    );
    let long = |at: u8, count| Owned::Bytes(vec![at; count]);
    add(
        "long members".to_owned(),
        Kind::Set,
        vec![
            long(1, 2 << 20),
            long(2, 400_000),
            long(3, 9),
            long(4, 140_000),
            long(5, 0),
        ],
    );
    add(
        "large string".to_owned(),
        Kind::String,
        vec![Owned::Bytes(vec![7; large_bytes])],
    );
    for key in keys.values_mut().filter(|key| key.kind.is_unordered()) {
        key.elements
            .sort_by_cached_key(|element| format!("{element:?}"));
    }
    keys
}

fn hash(fields: usize) -> Vec<Owned> {
    (0..fields)
        .map(|at| {
            Owned::Field(
                format!("field {at}").into_bytes(),
                format!("value {at:022}").into_bytes(),
                (at % 7 == 3).then_some(4_102_444_800_000 + at as u64),
            )
        })
        .collect()
}

#[test]
fn everything_of_a_server_passes_through_the_stored_form() {
    let server = server();
    fill(&server);
    let expected = of_server(&server.url());
    let streams = streams_of_rdb(&save(&server));
    for piece in [1, 7, 1000, usize::MAX] {
        assert_same(&keys_of(&streams, piece), &expected);
    }
}

#[test]
fn the_order_depends_on_the_keys_alone() {
    let keys = made(2000, 3 << 20);
    let streams = streams_of(&keys);
    assert_same(&keys_of(&streams, 100_000), &keys);

    let mut shuffled: Vec<_> = keys
        .iter()
        .map(|(name, key)| (name.clone(), key.clone()))
        .collect();
    let rng = &mut StdRng::seed_from_u64(3);
    shuffled.shuffle(rng);
    for (_, key) in &mut shuffled {
        if key.kind.is_unordered() {
            key.elements.shuffle(rng);
        }
    }
    let again = streams_of(shuffled.iter().map(|(name, key)| (name, key)));
    assert!(
        again == streams,
        "the same keys in another order are stored otherwise"
    );

    // A key that is gone takes its own bytes with it and moves nothing.
    let without: Vec<_> = shuffled
        .iter()
        .filter(|((_, name), _)| name != b"string 17")
        .map(|(name, key)| (name, key))
        .collect();
    let streams_without = streams_of(without);
    let changed: Vec<_> = streams
        .iter()
        .filter(|(name, stored)| streams_without.get(*name) != Some(stored))
        .collect();
    assert_eq!(changed.len(), 1);
    let (name, stored) = changed[0];
    let shorter = &streams_without[name];
    let same_front = stored
        .iter()
        .zip(shorter)
        .take_while(|(a, b)| a == b)
        .count();
    let gone = stored.len() - shorter.len();
    assert_eq!(stored[same_front + gone..], shorter[same_front..]);
}

#[test]
fn a_key_that_comes_twice_is_kept_as_it_came_last() {
    let key = |text: Vec<u8>| OwnedKey {
        expiry: None,
        kind: Kind::String,
        elements: vec![Owned::Bytes(text)],
    };
    let name = (0, b"twice".to_vec());
    let (small, large) = (key(b"small".to_vec()), key(vec![1; 2 << 20]));
    for (first, last) in [(&small, &large), (&large, &small)] {
        let kept = keys_of(&streams_of([(&name, first), (&name, last)]), 1000);
        assert_eq!(kept[&name], *last);
        assert_eq!(kept.len(), 1);
    }
}

/// Bytes of chunks of these streams that the others have not, and all bytes.
fn new_bytes(
    streams: &BTreeMap<String, Vec<u8>>,
    parent: &BTreeMap<String, Vec<u8>>,
) -> (usize, usize) {
    let chunks = |stored: &BTreeMap<String, Vec<u8>>| -> Vec<Vec<u8>> {
        stored
            .values()
            .flat_map(|stored| {
                fastcdc::v2020::FastCDC::new(stored, 16 << 10, 64 << 10, 256 << 10)
                    .map(|chunk| stored[chunk.offset..chunk.offset + chunk.length].to_vec())
                    .collect::<Vec<_>>()
            })
            .collect()
    };
    let known: HashSet<_> = chunks(parent).into_iter().collect();
    let all = chunks(streams);
    let new = all.iter().filter(|chunk| !known.contains(*chunk));
    (new.map(Vec::len).sum(), all.iter().map(Vec::len).sum())
}

/// ENGINES.md, Redis: two RDBs of the same data have their keys in quite another order, and each key's idle byte
/// differs under an LRU policy.
#[test]
fn a_restart_of_the_server_stores_nearly_nothing_anew() {
    let mut server = server();
    let mut connection = connect(&server);
    cmd("CONFIG")
        .arg("SET")
        .arg("maxmemory-policy")
        .arg("allkeys-lru")
        .exec(&mut connection)
        .unwrap();
    let mut pipe = pipe();
    for at in 0..20_000 {
        pipe.cmd("SET")
            .arg(format!("string/{at}"))
            .arg(format!("{at} {:0>200}", at * 7919));
        pipe.cmd("HSET")
            .arg(format!("hash/{}", at / 1000))
            .arg(at)
            .arg(format!("{:0>100}", at * 31));
        pipe.cmd("SADD")
            .arg("one large set")
            .arg(format!("{at:0>120}"));
    }
    pipe.exec(&mut connection).unwrap();
    let first_rdb = save(&server);
    let url = server.url();
    let expected = of_server(&url);
    server.stop().unwrap();
    server.start_again().unwrap();
    cmd("CONFIG")
        .arg("SET")
        .arg("maxmemory-policy")
        .arg("allkeys-lfu")
        .exec(&mut connect(&server))
        .unwrap();
    let second_rdb = save(&server);
    assert_same(&of_server(&url), &expected);

    let (first, second) = (streams_of_rdb(&first_rdb), streams_of_rdb(&second_rdb));
    assert!(first == second, "the same data are stored otherwise");
    // The RDBs themselves would be stored anew: the test says something.
    let rdb = |bytes: &[u8]| [("rdb".to_owned(), bytes.to_vec())].into_iter().collect();
    let (new, all) = new_bytes(&rdb(&second_rdb), &rdb(&first_rdb));
    assert!(
        new * 10 > all * 9,
        "{new} of {all} bytes of the RDB are new"
    );

    // Two keys change.
    let mut pipe = redis::pipe();
    for at in (0..20_000).step_by(10_000) {
        pipe.cmd("APPEND").arg(format!("string/{at}")).arg("!");
    }
    pipe.exec(&mut connect(&server)).unwrap();
    let (new, all) = new_bytes(&streams_of_rdb(&save(&server)), &second);
    assert!(new * 10 < all, "{new} of {all} bytes are new");
}

#[test]
fn rule_28_rows_are_the_same_by_file_by_commands_and_by_stored_bytes() {
    let server = server();
    fill(&server);
    let rdb = save(&server);
    let by_commands = rows_of(&of_server(&server.url()), 7);
    assert_eq!(rows_of(&of_rdb(&rdb).unwrap().0, 7), by_commands);

    let mut hasher = KeyHasher::new(RowHasher::new(&[7; 32]));
    let mut by_pieces: BTreeMap<(u32, Kind), Fingerprint> = BTreeMap::new();
    for stored in streams_of_rdb(&rdb).values() {
        let mut reader = RecordReader::new();
        let mut of = (0, Kind::String);
        for piece in stored.chunks(313) {
            reader
                .feed(piece, &mut |event| {
                    match event {
                        RecordEvent::Begin(head, _) => {
                            of = (head.database, head.kind);
                            hasher.begin(&head);
                        }
                        RecordEvent::Element(element) => hasher.element(&element),
                        RecordEvent::End => hasher.end(by_pieces.entry(of).or_default()),
                    }
                    Ok::<_, StoredError>(())
                })
                .unwrap();
        }
        reader.finish().unwrap();
    }
    assert_eq!(by_pieces, by_commands);
    assert_eq!(by_commands.len(), 16 * 5 + 1);
    assert_ne!(rows_of(&of_rdb(&rdb).unwrap().0, 8), by_commands);
}

#[test]
fn rule_28_every_single_difference_counts() {
    let id = |milliseconds, sequence| StreamId {
        milliseconds,
        sequence,
    };
    let row = |head: KeyHead<'_>, elements: &[Element<'_>]| {
        let mut hasher = KeyHasher::new(RowHasher::new(&[7; 32]));
        hasher.begin(&head);
        elements.iter().for_each(|element| hasher.element(element));
        let mut rows = Fingerprint::empty();
        hasher.end(&mut rows);
        rows.to_string()
    };
    let head = |database, key, expiry, kind| KeyHead {
        database,
        key,
        expiry,
        kind,
    };
    let list = head(0, b"k", None, Kind::List);
    let set = head(0, b"k", None, Kind::Set);
    let zset = head(0, b"k", None, Kind::SortedSet);
    let hash = head(0, b"k", None, Kind::Hash);
    let stream = head(0, b"k", None, Kind::Stream);
    let scored = |score| Element::Scored {
        member: b"m",
        score,
    };
    let field = |field, value, expiry| Element::Field {
        field,
        value,
        expiry,
    };
    let facts = |last, deleted, entries_added| Element::StreamFacts {
        last_id: id(last, 1),
        max_deleted_id: id(deleted, 0),
        entries_added,
        groups: 1,
    };
    let group = |name, entries_read| Element::Group {
        name,
        last_id: id(1, 1),
        entries_read,
        pending: 1,
    };
    let consumer = |name, seen| Element::Consumer {
        name,
        seen,
        active: None,
        pending: 1,
    };
    let pending = |delivered, deliveries| Element::Pending {
        id: id(1, 1),
        delivered,
        deliveries,
    };
    let (ab, ba) = (
        [b"a".to_vec(), b"b".to_vec()],
        [b"b".to_vec(), b"a".to_vec()],
    );
    let entry = |fields| Element::Entry {
        id: id(1, 1),
        fields,
    };
    let rows = [
        row(head(0, b"k", None, Kind::String), &[]),
        row(head(1, b"k", None, Kind::String), &[]),
        row(head(0, b"K", None, Kind::String), &[]),
        row(head(0, b"k", Some(0), Kind::String), &[]),
        row(head(0, b"k", Some(1), Kind::String), &[]),
        row(head(0, b"k", None, Kind::Module(1)), &[]),
        row(head(0, b"k", None, Kind::Module(2)), &[]),
        row(
            head(0, b"k", None, Kind::String),
            &[Element::StringPiece(b"\0")],
        ),
        row(list, &[Element::Item(b"ab")]),
        row(list, &[Element::Item(b"a"), Element::Item(b"b")]),
        row(list, &[Element::Item(b"b"), Element::Item(b"a")]),
        row(
            list,
            &[Element::Item(b"a"), Element::Item(b"b"), Element::Item(b"")],
        ),
        row(set, &[Element::Member(b"a"), Element::Member(b"b")]),
        row(set, &[Element::Member(b"a")]),
        row(zset, &[scored(0.0)]),
        row(zset, &[scored(-0.0)]),
        row(zset, &[scored(9_007_199_254_740_992.0)]),
        row(zset, &[scored(9_007_199_254_740_994.0)]),
        row(zset, &[scored(f64::INFINITY)]),
        row(hash, &[field(b"f", b"v", None)]),
        row(hash, &[field(b"fv", b"", None)]),
        row(hash, &[field(b"", b"fv", None)]),
        row(hash, &[field(b"f", b"v", Some(1))]),
        row(hash, &[field(b"a", b"1", None), field(b"b", b"2", None)]),
        row(hash, &[field(b"a", b"2", None), field(b"b", b"1", None)]),
        row(stream, &[entry(&ab), facts(1, 0, 1)]),
        row(stream, &[entry(&ba), facts(1, 0, 1)]),
        row(stream, &[facts(1, 0, 1)]),
        row(stream, &[facts(2, 0, 1)]),
        row(stream, &[facts(1, 1, 1)]),
        row(stream, &[facts(1, 0, 2)]),
        row(stream, &[facts(1, 0, 1), group(b"g", None)]),
        row(stream, &[facts(1, 0, 1), group(b"g", Some(0))]),
        row(stream, &[facts(1, 0, 1), group(b"h", None)]),
        row(stream, &[facts(1, 0, 1), group(b"g", None), pending(1, 1)]),
        row(stream, &[facts(1, 0, 1), group(b"g", None), pending(2, 1)]),
        row(stream, &[facts(1, 0, 1), group(b"g", None), pending(1, 2)]),
        row(
            stream,
            &[facts(1, 0, 1), group(b"g", None), consumer(b"c", 1)],
        ),
        row(
            stream,
            &[facts(1, 0, 1), group(b"g", None), consumer(b"d", 1)],
        ),
        row(
            stream,
            &[facts(1, 0, 1), group(b"g", None), consumer(b"c", 2)],
        ),
        row(
            stream,
            &[
                facts(1, 0, 1),
                group(b"g", None),
                consumer(b"c", 1),
                Element::ConsumerPending(id(1, 1)),
            ],
        ),
        row(
            stream,
            &[
                facts(1, 0, 1),
                group(b"g", None),
                consumer(b"c", 1),
                Element::ConsumerPending(id(1, 2)),
            ],
        ),
    ];
    assert_eq!(rows.iter().collect::<HashSet<_>>().len(), rows.len());

    // What has no order, and where pieces are cut, makes none.
    let backwards = [field(b"b", b"2", None), field(b"a", b"1", None)];
    assert_eq!(rows[23], row(hash, &backwards));
    let string = head(0, b"k", None, Kind::String);
    assert_eq!(
        row(
            string,
            &[Element::StringPiece(b"a"), Element::StringPiece(b"b")]
        ),
        row(
            string,
            &[Element::StringPiece(b"ab"), Element::StringPiece(b"")]
        ),
    );
}

#[test]
fn a_module_s_letters_are_read_from_its_id() {
    assert_eq!(Kind::Module(0).name(), "AAAAAAAAA");
    assert_eq!(Kind::Module(u64::MAX).name(), "_________");
    assert_eq!(Kind::Module(1 << 10).name(), "AAAAAAAAB");
}

proptest! {
    #[test]
    fn damaged_stored_bytes_give_errors_and_nothing_worse(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut stored = Vec::new();
        stored.extend(super::stored::HEADER);
        let element = Element::Group { name: b"g", last_id: StreamId::default(), entries_read: Some(3), pending: 0 };
        let entry = Element::Entry { id: StreamId::default(), fields: &[vec![1; 200], vec![]] };
        for (kind, elements) in [
            (Kind::Stream, vec![entry, element]),
            (Kind::Hash, vec![Element::Field { field: b"f", value: b"v", expiry: Some(1) }]),
            (Kind::SortedSet, vec![Element::Scored { member: b"m", score: 1.0 }]),
            (Kind::String, vec![Element::StringPiece(b"piece")]),
        ] {
            let (mut size, mut value) = (Size::default(), Vec::new());
            for element in &elements {
                super::stored::put_element(element, &mut size, &mut value);
            }
            super::stored::put_end(kind, &mut value);
            let head = KeyHead { database: 300, key: b"key", expiry: Some(-1), kind };
            super::stored::put_head(&head, &size, &mut stored);
            stored.extend(value);
        }
        let read = |stored: &[u8]| {
            let mut reader = RecordReader::new();
            stored.chunks(5).try_for_each(|piece| reader.feed(piece, &mut |_| Ok::<_, StoredError>(())))?;
            reader.finish()
        };
        prop_assert_eq!(read(&stored).unwrap(), 4);
        // A cut either shows or lies between two keys.
        if let Ok(keys) = read(&stored[..cut.index(stored.len())]) {
            prop_assert!(keys < 4);
        }
        let at = at.index(stored.len());
        stored[at] = byte;
        let _any_result = read(&stored);
    }
}

/// The peak of this process' memory since the last reset, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

/// Writes an RDB of about this many bytes to a file: small keys, and large values of all kinds.
fn large_rdb(bytes: usize, path: &std::path::Path) {
    let file = std::fs::File::create(path).unwrap();
    let mut writer = crate::rdb::Writer::new(file, 10).unwrap();
    let mut write = |name: String, kind, size: Size, element: &mut dyn FnMut(u64) -> Owned| {
        let head = KeyHead {
            database: 0,
            key: name.as_bytes(),
            expiry: None,
            kind,
        };
        writer.begin(&head, &size).unwrap();
        for at in 0..size.elements.max(1) {
            writer.element(&element(at).element(kind)).unwrap();
        }
        writer.end().unwrap();
    };
    let random = |at: u64| {
        blake3::hash(&at.to_le_bytes())
            .to_hex()
            .to_string()
            .into_bytes()
    };
    for at in 0..bytes as u64 / 2 / 100 {
        let size = Size {
            bytes: 64,
            ..Size::default()
        };
        write(format!("key:{at:020}"), Kind::String, size, &mut |_| {
            Owned::Bytes(random(at))
        });
    }
    let elements = bytes as u64 / 8 / 70;
    let size = Size {
        elements,
        ..Size::default()
    };
    write("list".to_owned(), Kind::List, size, &mut |at| {
        Owned::Bytes(random(at))
    });
    write("set".to_owned(), Kind::Set, size, &mut |at| {
        Owned::Bytes(random(at))
    });
    write("zset".to_owned(), Kind::SortedSet, size, &mut |at| {
        Owned::Scored(random(at), at)
    });
    let size = Size {
        bytes: bytes as u64 / 8,
        ..Size::default()
    };
    let string = Owned::Bytes(random(0).into_iter().cycle().take(bytes / 8).collect());
    write("string".to_owned(), Kind::String, size, &mut |_| {
        string.clone()
    });
    writer.finish().unwrap();
}

/// Memory does not grow with the data. By hand, in a process of its own, for a gigabyte:
/// `FETTLER_TEST_RDB_BYTES=1000000000 cargo test --release … memory_is_bounded -- --ignored --nocapture`.
#[test]
#[ignore = "measures the whole process: to be run alone"]
fn memory_is_bounded() {
    let bytes =
        std::env::var("FETTLER_TEST_RDB_BYTES").map_or(200_000_000, |bytes| bytes.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.rdb");
    large_rdb(bytes, &path);
    // What was needed to make it does not count.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let begun = std::time::Instant::now();
    let mut spool = Spool::new(folder.path(), &[9; 32]);
    let mut hasher = KeyHasher::new(RowHasher::new(&[7; 32]));
    let mut rows = Fingerprint::empty();
    let summary = Reader::new(std::fs::File::open(&path).unwrap())
        .read(&mut |event| {
            match event {
                Event::Begin(head) => {
                    hasher.begin(&head);
                    spool.begin(&head).unwrap();
                }
                Event::Element(element) => {
                    hasher.element(&element);
                    spool.element(&element).unwrap();
                }
                Event::End => {
                    hasher.end(&mut rows);
                    spool.end().unwrap();
                }
                _ => {}
            }
            Ok::<_, RdbError>(())
        })
        .unwrap();
    let read = begun.elapsed();
    let mut ordered = spool.finish();
    let (mut keys, mut again) = (0, Fingerprint::empty());
    for number in ordered.numbers() {
        let mut reader = RecordReader::new();
        ordered
            .read(number, &mut |piece: Bytes| {
                reader
                    .feed(&piece, &mut |event| {
                        match event {
                            RecordEvent::Begin(head, _) => hasher.begin(&head),
                            RecordEvent::Element(element) => hasher.element(&element),
                            RecordEvent::End => hasher.end(&mut again),
                        }
                        Ok::<_, StoredError>(())
                    })
                    .unwrap();
                Ok::<_, SpoolError>(())
            })
            .unwrap();
        keys += reader.finish().unwrap();
    }
    assert_eq!(keys, summary.keys);
    assert_eq!(again, rows);
    let peak = peak_bytes();
    println!(
        "{} bytes: read and spread in {read:?}, ordered in {:?}, peak {} MiB",
        summary.bytes,
        begun.elapsed() - read,
        peak >> 20
    );
    assert!(peak < 160 << 20, "{peak} bytes of memory");
}
