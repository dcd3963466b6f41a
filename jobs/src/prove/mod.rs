//! `prove`: shows that a backup restores (P4, rules 27 to 31).
//!
//! 1. Make a sandbox: a place of the attempt's own, recorded before it is made.
//! 2. Restore the whole backup into it, and take the time.
//! 3. Read the copy as the source was read, and compare with what the manifest says.
//! 4. Record the proof; remove the sandbox, whatever came before.
//!
//! An attempt that is repeated starts again: a proof of a half-restored copy would say nothing.

mod compare;

use std::time::Instant;

use async_trait::async_trait;
use fettler_engine::{
    BackupReport, DatabaseEngine, EngineContext, EngineError, ROW_HASH, RestoreOptions, Sandbox,
    SandboxRequest, SandboxSpec, Unrecorded,
};
use fettler_fault_points::{Point, reached};
use fettler_model::{
    BackupId, ExclusionClass, Problem, ProofFacts, ProofVerdict, SlotClass, Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, JobContext, JobKind, archive};

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
        comparable(&archive.report)?;
        let engine = fettler_engines::engine(archive.report.identity.engine);
        let request = sandbox_request(context, &arguments, &archive).await?;
        let mut working = context
            .engine_context(archive.fingerprint_key, None)
            .await?;
        // The sandbox is new in every attempt, so that no restore in it goes on from an older one.
        working.checkpoints = std::sync::Arc::new(Unrecorded);
        context.progress.begin("making a sandbox", 0, 0);
        let sandbox = engine
            .open_sandbox(&working, &request)
            .await
            .map_err(|error| context.problem(error))?;
        reached(Point::SandboxOpen);
        let proof = run_in(&*engine, &working, &archive, &sandbox).await;
        let tidied = remove(context, &*engine, &sandbox, &request).await;
        context.remove_scratch(&working).await;
        let (restore_seconds, comparison) = proof.map_err(|error| context.problem(error))?;
        tidied.map_err(|error| context.problem(error))?;

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
fn comparable(report: &BackupReport) -> Result<(), Problem> {
    if report.row_hash == ROW_HASH {
        return Ok(());
    }
    Err(Problem::permanent(
        "prove.another_row_hash",
        format!(
            "the backup's fingerprints are sums of the row hash {:?}, and this version computes {ROW_HASH:?}",
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
    })
}

async fn run_in(
    engine: &dyn DatabaseEngine,
    working: &EngineContext,
    archive: &archive::Archive,
    sandbox: &Sandbox,
) -> Result<(f64, compare::Comparison), EngineError> {
    let began = Instant::now();
    let report: &BackupReport = &archive.report;
    working
        .progress
        .begin("restoring into the sandbox", archive.bytes(), 0);
    let restored = engine
        .restore(
            working,
            archive,
            report,
            &sandbox.target,
            &RestoreOptions::default(),
        )
        .await?;
    let restore_seconds = began.elapsed().as_secs_f64();
    reached(Point::SandboxFilled);
    working.check_stop()?;
    working
        .progress
        .begin("comparing the copy", archive.bytes(), 0);
    let copy = engine.facts(working, &sandbox.target, report).await?;
    Ok((
        restore_seconds,
        compare::compare(&report.objects, &copy, &restored.failed_statements),
    ))
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
