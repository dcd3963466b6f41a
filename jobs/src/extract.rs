//! One part of a backup in an open format: no job, since it changes nothing and its bytes go to whoever asked.

use std::{path::Path, sync::Arc};

use fettler_engine::{
    AttemptName, EngineContext, EngineError, ExtractFormat, ExtractReport, Extraction,
    ProgressMeter, RateLimit, Unfenced, Unrecorded, chosen_format,
};
use fettler_model::{AttemptToken, JobId, Problem};
use fettler_repository::{Manifest, TenantRepository};
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;

/// The code of the problem that whoever took the bytes has gone away, as `head` does.
pub const READER_GONE: &str = "extract.reader_gone";

/// What is written, and how.
#[derive(Clone, Debug)]
pub struct ExtractRequest<'a> {
    /// The part, as `fettler browse` names it.
    pub part: &'a str,
    /// The form; the engine's usual one when nothing is said.
    pub format: Option<ExtractFormat>,
    /// A folder where a folder for temporary files can be made.
    pub scratch: &'a Path,
    /// How many things may be done at once.
    pub parallel: usize,
    /// Cancelled when nobody wants it any more.
    pub stop: CancellationToken,
    /// Where progress is counted.
    pub progress: Arc<ProgressMeter>,
}

/// The form in which a part of this backup would be written.
///
/// # Errors
///
/// Where the engine does not write this form; those that it does are named.
pub fn extract_format(
    manifest: &Manifest,
    asked: Option<ExtractFormat>,
) -> Result<ExtractFormat, Problem> {
    let report = crate::report_of(manifest)?;
    let engine = fettler_engines::engine(report.identity.engine);
    Ok(chosen_format(
        engine.engine(),
        engine.extract_formats(),
        asked,
    )?)
}

/// Writes a part of a backup to `out`.
///
/// # Errors
///
/// Those of [`fettler_engine::DatabaseEngine::extract`]; [`READER_GONE`] where `out` takes no more.
pub async fn extract(
    repository: &TenantRepository,
    manifest: &Manifest,
    request: &ExtractRequest<'_>,
    out: &mut (dyn AsyncWrite + Send + Unpin),
) -> Result<ExtractReport, Problem> {
    let archive = Archive::of(repository, manifest)?;
    let engine = fettler_engines::engine(archive.report.identity.engine);
    let what = Extraction {
        part: request.part.to_owned(),
        format: chosen_format(engine.engine(), engine.extract_formats(), request.format)?,
    };
    let attempt = AttemptName {
        job: JobId::new(),
        token: AttemptToken::new(1, 0),
    };
    // Named as those of jobs are, so that rescue removes it where this process is killed.
    let scratch = Scratch(request.scratch.join(format!(
        "{}-{}",
        attempt.job.short(),
        attempt.token
    )));
    std::fs::create_dir_all(&scratch.0).map_err(|error| {
        EngineError::local(
            format!("making the scratch folder {}", scratch.0.display()),
            error,
        )
    })?;
    let context = EngineContext {
        attempt,
        stop: request.stop.clone(),
        progress: Arc::clone(&request.progress),
        fence: Arc::new(Unfenced),
        artefacts: Arc::new(Unrecorded),
        checkpoints: Arc::new(Unrecorded),
        fingerprint_key: archive.fingerprint_key,
        rate: Arc::new(RateLimit::default()),
        scratch: scratch.0.clone(),
        kept: scratch.0.clone(),
        parallel: request.parallel,
    };
    context.progress.begin("extracting", 0, 0);
    engine
        .extract(&context, &archive, &archive.report, &what, out)
        .await
        .map_err(|error| match &error {
            EngineError::Local { source, .. }
                if source.kind() == std::io::ErrorKind::BrokenPipe =>
            {
                Problem::permanent(READER_GONE, error.to_string(), "")
            }
            _ => error.into(),
        })
}

/// A folder that goes with its owner.
struct Scratch(std::path::PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "the scratch folder was left behind");
        }
    }
}
