//! `fettler tune URL` through the binary, with no configuration, for the engines beside PostgreSQL: what is found, done, not done
//! a second time, and taken back.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use fettler_tests::{
    Installation, Running, Size,
    servers::{
        ClickhouseServer, ClickhouseVersion, MongodbKind, MongodbServer, RedisOptions, RedisServer,
        SearchKind, SearchServer, wait_until,
    },
};
use rstest::rstest;
use rusqlite::Connection;
use serde_json::Value;

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// The objects of a check's open findings.
fn found<'a>(look: &'a Value, check: &str) -> Vec<&'a str> {
    look["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["status"]["state"] == "open" && text(one, "check").ends_with(check))
        .map(|one| text(one, "object"))
        .collect()
}

fn states(done: &Value) -> Vec<&str> {
    done["done"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| text(one, "state"))
        .collect()
}

/// Where attempts are killed, one after the other.
const PLACES: [&str; 2] = ["tune.written", "tune.made"];
const PATIENCE: Duration = Duration::from_secs(180);

/// Makes a database that has one index too few, one too many and no statistics; gives its path.
fn make_shop(fettler: &Installation) -> PathBuf {
    let path = fettler.path("shop.sqlite");
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, made TEXT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
             INSERT INTO orders SELECT i, (i * 7919) % 5000, date('2024-01-01', '+' || (i % 700) || ' days') FROM n;
             CREATE INDEX made ON orders (made); CREATE INDEX made_again ON orders (made);",
        )
        .unwrap();
    path
}

/// What the shop asks; gives the path of the file that says it.
fn make_statements(fettler: &Installation) -> PathBuf {
    let file = fettler.path("statements.sql");
    std::fs::write(
        &file,
        "-- what the shop asks\nSELECT * FROM orders WHERE customer = 77;\nSELECT id FROM orders WHERE made = '2024-03-01';\n",
    )
    .unwrap();
    file
}

/// The names of a database's indexes.
fn indexes(path: &Path) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let mut asked = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'index' ORDER BY name")
        .unwrap();
    asked
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

/// Asserts that an index was made for what is asked and one of two was dropped.
fn assert_tuned(path: &Path) {
    let after = indexes(path);
    assert!(
        after.len() == 2
            && after[0].starts_with("fettler_orders_customer")
            && after[1] == "made_again",
        "{after:?}"
    );
}

/// Applies by one attempt after the other, each killed at one of [`PLACES`], until the job ends. Gives the job.
fn applied_under_kills(fettler: Installation, words: &[&str]) -> (Installation, Running, Value) {
    let latches = fettler.path("latches");
    std::fs::create_dir(&latches).unwrap();
    let fettler = fettler
        .with_short_leases()
        .with("FETTLER_FAULT_POINT", PLACES.join(","))
        .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap());
    let mut up = fettler.start_worker();
    let submitted = fettler.json(&[words, &["--apply", "--detach"]].concat());
    let mut job = Value::Null;
    wait_until("the job ends", PATIENCE, || {
        if !up.runs() {
            up = fettler.start_worker();
        }
        job = fettler.json(&["jobs", "show", text(&submitted, "job")]);
        ["succeeded", "dead"].contains(&text(&job, "state"))
    })
    .unwrap_or_else(|error| panic!("{error}: {job:#} {}", up.log()));
    assert_eq!(job["state"], "succeeded", "{job:#}");
    // After the first death the job runs in a process of its own: that one dies next, not the worker.
    assert_eq!(job["attempts"], 1 + PLACES.len(), "{job:#}");
    for place in PLACES {
        assert!(latches.join(place).exists(), "nobody was killed at {place}");
    }
    // Its success is told as one, and only once.
    assert!(!up.log().contains("the job ended"), "{}", up.log());
    (fettler, up, job)
}

