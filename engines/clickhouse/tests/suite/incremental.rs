//! What a second backup reads. Hashes of parts are told by the engine of today alone; of the server of 2018 all is read again,
//! and what did not change has the same bytes.

use fettler_engine::testing::{MemorySink, MemorySource};
use fettler_test_servers::ClickhouseServer;

use crate::common::{V18, V26, back_up_into, prove, run, server};

const TABLE: [&str; 3] = [
    "CREATE DATABASE shop",
    "CREATE TABLE shop.events (day Date, id UInt64, note String) ENGINE = MergeTree PARTITION BY toYYYYMM(day) ORDER BY id",
    "INSERT INTO shop.events SELECT toDate('2026-01-01') + number % 300, number, toString(cityHash64(number)) FROM numbers(20000)",
];

/// The streams of rows of a backup.
fn rows(sink: &MemorySink) -> Vec<String> {
    sink.streams()
        .keys()
        .filter(|name| name.starts_with("rows/"))
        .cloned()
        .collect()
}

/// A backup that has the first one for its parent, and the streams that it read.
async fn second(
    server: &ClickhouseServer,
    first: &MemorySink,
) -> (MemorySource, Vec<String>, bool) {
    // What is taken over would be seen: another byte stands in it.
    let mut parent = first.streams();
    for stream in parent.values_mut() {
        stream.buffers = vec![bytes::Bytes::from_static(b"taken over")];
    }
    let mut sink = MemorySink::default();
    sink.parent = parent;
    let report = back_up_into(&sink, &server.url()).await.unwrap();
    let streams = sink.streams();
    let read = rows(&sink)
        .into_iter()
        .filter(|name| streams[name].bytes() != b"taken over")
        .collect();
    // With the first backup's bytes in the place of what was taken over, it is as good as one that read all.
    let mut whole = streams;
    for (name, stream) in first.streams() {
        if let Some(taken) = whole.get_mut(&name)
            && taken.bytes() == b"taken over"
        {
            *taken = stream;
        }
    }
    let source = MemorySource::new(whole);
    let is_proven = prove(&source, &report, server).await.is_empty();
    (source, read, is_proven)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_the_parent_holds_are_not_read() {
    let source = server(V26);
    run(&source, &TABLE);
    let first = MemorySink::default();
    back_up_into(&first, &source.url()).await.unwrap();
    assert_eq!(rows(&first).len(), 10);
    let (_, read, is_proven) = second(&source, &first).await;
    assert_eq!((read, is_proven), (vec![], true));
    run(
        &source,
        &["INSERT INTO shop.events SELECT toDate('2026-02-01'), number, 'new' FROM numbers(200)"],
    );
    let (_, read, is_proven) = second(&source, &first).await;
    assert_eq!((read.len(), is_proven), (1, true), "{read:?}");
    assert!(read[0].contains("/202602/"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_hash_in_another_shape_or_table_is_read() {
    let source = server(V26);
    run(&source, &TABLE);
    run(
        &source,
        &["ALTER TABLE shop.events ADD COLUMN kind UInt8 DEFAULT 1"],
    );
    let first = MemorySink::default();
    back_up_into(&first, &source.url()).await.unwrap();
    // The parts stay as they are, and their rows read differently.
    run(
        &source,
        &["ALTER TABLE shop.events MODIFY COLUMN kind UInt8 DEFAULT 2"],
    );
    let (_, read, is_proven) = second(&source, &first).await;
    assert_eq!((read.len(), is_proven), (10, true));
    // Another table of the same name, made of the same parts.
    let before = MemorySink::default();
    back_up_into(&before, &source.url()).await.unwrap();
    run(
        &source,
        &[
            "CREATE TABLE shop.twin CLONE AS shop.events",
            "DROP TABLE shop.events SYNC",
            "RENAME TABLE shop.twin TO shop.events",
        ],
    );
    let (_, read, is_proven) = second(&source, &before).await;
    assert_eq!((read.len(), is_proven), (10, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_deleted_or_updated_beside_their_part_are_read_as_they_are() {
    let source = server(V26);
    run(&source, &TABLE);
    run(
        &source,
        &[
            "CREATE TABLE shop.patched (p UInt8, id UInt64, v String) ENGINE = MergeTree PARTITION BY p ORDER BY id SETTINGS enable_block_number_column = 1, enable_block_offset_column = 1",
            "INSERT INTO shop.patched SELECT number % 2, number, 'old' FROM numbers(1000)",
        ],
    );
    let first = MemorySink::default();
    back_up_into(&first, &source.url()).await.unwrap();
    run(
        &source,
        &[
            "DELETE FROM shop.events WHERE id % 7 = 0 AND toYYYYMM(day) = 202603",
            "SYSTEM STOP MERGES shop.patched",
        ],
    );
    source
        .query("UPDATE shop.patched SET v = 'new' WHERE id = 500")
        .unwrap();
    let patches = source
        .query("SELECT count() > 0 FROM system.parts WHERE table = 'patched' AND partition_id LIKE 'patch-%' AND active")
        .unwrap();
    assert_eq!(patches, "1\n", "there is a patch");
    let (backup, read, is_proven) = second(&source, &first).await;
    assert!(is_proven);
    assert!(
        read.iter().any(|name| name.contains("shop.events/202603/")),
        "{read:?}"
    );
    assert!(
        read.iter().any(|name| name.contains("shop.patched/")),
        "{read:?}"
    );
    let text: Vec<u8> = read
        .iter()
        .filter(|name| name.contains("shop.patched/"))
        .flat_map(|name| stream_of(&backup, name))
        .collect();
    assert!(text.windows(3).any(|window| window == b"new"));
}

fn stream_of(backup: &MemorySource, name: &str) -> Vec<u8> {
    use fettler_engine::StreamSource as _;
    use futures::TryStreamExt as _;
    tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(async {
            let pieces: Vec<bytes::Bytes> = backup
                .read(name)
                .await
                .unwrap()
                .try_collect()
                .await
                .unwrap();
            pieces.concat()
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_again_has_the_same_bytes() {
    let source = server(V18);
    run(&source, &TABLE);
    let (first, again) = (MemorySink::default(), MemorySink::default());
    back_up_into(&first, &source.url()).await.unwrap();
    back_up_into(&again, &source.url()).await.unwrap();
    let (first, again) = (first.streams(), again.streams());
    assert!(first.len() > 10);
    for (name, stream) in &first {
        assert_eq!(stream.bytes(), again[name].bytes(), "{name}");
    }
}
