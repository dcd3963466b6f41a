//! What holds for one kind of ledger only: the SQLite file's permissions and its opening by several
//! processes at once, and outages of a PostgreSQL server.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use fettler_ledger::{
    Beat, BeatAnswer, ClaimRequest, Ended, Ending, Fencing, Ledger, LedgerError, LedgerOptions,
    WorkerSkills,
};
use fettler_model::{
    ErrorClass, ExclusionClass, JobRequest, JobState, JobTerms, Priority, SlotClass, TenantId,
};
use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer, wait_until};

fn request() -> JobRequest {
    JobRequest {
        tenant: TenantId::default_tenant(),
        kind: "noop".parse().unwrap(),
        kind_version: 1,
        database: None,
        arguments: serde_json::Value::Null,
        exclusion: ExclusionClass::Free,
        slot: SlotClass::Short,
        priority: Priority::Normal,
        not_before: None,
        deadline: None,
        max_tries: 1,
        unique_key: None,
        retry_of: None,
        tags: Vec::new(),
        terms: JobTerms::default(),
    }
}

fn room(lease: Duration) -> ClaimRequest {
    ClaimRequest {
        worker: "worker".to_owned(),
        kinds: vec!["noop".parse().unwrap()],
        long: 1,
        short: 1,
        lease,
        skills: WorkerSkills::default(),
        only: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_the_sqlite_files_are_readable_by_their_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/ledger.db");
    let ledger = Ledger::open(&format!("sqlite:{}", path.display()))
        .await
        .unwrap();
    ledger.submit(request(), None).await.unwrap();
    let mut seen = 0;
    for entry in path.parent().unwrap().read_dir().unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        seen += 1;
    }
    assert_eq!(seen, 3, "the database, its log and its index of the log");
    let above = path.parent().unwrap().metadata().unwrap();
    assert_eq!(above.permissions().mode() & 0o777, 0o700);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_file_is_opened_by_many_at_once_and_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
    let opened = futures::future::join_all((0..8).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { Ledger::open(&url).await.unwrap() })
    }))
    .await;
    for ledger in opened {
        ledger.unwrap().submit(request(), None).await.unwrap();
    }
    let ledger = Ledger::open(&url).await.unwrap();
    assert_eq!(ledger.counts().await.unwrap().queued, 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_cannot_be_opened_says_what_to_do() {
    for url in [
        "oracle://x:hunter2@y/z",
        "/just/a/path",
        "postgres://[",
        "sqlite:/proc/no/ledger.db",
    ] {
        let error = Ledger::open(url).await.unwrap_err();
        assert!(
            matches!(error, LedgerError::BadUrl { .. }),
            "{url}: {error:?}"
        );
        assert!(!error.remedy().is_empty());
        assert!(!error.to_string().contains("hunter2"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_5_after_an_outage_rescue_waits_one_whole_lease() {
    let options = PostgresOptions::new().setting("max_connections", "20");
    let mut server = PostgresServer::start(PgMajor::V15, options).unwrap();
    let ledger_options = LedgerOptions {
        connections: 4,
        ..LedgerOptions::default()
    };
    let database = server.create_database("ledger").unwrap();
    let ledger = Ledger::open_with(&database.url(), ledger_options)
        .await
        .unwrap();
    ledger.submit(request(), None).await.unwrap();
    let lease = Duration::from_secs(6);
    let claimed = ledger.claim(&room(lease)).await.unwrap().jobs.remove(0);
    let asked = Instant::now();
    let fencing = Fencing {
        job: claimed.job.id,
        token: claimed.token,
    };

    server.kill_9().unwrap();
    let away = ledger.check_fence(fencing);
    let away = tokio::time::timeout(Duration::from_secs(30), away)
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(away, LedgerError::Unavailable { .. }), "{away:?}");
    assert_eq!(away.class(), ErrorClass::Transient);
    // The lease runs out while nobody can renew it.
    tokio::time::sleep_until((asked + lease + Duration::from_millis(100)).into()).await;
    server.start_again().unwrap();

    // Another process, which has seen no outage, waits too: the server has not been up for long.
    let other = Ledger::open(&database.url()).await.unwrap();
    for rescuer in [&ledger, &other] {
        assert_eq!(rescuer.rescue(lease).await.unwrap(), []);
    }
    let beat = Beat {
        job: fencing.job,
        token: fencing.token,
        progress: None,
    };
    let answers = ledger.heartbeat("worker", &[beat], lease).await.unwrap();
    assert_eq!(answers, [BeatAnswer::Renewed]);
    let result = serde_json::json!({"after": "the outage"});
    let ended = ledger
        .complete(fencing, Ending::Succeeded { result })
        .await
        .unwrap();
    assert_eq!(ended, Ended::Final(JobState::Succeeded));
    // The database is dropped while its server still runs.
    drop(database);
}

/// Plans are made while the table is small and are kept; what has ended lies dead in its indexes until somebody cleans up. A
/// claim that joins instead of looking its hundred ids up then reads all of an index, each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_looks_its_ids_up_also_where_the_statistics_are_of_a_smaller_table() {
    ids_are_looked_up("ANALYZE job").await;
}

/// A queue that is drained when the server cleans up has statistics of an empty table in a large file: each index that has the
/// column looks as cheap as the primary key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_looks_its_ids_up_also_where_the_statistics_are_of_a_drained_queue() {
    ids_are_looked_up(
        "INSERT INTO job SELECT (jsonb_populate_record(NULL::job, jsonb_build_object(
             'id', gen_random_uuid(), 'tenant', 'default', 'kind', 'noop', 'kind_version', 1, 'arguments', '{}', 'exclusion', 0,
             'slot', 1, 'priority', 2, 'rank', n, 'submitted', n, 'max_tries', 1, 'lane', 0, 'wait', 0, 'tries', 0, 'lost', 0,
             'died', 0, 'isolated', 0, 'state', 1, 'token', 0, 'line', ''))).* FROM generate_series(1, 50000) n;
         DELETE FROM job WHERE rank < 50000;
         VACUUM ANALYZE job;
         DELETE FROM job",
    )
    .await;
}

