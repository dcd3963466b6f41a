//! `fettler limit`: how many jobs of a tenant, database, server, kind or slot class run at once.

use std::collections::HashMap;

use fettler_ledger::LimitRecord;
use fettler_model::{DatabaseId, Scope};
use serde_json::json;

use crate::{
    app::App,
    args::{LimitCommand, LimitScopeArgs},
    failure::{Exit, Failure, Outcome},
    output::table,
    select, units,
};

pub(crate) async fn run(app: &App, command: &LimitCommand) -> Outcome {
    let desk = app.desk().await?;
    match command {
        LimitCommand::Set { most, scope } => {
            let scope = of(app, scope).await?;
            let set = app.readying(desk.set_limit(&scope, *most)).await?;
            let words = words(&scope, &names(app).await?);
            app.output.result(&set, || {
                let over = if set.running > set.most {
                    " None of them is stopped."
                } else {
                    ""
                };
                format!(
                    "At most {} jobs of {words} run at once; {} run now.{over}",
                    set.most, set.running
                )
            });
        }
        LimitCommand::List => {
            let limits = desk.limits().await?;
            let names = names(app).await?;
            app.output
                .result(&json!({ "limits": limits }), || shown(&limits, &names));
        }
        LimitCommand::Remove { scope } => {
            let scope = of(app, scope).await?;
            app.readying(desk.remove_limit(&scope)).await?;
            let words = words(&scope, &names(app).await?);
            app.output.result(&json!({ "removed": scope }), || {
                format!("As many jobs of {words} run as there are slots.")
            });
        }
    }
    Ok(Exit::Done)
}

fn shown(limits: &[LimitRecord], names: &HashMap<DatabaseId, String>) -> String {
    if limits.is_empty() {
        return "No limits. `fettler limit set 2 --tenant NAME` sets one.".to_owned();
    }
    table(
        &["limit on", "at most", "run now", "since"],
        limits.iter().map(|limit| {
            vec![
                words(&limit.scope, names),
                limit.most.to_string(),
                limit.running.to_string(),
                units::moment(limit.created),
            ]
        }),
    )
}

/// The names of all databases.
pub(super) async fn names(app: &App) -> Result<HashMap<DatabaseId, String>, Failure> {
    let databases = if app.remote().is_some() {
        app.desk().await?.databases(app.tenant()).await?
    } else {
        app.ledger().await?.databases(None).await?
    };
    Ok(databases
        .into_iter()
        .map(|record| (record.id, record.name.to_string()))
        .collect())
}

/// A scope as a person says it.
pub(super) fn words(scope: &Scope, names: &HashMap<DatabaseId, String>) -> String {
    match scope {
        Scope::All => "all tenants".to_owned(),
        Scope::Database(id) => names
            .get(id)
            .map_or_else(|| scope.to_string(), |name| format!("database {name}")),
        Scope::Class(class) => format!("slot class {}", class.as_str()),
        other => other.to_string().replacen('/', " ", 1),
    }
}

async fn of(app: &App, args: &LimitScopeArgs) -> Result<Scope, Failure> {
    if let Some(name) = &args.database {
        return Ok(Scope::Database(
            select::existing_database(app, name).await?.id,
        ));
    }
    if let Some(server) = &args.server {
        return format!("server/{}", server.to_ascii_lowercase())
            .parse()
            .map_err(|_| {
                Failure::usage(
                    format!("{server:?} names no server"),
                    "write it as host:port, as it stands in the databases' URLs",
                )
            });
    }
    if let Some(kind) = &args.kind {
        app.not_of_one_tenant("a kind")?;
        return Ok(Scope::Kind(kind.clone()));
    }
    if let Some(class) = args.class {
        app.not_of_one_tenant("a slot class")?;
        return Ok(Scope::Class(class.into()));
    }
    match app.asked_tenant() {
        Some(tenant) => Ok(Scope::Tenant(app.desk().await?.tenant(tenant).await?.id)),
        None => Err(Failure::usage(
            "what is limited was not said",
            "add `--tenant`, `--database`, `--database-server`, `--kind` or `--class`",
        )),
    }
}
