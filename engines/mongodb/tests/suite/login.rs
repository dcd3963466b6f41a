//! Ways to reach a server, and who it is.

use fettler_engine::{DatabaseEngine as _, EngineError, PreflightLevel};
use fettler_model::Problem;
use fettler_test_servers::{MongodbKind, PgMajor, PostgresServer};

use crate::common::{ENGINE, back_up, client, orders, server, target, try_back_up};

/// FerretDB's users are PostgreSQL's, who log in by `PLAIN`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_a_wrong_password_is_login_refused_and_no_error_repeats_it() {
    let server = server(MongodbKind::OnDisk);
    let postgres = PostgresServer::shared(PgMajor::V18);
    client(&server).insert("shop", "orders", orders(0, 10));
    let wrong = server.url_as(postgres.user(), "hunter2");
    let error = ENGINE.identify(&target(&wrong)).await.unwrap_err();
    assert!(!format!("{error:?} {error}").contains("hunter2"));
    assert!(
        matches!(error, EngineError::LoginRefused { .. }),
        "{error:?}"
    );
    let error = try_back_up(&wrong).await.unwrap_err();
    assert_eq!(Problem::from(error).code, "engine.login_refused");
    let right = server.url_as(postgres.user(), postgres.password());
    let (_, report) = back_up(&right).await;
    assert!(
        !serde_json::to_string(&report)
            .unwrap()
            .contains(postgres.password())
    );
}

/// A server that has no users cannot let one in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_the_server_does_not_know_is_refused() {
    let server = server(MongodbKind::WithOplog);
    let url = server.url().replace("mongodb://", "mongodb://ann:hunter2@");
    let error = ENGINE.identify(&target(&url)).await.unwrap_err();
    assert!(
        matches!(error, EngineError::LoginRefused { .. }),
        "{error:?}"
    );
    assert!(!format!("{error:?} {error}").contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ways_to_a_server_lead_to_one_identity() {
    for kind in MongodbKind::ALL {
        let server = server(kind);
        client(&server).insert("shop", "orders", orders(0, 500));
        let by_number = ENGINE.identify(&target(&server.url())).await.unwrap();
        let by_name = format!("mongodb://localhost:{}/?hostaddr=127.0.0.1", server.port());
        let by_name = ENGINE.identify(&target(&by_name)).await.unwrap();
        assert_eq!(by_number.key, by_name.key);
        assert_eq!(by_number.lineage, by_name.lineage);
        let one = format!("{}shop", server.url());
        assert_ne!(
            by_number.key,
            ENGINE.identify(&target(&one)).await.unwrap().key
        );
        assert!(by_number.estimated_bytes > 0);
        ENGINE.load(&target(&server.url())).await.unwrap();
        ENGINE.free_bytes(&target(&server.url())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preflight_says_whether_there_is_an_oplog() {
    for kind in MongodbKind::ALL {
        let server = server(kind);
        client(&server).insert("shop", "orders", orders(0, 10));
        let items = ENGINE
            .preflight(&target(&server.url()), &Default::default())
            .await
            .unwrap();
        let level = |subject: &str| {
            items
                .iter()
                .find(|one| one.subject == subject)
                .unwrap()
                .level
        };
        assert_eq!(level("server"), PreflightLevel::Fine);
        assert_eq!(level("collections"), PreflightLevel::Fine);
        let expected = match kind {
            MongodbKind::WithOplog => PreflightLevel::Fine,
            MongodbKind::OnDisk => PreflightLevel::Missing,
        };
        assert_eq!(level("oplog"), expected, "{items:?}");
        back_up(&server.url()).await;
    }
}
