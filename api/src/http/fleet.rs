//! What belongs to no tenant: the interface itself, the kinds of jobs, the workers, and figures for whoever
//! watches over the fleet.

use std::{fmt::Write as _, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use fettler_jobs::DynKind;
use fettler_ledger::{LastProof, SilenceKind, WorkerRecord};
use fettler_model::{ExclusionClass, JobKindName, JobState, Role, SlotClass, TenantId, TokenName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    App,
    access::{Caller, GRANTS, Permission},
    problem::Refusal,
};

/// The media type of Prometheus's text format.
pub(crate) const METRICS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Who the bearer of a token is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WhoAmI {
    /// The token's name.
    pub name: TokenName,
    /// Whose things it sees; none sees all.
    pub tenant: Option<TenantId>,
    /// Its role.
    pub role: Role,
    /// What it may do.
    pub permissions: Vec<String>,
    /// The version of Fettler that answers.
    pub version: String,
}

/// A kind of job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KindDocument {
    /// Its name.
    pub kind: JobKindName,
    /// Rises when its arguments change.
    pub version: u32,
    /// Which slot of a worker it takes.
    pub slot: SlotClass,
    /// What may run beside it on its database.
    pub exclusion: ExclusionClass,
    /// How often it is tried before it is dead.
    pub max_tries: u32,
    /// The permission that it needs.
    pub permission: String,
    /// The JSON schema of its arguments.
    pub arguments: Value,
}

/// The kinds of jobs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KindList {
    /// By name.
    pub kinds: Vec<KindDocument>,
}

/// The workers of the fleet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WorkerList {
    /// By id; those that vanished too, until they are forgotten.
    pub workers: Vec<WorkerRecord>,
    /// How many of them are alive.
    pub alive: usize,
}

/// Whether the process lives.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Alive {
    /// Always `ok`.
    status: String,
    /// The version of Fettler that answers.
    version: String,
}

fn document(kind: &dyn DynKind) -> KindDocument {
    let name = kind.name();
    let permission = Permission::of_kind(name.as_str());
    KindDocument {
        permission: permission.grant().map_or("", |grant| grant.name).to_owned(),
        kind: name,
        version: kind.version(),
        slot: kind.slot(),
        exclusion: kind.exclusion(),
        max_tries: kind.max_tries(),
        arguments: kind.argument_schema(),
    }
}

/// `GET /api/v1/kinds`.
pub(crate) async fn kinds(State(app): State<App>) -> Json<KindList> {
    let kinds = app.registry.iter().map(|kind| document(&**kind)).collect();
    Json(KindList { kinds })
}

/// `GET /api/v1/kinds/{kind}`.
pub(crate) async fn kind(
    State(app): State<App>,
    Path(kind): Path<String>,
) -> Result<Json<KindDocument>, Refusal> {
    app.registry
        .get(&kind)
        .map(|kind| Json(document(&**kind)))
        .map_err(|_| Refusal::no_such("job kind", kind))
}

/// `GET /api/v1/workers`.
pub(crate) async fn workers(State(app): State<App>) -> Result<Json<WorkerList>, Refusal> {
    let now = app.ledger.now().await?;
    let workers = app.ledger.workers().await?;
    let alive = workers
        .iter()
        .filter(|worker| worker.alive_until > now)
        .count();
    Ok(Json(WorkerList { workers, alive }))
}

