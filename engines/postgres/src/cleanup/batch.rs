//! The statements of one batch of archived rows. Values go as literals and become what they are by the very input functions
//! that a restore uses; two rows are the same where the text of all their columns is.

use std::fmt::Write as _;

use fettler_engine::EngineError;

use crate::{
    names::{literal, quote_ident},
    wire::Session,
};

use super::rows::{ForeignKey, RowsData};

/// A row of the archive: each column's text, or NULL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ArchivedRow {
    pub(super) values: Vec<Option<String>>,
    /// Bytes that it has in the archive.
    pub(super) bytes: u64,
}

/// Rows that one transaction is about.
pub(super) struct Batch<'a> {
    data: &'a RowsData,
    rows: &'a [ArchivedRow],
}

impl<'a> Batch<'a> {
    pub(super) const fn new(data: &'a RowsData, rows: &'a [ArchivedRow]) -> Self {
        Self { data, rows }
    }

    /// Some rows as a table `v` with their numbers `n` and these columns, named after their places: `c0`, `c1`.
    fn values(&self, which: &[usize], columns: &[usize]) -> String {
        let mut sql = String::from("(VALUES ");
        for (at, row) in which.iter().enumerate() {
            // The first row says the types; the others follow it.
            let is_first = at == 0;
            let put = |sql: &mut String, column: usize| match &self.rows[*row].values[column] {
                Some(text) => sql.push_str(&literal(text)),
                None => sql.push_str("NULL"),
            };
            let separator = if is_first { "" } else { "," };
            let _text_takes_all = write!(sql, "{separator}({row}");
            for column in columns {
                sql.push(',');
                put(&mut sql, *column);
                if is_first {
                    let _text_takes_all = write!(sql, "::{}", self.data.columns[*column].of_type);
                }
            }
            sql.push(')');
        }
        sql.push_str(") AS v(n");
        for column in columns {
            let _text_takes_all = write!(sql, ",c{column}");
        }
        sql.push(')');
        sql
    }

    fn key_columns(&self) -> Vec<usize> {
        self.data.key.iter().map(|key| key.column).collect()
    }

    fn all_columns(&self) -> Vec<usize> {
        (0..self.data.columns.len()).collect()
    }

    /// `t` and `v` have one key.
    fn same_key(&self) -> String {
        let parts: Vec<String> = self
            .data
            .key
            .iter()
            .map(|key| {
                format!(
                    "t.{} {} v.c{}",
                    quote_ident(&self.data.columns[key.column].name),
                    key.equals,
                    key.column
                )
            })
            .collect();
        parts.join(" AND ")
    }

    /// `t` and `v` have one content.
    fn same_content(&self) -> String {
        let ours: Vec<String> = self
            .all_columns()
            .iter()
            .map(|column| format!("v.c{column}"))
            .collect();
        format!(
            "ROW({})::text = ROW({})::text",
            self.data.column_list("t."),
            ours.join(", ")
        )
    }

    /// Locks those rows that nobody else holds, and says which they are.
    pub(super) async fn lock(&self, session: &mut Session) -> Result<Vec<usize>, EngineErrorAt> {
        let all: Vec<usize> = (0..self.rows.len()).collect();
        let sql = format!(
            "SELECT v.n FROM {} JOIN ONLY {} AS t ON {} FOR UPDATE OF t SKIP LOCKED",
            self.values(&all, &self.key_columns()),
            self.data.sql_name(),
            self.same_key()
        );
        numbers(session, &sql, "locking rows").await
    }

    /// Deletes those of the locked rows whose content is that of the archive and to which nobody refers, and says which they are.
    pub(super) async fn delete(
        &self,
        session: &mut Session,
        locked: &[usize],
    ) -> Result<Vec<usize>, EngineErrorAt> {
        let mut guards = String::new();
        for key in &self.data.referring {
            let _text_takes_all = write!(guards, " AND NOT {}", self.data.is_referred_to(key, ""));
        }
        let sql = format!(
            "DELETE FROM ONLY {} AS t USING {} WHERE {} AND {}{guards} RETURNING v.n",
            self.data.sql_name(),
            self.values(locked, &self.all_columns()),
            self.same_key(),
            self.same_content()
        );
        numbers(session, &sql, "deleting rows").await
    }

