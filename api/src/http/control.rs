//! What an operator does to many jobs at once, and to their order: pauses, limits, priorities, cancelling and replaying by
//! filter. A token of one tenant sees and sets what is about its own tenant only (P6).

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use fettler_ledger::{BulkCancel, BulkReplay, JobFilter, JobRecord, LimitRecord, PauseRecord};
use fettler_model::{JobId, JobKindName, JobState, Priority, Scope, TenantId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App,
    access::{Caller, Permission},
    databases,
    input::{self, Body, Parameters},
    jobs,
    problem::Refusal,
};

/// The longest word about a pause that is taken, in characters.
const MAX_REASON: usize = 500;
/// The most that a limit may be.
const MOST: u32 = 1_000_000;

/// What is to be paused.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseInput {
    /// `all`, `tenant/NAME`, `database/ID`, `policy/ID` or `kind/NAME`.
    pub scope: Scope,
    /// A word for whoever wonders.
    #[serde(default)]
    #[schemars(length(max = MAX_REASON))]
    pub because: Option<String>,
}

/// What is to go on.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeInput {
    /// As it was paused, such as `tenant/acme`.
    pub scope: Scope,
}

/// What goes on.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ResumeAnswer {
    /// Which jobs.
    pub resumed: Scope,
    /// How many of them may start now.
    pub woken: u64,
}

/// What is to be limited.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitInput {
    /// `tenant/NAME`, `database/ID`, `server/HOST:PORT`, `kind/NAME`, `class/long` or `class/short`.
    pub scope: Scope,
    /// So many of its jobs run at once.
    #[schemars(range(min = 1, max = MOST))]
    pub most: u32,
}

/// Which one is meant.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScopeQuery {
    /// As it was set, such as `tenant/acme`.
    scope: Scope,
}

/// What is paused.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct PauseList {
    /// The pauses that hold.
    pub pauses: Vec<PauseRecord>,
}

/// What is limited.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct LimitList {
    /// The limits that hold.
    pub limits: Vec<LimitRecord>,
}

/// A new priority.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PriorityInput {
    /// Up to the ceiling of the job's tenant.
    pub priority: Priority,
}

/// Many jobs.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Matching {
    /// Only this tenant's.
    pub tenant: Option<TenantId>,
    /// Only those in one of these states.
    pub states: Vec<JobState>,
    /// Only those of this kind.
    pub kind: Option<JobKindName>,
    /// Only those about this database, by name or id.
    pub database: Option<String>,
    /// Only those with this tag.
    pub tag: Option<String>,
    /// Go on behind this job: `next` of the answer before.
    pub after: Option<JobId>,
    /// Only counts them.
    pub dry_run: bool,
}

/// A scope of all tenants belongs to the operators of the fleet; one of a tenant to it.
async fn allowed(app: &App, caller: &Caller, scope: &Scope) -> Result<(), Refusal> {
    let owner = match scope {
        Scope::All | Scope::Server(_) | Scope::Kind(_) | Scope::Class(_) => {
            return caller.needs(Permission::ConfigureFleet);
        }
        Scope::Tenant(tenant) => app.ledger.tenant(tenant).await?.id,
        Scope::Database(id) => app.ledger.database(*id).await?.tenant,
        Scope::Policy(id) => app.ledger.policy(*id).await?.tenant,
    };
    if caller.sees(&owner) {
        Ok(())
    } else {
        let (sort, name) = match scope {
            Scope::Tenant(tenant) => ("tenant", tenant.to_string()),
            Scope::Policy(id) => ("policy", id.to_string()),
            other => ("database", other.to_string().replacen("database/", "", 1)),
        };
        Err(Refusal::no_such(sort, name))
    }
}

