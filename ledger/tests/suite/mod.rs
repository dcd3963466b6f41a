//! The suite: what a ledger promises, each function on a fresh one. Leases are short, and every wait is
//! for a condition.

mod access;
mod baselines;
mod findings;
mod limits;
mod place;
mod tuning;

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    time::{Duration, Instant},
};

pub use access::*;
pub use baselines::*;
use fettler_ledger::{
    BackupFilter, Beat, BeatAnswer, CancelOutcome, ClaimRequest, Claimed, DatabaseChange,
    DatabaseRecord, DatabaseTerms, Ended, Ending, EventPosition, Fencing, Idempotency,
    IdentityOutcome, JobFilter, Ledger, LedgerError, LedgerOptions, PolicyChange, PolicyRecord,
    QueuedLine, Readied, TenantChange, Tick, TickAction, TickResult, WorkerSkills,
};
use fettler_model::{
    AttemptOutcome, BackupFacts, BackupId, BackupState, DatabaseId, DatabaseUrl, Engine,
    ExclusionClass, JobId, JobKindName, JobRequest, JobState, JobTerms, PolicyId, PolicySpec,
    Priority, Problem, Progress, ProofFacts, ProofVerdict, SecretReference, SlotClass, TenantId,
    TickOutcome, Timestamp, WaitReason,
};
pub use findings::*;
pub use limits::*;
pub use place::Place;
use serde_json::json;
pub use tuning::*;

/// A lease that a test can wait out.
const SHORT: Duration = Duration::from_millis(60);
/// A lease that no test waits out.
const LONG: Duration = Duration::from_secs(600);

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn request(kind: &str) -> JobRequest {
    JobRequest {
        tenant: tenant(),
        kind: kind.parse().unwrap(),
        kind_version: 1,
        database: None,
        arguments: json!({"of": kind}),
        exclusion: ExclusionClass::Free,
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

fn backup_of(database: DatabaseId) -> JobRequest {
    JobRequest {
        database: Some(database),
        exclusion: ExclusionClass::Backup,
        slot: SlotClass::Long,
        ..request("backup")
    }
}

fn room(worker: &str, lease: Duration) -> ClaimRequest {
    ClaimRequest {
        worker: worker.to_owned(),
        kinds: vec!["backup".parse().unwrap(), "noop".parse().unwrap()],
        long: 10,
        short: 10,
        lease,
        skills: WorkerSkills::default(),
        only: None,
    }
}

fn fencing(claimed: &Claimed) -> Fencing {
    Fencing {
        job: claimed.job.id,
        token: claimed.token,
    }
}

fn succeeded() -> Ending {
    Ending::Succeeded {
        result: json!({"done": true}),
    }
}

fn failed(problem: Problem) -> Ending {
    Ending::Failed { problem }
}

async fn submit(ledger: &Ledger, request: JobRequest) -> JobId {
    let submitted = ledger.submit(request, None).await.unwrap();
    assert!(!submitted.existing);
    submitted.job
}

/// Claims exactly one job.
async fn claim_one(ledger: &Ledger, lease: Duration) -> Claimed {
    let mut batch = ledger.claim(&room("worker", lease)).await.unwrap();
    assert_eq!(batch.jobs.len(), 1, "{batch:?}");
    batch.jobs.remove(0)
}

async fn claim_none(ledger: &Ledger) {
    let batch = ledger.claim(&room("worker", LONG)).await.unwrap();
    assert_eq!(batch.jobs, []);
}

/// Waits until a look finds something.
async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "waited for {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a lease has run out and its job was taken back.
async fn rescue_one(ledger: &Ledger) -> fettler_ledger::Rescued {
    eventually("a rescue", || async {
        ledger.rescue(SHORT).await.unwrap().pop()
    })
    .await
}

async fn add_database(ledger: &Ledger, name: &str) -> DatabaseId {
    let (url, _) = DatabaseUrl::parse_with_password(&format!("/data/{name}.sqlite")).unwrap();
    let record = DatabaseRecord {
        id: DatabaseId::new(),
        tenant: tenant(),
        name: name.parse().unwrap(),
        url,
        password: None,
        identity_key: None,
        labels: [("zone".to_owned(), "dmz".to_owned())].into(),
        sandbox: json!({"place": "automatic"}),
        created: Timestamp::from_micros(0),
        terms: DatabaseTerms::default(),
    };
    ledger.add_database(&record).await.unwrap().id
}

pub async fn p1_a_job_is_there_once_it_was_accepted(place: &Place) {
    let ledger = place.open().await;
    let mut wanted = request("noop");
    wanted.tags = vec!["nightly".to_owned(), "50%".to_owned()];
    wanted.priority = Priority::High;
    let id = submit(&ledger, wanted.clone()).await;
    // Another process sees it.
    let other = place.open().await;
    let job = other.job(id).await.unwrap();
    assert_eq!(job.state, JobState::Queued);
    assert_eq!(job.arguments, wanted.arguments);
    assert_eq!(job.tags, wanted.tags);
    assert_eq!(job.priority, Priority::High);
    assert_eq!((job.attempt, job.tries), (0, 0));

    let claimed = claim_one(&other, LONG).await;
    assert_eq!(claimed.job.id, id);
    assert_eq!(ledger.job(id).await.unwrap().state, JobState::Running);
    let ended = other
        .complete(fencing(&claimed), succeeded())
        .await
        .unwrap();
    assert_eq!(ended, Ended::Final(JobState::Succeeded));
    let job = ledger.job(id).await.unwrap();
    assert_eq!(job.state, JobState::Succeeded);
    assert_eq!(job.result, Some(json!({"done": true})));
    assert_eq!(job.arguments, wanted.arguments);
    assert!(job.ended.unwrap() >= job.started.unwrap());
    let attempts = ledger.attempts(id).await.unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].outcome, Some(AttemptOutcome::Succeeded));
}

pub async fn p1_a_job_whose_worker_vanished_is_taken_up_again(place: &Place) {
    let ledger = place.open().await;
    let id = submit(&ledger, request("noop")).await;
    let lost = claim_one(&ledger, SHORT).await;
    // Whoever rescues is another process.
    let other = place.open().await;
    let rescued = rescue_one(&other).await;
    assert_eq!((rescued.job, rescued.token), (id, lost.token));
    assert_eq!(rescued.ended, Ended::Queued { not_before: None });
    let job = other.job(id).await.unwrap();
    assert_eq!((job.state, job.lost, job.tries), (JobState::Queued, 1, 0));
    let again = claim_one(&other, LONG).await;
    assert_eq!(again.job.attempt, 2);
    other.complete(fencing(&again), succeeded()).await.unwrap();
    let outcomes: Vec<_> = other
        .attempts(id)
        .await
        .unwrap()
        .into_iter()
        .map(|a| a.outcome)
        .collect();
    assert_eq!(
        outcomes,
        [Some(AttemptOutcome::Lost), Some(AttemptOutcome::Succeeded)]
    );
}

pub async fn p1_a_lease_that_outlasts_the_word_of_its_worker_is_swept_when_it_ends(place: &Place) {
    let ledger = place.open().await;
    let id = submit(&ledger, request("noop")).await;
    let lease = 5 * SHORT;
    let lost = claim_one(&ledger, lease).await;
    let kinds = room("worker", SHORT).kinds;
    ledger
        .announce_worker("worker", &kinds, SHORT)
        .await
        .unwrap();
    let claimed = Instant::now();
    let rescued = rescue_one(&ledger).await;
    assert_eq!((rescued.job, rescued.token), (id, lost.token));
    // Not only when everything is looked through, as it is now and then.
    assert!(claimed.elapsed() < lease + Duration::from_secs(10));
}

pub async fn p1_nothing_is_rescued_while_its_lease_is_renewed(place: &Place) {
    let ledger = place.open().await;
    submit(&ledger, request("noop")).await;
    let lease = Duration::from_millis(600);
    let claimed = claim_one(&ledger, lease).await;
    let until = Instant::now() + 3 * lease;
    while Instant::now() < until {
        let beat = Beat {
            job: claimed.job.id,
            token: claimed.token,
            progress: None,
        };
        let answers = ledger.heartbeat("worker", &[beat], lease).await.unwrap();
        assert_eq!(answers, [BeatAnswer::Renewed]);
        assert_eq!(ledger.rescue(lease).await.unwrap(), []);
        tokio::time::sleep(lease / 12).await;
    }
    // Without heartbeats it is.
    rescue_one(&ledger).await;
}

