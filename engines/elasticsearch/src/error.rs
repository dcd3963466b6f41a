//! What a server says when it refuses, and what that means for the attempt.

use std::{fmt, time::Duration};

use fettler_engine::EngineError;
use serde_json::Value;

/// How long to stay away from a server that has no room for more requests, or no primary.
const BUSY_WAIT: Duration = Duration::from_secs(15);
/// The most that a message repeats of what a server said.
const REASON_LETTERS: usize = 300;

/// A refusal as the server tells it: the status of the answer, a type such as `index_not_found_exception`, and words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) kind: String,
    pub(crate) reason: String,
}

impl Refusal {
    /// Reads the body of an answer that is no success.
    pub(crate) fn read(status: u16, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        Self::of(status, &body["error"])
    }

    /// Reads what stands under `error` in an answer or in an item of one.
    pub(crate) fn of(status: u16, error: &Value) -> Self {
        let root = error["root_cause"].get(0).unwrap_or(error);
        let cause = if error["type"].is_string() {
            error
        } else {
            root
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut reason = match error {
            Value::String(words) => words.clone(),
            _ => text(&cause["reason"]),
        };
        // "all shards failed" says nothing, and what lies below does.
        if cause["type"] == "search_phase_execution_exception" && root["reason"].is_string() {
            reason = text(&root["reason"]);
        }
        if reason.chars().count() > REASON_LETTERS {
            reason = reason.chars().take(REASON_LETTERS).collect();
            reason.push('…');
        }
        Self {
            status,
            kind: text(&cause["type"]),
            reason,
        }
    }

    /// Whether what was asked for is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == 404
    }

    /// Whether the user may not do this.
    pub(crate) fn is_not_allowed(&self) -> bool {
        self.status == 403 && self.kind != "cluster_block_exception"
    }

    /// Whether the server does not know the request: it has not the module for it, or is too old.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self.status, 400 | 404 | 405 | 500)
            && (self.kind.is_empty()
                || self.reason.contains("no handler found")
                || self.reason.contains("Incorrect HTTP method")
                || self.kind == "invalid_index_name_exception"
                || self.reason.contains("must not start with"))
    }

    /// Whether trying again a little later may do.
    pub(crate) fn is_full(&self) -> bool {
        self.status == 429 || self.kind == "es_rejected_execution_exception"
    }

    /// What it means. A reason is repeated only where it holds none of the database's values.
    pub(crate) fn doing(&self, server: &str, doing: impl fmt::Display) -> EngineError {
        let what = format!("{doing}: {server} says: {self}");
        let missing = |code, remedy: &str| EngineError::Missing {
            code,
            what: what.clone(),
            remedy: remedy.to_owned(),
        };
        match self.status {
            401 => EngineError::LoginRefused {
                server: server.to_owned(),
                what: self.to_string(),
            },
            403 if self.kind == "cluster_block_exception" && self.reason.contains("flood") => {
                missing(
                    "disk",
                    "the server's disk is nearly full and it refuses writes: free some space there; the restore goes on where it stopped",
                )
            }
            403 if self.kind == "cluster_block_exception" => missing(
                "block",
                "an index or the cluster is blocked: take `index.blocks.*` or `cluster.blocks.*` away, or exclude the index",
            ),
            403 => missing(
                "permission",
                "give the user the privilege that the message names; `fettler preflight URL` lists what is needed",
            ),
            413 => missing(
                "http.max_content_length",
                "a document is larger than the server takes in one request: raise its `http.max_content_length`",
            ),
            429 if self.reason.contains("flood") || self.reason.contains("read-only") => missing(
                "disk",
                "the server's disk is nearly full and it refuses writes: free some space there; the restore goes on where it stopped",
            ),
            429 | 503 | 502 | 504 => EngineError::Busy {
                what,
                wait: BUSY_WAIT,
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
        write!(f, "{}", self.status)?;
        for words in [&self.kind, &self.reason] {
            if !words.is_empty() {
                write!(f, " {words}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use fettler_model::ErrorClass;
    use serde_json::json;

    use super::*;

    #[test]
    fn refusals_have_the_class_that_tells_the_worker_what_to_do() {
        let class = |status, kind: &str, reason: &str| {
            let body = json!({"error": {"type": kind, "reason": reason}});
            Refusal::read(status, body.to_string().as_bytes())
                .doing("s", "reading")
                .class()
        };
        assert_eq!(
            class(401, "security_exception", "missing"),
            ErrorClass::Permanent
        );
        assert_eq!(
            class(403, "security_exception", "no"),
            ErrorClass::Permanent
        );
        assert_eq!(
            class(429, "circuit_breaking_exception", "too large"),
            ErrorClass::Snooze
        );
        assert_eq!(
            class(503, "master_not_discovered_exception", ""),
            ErrorClass::Snooze
        );
        assert_eq!(class(400, "parsing_exception", "x"), ErrorClass::Permanent);
    }

    #[test]
    fn a_request_that_a_server_does_not_know_is_told_from_one_that_it_refuses() {
        for (status, body) in [
            (
                400,
                r#"{"error":"no handler found for uri [/_ilm/policy] and method [GET]"}"#,
            ),
            (
                405,
                r#"{"error":"Incorrect HTTP method for uri [/] and method [GET], allowed: [DELETE]","status":405}"#,
            ),
            (
                400,
                r#"{"error":{"root_cause":[{"type":"invalid_index_name_exception","reason":"Invalid index name [_data_stream], must not start with '_'."}],"type":"invalid_index_name_exception","reason":"Invalid index name [_data_stream], must not start with '_'."},"status":400}"#,
            ),
        ] {
            assert!(
                Refusal::read(status, body.as_bytes()).is_unknown(),
                "{body}"
            );
        }
        let body = r#"{"error":{"type":"security_exception","reason":"action is unauthorized"},"status":403}"#;
        let refused = Refusal::read(403, body.as_bytes());
        assert!(refused.is_not_allowed() && !refused.is_unknown());
    }

    #[test]
    fn what_lies_below_all_shards_failed_is_told() {
        let body = r#"{"error":{"root_cause":[{"type":"illegal_argument_exception","reason":"No mapping found for [_shard_doc]"}],"type":"search_phase_execution_exception","reason":"all shards failed"},"status":400}"#;
        let refused = Refusal::read(400, body.as_bytes());
        assert!(refused.reason.contains("_shard_doc"), "{refused}");
    }
}
