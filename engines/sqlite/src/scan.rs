//! Rows: fingerprints, counts, and what else a proof compares.
//!
//! The work is cut into tasks (a range of a table's rows, a count, a check of the file) that the snapshot's
//! connections take from one queue. A row's hash is the BLAKE3 hash, under the tenant's key, of its row number
//! (where the table has one) and its stored values in the order of the columns, each with a tag for its storage
//! class and its length: NULL is not the empty text, 1 is not 1.0, 0.0 is not -0.0.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Mutex, PoisonError},
};

use fettler_engine::{EngineError, LongRow, ProgressMeter, RowHasher};
use fettler_model::{Fingerprint, ObjectFacts, ObjectKind};
use rusqlite::{Connection, ErrorCode, Row, types::ValueRef};
use tokio_util::sync::CancellationToken;

use crate::{
    check,
    connect::{quoted, refused},
    snapshot::Header,
};

/// How rows are hashed; part of the facts, so that a later way is never compared with this one.
const FORMAT: &str = "sqlite-values-1";

/// Tables whose row numbers span more than this are read in [`RANGES`] parts.
const SPLIT_ABOVE: u64 = 50_000;

/// Parts of a large table: enough that connections end at about the same time.
const RANGES: u64 = 16;

/// Values from this size on are hashed where they lie instead of being gathered with their row.
const LARGE_VALUE_BYTES: usize = 16 << 10;

/// After so many rows a scan looks whether it is to stop, and tells its progress.
const ROWS_BETWEEN_LOOKS: u64 = 4096;

/// Rows with foreign keys that lead nowhere are counted up to here.
pub(crate) const ORPHANS: u64 = 1000;

/// At most so many complaints of SQLite's own check are kept.
const COMPLAINTS: usize = 20;

/// Which of SQLite's own checks of the file is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// `quick_check`: pages, b-trees, records.
    Quick,
    /// `integrity_check`: also every index against its table.
    Full,
}

/// What to scan with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scan<'a> {
    /// The file, for messages.
    pub(crate) path: &'a Path,
    /// The key of the row hashes.
    pub(crate) key: &'a [u8; 32],
    /// Where rows are counted.
    pub(crate) progress: &'a ProgressMeter,
    /// Cancelled when the work is to stop.
    pub(crate) halt: &'a CancellationToken,
    /// Whether and how the file is checked.
    pub(crate) check: Option<Check>,
    /// Counts that were taken elsewhere and need not be taken here.
    pub(crate) counted: Option<&'a BTreeMap<String, u64>>,
}

/// What was found in a database.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Tables, counters and the schema.
    pub(crate) objects: Vec<ObjectFacts>,
    /// What SQLite's own check said: nothing when all is well or when it was not asked.
    pub(crate) complaints: Vec<String>,
    /// Why the file could not be checked, such as a function that only its application has.
    pub(crate) unchecked: Option<String>,
    /// Rows whose foreign keys lead nowhere, counted up to [`ORPHANS`].
    pub(crate) orphans: u64,
}

/// How one table is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// Its name.
    pub(crate) name: String,
    /// The columns that are stored.
    pub(crate) columns: Vec<String>,
    /// What the row number is called, where there is one that no column hides.
    pub(crate) row_number: Option<&'static str>,
}

#[derive(Debug)]
enum Task {
    Rows {
        table: usize,
        from: Option<i64>,
        to: Option<i64>,
    },
    Count {
        table: usize,
    },
    Check(Check),
    References,
}

/// Scans everything that the snapshot holds. The connections stay open.
pub(crate) fn scan(scan: &Scan<'_>, connections: &mut [Connection]) -> Result<Found, EngineError> {
    let asked = |error| refused(scan.path, "reading", error);
    let tables = tables(&connections[0]).map_err(asked)?;
    let tasks = plan(scan, &connections[0], &tables).map_err(asked)?;
    run(scan, connections, &tables, tasks)
}

