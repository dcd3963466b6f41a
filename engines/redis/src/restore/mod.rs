//! The restore: streams of keys back into a server, several at once.
//!
//! Small values go back by `RESTORE`, large ones piece by piece under a name of their own that is renamed at the end. Both
//! replace what is there, so that anything may be done again: a checkpoint says which streams are done. It is of use as long
//! as the server is the same process: one that was started anew may have lost what it had been given.
//!
//! In the sandbox of a proof every moment of expiry is put off by [`EXPIRY_SHIFT_MILLISECONDS`], which reading the copy takes
//! off again: nothing can vanish between the restore and the comparison, whatever has expired since the backup.

mod commands;
mod prepare;
mod servers;
mod write;

pub(crate) use prepare::{databases, now, unrestored_users};
pub(crate) use servers::{Server, Servers};

use std::{collections::BTreeSet, sync::Arc};

use fettler_engine::{
    BackupReport, EngineContext, EngineError, RestoreOptions, RestoreReport, StreamSource, Target,
};
use fettler_model::Warning;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{
    backup::BackupData,
    connect::Info,
    locate::{Purpose, locate},
    params::Params,
    sandbox,
    select::Selection,
    server_data::ServerData,
};

use commands::{Outcome, Plan};

/// How much later everything expires in a sandbox: some 35,000 years. A moment so late that it cannot be put off is left
/// as it is.
pub(crate) const EXPIRY_SHIFT_MILLISECONDS: i64 = 1 << 50;
/// What the names of the streams of keys begin with.
pub(crate) const KEY_STREAMS: &str = "keys/";

/// A moment of expiry as it is in a sandbox.
pub(crate) fn put_off(moment: i64) -> i64 {
    moment
        .checked_add(EXPIRY_SHIFT_MILLISECONDS)
        .unwrap_or(moment)
}

/// A moment of expiry as it was before it was put off.
pub(crate) fn taken_back(moment: i64) -> i64 {
    if moment > i64::MAX - EXPIRY_SHIFT_MILLISECONDS {
        moment
    } else {
        moment - EXPIRY_SHIFT_MILLISECONDS
    }
}

/// How far a restore has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    /// The target, since a checkpoint for another one is of no use.
    target: String,
    /// What was chosen.
    only: Vec<String>,
    /// The server's process.
    run_id: String,
    /// Whether what was in the way is gone.
    prepared: bool,
    /// Streams that are done.
    done: BTreeSet<String>,
}

/// Puts a backup back.
pub(crate) async fn restore(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    target: &Target,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    context.check_stop()?;
    let data = BackupData::of(report)?;
    let params = locate(target, Purpose::Write, &context.stop).await?;
    let may_fail_over = params.sentinels.is_some();
    let answer = restore_to(context, backup, report, &data, target, &params, options).await;
    match answer {
        // The primary that was looked up has become a replica: the next attempt looks up the new one.
        Err(EngineError::Missing {
            code: "primary",
            what,
            ..
        }) if may_fail_over => Err(EngineError::Database {
            what,
            transient: true,
        }),
        other => other,
    }
}

