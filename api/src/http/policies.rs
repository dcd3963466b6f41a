//! Policies: what is done by itself, and when.

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use fettler_ledger::{LedgerError, PolicyChange, PolicyRecord, TickRecord};
use fettler_model::{DatabaseId, PolicyId, PolicyName, PolicySpec, TenantId, Timestamp};
use fettler_scheduler::{InvalidPolicy, PolicyPlan, UnusablePolicy, check_policy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App, Page,
    access::{Caller, Permission},
    databases::{NamedQuery, given, named, named_cursor},
    input::{self, Body, Parameters},
    jobs::{TenantQuery, bounded, seal, take_passwords},
    problem::Refusal,
};

/// How many due times are told, of those that come and of those that were.
const TOLD_TIMES: usize = 10;
/// How often a change is tried again whose record changed in a way that its changer does not see.
const CHANGE_TRIES: u32 = 5;

/// A policy that is to be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PolicyInput {
    /// What to call it: 1 to 63 lower-case letters, digits, `-`, `_` or `.`.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    pub name: PolicyName,
    /// The database that it is about, by name or id.
    #[serde(default)]
    pub database: Option<String>,
    /// What it says.
    pub spec: PolicySpec,
}

/// A change to a policy: what is not given stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PolicyPatch {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    pub name: Option<PolicyName>,
    /// Another database, by name or id; null for none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "given"
    )]
    #[schemars(with = "Option<String>")]
    pub database: Option<Option<String>>,
    /// What it says from now on, all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<PolicySpec>,
}

/// A policy, and when it is due.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyDocument {
    /// The policy.
    pub policy: PolicyRecord,
    /// The due times that come.
    pub upcoming: Vec<Timestamp>,
    /// The last due times, and what became of each.
    pub ticks: Vec<TickRecord>,
}

/// `GET /api/v1/policies`.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<NamedQuery>,
) -> Result<Json<Page<PolicyRecord>>, Refusal> {
    let limit = input::limit(query.limit)?;
    let after = named_cursor(query.cursor.as_deref())?;
    let tenant = caller.listed(&app, query.tenant).await?;
    let page = app
        .ledger
        .policies_page(tenant.as_ref(), after.as_ref(), limit + 1);
    Ok(Json(Page::of(page.await?, limit, |policy| {
        format!("{}/{}", policy.tenant, policy.name)
    })))
}

/// The policy of this name or id, if it is the caller's to see.
async fn find(
    app: &App,
    caller: &Caller,
    tenant: &TenantId,
    name: &str,
) -> Result<PolicyRecord, Refusal> {
    let found = match name.parse::<PolicyId>() {
        Ok(id) => app.ledger.policy(id).await,
        Err(_) => app.ledger.find_policy(tenant, name).await,
    };
    match found {
        Ok(policy) if caller.sees(&policy.tenant) => Ok(policy),
        Ok(_) | Err(LedgerError::NotFound { .. }) => Err(Refusal::no_such("policy", name)),
        Err(error) => Err(error.into()),
    }
}

/// What a changer has seen: not what the scheduler writes.
fn etag(policy: &PolicyRecord) -> String {
    input::etag(&PolicyRecord {
        next_due: None,
        last_job: None,
        ..policy.clone()
    })
}

async fn told(app: &App, status: StatusCode, policy: PolicyRecord) -> Result<Response, Refusal> {
    let upcoming = match PolicyPlan::read(&policy.spec) {
        Ok(plan) if !policy.spec.paused => {
            let now = app.ledger.now().await?;
            plan.upcoming(now).take(TOLD_TIMES).collect()
        }
        // It was checked when it was made: another version of Fettler reads it otherwise.
        _ => Vec::new(),
    };
    let ticks = app.ledger.ticks(policy.id, TOLD_TIMES).await?;
    let etag = etag(&policy);
    let document = PolicyDocument {
        policy,
        upcoming,
        ticks,
    };
    Ok((status, [(header::ETAG, etag)], Json(document)).into_response())
}

/// `GET /api/v1/policies/{policy}`.
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Path(policy): Path<String>,
    Parameters(query): Parameters<TenantQuery>,
) -> Result<Response, Refusal> {
    let tenant = caller.acts_for(&app, query.tenant).await?;
    let policy = find(&app, &caller, &tenant, &policy).await?;
    told(&app, StatusCode::OK, policy).await
}

/// Looks at what a policy says: whether it could ever run, whether the caller may, and what it names.
async fn checked(
    app: &App,
    caller: &Caller,
    tenant: &TenantId,
    spec: &PolicySpec,
    database: Option<DatabaseId>,
) -> Result<PolicyPlan, Refusal> {
    caller.needs(Permission::of_kind(spec.kind.as_str()))?;
    if caller.is_stranger() {
        bounded(app, tenant, "spec.arguments", &spec.arguments).await?;
    }
    check_policy(&app.registry, spec, database.is_some()).map_err(|error| {
        let what = error.to_string();
        let (field, remedy) = match &error {
            UnusablePolicy::Kind(_) => ("spec.kind", "/api/v1/kinds lists them"),
            UnusablePolicy::Arguments(_) => {
                ("spec.arguments", "/api/v1/kinds/{kind} shows what it takes")
            }
            UnusablePolicy::Time(InvalidPolicy::Calendar(_)) => (
                "spec.cron",
                "write minute, hour, day of month, month and day of week, and an IANA time zone",
            ),
            UnusablePolicy::Time(InvalidPolicy::Window(_)) => {
                ("spec.window", "write its ends as `22:00` and `04:00`")
            }
            UnusablePolicy::NoDatabase(_) => ("database", "/api/v1/databases lists them"),
            UnusablePolicy::NoBackups(_) => ("spec.kind", "leave `prove` and `keep` out"),
        };
        Refusal::field(field, what, remedy)
    })
}

