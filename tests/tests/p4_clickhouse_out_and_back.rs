//! P4 for ClickHouse, through the binary: backed up, proven in databases on a server that is named, restored into another
//! server, and equal to the source by the server's own hash. Types and kinds of tables are the engine's own suite's matter.

#![allow(clippy::unwrap_used)]

use fettler_tests::{
    Installation, Size,
    servers::{ClickhouseServer, ClickhouseVersion},
};
use rstest::rstest;

const HASH: &str = "SELECT count(), sum(cityHash64(id, name, price)) FROM shop.orders";

fn fill(server: &ClickhouseServer) {
    for statement in [
        "CREATE DATABASE shop",
        "CREATE TABLE shop.orders (id UInt64, name String, price Float64) ENGINE = MergeTree PARTITION BY id % 4 ORDER BY id",
        "INSERT INTO shop.orders SELECT number, toString(number), number / 3 FROM numbers(20000)",
    ] {
        server.query(statement).unwrap();
    }
}

#[rstest]
fn p4_p9_a_clickhouse_server_comes_back_and_its_password_stands_nowhere(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
    #[values(ClickhouseVersion::V18, ClickhouseVersion::V26)] version: ClickhouseVersion,
) {
    let start = || ClickhouseServer::start_with_password(version, "s3cretOfClickhouse").unwrap();
    let (source, copy) = (start(), start());
    fill(&source);

    let fettler = Installation::of_size(size);
    let made = fettler.json(&["backup", &source.url()]);
    assert_eq!(made["engine"], "clickhouse", "{made:#}");
    let proof = fettler.json(&["prove", "latest", "--sandbox", &copy.url()]);
    assert_eq!(proof["proven"], true, "{proof:#}");
    let left = copy
        .query("SELECT count() FROM system.databases WHERE name LIKE 'fettler%'")
        .unwrap();
    assert_eq!(left, "0\n");

    fettler
        .run(&["restore", "latest", "--to", &copy.url(), "--json"])
        .done();
    assert_eq!(source.query(HASH).unwrap(), copy.query(HASH).unwrap());

    // P9: the password is nowhere in what Fettler wrote.
    let found = std::process::Command::new("grep")
        .args(["-rlF", "s3cretOfClickhouse"])
        .args(fettler.folders())
        .output()
        .unwrap();
    assert!(
        found.stdout.is_empty(),
        "the password stands in {}",
        String::from_utf8_lossy(&found.stdout)
    );

    source
        .query("INSERT INTO shop.orders VALUES (4, 'another', 0.5)")
        .unwrap();
    let second = fettler.json(&["backup", &source.url()]);
    assert_eq!(second["parent"], made["backup"]);
    if version == ClickhouseVersion::V26 {
        // Three of four partitions are as they were.
        let (read, new) = (
            second["bytes_read"].as_u64().unwrap(),
            second["bytes_new"].as_u64().unwrap(),
        );
        assert!(new < read / 2, "{second:#}");
    }
}
