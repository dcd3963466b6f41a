//! A proof finds one change, made by the server's own interface between restore and comparison.

use fettler_engine::{
    BackupOptions, DatabaseEngine as _, EngineError, SandboxRequest, SandboxSpec,
};
use fettler_engine_elasticsearch::ElasticsearchEngine;
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Attempt, Elasticsearch, OpenSearch, Place, SearchKind, back_up, engine, exists, numbered,
    prove, prove_after, request, target, try_back_up_by, write,
};

fn fill(place: Place) -> String {
    let index = place.make(
        "data",
        &json!({"settings": {"number_of_shards": 2, "number_of_replicas": 0}, "mappings": {"properties": {
            "nothing": {"type": "keyword"}, "number": {"type": "double"}, "big": {"type": "long"},
        }}}),
    );
    place.write(&index, &numbered(0..500, "x"));
    place.write(
        &index,
        "{\"index\":{\"_id\":\"odd\"}}\n{\"nothing\":null,\"number\":-0.0,\"big\":9007199254740993}\n{\"index\":{\"_id\":\"routed\",\"routing\":\"a\"}}\n{\"big\":1}\n",
    );
    index
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_one_change_each_is_found(#[values(Elasticsearch, OpenSearch)] kind: SearchKind) {
    let place = Place::new(kind);
    let index = fill(place);
    let (backup, report) = back_up(&place.url()).await;
    assert_eq!(
        prove(place.server, &backup, &report).await,
        Vec::<String>::new()
    );
    let odd = |source: &str| format!("{{\"index\":{{\"_id\":\"odd\"}}}}\n{source}\n");
    for (what, lines) in [
        ("a null becomes empty", odd(r#"{"nothing":"","number":-0.0,"big":9007199254740993}"#)),
        ("minus zero becomes zero", odd(r#"{"nothing":null,"number":0.0,"big":9007199254740993}"#)),
        ("a digit beyond 2^53", odd(r#"{"nothing":null,"number":-0.0,"big":9007199254740992}"#)),
        ("a field is gone", odd(r#"{"number":-0.0,"big":9007199254740993}"#)),
        ("one is lost", "{\"delete\":{\"_id\":\"d7\"}}\n\n".to_owned()),
        ("one is lost and one is new", "{\"delete\":{\"_id\":\"d7\"}}\n{\"index\":{\"_id\":\"e7\"}}\n{\"at\":7}\n".to_owned()),
        ("another routing", "{\"delete\":{\"_id\":\"routed\",\"routing\":\"a\"}}\n{\"index\":{\"_id\":\"routed\",\"routing\":\"b\"}}\n{\"big\":1}\n".to_owned()),
    ] {
        let found = prove_after(place.server, &backup, &report, |prefix| {
            write(place.server, &format!("{prefix}{index}"), &lines);
        })
        .await;
        assert_eq!(found.len(), 1, "{what}: {found:?}");
        assert!(found[0].contains(&index), "{what}: {found:?}");
    }
    let found = prove_after(place.server, &backup, &report, |prefix| {
        place.send(
            "PUT",
            &format!("/{prefix}{index}/_mapping"),
            &json!({"properties": {"more": {"type": "long"}}}),
        );
        place.send(
            "PUT",
            &format!("/{prefix}{index}-too"),
            &json!({"settings": {"number_of_replicas": 0}}),
        );
    })
    .await;
    assert_eq!(found.len(), 3, "{found:?}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_30_a_reader_that_loses_a_document_is_found_by_the_servers_own_count(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    fill(place);
    let broken = ElasticsearchEngine::broken_for_tests_that_loses_a_document();
    let (backup, report) = try_back_up_by(broken, &place.url(), &BackupOptions::default())
        .await
        .unwrap();
    let found = prove(place.server, &backup, &report).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("502") && found[0].contains("500 read"),
        "{found:?}"
    );
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_proof_made_is_removed_and_nothing_else_also_when_another_process_does_it(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let index = fill(place);
    let (backup, report) = back_up(&place.url()).await;
    let attempt = Attempt::new();
    let sandbox = engine()
        .open_sandbox(&attempt.context, &request(&report, place.server))
        .await
        .unwrap();
    assert_eq!(attempt.record.artefacts(), sandbox.artefacts);
    engine()
        .restore(
            &attempt.context,
            &backup,
            &report,
            &sandbox.target,
            &Default::default(),
        )
        .await
        .unwrap();
    // Scratch indices are in no backup.
    let (_, second) = back_up(&format!("{}/*{}", place.server.url(), place.name("*"))).await;
    assert_eq!(second.objects, report.objects);
    let near = "fettler-proof-like";
    place.send(
        "PUT",
        &format!("/{near}"),
        &json!({"settings": {"number_of_replicas": 0}}),
    );
    for _twice in 0..2 {
        engine()
            .remove_artefact(&sandbox.artefacts[0], Some(&target(&place.server.url())))
            .await
            .unwrap();
    }
    assert!(exists(place.server, near) && exists(place.server, &index));
    place.send("DELETE", &format!("/{near}"), &Value::Null);
    let mut forged = sandbox.artefacts[0].clone();
    forged.data = json!({"prefix": ""});
    let error = engine()
        .remove_artefact(&forged, Some(&target(&place.server.url())))
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::Unusable { .. }), "{error:?}");
    let request = SandboxRequest {
        spec: SandboxSpec::Automatic,
        server: None,
        ..request(&report, place.server)
    };
    let error = engine()
        .open_sandbox(&attempt.context, &request)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, EngineError::Missing { remedy, .. } if remedy.contains("--sandbox")),
        "{error:?}"
    );
}
