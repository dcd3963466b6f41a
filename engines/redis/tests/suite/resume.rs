//! A restore that was cut off goes on where it stopped, and may do anything twice.

use fettler_engine::{
    BackupReport, DatabaseEngine as _, EngineContext, EngineError, RestoreOptions,
    testing::MemorySource,
};

use fettler_test_servers::RedisServer;

use crate::common::{
    Attempt, ENGINE, back_up, client, facts, fill, keys_in, mismatches, run, server, target,
};

async fn attempt(
    context: &EngineContext,
    backup: &MemorySource,
    report: &BackupReport,
    url: &str,
) -> Result<(), EngineError> {
    ENGINE
        .restore(
            context,
            backup,
            report,
            &target(url),
            &RestoreOptions::default(),
        )
        .await
        .map(drop)
}

/// Lets attempts fail after more and more bytes of each stream.
async fn cut_off(job: &Attempt, backup: &MemorySource, report: &BackupReport, url: &str) -> u32 {
    let mut number = 1;
    for fails_after in [0, 20_000, 400_000] {
        let mut broken = backup.clone();
        broken.fails_after = Some(fails_after);
        let error = attempt(&job.next(number), &broken, report, url)
            .await
            .unwrap_err();
        assert!(
            matches!(error, EngineError::Unreachable { .. }),
            "{error:?}"
        );
        number += 1;
    }
    number
}

fn done(job: &Attempt) -> usize {
    job.record.checkpoint().unwrap()["done"]
        .as_array()
        .unwrap()
        .len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_restore_goes_on_where_it_stopped() {
    let source = server();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    let copy = server();
    let job = Attempt::new();
    let number = cut_off(&job, &backup, &report, &copy.url()).await;
    assert!(done(&job) > 0);
    attempt(&job.next(number), &backup, &report, &copy.url())
        .await
        .unwrap();
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &copy.url()).await),
        Vec::<String>::new()
    );
    // Done again from the beginning, nothing becomes double.
    let again = RestoreOptions {
        start_again: true,
        overwrite: true,
        ..RestoreOptions::default()
    };
    ENGINE
        .restore(
            &job.next(number + 1),
            &backup,
            &report,
            &target(&copy.url()),
            &again,
        )
        .await
        .unwrap();
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &copy.url()).await),
        Vec::<String>::new()
    );
    // Another job does not take it for its own.
    let error = attempt(&Attempt::new().context, &backup, &report, &copy.url())
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_server_that_lost_what_it_was_given_gets_all_of_it_again() {
    let source = server();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    // It keeps nothing over its end.
    let mut copy: RedisServer = server();
    let job = Attempt::new();
    let number = cut_off(&job, &backup, &report, &copy.url()).await;
    assert!(keys_in(&mut client(&copy.url()), 0) > 0);
    copy.kill_9().unwrap();
    copy.start_again().unwrap();
    assert_eq!(keys_in(&mut client(&copy.url()), 0), 0);
    attempt(&job.next(number), &backup, &report, &copy.url())
        .await
        .unwrap();
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &copy.url()).await),
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_6_a_new_attempt_ends_the_sessions_of_the_one_before() {
    let source = server();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    let copy = server();
    let job = Attempt::new();
    let mut old = client(&copy.url());
    run(&mut old, &format!("CLIENT SETNAME {}", job.next(1).attempt));
    attempt(&job.next(2), &backup, &report, &copy.url())
        .await
        .unwrap();
    assert!(redis::cmd("PING").exec(&mut old).is_err());
}
