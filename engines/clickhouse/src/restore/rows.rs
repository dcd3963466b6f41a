//! Rows of one table into a server.
//!
//! A whole table is filled where it stands: it is new, and no view reads it yet. Partitions that come back into a table
//! which is there go into a table beside it and from there by links, in one step and past every view.

use std::sync::{Arc, Mutex, PoisonError};

use fettler_engine::{EngineContext, EngineError, StreamSource};
use futures::StreamExt as _;
use reqwest::Body;

use super::plan::{Plan, Planned};
use crate::{
    backup::PartStream,
    by_server::{OwnTable, Taking},
    catalogue::{Content, SCRATCH_PREFIX},
    http::{Session, Setting},
    shadow::{DROP_ANY_SIZE, LOOSE_TYPES, database_artefact, drop_database, stop_merges},
    sql::{literal, quoted, table as full_table},
};

/// Rows come in as they were: none is left out as known, none is merged, none is computed again.
const AS_THEY_WERE: [Setting; 12] = [
    ("optimize_on_insert", "0"),
    ("insert_deduplicate", "0"),
    ("deduplicate_blocks_in_dependent_materialized_views", "0"),
    ("async_insert", "0"),
    ("insert_allow_materialized_columns", "1"),
    ("input_format_null_as_default", "0"),
    ("input_format_defaults_for_omitted_fields", "0"),
    ("max_partitions_per_insert_block", "0"),
    ("max_execution_time", "0"),
    ("parallel_view_processing", "0"),
    ("materialized_views_ignore_errors", "0"),
    ("log_queries", "0"),
];

/// A table that is being filled.
#[derive(Debug)]
pub(super) struct Filling {
    /// Where rows go, quoted.
    place: String,
    columns: String,
    name: String,
    /// Columns that become MATERIALIZED at the end, each as an ALTER wants it.
    late: Vec<String>,
    /// For partitions of a table that is there: its name, the partitions, and the database beside it.
    beside: Option<(String, Vec<String>, String)>,
    /// The table that a view keeps its rows in, quoted.
    inner: Option<String>,
}

impl Filling {
    /// Makes a table ready for rows.
    pub(super) async fn prepare(
        context: &EngineContext,
        session: &Session,
        plan: &Plan<'_>,
        table: &Planned<'_>,
    ) -> Result<Self, EngineError> {
        let _whole = plan;
        let definition = &table.record.definition;
        let columns: Vec<String> = table.record.read.iter().map(|name| quoted(name)).collect();
        let mut into = Self {
            place: table.place(),
            columns: columns.join(", "),
            name: table.source_name(),
            late: Vec::new(),
            beside: None,
            inner: None,
        };
        context.fence.check().await?;
        if let Some(ids) = table.partition_ids()
            && definition.content == Content::Parts
        {
            let database = format!(
                "{SCRATCH_PREFIX}{}_{}",
                context.attempt.job.uuid().simple(),
                context.attempt.token
            );
            context
                .artefacts
                .record(&database_artefact(&database))
                .await?;
            drop_database(session, &database).await?;
            let doing = format!("making a table beside {}", into.place);
            session
                .run(
                    &format!("CREATE DATABASE {}", quoted(&database)),
                    &[],
                    &doing,
                )
                .await?;
            let beside = full_table(&database, "rows");
            session
                .run(
                    &format!("CREATE TABLE {beside} AS {}", into.place),
                    &LOOSE_TYPES,
                    &doing,
                )
                .await?;
            stop_merges(session, &beside).await?;
            into.beside = Some((into.place.clone(), ids.into_iter().collect(), database));
            into.place = beside;
            return Ok(into);
        }
        if table.materializes_late(session) {
            into.late = definition
                .columns
                .iter()
                .filter(|column| column.default_kind == "MATERIALIZED")
                .map(|column| {
                    format!(
                        "MODIFY COLUMN {} {} MATERIALIZED {}",
                        quoted(&column.name),
                        column.kind,
                        column.default_expression
                    )
                })
                .collect();
        }
        if definition.is_materialized_view() {
            // Its rows are given to it, and it hands them to the table that it keeps them in.
            into.inner = Some(into.empty_view(session, table).await?);
            return Ok(into);
        }
        if definition.content == Content::Parts {
            stop_merges(session, &into.place).await?;
        }
        // An attempt that was cut off may have left some rows.
        session
            .run(
                &format!("TRUNCATE TABLE {}", into.place),
                &DROP_ANY_SIZE,
                &format!("emptying {}", into.name),
            )
            .await?;
        Ok(into)
    }