pub async fn p2_what_a_superseded_attempt_writes_is_refused(place: &Place) {
    let ledger = place.open().await;
    let id = submit(&ledger, request("noop")).await;
    let zombie = claim_one(&ledger, SHORT).await;
    rescue_one(&ledger).await;

    let refused_all = async |when: &str| {
        let old = fencing(&zombie);
        let refused = |outcome: Result<(), LedgerError>| {
            assert!(
                matches!(outcome, Err(LedgerError::Superseded { .. })),
                "{when}: {outcome:?}"
            );
        };
        refused(ledger.check_fence(old).await);
        refused(ledger.save_checkpoint(old, &json!({"of": "zombie"})).await);
        refused(ledger.append_log(old, &["zombie".to_owned()]).await);
        refused(
            ledger
                .record_artefact(old, "zombie", &json!({}), false)
                .await,
        );
        refused(ledger.complete(old, succeeded()).await.map(drop));
        refused(ledger.claimed(old).await.map(drop));
        refused(
            ledger
                .upsert_backup("place", &backup_facts(BackupId::of_job(id)), Some(old))
                .await,
        );
        let beat = Beat {
            job: id,
            token: old.token,
            progress: Some(Progress::default()),
        };
        let answers = ledger.heartbeat("worker", &[beat], LONG).await.unwrap();
        assert_eq!(answers, [BeatAnswer::Superseded], "{when}");
    };
    refused_all("queued again").await;
    let newer = claim_one(&ledger, LONG).await;
    refused_all("a newer attempt runs").await;
    ledger.check_fence(fencing(&newer)).await.unwrap();
    ledger.complete(fencing(&newer), succeeded()).await.unwrap();
    refused_all("ended").await;
    assert_eq!(ledger.backups(&BackupFilter::default()).await.unwrap(), []);
    assert_eq!(ledger.load_checkpoint(id).await.unwrap(), None);
    assert_eq!(ledger.log_lines(id, 0).await.unwrap(), []);
}

pub async fn p2_a_token_rises_with_every_attempt(place: &Place) {
    let ledger = place.open().await;
    submit(&ledger, request("noop")).await;
    let mut last = None;
    for number in 1..=5 {
        let claimed = claim_one(&ledger, LONG).await;
        assert_eq!(claimed.token.attempt_number(), number);
        assert!(last < Some(claimed.token));
        last = Some(claimed.token);
        ledger
            .complete(fencing(&claimed), failed(Problem::interrupted()))
            .await
            .unwrap();
    }
}

pub async fn p3_the_next_attempt_finds_the_checkpoint(place: &Place) {
    let ledger = place.open().await;
    let id = submit(&ledger, request("noop")).await;
    let first = claim_one(&ledger, SHORT).await;
    assert_eq!(ledger.load_checkpoint(id).await.unwrap(), None);
    ledger
        .save_checkpoint(fencing(&first), &json!({"packs": 1}))
        .await
        .unwrap();
    ledger
        .save_checkpoint(fencing(&first), &json!({"packs": 2}))
        .await
        .unwrap();
    rescue_one(&ledger).await;
    let second = claim_one(&ledger, LONG).await;
    assert_eq!(
        ledger.load_checkpoint(id).await.unwrap(),
        Some(json!({"packs": 2}))
    );
    ledger
        .complete(fencing(&second), succeeded())
        .await
        .unwrap();
    assert_eq!(
        ledger.load_checkpoint(id).await.unwrap(),
        None,
        "an ended job needs none"
    );
}

pub async fn p6_a_job_cannot_name_the_database_of_another_tenant(place: &Place) {
    let ledger = place.open().await;
    let database = add_database(&ledger, "shop").await;
    let stranger: TenantId = "stranger".parse().unwrap();
    ledger.add_tenant(&stranger).await.unwrap();
    let theirs = JobRequest {
        tenant: stranger.clone(),
        ..backup_of(database)
    };
    let refused = ledger.submit(theirs, None).await.unwrap_err();
    assert!(matches!(
        refused,
        LedgerError::NotFound {
            what: "database",
            ..
        }
    ));
    let id = ledger.put_sealed(&tenant(), b"sealed").await.unwrap();
    assert!(ledger.sealed(&stranger, id).await.is_err());
    assert_eq!(ledger.sealed(&tenant(), id).await.unwrap(), b"sealed");
}

pub async fn p12_a_waiting_job_says_why(place: &Place) {
    let ledger = place.open().await;
    let database = add_database(&ledger, "shop").await;
    let why = async |id: JobId| ledger.job(id).await.unwrap().wait.unwrap();

    let lonely = submit(&ledger, request("unknown")).await;
    let ready = submit(&ledger, request("noop")).await;
    assert!(matches!(
        why(ready).await,
        WaitReason::NoWorkerForKind { .. }
    ));
    let mut full = room("worker", LONG);
    (full.long, full.short) = (0, 0);
    ledger.claim(&full).await.unwrap();
    assert_eq!(why(ready).await, WaitReason::Ready);
    assert_eq!(
        why(lonely).await,
        WaitReason::NoWorkerForKind {
            kind: "unknown".parse().unwrap()
        }
    );

    let at = ledger.now().await.unwrap().plus(LONG);
    let later = JobRequest {
        not_before: Some(at),
        ..request("noop")
    };
    let later = submit(&ledger, later).await;
    assert_eq!(why(later).await, WaitReason::NotBefore { at });

    let claimed = claim_one(&ledger, LONG).await;
    let broken = Problem::transient("test.broken", "it broke", "");
    ledger
        .complete(fencing(&claimed), failed(broken.clone()))
        .await
        .unwrap();
    match why(ready).await {
        WaitReason::RetryAt { because, .. } => assert_eq!(because, broken),
        other => panic!("{other:?}"),
    }

    let runs = submit(&ledger, backup_of(database)).await;
    let waits = submit(&ledger, backup_of(database)).await;
    let behind = submit(&ledger, backup_of(database)).await;
    let claimed = ledger.claim(&room("worker", LONG)).await.unwrap().jobs;
    assert!(claimed.iter().any(|claimed| claimed.job.id == runs));
    let busy = WaitReason::DatabaseBusy {
        job: runs,
        kind: "backup".parse().unwrap(),
    };
    assert_eq!(why(waits).await, busy);
    assert_eq!(why(behind).await, busy);
    let listed = ledger
        .jobs(&JobFilter {
            kind: Some("backup".parse().unwrap()),
            ..JobFilter::default()
        })
        .await
        .unwrap();
    assert_eq!(
        listed
            .iter()
            .filter(|job| job.wait == Some(busy.clone()))
            .count(),
        2
    );
}

pub async fn rule_1_a_cancellation_outlives_a_crash(place: &Place) {
    let ledger = place.open().await;
    let id = submit(&ledger, request("noop")).await;
    let mut cancellations = ledger.cancellations();
    let claimed = claim_one(&ledger, SHORT).await;
    assert_eq!(
        ledger.request_cancel(id).await.unwrap(),
        CancelOutcome::Requested
    );
    assert_eq!(cancellations.recv().await.unwrap(), id);
    let beat = Beat {
        job: id,
        token: claimed.token,
        progress: None,
    };
    let answers = ledger.heartbeat("worker", &[beat], SHORT).await.unwrap();
    assert_eq!(answers, [BeatAnswer::CancelRequested]);
    // The worker dies before it can stop.
    let rescued = rescue_one(&ledger).await;
    assert_eq!(rescued.ended, Ended::Final(JobState::Cancelled));
    assert_eq!(ledger.job(id).await.unwrap().state, JobState::Cancelled);
    claim_none(&ledger).await;
}

pub async fn rule_1_a_queued_job_is_cancelled_at_once(place: &Place) {
    let ledger = place.open().await;
    let id = submit(&ledger, request("noop")).await;
    assert_eq!(
        ledger.request_cancel(id).await.unwrap(),
        CancelOutcome::Cancelled
    );
    let again = ledger.request_cancel(id).await.unwrap();
    assert_eq!(again, CancelOutcome::AlreadyEnded(JobState::Cancelled));
    claim_none(&ledger).await;
    assert_eq!(ledger.attempts(id).await.unwrap(), []);
    let none = ledger.request_cancel(JobId::new()).await.unwrap_err();
    assert!(matches!(none, LedgerError::NotFound { .. }));

    // One that runs and then fails is cancelled, not tried again.
    let id = submit(&ledger, request("noop")).await;
    let claimed = claim_one(&ledger, LONG).await;
    ledger.request_cancel(id).await.unwrap();
    let ended = ledger
        .complete(
            fencing(&claimed),
            failed(Problem::transient("test.cut", "cut", "")),
        )
        .await
        .unwrap();
    assert_eq!(ended, Ended::Final(JobState::Cancelled));
}

pub async fn rule_1_a_job_is_repeated_as_a_new_job_that_names_the_old_one(place: &Place) {
    let ledger = place.open().await;
    let old = submit(&ledger, request("noop")).await;
    assert!(matches!(
        ledger.retry(old).await,
        Err(LedgerError::Conflict { .. })
    ));
    let claimed = claim_one(&ledger, LONG).await;
    let problem = Problem::permanent("test.wrong", "wrong", "");
    ledger
        .complete(fencing(&claimed), failed(problem))
        .await
        .unwrap();
    let new = ledger.retry(old).await.unwrap().job;
    assert_ne!(new, old);
    let job = ledger.job(new).await.unwrap();
    assert_eq!(
        (job.retry_of, job.state, job.tries),
        (Some(old), JobState::Queued, 0)
    );
    assert_eq!(ledger.job(old).await.unwrap().state, JobState::Dead);
}

