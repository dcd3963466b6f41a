//! Tokens: who has access. A token's text is answered once, when it is made.

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderName, StatusCode, header},
};
use fettler_ledger::{NewToken, TokenRecord};
use fettler_model::{Role, TenantId, Timestamp, TokenId, TokenName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App,
    access::{Caller, mint_token},
    backups::StatisticsQuery as TenantFilter,
    input::{Body, Parameters},
    problem::Refusal,
};

/// A token that is to be made.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenInput {
    /// What to call it: 1 to 63 lower-case letters, digits, `-`, `_` or `.`.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    pub name: TokenName,
    /// What it may do.
    pub role: Role,
    /// Whose things it sees. None sees all, which only a token that sees all can give.
    #[serde(default)]
    pub tenant: Option<TenantId>,
    /// Refused from this moment on.
    #[serde(default)]
    pub expires: Option<Timestamp>,
}

/// A token that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewTokenAnswer {
    /// What is known of it.
    pub token: TokenRecord,
    /// Its text. It is not kept, and not shown again.
    pub text: String,
}

/// The tokens that there are.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenList {
    /// By tenant and name.
    pub tokens: Vec<TokenRecord>,
}

/// `GET /api/v1/tokens`.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<TenantFilter>,
) -> Result<Json<TokenList>, Refusal> {
    let tenant = caller.listed(&app, query.tenant).await?;
    let tokens = app.ledger.tokens(tenant.as_ref()).await?;
    Ok(Json(TokenList { tokens }))
}

/// `POST /api/v1/tokens`.
pub(crate) async fn add(
    State(app): State<App>,
    caller: Caller,
    Body(input): Body<TokenInput>,
) -> Result<(StatusCode, [(HeaderName, String); 1], Json<NewTokenAnswer>), Refusal> {
    // Nobody gives away more than he has: a tenant's token makes tokens of that tenant.
    let tenant = caller.listed(&app, input.tenant).await?;
    let (text, hash) = mint_token();
    let token = app
        .ledger
        .add_token(&NewToken {
            name: input.name,
            tenant,
            role: input.role,
            expires: input.expires,
            hash,
        })
        .await?;
    let location = [(header::LOCATION, format!("/api/v1/tokens/{}", token.id))];
    let answer = NewTokenAnswer {
        token,
        text: text.expose().to_owned(),
    };
    Ok((StatusCode::CREATED, location, Json(answer)))
}

async fn find(app: &App, caller: &Caller, text: &str) -> Result<TokenRecord, Refusal> {
    let id: Option<TokenId> = text.parse().ok();
    let tokens = app.ledger.tokens(caller.token.tenant.as_ref()).await?;
    tokens
        .into_iter()
        .find(|token| Some(token.id) == id)
        .ok_or_else(|| Refusal::no_such("token", text))
}

/// `GET /api/v1/tokens/{token}`.
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Path(token): Path<String>,
) -> Result<Json<TokenRecord>, Refusal> {
    find(&app, &caller, &token).await.map(Json)
}

/// `DELETE /api/v1/tokens/{token}`.
pub(crate) async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(token): Path<String>,
) -> Result<StatusCode, Refusal> {
    let token = find(&app, &caller, &token).await?;
    app.ledger.remove_token(token.id).await?;
    Ok(StatusCode::NO_CONTENT)
}
