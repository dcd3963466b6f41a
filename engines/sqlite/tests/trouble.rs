//! What can be wrong with a source, a target or a backup, and what is said of it.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

#[allow(dead_code)]
mod common;

use std::{
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    sync::Arc,
};

use bytes::Bytes;
use common::{Place, differences, rows_of, target};
use fettler_engine::{
    BackupOptions, DatabaseEngine as _, EngineError, RateLimit, RestoreOptions, SandboxRequest,
    SandboxSpec, testing::MemorySink,
};
use fettler_engine_sqlite::SqliteEngine;
use rusqlite::Connection;

const OVERWRITE: RestoreOptions = RestoreOptions {
    only: Vec::new(),
    overwrite: true,
    start_again: false,
    still: false,
};

fn small(place: &Place) -> Connection {
    let connection = place.open("shop.sqlite");
    connection
        .execute_batch(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT);
             CREATE INDEX by_what ON orders (what);
             CREATE TABLE log (line TEXT);
             WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO orders SELECT i, 'order number ' || i FROM n;
             INSERT INTO log SELECT 'secret line ' || id FROM orders;
             CREATE TRIGGER watch AFTER INSERT ON orders BEGIN INSERT INTO log VALUES ('new'); END;
             CREATE VIRTUAL TABLE notes USING fts5(body);",
        )
        .unwrap();
    connection
}

