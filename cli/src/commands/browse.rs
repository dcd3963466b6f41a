//! `fettler browse`: what is inside a backup.

use fettler_jobs::{
    BackupPlace, BrowseOutput, InspectArguments, InspectOutput, PartOutput, browse,
};
use fettler_model::{BackupId, Engine, Problem};
use serde::Serialize;

use crate::{
    app::App,
    args::BrowseArgs,
    commands::{backups::Listed, result_of},
    failure::{Exit, Failure, Outcome},
    output::table,
    run::{self, Asked},
    select,
    services::Use,
    units,
};

/// The fields of `--json`.
#[derive(Serialize)]
struct Document {
    backup: BackupId,
    database: String,
    engine: String,
    #[serde(flatten)]
    inside: BrowseOutput,
}

pub(crate) async fn run(app: &App, args: &BrowseArgs) -> Outcome {
    let (listed, objects) = if let Some(remote) = app.remote() {
        let record = select::backup_there(app, remote, &args.backup.backup).await?;
        let arguments = InspectArguments {
            place: BackupPlace(None),
            backup: record.facts.id,
        };
        let title = format!("browse {}", record.facts.id.short());
        let job = run::run(app, &Asked::about("inspect", &arguments, title)).await?;
        let inside: InspectOutput = result_of(&job)?;
        (Listed::catalogued(&record), inside.objects)
    } else {
        let repository = app.repository(Use::Read).await?;
        let summary = select::backup(&repository, &args.backup.backup).await?;
        let manifest = repository.manifest(summary.id).await?;
        let inside = InspectOutput::of(&repository, &manifest)?;
        (Listed::of(&manifest.summary, None), inside.objects)
    };
    let engine: Engine = listed.engine.parse().map_err(|_| {
        Problem::permanent(
            "backup.unknown_engine",
            format!("the backup is of {}, which is not known", listed.engine),
            "a newer Fettler may have made it: use that version or a later one",
        )
    })?;
    let inside = browse(engine, &objects, args.path.as_deref()).map_err(|near| {
        let path = args.path.as_deref().unwrap_or_default();
        Failure::nothing(
            format!("the backup holds nothing that is called {path:?}"),
            if near.is_empty() {
                "`fettler browse` with the backup alone lists all".to_owned()
            } else {
                format!("is it {}?", near.join(" or "))
            },
        )
    })?;
    let document = Document {
        backup: listed.backup,
        database: listed.database,
        engine: listed.engine,
        inside,
    };
    app.output
        .result(&document, || text(&document.inside, app.output.verbose));
    Ok(Exit::Done)
}

fn text(inside: &BrowseOutput, is_verbose: bool) -> String {
    if inside.parts.is_empty() {
        return "The backup holds nothing.".to_owned();
    }
    let mut header = vec!["what", "name", "rows", "bytes"];
    if is_verbose {
        header.push("fingerprint");
    }
    let size = |bytes: u64| {
        if bytes > 0 {
            units::size(bytes)
        } else {
            String::new()
        }
    };
    let line = |part: &PartOutput, indent: &str| {
        let mut line = vec![
            format!("{indent}{}", part.what),
            part.name.clone(),
            part.rows.map_or_else(String::new, units::count),
            size(part.bytes),
        ];
        if is_verbose {
            let print = part.fingerprint.map(|print| print.to_string());
            line.push(print.or_else(|| part.value.clone()).unwrap_or_default());
        }
        line
    };
    let in_none = inside.parts.iter().filter(|part| part.container.is_none());
    let mut rows: Vec<Vec<String>> = in_none.map(|part| line(part, "")).collect();
    for container in &inside.containers {
        rows.push(vec![
            container.what.clone(),
            container.name.clone(),
            units::count(container.rows),
            size(container.bytes),
        ]);
        let inner = inside
            .parts
            .iter()
            .filter(|part| part.container.as_ref() == Some(&container.name));
        rows.extend(inner.map(|part| line(part, "  ")));
    }
    if is_verbose {
        for row in &mut rows {
            row.resize(header.len(), String::new());
        }
    }
    table(&header, rows)
}
