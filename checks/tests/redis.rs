//! The checks of Redis on real servers: each finds what it is there for, and a fresh server is left in peace.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    time::Duration,
};

use common::{Look, keys, look, not_evaluable};
use fettler_checks::{Level, Library};
use fettler_test_servers::{RedisOptions, RedisServer, free_port, wait_until};

const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// A client that stays connected.
struct Client(BufReader<TcpStream>);

impl Client {
    fn of(server: &RedisServer) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, command: &str) {
        self.0
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())
            .unwrap();
    }

    /// The first line of the answer.
    fn ask(&mut self, command: &str) -> String {
        self.send(command);
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(!line.starts_with('-'), "{command}: {line}");
        line
    }
}

fn tell(server: &RedisServer, commands: &[&str]) {
    let mut client = Client::of(server);
    for command in commands {
        client.ask(command);
    }
}

fn asked(server: &RedisServer) -> Look {
    look(&server.url(), Level::Full, None)
}

fn until(server: &RedisServer, own: Option<&Path>, wanted: &[&str]) {
    let mut found = Vec::new();
    let waited = wait_until("the findings", SHOWN_WITHIN, || {
        found = keys(&look(&server.url(), Level::Full, own));
        found.sort();
        found == wanted
    });
    assert!(waited.is_ok(), "{found:?} where {wanted:?} should be");
}

/// A check that ships, with other limits.
fn with_limit(folder: &Path, name: &str, changes: &[(&str, &str)]) {
    let mut text = Library::shipped_text(&format!("checks/redis/{name}.yaml"))
        .unwrap()
        .to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{name}: {from}");
        text = text.replace(from, to);
    }
    std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
}

#[test]
fn a_fresh_server_gives_a_report_that_an_expert_would_sign() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let look = asked(&server);
    assert_eq!(keys(&look), [""; 0]);
    assert_eq!(
        not_evaluable(&look),
        ["redis.backup_age", "redis.proof_age"]
    );
    assert!((90..100).contains(&look.score.points), "{:?}", look.score);
}

#[test]
fn who_may_not_ask_passes_nothing() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    tell(&server, &["ACL SETUSER poor on >poor +ping +info +client"]);
    let url = server.url().replace("redis://", "redis://poor:poor@");
    let look = look(&url, Level::Full, None);
    assert_eq!(
        not_evaluable(&look),
        [
            "redis.backup_age",
            "redis.changes_unsaved",
            "redis.latency_spikes",
            "redis.memory_nearly_full",
            "redis.proof_age",
            "redis.slow_log_full",
            "redis.snapshot_failing",
            "redis.too_few_replicas",
        ]
    );
}

#[test]
fn each_check_of_memory_fires() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let mut client = Client::of(&server);
    client.ask("CONFIG SET maxmemory 4mb");
    for n in 0..2000 {
        client.ask(&format!("SET key{n} {}", "x".repeat(500)));
    }
    until(&server, None, &[]);
    client.ask("CONFIG SET maxmemory-policy volatile-lru");
    client.ask("CONFIG SET maxmemory 3mb");
    until(&server, None, &["redis.nothing_to_evict"]);
    client.ask("CONFIG SET maxmemory-policy noeviction");
    // As much as is used, and a little.
    let mut used = 0_u64;
    client.send("INFO memory");
    while used == 0 {
        let mut line = String::new();
        client.0.read_line(&mut line).unwrap();
        if let Some(number) = line.strip_prefix("used_memory:") {
            used = number.trim().parse().unwrap();
        }
    }
    tell(
        &server,
        &[&format!("CONFIG SET maxmemory {}", used * 100 / 95)],
    );
    until(&server, None, &["redis.memory_nearly_full"]);
    tell(&server, &["CONFIG SET maxmemory 0"]);
    let own = tempfile::tempdir().unwrap();
    with_limit(
        own.path(),
        "machine_memory",
        &[("used_memory_rss * 4 >", "used_memory_rss * 400000 >")],
    );
    with_limit(
        own.path(),
        "fragmentation",
        &[
            (
                "allocator_frag_bytes > 104857600",
                "allocator_frag_bytes > 1",
            ),
            ("allocator_frag_ratio > 1.5", "allocator_frag_ratio > 1.0"),
        ],
    );
    until(
        &server,
        Some(own.path()),
        &["redis.fragmentation", "redis.machine_memory"],
    );
    until(&server, None, &[]);
}

