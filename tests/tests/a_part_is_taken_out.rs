//! What is inside a backup is listed here and by another Fettler, and a part of it is written in an open format. How each
//! engine writes each type is the matter of the engines' own suites.

#![allow(clippy::unwrap_used)]

use fettler_tests::{
    Installation, Size,
    servers::{PgMajor, PostgresServer, RedisOptions, RedisServer},
    sqlite,
};
use redis::cmd;
use rstest::rstest;
use serde_json::Value;

fn names(document: &Value) -> Vec<&str> {
    document["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| part["name"].as_str().unwrap())
        .collect()
}

#[rstest]
fn a_backup_is_browsed_alike_here_and_from_afar(#[values(Size::Embedded, Size::Fleet)] size: Size) {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("browsed").unwrap();
    source
        .psql(
            "CREATE TABLE orders (id int); INSERT INTO orders SELECT generate_series(1, 70);
             CREATE SCHEMA web; CREATE TABLE web.log (n int); CREATE TABLE web.hits (n int); INSERT INTO web.hits VALUES (1);",
        )
        .unwrap();
    let fettler =
        Installation::of_size(size).with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    let made = fettler.json(&["backup", &source.url()]);
    let all = fettler.json(&["browse", "latest"]);
    assert_eq!(all["backup"], made["backup"]);
    assert_eq!(all["engine"], "postgres");
    assert_eq!(all["formats"], serde_json::json!(["csv", "sql"]));
    let containers: Vec<(&str, u64, u64)> = all["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["name"].as_str().unwrap(),
                one["parts"].as_u64().unwrap(),
                one["rows"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(containers, [("public", 1, 70), ("web", 2, 1)]);
    assert_eq!(
        names(&fettler.json(&["browse", "latest", "web"])),
        ["web.hits", "web.log"]
    );
    assert_eq!(
        names(&fettler.json(&["browse", "latest", "*.h?ts"])),
        ["web.hits"]
    );
    let text = fettler.run(&["browse", "latest", "orders"]).done();
    assert!(text.stdout.contains("public.orders"), "{}", text.stdout);
    assert!(!text.stdout.contains("FINGERPRINT"), "{}", text.stdout);
    let text = fettler.run(&["browse", "latest", "orders", "-v"]).done();
    assert!(text.stdout.contains("FINGERPRINT"), "{}", text.stdout);
    let unknown = fettler.run(&["browse", "latest", "public.ordres"]);
    assert_eq!(unknown.code, 4, "{}", unknown.stderr);
    assert!(
        unknown.stderr.contains("public.orders"),
        "{}",
        unknown.stderr
    );
}

#[test]
fn a_table_of_postgresql_goes_to_a_file_and_into_a_pipe() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("taken").unwrap();
    source
        .psql(
            "CREATE TABLE orders (id int, note text, placed timestamptz);
             INSERT INTO orders SELECT n, CASE n % 3 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'a,\"b\"' END, 'epoch'::timestamptz + n * interval '1 hour' FROM generate_series(1, 100000) n;
             CREATE TABLE other AS SELECT generate_series(1, 500000) n;",
        )
        .unwrap();
    let fettler = Installation::new().with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    fettler.json(&["backup", &source.url()]);
    let file = fettler.path("orders.csv");
    let file = file.to_str().unwrap();
    let written = fettler.json(&["extract", "latest", "public.orders", "--output", file]);
    assert_eq!(written["rows"], 100_000, "{written:#}");
    assert_eq!(written["format"], "csv");
    let own = source
        .psql("SET TimeZone = 'UTC'; COPY orders TO STDOUT (FORMAT csv, HEADER)")
        .unwrap();
    let ours = std::fs::read_to_string(file).unwrap();
    assert!(
        ours == format!("{own}\n"),
        "the file is not what the server writes"
    );
    // The same on the standard output, and nothing else there.
    let piped = fettler.run(&["extract", "latest", "orders"]).done();
    assert!(piped.stdout == ours, "{}", piped.stderr);
    assert!(piped.stderr.contains("100,000 rows"), "{}", piped.stderr);
    // Whoever reads may have enough.
    let mut child = fettler
        .command(&["extract", "latest", "other", "--quiet"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(
        ended.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );

    // What is there stays, and a refusal leaves nothing.
    let refused = fettler.run(&["extract", "latest", "orders", "--output", file]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("--overwrite"), "{}", refused.stderr);
    let new = fettler.path("new.csv");
    let before = std::fs::read_dir(new.parent().unwrap()).unwrap().count();
    let refused = fettler.run(&[
        "extract",
        "latest",
        "order",
        "--output",
        new.to_str().unwrap(),
    ]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("public.orders"),
        "{}",
        refused.stderr
    );
    assert_eq!(
        std::fs::read_dir(new.parent().unwrap()).unwrap().count(),
        before
    );
    let refused = fettler.run(&["extract", "latest", "orders", "--format", "bson"]);
    assert!(refused.stderr.contains("csv or sql"), "{}", refused.stderr);
    let refused = fettler.run(&["extract", "latest", "orders", "--json"]);
    assert_eq!(refused.code, 2);
    fettler
        .run(&[
            "extract",
            "latest",
            "other",
            "--output",
            file,
            "--overwrite",
        ])
        .done();
    assert!(
        std::fs::read_to_string(file)
            .unwrap()
            .starts_with("n\n1\n2\n")
    );
}

#[test]
fn keys_of_redis_and_a_table_of_sqlite_are_taken_out() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let mut client = redis::Client::open(server.url())
        .unwrap()
        .get_connection()
        .unwrap();
    for user in 0..50 {
        cmd("SET")
            .arg(format!("user:{user}"))
            .arg(user)
            .exec(&mut client)
            .unwrap();
    }
    cmd("RPUSH")
        .arg("queue")
        .arg("a")
        .exec(&mut client)
        .unwrap();
    let fettler = Installation::new();
    let made = fettler.json(&["backup", &server.url()]);
    let id = made["backup"].as_str().unwrap();
    let inside = fettler.json(&["browse", id]);
    assert!(names(&inside).contains(&"db0/list"), "{inside:#}");
    let lines = fettler.run(&["extract", id, "db0/user:*"]).done().stdout;
    assert_eq!(lines.lines().count(), 50);
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["type"], "string");

    let path = fettler.path("bank.sqlite");
    sqlite::make_bank(&path, 1_000_000);
    fettler.json(&["backup", path.to_str().unwrap()]);
    let sql = fettler
        .run(&["extract", "latest", "account", "--format", "sql"])
        .done()
        .stdout;
    let copy = rusqlite::Connection::open_in_memory().unwrap();
    copy.execute_batch(&sql).unwrap();
    let count: i64 = copy
        .query_row("SELECT count(*) FROM account", [], |row| row.get(0))
        .unwrap();
    assert_eq!(count, 1000);
}
