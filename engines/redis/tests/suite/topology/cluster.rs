//! What only a cluster shows: slots that move, nodes that fail, another number of nodes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use fettler_engine::{
    ArchiveStart, BackupOptions, DatabaseEngine as _, EngineError, ExtractFormat, Extraction,
    RateLimit, RestoreOptions,
    testing::{MemoryLog, MemorySink},
};
use fettler_model::Problem;
use fettler_test_servers::{RedisCluster, wait_until};
use redis::{Connection, cmd};

use super::place::{Kind, PASSWORD, Place, digests_of};
use crate::common::{
    Attempt, ENGINE, back_up, client, facts, mismatches, noise, options, prove, restore, run,
    target, try_back_up, try_restore,
};
use crate::login::certify;

fn cluster_of(primaries: usize, replicas: usize) -> Place {
    let settings = options().setting("enable-debug-command", "yes");
    Place::Cluster(RedisCluster::start(primaries, replicas, &settings, Some(PASSWORD)).unwrap())
}

fn nodes(place: &Place) -> &RedisCluster {
    match place {
        Place::Cluster(cluster) => cluster,
        _ => panic!("it is a cluster"),
    }
}

fn connections(place: &Place) -> Vec<Connection> {
    nodes(place)
        .nodes()
        .iter()
        .map(|node| client(&node.url()))
        .collect()
}

fn id(node: &mut Connection) -> String {
    cmd("CLUSTER").arg("MYID").query(node).unwrap()
}

/// Begins to move a slot: its keys are asked for at one node and then at the other.
fn open_slot(place: &Place, slot: u16, from: usize, to: usize) {
    let mut all = connections(place);
    let (from_id, to_id) = (id(&mut all[from]), id(&mut all[to]));
    run(
        &mut all[to],
        &format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}"),
    );
    run(
        &mut all[from],
        &format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}"),
    );
}

/// Moves the keys of such a slot.
fn move_keys(place: &Place, slot: u16, from: usize, to: usize) {
    let mut all = connections(place);
    let port = nodes(place).nodes()[to].port();
    loop {
        let keys: Vec<Vec<u8>> = cmd("CLUSTER")
            .arg("GETKEYSINSLOT")
            .arg(slot)
            .arg(100)
            .query(&mut all[from])
            .unwrap();
        if keys.is_empty() {
            return;
        }
        cmd("MIGRATE")
            .arg("127.0.0.1")
            .arg(port)
            .arg("")
            .arg(0)
            .arg(5000)
            .arg("AUTH")
            .arg(PASSWORD)
            .arg("KEYS")
            .arg(keys)
            .exec(&mut all[from])
            .unwrap();
    }
}

