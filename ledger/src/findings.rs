//! What looks at databases have found, and how it went on: opened, changed, resolved, reopened. A finding is one row for as
//! long as its database is known; what people say of it (a suppression) stands beside what was seen, and outlasts it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fettler_model::{
    Area, BackupState, DatabaseId, Finding, FindingChange, FindingStep, JobId, ProofFacts,
    ProofVerdict, Protection, RecordedFindings, Severity, Status, TenantId, Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::{
    Fencing, Ledger, LedgerError, Result,
    job::{event, fence},
    row::{Fields, json_text},
    store::{Transaction, V},
};

const READING: &str = "reading findings";
const FINDING: &str = "database_id, tenant, facts, state, opened, changed, seen, resolved, times_opened, suppressed_until, suppressed_because";
/// How many steps of one finding are kept.
const STEPS_KEPT: i64 = 100;
/// How long what was resolved is kept: sessions and slots come and go, each a finding of its own.
const RESOLVED_KEPT: Duration = Duration::from_secs(90 * 86_400);

/// What a look has seen.
#[derive(Clone, Debug)]
pub struct FindingsSeen<'a> {
    /// Whose the database is.
    pub tenant: &'a TenantId,
    /// The database that was looked at.
    pub database: DatabaseId,
    /// What was found, and what could not be looked at.
    pub findings: &'a [Finding],
    /// The checks that have seen all there is: what one of them found before and has not found now is resolved.
    pub conclusive: &'a BTreeSet<String>,
}

/// A finding as the ledger knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FindingRecord {
    /// The database that it is about.
    pub database: DatabaseId,
    /// Whose that is.
    pub tenant: TenantId,
    /// The finding as it was last seen, with its status now.
    #[serde(flatten)]
    pub finding: Finding,
    /// When it was first seen, or seen again after it was resolved.
    pub opened: Timestamp,
    /// When it last became graver, less grave, resolved or open.
    pub changed: Timestamp,
    /// When it was last seen.
    pub seen: Timestamp,
    /// When it was found gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Timestamp>,
    /// How often it has come.
    pub times_opened: u32,
}

/// Which findings are asked for.
#[derive(Clone, Debug, Default)]
pub struct FindingFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Of this database.
    pub database: Option<DatabaseId>,
    /// In one of these states (`open`, `resolved`, `suppressed`, `not_evaluable`); all of them when empty.
    pub states: Vec<String>,
    /// About this.
    pub area: Option<Area>,
    /// At least so grave.
    pub severity: Option<Severity>,
    /// Of checks whose names begin like this.
    pub check: Option<String>,
    /// At most so many.
    pub limit: usize,
    /// After so many that are left out.
    pub offset: usize,
}

impl Ledger {
    /// Records what a look has seen.
    ///
    /// # Errors
    ///
    /// When the attempt that looked was superseded.
    pub async fn record_findings(
        &self,
        look: &FindingsSeen<'_>,
        fencing: Option<Fencing>,
    ) -> Result<RecordedFindings> {
        let mut transaction = self.inner.store.begin("recording findings").await?;
        if let Some(fencing) = fencing {
            fence(&mut transaction, fencing).await?;
        }
        let now = transaction.now().await?;
        let database = look.database.to_string();
        let rows = transaction
            .rows(
                format!("SELECT {FINDING} FROM finding WHERE database_id = $1"),
                &[V::T(&database)],
            )
            .await?;
        let mut known = BTreeMap::new();
        for row in &rows {
            let record = stored(row)?;
            known.insert(record.finding.key.clone(), (record, suppression(row, now)?));
        }
        let mut told = RecordedFindings::default();
        let job = fencing.map(|fencing| fencing.job);
        for finding in look.findings {
            let before = known.remove(&finding.key);
            if let Some((_, Some(status))) = &before {
                told.suppressed.insert(finding.key.clone(), status.clone());
            }
            let before = before.map(|(record, _)| record);
            let step = step_of(before.as_ref(), finding);
            let (opened, changed, times) = match (&before, step) {
                (None, _) => (now, now, 1),
                (Some(record), Some(FindingStep::Reopened)) => (now, now, record.times_opened + 1),
                (Some(record), Some(_)) => (record.opened, now, record.times_opened),
                (Some(record), None) => (record.opened, record.changed, record.times_opened),
            };
            store(
                &mut transaction,
                look,
                finding,
                [opened, changed, now],
                times,
            )
            .await?;
            if let Some(step) = step {
                told.changes
                    .push(tell(&mut transaction, now, look, finding, step, job).await?);
            }
        }
        // What is left was known, and was not seen by this look.
        for (record, _) in known.into_values() {
            let Finding { check, status, .. } = &record.finding;
            let is_over = match status {
                Status::Resolved => false,
                // A check that could be made is not one that could not, whatever it found.
                _ => look.conclusive.contains(check),
            };
            if !is_over {
                continue;
            }
            if matches!(status, Status::NotEvaluable { .. }) {
                // It was no finding.
                transaction
                    .execute(
                        "DELETE FROM finding WHERE database_id = $1 AND finding_key = $2",
                        &[V::T(&database), V::T(&record.finding.key)],
                    )
                    .await?;
                continue;
            }
            transaction
                .execute(
                    "UPDATE finding SET state = 'resolved', resolved = $3, changed = $3 WHERE database_id = $1 AND finding_key = $2",
                    &[V::T(&database), V::T(&record.finding.key), V::N(now.micros())],
                )
                .await?;
            let step = FindingStep::Resolved;
            told.changes
                .push(tell(&mut transaction, now, look, &record.finding, step, job).await?);
        }
        let long_ago = now.minus(RESOLVED_KEPT).micros();
        for sql in [
            "DELETE FROM finding_history WHERE database_id = $1 AND finding_key IN
                (SELECT finding_key FROM finding WHERE database_id = $1 AND state = 'resolved' AND resolved < $2)",
            "DELETE FROM finding WHERE database_id = $1 AND state = 'resolved' AND resolved < $2",
        ] {
            transaction
                .execute(sql, &[V::T(&database), V::N(long_ago)])
                .await?;
        }
        transaction.commit().await?;
        Ok(told)
    }

