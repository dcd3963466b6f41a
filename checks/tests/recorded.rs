//! Checks whose servers cannot be had for tests, on answers of the form that the servers' documentation gives: an answer of a
//! server that is well, in which nothing is found, and the same with the numbers that the check is there for.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use fettler_checks::Library;
use fettler_engine::{Picked, Refusal, Row};
use serde_json::{Value, json};

/// The lines that a check's question makes of answers.
fn rows(id: &str, variant: usize, answers: &[Value]) -> Result<Vec<Row>, Refusal> {
    let library = Library::shipped();
    let question = &library.get(id).unwrap().variants[variant].question;
    let requests = Picked::read(question, |line| {
        line.starts_with('{') || line.starts_with("GET ")
    })
    .unwrap_or_else(|error| panic!("{id}: {error}"));
    assert_eq!(requests.len(), answers.len(), "{id}");
    let asked: Vec<(Picked, Value)> = requests.into_iter().zip(answers.iter().cloned()).collect();
    Picked::rows(&asked)
}

/// How many of the lines are findings. A line that cannot be judged is a panic.
fn found(id: &str, variant: usize, answers: &[Value]) -> usize {
    let library = Library::shipped();
    let check = library.get(id).unwrap();
    rows(id, variant, answers)
        .unwrap_or_else(|error| panic!("{id}: {error}"))
        .iter()
        .filter(|row| {
            for (graver, _) in &check.graver {
                graver
                    .holds(row)
                    .unwrap_or_else(|error| panic!("{id}: {error}"));
            }
            check
                .when
                .holds(row)
                .unwrap_or_else(|error| panic!("{id}: {error}"))
        })
        .count()
}

/// An answer with other values at some places.
fn with(answer: &Value, changes: &[(&str, Value)]) -> Value {
    let mut answer = answer.clone();
    for (pointer, value) in changes {
        *answer
            .pointer_mut(pointer)
            .unwrap_or_else(|| panic!("no {pointer} in the answer")) = value.clone();
    }
    answer
}

/// `serverStatus` of MongoDB 7.0 as its manual describes it, shortened to what checks read, as the engine
/// hands it on: dates in seconds, doubles without a fraction as whole numbers.
fn server_status() -> Value {
    json!({
        "host": "db1", "version": "7.0.14", "process": "mongod", "uptime": 864_000, "localTime": 1_795_400_000,
        "asserts": {"regular": 0, "warning": 0, "msg": 0, "user": 311, "tripwire": 0, "rollovers": 0},
        "connections": {"current": 27, "available": 51173, "totalCreated": 409, "active": 9, "exhaustIsMaster": 0},
        "electionMetrics": {
            "stepUpCmd": {"called": 0, "successful": 0},
            "electionTimeout": {"called": 1, "successful": 1},
            "numStepDownsCausedByHigherTerm": 0, "numCatchUps": 0,
        },
        "extra_info": {"note": "fields vary by platform", "page_faults": 811},
        "flowControl": {"enabled": true, "targetRateLimit": 1_000_000_000, "timeAcquiringMicros": 40, "isLagged": false, "isLaggedCount": 0, "isLaggedTimeMicros": 0},
        "globalLock": {
            "totalTime": 864_000_000_000_i64,
            "currentQueue": {"total": 0, "readers": 0, "writers": 0},
            "activeClients": {"total": 0, "readers": 0, "writers": 0},
        },
        "mem": {"bits": 64, "resident": 4100, "virtual": 6100, "supported": true},
        "metrics": {
            "cursor": {"timedOut": 3, "open": {"noTimeout": 0, "pinned": 1, "total": 4}},
            "document": {"deleted": 7, "inserted": 90_000, "returned": 2_000_000, "updated": 400},
            "queryExecutor": {"scanned": 2_100_000, "scannedObjects": 2_200_000},
        },
        "wiredTiger": {
            "cache": {
                "bytes currently in the cache": 3_000_000_000_i64,
                "maximum bytes configured": 8_000_000_000_i64,
                "tracked dirty bytes in the cache": 20_000_000,
                "pages evicted by application threads": 12,
                "modified pages evicted": 90_000,
                "unmodified pages evicted": 800_000,
            },
            "concurrentTransactions": {
                "write": {"out": 1, "available": 127, "totalTickets": 128},
                "read": {"out": 2, "available": 126, "totalTickets": 128},
                "monitor": {"timesDecreased": 0, "timesIncreased": 0, "totalAmountDecreased": 0, "totalAmountIncreased": 0},
            },
            "transaction": {"transaction checkpoint most recent time (msecs)": 311},
        },
        "ok": 1.0,
    })
}

