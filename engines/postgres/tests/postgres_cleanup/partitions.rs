//! Old partitions by the engine alone.

use std::sync::Arc;

use fettler_engine::{Cleanup as _, CleanupTerms};
use fettler_engine_postgres::PostgresEngine;
use fettler_model::{CleanupAction, CleanupRemoved};
use fettler_test_servers::{PgMajor, PostgresServer, TestDatabase};

use super::{Begun, Meddler, begin, context, database, nothing, number};

const METRICS: &str = "
CREATE TABLE metrics (id bigint, at timestamptz NOT NULL, seen timestamptz, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE metrics_old PARTITION OF metrics FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');
CREATE TABLE metrics_older PARTITION OF metrics FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
CREATE TABLE metrics_new PARTITION OF metrics FOR VALUES FROM ('2020-02-01') TO ('2100-01-01');
INSERT INTO metrics SELECT g, '2020-01-15'::timestamptz + interval '1 minute' * g, '2020-01-20', md5(g::text) FROM generate_series(1, 500) g;
INSERT INTO metrics SELECT g, '2019-01-15', '2019-01-20', md5(g::text) FROM generate_series(501, 600) g;
INSERT INTO metrics SELECT g, now(), now(), md5(g::text) FROM generate_series(601, 700) g;";
const SUM: &str = "SELECT count(*), md5(string_agg(m::text, ',' ORDER BY id)) FROM metrics m";
const ATTACHED: &str = "SELECT string_agg(inhrelid::regclass::text, ' ' ORDER BY inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'metrics'::regclass";

fn old(column: Option<&str>) -> CleanupAction {
    CleanupAction::Partitions {
        table: "metrics".to_owned(),
        column: column.map(str::to_owned),
        older_than_seconds: 365 * 86_400,
    }
}

async fn remove(begun: &Begun, fence: Arc<dyn fettler_engine::Fence>) -> CleanupRemoved {
    let (context, _folder) = context(fence);
    PostgresEngine::default()
        .remove(
            &context,
            &begun.target,
            &begun.plan,
            Some(&begun.archive),
            &CleanupTerms::default(),
        )
        .await
        .unwrap()
}

fn ask(database: &TestDatabase, sql: &str) -> String {
    database.psql(sql).unwrap().trim().to_owned()
}

#[tokio::test]
async fn p7_old_partitions_go_and_come_back() {
    for (major, more) in [
        (PgMajor::V15, "SELECT 1"),
        (PgMajor::V18, "SELECT 1"),
        (
            PgMajor::V18,
            "CREATE TABLE metrics_rest PARTITION OF metrics DEFAULT",
        ),
    ] {
        let database = database(major, METRICS);
        database.psql(more).unwrap();
        let (before, attached) = (ask(&database, SUM), ask(&database, ATTACHED));
        let begun = begin(&database.url(), old(None)).await;
        let names: Vec<&str> = begun
            .plan
            .items
            .iter()
            .map(|item| item.name.as_str())
            .collect();
        assert_eq!(names, ["public.metrics_older", "public.metrics_old"]);
        let removed = remove(&begun, nothing()).await;
        assert_eq!((removed.removed, removed.stayed()), (2, 0), "{removed:?}");
        assert_eq!(number(&database, "SELECT count(*) FROM metrics"), 100);
        let again = remove(&begun, nothing()).await;
        assert_eq!((again.removed, again.gone), (0, 2), "{again:?}");
        let undone = begun.undo().await.unwrap();
        assert_eq!((undone.restored, undone.taken), (600, 0), "{undone:?}");
        assert_eq!(ask(&database, SUM), before);
        assert_eq!(ask(&database, ATTACHED), attached);
        assert_eq!(begun.undo().await.unwrap().there, 600);
    }
}

/// What is written between the archive and the look after the detach keeps its partition.
#[tokio::test]
async fn p7_a_partition_that_was_written_to_is_put_back() {
    for change in [
        "UPDATE metrics SET v = 'changed' WHERE id = 7",
        "INSERT INTO metrics VALUES (9000, '2020-01-03', now(), 'late')",
        "DELETE FROM metrics WHERE id = 7",
    ] {
        let database = database(PgMajor::V18, METRICS);
        let begun = begin(&database.url(), old(None)).await;
        let url = database.url();
        let psql = PostgresServer::shared(PgMajor::V18).bin_dir().join("psql");
        let meddler = Meddler(move || {
            let status = std::process::Command::new(&psql)
                .args([&url, "-qXc", change])
                .stderr(std::process::Stdio::null())
                .status();
            status.unwrap();
        });
        let removed = remove(&begun, Arc::new(meddler)).await;
        assert_eq!(
            (removed.removed, removed.changed),
            (1, 1),
            "{change}: {removed:?}"
        );
        assert_eq!(ask(&database, ATTACHED), "metrics_new metrics_old");
        assert!(number(&database, "SELECT count(*) FROM metrics_old") >= 499);
    }
}

#[tokio::test]
async fn p7_a_partition_with_rows_inside_the_retention_is_no_part_of_the_plan() {
    let database = database(PgMajor::V18, METRICS);
    database
        .psql("UPDATE metrics SET seen = now() WHERE id = 3; UPDATE metrics SET seen = NULL WHERE id = 501")
        .unwrap();
    let begun = begin(&database.url(), old(Some("seen"))).await;
    assert_eq!(begun.plan.items, []);
    assert_eq!(begun.plan.notes.len(), 2, "{:?}", begun.plan);
}
