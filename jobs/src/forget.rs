//! `forget` and `hold`: what a person says of single backups, whatever keep rules say.

use std::collections::BTreeMap;

use async_trait::async_trait;
use fettler_engine::BackupReport;
use fettler_model::{
    BackupFacts, BackupId, BackupState, DatabaseId, ExclusionClass, Problem, SlotClass,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, JobContext, JobKind, by_server};

/// Why a backup that was named is forgotten, as its record says.
pub const BY_REQUEST: &str = "by request";

/// The kind that forgets.
#[derive(Debug, Clone, Copy)]
pub struct Forget;

/// Which backups are forgotten.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForgetArguments {
    /// The repository; the configured one when nothing is said.
    #[serde(default)]
    pub place: BackupPlace,
    /// The backups.
    pub backups: Vec<BackupId>,
    /// Only looks whether they could be.
    #[serde(default)]
    pub dry_run: bool,
}

/// What was forgotten.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ForgetOutput {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// How many were forgotten, or would be.
    pub forgotten: u64,
    /// Which.
    pub backups: Vec<BackupId>,
}

#[async_trait]
impl JobKind for Forget {
    const NAME: &'static str = "forget";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Short;
    type Arguments = ForgetArguments;
    type Output = ForgetOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: ForgetArguments,
    ) -> Result<ForgetOutput, Problem> {
        let (repository, place) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        let known = context.catalogue.backups(&place, None).await?;
        // What their servers hold of them, to be let go afterwards.
        let mut servers: BTreeMap<DatabaseId, Vec<BackupReport>> = BTreeMap::new();
        let forgotten = known
            .iter()
            .map(|record| &record.facts)
            .filter(|facts| arguments.backups.contains(&facts.id))
            .filter(|facts| facts.tags.iter().any(|tag| tag == by_server::TAG));
        for database in forgotten.filter_map(|facts| facts.database) {
            if arguments.dry_run || servers.contains_key(&database) {
                continue;
            }
            let of_database: Vec<&BackupFacts> = known
                .iter()
                .map(|record| &record.facts)
                .filter(|facts| facts.database == Some(database))
                .collect();
            let reports = by_server::known(&repository, &of_database, &arguments.backups).await;
            servers.insert(database, reports);
        }
        for id in &arguments.backups {
            if arguments.dry_run {
                repository.manifest(*id).await?;
                continue;
            }
            repository
                .forget(*id, BY_REQUEST, &*context.repository_fence())
                .await?;
            // One that the catalogue never knew has nothing to change.
            if known.iter().any(|record| record.facts.id == *id) {
                context
                    .catalogue
                    .set_state(*id, BackupState::Forgotten, BY_REQUEST)
                    .await?;
            }
        }
        for (id, known) in servers {
            let database = context.ledger.database(id).await?;
            by_server::after_forgetting(context, &repository, &database, &known, true).await?;
        }
        Ok(ForgetOutput {
            dry_run: arguments.dry_run,
            forgotten: arguments.backups.len() as u64,
            backups: arguments.backups,
        })
    }
}

/// The kind that holds a backup, or lets it go.
#[derive(Debug, Clone, Copy)]
pub struct Hold;

/// Which backup is held.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HoldArguments {
    /// The repository; the configured one when nothing is said.
    #[serde(default)]
    pub place: BackupPlace,
    /// The backup.
    pub backup: BackupId,
    /// Whether it is held from now on.
    pub held: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HoldOutput {
    /// The backup.
    pub backup: BackupId,
    /// Whether it is held.
    pub held: bool,
    /// Whether it was not before.
    pub changed: bool,
}

#[async_trait]
impl JobKind for Hold {
    const NAME: &'static str = "hold";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Short;
    type Arguments = HoldArguments;
    type Output = HoldOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: HoldArguments,
    ) -> Result<HoldOutput, Problem> {
        let (repository, _) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        let HoldArguments { backup, held, .. } = arguments;
        let changed = repository.manifest(backup).await?.summary.held != held;
        if changed {
            context
                .fence
                .check()
                .await
                .map_err(|error| context.problem(error))?;
            repository.hold(backup, held).await?;
        }
        Ok(HoldOutput {
            backup,
            held,
            changed,
        })
    }
}