async fn said_of(place: &Place, name: &str) -> String {
    match place.backup(name).await {
        Err(EngineError::Missing { code, what, remedy }) => {
            assert!(!remedy.is_empty());
            format!("{code}: {what}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_no_database_is_named_for_what_it_is() {
    let place = Place::new();
    fs::write(
        place.path("text.sqlite"),
        "no database at all\n".repeat(100),
    )
    .unwrap();
    let said = said_of(&place, "text.sqlite").await;
    assert!(
        said.starts_with("sqlite_format") && said.contains("encrypted"),
        "{said}"
    );
    assert!(
        said_of(&place, "gone.sqlite")
            .await
            .contains("there is no file")
    );
    assert!(said_of(&place, "scratch").await.contains("is a folder"));
    if !rustix::process::geteuid().is_root() {
        small(&place);
        fs::set_permissions(place.path("shop.sqlite"), fs::Permissions::from_mode(0o000)).unwrap();
        assert!(
            said_of(&place, "shop.sqlite")
                .await
                .starts_with("file_permission")
        );
    }
}

#[tokio::test]
async fn a_locked_database_is_busy_and_not_failed() {
    let place = Place::new();
    let connection = small(&place);
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let error = place.backup("shop.sqlite").await.unwrap_err();
    assert!(matches!(error, EngineError::Busy { .. }), "{error:?}");
}

/// Damages the b-tree of an index, then of a table.
#[tokio::test]
async fn a_damaged_database_is_never_proven() {
    for object in ["by_what", "orders"] {
        let place = Place::new();
        let connection = small(&place);
        let page: u64 = connection
            .query_row(
                "SELECT max(pageno) FROM dbstat WHERE name = ? AND pagetype = 'leaf'",
                [object],
                |row| row.get::<_, i64>(0),
            )
            .unwrap()
            .unsigned_abs();
        drop(connection);
        let mut file = fs::File::options()
            .write(true)
            .open(place.path("shop.sqlite"))
            .unwrap();
        file.seek(SeekFrom::Start((page - 1) * 4096)).unwrap();
        file.write_all(&[0xee; 4096]).unwrap();
        drop(file);
        match place.backup("shop.sqlite").await {
            Err(error) => assert!(error.to_string().contains("damaged"), "{error}"),
            Ok((report, sink)) => {
                assert!(
                    report
                        .warnings
                        .iter()
                        .any(|warning| warning.code == "sqlite.damaged")
                );
                let restored = place
                    .restore(
                        &sink.source(),
                        &report,
                        "copy.sqlite",
                        &RestoreOptions::default(),
                    )
                    .await
                    .unwrap();
                assert_eq!(restored.warnings.len(), 1);
                let facts = place.facts("copy.sqlite", &report).await;
                assert!(!differences(&report, &facts).is_empty());
            }
        }
    }
}

/// Each of these is a reader that hands on other bytes than it read.
#[tokio::test]
async fn rule_30_a_broken_reader_of_pages_is_not_proven() {
    type Breaking = fn(&str, u64, Bytes) -> Bytes;
    let breakings: [(&str, Breaking); 4] = [
        ("skips a page", |_, offset, bytes| {
            if offset == 0 {
                [&bytes[..40960], &bytes[45056..]].concat().into()
            } else {
                bytes
            }
        }),
        ("doubles a page and loses another", |_, _, bytes| {
            let mut bytes = bytes.to_vec();
            bytes.copy_within(40960..45056, 45056);
            bytes.into()
        }),
        ("loses the end", |_, _, bytes| {
            bytes.slice(..bytes.len() - 4096)
        }),
        ("changes a letter", |_, _, bytes| {
            let mut bytes = bytes.to_vec();
            let at = bytes
                .windows(12)
                .rposition(|part| part == b"secret line ")
                .unwrap();
            bytes[at] = b'S';
            bytes.into()
        }),
    ];
    for (how, breaking) in breakings {
        let place = Place::new();
        drop(small(&place));
        let sink = MemorySink::behind(Arc::new(breaking));
        let (report, sink) = place.backup_into("shop.sqlite", sink).await.unwrap();
        let restored = place
            .restore(
                &sink.source(),
                &report,
                "copy.sqlite",
                &RestoreOptions::default(),
            )
            .await;
        match restored {
            Err(error) => {
                assert!(
                    matches!(error, EngineError::Unusable { .. }),
                    "{how}: {error:?}"
                );
                assert!(!place.path("copy.sqlite").exists());
            }
            Ok(_) => {
                let facts = place.facts("copy.sqlite", &report).await;
                assert!(!differences(&report, &facts).is_empty(), "{how}");
            }
        }
    }
}

#[tokio::test]
async fn p7_a_restore_replaces_nothing_unasked() {
    let place = Place::new();
    drop(small(&place));
    let (report, sink) = place.backup("shop.sqlite").await.unwrap();
    let restore = async |name: &str, options: &RestoreOptions| {
        place.restore(&sink.source(), &report, name, options).await
    };
    let plain = RestoreOptions::default();

    fs::write(place.path("letter.txt"), "dear").unwrap();
    fs::write(place.path("old.sqlite-wal"), "left over").unwrap();
    for name in ["letter.txt", "old.sqlite", "scratch"] {
        let error = restore(name, &plain).await.unwrap_err();
        assert!(
            matches!(error, EngineError::NotEmpty { .. }),
            "{name}: {error:?}"
        );
    }
    assert_eq!(fs::read(place.path("letter.txt")).unwrap(), b"dear");
    let error = restore("no/folder.sqlite", &plain).await.unwrap_err();
    assert!(matches!(error, EngineError::Missing { .. }), "{error:?}");

    // Asked to, it replaces, and no WAL of the old database is applied to the new one.
    restore("letter.txt", &OVERWRITE).await.unwrap();
    let old = place.open("other.sqlite");
    old.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE old (x)",
    )
    .unwrap();
    let error = restore("other.sqlite", &OVERWRITE).await.unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    drop(old);
    restore("other.sqlite", &OVERWRITE).await.unwrap();
    for name in ["letter.txt", "other.sqlite"] {
        assert_eq!(
            differences(&report, &place.facts(name, &report).await),
            Vec::<String>::new()
        );
    }
}

#[tokio::test]
async fn p3_a_restore_goes_on_where_the_last_attempt_stopped() {
    let place = Place::new();
    let connection = small(&place);
    connection
        .execute_batch(
            "CREATE TABLE large (b); INSERT INTO large SELECT randomblob(12000) FROM orders;",
        )
        .unwrap();
    drop(connection);
    let (report, sink) = place.backup("shop.sqlite").await.unwrap();
    let mut source = sink.source();
    source.fails_after = Some(50_000_000);
    let copy = target(&place.path("copy.sqlite"));
    let attempt =
        async |number: u32, source: &dyn fettler_engine::StreamSource, options: &RestoreOptions| {
            SqliteEngine
                .restore(&place.attempt(number), source, &report, &copy, options)
                .await
        };
    let part = || {
        let artefacts = place.record.artefacts();
        assert_eq!(artefacts.len(), 1, "{artefacts:?}");
        std::path::PathBuf::from(&artefacts[0].name)
    };
    let plain = RestoreOptions::default();

    attempt(1, &source, &plain).await.unwrap_err();
    assert!(place.record.checkpoint().is_some());
    let first = fs::metadata(part()).unwrap().ino();
    attempt(2, &source, &plain).await.unwrap_err();
    assert_eq!(
        fs::metadata(part()).unwrap().ino(),
        first,
        "the file was taken over"
    );
    // What is on the disk is not believed.
    let mut file = fs::File::options().write(true).open(part()).unwrap();
    file.seek(SeekFrom::Start(5_000_000)).unwrap();
    file.write_all(&[0; 5000]).unwrap();
    drop(file);
    source.fails_after = None;
    attempt(3, &source, &plain).await.unwrap();
    assert_eq!(
        fs::metadata(place.path("copy.sqlite")).unwrap().ino(),
        first
    );
    assert_eq!(
        differences(&report, &place.facts("copy.sqlite", &report).await),
        Vec::<String>::new()
    );
    assert!(place.record.artefacts().is_empty());

    // The file of an older attempt is gone: it begins anew.
    source.fails_after = Some(50_000_000);
    fs::remove_file(place.path("copy.sqlite")).unwrap();
    attempt(4, &source, &plain).await.unwrap_err();
    let abandoned = place.record.artefacts().remove(0);
    SqliteEngine
        .remove_artefact(&abandoned, None)
        .await
        .unwrap();
    SqliteEngine
        .remove_artefact(&abandoned, None)
        .await
        .unwrap();
    source.fails_after = None;
    attempt(
        5,
        &source,
        &RestoreOptions {
            start_again: true,
            ..plain
        },
    )
    .await
    .unwrap();
    assert_eq!(place.files(), ["copy.sqlite", "scratch", "shop.sqlite"]);
}

#[tokio::test]
async fn a_backup_that_is_stopped_leaves_no_stream_and_no_file() {
    let place = Place::new();
    small(&place)
        .execute_batch("INSERT INTO log SELECT hex(randomblob(500)) FROM orders")
        .unwrap();
    let mut context = place.attempt(1);
    // So slow that it could not end by itself.
    context.rate = Arc::new(RateLimit::new(Some(1)));
    let stop = context.stop.clone();
    let sink = MemorySink::default();
    let source = target(&place.path("shop.sqlite"));
    let options = BackupOptions::default();
    let backup = SqliteEngine.backup(&context, &source, &options, &sink);
    let (ended, ()) = tokio::join!(backup, async {
        while context.progress.read().phase != "reading" {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    });
    let error = ended.unwrap_err();
    assert!(matches!(error, EngineError::Stopped), "{error:?}");
    assert!(sink.streams().is_empty());
    // A stopped attempt's thread may still be closing the copy.
    while place.files().iter().any(|file| file.contains("copy")) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn excluded_rows_are_left_out_down_to_their_bytes() {
    for journal in ["wal", "delete"] {
        let place = Place::new();
        let connection = small(&place);
        connection
            .pragma_update(None, "journal_mode", journal)
            .unwrap();
        let sink = MemorySink::default();
        let report = SqliteEngine
            .backup(
                &place.attempt(1),
                &target(&place.path("shop.sqlite")),
                &BackupOptions {
                    exclude: vec!["main.lo*".to_owned()],
                    ..BackupOptions::default()
                },
                &sink,
            )
            .await
            .unwrap();
        assert!(
            report
                .warnings
                .iter()
                .any(|warning| warning.code == "sqlite.excluded")
        );
        let bytes = sink.streams()["database"].bytes();
        assert!(!bytes.windows(11).any(|part| part == b"secret line"));
        place
            .restore(
                &sink.source(),
                &report,
                "copy.sqlite",
                &RestoreOptions::default(),
            )
            .await
            .unwrap();
        assert_eq!(
            differences(&report, &place.facts("copy.sqlite", &report).await),
            Vec::<String>::new()
        );
        assert_eq!(
            (rows_of(&report, "orders"), rows_of(&report, "log")),
            (5000, 0)
        );
        let mode: String = place
            .open("copy.sqlite")
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .unwrap();
        assert_eq!(mode, journal);
    }
}

#[tokio::test]
async fn some_tables_can_be_restored_alone() {
    let place = Place::new();
    drop(small(&place));
    let (report, sink) = place.backup("shop.sqlite").await.unwrap();
    let some = |only: &str, overwrite: bool| RestoreOptions {
        only: vec![only.to_owned()],
        overwrite,
        ..RestoreOptions::default()
    };
    let restore = async |name: &str, options: RestoreOptions| {
        place.record.begin_job();
        place.restore(&sink.source(), &report, name, &options).await
    };
    let done = restore("new.sqlite", some("ord*", false)).await.unwrap();
    assert_eq!(done.rows, 5000);
    let copy = place.open("new.sqlite");
    let names: Vec<String> = copy
        .prepare("SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite%' ORDER BY name")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(names, ["by_what", "orders", "watch"]);
    let next: i64 = copy
        .query_row(
            "SELECT seq FROM sqlite_sequence WHERE name = 'orders'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(next, 5000);
    copy.execute_batch(
        "DELETE FROM orders WHERE id > 10; CREATE TABLE mine (x); INSERT INTO mine VALUES (1)",
    )
    .unwrap();
    drop(copy);

    let error = restore("new.sqlite", some("orders", false))
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
    restore("new.sqlite", some("orders", true)).await.unwrap();
    let copy = place.open("new.sqlite");
    let counts: (i64, i64) = copy
        .query_row(
            "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM mine)",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    assert_eq!(counts, (5000, 1));
    for (only, what) in [("nothing", "holds no table"), ("notes", "virtual table")] {
        let error = restore("third.sqlite", some(only, false))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[tokio::test]
async fn a_sandbox_is_a_file_of_the_attempt_and_goes_away() {
    let place = Place::new();
    drop(small(&place));
    let (report, sink) = place.backup("shop.sqlite").await.unwrap();
    let context = place.attempt(9);
    let sandbox = SqliteEngine
        .open_sandbox(
            &context,
            &SandboxRequest {
                spec: SandboxSpec::SourceServer,
                server: None,
                identity: report.identity.clone(),
                estimated_bytes: report.identity.estimated_bytes,
                left: None,
            },
        )
        .await
        .unwrap();
    assert_eq!(place.record.artefacts(), sandbox.artefacts);
    assert!(
        sandbox
            .target
            .url
            .path()
            .unwrap()
            .starts_with(&context.scratch)
    );
    SqliteEngine
        .restore(
            &context,
            &sink.source(),
            &report,
            &sandbox.target,
            &RestoreOptions::default(),
        )
        .await
        .unwrap();
    let facts = SqliteEngine
        .facts(&context, &sandbox.target, &report)
        .await
        .unwrap();
    assert_eq!(differences(&report, &facts), Vec::<String>::new());
    for artefact in &sandbox.artefacts {
        SqliteEngine.remove_artefact(artefact, None).await.unwrap();
    }
    assert_eq!(place.files(), ["scratch", "shop.sqlite"]);
}

#[tokio::test]
async fn two_names_of_one_file_are_one_database() {
    let place = Place::new();
    drop(small(&place));
    std::os::unix::fs::symlink(place.path("shop.sqlite"), place.path("link.db")).unwrap();
    let identify = async |name: &str| {
        SqliteEngine
            .identify(&target(&place.path(name)))
            .await
            .unwrap()
    };
    let (one, other) = (identify("shop.sqlite").await, identify("link.db").await);
    assert_eq!((&one.key, &one.lineage), (&other.key, &other.lineage));
    assert_eq!(one.suggested_name.as_str(), "shop");
    assert_eq!(
        one.estimated_bytes,
        fs::metadata(place.path("shop.sqlite")).unwrap().len()
    );
    let preflight = SqliteEngine
        .preflight(
            &target(&place.path("shop.sqlite")),
            &BackupOptions::default(),
        )
        .await
        .unwrap();
    assert!(preflight.iter().any(|item| item.subject == "journal mode"));
    let free = SqliteEngine
        .free_bytes(&target(&place.path("not/yet.sqlite")))
        .await
        .unwrap();
    assert!(free.unwrap() > 0);
}

#[tokio::test]
async fn references_that_lead_nowhere_are_told() {
    let place = Place::new();
    place
        .open("shop.sqlite")
        .execute_batch(
            "PRAGMA foreign_keys = OFF;
             CREATE TABLE parent (id INTEGER PRIMARY KEY);
             CREATE TABLE child (p REFERENCES parent);
             INSERT INTO child VALUES (1), (2), (NULL);",
        )
        .unwrap();
    let report = place.copies_and_proves("shop.sqlite", "copy.sqlite").await;
    let told: Vec<_> = report
        .warnings
        .iter()
        .filter(|warning| warning.code == "sqlite.foreign_keys")
        .collect();
    assert!(
        told.len() == 1 && told[0].message.starts_with("2 rows"),
        "{told:?}"
    );
}
