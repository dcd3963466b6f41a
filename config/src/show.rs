//! The settings as `fettler config show` prints them: every field with its value and the origin of the
//! value, and no secret.

use fettler_model::DatabaseUrl;
use serde::Serialize;
use serde_json::Value;

use crate::{
    Settings,
    document::{Node, join},
    schema::Field,
};

/// A field with its value and where the value came from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    /// The field, such as `worker.lease_seconds`.
    pub field: String,
    /// Its value; for what is not set, what is used instead.
    pub value: Value,
    /// `default`, a file with line and column, a variable or a flag.
    pub origin: String,
    /// What the field means.
    pub meaning: String,
}

pub(crate) fn shown(whole: &Node, settings: &Settings) -> Vec<Shown> {
    let mut found = Vec::new();
    collect(whole, Field::root(), "", settings, &mut found);
    found
}

fn collect(
    node: &Node,
    field: Field<'static>,
    path: &str,
    settings: &Settings,
    found: &mut Vec<Shown>,
) {
    for (name, field) in field.children() {
        let inner = join(path, name);
        let value = node.get(&[name]);
        if field.is_section() {
            collect(value.unwrap_or(node), field, &inner, settings, found);
            continue;
        }
        let mut json = value.map_or(Value::Null, Node::to_json);
        if json.is_null() {
            json = used_instead(&inner, settings);
        }
        if field.is_secret_url()
            && let Some(text) = json.as_str()
        {
            json = Value::String(hide_password(text));
        }
        found.push(Shown {
            field: inner,
            value: json,
            origin: value.map_or_else(|| "default".to_owned(), |value| value.origin.to_string()),
            meaning: field.description(),
        });
    }
}

/// What is used where nothing is set and the default depends on other settings.
fn used_instead(field: &str, settings: &Settings) -> Value {
    match field {
        "ledger.url" => settings.ledger_url().into(),
        "repository.place" => settings.repository_place().into(),
        "keys.file" => match settings.key() {
            crate::KeyChoice::File(file) => file.to_string_lossy().into_owned().into(),
            crate::KeyChoice::Passphrase(_) => Value::Null,
        },
        "worker.scratch" => settings.scratch().to_string_lossy().into_owned().into(),
        _ => Value::Null,
    }
}

/// A URL without its password.
fn hide_password(url: &str) -> String {
    match DatabaseUrl::parse_with_password(url) {
        Ok((url, None)) => url.to_string(),
        Ok((url, Some(_))) => url.as_str().replacen('@', ":***@", 1),
        // It may be anything, so that nothing of it is shown.
        Err(_) => "***".to_owned(),
    }
}
