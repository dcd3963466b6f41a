//! What looks at databases have found, and what somebody has set aside.

use axum::{
    Json,
    extract::{Path, State},
};
use fettler_ledger::{FindingFilter, FindingRecord};
use fettler_model::{Area, FindingChange, Severity, TenantId, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App, Page,
    access::Caller,
    databases,
    input::{self, Body, Parameters},
    problem::Refusal,
};

/// The states that a finding can be asked for by.
const STATES: [&str; 4] = ["open", "resolved", "suppressed", "not_evaluable"];
/// How far into a list a page may begin.
const DEEPEST: usize = 100_000;
/// The longest name of a check, key of a finding and reason that are taken, in characters.
const MAX_CHECK: usize = 200;
const MAX_KEY: usize = 1000;
const MAX_REASON: usize = 1000;

/// Which findings are listed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FindingsQuery {
    /// Only this tenant's.
    tenant: Option<TenantId>,
    /// Only those of this database, by name or id.
    database: Option<String>,
    /// Only those in one of these states, separated by commas; the open ones when nothing is said.
    #[schemars(regex(
        pattern = r"^(open|resolved|suppressed|not_evaluable)(,(open|resolved|suppressed|not_evaluable))*$"
    ))]
    state: Option<String>,
    /// Only those about this.
    area: Option<Area>,
    /// Only those at least so grave.
    severity: Option<Severity>,
    /// Only those of checks whose names begin like this.
    #[schemars(length(max = MAX_CHECK))]
    check: Option<String>,
    /// Where the page begins: `next` of the page before.
    #[schemars(regex(pattern = r"^[0-9]{1,6}$"))]
    cursor: Option<String>,
    /// How many findings the page has at most.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
}

/// Which finding is meant.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FindingQuery {
    /// Whose database it is about, where the token is nobody's own.
    tenant: Option<TenantId>,
    /// The finding.
    #[schemars(length(max = MAX_KEY))]
    #[serde(default)]
    key: String,
}

/// What is to be set aside.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SuppressionInput {
    /// Whose database it is about, where the token is nobody's own.
    #[serde(default)]
    pub tenant: Option<TenantId>,
    /// The database, by name or id.
    pub database: String,
    /// The finding.
    #[schemars(length(min = 1, max = MAX_KEY))]
    pub key: String,
    /// Why; nothing takes the suppression back.
    #[serde(default)]
    #[schemars(length(min = 1, max = MAX_REASON))]
    pub because: Option<String>,
    /// Until when; for good where nothing is said.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

/// How a finding came to be what it is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FindingHistory {
    /// The steps, the newest first.
    pub steps: Vec<FindingChange>,
}

/// `GET /api/v1/findings`.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<FindingsQuery>,
) -> Result<Json<Page<FindingRecord>>, Refusal> {
    let limit = input::limit(query.limit)?;
    input::length(query.check.as_deref(), 0..=MAX_CHECK)
        .map_err(|what| Refusal::parameter("check", what))?;
    let mut states: Vec<String> = input::words("state", query.state.as_deref())?;
    if let Some(unknown) = states
        .iter()
        .find(|state| !STATES.contains(&state.as_str()))
    {
        let what = format!("{unknown:?} is none of {}", STATES.join(", "));
        return Err(Refusal::parameter("state", what));
    }
    if states.is_empty() {
        states.push("open".to_owned());
    }
    let offset = match query.cursor.as_deref().map(str::parse) {
        None => 0,
        Some(Ok(offset)) if offset <= DEEPEST => offset,
        Some(_) => return Err(Refusal::parameter("cursor", "it is no `next` of a page")),
    };
    let tenant = caller.listed(&app, query.tenant.clone()).await?;
    let database = match &query.database {
        Some(name) => {
            let tenant = caller.acts_for(&app, query.tenant).await?;
            Some(databases::find(&app, &caller, &tenant, name).await?.id)
        }
        None => None,
    };
    let filter = FindingFilter {
        tenant,
        database,
        states,
        area: query.area,
        severity: query.severity,
        check: query.check,
        limit: limit + 1,
        offset,
    };
    let findings = app.ledger.findings(&filter).await?;
    Ok(Json(Page::of(findings, limit, |_| {
        (offset + limit).to_string()
    })))
}

/// `GET /api/v1/databases/{database}/findings/history`.
pub(crate) async fn history(
    State(app): State<App>,
    caller: Caller,
    Path(database): Path<String>,
    Parameters(query): Parameters<FindingQuery>,
) -> Result<Json<FindingHistory>, Refusal> {
    input::length(Some(&query.key), 0..=MAX_KEY).map_err(|what| Refusal::parameter("key", what))?;
    let tenant = caller.acts_for(&app, query.tenant).await?;
    let database = databases::find(&app, &caller, &tenant, &database).await?;
    let steps = app
        .ledger
        .finding_history(&database.tenant, database.id, &query.key)
        .await?;
    Ok(Json(FindingHistory { steps }))
}

/// `POST /api/v1/findings/suppress`.
pub(crate) async fn suppress(
    State(app): State<App>,
    caller: Caller,
    Body(input): Body<SuppressionInput>,
) -> Result<Json<FindingRecord>, Refusal> {
    input::length(Some(&input.key), 1..=MAX_KEY)
        .map_err(|what| Refusal::field("key", what, input::SEE))?;
    input::length(input.because.as_deref(), 1..=MAX_REASON)
        .map_err(|what| Refusal::field("because", what, input::SEE))?;
    let tenant = caller.acts_for(&app, input.tenant).await?;
    let database = databases::find(&app, &caller, &tenant, &input.database).await?;
    let record = app
        .ledger
        .suppress_finding(
            &database.tenant,
            database.id,
            &input.key,
            input.until,
            input.because.as_deref(),
        )
        .await?;
    Ok(Json(record))
}
