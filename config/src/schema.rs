//! The check of a document against the fields of [`Settings`](crate::Settings). The schema is made from
//! the type itself, so that a field exists in one place only.

use std::sync::LazyLock;

use fettler_model::{DatabaseUrl, SecretReference, TenantId};
use serde_json::Value;

use crate::{
    Mistake, Network, Settings, Source,
    document::{Content, Node, join},
    mistake::nearest,
};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| schemars::schema_for!(Settings).into());

/// A field's part of the schema.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a>(&'a Value);

impl Field<'static> {
    /// All settings.
    pub(crate) fn root() -> Self {
        Field(&SCHEMA).resolved()
    }
}

impl<'a> Field<'a> {
    /// The part that describes the value: through references, and without "or nothing".
    fn resolved(self) -> Self {
        let mut at = self.0;
        loop {
            if let Some(reference) = at["$ref"].as_str() {
                let name = reference.rsplit('/').next().unwrap_or_default();
                at = &SCHEMA["$defs"][name];
            } else if let Some(choices) = at["anyOf"].as_array() {
                match choices.iter().find(|choice| choice["type"] != "null") {
                    Some(choice) => at = choice,
                    None => return Field(at),
                }
            } else {
                return Field(at);
            }
        }
    }

    /// The field of this name in a section.
    pub(crate) fn child(self, name: &str) -> Option<Field<'static>>
    where
        'a: 'static,
    {
        self.resolved().0["properties"].get(name).map(Field)
    }

    /// The fields of a section.
    pub(crate) fn children(self) -> impl Iterator<Item = (&'a str, Field<'a>)> {
        self.resolved().0["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, field)| (name.as_str(), Field(field)))
    }

    /// Whether this is a section.
    pub(crate) fn is_section(self) -> bool {
        self.resolved().0["properties"].is_object()
    }

    /// What is said of the field.
    pub(crate) fn description(self) -> String {
        self.0["description"]
            .as_str()
            .or_else(|| self.resolved().0["description"].as_str())
            .unwrap_or_default()
            .replace('\n', " ")
    }

    fn mark(self, name: &str) -> &'a Value {
        &self.0[name]
    }

    /// Whether the value is a path, which is read from where it was written.
    pub(crate) fn is_path(self) -> bool {
        self.mark("x-path") == true
    }

    /// Whether the value is a URL that may hold a password.
    pub(crate) fn is_secret_url(self) -> bool {
        self.mark("x-secret") == "url"
    }

    fn types(self) -> Vec<&'a str> {
        match &self.resolved().0["type"] {
            Value::String(one) => vec![one],
            Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    fn is(self, name: &str) -> bool {
        self.types().contains(&name)
    }

    /// The words that may stand here, for a field that takes one of a few.
    fn words(self) -> Option<Vec<&'a str>> {
        let field = self.resolved().0;
        if let Some(words) = field["enum"].as_array() {
            return Some(words.iter().filter_map(Value::as_str).collect());
        }
        field["oneOf"].as_array().map(|choices| {
            choices
                .iter()
                .filter_map(|choice| choice["const"].as_str())
                .collect()
        })
    }
}

/// Checks `node` against the settings; what is wrong is told and taken out.
pub(crate) fn check(node: &mut Node, mistakes: &mut Vec<Mistake>) {
    check_value(node, Field::root(), "", mistakes);
}

/// Whether the value may stay.
fn check_value(
    node: &mut Node,
    field: Field<'static>,
    path: &str,
    mistakes: &mut Vec<Mistake>,
) -> bool {
    if let Source::Variable(_) = &*node.origin.source {
        read_variable(node, field);
    }
    if field.is_section() {
        return check_section(node, field, path, mistakes);
    }
    let wanted = wanted(field);
    let mut wrong = |what: String, suggestion: Option<String>| {
        mistakes.push(Mistake::new(node.origin.clone(), path, what).suggesting(suggestion));
        false
    };
    if let Some(words) = field.words() {
        return match &node.content {
            Content::Text(text) if words.contains(&text.as_str()) => true,
            Content::Text(text) => wrong(
                format!("{text:?} is not {wanted}"),
                nearest(text, words.iter().copied()).map(ToOwned::to_owned),
            ),
            other => wrong(
                format!("{} stands where {wanted} is wanted", other.kind()),
                None,
            ),
        };
    }
    match &mut node.content {
        Content::Null if field.is("null") => true,
        Content::Boolean(_) if field.is("boolean") => true,
        Content::Integer(number) if field.is("integer") || field.is("number") => {
            let limits = field.resolved().0;
            let least = limits["minimum"].as_f64().unwrap_or(f64::MIN);
            let most = limits["maximum"].as_f64().unwrap_or(f64::MAX);
            // Limits are small enough for a float to hold them exactly.
            #[allow(clippy::cast_precision_loss)]
            let given = *number as f64;
            if given < least || given > most {
                wrong(format!("{number} is not {wanted}"), None)
            } else {
                true
            }
        }
        Content::Float(_) if field.is("number") => true,
        Content::Text(text) if field.is("string") => match special(field, text) {
            Ok(()) => true,
            Err(what) => wrong(what, None),
        },
        Content::List(items) if field.is("array") => {
            let inner = Field(&field.resolved().0["items"]);
            let before = items.len();
            items.retain_mut(|item| check_value(item, inner, path, mistakes));
            items.len() == before
        }
        other => {
            let what = format!("{} stands where {wanted} is wanted", other.kind());
            wrong(what, None)
        }
    }
}

