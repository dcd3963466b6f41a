//! `cleanup`: removes what is old or abandoned, by plan (P7).
//!
//! 1. Plan: what would go, what depends on it, and why not. The plan is made once: an attempt that goes on after a death keeps to
//!    it, and to its cut-off.
//! 2. Archive what can be put back, in the repository, under a key of its own beside the database's backups.
//! 3. Read the archive back and compare it with what was read.
//! 4. Remove, piece by piece, only what still is what the archive holds.
//! 5. Count what is left, and say what came of it.
//!
//! [`undo`] puts back, for as long as the archive is kept.

mod archives;
mod progress;
mod undo;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use fettler_engine::{
    BackupReport, Cleanup as EngineCleanup, CleanupRequest, CleanupTerms, DatabaseEngine,
    EngineContext, EngineError, Identity, ROW_HASH, Target,
};
use fettler_fault_points::{Point, reached};
use fettler_model::{
    BackupId, CleanupAction, CleanupPlan, CleanupRemoved, ErrorClass, ExclusionClass, Problem,
    SlotClass, Timestamp,
};
use fettler_repository::{BeginBackup, Begun, Manifest, ManifestBody, Parent, TenantRepository};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    BackupPlace, DatabaseRecord, JobContext, JobKind,
    archive::Archive,
    backup::{RepositorySink, UPLOADS_AT_ONCE},
};

pub(crate) use archives::forget_expired;
pub use archives::is_cleanup_archive;
use archives::{archive_key, until_tag};
use progress::{CleanupProgress, Keeper, Stage};
pub use undo::{CleanupUndo, CleanupUndoArguments, CleanupUndoOutput};

/// How long an undo is possible where nothing is said.
pub const KEEP_UNDO_DAYS: u32 = 30;
/// The member of a report's engine data that holds the plan.
const PLAN: &str = "fettler_cleanup";

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Cleanup;

/// What a cleanup takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CleanupArguments {
    /// What is to go.
    pub what: CleanupAction,
    /// The repository that the archive goes to; the configured one when nothing is said.
    #[serde(default)]
    pub place: BackupPlace,
    /// Forgets the archive as soon as the work is done: nothing can be put back then.
    #[serde(default)]
    pub no_archive: bool,
    /// For how many days what was removed can be put back.
    #[serde(default = "keep_undo_days")]
    pub keep_undo_days: u32,
    /// Rows that one transaction removes at most.
    #[serde(default)]
    pub batch_rows: Option<u64>,
    /// At most so many rows a second.
    #[serde(default)]
    pub rows_per_second: Option<u64>,
    /// Works without rests. Replicas are waited for all the same.
    #[serde(default)]
    pub full_speed: bool,
    /// Replicas may be behind by so many seconds.
    #[serde(default)]
    pub replica_lag_seconds: Option<u64>,
    /// Only plans.
    #[serde(default)]
    pub dry_run: bool,
}

const fn keep_undo_days() -> u32 {
    KEEP_UNDO_DAYS
}

/// What a cleanup did.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CleanupOutput {
    /// The database's name.
    pub database: String,
    /// Whether nothing was done but planned.
    pub dry_run: bool,
    /// The plan.
    pub plan: CleanupPlan,
    /// The archive, where there is one.
    pub archive: Option<BackupId>,
    /// Rows in it.
    pub archived_rows: u64,
    /// Bytes that it took in the store.
    pub archived_bytes: u64,
    /// Until when what was removed can be put back.
    pub undo_until: Option<Timestamp>,
    /// What came of it.
    pub removed: CleanupRemoved,
    /// Whether all that was archived is accounted for: removed, gone, or stayed for a reason that is told.
    pub verified: bool,
    /// How long the attempt that ended it took.
    pub duration_seconds: f64,
}

