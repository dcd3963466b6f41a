//! The checks of PostgreSQL on real servers: each finds what it is there for, and a fresh server is left in peace.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::{
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{Look, keys, look, not_evaluable, open};
use fettler_checks::{Level, Library};
use fettler_model::Severity;
use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer, free_port, wait_until};

/// How long a server may take to show what was done to it.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// A client that stays, and is gone with the test.
struct Held(Child);

impl Held {
    fn new(mut command: Command, arguments: &[&str]) -> Self {
        Self(
            command
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &id])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn asked(server: &PostgresServer) -> Look {
    look(&server.url("postgres"), Level::Full, None)
}

fn sql(server: &PostgresServer, text: &str) {
    server.psql("postgres", text).unwrap();
}

/// The open findings of one check.
fn of(look: &Look, check: &str) -> Vec<String> {
    let mut found = keys(look);
    found.retain(|key| key == check || key.starts_with(&format!("{check}:")));
    found
}

/// Looks until a look shows this, and gives that one.
fn until(ask: impl Fn() -> Look, shown: impl Fn(&Look) -> bool) -> Look {
    let mut last = None;
    let waited = wait_until("the findings", SHOWN_WITHIN, || {
        let look = ask();
        let is_shown = shown(&look);
        last = Some(look);
        is_shown
    });
    let last = last.unwrap();
    assert!(
        waited.is_ok(),
        "{:#?} {:?}",
        keys(&last),
        not_evaluable(&last)
    );
    last
}

#[test]
fn a_fresh_server_gives_a_report_that_an_expert_would_sign() {
    for major in [PgMajor::V15, PgMajor::V18] {
        // As it comes: what the tests' servers set for speed is set back.
        let server = PostgresServer::start(major, PostgresOptions::new().durable()).unwrap();
        let look = asked(&server);
        assert_eq!(keys(&look), [""; 0], "{major:?}");
        // Of backups nothing can be said here.
        let ages = ["postgres.backup_age", "postgres.proof_age"];
        assert_eq!(not_evaluable(&look), ages, "{major:?}");
        assert!((90..100).contains(&look.score.points), "{:?}", look.score);
    }
}

#[test]
fn a_server_that_does_not_answer_is_a_critical_finding_and_nothing_passes() {
    let url = format!("postgres://nobody@127.0.0.1:{}/none", free_port());
    let look = look(&url, Level::Full, None);
    assert_eq!(keys(&look), ["postgres.reachable"]);
    assert_eq!(look.score.points, 0);
}

#[test]
fn a_role_without_rights_passes_nothing_that_it_cannot_see() {
    let server = PostgresServer::start(PgMajor::V18, PostgresOptions::new().durable()).unwrap();
    sql(
        &server,
        "CREATE ROLE poor LOGIN PASSWORD 'poor'; CREATE TABLE t (id serial PRIMARY KEY)",
    );
    let as_poor = || {
        look(
            &server.url_as("poor", "poor", "postgres"),
            Level::Full,
            None,
        )
    };
    let hidden = [
        "postgres.backup_age",
        "postgres.blocked_sessions",
        "postgres.connections_saturated",
        "postgres.idle_in_transaction",
        "postgres.long_transactions",
        "postgres.proof_age",
        "postgres.replication_lag",
        "postgres.role_connections_saturated",
        "postgres.sequence_exhaustion",
        "postgres.synchronous_standby_missing",
        "postgres.wal_directory_large",
    ];
    assert_eq!(not_evaluable(&as_poor()), hidden);
    sql(
        &server,
        "GRANT pg_monitor TO poor; GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO poor",
    );
    let ages = ["postgres.backup_age", "postgres.proof_age"];
    assert_eq!(not_evaluable(&as_poor()), ages);
}

#[test]
fn each_check_of_schema_and_statistics_fires_for_what_is_wrong_and_not_for_what_is_beside_it() {
    for major in [PgMajor::V15, PgMajor::V18] {
        let options = PostgresOptions::new()
            .setting("autovacuum_naptime", "1d")
            .setting("shared_buffers", "1MB");
        let server = PostgresServer::start(major, options).unwrap();
        sql(&server, include_str!("wrong.sql"));
        // Two rows have one value.
        server
            .psql(
                "postgres",
                "CREATE UNIQUE INDEX CONCURRENTLY never ON same (n)",
            )
            .unwrap_err();
        // Statistics are told when a session ends, and not at once.
        let look = until(
            || asked(&server),
            |look| {
                [
                    "cache_misses",
                    "temp_files",
                    "settings_pending",
                    "autovacuum_behind",
                ]
                .iter()
                .all(|check| !of(look, &format!("postgres.{check}")).is_empty())
            },
        );
        let mut found = keys(&look);
        found.sort();
        let expected = [
            "postgres.autovacuum_behind:public.dead",
            "postgres.autovacuum_off:public.dead",
            "postgres.cache_misses",
            "postgres.constraints_not_validated:public.loose.positive",
            "postgres.duplicate_indexes:public.twice_again",
            "postgres.durability_off",
            "postgres.foreign_keys_off:public.child.child_fk",
            "postgres.invalid_indexes:public.never",
            "postgres.never_analyzed:public.dead",
            "postgres.sequence_exhaustion:public.burnt_id_seq",
            "postgres.sequence_exhaustion:public.wide",
            "postgres.settings_pending:max_connections",
            "postgres.temp_files",
            "postgres.unlogged_tables:public.cache",
        ];
        assert_eq!(found, expected, "{major:?}");
        let burnt = open(&look)
            .into_iter()
            .find(|one| one.object == "public.burnt_id_seq")
            .unwrap();
        assert_eq!(burnt.severity, Severity::Critical);
        assert_eq!(burnt.evidence["limit_value"], 2_147_483_647_u64);
    }
}

/// Writes a check that ships into a folder of own ones, with another limit.
fn with_limit(folder: &Path, name: &str, changes: &[(&str, &str)]) {
    let mut text = Library::shipped_text(&format!("checks/postgres/{name}.yaml"))
        .unwrap()
        .to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{name}: {from}");
        text = text.replace(from, to);
    }
    // What fires is still what the question and the expression say; only the examples would not.
    std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
}

