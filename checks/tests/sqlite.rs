//! The checks of SQLite on real files: each finds what it is there for, and a fresh file is left in peace.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::{os::unix::fs::FileExt as _, path::Path};

use common::{Look, keys, look, not_evaluable};
use fettler_checks::{Level, Library};
use rusqlite::Connection;

const AGES: [&str; 2] = ["sqlite.backup_age", "sqlite.proof_age"];

fn at(path: &Path) -> Look {
    look(&path.display().to_string(), Level::Full, None)
}

fn made(folder: &Path, name: &str, sql: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    path
}

#[test]
fn a_fresh_file_gives_a_report_that_an_expert_would_sign() {
    let folder = tempfile::tempdir().unwrap();
    for (name, sql) in [
        ("empty.sqlite", "VACUUM"),
        (
            "small.sqlite",
            "PRAGMA journal_mode = wal; CREATE TABLE t (id INTEGER PRIMARY KEY, n TEXT UNIQUE); INSERT INTO t (n) VALUES ('a'), ('b')",
        ),
        (
            "well.sqlite",
            "CREATE TABLE p (id INTEGER PRIMARY KEY, u UNIQUE);
             CREATE TABLE c (id INTEGER PRIMARY KEY REFERENCES p, p REFERENCES p, q REFERENCES p (u));
             CREATE INDEX c_p ON c (p, q); CREATE INDEX c_q ON c (q); CREATE INDEX c_part ON c (p) WHERE q > 1;
             INSERT INTO p VALUES (1, 1); INSERT INTO c VALUES (1, 1, 1)",
        ),
    ] {
        let look = at(&made(folder.path(), name, sql));
        assert_eq!(keys(&look), [""; 0], "{name}");
        assert_eq!(not_evaluable(&look), AGES, "{name}: {:?}", look.findings);
        assert!((90..100).contains(&look.score.points), "{:?}", look.score);
    }
}

#[test]
fn each_check_of_the_schema_and_of_its_rows_fires() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(
        folder.path(),
        "wrong.sqlite",
        "PRAGMA page_size = 1024; PRAGMA foreign_keys = off;
         CREATE TABLE customers (id INTEGER PRIMARY KEY);
         CREATE TABLE orders (id INTEGER PRIMARY KEY, customer REFERENCES customers, n, m);
         CREATE TABLE lost (x REFERENCES nowhere (id));
         CREATE INDEX lost_x ON lost (x);
         INSERT INTO orders VALUES (1, 7, 1, 1), (2, 8, 2, 2), (3, NULL, 3, 3);
         CREATE INDEX a_n ON orders (n); CREATE INDEX b_n ON orders (n); CREATE INDEX n_m ON orders (n, m);
         CREATE TABLE large (b); INSERT INTO large VALUES (zeroblob(12000000)), (zeroblob(12000000));
         DELETE FROM large WHERE rowid = 1",
    );
    let mut found = keys(&at(&path));
    found.sort();
    assert_eq!(
        found,
        [
            "sqlite.duplicate_indexes:b_n",
            "sqlite.foreign_key_violations:orders>customers",
            "sqlite.foreign_keys_to_nowhere:lost>nowhere",
            "sqlite.foreign_keys_without_index:orders.customer",
            "sqlite.free_pages",
            "sqlite.never_analyzed",
            "sqlite.pages_small",
            "sqlite.prefix_indexes:a_n",
            "sqlite.prefix_indexes:b_n",
        ]
    );
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "DROP INDEX a_n; DROP INDEX b_n; CREATE INDEX o_c ON orders (customer); DROP TABLE lost;
             DELETE FROM orders WHERE customer IS NOT NULL; PRAGMA page_size = 4096; VACUUM; ANALYZE",
        )
        .unwrap();
    assert_eq!(keys(&at(&path)), [""; 0]);
}

#[test]
fn each_check_of_the_files_fires() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(
        folder.path(),
        "log.sqlite",
        "PRAGMA journal_mode = wal; CREATE TABLE t (b)",
    );
    // A reader that stays: no checkpoint can begin the log anew.
    let reader = Connection::open(&path).unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM t")
        .unwrap();
    let writer = Connection::open(&path).unwrap();
    for _ in 0..4 {
        writer
            .execute_batch("INSERT INTO t VALUES (zeroblob(10000000))")
            .unwrap();
    }
    assert_eq!(keys(&at(&path)), ["sqlite.wal_large"]);
    reader.execute_batch("COMMIT").unwrap();
    writer
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    assert_eq!(keys(&at(&path)), [""; 0]);

    // A disk is as full as one says: the limit is put above what this one has.
    let own = tempfile::tempdir().unwrap();
    let check = Library::shipped_text("checks/sqlite/disk_nearly_full.yaml").unwrap();
    let check = check.replace(
        "row.free_bytes < 104857600",
        "row.free_bytes < 9000000000000000000",
    );
    std::fs::write(own.path().join("disk.yaml"), check).unwrap();
    let full = look(&path.display().to_string(), Level::Basic, Some(own.path()));
    assert_eq!(keys(&full), ["sqlite.disk_nearly_full"]);
}

#[test]
fn damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(
        folder.path(),
        "damaged.sqlite",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, n); CREATE INDEX t_n ON t (n);
         WITH RECURSIVE c (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 5000)
         INSERT INTO t SELECT i, hex(i) || 'abcdefgh' FROM c; ANALYZE",
    );
    assert_eq!(keys(&at(&path)), [""; 0]);
    let size = std::fs::metadata(&path).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff; 2000], size - 4096 * 3 + 100)
        .unwrap();
    drop(file);
    let look = at(&path);
    assert_eq!(keys(&look), ["sqlite.damaged"], "{:?}", look.findings);
}

#[test]
fn a_locked_file_is_a_critical_finding() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(folder.path(), "locked.sqlite", "CREATE TABLE t (n)");
    let writer = Connection::open(&path).unwrap();
    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let look = at(&path);
    assert_eq!(keys(&look), ["sqlite.reachable"]);
    assert_eq!(look.score.points, 0);
}

#[test]
fn a_check_of_ones_own_reads_and_does_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(
        folder.path(),
        "kept.sqlite",
        "CREATE TABLE t (n); INSERT INTO t VALUES (1)",
    );
    let own = tempfile::tempdir().unwrap();
    for (at, question) in [
        "DELETE FROM t RETURNING n",
        "ATTACH '/tmp/other.sqlite' AS other",
        "PRAGMA journal_mode = wal",
        "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) AS n FROM c",
        "SELECT load_extension('x') AS n",
    ]
    .into_iter()
    .enumerate()
    {
        let text = format!(
            "id: sqlite.own_{at}\nengine: sqlite\ndimension: resources\nseverity: low\ntimeout_seconds: 1\nquestion: |\n  {question}\nwhen: row.n > 0\ntitle: t\nwhy: w\nfix: {{text: f}}\nexamples: {{fires: [{{n: 1}}], passes: [{{n: 0}}]}}\n"
        );
        std::fs::write(own.path().join(format!("{at}.yaml")), text).unwrap();
    }
    let look = look(&path.display().to_string(), Level::Full, Some(own.path()));
    let own_checks: Vec<String> = (0..5).map(|at| format!("sqlite.own_{at}")).collect();
    let refused = not_evaluable(&look);
    for check in own_checks {
        assert!(refused.contains(&check), "{check}: {refused:?}");
    }
    let left: i64 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(left, 1);
}
