//! Cleanup of SQLite files by the engine alone: what goes, what stays and why, what comes back, and what is left when the work is
//! interrupted.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

#[allow(dead_code)]
mod common;

use common::{Place, target};
use fettler_engine::{
    Cleanup as _, CleanupArchive, CleanupRequest, CleanupTerms, EngineError,
    testing::{MemorySink, MemorySource},
};
use fettler_engine_sqlite::SqliteEngine;
use fettler_model::{CleanupAction, CleanupPlan, CleanupRemoved, CleanupUndone, JobId, Referenced};
use rusqlite::Connection;

/// 600 events, two in three of them older than 90 days, of every storage class, with what refers to them.
const EVENTS: &str = "
    PRAGMA journal_mode = WAL;
    CREATE TABLE events (
        id INTEGER PRIMARY KEY, at TEXT, who TEXT COLLATE NOCASE, any, amount REAL, doubled AS (amount * 2) STORED,
        before INTEGER REFERENCES events, UNIQUE (who) ON CONFLICT REPLACE);
    CREATE TABLE notes (id INTEGER PRIMARY KEY, event INTEGER REFERENCES events ON DELETE CASCADE, text);
    CREATE TABLE log (line);
    CREATE TRIGGER added AFTER INSERT ON events BEGIN INSERT INTO log VALUES ('added ' || new.id); END;
    WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 600)
    INSERT INTO events (id, at, who, any, amount, before)
    SELECT i, datetime('now', '-' || CASE i % 3 WHEN 0 THEN 10 ELSE 100 + i END || ' days'), 'who ' || i,
        CASE i % 5 WHEN 0 THEN i WHEN 1 THEN i + 0.5 WHEN 2 THEN 'text ' || i || char(0) WHEN 3 THEN randomblob(i) END, i / 7.0,
        CASE WHEN i % 3 > 0 AND i > 303 THEN i - 3 END
    FROM n;
    DELETE FROM log;";
const SUM: &str = "SELECT group_concat(quote(id) || quote(at) || quote(who) || typeof(any) || quote(any) || quote(amount) || quote(before)) FROM (SELECT * FROM events ORDER BY id)";

fn events(place: &Place) -> Connection {
    let connection = place.open("events.sqlite");
    connection.execute_batch(EVENTS).unwrap();
    connection
}

fn rows(table: &str, column: &str, referenced: Referenced, fire_triggers: bool) -> CleanupAction {
    CleanupAction::Rows {
        table: table.to_owned(),
        column: column.to_owned(),
        older_than_seconds: 90 * 86_400,
        referenced,
        fire_triggers,
    }
}

fn one<T: rusqlite::types::FromSql>(connection: &Connection, sql: &str) -> T {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// One job: its plan and its archive.
struct Job<'a> {
    place: &'a Place,
    plan: CleanupPlan,
    archive: MemorySource,
    archived: CleanupArchive,
}

async fn plan(place: &Place, what: CleanupAction) -> Result<CleanupPlan, EngineError> {
    let request = CleanupRequest {
        what,
        archive: true,
    };
    SqliteEngine
        .plan(
            &place.attempt(1),
            &target(&place.path("events.sqlite")),
            &request,
        )
        .await
}

impl<'a> Job<'a> {
    /// Plans, archives and proves.
    async fn begin(place: &'a Place, what: CleanupAction) -> Self {
        let plan = plan(place, what).await.unwrap();
        assert_eq!(plan.refusals, []);
        let sink = MemorySink::default();
        let (context, target) = (place.attempt(1), target(&place.path("events.sqlite")));
        let archived = SqliteEngine
            .archive(&context, &target, &plan, &sink)
            .await
            .unwrap();
        let archive = sink.source();
        SqliteEngine
            .prove(&context, &plan, &archive, &archived.objects)
            .await
            .unwrap();
        place.record.begin_job();
        Self {
            place,
            plan,
            archive,
            archived,
        }
    }

    async fn remove(&self, attempt: u32, batch_rows: u64) -> Result<CleanupRemoved, EngineError> {
        let terms = CleanupTerms {
            batch_rows,
            full_speed: true,
            ..CleanupTerms::default()
        };
        let context = self.place.attempt(attempt);
        let target = target(&self.place.path("events.sqlite"));
        SqliteEngine
            .remove(&context, &target, &self.plan, Some(&self.archive), &terms)
            .await
    }

