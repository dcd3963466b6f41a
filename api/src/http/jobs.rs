//! Jobs: submitted, listed, looked at, cancelled and repeated.

use std::collections::HashMap;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use fettler_ledger::{
    AttemptRecord, CancelOutcome, Idempotency, JobFilter, JobRecord, LedgerError, LogLine,
    SealedId, Submitted,
};
use fettler_model::{
    DatabaseId, DatabaseUrl, JobId, JobKindName, JobRequest, JobState, JobTerms, Priority, Secret,
    SecretReference, TenantId, Timestamp,
};
use fettler_scheduler::{RequestOptions, UnusablePolicy, needs_database};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    App, Page,
    access::{Caller, Permission},
    databases,
    input::{self, Body, Parameters, RawBody},
    problem::{ProblemDocument, Refusal},
};

/// How many jobs a batch has at most.
pub(crate) const MAX_BATCH: usize = 1000;
/// How many tries a job may ask for.
const MAX_TRIES: u32 = 1000;
/// The longest key by which a job is unique, in characters.
const MAX_UNIQUE: usize = 255;
/// How many tags a job takes.
const MAX_TAGS: usize = 32;

/// A job that is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobSubmission {
    /// What is to be done: a name of `/api/v1/kinds`.
    pub kind: JobKindName,
    /// The database that it is about, by name or id.
    #[serde(default)]
    pub database: Option<String>,
    /// What the kind takes. A password in a URL is sealed, and the job carries a reference to it.
    #[serde(default)]
    pub arguments: Value,
    /// How urgent it is.
    #[serde(default)]
    pub priority: Priority,
    /// Not before this moment.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// Expired after this moment.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
    /// Dead after this many tries; the kind's own number when nothing is said.
    #[serde(default)]
    #[schemars(range(min = 1, max = MAX_TRIES))]
    pub max_tries: Option<u32>,
    /// An attempt that runs longer is stopped, and counts as failed.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub timeout_seconds: Option<u64>,
    /// At most one queued or running job of the tenant has this key: another one is not made.
    #[serde(default)]
    #[schemars(length(min = 1, max = MAX_UNIQUE))]
    pub unique: Option<String>,
    /// Free words.
    #[serde(default)]
    #[schemars(length(max = MAX_TAGS))]
    pub tags: Vec<String>,
}

impl JobSubmission {
    /// Refuses what the document of the API rules out.
    fn check(&self) -> Result<(), Refusal> {
        let refuse = |field: &str, what: String| Refusal::field(field, what, input::SEE);
        if self
            .max_tries
            .is_some_and(|tries| !(1..=MAX_TRIES).contains(&tries))
        {
            let what = format!("it is a number from 1 to {MAX_TRIES}");
            return Err(refuse("max_tries", what));
        }
        if self.timeout_seconds == Some(0) {
            return Err(refuse("timeout_seconds", "it is at least 1".to_owned()));
        }
        if self.tags.len() > MAX_TAGS {
            let what = format!("a job takes up to {MAX_TAGS} of them");
            return Err(refuse("tags", what));
        }
        input::length(self.unique.as_deref(), 1..=MAX_UNIQUE).map_err(|what| refuse("unique", what))
    }
}

/// A row of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BatchRow {
    /// As the header `Idempotency-Key` of a single job.
    #[serde(default)]
    #[schemars(length(min = 1, max = 255))]
    idempotency_key: Option<String>,
    /// The job.
    job: JobSubmission,
}

/// Many jobs at once.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Batch {
    /// The rows. Each is judged by itself: a bad one fails alone.
    #[schemars(with = "Vec<BatchRow>", length(min = 1, max = 1000))]
    rows: Vec<Value>,
}

/// A job that was accepted: it will end in a final state, whatever happens (P1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// The job.
    pub id: JobId,
    /// Whether it was there before: the same idempotency key, or a unique key that is taken.
    pub existing: bool,
}