/// Does the tasks, on all connections at once.
fn run(
    scan: &Scan<'_>,
    connections: &mut [Connection],
    tables: &[Table],
    tasks: VecDeque<Task>,
) -> Result<Found, EngineError> {
    let asked = |error| refused(scan.path, "reading", error);
    let tasks = Mutex::new(tasks);
    let sums = Mutex::new(Sums {
        tables: vec![TableSum::default(); tables.len()],
        complaints: Vec::new(),
        unchecked: None,
        orphans: 0,
    });
    std::thread::scope(|scope| {
        let workers: Vec<_> = connections
            .iter_mut()
            .map(|connection| {
                let (tasks, sums) = (&tasks, &sums);
                scope.spawn(move || work(scan, connection, tables, tasks, sums))
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
    })?;
    let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut objects = vec![schema(scan, &connections[0]).map_err(asked)?];
    objects.extend(sequences(&connections[0]).map_err(asked)?);
    for (table, sum) in tables.iter().zip(&sums.tables) {
        let counted = scan
            .counted
            .and_then(|counted| counted.get(&table.name).copied());
        objects.push(ObjectFacts {
            kind: ObjectKind::Table,
            name: table.name.clone(),
            fingerprint: Some(sum.fingerprint),
            independent_rows: counted.or(sum.counted),
            bytes: sum.bytes,
            value: None,
            format: Some(FORMAT.to_owned()),
        });
    }
    Ok(Found {
        objects,
        complaints: sums.complaints,
        unchecked: sums.unchecked,
        orphans: sums.orphans,
    })
}

#[derive(Debug)]
struct Sums {
    tables: Vec<TableSum>,
    complaints: Vec<String>,
    unchecked: Option<String>,
    orphans: u64,
}

#[derive(Clone, Debug, Default)]
struct TableSum {
    fingerprint: Fingerprint,
    bytes: u64,
    counted: Option<u64>,
}

/// Large things first, so that no connection is left with one at the end.
fn plan(
    scan: &Scan<'_>,
    connection: &Connection,
    tables: &[Table],
) -> rusqlite::Result<VecDeque<Task>> {
    let mut tasks: VecDeque<Task> = scan.check.map(Task::Check).into_iter().collect();
    let (mut large, mut small) = (Vec::new(), Vec::new());
    for (at, table) in tables.iter().enumerate() {
        let cuts = cuts(connection, table)?;
        let parts = if cuts.is_empty() {
            &mut small
        } else {
            &mut large
        };
        let mut from = None;
        for cut in cuts.into_iter().map(Some).chain([None]) {
            parts.push(Task::Rows {
                table: at,
                from,
                to: cut,
            });
            from = cut;
        }
    }
    tasks.extend(large);
    tasks.extend(small);
    for (at, table) in tables.iter().enumerate() {
        if !scan
            .counted
            .is_some_and(|counted| counted.contains_key(&table.name))
        {
            tasks.push_back(Task::Count { table: at });
        }
    }
    // Of use to whoever owns the source; a copy has the same ones.
    if scan.check == Some(Check::Quick) {
        tasks.push_back(Task::References);
    }
    Ok(tasks)
}

/// The row numbers at which a large table is cut; each part begins after one and ends with the next.
fn cuts(connection: &Connection, table: &Table) -> rusqlite::Result<Vec<i64>> {
    let Some(row_number) = table.row_number else {
        return Ok(Vec::new());
    };
    let name = quoted(&table.name);
    let ends: (Option<i64>, Option<i64>) = connection.query_row(
        &format!(
            "SELECT (SELECT min({row_number}) FROM {name}), (SELECT max({row_number}) FROM {name})"
        ),
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let (Some(low), Some(high)) = ends else {
        return Ok(Vec::new());
    };
    Ok(cuts_between(low, high))
}

fn cuts_between(low: i64, high: i64) -> Vec<i64> {
    let span = high.abs_diff(low);
    if span < SPLIT_ABOVE {
        return Vec::new();
    }
    let step = span / RANGES;
    (1..RANGES)
        .map(|part| low.wrapping_add_unsigned(step * part))
        .collect()
}

fn work(
    scan: &Scan<'_>,
    connection: &mut Connection,
    tables: &[Table],
    tasks: &Mutex<VecDeque<Task>>,
    sums: &Mutex<Sums>,
) -> Result<(), EngineError> {
    let asked = |error| refused(scan.path, "reading", error);
    loop {
        check(scan.halt)?;
        let next = tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        let Some(task) = next else { return Ok(()) };
        match task {
            Task::Rows { table, from, to } => {
                let (fingerprint, bytes) =
                    fingerprint_rows(scan, connection, &tables[table], from, to)?;
                let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                sums.tables[table].fingerprint.merge(&fingerprint);
                sums.tables[table].bytes += bytes;
            }
            Task::Count { table } => {
                let counted = count(connection, &tables[table].name).map_err(asked)?;
                let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                sums.tables[table].counted = Some(counted);
            }
            Task::References => {
                let orphans = orphans(connection);
                let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                sums.orphans = match orphans {
                    Ok(orphans) => orphans,
                    // A reference to a table or columns that cannot be referred to is the schema's affair.
                    Err(error) if error.sqlite_error_code() == Some(ErrorCode::Unknown) => {
                        tracing::info!(%error, "foreign keys could not be checked");
                        0
                    }
                    Err(error) => return Err(asked(error)),
                };
            }
            Task::Check(how) => {
                let checked = check_file(connection, how);
                let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                match checked {
                    Ok(complaints) => sums.complaints = complaints,
                    Err(rusqlite::Error::SqliteFailure(failure, what))
                        if failure.code == ErrorCode::Unknown =>
                    {
                        sums.unchecked = Some(what.unwrap_or_else(|| failure.to_string()));
                    }
                    Err(error) => return Err(asked(error)),
                }
            }
        }
    }
}

/// The fingerprint of the rows after `from`, up to and with `to`, and the bytes of their values.
fn fingerprint_rows(
    scan: &Scan<'_>,
    connection: &Connection,
    table: &Table,
    from: Option<i64>,
    to: Option<i64>,
) -> Result<(Fingerprint, u64), EngineError> {
    let asked = |error| {
        refused(
            scan.path,
            &format!("reading table {} of", table.name),
            error,
        )
    };
    scan.progress.item(&table.name);
    let sql = rows_sql(table, from.is_some(), to.is_some());
    let mut statement = connection.prepare(&sql).map_err(asked)?;
    let values = statement.column_count();
    let bounds: Vec<i64> = from.into_iter().chain(to).collect();
    let mut rows = statement
        .query(rusqlite::params_from_iter(bounds))
        .map_err(asked)?;
    let hasher = RowHasher::new(scan.key);
    let mut form = RowForm::new();
    let mut found = Fingerprint::empty();
    let mut bytes = 0;
    let mut told = 0;
    while let Some(row) = rows.next().map_err(asked)? {
        bytes += form.add(row, values, &hasher, &mut found).map_err(asked)?;
        if found.rows - told == ROWS_BETWEEN_LOOKS {
            scan.progress.add(0, ROWS_BETWEEN_LOOKS);
            told = found.rows;
            check(scan.halt)?;
        }
    }
    scan.progress.add(0, found.rows - told);
    Ok((found, bytes))
}

/// The table's own b-tree is read, not an index that happens to hold all columns.
fn rows_sql(table: &Table, has_from: bool, has_to: bool) -> String {
    let columns: Vec<String> = table
        .row_number
        .map(str::to_owned)
        .into_iter()
        .chain(table.columns.iter().map(|column| quoted(column)))
        .collect();
    let mut sql = format!(
        "SELECT {} FROM {} NOT INDEXED",
        columns.join(", "),
        quoted(&table.name)
    );
    if let Some(row_number) = table.row_number {
        let bounds: Vec<String> = [(has_from, ">"), (has_to, "<=")]
            .iter()
            .filter(|(wanted, _)| *wanted)
            .map(|(_, sign)| format!("{row_number} {sign} ?"))
            .collect();
        if !bounds.is_empty() {
            sql.push_str(" WHERE ");
            sql.push_str(&bounds.join(" AND "));
        }
    }
    sql
}

/// Writes rows as the bytes that are hashed, into a buffer that is used again.
#[derive(Debug)]
struct RowForm {
    /// What of the row is still to be hashed.
    gathered: Vec<u8>,
}

impl RowForm {
    fn new() -> Self {
        Self {
            gathered: Vec::with_capacity(2 * LARGE_VALUE_BYTES),
        }
    }

    /// Adds a row to a fingerprint, and says how many bytes its values have.
    fn add(
        &mut self,
        row: &Row<'_>,
        values: usize,
        hasher: &RowHasher,
        to: &mut Fingerprint,
    ) -> rusqlite::Result<u64> {
        self.gathered.clear();
        let mut long: Option<LongRow> = None;
        let mut bytes = 0;
        for at in 0..values {
            let (tag, content) = match row.get_ref(at)? {
                ValueRef::Null => {
                    self.gathered.push(b'n');
                    continue;
                }
                ValueRef::Integer(number) => {
                    self.gathered.push(b'i');
                    self.gathered.extend_from_slice(&number.to_le_bytes());
                    bytes += 8;
                    continue;
                }
                ValueRef::Real(number) => {
                    self.gathered.push(b'r');
                    self.gathered
                        .extend_from_slice(&number.to_bits().to_le_bytes());
                    bytes += 8;
                    continue;
                }
                ValueRef::Text(content) => (b't', content),
                ValueRef::Blob(content) => (b'b', content),
            };
            bytes += content.len() as u64;
            self.gathered.push(tag);
            self.gathered
                .extend_from_slice(&(content.len() as u64).to_le_bytes());
            if content.len() < LARGE_VALUE_BYTES {
                self.gathered.extend_from_slice(content);
            } else {
                let long = long.get_or_insert_with(|| hasher.begin());
                long.update(&self.gathered);
                self.gathered.clear();
                long.update(content);
            }
        }
        match long {
            Some(mut long) => {
                long.update(&self.gathered);
                long.add(to);
            }
            None => hasher.add(&self.gathered, to),
        }
        Ok(bytes)
    }
}

/// The names of all tables that have pages of their own: also the shadow tables of virtual ones, but
/// not those themselves.
pub(crate) fn stored_tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage <> 0 ORDER BY name",
        )?
        .query_map([], |row| row.get(0))?
        .collect()
}

/// How each table is read.
pub(crate) fn tables(connection: &Connection) -> rusqlite::Result<Vec<Table>> {
    stored_tables(connection)?
        .into_iter()
        .map(|name| table(connection, name))
        .collect()
}

/// Columns that are computed when they are read are left out: they follow from the others, perhaps by a
/// function that only the application has.
fn table(connection: &Connection, name: String) -> rusqlite::Result<Table> {
    let all: Vec<(String, i64)> = connection
        .prepare("SELECT name, hidden FROM pragma_table_xinfo(?)")?
        .query_map([&name], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let without_row_number: bool = connection.query_row(
        "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?",
        [&name],
        |row| row.get(0),
    )?;
    let row_number = ["rowid", "_rowid_", "oid"].into_iter().find(|alias| {
        !without_row_number
            && !all
                .iter()
                .any(|(column, _)| column.eq_ignore_ascii_case(alias))
    });
    Ok(Table {
        name,
        columns: all
            .into_iter()
            .filter(|(_, hidden)| *hidden != 2)
            .map(|(column, _)| column)
            .collect(),
        row_number,
    })
}

/// Counts a table's rows by a walk over its smallest b-tree.
fn count(connection: &Connection, table: &str) -> rusqlite::Result<u64> {
    let ask = |hint: &str| {
        connection.query_row(
            &format!("SELECT count(*) FROM {}{hint}", quoted(table)),
            [],
            |row| row.get::<_, i64>(0),
        )
    };
    // An index in an order that only the application knows cannot be opened; the table can.
    let counted = match ask("") {
        Err(rusqlite::Error::SqliteFailure(failure, _)) if failure.code == ErrorCode::Unknown => {
            ask(" NOT INDEXED")
        }
        other => other,
    }?;
    Ok(counted.unsigned_abs())
}

/// Counts the rows of all tables.
pub(crate) fn count_all(
    connection: &Connection,
    path: &Path,
    halt: &CancellationToken,
) -> Result<BTreeMap<String, u64>, EngineError> {
    let asked = |error| refused(path, "counting the rows of", error);
    let mut counts = BTreeMap::new();
    for table in stored_tables(connection).map_err(asked)? {
        check(halt)?;
        let counted = count(connection, &table).map_err(asked)?;
        counts.insert(table, counted);
    }
    Ok(counts)
}

/// Runs SQLite's own check and returns its complaints.
pub(crate) fn check_file(connection: &Connection, how: Check) -> rusqlite::Result<Vec<String>> {
    let pragma = match how {
        Check::Quick => "quick_check",
        Check::Full => "integrity_check",
    };
    let said = connection
        .prepare(&format!("PRAGMA {pragma}({COMPLAINTS})"))
        .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect());
    let said: Vec<String> = match said {
        // The damage is where even the check cannot begin.
        Err(error)
            if matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            ) =>
        {
            return Ok(vec![error.to_string()]);
        }
        other => other?,
    };
    Ok(if said == ["ok"] { Vec::new() } else { said })
}

