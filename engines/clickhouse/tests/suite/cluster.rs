//! Clusters of real servers of 2018, each on an address of its own: all shards are one backup, which comes back into a cluster of
//! any size, or into one server.

use std::sync::Arc;

use fettler_engine::{
    Artefact, BackupOptions, BackupReport, DatabaseEngine as _, EngineError, PreflightLevel,
    RestoreOptions,
    testing::{MemorySink, MemorySource},
};
use fettler_model::{Engine, ObjectFacts, Problem};
use fettler_test_servers::ClickhouseServer;

use crate::common::{
    Attempt, V18, back_up, back_up_into, engine, facts, left_behind, mismatches, only, prove,
    prove_after, run, server, target, try_restore,
};

/// The URL of a cluster, by one of its servers.
fn url(cluster: &[ClickhouseServer]) -> String {
    format!("{}?cluster=shards", cluster[0].url())
}

fn shards(count: u8) -> Vec<ClickhouseServer> {
    ClickhouseServer::start_shards(count).unwrap()
}

/// Rows that are spread over the shards, a table over all of them, and what only one of them has.
fn fill(cluster: &[ClickhouseServer]) {
    for (number, server) in cluster.iter().enumerate() {
        run(
            server,
            &[
                "CREATE DATABASE shop",
                "CREATE TABLE shop.orders (id UInt64, name String) ENGINE = MergeTree PARTITION BY id % 3 ORDER BY id",
                "CREATE TABLE shop.log (a UInt64) ENGINE = Log",
                "CREATE TABLE shop.all AS shop.orders ENGINE = Distributed(shards, shop, orders, id)",
                "CREATE VIEW shop.few AS SELECT id FROM shop.all WHERE id < 10",
                &format!("INSERT INTO shop.log SELECT {number} FROM numbers(100)"),
                &format!(
                    "INSERT INTO shop.orders SELECT number * {count} + {number}, toString(number) FROM numbers({})",
                    1000 * (number + 1),
                    count = cluster.len(),
                ),
            ],
        );
    }
    run(
        &cluster[1],
        &[
            "CREATE TABLE shop.here (a UInt64) ENGINE = MergeTree ORDER BY a",
            "INSERT INTO shop.here SELECT number FROM numbers(77)",
        ],
    );
}

fn ask(server: &ClickhouseServer, question: &str) -> String {
    server
        .query(&format!("SELECT {question}"))
        .unwrap()
        .trim()
        .to_owned()
}

fn of_table<'a>(report: &'a BackupReport, name: &str) -> &'a ObjectFacts {
    let all = &report.objects;
    let found = all
        .iter()
        .find(|one| one.name == name && one.fingerprint.is_some());
    found.unwrap()
}

