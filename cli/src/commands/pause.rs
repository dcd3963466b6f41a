//! `fettler pause` and `fettler resume`: let no more jobs start, and let them start again. What runs goes on.

use fettler_model::Scope;
use serde_json::json;

use super::limit::{names, words};
use crate::{
    app::App,
    args::{PauseArgs, PauseScopeArgs, ResumeArgs},
    failure::{Exit, Failure, Outcome},
    output::table,
    select, units,
};

pub(crate) async fn pause(app: &App, args: &PauseArgs) -> Outcome {
    let desk = app.desk().await?;
    let names = names(app).await?;
    if args.list {
        let pauses = desk.pauses().await?;
        app.output.result(&json!({ "pauses": pauses }), || {
            if pauses.is_empty() {
                return "Nothing is paused.".to_owned();
            }
            table(
                &["paused", "since", "because"],
                pauses.iter().map(|pause| {
                    vec![
                        words(&pause.scope, &names),
                        units::moment(pause.since),
                        pause.because.clone().unwrap_or_default(),
                    ]
                }),
            )
        });
        return Ok(Exit::Done);
    }
    let scope = of(app, &args.scope).await?;
    let paused = desk.pause(&scope, args.because.as_deref()).await?;
    app.output.result(&paused, || {
        format!(
            "No job of {} starts until `fettler resume` says so. What runs goes on.",
            words(&scope, &names)
        )
    });
    Ok(Exit::Done)
}

pub(crate) async fn resume(app: &App, args: &ResumeArgs) -> Outcome {
    let desk = app.desk().await?;
    let scope = of(app, &args.scope).await?;
    let woken = app.readying(desk.resume(&scope)).await?;
    let names = names(app).await?;
    app.output
        .result(&json!({ "resumed": scope, "woken": woken }), || {
            format!(
                "Jobs of {} start again, in their order.",
                words(&scope, &names)
            )
        });
    Ok(Exit::Done)
}

async fn of(app: &App, args: &PauseScopeArgs) -> Result<Scope, Failure> {
    if let Some(name) = &args.database {
        return Ok(Scope::Database(
            select::existing_database(app, name).await?.id,
        ));
    }
    if let Some(name) = &args.policy {
        let document = app
            .desk()
            .await?
            .policy(app.tenant(), name.as_str(), 0)
            .await?;
        return Ok(Scope::Policy(document.policy.id));
    }
    if let Some(kind) = &args.kind {
        app.not_of_one_tenant("a kind")?;
        return Ok(Scope::Kind(kind.clone()));
    }
    match app.asked_tenant() {
        Some(tenant) => Ok(Scope::Tenant(app.desk().await?.tenant(tenant).await?.id)),
        None => Ok(Scope::All),
    }
}
