//! What a job is given: who it is, what it works on, and the services of the process that runs it.
//! The worker implements the traits over the ledger; everything that is written through them is
//! refused once the attempt was superseded (P2).

use std::{collections::BTreeSet, fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use fettler_engine::{
    Artefact, Artefacts, AttemptName, Checkpoints, EngineContext, EngineError, Fence,
    ProgressMeter, RateLimit, SandboxSpec, Target,
};
use fettler_model::{
    AttemptToken, BackupFacts, BackupId, BackupState, DatabaseId, DatabaseName, DatabaseUrl,
    ErrorClass, Finding, JobId, JobKindName, JobRequest, KeepRules, Problem, ProofFacts,
    Protection, RecordedFindings, Secret, SecretReference, TenantId, Timestamp, TuningRecord,
};
use fettler_repository::TenantRepository;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// The job as its attempt sees it.
#[derive(Clone, Debug)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its kind.
    pub kind: JobKindName,
    /// The database it is about.
    pub database: Option<DatabaseId>,
    /// The fencing token of the attempt that runs.
    pub token: AttemptToken,
    /// How many tries were spent before this one.
    pub tries_spent: u32,
    /// Free words of the user's.
    pub tags: Vec<String>,
    /// When the job was submitted.
    pub submitted: Timestamp,
}

/// A database that Fettler looks after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatabaseRecord {
    /// Its id.
    pub id: DatabaseId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name.
    pub name: DatabaseName,
    /// Where it is.
    pub url: DatabaseUrl,
    /// Where its password lies.
    pub password: Option<SecretReference>,
    /// Where its proofs restore to.
    pub sandbox: SandboxSpec,
}

/// Why an attempt is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The job was cancelled.
    Cancelled,
    /// The worker stops; the job goes back to the queue.
    Interrupted,
    /// A newer attempt has taken the job over.
    Superseded,
    /// The attempt ran longer than its job allows.
    TimedOut,
    /// The job's maintenance window has closed; the job goes back to the queue.
    WindowClosed,
    /// The attempt gave no sign of life for too long.
    Stalled,
}

/// The request to stop, and why.
#[derive(Clone, Debug, Default)]
pub struct Stopping {
    token: CancellationToken,
    reason: Arc<std::sync::OnceLock<StopReason>>,
}

impl Stopping {
    /// Asks for the stop; the first reason counts.
    pub fn stop(&self, reason: StopReason) {
        let _first_reason_counts = self.reason.set(reason);
        self.token.cancel();
    }

    /// Why, once it was asked for.
    #[must_use]
    pub fn reason(&self) -> Option<StopReason> {
        self.reason.get().copied()
    }

    /// Cancelled when the stop is asked for.
    #[must_use]
    pub const fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// The problem with which a stopped attempt ends.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self.reason() {
            Some(StopReason::Cancelled) => Problem::cancelled(),
            Some(StopReason::TimedOut) => Problem::transient(
                "job.timeout",
                "the attempt ran longer than its job allows",
                "see in the job's log what took so long, or allow more (`--timeout`)",
            ),
            Some(StopReason::Stalled) => Problem::transient(
                "job.stalled",
                "the attempt made no progress for longer than a worker waits",
                "see in the job's log what it was at; where such waits are usual, allow more (`worker.stall_minutes`)",
            ),
            Some(StopReason::WindowClosed) => Problem::new(
                fettler_model::ErrorClass::Interrupted,
                "job.window_closed",
                "the maintenance window has closed",
                "",
            ),
            Some(StopReason::Interrupted | StopReason::Superseded) | None => Problem::interrupted(),
        }
    }
}

/// Which repository a tenant's backups go to. Jobs carry it as text, see [`Services::repository`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct BackupPlace(pub Option<String>);

/// A backup as the upkeep of the catalogue sees it.
#[derive(Clone, Debug)]
pub struct UpkeepRecord {
    /// What is known of it.
    pub facts: BackupFacts,
    /// What may be said of it.
    pub state: BackupState,
    /// Its last proof.
    pub last_proof: Option<ProofFacts>,
}

/// The catalogue of backups in the ledger. Everything in it can be made again from the repository.
#[async_trait]
pub trait Catalogue: Send + Sync {
    /// Records a complete backup, or brings what is known of it up to date.
    async fn record_backup(&self, place: &str, facts: &BackupFacts) -> Result<(), Problem>;

    /// Says what may now be said of a backup.
    async fn set_state(
        &self,
        backup: BackupId,
        state: BackupState,
        why: &str,
    ) -> Result<(), Problem>;

    /// Records a proof.
    async fn record_proof(&self, proof: &ProofFacts) -> Result<(), Problem>;