/// What sessions do to each other, with limits of a second where those that ship are minutes and hours.
#[test]
fn each_check_of_sessions_fires_while_somebody_stands_in_the_way() {
    let options = PostgresOptions::new()
        .durable()
        .setting("max_prepared_transactions", "5")
        .setting("max_connections", "20");
    let server = PostgresServer::start(PgMajor::V18, options).unwrap();
    sql(&server, "CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    let own = tempfile::tempdir().unwrap();
    let second = [("row.seconds > 300", "row.seconds >= 1")];
    with_limit(own.path(), "idle_in_transaction", &second);
    with_limit(own.path(), "prepared_transactions", &second);
    with_limit(
        own.path(),
        "long_transactions",
        &[
            ("'5 minutes'", "'1 second'"),
            ("row.seconds > 3600", "row.seconds >= 1"),
        ],
    );
    with_limit(
        own.path(),
        "blocked_sessions",
        &[
            ("'10 seconds'", "'1 second'"),
            ("row.seconds > 30\n", "row.seconds >= 1\n"),
        ],
    );
    let ask = || look(&server.url("postgres"), Level::Full, Some(own.path()));
    assert_eq!(keys(&ask()), [""; 0]);

    sql(
        &server,
        "BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'left'",
    );
    let psql = || server.command("psql", "postgres").unwrap();
    let long = Held::new(psql(), &["-Xqc", "SELECT pg_sleep(600)"]);
    let mut idle = Held::new(psql(), &["-Xq"]);
    let pipe = idle.0.stdin.as_mut().unwrap();
    pipe.write_all(b"BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE;\n")
        .unwrap();
    pipe.flush().unwrap();
    until(ask, |look| {
        [
            "long_transactions",
            "blocked_sessions",
            "prepared_transactions",
        ]
        .iter()
        .all(|check| !of(look, &format!("postgres.{check}")).is_empty())
    });
    // Whoever waited has the lock now, and does nothing with it.
    sql(&server, "ROLLBACK PREPARED 'left'");
    until(ask, |look| {
        of(look, "postgres.idle_in_transaction").len() == 1
            && of(look, "postgres.blocked_sessions").is_empty()
            && of(look, "postgres.prepared_transactions").is_empty()
    });
    drop((idle, long));

    // All connections but those of superusers, and all of one role's.
    sql(
        &server,
        "CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 1",
    );
    let mut as_few = psql();
    as_few.env("PGUSER", "few").env("PGPASSWORD", "few");
    let mut held = vec![Held::new(as_few, &["-Xqc", "SELECT pg_sleep(600)"])];
    held.extend((0..14).map(|_| Held::new(psql(), &["-Xqc", "SELECT pg_sleep(600)"])));
    until(ask, |look| {
        !of(look, "postgres.connections_saturated").is_empty()
            && of(look, "postgres.role_connections_saturated")
                == ["postgres.role_connections_saturated:role few"]
    });
}

#[test]
fn each_check_of_wal_and_replication_fires_and_is_silent_again() {
    let options = PostgresOptions::new()
        .durable()
        .setting("wal_level", "logical")
        .setting("max_wal_size", "32MB")
        .setting("min_wal_size", "32MB")
        .setting("archive_mode", "on")
        .setting("archive_command", "false")
        .setting("deadlock_timeout", "10ms");
    let mut server = PostgresServer::start(PgMajor::V18, options).unwrap();
    assert_eq!(keys(&asked(&server)), [""; 0]);
    sql(
        &server,
        "SELECT pg_create_physical_replication_slot('left_behind', true);
         SELECT pg_create_logical_replication_slot('nobody', 'pgoutput')",
    );
    // A reader that is stopped in its tracks.
    let folder = tempfile::tempdir().unwrap();
    let mut receive = server.command("pg_receivewal", "postgres").unwrap();
    receive.env("PGAPPNAME", "stopped_reader");
    let path = folder.path().display().to_string();
    let reader = Held::new(receive, &["--no-password", "-D", &path]);
    wait_until("the reader", SHOWN_WITHIN, || {
        let reading = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        server.psql("postgres", reading).unwrap() == "1"
    })
    .unwrap();
    assert_eq!(of(&asked(&server), "postgres.replication_lag"), [""; 0]);
    reader.signal("-STOP");
    for _ in 0..12 {
        sql(
            &server,
            "SELECT pg_logical_emit_message(false, 'x', 'x'); SELECT pg_switch_wal()",
        );
    }
    for _ in 0..22 {
        sql(&server, "CHECKPOINT");
    }
    // Sessions that wait for each other.
    for _ in 0..6 {
        let locks = |first: u8, second: u8| {
            let text = format!(
                "SELECT pg_advisory_lock({first}); SELECT pg_sleep(0.15); SELECT pg_advisory_lock({second})"
            );
            Held::new(
                server.command("psql", "postgres").unwrap(),
                &["-Xqc", &text],
            )
        };
        let mut both = [locks(1, 2), locks(2, 1)];
        for one in &mut both {
            one.0.wait().unwrap();
        }
    }
    until(
        || asked(&server),
        |look| {
            let found = keys(look);
            [
                "postgres.archiver_failing",
                "postgres.checkpoints_requested",
                "postgres.deadlocks",
                "postgres.inactive_slots:left_behind",
                "postgres.inactive_slots:nobody",
                "postgres.replication_lag:stopped_reader",
                "postgres.slots_retaining_wal:left_behind",
                "postgres.wal_directory_large",
            ]
            .iter()
            .all(|key| found.contains(&(*key).to_owned()))
        },
    );
    reader.signal("-CONT");
    drop(reader);

    // What the slot kept is let go.
    sql(&server, "ALTER SYSTEM SET archive_command = 'true'");
    sql(&server, "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
    sql(&server, "SELECT pg_reload_conf()");
    until(
        || {
            sql(&server, "SELECT pg_switch_wal()");
            sql(&server, "CHECKPOINT");
            asked(&server)
        },
        |look| {
            of(look, "postgres.lost_slots").contains(&"postgres.lost_slots:left_behind".to_owned())
        },
    );
    sql(
        &server,
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots",
    );
    sql(
        &server,
        "CREATE SUBSCRIPTION off_duty CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false)",
    );
    sql(
        &server,
        "ALTER SYSTEM SET synchronous_standby_names = 'nobody'",
    );
    sql(&server, "SELECT pg_reload_conf()");
    let look = until(
        || asked(&server),
        |look| {
            !of(look, "postgres.synchronous_standby_missing").is_empty()
                && of(look, "postgres.archiver_failing").is_empty()
        },
    );
    assert_eq!(
        of(&look, "postgres.subscriptions_not_working"),
        ["postgres.subscriptions_not_working:off_duty"]
    );
    for gone in [
        "inactive_slots",
        "slots_retaining_wal",
        "lost_slots",
        "replication_lag",
    ] {
        assert_eq!(of(&look, &format!("postgres.{gone}")), [""; 0]);
    }

    // A replica whose primary is nowhere.
    assert_eq!(of(&look, "postgres.replica_not_receiving"), [""; 0]);
    let local = "SET synchronous_commit = local;";
    sql(
        &server,
        &format!("{local} ALTER SYSTEM SET synchronous_standby_names = ''"),
    );
    sql(
        &server,
        "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'",
    );
    server.stop().unwrap();
    std::fs::write(server.data_dir().join("standby.signal"), "").unwrap();
    server.start_again().unwrap();
    let look = asked(&server);
    assert_eq!(
        of(&look, "postgres.replica_not_receiving"),
        ["postgres.replica_not_receiving"]
    );
}

/// What takes years, a new operating system or a dying disk is set by hand.
#[test]
fn each_check_of_integrity_and_of_identifiers_fires() {
    let mut server = PostgresServer::start(PgMajor::V18, PostgresOptions::new().durable()).unwrap();
    assert_eq!(keys(&asked(&server)), [""; 0]);
    // 2^32 - 1.2 milliards: as old as if so many had passed.
    sql(
        &server,
        "UPDATE pg_database SET datfrozenxid = '3094967296', datminmxid = '3094967296' WHERE datname = 'template1';
         ALTER SYSTEM SET autovacuum = off; SELECT pg_reload_conf();
         CREATE TABLE damaged (t text);
         INSERT INTO damaged SELECT repeat('x', 100) FROM generate_series(1, 500);
         CHECKPOINT",
    );
    let file = server
        .psql("postgres", "SELECT pg_relation_filepath('damaged')")
        .unwrap();
    server.stop().unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(server.data_dir().join(file))
        .unwrap();
    file.write_all_at(b"damage", 8192 + 4000).unwrap();
    server.start_again().unwrap();
    server
        .psql("postgres", "SELECT count(t) FROM damaged")
        .unwrap_err();
    let look = until(
        || asked(&server),
        |look| !of(look, "postgres.checksum_failures").is_empty(),
    );
    let found = keys(&look);
    for wanted in [
        "postgres.autovacuum_off:the server",
        "postgres.checksum_failures:postgres",
        "postgres.multixact_wraparound:template1",
        "postgres.transaction_wraparound:template1",
    ] {
        assert!(found.contains(&wanted.to_owned()), "{wanted}: {found:?}");
    }
    assert_eq!(found.len(), 4, "{found:?}");

    // A collation of ICU has a version; one of the C library mostly has none.
    let server = PostgresServer::start(PgMajor::V15, PostgresOptions::new().durable()).unwrap();
    sql(
        &server,
        "CREATE COLLATION own (provider = icu, locale = 'de'); CREATE TABLE sorted (t text COLLATE own)",
    );
    assert_eq!(keys(&asked(&server)), [""; 0]);
    sql(
        &server,
        "UPDATE pg_collation SET collversion = '0.1' WHERE collname = 'own'",
    );
    assert_eq!(
        keys(&asked(&server)),
        ["postgres.collation_changed:collation public.own"]
    );

    let without = PostgresOptions::new()
        .durable()
        .initdb_argument("--no-data-checksums");
    let server = PostgresServer::start(PgMajor::V18, without).unwrap();
    assert_eq!(keys(&asked(&server)), ["postgres.checksums_off"]);
}
