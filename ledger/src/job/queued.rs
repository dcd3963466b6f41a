//! Claimable jobs as a queue outside the ledger has to know them: those that a commit named, and all of
//! them in pages, for a queue that lost its memory (rule 15).

use fettler_model::{AttemptToken, JobId, Priority, Timestamp};
use sqlx::any::AnyRow;

use super::{CLAIMABLE, id_list};
use crate::{Ledger, QueuedJob, QueuedLine, Readied, Result, codes, row::Fields, store::V};

const DOING: &str = "reading queued jobs";
/// The largest page.
const MAX_PAGE: usize = 1000;
/// The columns of [`QueuedJob`].
pub(super) const COLUMNS: &str =
    "id, tenant, kind, kind_version, line, slot, priority, rank, token";

impl Ledger {
    /// The lines of claimable jobs: each slot class, kind, line (what is asked of a worker) and tenant is an order of its own.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn queued_lines(&self) -> Result<Vec<QueuedLine>> {
        let mut lines = Vec::new();
        let (mut slot, mut kind) = (i64::MIN, String::new());
        while let Some((next_slot, next_kind)) = self.next_kind(slot, &kind).await? {
            (slot, kind) = (next_slot, next_kind);
            let (mut line, mut tenant) = (String::new(), String::new());
            while let Some(next) = self.next_line(slot, &kind, &line, &tenant).await? {
                (line, tenant) = (next.line.clone(), next.tenant.to_string());
                lines.push(next);
            }
        }
        Ok(lines)
    }

    /// The first slot class and kind behind these of which there are jobs. This and [`Self::next_line`] step over what lies
    /// between in the index `job_turns`: what they cost depends on how many lines there are, not on how many jobs wait in them.
    async fn next_kind(&self, slot: i64, kind: &str) -> Result<Option<(i64, String)>> {
        let rows = self
            .inner
            .store
            .read(
                DOING,
                "SELECT slot, kind FROM job WHERE (slot, kind) > ($1, $2) ORDER BY slot, kind LIMIT 1",
                &[V::N(slot), V::T(kind)],
            )
            .await?;
        rows.first()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok((fields.number("slot")?, fields.text("kind")?))
            })
            .transpose()
    }

    /// The first line of this slot class and kind behind this line and tenant in which a job can be claimed.
    async fn next_line(
        &self,
        slot: i64,
        kind: &str,
        line: &str,
        tenant: &str,
    ) -> Result<Option<QueuedLine>> {
        let rows = self
            .inner
            .store
            .read(
                DOING,
                "SELECT slot, kind, line, tenant FROM job
                 WHERE slot = $1 AND kind = $2 AND lane = 0 AND (line, tenant) > ($3, $4) AND state = 0
                 ORDER BY line, tenant LIMIT 1",
                &[V::N(slot), V::T(kind), V::T(line), V::T(tenant)],
            )
            .await?;
        rows.first().map(queued_line).transpose()
    }

    /// A page of the claimable jobs of one line, in the order of claims, after the job of this rank and id.
    /// Each page is a range of the index `job_turns`.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn queued_page(
        &self,
        line: &QueuedLine,
        after: Option<(Timestamp, JobId)>,
        limit: usize,
    ) -> Result<Vec<QueuedJob>> {
        let (rank, id) = after.map_or((i64::MIN, String::new()), |(rank, id)| {
            (rank.micros(), id.to_string())
        });
        let sql = format!(
            "SELECT {COLUMNS} FROM job
             WHERE slot = $1 AND kind = $2 AND lane = 0 AND line = $6 AND tenant = $3 AND (rank, id || '') > ($4, $5) AND state = 0
             ORDER BY rank, id || '' LIMIT {}",
            limit.min(MAX_PAGE)
        );
        let values = [
            V::N(codes::slot(line.slot)),
            V::T(line.kind.as_str()),
            V::T(line.tenant.as_str()),
            V::N(rank),
            V::S(id),
            V::T(&line.line),
        ];
        let rows = self.inner.store.read(DOING, sql, &values).await?;
        rows.iter().map(queued_job).collect()
    }

    /// Those of these jobs that are claimable.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn queued_among(&self, ids: &[JobId]) -> Result<Vec<QueuedJob>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT {COLUMNS} FROM job WHERE id {} AND {CLAIMABLE}",
            self.inner.store.dialect.among(1)
        );
        let values = [V::S(id_list(ids.iter().copied()))];
        let rows = self.inner.store.read(DOING, sql, &values).await?;
        rows.iter().map(queued_job).collect()
    }

    /// What a queue has to know of jobs that commits made claimable. Those that are still to be read are left out where
    /// they are not claimable any more.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn queued(
        &self,
        readied: impl IntoIterator<Item = Readied>,
    ) -> Result<Vec<QueuedJob>> {
        let readied = readied.into_iter();
        let (mut known, mut named) = (Vec::with_capacity(readied.size_hint().0), Vec::new());
        for job in readied {
            match job {
                Readied::Known(job) => known.push(*job),
                Readied::Named(id) => named.push(id),
            }
        }
        known.extend(self.queued_among(&named).await?);
        Ok(known)
    }
}

fn queued_line(row: &AnyRow) -> Result<QueuedLine> {
    let fields = Fields::of(row, DOING);
    Ok(QueuedLine {
        slot: fields.code("slot", codes::slot_of)?,
        kind: fields.parsed("kind")?,
        line: fields.text("line")?,
        tenant: fields.parsed("tenant")?,
    })
}

/// Reads [`COLUMNS`].
pub(super) fn queued_job(row: &AnyRow) -> Result<QueuedJob> {
    let fields = Fields::of(row, DOING);
    Ok(QueuedJob {
        id: fields.parsed("id")?,
        attempt: AttemptToken::from_value(fields.number("token")?).attempt_number(),
        tenant: fields.parsed("tenant")?,
        priority: Priority::from_level(fields.number("priority")?),
        kind: fields.parsed("kind")?,
        kind_version: fields.small("kind_version")?,
        line: fields.text("line")?,
        slot: fields.code("slot", codes::slot_of)?,
        rank: fields.time("rank")?,
    })
}
