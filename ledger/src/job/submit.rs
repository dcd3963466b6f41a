//! Submitting: a job is in the ledger, durably, before its submitter hears of it (P1). The queued row is
//! also what delivers it: there is no outbox beside it (rule 9).

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use fettler_fault_points::{Point, reached};
use fettler_model::{DatabaseId, JobId, JobRequest, JobTerms, Priority, TenantId, Timestamp};
use serde_json::{Value, json};
use tracing::{Instrument, Span};

use super::{line, plain, route};
use crate::{
    DatabaseTerms, Idempotency, Ledger, LedgerError, Result, Submitted, codes,
    dialect::{Column, Dialect},
    ledger::Shared,
    row::{Fields, json_text},
    store::{Transaction, V},
};

/// The longest keys, tags and arguments that are taken.
const MAX_KEY_BYTES: usize = 255;
const MAX_TAGS: usize = 32;
const MAX_TAG_BYTES: usize = 255;
const MAX_ARGUMENT_BYTES: usize = 1 << 20;
/// The longest time-out: a month.
const MAX_TIMEOUT_SECONDS: u64 = 31 * 24 * 3600;
/// How often a unique key is looked for whose job ends at the same moment.
const UNIQUE_TRIES: u32 = 5;

const DOING: &str = "submitting a job";

/// A job on its way into the ledger. The id is made before the batch, so that a batch which is tried
/// again submits the same job.
#[derive(Clone, Debug)]
pub(crate) struct Submission {
    pub(crate) id: JobId,
    pub(crate) request: JobRequest,
    pub(crate) idempotency: Option<Idempotency>,
    /// What the job asks of a worker beside its kind.
    line: String,
}

impl Ledger {
    /// Submits a job. When this returns, the job is kept, whatever happens (P1). With an idempotency key
    /// that was seen within seven days, the same job is given back (rule 12); with a `unique_key` that a
    /// queued or running job of the tenant has, that job.
    ///
    /// # Errors
    ///
    /// [`LedgerError::IdempotencyMismatch`] when the key came with another request; when the request
    /// cannot be stored or names a database that is not the tenant's.
    pub async fn submit(
        &self,
        mut request: JobRequest,
        idempotency: Option<Idempotency>,
    ) -> Result<Submitted> {
        let span = send_span(&request);
        // The attempts belong to the trace of whoever asks now, also where they repeat a job that another one asked for.
        request.terms.trace = span
            .in_scope(fettler_telemetry::trace_parent)
            .map(|parent| parent.to_string());
        let submission = Submission::check(request, idempotency)?;
        let id = submission.id;
        let submitted = self
            .inner
            .submits
            .call(submission)
            .instrument(span.clone())
            .await;
        let id = submitted.as_ref().map_or(id, |submitted| submitted.job);
        span.record("messaging.message.id", tracing::field::display(id));
        submitted
    }

    /// Submits many jobs. Each has an answer of its own: a bad one fails alone (rule 8).
    pub async fn submit_batch(
        &self,
        requests: Vec<(JobRequest, Option<Idempotency>)>,
    ) -> Vec<Result<Submitted>> {
        let calls = requests
            .into_iter()
            .map(|(request, idempotency)| async { self.submit(request, idempotency).await });
        futures::future::join_all(calls).await
    }
}

/// A submission in a trace, by OpenTelemetry's conventions for messaging: the attempts are its consumers.
fn send_span(request: &JobRequest) -> Span {
    tracing::info_span!(
            target: fettler_telemetry::TRACE,
            "send",
        otel.name = format!("send {}", request.kind),
        otel.kind = "producer",
        messaging.system = "fettler",
        messaging.operation.type = "send",
        messaging.operation.name = "submit",
        messaging.destination.name = %request.kind,
        messaging.message.id = tracing::field::Empty,
        fettler.tenant = %request.tenant,
    )
}

