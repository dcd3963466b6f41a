//! `fettler backup`: backs up a database, with or without any configuration.

use fettler_jobs::{
    BackupArguments, BackupOutput, BackupPlace, Hooks, ProveArguments, ProveOutput,
};
use fettler_model::BackupId;
use serde_json::{Value, json};

use crate::{
    app::App,
    args::BackupArgs,
    commands::{proof_text, result_of},
    failure::{Exit, Failure, Outcome},
    output::pairs,
    run::{self, Asked},
    select,
    services::Use,
    units,
};

pub(crate) async fn run(app: &App, args: &BackupArgs) -> Outcome {
    let database = select::database(app, &args.database, args.name.as_ref()).await?;
    // Another Fettler has a repository of its own.
    let place = match app.remote() {
        Some(_) => None,
        None => {
            // Repository and key come before the job: a wrong key is told at once, and a new one loudly.
            app.repository(Use::BackUp).await?;
            Some(app.settings().repository_place())
        }
    };
    let arguments = BackupArguments {
        place: BackupPlace(place.clone()),
        exclude: args.exclude.clone(),
        max_bytes_per_second: args.max_rate,
        tags: args.tags.clone(),
        read_everything: args.read_everything,
        by_server: args.by_server.clone(),
        full_speed: args.full_speed,
        // Somebody who waits wants to see the proof: it is a job of its own below.
        prove: args.prove && args.submission.detach,
        hooks: Hooks {
            before: args.before.clone(),
            after: args.after.clone(),
            timeout_seconds: args.hook_timeout,
        },
    };
    let asked = Asked {
        kind: "backup",
        database: Some(database.id),
        arguments: serde_json::to_value(arguments).expect("arguments are plain data"),
        submission: args.submission.clone(),
        title: format!("backup {}", database.name),
    };
    if args.submission.detach {
        return run::detach(app, &asked).await;
    }
    let job = run::run(app, &asked).await?;
    let output: BackupOutput = result_of(&job)?;
    let proof = if args.prove {
        Some(prove(app, &output, &asked, place.clone()).await?)
    } else {
        None
    };
    let mut document = document(&output)?;
    document["job"] = json!(job.id);
    document["repository"] = json!(place);
    if let Some(proof) = &proof {
        document["proof"] = json!(proof);
    }
    let place = place.unwrap_or_default();
    app.output
        .result(&document, || text(&output, &place, proof.as_ref()));
    Ok(match proof {
        Some(proof) if !proof.proven => Exit::FoundWrong,
        _ => Exit::Done,
    })
}

async fn prove(
    app: &App,
    backup: &BackupOutput,
    asked: &Asked,
    place: Option<String>,
) -> Result<ProveOutput, Failure> {
    let arguments = ProveArguments {
        place: BackupPlace(place),
        backup: backup.backup,
        sandbox: None,
    };
    let job = run::run(
        app,
        &Asked {
            kind: "prove",
            database: asked.database,
            arguments: serde_json::to_value(arguments).expect("arguments are plain data"),
            submission: asked.submission.clone(),
            title: format!("prove {}", backup.database),
        },
    )
    .await?;
    result_of(&job)
}

fn document(output: &BackupOutput) -> Result<Value, Failure> {
    serde_json::to_value(output).map_err(|error| {
        fettler_model::Problem::permanent("cli.document", error.to_string(), "").into()
    })
}

/// What a backup did, for people.
fn counts(output: &BackupOutput) -> String {
    let seconds = output.duration_seconds.max(0.001);
    // A rate for people needs no exactness.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rate = (output.bytes_read as f64 / seconds) as u64;
    format!(
        "{} read, {} new, {} stored, in {} ({}/s)",
        units::size(output.bytes_read),
        units::size(output.bytes_new),
        units::size(output.bytes_stored),
        units::span(std::time::Duration::from_secs_f64(output.duration_seconds)),
        units::size(rate),
    )
}

fn text(output: &BackupOutput, place: &str, proof: Option<&ProveOutput>) -> String {
    let short = output.backup.short();
    let warnings: Vec<String> = output
        .warnings
        .iter()
        .map(|warning| warning.message.clone())
        .collect();
    let mut text = pairs(&[
        ("backup", format!("{short}  ({})", output.backup)),
        (
            "database",
            format!("{} ({})", output.database, output.engine),
        ),
        (
            "parent",
            output
                .parent
                .map_or_else(|| "none: the first one".to_owned(), BackupId::short),
        ),
        ("bytes", counts(output)),
        ("streams", units::count(output.streams)),
        ("repository", place.to_owned()),
        ("look at", warnings.join("\n")),
    ]);
    match proof {
        Some(proof) => text.push_str(&proof_text(proof)),
        None => text.push_str(&format!(
            "\nComplete. `fettler prove {short}` shows that it restores."
        )),
    }
    text
}
