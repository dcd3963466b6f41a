//! `cleanup-undo`: puts back what a cleanup removed, from its archive. What is there stays; what cannot be put back is told.

use std::time::Instant;

use async_trait::async_trait;
use fettler_model::{
    BackupId, CleanupPlan, CleanupUndone, ExclusionClass, JobId, Problem, SlotClass,
};
use fettler_repository::RepositoryError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, JobContext, JobKind, archive::Archive};

use super::{PLAN, archives::is_cleanup_archive, cleanup_of};

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct CleanupUndo;

/// What an undo takes. The database is that of the cleanup.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CleanupUndoArguments {
    /// The cleanup.
    pub job: JobId,
    /// The repository that its archive is in; the configured one when nothing is said.
    #[serde(default)]
    pub place: BackupPlace,
    /// Only says what would be put back.
    #[serde(default)]
    pub dry_run: bool,
}

/// What an undo did.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CleanupUndoOutput {
    /// The database's name.
    pub database: String,
    /// The cleanup that was undone.
    pub cleanup: JobId,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// What came of it.
    #[serde(flatten)]
    pub undone: CleanupUndone,
    /// How long the attempt that ended it took.
    pub duration_seconds: f64,
}

#[async_trait]
impl JobKind for CleanupUndo {
    const NAME: &'static str = "cleanup-undo";
    const EXCLUSION: ExclusionClass = ExclusionClass::Write;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = CleanupUndoArguments;
    type Output = CleanupUndoOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: CleanupUndoArguments,
    ) -> Result<CleanupUndoOutput, Problem> {
        let began = Instant::now();
        let database = context.database().await?;
        let target = context
            .target(&database.url, database.password.as_ref())
            .await?;
        let engine = fettler_engines::engine(database.url.engine());
        let cleanup = cleanup_of(&*engine)?;
        let identity = engine
            .identify(&target)
            .await
            .map_err(|error| context.problem(error))?;
        context
            .ledger
            .set_identity(database.id, &identity.key)
            .await?;
        let (repository, _) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        let id = BackupId::of_job(arguments.job);
        let manifest = match repository.manifest(id).await {
            Ok(manifest) => manifest,
            Err(RepositoryError::NoSuchBackup(_)) => {
                return Err(gone(arguments.job, repository.was_forgotten(id).await?));
            }
            Err(error) => return Err(context.problem_of_store(error)),
        };
        if !is_cleanup_archive(&manifest.summary) {
            return Err(Problem::permanent(
                "cleanup.no_cleanup",
                format!("job {} was no cleanup", arguments.job.short()),
                "`fettler jobs --all` lists the jobs",
            ));
        }
        let archive = Archive::of(&repository, &manifest)?;
        let plan: CleanupPlan = serde_json::from_value(archive.report.engine_data[PLAN].clone())
            .map_err(|error| {
                Problem::permanent(
                    "cleanup.unknown_plan",
                    format!("the plan in the archive cannot be read: {error}"),
                    "a newer Fettler may have made it: use that version or a later one",
                )
            })?;
        let rows = archive
            .report
            .objects
            .iter()
            .filter_map(|object| object.fingerprint.as_ref())
            .map(|print| print.rows)
            .sum();
        context
            .progress
            .begin("putting back", archive.bytes(), rows);
        let working = context
            .engine_context(archive.fingerprint_key, None)
            .await?;
        let undone = cleanup
            .undo(
                &working,
                &target,
                &plan,
                &archive,
                arguments.job,
                arguments.dry_run,
            )
            .await;
        context.remove_scratch(&working).await;
        let undone = undone.map_err(|error| context.problem(error))?;
        Ok(CleanupUndoOutput {
            database: database.name.to_string(),
            cleanup: arguments.job,
            dry_run: arguments.dry_run,
            undone,
            duration_seconds: began.elapsed().as_secs_f64(),
        })
    }
}

fn gone(job: JobId, was_forgotten: bool) -> Problem {
    let what = if was_forgotten {
        format!(
            "the archive of the cleanup {} is not kept any more",
            job.short()
        )
    } else {
        format!("there is no archive of a cleanup {}", job.short())
    };
    Problem::permanent(
        "cleanup.no_archive",
        what,
        "what was removed before may be in a backup: `fettler backups`, `fettler extract`",
    )
}