    /// The backups of a tenant in this repository, or of one database of it, oldest first.
    async fn backups(
        &self,
        place: &str,
        database: Option<DatabaseId>,
    ) -> Result<Vec<UpkeepRecord>, Problem>;
}

/// What the process that runs a job offers beside the ledger.
#[async_trait]
pub trait Services: Send + Sync {
    /// Resolves a reference to a secret; the tenant must be allowed to name it (P6).
    async fn secret(
        &self,
        tenant: &TenantId,
        reference: &SecretReference,
    ) -> Result<Secret, Problem>;

    /// Looks whether a tenant may reach a place, just before a connection to it is made (P6). Gives the place to
    /// connect to: what was looked at, and not what its name may mean a moment later.
    async fn admit(&self, tenant: &TenantId, url: &DatabaseUrl) -> Result<DatabaseUrl, Problem> {
        let _anybody = tenant;
        Ok(url.clone())
    }

    /// The tenant's part of the repository at `place`, or of the configured one; and its place as text.
    async fn repository(
        &self,
        tenant: &TenantId,
        place: &BackupPlace,
    ) -> Result<(TenantRepository, String), Problem>;

    /// How many connections a job opens to a database at once.
    fn parallel(&self) -> usize;

    /// A folder for temporary files of jobs on this machine.
    fn scratch(&self) -> PathBuf;

    /// How long a pack that nobody names is kept before it is deleted.
    fn collection_grace(&self) -> Duration;

    /// Where proofs restore to when a database's record names no place.
    fn default_sandbox(&self) -> SandboxSpec;

    /// The folder of the operator's own checks, where there is one.
    fn own_checks(&self) -> Option<PathBuf> {
        None
    }
}

/// What the worker keeps for a running job in the ledger.
#[async_trait]
pub trait JobLedger: Send + Sync {
    /// The record of a database of the job's tenant.
    async fn database(&self, id: DatabaseId) -> Result<DatabaseRecord, Problem>;

    /// Tells the ledger the database's own identity, for exclusion (rule 17).
    async fn set_identity(&self, database: DatabaseId, key: &str) -> Result<(), Problem>;

    /// Submits a job that follows from this one. The same `unique_key` gives the same job.
    async fn submit(&self, request: JobRequest) -> Result<JobId, Problem>;

    /// The keep rules of the policies of a database.
    async fn keep_rules(&self, database: DatabaseId) -> Result<Vec<KeepRules>, Problem>;

    /// What is known of a database's backups and proofs.
    async fn protection(&self, database: DatabaseId) -> Result<Protection, Problem>;

    /// Records what a look at a database has found; `conclusive` are the checks that have seen all there is.
    async fn record_findings(
        &self,
        database: DatabaseId,
        findings: &[Finding],
        conclusive: &BTreeSet<String>,
    ) -> Result<RecordedFindings, Problem>;

    /// What audits of a database compare with; nothing before the first one.
    async fn audit_baseline(
        &self,
        database: DatabaseId,
    ) -> Result<Option<serde_json::Value>, Problem>;

    /// Keeps what later audits compare with.
    async fn keep_audit_baseline(
        &self,
        database: DatabaseId,
        snapshot: &serde_json::Value,
    ) -> Result<(), Problem>;

    /// Keeps what was seen of a database's load.
    async fn keep_tuning_sample(
        &self,
        database: DatabaseId,
        data: serde_json::Value,
    ) -> Result<(), Problem>;

    /// What was seen of a database's load before, oldest first.
    async fn tuning_samples(
        &self,
        database: DatabaseId,
    ) -> Result<Vec<(Timestamp, serde_json::Value)>, Problem>;

    /// Writes down an action of tuning, or what has become of it, durably.
    async fn record_tuning(
        &self,
        database: DatabaseId,
        record: &TuningRecord,
    ) -> Result<(), Problem>;

    /// What tuning has done to a database, in the order in which it last changed.
    async fn tunings(&self, database: DatabaseId) -> Result<Vec<TuningRecord>, Problem>;

    /// Adds a line to the log that is kept with the job.
    async fn log(&self, line: &str);
}

/// Everything that an attempt works with.
#[derive(Clone)]
pub struct JobContext {
    /// The job and the attempt.
    pub job: JobRecord,
    /// Whether and why it is to stop.
    pub stopping: Stopping,
    /// Where progress is counted.
    pub progress: Arc<ProgressMeter>,
    /// Asked before each durable effect.
    pub fence: Arc<dyn Fence>,
    /// Told what is made outside.
    pub artefacts: Arc<dyn Artefacts>,
    /// What the last attempt left, and where to leave something for the next.
    pub checkpoints: Arc<dyn Checkpoints>,
    /// The catalogue of backups.
    pub catalogue: Arc<dyn Catalogue>,
    /// What else the ledger does for a running job.
    pub ledger: Arc<dyn JobLedger>,
    /// What the process offers.
    pub services: Arc<dyn Services>,
}