pub async fn rule_2_a_drain_and_a_snooze_spend_no_try(place: &Place) {
    let ledger = place.open().await;
    let id = submit(
        &ledger,
        JobRequest {
            max_tries: 1,
            ..request("noop")
        },
    )
    .await;
    for _ in 0..3 {
        let claimed = claim_one(&ledger, LONG).await;
        let ended = ledger
            .complete(fencing(&claimed), failed(Problem::interrupted()))
            .await
            .unwrap();
        assert_eq!(ended, Ended::Queued { not_before: None }, "back at once");
    }
    let claimed = claim_one(&ledger, LONG).await;
    let before = ledger.now().await.unwrap();
    let snooze = Problem::snooze("test.busy", "busy", Duration::from_secs(30));
    let ended = ledger
        .complete(fencing(&claimed), failed(snooze))
        .await
        .unwrap();
    let Ended::Queued {
        not_before: Some(at),
    } = ended
    else {
        panic!("{ended:?}")
    };
    assert!(at.since(before) >= Duration::from_secs(29));
    let job = ledger.job(id).await.unwrap();
    assert_eq!((job.tries, job.attempt), (0, 4));
    assert!(matches!(job.wait, Some(WaitReason::Snoozed { .. })));
    claim_none(&ledger).await;
}

pub async fn rule_2_transient_failures_are_retried_until_the_tries_are_spent(place: &Place) {
    let options = LedgerOptions {
        retry_base: Duration::from_millis(4),
        ..LedgerOptions::default()
    };
    let ledger = place.open_with(options).await;
    let id = submit(&ledger, request("noop")).await;
    let broken = || failed(Problem::transient("test.broken", "it broke", ""));
    for spent in 1..=3 {
        let claimed = eventually("the next try", || async {
            ledger
                .claim(&room("worker", LONG))
                .await
                .unwrap()
                .jobs
                .pop()
        })
        .await;
        assert_eq!(claimed.job.tries, spent - 1);
        let ended = ledger.complete(fencing(&claimed), broken()).await.unwrap();
        assert_eq!(
            ended == Ended::Final(JobState::Dead),
            spent == 3,
            "{ended:?}"
        );
    }
    let job = ledger.job(id).await.unwrap();
    assert_eq!((job.state, job.tries), (JobState::Dead, 3));
    assert_eq!(job.problem.unwrap().code, "test.broken");
    assert_eq!(ledger.attempts(id).await.unwrap().len(), 3);
}

pub async fn rule_2_a_permanent_failure_is_final(place: &Place) {
    let ledger = place.open().await;
    let id = submit(&ledger, request("noop")).await;
    let claimed = claim_one(&ledger, LONG).await;
    let wrong = Problem::permanent("test.wrong", "wrong \0 password", "set it");
    let ended = ledger
        .complete(fencing(&claimed), failed(wrong))
        .await
        .unwrap();
    assert_eq!(ended, Ended::Final(JobState::Dead));
    assert_eq!(
        ledger.job(id).await.unwrap().problem.unwrap().remedy,
        "set it"
    );
}

pub async fn rule_3_a_completion_that_is_repeated_gets_the_same_answer(place: &Place) {
    let ledger = place.open().await;
    submit(&ledger, request("noop")).await;
    let claimed = claim_one(&ledger, LONG).await;
    for _ in 0..3 {
        let ended = ledger
            .complete(fencing(&claimed), succeeded())
            .await
            .unwrap();
        assert_eq!(ended, Ended::Final(JobState::Succeeded));
    }
    submit(&ledger, request("noop")).await;
    let claimed = claim_one(&ledger, LONG).await;
    let snooze = || {
        failed(Problem::snooze(
            "test.busy",
            "busy",
            Duration::from_secs(30),
        ))
    };
    let first = ledger.complete(fencing(&claimed), snooze()).await.unwrap();
    assert_eq!(
        ledger.complete(fencing(&claimed), snooze()).await.unwrap(),
        first
    );
}

pub async fn rule_4_parked_jobs_keep_their_order_and_exactly_the_first_is_woken(place: &Place) {
    let ledger = place.open().await;
    let database = add_database(&ledger, "shop").await;
    let mut order = Vec::new();
    for _ in 0..6 {
        order.push(submit(&ledger, backup_of(database)).await);
    }
    let urgent = JobRequest {
        priority: Priority::Highest,
        ..backup_of(database)
    };
    let mut started = Vec::new();
    let mut running = claim_one(&ledger, LONG).await;
    // Everything behind the first is parked now; one that is more urgent goes before them.
    claim_none(&ledger).await;
    let urgent = submit(&ledger, urgent).await;
    claim_none(&ledger).await;
    order.insert(1, urgent);
    loop {
        started.push(running.job.id);
        ledger
            .complete(fencing(&running), succeeded())
            .await
            .unwrap();
        let mut next = ledger.claim(&room("worker", LONG)).await.unwrap().jobs;
        let Some(next) = next.pop() else { break };
        running = next;
        // Only one was woken, and it runs: nothing else is claimable.
        claim_none(&ledger).await;
    }
    assert_eq!(started, order);
}

pub async fn rule_4_a_cancelled_job_passes_its_turn_on(place: &Place) {
    let ledger = place.open().await;
    let database = add_database(&ledger, "shop").await;
    let first = submit(&ledger, backup_of(database)).await;
    let second = submit(&ledger, backup_of(database)).await;
    let third = submit(&ledger, backup_of(database)).await;
    let running = claim_one(&ledger, LONG).await;
    assert_eq!(running.job.id, first);
    ledger
        .complete(fencing(&running), succeeded())
        .await
        .unwrap();
    // The second was woken, and goes before it ran.
    ledger.request_cancel(second).await.unwrap();
    assert_eq!(claim_one(&ledger, LONG).await.job.id, third);
}

pub async fn rule_7_a_job_whose_worker_died_runs_alone_and_dies_after_two_deaths(place: &Place) {
    let options = LedgerOptions {
        retry_base: Duration::from_millis(1),
        ..LedgerOptions::default()
    };
    let ledger = place.open_with(options).await;
    let id = submit(
        &ledger,
        JobRequest {
            max_tries: 10,
            ..request("noop")
        },
    )
    .await;
    assert!(!claim_one(&ledger, SHORT).await.job.isolated);
    rescue_one(&ledger).await;
    let died = || Ending::Died {
        problem: Problem::transient("job.died", "its process was killed", ""),
    };
    for death in 1..=2 {
        let claimed = eventually("the next try", || async {
            ledger
                .claim(&room("worker", LONG))
                .await
                .unwrap()
                .jobs
                .pop()
        })
        .await;
        assert!(claimed.job.isolated);
        // The process of its own finds the claim by its token.
        assert_eq!(ledger.claimed(fencing(&claimed)).await.unwrap().job.id, id);
        let ended = ledger.complete(fencing(&claimed), died()).await.unwrap();
        assert_eq!(ended == Ended::Final(JobState::Dead), death == 2);
    }
    assert_eq!(ledger.job(id).await.unwrap().state, JobState::Dead);
}

pub async fn rule_8_a_bad_request_in_a_batch_fails_alone(place: &Place) {
    let ledger = place.open().await;
    let requests = (0..40)
        .map(|n| {
            let mut request = request("noop");
            match n {
                7 => request.arguments = json!({"text": "a\0b"}),
                8 => request.arguments = json!({"a\0b": 1}),
                20 => request.database = Some(DatabaseId::new()),
                21 => request.max_tries = 0,
                _ => {}
            }
            (request, None)
        })
        .collect();
    let results = ledger.submit_batch(requests).await;
    for (n, result) in results.iter().enumerate() {
        assert_eq!(
            result.is_err(),
            [7, 8, 20, 21].contains(&n),
            "{n}: {result:?}"
        );
    }
    assert_eq!(ledger.counts().await.unwrap().queued, 36);
}

