//! Tuning on real PostgreSQL servers, under a workload that goes on meanwhile: what is known to be missing, superfluous and
//! unused is found, what helps stays, what does not is taken back by itself, and a worker that dies in the middle of an index
//! leaves nothing half made.

#![allow(clippy::unwrap_used)]

mod shop;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use fettler_tests::{
    Installation, Size,
    servers::{PgMajor, PostgresOptions, PostgresServer, wait_until},
};
use rand::{SeedableRng, rngs::StdRng};
use rstest::rstest;
use serde_json::Value;

use shop::{SHOP, round};

fn server(major: PgMajor) -> PostgresServer {
    PostgresServer::start(
        major,
        PostgresOptions::new()
            .setting("shared_preload_libraries", "pg_stat_statements")
            .setting("max_parallel_workers_per_gather", "0")
            .setting("autovacuum", "off"),
    )
    .unwrap()
}

/// Clients who go on until the value is dropped.
struct Clients {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Clients {
    fn start(server: &Arc<PostgresServer>, database: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (server, database, told) = (server.clone(), database.to_owned(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut dice = StdRng::seed_from_u64(7);
            let mut number = 100;
            while !told.load(Ordering::Relaxed) {
                number += 1;
                server.psql(&database, &round(&mut dice, number)).unwrap();
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(
            ended.is_ok() || std::thread::panicking(),
            "a client met an error"
        );
    }
}

fn indexes(server: &PostgresServer, database: &str) -> Vec<String> {
    server
        .psql(
            database,
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
        )
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn list<'a>(document: &'a Value, name: &str) -> &'a Vec<Value> {
    document[name]
        .as_array()
        .unwrap_or_else(|| panic!("no {name}: {document:#}"))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// The findings of a check, by their objects.
fn found<'a>(document: &'a Value, check: &str) -> Vec<&'a str> {
    list(document, "findings")
        .iter()
        .filter(|one| one["check"] == format!("postgres.tune_{check}"))
        .map(|one| text(one, "object"))
        .collect()
}

#[rstest]
#[case(PgMajor::V15)]
#[case(PgMajor::V18)]
fn what_is_missing_superfluous_and_harmful_is_found_and_only_what_helps_stays(
    #[case] major: PgMajor,
) {
    let server = Arc::new(server(major));
    let database = "postgres";
    server.psql(database, SHOP).unwrap();
    let has_hypopg = major == PgMajor::V15;
    if has_hypopg {
        server.psql(database, "CREATE EXTENSION hypopg").unwrap();
    }
    // Filling it was no work of the shop's.
    server
        .psql(database, "SELECT pg_stat_statements_reset()")
        .unwrap();
    let mut dice = StdRng::seed_from_u64(1);
    for number in 0..4 {
        server.psql(database, &round(&mut dice, number)).unwrap();
    }
    let fettler = Installation::new();
    let url = server.url(database);
    let before = indexes(&server, database);
    let look = fettler.json(&["tune", &url, "--unused-days", "0", "--apply", "--dry-run"]);
    assert_eq!(indexes(&server, database), before, "a look changes nothing");
    assert_eq!(
        look["judged_by"],
        if has_hypopg { "hypopg" } else { "estimate" },
        "{look:#}"
    );
    assert!(look["statements"].as_u64().unwrap() >= 20, "{look:#}");
    assert_eq!(look["unread_statements"], 0, "{look:#}");

    let missing = found(&look, "index_missing");
    for wanted in [
        "public.orders (customer",
        "public.customers (email",
        "public.items (product",
        "WHERE shipped IS NULL",
        "public.journal (source",
    ] {
        assert!(
            missing.iter().any(|one| one.contains(wanted)),
            "{wanted}: {missing:#?}"
        );
    }
    assert!(
        missing.len() <= 8,
        "a few indexes, not one for each statement: {missing:#?}"
    );
    let redundant = found(&look, "index_redundant");
    assert_eq!(
        redundant,
        ["public.customers_country_again", "public.customers_country"],
        "{look:#}"
    );
    assert!(
        found(&look, "index_unused").contains(&"public.orders_total"),
        "{look:#}"
    );
    let keys = [
        "public.returns.returns_order_id_fkey",
        "public.orders.orders_customer_fkey",
    ];
    assert_eq!(found(&look, "foreign_key_unindexed"), keys, "{look:#}");
    assert!(found(&look, "setting").contains(&"autovacuum"), "{look:#}");
    for action in list(&look, "plan") {
        let is_setting = action["kind"] == "set_setting";
        let is_unused = action["object"] == "\"public\".\"orders_total\"";
        assert!(
            !(is_setting || is_unused) || action["safe"] == false,
            "{action:#}"
        );
        assert!(!list(action, "undo").is_empty(), "{action:#}");
    }

    // With the clients at work.
    let clients = Clients::start(&server, database);
    let done = fettler.json(&["tune", &url, "--apply", "--observe", "30s", "--most", "20"]);
    drop(clients);
    let state = |wanted: &str| -> (String, String) {
        let one = list(&done, "done")
            .iter()
            .find(|one| {
                one["action"]["apply"]
                    .to_string()
                    .contains(&wanted.replace('"', "\\\""))
            })
            .unwrap_or_else(|| panic!("{wanted} was not done: {done:#}"));
        (text(one, "state").to_owned(), text(one, "why").to_owned())
    };
    for wanted in [
        "\"orders\" USING btree (\"customer\"",
        "\"customers\" USING btree (\"email\"",
        "\"items\" USING btree (\"product\"",
        "\"shipped\" IS NULL",
    ] {
        assert_eq!(state(wanted).0, "kept", "{wanted}: {done:#}");
    }
    // Nearly all rows have the value that is asked for: no plan reads the index, and every insert would pay for it.
    let (what, why) = state("\"journal\" USING btree (\"source\"");
    assert_eq!(what, "taken_back", "{why}");
    // However slow the machine is, and although the table's pages change meanwhile: nobody misses them.
    for name in ["customers_country", "customers_country_again"] {
        let (what, why) = state(&format!(
            "DROP INDEX CONCURRENTLY IF EXISTS \"public\".\"{name}\""
        ));
        assert_eq!(what, "kept", "{name}: {why}");
    }
    let after = indexes(&server, database);
    let there = |part: &str| after.iter().any(|one| one.contains(part));
    assert!(
        there("orders USING btree (customer")
            && there("customers_country_joined")
            && there("orders_total")
    );
    assert!(!there("journal USING btree (source"), "{after:#?}");
    assert!(
        !there("INDEX customers_country ON") && !there("INDEX customers_country_again ON"),
        "{after:#?}"
    );
    let invalid = server
        .psql(
            database,
            "SELECT count(*) FROM pg_index WHERE NOT indisvalid",
        )
        .unwrap();
    assert_eq!(invalid.trim(), "0");

    // Run twice, it does nothing more: what was tried in vain is not tried again.
    let again = fettler.json(&["tune", &url, "--apply", "--observe", "0"]);
    let tried: Vec<&Value> = list(&again, "done")
        .iter()
        .filter(|one| one["job"] == again["job"])
        .collect();
    assert_eq!(tried, Vec::<&Value>::new(), "{again:#}");
    assert!(
        list(&again, "plan")
            .iter()
            .all(|action| action["safe"] == false),
        "{again:#}"
    );

    // And all of it can be taken back.
    let undone = fettler.json(&["tune", "undo", text(&done, "job")]);
    assert!(
        list(&undone, "done")
            .iter()
            .all(|one| ["undone", "taken_back", "failed"].contains(&text(one, "state"))),
        "{undone:#}"
    );
    assert_eq!(indexes(&server, database), before);
}

/// A table of which everybody looks rows up by a column without an index.
const SMALL: &str = "
CREATE EXTENSION pg_stat_statements;
CREATE TABLE things (id int PRIMARY KEY, owner int NOT NULL, name text NOT NULL);
INSERT INTO things SELECT i, i % 20000, 'thing ' || i FROM generate_series(1, 200000) i;
VACUUM ANALYZE things;
";

fn look_up(server: &PostgresServer) {
    for owner in 0..20 {
        server
            .psql(
                "postgres",
                &format!("SELECT * FROM things WHERE owner = {owner}"),
            )
            .unwrap();
    }
}

fn valid(server: &PostgresServer) -> Vec<String> {
    server
        .psql("postgres", "SELECT indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relname LIKE 'fettler%'")
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[rstest]
fn a_worker_that_dies_while_an_index_is_made_leaves_nothing_half_made(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let server = server(PgMajor::V15);
    server.psql("postgres", SMALL).unwrap();
    server
        .psql("postgres", "SELECT pg_stat_statements_reset()")
        .unwrap();
    look_up(&server);
    let fettler = Installation::of_size(size)
        .without_workers()
        .with_short_leases();
    let mut worker = fettler.start_worker();
    // Whoever writes to the table is waited for: there is a moment to die in.
    let mut writer = server
        .command("psql", "postgres")
        .unwrap()
        .args([
            "-c",
            "BEGIN; UPDATE things SET name = 'x' WHERE id = 1; SELECT pg_sleep(12); COMMIT",
        ])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let submitted = fettler.json(&[
        "tune",
        &server.url("postgres"),
        "--apply",
        "--observe",
        "20s",
        "--detach",
    ]);
    let job = text(&submitted, "job").to_owned();
    wait_until("an index is half made", Duration::from_secs(40), || {
        valid(&server) == ["f"]
    })
    .unwrap_or_else(|error| panic!("{error}: {}", worker.log()));
    worker.kill_9();
    assert_eq!(valid(&server), ["f"]);
    writer.wait().unwrap();
    let again = fettler.start_worker();
    let mut state = Value::Null;
    wait_until("the job ends", Duration::from_secs(120), || {
        look_up(&server);
        state = fettler.json(&["jobs", "show", &job]);
        ["succeeded", "dead"].contains(&text(&state, "state"))
    })
    .unwrap_or_else(|error| panic!("{error}: {state:#} {}", again.log()));
    assert_eq!(state["state"], "succeeded", "{state:#}");
    let done = &state["result"]["done"][0];
    assert_eq!(done["state"], "kept", "{state:#}");
    assert_eq!(valid(&server), ["t"]);
    let second = fettler.json(&["tune", &server.url("postgres"), "--apply", "--observe", "0"]);
    assert_eq!(list(&second, "done"), &Vec::<Value>::new());
    assert_eq!(valid(&server), ["t"]);
}

#[test]
fn a_policy_tunes_by_itself_and_what_cannot_be_judged_is_left_to_the_next_time() {
    let server = server(PgMajor::V15);
    server.psql("postgres", SMALL).unwrap();
    server
        .psql("postgres", "SELECT pg_stat_statements_reset()")
        .unwrap();
    look_up(&server);
    let fettler = Installation::new();
    let mut up = fettler.start(&["up"]);
    fettler.json(&["tune", &server.url("postgres"), "--dry-run"]);
    let name = text(&fettler.json(&["database", "list"])["databases"][0], "name").to_owned();
    fettler
        .run(&[
            "policy",
            "add",
            "tuning",
            "--database",
            &name,
            "--kind",
            "tune",
            "--cron",
            "*/5 * * * * *",
            "--argument",
            "apply=true",
            "--argument",
            "observe_seconds=1",
        ])
        .done();
    wait_until("an index is made", Duration::from_secs(60), || {
        valid(&server) == ["t"]
    })
    .unwrap_or_else(|error| panic!("{error}: {}", up.log()));
    let last = || {
        let jobs = fettler.json(&["jobs", "--all"]);
        let ended: Vec<Value> = list(&jobs, "jobs")
            .iter()
            .filter(|job| job["state"] == "succeeded")
            .cloned()
            .collect();
        ended
            .iter()
            .map(|job| fettler.json(&["jobs", "show", text(job, "id")]))
            .collect::<Vec<_>>()
    };
    let states = || -> Vec<String> {
        last()
            .iter()
            .flat_map(|job| {
                job["result"]["done"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default()
            })
            .map(|one| text(&one, "state").to_owned())
            .collect()
    };
    // Nobody has asked since.
    wait_until("it is being watched", Duration::from_secs(60), || {
        states().contains(&"observing".to_owned())
    })
    .unwrap();
    look_up(&server);
    wait_until("it is decided", Duration::from_secs(60), || {
        states().contains(&"kept".to_owned())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?} {}", states(), up.log()));
    assert_eq!(valid(&server), ["t"]);
    assert_eq!(up.terminate(), 0, "{}", up.log());
}

#[test]
fn what_the_server_does_not_tell_is_said() {
    let server = PostgresServer::shared(PgMajor::V15);
    let database = server.create_database("tuned").unwrap();
    let fettler = Installation::new();
    let look = fettler.json(&["tune", &database.url()]);
    assert_eq!(found(&look, "statements"), [""], "{look:#}");
    assert!(look.to_string().contains("shared_preload_libraries"));
    // A role that may only look.
    let role = format!("tuner_{}", std::process::id());
    let sql = fettler
        .run(&[
            "database",
            "grant-sql",
            &database.url(),
            "--for",
            "tune",
            "--role",
            &role,
        ])
        .done()
        .stdout;
    database
        .psql(&sql.replace("'PASSWORD'", "'pass1'"))
        .unwrap();
    let look = fettler.json(&["tune", &database.url_as(&role, "pass1")]);
    assert_eq!(list(&look, "done"), &Vec::<Value>::new());
    database
        .psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .unwrap();
    for (arguments, part) in [
        (vec!["tune"], "no database is named"),
        (vec!["tune", "undo", "00000000"], "00000000"),
    ] {
        let answer = fettler.run(&arguments);
        assert_ne!(answer.code, 0);
        assert!(answer.stderr.contains(part), "{answer:#?}");
    }
}
