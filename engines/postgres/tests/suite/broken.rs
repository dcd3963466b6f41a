//! Rule 30: a reader that is broken on purpose must not become proven.

use bytes::{Bytes, BytesMut};
use fettler_engine::BackupReport;
use fettler_test_servers::{PgMajor, PostgresServer};

use crate::common::{Memory, back_up, engine, prove};

/// A database with two tables, one copied in binary and one as text, both in several ranges.
async fn made() -> (Memory, BackupReport) {
    let source = PostgresServer::shared(PgMajor::V15)
        .create_database("broken")
        .unwrap();
    source
        .psql(
            "CREATE TABLE in_binary (id int, v text); INSERT INTO in_binary SELECT n, md5(n::text) FROM generate_series(1, 9000) n;
             CREATE TABLE in_text (id int, c regclass); INSERT INTO in_text SELECT n, 'pg_class' FROM generate_series(1, 9000) n",
        )
        .unwrap();
    back_up(&engine(PgMajor::V15), &source.url()).await
}

fn streams_of(report: &BackupReport, table: &str) -> Vec<String> {
    let tables = report.engine_data["tables"].as_array().unwrap();
    let table = tables.iter().find(|entry| entry["name"] == table).unwrap();
    let streams = table["streams"].as_array().unwrap();
    streams
        .iter()
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

/// Rows of a stream with the bytes before and after them.
fn rows(bytes: &Bytes, binary: bool) -> (Bytes, Vec<Bytes>, Bytes) {
    if !binary {
        let rows = bytes
            .split_inclusive(|byte| *byte == b'\n')
            .map(|row| bytes.slice_ref(row))
            .collect();
        return (Bytes::new(), rows, Bytes::new());
    }
    let mut rest = bytes.clone();
    let header = rest.split_to(19);
    let trailer = rest.split_off(rest.len() - 2);
    let mut rows = Vec::new();
    while !rest.is_empty() {
        let mut length = 2;
        for _ in 0..u16::from_be_bytes([rest[0], rest[1]]) {
            let field = i32::from_be_bytes(rest[length..length + 4].try_into().unwrap());
            length += 4 + usize::try_from(field.max(0)).unwrap();
        }
        rows.push(rest.split_to(length));
    }
    (header, rows, trailer)
}

fn joined(parts: (Bytes, Vec<Bytes>, Bytes)) -> Bytes {
    let mut bytes = BytesMut::from(&parts.0[..]);
    parts.1.iter().for_each(|row| bytes.extend_from_slice(row));
    bytes.extend_from_slice(&parts.2);
    bytes.freeze()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_lost_range_and_a_doubled_row_are_found() {
    let (backup, report) = made().await;
    let engine = engine(PgMajor::V15);
    assert_eq!(prove(&engine, &backup, &report).await, Vec::<String>::new());
    for (table, binary) in [("in_binary", true), ("in_text", false)] {
        let streams = streams_of(&report, table);
        assert!(streams.len() > 2, "{streams:?}");
        let whole = backup.bytes(&streams[1]);

        let (header, _, trailer) = rows(&whole, binary);
        backup.replace(&streams[1], joined((header, Vec::new(), trailer)));
        let found = prove(&engine, &backup, &report).await;
        assert!(
            found.iter().any(|what| what.contains(table)),
            "a range skipped: {found:?}"
        );

        let (header, mut some, trailer) = rows(&whole, binary);
        some[7] = some[8].clone();
        backup.replace(&streams[1], joined((header, some, trailer)));
        let found = prove(&engine, &backup, &report).await;
        assert!(
            found.iter().any(|what| what.contains(table)),
            "a row doubled, another lost: {found:?}"
        );
        backup.replace(&streams[1], whole);
    }
}

/// The reader itself loses a range, so that bytes, fingerprint and copy agree: the count by another path
/// is what finds it (rule 27).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_range_that_was_never_read_is_found_by_the_count() {
    let source = PostgresServer::shared(PgMajor::V15)
        .create_database("unread")
        .unwrap();
    source
        .psql("CREATE TABLE t (id int, v text); INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 9000) n")
        .unwrap();
    let engine = engine(PgMajor::V15).broken_for_tests_that_skips_a_range();
    let (backup, report) = back_up(&engine, &source.url()).await;
    let found = prove(&engine, &backup, &report).await;
    assert!(
        found.iter().any(|what| what.contains("counted")),
        "{found:?}"
    );
    assert!(
        !found.iter().any(|what| what.contains("instead of")),
        "{found:?}"
    );
}
