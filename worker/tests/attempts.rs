//! What becomes of attempts: their ends, retries, cancellations, drains, slots and exclusion.

mod support;

use std::time::{Duration, Instant};

use fettler_ledger::{CancelOutcome, Ledger};
use fettler_model::{
    AttemptOutcome, DatabaseId, JobRequest, JobState, JobTerms, JobWindow, TenantId, Timestamp,
    WaitReason, Window,
};
use fettler_worker::{Slots, Timing, WorkerError};
use serde_json::json;
use support::{Act, Fixture, QUICK, Running, options, request};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_and_its_result_and_log_are_kept() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let act = Act::Succeed {
        result: json!({"bytes": 5}),
    };
    let job = fixture.submit("slow", act).await;
    let record = fixture.until_final(job).await;
    assert_eq!(record.state, JobState::Succeeded);
    assert_eq!(record.result, Some(json!({"bytes": 5})));
    let log = fixture.ledger.log_lines(job, 0).await.unwrap();
    assert_eq!(log[0].line, "did the work");
    worker.drain().await;
    assert!(fixture.ledger.workers().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_is_picked_up_at_once_and_not_at_the_next_poll() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let first = fixture
        .submit("quick", Act::Succeed { result: json!(0) })
        .await;
    fixture.until_final(first).await;
    let mut times = Vec::new();
    for n in 0..20 {
        let asked = Instant::now();
        let job = fixture
            .submit("quick", Act::Succeed { result: json!(n) })
            .await;
        fixture.until_final(job).await;
        times.push(asked.elapsed());
    }
    times.sort();
    assert!(times[10] < Duration::from_millis(500), "{times:?}");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_is_tried_again_and_goes_on_from_its_checkpoint() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let job = fixture.submit("slow", Act::FailTimes { times: 2 }).await;
    let record = fixture.until_final(job).await;
    assert_eq!(record.state, JobState::Succeeded);
    assert_eq!(record.result, Some(json!({"failed": 2})));
    assert_eq!(record.attempt, 3);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_too_often_is_dead_and_so_is_one_that_cannot_succeed() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let often = fixture.submit("slow", Act::FailTransient).await;
    let once = fixture.submit("slow", Act::FailForGood).await;
    let record = fixture.until_final(often).await;
    assert_eq!((record.state, record.tries), (JobState::Dead, 3));
    let attempts = fixture.ledger.attempts(often).await.unwrap();
    assert_eq!(attempts.len(), 3);
    assert!(
        attempts
            .iter()
            .all(|attempt| attempt.outcome == Some(AttemptOutcome::Failed))
    );
    let record = fixture.until_final(once).await;
    assert_eq!((record.state, record.attempt), (JobState::Dead, 1));
    assert_eq!(record.problem.unwrap().code, "test.permanent");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snooze_spends_no_try() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let job = fixture.submit("slow", Act::SnoozeOnce).await;
    let record = fixture.until_final(job).await;
    assert_eq!(record.state, JobState::Succeeded);
    assert_eq!(record.result, Some(json!({"tries_spent": 0})));
    assert_eq!(record.attempt, 2);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_failed_attempt_and_a_second_one_in_a_row_ends_the_job() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let job = fixture.submit("slow", Act::Panic).await;
    let record = fixture.until_final(job).await;
    assert_eq!((record.state, record.attempt), (JobState::Dead, 2));
    let problem = record.problem.unwrap();
    assert_eq!(problem.code, "job.panicked");
    assert!(problem.what.contains("a mistake in the job"), "{problem}");
    // The worker is none the worse for it.
    let next = fixture
        .submit("slow", Act::Succeed { result: json!(1) })
        .await;
    assert_eq!(fixture.until_final(next).await.state, JobState::Succeeded);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_job_is_cancelled_at_once() {
    let fixture = Fixture::new().await;
    let job = fixture.submit("slow", Act::Wait).await;
    let outcome = fixture.ledger.request_cancel(job).await.unwrap();
    assert_eq!(outcome, CancelOutcome::Cancelled);
    assert_eq!(fixture.job(job).await.state, JobState::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_hears_of_its_cancellation_at_once_within_its_process() {
    let fixture = Fixture::new().await;
    let hour = Duration::from_secs(3600);
    let worker = Running::start(fixture.builder().timing(Timing {
        lease: 2 * hour,
        heartbeat: hour,
        ..QUICK
    }));
    let job = fixture.submit("slow", Act::Wait).await;
    fixture.until_logged(job, "waiting", 1).await;
    let outcome = fixture.ledger.request_cancel(job).await.unwrap();
    assert_eq!(outcome, CancelOutcome::Requested);
    let record = fixture.until_final(job).await;
    assert_eq!(record.state, JobState::Cancelled);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_by_another_process_comes_with_the_heartbeat() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.other_builder().await);
    let job = fixture.submit("slow", Act::Wait).await;
    fixture.until_logged(job, "waiting", 1).await;
    fixture.ledger.request_cancel(job).await.unwrap();
    assert_eq!(fixture.until_final(job).await.state, JobState::Cancelled);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ignores_its_cancellation_is_aborted() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder().timing(Timing {
        cancel_grace: Duration::from_millis(100),
        ..QUICK
    }));
    let job = fixture.submit("slow", Act::IgnoreStop).await;
    fixture.until_logged(job, "waiting", 1).await;
    fixture.ledger.request_cancel(job).await.unwrap();
    assert_eq!(fixture.until_final(job).await.state, JobState::Cancelled);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_hands_jobs_back_and_another_worker_goes_on_from_the_checkpoint() {
    let fixture = Fixture::new().await;
    let first = Running::start(fixture.builder());
    let job = fixture.submit("slow", Act::WaitAfterCheckpoint).await;
    fixture.until_logged(job, "waiting", 1).await;
    first.drain().await;
    let record = fixture.job(job).await;
    assert_eq!((record.state, record.tries), (JobState::Queued, 0));
    let second = Running::start(fixture.other_builder().await);
    let record = fixture.until_final(job).await;
    assert_eq!(record.state, JobState::Succeeded);
    assert_eq!(
        record.result,
        Some(json!({"found": {"packs": 7}, "attempt": 2}))
    );
    second.drain().await;
    let attempts = fixture.ledger.attempts(job).await.unwrap();
    assert_eq!(attempts[0].outcome, Some(AttemptOutcome::Interrupted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_short_jobs_end_in_their_attempt() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder().timing(Timing {
        drain: Duration::from_secs(30),
        ..QUICK
    }));
    let mut jobs = Vec::new();
    for _ in 0..3 {
        let act = Act::WorkFor { millis: 1000 };
        jobs.push(fixture.submit("quick", act).await);
    }
    fixture.until_logged(jobs[0], "waiting", 1).await;
    worker.drain().await;
    for job in jobs {
        let record = fixture.job(job).await;
        assert!(
            record.attempt == 0 || (record.state, record.attempt) == (JobState::Succeeded, 1),
            "it was neither left to others nor ended: {record:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_asks_short_jobs_that_do_not_end_in_half_of_its_time() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder().timing(Timing {
        drain: Duration::from_secs(2),
        cancel_grace: Duration::from_millis(100),
        ..QUICK
    }));
    let job = fixture.submit("quick", Act::WaitAfterCheckpoint).await;
    fixture.until_logged(job, "waiting", 1).await;
    worker.drain().await;
    let record = fixture.job(job).await;
    assert_eq!((record.state, record.tries), (JobState::Queued, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_has_a_deadline() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder().timing(Timing {
        drain: Duration::from_millis(100),
        ..QUICK
    }));
    let job = fixture.submit("slow", Act::IgnoreStop).await;
    fixture.until_logged(job, "waiting", 1).await;
    worker.drain().await;
    let record = fixture.job(job).await;
    assert_eq!((record.state, record.tries), (JobState::Queued, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_jobs_never_delay_short_ones() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder().slots(Slots { long: 1, short: 1 }));
    let mut long = Vec::new();
    for _ in 0..3 {
        long.push(fixture.submit("slow", Act::Wait).await);
    }
    fixture.until_logged(long[0], "waiting", 1).await;
    for n in 0..5 {
        let short = fixture
            .submit("quick", Act::Succeed { result: json!(n) })
            .await;
        assert_eq!(fixture.until_final(short).await.state, JobState::Succeeded);
    }
    // Nothing long was taken beyond its slot.
    assert_eq!(fixture.job(long[1]).await.state, JobState::Queued);
    assert_eq!(fixture.job(long[2]).await.state, JobState::Queued);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_records_of_one_database_exclude_each_other() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let tenant = TenantId::default_tenant();
    let (one, two) = (
        fixture.add_database("one", &tenant).await,
        fixture.add_database("two", &tenant).await,
    );
    let until = fixture.folder.path().join("go");
    let work = |database: DatabaseId| JobRequest {
        database: Some(database),
        ..request(
            "slow",
            Act::Identify {
                key: "device 5 inode 7".to_owned(),
                until: until.clone(),
            },
        )
    };
    let first = fixture.submit_request(work(one)).await;
    fixture.until_logged(first, "identified", 1).await;
    let second = fixture.submit_request(work(two)).await;
    // The second steps back once it has found out, and then waits for the first by name (P12).
    let record = fixture
        .until(second, "parked behind the first", |record| {
            matches!(record.wait, Some(WaitReason::DatabaseBusy { job, .. }) if job == first)
        })
        .await;
    assert_eq!(record.tries, 0);
    std::fs::write(&until, "").unwrap();
    assert_eq!(fixture.until_final(first).await.state, JobState::Succeeded);
    assert_eq!(fixture.until_final(second).await.state, JobState::Succeeded);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_job_does_not_see_the_databases_of_another_tenant() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let stranger: TenantId = "stranger".parse().unwrap();
    let theirs = fixture.add_database("theirs", &stranger).await;
    let job = fixture
        .submit("quick", Act::ReadDatabase { id: theirs })
        .await;
    let record = fixture.until_final(job).await;
    assert_eq!(record.state, JobState::Dead);
    let problem = record.problem.unwrap();
    assert_eq!(problem.code, "job.not_found");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_repeated_submits_the_same_follower() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let job = fixture.submit("slow", Act::SubmitFollower).await;
    let record = fixture.until_final(job).await;
    let result = record.result.unwrap();
    assert_eq!(result[0], result[1]);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scratch_folder_of_an_ended_attempt_is_removed() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let job = fixture.submit("slow", Act::LeaveScratch).await;
    fixture.until_final(job).await;
    support::wait_for("the scratch folder is empty", || {
        std::fs::read_dir(fixture.scratch()).is_ok_and(|entries| entries.count() == 0)
    })
    .await;
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_for_one_job_runs_that_one_and_ends() {
    let fixture = Fixture::new().await;
    let other = fixture.submit("slow", Act::Wait).await;
    let mine = fixture.submit("slow", Act::FailTimes { times: 1 }).await;
    Running::start(fixture.builder().only(vec![mine]))
        .ended()
        .await;
    assert_eq!(fixture.job(mine).await.state, JobState::Succeeded);
    assert_eq!(fixture.job(other).await.attempt, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_for_one_job_also_ends_when_another_process_ran_it() {
    let fixture = Fixture::new().await;
    let elsewhere = Running::start(fixture.builder());
    let job = fixture.submit("slow", Act::Wait).await;
    fixture.until_logged(job, "waiting", 1).await;
    let mine = Running::start(fixture.other_builder().await.only(vec![job]));
    let ledger = Ledger::open_with(&fixture.url, options()).await.unwrap();
    ledger.request_cancel(job).await.unwrap();
    mine.ended().await;
    assert_eq!(fixture.job(job).await.state, JobState::Cancelled);
    elsewhere.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_the_heartbeat_cannot_keep_is_refused() {
    let fixture = Fixture::new().await;
    let builder = fixture.builder().timing(Timing {
        lease: Duration::from_secs(1),
        heartbeat: Duration::from_secs(2),
        ..QUICK
    });
    let error = builder.build().run(CancellationToken::new()).await;
    assert!(matches!(error, Err(WorkerError::Timing { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_runs_longer_than_its_job_allows_is_stopped_and_tried_again() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let allowed = JobTerms {
        timeout_seconds: Some(1),
        ..JobTerms::default()
    };
    let stops = JobRequest {
        terms: allowed.clone(),
        ..request("slow", Act::WaitAfterCheckpoint)
    };
    // One that does not stop when it is asked to is aborted.
    let ignores = JobRequest {
        terms: allowed,
        max_tries: 1,
        ..request("slow", Act::IgnoreStop)
    };
    let stops = fixture.submit_request(stops).await;
    let ignores = fixture.submit_request(ignores).await;
    let record = fixture.until_final(stops).await;
    assert_eq!(record.state, JobState::Succeeded);
    assert_eq!(record.tries, 1);
    let attempts = fixture.ledger.attempts(stops).await.unwrap();
    assert_eq!(attempts[0].outcome, Some(AttemptOutcome::Failed));
    assert_eq!(attempts[0].problem.as_ref().unwrap().code, "job.timeout");
    let record = fixture.until_final(ignores).await;
    assert_eq!(record.state, JobState::Dead);
    assert_eq!(record.problem.unwrap().code, "job.timeout");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_window_closes_stops_and_waits_for_the_next_one() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder());
    let now = fixture.ledger.now().await.unwrap();
    let clock = |moment: Timestamp| moment.to_string()[11..16].to_owned();
    // It closes when the minute is over, or the next one: windows are told in minutes.
    let window = JobWindow {
        hours: Window {
            from: clock(now.minus(Duration::from_secs(3600))),
            to: clock(now.plus(Duration::from_secs(63))),
        },
        time_zone: "UTC".to_owned(),
    };
    let job = JobRequest {
        terms: JobTerms {
            window: Some(window),
            ..JobTerms::default()
        },
        ..request("slow", Act::WaitAfterCheckpoint)
    };
    let job = fixture.submit_request(job).await;
    fixture.until_logged(job, "waiting", 1).await;
    let record = fixture
        .until_within(
            Duration::from_secs(90),
            job,
            "outside its window",
            |record| matches!(record.wait, Some(WaitReason::WindowClosed { .. })),
        )
        .await;
    assert_eq!((record.state, record.tries), (JobState::Queued, 0));
    let attempts = fixture.ledger.attempts(job).await.unwrap();
    assert_eq!(attempts[0].outcome, Some(AttemptOutcome::Interrupted));
    assert_eq!(
        attempts[0].problem.as_ref().unwrap().code,
        "job.window_closed"
    );
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_without_a_sign_of_life_has_stalled_and_is_taken_over_by_the_next() {
    let fixture = Fixture::new().await;
    let worker = Running::start(fixture.builder().timing(Timing {
        stall: Some(Duration::from_millis(500)),
        ..QUICK
    }));
    let job = fixture.submit("slow", Act::Wait).await;
    let record = fixture.until_final(job).await;
    assert_eq!((record.state, record.tries), (JobState::Dead, 3));
    assert_eq!(record.problem.unwrap().code, "job.stalled");
    let attempts = fixture.ledger.attempts(job).await.unwrap();
    assert_eq!(attempts.len(), 3, "each next attempt took over");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_wait_that_gives_signs_of_life_is_no_stall() {
    let fixture = Fixture::new().await;
    let stall = Duration::from_millis(2500);
    let worker = Running::start(fixture.builder().timing(Timing {
        stall: Some(stall),
        ..QUICK
    }));
    let act = Act::WaitWithSigns { millis: 4000 };
    let job = fixture.submit("slow", act).await;
    let record = fixture.until_final(job).await;
    assert_eq!((record.state, record.attempt), (JobState::Succeeded, 1));
    worker.drain().await;
}
