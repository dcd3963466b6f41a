//! One part of a backup in an open format: which formats there are, and the writer that engines fill.
//!
//! An engine reads the streams of the part and no other, and fills the buffer of a [`PartWriter`], which hands it on in
//! large pieces: what is held in memory is a buffer and the row that is being written, whatever the part's size.

use std::{fmt, str::FromStr};

use fettler_model::Engine;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::{EngineContext, EngineError};

/// Bytes that are handed on at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// Names that are told where one is not known.
const NAMES_TOLD: usize = 5;

/// A form in which other programs read rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtractFormat {
    /// Comma-separated values with a line of names; nothing between two commas is NULL, `""` is an empty text.
    Csv,
    /// Statements that put the rows into a table of the same engine.
    Sql,
    /// A JSON document on each line.
    Ndjson,
    /// Documents one after another, as `mongodump` writes them.
    Bson,
    /// A file that a Redis server starts from.
    Rdb,
    /// Blocks of ClickHouse's format of this name.
    Native,
}

impl ExtractFormat {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Csv,
        Self::Sql,
        Self::Ndjson,
        Self::Bson,
        Self::Rdb,
        Self::Native,
    ];

    /// Its name, as users write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Sql => "sql",
            Self::Ndjson => "ndjson",
            Self::Bson => "bson",
            Self::Rdb => "rdb",
            Self::Native => "native",
        }
    }

    /// Whether a terminal would be harmed by it.
    #[must_use]
    pub const fn is_binary(self) -> bool {
        matches!(self, Self::Bson | Self::Rdb | Self::Native)
    }
}

