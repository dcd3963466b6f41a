//! Old rows of a table: which they are, by what they are found again, what refers to them, and their archive.
//!
//! SQLite has no type for times. A text is read as ISO 8601, UTC where it names no zone; a number as seconds, milliseconds or
//! microseconds since 1970 or as a Julian day, by its size: the ranges below do not meet between the years 1973 and 5138. A value that is none of these says no
//! time, and its row is not old.

use std::path::{Path, PathBuf};

use fettler_engine::{
    CleanupArchive, EngineContext, EngineError, RecordWriter, StreamSink, refuse,
};
use fettler_model::{CleanupAction, CleanupItem, CleanupPlan, Referenced, Timestamp};
use rusqlite::{
    Connection, Row,
    types::{ToSqlOutput, Value, ValueRef},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    blocking,
    connect::{quoted, refused},
};

use super::open;

/// Rows that are read in one transaction: in the rollback-journal modes a reader keeps writers out.
const CHUNK_ROWS: usize = 1000;

/// A foreign key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ForeignKey {
    /// The other table: that which refers to ours, or that to which ours refers.
    pub(super) table: String,
    /// The columns that refer.
    pub(super) from: Vec<String>,
    /// The columns that are referred to.
    pub(super) to: Vec<String>,
    /// What a delete does, in SQL's words.
    pub(super) action: String,
}

/// The table whose rows go, as the plan keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RowsData {
    pub(super) table: String,
    /// The columns by which a row is found again: the row number, or the primary key of a table without one.
    pub(super) key: Vec<String>,
    /// What is written anew by an undo, the key's columns among them.
    pub(super) columns: Vec<String>,
    /// Which rows go, in SQL, of the table under the name `t`.
    pub(super) condition: String,
    /// Foreign keys that refer to the table.
    pub(super) referring: Vec<ForeignKey>,
    /// Foreign keys of the table.
    pub(super) parents: Vec<ForeignKey>,
    pub(super) fire_triggers: bool,
}

impl RowsData {
    pub(super) fn sql_name(&self) -> String {
        format!("main.{}", quoted(&self.table))
    }

    /// Columns in SQL, of the table `t`.
    pub(super) fn list(columns: &[String]) -> String {
        columns
            .iter()
            .map(|column| format!("t.{}", quoted(column)))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// `t.key = ?n` for each column of the key, from parameter `first` on.
    pub(super) fn by_key(&self, first: usize) -> String {
        self.key
            .iter()
            .enumerate()
            .map(|(at, column)| format!("t.{} = ?{}", quoted(column), first + at))
            .collect::<Vec<_>>()
            .join(" AND ")
    }

    /// Whether the row of `t` is what parameters from `first` on are: by value and by type, whatever the column's collation.
    pub(super) fn is_same(&self, first: usize) -> String {
        self.columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let (name, at) = (quoted(column), first + at);
                format!("+t.{name} IS ?{at} COLLATE BINARY AND typeof(t.{name}) = typeof(?{at})")
            })
            .collect::<Vec<_>>()
            .join(" AND ")
    }

    /// Whether another row refers to the row of `t` by this key.
    pub(super) fn is_referred_to(&self, key: &ForeignKey) -> String {
        let pairs: Vec<String> = key
            .to
            .iter()
            .zip(&key.from)
            .map(|(to, from)| format!("t.{} = r.{}", quoted(to), quoted(from)))
            .collect();
        let besides = if key.table.eq_ignore_ascii_case(&self.table) {
            let own: Vec<String> = self
                .key
                .iter()
                .map(|column| format!("r.{0} IS t.{0}", quoted(column)))
                .collect();
            format!(" AND NOT ({})", own.join(" AND "))
        } else {
            String::new()
        };
        format!(
            "EXISTS (SELECT 1 FROM main.{} AS r WHERE {}{besides})",
            quoted(&key.table),
            pairs.join(" AND ")
        )
    }

    /// Whether any row refers to the row of `t`; nothing where no table can.
    pub(super) fn is_referred_to_by_any(&self) -> Option<String> {
        let any: Vec<String> = self
            .referring
            .iter()
            .map(|key| self.is_referred_to(key))
            .collect();
        (!any.is_empty()).then(|| format!("({})", any.join(" OR ")))
    }

    /// Rows that are old.
    pub(super) fn count(&self, connection: &Connection) -> rusqlite::Result<u64> {
        let sql = format!(
            "SELECT count(*) FROM {} AS t WHERE {}",
            self.sql_name(),
            self.condition
        );
        connection
            .query_row(&sql, [], |row| row.get::<_, i64>(0))
            .map(i64::unsigned_abs)
    }
}

