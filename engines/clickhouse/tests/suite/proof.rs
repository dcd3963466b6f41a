//! A proof finds one change, and a reader that is broken on purpose. The server of 2018 proves in a private server of its own
//! program, the engine of today in databases on a named server.

use std::sync::Arc;

use bytes::Bytes;
use fettler_engine::{
    DatabaseEngine as _, SandboxSpec,
    testing::{MemorySink, Tamper},
};
use fettler_test_servers::ClickhouseVersion;
use rstest::rstest;

use crate::common::{
    Attempt, V18, V26, back_up, back_up_into, engine, fill, left_behind, prove, prove_after,
    request, run, server,
};

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_backup_is_proven_and_nothing_is_left(#[values(V18, V26)] version: ClickhouseVersion) {
    let source = server(version);
    fill(&source);
    let (backup, report) = back_up(&source.url()).await;
    // The rows that are lost by a merge at the source are there in the copy: all was counted before.
    run(&source, &["OPTIMIZE TABLE shop.replacing FINAL"]);
    assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());
    assert_eq!(left_behind(&source), "");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_one_change_anywhere_is_found(#[values(V18, V26)] version: ClickhouseVersion) {
    let source = server(version);
    run(
        &source,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (id UInt64, n Nullable(String), f Float64, big UInt64, m UInt64 MATERIALIZED id) ENGINE = MergeTree ORDER BY id",
            "INSERT INTO shop.t (id, n, f, big) SELECT number, NULL, 0, 9007199254740993 FROM numbers(1000)",
            "CREATE TABLE shop.log (a String) ENGINE = Log",
            "INSERT INTO shop.log VALUES ('x')",
        ],
    );
    let (backup, report) = back_up(&source.url()).await;
    // A table with one value changed takes the place of the one that was restored.
    let changed = |columns: &str| {
        vec![
            "CREATE TABLE {db}shop.other (id UInt64, n Nullable(String), f Float64, big UInt64, m UInt64 MATERIALIZED id) ENGINE = MergeTree ORDER BY id".to_owned(),
            format!("INSERT INTO {{db}}shop.other (id, n, f, big) SELECT {columns} FROM {{db}}shop.t"),
            "DROP TABLE {db}shop.t".to_owned(),
            "RENAME TABLE {db}shop.other TO {db}shop.t".to_owned(),
        ]
    };
    let mut changes = vec![
        vec!["INSERT INTO {db}shop.t (id) VALUES (5)".to_owned()],
        vec!["INSERT INTO {db}shop.log VALUES ('y')".to_owned()],
        vec!["CREATE TABLE {db}shop.more (a UInt8) ENGINE = Log".to_owned()],
        vec!["DROP TABLE {db}shop.log".to_owned()],
        vec!["ALTER TABLE {db}shop.t MODIFY COLUMN f Float64 DEFAULT 1".to_owned()],
    ];
    for columns in [
        "id, if(id = 500, '', n), f, big",
        "id, n, if(id = 500, -0.0, f), big",
        "id, n, f, if(id = 500, toUInt64(9007199254740992), big)",
        "if(id = 500, 501, id), n, f, big",
    ] {
        changes.push(changed(columns));
    }
    assert_eq!(
        prove_after(
            &backup,
            &report,
            &source,
            &changed("id, n, f, big")
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
        )
        .await,
        Vec::<String>::new(),
        "an exchange that changes nothing"
    );
    for change in changes {
        let statements: Vec<&str> = change.iter().map(String::as_str).collect();
        let found = prove_after(&backup, &report, &source, &statements).await;
        assert!(!found.is_empty(), "{change:?}");
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_30_a_reader_that_changes_a_byte_is_found(
    #[values(V18, V26)] version: ClickhouseVersion,
) {
    let source = server(version);
    run(
        &source,
        &[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (id UInt64, s String) ENGINE = MergeTree ORDER BY id",
            "INSERT INTO shop.t SELECT number, 'the same' FROM numbers(1000)",
        ],
    );
    let tamper: Tamper = Arc::new(|name, offset, bytes: Bytes| {
        if !name.starts_with("rows/") || offset > 0 {
            return bytes;
        }
        let mut changed = bytes.to_vec();
        if let Some(last) = changed.last_mut() {
            *last ^= 1;
        }
        Bytes::from(changed)
    });
    let sink = MemorySink::behind(tamper);
    let report = back_up_into(&sink, &source.url()).await.unwrap();
    let found = prove(&sink.source(), &report, &source).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("shop.t"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_server_is_no_place_for_a_proof() {
    // Only the engine of today is newer than something.
    let source = server(V26);
    run(&source, &["CREATE DATABASE shop"]);
    let (_, report) = back_up(&source.url()).await;
    let mut request = request(&report, &source);
    request.spec = SandboxSpec::Automatic;
    let attempt = Attempt::new();
    let error = engine()
        .open_sandbox(&attempt.context, &request)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("18.16"), "{error}");
    assert!(attempt.record.artefacts().is_empty());
}
