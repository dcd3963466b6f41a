//! Reading a row's fields, each with an error that names it.

use std::str::FromStr;

use fettler_model::Timestamp;
use serde::de::DeserializeOwned;
use sqlx::{Row as _, any::AnyRow};

use crate::{LedgerError, Result, store::database_error};

/// A row, and what it is read for.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'r> {
    row: &'r AnyRow,
    doing: &'static str,
}

impl<'r> Fields<'r> {
    pub(crate) const fn of(row: &'r AnyRow, doing: &'static str) -> Self {
        Self { row, doing }
    }

    pub(crate) fn text(self, name: &str) -> Result<String> {
        self.row
            .try_get(name)
            .map_err(|error| database_error(self.doing, error))
    }

    pub(crate) fn text_or_none(self, name: &str) -> Result<Option<String>> {
        self.row
            .try_get(name)
            .map_err(|error| database_error(self.doing, error))
    }

    pub(crate) fn number(self, name: &str) -> Result<i64> {
        self.row
            .try_get(name)
            .map_err(|error| database_error(self.doing, error))
    }

    pub(crate) fn number_or_none(self, name: &str) -> Result<Option<i64>> {
        self.row
            .try_get(name)
            .map_err(|error| database_error(self.doing, error))
    }

    pub(crate) fn bytes(self, name: &str) -> Result<Vec<u8>> {
        self.row
            .try_get(name)
            .map_err(|error| database_error(self.doing, error))
    }

    pub(crate) fn small(self, name: &str) -> Result<u32> {
        u32::try_from(self.number(name)?).map_err(|error| self.damaged(name, &error))
    }

    pub(crate) fn time(self, name: &str) -> Result<Timestamp> {
        self.number(name).map(Timestamp::from_micros)
    }

    pub(crate) fn time_or_none(self, name: &str) -> Result<Option<Timestamp>> {
        Ok(self.number_or_none(name)?.map(Timestamp::from_micros))
    }

    /// Text that a type of the model reads.
    pub(crate) fn parsed<T: FromStr<Err: std::fmt::Display>>(self, name: &str) -> Result<T> {
        self.text(name)?
            .parse()
            .map_err(|error| self.damaged(name, &error))
    }

    pub(crate) fn parsed_or_none<T: FromStr<Err: std::fmt::Display>>(
        self,
        name: &str,
    ) -> Result<Option<T>> {
        self.text_or_none(name)?
            .map(|text| text.parse().map_err(|error| self.damaged(name, &error)))
            .transpose()
    }

    pub(crate) fn json<T: DeserializeOwned>(self, name: &str) -> Result<T> {
        serde_json::from_str(&self.text(name)?).map_err(|error| self.damaged(name, &error))
    }

    pub(crate) fn json_or_none<T: DeserializeOwned>(self, name: &str) -> Result<Option<T>> {
        self.text_or_none(name)?
            .map(|text| serde_json::from_str(&text).map_err(|error| self.damaged(name, &error)))
            .transpose()
    }

    /// A number that stands for a word.
    pub(crate) fn code<T>(self, name: &str, read: impl Fn(i64) -> Option<T>) -> Result<T> {
        let code = self.number(name)?;
        read(code).ok_or_else(|| self.damaged(name, &format!("{code} means nothing")))
    }

    fn damaged(self, name: &str, why: &dyn std::fmt::Display) -> LedgerError {
        LedgerError::Damaged {
            doing: self.doing,
            what: format!("{name}: {why}"),
        }
    }
}

/// A value as the JSON text that the ledger keeps.
pub(crate) fn json_text<T: serde::Serialize + ?Sized>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| LedgerError::Refused {
        what: format!("it cannot be written as JSON: {error}"),
        remedy: String::new(),
    })
}
