//! Servers that refuse, vanish or fall silent.

use std::time::Duration;

use fettler_engine::{
    BackupOptions, DatabaseEngine as _, EngineError, RestoreOptions, testing::MemorySink,
};
use fettler_model::Problem;
use fettler_test_servers::{RedisServer, TcpProxy};
use redis::cmd;

use crate::common::{
    Attempt, ENGINE, back_up, client, fill, noise, options, prove, run, server, target,
    try_back_up, try_restore,
};

fn with_user(server: &RedisServer, rules: &[&str]) -> String {
    cmd("ACL")
        .arg("SETUSER")
        .arg("limited")
        .arg("on")
        .arg(">pass1")
        .arg(rules)
        .exec(&mut client(&server.url()))
        .unwrap();
    format!("redis://limited:pass1@127.0.0.1:{}/", server.port())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_replica_is_allowed_keys_are_read_one_by_one_and_that_is_said() {
    let server = server();
    fill(&mut client(&server.url()));
    let url = with_user(&server, &["~*", "+@all", "-psync"]);
    let (backup, report) = back_up(&url).await;
    assert_eq!(report.position["method"], "scan");
    assert_eq!(report.warnings[0].code, "redis.not_one_moment");
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
    // The same keys as a replica gets, and in the same streams.
    let (_, as_replica) = back_up(&server.url()).await;
    let fingerprints = |report: &fettler_engine::BackupReport| -> Vec<_> {
        report
            .objects
            .iter()
            .filter_map(|one| one.fingerprint)
            .collect()
    };
    assert_eq!(fingerprints(&report), fingerprints(&as_replica));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_count_that_may_be_of_another_moment_is_left_out() {
    let server = server();
    fill(&mut client(&server.url()));
    let url = with_user(&server, &["~*", "+@all", "-psync"]);
    let proxy = TcpProxy::start(server.port()).unwrap();
    let through = url.replace(&server.port().to_string(), &proxy.port().to_string());
    proxy.throttle(Some(4_000_000));
    let backup = tokio::spawn(async move { back_up(&through).await });
    proxy
        .wait_for_bytes_to_client(100_000, Duration::from_secs(60))
        .unwrap();
    run(&mut client(&server.url()), "SET int 5");
    let (_, report) = backup.await.unwrap();
    let database = report.objects.iter().find(|one| one.name == "db0").unwrap();
    assert!(database.fingerprint.unwrap().rows > 10);
    assert_eq!(database.independent_rows, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_rights_are_named_or_only_warned_of() {
    let server = server();
    fill(&mut client(&server.url()));
    let url = with_user(&server, &["~*", "+@all", "-psync", "-dump"]);
    let error = Problem::from(try_back_up(&url).await.unwrap_err());
    assert_eq!(error.code, "engine.missing.permission");
    assert!(error.what.contains("dump"), "{error}");
    let url = with_user(&server, &["+psync", "+replconf", "-config", "-acl"]);
    let (_, report) = back_up(&url).await;
    assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_a_full_server_and_a_cluster_are_told_from_each_other() {
    let source = server();
    let mut writer = client(&source.url());
    for at in 0..2000u64 {
        cmd("SET")
            .arg(at)
            .arg(noise(5000, at))
            .exec(&mut writer)
            .unwrap();
    }
    let (backup, report) = back_up(&source.url()).await;
    let code = async |url: &str| {
        let error = try_restore(&backup, &report, url, &RestoreOptions::default())
            .await
            .unwrap_err();
        Problem::from(error).code
    };
    let replica =
        RedisServer::start(options().setting("replicaof", &format!("127.0.0.1 {}", free_port())));
    if let Ok(replica) = replica {
        assert_eq!(code(&replica.url()).await, "engine.missing.primary");
    }
    let full = RedisServer::start(options().setting("maxmemory", "4mb")).unwrap();
    assert_eq!(code(&full.url()).await, "engine.missing.memory");
    assert!(
        ENGINE
            .free_bytes(&target(&full.url()))
            .await
            .unwrap()
            .unwrap()
            < 4 << 20
    );
    // A node that was never made part of a cluster serves no slots.
    let cluster = RedisServer::start(options().setting("cluster-enabled", "yes")).unwrap();
    assert_eq!(code(&cluster.url()).await, "engine.missing.cluster");
    let error = Problem::from(try_back_up(&cluster.url()).await.unwrap_err());
    assert_eq!(error.code, "engine.missing.cluster");
}

use fettler_test_servers::free_port;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_in_the_middle_is_unreachable_and_nothing_is_left() {
    let server = server();
    fill(&mut client(&server.url()));
    for at in 0..20u64 {
        cmd("SET")
            .arg(format!("filler:{at}"))
            .arg(noise(1_000_000, at))
            .exec(&mut client(&server.url()))
            .unwrap();
    }
    let limited = with_user(&server, &["~*", "+@all", "-psync"]);
    for url in [server.url(), limited] {
        let proxy = TcpProxy::start(server.port()).unwrap();
        let through = url.replace(&server.port().to_string(), &proxy.port().to_string());
        proxy.cut_after_bytes_to_client(5_000_000);
        let attempt = Attempt::new();
        let sink = MemorySink::default();
        let error = ENGINE
            .backup(
                &attempt.context,
                &target(&through),
                &BackupOptions::default(),
                &sink,
            )
            .await
            .unwrap_err();
        assert!(
            matches!(error, EngineError::Unreachable { .. }),
            "{error:?}"
        );
        assert!(sink.streams().is_empty());
        assert!(!attempt.context.scratch.join("dump.rdb").exists());
    }
    // A restore whose target goes away.
    let (backup, report) = back_up(&server.url()).await;
    let copy = crate::common::server();
    let proxy = TcpProxy::start(copy.port()).unwrap();
    proxy.cut_after_bytes_to_server(5_000_000);
    let error = try_restore(
        &backup,
        &report,
        &copy.url_via(proxy.port()),
        &RestoreOptions::default(),
    )
    .await
    .unwrap_err();
    assert!(
        matches!(error, EngineError::Unreachable { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_and_a_restore_that_are_cancelled_stop_soon() {
    let server = server();
    fill(&mut client(&server.url()));
    let (backup, report) = back_up(&server.url()).await;
    let copy = crate::common::server();
    for is_backup in [true, false] {
        let behind = if is_backup {
            server.port()
        } else {
            copy.port()
        };
        let proxy = TcpProxy::start(behind).unwrap();
        proxy.throttle(Some(200_000));
        let url = server.url_via(proxy.port());
        let attempt = Attempt::new();
        let (context, stop) = (attempt.context.clone(), attempt.context.stop.clone());
        let (backup, report) = (backup.clone(), report.clone());
        let work = tokio::spawn(async move {
            if is_backup {
                let sink = MemorySink::default();
                ENGINE
                    .backup(&context, &target(&url), &BackupOptions::default(), &sink)
                    .await
                    .map(drop)
            } else {
                ENGINE
                    .restore(
                        &context,
                        &backup,
                        &report,
                        &target(&url),
                        &RestoreOptions::default(),
                    )
                    .await
                    .map(drop)
            }
        });
        fettler_test_servers::wait_until("bytes to pass", Duration::from_secs(30), || {
            proxy.bytes_to_client().max(proxy.bytes_to_server()) > 200_000
        })
        .unwrap();
        stop.cancel();
        let answer = tokio::time::timeout(Duration::from_secs(30), work)
            .await
            .unwrap()
            .unwrap();
        assert!(matches!(answer, Err(EngineError::Stopped)), "{answer:?}");
    }
}
