//! The rescue loop: takes jobs back whose worker vanished, as a loop and not as a step at launch, and
//! removes what ended attempts left outside the ledger (rule 6). Every worker runs it; the ledger lets
//! each job be taken back once.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use fettler_engine::{SandboxSpec, Target};
use fettler_fault_points::{Point, reached};
use fettler_jobs::StopReason;
use fettler_ledger::{ArtefactRecord, JobRecord, LedgerError};
use fettler_model::{AttemptToken, DatabaseUrl, JobState, Problem, SecretReference, TenantId};
use fettler_telemetry::metric;
use serde::Deserialize;
use tokio::sync::broadcast;

use crate::{Shared, artefact::RecordedArtefact, ports::as_jobs_see_it};

/// How often leases are looked at, at least: a job is taken up again within this time after its lease.
const RESCUE_EVERY: Duration = Duration::from_secs(1);
/// How many times they are looked at within one lease, at least.
const RESCUES_A_LEASE: u32 = 10;
/// How often deadlines and parked jobs are looked at.
const EXPIRE_EVERY: Duration = Duration::from_secs(5);
/// How long after the end of an attempt it is looked for what it left.
const TIDY_PAUSE: Duration = Duration::from_millis(200);
/// How often what was left is looked for when nothing says that there is something.
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// How many artefacts are looked at in one round.
const ARTEFACTS_PER_ROUND: usize = 1000;
/// After this time what was made on another machine is removed from here, as far as it can be: that
/// machine may never come back.
const FOREIGN_ARTEFACT_AGE: Duration = Duration::from_secs(600);
/// A scratch folder whose job the ledger does not know may belong to another ledger; after this time
/// without a change it belongs to nobody.
const UNKNOWN_SCRATCH_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Takes back what was lost, until dropped.
pub(crate) async fn rescue(shared: Arc<Shared>) {
    let mut every = tokio::time::interval(RESCUE_EVERY.min(shared.timing.lease / RESCUES_A_LEASE));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut away = false;
    loop {
        every.tick().await;
        loop {
            match shared.ledger.rescue(shared.timing.lease).await {
                Ok(page) => {
                    away = false;
                    if page.is_empty() {
                        break;
                    }
                    for lost in &page {
                        metrics::counter!(metric::TAKEOVERS, "kind" => lost.kind.to_string())
                            .increment(1);
                        tracing::warn!(
                            job.id = %lost.job,
                            job.kind = %lost.kind,
                            tenant = %lost.tenant,
                            worker = lost.worker,
                            became = ?lost.ended,
                            "a job was taken back from a worker that vanished"
                        );
                    }
                    shared.tidy.notify_one();
                }
                Err(error) => {
                    if !away {
                        tracing::warn!(%error, "lost jobs could not be looked for");
                    }
                    away = true;
                    break;
                }
            }
        }
    }
}

/// Ends queued jobs whose deadline has passed, until dropped.
pub(crate) async fn expire(shared: Arc<Shared>) {
    let mut every = tokio::time::interval(EXPIRE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        match shared.ledger.expire().await {
            Ok(expired) => {
                for job in expired {
                    tracing::warn!(job.id = %job, "the job's deadline passed before it could run");
                    shared.ended.notify_waiters();
                }
            }
            Err(error) => tracing::debug!(%error, "deadlines could not be looked at"),
        }
    }
}

