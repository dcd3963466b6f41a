//! Two interfaces, two schedulers and four workers over one ledger, one Redis and one store: many small jobs and some backups
//! together. Every job ends once, and what was accepted by one interface is known to the other.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use fettler_tests::{
    Installation, Running, Shared, http,
    servers::{PgMajor, free_port, wait_until},
    sqlite,
};
use serde_json::{Value, json};

/// Small jobs in every run of the tests; set `FETTLER_TEST_JOBS` for more.
const SMALL_JOBS: usize = 1_500;
/// Backups among them: one for so many small jobs.
const SMALL_JOBS_A_BACKUP: usize = 500;
/// Jobs that are submitted one by one, and asked for at once through the other interface.
const ONE_BY_ONE: usize = 100;
/// Jobs of the tenant that has very many, in every run of the tests; set `FETTLER_TEST_FLOOD` for more, beside 99 others.
const FLOOD: usize = 4_000;
/// What is not judged: alone, jobs find an idle fleet and wait for next to nothing; beside the flood, all slots are taken, and a job waits for
/// those that run and were prefetched. Behind the flood they would wait for seconds, or minutes at full size.
const RUNNING_SECONDS: f64 = 0.5;
/// How often a cancellation of very many is repeated.
const MOST_CANCELLATIONS: usize = 20;
/// The most rows of a batch.
const BATCH: usize = 1_000;

fn small_jobs() -> usize {
    std::env::var("FETTLER_TEST_JOBS").map_or(SMALL_JOBS, |text| text.parse().unwrap())
}

struct Interface {
    address: String,
    token: String,
    running: Running,
}

impl Interface {
    fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let authorization = format!("Bearer {}", self.token);
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let headers = [
            ("Authorization", authorization.as_str()),
            ("Content-Type", "application/json"),
        ];
        let (status, answer) = http::send(&self.address, method, path, &headers, &body).unwrap();
        let answer = serde_json::from_str(&answer)
            .unwrap_or_else(|error| panic!("{error}: {status} {answer}"));
        (status, answer)
    }
}

/// Two interfaces, two schedulers and four workers, each on a machine of its own.
struct Crew {
    interfaces: Vec<Interface>,
    others: Vec<Running>,
    _machines: Vec<Installation>,
}

impl Crew {
    /// Starts them, with tokens of this sort.
    fn start(machine: impl Fn() -> Installation, token_for: &[&str]) -> Self {
        let machines: Vec<Installation> = (0..8).map(|_| machine()).collect();
        let interfaces: Vec<Interface> = machines[..2]
            .iter()
            .enumerate()
            .map(|(number, machine)| {
                let name = format!("tests-{number}");
                let mut add = vec!["token", "add", &name];
                add.extend(token_for);
                let token = machine.json(&add);
                let address = format!("127.0.0.1:{}", free_port());
                Interface {
                    running: machine.start(&["api", "--listen", &address]),
                    token: token["text"].as_str().unwrap().to_owned(),
                    address,
                }
            })
            .collect();
        for interface in &interfaces {
            wait_until("the interface answers", Duration::from_secs(60), || {
                http::get(&interface.address, "/readyz").is_ok_and(|(status, _)| status == 200)
            })
            .unwrap_or_else(|error| panic!("{error}: {}", interface.running.log()));
        }
        let others = machines[2..]
            .iter()
            .enumerate()
            .map(|(number, machine)| {
                let role = if number < 2 { "scheduler" } else { "worker" };
                machine.start(&[role])
            })
            .collect();
        Self {
            interfaces,
            others,
            _machines: machines,
        }
    }

    fn logs(&self) -> String {
        self.others.iter().map(Running::log).collect()
    }

    /// Submits rows in batches, by both interfaces in turn; `path` may name a tenant.
    fn submit(&self, path: &str, job: &Value, count: usize) {
        for (number, from) in (0..count).step_by(BATCH).enumerate() {
            let rows = BATCH.min(count - from);
            let batch = json!({"rows": vec![json!({"job": job}); rows]});
            let (status, answer) = self.interfaces[number % 2].send("POST", path, &batch);
            assert_eq!(status, 200, "{answer}");
            let results = answer["results"].as_array().unwrap();
            assert!(
                results.iter().all(|result| result["status"] == 202),
                "{answer}"
            );
        }
    }

