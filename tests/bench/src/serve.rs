//! A server for `tests/bench/run`, as the tests start it: it is gone when the standard input of this process ends.

use std::io::Read as _;

use clap::{Args, ValueEnum};
use fettler_test_servers::{
    ClickhouseServer, ClickhouseVersion, MongodbKind, MongodbServer, SearchKind, SearchServer,
};

use crate::{Result, stand};

/// What the server of MongoDB's protocol, which keeps everything in memory, may take.
const MONGODB_MEGABYTES: u32 = 16_384;

#[derive(Args)]
pub struct Options {
    /// Which server.
    #[arg(long)]
    engine: Engine,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    Redis,
    Mongodb,
    Ferretdb,
    Clickhouse,
    Opensearch,
}

/// Starts it, tells its URL, and waits.
pub fn run(options: &Options) -> Result<()> {
    match options.engine {
        Engine::Redis => {
            let server = stand::redis()?;
            serve(&server.url())
        }
        Engine::Mongodb => {
            let server = MongodbServer::start_with_memory(MONGODB_MEGABYTES)?;
            serve(&server.url())
        }
        Engine::Ferretdb => {
            let server = MongodbServer::start(MongodbKind::OnDisk)?;
            serve(&server.url())
        }
        Engine::Clickhouse => {
            let server = ClickhouseServer::start(ClickhouseVersion::V26)?;
            serve(&server.url())
        }
        Engine::Opensearch => {
            let server = SearchServer::start(
                SearchKind::OpenSearch,
                &[("path.repo", &std::env::temp_dir().to_string_lossy())],
            )?;
            serve(&server.url())
        }
    }
}

fn serve(url: &str) -> Result<()> {
    println!("{url}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