/// What became of one row of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchResult {
    /// The status that a single submission would have had.
    pub status: u16,
    /// The job, where it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Accepted>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemDocument>,
}

/// What became of a batch, row by row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchAnswer {
    /// In the order of the rows.
    pub results: Vec<BatchResult>,
}

/// Which jobs are listed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobsQuery {
    /// Only this tenant's.
    tenant: Option<TenantId>,
    /// Only those in one of these states, separated by commas.
    #[schemars(regex(
        pattern = r"^(queued|running|succeeded|dead|cancelled|expired)(,(queued|running|succeeded|dead|cancelled|expired))*$"
    ))]
    state: Option<String>,
    /// Only those of this kind.
    kind: Option<JobKindName>,
    /// Only those about this database, by name or id.
    database: Option<String>,
    /// Only those with this tag.
    tag: Option<String>,
    /// Where the page begins: `next` of the page before.
    cursor: Option<JobId>,
    /// How many jobs the page has at most.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
}

/// Whose name is meant, or whose something new is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantQuery {
    /// The tenant; a token's own when it has one, otherwise `default`.
    pub(crate) tenant: Option<TenantId>,
}

/// Which lines of a log are read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogQuery {
    /// Only lines after this number: `next` of the page before.
    #[serde(default)]
    cursor: Option<u32>,
    /// How many lines the page has at most.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
}

/// The attempts of a job.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct AttemptList {
    /// Oldest first.
    pub attempts: Vec<AttemptRecord>,
}

/// Lines of the log that is kept with a job.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct LogPage {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// Give it as `cursor` to get what comes after.
    pub next: Option<u64>,
}

/// What a cancellation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CancelWord {
    /// It was queued, and is cancelled.
    Cancelled,
    /// It runs, and its attempt is asked to stop.
    Requested,
    /// It had ended before.
    AlreadyEnded,
}

/// The answer to a cancellation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelAnswer {
    /// The job.
    pub id: JobId,
    /// What was done.
    pub cancel: CancelWord,
    /// The state in which the job is now.
    pub state: JobState,
}

/// `POST /api/v1/jobs`.
pub(crate) async fn submit(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Parameters(query): Parameters<TenantQuery>,
    Body(submission): Body<JobSubmission>,
) -> Result<Response, Refusal> {
    let tenant = caller.acts_for(&app, query.tenant).await?;
    let key = input::idempotency_key(&headers)?;
    let prepared = prepare(&app, &caller, &tenant, submission, key, &mut HashMap::new()).await?;
    let result = app
        .ledger
        .submit(prepared.request.clone(), prepared.idempotency.clone())
        .await;
    let submitted = settle(&app, &tenant, prepared, result).await?;
    Ok(accepted(submitted))
}

/// `POST /api/v1/jobs/batch`.
pub(crate) async fn submit_batch(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<TenantQuery>,
    RawBody(batch): RawBody,
) -> Result<Json<BatchAnswer>, Refusal> {
    // A text that nobody can keep is its row's mistake, not the batch's.
    let batch: Batch = input::read_fields(batch)?;
    if batch.rows.is_empty() || batch.rows.len() > MAX_BATCH {
        return Err(Refusal::field(
            "rows",
            format!(
                "a batch has 1 to {MAX_BATCH} rows, and this one has {}",
                batch.rows.len()
            ),
            "send several batches",
        ));
    }
    let tenant = caller.acts_for(&app, query.tenant).await?;
    let mut known = HashMap::new();
    let mut rows = Vec::with_capacity(batch.rows.len());
    for row in batch.rows {
        rows.push(prepare_row(&app, &caller, &tenant, row, &mut known).await);
    }
    let requests = rows
        .iter()
        .flatten()
        .map(|prepared| (prepared.request.clone(), prepared.idempotency.clone()))
        .collect();
    let mut submitted = app.ledger.submit_batch(requests).await.into_iter();
    let mut results = Vec::with_capacity(rows.len());
    for row in rows {
        let outcome = match row {
            Ok(prepared) => {
                let result = submitted.next().unwrap_or(Err(LedgerError::Closed));
                settle(&app, &tenant, prepared, result).await
            }
            Err(refusal) => Err(refusal),
        };
        results.push(match outcome {
            Ok(submitted) => BatchResult {
                status: StatusCode::ACCEPTED.as_u16(),
                accepted: Some(Accepted {
                    id: submitted.job,
                    existing: submitted.existing,
                }),
                problem: None,
            },
            Err(refusal) => BatchResult {
                status: refusal.status.as_u16(),
                accepted: None,
                problem: Some(refusal.document()),
            },
        });
    }
    Ok(Json(BatchAnswer { results }))
}

