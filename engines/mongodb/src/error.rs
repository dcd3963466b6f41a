//! What a server's refusals mean.

use std::{fmt, time::Duration};

use bson::RawDocument;
use fettler_engine::EngineError;

/// How long to wait for a server that steps down, or shuts down.
const BUSY_WAIT: Duration = Duration::from_secs(15);

/// Codes of the server's errors (`src/mongo/base/error_codes.yml` of MongoDB).
pub(crate) mod code {
    pub(crate) const UNAUTHORIZED: i32 = 13;
    pub(crate) const AUTHENTICATION_FAILED: i32 = 18;
    pub(crate) const NAMESPACE_NOT_FOUND: i32 = 26;
    pub(crate) const CURSOR_NOT_FOUND: i32 = 43;
    pub(crate) const CAPPED_POSITION_LOST: i32 = 136;
    pub(crate) const NAMESPACE_EXISTS: i32 = 48;
    pub(crate) const COMMAND_NOT_FOUND: i32 = 59;
    pub(crate) const NOT_IMPLEMENTED: i32 = 238;
    pub(crate) const SNAPSHOT_TOO_OLD: i32 = 239;
    pub(crate) const SNAPSHOT_UNAVAILABLE: i32 = 246;
    pub(crate) const DUPLICATE_KEY: i32 = 11000;
}

/// A refusal as the server tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: i32,
    pub(crate) name: String,
    pub(crate) message: String,
}

impl Refusal {
    /// Reads an answer whose `ok` is not 1, or one of its `writeErrors`.
    pub(crate) fn of(answer: &RawDocument) -> Self {
        Self {
            code: answer.get_i32("code").unwrap_or(0),
            name: answer.get_str("codeName").unwrap_or_default().to_owned(),
            message: answer
                .get_str("errmsg")
                .unwrap_or("no reason given")
                .to_owned(),
        }
    }

    /// Whether the server does not know the command, or this form of it.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self.code, code::COMMAND_NOT_FOUND | code::NOT_IMPLEMENTED)
            || self.message.contains("no such command")
    }

    /// Whether it is the user or the password. FerretDB asks PostgreSQL only when it needs it, and repeats what that says.
    pub(crate) fn is_login(&self) -> bool {
        self.code == code::AUTHENTICATION_FAILED
            || self.message.contains("(SQLSTATE 28P01)")
            || self.message.contains("(SQLSTATE 28000)")
    }

    /// What it means.
    pub(crate) fn doing(&self, server: &str, doing: impl fmt::Display) -> EngineError {
        let what = format!("{doing}: {server} says: {self}");
        let missing = |code, remedy: &str| EngineError::Missing {
            code,
            what: what.clone(),
            remedy: remedy.to_owned(),
        };
        match self.code {
            _ if self.is_login() => EngineError::LoginRefused {
                server: server.to_owned(),
                what: self.to_string(),
            },
            code::UNAUTHORIZED => missing(
                "permission",
                "give the user the role `backup` (and `restore` to write) on `admin`; `fettler preflight URL` lists what is needed",
            ),
            // NotWritablePrimary, NotPrimaryNoSecondaryOk
            10107 | 13435 => missing(
                "primary",
                "the server takes no writes: name the set's primary",
            ),
            // InterruptedAtShutdown, PrimarySteppedDown, ShutdownInProgress, InterruptedDueToReplStateChange
            11600 | 189 | 91 | 11602 => EngineError::Busy {
                what,
                wait: BUSY_WAIT,
            },
            // OutOfDiskSpace
            14031 => missing(
                "disk",
                "the server's disk is full: free some space there; the restore goes on where it stopped",
            ),
            code::CURSOR_NOT_FOUND => EngineError::Database {
                what,
                transient: true,
            },
            _ if self.is_unknown() => missing(
                "command",
                "the server does not have this command, or not in this form",
            ),
            _ => EngineError::Database {
                what,
                transient: false,
            },
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            write!(f, "{} ({})", self.message, self.code)
        } else {
            write!(f, "{} ({} {})", self.message, self.code, self.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;
    use fettler_model::ErrorClass;

    use super::*;

    #[test]
    fn refusals_have_the_class_that_tells_the_worker_what_to_do() {
        let class = |code: i32| {
            Refusal::of(&rawdoc! { "ok": 0.0, "code": code, "errmsg": "x" })
                .doing("s", "reading")
                .class()
        };
        assert_eq!(class(18), ErrorClass::Permanent);
        assert_eq!(class(13), ErrorClass::Permanent);
        assert_eq!(class(189), ErrorClass::Snooze);
        assert_eq!(class(43), ErrorClass::Transient);
        assert_eq!(class(0), ErrorClass::Permanent);
    }
}
