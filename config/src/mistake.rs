//! What is wrong with the settings: every mistake with its place, its field and a word on what to write.

use std::fmt;

use fettler_model::Problem;
use thiserror::Error;

use crate::Origin;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it is.
    pub origin: Origin,
    /// The field, such as `worker.lease_seconds`; empty when it is about a whole file.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

impl Mistake {
    pub(crate) fn new(origin: Origin, field: &str, what: String) -> Self {
        Self {
            origin,
            field: field.to_owned(),
            what,
            suggestion: None,
        }
    }

    pub(crate) fn suggesting(mut self, suggestion: Option<String>) -> Self {
        self.suggestion = suggestion;
        self
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.what)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean `{suggestion}`?"),
            None => Ok(()),
        }
    }
}

/// Why there are no settings.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// What was written is wrong; every mistake is told.
    #[error("{}", told(.0))]
    Mistakes(Vec<Mistake>),
    /// No folder can be told from the environment.
    #[error(
        "no folder for Fettler's data can be told, since neither FETTLER_FOLDER nor HOME is set"
    )]
    NoFolder,
}

fn told(mistakes: &[Mistake]) -> String {
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    match lines.as_slice() {
        [one] => format!("the settings have a mistake: {one}"),
        many => format!(
            "the settings have {} mistakes:\n{}",
            many.len(),
            many.join("\n")
        ),
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        let (code, remedy) = match &error {
            ConfigError::Mistakes(_) => (
                "config.mistakes",
                "mend what is named; `fettler config check` looks again, and `fettler config show` lists all fields",
            ),
            ConfigError::NoFolder => (
                "config.no_folder",
                "name one with `--folder` or FETTLER_FOLDER",
            ),
        };
        Self::permanent(code, error.to_string(), remedy)
    }
}

/// The name among `known` that was probably meant by `given`: at most a third of it is wrong.
pub(crate) fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (given.chars().count() / 3).clamp(1, 4);
    known
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}
