//! What a running attempt reaches the ledger through. Each write carries the attempt's fencing token, so
//! that what a superseded attempt still writes is refused (P2). While the ledger is away a call waits for
//! it instead of failing the job, since an outage spends no try (rule 2), unless the job is to stop.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use fettler_engine::{Artefact, Artefacts, Checkpoints, EngineError};
use fettler_fault_points::{Point, reached};
use fettler_jobs::{Catalogue, DatabaseRecord, JobLedger, StopReason, Stopping, UpkeepRecord};
use fettler_ledger::{
    BackupFilter, Fencing, FindingsSeen, Idempotency, IdentityOutcome, Ledger, LedgerError,
};
use fettler_model::{
    BackupFacts, BackupId, BackupState, DatabaseId, ErrorClass, Finding, JobId, JobRequest,
    KeepRules, Problem, ProofFacts, Protection, RecordedFindings, TenantId, Timestamp,
    TuningRecord,
};
use fettler_telemetry::metric;
use serde_json::Value;

use crate::{artefact::RecordedArtefact, lease::Lease};

/// The pauses between tries while the ledger is away: short at first, since most are a busy moment.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a job steps back when its database turns out to be another job's: from then on the ledger
/// knows that they are one database, and parks the job behind the other.
const STEP_BACK: Duration = Duration::from_secs(1);

/// The ledger as one attempt sees it.
#[derive(Clone, Debug)]
pub(crate) struct Ports {
    pub(crate) ledger: Ledger,
    pub(crate) fencing: Fencing,
    pub(crate) tenant: TenantId,
    pub(crate) lease: Arc<Lease>,
    pub(crate) stopping: Stopping,
}

impl Ports {
    /// Calls the ledger, again and again while it is away.
    async fn patiently<T, F, Fut>(&self, mut call: F) -> Result<T, Problem>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = fettler_ledger::Result<T>>,
    {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if matches!(error, LedgerError::Superseded { .. }) {
                self.lease.supersede();
                metrics::counter!(metric::REFUSED_ZOMBIES, "what" => "write").increment(1);
                return Err(Problem::interrupted().while_doing(&error.to_string()));
            }
            if error.class() != ErrorClass::Transient {
                return Err(error.into());
            }
            tracing::debug!(%error, "the ledger is away: the job waits for it");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stopping.token().cancelled() => return Err(self.stopping.problem()),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The same for an engine, which says in its own way that it was stopped.
    async fn patiently_for_engine<T, F, Fut>(&self, call: F) -> Result<T, EngineError>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = fettler_ledger::Result<T>>,
    {
        self.patiently(call).await.map_err(|problem| {
            if self.stopping.reason() == Some(StopReason::Superseded) {
                EngineError::Stopped
            } else {
                EngineError::Outside(problem)
            }
        })
    }

    /// A record of another tenant is as good as none (P6).
    fn not_here(what: &str, id: impl std::fmt::Display) -> Problem {
        Problem::permanent(
            "job.not_found",
            format!("there is no {what} {id} in the job's tenant"),
            "it was removed after the job was submitted; submit the job for one that is there",
        )
    }
}

#[async_trait]
impl JobLedger for Ports {
    async fn database(&self, id: DatabaseId) -> Result<DatabaseRecord, Problem> {
        let record = self
            .patiently(|| self.ledger.database(id))
            .await
            .map_err(|problem| match problem.code.as_str() {
                "ledger.not_found" => Self::not_here("database", id),
                _ => problem,
            })?;
        if record.tenant != self.tenant {
            return Err(Self::not_here("database", id));
        }
        as_jobs_see_it(record)
    }

    async fn set_identity(&self, database: DatabaseId, key: &str) -> Result<(), Problem> {
        let outcome = self
            .patiently(|| self.ledger.set_identity(database, key, Some(self.fencing)))
            .await?;
        match outcome {
            IdentityOutcome::Known => Ok(()),
            IdentityOutcome::Busy { job, kind } => Err(Problem::snooze(
                "job.database_busy",
                format!(
                    "{kind} {} works on the same database under another name",
                    job.short()
                ),
                STEP_BACK,
            )),
        }
    }

