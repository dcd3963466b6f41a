//! Reading statements for another engine of SQL: what they compare, join and order by, and the indexes that follow from it.
//! What becomes of these is that engine's own affair.

use super::{
    candidates::candidates,
    facts::{Column, Facts, Table},
    workload::{Names, shape},
};

pub(crate) use super::workload::Shape;

/// A table with fewer rows is read as quickly as an index.
const FEW_ROWS: f64 = 1000.0;
/// Rows on a page, about.
const ROWS_OF_A_PAGE: f64 = 50.0;
/// Below this number of pages a table gets no index.
const LEAST_PAGES: f64 = 64.0;
/// From which share of different values on their number grows with the table.
const GROWING: f64 = 0.1;

/// The tables that statements may name. Names are taken whatever their case.
#[derive(Default)]
pub(crate) struct Known(Facts);

impl Known {
    /// Adds a table: its columns, each with how many different values a sample of how many rows has.
    pub(crate) fn add(&mut self, name: &str, rows: f64, columns: &[(&str, f64, f64)]) {
        let oid = u32::try_from(self.0.tables.len() + 1).unwrap_or(u32::MAX);
        self.0.tables.push(Table {
            oid,
            schema: "main".to_owned(),
            name: name.to_lowercase(),
            kind: "r".to_owned(),
            rows,
            live: rows,
            pages: if rows < FEW_ROWS {
                1.0
            } else {
                (rows / ROWS_OF_A_PAGE).max(LEAST_PAGES)
            },
            columns: columns
                .iter()
                .zip(1..)
                .map(|((name, values, of), number)| Column {
                    number,
                    name: name.to_lowercase(),
                    sortable: true,
                    width: 8.0,
                    distinct: if *values > of * GROWING {
                        -(values / of.max(1.0))
                    } else {
                        *values
                    },
                    statistics_target: -1,
                    ..Column::default()
                })
                .collect(),
            ..Table::default()
        });
    }

    /// What a statement does with the tables; none where it cannot be read or has nothing to do with them.
    pub(crate) fn shape(&self, text: &str) -> Option<Shape> {
        shape(&Names::of(&self.0), &text.to_lowercase())
    }

    /// Indexes that could serve: tables and columns, with whether they go downwards. What would be carried along stands at the
    /// end of the key.
    pub(crate) fn candidates(&self, shapes: &[&Shape]) -> Vec<(String, Vec<(String, bool)>)> {
        candidates(&self.0, shapes)
            .iter()
            .filter(|candidate| candidate.predicate.is_none())
            .filter_map(|candidate| {
                let table = self.0.table(candidate.table)?;
                let included = candidate.included.iter().map(|number| (*number, false));
                let columns: Option<Vec<(String, bool)>> = candidate
                    .key
                    .iter()
                    .copied()
                    .chain(included)
                    .map(|(number, descends)| Some((table.column(number)?.name.clone(), descends)))
                    .collect();
                Some((table.name.clone(), columns?))
            })
            .collect()
    }

    /// Whether a statement writes to a table.
    pub(crate) fn writes(&self, shape: &Shape, table: &str) -> bool {
        shape
            .write
            .as_ref()
            .and_then(|write| self.0.table(write.table()))
            .is_some_and(|one| one.name.eq_ignore_ascii_case(table))
    }
}
