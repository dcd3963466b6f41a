//! What holds for every kind of place.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fettler_engine::{
    BackupOptions, DatabaseEngine as _, EngineError, PreflightLevel, RestoreOptions,
    testing::MemorySink,
};
use fettler_model::Problem;
use redis::cmd;

use super::place::{Kind, PASSWORD, Place, digests_of, plain};
use crate::{
    common::{
        Attempt, ENGINE, back_up, client, facts, keys_in, mismatches, noise, prove, prove_after,
        restore, run, target, try_back_up, try_restore,
    },
    incremental::new_part,
    resume::{attempt, cut_off, done},
};

fn nothing() -> Vec<String> {
    Vec::new()
}

fn only(names: &[&str]) -> RestoreOptions {
    RestoreOptions {
        only: names.iter().map(|&name| name.to_owned()).collect(),
        ..RestoreOptions::default()
    }
}

pub async fn p4_everything_comes_back_is_proven_and_reads_as_the_source(kind: Kind) {
    let source = Place::start(kind);
    let reference = source.seed();
    let (backup, report) = back_up(&source.url()).await;
    assert_eq!(report.position["method"], "replication");
    assert_eq!(prove(&backup, &report).await, nothing());
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &source.read_url()).await),
        nothing()
    );
    let wanted = digests_of(&reference.url());
    assert!(wanted.len() > 40);
    // Into a place of the same kind, and into a server that runs alone: read by our commands and by the server's own digests.
    let copy = Place::start(kind);
    let restored = restore(&backup, &report, &copy.url()).await;
    assert_eq!(restored.failed_statements, nothing());
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &copy.url()).await),
        nothing()
    );
    assert!(copy.client().digests() == wanted);
    for node in copy.client().nodes() {
        let answer: i64 = cmd("FCALL").arg("total").arg(0).query(node).unwrap();
        assert_eq!(answer, 42);
    }
    let alone = plain();
    restore(&backup, &report, &alone.url()).await;
    assert!(digests_of(&alone.url()) == wanted);
    // And from there back into a place of the kind, of which a cluster has database 0 alone.
    let mut other = client(&reference.url());
    run(&mut other, "SELECT 3");
    run(&mut other, "SET three 3");
    let (backup, report) = back_up(&reference.url()).await;
    let again = Place::start(kind);
    if kind == Kind::Cluster {
        let error = try_restore(&backup, &report, &again.url(), &RestoreOptions::default())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("database 0 alone"), "{error}");
        assert_eq!(Problem::from(error).code, "engine.missing.database");
        assert!(again.client().keys().is_empty());
    }
    let parts = only(&["db0", "functions"]);
    try_restore(&backup, &report, &again.url(), &parts)
        .await
        .unwrap();
    assert!(again.client().digests() == wanted);
}

pub async fn p4_a_backup_while_a_writer_runs_is_proven(kind: Kind) {
    let source = Place::start(kind);
    source.seed();
    let stop = Arc::new(AtomicBool::new(false));
    let (begun, writes) = std::sync::mpsc::channel();
    let writer = {
        let (stop, mut client) = (stop.clone(), source.client());
        std::thread::spawn(move || {
            let mut round = 0u64;
            while !stop.load(Ordering::SeqCst) {
                round += 1;
                // Both in one transaction of one slot: in a backup they are equal.
                redis::pipe()
                    .atomic()
                    .cmd("SET")
                    .arg("{pair}:a")
                    .arg(round)
                    .ignore()
                    .cmd("SET")
                    .arg("{pair}:b")
                    .arg(round)
                    .ignore()
                    .exec(client.of(b"{pair}:a"))
                    .unwrap();
                client.run(&format!("SET new:{round} x"));
                client.run(&format!("DEL new:{}", round.saturating_sub(100)));
                // Nobody listens after the first.
                let _heard = begun.send(());
            }
            round
        })
    };
    writes.recv().unwrap();
    drop(writes);
    let (backup, report) = back_up(&source.url()).await;
    stop.store(true, Ordering::SeqCst);
    assert!(writer.join().unwrap() > 10);
    assert_eq!(prove(&backup, &report).await, nothing());
    let copy = plain();
    restore(&backup, &report, &copy.url()).await;
    let pair: (Option<u64>, Option<u64>) = cmd("MGET")
        .arg("{pair}:a")
        .arg("{pair}:b")
        .query(&mut client(&copy.url()))
        .unwrap();
    assert_eq!(pair.0, pair.1);
}

