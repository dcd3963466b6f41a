//! What people do to jobs: cancel, repeat, give another priority; singly and by filter.

use std::time::Instant;

use fettler_model::{ErrorClass, JobId, JobRequest, JobState, Priority, Problem};

use super::{
    COMMON, ENDED, LIVE, Row,
    finish::{Finish, finish, pass_turns},
    id_list,
    read::conditions,
    record,
};
use crate::{
    BulkCancel, BulkReplay, CancelOutcome, Idempotency, JobFilter, JobRecord, Ledger, LedgerError,
    Result, Submitted, codes, row::Fields, store::V,
};

/// How many jobs one transaction cancels, and one page replays.
const BULK: usize = 500;

impl Ledger {
    /// Cancels a queued job at once, and asks the attempt of a running one to stop. The request
    /// outlives a crash: whoever takes the job up then ends it as cancelled (rule 1).
    ///
    /// # Errors
    ///
    /// When there is no such job.
    pub async fn request_cancel(&self, job: JobId) -> Result<CancelOutcome> {
        const DOING: &str = "cancelling a job";
        let mut transaction = self.inner.store.begin(DOING).await?;
        let now = transaction.now().await?;
        let id = job.to_string();
        let sql = format!(
            "SELECT {COMMON}, {LIVE} FROM job WHERE id = $1 {}",
            transaction.dialect.for_update()
        );
        let Some(row) = transaction.row(sql, &[V::T(&id)]).await? else {
            let row = transaction
                .row("SELECT state FROM history WHERE id = $1", &[V::T(&id)])
                .await?
                .ok_or_else(|| not_found(&id))?;
            let state = Fields::of(&row, DOING).code("state", codes::state_of)?;
            return Ok(CancelOutcome::AlreadyEnded(state));
        };
        let row = Row::read(&row, DOING)?;
        let outcome = if row.record.state == JobState::Running {
            transaction
                .execute(
                    "UPDATE job SET cancel = $2 WHERE id = $1 AND cancel IS NULL",
                    &[V::T(&id), V::N(now.micros())],
                )
                .await?;
            CancelOutcome::Requested
        } else {
            transaction
                .execute(
                    "UPDATE job SET cancel = $2 WHERE id = $1",
                    &[V::T(&id), V::N(now.micros())],
                )
                .await?;
            finish(
                &mut transaction,
                now,
                &[Finish::unrun(&row, JobState::Cancelled)],
            )
            .await?;
            pass_turns(&mut transaction, std::slice::from_ref(&row)).await?;
            CancelOutcome::Cancelled
        };
        transaction.commit().await?;
        self.inner.shared.wake.cancelled(job);
        Ok(outcome)
    }

    /// Submits an ended job again, as a new job that names the old one.
    ///
    /// # Errors
    ///
    /// When there is no such job, or when it has not ended.
    pub async fn retry(&self, job: JobId) -> Result<Submitted> {
        self.retry_once(job, None).await
    }

    /// The same under an idempotency key (rule 12): asked for twice, it is done once.
    ///
    /// # Errors
    ///
    /// As [`Ledger::retry`] and [`Ledger::submit`].
    pub async fn retry_once(
        &self,
        job: JobId,
        idempotency: Option<Idempotency>,
    ) -> Result<Submitted> {
        let old = self.job(job).await?;
        if !old.state.is_final() {
            return Err(LedgerError::Conflict {
                what: format!(
                    "job {} is {}: only an ended job is repeated",
                    job.short(),
                    old.state
                ),
                remedy: "wait for its end, or cancel it first".to_owned(),
            });
        }
        self.submit(again(old), idempotency).await
    }

