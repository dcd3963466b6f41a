//! Policies, their due times, and who leads. A due time has exactly one row with one outcome, whoever
//! decides it (rule 18).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use fettler_fault_points::{Point, reached};
use fettler_model::{DatabaseId, JobId, PolicyId, TenantId, TickOutcome, Timestamp};
use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::{
    Leadership, Ledger, LedgerError, PolicyChange, PolicyRecord, Result, Tick, TickAction,
    TickRecord, TickResult,
    batch::{Work, halving},
    dialect::Column,
    job::{Submission, submit_in},
    ledger::Shared,
    row::{Fields, json_text},
    store::{Transaction, V},
    tenancy::still,
};

const READING: &str = "reading policies";
const TICKING: &str = "deciding a due time";
/// How many due times share a commit: the database works at several of these at the same time.
const TICKS_PER_COMMIT: usize = 250;
pub(crate) const POLICY: &str = "id, tenant, name, database_id, spec, next_due, last_job, created";

impl Ledger {
    /// Adds a policy as given; when it was added is the ledger's to say.
    ///
    /// # Errors
    ///
    /// When the tenant has one of this name, or when its database is not the tenant's.
    pub async fn add_policy(&self, record: &PolicyRecord) -> Result<PolicyRecord> {
        self.tenant(&record.tenant).await?;
        self.check_owner(&record.tenant, record.database).await?;
        let mut transaction = self.inner.store.begin("adding a policy").await?;
        let now = transaction.now().await?;
        let added = transaction
            .execute(
                format!(
                    "INSERT INTO policy ({POLICY}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
                     ON CONFLICT (tenant, name) DO NOTHING"
                ),
                &[
                    V::S(record.id.to_string()),
                    V::T(record.tenant.as_str()),
                    V::T(record.name.as_str()),
                    V::OT(record.database.map(|id| id.to_string())),
                    V::S(json_text(&record.spec)?),
                    V::ON(record.next_due.map(Timestamp::micros)),
                    V::OT(record.last_job.map(|id| id.to_string())),
                    V::N(now.micros()),
                ],
            )
            .await?;
        if added == 0 {
            return Err(taken(record.name.as_str()));
        }
        transaction.commit().await?;
        self.inner.shared.wake.wake();
        Ok(PolicyRecord {
            created: now,
            ..record.clone()
        })
    }

    async fn check_owner(&self, tenant: &TenantId, database: Option<DatabaseId>) -> Result<()> {
        if let Some(id) = database
            && self.database(id).await?.tenant != *tenant
        {
            return Err(LedgerError::NotFound {
                what: "database",
                name: id.to_string(),
            });
        }
        Ok(())
    }

    /// Changes a policy.
    ///
    /// # Errors
    ///
    /// When it is not there, when the new name is taken, or when the database is not the tenant's.
    pub async fn edit_policy(&self, id: PolicyId, change: PolicyChange) -> Result<PolicyRecord> {
        self.edit_policy_if(id, None, change).await
    }

    /// The same, if the record still is what `expected` says.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Changed`] when it is another by now; as [`Ledger::edit_policy`].
    pub async fn edit_policy_if(
        &self,
        id: PolicyId,
        expected: Option<&PolicyRecord>,
        change: PolicyChange,
    ) -> Result<PolicyRecord> {
        let before = self.policy(id).await?;
        if let Some(database) = change.database {
            self.check_owner(&before.tenant, database).await?;
        }
        let mut transaction = self.inner.store.begin("editing a policy").await?;
        let mut record = lock_policy(&mut transaction, id).await?;
        still(expected, &record, "policy")?;
        if let Some(name) = change.name
            && name != record.name
        {
            let values = [V::T(record.tenant.as_str()), V::S(name.to_string())];
            let sql = "SELECT id FROM policy WHERE tenant = $1 AND name = $2";
            if transaction.row(sql, &values).await?.is_some() {
                return Err(taken(name.as_str()));
            }
            record.name = name;
        }
        if let Some(database) = change.database {
            record.database = database;
        }
        if let Some(spec) = change.spec {
            record.spec = spec;
        }
        if let Some(next_due) = change.next_due {
            record.next_due = next_due;
        }
        transaction
            .execute(
                "UPDATE policy SET name = $2, database_id = $3, spec = $4, next_due = $5 WHERE id = $1",
                &[
                    V::S(id.to_string()),
                    V::T(record.name.as_str()),
                    V::OT(record.database.map(|id| id.to_string())),
                    V::S(json_text(&record.spec)?),
                    V::ON(record.next_due.map(Timestamp::micros)),
                ],
            )
            .await?;
        transaction.commit().await?;
        self.inner.shared.wake.wake();
        Ok(record)
    }

