//! `fettler audit` through the binary on what is no PostgreSQL: with nothing configured, twice, by a policy, killed in the middle.

#![allow(clippy::unwrap_used)]

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use bson::doc;
use fettler_tests::{
    Installation, Size,
    servers::{MongodbClient, MongodbKind, MongodbServer, RedisOptions, RedisServer, wait_until},
};
use redis::cmd;
use rstest::rstest;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

/// The keys of what is open.
fn open(document: &Value) -> Vec<&str> {
    let findings = document["findings"].as_array();
    let findings = findings.unwrap_or_else(|| panic!("{document:#}")).iter();
    findings
        .filter(|one| one["status"]["state"] == "open")
        .map(|one| one["key"].as_str().unwrap())
        .collect()
}

/// Audits, whatever it finds.
fn audit(fettler: &Installation, database: &str) -> Value {
    let answer = fettler.run(&["audit", database, "--json"]);
    assert!(matches!(answer.code, 0 | 3), "{answer:#?}");
    answer.json()
}

/// A fault that is found, stays the same finding, and is resolved when it is mended.
fn is_found_until_mended(
    fettler: &Installation,
    url: &str,
    key: &str,
    fault: &dyn Fn(),
    mend: &dyn Fn(),
) {
    let fresh = audit(fettler, url);
    assert!(!open(&fresh).contains(&key), "{fresh:#}");
    assert!(fresh["checks"].as_array().unwrap().len() >= 20, "{fresh:#}");
    fault();
    let first = audit(fettler, url);
    assert!(open(&first).contains(&key), "{first:#}");
    let again = audit(fettler, url);
    assert_eq!(again["changes"], json!([]), "{again:#}");
    assert_eq!(open(&again), open(&first));
    // A look at the health leaves what an audit has found.
    assert!(matches!(
        fettler.run(&["health", url, "--json"]).code,
        0 | 3
    ));
    let all = fettler.json(&["findings", "--area", "security"]);
    assert!(open(&all).contains(&key), "{all:#}");
    mend();
    let mended = audit(fettler, url);
    assert!(!open(&mended).contains(&key), "{mended:#}");
    let resolved = fettler.json(&["findings", "--state", "resolved"]);
    let resolved = resolved["findings"].as_array().unwrap().iter();
    assert!(resolved.map(|one| &one["key"]).any(|one| one == key));
}

fn file(fettler: &Installation) -> String {
    let path = fettler.path("shop.sqlite");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
        .unwrap();
    allow(&path, 0o640);
    path.to_str().unwrap().to_owned()
}

fn allow(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn told(server: &RedisServer, words: &[&str]) {
    let client = redis::Client::open(server.url()).unwrap();
    let mut command = cmd(words[0]);
    command.arg(&words[1..]);
    let () = command
        .query(&mut client.get_connection().unwrap())
        .unwrap();
}

#[rstest]
fn a_file_is_audited(#[values(Size::Embedded, Size::Fleet)] size: Size) {
    let fettler = Installation::of_size(size);
    let path = file(&fettler);
    is_found_until_mended(
        &fettler,
        &path,
        "sqlite.file_written_by_group",
        &|| allow(Path::new(&path), 0o660),
        &|| allow(Path::new(&path), 0o640),
    );
}

#[rstest]
fn redis_is_audited(#[values(Size::Embedded, Size::Fleet)] size: Size) {
    let fettler = Installation::of_size(size);
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    is_found_until_mended(
        &fettler,
        &server.url(),
        "redis.users_configure:app",
        &|| {
            told(
                &server,
                &["ACL", "SETUSER", "app", "on", ">dLw83hGq2", "+config|set"],
            );
        },
        &|| told(&server, &["ACL", "DELUSER", "app"]),
    );
}

/// The database that is called as a note of whoever empties servers.
const NOTE: &str = "READ__ME_TO_RECOVER_YOUR_DATA";

#[rstest]
fn mongodb_is_audited(#[values(Size::Embedded, Size::Fleet)] size: Size) {
    let fettler = Installation::of_size(size);
    let server = MongodbServer::start(MongodbKind::WithOplog).unwrap();
    let client = || MongodbClient::new(server.port());
    is_found_until_mended(
        &fettler,
        &server.url(),
        &format!("mongodb.ransom_note:{NOTE}"),
        &|| client().insert(NOTE, "README", [doc! { "content": "pay" }]),
        &|| {
            client().run(NOTE, doc! { "dropDatabase": 1 });
        },
    );
}

/// A server whose audit finds that it lets everybody in.
enum Open {
    Redis(RedisServer),
    Mongodb(MongodbServer),
}

impl Open {
    fn start(engine: &str) -> Self {
        match engine {
            "redis" => Self::Redis(RedisServer::start(RedisOptions::new()).unwrap()),
            _ => Self::Mongodb(MongodbServer::start(MongodbKind::WithOplog).unwrap()),
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(),
            Self::Mongodb(server) => server.url(),
        }
    }
}

#[rstest]
fn a_policy_audits_and_a_worker_that_is_killed_in_the_middle_costs_nothing(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
    #[values("redis", "mongodb")] engine: &str,
) {
    let server = Open::start(engine);
    let fettler = Installation::of_size(size)
        .without_workers()
        .with_short_leases();
    let latches = fettler.path("latches");
    std::fs::create_dir(&latches).unwrap();
    // The findings are recorded, and the ledger does not know that the job has ended.
    let fettler = fettler
        .with("FETTLER_FAULT_POINT", "attempt.begun,attempt.done")
        .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap());
    fettler.json(&["database", "add", "cache", &server.url()]);
    fettler.run(&["audit", "cache", "--detach"]).done();
    let audits = || {
        let jobs = fettler.json(&["jobs", "--all"]);
        let jobs = jobs["jobs"].as_array().unwrap().iter();
        jobs.filter(|job| job["kind"] == "audit")
            .cloned()
            .collect::<Vec<Value>>()
    };
    let mut up = fettler.start_worker();
    let mut deaths = 0;
    wait_until("the audit succeeds", PATIENCE, || {
        if !up.runs() {
            deaths += 1;
            up = fettler.start_worker();
        }
        audits()[0]["state"] == "succeeded"
    })
    .unwrap_or_else(|error| panic!("{error}: {:#?} {}", audits(), up.log()));
    assert!(deaths >= 1, "{}", up.log());
    // Each step of the history of a finding is there once.
    let history = fettler.json(&[
        "findings",
        "history",
        "cache",
        &format!("{engine}.anonymous_let_in"),
    ]);
    assert_eq!(history["steps"].as_array().unwrap().len(), 1, "{history:#}");
    if size == Size::Embedded {
        fettler.json(&[
            "policy",
            "add",
            "often",
            "--database",
            "cache",
            "--kind",
            "audit",
            "--cron",
            "*/2 * * * * *",
        ]);
        wait_until("an audit by the policy", PATIENCE, || {
            audits()
                .iter()
                .filter(|job| job["state"] == "succeeded")
                .count()
                >= 2
        })
        .unwrap_or_else(|error| panic!("{error}: {}", up.log()));
    }
    up.terminate();
}
