//! Questions that checks ask a database, in the database's own language, and what it answers. Who asks, and what follows from
//! an answer, is not known here.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde_json::{Map, Value};
use thiserror::Error;

/// Values by name: one line of an answer.
pub type Row = Map<String, Value>;

/// The one line that answers what things there are and how each is, by their names: `items`, with `items_seen`, their number.
#[must_use]
pub fn line_of_items(items: &BTreeMap<String, String>) -> Vec<Row> {
    let line = [
        ("items".to_owned(), serde_json::json!(items)),
        ("items_seen".to_owned(), items.len().into()),
    ];
    vec![Row::from_iter(line)]
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Names it among those that are asked together.
    pub id: String,
    /// Which versions of the server it can be asked.
    pub versions: Versions,
    /// A role or right without which the server would show a part only, in the engine's own words.
    pub needs: Option<String>,
    /// The question: a query, a command, a path.
    pub text: String,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The server's version is none that it can be asked.
    #[error("the server's version has nothing to ask this of")]
    OtherVersion,
    /// The role may not ask.
    #[error("the role lacks a permission: {0}")]
    Permission(String),
    /// It took longer than the question allows.
    #[error("the answer took longer than {0} s")]
    TimedOut(u64),
    /// It does not exist on this server, or is hidden.
    #[error("the server does not tell: {0}")]
    Failed(String),
}

/// What one question was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The question's [`Question::id`].
    pub id: String,
    /// The lines, or why there are none.
    pub rows: Result<Vec<Row>, Refusal>,
    /// Whether there were more lines than are taken ([`Answers::MOST_ROWS`]).
    pub truncated: bool,
}

impl Answer {
    /// An answer of lines, cut to as many as are taken.
    #[must_use]
    pub fn of(id: impl Into<String>, mut rows: Vec<Row>) -> Self {
        let truncated = rows.len() > Answers::MOST_ROWS;
        rows.truncate(Answers::MOST_ROWS);
        Self {
            id: id.into(),
            rows: Ok(rows),
            truncated,
        }
    }

    /// No answer.
    #[must_use]
    pub fn refused(id: impl Into<String>, refusal: Refusal) -> Self {
        Self {
            id: id.into(),
            rows: Err(refusal),
            truncated: false,
        }
    }
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    /// The server's version, as it writes it.
    pub version: String,
    /// How long it took to get in.
    pub connected_in: Duration,
    /// How long the smallest of questions took, once in.
    pub answered_in: Duration,
    /// An answer for each question, in their order.
    pub answers: Vec<Answer>,
}

impl Answers {
    /// How many lines of one answer are taken: enough to act on, few enough to keep.
    pub const MOST_ROWS: usize = 200;
}

/// A range of versions, by their first two numbers: `>=13`, `<17`, `>=7.2, <8`, or all of them when empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    from: Option<(u32, u32)>,
    below: Option<(u32, u32)>,
}

/// A text is no range of versions.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no range of versions; write `>=13`, `<17` or `>=13, <17`")]
pub struct InvalidVersions(String);

impl Versions {
    /// Whether a version is within the range.
    #[must_use]
    pub fn hold(&self, version: (u32, u32)) -> bool {
        self.from.is_none_or(|from| version >= from)
            && self.below.is_none_or(|below| version < below)
    }
}

impl FromStr for Versions {
    type Err = InvalidVersions;

    fn from_str(text: &str) -> Result<Self, InvalidVersions> {
        let refused = || InvalidVersions(text.to_owned());
        let mut range = Self::default();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (bound, number) = if let Some(number) = part.strip_prefix(">=") {
                (&mut range.from, number)
            } else if let Some(number) = part.strip_prefix('<') {
                (&mut range.below, number)
            } else {
                return Err(refused());
            };
            if bound.is_some() {
                return Err(refused());
            }
            let number = number.trim();
            let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
            *bound = Some((
                major.parse().map_err(|_| refused())?,
                minor.parse().map_err(|_| refused())?,
            ));
        }
        Ok(range)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |(major, minor): (u32, u32)| {
            if minor == 0 {
                major.to_string()
            } else {
                format!("{major}.{minor}")
            }
        };
        match (self.from, self.below) {
            (None, None) => f.write_str("all"),
            (Some(from), None) => write!(f, ">={}", of(from)),
            (None, Some(below)) => write!(f, "<{}", of(below)),
            (Some(from), Some(below)) => write!(f, ">={}, <{}", of(from), of(below)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_versions_holds_its_beginning_and_not_its_end() {
        let range: Versions = ">=13, <17.2".parse().unwrap();
        assert!(range.hold((13, 0)) && range.hold((17, 1)));
        assert!(!range.hold((12, 9)) && !range.hold((17, 2)));
        assert_eq!(range.to_string(), ">=13, <17.2");
        assert!("".parse::<Versions>().unwrap().hold((1, 0)));
        for wrong in ["13", ">=x", ">=13, >=14"] {
            assert!(wrong.parse::<Versions>().is_err(), "{wrong}");
        }
    }
}
