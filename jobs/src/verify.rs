//! `verify`: reads and authenticates a backup's stored bytes, all of them or a sample, without any
//! database. What is found damaged is never taken over by a later backup, and the backup loses
//! `complete` (rule 24).

use async_trait::async_trait;
use fettler_model::{BackupId, BackupState, ExclusionClass, Problem, SlotClass};
use fettler_repository::{Damage, Depth, TenantRepository};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, JobContext, JobKind};

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Verify;

/// What a verification takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyArguments {
    /// The repository; the configured one when nothing is said.
    #[serde(default)]
    pub place: BackupPlace,
    /// The backup.
    pub backup: BackupId,
    /// Reads only about this share of the packs; all when nothing is said.
    #[serde(default)]
    pub sample_percent: Option<f64>,
}

/// What a verification found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VerifyOutput {
    /// The backup.
    pub backup: BackupId,
    /// Whether nothing was found wrong.
    pub ok: bool,
    /// Bytes that were read from the store.
    pub bytes_read: u64,
    /// What is damaged or missing.
    pub damaged: Vec<DamageOutput>,
}

/// One damaged or missing thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DamageOutput {
    /// The object in the store.
    pub object: String,
    /// The stream that it harms; nothing when the whole backup is harmed.
    pub stream: Option<String>,
    /// Where in the stream.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl From<Damage> for DamageOutput {
    fn from(damage: Damage) -> Self {
        Self {
            object: damage.object,
            stream: damage.stream,
            offset: damage.offset,
            what: damage.what,
        }
    }
}

#[async_trait]
impl JobKind for Verify {
    const NAME: &'static str = "verify";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = VerifyArguments;
    type Output = VerifyOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: VerifyArguments,
    ) -> Result<VerifyOutput, Problem> {
        let depth = match arguments.sample_percent {
            None => Depth::Everything,
            Some(percent) if percent > 0.0 && percent <= 100.0 => Depth::Sample { percent },
            Some(percent) => {
                return Err(Problem::permanent(
                    "verify.sample",
                    format!("a sample of {percent} % cannot be read"),
                    "give a share above 0 and up to 100",
                ));
            }
        };
        let (repository, _) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        context.progress.begin("reading stored bytes", 0, 0);
        let report = repository
            .verify(
                arguments.backup,
                depth,
                &mut |bytes| context.progress.add(bytes, 0),
                context.stopping.token(),
            )
            .await
            .map_err(|error| context.problem_of_store(error))?;
        context
            .fence
            .check()
            .await
            .map_err(|error| context.problem(error))?;
        if !report.is_ok() {
            tell_catalogue(context, &repository).await?;
        }
        Ok(VerifyOutput {
            backup: arguments.backup,
            ok: report.is_ok(),
            bytes_read: report.bytes_read,
            damaged: report.damaged.into_iter().map(Into::into).collect(),
        })
    }
}

/// Damage in one backup harms every backup that names the same packs: all of them lose `complete`.
async fn tell_catalogue(
    context: &JobContext,
    repository: &TenantRepository,
) -> Result<(), Problem> {
    for backup in repository.backups().await?.backups {
        if backup.damaged {
            context
                .catalogue
                .set_state(
                    backup.id,
                    BackupState::Damaged,
                    "a verification found damage",
                )
                .await?;
        }
    }
    Ok(())
}