    /// Sets a finding aside, until a moment or for good; or takes that back where no reason is given.
    ///
    /// # Errors
    ///
    /// When the tenant has no such finding.
    pub async fn suppress_finding(
        &self,
        tenant: &TenantId,
        database: DatabaseId,
        key: &str,
        until: Option<Timestamp>,
        because: Option<&str>,
    ) -> Result<FindingRecord> {
        let mut transaction = self.inner.store.begin("setting a finding aside").await?;
        let now = transaction.now().await?;
        let id = database.to_string();
        let changed = transaction
            .execute(
                "UPDATE finding SET suppressed_until = $4, suppressed_because = $5
                 WHERE database_id = $1 AND finding_key = $2 AND tenant = $3",
                &[
                    V::T(&id),
                    V::T(key),
                    V::T(tenant.as_str()),
                    V::ON(until.filter(|_| because.is_some()).map(Timestamp::micros)),
                    V::OT(because.map(ToOwned::to_owned)),
                ],
            )
            .await?;
        if changed == 0 {
            return Err(LedgerError::NotFound {
                what: "finding",
                name: key.to_owned(),
            });
        }
        let step = match because {
            Some(_) => FindingStep::Suppressed,
            None => FindingStep::Unsuppressed,
        };
        let data = json!({"because": because, "until": until});
        write_step(&mut transaction, now, tenant, &id, key, step, None, &data).await?;
        let row = transaction
            .row(
                format!(
                    "SELECT {FINDING} FROM finding WHERE database_id = $1 AND finding_key = $2"
                ),
                &[V::T(&id), V::T(key)],
            )
            .await?
            .ok_or_else(|| LedgerError::NotFound {
                what: "finding",
                name: key.to_owned(),
            })?;
        let record = shown(&row, now)?;
        transaction.commit().await?;
        Ok(record)
    }