    async fn submit(&self, request: JobRequest) -> Result<JobId, Problem> {
        if request.tenant != self.tenant {
            return Err(Problem::permanent(
                "job.foreign_tenant",
                "a job may submit jobs of its own tenant only",
                "",
            ));
        }
        // An attempt that is repeated submits the same job, also when that one has ended since. What
        // it asks for may differ in details by then, so that the hash is of the key alone.
        let idempotency = request.unique_key.as_ref().map(|key| Idempotency {
            key: format!("job/{}/{key}", self.fencing.job),
            request_hash: [0; 32],
        });
        let submitted = self
            .patiently(|| self.ledger.submit(request.clone(), idempotency.clone()))
            .await?;
        Ok(submitted.job)
    }

    async fn keep_rules(&self, database: DatabaseId) -> Result<Vec<KeepRules>, Problem> {
        let policies = self.patiently(|| self.ledger.policies_of(database)).await?;
        Ok(policies
            .into_iter()
            .filter(|policy| policy.tenant == self.tenant)
            .filter_map(|policy| policy.spec.keep)
            .filter(|rules| !rules.is_empty())
            .collect())
    }

    async fn protection(&self, database: DatabaseId) -> Result<Protection, Problem> {
        self.patiently(|| self.ledger.protection(database)).await
    }

    async fn record_findings(
        &self,
        database: DatabaseId,
        findings: &[Finding],
        conclusive: &BTreeSet<String>,
    ) -> Result<RecordedFindings, Problem> {
        let look = FindingsSeen {
            tenant: &self.tenant,
            database,
            findings,
            conclusive,
        };
        self.patiently(|| self.ledger.record_findings(&look, Some(self.fencing)))
            .await
    }

    async fn audit_baseline(&self, database: DatabaseId) -> Result<Option<Value>, Problem> {
        self.patiently(|| self.ledger.audit_baseline(&self.tenant, database))
            .await
    }

    async fn keep_audit_baseline(
        &self,
        database: DatabaseId,
        snapshot: &Value,
    ) -> Result<(), Problem> {
        self.patiently(|| {
            self.ledger
                .keep_audit_baseline(&self.tenant, database, snapshot, Some(self.fencing))
        })
        .await
    }

    async fn keep_tuning_sample(&self, database: DatabaseId, data: Value) -> Result<(), Problem> {
        self.patiently(|| {
            self.ledger
                .keep_tuning_sample(&self.tenant, database, &data, Some(self.fencing))
        })
        .await
    }

    async fn tuning_samples(
        &self,
        database: DatabaseId,
    ) -> Result<Vec<(Timestamp, Value)>, Problem> {
        self.patiently(|| self.ledger.tuning_samples(database))
            .await
    }

    async fn record_tuning(
        &self,
        database: DatabaseId,
        record: &TuningRecord,
    ) -> Result<(), Problem> {
        self.patiently(|| {
            self.ledger
                .record_tuning(&self.tenant, database, record, Some(self.fencing))
        })
        .await
    }

    async fn tunings(&self, database: DatabaseId) -> Result<Vec<TuningRecord>, Problem> {
        self.patiently(|| self.ledger.tunings(database)).await
    }

