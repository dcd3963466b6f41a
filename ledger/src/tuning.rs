//! What tuning has seen of databases and done to them: samples of counters over a time, and actions with their way back.

use std::time::Duration;

use fettler_model::{DatabaseId, TenantId, Timestamp, TuningRecord};
use serde_json::{Value, json};

use crate::{
    Fencing, Ledger, Result,
    job::{event, fence},
    row::{Fields, json_text},
    store::V,
};

const READING: &str = "reading what tuning knows";
/// Samples of this age and younger are all kept that are an hour apart; older ones a day apart.
const CLOSE: Duration = Duration::from_secs(2 * 86_400);
/// How long samples are kept: more than the longest time between two uses that an index is allowed, a quarter.
const SAMPLES_KEPT: Duration = Duration::from_secs(100 * 86_400);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

impl Ledger {
    /// Keeps what was seen of a database's load, and lets go of older samples: in the last two days one an hour stays, before
    /// that one a day, a hundred days long.
    ///
    /// # Errors
    ///
    /// When the attempt that looked was superseded.
    pub async fn keep_tuning_sample(
        &self,
        tenant: &TenantId,
        database: DatabaseId,
        data: &Value,
        fencing: Option<Fencing>,
    ) -> Result<()> {
        let mut transaction = self.inner.store.begin("keeping a sample").await?;
        if let Some(fencing) = fencing {
            fence(&mut transaction, fencing).await?;
        }
        let now = transaction.now().await?;
        let id = database.to_string();
        let rows = transaction
            .rows(
                "SELECT at FROM tuning_sample WHERE database_id = $1 ORDER BY at",
                &[V::T(&id)],
            )
            .await?;
        let times = rows
            .iter()
            .map(|row| Fields::of(row, READING).time("at"))
            .collect::<Result<Vec<_>>>()?;
        for gone in superfluous(&times, now) {
            transaction
                .execute(
                    "DELETE FROM tuning_sample WHERE database_id = $1 AND at = $2",
                    &[V::T(&id), V::N(gone.micros())],
                )
                .await?;
        }
        transaction
            .execute(
                "INSERT INTO tuning_sample (database_id, at, tenant, data) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (database_id, at) DO UPDATE SET data = excluded.data",
                &[
                    V::T(&id),
                    V::N(now.micros()),
                    V::T(tenant.as_str()),
                    V::S(json_text(data)?),
                ],
            )
            .await?;
        transaction.commit().await
    }

    /// The samples of a database, oldest first.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn tuning_samples(&self, database: DatabaseId) -> Result<Vec<(Timestamp, Value)>> {
        let rows = self
            .inner
            .store
            .read(
                READING,
                "SELECT at, data FROM tuning_sample WHERE database_id = $1 ORDER BY at",
                &[V::S(database.to_string())],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, READING);
                Ok((fields.time("at")?, fields.json("data")?))
            })
            .collect()
    }

    /// Writes down an action of tuning, or what has become of it.
    ///
    /// # Errors
    ///
    /// When the attempt was superseded.
    pub async fn record_tuning(
        &self,
        tenant: &TenantId,
        database: DatabaseId,
        record: &TuningRecord,
        fencing: Option<Fencing>,
    ) -> Result<()> {
        let mut transaction = self.inner.store.begin("recording an action").await?;
        if let Some(fencing) = fencing {
            fence(&mut transaction, fencing).await?;
        }
        let now = transaction.now().await?;
        let id = database.to_string();
        transaction
            .execute(
                "INSERT INTO tuning_action (database_id, action_id, tenant, job, state, facts, changed)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)
                 ON CONFLICT (database_id, action_id) DO UPDATE
                 SET job = excluded.job, state = excluded.state, facts = excluded.facts, changed = excluded.changed",
                &[
                    V::T(&id),
                    V::T(&record.action.id),
                    V::T(tenant.as_str()),
                    V::S(record.job.to_string()),
                    V::T(record.state.as_str()),
                    V::S(json_text(record)?),
                    V::N(now.micros()),
                ],
            )
            .await?;
        let told = json!({
            "database": id, "action": record.action.id, "object": record.action.object, "why": record.why,
        });
        let kind = format!("tuning.{}", record.state.as_str());
        event(
            &mut transaction,
            now,
            tenant,
            &kind,
            Some(record.job),
            &told,
        )
        .await?;
        transaction.commit().await
    }

    /// What tuning has done to a database, in the order in which it last changed.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn tunings(&self, database: DatabaseId) -> Result<Vec<TuningRecord>> {
        let rows = self
            .inner
            .store
            .read(
                READING,
                "SELECT facts FROM tuning_action WHERE database_id = $1 ORDER BY changed, action_id",
                &[V::S(database.to_string())],
            )
            .await?;
        rows.iter()
            .map(|row| Fields::of(row, READING).json("facts"))
            .collect()
    }
}

/// Which of these samples, in order, are let go of now: of each hour, or each day, the last one stays.
fn superfluous(times: &[Timestamp], now: Timestamp) -> Vec<Timestamp> {
    let place = |time: Timestamp| {
        let span = if now.since(time) > CLOSE { DAY } else { HOUR };
        (
            span,
            time.micros() / i64::try_from(span.as_micros()).unwrap_or(i64::MAX),
        )
    };
    times
        .iter()
        .enumerate()
        .filter(|(at, time)| {
            let is_last = times
                .get(at + 1)
                .is_none_or(|next| place(*next) != place(**time));
            now.since(**time) > SAMPLES_KEPT || !is_last
        })
        .map(|(_, time)| *time)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_thin_out_with_age_and_the_oldest_ones_go() {
        let now = Timestamp::now();
        // Every half hour, for 120 days.
        let times: Vec<Timestamp> = (0..120 * 48)
            .rev()
            .map(|half_hours| now.minus(Duration::from_secs(half_hours * 1800)))
            .collect();
        let gone = superfluous(&times, now);
        let kept = times.len() - gone.len();
        // 98 days, and 48 hours; days and hours that have begun count.
        assert!((145..=152).contains(&kept), "{kept}");
        let left: Vec<Timestamp> = times
            .into_iter()
            .filter(|time| !gone.contains(time))
            .collect();
        assert!(now.since(left[0]) <= SAMPLES_KEPT);
        assert_eq!(superfluous(&left, now), []);
    }
}
