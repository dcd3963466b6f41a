//! `retention`: forgets the backups of a database that no keep rule wants (P8). Bytes are not touched:
//! `collect` removes what nobody names any more. Only what a server holds itself is removed at once, by the server.

use async_trait::async_trait;
use fettler_fault_points::{Point, reached};
use fettler_model::{
    BackupId, BackupState, ExclusionClass, KeepRules, Problem, ProofVerdict, SlotClass, Timestamp,
};
use fettler_repository::{BackupListing, Candidate, KeepReason, TenantRepository, plan_retention};
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, JobContext, JobKind, UpkeepRecord, backup::parent_key, by_server};

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Retention;

/// What retention takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionArguments {
    /// The repository; the configured one when nothing is said.
    pub place: BackupPlace,
    /// What is kept.
    pub keep: KeepRules,
    /// In which zone days, weeks, months and years begin; UTC when nothing is said.
    pub time_zone: Option<String>,
    /// Only says what would be forgotten.
    pub dry_run: bool,
}

/// One backup and what becomes of it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RetentionDecision {
    /// The backup.
    pub backup: BackupId,
    /// When it was made.
    pub started: Timestamp,
    /// Whether it is kept.
    pub keep: bool,
    /// Why it is kept; empty when it is not.
    #[schemars(with = "Vec<serde_json::Value>")]
    pub reasons: Vec<KeepReason>,
}

/// What retention did.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RetentionOutput {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Every backup of the database, oldest first.
    pub decisions: Vec<RetentionDecision>,
    /// How many were forgotten, or would be.
    pub forgotten: u64,
}

#[async_trait]
impl JobKind for Retention {
    const NAME: &'static str = "retention";
    // The same exclusion as a backup: what a running backup takes over must not be forgotten.
    const EXCLUSION: ExclusionClass = ExclusionClass::Backup;
    const SLOT: SlotClass = SlotClass::Short;
    type Arguments = RetentionArguments;
    type Output = RetentionOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: RetentionArguments,
    ) -> Result<RetentionOutput, Problem> {
        if arguments.keep.is_empty() {
            return Err(Problem::permanent(
                "retention.no_rules",
                "no keep rule was given, so that nothing says what may be forgotten",
                "give at least one, such as `--keep-daily 7`",
            ));
        }
        let database = context.database().await?;
        let (repository, place) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        let known = context.catalogue.backups(&place, Some(database.id)).await?;
        let key = parent_key(&database);
        let listing = repository.backups().await?;
        let summaries: Vec<_> = listing
            .backups
            .iter()
            .filter(|summary| summary.database == key)
            .collect();
        let candidates: Vec<Candidate> = summaries
            .iter()
            .map(|summary| {
                let record = known.iter().find(|record| record.facts.id == summary.id);
                Candidate {
                    id: summary.id,
                    taken: summary.started,
                    tags: summary.tags.clone(),
                    held: summary.held,
                    complete: !summary.damaged
                        && record.is_none_or(|record| record.state == BackupState::Complete),
                    proven: record
                        .and_then(|record| record.last_proof.as_ref())
                        .is_some_and(|proof| proof.verdict == ProofVerdict::Proven),
                }
            })
            .collect();
        let zone = zone_of(arguments.time_zone.as_deref())?;
        let plan = plan_retention(&arguments.keep, &candidates, &zone, Timestamp::now())?;
        let mut at_server = Vec::new();
        if !arguments.dry_run {
            let of_database: Vec<_> = known.iter().map(|record| &record.facts).collect();
            at_server = by_server::known(&repository, &of_database, &plan.forget).await;
            for backup in &plan.forget {
                repository
                    .forget(*backup, "keep rules", &*context.repository_fence())
                    .await?;
                reached(Point::RetentionForgotten);
                context
                    .catalogue
                    .set_state(*backup, BackupState::Forgotten, "keep rules")
                    .await?;
            }
        }
        if !arguments.dry_run {
            correct_catalogue(context, &repository, &known, &listing).await?;
            let is_held = |id: &BackupId| {
                let mut all = summaries.iter();
                all.any(|one| one.id == *id && one.tags.iter().any(|tag| tag == by_server::TAG))
            };
            let must = plan.forget.iter().any(is_held);
            by_server::after_forgetting(context, &repository, &database, &at_server, must).await?;
        }
        let decisions = summaries
            .iter()
            .map(|summary| {
                let kept = plan.keep.iter().find(|kept| kept.id == summary.id);
                RetentionDecision {
                    backup: summary.id,
                    started: summary.started,
                    keep: kept.is_some(),
                    reasons: kept.map_or_else(Vec::new, |kept| kept.reasons.clone()),
                }
            })
            .collect();
        Ok(RetentionOutput {
            dry_run: arguments.dry_run,
            decisions,
            forgotten: plan.forget.len() as u64,
        })
    }
}

/// Takes from the catalogue what the repository does not hold any more: an attempt that died between the two left it
/// listed as complete (P4). The catalogue was read first, so that nothing that is committed meanwhile is missed.
async fn correct_catalogue(
    context: &JobContext,
    repository: &TenantRepository,
    known: &[UpkeepRecord],
    listing: &BackupListing,
) -> Result<(), Problem> {
    for record in known {
        let id = record.facts.id;
        // Under whatever name of the database it was made.
        let is_listed = listing.backups.iter().any(|summary| summary.id == id);
        if record.state != BackupState::Complete || is_listed {
            continue;
        }
        let (state, why) = if repository.was_forgotten(id).await? {
            (BackupState::Forgotten, "keep rules")
        } else if listing.unreadable.is_empty() {
            (
                BackupState::Vanished,
                "the repository does not hold it any more",
            )
        } else {
            // It may be among those whose manifests cannot be read.
            continue;
        };
        context.catalogue.set_state(id, state, why).await?;
    }
    Ok(())
}

fn zone_of(name: Option<&str>) -> Result<TimeZone, Problem> {
    name.map_or(Ok(TimeZone::UTC), |name| {
        TimeZone::get(name).map_err(|error| {
            Problem::permanent(
                "retention.time_zone",
                format!("the time zone {name:?} is not known: {error}"),
                "give an IANA name, such as `Europe/Berlin`",
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backup;

    #[test]
    fn p8_retention_excludes_what_a_backup_excludes() {
        assert_eq!(Retention::EXCLUSION, Backup::EXCLUSION);
        assert!(Retention::EXCLUSION.excludes(Backup::EXCLUSION));
    }
}
