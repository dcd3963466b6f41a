//! Tests of the format against the real server.

use std::path::PathBuf;

use fettler_test_servers::{RedisOptions, RedisServer};
use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};
use redis::{Connection, Pipeline, cmd, pipe};

use super::{Event, Payload, RdbError, Reader, Writer, read_payload};
use crate::records::{
    Kind,
    owned::{Keys, Owned, of_rdb, of_server},
};

pub(crate) fn connect(server: &RedisServer) -> Connection {
    redis::Client::open(server.url())
        .unwrap()
        .get_connection()
        .unwrap()
}

/// A server that saves itself only when it is told to.
pub(crate) fn server() -> RedisServer {
    RedisServer::start(RedisOptions::new().setting("save", "")).unwrap()
}

fn rdb_path(connection: &mut Connection) -> PathBuf {
    let (_, folder): (String, String) = cmd("CONFIG")
        .arg("GET")
        .arg("dir")
        .query(connection)
        .unwrap();
    PathBuf::from(folder).join("dump.rdb")
}

/// What the server saves.
pub(crate) fn save(server: &RedisServer) -> Vec<u8> {
    let mut connection = connect(server);
    cmd("SAVE").exec(&mut connection).unwrap();
    std::fs::read(rdb_path(&mut connection)).unwrap()
}

/// Starts the server again on these bytes.
pub(crate) fn start_on(server: &mut RedisServer, rdb: &[u8]) {
    let path = rdb_path(&mut connect(server));
    server.kill_9().unwrap();
    std::fs::write(path, rdb).unwrap();
    server.start_again().unwrap();
}

