//! What a server says when it refuses, and what that means for the attempt.

use std::{fmt, io, sync::Arc, time::Duration};

use fettler_engine::EngineError;

/// How long to stay away from a server that has no connection left.
const BUSY_WAIT: Duration = Duration::from_secs(30);
/// How long to stay away from a table that somebody else holds.
const LOCKED_WAIT: Duration = Duration::from_secs(60);

/// An error as the server tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerMessage {
    pub(crate) severity: String,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) detail: String,
    pub(crate) hint: String,
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Details may hold values of rows ("Key (id)=(7) already exists"), so they stay out; and so does the value
        // that a data exception names ("invalid input syntax for type integer: "x"").
        let message = match self.message.split_once(": \"") {
            Some((begin, _value)) if self.code.starts_with("22") => begin,
            _ => &self.message,
        };
        write!(f, "{message} ({})", self.code)
    }
}

/// What went wrong on a session.
#[derive(Debug)]
pub(crate) enum WireErrorKind {
    Io(io::Error),
    Server(Box<ServerMessage>),
    Protocol(String),
}

/// What went wrong on a session, and with which server.
#[derive(Debug)]
pub(crate) struct WireError {
    pub(crate) server: Arc<str>,
    pub(crate) kind: WireErrorKind,
}

impl WireError {
    /// The server's code (SQLSTATE) where it was the server that refused.
    pub(crate) fn code(&self) -> Option<&str> {
        match &self.kind {
            WireErrorKind::Server(message) => Some(&message.code),
            _ => None,
        }
    }

    /// What it means, with what was being done.
    pub(crate) fn doing(self, doing: impl fmt::Display) -> EngineError {
        let server = self.server;
        match self.kind {
            WireErrorKind::Io(error) => EngineError::Unreachable {
                server: server.to_string(),
                what: format!("the connection was lost ({doing}): {error}"),
            },
            WireErrorKind::Protocol(what) => EngineError::Database {
                what: format!("{server} answered what was not expected ({doing}): {what}"),
                transient: false,
            },
            WireErrorKind::Server(message) => of_server(&server, &message, &doing.to_string()),
        }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            WireErrorKind::Io(error) => error.fmt(f),
            WireErrorKind::Server(message) => message.fmt(f),
            WireErrorKind::Protocol(what) => f.write_str(what),
        }
    }
}

/// What a server's refusal means.
pub(crate) fn of_server(server: &str, message: &ServerMessage, doing: &str) -> EngineError {
    let what = format!("{doing}: {message}");
    match message.code.as_str() {
        "28P01" | "28000" => EngineError::LoginRefused {
            server: server.to_owned(),
            what: message.message.clone(),
        },
        "3D000" => EngineError::Missing {
            code: "database",
            what: format!("{server}: {}", message.message),
            remedy: "check the database's name in the URL, or create it".to_owned(),
        },
        "42501" => EngineError::Missing {
            code: "permission",
            what,
            remedy: "give the role that Fettler logs in as the right that the message names, or use a role that has it"
                .to_owned(),
        },
        "53300" => EngineError::Busy {
            what: format!("{server} has no connection left: {}", message.message),
            wait: BUSY_WAIT,
        },
        "55P03" => EngineError::Busy {
            what,
            wait: LOCKED_WAIT,
        },
        "53100" => EngineError::Missing {
            code: "disk_space",
            what: format!("the disk of {server} is full ({doing})"),
            remedy: "free some space there, then try again".to_owned(),
        },
        "53200" => EngineError::Database {
            what: format!(
                "{what}. Where a lock table is full, raise max_locks_per_transaction on the server"
            ),
            transient: true,
        },
        // A row is one message of the protocol, and a message has at most 1 GB.
        "54000" | "XX000"
            if message.message.contains("invalid memory alloc request size")
                || message.message.contains("string buffer") =>
        {
            EngineError::Missing {
                code: "row_too_large",
                what: format!("{doing}: a row is larger than the 1 GB that the server can send ({message})"),
                remedy: "make the row smaller, or leave the table's rows out with --exclude".to_owned(),
            }
        }
        code => EngineError::Database {
            transient: code.starts_with("08")
                || code.starts_with("40")
                || code.starts_with("53")
                || code.starts_with("57"),
            what,
        },
    }
}

#[cfg(test)]
mod tests {
    use fettler_model::ErrorClass;

    use super::*;

    #[test]
    fn p9_no_value_of_a_row_is_told() {
        let message = ServerMessage {
            code: "22P02".to_owned(),
            message: "invalid input syntax for type integer: \"secret\"".to_owned(),
            detail: "Failing row contains (secret).".to_owned(),
            ..ServerMessage::default()
        };
        assert_eq!(
            of_server("s", &message, "restoring t").to_string(),
            "restoring t: invalid input syntax for type integer (22P02)"
        );
    }

    #[test]
    fn refusals_have_the_class_that_tells_the_worker_what_to_do() {
        let class = |code: &str| {
            let message = ServerMessage {
                code: code.to_owned(),
                ..ServerMessage::default()
            };
            of_server("s", &message, "reading").class()
        };
        assert_eq!(class("28P01"), ErrorClass::Permanent);
        assert_eq!(class("53300"), ErrorClass::Snooze);
        assert_eq!(class("55P03"), ErrorClass::Snooze);
        assert_eq!(class("40P01"), ErrorClass::Transient);
        assert_eq!(class("57P01"), ErrorClass::Transient);
        assert_eq!(class("42601"), ErrorClass::Permanent);
    }
}
