//! The catalogue of backups and proofs, and the record of what attempts made outside. The catalogue can
//! be made again from the repository (rule 19): its writes are fenced when a job makes them, and not
//! when it is rebuilt.

use std::time::Duration;

use fettler_model::{
    AttemptToken, BackupFacts, BackupId, BackupState, JobId, ProofFacts, TenantId,
};
use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::{
    ArtefactRecord, BackupFilter, BackupRecord, Fencing, Ledger, LedgerError, Result,
    job::{event, fence, find_by_part, pattern_of},
    row::{Fields, json_text},
    store::{Transaction, V},
};

/// What is left to a job's next attempt is kept for so long at most, if none comes.
const LEFT_AT_MOST: Duration = Duration::from_secs(24 * 3600);

const READING: &str = "reading the catalogue";
const BACKUP: &str = "id, place, facts, state, state_why, proof";

impl Ledger {
    /// Records a complete backup, or brings what is known of it up to date. What was found of it since
    /// (damage, a proof) stays.
    ///
    /// # Errors
    ///
    /// When the attempt that records it was superseded.
    pub async fn upsert_backup(
        &self,
        place: &str,
        facts: &BackupFacts,
        fencing: Option<Fencing>,
    ) -> Result<()> {
        let mut transaction = self.inner.store.begin("recording a backup").await?;
        if let Some(fencing) = fencing {
            fence(&mut transaction, fencing).await?;
        }
        let now = transaction.now().await?;
        let id = facts.id.uuid().to_string();
        let is_new = transaction
            .row("SELECT id FROM backup WHERE id = $1", &[V::T(&id)])
            .await?
            .is_none();
        transaction
            .execute(
                "INSERT INTO backup (id, tenant, place, database_id, finished, facts, state)
                 VALUES ($1, $2, $3, $4, $5, $6, 'complete')
                 ON CONFLICT (id) DO UPDATE SET place = excluded.place, database_id = excluded.database_id,
                    finished = excluded.finished, facts = excluded.facts,
                    -- A manifest that is there again has not vanished.
                    state = CASE WHEN backup.state = 'vanished' THEN 'complete' ELSE backup.state END",
                &[
                    V::T(&id),
                    V::T(facts.tenant.as_str()),
                    V::T(place),
                    V::OT(facts.database.map(|id| id.to_string())),
                    V::N(facts.finished.micros()),
                    V::S(json_text(facts)?),
                ],
            )
            .await?;
        if is_new {
            let data = json!({"backup": facts.id, "database": facts.database_name, "place": place});
            let job = fencing.map(|fencing| fencing.job);
            event(
                &mut transaction,
                now,
                &facts.tenant,
                "backup.complete",
                job,
                &data,
            )
            .await?;
        }
        transaction.commit().await
    }

    /// Says what may now be said of a backup.
    ///
    /// # Errors
    ///
    /// When there is none with this id, or when the attempt that says it was superseded.
    pub async fn set_backup_state(
        &self,
        id: BackupId,
        state: BackupState,
        why: &str,
        fencing: Option<Fencing>,
    ) -> Result<()> {
        let mut transaction = self.inner.store.begin("recording a backup's state").await?;
        if let Some(fencing) = fencing {
            fence(&mut transaction, fencing).await?;
        }
        let now = transaction.now().await?;
        let before = lock_backup(&mut transaction, id).await?;
        transaction
            .execute(
                "UPDATE backup SET state = $2, state_why = $3 WHERE id = $1",
                &[V::S(id.to_string()), V::T(state.as_str()), V::T(why)],
            )
            .await?;
        if before.state != state {
            let data = json!({"backup": id, "database": before.facts.database_name, "why": why});
            let kind = format!("backup.{}", state.as_str());
            let job = fencing.map(|fencing| fencing.job);
            event(
                &mut transaction,
                now,
                &before.facts.tenant,
                &kind,
                job,
                &data,
            )
            .await?;
        }
        transaction.commit().await
    }

    /// Records a proof.
    ///
    /// # Errors
    ///
    /// When its backup is not in the catalogue, or when the attempt that made it was superseded.
    pub async fn record_proof(&self, proof: &ProofFacts, fencing: Option<Fencing>) -> Result<()> {
        let mut transaction = self.inner.store.begin("recording a proof").await?;
        if let Some(fencing) = fencing {
            fence(&mut transaction, fencing).await?;
        }
        let now = transaction.now().await?;
        let before = lock_backup(&mut transaction, proof.backup).await?;
        let id = proof.backup.to_string();
        let facts = json_text(proof)?;
        transaction
            .execute(
                "INSERT INTO proof (backup, finished, facts) VALUES ($1, $2, $3)
                 ON CONFLICT (backup, finished) DO UPDATE SET facts = excluded.facts",
                &[V::T(&id), V::N(proof.finished.micros()), V::T(&facts)],
            )
            .await?;
        // A rebuild may bring an older proof after a newer one.
        transaction
            .execute(
                "UPDATE backup SET proof = $2, proof_finished = $3
                 WHERE id = $1 AND (proof_finished IS NULL OR proof_finished <= $3)",
                &[V::T(&id), V::T(&facts), V::N(proof.finished.micros())],
            )
            .await?;
        let data = json!({
            "backup": proof.backup,
            "database": before.facts.database_name,
            "verdict": proof.verdict,
            "restore_seconds": proof.restore_seconds,
        });
        let job = fencing.map(|fencing| fencing.job);
        event(
            &mut transaction,
            now,
            &before.facts.tenant,
            "backup.proof",
            job,
            &data,
        )
        .await?;
        transaction.commit().await
    }

