//! One database, one collection, another name.

use bson::doc;
use fettler_engine::RestoreOptions;
use fettler_model::Problem;
use fettler_test_servers::MongodbKind;

use crate::common::{back_up, client, orders, prove, server, try_restore};

fn only(names: &[&str]) -> RestoreOptions {
    RestoreOptions {
        only: names.iter().map(|name| (*name).to_owned()).collect(),
        ..RestoreOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_collection_one_database_and_what_a_pattern_fits_come_back_alone() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        let mut filler = client(&source);
        for (database, collection) in [
            ("shop", "orders"),
            ("shop", "log_1"),
            ("shop", "log_2"),
            ("web", "log_1"),
        ] {
            filler.insert(database, collection, orders(0, 30));
        }
        let (backup, report) = back_up(&source.url()).await;
        for (names, expected) in [
            (vec!["shop.orders"], vec!["shop.orders"]),
            (
                vec!["shop"],
                vec!["shop.log_1", "shop.log_2", "shop.orders"],
            ),
            (vec!["shop.log_*"], vec!["shop.log_1", "shop.log_2"]),
            (vec!["*.log_1"], vec!["shop.log_1", "web.log_1"]),
        ] {
            let copy = server(kind);
            try_restore(&backup, &report, &copy.url(), &only(&names))
                .await
                .unwrap();
            let mut copied = client(&copy);
            let mut there = Vec::new();
            for database in ["shop", "web"] {
                for collection in copied.collections(database) {
                    assert_eq!(copied.count(database, &collection), 30);
                    there.push(format!("{database}.{collection}"));
                }
            }
            assert_eq!(there, expected, "{names:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_comes_back_under_another_name_beside_the_first() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        client(&source).insert("shop", "orders", orders(0, 30));
        client(&source).insert("web", "pages", orders(0, 30));
        let (backup, report) = back_up(&source.url()).await;
        let place = format!("{}shop2", source.url());
        try_restore(&backup, &report, &place, &only(&["shop"]))
            .await
            .unwrap();
        let mut copied = client(&source);
        assert_eq!(copied.all("shop2", "orders"), copied.all("shop", "orders"));
        let error = try_restore(&backup, &report, &place, &RestoreOptions::default())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("one database"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_with_a_database_backs_up_that_one() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        client(&source).insert("shop", "orders", orders(0, 30));
        client(&source).insert("web", "pages", orders(0, 30));
        let (backup, report) = back_up(&format!("{}shop", source.url())).await;
        assert!(!report.objects.iter().any(|one| one.name.starts_with("web")));
        assert_eq!(report.identity.suggested_name.as_str(), "shop");
        assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_backup_does_not_have_is_told_with_what_it_has() {
    let source = server(MongodbKind::WithOplog);
    client(&source).insert("shop", "orders", vec![doc! { "_id": 1 }]);
    let (backup, report) = back_up(&source.url()).await;
    let error = try_restore(&backup, &report, &source.url(), &only(&["shop.order"]))
        .await
        .unwrap_err();
    let problem = Problem::from(error);
    assert_eq!(problem.code, "engine.missing.selection");
    assert!(problem.remedy.contains("shop.orders"), "{problem:?}");
}
