//! An index that there is or could be, in the terms of statements.

use super::facts::{Facts, Index, Table, quote};

/// What a partial index asks of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Test {
    /// It is null.
    Null,
    /// It is not.
    NotNull,
    /// It is true.
    True,
    /// It is false.
    False,
}

/// The condition of a partial index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Predicate {
    pub(crate) column: i32,
    pub(crate) test: Test,
}

/// A B-tree index over columns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Candidate {
    pub(crate) table: u32,
    /// The columns of its key, and whether they go downwards.
    pub(crate) key: Vec<(i32, bool)>,
    /// Columns that it carries along, so that the table need not be read.
    pub(crate) included: Vec<i32>,
    pub(crate) predicate: Option<Predicate>,
}

impl Candidate {
    /// An index over these columns.
    pub(crate) fn over(table: u32, key: impl IntoIterator<Item = i32>) -> Self {
        Self {
            table,
            key: key.into_iter().map(|column| (column, false)).collect(),
            included: Vec::new(),
            predicate: None,
        }
    }

    /// All columns that it has.
    pub(crate) fn columns(&self) -> impl Iterator<Item = i32> + '_ {
        self.key
            .iter()
            .map(|(column, _)| *column)
            .chain(self.included.iter().copied())
    }

    /// What an index that there is can do in these terms; nothing where it is of another kind or not whole. Where an
    /// expression stands in its key, what comes before counts.
    pub(crate) fn of_index(index: &Index, table: &Table) -> Option<Self> {
        if index.method != "btree" || !index.valid {
            return None;
        }
        let predicate = match &index.predicate {
            None => None,
            Some(text) => Some(predicate_of(text, table)?),
        };
        let key: Vec<(i32, bool)> = index
            .key
            .iter()
            .zip(&index.details)
            .take_while(|(column, _)| **column != 0)
            .map(|(column, details)| {
                let option: u32 = details
                    .rsplit(' ')
                    .next()
                    .and_then(|text| text.parse().ok())
                    .unwrap_or_default();
                // The lowest bit of `indoption` is DESC.
                (*column, option & 1 == 1)
            })
            .collect();
        (!key.is_empty()).then(|| Self {
            table: index.table,
            key,
            included: index.included.clone(),
            predicate,
        })
    }

    /// Whether whatever this one serves is served by another as well: it begins with the same columns, carries the others,
    /// and holds no fewer rows.
    pub(crate) fn is_served_by(&self, other: &Self) -> bool {
        self.table == other.table
            && (other.predicate.is_none() || other.predicate == self.predicate)
            && other.key.starts_with(&self.key)
            && self
                .included
                .iter()
                .all(|column| other.columns().any(|carried| carried == *column))
    }

    /// The columns, the order and the condition as SQL, behind the table's name.
    pub(crate) fn sql(&self, facts: &Facts) -> Option<String> {
        let table = facts.table(self.table)?;
        let name = |number: i32| Some(quote(&table.column(number)?.name));
        let key: Vec<String> = self
            .key
            .iter()
            .map(|(column, down)| {
                Some(format!(
                    "{}{}",
                    name(*column)?,
                    if *down { " DESC" } else { "" }
                ))
            })
            .collect::<Option<_>>()?;
        let mut sql = format!("{} USING btree ({})", table.qualified(), key.join(", "));
        if !self.included.is_empty() {
            let included: Vec<String> = self
                .included
                .iter()
                .map(|column| name(*column))
                .collect::<Option<_>>()?;
            sql.push_str(&format!(" INCLUDE ({})", included.join(", ")));
        }
        if let Some(predicate) = &self.predicate {
            let column = name(predicate.column)?;
            sql.push_str(" WHERE ");
            sql.push_str(&match predicate.test {
                Test::Null => format!("{column} IS NULL"),
                Test::NotNull => format!("{column} IS NOT NULL"),
                Test::True => column,
                Test::False => format!("NOT {column}"),
            });
        }
        Some(sql)
    }

    /// The same in words.
    pub(crate) fn shown(&self, facts: &Facts) -> String {
        self.sql(facts)
            .map(|sql| sql.replace(" USING btree", "").replace('"', ""))
            .unwrap_or_default()
    }
}

/// The condition of a partial index as the server writes it, where it is one that is understood.
fn predicate_of(text: &str, table: &Table) -> Option<Predicate> {
    let text = text.trim();
    let text = text
        .strip_prefix('(')
        .and_then(|text| text.strip_suffix(')'))
        .unwrap_or(text);
    let (name, test) = if let Some(name) = text.strip_suffix(" IS NULL") {
        (name, Test::Null)
    } else if let Some(name) = text.strip_suffix(" IS NOT NULL") {
        (name, Test::NotNull)
    } else if let Some(name) = text.strip_prefix("NOT ") {
        (name, Test::False)
    } else {
        (text, Test::True)
    };
    let name = name.trim_matches('"');
    let column = table.named(name)?;
    (matches!(test, Test::Null | Test::NotNull) || column.boolean).then_some(Predicate {
        column: column.number,
        test,
    })
}