pub async fn rule_9_no_job_is_claimed_twice_by_many_workers(place: &Place) {
    const JOBS: usize = 400;
    let ledger = place.open().await;
    let handles = [ledger.clone(), place.open().await, place.open().await];
    let submitters = (0..JOBS).map(|_| {
        let ledger = ledger.clone();
        tokio::spawn(async move { submit(&ledger, request("noop")).await })
    });
    let submitters: Vec<_> = submitters.collect();
    let workers: Vec<_> = (0..6)
        .map(|n| {
            let ledger = handles[n % handles.len()].clone();
            tokio::spawn(async move {
                let worker = format!("worker-{n}");
                let mut mine = Vec::new();
                let mut idle_since = Instant::now();
                while idle_since.elapsed() < Duration::from_secs(2) {
                    let batch = ledger.claim(&room(&worker, LONG)).await.unwrap();
                    if !batch.jobs.is_empty() {
                        idle_since = Instant::now();
                    } else if ledger.counts().await.unwrap().queued == 0 && !mine.is_empty() {
                        break;
                    }
                    let ends = batch
                        .jobs
                        .iter()
                        .map(|claimed| ledger.complete(fencing(claimed), succeeded()));
                    for ended in futures::future::join_all(ends).await {
                        assert_eq!(ended.unwrap(), Ended::Final(JobState::Succeeded));
                    }
                    mine.extend(batch.jobs.into_iter().map(|claimed| claimed.job.id));
                }
                mine
            })
        })
        .collect();
    let submitted: HashSet<JobId> = futures::future::join_all(submitters)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let mut claimed = Vec::new();
    for worker in workers {
        claimed.extend(worker.await.unwrap());
    }
    // A worker may have stopped while others still submitted.
    loop {
        let batch = ledger.claim(&room("last", LONG)).await.unwrap();
        if batch.jobs.is_empty() {
            break;
        }
        for job in batch.jobs {
            ledger.complete(fencing(&job), succeeded()).await.unwrap();
            claimed.push(job.job.id);
        }
    }
    assert_eq!(claimed.len(), JOBS);
    assert_eq!(claimed.into_iter().collect::<HashSet<_>>(), submitted);
    let counts = ledger.counts().await.unwrap();
    assert_eq!((counts.queued, counts.running), (0, 0));
}

pub async fn rule_10_a_reader_of_events_that_resumes_misses_none(place: &Place) {
    const JOBS: usize = 120;
    let ledger = place.open().await;
    let reader = place.open().await;
    let reading = tokio::spawn(async move {
        let mut position = EventPosition::default();
        let mut seen = Vec::new();
        let started = Instant::now();
        while seen.len() < JOBS {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "{} seen",
                seen.len()
            );
            let page = reader.events_after(position, 7).await.unwrap();
            for event in page {
                assert!(event.position > position);
                position = event.position;
                if event.kind == "job.succeeded" {
                    seen.push(event.job.unwrap());
                }
            }
        }
        seen
    });
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                for _ in 0..JOBS / 4 {
                    submit(&ledger, request("noop")).await;
                    let batch = ledger.claim(&room("worker", LONG)).await.unwrap();
                    for claimed in batch.jobs {
                        ledger
                            .complete(fencing(&claimed), succeeded())
                            .await
                            .unwrap();
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    loop {
        let batch = ledger.claim(&room("worker", LONG)).await.unwrap();
        if batch.jobs.is_empty() {
            break;
        }
        for claimed in batch.jobs {
            ledger
                .complete(fencing(&claimed), succeeded())
                .await
                .unwrap();
        }
    }
    let seen = reading.await.unwrap();
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), JOBS);
}

pub async fn rule_12_an_idempotency_key_gives_the_same_job_and_refuses_another_request(
    place: &Place,
) {
    let ledger = place.open().await;
    let other = place.open().await;
    let key = |hash: u8| {
        Some(Idempotency {
            key: "order-66".to_owned(),
            request_hash: [hash; 32],
        })
    };
    let calls = (0..20).map(|n| {
        let ledger = if n % 2 == 0 { &ledger } else { &other };
        ledger.submit(request("noop"), key(1))
    });
    let results: Vec<_> = futures::future::join_all(calls)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        results
            .iter()
            .filter(|submitted| !submitted.existing)
            .count(),
        1
    );
    assert_eq!(
        results
            .iter()
            .map(|submitted| submitted.job)
            .collect::<HashSet<_>>()
            .len(),
        1
    );
    let claimed = claim_one(&ledger, LONG).await;
    ledger
        .complete(fencing(&claimed), succeeded())
        .await
        .unwrap();
    let again = ledger.submit(request("noop"), key(1)).await.unwrap();
    assert_eq!((again.job, again.existing), (claimed.job.id, true));
    let refused = ledger.submit(request("noop"), key(2)).await.unwrap_err();
    assert!(
        matches!(refused, LedgerError::IdempotencyMismatch { job, .. } if job == claimed.job.id)
    );
    // Another tenant's key is another key (P6).
    let stranger: TenantId = "stranger".parse().unwrap();
    ledger.add_tenant(&stranger).await.unwrap();
    let theirs = JobRequest {
        tenant: stranger,
        ..request("noop")
    };
    assert!(!ledger.submit(theirs, key(2)).await.unwrap().existing);
}

pub async fn rule_12_a_job_that_ends_is_seen_exactly_once(place: &Place) {
    let ledger = place.open().await;
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(submit(&ledger, request("noop")).await);
    }
    let reader = place.open().await;
    let reading = {
        let ids = ids.clone();
        tokio::spawn(async move {
            loop {
                let jobs = reader.jobs(&JobFilter::default()).await.unwrap();
                assert_eq!(jobs.len(), ids.len());
                let job = reader.job(ids[7]).await.unwrap();
                if jobs.iter().all(|job| job.state.is_final()) {
                    return job.state;
                }
            }
        })
    };
    loop {
        let batch = ledger
            .claim(&ClaimRequest {
                short: 1,
                ..room("worker", LONG)
            })
            .await
            .unwrap();
        let Some(claimed) = batch.jobs.first() else {
            break;
        };
        ledger
            .complete(fencing(claimed), succeeded())
            .await
            .unwrap();
    }
    assert_eq!(reading.await.unwrap(), JobState::Succeeded);
}

pub async fn rule_15_claimable_jobs_are_read_in_pages_in_the_order_of_claims(place: &Place) {
    let ledger = place.open().await;
    let mut expected = Vec::new();
    for priority in [Priority::Low, Priority::Highest, Priority::Normal] {
        let mut level = Vec::new();
        for _ in 0..3 {
            let request = JobRequest {
                priority,
                ..request("noop")
            };
            level.push(submit(&ledger, request).await);
        }
        expected.push((priority, level));
    }
    expected.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
    let mut expected: Vec<JobId> = expected.into_iter().flat_map(|(_, level)| level).collect();
    // What is not claimable is on no page: delayed, running, of another slot class or kind.
    let later = JobRequest {
        not_before: Some(ledger.now().await.unwrap().plus(LONG)),
        ..request("noop")
    };
    submit(&ledger, later).await;
    let long = JobRequest {
        slot: SlotClass::Long,
        ..request("noop")
    };
    let long = submit(&ledger, long).await;
    submit(&ledger, request("other")).await;
    let first = ClaimRequest {
        long: 0,
        short: 1,
        ..room("worker", LONG)
    };
    let running = ledger.claim(&first).await.unwrap().jobs.remove(0);
    assert_eq!(running.job.id, expected.remove(0));

    let noop: JobKindName = "noop".parse().unwrap();
    let lines = ledger.queued_lines().await.unwrap();
    let line = |slot, kind: &JobKindName| QueuedLine {
        slot,
        kind: kind.clone(),
        line: String::new(),
        tenant: tenant(),
    };
    let other = "other".parse().unwrap();
    assert_eq!(
        lines,
        [
            line(SlotClass::Long, &noop),
            line(SlotClass::Short, &noop),
            line(SlotClass::Short, &other)
        ]
    );
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let page = ledger.queued_page(&lines[1], after, 3).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.rank, last.id));
        read.extend(page);
    }
    assert_eq!(read.iter().map(|job| job.id).collect::<Vec<_>>(), expected);
    let ageing = ledger.ageing();
    for job in &read {
        let record = ledger.job(job.id).await.unwrap();
        let levels = u32::try_from(record.priority.level()).unwrap();
        assert_eq!(job.rank, record.submitted.minus(ageing * levels));
        assert_eq!((job.attempt, job.kind_version), (0, 1));
    }
    let among = ledger
        .queued_among(&[running.job.id, expected[0], long, JobId::new()])
        .await
        .unwrap();
    let among: HashSet<JobId> = among.iter().map(|job| job.id).collect();
    assert_eq!(among, HashSet::from([expected[0], long]));
}

pub async fn rule_15_a_commit_names_the_jobs_that_it_made_claimable(place: &Place) {
    let ledger = place.open().await;
    let mut readied = ledger.readied();
    let mut named = move || {
        let mut ids = Vec::new();
        while let Ok(some) = readied.try_recv() {
            ids.extend(some.iter().map(Readied::id));
        }
        ids
    };
    // Submitted; not again when the same is asked for again.
    let unique = JobRequest {
        unique_key: Some("one".to_owned()),
        ..request("noop")
    };
    let plain = submit(&ledger, unique.clone()).await;
    assert!(ledger.submit(unique, None).await.unwrap().existing);
    assert_eq!(named(), [plain]);
    // Handed back.
    let claimed = claim_one(&ledger, LONG).await;
    assert_eq!(named(), []);
    let back = failed(Problem::interrupted());
    ledger.complete(fencing(&claimed), back).await.unwrap();
    assert_eq!(named(), [plain]);
    claim_one(&ledger, LONG).await;
    // Delayed: when it is due, not before. One is so far away that no slow machine makes it due within its submit.
    let delayed = async |delay: Duration| {
        let delayed = JobRequest {
            not_before: Some(ledger.now().await.unwrap().plus(delay)),
            ..request("noop")
        };
        submit(&ledger, delayed).await
    };
    delayed(LONG).await;
    assert_eq!(named(), []);
    let later = delayed(SHORT).await;
    eventually("the due time", || async {
        let batch = ledger.claim(&room("worker", LONG)).await.unwrap();
        (!batch.jobs.is_empty()).then_some(())
    })
    .await;
    assert_eq!(named(), [later]);
    // Woken where it was parked.
    let database = add_database(&ledger, "shop").await;
    let first = submit(&ledger, backup_of(database)).await;
    let second = submit(&ledger, backup_of(database)).await;
    assert_eq!(named(), [first, second]);
    let claimed = claim_one(&ledger, LONG).await;
    assert_eq!(claimed.job.id, first);
    assert_eq!(named(), []);
    ledger
        .complete(fencing(&claimed), succeeded())
        .await
        .unwrap();
    assert_eq!(named(), [second]);
}

