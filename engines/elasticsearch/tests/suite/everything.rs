//! Every type of field, every odd name, out and back.

use rstest::rstest;
use serde_json::{Value, json};

use crate::common::{
    Elasticsearch, OpenSearch, Place, SearchKind, back_up, documents, facts, mismatches, prove,
    restore,
};

/// Fields that both servers have without further modules.
fn mapping() -> Value {
    json!({
        "_meta": {"owner": "tests"},
        "dynamic_templates": [{"words": {"match_mapping_type": "string", "mapping": {"type": "keyword"}}}],
        "properties": {
            "boolean": {"type": "boolean"}, "byte": {"type": "byte"}, "short": {"type": "short"},
            "integer": {"type": "integer"}, "long": {"type": "long"}, "float": {"type": "float"},
            "double": {"type": "double"}, "half": {"type": "half_float"}, "date": {"type": "date"},
            "nanos": {"type": "date_nanos"}, "ip": {"type": "ip"}, "keyword": {"type": "keyword"},
            "text": {"type": "text", "fields": {"raw": {"type": "keyword", "ignore_above": 20}}},
            "binary": {"type": "binary"}, "point": {"type": "geo_point"},
            "range": {"type": "integer_range"}, "dates": {"type": "date_range"}, "ips": {"type": "ip_range"},
            "object": {"properties": {"a": {"properties": {"b": {"type": "long"}}}}},
            "nested": {"type": "nested", "properties": {"n": {"type": "long"}}},
            "off": {"type": "object", "enabled": false}, "unseen": {"type": "keyword", "index": false},
            "alias": {"type": "alias", "path": "keyword"}, "completion": {"type": "completion"},
        },
    })
}

/// Documents as text, since their text is what has to come back.
const DOCUMENTS: [(&str, &str); 12] = [
    (
        "numbers",
        r#"{"boolean":true,"byte":-128,"short":32767,"integer":-2147483648,"long":9007199254740993,"float":1.0e3,"double":-0.0,"half":0.1}"#,
    ),
    (
        "numbers as text",
        r#"{"boolean":"false","long":"12","double":"1e300","float":5e-10}"#,
    ),
    (
        "nothing",
        r#"{"keyword":null,"long":[],"text":"","object":{}}"#,
    ),
    ("empty", "{}"),
    (
        "lists",
        r#"{"long":[1,2,2,1],"keyword":["b","a","b",null],"nested":[{"n":1},{"n":2},{"n":1}]}"#,
    ),
    (
        "dates",
        r#"{"date":"2026-11-22T14:25:00.123456Z","nanos":"2026-11-22T14:25:00.123456789Z","dates":{"gte":"2026-01-01","lt":"2026-02-01"}}"#,
    ),
    (
        "ranges",
        r#"{"range":{"gte":1,"lte":5},"ips":"10.0.0.0/8","ip":"::ffff:1.2.3.4","point":[13.36,38.11]}"#,
    ),
    (
        "binary and unicode",
        r#"{"binary":"AAEC/w==","text":"tab\t\"quote\" \\ \u0000 \u00e9 é 💾 \r\n line","keyword":"ünï"}"#,
    ),
    (
        "off",
        r#"{"off":{"any":[1,"two",{"three":3.30}],"long":12345678901234567890},"unseen":"x"}"#,
    ),
    (
        "dynamic",
        r#"{"a new field":"word","another":{"deep":{"er":1}},"z":1,"a":2}"#,
    ),
    (
        "suggest",
        r#"{"completion":{"input":["one","two"],"weight":3},"object":{"a":{"b":1}},"object.a.b":[2]}"#,
    ),
    (
        "long text",
        r#"{"text":"a text that is longer than the twenty letters of its keyword","half":-65504}"#,
    ),
];

const ODD_IDS: [&str; 7] = [
    "ä ö/ü",
    "a\"b\\c",
    "_under",
    "with,comma",
    "<&>%20+#?",
    "💾",
    "1",
];

