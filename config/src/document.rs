//! A document of settings in which every key and every value knows where it was written. TOML and YAML
//! files, environment variables and flags all become this, so that a mistake can be shown at its
//! place and `config show` can tell where a value came from.

use std::{fmt, path::PathBuf, sync::Arc};

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde_json::Value;
use toml::de::{DeTable, DeValue};

use crate::Mistake;

/// What a setting was read from. A later variant's layer overrules an earlier one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nothing was said.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(String),
}

/// Where a key or a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// In what.
    pub source: Arc<Source>,
    /// In a file: the line, from 1; 0 where there are no lines.
    pub line: usize,
    /// In a file: the column in characters, from 1.
    pub column: usize,
}

impl Origin {
    /// A place in something that has no lines.
    #[must_use]
    pub fn whole(source: Source) -> Self {
        Self {
            source: Arc::new(source),
            line: 0,
            column: 0,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.source {
            Source::Default => f.write_str("default"),
            Source::File(path) if self.line == 0 => path.display().fmt(f),
            Source::File(path) => {
                write!(f, "{}:{}:{}", path.display(), self.line, self.column)
            }
            Source::Variable(name) => write!(f, "variable {name}"),
            Source::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) content: Content,
    pub(crate) origin: Origin,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    Null,
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// A key, where it was written, and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) origin: Origin,
    pub(crate) value: Node,
}

impl Content {
    /// What it is, in the words of somebody who writes settings.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Boolean(_) => "true or false",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Table(_) => "a section",
        }
    }
}

impl Node {
    /// A section without fields.
    pub(crate) fn empty(origin: Origin) -> Self {
        Self {
            content: Content::Table(Vec::new()),
            origin,
        }
    }

    /// A JSON value, all of it written at one place.
    pub(crate) fn from_json(value: Value, origin: &Origin) -> Self {
        let content = match value {
            Value::Null => Content::Null,
            Value::Bool(value) => Content::Boolean(value),
            Value::Number(number) => number.as_i64().map_or_else(
                || Content::Float(number.as_f64().unwrap_or(f64::NAN)),
                Content::Integer,
            ),
            Value::String(text) => Content::Text(text),
            Value::Array(items) => Content::List(
                items
                    .into_iter()
                    .map(|item| Self::from_json(item, origin))
                    .collect(),
            ),
            Value::Object(fields) => Content::Table(
                fields
                    .into_iter()
                    .map(|(key, value)| Entry {
                        key,
                        origin: origin.clone(),
                        value: Self::from_json(value, origin),
                    })
                    .collect(),
            ),
        };
        Self {
            content,
            origin: origin.clone(),
        }
    }

    /// The value without its places.
    pub(crate) fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Boolean(value) => Value::Bool(*value),
            Content::Integer(value) => Value::from(*value),
            Content::Float(value) => Value::from(*value),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(items) => items.iter().map(Self::to_json).collect(),
            Content::Table(entries) => Value::Object(
                entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.to_json()))
                    .collect(),
            ),
        }
    }

    /// Puts a later layer over this one: sections are joined, everything else is replaced.
    pub(crate) fn overlay(&mut self, later: Self) {
        match (&mut self.content, later.content) {
            (Content::Table(mine), Content::Table(theirs)) => {
                for entry in theirs {
                    match mine.iter_mut().find(|old| old.key == entry.key) {
                        Some(old) => old.value.overlay(entry.value),
                        None => mine.push(entry),
                    }
                }
            }
            (_, content) => {
                self.content = content;
                self.origin = later.origin;
            }
        }
    }

    /// The value at this path.
    pub(crate) fn get(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| match &node.content {
            Content::Table(entries) => entries
                .iter()
                .find(|entry| entry.key == *key)
                .map(|entry| &entry.value),
            _ => None,
        })
    }

    /// Sets the value at this path, making sections on the way.
    pub(crate) fn set(&mut self, path: &[&str], value: Self) {
        let Some((last, rest)) = path.split_first() else {
            *self = value;
            return;
        };
        if !matches!(self.content, Content::Table(_)) {
            self.content = Content::Table(Vec::new());
        }
        let Content::Table(entries) = &mut self.content else {
            unreachable!("it was made a table just now");
        };
        let at = entries
            .iter()
            .position(|entry| entry.key == *last)
            .unwrap_or_else(|| {
                entries.push(Entry {
                    key: (*last).to_owned(),
                    origin: value.origin.clone(),
                    value: Self::empty(value.origin.clone()),
                });
                entries.len() - 1
            });
        entries[at].value.set(rest, value);
    }
}

/// Reads a file's text, as YAML when its name says so and as TOML otherwise. What cannot be read is
/// told as mistakes.
pub(crate) fn parse(path: &std::path::Path, text: &str, mistakes: &mut Vec<Mistake>) -> Node {
    let source = Arc::new(Source::File(path.to_path_buf()));
    let yaml = path
        .extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml");
    if yaml {
        parse_yaml(&source, text, mistakes)
    } else {
        parse_toml(&source, text, mistakes)
    }
}