impl Submission {
    /// Refuses what no ledger can hold, so that both refuse the same.
    pub(crate) fn check(request: JobRequest, idempotency: Option<Idempotency>) -> Result<Self> {
        let refuse = |what: String, remedy: &str| {
            Err(LedgerError::Refused {
                what,
                remedy: remedy.to_owned(),
            })
        };
        let too_long = |name: &str, bytes: usize, most: usize| {
            refuse(
                format!("the {name} has {bytes} bytes, and {most} are the most"),
                "make it shorter",
            )
        };
        let arguments = json_text(&request.arguments)?;
        if arguments.len() > MAX_ARGUMENT_BYTES {
            return too_long("arguments", arguments.len(), MAX_ARGUMENT_BYTES);
        }
        if holds_nul(&request.arguments) {
            return refuse(
                "the arguments hold a text with a NUL character, which the ledger cannot keep"
                    .to_owned(),
                "take the character out",
            );
        }
        for key in [
            request.unique_key.as_deref(),
            idempotency
                .as_ref()
                .map(|idempotency| idempotency.key.as_str()),
        ]
        .into_iter()
        .flatten()
        {
            if key.len() > MAX_KEY_BYTES {
                return too_long("key", key.len(), MAX_KEY_BYTES);
            }
            if key.is_empty() || key.contains('\0') {
                return refuse(
                    "a key is empty or holds a NUL character".to_owned(),
                    "use another key",
                );
            }
        }
        if request.tags.len() > MAX_TAGS
            || request
                .tags
                .iter()
                .any(|tag| tag.len() > MAX_TAG_BYTES || tag.contains('\0'))
        {
            return refuse(
                format!(
                    "a job takes up to {MAX_TAGS} tags of up to {MAX_TAG_BYTES} bytes, without NUL characters"
                ),
                "use fewer or shorter tags",
            );
        }
        if let Some(window) = &request.terms.window
            && let Err(error) = window.clock()
        {
            return refuse(error.to_string(), "write the window as HH:MM-HH:MM");
        }
        if request
            .terms
            .timeout_seconds
            .is_some_and(|seconds| !(1..=MAX_TIMEOUT_SECONDS).contains(&seconds))
        {
            return refuse(
                format!("the timeout is not from 1 to {MAX_TIMEOUT_SECONDS} seconds"),
                "leave it out to let an attempt run as long as it takes",
            );
        }
        if request.max_tries == 0 || i32::try_from(request.max_tries).is_err() {
            return refuse(
                "a job needs at least one try".to_owned(),
                "ask for one or more",
            );
        }
        Ok(Self {
            id: JobId::new(),
            line: line(request.kind_version, ""),
            request,
            idempotency,
        })
    }
}

impl Submission {
    /// The same, with no higher priority than its tenant may have, in its database's window where it has none
    /// of its own, for the workers that reach it.
    fn under(
        &self,
        ceilings: &HashMap<TenantId, Priority>,
        owners: &HashMap<DatabaseId, Owner>,
    ) -> Cow<'_, Self> {
        let request = &self.request;
        let priority = ceilings
            .get(&request.tenant)
            .map_or(request.priority, |ceiling| request.priority.min(*ceiling));
        let window = request
            .database
            .and_then(|database| owners.get(&database)?.terms.window.as_ref())
            .filter(|_| request.terms.window.is_none());
        let route = request
            .database
            .and_then(|database| owners.get(&database))
            .map(|owner| route(&owner.terms.reach))
            .unwrap_or_default();
        if priority == request.priority && window.is_none() && route.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut submission = self.clone();
        submission.line = line(request.kind_version, &route);
        submission.request.priority = priority;
        if let Some(window) = window {
            submission.request.terms.window = Some(window.clone());
        }
        Cow::Owned(submission)
    }
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(members) => members
            .iter()
            .any(|(name, value)| name.contains('\0') || holds_nul(value)),
        _ => false,
    }
}

/// Submits a batch in one transaction.
pub(crate) async fn submit_all(
    shared: &Shared,
    batch: Vec<Submission>,
) -> Result<Vec<Result<Submitted>>> {
    let results = if shared.store.dialect == Dialect::Postgres && batch.iter().all(plain::is_plain)
    {
        plain::insert(shared, &batch).await?;
        let submitted = |submission: &Submission| {
            Ok(Submitted {
                job: submission.id,
                existing: false,
            })
        };
        batch.iter().map(submitted).collect()
    } else {
        let mut transaction = shared.store.begin(DOING).await?;
        let now = transaction.now().await?;
        let batch: Vec<&Submission> = batch.iter().collect();
        let results = submit_in(&mut transaction, shared, now, &batch).await?;
        transaction.commit().await?;
        results
    };
    reached(Point::SubmitCommitted);
    shared.wake.wake();
    Ok(results)
}

/// Submits within a transaction.
pub(crate) async fn submit_in(
    transaction: &mut Transaction,
    shared: &Shared,
    now: Timestamp,
    batch: &[&Submission],
) -> Result<Vec<Result<Submitted>>> {
    let owners = owners(transaction, batch).await?;
    let ceilings = ceilings(transaction, batch).await?;
    let bound: Vec<Cow<'_, Submission>> = batch
        .iter()
        .map(|one| one.under(&ceilings, &owners))
        .collect();
    let mut results = Vec::with_capacity(batch.len());
    let mut plain = Vec::new();
    for submission in &bound {
        let request = &submission.request;
        if let Some(database) = request.database
            && owners.get(&database).map(|owner| &owner.tenant) != Some(&request.tenant)
        {
            results.push(Err(LedgerError::NotFound {
                what: "database",
                name: database.to_string(),
            }));
        } else if submission.idempotency.is_none() && request.unique_key.is_none() {
            results.push(Ok(Submitted {
                job: submission.id,
                existing: false,
            }));
            plain.push(submission.as_ref());
        } else {
            results.push(submit_keyed(transaction, shared, now, submission).await?);
        }
    }
    insert(transaction, shared, now, &plain, "").await?;
    Ok(results)
}

