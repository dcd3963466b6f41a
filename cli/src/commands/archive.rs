//! `fettler archive`: archives the changes of a database until it is stopped.

use fettler_jobs::{ArchiveArguments, ArchiveOutput, BackupPlace};
use serde_json::json;

use crate::{
    app::App,
    args::ArchiveArgs,
    commands::result_of,
    failure::{Exit, Outcome},
    output::pairs,
    run::{self, Asked},
    select,
    services::Use,
    units,
};

pub(crate) async fn run(app: &App, args: &ArchiveArgs) -> Outcome {
    let database = select::database(app, &args.database, args.name.as_ref()).await?;
    let place = match app.remote() {
        Some(_) => None,
        None => {
            app.repository(Use::BackUp).await?;
            Some(app.settings().repository_place())
        }
    };
    let arguments = ArchiveArguments {
        place: BackupPlace(place),
        for_seconds: args.for_seconds,
    };
    let mut submission = args.submission.clone();
    // Two would only take the log from each other.
    submission
        .unique
        .get_or_insert_with(|| format!("archive/{}", database.id));
    let asked = Asked {
        kind: "archive",
        database: Some(database.id),
        arguments: serde_json::to_value(arguments).expect("arguments are plain data"),
        submission,
        title: format!("archive {}", database.name),
    };
    if args.submission.detach {
        return run::detach(app, &asked).await;
    }
    let job = run::run(app, &asked).await?;
    let output: ArchiveOutput = result_of(&job)?;
    let mut document = json!(output);
    document["job"] = json!(job.id);
    app.output.result(&document, || text(&output));
    Ok(Exit::Done)
}

fn text(output: &ArchiveOutput) -> String {
    pairs(&[
        ("archived", output.database.clone()),
        (
            "changes",
            format!(
                "{} in {}",
                units::size(output.bytes),
                units::things(output.objects, "object")
            ),
        ),
        (
            "up to",
            output
                .until
                .map_or_else(|| "nothing yet".to_owned(), units::moment),
        ),
        (
            "GAPS",
            match output.gaps {
                0 => String::new(),
                gaps => units::count(gaps),
            },
        ),
    ])
}