pub async fn rule_16_a_waiting_job_rises_with_its_age(place: &Place) {
    let options = LedgerOptions {
        ageing: Duration::from_millis(50),
        ..LedgerOptions::default()
    };
    let ledger = place.open_with(options).await;
    let of = |priority| JobRequest {
        priority,
        ..request("noop")
    };
    let low = submit(&ledger, of(Priority::Lowest)).await;
    let started = ledger.now().await.unwrap();
    let high = submit(&ledger, of(Priority::Highest)).await;
    eventually("four ageing intervals", || async {
        let passed = ledger.now().await.unwrap().since(started);
        (passed > Duration::from_millis(200)).then_some(())
    })
    .await;
    let late = submit(&ledger, of(Priority::Highest)).await;
    let normal = submit(&ledger, of(Priority::Normal)).await;
    let order: Vec<JobId> = ledger
        .claim(&room("worker", LONG))
        .await
        .unwrap()
        .jobs
        .iter()
        .map(|claimed| claimed.job.id)
        .collect();
    assert_eq!(order, [high, low, late, normal]);
}

pub async fn rule_16_a_tenant_has_a_ceiling_of_priority_and_a_weight(place: &Place) {
    let ledger = place.open().await;
    let acme: TenantId = "acme".parse().unwrap();
    let plain = ledger.add_tenant(&acme).await.unwrap();
    assert_eq!(
        (plain.weight, plain.priority_ceiling),
        (1.0, Priority::Highest)
    );
    let change = TenantChange {
        weight: Some(2.5),
        priority_ceiling: Some(Priority::Low),
    };
    let edited = ledger.edit_tenant(&acme, change).await.unwrap();
    assert_eq!(
        (edited.weight, edited.priority_ceiling),
        (2.5, Priority::Low)
    );
    for bad in [0.0, -1.0, f64::NAN, 1e9] {
        let change = TenantChange {
            weight: Some(bad),
            ..TenantChange::default()
        };
        let refused = ledger.edit_tenant(&acme, change).await.unwrap_err();
        assert!(refused.remedy().contains("0.001"), "{refused}");
    }
    let same = ledger.edit_tenant(&acme, TenantChange::default()).await;
    assert_eq!(same.unwrap(), edited);
    for (asked, given) in [
        (Priority::Highest, Priority::Low),
        (Priority::Lowest, Priority::Lowest),
    ] {
        let job = JobRequest {
            tenant: acme.clone(),
            priority: asked,
            ..request("noop")
        };
        let id = submit(&ledger, job).await;
        assert_eq!(ledger.job(id).await.unwrap().priority, given);
    }
}

/// Claims and ends jobs one by one; says whose they were.
async fn work_off(ledger: &Ledger, room: &ClaimRequest, count: usize) -> Vec<String> {
    let mut tenants = Vec::new();
    while tenants.len() < count {
        let batch = ledger.claim(room).await.unwrap().jobs;
        assert!(!batch.is_empty(), "{} of {count} jobs came", tenants.len());
        for claimed in batch {
            ledger
                .complete(fencing(&claimed), succeeded())
                .await
                .unwrap();
            tenants.push(claimed.job.tenant.to_string());
        }
    }
    tenants
}

async fn submit_many(ledger: &Ledger, count: usize, of: &str) -> Vec<JobId> {
    let request = JobRequest {
        tenant: of.parse().unwrap(),
        arguments: json!(null),
        ..request("noop")
    };
    let mut ids = Vec::new();
    for _ in 0..count.div_ceil(1000) {
        let some = (count - ids.len()).min(1000);
        let batch = vec![(request.clone(), None); some];
        for submitted in ledger.submit_batch(batch).await {
            ids.push(submitted.unwrap().job);
        }
    }
    ids
}

pub async fn rule_16_a_batch_of_claims_is_shared_between_tenants(place: &Place) {
    let ledger = place.open().await;
    submit_many(&ledger, 300, "flood").await;
    submit_many(&ledger, 3, "small").await;
    // More tenants than one look reads jobs of.
    for n in 0..30 {
        submit_many(&ledger, 1, &format!("one-{n}")).await;
    }
    let wide = ClaimRequest {
        short: 40,
        ..room("worker", LONG)
    };
    let tenants = work_off(&ledger, &wide, 40).await;
    let small = tenants.iter().filter(|tenant| *tenant != "flood").count();
    assert_eq!(small, 33, "{tenants:?}");
    assert_eq!(work_off(&ledger, &wide, 293).await.len(), 293);
}

pub async fn rule_16_many_workers_at_one_flood_leave_no_tenant_behind(place: &Place) {
    const EACH: usize = 20;
    let ledger = place.open().await;
    submit_many(&ledger, 400, "flood").await;
    for n in 0..5 {
        submit_many(&ledger, EACH, &format!("small-{n}")).await;
    }
    let mut order = tokio::task::JoinSet::new();
    for n in 0..4 {
        let ledger = place.open().await;
        order.spawn(async move {
            let one = ClaimRequest {
                long: 0,
                short: 2,
                ..room(&format!("worker-{n}"), LONG)
            };
            let mut tenants = Vec::new();
            while tenants.len() < 60 {
                for claimed in ledger.claim(&one).await.unwrap_or_default().jobs {
                    ledger
                        .complete(fencing(&claimed), succeeded())
                        .await
                        .unwrap();
                    tenants.push(claimed.job.tenant.to_string());
                }
            }
            tenants
        });
    }
    let mut small = 0;
    while let Some(tenants) = order.join_next().await {
        small += tenants
            .unwrap()
            .iter()
            .filter(|tenant| *tenant != "flood")
            .count();
    }
    // 240 of 500 jobs were done: a sixth of them the flood's, give or take what ran side by side.
    assert!(small >= 5 * EACH - 10, "{small} of the small ones' jobs");
}

pub async fn rule_17_two_records_of_one_database_exclude_each_other(place: &Place) {
    let ledger = place.open().await;
    let one = add_database(&ledger, "shop").await;
    let other = add_database(&ledger, "shop-again").await;
    for id in [one, other] {
        let known = ledger.set_identity(id, "inode 1:2", None).await.unwrap();
        assert_eq!(known, IdentityOutcome::Known);
    }
    let first = submit(&ledger, backup_of(one)).await;
    let second = submit(&ledger, backup_of(other)).await;
    // A look that excludes nothing runs beside them.
    let look = JobRequest {
        exclusion: ExclusionClass::Free,
        ..backup_of(one)
    };
    let look = submit(&ledger, look).await;
    let claimed = ledger.claim(&room("worker", LONG)).await.unwrap().jobs;
    let ids: Vec<JobId> = claimed.iter().map(|claimed| claimed.job.id).collect();
    assert_eq!(ids, [first, look]);
    ledger
        .complete(fencing(&claimed[0]), succeeded())
        .await
        .unwrap();
    assert_eq!(claim_one(&ledger, LONG).await.job.id, second);
}

pub async fn rule_17_an_identity_that_is_found_while_both_run_makes_one_step_back(place: &Place) {
    let ledger = place.open().await;
    let one = add_database(&ledger, "shop").await;
    let other = add_database(&ledger, "shop-again").await;
    submit(&ledger, backup_of(one)).await;
    submit(&ledger, backup_of(other)).await;
    let claimed = ledger.claim(&room("worker", LONG)).await.unwrap().jobs;
    assert_eq!(claimed.len(), 2, "nobody knows yet that they are one");
    let waiting = submit(&ledger, backup_of(other)).await;
    claim_none(&ledger).await;
    let [first, second] = [&claimed[0], &claimed[1]];
    let known = ledger
        .set_identity(one, "same", Some(fencing(first)))
        .await
        .unwrap();
    assert_eq!(known, IdentityOutcome::Known);
    let busy = ledger
        .set_identity(other, "same", Some(fencing(second)))
        .await
        .unwrap();
    assert_eq!(
        busy,
        IdentityOutcome::Busy {
            job: first.job.id,
            kind: "backup".parse().unwrap()
        }
    );
    // It steps back, and comes again when the other has ended.
    ledger
        .complete(fencing(second), failed(Problem::interrupted()))
        .await
        .unwrap();
    claim_none(&ledger).await;
    ledger.complete(fencing(first), succeeded()).await.unwrap();
    let next = claim_one(&ledger, LONG).await;
    assert_eq!(next.job.id, second.job.id);
    claim_none(&ledger).await;
    ledger.complete(fencing(&next), succeeded()).await.unwrap();
    assert_eq!(claim_one(&ledger, LONG).await.job.id, waiting);
}