fn random(rng: &mut StdRng, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// Fills a server with every type in every encoding that it writes.
pub(crate) fn fill(server: &RedisServer) {
    let mut connection = connect(server);
    let rng = &mut StdRng::seed_from_u64(17);
    for database in 0..16 {
        cmd("SELECT").arg(database).exec(&mut connection).unwrap();
        fill_strings(rng, &mut connection);
        fill_collections(rng, &mut connection);
    }
    cmd("SELECT").arg(3).exec(&mut connection).unwrap();
    fill_streams(&mut connection);
    let code = "#!lua name=shop\nredis.register_function('one', function(keys, args) return 1 end)";
    cmd("FUNCTION")
        .arg("LOAD")
        .arg(code)
        .exec(&mut connection)
        .unwrap();
    let later = 4_102_444_800_123i64;
    cmd("PEXPIREAT")
        .arg("set/10")
        .arg(later)
        .exec(&mut connection)
        .unwrap();
    cmd("PEXPIREAT")
        .arg("string/0")
        .arg(later + 1)
        .exec(&mut connection)
        .unwrap();
}

fn fill_strings(rng: &mut StdRng, connection: &mut Connection) {
    let mut strings: Vec<Vec<u8>> = [
        "",
        "0",
        "-0",
        "00",
        "-128",
        "127",
        "128",
        "-129",
        "32767",
        "-32768",
        "32768",
        "2147483647",
        "-2147483648",
        "2147483648",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "1e3",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    strings.push("a".repeat(20).into_bytes());
    strings.push("abc".repeat(300_000).into_bytes());
    strings.push(random(rng, 63));
    strings.push(random(rng, 64));
    strings.push(random(rng, 16_383));
    strings.push(random(rng, 300_000));
    // Compressible far and near.
    let noise = random(rng, 9000);
    strings.push([noise.clone(), noise.clone(), vec![0; 500_000], noise].concat());
    let mut pipe = pipe();
    for (at, string) in strings.iter().enumerate() {
        pipe.cmd("SET").arg(format!("string/{at}")).arg(string);
    }
    pipe.cmd("SET").arg(&b"\x00\xff binary \r\n"[..]).arg("x");
    pipe.cmd("SET").arg("").arg("of the empty key");
    pipe.exec(connection).unwrap();
}

/// Members of all sizes, some of them integers.
fn members(rng: &mut StdRng, count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|at| match at % 5 {
            0 => rng.random::<i64>().to_string().into_bytes(),
            1 => (rng.random::<i16>()).to_string().into_bytes(),
            2 => format!("member {at}").into_bytes(),
            3 => {
                let count = rng.random_range(0..60);
                random(rng, count)
            }
            _ => (i64::from(rng.random::<i32>() >> 8))
                .to_string()
                .into_bytes(),
        })
        .collect()
}

fn fill_collections(rng: &mut StdRng, connection: &mut Connection) {
    let add = |pipe: &mut Pipeline, count: usize, members: Vec<Vec<u8>>, rng: &mut StdRng| {
        for (at, member) in members.iter().enumerate() {
            pipe.cmd("RPUSH").arg(format!("list/{count}")).arg(member);
            pipe.cmd("SADD").arg(format!("set/{count}")).arg(member);
            let score = match at % 7 {
                0 => "inf".to_owned(),
                1 => "-inf".to_owned(),
                2 => rng.random::<f64>().to_string(),
                3 => "-0".to_owned(),
                4 => "9007199254740993".to_owned(),
                5 => (-(at as i64)).to_string(),
                _ => rng.random::<f32>().to_string(),
            };
            pipe.cmd("ZADD")
                .arg(format!("zset/{count}"))
                .arg(score)
                .arg(member);
            pipe.cmd("HSET")
                .arg(format!("hash/{count}"))
                .arg(member)
                .arg(random(rng, at % 63));
        }
    };
    for count in [1, 10, 100, 700] {
        let mut pipe = pipe();
        let members = members(rng, count);
        add(&mut pipe, count, members, rng);
        for at in 0..count {
            pipe.cmd("SADD")
                .arg(format!("small integers/{count}"))
                .arg(at as i64 * 3 - 20);
            pipe.cmd("SADD")
                .arg(format!("integers/{count}"))
                .arg(at as i64 * 300 - 40_000);
            pipe.cmd("SADD")
                .arg(format!("large integers/{count}"))
                .arg((at as i64) << 40);
        }
        pipe.exec(connection).unwrap();
    }
    let mut pipe = pipe();
    // Elements that are too large for the small encodings.
    add(
        &mut pipe,
        3,
        vec![random(rng, 100), random(rng, 5000), vec![b'x'; 70_000]],
        rng,
    );
    pipe.cmd("HSET")
        .arg("hash/long value")
        .arg("f")
        .arg("y".repeat(5000));
    pipe.exec(connection).unwrap();
}

fn fill_streams(connection: &mut Connection) {
    let mut pipe = pipe();
    for at in 1..=1000u64 {
        let command = pipe
            .cmd("XADD")
            .arg("stream")
            .arg(format!("{}-{}", at / 3 + 5, at));
        if at % 50 == 0 {
            command
                .arg("other")
                .arg(at)
                .arg("empty")
                .arg("")
                .arg("again")
                .arg("z".repeat(200));
        } else {
            command
                .arg("temperature")
                .arg(at * 7)
                .arg("place")
                .arg("north");
        }
    }
    pipe.cmd("XDEL")
        .arg("stream")
        .arg("5-1")
        .arg("6-3")
        .arg("105-300")
        .arg("17-38");
    pipe.cmd("XGROUP")
        .arg("CREATE")
        .arg("stream")
        .arg("first")
        .arg("0");
    pipe.cmd("XGROUP")
        .arg("CREATE")
        .arg("stream")
        .arg("second")
        .arg("$");
    pipe.cmd("XGROUP")
        .arg("CREATE")
        .arg("stream")
        .arg("third")
        .arg("100-285");
    pipe.cmd("XGROUP")
        .arg("CREATECONSUMER")
        .arg("stream")
        .arg("first")
        .arg("idle");
    for (consumer, count) in [("anna", 40), ("bert", 300), ("anna", 2)] {
        pipe.cmd("XREADGROUP")
            .arg("GROUP")
            .arg("first")
            .arg(consumer)
            .arg("COUNT")
            .arg(count);
        pipe.arg("STREAMS").arg("stream").arg(">");
    }
    pipe.cmd("XCLAIM")
        .arg("stream")
        .arg("first")
        .arg("bert")
        .arg(0)
        .arg("7-7")
        .arg("7-6");
    pipe.cmd("XACK").arg("stream").arg("first").arg("8-9");
    pipe.cmd("XADD")
        .arg("stream/emptied")
        .arg("1-1")
        .arg("a")
        .arg("b");
    pipe.cmd("XDEL").arg("stream/emptied").arg("1-1");
    pipe.cmd("XGROUP")
        .arg("CREATE")
        .arg("stream/made")
        .arg("g")
        .arg("0")
        .arg("MKSTREAM");
    pipe.cmd("XADD")
        .arg("stream/one")
        .arg("18446744073709551615-18446744073709551615")
        .arg("")
        .arg("");
    pipe.exec(connection).unwrap();
}

/// Compares with a message that is no longer than can be read.
#[track_caller]
pub(crate) fn assert_same(read: &Keys, expected: &Keys) {
    let names = |keys: &Keys| keys.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(read), names(expected));
    for (name, key) in read {
        let expected = &expected[name];
        assert_eq!(
            (key.kind, key.expiry),
            (expected.kind, expected.expiry),
            "{name:?}"
        );
        assert_eq!(key.elements.len(), expected.elements.len(), "{name:?}");
        for (at, (element, expected)) in key.elements.iter().zip(&expected.elements).enumerate() {
            assert!(
                element == expected,
                "{name:?}, element {at}: {:.300} is not {:.300}",
                format!("{element:?}"),
                format!("{expected:?}")
            );
        }
    }
}