fn next_due(spec: &PolicySpec, plan: &PolicyPlan, now: Timestamp) -> Option<Timestamp> {
    (!spec.paused).then(|| plan.next_after(now)).flatten()
}

/// `POST /api/v1/policies`.
pub(crate) async fn add(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<TenantQuery>,
    Body(mut input): Body<PolicyInput>,
) -> Result<Response, Refusal> {
    let tenant = caller.acts_for(&app, query.tenant).await?;
    let database = match &input.database {
        Some(name) => Some(named(&app, &tenant, "database", name).await?),
        None => None,
    };
    let secrets = take_passwords(&mut input.spec.arguments, "spec.arguments")?;
    let has_secrets = !secrets.is_empty();
    let sealed = seal(&app, &tenant, &mut input.spec.arguments, secrets).await?;
    let result = async {
        let plan = checked(&app, &caller, &tenant, &input.spec, database).await?;
        let now = app.ledger.now().await?;
        let record = PolicyRecord {
            id: PolicyId::new(),
            tenant: tenant.clone(),
            name: input.name,
            database,
            next_due: next_due(&input.spec, &plan, now),
            spec: input.spec,
            last_job: None,
            created: now,
        };
        Ok::<_, Refusal>(app.ledger.add_policy(&record).await?)
    }
    .await;
    if result.is_err() && has_secrets {
        for id in sealed {
            app.ledger.remove_sealed(&tenant, id).await?;
        }
    }
    let added = result?;
    let location = format!("/api/v1/policies/{}", added.id);
    let mut response = told(&app, StatusCode::CREATED, added).await?;
    let location = location
        .parse()
        .expect("a path of an id is a header's value");
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// `PATCH /api/v1/policies/{policy}`.
pub(crate) async fn edit(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Path(policy): Path<String>,
    Parameters(query): Parameters<TenantQuery>,
    Body(patch): Body<PolicyPatch>,
) -> Result<Response, Refusal> {
    let tenant = caller.acts_for(&app, query.tenant).await?;
    let mut seen = find(&app, &caller, &tenant, &policy).await?;
    input::if_match(&headers, &etag(&seen))?;
    let tenant = seen.tenant.clone();
    let database = match &patch.database {
        Some(Some(name)) => Some(Some(named(&app, &tenant, "database", name).await?)),
        Some(None) => Some(None),
        None => None,
    };
    let mut spec = patch.spec.unwrap_or_else(|| seen.spec.clone());
    // Arguments that stay may hold a reference that this interface wrote when they came.
    if spec.arguments != seen.spec.arguments
        && !take_passwords(&mut spec.arguments, "spec.arguments")?.is_empty()
    {
        return Err(Refusal::field(
            "spec.arguments",
            "a policy's arguments are changed with references to passwords, not with passwords",
            "remove the policy and add it again to have a password sealed",
        ));
    }
    let plan = checked(
        &app,
        &caller,
        &tenant,
        &spec,
        database.unwrap_or(seen.database),
    )
    .await?;
    let is_rescheduled = spec.cron != seen.spec.cron
        || spec.time_zone != seen.spec.time_zone
        || spec.paused != seen.spec.paused;
    let now = app.ledger.now().await?;
    let change = PolicyChange {
        name: patch.name,
        database,
        next_due: is_rescheduled.then(|| next_due(&spec, &plan, now)),
        spec: Some(spec),
    };
    let mut tries = 0;
    let edited = loop {
        match app
            .ledger
            .edit_policy_if(seen.id, Some(&seen), change.clone())
            .await
        {
            // A due time may have passed: nothing that the changer has seen.
            Err(LedgerError::Changed { .. }) if tries < CHANGE_TRIES => {
                tries += 1;
                seen = app.ledger.policy(seen.id).await?;
                input::if_match(&headers, &etag(&seen))?;
            }
            ended => break ended?,
        }
    };
    told(&app, StatusCode::OK, edited).await
}

/// `DELETE /api/v1/policies/{policy}`.
pub(crate) async fn remove(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Path(policy): Path<String>,
    Parameters(query): Parameters<TenantQuery>,
) -> Result<StatusCode, Refusal> {
    let tenant = caller.acts_for(&app, query.tenant).await?;
    let mut seen = find(&app, &caller, &tenant, &policy).await?;
    let mut tries = 0;
    loop {
        input::if_match(&headers, &etag(&seen))?;
        match app.ledger.remove_policy_if(seen.id, Some(&seen)).await {
            Err(LedgerError::Changed { .. }) if tries < CHANGE_TRIES => {
                tries += 1;
                seen = app.ledger.policy(seen.id).await?;
            }
            ended => {
                ended?;
                return Ok(StatusCode::NO_CONTENT);
            }
        }
    }
}
