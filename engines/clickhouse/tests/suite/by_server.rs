//! The server's own backups, by the engine of today: into a folder, onto a disk, into a bucket; made, compared, put back, taken up
//! again and let go. The statements are the server's own, no stand-in's.

use std::sync::Arc;

use fettler_engine::{
    BackupOptions, BackupReport, DatabaseEngine as _, EngineContext, EngineError, ExtractFormat,
    Extraction, RestoreOptions,
    testing::{MemorySink, MemorySource},
};
use fettler_model::{ObjectFacts, Problem};
use fettler_test_servers::{ClickhouseServer, MinioServer};

use crate::common::{
    Attempt, V18, V26, back_up, engine, facts, fill, left_behind, mismatches, only, prove,
    prove_after, run, server, target, try_restore,
};

fn into(place: &str) -> BackupOptions {
    BackupOptions {
        by_server: Some(place.to_owned()),
        ..BackupOptions::default()
    }
}

async fn make(
    context: &EngineContext,
    server: &ClickhouseServer,
    place: &str,
    sink: &MemorySink,
) -> Result<BackupReport, EngineError> {
    engine()
        .backup(context, &target(&server.url()), &into(place), sink)
        .await
}

async fn made(server: &ClickhouseServer, place: &str) -> (MemorySource, BackupReport, Attempt) {
    let (sink, attempt) = (MemorySink::default(), Attempt::new());
    let report = make(&attempt.context, server, place, &sink).await.unwrap();
    (sink.source(), report, attempt)
}

fn tables(report: &BackupReport) -> Vec<&ObjectFacts> {
    let all = report.objects.iter();
    all.filter(|object| object.fingerprint.is_some()).collect()
}

/// Drops what `fill` made, but for functions.
fn empty(server: &ClickhouseServer) {
    run(server, &["DROP DATABASE shop", "DROP DATABASE `o'dd.d``b`"]);
}

