//! A part of a server into a backup, and a part of a backup back.

use std::collections::BTreeMap;

use fettler_engine::{BackupOptions, RestoreOptions};
use fettler_engine_elasticsearch::ElasticsearchEngine;
use fettler_model::{ObjectKind, Problem};
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Elasticsearch, OpenSearch, Place, SearchKind, back_up, count, documents, engine, exists,
    numbered, prove, restore, try_back_up, try_back_up_by, try_restore,
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
        ..BackupOptions::default()
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

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_without_documents_comes_back_however_many_shards_it_has(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let index = place.make(
        "nothing",
        &json!({"settings": {"number_of_shards": 3, "number_of_replicas": 0}}),
    );
    let (backup, report) = back_up(&place.url()).await;
    assert_eq!(
        prove(place.server, &backup, &report).await,
        Vec::<String>::new()
    );
    let by_scroll = ElasticsearchEngine::for_tests_that_scrolls();
    let options = BackupOptions::default();
    try_back_up_by(by_scroll, &place.url(), &options)
        .await
        .unwrap();
    restore(&backup, &report, &place.copy_url()).await;
    assert_eq!(count(place.server, &place.copy(&index)), 0);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documents_that_a_query_finds_are_restored_alone(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let shape = json!({
        "settings": {"number_of_replicas": 0, "number_of_shards": 3},
        "mappings": {"properties": {"at": {"type": "long"}, "text": {"type": "text"}}},
    });
    let (shop, logs) = (place.make("shop", &shape), place.make("logs", &shape));
    place.write(&shop, &numbered(0..7000, "Old Words"));
    place.write(&shop, &numbered(7000..7040, "new words"));
    // Routed documents are found and deleted by their routing.
    let routed: String = (0..50)
        .map(|at| {
            format!("{{\"index\":{{\"_id\":\"r{at}\",\"routing\":\"x{at}\"}}}}\n{{\"at\":{at},\"text\":\"routed\"}}\n")
        })
        .collect();
    place.write(&shop, &routed);
    place.write(&logs, &numbered(0..30, "log"));
    let (backup, report) = back_up(&place.url()).await;
    let only = |names: &[String]| RestoreOptions {
        only: names.to_vec(),
        ..RestoreOptions::default()
    };
    let copy = place.copy(&shop);
    let whole = documents_found(
        place,
        &shop,
        &json!({"query_string": {"query": "text:NEW OR at:[40 TO 44]"}}),
    );
    assert_eq!(whole.len(), 50);

    // What the analyser makes of the words is the server's matter: `NEW` finds `new`.
    let asked = only(&[format!("{shop}?text:NEW OR at:[40 TO 44]"), logs.clone()]);
    let restored = try_restore(&backup, &report, &place.copy_url(), &asked)
        .await
        .unwrap();
    assert_eq!((restored.rows, restored.warnings.len()), (80, 0));
    assert_eq!(documents(place.server, &copy), whole);
    assert_eq!(count(place.server, &place.copy(&logs)), 30);
    let mapping = place.send("GET", &format!("/{copy}/_mapping"), &Value::Null);
    assert!(
        !mapping.to_string().contains("fettler_restoring"),
        "{mapping}"
    );
    place.send("DELETE", &format!("/{copy}"), &Value::Null);
    place.send("DELETE", &format!("/{}", place.copy(&logs)), &Value::Null);

    let asked = only(&[format!("{shop}?{{\"terms\":{{\"_id\":[\"d1\",\"r7\"]}}}}")]);
    let restored = try_restore(&backup, &report, &place.copy_url(), &asked)
        .await
        .unwrap();
    assert_eq!(restored.rows, 2);
    assert_eq!(
        documents(place.server, &copy)
            .into_keys()
            .collect::<Vec<_>>(),
        ["d1", "r7"]
    );
    place.send("DELETE", &format!("/{copy}"), &Value::Null);

    let asked = only(&[format!("{shop}?at:>1000000")]);
    let restored = try_restore(&backup, &report, &place.copy_url(), &asked)
        .await
        .unwrap();
    assert_eq!(restored.rows, 0);
    assert!(
        restored.warnings[0].message.contains("no document"),
        "{:?}",
        restored.warnings
    );
    assert_eq!(count(place.server, &copy), 0);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_the_server_does_not_understand_changes_nothing(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let shop = place.make("shop", &json!({"settings": {"number_of_replicas": 0}}));
    place.write(&shop, &numbered(0..20, "x"));
    let (backup, report) = back_up(&place.url()).await;
    for (wrong, words) in [
        ("{\"no_such_query\":{}}", "no_such_query"),
        ("at:[1 TO", "query"),
        ("{\"range\":{\"at\":{\"gte\":\"not a number\"}}}", "query"),
    ] {
        for (url, overwrite) in [(place.copy_url(), false), (place.server.url(), true)] {
            let options = RestoreOptions {
                only: vec![format!("{shop}?{wrong}")],
                overwrite,
                ..RestoreOptions::default()
            };
            let error = try_restore(&backup, &report, &url, &options)
                .await
                .unwrap_err();
            let error = Problem::from(error);
            assert_eq!(error.code, "engine.missing.query", "{wrong}: {error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(count(place.server, &shop), 20, "{wrong}");
        assert!(!exists(place.server, &place.copy(&shop)), "{wrong}");
    }
}

/// What a query finds in an index, as anybody sees it.
fn documents_found(place: Place, index: &str, query: &Value) -> BTreeMap<String, Value> {
    let all = place.send(
        "POST",
        &format!("/{index}/_search?version=true&size=10000"),
        &json!({ "query": query }),
    );
    let hits = all["hits"]["hits"].as_array().unwrap();
    let of = |hit: &Value| json!([hit["_routing"], hit["_version"], hit["_source"]]);
    hits.iter()
        .map(|hit| (hit["_id"].as_str().unwrap().to_owned(), of(hit)))
        .collect()
}
