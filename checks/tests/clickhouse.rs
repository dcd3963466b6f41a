//! The checks of ClickHouse on real servers, the engine of today and the server of 2018: each that can be made to fire there
//! fires, and a fresh server is left in peace. What needs Keeper, a limit of connections or days of work is tried on lines of
//! the documented form alone, which stand in the checks' files.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::{path::Path, time::Duration};

use common::{keys, look, not_evaluable, with_limit};
use fettler_checks::Level;
use fettler_test_servers::{ClickhouseServer, ClickhouseVersion, wait_until};

const SHOWN_WITHIN: Duration = Duration::from_secs(60);

fn tell(server: &ClickhouseServer, statements: &[&str]) {
    for statement in statements {
        server.query(statement).unwrap();
    }
}

fn found(server: &ClickhouseServer, own: &Path) -> Vec<String> {
    let mut found = keys(&look(&server.url(), Level::Full, Some(own)));
    found.sort();
    found
}

fn until(server: &ClickhouseServer, own: &Path, wanted: &[&str]) {
    let mut seen = Vec::new();
    let waited = wait_until("the findings", SHOWN_WITHIN, || {
        seen = found(server, own);
        seen == wanted
    });
    assert!(waited.is_ok(), "{seen:?} where {wanted:?} should be");
}

/// A folder of checks of one's own, in which the disk of the test machine is not looked at: it may be nearly full.
fn own_checks() -> tempfile::TempDir {
    let own = tempfile::tempdir().unwrap();
    with_limit(
        own.path(),
        "clickhouse",
        "disk_nearly_full",
        &[("row.total_bytes * 15", "row.total_bytes * 0")],
    );
    own
}

#[test]
fn a_fresh_server_gives_a_report_that_an_expert_would_sign() {
    let own = own_checks();
    for version in [ClickhouseVersion::V26, ClickhouseVersion::V18] {
        let server = ClickhouseServer::start(version).unwrap();
        let look = look(&server.url(), Level::Full, Some(own.path()));
        assert_eq!(keys(&look), [""; 0], "{version:?}");
        assert_eq!(
            not_evaluable(&look),
            ["clickhouse.backup_age", "clickhouse.proof_age"],
            "{version:?}: {:?}",
            look.findings
        );
        assert!((90..100).contains(&look.score.points), "{:?}", look.score);
    }
}

#[test]
fn a_user_that_may_only_read_is_asked_too_and_numbers_stay_numbers() {
    let server = ClickhouseServer::start_with_password(ClickhouseVersion::V18, "secret").unwrap();
    let own = own_checks();
    let url = server.url().replace("default:", "reader:");
    let look = look(&url, Level::Full, Some(own.path()));
    assert_eq!(
        not_evaluable(&look),
        ["clickhouse.backup_age", "clickhouse.proof_age"],
        "{:?}",
        look.findings
    );
}

/// Inserts rows one by one until the server refuses.
fn insert_until_refused(server: &ClickhouseServer) {
    let refused = (0..40).any(|n| {
        server
            .query(&format!("INSERT INTO crowded VALUES ({n}, 1)"))
            .is_err()
    });
    assert!(refused);
}

#[test]
fn each_check_of_parts_and_inserts_fires() {
    for version in [ClickhouseVersion::V26, ClickhouseVersion::V18] {
        let server = ClickhouseServer::start(version).unwrap();
        let own = own_checks();
        tell(
            &server,
            &[
                "CREATE TABLE crowded (n UInt64, v UInt64) ENGINE = MergeTree ORDER BY n SETTINGS parts_to_delay_insert = 6, parts_to_throw_insert = 8",
                "CREATE TABLE calm (n UInt64) ENGINE = MergeTree ORDER BY n",
                "INSERT INTO calm VALUES (1)",
                "SYSTEM STOP MERGES",
            ],
        );
        until(&server, own.path(), &[]);
        insert_until_refused(&server);
        until(
            &server,
            own.path(),
            &[
                "clickhouse.inserts_rejected",
                "clickhouse.parts_per_partition:default.crowded tuple()",
            ],
        );
        tell(
            &server,
            &[
                "DROP TABLE crowded",
                "CREATE TABLE split (n UInt64) ENGINE = MergeTree PARTITION BY n ORDER BY n",
                "SYSTEM START MERGES",
            ],
        );
        with_limit(
            own.path(),
            "clickhouse",
            "too_many_partitions",
            &[
                ("partitions > 1000", "partitions > 101"),
                ("partitions > 100 ", "partitions > 2 "),
            ],
        );
        // The old server knows no limit for an insert, and the new one has one of 100.
        for from in [0, 60] {
            server
                .query(&format!(
                    "INSERT INTO split SELECT number + {from} FROM numbers(60)"
                ))
                .unwrap();
        }
        until(
            &server,
            own.path(),
            &[
                "clickhouse.inserts_rejected",
                "clickhouse.too_many_partitions:default.split",
            ],
        );
    }
}