/// Submits, claims and ends jobs with plans by these statistics beside very many that have ended, and counts what is read.
async fn ids_are_looked_up(statistics: &str) {
    const DEAD: i64 = 50_000;
    const BATCH: usize = 100;
    const BATCHES: usize = 20;
    let server = PostgresServer::shared(PgMajor::V15);
    let database = server.create_database("ledger").unwrap();
    let options = LedgerOptions {
        connections: 1,
        ..LedgerOptions::default()
    };
    let ledger = Ledger::open_with(&database.url(), options).await.unwrap();
    database
        .psql("ALTER TABLE job SET (autovacuum_enabled = false)")
        .unwrap();
    for statement in statistics.split(';') {
        database.psql(statement).unwrap();
    }
    let work = async |batches: usize| {
        for _ in 0..batches {
            let requests = (0..BATCH).map(|_| (request(), None)).collect();
            let ids: Vec<_> = ledger
                .submit_batch(requests)
                .await
                .into_iter()
                .map(|submitted| submitted.unwrap().job)
                .collect();
            let room = ClaimRequest {
                short: BATCH,
                ..room(Duration::from_secs(600))
            };
            let claimed = ledger.claim_by_ids(&room, &ids).await.unwrap().jobs;
            assert_eq!(claimed.len(), BATCH);
            let ends = claimed.iter().map(|claimed| {
                let fencing = Fencing {
                    job: claimed.job.id,
                    token: claimed.token,
                };
                let result = serde_json::Value::Null;
                ledger.complete(fencing, Ending::Succeeded { result })
            });
            futures::future::try_join_all(ends).await.unwrap();
        }
    };
    // The plans are made.
    work(BATCHES).await;
    ledger.submit(request(), None).await.unwrap();
    database
        .psql(&format!(
            "INSERT INTO job SELECT (made).* FROM (
                 SELECT jsonb_populate_record(job, jsonb_build_object('id', gen_random_uuid()::text)) AS made
                 FROM job, generate_series(1, {DEAD})) AS more;
             DELETE FROM job"
        ))
        .unwrap();
    let read = || -> (i64, i64) {
        let told = database
            .psql(
                "SELECT sum(idx_tup_read), sum(idx_scan) FROM pg_stat_user_indexes WHERE indexrelname = 'job_pkey'",
            )
            .unwrap();
        let (tuples, scans) = told.trim().split_once('|').unwrap();
        (tuples.parse().unwrap(), scans.parse().unwrap())
    };
    let (before, _) = read();
    work(BATCHES).await;
    drop(ledger);
    // The server counts a session's work once that has ended.
    wait_until("its work is counted", Duration::from_secs(30), || {
        read().1 >= 4 * (BATCHES * BATCH) as i64
    })
    .unwrap();
    let (after, _) = read();
    assert!(
        after - before < DEAD,
        "{} entries were read",
        after - before
    );
}
