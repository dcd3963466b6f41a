//! Running `pg_restore` on parts of the archive, and reading what it complains about.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use fettler_engine::{EngineContext, EngineError};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    params::Params,
    tools::{self, Tool},
};

/// Failed statements that are kept in words; more are counted.
const FAILURES_KEPT: usize = 200;
/// Letters of a failed statement that are kept.
const STATEMENT_LETTERS: usize = 400;

/// The part of an archive that is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    PreData,
    PostData,
}

impl Section {
    const fn as_str(self) -> &'static str {
        match self {
            Self::PreData => "pre-data",
            Self::PostData => "post-data",
        }
    }
}

/// An archive on this machine and the program that reads it.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    pub(crate) path: PathBuf,
    pub(crate) tool: Tool,
    /// Options that hold for every run, such as `--no-owner`.
    pub(crate) options: Vec<String>,
    /// Settings of the sessions, as `name=value`.
    pub(crate) settings: Vec<String>,
    /// Those that only a superuser may make, where the role of the restore is one.
    pub(crate) superuser_settings: Vec<String>,
}

/// How one run of `pg_restore` connects.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) params: Params,
    /// Whether the role is the restore's own, and not one with fewer rights.
    pub(crate) is_own: bool,
}

impl Archive {
    /// The table of contents.
    pub(crate) async fn list(
        &self,
        context: &EngineContext,
        section: Option<Section>,
    ) -> Result<Vec<String>, EngineError> {
        let mut command = tokio::process::Command::new(&self.tool.path);
        command
            .arg("--list")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(section) = section {
            command.arg(format!("--section={}", section.as_str()));
        }
        command.args(&self.options).arg(&self.path);
        let mut lines = Vec::new();
        let ended = tools::run(command, "pg_restore", &context.stop, &mut |line| {
            if !line.starts_with(b";") && !line.is_empty() {
                lines.push(String::from_utf8_lossy(line).into_owned());
            }
        })
        .await?;
        if !ended.status.success() {
            return Err(ended.error("pg_restore"));
        }
        Ok(lines)
    }

    /// Restores a section, or the entries of it that `list` names. Gives back the statements that failed.
    pub(crate) async fn restore(
        &self,
        context: &EngineContext,
        login: &Login,
        section: Section,
        list: Option<&Path>,
        jobs: usize,
    ) -> Result<Failures, EngineError> {
        let mut params = login.params.clone();
        let mut options = params.options.take().unwrap_or_default();
        let superuser_settings = self.superuser_settings.iter().filter(|_| login.is_own);
        for setting in self.settings.iter().chain(superuser_settings) {
            options.push_str(" -c ");
            options.push_str(setting);
        }
        params.options = Some(options.trim().to_owned());
        let mut command = tools::connected(&self.tool.path, &params, &context.attempt.to_string());
        command
            .arg(format!("--section={}", section.as_str()))
            .arg("--no-password")
            .arg(format!(
                "--dbname={}",
                crate::backup::conninfo(&params.database)
            ))
            .args(&self.options);
        if let Some(list) = list {
            command.arg(format!("--use-list={}", list.display()));
        }
        if jobs > 1 {
            command.arg(format!("--jobs={jobs}"));
        }
        command.arg(&self.path);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let failed = |error: io::Error| EngineError::local("running pg_restore", error);
        let mut child = command.spawn().map_err(failed)?;
        let stderr = child.stderr.take().expect("standard error is piped");
        let work = async {
            let mut failures = Failures::default();
            let mut lines = BufReader::new(stderr);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).await? > 0 {
                failures.line(String::from_utf8_lossy(&line).trim_end_matches('\n'));
                line.clear();
            }
            failures.end();
            Ok((child.wait().await?, failures))
        };
        let (status, failures) = context
            .stop
            .run_until_cancelled(work)
            .await
            .ok_or(EngineError::Stopped)?
            .map_err(failed)?;
        // It ends with an error as soon as one statement failed; that is no reason to give up.
        if !status.success() && (failures.statements.is_empty() || failures.gave_up()) {
            return Err(EngineError::Database {
                what: format!(
                    "pg_restore failed ({status}): {}",
                    failures.other.join("; ")
                ),
                transient: failures
                    .other
                    .iter()
                    .any(|line| line.contains("connection")),
            });
        }
        Ok(failures)
    }
}

