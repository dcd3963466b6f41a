//! `fettler preflight`: what a database's server allows, before any byte is read.

use fettler_engine::{BackupOptions, PreflightItem, PreflightLevel, Target};
use fettler_jobs::Services;
use serde_json::json;

use crate::{
    app::App,
    args::PreflightArgs,
    failure::{Exit, Failure, Outcome},
    output::table,
    select, units,
};

pub(crate) async fn run(app: &App, args: &PreflightArgs) -> Outcome {
    let target = target(app, args).await?;
    let engine = fettler_engines::engine(target.url.engine());
    let identity = engine.identify(&target).await?;
    let options = BackupOptions {
        exclude: args.exclude.clone(),
        ..BackupOptions::default()
    };
    let items = engine.preflight(&target, &options).await?;
    let stops = items.iter().any(|item| item.level == PreflightLevel::Stops);
    let document = json!({ "ok": !stops, "identity": identity, "items": items });
    app.output.result(&document, || {
        format!(
            "{} {}, about {}\n\n{}",
            identity.engine,
            identity.version,
            units::size(identity.estimated_bytes),
            text(&items)
        )
    });
    Ok(if stops { Exit::FoundWrong } else { Exit::Done })
}

/// The database, known or not; a look adds nothing to the ledger.
async fn target(app: &App, args: &PreflightArgs) -> Result<Target, Failure> {
    let services = app.services().await?;
    let given = &args.database;
    if let Some(known) = select::known_database(app, &given.database).await? {
        let reference = match &given.password {
            Some(given) => Some(given.get()?),
            None => known.password,
        };
        let password = match reference {
            Some(reference) => Some(services.secret(app.tenant(), &reference).await?),
            None => None,
        };
        return Ok(Target {
            url: known.url,
            password,
        });
    }
    let (url, secret) = select::place(&given.database)?;
    let password = match (&given.password, secret) {
        (Some(_), Some(_)) => {
            return Err(Failure::usage(
                "the password is given twice, in the URL and with `--password-from`",
                "leave it out of the URL",
            ));
        }
        (Some(reference), None) => Some(services.secret(app.tenant(), &reference.get()?).await?),
        (None, secret) => secret,
    };
    Ok(Target { url, password })
}

fn text(items: &[PreflightItem]) -> String {
    table(
        &["", "what", "found", "what to do"],
        items.iter().map(|item| {
            vec![
                match item.level {
                    PreflightLevel::Fine => "ok",
                    PreflightLevel::Missing => "missing",
                    PreflightLevel::Stops => "STOPS",
                }
                .to_owned(),
                item.subject.clone(),
                item.message.clone(),
                item.remedy.clone(),
            ]
        }),
    )
}