    /// One backup.
    ///
    /// # Errors
    ///
    /// When there is none with this id.
    pub async fn backup(&self, id: BackupId) -> Result<BackupRecord> {
        let text = id.to_string();
        let mut found = self
            .select_backups("id = $1", &[V::T(&text)], "LIMIT 1")
            .await?;
        found.pop().ok_or_else(|| no_backup(&text))
    }

    /// The backup whose id begins or ends like this (four digits or more).
    ///
    /// # Errors
    ///
    /// When none or several fit.
    pub async fn find_backup(&self, tenant: Option<&TenantId>, part: &str) -> Result<BackupRecord> {
        let pattern = pattern_of(part).ok_or_else(|| no_backup(part))?;
        let (condition, values) = find_by_part(tenant, &pattern);
        let mut found = self.select_backups(&condition, &values, "LIMIT 2").await?;
        match found.len() {
            0 => Err(no_backup(part)),
            1 => Ok(found.remove(0)),
            _ => Err(LedgerError::Ambiguous {
                what: "backup",
                name: part.to_owned(),
            }),
        }
    }

    /// The backups that fit, newest first.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn backups(&self, filter: &BackupFilter) -> Result<Vec<BackupRecord>> {
        let states = if filter.states.is_empty() {
            "state <> 'forgotten'".to_owned()
        } else {
            let names: Vec<String> = filter
                .states
                .iter()
                .map(|state| format!("'{}'", state.as_str()))
                .collect();
            format!("state IN ({})", names.join(", "))
        };
        let mut conditions = vec![states];
        let mut values = Vec::new();
        for (column, value) in [
            ("tenant", filter.tenant.as_ref().map(ToString::to_string)),
            ("place", filter.place.clone()),
            ("database_id", filter.database.map(|id| id.to_string())),
        ] {
            if let Some(value) = value {
                values.push(V::S(value));
                conditions.push(format!("{column} = ${}", values.len()));
            }
        }
        if let Some((finished, id)) = filter.before {
            values.push(V::N(finished.micros()));
            values.push(V::S(id.to_string()));
            let (finished, id) = (values.len() - 1, values.len());
            conditions.push(format!("(finished, id) < (${finished}, ${id})"));
        }
        let limit = if filter.limit == 0 {
            String::new()
        } else {
            format!("LIMIT {}", filter.limit)
        };
        self.select_backups(&conditions.join(" AND "), &values, &limit)
            .await
    }

    async fn select_backups(
        &self,
        condition: &str,
        values: &[V<'_>],
        limit: &str,
    ) -> Result<Vec<BackupRecord>> {
        let sql = format!(
            "SELECT {BACKUP} FROM backup WHERE {condition} ORDER BY finished DESC, id DESC {limit}"
        );
        let rows = self.inner.store.read(READING, sql, values).await?;
        rows.iter().map(backup_record).collect()
    }

    /// The proofs of a backup, newest first.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn proofs(&self, backup: BackupId) -> Result<Vec<ProofFacts>> {
        let rows = self
            .inner
            .store
            .read(
                READING,
                "SELECT facts FROM proof WHERE backup = $1 ORDER BY finished DESC",
                &[V::S(backup.to_string())],
            )
            .await?;
        rows.iter()
            .map(|row| Fields::of(row, READING).json("facts"))
            .collect()
    }

    /// Records what an attempt is about to make outside (rule 6). The same name again replaces the data; one that an
    /// earlier attempt of the job has left becomes this one's. With `until_job_ends` it is left to the job's next attempt when
    /// this one is lost or interrupted; otherwise it is to be removed with its attempt.
    ///
    /// # Errors
    ///
    /// When the attempt was superseded: then it must not be made.
    pub async fn record_artefact(
        &self,
        fencing: Fencing,
        name: &str,
        data: &Value,
        until_job_ends: bool,
    ) -> Result<()> {
        let mut transaction = self
            .inner
            .store
            .begin("recording what an attempt makes")
            .await?;
        fence(&mut transaction, fencing).await?;
        let now = transaction.now().await?;
        transaction
            .execute(
                "INSERT INTO artefact (job, token, name, tenant, database_id, data, recorded, until_job_ends)
                 SELECT id, token, $3, tenant, database_id, $4, $5, $6 FROM job WHERE id = $1 AND token = $2
                 ON CONFLICT (job, token, name) DO UPDATE SET data = excluded.data, until_job_ends = excluded.until_job_ends",
                &[
                    V::S(fencing.job.to_string()),
                    V::N(fencing.token.value()),
                    V::T(name),
                    V::S(json_text(data)?),
                    V::N(now.micros()),
                    V::N(i64::from(until_job_ends)),
                ],
            )
            .await?;
        transaction
            .execute(
                "DELETE FROM artefact WHERE job = $1 AND token <> $2 AND name = $3",
                &[
                    V::S(fencing.job.to_string()),
                    V::N(fencing.token.value()),
                    V::T(name),
                ],
            )
            .await?;
        transaction.commit().await
    }

    /// The data of what earlier attempts of the job have left to this one, newest first.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn left_artefacts(&self, fencing: Fencing) -> Result<Vec<Value>> {
        const DOING: &str = "looking for what earlier attempts left";
        let rows = self
            .inner
            .store
            .read(
                DOING,
                "SELECT data FROM artefact WHERE job = $1 AND token <> $2 AND until_job_ends = 1 ORDER BY recorded DESC, name",
                &[V::S(fencing.job.to_string()), V::N(fencing.token.value())],
            )
            .await?;
        rows.iter()
            .map(|row| Fields::of(row, DOING).json("data"))
            .collect()
    }

    /// Says that what earlier attempts of the job have left under this name is of no use to this one, so that it is removed.
    ///
    /// # Errors
    ///
    /// When the attempt was superseded.
    pub async fn give_up_artefact(&self, fencing: Fencing, name: &str) -> Result<()> {
        let mut transaction = self
            .inner
            .store
            .begin("giving up what an earlier attempt left")
            .await?;
        fence(&mut transaction, fencing).await?;
        transaction
            .execute(
                "UPDATE artefact SET until_job_ends = 0 WHERE job = $1 AND token <> $2 AND name = $3",
                &[
                    V::S(fencing.job.to_string()),
                    V::N(fencing.token.value()),
                    V::T(name),
                ],
            )
            .await?;
        transaction.commit().await
    }

    /// Says that what an attempt made is gone. Not fenced: whoever removes what an ended attempt left
    /// says so too.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn remove_artefact(&self, job: JobId, token: AttemptToken, name: &str) -> Result<()> {
        let mut transaction = self.inner.store.begin("recording what was removed").await?;
        transaction
            .execute(
                "DELETE FROM artefact WHERE job = $1 AND token = $2 AND name = $3",
                &[V::S(job.to_string()), V::N(token.value()), V::T(name)],
            )
            .await?;
        transaction.commit().await
    }

    /// What attempts left that do not run any more, oldest first. What is left to a job's next attempt is not among it before
    /// the job has ended, or a day has passed.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn orphaned_artefacts(&self, limit: usize) -> Result<Vec<ArtefactRecord>> {
        const DOING: &str = "looking for what ended attempts left";
        let now = self.now().await?;
        let rows = self
            .inner
            .store
            .read(
                DOING,
                "SELECT a.job AS job, a.token AS token, a.name AS name, a.tenant AS tenant, a.database_id AS database_id,
                        a.data AS data, a.recorded AS recorded
                 FROM artefact a
                 WHERE NOT EXISTS (SELECT 1 FROM job j WHERE j.id = a.job AND j.token = a.token AND j.state = 1)
                   AND NOT (a.until_job_ends = 1 AND a.recorded > $2 AND EXISTS (SELECT 1 FROM job j WHERE j.id = a.job))
                 ORDER BY a.recorded, a.job, a.name LIMIT $1",
                &[
                    V::N(i64::try_from(limit).unwrap_or(i64::MAX)),
                    V::N(now.minus(LEFT_AT_MOST).micros()),
                ],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok(ArtefactRecord {
                    job: fields.parsed("job")?,
                    tenant: fields.parsed("tenant")?,
                    database: fields.parsed_or_none("database_id")?,
                    token: AttemptToken::from_value(fields.number("token")?),
                    name: fields.text("name")?,
                    data: fields.json("data")?,
                    recorded: fields.time("recorded")?,
                })
            })
            .collect()
    }
}

async fn lock_backup(transaction: &mut Transaction, id: BackupId) -> Result<BackupRecord> {
    let text = id.to_string();
    let sql = format!(
        "SELECT {BACKUP} FROM backup WHERE id = $1 {}",
        transaction.dialect.for_update()
    );
    transaction
        .row(sql, &[V::T(&text)])
        .await?
        .as_ref()
        .map_or_else(|| Err(no_backup(&text)), backup_record)
}

fn no_backup(name: &str) -> LedgerError {
    LedgerError::NotFound {
        what: "backup",
        name: name.to_owned(),
    }
}

fn backup_record(row: &AnyRow) -> Result<BackupRecord> {
    let fields = Fields::of(row, READING);
    let state = fields.text("state")?;
    let state =
        serde_json::from_value(Value::String(state)).map_err(|error| LedgerError::Damaged {
            doing: READING,
            what: error.to_string(),
        })?;
    Ok(BackupRecord {
        place: fields.text("place")?,
        facts: fields.json("facts")?,
        state,
        state_why: fields.text_or_none("state_why")?,
        last_proof: fields.json_or_none("proof")?,
    })
}
