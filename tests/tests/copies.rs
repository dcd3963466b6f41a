//! `copy-data` through the binary, for each engine: the copy equals its source, by what Fettler compares and by a client that
//! knows nothing of it; a copy that was killed goes on; what was changed in the target before the comparison is found; and
//! nothing is left behind.

#![allow(clippy::unwrap_used)]

use bson::{Document, doc};
use fettler_tests::{
    Installation, Size,
    servers::{
        ClickhouseServer, ClickhouseVersion, MongodbClient, MongodbKind, MongodbServer, PgMajor,
        PostgresServer, RedisOptions, RedisServer, SearchKind, SearchServer,
    },
    sqlite,
};
use rstest::rstest;
use serde_json::Value;

/// What a copy leaves in the scratch folders: nothing.
fn nothing_is_left(fettler: &Installation) {
    for folder in fettler.folders() {
        let found = std::process::Command::new("find")
            .arg(&folder)
            .args(["-name", "copy-*"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "", "left behind");
    }
}

/// Copies; looks that a dry run changes nothing and that the copy is not replaced unasked.
fn copy(fettler: &Installation, from: &str, to: &str, holds: impl Fn() -> bool) -> Value {
    let planned = fettler.json(&["copy-data", from, to, "--dry-run"]);
    assert_eq!(planned["dry_run"], true, "{planned:#}");
    assert!(planned["equal"].is_null() && !holds());
    let copied = fettler.json(&["copy-data", from, to]);
    assert_eq!(copied["equal"], true, "{copied:#}");
    assert!(
        copied["fingerprints_compared"].as_u64().unwrap() > 0,
        "{copied:#}"
    );
    assert!(holds());
    nothing_is_left(fettler);
    let refused = fettler.run(&["copy-data", from, to]);
    assert_eq!(refused.code, 1, "{refused:#?}");
    assert!(refused.stderr.contains("--overwrite") || refused.stderr.contains("overwrite"));
    nothing_is_left(fettler);
    let again = fettler.json(&["copy-data", from, to, "--overwrite"]);
    assert_eq!(again["equal"], true, "{again:#}");
    copied
}

#[rstest]
#[case(Size::Embedded)]
#[case(Size::Fleet)]
fn a_sqlite_database_is_copied(#[case] size: Size) {
    let fettler = Installation::of_size(size);
    let (from, to) = (fettler.path("a.sqlite"), fettler.path("b.sqlite"));
    sqlite::make_bank(&from, 1 << 20);
    copy(
        &fettler,
        from.to_str().unwrap(),
        to.to_str().unwrap(),
        || to.exists(),
    );
    let itself = fettler.run(&["copy-data", from.to_str().unwrap(), from.to_str().unwrap()]);
    assert_eq!(itself.code, 1);
    assert!(itself.stderr.contains("source itself"), "{itself:#?}");
    let other = fettler.run(&["copy-data", from.to_str().unwrap(), "redis://127.0.0.1:1"]);
    assert!(other.stderr.contains("sqlite"), "{other:#?}");
}

#[rstest]
#[case(PgMajor::V15)]
#[case(PgMajor::V18)]
fn a_postgres_database_is_copied_whole_and_in_part(#[case] major: PgMajor) {
    let server = PostgresServer::shared(major);
    let source = server.create_database("copied").unwrap();
    source
        .psql("CREATE TABLE orders (id bigint PRIMARY KEY, v text); INSERT INTO orders SELECT g, repeat(md5(g::text), 3) FROM generate_series(1, 5000) g; CREATE TABLE notes (n text); INSERT INTO notes VALUES ('x'), (NULL)")
        .unwrap();
    let target = server.create_database("copy").unwrap();
    let fettler = Installation::new().with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    let there = || {
        let count = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
        target.psql(count).unwrap().trim() == "2"
    };
    copy(&fettler, &source.url(), &target.url(), there);
    let sum = "SELECT md5(string_agg(o::text, ',' ORDER BY id)) FROM orders o";
    assert_eq!(source.psql(sum).unwrap(), target.psql(sum).unwrap());
    // A part, beside something else.
    let part = server.create_database("part").unwrap();
    part.psql("CREATE TABLE own (id int)").unwrap();
    let copied = fettler.json(&[
        "copy-data",
        &source.url(),
        &part.url(),
        "--only",
        "public.notes",
    ]);
    assert_eq!(copied["equal"], true, "{copied:#}");
    assert_eq!(copied["mismatches"], serde_json::json!([]));
    assert_eq!(part.psql("SELECT count(*) FROM notes").unwrap().trim(), "2");
}

fn redis() -> RedisServer {
    RedisServer::start(RedisOptions::new()).unwrap()
}

fn ask(server: &RedisServer, words: &[&str]) -> String {
    let port = server.port().to_string();
    let answer = std::process::Command::new("redis-cli")
        .args(["-p", &port])
        .args(words)
        .output()
        .unwrap();
    String::from_utf8_lossy(&answer.stdout).trim().to_owned()
}

fn fill(server: &RedisServer) {
    ask(
        server,
        &[
            "EVAL",
            "for i = 1, 3000 do redis.call('SET', 'k' .. i, string.rep(i, 20)); redis.call('HSET', 'h' .. i % 50, i, i) end",
            "0",
        ],
    );
    // What expires while it is copied, soon after, and long after.
    ask(server, &["SET", "soon", "x", "PX", "1500"]);
    ask(server, &["SET", "minute", "x", "EX", "30"]);
    ask(server, &["SET", "day", "x", "EX", "86400"]);
}

#[test]
fn a_redis_server_is_copied_though_keys_expire_meanwhile() {
    let (source, target) = (redis(), redis());
    fill(&source);
    let fettler = Installation::new();
    let copied = copy(&fettler, &source.url(), &target.url(), || {
        ask(&target, &["DBSIZE"]) != "0"
    });
    let notes = copied["notes"].to_string();
    assert!(notes.contains("expire within 60 s"), "{notes}");
    assert_eq!(ask(&target, &["GET", "k17"]), "17".repeat(20));
    assert_eq!(ask(&target, &["HLEN", "h1"]), "60");
    let left: u64 = ask(&target, &["TTL", "day"]).parse().unwrap();
    assert!((86_000..=86_400).contains(&left), "{left}");
    // Keys of a pattern into another database, beside others.
    let other = format!("{}/5", target.url().trim_end_matches('/'));
    ask(&target, &["-n", "5", "SET", "own", "1"]);
    let part = fettler.json(&["copy-data", &source.url(), &other, "--only", "db0/h*"]);
    assert_eq!(part["equal"], true, "{part:#}");
    assert_eq!(ask(&target, &["-n", "5", "DBSIZE"]), "51");
}

/// A Fettler that dies at these moments, at each of them once.
fn dying(points: &str) -> Installation {
    let fettler = Installation::new().with_short_leases();
    let latches = fettler.path("latches");
    std::fs::create_dir(&latches).unwrap();
    fettler
        .with("FETTLER_FAULT_POINT", points)
        .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap())
}

