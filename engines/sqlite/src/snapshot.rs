//! One moment of a live database, seen by several connections.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fettler_engine::{EngineError, ProgressMeter, folder_of};
use fettler_model::Warning;
use rusqlite::{Connection, types::ValueRef};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    check,
    connect::{open_immutable, open_own, open_shared, quoted, refused},
    pages::read_pages,
    place::{remove_database_files, remove_side_files, require_space},
    scan,
    tables::matches,
};

/// How long the write lock is waited for when several connections are to begin at once; after that one
/// connection does everything, which only is slower.
const WRITE_LOCK_WAIT: Duration = Duration::from_secs(3);

/// What a database says of itself as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Pages in the file.
    pub(crate) pages: u64,
    /// Bytes a page; zero pages have one too.
    pub(crate) page_bytes: u32,
    /// How text is encoded.
    pub(crate) encoding: String,
    /// The application's number.
    pub(crate) application_id: i64,
    /// The application's version of its schema.
    pub(crate) user_version: i64,
    /// SQLite's own count of changes of the schema.
    pub(crate) schema_version: i64,
    /// Whether and how the file shrinks by itself.
    pub(crate) auto_vacuum: i64,
    /// Whether the file is in WAL mode.
    pub(crate) wal: bool,
}

impl Header {
    /// Asks a connection; the answers are of one moment inside a transaction.
    pub(crate) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get(0));
        let text =
            |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, String>(0));
        let pages: i64 = number("page_count")?;
        let page_bytes: i64 = number("page_size")?;
        Ok(Self {
            pages: pages.unsigned_abs(),
            page_bytes: u32::try_from(page_bytes).expect("SQLite's pages have at most 65536 bytes"),
            encoding: text("encoding")?,
            application_id: number("application_id")?,
            user_version: number("user_version")?,
            schema_version: number("schema_version")?,
            auto_vacuum: number("auto_vacuum")?,
            wal: text("journal_mode")? == "wal",
        })
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.pages * u64::from(self.page_bytes)
    }
}

/// Connections that see one commit. Every one has an open read transaction.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// At least one.
    pub(crate) connections: Vec<Connection>,
    /// What the database says of itself.
    pub(crate) header: Header,
    /// Rows of each table as the source itself counted them, where the connections read a copy.
    pub(crate) counted: Option<BTreeMap<String, u64>>,
    /// What a person should know of how it was taken.
    pub(crate) warnings: Vec<Warning>,
    /// The copy that the connections read; removed after they are closed.
    _copy: Option<ScratchFile>,
}

/// A database file of our own, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct ScratchFile(pub(crate) PathBuf);

impl Drop for ScratchFile {
    fn drop(&mut self) {
        if let Err(error) = remove_database_files(&self.0) {
            // The attempt's scratch folder goes as a whole later.
            tracing::warn!(%error, "a temporary file was left in the scratch folder");
        }
    }
}

/// What a snapshot for a backup takes.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// The database.
    pub(crate) path: &'a Path,
    /// Where a copy may lie.
    pub(crate) copy: PathBuf,
    /// How many connections are wanted.
    pub(crate) connections: usize,
    /// Tables whose rows are left out.
    pub(crate) exclude: &'a [String],
    /// Where copied bytes are counted.
    pub(crate) progress: &'a ProgressMeter,
    /// Cancelled when the work is to stop.
    pub(crate) halt: &'a CancellationToken,
}

impl Snapshot {
    /// Takes a snapshot for a backup, without keeping writers out longer than must be.
    pub(crate) fn for_backup(request: &Request<'_>) -> Result<Self, EngineError> {
        let path = request.path;
        let first = open_shared(path)?;
        require_page_reader(&first)?;
        begin_read(&first).map_err(|error| refused(path, "reading", error))?;
        let header = Header::read(&first).map_err(|error| refused(path, "reading", error))?;
        if header.wal && request.exclude.is_empty() {
            drop(first);
            return Self::together(path, request.connections);
        }
        Self::through_copy(request, first, &header)
    }

    /// Begins read transactions that all see the same commit: nobody can commit while one connection
    /// holds the write lock, which it gives back at once.
    pub(crate) fn together(path: &Path, wanted: usize) -> Result<Self, EngineError> {
        let asked = |error| refused(path, "reading", error);
        let mut connections = (0..wanted.max(1))
            .map(|_| open_shared(path))
            .collect::<Result<Vec<_>, _>>()?;
        if connections.len() > 1 {
            let lock = open_shared(path)?;
            lock.busy_timeout(WRITE_LOCK_WAIT).map_err(asked)?;
            match lock.execute_batch("BEGIN IMMEDIATE") {
                Ok(()) => {
                    connections.iter().try_for_each(begin_read).map_err(asked)?;
                    lock.execute_batch("ROLLBACK").map_err(asked)?;
                }
                Err(error) => {
                    tracing::info!(%error, "one connection reads everything, since the write lock was not to be had");
                    connections.truncate(1);
                }
            }
        }
        if let [only] = connections.as_slice() {
            begin_read(only).map_err(asked)?;
        }
        let header = Header::read(&connections[0]).map_err(asked)?;
        for other in &connections[1..] {
            if Header::read(other).map_err(asked)? != header {
                return Err(EngineError::Database {
                    what: format!(
                        "{} was changed by something that does not keep to SQLite's locks",
                        path.display()
                    ),
                    transient: true,
                });
            }
        }
        Ok(Self {
            connections,
            header,
            counted: None,
            warnings: Vec::new(),
            _copy: None,
        })
    }