    /// Empties the table that a view keeps its rows in, and stops its merges.
    async fn empty_view(
        &self,
        session: &Session,
        table: &Planned<'_>,
    ) -> Result<String, EngineError> {
        let (database, name) = &table.target;
        let doing = format!("looking for the rows of {}", self.name);
        let uuid = if session.has_column("tables", "uuid").await? {
            "toString(uuid)"
        } else {
            "''"
        };
        let uuid = session
            .rows(
                &format!(
                    "SELECT {uuid} FROM system.tables WHERE database = {} AND name = {}",
                    literal(database),
                    literal(name)
                ),
                &doing,
            )
            .await?;
        let uuid = uuid.into_iter().flatten().next().unwrap_or_default();
        let found = session
            .rows(
                &format!(
                    "SELECT name FROM system.tables WHERE database = {} AND name IN ({}, {})",
                    literal(database),
                    literal(&format!(".inner_id.{uuid}")),
                    literal(&format!(".inner.{name}"))
                ),
                &doing,
            )
            .await?;
        let Some(inner) = found.into_iter().flatten().next() else {
            return Err(EngineError::Database {
                what: format!("{} keeps no rows at {}", self.name, session.server()),
                transient: false,
            });
        };
        let inner = full_table(database, &inner);
        if table.record.definition.content == Content::Parts {
            stop_merges(session, &inner).await?;
        }
        session
            .run(
                &format!("TRUNCATE TABLE {inner}"),
                &DROP_ANY_SIZE,
                &format!("emptying {}", self.name),
            )
            .await?;
        Ok(inner)
    }

    /// Takes the rows out of the server's own backup; gives how many there are.
    pub(super) async fn take(
        &self,
        taking: &Taking<'_>,
        table: &Planned<'_>,
    ) -> Result<u64, EngineError> {
        let database = &table.record.definition.database;
        let partitions: Option<Vec<String>> = table.partition_ids().map(Vec::from_iter);
        let (context, session) = (taking.context, taking.session);
        let is_meant = |source: &&OwnTable| match (&partitions, &source.partition_id) {
            (Some(ids), Some(id)) => ids.contains(id),
            _ => true,
        };
        let into = self.inner.as_ref().unwrap_or(&self.place);
        let is_of_parts = table.record.definition.content == Content::Parts;
        for source in table.record.own.iter().filter(is_meant) {
            if source.is_linked && is_of_parts {
                let chosen = partitions.as_deref();
                taking.rows(database, source, into, chosen).await?;
                continue;
            }
            let scratch = format!(
                "{SCRATCH_PREFIX}{}_{}_copies",
                context.attempt.job.uuid().simple(),
                context.attempt.token
            );
            let artefact = database_artefact(&scratch);
            context.artefacts.record(&artefact).await?;
            drop_database(session, &scratch).await?;
            let create = format!("CREATE DATABASE {}", quoted(&scratch));
            session
                .run(&create, &[], "making a scratch database")
                .await?;
            let taken = taking
                .rows_through(database, source, &scratch, into, &self.columns)
                .await;
            drop_database(session, &scratch).await?;
            context.artefacts.removed(&artefact).await?;
            taken?;
        }
        let rows = table.parts().iter().map(|part| part.rows).sum();
        context.progress.add(0, rows);
        Ok(rows)
    }

