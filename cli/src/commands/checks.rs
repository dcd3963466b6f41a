//! `fettler checks`: the checks that looks are made of, those that ship and the user's own.

use std::path::Path;

use fettler_checks::{Check, Library, LoadError, Source, outcome_of_example};
use serde_json::{Value, json};

use crate::{
    app::App,
    args::ChecksCommand,
    failure::{Exit, Failure, Outcome},
    folder,
    output::{pairs, table},
};

pub(crate) fn run(app: &App, command: &ChecksCommand) -> Outcome {
    match command {
        ChecksCommand::List { engine } => {
            let library = library(app)?;
            let checks: Vec<&Check> = library
                .iter()
                .filter(|check| engine.is_none_or(|engine| check.engine == engine))
                .collect();
            list(app, &checks);
            Ok(Exit::Done)
        }
        ChecksCommand::Explain { check, source } => {
            let library = library(app)?;
            let found = library.get(check).ok_or_else(|| {
                Failure::usage(
                    format!("no check is called {check:?}"),
                    "`fettler checks list` lists them",
                )
            })?;
            explain(app, found, *source)
        }
        ChecksCommand::Test { folder } => test(app, folder.as_deref()),
    }
}

/// The checks of this installation.
fn library(app: &App) -> Result<Library, Failure> {
    match folder::own_checks(&app.settings().folder) {
        None => Ok(Library::shipped()),
        Some(folder) => Library::shipped().with_folder(&folder).map_err(refused),
    }
}

fn refused(error: LoadError) -> Failure {
    Failure::usage(error.to_string(), error.remedy)
}

fn list(app: &App, checks: &[&Check]) {
    let document: Vec<Value> = checks.iter().map(|check| document(check)).collect();
    app.output.result(&json!({ "checks": document }), || {
        table(
            &["check", "of", "severity", "level", "finds"],
            checks.iter().map(|check| {
                vec![
                    check.id.clone(),
                    check.heading.to_string(),
                    check.severity.to_string(),
                    word(&check.level),
                    check.title.to_string(),
                ]
            }),
        )
    });
}

fn word(value: &impl serde::Serialize) -> String {
    crate::output::plain(&json!(value))
}

fn document(check: &Check) -> Value {
    let questions: Vec<Value> = check
        .variants
        .iter()
        .map(|variant| json!({"versions": variant.versions.to_string(), "question": variant.question.trim()}))
        .collect();
    json!({
        "id": check.id,
        "engine": check.engine,
        "area": check.area,
        "job": check.heading.job(),
        "dimension": check.heading.dimension(),
        "group": check.heading.group(),
        "severity": check.severity,
        "level": check.level,
        "source": check.source,
        "needs": check.needs,
        "questions": questions,
        "timeout_seconds": check.timeout_seconds,
        "when": check.when.source(),
        "title": check.title.to_string(),
        "why": check.why,
        "fix": check.fix_text.to_string(),
        "references": check.references,
        "file": check.file,
    })
}

fn explain(app: &App, check: &Check, source: bool) -> Outcome {
    if source {
        let text = match Library::shipped_text(&check.file) {
            Some(text) => text.to_owned(),
            None => std::fs::read_to_string(&check.file).map_err(|error| {
                Failure::local(format!("{} cannot be read", check.file), &error)
            })?,
        };
        app.output
            .result(&json!({"file": check.file, "text": text}), || text.clone());
        return Ok(Exit::Done);
    }
    app.output.result(&document(check), || {
        let graver = check
            .graver
            .iter()
            .map(|(when, severity)| format!("{severity} when {}", when.source()))
            .collect::<Vec<_>>()
            .join("\n");
        let from = match check.source {
            Source::Server => check
                .variants
                .iter()
                .map(|variant| {
                    format!(
                        "({} versions) {}",
                        variant.versions,
                        variant.question.trim()
                    )
                })
                .collect::<Vec<_>>()
                .join("\n"),
            Source::Ledger => "what the ledger knows of the database's backups".to_owned(),
            Source::Connection => "how long the connection took".to_owned(),
            Source::Release => "the list of releases, for the server's own".to_owned(),
            Source::Vulnerabilities => {
                "the list of releases, for what is known of the server's own".to_owned()
            }
        };
        pairs(&[
            ("check", check.id.clone()),
            ("finds", check.title.to_string()),
            ("why", check.why.clone()),
            ("fix", check.fix_text.to_string()),
            (
                "commands",
                check
                    .fix_commands
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
            ("of", check.heading.to_string()),
            ("severity", check.severity.to_string()),
            ("or", graver),
            ("level", word(&check.level)),
            ("asks", from),
            ("needs", check.needs.clone().unwrap_or_default()),
            ("finding when", check.when.source().to_owned()),
            ("see", check.references.join("\n")),
            ("file", check.file.clone()),
        ])
    });
    Ok(Exit::Done)
}

fn test(app: &App, folder: Option<&Path>) -> Outcome {
    let own = match folder {
        Some(folder) => folder.to_path_buf(),
        None => folder::own_checks(&app.settings().folder).ok_or_else(|| {
            Failure::nothing(
                format!(
                    "there is no folder {}",
                    app.settings().folder.join("checks").display()
                ),
                "make it and put checks into it, or name another folder",
            )
        })?,
    };
    let library = Library::default().with_folder(&own).map_err(refused)?;
    let results: Vec<(&Check, Vec<String>)> = library
        .iter()
        .map(|check| (check, outcome_of_example(check).err().unwrap_or_default()))
        .collect();
    if results.is_empty() {
        return Err(Failure::nothing(
            format!("there is no check in {}", own.display()),
            "a check is a file whose name ends in .yaml",
        ));
    }
    let is_wrong = results.iter().any(|(_, wrong)| !wrong.is_empty());
    let document: Vec<Value> = results
        .iter()
        .map(|(check, wrong)| json!({"id": check.id, "file": check.file, "ok": wrong.is_empty(), "wrong": wrong}))
        .collect();
    app.output
        .result(&json!({"ok": !is_wrong, "checks": document}), || {
            table(
                &["check", "result", "file"],
                results.iter().map(|(check, wrong)| {
                    let result = if wrong.is_empty() {
                        "ok".to_owned()
                    } else {
                        wrong.join("; ")
                    };
                    vec![check.id.clone(), result, check.file.clone()]
                }),
            )
        });
    Ok(if is_wrong {
        Exit::FoundWrong
    } else {
        Exit::Done
    })
}
