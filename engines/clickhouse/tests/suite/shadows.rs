//! Where shadows come from when the usual statement is not there, and when they go because of what they cost.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use fettler_engine::{EngineError, testing::MemorySink};
use fettler_test_servers::{ClickhouseServer, ClickhouseVersion};
use rstest::rstest;

use crate::common::{
    V18, V26, back_up, back_up_into, facts, front, left_behind, mismatches, prove, run, server,
};

const REFUSED: &str = "Code: 62, e.displayText() = DB::Exception: Syntax error: failed at position 20: ATTACH PARTITION, e.what() = DB::Exception";

fn fill(server: &ClickhouseServer) {
    run(
        server,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (a UInt64, b Nullable(String)) ENGINE = MergeTree PARTITION BY intDiv(a, 400) ORDER BY a",
            "INSERT INTO shop.t SELECT number, if(number % 3 = 0, NULL, toString(number)) FROM numbers(1000)",
            "INSERT INTO shop.t SELECT number, 'second' FROM numbers(1000)",
            "CREATE TABLE shop.empty (a UInt64) ENGINE = MergeTree ORDER BY a",
            "CREATE DATABASE `o'dd.x`",
            "CREATE TABLE `o'dd.x`.`t/1` (a UInt8) ENGINE = ReplacingMergeTree ORDER BY a",
            "INSERT INTO `o'dd.x`.`t/1` VALUES (1)",
            "INSERT INTO `o'dd.x`.`t/1` VALUES (1)",
            "SYSTEM STOP MERGES `o'dd.x`.`t/1`",
        ],
    );
}

fn is_link(statement: &str) -> bool {
    statement.contains("ATTACH PARTITION")
}

/// What lies in a server's folder of frozen parts.
fn frozen(server: &ClickhouseServer) -> Vec<String> {
    let folder = server.data().join("shadow");
    let all = std::fs::read_dir(folder).into_iter().flatten();
    all.map(|one| one.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "increment.txt")
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_links_no_partitions_freezes_where_its_folders_are_seen() {
    let source = server(V18);
    fill(&source);
    let (_, linked) = back_up(&source.url()).await;
    let freezes = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&freezes);
    let url = front(&source, move |statement| {
        if statement.contains("FREEZE WITH NAME") {
            count.fetch_add(1, Ordering::Relaxed);
        }
        is_link(statement).then(|| (500, REFUSED.to_owned()))
    });
    let (backup, report) = back_up(&url).await;
    // A table without parts needs nothing.
    assert_eq!(freezes.load(Ordering::Relaxed), 2);
    assert_eq!(
        mismatches(&linked.objects, &report.objects),
        Vec::<String>::new()
    );
    let codes: Vec<&str> = report
        .warnings
        .iter()
        .map(|one| one.code.as_str())
        .collect();
    assert_eq!(codes, ["clickhouse.not_one_moment"], "no table was copied");
    assert_eq!(
        (left_behind(&source), frozen(&source)),
        (String::new(), Vec::new())
    );
    assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &source.url()).await),
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_links_and_nobody_freezes_the_server_copies() {
    let source = server(V18);
    fill(&source);
    let url = front(&source, |statement| {
        let refused = is_link(statement) || statement.contains("FREEZE");
        refused.then(|| (500, REFUSED.to_owned()))
    });
    let (backup, report) = back_up(&url).await;
    let copied = report.warnings.iter();
    let copied = copied.filter(|one| one.code == "clickhouse.copied").count();
    assert_eq!(copied, 3 + 1, "{:?}", report.warnings);
    assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());
    assert_eq!(left_behind(&source), "");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_that_is_too_large_to_be_dropped_is_dropped(
    #[values(V18, V26)] version: ClickhouseVersion,
) {
    // An empty part has some hundred bytes.
    let source = ClickhouseServer::start_with_limit_on_drops(version, 20_000).unwrap();
    fill(&source);
    source
        .query("INSERT INTO shop.t SELECT number % 1000, toString(cityHash64(number)) FROM numbers(20000)")
        .unwrap();
    // The server means it.
    source.query("DROP TABLE shop.t").unwrap_err();
    let (backup, report) = back_up(&source.url()).await;
    assert_eq!(left_behind(&source), "");
    assert_eq!(
        source.query("SELECT count() FROM shop.t").unwrap(),
        "22000\n"
    );
    assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());
    assert_eq!(left_behind(&source), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shadows_go_before_they_fill_the_servers_disk() {
    let source = server(V26);
    run(
        &source,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (a UInt64) ENGINE = MergeTree ORDER BY a",
            "INSERT INTO shop.t SELECT number FROM numbers(1000)",
        ],
    );
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let url = front(&source, move |statement| {
        statement.contains("FROM system.disks").then(|| {
            let free = match count.fetch_add(1, Ordering::Relaxed) {
                0 => "90000000000",
                // Less than a twentieth of the disk is left.
                _ => "4000000000",
            };
            let answer = format!("{{\"data\": [[\"default\", \"{free}\", \"100000000000\"]]}}");
            (200, answer)
        })
    });
    let error = back_up_into(&MemorySink::default(), &url)
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().contains("default"), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert_eq!(left_behind(&source), "");
}
