//! What nobody uses, by the engine alone: each action with something that goes, and something that stays.

use std::{
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use fettler_engine::{Cleanup as _, CleanupTerms};
use fettler_engine_postgres::PostgresEngine;
use fettler_model::{CleanupAction, CleanupPlan, CleanupRemoved};
use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer, TestDatabase, wait_until};

use super::{context, database, nothing, planned};

pub const PATIENCE: Duration = Duration::from_secs(60);

async fn clean(url: &str, what: CleanupAction) -> (CleanupPlan, CleanupRemoved) {
    let (target, plan) = planned(url, what).await;
    assert_eq!(plan.refusals, []);
    assert!(!plan.can_be_undone);
    let (context, _folder) = context(nothing());
    let removed = PostgresEngine::default()
        .remove(&context, &target, &plan, None, &CleanupTerms::default())
        .await
        .unwrap();
    (plan, removed)
}

pub fn names(plan: &CleanupPlan) -> Vec<&str> {
    plan.items.iter().map(|item| item.name.as_str()).collect()
}

pub fn ask(database: &TestDatabase, sql: &str) -> String {
    database.psql(sql).unwrap().trim().to_owned()
}

/// A session that was begun and does nothing, until it is dropped.
pub struct Session(Child);

impl Session {
    pub fn new(programs: &Path, url: &str, sql: &str) -> Self {
        let mut child = Command::new(programs.join("psql"))
            .args(["-qX", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
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

#[tokio::test]
async fn p7_idle_sessions_are_ended_and_those_that_work_are_not() {
    let database = database(PgMajor::V18, "CREATE TABLE t (n int)");
    let url = database.url();
    let programs = PostgresServer::shared(PgMajor::V18).bin_dir();
    let _stuck = Session::new(
        programs,
        &url,
        "SET application_name = 'stuck'; BEGIN; INSERT INTO t VALUES (1);",
    );
    let _idle = Session::new(programs, &url, "SET application_name = 'idle'; SELECT 1;");
    let _works = Session::new(
        programs,
        &url,
        "SET application_name = 'works'; SELECT pg_sleep(60);",
    );
    let there = || {
        ask(
            &database,
            "SELECT string_agg(application_name, ' ' ORDER BY application_name) FROM pg_stat_activity WHERE datname = current_database() AND application_name IN ('stuck', 'idle', 'works')",
        )
    };
    wait_until("the sessions are there", PATIENCE, || {
        there() == "idle stuck works"
    })
    .unwrap();
    let of = |in_transaction, idle| CleanupAction::Sessions {
        idle_in_transaction_seconds: in_transaction,
        idle_seconds: idle,
    };
    let (young, _) = clean(&url, of(Some(3600), Some(3600))).await;
    assert_eq!(young.items, []);
    // No session is a second old yet that was begun just now.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (plan, ended) = clean(&url, of(Some(1), None)).await;
    assert_eq!(ended.removed, 1, "{plan:?}");
    assert!(plan.items[0].note.contains("stuck"), "{plan:?}");
    wait_until("the session is gone", PATIENCE, || there() == "idle works").unwrap();
    let (plan, ended) = clean(&url, of(None, Some(1))).await;
    assert_eq!(ended.removed, 1, "{plan:?}");
    wait_until("the session is gone", PATIENCE, || there() == "works").unwrap();
    assert_eq!(clean(&url, of(Some(1), Some(1))).await.0.items, []);
}

#[tokio::test]
async fn p7_abandoned_slots_and_prepared_transactions_go_and_others_stay() {
    for major in PgMajor::ALL {
        let options = PostgresOptions::new()
            .setting("wal_level", "logical")
            .setting("max_prepared_transactions", "5");
        let server = PostgresServer::start(major, options).unwrap();
        let database = server.create_database("slots").unwrap();
        database
            .psql("CREATE TABLE t (n int); SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput'); SELECT pg_create_physical_replication_slot('replica', true)")
            .unwrap();
        database
            .psql("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'it''s old'")
            .unwrap();
        let url = database.url();
        let slots = |only: &[&str], inactive_for_seconds, retained_bytes| CleanupAction::Slots {
            only: only.iter().map(|one| (*one).to_owned()).collect(),
            inactive_for_seconds,
            retained_bytes,
        };
        if major == PgMajor::V18 {
            let (plan, _) = clean(&url, slots(&[], 3600, 0)).await;
            assert_eq!(plan.items, []);
        } else {
            let (_, plan) = planned(&url, slots(&[], 3600, 0)).await;
            assert!(plan.refusals[0].remedy.contains("--retained"), "{plan:?}");
        }
        let (plan, _) = clean(&url, slots(&[], 0, 1 << 40)).await;
        assert_eq!(plan.items, []);
        let (plan, gone) = clean(&url, slots(&["left*"], 0, 0)).await;
        assert_eq!((names(&plan), gone.removed), (vec!["left_behind"], 1));
        assert!(
            plan.items[0]
                .note
                .contains("pg_create_logical_replication_slot")
        );
        let left = ask(
            &database,
            "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots",
        );
        assert_eq!(left, "replica");
        let prepared =
            |older_than_seconds| CleanupAction::PreparedTransactions { older_than_seconds };
        let (plan, _) = clean(&url, prepared(3600)).await;
        assert_eq!(plan.items, []);
        let (plan, gone) = clean(&url, prepared(0)).await;
        assert_eq!((names(&plan), gone.removed), (vec!["it's old"], 1));
        assert_eq!(
            ask(&database, "SELECT count(*) FROM pg_prepared_xacts"),
            "0"
        );
    }
}

#[tokio::test]
async fn p7_dead_rows_and_invalid_indexes_are_put_in_order_and_others_left_alone() {
    for major in PgMajor::ALL {
        let database = database(
            major,
            "CREATE TABLE bloated (n int) WITH (autovacuum_enabled = off); INSERT INTO bloated SELECT generate_series(1, 10000);
             CREATE TABLE tidy (n int); INSERT INTO tidy VALUES (1), (1);",
        );
        let url = database.url();
        database
            .psql("DELETE FROM bloated WHERE n % 2 = 0")
            .unwrap();
        // It fails, and leaves an invalid index.
        assert!(
            database
                .psql("CREATE UNIQUE INDEX CONCURRENTLY tidy_n ON tidy (n)")
                .is_err()
        );
        database.psql("DELETE FROM tidy").unwrap();
        let dead = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'bloated'";
        wait_until("the statistics know", PATIENCE, || {
            ask(&database, dead) == "5000"
        })
        .unwrap();
        let vacuum = |only: &[&str]| CleanupAction::Vacuum {
            only: only.iter().map(|one| (*one).to_owned()).collect(),
            dead_percent: 20,
        };
        let (plan, _) = clean(&url, vacuum(&["tidy"])).await;
        assert_eq!(plan.items, []);
        let (plan, done) = clean(&url, vacuum(&[])).await;
        assert_eq!((names(&plan), done.removed), (vec!["public.bloated"], 1));
        wait_until("the dead rows are gone", PATIENCE, || {
            ask(&database, dead) == "0"
        })
        .unwrap();
        assert_eq!(clean(&url, vacuum(&[])).await.0.items, []);
        let reindex = |only: &[&str]| CleanupAction::Reindex {
            only: only.iter().map(|one| (*one).to_owned()).collect(),
        };
        assert_eq!(clean(&url, reindex(&["bloated"])).await.0.items, []);
        let (plan, done) = clean(&url, reindex(&[])).await;
        assert_eq!((names(&plan), done.removed), (vec!["public.tidy_n"], 1));
        let valid = ask(
            &database,
            "SELECT indisvalid FROM pg_index WHERE indexrelid = 'tidy_n'::regclass",
        );
        assert_eq!(valid, "t");
        assert_eq!(clean(&url, reindex(&[])).await.0.items, []);
    }
}

/// A server that died leaves temporary tables in the catalogue; those of sessions that live stay.
#[tokio::test]
async fn p7_temporary_tables_of_dead_sessions_go_and_those_of_living_ones_stay() {
    let options = PostgresOptions::new().setting("autovacuum", "off");
    let mut server = PostgresServer::start(PgMajor::V18, options).unwrap();
    let database = server.create_database("temporary").unwrap();
    let (url, programs) = (database.url(), server.bin_dir().to_owned());
    let tables = || {
        ask(
            &database,
            "SELECT COALESCE(string_agg(relname, ' ' ORDER BY relname), '') FROM pg_class WHERE relpersistence = 't' AND relname IN ('orphan', 'mine')",
        )
    };
    // The first sessions take the numbers that are first taken again.
    let mut first: Vec<Session> = (0..4)
        .map(|_| Session::new(&programs, &url, "SELECT 1;"))
        .collect();
    wait_until("they are there", PATIENCE, || {
        ask(&database, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'") == "5"
    })
    .unwrap();
    first.push(Session::new(
        &programs,
        &url,
        "CREATE TEMP TABLE orphan AS SELECT generate_series(1, 1000) n; CHECKPOINT;",
    ));
    wait_until("the table is there", PATIENCE, || tables() == "orphan").unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.kill_9().unwrap();
    server.start_again().unwrap();
    drop(first);
    assert_eq!(tables(), "orphan");
    let _living = Session::new(&programs, &url, "CREATE TEMP TABLE mine (n int);");
    wait_until("the other table is there", PATIENCE, || {
        tables() == "mine orphan"
    })
    .unwrap();
    let (plan, gone) = clean(&url, CleanupAction::TemporaryTables {}).await;
    assert_eq!((plan.items.len(), gone.removed), (1, 1), "{plan:?}");
    assert!(plan.items[0].name.contains("orphan"), "{plan:?}");
    assert_eq!(tables(), "mine");
    assert_eq!(
        clean(&url, CleanupAction::TemporaryTables {}).await.0.items,
        []
    );
}
