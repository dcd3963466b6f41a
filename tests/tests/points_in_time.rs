//! Points in time, through the binary: a database whose changes are archived comes back to a second that no backup was made at,
//! also when the worker that archived it, or the server, was killed.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bson::doc;
use fettler_tests::{
    Installation, Size,
    servers::{MongodbClient, MongodbKind, MongodbServer, RedisOptions, RedisServer, wait_until},
};
use jiff::{SignedDuration, Timestamp};
use redis::{Connection, cmd};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);
/// What may be lost when worker and server are killed: about a second where the machine is not busy with other tests.
const MOST_LOST: SignedDuration = SignedDuration::from_secs(3);

fn start() -> RedisServer {
    RedisServer::start(RedisOptions::new().setting("repl-diskless-sync-delay", "0")).unwrap()
}

fn client(server: &RedisServer) -> Connection {
    redis::Client::open(server.url())
        .unwrap()
        .get_connection()
        .unwrap()
}

/// What can be restored of the only database; nothing yet is nothing.
fn points(fettler: &Installation) -> Option<Value> {
    fettler.json(&["backups"])["points_in_time"].get(0).cloned()
}

fn moment(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

/// Waits until everything up to now can be restored: a moment holds for sure what was acknowledged a second before it.
fn caught_up(fettler: &Installation) -> Value {
    let now = Timestamp::now() + SignedDuration::from_secs(1);
    let mut last = None;
    wait_until("everything is archived", PATIENCE, || {
        last = points(fettler);
        last.as_ref()
            .is_some_and(|points| moment(&points["until"]) > now)
    })
    .unwrap_or_else(|error| panic!("{error}: {last:#?} {}", fettler.logs()));
    last.unwrap()
}

/// Numbers that a client writes until it is told to stop or its server is gone: when each began and was acknowledged.
fn write_until(
    server: &RedisServer,
    stop: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<Vec<(Timestamp, Timestamp)>> {
    let (mut client, stop) = (client(server), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut written = Vec::new();
        while !stop.load(Relaxed) {
            let began = Timestamp::now();
            let number = written.len() as u64 + 1;
            if cmd("RPUSH")
                .arg("numbers")
                .arg(number)
                .exec(&mut client)
                .is_err()
            {
                break;
            }
            written.push((began, Timestamp::now()));
            std::thread::sleep(Duration::from_millis(5));
        }
        written
    })
}

/// Restores to a second and compares with what the client wrote; gives how many writes came back.
fn restore_and_compare(
    fettler: &Installation,
    copy: &RedisServer,
    at: Timestamp,
    written: &[(Timestamp, Timestamp)],
) -> usize {
    let (to, when) = (copy.url(), at.to_string());
    fettler
        .run(&[
            "restore",
            "shop",
            "--to-time",
            &when,
            "--to",
            &to,
            "--overwrite",
        ])
        .done();
    let numbers: Vec<u64> = cmd("LRANGE")
        .arg("numbers")
        .arg(0)
        .arg(-1)
        .query(&mut client(copy))
        .unwrap();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64));
    for (at_most, (began, acknowledged)) in written.iter().enumerate() {
        let is_there = at_most < numbers.len();
        if *acknowledged < at - SignedDuration::from_secs(1) {
            assert!(
                is_there,
                "write {} of {acknowledged} is missing at {at}",
                at_most + 1
            );
        }
        if *began > at {
            assert!(
                !is_there,
                "write {} of {began} is there at {at}",
                at_most + 1
            );
        }
    }
    numbers.len()
}

/// The last second that can be restored before the gap that this time lies in, or the time itself.
fn last_before(points: &Value, at: Timestamp) -> Timestamp {
    let gaps = points["gaps"].as_array().unwrap();
    gaps.iter()
        .map(|gap| (moment(&gap["from"]), moment(&gap["until"])))
        .find(|(from, until)| *from < at && at < *until)
        .map_or(at, |(from, _)| from)
}