pub async fn rule_17_a_long_job_takes_no_short_slot(place: &Place) {
    let ledger = place.open().await;
    let long = |_| JobRequest {
        slot: SlotClass::Long,
        ..request("backup")
    };
    for request in (0..5).map(long) {
        submit(&ledger, request).await;
    }
    let short = submit(&ledger, request("noop")).await;
    let limited = ClaimRequest {
        long: 2,
        short: 3,
        ..room("worker", LONG)
    };
    let claimed = ledger.claim(&limited).await.unwrap().jobs;
    assert_eq!(claimed.len(), 3);
    assert!(claimed.iter().any(|claimed| claimed.job.id == short));
    let none = ClaimRequest { long: 0, ..limited };
    assert_eq!(ledger.claim(&none).await.unwrap().jobs, []);
    // Deliveries are claimed by id, within the same room.
    let queued: Vec<JobId> = ledger
        .jobs(&JobFilter {
            states: vec![JobState::Queued],
            ..JobFilter::default()
        })
        .await
        .unwrap()
        .iter()
        .map(|job| job.id)
        .collect();
    let by_id = ClaimRequest { long: 5, ..none };
    let claimed = ledger
        .claim_by_ids(&by_id, &queued[..1])
        .await
        .unwrap()
        .jobs;
    assert_eq!(
        claimed
            .iter()
            .map(|claimed| claimed.job.id)
            .collect::<Vec<_>>(),
        queued[..1]
    );
}

fn policy(name: &str, next_due: Option<Timestamp>) -> PolicyRecord {
    PolicyRecord {
        id: PolicyId::new(),
        tenant: tenant(),
        name: name.parse().unwrap(),
        database: None,
        spec: PolicySpec {
            kind: "noop".parse().unwrap(),
            arguments: json!({}),
            cron: "0 2 * * *".to_owned(),
            time_zone: "Europe/Berlin".to_owned(),
            catch_up: Default::default(),
            overlap: Default::default(),
            window: None,
            jitter_seconds: 0,
            priority: Priority::Normal,
            keep: None,
            prove: Default::default(),
            timeout_seconds: None,
            paused: false,
        },
        next_due,
        last_job: None,
        created: Timestamp::from_micros(0),
    }
}

pub async fn rule_18_a_due_time_is_decided_once_by_two_schedulers(place: &Place) {
    let ledgers = [place.open().await, place.open().await];
    let now = ledgers[0].now().await.unwrap();
    let due = now.minus(Duration::from_secs(60));
    let next = now.plus(Duration::from_secs(3600));
    let id = ledgers[0]
        .add_policy(&policy("nightly", Some(due)))
        .await
        .unwrap()
        .id;
    assert_eq!(ledgers[1].next_due().await.unwrap(), Some(due));
    assert_eq!(ledgers[1].due(10).await.unwrap().len(), 1);
    let ticks = (0..8).map(|n| {
        let tick = Tick {
            policy: id,
            due,
            action: TickAction::Submit(Box::new(request("noop"))),
            next_due: Some(next),
        };
        let ledger = ledgers[n % 2].clone();
        async move { ledger.tick(&tick, None).await.unwrap() }
    });
    let results = futures::future::join_all(ticks).await;
    let decided = results
        .iter()
        .filter(|result| matches!(result, TickResult::Decided(_)));
    assert_eq!(decided.count(), 1);
    assert_eq!(ledgers[0].counts().await.unwrap().queued, 1);
    let ticks = ledgers[0].ticks(id, 10).await.unwrap();
    assert_eq!(ticks.len(), 1);
    let record = ledgers[0].policy(id).await.unwrap();
    let TickOutcome::Job { job } = ticks[0].outcome else {
        panic!("{ticks:?}")
    };
    assert_eq!((record.next_due, record.last_job), (Some(next), Some(job)));
    assert_eq!(ledgers[0].due(10).await.unwrap(), []);

    // A clock that jumped brings the same due time up again: it moves on without a second job.
    ledgers[0].set_next_due(id, Some(due)).await.unwrap();
    let skip = Tick {
        policy: id,
        due,
        action: TickAction::Record(TickOutcome::SkippedMissed),
        next_due: Some(next),
    };
    let again = ledgers[1].tick(&skip, None).await.unwrap();
    assert_eq!(again, TickResult::AlreadyTicked(TickOutcome::Job { job }));
    assert_eq!(ledgers[0].policy(id).await.unwrap().next_due, Some(next));
}

pub async fn rule_18_a_former_leader_decides_nothing(place: &Place) {
    let ledger = place.open().await;
    let due = ledger.now().await.unwrap();
    let id = ledger
        .add_policy(&policy("nightly", Some(due)))
        .await
        .unwrap()
        .id;
    let former = ledger
        .lead("scheduler", "one", SHORT)
        .await
        .unwrap()
        .unwrap();
    let newer = eventually("the lead", || async {
        ledger.lead("scheduler", "two", LONG).await.unwrap()
    })
    .await;
    assert!(newer.term > former.term);
    let tick = Tick {
        policy: id,
        due,
        action: TickAction::Submit(Box::new(request("noop"))),
        next_due: None,
    };
    let refused = ledger.tick(&tick, Some(&former)).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Conflict { .. }));
    assert_eq!(ledger.counts().await.unwrap().queued, 0);
    let decided = ledger.tick(&tick, Some(&newer)).await.unwrap();
    assert!(matches!(decided, TickResult::Decided(_)));
}

pub async fn the_lead_passes_on_when_its_lease_runs_out(place: &Place) {
    let one = place.open().await;
    let two = place.open().await;
    let first = one.lead("scheduler", "one", LONG).await.unwrap().unwrap();
    assert_eq!(two.lead("scheduler", "two", LONG).await.unwrap(), None);
    assert_eq!(
        two.leader("scheduler").await.unwrap().unwrap().holder,
        "one"
    );
    let renewed = one.lead("scheduler", "one", LONG).await.unwrap().unwrap();
    assert_eq!(renewed.term, first.term);
    assert!(renewed.until >= first.until);
    one.resign(&renewed).await.unwrap();
    assert_eq!(two.leader("scheduler").await.unwrap(), None);
    let second = two.lead("scheduler", "two", LONG).await.unwrap().unwrap();
    assert_eq!(second.term, first.term + 1);
    // What is given up late takes nothing from the new leader.
    one.resign(&renewed).await.unwrap();
    assert_eq!(one.leader("scheduler").await.unwrap(), Some(second));
}

pub async fn a_unique_key_is_free_again_when_its_job_has_ended(place: &Place) {
    let ledger = place.open().await;
    let unique = || JobRequest {
        unique_key: Some("backup of shop".to_owned()),
        ..request("noop")
    };
    let calls = (0..10).map(|_| ledger.submit(unique(), None));
    let results: Vec<_> = futures::future::join_all(calls).await;
    let ids: HashSet<JobId> = results
        .iter()
        .map(|result| result.as_ref().unwrap().job)
        .collect();
    assert_eq!(ids.len(), 1);
    let claimed = claim_one(&ledger, LONG).await;
    assert!(
        ledger.submit(unique(), None).await.unwrap().existing,
        "it still runs"
    );
    ledger
        .complete(fencing(&claimed), succeeded())
        .await
        .unwrap();
    let next = ledger.submit(unique(), None).await.unwrap();
    assert!(!next.existing);
    assert!(!ids.contains(&next.job));
}

pub async fn a_job_whose_deadline_passed_expires(place: &Place) {
    let ledger = place.open().await;
    let deadline = ledger.now().await.unwrap().plus(SHORT);
    let by_claim = submit(
        &ledger,
        JobRequest {
            deadline: Some(deadline),
            ..request("noop")
        },
    )
    .await;
    let by_net = submit(
        &ledger,
        JobRequest {
            deadline: Some(deadline),
            ..request("unknown")
        },
    )
    .await;
    eventually("the deadline", || async {
        (ledger.now().await.unwrap() > deadline).then_some(())
    })
    .await;
    claim_none(&ledger).await;
    assert_eq!(ledger.job(by_claim).await.unwrap().state, JobState::Expired);
    assert_eq!(ledger.expire().await.unwrap(), [by_net]);
    assert_eq!(ledger.job(by_net).await.unwrap().state, JobState::Expired);
}

