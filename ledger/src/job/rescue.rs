//! Rescue: a loop, not a launch step. Jobs whose lease ran out go back to the queue; queued jobs whose
//! deadline passed expire; what is parked where nobody holds anything is woken.

use std::time::{Duration, Instant};

use fettler_fault_points::{Point, Rule, reached, without};
use fettler_model::{AttemptOutcome, JobId, JobState, Problem, Timestamp};

use super::{
    COMMON, LIVE, Row,
    finish::{Finish, Requeue, finish, pass_turns, release, requeue, wake_first},
    limits,
};
use crate::{
    Ended, Ledger, Rescued, Result,
    row::Fields,
    store::{Transaction, V},
};

/// How many jobs one call takes back or expires.
const PAGE: usize = 100;
/// How often a job may be lost with its worker: not the job's fault, but not forever.
const MAX_LOST: u32 = 100;
/// Leases are looked through at least this often, whatever the workers' own leases say.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// How long idempotency keys are kept (rule 12).
const IDEMPOTENCY_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a worker that vanished stays in the list.
const VANISHED_KEPT: Duration = Duration::from_secs(24 * 3600);

impl Ledger {
    /// Takes back up to a page of jobs whose lease ran out; a full page means that there may be more.
    /// Nothing is taken back within one `lease` of an outage of the ledger, so that workers can renew
    /// first (rule 5).
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn rescue(&self, lease: Duration) -> Result<Vec<Rescued>> {
        const DOING: &str = "taking back lost jobs";
        if without(Rule::Rescue) {
            return Ok(Vec::new());
        }
        let store = &self.inner.store;
        if store.since_outage().is_some_and(|since| since < lease) {
            // Whether it is back is worth knowing.
            store.now().await?;
            return Ok(Vec::new());
        }
        if let Some(sql) = store.dialect.uptime() {
            let row = store.read_one(DOING, format!("{sql} AS up"), &[]).await?;
            let up = row
                .map(|row| Fields::of(&row, DOING).number("up"))
                .transpose()?
                .unwrap_or(0);
            if Duration::from_micros(up.unsigned_abs()) < lease {
                return Ok(Vec::new());
            }
        }
        let now = store.now().await?;
        if !self.sweep_needed(now).await? {
            return Ok(Vec::new());
        }
        let mut transaction = store.begin(DOING).await?;
        let now = transaction.now().await?;
        let dialect = transaction.dialect;
        // By an expression, so that the table is read as it lies: in the order of its key each row is looked up, and each
        // that is dead.
        let sql = format!(
            "SELECT {COMMON}, {LIVE} FROM job WHERE state = 1 AND lease_until < $1 ORDER BY id || '' LIMIT {PAGE} {}",
            dialect.skip_locked()
        );
        let rows = transaction.rows(sql, &[V::N(now.micros())]).await?;
        let rows = rows
            .iter()
            .map(|row| Row::read(row, DOING))
            .collect::<Result<Vec<_>>>()?;
        if rows.len() < PAGE {
            // Before any limit is locked, since a claim locks its worker's row before limits. A worker whose jobs are
            // taken back only now, or that claimed after it was last heard of, is for the next call.
            transaction
                .execute(
                    "UPDATE worker SET swept = 1 WHERE alive_until < $1 AND swept = 0
                     AND NOT EXISTS (SELECT 1 FROM job j WHERE j.state = 1 AND j.worker = worker.id)",
                    &[V::N(now.micros())],
                )
                .await?;
        }
        let rescued = take_back(&mut transaction, now, &rows).await?;
        if rows.is_empty() {
            // Alone in its transaction: it locks all limits, in the order of their names.
            limits::recount(&mut transaction).await?;
        } else {
            reached(Point::RescueTaking);
        }
        transaction.commit().await?;
        if !rows.is_empty() {
            reached(Point::RescueTaken);
        }
        if rows.len() < PAGE {
            *self.inner.last_sweep() = Some(Instant::now());
        }
        if !rescued.is_empty() {
            self.inner.shared.wake.wake();
        }
        Ok(rescued)
    }

    /// Leases are not indexed (rule 9), so that all live rows are looked through to find those that ran
    /// out: when a worker has vanished, and now and then.
    async fn sweep_needed(&self, now: Timestamp) -> Result<bool> {
        let late = self
            .inner
            .last_sweep()
            .is_none_or(|at: Instant| at.elapsed() >= SWEEP_EVERY);
        if late {
            return Ok(true);
        }
        let vanished = self
            .inner
            .store
            .read_one(
                "looking for vanished workers",
                "SELECT id FROM worker WHERE alive_until < $1 AND swept = 0 LIMIT 1",
                &[V::N(now.micros())],
            )
            .await?;
        Ok(vanished.is_some())
    }

