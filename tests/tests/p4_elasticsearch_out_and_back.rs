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
    // The documents that a query finds, alone.
    fettler
        .run(&[
            "restore",
            "latest",
            "--to",
            &to,
            "--only",
            "shop?at:[10 TO 19]",
        ])
        .done();
    assert_eq!(documents(&server, "copy-shop"), source[10..20]);
    send("DELETE", "/copy-shop", "");
    let second = fettler.json(&["backup", &server.url()]);
    assert_eq!(second["parent"], made["backup"]);
}

/// The snapshots that a server has, by name.
fn snapshots(server: &SearchServer) -> Vec<String> {
    let (status, places) = server.request("GET", "/_snapshot", "").unwrap();
    assert_eq!(status, 200, "{places}");
    let places: Value = serde_json::from_str(&places).unwrap();
    let mut all = Vec::new();
    for place in places.as_object().unwrap().keys() {
        let (_, found) = server
            .request("GET", &format!("/_snapshot/{place}/_all"), "")
            .unwrap();
        let found: Value = serde_json::from_str(&found).unwrap();
        let found = found["snapshots"].as_array().unwrap();
        all.extend(
            found
                .iter()
                .map(|one| one["snapshot"].as_str().unwrap().to_owned()),
        );
    }
    all.sort();
    all
}

#[rstest]
#[case(SearchKind::Elasticsearch, Size::Embedded)]
#[case(SearchKind::OpenSearch, Size::Fleet)]
fn p4_p8_a_snapshot_of_the_servers_own_is_listed_proven_restored_verified_and_let_go(
    #[case] kind: SearchKind,
    #[case] size: Size,
) {
    let server = SearchServer::start(kind, &[]).unwrap();
    let send = |method: &str, path: &str, body: &str| {
        let (status, answer) = server.request(method, path, body).unwrap();
        assert!(status < 300, "{method} {path}: {answer}");
        answer
    };
    send(
        "PUT",
        "/shop",
        r#"{"settings":{"number_of_replicas":0},"mappings":{"properties":{"at":{"type":"long"}}}}"#,
    );
    let lines: String = (0..500)
        .map(|at| format!("{{\"index\":{{\"_id\":\"d{at}\"}}}}\n{{\"at\":{at}}}\n"))
        .collect();
    send("POST", "/shop/_bulk", &lines);
    let settings: Value =
        serde_json::from_str(&send("GET", "/_nodes/settings?flat_settings=true", "")).unwrap();
    let node = settings["nodes"]
        .as_object()
        .unwrap()
        .values()
        .next()
        .unwrap();
    let folder = &node["settings"]["path.repo"];
    let folder = folder.as_str().or_else(|| folder[0].as_str()).unwrap();
    let place = format!("fs:{folder}/own");

    let fettler = Installation::of_size(size);
    let back_up = || fettler.json(&["backup", &server.url(), "--by-server", &place]);
    let first = back_up();
    let read = fettler.json(&["backup", &server.url()]);
    // Each way takes over from its own.
    assert_eq!(
        (&first["parent"], &read["parent"]),
        (&Value::Null, &Value::Null)
    );
    let second = back_up();
    assert_eq!(second["parent"], first["backup"]);
    let third = back_up();
    assert_eq!(snapshots(&server).len(), 3);
    let listed = fettler.json(&["backups"]).to_string();
    assert_eq!(listed.matches("by-server").count(), 3, "{listed}");
    let id = |made: &Value| made["backup"].as_str().unwrap().to_owned();

    let proof = fettler.json(&["prove", &id(&second), "--sandbox", "source-server"]);
    assert_eq!(proof["proven"], true, "{proof:#}");
    let to = format!("{}?prefix=copy-", server.url());
    fettler.run(&["restore", &id(&second), "--to", &to]).done();
    assert_eq!(documents(&server, "shop"), documents(&server, "copy-shop"));
    fettler.run(&["verify", &id(&third)]).done();

    // Retention keeps the proven one beside the newest, and the server lets the other go.
    fettler.run(&["forget", "--keep-last", "1"]).done();
    let left = snapshots(&server);
    let named = |made: &Value| format!("fettler-{}", id(made).replace('-', ""));
    assert!(!left.contains(&named(&first)), "{left:?}");
    assert!(
        left.contains(&named(&second)) && left.contains(&named(&third)),
        "{left:?}"
    );

    // By name too; and what somebody else removed is found.
    fettler.run(&["forget", &id(&second)]).done();
    assert_eq!(snapshots(&server), [named(&third)]);
    let places: Value = serde_json::from_str(&send("GET", "/_snapshot", "")).unwrap();
    let known = places.as_object().unwrap().keys().next().unwrap();
    send(
        "DELETE",
        &format!("/_snapshot/{known}/{}", named(&third)),
        "",
    );
    let verified = fettler.run(&["verify", &id(&third)]);
    assert_eq!(verified.code, 3, "{verified:?}");
    let listed = fettler.json(&["backups"]).to_string();
    assert!(listed.contains("damaged"), "{listed}");
    let refused = fettler.run(&["backup", "sqlite:/nowhere", "--by-server", "x"]);
    assert_ne!(refused.code, 0, "{refused:?}");
}