    /// Puts one stream in; gives bytes and rows.
    pub(super) async fn load(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        session: &Session,
        part: &PartStream,
    ) -> Result<(u64, u64), EngineError> {
        let into = format!("{} ({})", self.place, self.columns);
        put_stream(context, backup, session, part, &into, &self.name).await
    }

    /// Ends the filling.
    pub(super) async fn finish(
        &self,
        context: &EngineContext,
        session: &Session,
    ) -> Result<(), EngineError> {
        context.fence.check().await?;
        let doing = format!("restoring {}", self.name);
        for change in &self.late {
            session
                .run(&format!("ALTER TABLE {} {change}", self.place), &[], &doing)
                .await?;
        }
        let Some((place, partitions, database)) = &self.beside else {
            return Ok(());
        };
        for partition in partitions {
            session
                .run(
                    &format!(
                        "ALTER TABLE {place} REPLACE PARTITION ID {} FROM {}",
                        literal(partition),
                        self.place
                    ),
                    &DROP_ANY_SIZE,
                    &doing,
                )
                .await?;
        }
        drop_database(session, database).await?;
        context
            .artefacts
            .removed(&database_artefact(database))
            .await
    }
}

/// Puts one stream into a table, which is quoted and followed by its columns; gives bytes and rows.
pub(crate) async fn put_stream(
    context: &EngineContext,
    backup: &dyn StreamSource,
    session: &Session,
    part: &PartStream,
    into: &str,
    name: &str,
) -> Result<(u64, u64), EngineError> {
    context.check_stop()?;
    context.fence.check().await?;
    let failed: Arc<Mutex<Option<EngineError>>> = Arc::default();
    let bytes = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let stream = {
        let (failed, bytes) = (Arc::clone(&failed), Arc::clone(&bytes));
        let progress = Arc::clone(&context.progress);
        backup
            .read(&part.stream)
            .await?
            .map(move |piece| match piece {
                Ok(piece) => {
                    progress.add(piece.len() as u64, 0);
                    bytes.fetch_add(piece.len() as u64, std::sync::atomic::Ordering::Relaxed);
                    Ok(piece)
                }
                Err(error) => {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    Err(std::io::Error::other("the backup cannot be read"))
                }
            })
    };
    let insert = format!("INSERT INTO {into} FORMAT Native");
    let doing = format!("restoring {name}");
    let answer = context
        .progress
        .while_waiting(session.write(&insert, &AS_THEY_WERE, Body::wrap_stream(stream), &doing))
        .await;
    // Why the data broke off says more than that it did.
    if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error);
    }
    answer?.map_err(|refusal| refusal.doing(&session.server(), &doing))?;
    context.progress.add(0, part.rows);
    Ok((bytes.load(std::sync::atomic::Ordering::Relaxed), part.rows))
}

/// Lets merges begin that were stopped.
pub(super) async fn start_merges(session: &Session, plan: &Plan<'_>) -> Result<(), EngineError> {
    let mut databases = std::collections::BTreeSet::new();
    for table in &plan.tables {
        databases.insert(table.target.0.clone());
        if table.record.definition.content == Content::Parts && !table.record.definition.is_view() {
            let start = format!("SYSTEM START MERGES {}", table.place());
            session.run(&start, &[], "starting merges").await?;
        }
    }
    // The tables of materialised views have names that are told by nothing but their beginning.
    for database in databases {
        let inner = session
            .rows(
                &format!(
                    "SELECT name FROM system.tables WHERE database = {} AND startsWith(name, '.inner') AND engine LIKE '%MergeTree'",
                    literal(&database)
                ),
                "starting merges",
            )
            .await?;
        for name in inner.into_iter().flatten() {
            let start = format!("SYSTEM START MERGES {}", full_table(&database, &name));
            session.run(&start, &[], "starting merges").await?;
        }
    }
    Ok(())
}
