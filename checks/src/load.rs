//! Reads a check from its file. A mistake is told with the file, the field and what to write instead.

use fettler_engine::{Row, Versions};
use fettler_model::{Area, Dimension, Engine, Severity};
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::{Check, Example, Expression, Group, Heading, Level, Source, Template, Variant};

/// How long a question of a basic check may take by itself, in seconds.
const BASIC_SECONDS: u64 = 4;
/// How long a question of a full check may take.
const FULL_SECONDS: u64 = 25;

/// A file is no check.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{file}: {field}: {what}")]
pub struct LoadError {
    /// The file.
    pub file: String,
    /// The field; `file` where it is the whole.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckFile {
    id: String,
    engine: Engine,
    #[serde(default)]
    versions: String,
    #[serde(default)]
    area: Option<Area>,
    #[serde(default)]
    dimension: Option<Dimension>,
    #[serde(default)]
    group: Option<Group>,
    severity: Severity,
    #[serde(default)]
    level: Level,
    #[serde(default)]
    source: Source,
    #[serde(default)]
    needs: Option<String>,
    #[serde(default)]
    managed: Option<String>,
    #[serde(default)]
    question: Option<String>,
    #[serde(default)]
    questions: Vec<VariantFile>,
    #[serde(default)]
    timeout_seconds: Option<u64>,
    when: String,
    #[serde(default)]
    graver: Vec<GraverFile>,
    #[serde(default)]
    object: String,
    title: String,
    #[serde(default)]
    evidence: Vec<String>,
    why: String,
    fix: FixFile,
    #[serde(default)]
    references: Vec<String>,
    examples: ExampleFile,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VariantFile {
    #[serde(default)]
    versions: String,
    question: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GraverFile {
    when: String,
    severity: Severity,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FixFile {
    text: String,
    #[serde(default)]
    commands: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExampleFile {
    fires: Vec<Row>,
    passes: Vec<Row>,
}

/// Reads the text of a check's file.
///
/// # Errors
///
/// When it is none.
pub fn read_check(file: &str, text: &str) -> Result<Check, LoadError> {
    let wrong = |field: &str, what: String, remedy: &str| LoadError {
        file: file.to_owned(),
        field: field.to_owned(),
        what,
        remedy: remedy.to_owned(),
    };
    const SHAPE: &str = "`fettler checks explain CHECK --source` shows a whole file, and docs/health.md says what each field is";
    let document = yaml(text).map_err(|what| wrong("file", what, "correct the YAML"))?;
    let read: CheckFile = serde_path_to_error::deserialize(document).map_err(
        |error: serde_path_to_error::Error<serde_json::Error>| {
            let path = error.path().to_string();
            let field = if path == "." { "file" } else { &path };
            wrong(field, error.inner().to_string(), SHAPE)
        },
    )?;
    let prefix = format!("{}.", read.engine);
    let name = read.id.strip_prefix(&prefix).unwrap_or_default();
    if name.is_empty()
        || !name
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
    {
        return Err(wrong(
            "id",
            format!("{:?} is no name for a check of {}", read.id, read.engine),
            &format!("write `{prefix}` and then a word of small letters, digits and `_`"),
        ));
    }
    let heading = match (read.dimension, read.group) {
        (Some(dimension), None) => Heading::Health(dimension),
        (None, Some(group)) => Heading::Audit(group),
        _ => {
            return Err(wrong(
                "dimension",
                "a check has either a `dimension`, which makes it one of the health, or a `group`, which makes it one of an audit".to_owned(),
                SHAPE,
            ));
        }
    };
    let area = read.area.unwrap_or(heading.area());
    if heading.group().is_some() && !matches!(area, Area::Security | Area::Compliance) {
        return Err(wrong(
            "area",
            format!("an audit's findings are not about {area}"),
            "write `security` or `compliance`, or leave it out for security",
        ));
    }
    let expression = |field: &str, text: &str| {
        Expression::read(text.trim()).map_err(|error| {
            wrong(
                field,
                error.to_string(),
                "write an expression of CEL over `row`, such as `row.age > 5`",
            )
        })
    };
    let template = |field: &str, text: &str| {
        Template::read(text.trim())
            .map_err(|what| wrong(field, what, "places for values are written `{name}`"))
    };
    let versions = |field: &str, text: &str| {
        text.parse::<Versions>()
            .map_err(|error| wrong(field, error.to_string(), "leave it out for all versions"))
    };
    let variants = match (read.question, read.questions, read.source) {
        (Some(question), none, Source::Server) if none.is_empty() => vec![Variant {
            versions: versions("versions", &read.versions)?,
            question,
        }],
        (None, several, Source::Server) if !several.is_empty() => several
            .into_iter()
            .enumerate()
            .map(|(at, one)| {
                Ok(Variant {
                    versions: versions(&format!("questions[{at}].versions"), &one.versions)?,
                    question: one.question,
                })
            })
            .collect::<Result<_, LoadError>>()?,
        (None, none, Source::Ledger | Source::Connection) if none.is_empty() => Vec::new(),
        (None, none, Source::Release | Source::Vulnerabilities)
            if none.is_empty() && heading.group().is_some() =>
        {
            Vec::new()
        }
        _ => {
            return Err(wrong(
                "question",
                "a check of the server has one `question` (or `questions`, each with its `versions`), and another has none".to_owned(),
                SHAPE,
            ));
        }
    };
    // Where the question itself leaves out what is well, there is no line that passes.
    let takes_all = read.when.trim() == "true";
    if read.examples.fires.is_empty() || (read.examples.passes.is_empty() && !takes_all) {
        return Err(wrong(
            "examples",
            "a line that fires and one that passes are needed: they are the check's test"
                .to_owned(),
            "write at least one under `fires` and one under `passes`",
        ));
    }
    let level = read.level;
    Ok(Check {
        engine: read.engine,
        area,
        heading,
        severity: read.severity,
        level,
        source: read.source,
        needs: read.needs,
        managed: read.managed.as_deref().map(folded),
        variants,
        timeout_seconds: read.timeout_seconds.unwrap_or(match level {
            Level::Basic => BASIC_SECONDS,
            Level::Full => FULL_SECONDS,
        }),
        when: expression("when", &read.when)?,
        graver: read
            .graver
            .iter()
            .enumerate()
            .map(|(at, one)| {
                let field = format!("graver[{at}].when");
                Ok((expression(&field, &one.when)?, one.severity))
            })
            .collect::<Result<_, LoadError>>()?,
        object: template("object", &read.object)?,
        title: template("title", &read.title)?,
        evidence: read.evidence,
        why: folded(&read.why),
        fix_text: template("fix.text", &folded(&read.fix.text))?,
        fix_commands: read
            .fix
            .commands
            .iter()
            .map(|one| template("fix.commands", one))
            .collect::<Result<_, LoadError>>()?,
        references: read.references,
        examples: Example {
            fires: read.examples.fires,
            passes: read.examples.passes,
        },
        id: read.id,
        file: file.to_owned(),
    })
}

/// A text whose lines were broken for the file alone.
fn folded(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A YAML document as JSON. What JSON has no word for is refused.
fn yaml(text: &str) -> Result<Value, String> {
    let documents = Yaml::load_from_str(text)
        .map_err(|error| format!("line {}: {}", error.marker().line(), error.info()))?;
    match documents.as_slice() {
        [document] => json(document),
        [] => Err("the file is empty".to_owned()),
        _ => Err("the file holds several documents; a check is one".to_owned()),
    }
}

fn json(node: &Yaml<'_>) -> Result<Value, String> {
    Ok(match node {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => Value::Bool(*value),
        Yaml::Value(Scalar::Integer(value)) => Value::from(*value),
        Yaml::Value(Scalar::FloatingPoint(value)) => Value::from(**value),
        Yaml::Value(Scalar::String(text)) => Value::String(text.to_string()),
        Yaml::Sequence(items) => Value::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Yaml::Mapping(fields) => {
            let mut object = serde_json::Map::new();
            for (key, value) in fields {
                let Yaml::Value(Scalar::String(name)) = key else {
                    return Err("the name of a field must be plain text".to_owned());
                };
                object.insert(name.to_string(), json(value)?);
            }
            Value::Object(object)
        }
        _ => return Err("tags, aliases and broken values have no meaning here".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
id: sqlite.freelist
engine: sqlite
dimension: resources
severity: low
question: SELECT 1 AS pages
when: row.pages > 0
title: '{pages} pages'
why: They take space.
fix: {text: Vacuum.}
examples:
  fires: [{pages: 1}]
  passes: [{pages: 0}]
";

    #[test]
    fn a_file_with_a_mistake_is_told_with_its_field_and_a_remedy() {
        read_check("good.yaml", GOOD).unwrap();
        for (from, to, field) in [
            ("severity: low", "severity: grave", "severity"),
            ("when: row.pages > 0", "when: pages > 0", "when"),
            ("title: '{pages} pages'", "title: '{pages pages'", "title"),
            ("id: sqlite.freelist", "id: redis.freelist", "id"),
            ("question: SELECT 1 AS pages", "query: SELECT 1", "query"),
            ("question: SELECT 1 AS pages", "source: server", "question"),
            (
                "engine: sqlite",
                "engine: sqlite\nversions: new",
                "versions",
            ),
            ("passes: [{pages: 0}]", "passes: []", "examples"),
            ("severity: low", "severity: [", "file"),
            ("dimension: resources", "severity_of: x", "severity_of"),
            (
                "dimension: resources",
                "dimension: resources\ngroup: access",
                "dimension",
            ),
            (
                "dimension: resources",
                "group: access\narea: retention",
                "area",
            ),
        ] {
            let error = read_check("own/x.yaml", &GOOD.replace(from, to)).unwrap_err();
            assert_eq!(error.file, "own/x.yaml");
            assert!(error.field.contains(field), "{to}: {error}");
            assert!(!error.remedy.is_empty());
        }
    }
}
