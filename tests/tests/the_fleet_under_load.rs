//! Two interfaces, two schedulers and four workers over one ledger, one Redis and one store: many small jobs and some backups
//! together. Every job ends once, and what was accepted by one interface is known to the other; also while each process is
//! replaced in turn.

#![allow(clippy::unwrap_used)]

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use fettler_tests::{
    Installation, Running, Shared, http,
    servers::{PgMajor, S3Proxy, free_port, wait_until},
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
const FLOOD: usize = 6_000;
/// The most rows of a batch.
const BATCH: usize = 1_000;
/// Jobs of one call while the fleet is restarted.
const FEW: usize = 20;
/// Objects that are larger than this are packs: all others are small.
const PACK_BYTES: u64 = 4 << 20;
/// Packs that may be on their way when an attempt is asked to stop.
const PACKS_IN_FLIGHT: usize = 4;

fn small_jobs() -> usize {
    std::env::var("FETTLER_TEST_JOBS").map_or(SMALL_JOBS, |text| text.parse().unwrap())
}

/// An interface as those see it who ask.
#[derive(Clone)]
struct Interface {
    address: String,
    token: String,
}

impl Interface {
    fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.try_send(method, path, body).unwrap()
    }

    /// The same, unless nobody answers.
    fn try_send(&self, method: &str, path: &str, body: &Value) -> std::io::Result<(u16, Value)> {
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
        let (status, answer) = http::send(&self.address, method, path, &headers, &body)?;
        Ok((status, serde_json::from_str(&answer)?))
    }

    fn is_ready(&self) -> bool {
        http::get(&self.address, "/readyz").is_ok_and(|(status, _)| status == 200)
    }
}

/// The processes, each on a machine of its own.
const ROLES: [&str; 8] = [
    "api",
    "api",
    "scheduler",
    "scheduler",
    "worker",
    "worker",
    "worker",
    "worker",
];

/// Two interfaces, two schedulers and four workers.
struct Crew {
    interfaces: Vec<Interface>,
    members: Vec<Member>,
}

/// A process, and how it is started.
struct Member {
    machine: Installation,
    arguments: Vec<String>,
    running: Running,
}

impl Crew {
    /// Starts them, with tokens of this sort.
    fn start(machine: impl Fn() -> Installation, token_for: &[&str]) -> Self {
        let mut interfaces = Vec::new();
        let mut members = Vec::new();
        for (number, role) in ROLES.into_iter().enumerate() {
            let machine = machine();
            let mut arguments = vec![role.to_owned()];
            if role == "api" {
                let name = format!("tests-{number}");
                let mut add = vec!["token", "add", &name];
                add.extend(token_for);
                let token = machine.json(&add);
                let interface = Interface {
                    token: token["text"].as_str().unwrap().to_owned(),
                    address: format!("127.0.0.1:{}", free_port()),
                };
                arguments.extend(["--listen".to_owned(), interface.address.clone()]);
                interfaces.push(interface);
            }
            members.push(Member {
                running: machine.start(&arguments),
                machine,
                arguments,
            });
        }
        let crew = Self {
            interfaces,
            members,
        };
        crew.interfaces_answer();
        crew
    }

    fn interfaces_answer(&self) {
        for interface in &self.interfaces {
            wait_until("the interface answers", Duration::from_secs(60), || {
                interface.is_ready()
            })
            .unwrap_or_else(|error| panic!("{error}: {}", self.logs()));
        }
    }

