//! P1, P3 and P4 for a Redis Cluster, through the binary: wherever the worker is killed, the next one goes on, the backup is
//! proven, and all keys come back in a cluster of another size.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, time::Duration};

use fettler_tests::{
    Installation,
    servers::{RedisCluster, RedisOptions, wait_until},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use redis::{Connection, cmd, pipe};
use serde_json::Value;

/// Bytes of a value. No two are alike, so that there are several packs.
const VALUE_BYTES: usize = 20_000;
/// Keys of each primary.
const KEYS: usize = 700;
/// Where workers are killed: each place once.
const PLACES: [&str; 4] = [
    "backup.pack_stored",
    "backup.manifest_next",
    "prove.sandbox_open",
    "restore.done",
];

fn connections(cluster: &RedisCluster) -> Vec<Connection> {
    cluster
        .nodes()
        .iter()
        .map(|node| {
            redis::Client::open(node.url())
                .unwrap()
                .get_connection()
                .unwrap()
        })
        .collect()
}

/// Each primary gets keys of one slot that it serves.
fn fill(cluster: &RedisCluster) {
    let mut dice = StdRng::seed_from_u64(20_261_123);
    for node in &mut connections(cluster) {
        let tag = (0..)
            .find(|tag| {
                let key = format!("{{{tag}}}:first");
                cmd("SET").arg(key).arg(1).exec(node).is_ok()
            })
            .unwrap();
        let mut batch = pipe();
        for key in 0..KEYS {
            let mut value = vec![0u8; VALUE_BYTES];
            dice.fill(&mut value[..]);
            batch
                .cmd("SET")
                .arg(format!("{{{tag}}}:{key}"))
                .arg(value)
                .ignore();
        }
        batch.exec(node).unwrap();
    }
}

/// All keys with their values, whichever node has them.
fn content(cluster: &RedisCluster) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for node in &mut connections(cluster) {
        let keys: Vec<String> = cmd("KEYS").arg("*").query(node).unwrap();
        for key in keys {
            let value = cmd("GET").arg(&key).query(node).unwrap();
            assert_eq!(all.insert(key, value), None, "a key is there twice");
        }
    }
    all
}

/// Has a job done by one worker after the other, each started when the one before was killed. Gives how many attempts it took: one
/// behind a death runs in a process of its own, which dies alone.
fn attempts_until_done(fettler: &Installation, arguments: &[&str]) -> u64 {
    let submitted = fettler
        .run(&[arguments, &["--detach", "--json"]].concat())
        .done()
        .json();
    let id = submitted["job"].as_str().unwrap().to_owned();
    let mut worker = fettler.start_worker();
    let mut job = Value::Null;
    wait_until("the job ends", Duration::from_secs(180), || {
        if !worker.runs() {
            worker = fettler.start_worker();
        }
        job = fettler.json(&["jobs", "show", &id]);
        ["succeeded", "dead"].contains(&job["state"].as_str().unwrap())
    })
    .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {job:#} {}", fettler.logs()));
    assert_eq!(job["state"], "succeeded", "{job:#} {}", fettler.logs());
    assert_eq!(worker.terminate(), 0, "{}", worker.log());
    job["attempts"].as_u64().unwrap()
}

#[test]
fn p1_p3_p4_a_cluster_comes_back_in_another_size_wherever_the_worker_is_killed() {
    let start = |primaries| {
        let password = Some("s3cretOfRedis");
        RedisCluster::start(primaries, 0, &RedisOptions::new(), password).unwrap()
    };
    let (source, copy) = (start(3), start(2));
    fill(&source);
    let fettler = Installation::new();
    let latches = fettler.path("latches");
    std::fs::create_dir(&latches).unwrap();
    let fettler = fettler
        .without_workers()
        .with_short_leases()
        .with("FETTLER_FAULT_POINT", PLACES.join(","))
        .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap());

    let backup = attempts_until_done(&fettler, &["backup", &source.url()]);
    let proof = attempts_until_done(&fettler, &["prove", "latest"]);
    let restore = ["restore", "latest", "--to", &copy.url()];
    let restore = attempts_until_done(&fettler, &restore);
    assert_eq!((backup, proof, restore), (3, 2, 2));
    for place in PLACES {
        assert!(latches.join(place).exists(), "nobody was killed at {place}");
    }
    assert!(
        content(&source) == content(&copy),
        "the copy has other keys or values"
    );
    let listed = fettler.json(&["backups"]);
    let verdict = &listed["backups"][0]["proof"]["verdict"];
    assert_eq!(verdict, "proven", "{listed:#}");
}
