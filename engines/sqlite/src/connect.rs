//! Opening SQLite files: with which settings, and what SQLite's refusals mean for a reader.

use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use fettler_engine::EngineError;
use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};

/// How long a connection waits for a lock that another process holds before the database counts as
/// busy.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// When a busy database is to be looked at again.
const BUSY_RETRY: Duration = Duration::from_secs(15);

/// Opens an existing database that others may be using.
///
/// SQLite wants to write even for a reader (the shared memory of WAL mode, a rollback after a crash), so that
/// the file is opened for writing where that is allowed.
pub(crate) fn open_shared(path: &Path) -> Result<Connection, EngineError> {
    look_at_file(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .map_err(|error| refused(path, "opening", error))?;
    configure(&connection).map_err(|error| refused(path, "opening", error))?;
    Ok(connection)
}

/// Opens a file of our own that nobody writes: without locks, and without the files that SQLite puts beside
/// a database in WAL mode.
pub(crate) fn open_immutable(path: &Path) -> Result<Connection, EngineError> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte));
            }
            other => write!(uri, "%{other:02x}").expect("writing to a string does not fail"),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags(uri, flags).map_err(|error| refused(path, "opening", error))?;
    configure(&connection).map_err(|error| refused(path, "opening", error))?;
    Ok(connection)
}

/// Opens a file of our own for writing, making it where it does not exist.
pub(crate) fn open_own(path: &Path) -> Result<Connection, EngineError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .map_err(|error| refused(path, "opening", error))?;
    configure(&connection).map_err(|error| refused(path, "opening", error))?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(LOCK_WAIT)?;
    // Whoever closes a database last would otherwise move its WAL into it and delete the WAL.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // The schema is not ours: what it calls must be harmless (rule 31), and none of its triggers may run.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    Ok(())
}

/// Says in words why a file cannot be a database before SQLite is asked, by its metadata alone.
fn look_at_file(path: &Path) -> Result<(), EngineError> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => EngineError::Missing {
            code: "database_file",
            what: format!("there is no file {}", path.display()),
            remedy: "check the path; a relative one begins where the command runs".to_owned(),
        },
        std::io::ErrorKind::PermissionDenied => unreadable(path, &error.to_string()),
        _ => EngineError::local(format!("looking at {}", path.display()), error),
    })?;
    if metadata.is_file() {
        return Ok(());
    }
    Err(EngineError::Missing {
        code: "database_file",
        what: format!(
            "{} is {}, not a SQLite database",
            path.display(),
            if metadata.is_dir() {
                "a folder"
            } else {
                "not a regular file"
            }
        ),
        remedy: "name the database file itself".to_owned(),
    })
}

fn unreadable(path: &Path, what: &str) -> EngineError {
    EngineError::Missing {
        code: "file_permission",
        what: format!("{} may not be opened: {what}", path.display()),
        remedy: crate::grants::READ_IT.to_owned(),
    }
}

/// What an error of SQLite means. Its messages name tables and columns, never values.
#[expect(clippy::needless_pass_by_value, reason = "it is given to `map_err`")]
pub(crate) fn refused(path: &Path, doing: &str, error: rusqlite::Error) -> EngineError {
    let shown = path.display();
    let code = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => failure.code,
        _ => ErrorCode::Unknown,
    };
    match code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => EngineError::Busy {
            what: format!("{shown} is locked by another process ({doing} it: {error})"),
            wait: BUSY_RETRY,
        },
        ErrorCode::NotADatabase => EngineError::Missing {
            code: "sqlite_format",
            what: format!("{shown} is not a SQLite database, or it is encrypted"),
            remedy: "check the path; a database encrypted by an extension of SQLite cannot be read"
                .to_owned(),
        },
        ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly => {
            unreadable(path, &error.to_string())
        }
        ErrorCode::OperationInterrupted => EngineError::Stopped,
        ErrorCode::DiskFull => EngineError::local(
            format!("{doing} {shown}"),
            std::io::Error::from(std::io::ErrorKind::StorageFull),
        ),
        ErrorCode::DatabaseCorrupt => EngineError::Database {
            what: format!(
                "{shown} is damaged ({doing} it: {error}); `PRAGMA integrity_check` tells more"
            ),
            transient: false,
        },
        code => EngineError::Database {
            what: format!("{doing} {shown}: {error}"),
            transient: code == ErrorCode::SystemIoFailure,
        },
    }
}

/// A name as it stands in SQL.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