fn causes(points: &Value) -> Vec<&str> {
    points["gaps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gap| gap["cause"].as_str().unwrap())
        .collect()
}

#[test]
fn a_killed_worker_and_a_killed_server_cost_the_last_moment_only() {
    let (mut source, copy) = (start(), start());
    // From afar (`--server`) points in time are neither told nor restored to.
    let fettler = Installation::of_size(Size::Embedded)
        .without_workers()
        .with_short_leases();
    let mut worker = fettler.start_worker();

    // Without a backup the archive asks for one by itself.
    fettler
        .run(&["archive", &source.url(), "--name", "shop", "--detach"])
        .done();
    caught_up(&fettler);
    let stop = Arc::new(AtomicBool::new(false));
    let began = Timestamp::now();
    let writer = write_until(&source, &stop);
    std::thread::sleep(Duration::from_secs(2));

    // The worker is killed; another goes on from the log's end, and nothing is missing.
    worker.kill_9();
    let killed = Timestamp::now();
    let mut worker = fettler.start_worker();
    let after = caught_up(&fettler);
    assert!(!causes(&after).contains(&"changes_lost"), "{after:#}");

    // Worker and server are killed at once: all but the last second is there.
    std::thread::sleep(Duration::from_secs(1));
    worker.kill_9();
    source.kill_9().unwrap();
    let both_killed = Timestamp::now();
    let written = writer.join().unwrap();
    assert!(written.len() > 100, "{}", written.len());
    let left = points(&fettler).unwrap();
    let until = moment(&left["until"]);
    for at in [
        began + SignedDuration::from_millis(1300),
        // The last second that stands before the worker was killed.
        last_before(&left, killed),
    ] {
        restore_and_compare(&fettler, &copy, at, &written);
    }
    let came_back = restore_and_compare(&fettler, &copy, until, &written);
    if let Some((_, acknowledged)) = written.get(came_back) {
        let lost = both_killed.duration_since(*acknowledged);
        println!(
            "lost: what was acknowledged in the last {lost}, {} writes",
            written.len() - came_back
        );
        assert!(lost < MOST_LOST, "{lost}");
    }

    // Before the first moment nothing can be restored, and the nearest moment is named.
    let to = copy.url();
    let refused = fettler.run(&[
        "restore",
        "shop",
        "--to-time",
        "2020-01-01T00:00:00Z",
        "--to",
        &to,
        "--overwrite",
    ]);
    assert_ne!(refused.code, 0);
    let first = left["from"].as_str().unwrap();
    // Messages are wrapped.
    let told: String = refused
        .stderr
        .chars()
        .filter(|letter| !letter.is_whitespace() && *letter != '|')
        .collect();
    assert!(told.contains(first), "{}", refused.stderr);

    // The server has lost its history: the archive goes on with another backup, and the gap is told.
    source.start_again().unwrap();
    let mut worker = fettler.start_worker();
    let after = caught_up(&fettler);
    assert!(causes(&after).contains(&"changes_lost"), "{after:#}");
    let shown = fettler.run(&["backups"]).done();
    assert!(
        shown.stdout.contains("changes are missing"),
        "{}",
        shown.stdout
    );
    fettler.run(&["check", "--read-data"]).done();
    worker.terminate();
}

/// Documents that a client of MongoDB puts there until it is told to stop or its server is gone.
fn insert_until(
    server: &MongodbServer,
    stop: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<Vec<(Timestamp, Timestamp)>> {
    let (port, stop) = (server.port(), Arc::clone(stop));
    let written = Arc::new(std::sync::Mutex::new(Vec::new()));
    std::thread::spawn(move || {
        let log = Arc::clone(&written);
        // A server that is gone ends the client with a panic.
        let _gone = std::thread::spawn(move || {
            let mut client = MongodbClient::new(port);
            while !stop.load(Relaxed) {
                let began = Timestamp::now();
                let number = log.lock().unwrap().len() as i64 + 1;
                client.insert("shop", "numbers", [doc! { "_id": number }]);
                log.lock().unwrap().push((began, Timestamp::now()));
                std::thread::sleep(Duration::from_millis(5));
            }
        })
        .join();
        std::mem::take(&mut *written.lock().unwrap())
    })
}

/// Restores to a millisecond: what was acknowledged up to it is there, and nothing that began after it. Gives how many writes
/// came back.
fn restore_documents(
    fettler: &Installation,
    copy: &MongodbServer,
    at: Timestamp,
    written: &[(Timestamp, Timestamp)],
) -> usize {
    let (to, when) = (copy.url(), at.to_string());
    fettler
        .run(&[
            "restore",
            "shop",
            "--to-time",
            &when,
            "--to",
            &to,
            "--overwrite",
        ])
        .done();
    let mut numbers: Vec<i64> = MongodbClient::new(copy.port())
        .all("shop", "numbers")
        .iter()
        .map(|document| document.get_i64("_id").unwrap())
        .collect();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as i64));
    let acknowledged = written.iter().filter(|(_, at_last)| *at_last <= at).count();
    let begun = written.iter().filter(|(began, _)| *began < at).count();
    assert!(
        (acknowledged..=begun).contains(&numbers.len()),
        "{} writes at {at} instead of {acknowledged} to {begun}",
        numbers.len()
    );
    numbers.len()
}