    /// The findings that fit, the gravest first.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn findings(&self, filter: &FindingFilter) -> Result<Vec<FindingRecord>> {
        let now = self.now().await?;
        let mut conditions = vec!["1 = 1".to_owned()];
        let mut values = Vec::new();
        let mut add = |condition: &str, value: V<'static>| {
            values.push(value);
            conditions.push(condition.replace("$$", &format!("${}", values.len())));
        };
        if let Some(tenant) = &filter.tenant {
            add("tenant = $$", V::S(tenant.to_string()));
        }
        if let Some(database) = filter.database {
            add("database_id = $$", V::S(database.to_string()));
        }
        if let Some(area) = filter.area {
            add("area = $$", V::S(area.to_string()));
        }
        if let Some(severity) = filter.severity {
            add("severity >= $$", V::N(rank(severity)));
        }
        if let Some(check) = &filter.check {
            add("substr(check_id, 1, length($$)) = $$", V::S(check.clone()));
        }
        if !filter.states.is_empty() {
            // A suppression is over when its time is: the state is told by the clock, not by a row that somebody would have to change.
            let aside = format!(
                "(suppressed_because IS NOT NULL AND (suppressed_until IS NULL OR suppressed_until > {}))",
                now.micros()
            );
            let states: Vec<String> = filter
                .states
                .iter()
                .map(|state| match state.as_str() {
                    "suppressed" => format!("(state <> 'resolved' AND {aside})"),
                    "resolved" => "state = 'resolved'".to_owned(),
                    "not_evaluable" => format!("(state = 'not_evaluable' AND NOT {aside})"),
                    _ => format!("(state = 'open' AND NOT {aside})"),
                })
                .collect();
            conditions.push(format!("({})", states.join(" OR ")));
        }
        let limit = if filter.limit == 0 {
            String::new()
        } else {
            format!("LIMIT {} OFFSET {}", filter.limit, filter.offset)
        };
        let sql = format!(
            "SELECT {FINDING} FROM finding WHERE {} ORDER BY severity DESC, opened DESC, finding_key, database_id {limit}",
            conditions.join(" AND ")
        );
        let rows = self.inner.store.read(READING, sql, &values).await?;
        rows.iter().map(|row| shown(row, now)).collect()
    }

    /// How a finding came to be what it is, the newest step first.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn finding_history(
        &self,
        tenant: &TenantId,
        database: DatabaseId,
        key: &str,
    ) -> Result<Vec<FindingChange>> {
        let rows = self
            .inner
            .store
            .read(
                READING,
                "SELECT finding_key, at, what, job, data FROM finding_history
                 WHERE database_id = $1 AND finding_key = $2 AND tenant = $3 ORDER BY at DESC",
                &[V::S(database.to_string()), V::T(key), V::T(tenant.as_str())],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, READING);
                let what = fields.text("what")?;
                Ok(FindingChange {
                    key: fields.text("finding_key")?,
                    at: fields.time("at")?,
                    step: FindingStep::of(&what).unwrap_or(FindingStep::Changed),
                    job: fields.parsed_or_none("job")?,
                    data: fields.json("data")?,
                })
            })
            .collect()
    }

    /// What is known of a database's backups and proofs.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn protection(&self, database: DatabaseId) -> Result<Protection> {
        const DOING: &str = "asking how well a database is backed up";
        let rows = self
            .inner
            .store
            .read(
                DOING,
                format!(
                    "SELECT finished, proof FROM backup WHERE database_id = $1 AND state = '{}' ORDER BY finished DESC",
                    BackupState::Complete.as_str()
                ),
                &[V::S(database.to_string())],
            )
            .await?;
        let mut known = Protection {
            now: self.now().await?,
            backups: u32::try_from(rows.len()).unwrap_or(u32::MAX),
            last_backup: None,
            proofs: 0,
            last_proof: None,
            last_proof_failed: false,
            has_policy: self
                .policies_of(database)
                .await?
                .iter()
                .any(|policy| policy.spec.kind.as_str() == "backup"),
        };
        for row in &rows {
            let fields = Fields::of(row, DOING);
            known.last_backup = known.last_backup.max(Some(fields.time("finished")?));
            let Some(proof) = fields.json_or_none::<ProofFacts>("proof")? else {
                continue;
            };
            if proof.verdict != ProofVerdict::Failed {
                known.proofs += 1;
            }
            if known.last_proof < Some(proof.finished) {
                known.last_proof = Some(proof.finished);
                known.last_proof_failed = proof.verdict == ProofVerdict::Failed;
            }
        }
        Ok(known)
    }
}

/// What has become of a finding that was seen now.
fn step_of(before: Option<&FindingRecord>, now: &Finding) -> Option<FindingStep> {
    let is_open = now.status == Status::Open;
    match before {
        // That something could not be looked at is told with each look, and is no step of a finding.
        _ if !is_open => None,
        None => Some(FindingStep::Opened),
        Some(record) => match record.finding.status {
            Status::Open if record.finding.severity == now.severity => None,
            Status::Open => Some(FindingStep::Changed),
            Status::Resolved => Some(FindingStep::Reopened),
            _ => Some(FindingStep::Opened),
        },
    }
}

