//! A source whose answers take longer than they did is read more slowly, until they do not; one whose answers do not is read
//! at full speed. A load that raises the latency is a way that delays every piece from some moment on.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bson::doc;
use fettler_tests::{
    Installation,
    servers::{
        ClickhouseServer, ClickhouseVersion, MongodbClient, MongodbKind, MongodbServer, PgMajor,
        PostgresServer, RedisOptions, RedisServer, SearchKind, SearchServer, TcpProxy, wait_until,
    },
};
use serde_json::Value;

/// Long enough for some samples.
const RATE: &str = "2MiB";
const LATE: Duration = Duration::from_millis(90);
/// Bytes of rows that have come by then.
const READ_BEFORE: u64 = 1_000_000;
const SOON: Duration = Duration::from_secs(240);
const SLOWED: &str = "it is read more slowly";

/// Backs up over a way that becomes slow, or does not; gives the job's log.
fn log(url: &str, proxy: &TcpProxy, becomes_slow: bool) -> String {
    let fettler = Installation::new();
    let mut up = fettler.start(&["up"]);
    let submitted = fettler.json(&[
        "backup",
        url,
        "--max-rate",
        RATE,
        "--read-everything",
        "--detach",
    ]);
    let id = submitted["job"].as_str().unwrap().to_owned();
    // The usual answers were measured before so much was read.
    wait_until("the source is read", SOON, || {
        proxy.bytes_to_client() > READ_BEFORE
    })
    .unwrap();
    if becomes_slow {
        proxy.delay(LATE);
    }
    let mut last = Value::Null;
    let met = wait_until("the backup has ended", SOON, || {
        last = fettler.json(&["jobs", "show", &id]);
        last["state"] != "queued" && last["state"] != "running"
    });
    assert!(met.is_ok(), "{last:#} {}", up.log());
    assert_eq!(last["state"], "succeeded", "{last:#}");
    up.terminate();
    last["log"].to_string()
}

fn is_slowed_only_when_it_is_late(url: impl Fn(u16) -> String, port: u16) {
    for becomes_slow in [false, true] {
        let proxy = TcpProxy::start(port).unwrap();
        let log = log(&url(proxy.port()), &proxy, becomes_slow);
        assert_eq!(log.contains(SLOWED), becomes_slow, "{log}");
    }
}

#[test]
fn postgres() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("late").unwrap();
    source
        .psql("CREATE TABLE t AS SELECT g AS id, string_agg(md5(g::text || x::text), '') AS v FROM generate_series(1, 300) g, generate_series(1, 1500) x GROUP BY g")
        .unwrap();
    is_slowed_only_when_it_is_late(|port| server.url_via(port, source.name()), server.port());
}

#[test]
fn redis() {
    // What is written compresses well, and would be read in an instant.
    let plain = RedisOptions::new().setting("rdbcompression", "no");
    let server = RedisServer::start(plain).unwrap();
    let port = server.port().to_string();
    let filled = std::process::Command::new("redis-cli")
        .args(["-p", &port, "EVAL"])
        .arg("for i = 1, 150 do redis.call('SET', i, string.rep('x', 100000)) end")
        .arg("0")
        .output()
        .unwrap();
    assert!(filled.status.success());
    is_slowed_only_when_it_is_late(|port| server.url_via(port), server.port());
}

#[test]
fn mongodb() {
    let server = MongodbServer::start(MongodbKind::WithOplog).unwrap();
    let mut client = MongodbClient::new(server.port());
    let text = "0123456789".repeat(10_000);
    for batch in 0..15 {
        let documents: Vec<bson::Document> = (0..10)
            .map(|n| doc! { "_id": batch * 10 + n, "v": &text })
            .collect();
        client.insert("shop", "large", documents);
    }
    is_slowed_only_when_it_is_late(|port| server.url_via(port), server.port());
}

#[test]
fn clickhouse() {
    let server = ClickhouseServer::start(ClickhouseVersion::V18).unwrap();
    server
        .query("CREATE TABLE default.t (id UInt64, v String) ENGINE = MergeTree ORDER BY id")
        .unwrap();
    server
        .query("INSERT INTO default.t SELECT number, arrayStringConcat(arrayMap(x -> toString(cityHash64(number, x)), range(50))) FROM numbers(15000)")
        .unwrap();
    is_slowed_only_when_it_is_late(|port| server.url_via(port), server.port());
}

#[test]
fn elasticsearch() {
    let server = SearchServer::start(SearchKind::Elasticsearch, &[]).unwrap();
    let text = "0123456789".repeat(2_000);
    for batch in 0..15 {
        let lines: String = (0..50)
            .map(|at| format!("{{\"index\":{{\"_id\":\"{batch}-{at}\"}}}}\n{{\"v\":\"{text}\"}}\n"))
            .collect();
        let (status, answer) = server
            .request("POST", "/large/_bulk?refresh=true", &lines)
            .unwrap();
        assert!(status < 300, "{answer}");
    }
    let url = server.url();
    let port: u16 = url
        .trim_end_matches('/')
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    is_slowed_only_when_it_is_late(|to| url.replace(&port.to_string(), &to.to_string()), port);
}
