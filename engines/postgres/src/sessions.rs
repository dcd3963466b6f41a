//! An attempt's sessions, seen from outside: ending those of earlier attempts of the same job (rule 6).

use std::time::Duration;

use fettler_engine::{AttemptName, EngineContext, EngineError, Target};
use tokio::time::{Instant, sleep};

use crate::{connect::connect, names::literal, params::Params, wire::Session};

/// How long the sessions of an earlier attempt may take to end.
const END_WAIT: Duration = Duration::from_secs(30);
/// Between two looks at them.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Ends the sessions of earlier attempts of this job, and waits until they are gone.
pub(crate) async fn end_predecessors(
    params: &Params,
    context: &EngineContext,
) -> Result<(), EngineError> {
    let mut session = connect(params, &context.attempt.to_string()).await?;
    end_predecessors_on(&mut session, context).await?;
    session.close().await;
    Ok(())
}

/// The same on a session that is there already.
pub(crate) async fn end_predecessors_on(
    session: &mut Session,
    context: &EngineContext,
) -> Result<(), EngineError> {
    let theirs = format!(
        "starts_with_job AND application_name <> {mine}
         FROM (SELECT pid, application_name, left(application_name, {length}) = {prefix} AS starts_with_job
               FROM pg_catalog.pg_stat_activity) AS sessions
         WHERE starts_with_job AND application_name <> {mine}",
        mine = literal(&context.attempt.to_string()),
        prefix = literal(&AttemptName::prefix_of(context.attempt.job)),
        length = AttemptName::prefix_of(context.attempt.job).len(),
    );
    let give_up = Instant::now() + END_WAIT;
    loop {
        let left = session
            .query(&format!(
                "SELECT pg_catalog.pg_terminate_backend(pid), {theirs}"
            ))
            .await
            .map_err(|error| error.doing("ending the sessions of an earlier attempt"))?
            .len();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(EngineError::Database {
                what: format!("{left} sessions of an earlier attempt of this job do not end"),
                transient: true,
            });
        }
        context
            .stop
            .run_until_cancelled(sleep(LOOK_EVERY))
            .await
            .ok_or(EngineError::Stopped)?;
    }
}

/// Ends this attempt's own sessions after it failed or was stopped, as far as that can be done quickly: a
/// server notices late that the client of a long statement is gone.
pub(crate) async fn end_own_after_failure<T>(
    target: &Target,
    context: &EngineContext,
    answer: &Result<T, EngineError>,
) {
    const LIMIT: Duration = Duration::from_secs(5);
    // Where nobody could log in, there is nobody to end.
    if matches!(
        answer,
        Ok(_)
            | Err(EngineError::Unreachable { .. }
                | EngineError::LoginRefused { .. }
                | EngineError::Missing { .. })
    ) {
        return;
    }
    let work = async {
        let params = Params::of(target)?;
        let mut session = connect(&params, &context.attempt.to_string()).await?;
        session
            .execute(&format!(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
                 WHERE application_name = {} AND pid <> pg_catalog.pg_backend_pid()",
                literal(&context.attempt.to_string())
            ))
            .await
            .map_err(|error| error.doing("ending own sessions"))?;
        session.close().await;
        Ok::<(), EngineError>(())
    };
    match tokio::time::timeout(LIMIT, work).await {
        Ok(Ok(())) => {}
        // The next attempt ends them.
        Ok(Err(error)) => tracing::debug!(%error, "own sessions were left to end by themselves"),
        Err(_) => tracing::debug!("own sessions were left to end by themselves"),
    }
}