#[test]
fn every_type_in_every_encoding_reads_as_the_commands_say() {
    let server = server();
    fill(&server);
    let rdb = save(&server);
    let (keys, summary) = of_rdb(&rdb).unwrap();
    assert_same(&keys, &of_server(&server.url()));
    assert_eq!(summary.bytes, rdb.len() as u64);
    assert_eq!(summary.keys, keys.len() as u64);
    assert!(summary.checked);

    let (mut functions, mut hints) = (Vec::new(), 0);
    Reader::new(&*rdb)
        .read(&mut |event| {
            match event {
                Event::Function(code) => functions.push(code.to_vec()),
                Event::SizeHint { keys } => hints += keys,
                _ => {}
            }
            Ok::<_, RdbError>(())
        })
        .unwrap();
    assert_eq!(functions.len(), 1);
    assert!(functions[0].starts_with(b"#!lua name=shop"));
    assert_eq!(hints, summary.keys);
}

#[test]
fn without_compression_and_checksum_the_same_is_read() {
    let server = RedisServer::start(
        RedisOptions::new()
            .setting("save", "")
            .setting("rdbcompression", "no")
            .setting("rdbchecksum", "no")
            .setting("hash-max-listpack-entries", "0")
            .setting("zset-max-listpack-entries", "0")
            .setting("set-max-intset-entries", "0")
            .setting("list-max-listpack-size", "1")
            .setting("stream-node-max-entries", "3"),
    )
    .unwrap();
    fill(&server);
    let (keys, summary) = of_rdb(&save(&server)).unwrap();
    assert_same(&keys, &of_server(&server.url()));
    assert!(!summary.checked);
}

