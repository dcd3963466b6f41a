//! What becomes of jobs whose worker vanishes, pauses or is killed by them (P1, P2, rules 5 and 7).

mod support;

use std::time::{Duration, Instant};

use fettler_model::{AttemptOutcome, JobState};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::{
    Act, Fixture, Process, Running, SHORT_LEASE, be_a_worker, child_command, child_command_of,
    wait_for,
};

/// Not a test: what this binary does when one of the tests has started it as a worker.
#[test]
#[ignore = "started by the tests as a process of its own"]
fn worker_process() {
    be_a_worker();
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_job_whose_worker_was_killed_is_taken_up_within_its_lease_and_two_seconds() {
    let fixture = Fixture::new().await;
    let job = fixture.submit("slow", Act::WaitAfterCheckpoint).await;
    let mut killed = Process(child_command(&fixture, None, SHORT_LEASE).spawn().unwrap());
    fixture.until_logged(job, "waiting", 1).await;
    let survivor = Running::start(fixture.builder().timing(SHORT_LEASE));
    killed.0.kill().unwrap();
    let died = Instant::now();
    let record = fixture.until_final(job).await;
    let taken_up_after = died.elapsed();
    assert_eq!(record.state, JobState::Succeeded);
    assert_eq!(
        record.result,
        Some(json!({"found": {"packs": 7}, "attempt": 2}))
    );
    assert!(
        taken_up_after < SHORT_LEASE.lease + Duration::from_secs(10),
        "{taken_up_after:?}"
    );
    let attempts = fixture.ledger.attempts(job).await.unwrap();
    assert_eq!(attempts[0].outcome, Some(AttemptOutcome::Lost));
    assert_eq!(
        record.tries, 0,
        "that a machine died is not the job's fault"
    );
    survivor.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_what_a_process_that_hung_does_after_a_takeover_is_refused() {
    let fixture = Fixture::new().await;
    let folder = fixture.folder.path().to_owned();
    let act = Act::CountWhileFenced {
        folder: folder.clone(),
    };
    let job = fixture.submit("slow", act).await;
    let zombie = Process(child_command(&fixture, None, SHORT_LEASE).spawn().unwrap());
    let before = fixture
        .until(job, "running", |record| record.state == JobState::Running)
        .await;
    let zombies = fixture.ledger.attempts(job).await.unwrap()[0].token;
    wait_for("the first attempt counts", || {
        folder.join(format!("count-{zombies}")).exists()
    })
    .await;
    // Right after a heartbeat, so that the process does not hang within a transaction of the ledger.
    fixture
        .until(job, "renewed", |record| {
            record.lease_until > before.lease_until
        })
        .await;
    let pid = Pid::from_child(&zombie.0);
    kill_process(pid, Signal::STOP).unwrap();
    let counted = || std::fs::read_to_string(folder.join(format!("count-{zombies}"))).unwrap();

    let survivor = Running::start(fixture.builder().timing(SHORT_LEASE));
    fixture
        .until(job, "taken over", |record| record.attempt == 2)
        .await;
    let counted_before: u64 = counted().parse().unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    wait_for("the fence refuses the first attempt", || {
        folder.join(format!("refused-{zombies}")).exists()
    })
    .await;
    // What was on its way when the process was stopped may still come; nothing new does.
    let counted_after: u64 = counted().parse().unwrap();
    assert!(
        counted_after <= counted_before + 1,
        "{counted_before} {counted_after}"
    );
    std::fs::write(folder.join("enough"), "").unwrap();
    let record = fixture.until_final(job).await;
    assert_eq!(record.result, Some(json!({"counted_by": 2})));
    survivor.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_7_a_job_that_kills_its_process_is_run_alone_and_is_dead_after_it_killed_that_twice() {
    let fixture = Fixture::new().await;
    let job = fixture.submit("slow", Act::Abort).await;
    // The first worker has a process of its own, which the job takes with it.
    let mut first = Process(child_command(&fixture, None, SHORT_LEASE).spawn().unwrap());
    wait_for("the first worker died", || {
        first.0.try_wait().unwrap().is_some()
    })
    .await;
    let (url, scratch) = (fixture.url.clone(), fixture.scratch());
    let worker = Running::start(fixture.builder().timing(SHORT_LEASE).isolate(
        move |job, token| child_command_of(&url, &scratch, Some((job, token)), SHORT_LEASE).into(),
    ));
    // A neighbour in the worker that looks after the poison job is not harmed.
    let neighbour = fixture.submit("slow", Act::Wait).await;
    let record = fixture.until_final(job).await;
    assert_eq!(record.state, JobState::Dead);
    assert_eq!(record.attempt, 3);
    let problem = record.problem.unwrap();
    assert_eq!(problem.code, "job.process_died");
    assert!(problem.what.contains("signal 6"), "{problem}");
    assert_eq!(fixture.job(neighbour).await.attempt, 1);
    assert_eq!(fixture.job(neighbour).await.state, JobState::Running);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_7_a_job_that_lost_its_worker_by_chance_ends_well_in_a_process_of_its_own() {
    let fixture = Fixture::new().await;
    let job = fixture.submit("slow", Act::WaitAfterCheckpoint).await;
    let mut killed = Process(child_command(&fixture, None, SHORT_LEASE).spawn().unwrap());
    fixture.until_logged(job, "waiting", 1).await;
    killed.0.kill().unwrap();
    let (url, scratch) = (fixture.url.clone(), fixture.scratch());
    let worker = Running::start(fixture.builder().timing(SHORT_LEASE).isolate(
        move |job, token| child_command_of(&url, &scratch, Some((job, token)), SHORT_LEASE).into(),
    ));
    let record = fixture.until_final(job).await;
    assert_eq!(record.state, JobState::Succeeded);
    assert_eq!(
        record.result,
        Some(json!({"found": {"packs": 7}, "attempt": 2}))
    );
    worker.drain().await;
}
