//! The file system around a database: who a file is, what lies beside it, how much space there is.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use fettler_engine::{
    BackupOptions, EngineError, Identity, PreflightItem, PreflightLevel, folder_of,
};
use fettler_model::{DatabaseName, Engine};

use crate::{
    connect::{open_shared, refused},
    snapshot,
};

/// What SQLite puts beside a database.
const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The longest name that a database may have in Fettler.
const LONGEST_NAME: usize = 63;

/// Who a database is.
pub(crate) fn identify(path: &Path) -> Result<Identity, EngineError> {
    let connection = open_shared(path)?;
    let asked = |error| refused(path, "reading", error);
    let header = snapshot::Header::read(&connection).map_err(asked)?;
    let metadata = fs::metadata(path)
        .map_err(|error| EngineError::local(format!("looking at {}", path.display()), error))?;
    let key = format!("sqlite:{}:{}", metadata.dev(), metadata.ino());
    Ok(Identity {
        engine: Engine::Sqlite,
        version: rusqlite::version().to_owned(),
        lineage: format!("{key}:{}:{}", header.page_bytes, header.application_id),
        key,
        suggested_name: suggested_name(path),
        estimated_bytes: header.pages * u64::from(header.page_bytes),
    })
}

/// The file's name without its ending, with everything else than letters and digits made into `-`.
fn suggested_name(path: &Path) -> DatabaseName {
    let stem = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().to_lowercase())
        .unwrap_or_default();
    let cleaned: String = stem
        .chars()
        .map(|letter| match letter {
            'a'..='z' | '0'..='9' | '_' | '.' => letter,
            _ => '-',
        })
        .skip_while(|letter| !letter.is_ascii_alphanumeric())
        .take(LONGEST_NAME)
        .collect();
    cleaned
        .trim_end_matches(['-', '.', '_'])
        .parse()
        .unwrap_or_else(|_| {
            "database"
                .parse()
                .expect("the word is a valid name of a database")
        })
}

/// What a backup of this file will meet.
pub(crate) fn preflight(
    path: &Path,
    options: &BackupOptions,
) -> Result<Vec<PreflightItem>, EngineError> {
    let connection = open_shared(path)?;
    let asked = |error| refused(path, "reading", error);
    let header = snapshot::Header::read(&connection).map_err(asked)?;
    let bytes = header.pages * u64::from(header.page_bytes);
    let mut items = vec![PreflightItem {
        subject: "file".to_owned(),
        level: PreflightLevel::Fine,
        message: format!("{} pages of {} bytes", header.pages, header.page_bytes),
        remedy: String::new(),
    }];
    items.push(match snapshot::require_page_reader(&connection) {
        Ok(()) => PreflightItem {
            subject: "sqlite_dbpage".to_owned(),
            level: PreflightLevel::Fine,
            message: format!("SQLite {} can read pages", rusqlite::version()),
            remedy: String::new(),
        },
        Err(EngineError::Missing { what, remedy, .. }) => PreflightItem {
            subject: "sqlite_dbpage".to_owned(),
            level: PreflightLevel::Stops,
            message: what,
            remedy,
        },
        Err(other) => return Err(other),
    });
    items.push(if header.wal {
        PreflightItem {
            subject: "journal mode".to_owned(),
            level: PreflightLevel::Fine,
            message: "WAL: writers go on during the backup; the WAL cannot be reset until it ends"
                .to_owned(),
            remedy: String::new(),
        }
    } else {
        PreflightItem {
            subject: "journal mode".to_owned(),
            level: PreflightLevel::Missing,
            message: format!(
                "rollback journal: writers wait while {bytes} bytes are copied into the scratch folder"
            ),
            remedy: "`PRAGMA journal_mode=WAL` lets writers go on".to_owned(),
        }
    });
    if !options.exclude.is_empty() && header.wal {
        items.push(PreflightItem {
            subject: "excluded tables".to_owned(),
            level: PreflightLevel::Missing,
            message: format!(
                "{bytes} bytes are copied into the scratch folder, where the excluded rows are taken out"
            ),
            remedy: String::new(),
        });
    }
    Ok(items)
}

/// Free bytes in the file system of a folder, or of the nearest folder above it that exists.
pub(crate) fn free_bytes(folder: &Path) -> Result<u64, EngineError> {
    let mut looked_at = folder;
    loop {
        match rustix::fs::statvfs(looked_at) {
            Ok(found) => return Ok(found.f_bavail.saturating_mul(found.f_frsize)),
            Err(rustix::io::Errno::NOENT) => match looked_at.parent() {
                Some(above) => looked_at = above,
                None => return Err(no_statvfs(folder, rustix::io::Errno::NOENT)),
            },
            Err(error) => return Err(no_statvfs(folder, error)),
        }
    }
}

fn no_statvfs(folder: &Path, error: rustix::io::Errno) -> EngineError {
    EngineError::local(
        format!("looking for free space in {}", folder.display()),
        error.into(),
    )
}

/// An error where a folder has not room for so many bytes.
pub(crate) fn require_space(folder: &Path, needed_bytes: u64) -> Result<(), EngineError> {
    let free_bytes = free_bytes(folder)?;
    if free_bytes < needed_bytes {
        return Err(EngineError::NoSpace {
            place: folder.display().to_string(),
            free_bytes,
            needed_bytes,
        });
    }
    Ok(())
}

/// The files that SQLite may have put beside a database.
pub(crate) fn side_files(path: &Path) -> [PathBuf; 3] {
    SIDE_FILES.map(|ending| {
        let mut name = OsString::from(path);
        name.push(ending);
        PathBuf::from(name)
    })
}

/// Removes what SQLite may have left beside a database.
pub(crate) fn remove_side_files(path: &Path) -> Result<(), EngineError> {
    side_files(path).iter().try_for_each(|file| remove(file))
}

/// Removes a database of our own with everything beside it; what is not there is no error.
pub(crate) fn remove_database_files(path: &Path) -> Result<(), EngineError> {
    remove(path)?;
    remove_side_files(path)
}

fn remove(file: &Path) -> Result<(), EngineError> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(EngineError::local(
            format!("removing {}", file.display()),
            error,
        )),
        _ => Ok(()),
    }
}

/// Makes the names in a file's folder durable.
pub(crate) fn sync_folder_of(path: &Path) -> Result<(), EngineError> {
    let folder = folder_of(path);
    fs::File::open(&folder)
        .and_then(|opened| opened.sync_all())
        .map_err(|error| EngineError::local(format!("syncing {}", folder.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_from_any_file_name() {
        for (path, name) in [
            ("/data/shop.sqlite", "shop"),
            ("/data/My Shop (2).db", "my-shop--2"),
            ("/data/.hidden", "hidden"),
            ("/data/Übung.db", "bung"),
            ("/data/日本.db", "database"),
        ] {
            assert_eq!(suggested_name(Path::new(path)).as_str(), name);
        }
        let long = format!("/{}.db", "x".repeat(200));
        assert_eq!(
            suggested_name(Path::new(&long)).as_str().len(),
            LONGEST_NAME
        );
    }

    #[test]
    fn space_is_looked_for_above_a_folder_that_does_not_exist_yet() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(&folder.path().join("not/yet")).unwrap() > 0);
        let error = require_space(folder.path(), u64::MAX).unwrap_err();
        assert!(matches!(error, EngineError::NoSpace { .. }));
    }
}
