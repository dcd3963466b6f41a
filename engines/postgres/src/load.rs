//! How busy a server is, asked cheaply before long work begins.

use std::time::Instant;

use fettler_engine::{EngineError, Target};
use fettler_model::ServerLoad;

use crate::{connect::connect, identify::VISITOR, params::Params};

/// Connections, and the lag: of the replica itself, or of the one of its replicas that is furthest behind. A replica
/// that has replayed all that it has received is not behind. `-1` where the role may not see it.
const LOAD: &str = "
    SELECT (SELECT count(*) FROM pg_catalog.pg_stat_activity
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()),
           CASE WHEN pg_is_in_recovery() THEN
                CASE WHEN pg_last_wal_receive_lsn() IS NOT DISTINCT FROM pg_last_wal_replay_lsn() THEN 0
                     ELSE coalesce(ceil(extract(epoch FROM now() - pg_last_xact_replay_timestamp())), -1) END
           ELSE (SELECT CASE WHEN bool_or(state IS NULL) THEN -1
                             ELSE coalesce(ceil(extract(epoch FROM max(replay_lag))), 0) END
                 FROM pg_catalog.pg_stat_replication) END::bigint";

/// Asks.
pub(crate) async fn load(target: &Target) -> Result<ServerLoad, EngineError> {
    let params = Params::of(target)?;
    let mut session = connect(&params, VISITOR).await?;
    let asked = Instant::now();
    session
        .one("SELECT 1")
        .await
        .map_err(|error| error.doing("asking how long an answer takes"))?;
    let latency = asked.elapsed();
    let row = session
        .one(LOAD)
        .await
        .map_err(|error| error.doing("asking how busy the server is"))?;
    let (connections, lag): (u64, i64) = (row.get(0)?, row.get(1)?);
    session.close().await;
    Ok(ServerLoad {
        connections: Some(connections),
        replication_lag_seconds: u64::try_from(lag).ok(),
        latency_milliseconds: u64::try_from(latency.as_millis()).ok(),
    })
}
