//! Tenants: who there is. A token of one tenant sees its own only.

use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use fettler_ledger::TenantRecord;
use fettler_model::TenantId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App, Page,
    access::Caller,
    input::{self, Body, Parameters},
    problem::Refusal,
};

/// A tenant that is to be added.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TenantInput {
    /// Its name: 1 to 63 lower-case letters, digits, `-`, `_` or `.`.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    pub id: TenantId,
}

/// A page of a list by name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantsQuery {
    /// Where the page begins: `next` of the page before.
    cursor: Option<TenantId>,
    /// How many the page has at most.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
}

/// `GET /api/v1/tenants`.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<TenantsQuery>,
) -> Result<Json<Page<TenantRecord>>, Refusal> {
    let limit = input::limit(query.limit)?;
    let tenants = match &caller.token.tenant {
        Some(own) if query.cursor.is_none() => vec![app.ledger.tenant(own).await?],
        Some(_) => Vec::new(),
        None => {
            let ledger = &app.ledger;
            ledger
                .tenants_page(query.cursor.as_ref(), limit + 1)
                .await?
        }
    };
    Ok(Json(Page::of(tenants, limit, |tenant| {
        tenant.id.to_string()
    })))
}

/// The tenant of this name, if it is the caller's to see.
async fn find(app: &App, caller: &Caller, name: &str) -> Result<TenantRecord, Refusal> {
    let tenant = name
        .parse::<TenantId>()
        .ok()
        .filter(|tenant| caller.sees(tenant))
        .ok_or_else(|| Refusal::no_such("tenant", name))?;
    Ok(app.ledger.tenant(&tenant).await?)
}

/// `GET /api/v1/tenants/{tenant}`.
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Path(tenant): Path<String>,
) -> Result<Json<TenantRecord>, Refusal> {
    find(&app, &caller, &tenant).await.map(Json)
}

/// `POST /api/v1/tenants`.
pub(crate) async fn add(
    State(app): State<App>,
    Body(input): Body<TenantInput>,
) -> Result<Response, Refusal> {
    let added = app.ledger.add_tenant(&input.id).await?;
    let location = format!("/api/v1/tenants/{}", added.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(added),
    )
        .into_response())
}

/// `DELETE /api/v1/tenants/{tenant}`.
pub(crate) async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(tenant): Path<String>,
) -> Result<StatusCode, Refusal> {
    let tenant = find(&app, &caller, &tenant).await?;
    app.ledger.remove_tenant(&tenant.id).await?;
    Ok(StatusCode::NO_CONTENT)
}