/// A command takes up what a killed one has left; gives the job as it ended.
fn taken_up(fettler: &Installation, database: &str, points: &[&str]) -> Value {
    let next = fettler.run(&["ping", database]).done();
    assert!(next.stderr.contains("taken up"), "{next:#?}");
    for point in points {
        assert!(
            fettler.path("latches").join(point).exists(),
            "{point} was not reached"
        );
    }
    let jobs = fettler.json(&["jobs", "--all"]);
    let jobs = jobs["jobs"].as_array().unwrap();
    let copy = jobs.iter().find(|job| job["kind"] == "copy-data").unwrap();
    let job = fettler.json(&["jobs", "show", copy["id"].as_str().unwrap()]);
    assert_eq!(job["state"], "succeeded", "{job:#} {next:#?}");
    nothing_is_left(fettler);
    job
}

#[test]
fn p3_a_change_between_the_restore_and_the_comparison_is_found_and_nothing_is_restored_again() {
    let (source, target) = (redis(), redis());
    fill(&source);
    let fettler = dying("prove.sandbox_filled");
    let killed = fettler.run(&["copy-data", &source.url(), &target.url()]);
    assert_eq!(killed.code, -1, "{killed:#?}");
    ask(&target, &["SET", "k17", "changed"]);
    let job = taken_up(&fettler, &source.url(), &["prove.sandbox_filled"]);
    assert_eq!(job["result"]["equal"], false, "{job:#}");
    let mismatches = job["result"]["mismatches"].to_string();
    assert!(mismatches.contains("db0"), "{mismatches}");
    assert_eq!(ask(&target, &["GET", "k17"]), "changed");
    assert_eq!(ask(&target, &["GET", "k18"]), "18".repeat(20));
}

#[rstest]
fn p3_a_copy_that_was_killed_while_it_filled_the_target_goes_on_also_without_its_pipe(
    #[values(true, false)] keeps_its_pipe: bool,
) {
    let (source, target) = (redis(), redis());
    fill(&source);
    let fettler = dying("checkpoint.saved:3");
    let killed = fettler.run(&["copy-data", &source.url(), &target.url()]);
    assert_eq!(killed.code, -1, "{killed:#?}");
    assert!(ask(&target, &["DBSIZE"]) != "0", "it was killed too early");
    if !keeps_its_pipe {
        // As on another machine.
        let scratch = fettler.folder().join("scratch");
        let pipe = std::fs::read_dir(scratch)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| {
                path.file_name()
                    .unwrap()
                    .to_string_lossy()
                    .starts_with("copy-")
            })
            .unwrap();
        std::fs::remove_dir_all(pipe).unwrap();
        ask(&source, &["SET", "late", "x"]);
    }
    let job = taken_up(&fettler, &source.url(), &["checkpoint.saved"]);
    assert_eq!(job["result"]["equal"], true, "{job:#}");
    let is_read_again = ask(&target, &["EXISTS", "late"]) == "1";
    assert_eq!(is_read_again, !keeps_its_pipe, "{job:#}");
    let log = job["log"].to_string();
    assert_eq!(log.contains("read again"), !keeps_its_pipe, "{log}");
}

