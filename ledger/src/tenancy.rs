//! Who there is: tenants, their databases, and the secrets that were sealed for them.

use fettler_model::{DatabaseId, Engine, JobWindow, Priority, TenantId};
use serde_json::Value;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::{
    DatabaseChange, DatabaseRecord, DatabaseTerms, Fencing, IdentityOutcome, Ledger, LedgerError,
    Result, SealedId, TenantChange, TenantRecord,
    job::{WEIGHT, check_labels, fence, identity_name, line, record_name, route, wake_first},
    row::{Fields, json_text},
    store::{Transaction, V},
};

const READING: &str = "reading databases";
pub(crate) const TENANT: &str = "id, created, weight, ceiling";
pub(crate) const DATABASE: &str =
    "id, tenant, name, url, password, identity_key, labels, sandbox, created, terms, route";

impl Ledger {
    /// Adds a tenant.
    ///
    /// # Errors
    ///
    /// When it is there already.
    pub async fn add_tenant(&self, tenant: &TenantId) -> Result<TenantRecord> {
        if self.insert_tenant(tenant).await? {
            self.tenant(tenant).await
        } else {
            Err(LedgerError::Exists {
                what: "tenant",
                name: tenant.to_string(),
            })
        }
    }

    /// Adds a tenant unless it is there.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn ensure_tenant(&self, tenant: &TenantId) -> Result<()> {
        self.insert_tenant(tenant).await.map(drop)
    }

    async fn insert_tenant(&self, tenant: &TenantId) -> Result<bool> {
        let mut transaction = self.inner.store.begin("adding a tenant").await?;
        let now = transaction.now().await?;
        let added = transaction
            .execute(
                "INSERT INTO tenant (id, created) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING",
                &[V::T(tenant.as_str()), V::N(now.micros())],
            )
            .await?;
        transaction.commit().await?;
        Ok(added > 0)
    }

    /// All tenants, by name.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn tenants(&self) -> Result<Vec<TenantRecord>> {
        let rows = self
            .inner
            .store
            .read(
                "reading tenants",
                format!("SELECT {TENANT} FROM tenant ORDER BY id"),
                &[],
            )
            .await?;
        rows.iter().map(tenant_record).collect()
    }

    /// One tenant.
    ///
    /// # Errors
    ///
    /// When there is none of this name.
    pub async fn tenant(&self, tenant: &TenantId) -> Result<TenantRecord> {
        let row = self
            .inner
            .store
            .read_one(
                "reading tenants",
                format!("SELECT {TENANT} FROM tenant WHERE id = $1"),
                &[V::T(tenant.as_str())],
            )
            .await?;
        row.as_ref().map_or_else(
            || {
                Err(LedgerError::NotFound {
                    what: "tenant",
                    name: tenant.to_string(),
                })
            },
            tenant_record,
        )
    }

    /// The tenants whose weight is not 1, for a queue outside the ledger (rule 16).
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn weights(&self) -> Result<Vec<(TenantId, f64)>> {
        const DOING: &str = "reading tenants";
        let rows = self
            .inner
            .store
            .read(
                DOING,
                format!("SELECT id, weight FROM tenant WHERE weight <> {WEIGHT} ORDER BY id"),
                &[],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok((fields.parsed("id")?, from_weight(fields.number("weight")?)))
            })
            .collect()
    }

    /// Changes a tenant.
    ///
    /// # Errors
    ///
    /// When the weight is out of its range, or when there is no such tenant.
    pub async fn edit_tenant(
        &self,
        tenant: &TenantId,
        change: TenantChange,
    ) -> Result<TenantRecord> {
        let weight = change
            .weight
            .map(|weight| {
                to_weight(weight).ok_or_else(|| LedgerError::Refused {
                    what: format!("a tenant cannot have the weight {weight}"),
                    remedy: "give a number from 0.001 to 1000".to_owned(),
                })
            })
            .transpose()?;
        let mut transaction = self.inner.store.begin("editing a tenant").await?;
        let changed = transaction
            .execute(
                "UPDATE tenant SET weight = COALESCE($2, weight), ceiling = COALESCE($3, ceiling) WHERE id = $1",
                &[
                    V::T(tenant.as_str()),
                    V::ON(weight),
                    V::ON(change.priority_ceiling.map(Priority::level)),
                ],
            )
            .await?;
        if changed == 0 {
            return Err(LedgerError::NotFound {
                what: "tenant",
                name: tenant.to_string(),
            });
        }
        transaction.commit().await?;
        self.tenant(tenant).await
    }

    /// Removes a tenant that has nothing any more.
    ///
    /// # Errors
    ///
    /// When it has databases, policies or live jobs, or is not there.
    pub async fn remove_tenant(&self, tenant: &TenantId) -> Result<()> {
        let mut transaction = self.inner.store.begin("removing a tenant").await?;
        let values = [V::T(tenant.as_str())];
        for (what, sql) in [
            (
                "databases",
                "SELECT id FROM database_record WHERE tenant = $1 LIMIT 1",
            ),
            (
                "policies",
                "SELECT id FROM policy WHERE tenant = $1 LIMIT 1",
            ),
            (
                "jobs that have not ended",
                "SELECT id FROM job WHERE tenant = $1 LIMIT 1",
            ),
        ] {
            if transaction.row(sql, &values).await?.is_some() {
                return Err(LedgerError::Conflict {
                    what: format!("the tenant {tenant} still has {what}"),
                    remedy: format!("remove its {what} first"),
                });
            }
        }
        for table in ["sealed_secret", "turn", "token"] {
            transaction
                .execute(format!("DELETE FROM {table} WHERE tenant = $1"), &values)
                .await?;
        }
        let removed = transaction
            .execute("DELETE FROM tenant WHERE id = $1", &values)
            .await?;
        if removed == 0 {
            return Err(LedgerError::NotFound {
                what: "tenant",
                name: tenant.to_string(),
            });
        }
        transaction.commit().await
    }

    /// Adds a database as given; when it was added is the ledger's to say.
    ///
    /// # Errors
    ///
    /// When the tenant has one of this name, or is not there.
    pub async fn add_database(&self, record: &DatabaseRecord) -> Result<DatabaseRecord> {
        self.tenant(&record.tenant).await?;
        check_terms(&record.terms)?;
        let mut transaction = self.inner.store.begin("adding a database").await?;
        let now = transaction.now().await?;
        let added = transaction
            .execute(
                format!(
                    "INSERT INTO database_record ({DATABASE}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
                     ON CONFLICT (tenant, name) DO NOTHING"
                ),
                &[
                    V::S(record.id.to_string()),
                    V::T(record.tenant.as_str()),
                    V::T(record.name.as_str()),
                    V::T(record.url.as_str()),
                    V::OT(record.password.as_ref().map(ToString::to_string)),
                    V::OT(record.identity_key.clone()),
                    V::S(json_text(&record.labels)?),
                    V::S(json_text(&record.sandbox)?),
                    V::N(now.micros()),
                    V::S(json_text(&record.terms)?),
                    V::S(route(&record.terms.reach)),
                ],
            )
            .await?;
        if added == 0 {
            return Err(LedgerError::Exists {
                what: "database",
                name: record.name.to_string(),
            });
        }
        transaction.commit().await?;
        Ok(DatabaseRecord {
            created: now,
            ..record.clone()
        })
    }

    /// Changes a database's record. With a new place, its identity has to be asked for again.
    ///
    /// # Errors
    ///
    /// When it is not there, or when the new name is taken.
    pub async fn edit_database(
        &self,
        id: DatabaseId,
        change: DatabaseChange,
    ) -> Result<DatabaseRecord> {
        self.edit_database_if(id, None, change).await
    }

    /// The same, if the record still is what `expected` says.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Changed`] when it is another by now; as [`Ledger::edit_database`].
    pub async fn edit_database_if(
        &self,
        id: DatabaseId,
        expected: Option<&DatabaseRecord>,
        change: DatabaseChange,
    ) -> Result<DatabaseRecord> {
        const DOING: &str = "editing a database";
        let mut transaction = self.inner.store.begin(DOING).await?;
        if change.terms.is_some() {
            // Jobs before databases: the order in which claims lock them.
            let sql = format!(
                "SELECT id FROM job WHERE database_id = $1 ORDER BY id {}",
                transaction.dialect.for_update()
            );
            transaction.rows(sql, &[V::S(id.to_string())]).await?;
        }
        let mut record = lock_database(&mut transaction, id).await?;
        still(expected, &record, "database")?;
        if let Some(name) = change.name
            && name != record.name
        {
            let values = [V::T(record.tenant.as_str()), V::S(name.to_string())];
            let sql = "SELECT id FROM database_record WHERE tenant = $1 AND name = $2";
            if transaction.row(sql, &values).await?.is_some() {
                return Err(LedgerError::Exists {
                    what: "database",
                    name: name.to_string(),
                });
            }
            record.name = name;
        }
        if let Some(url) = change.url
            && url != record.url
        {
            record.url = url;
            record.identity_key = None;
        }
        if let Some(password) = change.password {
            record.password = password;
        }
        if let Some(labels) = change.labels {
            record.labels = labels;
        }
        if let Some(sandbox) = change.sandbox {
            record.sandbox = sandbox;
        }
        if let Some(terms) = change.terms {
            check_terms(&terms)?;
            if terms.reach != record.terms.reach {
                reroute(&mut transaction, id, &terms).await?;
            }
            record.terms = terms;
        }
        transaction
            .execute(
                "UPDATE database_record SET name = $2, url = $3, password = $4, identity_key = $5, labels = $6, sandbox = $7,
                    terms = $8, route = $9 WHERE id = $1",
                &[
                    V::S(id.to_string()),
                    V::T(record.name.as_str()),
                    V::T(record.url.as_str()),
                    V::OT(record.password.as_ref().map(ToString::to_string)),
                    V::OT(record.identity_key.clone()),
                    V::S(json_text(&record.labels)?),
                    V::S(json_text(&record.sandbox)?),
                    V::S(json_text(&record.terms)?),
                    V::S(route(&record.terms.reach)),
                ],
            )
            .await?;
        transaction.commit().await?;
        self.inner.shared.wake.wake();
        Ok(record)
    }

    /// The databases of a tenant, or of all, by tenant and name.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn databases(&self, tenant: Option<&TenantId>) -> Result<Vec<DatabaseRecord>> {
        let rows = self
            .inner
            .store
            .read(
                READING,
                format!(
                    "SELECT {DATABASE} FROM database_record WHERE tenant = COALESCE($1, tenant) ORDER BY tenant, name"
                ),
                &[V::OT(tenant.map(ToString::to_string))],
            )
            .await?;
        rows.iter().map(database_record).collect()
    }

    /// One database.
    ///
    /// # Errors
    ///
    /// When there is none with this id.
    pub async fn database(&self, id: DatabaseId) -> Result<DatabaseRecord> {
        let row = self
            .inner
            .store
            .read_one(
                READING,
                format!("SELECT {DATABASE} FROM database_record WHERE id = $1"),
                &[V::S(id.to_string())],
            )
            .await?;
        row.as_ref()
            .map_or_else(|| Err(no_database(&id.to_string())), database_record)
    }

    /// A tenant's database by its name, its id or its URL.
    ///
    /// # Errors
    ///
    /// When there is none, or when several records have this URL.
    pub async fn find_database(&self, tenant: &TenantId, name: &str) -> Result<DatabaseRecord> {
        let rows = self
            .inner
            .store
            .read(
                READING,
                format!(
                    "SELECT {DATABASE} FROM database_record WHERE tenant = $1 AND (name = $2 OR id = $2 OR url = $2)
                     ORDER BY CASE WHEN name = $2 THEN 0 WHEN id = $2 THEN 1 ELSE 2 END LIMIT 2"
                ),
                &[V::T(tenant.as_str()), V::T(name)],
            )
            .await?;
        match rows.as_slice() {
            [] => Err(no_database(name)),
            [first, rest @ ..] => {
                let found = database_record(first)?;
                if !rest.is_empty() && found.url.as_str() == name && found.name.as_str() != name {
                    return Err(LedgerError::Ambiguous {
                        what: "database",
                        name: name.to_owned(),
                    });
                }
                Ok(found)
            }
        }
    }

    /// Removes a database's record. Its backups stay in the catalogue.
    ///
    /// # Errors
    ///
    /// When policies or live jobs are about it, or when it is not there.
    pub async fn remove_database(&self, id: DatabaseId) -> Result<()> {
        self.remove_database_if(id, None).await
    }

    /// The same, if the record still is what `expected` says.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Changed`] when it is another by now; as [`Ledger::remove_database`].
    pub async fn remove_database_if(
        &self,
        id: DatabaseId,
        expected: Option<&DatabaseRecord>,
    ) -> Result<()> {
        let mut transaction = self.inner.store.begin("removing a database").await?;
        let record = lock_database(&mut transaction, id).await?;
        still(expected, &record, "database")?;
        let values = [V::S(id.to_string())];
        for (what, sql) in [
            (
                "policies",
                "SELECT id FROM policy WHERE database_id = $1 LIMIT 1",
            ),
            (
                "jobs that have not ended",
                "SELECT id FROM job WHERE database_id = $1 LIMIT 1",
            ),
        ] {
            if transaction.row(sql, &values).await?.is_some() {
                return Err(LedgerError::Conflict {
                    what: format!("the database {} still has {what}", record.name),
                    remedy: format!("remove its {what} first"),
                });
            }
        }
        for table in [
            "finding",
            "finding_history",
            "audit_baseline",
            "tuning_sample",
            "tuning_action",
        ] {
            transaction
                .execute(
                    format!("DELETE FROM {table} WHERE database_id = $1"),
                    &values,
                )
                .await?;
        }
        transaction
            .execute("DELETE FROM database_record WHERE id = $1", &values)
            .await?;
        if let Some(fettler_model::SecretReference::Sealed(secret)) = record.password {
            transaction
                .execute(
                    "DELETE FROM sealed_secret WHERE id = $1 AND tenant = $2",
                    &[V::S(secret.to_string()), V::T(record.tenant.as_str())],
                )
                .await?;
        }
        transaction.commit().await
    }

    /// Records a database's own identity (rule 17): from then on two records of one database exclude
    /// each other. When the attempt that asks holds the database under its record and another job works
    /// on it under another record, the asking job must step back.
    ///
    /// # Errors
    ///
    /// When there is no such database, or when the attempt was superseded.
    pub async fn set_identity(
        &self,
        id: DatabaseId,
        key: &str,
        asking: Option<Fencing>,
    ) -> Result<IdentityOutcome> {
        const DOING: &str = "recording a database's identity";
        let mut transaction = self.inner.store.begin(DOING).await?;
        // Jobs before databases before resources: the order in which claims lock them.
        if let Some(asking) = asking {
            fence(&mut transaction, asking).await?;
        }
        let record = lock_database(&mut transaction, id).await?;
        let now = transaction.now().await?;
        let new = identity_name(key);
        let old = record
            .identity_key
            .as_deref()
            .map_or_else(|| record_name(id), identity_name);
        if record.identity_key.as_deref() != Some(key) {
            transaction
                .execute(
                    "UPDATE database_record SET identity_key = $2 WHERE id = $1",
                    &[V::S(id.to_string()), V::T(key)],
                )
                .await?;
        }
        let outcome = move_holder(&mut transaction, id, &old, &new, now.micros()).await?;
        let outcome = match (outcome, asking) {
            // Somebody else's hold stays where it is until it ends.
            (busy @ IdentityOutcome::Busy { .. }, Some(_)) => busy,
            _ => IdentityOutcome::Known,
        };
        transaction.commit().await?;
        self.inner.shared.wake.wake();
        Ok(outcome)
    }

    /// Keeps a sealed secret; what is inside is not the ledger's to know (P9).
    ///
    /// # Errors
    ///
    /// When the tenant is not there.
    pub async fn put_sealed(&self, tenant: &TenantId, sealed: &[u8]) -> Result<SealedId> {
        self.tenant(tenant).await?;
        let id = Uuid::now_v7();
        let mut transaction = self.inner.store.begin("keeping a sealed secret").await?;
        let now = transaction.now().await?;
        transaction
            .execute(
                "INSERT INTO sealed_secret (id, tenant, sealed, created) VALUES ($1, $2, $3, $4)",
                &[
                    V::S(id.to_string()),
                    V::T(tenant.as_str()),
                    V::B(sealed),
                    V::N(now.micros()),
                ],
            )
            .await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// A tenant's sealed secret.
    ///
    /// # Errors
    ///
    /// When the tenant has none with this id (P6).
    pub async fn sealed(&self, tenant: &TenantId, id: SealedId) -> Result<Vec<u8>> {
        const DOING: &str = "reading a sealed secret";
        let row = self
            .inner
            .store
            .read_one(
                DOING,
                "SELECT sealed FROM sealed_secret WHERE id = $1 AND tenant = $2",
                &[V::S(id.to_string()), V::T(tenant.as_str())],
            )
            .await?
            .ok_or(LedgerError::NotFound {
                what: "sealed secret",
                name: id.to_string(),
            })?;
        Fields::of(&row, DOING).bytes("sealed")
    }

    /// Forgets a tenant's sealed secret.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn remove_sealed(&self, tenant: &TenantId, id: SealedId) -> Result<()> {
        let mut transaction = self.inner.store.begin("forgetting a sealed secret").await?;
        transaction
            .execute(
                "DELETE FROM sealed_secret WHERE id = $1 AND tenant = $2",
                &[V::S(id.to_string()), V::T(tenant.as_str())],
            )
            .await?;
        transaction.commit().await
    }
}

