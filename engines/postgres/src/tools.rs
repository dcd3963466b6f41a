//! PostgreSQL's own programs: finding one that is new enough, and running it under an attempt's control.

use std::{
    collections::BTreeMap,
    env, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use bytes::BytesMut;
use fettler_engine::EngineError;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::Command,
};
use tokio_util::sync::CancellationToken;

use crate::params::Params;

/// Names the folders with PostgreSQL's programs, parted by `:`. Only they are looked into then.
pub(crate) const FOLDERS_VARIABLE: &str = "FETTLER_PG_BIN";
/// Bytes of a program's complaints that are kept.
const COMPLAINT_LIMIT_BYTES: usize = 64 * 1024;
/// Bytes of one line of a program's complaints that are kept.
const LINE_LIMIT_BYTES: usize = 16 * 1024;

/// One program of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) path: PathBuf,
    /// Its major version.
    pub(crate) major: u32,
    /// Its version as it tells it, such as `15.9`.
    pub(crate) version: String,
}

impl Tool {
    /// A program that lies beside this one.
    pub(crate) fn sibling(&self, program: &str) -> PathBuf {
        self.path.with_file_name(program)
    }
}

/// Where programs are looked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    /// Only here, where it is given.
    pub(crate) folders: Option<Vec<PathBuf>>,
}

impl Tools {
    /// The folders, those with the newest versions last.
    fn folders(&self) -> Vec<PathBuf> {
        if let Some(folders) = &self.folders {
            return folders.clone();
        }
        if let Some(list) = env::var_os(FOLDERS_VARIABLE).filter(|list| !list.is_empty()) {
            return env::split_paths(&list).collect();
        }
        let mut folders: Vec<PathBuf> = env::var_os("PATH")
            .map(|path| env::split_paths(&path).collect())
            .unwrap_or_default();
        for (parent, prefix, below) in [
            ("/usr/lib/postgresql", "", "bin"),
            ("/usr", "pgsql-", "bin"),
            ("/opt/homebrew/opt", "postgresql@", "bin"),
            ("/usr/local/opt", "postgresql@", "bin"),
        ] {
            let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
            folders.extend(
                entries
                    .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
                    .map(|entry| entry.path().join(below)),
            );
        }
        folders.push(PathBuf::from("/usr/local/pgsql/bin"));
        folders
    }

    /// Every version of a program, by major version.
    pub(crate) async fn versions(&self, program: &str) -> BTreeMap<u32, Tool> {
        let mut found = BTreeMap::new();
        for folder in self.folders() {
            let path = folder.join(program);
            // Debian's wrapper picks a version by itself, and not the one that it tells.
            let is_wrapper = std::fs::canonicalize(&path)
                .is_ok_and(|real| real.file_name().is_some_and(|name| name == "pg_wrapper"));
            if !path.is_file() || is_wrapper {
                continue;
            }
            if let Some(tool) = version_of(&path).await {
                found.entry(tool.major).or_insert(tool);
            }
        }
        found
    }

    /// A program that is no part of PostgreSQL and tells its version as `pg_repack 1.4.8` does, of just this version.
    pub(crate) async fn of_version(&self, program: &str, version: &str) -> Option<PathBuf> {
        for folder in self.folders() {
            let path = folder.join(program);
            let told = told_by(&path).await;
            if told.is_some_and(|told| told.split_whitespace().nth(1) == Some(version)) {
                return Some(path);
            }
        }
        None
    }

    /// A program of at least this major version: the preferred version, else the oldest that will do.
    pub(crate) async fn find(
        &self,
        program: &'static str,
        at_least: u32,
        preferred: u32,
    ) -> Result<Tool, EngineError> {
        let mut versions = self.versions(program).await;
        if let Some(tool) = versions
            .remove(&preferred)
            .filter(|tool| tool.major >= at_least)
        {
            return Ok(tool);
        }
        let newest = versions.keys().next_back().copied();
        if let Some((_, tool)) = versions.into_iter().find(|(major, _)| *major >= at_least) {
            return Ok(tool);
        }
        let remedy = if program == "postgres" {
            format!(
                "install PostgreSQL's server of version {at_least} or later (Debian: postgresql-{at_least}), name its folder of programs in {FOLDERS_VARIABLE}, or name a server for proofs"
            )
        } else {
            format!(
                "install PostgreSQL's client programs of version {at_least} or later (Debian: postgresql-client-{at_least}), or name their folder in {FOLDERS_VARIABLE}"
            )
        };
        let what = match newest {
            None => format!("{program} was not found; a server of version {at_least} needs it"),
            Some(newest) => format!(
                "{program} is of version {newest}, which is too old for a server of version {at_least}"
            ),
        };
        Err(EngineError::Missing {
            code: program,
            what,
            remedy,
        })
    }
}