/// Whether a list shows this scope to the caller.
async fn shown(app: &App, caller: &Caller, scope: &Scope) -> Result<bool, Refusal> {
    if !caller.is_stranger() {
        return Ok(true);
    }
    Ok(match scope {
        Scope::Tenant(tenant) => caller.sees(tenant),
        Scope::Database(id) => match app.ledger.database(*id).await {
            Ok(database) => caller.sees(&database.tenant),
            // It was removed meanwhile.
            Err(fettler_ledger::LedgerError::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        },
        Scope::Policy(id) => match app.ledger.policy(*id).await {
            Ok(policy) => caller.sees(&policy.tenant),
            Err(fettler_ledger::LedgerError::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        },
        Scope::All | Scope::Server(_) | Scope::Kind(_) | Scope::Class(_) => false,
    })
}

/// `GET /api/v1/pauses`.
pub(crate) async fn pauses(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<PauseList>, Refusal> {
    let mut pauses = Vec::new();
    for pause in app.ledger.pauses().await? {
        if shown(&app, &caller, &pause.scope).await? {
            pauses.push(pause);
        }
    }
    Ok(Json(PauseList { pauses }))
}

/// `POST /api/v1/pauses`.
pub(crate) async fn pause(
    State(app): State<App>,
    caller: Caller,
    Body(input): Body<PauseInput>,
) -> Result<Json<PauseRecord>, Refusal> {
    input::length(input.because.as_deref(), 0..=MAX_REASON)
        .map_err(|what| Refusal::field("because", what, input::SEE))?;
    allowed(&app, &caller, &input.scope).await?;
    let paused = app
        .ledger
        .pause(&input.scope, input.because.as_deref())
        .await?;
    Ok(Json(paused))
}

/// `POST /api/v1/pauses/resume`.
pub(crate) async fn resume(
    State(app): State<App>,
    caller: Caller,
    Body(input): Body<ResumeInput>,
) -> Result<Json<ResumeAnswer>, Refusal> {
    allowed(&app, &caller, &input.scope).await?;
    let woken = app.ledger.resume(&input.scope).await?;
    Ok(Json(ResumeAnswer {
        resumed: input.scope,
        woken,
    }))
}

/// `GET /api/v1/limits`.
pub(crate) async fn limits(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<LimitList>, Refusal> {
    let mut limits = Vec::new();
    for limit in app.ledger.limits().await? {
        if shown(&app, &caller, &limit.scope).await? {
            limits.push(limit);
        }
    }
    Ok(Json(LimitList { limits }))
}

/// `PUT /api/v1/limits`. A tenant's limit is the operator's word, not the tenant's own.
pub(crate) async fn set_limit(
    State(app): State<App>,
    caller: Caller,
    Body(input): Body<LimitInput>,
) -> Result<Json<LimitRecord>, Refusal> {
    if !(1..=MOST).contains(&input.most) {
        let what = format!("it is a number from 1 to {MOST}");
        return Err(Refusal::field("most", what, input::SEE));
    }
    bounded(&app, &caller, &input.scope).await?;
    let set = app
        .ledger
        .set_limit(&input.scope, u64::from(input.most))
        .await?;
    Ok(Json(set))
}

/// `DELETE /api/v1/limits`.
pub(crate) async fn remove_limit(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<ScopeQuery>,
) -> Result<StatusCode, Refusal> {
    bounded(&app, &caller, &query.scope).await?;
    app.ledger.remove_limit(&query.scope).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A tenant limits its own databases; how much of the fleet it has itself is for the operator to say.
async fn bounded(app: &App, caller: &Caller, scope: &Scope) -> Result<(), Refusal> {
    allowed(app, caller, scope).await?;
    if matches!(scope, Scope::Tenant(_)) {
        caller.needs(Permission::ConfigureFleet)?;
    }
    Ok(())
}

/// `POST /api/v1/jobs/{job}/priority`.
pub(crate) async fn priority(
    State(app): State<App>,
    caller: Caller,
    Path(job): Path<String>,
    Body(input): Body<PriorityInput>,
) -> Result<Json<JobRecord>, Refusal> {
    let job = jobs::find(&app, &caller, &job).await?;
    caller.needs(Permission::of_kind(job.kind.as_str()))?;
    let changed = app.ledger.set_priority(job.id, input.priority).await?;
    Ok(Json(changed))
}

/// The filter, of what the caller may see and do: jobs of any kind only for who may do all of them.
async fn filter(app: &App, caller: &Caller, matching: Matching) -> Result<JobFilter, Refusal> {
    caller.needs(
        matching
            .kind
            .as_ref()
            .map_or(Permission::Configure, |kind| {
                Permission::of_kind(kind.as_str())
            }),
    )?;
    let tenant = caller.listed(app, matching.tenant.clone()).await?;
    let database = match &matching.database {
        Some(name) => {
            let tenant = caller.acts_for(app, matching.tenant).await?;
            Some(databases::named(app, &tenant, "database", name).await?)
        }
        None => None,
    };
    Ok(JobFilter {
        tenant,
        states: matching.states,
        kind: matching.kind,
        database,
        tag: matching.tag,
        before: None,
        limit: 0,
    })
}

/// `POST /api/v1/jobs/cancel`.
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Body(matching): Body<Matching>,
) -> Result<Json<BulkCancel>, Refusal> {
    let (after, dry_run) = (matching.after, matching.dry_run);
    let filter = filter(&app, &caller, matching).await?;
    Ok(Json(
        app.ledger.cancel_matching(&filter, after, dry_run).await?,
    ))
}

/// `POST /api/v1/jobs/replay`.
pub(crate) async fn replay(
    State(app): State<App>,
    caller: Caller,
    Body(matching): Body<Matching>,
) -> Result<Json<BulkReplay>, Refusal> {
    let (after, dry_run) = (matching.after, matching.dry_run);
    let filter = filter(&app, &caller, matching).await?;
    Ok(Json(
        app.ledger.replay_matching(&filter, after, dry_run).await?,
    ))
}
