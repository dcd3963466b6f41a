//! A whole server, with what it has beside indices, into another one.

use fettler_engine::{DatabaseEngine as _, RestoreOptions};
use fettler_model::Problem;
use fettler_test_servers::SearchServer;
use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Elasticsearch, OpenSearch, SearchKind, back_up, count, documents, engine, facts, mismatches,
    numbered, prove, restore, send, target, try_restore, write,
};

fn fill(server: &SearchServer) {
    let put = |path: &str, body: Value| send(server, "PUT", path, &body);
    put(
        "/_component_template/base",
        json!({"template": {"settings": {"number_of_replicas": 0}}}),
    );
    put(
        "/_index_template/made",
        json!({"index_patterns": ["made-*"], "composed_of": ["base"], "template": {"mappings": {"properties": {"by": {"type": "keyword"}}}}}),
    );
    put(
        "/_template/old",
        json!({"index_patterns": ["old-*"], "settings": {"number_of_replicas": 0}}),
    );
    put(
        "/_cluster/settings",
        json!({"persistent": {"cluster.routing.rebalance.enable": "primaries"}}),
    );
    put(
        "/_ingest/pipeline/nothing",
        json!({"description": "does nothing", "processors": []}),
    );
    // A template that would have its say if it were there before the index.
    put(
        "/shop",
        json!({"settings": {"number_of_replicas": 0, "refresh_interval": "7s"}, "mappings": {"properties": {"at": {"type": "long"}}}, "aliases": {"store": {"is_write_index": true}}}),
    );
    put(
        "/_index_template/late",
        json!({"index_patterns": ["shop*"], "template": {"mappings": {"properties": {"late": {"type": "long"}}}}}),
    );
    put(
        "/shop/_settings",
        json!({"index.default_pipeline": "nothing"}),
    );
    write(server, "shop", &numbered(0..200, "x"));
    put("/made-1", Value::Null);
    write(
        server,
        "made-1",
        "{\"index\":{\"_id\":\"1\"}}\n{\"by\":\"template\"}\n",
    );
    put("/locked", json!({"settings": {"number_of_replicas": 0}}));
    write(server, "locked", &numbered(0..10, "x"));
    put("/locked/_settings", json!({"index.blocks.write": true}));
    if server.kind() == OpenSearch {
        put(
            "/_ingest/pipeline/mark",
            json!({"processors": [{"set": {"field": "marked", "value": true}}]}),
        );
        put("/_search/pipeline/less", json!({"request_processors": []}));
        put(
            "/_scripts/one",
            json!({"script": {"lang": "painless", "source": "return 1"}}),
        );
        put(
            "/_index_template/logs",
            json!({"index_patterns": ["logs-*"], "data_stream": {}, "priority": 200, "template": {"settings": {"number_of_replicas": 0, "index.final_pipeline": "mark"}}}),
        );
        put("/_data_stream/logs-app", Value::Null);
        for round in 0..2 {
            let lines: String = (0..50)
                .map(|at| format!("{{\"create\":{{}}}}\n{{\"@timestamp\":\"2026-11-2{round}T00:00:{at:02}Z\",\"at\":{at}}}\n"))
                .collect();
            write(server, "logs-app", &lines);
            if round == 0 {
                send(server, "POST", "/logs-app/_rollover", &Value::Null);
            }
        }
    }
    send(server, "POST", "/_refresh", &Value::Null);
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_whole_server_comes_back_with_its_templates_pipelines_scripts_and_data_streams(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let source = SearchServer::start(kind, &[]).unwrap();
    let copy = SearchServer::start(kind, &[]).unwrap();
    // A server that holds nothing.
    let (nothing, report) = back_up(&source.url()).await;
    assert!(report.objects.is_empty());
    restore(&nothing, &report, &copy.url()).await;

    fill(&source);
    let (backup, report) = back_up(&source.url()).await;
    assert_eq!(prove(&source, &backup, &report).await, Vec::<String>::new());
    let restored = restore(&backup, &report, &copy.url()).await;
    let codes: Vec<&str> = restored
        .warnings
        .iter()
        .map(|one| one.code.as_str())
        .collect();
    assert_eq!(codes, ["elasticsearch.settings_not_restored"]);
    assert_eq!(
        mismatches(&report.objects, &facts(&report, &copy.url()).await),
        Vec::<String>::new()
    );

    let mut same = vec![
        "/_component_template",
        "/_index_template",
        "/_template",
        "/_ingest/pipeline",
        "/shop/_alias",
        "/made-1/_mapping",
        "/shop/_mapping",
    ];
    let mut indices = vec!["shop", "made-1", "locked"];
    if kind == OpenSearch {
        same.extend(["/_search/pipeline", "/_scripts/one"]);
        indices.push("logs-app");
    }
    for path in same {
        let of = |server: &SearchServer| {
            let mut answer = send(server, "GET", path, &Value::Null);
            // What is left of the mark: an empty note.
            for mappings in answer.as_object_mut().unwrap().values_mut() {
                let mappings = mappings.get_mut("mappings").and_then(Value::as_object_mut);
                if let Some(mappings) = mappings {
                    mappings.retain(|name, value| name != "_meta" || *value != json!({}));
                }
            }
            answer
        };
        assert_eq!(of(&source), of(&copy), "{path}");
    }
    for index in indices {
        assert_eq!(
            documents(&source, index),
            documents(&copy, index),
            "{index}"
        );
    }
    let setting = |index: &str, name: &str| {
        send(
            &copy,
            "GET",
            &format!("/{index}/_settings?flat_settings=true"),
            &Value::Null,
        )[index]["settings"][name]
            .clone()
    };
    assert_eq!(setting("shop", "index.refresh_interval"), "7s");
    assert_eq!(setting("shop", "index.default_pipeline"), "nothing");
    assert_eq!(setting("locked", "index.blocks.write"), "true");
    if kind == OpenSearch {
        let streams = send(&copy, "GET", "/_data_stream/logs-app", &Value::Null);
        assert_eq!(streams["data_streams"][0]["template"], "logs");
        assert_eq!(count(&copy, "logs-app"), 100);
        // Its pipeline works again.
        write(
            &copy,
            "logs-app",
            "{\"create\":{\"_id\":\"new\"}}\n{\"@timestamp\":\"2026-11-22T00:00:00Z\"}\n",
        );
        send(&copy, "POST", "/logs-app/_refresh", &Value::Null);
        assert_eq!(documents(&copy, "logs-app")["new"][2]["marked"], true);
    }
    let settings = send(
        &copy,
        "GET",
        "/_cluster/settings?flat_settings=true",
        &Value::Null,
    );
    assert_eq!(settings["persistent"], json!({}));

    // Another template under the same name is in the way, and only told may it go.
    send(
        &copy,
        "PUT",
        "/_index_template/made",
        &json!({"index_patterns": ["other-*"]}),
    );
    let only = |overwrite| RestoreOptions {
        only: vec!["_templates".to_owned(), "_settings".to_owned()],
        overwrite,
        ..RestoreOptions::default()
    };
    let error = Problem::from(
        try_restore(&backup, &report, &copy.url(), &only(false))
            .await
            .unwrap_err(),
    );
    assert_eq!(error.code, "engine.not_empty");
    assert!(error.what.contains("made"), "{error}");
    try_restore(&backup, &report, &copy.url(), &only(true))
        .await
        .unwrap();
    assert_eq!(
        send(&source, "GET", "/_index_template", &Value::Null),
        send(&copy, "GET", "/_index_template", &Value::Null)
    );
    let settings = send(
        &copy,
        "GET",
        "/_cluster/settings?flat_settings=true",
        &Value::Null,
    );
    assert_eq!(
        settings["persistent"]["cluster.routing.rebalance.enable"],
        "primaries"
    );

    // Who a server is does not change with how it is reached, and it tells how busy it is and what is free.
    let one = engine().identify(&target(&source.url())).await.unwrap();
    let other = engine()
        .identify(&target(&source.url().replace("127.0.0.1", "localhost")))
        .await
        .unwrap();
    assert_eq!((&one.key, &one.lineage), (&other.key, &other.lineage));
    assert_ne!(
        one.key,
        engine().identify(&target(&copy.url())).await.unwrap().key
    );
    assert!(
        engine()
            .load(&target(&source.url()))
            .await
            .unwrap()
            .latency_milliseconds
            .is_some()
    );
    assert!(
        engine()
            .free_bytes(&target(&source.url()))
            .await
            .unwrap()
            .unwrap()
            > 0
    );
}
