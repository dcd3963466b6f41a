//! P7: `fettler cleanup` through the binary on what is no PostgreSQL: files of SQLite, keys of Redis, documents of MongoDB, partitions and
//! detached parts of ClickHouse, indices of Elasticsearch and OpenSearch. What is old goes and nothing else; a cleanup and an undo that were killed go on; run twice they do nothing.

#![allow(clippy::unwrap_used)]

use fettler_tests::{
    Installation, Size,
    servers::{
        ClickhouseServer, ClickhouseVersion, MongodbClient, MongodbKind, MongodbServer,
        RedisOptions, RedisServer, SearchKind, SearchServer,
    },
};
use redis::{Connection, cmd};
use rstest::rstest;
use serde_json::{Value, json};

/// A Fettler that dies at this moment, once.
fn dying(point: &str) -> Installation {
    let fettler = Installation::new().with_short_leases();
    let latches = fettler.path("latches");
    std::fs::create_dir(&latches).unwrap();
    fettler
        .with("FETTLER_FAULT_POINT", point)
        .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap())
}

/// A command takes up what a killed one has left; gives the job of this kind as it ended.
fn taken_up(fettler: &Installation, database: &str, kind: &str) -> Value {
    let next = fettler.run(&["ping", database]).done();
    assert!(next.stderr.contains("taken up"), "{next:#?}");
    let jobs = fettler.json(&["jobs", "--all"]);
    let jobs = jobs["jobs"].as_array().unwrap();
    let job = jobs.iter().find(|job| job["kind"] == kind).unwrap();
    let job = fettler.json(&["jobs", "show", job["id"].as_str().unwrap()]);
    assert_eq!(job["state"], "succeeded", "{job:#} {next:#?}");
    job
}

/// What a cleanup is to do with something: where it is, the command, how many go, and all that there is.
struct Case<'a> {
    url: String,
    words: &'a [&'a str],
    old: u64,
    content: &'a dyn Fn() -> String,
}

/// Planned, done, done again, and undone twice.
fn goes_once_and_comes_back(fettler: &Installation, case: &Case<'_>) {
    let words = [&["cleanup", case.url.as_str()], case.words].concat();
    let before = (case.content)();
    let planned = fettler.json(&[words.as_slice(), &["--dry-run"]].concat());
    assert_eq!(planned["plan"]["items"][0]["rows"], case.old, "{planned:#}");
    assert_eq!((case.content)(), before, "a dry run changes nothing");

    let cleaned = fettler.json(&words);
    assert_eq!(cleaned["removed"]["removed"], case.old, "{cleaned:#}");
    assert_eq!(cleaned["archived_rows"], case.old);
    assert_eq!(cleaned["verified"], true);
    assert_ne!((case.content)(), before);
    let again = fettler.json(&words);
    assert_eq!(again["removed"]["removed"], 0, "{again:#}");
    assert!(again["archive"].is_null(), "{again:#}");
    assert_eq!(fettler.json(&["backups"])["backups"], json!([]));

    let job = cleaned["job"].as_str().unwrap();
    let undone = fettler.json(&["cleanup", "undo", job]);
    assert_eq!(undone["restored"], case.old, "{undone:#}");
    assert_eq!((case.content)(), before, "everything is back");
    let twice = fettler.json(&["cleanup", "undo", job]);
    assert_eq!(
        (&twice["restored"], &twice["there"]),
        (&json!(0), &json!(case.old)),
        "{twice:#}"
    );
}