pub async fn p4_one_change_is_found(kind: Kind) {
    let source = Place::start(kind);
    source.seed();
    let (backup, report) = back_up(&source.url()).await;
    for change in [
        "SET big 9007199254740992",
        "PERSIST expires",
        "ZADD scores 0.1000000000000001 tenth",
        "DEL short",
        "FUNCTION FLUSH",
    ] {
        let found = prove_after(&backup, &report, |copy| {
            run(copy, change);
        })
        .await;
        assert!(!found.is_empty(), "{change}");
    }
}

pub async fn an_empty_one_is_backed_up_proven_and_restored(kind: Kind) {
    let source = Place::start(kind);
    let (backup, report) = back_up(&source.url()).await;
    let empty = report.objects.iter().find(|one| one.name == "db0").unwrap();
    assert_eq!(empty.independent_rows, Some(0));
    assert_eq!(prove(&backup, &report).await, nothing());
    restore(&backup, &report, &Place::start(kind).url()).await;
}

pub async fn a_second_backup_stores_little(kind: Kind) {
    let source = Place::start(kind);
    let mut writer = source.client();
    for at in 0..400u64 {
        let key = format!("page:{at}");
        writer.exec(&key, cmd("SET").arg(&key).arg(noise(30_000, at)));
    }
    source.settle();
    let (first, _) = back_up(&source.url()).await;
    for at in (0..400u64).step_by(100) {
        let key = format!("page:{at}");
        writer.exec(&key, cmd("SET").arg(&key).arg(noise(30_000, at + 1000)));
    }
    source.settle();
    let (second, report) = back_up(&source.url()).await;
    let new = new_part(&first, &second).await;
    assert!(new > 0.0 && new < 0.1, "{new}");
    assert_eq!(prove(&second, &report).await, nothing());
}

pub async fn one_part_comes_back_alone_and_what_is_excluded_stays_out(kind: Kind) {
    let source = Place::start(kind);
    let mut writer = source.client();
    for at in 0..200 {
        writer.run(&format!("SET user:{at} {at}"));
        writer.run(&format!("SET other:{at} {at}"));
    }
    source.settle();
    let sink = MemorySink::default();
    let options = BackupOptions {
        exclude: vec!["db0/other:1*".to_owned()],
        ..BackupOptions::default()
    };
    let from = target(&source.url());
    let report = ENGINE
        .backup(&Attempt::new().context, &from, &options, &sink)
        .await
        .unwrap();
    let backup = sink.source();
    assert_eq!(prove(&backup, &report).await, nothing());
    let copy = Place::start(kind);
    copy.client().run("SET mine 1");
    try_restore(&backup, &report, &copy.url(), &only(&["db0/user:*"]))
        .await
        .unwrap();
    assert_eq!(copy.client().keys().len(), 201);
    let again = try_restore(&backup, &report, &copy.url(), &only(&["db0/user:1*"]))
        .await
        .unwrap_err();
    assert!(matches!(again, EngineError::NotEmpty { .. }), "{again:?}");
    try_restore(&backup, &report, &copy.url(), &only(&["db0/other:*"]))
        .await
        .unwrap();
    // 0 to 199 without 1, 10 to 19 and 100 to 199.
    assert_eq!(copy.client().keys().len(), 201 + 89);
}