    /// All of them stop as they should.
    fn stop(mut self) {
        let interfaces = self.interfaces.iter_mut().map(|one| &mut one.running);
        for running in self.others.iter_mut().rev().chain(interfaces) {
            assert_eq!(running.terminate(), 0, "{}", running.log());
        }
    }
}

#[test]
fn p1_p2_every_job_ends_once_and_a_get_after_202_never_answers_404() {
    let fleet = Shared::new(PgMajor::V15);
    let machine = || {
        fleet
            .machine()
            .with("FETTLER_API__REQUESTS_PER_SECOND", "1000")
    };
    let client = machine();
    let backups = (small_jobs() / SMALL_JOBS_A_BACKUP).clamp(1, 20);
    for number in 0..=backups {
        let path = client.path(&format!("bank-{number}.sqlite"));
        sqlite::make_bank(&path, 1 << 20);
        client.json(&[
            "database",
            "add",
            &format!("bank-{number}"),
            path.to_str().unwrap(),
        ]);
    }

    let crew = Crew::start(machine, &["--role", "operator"]);
    let interfaces = &crew.interfaces;
    let ping = || json!({"kind": "ping", "database": "bank-0"});
    crew.submit("/api/v1/jobs/batch", &ping(), small_jobs() - ONE_BY_ONE);
    for number in 1..=backups {
        let job = json!({"kind": "backup", "database": format!("bank-{number}")});
        let (status, answer) = interfaces[number % 2].send("POST", "/api/v1/jobs", &job);
        assert_eq!(status, 202, "{answer}");
    }
    for number in 0..ONE_BY_ONE {
        let (status, answer) = interfaces[number % 2].send("POST", "/api/v1/jobs", &ping());
        assert_eq!(status, 202, "{answer}");
        let path = format!("/api/v1/jobs/{}", answer["id"].as_str().unwrap());
        let (status, job) = interfaces[(number + 1) % 2].send("GET", &path, &Value::Null);
        assert_eq!(status, 200, "{job}");
    }

    let all = small_jobs() + backups;
    let ended = || -> usize {
        let count = fleet.ledger.psql("SELECT count(*) FROM history").unwrap();
        count.trim().parse().unwrap()
    };
    wait_until("all jobs end", Duration::from_secs(900), || ended() >= all)
        .unwrap_or_else(|error| panic!("{error}: {} of {all}\n{}", ended(), crew.logs()));
    let told = |sql: &str| fleet.ledger.psql(sql).unwrap().trim().to_owned();
    assert_eq!(told("SELECT count(*) FROM job"), "0");
    // A row of the history is written when a job ends, and its key is the job's id; an attempt has a row of its own where it
    // was not the only one.
    assert_eq!(
        told(
            "SELECT count(*) || ' ' || count(DISTINCT id) || ' ' || sum((outcome = 0)::int) FROM history"
        ),
        format!("{all} {all} {all}"),
        "{}",
        crew.logs()
    );
    assert_eq!(told("SELECT count(*) FROM attempt"), "0");
    assert_eq!(
        told("SELECT count(*) FROM backup WHERE state = 'complete'"),
        backups.to_string()
    );
    crew.stop();
}

/// How long half of these tenants' jobs waited at most, in seconds.
fn median_wait(fleet: &Shared, since: &str) -> f64 {
    let told = fleet.ledger.psql(&format!(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY started - submitted) / 1e6 FROM history WHERE tenant LIKE 'small-%' AND submitted > {since}"
    ));
    told.unwrap().trim().parse().unwrap()
}

