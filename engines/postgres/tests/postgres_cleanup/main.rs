//! Cleanup by the engine alone, against real servers: what a batch removes, what it spares, and what comes back; among it what only
//! meets at a moment that no test of the whole program can choose.

#![allow(clippy::unwrap_used)]

mod orphans;
mod partitions;
mod repack;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use fettler_engine::{
    AttemptName, Checkpoints, Cleanup as _, CleanupRequest, CleanupTerms, Cut, EngineContext,
    EngineError, Fence, ProgressMeter, RateLimit, StreamEnd, StreamFacts, StreamReader, StreamSink,
    StreamSource, StreamWriter, Target, Unrecorded,
};
use fettler_engine_postgres::PostgresEngine;
use fettler_model::{
    AttemptToken, CleanupAction, CleanupPlan, CleanupRemoved, CleanupUndone, DatabaseUrl, JobId,
    ObjectFacts, Referenced,
};
use fettler_test_servers::{PgMajor, PostgresServer, TestDatabase};
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

/// Rows of every sort of type that is hard to write down, half of them older than 90 days.
const EVENTS: &str = include_str!("events.sql");
const SUM: &str =
    r#"SELECT count(*), md5(string_agg(e::text, ',' ORDER BY region, id)) FROM "Events" e"#;
const COUNT: &str = r#"SELECT count(*) FROM "Events""#;

/// An archive in memory.
#[derive(Default)]
struct Memory {
    streams: Arc<Mutex<BTreeMap<String, (Bytes, u64)>>>,
    list: Vec<StreamFacts>,
}

struct Writer {
    name: String,
    bytes: BytesMut,
    streams: Arc<Mutex<BTreeMap<String, (Bytes, u64)>>>,
}

#[async_trait]
impl StreamSink for Memory {
    async fn open(&self, name: &str, _: Cut) -> Result<Box<dyn StreamWriter>, EngineError> {
        Ok(Box::new(Writer {
            name: name.to_owned(),
            bytes: BytesMut::new(),
            streams: self.streams.clone(),
        }))
    }

    async fn take_over(&self, _: &str, _: &str) -> Result<Option<StreamFacts>, EngineError> {
        Ok(None)
    }
}

#[async_trait]
impl StreamWriter for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<(), EngineError> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>, end: StreamEnd) -> Result<StreamFacts, EngineError> {
        let facts = StreamFacts {
            name: self.name.clone(),
            bytes: self.bytes.len() as u64,
            rows: end.rows,
        };
        self.streams
            .lock()
            .unwrap()
            .insert(self.name, (self.bytes.freeze(), end.rows));
        Ok(facts)
    }
}

#[async_trait]
impl StreamSource for Memory {
    fn streams(&self) -> &[StreamFacts] {
        &self.list
    }

    async fn read(&self, name: &str) -> Result<StreamReader, EngineError> {
        let mut rest = self.streams.lock().unwrap()[name].0.clone();
        // Pieces that no row ends with.
        let pieces = std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| Ok(rest.split_to(rest.len().min(1013))))
        });
        Ok(futures::stream::iter(pieces).boxed())
    }
}

impl Memory {
    fn seal(&mut self) {
        let streams = self.streams.lock().unwrap();
        self.list = streams
            .iter()
            .map(|(name, (bytes, rows))| StreamFacts {
                name: name.clone(),
                bytes: bytes.len() as u64,
                rows: *rows,
            })
            .collect();
    }
}

/// Checkpoints that stay, and a fence that does something at each batch.
#[derive(Default)]
struct Saved(Mutex<Option<serde_json::Value>>);

#[async_trait]
impl Checkpoints for Saved {
    async fn load(&self) -> Result<Option<serde_json::Value>, EngineError> {
        Ok(self.0.lock().unwrap().clone())
    }

    async fn save(&self, checkpoint: serde_json::Value) -> Result<(), EngineError> {
        *self.0.lock().unwrap() = Some(checkpoint);
        Ok(())
    }
}

struct Meddler<F>(F);

