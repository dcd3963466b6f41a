//! Points in time: the oplog behind a backup is archived, and brings the backup to any moment.
//!
//! How many random moments are tried is `FETTLER_MOMENTS` (5 where it is not set).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use fettler_engine::{
    ArchiveStart, BackupReport, ChangeSource, DatabaseEngine as _, EngineError, RestoreOptions,
    RestoreReport, StreamReader,
    testing::{MemoryChanges, MemoryLog, MemorySource},
};
use fettler_model::{
    BackupId, Base, GapCause, JobId, LogMoment, LogPosition, NoMoment, Plan, Restorable, Timeline,
    Timestamp,
};
use fettler_test_servers::{MongodbClient, MongodbKind, MongodbServer};
use futures::StreamExt as _;
use rand::RngExt as _;
use tokio::task::JoinHandle;

use crate::common::{Attempt, ENGINE, back_up, client, orders, server, target};

fn with_oplog() -> MongodbServer {
    server(MongodbKind::WithOplog)
}

/// An archive that runs beside a test.
struct Archiving {
    log: Arc<MemoryLog>,
    attempt: Attempt,
    running: JoinHandle<Result<(), EngineError>>,
}

impl Archiving {
    fn begin(url: &str, start: ArchiveStart) -> Self {
        Self::go_on(url, start, Arc::default())
    }

    fn go_on(url: &str, start: ArchiveStart, log: Arc<MemoryLog>) -> Self {
        let attempt = Attempt::new();
        let (context, sink, source) = (attempt.context.clone(), log.clone(), target(url));
        let running =
            tokio::spawn(async move { ENGINE.archive(&context, &source, &start, &*sink).await });
        Self {
            log,
            attempt,
            running,
        }
    }

