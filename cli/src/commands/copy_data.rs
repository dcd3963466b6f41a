//! `fettler copy-data`: copies a database into another of the same engine.

use fettler_jobs::{CopyDataArguments, CopyDataOutput};
use serde_json::{Value, json};

use crate::{
    app::App,
    args::CopyDataArgs,
    commands::result_of,
    failure::{Exit, Failure, Outcome},
    output::pairs,
    run::{self, Asked},
    select, units,
};

pub(crate) async fn run(app: &App, args: &CopyDataArgs) -> Outcome {
    // A slip in the target is told before anything is added.
    select::place(&args.to)?;
    let source = select::database(app, &args.source(), args.name.as_ref()).await?;
    let asked = Asked {
        kind: "copy-data",
        database: Some(source.id),
        arguments: arguments(app, args).await?,
        submission: args.submission.clone(),
        title: format!("copy {}", source.name),
    };
    if args.submission.detach {
        return run::detach(app, &asked).await;
    }
    let job = run::run(app, &asked).await?;
    let copied: CopyDataOutput = result_of(&job)?;
    let mut document = json!(copied);
    document["job"] = json!(job.id);
    app.output.result(&document, || text(&copied));
    Ok(match copied.equal {
        Some(false) => Exit::FoundWrong,
        _ => Exit::Done,
    })
}

async fn arguments(app: &App, args: &CopyDataArgs) -> Result<Value, Failure> {
    if app.remote().is_some() {
        // The other side seals a password in the URL.
        let mut arguments = json!({
            "to": select::absolute_place(&args.to)?,
            "only": args.only,
            "overwrite": args.overwrite,
            "max_bytes_per_second": args.max_rate,
            "full_speed": args.full_speed,
            "dry_run": args.dry_run,
        });
        if let Some(reference) = &args.target_password {
            arguments["password"] = json!(reference.get()?);
        }
        return Ok(arguments);
    }
    let (to, secret) = select::place(&args.to)?;
    let arguments = CopyDataArguments {
        to,
        password: select::password(app, args.target_password.as_ref(), secret.as_ref()).await?,
        only: args.only.clone(),
        overwrite: args.overwrite,
        max_bytes_per_second: args.max_rate,
        full_speed: args.full_speed,
        dry_run: args.dry_run,
    };
    Ok(serde_json::to_value(arguments).expect("arguments are plain data"))
}

fn text(copied: &CopyDataOutput) -> String {
    let warnings: Vec<&str> = copied
        .warnings
        .iter()
        .map(|warning| warning.message.as_str())
        .chain(copied.notes.iter().map(String::as_str))
        .collect();
    let from = format!("{} ({})", copied.database, copied.engine);
    if copied.dry_run {
        return pairs(&[
            ("would copy", from),
            ("to", copied.to.to_string()),
            ("about", units::size(copied.bytes_read)),
            ("look at", warnings.join("\n")),
        ]) + "\nNothing was changed.";
    }
    let compared = match copied.equal {
        Some(true) if copied.fingerprints_compared == 0 => "nothing could be compared".to_owned(),
        Some(true) => format!(
            "the same: {} fingerprints, counts and values",
            units::count(copied.fingerprints_compared)
        ),
        _ => "DIFFERENT".to_owned(),
    };
    pairs(&[
        ("copied", from),
        ("to", copied.to.to_string()),
        (
            "content",
            format!(
                "{}, {} rows, in {}",
                units::size(copied.bytes),
                units::count(copied.rows),
                units::span(std::time::Duration::from_secs_f64(
                    copied.duration_seconds.max(0.0)
                ))
            ),
        ),
        ("compared", compared),
        ("DIFFERS", copied.mismatches.join("\n")),
        ("FAILED", copied.failed_statements.join("\n")),
        ("beside it", copied.beside.join(", ")),
        ("look at", warnings.join("\n")),
    ])
}