/// Counts rows whose foreign keys lead nowhere.
fn orphans(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row(
        &format!("SELECT count(*) FROM (SELECT 1 FROM pragma_foreign_key_check LIMIT {ORPHANS})"),
        [],
        |row| row.get::<_, i64>(0).map(i64::unsigned_abs),
    )
}

/// The definitions and the file's own settings, as a digest under the tenant's key.
fn schema(scan: &Scan<'_>, connection: &Connection) -> rusqlite::Result<ObjectFacts> {
    let header = Header::read(connection)?;
    let hasher = RowHasher::new(scan.key);
    let mut form = RowForm::new();
    let mut digest = blake3::Hasher::new_keyed(scan.key);
    let mut statement = connection.prepare(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name, tbl_name, sql",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        // The order counts here: one row after the other.
        let mut one = Fingerprint::empty();
        form.add(row, 4, &hasher, &mut one)?;
        digest.update(one.to_string().as_bytes());
    }
    let settings = format!(
        "page_size={} encoding={} application_id={} user_version={} auto_vacuum={}",
        header.page_bytes,
        header.encoding,
        header.application_id,
        header.user_version,
        header.auto_vacuum
    );
    digest.update(settings.as_bytes());
    Ok(ObjectFacts {
        kind: ObjectKind::Schema,
        name: "schema".to_owned(),
        fingerprint: None,
        independent_rows: None,
        bytes: 0,
        value: Some(digest.finalize().to_hex().to_string()),
        format: None,
    })
}