    /// The policies of a tenant, or of all, by tenant and name.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn policies(&self, tenant: Option<&TenantId>) -> Result<Vec<PolicyRecord>> {
        self.select_policies(
            "tenant = COALESCE($1, tenant) ORDER BY tenant, name",
            &[V::OT(tenant.map(ToString::to_string))],
        )
        .await
    }

    /// The policies of a database, by name.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn policies_of(&self, database: DatabaseId) -> Result<Vec<PolicyRecord>> {
        self.select_policies(
            "database_id = $1 ORDER BY name",
            &[V::S(database.to_string())],
        )
        .await
    }

    /// One policy.
    ///
    /// # Errors
    ///
    /// When there is none with this id.
    pub async fn policy(&self, id: PolicyId) -> Result<PolicyRecord> {
        let text = id.to_string();
        let found = self.select_policies("id = $1", &[V::T(&text)]).await?;
        found.into_iter().next().ok_or_else(|| no_policy(&text))
    }

    /// A tenant's policy by its name or its id.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub async fn find_policy(&self, tenant: &TenantId, name: &str) -> Result<PolicyRecord> {
        let found = self
            .select_policies(
                "tenant = $1 AND (name = $2 OR id = $2) ORDER BY CASE WHEN name = $2 THEN 0 ELSE 1 END LIMIT 1",
                &[V::T(tenant.as_str()), V::T(name)],
            )
            .await?;
        found.into_iter().next().ok_or_else(|| no_policy(name))
    }

    /// Removes a policy and the record of its due times; its jobs stay.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub async fn remove_policy(&self, id: PolicyId) -> Result<()> {
        self.remove_policy_if(id, None).await
    }

    /// The same, if the record still is what `expected` says.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Changed`] when it is another by now; as [`Ledger::remove_policy`].
    pub async fn remove_policy_if(
        &self,
        id: PolicyId,
        expected: Option<&PolicyRecord>,
    ) -> Result<()> {
        let mut transaction = self.inner.store.begin("removing a policy").await?;
        if expected.is_some() {
            let record = lock_policy(&mut transaction, id).await?;
            still(expected, &record, "policy")?;
        }
        let text = id.to_string();
        let removed = transaction
            .execute("DELETE FROM policy WHERE id = $1", &[V::T(&text)])
            .await?;
        if removed == 0 {
            return Err(no_policy(&text));
        }
        transaction
            .execute("DELETE FROM tick WHERE policy = $1", &[V::T(&text)])
            .await?;
        transaction.commit().await
    }

    /// Policies whose next due time has come by the ledger's clock, the longest overdue first.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn due(&self, limit: usize) -> Result<Vec<PolicyRecord>> {
        let now = self.now().await?;
        self.select_policies(
            "next_due IS NOT NULL AND next_due <= $1 ORDER BY next_due, id LIMIT $2",
            &[
                V::N(now.micros()),
                V::N(i64::try_from(limit).unwrap_or(i64::MAX)),
            ],
        )
        .await
    }

    /// The nearest next due time of all policies.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn next_due(&self) -> Result<Option<Timestamp>> {
        let row = self
            .inner
            .store
            .read_one(
                READING,
                "SELECT MIN(next_due) AS due FROM policy WHERE next_due IS NOT NULL",
                &[],
            )
            .await?;
        row.map_or(Ok(None), |row| {
            Fields::of(&row, READING).time_or_none("due")
        })
    }

    /// Sets a policy's next due time without deciding one.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub async fn set_next_due(&self, policy: PolicyId, next_due: Option<Timestamp>) -> Result<()> {
        let change = PolicyChange {
            next_due: Some(next_due),
            ..PolicyChange::default()
        };
        self.edit_policy(policy, change).await.map(drop)
    }

    /// Decides one due time: [`Ledger::tick_all`] of one.
    ///
    /// # Errors
    ///
    /// When the policy is not there, when the job cannot be submitted, or (as a conflict) when the
    /// leadership was lost.
    pub async fn tick(&self, tick: &Tick, leader: Option<&Leadership>) -> Result<TickResult> {
        let mut results = self.tick_all(vec![tick.clone()], leader).await;
        results.pop().expect("an answer for each due time")
    }

    /// Decides due times, each in one transaction with its job and the policy's next due time (rule 18); some share one
    /// transaction, and one that cannot be decided fails alone (rule 8). With `leader`, only while that leadership lasts. Of
    /// several due times of one policy at least the first is decided; the others may be told to come again (as busy).
    ///
    /// An answer for each, in their order: an error when the policy is not there, when the job cannot be submitted, or (as a
    /// conflict) when the leadership was lost.
    pub async fn tick_all(
        &self,
        ticks: Vec<Tick>,
        leader: Option<&Leadership>,
    ) -> Vec<Result<TickResult>> {
        let (mut results, mut batch) = (Vec::with_capacity(ticks.len()), Vec::new());
        for tick in ticks {
            match DueTick::check(tick) {
                Ok(due) => {
                    batch.push(due);
                    results.push(None);
                }
                Err(error) => results.push(Some(Err(error))),
            }
        }
        let (shared, leader) = (self.inner.shared.clone(), leader.cloned());
        let work: Work<DueTick, TickResult> = Arc::new(move |batch| {
            let (shared, leader) = (shared.clone(), leader.clone());
            Box::pin(async move { tick_batch(&shared, leader.as_ref(), batch).await })
        });
        let parts = batch.chunks(TICKS_PER_COMMIT).map(<[DueTick]>::to_vec);
        let decided = join_all(parts.map(|part| halving(&work, part))).await;
        let mut decided = decided.into_iter().flatten();
        results
            .into_iter()
            .map(|result| {
                result.unwrap_or_else(|| decided.next().expect("an answer for each due time"))
            })
            .collect()
    }

    /// The newest due times of a policy, newest first.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn ticks(&self, policy: PolicyId, limit: usize) -> Result<Vec<TickRecord>> {
        let rows = self
            .inner
            .store
            .read(
                READING,
                "SELECT due, outcome, decided FROM tick WHERE policy = $1 ORDER BY due DESC LIMIT $2",
                &[
                    V::S(policy.to_string()),
                    V::N(i64::try_from(limit).unwrap_or(i64::MAX)),
                ],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, READING);
                Ok(TickRecord {
                    policy,
                    due: fields.time("due")?,
                    outcome: fields.json("outcome")?,
                    decided: fields.time("decided")?,
                })
            })
            .collect()
    }

    /// Takes the lead or renews it; none while another holds it. A new leader has a new term.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn lead(
        &self,
        name: &str,
        holder: &str,
        duration: Duration,
    ) -> Result<Option<Leadership>> {
        const DOING: &str = "taking the lead";
        let mut transaction = self.inner.store.begin(DOING).await?;
        let now = transaction.now().await?;
        let row = transaction
            .row(
                "INSERT INTO leader (name, holder, term, until) VALUES ($1, $2, 1, $3)
                 ON CONFLICT (name) DO UPDATE SET
                    term = CASE WHEN leader.holder = excluded.holder AND leader.until > $4 THEN leader.term
                                ELSE leader.term + 1 END,
                    holder = excluded.holder, until = excluded.until
                 WHERE leader.holder = excluded.holder OR leader.until <= $4
                 RETURNING name, holder, term, until",
                &[
                    V::T(name),
                    V::T(holder),
                    V::N(now.plus(duration).micros()),
                    V::N(now.micros()),
                ],
            )
            .await?;
        let leadership = row.as_ref().map(leadership).transpose()?;
        transaction.commit().await?;
        if leadership.is_some() {
            reached(Point::LeadTaken);
        }
        Ok(leadership)
    }

    /// Gives the lead up at once, when it is still held.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn resign(&self, leadership: &Leadership) -> Result<()> {
        let mut transaction = self.inner.store.begin("giving the lead up").await?;
        transaction
            .execute(
                "UPDATE leader SET until = 0 WHERE name = $1 AND holder = $2 AND term = $3",
                &[
                    V::T(&leadership.name),
                    V::T(&leadership.holder),
                    V::N(leadership.term),
                ],
            )
            .await?;
        transaction.commit().await
    }

    /// Who leads, when the lease has not run out.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn leader(&self, name: &str) -> Result<Option<Leadership>> {
        let now = self.now().await?;
        let row = self
            .inner
            .store
            .read_one(
                "asking who leads",
                "SELECT name, holder, term, until FROM leader WHERE name = $1 AND until > $2",
                &[V::T(name), V::N(now.micros())],
            )
            .await?;
        row.as_ref().map(leadership).transpose()
    }

    async fn select_policies(
        &self,
        condition: &str,
        values: &[V<'_>],
    ) -> Result<Vec<PolicyRecord>> {
        let sql = format!("SELECT {POLICY} FROM policy WHERE {condition}");
        let rows = self.inner.store.read(READING, sql, values).await?;
        rows.iter().map(policy_record).collect()
    }
}