async fn prepare_row(
    app: &App,
    caller: &Caller,
    tenant: &TenantId,
    row: Value,
    known: &mut HashMap<String, DatabaseId>,
) -> Result<Prepared, Refusal> {
    let row: BatchRow = input::read(row)?;
    prepare(app, caller, tenant, row.job, row.idempotency_key, known).await
}

fn accepted(submitted: Submitted) -> Response {
    let body = Accepted {
        id: submitted.job,
        existing: submitted.existing,
    };
    (
        StatusCode::ACCEPTED,
        [(header::LOCATION, format!("/api/v1/jobs/{}", submitted.job))],
        Json(body),
    )
        .into_response()
}

/// A submission that was looked at, with what was sealed for it.
struct Prepared {
    request: JobRequest,
    idempotency: Option<Idempotency>,
    sealed: Vec<SealedId>,
}

/// Looks at a submission: its kind and whether the caller may, what it names, its database, its arguments.
async fn prepare(
    app: &App,
    caller: &Caller,
    tenant: &TenantId,
    mut submission: JobSubmission,
    key: Option<String>,
    known: &mut HashMap<String, DatabaseId>,
) -> Result<Prepared, Refusal> {
    submission.check()?;
    let kind = submission.kind.clone();
    if let Err(error) = app.registry.get(kind.as_str()) {
        return Err(Refusal::field(
            "kind",
            error.to_string(),
            "/api/v1/kinds lists them",
        ));
    }
    caller.needs(Permission::of_kind(kind.as_str()))?;
    if caller.is_stranger() {
        bounded(app, tenant, "arguments", &submission.arguments).await?;
    }
    let database = match &submission.database {
        Some(name) => match known.get(name) {
            Some(id) => Some(*id),
            None => {
                let id = databases::named(app, tenant, "database", name).await?;
                known.insert(name.clone(), id);
                Some(id)
            }
        },
        None if needs_database(kind.as_str()) => {
            return Err(Refusal::field(
                "database",
                format!("a {kind} job needs a database, and none is named"),
                "/api/v1/databases lists them",
            ));
        }
        None => None,
    };
    let secrets = take_passwords(&mut submission.arguments, "arguments")?;
    // What is hashed holds no password: the hash is kept.
    let idempotency = key.map(|key| Idempotency {
        key,
        request_hash: request_hash(&submission),
    });
    let options = RequestOptions {
        database,
        priority: submission.priority,
        not_before: submission.not_before,
        unique_key: submission.unique,
        tags: submission.tags,
        terms: JobTerms {
            timeout_seconds: submission.timeout_seconds,
            ..JobTerms::default()
        },
    };
    let request = fettler_scheduler::request(
        &app.registry,
        tenant,
        kind.as_str(),
        submission.arguments,
        options,
    );
    let mut request = request.map_err(|error| match error {
        UnusablePolicy::Arguments(problem) => Refusal::field(
            "arguments",
            problem.what,
            format!("/api/v1/kinds/{kind} shows what it takes"),
        ),
        other => Refusal::field("kind", other.to_string(), "/api/v1/kinds lists them"),
    })?;
    request.deadline = submission.deadline;
    request.max_tries = submission.max_tries.unwrap_or(request.max_tries);
    let sealed = seal(app, tenant, &mut request.arguments, secrets).await?;
    Ok(Prepared {
        request,
        idempotency,
        sealed,
    })
}

