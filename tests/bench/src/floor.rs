//! What the same steps take by themselves: a row that is inserted and committed, a word through Redis, and an update of
//! the row that is committed. No fleet that commits a job before it is accepted, and its attempt before it runs, is faster
//! than this on the same machine.

use std::time::Duration;

use fettler_test_servers::TestDatabase;
use redis::AsyncCommands as _;
use tokio_postgres::NoTls;

use crate::{Result, kinds::micros, stand::Stand};

/// What two jobs are apart: as in an idle fleet, everybody sleeps in between.
const APART: Duration = Duration::from_millis(10);
/// How long the worker waits for a word.
const PATIENCE: Duration = Duration::from_secs(60);
/// The list in Redis that a worker would wait at.
const LIST: &str = "floor";

/// From before the insert until the update has been committed, in milliseconds, so many times.
pub async fn floor(stand: &Stand, rounds: usize) -> Result<Vec<f64>> {
    let database = stand.postgres.create_database("floor")?;
    database.psql("CREATE TABLE floor (id BIGINT PRIMARY KEY, taken BIGINT)")?;
    let submitter = connect(&database).await?;
    let insert = submitter
        .prepare("INSERT INTO floor (id) VALUES ($1)")
        .await?;
    let redis = redis::Client::open(stand.redis.url())?;
    let mut wire = redis.get_multiplexed_async_connection().await?;

    let worker = connect(&database).await?;
    let update = worker
        .prepare("UPDATE floor SET taken = 1 WHERE id = $1")
        .await?;
    let mut bell = redis.get_multiplexed_async_connection().await?;
    bell.set_response_timeout(PATIENCE);
    let taking = tokio::spawn(async move {
        let mut ends = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let (_, id): (String, i64) = bell.brpop(LIST, 0.0).await?;
            worker.execute(&update, &[&id]).await?;
            ends.push(micros());
        }
        Result::<Vec<u64>>::Ok(ends)
    });

    let mut begins = Vec::with_capacity(rounds);
    for id in (0_i64..).take(rounds) {
        tokio::time::sleep(APART).await;
        begins.push(micros());
        submitter.execute(&insert, &[&id]).await?;
        wire.lpush::<_, _, ()>(LIST, id).await?;
    }
    let ends = taking.await??;
    Ok(begins
        .iter()
        .zip(ends)
        .map(|(begun, ended)| (ended - begun) as f64 / 1000.0)
        .collect())
}

async fn connect(database: &TestDatabase) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(&database.url(), NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
