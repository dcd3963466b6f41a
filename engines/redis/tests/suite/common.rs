//! Servers with data of every type, attempts, and proofs.

use std::sync::Arc;

use fettler_engine::{
    BackupOptions, BackupReport, DatabaseEngine as _, EngineContext, EngineError, RestoreOptions,
    RestoreReport, Sandbox, SandboxRequest, SandboxSpec, Target,
    testing::{MemoryRecord, MemorySink, MemorySource, context},
};
use fettler_engine_redis::RedisEngine;
use fettler_model::{DatabaseUrl, JobId, ObjectFacts};
use fettler_test_servers::{RedisOptions, RedisServer};
use redis::{Cmd, Connection, Value, cmd};

pub const ENGINE: RedisEngine = RedisEngine::new();

/// An attempt of a job of its own, with a folder that goes with it.
pub struct Attempt {
    pub context: EngineContext,
    pub record: Arc<MemoryRecord>,
    pub job: JobId,
    folder: tempfile::TempDir,
}

impl Attempt {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (record, job) = (Arc::default(), JobId::new());
        Self {
            context: context(job, 1, folder.path(), &record),
            record,
            job,
            folder,
        }
    }

    /// The next attempt of the same job.
    pub fn next(&self, number: u32) -> EngineContext {
        context(self.job, number, self.folder.path(), &self.record)
    }
}

/// Without the five seconds in which a server waits for more replicas.
pub fn options() -> RedisOptions {
    RedisOptions::new().setting("repl-diskless-sync-delay", "0")
}

pub fn server() -> RedisServer {
    RedisServer::start(options()).unwrap()
}

pub fn target(url: &str) -> Target {
    let (url, password) = DatabaseUrl::parse_with_password(url).unwrap();
    Target { url, password }
}

