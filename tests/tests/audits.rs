//! Audits through every door: the command line with nothing configured, a policy, HTTP in a fleet; run twice, and killed in the
//! middle. What an audit has found, a look at the health does not resolve, and the other way round.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use fettler_tests::{
    Installation, Size,
    servers::{PgMajor, PostgresOptions, PostgresServer, wait_until},
};
use rstest::rstest;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

fn server() -> PostgresServer {
    PostgresServer::start(PgMajor::V15, PostgresOptions::new().durable()).unwrap()
}

fn keys(list: &Value) -> Vec<String> {
    list.as_array()
        .unwrap_or_else(|| panic!("{list:#}"))
        .iter()
        .map(|one| one["key"].as_str().unwrap().to_owned())
        .collect()
}

fn open(document: &Value) -> Vec<String> {
    let findings = document["findings"].as_array().unwrap().iter();
    let open = findings.filter(|one| one["status"]["state"] == "open");
    open.map(|one| one["key"].as_str().unwrap().to_owned())
        .collect()
}

/// Runs a look, whatever it finds.
fn look(fettler: &Installation, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    let answer = fettler.run(&all);
    assert!(matches!(answer.code, 0 | 3), "{answer:#?}");
    answer.json()
}

#[rstest]
fn an_audit_finds_what_is_wrong_and_what_has_changed_until_it_is_accepted(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let server = server();
    let fettler = Installation::of_size(size);
    let url = server.url("postgres");
    fettler.json(&["database", "add", "shop", &url]);
    let first = look(&fettler, &["audit", "shop"]);
    assert_eq!(first["drift"]["since"], Value::Null, "{first:#}");
    assert!(first["checks"].as_array().unwrap().len() > 90, "{first:#}");
    assert!(open(&first).contains(&"postgres.connections_not_logged".to_owned()));
    // Twice: nothing is new.
    let again = look(&fettler, &["audit", "shop"]);
    assert_eq!(again["changes"], Value::Array(Vec::new()), "{again:#}");
    assert_eq!(open(&again), open(&first));

    // A look at the health leaves them as they are, and an audit what that has found.
    server
        .psql("postgres", "CREATE ROLE intern SUPERUSER; CREATE SEQUENCE s AS smallint; SELECT setval('s', 32767)")
        .unwrap();
    let health = look(&fettler, &["health", "shop"]);
    assert!(
        open(&health).contains(&"postgres.sequence_exhaustion:public.s".to_owned()),
        "{health:#}"
    );
    let all = fettler.json(&["findings", "--database", "shop"]);
    assert!(keys(&all["findings"]).contains(&"postgres.connections_not_logged".to_owned()));
    let changed = look(&fettler, &["audit", "shop"]);
    for key in [
        "postgres.extra_superusers:intern",
        "postgres.drift_roles:role intern",
        "postgres.drift_schema:sequence public.s",
    ] {
        assert!(
            open(&changed).contains(&key.to_owned()),
            "{key}: {changed:#}"
        );
    }
    let resolved = fettler.json(&["findings", "--database", "shop", "--state", "resolved"]);
    assert_eq!(
        resolved["findings"],
        Value::Array(Vec::new()),
        "{resolved:#}"
    );

    // It stays until it is accepted, one and then all.
    let one = look(
        &fettler,
        &[
            "audit",
            "shop",
            "--accept",
            "postgres.drift_roles:role intern",
        ],
    );
    assert_eq!(one["drift"]["accepted"], 1, "{one:#}");
    assert!(
        !open(&one).contains(&"postgres.drift_roles:role intern".to_owned()),
        "{one:#}"
    );
    assert!(
        open(&one).contains(&"postgres.drift_schema:sequence public.s".to_owned()),
        "{one:#}"
    );
    let all = look(&fettler, &["audit", "shop", "--accept", "all"]);
    assert_eq!(all["drift"]["changes"], 0, "{all:#}");
    // What is wrong stays wrong.
    assert!(
        open(&all).contains(&"postgres.extra_superusers:intern".to_owned()),
        "{all:#}"
    );
    let text = fettler.run(&["audit", "shop", "--explain", "--fail-on", "critical"]);
    assert_eq!(text.code, 0, "{text:#?}");
    assert!(
        text.stdout.contains("PCI DSS") && text.stdout.contains("no change"),
        "{text:#?}"
    );
    let sarif = fettler.run(&["findings", "export", "sarif"]).done();
    assert!(
        sarif.stdout.contains("postgres.extra_superusers"),
        "{sarif:#?}"
    );
    // P9: no password of the URL is anywhere in it.
    assert!(!text.stdout.contains(server.password()) && !sarif.stdout.contains(server.password()));
}