    async fn undo(&self, dry_run: bool) -> CleanupUndone {
        self.place.record.begin_job();
        let context = self.place.attempt(9);
        let target = target(&self.place.path("events.sqlite"));
        SqliteEngine
            .undo(
                &context,
                &target,
                &self.plan,
                &self.archive,
                JobId::new(),
                dry_run,
            )
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn old_rows_go_once_and_come_back_as_they_were_without_triggers() {
    let place = Place::new();
    let connection = events(&place);
    let before: String = one(&connection, SUM);
    let job = Job::begin(&place, rows("events", "at", Referenced::Keep, false)).await;
    assert_eq!((job.plan.rows(), job.archived.rows), (400, 400));
    assert!(job.plan.depends.iter().any(|line| line.contains("notes")));

    let removed = job.remove(1, 70).await.unwrap();
    assert_eq!(
        (removed.removed, removed.stayed(), removed.gone),
        (400, 0, 0),
        "{removed:?}"
    );
    assert_eq!(removed.remaining, Some(0));
    assert_eq!(one::<i64>(&connection, "SELECT count(*) FROM events"), 200);
    let again = plan(&place, rows("events", "at", Referenced::Keep, false))
        .await
        .unwrap();
    assert_eq!(again.rows(), 0);

    assert_eq!(job.undo(true).await.restored, 400);
    assert_eq!(one::<i64>(&connection, "SELECT count(*) FROM events"), 200);
    let undone = job.undo(false).await;
    assert_eq!(
        (undone.restored, undone.there, undone.skipped),
        (400, 0, vec![])
    );
    assert_eq!(one::<String>(&connection, SUM), before);
    assert_eq!(
        one::<i64>(&connection, "SELECT count(*) FROM log"),
        0,
        "no trigger fired"
    );
    let twice = job.undo(false).await;
    assert_eq!((twice.restored, twice.there), (0, 400));
    assert_eq!(one::<String>(&connection, SUM), before);
}

#[tokio::test]
async fn what_was_changed_or_is_referred_to_since_the_archive_stays() {
    let place = Place::new();
    let connection = events(&place);
    let job = Job::begin(&place, rows("main.events", "AT", Referenced::Keep, false)).await;
    connection
        .execute_batch(
            // The same to the column's collation, to the comparison of numbers and to the eye, and not the same.
            "UPDATE events SET who = upper(who) WHERE id = 1;
             UPDATE events SET any = CAST(any AS REAL) WHERE id = 5;
             UPDATE events SET any = NULL WHERE id = 7;
             DELETE FROM events WHERE id = 13;
             INSERT INTO notes (event, text) VALUES (11, 'it matters'), (305, 'so does what it refers to, 302');
             INSERT INTO events (id, at) VALUES (9001, datetime('now', '-200 days'));",
        )
        .unwrap();
    let removed = job.remove(1, 50).await.unwrap();
    assert_eq!(
        (removed.changed, removed.gone, removed.referenced),
        (3, 1, 3),
        "{removed:?}"
    );
    assert_eq!(removed.removed, 400 - 7);
    assert_eq!(removed.remaining, Some(7));
    for told in ["1: changed", "11: referred to"] {
        assert!(removed.kept.iter().any(|line| line == told), "{removed:?}");
    }
    let stay: String = one(
        &connection,
        "SELECT group_concat(id) FROM (SELECT id FROM events WHERE at < datetime('now', '-90 days') ORDER BY id)",
    );
    assert_eq!(stay, "1,5,7,11,302,305,9001");

    // Somebody takes a key, and unique values, of what was removed.
    connection
        .execute_batch(
            "INSERT INTO events (id, at, who) VALUES (2, datetime('now'), 'another');
             INSERT INTO events (id, at, who) VALUES (9002, datetime('now'), 'WHO 4'), (9003, datetime('now'), 'who 301');
             DELETE FROM events WHERE id = 1;",
        )
        .unwrap();
    let undone = job.undo(false).await;
    let others: i64 = one(
        &connection,
        "SELECT count(*) FROM events WHERE id > 9001 AND who IN ('WHO 4', 'who 301')",
    );
    assert_eq!(others, 2, "nobody's row is replaced");
    // 2 is another row; 4 and 301 have their unique values taken; 5 and 7 were changed.
    assert_eq!((undone.taken, undone.there), (5, 3), "{undone:?}");
    // 304 refers to 301, 307 to 304, and so on to 598.
    assert_eq!(undone.without_parent, 99, "{undone:?}");
    assert_eq!(undone.restored, 400 - 5 - 3 - 99);
    let orphans: i64 = one(
        &connection,
        "SELECT count(*) FROM pragma_foreign_key_check('events')",
    );
    assert_eq!(orphans, 0);
}

#[tokio::test]
async fn work_that_is_interrupted_goes_on_and_counts_each_row_once() {
    let place = Place::new();
    let connection = events(&place);
    let before: String = one(&connection, SUM);
    let mut job = Job::begin(&place, rows("events", "at", Referenced::Keep, false)).await;
    let whole = job.archive.clone();
    job.archive.fails_after = Some(0);
    assert!(job.remove(1, 50).await.is_err());
    assert_eq!(one::<String>(&connection, SUM), before);
    job.archive = whole;
    // Stopped in the middle.
    let context = place.attempt(2);
    let (stop, watched) = (context.stop.clone(), place.path("events.sqlite"));
    let watcher = tokio::task::spawn_blocking(move || {
        let connection = Connection::open(watched).unwrap();
        while one::<i64>(&connection, "SELECT count(*) FROM events") == 600 {}
        stop.cancel();
    });
    let terms = CleanupTerms {
        batch_rows: 10,
        rows_per_second: Some(100),
        ..CleanupTerms::default()
    };
    let stopped = SqliteEngine
        .remove(
            &context,
            &target(&place.path("events.sqlite")),
            &job.plan,
            Some(&job.archive),
            &terms,
        )
        .await;
    watcher.await.unwrap();
    assert!(matches!(stopped, Err(EngineError::Stopped)), "{stopped:?}");
    let left: i64 = one(&connection, "SELECT count(*) FROM events");
    assert!(left > 200 && left < 600, "{left}");
    let removed = job.remove(3, 50).await.unwrap();
    assert_eq!(
        (removed.removed, removed.gone, removed.stayed()),
        (400, 0, 0),
        "{removed:?}"
    );
    // An attempt that knows of nothing finds all of it gone.
    place.record.begin_job();
    let removed = job.remove(4, 50).await.unwrap();
    assert_eq!((removed.removed, removed.gone), (0, 400));
}

#[tokio::test]
async fn a_file_that_somebody_writes_is_not_waited_for_long_and_nothing_is_lost() {
    let place = Place::new();
    let mut connection = events(&place);
    let job = Job::begin(&place, rows("events", "at", Referenced::Keep, false)).await;
    let held = connection
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .unwrap();
    let refused = job.remove(1, 50).await;
    assert!(
        matches!(refused, Err(EngineError::Busy { .. })),
        "{refused:?}"
    );
    held.rollback().unwrap();
    assert_eq!(job.remove(2, 50).await.unwrap().removed, 400);
}

#[tokio::test]
async fn a_table_without_row_numbers_and_one_without_a_key_come_back_too() {
    let place = Place::new();
    let connection = place.open("events.sqlite");
    connection
        .execute_batch(
            "CREATE TABLE events (region TEXT, n INT, rowid TEXT, at INTEGER, PRIMARY KEY (region, n DESC)) WITHOUT ROWID;
             CREATE TABLE plain (at REAL, text);
             WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
             INSERT INTO events SELECT 'r' || (i % 7), i, i, unixepoch() * 1000 - CASE i % 2 WHEN 0 THEN 8640000000 ELSE 0 END FROM n;
             INSERT INTO plain SELECT julianday('now') - CASE n % 2 WHEN 0 THEN 100 ELSE 0 END, n FROM events;",
        )
        .unwrap();
    for table in ["events", "plain"] {
        let sum = format!(
            "SELECT group_concat(quote(at) || ' ' || n) FROM (SELECT at, {} AS n FROM {table} ORDER BY 2)",
            if table == "events" {
                "region || n"
            } else {
                "rowid || text"
            }
        );
        let before: String = one(&connection, &sum);
        let job = Job::begin(&place, rows(table, "at", Referenced::Refuse, false)).await;
        assert_eq!(job.remove(1, 1000).await.unwrap().removed, 1250);
        assert_eq!(
            one::<i64>(&connection, &format!("SELECT count(*) FROM {table}")),
            1250
        );
        assert_eq!(job.undo(false).await.restored, 1250);
        assert_eq!(one::<String>(&connection, &sum), before);
    }
}

#[tokio::test]
async fn a_plan_refuses_what_would_take_more_than_was_archived() {
    let place = Place::new();
    let connection = events(&place);
    connection
        .execute_batch(
            "INSERT INTO notes (event) VALUES (1), (3);
             CREATE TRIGGER removed AFTER DELETE ON events BEGIN INSERT INTO log VALUES ('removed ' || old.id); END;
             CREATE VIEW seen AS SELECT * FROM events;
             CREATE VIRTUAL TABLE words USING fts5(text);",
        )
        .unwrap();
    let refused = async |what: CleanupAction| {
        let plan = plan(&place, what).await.unwrap();
        plan.refusals
            .into_iter()
            .map(|refusal| refusal.what)
            .collect::<Vec<_>>()
            .join("; ")
    };
    let told = refused(rows("events", "at", Referenced::Refuse, false)).await;
    assert!(told.contains("notes (event) refers to 1"), "{told}");
    assert!(told.contains("the trigger removed"), "{told}");
    assert!(!told.contains("added"), "{told}");
    assert_eq!(
        refused(rows("events", "at", Referenced::Keep, true)).await,
        ""
    );
    for (table, column, word) in [
        ("seen", "at", "view"),
        ("words", "text", "virtual"),
        ("events", "when", "no column"),
    ] {
        let told = refused(rows(table, column, Referenced::Keep, true)).await;
        assert!(told.contains(word), "{told}");
    }
    let missing = plan(&place, rows("nothing", "at", Referenced::Keep, true)).await;
    assert!(
        matches!(missing, Err(EngineError::Missing { .. })),
        "{missing:?}"
    );
    let other = plan(&place, CleanupAction::TemporaryTables {}).await;
    assert!(
        matches!(other, Err(EngineError::Missing { .. })),
        "{other:?}"
    );
    let told = plan(&place, rows("events", "who", Referenced::Keep, true))
        .await
        .unwrap();
    assert!(
        told.rows() == 0 && told.notes.iter().any(|note| note.contains("600 values")),
        "{told:?}"
    );

    // Triggers fire where they were let.
    let job = Job::begin(&place, rows("events", "at", Referenced::Keep, true)).await;
    assert_eq!(job.remove(1, 500).await.unwrap().removed, 399);
    assert_eq!(one::<i64>(&connection, "SELECT count(*) FROM log"), 399);
}

#[tokio::test]
async fn free_pages_and_a_grown_wal_are_given_back_and_then_there_is_nothing_to_do() {
    for incremental in [false, true] {
        let place = Place::new();
        let connection = place.open("events.sqlite");
        let mode = if incremental { "INCREMENTAL" } else { "NONE" };
        connection
            .execute_batch(&format!(
                "PRAGMA auto_vacuum = {mode}; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
                 CREATE TABLE t (id INTEGER PRIMARY KEY, b); CREATE TABLE kept (id INTEGER PRIMARY KEY, b);
                 WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 500)
                 INSERT INTO t SELECT i, randomblob(4000) FROM n;
                 INSERT INTO kept SELECT * FROM t WHERE id < 50; DELETE FROM t;"
            ))
            .unwrap();
        let sum = "SELECT group_concat(hex(b)) FROM kept";
        let before: String = one(&connection, sum);
        let target = target(&place.path("events.sqlite"));
        for what in [
            CleanupAction::Vacuum {
                only: vec![],
                dead_percent: 20,
            },
            CleanupAction::Checkpoint {},
        ] {
            place.record.begin_job();
            let planned = plan(&place, what.clone()).await.unwrap();
            assert_eq!(planned.refusals, []);
            assert!(
                planned.rows() > 400 && !planned.can_be_undone,
                "{planned:?}"
            );
            let terms = CleanupTerms::default();
            let removed = SqliteEngine
                .remove(&place.attempt(1), &target, &planned, None, &terms)
                .await
                .unwrap();
            assert!(
                removed.removed > 400 && removed.remaining == Some(0),
                "{removed:?}"
            );
            let again = plan(&place, what).await.unwrap();
            assert!(
                again.items.is_empty() && !again.notes.is_empty(),
                "{again:?}"
            );
        }
        assert_eq!(one::<i64>(&connection, "PRAGMA freelist_count"), 0);
        assert_eq!(one::<String>(&connection, sum), before);
        let length = std::fs::metadata(place.path("events.sqlite"))
            .unwrap()
            .len();
        assert!(length < 400_000, "{length}");
    }
}

#[tokio::test]
async fn a_wal_that_somebody_reads_keeps_its_size_and_that_is_told() {
    let place = Place::new();
    let writer = events(&place);
    let reader = place.open("events.sqlite");
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM events;")
        .unwrap();
    writer
        .execute_batch("INSERT INTO log VALUES ('later')")
        .unwrap();
    let planned = plan(&place, CleanupAction::Checkpoint {}).await.unwrap();
    let target = target(&place.path("events.sqlite"));
    let removed = SqliteEngine
        .remove(
            &place.attempt(1),
            &target,
            &planned,
            None,
            &CleanupTerms::default(),
        )
        .await
        .unwrap();
    assert!(removed.busy > 0 && !removed.notes.is_empty(), "{removed:?}");
}
