//! `fettler database`: the databases that are looked after.

use std::collections::BTreeMap;

use fettler_ledger::{DatabaseChange, DatabaseRecord, DatabaseTerms};
use fettler_model::{JobWindow, SecretReference};
use serde_json::{Value, json};

use super::policy;
use crate::{
    app::App,
    args::{
        DatabaseAddArgs, DatabaseCommand, DatabaseEditArgs, DatabaseTermsArgs, ReferenceArg,
        SandboxArgs,
    },
    desk::Desk,
    failure::{Exit, Failure, Outcome},
    output::{pairs, table},
    remote::Remote,
    select, units,
};

pub(crate) async fn run(app: &App, command: &DatabaseCommand) -> Outcome {
    let desk = app.desk().await?;
    match command {
        DatabaseCommand::Add(args) => add(app, args).await,
        DatabaseCommand::Edit(args) => edit(app, args).await,
        DatabaseCommand::List => {
            let databases = desk.databases(app.tenant()).await?;
            app.output.result(&json!({ "databases": databases }), || {
                if databases.is_empty() {
                    return "No databases. `fettler database add NAME URL` adds one.".to_owned();
                }
                table(
                    &["database", "engine", "place", "labels"],
                    databases.iter().map(|record| {
                        vec![
                            record.name.to_string(),
                            record.url.engine().to_string(),
                            record.url.to_string(),
                            labels(record),
                        ]
                    }),
                )
            });
            Ok(Exit::Done)
        }
        DatabaseCommand::Show { name } => {
            let record = select::existing_database(app, name).await?;
            app.output.result(&record, || text(&record));
            Ok(Exit::Done)
        }
        // Nobody's ledger is needed for it: see `grants`.
        DatabaseCommand::GrantSql(_) => Ok(Exit::Done),
        DatabaseCommand::Remove { name } => {
            let record = select::existing_database(app, name).await?;
            match &desk {
                Desk::Here(ledger) => {
                    ledger.remove_database(record.id).await?;
                    if let Some(SecretReference::Sealed(id)) = record.password {
                        ledger.remove_sealed(app.tenant(), id).await?;
                    }
                }
                Desk::There(remote) => {
                    let path = format!("/api/v1/databases/{}", record.id);
                    let (_, etag) = remote.get_marked::<DatabaseRecord>(&path).await?;
                    remote.delete(&path, Some(&etag)).await?;
                }
            }
            app.output.result(&json!({ "removed": record.name }), || {
                format!(
                    "Database {} is not looked after any more. Its backups stay.",
                    record.name
                )
            });
            Ok(Exit::Done)
        }
    }
}

/// A place, a sandbox and a reference as they are sent: passwords are sealed on the other side.
fn sent(
    url: Option<&String>,
    password: Option<&ReferenceArg>,
    sandbox: &SandboxArgs,
) -> Result<serde_json::Map<String, Value>, Failure> {
    let mut body = serde_json::Map::new();
    if let Some(url) = url {
        body.insert("url".to_owned(), json!(select::absolute_place(url)?));
    }
    if let Some(reference) = password {
        body.insert("password".to_owned(), json!(reference.get()?));
    }
    if let Some(sandbox) = select::sent_sandbox(sandbox)? {
        body.insert("sandbox".to_owned(), sandbox);
    }
    Ok(body)
}

async fn add(app: &App, args: &DatabaseAddArgs) -> Outcome {
    if let Some(remote) = app.remote() {
        let mut body = sent(Some(&args.url), args.password.as_ref(), &args.sandbox)?;
        body.insert("name".to_owned(), json!(args.name));
        let labels: serde_json::Map<String, Value> = args
            .labels
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        body.insert("labels".to_owned(), labels.into());
        if let Some(terms) = terms(&DatabaseTerms::default(), &args.terms)? {
            body.insert("terms".to_owned(), json!(terms));
        }
        let path = format!("/api/v1/databases?tenant={}", app.tenant());
        let added: DatabaseRecord = remote.post(&path, &body.into()).await?;
        app.output.result(&added, || added_text(&added));
        return Ok(Exit::Done);
    }
    let (url, secret) = select::place(&args.url)?;
    let password = select::password(app, args.password.as_ref(), secret.as_ref()).await?;
    let mut record = select::new_record(app, args.name.clone(), url, password);
    record.labels = args.labels.iter().cloned().collect();
    if let Some(sandbox) = select::sandbox(app, &args.sandbox).await? {
        record.sandbox = json!(sandbox);
    }
    if let Some(terms) = terms(&record.terms, &args.terms)? {
        record.terms = terms;
    }
    let added = app.ledger().await?.add_database(&record).await?;
    app.output.result(&added, || added_text(&added));
    Ok(Exit::Done)
}

fn added_text(added: &DatabaseRecord) -> String {
    format!(
        "Database {} is looked after now. `fettler preflight {}` says what its server allows.",
        added.name, added.name
    )
}

