//! Cleanup of ClickHouse: old partitions, and parts that lie in its folders and belong to no table any more.
//!
//! [`partitions`] plans old partitions, [`archive`] stores their rows as a backup does, [`remove`] tries the archive out, moves a
//! partition aside, looks at it there and drops it, [`undo`] puts rows back past every view. [`detached`] is about detached parts.

mod archive;
mod detached;
mod partitions;
mod remove;
mod scratch;
mod undo;

use async_trait::async_trait;
use fettler_engine::{
    Cleanup, CleanupArchive, CleanupRequest, CleanupTerms, EngineContext, EngineError, StreamSink,
    StreamSource, Target, empty_plan, no_such_action, plan_data,
};
use fettler_model::{
    CleanupAction, CleanupPlan, CleanupRemoved, CleanupUndone, Engine, JobId, ObjectFacts,
    Timestamp,
};

use crate::{ClickhouseEngine, backup::end_predecessors, http::Session, params::Params};

#[async_trait]
impl Cleanup for ClickhouseEngine {
    async fn plan(
        &self,
        context: &EngineContext,
        target: &Target,
        request: &CleanupRequest,
    ) -> Result<CleanupPlan, EngineError> {
        let is_partitions = match &request.what {
            CleanupAction::Partitions { .. } => true,
            CleanupAction::DetachedParts { .. } => false,
            other => {
                return Err(no_such_action(
                    Engine::Clickhouse,
                    other,
                    "old partitions (`--partitions TABLE --older-than TIME`) and detached parts (`--detached-parts --older-than TIME`)",
                ));
            }
        };
        let session = begin(context, target).await?;
        let plan = empty_plan(Engine::Clickhouse, &request.what, now(&session).await?);
        if is_partitions {
            partitions::plan(context, &session, plan).await
        } else {
            detached::plan(&session, plan).await
        }
    }

    async fn archive(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        sink: &dyn StreamSink,
    ) -> Result<CleanupArchive, EngineError> {
        let session = begin(context, target).await?;
        archive::write(context, &session, &plan_data(plan)?, sink).await
    }

    async fn prove(
        &self,
        context: &EngineContext,
        _plan: &CleanupPlan,
        archive: &dyn StreamSource,
        objects: &[ObjectFacts],
    ) -> Result<(), EngineError> {
        archive::prove(context, archive, objects).await
    }

    async fn remove(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        archive: Option<&dyn StreamSource>,
        _terms: &CleanupTerms,
    ) -> Result<CleanupRemoved, EngineError> {
        let session = begin(context, target).await?;
        match (&plan.what, archive) {
            (CleanupAction::DetachedParts { .. }, _) => {
                detached::remove(context, &session, &plan_data(plan)?).await
            }
            (_, Some(archive)) => {
                remove::remove(context, &session, &plan_data(plan)?, archive).await
            }
            (_, None) => Err(EngineError::Unusable {
                what: "partitions are removed by their archive, and there is none".to_owned(),
                remedy: "start the cleanup anew".to_owned(),
            }),
        }
    }

    async fn undo(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        archive: &dyn StreamSource,
        job: JobId,
        dry_run: bool,
    ) -> Result<CleanupUndone, EngineError> {
        let session = begin(context, target).await?;
        let undoing = undo::Undoing {
            context,
            session: &session,
            data: &plan_data(plan)?,
            archive,
            cleanup: job,
            dry_run,
        };
        undoing.all().await
    }
}

/// A session of the attempt, after statements of earlier ones have ended.
async fn begin(context: &EngineContext, target: &Target) -> Result<Session, EngineError> {
    let params = Params::of(target)?;
    if params.cluster.is_some() {
        return Err(EngineError::Missing {
            code: "url",
            what: "a cleanup works on one server, and the database's URL names a cluster"
                .to_owned(),
            remedy: "name each server without `cluster`".to_owned(),
        });
    }
    let session = Session::of_attempt(&params, context).await?;
    end_predecessors(&session, context).await?;
    Ok(session)
}

/// The server's clock.
async fn now(session: &Session) -> Result<Timestamp, EngineError> {
    let doing = "asking for the time";
    let rows = session
        .rows("SELECT toString(toUnixTimestamp(now()))", doing)
        .await?;
    rows.first()
        .and_then(|row| row[0].parse::<i64>().ok())
        .map(|seconds| Timestamp::from_micros(seconds * 1_000_000))
        .ok_or_else(|| unexpected(session, doing))
}

fn unexpected(session: &Session, doing: &str) -> EngineError {
    EngineError::Database {
        what: format!(
            "{doing}: {} answers what was not expected",
            session.server()
        ),
        transient: false,
    }
}