#[test]
fn rule_16_tenants_with_few_jobs_hardly_wait_for_one_with_very_many_whose_rest_is_then_cancelled() {
    let flood: usize =
        std::env::var("FETTLER_TEST_FLOOD").map_or(FLOOD, |text| text.parse().unwrap());
    let tenants = if flood > FLOOD { 99 } else { 19 };
    let fleet = Shared::new(PgMajor::V15);
    let machine = || {
        fleet
            .machine()
            .with("FETTLER_API__REQUESTS_PER_SECOND", "1000")
    };
    let client = machine();
    let bank = client.path("bank.sqlite");
    sqlite::make_bank(&bank, 1 << 20);
    let bank = bank.to_str().unwrap();
    let small: Vec<String> = (0..tenants)
        .map(|number| format!("small-{number}"))
        .collect();
    for tenant in small.iter().map(String::as_str).chain(["flood"]) {
        client.json(&["tenant", "add", tenant]);
        client.json(&["--tenant", tenant, "database", "add", "bank", bank]);
    }
    let crew = Crew::start(machine, &["--role", "admin", "--all-tenants"]);
    let ping = json!({"kind": "ping", "database": "bank"});
    let now = || {
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint";
        fleet.ledger.psql(sql).unwrap().trim().to_owned()
    };
    let count = |sql: &str| -> usize { fleet.ledger.psql(sql).unwrap().trim().parse().unwrap() };
    let of_small = |since: &str| {
        for tenant in &small {
            crew.submit(&format!("/api/v1/jobs/batch?tenant={tenant}"), &ping, 10);
        }
        let ended = format!(
            "SELECT count(*) FROM history WHERE tenant LIKE 'small-%' AND submitted > {since}"
        );
        wait_until("theirs end", Duration::from_secs(300), || {
            count(&ended) == 10 * tenants
        })
        .unwrap_or_else(|error| panic!("{error}: {}", crew.logs()));
        median_wait(&fleet, since)
    };
    // Once to warm up.
    of_small(&now());
    let alone = of_small(&now());

    crew.submit("/api/v1/jobs/batch?tenant=flood", &ping, flood);
    wait_until("the flood runs", Duration::from_secs(60), || {
        count("SELECT count(*) FROM history WHERE tenant = 'flood'") > 0
    })
    .unwrap_or_else(|error| panic!("{error}: {}", crew.logs()));
    let beside = of_small(&now());
    let left = count("SELECT count(*) FROM job WHERE tenant = 'flood'");
    println!(
        "{flood} of one and 10 of each of {tenants}: a median of {alone:.3} s alone, {beside:.3} s beside; {left} of the flood were left"
    );
    assert!(left > 0, "the flood had ended before: {beside} s");
    assert!(
        beside <= 2.0 * alone + RUNNING_SECONDS,
        "{beside} s beside the flood, {alone} s alone"
    );

    // What is left of it is cancelled while it runs: looked at first, and then for good.
    let cancel = |dry_run: bool| {
        let body = json!({"tenant": "flood", "dry_run": dry_run});
        crew.interfaces[0].send("POST", "/api/v1/jobs/cancel", &body)
    };
    let (status, answer) = cancel(true);
    assert_eq!(status, 200, "{answer}");
    // Very many take longer than an answer may: what was cancelled stays so, and the same request goes on.
    let (mut status, mut answer) = cancel(false);
    let mut asked = 1;
    while status == 503 && asked < MOST_CANCELLATIONS {
        (status, answer) = cancel(false);
        asked += 1;
    }
    assert_eq!(status, 200, "asked {asked} times: {answer}");
    wait_until("nothing is left", Duration::from_secs(120), || {
        count("SELECT count(*) FROM job") == 0
    })
    .unwrap_or_else(|error| panic!("{error}: {}", crew.logs()));
    let ended = "SELECT count(DISTINCT id) FROM history WHERE tenant = 'flood'";
    assert_eq!(count(ended), flood, "each ended once");
    let cancelled = "SELECT count(*) FROM history WHERE tenant = 'flood' AND cancel IS NOT NULL";
    println!("{answer}: {} were cancelled", count(cancelled));
    assert!(count(cancelled) > 0);
    crew.stop();
}