#[test]
fn an_audit_needs_no_configuration_and_compares_with_a_file() {
    let server = server();
    let fettler = Installation::new();
    let url = server.url("postgres");
    let file = fettler.path("baseline.json");
    let file = file.to_str().unwrap();
    let first = look(&fettler, &["audit", &url, "--baseline", file]);
    assert_eq!(first["drift"]["changes"], 0, "{first:#}");
    let written = std::fs::read_to_string(file).unwrap();
    assert!(
        written.contains("role postgres") && !written.contains("SCRAM"),
        "{written}"
    );
    server.psql("postgres", "CREATE ROLE intern").unwrap();
    let second = look(&fettler, &["audit", &url, "--baseline", file]);
    assert!(
        open(&second).contains(&"postgres.drift_roles:role intern".to_owned()),
        "{second:#}"
    );
    assert_eq!(std::fs::read_to_string(file).unwrap(), written);
    look(
        &fettler,
        &["audit", &url, "--baseline", file, "--accept", "all"],
    );
    let last = look(&fettler, &["audit", &url, "--baseline", file]);
    assert_eq!(last["drift"]["changes"], 0, "{last:#}");

    // A newer list of releases, and mistakes.
    let releases = fettler.path("releases.json");
    std::fs::write(
        &releases,
        r#"{"as_of": "2026-05-14", "sources": [], "vulnerabilities": {},
            "releases": {"postgres": [{"line": "15", "end_of_life": "2020-01-01", "latest": "15.1"}]}}"#,
    )
    .unwrap();
    let old = look(
        &fettler,
        &["audit", &url, "--releases", releases.to_str().unwrap()],
    );
    assert!(
        open(&old).contains(&"postgres.end_of_life".to_owned()),
        "{old:#}"
    );
    std::fs::write(&releases, "{}").unwrap();
    let wrong = fettler.run(&["audit", &url, "--releases", releases.to_str().unwrap()]);
    assert_eq!(wrong.code, 2, "{wrong:#?}");
    std::fs::write(file, "nothing").unwrap();
    let wrong = fettler.run(&["audit", &url, "--baseline", file]);
    assert_eq!(wrong.code, 2, "{wrong:#?}");
    let stranger = server.url_as("nobody", "x", "postgres");
    let none = fettler.run(&["audit", &stranger]);
    assert_eq!(none.code, 1, "{none:#?}");
}

#[rstest]
fn a_policy_audits_and_a_worker_that_is_killed_in_the_middle_costs_nothing(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let server = server();
    let fettler = Installation::of_size(size)
        .without_workers()
        .with_short_leases();
    let latches = fettler.path("latches");
    std::fs::create_dir(&latches).unwrap();
    // The work is done and findings are recorded; the ledger does not know that the job has ended.
    let fettler = fettler
        .with("FETTLER_FAULT_POINT", "attempt.begun,attempt.done")
        .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap());
    fettler.json(&["database", "add", "shop", &server.url("postgres")]);
    fettler.run(&["audit", "shop", "--detach"]).done();
    let mut deaths = 0;
    let job = || {
        let jobs = fettler.json(&["jobs", "--all"]);
        let jobs = jobs["jobs"].as_array().unwrap().clone();
        jobs.into_iter().find(|job| job["kind"] == "audit").unwrap()
    };
    let mut up = fettler.start_worker();
    wait_until("the audit succeeds", PATIENCE, || {
        if !up.runs() {
            deaths += 1;
            up = fettler.start_worker();
        }
        job()["state"] == "succeeded"
    })
    .unwrap_or_else(|error| panic!("{error}: {:#} {}", job(), up.log()));
    // The second attempt runs in a process of its own, since the worker of the first one died; its death is not the worker's.
    assert_eq!(deaths, 1, "{}", up.log());
    assert_eq!(job()["attempts"], 3, "{:#}", job());
    // What the first attempt kept is what the second compared with.
    assert_eq!(job()["result"]["drift"]["changes"], 0, "{:#}", job());
    let key = "postgres.connections_not_logged";
    let history = fettler.json(&["findings", "history", "shop", key]);
    assert_eq!(history["steps"].as_array().unwrap().len(), 1, "{history:#}");

    if size == Size::Embedded {
        fettler.json(&[
            "policy",
            "add",
            "often",
            "--database",
            "shop",
            "--kind",
            "audit",
            "--cron",
            "*/2 * * * * *",
        ]);
        wait_until("an audit by the policy", PATIENCE, || {
            let jobs = fettler.json(&["jobs", "--all"]);
            let audits = jobs["jobs"].as_array().unwrap().iter();
            audits
                .filter(|job| job["kind"] == "audit" && job["state"] == "succeeded")
                .count()
                >= 2
        })
        .unwrap_or_else(|error| panic!("{error}: {}", up.log()));
    }
    up.terminate();
}
