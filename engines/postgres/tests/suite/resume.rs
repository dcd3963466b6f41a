//! Attempts follow each other: nothing is doubled, nothing is lost, and what was done is not done again (P3, rule 6).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fettler_engine::{BackupOptions, DatabaseEngine, EngineError, RestoreOptions};
use fettler_model::JobId;
use fettler_test_servers::{PgMajor, PostgresServer, TestDatabase, wait_until};

use crate::common::{Attempt, Memory, Watcher, back_up, engine, mismatches, target};

fn make(server: &PostgresServer) -> TestDatabase {
    let source = server.create_database("resume").unwrap();
    source
        .psql(
            "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT n, md5(n::text) || repeat('-', 200) FROM generate_series(1, 20000) n;
             CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a, r regclass); INSERT INTO b SELECT n, n, 'pg_class' FROM generate_series(1, 20000) n;
             CREATE INDEX ON a (v); CREATE SEQUENCE s; SELECT nextval('s');
             SELECT lo_from_bytea(7000 + n, decode(repeat('cd', 5000), 'hex')) FROM generate_series(1, 30) n;
             CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM a; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
             CREATE TRIGGER t BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        )
        .unwrap();
    source
}

fn sessions(server: &PostgresServer, job: JobId) -> u64 {
    let prefix = fettler_engine::AttemptName::prefix_of(job);
    server
        .psql(
            "postgres",
            &format!(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '{prefix}%'"
            ),
        )
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_restore_that_is_cut_off_anywhere_goes_on_and_doubles_nothing() {
    for major in PgMajor::ALL {
        let server = PostgresServer::shared(major);
        let source = make(server);
        let engine = engine(major);
        let (mut backup, report) = back_up(&engine, &source.url()).await;
        let total: u64 = report.objects.iter().map(|object| object.bytes).sum();
        let copy = server.create_database("resumed").unwrap();
        let job = JobId::new();
        let mut read_in_all = 0;
        // Each attempt is dropped in the middle of its work, as a killed worker is.
        for number in 1..=6 {
            let limit = 1 + total * u64::from(number) / 7;
            let reached = Arc::new(tokio::sync::Notify::new());
            let signal = Arc::clone(&reached);
            backup.read = Arc::new(AtomicU64::new(0));
            backup.on_read = Some(Watcher(Arc::new(move |_, bytes| {
                if bytes > limit {
                    signal.notify_one();
                }
                Ok(())
            })));
            let attempt = Attempt::of(job, number);
            let place = target(&copy.url());
            let options = RestoreOptions::default();
            let work = engine.restore(&attempt.context, &backup, &report, &place, &options);
            tokio::select! {
                () = reached.notified() => {}
                answer = work => {
                    assert!(number > 3, "attempt {number} read everything: {answer:?}");
                    answer.unwrap();
                    read_in_all += backup.read.load(Ordering::Relaxed);
                    break;
                }
            }
            read_in_all += backup.read.load(Ordering::Relaxed);
        }
        backup.on_read = None;
        backup.read = Arc::new(AtomicU64::new(0));
        let attempt = Attempt::of(job, 7);
        let last = engine
            .restore(
                &attempt.context,
                &backup,
                &report,
                &target(&copy.url()),
                &RestoreOptions::default(),
            )
            .await;
        match last {
            Ok(last) => assert_eq!(last.failed_statements, Vec::<String>::new()),
            // One before had come to its end.
            Err(error) => assert!(matches!(error, EngineError::NotEmpty { .. }), "{error}"),
        }
        let facts = engine
            .facts(&attempt.context, &target(&copy.url()), &report)
            .await
            .unwrap();
        assert_eq!(mismatches(&report.objects, &facts), Vec::<String>::new());
        assert_eq!(
            copy.psql("SELECT to_regnamespace('fettler_restore') IS NULL")
                .unwrap(),
            "t"
        );
        assert!(read_in_all < 6 * total, "{read_in_all} of {total}");
        wait_until("the sessions to end", Duration::from_secs(60), || {
            sessions(server, job) == 0
        })
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_indexes_that_a_killed_attempt_had_made_are_no_error_to_the_next() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = make(server);
    let engine = engine(PgMajor::V15);
    let (backup, report) = back_up(&engine, &source.url()).await;
    let copy = server.create_database("indexes").unwrap();
    let job = JobId::new();
    let first = Attempt::of(job, 1);
    let place = target(&copy.url());
    let options = RestoreOptions::default();
    let progress = Arc::clone(&first.context.progress);
    let work = engine.restore(&first.context, &backup, &report, &place, &options);
    let cut = async {
        // Until the first index is there.
        while progress.read().phase != "indexes"
            || copy
                .psql("SELECT count(*) FROM pg_index WHERE indrelid >= 16384")
                .unwrap_or_default()
                < "4".to_owned()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = cut => {}
        answer = work => { answer.unwrap(); }
    }
    let second = Attempt::of(job, 2);
    let restored = engine
        .restore(&second.context, &backup, &report, &place, &options)
        .await;
    match restored {
        Ok(restored) => assert_eq!(restored.failed_statements, Vec::<String>::new()),
        // The first one had come to its end in the meantime.
        Err(error) => assert!(matches!(error, EngineError::NotEmpty { .. }), "{error}"),
    }
    let facts = engine
        .facts(&second.context, &place, &report)
        .await
        .unwrap();
    assert_eq!(mismatches(&report.objects, &facts), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_superseded_attempt_writes_nothing_more() {
    let server = PostgresServer::shared(PgMajor::V18);
    let source = make(server);
    let engine = engine(PgMajor::V18);
    let (mut backup, report) = back_up(&engine, &source.url()).await;
    let copy = server.create_database("fenced").unwrap();
    let job = JobId::new();
    let (old, new) = (Attempt::of(job, 1), Attempt::of(job, 2));
    // The old attempt is held up in the middle of a stream until the new one is done.
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    backup.hold_first_table = Some(Arc::clone(&gate));
    let place = target(&copy.url());
    let options = RestoreOptions::default();
    let (old_answer, new_answer) = tokio::join!(
        engine.restore(&old.context, &backup, &report, &place, &options),
        async {
            while !backup.is_held.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let answer = engine
                .restore(&new.context, &backup, &report, &place, &options)
                .await;
            gate.add_permits(1);
            answer
        }
    );
    assert!(old_answer.is_err(), "{old_answer:?}");
    assert_eq!(new_answer.unwrap().failed_statements, Vec::<String>::new());
    let facts = engine.facts(&new.context, &place, &report).await.unwrap();
    assert_eq!(mismatches(&report.objects, &facts), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_cancelled_stops_soon_and_leaves_no_session() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = make(server);
    let engine = engine(PgMajor::V15);
    for megabytes in [0, 1, 3] {
        let attempt = Attempt::new();
        let mut sink = Memory::new();
        let stop = attempt.context.stop.clone();
        sink.on_write = Some(Watcher(Arc::new(move |_, bytes| {
            if bytes >= megabytes * 1_000_000 {
                stop.cancel();
            }
            Ok(())
        })));
        let error = engine
            .backup(
                &attempt.context,
                &target(&source.url()),
                &BackupOptions::default(),
                &sink,
            )
            .await
            .unwrap_err();
        assert!(matches!(error, EngineError::Stopped), "{error}");
        let job = attempt.context.attempt.job;
        wait_until("the sessions to end", Duration::from_secs(60), || {
            sessions(server, job) == 0
        })
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_attempt_ends_the_sessions_of_the_one_before() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = make(server);
    let engine = engine(PgMajor::V15);
    let job = JobId::new();
    let old = Attempt::of(job, 1);
    let mut stuck = Memory::new();
    stuck.on_write = Some(Watcher(Arc::new(|_, bytes| {
        if bytes > 2_000_000 {
            // The other end is stuck for as long as the test may take.
            return Err(EngineError::Stopped);
        }
        Ok(())
    })));
    let place = target(&source.url());
    let options = BackupOptions::default();
    let holder = server
        .command("psql", source.name())
        .unwrap()
        .env("PGAPPNAME", old.context.attempt.to_string())
        .args(["-c", "SELECT pg_sleep(600)"])
        .spawn()
        .unwrap();
    wait_until("the old session", Duration::from_secs(60), || {
        sessions(server, job) == 1
    })
    .unwrap();
    let new = Attempt::of(job, 2);
    let sink = Memory::new();
    engine
        .backup(&new.context, &place, &options, &sink)
        .await
        .unwrap();
    let ended = holder.wait_with_output().unwrap();
    assert!(!ended.status.success());
    let error = engine
        .backup(&old.context, &place, &options, &stuck)
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::Stopped), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_fails_fails_the_backup_with_its_own_error() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = make(server);
    let mut sink = Memory::new();
    sink.on_write = Some(Watcher(Arc::new(|name, _| {
        if name.starts_with("table/") {
            return Err(EngineError::Outside(fettler_model::Problem::transient(
                "store.gone",
                "the store is gone",
                "",
            )));
        }
        Ok(())
    })));
    let error = engine(PgMajor::V15)
        .backup(
            &Attempt::new().context,
            &target(&source.url()),
            &BackupOptions::default(),
            &sink,
        )
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "the store is gone");
}