#[rstest]
fn p3_sqlite_is_tuned_once_wherever_its_worker_is_killed(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let fettler = Installation::of_size(size).without_workers();
    let (path, file) = (make_shop(&fettler), make_statements(&fettler));
    let tune = ["tune", path.to_str().unwrap(), "--statements"];
    let tune = [&tune[..], &[file.to_str().unwrap(), "--observe", "0"]].concat();
    let (fettler, mut up, job) = applied_under_kills(fettler, &tune);
    assert_eq!(states(&job["result"]), ["kept"; 3], "{job:#}");
    assert_tuned(&path);
    let again = fettler.json(&[&tune[..], &["--apply"]].concat());
    assert_eq!(states(&again), [""; 0], "{again:#}");
    let undone = fettler.json(&["tune", "undo", text(&job, "id")]);
    assert_eq!(states(&undone), ["undone"; 3], "{undone:#}");
    assert_eq!(indexes(&path), ["made", "made_again"]);
    assert_eq!(up.terminate(), 0, "{}", up.log());
}

#[rstest]
fn p3_redis_is_tuned_once_wherever_its_worker_is_killed(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let server = redis_to_tune();
    fill(&server);
    let settings = || {
        let mut connection = redis::Client::open(server.url())
            .unwrap()
            .get_connection()
            .unwrap();
        redis::cmd("CONFIG")
            .arg("GET")
            .arg("*")
            .query::<BTreeMap<String, String>>(&mut connection)
            .unwrap()
    };
    let before = settings();
    let fettler = Installation::of_size(size).without_workers();
    let (fettler, mut up, job) = applied_under_kills(fettler, &["tune", &server.url()]);
    assert_eq!(states(&job["result"]), ["kept", "kept"], "{job:#}");
    let changed = settings();
    let count = changed
        .iter()
        .filter(|(name, value)| before[*name] != **value)
        .count();
    assert_eq!(count, 2, "{before:#?} {changed:#?}");
    let again = fettler.json(&["tune", &server.url(), "--apply"]);
    assert_eq!(states(&again), [""; 0], "{again:#}");
    let undone = fettler.json(&["tune", "undo", text(&job, "id")]);
    assert_eq!(states(&undone), ["undone", "undone"], "{undone:#}");
    assert_eq!(settings(), before);
    assert_eq!(up.terminate(), 0, "{}", up.log());
}

#[test]
fn sqlite_is_tuned_by_statements_and_taken_back() {
    let fettler = Installation::new();
    let (database, file) = (make_shop(&fettler), make_statements(&fettler));
    let (path, file) = (database.to_str().unwrap(), file.to_str().unwrap());
    let look = fettler.json(&["tune", path, "--statements", file]);
    assert_eq!(look["judged_by"], "copy", "{look:#}");
    assert_eq!(look["statements"], 2);
    assert!(
        found(&look, "tune_index_missing")[0].starts_with("orders (customer"),
        "{look:#}"
    );
    assert_eq!(found(&look, "tune_index_redundant"), ["made"]);
    assert_eq!(found(&look, "tune_statistics"), [""]);
    assert_eq!(
        indexes(&database),
        ["made", "made_again"],
        "a look changes nothing"
    );

    let done = fettler.json(&[
        "tune",
        path,
        "--statements",
        file,
        "--apply",
        "--observe",
        "0",
    ]);
    assert_eq!(states(&done), ["kept"; 3], "{done:#}");
    assert_tuned(&database);
    let again = fettler.json(&[
        "tune",
        path,
        "--statements",
        file,
        "--apply",
        "--observe",
        "0",
    ]);
    assert_eq!(states(&again), [""; 0], "{again:#}");
    assert_eq!(again["findings"].as_array().unwrap().len(), 0, "{again:#}");
    let undone = fettler.json(&["tune", "undo", text(&done, "job")]);
    assert_eq!(states(&undone), ["undone"; 3], "{undone:#}");
    assert_eq!(indexes(&database), ["made", "made_again"]);

    for (arguments, part) in [
        (["--statements", "/nowhere/s.sql"], "/nowhere/s.sql"),
        (["--statements", "/dev/null"], "no statement"),
    ] {
        let answer = fettler.run(&[&["tune", path][..], &arguments[..]].concat());
        assert_ne!(answer.code, 0);
        assert!(answer.stderr.contains(part), "{answer:#?}");
    }
}

