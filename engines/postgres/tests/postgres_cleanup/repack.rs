//! Tables that are mostly empty, written anew by `pg_repack`.

use std::process::{Command, Stdio};

use fettler_engine::{Cleanup as _, CleanupRequest, CleanupTerms};
use fettler_engine_postgres::PostgresEngine;
use fettler_model::{CleanupAction, CleanupPlan, CleanupRemoved};
use fettler_test_servers::{PgMajor, PostgresServer, TestDatabase, wait_until};

use super::{
    context, database, nothing,
    orphans::{PATIENCE, Session, ask, names},
    planned,
};

const TABLES: &str = "
CREATE EXTENSION pg_repack;
CREATE TABLE roomy (id int PRIMARY KEY, v text) WITH (autovacuum_enabled = off);
CREATE TABLE keyless (id int, v text) WITH (autovacuum_enabled = off);
CREATE TABLE full_of (id int PRIMARY KEY, v text) WITH (autovacuum_enabled = off);
CREATE TABLE other (id int);
INSERT INTO roomy SELECT g, md5(g::text) FROM generate_series(1, 40000) g;
INSERT INTO keyless SELECT * FROM roomy;
INSERT INTO full_of SELECT * FROM roomy;
DELETE FROM roomy WHERE id % 10 <> 0; DELETE FROM keyless WHERE id % 10 <> 0;";
const SUM: &str = "SELECT count(*), md5(string_agg(r::text, ',' ORDER BY id)) FROM roomy r";
const SIZE: &str = "SELECT pg_relation_size('roomy')";
const TRIGGERS: &str =
    "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'roomy'::regclass AND NOT tgisinternal";

fn repack() -> CleanupAction {
    CleanupAction::Repack {
        only: Vec::new(),
        empty_percent: 50,
    }
}

fn tables() -> TestDatabase {
    let database = database(PgMajor::V15, TABLES);
    database.psql("VACUUM ANALYZE").unwrap();
    database
}

async fn clean(database: &TestDatabase) -> (CleanupPlan, CleanupRemoved) {
    let (target, plan) = planned(&database.url(), repack()).await;
    assert_eq!(plan.refusals, []);
    let (context, _folder) = context(nothing());
    let removed = PostgresEngine::default()
        .remove(&context, &target, &plan, None, &CleanupTerms::default())
        .await
        .unwrap();
    (plan, removed)
}

#[tokio::test]
async fn p7_a_table_that_is_mostly_empty_is_written_anew_and_others_are_left_alone() {
    let database = tables();
    let (before, size) = (ask(&database, SUM), ask(&database, SIZE));
    let (plan, done) = clean(&database).await;
    assert_eq!((names(&plan), done.removed), (vec!["public.roomy"], 1));
    assert!(plan.notes[0].starts_with("public.keyless"), "{plan:#?}");
    assert_eq!(ask(&database, SUM), before);
    let (size, smaller): (u64, u64) =
        (size.parse().unwrap(), ask(&database, SIZE).parse().unwrap());
    assert!(smaller * 5 < size, "{smaller} of {size} bytes");
    assert_eq!(clean(&database).await.0.items, []);
}

/// What a `pg_repack` that was killed has left on the table goes, and a table that somebody reads all the while is left as it is.
#[tokio::test]
async fn p7_a_repack_that_was_killed_is_no_hindrance_and_nobody_is_ended_for_one() {
    let database = tables();
    let server = PostgresServer::shared(PgMajor::V15);
    let programs = server.bin_dir();
    let url = database.url();
    let writer = Session::new(programs, &url, "BEGIN; INSERT INTO other VALUES (1);");
    wait_until("somebody writes", PATIENCE, || {
        ask(
            &database,
            "SELECT count(*) FROM pg_locks WHERE relation = 'other'::regclass",
        ) != "0"
    })
    .unwrap();
    // It has made its trigger, and waits for the writer.
    let mut killed = Command::new(programs.join("pg_repack"))
        .args(["--no-order", "--table", "public.roomy"])
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", ask(&database, "SHOW port"))
        .env("PGUSER", ask(&database, "SELECT current_user"))
        .env("PGPASSWORD", server.password())
        .env("PGDATABASE", ask(&database, "SELECT current_database()"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the trigger is there", PATIENCE, || {
        ask(&database, TRIGGERS) == "1"
    })
    .unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    drop(writer);
    assert_eq!(ask(&database, TRIGGERS), "1");
    let before = ask(&database, SUM);

    // Somebody has read the table, and has not ended.
    let reader = Session::new(programs, &url, "BEGIN; SELECT id FROM roomy LIMIT 1;");
    wait_until("somebody reads", PATIENCE, || {
        ask(
            &database,
            "SELECT count(*) FROM pg_locks WHERE relation = 'roomy'::regclass",
        ) != "0"
    })
    .unwrap();
    let (target, plan) = planned(&url, repack()).await;
    let (context, _folder) = context(nothing());
    let answer = PostgresEngine::default()
        .remove(&context, &target, &plan, None, &CleanupTerms::default())
        .await;
    let left = answer.unwrap();
    assert_eq!((left.removed, left.busy), (0, 1), "{left:?}");
    let still_reads = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()";
    assert_eq!(ask(&database, still_reads), "1");
    drop(reader);
    wait_until("the reader is gone", PATIENCE, || {
        ask(&database, still_reads) == "0"
    })
    .unwrap();

    let (_, done) = clean(&database).await;
    assert_eq!(done.removed, 1, "{done:?}");
    assert_eq!(ask(&database, TRIGGERS), "0");
    assert_eq!(ask(&database, SUM), before);
}

#[tokio::test]
async fn p7_without_the_extension_or_its_program_a_plan_refuses_and_says_what_to_install() {
    let without = database(PgMajor::V18, "");
    let (_, plan) = planned(&without.url(), repack()).await;
    assert!(
        plan.refusals[0]
            .remedy
            .contains("CREATE EXTENSION pg_repack"),
        "{plan:#?}"
    );
    let with = tables();
    let (target, _) = planned(&with.url(), repack()).await;
    let folder = tempfile::tempdir().unwrap();
    let (context, _folder) = context(nothing());
    let request = CleanupRequest {
        what: repack(),
        archive: true,
    };
    let engine = PostgresEngine::default().with_program_folders(vec![folder.path().to_owned()]);
    let plan = engine.plan(&context, &target, &request).await.unwrap();
    assert!(
        plan.refusals[0].what.contains("program pg_repack"),
        "{plan:#?}"
    );
}