fn parse_toml(source: &Arc<Source>, text: &str, mistakes: &mut Vec<Mistake>) -> Node {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        mistakes.push(Mistake::new(
            toml_origin(source, text, at),
            "",
            format!("the file is not TOML here: {}", error.message()),
        ));
    }
    let origin = toml_origin(source, text, 0);
    toml_table(source, text, table.get_ref(), origin)
}

/// The line and column of a byte offset.
fn toml_origin(source: &Arc<Source>, text: &str, offset: usize) -> Origin {
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Origin {
        source: source.clone(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

fn toml_table(source: &Arc<Source>, text: &str, table: &DeTable<'_>, origin: Origin) -> Node {
    let entries = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            origin: toml_origin(source, text, key.span().start),
            value: toml_value(
                source,
                text,
                value.get_ref(),
                toml_origin(source, text, value.span().start),
            ),
        })
        .collect();
    Node {
        content: Content::Table(entries),
        origin,
    }
}

fn toml_value(source: &Arc<Source>, text: &str, value: &DeValue<'_>, origin: Origin) -> Node {
    let content = match value {
        DeValue::String(text) => Content::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(
                |_| Content::Text(number.as_str().to_owned()),
                Content::Integer,
            ),
        DeValue::Float(number) => number.as_str().parse().map_or_else(
            |_| Content::Text(number.as_str().to_owned()),
            Content::Float,
        ),
        DeValue::Boolean(value) => Content::Boolean(*value),
        DeValue::Datetime(time) => Content::Text(time.to_string()),
        DeValue::Array(items) => Content::List(
            items
                .iter()
                .map(|item| {
                    toml_value(
                        source,
                        text,
                        item.get_ref(),
                        toml_origin(source, text, item.span().start),
                    )
                })
                .collect(),
        ),
        DeValue::Table(table) => return toml_table(source, text, table, origin),
    };
    Node { content, origin }
}

fn parse_yaml(source: &Arc<Source>, text: &str, mistakes: &mut Vec<Mistake>) -> Node {
    let start = Origin {
        source: source.clone(),
        line: 1,
        column: 1,
    };
    let documents = match MarkedYaml::load_from_str(text) {
        Ok(documents) => documents,
        Err(error) => {
            let marker = error.marker();
            mistakes.push(Mistake::new(
                Origin {
                    source: source.clone(),
                    line: marker.line(),
                    column: marker.col() + 1,
                },
                "",
                format!("the file is not YAML here: {}", error.info()),
            ));
            return Node::empty(start);
        }
    };
    if let Some(second) = documents.get(1) {
        mistakes.push(Mistake::new(
            yaml_origin(source, second),
            "",
            "the file holds a second document, which nobody would read".to_owned(),
        ));
    }
    match documents.first() {
        // An empty file, or one of comments only.
        None => Node::empty(start),
        Some(MarkedYaml {
            data: YamlData::Value(Scalar::Null),
            ..
        }) => Node::empty(start),
        Some(document) => yaml_value(source, document, "", mistakes),
    }
}

fn yaml_origin(source: &Arc<Source>, node: &MarkedYaml<'_>) -> Origin {
    Origin {
        source: source.clone(),
        line: node.span.start.line(),
        column: node.span.start.col() + 1,
    }
}

fn yaml_value(
    source: &Arc<Source>,
    node: &MarkedYaml<'_>,
    path: &str,
    mistakes: &mut Vec<Mistake>,
) -> Node {
    let origin = yaml_origin(source, node);
    let content = match &node.data {
        YamlData::Value(Scalar::Null) => Content::Null,
        YamlData::Value(Scalar::Boolean(value)) => Content::Boolean(*value),
        YamlData::Value(Scalar::Integer(value)) => Content::Integer(*value),
        YamlData::Value(Scalar::FloatingPoint(value)) => Content::Float(**value),
        YamlData::Value(Scalar::String(text)) => Content::Text(text.to_string()),
        YamlData::Sequence(items) => Content::List(
            items
                .iter()
                .map(|item| yaml_value(source, item, path, mistakes))
                .collect(),
        ),
        YamlData::Mapping(fields) => {
            let mut entries = Vec::with_capacity(fields.len());
            for (key, value) in fields {
                let key_origin = yaml_origin(source, key);
                let YamlData::Value(Scalar::String(name)) = &key.data else {
                    mistakes.push(Mistake::new(
                        key_origin,
                        path,
                        "the name of a field must be plain text".to_owned(),
                    ));
                    continue;
                };
                let inner = join(path, name);
                entries.push(Entry {
                    key: name.to_string(),
                    origin: key_origin,
                    value: yaml_value(source, value, &inner, mistakes),
                });
            }
            Content::Table(entries)
        }
        _ => {
            mistakes.push(Mistake::new(
                origin.clone(),
                path,
                "tags and values of other types have no meaning here".to_owned(),
            ));
            Content::Null
        }
    };
    Node { content, origin }
}

/// A field's path, as people write it.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}
