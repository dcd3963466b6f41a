//! `fettler ping`: asks a database who it is.

use fettler_jobs::{PingArguments, PingOutput};
use serde_json::json;

use crate::{
    app::App,
    args::PingArgs,
    commands::result_of,
    failure::{Exit, Outcome},
    output::pairs,
    run::{self, Asked},
    select, units,
};

pub(crate) async fn run(app: &App, args: &PingArgs) -> Outcome {
    let database = select::database(app, &args.database, None).await?;
    let asked = Asked {
        kind: "ping",
        database: Some(database.id),
        arguments: json!(PingArguments::default()),
        submission: args.submission.clone(),
        title: format!("ping {}", database.name),
    };
    if args.submission.detach {
        return run::detach(app, &asked).await;
    }
    let job = run::run(app, &asked).await?;
    let output: PingOutput = result_of(&job)?;
    let mut document = json!(output);
    document["database"] = json!(database.name);
    document["job"] = json!(job.id);
    app.output.result(&document, || {
        pairs(&[
            ("database", format!("{} ({})", database.name, output.engine)),
            ("version", output.version.clone()),
            ("size", format!("about {}", units::size(output.bytes))),
            ("answered in", format!("{:.1} ms", output.milliseconds)),
        ])
    });
    Ok(Exit::Done)
}