async fn restored(backup: &MemorySource, report: &BackupReport, url: &str) -> Vec<String> {
    let done = try_restore(backup, report, url, &RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(done.failed_statements, Vec::<String>::new());
    assert_eq!(done.rows, 3000 + 200 + 77);
    done.warnings.into_iter().map(|one| one.code).collect()
}

const HASH: &str = "count(), sum(cityHash64(id, name)) FROM shop.all";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_cluster_is_one_backup_and_comes_back_into_clusters_of_any_size() {
    let source = shards(2);
    fill(&source);
    let (backup, report) = back_up(&url(&source)).await;
    assert_eq!(
        of_table(&report, "shop.orders").independent_rows,
        Some(3000)
    );
    assert_eq!(of_table(&report, "shop.log").independent_rows, Some(200));
    assert_eq!(of_table(&report, "shop.here").independent_rows, Some(77));
    assert_eq!(report.position["shards"].as_array().unwrap().len(), 2);
    for server in &source {
        assert_eq!(left_behind(server), "");
    }
    // In one server all rows are together, and the sums are the same.
    assert_eq!(
        prove(&backup, &report, &source[0]).await,
        Vec::<String>::new()
    );
    let changes = ["INSERT INTO {db}shop.orders VALUES (1, 'x')"];
    let found = prove_after(&backup, &report, &source[0], &changes).await;
    assert_eq!(found.len(), 1, "{found:?}");

    let hash = ask(&source[0], HASH);
    let same = shards(2);
    assert!(restored(&backup, &report, &url(&same)).await.is_empty());
    for (server, copy) in source.iter().zip(&same) {
        let own = "count(), sum(cityHash64(id, name)) FROM shop.orders";
        assert_eq!(ask(server, own), ask(copy, own), "shard by shard");
    }
    assert_eq!(ask(&same[1], HASH), hash);
    assert_eq!(ask(&same[0], "count() FROM shop.few"), "10");
    assert_eq!(ask(&same[0], "count() FROM shop.here"), "0");
    assert_eq!(ask(&same[1], "count() FROM shop.here"), "77");
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &url(&same)).await),
        Vec::<String>::new()
    );
    // Nothing is put where something is, and one partition comes back to the shards that had it.
    let error = try_restore(&backup, &report, &url(&same), &RestoreOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
    for server in &same {
        run(server, &["ALTER TABLE shop.orders DROP PARTITION 1"]);
    }
    let options = RestoreOptions {
        overwrite: true,
        ..only(&["shop.orders/1"])
    };
    try_restore(&backup, &report, &url(&same), &options)
        .await
        .unwrap();
    assert_eq!(ask(&same[0], HASH), hash);

    let larger = shards(3);
    let told = restored(&backup, &report, &url(&larger)).await;
    assert_eq!(told, ["clickhouse.other_shards"]);
    assert_eq!(ask(&larger[2], HASH), hash);
    assert_eq!(ask(&larger[2], "count() FROM shop.orders"), "0");

    let alone = server(V18);
    let done = try_restore(&backup, &report, &alone.url(), &RestoreOptions::default())
        .await
        .unwrap();
    // A server that knows no such cluster cannot have a table over it.
    assert_eq!(done.failed_statements.len(), 2, "{done:?}");
    assert!(done.failed_statements[0].contains("shop.all"), "{done:?}");
    assert_eq!(done.rows, 3000 + 200 + 77);
    assert_eq!(ask(&alone, &HASH.replace("shop.all", "shop.orders")), hash);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_shards_come_back_into_two_and_one_servers_backup_into_a_cluster() {
    let source = shards(3);
    fill(&source);
    let (backup, report) = back_up(&format!("{}&user=default", url(&source))).await;
    let smaller = shards(2);
    let done = try_restore(&backup, &report, &url(&smaller), &RestoreOptions::default())
        .await
        .unwrap();
    assert_eq!(done.rows, 6000 + 300 + 77);
    assert_eq!(ask(&smaller[1], HASH), ask(&source[0], HASH));
    // Shards one and three are in the first.
    assert_eq!(ask(&smaller[0], "count() FROM shop.orders"), "4000");

    let (backup, report) = back_up(&source[1].url()).await;
    let options = RestoreOptions {
        overwrite: true,
        ..RestoreOptions::default()
    };
    try_restore(&backup, &report, &url(&smaller), &options)
        .await
        .unwrap();
    assert_eq!(ask(&smaller[1], "count() FROM shop.all"), "2000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_missing_or_other_than_the_first_is_no_part_of_a_backup() {
    let mut cluster = shards(2);
    fill(&cluster);
    let place = url(&cluster);
    let of = |text: &str| text.to_owned();
    let identity = engine().identify(&target(&place)).await.unwrap();
    assert_eq!(identity.suggested_name.as_str(), "shards");
    let alone = engine().identify(&target(&cluster[0].url())).await.unwrap();
    assert_ne!(identity.key, alone.key);

    // It is told which there are.
    let unknown = place.replace("shards", "nothing");
    let error = back_up_into(&MemorySink::default(), &unknown)
        .await
        .unwrap_err();
    let problem = Problem::from(error);
    assert_eq!(problem.code, "engine.missing.cluster");
    assert!(problem.remedy.contains("shards"), "{problem:?}");

    let options = BackupOptions {
        by_server: Some(of("file:x")),
        ..BackupOptions::default()
    };
    let error = engine()
        .backup(
            &Attempt::new().context,
            &target(&place),
            &options,
            &MemorySink::default(),
        )
        .await
        .unwrap_err();
    assert!(Problem::from(error).remedy.contains("cluster"));

    run(
        &cluster[1],
        &[
            "DROP TABLE shop.log",
            "CREATE TABLE shop.log (a String) ENGINE = Log",
        ],
    );
    let error = back_up_into(&MemorySink::default(), &place)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("shop.log"), "{error}");
    for server in &cluster {
        assert_eq!(left_behind(server), "");
    }

    // Stopped in the middle: nothing stays on either.
    let attempt = Attempt::new();
    let stop = attempt.context.stop.clone();
    let sink = MemorySink::behind(Arc::new(move |_, _, bytes| {
        stop.cancel();
        bytes
    }));
    let error = engine()
        .backup(
            &attempt.context,
            &target(&place),
            &BackupOptions::default(),
            &sink,
        )
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::Stopped), "{error:?}");
    for server in &cluster {
        assert_eq!(left_behind(server), "");
    }
    // What a worker that died has left is removed where it is.
    run(&cluster[1], &["CREATE DATABASE fettler_scratch_0_1_shard2"]);
    let left = Artefact {
        engine: Engine::Clickhouse,
        kind: of("database"),
        name: of("fettler_scratch_0_1_shard2"),
        data: serde_json::json!({"host": "127.0.0.3"}),
        until_job_ends: false,
    };
    engine()
        .remove_artefact(&left, Some(&target(&place)))
        .await
        .unwrap();
    assert_eq!(left_behind(&cluster[1]), "");

    let items = engine()
        .preflight(&target(&place), &BackupOptions::default())
        .await
        .unwrap();
    let found = items.iter().find(|item| item.subject == "cluster").unwrap();
    assert_eq!(found.level, PreflightLevel::Fine);
    cluster[1].kill_9().unwrap();
    let error = back_up_into(&MemorySink::default(), &place)
        .await
        .unwrap_err();
    assert!(
        matches!(error, EngineError::Unreachable { .. }),
        "{error:?}"
    );
    assert_eq!(left_behind(&cluster[0]), "");
    let items = engine()
        .preflight(&target(&place), &BackupOptions::default())
        .await
        .unwrap();
    let found = items.iter().find(|item| item.subject == "cluster").unwrap();
    assert_eq!(found.level, PreflightLevel::Stops);
}