async fn store(
    transaction: &mut Transaction,
    look: &FindingsSeen<'_>,
    finding: &Finding,
    [opened, changed, seen]: [Timestamp; 3],
    times: u32,
) -> Result<()> {
    transaction
        .execute(
            "INSERT INTO finding (database_id, finding_key, tenant, check_id, area, severity, state, facts, opened, changed, seen, times_opened)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             ON CONFLICT (database_id, finding_key) DO UPDATE SET area = excluded.area, severity = excluded.severity,
                state = excluded.state, facts = excluded.facts, opened = excluded.opened, changed = excluded.changed,
                seen = excluded.seen, times_opened = excluded.times_opened, resolved = NULL",
            &[
                V::S(look.database.to_string()),
                V::T(&finding.key),
                V::T(look.tenant.as_str()),
                V::T(&finding.check),
                V::T(finding.area.as_str()),
                V::N(rank(finding.severity)),
                V::T(finding.status.as_str()),
                V::S(json_text(finding)?),
                V::N(opened.micros()),
                V::N(changed.micros()),
                V::N(seen.micros()),
                V::N(i64::from(times)),
            ],
        )
        .await
        .map(drop)
}

/// Writes a step down, and makes it an event.
async fn tell(
    transaction: &mut Transaction,
    now: Timestamp,
    look: &FindingsSeen<'_>,
    finding: &Finding,
    step: FindingStep,
    job: Option<JobId>,
) -> Result<FindingChange> {
    let database = look.database.to_string();
    let data = json!({"severity": finding.severity, "title": finding.title});
    let key = &finding.key;
    write_step(
        transaction,
        now,
        look.tenant,
        &database,
        key,
        step,
        job,
        &data,
    )
    .await?;
    Ok(FindingChange {
        key: key.clone(),
        at: now,
        step,
        job,
        data,
    })
}

#[expect(clippy::too_many_arguments, reason = "they are the columns of one row")]
async fn write_step(
    transaction: &mut Transaction,
    now: Timestamp,
    tenant: &TenantId,
    database: &str,
    key: &str,
    step: FindingStep,
    job: Option<JobId>,
    data: &Value,
) -> Result<()> {
    transaction
        .execute(
            "INSERT INTO finding_history (database_id, finding_key, at, what, tenant, job, data) VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (database_id, finding_key, at, what) DO NOTHING",
            &[
                V::T(database),
                V::T(key),
                V::N(now.micros()),
                V::T(step.as_str()),
                V::T(tenant.as_str()),
                V::OT(job.map(|job| job.to_string())),
                V::S(json_text(data)?),
            ],
        )
        .await?;
    transaction
        .execute(
            "DELETE FROM finding_history WHERE database_id = $1 AND finding_key = $2 AND at <
                (SELECT MIN(at) FROM (SELECT at FROM finding_history WHERE database_id = $1 AND finding_key = $2
                                      ORDER BY at DESC LIMIT $3) newest)",
            &[V::T(database), V::T(key), V::N(STEPS_KEPT)],
        )
        .await?;
    let mut told = data.clone();
    told["database"] = json!(database);
    told["finding"] = json!(key);
    let kind = format!("finding.{}", step.as_str());
    event(transaction, now, tenant, &kind, job, &told).await
}

const fn rank(severity: Severity) -> i64 {
    match severity {
        Severity::Info => 0,
        Severity::Low => 1,
        Severity::Medium => 2,
        Severity::High => 3,
        Severity::Critical => 4,
    }
}

/// The suppression of a row that holds now.
fn suppression(row: &AnyRow, now: Timestamp) -> Result<Option<Status>> {
    let fields = Fields::of(row, READING);
    let until = fields.time_or_none("suppressed_until")?;
    Ok(fields
        .text_or_none("suppressed_because")?
        .filter(|_| until.is_none_or(|until| until > now))
        .map(|because| Status::Suppressed { until, because }))
}

/// A row as it is shown: what was set aside is not open.
fn shown(row: &AnyRow, now: Timestamp) -> Result<FindingRecord> {
    let mut record = stored(row)?;
    if record.finding.status != Status::Resolved
        && let Some(status) = suppression(row, now)?
    {
        record.finding.status = status;
    }
    Ok(record)
}

/// A row as it was last seen.
fn stored(row: &AnyRow) -> Result<FindingRecord> {
    let fields = Fields::of(row, READING);
    let mut finding: Finding = fields.json("facts")?;
    if fields.text("state")? == "resolved" {
        finding.status = Status::Resolved;
    }
    Ok(FindingRecord {
        database: fields.parsed("database_id")?,
        tenant: fields.parsed("tenant")?,
        finding,
        opened: fields.time("opened")?,
        changed: fields.time("changed")?,
        seen: fields.time("seen")?,
        resolved: fields.time_or_none("resolved")?,
        times_opened: fields.small("times_opened")?,
    })
}
