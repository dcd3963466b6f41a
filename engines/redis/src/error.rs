//! What a server says when it refuses, and what that means for the attempt.

use std::{fmt, time::Duration};

use fettler_engine::EngineError;
use redis::{ErrorKind, RedisError, ServerError};

/// How long to stay away from a server that loads its data or has no connection left.
const BUSY_WAIT: Duration = Duration::from_secs(15);

/// A refusal as the server tells it: a code such as `NOPERM`, and words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: String,
    pub(crate) message: String,
}

impl Refusal {
    /// Whether the command is not there, by its name or for this user.
    pub(crate) fn is_not_allowed(&self) -> bool {
        self.code == "NOPERM" || self.is_unknown()
    }

    /// Whether the server does not know the command, or this form of it.
    pub(crate) fn is_unknown(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        self.code == "ERR"
            && (message.contains("unknown command")
                || message.contains("unknown subcommand")
                || message.contains("not supported")
                || message.contains("disabled"))
    }

    /// What it means.
    pub(crate) fn doing(&self, server: &str, doing: impl fmt::Display) -> EngineError {
        let what = format!("{doing}: {server} says: {self}");
        let missing = |code, remedy: &str| EngineError::Missing {
            code,
            what: what.clone(),
            remedy: remedy.to_owned(),
        };
        match self.code.as_str() {
            "WRONGPASS" | "NOAUTH" | "DENIED" => EngineError::LoginRefused {
                server: server.to_owned(),
                what: self.to_string(),
            },
            "ERR" if self.message.contains("invalid password") || self.message.contains("AUTH") => {
                EngineError::LoginRefused {
                    server: server.to_owned(),
                    what: self.to_string(),
                }
            }
            "NOPERM" => missing(
                "permission",
                "give the user the right that the message names (`ACL SETUSER name +command`); `fettler preflight URL` lists what is needed",
            ),
            "OOM" => missing(
                "memory",
                "the server has reached its `maxmemory`: raise it, or free some memory there; the restore goes on where it stopped",
            ),
            "READONLY" => missing("primary", "the server is a replica: name its primary"),
            "MISCONF" => missing(
                "persistence",
                "the server cannot write its own RDB and therefore refuses writes: look at its log and its disk",
            ),
            // A slot that moves, or a failover: both end.
            "LOADING" | "BUSY" | "MASTERDOWN" | "NOMASTERLINK" | "TRYAGAIN" | "CLUSTERDOWN"
            | "MOVED" | "ASK" => EngineError::Busy {
                what,
                wait: BUSY_WAIT,
            },
            "ERR" if self.message.contains("max number of clients") => EngineError::Busy {
                what,
                wait: BUSY_WAIT,
            },
            "ERR" if self.message.contains("DB index is out of range") => missing(
                "database",
                "the server has fewer databases than are needed: raise its `databases`, or choose others",
            ),
            "ERR" if self.is_unknown() => missing(
                "command",
                "the server is too old for this, or the command was renamed or switched off there",
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
        write!(f, "{} {}", self.code, self.message)
    }
}

impl From<&ServerError> for Refusal {
    fn from(error: &ServerError) -> Self {
        Self {
            code: error.code().to_owned(),
            message: error.details().unwrap_or_default().to_owned(),
        }
    }
}

/// The refusal inside an error of the library, where it was the server that refused.
pub(crate) fn refusal_of(error: &RedisError) -> Option<Refusal> {
    match error.kind() {
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed => {
            let (mut code, mut message) = (
                error.code().unwrap_or("ERR").to_owned(),
                error.detail().unwrap_or_default().to_owned(),
            );
            if error.kind() == ErrorKind::AuthenticationFailed {
                // The library puts words of its own before those of the server.
                code = "WRONGPASS".to_owned();
                if message.is_empty() {
                    message = "the user or the password is wrong".to_owned();
                }
            }
            Some(Refusal { code, message })
        }
        _ => None,
    }
}

/// What an error of the library means.
pub(crate) fn of_library(
    server: &str,
    error: &RedisError,
    doing: impl fmt::Display,
) -> EngineError {
    match refusal_of(error) {
        Some(refusal) => refusal.doing(server, doing),
        None if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => {
            EngineError::Unreachable {
                server: server.to_owned(),
                what: format!("the connection was lost ({doing}): {error}"),
            }
        }
        None => EngineError::Database {
            what: format!(
                "{server} answered what was not expected ({doing}): {}",
                error.category()
            ),
            transient: false,
        },
    }
}

#[cfg(test)]
mod tests {
    use fettler_model::ErrorClass;

    use super::*;

    #[test]
    fn refusals_have_the_class_that_tells_the_worker_what_to_do() {
        let class = |code: &str, message: &str| {
            let refusal = Refusal {
                code: code.to_owned(),
                message: message.to_owned(),
            };
            refusal.doing("s", "reading").class()
        };
        assert_eq!(class("WRONGPASS", ""), ErrorClass::Permanent);
        assert_eq!(class("OOM", ""), ErrorClass::Permanent);
        assert_eq!(class("LOADING", ""), ErrorClass::Snooze);
        assert_eq!(
            class("ERR", "max number of clients reached"),
            ErrorClass::Snooze
        );
        assert_eq!(
            class("ERR", "value is not an integer"),
            ErrorClass::Permanent
        );
    }
}
