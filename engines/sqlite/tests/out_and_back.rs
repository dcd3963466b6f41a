//! Everything that a SQLite file can hold goes out and comes back, and a proof says so.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

#[allow(dead_code)]
mod common;

use common::{Place, rows_of};
use fettler_engine::RestoreOptions;
use fettler_model::ObjectKind;

const EVERYTHING: &str = r#"
PRAGMA application_id = 252006; PRAGMA user_version = -7;
CREATE TABLE "all types" (id INTEGER PRIMARY KEY AUTOINCREMENT, "a ""quoted"" name", t TEXT, r REAL, b BLOB, n NUMERIC);
INSERT INTO "all types" VALUES
  (-9223372036854775808, NULL, '', 0.0, x'', 0),
  (9223372036854775806, 1, 'ünïcödé 日本 🐘', -0.0, zeroblob(100000), 1.5),
  (1, 1.0, 'null' || char(0) || 'inside', 9e999, x'00ff', -9e999),
  (2, 'text in a column without a type', CAST(x'fffe' AS TEXT), 1e-300, randomblob(3000000), '12x');
INSERT INTO "all types" (t) VALUES (NULL);
CREATE TABLE pairs (a TEXT, b INTEGER, c, PRIMARY KEY (b, a)) WITHOUT ROWID;
INSERT INTO pairs VALUES ('x', 1, NULL), ('y', 1, x'01'), ('x', 2, 3.5);
CREATE TABLE strict_one (i INT, a ANY, v INT AS (i * 2) VIRTUAL, s INT AS (i + 1) STORED) STRICT;
INSERT INTO strict_one (i, a) VALUES (1, 'x'), (2, 2.0), (NULL, NULL);
CREATE TABLE hides_numbers (rowid TEXT, _rowid_ TEXT, oid TEXT);
INSERT INTO hides_numbers VALUES ('1', '2', '3'), (NULL, '', 'x');
CREATE TABLE hides_one (rowid TEXT, v); INSERT INTO hides_one VALUES ('a', 1);
CREATE TABLE nothing_in_it (x);
CREATE TABLE parent (id INTEGER PRIMARY KEY); CREATE TABLE child (p REFERENCES parent);
INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1);
CREATE INDEX by_expression ON strict_one (abs(i)); CREATE UNIQUE INDEX partial ON pairs (c) WHERE c IS NOT NULL;
CREATE VIEW seen AS SELECT i, v FROM strict_one;
CREATE TABLE audit (what TEXT); CREATE TRIGGER watch AFTER INSERT ON parent BEGIN INSERT INTO audit VALUES ('new'); END;
INSERT INTO parent VALUES (2);
CREATE VIRTUAL TABLE notes USING fts5(title, body);
INSERT INTO notes VALUES ('trains', 'a fettler keeps the line in order'), ('bread', 'flour and water');
CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1); INSERT INTO boxes VALUES (1, 0.5, 2.5);
ANALYZE;
"#;

async fn goes_out_and_comes_back(settings: &str) {
    let place = Place::new();
    let source = place.open("all.sqlite");
    source.execute_batch(settings).unwrap();
    source.execute_batch(EVERYTHING).unwrap();
    let report = place.copies_and_proves("all.sqlite", "copy.sqlite").await;
    assert_eq!(rows_of(&report, "all types"), 5);
    assert_eq!(rows_of(&report, "pairs"), 3);
    assert_eq!(rows_of(&report, "nothing_in_it"), 0);
    assert!(
        report
            .objects
            .iter()
            .any(|object| object.kind == ObjectKind::Sequence && object.name == "all types")
    );

    let copy = place.open("copy.sqlite");
    for pragma in [
        "journal_mode",
        "encoding",
        "page_size",
        "user_version",
        "application_id",
        "auto_vacuum",
    ] {
        let ask = |connection: &rusqlite::Connection| {
            connection
                .pragma_query_value(None, pragma, |row| row.get::<_, rusqlite::types::Value>(0))
                .unwrap()
        };
        assert_eq!(ask(&copy), ask(&source), "{pragma}");
    }
    let found: String = copy
        .query_row(
            "SELECT title FROM notes WHERE notes MATCH 'fettler'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(found, "trains");
    copy.execute("INSERT INTO parent VALUES (3)", []).unwrap();
    let audited: i64 = copy
        .query_row("SELECT count(*) FROM audit", [], |row| row.get(0))
        .unwrap();
    assert_eq!(audited, 2);
}

#[tokio::test]
async fn p4_everything_goes_out_and_comes_back_in_wal_mode() {
    goes_out_and_comes_back("PRAGMA journal_mode = WAL").await;
}

#[tokio::test]
async fn p4_everything_goes_out_and_comes_back_in_rollback_mode() {
    goes_out_and_comes_back("PRAGMA journal_mode = DELETE").await;
}

#[tokio::test]
async fn p4_other_page_sizes_and_encodings_go_out_and_come_back() {
    goes_out_and_comes_back(
        "PRAGMA page_size = 512; PRAGMA encoding = 'UTF-16be'; PRAGMA auto_vacuum = INCREMENTAL",
    )
    .await;
    goes_out_and_comes_back(
        "PRAGMA page_size = 65536; PRAGMA auto_vacuum = FULL; PRAGMA journal_mode = WAL",
    )
    .await;
}

#[tokio::test]
async fn an_empty_file_is_an_empty_database() {
    let place = Place::new();
    std::fs::write(place.path("empty.sqlite"), b"").unwrap();
    place.copies_and_proves("empty.sqlite", "copy.sqlite").await;
    assert_eq!(
        std::fs::metadata(place.path("copy.sqlite")).unwrap().len(),
        0
    );
}

#[tokio::test]
async fn what_is_not_checkpointed_yet_is_in_the_backup() {
    let place = Place::new();
    let source = place.open("shop.sqlite");
    source
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x); INSERT INTO t VALUES (1), (2)")
        .unwrap();
    let report = place.copies_and_proves("shop.sqlite", "copy.sqlite").await;
    assert_eq!(rows_of(&report, "t"), 2);
    let wal = place.path("shop.sqlite-wal");
    assert!(
        std::fs::metadata(wal).unwrap().len() > 0,
        "the source's WAL was left alone"
    );
}

#[tokio::test]
async fn nothing_is_left_beside_the_source_or_in_the_scratch_folder() {
    let place = Place::new();
    let source = place.open("shop.sqlite");
    source
        .execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
        .unwrap();
    drop(source);
    let (report, sink) = place.backup("shop.sqlite").await.unwrap();
    place
        .restore(
            &sink.source(),
            &report,
            "copy.sqlite",
            &RestoreOptions::default(),
        )
        .await
        .unwrap();
    assert_eq!(place.files(), ["copy.sqlite", "scratch", "shop.sqlite"]);
}
