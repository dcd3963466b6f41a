//! Sharded clusters, behind a router of the test's own ([`crate::cluster`]).

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use bson::doc;
use fettler_engine::{
    ArchiveStart, BackupOptions, DatabaseEngine as _, PreflightLevel,
    testing::{MemoryLog, MemorySink},
};
use fettler_test_servers::{MongodbClient, MongodbKind};

use crate::{
    cluster::Cluster,
    common::{Attempt, ENGINE, back_up, orders, prove, restore, server, target, try_back_up},
};

/// Writes to both shards in turn until it is stopped.
fn write_until(port: u16, stop: &AtomicBool, begun: &std::sync::mpsc::Sender<()>) {
    let mut client = MongodbClient::new(port);
    let mut round = 0;
    while !stop.load(SeqCst) {
        for database in ["shop", "stock"] {
            client.insert(database, "growing", vec![doc! { "_id": round }]);
            let some = doc! { "_id": round % 2000 };
            client.update(database, "orders", some, doc! { "$set": { "seen": round } });
        }
        round += 1;
        // Nobody listens after the first.
        let _heard = begun.send(());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_all_shards_are_one_backup_that_is_proven_and_comes_back_to_a_cluster_and_to_one_server()
{
    for shares_time in [true, false] {
        let cluster = Cluster::start(shares_time);
        let mut filler = MongodbClient::new(cluster.port());
        for database in ["shop", "stock"] {
            filler.insert(database, "orders", orders(0, 2000));
        }
        let key = doc! { "customer": "hashed" };
        cluster.state.lock().unwrap().divided = vec![
            doc! { "_id": "shop.orders", "key": key.clone(), "unique": false },
            doc! { "_id": "config.system.sessions", "key": { "_id": 1 }, "unique": false },
        ];
        let stop = Arc::new(AtomicBool::new(false));
        let (begun, writes) = std::sync::mpsc::channel();
        let writer = {
            let (port, stop) = (cluster.port(), stop.clone());
            std::thread::spawn(move || write_until(port, &stop, &begun))
        };
        writes.recv().unwrap();
        drop(writes);
        let (backup, report) = back_up(&cluster.url()).await;
        stop.store(true, SeqCst);
        writer.join().unwrap();
        assert_eq!(cluster.asked(), ["balancerStop", "balancerStart"]);
        assert_eq!(report.position["method"], "oplog");
        let not_one_moment = report
            .warnings
            .iter()
            .filter(|one| one.code == "mongodb.not_one_moment");
        assert_eq!(not_one_moment.count(), usize::from(!shares_time));
        assert_eq!(cluster.state.lock().unwrap().waits > 0, shares_time);
        assert_eq!(
            ENGINE.log_position(&report),
            None,
            "nothing is played on it"
        );

        let scratch = server(MongodbKind::WithOplog);
        assert_eq!(
            prove(&backup, &report, &scratch).await,
            Vec::<String>::new()
        );

        let other = Cluster::start(false);
        for database in ["shop", "stock"] {
            other
                .shard(database)
                .run(database, doc! { "drop": "begun" });
        }
        restore(&backup, &report, &other.url()).await;
        let asked = other.state.lock().unwrap().asked.clone();
        assert_eq!(other.asked(), ["enableSharding", "shardCollection"]);
        assert_eq!(asked[1].get_str("shardCollection").unwrap(), "shop.orders");
        assert_eq!(asked[1].get_document("key").unwrap(), &key);
        let single = server(MongodbKind::WithOplog);
        restore(&backup, &report, &single.url()).await;
        for database in ["shop", "stock"] {
            let mut copies = [other.shard(database), MongodbClient::new(single.port())];
            let grown = copies
                .each_mut()
                .map(|copy| copy.count(database, "growing"));
            assert_eq!(grown[0], grown[1]);
            assert_eq!(copies[0].count(database, "orders"), 2000);
            if shares_time {
                // Each shard is as it was at the one moment that the backup names.
                let field = |name: &str| report.position[name].as_u64().unwrap() as u32;
                let moment = bson::Timestamp {
                    time: field("time"),
                    increment: field("increment"),
                };
                let inserted = cluster.shard(database).list(
                    "local",
                    doc! { "find": "oplog.rs", "filter": { "ns": format!("{database}.growing"), "op": "i", "ts": { "$lte": moment } } },
                );
                assert_eq!(inserted.len(), grown[0], "{database}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_that_is_off_stays_off_and_one_of_a_backup_that_died_is_started_by_its_record() {
    let cluster = Cluster::start(true);
    cluster.state.lock().unwrap().balancer_mode = "off";
    try_back_up(&cluster.url()).await.unwrap();
    assert_eq!(cluster.asked(), [""; 0]);

    // A shard that cannot be reached ends the attempt; the balancer does not stay where the attempt left it.
    let mut broken = Cluster::start(false);
    broken.shards[1].kill_9().unwrap();
    let attempt = Attempt::new();
    let sink = MemorySink::default();
    let failed = ENGINE
        .backup(
            &attempt.context,
            &target(&broken.url()),
            &BackupOptions::default(),
            &sink,
        )
        .await;
    assert!(failed.is_err());
    assert_eq!(broken.asked(), ["balancerStop", "balancerStart"]);
    assert_eq!(attempt.record.artefacts(), []);

    // What a worker that died has recorded is enough for whoever comes after it.
    let artefact = fettler_engine::Artefact {
        engine: fettler_model::Engine::Mongodb,
        kind: "balancer".to_owned(),
        name: format!("{} {}", attempt.context.attempt, broken.url()),
        data: serde_json::json!({ "was": "on" }),
        until_job_ends: false,
    };
    broken.state.lock().unwrap().balancer_mode = "off";
    ENGINE
        .remove_artefact(&artefact, Some(&target(&broken.url())))
        .await
        .unwrap();
    assert_eq!(broken.state.lock().unwrap().balancer_mode, "full");
    let nowhere = ENGINE.remove_artefact(&artefact, None).await.unwrap_err();
    assert!(nowhere.to_string().contains("balancer"), "{nowhere}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preflight_looks_at_each_shard() {
    let mut cluster = Cluster::start(true);
    let look = async |cluster: &Cluster| {
        let items = ENGINE
            .preflight(&target(&cluster.url()), &BackupOptions::default())
            .await
            .unwrap();
        let of = |subject: &str| {
            items
                .iter()
                .find(|one| one.subject == subject)
                .unwrap()
                .level
        };
        ["balancer", "shard s0", "shard s1"].map(of)
    };
    assert_eq!(look(&cluster).await, [PreflightLevel::Fine; 3]);
    cluster.shards[1].kill_9().unwrap();
    let items = ENGINE
        .preflight(&target(&cluster.url()), &BackupOptions::default())
        .await;
    // The collections of that shard cannot be listed either.
    assert!(
        items.is_err()
            || items
                .unwrap()
                .iter()
                .any(|one| one.subject == "shard s1" && one.level == PreflightLevel::Stops)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_changes_of_a_cluster_are_not_archived_and_that_is_said() {
    let cluster = Cluster::start(true);
    // Addresses that were looked at are the only ones that a router may lead to.
    let elsewhere = cluster.url() + "?hostaddr=127.0.0.1";
    try_back_up(&elsewhere).await.unwrap();
    let refused = ENGINE
        .archive(
            &Attempt::new().context,
            &target(&cluster.url()),
            &ArchiveStart::default(),
            &MemoryLog::default(),
        )
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("sharded cluster"), "{refused}");
}
