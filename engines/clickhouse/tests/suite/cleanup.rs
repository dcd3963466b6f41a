//! Cleanup of partitions and of detached parts: what goes, what stays and why, what comes back.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use fettler_engine::{
    Cleanup as _, CleanupRequest, CleanupTerms, EngineError,
    testing::{MemorySink, MemorySource},
};
use fettler_model::{
    CleanupAction, CleanupPlan, CleanupRemoved, CleanupUndone, JobId, ObjectFacts,
};
use fettler_test_servers::{ClickhouseServer, ClickhouseVersion};
use rstest::rstest;

use crate::common::{Attempt, V18, V26, engine, front, left_behind, run, server, target};

const DAY: u64 = 86_400;
/// All of the table, in an order of its own.
const CONTENT: &str = "SELECT count(), groupBitXor(sipHash64(*)), sum(twice) FROM shop.events";

fn partitions(table: &str, column: Option<&str>) -> CleanupAction {
    CleanupAction::Partitions {
        table: table.to_owned(),
        column: column.map(str::to_owned),
        older_than_seconds: 90 * DAY,
    }
}

fn detached(only: &[&str], older_than_seconds: u64, by_hand: bool) -> CleanupAction {
    CleanupAction::DetachedParts {
        only: only.iter().map(|&one| one.to_owned()).collect(),
        older_than_seconds,
        by_hand,
    }
}

/// Days `p1`, `p2` and `p3` are old, `p4` is young, `p5` is both.
const EVENTS: [&str; 8] = [
    "CREATE DATABASE shop",
    "CREATE TABLE shop.events (day Date, at DateTime, part String, id UInt64, note String, twice UInt64 MATERIALIZED id * 2) ENGINE = MergeTree PARTITION BY part ORDER BY id",
    "INSERT INTO shop.events (day, at, part, id, note) SELECT today() - 100, now() - 100 * 86400, 'p1', number, toString(number) FROM numbers(500)",
    "INSERT INTO shop.events (day, at, part, id, note) SELECT today() - 200, now() - 200 * 86400 - number, 'p1', number, 'é' FROM numbers(500)",
    "INSERT INTO shop.events (day, at, part, id, note) SELECT today() - 101, now() - 101 * 86400, 'p2', number, toString(number) FROM numbers(300)",
    "INSERT INTO shop.events (day, at, part, id, note) SELECT today() - 102, now() - 102 * 86400, 'p3', number, toString(number) FROM numbers(200)",
    "INSERT INTO shop.events (day, at, part, id, note) SELECT today() - 1, now() - 86400, 'p4', number, toString(number) FROM numbers(100)",
    "INSERT INTO shop.events (day, at, part, id, note) SELECT today() - 100 * (number % 2), now() - 100 * 86400 * (number % 2), 'p5', number, '' FROM numbers(100)",
];

fn events(server: &ClickhouseServer) {
    run(server, &EVENTS);
    run(server, &["SYSTEM STOP MERGES shop.events"]);
}

struct Job {
    attempt: Attempt,
    url: String,
    plan: CleanupPlan,
    archive: MemorySource,
    objects: Vec<ObjectFacts>,
}

async fn plan(url: &str, what: CleanupAction) -> Result<CleanupPlan, EngineError> {
    let request = CleanupRequest {
        what,
        archive: true,
    };
    engine()
        .plan(&Attempt::new().context, &target(url), &request)
        .await
}

impl Job {
    async fn begin(url: &str, what: CleanupAction) -> Self {
        let plan = plan(url, what).await.unwrap();
        assert_eq!(plan.refusals, []);
        let (attempt, sink) = (Attempt::new(), MemorySink::default());
        let archived = engine()
            .archive(&attempt.context, &target(url), &plan, &sink)
            .await
            .unwrap();
        assert_eq!(archived.rows, plan.rows());
        let job = Self {
            attempt,
            url: url.to_owned(),
            plan,
            archive: sink.source(),
            objects: archived.objects,
        };
        job.prove(&job.archive).await.unwrap();
        job
    }

    async fn prove(&self, archive: &MemorySource) -> Result<(), EngineError> {
        engine()
            .prove(&self.attempt.context, &self.plan, archive, &self.objects)
            .await
    }

