//! Histories that real ledgers made under concurrency are accepted; the same histories, doctored, are not.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "in a test, a panic is the report"
)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fettler_ledger::{
    ClaimRequest, Claimed, DatabaseRecord, DatabaseTerms, Ending, Fencing, Ledger, LedgerError,
    LedgerOptions, WorkerSkills,
};
use fettler_model::{
    AttemptOutcome, AttemptToken, DatabaseId, DatabaseUrl, ExclusionClass, JobId, JobRequest,
    JobState, JobTerms, Priority, Problem, Scope, SlotClass, TenantId, Timestamp,
};
use fettler_models::replay::{History, SERVER_SLACK, replay};
use fettler_test_servers::{PgMajor, PostgresServer};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

const LEASE: Duration = Duration::from_millis(200);
const JOBS: usize = 60;
const DATABASES: usize = 3;
const WORKERS: u64 = 4;
/// How many jobs of the tenant run at once.
const MOST: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(60);

async fn open(url: &str) -> Ledger {
    let options = LedgerOptions {
        retry_base: Duration::from_millis(5),
        retry_cap: Duration::from_millis(20),
        connections: 3,
        ..LedgerOptions::default()
    };
    Ledger::open_with(url, options).await.unwrap()
}

async fn databases(ledger: &Ledger) -> Vec<DatabaseId> {
    let mut databases = Vec::new();
    for n in 0..DATABASES {
        let (url, _) = DatabaseUrl::parse_with_password(&format!("/data/{n}.sqlite")).unwrap();
        let record = DatabaseRecord {
            id: DatabaseId::new(),
            tenant: TenantId::default_tenant(),
            name: format!("db{n}").parse().unwrap(),
            url,
            password: None,
            identity_key: None,
            labels: BTreeMap::new(),
            sandbox: serde_json::Value::Null,
            created: Timestamp::from_micros(0),
            terms: DatabaseTerms::default(),
        };
        databases.push(ledger.add_database(&record).await.unwrap().id);
    }
    databases
}

fn request(database: Option<DatabaseId>) -> JobRequest {
    JobRequest {
        tenant: TenantId::default_tenant(),
        kind: "noop".parse().unwrap(),
        kind_version: 1,
        database,
        arguments: json!({}),
        exclusion: ExclusionClass::Backup,
        slot: SlotClass::Short,
        priority: Priority::Normal,
        not_before: None,
        deadline: None,
        max_tries: 3,
        unique_key: None,
        retry_of: None,
        tags: Vec::new(),
        terms: JobTerms::default(),
    }
}

