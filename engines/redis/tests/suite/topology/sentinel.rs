//! What only sentinels show: a failover, before a backup and in the middle of one; logins; names that nobody knows.

use std::{sync::Arc, time::Duration};

use fettler_engine::{
    BackupOptions, DatabaseEngine as _, EngineError, RateLimit, testing::MemorySink,
};
use fettler_model::Problem;
use fettler_test_servers::{RedisOptions, RedisServer, SentinelRedis, TcpProxy, wait_until};
use redis::cmd;

use super::place::{Kind, PASSWORD, Place};
use crate::common::{
    Attempt, ENGINE, back_up, client, facts, fill, mismatches, noise, options, prove, restore,
    target, try_back_up,
};
use crate::login::certify;

fn sentinel_of(place: &mut Place) -> &mut SentinelRedis {
    match place {
        Place::Sentinel(sentinel) => sentinel,
        _ => panic!("it has a sentinel"),
    }
}

fn wait_for_replica(place: &Place) {
    super::place::wait_for_link(&place.primaries()[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_the_new_primary_is_read_and_written_and_is_the_same_database() {
    let mut place = Place::start(Kind::Sentinel);
    place.seed();
    wait_for_replica(&place);
    let (_, before) = back_up(&place.url()).await;
    let first = sentinel_of(&mut place).master_port();
    sentinel_of(&mut place).master().unwrap().kill_9().unwrap();
    sentinel_of(&mut place).wait_for_master().unwrap();
    assert_ne!(sentinel_of(&mut place).master_port(), first);
    let (backup, after) = back_up(&place.url()).await;
    assert_eq!(before.identity.key, after.identity.key);
    assert_eq!(prove(&backup, &after).await, Vec::<String>::new());
    assert_eq!(
        mismatches(&after.objects, &facts(&after, &place.url()).await),
        Vec::<String>::new()
    );
    let copy = Place::start(Kind::Sentinel);
    restore(&backup, &after, &copy.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_in_the_middle_of_a_backup_is_a_retry_that_succeeds() {
    let mut place = Place::start(Kind::Sentinel);
    let mut writer = place.client();
    for at in 0..80u64 {
        let key = format!("filler:{at}");
        writer.exec(&key, cmd("SET").arg(&key).arg(noise(1_000_000, at)));
    }
    wait_for_replica(&place);
    let (url, attempt) = (place.url(), Attempt::new());
    // So slow that the primary is gone before the RDB has come.
    let mut context = attempt.context.clone();
    context.rate = Arc::new(RateLimit::new(Some(8_000_000)));
    let work = tokio::spawn(async move {
        let sink = MemorySink::default();
        let options = BackupOptions::default();
        ENGINE
            .backup(&context, &target(&url), &options, &sink)
            .await
            .map(|report| (sink.source(), report))
    });
    let progress = attempt.context.progress.clone();
    wait_until("bytes to come", Duration::from_secs(60), || {
        progress.read().bytes > 1_000_000
    })
    .unwrap();
    sentinel_of(&mut place).master().unwrap().kill_9().unwrap();
    let (backup, report) = work.await.unwrap().unwrap();
    let database = report.objects.iter().find(|one| one.name == "db0").unwrap();
    assert_eq!(database.fingerprint.unwrap().rows, 80);
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_read_where_sentinels_know_one() {
    let mut place = Place::start(Kind::Sentinel);
    place.seed();
    wait_for_replica(&place);
    let url = format!("{}?read=replica", place.url());
    let (backup, report) = back_up(&url).await;
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
    let (_, of_primary) = back_up(&place.url()).await;
    assert_eq!(report.identity.key, of_primary.identity.key);
    // Once the only replica has become the primary, there is none until the other is back.
    sentinel_of(&mut place).master().unwrap().kill_9().unwrap();
    sentinel_of(&mut place).wait_for_master().unwrap();
    let error = ENGINE.identify(&target(&url)).await.unwrap_err();
    assert!(
        matches!(
            error,
            EngineError::Busy { .. }
                | EngineError::Missing {
                    code: "replica",
                    ..
                }
        ),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_are_asked_in_turn_and_have_logins_of_their_own() {
    let place = Place::start(Kind::Sentinel);
    let Place::Sentinel(inner) = &place else {
        panic!("it has a sentinel");
    };
    let port = inner.sentinel_port();
    // The first answers nobody.
    let nobody = fettler_test_servers::free_port();
    let several = place.url().replace(
        &format!("127.0.0.1:{port}"),
        &format!("127.0.0.1:{nobody},127.0.0.1:{port}"),
    );
    let (_, report) = back_up(&several).await;
    assert!(
        report.identity.key.contains("fleet@"),
        "{}",
        report.identity.key
    );
    assert_eq!(report.identity.suggested_name.as_str(), "fleet");

    // Unknown names say what there is.
    let unknown = place.url().replace("/fleet", "/other");
    let error = Problem::from(ENGINE.identify(&target(&unknown)).await.unwrap_err());
    assert_eq!(error.code, "engine.missing.sentinel");
    assert!(error.remedy.contains("fleet"), "{error:?}");
    // A server is no sentinel, and a sentinel is no server.
    let server = inner.master_port().unwrap();
    let no_sentinel = place.url().replace(&port.to_string(), &server.to_string());
    let error = ENGINE.identify(&target(&no_sentinel)).await.unwrap_err();
    assert!(error.to_string().contains("no sentinel"), "{error}");
    let plain = format!("redis://127.0.0.1:{port}");
    let error = try_back_up(&plain).await.unwrap_err();
    assert!(error.to_string().contains("Sentinel"), "{error}");

    // A sentinel with a password: the server's is tried, and its own is taken from a file.
    let guarded = RedisServer::start(
        RedisOptions::new()
            .password(PASSWORD)
            .sentinel_of(server, "fleet"),
    )
    .unwrap();
    let mut admin = client(&format!("redis://127.0.0.1:{}", guarded.port()));
    cmd("ACL")
        .arg("SETUSER")
        .arg("watcher")
        .arg("on")
        .arg(">theirs")
        .arg("allchannels")
        .arg("+@all")
        .exec(&mut admin)
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "theirs\n").unwrap();
    let by_file = format!(
        "{}?sentinel_user=watcher&sentinel_password_file={}",
        place
            .url()
            .replace(&port.to_string(), &guarded.port().to_string()),
        file.display()
    );
    cmd("CONFIG")
        .arg("SET")
        .arg("requirepass")
        .arg(PASSWORD)
        .query::<()>(&mut admin)
        .ok();
    cmd("ACL")
        .arg("SETUSER")
        .arg("default")
        .arg("resetpass")
        .arg(format!(">{PASSWORD}"))
        .exec(&mut admin)
        .unwrap();
    ENGINE.identify(&target(&by_file)).await.unwrap();
    std::fs::write(&file, "other\n").unwrap();
    let error = ENGINE.identify(&target(&by_file)).await.unwrap_err();
    assert!(
        matches!(error, EngineError::LoginRefused { .. }),
        "{error:?}"
    );
    let with_the_servers = place
        .url()
        .replace(&port.to_string(), &guarded.port().to_string());
    ENGINE.identify(&target(&with_the_servers)).await.unwrap();
}

/// Sentinels that are silent, and not gone, hold nobody up for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_who_answers_is_unreachable() {
    let gone = fettler_test_servers::free_port();
    let url = format!("redis+sentinel://127.0.0.1:{gone}/fleet");
    let error = ENGINE.identify(&target(&url)).await.unwrap_err();
    assert!(
        matches!(error, EngineError::Unreachable { .. }),
        "{error:?}"
    );
    let server = crate::common::server();
    let proxy = TcpProxy::start(server.port()).unwrap();
    let url = format!("redis://127.0.0.1:{gone},127.0.0.1:{}", proxy.port());
    let error = ENGINE.identify(&target(&url)).await.unwrap_err();
    assert!(
        error.to_string().contains("no node of a cluster"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinel_and_a_server_that_speak_tls_are_asked_and_read() {
    let folder = tempfile::tempdir().unwrap();
    certify(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let speaks_tls = |options: RedisOptions| {
        options
            .port_setting("tls-port")
            .setting("tls-replication", "yes")
            .setting("tls-cert-file", &file("server.pem"))
            .setting("tls-key-file", &file("server.key"))
            .setting("tls-ca-cert-file", &file("ca.pem"))
            .setting("tls-auth-clients", "yes")
    };
    let server = RedisServer::start(speaks_tls(options().password(PASSWORD))).unwrap();
    fill(&mut client(&server.url()));
    // It is watched, and named, where it speaks TLS.
    let watched = server.port_of("tls-port").unwrap();
    let watches = RedisOptions::new()
        .password(PASSWORD)
        .sentinel_of(watched, "shop");
    let sentinel = RedisServer::start(speaks_tls(watches)).unwrap();
    let place = format!(
        "://:{PASSWORD}@127.0.0.1:{}/shop",
        sentinel.port_of("tls-port").unwrap()
    );
    let own = [file("ca.pem"), file("client.pem"), file("client.key")];
    let url = format!(
        "rediss+sentinel{place}?ca={}&cert={}&key={}",
        own[0], own[1], own[2]
    );
    let (backup, report) = back_up(&url).await;
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());

    let plain = format!("redis+sentinel{place}");
    let error = ENGINE.identify(&target(&plain)).await.unwrap_err();
    assert!(
        matches!(error, EngineError::Unreachable { .. }),
        "{error:?}"
    );
    let untrusted = format!("rediss+sentinel{place}?cert={}&key={}", own[1], own[2]);
    let error = ENGINE.identify(&target(&untrusted)).await.unwrap_err();
    assert_eq!(Problem::from(error).code, "engine.missing.tls");
}
