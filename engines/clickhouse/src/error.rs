//! What a server says when it refuses, and what that means for the attempt.

use std::{fmt, time::Duration};

use fettler_engine::EngineError;

/// How long to stay away from a server that has too much to do.
const BUSY_WAIT: Duration = Duration::from_secs(30);
/// Bytes of a message that are shown.
const SHOWN_BYTES: usize = 500;

/// The numbers that the server's source gives its errors (`src/Common/ErrorCodes.cpp`).
pub(crate) mod codes {
    pub(crate) const UNKNOWN_TABLE: u32 = 60;
    pub(crate) const READONLY: u32 = 164;
    pub(crate) const NOT_ENOUGH_SPACE: u32 = 243;
    pub(crate) const BAD_ARGUMENTS: u32 = 36;
    pub(crate) const INVALID_CONFIG_PARAMETER: u32 = 318;
    pub(crate) const UNKNOWN_DISK: u32 = 479;
    pub(crate) const TOO_LARGE_TO_DROP: u32 = 359;
    pub(crate) const ACCESS_DENIED: u32 = 497;
    pub(crate) const S3_ERROR: u32 = 499;
    pub(crate) const BACKUP_NOT_FOUND: u32 = 599;
    pub(crate) const BACKUP_ENTRY_NOT_FOUND: u32 = 605;
}

/// A refusal as the server tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The number of the error; zero where the answer holds none.
    pub(crate) code: u32,
    pub(crate) message: String,
}

impl Refusal {
    /// Reads the body of an answer that is an error: `Code: 60. DB::Exception: …`, or as servers of 2018 write it,
    /// `Code: 60, e.displayText() = DB::Exception: …, e.what() = DB::Exception`.
    pub(crate) fn read(body: &str) -> Self {
        let body = body.trim();
        let code = body
            .find("Code: ")
            .map(|at| &body[at + "Code: ".len()..])
            .and_then(|rest| {
                let end = rest.find(|letter: char| !letter.is_ascii_digit())?;
                rest[..end].parse().ok()
            })
            .unwrap_or(0);
        let message = body
            .find("DB::Exception: ")
            .map_or(body, |at| &body[at + "DB::Exception: ".len()..]);
        let message = message
            .split(", e.what() = ")
            .next()
            .unwrap_or(message)
            .trim();
        let mut end = message.len().min(SHOWN_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            code,
            message: message[..end].to_owned(),
        }
    }

    /// Whether the server does not know such a statement: SYNTAX_ERROR, NOT_IMPLEMENTED, and what the server of 2018 calls unknown kinds
    /// of statements.
    pub(crate) fn is_not_understood(&self) -> bool {
        matches!(self.code, 62 | 48 | 78)
    }

    /// Whether the user may not do it.
    pub(crate) fn is_not_allowed(&self) -> bool {
        // READONLY, DATABASE_ACCESS_DENIED, ACCESS_DENIED
        matches!(self.code, codes::READONLY | 291 | 497)
    }

    /// What it means.
    pub(crate) fn doing(&self, server: &str, doing: impl fmt::Display) -> EngineError {
        let what = format!("{doing}: {server} says: {self}");
        match self.code {
            // UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, IP_ADDRESS_NOT_ALLOWED, AUTHENTICATION_FAILED
            192..=195 | 516 => EngineError::LoginRefused {
                server: server.to_owned(),
                what: self.to_string(),
            },
            _ if self.is_not_allowed() => EngineError::Missing {
                code: "grant",
                what,
                remedy: format!(
                    "give the user what it needs: {}",
                    *crate::grants::FOR_BACKUPS
                ),
            },
            codes::TOO_LARGE_TO_DROP => EngineError::Missing {
                code: "drop_limit",
                what,
                remedy: "set `max_table_size_to_drop` and `max_partition_size_to_drop` to 0 in the server's configuration, or make the file that the server names".to_owned(),
            },
            codes::NOT_ENOUGH_SPACE => EngineError::Missing {
                code: "space",
                what,
                remedy: "free some space on the server".to_owned(),
            },
            // TOO_MANY_SIMULTANEOUS_QUERIES, TOO_MANY_PARTS, MEMORY_LIMIT_EXCEEDED
            202 | 252 | 241 => EngineError::Busy {
                what,
                wait: BUSY_WAIT,
            },
            // TIMEOUT_EXCEEDED, SOCKET_TIMEOUT, NETWORK_ERROR, QUERY_WAS_CANCELLED, KEEPER_EXCEPTION, ABORTED
            159 | 209 | 210 | 394 | 999 | 236 => EngineError::Database {
                what,
                transient: true,
            },
            _ => EngineError::Database {
                what,
                transient: false,
            },
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.code == 0 {
            f.write_str(&self.message)
        } else {
            write!(f, "{} (code {})", self.message, self.code)
        }
    }
}

#[cfg(test)]
mod tests {
    use fettler_model::ErrorClass;

    use super::*;

    #[test]
    fn both_forms_of_an_error_are_read() {
        let new = Refusal::read(
            "Code: 60. DB::Exception: Table a.b does not exist. (UNKNOWN_TABLE) (version 26.9)\n",
        );
        assert_eq!(new.code, 60);
        assert!(new.message.starts_with("Table a.b"));
        let old = Refusal::read(
            "Code: 47, e.displayText() = DB::Exception: Unknown identifier: x, e.what() = DB::Exception",
        );
        assert_eq!(
            (old.code, old.message.as_str()),
            (47, "Unknown identifier: x")
        );
        assert_eq!(Refusal::read("Bad gateway").code, 0);
    }

    #[test]
    fn refusals_have_the_class_that_tells_the_worker_what_to_do() {
        let class = |code| {
            Refusal {
                code,
                message: String::new(),
            }
            .doing("s", "reading")
            .class()
        };
        assert_eq!(class(516), ErrorClass::Permanent);
        assert_eq!(class(202), ErrorClass::Snooze);
        assert_eq!(class(210), ErrorClass::Transient);
        assert_eq!(class(60), ErrorClass::Permanent);
    }
}
