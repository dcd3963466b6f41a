//! A backup as a file that a server starts from.

use fettler_engine::{EngineError, RestoreOptions};
use fettler_engine_redis::write_rdb;
use redis::cmd;

use crate::common::{Attempt, back_up, client, facts, fill, keys_in, mismatches, server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_starts_from_the_file_and_has_everything() {
    let source = server();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    let attempt = Attempt::new();

    let mut copy = server();
    let (_, folder): (String, String) = cmd("CONFIG")
        .arg("GET")
        .arg("dir")
        .query(&mut client(&copy.url()))
        .unwrap();
    copy.kill_9().unwrap();
    let path = std::path::Path::new(&folder).join("dump.rdb");
    let all = RestoreOptions::default();
    let written = write_rdb(&attempt.context, &backup, &report, &path, &all)
        .await
        .unwrap();
    let keys: u64 = report
        .objects
        .iter()
        .filter(|object| object.name.starts_with("db"))
        .filter_map(|object| object.independent_rows)
        .sum();
    assert_eq!(written.rows, keys);
    copy.start_again().unwrap();
    let copied = facts(&report, &copy.url()).await;
    assert_eq!(mismatches(&report.objects, &copied), Vec::<String>::new());

    // What is there is replaced only by whoever says so; nothing else is left.
    let again = write_rdb(&attempt.context, &backup, &report, &path, &all).await;
    assert!(
        matches!(again, Err(EngineError::NotEmpty { .. })),
        "{again:?}"
    );
    let one = RestoreOptions {
        only: vec!["db1".to_owned()],
        overwrite: true,
        ..RestoreOptions::default()
    };
    write_rdb(&attempt.context, &backup, &report, &path, &one)
        .await
        .unwrap();
    copy.kill_9().unwrap();
    copy.start_again().unwrap();
    let mut copied = client(&copy.url());
    assert_eq!(keys_in(&mut copied, 0), 0);
    assert!(keys_in(&mut copied, 1) > 0);
    assert!(!path.with_file_name("dump.rdb.part").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_cannot_be_read_leaves_no_file() {
    let source = server();
    fill(&mut client(&source.url()));
    let (mut backup, report) = back_up(&source.url()).await;
    backup.fails_after = Some(100);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump.rdb");
    let only = RestoreOptions {
        only: vec!["db0".to_owned()],
        ..RestoreOptions::default()
    };
    let failed = write_rdb(&Attempt::new().context, &backup, &report, &path, &only).await;
    assert!(
        matches!(failed, Err(EngineError::Unreachable { .. })),
        "{failed:?}"
    );
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}