/// The tenants of the batch that have a ceiling of priority (rule 16).
async fn ceilings(
    transaction: &mut Transaction,
    batch: &[&Submission],
) -> Result<HashMap<TenantId, Priority>> {
    let named: HashSet<&TenantId> = batch.iter().map(|one| &one.request.tenant).collect();
    let sql = format!(
        "SELECT id, ceiling FROM tenant WHERE id {} AND ceiling < {}",
        transaction.dialect.among(1),
        Priority::Highest.level()
    );
    let rows = transaction.rows(sql, &[V::S(json_text(&named)?)]).await?;
    rows.iter()
        .map(|row| {
            let fields = Fields::of(row, DOING);
            let ceiling = Priority::from_level(fields.number("ceiling")?);
            Ok((fields.parsed("id")?, ceiling))
        })
        .collect()
}

/// A database that a batch names.
struct Owner {
    tenant: TenantId,
    terms: DatabaseTerms,
}

/// Whose the databases are that the batch names (P6), and under which terms jobs about them run.
async fn owners(
    transaction: &mut Transaction,
    batch: &[&Submission],
) -> Result<HashMap<DatabaseId, Owner>> {
    let named: HashSet<DatabaseId> = batch
        .iter()
        .filter_map(|submission| submission.request.database)
        .collect();
    if named.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = format!(
        "SELECT id, tenant, terms FROM database_record WHERE id {} ORDER BY id {}",
        transaction.dialect.among(1),
        // Whoever changes the terms finds these jobs.
        transaction.dialect.for_share()
    );
    let rows = transaction.rows(sql, &[V::S(json_text(&named)?)]).await?;
    rows.iter()
        .map(|row| {
            let fields = Fields::of(row, DOING);
            let owner = Owner {
                tenant: fields.parsed("tenant")?,
                terms: fields.json("terms")?,
            };
            Ok((fields.parsed("id")?, owner))
        })
        .collect()
}

/// Submits a job that may be there already under its idempotency key or its unique key.
async fn submit_keyed(
    transaction: &mut Transaction,
    shared: &Shared,
    now: Timestamp,
    submission: &Submission,
) -> Result<Result<Submitted>> {
    let tenant = submission.request.tenant.as_str();
    if let Some(Idempotency { key, request_hash }) = &submission.idempotency {
        // Waits for another submitter of the same key, whose job is then found.
        let mine = transaction
            .execute(
                "INSERT INTO idempotency (tenant, name, request_hash, job, created) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (tenant, name) DO NOTHING",
                &[
                    V::T(tenant),
                    V::T(key),
                    V::B(request_hash),
                    V::S(submission.id.to_string()),
                    V::N(now.micros()),
                ],
            )
            .await?;
        if mine == 0 {
            let row = transaction
                .row(
                    "SELECT request_hash, job FROM idempotency WHERE tenant = $1 AND name = $2",
                    &[V::T(tenant), V::T(key)],
                )
                .await?
                .ok_or_else(|| LedgerError::Busy {
                    doing: DOING,
                    what: "the idempotency key was dropped at this moment".to_owned(),
                })?;
            let fields = Fields::of(&row, DOING);
            let job = fields.parsed("job")?;
            return Ok(if fields.bytes("request_hash")? == request_hash {
                Ok(Submitted {
                    job,
                    existing: true,
                })
            } else {
                Err(LedgerError::IdempotencyMismatch {
                    key: key.clone(),
                    job,
                })
            });
        }
    }
    let Some(unique) = &submission.request.unique_key else {
        insert(transaction, shared, now, &[submission], "").await?;
        return Ok(Ok(Submitted {
            job: submission.id,
            existing: false,
        }));
    };
    const UNLESS_TAKEN: &str =
        "ON CONFLICT (tenant, unique_key) WHERE unique_key IS NOT NULL DO NOTHING";
    for _ in 0..UNIQUE_TRIES {
        if insert(transaction, shared, now, &[submission], UNLESS_TAKEN).await? > 0 {
            return Ok(Ok(Submitted {
                job: submission.id,
                existing: false,
            }));
        }
        let taken = transaction
            .row(
                "SELECT id FROM job WHERE tenant = $1 AND unique_key = $2",
                &[V::T(tenant), V::T(unique)],
            )
            .await?;
        if let Some(row) = taken {
            let job: JobId = Fields::of(&row, DOING).parsed("id")?;
            if let Some(Idempotency { key, .. }) = &submission.idempotency {
                transaction
                    .execute(
                        "UPDATE idempotency SET job = $1 WHERE tenant = $2 AND name = $3",
                        &[V::S(job.to_string()), V::T(tenant), V::T(key)],
                    )
                    .await?;
            }
            return Ok(Ok(Submitted {
                job,
                existing: true,
            }));
        }
    }
    Err(LedgerError::Busy {
        doing: DOING,
        what: format!("jobs with the unique key {unique:?} come and go"),
    })
}