/// Passes cancellations on that this process asked for, at once.
pub(crate) async fn cancellations(shared: Arc<Shared>) {
    let mut cancelled = shared.ledger.cancellations();
    loop {
        match cancelled.recv().await {
            Ok(job) => shared.heart.stop(job, StopReason::Cancelled),
            // The next heartbeat brings what was dropped.
            Err(broadcast::error::RecvError::Lagged(_)) => shared.heart.at_once.notify_one(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Removes what ended attempts left, until dropped.
pub(crate) async fn tidy(shared: Arc<Shared>) {
    loop {
        if let Err(error) = remove_artefacts(&shared).await {
            tracing::debug!(%error, "what ended attempts left could not be looked for");
        }
        remove_scratch(&shared).await;
        tokio::select! {
            // Attempts end in crowds: one round does for all that end at about the same time.
            () = shared.tidy.notified() => tokio::time::sleep(TIDY_PAUSE).await,
            () = tokio::time::sleep(TIDY_EVERY) => {}
        }
    }
}

async fn remove_artefacts(shared: &Shared) -> Result<(), LedgerError> {
    let left = shared
        .ledger
        .orphaned_artefacts(ARTEFACTS_PER_ROUND)
        .await?;
    if left.is_empty() {
        return Ok(());
    }
    let now = shared.ledger.now().await?;
    for record in left {
        let recorded = match RecordedArtefact::from_value(&record.data) {
            Ok(recorded) => recorded,
            Err(error) => {
                tracing::error!(job.id = %record.job, name = record.name, %error, "what an attempt left cannot be read");
                continue;
            }
        };
        let waits_for_its_machine =
            !recorded.is_of_this_machine() && now.since(record.recorded) < FOREIGN_ARTEFACT_AGE;
        if waits_for_its_machine {
            continue;
        }
        match remove_artefact(shared, &record, &recorded).await {
            Ok(()) => {
                tracing::info!(job.id = %record.job, name = record.name, "removed what an ended attempt had left");
                reached(Point::ArtefactRemoved);
                shared
                    .ledger
                    .remove_artefact(record.job, record.token, &record.name)
                    .await?;
            }
            Err(problem) => {
                tracing::warn!(job.id = %record.job, name = record.name, %problem, "what an ended attempt left could not be removed yet");
            }
        }
    }
    Ok(())
}

async fn remove_artefact(
    shared: &Shared,
    record: &ArtefactRecord,
    recorded: &RecordedArtefact,
) -> Result<(), Problem> {
    let job = shared.ledger.job(record.job).await?;
    let server = server_of(shared, record, recorded, &job).await?;
    fettler_jobs::remove_artefact(&recorded.artefact, server.as_ref())
        .await
        .map_err(Problem::from)
}

/// What the arguments of jobs say of servers. Kinds that name none are about their database's own.
#[derive(Deserialize, Default)]
struct ServersInArguments {
    to: Option<DatabaseUrl>,
    password: Option<SecretReference>,
    sandbox: Option<SandboxSpec>,
}

/// The server on which the job's attempts made things, as the job itself would find it.
async fn server_of(
    shared: &Shared,
    record: &ArtefactRecord,
    recorded: &RecordedArtefact,
    job: &JobRecord,
) -> Result<Option<Target>, Problem> {
    let arguments = ServersInArguments::deserialize(&job.arguments).unwrap_or_default();
    // A copy makes things at both of its ends.
    let is_at_source = recorded.artefact.data[fettler_jobs::AT_SOURCE] == true;
    if let Some(url) = arguments.to.filter(|_| !is_at_source) {
        return target(shared, &record.tenant, url, arguments.password.as_ref()).await;
    }
    let database = match record.database {
        Some(id) => match shared.ledger.database(id).await {
            Ok(database) => Some(as_jobs_see_it(database)?),
            Err(LedgerError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        },
        None => None,
    };
    let is_a_proof = job.kind.as_str() == "prove";
    let own = database.as_ref().map(|database| database.sandbox.clone());
    let spec = match (is_a_proof, arguments.sandbox, own) {
        (false, ..) => SandboxSpec::SourceServer,
        (true, Some(asked), _) => asked,
        (true, None, Some(own)) if own != SandboxSpec::Automatic => own,
        (true, None, _) => shared.services.default_sandbox(),
    };
    match (spec, database) {
        (SandboxSpec::Server { url, password }, _) => {
            target(shared, &record.tenant, url, password.as_ref()).await
        }
        (SandboxSpec::SourceServer, Some(database)) => {
            target(
                shared,
                &record.tenant,
                database.url,
                database.password.as_ref(),
            )
            .await
        }
        (SandboxSpec::SourceServer, None) | (SandboxSpec::Automatic, _) => Ok(None),
    }
}

async fn target(
    shared: &Shared,
    tenant: &TenantId,
    url: DatabaseUrl,
    password: Option<&SecretReference>,
) -> Result<Option<Target>, Problem> {
    let password = match password {
        Some(reference) => Some(shared.services.secret(tenant, reference).await?),
        None => None,
    };
    Ok(Some(Target { url, password }))
}

/// Removes the scratch folders of ended attempts. A folder is named `<end of the job's id>-<token>`.
async fn remove_scratch(shared: &Shared) {
    let scratch = shared.services.scratch();
    let folders = match tokio::task::spawn_blocking(move || attempt_folders(&scratch)).await {
        Ok(Ok(folders)) => folders,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return,
        Ok(Err(error)) => {
            tracing::debug!(%error, "the scratch folder could not be read");
            return;
        }
        Err(_) => return,
    };
    for folder in folders {
        if !is_left_over(shared, &folder).await {
            continue;
        }
        let path = folder.path.clone();
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path)).await;
        match removed {
            Ok(Ok(())) => {
                tracing::info!(folder = %folder.path.display(), "removed the scratch folder of an ended attempt");
            }
            Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(folder = %folder.path.display(), %error, "a scratch folder could not be removed");
            }
            _ => {}
        }
    }
}

struct AttemptFolder {
    path: PathBuf,
    job_end: String,
    token: AttemptToken,
    changed: SystemTime,
}

fn attempt_folders(scratch: &Path) -> std::io::Result<Vec<AttemptFolder>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(scratch)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some((job_end, token)) = name.to_str().and_then(|name| name.split_once('-')) else {
            continue;
        };
        let Ok(token) = i64::from_str_radix(token, 16) else {
            continue;
        };
        // One that is gone meanwhile was removed by its job.
        let Ok(changed) = entry.metadata().and_then(|metadata| metadata.modified()) else {
            continue;
        };
        folders.push(AttemptFolder {
            path: entry.path(),
            job_end: job_end.to_owned(),
            token: AttemptToken::from_value(token),
            changed,
        });
    }
    Ok(folders)
}

async fn is_left_over(shared: &Shared, folder: &AttemptFolder) -> bool {
    match shared.ledger.find_job(None, &folder.job_end).await {
        Ok(job) => {
            // A process that was superseded may still write there; what it writes counts for nothing.
            let runs =
                job.state == JobState::Running && job.attempt <= folder.token.attempt_number();
            !runs
        }
        Err(LedgerError::NotFound { .. }) => folder
            .changed
            .elapsed()
            .is_ok_and(|age| age > UNKNOWN_SCRATCH_AGE),
        Err(error) => {
            tracing::debug!(%error, folder = %folder.path.display(), "the job of a scratch folder could not be looked up");
            false
        }
    }
}