fn count(server: &ClickhouseServer, what: &str) -> String {
    server
        .query(&format!("SELECT count() FROM {what}"))
        .unwrap()
        .trim()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_backup_of_the_server_is_proven_and_comes_back() {
    let server = server(V26);
    fill(&server);
    let (_, read_by_us) = back_up(&server.url()).await;
    let (backup, report, attempt) = made(&server, "file:own").await;
    assert_eq!(report.position["method"], "backup");
    // What is compared is what an ordinary backup would have compared.
    let compared = |report: &BackupReport| -> Vec<_> {
        let all = tables(report).into_iter();
        all.map(|one| (one.name.clone(), one.fingerprint, one.independent_rows))
            .collect()
    };
    assert_eq!(compared(&report), compared(&read_by_us));
    assert!(compared(&report).len() > 12);
    assert!(engine().doubts(&report).is_empty());
    assert_eq!(left_behind(&server), "");

    assert_eq!(prove(&backup, &report, &server).await, Vec::<String>::new());
    let changes = ["INSERT INTO {db}shop.events (day, id) VALUES ('2026-01-01', 1)"];
    let found = prove_after(&backup, &report, &server, &changes).await;
    assert_eq!(found.len(), 1, "{found:?}");

    // What is there is left alone.
    let error = try_restore(&backup, &report, &server.url(), &RestoreOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
    // One partition, past every view.
    let before = count(&server, "shop.events WHERE toYYYYMM(day) = 202602");
    run(
        &server,
        &[
            "ALTER TABLE shop.events DELETE WHERE toYYYYMM(day) = 202602 SETTINGS mutations_sync = 1",
        ],
    );
    let options = RestoreOptions {
        overwrite: true,
        ..only(&["shop.events/202602"])
    };
    let restored = try_restore(&backup, &report, &server.url(), &options)
        .await
        .unwrap();
    assert_eq!(restored.rows.to_string(), before);
    assert_eq!(
        count(&server, "shop.events WHERE toYYYYMM(day) = 202602"),
        before
    );
    assert_eq!(count(&server, "shop.events"), "5000");

    // All of it into a server that has nothing any more.
    empty(&server);
    let restored = try_restore(&backup, &report, &server.url(), &RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    let rows: u64 = compared(&report)
        .iter()
        .map(|one| one.1.unwrap().rows)
        .sum();
    assert_eq!(restored.rows, rows);
    let found = facts(&report, &server.url()).await;
    // Merges may have begun: only these two are no tables that merges change.
    for name in ["shop.events", "shop.types", "shop.log", "shop.memory"] {
        let of = |all: &[ObjectFacts]| {
            let found = all
                .iter()
                .find(|one| one.name == name && one.fingerprint.is_some());
            found.cloned().unwrap().fingerprint
        };
        assert_eq!(of(&found), of(&report.objects), "{name}");
    }
    assert_eq!(left_behind(&server), "");

    // The server restores it without Fettler too.
    let entry = std::fs::read_dir(server.backups().join("own"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let name = entry.file_name().into_string().unwrap();
    empty(&server);
    run(
        &server,
        &[
            "CREATE DATABASE shop",
            "CREATE DATABASE `o'dd.d``b`",
            &format!("RESTORE ALL FROM File('own/{name}')"),
        ],
    );
    assert_eq!(count(&server, "shop.events"), "5000");
    assert_eq!(count(&server, "shop.a_view"), "10");

    // It goes with its name, and nothing else does.
    let url = target(&server.url());
    engine().require_held(&report, &url).await.unwrap();
    let held = engine().held(&url, &[]).await.unwrap();
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!(
        (held[0].job, held[0].name.as_str()),
        (attempt.job, name.as_str())
    );
    // A folder that is named by a path of the server's own is not found from here.
    let error = engine().let_go(&url, &held[0]).await.unwrap_err();
    let problem = Problem::from(error);
    assert_eq!(problem.code, "engine.missing.by_server");
    assert!(problem.remedy.contains("own/fettler-"), "{problem:?}");
    std::fs::remove_dir_all(entry.path()).unwrap();
    let error = engine().require_held(&report, &url).await.unwrap_err();
    assert!(matches!(error, EngineError::Unusable { .. }), "{error:?}");
    assert!(engine().held(&url, &[]).await.unwrap().is_empty());
    engine().let_go(&url, &held[0]).await.unwrap();
    // A backup that is gone replaces nothing.
    let options = RestoreOptions {
        overwrite: true,
        ..RestoreOptions::default()
    };
    let error = try_restore(&backup, &report, &server.url(), &options)
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::Unusable { .. }), "{error:?}");
    assert_eq!(count(&server, "shop.events"), "5000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_on_a_disk_or_in_a_folder_from_the_root_go_also_after_the_server_forgot_them() {
    let mut server = server(V26);
    run(
        &server,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (a UInt64) ENGINE = MergeTree ORDER BY a",
            "INSERT INTO shop.t SELECT number FROM numbers(1000)",
        ],
    );
    let folder = format!("file:{}/from-root", server.backups().display());
    let mut reports = Vec::new();
    for place in ["disk:backups/nightly", "disk:backups", &folder] {
        let (backup, report, _) = made(&server, place).await;
        assert_eq!(prove(&backup, &report, &server).await, Vec::<String>::new());
        reports.push(report);
    }
    // Somebody else's backup beside ours.
    run(
        &server,
        &["BACKUP TABLE shop.t TO Disk('backups', 'nightly/theirs')"],
    );
    let url = target(&server.url());
    assert_eq!(engine().held(&url, &[]).await.unwrap().len(), 3);
    server.kill_9().unwrap();
    server.start_again().unwrap();
    // What the server told is gone with its process; the backups say where they are.
    assert!(engine().held(&url, &[]).await.unwrap().is_empty());
    let held = engine().held(&url, &reports).await.unwrap();
    assert_eq!(held.len(), 3);
    for held in &held {
        engine().let_go(&url, held).await.unwrap();
    }
    assert!(engine().held(&url, &reports).await.unwrap().is_empty());
    run(
        &server,
        &["RESTORE TABLE shop.t AS shop.theirs FROM Disk('backups', 'nightly/theirs')"],
    );
    assert_eq!(count(&server, "shop.theirs"), "1000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_in_a_bucket_is_listed_and_removed_by_the_server() {
    let minio = MinioServer::start().unwrap();
    minio.create_bucket("backups").unwrap();
    let collection = format!(
        "CREATE NAMED COLLECTION keys AS url = '{}/backups/base/', access_key_id = '{}', secret_access_key = '{}'",
        minio.url(),
        minio.access_key(),
        minio.secret_key()
    );
    let mut server = server(V26);
    fill(&server);
    run(&server, &[&collection]);
    let (backup, report, _) = made(&server, "s3:keys/nightly").await;
    assert_eq!(prove(&backup, &report, &server).await, Vec::<String>::new());
    let (_, second, _) = made(&server, "s3:keys/nightly").await;
    let own = |report: &BackupReport| {
        report.engine_data["own"]["name"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(report.engine_data["own"]["bytes"].as_u64().unwrap() > 100_000);
    let url = target(&server.url());
    let objects = || count(&server, "s3(keys, filename = '**', format = 'One')");
    let all: u64 = objects().parse().unwrap();
    let held = engine().held(&url, &[]).await.unwrap();
    assert_eq!(held.len(), 2);
    let first = held.iter().find(|one| one.name == own(&report)).unwrap();
    engine().let_go(&url, first).await.unwrap();
    let left: u64 = objects().parse().unwrap();
    assert!(left > 0 && left <= all / 2, "{left} of {all}");
    let error = engine().require_held(&report, &url).await.unwrap_err();
    assert!(matches!(error, EngineError::Unusable { .. }), "{error:?}");
    engine().require_held(&second, &url).await.unwrap();
    // A server that was started again finds in the bucket what lies beside a backup that is known.
    server.kill_9().unwrap();
    server.start_again().unwrap();
    let held = engine().held(&url, &[report]).await.unwrap();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].name, own(&second));
    engine().let_go(&url, &held[0]).await.unwrap();
    assert_eq!(
        count(&server, "s3(keys, filename = '**', format = 'One')"),
        "0"
    );
    assert_eq!(left_behind(&server), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_backup_that_runs_is_found_again_and_is_of_the_moment_of_its_shadows() {
    let server = Arc::new(server(V26));
    run(
        &server,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (a UInt64, b String) ENGINE = MergeTree ORDER BY a",
            "INSERT INTO shop.t SELECT number, toString(number) FROM numbers(50000)",
            "CREATE TABLE shop.log (a UInt64) ENGINE = Log",
            "INSERT INTO shop.log SELECT number FROM numbers(500)",
        ],
    );
    let job = Attempt::new();
    let stop = job.context.stop.clone();
    let busy = Arc::clone(&server);
    // As soon as the server was asked, somebody writes, and the worker is told to stop.
    let sink = MemorySink::behind(Arc::new(move |_, _, bytes| {
        busy.query("INSERT INTO shop.t SELECT number, 'late' FROM numbers(1000)")
            .unwrap();
        busy.query("INSERT INTO shop.log SELECT number FROM numbers(7)")
            .unwrap();
        stop.cancel();
        bytes
    }));
    let error = make(&job.context, &server, "file:own", &sink)
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::Stopped), "{error:?}");
    let sink = MemorySink::default();
    let report = make(&job.next(2), &server, "file:own", &sink)
        .await
        .unwrap();
    let asked = count(&server, "system.backups WHERE id LIKE 'fettler-%'");
    assert_eq!(asked, "1", "nothing is asked for twice");
    let rows: Vec<u64> = tables(&report)
        .iter()
        .map(|one| one.fingerprint.unwrap().rows)
        .collect();
    assert_eq!(rows, [500, 50_000]);
    assert_eq!(left_behind(&server), "");
    assert_eq!(
        prove(&sink.source(), &report, &server).await,
        Vec::<String>::new()
    );
    // The next one reads no fingerprint of a part that it knows.
    let mut later = MemorySink::default();
    later.parent = sink.streams();
    let report = make(&Attempt::new().context, &server, "file:own", &later)
        .await
        .unwrap();
    assert_eq!(report.objects.len(), 4);
    let taken: Vec<bool> = later
        .streams()
        .iter()
        .filter(|(name, _)| name.starts_with("fingerprints/shop.t/"))
        .map(|(name, _)| sink.streams().contains_key(name))
        .collect();
    assert!(taken.contains(&true), "{taken:?}");
    assert_eq!(
        prove(&later.source(), &report, &server).await,
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_cannot_do_is_told_with_what_to_do() {
    let today = server(V26);
    run(
        &today,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (a UInt64) ENGINE = MergeTree ORDER BY a",
        ],
    );
    for (place, words) in [
        ("file:/etc", "allowed_path"),
        ("disk:default", "allowed_disk"),
        ("disk:nothing/x", "allowed_disk"),
        ("s3:nobody/x", "named collection"),
        ("nightly", "file:folder"),
    ] {
        let sink = MemorySink::default();
        let error = make(&Attempt::new().context, &today, place, &sink)
            .await
            .unwrap_err();
        let problem = Problem::from(error);
        assert_eq!(
            problem.code, "engine.missing.by_server",
            "{place}: {problem}"
        );
        let told = format!("{problem} {}", problem.remedy);
        assert!(told.contains(words), "{place}: {told}");
    }
    assert_eq!(left_behind(&today), "");
    let old = server(V18);
    let error = make(
        &Attempt::new().context,
        &old,
        "file:own",
        &MemorySink::default(),
    )
    .await
    .unwrap_err();
    assert_eq!(Problem::from(error).code, "engine.missing.by_server");
    // One row of a table in an open format is nothing that the server's backup gives out.
    let (backup, report, _) = made(&today, "file:own").await;
    let what = Extraction {
        part: "shop.t".to_owned(),
        format: ExtractFormat::Native,
    };
    let mut out = Vec::new();
    let error = engine()
        .extract(&Attempt::new().context, &backup, &report, &what, &mut out)
        .await
        .unwrap_err();
    assert_eq!(Problem::from(error).code, "engine.missing.part");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_linked_is_in_the_backup_as_a_copy() {
    let server = server(V26);
    run(
        &server,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.patched (p UInt8, id UInt64, v String, m UInt64 MATERIALIZED id * 3) ENGINE = MergeTree PARTITION BY p ORDER BY id SETTINGS enable_block_number_column = 1, enable_block_offset_column = 1",
            "INSERT INTO shop.patched SELECT number % 3, number, 'old' FROM numbers(3000)",
            "SYSTEM STOP MERGES shop.patched",
            "UPDATE shop.patched SET v = 'new' WHERE p = 1 AND id < 100",
        ],
    );
    let (backup, report, _) = made(&server, "file:own").await;
    let copied = &report.warnings;
    assert!(
        copied.iter().any(|one| one.code == "clickhouse.copied"),
        "{copied:?}"
    );
    assert_eq!(prove(&backup, &report, &server).await, Vec::<String>::new());
    let hash = "SELECT count(), sum(cityHash64(p, id, v, m)) FROM shop.patched";
    let before = server.query(hash).unwrap();
    run(&server, &["DROP TABLE shop.patched"]);
    try_restore(&backup, &report, &server.url(), &only(&["shop.patched"]))
        .await
        .unwrap();
    assert_eq!(server.query(hash).unwrap(), before);
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &server.url()).await),
        Vec::<String>::new()
    );
}