#[async_trait]
impl JobKind for Cleanup {
    const NAME: &'static str = "cleanup";
    const EXCLUSION: ExclusionClass = ExclusionClass::Write;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = CleanupArguments;
    type Output = CleanupOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: CleanupArguments,
    ) -> Result<CleanupOutput, Problem> {
        let began = Instant::now();
        let database = context.database().await?;
        let target = context
            .target(&database.url, database.password.as_ref())
            .await?;
        let engine = fettler_engines::engine(database.url.engine());
        let cleanup = cleanup_of(&*engine)?;
        context.progress.begin("planning", 0, 0);
        let identity = engine
            .identify(&target)
            .await
            .map_err(|error| context.problem(error))?;
        context
            .ledger
            .set_identity(database.id, &identity.key)
            .await?;
        let keeper = Keeper::load(context.checkpoints.clone())
            .await
            .map_err(|error| context.problem(error))?;
        let keeper = Arc::new(keeper);
        let work = Work {
            context,
            arguments: &arguments,
            database: &database,
            identity: &identity,
            target: &target,
            cleanup,
            keeper,
        };
        let mut output = work.run().await?;
        output.duration_seconds = began.elapsed().as_secs_f64();
        Ok(output)
    }
}

/// What an engine cleans with.
fn cleanup_of(engine: &dyn DatabaseEngine) -> Result<&dyn EngineCleanup, Problem> {
    engine.cleanup().ok_or_else(|| {
        Problem::permanent(
            "cleanup.not_supported",
            format!("{} databases are not cleaned yet", engine.engine()),
            "docs/cleanup.md says which engines are",
        )
    })
}

struct Work<'a> {
    context: &'a JobContext,
    arguments: &'a CleanupArguments,
    database: &'a DatabaseRecord,
    identity: &'a Identity,
    target: &'a Target,
    cleanup: &'a dyn EngineCleanup,
    keeper: Arc<Keeper>,
}

