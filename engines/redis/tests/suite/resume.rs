//! A restore that was cut off goes on where it stopped, and may do anything twice.

use std::sync::Mutex;

use async_trait::async_trait;
use fettler_engine::{
    BackupReport, DatabaseEngine as _, EngineContext, EngineError, RestoreOptions, StreamFacts,
    StreamReader, StreamSource, testing::MemorySource,
};

use fettler_test_servers::RedisServer;

use crate::common::{
    Attempt, ENGINE, back_up, client, facts, fill, keys_in, mismatches, run, server, target,
    try_restore,
};

/// A store that goes away when so many streams were asked for, and remembers which these were.
struct GoesAway {
    backup: MemorySource,
    after: usize,
    read: Mutex<Vec<String>>,
}

impl GoesAway {
    fn after(backup: &MemorySource, after: usize) -> Self {
        Self {
            backup: backup.clone(),
            after,
            read: Mutex::default(),
        }
    }

    fn read_streams(&self) -> Vec<String> {
        self.read.lock().unwrap().clone()
    }
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
            // In the middle of a stream, or at its beginning.
            backup.fails_after = Some(count as u64 % 3 * 1000);
        }
        backup.read(name).await
    }
}

pub async fn attempt(
    context: &EngineContext,
    backup: &dyn StreamSource,
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

/// Lets attempts fail, each a little later; gives the number of the next one.
pub async fn cut_off(
    job: &Attempt,
    backup: &MemorySource,
    report: &BackupReport,
    url: &str,
) -> u32 {
    let mut number = 1;
    for after in [1, 10, 10] {
        let source = GoesAway::after(backup, after);
        let error = attempt(&job.next(number), &source, report, url)
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

pub fn done(job: &Attempt) -> Vec<String> {
    let checkpoint = job.record.checkpoint().unwrap();
    serde_json::from_value(checkpoint["done"].clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_restore_goes_on_where_it_stopped() {
    let source = server();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    let copy = server();
    let job = Attempt::new();
    let number = cut_off(&job, &backup, &report, &copy.url()).await;
    let done = done(&job);
    assert!(done.len() > 5, "{done:?}");
    let source = GoesAway::after(&backup, usize::MAX);
    attempt(&job.next(number), &source, &report, &copy.url())
        .await
        .unwrap();
    let read = source.read_streams();
    assert!(!read.iter().any(|name| done.contains(name)), "{read:?}");
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &copy.url()).await),
        Vec::<String>::new()
    );
    // An attempt that died before it could save that it had made room finds its own mark.
    let (begun, early) = (server(), Attempt::new());
    let mark = format!("SET fettler/restoring {}", early.next(1).attempt);
    run(&mut client(&begun.url()), &mark);
    attempt(&early.next(2), &backup, &report, &begun.url())
        .await
        .unwrap();
    // Another job refuses what a restore left half-done, and removes it when it is told to start again.
    let half = server();
    cut_off(&Attempt::new(), &backup, &report, &half.url()).await;
    let error = attempt(&Attempt::new().context, &backup, &report, &half.url())
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
    let again = RestoreOptions {
        start_again: true,
        ..RestoreOptions::default()
    };
    for ends_well in [true, false] {
        // Once it is whole, it is not half-done any more.
        let answer = try_restore(&backup, &report, &half.url(), &again).await;
        assert_eq!(answer.is_ok(), ends_well, "{answer:?}");
    }
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &half.url()).await),
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