/// A due time on its way into the ledger.
#[derive(Clone, Debug)]
struct DueTick {
    policy: PolicyId,
    due: Timestamp,
    next_due: Option<Timestamp>,
    action: DueAction,
}

#[derive(Clone, Debug)]
enum DueAction {
    Submit(Box<Submission>),
    Record(TickOutcome),
}

impl DueTick {
    fn check(tick: Tick) -> Result<Self> {
        let action = match tick.action {
            TickAction::Submit(request) => {
                DueAction::Submit(Box::new(Submission::check(*request, None)?))
            }
            TickAction::Record(outcome) => DueAction::Record(outcome),
        };
        Ok(Self {
            policy: tick.policy,
            due: tick.due,
            next_due: tick.next_due,
            action,
        })
    }
}

/// Decides a batch of due times in one transaction.
async fn tick_batch(
    shared: &Shared,
    leader: Option<&Leadership>,
    batch: Vec<DueTick>,
) -> Result<Vec<Result<TickResult>>> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let mut transaction = shared.store.begin(TICKING).await?;
    let now = transaction.now().await?;
    if let Some(leader) = leader
        && let Err(error) = check_leader(&mut transaction, leader, now).await
    {
        return match error {
            LedgerError::Conflict { .. } => Ok(batch.iter().map(|_| Err(error.clone())).collect()),
            error => Err(error),
        };
    }
    let known = lock_policies(&mut transaction, &batch).await?;
    let mut outcomes = decided_before(&mut transaction, &batch).await?;
    let mut results: Vec<Option<Result<TickResult>>> = batch.iter().map(|_| None).collect();
    let (mut open, mut policies) = (Vec::new(), HashSet::new());
    for (nth, due) in batch.iter().enumerate() {
        results[nth] = if !known.contains(&due.policy) {
            Some(Err(no_policy(&due.policy.to_string())))
        } else if let Some(outcome) = outcomes.get(&(due.policy, due.due)) {
            Some(Ok(TickResult::AlreadyTicked(outcome.clone())))
        } else {
            if policies.insert(due.policy) {
                open.push(nth);
            }
            None
        };
    }
    let submissions: Vec<&Submission> = open
        .iter()
        .filter_map(|nth| match &batch[*nth].action {
            DueAction::Submit(submission) => Some(submission.as_ref()),
            DueAction::Record(_) => None,
        })
        .collect();
    let mut submitted = submit_in(&mut transaction, shared, now, &submissions)
        .await?
        .into_iter();
    let mut has_jobs = false;
    for nth in open {
        let due = &batch[nth];
        let outcome = match &due.action {
            DueAction::Record(outcome) => Ok(outcome.clone()),
            DueAction::Submit(_) => submitted
                .next()
                .expect("an answer for each submission")
                .map(|submitted| TickOutcome::Job { job: submitted.job }),
        };
        has_jobs |= matches!((&due.action, &outcome), (DueAction::Submit(_), Ok(_)));
        if let Ok(outcome) = &outcome {
            outcomes.insert((due.policy, due.due), outcome.clone());
        }
        results[nth] = Some(outcome.map(TickResult::Decided));
    }
    write_ticks(&mut transaction, now, &batch, &results).await?;
    transaction.commit().await?;
    if has_jobs {
        reached(Point::TickCommitted);
        shared.wake.wake();
    }
    // What was asked twice in this batch was decided by the first.
    Ok(batch
        .iter()
        .zip(results)
        .map(|(due, result)| {
            result.unwrap_or_else(|| match outcomes.get(&(due.policy, due.due)) {
                Some(outcome) => Ok(TickResult::AlreadyTicked(outcome.clone())),
                None => Err(LedgerError::Busy {
                    doing: TICKING,
                    what: "another due time of the policy was decided at the same moment"
                        .to_owned(),
                }),
            })
        })
        .collect())
}