#[async_trait]
impl<F: Fn() + Send + Sync> Fence for Meddler<F> {
    async fn check(&self) -> Result<(), EngineError> {
        (self.0)();
        Ok(())
    }
}

fn context(fence: Arc<dyn Fence>) -> (EngineContext, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let context = EngineContext {
        attempt: AttemptName {
            job: JobId::new(),
            token: AttemptToken::new(1, 7),
        },
        stop: CancellationToken::new(),
        progress: Arc::new(ProgressMeter::default()),
        fence,
        artefacts: Arc::new(Unrecorded),
        checkpoints: Arc::new(Saved::default()),
        fingerprint_key: [42; 32],
        rate: Arc::new(RateLimit::default()),
        scratch: folder.path().to_owned(),
        kept: folder.path().to_owned(),
        parallel: 2,
    };
    (context, folder)
}

fn nothing() -> Arc<dyn Fence> {
    Arc::new(fettler_engine::Unfenced)
}

/// A cleanup that was planned, archived and proven.
struct Begun {
    target: Target,
    plan: CleanupPlan,
    archive: Memory,
    objects: Vec<ObjectFacts>,
}

fn rows(table: &str, referenced: Referenced) -> CleanupAction {
    CleanupAction::Rows {
        table: table.to_owned(),
        column: "at".to_owned(),
        older_than_seconds: 90 * 86_400,
        referenced,
        fire_triggers: false,
    }
}

async fn planned(url: &str, what: CleanupAction) -> (Target, CleanupPlan) {
    let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
    let target = Target { url, password };
    let (context, _folder) = context(nothing());
    let request = CleanupRequest {
        what,
        archive: true,
    };
    let plan = PostgresEngine::default()
        .plan(&context, &target, &request)
        .await
        .unwrap();
    (target, plan)
}

async fn begin(url: &str, what: CleanupAction) -> Begun {
    let (target, plan) = planned(url, what).await;
    assert_eq!(plan.refusals, []);
    let engine = PostgresEngine::default();
    let mut archive = Memory::default();
    let (context, _folder) = context(nothing());
    let archived = engine
        .archive(&context, &target, &plan, &archive)
        .await
        .unwrap();
    archive.seal();
    assert_eq!(archived.rows, plan.rows());
    engine
        .prove(&context, &plan, &archive, &archived.objects)
        .await
        .unwrap();
    Begun {
        target,
        plan,
        archive,
        objects: archived.objects,
    }
}

impl Begun {
    async fn remove(&self, fence: Arc<dyn Fence>) -> CleanupRemoved {
        let (context, _folder) = context(fence);
        let terms = CleanupTerms {
            batch_rows: 100,
            ..CleanupTerms::default()
        };
        PostgresEngine::default()
            .remove(
                &context,
                &self.target,
                &self.plan,
                Some(&self.archive),
                &terms,
            )
            .await
            .unwrap()
    }

    async fn undo(&self) -> Result<CleanupUndone, EngineError> {
        let (context, _folder) = context(nothing());
        PostgresEngine::default()
            .undo(
                &context,
                &self.target,
                &self.plan,
                &self.archive,
                JobId::new(),
                false,
            )
            .await
    }
}

fn database(major: PgMajor, sql: &str) -> TestDatabase {
    let database = PostgresServer::shared(major)
        .create_database("cleanup")
        .unwrap();
    database.psql(sql).unwrap();
    database
}

