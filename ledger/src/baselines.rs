//! What audits compare a database with. Its form is known to audits alone; here it is a document that belongs to a database.

use fettler_model::{DatabaseId, TenantId};
use serde_json::Value;

use crate::{
    Fencing, Ledger, Result,
    job::fence,
    row::{Fields, json_text},
    store::V,
};

const READING: &str = "reading what an audit compares with";

impl Ledger {
    /// What audits of this database compare with; nothing before the first one.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn audit_baseline(
        &self,
        tenant: &TenantId,
        database: DatabaseId,
    ) -> Result<Option<Value>> {
        let rows = self
            .inner
            .store
            .read(
                READING,
                "SELECT snapshot FROM audit_baseline WHERE database_id = $1 AND tenant = $2",
                &[V::S(database.to_string()), V::T(tenant.as_str())],
            )
            .await?;
        match rows.first() {
            Some(row) => Ok(Some(Fields::of(row, READING).json("snapshot")?)),
            None => Ok(None),
        }
    }

    /// Keeps what later audits compare with.
    ///
    /// # Errors
    ///
    /// When the attempt that audits was superseded.
    pub async fn keep_audit_baseline(
        &self,
        tenant: &TenantId,
        database: DatabaseId,
        snapshot: &Value,
        fencing: Option<Fencing>,
    ) -> Result<()> {
        let mut transaction = self
            .inner
            .store
            .begin("keeping what an audit compares with")
            .await?;
        if let Some(fencing) = fencing {
            fence(&mut transaction, fencing).await?;
        }
        let now = transaction.now().await?;
        transaction
            .execute(
                "INSERT INTO audit_baseline (database_id, tenant, kept, job, snapshot) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (database_id) DO UPDATE SET kept = excluded.kept, job = excluded.job, snapshot = excluded.snapshot",
                &[
                    V::S(database.to_string()),
                    V::T(tenant.as_str()),
                    V::N(now.micros()),
                    V::OT(fencing.map(|fencing| fencing.job.to_string())),
                    V::S(json_text(snapshot)?),
                ],
            )
            .await?;
        transaction.commit().await
    }
}
