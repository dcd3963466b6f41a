//! A backup as a file that a server starts from.

use fettler_engine::{EngineError, RestoreOptions};
use fettler_engine_redis::restore_to_file;
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
    let written = restore_to_file(&attempt.context, &backup, &report, &path, &all)
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

    // The job's own next attempt finds its work; for another one it is replaced only where that says so. Nothing else is left.
    let again = restore_to_file(&attempt.context, &backup, &report, &path, &all).await;
    assert_eq!(again.unwrap(), written);
    let other = Attempt::new();
    let again = restore_to_file(&other.context, &backup, &report, &path, &all).await;
    assert!(
        matches!(again, Err(EngineError::NotEmpty { .. })),
        "{again:?}"
    );
    let one = RestoreOptions {
        only: vec!["db1".to_owned()],
        overwrite: true,
        ..RestoreOptions::default()
    };
    restore_to_file(&other.context, &backup, &report, &path, &one)
        .await
        .unwrap();
    copy.kill_9().unwrap();
    copy.start_again().unwrap();
    let mut copied = client(&copy.url());
    assert_eq!(keys_in(&mut copied, 0), 0);
    assert!(keys_in(&mut copied, 1) > 0);
    let is_part = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(".fettler");
    let entries = path.parent().unwrap().read_dir().unwrap();
    assert!(!entries.flatten().any(|entry| is_part(&entry.file_name())));
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
    let failed = restore_to_file(&Attempt::new().context, &backup, &report, &path, &only).await;
    assert!(
        matches!(failed, Err(EngineError::Unreachable { .. })),
        "{failed:?}"
    );
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}
