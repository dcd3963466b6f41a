//! The watch for silence (P11): every scheduler looks, also those that do not lead, for what should have been heard
//! of and was not: a leader, the ticks of a policy, the proof of a backup, a worker. Each silence is raised once in
//! the ledger, whoever sees it first, as an event that anybody can follow, and clears itself when what was missed
//! is heard of again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fettler_ledger::{BackupFilter, LastProof, Result, Silence, SilenceKind, WorkerRecord};
use fettler_model::{BackupState, ProveEvery, TenantId, Timestamp};
use serde_json::json;

use crate::{LEAD, Shared, tell_once, tick::overdue};

/// Nobody may lead for this many times the lead's own duration.
const LEADERLESS_LEADS: u32 = 3;
/// Proofs are looked at less often: they grow old by the day.
const PROOFS_EVERY: Duration = Duration::from_secs(60);
/// A day, for the ages of proofs.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How many backups of a database are looked at for the first one that was not proven.
const MOST_BACKUPS: usize = 1000;

#[derive(Default)]
struct Heard {
    leaderless_since: Option<Instant>,
    proofs_looked: Option<Instant>,
}

/// Looks for silence, until dropped.
pub(crate) async fn silence(shared: Arc<Shared>) {
    let mut heard = Heard::default();
    let mut failing = false;
    loop {
        match look(&shared, &mut heard).await {
            Ok(()) => failing = false,
            Err(error) => tell_once(&mut failing, "watching for silence", &error),
        }
        tokio::time::sleep(shared.options.silence_every).await;
    }
}

async fn look(shared: &Shared, heard: &mut Heard) -> Result<()> {
    let now = shared.ledger.now().await?;
    if let Some(silent) = leader(shared, heard, now).await? {
        tell(shared, SilenceKind::Leader, &silent).await?;
    }
    tell(shared, SilenceKind::Policy, &policies(shared).await?).await?;
    tell(shared, SilenceKind::Worker, &workers(shared, now).await?).await?;
    if heard
        .proofs_looked
        .is_none_or(|looked| looked.elapsed() >= PROOFS_EVERY.min(shared.options.silent_after))
    {
        tell(shared, SilenceKind::Proof, &proofs(shared, now).await?).await?;
        heard.proofs_looked = Some(Instant::now());
    }
    Ok(())
}

/// Raises what is silent now and was not, and clears what is heard of again.
async fn tell(shared: &Shared, kind: SilenceKind, silent: &[Silence]) -> Result<()> {
    let change = shared.ledger.set_silences(kind, silent).await?;
    for silence in change.raised {
        tracing::error!(
            kind = kind.as_str(),
            tenant = %silence.tenant,
            what = silence.name,
            since = %silence.since,
            "what should have been heard of was not"
        );
    }
    for silence in change.cleared {
        tracing::info!(
            kind = kind.as_str(),
            tenant = %silence.tenant,
            what = silence.name,
            "it is heard of again"
        );
    }
    Ok(())
}

/// Whether somebody leads; none while that may still be a handover.
async fn leader(
    shared: &Shared,
    heard: &mut Heard,
    now: Timestamp,
) -> Result<Option<Vec<Silence>>> {
    if shared.ledger.leader(LEAD).await?.is_some() {
        heard.leaderless_since = None;
        return Ok(Some(Vec::new()));
    }
    let since = *heard.leaderless_since.get_or_insert_with(Instant::now);
    if since.elapsed() <= shared.options.lead * LEADERLESS_LEADS {
        return Ok(None);
    }
    Ok(Some(vec![Silence {
        name: LEAD.to_owned(),
        tenant: TenantId::default_tenant(),
        since: now.minus(since.elapsed()),
        data: json!({"why": "no scheduler leads: no policy becomes a job"}),
    }]))
}