/// What `pg_restore` complained about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failures {
    /// Statements that failed, each with what the server said.
    pub(crate) statements: Vec<Failure>,
    /// How many there are in all.
    pub(crate) count: usize,
    /// Other complaints.
    other: Vec<String>,
    current: Option<Failure>,
    in_statement: bool,
}

/// One statement that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) statement: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let statement: String = self.statement.chars().take(STATEMENT_LETTERS).collect();
        write!(f, "{} (statement: {})", self.message, statement.trim())
    }
}

impl Failure {
    /// Whether it says that something is there already: what a half-done attempt had made.
    pub(crate) fn is_repetition(&self) -> bool {
        self.message.contains("already exists")
            || self.message.contains("is already member of publication")
            || self.message.starts_with("multiple primary keys for table")
    }

    /// Whether it is a setting that the program sends and an older server does not know.
    fn is_unknown_setting(&self) -> bool {
        self.statement.starts_with("SET ")
            && self
                .message
                .starts_with("unrecognized configuration parameter")
    }
}

const EXECUTION_FAILED: &str = "could not execute query: ";

impl Failures {
    fn line(&mut self, line: &str) {
        if let Some(said) = line.strip_prefix("pg_restore: ") {
            self.end();
            if let Some(said) = said.strip_prefix("error: ") {
                match said.strip_prefix(EXECUTION_FAILED) {
                    Some(message) => {
                        let message = message.trim_start_matches("ERROR:").trim();
                        self.current = Some(Failure {
                            message: message.to_owned(),
                            statement: String::new(),
                        });
                    }
                    None if self.other.len() < FAILURES_KEPT => self.other.push(said.to_owned()),
                    None => {}
                }
            }
            return;
        }
        let Some(current) = &mut self.current else {
            return;
        };
        if let Some(statement) = line.strip_prefix("Command was: ") {
            self.in_statement = true;
            statement.clone_into(&mut current.statement);
        } else if self.in_statement {
            if current.statement.len() < STATEMENT_LETTERS {
                current.statement.push('\n');
                current.statement.push_str(line);
            }
        } else if line.starts_with("HINT:") {
            current
                .message
                .push_str(&format!(" ({})", line.trim_start_matches("HINT:").trim()));
        }
        // DETAIL lines may hold values of rows.
    }

    fn end(&mut self) {
        self.in_statement = false;
        if let Some(failure) = self
            .current
            .take()
            .filter(|failure| !failure.is_unknown_setting())
        {
            self.count += 1;
            if self.statements.len() < FAILURES_KEPT {
                self.statements.push(failure);
            }
        }
    }

    /// Whether the program stopped before its end.
    fn gave_up(&self) -> bool {
        self.other.iter().any(|line| {
            line.contains("connection to server")
                || line.contains("lost")
                || line.contains("terminated")
        })
    }

    /// In words.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = self.statements.iter().map(ToString::to_string).collect();
        if self.count > words.len() {
            words.push(format!("and {} more", self.count - words.len()));
        }
        words
    }

    /// Leaves out what a repeated attempt finds done.
    pub(crate) fn forgive_repetitions(&mut self) {
        let before = self.statements.len();
        self.statements.retain(|failure| !failure.is_repetition());
        self.count -= before - self.statements.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failed_statement_is_told_with_what_the_server_said_and_no_rows() {
        let mut failures = Failures::default();
        for line in [
            "pg_restore: while PROCESSING TOC:",
            "pg_restore: from TOC entry 215; 1259 16386 TABLE t postgres",
            "pg_restore: error: could not execute query: ERROR:  role \"x\" does not exist",
            "Command was: ALTER TABLE public.t OWNER TO x;",
            "",
            "",
            "pg_restore: from TOC entry 216; 1259 16387 CONSTRAINT t a b",
            "pg_restore: error: could not execute query: ERROR:  could not create unique index \"t_pkey\"",
            "DETAIL:  Key (id)=(secret) is duplicated.",
            "Command was: ALTER TABLE ONLY public.t",
            "    ADD CONSTRAINT t_pkey PRIMARY KEY (id);",
            "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"",
            "Command was: SET transaction_timeout = 0;",
            "pg_restore: warning: errors ignored on restore: 3",
        ] {
            failures.line(line);
        }
        failures.end();
        assert_eq!(
            failures.words(),
            [
                "role \"x\" does not exist (statement: ALTER TABLE public.t OWNER TO x;)",
                "could not create unique index \"t_pkey\" (statement: ALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (id);)",
            ]
        );
    }
}
