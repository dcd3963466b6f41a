//! `restore`: puts a backup back, whole or in part.
//!
//! 1. Read the manifest; look for space at the target. For a moment, find the backup and the changes that make it; where a
//!    database's moments are its backups, the last one that was complete by then, which is named.
//! 2. Let the engine restore, with checkpoints, so that a new attempt goes on where this one stopped (P3).
//! 3. On failure say what is left behind and how to go on or remove it.

use async_trait::async_trait;
use fettler_engine::{EngineError, RestoreOptions};
use fettler_model::{
    BackupId, DatabaseUrl, ErrorClass, ExclusionClass, Problem, SecretReference, SlotClass,
    Timestamp, Warning,
};
use fettler_repository::ManifestSummary;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, JobContext, JobKind, archive, moments};

/// A restored database takes about this much more room than its streams: indexes, headers, WAL.
const RESTORED_SIZE_FACTOR: f64 = 1.3;

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Restore;

/// What a restore takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreArguments {
    /// The repository; the configured one when nothing is said.
    #[serde(default)]
    pub place: BackupPlace,
    /// The backup. For a moment any backup of the database will do: the newest before the moment is taken.
    pub backup: BackupId,
    /// The moment to bring the database to; that of the backup when nothing is said.
    #[serde(default)]
    pub to_time: Option<Timestamp>,
    /// Where to put it.
    pub to: DatabaseUrl,
    /// Where the password for it lies.
    #[serde(default)]
    pub password: Option<SecretReference>,
    /// Only these objects, by name, schema or pattern.
    #[serde(default)]
    pub only: Vec<String>,
    /// Whether what is there may be replaced.
    #[serde(default)]
    pub overwrite: bool,
    /// Whether the half-done work of an earlier attempt is removed instead of being gone on with.
    #[serde(default)]
    pub start_again: bool,
}

/// What a restore did.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RestoreOutput {
    /// The backup.
    pub backup: BackupId,
    /// The moment, where one was asked for.
    #[serde(default)]
    pub to_time: Option<Timestamp>,
    /// When the backup was complete that was restored as it is, where a moment was asked for and only backups make moments.
    #[serde(default)]
    pub complete_at: Option<Timestamp>,
    /// Where it was put.
    pub to: DatabaseUrl,
    /// Bytes of content written.
    pub bytes: u64,
    /// Rows written.
    pub rows: u64,
    /// How long it took.
    pub duration_seconds: f64,
    /// Statements that failed.
    pub failed_statements: Vec<String>,
    /// What a person should look at.
    pub warnings: Vec<Warning>,
}

#[async_trait]
impl JobKind for Restore {
    const NAME: &'static str = "restore";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = RestoreArguments;
    type Output = RestoreOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: RestoreArguments,
    ) -> Result<RestoreOutput, Problem> {
        let began = std::time::Instant::now();
        let archive = archive::open(context, &arguments.place, arguments.backup).await?;
        let engine = fettler_engines::engine(archive.report.identity.engine);
        if arguments.to.engine() != engine.engine() {
            return Err(Problem::permanent(
                "restore.other_engine",
                format!(
                    "the backup is of a {} database and the target is {}",
                    engine.engine(),
                    arguments.to.engine()
                ),
                format!("name a target of the engine {}", engine.engine()),
            ));
        }
        let target = context
            .target(&arguments.to, arguments.password.as_ref())
            .await?;
        if arguments.only.is_empty() {
            look_for_space(&*engine, &archive, &target)
                .await
                .map_err(|error| context.problem(error))?;
        }
        let working = context
            .engine_context(archive.fingerprint_key, None)
            .await?;
        let options = RestoreOptions {
            only: arguments.only.clone(),
            overwrite: arguments.overwrite,
            start_again: arguments.start_again,
            still: false,
        };
        let (mut backup, mut complete_at) = (arguments.backup, None);
        let restored = match arguments.to_time {
            None => {
                context.progress.begin("restoring", archive.bytes(), 0);
                engine
                    .restore(&working, &archive, &archive.report, &target, &options)
                    .await
            }
            Some(at) => {
                let work = Work {
                    context,
                    working: &working,
                    arguments: &arguments,
                    engine: &*engine,
                    target: &target,
                    options: &options,
                };
                match work.to_moment(at).await {
                    Ok(done) => {
                        (backup, complete_at) = (done.backup, done.complete_at);
                        Ok(done.restored)
                    }
                    Err(error) => Err(error),
                }
            }
        };
        context.remove_scratch(&working).await;
        let restored = restored.map_err(|error| {
            let half_done = !matches!(
                error,
                EngineError::NotEmpty { .. }
                    | EngineError::Unreachable { .. }
                    | EngineError::LoginRefused { .. }
                    | EngineError::Missing { .. }
                    | EngineError::NoSpace { .. }
            ) && !matches!(&error, EngineError::Outside(problem) if problem.code == moments::NO_SUCH_MOMENT);
            let problem = context.problem(error);
            if half_done {
                say_what_is_left(problem, context, &arguments)
            } else {
                problem
            }
        })?;
        for failed in &restored.failed_statements {
            context.ledger.log(&format!("failed: {failed}")).await;
        }
        fettler_fault_points::reached(fettler_fault_points::Point::RestoreDone);
        Ok(RestoreOutput {
            backup,
            to_time: arguments.to_time,
            complete_at,
            to: arguments.to,
            bytes: restored.bytes,
            rows: restored.rows,
            duration_seconds: began.elapsed().as_secs_f64(),
            failed_statements: restored.failed_statements,
            warnings: restored.warnings,
        })
    }
}