/// The policies that are overdue.
async fn policies(shared: &Shared) -> Result<Vec<Silence>> {
    let late = overdue(shared, shared.options.silent_after).await?;
    Ok(late
        .into_iter()
        .filter_map(|policy| {
            Some(Silence {
                name: policy.id.to_string(),
                since: policy.next_due?,
                data: json!({"policy": policy.name, "due": policy.next_due}),
                tenant: policy.tenant,
            })
        })
        .collect())
}

/// The workers that vanished and that no other one stands in for.
async fn workers(shared: &Shared, now: Timestamp) -> Result<Vec<Silence>> {
    let workers = shared.ledger.workers().await?;
    Ok(workers
        .iter()
        .filter(|worker| worker.alive_until < now && !is_replaced(worker, &workers, now))
        .map(|worker| Silence {
            name: worker.id.clone(),
            tenant: TenantId::default_tenant(),
            since: worker.alive_until,
            data: json!({"worker": worker.id, "last_seen": worker.last_seen}),
        })
        .collect())
}

/// A worker that starts again has another id: one that came after it and can all that it could stands in for it.
fn is_replaced(gone: &WorkerRecord, workers: &[WorkerRecord], now: Timestamp) -> bool {
    workers.iter().any(|other| {
        other.alive_until >= now
            && other.first_seen >= gone.last_seen
            && gone.kinds.iter().all(|kind| other.kinds.contains(kind))
            && gone
                .skills
                .labels
                .iter()
                .all(|(label, value)| other.skills.labels.get(label) == Some(value))
    })
}

/// The databases whose backups should have been proven and were not.
async fn proofs(shared: &Shared, now: Timestamp) -> Result<Vec<Silence>> {
    let mut silent = Vec::new();
    for last in shared.ledger.last_proofs().await? {
        // Nothing is asked of a proof that is younger than a day.
        if last.proven.is_some_and(|proven| now.since(proven) < DAY) {
            continue;
        }
        let Some(every) = proven_every(shared, &last).await? else {
            continue;
        };
        let allowed = match every {
            ProveEvery::Never => continue,
            ProveEvery::Backup | ProveEvery::Daily => DAY,
            ProveEvery::Weekly => 7 * DAY,
            ProveEvery::Monthly => 31 * DAY,
        } + shared.options.proof_late;
        if let Some(since) = first_unproven(shared, &last).await?
            && now.since(since) > allowed
        {
            silent.push(Silence {
                name: last.database.to_string(),
                tenant: last.tenant.clone(),
                since,
                data: json!({"database": last.database, "last_proven": last.proven, "unproven_since": since}),
            });
        }
    }
    Ok(silent)
}

/// How often a database's policies want a proof: the most often that one of them says.
async fn proven_every(shared: &Shared, last: &LastProof) -> Result<Option<ProveEvery>> {
    let rank = |every: &ProveEvery| match every {
        ProveEvery::Backup => 0,
        ProveEvery::Daily => 1,
        ProveEvery::Weekly => 2,
        ProveEvery::Monthly => 3,
        ProveEvery::Never => 4,
    };
    Ok(shared
        .ledger
        .policies_of(last.database)
        .await?
        .into_iter()
        .filter(|policy| policy.spec.kind.as_str() == "backup" && !policy.spec.paused)
        .map(|policy| policy.spec.prove)
        .min_by_key(rank))
}

/// When the oldest backup was complete that was not proven and has no newer proof behind it.
async fn first_unproven(shared: &Shared, last: &LastProof) -> Result<Option<Timestamp>> {
    let newest_first = shared
        .ledger
        .backups(&BackupFilter {
            tenant: Some(last.tenant.clone()),
            database: Some(last.database),
            states: vec![BackupState::Complete],
            limit: MOST_BACKUPS,
            ..BackupFilter::default()
        })
        .await?;
    Ok(newest_first
        .into_iter()
        .map(|backup| backup.facts.finished)
        .take_while(|finished| last.proven.is_none_or(|proven| *finished > proven))
        .last())
}