/// Plans the removal of old rows.
pub(super) fn plan(
    path: &Path,
    connection: &Connection,
    plan: &mut CleanupPlan,
) -> Result<(), EngineError> {
    let CleanupAction::Rows {
        table,
        column,
        referenced,
        fire_triggers,
        ..
    } = plan.what.clone()
    else {
        return Ok(());
    };
    let asked = |error| refused(path, "planning the cleanup of", error);
    let table = find(connection, &table).map_err(asked)??;
    if !is_plain(connection, &table, plan).map_err(asked)? {
        return Ok(());
    }
    let described = described(connection, &table.name).map_err(asked)?;
    let Some(of_time) = described
        .iter()
        .find(|one| one.name.eq_ignore_ascii_case(&column))
    else {
        let names: Vec<&str> = described.iter().map(|one| one.name.as_str()).collect();
        refuse(
            plan,
            format!("{}: there is no column {column:?}", table.name),
            format!("its columns: {}", names.join(", ")),
        );
        return Ok(());
    };
    let Some((key, columns)) = key(&table, &described) else {
        refuse(
            plan,
            format!(
                "{} has columns named rowid, _rowid_ and oid, so that its rows cannot be found again",
                table.name
            ),
            "rename one of them",
        );
        return Ok(());
    };
    let data = RowsData {
        referring: referring(connection, &table.name).map_err(asked)?,
        parents: parents(connection, &table.name).map_err(asked)?,
        condition: condition(&of_time.name, plan.cutoff.unwrap_or(plan.made)),
        key,
        columns,
        table: table.name.clone(),
        fire_triggers,
    };
    depends(connection, &data, plan, referenced).map_err(asked)?;
    let item = counted(connection, &data, &of_time.name).map_err(asked)?;
    if item.rows == 0 && item.note.is_empty() {
        not_a_time(connection, &data, &of_time.name, plan).map_err(asked)?;
    }
    plan.items.push(item);
    plan.can_be_undone = true;
    plan.engine_data = json!(data);
    Ok(())
}

/// A table as the server describes it.
struct Named {
    name: String,
    kind: String,
    without_row_number: bool,
}

fn find(connection: &Connection, text: &str) -> rusqlite::Result<Result<Named, EngineError>> {
    let name = text.strip_prefix("main.").unwrap_or(text);
    let name = name
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .map_or_else(|| name.to_owned(), |inner| inner.replace("\"\"", "\""));
    let found = connection
        .prepare("SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' AND name = ? COLLATE NOCASE")?
        .query_map([&name], |row| {
            Ok(Named {
                name: row.get(0)?,
                kind: row.get(1)?,
                without_row_number: row.get(2)?,
            })
        })?
        .next()
        .transpose()?;
    let tables = || -> rusqlite::Result<Vec<String>> {
        connection
            .prepare("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name LIMIT 10")?
            .query_map([], |row| row.get(0))?
            .collect()
    };
    match found {
        Some(found) => Ok(Ok(found)),
        None => Ok(Err(EngineError::Missing {
            code: "table",
            what: format!("there is no table {name:?}"),
            remedy: format!("tables: {}", tables()?.join(", ")),
        })),
    }
}

fn is_plain(
    connection: &Connection,
    table: &Named,
    plan: &mut CleanupPlan,
) -> rusqlite::Result<bool> {
    if table.kind != "table" || table.name.to_ascii_lowercase().starts_with("sqlite_") {
        refuse(
            plan,
            format!(
                "{} is a {} table, and has no rows of its own",
                table.name, table.kind
            ),
            "name an ordinary table",
        );
    }
    let is_read_only: bool =
        connection.query_row("SELECT * FROM pragma_query_only", [], |row| row.get(0))?;
    if is_read_only || connection.is_readonly("main")? {
        refuse(
            plan,
            "the file may only be read",
            "give the user that runs Fettler the right to write the file and its folder",
        );
    }
    Ok(plan.refusals.is_empty())
}

struct Described {
    name: String,
    of_type: String,
    /// Its place in the primary key, from 1.
    in_key: i64,
    /// 0 for a column that is written, others are computed.
    hidden: i64,
}

