//! The checks of MongoDB on the servers of the tests, which speak its protocol: one in Java with an oplog, and FerretDB. What
//! they do not have (replica sets, WiredTiger, flow control, the profiler, operations that can be listed) is tried on answers of
//! the documented form, in the checks' files and below.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::{path::Path, time::Duration};

use bson::doc;
use common::{keys, look, not_evaluable, with_limit};
use fettler_checks::Level;
use fettler_test_servers::{MongodbClient, MongodbKind, MongodbServer, wait_until};

const SHOWN_WITHIN: Duration = Duration::from_secs(60);

fn found(server: &MongodbServer, own: &Path) -> Vec<String> {
    let mut found = keys(&look(&server.url(), Level::Full, Some(own)));
    found.sort();
    found
}

fn until(server: &MongodbServer, own: &Path, wanted: &[&str]) {
    let mut seen = Vec::new();
    let waited = wait_until("the findings", SHOWN_WITHIN, || {
        seen = found(server, own);
        seen == wanted
    });
    assert!(waited.is_ok(), "{seen:?} where {wanted:?} should be");
}

#[test]
fn a_fresh_server_gives_a_report_that_an_expert_would_sign() {
    for kind in MongodbKind::ALL {
        let server = MongodbServer::start(kind).unwrap();
        let look = look(&server.url(), Level::Full, None);
        assert_eq!(keys(&look), [""; 0], "{kind:?}");
        assert_eq!(
            not_evaluable(&look),
            ["mongodb.backup_age", "mongodb.proof_age"],
            "{kind:?}: {:?}",
            look.findings
        );
        // Nothing but what is not known of backups costs points.
        assert_eq!(look.score.points, 80, "{:?}", look.score);
    }
}

#[test]
fn an_index_that_another_one_covers_is_found() {
    for kind in MongodbKind::ALL {
        let server = MongodbServer::start(kind).unwrap();
        let own = tempfile::tempdir().unwrap();
        // The oplog of the server in Java has no size, and nothing can be said of it.
        let mut client = MongodbClient::new(server.port());
        client.insert("shop", "orders", [doc! { "a": 1, "b": 1 }]);
        until(&server, own.path(), &[]);
        client.run(
            "shop",
            doc! { "createIndexes": "orders", "indexes": [
                { "name": "a", "key": { "a": 1 } },
                { "name": "ab", "key": { "a": 1, "b": 1 } },
                { "name": "b_once", "key": { "b": 1 }, "unique": true },
            ] },
        );
        until(
            &server,
            own.path(),
            &["mongodb.redundant_indexes:shop.orders a"],
        );
    }
}

#[test]
fn each_check_that_the_server_with_an_oplog_can_answer_fires_with_a_lower_limit() {
    let server = MongodbServer::start(MongodbKind::WithOplog).unwrap();
    let own = tempfile::tempdir().unwrap();
    let mut client = MongodbClient::new(server.port());
    client.insert(
        "shop",
        "orders",
        (0..1000).map(|n| doc! { "a": n }).collect::<Vec<_>>(),
    );
    client.run(
        "shop",
        doc! { "createIndexes": "orders", "indexes": [{ "name": "a", "key": { "a": 1 } }] },
    );
    until(&server, own.path(), &[]);
    // A cursor that is not read to its end.
    client.run("shop", doc! { "find": "orders", "batchSize": 10 });
    for (name, from, to) in [
        (
            "unused_indexes",
            "row.counted_seconds > 30 * 86400",
            "row.counted_seconds >= 0",
        ),
        (
            "oplog_window",
            "row.window_seconds < 86400 && row.bytes * 10 > row.most_bytes * 8",
            "row.window_seconds < 86400 && row.bytes > 0",
        ),
        ("cursors_many", "row.open > 10000", "row.open > 0"),
        (
            "slow_answers",
            "row.answered_in_milliseconds > 250",
            "row.answered_in_milliseconds > 0",
        ),
    ] {
        with_limit(own.path(), "mongodb", name, &[(from, to)]);
    }
    until(
        &server,
        own.path(),
        &[
            "mongodb.cursors_many",
            "mongodb.oplog_window",
            "mongodb.slow_answers",
            "mongodb.unused_indexes:shop.orders a",
        ],
    );
}

#[test]
fn a_server_that_is_gone_is_told() {
    let mut server = MongodbServer::start(MongodbKind::WithOplog).unwrap();
    server.kill_9().unwrap();
    let look = look(&server.url(), Level::Full, None);
    assert_eq!(keys(&look), ["mongodb.reachable"]);
    assert_eq!(look.score.points, 0);
}