/// A check, how many findings it makes, and the answers that it is shown.
type Case<'a> = (&'a str, usize, Vec<(&'a str, Value)>);

#[test]
fn what_mongodb_tells_of_itself_is_judged() {
    let well = server_status();
    let cases: [Case; 13] = [
        (
            "mongodb.asserts_raised",
            0,
            vec![("/asserts/regular", json!(1))],
        ),
        (
            "mongodb.connections_nearly_full",
            0,
            vec![("/connections/available", json!(3))],
        ),
        (
            "mongodb.elections_frequent",
            0,
            vec![("/electionMetrics/electionTimeout/called", json!(90))],
        ),
        (
            "mongodb.page_faults",
            0,
            vec![("/extra_info/page_faults", json!(900_000_000))],
        ),
        (
            "mongodb.flow_control",
            0,
            vec![("/flowControl/isLagged", json!(true))],
        ),
        (
            "mongodb.operations_queued",
            0,
            vec![("/globalLock/currentQueue/readers", json!(400))],
        ),
        (
            "mongodb.cursors_many",
            0,
            vec![("/metrics/cursor/open/total", json!(20_000))],
        ),
        (
            "mongodb.scans_many",
            0,
            vec![
                (
                    "/metrics/queryExecutor/scannedObjects",
                    json!(9_000_000_000_i64),
                ),
                ("/metrics/document/returned", json!(4)),
            ],
        ),
        (
            "mongodb.cache_dirty",
            0,
            vec![(
                "/wiredTiger/cache/tracked dirty bytes in the cache",
                json!(1_700_000_000),
            )],
        ),
        (
            "mongodb.cache_evicted_by_clients",
            0,
            vec![(
                "/wiredTiger/cache/pages evicted by application threads",
                json!(800_000),
            )],
        ),
        (
            "mongodb.tickets_exhausted",
            0,
            vec![
                (
                    "/wiredTiger/concurrentTransactions/write/available",
                    json!(0),
                ),
                ("/globalLock/currentQueue/total", json!(70)),
            ],
        ),
        (
            "mongodb.tickets_exhausted",
            1,
            vec![
                (
                    "/wiredTiger/concurrentTransactions/write/available",
                    json!(0),
                ),
                ("/globalLock/currentQueue/total", json!(70)),
            ],
        ),
        (
            "mongodb.checkpoints_slow",
            0,
            vec![(
                "/wiredTiger/transaction/transaction checkpoint most recent time (msecs)",
                json!(90_000),
            )],
        ),
    ];
    for (id, variant, changes) in cases {
        // The versions before 7 have no `monitor` beside the tickets.
        let mut well = well.clone();
        if id == "mongodb.tickets_exhausted" && variant == 0 {
            well["wiredTiger"]["concurrentTransactions"]
                .as_object_mut()
                .unwrap()
                .remove("monitor");
        }
        assert_eq!(found(id, variant, std::slice::from_ref(&well)), 0, "{id}");
        assert_eq!(found(id, variant, &[with(&well, &changes)]), 1, "{id}");
    }
    // From 8.0 on tickets and checkpoints stand elsewhere.
    let mut newer = well.clone();
    newer["queues"] = json!({"execution": {
        "write": {"out": 128, "available": 0, "totalTickets": 128, "normalPriority": {"addedToQueue": 4}},
        "read": {"out": 0, "available": 128, "totalTickets": 128, "normalPriority": {"addedToQueue": 0}},
        "monitor": {"timesDecreased": 0},
    }});
    newer["wiredTiger"]["checkpoint"] = json!({"most recent time (msecs)": 400_000});
    assert_eq!(found("mongodb.tickets_exhausted", 2, &[newer.clone()]), 0);
    newer["globalLock"]["currentQueue"]["total"] = json!(40);
    assert_eq!(found("mongodb.tickets_exhausted", 2, &[newer.clone()]), 1);
    assert_eq!(found("mongodb.checkpoints_slow", 0, &[newer]), 1);

    let host = json!({"system": {"hostname": "db1", "numCores": 8, "memSizeMB": 16_000, "memLimitMB": 8_000}, "ok": 1.0});
    let memory = "mongodb.memory_nearly_full";
    assert_eq!(found(memory, 0, &[host.clone(), well.clone()]), 0);
    assert_eq!(
        found(
            memory,
            0,
            &[host, with(&well, &[("/mem/resident", json!(7_900))])]
        ),
        1
    );

    let stats = json!({"db": "admin", "collections": 3, "fsUsedSize": 40_000, "fsTotalSize": 100_000, "ok": 1.0});
    let disk = "mongodb.disk_nearly_full";
    assert_eq!(found(disk, 0, std::slice::from_ref(&stats)), 0);
    assert_eq!(
        found(disk, 0, &[with(&stats, &[("/fsUsedSize", json!(99_000))])]),
        1
    );
}

#[test]
fn a_server_without_the_part_that_is_asked_about_is_told_from_one_that_is_well() {
    let little = json!({"host": "db1", "uptime": 9, "connections": {"current": 1}, "ok": 1.0});
    for id in [
        "mongodb.cache_dirty",
        "mongodb.connections_nearly_full",
        "mongodb.flow_control",
        "mongodb.tickets_exhausted",
    ] {
        assert_eq!(
            rows(id, 0, std::slice::from_ref(&little)),
            Err(Refusal::OtherVersion),
            "{id}"
        );
    }
}

#[test]
fn operations_of_mongodb_are_judged_by_how_long_they_run() {
    // `currentOp` of MongoDB 7.0, shortened.
    let answer = |seconds: u64| {
        json!({"inprog": [{
            "type": "op", "host": "db1:27017", "desc": "conn77", "connectionId": 77, "active": true, "opid": 311,
            "secs_running": seconds, "microsecs_running": seconds * 1_000_000, "op": "query", "ns": "shop.orders",
            "waitingForLock": false, "progress": {"done": 40, "total": 90},
        }], "ok": 1.0})
    };
    for id in ["mongodb.long_operations", "mongodb.index_builds_long"] {
        assert_eq!(found(id, 0, &[answer(70)]), 0, "{id}");
        assert_eq!(found(id, 0, &[answer(7000)]), 1, "{id}");
        assert_eq!(found(id, 0, &[json!({"inprog": [], "ok": 1.0})]), 0);
        // An answer without the list is not taken for an empty one.
        assert!(matches!(
            rows(id, 0, &[json!({"ok": 1.0})]),
            Err(Refusal::Failed(_))
        ));
    }
}

#[test]
fn lifecycles_reports_and_tasks_of_elasticsearch_are_judged() {
    // Elasticsearch's explanation of its lifecycles, and OpenSearch's.
    let ilm = json!({"indices": {"logs-000007": {
        "index": "logs-000007", "managed": true, "policy": "logs", "phase": "hot", "action": "rollover",
        "step": "ERROR", "failed_step": "check-rollover-ready",
        "step_info": {"type": "illegal_argument_exception", "reason": "no alias"},
    }}});
    assert_eq!(found("elasticsearch.lifecycle_failed", 0, &[ilm]), 1);
    assert_eq!(
        found(
            "elasticsearch.lifecycle_failed",
            0,
            &[json!({"indices": {}})]
        ),
        0
    );
    let ism = |state: &str| {
        json!({
            "logs-000007": {
                "index.plugins.index_state_management.policy_id": "logs", "index": "logs-000007", "policy_id": "logs",
                "action": {"name": "rollover", "failed": false}, "step": {"name": "attempt_rollover", "step_status": state},
                "info": {"message": "x"}, "enabled": true,
            },
            "total_managed_indices": 1,
        })
    };
    assert_eq!(
        found("elasticsearch.lifecycle_failed", 1, &[ism("failed")]),
        1
    );
    assert_eq!(
        found("elasticsearch.lifecycle_failed", 1, &[ism("completed")]),
        0
    );

    let report = |status: &str| {
        json!({"status": status, "cluster_name": "c", "indicators": {
            "master_is_stable": {"status": status, "symptom": "The elected master has changed 5 times in the last 30m"},
            "disk": {"status": "red", "symptom": "told by another check"},
        }})
    };
    assert_eq!(
        found("elasticsearch.health_report", 0, &[report("yellow")]),
        1
    );
    assert_eq!(
        found("elasticsearch.health_report", 0, &[report("green")]),
        0
    );

    let tasks = |nanoseconds: u64| {
        json!({"nodes": {"abc": {"name": "n1", "tasks": {"abc:77": {
            "node": "abc", "id": 77, "type": "transport", "action": "indices:data/read/search",
            "start_time_in_millis": 1_795_400_000_000_u64, "running_time_in_nanos": nanoseconds, "cancellable": true,
        }}}}})
    };
    assert_eq!(
        found("elasticsearch.searches_long", 0, &[tasks(900_000_000_000)]),
        1
    );
    assert_eq!(
        found("elasticsearch.searches_long", 0, &[tasks(900_000_000)]),
        0
    );
    assert_eq!(
        found("elasticsearch.searches_long", 0, &[json!({"nodes": {}})]),
        0
    );
}

/// Every question of trees can be read, and what it makes has the names that its check uses.
#[test]
fn each_question_of_a_tree_gives_the_names_that_its_check_uses() {
    let library = Library::shipped();
    let mut seen = 0;
    for check in library.iter() {
        for variant in &check.variants {
            let question = variant.question.trim();
            if !question.starts_with('{') && !question.starts_with("GET ") {
                continue;
            }
            seen += 1;
            let is_request = |line: &str| line.starts_with('{') || line.starts_with("GET ");
            Picked::read(question, is_request)
                .unwrap_or_else(|error| panic!("{}: {error}", check.id));
            let names: Vec<&str> = question
                .lines()
                .filter(|line| !is_request(line.trim()))
                .filter_map(|line| line.trim().split_once(": "))
                .map(|(name, _)| name)
                .collect();
            for example in check.examples.fires.iter().chain(&check.examples.passes) {
                for name in example.keys() {
                    assert!(names.contains(&name.as_str()), "{}: {name}", check.id);
                }
            }
        }
    }
    assert!(seen > 30, "{seen}");
}