#[test]
fn redis_is_tuned_and_taken_back() {
    let server = redis_to_tune();
    let fettler = Installation::new();
    let look = fettler.json(&["tune", &server.url(), "--apply"]);
    assert_eq!(look["findings"].as_array().unwrap().len(), 0, "{look:#}");
    fill(&server);
    let done = fettler.json(&["tune", &server.url(), "--apply"]);
    assert_eq!(found(&done, "tune_large_keys"), [""], "{done:#}");
    assert_eq!(states(&done), ["kept", "kept"], "{done:#}");
    let undone = fettler.json(&["tune", "undo", text(&done, "job")]);
    assert_eq!(states(&undone), ["undone", "undone"], "{undone:#}");
    let last = fettler.json(&["tune", &server.url(), "--apply"]);
    assert_eq!(
        states(&last),
        [""; 0],
        "what somebody has undone is not done again: {last:#}"
    );
}

/// A server of which two settings do not fit what [`fill`] puts into it.
fn redis_to_tune() -> RedisServer {
    RedisServer::start(
        RedisOptions::new()
            .setting("maxmemory", "1gb")
            .setting("maxmemory-policy", "volatile-lru"),
    )
    .unwrap()
}

/// One key that is large.
fn fill(server: &RedisServer) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let value = vec![b'x'; 12 << 20];
    let head = format!("*3\r\n$3\r\nSET\r\n$8\r\nexport:1\r\n${}\r\n", value.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&value).unwrap();
    stream.write_all(b"\r\n").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+OK\r\n");
}

#[test]
fn mongodb_elasticsearch_and_clickhouse_are_looked_at() {
    let fettler = Installation::new();
    let server = MongodbServer::start(MongodbKind::WithOplog).unwrap();
    let look = fettler.json(&["tune", &server.url(), "--apply"]);
    assert_eq!(found(&look, "").len(), 0, "{look:#}");
    assert_eq!(look["engine"], "mongodb");

    let server = SearchServer::start(SearchKind::Elasticsearch, &[]).unwrap();
    let settings = r#"{"settings": {"number_of_replicas": 0, "refresh_interval": "-1"}}"#;
    assert_eq!(server.request("PUT", "/loaded", settings).unwrap().0, 200);
    server
        .request("POST", "/loaded/_doc?refresh=true", r#"{"a": 1}"#)
        .unwrap();
    let look = fettler.json(&["tune", &server.url(), "--apply"]);
    assert_eq!(found(&look, "tune_refresh"), ["loaded"], "{look:#}");
    assert_eq!(states(&look), [""; 0], "none of it is safe: {look:#}");
    let words = fettler.run(&["tune", &server.url()]).done().stdout;
    assert!(
        words.contains("loaded is never refreshed") && words.contains("by hand"),
        "{words}"
    );

    let server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    server
        .query("CREATE TABLE events (id UInt64, who UInt32) ENGINE = MergeTree ORDER BY id")
        .unwrap();
    server
        .query("INSERT INTO events SELECT cityHash64(number), cityHash64(number, 1) FROM numbers(400000)")
        .unwrap();
    let file = fettler.path("statements.sql");
    std::fs::write(
        &file,
        "SELECT count() FROM events WHERE who = 7; SELECT * FROM events WHERE id = 7",
    )
    .unwrap();
    let look = fettler.json(&[
        "tune",
        &server.url(),
        "--statements",
        file.to_str().unwrap(),
    ]);
    assert_eq!(found(&look, "tune_sorting_key").len(), 1, "{look:#}");
    assert_eq!(look["statements"], 2);
}