/// An RDB of these keys.
pub(crate) fn write(keys: &Keys, version: u32) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), version).unwrap();
    writer.aux(b"redis-ver", b"7.0.15").unwrap();
    writer
        .function(b"#!lua name=kept\nredis.register_function('two', function() return 2 end)")
        .unwrap();
    for ((database, name), key) in keys {
        writer
            .begin(&key.head(*database, name), &key.size())
            .unwrap();
        for element in &key.elements {
            writer.element(&element.element(key.kind)).unwrap();
        }
        writer.end().unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn a_server_starts_on_what_the_writer_writes() {
    let mut server = server();
    fill(&server);
    let expected = of_server(&server.url());
    let written = write(&of_rdb(&save(&server)).unwrap().0, 10);
    assert_same(&of_rdb(&written).unwrap().0, &expected);

    start_on(&mut server, &written);
    assert_same(&of_server(&server.url()), &expected);
    let libraries: redis::Value = cmd("FUNCTION")
        .arg("LIST")
        .query(&mut connect(&server))
        .unwrap();
    assert!(format!("{libraries:?}").contains("kept"));
    // And what it saves then is the same again.
    assert_same(&of_rdb(&save(&server)).unwrap().0, &expected);
}

#[test]
fn payloads_pass_between_us_and_the_server_in_both_directions() {
    let server = server();
    fill(&server);
    let mut connection = connect(&server);
    let expected = of_server(&server.url());
    for ((database, name), key) in &expected {
        cmd("SELECT").arg(*database).exec(&mut connection).unwrap();
        let dumped: Vec<u8> = cmd("DUMP").arg(name).query(&mut connection).unwrap();
        let mut collector = crate::records::owned::Collector::default();
        read_payload(&dumped, *database, name, key.expiry, &mut |event| {
            match event {
                Event::Begin(head) => collector.begin(&head),
                Event::Element(element) => collector.element(&element),
                Event::End => collector.end(),
                other => panic!("{other:?}"),
            }
            Ok::<_, RdbError>(())
        })
        .unwrap();
        assert_same(
            &collector.keys,
            &[((*database, name.clone()), key.clone())]
                .into_iter()
                .collect(),
        );

        let mut payload = Payload::begin(key.kind, &key.size(), 10);
        for element in &key.elements {
            payload.element(&element.element(key.kind));
        }
        cmd("RESTORE")
            .arg(name)
            .arg(key.expiry.unwrap_or(0))
            .arg(payload.end())
            .arg("REPLACE")
            .arg("ABSTTL")
            .exec(&mut connection)
            .unwrap();
    }
    assert_same(&of_server(&server.url()), &expected);
}

/// Ends hand-made bytes as files end.
fn ended(mut rdb: Vec<u8>) -> Vec<u8> {
    rdb.push(0xff);
    let checksum = super::format::CHECKSUM.checksum(&rdb);
    rdb.extend(checksum.to_le_bytes());
    rdb
}

/// A string as it stands in files.
fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    super::encode::put_string(text, &mut bytes);
    bytes
}

/// A ziplist: its entries are given as they stand there, without the length of the one before.
fn ziplist(entries: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![0; 10];
    let (mut before, mut last) = (0usize, 10u32);
    for entry in entries {
        last = bytes.len() as u32;
        let begin = bytes.len();
        if before < 254 {
            bytes.push(before as u8);
        } else {
            bytes.push(254);
            bytes.extend((before as u32).to_le_bytes());
        }
        bytes.extend_from_slice(entry);
        before = bytes.len() - begin;
    }
    bytes.push(0xff);
    let total = bytes.len() as u32;
    bytes[..4].copy_from_slice(&total.to_le_bytes());
    bytes[4..8].copy_from_slice(&last.to_le_bytes());
    bytes[8..10].copy_from_slice(&(entries.len() as u16).to_le_bytes());
    bytes
}

