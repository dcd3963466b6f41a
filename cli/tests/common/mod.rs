//! A folder for a test, and the built binary in it with nothing of this machine's settings.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// A folder of its own.
pub struct Folder {
    pub root: TempDir,
}

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Answer {
    /// The document of a command that ended with this code.
    #[track_caller]
    pub fn document(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{self:#?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// The standard error output of a command that ended with this code.
    #[track_caller]
    pub fn error(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(!self.err.contains("panicked"), "{self:#?}");
        &self.err
    }
}

impl Folder {
    pub fn new() -> Self {
        Self {
            root: TempDir::with_prefix("fettler-cli-").unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A command in this folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("fettler").unwrap();
        command
            .args(arguments)
            .current_dir(self.root.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.path())
            .env("FETTLER_FOLDER", self.path("fettler"))
            .env("FETTLER_WORKER__LEASE_SECONDS", "2")
            .env("FETTLER_WORKER__HEARTBEAT_SECONDS", "1")
            .env("TZ", "UTC")
            .env("NO_COLOR", "1");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Answer {
        answer(&mut self.command(arguments))
    }

    /// A small database.
    pub fn database(&self, name: &str, rows: u32) -> PathBuf {
        let path = self.path(name);
        fill(&path, 0, rows);
        path
    }

    /// What a test saw, without what differs from run to run: the folder's path, and the widths of columns that hold it.
    pub fn tidy(&self, text: &str) -> String {
        let text = text.replace(&*self.root.path().to_string_lossy(), "ROOT");
        let lines: Vec<String> = text.split('\n').map(columns).collect();
        lines.join("\n")
    }
}

/// A line whose columns stand two spaces apart, whatever their widths; its indentation stays.
fn columns(line: &str) -> String {
    let text = line.trim_start();
    let cells = text
        .split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty());
    let indentation = &line[..line.len() - text.len()];
    format!("{indentation}{}", cells.collect::<Vec<_>>().join("  "))
}

/// Runs a command.
pub fn answer(command: &mut Command) -> Answer {
    let output = command.output().unwrap();
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Adds rows to a database, making it if needed.
pub fn fill(path: &Path, from: u32, to: u32) {
    let mut connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS goods (id INTEGER PRIMARY KEY, name TEXT, price REAL);
             CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT);
             INSERT OR IGNORE INTO notes VALUES (1, 'stays');",
        )
        .unwrap();
    let transaction = connection.transaction().unwrap();
    for id in from..to {
        transaction
            .execute(
                "INSERT INTO goods VALUES (?1, ?2, ?3)",
                rusqlite::params![id, format!("thing number {id}"), f64::from(id) / 4.0],
            )
            .unwrap();
    }
    transaction.commit().unwrap();
}

/// How many rows a restored copy has.
pub fn rows(path: &Path) -> u32 {
    rusqlite::Connection::open(path)
        .unwrap()
        .query_row("SELECT count(*) FROM goods", [], |row| row.get(0))
        .unwrap()
}