pub async fn a_delayed_job_becomes_claimable_when_it_is_due(place: &Place) {
    let ledger = place.open().await;
    let at = ledger.now().await.unwrap().plus(Duration::from_millis(150));
    let id = submit(
        &ledger,
        JobRequest {
            not_before: Some(at),
            ..request("noop")
        },
    )
    .await;
    let batch = ledger.claim(&room("worker", LONG)).await.unwrap();
    assert_eq!(batch.jobs, []);
    assert!(batch.next_due_in.unwrap() <= Duration::from_millis(150));
    let claimed = eventually("the job", || async {
        ledger
            .claim(&room("worker", LONG))
            .await
            .unwrap()
            .jobs
            .pop()
    })
    .await;
    assert_eq!(claimed.job.id, id);
    assert!(claimed.job.started.unwrap() >= at);
}

pub async fn a_submit_wakes_whoever_waits(place: &Place) {
    let ledger = place.open().await;
    let mut wakeups = ledger.wakeups();
    let (sender, mut hooked) = tokio::sync::mpsc::unbounded_channel();
    ledger.set_wake_hook(std::sync::Arc::new(move || sender.send(()).unwrap()));
    let waiting = tokio::spawn(async move { wakeups.changed().await });
    submit(&ledger, request("noop")).await;
    waiting.await.unwrap();
    hooked.recv().await.unwrap();
    let mut wakeups = ledger.wakeups();
    ledger.poke();
    wakeups.changed().await;
}

pub async fn what_an_attempt_made_is_listed_once_the_attempt_has_ended(place: &Place) {
    let ledger = place.open().await;
    let database = add_database(&ledger, "shop").await;
    submit(&ledger, backup_of(database)).await;
    let claimed = claim_one(&ledger, SHORT).await;
    let old = fencing(&claimed);
    ledger
        .record_artefact(old, "sandbox", &json!({"pid": 1}), false)
        .await
        .unwrap();
    ledger
        .record_artefact(old, "sandbox", &json!({"pid": 2}), false)
        .await
        .unwrap();
    ledger
        .record_artefact(old, "folder", &json!({}), false)
        .await
        .unwrap();
    assert_eq!(ledger.orphaned_artefacts(10).await.unwrap(), []);
    ledger
        .remove_artefact(old.job, old.token, "folder")
        .await
        .unwrap();
    rescue_one(&ledger).await;
    let newer = claim_one(&ledger, LONG).await;
    ledger
        .record_artefact(fencing(&newer), "another", &json!({"pid": 3}), false)
        .await
        .unwrap();
    let left = ledger.orphaned_artefacts(10).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(
        (left[0].token, &left[0].data),
        (old.token, &json!({"pid": 2}))
    );
    assert_eq!(left[0].database, Some(database));
    ledger
        .remove_artefact(old.job, old.token, "sandbox")
        .await
        .unwrap();
    assert_eq!(ledger.orphaned_artefacts(10).await.unwrap(), []);
    ledger.complete(fencing(&newer), succeeded()).await.unwrap();
    assert_eq!(ledger.orphaned_artefacts(10).await.unwrap().len(), 1);
}

pub async fn what_is_left_to_the_next_attempt_is_its_own_once_recorded_and_goes_with_the_job(
    place: &Place,
) {
    let ledger = place.open().await;
    submit(&ledger, request("noop")).await;
    let claimed = claim_one(&ledger, SHORT).await;
    let old = fencing(&claimed);
    for (name, is_left) in [("sandbox", true), ("folder", true), ("process", false)] {
        ledger
            .record_artefact(old, name, &json!({"of": 1}), is_left)
            .await
            .unwrap();
    }
    let names = async || -> Vec<String> {
        let orphans = ledger.orphaned_artefacts(10).await.unwrap();
        orphans.into_iter().map(|record| record.name).collect()
    };
    assert!(ledger.left_artefacts(old).await.unwrap().is_empty());
    rescue_one(&ledger).await;
    assert_eq!(names().await, ["process"]);
    let newer = fencing(&claim_one(&ledger, LONG).await);
    let left = ledger.left_artefacts(newer).await.unwrap();
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|data| *data == json!({"of": 1})));
    // The one is gone on with, the other is of no use.
    ledger
        .record_artefact(newer, "sandbox", &json!({"of": 2}), true)
        .await
        .unwrap();
    ledger.give_up_artefact(newer, "folder").await.unwrap();
    assert_eq!(names().await, ["folder", "process"]);
    assert!(ledger.left_artefacts(newer).await.unwrap().is_empty());
    // Who was superseded takes nothing back.
    for refused in [
        ledger
            .record_artefact(old, "sandbox", &json!({"of": 1}), true)
            .await,
        ledger.give_up_artefact(old, "sandbox").await,
    ] {
        assert!(
            matches!(refused, Err(LedgerError::Superseded { .. })),
            "{refused:?}"
        );
    }
    ledger.complete(newer, succeeded()).await.unwrap();
    assert_eq!(names().await, ["folder", "process", "sandbox"]);
}

fn backup_facts(id: BackupId) -> BackupFacts {
    BackupFacts {
        id,
        tenant: tenant(),
        database: None,
        database_name: "shop".parse().unwrap(),
        engine: Engine::Sqlite,
        parent: None,
        started: Timestamp::from_micros(1),
        finished: Timestamp::from_micros(2),
        bytes_read: u64::from(u32::MAX) * 9,
        bytes_new: 2,
        bytes_stored: 1,
        streams: 3,
        tags: vec!["nightly".to_owned()],
        warnings: Vec::new(),
    }
}

pub async fn the_catalogue_keeps_what_was_found_since(place: &Place) {
    let ledger = place.open().await;
    let job = submit(&ledger, request("noop")).await;
    let claimed = claim_one(&ledger, LONG).await;
    let facts = backup_facts(BackupId::of_job(job));
    ledger
        .upsert_backup("/repository", &facts, Some(fencing(&claimed)))
        .await
        .unwrap();
    let proof = |verdict, finished| ProofFacts {
        backup: facts.id,
        verdict,
        finished: Timestamp::from_micros(finished),
        restore_seconds: 1.5,
        fingerprints_compared: 9,
        mismatches: Vec::new(),
    };
    ledger
        .record_proof(&proof(ProofVerdict::Proven, 20), None)
        .await
        .unwrap();
    ledger
        .record_proof(&proof(ProofVerdict::Failed, 10), None)
        .await
        .unwrap();
    ledger
        .set_backup_state(facts.id, BackupState::Damaged, "a pack is gone", None)
        .await
        .unwrap();
    // A rebuild from the repository changes none of that.
    ledger
        .upsert_backup("/repository", &facts, None)
        .await
        .unwrap();
    let found = ledger.backup(facts.id).await.unwrap();
    assert_eq!(found.facts, facts);
    assert_eq!(
        (found.state, found.state_why.as_deref()),
        (BackupState::Damaged, Some("a pack is gone"))
    );
    assert_eq!(found.last_proof.unwrap().verdict, ProofVerdict::Proven);
    assert_eq!(ledger.proofs(facts.id).await.unwrap().len(), 2);
    let part = facts.id.short();
    assert_eq!(
        ledger
            .find_backup(Some(&tenant()), &part)
            .await
            .unwrap()
            .facts,
        facts
    );
    let elsewhere = BackupFilter {
        place: Some("/other".to_owned()),
        ..BackupFilter::default()
    };
    assert_eq!(ledger.backups(&elsewhere).await.unwrap(), []);
    ledger
        .set_backup_state(facts.id, BackupState::Forgotten, "keep rules", None)
        .await
        .unwrap();
    assert_eq!(ledger.backups(&BackupFilter::default()).await.unwrap(), []);
    let unknown = ledger
        .set_backup_state(
            BackupId::of_job(JobId::new()),
            BackupState::Damaged,
            "",
            None,
        )
        .await;
    assert!(matches!(unknown, Err(LedgerError::NotFound { .. })));
    // A reader stays below the oldest open transaction, of others on the same server too.
    let events = eventually("the events", || async {
        let events = ledger
            .events_after(EventPosition::default(), 100)
            .await
            .unwrap();
        (events.len() == 5).then_some(events)
    })
    .await;
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "backup.complete",
            "backup.proof",
            "backup.proof",
            "backup.damaged",
            "backup.forgotten"
        ]
    );
}

pub async fn the_log_of_a_job_keeps_its_newest_lines(place: &Place) {
    let ledger = place.open().await;
    let id = submit(&ledger, request("noop")).await;
    let claimed = claim_one(&ledger, LONG).await;
    for page in 0..6 {
        let lines: Vec<String> = (0..250)
            .map(|n| format!("line {}", page * 250 + n))
            .collect();
        ledger.append_log(fencing(&claimed), &lines).await.unwrap();
    }
    ledger
        .append_log(fencing(&claimed), &["ä".repeat(5000), "nul \0".to_owned()])
        .await
        .unwrap();
    let lines = ledger.log_lines(id, 0).await.unwrap();
    assert_eq!(lines.len(), 1000);
    assert_eq!(lines[0].line, "line 502");
    assert_eq!(lines[999].number, 1502);
    assert_eq!(lines[998].line.len(), 2048);
    assert_eq!(ledger.log_lines(id, 1500).await.unwrap().len(), 2);
}