impl Work<'_> {
    async fn run(&self) -> Result<CleanupOutput, Problem> {
        let plan = self.plan().await?;
        let mut output = CleanupOutput {
            database: self.database.name.to_string(),
            dry_run: self.arguments.dry_run,
            plan: plan.clone(),
            archive: None,
            archived_rows: 0,
            archived_bytes: 0,
            undo_until: None,
            removed: CleanupRemoved::default(),
            verified: true,
            duration_seconds: 0.0,
        };
        if self.arguments.dry_run {
            return Ok(output);
        }
        refused(&plan)?;
        // Where nothing is old, nothing is archived either. A partition without rows goes all the same.
        if plan.items.is_empty() || (is_of_rows(&plan) && plan.rows() == 0) {
            return Ok(output);
        }
        if let Some(done) = self.keeper.progress().output {
            // An attempt before this one came to its end, but for the archive that nobody wants.
            if let Ok(output) = serde_json::from_value(done) {
                let place = &self.arguments.place;
                let services = &self.context.services;
                let (repository, _) = services.repository(&self.context.job.tenant, place).await?;
                self.forget(&repository).await?;
                return Ok(output);
            }
        }
        if !plan.can_be_undone {
            output.removed = self.remove(&plan, None, [0; 32]).await?;
            return Ok(output);
        }
        let (repository, _) = self
            .context
            .services
            .repository(&self.context.job.tenant, &self.arguments.place)
            .await?;
        let manifest = match self.archive(&repository, &plan).await {
            Ok(manifest) => manifest,
            Err(problem) => {
                if matches!(problem.class, ErrorClass::Cancelled | ErrorClass::Permanent)
                    && self.context.fence.check().await.is_ok()
                {
                    let id = BackupId::of_job(self.context.job.id);
                    if let Err(error) = repository.abandon(id, "its job ended without it").await {
                        tracing::warn!(%error, "what a cleanup stored is left for a later collection to find");
                    }
                }
                return Err(problem);
            }
        };
        let archive = Archive::of(&repository, &manifest)?;
        self.prove(&plan, &archive).await?;
        reached(Point::CleanupArchived);
        let key = archive.fingerprint_key;
        output.removed = self.remove(&plan, Some(&archive), key).await?;
        output.archived_rows = archive
            .report
            .objects
            .iter()
            .filter_map(|object| object.fingerprint.as_ref())
            .map(|print| print.rows)
            .sum();
        output.archived_bytes = manifest.summary.bytes_stored;
        let removed = &output.removed;
        let accounted = removed.removed + removed.gone + removed.stayed();
        output.verified = if is_of_rows(&plan) {
            accounted == output.archived_rows
        } else {
            !plan.what.takes_wholes() || accounted == plan.items.len() as u64
        };
        if self.arguments.no_archive {
            let done = CleanupProgress {
                output: serde_json::to_value(&output).ok(),
                ..self.keeper.progress()
            };
            let kept = self.keeper.go_to(done).await;
            kept.map_err(|error| self.context.problem(error))?;
            self.forget(&repository).await?;
        } else {
            output.archive = Some(manifest.id());
            output.undo_until = archives::undo_until(&manifest.summary.tags);
        }
        if let Err(problem) = forget_expired(self.context, &repository).await {
            let line = format!("archives whose time is over were not forgotten: {problem}");
            self.context.ledger.log(&line).await;
        }
        Ok(output)
    }

    /// Forgets the archive, unless an earlier attempt did.
    async fn forget(&self, repository: &TenantRepository) -> Result<(), Problem> {
        let id = BackupId::of_job(self.context.job.id);
        if repository.was_forgotten(id).await? {
            return Ok(());
        }
        let fence = self.context.repository_fence();
        let forgotten = repository.forget(id, "the cleanup was asked to keep none", &*fence);
        Ok(forgotten.await?)
    }

    /// The plan of the attempt before, or a new one.
    async fn plan(&self) -> Result<CleanupPlan, Problem> {
        if let Some(plan) = self.keeper.progress().plan {
            return Ok(plan);
        }
        let working = self.working([0; 32]).await?;
        let request = CleanupRequest {
            what: self.arguments.what.clone(),
            archive: !self.arguments.no_archive,
        };
        let planned = self
            .context
            .progress
            .while_waiting(self.cleanup.plan(&working, self.target, &request))
            .await;
        self.context.remove_scratch(&working).await;
        let plan = planned.map_err(|error| self.context.problem(error))?;
        if !self.arguments.dry_run && plan.refusals.is_empty() {
            self.keeper
                .go_to(CleanupProgress {
                    plan: Some(plan.clone()),
                    ..CleanupProgress::default()
                })
                .await
                .map_err(|error| self.context.problem(error))?;
        }
        Ok(plan)
    }

    async fn working(&self, fingerprint_key: [u8; 32]) -> Result<EngineContext, Problem> {
        let working = self.context.engine_context(fingerprint_key, None).await?;
        Ok(EngineContext {
            checkpoints: self.keeper.clone(),
            ..working
        })
    }

    /// Archives what the plan would remove; an archive that is there is adopted.
    async fn archive(
        &self,
        repository: &TenantRepository,
        plan: &CleanupPlan,
    ) -> Result<Manifest, Problem> {
        let begun = repository
            .begin_backup(BeginBackup {
                backup: BackupId::of_job(self.context.job.id),
                database: archive_key(self.database),
                parent: Parent::None,
                read_everything: true,
                fence: self.context.repository_fence(),
                upload_parallel: UPLOADS_AT_ONCE,
            })
            .await?;
        let writer = match begun {
            Begun::AlreadyCommitted(manifest) => return Ok(*manifest),
            Begun::Writer(writer) => Arc::new(writer),
        };
        let started = Timestamp::now();
        self.context
            .progress
            .begin("archiving", plan.bytes(), plan.rows());
        let working = self.working(repository.fingerprint_key()).await?;
        let sink = RepositorySink::new(writer.clone(), false);
        let archived = self
            .cleanup
            .archive(&working, self.target, plan, &sink)
            .await;
        self.context.remove_scratch(&working).await;
        drop(sink);
        let archived = archived.map_err(|error| self.context.problem(error))?;
        let until = started.plus(Duration::from_secs(
            u64::from(self.arguments.keep_undo_days) * 86_400,
        ));
        let mut tags = self.context.job.tags.clone();
        tags.push(until_tag(until));
        let report = BackupReport {
            identity: self.identity.clone(),
            position: archived.position,
            objects: archived.objects,
            row_hash: ROW_HASH.to_owned(),
            engine_data: json!({ PLAN: plan }),
            warnings: Vec::new(),
        };
        let committed = writer
            .commit(ManifestBody {
                database_name: self.database.name.to_string(),
                engine: self.identity.engine.to_string(),
                started,
                tags,
                report: serde_json::to_value(&report).expect("a report is plain data"),
            })
            .await
            .map_err(|error| self.context.problem_of_store(error))?;
        Ok(committed.manifest)
    }

    /// Reads the archive back, once.
    async fn prove(&self, plan: &CleanupPlan, archive: &Archive) -> Result<(), Problem> {
        let progress = self.keeper.progress();
        if progress.stage >= Stage::Removing {
            return Ok(());
        }
        self.context
            .progress
            .begin("reading the archive back", archive.bytes(), 0);
        let working = self.working(archive.fingerprint_key).await?;
        let proven = self
            .cleanup
            .prove(&working, plan, archive, &archive.report.objects)
            .await;
        self.context.remove_scratch(&working).await;
        proven.map_err(|error| self.context.problem(error))?;
        self.keeper
            .go_to(CleanupProgress {
                stage: Stage::Removing,
                engine: None,
                ..progress
            })
            .await
            .map_err(|error| self.context.problem(error))
    }

    async fn remove(
        &self,
        plan: &CleanupPlan,
        archive: Option<&Archive>,
        fingerprint_key: [u8; 32],
    ) -> Result<CleanupRemoved, Problem> {
        let bytes = archive.map_or(0, Archive::bytes);
        self.context.progress.begin("removing", bytes, plan.rows());
        let working = self.working(fingerprint_key).await?;
        let source = archive.map(|archive| archive as &dyn fettler_engine::StreamSource);
        let removed = self
            .cleanup
            .remove(&working, self.target, plan, source, &self.terms())
            .await;
        self.context.remove_scratch(&working).await;
        let removed = removed.map_err(|error| self.after_some(error))?;
        for note in &removed.notes {
            self.context.ledger.log(note).await;
        }
        Ok(removed)
    }

    /// An error after which something may have been removed says how to get it back.
    fn after_some(&self, error: EngineError) -> Problem {
        let mut problem = self.context.problem(error);
        if problem.class == ErrorClass::Permanent {
            let undo = format!(
                "what was removed so far comes back with `fettler cleanup undo {}`",
                self.context.job.id.short()
            );
            problem.remedy = if problem.remedy.is_empty() {
                undo
            } else {
                format!("{}; {undo}", problem.remedy)
            };
        }
        problem
    }

    fn terms(&self) -> CleanupTerms {
        let usual = CleanupTerms::default();
        let given = self.arguments;
        CleanupTerms {
            batch_rows: given.batch_rows.unwrap_or(usual.batch_rows).max(1),
            rows_per_second: given.rows_per_second,
            full_speed: given.full_speed,
            replica_lag: given
                .replica_lag_seconds
                .map_or(usual.replica_lag, Duration::from_secs),
        }
    }
}

/// Whether what goes are rows or keys, each of which is accounted for.
const fn is_of_rows(plan: &CleanupPlan) -> bool {
    matches!(
        plan.what,
        CleanupAction::Rows { .. } | CleanupAction::Keys { .. }
    )
}

/// A plan that refuses is the job's failure, with all that would help.
fn refused(plan: &CleanupPlan) -> Result<(), Problem> {
    if plan.refusals.is_empty() {
        return Ok(());
    }
    let told = |tell: fn(&fettler_model::CleanupRefusal) -> &str| {
        plan.refusals
            .iter()
            .map(tell)
            .collect::<Vec<_>>()
            .join("; ")
    };
    Err(Problem::permanent(
        "cleanup.refused",
        told(|refusal| &refusal.what),
        told(|refusal| &refusal.remedy),
    ))
}