/// An RDB with the encodings that Redis 7.0 reads and does not write.
fn old_encodings() -> Vec<u8> {
    let mut rdb = b"REDIS0006\xfe\x00".to_vec();
    let mut key = |encoding: u8, name: &str, value: &[u8]| {
        rdb.push(encoding);
        rdb.extend(string(name.as_bytes()));
        rdb.extend_from_slice(value);
    };
    key(
        1,
        "list",
        &[vec![3], string(b"a"), string(b""), vec![0xc0, 0x80]].concat(),
    );
    let middle = [&[0x41, 0x00][..], &[b'm'; 256]].concat();
    let long = [&[0x80, 0, 0, 0x40, 0x00][..], &[b'l'; 0x4000]].concat();
    let numbers: [&[u8]; 11] = [
        b"\x03abc",
        b"\x00",
        &middle,
        &long,
        b"\xfe\xff",
        b"\xc0\x00\x80",
        b"\xf0\x00\x00\x80",
        b"\xd0\x00\x00\x00\x80",
        b"\xe0\x00\x00\x00\x00\x00\x00\x00\x80",
        b"\xf1",
        b"\xfd",
    ];
    key(10, "list ziplist", &string(&ziplist(&numbers)));
    key(
        14,
        "quicklist",
        &[
            vec![2],
            string(&ziplist(&numbers)),
            string(&ziplist(&[b"\x01z"])),
        ]
        .concat(),
    );
    let pairs: [&[u8]; 6] = [
        b"\x01a",
        b"\xf4",
        b"\x01b",
        b"\x043.25",
        b"\x01c",
        b"\x03inf",
    ];
    key(12, "zset ziplist", &string(&ziplist(&pairs)));
    key(13, "hash ziplist", &string(&ziplist(&pairs)));
    let zipmap = [
        &[2u8, 3][..],
        b"one",
        &[2, 1],
        b"11",
        b"?",
        &[254, 44, 1, 0, 0],
        &[b't'; 300],
        &[0, 0],
        &[255],
    ]
    .concat();
    key(9, "zipmap", &string(&zipmap));
    let scores: [&[u8]; 4] = [b"\x04-1.5", &[254], &[255], b"\x0417.5"];
    let mut zset = vec![4];
    for (at, score) in scores.iter().enumerate() {
        zset.extend(string(&[b'a' + at as u8]));
        zset.extend_from_slice(score);
    }
    key(3, "zset of texts", &zset);
    rdb.push(0xfd);
    rdb.extend(i32::MAX.to_le_bytes());
    rdb.extend([0, 7]);
    rdb.extend(b"expires");
    rdb.extend(string(b"x"));
    ended(rdb)
}

#[test]
fn encodings_of_older_servers_read_as_the_server_reads_them() {
    let rdb = old_encodings();
    let (keys, summary) = of_rdb(&rdb).unwrap();
    assert_eq!(summary.version, 6);
    let item = |key: &str, at: usize| keys[&(0, key.as_bytes().to_vec())].elements[at].clone();
    assert_eq!(item("list", 2), Owned::Bytes(b"-128".to_vec()));
    assert_eq!(
        item("list ziplist", 8),
        Owned::Bytes(i64::MIN.to_string().into_bytes())
    );

    let mut server = server();
    start_on(&mut server, &rdb);
    assert_same(&keys, &of_server(&server.url()));
}

#[test]
fn a_list_item_of_its_own_node_is_read() {
    let mut rdb = b"REDIS0010\xfe\x00\x12".to_vec();
    rdb.extend(string(b"l"));
    rdb.extend([1, 1]);
    rdb.extend(string(b"an item of its own"));
    let rdb = ended(rdb);
    let (keys, _) = of_rdb(&rdb).unwrap();
    let mut server = server();
    start_on(&mut server, &rdb);
    assert_same(&keys, &of_server(&server.url()));
}

#[test]
fn streams_written_for_older_servers_read_as_the_server_reads_them() {
    let mut server = server();
    fill(&server);
    let mut keys = of_server(&server.url());
    keys.retain(|_, key| key.kind == Kind::Stream);
    // 9 knows nothing of entries added, deleted and read.
    let rdb = ended({
        let mut rdb = write(&keys, 9);
        rdb.truncate(rdb.len() - 9);
        rdb
    });
    let (read, _) = of_rdb(&rdb).unwrap();
    start_on(&mut server, &rdb);
    assert_same(&read, &of_server(&server.url()));
    assert_eq!(read.len(), 4);
}

