//! The audit of SQLite on real files: each check of permissions, of the schema and of who wrote the file fires for its fault,
//! and a fresh file is left in peace.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{FileExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
};

use common::audited;
use fettler_checks::{Library, Releases, Verdict};
use fettler_model::{Engine, Severity, Status};
use rusqlite::Connection;

fn made(folder: &Path, name: &str, sql: &str) -> PathBuf {
    let path = folder.join(name);
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    allow(&path, 0o640);
    path
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn found(path: &Path) -> Vec<String> {
    let audited = audited(&path.display().to_string(), None, &Releases::shipped());
    assert_eq!(audited.not_made(), [], "{}", path.display());
    audited.keys()
}

/// A folder that every user of the machine reaches, as temporary folders of tests are not.
fn reached() -> tempfile::TempDir {
    let base = ["/var/tmp", "/tmp", "/dev/shm"].map(Path::new);
    let base = base.into_iter().find(|folder| folder.is_dir()).unwrap();
    let folder = tempfile::tempdir_in(base).unwrap();
    allow(folder.path(), 0o755);
    folder
}

#[test]
fn a_fresh_file_gives_an_audit_that_an_expert_would_sign() {
    let folder = tempfile::tempdir().unwrap();
    for (name, sql) in [
        ("empty.sqlite", "VACUUM"),
        (
            "shop.sqlite",
            "PRAGMA journal_mode = wal; CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT UNIQUE, password_hash TEXT);
             CREATE VIRTUAL TABLE words USING fts5(body); CREATE VIEW v AS SELECT name FROM users;
             CREATE TRIGGER t AFTER DELETE ON users BEGIN DELETE FROM words WHERE rowid = old.id; END;
             INSERT INTO users VALUES (1, 'a', 'x'), (2, 'b', 'y'); DELETE FROM users WHERE id = 2",
        ),
    ] {
        let path = made(folder.path(), name, sql);
        let audited = audited(&path.display().to_string(), None, &Releases::shipped());
        assert_eq!(audited.keys(), [""; 0], "{name}");
        assert!(audited.judged.lines.len() >= 20);
        for line in &audited.judged.lines {
            assert_eq!(line.verdict, Verdict::Passed, "{line:?}");
        }
    }
}

#[test]
fn no_check_compares_a_setting_with_a_constant() {
    let library = Library::shipped();
    for check in library.of_audit(Engine::Sqlite) {
        for variant in &check.variants {
            assert!(
                !variant.question.contains("pragma_journal_mode"),
                "{}",
                check.id
            );
            assert!(
                !variant.question.trim_start().starts_with("PRAGMA"),
                "{}",
                check.id
            );
        }
    }
}

#[test]
fn each_check_of_permissions_fires_and_is_gone_again() {
    let folder = reached();
    let path = made(folder.path(), "shop.sqlite", "CREATE TABLE t (n)");
    assert_eq!(found(&path), [""; 0]);
    for (mode, wanted) in [
        (0o644, &["sqlite.file_read_by_all"][..]),
        (0o642, &["sqlite.file_written_by_all"]),
        (0o660, &["sqlite.file_written_by_group"]),
        (0o750, &["sqlite.file_executable"]),
    ] {
        allow(&path, mode);
        assert_eq!(found(&path), wanted, "{mode:o}");
        allow(&path, 0o640);
    }
    for (mode, wanted) in [
        (0o757, &["sqlite.folder_written_by_all"][..]),
        (0o1757, &["sqlite.folder_written_by_all"]),
        (0o775, &["sqlite.folder_written_by_group"]),
        // Nobody else goes in.
        (0o756, &[]),
    ] {
        allow(folder.path(), mode);
        assert_eq!(found(&path), wanted, "{mode:o}");
        allow(folder.path(), 0o755);
    }
    assert_eq!(found(&path), [""; 0]);
}

#[test]
fn what_nobody_reaches_is_not_open_whatever_its_own_permissions() {
    let folder = tempfile::tempdir().unwrap();
    allow(folder.path(), 0o700);
    let path = made(
        folder.path(),
        "shop.sqlite",
        "CREATE TABLE users (password)",
    );
    allow(&path, 0o606);
    assert_eq!(found(&path), ["sqlite.columns_of_secrets:users.password"]);
}

#[test]
fn the_owner_of_the_folder_is_looked_at() {
    let folder = reached();
    let path = made(folder.path(), "shop.sqlite", "CREATE TABLE t (n)");
    let me = fs::metadata(&path).unwrap();
    let me = std::os::unix::fs::MetadataExt::uid(&me);
    if me != 0 {
        // Only root can give a folder away.
        return;
    }
    chown(folder.path(), Some(4711), None).unwrap();
    assert_eq!(found(&path), ["sqlite.owner_of_folder_differs"]);
    chown(folder.path(), Some(0), None).unwrap();
    chown(&path, Some(4711), None).unwrap();
    assert_eq!(found(&path), [""; 0]);
}

#[test]
fn side_files_copies_links_and_places_are_found() {
    let folder = reached();
    let path = made(
        folder.path(),
        "shop.sqlite",
        "PRAGMA journal_mode = wal; CREATE TABLE t (n)",
    );
    allow(&path, 0o600);
    let writer = Connection::open(&path).unwrap();
    writer.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(found(&path), [""; 0]);
    let wal = folder.path().join("shop.sqlite-wal");
    allow(&wal, 0o604);
    assert_eq!(found(&path), ["sqlite.side_files_wider:wal"]);
    allow(&wal, 0o600);

    let copy = folder.path().join("shop.sqlite.bak");
    fs::copy(&path, &copy).unwrap();
    allow(&copy, 0o644);
    let audit = audited(&path.display().to_string(), None, &Releases::shipped());
    assert_eq!(audit.keys(), ["sqlite.copies_beside:shop.sqlite.bak"]);
    assert!(
        audit
            .judged
            .findings
            .iter()
            .any(|finding| finding.status == Status::Open && finding.severity == Severity::Medium)
    );
    fs::remove_file(&copy).unwrap();

    let other = folder.path().join("twin");
    fs::hard_link(&path, &other).unwrap();
    assert_eq!(found(&path), ["sqlite.hard_links"]);
    fs::remove_file(&other).unwrap();
    drop(writer);

    // By a link, from a folder that others may write and one that they may not.
    let link = folder.path().join("link.sqlite");
    symlink(&path, &link).unwrap();
    assert_eq!(found(&link), [""; 0]);
    allow(folder.path(), 0o757);
    assert_eq!(
        found(&link),
        ["sqlite.folder_written_by_all", "sqlite.symbolic_link_open"]
    );
    allow(folder.path(), 0o755);

    let web = folder.path().join("htdocs");
    fs::create_dir(&web).unwrap();
    let path = made(&web, "shop.sqlite", "CREATE TABLE t (n)");
    assert_eq!(found(&path), ["sqlite.below_web_root"]);
}

#[test]
fn a_schema_that_attacks_or_was_written_by_hand_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(
        folder.path(),
        "odd.sqlite",
        "CREATE TABLE a (n); CREATE TABLE b (n); CREATE TABLE readfiles (edit);
         CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT coalesce(load_extension ('x'), 1); END;
         CREATE VIEW v AS SELECT 1||readfile('y') AS n;
         CREATE TABLE \"orders \" (n);
         PRAGMA writable_schema = on;
         UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'a') WHERE name = 'b';
         INSERT INTO sqlite_schema VALUES ('table', 'vectors', 'vectors', 0, 'CREATE VIRTUAL TABLE vectors USING vec0(x)')",
    );
    assert_eq!(
        found(&path),
        [
            "sqlite.modules_missing:vectors",
            "sqlite.names_hidden:table 6F726465727320",
            "sqlite.root_pages_shared:a b",
            "sqlite.schema_calls_dangerous_functions:trigger t",
            "sqlite.schema_calls_dangerous_functions:view v",
        ]
    );
}

