//! What is refused, and what is said then.

use bson::doc;
use fettler_engine::{
    BackupOptions, DatabaseEngine as _, EngineError, RestoreOptions, testing::MemorySink,
};
use fettler_model::{ErrorClass, Problem};
use fettler_test_servers::{MongodbKind, TcpProxy, free_port};

use crate::common::{
    Attempt, ENGINE, back_up, client, orders, prove, restore, server, target, try_back_up,
    try_restore,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_there_is_replaced_unless_that_was_said() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        client(&source).insert("shop", "orders", orders(0, 30));
        let (backup, report) = back_up(&source.url()).await;
        let copy = server(kind);
        let mut there = client(&copy);
        there.insert("shop", "orders", vec![doc! { "_id": "mine" }]);
        there.insert("shop", "other", vec![doc! { "_id": "mine" }]);
        let error = try_restore(&backup, &report, &copy.url(), &RestoreOptions::default())
            .await
            .unwrap_err();
        assert!(matches!(error, EngineError::NotEmpty { .. }), "{error:?}");
        assert!(error.to_string().contains("shop.orders"), "{error}");
        assert_eq!(there.count("shop", "orders"), 1);
        let options = RestoreOptions {
            overwrite: true,
            ..RestoreOptions::default()
        };
        try_restore(&backup, &report, &copy.url(), &options)
            .await
            .unwrap();
        assert_eq!(
            there.all("shop", "orders"),
            client(&source).all("shop", "orders")
        );
        assert_eq!(
            there.count("shop", "other"),
            1,
            "what the backup does not have stays"
        );
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let url = format!("mongodb://127.0.0.1:{}/", free_port());
    let error = try_back_up(&url).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient);
    assert_eq!(Problem::from(error).code, "engine.unreachable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_in_the_middle_ends_the_attempt_and_another_one_succeeds() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        client(&source).insert("shop", "orders", orders(0, 8000));
        let proxy = TcpProxy::start(source.port()).unwrap();
        proxy.cut_after_bytes_to_client(500_000);
        let error = try_back_up(&source.url_via(proxy.port()))
            .await
            .unwrap_err();
        assert_eq!(error.class(), ErrorClass::Transient, "{error:?}");
        let (backup, report) = back_up(&source.url()).await;

        let copy = server(kind);
        let proxy = TcpProxy::start(copy.port()).unwrap();
        proxy.cut_after_bytes_to_server(500_000);
        let error = try_restore(
            &backup,
            &report,
            &source.url_via(proxy.port()),
            &RestoreOptions::default(),
        )
        .await
        .unwrap_err();
        assert_eq!(error.class(), ErrorClass::Transient, "{error:?}");
        let options = RestoreOptions {
            overwrite: true,
            ..RestoreOptions::default()
        };
        try_restore(&backup, &report, &copy.url(), &options)
            .await
            .unwrap();
        assert_eq!(client(&copy).count("shop", "orders"), 8000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_a_backup_and_a_restore_soon() {
    let source = server(MongodbKind::WithOplog);
    client(&source).insert("shop", "orders", orders(0, 5000));
    let proxy = TcpProxy::start(source.port()).unwrap();
    proxy.throttle(Some(100_000));
    let attempt = Attempt::new();
    let stop = attempt.context.stop.clone();
    let url = source.url_via(proxy.port());
    let sink = MemorySink::default();
    let (place, options) = (target(&url), BackupOptions::default());
    let running = ENGINE.backup(&attempt.context, &place, &options, &sink);
    let stopping = async {
        let waiting = tokio::task::spawn_blocking(move || {
            let waited = proxy.wait_for_bytes_to_client(20_000, std::time::Duration::from_secs(30));
            (proxy, waited)
        });
        let (proxy, waited) = waiting.await.unwrap();
        waited.unwrap();
        stop.cancel();
        proxy
    };
    let (outcome, _proxy) = tokio::join!(running, stopping);
    assert!(matches!(outcome, Err(EngineError::Stopped)), "{outcome:?}");

    let (backup, report) = back_up(&source.url()).await;
    let attempt = Attempt::new();
    attempt.context.stop.cancel();
    let outcome = ENGINE
        .restore(
            &attempt.context,
            &backup,
            &report,
            &target(&source.url()),
            &RestoreOptions::default(),
        )
        .await;
    assert!(matches!(outcome, Err(EngineError::Stopped)), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_of_several_types_all_come() {
    for kind in MongodbKind::ALL {
        let source = server(kind);
        let mut filler = client(&source);
        filler.insert("shop", "mixed", orders(0, 200));
        let texts = (0..200).map(|n| doc! { "_id": format!("text {n}") });
        filler.insert("shop", "mixed", texts);
        let (backup, report) = back_up(&source.url()).await;
        assert_eq!(prove(&backup, &report, &source).await, Vec::<String>::new());
        let copy = server(kind);
        restore(&backup, &report, &copy.url()).await;
        assert_eq!(client(&copy).count("shop", "mixed"), 400);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_is_dropped_while_it_is_read_makes_the_attempt_try_again() {
    let source = server(MongodbKind::WithOplog);
    let mut filler = client(&source);
    filler.insert("shop", "orders", orders(0, 4000));
    filler.insert("shop", "zebra", orders(0, 10));
    let proxy = TcpProxy::start(source.port()).unwrap();
    proxy.throttle(Some(400_000));
    let url = source.url_via(proxy.port());
    let dropping = tokio::task::spawn_blocking(move || {
        proxy
            .wait_for_bytes_to_client(60_000, std::time::Duration::from_secs(30))
            .unwrap();
        filler.run("shop", doc! { "drop": "orders" });
        proxy.throttle(None);
        proxy
    });
    let outcome = try_back_up(&url).await;
    let _proxy = dropping.await.unwrap();
    match outcome {
        Err(error) => assert_eq!(error.class(), ErrorClass::Transient, "{error:?}"),
        Ok((_, report)) => panic!("{report:?}"),
    }
}

/// What an oplog that is too small no longer holds was not followed: the attempt says so, and is no backup.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oplog_that_no_longer_reaches_back_to_the_start_ends_the_attempt() {
    let source = server(MongodbKind::WithOplog);
    let mut filler = client(&source);
    filler.insert("shop", "orders", orders(0, 4000));
    let proxy = TcpProxy::start(source.port()).unwrap();
    proxy.throttle(Some(400_000));
    let url = source.url_via(proxy.port());
    let losing = tokio::task::spawn_blocking(move || {
        proxy
            .wait_for_bytes_to_client(60_000, std::time::Duration::from_secs(30))
            .unwrap();
        let all = doc! { "delete": "oplog.rs", "deletes": [{ "q": {}, "limit": 0 }] };
        filler.run("local", all);
        filler.insert("shop", "orders", orders(5000, 5001));
        proxy.throttle(None);
        proxy
    });
    let outcome = try_back_up(&url).await;
    let _proxy = losing.await.unwrap();
    match outcome {
        Err(error) => {
            assert_eq!(error.class(), ErrorClass::Transient, "{error:?}");
            assert!(error.to_string().contains("oplog"), "{error}");
        }
        Ok((_, report)) => panic!("{report:?}"),
    }
}
