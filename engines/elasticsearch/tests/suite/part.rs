//! A part of a server into a backup, and a part of a backup back.

use fettler_engine::{BackupOptions, RestoreOptions};
use fettler_model::{ObjectKind, Problem};
use rstest::rstest;
use serde_json::json;

use crate::common::{
    Elasticsearch, OpenSearch, Place, SearchKind, back_up, count, engine, exists, numbered, prove,
    try_back_up, try_back_up_by, try_restore,
};

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_index_or_a_pattern_is_restored_alone(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    for name in ["logs-1", "logs-2", "shop"] {
        let index = place.make(name, &json!({"settings": {"number_of_replicas": 0}}));
        place.write(&index, &numbered(0..20, name));
    }
    let (backup, report) = back_up(&place.url()).await;
    let only = |names: &[&str]| RestoreOptions {
        only: names.iter().map(|name| place.name(name)).collect(),
        ..RestoreOptions::default()
    };
    let restored = try_restore(&backup, &report, &place.copy_url(), &only(&["shop"]))
        .await
        .unwrap();
    assert_eq!(restored.rows, 20);
    assert_eq!(count(place.server, &place.copy(&place.name("shop"))), 20);
    assert!(!exists(place.server, &place.copy(&place.name("logs-1"))));
    let restored = try_restore(&backup, &report, &place.copy_url(), &only(&["logs-*"]))
        .await
        .unwrap();
    assert_eq!(restored.rows, 40);
    let error = try_restore(&backup, &report, &place.copy_url(), &only(&["nothing"]))
        .await
        .unwrap_err();
    let error = Problem::from(error);
    assert_eq!(error.code, "engine.missing.selection");
    assert!(error.remedy.contains("shop"), "{error}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_that_were_excluded_are_not_there_and_their_index_is(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    for name in ["kept", "left"] {
        let index = place.make(name, &json!({"settings": {"number_of_replicas": 0}}));
        place.write(&index, &numbered(0..10, name));
    }
    let options = BackupOptions {
        exclude: vec![place.name("le*")],
    };
    let (backup, report) = try_back_up_by(engine(), &place.url(), &options)
        .await
        .unwrap();
    let left = report
        .objects
        .iter()
        .find(|object| object.kind == ObjectKind::Table && object.name == place.name("left"))
        .unwrap();
    assert_eq!(left.fingerprint, None);
    assert!(
        report
            .warnings
            .iter()
            .any(|one| one.code == "elasticsearch.excluded")
    );
    assert_eq!(
        prove(place.server, &backup, &report).await,
        Vec::<String>::new()
    );
    let restored = try_restore(
        &backup,
        &report,
        &place.copy_url(),
        &RestoreOptions::default(),
    )
    .await
    .unwrap();
    assert_eq!(restored.rows, 10);
    assert_eq!(count(place.server, &place.copy(&place.name("left"))), 0);
    let url = format!("{}/no-such-index", place.server.url());
    let error = Problem::from(try_back_up(&url).await.unwrap_err());
    assert_eq!(error.code, "engine.missing.selection");
}