/// Locks the policies of a batch in the order of their ids (rule 8); says which are there.
async fn lock_policies(
    transaction: &mut Transaction,
    batch: &[DueTick],
) -> Result<HashSet<PolicyId>> {
    let dialect = transaction.dialect;
    let ids: BTreeSet<PolicyId> = batch.iter().map(|due| due.policy).collect();
    let sql = format!(
        "SELECT id FROM policy WHERE id {} ORDER BY id {}",
        dialect.among(1),
        dialect.for_update()
    );
    let rows = transaction.rows(sql, &[V::S(json_text(&ids)?)]).await?;
    rows.iter()
        .map(|row| Fields::of(row, TICKING).parsed("id"))
        .collect()
}

/// What was decided of these due times before.
async fn decided_before(
    transaction: &mut Transaction,
    batch: &[DueTick],
) -> Result<HashMap<(PolicyId, Timestamp), TickOutcome>> {
    let keys: Vec<Value> = batch
        .iter()
        .map(|due| json!({"vpolicy": due.policy, "vdue": due.due.micros()}))
        .collect();
    let sql = format!(
        "SELECT policy, due, outcome FROM {} v JOIN tick ON policy = vpolicy AND due = vdue",
        transaction
            .dialect
            .rows(1, &[("vpolicy", Column::Text), ("vdue", Column::Number)])
    );
    let rows = transaction.rows(sql, &[V::S(json_text(&keys)?)]).await?;
    rows.iter()
        .map(|row| {
            let fields = Fields::of(row, TICKING);
            Ok((
                (fields.parsed("policy")?, fields.time("due")?),
                fields.json("outcome")?,
            ))
        })
        .collect()
}