/// A restore to a moment.
struct Work<'a> {
    context: &'a JobContext,
    working: &'a fettler_engine::EngineContext,
    arguments: &'a RestoreArguments,
    engine: &'a dyn fettler_engine::DatabaseEngine,
    target: &'a fettler_engine::Target,
    options: &'a RestoreOptions,
}

/// What a restore to a moment came to.
struct ToMoment {
    backup: BackupId,
    complete_at: Option<Timestamp>,
    restored: fettler_engine::RestoreReport,
}

impl Work<'_> {
    async fn to_moment(&self, at: Timestamp) -> Result<ToMoment, EngineError> {
        let Self {
            context, arguments, ..
        } = self;
        let (repository, _) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        let manifest = repository
            .manifest(arguments.backup)
            .await
            .map_err(Problem::from)?;
        let key = &manifest.summary.database;
        if let Some(last) = moments::last_backup_before(&repository, key, at).await? {
            return self.last_backup(at, &last).await;
        }
        context.progress.begin("fetching the changes", 0, 0);
        let prepared = moments::prepare(&repository, key, at, self.working).await?;
        let base = prepared.plan.backup;
        let archive = archive::open(context, &arguments.place, base).await?;
        context
            .ledger
            .log(&format!(
                "{at} is backup {} with {} bytes of changes",
                base.short(),
                prepared.changes.bytes
            ))
            .await;
        let bytes = archive.bytes() + prepared.changes.bytes;
        context.progress.begin("restoring", bytes, 0);
        let restored = self
            .engine
            .restore_to_moment(
                self.working,
                &archive,
                &archive.report,
                &prepared.changes,
                self.target,
                self.options,
            )
            .await?;
        Ok(ToMoment {
            backup: base,
            complete_at: None,
            restored,
        })
    }

    /// Restores the last backup before a moment as it is.
    async fn last_backup(
        &self,
        at: Timestamp,
        last: &ManifestSummary,
    ) -> Result<ToMoment, EngineError> {
        let Self {
            context, arguments, ..
        } = self;
        let told = format!(
            "backup {} is the last that was complete at {at}, of {}: what was changed between is not in it",
            last.id.short(),
            last.finished
        );
        context.ledger.log(&told).await;
        let archive = archive::open(context, &arguments.place, last.id).await?;
        context.progress.begin("restoring", archive.bytes(), 0);
        let mut restored = self
            .engine
            .restore(
                self.working,
                &archive,
                &archive.report,
                self.target,
                self.options,
            )
            .await?;
        restored.warnings.push(Warning {
            code: "restore.last_backup".to_owned(),
            message: told,
        });
        Ok(ToMoment {
            backup: last.id,
            complete_at: Some(last.finished),
            restored,
        })
    }
}

async fn look_for_space(
    engine: &dyn fettler_engine::DatabaseEngine,
    archive: &archive::Archive,
    target: &fettler_engine::Target,
) -> Result<(), EngineError> {
    let needed_bytes = (archive.bytes() as f64 * RESTORED_SIZE_FACTOR) as u64;
    match engine.free_bytes(target).await? {
        Some(free_bytes) if free_bytes < needed_bytes => Err(EngineError::NoSpace {
            place: target.url.to_string(),
            free_bytes,
            needed_bytes,
        }),
        _ => Ok(()),
    }
}

fn say_what_is_left(
    mut problem: Problem,
    context: &JobContext,
    arguments: &RestoreArguments,
) -> Problem {
    if problem.class == ErrorClass::Permanent {
        let left = format!(
            "{} may hold a part of the backup. `fettler jobs retry {}` goes on where this restore stopped; \
             `fettler restore {} --to {} --start-again` removes what is there first",
            arguments.to,
            context.job.id.short(),
            arguments.backup.short(),
            arguments.to
        );
        problem.remedy = if problem.remedy.is_empty() {
            left
        } else {
            format!("{}. {left}", problem.remedy)
        };
    }
    problem
}