#[test]
fn a_mutation_that_fails_or_is_not_done_is_found() {
    let server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    let own = own_checks();
    tell(
        &server,
        &[
            "CREATE TABLE t (n UInt64, v UInt64) ENGINE = MergeTree ORDER BY n",
            "INSERT INTO t VALUES (1, 1)",
            "ALTER TABLE t UPDATE v = 2 WHERE n = 1",
        ],
    );
    until(&server, own.path(), &[]);
    // The engine waits for it, and tells that it fails; the mutation stays.
    let failing = "ALTER TABLE t UPDATE v = throwIf(n > 0) WHERE 1";
    assert!(server.query(failing).is_err());
    let wait = wait_until("the mutation to fail", SHOWN_WITHIN, || {
        found(&server, own.path())
            .iter()
            .any(|key| key.starts_with("clickhouse.mutations_stuck:default.t mutation_"))
    });
    wait.unwrap();

    let server = ClickhouseServer::start(ClickhouseVersion::V18).unwrap();
    tell(
        &server,
        &[
            "CREATE TABLE t (n UInt64, v UInt64) ENGINE = MergeTree ORDER BY n",
            "INSERT INTO t VALUES (1, 1)",
            "SYSTEM STOP MERGES",
            "ALTER TABLE t UPDATE v = 2 WHERE n = 1",
        ],
    );
    until(&server, own.path(), &[]);
    with_limit(
        own.path(),
        "clickhouse",
        "mutations_stuck",
        &[("row.seconds > 6 * 3600", "row.seconds >= 0")],
    );
    let wait = wait_until("the mutation to be found", SHOWN_WITHIN, || {
        found(&server, own.path())
            .iter()
            .any(|key| key.starts_with("clickhouse.mutations_stuck:default.t mutation_"))
    });
    wait.unwrap();
}

#[test]
fn damaged_and_broken_parts_are_found() {
    let mut server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    let own = own_checks();
    tell(
        &server,
        &[
            "CREATE TABLE lost (n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS min_bytes_for_wide_part = 0",
            "CREATE TABLE hurt (n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS min_bytes_for_wide_part = 0",
            "INSERT INTO lost SELECT number FROM numbers(1000)",
            "INSERT INTO hurt SELECT number FROM numbers(1000)",
        ],
    );
    until(&server, own.path(), &[]);
    let place = |table: &str| {
        let sql = format!("SELECT path FROM system.parts WHERE active AND table = '{table}'");
        Path::new(server.query(&sql).unwrap().trim()).join("n.bin")
    };
    let (lost, hurt) = (place("lost"), place("hurt"));
    server.kill_9().unwrap();
    std::fs::remove_file(lost).unwrap();
    let mut bytes = std::fs::read(&hurt).unwrap();
    // The first bytes of a block are its checksum.
    bytes[0] ^= 0xff;
    std::fs::write(hurt, bytes).unwrap();
    server.start_again().unwrap();
    let _ = server.query("SELECT count() FROM lost");
    assert!(server.query("SELECT sum(n) FROM hurt").is_err());
    let wanted = [
        "clickhouse.broken_parts:default.lost broken-on-start",
        "clickhouse.data_damaged:CHECKSUM_DOESNT_MATCH",
    ];
    wait_until("the damage to be found", SHOWN_WITHIN, || {
        let found = found(&server, own.path());
        wanted.iter().all(|one| found.iter().any(|key| key == one))
    })
    .unwrap_or_else(|_| panic!("{:?}", found(&server, own.path())));
}