/// Killed in the middle of the removal and of the undo.
fn goes_on(point: &str, case: &Case<'_>) {
    let fettler = dying(&format!("{point},cleanup.undoing"));
    let before = (case.content)();
    let words = [
        &["cleanup", case.url.as_str()],
        case.words,
        &["--batch-rows", "50"],
    ]
    .concat();
    let killed = fettler.run(&words);
    assert_eq!(killed.code, -1, "{killed:#?}");
    let job = taken_up(&fettler, &case.url, "cleanup");
    let removed = &job["result"]["removed"];
    let sum = removed["removed"].as_u64().unwrap() + removed["gone"].as_u64().unwrap();
    assert_eq!(sum, case.old, "{job:#}");
    assert_eq!(job["result"]["verified"], true);
    let id = job["id"].as_str().unwrap();
    let killed = fettler.run(&["cleanup", "undo", id]);
    assert_eq!(killed.code, -1, "{killed:#?}");
    let undone = taken_up(&fettler, &case.url, "cleanup-undo");
    let undone = &undone["result"];
    let sum = undone["restored"].as_u64().unwrap() + undone["there"].as_u64().unwrap();
    assert_eq!(sum, case.old, "{undone:#}");
    assert_eq!((case.content)(), before);
}

fn file(fettler: &Installation) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(fettler.path("events.sqlite")).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE events (id INTEGER PRIMARY KEY, at TEXT, what);
             WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 900)
             INSERT INTO events SELECT i, datetime('now', '-' || CASE i % 3 WHEN 0 THEN 10 ELSE 100 END || ' days'), randomblob(i % 50) FROM n;",
        )
        .unwrap();
    connection
}

const ROWS: [&str; 6] = ["--rows", "events", "--column", "at", "--older-than", "90d"];
const CONTENT: &str = "SELECT count(*) || group_concat(id || at || quote(what)) FROM (SELECT * FROM events ORDER BY id)";

#[rstest]
#[case(Size::Embedded)]
#[case(Size::Fleet)]
fn p7_rows_of_sqlite_go_once_and_come_back(#[case] size: Size) {
    let fettler = Installation::of_size(size);
    let connection = file(&fettler);
    let url = format!("sqlite:{}", fettler.path("events.sqlite").display());
    let content = || connection.query_row(CONTENT, [], |row| row.get(0)).unwrap();
    goes_once_and_comes_back(
        &fettler,
        &Case {
            url: url.clone(),
            words: &ROWS,
            old: 600,
            content: &content,
        },
    );
    connection
        .execute_batch("DELETE FROM events WHERE id > 20")
        .unwrap();
    let before: String = content();
    for action in ["--vacuum", "--checkpoint"] {
        let done = fettler.json(&["cleanup", &url, action]);
        assert!(done["removed"]["removed"].as_u64().unwrap() > 0, "{done:#}");
        let again = fettler.json(&["cleanup", &url, action]);
        assert_eq!(again["plan"]["items"], json!([]), "{again:#}");
    }
    assert_eq!(content(), before);
    let refused = fettler.run(&["cleanup", &url, "--temporary-tables"]);
    assert_eq!(refused.code, 1, "{refused:#?}");
    assert!(refused.stderr.contains("--checkpoint"), "{refused:#?}");
}

#[rstest]
#[case("cleanup.archived")]
#[case("cleanup.removing:2")]
#[case("cleanup.removed")]
fn p7_a_cleanup_of_sqlite_that_was_killed_goes_on(#[case] point: &str) {
    let place = Installation::new();
    let connection = file(&place);
    goes_on(
        point,
        &Case {
            url: format!("sqlite:{}", place.path("events.sqlite").display()),
            words: &ROWS,
            old: 600,
            content: &|| connection.query_row(CONTENT, [], |row| row.get(0)).unwrap(),
        },
    );
}

fn keys() -> (RedisServer, Connection) {
    let server = RedisServer::start(
        RedisOptions::new()
            .setting("repl-diskless-sync-delay", "0")
            .setting("enable-debug-command", "local"),
    )
    .unwrap();
    let mut client = redis::Client::open(server.url())
        .unwrap()
        .get_connection()
        .unwrap();
    for number in 0..300 {
        let key = format!(
            "{}:{number}",
            if number % 3 == 0 { "kept" } else { "session" }
        );
        cmd("HSET")
            .arg(&key)
            .arg("number")
            .arg(number)
            .exec(&mut client)
            .unwrap();
        let payload: Vec<u8> = cmd("DUMP").arg(&key).query(&mut client).unwrap();
        cmd("RESTORE")
            .arg(&key)
            .arg(0)
            .arg(payload)
            .arg("REPLACE")
            .arg("IDLETIME")
            .arg(100_000)
            .exec(&mut client)
            .unwrap();
    }
    (server, client)
}