pub async fn the_history_is_pruned_by_age_and_by_bytes(place: &Place) {
    let ledger = place.open().await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(submit(&ledger, request("noop")).await);
        let claimed = claim_one(&ledger, LONG).await;
        ledger
            .complete(fencing(&claimed), succeeded())
            .await
            .unwrap();
    }
    assert_eq!(ledger.prune_history(LONG, u64::MAX).await.unwrap(), 0);
    let pruned = ledger.prune_history(LONG, 1000).await.unwrap();
    assert!((3..6).contains(&pruned), "{pruned}");
    assert!(ledger.job(ids[0]).await.is_err(), "the oldest goes first");
    assert!(ledger.job(ids[5]).await.is_ok());
    assert_eq!(
        ledger
            .prune_history(Duration::ZERO, u64::MAX)
            .await
            .unwrap(),
        6 - pruned
    );
    assert!(ledger.job(ids[5]).await.is_err());
}

pub async fn tenants_databases_and_policies_are_kept(place: &Place) {
    let ledger = place.open().await;
    let shop: TenantId = "acme".parse().unwrap();
    ledger.add_tenant(&shop).await.unwrap();
    assert!(matches!(
        ledger.add_tenant(&shop).await,
        Err(LedgerError::Exists { .. })
    ));
    ledger.ensure_tenant(&shop).await.unwrap();
    assert_eq!(ledger.tenants().await.unwrap().len(), 2);

    let id = add_database(&ledger, "shop").await;
    let record = ledger.database(id).await.unwrap();
    let twice = DatabaseRecord {
        id: DatabaseId::new(),
        ..record.clone()
    };
    assert!(matches!(
        ledger.add_database(&twice).await,
        Err(LedgerError::Exists { .. })
    ));
    for name in ["shop", &id.to_string(), record.url.as_str()] {
        assert_eq!(ledger.find_database(&tenant(), name).await.unwrap(), record);
    }
    assert!(ledger.find_database(&shop, "shop").await.is_err());
    let hidden = ledger
        .find_database(&shop, "postgres://ann:hunter2@db/app")
        .await
        .unwrap_err();
    assert!(!hidden.to_string().contains("hunter2"));
    ledger.set_identity(id, "1:2", None).await.unwrap();
    let (url, _) = DatabaseUrl::parse_with_password("postgres://ann@db/app").unwrap();
    let change = DatabaseChange {
        name: Some("shop2".parse().unwrap()),
        url: Some(url.clone()),
        password: Some(Some(SecretReference::Environment("PGPASSWORD".to_owned()))),
        ..DatabaseChange::default()
    };
    let edited = ledger.edit_database(id, change).await.unwrap();
    assert_eq!(edited, ledger.database(id).await.unwrap());
    assert_eq!(
        (&edited.url, &edited.identity_key),
        (&url, &None),
        "another place has another identity"
    );

    let wanted = PolicyRecord {
        database: Some(id),
        ..policy("nightly", None)
    };
    let added = ledger.add_policy(&wanted).await.unwrap();
    assert_eq!(
        ledger.find_policy(&tenant(), "nightly").await.unwrap(),
        added
    );
    assert_eq!(
        ledger.policies_of(id).await.unwrap(),
        std::slice::from_ref(&added)
    );
    let theirs = PolicyRecord {
        id: PolicyId::new(),
        tenant: shop.clone(),
        ..wanted
    };
    assert!(ledger.add_policy(&theirs).await.is_err());
    let mut spec = added.spec.clone();
    spec.paused = true;
    let change = PolicyChange {
        spec: Some(spec),
        ..PolicyChange::default()
    };
    assert!(
        ledger
            .edit_policy(added.id, change)
            .await
            .unwrap()
            .spec
            .paused
    );

    assert!(matches!(
        ledger.remove_database(id).await,
        Err(LedgerError::Conflict { .. })
    ));
    ledger.remove_policy(added.id).await.unwrap();
    ledger.remove_database(id).await.unwrap();
    assert_eq!(ledger.databases(None).await.unwrap(), []);
    ledger.remove_tenant(&shop).await.unwrap();
    assert!(matches!(
        ledger.tenant(&shop).await,
        Err(LedgerError::NotFound { .. })
    ));
}

pub async fn two_handles_on_one_ledger_share_the_work(place: &Place) {
    let handles = [place.open().await, place.open().await];
    let mut tasks = Vec::new();
    for n in 0..60 {
        let ledger = handles[n % 2].clone();
        tasks.push(tokio::spawn(async move {
            submit(&ledger, request("noop")).await
        }));
    }
    let mut seen: HashMap<JobId, u32> = HashMap::new();
    for task in tasks {
        seen.insert(task.await.unwrap(), 0);
    }
    while seen.values().any(|count| *count == 0) {
        let of = |worker| ClaimRequest {
            short: 7,
            ..room(worker, LONG)
        };
        let (for_left, for_right) = (of("left"), of("right"));
        let (left, right) = tokio::join!(handles[0].claim(&for_left), handles[1].claim(&for_right));
        for claimed in left.unwrap().jobs.into_iter().chain(right.unwrap().jobs) {
            *seen.get_mut(&claimed.job.id).unwrap() += 1;
        }
    }
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
    let workers: HashSet<String> = handles[0]
        .workers()
        .await
        .unwrap()
        .into_iter()
        .map(|w| w.id)
        .collect();
    assert_eq!(workers, ["left", "right"].map(str::to_owned).into());
    handles[0].remove_worker("left").await.unwrap();
    assert_eq!(handles[1].workers().await.unwrap().len(), 1);
}

pub async fn a_newer_schema_is_refused(place: &Place) {
    place.open().await.close().await;
    place
        .execute("INSERT INTO ledger_schema (version) VALUES (1000)")
        .await;
    let refused = Ledger::open(&place.url()).await.unwrap_err();
    assert!(
        matches!(refused, LedgerError::NewerSchema { found: 1000, .. }),
        "{refused}"
    );
}

pub async fn a_newer_schema_that_this_version_can_go_on_with_is_taken(place: &Place) {
    place.open().await.close().await;
    place
        .execute("INSERT INTO ledger_schema (version, usable_from) VALUES (1000, 5)")
        .await;
    let ledger = Ledger::open(&place.url()).await.unwrap();
    let job = submit(&ledger, request("noop")).await;
    assert_eq!(ledger.job(job).await.unwrap().state, JobState::Queued);
    place
        .execute("INSERT INTO ledger_schema (version, usable_from) VALUES (1001, 1000)")
        .await;
    let refused = Ledger::open(&place.url()).await.unwrap_err();
    assert!(
        matches!(refused, LedgerError::NewerSchema { found: 1001, .. }),
        "{refused}"
    );
}

pub async fn jobs_are_found_by_a_part_of_their_id_and_listed_in_pages(place: &Place) {
    let ledger = place.open().await;
    let mut ids = Vec::new();
    for n in 0..25 {
        let mut request = request("noop");
        if n % 5 == 0 {
            request.tags = vec!["fifth_100%".to_owned()];
        }
        ids.push(submit(&ledger, request).await);
        if n % 2 == 0 {
            ledger.request_cancel(ids[n]).await.unwrap();
        }
    }
    let wanted = ids[3];
    let text = wanted.to_string();
    for part in [
        wanted.short(),
        text.clone(),
        text[5..].to_owned(),
        text.to_uppercase(),
    ] {
        assert_eq!(
            ledger.find_job(None, &part).await.unwrap().id,
            wanted,
            "{part}"
        );
    }
    let several = ledger.find_job(None, &text[..6]).await.unwrap_err();
    assert!(matches!(several, LedgerError::Ambiguous { .. }));
    assert!(matches!(
        ledger.find_job(None, "zz").await,
        Err(LedgerError::NotFound { .. })
    ));

    let mut listed = Vec::new();
    let mut before = None;
    loop {
        let filter = JobFilter {
            before,
            limit: 7,
            ..JobFilter::default()
        };
        let page = ledger.jobs(&filter).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        listed.extend(page.iter().map(|job| job.id));
    }
    let newest_first: Vec<JobId> = ids.iter().rev().copied().collect();
    assert_eq!(listed, newest_first);
    let count = async |filter: JobFilter| ledger.jobs(&filter).await.unwrap().len();
    let cancelled = JobFilter {
        states: vec![JobState::Cancelled],
        ..JobFilter::default()
    };
    assert_eq!(count(cancelled).await, 13);
    let tagged = JobFilter {
        tag: Some("fifth_100%".to_owned()),
        ..JobFilter::default()
    };
    assert_eq!(count(tagged).await, 5);
    let part_of_a_tag = JobFilter {
        tag: Some("fifth".to_owned()),
        ..JobFilter::default()
    };
    assert_eq!(count(part_of_a_tag).await, 0);
    let nobodys = JobFilter {
        tenant: Some("nobody".parse().unwrap()),
        ..JobFilter::default()
    };
    assert_eq!(count(nobodys).await, 0);
}
