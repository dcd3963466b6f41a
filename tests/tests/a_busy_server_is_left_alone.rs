//! What keeps jobs back, end to end: a busy server (load awareness), a worker that does not reach a database, a limit;
//! each job says why it waits (P12), and runs when that has passed.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use fettler_tests::{
    Installation,
    servers::{PgMajor, PostgresServer, wait_until},
    sqlite,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

fn submit(fettler: &Installation, database: &str) -> String {
    let submitted = fettler.json(&["backup", database, "--detach"]);
    submitted["job"].as_str().unwrap().to_owned()
}

fn job(fettler: &Installation, id: &str) -> Value {
    fettler.json(&["jobs", "show", id])
}

fn until(fettler: &Installation, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let met = wait_until(what, SOON, || {
        last = job(fettler, id);
        wanted(&last)
    });
    assert!(met.is_ok(), "not {what}: {last:#}");
    last
}

#[test]
fn p12_a_long_job_leaves_a_busy_server_alone_and_says_what_it_saw() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("busy").unwrap();
    let fettler = Installation::new().with("FETTLER_PG_BIN", server.bin_dir().to_str().unwrap());
    let url = source.url();
    let added = fettler.json(&["database", "add", "busy", &url, "--max-connections", "1"]);
    assert_eq!(added["terms"]["load"], json!({"connections": 1}));
    std::thread::scope(|scope| {
        // Two clients, until they are ended.
        for _ in 0..2 {
            scope.spawn(|| source.psql("SELECT pg_sleep(600) AS busy_client"));
        }
        wait_until("two clients", SOON, || {
            let count = source
                .psql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%AS busy_client' AND pid <> pg_backend_pid()")
                .unwrap();
            count.trim() == "2"
        })
        .unwrap();
        let mut up = fettler.start(&["up"]);
        let id = submit(&fettler, "busy");
        let snoozed = until(&fettler, &id, "snoozed", |job| {
            job["wait"]["reason"] == "snoozed"
        });
        let what = snoozed["wait"]["because"]["what"].as_str().unwrap();
        assert!(
            what.starts_with("connections ") && what.ends_with(" > 1"),
            "{what}"
        );
        assert_eq!(snoozed["tries"], 0);
        assert!(snoozed["wait_until"].is_string());
        assert_eq!(up.terminate(), 0, "{}", up.log());
        source
            .psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%AS busy_client' AND pid <> pg_backend_pid()")
            .unwrap();
    });
    // Without a limit it is not asked.
    let free = fettler.json(&["database", "edit", "busy", "--max-connections", "0"]);
    assert_eq!(free["terms"], json!({}));
    fettler.json(&["backup", "busy"]);
}

#[test]
fn rule_17_a_job_waits_for_a_worker_that_reaches_its_database() {
    let fettler = Installation::new();
    let source = fettler.path("shop.sqlite");
    sqlite::make_bank(&source, 1 << 20);
    let source = source.to_str().unwrap();
    fettler
        .run(&["database", "add", "shop", source, "--reach", "zone=dmz"])
        .done();
    let mut plain = fettler.start(&["worker"]);
    let id = submit(&fettler, "shop");
    let waits = until(&fettler, &id, "kept from the worker", |job| {
        job["wait"]["reason"] == "no_worker_reaches"
    });
    assert_eq!(waits["wait"]["labels"], json!({"zone": "dmz"}));
    assert!(
        waits["wait_ends"]
            .as_str()
            .unwrap()
            .contains("--label zone=dmz")
    );
    // A limit of one for a kind, kept by all workers together.
    fettler
        .run(&["limit", "set", "1", "--kind", "backup"])
        .done();
    let mut there = fettler.start(&["worker", "--label", "zone=dmz"]);
    let done = until(&fettler, &id, "done", |job| job["state"] == "succeeded");
    assert!(done["worker"].is_string());
    let limits = fettler.json(&["limit", "list"]);
    assert_eq!(limits["limits"][0]["running"], 0);
    assert_eq!(plain.terminate(), 0, "{}", plain.log());
    assert_eq!(there.terminate(), 0, "{}", there.log());
}
