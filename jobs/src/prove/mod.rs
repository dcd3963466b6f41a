//! `prove`: shows that a backup restores (P4, rules 27 to 31).
//!
//! 1. Make a sandbox, recorded before it is made; or go on with the one that an earlier attempt of the job left.
//! 2. Restore the whole backup into it, and take the time.
//! 3. Read the copy as the source was read, and compare with what the manifest says.
//! 4. Record the proof; remove the sandbox, whatever came before.
//!
//! A sandbox outlives an attempt that is lost or interrupted, and what was restored and read there is not restored and read
//! again. One that does not serve any more is thrown away, and the proof starts again in a new one: only what went through in
//! one sandbox without an error says anything.

pub(crate) mod compare;
mod progress;

use std::time::Duration;

use async_trait::async_trait;
use fettler_engine::{
    BackupReport, DatabaseEngine, EngineContext, EngineError, RestoreOptions, Sandbox,
    SandboxRequest, SandboxSpec,
};
use fettler_fault_points::{Point, reached};
use fettler_model::{
    BackupId, ExclusionClass, Problem, ProofFacts, ProofVerdict, SlotClass, Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, JobContext, JobKind, StopReason, archive};

use progress::{ProofProgress, Restored};

/// How often the time that the restore has taken so far is saved.
const TIME_SAVED_EVERY: Duration = Duration::from_secs(10);

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Prove;

/// What a proof takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProveArguments {
    /// The repository; the configured one when nothing is said.
    #[serde(default)]
    pub place: BackupPlace,
    /// The backup.
    pub backup: BackupId,
    /// Where to restore to; the database's own setting, then the worker's, when nothing is said.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Value>")]
    pub sandbox: Option<SandboxSpec>,
}

/// What a proof says.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProveOutput {
    /// The backup.
    pub backup: BackupId,
    /// Whether it is proven.
    pub proven: bool,
    /// What exactly may be said.
    pub verdict: ProofVerdict,
    /// How long the restore took: the measured recovery time.
    pub restore_seconds: f64,
    /// How many fingerprints, counts and values were compared.
    pub fingerprints_compared: u64,
    /// What differed.
    pub mismatches: Vec<String>,
    /// What keeps a matching backup from being proven.
    pub doubts: Vec<String>,
}

#[async_trait]
impl JobKind for Prove {
    const NAME: &'static str = "prove";
    // The source is not touched; a proof on the source's own server makes a database beside it.
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = ProveArguments;
    type Output = ProveOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: ProveArguments,
    ) -> Result<ProveOutput, Problem> {
        let archive = archive::open(context, &arguments.place, arguments.backup).await?;
        let engine = fettler_engines::engine(archive.report.identity.engine);
        comparable(&*engine, &archive.report)?;
        let request = sandbox_request(context, &arguments, &archive).await?;
        let working = context
            .engine_context(archive.fingerprint_key, None)
            .await?;
        let proof = prove(context, &*engine, &working, &archive, request).await;
        context.remove_scratch(&working).await;
        let (restore_seconds, comparison) = proof.map_err(|error| context.problem(error))?;

        let facts = ProofFacts {
            backup: arguments.backup,
            verdict: comparison.verdict,
            finished: Timestamp::now(),
            restore_seconds,
            fingerprints_compared: comparison.compared,
            mismatches: comparison.mismatches.clone(),
        };
        context
            .fence
            .check()
            .await
            .map_err(|error| context.problem(error))?;
        context.catalogue.record_proof(&facts).await?;
        for mismatch in &comparison.mismatches {
            context.ledger.log(&format!("mismatch: {mismatch}")).await;
        }
        Ok(ProveOutput {
            backup: arguments.backup,
            proven: comparison.verdict == ProofVerdict::Proven,
            verdict: comparison.verdict,
            restore_seconds,
            fingerprints_compared: comparison.compared,
            mismatches: comparison.mismatches,
            doubts: comparison.doubts,
        })
    }
}

/// Refuses a backup whose fingerprints this version does not make: it would seem to differ.
fn comparable(engine: &dyn DatabaseEngine, report: &BackupReport) -> Result<(), Problem> {
    if engine.knows_row_hash(&report.row_hash) {
        return Ok(());
    }
    Err(Problem::permanent(
        "prove.another_row_hash",
        format!(
            "the backup's fingerprints are sums of the row hash {:?}, which this version does not compute",
            report.row_hash
        ),
        "prove it with the version of Fettler that made it, or make a new backup; a restore needs no fingerprints",
    ))
}