    /// Gives a queued job another priority, up to its tenant's ceiling; its age stays.
    ///
    /// # Errors
    ///
    /// When there is no such job, or when it does not wait any more.
    pub async fn set_priority(&self, job: JobId, priority: Priority) -> Result<JobRecord> {
        const DOING: &str = "changing a job's priority";
        let id = job.to_string();
        let mut transaction = self.inner.store.begin(DOING).await?;
        let ageing =
            i64::try_from(self.inner.shared.options.ageing.as_micros()).unwrap_or(i64::MAX / 8);
        let ceiling = transaction
            .row(
                "SELECT t.ceiling AS ceiling FROM job j JOIN tenant t ON t.id = j.tenant WHERE j.id = $1",
                &[V::T(&id)],
            )
            .await?
            .map(|row| Fields::of(&row, DOING).number("ceiling"))
            .transpose()?;
        let level = ceiling.map_or(priority.level(), |most| priority.level().min(most));
        let row = transaction
            .row(
                "UPDATE job SET rank = rank + $2 * (priority - $3), priority = $3
                 WHERE id = $1 AND state = 0 RETURNING lane",
                &[V::T(&id), V::N(ageing), V::N(level)],
            )
            .await?;
        let Some(row) = row else {
            let record = self.job(job).await?;
            return Err(LedgerError::Conflict {
                what: format!("job {} is {}", job.short(), record.state),
                remedy: "only a job that waits can be given another priority".to_owned(),
            });
        };
        if Fields::of(&row, DOING).number("lane")? == codes::LANE_OPEN {
            // A queue outside the ledger has it in its old place.
            transaction.ready.push(job);
        }
        transaction.commit().await?;
        self.inner.shared.wake.wake();
        self.job(job).await
    }

    /// Cancels all jobs of a filter that were submitted up to now and have not ended, a page a transaction:
    /// those that wait end at once, those that run are asked to stop. A dry run only counts them. Very many are done in
    /// several requests: each begins after the job that the one before gave as `next`.
    ///
    /// # Errors
    ///
    /// When the ledger is away: then some may be cancelled, and saying it again goes on.
    pub async fn cancel_matching(
        &self,
        filter: &JobFilter,
        after: Option<JobId>,
        dry_run: bool,
    ) -> Result<BulkCancel> {
        const DOING: &str = "cancelling jobs";
        let begun = Instant::now();
        let until = self.now().await?;
        let (mut conditions, mut values) = conditions(filter)?;
        values.push(V::N(until.micros()));
        conditions.push(format!("submitted <= ${}", values.len()));
        let mut done = BulkCancel::default();
        if dry_run {
            let sql = format!(
                "SELECT state, COUNT(*) AS jobs FROM job WHERE {} GROUP BY state",
                conditions.join(" AND ")
            );
            for row in &self.inner.store.read(DOING, sql, &values).await? {
                let fields = Fields::of(row, DOING);
                let jobs = fields.number("jobs")?.unsigned_abs();
                match fields.code("state", codes::state_of)? {
                    JobState::Running => done.asked = jobs,
                    _ => done.cancelled = jobs,
                }
            }
            return Ok(done);
        }
        let mut after = after.map_or_else(String::new, |job| job.to_string());
        loop {
            let mut transaction = self.inner.store.begin(DOING).await?;
            let now = transaction.now().await?;
            let mut values = values.clone();
            values.push(V::S(after.clone()));
            let sql = format!(
                "SELECT {COMMON}, {LIVE} FROM job WHERE {} AND id > ${} ORDER BY id LIMIT {BULK} {}",
                conditions.join(" AND "),
                values.len(),
                transaction.dialect.for_update()
            );
            let rows = transaction
                .rows(sql, &values)
                .await?
                .iter()
                .map(|row| Row::read(row, DOING))
                .collect::<Result<Vec<_>>>()?;
            let Some(last) = rows.last().map(Row::id) else {
                break;
            };
            after = last.to_string();
            let is_last = rows.len() < BULK;
            let (running, waiting): (Vec<Row>, Vec<Row>) = rows
                .into_iter()
                .partition(|row| row.record.state == JobState::Running);
            let among = transaction.dialect.among(1);
            transaction
                .execute(
                    format!("UPDATE job SET cancel = $2 WHERE id {among} AND cancel IS NULL"),
                    &[
                        V::S(id_list(running.iter().chain(&waiting).map(Row::id))),
                        V::N(now.micros()),
                    ],
                )
                .await?;
            let ends: Vec<Finish<'_>> = waiting
                .iter()
                .map(|row| Finish::unrun(row, JobState::Cancelled))
                .collect();
            finish(&mut transaction, now, &ends).await?;
            pass_turns(&mut transaction, &waiting).await?;
            transaction.commit().await?;
            done.cancelled += waiting.len() as u64;
            done.asked += running.len() as u64;
            for row in &running {
                self.inner.shared.wake.cancelled(row.id());
            }
            self.inner.shared.wake.wake();
            if is_last {
                break;
            }
            if begun.elapsed() > self.inner.shared.options.bulk {
                done.next = Some(last);
                break;
            }
        }
        Ok(done)
    }

