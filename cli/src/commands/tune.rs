//! `fettler tune`: says what would make a database faster, does what is safe, and takes back what a job has done.

use fettler_jobs::{TuneArguments, TuneOutput};
use fettler_model::{DatabaseName, Finding, Status, TuningAction, TuningRecord, TuningState};
use fettler_tuning::{MOST_STATEMENT_BYTES, MOST_STATEMENTS};
use serde_json::json;

use crate::{
    app::App,
    args::{DatabaseArg, TuneArgs, TuneCommand},
    commands::{health::told, result_of},
    failure::{Exit, Failure, Outcome},
    run::{self, Asked},
    select, units,
};

pub(crate) async fn run(app: &App, args: &TuneArgs) -> Outcome {
    if let Some(TuneCommand::Undo { job, submission }) = &args.command {
        let desk = app.desk().await?;
        let record = desk.find_job(app.tenant(), &job.job).await?;
        let named = desk
            .databases(app.tenant())
            .await?
            .into_iter()
            .find(|database| {
                Some(database.id) == record.database && record.kind.as_str() == "tune"
            });
        let Some(database) = named else {
            return Err(Failure::usage(
                format!(
                    "job {} has tuned no database that is known",
                    record.id.short()
                ),
                "`fettler jobs --all` lists jobs with their kinds",
            ));
        };
        let arguments = TuneArguments {
            undo: Some(record.id),
            ..TuneArguments::default()
        };
        let asked = Asked {
            kind: "tune",
            database: Some(database.id),
            arguments: json!(arguments),
            submission: submission.clone(),
            title: format!(
                "taking back what {} did to {}",
                record.id.short(),
                database.name
            ),
        };
        return seen_through(app, &asked, &database.name, args.explain).await;
    }
    let Some(text) = &args.database else {
        return Err(Failure::usage(
            "no database is named",
            "`fettler tune postgres://user@host/database`, or the name of a known database",
        ));
    };
    let given = DatabaseArg {
        database: text.clone(),
        password: args.password.clone(),
    };
    let database = select::database(app, &given, None).await?;
    let mut arguments = args.arguments();
    if let Some(file) = &args.statements {
        arguments.wishes.statements = given_statements(file)?;
    }
    for name in &args.replicas {
        arguments
            .replicas
            .push(select::existing_database(app, name).await?.id);
    }
    let asked = Asked {
        kind: "tune",
        database: Some(database.id),
        arguments: json!(arguments),
        submission: args.submission.clone(),
        title: format!("tuning {}", database.name),
    };
    seen_through(app, &asked, &database.name, args.explain).await
}

/// The statements of a file.
fn given_statements(file: &std::path::Path) -> Result<Vec<String>, Failure> {
    let wrong = |what: String| {
        Failure::usage(
            format!("--statements {}: {what}", file.display()),
            "name a file of SQL statements, each ended by a semicolon, such as the application's most frequent ones",
        )
    };
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let statements = fettler_tuning::statements(&text);
    if statements.is_empty() {
        return Err(wrong("there is no statement in it".to_owned()));
    }
    if statements.len() > MOST_STATEMENTS {
        return Err(wrong(format!(
            "{} statements are more than the {MOST_STATEMENTS} that are looked at",
            statements.len()
        )));
    }
    if let Some(long) = statements
        .iter()
        .find(|one| one.len() > MOST_STATEMENT_BYTES)
    {
        return Err(wrong(format!(
            "a statement of {} bytes is longer than the {MOST_STATEMENT_BYTES} that are read",
            long.len()
        )));
    }
    Ok(statements)
}

async fn seen_through(app: &App, asked: &Asked, name: &DatabaseName, explain: bool) -> Outcome {
    if asked.submission.detach {
        return run::detach(app, asked).await;
    }
    let job = run::run(app, asked).await?;
    let output: TuneOutput = result_of(&job)?;
    let mut document = json!(output);
    document["database"] = json!(name);
    document["job"] = json!(job.id);
    let short = job.id.short();
    app.output.result(&document, || {
        words(name, &short.to_string(), &output, explain)
    });
    Ok(Exit::Done)
}

fn words(name: &DatabaseName, job: &str, output: &TuneOutput, explain: bool) -> String {
    let open: Vec<&Finding> = output
        .findings
        .iter()
        .filter(|finding| finding.status == Status::Open)
        .collect();
    let mut text = format!(
        "{name} ({} {}): {}, {} looked at{}\n",
        output.engine,
        output.version,
        match open.len() {
            0 => "nothing found".to_owned(),
            found => units::things(found as u64, "finding"),
        },
        units::things(output.statements as u64, "statement"),
        match output.unread_statements {
            0 => String::new(),
            unread => format!(" ({unread} could not be read)"),
        },
    );
    if !output.done.is_empty() {
        text.push_str("\nDone:\n");
        for record in &output.done {
            text.push_str(&done(record));
        }
        let kept = |record: &&TuningRecord| {
            matches!(record.state, TuningState::Kept | TuningState::Observing)
        };
        if output.done.iter().any(|record| kept(&record)) {
            text.push_str(&format!("  `fettler tune undo {job}` takes it back.\n"));
        }
    }
    for finding in &open {
        text.push_str(&format!("\n{}", told(finding, explain)));
    }
    if !output.plan.is_empty() {
        text.push_str("\nPlan:\n");
        for action in &output.plan {
            text.push_str(&planned(action, explain));
        }
        if output.plan.iter().any(|action| action.safe) {
            text.push_str("  `--apply` does what is marked safe.\n");
        }
    }
    text
}

fn done(record: &TuningRecord) -> String {
    format!(
        "  {:10} {}: {}\n",
        record.state.as_str().replace('_', " "),
        record.action.apply.join("; "),
        record.why
    )
}

fn planned(action: &TuningAction, explain: bool) -> String {
    let mark = if action.safe { "safe" } else { "by hand" };
    let mut text = format!("  {mark:8} {};\n", action.apply.join("; "));
    text.push_str(&format!("           {}\n", action.reason));
    if !action.safe {
        text.push_str(&format!("           not safe: {}\n", action.unsafe_because));
    }
    if explain {
        text.push_str(&format!("           back: {};\n", action.undo.join("; ")));
    }
    text
}
