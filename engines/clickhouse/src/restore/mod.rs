//! The restore: definitions in the order in which they need each other, rows between tables and views.
//!
//! Rows go into tables whose merges stand still, so that a table that replaces, sums or forgets rows has all that it had when
//! a proof counts them, and before there is a view that each row would pass through. A materialised view's own rows go into it
//! as soon as it is made, before there is another view that reads it.
//!
//! A checkpoint says which tables have their rows. One that was begun is emptied and filled again.

mod plan;
mod rows;

pub(crate) use rows::put_stream;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use fettler_engine::{
    Artefact, BackupReport, EngineContext, EngineError, RestoreOptions, RestoreReport,
    StreamSource, Target,
};
use fettler_model::{Engine, Warning};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use crate::{
    backup::{BackupData, DEFINITIONS, Definitions, PartStream, end_predecessors},
    by_server::{self, OwnBackup, Taking},
    catalogue::Content,
    cluster::{self, Receiver, Several, Share},
    error::Refusal,
    http::Session,
    params::Params,
    select::{Chosen, Selection},
    shadow::LOOSE_TYPES,
    sql::quoted,
};

use plan::{Plan, Planned};

/// How far a restore has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    /// The target, since a checkpoint for another one is of no use.
    target: String,
    /// What was chosen.
    only: Vec<String>,
    /// Whether what was in the way is gone.
    prepared: bool,
    /// Tables, by their names at the source, that have their rows.
    done: BTreeSet<String>,
}

/// What a restore has done.
#[derive(Debug, Default)]
struct Outcome {
    report: RestoreReport,
}

impl Outcome {
    fn fail(&mut self, what: &str, refusal: &Refusal) {
        self.report
            .failed_statements
            .push(format!("{what}: {refusal}"));
    }
}

/// Puts a backup back.
pub(crate) async fn restore(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    target: &Target,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    let notes = BackupData::of(report)?;
    let params = Params::of(target)?;
    if params.cluster.is_none() {
        let alone = Receiver {
            params,
            share: Share::ALL,
        };
        return restore_server(context, backup, &notes, &alone, options, Steps::All).await;
    }
    if notes.own.is_some() {
        return Err(EngineError::Missing {
            code: "cluster",
            what: "the backup is a server's own, and the target is a cluster".to_owned(),
            remedy: "name one of its servers: leave `cluster` out of the target's URL".to_owned(),
        });
    }
    let (receivers, warnings) = cluster::receivers(context, &params, notes.shards).await?;
    let mut all = RestoreReport {
        warnings,
        ..RestoreReport::default()
    };
    let checkpoints = Several::load(Arc::clone(&context.checkpoints)).await?;
    // What is in the way goes everywhere before anything comes: a replica would give what it had to the others.
    for steps in [Steps::MakeRoom, Steps::All] {
        for receiver in &receivers {
            let mut context = context.clone();
            context.checkpoints = checkpoints.of(receiver.params.server());
            let one = restore_server(&context, backup, &notes, receiver, options, steps).await?;
            cluster::add(&mut all, one);
        }
    }
    Ok(all)
}

/// How far a restore into one server goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Steps {
    /// Until nothing is in the way.
    MakeRoom,
    All,
}

