//! Databases: what is looked after, and where it is. A password never comes back: an answer holds a
//! reference to it (P9).

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use fettler_ledger::{DatabaseChange, DatabaseRecord, DatabaseTerms, LedgerError};
use fettler_model::{
    DatabaseId, DatabaseName, JobWindow, Secret, SecretReference, TenantId, Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::{
    App, Page,
    access::Caller,
    input::{self, Body, Parameters},
    jobs::{TenantQuery, place, twice},
    problem::Refusal,
};

/// How often a change is tried again whose record changed in a way that its changer does not see.
const CHANGE_TRIES: u32 = 5;
/// The most labels of a database, and the longest word of one.
const MAX_LABELS: usize = 64;
const MAX_LABEL_BYTES: usize = 255;

/// Where the proofs of a database restore to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SandboxInput {
    /// Where the operator's settings say.
    Automatic,
    /// A scratch database on this server.
    Server {
        /// The server; a password in it is sealed.
        url: String,
        /// Where its password lies.
        #[serde(default)]
        password: Option<SecretReference>,
    },
    /// A scratch database on the database's own server.
    SourceServer,
}

/// A database that is to be looked after.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DatabaseInput {
    /// What to call it: 1 to 63 lower-case letters, digits, `-`, `_` or `.`.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    pub name: DatabaseName,
    /// `postgres://user@host/database`, `redis://host`, `mongodb://host`, `clickhouse://host`, `elasticsearch://host`, or the absolute path of a SQLite file. A password in it is sealed.
    pub url: String,
    /// Where its password lies, `env:NAME` or `file:PATH`, for those whom the operator allows it.
    #[serde(default)]
    pub password: Option<SecretReference>,
    /// Words by which workers and selectors choose it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where its proofs restore to.
    #[serde(default)]
    pub sandbox: Option<SandboxInput>,
    /// Its own terms for the jobs about it: its window, how busy it may be, and which workers reach it. The last is for
    /// the operators of the fleet to say.
    #[serde(default)]
    pub terms: Option<DatabaseTerms>,
}

/// A change to a database: what is not given stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DatabasePatch {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    pub name: Option<DatabaseName>,
    /// A new place. A password in it is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A reference to a new password; null takes it away.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "given"
    )]
    #[schemars(with = "Option<SecretReference>")]
    pub password: Option<Option<SecretReference>>,
    /// The labels that it is to have from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Where its proofs restore to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxInput>,
    /// The terms that it is to have from now on; what they do not name is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<DatabaseTerms>,
}

/// A field that is given, if only as null.
pub(crate) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A page of a list by tenant and name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedQuery {
    /// Only this tenant's.
    pub(crate) tenant: Option<TenantId>,
    /// Where the page begins: `next` of the page before.
    pub(crate) cursor: Option<String>,
    /// How many the page has at most.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) limit: Option<usize>,
}

/// The tenant and the name of a cursor.
pub(crate) fn named_cursor<N: std::str::FromStr>(
    cursor: Option<&str>,
) -> Result<Option<(TenantId, N)>, Refusal> {
    cursor
        .map(|text| {
            text.split_once('/')
                .and_then(|(tenant, name)| Some((tenant.parse().ok()?, name.parse().ok()?)))
                .ok_or_else(|| Refusal::parameter("cursor", "it is no `next` of a page"))
        })
        .transpose()
}

/// `GET /api/v1/databases`.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<NamedQuery>,
) -> Result<Json<Page<DatabaseRecord>>, Refusal> {
    let limit = input::limit(query.limit)?;
    let after = named_cursor(query.cursor.as_deref())?;
    let tenant = caller.listed(&app, query.tenant).await?;
    let page = app
        .ledger
        .databases_page(tenant.as_ref(), after.as_ref(), limit + 1);
    Ok(Json(Page::of(page.await?, limit, |database| {
        format!("{}/{}", database.tenant, database.name)
    })))
}