fn request_hash(submission: &JobSubmission) -> [u8; 32] {
    let text = serde_json::to_vec(submission).expect("a submission is text, numbers and lists");
    *blake3::hash(&text).as_bytes()
}

/// Gives the ledger's answer; what was sealed for a job that was not made is of no use.
async fn settle(
    app: &App,
    tenant: &TenantId,
    prepared: Prepared,
    result: Result<Submitted, LedgerError>,
) -> Result<Submitted, Refusal> {
    if !matches!(
        &result,
        Ok(Submitted {
            existing: false,
            ..
        })
    ) {
        // After an outage nobody knows whether the job was made, and it may need them.
        let is_unknown = matches!(&result, Err(LedgerError::Unavailable { .. }));
        for id in prepared.sealed.into_iter().filter(|_| !is_unknown) {
            app.ledger.remove_sealed(tenant, id).await?;
        }
    }
    Ok(result?)
}

/// Refuses arguments that name what is not for this tenant (P6).
pub(crate) async fn bounded(
    app: &App,
    tenant: &TenantId,
    field: &str,
    arguments: &Value,
) -> Result<(), Refusal> {
    let bounds = app.surroundings.bounds(tenant)?;
    let own = app.surroundings.repository_place(tenant)?;
    bounds
        .arguments(app.surroundings.deny(), field, arguments, &own)
        .await?;
    Ok(())
}

/// A password that stood in a URL, and the object that is to hold a reference to it.
pub(crate) struct Taken {
    /// A JSON pointer to the object.
    object: String,
    secret: Secret,
}

/// Takes the passwords out of URLs (P9), to be sealed once all else is known to be right.
pub(crate) fn take_passwords(value: &mut Value, field: &str) -> Result<Vec<Taken>, Refusal> {
    let mut taken = Vec::new();
    take_from(value, field, "", &mut taken)?;
    Ok(taken)
}

