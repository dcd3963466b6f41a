//! `check`: looks at the whole repository of a tenant: every manifest, index and pack, and whether a backup vanished that
//! the catalogue knows. What is found is brought into the catalogue (rule 24).

use async_trait::async_trait;
use fettler_model::{BackupId, BackupState, ExclusionClass, Problem, SlotClass};
use fettler_repository::CheckReport;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, DamageOutput, JobContext, JobKind};

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Check;

/// What a check takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckArguments {
    /// The repository; the configured one when nothing is said.
    pub place: BackupPlace,
    /// Reads about this share of the packs too, out of a hundred; none when nothing is said.
    pub read_percent: Option<f64>,
}

/// What a check found.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CheckOutput {
    /// Whether nothing is damaged or has vanished.
    pub ok: bool,
    /// The repository.
    pub repository: String,
    /// Backups that were looked at.
    pub backups: u64,
    /// What is damaged or missing.
    pub damaged: Vec<DamageOutput>,
    /// Backups that need something that is damaged.
    pub incomplete: Vec<BackupId>,
    /// Backups that the catalogue knows, and that are neither there nor were forgotten on purpose.
    pub vanished: Vec<BackupId>,
    /// Packs that backups need.
    pub packs: u64,
    /// Packs that were read.
    pub packs_read: u64,
    /// Bytes that were read and authenticated.
    pub bytes_read: u64,
    /// Packs that no backup names; a collection removes them in time.
    pub packs_without_backup: u64,
}

impl CheckOutput {
    /// What the repository's own report says.
    #[must_use]
    pub fn of(repository: &str, report: CheckReport) -> Self {
        Self {
            ok: report.is_ok(),
            repository: repository.to_owned(),
            backups: report.backups,
            damaged: report.damaged.into_iter().map(Into::into).collect(),
            incomplete: report.incomplete,
            vanished: report.vanished,
            packs: report.packs,
            packs_read: report.packs_read,
            bytes_read: report.bytes_read,
            packs_without_backup: report.packs_without_backup,
        }
    }

    /// What may now be said of which backups, and why.
    pub fn findings(&self) -> impl Iterator<Item = (BackupId, BackupState, &'static str)> {
        let damaged = self.incomplete.iter();
        let damaged = damaged.map(|id| (*id, BackupState::Damaged, "a check found damage"));
        let vanished = self.vanished.iter().map(|id| {
            (
                *id,
                BackupState::Vanished,
                "a check did not find its manifest",
            )
        });
        damaged.chain(vanished)
    }
}

#[async_trait]
impl JobKind for Check {
    const NAME: &'static str = "check";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = CheckArguments;
    type Output = CheckOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: CheckArguments,
    ) -> Result<CheckOutput, Problem> {
        let (repository, place) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        let known = context.catalogue.backups(&place, None).await?;
        let expected: Vec<BackupId> = known
            .iter()
            .filter(|record| record.state != BackupState::Forgotten)
            .map(|record| record.facts.id)
            .collect();
        context.progress.begin("looking at all objects", 0, 0);
        let report = repository
            .check(
                arguments.read_percent,
                &expected,
                &mut |bytes| context.progress.add(bytes, 0),
                context.stopping.token(),
            )
            .await
            .map_err(|error| context.problem_of_store(error))?;
        let output = CheckOutput::of(&place, report);
        for (id, state, why) in output.findings() {
            // One that the catalogue never knew has nothing to change.
            if known.iter().any(|record| record.facts.id == id) {
                context.catalogue.set_state(id, state, why).await?;
            }
        }
        Ok(output)
    }
}
