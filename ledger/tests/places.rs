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
use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer};

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
