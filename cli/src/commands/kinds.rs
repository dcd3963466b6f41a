//! `fettler kinds`: the kinds of jobs and what they take.

use fettler_jobs::{DynKind, Registry};
use serde_json::{Value, json};

use crate::{
    app::App,
    args::KindsArgs,
    failure::{Exit, Failure, Outcome},
    output::table,
};

pub(crate) fn run(app: &App, args: &KindsArgs) -> Outcome {
    let registry = Registry::standard();
    match &args.kind {
        Some(name) => {
            let kind = registry
                .get(name)
                .map_err(|error| Failure::usage(error.to_string(), "`fettler kinds` lists them"))?;
            let document = document(&**kind);
            app.output.result(&document, || one(&**kind));
        }
        None => {
            let kinds: Vec<Value> = registry.iter().map(|kind| document(&**kind)).collect();
            app.output.result(&json!({ "kinds": kinds }), || {
                table(
                    &["kind", "slot", "excludes", "tries", "takes"],
                    registry.iter().map(|kind| {
                        vec![
                            kind.name().to_string(),
                            kind.slot().as_str().to_owned(),
                            kind.exclusion().as_str().to_owned(),
                            kind.max_tries().to_string(),
                            fields(&kind.argument_schema())
                                .into_iter()
                                .map(|(name, _)| name)
                                .collect::<Vec<_>>()
                                .join(", "),
                        ]
                    }),
                )
            });
        }
    }
    Ok(Exit::Done)
}

fn document(kind: &dyn DynKind) -> Value {
    json!({
        "kind": kind.name(),
        "version": kind.version(),
        "slot": kind.slot(),
        "exclusion": kind.exclusion(),
        "max_tries": kind.max_tries(),
        "arguments": kind.argument_schema(),
    })
}

fn fields(schema: &Value) -> Vec<(String, String)> {
    schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, field)| {
            let text = field["description"].as_str().unwrap_or_default();
            (name.clone(), text.replace('\n', " "))
        })
        .collect()
}

fn one(kind: &dyn DynKind) -> String {
    format!(
        "{}: {} slot, excludes {}, at most {} tries. As a policy's `--argument FIELD=VALUE`:\n\n{}",
        kind.name(),
        kind.slot().as_str(),
        kind.exclusion().as_str(),
        kind.max_tries(),
        table(
            &["field", "meaning"],
            fields(&kind.argument_schema())
                .into_iter()
                .map(|(name, meaning)| vec![name, meaning])
        )
    )
}
