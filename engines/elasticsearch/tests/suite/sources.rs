//! Indices whose documents cannot be read as they were written are named before anything starts.

use fettler_engine::{BackupOptions, DatabaseEngine as _, PreflightLevel};
use fettler_model::Problem;
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Elasticsearch, OpenSearch, Place, SearchKind, engine, numbered, prove, target, try_back_up,
    try_back_up_by,
};

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_source_or_is_closed_is_refused_by_name_and_what_has_a_part_of_it_is_warned_of(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let with = |source: Value| json!({"settings": {"number_of_replicas": 0}, "mappings": {"_source": source}});
    let off = place.make("off", &with(json!({"enabled": false})));
    let thin = place.make("thin", &with(json!({"excludes": ["text"]})));
    let closed = place.make("closed", &with(json!({})));
    for index in [&off, &thin, &closed] {
        place.write(index, &numbered(0..5, "x"));
    }
    place.send("POST", &format!("/{closed}/_close"), &Value::Null);
    let error = Problem::from(try_back_up(&place.url()).await.unwrap_err());
    assert_eq!(error.code, "engine.missing.source");
    assert!(
        error.what.contains(&off) && error.what.contains(&closed) && !error.what.contains(&thin),
        "{error}"
    );
    assert!(error.remedy.contains("--exclude"), "{error}");

    let items = engine()
        .preflight(&target(&place.url()), &BackupOptions::default())
        .await
        .unwrap();
    let level = |name: &str| {
        items
            .iter()
            .find(|item| item.subject == name)
            .map(|item| item.level)
    };
    assert_eq!(level(&off), Some(PreflightLevel::Stops));
    assert_eq!(level(&closed), Some(PreflightLevel::Stops));
    assert_eq!(level(&thin), Some(PreflightLevel::Missing));

    let options = BackupOptions {
        exclude: vec![off, closed],
        ..BackupOptions::default()
    };
    let (backup, report) = try_back_up_by(engine(), &place.url(), &options)
        .await
        .unwrap();
    let warning = report
        .warnings
        .iter()
        .find(|one| one.code == "elasticsearch.source")
        .unwrap();
    assert!(warning.message.contains(&thin), "{warning:?}");
    assert_eq!(
        prove(place.server, &backup, &report).await,
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synthetic_source_is_named_and_its_documents_come_back_as_the_server_makes_them() {
    let place = Place::new(Elasticsearch);
    let index = place.make(
        "synthetic",
        &json!({"settings": {"number_of_replicas": 0, "index.mapping.source.mode": "synthetic"},
            "mappings": {"properties": {"at": {"type": "long"}, "text": {"type": "keyword"}}}}),
    );
    place.write(&index, &numbered(0..50, "x"));
    let (backup, report) = try_back_up(&place.url()).await.unwrap();
    let warning = report
        .warnings
        .iter()
        .find(|one| one.code == "elasticsearch.source")
        .unwrap();
    assert!(warning.message.contains("synthetic"), "{warning:?}");
    assert_eq!(
        prove(place.server, &backup, &report).await,
        Vec::<String>::new()
    );
}
