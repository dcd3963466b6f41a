//! Cleanup of SQLite files: old rows by plan, archive and comparison, and the space that nobody uses.
//!
//! [`rows`] plans old rows and reads them, [`batch`] removes them and puts them back, [`space`] is about free pages and the WAL.
//! Triggers and foreign keys are off in Fettler's own connections: what they would do is asked for by the statements themselves.

mod batch;
mod rows;
mod space;

use std::{path::Path, time::Duration};

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
use rusqlite::Connection;

use crate::{
    SqliteEngine, blocking,
    connect::{open_shared, refused},
    path_of,
};

use batch::{Remover, Restorer};
use rows::RowsData;

/// What a transaction of the work waits for a lock at most.
const LOCK_WAIT: Duration = Duration::from_millis(500);

#[async_trait]
impl Cleanup for SqliteEngine {
    async fn plan(
        &self,
        _context: &EngineContext,
        target: &Target,
        request: &CleanupRequest,
    ) -> Result<CleanupPlan, EngineError> {
        let path = path_of(target)?;
        // A file has no clock; that of this machine wrote it, or is the best there is.
        let mut plan = empty_plan(Engine::Sqlite, &request.what, Timestamp::now());
        blocking(move || {
            let connection = open_shared(&path)?;
            match plan.what {
                CleanupAction::Rows { .. } => rows::plan(&path, &connection, &mut plan)?,
                CleanupAction::Vacuum { .. } | CleanupAction::Checkpoint {} => {
                    space::plan(&path, &connection, &mut plan)?;
                }
                _ => {
                    return Err(no_such_action(
                        Engine::Sqlite,
                        &plan.what,
                        "old rows (`--rows`), `--vacuum` and `--checkpoint`",
                    ));
                }
            }
            Ok(plan)
        })
        .await
    }

    async fn archive(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        sink: &dyn StreamSink,
    ) -> Result<CleanupArchive, EngineError> {
        rows::archive(context, path_of(target)?, plan_data(plan)?, sink).await
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
        let path = path_of(target)?;
        let Some(archive) = archive else {
            if matches!(plan.what, CleanupAction::Rows { .. }) {
                return Err(EngineError::Unusable {
                    what: "rows are removed by their archive, and there is none".to_owned(),
                    remedy: "start the cleanup anew".to_owned(),
                });
            }
            return space::remove(context, path, plan, terms).await;
        };
        let data: RowsData = plan_data(plan)?;
        let mut remover = Remover::open(path.clone(), data.clone()).await?;
        let mut removed = remove_records(context, archive, terms, &mut remover).await?;
        drop(remover);
        let remaining = blocking(move || {
            let connection = open(&path)?;
            data.count(&connection)
                .map_err(|error| refused(&path, "counting what is left in", error))
        })
        .await?;
        removed.remaining = Some(remaining);
        if removed.removed > 0 {
            removed.notes.push(
                "the space is used again by rows to come; `--vacuum` gives it back to the system"
                    .to_owned(),
            );
        }
        let others = remaining.saturating_sub(removed.stayed());
        if others > 0 {
            removed.notes.push(format!(
                "{others} rows older than the cut-off are not in the archive: they were written or changed after the plan, and stay for the next run"
            ));
        }
        Ok(removed)
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
        let mut restorer = Restorer::open(path_of(target)?, plan_data(plan)?).await?;
        restore_records(context, archive, dry_run, &mut restorer).await
    }
}

/// Opens the file for short transactions.
fn open(path: &Path) -> Result<Connection, EngineError> {
    let connection = open_shared(path)?;
    connection
        .busy_timeout(LOCK_WAIT)
        .map_err(|error| refused(path, "opening", error))?;
    Ok(connection)
}