#[test]
fn columns_that_say_what_they_keep_are_found_by_their_names() {
    let folder = reached();
    let path = made(
        folder.path(),
        "people.sqlite",
        "CREATE TABLE users (id INTEGER PRIMARY KEY, Password TEXT, password_hash TEXT, pad TEXT);
         CREATE TABLE payments (card_number TEXT, cvv TEXT, panel TEXT); CREATE TABLE people (ssn TEXT, name TEXT);
         INSERT INTO users (pad) VALUES (zeroblob(100000)); DELETE FROM users",
    );
    allow(&path, 0o644);
    let wanted = [
        "sqlite.columns_of_cards:payments.card_number",
        "sqlite.columns_of_cards:payments.cvv",
        "sqlite.columns_of_persons:people.ssn",
        "sqlite.columns_of_secrets:users.Password",
        "sqlite.deleted_rows_left",
        "sqlite.file_read_by_all",
        "sqlite.protected_and_readable",
    ];
    assert_eq!(found(&path), wanted);
    allow(&path, 0o640);
    Connection::open(&path)
        .unwrap()
        .execute_batch("VACUUM; DROP TABLE payments; DROP TABLE people; ALTER TABLE users DROP COLUMN Password; VACUUM")
        .unwrap();
    assert_eq!(found(&path), [""; 0]);
}

#[test]
fn which_sqlite_wrote_the_file_is_read_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(folder.path(), "old.sqlite", "CREATE TABLE t (n)");
    let wrote = |number: u32| {
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&number.to_be_bytes(), 96).unwrap();
    };
    wrote(3_031_001);
    assert_eq!(
        found(&path),
        [
            "sqlite.written_by_old_release",
            "sqlite.written_by_open_release:CVE-2020-11656",
            "sqlite.written_by_open_release:CVE-2022-35737",
            "sqlite.written_by_open_release:CVE-2025-6965",
        ]
    );
    wrote(3_045_001);
    assert_eq!(
        found(&path),
        ["sqlite.written_by_open_release:CVE-2025-6965"]
    );
    // A file from before 3.7 does not say it.
    wrote(0);
    assert_eq!(found(&path), [""; 0]);
}

/// What of a schema and of a file's settings is not as it was; rows and other work are none of it.
#[test]
fn drift_of_a_schema_is_found_and_work_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(
        folder.path(),
        "shop.sqlite",
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT DEFAULT 'hidden1'); CREATE TABLE old (n); CREATE VIEW v AS SELECT name FROM users",
    );
    let snapshot = || audited(&path.display().to_string(), None, &Releases::shipped()).snapshot;
    let before = snapshot();
    let change = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    change("INSERT INTO users VALUES (1, 'a'); ANALYZE; VACUUM");
    assert_eq!(snapshot().changes_since(&before), []);
    change(
        "ALTER TABLE users ADD COLUMN role TEXT; DROP TABLE old; CREATE TRIGGER t AFTER INSERT ON users BEGIN SELECT 1; END;
         PRAGMA user_version = 7",
    );
    let after = snapshot();
    let told = after.judged(&before);
    let mut keys: Vec<&str> = told.findings.iter().map(|one| one.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "sqlite.drift_schema:table old",
            "sqlite.drift_schema:table users",
            "sqlite.drift_schema:trigger t",
            "sqlite.drift_settings:user_version",
        ]
    );
    let text = format!("{before:?}");
    assert!(!text.contains("hidden1"), "definitions are digests: {text}");
}