/// Claims, works, fails, hands back, vanishes and cancels at random, until no job is left.
async fn work(url: String, number: u64, seed: u64, accepted: Vec<JobId>) {
    let ledger = open(&url).await;
    let mut random = StdRng::seed_from_u64(seed + number);
    let mut claims = ClaimRequest {
        worker: format!("worker-{number}"),
        kinds: vec!["noop".parse().unwrap()],
        long: 0,
        short: 2,
        lease: LEASE,
        only: None,
        skills: WorkerSkills::default(),
    };
    let deadline = Instant::now() + PATIENCE;
    let mut vanished = 0;
    loop {
        assert!(Instant::now() < deadline, "the jobs do not end");
        ledger.rescue(LEASE).await.unwrap();
        let jobs = match ledger.claim(&claims).await {
            Ok(batch) => batch.jobs,
            Err(LedgerError::Busy { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        if jobs.is_empty() {
            let counts = ledger.counts().await.unwrap();
            if counts.queued + counts.running == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        for Claimed { job, token, .. } in jobs {
            let fencing = Fencing { job: job.id, token };
            if random.random_ratio(1, 4) {
                let other = accepted[random.random_range(0..accepted.len())];
                ledger.request_cancel(other).await.unwrap();
            }
            let ending = match random.random_range(0..10) {
                0..4 => Ending::Succeeded { result: json!(1) },
                4..7 => Ending::Failed {
                    problem: Problem::transient("test.failed", "it failed", ""),
                },
                7 => Ending::Failed {
                    problem: Problem::interrupted(),
                },
                8 => Ending::Failed {
                    problem: Problem::permanent("test.never", "it cannot be", ""),
                },
                _ if vanished < 3 => {
                    // It dies with what it holds, and starts again under another name.
                    vanished += 1;
                    claims.worker = format!("worker-{number}-{vanished}");
                    break;
                }
                _ => Ending::Succeeded { result: json!(2) },
            };
            match ledger.complete(fencing, ending).await {
                // It was too slow, and the job was taken back.
                Ok(_) | Err(LedgerError::Superseded { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

async fn history_of(url: &str, seed: u64, slack: Duration) -> History {
    let ledger = open(url).await;
    ledger
        .ensure_tenant(&TenantId::default_tenant())
        .await
        .unwrap();
    ledger
        .set_limit(&Scope::Tenant(TenantId::default_tenant()), MOST)
        .await
        .unwrap();
    let databases = databases(&ledger).await;
    let mut accepted = Vec::new();
    for n in 0..JOBS {
        let database = (n % 5 != 0).then(|| databases[n % DATABASES]);
        accepted.push(ledger.submit(request(database), None).await.unwrap().job);
    }
    let workers: Vec<_> = (0..WORKERS)
        .map(|number| tokio::spawn(work(url.to_owned(), number, seed, accepted.clone())))
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    let mut history = History::read(&ledger, slack).await.unwrap();
    history.accepted = accepted;
    history
}

fn assert_interesting(history: &History) {
    let replayed = replay(history).unwrap();
    assert_eq!((replayed.jobs, replayed.ended), (JOBS, JOBS));
    assert!(replayed.lost > 0, "{replayed:?}");
    assert!(replayed.attempts > JOBS / 2, "{replayed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_p2_what_a_postgresql_ledger_recorded_under_concurrency_is_a_run_of_the_models() {
    let server = PostgresServer::shared(PgMajor::V15);
    let database = server.create_database("replayed").unwrap();
    let history = history_of(&database.url().to_string(), 7, SERVER_SLACK).await;
    assert_interesting(&history);
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_p2_what_an_embedded_ledger_recorded_is_accepted_and_refused_once_it_is_doctored() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
    let history = history_of(&url, 11, Duration::ZERO).await;
    assert_interesting(&history);

    let refuse = |what: &str, doctor: &dyn Fn(&mut History)| {
        let mut doctored = history.clone();
        doctor(&mut doctored);
        let refusal = replay(&doctored);
        assert!(refusal.is_err(), "{what} was accepted: {refusal:?}");
    };
    let repeated = history
        .jobs
        .iter()
        .position(|job| job.attempts.len() > 1)
        .unwrap();
    let succeeded = history
        .jobs
        .iter()
        .position(|job| job.job.state == JobState::Succeeded && job.job.database.is_some())
        .unwrap();

    refuse("a job that is gone", &|history| {
        history.jobs.pop();
    });
    refuse("an attempt that is gone", &|history| {
        history.jobs[repeated].attempts.remove(0);
    });
    refuse("a token that came back", &|history| {
        let attempts = &mut history.jobs[repeated].attempts;
        attempts[1].token = attempts[0].token;
    });
    refuse("an attempt that began while another ran", &|history| {
        let attempts = &mut history.jobs[repeated].attempts;
        attempts[1].started = attempts[0].started;
    });
    refuse("an end that is not its attempt's", &|history| {
        history.jobs[succeeded].job.state = JobState::Dead;
    });
    refuse("a success that was tried again", &|history| {
        history.jobs[repeated].attempts[0].outcome = Some(AttemptOutcome::Succeeded);
    });
    refuse("a try that was not counted", &|history| {
        history.jobs[succeeded].job.tries += 1;
    });
    refuse("an event that was told twice", &|history| {
        let mut again = history.events.last().unwrap().clone();
        again.position.number += 1;
        history.events.push(again);
    });
    refuse("an event that was lost", &|history| {
        let place = history
            .events
            .iter()
            .position(|event| event.kind == "job.succeeded")
            .unwrap();
        history.events.remove(place);
    });
    refuse("a limit that was exceeded", &|history| {
        history.limits[0].most = 1;
    });
    refuse("two jobs in one database", &|history| {
        // The other attempt runs through all of this one.
        let database = history.jobs[succeeded].job.database;
        let during = history.jobs[succeeded].attempts.last().unwrap().clone();
        let other = history
            .jobs
            .iter_mut()
            .enumerate()
            .find(|(place, job)| {
                *place != succeeded && job.job.database == database && job.attempts.len() == 1
            })
            .unwrap()
            .1;
        other.job.submitted = during.started;
        other.attempts[0].started = during.started;
        other.attempts[0].token = AttemptToken::new(1, 1);
        other.attempts[0].ended = during.ended;
        other.job.ended = during.ended;
    });
}
