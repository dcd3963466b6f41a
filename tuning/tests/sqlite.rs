//! SQLite: what is missing, superfluous and old is found, what it brings is counted on a copy, and a small or tidy file is left
//! in peace.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{Tuned, found};
use fettler_engine_sqlite::SqliteEngine;
use fettler_model::ActionKind;
use fettler_tuning::Look;
use rusqlite::Connection;

const SHOP: &str = "
CREATE TABLE customers (id INTEGER PRIMARY KEY, email TEXT NOT NULL, country INTEGER NOT NULL);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER NOT NULL, made TEXT NOT NULL, total INTEGER NOT NULL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO customers SELECT i, 'c' || i || '@example.org', i % 50 FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
INSERT INTO orders SELECT i, 1 + (i * 7919) % 20000, date('2024-01-01', '+' || (i % 700) || ' days'), i % 1000 FROM n;
CREATE INDEX customers_country ON customers (country);
CREATE INDEX customers_country_again ON customers (country);
CREATE INDEX customers_country_email ON customers (country, email);
";

fn made(folder: &Path, sql: &str) -> PathBuf {
    let path = folder.join("shop.sqlite");
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    path
}

fn tuned(path: &Path) -> Tuned<'static> {
    Tuned {
        engine: &SqliteEngine,
        url: path.display().to_string(),
    }
}

async fn look(path: &Path, statements: &[&str]) -> Look {
    tuned(path).look(statements).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_or_tidy_file_is_left_in_peace() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(folder.path(), "CREATE TABLE t (a); CREATE INDEX i ON t (a)");
    assert_eq!(
        look(&path, &["SELECT * FROM t WHERE a = 1"]).await.findings,
        []
    );
    let other = tempfile::tempdir().unwrap();
    let path = made(other.path(), SHOP);
    Connection::open(&path)
        .unwrap()
        .execute_batch("DROP INDEX customers_country; DROP INDEX customers_country_again; ANALYZE")
        .unwrap();
    let statements = [
        "SELECT email FROM customers WHERE country = 7",
        "SELECT * FROM orders WHERE id = 5",
        "SELECT count(*) FROM orders",
    ];
    let look = look(&path, &statements).await;
    assert_eq!(look.findings, [], "{look:#?}");
    assert_eq!(look.statements, (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_superfluous_indexes_and_missing_statistics_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(folder.path(), SHOP);
    let statements = [
        "SELECT id, total FROM orders WHERE customer = 77 ORDER BY made DESC LIMIT 10",
        "SELECT total FROM Orders o JOIN customers c ON c.id = o.customer WHERE c.email = 'c9@example.org'",
        "SELECT email FROM customers WHERE country = 7",
        "INSERT INTO orders (customer, made, total) VALUES (1, '2024-01-01', 1)",
        "SELECT nothing that can be read",
    ];
    let look = look(&path, &statements).await;
    assert_eq!(look.statements, (4, 1), "{look:#?}");
    assert_eq!(found(&look, "statistics"), [""]);
    let missing = found(&look, "index_missing");
    assert!(
        missing
            .iter()
            .any(|one| one.starts_with("orders (customer")),
        "{missing:?}"
    );
    assert!(
        missing
            .iter()
            .any(|one| one.starts_with("customers (email")),
        "{missing:?}"
    );
    assert!(missing.len() <= 3, "{missing:?}");
    assert_eq!(
        found(&look, "index_redundant"),
        ["customers_country", "customers_country_again"]
    );
    for action in &look.plan {
        assert!(action.safe, "{action:#?}");
        assert!(!action.undo.is_empty());
    }
    // What is safe is done, and taken back, twice each: what was there is there again.
    let definitions = || -> Vec<String> {
        let connection = Connection::open(&path).unwrap();
        let mut asked = connection
            .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
            .unwrap();
        asked
            .query_map([], |row| row.get::<_, String>(0))
            .unwrap()
            .map(Result::unwrap)
            .map(|sql| sql.replace("IF NOT EXISTS ", ""))
            .collect()
    };
    let before = definitions();
    let actions: Vec<_> = look.plan.iter().collect();
    tuned(&path).twice(&actions, false).await;
    let better = self::look(&path, &statements).await;
    assert_eq!(
        found(&better, "index_missing"),
        Vec::<&str>::new(),
        "{better:#?}"
    );
    assert_eq!(found(&better, "statistics"), Vec::<&str>::new());
    let actions: Vec<_> = look.plan.iter().rev().collect();
    tuned(&path).twice(&actions, true).await;
    assert_eq!(definitions(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_measure_is_not_safe_and_what_writes_lose_is_not_recommended() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(folder.path(), SHOP);
    // With a place for a value nobody knows how many rows it leaves.
    let open = look(&path, &["SELECT id FROM orders WHERE customer = ?"]).await;
    let action = open
        .plan
        .iter()
        .find(|action| action.kind == ActionKind::CreateIndex)
        .unwrap();
    assert!(
        !action.safe && action.unsafe_because.contains("places for values"),
        "{action:#?}"
    );
    // Nothing is saved where nearly all rows are wanted.
    let all = look(&path, &["SELECT total FROM orders WHERE total >= 0"]).await;
    assert_eq!(found(&all, "index_missing"), Vec::<&str>::new(), "{all:#?}");
    // Without statements the beginning of an index is not removed by itself; a duplicate is.
    let none = look(&path, &[]).await;
    let safe: Vec<(&str, bool)> = none
        .plan
        .iter()
        .filter(|action| action.kind == ActionKind::DropIndex)
        .map(|action| (action.object.as_str(), action.safe))
        .collect();
    assert!(safe.contains(&("customers_country", true)), "{safe:?}");
    assert!(
        safe.contains(&("customers_country_again", false)),
        "{safe:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_reaches_no_other_file_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(folder.path(), SHOP);
    let other = folder.path().join("other.sqlite");
    let attach = format!("ATTACH '{}' AS other", other.display());
    let statements = [
        attach.as_str(),
        "DELETE FROM orders",
        "PRAGMA user_version = 7",
    ];
    look(&path, &statements).await;
    assert!(!other.exists());
    let rows: i64 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM orders", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 60_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_in_a_journal_mode_that_locks_readers_out_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(
        folder.path(),
        "PRAGMA page_size = 1024; CREATE TABLE t (a);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 26)
         INSERT INTO t SELECT zeroblob(1000000) FROM n; DELETE FROM t WHERE rowid > 15;",
    );
    let told = look(&path, &[]).await;
    for check in ["journal_mode", "page_size", "free_pages"] {
        assert_eq!(found(&told, check), [""], "{check}: {told:#?}");
    }
    assert!(told.plan.iter().all(|action| !action.safe), "{told:#?}");
    Connection::open(&path)
        .unwrap()
        .execute_batch("PRAGMA page_size = 4096; VACUUM; PRAGMA journal_mode = WAL")
        .unwrap();
    assert_eq!(look(&path, &[]).await.findings, []);
}
