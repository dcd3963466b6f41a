//! `inspect`: what the manifest of a backup says of it. Nothing else is read.

use async_trait::async_trait;
use fettler_model::{BackupId, ExclusionClass, ObjectFacts, Problem, SlotClass, Warning};
use fettler_repository::{Manifest, TenantRepository};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, JobContext, JobKind, report_of};

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Inspect;

/// What a look takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InspectArguments {
    /// The repository; the configured one when nothing is said.
    #[serde(default)]
    pub place: BackupPlace,
    /// The backup.
    pub backup: BackupId,
}

/// What a manifest says beside what the catalogue knows.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InspectOutput {
    /// Where it lies.
    pub repository: String,
    /// The version of the database's server.
    pub version: String,
    /// The database's own identity.
    pub identity: String,
    /// The moment that the backup shows, as the engine writes it.
    pub position: serde_json::Value,
    /// Packs that it needs.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// What is inside.
    pub objects: Vec<ObjectFacts>,
    /// The streams that it consists of.
    pub stream_list: Vec<StreamOutput>,
    /// What a person should look at.
    pub warnings: Vec<Warning>,
}

/// One stream of a backup.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StreamOutput {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// Rows in it.
    pub rows: u64,
}

impl InspectOutput {
    /// What this manifest says.
    ///
    /// # Errors
    ///
    /// When a newer Fettler wrote it in a form that this one cannot read.
    pub fn of(repository: &TenantRepository, manifest: &Manifest) -> Result<Self, Problem> {
        let report = report_of(manifest)?;
        let packs = manifest.packs.iter();
        let streams = manifest.streams.iter();
        Ok(Self {
            repository: repository.place().to_owned(),
            version: report.identity.version,
            identity: report.identity.key,
            position: report.position,
            packs: manifest.packs.len() as u64,
            pack_bytes: packs.map(|pack| pack.bytes_and_used().0).sum(),
            objects: report.objects,
            stream_list: streams
                .map(|stream| StreamOutput {
                    name: stream.name.clone(),
                    bytes: stream.bytes,
                    rows: stream.rows,
                })
                .collect(),
            warnings: report.warnings,
        })
    }
}

#[async_trait]
impl JobKind for Inspect {
    const NAME: &'static str = "inspect";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Short;
    type Arguments = InspectArguments;
    type Output = InspectOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: InspectArguments,
    ) -> Result<InspectOutput, Problem> {
        let (repository, _) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        let manifest = repository.manifest(arguments.backup).await?;
        InspectOutput::of(&repository, &manifest)
    }
}