async fn edit(app: &App, args: &DatabaseEditArgs) -> Outcome {
    let record = select::existing_database(app, &args.name).await?;
    if let Some(remote) = app.remote() {
        return edit_there(app, remote, &record, args).await;
    }
    let (url, secret) = match &args.url {
        Some(text) => {
            let (url, secret) = select::place(text)?;
            (Some(url), secret)
        }
        None => (None, None),
    };
    let password = if args.no_password {
        Some(None)
    } else {
        select::password(app, args.password.as_ref(), secret.as_ref())
            .await?
            .map(Some)
    };
    let changed_labels = changed_labels(&record, args);
    let change = DatabaseChange {
        name: args.rename.clone(),
        url,
        password,
        labels: changed_labels,
        sandbox: select::sandbox(app, &args.sandbox)
            .await?
            .map(|sandbox| json!(sandbox)),
        terms: terms(&record.terms, &args.terms)?,
    };
    if change == DatabaseChange::default() {
        return Err(nothing_changes(&record));
    }
    let replaces_password = change.password.is_some();
    let ledger = app.ledger().await?;
    let changed = ledger.edit_database(record.id, change).await?;
    if let (true, Some(SecretReference::Sealed(old))) = (replaces_password, record.password) {
        ledger.remove_sealed(app.tenant(), old).await?;
    }
    app.output.result(&changed, || text(&changed));
    Ok(Exit::Done)
}

/// The terms as the options change them; none when they say nothing.
fn terms(now: &DatabaseTerms, args: &DatabaseTermsArgs) -> Result<Option<DatabaseTerms>, Failure> {
    let mut terms = now.clone();
    if let Some(text) = &args.window {
        terms.window = policy::window(text)?.map(|hours| JobWindow {
            hours,
            time_zone: args.time_zone.clone().unwrap_or_else(policy::system_zone),
        });
        if let Some(window) = &terms.window {
            window.clock().map_err(|error| {
                Failure::usage(error.to_string(), "write the window as `22:00-04:00`")
            })?;
        }
    }
    // Zero takes a limit away.
    let change = |limit: &mut Option<u64>, given: Option<u64>| {
        if let Some(most) = given {
            *limit = Some(most).filter(|most| *most > 0);
        }
    };
    change(&mut terms.load.connections, args.max_connections);
    change(&mut terms.load.replication_lag_seconds, args.max_lag);
    change(&mut terms.load.latency_milliseconds, args.max_latency);
    for (name, value) in &args.reach {
        if value.is_empty() {
            terms.reach.remove(name);
        } else {
            terms.reach.insert(name.clone(), value.clone());
        }
    }
    Ok((terms != *now).then_some(terms))
}

/// The labels that a database is to have.
fn changed_labels(
    record: &DatabaseRecord,
    args: &DatabaseEditArgs,
) -> Option<BTreeMap<String, String>> {
    (!args.labels.is_empty()).then(|| {
        let mut labels = record.labels.clone();
        for (name, value) in &args.labels {
            if value.is_empty() {
                labels.remove(name);
            } else {
                labels.insert(name.clone(), value.clone());
            }
        }
        labels
    })
}

/// The same through another Fettler.
async fn edit_there(
    app: &App,
    remote: &Remote,
    record: &DatabaseRecord,
    args: &DatabaseEditArgs,
) -> Outcome {
    let mut body = sent(args.url.as_ref(), args.password.as_ref(), &args.sandbox)?;
    if args.no_password {
        body.insert("password".to_owned(), Value::Null);
    }
    if let Some(name) = &args.rename {
        body.insert("name".to_owned(), json!(name));
    }
    if let Some(labels) = changed_labels(record, args) {
        body.insert("labels".to_owned(), json!(labels));
    }
    if let Some(terms) = terms(&record.terms, &args.terms)? {
        body.insert("terms".to_owned(), json!(terms));
    }
    if body.is_empty() {
        return Err(nothing_changes(record));
    }
    let path = format!("/api/v1/databases/{}", record.id);
    let (_, etag) = remote.get_marked::<DatabaseRecord>(&path).await?;
    let changed: DatabaseRecord = remote.patch(&path, &body.into(), &etag).await?;
    app.output.result(&changed, || text(&changed));
    Ok(Exit::Done)
}

fn nothing_changes(record: &DatabaseRecord) -> Failure {
    Failure::nothing(
        format!("nothing of database {} is to be changed", record.name),
        "`fettler database edit --help` shows what can be",
    )
}

fn labels(record: &DatabaseRecord) -> String {
    words(&record.labels)
}

fn words(labels: &BTreeMap<String, String>) -> String {
    labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn text(record: &DatabaseRecord) -> String {
    pairs(&[
        ("database", record.name.to_string()),
        ("id", record.id.to_string()),
        ("tenant", record.tenant.to_string()),
        ("place", record.url.to_string()),
        (
            "password",
            match &record.password {
                None => "none".to_owned(),
                Some(SecretReference::Sealed(_)) => "sealed in the ledger".to_owned(),
                Some(reference) => reference.to_string(),
            },
        ),
        (
            "identity",
            record
                .identity_key
                .clone()
                .unwrap_or_else(|| "not known before its first job".to_owned()),
        ),
        ("labels", labels(record)),
        (
            "sandbox",
            record.sandbox["kind"]
                .as_str()
                .unwrap_or("automatic")
                .to_owned(),
        ),
        (
            "window",
            record
                .terms
                .window
                .as_ref()
                .map_or_else(String::new, |window| {
                    format!(
                        "{} to {} in {}",
                        window.hours.from, window.hours.to, window.time_zone
                    )
                }),
        ),
        ("long jobs up to", record.terms.load.to_string()),
        ("reached with", words(&record.terms.reach)),
        ("since", units::moment(record.created)),
    ])
}