fn whole_millis(at: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(at.as_millisecond()).unwrap()
}

#[test]
fn a_mongodb_comes_back_to_any_millisecond_whatever_was_killed() {
    let mut source = MongodbServer::start(MongodbKind::WithOplog).unwrap();
    let copy = MongodbServer::start(MongodbKind::WithOplog).unwrap();
    let fettler = Installation::of_size(Size::Embedded)
        .without_workers()
        .with_short_leases();
    let mut worker = fettler.start_worker();
    MongodbClient::new(source.port()).insert("shop", "orders", [doc! { "_id": 1 }]);

    // Without a backup the archive asks for one by itself.
    fettler
        .run(&["archive", &source.url(), "--name", "shop", "--detach"])
        .done();
    caught_up(&fettler);
    let stop = Arc::new(AtomicBool::new(false));
    let began = Timestamp::now();
    let writer = insert_until(&source, &stop);
    std::thread::sleep(Duration::from_secs(2));

    // The worker is killed; another goes on from the log's end, and nothing is missing, also not of the time between.
    worker.kill_9();
    let killed = Timestamp::now();
    std::thread::sleep(Duration::from_secs(1));
    let mut worker = fettler.start_worker();
    let after = caught_up(&fettler);
    assert_eq!(causes(&after), [""; 0], "{after:#}");

    // Worker and server are killed at once: all but the last second is there.
    std::thread::sleep(Duration::from_secs(2));
    worker.kill_9();
    source.kill_9().unwrap();
    let both_killed = Timestamp::now();
    let written = writer.join().unwrap();
    assert!(written.len() > 50, "{}", written.len());
    let left = points(&fettler).unwrap();
    let until = moment(&left["until"]);
    for at in [
        began + SignedDuration::from_millis(1300),
        // While nobody archived.
        killed + SignedDuration::from_millis(500),
    ] {
        let came_back = restore_documents(&fettler, &copy, whole_millis(at), &written);
        assert!(came_back > 0 && came_back < written.len());
    }
    let came_back = restore_documents(&fettler, &copy, whole_millis(until), &written);
    if let Some((_, acknowledged)) = written.get(came_back) {
        let lost = both_killed.duration_since(*acknowledged);
        println!(
            "lost: what was acknowledged in the last {lost}, {} writes",
            written.len() - came_back
        );
        assert!(lost < MOST_LOST, "{lost}");
    }
    let behind = (until + SignedDuration::from_secs(2)).to_string();
    let to = copy.url();
    let late = [
        "restore",
        "shop",
        "--to-time",
        &behind,
        "--to",
        &to,
        "--overwrite",
    ];
    assert_ne!(fettler.run(&late).code, 0, "nobody knows what was then");

    // The server has lost its oplog: the archive goes on with another backup, and the gap is told.
    source.start_again().unwrap();
    MongodbClient::new(source.port()).insert("shop", "numbers", [doc! { "_id": 1_i64 }]);
    let mut worker = fettler.start_worker();
    let after = caught_up(&fettler);
    assert_eq!(causes(&after), ["changes_lost"], "{after:#}");
    let shown = fettler.run(&["backups"]).done();
    assert!(
        shown.stdout.contains("changes are missing"),
        "{}",
        shown.stdout
    );
    assert_ne!(fettler.run(&late).code, 0, "it lies in the gap");
    let at = whole_millis(moment(&after["until"]));
    let one = [(both_killed, both_killed)];
    assert_eq!(restore_documents(&fettler, &copy, at, &one), 1);
    fettler.run(&["check", "--read-data"]).done();
    worker.terminate();
}
