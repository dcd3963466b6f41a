//! One table of a backup as CSV, SQL or NDJSON. A backup holds pages, so that they become a file in the scratch folder first,
//! which is read by SQLite and removed.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use fettler_engine::{
    BackupReport, EngineContext, EngineError, ExtractFormat, ExtractReport, Extraction, PartWriter,
    RestoreOptions, StreamSource, Unrecorded, no_such_part, put_csv_value, several_parts,
};
use rusqlite::{Connection, types::ValueRef};
use tokio::{io::AsyncWrite, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    blocking, check,
    connect::{open_immutable, quoted, refused},
    file_name_part, restore,
    scan::{self, Table},
    snapshot::ScratchFile,
    tables::matches,
};

/// The forms, the usual one first.
pub(crate) const FORMATS: [ExtractFormat; 3] = [
    ExtractFormat::Csv,
    ExtractFormat::Sql,
    ExtractFormat::Ndjson,
];
/// Bytes that the reading thread hands on at once.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that may wait.
const PIECES_AHEAD: usize = 4;

/// Writes a table.
pub(crate) async fn extract(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    what: &Extraction,
    out: &mut (dyn AsyncWrite + Send + Unpin),
) -> Result<ExtractReport, EngineError> {
    let whole = ScratchFile(
        context
            .scratch
            .join(format!("{}.extract.sqlite", file_name_part(context))),
    );
    // What lies in the scratch folder is gone with the attempt: nothing is to be gone on with.
    let mut working = context.clone();
    working.checkpoints = std::sync::Arc::new(Unrecorded);
    working.artefacts = std::sync::Arc::new(Unrecorded);
    // A name that is not there is refused before anything is read, as far as the manifest tells.
    named(report, &what.part)?;
    restore::whole(
        &working,
        backup,
        report,
        whole.0.clone(),
        &RestoreOptions {
            overwrite: true,
            ..RestoreOptions::default()
        },
    )
    .await?;

    let halt = context.stop.child_token();
    let _stops_the_thread = halt.clone().drop_guard();
    let (send, mut pieces) = mpsc::channel(PIECES_AHEAD);
    let reading = {
        let (path, what, halt) = (whole.0.clone(), what.clone(), halt.clone());
        blocking(move || read(&path, &what, &halt, &send))
    };
    let writing = async {
        let mut writer = PartWriter::new(context, out);
        while let Some((piece, rows)) = pieces.recv().await {
            writer.rows += rows;
            let piece: Bytes = piece;
            writer.pass(&piece).await?;
        }
        // Whoever waits for room hears of a failure by this end.
        drop(pieces);
        writer.finish().await
    };
    let (read, written) = tokio::join!(reading, writing);
    match (read, written) {
        // The thread stopped because nobody took what it read.
        (Err(EngineError::Stopped), Err(error)) => Err(error),
        (read, written) => read.and(written),
    }
}

/// The name as the manifest has it. Tables without a fingerprint are not in it: those are looked for in the file.
fn named(report: &BackupReport, part: &str) -> Result<(), EngineError> {
    let patterns = [part.to_owned()];
    let names: Vec<&str> = report
        .objects
        .iter()
        .filter(|object| object.kind == fettler_model::ObjectKind::Table)
        .map(|object| object.name.as_str())
        .collect();
    if names.iter().any(|name| matches(&patterns, name)) {
        Ok(())
    } else {
        Err(no_such_part(part, &names))
    }
}

/// Where the thread's pieces go, with the rows in each.
type Pieces = mpsc::Sender<(Bytes, u64)>;

/// The rows as they are written.
struct Rows<'a> {
    pieces: &'a Pieces,
    halt: &'a CancellationToken,
    buffer: Vec<u8>,
    rows: u64,
}

impl Rows<'_> {
    fn settle(&mut self, at_end: bool) -> Result<(), EngineError> {
        if self.buffer.len() < PIECE_BYTES && !at_end {
            return Ok(());
        }
        check(self.halt)?;
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        self.pieces
            .blocking_send((piece, std::mem::take(&mut self.rows)))
            // The other end has the reason.
            .map_err(|_| EngineError::Stopped)
    }
}

/// Reads the table. Runs on a thread of its own.
fn read(
    path: &Path,
    what: &Extraction,
    halt: &CancellationToken,
    pieces: &Pieces,
) -> Result<(), EngineError> {
    let asked = |error| refused(path, "reading", error);
    let connection = open_immutable(path)?;
    let table = chosen(&connection, path, &what.part)?;
    let columns = match what.format {
        // What is computed cannot be put in.
        ExtractFormat::Sql => given_columns(&connection, &table.name).map_err(asked)?,
        _ => table.columns.clone(),
    };
    let mut to = Rows {
        pieces,
        halt,
        buffer: Vec::new(),
        rows: 0,
    };
    let list = columns
        .iter()
        .map(|column| quoted(column))
        .collect::<Vec<_>>()
        .join(", ");
    let (before, after) = match what.format {
        ExtractFormat::Sql => statements(&connection, &table.name).map_err(asked)?,
        _ => (String::new(), String::new()),
    };
    to.buffer.extend_from_slice(before.as_bytes());
    if what.format == ExtractFormat::Csv {
        for (number, column) in columns.iter().enumerate() {
            if number > 0 {
                to.buffer.push(b',');
            }
            put_csv_value(column.as_bytes(), columns.len() == 1, &mut to.buffer);
        }
        to.buffer.push(b'\n');
    }
    let insert = format!("INSERT INTO {} ({list}) VALUES (", quoted(&table.name));
    let mut statement = connection
        .prepare(&format!(
            "SELECT {list} FROM main.{} NOT INDEXED",
            quoted(&table.name)
        ))
        .map_err(asked)?;
    let mut rows = statement.query([]).map_err(asked)?;
    while let Some(row) = rows.next().map_err(asked)? {
        let buffer = &mut to.buffer;
        buffer.extend_from_slice(match what.format {
            ExtractFormat::Sql => insert.as_bytes(),
            ExtractFormat::Ndjson => b"{",
            _ => b"",
        });
        for (at, column) in columns.iter().enumerate() {
            if at > 0 {
                buffer.push(b',');
            }
            let value = row.get_ref(at).map_err(asked)?;
            match what.format {
                ExtractFormat::Sql => put_sql(value, buffer),
                ExtractFormat::Ndjson => {
                    put_json_text(column, buffer);
                    buffer.push(b':');
                    put_json(value, buffer);
                }
                _ => put_csv(value, columns.len() == 1, buffer),
            }
        }
        buffer.extend_from_slice(match what.format {
            ExtractFormat::Sql => b");\n",
            ExtractFormat::Ndjson => b"}\n",
            _ => b"\n",
        });
        to.rows += 1;
        to.settle(false)?;
    }
    to.buffer.extend_from_slice(after.as_bytes());
    to.settle(true)
}

