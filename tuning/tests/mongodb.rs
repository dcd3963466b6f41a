//! MongoDB on the stand-ins: what they know of indexes and documents is found, what they do not tell is said.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Tuned, checks, found};
use fettler_engine::Workbench;
use fettler_engine_mongodb::MongodbEngine;
use fettler_test_servers::{MongodbKind, MongodbServer};
use rstest::rstest;
use serde_json::{Value, json};

async fn tell(bench: &mut dyn Workbench, command: &Value) -> Value {
    let lines = bench.run(&format!("shop {command}")).await.unwrap();
    serde_json::from_str(lines[0][0].as_ref().unwrap()).unwrap()
}

#[rstest]
#[case(MongodbKind::WithOplog)]
#[case(MongodbKind::OnDisk)]
#[tokio::test(flavor = "multi_thread")]
async fn missing_and_superfluous_indexes_and_long_arrays_are_found(#[case] kind: MongodbKind) {
    let server = MongodbServer::start(kind).unwrap();
    let engine = MongodbEngine::default();
    let tuned = Tuned {
        engine: &engine,
        url: server.url(),
    };
    let open = |look: &fettler_tuning::Look| -> Vec<String> {
        look.findings
            .iter()
            .filter(|one| one.status.as_str() == "open")
            .map(|one| one.check.clone())
            .collect()
    };
    let fresh = tuned.look(&[]).await;
    assert_eq!(open(&fresh), Vec::<String>::new(), "{fresh:#?}");

    let mut bench = tuned.open().await;
    let documents: Vec<Value> = (0..1500)
        .map(|number| json!({"_id": number, "customer": number % 300, "state": number % 7, "made": number, "events": [1, 2]}))
        .collect();
    tell(
        bench.as_mut(),
        &json!({"insert": "orders", "documents": documents}),
    )
    .await;
    let given = [
        r#"{"find": "orders", "filter": {"customer": 7}, "sort": {"made": -1}, "$db": "shop"} {"find": "orders", "filter": {"_id": 7}, "$db": "shop"}"#,
        r#"{"find": "nowhere", "filter": {"a": 7}, "$db": "shop"}"#,
    ];
    let look = tuned.look(&given).await;
    assert_eq!(look.statements, (3, 0), "{look:#?}");
    assert_eq!(
        found(&look, "index_missing"),
        ["shop.orders {customer: 1, made: -1}"],
        "{look:#?}"
    );
    assert_eq!(open(&look), ["mongodb.tune_index_missing"]);

    // Made, taken back, and made again: the server knows it.
    let names = async |bench: &mut dyn Workbench| -> Vec<String> {
        let told = tell(bench, &json!({"listIndexes": "orders", "cursor": {}})).await;
        told["cursor"]["firstBatch"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let actions: Vec<_> = look.plan.iter().collect();
    tuned.twice(&actions, false).await;
    assert_eq!(names(bench.as_mut()).await.len(), 2);
    let made = tuned.look(&given).await;
    assert_eq!(open(&made), Vec::<String>::new(), "{made:#?}");
    tuned.twice(&actions, true).await;
    assert_eq!(names(bench.as_mut()).await, ["_id_"]);

    // Too much of it.
    let index = |name: &str, key: Value| json!({"createIndexes": "orders", "indexes": [{"name": name, "key": key}]});
    tell(bench.as_mut(), &index("state", json!({"state": 1}))).await;
    tell(
        bench.as_mut(),
        &index("state_made", json!({"state": 1, "made": 1})),
    )
    .await;
    let long: Vec<u32> = (0..1200).collect();
    tell(
        bench.as_mut(),
        &json!({"insert": "journal", "documents": [{"_id": 1, "of": {"days": long}}]}),
    )
    .await;
    let look = tuned.look(&[]).await;
    assert_eq!(
        found(&look, "index_redundant"),
        ["shop.orders state"],
        "{look:#?}"
    );
    assert_eq!(found(&look, "long_arrays"), ["shop.journal of.days"]);
    assert!(look.plan.iter().all(|action| !action.safe), "{look:#?}");
    // One of the stand-ins counts no reads of indexes, and the check says so.
    let is_counted = matches!(kind, MongodbKind::WithOplog);
    assert_eq!(
        checks(&look).contains(&"index_unused"),
        !is_counted,
        "{look:#?}"
    );
    assert_eq!(
        look.conclusive.contains("mongodb.tune_index_unused"),
        is_counted
    );
    bench.close().await;
}
