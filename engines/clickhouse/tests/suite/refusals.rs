//! What is refused, and what the refusal says. Users have only the server of 2018.

use fettler_engine::{
    BackupOptions, DatabaseEngine as _, EngineError, PreflightLevel, RestoreOptions,
};
use fettler_model::{ErrorClass, Problem};
use fettler_test_servers::{ClickhouseServer, ClickhouseVersion};
use rstest::rstest;

use crate::common::{
    Attempt, V18, V26, back_up, back_up_into, engine, facts, left_behind, mismatches, only, run,
    server, target, try_restore,
};

const SMALL: [&str; 3] = [
    "CREATE DATABASE shop",
    "CREATE TABLE shop.t (a UInt64) ENGINE = MergeTree ORDER BY a",
    "INSERT INTO shop.t SELECT number FROM numbers(10)",
];

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_what_is_there_is_replaced_only_when_told(
    #[values(V18, V26)] version: ClickhouseVersion,
) {
    let source = server(version);
    run(&source, &SMALL);
    let (backup, report) = back_up(&source.url()).await;
    run(&source, &["INSERT INTO shop.t VALUES (77)"]);
    let error = try_restore(&backup, &report, &source.url(), &RestoreOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
    let problem = Problem::from(error);
    assert!(problem.remedy.contains("--overwrite"), "{problem:?}");
    assert_eq!(source.query("SELECT count() FROM shop.t").unwrap(), "11\n");
    let overwrite = RestoreOptions {
        overwrite: true,
        ..RestoreOptions::default()
    };
    try_restore(&backup, &report, &source.url(), &overwrite)
        .await
        .unwrap();
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &source.url()).await),
        Vec::<String>::new()
    );
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_would_count_rows_twice_is_named(
    #[values(V18, V26)] version: ClickhouseVersion,
) {
    let source = server(version);
    run(&source, &SMALL);
    let (backup, report) = back_up(&source.url()).await;
    run(
        &source,
        &[
            "CREATE MATERIALIZED VIEW shop.later ENGINE = MergeTree ORDER BY a AS SELECT a FROM shop.t",
        ],
    );
    let overwrite = RestoreOptions {
        overwrite: true,
        ..RestoreOptions::default()
    };
    let error = try_restore(&backup, &report, &source.url(), &overwrite)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("shop.later"), "{error}");
    assert_eq!(source.query("SELECT count() FROM shop.t").unwrap(), "10\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_a_wrong_password_is_told_without_it() {
    let source = ClickhouseServer::start_with_password(V18, "s3cret").unwrap();
    engine().identify(&target(&source.url())).await.unwrap();
    let wrong = format!("clickhouse://default:wr0ng@127.0.0.1:{}/", source.port());
    let error = engine().identify(&target(&wrong)).await.unwrap_err();
    assert!(
        matches!(error, EngineError::LoginRefused { .. }),
        "{error:?}"
    );
    let text = format!("{error:?} {error}");
    assert!(
        !text.contains("wr0ng") && !text.contains("s3cret"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_only_read_is_told_what_is_needed() {
    let source = ClickhouseServer::start_with_password(V18, "s3cret").unwrap();
    let reader = format!("clickhouse://reader:s3cret@127.0.0.1:{}/", source.port());
    let items = engine()
        .preflight(&target(&reader), &BackupOptions::default())
        .await
        .unwrap();
    assert!(
        items
            .iter()
            .any(|item| item.level == PreflightLevel::Stops && item.message.contains("readonly")),
        "{items:?}"
    );
    let error = back_up_into(&fettler_engine::testing::MemorySink::default(), &reader)
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::Missing { .. }), "{error:?}");
    let problem = Problem::from(error);
    assert!(problem.remedy.contains("GRANT"), "{problem:?}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_that_are_not_there_are_told(#[values(V18, V26)] version: ClickhouseVersion) {
    let source = server(version);
    run(&source, &SMALL);
    let nowhere = format!(
        "clickhouse://127.0.0.1:{}/",
        fettler_test_servers::free_port()
    );
    let error = engine().identify(&target(&nowhere)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    let missing = format!("{}nothing", source.url());
    let error = back_up_into(&fettler_engine::testing::MemorySink::default(), &missing)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("nothing"), "{error}");
    assert_eq!(left_behind(&source), "");
    let (backup, report) = back_up(&source.url()).await;
    let copy = server(version);
    for (pattern, named) in [("shop.x", "shop.x"), ("shop.t/999", "999"), ("", "\"\"")] {
        let error = try_restore(&backup, &report, &copy.url(), &only(&[pattern]))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preflight_says_what_will_be_missing(#[values(V18, V26)] version: ClickhouseVersion) {
    let source = server(version);
    run(&source, &SMALL);
    let items = engine()
        .preflight(&target(&source.url()), &BackupOptions::default())
        .await
        .unwrap();
    assert!(
        items.iter().all(|item| item.level != PreflightLevel::Stops),
        "{items:?}"
    );
    let level = |subject: &str| {
        items
            .iter()
            .find(|item| item.subject == subject)
            .unwrap()
            .level
    };
    assert_eq!(level("moment"), PreflightLevel::Missing);
    assert_eq!(
        level("parts"),
        if version == V18 {
            PreflightLevel::Missing
        } else {
            PreflightLevel::Fine
        }
    );
    let identity = engine().identify(&target(&source.url())).await.unwrap();
    assert!(identity.estimated_bytes > 0);
    let load = engine().load(&target(&source.url())).await.unwrap();
    assert!(load.latency_milliseconds.is_some());
    let free = engine().free_bytes(&target(&source.url())).await.unwrap();
    assert_eq!(free.is_some(), version == V26);
    let _attempt = Attempt::new();
}
