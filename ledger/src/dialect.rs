//! Every difference between SQLite and PostgreSQL that a statement of the ledger meets. Statements are
//! written once, with `$1` for parameters, which both understand; what differs is put in from here.

use std::fmt::Write as _;

/// Which SQL the ledger's database speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// A SQLite file.
    Sqlite,
    /// A PostgreSQL database.
    Postgres,
}

/// The type of a column in [`Dialect::rows`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    /// Text.
    Text,
    /// A 64-bit number.
    Number,
}

impl Dialect {
    /// What stands for the words in braces in the migrations.
    pub(crate) fn migration(self, text: &str) -> String {
        let words: [(&str, &str); 5] = match self {
            Self::Sqlite => [
                ("{id}", "TEXT"),
                ("{blob}", "BLOB"),
                ("{hot}", "WITHOUT ROWID"),
                ("{clustered}", "WITHOUT ROWID"),
                (
                    "{positions}",
                    "CREATE TABLE positions (one INTEGER NOT NULL PRIMARY KEY, last BIGINT NOT NULL); \
                     INSERT INTO positions (one, last) VALUES (1, 0)",
                ),
            ],
            Self::Postgres => [
                // Bytewise order: faster than a locale's, and the same as SQLite's.
                ("{id}", "TEXT COLLATE \"C\""),
                ("{blob}", "BYTEA"),
                // Room in each page for the claim and the heartbeats to update in place, and a vacuum
                // that keeps up with a table which is emptied as fast as it fills.
                (
                    "{hot}",
                    "WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0)",
                ),
                ("{clustered}", ""),
                ("{positions}", "CREATE SEQUENCE positions CACHE 1"),
            ],
        };
        words.iter().fold(text.to_owned(), |text, (word, meaning)| {
            text.replace(word, meaning)
        })
    }

    /// An element of the JSON array of texts in parameter `n`: `id IN …`.
    pub(crate) fn among(self, n: usize) -> String {
        match self {
            Self::Sqlite => format!("IN (SELECT value FROM json_each(${n}))"),
            Self::Postgres => {
                format!("= ANY (ARRAY(SELECT json_array_elements_text(${n}::json)))")
            }
        }
    }

    /// One of what a SELECT gives, which is run once: `id …`. A limited SELECT behind IN may be run again for each row.
    pub(crate) fn among_rows(self, select: &str) -> String {
        match self {
            Self::Sqlite => format!("IN ({select})"),
            Self::Postgres => format!("= ANY (ARRAY({select}))"),
        }
    }

    /// That a row's `id` is the `key` of one of the objects in the JSON array in parameter `n`, for statements that join those
    /// objects with many rows and say so already. It holds PostgreSQL to looking each id up: by statistics of a time when the
    /// table was small it joins by reading a whole index, with all that is dead in it, for a hundred rows.
    pub(crate) fn looked_up(self, n: usize, key: &str) -> String {
        match self {
            Self::Sqlite => String::new(),
            Self::Postgres => format!(
                "AND id = ANY (ARRAY(SELECT r ->> '{key}' FROM json_array_elements(${n}::json) r))"
            ),
        }
    }

    /// The JSON array of objects in parameter `n` as a table with these columns.
    pub(crate) fn rows(self, n: usize, columns: &[(&str, Column)]) -> String {
        let mut sql = String::new();
        match self {
            Self::Sqlite => {
                for (at, (name, _)) in columns.iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(sql, "{comma}value ->> '$.{name}' AS {name}")
                        .expect("writing to a string does not fail");
                }
                format!("(SELECT {sql} FROM json_each(${n}))")
            }
            Self::Postgres => {
                for (at, (name, column)) in columns.iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    let kind = match column {
                        Column::Text => "text",
                        Column::Number => "bigint",
                    };
                    write!(sql, "{comma}{name} {kind}").expect("writing to a string does not fail");
                }
                format!("(SELECT * FROM json_to_recordset(${n}::json) AS r({sql}))")
            }
        }
    }

    /// What follows `CROSS JOIN` to join the rows of `table` that a limited SELECT of theirs names, made anew for
    /// each row before it. The SELECT's first column is the key.
    pub(crate) fn each_of(self, table: &str, alias: &str, key: &str, select: &str) -> String {
        match self {
            Self::Sqlite => {
                format!("{table} {alias} ON {alias}.{key} IN (SELECT {key} FROM ({select}))")
            }
            Self::Postgres => format!("LATERAL ({select}) {alias}"),
        }
    }

    /// The end of a SELECT whose rows are about to be changed. SQLite has one writer at a time.
    pub(crate) const fn for_update(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => "FOR UPDATE",
        }
    }

    /// The same, leaving out what somebody else is changing.
    pub(crate) const fn skip_locked(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => "FOR UPDATE SKIP LOCKED",
        }
    }

    /// The end of a SELECT whose rows must stay as they are until the commit.
    pub(crate) const fn for_share(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => "FOR SHARE",
        }
    }

    /// The `n`-th position of this transaction in the order of events (rule 10), where `given` is the
    /// number that SQLite's counter gave.
    pub(crate) const fn position(self, given: &str) -> &str {
        match self {
            Self::Sqlite => given,
            Self::Postgres => "nextval('positions')",
        }
    }

    /// The transaction's place in the order of events: SQLite's transactions never overlap.
    pub(crate) const fn transaction(self) -> &'static str {
        match self {
            Self::Sqlite => "0",
            Self::Postgres => "pg_current_xact_id()::text::bigint",
        }
    }

    /// True of rows that no transaction which is still open can come before (rule 10).
    pub(crate) const fn settled(self) -> &'static str {
        match self {
            Self::Sqlite => "1 = 1",
            Self::Postgres => "tx < pg_snapshot_xmin(pg_current_snapshot())::text::bigint",
        }
    }

    /// The server's clock in microseconds, as an expression; SQLite's is the machine's, and is not asked for by SQL.
    pub(crate) const fn clock(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"),
        }
    }

    /// For how many microseconds the server has been up, where there is one.
    pub(crate) const fn uptime(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some(
                "SELECT (extract(epoch FROM clock_timestamp() - pg_postmaster_start_time()) * 1000000)::bigint",
            ),
        }
    }

    /// How a writing transaction begins. SQLite takes the write lock at once: a transaction that
    /// begins by reading and then wants to write fails instead of waiting.
    pub(crate) const fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_parameters_is_written_for_each_dialect() {
        let columns = [("a", Column::Text), ("b", Column::Number)];
        assert_eq!(
            Dialect::Sqlite.rows(2, &columns),
            "(SELECT value ->> '$.a' AS a, value ->> '$.b' AS b FROM json_each($2))"
        );
        assert_eq!(
            Dialect::Postgres.rows(2, &columns),
            "(SELECT * FROM json_to_recordset($2::json) AS r(a text, b bigint))"
        );
    }
}
