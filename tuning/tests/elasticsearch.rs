//! Elasticsearch and OpenSearch on real servers: advice is given where it is due, and a fresh server gets none.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Tuned, checks, found};
use fettler_engine_elasticsearch::ElasticsearchEngine;
use fettler_test_servers::{SearchKind, SearchServer};
use rstest::rstest;
use serde_json::json;

fn send(server: &SearchServer, method: &str, path: &str, body: &str) {
    let (status, answer) = server.request(method, path, body).unwrap();
    assert!(status < 300, "{method} {path}: {status} {answer}");
}

#[rstest]
#[case(SearchKind::Elasticsearch)]
#[case(SearchKind::OpenSearch)]
#[tokio::test(flavor = "multi_thread")]
async fn shards_mappings_refreshes_and_series_are_found_and_a_fresh_server_is_left_in_peace(
    #[case] kind: SearchKind,
) {
    let server = SearchServer::start(kind, &[]).unwrap();
    let engine = ElasticsearchEngine::default();
    let tuned = Tuned {
        engine: &engine,
        url: server.url(),
    };
    assert_eq!(tuned.look(&[]).await.findings, []);
    let one = json!({"settings": {"number_of_replicas": 0}}).to_string();
    send(&server, "PUT", "/orders", &one);
    send(
        &server,
        "POST",
        "/orders/_doc?refresh=true",
        r#"{"customer": "a", "total": 7}"#,
    );
    let look = tuned.look(&[]).await;
    assert_eq!(look.findings, [], "an ordinary index: {look:#?}");
    assert!(!look.version.is_empty());

    // Names that are values.
    let fields: serde_json::Map<_, _> = (0..300)
        .map(|number| (format!("metric_{number}"), json!("text")))
        .collect();
    send(&server, "PUT", "/metrics", &one);
    send(
        &server,
        "POST",
        "/metrics/_doc?refresh=true",
        &json!(fields).to_string(),
    );
    // Texts twice, in many documents.
    send(&server, "PUT", "/events", &one);
    let mut lines = String::new();
    for number in 0..10_000 {
        let document: serde_json::Map<_, _> = (0..10)
            .map(|field| (format!("f{field}"), json!(format!("v{}", number % 7))))
            .collect();
        lines.push_str("{\"index\":{}}\n");
        lines.push_str(&json!(document).to_string());
        lines.push('\n');
    }
    send(&server, "POST", "/events/_bulk?refresh=true", &lines);
    // Refreshed for nobody, and never.
    let often =
        json!({"settings": {"number_of_replicas": 0, "refresh_interval": "100ms"}}).to_string();
    send(&server, "PUT", "/sensors", &often);
    for number in 0..220 {
        let document = json!({ "value": number }).to_string();
        send(&server, "POST", "/sensors/_doc?refresh=true", &document);
    }
    let never =
        json!({"settings": {"number_of_replicas": 0, "refresh_interval": "-1"}}).to_string();
    send(&server, "PUT", "/loaded", &never);
    send(&server, "POST", "/loaded/_doc?refresh=true", r#"{"a": 1}"#);
    // A series without an end.
    for day in 10..22 {
        send(&server, "PUT", &format!("/logs-2027.01.{day}"), &one);
    }
    let look = tuned.look(&[]).await;
    assert_eq!(found(&look, "fields_many"), ["metrics"], "{look:#?}");
    assert_eq!(found(&look, "fields_twice"), ["events"]);
    let mut refresh = found(&look, "refresh");
    refresh.sort_unstable();
    assert_eq!(refresh, ["loaded", "sensors"]);
    assert_eq!(found(&look, "lifecycle"), ["logs"]);
    assert_eq!(checks(&look).len(), 5, "{look:#?}");
    assert!(look.plan.iter().all(|action| !action.safe));

    // What a person takes from the plan works, and so does the way back.
    let actions: Vec<_> = look.plan.iter().collect();
    tuned.twice(&actions, false).await;
    assert_eq!(found(&tuned.look(&[]).await, "refresh"), [""; 0]);
    tuned.twice(&actions, true).await;
    assert_eq!(found(&tuned.look(&[]).await, "refresh").len(), 2);

    // More shards than the heap is for.
    let many = json!({"settings": {"number_of_replicas": 0, "number_of_shards": 40}}).to_string();
    send(&server, "PUT", "/spread", &many);
    assert_eq!(found(&tuned.look(&[]).await, "shards_many"), [""]);
}