#[test]
fn fields_that_expire_are_read_in_all_their_forms() {
    let mut rdb = b"REDIS0012\xfe\x00".to_vec();
    let packed = super::encode::packed_for_tests(&[b"f", b"v", b"0", b"g", b"w", b"4102444800123"]);
    let long = |number: u64| {
        let mut bytes = Vec::new();
        super::encode::put_length(number, &mut bytes);
        bytes
    };
    let first = 4_102_444_800_000u64;
    let fields = |ttl: u64| {
        [
            vec![2],
            vec![0],
            string(b"f"),
            string(b"v"),
            long(ttl),
            string(b"g"),
            string(b"w"),
        ]
        .concat()
    };
    for (encoding, name, value) in [
        (22, "a", fields(first + 123)),
        (23, "b", string(&packed)),
        (
            24,
            "c",
            [first.to_le_bytes().to_vec(), fields(124)].concat(),
        ),
        (
            25,
            "d",
            [first.to_le_bytes().to_vec(), string(&packed)].concat(),
        ),
    ] {
        rdb.push(encoding);
        rdb.extend(string(name.as_bytes()));
        rdb.extend(value);
    }
    let (keys, _) = of_rdb(&ended(rdb)).unwrap();
    assert_eq!(keys.len(), 4);
    for key in keys.values() {
        assert_eq!(
            key.elements,
            [
                Owned::Field(b"f".to_vec(), b"v".to_vec(), None),
                Owned::Field(b"g".to_vec(), b"w".to_vec(), Some(first + 123)),
            ]
        );
    }
    assert_same(&of_rdb(&write(&keys, 12)).unwrap().0, &keys);
}

#[test]
fn values_of_modules_pass_whole_and_named() {
    // The id of "ReJSON-RL", version 3, as its letters make it.
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let id = b"ReJSON-RL".iter().fold(0u64, |id, letter| {
        id << 6 | letters.iter().position(|known| known == letter).unwrap() as u64
    }) << 10
        | 3;
    let mut module = vec![0x81];
    module.extend(id.to_be_bytes());
    let mut payload = module.clone();
    payload.extend([
        1, 0x40, 0xff, 2, 7, 3, 1, 2, 3, 4, 4, 1, 2, 3, 4, 5, 6, 7, 8, 5,
    ]);
    payload.extend(string(&[b'{'; 700_000]));
    payload.extend([5, 0xc1, 1, 2, 5, 0xc3, 4, 9, 0, b'a', 0xe0, 0, 0]);
    let mut aux = module;
    aux.extend([2, 1, 5]);
    aux.extend(string(b"beside keys"));
    aux.push(0);

    let mut writer = Writer::new(Vec::new(), 9).unwrap();
    let kind = Kind::Module(id);
    let head = crate::records::KeyHead {
        database: 2,
        key: b"document",
        expiry: None,
        kind,
    };
    writer
        .begin(&head, &crate::records::Size::default())
        .unwrap();
    writer
        .element(&crate::records::Element::ModulePiece(&payload))
        .unwrap();
    writer.end().unwrap();
    let rdb = writer.finish().unwrap();
    // What the module keeps beside keys comes before them; the end and the checksum are made anew.
    let rdb = ended([&rdb[..9], &[0xf7], &aux, &rdb[9..rdb.len() - 9]].concat());

    let (keys, _) = of_rdb(&rdb).unwrap();
    assert_eq!(kind.name(), "ReJSON-RL");
    let key = &keys[&(2, b"document".to_vec())];
    assert_eq!(key.kind, kind);
    assert_eq!(key.elements, [Owned::Bytes(payload)]);
    let mut modules = Vec::new();
    Reader::new(&*rdb)
        .read(&mut |event| {
            if let Event::ModuleAux { module } = event {
                modules.push(module);
            }
            Ok::<_, RdbError>(())
        })
        .unwrap();
    assert_eq!(modules, [id]);
}

#[test]
fn one_changed_bit_fails_the_checksum_or_sooner() {
    let rdb = old_encodings();
    for bit in (0..rdb.len() * 8).step_by(61) {
        let mut damaged = rdb.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(of_rdb(&damaged).is_err(), "bit {bit}");
    }
}