    /// Which of these rows are there, and whether with the content of the archive.
    pub(super) async fn there(
        &self,
        session: &mut Session,
        which: &[usize],
    ) -> Result<Vec<(usize, bool)>, EngineErrorAt> {
        if which.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT v.n, {} FROM {} JOIN ONLY {} AS t ON {}",
            self.same_content(),
            self.values(which, &self.all_columns()),
            self.data.sql_name(),
            self.same_key()
        );
        let rows = session
            .query(&sql)
            .await
            .map_err(|error| EngineErrorAt::of(error, "looking at rows"))?;
        rows.iter()
            .map(|row| Ok((row.get(0)?, row.flag(1)?)))
            .collect::<Result<_, EngineError>>()
            .map_err(EngineErrorAt::from)
    }

    /// Which of these rows refer to something that is not there.
    pub(super) async fn without_parent(
        &self,
        session: &mut Session,
        which: &[usize],
        key: &ForeignKey,
    ) -> Result<Vec<usize>, EngineErrorAt> {
        if which.is_empty() {
            return Ok(Vec::new());
        }
        let mut columns = Vec::new();
        for pair in &key.pairs {
            let Some(place) = self
                .data
                .columns
                .iter()
                .position(|column| column.name == pair.from)
            else {
                // The server computes it: the key's own check is what is left.
                return Ok(Vec::new());
            };
            columns.push(place);
        }
        let set: Vec<String> = columns
            .iter()
            .map(|column| format!("v.c{column} IS NOT NULL"))
            .collect();
        let pairs: Vec<String> = key
            .pairs
            .iter()
            .zip(&columns)
            .map(|(pair, column)| {
                format!("p.{} {} v.c{column}", quote_ident(&pair.to), pair.equals)
            })
            .collect();
        // A row may refer to itself.
        let mut own = String::new();
        if key.is_own {
            let mut same = Vec::new();
            for (pair, column) in key.pairs.iter().zip(columns.clone()) {
                let mut all = self.data.columns.iter();
                let Some(to) = all.position(|column| column.name == pair.to) else {
                    return Ok(Vec::new());
                };
                same.push(format!("v.c{to} {} v.c{column}", pair.equals));
                if !columns.contains(&to) {
                    columns.push(to);
                }
            }
            own = format!(" AND ({}) IS NOT TRUE", same.join(" AND "));
        }
        let sql = format!(
            "SELECT v.n FROM {} WHERE {}{own} AND NOT EXISTS (SELECT FROM {} AS p WHERE {})",
            self.values(which, &columns),
            set.join(" AND "),
            crate::names::qualified(&key.schema, &key.table),
            pairs.join(" AND ")
        );
        numbers(session, &sql, "looking what rows refer to").await
    }

    /// Puts rows in, but for those whose place is taken.
    pub(super) async fn insert(
        &self,
        session: &mut Session,
        which: &[usize],
    ) -> Result<(), EngineErrorAt> {
        let columns: Vec<String> = self
            .all_columns()
            .iter()
            .map(|column| format!("v.c{column}"))
            .collect();
        let sql = format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} ON CONFLICT DO NOTHING",
            self.data.sql_name(),
            self.data.column_list(""),
            columns.join(", "),
            self.values(which, &self.all_columns())
        );
        session
            .execute(&sql)
            .await
            .map_err(|error| EngineErrorAt::of(error, "putting rows back"))
    }

    /// The key of a row, for people.
    pub(super) fn key_of(&self, row: usize) -> String {
        let parts: Vec<String> = self
            .data
            .key
            .iter()
            .map(|key| {
                format!(
                    "{}={}",
                    self.data.columns[key.column].name,
                    self.rows[row].values[key.column]
                        .as_deref()
                        .unwrap_or("NULL")
                )
            })
            .collect();
        format!("{} {}", self.data.display(), parts.join(" "))
    }
}

/// An error of a batch, with the server's own code.
#[derive(Debug)]
pub(super) struct EngineErrorAt {
    pub(super) error: EngineError,
    code: Option<String>,
}

impl EngineErrorAt {
    pub(super) fn of(error: crate::error::WireError, doing: &str) -> Self {
        let code = error.code().map(str::to_owned);
        Self {
            error: error.doing(doing),
            code,
        }
    }

    /// Whether the same may go well a moment later: a lock was not to be had, a statement took too long, transactions met.
    pub(super) fn is_of_the_moment(&self) -> bool {
        matches!(
            self.code.as_deref(),
            Some("55P03" | "57014" | "40P01" | "40001" | "23503")
        )
    }
}

impl From<EngineError> for EngineErrorAt {
    fn from(error: EngineError) -> Self {
        Self { error, code: None }
    }
}

async fn numbers(
    session: &mut Session,
    sql: &str,
    doing: &str,
) -> Result<Vec<usize>, EngineErrorAt> {
    let rows = session
        .query(sql)
        .await
        .map_err(|error| EngineErrorAt::of(error, doing))?;
    rows.iter()
        .map(|row| row.get(0))
        .collect::<Result<_, EngineError>>()
        .map_err(EngineErrorAt::from)
}

#[cfg(test)]
mod tests {
    use super::super::rows::{Column, KeyColumn};
    use super::*;

    #[test]
    fn the_first_row_says_the_types_and_nothing_breaks_out() {
        let column = |name: &str, of_type: &str| Column {
            name: name.to_owned(),
            of_type: of_type.to_owned(),
        };
        let data = RowsData {
            oid: 1,
            schema: "public".to_owned(),
            table: "it's".to_owned(),
            columns: vec![column("id", "bigint"), column("v", "text")],
            key: vec![KeyColumn {
                column: 0,
                equals: "OPERATOR(pg_catalog.=)".to_owned(),
            }],
            condition: "true".to_owned(),
            referring: Vec::new(),
        };
        let row = |id: &str, v: Option<&str>| ArchivedRow {
            values: vec![Some(id.to_owned()), v.map(str::to_owned)],
            bytes: 0,
        };
        let rows = [row("1", None), row("2", Some("a'\\b"))];
        let batch = Batch::new(&data, &rows);
        assert_eq!(
            batch.values(&[0, 1], &[0, 1]),
            r"(VALUES (0,'1'::bigint,NULL::text),(1,'2',E'a''\\b')) AS v(n,c0,c1)"
        );
        assert_eq!(batch.same_key(), r#"t."id" OPERATOR(pg_catalog.=) v.c0"#);
        assert_eq!(
            batch.same_content(),
            r#"ROW(t."id", t."v")::text = ROW(v.c0, v.c1)::text"#
        );
        assert_eq!(batch.key_of(1), r#"public."it's" id=2"#);
    }
}