/// Puts one server's share of a backup back.
async fn restore_server(
    context: &EngineContext,
    backup: &dyn StreamSource,
    notes: &BackupData,
    receiver: &Receiver,
    options: &RestoreOptions,
    steps: Steps,
) -> Result<RestoreReport, EngineError> {
    context.check_stop()?;
    context.progress.begin("prepare", 0, 0);
    let params = &receiver.params;
    let selection = Selection::of(&options.only)?;
    let session = Session::of_attempt(params, context).await?;
    end_predecessors(&session, context).await?;
    let definitions = read_definitions(backup).await?;
    let mut checkpoint = Checkpoint {
        target: receiver.name(),
        only: options.only.clone(),
        ..Checkpoint::default()
    };
    let mut may_replace = options.overwrite;
    if let Some(left) = context.checkpoints.load().await?
        && let Ok(left) = Checkpoint::deserialize(left)
        && (&left.target, &left.only) == (&checkpoint.target, &checkpoint.only)
    {
        if options.start_again {
            may_replace |= left.prepared;
        } else {
            checkpoint = left;
        }
    }
    let plan = Plan::make(&definitions, params, &selection, receiver.share)?;
    // Before anything is removed: what cannot be put back is not replaced.
    if let Some(own) = &notes.own {
        by_server::require(&session, own).await?;
    }
    let existing = plan.existing(&session).await?;
    if !checkpoint.prepared {
        plan.make_room(context, &session, &existing, may_replace)
            .await?;
        checkpoint.prepared = true;
        save(context, &checkpoint).await?;
    }
    if steps == Steps::MakeRoom {
        return Ok(RestoreReport::default());
    }

    let mut outcome = Outcome::default();
    for database in plan.databases() {
        context.fence.check().await?;
        let create = format!("CREATE DATABASE IF NOT EXISTS {}", quoted(&database));
        session.run(&create, &[], "creating a database").await?;
    }
    if selection.is_everything() {
        restore_functions(context, &session, params, &definitions, &mut outcome).await?;
    }
    let bytes = plan.bytes(backup);
    let (views, tables): (Vec<&Planned<'_>>, Vec<&Planned<'_>>) = plan
        .tables
        .iter()
        .partition(|table| table.record.definition.is_view());
    create_in_rounds(context, &session, &plan, &tables, &mut outcome, None).await?;
    context.progress.begin("restoring", bytes, 0);
    let loader = Loader {
        context,
        backup,
        session: &session,
        own: notes.own.as_ref(),
        checkpoint: Mutex::new(checkpoint),
    };
    let loaded = loader.load(&plan, &tables).await?;
    outcome.report.bytes += loaded.0;
    outcome.report.rows += loaded.1;
    create_in_rounds(
        context,
        &session,
        &plan,
        &views,
        &mut outcome,
        Some(&loader),
    )
    .await?;
    if params.sandbox_prefix.is_none() && !options.still {
        rows::start_merges(&session, &plan).await?;
    }
    if selection.has_access() {
        restore_access(context, &session, &definitions, &mut outcome).await?;
    } else if selection.is_everything()
        && params.sandbox_prefix.is_none()
        && definitions
            .access
            .as_ref()
            .is_some_and(|all| !all.is_empty())
    {
        outcome.report.warnings.push(Warning {
            code: "clickhouse.access".to_owned(),
            message: "users, roles, quotas and row policies are in the backup and were not restored: `--only access` does that".to_owned(),
        });
    }
    Ok(outcome.report)
}

/// Lets merges of what was restored begin, where a restore left them standing.
pub(crate) async fn let_merge(
    context: &EngineContext,
    backup: &dyn StreamSource,
    target: &Target,
    only: &[String],
) -> Result<(), EngineError> {
    let params = Params::of(target)?;
    let receivers = if params.cluster.is_some() {
        cluster::receivers(context, &params, None).await?.0
    } else {
        vec![Receiver {
            params,
            share: Share::ALL,
        }]
    };
    let definitions = read_definitions(backup).await?;
    for receiver in receivers {
        let params = &receiver.params;
        let session = Session::of_attempt(params, context).await?;
        let plan = Plan::make(&definitions, params, &Selection::of(only)?, Share::ALL)?;
        rows::start_merges(&session, &plan).await?;
    }
    Ok(())
}

async fn save(context: &EngineContext, checkpoint: &Checkpoint) -> Result<(), EngineError> {
    let checkpoint = serde_json::to_value(checkpoint).expect("plain data can be JSON");
    context.checkpoints.save(checkpoint).await
}

pub(crate) async fn read_definitions(
    backup: &dyn StreamSource,
) -> Result<Definitions, EngineError> {
    let bytes: Vec<bytes::Bytes> = backup.read(DEFINITIONS).await?.try_collect().await?;
    serde_json::from_slice(&bytes.concat()).map_err(|error| EngineError::Unusable {
        what: format!("the backup's definitions cannot be read: {error}"),
        remedy: "restore it with the version of Fettler that made it".to_owned(),
    })
}

