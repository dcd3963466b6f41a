//! What people do to jobs: cancel and repeat.

use fettler_model::{JobId, JobRequest, JobState};

use super::{
    COMMON, LIVE, Row,
    finish::{Finish, finish, pass_turn},
};
use crate::{
    CancelOutcome, Idempotency, Ledger, LedgerError, Result, Submitted, codes, row::Fields,
    store::V,
};

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
            pass_turn(&mut transaction, &row).await?;
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
        let request = JobRequest {
            tenant: old.tenant,
            kind: old.kind,
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
            retry_of: Some(job),
            tags: old.tags,
        };
        self.submit(request, idempotency).await
    }
}

pub(super) fn not_found(name: &str) -> LedgerError {
    LedgerError::NotFound {
        what: "job",
        name: name.to_owned(),
    }
}