/// The counters of AUTOINCREMENT.
fn sequences(connection: &Connection) -> rusqlite::Result<Vec<ObjectFacts>> {
    let there: bool = connection.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE name = 'sqlite_sequence'",
        [],
        |row| row.get(0),
    )?;
    if !there {
        return Ok(Vec::new());
    }
    connection
        .prepare(
            "SELECT CAST(name AS TEXT), group_concat(seq) FROM sqlite_sequence \
             WHERE name IS NOT NULL GROUP BY name ORDER BY name",
        )?
        .query_map([], |row| {
            Ok(ObjectFacts {
                kind: ObjectKind::Sequence,
                name: row.get(0)?,
                fingerprint: None,
                independent_rows: None,
                bytes: 0,
                value: Some(row.get::<_, Option<String>>(1)?.unwrap_or_default()),
                format: None,
            })
        })?
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scanned(
        connection: Connection,
        break_reader: impl Fn(&mut VecDeque<Task>),
    ) -> (Vec<ObjectFacts>, Connection) {
        let mut connections = [connection];
        let scan = Scan {
            path: Path::new("test"),
            key: &[1; 32],
            progress: &ProgressMeter::default(),
            halt: &CancellationToken::new(),
            check: Some(Check::Quick),
            counted: None,
        };
        let tables = tables(&connections[0]).unwrap();
        let mut tasks = plan(&scan, &connections[0], &tables).unwrap();
        break_reader(&mut tasks);
        let found = run(&scan, &mut connections, &tables, tasks).unwrap();
        assert_eq!(found.complaints, Vec::<String>::new());
        let [connection] = connections;
        (found.objects, connection)
    }

    fn database(sql: &str) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(sql).unwrap();
        connection
    }

    fn table_facts(objects: &[ObjectFacts]) -> (u64, u64, Fingerprint) {
        let table = objects
            .iter()
            .find(|object| object.kind == ObjectKind::Table)
            .unwrap();
        let read = table.fingerprint.unwrap();
        (read.rows, table.independent_rows.unwrap(), read)
    }

    const LARGE: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, v);
        WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
        INSERT INTO t SELECT i * 37 - 70000, 'row ' || i FROM n;";

    #[test]
    fn a_table_that_is_read_in_parts_is_read_wholly() {
        let (objects, _) = scanned(database(LARGE), |tasks| {
            assert!(tasks.len() > RANGES as usize, "it is read in parts");
        });
        let (read, counted, parts) = table_facts(&objects);
        assert_eq!((read, counted), (4000, 4000));
        let (objects, _) = scanned(database(LARGE), |tasks| {
            tasks.retain(|task| !matches!(task, Task::Rows { .. }));
            tasks.push_back(Task::Rows {
                table: 0,
                from: None,
                to: None,
            });
        });
        assert_eq!(table_facts(&objects).2, parts);
    }

    #[test]
    fn rule_30_a_reader_that_skips_a_range_is_caught_by_the_count() {
        let (objects, _) = scanned(database(LARGE), |tasks| {
            tasks.remove(5);
        });
        let (read, counted, _) = table_facts(&objects);
        assert!(read < counted);
    }

    #[test]
    fn rule_30_a_reader_that_doubles_a_range_and_loses_another_is_caught_by_the_fingerprint() {
        let (objects, connection) = scanned(database(LARGE), |tasks| {
            let doubled = match &tasks[4] {
                Task::Rows { table, from, to } => Task::Rows {
                    table: *table,
                    from: *from,
                    to: *to,
                },
                other => panic!("{other:?}"),
            };
            tasks[5] = doubled;
        });
        let (_, _, broken) = table_facts(&objects);
        let (objects, _) = scanned(connection, |_| {});
        assert_ne!(table_facts(&objects).2, broken);
    }

    #[test]
    fn values_that_sqlite_tells_apart_have_other_fingerprints() {
        let values = [
            "NULL",
            "''",
            "x''",
            "0",
            "0.0",
            "-0.0",
            "'0'",
            "x'30'",
            "1",
            "1.0",
            "'a'",
            "'A'",
            "'a' || char(0)",
            "9e999",
            "-9e999",
            "zeroblob(16384)",
            "zeroblob(16385)",
        ];
        let mut seen: Vec<Fingerprint> = values
            .iter()
            .map(|value| {
                let sql = format!("CREATE TABLE t (v); INSERT INTO t VALUES ({value})");
                table_facts(&scanned(database(&sql), |_| {}).0).2
            })
            .collect();
        seen.sort_by_key(ToString::to_string);
        seen.dedup();
        // SQLite keeps -0.0 as 0.0.
        assert!(seen.len() >= values.len() - 1);
    }

    #[test]
    fn values_cannot_move_between_columns_or_rows_unseen() {
        let of = |rows: &str| {
            let sql = format!("CREATE TABLE t (a, b); INSERT INTO t VALUES {rows}");
            table_facts(&scanned(database(&sql), |_| {}).0).2
        };
        assert_ne!(of("('ab', 'c')"), of("('a', 'bc')"));
        assert_ne!(of("(1, NULL)"), of("(NULL, 1)"));
        assert_ne!(of("(1, 2), (3, 4)"), of("(3, 4), (1, 2)"));
    }

    proptest! {
        #[test]
        fn cuts_rise_and_lie_inside(a in any::<i64>(), b in any::<i64>()) {
            let (low, high) = (a.min(b), a.max(b));
            let cuts = cuts_between(low, high);
            prop_assert!(cuts.is_sorted_by(|one, next| one < next));
            prop_assert!(cuts.iter().all(|cut| (low..high).contains(cut)));
        }
    }
}