const KEYS: [&str; 4] = ["--keys", "session:*", "--idle-for", "1d"];

#[test]
fn p7_idle_keys_of_redis_go_once_and_come_back() {
    let (server, client) = keys();
    let client = std::cell::RefCell::new(client);
    let content = || -> String {
        cmd("DEBUG")
            .arg("DIGEST")
            .query(&mut *client.borrow_mut())
            .unwrap()
    };
    goes_once_and_comes_back(
        &Installation::new(),
        &Case {
            url: server.url(),
            words: &KEYS,
            old: 200,
            content: &content,
        },
    );
}

#[test]
fn p7_a_cleanup_of_redis_that_was_killed_goes_on() {
    let (server, client) = keys();
    let client = std::cell::RefCell::new(client);
    let content = || -> String {
        cmd("DEBUG")
            .arg("DIGEST")
            .query(&mut *client.borrow_mut())
            .unwrap()
    };
    goes_on(
        "cleanup.removing:2",
        &Case {
            url: server.url(),
            words: &KEYS,
            old: 200,
            content: &content,
        },
    );
}

fn documents() -> MongodbServer {
    let server = MongodbServer::start(MongodbKind::WithOplog).unwrap();
    let now = jiff::Timestamp::now().as_millisecond();
    let documents = (0..300_i64).map(|number| {
        let days = if number % 3 == 0 { 10 } else { 100 };
        bson::doc! { "_id": number, "at": bson::DateTime::from_millis(now - days * 86_400_000), "text": "x".repeat(50) }
    });
    MongodbClient::new(server.port()).insert("shop", "events", documents);
    server
}

const DOCUMENTS: [&str; 6] = [
    "--documents",
    "shop.events",
    "--field",
    "at",
    "--older-than",
    "90d",
];

#[test]
fn p7_documents_of_mongodb_go_once_and_come_back() {
    let server = documents();
    let content = || {
        format!(
            "{:?}",
            MongodbClient::new(server.port()).all("shop", "events")
        )
    };
    goes_once_and_comes_back(
        &Installation::new(),
        &Case {
            url: server.url(),
            words: &DOCUMENTS,
            old: 200,
            content: &content,
        },
    );
}

#[test]
fn p7_a_cleanup_of_mongodb_that_was_killed_goes_on() {
    let server = documents();
    let content = || {
        format!(
            "{:?}",
            MongodbClient::new(server.port()).all("shop", "events")
        )
    };
    goes_on(
        "cleanup.removing:2",
        &Case {
            url: server.url(),
            words: &DOCUMENTS,
            old: 200,
            content: &content,
        },
    );
}

/// What goes as a whole: where it is, the command, how many things with how many rows, and all that there is.
struct Wholes<'a> {
    url: String,
    words: &'a [&'a str],
    things: u64,
    rows: u64,
    content: &'a dyn Fn() -> String,
}