/// The database of this name or id, if it is the caller's to see.
pub(crate) async fn find(
    app: &App,
    caller: &Caller,
    tenant: &TenantId,
    name: &str,
) -> Result<DatabaseRecord, Refusal> {
    let Ok(id) = name.parse::<DatabaseId>() else {
        // What stands for a name may be a URL with a password in it: the ledger's own words hide that.
        return Ok(app.ledger.find_database(tenant, name).await?);
    };
    match app.ledger.database(id).await {
        Ok(database) if caller.sees(&database.tenant) => Ok(database),
        Ok(_) | Err(LedgerError::NotFound { .. }) => Err(Refusal::no_such("database", name)),
        Err(error) => Err(error.into()),
    }
}

/// The tenant's database that a body names.
pub(crate) async fn named(
    app: &App,
    tenant: &TenantId,
    field: &str,
    name: &str,
) -> Result<DatabaseId, Refusal> {
    match app.ledger.find_database(tenant, name).await {
        Ok(database) => Ok(database.id),
        Err(error @ (LedgerError::NotFound { .. } | LedgerError::Ambiguous { .. })) => Err(
            Refusal::field(field, error.to_string(), "/api/v1/databases lists them"),
        ),
        Err(error) => Err(error.into()),
    }
}

/// What a changer has seen: not what jobs find out by themselves.
fn etag(database: &DatabaseRecord) -> String {
    input::etag(&DatabaseRecord {
        identity_key: None,
        ..database.clone()
    })
}

fn with_etag(status: StatusCode, database: DatabaseRecord) -> Response {
    (status, [(header::ETAG, etag(&database))], Json(database)).into_response()
}

/// `GET /api/v1/databases/{database}`.
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Path(database): Path<String>,
    Parameters(query): Parameters<TenantQuery>,
) -> Result<Response, Refusal> {
    let tenant = caller.acts_for(&app, query.tenant).await?;
    let database = find(&app, &caller, &tenant, &database).await?;
    Ok(with_etag(StatusCode::OK, database))
}

/// Refuses what is not for this tenant (P6), as far as the caller is not the operator.
async fn bounded(
    app: &App,
    caller: &Caller,
    tenant: &TenantId,
    place: Option<(&fettler_model::DatabaseUrl, bool)>,
    reference: Option<&SecretReference>,
    sandbox: Option<&SandboxInput>,
) -> Result<(), Refusal> {
    if !caller.is_stranger() {
        return Ok(());
    }
    let bounds = app.surroundings.bounds(tenant)?;
    let deny = app.surroundings.deny();
    if let Some(reference) = reference {
        bounds.reference("password", reference)?;
    }
    if let Some((url, has_password)) = place {
        bounds.place(deny, "url", url, has_password).await?;
    }
    if let Some(SandboxInput::Server { url, password }) = sandbox {
        let (url, secret) = self::place("sandbox.url", url)?;
        let has_password = secret.is_some() || password.is_some();
        bounds
            .place(deny, "sandbox.url", &url, has_password)
            .await?;
        if let Some(reference) = password {
            bounds.reference("sandbox.password", reference)?;
        }
    }
    Ok(())
}

/// The reference to a password: the given one, or a sealed one for what the URL held.
async fn password(
    app: &App,
    tenant: &TenantId,
    field: &str,
    given: Option<SecretReference>,
    in_url: Option<Secret>,
) -> Result<Option<SecretReference>, Refusal> {
    match (given, in_url) {
        (Some(_), Some(_)) => Err(twice(field)),
        (Some(SecretReference::Sealed(_)), None) => Err(Refusal::field(
            "password",
            "what is sealed cannot be referred to",
            "give the password in the URL, or refer to `env:NAME` or `file:/path`",
        )),
        (given, None) => Ok(given),
        (None, Some(secret)) => {
            let id = app.surroundings.seal(tenant, &secret).await?;
            Ok(Some(SecretReference::Sealed(id)))
        }
    }
}