/// Ends the move.
fn close_slot(place: &Place, slot: u16, to: usize) {
    let mut all = connections(place);
    let to_id = id(&mut all[to]);
    let order = (to..all.len()).chain(0..to);
    for at in order {
        run(
            &mut all[at],
            &format!("CLUSTER SETSLOT {slot} NODE {to_id}"),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_are_recorded_and_what_is_not_one_moment_is_said() {
    let place = cluster_of(3, 0);
    place.seed();
    let (backup, report) = back_up(&place.url()).await;
    let shards = report.position["shards"].as_array().unwrap();
    let slots: Vec<&str> = shards
        .iter()
        .map(|one| one["slots"].as_str().unwrap())
        .collect();
    assert_eq!(slots, ["0-5460", "5461-10921", "10922-16383"]);
    for (shard, node) in shards.iter().zip(&mut connections(&place)) {
        assert_eq!(shard["node"], id(node));
        assert!(shard["offset"].is_u64() && shard["replication_id"].is_string());
    }
    assert_eq!(
        report.engine_data["shards"][0]["slots"],
        serde_json::json!([[0, 5460]])
    );
    let codes: Vec<&str> = report
        .warnings
        .iter()
        .map(|one| one.code.as_str())
        .collect();
    assert_eq!(codes, ["redis.moment_per_shard"]);
    // No order of writes goes through all of it.
    assert_eq!(ENGINE.log_position(&report), None);
    let log = MemoryLog::default();
    let error = ENGINE
        .archive(
            &Attempt::new().context,
            &target(&place.url()),
            &ArchiveStart::default(),
            &log,
        )
        .await
        .unwrap_err();
    assert!(error.to_string().contains("Redis Cluster"), "{error}");
    // A part is taken out as from any backup.
    let what = Extraction {
        part: "db0/int".to_owned(),
        format: ExtractFormat::Ndjson,
    };
    let mut out = Vec::new();
    ENGINE
        .extract(&Attempt::new().context, &backup, &report, &what, &mut out)
        .await
        .unwrap();
    assert!(String::from_utf8(out).unwrap().contains("12345"));
    // One node is enough to name it; two numbers of databases are one too many.
    let node = nodes(&place).nodes()[1].url();
    let (_, by_one) = back_up(&node).await;
    let fingerprints = |report: &fettler_engine::BackupReport| -> Vec<_> {
        report
            .objects
            .iter()
            .filter_map(|one| one.fingerprint)
            .collect()
    };
    assert_eq!(fingerprints(&by_one), fingerprints(&report));
    let error = Problem::from(try_back_up(&format!("{node}3")).await.unwrap_err());
    assert_eq!(error.code, "engine.missing.database");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_into_one_of_another_size_and_back() {
    let place = cluster_of(3, 0);
    let reference = place.seed();
    let wanted = digests_of(&reference.url());
    let (backup, report) = back_up(&place.url()).await;
    let mut last = None;
    for size in [1, 2, 5] {
        let other = cluster_of(size, 0);
        let restored = restore(&backup, &report, &other.url()).await;
        assert_eq!(restored.failed_statements, Vec::<String>::new());
        assert!(other.client().digests() == wanted, "{size} nodes");
        assert_eq!(
            mismatches(&report.objects, &facts(&report, &other.url()).await),
            Vec::<String>::new()
        );
        last = Some(other);
    }
    let (_, again) = back_up(&last.unwrap().url()).await;
    assert_eq!(again.position["shards"].as_array().unwrap().len(), 5);
    assert_eq!(
        mismatches(&report.objects, &again.objects),
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_slot_that_moves_while_a_backup_runs_is_in_it_once() {
    let place = cluster_of(3, 0);
    let mut writer = place.client();
    for at in 0..3000 {
        writer.run(&format!("SET {{moves}}:{at} {at}"));
        writer.run(&format!("SET stays:{at} {at}"));
    }
    let slot = writer.slot(b"{moves}:0");
    let mut owner = place
        .primaries()
        .iter()
        .position(|url| {
            let held: u64 = cmd("CLUSTER")
                .arg("COUNTKEYSINSLOT")
                .arg(slot)
                .query(&mut client(url))
                .unwrap();
            held == 3000
        })
        .unwrap();
    // While it is open, a backup waits.
    open_slot(&place, slot, owner, (owner + 1) % 3);
    let attempt = Attempt::new();
    let (context, url) = (attempt.context.clone(), place.url());
    let waits = tokio::spawn(async move {
        let sink = MemorySink::default();
        ENGINE
            .backup(&context, &target(&url), &BackupOptions::default(), &sink)
            .await
            .map(|report| (sink.source(), report))
    });
    let progress = attempt.context.progress.clone();
    wait_until("the backup to wait", Duration::from_secs(60), || {
        progress.read().item.contains("on the move")
    })
    .unwrap();
    move_keys(&place, slot, owner, (owner + 1) % 3);
    close_slot(&place, slot, (owner + 1) % 3);
    owner = (owner + 1) % 3;
    let (backup, report) = waits.await.unwrap().unwrap();
    let rows = |report: &fettler_engine::BackupReport| {
        let database = report.objects.iter().find(|one| one.name == "db0").unwrap();
        (
            database.fingerprint.unwrap().rows,
            database.independent_rows,
        )
    };
    assert_eq!(rows(&report), (6000, Some(6000)));
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());

    // It goes round and round while backups are made: every one has each key once.
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU32::new(0));
    let place = Arc::new(place);
    let mover = {
        let (stop, rounds, place) = (stop.clone(), rounds.clone(), place.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let to = (owner + 1) % 3;
                open_slot(&place, slot, owner, to);
                move_keys(&place, slot, owner, to);
                close_slot(&place, slot, to);
                owner = to;
                rounds.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(500));
            }
        })
    };
    let mut made = 0;
    while rounds.load(Ordering::SeqCst) < 8 {
        match try_back_up(&place.url()).await {
            Ok((backup, report)) => {
                assert_eq!(rows(&report), (6000, Some(6000)));
                assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
                made += 1;
            }
            // One that finds no rest comes back later.
            Err(error) => assert!(matches!(error, EngineError::Busy { .. }), "{error:?}"),
        }
    }
    stop.store(true, Ordering::SeqCst);
    mover.join().unwrap();
    assert!(made > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_restore_follows_slots_that_move_meanwhile() {
    let place = cluster_of(3, 0);
    let mut writer = place.client();
    for at in 0..2000 {
        writer.run(&format!("SET {{moves}}:{at} {at}"));
        writer.run(&format!("SET stays:{at} {at}"));
    }
    for at in 0..20u64 {
        // Large ones are built piece by piece, and renamed.
        let key = format!("{{moves}}:large:{at}");
        writer.exec(&key, cmd("SET").arg(&key).arg(noise(2_000_000, at)));
    }
    let slot = writer.slot(b"{moves}:0");
    let wanted = place.client().digests();
    let (backup, report) = back_up(&place.url()).await;
    let copy = Arc::new(cluster_of(3, 0));
    let stop = Arc::new(AtomicBool::new(false));
    let mover = {
        let (stop, copy) = (stop.clone(), copy.clone());
        let mut owner = (0..3)
            .find(|at| {
                let first = 16384 * at / 3;
                (first..16384 * (at + 1) / 3).contains(&usize::from(slot))
            })
            .unwrap();
        std::thread::spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::SeqCst) {
                let to = (owner + 1) % 3;
                open_slot(&copy, slot, owner, to);
                std::thread::sleep(Duration::from_millis(50));
                move_keys(&copy, slot, owner, to);
                // Keys that came while the others went.
                move_keys(&copy, slot, owner, to);
                close_slot(&copy, slot, to);
                owner = to;
                rounds += 1;
                // A slot that never rests is refused.
                std::thread::sleep(Duration::from_millis(50));
            }
            rounds
        })
    };
    let attempt = Attempt::new();
    let mut context = attempt.context.clone();
    context.parallel = 4;
    let mut tries = 0;
    let restored = loop {
        let restored = ENGINE
            .restore(
                &context,
                &backup,
                &report,
                &target(&copy.url()),
                &RestoreOptions::default(),
            )
            .await;
        tries += 1;
        // On a busy machine the slot may find no rest for long; a job then goes on later.
        if tries == 3 || !matches!(restored, Err(EngineError::Busy { .. })) {
            break restored;
        }
    };
    stop.store(true, Ordering::SeqCst);
    assert!(mover.join().unwrap() > 0, "no slot moved");
    assert_eq!(restored.unwrap().failed_statements, Vec::<String>::new());
    assert!(copy.client().digests() == wanted);
}

