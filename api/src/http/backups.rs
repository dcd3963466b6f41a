//! Backups and their proofs, as the catalogue knows them, and what a repository holds.

use axum::{
    Json,
    extract::{Path, State},
};
use fettler_ledger::{BackupFilter, BackupRecord, LedgerError, RepositoryStatistics};
use fettler_model::{BackupId, BackupState, ProofFacts, TenantId, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App, Page,
    access::Caller,
    databases,
    input::{self, Parameters},
    problem::Refusal,
};

/// Which backups are listed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackupsQuery {
    /// Only this tenant's.
    tenant: Option<TenantId>,
    /// Only those of this database, by name or id.
    database: Option<String>,
    /// Only those in one of these states, separated by commas; all but the forgotten when nothing is said.
    #[schemars(regex(
        pattern = r"^(complete|damaged|vanished|forgotten)(,(complete|damaged|vanished|forgotten))*$"
    ))]
    state: Option<String>,
    /// Where the page begins: `next` of the page before.
    cursor: Option<String>,
    /// How many backups the page has at most.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
}

/// The proofs of a backup.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProofList {
    /// Newest first.
    pub proofs: Vec<ProofFacts>,
}

/// What repositories hold.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct StatisticsList {
    /// One by one, by place.
    repositories: Vec<RepositoryStatistics>,
}

/// Whose statistics are asked for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatisticsQuery {
    /// Only this tenant's.
    pub(crate) tenant: Option<TenantId>,
}

fn state(word: &str) -> Result<BackupState, Refusal> {
    [
        BackupState::Complete,
        BackupState::Damaged,
        BackupState::Vanished,
        BackupState::Forgotten,
    ]
    .into_iter()
    .find(|state| state.as_str() == word)
    .ok_or_else(|| {
        let what = format!("{word:?} is none of complete, damaged, vanished and forgotten");
        Refusal::parameter("state", what)
    })
}

fn cursor(text: &str) -> Result<(Timestamp, BackupId), Refusal> {
    text.split_once('_')
        .and_then(|(finished, id)| {
            let finished = Timestamp::from_micros(finished.parse().ok()?);
            Some((finished, id.parse().ok()?))
        })
        .ok_or_else(|| Refusal::parameter("cursor", "it is no `next` of a page"))
}

/// `GET /api/v1/backups`.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<BackupsQuery>,
) -> Result<Json<Page<BackupRecord>>, Refusal> {
    let limit = input::limit(query.limit)?;
    let words: Vec<String> = input::words("state", query.state.as_deref())?;
    let states = words
        .iter()
        .map(|word| state(word))
        .collect::<Result<_, _>>()?;
    let before = query.cursor.as_deref().map(cursor).transpose()?;
    let tenant = caller.listed(&app, query.tenant.clone()).await?;
    let database = match &query.database {
        Some(name) => {
            let tenant = caller.acts_for(&app, query.tenant).await?;
            Some(databases::find(&app, &caller, &tenant, name).await?.id)
        }
        None => None,
    };
    let filter = BackupFilter {
        tenant,
        database,
        states,
        before,
        limit: limit + 1,
        ..BackupFilter::default()
    };
    let backups = app.ledger.backups(&filter).await?;
    Ok(Json(Page::of(backups, limit, |backup| {
        format!("{}_{}", backup.facts.finished.micros(), backup.facts.id)
    })))
}

/// The backup that is meant, if it is the caller's to see.
async fn find(app: &App, caller: &Caller, text: &str) -> Result<BackupRecord, Refusal> {
    let found = match text.parse::<BackupId>() {
        Ok(id) => app.ledger.backup(id).await,
        Err(_) => {
            let ledger = &app.ledger;
            ledger.find_backup(caller.token.tenant.as_ref(), text).await
        }
    };
    match found {
        Ok(backup) if caller.sees(&backup.facts.tenant) => Ok(backup),
        Ok(_) | Err(LedgerError::NotFound { .. }) => Err(Refusal::no_such("backup", text)),
        Err(error) => Err(error.into()),
    }
}

/// `GET /api/v1/backups/{backup}`.
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Path(backup): Path<String>,
) -> Result<Json<BackupRecord>, Refusal> {
    find(&app, &caller, &backup).await.map(Json)
}

/// `GET /api/v1/backups/{backup}/proofs`.
pub(crate) async fn proofs(
    State(app): State<App>,
    caller: Caller,
    Path(backup): Path<String>,
) -> Result<Json<ProofList>, Refusal> {
    let backup = find(&app, &caller, &backup).await?;
    let proofs = app.ledger.proofs(backup.facts.id).await?;
    Ok(Json(ProofList { proofs }))
}

/// `GET /api/v1/repository/statistics`.
pub(crate) async fn statistics(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<StatisticsQuery>,
) -> Result<Json<StatisticsList>, Refusal> {
    let tenant = caller.listed(&app, query.tenant).await?;
    let repositories = app.ledger.repository_statistics(tenant.as_ref()).await?;
    Ok(Json(StatisticsList { repositories }))
}
