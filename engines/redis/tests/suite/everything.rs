//! Out and back with all that a server can hold.

use fettler_engine::{BackupOptions, DatabaseEngine as _, testing::MemorySink};
use fettler_test_servers::RedisServer;
use redis::cmd;

use crate::common::{
    Attempt, ENGINE, back_up, client, facts, fill, keys_in, mismatches, options, prove, restore,
    run, server, target,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_every_type_and_encoding_comes_back_and_is_proven() {
    let source = server();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    assert_eq!(report.warnings, []);
    assert_eq!(report.position["method"], "replication");
    let names: Vec<&str> = report.objects.iter().map(|one| one.name.as_str()).collect();
    for name in [
        "db0",
        "db0/string",
        "db0/stream",
        "db0/zset",
        "db1",
        "db15/list",
        "functions",
        "acl users",
        "configuration",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());

    // Restored into another server, it reads as the source itself reads, by commands alone.
    let copy = server();
    let restored = restore(&backup, &report, &copy.url()).await;
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    let of_source = facts(&report, &source.url()).await;
    let of_copy = facts(&report, &copy.url()).await;
    assert_eq!(
        mismatches(&report.objects, &of_source),
        Vec::<String>::new()
    );
    assert_eq!(mismatches(&report.objects, &of_copy), Vec::<String>::new());
    let mut copied = client(&copy.url());
    assert_eq!(keys_in(&mut copied, 15), 2);
    let answer: i64 = cmd("FCALL")
        .arg("total")
        .arg(0)
        .query(&mut client(&copy.url()))
        .unwrap();
    assert_eq!(answer, 42);
    assert!(
        restored
            .warnings
            .iter()
            .any(|one| one.code == "redis.users_not_restored")
    );
}

/// The server's own digest of all that it holds is made by code that knows nothing of this engine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_the_servers_own_digest_of_the_copy_is_the_sources() {
    let start = || RedisServer::start(options().setting("enable-debug-command", "yes")).unwrap();
    let (source, copy) = (start(), start());
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    restore(&backup, &report, &copy.url()).await;
    let digest =
        |url: &str| -> String { cmd("DEBUG").arg("DIGEST").query(&mut client(url)).unwrap() };
    assert_eq!(digest(&source.url()), digest(&copy.url()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_server_is_backed_up_and_proven() {
    let source = server();
    let (backup, report) = back_up(&source.url()).await;
    let empty = report.objects.iter().find(|one| one.name == "db0").unwrap();
    assert_eq!(empty.independent_rows, Some(0));
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
    let copy = server();
    restore(&backup, &report, &copy.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_rdb_that_the_server_writes_to_its_disk_first_is_read_too() {
    let source = RedisServer::start(options().setting("repl-diskless-sync", "no")).unwrap();
    fill(&mut client(&source.url()));
    let (backup, report) = back_up(&source.url()).await;
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_backup_while_a_writer_runs_is_of_one_moment() {
    let source = server();
    fill(&mut client(&source.url()));
    let (url, stop) = (
        source.url(),
        std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)),
    );
    let (begun, writes) = std::sync::mpsc::channel();
    let writer = {
        let (url, stop) = (url.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut client = client(&url);
            let mut round = 0u64;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                round += 1;
                // Both in one transaction: in a backup of one moment they are equal.
                redis::pipe()
                    .atomic()
                    .cmd("SET")
                    .arg("pair:a")
                    .arg(round)
                    .ignore()
                    .cmd("RPUSH")
                    .arg("growing")
                    .arg(round)
                    .ignore()
                    .cmd("SET")
                    .arg("pair:b")
                    .arg(round)
                    .ignore()
                    .exec(&mut client)
                    .unwrap();
                run(&mut client, &format!("SET new:{round} x"));
                run(
                    &mut client,
                    &format!("DEL new:{}", round.saturating_sub(100)),
                );
                // Nobody listens after the first.
                let _heard = begun.send(());
            }
            round
        })
    };
    writes.recv().unwrap();
    drop(writes);
    let backups = [back_up(&url).await, back_up(&url).await];
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(writer.join().unwrap() > 10);
    for (backup, report) in &backups {
        assert_eq!(prove(backup, report).await, Vec::<String>::new());
        let copy = server();
        restore(backup, report, &copy.url()).await;
        let mut copied = client(&copy.url());
        let pair: (u64, u64) = cmd("MGET")
            .arg("pair:a")
            .arg("pair:b")
            .query(&mut copied)
            .unwrap();
        let grown: u64 = cmd("LLEN").arg("growing").query(&mut copied).unwrap();
        assert_eq!((pair.0, pair.0), (pair.1, grown));
    }
    assert_ne!(backups[0].1.position, backups[1].1.position);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_excluded_is_left_out_and_the_rest_is_proven() {
    let source = server();
    fill(&mut client(&source.url()));
    let sink = MemorySink::default();
    let options = BackupOptions {
        exclude: vec!["db0/*:large".to_owned(), "db15".to_owned()],
        ..BackupOptions::default()
    };
    let report = ENGINE
        .backup(
            &Attempt::new().context,
            &target(&source.url()),
            &options,
            &sink,
        )
        .await
        .unwrap();
    let backup = sink.source();
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
    let copy = server();
    restore(&backup, &report, &copy.url()).await;
    let mut copied = client(&copy.url());
    assert_eq!(keys_in(&mut copied, 15), 0);
    assert_eq!(keys_in(&mut copied, 1), 2);
    run(&mut copied, "SELECT 0");
    let gone: u64 = cmd("EXISTS")
        .arg("HSET:large")
        .arg("SADD:large")
        .query(&mut copied)
        .unwrap();
    assert_eq!(gone, 0);
}