fn described(connection: &Connection, table: &str) -> rusqlite::Result<Vec<Described>> {
    connection
        .prepare("SELECT name, type, pk, hidden FROM pragma_table_xinfo(?)")?
        .query_map([table], |row| {
            Ok(Described {
                name: row.get(0)?,
                of_type: row.get(1)?,
                in_key: row.get(2)?,
                hidden: row.get(3)?,
            })
        })?
        .collect()
}

/// By what a row is found again, and what is written of it; nothing where it cannot be found.
fn key(table: &Named, described: &[Described]) -> Option<(Vec<String>, Vec<String>)> {
    let mut columns: Vec<String> = described
        .iter()
        .filter(|one| one.hidden == 0)
        .map(|one| one.name.clone())
        .collect();
    let mut primary: Vec<&Described> = described.iter().filter(|one| one.in_key > 0).collect();
    primary.sort_by_key(|one| one.in_key);
    let is_number = primary.len() == 1 && primary[0].of_type.eq_ignore_ascii_case("integer");
    if table.without_row_number || is_number {
        let key = primary.iter().map(|one| one.name.clone()).collect();
        return Some((key, columns));
    }
    let number = ["rowid", "_rowid_", "oid"].into_iter().find(|alias| {
        !described
            .iter()
            .any(|one| one.name.eq_ignore_ascii_case(alias))
    })?;
    columns.insert(0, number.to_owned());
    Some((vec![number.to_owned()], columns))
}

/// Which rows are old, in SQL.
fn condition(column: &str, cutoff: Timestamp) -> String {
    let micros = cutoff.micros();
    let c = format!("t.{}", quoted(column));
    // A number that is less than a whole one of its unit after the cut-off's is older.
    let up = |unit: i64| micros.div_euclid(unit) + i64::from(micros.rem_euclid(unit) > 0);
    let (seconds, millis) = (up(1_000_000), up(1000));
    let day = micros as f64 / 86_400e6 + 2_440_587.5;
    let number = format!(
        "({c} >= 100000000 AND {c} < 100000000000 AND {c} < {seconds}) \
         OR ({c} >= 100000000000 AND {c} < 100000000000000 AND {c} < {millis}) \
         OR ({c} >= 100000000000000 AND {c} < 100000000000000000 AND {c} < {micros})"
    );
    format!(
        "(CASE typeof({c}) \
         WHEN 'text' THEN {c} GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*' AND julianday({c}) < {day:?} \
         WHEN 'integer' THEN {number} \
         WHEN 'real' THEN ({c} >= 2400000.5 AND {c} < 5373484.5 AND {c} < {day:?}) OR {number} \
         ELSE 0 END)"
    )
}

/// Foreign keys of other tables, and of the table itself, that refer to it.
fn referring(connection: &Connection, table: &str) -> rusqlite::Result<Vec<ForeignKey>> {
    let others: Vec<String> = connection
        .prepare("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table'")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut found = Vec::new();
    for other in others {
        for key in foreign_keys(connection, &other)? {
            if key.table.eq_ignore_ascii_case(table) {
                found.push(ForeignKey {
                    table: other.clone(),
                    ..key
                });
            }
        }
    }
    Ok(found)
}

/// Foreign keys of the table whose other side is there.
fn parents(connection: &Connection, table: &str) -> rusqlite::Result<Vec<ForeignKey>> {
    foreign_keys(connection, table)
}