#[test]
fn each_check_of_what_is_kept_fires() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    let server = RedisServer::start(
        RedisOptions::new()
            .setting("dir", &kept.display().to_string())
            .setting("appendonly", "yes"),
    )
    .unwrap();
    tell(&server, &["SET a b"]);
    until(&server, None, &[]);
    std::fs::remove_dir_all(&kept).unwrap();
    tell(&server, &["BGSAVE"]);
    until(&server, None, &["redis.snapshot_failing"]);
    Client::of(&server).send("BGREWRITEAOF");
    until(
        &server,
        None,
        &["redis.append_file_failing", "redis.snapshot_failing"],
    );

    let server = RedisServer::start(RedisOptions::new().setting("save", "999999 999999")).unwrap();
    let mut client = Client::of(&server);
    for n in 0..10_000 {
        client.ask(&format!("INCRBY n {n}"));
    }
    let own = tempfile::tempdir().unwrap();
    until(&server, None, &[]);
    with_limit(own.path(), "changes_unsaved", &[("> 7200", ">= 0")]);
    until(&server, Some(own.path()), &["redis.changes_unsaved"]);
}

#[test]
fn each_check_of_clients_and_of_speed_fires() {
    let options = RedisOptions::new()
        .setting("maxclients", "10")
        .setting("enable-debug-command", "local")
        .setting("slowlog-max-len", "3");
    let server = RedisServer::start(options).unwrap();
    until(&server, None, &[]);
    // One place is left for the look.
    let mut clients: Vec<Client> = (0..7).map(|_| Client::of(&server)).collect();
    for client in &mut clients {
        client.send("BLPOP nothing 0");
    }
    until(
        &server,
        None,
        &["redis.clients_blocked", "redis.clients_nearly_full"],
    );
    // And none for those.
    for _ in 0..6 {
        clients.push(Client::of(&server));
    }
    drop(clients);
    until(&server, None, &["redis.connections_rejected"]);
    tell(&server, &["CONFIG RESETSTAT"]);
    until(&server, None, &[]);
    tell(
        &server,
        &[
            "CONFIG SET latency-monitor-threshold 50",
            "DEBUG SLEEP 0.3",
            "CONFIG SET latency-monitor-threshold 0",
        ],
    );
    until(&server, None, &["redis.latency_spikes:command"]);
    tell(
        &server,
        &[
            "LATENCY RESET",
            "CONFIG SET slowlog-log-slower-than 0",
            "PING",
            "PING",
            "PING",
            "CONFIG SET slowlog-log-slower-than 10000000",
        ],
    );
    until(&server, None, &["redis.slow_log_full"]);
}

#[test]
fn each_check_of_replication_fires() {
    let primary = RedisServer::start(RedisOptions::new()).unwrap();
    let replica = RedisServer::start(RedisOptions::new()).unwrap();
    tell(
        &replica,
        &[&format!("REPLICAOF 127.0.0.1 {}", primary.port())],
    );
    tell(&primary, &["CONFIG SET min-replicas-to-write 1"]);
    until(&replica, None, &[]);
    until(&primary, None, &[]);
    tell(&replica, &["CONFIG SET replica-read-only no"]);
    until(&replica, None, &["redis.replica_writable"]);
    tell(&replica, &["CONFIG SET replica-read-only yes"]);
    let id = replica.pid().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-STOP", &id])
            .status()
            .unwrap()
            .success()
    );
    let behind = format!("redis.replicas_behind:127.0.0.1:{}", replica.port());
    until(&primary, None, &[&behind, "redis.too_few_replicas"]);
    assert!(
        Command::new("kill")
            .args(["-CONT", &id])
            .status()
            .unwrap()
            .success()
    );
    until(&primary, None, &[]);
    tell(&replica, &[&format!("REPLICAOF 127.0.0.1 {}", free_port())]);
    until(&replica, None, &["redis.replica_link_down"]);
}
