//! `fettler collect`: gives back the space of what no backup needs.

use fettler_jobs::{BackupPlace, CollectArguments, CollectOutput};
use serde_json::json;

use crate::{
    app::App,
    args::CollectArgs,
    commands::result_of,
    failure::{Exit, Outcome},
    run::{self, Asked},
    services::Use,
    units,
};

pub(crate) async fn run(app: &App, args: &CollectArgs) -> Outcome {
    let place = if app.remote().is_some() {
        None
    } else {
        app.repository(Use::Read).await?;
        Some(app.settings().repository_place())
    };
    let arguments = CollectArguments {
        place: BackupPlace(place),
        grace_seconds: args.grace,
        dry_run: args.dry_run,
    };
    let job = run::run(
        app,
        &Asked::about("collect", &arguments, "collect".to_owned()),
    )
    .await?;
    let output: CollectOutput = result_of(&job)?;
    let grace = args
        .grace
        .unwrap_or(app.settings().retention.collection_grace_seconds);
    let mut document = json!(output);
    document["job"] = json!(job.id);
    document["grace_seconds"] = json!(grace);
    app.output.result(&document, || text(&output, grace));
    Ok(
        if output.marked_objects == 0 && output.deleted_objects == 0 {
            Exit::Nothing
        } else {
            Exit::Done
        },
    )
}

fn text(output: &CollectOutput, grace_seconds: u64) -> String {
    let mut lines = Vec::new();
    let what = |objects: u64, bytes: u64| {
        format!(
            "{} ({})",
            units::things(objects, "object"),
            units::size(bytes)
        )
    };
    let (deleted, marked) = if output.dry_run {
        ("Would delete", "Would mark")
    } else {
        ("Deleted", "Marked")
    };
    if output.deleted_objects > 0 {
        lines.push(format!(
            "{deleted} {}.",
            what(output.deleted_objects, output.deleted_bytes)
        ));
    }
    if output.marked_objects > 0 {
        lines.push(format!(
            "{marked} {} that nobody needs, for a collection in {} or later to delete.",
            what(output.marked_objects, output.marked_bytes),
            units::span(std::time::Duration::from_secs(grace_seconds))
        ));
    }
    if lines.is_empty() {
        lines.push("There is nothing to collect.".to_owned());
    }
    lines.join("\n")
}