/// Planned, done, done again, and undone twice.
fn go_once_and_come_back(case: &Wholes<'_>) {
    let fettler = Installation::new();
    let words = [&["cleanup", case.url.as_str()], case.words].concat();
    let before = (case.content)();
    let planned = fettler.json(&[words.as_slice(), &["--dry-run"]].concat());
    let items = planned["plan"]["items"].as_array().unwrap();
    assert_eq!(items.len() as u64, case.things, "{planned:#}");
    assert_eq!((case.content)(), before, "a dry run changes nothing");
    let cleaned = fettler.json(&words);
    assert_eq!(cleaned["removed"]["removed"], case.things, "{cleaned:#}");
    assert_eq!(cleaned["archived_rows"], case.rows);
    assert_eq!(cleaned["verified"], true);
    assert_ne!((case.content)(), before);
    let again = fettler.json(&words);
    assert_eq!(again["removed"]["removed"], 0, "{again:#}");
    assert!(again["archive"].is_null(), "{again:#}");
    assert_eq!(fettler.json(&["backups"])["backups"], json!([]));
    let job = cleaned["job"].as_str().unwrap();
    let dry = fettler.json(&["cleanup", "undo", job, "--dry-run"]);
    assert_eq!(dry["restored"], case.rows, "{dry:#}");
    assert_ne!((case.content)(), before);
    let undone = fettler.json(&["cleanup", "undo", job]);
    assert_eq!(undone["restored"], case.rows, "{undone:#}");
    assert_eq!((case.content)(), before, "everything is back");
    let twice = fettler.json(&["cleanup", "undo", job]);
    assert_eq!(
        (&twice["restored"], &twice["there"]),
        (&json!(0), &json!(case.rows)),
        "{twice:#}"
    );
}

/// Killed in the middle of the removal and of the undo.
fn go_on(point: &str, case: &Wholes<'_>) {
    let fettler = dying(&format!("{point},cleanup.undoing"));
    let before = (case.content)();
    let words = [&["cleanup", case.url.as_str()], case.words].concat();
    let killed = fettler.run(&words);
    assert_eq!(killed.code, -1, "{killed:#?}");
    let job = taken_up(&fettler, &case.url, "cleanup");
    let removed = &job["result"]["removed"];
    let sum = removed["removed"].as_u64().unwrap() + removed["gone"].as_u64().unwrap();
    assert_eq!(sum, case.things, "{job:#}");
    assert_eq!(job["result"]["verified"], true);
    let id = job["id"].as_str().unwrap();
    let killed = fettler.run(&["cleanup", "undo", id]);
    assert_eq!(killed.code, -1, "{killed:#?}");
    let undone = taken_up(&fettler, &case.url, "cleanup-undo");
    let undone = &undone["result"];
    let sum = undone["restored"].as_u64().unwrap() + undone["there"].as_u64().unwrap();
    assert_eq!(sum, case.rows, "{undone:#}");
    assert_eq!((case.content)(), before);
}

/// Three old partitions of 100 rows, and a young one.
fn partitions() -> ClickhouseServer {
    let server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    for statement in [
        "CREATE DATABASE shop",
        "CREATE TABLE shop.events (at DateTime, part UInt8, id UInt64, note String) ENGINE = MergeTree PARTITION BY part ORDER BY id",
        "INSERT INTO shop.events SELECT now() - if(number % 4 = 3, 10, 100) * 86400, number % 4, number, toString(number) FROM numbers(400)",
    ] {
        server.query(statement).unwrap();
    }
    server
}

const EVENTS: &str = "SELECT count(), groupBitXor(sipHash64(*)), (SELECT count() FROM system.tables WHERE name LIKE 'fettler%') FROM shop.events";

fn of_partitions<'a>(
    server: &ClickhouseServer,
    words: &'a [&'a str],
    content: &'a dyn Fn() -> String,
) -> Wholes<'a> {
    Wholes {
        url: server.url(),
        words,
        things: 3,
        rows: 300,
        content,
    }
}

const PARTITIONS: [&str; 6] = [
    "--partitions",
    "shop.events",
    "--column",
    "at",
    "--older-than",
    "90d",
];

#[test]
fn p7_partitions_of_clickhouse_go_once_and_come_back() {
    let server = partitions();
    let content = || server.query(EVENTS).unwrap();
    go_once_and_come_back(&of_partitions(&server, &PARTITIONS, &content));
}

#[rstest]
#[case("cleanup.archived")]
#[case("cleanup.detached")]
#[case("cleanup.removing:2")]
fn p7_a_cleanup_of_clickhouse_that_was_killed_goes_on(#[case] point: &str) {
    let server = partitions();
    let content = || server.query(EVENTS).unwrap();
    go_on(point, &of_partitions(&server, &PARTITIONS, &content));
}