fn take_from(
    value: &mut Value,
    field: &str,
    pointer: &str,
    taken: &mut Vec<Taken>,
) -> Result<(), Refusal> {
    match value {
        Value::Object(members) => {
            for name in ["to", "url"] {
                let Some(Value::String(text)) = members.get(name) else {
                    continue;
                };
                let at = format!("{field}.{name}");
                let (url, secret) = place(&at, text)?;
                members.insert(name.to_owned(), Value::String(url.as_str().to_owned()));
                let Some(secret) = secret else { continue };
                if members
                    .get("password")
                    .is_some_and(|value| !value.is_null())
                {
                    return Err(twice(&at));
                }
                members.remove("password");
                taken.push(Taken {
                    object: pointer.to_owned(),
                    secret,
                });
            }
            for (name, member) in &mut *members {
                let escaped = name.replace('~', "~0").replace('/', "~1");
                take_from(
                    member,
                    &format!("{field}.{name}"),
                    &format!("{pointer}/{escaped}"),
                    taken,
                )?;
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().enumerate().try_for_each(|(at, item)| {
            take_from(
                item,
                &format!("{field}.{at}"),
                &format!("{pointer}/{at}"),
                taken,
            )
        }),
        // Only this interface writes such references: whoever could give one could send the password that it
        // stands for to a server of his own.
        Value::String(text) if text.starts_with("sealed:") => Err(Refusal::field(
            field,
            "what is sealed cannot be referred to",
            "give the password in the URL, or refer to `env:NAME` or `file:/path`",
        )),
        _ => Ok(()),
    }
}

/// A password must not be given twice.
pub(crate) fn twice(field: &str) -> Refusal {
    Refusal::field(
        field,
        "the password is given twice, in the URL and as a reference",
        "leave one of them out",
    )
}

/// Reads the place of a database. A file's path starts at the root: it is read on other machines.
pub(crate) fn place(field: &str, text: &str) -> Result<(DatabaseUrl, Option<Secret>), Refusal> {
    let remedy = "write `postgres://user@host/database`, `redis://host`, `mongodb://host`, `clickhouse://host`, `elasticsearch://host`, or the absolute path of a SQLite file";
    let (url, secret) = DatabaseUrl::parse_with_password(text)
        .map_err(|error| Refusal::field(field, error.to_string(), remedy))?;
    if url.path().is_some_and(|path| !path.is_absolute()) {
        return Err(Refusal::field(
            field,
            "the path does not start at the root",
            remedy,
        ));
    }
    Ok((url, secret))
}

/// Seals passwords, and puts references in their places.
pub(crate) async fn seal(
    app: &App,
    tenant: &TenantId,
    arguments: &mut Value,
    taken: Vec<Taken>,
) -> Result<Vec<SealedId>, Refusal> {
    let mut sealed = Vec::with_capacity(taken.len());
    for one in taken {
        let id = app.surroundings.seal(tenant, &one.secret).await?;
        sealed.push(id);
        if let Some(object) = arguments.pointer_mut(&one.object) {
            object["password"] = Value::String(SecretReference::Sealed(id).to_string());
        }
    }
    Ok(sealed)
}

/// `GET /api/v1/jobs`.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<JobsQuery>,
) -> Result<Json<Page<JobRecord>>, Refusal> {
    let limit = input::limit(query.limit)?;
    let states: Vec<JobState> = input::words("state", query.state.as_deref())?;
    let tenant = caller.listed(&app, query.tenant.clone()).await?;
    let database = match &query.database {
        Some(name) => {
            let tenant = caller.acts_for(&app, query.tenant).await?;
            Some(databases::find(&app, &caller, &tenant, name).await?.id)
        }
        None => None,
    };
    let filter = JobFilter {
        tenant,
        states,
        kind: query.kind,
        database,
        tag: query.tag,
        before: query.cursor,
        // One more tells whether there is another page.
        limit: limit + 1,
    };
    let mut jobs = app.ledger.jobs(&filter).await?;
    // The ledger's own limit may leave no room for that one.
    let is_full = limit == input::MAX_PAGE && jobs.len() == limit;
    for job in &mut jobs {
        show_progress(&app, job);
    }
    let mut page = Page::of(jobs, limit, |job| job.id.to_string());
    if is_full {
        page.next = page.items.last().map(|job| job.id.to_string());
    }
    Ok(Json(page))
}

/// A job that runs in this process is further than the ledger knows.
pub(crate) fn show_progress(app: &App, job: &mut JobRecord) {
    if job.state == JobState::Running
        && let Some(live) = &app.live
        && let Some(progress) = live(job.id)
    {
        job.progress = Some(progress);
    }
}

/// The job that is meant, if it is the caller's to see.
pub(crate) async fn find(app: &App, caller: &Caller, text: &str) -> Result<JobRecord, Refusal> {
    let found = match text.parse::<JobId>() {
        Ok(id) => app.ledger.job(id).await,
        Err(_) => {
            app.ledger
                .find_job(caller.token.tenant.as_ref(), text)
                .await
        }
    };
    match found {
        Ok(mut job) if caller.sees(&job.tenant) => {
            show_progress(app, &mut job);
            Ok(job)
        }
        Ok(_) | Err(LedgerError::NotFound { .. }) => Err(Refusal::no_such("job", text)),
        Err(error) => Err(error.into()),
    }
}

/// `GET /api/v1/jobs/{job}`.
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Path(job): Path<String>,
) -> Result<Json<JobRecord>, Refusal> {
    find(&app, &caller, &job).await.map(Json)
}

/// `GET /api/v1/jobs/{job}/attempts`.
pub(crate) async fn attempts(
    State(app): State<App>,
    caller: Caller,
    Path(job): Path<String>,
) -> Result<Json<AttemptList>, Refusal> {
    let job = find(&app, &caller, &job).await?;
    let attempts = app.ledger.attempts(job.id).await?;
    Ok(Json(AttemptList { attempts }))
}