fn check_section(
    node: &mut Node,
    field: Field<'static>,
    path: &str,
    mistakes: &mut Vec<Mistake>,
) -> bool {
    let Content::Table(entries) = &mut node.content else {
        // A section that is named and left empty, as YAML allows, sets nothing.
        if node.content != Content::Null {
            mistakes.push(Mistake::new(
                node.origin.clone(),
                path,
                format!("{} stands where a section is wanted", node.content.kind()),
            ));
        }
        return false;
    };
    entries.retain_mut(|entry| {
        let inner = join(path, &entry.key);
        if let Some(field) = field.child(&entry.key) {
            return check_value(&mut entry.value, field, &inner, mistakes);
        }
        mistakes.push(
            Mistake::new(
                entry.origin.clone(),
                &inner,
                "there is no such field".to_owned(),
            )
            .suggesting(
                nearest(&entry.key, field.children().map(|(name, _)| name))
                    .map(|name| join(path, name)),
            ),
        );
        false
    });
    true
}

/// An environment variable is text; the field says what is meant by it.
fn read_variable(node: &mut Node, field: Field<'_>) {
    let Content::Text(text) = &node.content else {
        return;
    };
    let text = text.trim();
    if field.is("integer") || field.is("number") {
        if let Ok(number) = text.parse() {
            node.content = Content::Integer(number);
        } else if let Ok(number) = text.parse() {
            node.content = Content::Float(number);
        }
    } else if field.is("boolean") {
        match text {
            "true" | "1" | "yes" | "on" => node.content = Content::Boolean(true),
            "false" | "0" | "no" | "off" => node.content = Content::Boolean(false),
            _ => {}
        }
    } else if field.is("array") {
        let items = text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(|item| Node {
                content: Content::Text(item.to_owned()),
                origin: node.origin.clone(),
            })
            .collect();
        node.content = Content::List(items);
    }
}

/// What may stand in a field, in words.
fn wanted(field: Field<'_>) -> String {
    if let Some(words) = field.words() {
        return format!("one of {}", words.join(", "));
    }
    if field.is("integer") {
        let limits = field.resolved().0;
        return match (limits["minimum"].as_u64(), limits["maximum"].as_u64()) {
            (Some(least), Some(most)) => format!("a whole number from {least} to {most}"),
            (Some(0), None) => "a whole number that is not negative".to_owned(),
            _ => "a whole number".to_owned(),
        };
    }
    match field.types().first() {
        Some(&"boolean") => "true or false",
        Some(&"array") => "a list",
        Some(&"number") => "a number",
        _ => "text",
    }
    .to_owned()
}

/// Checks of text that a schema cannot express.
fn special(field: Field<'_>, text: &str) -> Result<(), String> {
    match field.mark("x-check").as_str() {
        Some("tenant") => text
            .parse::<TenantId>()
            .map(drop)
            .map_err(|error| error.to_string()),
        Some("secret_reference") => text
            .parse::<SecretReference>()
            .map(drop)
            .map_err(|error| error.to_string()),
        Some("network") => text.parse::<Network>().map(drop),
        Some("database_url") => match DatabaseUrl::parse_with_password(text) {
            Ok((_, None)) => Ok(()),
            Ok((_, Some(_))) => Err(
                "the URL holds a password: take it out, and name it in the field `password` as `env:NAME` or `file:/path`"
                    .to_owned(),
            ),
            Err(error) => Err(error.to_string()),
        },
        _ if field.is_path() && text.is_empty() => Err("the path is empty".to_owned()),
        _ => Ok(()),
    }
}
