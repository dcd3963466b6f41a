//! Cleanup: what goes is planned once, archived, read back, and then removed in short transactions, in each of which the server
//! itself finds that a row still is what the archive holds.
//!
//! [`rows`] plans old rows, [`archive`] writes and reads their archive, [`batch`] makes the statements of one batch, [`remove`]
//! removes, [`undo`] puts back; [`partitions`] is about old partitions, [`orphans`] about what nobody uses, [`repack`] about tables
//! whose files are mostly empty.

mod archive;
mod batch;
mod orphans;
mod partitions;
mod remove;
mod repack;
mod rows;
mod undo;

use std::time::Duration;

use async_trait::async_trait;
use fettler_engine::{
    Cleanup, CleanupArchive, CleanupRequest, CleanupTerms, EngineContext, EngineError, StreamSink,
    StreamSource, Target, cutoff,
};
use fettler_model::{
    CleanupAction, CleanupPlan, CleanupRefusal, CleanupRemoved, CleanupUndone, Engine, JobId,
    ObjectFacts, Timestamp,
};
use serde::de::DeserializeOwned;

use crate::{
    PostgresEngine,
    catalogue::{ServerFacts, settle},
    connect::connect,
    params::Params,
    sessions,
    wire::Session,
};

/// What a transaction of the work waits for a lock at most: whoever waits behind it waits no longer.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// What a statement of a batch may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// A transaction whose client is stuck ends by itself, and its locks with it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

#[async_trait]
impl Cleanup for PostgresEngine {
    async fn plan(
        &self,
        context: &EngineContext,
        target: &Target,
        request: &CleanupRequest,
    ) -> Result<CleanupPlan, EngineError> {
        let mut visit = Visit::begin(context, target).await?;
        let now = visit.now().await?;
        let mut plan = CleanupPlan {
            engine: Engine::Postgres,
            what: request.what.clone(),
            made: now,
            cutoff: cutoff(&request.what, now),
            items: Vec::new(),
            depends: Vec::new(),
            refusals: Vec::new(),
            notes: Vec::new(),
            can_be_undone: false,
            engine_data: serde_json::Value::Null,
        };
        if visit.server.in_recovery {
            refuse(
                &mut plan,
                "the server is a replica, which takes no changes",
                "name the primary server",
            );
            visit.end().await;
            return Ok(plan);
        }
        match &request.what {
            CleanupAction::Rows { .. } => rows::plan(&mut visit, &mut plan).await?,
            CleanupAction::Partitions { .. } => partitions::plan(&mut visit, &mut plan).await?,
            CleanupAction::Repack {
                only,
                empty_percent,
            } => repack::plan(&mut visit, &mut plan, &self.tools, only, *empty_percent).await?,
            _ => orphans::plan(&mut visit, &mut plan).await?,
        }
        visit.end().await;
        Ok(plan)
    }

    async fn archive(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        sink: &dyn StreamSink,
    ) -> Result<CleanupArchive, EngineError> {
        let answer = archive::write(context, target, plan, sink).await;
        sessions::end_own_after_failure(target, context, &answer).await;
        answer
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
        terms: &CleanupTerms,
    ) -> Result<CleanupRemoved, EngineError> {
        let answer = match (&plan.what, archive) {
            (CleanupAction::Rows { .. }, Some(archive)) => {
                remove::remove(context, target, plan, archive, terms).await
            }
            (CleanupAction::Partitions { .. }, Some(archive)) => {
                partitions::remove(context, target, plan, archive).await
            }
            (CleanupAction::Rows { .. } | CleanupAction::Partitions { .. }, None) => {
                Err(EngineError::Unusable {
                    what: "rows are removed by their archive, and there is none".to_owned(),
                    remedy: "start the cleanup anew".to_owned(),
                })
            }
            (CleanupAction::Repack { .. }, _) => {
                repack::remove(context, target, plan, &self.tools).await
            }
            _ => orphans::remove(context, target, plan).await,
        };
        sessions::end_own_after_failure(target, context, &answer).await;
        answer
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
        let answer = undo::undo(context, target, plan, archive, job, dry_run).await;
        sessions::end_own_after_failure(target, context, &answer).await;
        answer
    }
}

/// A session that is settled, with what is known of its server.
pub(super) struct Visit {
    pub(super) session: Session,
    pub(super) server: ServerFacts,
}

impl Visit {
    /// Logs in after the sessions of earlier attempts have ended (rule 6).
    pub(super) async fn begin(
        context: &EngineContext,
        target: &Target,
    ) -> Result<Self, EngineError> {
        let params = Params::of(target)?;
        let mut session = connect(&params, &context.attempt.to_string()).await?;
        sessions::end_predecessors_on(&mut session, context).await?;
        let server = ServerFacts::read(&mut session).await?;
        settle(&mut session, &server).await?;
        session
            .execute(&format!(
                "SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}",
                LOCK_TIMEOUT.as_millis(),
                IDLE_TIMEOUT.as_millis()
            ))
            .await
            .map_err(|error| error.doing("preparing a session"))?;
        Ok(Self { session, server })
    }

    /// For many short transactions: a statement has its time, and rows are found by their keys whatever statistics say.
    pub(super) async fn for_batches(&mut self) -> Result<(), EngineError> {
        self.session
            .execute(&format!(
                "SET statement_timeout = {}; SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off",
                STATEMENT_TIMEOUT.as_millis()
            ))
            .await
            .map_err(|error| error.doing("preparing a session"))
    }

    /// The server's clock.
    pub(super) async fn now(&mut self) -> Result<Timestamp, EngineError> {
        let row = self
            .session
            .one("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
            .await
            .map_err(|error| error.doing("asking for the time"))?;
        Ok(Timestamp::from_micros(row.get(0)?))
    }

    pub(super) async fn end(self) {
        self.session.close().await;
    }
}

/// Adds a reason why nothing is done.
pub(super) fn refuse(plan: &mut CleanupPlan, what: impl Into<String>, remedy: impl Into<String>) {
    plan.refusals.push(CleanupRefusal {
        what: what.into(),
        remedy: remedy.into(),
    });
}

/// What a plan kept for its engine.
pub(super) fn data<T: DeserializeOwned>(plan: &CleanupPlan) -> Result<T, EngineError> {
    serde_json::from_value(plan.engine_data.clone()).map_err(|error| EngineError::Unusable {
        what: format!("the plan of the cleanup cannot be read: {error}"),
        remedy: "a newer Fettler may have made it: use that version or a later one".to_owned(),
    })
}