/// Makes what is not there yet: each round what needs nothing more, until a round makes nothing. Views that hold rows get
/// them at once.
async fn create_in_rounds(
    context: &EngineContext,
    session: &Session,
    plan: &Plan<'_>,
    tables: &[&Planned<'_>],
    outcome: &mut Outcome,
    loader: Option<&Loader<'_>>,
) -> Result<(), EngineError> {
    let existing = plan.existing(session).await?;
    let mut waiting: Vec<&Planned<'_>> = tables.to_vec();
    loop {
        let before = waiting.len();
        let mut refused = Vec::new();
        for table in waiting {
            context.check_stop()?;
            context.progress.item(&table.source_name());
            if !existing.contains(&table.target) {
                context.fence.check().await?;
                let doing = format!("creating {}", table.source_name());
                let there = session.in_database(&table.target.0);
                let answer = there
                    .try_run(&table.create(session), &LOOSE_TYPES, &doing)
                    .await?;
                if let Err(refusal) = answer {
                    refused.push((table, refusal));
                    continue;
                }
            }
            if let Some(loader) = loader
                && table.record.definition.has_rows()
            {
                let (bytes, rows) = loader.load(plan, &[table]).await?;
                outcome.report.bytes += bytes;
                outcome.report.rows += rows;
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        if refused.len() == before {
            for (table, refusal) in &refused {
                if table.record.definition.has_rows() {
                    return Err(refusal.doing(
                        &session.server(),
                        format!("creating {}", table.source_name()),
                    ));
                }
                outcome.fail(&format!("creating {}", table.source_name()), refusal);
            }
            return Ok(());
        }
        waiting = refused.into_iter().map(|(table, _)| table).collect();
    }
}

/// Fills tables.
struct Loader<'a> {
    context: &'a EngineContext,
    backup: &'a dyn StreamSource,
    session: &'a Session,
    /// The server's own backup, where that holds the rows.
    own: Option<&'a OwnBackup>,
    checkpoint: Mutex<Checkpoint>,
}

impl Loader<'_> {
    fn is_done(&self, name: &str) -> bool {
        let checkpoint = self
            .checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        checkpoint.done.contains(name)
    }

    /// Puts rows into tables; gives bytes and rows.
    async fn load(
        &self,
        plan: &Plan<'_>,
        tables: &[&Planned<'_>],
    ) -> Result<(u64, u64), EngineError> {
        let mut total = (0, 0);
        for table in tables {
            let name = table.source_name();
            let has_rows = table.record.definition.has_rows() && !table.is_filled_elsewhere();
            if !has_rows || self.is_done(&name) {
                continue;
            }
            self.context.check_stop()?;
            self.context.progress.item(&name);
            let into = rows::Filling::prepare(self.context, self.session, plan, table).await?;
            let into = Arc::new(into);
            let parts: Vec<PartStream> = match self.own {
                Some(own) => {
                    let taking = Taking {
                        context: self.context,
                        session: self.session,
                        own,
                    };
                    total.1 += into.take(&taking, table).await?;
                    Vec::new()
                }
                None => table.parts().into_iter().cloned().collect(),
            };
            let loaded: Vec<(u64, u64)> = stream::iter(parts)
                .map(|part: PartStream| {
                    let into = Arc::clone(&into);
                    async move {
                        into.load(self.context, self.backup, self.session, &part)
                            .await
                    }
                })
                .buffer_unordered(self.context.parallel.max(1))
                .try_collect()
                .await?;
            into.finish(self.context, self.session).await?;
            for (bytes, rows) in loaded {
                total = (total.0 + bytes, total.1 + rows);
            }
            let checkpoint = {
                let mut checkpoint = self
                    .checkpoint
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                checkpoint.done.insert(name);
                checkpoint.clone()
            };
            save(self.context, &checkpoint).await?;
        }
        Ok(total)
    }
}

/// Functions belong to the whole server: one that is there already stays as it is.
async fn restore_functions(
    context: &EngineContext,
    session: &Session,
    params: &Params,
    definitions: &Definitions,
    outcome: &mut Outcome,
) -> Result<(), EngineError> {
    for (name, create) in &definitions.functions {
        let doing = format!("creating the function {name}");
        let there = format!(
            "SELECT create_query FROM system.functions WHERE name = {}",
            crate::sql::literal(name)
        );
        let there = session.rows(&there, &doing).await?;
        if let Some(found) = there.into_iter().flatten().next() {
            if found != *create {
                outcome.report.warnings.push(Warning {
                    code: "clickhouse.function".to_owned(),
                    message: format!("there is another function {name}, which was left as it is"),
                });
            }
            continue;
        }
        if params.sandbox_prefix.is_some() {
            context.artefacts.record(&function_artefact(name)).await?;
        }
        context.fence.check().await?;
        if let Err(refusal) = session.try_run(create, &[], &doing).await? {
            outcome.fail(&doing, &refusal);
        }
    }
    Ok(())
}

/// A function that a proof made on a server that it shares.
fn function_artefact(name: &str) -> Artefact {
    Artefact {
        engine: Engine::Clickhouse,
        kind: "function".to_owned(),
        name: name.to_owned(),
        data: serde_json::Value::Null,
        until_job_ends: false,
    }
}

async fn restore_access(
    context: &EngineContext,
    session: &Session,
    definitions: &Definitions,
    outcome: &mut Outcome,
) -> Result<(), EngineError> {
    for statement in definitions.access.iter().flatten() {
        context.fence.check().await?;
        let doing = "restoring users";
        if let Err(refusal) = session.try_run(statement, &[], doing).await? {
            // One that is there already stays as it is (ACCESS_ENTITY_ALREADY_EXISTS).
            if refusal.code == 493 {
                outcome.report.warnings.push(Warning {
                    code: "clickhouse.access".to_owned(),
                    message: refusal.to_string(),
                });
            } else {
                // The statement may hold the hash of a password.
                let word = statement.split('\'').next().unwrap_or_default();
                outcome.fail(word.trim(), &refusal);
            }
        }
    }
    Ok(())
}

/// Whether a table is made of something else in a sandbox, where nothing speaks with the world outside.
fn has_stand_in(content: Content, params: &Params) -> bool {
    content == Content::Outside && params.sandbox_prefix.is_some()
}

/// What is restored of a table, and whether anything is.
fn is_chosen(chosen: &Chosen) -> bool {
    *chosen != Chosen::Nothing
}