impl fmt::Debug for JobContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobContext")
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

impl JobContext {
    /// The name that this attempt carries outside.
    #[must_use]
    pub fn attempt_name(&self) -> AttemptName {
        AttemptName {
            job: self.job.id,
            token: self.job.token,
        }
    }

    /// The attempt's fence as the repository asks it.
    #[must_use]
    pub fn repository_fence(&self) -> Arc<dyn fettler_repository::Fence> {
        Arc::new(RepositoryFence(self.fence.clone()))
    }

    /// An engine's error as the job's: a stop gets the reason for which it was asked.
    #[must_use]
    pub fn problem(&self, error: EngineError) -> Problem {
        match error {
            EngineError::Stopped => self.stopping.problem(),
            other => other.into(),
        }
    }

    /// A repository's error as the job's: a stop gets the reason for which it was asked.
    #[must_use]
    pub fn problem_of_store(&self, error: impl Into<Problem>) -> Problem {
        let problem = error.into();
        match problem.class {
            ErrorClass::Cancelled | ErrorClass::Interrupted if self.stopping.reason().is_some() => {
                self.stopping.problem()
            }
            _ => problem,
        }
    }

    /// The record of the database that the job is about.
    ///
    /// # Errors
    ///
    /// When the job names none, or one that is gone.
    pub async fn database(&self) -> Result<DatabaseRecord, Problem> {
        let id = self.job.database.ok_or_else(|| {
            Problem::permanent(
                "job.no_database",
                format!(
                    "a {} job needs a database, and this one names none",
                    self.job.kind
                ),
                "submit it with a database",
            )
        })?;
        self.ledger.database(id).await
    }

    /// The database with its password resolved.
    ///
    /// # Errors
    ///
    /// When the reference to the password cannot be resolved.
    pub async fn target(
        &self,
        url: &DatabaseUrl,
        password: Option<&SecretReference>,
    ) -> Result<Target, Problem> {
        let password = match password {
            Some(reference) => Some(self.services.secret(&self.job.tenant, reference).await?),
            None => None,
        };
        Ok(Target {
            url: self.services.admit(&self.job.tenant, url).await?,
            password,
        })
    }

    /// What an engine is given; makes the attempt's scratch folder, which is recorded first.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub async fn engine_context(
        &self,
        fingerprint_key: [u8; 32],
        max_bytes_per_second: Option<u64>,
    ) -> Result<EngineContext, Problem> {
        let scratch =
            self.services
                .scratch()
                .join(format!("{}-{}", self.job.id.short(), self.job.token));
        let folder = scratch.clone();
        tokio::task::spawn_blocking(move || std::fs::create_dir_all(&folder))
            .await
            .expect("making a folder does not panic")
            .map_err(|error| {
                Problem::from(EngineError::local(
                    format!("the scratch folder {} cannot be made", scratch.display()),
                    error,
                ))
            })?;
        Ok(EngineContext {
            attempt: self.attempt_name(),
            stop: self.stopping.token().clone(),
            progress: self.progress.clone(),
            fence: self.fence.clone(),
            artefacts: self.artefacts.clone(),
            checkpoints: self.checkpoints.clone(),
            fingerprint_key,
            rate: Arc::new(RateLimit::new(max_bytes_per_second)),
            scratch,
            kept: self.services.scratch(),
            parallel: self.services.parallel(),
        })
    }

    /// Removes the attempt's scratch folder. A failure is logged with the job: rescue removes what is
    /// left of ended attempts.
    pub async fn remove_scratch(&self, engine: &EngineContext) {
        let folder = engine.scratch.clone();
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&folder)).await;
        if let Ok(Err(error)) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            self.ledger
                .log(&format!("the scratch folder was left behind: {error}"))
                .await;
        }
    }

    /// Removes what was made outside and says so.
    ///
    /// # Errors
    ///
    /// When the engine cannot remove it; it stays recorded, and rescue tries again.
    pub async fn remove_artefact(
        &self,
        engine: &dyn fettler_engine::DatabaseEngine,
        artefact: &Artefact,
        server: Option<&Target>,
    ) -> Result<(), EngineError> {
        if artefact.until_job_ends {
            // A newer attempt may have made it its own.
            self.fence.check().await?;
        }
        engine.remove_artefact(artefact, server).await?;
        self.artefacts.removed(artefact).await
    }
}

struct RepositoryFence(Arc<dyn Fence>);

#[async_trait]
impl fettler_repository::Fence for RepositoryFence {
    async fn check(&self) -> Result<(), Problem> {
        Ok(self.0.check().await?)
    }
}