/// Refuses terms that no job could run under.
fn check_terms(terms: &DatabaseTerms) -> Result<()> {
    check_labels(&terms.reach)?;
    match terms.window.as_ref().map(JobWindow::clock) {
        Some(Err(error)) => Err(LedgerError::Refused {
            what: error.to_string(),
            remedy: "write the window as HH:MM-HH:MM".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Lets the live jobs about a database wait for the workers that reach it from now on.
async fn reroute(
    transaction: &mut Transaction,
    database: DatabaseId,
    terms: &DatabaseTerms,
) -> Result<()> {
    let route = route(&terms.reach);
    let id = database.to_string();
    let rows = transaction
        .rows(
            "SELECT DISTINCT kind_version FROM job WHERE database_id = $1",
            &[V::T(&id)],
        )
        .await?;
    for row in &rows {
        let version = Fields::of(row, transaction.doing()).small("kind_version")?;
        let moved = transaction
            .rows(
                "UPDATE job SET line = $3 WHERE database_id = $1 AND kind_version = $2 RETURNING id, lane, state",
                &[
                    V::T(&id),
                    V::N(version.into()),
                    V::S(line(version, &route)),
                ],
            )
            .await?;
        for row in &moved {
            let fields = Fields::of(row, transaction.doing());
            if fields.number("lane")? == 0 && fields.number("state")? == 0 {
                // A queue outside the ledger has it in its old line.
                transaction.ready.push(fields.parsed("id")?);
            }
        }
    }
    Ok(())
}

/// Moves what is held and parked under a database's old name to its new one.
async fn move_holder(
    transaction: &mut Transaction,
    database: DatabaseId,
    old: &str,
    new: &str,
    now: i64,
) -> Result<IdentityOutcome> {
    if old == new {
        return Ok(IdentityOutcome::Known);
    }
    let mut names = [old, new];
    names.sort_unstable();
    let mut holders = std::collections::HashMap::new();
    for name in names {
        transaction
            .execute(
                "INSERT INTO resource (name, since) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
                &[V::T(name), V::N(now)],
            )
            .await?;
        let sql = format!(
            "SELECT job, kind FROM resource WHERE name = $1 AND job IS NOT NULL {}",
            transaction.dialect.for_update()
        );
        if let Some(row) = transaction.row(sql, &[V::T(name)]).await? {
            let fields = Fields::of(&row, transaction.doing());
            holders.insert(name, (fields.text("job")?, fields.text("kind")?));
        }
    }
    // A name may stand for several records: only what is about this one moves.
    let about = transaction
        .execute(
            "UPDATE job SET parked_at = $1 WHERE lane = 2 AND parked_at = $2 AND database_id = $3",
            &[V::T(new), V::T(old), V::S(database.to_string())],
        )
        .await?;
    let Some((job, kind)) = holders.get(old) else {
        if about > 0 && !holders.contains_key(new) {
            wake_first(transaction, new).await?;
        }
        return Ok(IdentityOutcome::Known);
    };
    if let Some((other, other_kind)) = holders.get(new) {
        let damaged = |why: String| LedgerError::Damaged {
            doing: "recording a database's identity",
            what: why,
        };
        return Ok(IdentityOutcome::Busy {
            job: other
                .parse()
                .map_err(|error: uuid::Error| damaged(error.to_string()))?,
            kind: other_kind
                .parse()
                .map_err(|error: fettler_model::InvalidName| damaged(error.to_string()))?,
        });
    }
    // The database stands first in what it holds (src/job/claim.rs).
    let moved = transaction
        .execute(
            "UPDATE job SET holds = $1 || substr(holds, length($4) + 1)
             WHERE id = $2 AND state = 1 AND database_id = $3",
            &[V::T(new), V::T(job), V::S(database.to_string()), V::T(old)],
        )
        .await?;
    if moved > 0 {
        transaction
            .execute(
                "UPDATE resource SET job = $2, kind = $3, since = $4 WHERE name = $1",
                &[V::T(new), V::T(job), V::T(kind), V::N(now)],
            )
            .await?;
        transaction
            .execute(
                "UPDATE resource SET job = NULL, kind = NULL WHERE name = $1",
                &[V::T(old)],
            )
            .await?;
        wake_first(transaction, old).await?;
    }
    Ok(IdentityOutcome::Known)
}

/// Refuses to change what is not what its changer has seen.
pub(crate) fn still<T: PartialEq>(
    expected: Option<&T>,
    found: &T,
    what: &'static str,
) -> Result<()> {
    match expected {
        Some(expected) if expected != found => Err(LedgerError::Changed { what }),
        _ => Ok(()),
    }
}

async fn lock_database(transaction: &mut Transaction, id: DatabaseId) -> Result<DatabaseRecord> {
    let sql = format!(
        "SELECT {DATABASE} FROM database_record WHERE id = $1 {}",
        transaction.dialect.for_update()
    );
    let text = id.to_string();
    transaction
        .row(sql, &[V::T(&text)])
        .await?
        .as_ref()
        .map_or_else(|| Err(no_database(&text)), database_record)
}

fn no_database(name: &str) -> LedgerError {
    // What was asked for may be a URL with a password in it.
    let name = if name.contains("://") && name.contains('@') {
        let scheme = name.split(':').next().unwrap_or_default();
        if scheme.parse::<Engine>().is_ok() {
            format!("{scheme}://…")
        } else {
            "…".to_owned()
        }
    } else {
        name.to_owned()
    };
    LedgerError::NotFound {
        what: "database",
        name,
    }
}

pub(crate) fn tenant_record(row: &AnyRow) -> Result<TenantRecord> {
    let fields = Fields::of(row, "reading tenants");
    Ok(TenantRecord {
        id: fields.parsed("id")?,
        created: fields.time("created")?,
        weight: from_weight(fields.number("weight")?),
        priority_ceiling: Priority::from_level(fields.number("ceiling")?),
    })
}

/// A weight as the table `tenant` keeps it, in thousandths.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "weights are small"
)]
fn to_weight(weight: f64) -> Option<i64> {
    (0.001..=1000.0)
        .contains(&weight)
        .then(|| (weight * WEIGHT as f64).round() as i64)
}

#[allow(clippy::cast_precision_loss, reason = "weights are small")]
fn from_weight(kept: i64) -> f64 {
    kept as f64 / WEIGHT as f64
}

pub(crate) fn database_record(row: &AnyRow) -> Result<DatabaseRecord> {
    let fields = Fields::of(row, READING);
    let sandbox: Value = fields.json("sandbox")?;
    let url = fettler_model::DatabaseUrl::parse_with_password(&fields.text("url")?)
        .map(|(url, _)| url)
        .map_err(|error| LedgerError::Damaged {
            doing: READING,
            what: error.to_string(),
        })?;
    Ok(DatabaseRecord {
        id: fields.parsed("id")?,
        tenant: fields.parsed("tenant")?,
        name: fields.parsed("name")?,
        url,
        password: fields.parsed_or_none("password")?,
        identity_key: fields.text_or_none("identity_key")?,
        labels: fields.json("labels")?,
        sandbox,
        created: fields.time("created")?,
        terms: fields.json("terms")?,
    })
}