fn number(database: &TestDatabase, sql: &str) -> u64 {
    database.psql(sql).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn p7_every_type_is_found_again_by_its_content_and_comes_back() {
    for major in PgMajor::ALL {
        let database = database(major, EVENTS);
        let before = database.psql(SUM).unwrap();
        let begun = begin(
            &database.url(),
            rows("public.\"Events\"", Referenced::Refuse),
        )
        .await;
        assert_eq!(begun.plan.rows(), 2000);
        let removed = begun.remove(nothing()).await;
        assert_eq!(
            (removed.removed, removed.stayed(), removed.remaining),
            (2000, 0, Some(0)),
            "{removed:?}"
        );
        assert_eq!(number(&database, COUNT), 2001);
        let again = begun.remove(nothing()).await;
        assert_eq!((again.removed, again.gone), (0, 2000), "{again:?}");
        let undone = begun.undo().await.unwrap();
        assert_eq!((undone.restored, undone.there), (2000, 0), "{undone:?}");
        assert_eq!(database.psql(SUM).unwrap(), before);
        let twice = begun.undo().await.unwrap();
        assert_eq!((twice.restored, twice.there), (0, 2000), "{twice:?}");
    }
}

/// A change of any one column, however slight, keeps its row.
#[tokio::test]
async fn p7_a_row_stays_where_any_column_has_changed() {
    let database = database(PgMajor::V15, EVENTS);
    let begun = begin(&database.url(), rows("Events", Referenced::Refuse)).await;
    let changes = [
        "\"the text\" = COALESCE(\"the text\", '') || ' '",
        "m = CASE WHEN m = 'so so' THEN NULL ELSE 'so so'::mood END",
        "p.b = 'x'",
        "d = 'x'",
        "tags = tags || NULL::text",
        "doc = doc || '{\"z\": 1}'",
        "raw = '{\"a\":1}'",
        "bytes = bytes || '\\x00'",
        "num = CASE WHEN num = 'NaN' THEN 1 ELSE num + 0.0000000001 END",
        "f = CASE WHEN f = 0 THEN 1 WHEN f = 'Infinity' THEN '-Infinity' ELSE f * (1 + 1e-15) END",
        "g = g * (1 + 1e-6)",
        "span = span + interval '1 microsecond'",
        "flag = NOT flag",
        "ip = '10.1.2.3/9'",
        "bits = ~bits",
        "plain = plain - 1",
        "at = at - interval '1 microsecond'",
    ];
    for (number, change) in changes.iter().enumerate() {
        // The oldest rows have the highest numbers.
        let id = 4000 - number;
        let changed = database
            .psql(&format!(
                "UPDATE \"Events\" SET {change} WHERE id = {id} RETURNING id"
            ))
            .unwrap();
        assert!(changed.contains(&id.to_string()), "{change}");
    }
    // An update that changes nothing leaves the content as it is.
    database
        .psql("UPDATE \"Events\" SET f = f WHERE id = 3000")
        .unwrap();
    let removed = begun.remove(nothing()).await;
    let stay = changes.len() as u64;
    assert_eq!(
        (removed.removed, removed.changed),
        (2000 - stay, stay),
        "{removed:?}"
    );
    assert_eq!(
        number(
            &database,
            "SELECT min(id) FROM \"Events\" WHERE at < now() - interval '90 days'"
        ),
        4001 - stay
    );
    let undone = begun.undo().await.unwrap();
    assert_eq!(
        (undone.restored, undone.taken),
        (2000 - stay, stay),
        "{undone:?}"
    );
    assert_eq!(undone.skipped.len() as u64, stay);
}

/// A row that comes to refer to an old one while the work runs is seen, and no cascade takes it.
#[tokio::test]
async fn p7_no_cascade_takes_what_is_not_archived() {
    let database = database(
        PgMajor::V18,
        "CREATE TABLE orders (id int PRIMARY KEY, at timestamptz);
         CREATE TABLE lines (id serial PRIMARY KEY, of int REFERENCES orders ON DELETE CASCADE);
         INSERT INTO orders SELECT g, now() - interval '1 year' FROM generate_series(1, 1000) g;",
    );
    let (_, refused) = {
        database.psql("INSERT INTO lines (of) VALUES (5)").unwrap();
        planned(&database.url(), rows("orders", Referenced::Refuse)).await
    };
    assert_eq!(refused.refusals.len(), 1, "{refused:?}");
    let begun = begin(&database.url(), rows("orders", Referenced::Keep)).await;
    // Each batch finds a line that was not there a moment before.
    let next = Mutex::new(1000);
    let writer = database.url();
    let psql = PostgresServer::shared(PgMajor::V18).bin_dir().join("psql");
    let meddler = Meddler(move || {
        let mut next = next.lock().unwrap();
        let sql = format!("INSERT INTO lines (of) SELECT id FROM orders WHERE id = {next}");
        std::process::Command::new(&psql)
            .args([&writer, "-qXc", &sql])
            .status()
            .unwrap();
        *next -= 50;
    });
    let removed = begun.remove(Arc::new(meddler)).await;
    let lines = number(&database, "SELECT count(*) FROM lines");
    assert!(lines > 2, "{lines}");
    assert_eq!(removed.referenced, lines, "{removed:?}");
    assert_eq!(
        number(
            &database,
            "SELECT count(*) FROM lines WHERE of NOT IN (SELECT id FROM orders)"
        ),
        0
    );
    assert_eq!(number(&database, "SELECT count(*) FROM orders"), lines);
    assert_eq!(begun.undo().await.unwrap().restored, 1000 - lines);
}

/// Rows whose parents are gone are left out, told, and nothing else is.
#[tokio::test]
async fn p7_an_undo_leaves_no_row_without_what_it_refers_to() {
    let database = database(
        PgMajor::V15,
        "CREATE TABLE kinds (id int PRIMARY KEY); INSERT INTO kinds VALUES (1), (2), (3);
         CREATE TABLE things (id int PRIMARY KEY, at timestamptz, kind int REFERENCES kinds, code text UNIQUE);
         INSERT INTO things SELECT g, '2001-01-01', NULLIF(g % 4, 0), 'c' || g FROM generate_series(1, 100) g;
         CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'fired'; END $$;
         CREATE TRIGGER t BEFORE INSERT ON things FOR EACH ROW EXECUTE FUNCTION f();",
    );
    let begun = begin(&database.url(), rows("things", Referenced::Refuse)).await;
    assert_eq!(begun.remove(nothing()).await.removed, 100);
    database.psql("DELETE FROM kinds WHERE id = 2; ALTER TABLE things DISABLE TRIGGER t; INSERT INTO things VALUES (500, now(), 1, 'c1'); ALTER TABLE things ENABLE TRIGGER t").unwrap();
    let undone = begun.undo().await.unwrap();
    assert_eq!(
        (undone.restored, undone.without_parent, undone.taken),
        (74, 25, 1),
        "{undone:?}"
    );
    assert_eq!(undone.skipped.len(), 26);
    database
        .psql("ALTER TABLE things ENABLE ALWAYS TRIGGER t")
        .unwrap();
    let refused = begun.undo().await.unwrap_err().to_string();
    assert!(refused.contains("ENABLE ALWAYS"), "{refused}");
    database
        .psql("ALTER TABLE things DISABLE TRIGGER t; ALTER TABLE things DROP COLUMN code")
        .unwrap();
    let refused = begun.undo().await.unwrap_err().to_string();
    assert!(refused.contains("column code"), "{refused}");
}

/// An archive that is not what was read stops the work before anything is removed.
#[tokio::test]
async fn p7_a_damaged_archive_is_found_before_anything_is_removed() {
    let database = database(PgMajor::V15, EVENTS);
    let begun = begin(&database.url(), rows("Events", Referenced::Refuse)).await;
    let name = begun.archive.list[0].name.clone();
    {
        let mut streams = begun.archive.streams.lock().unwrap();
        let (bytes, _) = streams.get_mut(&name).unwrap();
        let mut other = bytes.to_vec();
        let at = other.iter().position(|byte| *byte == b'7').unwrap();
        other[at] = b'8';
        *bytes = other.into();
    }
    let (context, _folder) = context(nothing());
    let refused = PostgresEngine::default()
        .prove(&context, &begun.plan, &begun.archive, &begun.objects)
        .await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("nothing was removed")
    );
    // And were it to go on, the row that is not in it would stay.
    let removed = begun.remove(nothing()).await;
    assert_eq!(removed.removed, 1999, "{removed:?}");
}