async fn sandbox_request(
    context: &JobContext,
    arguments: &ProveArguments,
    archive: &archive::Archive,
) -> Result<SandboxRequest, Problem> {
    let record = match context.job.database {
        Some(id) => Some(context.ledger.database(id).await?),
        None => None,
    };
    let configured = record.as_ref().map(|record| record.sandbox.clone());
    let spec = match (&arguments.sandbox, configured) {
        (Some(asked), _) => asked.clone(),
        (None, Some(own)) if own != SandboxSpec::Automatic => own,
        (None, _) => context.services.default_sandbox(),
    };
    let server = match (&spec, &record) {
        (SandboxSpec::Server { url, password }, _) => {
            Some(context.target(url, password.as_ref()).await?)
        }
        (SandboxSpec::SourceServer, Some(record)) => Some(
            context
                .target(&record.url, record.password.as_ref())
                .await?,
        ),
        (SandboxSpec::SourceServer, None) => {
            return Err(Problem::permanent(
                "prove.no_source",
                "the proof is to run on the source's server, and the job names no database",
                "submit it with the database, or name a server with `--sandbox postgres://…`",
            ));
        }
        (SandboxSpec::Automatic, _) => None,
    };
    Ok(SandboxRequest {
        spec,
        server,
        identity: archive.report.identity.clone(),
        estimated_bytes: archive.bytes(),
        left: None,
    })
}

/// Proves in the sandbox that was left, if there is one and it serves, and otherwise in a new one. Gives back how long the
/// restore took, in seconds, and what was compared.
async fn prove(
    context: &JobContext,
    engine: &dyn DatabaseEngine,
    working: &EngineContext,
    archive: &archive::Archive,
    mut request: SandboxRequest,
) -> Result<(f64, compare::Comparison), EngineError> {
    let left = context.artefacts.left().await?;
    let saved = ProofProgress::load(context).await?;
    request.left = saved
        .as_ref()
        .and_then(|saved| left.iter().find(|left| saved.is_of(left)).cloned());
    loop {
        context.progress.begin("making a sandbox", 0, 0);
        let sandbox = engine.open_sandbox(working, &request).await?;
        reached(Point::SandboxOpen);
        let progress = match saved.clone().filter(|_| sandbox.continued) {
            Some(saved) => saved,
            None => {
                for useless in &left {
                    context.artefacts.give_up(useless).await?;
                }
                ProofProgress::begin(context, &sandbox).await?
            }
        };
        let proof = prove_in(context, engine, working, archive, &sandbox, progress).await;
        if matches!(proof, Err(EngineError::Stopped)) && goes_on_elsewhere(context) {
            engine.leave_sandbox(&sandbox).await?;
            return proof;
        }
        let removed = remove(context, engine, &sandbox, &request).await;
        match proof {
            Err(error) if sandbox.continued && !matches!(error, EngineError::Stopped) => {
                context
                    .ledger
                    .log(&format!(
                        "the sandbox that an earlier attempt left is of no use, and a new one is made: {error}"
                    ))
                    .await;
                removed?;
                request.left = None;
            }
            proof => {
                let proof = proof?;
                removed?;
                return Ok(proof);
            }
        }
    }
}

/// Whether the attempt is stopped so that another one takes the job up.
fn goes_on_elsewhere(context: &JobContext) -> bool {
    matches!(
        context.stopping.reason(),
        Some(StopReason::Interrupted | StopReason::WindowClosed | StopReason::Superseded)
    )
}

async fn prove_in(
    context: &JobContext,
    engine: &dyn DatabaseEngine,
    working: &EngineContext,
    archive: &archive::Archive,
    sandbox: &Sandbox,
    progress: ProofProgress,
) -> Result<(f64, compare::Comparison), EngineError> {
    let report: &BackupReport = &archive.report;
    let progress = progress::keeper(context, progress);
    let working = EngineContext {
        checkpoints: progress.clone(),
        ..working.clone()
    };
    let restored = match progress.restored() {
        Some(restored) => restored,
        None => {
            working
                .progress
                .begin("restoring into the sandbox", archive.bytes(), 0);
            let options = RestoreOptions::default();
            let restore = engine.restore(&working, archive, report, &sandbox.target, &options);
            let report = progress.timing(TIME_SAVED_EVERY, restore).await??;
            let restored = Restored {
                seconds: progress.seconds(),
                failed_statements: report.failed_statements,
            };
            progress.filled(restored.clone()).await?;
            restored
        }
    };
    reached(Point::SandboxFilled);
    working.check_stop()?;
    working
        .progress
        .begin("comparing the copy", archive.bytes(), 0);
    let copy = engine.facts(&working, &sandbox.target, report).await?;
    let mut comparison = compare::compare(&report.objects, &copy, &restored.failed_statements);
    comparison.doubt(engine.doubts(report));
    Ok((restored.seconds, comparison))
}

async fn remove(
    context: &JobContext,
    engine: &dyn DatabaseEngine,
    sandbox: &Sandbox,
    request: &SandboxRequest,
) -> Result<(), EngineError> {
    let mut first_failure = Ok(());
    for artefact in sandbox.artefacts.iter().rev() {
        let removed = context
            .remove_artefact(engine, artefact, request.server.as_ref())
            .await;
        first_failure = first_failure.and(removed);
    }
    first_failure
}
