//! A session for tuning: statements one by one on the database, and on a copy in memory that nobody else sees.
//!
//! Beside SQL for the database there are three words:
//!
//! - `COPY BYTES` makes the copy: all of it where the database has no more bytes than that (one line, `whole`), otherwise its
//!   definitions and statistics (`schema`);
//! - `TRY SQL` runs a statement on the copy;
//! - `STEPS SQL` runs a query on the copy to its end, and gives how many steps SQLite's machine took: work that no clock and no
//!   neighbour has a part in. It ends with an error after [`MOST_STEPS`].
//!
//! What stands behind `STEPS`, or behind `TRY EXPLAIN`, is a user's text: it reads, and reaches no other file.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use fettler_engine::{EngineError, Line, StatementError, Target, Workbench};
use rusqlite::{
    Connection, Error, ErrorCode, StatementStatus,
    hooks::{AuthAction, AuthContext, Authorization},
    types::ValueRef,
};

use crate::{
    blocking,
    connect::{open_shared, refused},
    path_of,
};

/// After how many steps a query on the copy is ended: a few seconds of work.
const MOST_STEPS: i32 = 200_000_000;
/// Lines of one answer.
const MOST_LINES: usize = 20_000;

struct Bench {
    path: PathBuf,
    /// In the hands of a blocking task while a statement runs.
    inner: Option<Inner>,
}

struct Inner {
    database: Connection,
    copy: Option<Connection>,
}

pub(crate) async fn open(target: &Target) -> Result<Box<dyn Workbench>, EngineError> {
    let path = path_of(target)?;
    let at = path.clone();
    let database = blocking(move || open_shared(&at)).await?;
    Ok(Box::new(Bench {
        path,
        inner: Some(Inner {
            database,
            copy: None,
        }),
    }))
}

#[async_trait]
impl Workbench for Bench {
    async fn run(&mut self, statement: &str) -> Result<Vec<Line>, StatementError> {
        let Some(mut inner) = self.inner.take() else {
            return Err(StatementError::Lost(EngineError::Stopped));
        };
        let (text, path) = (statement.to_owned(), self.path.clone());
        let (inner, answer) = blocking(move || {
            let answer = inner.answer(&text);
            Ok((inner, answer))
        })
        .await?;
        self.inner = Some(inner);
        answer.map_err(|error| told(&path, error))
    }

    async fn close(self: Box<Self>) {
        let _closed = blocking(move || {
            drop(self.inner);
            Ok(())
        })
        .await;
    }
}

/// A refusal where the database goes on, and otherwise the end of the session.
fn told(path: &Path, error: Error) -> StatementError {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::NotADatabase
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::CannotOpen
            | ErrorCode::SystemIoFailure,
        ) => StatementError::Lost(refused(path, "tuning", error)),
        code => StatementError::Refused {
            code: code.map_or_else(|| "sql".to_owned(), |code| format!("{code:?}")),
            message: error.to_string(),
        },
    }
}

impl Inner {
    fn answer(&mut self, text: &str) -> rusqlite::Result<Vec<Line>> {
        let word = |word: &str| text.strip_prefix(word).map(str::trim);
        if let Some(bytes) = word("COPY ") {
            let is_whole = self.make_copy(bytes.parse().unwrap_or(0))?;
            let what = if is_whole { "whole" } else { "schema" };
            return Ok(vec![vec![Some(what.to_owned())]]);
        }
        let copy = || self.copy.as_ref().ok_or(Error::InvalidQuery);
        if let Some(sql) = word("STEPS ") {
            let copy = copy()?;
            return as_a_reader(copy, || steps(copy, sql));
        }
        if let Some(sql) = word("TRY ") {
            let copy = copy()?;
            if sql.starts_with("EXPLAIN ") {
                return as_a_reader(copy, || lines(copy, sql));
            }
            return lines(copy, sql);
        }
        lines(&self.database, text)
    }