/// What a program says of its version.
async fn told_by(path: &Path) -> Option<String> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .ok()?;
    String::from_utf8(output.stdout).ok()
}

async fn version_of(path: &Path) -> Option<Tool> {
    let text = told_by(path).await?;
    // `pg_dump (PostgreSQL) 15.9 (Debian 15.9-0+deb12u1)`, `… 18beta1`
    let version = text
        .split("(PostgreSQL) ")
        .nth(1)?
        .split_whitespace()
        .next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some(Tool {
        path: path.to_owned(),
        major: digits.parse().ok()?,
        version: version.to_owned(),
    })
}

/// A command that connects where `params` say.
pub(crate) fn connected(program: &Path, params: &Params, application_name: &str) -> Command {
    let mut command = Command::new(program);
    for (name, value) in params.child_environment(application_name) {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// What it wrote to standard error, cut where it is long.
    pub(crate) complaints: String,
}

impl Ended {
    /// An error that says what the program said.
    pub(crate) fn error(&self, program: &str) -> EngineError {
        let said = self.complaints.trim();
        // pg_dump limits its LOCK statements by statement_timeout, and only them.
        let of_locks = said.contains("canceling statement due to statement timeout")
            || said.contains("could not obtain lock");
        if of_locks {
            return EngineError::Busy {
                what: format!("{program} waited for a lock in vain: {said}"),
                wait: std::time::Duration::from_secs(60),
            };
        }
        if said.contains("permission denied") {
            return EngineError::Missing {
                code: "permission",
                what: format!("{program} may not read everything: {said}"),
                remedy: format!(
                    "GRANT USAGE on the schema and SELECT on the table that it names to the role that Fettler logs in as, or {}",
                    crate::grants::read_everything("its name")
                ),
            };
        }
        EngineError::Database {
            what: format!("{program} failed ({}): {said}", self.status),
            transient: said.contains("connection") || said.contains("terminating"),
        }
    }
}

/// Runs a program to its end, or kills it when the work is to stop. Lines of its output go to `line`.
pub(crate) async fn run(
    mut command: Command,
    program: &str,
    stop: &CancellationToken,
    line: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<Ended, EngineError> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let failed = |error: io::Error| EngineError::local(format!("running {program}"), error);
    let mut child = command.spawn().map_err(failed)?;
    let stdout = child.stdout.take().expect("standard output is piped");
    let stderr = child.stderr.take().expect("standard error is piped");
    let work = async {
        let (output, complaints) = tokio::join!(each_line(stdout, line), kept(stderr));
        output?;
        let complaints = complaints?;
        Ok(Ended {
            status: child.wait().await?,
            complaints,
        })
    };
    match stop.run_until_cancelled(work).await {
        // Dropped, the child is killed.
        None => Err(EngineError::Stopped),
        Some(answer) => answer.map_err(failed),
    }
}

async fn each_line(
    stream: impl AsyncRead + Unpin,
    line: &mut (dyn FnMut(&[u8]) + Send),
) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).await? > 0 {
        line(bytes.strip_suffix(b"\n").unwrap_or(&bytes));
        bytes.clear();
    }
    Ok(())
}

async fn kept(mut stream: impl AsyncRead + Unpin) -> io::Result<String> {
    let mut kept = BytesMut::new();
    let mut buffer = vec![0; LINE_LIMIT_BYTES];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(String::from_utf8_lossy(&kept).into_owned());
        }
        let room = COMPLAINT_LIMIT_BYTES.saturating_sub(kept.len()).min(read);
        kept.extend_from_slice(&buffer[..room]);
    }
}