/// A sandbox as the record keeps it.
async fn sandbox(app: &App, tenant: &TenantId, input: SandboxInput) -> Result<Value, Refusal> {
    let sandbox = match input {
        SandboxInput::Server {
            url,
            password: given,
        } => {
            let (url, secret) = place("sandbox.url", &url)?;
            if url.path().is_some() {
                return Err(Refusal::field(
                    "sandbox.url",
                    "a file is no server",
                    "name a server as `postgres://user@host/database`",
                ));
            }
            let password = password(app, tenant, "sandbox.url", given, secret).await?;
            json!({"kind": "server", "url": url, "password": password})
        }
        SandboxInput::Automatic => json!({"kind": "automatic"}),
        SandboxInput::SourceServer => json!({"kind": "source_server"}),
    };
    Ok(sandbox)
}

fn check_labels(field: &str, labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let is_fine = labels.len() <= MAX_LABELS
        && labels.iter().all(|(name, value)| {
            !name.is_empty() && name.len() <= MAX_LABEL_BYTES && value.len() <= MAX_LABEL_BYTES
        });
    if is_fine {
        return Ok(());
    }
    Err(Refusal::field(
        field,
        format!("up to {MAX_LABELS} labels with names and values of up to {MAX_LABEL_BYTES} bytes"),
        "use fewer or shorter labels",
    ))
}

/// Refuses terms that cannot hold, and workers named by somebody who does not know them.
fn check_terms(caller: &Caller, now: &DatabaseTerms, terms: &DatabaseTerms) -> Result<(), Refusal> {
    if let Some(Err(error)) = terms.window.as_ref().map(JobWindow::clock) {
        return Err(Refusal::field(
            "terms.window",
            error.to_string(),
            "write its ends as `22:00` and `04:00`, and an IANA time zone such as `Europe/Berlin`",
        ));
    }
    if caller.is_stranger() && terms.reach != now.reach {
        return Err(Refusal::field(
            "terms.reach",
            "which workers reach a database is for the operators of the fleet to say",
            "leave it as it is, or ask them",
        ));
    }
    check_labels("terms.reach", &terms.reach)
}