    async fn log(&self, line: &str) {
        let lines = [line.to_owned()];
        if let Err(problem) = self
            .patiently(|| self.ledger.append_log(self.fencing, &lines))
            .await
        {
            tracing::warn!(%problem, line, "a line of the job's log was not kept");
        }
    }
}

/// A database's record without what only the ledger and the scheduler need.
pub(crate) fn as_jobs_see_it(
    record: fettler_ledger::DatabaseRecord,
) -> Result<DatabaseRecord, Problem> {
    let sandbox = if record.sandbox.is_null() {
        fettler_engine::SandboxSpec::default()
    } else {
        serde_json::from_value(record.sandbox).map_err(|error| {
            Problem::permanent(
                "database.sandbox",
                format!(
                    "the sandbox of database {} cannot be read: {error}",
                    record.name
                ),
                "set it again with `fettler database edit`",
            )
        })?
    };
    Ok(DatabaseRecord {
        id: record.id,
        tenant: record.tenant,
        name: record.name,
        url: record.url,
        password: record.password,
        sandbox,
    })
}

#[async_trait]
impl Catalogue for Ports {
    async fn record_backup(&self, place: &str, facts: &BackupFacts) -> Result<(), Problem> {
        self.patiently(|| self.ledger.upsert_backup(place, facts, Some(self.fencing)))
            .await
    }

    async fn set_state(
        &self,
        backup: BackupId,
        state: BackupState,
        why: &str,
    ) -> Result<(), Problem> {
        self.patiently(|| {
            self.ledger
                .set_backup_state(backup, state, why, Some(self.fencing))
        })
        .await
    }

    async fn record_proof(&self, proof: &ProofFacts) -> Result<(), Problem> {
        self.patiently(|| self.ledger.record_proof(proof, Some(self.fencing)))
            .await
    }

    async fn backups(
        &self,
        place: &str,
        database: Option<DatabaseId>,
    ) -> Result<Vec<UpkeepRecord>, Problem> {
        let filter = BackupFilter {
            tenant: Some(self.tenant.clone()),
            place: Some(place.to_owned()),
            database,
            ..BackupFilter::default()
        };
        let newest_first = self.patiently(|| self.ledger.backups(&filter)).await?;
        Ok(newest_first
            .into_iter()
            .rev()
            .map(|record| UpkeepRecord {
                facts: record.facts,
                state: record.state,
                last_proof: record.last_proof,
            })
            .collect())
    }
}

#[async_trait]
impl Artefacts for Ports {
    async fn record(&self, artefact: &Artefact) -> Result<(), EngineError> {
        let record = RecordedArtefact::here(artefact.clone());
        let (name, data) = (record.name(), record.to_value());
        self.patiently_for_engine(|| {
            self.ledger
                .record_artefact(self.fencing, &name, &data, artefact.until_job_ends)
        })
        .await?;
        reached(Point::ArtefactRecorded);
        Ok(())
    }

    async fn removed(&self, artefact: &Artefact) -> Result<(), EngineError> {
        let name = RecordedArtefact::here(artefact.clone()).name();
        self.patiently_for_engine(|| {
            self.ledger
                .remove_artefact(self.fencing.job, self.fencing.token, &name)
        })
        .await
    }

    async fn left(&self) -> Result<Vec<Artefact>, EngineError> {
        let left = self
            .patiently_for_engine(|| self.ledger.left_artefacts(self.fencing))
            .await?;
        // What a newer version recorded in another form is for that one to go on with.
        let readable = left
            .iter()
            .filter_map(|data| RecordedArtefact::from_value(data).ok());
        Ok(readable.map(|recorded| recorded.artefact).collect())
    }

    async fn give_up(&self, left: &Artefact) -> Result<(), EngineError> {
        let name = RecordedArtefact::here(left.clone()).name();
        self.patiently_for_engine(|| self.ledger.give_up_artefact(self.fencing, &name))
            .await
    }
}

#[async_trait]
impl Checkpoints for Ports {
    async fn load(&self) -> Result<Option<Value>, EngineError> {
        self.patiently_for_engine(|| self.ledger.load_checkpoint(self.fencing.job))
            .await
    }

    async fn save(&self, checkpoint: Value) -> Result<(), EngineError> {
        self.patiently_for_engine(|| self.ledger.save_checkpoint(self.fencing, &checkpoint))
            .await
    }
}
