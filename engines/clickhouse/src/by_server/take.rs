//! Rows out of a server's backup, by `RESTORE TABLE … AS`.

use fettler_engine::{EngineContext, EngineError};

use super::{LONG_STATEMENT, LOOK_EVERY, OwnBackup, OwnTable, look, refused};
use crate::{
    error::Refusal,
    fingerprint::AS_STORED,
    http::{Session, Setting, random_word},
    shadow::stop_merges,
    sql::{literal, table as full_table},
};

/// Rows in the order in which they lie, and come in as they were.
const AS_THEY_WERE: [Setting; 6] = [
    ("max_threads", "1"),
    ("max_insert_threads", "1"),
    ("optimize_on_insert", "0"),
    ("insert_deduplicate", "0"),
    ("insert_allow_materialized_columns", "1"),
    ("max_partitions_per_insert_block", "0"),
];

/// A restore by the server.
#[derive(Debug)]
pub(crate) struct Taking<'a> {
    pub(crate) context: &'a EngineContext,
    pub(crate) session: &'a Session,
    pub(crate) own: &'a OwnBackup,
}

impl Taking<'_> {
    /// Puts what the server's backup has of a table behind what is in a table that has the same columns. `partitions` are the
    /// only ones that are meant.
    pub(crate) async fn rows(
        &self,
        database: &str,
        source: &OwnTable,
        into: &str,
        partitions: Option<&[String]>,
    ) -> Result<(), EngineError> {
        let chosen = partitions.map_or_else(String::new, |ids| {
            let ids: Vec<String> = ids.iter().map(|id| format!("ID {}", literal(id))).collect();
            format!(" PARTITIONS {}", ids.join(", "))
        });
        let id = format!(
            "fettler-restore-{}-{}",
            self.context.attempt.job.uuid().simple(),
            random_word()
        );
        let from = full_table(database, &source.name);
        let ask = format!(
            "RESTORE TABLE {from} AS {into}{chosen} FROM {} SETTINGS id = {}, allow_different_table_def = true, allow_non_empty_tables = true ASYNC",
            self.own.destination()?,
            literal(&id)
        );
        let doing = format!("restoring {}", source.name);
        self.context.check_stop()?;
        self.context.fence.check().await?;
        let asked = self.session.try_run(&ask, &LONG_STATEMENT, &doing).await?;
        asked.map_err(|refusal| self.refused(&refusal, &doing))?;
        self.wait(&id, &doing).await
    }

    /// Puts a copy of rows into a table of any kind, through a table in a scratch database.
    pub(crate) async fn rows_through(
        &self,
        database: &str,
        source: &OwnTable,
        scratch: &str,
        into: &str,
        columns: &str,
    ) -> Result<(), EngineError> {
        let through = full_table(scratch, &source.name);
        let doing = format!("restoring {}", source.name);
        self.rows(database, source, &through, None).await?;
        stop_merges(self.session, &through).await?;
        self.context.fence.check().await?;
        // They stand in the statement, so that nothing on the way leaves them out.
        let settings: Vec<String> = AS_THEY_WERE
            .iter()
            .filter(|(name, _)| self.session.knows(name))
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        let copy = format!(
            "INSERT INTO {into} ({columns}) SETTINGS {} SELECT {columns} FROM {through}",
            settings.join(", ")
        );
        self.context
            .progress
            .while_waiting(self.session.try_run(&copy, &AS_STORED, &doing))
            .await?
            .map_err(|refusal| refusal.doing(&self.session.server(), &doing))
    }

    fn refused(&self, refusal: &Refusal, doing: &str) -> EngineError {
        refused(&self.session.server(), refusal, doing, &self.own.place)
    }

    async fn wait(&self, id: &str, doing: &str) -> Result<(), EngineError> {
        loop {
            let Some(status) = look(self.session, id).await? else {
                return Err(EngineError::Database {
                    what: format!(
                        "{doing}: {} knows nothing of it any more: it was started again",
                        self.session.server()
                    ),
                    transient: true,
                });
            };
            if status.is_done() {
                return Ok(());
            }
            if !status.is_running() {
                let refusal = Refusal::read(&status.error);
                return Err(self.refused(&refusal, doing));
            }
            self.context.progress.pulse();
            self.context
                .stop
                .run_until_cancelled(tokio::time::sleep(LOOK_EVERY))
                .await
                .ok_or(EngineError::Stopped)?;
        }
    }
}
