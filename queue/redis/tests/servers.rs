//! The kinds of Redis that a fleet meets: with TLS, with a password, in a cluster.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod fleet;

use std::{path::Path, process::Command};

use fettler_test_servers::{RedisOptions, RedisServer};
use fleet::{Fleet, eventually, room, submit_many, work_off};

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Moves jobs through the fleet's Redis, and shows that it was Redis that moved them.
async fn moves_jobs(fleet: &Fleet) {
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    eventually("Redis", || async { queue.is_up().then_some(()) }).await;
    let ids = submit_many(&ledger, 50, "default").await;
    let done = work_off(&queue, &ledger, &room(10), ids.len()).await;
    assert_eq!(done.len(), ids.len());
    assert!(queue.is_up());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_with_tls_and_a_password_of_its_own_authority_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    openssl(
        at,
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=tests",
    );
    openssl(
        at,
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=redis",
    );
    std::fs::write(
        at.join("names"),
        "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
    )
    .unwrap();
    openssl(
        at,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile names",
    );
    let file = |name: &str| at.join(name).display().to_string();
    let server = RedisServer::start(
        RedisOptions::new()
            .password("Open7")
            .port_setting("tls-port")
            .setting("tls-cert-file", &file("server.pem"))
            .setting("tls-key-file", &file("server.key"))
            .setting("tls-ca-cert-file", &file("ca.pem"))
            .setting("tls-auth-clients", "no"),
    )
    .unwrap();
    let port = server.port_of("tls-port").unwrap();
    let mut fleet = Fleet::at(format!("rediss://:Open7@127.0.0.1:{port}/"));
    fleet.options.root_certificate = Some(std::fs::read(at.join("ca.pem")).unwrap());
    moves_jobs(&fleet).await;

    // An authority that nobody named is not trusted: the jobs come from the ledger.
    fleet.options.root_certificate = None;
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    let ids = submit_many(&ledger, 5, "default").await;
    let done = work_off(&queue, &ledger, &room(10), ids.len()).await;
    assert_eq!(done.len(), ids.len());
    assert!(!queue.is_up());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_the_node_that_holds_the_keys_is_found_from_any_other() {
    let nodes: Vec<RedisServer> = (0..2)
        .map(|_| {
            RedisServer::start(
                RedisOptions::new()
                    .setting("cluster-enabled", "yes")
                    // The bus of a node is a port of its own.
                    .port_setting("cluster-port"),
            )
            .unwrap()
        })
        .collect();
    let ask = async |node: &RedisServer, words: &[&str]| -> redis::Value {
        let mut connection = redis::Client::open(node.url())
            .unwrap()
            .get_multiplexed_async_connection()
            .await
            .unwrap();
        redis::cmd("CLUSTER")
            .arg(words)
            .query_async(&mut connection)
            .await
            .unwrap()
    };
    ask(&nodes[0], &["ADDSLOTSRANGE", "0", "8191"]).await;
    ask(&nodes[1], &["ADDSLOTSRANGE", "8192", "16383"]).await;
    let port = nodes[1].port().to_string();
    let bus = nodes[1].port_of("cluster-port").unwrap().to_string();
    ask(&nodes[0], &["MEET", "127.0.0.1", &port, &bus]).await;
    eventually("the cluster", || async {
        for node in &nodes {
            let info = ask(node, &["INFO"]).await;
            let info: String = redis::from_redis_value(info).unwrap();
            if !info.contains("cluster_state:ok") || !info.contains("cluster_known_nodes:2") {
                return None;
            }
        }
        Some(())
    })
    .await;
    // One of the two does not hold the keys.
    let mut fleet = Fleet::at(nodes[0].url());
    moves_jobs(&fleet).await;
    fleet.options.url = nodes[1].url();
    moves_jobs(&fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_the_master_that_sentinels_name_is_followed_when_it_dies() {
    let mut master = RedisServer::start(RedisOptions::new()).unwrap();
    let replica = RedisServer::start(
        RedisOptions::new()
            .setting("replicaof", &format!("127.0.0.1 {}", master.port()))
            .setting("repl-diskless-sync-delay", "0"),
    )
    .unwrap();
    let sentinel =
        RedisServer::start(RedisOptions::new().sentinel_of(master.port(), "fleet")).unwrap();
    let mut fleet = Fleet::at(replica.url());
    let replication = || async {
        let mut connection = fleet.redis().await;
        redis::cmd("INFO")
            .arg("replication")
            .query_async::<String>(&mut connection)
            .await
            .unwrap()
    };
    eventually("the replica to follow", || async {
        replication()
            .await
            .contains("master_link_status:up")
            .then_some(())
    })
    .await;
    fleet.options.url = format!("redis+sentinel://127.0.0.1:{}/fleet", sentinel.port());
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    eventually("Redis", || async { queue.is_up().then_some(()) }).await;
    let ids = submit_many(&ledger, 50, "default").await;
    let first = work_off(&queue, &ledger, &room(10), 20).await;

    // A sentinel learns of replicas every ten seconds; before, it would have nobody to put in the master's place.
    eventually("the sentinel to know the replica", || async {
        let client = redis::Client::open(sentinel.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let known: Vec<Vec<String>> = redis::cmd("SENTINEL")
            .arg("replicas")
            .arg("fleet")
            .query_async(&mut connection)
            .await
            .unwrap();
        (!known.is_empty()).then_some(())
    })
    .await;
    master.kill_9().unwrap();
    let second = work_off(&queue, &ledger, &room(10), 30).await;
    let mut all: Vec<_> = first.iter().chain(&second).map(|(id, _)| *id).collect();
    all.sort_unstable();
    let mut expected = ids.clone();
    expected.sort_unstable();
    assert_eq!(all, expected, "each job came once");
    // Not only the ledger carries on: the new master does.
    eventually("the new master", || async { queue.is_up().then_some(()) }).await;
    let more = submit_many(&ledger, 10, "default").await;
    assert_eq!(
        work_off(&queue, &ledger, &room(10), more.len()).await.len(),
        more.len()
    );
    let info = {
        let mut connection = redis::Client::open(replica.url())
            .unwrap()
            .get_multiplexed_async_connection()
            .await
            .unwrap();
        redis::cmd("INFO")
            .arg("replication")
            .query_async::<String>(&mut connection)
            .await
            .unwrap()
    };
    assert!(info.contains("role:master"), "{info}");
}