fn fill(place: Place) -> Vec<String> {
    let whole = place.make(
        "types",
        &json!({
            "settings": {"number_of_shards": 3, "number_of_replicas": 0, "analysis": {"analyzer": {"own": {"type": "custom", "tokenizer": "standard"}}}},
            "mappings": mapping(),
            "aliases": {place.name("all"): {}, place.name("some"): {"filter": {"term": {"keyword": "a"}}, "routing": "7"}},
        }),
    );
    let mut lines = String::new();
    for (id, text) in DOCUMENTS {
        lines.push_str(&format!("{{\"index\":{{\"_id\":\"{id}\"}}}}\n{text}\n"));
    }
    for id in ODD_IDS {
        lines.push_str(&format!(
            "{}\n{{\"keyword\":\"odd\"}}\n",
            json!({"index": {"_id": id}})
        ));
    }
    // One id under two routings is two documents.
    for routing in ["a", "b", "ro/ü ting"] {
        lines.push_str(&format!(
            "{}\n{{\"keyword\":\"{routing}\"}}\n",
            json!({"index": {"_id": "routed", "routing": routing}})
        ));
    }
    lines.push_str("{\"index\":{}}\n{\"keyword\":\"the server gave the id\"}\n");
    place.write(&whole, &lines);
    // Versions: one that was written thrice, one that was set from outside, one that came again.
    for _ in 0..2 {
        place.write(&whole, "{\"index\":{\"_id\":\"numbers\"}}\n{\"long\":1}\n");
    }
    place.write(
        &whole,
        &format!(
            "{{\"index\":{{\"_id\":\"numbers\"}}}}\n{}\n",
            DOCUMENTS[0].1
        ),
    );
    place.write(
        &whole,
        "{\"index\":{\"_id\":\"from outside\",\"version\":4711,\"version_type\":\"external\"}}\n{\"long\":2}\n",
    );
    place.write(
        &whole,
        "{\"index\":{\"_id\":\"gone\"}}\n{}\n{\"delete\":{\"_id\":\"gone\"}}\n{\"index\":{\"_id\":\"again\"}}\n{}\n{\"delete\":{\"_id\":\"again\"}}\n{\"index\":{\"_id\":\"again\"}}\n{\"long\":3}\n",
    );
    // Laid out by hand, over several lines.
    let wide = "{\n  \"long\" : 9007199254740993 ,\n  \"keyword\" : \" a  b \"\n}";
    let (status, _) = place
        .server
        .request("PUT", &format!("/{whole}/_doc/wide?refresh=true"), wide)
        .unwrap();
    assert_eq!(status, 201);
    let hidden = place.make(
        "empty",
        &json!({"settings": {"hidden": true, "number_of_replicas": 0}}),
    );
    let odd = place.name("a+b=(c)!ü");
    let path = percent(&odd);
    place.send(
        "PUT",
        &format!("/{path}"),
        &json!({"settings": {"number_of_replicas": 0}}),
    );
    place.write(&path, "{\"index\":{\"_id\":\"1\"}}\n{\"a\":1}\n");
    vec![whole, hidden, odd]
}

/// A name as it stands in a path.
fn percent(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_every_type_of_field_and_every_odd_name_comes_back_and_is_proven(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    let place = Place::new(kind);
    let names = fill(place);
    let (backup, report) = back_up(&place.url()).await;
    let codes: Vec<&str> = report
        .warnings
        .iter()
        .map(|one| one.code.as_str())
        .collect();
    assert_eq!(codes, ["elasticsearch.not_one_moment"]);
    assert_eq!(
        prove(place.server, &backup, &report).await,
        Vec::<String>::new()
    );

    restore(&backup, &report, &place.copy_url()).await;
    let copy = facts(&report, &place.copy_url()).await;
    assert_eq!(mismatches(&report.objects, &copy), Vec::<String>::new());
    // By means other than ours: what the server gives to anybody.
    for name in &names {
        let bare = name.strip_prefix(&place.name("")).unwrap();
        let copied = place.copy(&place.name(bare));
        let there = documents(place.server, &percent(name));
        assert_eq!(there, documents(place.server, &percent(&copied)), "{name}");
        assert!(there.len() >= 20 || bare != "types");
    }
    let copied = place.copy(&names[0]);
    let made = place.send(
        "GET",
        &format!("/{copied}?flat_settings=true"),
        &Value::Null,
    );
    let source = place.send(
        "GET",
        &format!("/{}?flat_settings=true", names[0]),
        &Value::Null,
    );
    let (made, source) = (&made[&copied], &source[&names[0]]);
    assert_eq!(made["mappings"], source["mappings"]);
    assert_eq!(made["settings"]["index.number_of_shards"], "3");
    let some = &made["aliases"][place.copy(&place.name("some"))];
    assert_eq!(some, &source["aliases"][place.name("some")]);
    // The text of a document, not its value alone.
    let (_, text) = place
        .server
        .request("GET", &format!("/{copied}/_source/wide"), "")
        .unwrap();
    assert_eq!(text, "{\"long\":9007199254740993,\"keyword\":\" a  b \"}");
    let (_, text) = place
        .server
        .request("GET", &format!("/{copied}/_source/numbers"), "")
        .unwrap();
    assert!(text.contains("1.0e3") && text.contains("-0.0"), "{text}");
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_scroll_the_same_documents_are_read_in_the_same_order(
    #[values(Elasticsearch, OpenSearch)] kind: SearchKind,
) {
    use crate::common::try_back_up_by;
    use fettler_engine::BackupOptions;
    use fettler_engine_elasticsearch::ElasticsearchEngine;

    let place = Place::new(kind);
    fill(place);
    let engine = ElasticsearchEngine::for_tests_that_scrolls();
    let (backup, report) = try_back_up_by(engine, &place.url(), &BackupOptions::default())
        .await
        .unwrap();
    assert_eq!(report.position["method"], "scroll");
    let (other, by_point) = back_up(&place.url()).await;
    assert_eq!(by_point.position["method"], "point_in_time");
    assert_eq!(report.objects, by_point.objects);
    use fettler_engine::StreamSource as _;
    assert_eq!(backup.streams(), other.streams());
    assert_eq!(
        prove(place.server, &backup, &report).await,
        Vec::<String>::new()
    );
}
