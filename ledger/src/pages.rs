//! Lists in pages, and counts over everything, for whoever shows them: no answer grows with what there is.

use fettler_model::{DatabaseName, JobKindName, PolicyName, TenantId};

use crate::{
    DatabaseRecord, JobCount, LastProof, Ledger, PolicyRecord, RepositoryStatistics, Result,
    TenantRecord, WaitCount, codes,
    dialect::Dialect,
    policies::{POLICY, policy_record},
    row::Fields,
    store::V,
    tenancy::{DATABASE, TENANT, database_record, tenant_record},
};

/// How many rows a page has at most.
const MAX_PAGE: usize = 1000;
/// More repositories or kinds than anybody has.
const MAX_GROUPS: usize = 1000;

impl Ledger {
    /// The tenants after this one, by name.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn tenants_page(
        &self,
        after: Option<&TenantId>,
        limit: usize,
    ) -> Result<Vec<TenantRecord>> {
        let limit = limit.clamp(1, MAX_PAGE);
        let rows = self
            .inner
            .store
            .read(
                "reading tenants",
                format!("SELECT {TENANT} FROM tenant WHERE id > $1 ORDER BY id LIMIT {limit}"),
                &[V::T(after.map_or("", TenantId::as_str))],
            )
            .await?;
        rows.iter().map(tenant_record).collect()
    }

    /// The databases of a tenant, or of all, after this one, by tenant and name.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn databases_page(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&(TenantId, DatabaseName)>,
        limit: usize,
    ) -> Result<Vec<DatabaseRecord>> {
        let after = after.map(|(tenant, name)| (tenant.as_str(), name.as_str()));
        let (condition, values) = page_of(tenant, after);
        let limit = limit.clamp(1, MAX_PAGE);
        let sql = format!(
            "SELECT {DATABASE} FROM database_record WHERE {condition} ORDER BY tenant, name LIMIT {limit}"
        );
        let rows = self
            .inner
            .store
            .read("reading databases", sql, &values)
            .await?;
        rows.iter().map(database_record).collect()
    }

    /// The policies of a tenant, or of all, after this one, by tenant and name.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn policies_page(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&(TenantId, PolicyName)>,
        limit: usize,
    ) -> Result<Vec<PolicyRecord>> {
        let after = after.map(|(tenant, name)| (tenant.as_str(), name.as_str()));
        let (condition, values) = page_of(tenant, after);
        let limit = limit.clamp(1, MAX_PAGE);
        let sql = format!(
            "SELECT {POLICY} FROM policy WHERE {condition} ORDER BY tenant, name LIMIT {limit}"
        );
        let rows = self
            .inner
            .store
            .read("reading policies", sql, &values)
            .await?;
        rows.iter().map(policy_record).collect()
    }

    /// What the catalogue says of each repository, of a tenant's backups or of all; backups that were
    /// forgotten or have vanished do not count.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn repository_statistics(
        &self,
        tenant: Option<&TenantId>,
    ) -> Result<Vec<RepositoryStatistics>> {
        const DOING: &str = "counting backups";
        let store = &self.inner.store;
        let number = |column: &str, field: &str| match store.dialect {
            Dialect::Sqlite => format!("({column} ->> '$.{field}')"),
            Dialect::Postgres => format!("({column}::json ->> '{field}')::bigint"),
        };
        let verdict = verdict_of(store.dialect);
        let (tenant_condition, values) = match tenant {
            Some(tenant) => ("tenant = $1", vec![V::T(tenant.as_str())]),
            None => ("1 = 1", Vec::new()),
        };
        let sql = format!(
            "SELECT place, COUNT(*) AS backups,
                    SUM(CASE WHEN state = 'damaged' THEN 1 ELSE 0 END) AS damaged,
                    SUM(CASE WHEN {verdict} = 'proven' THEN 1 ELSE 0 END) AS proven,
                    CAST(COALESCE(SUM({read}), 0) AS BIGINT) AS bytes_read,
                    CAST(COALESCE(SUM({stored}), 0) AS BIGINT) AS bytes_stored,
                    MIN(finished) AS oldest, MAX(finished) AS newest
             FROM backup WHERE {tenant_condition} AND state IN ('complete', 'damaged')
             GROUP BY place ORDER BY place LIMIT {MAX_GROUPS}",
            read = number("facts", "bytes_read"),
            stored = number("facts", "bytes_stored"),
        );
        let rows = store.read(DOING, sql, &values).await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok(RepositoryStatistics {
                    place: fields.text("place")?,
                    backups: fields.number("backups")?.unsigned_abs(),
                    damaged: fields.number("damaged")?.unsigned_abs(),
                    proven: fields.number("proven")?.unsigned_abs(),
                    bytes_read: fields.number("bytes_read")?.unsigned_abs(),
                    bytes_stored: fields.number("bytes_stored")?.unsigned_abs(),
                    oldest: fields.time("oldest")?,
                    newest: fields.time("newest")?,
                })
            })
            .collect()
    }

    /// How many live jobs there are of each kind in each state, and since when the oldest of them waits
    /// or was submitted.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn job_counts(&self) -> Result<Vec<JobCount>> {
        const DOING: &str = "counting jobs";
        let rows = self
            .inner
            .store
            .read(
                DOING,
                format!(
                    "SELECT kind, state, COUNT(*) AS jobs, MIN(COALESCE(due, submitted)) AS oldest
                     FROM job GROUP BY kind, state ORDER BY kind, state LIMIT {MAX_GROUPS}"
                ),
                &[],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                let kind: JobKindName = fields.parsed("kind")?;
                Ok(JobCount {
                    kind,
                    state: fields.code("state", codes::state_of)?,
                    jobs: fields.number("jobs")?.unsigned_abs(),
                    oldest: fields.time("oldest")?,
                })
            })
            .collect()
    }

    /// How many jobs wait, by tenant and by the reason that is kept with them. That nobody runs their kind, or how
    /// many are ahead of one, is found out for a single job only.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn wait_counts(&self) -> Result<Vec<WaitCount>> {
        const DOING: &str = "counting jobs that wait";
        let sql = format!(
            "SELECT tenant, reason, COUNT(*) AS jobs FROM (
                 SELECT tenant, CASE
                     WHEN lane = 0 THEN 'ready'
                     WHEN lane = 1 AND wait = {retry} THEN 'retry_at'
                     WHEN lane = 1 AND wait = {snooze} THEN 'snoozed'
                     WHEN lane = 1 AND wait = {window} THEN 'window_closed'
                     WHEN lane = 1 THEN 'not_before'
                     WHEN parked_at LIKE 'pause:%' THEN 'paused'
                     WHEN parked_at LIKE 'limit:tenant/%' THEN 'tenant_limit'
                     WHEN parked_at LIKE 'limit:database/%' THEN 'database_limit'
                     WHEN parked_at LIKE 'limit:server/%' THEN 'server_limit'
                     WHEN parked_at LIKE 'limit:kind/%' THEN 'kind_limit'
                     WHEN parked_at LIKE 'limit:class/%' THEN 'class_limit'
                     ELSE 'database_busy' END AS reason
                 FROM job WHERE state = 0) j
             GROUP BY tenant, reason ORDER BY tenant, reason LIMIT {MAX_GROUPS}",
            retry = codes::WAIT_RETRY,
            snooze = codes::WAIT_SNOOZE,
            window = codes::WAIT_WINDOW,
        );
        let rows = self.inner.store.read(DOING, sql, &[]).await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok(WaitCount {
                    tenant: fields.parsed("tenant")?,
                    reason: fields.text("reason")?,
                    jobs: fields.number("jobs")?.unsigned_abs(),
                })
            })
            .collect()
    }

    /// For each database that has backups: when the newest was complete, and when one was last found proven.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn last_proofs(&self) -> Result<Vec<LastProof>> {
        const DOING: &str = "looking for the last proofs";
        let sql = format!(
            "SELECT tenant, database_id, MAX(finished) AS finished,
                    MAX(CASE WHEN {verdict} = 'proven' THEN proof_finished END) AS proven
             FROM backup WHERE database_id IS NOT NULL AND state <> 'forgotten'
             GROUP BY tenant, database_id ORDER BY tenant, database_id LIMIT {MAX_GROUPS}",
            verdict = verdict_of(self.inner.store.dialect),
        );
        let rows = self.inner.store.read(DOING, sql, &[]).await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok(LastProof {
                    tenant: fields.parsed("tenant")?,
                    database: fields.parsed("database_id")?,
                    backed_up: fields.time("finished")?,
                    proven: fields.time_or_none("proven")?,
                })
            })
            .collect()
    }
}

/// What a backup's last proof found, read from its row.
const fn verdict_of(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Sqlite => "(proof ->> '$.verdict')",
        Dialect::Postgres => "(proof::json ->> 'verdict')",
    }
}

/// The condition of a page of things that belong to tenants and have names.
fn page_of<'v>(
    tenant: Option<&'v TenantId>,
    after: Option<(&'v str, &'v str)>,
) -> (String, Vec<V<'v>>) {
    let mut conditions = vec!["1 = 1".to_owned()];
    let mut values = Vec::new();
    if let Some(tenant) = tenant {
        values.push(V::T(tenant.as_str()));
        conditions.push("tenant = $1".to_owned());
    }
    if let Some((tenant, name)) = after {
        values.push(V::T(tenant));
        values.push(V::T(name));
        conditions.push(format!(
            "(tenant, name) > (${}, ${})",
            values.len() - 1,
            values.len()
        ));
    }
    (conditions.join(" AND "), values)
}