    fn logs(&self) -> String {
        self.members.iter().map(|one| one.running.log()).collect()
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
        for Member { running, .. } in self.members.iter_mut().rev() {
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

/// How many jobs of the flood half of these tenants' jobs saw begin before themselves at most. It is what a wait is made of, and no clock of a
/// busy machine has a part in it.
fn median_passed(fleet: &Shared, since: &str) -> usize {
    let told = fleet.ledger.psql(&format!(
        "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY passed) FROM (SELECT (SELECT count(*) FROM history AS other WHERE other.tenant = 'flood' AND other.started > few.submitted AND other.started < few.started) AS passed FROM history AS few WHERE few.tenant LIKE 'small-%' AND few.submitted > {since}) AS all_few"
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
    // They come all at once, so that they wait for each other alone too.
    let of_small = |since: &str| {
        std::thread::scope(|scope| {
            for tenant in &small {
                let path = format!("/api/v1/jobs/batch?tenant={tenant}");
                let (crew, ping) = (&crew, &ping);
                scope.spawn(move || crew.submit(&path, ping, 10));
            }
        });
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
    let waiting = count("SELECT count(*) FROM job WHERE tenant = 'flood'");
    let since = now();
    let beside = of_small(&since);
    let passed = median_passed(&fleet, &since);
    let left = count("SELECT count(*) FROM job WHERE tenant = 'flood'");
    println!(
        "{flood} of one and 10 of each of {tenants}: a median of {alone:.3} s alone, {beside:.3} s beside, passed by {passed} of {waiting}; {left} of the flood were left"
    );
    assert!(left > 0, "the flood had ended before: {beside} s");
    assert!(
        passed < waiting / 4,
        "half of the few jobs were passed by {passed} of the {waiting} jobs that waited before them"
    );

    // What is left of it is cancelled while it runs: looked at first, and then for good, in as many requests as it takes.
    let cancel = |after: &Value, dry_run: bool| {
        let body = json!({"tenant": "flood", "after": after, "dry_run": dry_run});
        let (status, answer) = crew.interfaces[0].send("POST", "/api/v1/jobs/cancel", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    cancel(&Value::Null, true);
    let mut answer = cancel(&Value::Null, false);
    let mut requests = 1;
    while !answer["next"].is_null() {
        answer = cancel(&answer["next"], false);
        requests += 1;
    }
    wait_until("nothing is left", Duration::from_secs(120), || {
        count("SELECT count(*) FROM job") == 0
    })
    .unwrap_or_else(|error| panic!("{error}: {}", crew.logs()));
    let ended = "SELECT count(DISTINCT id) FROM history WHERE tenant = 'flood'";
    assert_eq!(count(ended), flood, "each ended once");
    let cancelled = "SELECT count(*) FROM history WHERE tenant = 'flood' AND cancel IS NOT NULL";
    println!("{} were cancelled in {requests} requests", count(cancelled));
    assert!(count(cancelled) > 0);
    crew.stop();
}

#[test]
fn p1_p2_a_rolling_restart_under_load_loses_no_attempt_of_a_short_job_and_a_backup_goes_on() {
    let fleet = Shared::new(PgMajor::V15);
    let minio = fleet.minio.as_ref().unwrap();
    let proxy = S3Proxy::start(minio.port()).unwrap();
    let machine = || {
        minio.env_via(&proxy.url()).into_iter().fold(
            fleet
                .machine()
                .with("FETTLER_API__REQUESTS_PER_SECOND", "1000"),
            |machine, (name, value)| machine.with(name, value),
        )
    };
    let client = machine();
    for (name, bytes) in [("bank", 1 << 20), ("large", 64 << 20)] {
        let path = client.path(&format!("{name}.sqlite"));
        sqlite::make_bank(&path, bytes);
        client.json(&["database", "add", name, path.to_str().unwrap()]);
    }
    let mut crew = Crew::start(machine, &["--role", "operator"]);
    let count = |sql: &str| -> usize { fleet.ledger.psql(sql).unwrap().trim().parse().unwrap() };
    let is_sent = |at_least: usize| {
        proxy
            .requests()
            .iter()
            .filter(|request| request.is_upload() && request.body_bytes > PACK_BYTES)
            .count()
            >= at_least
    };

    // So slow that it meets the restart of each worker that may run it.
    let backup = json!({"kind": "backup", "database": "large", "arguments": {"max_bytes_per_second": 6 << 20}});
    let (status, backup) = crew.interfaces[0].send("POST", "/api/v1/jobs", &backup);
    assert_eq!(status, 202, "{backup}");
    wait_until("a pack is stored", Duration::from_secs(60), || is_sent(1))
        .unwrap_or_else(|error| panic!("{error}: {}", crew.logs()));

    // The worker that runs it first, then the other workers, and all others. A worker's name ends with its process id.
    let holder = fleet
        .ledger
        .psql("SELECT worker FROM job WHERE kind = 'backup' AND state = 1")
        .unwrap();
    let mut order: Vec<usize> = (0..crew.members.len()).rev().collect();
    order.sort_by_key(|number| {
        let id = crew.members[*number].running.pid();
        !holder.trim().ends_with(&format!("-{id}"))
    });

    let over = AtomicBool::new(false);
    let interfaces = crew.interfaces.clone();
    let accepted: HashSet<String> = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut accepted = HashSet::new();
            for call in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                accepted.extend(submit_somewhere(&interfaces, call));
            }
            accepted
        });
        for number in order {
            let ended = count("SELECT count(*) FROM history");
            let Member {
                machine,
                arguments,
                running,
            } = &mut crew.members[number];
            assert_eq!(running.terminate(), 0, "{}", running.log());
            *running = machine.start(arguments);
            crew.interfaces_answer();
            wait_until("work goes on", Duration::from_secs(60), || {
                count("SELECT count(*) FROM history") > ended + FEW
            })
            .unwrap_or_else(|error| panic!("{error}: {}", crew.logs()));
        }
        over.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    wait_until("all end", Duration::from_secs(120), || {
        count("SELECT count(*) FROM job") == 0
    })
    .unwrap_or_else(|error| panic!("{error}: {}", crew.logs()));
    let told = |sql: &str| fleet.ledger.psql(sql).unwrap().trim().to_owned();
    // The upper half of a token is the number of the attempt.
    let others = told(
        "SELECT id, state, outcome, token >> 32, problem, worker FROM history WHERE kind = 'ping' AND NOT (outcome = 0 AND token >> 32 = 1)",
    );
    assert_eq!(
        others,
        "",
        "each succeeds in its first attempt: {}",
        crew.logs()
    );
    assert_eq!(
        told("SELECT count(*) FROM history WHERE kind = 'ping'"),
        accepted.len().to_string(),
        "{}",
        crew.logs()
    );
    // The long one was handed over as often as its worker was replaced, which spends no try, and sent little twice.
    let of_backup = told(
        "SELECT outcome || ' ' || tries || ' ' || (token >> 32) FROM history WHERE kind = 'backup'",
    );
    let [outcome, tries, attempts] = of_backup.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{of_backup}")
    };
    let attempts: usize = attempts.parse().unwrap();
    assert_eq!((outcome, tries), ("0", "0"), "{}", crew.logs());
    assert!(attempts > 1, "it met no restart");
    let sent: HashSet<String> = proxy
        .requests()
        .into_iter()
        .filter(|request| request.is_upload() && request.body_bytes > PACK_BYTES)
        .map(|request| request.key)
        .collect();
    let needed = client.json(&["show", "latest"])["packs"].as_u64().unwrap() as usize;
    assert!(
        sent.len() <= needed + PACKS_IN_FLIGHT * (attempts - 1),
        "{} packs were sent in {attempts} attempts, {needed} are needed",
        sent.len()
    );
    assert_eq!(client.json(&["prove", "latest"])["proven"], true);
    crew.stop();
}

/// Submits a few jobs under keys of their own, again by the other interface where one does not answer; gives their ids.
fn submit_somewhere(interfaces: &[Interface], call: usize) -> Vec<String> {
    const MOST_TRIES: usize = 100;
    let rows: Vec<Value> = (0..FEW)
        .map(|row| {
            let job = json!({"kind": "ping", "database": "bank"});
            json!({"idempotency_key": format!("{call}-{row}"), "job": job})
        })
        .collect();
    let batch = json!({"rows": rows});
    for attempt in 0..MOST_TRIES {
        let interface = &interfaces[(call + attempt) % interfaces.len()];
        if let Ok((200, answer)) = interface.try_send("POST", "/api/v1/jobs/batch", &batch) {
            let ids = answer["results"].as_array().unwrap().iter();
            return ids
                .map(|result| result["accepted"]["id"].as_str().unwrap().to_owned())
                .collect();
        }
    }
    panic!("no interface took them")
}
