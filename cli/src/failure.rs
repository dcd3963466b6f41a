//! How a command fails: what happened, what to do, and the exit code.

use std::fmt;

use fettler_model::Problem;
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use serde_json::{Value, json};

/// The exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked for is done.
    Done,
    /// It failed.
    Failed,
    /// It was asked for wrongly.
    Usage,
    /// Something is wrong with what was looked at.
    FoundWrong,
    /// There was nothing to do.
    Nothing,
}

impl Exit {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::FoundWrong => 3,
            Self::Nothing => 4,
        }
    }
}

/// Why a command did not do what it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) problem: Problem,
}

impl Failure {
    /// The command was used wrongly.
    pub(crate) fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            problem: Problem::permanent("cli.usage", what, remedy),
        }
    }

    /// There is nothing that the command could work on.
    pub(crate) fn nothing(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            exit: Exit::Nothing,
            problem: Problem::permanent("cli.nothing", what, remedy),
        }
    }

    /// Something of this machine failed.
    pub(crate) fn local(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Problem::permanent(
            "cli.local",
            format!("{what}: {error}"),
            "check that this user may read and write there, and that the disk is not full",
        )
        .into()
    }

    /// The failure as the one document of `--json`.
    pub(crate) fn to_json(&self) -> Value {
        json!({ "error": {
            "code": self.problem.code,
            "what": self.problem.what,
            "remedy": self.problem.remedy,
        }})
    }
}

impl<E: Into<Problem>> From<E> for Failure {
    fn from(error: E) -> Self {
        let problem: Problem = error.into();
        let exit = match problem.code.as_str() {
            // What was typed or written in a file is wrong, not what it speaks of.
            "config.mistakes" | "ledger.url" | "repository.unknown_place" => Exit::Usage,
            _ => Exit::Failed,
        };
        Self { exit, problem }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.what)
    }
}

impl std::error::Error for Failure {}

impl Diagnostic for Failure {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.problem.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        (!self.problem.remedy.is_empty())
            .then(|| Box::new(&self.problem.remedy) as Box<dyn fmt::Display>)
    }
}

// `Failure` must not become a `Problem` itself, or the conversion above would stand in its own way;
// whoever needs the problem takes the field.

/// The failure as a person reads it.
pub(crate) fn told(failure: &Failure, colours: bool, width: usize) -> String {
    let theme = if colours {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::none()
    };
    let mut text = String::new();
    let drawn = GraphicalReportHandler::new_themed(theme)
        .with_width(width)
        .with_links(false)
        .render_report(&mut text, failure);
    match drawn {
        Ok(()) => text,
        Err(fmt::Error) => format!("{failure}\n{}\n", failure.problem.remedy),
    }
}

/// The result of a command.
pub(crate) type Outcome = Result<Exit, Failure>;
