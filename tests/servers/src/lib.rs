//! Starts the real servers that tests need, each on a free loopback port and in a folder of its own, and leaves nothing
//! behind: neither when a value is dropped, nor when a test panics, nor when the test process is killed with `kill -9`.
//!
//! ```no_run
//! use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer};
//!
//! // A server that all tests of one binary share, with a database for this test alone:
//! let database = PostgresServer::shared(PgMajor::V18).create_database("orders")?;
//! println!("connect to {}", database.url());
//!
//! // A server for one test, which may stop, restart and kill it:
//! let mut server = PostgresServer::start(PgMajor::V15, PostgresOptions::new().setting("wal_level", "logical"))?;
//! server.kill_9()?;
//! # Ok::<(), fettler_test_servers::ServerError>(())
//! ```
//!
//! The API is synchronous, so that it serves plain tests and those of any runtime alike; a start takes about a second. What
//! is missing on a machine is an error that names `tests/servers/install.sh`: no test is ever skipped for want of a server.

mod clickhouse;
mod error;
mod front;
mod install;
mod minio;
mod mongodb;
mod mongodb_client;
mod postgres;
mod process;
mod redis;
mod redis_cluster;
mod s3_proxy;
mod search;
mod sentinel;
mod tcp_proxy;
mod wait;

pub use clickhouse::{ClickhouseServer, ClickhouseVersion};
pub use error::ServerError;
pub use install::server_folder;
pub use minio::MinioServer;
pub use mongodb::{MongodbKind, MongodbServer};
pub use mongodb_client::MongodbClient;
pub use postgres::{PgMajor, PostgresOptions, PostgresServer, TestDatabase};
pub use redis::{RedisOptions, RedisServer};
pub use redis_cluster::RedisCluster;
pub use s3_proxy::{S3Action, S3Proxy, S3Request};
pub use search::{SearchKind, SearchServer};
pub use sentinel::SentinelRedis;
pub use tcp_proxy::TcpProxy;
pub use wait::{free_port, wait_until};

/// A result with the error of this crate.
pub type Result<T, E = ServerError> = std::result::Result<T, E>;