/// The one table that is meant.
fn chosen(connection: &Connection, path: &Path, part: &str) -> Result<Table, EngineError> {
    let mut tables = scan::tables(connection).map_err(|error| refused(path, "reading", error))?;
    let names: Vec<String> = tables.iter().map(|table| table.name.clone()).collect();
    if let Some(at) = names.iter().position(|name| name == part) {
        return Ok(tables.swap_remove(at));
    }
    let patterns = [part.to_owned()];
    let meant: Vec<usize> = (0..names.len())
        .filter(|at| matches(&patterns, &names[*at]))
        .collect();
    match meant.as_slice() {
        [] => Err(no_such_part(part, &names)),
        [one] => Ok(tables.swap_remove(*one)),
        several => {
            let names: Vec<&String> = several.iter().map(|at| &names[*at]).collect();
            Err(several_parts(part, &names))
        }
    }
}

/// The columns that are given values, which those that are computed are not.
fn given_columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0")?
        .query_map([table], |row| row.get(0))?
        .collect()
}

/// What stands before the rows (the table's definition) and behind them (its indexes and triggers).
fn statements(connection: &Connection, table: &str) -> rusqlite::Result<(String, String)> {
    let all: Vec<(String, String)> = connection
        .prepare(
            "SELECT type, sql FROM main.sqlite_schema \
             WHERE tbl_name = ? COLLATE NOCASE AND sql IS NOT NULL AND type <> 'view' \
             ORDER BY CASE type WHEN 'table' THEN 0 WHEN 'index' THEN 1 ELSE 2 END, rowid",
        )?
        .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut before = String::from("PRAGMA foreign_keys = OFF;\nBEGIN;\n");
    let mut after = String::new();
    for (kind, sql) in all {
        let to = if kind == "table" {
            &mut before
        } else {
            &mut after
        };
        to.push_str(&sql);
        to.push_str(";\n");
    }
    after.push_str("COMMIT;\n");
    Ok((before, after))
}

/// A number as text that reads as the same number again.
fn real(number: f64) -> String {
    format!("{number:?}")
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn put_csv(value: ValueRef<'_>, alone: bool, to: &mut Vec<u8>) {
    match value {
        ValueRef::Null => {}
        ValueRef::Integer(number) => to.extend_from_slice(number.to_string().as_bytes()),
        ValueRef::Real(number) if number.is_infinite() => to.extend_from_slice(if number > 0.0 {
            b"Infinity"
        } else {
            b"-Infinity"
        }),
        ValueRef::Real(number) => to.extend_from_slice(real(number).as_bytes()),
        ValueRef::Text(text) => put_csv_value(text, alone, to),
        ValueRef::Blob(bytes) => {
            to.extend_from_slice(format!("X'{}'", hexadecimal(bytes)).as_bytes());
        }
    }
}

fn put_sql(value: ValueRef<'_>, to: &mut Vec<u8>) {
    let text = match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        // There is no literal for it; so large a number is it.
        ValueRef::Real(number) if number.is_infinite() => {
            if number > 0.0 { "9e999" } else { "-9e999" }.to_owned()
        }
        ValueRef::Real(number) => real(number),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) if !text.contains('\0') => format!("'{}'", text.replace('\'', "''")),
            _ => format!("CAST(X'{}' AS TEXT)", hexadecimal(text)),
        },
        ValueRef::Blob(bytes) => format!("X'{}'", hexadecimal(bytes)),
    };
    to.extend_from_slice(text.as_bytes());
}

fn put_json_text(text: &str, to: &mut Vec<u8>) {
    to.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
}

/// Text is a string, bytes are `{"base64": …}`, so are texts that are not UTF-8.
fn put_json(value: ValueRef<'_>, to: &mut Vec<u8>) {
    match value {
        ValueRef::Null => to.extend_from_slice(b"null"),
        ValueRef::Integer(number) => to.extend_from_slice(number.to_string().as_bytes()),
        ValueRef::Real(number) if number.is_infinite() => put_json_text(
            if number > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            },
            to,
        ),
        ValueRef::Real(number) => to.extend_from_slice(real(number).as_bytes()),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => put_json_text(text, to),
            Err(_) => put_base64(text, to),
        },
        ValueRef::Blob(bytes) => put_base64(bytes, to),
    }
}

fn put_base64(bytes: &[u8], to: &mut Vec<u8>) {
    to.extend_from_slice(format!("{{\"base64\":\"{}\"}}", STANDARD.encode(bytes)).as_bytes());
}
