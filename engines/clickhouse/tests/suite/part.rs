//! One database, one table, one partition come back; a database comes back under another name.

use fettler_engine::RestoreOptions;
use fettler_test_servers::{ClickhouseServer, ClickhouseVersion};
use rstest::rstest;

use crate::common::{V18, V26, back_up, fill, left_behind, only, run, server, try_restore};

fn count(server: &ClickhouseServer, what: &str) -> u64 {
    let text = server
        .query(&format!("SELECT count() FROM {what}"))
        .unwrap();
    text.trim().parse().unwrap()
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_table_and_one_partition_come_back(#[values(V18, V26)] version: ClickhouseVersion) {
    let source = server(version);
    fill(&source);
    let (backup, report) = back_up(&source.url()).await;
    let copy = server(version);
    try_restore(&backup, &report, &copy.url(), &only(&["shop.summing"]))
        .await
        .unwrap();
    let tables = copy
        .query("SELECT name FROM system.tables WHERE database = 'shop'")
        .unwrap();
    assert_eq!(tables, "summing\n");
    // A partition into nothing makes the table.
    try_restore(
        &backup,
        &report,
        &copy.url(),
        &only(&["shop.events/202602"]),
    )
    .await
    .unwrap();
    let all = count(&source, "shop.events WHERE toYYYYMM(day) = 202602");
    assert_eq!(count(&copy, "shop.events"), all);
    // Into a table that has others beside it, and past a view that would count its rows.
    run(
        &source,
        &[
            "CREATE MATERIALIZED VIEW shop.watcher ENGINE = MergeTree ORDER BY id AS SELECT id FROM shop.events",
            "ALTER TABLE shop.events DROP PARTITION 202602",
        ],
    );
    let before = count(&source, "shop.events");
    try_restore(
        &backup,
        &report,
        &source.url(),
        &only(&["shop.events/202602"]),
    )
    .await
    .unwrap();
    assert_eq!(count(&source, "shop.events"), before + all);
    assert_eq!(count(&source, "shop.watcher"), 0);
    // Rows that are there are in the way, unless they may be replaced.
    let error = try_restore(
        &backup,
        &report,
        &source.url(),
        &only(&["shop.events/202602"]),
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains("202602"), "{error}");
    run(
        &source,
        &[
            "INSERT INTO shop.events (day, id, note) SELECT toDate('2026-02-02'), number, 'more' FROM numbers(10)",
        ],
    );
    let options = RestoreOptions {
        overwrite: true,
        ..only(&["shop.events/202602"])
    };
    try_restore(&backup, &report, &source.url(), &options)
        .await
        .unwrap();
    assert_eq!(count(&source, "shop.events"), before + all);
    assert_eq!(count(&source, "shop.events WHERE twice != id * 2"), 0);
    assert_eq!(left_behind(&source), "");
    assert_eq!(left_behind(&copy), "");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_comes_back_under_another_name(#[values(V18, V26)] version: ClickhouseVersion) {
    let source = server(version);
    fill(&source);
    // The URL narrows the backup to one database.
    let (backup, report) = back_up(&format!("{}shop", source.url())).await;
    assert!(
        report
            .objects
            .iter()
            .all(|object| object.name.starts_with("shop."))
    );
    try_restore(
        &backup,
        &report,
        &format!("{}other", source.url()),
        &RestoreOptions::default(),
    )
    .await
    .unwrap();
    assert_eq!(
        count(&source, "other.events"),
        count(&source, "shop.events")
    );
    assert_eq!(count(&source, "other.kept"), count(&source, "shop.kept"));
    // Its views read its own tables.
    run(&source, &["INSERT INTO other.summing VALUES (99, 1)"]);
    assert_eq!(count(&source, "other.kept WHERE k = 99"), 1);
    assert_eq!(count(&source, "shop.kept WHERE k = 99"), 0);
    let definition = source
        .query("SELECT create_table_query FROM system.tables WHERE database = 'other' AND name = 'a_view'")
        .unwrap();
    assert!(!definition.contains("shop"), "{definition}");
}
