//! `fettler health URL` with no configuration, through the binary, for the engines that are no SQL databases of the usual kind.

#![allow(clippy::unwrap_used)]

use fettler_tests::{
    Installation,
    servers::{
        ClickhouseServer, ClickhouseVersion, MongodbKind, MongodbServer, SearchKind, SearchServer,
    },
};
use serde_json::Value;

/// What is open in a report, of what the disk of a test machine has no part in.
fn open(report: &Value) -> Vec<&str> {
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["status"]["state"] == "open")
        .map(|finding| finding["check"].as_str().unwrap())
        .filter(|check| !check.contains("disk"))
        .collect()
}

/// A fresh server has a good report, both levels, and the same again.
fn is_well(fettler: &Installation, url: &str, engine: &str) {
    for level in [
        &["health", url, "--json"][..],
        &["health", url, "--basic", "--json"],
    ] {
        let mut arguments = level.to_vec();
        // A disk of the test machine that is nearly full is no failure of this.
        arguments.extend(["--fail-on", "critical"]);
        let told = fettler.run(&arguments);
        let report: Value =
            serde_json::from_str(&told.stdout).unwrap_or_else(|_| panic!("{told:#?}"));
        assert_eq!(report["engine"], engine, "{report:#}");
        assert_eq!(open(&report), [""; 0], "{report:#}");
        assert!(
            report["score"]["points"].as_u64().unwrap() >= 70,
            "{report:#}"
        );
        let most = if arguments.contains(&"--basic") {
            5_000.0
        } else {
            30_000.0
        };
        assert!(
            report["milliseconds"].as_f64().unwrap() < most,
            "{report:#}"
        );
    }
}

#[test]
fn clickhouse_is_looked_at() {
    let server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    let fettler = Installation::new();
    is_well(&fettler, &server.url(), "clickhouse");
    server
        .query("CREATE DICTIONARY names (id UInt64, name String) PRIMARY KEY id SOURCE(CLICKHOUSE(TABLE 'missing')) LAYOUT(FLAT()) LIFETIME(0)")
        .unwrap();
    let _ = server.query("SYSTEM RELOAD DICTIONARY names");
    let told = fettler.run(&["health", &server.url(), "--json"]);
    assert_eq!(told.code, 3, "{told:#?}");
    let report: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(
        open(&report),
        ["clickhouse.dictionaries_failed"],
        "{report:#}"
    );
}

#[test]
fn elasticsearch_and_opensearch_are_looked_at() {
    for kind in [SearchKind::Elasticsearch, SearchKind::OpenSearch] {
        let server = SearchServer::start(kind, &[]).unwrap();
        let fettler = Installation::new();
        is_well(&fettler, &server.url(), "elasticsearch");
        let (status, answer) = server
            .request("PUT", "/logs", r#"{"settings": {"number_of_replicas": 0, "index.blocks.read_only_allow_delete": true}}"#)
            .unwrap();
        assert_eq!(status, 200, "{answer}");
        let told = fettler.run(&["health", &server.url(), "--json"]);
        assert_eq!(told.code, 3, "{told:#?}");
        let report: Value = serde_json::from_str(&told.stdout).unwrap();
        assert_eq!(
            open(&report),
            ["elasticsearch.indices_blocked"],
            "{report:#}"
        );
    }
}

#[test]
fn mongodb_is_looked_at() {
    for kind in MongodbKind::ALL {
        let server = MongodbServer::start(kind).unwrap();
        let fettler = Installation::new();
        is_well(&fettler, &server.url(), "mongodb");
    }
}