/// A table that somebody holds altogether puts the work off; it goes on where it was.
#[tokio::test]
async fn p7_a_lock_of_the_whole_table_is_waited_for_shortly() {
    let database = database(
        PgMajor::V15,
        "CREATE TABLE t (id int PRIMARY KEY, at date); INSERT INTO t SELECT g, '2001-01-01' FROM generate_series(1, 50) g",
    );
    let begun = begin(&database.url(), rows("t", Referenced::Refuse)).await;
    let psql = PostgresServer::shared(PgMajor::V15).bin_dir().join("psql");
    let url = database.url();
    let mut held = None;
    let locked = Mutex::new(&mut held);
    let lock = || {
        let mut locked = locked.lock().unwrap();
        let holder = std::process::Command::new(&psql)
            .args([
                &url,
                "-qXc",
                "BEGIN; LOCK TABLE t; SELECT pg_sleep(1.5); COMMIT",
            ])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        **locked = Some(holder);
    };
    lock();
    std::thread::sleep(std::time::Duration::from_millis(400));
    let began = std::time::Instant::now();
    let removed = begun.remove(nothing()).await;
    held.unwrap().wait().unwrap();
    assert_eq!(removed.removed, 50, "{removed:?}");
    assert!(
        removed.waits_for_locks > 0,
        "{removed:?} in {:?}",
        began.elapsed()
    );
    assert!(removed.longest_transaction_ms < 1500, "{removed:?}");
}