    async fn remove(&self, url: &str, attempt: u32) -> Result<CleanupRemoved, EngineError> {
        engine()
            .remove(
                &self.attempt.next(attempt),
                &target(url),
                &self.plan,
                Some(&self.archive),
                &CleanupTerms::default(),
            )
            .await
    }

    async fn try_undo(&self, url: &str, dry_run: bool) -> Result<CleanupUndone, EngineError> {
        engine()
            .undo(
                &Attempt::new().context,
                &target(url),
                &self.plan,
                &self.archive,
                self.attempt.job,
                dry_run,
            )
            .await
    }

    async fn undo(&self, dry_run: bool) -> CleanupUndone {
        self.try_undo(&self.url, dry_run).await.unwrap()
    }
}

fn ask(server: &ClickhouseServer, statement: &str) -> String {
    server.query(statement).unwrap()
}

/// The partitions with their rows.
fn parts(server: &ClickhouseServer) -> String {
    ask(
        server,
        "SELECT groupArray(concat(part, ' ', toString(rows))) FROM (SELECT part, count() AS rows FROM shop.events GROUP BY part ORDER BY part)",
    )
}

/// Tables that a cleanup has left.
fn left(server: &ClickhouseServer) -> String {
    ask(
        server,
        "SELECT database, name FROM system.tables WHERE name LIKE 'fettler%' OR database LIKE 'fettler%'",
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_partitions_go_once_and_come_back_as_they_were() {
    let server = server(V26);
    events(&server);
    run(
        &server,
        &[
            "CREATE TABLE shop.totals (n UInt64) ENGINE = MergeTree ORDER BY n",
            "CREATE MATERIALIZED VIEW shop.to_totals TO shop.totals AS SELECT id AS n FROM shop.events",
        ],
    );
    let before = ask(&server, CONTENT);
    let job = Job::begin(&server.url(), partitions("events", Some("at"))).await;
    let names: Vec<&str> = job
        .plan
        .items
        .iter()
        .map(|item| item.name.as_str())
        .collect();
    assert_eq!(names.len(), 3, "{:?}", job.plan);
    assert_eq!(job.plan.rows(), 1500);
    assert!(job.plan.bytes() > 0 && job.plan.can_be_undone);
    assert!(
        job.plan.items[0].oldest < job.plan.items[0].newest
            || job.plan.items[1].oldest < job.plan.items[1].newest
            || job.plan.items[2].oldest < job.plan.items[2].newest
    );
    assert!(
        job.plan.depends[0].contains("shop.to_totals"),
        "{:?}",
        job.plan
    );
    assert_eq!(ask(&server, CONTENT), before, "a plan changes nothing");
    assert_eq!(left(&server), "");

    let removed = job.remove(&job.url, 1).await.unwrap();
    assert_eq!(
        (removed.removed, removed.stayed(), removed.gone),
        (3, 0, 0),
        "{removed:?}"
    );
    assert_eq!(parts(&server), "['p4 100','p5 100']\n");
    assert_eq!(left(&server), "");
    let again = plan(&job.url, partitions("shop.events", Some("day")))
        .await
        .unwrap();
    assert_eq!(again.items, []);

    assert_eq!(job.undo(true).await.restored, 1500);
    assert_eq!(parts(&server), "['p4 100','p5 100']\n");
    let undone = job.undo(false).await;
    assert_eq!(
        (undone.restored, undone.skipped, undone.notes),
        (1500, vec![], vec![])
    );
    assert_eq!(ask(&server, CONTENT), before);
    assert_eq!(
        ask(&server, "SELECT count() FROM shop.totals"),
        "0\n",
        "no view sees it"
    );
    let twice = job.undo(false).await;
    assert_eq!((twice.restored, twice.there), (0, 1500), "{twice:?}");
    assert_eq!(ask(&server, CONTENT), before);
    assert_eq!(left(&server), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_since_the_plan_stays() {
    let server = server(V26);
    events(&server);
    let job = Job::begin(&server.url(), partitions("shop.events", Some("at"))).await;
    run(
        &server,
        &[
            // One more row, which is old itself; a value of one row; a partition that somebody drops.
            "INSERT INTO shop.events (day, at, part, id, note) SELECT today() - 300, now() - 300 * 86400, 'p1', 1, 'more'",
            "SYSTEM START MERGES shop.events",
            "ALTER TABLE shop.events UPDATE note = 'another' WHERE part = 'p2' AND id = 7 SETTINGS mutations_sync = 2",
            "ALTER TABLE shop.events DROP PARTITION 'p3'",
        ],
    );
    let before = ask(&server, CONTENT);
    let removed = job.remove(&job.url, 1).await.unwrap();
    assert_eq!(
        (removed.removed, removed.changed, removed.gone),
        (0, 2, 1),
        "{removed:?}"
    );
    assert_eq!(ask(&server, CONTENT), before);
    assert_eq!(left(&server), "");
    assert!(
        removed
            .kept
            .iter()
            .any(|line| line.contains("p1") && line.contains("1001 rows")),
        "{removed:?}"
    );
    assert!(
        removed
            .kept
            .iter()
            .any(|line| line.contains("p2") && line.contains("not what the archive holds")),
        "{removed:?}"
    );

    // A young row that came between the plan and the archive.
    let url = server.url();
    let early = plan(&url, partitions("shop.events", Some("at")))
        .await
        .unwrap();
    run(
        &server,
        &[
            "INSERT INTO shop.events (day, at, part, id, note) SELECT today(), now(), 'p2', 1, 'new'",
        ],
    );
    let (attempt, sink) = (Attempt::new(), MemorySink::default());
    engine()
        .archive(&attempt.context, &target(&url), &early, &sink)
        .await
        .unwrap();
    let archive = sink.source();
    let removed = engine()
        .remove(
            &attempt.context,
            &target(&url),
            &early,
            Some(&archive),
            &CleanupTerms::default(),
        )
        .await
        .unwrap();
    assert_eq!((removed.removed, removed.changed), (1, 1), "{removed:?}");
    assert!(removed.kept[0].contains("not older"), "{removed:?}");
    assert_eq!(parts(&server), "['p2 301','p4 100','p5 100']\n");

    // The undo adds what is missing, and leaves what is there.
    let undone = job.undo(false).await;
    assert_eq!(
        (undone.restored, undone.there),
        (1000 + 1 + 200, 299),
        "{undone:?}"
    );
    assert_eq!(
        parts(&server),
        "['p1 1000','p2 302','p3 200','p4 100','p5 100']\n"
    );
    assert_eq!(left(&server), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_attempt_left_aside_is_taken_up_and_nothing_of_it_is_lost() {
    let server = server(V26);
    events(&server);
    let before = ask(&server, CONTENT);
    let job = Job::begin(&server.url(), partitions("shop.events", Some("at"))).await;
    // Dead between the step aside and the last look: once with what the archive holds, once with a row that came in between.
    let aside = |number: usize| {
        format!(
            "shop.fettler_cleanup_{}_{number}",
            job.attempt.job.uuid().simple()
        )
    };
    let shown: Vec<String> = job
        .plan
        .items
        .iter()
        .map(|item| item.name.clone())
        .collect();
    let number = |name: &str| shown.iter().position(|shown| shown.contains(name)).unwrap();
    let id = |name: &str| {
        ask(
            &server,
            &format!("SELECT any(_partition_id) FROM shop.events WHERE part = '{name}'"),
        )
        .trim()
        .to_owned()
    };
    let (first, second) = (id("p1"), id("p2"));
    run(
        &server,
        &[
            "INSERT INTO shop.events (day, at, part, id, note) SELECT today() - 300, now() - 300 * 86400, 'p2', 1, 'late'",
        ],
    );
    for (name, id) in [("p1", &first), ("p2", &second)] {
        let table = aside(number(name));
        run(
            &server,
            &[
                &format!("CREATE TABLE {table} AS shop.events"),
                &format!("ALTER TABLE shop.events MOVE PARTITION ID '{id}' TO TABLE {table}"),
            ],
        );
    }
    let removed = job.remove(&job.url, 2).await.unwrap();
    assert_eq!((removed.removed, removed.changed), (2, 1), "{removed:?}");
    assert_eq!(parts(&server), "['p2 301','p4 100','p5 100']\n");
    assert_eq!(left(&server), "");
    // Once more does nothing, whatever is there now.
    run(
        &server,
        &[
            "INSERT INTO shop.events (day, at, part, id, note) SELECT today() - 300, now() - 300 * 86400, 'p3', 1, 'again'",
        ],
    );
    job.remove(&job.url, 3).await.unwrap();
    assert_eq!(parts(&server), "['p2 301','p3 1','p4 100','p5 100']\n");

    // A cleanup that never went on: the undo gives back what waits beside the table.
    let table = aside(number("p2"));
    run(
        &server,
        &[
            "SYSTEM START MERGES shop.events",
            "ALTER TABLE shop.events DELETE WHERE note IN ('late', 'again') SETTINGS mutations_sync = 2",
            &format!("CREATE TABLE {table} AS shop.events"),
            &format!("ALTER TABLE shop.events MOVE PARTITION ID '{second}' TO TABLE {table}"),
        ],
    );
    let undone = job.undo(false).await;
    assert_eq!((undone.restored, undone.there), (1200, 300), "{undone:?}");
    assert_eq!(ask(&server, CONTENT), before);
    assert_eq!(left(&server), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_broke_off_goes_on_and_a_bad_archive_removes_nothing() {
    let server = server(V26);
    events(&server);
    let before = ask(&server, CONTENT);
    let job = Job::begin(&server.url(), partitions("shop.events", Some("at"))).await;
    let fails = Arc::new(AtomicBool::new(true));
    let is_broken = Arc::clone(&fails);
    // The look at what stands aside fails.
    let url = front(&server, move |statement| {
        let is_it = statement.contains("sipHash128") && statement.contains("fettler_cleanup_");
        (is_it && is_broken.load(Ordering::Relaxed)).then(|| (503, "gone".to_owned()))
    });
    job.remove(&url, 1).await.unwrap_err();
    assert_eq!(
        ask(&server, CONTENT),
        before,
        "what could not be looked at is back"
    );
    assert_eq!(left(&server), "");
    fails.store(false, Ordering::Relaxed);
    let removed = job.remove(&url, 2).await.unwrap();
    assert_eq!((removed.removed, removed.stayed()), (3, 0), "{removed:?}");

    // Bytes that were damaged on the way to the archive and are told as they came: the server makes other rows of them.
    run(&server, &["DROP DATABASE shop"]);
    events(&server);
    let plan = plan(&job.url, partitions("shop.events", Some("at")))
        .await
        .unwrap();
    let (attempt, sink) = (Attempt::new(), MemorySink::default());
    let archived = engine()
        .archive(&attempt.context, &target(&job.url), &plan, &sink)
        .await
        .unwrap();
    let damaging = MemorySink::behind(Arc::new(|name: &str, _, bytes: bytes::Bytes| {
        if !name.starts_with("rows/") {
            return bytes;
        }
        let mut bytes = bytes.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        bytes.into()
    }));
    engine()
        .archive(&Attempt::new().context, &target(&job.url), &plan, &damaging)
        .await
        .unwrap();
    let damaged = damaging.source();
    let proven = engine()
        .prove(&attempt.context, &plan, &damaged, &archived.objects)
        .await;
    assert!(
        matches!(proven, Err(EngineError::Unusable { .. })),
        "{proven:?}"
    );
    let before = ask(&server, CONTENT);
    let refused = engine()
        .remove(
            &attempt.context,
            &target(&job.url),
            &plan,
            Some(&damaged),
            &CleanupTerms::default(),
        )
        .await;
    assert!(
        matches!(refused, Err(EngineError::Unusable { .. })),
        "{refused:?}"
    );
    assert_eq!(ask(&server, CONTENT), before);
    assert_eq!(left(&server), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_merge_rows_are_filled_only_where_they_are_empty() {
    let server = server(V26);
    run(
        &server,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.sums (day Date, k UInt64, v Int64) ENGINE = SummingMergeTree PARTITION BY toYYYYMM(day) ORDER BY (day, k)",
            "SYSTEM STOP MERGES shop.sums",
            "INSERT INTO shop.sums SELECT toDate('2020-01-05'), number, 1 FROM numbers(10)",
            "INSERT INTO shop.sums SELECT toDate('2020-01-05'), number, 1 FROM numbers(10)",
            "INSERT INTO shop.sums SELECT toDate('2020-02-05'), number, 1 FROM numbers(10)",
        ],
    );
    let job = Job::begin(&server.url(), partitions("shop.sums", None)).await;
    assert_eq!(job.plan.rows(), 30);
    assert!(job.plan.notes[0].contains("SummingMergeTree"));
    let removed = job.remove(&job.url, 1).await.unwrap();
    assert_eq!(removed.removed, 2, "{removed:?}");
    run(
        &server,
        &["INSERT INTO shop.sums SELECT toDate('2020-02-05'), 1, 5"],
    );
    let undone = job.undo(false).await;
    assert_eq!((undone.restored, undone.taken), (20, 10), "{undone:?}");
    assert_eq!(ask(&server, "SELECT sum(v) FROM shop.sums"), "25\n");
    run(
        &server,
        &[
            "SYSTEM START MERGES shop.sums",
            "OPTIMIZE TABLE shop.sums FINAL",
        ],
    );
    let twice = job.undo(false).await;
    assert_eq!((twice.restored, twice.taken), (0, 30), "{twice:?}");
    assert_eq!(ask(&server, "SELECT sum(v) FROM shop.sums"), "25\n");
    // What is changed stops the undo, and says what is missing.
    run(
        &server,
        &["ALTER TABLE shop.sums DROP COLUMN v SETTINGS alter_sync = 2"],
    );
    let refused = job.try_undo(&job.url, false).await;
    assert!(
        matches!(refused, Err(EngineError::Missing { code: "column", .. })),
        "{refused:?}"
    );
    run(&server, &["DROP TABLE shop.sums"]);
    let refused = job.try_undo(&job.url, false).await;
    assert!(
        matches!(refused, Err(EngineError::Missing { code: "table", .. })),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_refuses_what_has_no_old_partitions() {
    let server = server(V26);
    events(&server);
    run(
        &server,
        &[
            "CREATE TABLE shop.memory (a Date) ENGINE = Memory",
            "CREATE VIEW shop.seen AS SELECT * FROM shop.events",
            "CREATE TABLE shop.nullable (at Nullable(DateTime64(3)), id UInt8) ENGINE = MergeTree PARTITION BY id ORDER BY id",
            "INSERT INTO shop.nullable VALUES ('2001-01-01 00:00:00', 1), (NULL, 2), ('2001-01-01 00:00:00', 2)",
            "CREATE DATABASE other",
            "CREATE TABLE other.events (a Date) ENGINE = MergeTree ORDER BY a",
        ],
    );
    let url = server.url();
    for (what, told) in [
        (partitions("shop.memory", None), "no partitions of its own"),
        (partitions("shop.seen", None), "no partitions of its own"),
        (
            partitions("shop.events", None),
            "not partitioned by one column",
        ),
        (partitions("shop.events", Some("id")), "says no time"),
        (
            partitions("shop.events", Some("nothing")),
            "no column nothing",
        ),
    ] {
        let refused = plan(&url, what.clone()).await.unwrap();
        assert!(
            refused.refusals[0].what.contains(told),
            "{what:?}: {refused:?}"
        );
        assert_eq!(refused.items, []);
    }
    for what in [
        partitions("events", None),
        partitions("shop.nothing", None),
        CleanupAction::TemporaryTables {},
    ] {
        let missing = plan(&url, what).await;
        assert!(
            matches!(missing, Err(EngineError::Missing { .. })),
            "{missing:?}"
        );
    }
    // A row that says no time keeps its partition.
    let some = plan(&url, partitions("shop.nullable", Some("at")))
        .await
        .unwrap();
    assert_eq!(some.items.len(), 1, "{some:?}");
    assert_eq!(some.rows(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_of_2018_is_refused_with_what_it_lacks() {
    let server = server(V18);
    events(&server);
    let before = ask(&server, "SELECT count() FROM shop.events");
    let url = server.url();
    let refused = plan(&url, partitions("shop.events", Some("at")))
        .await
        .unwrap();
    assert!(refused.refusals[0].what.contains("18.16"), "{refused:?}");
    assert!(refused.refusals[0].remedy.contains("DROP PARTITION"));
    let missing = plan(&url, detached(&[], DAY, false)).await;
    assert!(
        matches!(&missing, Err(EngineError::Missing { code: "version", what, .. }) if what.contains("18.16")),
        "{missing:?}"
    );
    assert_eq!(ask(&server, "SELECT count() FROM shop.events"), before);
}

/// The names of detached parts.
fn lying(server: &ClickhouseServer) -> String {
    ask(
        server,
        "SELECT name FROM system.detached_parts ORDER BY name",
    )
}

#[rstest]
#[case(false)]
#[case(true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn detached_parts_go_by_reason_and_age(#[case] by_hand: bool) {
    let server = server(V26);
    let version: ClickhouseVersion = server.version();
    assert_eq!(version, V26);
    run(
        &server,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (p UInt8, a UInt64) ENGINE = MergeTree PARTITION BY p ORDER BY a",
            "CREATE TABLE shop.other (p UInt8, a UInt64) ENGINE = MergeTree PARTITION BY p ORDER BY a",
            "INSERT INTO shop.t SELECT number % 4, number FROM numbers(400)",
            "INSERT INTO shop.other SELECT number % 2, number FROM numbers(100)",
            "ALTER TABLE shop.t DETACH PARTITION 0",
            "ALTER TABLE shop.t DETACH PARTITION 1",
            "ALTER TABLE shop.t DETACH PARTITION 2",
            "ALTER TABLE shop.other DETACH PARTITION 0",
        ],
    );
    // What a server names so by itself, long ago.
    let folder = std::path::PathBuf::from(
        ask(
            &server,
            "SELECT path FROM system.detached_parts WHERE table = 't' AND partition_id = '0'",
        )
        .trim(),
    );
    let detached_folder = folder.parent().unwrap();
    let name = folder.file_name().unwrap().to_str().unwrap();
    let broken = detached_folder.join(format!("broken-on-start_{name}"));
    std::fs::rename(&folder, &broken).unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(40 * DAY);
    let age = |path: &std::path::Path| {
        std::fs::File::open(path)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
    };
    age(&broken);
    let in_work = detached_folder.join("attaching_1_2_2_0");
    std::fs::rename(detached_folder.join("1_2_2_0"), &in_work).unwrap();
    age(&in_work);
    age(&detached_folder.join("2_3_3_0"));
    let url = server.url();
    let what = detached(&["shop.t"], 30 * DAY, by_hand);
    let planned = plan(&url, what.clone()).await.unwrap();
    let names: Vec<&str> = planned
        .items
        .iter()
        .map(|item| item.name.as_str())
        .collect();
    let expected: Vec<String> = ["2_3_3_0".to_owned(), format!("broken-on-start_{name}")]
        .iter()
        .filter(|name| by_hand || name.starts_with("broken"))
        .map(|name| format!("shop.t/{name}"))
        .collect();
    assert_eq!(names, expected, "{planned:?}");
    assert!(planned.bytes() > 0 && !planned.can_be_undone);
    assert_eq!(
        planned.notes.iter().any(|note| note.contains("--by-hand")),
        !by_hand,
        "{planned:?}"
    );
    assert!(
        planned.notes.iter().any(|note| note.contains("attaching")),
        "{planned:?}"
    );
    let before = lying(&server);
    assert_eq!(before.lines().count(), 4);
    let attempt = Attempt::new();
    let remove = async |number: u32| {
        engine()
            .remove(
                &attempt.next(number),
                &target(&url),
                &planned,
                None,
                &CleanupTerms::default(),
            )
            .await
            .unwrap()
    };
    let removed = remove(1).await;
    assert_eq!(
        (removed.removed, removed.stayed()),
        (expected.len() as u64, 0),
        "{removed:?}"
    );
    assert_eq!(lying(&server).lines().count(), 4 - expected.len());
    assert!(!broken.exists());
    let again = plan(&url, what).await.unwrap();
    assert_eq!(again.items, []);
    // One that was written anew since the plan stays.
    let fresh = Attempt::new();
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("file"), "other").unwrap();
    let removed = engine()
        .remove(
            &fresh.context,
            &target(&url),
            &planned,
            None,
            &CleanupTerms::default(),
        )
        .await
        .unwrap();
    assert_eq!((removed.changed, removed.removed), (1, 0), "{removed:?}");
    assert!(broken.exists());
    assert_eq!(left_behind(&server), "");
    let undone = engine()
        .undo(
            &fresh.context,
            &target(&url),
            &planned,
            &MemorySink::default().source(),
            JobId::new(),
            true,
        )
        .await;
    assert!(undone.is_err());
}
