//! Load awareness: before a long job begins, its database's server is asked how busy it is, where the database's record
//! says how busy it may be.

use std::time::Duration;

use fettler_model::{LoadLimits, Problem};

use crate::JobContext;

/// A busy server is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Snoozes the job while its database's server is busier than it may be.
///
/// # Errors
///
/// The snooze, in words such as `replication lag 45 s > 30 s`. A server that cannot be asked is the job's own to meet.
pub async fn check_load(context: &JobContext, limits: &LoadLimits) -> Result<(), Problem> {
    if limits.is_empty() {
        return Ok(());
    }
    let database = context.database().await?;
    let target = context
        .target(&database.url, database.password.as_ref())
        .await?;
    let engine = fettler_engines::engine(database.url.engine());
    let load = match engine.load(&target).await {
        Ok(load) => load,
        Err(error) => {
            tracing::debug!(%error, "the server could not be asked how busy it is");
            return Ok(());
        }
    };
    for what in limits.untold(&load) {
        context
            .ledger
            .log(&format!(
                "warning: the server does not tell its {what}: the limit on it cannot be kept"
            ))
            .await;
    }
    match limits.exceeded_by(&load) {
        Some(what) => Err(Problem::snooze("database.load", what, ASK_AGAIN)),
        None => Ok(()),
    }
}
