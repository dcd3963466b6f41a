//! `fettler restore`: puts a backup back.

use fettler_jobs::{BackupPlace, RestoreArguments, RestoreOutput};
use serde_json::json;

use crate::{
    app::App,
    args::RestoreArgs,
    commands::result_of,
    failure::{Exit, Outcome},
    output::pairs,
    run::{self, Asked},
    select,
    services::Use,
    units,
};

pub(crate) async fn run(app: &App, args: &RestoreArgs) -> Outcome {
    let (to, secret) = select::place(&args.to)?;
    let repository = app.repository(Use::Read).await?;
    let backup = select::backup(&repository, &args.backup.backup).await?;
    let password = select::password(app, args.password.as_ref(), secret.as_ref()).await?;
    let arguments = RestoreArguments {
        place: BackupPlace(Some(app.settings().repository_place())),
        backup: backup.id,
        to: to.clone(),
        password,
        only: args.only.clone(),
        overwrite: args.overwrite,
        start_again: args.start_again,
    };
    let asked = Asked {
        kind: "restore",
        database: None,
        arguments: serde_json::to_value(arguments).expect("arguments are plain data"),
        tags: Vec::new(),
        title: format!("restore {}", backup.id.short()),
    };
    if args.detach.detach {
        return run::detach(app, &asked).await;
    }
    let job = run::run(app, &asked).await?;
    let restored: RestoreOutput = result_of(&job)?;
    let mut document = json!(restored);
    document["job"] = json!(job.id);
    app.output.result(&document, || text(&restored));
    Ok(if restored.failed_statements.is_empty() {
        Exit::Done
    } else {
        Exit::FoundWrong
    })
}

fn text(restored: &RestoreOutput) -> String {
    let warnings: Vec<&str> = restored
        .warnings
        .iter()
        .map(|warning| warning.message.as_str())
        .collect();
    pairs(&[
        ("restored", restored.backup.short()),
        ("to", restored.to.to_string()),
        (
            "content",
            format!(
                "{}, {} rows, in {}",
                units::size(restored.bytes),
                units::count(restored.rows),
                units::span(std::time::Duration::from_secs_f64(
                    restored.duration_seconds.max(0.0)
                ))
            ),
        ),
        ("FAILED", restored.failed_statements.join("\n")),
        ("look at", warnings.join("\n")),
    ])
}