/// Each node is reached by TLS with the certificates of the URL, also those that the URL does not name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_speak_tls_are_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    certify(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let settings = options()
        .setting("enable-debug-command", "yes")
        .setting("tls-cert-file", &file("server.pem"))
        .setting("tls-key-file", &file("server.key"))
        .setting("tls-ca-cert-file", &file("ca.pem"))
        .setting("tls-auth-clients", "yes");
    let start = |primaries| {
        let cluster = RedisCluster::start_with_tls(primaries, &settings, Some(PASSWORD));
        Place::Cluster(cluster.unwrap())
    };
    let (place, other) = (start(3), start(2));
    let reference = place.seed();
    let by_tls = |place: &Place| {
        let url = place.url().replace("redis://", "rediss://");
        let first = url.split(',').next().unwrap();
        let own = [file("ca.pem"), file("client.pem"), file("client.key")];
        format!("{first}?ca={}&cert={}&key={}", own[0], own[1], own[2])
    };
    let (backup, report) = back_up(&by_tls(&place)).await;
    assert_eq!(report.position["shards"].as_array().unwrap().len(), 3);
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());
    let restored = restore(&backup, &report, &by_tls(&other)).await;
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    assert!(other.client().digests() == digests_of(&reference.url()));

    // The ports for TLS answer nobody who does not speak it.
    let error = ENGINE.identify(&target(&place.url())).await.unwrap_err();
    assert!(
        matches!(error, EngineError::Unreachable { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_read_when_asked_and_a_primary_that_dies_is_replaced_in_the_middle() {
    let mut place = cluster_of(3, 1);
    let mut primaries = place.client();
    for at in 0..90u64 {
        let key = format!("filler:{at}");
        primaries.exec(&key, cmd("SET").arg(&key).arg(noise(500_000, at)));
    }
    let copies = |place: &Place| -> Vec<u64> {
        connections(place)
            .iter_mut()
            .map(|node| {
                let told: String = cmd("INFO").arg("stats").query(node).unwrap();
                let line = told
                    .lines()
                    .find_map(|line| line.strip_prefix("sync_full:"));
                line.unwrap().trim().parse().unwrap()
            })
            .collect()
    };
    let before = copies(&place);
    let url = place.url();
    let (backup, report) = back_up(&format!("{url}?read=replica")).await;
    let after = copies(&place);
    assert_eq!(before[..3], after[..3], "the primaries were left alone");
    assert!(
        before[3..]
            .iter()
            .zip(&after[3..])
            .all(|(one, two)| one + 1 == *two)
    );
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());

    let attempt = Attempt::new();
    let mut context = attempt.context.clone();
    context.rate = Arc::new(RateLimit::new(Some(6_000_000)));
    let work = tokio::spawn(async move {
        let sink = MemorySink::default();
        ENGINE
            .backup(&context, &target(&url), &BackupOptions::default(), &sink)
            .await
            .map(|report| (sink.source(), report))
    });
    let progress = attempt.context.progress.clone();
    wait_until("bytes to come", Duration::from_secs(60), || {
        progress.read().bytes > 1_000_000
    })
    .unwrap();
    let Place::Cluster(cluster) = &mut place else {
        panic!("it is a cluster");
    };
    cluster.node(0).kill_9().unwrap();
    let (backup, again) = work.await.unwrap().unwrap();
    assert_eq!(again.identity.key, report.identity.key);
    assert_eq!(
        mismatches(&report.objects, &again.objects),
        Vec::<String>::new()
    );
    assert_eq!(prove(&backup, &again).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_nobody_serves_and_keys_that_nobody_reaches_are_told() {
    let place = cluster_of(3, 0);
    place.client().run("SET a 1");
    // A key on a node that does not serve its slot: no client can reach it.
    let mut all = connections(&place);
    let slot = place.client().slot(b"lost");
    let owner = all
        .iter_mut()
        .position(|node| redis::cmd("EXISTS").arg("lost").query::<u64>(node).is_ok())
        .unwrap();
    let other = (owner + 1) % 3;
    let from = id(&mut all[owner]);
    run(
        &mut all[other],
        &format!("CLUSTER SETSLOT {slot} IMPORTING {from}"),
    );
    redis::pipe()
        .cmd("ASKING")
        .ignore()
        .cmd("SET")
        .arg("lost")
        .arg("x")
        .ignore()
        .exec(&mut all[other])
        .unwrap();
    run(&mut all[other], &format!("CLUSTER SETSLOT {slot} STABLE"));
    let (backup, report) = back_up(&place.url()).await;
    assert_eq!(report.warnings[0].code, "redis.foreign_keys");
    let database = report.objects.iter().find(|one| one.name == "db0").unwrap();
    assert_eq!(database.fingerprint.unwrap().rows, 1);
    assert_eq!(prove(&backup, &report).await, Vec::<String>::new());

    for node in &mut all {
        run(node, "CLUSTER DELSLOTS 7 8");
    }
    let error = Problem::from(try_back_up(&place.url()).await.unwrap_err());
    assert_eq!(error.code, "engine.missing.cluster");
    assert!(error.what.contains("7-8"), "{error:?}");
    let error = try_restore(&backup, &report, &place.url(), &RestoreOptions::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("7-8"), "{error}");
    // Where addresses were looked at before, a node leads nowhere else.
    let node = nodes(&place).nodes()[0].port();
    let looked_at = format!("redis://:{PASSWORD}@elsewhere:{node}/?hostaddr=127.0.0.1");
    let whole = Place::start(Kind::Cluster);
    let port = nodes(&whole).nodes()[0].port();
    back_up(&looked_at.replace(&node.to_string(), &port.to_string())).await;
    let elsewhere = looked_at
        .replace(&node.to_string(), &port.to_string())
        .replace("hostaddr=127.0.0.1", "hostaddr=127.0.0.2,127.0.0.1");
    // The addresses that were looked at may be used, and no others.
    back_up(&elsewhere).await;
}