/// Puts a backup back into the server, or the cluster, that a target led to.
async fn restore_to(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    data: &BackupData,
    target: &Target,
    params: &Params,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    let selection = Selection::of_restore(&options.only)?;
    let mut servers = Servers::open(context, params).await?;
    let databases = prepare::databases(report, data, params, &selection)?;
    if servers.is_cluster {
        prepare::require_one_database(params, &databases)?;
    }
    let is_sandbox = !servers.is_cluster && sandbox::is_marked(servers.first(), context).await?;
    let server = if selection.functions || selection.users {
        ServerData::of_backup(backup).await?
    } else {
        ServerData::default()
    };

    let mut checkpoint = Checkpoint {
        target: target.url.to_string(),
        only: options.only.clone(),
        run_id: servers.run_ids(),
        ..Checkpoint::default()
    };
    if let Some(left) = context.checkpoints.load().await?
        && let Ok(left) = Checkpoint::deserialize(left)
        && !options.start_again
        && (&left.target, &left.only) == (&checkpoint.target, &checkpoint.only)
    {
        checkpoint.prepared = left.prepared;
        if left.run_id == checkpoint.run_id {
            checkpoint.done = left.done;
        }
    }
    if !checkpoint.prepared {
        prepare::make_room(
            context,
            &mut servers,
            &selection,
            &databases,
            &server,
            prepare::Allowed {
                is_sandbox,
                overwrite: options.overwrite,
                start_again: options.start_again,
            },
        )
        .await?;
        checkpoint.prepared = true;
        save(context, &checkpoint).await?;
    }

    let mut outcome = Outcome::default();
    let mut warnings = Vec::new();
    if selection.functions {
        for one in &mut servers.all {
            prepare::load_functions(context, &mut one.session, &server, &mut outcome).await?;
        }
    }
    if selection.users {
        for one in &mut servers.all {
            let session = &mut one.session;
            prepare::set_users(context, session, &server, &mut outcome, &mut warnings).await?;
        }
    } else if selection.is_everything() && !is_sandbox {
        warnings.extend(prepare::unrestored_users(report));
    }
    let plan = Arc::new(Plan {
        now: prepare::now(servers.first()).await?,
        rdb_version: oldest(&servers, Info::rdb_version),
        version: oldest(&servers, Info::version),
        is_cluster: servers.is_cluster,
        selection,
        databases,
        is_sandbox,
        job: context.attempt.job,
    });
    drop(servers);
    if !plan.databases.is_empty() {
        outcome.merge(write_streams(context, backup, params, &plan, checkpoint).await?);
        if !is_sandbox {
            prepare::unmark(context, params, &plan.selection, &plan.databases).await?;
        }
    }
    if outcome.expired > 0 {
        warnings.push(Warning {
            code: "redis.expired".to_owned(),
            message: format!(
                "{} keys had expired since the backup and were not restored",
                outcome.expired
            ),
        });
    }
    Ok(RestoreReport {
        bytes: outcome.bytes,
        rows: outcome.rows,
        failed_statements: outcome.failures(),
        warnings,
    })
}

/// The least of what the servers tell.
fn oldest<T: Ord + Default>(servers: &Servers, tell: impl Fn(&Info) -> T) -> T {
    servers
        .all
        .iter()
        .map(|server| tell(&server.info))
        .min()
        .unwrap_or_default()
}

async fn save(context: &EngineContext, checkpoint: &Checkpoint) -> Result<(), EngineError> {
    let checkpoint = serde_json::to_value(checkpoint).expect("plain data can be JSON");
    context.checkpoints.save(checkpoint).await
}

/// Writes the streams that are not done yet.
async fn write_streams(
    context: &EngineContext,
    backup: &dyn StreamSource,
    params: &Params,
    plan: &Arc<Plan>,
    checkpoint: Checkpoint,
) -> Result<Outcome, EngineError> {
    let names: Vec<String> = backup
        .streams()
        .iter()
        .filter(|stream| stream.name.starts_with(KEY_STREAMS))
        .map(|stream| stream.name.clone())
        .filter(|name| !checkpoint.done.contains(name))
        .collect();
    let checkpoint = Mutex::new(checkpoint);
    stream::iter(names)
        .map(|name| {
            let (plan, checkpoint) = (Arc::clone(plan), &checkpoint);
            async move {
                let outcome = write::stream(context, backup, params, plan, &name).await?;
                let mut checkpoint = checkpoint.lock().await;
                checkpoint.done.insert(name);
                save(context, &checkpoint).await?;
                Ok(outcome)
            }
        })
        .buffer_unordered(context.parallel.max(1))
        .try_fold(Outcome::default(), |mut all, one| async move {
            all.merge(one);
            Ok(all)
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_that_was_put_off_is_the_same_again() {
        for moment in [0, 1, 1_700_000_000_000, 1 << 60, i64::MAX] {
            assert_eq!(taken_back(put_off(moment)), moment);
        }
    }
}
