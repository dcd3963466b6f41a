//! `fettler restore`: puts a backup back, or a database as it was at a moment.

use fettler_jobs::{BackupPlace, RestoreArguments, RestoreOutput, is_cleanup_archive};
use fettler_model::BackupId;
use serde_json::{Value, json};

use crate::{
    app::App,
    args::RestoreArgs,
    commands::result_of,
    failure::{Exit, Failure, Outcome},
    output::pairs,
    run::{self, Asked},
    select,
    services::Use,
    units,
};

pub(crate) async fn run(app: &App, args: &RestoreArgs) -> Outcome {
    let (backup, arguments) = match app.remote() {
        Some(remote) => {
            let backup = select::backup_there(app, remote, &args.backup).await?;
            let mut arguments = json!({
                "backup": backup.facts.id,
                "to": select::absolute_place(&args.to)?,
                "only": args.only,
                "overwrite": args.overwrite,
                "start_again": args.start_again,
            });
            if let Some(at) = args.to_time {
                arguments["to_time"] = json!(at);
            }
            if let Some(reference) = &args.password {
                arguments["password"] = json!(reference.get()?);
            }
            (backup.facts.id, arguments)
        }
        None => here(app, args).await?,
    };
    let asked = Asked {
        kind: "restore",
        database: None,
        arguments,
        submission: args.submission.clone(),
        title: format!("restore {}", backup.short()),
    };
    if args.submission.detach {
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

/// What is asked of this folder's own repository.
async fn here(app: &App, args: &RestoreArgs) -> Result<(BackupId, Value), Failure> {
    let (to, secret) = select::place(&args.to)?;
    let repository = app.repository(Use::Read).await?;
    let listing = repository.backups().await?;
    // With a moment any backup of the database says which one is meant.
    let of_database = listing.backups.iter().rfind(|summary| {
        args.to_time.is_some()
            && summary.database_name == args.backup
            && !is_cleanup_archive(summary)
    });
    let backup = match of_database {
        Some(backup) => backup.clone(),
        None => select::find_backup(&listing, &args.backup, repository.place())?,
    };
    let password = select::password(app, args.password.as_ref(), secret.as_ref()).await?;
    let arguments = RestoreArguments {
        place: BackupPlace(Some(app.settings().repository_place())),
        backup: backup.id,
        to_time: args.to_time,
        to,
        password,
        only: args.only.clone(),
        overwrite: args.overwrite,
        start_again: args.start_again,
    };
    let arguments = serde_json::to_value(arguments).expect("arguments are plain data");
    Ok((backup.id, arguments))
}

fn text(restored: &RestoreOutput) -> String {
    let warnings: Vec<&str> = restored
        .warnings
        .iter()
        .map(|warning| warning.message.as_str())
        .collect();
    pairs(&[
        ("restored", restored.backup.short()),
        (
            "as it was at",
            restored
                .complete_at
                .or(restored.to_time)
                .map_or_else(String::new, |at| at.to_string()),
        ),
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