/// `POST /api/v1/databases`.
pub(crate) async fn add(
    State(app): State<App>,
    caller: Caller,
    Parameters(query): Parameters<TenantQuery>,
    Body(input): Body<DatabaseInput>,
) -> Result<Response, Refusal> {
    let tenant = caller.acts_for(&app, query.tenant).await?;
    let (url, secret) = place("url", &input.url)?;
    check_labels("labels", &input.labels)?;
    let terms = input.terms.unwrap_or_default();
    check_terms(&caller, &DatabaseTerms::default(), &terms)?;
    let has_password = secret.is_some() || input.password.is_some();
    bounded(
        &app,
        &caller,
        &tenant,
        Some((&url, has_password)),
        input.password.as_ref(),
        input.sandbox.as_ref(),
    )
    .await?;
    let password = password(&app, &tenant, "url", input.password, secret).await?;
    let sandbox = sandbox(
        &app,
        &tenant,
        input.sandbox.unwrap_or(SandboxInput::Automatic),
    )
    .await?;
    let record = DatabaseRecord {
        id: DatabaseId::new(),
        tenant: tenant.clone(),
        name: input.name,
        url,
        password,
        identity_key: None,
        labels: input.labels,
        sandbox,
        created: Timestamp::now(),
        terms,
    };
    let added = match app.ledger.add_database(&record).await {
        Ok(added) => added,
        Err(error) => {
            forget_password(&app, &tenant, record.password.as_ref()).await?;
            return Err(error.into());
        }
    };
    let location = format!("/api/v1/databases/{}", added.id);
    let mut response = with_etag(StatusCode::CREATED, added);
    let location = location
        .parse()
        .expect("a path of an id is a header's value");
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

async fn forget_password(
    app: &App,
    tenant: &TenantId,
    password: Option<&SecretReference>,
) -> Result<(), Refusal> {
    if let Some(SecretReference::Sealed(id)) = password {
        app.ledger.remove_sealed(tenant, *id).await?;
    }
    Ok(())
}

/// `PATCH /api/v1/databases/{database}`.
pub(crate) async fn edit(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Path(database): Path<String>,
    Parameters(query): Parameters<TenantQuery>,
    Body(patch): Body<DatabasePatch>,
) -> Result<Response, Refusal> {
    let tenant = caller.acts_for(&app, query.tenant).await?;
    let mut seen = find(&app, &caller, &tenant, &database).await?;
    input::if_match(&headers, &etag(&seen))?;
    let tenant = seen.tenant.clone();
    if let Some(labels) = &patch.labels {
        check_labels("labels", labels)?;
    }
    if let Some(terms) = &patch.terms {
        check_terms(&caller, &seen.terms, terms)?;
    }
    let (url, secret) = match &patch.url {
        Some(text) => {
            let (url, secret) = place("url", text)?;
            (Some(url), secret)
        }
        None => (None, None),
    };
    // A new place must not be shown the password of the old one: its owner may be another.
    let moves = url.as_ref().is_some_and(|url| *url != seen.url);
    if moves && secret.is_none() && patch.password.is_none() && seen.password.is_some() {
        return Err(Refusal::field(
            "url",
            "the place is another, and it is not said what its password is",
            "give the password in the URL or as `password`, or null for none",
        ));
    }
    let given = patch.password.clone().flatten();
    let place_is_new = url
        .as_ref()
        .map(|url| (url, secret.is_some() || given.is_some()));
    // Without a password of its own the worker would use what it finds in its environment.
    let loses_password = patch.password == Some(None) && secret.is_none();
    let place_now = place_is_new.or_else(|| loses_password.then_some((&seen.url, false)));
    bounded(
        &app,
        &caller,
        &tenant,
        place_now,
        given.as_ref(),
        patch.sandbox.as_ref(),
    )
    .await?;
    let replaces_password = secret.is_some() || patch.password.is_some();
    let password = password(&app, &tenant, "url", given, secret).await?;
    let sandbox = match patch.sandbox {
        Some(input) => Some(sandbox(&app, &tenant, input).await?),
        None => None,
    };
    let change = DatabaseChange {
        name: patch.name,
        url,
        password: replaces_password.then(|| password.clone()),
        labels: patch.labels,
        sandbox,
        terms: patch.terms,
    };
    let mut tries = 0;
    let edited = loop {
        match app
            .ledger
            .edit_database_if(seen.id, Some(&seen), change.clone())
            .await
        {
            // A job may have recorded the database's identity: nothing that the changer has seen.
            Err(LedgerError::Changed { .. }) if tries < CHANGE_TRIES => {
                tries += 1;
                seen = app.ledger.database(seen.id).await?;
                input::if_match(&headers, &etag(&seen))?;
            }
            Err(error) => {
                forget_password(&app, &tenant, password.as_ref()).await?;
                return Err(error.into());
            }
            Ok(edited) => break edited,
        }
    };
    if replaces_password {
        forget_password(&app, &tenant, seen.password.as_ref()).await?;
    }
    Ok(with_etag(StatusCode::OK, edited))
}

/// `DELETE /api/v1/databases/{database}`.
pub(crate) async fn remove(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Path(database): Path<String>,
    Parameters(query): Parameters<TenantQuery>,
) -> Result<StatusCode, Refusal> {
    let tenant = caller.acts_for(&app, query.tenant).await?;
    let mut seen = find(&app, &caller, &tenant, &database).await?;
    let mut tries = 0;
    loop {
        input::if_match(&headers, &etag(&seen))?;
        match app.ledger.remove_database_if(seen.id, Some(&seen)).await {
            Err(LedgerError::Changed { .. }) if tries < CHANGE_TRIES => {
                tries += 1;
                seen = app.ledger.database(seen.id).await?;
            }
            ended => {
                ended?;
                return Ok(StatusCode::NO_CONTENT);
            }
        }
    }
}
