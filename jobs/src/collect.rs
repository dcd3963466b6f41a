//! `collect`: gives back the space of packs that no backup, announcement or hold names, in two phases
//! with a grace time between them (rule 23). One run does what is due: it marks, and deletes what was
//! marked long enough ago.

use std::time::Duration;

use async_trait::async_trait;
use fettler_model::{BackupId, ExclusionClass, Problem, SlotClass};
use fettler_repository::CollectOptions;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, JobContext, JobKind};

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Collect;

/// What a collection takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CollectArguments {
    /// The repository; the configured one when nothing is said.
    pub place: BackupPlace,
    /// How long what nobody names is kept; the configured time when nothing is said.
    pub grace_seconds: Option<u64>,
    /// Only says what would be deleted.
    pub dry_run: bool,
}

/// What a collection did.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CollectOutput {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Objects that nobody named and that now wait for the end of the grace time.
    pub marked_objects: u64,
    /// Their bytes.
    pub marked_bytes: u64,
    /// Objects that were deleted.
    pub deleted_objects: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Objects that were marked before and whose grace time has not ended.
    pub waiting_objects: u64,
    /// Objects that are needed.
    pub needed_objects: u64,
    /// Backups that were begun, fell silent, and can no longer be committed.
    pub given_up: Vec<BackupId>,
}

#[async_trait]
impl JobKind for Collect {
    const NAME: &'static str = "collect";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = CollectArguments;
    type Output = CollectOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: CollectArguments,
    ) -> Result<CollectOutput, Problem> {
        let (repository, _) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        let grace = arguments
            .grace_seconds
            .map_or_else(|| context.services.collection_grace(), Duration::from_secs);
        context
            .progress
            .begin("looking for what nobody needs", 0, 0);
        if !arguments.dry_run {
            crate::cleanup::forget_expired(context, &repository).await?;
        }
        let options = CollectOptions {
            grace,
            dry_run: arguments.dry_run,
            stop: context.stopping.token().clone(),
            fence: context.repository_fence(),
        };
        // Many small requests, each of which has a time of its own.
        let report = context
            .progress
            .while_waiting(repository.collect(&options))
            .await
            .map_err(|error| context.problem_of_store(error))?;
        Ok(CollectOutput {
            dry_run: arguments.dry_run,
            marked_objects: report.marked_objects,
            marked_bytes: report.marked_bytes,
            deleted_objects: report.deleted_objects,
            deleted_bytes: report.deleted_bytes,
            waiting_objects: report.waiting_objects,
            needed_objects: report.needed_objects,
            given_up: report.given_up,
        })
    }
}
