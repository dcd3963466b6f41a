//! A table of a backup as CSV, SQL and NDJSON. The truth is the source, read by SQLite.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod common;

use common::Place;
use fettler_engine::{
    BackupReport, DatabaseEngine as _, EngineError, ExtractFormat, Extraction, testing::MemorySink,
};
use fettler_engine_sqlite::SqliteEngine;
use rusqlite::{Connection, types::Value};

const MADE: &str = "
    CREATE TABLE orders (id INTEGER PRIMARY KEY, note TEXT, total REAL, raw BLOB, anything, twice INT GENERATED ALWAYS AS (id * 2) STORED, thrice INT AS (id * 3));
    CREATE INDEX by_note ON orders (note);
    CREATE TABLE log (n INT); CREATE TRIGGER noted AFTER INSERT ON orders BEGIN INSERT INTO log VALUES (new.id); END;
    CREATE TABLE \"odd \"\"name\"\", x\" (\"a,b\" TEXT);
    CREATE TABLE without_row_number (k TEXT PRIMARY KEY, v) WITHOUT ROWID;
    CREATE TABLE empty (a, b);
    INSERT INTO orders (id, note, total, raw, anything) VALUES
        (1, NULL, 0.1, X'00FF', 9007199254740993), (2, '', -0.0, X'', 'text'), (3, 'a,\"b\"' || char(10) || 'c''d', 9e999, NULL, 1.0),
        (-9223372036854775808, 'x' || char(0) || 'y', 5e-324, X'27', CAST(X'FF' AS TEXT)), (4, 'é', 1e300, NULL, X'61');
    INSERT INTO \"odd \"\"name\"\", x\" VALUES ('1'), (NULL), (''), ('\\.');
    INSERT INTO without_row_number VALUES ('b', 1), ('a', 2);";

async fn extract(
    place: &Place,
    sink: &MemorySink,
    report: &BackupReport,
    part: &str,
    format: ExtractFormat,
) -> Result<(String, u64), EngineError> {
    let mut out = Vec::new();
    let what = Extraction {
        part: part.to_owned(),
        format,
    };
    let written = SqliteEngine
        .extract(&place.attempt(5), &sink.source(), report, &what, &mut out)
        .await?;
    assert_eq!(written.bytes, out.len() as u64);
    // Invalid text stands as it is in CSV alone.
    Ok((String::from_utf8_lossy(&out).into_owned(), written.rows))
}

fn rows(connection: &Connection, table: &str) -> Vec<Vec<String>> {
    let mut statement = connection
        .prepare(&format!("SELECT * FROM {table} ORDER BY 1"))
        .unwrap();
    let columns = statement.column_count();
    statement
        .query_map([], |row| {
            (0..columns)
                .map(|at| {
                    let text: rusqlite::types::ValueRef<'_> = row.get_ref(at)?;
                    Ok(format!("{text:?}"))
                })
                .collect()
        })
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_makes_the_same_table_again_and_csv_and_lines_say_what_is_in_it() {
    let place = Place::new();
    let source = place.open("shop.sqlite");
    source.execute_batch(MADE).unwrap();
    let (report, sink) = place.backup("shop.sqlite").await.unwrap();
    for (part, table) in [
        ("orders", "orders"),
        ("main.Without_*", "without_row_number"),
        ("empty", "empty"),
        ("odd \"name\", x", "\"odd \"\"name\"\", x\""),
    ] {
        let (sql, count) = extract(&place, &sink, &report, part, ExtractFormat::Sql)
            .await
            .unwrap();
        let copy = Connection::open_in_memory().unwrap();
        if part == "orders" {
            copy.execute_batch("CREATE TABLE log (n INT)").unwrap();
        }
        copy.execute_batch(&sql).unwrap();
        assert_eq!(rows(&source, table), rows(&copy, table), "{part}");
        assert_eq!(count, rows(&copy, table).len() as u64);
        if part == "orders" {
            // Its index and its trigger are there, and the trigger was not when the rows came.
            let made: Vec<String> = copy
                .prepare("SELECT name FROM sqlite_schema ORDER BY name")
                .unwrap()
                .query_map([], |row| row.get(0))
                .unwrap()
                .collect::<rusqlite::Result<_>>()
                .unwrap();
            assert_eq!(made, ["by_note", "log", "noted", "orders"]);
            assert!(rows(&copy, "log").is_empty());
        }
    }
    let (csv, _) = extract(
        &place,
        &sink,
        &report,
        "odd \"name\", x",
        ExtractFormat::Csv,
    )
    .await
    .unwrap();
    assert_eq!(csv, "\"a,b\"\n1\n\n\"\"\n\"\\.\"\n");
    let (csv, _) = extract(&place, &sink, &report, "orders", ExtractFormat::Csv)
        .await
        .unwrap();
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("id,note,total,raw,anything,twice"));
    assert!(
        csv.contains("\n1,,0.1,X'00FF',9007199254740993,2\n2,\"\",0.0,X'',text,4\n"),
        "{csv}"
    );
    let (lines, count) = extract(&place, &sink, &report, "orders", ExtractFormat::Ndjson)
        .await
        .unwrap();
    assert_eq!(count, 5);
    let found: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let first = found.iter().find(|line| line["id"] == 1).unwrap();
    assert_eq!(
        first.to_string(),
        r#"{"id":1,"note":null,"total":0.1,"raw":{"base64":"AP8="},"anything":9007199254740993,"twice":2}"#
    );
    let third = found.iter().find(|line| line["id"] == 3).unwrap();
    assert_eq!(third["total"], "Infinity");
    assert_eq!(third["note"], "a,\"b\"\nc'd");
    // Nothing stays behind.
    assert_eq!(place.files(), ["scratch", "shop.sqlite"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_rows_go_through_and_what_is_not_there_is_refused() {
    let place = Place::new();
    let source = place.open("many.sqlite");
    source
        .execute_batch(
            "CREATE TABLE many (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE man (x);
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) INSERT INTO many SELECT i, 'value ' || i FROM n;",
        )
        .unwrap();
    let (report, sink) = place.backup("many.sqlite").await.unwrap();
    let (csv, count) = extract(&place, &sink, &report, "many", ExtractFormat::Csv)
        .await
        .unwrap();
    assert_eq!(count, 50_000);
    let sum: Value = source
        .query_row(
            "SELECT sum(length(id || ',' || v) + 1) + 5 FROM many",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(Value::Integer(csv.len() as i64), sum);
    assert!(csv.ends_with("50000,value 50000\n"));
    for (part, format, told) in [
        ("manny", ExtractFormat::Csv, "many"),
        ("m*", ExtractFormat::Csv, "name one of them"),
        ("many", ExtractFormat::Native, "csv or sql or ndjson"),
    ] {
        let failed = extract(&place, &sink, &report, part, format).await;
        let Err(EngineError::Missing { what, remedy, .. }) = &failed else {
            panic!("{part}: {failed:?}");
        };
        assert!(remedy.contains(told), "{part}: {what}: {remedy}");
    }
}
