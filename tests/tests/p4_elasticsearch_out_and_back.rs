//! P4 for Elasticsearch and OpenSearch, through the binary: backed up, proven in scratch indices on the source's own server,
//! restored under other names, and equal to the source as the server gives it to anybody. Types and odd values are the engine's
//! own suite's matter.

#![allow(clippy::unwrap_used)]

use fettler_tests::{
    Installation, Size,
    servers::{SearchKind, SearchServer},
};
use rstest::rstest;
use serde_json::Value;

fn documents(server: &SearchServer, index: &str) -> Vec<Value> {
    let path = format!("/{index}/_search?size=10000&version=true&sort=at");
    let (status, answer) = server.request("GET", &path, "").unwrap();
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let hits = answer["hits"]["hits"].as_array().unwrap();
    hits.iter()
        .map(|hit| serde_json::json!([hit["_id"], hit["_version"], hit["_source"]]))
        .collect()
}

#[rstest]
#[case(SearchKind::Elasticsearch, Size::Embedded)]
#[case(SearchKind::OpenSearch, Size::Fleet)]
fn p4_a_search_server_comes_back_and_is_proven(#[case] kind: SearchKind, #[case] size: Size) {
    let server = SearchServer::start(kind, &[]).unwrap();
    let send = |method: &str, path: &str, body: &str| {
        let (status, answer) = server.request(method, path, body).unwrap();
        assert!(status < 300, "{method} {path}: {answer}");
    };
    send(
        "PUT",
        "/shop",
        r#"{"settings":{"number_of_shards":2,"number_of_replicas":0},"mappings":{"properties":{"at":{"type":"long"}}}}"#,
    );
    let lines: String = (0..5000)
        .map(|at| {
            format!(
                "{{\"index\":{{\"_id\":\"d{at}\"}}}}\n{{\"at\":{at},\"text\":\"order {at}\"}}\n"
            )
        })
        .collect();
    send("POST", "/shop/_bulk", &lines);

    let fettler = Installation::of_size(size);
    let made = fettler.json(&["backup", &server.url()]);
    assert_eq!(made["engine"], "elasticsearch", "{made:#}");
    let proof = fettler.json(&["prove", "latest", "--sandbox", "source-server"]);
    assert_eq!(proof["proven"], true, "{proof:#}");
    let (_, left) = server
        .request(
            "GET",
            "/_cat/indices/fettler-proof-*?expand_wildcards=all",
            "",
        )
        .unwrap();
    assert_eq!(left.trim(), "");

    let to = format!("{}?prefix=copy-", server.url());
    fettler
        .run(&["restore", "latest", "--to", &to, "--only", "shop", "--json"])
        .done();
    let source = documents(&server, "shop");
    assert_eq!(source.len(), 5000);
    assert_eq!(source, documents(&server, "copy-shop"));

    send("DELETE", "/copy-shop", "");
    let second = fettler.json(&["backup", &server.url()]);
    assert_eq!(second["parent"], made["backup"]);
}