/// A client of the server's own protocol.
pub fn client(url: &str) -> Connection {
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

/// A command of words.
pub fn command(words: &str) -> Cmd {
    let mut words = words.split(' ');
    let mut made = cmd(words.next().unwrap());
    for word in words {
        made.arg(word);
    }
    made
}

/// Sends a command of words.
pub fn run(client: &mut Connection, words: &str) -> Value {
    command(words)
        .query(client)
        .unwrap_or_else(|error| panic!("{words}: {error}"))
}

pub fn keys_in(client: &mut Connection, database: u32) -> u64 {
    run(client, &format!("SELECT {database}"));
    cmd("DBSIZE").query(client).unwrap()
}

pub async fn try_back_up(url: &str) -> Result<(MemorySource, BackupReport), EngineError> {
    let sink = MemorySink::default();
    let report = ENGINE
        .backup(
            &Attempt::new().context,
            &target(url),
            &BackupOptions::default(),
            &sink,
        )
        .await?;
    Ok((sink.source(), report))
}

pub async fn back_up(url: &str) -> (MemorySource, BackupReport) {
    try_back_up(url).await.unwrap()
}

pub async fn try_restore(
    backup: &MemorySource,
    report: &BackupReport,
    url: &str,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    ENGINE
        .restore(
            &Attempt::new().context,
            backup,
            report,
            &target(url),
            options,
        )
        .await
}

pub async fn restore(backup: &MemorySource, report: &BackupReport, url: &str) -> RestoreReport {
    try_restore(backup, report, url, &RestoreOptions::default())
        .await
        .unwrap()
}

/// What is in a server that is no sandbox.
pub async fn facts(report: &BackupReport, url: &str) -> Vec<ObjectFacts> {
    ENGINE
        .facts(&Attempt::new().context, &target(url), report)
        .await
        .unwrap()
}

pub fn request(report: &BackupReport) -> SandboxRequest {
    SandboxRequest {
        spec: SandboxSpec::Automatic,
        server: None,
        identity: report.identity.clone(),
        estimated_bytes: 0,
        left: None,
    }
}

pub async fn close(sandbox: &Sandbox, server: Option<&Target>) {
    for artefact in &sandbox.artefacts {
        ENGINE.remove_artefact(artefact, server).await.unwrap();
    }
}

/// What a proof would find wrong.
pub fn mismatches(expected: &[ObjectFacts], copy: &[ObjectFacts]) -> Vec<String> {
    let mut found = Vec::new();
    for object in expected {
        if let Some(fingerprint) = object.fingerprint
            && object.independent_rows != Some(fingerprint.rows)
        {
            found.push(format!(
                "{}: {:?} counted, {} read",
                object.name, object.independent_rows, fingerprint.rows
            ));
        }
        if object.fingerprint.is_none() && object.value.is_none() {
            continue;
        }
        match copy.iter().find(|other| other.name == object.name) {
            None => found.push(format!("{} is missing", object.name)),
            Some(other)
                if other.fingerprint != object.fingerprint || other.value != object.value =>
            {
                found.push(format!(
                    "{}: {:?} {:?} instead of {:?} {:?}",
                    object.name, other.fingerprint, other.value, object.fingerprint, object.value
                ));
            }
            Some(_) => {}
        }
    }
    for object in copy {
        if !expected.iter().any(|other| other.name == object.name) {
            found.push(format!("{} is new", object.name));
        }
    }
    found
}

/// Proves a backup in a private server; `meddle` may change the copy before it is compared.
pub async fn prove_after(
    backup: &MemorySource,
    report: &BackupReport,
    meddle: impl FnOnce(&mut Connection),
) -> Vec<String> {
    let attempt = Attempt::new();
    let sandbox = ENGINE
        .open_sandbox(&attempt.context, &request(report))
        .await
        .unwrap();
    let restored = ENGINE
        .restore(
            &attempt.context,
            backup,
            report,
            &sandbox.target,
            &RestoreOptions::default(),
        )
        .await
        .unwrap();
    meddle(&mut client(sandbox.target.url.as_str()));
    let copy = ENGINE
        .facts(&attempt.context, &sandbox.target, report)
        .await
        .unwrap();
    close(&sandbox, None).await;
    let mut found = restored.failed_statements;
    found.extend(mismatches(&report.objects, &copy));
    found
}

pub async fn prove(backup: &MemorySource, report: &BackupReport) -> Vec<String> {
    prove_after(backup, report, |_| ()).await
}

/// Bytes that look like nothing else.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// Puts values of every type, encoding and odd form into a server.
pub fn fill(client: &mut Connection) {
    let set = |client: &mut Connection, key: &[u8], value: &[u8]| {
        cmd("SET").arg(key).arg(value).exec(client).unwrap();
    };
    // Strings: integers, short, long, repetitive, binary, empty; keys that are no text.
    for (key, value) in [
        ("int", b"12345".to_vec()),
        ("negative", b"-9223372036854775808".to_vec()),
        ("big", b"9007199254740993".to_vec()),
        ("empty", Vec::new()),
        ("short", b"embstr".to_vec()),
        ("long", noise(5000, 1)),
        ("repetitive", vec![b'x'; 100_000]),
        ("large", noise(3_000_000, 2)),
    ] {
        set(client, key.as_bytes(), &value);
    }
    for key in [
        b"".as_slice(),
        b"\0",
        b"\xff\xfe binary \r\n\"'*?[",
        "schl\u{fc}ssel".as_bytes(),
        &noise(3000, 3),
    ] {
        set(client, key, b"odd key");
    }
    run(client, "SETBIT bitmap 70000 1");
    run(client, "PFADD loglog a b c d e f g");
    // Lists, sets, sorted sets, hashes: small ones packed, large ones not.
    for (name, count, length) in [
        ("small", 5, 10),
        ("middle", 700, 20),
        ("large", 30_000, 60),
        ("wide", 40, 70_000),
    ] {
        for kind in ["RPUSH", "SADD", "ZADD", "HSET"] {
            let key = format!("{kind}:{name}");
            for from in (0..count).step_by(5000) {
                let mut add = cmd(kind);
                add.arg(&key);
                for at in from..count.min(from + 5000) {
                    let item = noise(length, at as u64 * 2 + 1);
                    match kind {
                        "ZADD" => add.arg(at as f64 / 3.0 - 7.0).arg(item),
                        "HSET" => add.arg(format!("field {at}")).arg(item),
                        _ => add.arg(item),
                    };
                }
                add.exec(client).unwrap();
            }
        }
    }
    run(client, "SADD intset 1 -2 3000000000 -9223372036854775808");
    run(client, "SADD letters a b c");
    run(
        client,
        "RPUSH numbers 1 -1 127 -128 65536 9223372036854775807 x 01",
    );
    run(client, "HSET mixed 1 2 a  b 3.5");
    run(
        client,
        "ZADD scores 0 zero -0 minus 1 one inf most -inf least 1e300 huge 5e-324 tiny 0.1 tenth 9007199254740993 odd",
    );
    // A sorted set that is not packed keeps -0 apart from 0.
    cmd("ZADD")
        .arg("unpacked")
        .arg("-0")
        .arg(noise(100, 5))
        .arg("0")
        .arg(noise(100, 6))
        .exec(client)
        .unwrap();
    run(
        client,
        "GEOADD places 13.361389 38.115556 Palermo 15.087269 37.502669 Catania",
    );
    // Streams: entries, deleted ones, groups, pending entries of consumers, an empty one.
    for at in 1..=500 {
        run(client, &format!("XADD stream {at}-1 a {at} b value"));
    }
    run(client, "XADD stream 501-1 other field and more");
    run(client, "XDEL stream 3-1 500-1");
    run(client, "XGROUP CREATE stream first 0");
    run(client, "XGROUP CREATE stream second 200-0 ENTRIESREAD 199");
    run(client, "XGROUP CREATE stream unread $");
    run(
        client,
        "XREADGROUP GROUP first ann COUNT 5 STREAMS stream >",
    );
    run(
        client,
        "XREADGROUP GROUP first bob COUNT 3 STREAMS stream >",
    );
    run(client, "XACK stream first 1-1 6-1");
    run(
        client,
        "XCLAIM stream first bob 0 2-1 RETRYCOUNT 7 TIME 1700000000000",
    );
    run(
        client,
        "XREADGROUP GROUP second carol COUNT 2 STREAMS stream >",
    );
    run(client, "XGROUP CREATECONSUMER stream second idle");
    // An entry that is pending and gone.
    run(client, "XDEL stream 4-1");
    run(client, "XADD emptied 5-5 a b");
    run(client, "XDEL emptied 5-5");
    run(
        client,
        "XGROUP CREATE made $ MKSTREAM"
            .replace("made", "made g")
            .as_str(),
    );
    // Expiries, near and far.
    run(client, "SET expires later PXAT 4102444800123");
    run(client, "HSET expiring:hash a b");
    run(client, "PEXPIREAT expiring:hash 9999999999999");
    run(client, "SET nearly:never x PXAT 9223372036854775807");
    // Other databases.
    for (database, key) in [(1, "one"), (15, "fifteen")] {
        run(client, &format!("SELECT {database}"));
        run(client, &format!("SET {key} value"));
        run(client, "RPUSH same:name 1 2 3");
    }
    run(client, "SELECT 0");
    let library =
        "#!lua name=shop\nredis.register_function('total', function(keys, args) return 42 end)";
    cmd("FUNCTION")
        .arg("LOAD")
        .arg(library)
        .exec(client)
        .unwrap();
}
