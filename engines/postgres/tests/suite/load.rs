//! How busy a server says it is.

use fettler_engine::DatabaseEngine;
use fettler_model::LoadLimits;
use fettler_test_servers::{PgMajor, PostgresServer};

use crate::common::{engine, target};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_says_how_busy_it_is_on_every_version() {
    for major in [PgMajor::V15, PgMajor::V18] {
        let server = PostgresServer::shared(major);
        let database = server.create_database("load").unwrap();
        let load = engine(major)
            .load(&target(&database.url().to_string()))
            .await
            .unwrap();
        assert!(load.connections.is_some() && load.latency_milliseconds.is_some());
        // It has no replicas, so that none is behind.
        assert_eq!(load.replication_lag_seconds, Some(0));
        let limits = LoadLimits {
            connections: Some(100_000),
            replication_lag_seconds: Some(30),
            latency_milliseconds: Some(60_000),
        };
        assert_eq!(limits.exceeded_by(&load), None);
        assert_eq!(limits.untold(&load), Vec::<&str>::new());
    }
}
