//! P7: old partitions, and what nobody uses any more. Each action is shown to work, and not to touch what it should not.

#![allow(clippy::unwrap_used)]

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use fettler_tests::{
    Installation,
    servers::{PgMajor, PostgresOptions, PostgresServer, TestDatabase, wait_until},
};
use rstest::rstest;
use serde_json::{Value, json};

const PARTITIONED: &str = "
CREATE TABLE metrics (id bigint, at timestamptz NOT NULL, seen timestamptz, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE metrics_old PARTITION OF metrics FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');
CREATE TABLE metrics_older PARTITION OF metrics FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
CREATE TABLE metrics_new PARTITION OF metrics FOR VALUES FROM ('2020-02-01') TO ('2100-01-01');
CREATE INDEX ON metrics (v);
INSERT INTO metrics SELECT g, '2020-01-15'::timestamptz + interval '1 minute' * g, '2020-01-20', md5(g::text) FROM generate_series(1, 500) g;
INSERT INTO metrics SELECT g, '2019-01-15', '2019-01-20', md5(g::text) FROM generate_series(501, 600) g;
INSERT INTO metrics SELECT g, now(), now(), md5(g::text) FROM generate_series(601, 700) g;";
const SUM: &str = "SELECT count(*), md5(string_agg(m::text, ',' ORDER BY id)) FROM metrics m";
const ATTACHED: &str = "SELECT string_agg(inhrelid::regclass::text, ' ' ORDER BY inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'metrics'::regclass";

fn database(major: PgMajor, sql: &str) -> TestDatabase {
    let database = PostgresServer::shared(major)
        .create_database("orphans")
        .unwrap();
    database.psql(sql).unwrap();
    database
}

fn ask(database: &TestDatabase, sql: &str) -> String {
    database.psql(sql).unwrap().trim().to_owned()
}

fn partitions(fettler: &Installation, url: &str, more: &[&str]) -> Value {
    let mut words = vec![
        "cleanup",
        url,
        "--partitions",
        "metrics",
        "--older-than",
        "365d",
    ];
    words.extend(more);
    fettler.json(&words)
}

#[rstest]
#[case(PgMajor::V15, "")]
#[case(PgMajor::V18, "")]
#[case(PgMajor::V18, "CREATE TABLE metrics_rest PARTITION OF metrics DEFAULT")]
fn p7_old_partitions_go_and_come_back(#[case] major: PgMajor, #[case] more: &str) {
    let database = database(major, PARTITIONED);
    database
        .psql(if more.is_empty() { "SELECT 1" } else { more })
        .unwrap();
    let (fettler, url) = (Installation::new(), database.url());
    let (before, attached) = (ask(&database, SUM), ask(&database, ATTACHED));
    let planned = partitions(&fettler, &url, &["--dry-run"]);
    let names: Vec<&str> = planned["plan"]["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["public.metrics_older", "public.metrics_old"],
        "{planned:#}"
    );
    assert_eq!(ask(&database, ATTACHED), attached);
    let cleaned = partitions(&fettler, &url, &[]);
    assert_eq!(
        (&cleaned["removed"]["removed"], &cleaned["archived_rows"]),
        (&json!(2), &json!(600)),
        "{cleaned:#}"
    );
    assert_eq!(ask(&database, "SELECT count(*) FROM metrics"), "100");
    assert_eq!(ask(&database, "SELECT to_regclass('metrics_old')"), "");
    let again = partitions(&fettler, &url, &[]);
    assert_eq!(again["plan"]["items"], json!([]), "{again:#}");
    let undone = fettler.json(&["cleanup", "undo", cleaned["job"].as_str().unwrap()]);
    assert_eq!(undone["restored"], 600, "{undone:#}");
    assert_eq!(
        (ask(&database, SUM), ask(&database, ATTACHED)),
        (before, attached)
    );
}

/// Rows that come, or become young, between the archive and the look after the detach keep their partition.
#[rstest]
#[case("cleanup.archived", "UPDATE metrics SET v = 'changed' WHERE id = 7")]
#[case(
    "cleanup.archived",
    "INSERT INTO metrics VALUES (9000, '2020-01-03', now(), 'late')"
)]
#[case(
    "cleanup.detached:2",
    "INSERT INTO metrics_old VALUES (9000, '2020-01-03', now(), 'late')"
)]
#[case("cleanup.detached:2", "SELECT 1")]
#[case("cleanup.removing", "SELECT 1")]
fn p7_a_partition_that_was_written_to_is_put_back(#[case] point: &str, #[case] change: &str) {
    let database = database(PgMajor::V18, PARTITIONED);
    let fettler = Installation::new().with_short_leases();
    let latches = fettler.path("latches");
    std::fs::create_dir(&latches).unwrap();
    let fettler = fettler
        .with("FETTLER_FAULT_POINT", point)
        .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap());
    let url = database.url();
    let killed = fettler.run(&[
        "cleanup",
        &url,
        "--partitions",
        "metrics",
        "--older-than",
        "365d",
    ]);
    assert_eq!(killed.code, -1, "{killed:#?}");
    database.psql(change).unwrap();
    let next = fettler.run(&["ping", &url]).done();
    assert!(next.stderr.contains("taken up"), "{next:#?}");
    let jobs = fettler.json(&["jobs", "--all"]);
    let job = jobs["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|job| job["kind"] == "cleanup")
        .unwrap()
        .clone();
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let job = fettler.json(&["jobs", "show", job["id"].as_str().unwrap()]);
    let removed = &job["result"]["removed"];
    let stays = u64::from(change != "SELECT 1");
    assert_eq!(removed["changed"], stays, "{job:#}");
    let sum = removed["removed"].as_u64().unwrap() + removed["gone"].as_u64().unwrap();
    assert_eq!(sum, 2 - stays, "{job:#}");
    let attached = ask(&database, ATTACHED);
    assert_eq!(attached.contains("metrics_old"), stays == 1, "{attached}");
    if stays == 1 {
        let rows = ask(&database, "SELECT count(*) FROM metrics_old");
        assert_eq!(
            rows,
            if change.starts_with("INSERT") {
                "501"
            } else {
                "500"
            }
        );
    }
}