/// Nothing is allocated for what a length merely claims.
#[test]
fn lengths_that_no_file_could_have_are_errors() {
    let most = [&[0x81][..], &u64::MAX.to_be_bytes()].concat();
    for encoding in 0..26 {
        for claim in [
            most.clone(),
            [&[0xc3][..], &most, &most, &[0]].concat(),
            [&[0xc3, 5][..], &most, &[0, b'a', 0xff, 0xff, 0]].concat(),
            [&[1][..], &most].concat(),
            [&[1, 1][..], &most].concat(),
        ] {
            let rdb = [b"REDIS0012", &[encoding][..], &string(b"k"), &claim].concat();
            assert!(of_rdb(&rdb).is_err(), "{encoding}");
        }
    }
}

#[test]
fn what_is_no_rdb_or_a_newer_one_is_said_to_be_so() {
    let message = |bytes: &[u8]| of_rdb(bytes).unwrap_err().to_string();
    assert_eq!(message(b"REDIS"), "the RDB ends at byte 5, in the middle");
    assert!(message(b"REDIS0013\xff").contains("its version is 13"));
    assert!(message(b"VALKEY080\xff").contains("Valkey 9"));
    assert!(message(b"<html><body>").contains("not the beginning of an RDB"));
    assert!(message(b"REDIS0010\xfe\x00\x63\x01k").contains("no type of value has the number 99"));
}

/// What every type in every encoding is written as, small.
fn small_rdb() -> Vec<u8> {
    static SMALL: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    SMALL
        .get_or_init(|| {
            let server = server();
            let mut connection = connect(&server);
            fill_streams(&mut connection);
            let mut pipe = pipe();
            for at in 0..5 {
                pipe.cmd("SADD").arg("integers").arg(at);
                pipe.cmd("SADD").arg("set").arg("member").arg(at);
                pipe.cmd("HSET").arg("hash").arg(at).arg("value");
                pipe.cmd("HSET")
                    .arg("hash of long")
                    .arg("f")
                    .arg("v".repeat(100));
                pipe.cmd("ZADD").arg("zset").arg(0.5).arg(at);
                pipe.cmd("ZADD")
                    .arg("zset of long")
                    .arg(0.5)
                    .arg("m".repeat(100));
                pipe.cmd("RPUSH").arg("list").arg("item").arg(at);
                pipe.cmd("PSETEX")
                    .arg("string")
                    .arg(1_000_000)
                    .arg("text ".repeat(20));
            }
            pipe.cmd("XTRIM").arg("stream").arg("MAXLEN").arg(20);
            pipe.exec(&mut connection).unwrap();
            save(&server)
        })
        .clone()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_files_give_errors_and_nothing_worse(
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        old in any::<bool>(),
    ) {
        let mut rdb = if old { old_encodings() } else { small_rdb() };
        for (at, byte) in &changes {
            let at = at.index(rdb.len());
            rdb[at] = *byte;
        }
        let mut longest = 0;
        let mut bytes = 0;
        let mut count = |event: Event<'_>| {
            if let Event::Element(crate::records::Element::Item(item)) = event {
                longest = longest.max(item.len());
            }
            bytes += 1;
            Ok::<_, RdbError>(())
        };
        let _any_result = Reader::new(&*rdb).read(&mut count);
        rdb.truncate(cut.index(rdb.len()));
        if let Err(error) = Reader::new(&*rdb).read(&mut count) {
            prop_assert!(error.to_string().contains("byte"));
        }
    }

    #[test]
    fn damaged_payloads_give_errors_and_nothing_worse(
        encoding in 0u8..30,
        value in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut payload = vec![encoding];
        payload.extend(value);
        payload.extend(9u16.to_le_bytes());
        let checksum = super::format::CHECKSUM.checksum(&payload);
        payload.extend(checksum.to_le_bytes());
        let _any_result = read_payload(&payload, 0, b"k", None, &mut |_| Ok::<_, RdbError>(()));
    }
}
