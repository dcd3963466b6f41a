//! A proof finds one change, made by a client of another kind between the restore and the comparison.

use bson::{Bson, doc};
use fettler_engine::{BackupOptions, DatabaseEngine as _, testing::MemorySink};
use fettler_engine_mongodb::MongodbEngine;
use fettler_test_servers::{MongodbClient, MongodbKind};

use crate::common::{Attempt, back_up, client, orders, prove, prove_after, server, target};

type Meddle = fn(&mut MongodbClient, &str);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_one_change_of_one_document_is_found() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        let mut filler = client(&source);
        filler.insert("shop", "orders", orders(0, 500));
        filler.insert(
            "shop",
            "odd",
            vec![doc! { "_id": 1, "nothing": null, "zero": 0.0, "big": 9_007_199_254_740_993_i64, "a": 1, "b": 2 }],
        );
        let (backup, report) = back_up(&source.url()).await;
        assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());
        let mut changes: Vec<(&str, Meddle)> = vec![
            ("a null to an empty text", |client, shop| {
                client.update(
                    shop,
                    "odd",
                    doc! { "_id": 1 },
                    doc! { "$set": { "nothing": "" } },
                );
            }),
            ("one digit of a number above 2^53", |client, shop| {
                client.update(
                    shop,
                    "odd",
                    doc! { "_id": 1 },
                    doc! { "$set": { "big": 9_007_199_254_740_992_i64 } },
                );
            }),
            ("the order of fields", |client, shop| {
                let document = doc! { "_id": 1, "nothing": null, "zero": 0.0, "big": 9_007_199_254_740_993_i64, "b": 2, "a": 1 };
                client.delete(shop, "odd", doc! { "_id": 1 });
                client.insert(shop, "odd", vec![document]);
            }),
            ("a type", |client, shop| {
                let document = doc! { "_id": 1, "nothing": null, "zero": 0, "big": 9_007_199_254_740_993_i64, "a": 1, "b": 2 };
                client.delete(shop, "odd", doc! { "_id": 1 });
                client.insert(shop, "odd", vec![document]);
            }),
            ("a field", |client, shop| {
                client.update(
                    shop,
                    "orders",
                    doc! { "_id": 499 },
                    doc! { "$unset": { "note": 1 } },
                );
            }),
            ("one lost", |client, shop| {
                client.delete(shop, "orders", doc! { "_id": 77 });
            }),
            ("one doubled and another lost", |client, shop| {
                let mut one = client
                    .list(shop, doc! { "find": "orders", "filter": { "_id": 7 } })
                    .remove(0);
                one.insert("_id", 10_000);
                client.insert(shop, "orders", vec![one]);
                client.delete(shop, "orders", doc! { "_id": 8 });
            }),
            ("a collection more", |client, shop| {
                client.insert(shop, "more", vec![doc! { "_id": 1 }]);
            }),
            ("a collection less", |client, shop| {
                client.run(shop, doc! { "drop": "odd" });
            }),
            ("an index more", |client, shop| {
                client.run(shop, doc! { "createIndexes": "orders", "indexes": [{ "key": { "total": 1 }, "name": "t" }] });
            }),
        ];
        if kind == MongodbKind::WithOplog {
            changes.push(("0 to -0", |client, shop| {
                let document = doc! { "_id": 1, "nothing": null, "zero": Bson::Double(-0.0), "big": 9_007_199_254_740_993_i64, "a": 1, "b": 2 };
                client.delete(shop, "odd", doc! { "_id": 1 });
                client.insert(shop, "odd", vec![document]);
            }));
        }
        for (what, change) in changes {
            let found = prove_after(&backup, &report, &source, |client, prefix| {
                change(client, &format!("{prefix}shop"));
            })
            .await;
            assert!(!found.is_empty(), "{kind:?}: {what} was not found");
        }
        let found = prove_after(&backup, &report, &source, |client, prefix| {
            client.insert(&format!("{prefix}other"), "x", vec![doc! { "_id": 1 }]);
        })
        .await;
        assert!(!found.is_empty(), "{kind:?}: a database more was not found");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_30_a_reader_that_loses_a_document_is_found_by_the_servers_own_count() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        client(&source).insert("shop", "orders", orders(0, 100));
        let sink = MemorySink::default();
        let report = MongodbEngine::broken_for_tests_that_loses_a_document()
            .backup(
                &Attempt::new().context,
                &target(&source.url()),
                &BackupOptions::default(),
                &sink,
            )
            .await
            .unwrap();
        let found = prove(&sink.source(), &report, &source).await;
        assert_eq!(found, ["shop.orders: Some(100) counted, 99 read"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_expires_does_so_only_after_the_comparison() {
    let source = server(MongodbKind::WithOplog);
    let mut filler = client(&source);
    filler.insert(
        "shop",
        "sessions",
        vec![doc! { "_id": 1, "at": bson::DateTime::now() }],
    );
    filler.run(
        "shop",
        doc! { "createIndexes": "sessions", "indexes": [{ "key": { "at": 1 }, "name": "ttl", "expireAfterSeconds": 86_400 }] },
    );
    let (backup, report) = back_up(&source.url()).await;
    let found = prove_after(&backup, &report, &source, |client, prefix| {
        let indexes = client.list(
            &format!("{prefix}shop"),
            doc! { "listIndexes": "sessions", "cursor": {} },
        );
        let ttl = indexes
            .iter()
            .find(|one| one.get_str("name").ok() == Some("ttl"))
            .unwrap();
        assert_eq!(ttl.get_i32("expireAfterSeconds").unwrap(), i32::MAX);
    })
    .await;
    assert_eq!(found, Vec::<String>::new());
    let copy = server(MongodbKind::WithOplog);
    crate::common::restore(&backup, &report, &copy.url()).await;
    let indexes = client(&copy).list("shop", doc! { "listIndexes": "sessions", "cursor": {} });
    let ttl = indexes
        .iter()
        .find(|one| one.get_str("name").ok() == Some("ttl"))
        .unwrap();
    assert_eq!(ttl.get_i32("expireAfterSeconds").unwrap(), 86_400);
}
