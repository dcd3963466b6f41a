//! P7: `fettler cleanup` through the binary, on real servers. What is old goes and nothing else; what changed meanwhile stays;
//! a cleanup that was killed at any of its steps goes on; run twice it does nothing; and an undo brings back every row.

#![allow(clippy::unwrap_used)]

use fettler_tests::{
    Installation, Size,
    servers::{PgMajor, PostgresServer, TestDatabase},
};
use rstest::rstest;
use serde_json::{Value, json};

/// Rows of every sort of type that is hard to write down, half of them older than 90 days.
const EVENTS: &str = include_str!("../../engines/postgres/tests/postgres_cleanup/events.sql");
/// What stands for all the content of the table.
const SUM: &str =
    r#"SELECT count(*), md5(string_agg(e::text, ',' ORDER BY region, id)) FROM "Events" e"#;
const OLD: &str = r#"SELECT count(*) FROM "Events" WHERE at < now() - interval '90 days'"#;
const COUNT: &str = r#"SELECT count(*) FROM "Events""#;

fn number(database: &TestDatabase, sql: &str) -> u64 {
    database.psql(sql).unwrap().trim().parse().unwrap()
}

fn events(major: PgMajor) -> TestDatabase {
    let database = PostgresServer::shared(major)
        .create_database("clean")
        .unwrap();
    database.psql(EVENTS).unwrap();
    database
}

