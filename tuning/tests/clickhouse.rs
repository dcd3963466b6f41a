//! ClickHouse on real servers, of 2018 and of today: advice is given where it is due, and a fresh server gets none.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Tuned, found};
use fettler_engine_clickhouse::ClickhouseEngine;
use fettler_test_servers::{ClickhouseServer, ClickhouseVersion};
use fettler_tuning::Look;
use rstest::rstest;

fn open(look: &Look) -> Vec<&str> {
    look.findings
        .iter()
        .filter(|one| one.status.as_str() == "open")
        .map(|one| one.check.as_str())
        .collect()
}

#[rstest]
#[case(ClickhouseVersion::V18)]
#[case(ClickhouseVersion::V26)]
#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_server_and_a_tidy_table_are_left_in_peace_and_small_partitions_are_found(
    #[case] version: ClickhouseVersion,
) {
    let server = ClickhouseServer::start(version).unwrap();
    let engine = ClickhouseEngine::default();
    let tuned = Tuned {
        engine: &engine,
        url: server.url(),
    };
    let fresh = tuned.look(&[]).await;
    assert_eq!(open(&fresh), [""; 0], "{fresh:#?}");
    assert!(!fresh.version.is_empty());
    server
        .query("CREATE TABLE tidy (id UInt32, name String, at DateTime) ENGINE = MergeTree() PARTITION BY toYYYYMM(at) ORDER BY id")
        .unwrap();
    server
        .query("INSERT INTO tidy SELECT toUInt32(number * 4000), toString(cityHash64(number)), toDateTime(1700000000 + cityHash64(number) % 2000000) FROM system.numbers LIMIT 600000")
        .unwrap();
    let tidy = tuned.look(&[]).await;
    assert_eq!(open(&tidy), [""; 0], "{tidy:#?}");
    server
        .query("CREATE TABLE fine (id UInt32, part UInt16) ENGINE = MergeTree() PARTITION BY part ORDER BY id")
        .unwrap();
    // A hundred partitions of one insert are the most that are allowed.
    for begin in [0, 60] {
        server
            .query(&format!("INSERT INTO fine SELECT toUInt32(number), toUInt16({begin} + number % 60) FROM system.numbers LIMIT 600"))
            .unwrap();
    }
    let look = tuned.look(&[]).await;
    assert_eq!(
        open(&look),
        ["clickhouse.tune_partitions_small"],
        "{look:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn types_codecs_small_inserts_and_filters_beside_the_key_are_found() {
    let server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    let engine = ClickhouseEngine::default();
    let tuned = Tuned {
        engine: &engine,
        url: server.url(),
    };
    server
        .query("CREATE TABLE events (id UInt64, country String, state Nullable(String), level Int64, at DateTime, seq UInt64, who UInt32) ENGINE = MergeTree ORDER BY id")
        .unwrap();
    server
        .query("INSERT INTO events SELECT cityHash64(number), 'country ' || toString(number % 50), toString(cityHash64(number, 1)), number % 5, toDateTime(1700000000 + cityHash64(number, 2) % 90000000), 1000000000000 + number * 3, cityHash64(number, 3) FROM numbers(1000000)")
        .unwrap();
    server
        .query(
            "CREATE TABLE series (seq UInt64, value Float64) ENGINE = MergeTree ORDER BY tuple()",
        )
        .unwrap();
    server
        .query("INSERT INTO series SELECT 1000000000000 + number * 1000 + cityHash64(number) % 100, rand() FROM numbers(1000000)")
        .unwrap();
    let statements = [
        "SELECT count() FROM events WHERE who = 7",
        "SELECT * FROM events WHERE id = 7",
        "SELECT country, count() FROM events GROUP BY country",
        "SELECT something FROM nowhere",
    ];
    let look = tuned.look(&statements).await;
    assert_eq!(look.statements, (3, 1), "{look:#?}");
    assert_eq!(
        found(&look, "dictionary"),
        ["default.events.country"],
        "{look:#?}"
    );
    assert_eq!(found(&look, "nullable"), ["default.events.state"]);
    assert_eq!(found(&look, "integers"), ["default.events.level"]);
    let mut codecs = found(&look, "codec");
    codecs.sort_unstable();
    assert_eq!(
        codecs,
        ["default.events.seq", "default.series.seq"],
        "{look:#?}"
    );
    let keys = found(&look, "sorting_key");
    assert_eq!(keys.len(), 1, "{look:#?}");
    assert!(
        look.findings
            .iter()
            .any(|one| one.evidence["statement"] == statements[0])
    );
    // What the advice says is so: the column takes less, and the statement reads less.
    let size = |column: &str, table: &str| -> f64 {
        server
            .query(&format!("SELECT data_compressed_bytes FROM system.columns WHERE table = '{table}' AND name = '{column}'"))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    let before = size("seq", "series");
    for command in look
        .findings
        .iter()
        .filter(|one| one.check.ends_with("codec") || one.check.ends_with("dictionary"))
        .flat_map(|one| &one.fix.commands)
    {
        server.query(command).unwrap();
    }
    server.query("OPTIMIZE TABLE series FINAL").unwrap();
    assert!(size("seq", "series") * 1.5 < before, "{before}");
    let again = tuned.look(&[]).await;
    assert!(
        !found(&again, "codec").contains(&"default.series.seq"),
        "{again:#?}"
    );
    assert_eq!(found(&again, "dictionary"), [""; 0]);

    server
        .query("CREATE TABLE drops (id UInt32) ENGINE = MergeTree ORDER BY id")
        .unwrap();
    server.query("SYSTEM STOP MERGES drops").unwrap();
    for number in 0..35 {
        server
            .query(&format!("INSERT INTO drops VALUES ({number})"))
            .unwrap();
    }
    assert_eq!(
        found(&tuned.look(&[]).await, "parts_small"),
        ["default.drops"]
    );
}
