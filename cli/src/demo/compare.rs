//! The comparison of the demo, by SQLite alone: none of the code that backs up, restores or proves has a
//! part in it.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rusqlite::{Connection, OpenFlags, types::ValueRef};

/// What is in a database: of each table, how many rows, and a hash over all of them in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digest {
    tables: BTreeMap<String, (u64, blake3::Hash)>,
}

impl Digest {
    /// Reads a database; `bytes` counts what was read.
    pub(crate) fn of(path: &Path, bytes: &AtomicU64) -> Result<Self, rusqlite::Error> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut names = connection.prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
        )?;
        let names = names
            .query_map([], |row| row.get(0))?
            .collect::<Result<Vec<String>, _>>()?;
        let mut tables = BTreeMap::new();
        for name in names {
            // Without an order of its own a table is read in the order of its key.
            let mut statement =
                connection.prepare(&format!("SELECT * FROM \"{}\"", name.replace('"', "\"\"")))?;
            let columns = statement.column_count();
            let mut rows = statement.query([])?;
            let (mut count, mut hasher) = (0, blake3::Hasher::new());
            while let Some(row) = rows.next()? {
                count += 1;
                for column in 0..columns {
                    add(&mut hasher, row.get_ref(column)?, bytes);
                }
            }
            tables.insert(name, (count, hasher.finalize()));
        }
        Ok(Self { tables })
    }

    /// Rows of all tables.
    pub(crate) fn rows(&self) -> u64 {
        self.tables.values().map(|(rows, _)| rows).sum()
    }

    /// The tables that are not the same in both.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let mut names: Vec<String> = self
            .tables
            .iter()
            .filter(|(name, content)| other.tables.get(*name) != Some(content))
            .chain(
                other
                    .tables
                    .iter()
                    .filter(|(name, _)| !self.tables.contains_key(*name)),
            )
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }
}

/// Each value with its type and length, so that no two rows have one writing.
fn add(hasher: &mut blake3::Hasher, value: ValueRef<'_>, bytes: &AtomicU64) {
    let (kind, content): (u8, &[u8]) = match value {
        ValueRef::Null => (0, &[]),
        ValueRef::Integer(number) => {
            hasher.update(&[1]).update(&number.to_le_bytes());
            bytes.fetch_add(8, Relaxed);
            return;
        }
        ValueRef::Real(number) => {
            hasher.update(&[2]).update(&number.to_bits().to_le_bytes());
            bytes.fetch_add(8, Relaxed);
            return;
        }
        ValueRef::Text(text) => (3, text),
        ValueRef::Blob(blob) => (4, blob),
    };
    let length = content.len() as u64;
    hasher
        .update(&[kind])
        .update(&length.to_le_bytes())
        .update(content);
    bytes.fetch_add(length, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_row_is_found_and_its_table_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, value: &str| {
            let path = folder.path().join(name);
            let connection = Connection::open(&path).unwrap();
            connection
                .execute_batch(&format!(
                    "CREATE TABLE a (x); CREATE TABLE b (x); INSERT INTO a VALUES (1), (2.5), (NULL); INSERT INTO b VALUES ('{value}')"
                ))
                .unwrap();
            Digest::of(&path, &AtomicU64::new(0)).unwrap()
        };
        let (one, same, other) = (make("1", "x"), make("2", "x"), make("3", "y"));
        assert_eq!(one, same);
        assert_eq!(one.rows(), 4);
        assert_eq!(one.differences(&other), ["b"]);
    }
}
