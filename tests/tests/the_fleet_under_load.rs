//! Two interfaces, two schedulers and four workers over one ledger, one Redis and one store: many small jobs and some backups
//! together. Every job ends once, and what was accepted by one interface is known to the other.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use fettler_tests::{
    Installation, Running, http,
    servers::{
        MinioServer, PgMajor, PostgresServer, RedisOptions, RedisServer, free_port, wait_until,
    },
    sqlite,
};
use serde_json::{Value, json};

/// Small jobs in every run of the tests; set `FETTLER_TEST_JOBS` for more.
const SMALL_JOBS: usize = 1_500;
/// Backups among them: one for so many small jobs.
const SMALL_JOBS_A_BACKUP: usize = 500;
/// Jobs that are submitted one by one, and asked for at once through the other interface.
const ONE_BY_ONE: usize = 100;
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

#[test]
fn p1_p2_every_job_ends_once_and_a_get_after_202_never_answers_404() {
    let minio = MinioServer::start().unwrap();
    minio.create_bucket("backups").unwrap();
    let redis = RedisServer::start(RedisOptions::new()).unwrap();
    let server = PostgresServer::shared(PgMajor::V15);
    let ledger = server.create_database("ledger").unwrap();
    let machine = || {
        let mut machine = Installation::new()
            .with("FETTLER_LEDGER__URL", ledger.url())
            .with("FETTLER_QUEUE__URL", redis.url())
            .with("FETTLER_REPOSITORY", "s3://backups/fleet")
            .with("FETTLER_PASSPHRASE", "the fleet's own words")
            .with("FETTLER_API__REQUESTS_PER_SECOND", "1000");
        for (name, value) in minio.env_via(&minio.url()) {
            machine = machine.with(name, value);
        }
        machine
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

    let machines: Vec<Installation> = (0..8).map(|_| machine()).collect();
    let mut interfaces: Vec<Interface> = machines[..2]
        .iter()
        .enumerate()
        .map(|(number, machine)| {
            let token = client.json(&[
                "token",
                "add",
                &format!("tests-{number}"),
                "--role",
                "operator",
            ]);
            let address = format!("127.0.0.1:{}", free_port());
            Interface {
                running: machine.start(&["api", "--listen", &address]),
                token: token["text"].as_str().unwrap().to_owned(),
                address,
            }
        })
        .collect();
    let mut others: Vec<Running> = Vec::new();
    others.extend(
        machines[2..4]
            .iter()
            .map(|machine| machine.start(&["scheduler"])),
    );
    others.extend(
        machines[4..]
            .iter()
            .map(|machine| machine.start(&["worker"])),
    );
    for interface in &interfaces {
        wait_until("the interface answers", Duration::from_secs(60), || {
            http::get(&interface.address, "/readyz").is_ok_and(|(status, _)| status == 200)
        })
        .unwrap_or_else(|error| panic!("{error}: {}", interface.running.log()));
    }

    let ping = || json!({"kind": "ping", "database": "bank-0"});
    let mut submitted = 0;
    while submitted < small_jobs() - ONE_BY_ONE {
        let rows = BATCH.min(small_jobs() - ONE_BY_ONE - submitted);
        let batch = json!({"rows": (0..rows).map(|_| json!({"job": ping()})).collect::<Vec<_>>()});
        let (status, answer) =
            interfaces[submitted / BATCH % 2].send("POST", "/api/v1/jobs/batch", &batch);
        assert_eq!(status, 200, "{answer}");
        let results = answer["results"].as_array().unwrap();
        assert!(
            results.iter().all(|result| result["status"] == 202),
            "{answer}"
        );
        submitted += rows;
    }
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
        let count = ledger.psql("SELECT count(*) FROM history").unwrap();
        count.trim().parse().unwrap()
    };
    let logs = |others: &[Running]| -> String { others.iter().map(Running::log).collect() };
    wait_until("all jobs end", Duration::from_secs(900), || ended() >= all)
        .unwrap_or_else(|error| panic!("{error}: {} of {all}\n{}", ended(), logs(&others)));
    let told = |sql: &str| ledger.psql(sql).unwrap().trim().to_owned();
    assert_eq!(told("SELECT count(*) FROM job"), "0");
    // A row of the history is written when a job ends, and its key is the job's id; an attempt has a row of its own where it
    // was not the only one.
    assert_eq!(
        told(
            "SELECT count(*) || ' ' || count(DISTINCT id) || ' ' || sum((outcome = 0)::int) FROM history"
        ),
        format!("{all} {all} {all}"),
        "{}",
        logs(&others)
    );
    assert_eq!(told("SELECT count(*) FROM attempt"), "0");
    assert_eq!(
        told("SELECT count(*) FROM backup WHERE state = 'complete'"),
        backups.to_string()
    );
    for running in others.iter_mut().rev() {
        assert_eq!(running.terminate(), 0, "{}", running.log());
    }
    for interface in &mut interfaces {
        assert_eq!(
            interface.running.terminate(),
            0,
            "{}",
            interface.running.log()
        );
    }
}
