//! `fettler config`: the settings with the origin of each, and every mistake in them. It starts nothing,
//! so that it works where nothing else does.

use fettler_config::{ConfigError, Mistake, Shown};
use serde_json::{Value, json};

use crate::{
    app,
    args::{ConfigCommand, Global},
    failure::{Exit, Outcome},
    output::{Output, plain, table},
};

pub(crate) fn run(global: &Global, command: &ConfigCommand, output: Output) -> Outcome {
    let sources = app::sources(global)?;
    match (command, fettler_config::load(&sources)) {
        (ConfigCommand::Show, Ok(loaded)) => {
            let document = json!({ "settings": loaded.shown, "files": loaded.files });
            output.result(&document, || text(&loaded.shown));
            Ok(Exit::Done)
        }
        (ConfigCommand::Check, Ok(loaded)) => {
            let document = json!({ "ok": true, "mistakes": [], "files": loaded.files });
            output.result(&document, || {
                let read: Vec<String> = loaded
                    .files
                    .iter()
                    .map(|file| file.display().to_string())
                    .collect();
                if read.is_empty() {
                    "There is no file of settings; the defaults hold.".to_owned()
                } else {
                    format!("No mistakes in {}.", read.join(", "))
                }
            });
            Ok(Exit::Done)
        }
        (ConfigCommand::Check, Err(ConfigError::Mistakes(mistakes))) => {
            let told: Vec<Value> = mistakes.iter().map(document).collect();
            output.result(&json!({ "ok": false, "mistakes": told }), || {
                mistakes
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("\n")
            });
            Ok(Exit::FoundWrong)
        }
        (_, Err(error)) => Err(error.into()),
    }
}

fn document(mistake: &Mistake) -> Value {
    json!({
        "origin": mistake.origin.to_string(),
        "line": (mistake.origin.line > 0).then_some(mistake.origin.line),
        "column": (mistake.origin.line > 0).then_some(mistake.origin.column),
        "field": mistake.field,
        "what": mistake.what,
        "suggestion": mistake.suggestion,
    })
}

fn text(shown: &[Shown]) -> String {
    table(
        &["field", "value", "from"],
        shown.iter().map(|one| {
            vec![
                one.field.clone(),
                if one.value.is_null() {
                    "-".to_owned()
                } else {
                    plain(&one.value)
                },
                one.origin.clone(),
            ]
        }),
    )
}