/// Inserts rows in one statement of a transaction.
async fn insert(
    transaction: &mut Transaction,
    shared: &Shared,
    now: Timestamp,
    submissions: &[&Submission],
    on_conflict: &str,
) -> Result<u64> {
    if submissions.is_empty() {
        return Ok(0);
    }
    let rows = rows_of(submissions.iter().copied(), Some(now))?;
    let sql = insert_sql(transaction.dialect, shared, "$2", "priority");
    let inserted = transaction
        .execute(
            format!("{sql} {on_conflict}"),
            &[V::S(json_text(&rows)?), V::N(now.micros())],
        )
        .await?;
    if inserted > 0 {
        let open = submissions
            .iter()
            .filter(|submission| submission.request.not_before.is_none_or(|at| at <= now))
            .map(|submission| submission.id);
        transaction.ready.extend(open);
    }
    Ok(inserted)
}

/// What is inserted of each job, but for what follows from the moment and the priority. Without `now`, none of them is for
/// later.
pub(super) fn rows_of<'s>(
    submissions: impl Iterator<Item = &'s Submission>,
    now: Option<Timestamp>,
) -> Result<Vec<Value>> {
    submissions
        .map(|Submission { id, request, line, .. }| {
            let due = request.not_before.filter(|at| now.is_some_and(|now| *at > now));
            Ok(json!({
                "id": id,
                "tenant": request.tenant,
                "kind": request.kind,
                "kind_version": request.kind_version.max(1),
                "line": line,
                "database_id": request.database,
                "arguments": json_text(&request.arguments)?,
                "exclusion": codes::exclusion(request.exclusion),
                "slot": codes::slot(request.slot),
                "priority": request.priority.level(),
                "due": due.map(Timestamp::micros),
                "deadline": request.deadline.map(Timestamp::micros),
                "max_tries": request.max_tries,
                "unique_key": request.unique_key,
                "retry_of": request.retry_of,
                "tags": if request.tags.is_empty() { None } else { Some(json_text(&request.tags)?) },
                "terms": if request.terms == JobTerms::default() { None } else { Some(json_text(&request.terms)?) },
            }))
        })
        .collect()
}

/// The statement that inserts what [`rows_of`] gives in parameter 1, where `now` and `priority` are expressions.
pub(super) fn insert_sql(dialect: Dialect, shared: &Shared, now: &str, priority: &str) -> String {
    let ageing = i64::try_from(shared.options.ageing.as_micros()).unwrap_or(i64::MAX / 8);
    let source = dialect.rows(
        1,
        &[
            ("id", Column::Text),
            ("tenant", Column::Text),
            ("kind", Column::Text),
            ("database_id", Column::Text),
            ("arguments", Column::Text),
            ("exclusion", Column::Number),
            ("slot", Column::Number),
            ("priority", Column::Number),
            ("due", Column::Number),
            ("deadline", Column::Number),
            ("max_tries", Column::Number),
            ("unique_key", Column::Text),
            ("retry_of", Column::Text),
            ("tags", Column::Text),
            ("terms", Column::Text),
            ("kind_version", Column::Number),
            ("line", Column::Text),
        ],
    );
    // The outer SELECT takes moment and priority as they were computed once for each row. WHERE keeps SQLite from reading ON
    // CONFLICT as a join's ON.
    format!(
        "INSERT INTO job (id, tenant, kind, kind_version, database_id, arguments, exclusion, slot, priority, rank, submitted,
                          due, deadline, max_tries, unique_key, retry_of, tags, lane, wait, terms, line, tries,
                          lost, died, isolated, state, token)
         SELECT id, tenant, kind, kind_version, database_id, arguments, exclusion, slot, vpriority,
                COALESCE(due, vnow) - {ageing} * vpriority, vnow,
                due, deadline, max_tries, unique_key, retry_of, tags,
                CASE WHEN due IS NULL THEN {open} ELSE {delayed} END,
                CASE WHEN due IS NULL THEN {none} ELSE {not_before} END, terms, line, 0, 0, 0, 0, 0, 0
         FROM (SELECT v.*, {now} AS vnow, {priority} AS vpriority FROM {source} v) s WHERE 1 = 1",
        open = codes::LANE_OPEN,
        delayed = codes::LANE_DELAYED,
        none = codes::WAIT_NONE,
        not_before = codes::WAIT_NOT_BEFORE,
    )
}