    /// Whether it has the rows too.
    fn make_copy(&mut self, most_bytes: i64) -> rusqlite::Result<bool> {
        let bytes: i64 = self.database.query_row(
            "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
            [],
            |row| row.get(0),
        )?;
        let mut copy = Connection::open_in_memory()?;
        let is_whole = bytes <= most_bytes;
        if is_whole {
            let backup = rusqlite::backup::Backup::new(&self.database, &mut copy)?;
            backup.run_to_completion(1000, std::time::Duration::ZERO, None)?;
        } else {
            copy_definitions(&self.database, &copy)?;
        }
        self.copy = Some(copy);
        Ok(is_whole)
    }
}

/// Tables, indexes and views, and what `ANALYZE` has found: what the planner looks at.
fn copy_definitions(from: &Connection, to: &Connection) -> rusqlite::Result<()> {
    let mut asked = from.prepare(
        "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND type IN ('table', 'index', 'view')
           AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY type = 'table' DESC, type = 'view'",
    )?;
    let definitions: Vec<String> = asked
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for definition in definitions {
        // Tables of extensions that are not there: no statement of them can be looked at, and others can.
        let _without = to.execute_batch(&definition);
    }
    // Makes the empty table of statistics.
    to.execute_batch("ANALYZE sqlite_schema")?;
    let known = from.prepare("SELECT tbl, idx, stat FROM sqlite_stat1");
    if let Ok(mut known) = known {
        let mut rows = known.query([])?;
        while let Some(row) = rows.next()? {
            let (table, index, stat): (String, Option<String>, Option<String>) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            to.execute(
                "INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?1, ?2, ?3)",
                (table, index, stat),
            )?;
        }
        to.execute_batch("ANALYZE sqlite_schema")?;
    }
    Ok(())
}

/// Does something while the copy only reads, and reaches nothing beside itself.
fn as_a_reader<T>(
    copy: &Connection,
    what: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    copy.authorizer(Some(|context: AuthContext<'_>| match context.action {
        AuthAction::Attach { .. } | AuthAction::Detach { .. } | AuthAction::Pragma { .. } => {
            Authorization::Deny
        }
        _ => Authorization::Allow,
    }))?;
    let given = what();
    copy.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
    given
}

fn steps(copy: &Connection, sql: &str) -> rusqlite::Result<Vec<Line>> {
    let mut statement = copy.prepare(sql)?;
    if !statement.readonly() {
        return Err(Error::InvalidQuery);
    }
    statement.reset_status(StatementStatus::VmStep);
    let mut left = MOST_STEPS / 100_000;
    copy.progress_handler(
        100_000,
        Some(move || {
            left -= 1;
            left <= 0
        }),
    )?;
    let ran: rusqlite::Result<()> = (|| {
        let mut rows = statement.raw_query();
        while rows.next()?.is_some() {}
        Ok(())
    })();
    copy.progress_handler(0, None::<fn() -> bool>)?;
    ran?;
    let taken = statement.get_status(StatementStatus::VmStep);
    Ok(vec![vec![Some(taken.to_string())]])
}

fn lines(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<Line>> {
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    // What stands for values is nothing at all: only plans are asked of such a text.
    let mut given = statement.raw_query();
    let mut lines = Vec::new();
    while let Some(row) = given.next()? {
        let line = (0..columns)
            .map(|at| {
                Ok(match row.get_ref(at)? {
                    ValueRef::Null => None,
                    ValueRef::Integer(number) => Some(number.to_string()),
                    ValueRef::Real(number) => Some(number.to_string()),
                    ValueRef::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
                    ValueRef::Blob(bytes) => Some(format!("{} bytes", bytes.len())),
                })
            })
            .collect::<rusqlite::Result<Line>>()?;
        lines.push(line);
        if lines.len() >= MOST_LINES {
            break;
        }
    }
    Ok(lines)
}