#[test]
fn each_check_of_what_is_refused_fires() {
    let server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    let own = own_checks();
    tell(
        &server,
        &[
            "CREATE DICTIONARY names (id UInt64, name String) PRIMARY KEY id SOURCE(CLICKHOUSE(TABLE 'missing')) LAYOUT(FLAT()) LIFETIME(0)",
        ],
    );
    until(&server, own.path(), &[]);
    for refused in [
        "SYSTEM RELOAD DICTIONARY names",
        "SELECT groupArray(number) FROM numbers(10000000) SETTINGS max_memory_usage = 1000000",
        "CREATE TABLE replicated (n UInt64) ENGINE = ReplicatedMergeTree('/a', 'b') ORDER BY n",
    ] {
        assert!(server.query(refused).is_err(), "{refused}");
    }
    let mut wanted = vec![
        "clickhouse.dictionaries_failed:default.names",
        "clickhouse.keeper_errors:NO_ZOOKEEPER",
        "clickhouse.memory_limit_reached",
    ];
    until(&server, own.path(), &wanted);
    for _ in 0..150 {
        let _ = server.query("SELECT nothing");
    }
    wanted.insert(1, "clickhouse.failed_queries");
    until(&server, own.path(), &wanted);
}

#[test]
fn each_check_of_what_runs_and_of_what_is_left_fires_with_a_lower_limit() {
    let server = ClickhouseServer::start(ClickhouseVersion::V26).unwrap();
    let own = own_checks();
    tell(
        &server,
        &[
            "CREATE TABLE t (n UInt64, v UInt64) ENGINE = MergeTree ORDER BY n",
            "INSERT INTO t SELECT number, 1 FROM numbers(30)",
            "CREATE TABLE system.own_log (n UInt64) ENGINE = MergeTree ORDER BY n",
            "INSERT INTO system.own_log SELECT number FROM numbers(100000)",
        ],
    );
    until(&server, own.path(), &[]);
    for (name, from, to) in [
        (
            "disk_nearly_full",
            "row.total_bytes * 15",
            "row.total_bytes * 101",
        ),
        (
            "memory_nearly_full",
            "row.used_bytes * 100 > row.most_bytes * 85",
            "row.used_bytes * 1000000 > row.most_bytes",
        ),
        (
            "log_tables_large",
            "row.bytes > 10737418240",
            "row.bytes > 1",
        ),
        ("long_queries", "row.seconds > 3600", "row.seconds >= 1"),
        ("merges_long", "row.seconds > 6 * 3600", "row.seconds >= 0"),
        (
            "connections_nearly_full",
            "row.most_connections > 0 && row.connections * 10 >=",
            "row.most_connections > 0 && row.queries * 100000 >=",
        ),
        (
            "slow_answers",
            "row.answered_in_milliseconds > 250",
            "row.answered_in_milliseconds > 0",
        ),
    ] {
        with_limit(own.path(), "clickhouse", name, &[(from, to)]);
    }
    until(
        &server,
        own.path(),
        &[
            "clickhouse.connections_nearly_full",
            "clickhouse.disk_nearly_full:backups",
            "clickhouse.disk_nearly_full:default",
            "clickhouse.log_tables_large:own_log",
            "clickhouse.memory_nearly_full",
            "clickhouse.slow_answers",
        ],
    );
    let is_found = std::sync::atomic::AtomicBool::new(false);
    let goes_on = || !is_found.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        // A block may sleep for 3 s at most, and the engine waits for a mutation: both are repeated.
        scope.spawn(|| {
            while goes_on() {
                let _ = server.query("ALTER TABLE t UPDATE v = sleepEachRow(0.09) WHERE 1");
            }
        });
        scope.spawn(|| {
            while goes_on() {
                let _ = server.query_with(
                    "SELECT sum(sleepEachRow(0.2)) FROM numbers(100)",
                    "&max_block_size=10",
                );
            }
        });
        let found = [
            "clickhouse.long_queries:",
            "clickhouse.merges_long:default.t ",
        ]
        .map(|one| {
            wait_until(one, SHOWN_WITHIN, || {
                found(&server, own.path())
                    .iter()
                    .any(|key| key.starts_with(one))
            })
        });
        is_found.store(true, std::sync::atomic::Ordering::Relaxed);
        for one in found {
            one.unwrap();
        }
    });
}
