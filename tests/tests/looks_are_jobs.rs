//! `health`, `audit` and `tune` are jobs like others, on every engine: submitted by the command line and over HTTP (which is how
//! the command line reaches a fleet), taken up again when their worker is killed, the same when they are run twice, and
//! submitted by policies.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use fettler_tests::{
    Installation, Running, Size,
    servers::{
        ClickhouseServer, ClickhouseVersion, MongodbKind, MongodbServer, PgMajor, PostgresServer,
        RedisOptions, RedisServer, SearchKind, SearchServer, wait_until,
    },
    sqlite,
};
use serde_json::{Value, json};

const KINDS: [&str; 3] = ["health", "audit", "tune"];
const PATIENCE: Duration = Duration::from_secs(180);
/// The work is done and its findings are recorded; the ledger does not know that the job has ended.
const PLACE: &str = "attempt.done";

/// The jobs of a kind, newest first.
fn jobs(fettler: &Installation, kind: &str) -> Vec<Value> {
    let all = fettler.json(&["jobs", "--all"]);
    let jobs = all["jobs"].as_array().unwrap().iter();
    jobs.filter(|job| job["kind"] == kind).cloned().collect()
}

/// Runs one job of each kind, with its worker killed, and a second one that has nothing new to say.
fn is_taken_up_again(fettler: &Installation, latches: &std::path::Path) -> Running {
    for kind in KINDS {
        let mut up = fettler.start_worker();
        fettler.run(&[kind, "shop", "--detach"]).done();
        let mut deaths = 0;
        wait_until("the job succeeds", PATIENCE, || {
            if !up.runs() {
                deaths += 1;
                up = fettler.start_worker();
            }
            jobs(fettler, kind)[0]["state"] == "succeeded"
        })
        .unwrap_or_else(|error| panic!("{kind}: {error}: {:#?} {}", jobs(fettler, kind), up.log()));
        assert_eq!(deaths, 1, "{kind}: {}", up.log());
        assert_eq!(jobs(fettler, kind)[0]["attempts"], 2, "{kind}");
        assert_eq!(up.terminate(), 0, "{}", up.log());
        // The next process dies there again.
        std::fs::remove_file(latches.join(PLACE)).unwrap();
    }
    std::fs::write(latches.join(PLACE), "").unwrap();
    let up = fettler.start_worker();
    let steps = |state: &str| fettler.json(&["findings", "--state", state]);
    let (open, resolved) = (steps("open"), steps("resolved"));
    for kind in KINDS {
        let again = fettler.run(&[kind, "shop", "--json"]);
        assert!(matches!(again.code, 0 | 3), "{again:#?}");
        // Tuning has no history of findings.
        if let Some(changes) = again.json().get("changes") {
            assert_eq!(*changes, json!([]), "{kind} changes something again");
        }
    }
    let keys = |findings: &Value| -> Vec<String> {
        let findings = findings["findings"].as_array().unwrap().iter();
        findings.map(|one| one["key"].to_string()).collect()
    };
    assert_eq!(keys(&open), keys(&steps("open")));
    assert_eq!(keys(&resolved), keys(&steps("resolved")));
    up
}

/// Each kind by a policy of its own.
fn policies_run(fettler: &Installation, up: &Running) {
    for kind in KINDS {
        let before = jobs(fettler, kind).len();
        let add = ["policy", "add", kind, "--database", "shop", "--kind", kind];
        fettler.json(&[&add[..], &["--cron", "*/2 * * * * *"]].concat());
        wait_until("a job by the policy", PATIENCE, || {
            let now = jobs(fettler, kind);
            now.len() > before
                && now[..now.len() - before]
                    .iter()
                    .any(|job| job["state"] == "succeeded")
        })
        .unwrap_or_else(|error| panic!("{kind}: {error}: {:#?} {}", jobs(fettler, kind), up.log()));
        fettler.run(&["policy", "remove", kind]).done();
    }
}

/// On one machine and on a fleet.
fn looks_are_jobs(url: &str) {
    for size in [Size::Embedded, Size::Fleet] {
        let fettler = Installation::of_size(size)
            .without_workers()
            .with_short_leases();
        let latches = fettler.path("latches");
        std::fs::create_dir(&latches).unwrap();
        let fettler = fettler
            .with("FETTLER_FAULT_POINT", PLACE)
            .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap());
        fettler.json(&["database", "add", "shop", url]);
        let mut up = is_taken_up_again(&fettler, &latches);
        // A fleet's policies are the scheduler's, which has tests of its own.
        if size == Size::Embedded {
            policies_run(&fettler, &up);
        }
        assert_eq!(up.terminate(), 0, "{}", up.log());
    }
}

#[test]
fn at_postgresql() {
    let server = PostgresServer::shared(PgMajor::V15);
    let database = server.create_database("shop").unwrap();
    database
        .psql("CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint)")
        .unwrap();
    looks_are_jobs(&database.url());
}

#[test]
fn at_sqlite() {
    let folder = Installation::new();
    let source = folder.path("shop.sqlite");
    sqlite::make_bank(&source, 1 << 20);
    looks_are_jobs(source.to_str().unwrap());
}

#[test]
fn at_redis() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    looks_are_jobs(&server.url());
}

#[test]
fn at_mongodb() {
    let server = MongodbServer::start(MongodbKind::WithOplog).unwrap();
    looks_are_jobs(&server.url());
}

#[test]
fn at_clickhouse() {
    let server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    looks_are_jobs(&server.url());
}

#[test]
fn at_elasticsearch() {
    let server = SearchServer::start(SearchKind::Elasticsearch, &[]).unwrap();
    looks_are_jobs(&server.url());
}
