//! Cleanup of Redis and Valkey: keys that would never expire and that nobody used for a time. They are archived as `DUMP` gives
//! them, and go, or get a time to live, one by one in a script that compares at the server.
//!
//! A script and no `WATCH`, because it is one message for each key, compares what the server holds while nobody else can
//! write, and is not repeated in vain where many others write.
//!
//! [`keys`] finds and archives them, [`work`] removes them and puts them back.

mod keys;
mod work;

use async_trait::async_trait;
use fettler_engine::{
    Cleanup, CleanupArchive, CleanupRequest, CleanupTerms, EngineContext, EngineError, StreamSink,
    StreamSource, Target, empty_plan, no_such_action, plan_data, prove_records, remove_records,
    restore_records,
};
use fettler_model::{
    CleanupAction, CleanupPlan, CleanupRemoved, CleanupUndone, Engine, JobId, ObjectFacts,
    Timestamp,
};
use redis::cmd;

use crate::{
    RedisEngine,
    connect::{Info, Session, end_predecessors},
    locate::{Purpose, locate},
};

use keys::KeysData;
use work::Work;

#[async_trait]
impl Cleanup for RedisEngine {
    async fn plan(
        &self,
        context: &EngineContext,
        target: &Target,
        request: &CleanupRequest,
    ) -> Result<CleanupPlan, EngineError> {
        if !matches!(request.what, CleanupAction::Keys { .. }) {
            return Err(no_such_action(
                Engine::Redis,
                &request.what,
                "keys without an end (`--keys PATTERN --idle-for TIME`)",
            ));
        }
        let mut visit = Visit::begin(context, target).await?;
        let now = visit.now().await?;
        let mut plan = empty_plan(Engine::Redis, &request.what, now);
        keys::plan(context, &mut visit, &mut plan).await?;
        Ok(plan)
    }

    async fn archive(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        sink: &dyn StreamSink,
    ) -> Result<CleanupArchive, EngineError> {
        let mut visit = Visit::begin(context, target).await?;
        keys::archive(context, &mut visit, plan, sink).await
    }

    async fn prove(
        &self,
        context: &EngineContext,
        _plan: &CleanupPlan,
        archive: &dyn StreamSource,
        objects: &[ObjectFacts],
    ) -> Result<(), EngineError> {
        prove_records(context, archive, objects).await
    }

    async fn remove(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        archive: Option<&dyn StreamSource>,
        terms: &CleanupTerms,
    ) -> Result<CleanupRemoved, EngineError> {
        let archive = archive.ok_or_else(|| EngineError::Unusable {
            what: "keys are removed by their archive, and there is none".to_owned(),
            remedy: "start the cleanup anew".to_owned(),
        })?;
        let visit = Visit::begin(context, target).await?;
        let mut work = Work::new(visit, plan_data::<KeysData>(plan)?);
        remove_records(context, archive, terms, &mut work).await
    }

    async fn undo(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        archive: &dyn StreamSource,
        _job: JobId,
        dry_run: bool,
    ) -> Result<CleanupUndone, EngineError> {
        let visit = Visit::begin(context, target).await?;
        let mut work = Work::new(visit, plan_data::<KeysData>(plan)?);
        restore_records(context, archive, dry_run, &mut work).await
    }
}

/// A session, with what is known of its server.
struct Visit {
    session: Session,
    info: Info,
    /// Whether what the session reads is not taken for use by anybody.
    leaves_no_trace: bool,
    /// The one database that the URL names.
    database: Option<u32>,
}

impl Visit {
    /// Logs in after the sessions of earlier attempts have ended (rule 6).
    async fn begin(context: &EngineContext, target: &Target) -> Result<Self, EngineError> {
        let params = locate(target, Purpose::Write, &context.stop).await?;
        let mut session = Session::of_attempt(&params, context).await?;
        end_predecessors(&mut session, context).await?;
        let info = session.info().await?;
        // Redis 7.2 and later. Without it a key that was archived has been used a moment ago.
        let leaves_no_trace = session
            .try_ask(cmd("CLIENT").arg("NO-TOUCH").arg("ON"))
            .await?
            .is_ok();
        Ok(Self {
            session,
            info,
            leaves_no_trace,
            database: params.database,
        })
    }

    /// The server's clock.
    async fn now(&mut self) -> Result<Timestamp, EngineError> {
        let (seconds, micros): (i64, i64) = self
            .session
            .ask(&cmd("TIME"), "asking for the time")
            .await?;
        Ok(Timestamp::from_micros(seconds * 1_000_000 + micros))
    }

    /// The databases that hold keys and are meant.
    async fn databases(&mut self) -> Result<Vec<u32>, EngineError> {
        let held = self.session.info().await?.keys();
        Ok(held
            .into_keys()
            .filter(|database| self.database.is_none_or(|meant| meant == *database))
            .collect())
    }
}