/// Writes what was decided, and the next due times. One that was decided before moves on only where it stands still:
/// it would come up again and again.
async fn write_ticks(
    transaction: &mut Transaction,
    now: Timestamp,
    batch: &[DueTick],
    results: &[Option<Result<TickResult>>],
) -> Result<()> {
    let (mut decided, mut before) = (Vec::new(), Vec::new());
    for (due, result) in batch.iter().zip(results) {
        let Some(Ok(result)) = result else { continue };
        let mut row = json!({
            "vpolicy": due.policy,
            "vdue": due.due.micros(),
            "vnext": due.next_due.map(Timestamp::micros),
        });
        match result {
            TickResult::Decided(outcome) => {
                row["voutcome"] = json_text(outcome)?.into();
                if let TickOutcome::Job { job } = outcome {
                    row["vjob"] = json!(job);
                }
                decided.push(row);
            }
            TickResult::AlreadyTicked(_) => before.push(row),
        }
    }
    let source = transaction.dialect.rows(
        1,
        &[
            ("vpolicy", Column::Text),
            ("vdue", Column::Number),
            ("vnext", Column::Number),
            ("voutcome", Column::Text),
            ("vjob", Column::Text),
        ],
    );
    if !before.is_empty() {
        transaction
            .execute(
                format!("UPDATE policy SET next_due = vnext FROM {source} v WHERE id = vpolicy AND next_due = vdue"),
                &[V::S(json_text(&before)?)],
            )
            .await?;
    }
    if !decided.is_empty() {
        let rows = json_text(&decided)?;
        transaction
            .execute(
                format!(
                    "INSERT INTO tick (policy, due, outcome, decided) SELECT vpolicy, vdue, voutcome, $2 FROM {source} v"
                ),
                &[V::T(&rows), V::N(now.micros())],
            )
            .await?;
        transaction
            .execute(
                format!(
                    "UPDATE policy SET next_due = vnext, last_job = COALESCE(vjob, last_job) FROM {source} v WHERE id = vpolicy"
                ),
                &[V::T(&rows)],
            )
            .await?;
    }
    Ok(())
}