/// The foreign keys of a table; `table` is that to which each refers.
fn foreign_keys(connection: &Connection, table: &str) -> rusqlite::Result<Vec<ForeignKey>> {
    type Line = (i64, String, String, Option<String>, String);
    let lines: Vec<Line> = connection
        .prepare("SELECT id, \"table\", \"from\", \"to\", on_delete FROM pragma_foreign_key_list(?) ORDER BY id, seq")?
        .query_map([table], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut keys: Vec<(i64, ForeignKey)> = Vec::new();
    for (id, parent, from, to, action) in lines {
        if keys.last().is_none_or(|(last, _)| *last != id) {
            keys.push((
                id,
                ForeignKey {
                    table: parent.clone(),
                    from: Vec::new(),
                    to: Vec::new(),
                    action,
                },
            ));
        }
        let Some((_, key)) = keys.last_mut() else {
            continue;
        };
        // Where no column is named, the primary key is meant, in its order.
        let to = match to {
            Some(to) => Some(to),
            None => {
                let place = key.from.len() + 1;
                described(connection, &parent)?
                    .into_iter()
                    .find(|one| usize::try_from(one.in_key) == Ok(place))
                    .map(|one| one.name)
            }
        };
        key.from.push(from);
        key.to.extend(to);
    }
    Ok(keys
        .into_iter()
        .map(|(_, key)| key)
        .filter(|key| key.from.len() == key.to.len())
        .collect())
}

/// What depends on the rows: foreign keys and triggers.
fn depends(
    connection: &Connection,
    data: &RowsData,
    plan: &mut CleanupPlan,
    referenced: Referenced,
) -> rusqlite::Result<()> {
    for key in &data.referring {
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM {} AS t WHERE {} AND {} LIMIT 10000)",
            data.sql_name(),
            data.condition,
            data.is_referred_to(key)
        );
        let rows: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
        let of = format!("{} ({})", key.table, key.from.join(", "));
        plan.depends.push(format!(
            "the foreign key of {of} refers to {rows} of the rows, on delete {}",
            key.action.to_lowercase()
        ));
        let is_own = key.table.eq_ignore_ascii_case(&data.table);
        if rows > 0 && referenced == Referenced::Refuse && !is_own {
            refuse(
                plan,
                format!("{of} refers to {rows} of the rows"),
                "remove the rows that refer first, or let those that are referred to stay: `--referenced keep`",
            );
        }
    }
    let triggers: Vec<(String, String)> = connection
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE")?
        .query_map([&data.table], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (name, sql) in triggers {
        // What a trigger fires on stands before its table's name.
        let upper = sql.to_ascii_uppercase();
        let head = upper
            .split_once(" ON ")
            .map_or(upper.as_str(), |(head, _)| head);
        if !head.split_whitespace().any(|word| word == "DELETE") {
            continue;
        }
        plan.depends.push(format!("the trigger {name} on delete"));
        if !data.fire_triggers {
            refuse(
                plan,
                format!(
                    "{} has the trigger {name}, which fires on a delete",
                    data.table
                ),
                "let it fire with `--fire-triggers`: what it does is not archived, and an undo does not take it back",
            );
        }
    }
    Ok(())
}

fn counted(
    connection: &Connection,
    data: &RowsData,
    column: &str,
) -> rusqlite::Result<CleanupItem> {
    let lengths: Vec<String> = data
        .columns
        .iter()
        .map(|one| format!("coalesce(octet_length(t.{}), 1)", quoted(one)))
        .collect();
    let sql = format!(
        "SELECT count(*), coalesce(sum({lengths}), 0), CAST(min(t.{column}) AS TEXT), CAST(max(t.{column}) AS TEXT) FROM {table} AS t WHERE {condition}",
        lengths = lengths.join(" + "),
        column = quoted(column),
        table = data.sql_name(),
        condition = data.condition
    );
    connection.query_row(&sql, [], |row| {
        Ok(CleanupItem {
            name: data.table.clone(),
            rows: row.get::<_, i64>(0)?.unsigned_abs(),
            bytes: row.get::<_, i64>(1)?.unsigned_abs(),
            oldest: row.get(2)?,
            newest: row.get(3)?,
            note: String::new(),
        })
    })
}

/// Says so where a column holds values that say no time.
fn not_a_time(
    connection: &Connection,
    data: &RowsData,
    column: &str,
    plan: &mut CleanupPlan,
) -> rusqlite::Result<()> {
    let far = Timestamp::from_micros(4_000_000_000_000_000);
    let sql = format!(
        "SELECT count(*) FROM {} AS t WHERE t.{} IS NOT NULL AND NOT {}",
        data.sql_name(),
        quoted(column),
        condition(column, far)
    );
    let rows: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
    if rows > 0 {
        plan.notes.push(format!(
            "{rows} values of {column} say no time that is understood: ISO 8601, seconds, milliseconds or microseconds since 1970, or a Julian day"
        ));
    }
    Ok(())
}