impl fmt::Display for ExtractFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ExtractFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|format| format.as_str() == text.to_ascii_lowercase())
            .ok_or_else(|| {
                let names: Vec<&str> = Self::ALL.iter().map(|format| format.as_str()).collect();
                format!("the formats are {}", names.join(", "))
            })
    }
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extraction {
    /// The part, as `fettler browse` names it.
    pub part: String,
    /// In which form; one of [`crate::DatabaseEngine::extract_formats`].
    pub format: ExtractFormat,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractReport {
    /// Rows, keys or documents.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The form that was asked for, or the engine's first; a refusal that names the engine's formats otherwise.
///
/// # Errors
///
/// [`EngineError::Missing`] for a format that the engine does not write.
pub fn chosen_format(
    engine: Engine,
    formats: &[ExtractFormat],
    asked: Option<ExtractFormat>,
) -> Result<ExtractFormat, EngineError> {
    let names: Vec<&str> = formats.iter().map(|format| format.as_str()).collect();
    match (asked, formats) {
        (None, [first, ..]) => Ok(*first),
        (Some(asked), formats) if formats.contains(&asked) => Ok(asked),
        (asked, _) => Err(EngineError::Missing {
            code: "format",
            what: format!(
                "a part of a {engine} backup is not written as {}",
                asked.map_or("anything", ExtractFormat::as_str)
            ),
            remedy: if names.is_empty() {
                "restore it with `fettler restore --only`".to_owned()
            } else {
                format!("say `--format` with {}", names.join(" or "))
            },
        }),
    }
}

/// The error for a part that the backup does not hold, with the names that come near.
#[must_use]
pub fn no_such_part<S: AsRef<str>>(part: &str, names: &[S]) -> EngineError {
    let near = near_names(part, names);
    EngineError::Missing {
        code: "part",
        what: format!("the backup holds nothing that is called {part:?}"),
        remedy: if near.is_empty() {
            "`fettler browse BACKUP` lists what it holds".to_owned()
        } else {
            format!(
                "is it {}? `fettler browse BACKUP` lists all",
                near.join(" or ")
            )
        },
    }
}

/// The error for a name that means several parts.
#[must_use]
pub fn several_parts<S: AsRef<str>>(part: &str, names: &[S]) -> EngineError {
    let mut told: Vec<&str> = names.iter().take(NAMES_TOLD).map(AsRef::as_ref).collect();
    if names.len() > NAMES_TOLD {
        told.push("…");
    }
    EngineError::Missing {
        code: "part",
        what: format!("{part:?} means {} parts: {}", names.len(), told.join(", ")),
        remedy: "name one of them; each is written by itself".to_owned(),
    }
}

/// The names that are most like one that is not there: at most five, the nearest first.
#[must_use]
pub fn near_names<S: AsRef<str>>(wanted: &str, names: &[S]) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let mut found: Vec<(usize, &str)> = names
        .iter()
        .map(AsRef::as_ref)
        .filter_map(|name| {
            let lower = name.to_lowercase();
            let distance = distance(&wanted, &lower).min(distance(&last(&wanted), &last(&lower)));
            let is_part =
                !wanted.is_empty() && (lower.contains(&wanted) || wanted.contains(&lower));
            (is_part || distance <= 1 + wanted.chars().count() / 4).then_some((distance, name))
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
        .into_iter()
        .take(NAMES_TOLD)
        .map(|(_, name)| name.to_owned())
        .collect()
}

/// How many letters must be changed, added or removed to make one name of the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut before = row[0];
        row[0] = at + 1;
        for (column, with) in other.iter().enumerate() {
            let replaced = before + usize::from(letter != *with);
            before = row[column + 1];
            row[column + 1] = replaced.min(before + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

/// Where the bytes of a part go.
pub struct PartWriter<'a> {
    context: &'a EngineContext,
    to: &'a mut (dyn AsyncWrite + Send + Unpin),
    /// What is not handed on yet; engines add to it.
    pub buffer: Vec<u8>,
    /// Rows so far; engines count.
    pub rows: u64,
    rows_told: u64,
    bytes: u64,
}

impl fmt::Debug for PartWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartWriter")
            .field("rows", &self.rows)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl<'a> PartWriter<'a> {
    /// A writer that hands on to `to`.
    pub fn new(context: &'a EngineContext, to: &'a mut (dyn AsyncWrite + Send + Unpin)) -> Self {
        Self {
            context,
            to,
            buffer: Vec::with_capacity(BUFFER_BYTES + BUFFER_BYTES / 4),
            rows: 0,
            rows_told: 0,
            bytes: 0,
        }
    }

    /// Hands the buffer on once it is full: to be called after each row.
    ///
    /// # Errors
    ///
    /// [`EngineError::Stopped`]; [`EngineError::Local`] when nobody takes the bytes.
    pub async fn settle(&mut self) -> Result<(), EngineError> {
        if self.buffer.len() >= BUFFER_BYTES {
            self.hand_on().await?;
        }
        Ok(())
    }

    /// Hands on bytes that are in the right form already.
    ///
    /// # Errors
    ///
    /// As [`PartWriter::settle`].
    pub async fn pass(&mut self, piece: &[u8]) -> Result<(), EngineError> {
        self.buffer.extend_from_slice(piece);
        self.settle().await
    }

    async fn hand_on(&mut self) -> Result<(), EngineError> {
        self.context.check_stop()?;
        self.to
            .write_all(&self.buffer)
            .await
            .map_err(|error| EngineError::local("writing the part", error))?;
        let bytes = self.buffer.len() as u64;
        self.bytes += bytes;
        self.context.progress.add(bytes, self.rows - self.rows_told);
        self.rows_told = self.rows;
        self.buffer.clear();
        Ok(())
    }

    /// Hands on what is left.
    ///
    /// # Errors
    ///
    /// As [`PartWriter::settle`].
    pub async fn finish(mut self) -> Result<ExtractReport, EngineError> {
        self.hand_on().await?;
        self.to
            .flush()
            .await
            .map_err(|error| EngineError::local("writing the part", error))?;
        Ok(ExtractReport {
            rows: self.rows,
            bytes: self.bytes,
        })
    }
}

/// Adds a value of a CSV file, as PostgreSQL's COPY quotes it: a text that is empty, or holds a comma, a quote or the end
/// of a line, stands in quotes. `alone` says that it is the only one on its line, where `\.` would end the data.
pub fn put_csv_value(value: &[u8], alone: bool, to: &mut Vec<u8>) {
    let needs_quotes = value.is_empty()
        || (alone && value == b"\\.")
        || value
            .iter()
            .any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r'));
    if !needs_quotes {
        to.extend_from_slice(value);
        return;
    }
    to.push(b'"');
    for byte in value {
        if *byte == b'"' {
            to.push(b'"');
        }
        to.push(*byte);
    }
    to.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_come_near_are_told_and_others_are_not() {
        let names = ["public.orders", "public.order_items", "audit.log", "Übung"];
        assert_eq!(near_names("public.ordrs", &names), ["public.orders"]);
        assert_eq!(near_names("orders", &names)[0], "public.orders");
        assert_eq!(near_names("ubung", &names), ["Übung"]);
        assert!(near_names("something else", &names).is_empty());
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn a_format_that_an_engine_does_not_write_is_refused_with_those_that_it_does() {
        let formats = [ExtractFormat::Csv, ExtractFormat::Sql];
        let chosen = |asked| chosen_format(Engine::Postgres, &formats, asked);
        assert_eq!(chosen(None).unwrap(), ExtractFormat::Csv);
        assert_eq!(
            chosen(Some(ExtractFormat::Sql)).unwrap(),
            ExtractFormat::Sql
        );
        let EngineError::Missing { remedy, .. } = chosen(Some(ExtractFormat::Rdb)).unwrap_err()
        else {
            panic!("another error");
        };
        assert_eq!(remedy, "say `--format` with csv or sql");
        assert!(chosen_format(Engine::Postgres, &[], None).is_err());
        assert_eq!("NDJSON".parse(), Ok(ExtractFormat::Ndjson));
        assert!("xml".parse::<ExtractFormat>().is_err());
    }

    #[test]
    fn values_of_csv_are_quoted_where_they_must_be() {
        let put = |value: &str, alone| {
            let mut to = Vec::new();
            put_csv_value(value.as_bytes(), alone, &mut to);
            String::from_utf8(to).unwrap()
        };
        assert_eq!(put("plain text", false), "plain text");
        assert_eq!(put("", false), "\"\"");
        assert_eq!(put("a\"b", false), "\"a\"\"b\"");
        assert_eq!(put("a,b", false), "\"a,b\"");
        assert_eq!(put("a\nb", false), "\"a\nb\"");
        assert_eq!(
            (put("\\.", false), put("\\.", true)),
            ("\\.".into(), "\"\\.\"".into())
        );
    }
}