    /// Copies the pages under the read transaction of `first`, and counts the rows under it too; everything
    /// else reads the copy.
    fn through_copy(
        request: &Request<'_>,
        first: Connection,
        header: &Header,
    ) -> Result<Self, EngineError> {
        let path = request.path;
        let began = Instant::now();
        require_space(&folder_of(&request.copy), header.bytes())?;
        let copy = ScratchFile(request.copy.clone());
        request
            .progress
            .begin("copying under a read lock", header.bytes(), 0);
        let writing =
            |error| EngineError::local(format!("writing {}", request.copy.display()), error);
        let mut file = File::create(&copy.0).map_err(writing)?;
        read_pages(&first, path, header, request.halt, &mut |bytes| {
            file.write_all(&bytes).map_err(writing)?;
            request.progress.add(bytes.len() as u64, 0);
            Ok(())
        })?;
        drop(file);
        let mut counted = scan::count_all(&first, path, request.halt)?;
        drop(first);
        let held = began.elapsed();

        let mut warnings = Vec::new();
        if !header.wal {
            warnings.push(Warning {
                code: "sqlite.read_lock".to_owned(),
                message: format!(
                    "writers had to wait {:.1} s while the file was copied, since it is not in WAL mode; `PRAGMA journal_mode=WAL` lets them go on",
                    held.as_secs_f64()
                ),
            });
        }
        if !request.exclude.is_empty() {
            let emptied = leave_out(&copy.0, request.exclude)?;
            for table in &emptied {
                counted.insert(table.clone(), 0);
            }
            warnings.push(Warning {
                code: "sqlite.excluded".to_owned(),
                message: if emptied.is_empty() {
                    "no table matches what was to be excluded".to_owned()
                } else {
                    format!("left out the rows of {}", emptied.join(", "))
                },
            });
        }
        check(request.halt)?;
        let connections = (0..request.connections.max(1))
            .map(|_| open_immutable(&copy.0))
            .collect::<Result<Vec<_>, _>>()?;
        let asked = |error| refused(&copy.0, "reading", error);
        connections.iter().try_for_each(begin_read).map_err(asked)?;
        let header = Header {
            // Without a WAL beside it SQLite calls an immutable file by the mode of its header.
            wal: header.wal,
            ..Header::read(&connections[0]).map_err(asked)?
        };
        Ok(Self {
            connections,
            header,
            counted: Some(counted),
            warnings,
            _copy: Some(copy),
        })
    }
}

/// Begins a read transaction and looks at the file, so that what the connection sees is fixed.
fn begin_read(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("PRAGMA query_only = 1; BEGIN")?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
}

/// An error where SQLite was built without `sqlite_dbpage`.
pub(crate) fn require_page_reader(connection: &Connection) -> Result<(), EngineError> {
    let built_in = connection
        .query_row(
            "SELECT count(*) FROM pragma_compile_options WHERE compile_options LIKE 'ENABLE_DBPAGE_VTAB%'",
            [],
            |row| Ok(matches!(row.get_ref(0)?, ValueRef::Integer(1..))),
        )
        .map_err(|error| refused(Path::new("SQLite"), "asking", error))?;
    if built_in {
        return Ok(());
    }
    Err(EngineError::Missing {
        code: "sqlite_dbpage",
        what: "this program was built with a SQLite that cannot read pages (`sqlite_dbpage`)"
            .to_owned(),
        remedy: "build it inside its own repository, whose `.cargo/config.toml` sets `LIBSQLITE3_FLAGS=-DSQLITE_ENABLE_DBPAGE_VTAB=1`".to_owned(),
    })
}

/// Takes rows out of a copy, so that their bytes are gone from it, and says from which tables.
fn leave_out(copy: &Path, exclude: &[String]) -> Result<Vec<String>, EngineError> {
    let asked = |error| refused(copy, "leaving rows out of", error);
    let connection = open_own(copy)?;
    connection
        .execute_batch("PRAGMA synchronous = OFF")
        .map_err(asked)?;
    let emptied: Vec<String> = scan::stored_tables(&connection)
        .map_err(asked)?
        .into_iter()
        .filter(|table| matches(exclude, table))
        .collect();
    for table in &emptied {
        connection
            .execute_batch(&format!("DELETE FROM {}", quoted(table)))
            .map_err(asked)?;
    }
    if !emptied.is_empty() {
        connection.execute_batch("VACUUM").map_err(asked)?;
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(asked)?;
    }
    drop(connection);
    remove_side_files(copy)?;
    Ok(emptied)
}