#[test]
fn p3_a_file_that_was_killed_twice_goes_on() {
    let fettler = dying("backup.pack_stored,restore.data_done");
    let (from, to) = (fettler.path("a.sqlite"), fettler.path("b.sqlite"));
    sqlite::make_bank(&from, 40 << 20);
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    let killed = fettler.run(&["copy-data", from, to]);
    assert_eq!(killed.code, -1, "{killed:#?}");
    let points = ["backup.pack_stored", "restore.data_done"];
    let job = taken_up(&fettler, from, &points);
    assert_eq!(job["result"]["equal"], true, "{job:#}");
    assert_eq!(job["attempts"], 3, "{job:#}");
}

#[test]
fn a_mongodb_server_is_copied() {
    let start = || MongodbServer::start(MongodbKind::WithOplog).unwrap();
    let (source, target) = (start(), start());
    let mut writer = MongodbClient::new(source.port());
    let orders: Vec<Document> = (0..2000)
        .map(|n| doc! { "_id": n, "total": n * 7 })
        .collect();
    writer.insert("shop", "orders", orders);
    writer.insert(
        "shop",
        "sessions",
        vec![doc! { "_id": 1, "at": bson::DateTime::now() }],
    );
    writer.run("shop", doc! { "createIndexes": "sessions", "indexes": [{ "key": { "at": 1 }, "name": "at", "expireAfterSeconds": 86_400 }] });
    let fettler = Installation::new();
    let mut reader = MongodbClient::new(target.port());
    copy(&fettler, &source.url(), &target.url(), || {
        MongodbClient::new(target.port()).count("shop", "orders") == 2000
    });
    assert_eq!(writer.all("shop", "orders"), reader.all("shop", "orders"));
    // The expiry that stood still is the source's again.
    let indexes = reader.list("shop", doc! { "listIndexes": "sessions" });
    let expiry: Vec<f64> = indexes
        .iter()
        .filter_map(|index| index.get("expireAfterSeconds"))
        .map(|seconds| seconds.to_string().parse().unwrap())
        .collect();
    assert_eq!(expiry, [86_400.0], "{indexes:?}");
}

#[test]
fn a_clickhouse_server_is_copied_and_merges_begin_only_after_the_comparison() {
    let start = || ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    let (source, target) = (start(), start());
    for statement in [
        "CREATE DATABASE shop",
        "CREATE TABLE shop.events (id UInt64, v String) ENGINE = ReplacingMergeTree ORDER BY id",
        "SYSTEM STOP MERGES shop.events",
        "INSERT INTO shop.events SELECT number, toString(number) FROM numbers(2000)",
        "INSERT INTO shop.events SELECT number, 'again' FROM numbers(2000)",
    ] {
        source.query(statement).unwrap();
    }
    let fettler = Installation::new();
    copy(&fettler, &source.url(), &target.url(), || {
        target
            .query("SELECT count() FROM system.tables WHERE database = 'shop'")
            .unwrap()
            .trim()
            == "1"
    });
    target.query("OPTIMIZE TABLE shop.events FINAL").unwrap();
    let count = target.query("SELECT count() FROM shop.events").unwrap();
    assert_eq!(count.trim(), "2000");
}

#[test]
fn an_index_is_copied_under_another_name() {
    let server = SearchServer::shared(SearchKind::Elasticsearch);
    let send = |method: &str, path: &str, body: &str| {
        let (status, answer) = server.request(method, path, body).unwrap();
        assert!(status < 300, "{method} {path}: {answer}");
    };
    send(
        "PUT",
        "/copies",
        r#"{"settings":{"number_of_shards":2,"number_of_replicas":0}}"#,
    );
    let lines: String = (0..1500)
        .map(|at| format!("{{\"index\":{{\"_id\":\"d{at}\"}}}}\n{{\"at\":{at}}}\n"))
        .collect();
    send("POST", "/copies/_bulk?refresh=true", &lines);
    let fettler = Installation::new();
    let to = format!("{}?prefix=copied-", server.url());
    let copied = fettler.json(&["copy-data", &server.url(), &to, "--only", "copies"]);
    assert_eq!(copied["equal"], true, "{copied:#}");
    assert!(
        copied["fingerprints_compared"].as_u64().unwrap() >= 2,
        "{copied:#}"
    );
    let (_, count) = server.request("GET", "/copied-copies/_count", "").unwrap();
    assert!(count.contains("\"count\":1500"), "{count}");
    let onto_itself = fettler.run(&["copy-data", &server.url(), &server.url()]);
    assert!(
        onto_itself.stderr.contains("source itself"),
        "{onto_itself:#?}"
    );
    nothing_is_left(&fettler);
}
