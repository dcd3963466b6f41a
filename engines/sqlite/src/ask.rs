//! Answers questions of checks: statements over one connection that may write nothing, within their time, on the file as
//! others use it. What SQL cannot tell stands in tables of its own ([`crate::files`]).

use std::{
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use fettler_engine::{Answer, Answers, EngineError, Question, Refusal, Row};
use rusqlite::{
    Connection, ErrorCode,
    hooks::{AuthAction, AuthContext, Authorization},
    types::ValueRef,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    connect::{open_shared, refused},
    files::describe,
};

/// After how many steps of SQLite's machine the clock is looked at.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

/// Asks. It blocks.
pub(crate) fn ask(
    path: &Path,
    questions: &[Question],
    stop: &CancellationToken,
) -> Result<Answers, EngineError> {
    let began = Instant::now();
    let connection = open_shared(path)?;
    let connected_in = began.elapsed();
    let failed = |error| refused(path, "asking about", error);
    let began = Instant::now();
    connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        .map_err(failed)?;
    let answered_in = began.elapsed();
    describe(&connection, path).map_err(failed)?;
    connection
        .pragma_update(None, "query_only", true)
        .map_err(failed)?;
    connection.authorizer(Some(only_reading)).map_err(failed)?;
    let version = version_of(rusqlite::version());
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        if stop.is_cancelled() {
            return Err(EngineError::Stopped);
        }
        answers.push(if question.versions.hold(version) {
            answer(&connection, question, stop)
        } else {
            Answer::refused(question.id.clone(), Refusal::OtherVersion)
        });
    }
    if stop.is_cancelled() {
        return Err(EngineError::Stopped);
    }
    Ok(Answers {
        version: rusqlite::version().to_owned(),
        connected_in,
        answered_in,
        answers,
    })
}

/// Questions read; what would reach another file or change a setting is refused.
fn only_reading(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Select
        | AuthAction::Read { .. }
        | AuthAction::Function { .. }
        | AuthAction::Recursive => Authorization::Allow,
        AuthAction::Pragma {
            pragma_value: None, ..
        } => Authorization::Allow,
        // These take the name of what they look at.
        AuthAction::Pragma {
            pragma_name:
                "foreign_key_check" | "foreign_key_list" | "index_list" | "index_info" | "index_xinfo"
                | "table_info" | "table_xinfo" | "integrity_check" | "quick_check",
            ..
        } => Authorization::Allow,
        // A table-valued pragma makes a virtual table for the length of a statement.
        AuthAction::CreateVtable { .. } | AuthAction::DropVtable { .. } => Authorization::Allow,
        _ => Authorization::Deny,
    }
}

fn version_of(text: &str) -> (u32, u32) {
    let mut numbers = text.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn answer(connection: &Connection, question: &Question, stop: &CancellationToken) -> Answer {
    let ends = Instant::now() + question.timeout;
    let late = Arc::new(AtomicBool::new(false));
    let (told, stop) = (Arc::clone(&late), stop.clone());
    let watch = move || {
        let over = Instant::now() >= ends;
        told.fetch_or(over, Ordering::Relaxed);
        over || stop.is_cancelled()
    };
    let given = connection
        .progress_handler(STEPS_BETWEEN_LOOKS, Some(watch))
        .and_then(|()| rows(connection, &question.text));
    let id = question.id.clone();
    match given {
        Ok(rows) => Answer::of(id, rows),
        Err(_) if late.load(Ordering::Relaxed) => Answer::refused(
            id,
            Refusal::TimedOut(question.timeout.max(Duration::from_secs(1)).as_secs()),
        ),
        // Damage may stop the very look for it: then this is what it has found.
        Err(error)
            if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
                && question.text.contains("integrity_check") =>
        {
            let found = [
                ("problems", Value::from(1)),
                ("first", Value::from(error.to_string())),
            ];
            Answer::of(
                id,
                vec![
                    found
                        .map(|(name, value)| (name.to_owned(), value))
                        .into_iter()
                        .collect(),
                ],
            )
        }
        Err(error) => {
            let refusal = match error.sqlite_error_code() {
                Some(ErrorCode::AuthorizationForStatementDenied) => {
                    Refusal::Permission(error.to_string())
                }
                _ => Refusal::Failed(error.to_string()),
            };
            Answer::refused(id, refusal)
        }
    }
}

fn rows(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare(sql)?;
    let names: Vec<String> = statement
        .column_names()
        .into_iter()
        .map(ToOwned::to_owned)
        .collect();
    let mut given = statement.query([])?;
    let mut rows = Vec::new();
    while let Some(row) = given.next()? {
        let mut line = Row::new();
        for (at, name) in names.iter().enumerate() {
            let value = match row.get_ref(at)? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(number) => Value::from(number),
                ValueRef::Real(number) => Value::from(number),
                ValueRef::Text(text) => Value::from(String::from_utf8_lossy(text)),
                ValueRef::Blob(bytes) => Value::from(format!("{} bytes", bytes.len())),
            };
            line.insert(name.clone(), value);
        }
        rows.push(line);
        if rows.len() > Answers::MOST_ROWS {
            break;
        }
    }
    Ok(rows)
}