/// Refuses a former leader.
async fn check_leader(
    transaction: &mut Transaction,
    leader: &Leadership,
    now: Timestamp,
) -> Result<()> {
    let sql = format!(
        "SELECT term FROM leader WHERE name = $1 AND holder = $2 AND term = $3 AND until > $4 {}",
        transaction.dialect.for_share()
    );
    let values = [
        V::T(&leader.name),
        V::T(&leader.holder),
        V::N(leader.term),
        V::N(now.micros()),
    ];
    if transaction.row(sql, &values).await?.is_some() {
        Ok(())
    } else {
        Err(LedgerError::Conflict {
            what: format!("{} does not lead {} any more", leader.holder, leader.name),
            remedy: String::new(),
        })
    }
}

async fn lock_policy(transaction: &mut Transaction, id: PolicyId) -> Result<PolicyRecord> {
    let sql = format!(
        "SELECT {POLICY} FROM policy WHERE id = $1 {}",
        transaction.dialect.for_update()
    );
    let text = id.to_string();
    transaction
        .row(sql, &[V::T(&text)])
        .await?
        .as_ref()
        .map_or_else(|| Err(no_policy(&text)), policy_record)
}

fn no_policy(name: &str) -> LedgerError {
    LedgerError::NotFound {
        what: "policy",
        name: name.to_owned(),
    }
}

fn taken(name: &str) -> LedgerError {
    LedgerError::Exists {
        what: "policy",
        name: name.to_owned(),
    }
}

fn leadership(row: &AnyRow) -> Result<Leadership> {
    let fields = Fields::of(row, "taking the lead");
    Ok(Leadership {
        name: fields.text("name")?,
        holder: fields.text("holder")?,
        term: fields.number("term")?,
        until: fields.time("until")?,
    })
}

pub(crate) fn policy_record(row: &AnyRow) -> Result<PolicyRecord> {
    let fields = Fields::of(row, READING);
    let last_job: Option<JobId> = fields.parsed_or_none("last_job")?;
    Ok(PolicyRecord {
        id: fields.parsed("id")?,
        tenant: fields.parsed("tenant")?,
        name: fields.parsed("name")?,
        database: fields.parsed_or_none("database_id")?,
        spec: fields.json("spec")?,
        next_due: fields.time_or_none("next_due")?,
        last_job,
        created: fields.time("created")?,
    })
}