    /// Submits all ended jobs of a filter again that did not succeed (the dead ones, where it names no state), each as
    /// a new job that names the old one. A job that was replayed like this within seven days is not replayed
    /// again. A dry run only counts them. Very many take several requests, as in [`Ledger::cancel_matching`].
    ///
    /// # Errors
    ///
    /// When the ledger is away: then some may be replayed, and saying it again goes on.
    pub async fn replay_matching(
        &self,
        filter: &JobFilter,
        after: Option<JobId>,
        dry_run: bool,
    ) -> Result<BulkReplay> {
        const DOING: &str = "replaying jobs";
        let begun = Instant::now();
        let mut filter = filter.clone();
        filter
            .states
            .retain(|state| state.is_final() && *state != JobState::Succeeded);
        if filter.states.is_empty() {
            filter.states.push(JobState::Dead);
        }
        let until = self.now().await?;
        let (mut conditions, mut values) = conditions(&filter)?;
        values.push(V::N(until.micros()));
        conditions.push(format!("ended <= ${}", values.len()));
        let mut done = BulkReplay::default();
        let mut after = after.map_or_else(String::new, |job| job.to_string());
        loop {
            let mut values = values.clone();
            values.push(V::S(after.clone()));
            let sql = format!(
                "SELECT {COMMON}, {ENDED} FROM history WHERE {} AND id > ${} ORDER BY id LIMIT {BULK}",
                conditions.join(" AND "),
                values.len(),
            );
            let page = self
                .inner
                .store
                .read(DOING, sql, &values)
                .await?
                .iter()
                .map(|row| record(row, DOING))
                .collect::<Result<Vec<_>>>()?;
            let Some(last) = page.last().map(|old| old.id) else {
                break;
            };
            after = last.to_string();
            let is_last = page.len() < BULK;
            if dry_run {
                done.submitted += page.len() as u64;
            } else {
                self.replay(page, &mut done).await?;
            }
            if is_last {
                break;
            }
            if begun.elapsed() > self.inner.shared.options.bulk {
                done.next = Some(last);
                break;
            }
        }
        Ok(done)
    }

    async fn replay(&self, page: Vec<JobRecord>, done: &mut BulkReplay) -> Result<()> {
        let ids: Vec<JobId> = page.iter().map(|old| old.id).collect();
        let requests = page
            .into_iter()
            .map(|old| {
                let mut request_hash = [0; 32];
                request_hash[..16].copy_from_slice(old.id.uuid().as_bytes());
                let once = Idempotency {
                    key: format!("replay/{}", old.id),
                    request_hash,
                };
                (again(old), Some(once))
            })
            .collect();
        for (id, submitted) in ids.into_iter().zip(self.submit_batch(requests).await) {
            match submitted {
                Ok(Submitted { existing: true, .. }) => done.already += 1,
                Ok(_) => done.submitted += 1,
                Err(error) if error.class() == ErrorClass::Transient => return Err(error),
                Err(error) => {
                    done.refused += 1;
                    done.first_refusal
                        .get_or_insert_with(|| (id, Problem::from(error)));
                }
            }
        }
        Ok(())
    }
}

/// The request for the same job once more.
fn again(old: JobRecord) -> JobRequest {
    JobRequest {
        tenant: old.tenant,
        kind: old.kind,
        kind_version: old.kind_version,
        database: old.database,
        arguments: old.arguments,
        exclusion: old.exclusion,
        slot: old.slot,
        priority: old.priority,
        not_before: None,
        // A deadline that has passed would end the new job at once.
        deadline: None,
        max_tries: old.max_tries,
        unique_key: old.unique_key,
        retry_of: Some(old.id),
        tags: old.tags,
        terms: old.terms,
    }
}

pub(super) fn not_found(name: &str) -> LedgerError {
    LedgerError::NotFound {
        what: "job",
        name: name.to_owned(),
    }
}