#[test]
fn p7_a_partition_with_rows_inside_the_retention_is_no_part_of_the_plan() {
    let database = database(PgMajor::V18, PARTITIONED);
    database
        .psql("UPDATE metrics SET seen = now() WHERE id = 3")
        .unwrap();
    let fettler = Installation::new();
    let cleaned = partitions(&fettler, &database.url(), &["--column", "seen"]);
    assert_eq!(cleaned["removed"]["removed"], 1, "{cleaned:#}");
    assert!(
        cleaned["plan"]["notes"][0]
            .as_str()
            .unwrap()
            .contains("metrics_old stays"),
        "{cleaned:#}"
    );
    assert_eq!(ask(&database, "SELECT count(*) FROM metrics"), "600");
}

/// A session that was begun and does nothing, until it is dropped.
struct Session(Child);

impl Session {
    fn new(url: &str, sql: &str) -> Self {
        let server = PostgresServer::shared(PgMajor::V18);
        let mut child = Command::new(server.bin_dir().join("psql"))
            .args(["-qX", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        use std::io::Write as _;
        writeln!(child.stdin.as_mut().unwrap(), "{sql}").unwrap();
        Self(child)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ended_anyway = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn p7_idle_sessions_are_ended_and_those_that_work_are_not() {
    let database = database(PgMajor::V18, "CREATE TABLE t (n int)");
    let url = database.url();
    let _in_transaction = Session::new(
        &url,
        "SET application_name = 'stuck'; BEGIN; INSERT INTO t VALUES (1);",
    );
    let _idle = Session::new(&url, "SET application_name = 'idle'; SELECT 1;");
    let _works = Session::new(&url, "SET application_name = 'works'; SELECT pg_sleep(60);");
    let there = || {
        ask(
            &database,
            "SELECT string_agg(application_name, ' ' ORDER BY application_name) FROM pg_stat_activity WHERE datname = current_database() AND application_name IN ('stuck', 'idle', 'works')",
        )
    };
    wait_until("the sessions are there", Duration::from_secs(60), || {
        there() == "idle stuck works"
    })
    .unwrap();
    let fettler = Installation::new();
    let young = fettler.json(&[
        "cleanup",
        &url,
        "--sessions",
        "--idle-in-transaction",
        "1h",
        "--idle",
        "1h",
    ]);
    assert_eq!(young["plan"]["items"], json!([]), "{young:#}");
    std::thread::sleep(Duration::from_millis(1100));
    let planned = fettler.json(&[
        "cleanup",
        &url,
        "--sessions",
        "--idle-in-transaction",
        "1s",
        "--dry-run",
    ]);
    assert_eq!(
        planned["plan"]["items"].as_array().unwrap().len(),
        1,
        "{planned:#}"
    );
    assert_eq!(there(), "idle stuck works");
    let ended = fettler.json(&["cleanup", &url, "--sessions", "--idle-in-transaction", "1s"]);
    assert_eq!(ended["removed"]["removed"], 1, "{ended:#}");
    assert!(
        ended["plan"]["items"][0]["note"]
            .as_str()
            .unwrap()
            .contains("stuck")
    );
    wait_until("the session is gone", Duration::from_secs(60), || {
        there() == "idle works"
    })
    .unwrap();
    let ended = fettler.json(&["cleanup", &url, "--sessions", "--idle", "1s"]);
    assert_eq!(ended["removed"]["removed"], 1, "{ended:#}");
    wait_until("the session is gone", Duration::from_secs(60), || {
        there() == "works"
    })
    .unwrap();
}

#[test]
fn p7_abandoned_slots_and_prepared_transactions_go_and_others_stay() {
    let options = PostgresOptions::new()
        .setting("wal_level", "logical")
        .setting("max_prepared_transactions", "5");
    let server = PostgresServer::start(PgMajor::V18, options).unwrap();
    let database = server.create_database("slots").unwrap();
    database
        .psql("CREATE TABLE t (n int); SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput'); SELECT pg_create_physical_replication_slot('replica', true)")
        .unwrap();
    database
        .psql("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'it''s old'")
        .unwrap();
    let (fettler, url) = (Installation::new(), database.url());
    let slots = || {
        ask(
            &database,
            "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots",
        )
    };
    let none = fettler.json(&["cleanup", &url, "--slots", "--inactive-for", "1h"]);
    assert_eq!(none["plan"]["items"], json!([]), "{none:#}");
    let none = fettler.json(&["cleanup", &url, "--slots", "--retained", "1GiB"]);
    assert_eq!(none["plan"]["items"], json!([]), "{none:#}");
    let gone = fettler.json(&[
        "cleanup",
        &url,
        "--slots",
        "--only",
        "left*",
        "--inactive-for",
        "0",
    ]);
    assert_eq!(gone["removed"]["removed"], 1, "{gone:#}");
    assert!(
        gone["plan"]["items"][0]["note"]
            .as_str()
            .unwrap()
            .contains("pg_create_logical_replication_slot")
    );
    assert_eq!(slots(), "replica");
    let young = fettler.json(&[
        "cleanup",
        &url,
        "--prepared-transactions",
        "--older-than",
        "1h",
    ]);
    assert_eq!(young["plan"]["items"], json!([]), "{young:#}");
    std::thread::sleep(Duration::from_millis(1100));
    let gone = fettler.json(&[
        "cleanup",
        &url,
        "--prepared-transactions",
        "--older-than",
        "1s",
    ]);
    assert_eq!(gone["removed"]["removed"], 1, "{gone:#}");
    assert_eq!(
        ask(&database, "SELECT count(*) FROM pg_prepared_xacts"),
        "0"
    );
    let again = fettler.json(&[
        "cleanup",
        &url,
        "--prepared-transactions",
        "--older-than",
        "1s",
    ]);
    assert_eq!(again["plan"]["items"], json!([]), "{again:#}");
}