    /// Waits until everything up to now is archived.
    async fn caught_up(&self) {
        let now = Timestamp::now();
        let began = std::time::Instant::now();
        while !self
            .log
            .batches()
            .iter()
            .any(|batch| batch.moments.last().is_some_and(|last| last.last() > now))
        {
            assert!(!self.running.is_finished(), "the archive has ended");
            assert!(began.elapsed() < Duration::from_secs(60), "nothing comes");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn end(self) -> Arc<MemoryLog> {
        self.attempt.context.stop.cancel();
        let outcome = self.running.await.unwrap();
        assert!(matches!(outcome, Err(EngineError::Stopped)), "{outcome:?}");
        self.log
    }
}

/// Where the next attempt begins.
fn behind(log: &MemoryLog, base: Option<&Base>) -> ArchiveStart {
    let batches = log.batches();
    let last = batches.last().unwrap();
    ArchiveStart {
        end: Some(LogPosition {
            history: last.history.clone(),
            offset: last.end(),
        }),
        base: base.map(Base::needs),
        last_moment: batches
            .iter()
            .rev()
            .find_map(|batch| batch.moments.last().copied()),
    }
}

/// A backup to play on.
struct Based {
    backup: MemorySource,
    report: BackupReport,
    base: Base,
}

impl Based {
    async fn of(url: &str) -> Self {
        let (backup, report) = back_up(url).await;
        let base = Base {
            backup: BackupId::of_job(JobId::new()),
            position: ENGINE.log_position(&report).expect("a position"),
            since: ENGINE.changes_since(&report).expect("a beginning"),
        };
        Self {
            backup,
            report,
            base,
        }
    }

    fn start(&self) -> ArchiveStart {
        ArchiveStart {
            base: Some(self.base.needs()),
            ..ArchiveStart::default()
        }
    }
}

fn plan(log: &MemoryLog, bases: &[Base], at: Timestamp) -> Result<Plan, NoMoment> {
    let (spans, moments) = log.spans();
    // The timeline borrows what it is given.
    let moments: &'static [Vec<LogMoment>] = moments.leak();
    Timeline::new(spans.leak(), bases).plan(at, &|span| &moments[span])
}

fn restorable(log: &MemoryLog, bases: &[Base]) -> Restorable {
    let (spans, moments) = log.spans();
    let moments: &'static [Vec<LogMoment>] = moments.leak();
    Timeline::new(spans.leak(), bases).restorable(&|span| &moments[span])
}

fn last_moment(log: &MemoryLog, base: &Base) -> Timestamp {
    restorable(log, std::slice::from_ref(base))
        .whole
        .unwrap()
        .until
}

async fn try_restore_to(
    log: &MemoryLog,
    based: &Based,
    at: Timestamp,
    to: &str,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    let plan = plan(log, std::slice::from_ref(&based.base), at).expect("a moment");
    ENGINE
        .restore_to_moment(
            &Attempt::new().context,
            &based.backup,
            &based.report,
            &log.changes(&plan),
            &target(to),
            options,
        )
        .await
}

async fn restore_to(
    log: &MemoryLog,
    based: &Based,
    at: Timestamp,
    copy: &MongodbServer,
) -> RestoreReport {
    let options = RestoreOptions {
        overwrite: true,
        ..RestoreOptions::default()
    };
    let report = try_restore_to(log, based, at, &copy.url(), &options)
        .await
        .unwrap();
    assert_eq!(report.failed_statements, Vec::<String>::new());
    assert!(
        !report
            .warnings
            .iter()
            .any(|warning| warning.code == "mongodb.missing_documents"),
        "{:?}",
        report.warnings
    );
    report
}

/// Whether a restore says that it left a collection alone which was not in the backup, and names it.
fn left_alone(report: &RestoreReport, place: &str) -> bool {
    report
        .warnings
        .iter()
        .any(|warning| warning.code == "mongodb.left_alone" && warning.message.contains(place))
}

fn only(name: &str) -> RestoreOptions {
    RestoreOptions {
        only: vec![name.to_owned()],
        ..RestoreOptions::default()
    }
}

/// A write, and what its client saw of it.
#[derive(Clone, Debug)]
struct Written {
    began: Timestamp,
    acknowledged: Timestamp,
    number: i32,
    /// What became of a document.
    id: i32,
    document: Option<Document>,
}

/// Inserts, replaces, modifies and removes documents until it is told to stop.
fn write_until(port: u16, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<Written>> {
    std::thread::spawn(move || {
        let mut client = MongodbClient::new(port);
        let mut there: BTreeMap<i32, Document> = BTreeMap::new();
        let mut written = Vec::new();
        let mut rng = rand::rng();
        let mut number = 0;
        while !stop.load(Relaxed) {
            number += 1;
            let old = there
                .keys()
                .nth(rng.random_range(0..there.len().max(1)))
                .copied();
            let began = Timestamp::now();
            let (id, document) = match (rng.random_range(0..10), old) {
                (0..=3, _) | (_, None) => {
                    let document =
                        doc! { "_id": number, "n": number, "tags": ["a"], "deep": { "x": 0 } };
                    client.insert("shop", "items", [document.clone()]);
                    (number, Some(document))
                }
                (4..=5, Some(id)) => {
                    let document = doc! { "_id": id, "replaced": number, "deep": { "x": 1 } };
                    client.update("shop", "items", doc! { "_id": id }, document.clone());
                    (id, Some(document))
                }
                (6..=7, Some(id)) => {
                    let set = doc! { "$set": { "deep.x": number, "set": number } };
                    client.update("shop", "items", doc! { "_id": id }, set);
                    let mut document = there[&id].clone();
                    document
                        .get_document_mut("deep")
                        .unwrap()
                        .insert("x", number);
                    document.insert("set", number);
                    (id, Some(document))
                }
                (8, Some(id)) => {
                    let unset = doc! { "$unset": { "set": true }, "$set": { "n": number } };
                    client.update("shop", "items", doc! { "_id": id }, unset);
                    let mut document = there[&id].clone();
                    document.remove("set");
                    document.insert("n", number);
                    (id, Some(document))
                }
                (_, Some(id)) => {
                    client.delete("shop", "items", doc! { "_id": id });
                    (id, None)
                }
            };
            written.push(Written {
                began,
                acknowledged: Timestamp::now(),
                number,
                id,
                document: document.clone(),
            });
            match document {
                Some(document) => there.insert(id, document),
                None => there.remove(&id),
            };
            std::thread::sleep(Duration::from_micros(
                number.cast_unsigned() as u64 % 7 * 700,
            ));
        }
        written
    })
}

/// What there was after the first so many writes. The order of fields is compared by other tests.
fn after(written: &[Written], count: usize) -> BTreeMap<i32, BTreeMap<String, Bson>> {
    let mut there = BTreeMap::new();
    for one in &written[..count] {
        match &one.document {
            Some(document) => there.insert(one.id, fields(document)),
            None => there.remove(&one.id),
        };
    }
    there
}

fn fields(document: &Document) -> BTreeMap<String, Bson> {
    document
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn items(server: &MongodbServer) -> BTreeMap<i32, BTreeMap<String, Bson>> {
    client(server)
        .all("shop", "items")
        .iter()
        .map(|document| (document.get_i32("_id").unwrap(), fields(document)))
        .collect()
}

/// The millisecond that a time lies in.
fn whole_millis(at: i64) -> Timestamp {
    Timestamp::from_micros(at / 1000 * 1000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_moments_hold_exactly_what_was_acknowledged_up_to_them() {
    let (source, copy) = (with_oplog(), with_oplog());
    client(&source).insert("shop", "orders", orders(0, 50));
    let based = Based::of(&source.url()).await;
    let archive = Archiving::begin(&source.url(), based.start());
    archive.caught_up().await;
    let stop = Arc::new(AtomicBool::new(false));
    let began = Timestamp::now();
    let writer = write_until(source.port(), stop.clone());
    tokio::time::sleep(Duration::from_secs(3)).await;
    // One attempt ends in the middle, and another goes on after a while: nothing is missing.
    let log = archive.end().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = behind(&log, Some(&based.base));
    let archive = Archiving::go_on(&source.url(), start, log);
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Relaxed);
    let written = writer.join().unwrap();
    let ended = Timestamp::now();
    archive.caught_up().await;
    let log = archive.end().await;
    assert!(log.batches()[1..].iter().all(|batch| batch.continues));
    assert!(written.len() > 50, "{}", written.len());
    let told = restorable(&log, std::slice::from_ref(&based.base));
    assert_eq!(told.gaps, [], "each moment can be told");

    let tries: u32 = std::env::var("FETTLER_MOMENTS")
        .ok()
        .and_then(|number| number.parse().ok())
        .unwrap_or(5);
    let mut seen = Vec::new();
    for attempt in 0..tries {
        let micros = rand::rng().random_range(began.micros()..=ended.micros());
        let at = whole_millis(micros);
        let report = restore_to(&log, &based, at, &copy).await;
        let acknowledged = written.iter().filter(|one| one.acknowledged <= at).count();
        let begun = written.iter().filter(|one| one.began < at).count();
        // Before the first write there was no such collection: what an earlier try has left stays.
        let found = if left_alone(&report, "shop.items") {
            BTreeMap::new()
        } else {
            items(&copy)
        };
        let fits = (acknowledged..=begun).find(|count| after(&written, *count) == found);
        let Some(fits) = fits else {
            let nearest = (0..=written.len()).find(|count| after(&written, *count) == found);
            panic!(
                "try {attempt}: at {at} {acknowledged} to {begun} writes are expected, and there are {nearest:?}: {:?}",
                written.get(acknowledged.saturating_sub(1)..(begun + 1).min(written.len()))
            );
        };
        assert!(begun - acknowledged <= 1, "one client writes");
        assert_eq!(client(&copy).count("shop", "orders"), 50);
        seen.push(fits);
    }
    println!("{tries} moments, {} writes: {seen:?}", written.len());
    assert!(written.iter().map(|one| one.number).is_sorted());
    assert!(seen.iter().any(|count| *count > 0), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_came_after_the_moment_is_left_alone_and_named() {
    let (source, copy) = (with_oplog(), with_oplog());
    let mut writer = client(&source);
    writer.insert("shop", "orders", orders(0, 3));
    let based = Based::of(&source.url()).await;
    let archive = Archiving::begin(&source.url(), based.start());
    archive.caught_up().await;
    let before = Timestamp::now();
    writer.insert("shop", "later", [doc! { "_id": 1 }]);
    archive.caught_up().await;
    let log = archive.end().await;

    let now = last_moment(&log, &based.base);
    assert!(!left_alone(
        &restore_to(&log, &based, now, &copy).await,
        "shop."
    ));
    let report = restore_to(&log, &based, before, &copy).await;
    assert!(
        left_alone(&report, "shop.later"),
        "it was there already: {:?}",
        report.warnings
    );
    assert_eq!(client(&copy).count("shop", "later"), 1);
    assert_eq!(client(&copy).count("shop", "orders"), 3);
}

/// Removes what the oplog has, as a server does whose oplog is too small. This one puts new entries where the removed ones were
/// first: others fill these places, so that its order is that of time again from there on.
fn forget_the_oplog(writer: &mut MongodbClient) {
    let all = writer.list("local", doc! { "find": "oplog.rs" }).len();
    writer.run(
        "local",
        doc! { "delete": "oplog.rs", "deletes": [{ "q": {}, "limit": 0 }] },
    );
    writer.insert(
        "other",
        "filling",
        (0..all as i32).map(|n| doc! { "_id": n }),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oplog_that_rolled_over_leaves_a_gap_that_is_told() {
    let source = with_oplog();
    let mut writer = client(&source);
    writer.insert("shop", "items", [doc! { "_id": 1 }]);
    let before = Based::of(&source.url()).await;
    let archive = Archiving::begin(&source.url(), before.start());
    archive.caught_up().await;
    writer.insert("shop", "items", [doc! { "_id": 2 }]);
    archive.caught_up().await;
    let log = archive.end().await;
    let lost_from = last_moment(&log, &before.base);
    // Nobody archives, and the oplog is too small for what is written.
    writer.insert("shop", "items", [doc! { "_id": 3 }]);
    forget_the_oplog(&mut writer);
    writer.insert("shop", "items", [doc! { "_id": 4 }]);
    let start = behind(&log, Some(&before.base));
    let archive = Archiving::go_on(&source.url(), start, log);
    archive.caught_up().await;
    let after = Based::of(&source.url()).await;
    writer.insert("shop", "items", [doc! { "_id": 5 }]);
    archive.caught_up().await;
    let log = archive.end().await;

    let bases = [before.base.clone(), after.base.clone()];
    let told = restorable(&log, &bases);
    assert_eq!(told.gaps.len(), 1, "{told:?}");
    let gap = told.gaps[0];
    assert_eq!((gap.cause, gap.from), (GapCause::ChangesLost, lost_from));
    let middle = Timestamp::from_micros(i64::midpoint(gap.from.micros(), gap.until.micros()));
    let near = plan(&log, &bases, middle).unwrap_err();
    assert_eq!((near.before, near.after), (Some(gap.from), Some(gap.until)));
    // Each side of the gap comes back from its own backup.
    let copy = with_oplog();
    for (based, at, expected) in [
        (&before, gap.from, vec![1, 2]),
        (&after, told.whole.unwrap().until, vec![1, 2, 3, 4, 5]),
    ] {
        restore_to(&log, based, at, &copy).await;
        assert_eq!(items(&copy).into_keys().collect::<Vec<_>>(), expected);
    }
}

/// Changes whose reading fails after so many bytes, but for the first time.
struct Failing {
    changes: MemoryChanges,
    after_bytes: usize,
    readings: AtomicU32,
}

#[async_trait]
impl ChangeSource for Failing {
    fn begin(&self) -> u64 {
        self.changes.begin()
    }

    fn end(&self) -> u64 {
        self.changes.end()
    }

    async fn read(&self) -> Result<StreamReader, EngineError> {
        let pieces = self.changes.read().await?;
        if self.readings.fetch_add(1, Relaxed) == 0 {
            return Ok(pieces);
        }
        let lost = futures::stream::once(async {
            Err(EngineError::Unreachable {
                server: "the store".to_owned(),
                what: "it went away".to_owned(),
            })
        });
        // Pieces are of 1000 bytes.
        Ok(pieces.take(self.after_bytes / 1000).chain(lost).boxed())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_restore_to_a_moment_goes_on_where_the_last_attempt_was_lost() {
    let (source, copy) = (with_oplog(), with_oplog());
    let mut writer = client(&source);
    writer.insert(
        "shop",
        "items",
        (0..200).map(|n| doc! { "_id": n, "a": { "b": n }, "list": [1, 2] }),
    );
    writer.insert("shop", "old", orders(0, 20));
    let based = Based::of(&source.url()).await;
    let archive = Archiving::begin(&source.url(), based.start());
    for n in 0..700 {
        let id = n % 200;
        match n % 5 {
            0 => writer.delete("shop", "items", doc! { "_id": id }),
            1 => writer.insert("shop", "items", [doc! { "_id": 1000 + n, "a": { "b": n } }]),
            _ => writer.update(
                "shop",
                "items",
                doc! { "_id": id },
                doc! { "$set": { "a.b": n, "list.1": n, format!("f{}", n % 3): n } },
            ),
        }
        if n == 300 {
            writer.run("shop", doc! { "drop": "old" });
        }
        if n == 400 {
            writer.insert("shop", "old", [doc! { "_id": "new" }]);
        }
    }
    archive.caught_up().await;
    let log = archive.end().await;
    let at = last_moment(&log, &based.base);
    let plan = plan(&log, std::slice::from_ref(&based.base), at).unwrap();
    let attempt = Attempt::new();
    let options = RestoreOptions::default();
    let mut reached = Vec::new();
    for (number, after_bytes) in [(1, 1000), (2, 70_000), (3, 95_000)] {
        let changes = Failing {
            changes: log.changes(&plan),
            after_bytes,
            readings: AtomicU32::new(0),
        };
        let lost = ENGINE
            .restore_to_moment(
                &attempt.next(number),
                &based.backup,
                &based.report,
                &changes,
                &target(&copy.url()),
                &options,
            )
            .await;
        assert!(
            matches!(lost, Err(EngineError::Unreachable { .. })),
            "{lost:?}"
        );
        reached.push(attempt.record.checkpoint().unwrap()["played"].as_u64());
    }
    assert!(reached[0].is_none() && reached[1].is_some(), "{reached:?}");
    ENGINE
        .restore_to_moment(
            &attempt.next(4),
            &based.backup,
            &based.report,
            &log.changes(&plan),
            &target(&copy.url()),
            &options,
        )
        .await
        .unwrap();
    for name in ["items", "old"] {
        assert_eq!(
            client(&copy).all("shop", name),
            writer.all("shop", name),
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_comes_back_and_a_database_under_another_name() {
    let (source, copy) = (with_oplog(), with_oplog());
    let mut writer = client(&source);
    writer.insert("shop", "orders", orders(0, 10));
    writer.insert("web", "log", [doc! { "_id": 1 }]);
    writer.run(
        "shop",
        doc! { "createIndexes": "orders", "indexes": [{ "key": { "note": 1 }, "name": "note", "unique": true }] },
    );
    let based = Based::of(&source.url()).await;
    let archive = Archiving::begin(&source.url(), based.start());
    writer.insert("shop", "orders", orders(10, 20));
    writer.insert("shop", "made", [doc! { "_id": 1 }]);
    writer.insert("web", "log", [doc! { "_id": 2 }]);
    // What is unique goes from one document to the other.
    let note = writer.all("shop", "orders")[0].clone();
    let id = note.get("_id").unwrap().clone();
    writer.update(
        "shop",
        "orders",
        doc! { "_id": id },
        doc! { "$set": { "note": "free" } },
    );
    writer.insert(
        "shop",
        "orders",
        [doc! { "_id": 900, "note": note.get_str("note").unwrap() }],
    );
    archive.caught_up().await;
    let log = archive.end().await;
    let at = last_moment(&log, &based.base);

    // One collection alone.
    try_restore_to(&log, &based, at, &copy.url(), &only("shop.orders"))
        .await
        .unwrap();
    let mut copied = client(&copy);
    assert_eq!(copied.collections("shop"), ["orders"]);
    assert_eq!(copied.all("shop", "orders"), writer.all("shop", "orders"));
    let indexes = copied.list("shop", doc! { "listIndexes": "orders" });
    assert!(
        indexes
            .iter()
            .any(|index| index.get_str("name").is_ok_and(|name| name == "note")),
        "{indexes:?}"
    );
    // What is there is not written over, also where only the oplog has it.
    copied.run("shop", doc! { "drop": "orders" });
    copied.insert("shop", "made", [doc! { "_id": "precious" }]);
    let refused = try_restore_to(&log, &based, at, &copy.url(), &only("shop")).await;
    assert!(
        matches!(refused, Err(EngineError::NotEmpty { .. })),
        "{refused:?}"
    );
    assert_eq!(copied.collections("shop"), ["made"]);
    // A database under another name.
    let renamed = format!("{}shop_of_yesterday", copy.url());
    try_restore_to(&log, &based, at, &renamed, &only("shop"))
        .await
        .unwrap();
    for name in ["orders", "made"] {
        assert_eq!(
            copied.all("shop_of_yesterday", name),
            writer.all("shop", name)
        );
    }
    // Two do not fit into one.
    let two = try_restore_to(&log, &based, at, &renamed, &RestoreOptions::default()).await;
    assert!(matches!(two, Err(EngineError::Missing { .. })), "{two:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_archived_or_played_is_refused_with_the_remedy() {
    let source = with_oplog();
    client(&source).insert("shop", "items", [doc! { "_id": 1, "n": 1 }]);
    let archive = async |url: &str| {
        ENGINE
            .archive(
                &Attempt::new().context,
                &target(url),
                &ArchiveStart::default(),
                &MemoryLog::default(),
            )
            .await
    };
    let narrowed = archive(&format!("{}shop", source.url())).await;
    assert!(
        matches!(narrowed, Err(EngineError::Missing { code: "url", .. })),
        "{narrowed:?}"
    );
    let without = server(MongodbKind::OnDisk);
    match archive(&without.url()).await {
        Err(EngineError::Missing { code, remedy, .. }) => {
            assert_eq!(code, "oplog");
            assert!(remedy.contains("replica set"), "{remedy}");
        }
        other => panic!("{other:?}"),
    }
    // A backup of a part is no base.
    let (_, report) = back_up(&format!("{}shop", source.url())).await;
    assert_eq!(ENGINE.log_position(&report), None);

    // This server writes operators as they were sent, which only MongoDB's own never does: nothing is guessed, nothing touched.
    let based = Based::of(&source.url()).await;
    let running = Archiving::begin(&source.url(), based.start());
    let mut writer = client(&source);
    writer.update(
        "shop",
        "items",
        doc! { "_id": 1 },
        doc! { "$inc": { "n": 1 } },
    );
    running.caught_up().await;
    let log = running.end().await;
    let copy = with_oplog();
    let at = last_moment(&log, &based.base);
    let refused = try_restore_to(&log, &based, at, &copy.url(), &RestoreOptions::default()).await;
    match refused {
        Err(EngineError::Unusable { what, remedy }) => {
            assert!(what.contains("shop.items"), "{what}");
            assert!(remedy.contains("--only"), "{remedy}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!client(&copy).databases().contains(&"shop".to_owned()));
}

/// Documents that a proof's sandbox writes on the same server are no changes of the databases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_beside_it_leaves_nothing_in_the_archive() {
    let source = with_oplog();
    client(&source).insert("shop", "items", orders(0, 300));
    let based = Based::of(&source.url()).await;
    let archive = Archiving::begin(&source.url(), based.start());
    archive.caught_up().await;
    let wrong = crate::common::prove(&based.backup, &based.report, &source).await;
    assert_eq!(wrong, Vec::<String>::new());
    client(&source).insert("shop", "items", [doc! { "_id": 1000 }]);
    archive.caught_up().await;
    let log = archive.end().await;
    let bytes: usize = log.batches().iter().map(|batch| batch.bytes.len()).sum();
    assert!((1..2000).contains(&bytes), "{bytes}");
}
