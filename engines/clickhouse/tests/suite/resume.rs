//! What is cut off goes on, and leaves nothing behind.

use std::{sync::Mutex, time::Duration};

use async_trait::async_trait;
use fettler_engine::{
    BackupOptions, DatabaseEngine as _, EngineError, RestoreOptions, StreamFacts, StreamReader,
    StreamSource,
    testing::{MemorySink, MemorySource},
};
use fettler_test_servers::ClickhouseVersion;
use rstest::rstest;

use crate::common::{
    Attempt, V18, V26, back_up, engine, facts, fill, left_behind, mismatches, run, server, target,
};

/// A store that goes away when so many streams were asked for, and remembers which these were.
struct GoesAway {
    backup: MemorySource,
    after: usize,
    read: Mutex<Vec<String>>,
}

#[async_trait]
impl StreamSource for GoesAway {
    fn streams(&self) -> &[StreamFacts] {
        self.backup.streams()
    }

    async fn read(&self, name: &str) -> Result<StreamReader, EngineError> {
        let count = {
            let mut read = self.read.lock().unwrap();
            read.push(name.to_owned());
            read.len()
        };
        let mut backup = self.backup.clone();
        if count > self.after {
            backup.fails_after = Some(0);
        }
        backup.read(name).await
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_restore_goes_on_where_it_stopped(#[values(V18, V26)] version: ClickhouseVersion) {
    let source = server(version);
    fill(&source);
    let (backup, report) = back_up(&source.url()).await;
    let copy = server(version);
    let job = Attempt::new();
    for (number, after) in [(1, 3), (2, 9)] {
        let store = GoesAway {
            backup: backup.clone(),
            after,
            read: Mutex::default(),
        };
        let error = engine()
            .restore(
                &job.next(number),
                &store,
                &report,
                &target(&copy.url()),
                &RestoreOptions::default(),
            )
            .await
            .unwrap_err();
        assert!(error.to_string().contains("the store"), "{error}");
    }
    let done = job.record.checkpoint().unwrap()["done"].clone();
    let done: Vec<String> = serde_json::from_value(done).unwrap();
    assert!(!done.is_empty());
    let store = GoesAway {
        backup: backup.clone(),
        after: usize::MAX,
        read: Mutex::default(),
    };
    engine()
        .restore(
            &job.next(3),
            &store,
            &report,
            &target(&copy.url()),
            &RestoreOptions::default(),
        )
        .await
        .unwrap();
    let read = store.read.lock().unwrap().clone();
    for name in done.iter().filter(|name| name.starts_with("shop.")) {
        let stream = format!("rows/{name}/");
        assert!(!read.iter().any(|one| one.starts_with(&stream)), "{name}");
    }
    let mut found = mismatches(&report.objects, &facts(&report, &copy.url()).await);
    found.retain(|line| !line.contains("shop.expired"));
    assert_eq!(found, Vec::<String>::new());
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_cancelled_leaves_nothing(#[values(V18, V26)] version: ClickhouseVersion) {
    let source = server(version);
    run(
        &source,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (p UInt8, a UInt64) ENGINE = MergeTree PARTITION BY p ORDER BY a",
            "INSERT INTO shop.t SELECT number % 50, number FROM numbers(200000)",
        ],
    );
    let attempt = Attempt::new();
    let stop = attempt.context.stop.clone();
    let context = fettler_engine::EngineContext {
        // Slow enough to be caught in the middle.
        rate: std::sync::Arc::new(fettler_engine::RateLimit::new(Some(100_000))),
        ..attempt.context.clone()
    };
    let sink = MemorySink::default();
    let watched = sink.clone();
    let cancel = async {
        while watched.streams().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.cancel();
    };
    let place = target(&source.url());
    let options = BackupOptions::default();
    let engine = engine();
    let (ended, ()) = tokio::join!(engine.backup(&context, &place, &options, &sink), cancel);
    assert!(matches!(ended, Err(EngineError::Stopped)), "{ended:?}");
    assert_eq!(left_behind(&source), "");
    assert!(attempt.record.artefacts().is_empty());
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_what_a_killed_server_or_worker_left_is_removed(
    #[values(V18, V26)] version: ClickhouseVersion,
) {
    let mut source = server(version);
    run(
        &source,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (p UInt8, a UInt64) ENGINE = MergeTree PARTITION BY p ORDER BY a",
            "INSERT INTO shop.t SELECT number % 50, number FROM numbers(200000)",
        ],
    );
    let attempt = Attempt::new();
    let context = fettler_engine::EngineContext {
        rate: std::sync::Arc::new(fettler_engine::RateLimit::new(Some(100_000))),
        ..attempt.context.clone()
    };
    let sink = MemorySink::default();
    let place = target(&source.url());
    let options = BackupOptions::default();
    let working = tokio::spawn({
        let (sink, place) = (sink.clone(), place.clone());
        async move { engine().backup(&context, &place, &options, &sink).await }
    });
    while sink.streams().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::task::block_in_place(|| source.kill_9().unwrap());
    let error = working.await.unwrap().unwrap_err();
    assert!(
        matches!(error, EngineError::Unreachable { .. }),
        "{error:?}"
    );
    tokio::task::block_in_place(|| source.start_again().unwrap());
    assert_ne!(left_behind(&source), "");
    let left = attempt.record.artefacts();
    assert_eq!(left.len(), 1, "{left:?}");
    // Whoever cleans up has the record; so has the job's next attempt.
    let next = engine()
        .backup(
            &attempt.next(2),
            &place,
            &BackupOptions::default(),
            &MemorySink::default(),
        )
        .await;
    next.unwrap();
    assert_eq!(left_behind(&source), "");
    for artefact in left {
        engine()
            .remove_artefact(&artefact, Some(&place))
            .await
            .unwrap();
    }
}