/// Lets so many batches through, and stops the work then.
struct Stops(AtomicU64);

#[async_trait]
impl Fence for Stops {
    async fn check(&self) -> Result<(), EngineError> {
        let left = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        left.map(drop).map_err(|_| EngineError::Stopped)
    }
}

/// However often the work is stopped, it goes on where it was, and accounts for each row once.
#[tokio::test]
async fn p3_p7_a_removal_and_an_undo_that_are_stopped_go_on_where_they_were() {
    let database = database(PgMajor::V18, EVENTS);
    let before = database.psql(SUM).unwrap();
    let begun = begin(&database.url(), rows("Events", Referenced::Refuse)).await;
    database
        .psql("UPDATE \"Events\" SET doc = NULL WHERE id IN (2100, 2600, 3900)")
        .unwrap();
    let engine = PostgresEngine::default();
    let saved: Arc<Saved> = Arc::default();
    let (mut stopped, mut seen) = (0, Vec::new());
    let removed = loop {
        let (context, _folder) = context(Arc::new(Stops(AtomicU64::new(4))));
        let context = EngineContext {
            checkpoints: saved.clone(),
            ..context
        };
        let terms = CleanupTerms {
            batch_rows: 100,
            full_speed: true,
            ..CleanupTerms::default()
        };
        let archive = Some(&begun.archive as &dyn StreamSource);
        match engine
            .remove(&context, &begun.target, &begun.plan, archive, &terms)
            .await
        {
            Ok(removed) => break removed,
            Err(EngineError::Stopped) => stopped += 1,
            Err(error) => panic!("{error}"),
        }
        seen.push(number(&database, COUNT));
        assert!(stopped < 300, "{seen:?}");
    };
    assert!(stopped >= 4, "{seen:?}");
    assert!(seen.is_sorted_by(|one, next| one > next), "{seen:?}");
    assert_eq!(
        (removed.removed, removed.gone, removed.changed),
        (1997, 0, 3),
        "{removed:?}"
    );
    database
        .psql("DELETE FROM \"Events\" WHERE id IN (2100, 2600, 3900)")
        .unwrap();
    let saved: Arc<Saved> = Arc::default();
    let mut stopped = 0;
    let undone = loop {
        let (context, _folder) = context(Arc::new(Stops(AtomicU64::new(1))));
        let context = EngineContext {
            checkpoints: saved.clone(),
            ..context
        };
        let undo = engine.undo(
            &context,
            &begun.target,
            &begun.plan,
            &begun.archive,
            JobId::new(),
            false,
        );
        match undo.await {
            Ok(undone) => break undone,
            Err(EngineError::Stopped) => stopped += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(stopped < 20);
    };
    assert!(stopped >= 2, "{stopped}");
    assert_eq!(undone.restored + undone.there, 2000, "{undone:?}");
    assert_eq!(database.psql(SUM).unwrap(), before);
}
