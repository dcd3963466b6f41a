//! The same binary as a fleet: scheduler and workers as processes of their own, over a ledger in PostgreSQL, Redis and an
//! S3 store. Nothing is shared between them but those, and the passphrase.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use fettler_tests::{
    Installation, Running, Shared, http,
    servers::{PgMajor, PostgresServer, TcpProxy, free_port, wait_until},
    sqlite,
};
use serde_json::Value;

fn backups(machine: &Installation) -> Vec<Value> {
    let all = machine.json(&["jobs", "--all"]);
    let jobs = all["jobs"].as_array().unwrap();
    let backups = jobs.iter().filter(|job| job["kind"] == "backup");
    backups.cloned().collect()
}

fn wait_for_all(machine: &Installation, running: &[&Running]) {
    wait_until("all backups succeed", Duration::from_secs(120), || {
        backups(machine)
            .iter()
            .all(|job| job["state"] == "succeeded")
    })
    .unwrap_or_else(|error| {
        let logs: String = running.iter().map(|running| running.log()).collect();
        panic!("{error}: {:#?}\n{logs}", backups(machine));
    });
}

#[test]
fn a_worker_that_is_killed_hands_over_to_another_machine_and_redis_may_die() {
    let mut fleet = Shared::new(PgMajor::V15);
    let (client, first, second) = (
        fleet.machine().with_short_leases(),
        fleet.machine().with_short_leases(),
        fleet.machine().with_short_leases(),
    );
    let source = client.path("bank.sqlite");
    sqlite::make_bank(&source, 24 << 20);
    let source = source.to_str().unwrap();
    let mut one = first.start(&["worker"]);
    let mut two = second.start(&["worker"]);

    client
        .run(&["backup", source, "--detach", "--max-rate", "4MB"])
        .done();
    let mut at = String::new();
    wait_until("a worker runs it", Duration::from_secs(60), || {
        backups(&client)[0]["worker"]
            .as_str()
            .inspect(|worker| at = (*worker).to_owned())
            .is_some()
    })
    .unwrap_or_else(|error| panic!("{error}: {}{}", one.log(), two.log()));
    let is_first = at.contains(&format!("-{}-", one.pid()));
    let (dead, alive) = if is_first {
        (&mut one, &mut two)
    } else {
        (&mut two, &mut one)
    };
    dead.kill_9();
    wait_for_all(&client, &[alive]);
    assert_eq!(backups(&client)[0]["attempts"], 2);

    // Redis decides nothing: without it jobs run as well, and with it again.
    fleet.redis.kill_9().unwrap();
    client.run(&["backup", source, "--detach"]).done();
    wait_for_all(&client, &[alive]);
    fleet.redis.start_again().unwrap();
    client.run(&["backup", source, "--detach"]).done();
    wait_for_all(&client, &[alive]);
    assert_eq!(backups(&client).len(), 3);
    assert_eq!(client.json(&["prove", "latest"])["proven"], true);
    assert_eq!(alive.terminate(), 0, "{}", alive.log());
}

#[test]
fn one_scheduler_leads_another_takes_over_and_workers_on_other_machines_run_the_policy() {
    let fleet = Shared::new(PgMajor::V15);
    let (client, first) = (
        fleet.machine().with_short_leases(),
        fleet.machine().with_short_leases(),
    );
    let second = fleet
        .machine()
        .with_short_leases()
        .with("FETTLER_SCHEDULER__LEASE_SECONDS", "2");
    let source = client.path("bank.sqlite");
    sqlite::make_bank(&source, 1 << 20);
    client.json(&["database", "add", "bank", source.to_str().unwrap()]);
    let worker = first.start(&["worker"]);
    let mut leader = first.start(&["scheduler"]);
    wait_until("a scheduler leads", Duration::from_secs(30), || {
        leader.log().contains("leads")
    })
    .unwrap_or_else(|error| panic!("{error}: {}", leader.log()));
    let mut heir = second.start(&["scheduler"]);
    assert_eq!(leader.terminate(), 0, "{}", leader.log());
    wait_until("the other one leads", Duration::from_secs(60), || {
        heir.log().contains("leads")
    })
    .unwrap_or_else(|error| panic!("{error}: {}", heir.log()));
    client.json(&[
        "policy",
        "add",
        "often",
        "--database",
        "bank",
        "--kind",
        "backup",
        "--cron",
        "* * * * *",
    ]);
    wait_until("a backup by the policy", Duration::from_secs(120), || {
        backups(&client)
            .iter()
            .any(|job| job["state"] == "succeeded")
    })
    .unwrap_or_else(|error| panic!("{error}: {}{}", heir.log(), worker.log()));
    assert_eq!(heir.terminate(), 0, "{}", heir.log());
}

#[test]
fn a_worker_that_cannot_ask_for_work_is_not_ready_and_its_metrics_show_what_it_did() {
    let fleet = Shared::new(PgMajor::V15);
    let server = PostgresServer::shared(PgMajor::V15).port();
    let line = TcpProxy::start(server).unwrap();
    let ledger = fleet
        .ledger
        .url()
        .replace(&format!(":{server}/"), &format!(":{}/", line.port()));
    let client = fleet.machine().with_short_leases();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let machine = fleet
        .machine()
        .with_short_leases()
        .with("FETTLER_LEDGER__URL", ledger);
    let worker = machine.start(&["worker", "--listen", &address]);
    let answers = |path: &str, expected: u16| {
        http::get(&address, path).is_ok_and(|(status, _)| status == expected)
    };
    wait_until("the worker is ready", Duration::from_secs(60), || {
        answers("/readyz", 200)
    })
    .unwrap_or_else(|error| panic!("{error}: {}", worker.log()));
    let source = client.path("bank.sqlite");
    sqlite::make_bank(&source, 1 << 20);
    client
        .run(&["backup", source.to_str().unwrap(), "--detach"])
        .done();
    wait_for_all(&client, &[&worker]);
    let (_, metrics) = http::get(&address, "/metrics").unwrap();
    for expected in [
        "fettler_attempts_total{tenant=\"default\",kind=\"backup\",outcome=\"succeeded\"} 1",
        "fettler_store_requests_total{operation=\"PUT\",outcome=\"answered\"}",
        "fettler_store_bytes_total{direction=\"sent\"}",
        "fettler_backup_read_bytes_total{tenant=\"default\"}",
        "fettler_attempt_duration_seconds_bucket{kind=\"backup\",le=\"",
    ] {
        assert!(metrics.contains(expected), "{expected}\n{metrics}");
    }

    line.refuse(true);
    line.cut();
    wait_until("the worker is not ready", Duration::from_secs(90), || {
        answers("/readyz", 503)
    })
    .unwrap_or_else(|error| panic!("{error}: {}", worker.log()));
    let (_, why) = http::get(&address, "/readyz").unwrap();
    assert!(why.contains("last asked for jobs"), "{why}");
    assert!(answers("/healthz", 200), "it lives");
    line.refuse(false);
    wait_until("the worker is ready again", Duration::from_secs(90), || {
        answers("/readyz", 200)
    })
    .unwrap_or_else(|error| panic!("{error}: {}", worker.log()));
}
