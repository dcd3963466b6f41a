//! What the file system knows of a database, as tables that questions of checks may read:
//!
//! - `fettler_file`, one row: sizes, space, where the file lies, and which SQLite wrote it last;
//! - `fettler_files`, a row for the database, its folder, each file that SQLite keeps beside it, and each that looks like a
//!   copy of it: who may read and write it.

use std::{
    fs::{self, Metadata},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rusqlite::Connection;

/// What SQLite puts beside a database, and what the tables call it.
const SIDE_FILES: [(&str, &str); 3] = [("-wal", "wal"), ("-shm", "shm"), ("-journal", "journal")];

/// Endings of names under which people and programs leave copies of a file.
const ENDINGS_OF_COPIES: [&str; 15] = [
    "~", ".backup", ".bak", ".bz2", ".copy", ".dump", ".gz", ".old", ".orig", ".save", ".sql",
    ".tar", ".xz", ".zip", ".zst",
];

/// How many names of a folder are looked at.
const MOST_NAMES: usize = 100_000;

/// Kinds of file systems that lie on another machine, by the numbers of `statfs(2)`: NFS, SMB (three), AFS, Ceph, Coda, 9P.
const NETWORK: [u32; 8] = [
    0x6969,
    0x517B,
    0xFF53_4D42,
    0xFE53_4D42,
    0x5346_414F,
    0x00C3_6400,
    0x7375_7245,
    0x0102_1997,
];

/// Where the header of a file holds the number of the SQLite that wrote it last (file format, 1.3.18).
const WRITTEN_BY: std::ops::Range<usize> = 96..100;

/// Makes the tables, in memory: a temporary file would be a trace of a look.
pub(crate) fn describe(connection: &Connection, path: &Path) -> rusqlite::Result<()> {
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.execute_batch(
        "CREATE TEMP TABLE fettler_file (
             database_bytes, wal_bytes, journal_bytes, free_bytes, read_only, path, written_by, is_on_network, others_reach);
         CREATE TEMP TABLE fettler_files (
             kind, name, bytes, age_seconds, mode, owner, links, is_link, is_sticky, is_executable,
             group_read, group_write, others_read, others_write)",
    )?;
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let size = |suffix| {
        beside(&real, suffix)
            .metadata()
            .map_or(0, |file| bytes(&file))
    };
    let read_only = fs::metadata(&real).is_ok_and(|file| file.permissions().readonly());
    let folder = fettler_engine::folder_of(&real);
    let space = rustix::fs::statvfs(&folder).ok();
    let free = space.map_or(-1, |space| {
        i64::try_from(space.f_bavail.saturating_mul(space.f_frsize)).unwrap_or(i64::MAX)
    });
    connection.execute(
        "INSERT INTO temp.fettler_file VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        (
            size(""),
            size("-wal"),
            size("-journal"),
            free,
            read_only,
            real.to_string_lossy(),
            written_by(&real),
            is_on_network(&real),
            others_reach(&real),
        ),
    )?;
    let add = |kind: &str, file: &Path, is_link: bool| -> rusqlite::Result<()> {
        let Ok(metadata) = fs::metadata(file) else {
            return Ok(());
        };
        let mode = metadata.mode();
        let may = |bit: u32| mode & bit != 0;
        let name = if kind == "folder" {
            file.to_string_lossy()
        } else {
            file.file_name().unwrap_or_default().to_string_lossy()
        };
        connection
            .execute(
                "INSERT INTO temp.fettler_files VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
                rusqlite::params![
                    kind,
                    name,
                    bytes(&metadata),
                    age_seconds(&metadata),
                    format!("{:04o}", mode & 0o7777),
                    metadata.uid(),
                    metadata.nlink().min(i64::MAX.unsigned_abs()).cast_signed(),
                    is_link,
                    may(0o1000),
                    may(0o111),
                    may(0o040),
                    may(0o020),
                    may(0o004),
                    may(0o002),
                ],
            )
            .map(drop)
    };
    let is_link = fs::symlink_metadata(path).is_ok_and(|file| file.is_symlink());
    add("database", &real, is_link)?;
    add("folder", &folder, false)?;
    for (suffix, kind) in SIDE_FILES {
        add(kind, &beside(&real, suffix), false)?;
    }
    for copy in copies(&real, &folder) {
        add("copy", &copy, false)?;
    }
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn bytes(file: &Metadata) -> i64 {
    i64::try_from(file.len()).unwrap_or(i64::MAX)
}

fn age_seconds(file: &Metadata) -> i64 {
    let changed = file.modified().unwrap_or_else(|_| SystemTime::now());
    changed
        .elapsed()
        .map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
}

/// The number of the SQLite that wrote the file last, as 3051002; 0 where the file is empty or from before 3.7.
fn written_by(path: &Path) -> u32 {
    let mut header = [0; WRITTEN_BY.end];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut header));
    match (read, header[WRITTEN_BY].try_into()) {
        (Ok(()), Ok(number)) => u32::from_be_bytes(number),
        _ => 0,
    }
}

/// Whether the file lies on another machine; nothing where that cannot be told.
#[cfg(target_os = "linux")]
fn is_on_network(path: &Path) -> Option<bool> {
    let system = rustix::fs::statfs(path).ok()?;
    // The number is one of 32 bits whatever type holds it.
    Some(NETWORK.contains(&(system.f_type as u32)))
}

#[cfg(not(target_os = "linux"))]
fn is_on_network(_path: &Path) -> Option<bool> {
    None
}

/// Whether users of the machine that are neither the owner nor of the group may go into every folder on the way.
fn others_reach(path: &Path) -> bool {
    let mut folders = path.ancestors().skip(1).peekable();
    folders.peek().is_some()
        && folders.all(|folder| fs::metadata(folder).is_ok_and(|one| one.mode() & 0o001 != 0))
}

/// Files of the folder whose names begin as the database's does and end as those of copies do.
fn copies(path: &Path, folder: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let is_copy = |other: &str| {
        other != name
            && other
                .strip_prefix(&*stem)
                .is_some_and(|rest| !rest.starts_with(|letter: char| letter.is_alphanumeric()))
            && ENDINGS_OF_COPIES.iter().any(|end| other.ends_with(end))
    };
    let mut copies: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .take(MOST_NAMES)
        .flatten()
        .filter(|entry| is_copy(&entry.file_name().to_string_lossy()))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|entry| entry.path())
        .collect();
    copies.sort();
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_told_from_other_files_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "shop.sqlite",
            "shop.sqlite-wal",
            "shop.sqlite.bak",
            "shop.sqlite~",
            "shop.sql",
            "shop-2026-01-01.sqlite.zst",
            "shopping.bak",
            "other.bak",
            "shop.sqlite.lock",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("shop.old")).unwrap();
        let found: Vec<String> = copies(&folder.path().join("shop.sqlite"), folder.path())
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            found,
            [
                "shop-2026-01-01.sqlite.zst",
                "shop.sql",
                "shop.sqlite.bak",
                "shop.sqlite~"
            ]
        );
    }
}