    /// Expires up to a page of queued jobs whose deadline has passed, and is the net below rule 4: what
    /// is parked where nobody holds anything is tried again. Drops what is kept for a time only.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn expire(&self) -> Result<Vec<JobId>> {
        const DOING: &str = "expiring jobs";
        let mut transaction = self.inner.store.begin(DOING).await?;
        let now = transaction.now().await?;
        let dialect = transaction.dialect;
        // By an expression, so that deadlines are found by their own index and not in the order of the key.
        let sql = format!(
            "SELECT {COMMON}, {LIVE} FROM job WHERE deadline <= $1 AND state = 0 ORDER BY id || '' LIMIT {PAGE} {}",
            dialect.skip_locked()
        );
        let rows = transaction.rows(sql, &[V::N(now.micros())]).await?;
        let rows = rows
            .iter()
            .map(|row| Row::read(row, DOING))
            .collect::<Result<Vec<_>>>()?;
        let ends: Vec<Finish<'_>> = rows
            .iter()
            .map(|row| Finish::unrun(row, JobState::Expired))
            .collect();
        finish(&mut transaction, now, &ends).await?;
        pass_turns(&mut transaction, &rows).await?;
        // A holder that does not run holds nothing.
        transaction
            .execute(
                "UPDATE resource SET job = NULL, kind = NULL WHERE job IS NOT NULL
                 AND NOT EXISTS (SELECT 1 FROM job j WHERE j.id = resource.job AND j.state = 1)",
                &[],
            )
            .await?;
        let forgotten = transaction
            .rows(
                "SELECT name FROM resource r WHERE r.job IS NULL
                 AND EXISTS (SELECT 1 FROM job j WHERE j.lane = 2 AND j.parked_at = r.name) ORDER BY name",
                &[],
            )
            .await?;
        let mut woken = false;
        for row in &forgotten {
            let name = Fields::of(row, DOING).text("name")?;
            woken |= wake_first(&mut transaction, &name).await?;
        }
        woken |= limits::wake_forgotten(&mut transaction).await?;
        transaction
            .execute(
                "DELETE FROM idempotency WHERE created < $1",
                &[V::N(now.minus(IDEMPOTENCY_KEPT).micros())],
            )
            .await?;
        transaction
            .execute(
                "DELETE FROM worker WHERE alive_until < $1 AND swept = 1",
                &[V::N(now.minus(VANISHED_KEPT).micros())],
            )
            .await?;
        transaction.commit().await?;
        if woken || !rows.is_empty() {
            self.inner.shared.wake.wake();
        }
        Ok(rows.iter().map(Row::id).collect())
    }
}

async fn take_back(
    transaction: &mut Transaction,
    now: Timestamp,
    rows: &[Row],
) -> Result<Vec<Rescued>> {
    let mut ends = Vec::new();
    let mut rescued = Vec::new();
    for row in rows {
        let record = &row.record;
        let lost = record.lost.saturating_add(1);
        let problem = Problem::transient(
            "job.lost",
            format!(
                "the worker {} vanished: the attempt's lease ran out",
                record.worker.as_deref().unwrap_or("(unknown)")
            ),
            "",
        );
        let state = if record.cancel_requested.is_some() {
            Some(JobState::Cancelled)
        } else if record.deadline.is_some_and(|at| at <= now) {
            Some(JobState::Expired)
        } else if lost >= MAX_LOST {
            Some(JobState::Dead)
        } else {
            None
        };
        let ended = if let Some(state) = state {
            ends.push(Finish {
                row,
                state,
                outcome: Some(AttemptOutcome::Lost),
                result: None,
                problem: Some(problem),
                tries: record.tries,
                lost,
            });
            Ended::Final(state)
        } else {
            let back = Requeue {
                row,
                outcome: AttemptOutcome::Lost,
                problem: Some(problem),
                due: None,
                tries: record.tries,
                lost,
                died: row.died,
                isolated: true,
            };
            requeue(transaction, now, &back).await?;
            Ended::Queued { not_before: None }
        };
        rescued.push(Rescued {
            job: row.id(),
            kind: record.kind.clone(),
            tenant: record.tenant.clone(),
            token: row.token,
            worker: record.worker.clone(),
            ended,
        });
    }
    finish(transaction, now, &ends).await?;
    release(transaction, rows.iter().flat_map(Row::held)).await?;
    Ok(rescued)
}
