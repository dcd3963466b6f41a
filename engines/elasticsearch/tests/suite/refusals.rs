//! Servers that refuse, vanish or have no room, and targets that hold something.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use fettler_engine::{
    BackupOptions, DatabaseEngine as _, EngineError, PreflightLevel, RestoreOptions,
    testing::MemorySink,
};
use fettler_model::Problem;
use fettler_test_servers::TcpProxy;
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Attempt, Elasticsearch, Front, OpenSearch, Place, SearchKind, back_up, count, engine, facts,
    mismatches, numbered, restore, target, try_back_up, try_restore,
};

fn fill(place: Place, documents: u32) -> String {
    let index = place.make("data", &json!({"settings": {"number_of_replicas": 0}}));
    place.write(&index, &numbered(0..documents, "x"));
    index
}

fn overwrite() -> RestoreOptions {
    RestoreOptions {
        overwrite: true,
        ..RestoreOptions::default()
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_is_replaced_only_when_told_and_an_alias_never(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let index = fill(place, 30);
    let (backup, report) = back_up(&place.url()).await;
    restore(&backup, &report, &place.copy_url()).await;
    let copy = place.copy(&index);
    place.write(&copy, &numbered(100..105, "of somebody else"));
    let refused = try_restore(
        &backup,
        &report,
        &place.copy_url(),
        &RestoreOptions::default(),
    )
    .await;
    let error = Problem::from(refused.unwrap_err());
    assert_eq!(error.code, "engine.not_empty");
    assert!(
        error.what.contains(&copy) && error.remedy.contains("--overwrite"),
        "{error}"
    );
    assert_eq!(count(place.server, &copy), 35);
    try_restore(&backup, &report, &place.copy_url(), &overwrite())
        .await
        .unwrap();
    assert_eq!(count(place.server, &copy), 30);
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &place.copy_url()).await),
        Vec::<String>::new()
    );

    place.send("DELETE", &format!("/{copy}"), &Value::Null);
    place.send("PUT", &format!("/{index}/_alias/{copy}"), &Value::Null);
    let error = try_restore(&backup, &report, &place.copy_url(), &overwrite())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, EngineError::NotEmpty { what, .. } if what.contains("alias")),
        "{error:?}"
    );
    assert_eq!(count(place.server, &index), 30);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_login_and_missing_privileges_are_told_from_each_other(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    fill(place, 10);
    let body = |kind: &str| json!({"error": {"type": kind, "reason": "no"}}).to_string();
    let wrong = Front::before(place.server, move |_, _| {
        Some((401, body("security_exception")))
    });
    let error = try_back_up(&wrong.url(&place.url())).await.unwrap_err();
    assert!(
        matches!(error, EngineError::LoginRefused { .. }),
        "{error:?}"
    );

    let no_search = Front::before(place.server, move |_, path| {
        (path.contains("_pit") || path.contains("point_in_time"))
            .then(|| (403, body("security_exception")))
    });
    let error = Problem::from(try_back_up(&no_search.url(&place.url())).await.unwrap_err());
    assert_eq!(error.code, "engine.missing.permission");

    // What is only less than all is warned of.
    let less = Front::before(place.server, move |_, path| {
        (path.contains("_refresh") || path.contains("_stats") || path.starts_with("/_ingest"))
            .then(|| (403, body("security_exception")))
    });
    let (_, report) = back_up(&less.url(&place.url())).await;
    assert!(
        report
            .warnings
            .iter()
            .any(|one| one.code == "elasticsearch.not_refreshed")
    );
    let items = engine()
        .preflight(&target(&less.url(&place.url())), &BackupOptions::default())
        .await
        .unwrap();
    let pipelines = items
        .iter()
        .find(|item| item.message.contains("ingest pipeline"))
        .unwrap();
    assert_eq!(pipelines.level, PreflightLevel::Missing);
    assert!(pipelines.remedy.contains("fettler_backup"), "{pipelines:?}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_room_is_asked_again_and_every_document_is_written_once(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    static ASKED: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];
    let asked = &ASKED[usize::from(kind == OpenSearch)];
    let place = Place::new(kind);
    let index = fill(place, 300);
    let (backup, report) = back_up(&place.url()).await;
    let full = json!({"error": {"type": "es_rejected_execution_exception", "reason": "full"}, "status": 429});
    let front = Front::before(place.server, move |_, path| {
        if !path.contains("_bulk") {
            return None;
        }
        match asked.fetch_add(1, Ordering::Relaxed) {
            // The whole request, then each document of it.
            0 | 1 => Some((429, full.to_string())),
            2 => {
                let items: Vec<Value> = (0..300).map(|_| json!({ "index": full })).collect();
                Some((200, json!({"errors": true, "items": items}).to_string()))
            }
            _ => None,
        }
    });
    restore(&backup, &report, &front.url(&place.copy_url())).await;
    assert_eq!(asked.load(Ordering::Relaxed), 4);
    assert_eq!(count(place.server, &place.copy(&index)), 300);
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &place.copy_url()).await),
        Vec::<String>::new()
    );
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_the_target_refuses_is_counted_and_told_without_its_values(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let index = fill(place, 10);
    let (backup, report) = back_up(&place.url()).await;
    let refused = json!({"index": {"status": 400, "error": {"type": "mapper_parsing_exception", "reason": "a secret value"}}});
    let written = json!({"index": {"status": 201}});
    let front = Front::before(place.server, move |_, path| {
        let items: Vec<&Value> = (0..10)
            .map(|at| if at == 3 { &refused } else { &written })
            .collect();
        path.contains("_bulk")
            .then(|| (200, json!({"errors": true, "items": items}).to_string()))
    });
    let restored = try_restore(
        &backup,
        &report,
        &front.url(&place.copy_url()),
        &RestoreOptions::default(),
    )
    .await
    .unwrap();
    assert_eq!(
        restored.failed_statements,
        [format!("1 documents of {index}: mapper_parsing_exception")]
    );
    assert_eq!(restored.rows, 9);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_is_a_transient_error_and_a_stop_is_obeyed(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    fill(place, 20_000);
    let through = |proxy: &TcpProxy| {
        place
            .url()
            .replace(&place.server.port().to_string(), &proxy.port().to_string())
    };
    let proxy = TcpProxy::start(place.server.port()).unwrap();
    proxy.cut_after_bytes_to_client(1_000_000);
    let error = try_back_up(&through(&proxy)).await.unwrap_err();
    assert!(
        matches!(error, EngineError::Unreachable { .. }),
        "{error:?}"
    );

    let slow = TcpProxy::start(place.server.port()).unwrap();
    slow.throttle(Some(200_000));
    let attempt = Attempt::new();
    let stop = attempt.context.stop.clone();
    let url = through(&slow);
    let backup = tokio::spawn(async move {
        engine()
            .backup(
                &attempt.context,
                &target(&url),
                &BackupOptions::default(),
                &MemorySink::default(),
            )
            .await
    });
    slow.wait_for_bytes_to_client(50_000, Duration::from_secs(60))
        .unwrap();
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(30), backup)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(ended, Err(EngineError::Stopped)), "{ended:?}");
    let nobody = format!(
        "elasticsearch://127.0.0.1:{}",
        fettler_test_servers::free_port()
    );
    let error = try_back_up(&nobody).await.unwrap_err();
    assert!(
        matches!(error, EngineError::Unreachable { .. }),
        "{error:?}"
    );
}