/// `GET /api/v1/jobs/{job}/logs`.
pub(crate) async fn logs(
    State(app): State<App>,
    caller: Caller,
    Path(job): Path<String>,
    Parameters(query): Parameters<LogQuery>,
) -> Result<Json<LogPage>, Refusal> {
    let limit = input::limit(query.limit)?;
    let job = find(&app, &caller, &job).await?;
    let after = u64::from(query.cursor.unwrap_or(0));
    // The ledger caps a job's log: there is at most one page more than is asked for.
    let mut lines = app.ledger.log_lines(job.id, after).await?;
    let is_more = lines.len() > limit;
    lines.truncate(limit);
    let next = lines.last().filter(|_| is_more).map(|line| line.number);
    Ok(Json(LogPage { lines, next }))
}

/// `POST /api/v1/jobs/{job}/cancel`.
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path(job): Path<String>,
) -> Result<Response, Refusal> {
    let job = find(&app, &caller, &job).await?;
    caller.needs(Permission::of_kind(job.kind.as_str()))?;
    let (status, cancel, state) = match app.ledger.request_cancel(job.id).await? {
        CancelOutcome::Cancelled => (StatusCode::OK, CancelWord::Cancelled, JobState::Cancelled),
        CancelOutcome::Requested => (
            StatusCode::ACCEPTED,
            CancelWord::Requested,
            JobState::Running,
        ),
        CancelOutcome::AlreadyEnded(state) => (StatusCode::OK, CancelWord::AlreadyEnded, state),
    };
    let answer = CancelAnswer {
        id: job.id,
        cancel,
        state,
    };
    Ok((status, Json(answer)).into_response())
}

/// `POST /api/v1/jobs/{job}/retry`.
pub(crate) async fn retry(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Path(job): Path<String>,
) -> Result<Response, Refusal> {
    let job = find(&app, &caller, &job).await?;
    caller.needs(Permission::of_kind(job.kind.as_str()))?;
    let idempotency = input::idempotency_key(&headers)?.map(|key| Idempotency {
        key,
        request_hash: *blake3::hash(format!("retry {}", job.id).as_bytes()).as_bytes(),
    });
    let submitted = app.ledger.retry_once(job.id, idempotency).await?;
    Ok(accepted(submitted))
}

impl Permission {
    /// The permission that lets a caller through to a route where the kind of the job decides further.
    pub(crate) const ANY_JOB: Self = Self::Run;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn p9_a_password_in_a_url_leaves_the_arguments() {
        let mut arguments = json!({
            "to": "postgres://ann:s3cret@db/app",
            "sandbox": {"kind": "server", "url": "postgres://bob:other@proofs/x"},
        });
        let taken = take_passwords(&mut arguments, "arguments").unwrap();
        let places: Vec<&str> = taken.iter().map(|one| one.object.as_str()).collect();
        assert_eq!(places, ["", "/sandbox"]);
        assert_eq!(taken[0].secret.expose(), "s3cret");
        let text = arguments.to_string();
        assert!(
            !text.contains("s3cret") && !text.contains("other"),
            "{text}"
        );
        let mut arguments = json!({"password": "sealed:0198a1b2-c3d4-7000-8000-000000000001"});
        assert!(take_passwords(&mut arguments, "arguments").is_err());
    }

    #[test]
    fn a_password_that_is_given_twice_is_refused() {
        let mut arguments = json!({"to": "postgres://ann:s3cret@db/app", "password": "env:X"});
        let refusal = take_passwords(&mut arguments, "arguments").err().unwrap();
        assert_eq!(refusal.document().errors[0].field, "arguments.to");
        let mut arguments = json!({"to": "shop.sqlite"});
        let refusal = take_passwords(&mut arguments, "arguments").err().unwrap();
        assert_eq!(refusal.document().errors[0].field, "arguments.to");
    }
}