#[test]
fn p7_detached_parts_of_clickhouse_go_and_those_of_a_person_only_when_told() {
    let server = partitions();
    server
        .query("ALTER TABLE shop.events DETACH PARTITION 1")
        .unwrap();
    let parts = "SELECT path FROM system.detached_parts";
    let folder = server.query(parts).unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(40 * 86_400);
    let opened = std::fs::File::open(folder.trim()).unwrap();
    opened.set_modified(long_ago).unwrap();
    let fettler = Installation::new();
    let url = server.url();
    let words = ["cleanup", &url, "--detached-parts", "--older-than", "30d"];
    let none = fettler.json(&words);
    assert_eq!(none["plan"]["items"], json!([]), "{none:#}");
    assert_eq!(server.query(parts).unwrap(), folder);
    let taken = fettler.json(&[words.as_slice(), &["--by-hand"]].concat());
    assert_eq!(taken["removed"]["removed"], 1, "{taken:#}");
    assert_eq!(taken["plan"]["can_be_undone"], false);
    assert_eq!(server.query(parts).unwrap(), "");
}

/// Three old indices of 50 documents, and a young one.
fn indices(kind: SearchKind) -> SearchServer {
    let server = SearchServer::start(kind, &[]).unwrap();
    let now = jiff::Timestamp::now().as_millisecond();
    for number in 0..4_i64 {
        let days = if number == 3 { 10 } else { 100 };
        let index = format!("/logs-{number}");
        let made = json!({
            "settings": {"number_of_replicas": 0},
            "mappings": {"properties": {"@timestamp": {"type": "date"}}},
            "aliases": {"logs": {}},
        });
        let (status, answer) = server.request("PUT", &index, &made.to_string()).unwrap();
        assert_eq!(status, 200, "{answer}");
        let lines: String = (0..50)
            .map(|id| {
                let at = now - days * 86_400_000;
                format!("{{\"index\":{{\"_id\":\"{id}\"}}}}\n{{\"@timestamp\":{at},\"n\":{id}}}\n")
            })
            .collect();
        let (status, answer) = server
            .request("POST", &format!("{index}/_bulk?refresh=true"), &lines)
            .unwrap();
        assert_eq!(status, 200, "{answer}");
    }
    server
}

/// All documents and aliases.
fn documents_of(server: &SearchServer) -> String {
    let ask = |path: &str| -> Value {
        let (status, answer) = server.request("GET", path, "").unwrap();
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    };
    let mut hits: Vec<String> = ask("/logs-*/_search?size=1000&version=true")["hits"]["hits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hit| json!([hit["_index"], hit["_id"], hit["_version"], hit["_source"]]).to_string())
        .collect();
    hits.sort_unstable();
    format!("{hits:?} {}", ask("/logs-*/_alias"))
}

const INDICES: [&str; 4] = ["--indices", "logs-*", "--older-than", "90d"];

#[rstest]
#[case(SearchKind::Elasticsearch)]
#[case(SearchKind::OpenSearch)]
fn p7_indices_go_once_and_come_back(#[case] kind: SearchKind) {
    let server = indices(kind);
    go_once_and_come_back(&Wholes {
        url: server.url(),
        words: &INDICES,
        things: 3,
        rows: 150,
        content: &|| documents_of(&server),
    });
}

#[rstest]
#[case("cleanup.archived")]
#[case("cleanup.detached")]
#[case("cleanup.removing:2")]
fn p7_a_cleanup_of_indices_that_was_killed_goes_on(#[case] point: &str) {
    let server = indices(SearchKind::Elasticsearch);
    let case = Wholes {
        url: server.url(),
        words: &INDICES,
        things: 3,
        rows: 150,
        content: &|| documents_of(&server),
    };
    go_on(point, &case);
}
