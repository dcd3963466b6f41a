//! What only a replica shows.

use fettler_engine::{BackupOptions, DatabaseEngine as _, EngineError};
use fettler_model::Problem;
use fettler_test_servers::RedisServer;

use super::place::{Kind, Place};
use crate::common::{ENGINE, back_up, client, options, prove, run, server, target, try_back_up};

/// How often a server was asked for all that it has.
fn full_copies(server: &RedisServer) -> u64 {
    let told: String = redis::cmd("INFO")
        .arg("stats")
        .query(&mut client(&server.url()))
        .unwrap();
    told.lines()
        .find_map(|line| line.strip_prefix("sync_full:"))
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replica_is_read_and_its_primary_is_left_alone() {
    let place = Place::start(Kind::Replica);
    place.seed();
    let Place::Replica(primary, replica) = &place else {
        panic!("it is a replica");
    };
    let before = (full_copies(primary), full_copies(replica));
    let (backup, report) = back_up(&place.url()).await;
    assert_eq!(full_copies(primary), before.0);
    assert_eq!(full_copies(replica), before.1 + 1);
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
    // It is a moment of the primary's own history.
    let (_, of_primary) = back_up(&primary.url()).await;
    assert_eq!(
        report.position["replication_id"],
        of_primary.position["replication_id"]
    );
    // A replica that is named itself is read itself.
    let before = full_copies(replica);
    let named = format!("{}?read=replica", replica.url());
    back_up(&named).await;
    assert_eq!(full_copies(replica), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_replica_says_so_and_its_primary_is_not_read_instead() {
    let alone = server();
    let url = format!("{}?read=replica", alone.url());
    let error = Problem::from(try_back_up(&url).await.unwrap_err());
    assert_eq!(error.code, "engine.missing.replica");
    assert!(error.remedy.contains("read=replica"), "{error:?}");
    assert_eq!(full_copies(&alone), 0);
    let error = ENGINE
        .preflight(&target(&url), &BackupOptions::default())
        .await
        .unwrap_err();
    assert_eq!(Problem::from(error).code, "engine.missing.replica");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_has_lost_its_primary_is_not_read() {
    let mut primary = RedisServer::start(options()).unwrap();
    run(&mut client(&primary.url()), "SET a 1");
    let of = format!("127.0.0.1 {}", primary.port());
    let replica = RedisServer::start(options().setting("replicaof", &of)).unwrap();
    super::place::wait_for_link(&primary.url());
    let url = format!("{}?read=replica", replica.url());
    primary.kill_9().unwrap();
    let is_down = || {
        let told: String = redis::cmd("INFO")
            .arg("replication")
            .query(&mut client(&replica.url()))
            .unwrap();
        told.contains("master_link_status:down")
    };
    fettler_test_servers::wait_until(
        "the link to end",
        std::time::Duration::from_secs(30),
        is_down,
    )
    .unwrap();
    let error = try_back_up(&url).await.unwrap_err();
    assert!(matches!(error, EngineError::Busy { .. }), "{error:?}");
}