/// `GET /api/v1/whoami`.
pub(crate) async fn who_am_i(caller: Caller) -> Json<WhoAmI> {
    let token = &caller.token;
    Json(WhoAmI {
        name: token.name.clone(),
        tenant: token.tenant.clone(),
        role: token.role,
        permissions: GRANTS
            .iter()
            .filter(|grant| caller.may(grant.permission))
            .map(|grant| grant.name.to_owned())
            .collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

fn alive() -> Alive {
    Alive {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// `GET /healthz`: never depends on work, nor on the ledger: a process that cannot reach it is not to be
/// restarted for that.
pub(crate) async fn healthz() -> Json<Alive> {
    Json(alive())
}

/// `GET /readyz`: whether requests can be answered.
pub(crate) async fn readyz(State(app): State<App>) -> Result<Json<Alive>, Refusal> {
    app.ledger.newest_event().await?;
    Ok(Json(alive()))
}

/// `GET /api/openapi.json`.
pub(crate) async fn openapi(State(app): State<App>) -> ([(HeaderName, &'static str); 1], Bytes) {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, app.document.clone())
}

/// `GET /metrics`.
pub(crate) async fn metrics(State(app): State<App>) -> Result<Response, Refusal> {
    let now = app.ledger.now().await?;
    let counts = app.ledger.job_counts().await?;
    let workers = app.ledger.workers().await?;
    let mut text = String::new();
    gauge(
        &mut text,
        "fettler_jobs",
        "Jobs that have not ended, by kind and state.",
    );
    for count in &counts {
        // Kinds are names: nothing in them needs an escape.
        sample(
            &mut text,
            "fettler_jobs",
            &count.kind,
            count.state,
            count.jobs as f64,
        );
    }
    let oldest = "fettler_job_oldest_seconds";
    gauge(
        &mut text,
        oldest,
        "Age of the oldest job that waits, by kind.",
    );
    for count in counts
        .iter()
        .filter(|count| count.state == JobState::Queued)
    {
        let age = now.since(count.oldest).as_secs_f64();
        sample(&mut text, oldest, &count.kind, count.state, age);
    }
    gauge(
        &mut text,
        "fettler_jobs_waiting",
        "Jobs that wait, by tenant and reason.",
    );
    for count in app.ledger.wait_counts().await? {
        line(
            &mut text,
            format_args!(
                "fettler_jobs_waiting{{tenant=\"{}\",reason=\"{}\"}} {}",
                count.tenant, count.reason, count.jobs
            ),
        );
    }
    let proofs = app.ledger.last_proofs().await?;
    gauge(
        &mut text,
        "fettler_backup_age_seconds",
        "How long ago the newest backup of a database was complete.",
    );
    for last in &proofs {
        of_database(
            &mut text,
            "fettler_backup_age_seconds",
            last,
            now.since(last.backed_up),
        );
    }
    gauge(
        &mut text,
        "fettler_proof_age_seconds",
        "How long ago a backup of a database was last proven; missing where none ever was.",
    );
    for last in &proofs {
        if let Some(proven) = last.proven {
            of_database(
                &mut text,
                "fettler_proof_age_seconds",
                last,
                now.since(proven),
            );
        }
    }
    gauge(
        &mut text,
        "fettler_silences",
        "What should have been heard of and was not, by kind.",
    );
    for kind in SilenceKind::ALL {
        let silent = app.ledger.silences(kind).await?.len();
        line(
            &mut text,
            format_args!("fettler_silences{{kind=\"{}\"}} {silent}", kind.as_str()),
        );
    }
    gauge(&mut text, "fettler_workers", "Workers that are alive.");
    let alive = workers
        .iter()
        .filter(|worker| worker.alive_until > now)
        .count();
    line(&mut text, format_args!("fettler_workers {alive}"));
    gauge(
        &mut text,
        "fettler_event_streams",
        "Streams of events that this process serves.",
    );
    let streams = app.options.max_streams - app.streams.available_permits();
    line(&mut text, format_args!("fettler_event_streams {streams}"));
    if let Some(counted) = &app.counted {
        text.push_str(&counted.render());
    }
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, METRICS_TEXT)], text).into_response())
}

fn gauge(text: &mut String, name: &str, help: &str) {
    line(
        text,
        format_args!("# HELP {name} {help}\n# TYPE {name} gauge"),
    );
}

fn of_database(text: &mut String, name: &str, last: &LastProof, age: Duration) {
    line(
        text,
        format_args!(
            "{name}{{tenant=\"{}\",database=\"{}\"}} {}",
            last.tenant,
            last.database,
            age.as_secs_f64()
        ),
    );
}

fn sample(text: &mut String, name: &str, kind: &JobKindName, state: JobState, value: f64) {
    line(
        text,
        format_args!("{name}{{kind=\"{kind}\",state=\"{state}\"}} {value}"),
    );
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(text, "{what}").expect("writing to a string does not fail");
}

/// An example for the document.
pub(crate) fn alive_example() -> Value {
    json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")})
}
