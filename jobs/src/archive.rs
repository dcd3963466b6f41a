//! A backup in the repository as an engine reads it: the engine's report out of the manifest, and the
//! streams behind it.

use async_trait::async_trait;
use fettler_engine::{BackupReport, EngineError, StreamFacts, StreamReader, StreamSource};
use fettler_model::{BackupId, Problem};
use fettler_repository::{BackupReader, Manifest, TenantRepository};
use futures::StreamExt;

use crate::{BackupPlace, JobContext};

/// A backup that is open for reading.
pub(crate) struct Archive {
    /// What the engine said when it read the source.
    pub(crate) report: BackupReport,
    /// The key of the row fingerprints in `report`.
    pub(crate) fingerprint_key: [u8; 32],
    reader: BackupReader,
    streams: Vec<StreamFacts>,
}

/// Opens a backup of the job's tenant.
///
/// # Errors
///
/// When the repository cannot be opened, or the manifest cannot be read.
pub(crate) async fn open(
    context: &JobContext,
    place: &BackupPlace,
    backup: BackupId,
) -> Result<Archive, Problem> {
    let (repository, _) = context
        .services
        .repository(&context.job.tenant, place)
        .await?;
    let manifest = repository.manifest(backup).await?;
    Archive::of(&repository, &manifest)
}

/// The engine's report in a manifest.
///
/// # Errors
///
/// When a newer Fettler wrote it in a form that this one cannot read.
pub fn report_of(manifest: &Manifest) -> Result<BackupReport, Problem> {
    serde_json::from_value(manifest.report.clone()).map_err(|error| {
        Problem::permanent(
            "backup.unknown_report",
            format!(
                "what the engine said of backup {} cannot be read: {error}",
                manifest.id()
            ),
            "a newer Fettler may have made it: use that version or a later one",
        )
    })
}

impl Archive {
    /// A backup by its manifest.
    pub(crate) fn of(repository: &TenantRepository, manifest: &Manifest) -> Result<Self, Problem> {
        Ok(Self {
            report: report_of(manifest)?,
            fingerprint_key: repository.fingerprint_key(),
            reader: repository.reader(manifest),
            streams: manifest
                .streams
                .iter()
                .map(|stream| StreamFacts {
                    name: stream.name.clone(),
                    bytes: stream.bytes,
                    rows: stream.rows,
                })
                .collect(),
        })
    }

    /// Bytes of all streams.
    pub(crate) fn bytes(&self) -> u64 {
        self.streams.iter().map(|stream| stream.bytes).sum()
    }
}

#[async_trait]
impl StreamSource for Archive {
    fn streams(&self) -> &[StreamFacts] {
        &self.streams
    }

    async fn read(&self, name: &str) -> Result<StreamReader, EngineError> {
        let stream = self.reader.read(name).map_err(Problem::from)?;
        Ok(stream
            .map(|bytes| bytes.map_err(|error| EngineError::Outside(error.into())))
            .boxed())
    }
}