/// Archives what a plan would remove: some rows at a time, each lot with a count of SQLite's own in the same transaction.
pub(super) async fn archive(
    context: &EngineContext,
    path: PathBuf,
    data: RowsData,
    sink: &dyn StreamSink,
) -> Result<CleanupArchive, EngineError> {
    let mut writer = RecordWriter::new(context, sink, &data.table, 0);
    context.progress.item(&data.table);
    let (mut after, mut counted): (Option<Vec<Value>>, u64) = (None, 0);
    let mut reader = Some({
        let path = path.clone();
        blocking(move || open(&path)).await?
    });
    while let Some(connection) = reader.take() {
        context.check_stop()?;
        let (data, path, last) = (data.clone(), path.clone(), after.take());
        let (connection, chunk) = blocking(move || {
            let chunk = chunk(&connection, &data, last.as_deref())
                .map_err(|error| refused(&path, "archiving rows of", error))?;
            Ok((connection, chunk))
        })
        .await?;
        counted += chunk.counted;
        for (key, content) in &chunk.rows {
            writer.put(key, content).await?;
            context.progress.add((key.len() + content.len()) as u64, 1);
        }
        if chunk.last.is_some() {
            (after, reader) = (chunk.last, Some(connection));
        }
    }
    let facts = writer.finish(Some(counted)).await?;
    let rows = facts.fingerprint.as_ref().map_or(0, |print| print.rows);
    Ok(CleanupArchive {
        objects: vec![facts],
        position: json!({ "at": Timestamp::now() }),
        rows,
    })
}

struct Chunk {
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    counted: u64,
    /// The key of the last row, where more may come.
    last: Option<Vec<Value>>,
}

fn chunk(
    connection: &Connection,
    data: &RowsData,
    after: Option<&[Value]>,
) -> rusqlite::Result<Chunk> {
    let transaction = connection.unchecked_transaction()?;
    let keys = RowsData::list(&data.key);
    let width = data.key.len();
    let places = |first: usize| {
        let places: Vec<String> = (first..first + width).map(|at| format!("?{at}")).collect();
        places.join(", ")
    };
    let beyond = match after {
        Some(_) => format!(" AND ({keys}) > ({})", places(1)),
        None => String::new(),
    };
    let sql = format!(
        "SELECT {keys}, {} FROM {} AS t WHERE {}{beyond} ORDER BY {keys} LIMIT {CHUNK_ROWS}",
        RowsData::list(&data.columns),
        data.sql_name(),
        data.condition
    );
    let begin: Vec<&Value> = after.unwrap_or_default().iter().collect();
    let mut statement = transaction.prepare(&sql)?;
    let mut found = statement.query(rusqlite::params_from_iter(begin.iter()))?;
    let (mut rows, mut last) = (Vec::new(), None);
    while let Some(row) = found.next()? {
        rows.push((
            encoded(row, 0, width)?,
            encoded(row, width, data.columns.len())?,
        ));
        if rows.len() == CHUNK_ROWS {
            let values: rusqlite::Result<Vec<Value>> = (0..width).map(|at| row.get(at)).collect();
            last = Some(values?);
        }
    }
    drop(found);
    drop(statement);
    // By another path than the reading: the count of the rows up to the last one.
    let mut parameters = begin;
    let until = match &last {
        Some(last) => {
            let first = parameters.len() + 1;
            parameters.extend(last.iter());
            format!(" AND ({keys}) <= ({})", places(first))
        }
        None => String::new(),
    };
    let sql = format!(
        "SELECT count(*) FROM {} AS t WHERE {}{beyond}{until}",
        data.sql_name(),
        data.condition
    );
    let counted: i64 =
        transaction.query_row(&sql, rusqlite::params_from_iter(parameters.iter()), |row| {
            row.get(0)
        })?;
    Ok(Chunk {
        rows,
        counted: counted.unsigned_abs(),
        last,
    })
}

/// Writes values of a row: a letter for the storage class, then eight bytes of a number or of a length, then the bytes.
fn encoded(row: &Row<'_>, first: usize, count: usize) -> rusqlite::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for at in first..first + count {
        match row.get_ref(at)? {
            ValueRef::Null => bytes.push(b'n'),
            ValueRef::Integer(number) => {
                bytes.push(b'i');
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            ValueRef::Real(number) => {
                bytes.push(b'r');
                bytes.extend_from_slice(&number.to_bits().to_le_bytes());
            }
            ValueRef::Text(text) => {
                bytes.push(b't');
                bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
                bytes.extend_from_slice(text);
            }
            ValueRef::Blob(blob) => {
                bytes.push(b'b');
                bytes.extend_from_slice(&(blob.len() as u64).to_le_bytes());
                bytes.extend_from_slice(blob);
            }
        }
    }
    Ok(bytes)
}

/// A value of the archive, as a parameter of a statement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stored<'a>(pub(super) ValueRef<'a>);