pub async fn what_is_in_the_way_is_refused_and_replaced_only_when_that_was_said(kind: Kind) {
    let source = Place::start(kind);
    let reference = source.seed();
    let (backup, report) = back_up(&source.url()).await;
    let copy = Place::start(kind);
    for at in 0..20 {
        copy.client().run(&format!("SET mine:{at} x"));
    }
    let error = try_restore(&backup, &report, &copy.url(), &RestoreOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
    assert!(error.to_string().contains("20 keys"), "{error}");
    assert_eq!(copy.client().keys().len(), 20);
    let overwrite = RestoreOptions {
        overwrite: true,
        ..RestoreOptions::default()
    };
    try_restore(&backup, &report, &copy.url(), &overwrite)
        .await
        .unwrap();
    assert!(copy.client().digests() == digests_of(&reference.url()));
}

pub async fn p3_a_restore_that_was_cut_off_goes_on(kind: Kind) {
    let source = Place::start(kind);
    let reference = source.seed();
    let (backup, report) = back_up(&source.url()).await;
    let copy = Place::start(kind);
    let job = Attempt::new();
    let number = cut_off(&job, &backup, &report, &copy.url()).await;
    let done = done(&job);
    assert!(done.len() > 5, "{done:?}");
    // Another job sees that it is half-done.
    let error = attempt(&Attempt::new().context, &backup, &report, &copy.url())
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
    attempt(&job.next(number), &backup, &report, &copy.url())
        .await
        .unwrap();
    assert!(copy.client().digests() == digests_of(&reference.url()));
    // From the beginning, over what another job left half-done.
    let half = Place::start(kind);
    cut_off(&Attempt::new(), &backup, &report, &half.url()).await;
    let again = RestoreOptions {
        start_again: true,
        ..RestoreOptions::default()
    };
    try_restore(&backup, &report, &half.url(), &again)
        .await
        .unwrap();
    assert!(half.client().digests() == digests_of(&reference.url()));
}

pub async fn a_wrong_password_and_missing_rights_are_named(kind: Kind) {
    let source = Place::start(kind);
    source.seed();
    let wrong = source.url().replace(PASSWORD, "nonsense");
    let error = try_back_up(&wrong).await.unwrap_err();
    assert!(
        matches!(error, EngineError::LoginRefused { .. }),
        "{error:?}"
    );
    assert!(!error.to_string().contains("nonsense"), "{error}");
    let blind = source.user(&["~*", "+@all", "-psync", "-dump"]);
    let error = Problem::from(try_back_up(&blind).await.unwrap_err());
    assert_eq!(error.code, "engine.missing.permission");
    let items = ENGINE
        .preflight(&target(&source.url()), &BackupOptions::default())
        .await
        .unwrap();
    let keys = items.iter().find(|item| item.subject == "keys").unwrap();
    assert_eq!(keys.level, PreflightLevel::Fine, "{items:?}");
    let items = ENGINE
        .preflight(&target(&blind), &BackupOptions::default())
        .await
        .unwrap();
    let keys = items.iter().find(|item| item.subject == "keys").unwrap();
    assert_eq!(keys.level, PreflightLevel::Stops, "{items:?}");
}

pub async fn where_no_replica_is_allowed_keys_are_read_one_by_one(kind: Kind) {
    let source = Place::start(kind);
    let reference = source.seed();
    let url = source.user(&["~*", "+@all", "-psync"]);
    let (backup, report) = back_up(&url).await;
    assert_eq!(report.position["method"], "scan");
    assert_eq!(report.warnings[0].code, "redis.not_one_moment");
    let database = report.objects.iter().find(|one| one.name == "db0").unwrap();
    let fingerprint = database.fingerprint.unwrap();
    if kind == Kind::Replica {
        // A replica's own count has keys that have expired.
        assert_eq!(database.independent_rows, None);
    } else {
        assert_eq!(database.independent_rows, Some(fingerprint.rows));
        assert_eq!(prove(&backup, &report).await, nothing());
    }
    let copy = plain();
    restore(&backup, &report, &copy.url()).await;
    assert!(digests_of(&copy.url()) == digests_of(&reference.url()));
}

pub async fn a_cancelled_backup_and_restore_stop_soon(kind: Kind) {
    let source = Place::start(kind);
    let mut writer = source.client();
    for at in 0..60u64 {
        let key = format!("filler:{at}");
        writer.exec(&key, cmd("SET").arg(&key).arg(noise(1_000_000, at)));
    }
    source.settle();
    let (backup, report) = back_up(&source.url()).await;
    let copy = Place::start(kind);
    for is_backup in [true, false] {
        let attempt = Attempt::new();
        let (context, stop) = (attempt.context.clone(), attempt.context.stop.clone());
        let (from, to) = (target(&source.url()), target(&copy.url()));
        let (backup, report) = (backup.clone(), report.clone());
        let work = tokio::spawn(async move {
            let options = BackupOptions::default();
            if is_backup {
                let sink = MemorySink::default();
                ENGINE
                    .backup(&context, &from, &options, &sink)
                    .await
                    .map(drop)
            } else {
                let options = RestoreOptions::default();
                ENGINE
                    .restore(&context, &backup, &report, &to, &options)
                    .await
                    .map(drop)
            }
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
        stop.cancel();
        let answer = tokio::time::timeout(Duration::from_secs(30), work)
            .await
            .unwrap()
            .unwrap();
        assert!(matches!(answer, Err(EngineError::Stopped)), "{answer:?}");
    }
    let mut left = client(&copy.primaries()[0]);
    let _half_done = keys_in(&mut left, 0);
}

pub async fn it_has_one_identity(kind: Kind) {
    let place = Place::start(kind);
    let first = ENGINE.identify(&target(&place.url())).await.unwrap();
    let again = ENGINE.identify(&target(&place.url())).await.unwrap();
    assert_eq!((&first.key, &first.lineage), (&again.key, &again.lineage));
    let (_, report) = back_up(&place.url()).await;
    assert_eq!(report.identity.key, first.key);
    if kind == Kind::Replica {
        // Whoever is read, it is the database that the URL names.
        let named = place.url().replace("?read=replica", "");
        let primary = ENGINE.identify(&target(&named)).await.unwrap();
        assert_eq!(primary.key, first.key);
    }
    let load = ENGINE.load(&target(&place.url())).await.unwrap();
    assert!(load.connections.is_some());
}
