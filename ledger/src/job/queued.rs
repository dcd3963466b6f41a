//! Claimable jobs as a queue outside the ledger has to know them: those that a commit named, and all of
//! them in pages, for a queue that lost its memory (rule 15).

use fettler_model::{AttemptToken, JobId, JobKindName, Priority, SlotClass, Timestamp};
use sqlx::any::AnyRow;

use super::id_list;
use crate::{Ledger, QueuedJob, Result, codes, row::Fields, store::V};

const DOING: &str = "reading queued jobs";
/// The largest page.
const MAX_PAGE: usize = 1000;
/// The columns of [`QueuedJob`].
const COLUMNS: &str = "id, tenant, kind, kind_version, slot, priority, rank, token";

impl Ledger {
    /// The slot classes and kinds of which anything is claimable: each is an order of its own.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn queued_kinds(&self) -> Result<Vec<(SlotClass, JobKindName)>> {
        let rows = self
            .inner
            .store
            .read(
                DOING,
                "SELECT DISTINCT slot, kind FROM job WHERE lane = 0 AND state = 0 ORDER BY slot, kind",
                &[],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok((fields.code("slot", codes::slot_of)?, fields.parsed("kind")?))
            })
            .collect()
    }

    /// A page of the claimable jobs of one slot class and kind, in the order of claims, after the job of this
    /// rank and id. Each page is a range of the index `job_order`.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn queued_page(
        &self,
        slot: SlotClass,
        kind: &JobKindName,
        after: Option<(Timestamp, JobId)>,
        limit: usize,
    ) -> Result<Vec<QueuedJob>> {
        let (rank, id) = after.map_or((i64::MIN, String::new()), |(rank, id)| {
            (rank.micros(), id.to_string())
        });
        let sql = format!(
            "SELECT {COLUMNS} FROM job WHERE slot = $1 AND kind = $2 AND lane = 0 AND (rank, id) > ($3, $4) AND state = 0
             ORDER BY rank, id LIMIT {}",
            limit.min(MAX_PAGE)
        );
        let values = [
            V::N(codes::slot(slot)),
            V::T(kind.as_str()),
            V::N(rank),
            V::S(id),
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
            "SELECT {COLUMNS} FROM job WHERE id {} AND lane = 0 AND state = 0",
            self.inner.store.dialect.among(1)
        );
        let values = [V::S(id_list(ids.iter().copied()))];
        let rows = self.inner.store.read(DOING, sql, &values).await?;
        rows.iter().map(queued_job).collect()
    }
}

fn queued_job(row: &AnyRow) -> Result<QueuedJob> {
    let fields = Fields::of(row, DOING);
    Ok(QueuedJob {
        id: fields.parsed("id")?,
        attempt: AttemptToken::from_value(fields.number("token")?).attempt_number(),
        tenant: fields.parsed("tenant")?,
        priority: Priority::from_level(fields.number("priority")?),
        kind: fields.parsed("kind")?,
        kind_version: fields.small("kind_version")?,
        slot: fields.code("slot", codes::slot_of)?,
        rank: fields.time("rank")?,
    })
}