impl rusqlite::ToSql for Stored<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0))
    }
}

/// Reads what [`encoded`] wrote.
pub(super) fn decoded(mut bytes: &[u8]) -> Result<Vec<Stored<'_>>, EngineError> {
    let malformed = || EngineError::Unusable {
        what: "a row of the archive cannot be read".to_owned(),
        remedy: "run `fettler verify` on it".to_owned(),
    };
    let mut values = Vec::new();
    while let Some((class, rest)) = bytes.split_first() {
        if *class == b'n' {
            values.push(Stored(ValueRef::Null));
            bytes = rest;
            continue;
        }
        let (number, rest) = rest.split_first_chunk::<8>().ok_or_else(malformed)?;
        bytes = rest;
        let mut take = || {
            let length = usize::try_from(u64::from_le_bytes(*number)).map_err(|_| malformed())?;
            let (taken, rest) = bytes.split_at_checked(length).ok_or_else(malformed)?;
            bytes = rest;
            Ok::<_, EngineError>(taken)
        };
        values.push(Stored(match class {
            b'i' => ValueRef::Integer(i64::from_le_bytes(*number)),
            b'r' => ValueRef::Real(f64::from_bits(u64::from_le_bytes(*number))),
            b't' => ValueRef::Text(take()?),
            b'b' => ValueRef::Blob(take()?),
            _ => return Err(malformed()),
        }));
    }
    Ok(values)
}

/// A key for people.
pub(super) fn shown(key: &[u8]) -> String {
    let Ok(values) = decoded(key) else {
        return "?".to_owned();
    };
    let words: Vec<String> = values
        .iter()
        .map(|value| match value.0 {
            ValueRef::Null => "NULL".to_owned(),
            ValueRef::Integer(number) => number.to_string(),
            ValueRef::Real(number) => number.to_string(),
            ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
            ValueRef::Blob(blob) => format!("a blob of {} bytes", blob.len()),
        })
        .collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_old(value: &str, cutoff: &str) -> bool {
        let connection = Connection::open_in_memory().unwrap();
        let cutoff = Timestamp::from_jiff(cutoff.parse().unwrap());
        let sql = format!(
            "SELECT count(*) FROM (SELECT {value} AS at) AS t WHERE {}",
            condition("at", cutoff)
        );
        connection
            .query_row(&sql, [], |row| row.get::<_, i64>(0))
            .unwrap()
            == 1
    }

    #[test]
    fn a_time_is_read_in_each_of_its_forms_and_nothing_else_is_old() {
        let cutoff = "2024-05-31T12:00:00Z";
        for old in [
            "'2024-05-31 11:59:59'",
            "'2024-05-31T11:59:59.5Z'",
            "'2024-05-31'",
            // An hour before the cut-off, elsewhere.
            "'2024-05-31 13:00:00+02:00'",
            "1717156799",
            "1717156799999",
            "1717156799999999",
            "1717156799.5",
            "2460461.9",
        ] {
            assert!(is_old(old, cutoff), "{old}");
        }
        for young in [
            "'2024-05-31 12:00:01'",
            "'2024-05-31 11:00:00-02:00'",
            "1717156800",
            "1717156800000",
            "1717156800000000",
            "2460462.1",
            "NULL",
            "'2024'",
            "'soon'",
            "''",
            "17",
            "2460461",
            "x'00'",
            "-1717156799",
        ] {
            assert!(!is_old(young, cutoff), "{young}");
        }
    }

    #[test]
    fn values_are_read_as_they_were_written() {
        let connection = Connection::open_in_memory().unwrap();
        let bytes = connection
            .query_row(
                "SELECT NULL, -5, 0.5, 'é' || char(0) || 'x', x'0001', ''",
                [],
                |row| encoded(row, 0, 6),
            )
            .unwrap();
        let values: Vec<ValueRef<'_>> = decoded(&bytes)
            .unwrap()
            .iter()
            .map(|value| value.0)
            .collect();
        assert_eq!(
            values,
            [
                ValueRef::Null,
                ValueRef::Integer(-5),
                ValueRef::Real(0.5),
                ValueRef::Text("é\0x".as_bytes()),
                ValueRef::Blob(&[0, 1]),
                ValueRef::Text(b""),
            ]
        );
        assert!(decoded(&bytes[..bytes.len() - 1]).is_err());
        assert!(decoded(b"q00000000").is_err());
    }
}