fn old_events(url: &str) -> Vec<String> {
    let words = [
        "cleanup",
        url,
        "--rows",
        "public.\"Events\"",
        "--column",
        "at",
        "--older-than",
        "90d",
    ];
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn run(fettler: &Installation, words: &[String], more: &[&str]) -> Value {
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    fettler.json(&words)
}

#[rstest]
#[case(Size::Embedded, PgMajor::V15)]
#[case(Size::Fleet, PgMajor::V18)]
fn p7_old_rows_go_by_plan_once_and_come_back(#[case] size: Size, #[case] major: PgMajor) {
    let database = events(major);
    let fettler = Installation::of_size(size);
    let url = database.url();
    let words = old_events(&url);
    let (before, old) = (database.psql(SUM).unwrap(), number(&database, OLD));
    assert_eq!(old, 2000);

    let planned = run(&fettler, &words, &["--dry-run"]);
    assert_eq!(planned["plan"]["items"][0]["rows"], old, "{planned:#}");
    assert!(
        planned["plan"]["items"][0]["oldest"].as_str()
            < planned["plan"]["items"][0]["newest"].as_str()
    );
    assert!(planned["archive"].is_null());
    assert_eq!(
        database.psql(SUM).unwrap(),
        before,
        "a dry run changes nothing"
    );

    let cleaned = run(&fettler, &words, &["--batch-rows", "150"]);
    assert_eq!(cleaned["removed"]["removed"], old, "{cleaned:#}");
    assert_eq!(cleaned["archived_rows"], old);
    assert_eq!(cleaned["removed"]["remaining"], 0);
    assert_eq!(cleaned["verified"], true);
    assert_eq!(number(&database, OLD), 0);
    assert_eq!(
        number(&database, COUNT),
        2001,
        "young rows and rows without a time stay"
    );

    let again = run(&fettler, &words, &[]);
    assert_eq!(again["plan"]["items"][0]["rows"], 0, "{again:#}");
    assert_eq!(again["removed"]["removed"], 0);
    assert!(again["archive"].is_null(), "nothing is archived twice");

    // No list shows the archive as a backup, and it is not the latest one.
    assert_eq!(fettler.json(&["backups"])["backups"], json!([]));
    assert_ne!(fettler.run(&["verify", "latest"]).code, 0);

    let job = cleaned["job"].as_str().unwrap();
    let would = fettler.json(&["cleanup", "undo", job, "--dry-run"]);
    assert_eq!(would["restored"], old, "{would:#}");
    assert_eq!(number(&database, COUNT), 2001);
    let undone = fettler.json(&["cleanup", "undo", job]);
    assert_eq!(undone["restored"], old, "{undone:#}");
    assert_eq!(undone["skipped"], json!([]));
    assert_eq!(database.psql(SUM).unwrap(), before, "every row is back");
    let twice = fettler.json(&["cleanup", "undo", job]);
    assert_eq!(
        (&twice["restored"], &twice["there"]),
        (&json!(0), &json!(old)),
        "{twice:#}"
    );
    assert_eq!(database.psql(SUM).unwrap(), before);
}

/// A Fettler that dies at these moments, at each of them once.
fn dying(points: &str) -> Installation {
    let fettler = Installation::new().with_short_leases();
    let latches = fettler.path("latches");
    std::fs::create_dir(&latches).unwrap();
    fettler
        .with("FETTLER_FAULT_POINT", points)
        .with("FETTLER_FAULT_LATCHES", latches.to_str().unwrap())
}

/// A command takes up what a killed one has left; gives the job of this kind as it ended.
fn taken_up(fettler: &Installation, database: &str, point: &str, kind: &str) -> Value {
    let next = fettler.run(&["ping", database]).done();
    assert!(next.stderr.contains("taken up"), "{next:#?}");
    assert!(
        fettler.path("latches").join(point).exists(),
        "{point} was not reached"
    );
    let jobs = fettler.json(&["jobs", "--all"]);
    let jobs = jobs["jobs"].as_array().unwrap();
    let job = jobs.iter().find(|job| job["kind"] == kind).unwrap();
    let job = fettler.json(&["jobs", "show", job["id"].as_str().unwrap()]);
    assert_eq!(job["state"], "succeeded", "{job:#} {next:#?}");
    job
}

/// Rows that are changed, or written, between the archive and the removal stay as they are.
#[rstest]
#[case("backup.manifest_written")]
#[case("cleanup.archived")]
#[case("cleanup.removing:3")]
#[case("cleanup.removed")]
fn p7_a_cleanup_that_was_killed_keeps_to_its_plan_and_spares_what_was_changed(#[case] point: &str) {
    let database = events(PgMajor::V15);
    let (url, before) = (database.url(), database.psql(SUM).unwrap());
    let fettler = dying(point);
    let words = old_events(&url);
    let killed = fettler.run(
        &[
            words.as_slice(),
            &["--batch-rows".to_owned(), "100".to_owned()],
        ]
        .concat(),
    );
    assert_eq!(killed.code, -1, "{killed:#?}");
    let left = number(&database, OLD);
    let is_begun = left < 2000;
    assert_eq!(is_begun, point.starts_with("cleanup.remov"), "{left}");
    // Of the last rows, which a removal that was killed early has not come to.
    let touched = "SELECT region, id FROM \"Events\" WHERE at < now() - interval '90 days' ORDER BY id DESC LIMIT 7";
    let changed = number(
        &database,
        &format!(
            "WITH u AS (UPDATE \"Events\" e SET \"the text\" = 'changed' FROM ({touched}) w WHERE e.region = w.region AND e.id = w.id RETURNING 1) SELECT count(*) FROM u"
        ),
    );
    assert_eq!(changed, if point == "cleanup.removed" { 0 } else { 7 });
    database
        .psql("INSERT INTO \"Events\" (region, at, \"the text\") VALUES ('late', now() - interval '1 year', 'late')")
        .unwrap();
    let after_change = database.psql("SELECT md5(string_agg(e::text, ',' ORDER BY region, id)) FROM \"Events\" e WHERE \"the text\" IN ('changed', 'late')").unwrap();
    let job = taken_up(&fettler, &url, point.split(':').next().unwrap(), "cleanup");
    let removed = &job["result"]["removed"];
    let sum = removed["removed"].as_u64().unwrap() + removed["gone"].as_u64().unwrap();
    assert_eq!(sum, 2000 - changed, "{job:#}");
    assert_eq!(removed["changed"], changed, "{job:#}");
    assert_eq!(job["result"]["verified"], true);
    assert_eq!(
        number(&database, OLD),
        changed + 1,
        "what was changed or came late stays"
    );
    assert_eq!(
        database.psql("SELECT md5(string_agg(e::text, ',' ORDER BY region, id)) FROM \"Events\" e WHERE \"the text\" IN ('changed', 'late')").unwrap(),
        after_change
    );
    // The undo leaves what is there, and tells it.
    let undone = fettler.run(&["cleanup", "undo", job["id"].as_str().unwrap(), "--json"]);
    assert_eq!(undone.code, if changed > 0 { 3 } else { 0 }, "{undone:#?}");
    let undone = undone.json();
    assert_eq!(undone["restored"], 2000 - changed, "{undone:#}");
    assert_eq!(undone["taken"], changed);
    assert_eq!(undone["skipped"].as_array().unwrap().len() as u64, changed);
    database
        .psql("DELETE FROM \"Events\" WHERE \"the text\" = 'late'")
        .unwrap();
    if changed == 0 {
        assert_eq!(database.psql(SUM).unwrap(), before);
    } else {
        assert_eq!(number(&database, COUNT), 4001);
    }
}

#[test]
fn p7_an_undo_that_was_killed_goes_on_and_fires_no_trigger() {
    let database = events(PgMajor::V18);
    let (url, before) = (database.url(), database.psql(SUM).unwrap());
    let fettler = dying("cleanup.undoing:2");
    let words = old_events(&url);
    let cleaned = run(&fettler, &words, &[]);
    database
        .psql("CREATE TABLE seen (n int); CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.seen VALUES (1); NEW.\"the text\" := 'spoilt'; RETURN NEW; END $$;
               CREATE TRIGGER see BEFORE INSERT ON \"Events\" FOR EACH ROW EXECUTE FUNCTION see()")
        .unwrap();
    let killed = fettler.run(&["cleanup", "undo", cleaned["job"].as_str().unwrap()]);
    assert_eq!(killed.code, -1, "{killed:#?}");
    let back = number(&database, OLD);
    assert!(back > 0 && back < 2000, "{back}");
    let job = taken_up(&fettler, &url, "cleanup.undoing", "cleanup-undo");
    assert_eq!(job["attempts"], 2, "{job:#}");
    assert_eq!(database.psql(SUM).unwrap(), before);
    assert_eq!(
        number(&database, "SELECT count(*) FROM seen"),
        0,
        "a trigger fired"
    );
}

/// What stands in the way is told with what would help, and nothing is changed.
#[test]
fn p7_a_plan_refuses_what_it_cannot_take_back() {
    let database = PostgresServer::shared(PgMajor::V15)
        .create_database("refused")
        .unwrap();
    database
        .psql(
            "CREATE TABLE orders (id int PRIMARY KEY, at timestamptz); CREATE TABLE lines (id int PRIMARY KEY, of int REFERENCES orders ON DELETE CASCADE);
             INSERT INTO orders SELECT g, now() - interval '1 year' FROM generate_series(1, 10) g; INSERT INTO lines VALUES (1, 1), (2, 1), (3, 7);
             CREATE TABLE keyless (at timestamptz); INSERT INTO keyless VALUES ('2000-01-01');
             CREATE TABLE watched (id int PRIMARY KEY, at timestamp, v int); INSERT INTO watched VALUES (1, '2000-01-01', 1);
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$;
             CREATE TRIGGER t BEFORE DELETE ON watched FOR EACH ROW EXECUTE FUNCTION f();",
        )
        .unwrap();
    let (fettler, url) = (Installation::new(), database.url());
    let ask = |table: &str, column: &str, more: &[&str]| {
        let mut words = vec![
            "cleanup",
            &url,
            "--rows",
            table,
            "--column",
            column,
            "--older-than",
            "90d",
        ];
        words.extend(more);
        fettler.run(&words)
    };
    for (table, column, expected) in [
        ("orders", "at", "--referenced keep"),
        ("keyless", "at", "ADD PRIMARY KEY"),
        ("watched", "at", "--fire-triggers"),
        ("watched", "v", "says no time"),
        ("watched", "nothing", "columns that say a time: at"),
        ("nowhere", "at", "there is no table"),
    ] {
        let refused = ask(table, column, &[]);
        assert_eq!(refused.code, 1, "{table} {column}: {refused:#?}");
        assert!(
            refused.stderr.contains(expected),
            "{table} {column}: {refused:#?}"
        );
    }
    assert_eq!(number(&database, "SELECT count(*) FROM orders"), 10);
    // A dry run shows the whole plan with its refusals.
    let planned = ask("orders", "at", &["--dry-run", "--json"]);
    assert_eq!(planned.code, 3, "{planned:#?}");
    let planned = planned.json();
    assert!(
        planned["plan"]["depends"][0]
            .as_str()
            .unwrap()
            .contains("CASCADE"),
        "{planned:#}"
    );
    assert!(
        planned["plan"]["refusals"][0]["what"]
            .as_str()
            .unwrap()
            .starts_with("2 of the rows")
    );
    // Rows that are referred to stay, and so does what refers to them.
    let kept = ask("orders", "at", &["--referenced", "keep", "--json"])
        .done()
        .json();
    assert_eq!(
        (&kept["removed"]["removed"], &kept["removed"]["referenced"]),
        (&json!(8), &json!(2)),
        "{kept:#}"
    );
    assert_eq!(number(&database, "SELECT count(*) FROM lines"), 3);
    assert_eq!(number(&database, "SELECT count(*) FROM orders"), 2);
    // Without an archive nothing comes back.
    let last = ask(
        "watched",
        "at",
        &["--fire-triggers", "--no-archive", "--json"],
    )
    .done()
    .json();
    assert_eq!(last["removed"]["removed"], 1, "{last:#}");
    assert!(last["archive"].is_null());
    let undo = fettler.run(&["cleanup", "undo", last["job"].as_str().unwrap()]);
    assert!(
        undo.code == 1 && undo.stderr.contains("not kept any more"),
        "{undo:#?}"
    );
    for (words, expected) in [
        (vec!["cleanup", &url], "nothing says what is to be cleaned"),
        (vec!["cleanup", &url, "--slots"], "--inactive-for"),
        (vec!["cleanup", &url, "--sessions"], "--idle"),
    ] {
        let refused = fettler.run(&words);
        assert_eq!(refused.code, 2, "{refused:#?}");
        assert!(refused.stderr.contains(expected), "{refused:#?}");
    }
}

#[test]
fn p7_rows_that_somebody_holds_are_not_waited_for_and_stay() {
    let database = events(PgMajor::V15);
    let holder = database.url();
    let mut held = std::process::Command::new(
        PostgresServer::shared(PgMajor::V15).bin_dir().join("psql"),
    )
    .args([
        &holder,
        "-qc",
        "BEGIN; SELECT id FROM \"Events\" WHERE at IS NOT NULL ORDER BY id DESC LIMIT 3 FOR UPDATE; SELECT pg_sleep(60)",
    ])
    .stdout(std::process::Stdio::null())
    .spawn()
    .unwrap();
    fettler_tests::servers::wait_until("the rows are held", std::time::Duration::from_secs(60), || {
        number(&database, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND datname = current_database() AND pid <> pg_backend_pid()") > 0
    })
    .unwrap();
    let fettler = Installation::new();
    let cleaned = run(&fettler, &old_events(&holder), &[]);
    held.kill().unwrap();
    held.wait().unwrap();
    assert_eq!(cleaned["removed"]["busy"], 3, "{cleaned:#}");
    assert_eq!(cleaned["removed"]["removed"], 1997);
    assert_eq!(cleaned["verified"], true);
    assert!(
        cleaned["removed"]["kept"][0]
            .as_str()
            .unwrap()
            .contains("held by somebody")
    );
    database.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND datname = current_database() AND pid <> pg_backend_pid()").unwrap();
    let rest = run(&fettler, &old_events(&holder), &[]);
    assert_eq!(rest["removed"]["removed"], 3, "{rest:#}");
}

#[test]
fn p7_rows_that_refer_to_each_other_go_and_come_back_one_after_the_other() {
    let database = PostgresServer::shared(PgMajor::V18)
        .create_database("tree")
        .unwrap();
    database
        .psql(
            "CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON DELETE CASCADE, at date);
             INSERT INTO tree SELECT g, NULLIF(g - 1, 0), current_date - 200 FROM generate_series(1, 6) g;
             INSERT INTO tree VALUES (10, 10, '2001-01-01'), (11, NULL, current_date), (12, 11, current_date)",
        )
        .unwrap();
    let (fettler, url) = (Installation::new(), database.url());
    let sum = "SELECT string_agg(t::text, ',' ORDER BY id) FROM tree t";
    let before = database.psql(sum).unwrap();
    let cleaned = fettler.json(&[
        "cleanup",
        &url,
        "--rows",
        "tree",
        "--column",
        "at",
        "--older-than",
        "90d",
    ]);
    assert_eq!(cleaned["removed"]["removed"], 7, "{cleaned:#}");
    assert_eq!(number(&database, "SELECT count(*) FROM tree"), 2);
    let undone = fettler.run(&[
        "cleanup",
        "undo",
        cleaned["job"].as_str().unwrap(),
        "--json",
    ]);
    let undone = undone.json();
    // The row that refers to itself has no parent before it is there.
    assert_eq!(undone["restored"], 7, "{undone:#}");
    assert_eq!(database.psql(sum).unwrap(), before);
}

#[test]
fn p7_a_policy_cleans_by_itself_with_a_role_of_few_rights() {
    let database = events(PgMajor::V15);
    let fettler = Installation::new();
    let role = format!("cleaner_{}", database.name());
    database
        .psql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'pass1'"))
        .unwrap();
    let url = database.url_as(&role, "pass1");
    fettler.run(&["database", "add", "shop", &url]).done();
    let refused = fettler.run(&old_events("shop"));
    assert!(
        refused.code == 1
            && refused
                .stderr
                .contains("GRANT SELECT, INSERT, UPDATE, DELETE ON"),
        "{refused:#?}"
    );
    database
        .psql(&format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON \"Events\" TO {role}"
        ))
        .unwrap();
    let mut up = fettler.start(&["up"]);
    let what =
        r#"what={"action":"rows","table":"Events","column":"at","older_than_seconds":7776000}"#;
    fettler
        .run(&[
            "policy",
            "add",
            "tidy",
            "--database",
            "shop",
            "--kind",
            "cleanup",
            "--cron",
            "*/2 * * * * *",
            "--argument",
            what,
        ])
        .done();
    // Those after it find nothing old.
    let cleaned = || {
        let jobs = fettler.json(&["jobs", "--all"]);
        let jobs = jobs["jobs"].as_array().unwrap();
        jobs.iter()
            .find(|job| job["kind"] == "cleanup" && job["result"]["archive"].is_string())
            .cloned()
    };
    fettler_tests::servers::wait_until(
        "the policy has cleaned",
        std::time::Duration::from_secs(60),
        || cleaned().is_some(),
    )
    .unwrap_or_else(|error| panic!("{error}: {}", up.log()));
    assert_eq!(number(&database, OLD), 0);
    fettler.run(&["policy", "remove", "tidy"]).done();
    assert_eq!(up.terminate(), 0, "{}", up.log());
    let job = cleaned().unwrap();
    let undone = fettler.json(&["cleanup", "undo", job["id"].as_str().unwrap()]);
    assert_eq!(undone["restored"], 2000, "{undone:#}");
    database
        .psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .unwrap();
}
