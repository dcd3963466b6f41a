//! Answers questions of checks. A question is one or more commands that read, as plain JSON in a line each, with what to take of
//! their answers ([`Picked`] says how that is written): `{"serverStatus": 1}`. They go to the database `admin`. Dates are seconds
//! since 1970 there, and so are the oplog's moments. Some words stand alone instead, where one answer does not say it:
//!
//! - `REPLICA MEMBERS`: a line for each member of the set, with how far it is behind the newest;
//! - `OPLOG`: how much time the oplog spans, and how full it is;
//! - `REDUNDANT INDEXES`, `UNUSED INDEXES`: a line for each;
//! - `COLLECTIONS`: a line for each, with what of its file is free;
//! - `PROFILING`: a line for each database, with the profiler's level;
//! - those of an audit ([`audit`]), such as `USERS`.
//!
//! A command that the server does not know has nothing to ask of: its check does not apply.

mod audit;
mod named;
pub(crate) mod plain;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bson::{Document, RawDocumentBuf, rawdoc};
use fettler_engine::{
    Answer, Answers, EngineError, Picked, Question, Refusal as Unanswered, Row, Target,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Refusal, code},
    params::Params,
    session::{Session, VISITOR},
};

/// What may be asked: commands that read and tell nothing of documents.
const READING: [&str; 14] = [
    "serverStatus",
    "replSetGetStatus",
    "replSetGetConfig",
    "currentOp",
    "hello",
    "isMaster",
    "buildInfo",
    "hostInfo",
    "getParameter",
    "getCmdLineOpts",
    "listDatabases",
    "dbStats",
    "connPoolStats",
    "listShards",
];
/// How much longer than the server is waited for: it ends a command by itself when its time is over.
const GRACE: Duration = Duration::from_secs(1);
/// The words for what is being done.
const DOING: &str = "asking about the server's health";
/// The server has no replica set (`NoReplicationEnabled`).
const NO_REPLICA_SET: i32 = 76;
/// The command ran out of its time (`MaxTimeMSExpired`).
const OUT_OF_TIME: i32 = 50;

/// Why a question has no answer: the server's word, or the connection's end.
#[derive(Debug)]
enum Failed {
    Refused(Unanswered),
    Lost(EngineError),
}

impl From<EngineError> for Failed {
    fn from(error: EngineError) -> Self {
        Self::Lost(error)
    }
}

/// A server that is asked. Answers that several questions want are kept: they are asked for once.
struct Asked {
    params: Params,
    session: Session,
    /// When the running question has to be answered.
    until: Instant,
    known: BTreeMap<String, Result<Value, Unanswered>>,
    audit: audit::Known,
}

/// Asks.
pub(crate) async fn ask(
    target: &Target,
    questions: &[Question],
    stop: &CancellationToken,
) -> Result<Answers, EngineError> {
    let params = Params::of(target)?;
    let began = Instant::now();
    let session = Session::open(&params, VISITOR, stop).await?;
    let connected_in = began.elapsed();
    let mut asked = Asked {
        params,
        session,
        until: Instant::now(),
        known: BTreeMap::new(),
        audit: audit::Known::default(),
    };
    let began = Instant::now();
    asked
        .session
        .run("admin", rawdoc! { "ping": 1 }, DOING)
        .await?;
    let answered_in = began.elapsed();
    let build = asked
        .session
        .run("admin", rawdoc! { "buildInfo": 1 }, DOING)
        .await?;
    let version = build.get_str("version").unwrap_or_default().to_owned();
    let numbers = numbers_of(&version);
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        let id = question.id.clone();
        if !question.versions.hold(numbers) {
            answers.push(Answer::refused(id, Unanswered::OtherVersion));
            continue;
        }
        let limit = question.timeout.max(Duration::from_millis(1));
        asked.until = Instant::now() + limit;
        let answered = tokio::time::timeout(limit + GRACE, asked.rows(question.text.trim())).await;
        answers.push(match answered {
            Err(_) => {
                // An answer is on its way to nobody: the connection is of no more use.
                asked.session = Session::open(&asked.params, VISITOR, stop).await?;
                Answer::refused(id, Unanswered::TimedOut(limit.as_secs()))
            }
            Ok(Ok(rows)) => Answer::of(id, rows),
            Ok(Err(Failed::Refused(refusal))) => Answer::refused(id, refusal),
            Ok(Err(Failed::Lost(error))) => return Err(error),
        });
    }
    Ok(Answers {
        version,
        connected_in,
        answered_in,
        answers,
    })
}

impl Asked {
    async fn rows(&mut self, text: &str) -> Result<Vec<Row>, Failed> {
        if let Some(rows) = self.audit_rows(text).await {
            return rows;
        }
        match text {
            "REPLICA MEMBERS" => self.replica_members().await,
            "OPLOG" => self.oplog().await,
            "REDUNDANT INDEXES" => self.redundant_indexes().await,
            "UNUSED INDEXES" => self.unused_indexes().await,
            "COLLECTIONS" => self.collections_on_disk().await,
            "PROFILING" => self.profiling().await,
            _ => {
                let requests = Picked::read(text, |line| line.starts_with('{')).map_err(unread)?;
                let mut asked = Vec::with_capacity(requests.len());
                for request in requests {
                    let command = command_of(&request.request).map_err(unread)?;
                    let answer = self.told(&request.request, "admin", &command).await?;
                    asked.push((request, answer));
                }
                Picked::rows(&asked).map_err(Failed::Refused)
            }
        }
    }

    /// What a command is answered; one that was sent before is not sent again.
    async fn told(
        &mut self,
        text: &str,
        database: &str,
        command: &RawDocumentBuf,
    ) -> Result<Value, Failed> {
        if let Some(known) = self.known.get(text) {
            return known.clone().map_err(Failed::Refused);
        }
        let answer = self
            .run(database, command.clone())
            .await
            .and_then(|answer| {
                Document::try_from(answer.as_ref())
                    .map(|document| plain::document(&document))
                    .map_err(|error| unread(format!("an answer cannot be read: {error}")))
            });
        let kept = match &answer {
            Ok(value) => Ok(value.clone()),
            Err(Failed::Refused(refusal)) => Err(refusal.clone()),
            Err(Failed::Lost(_)) => return answer,
        };
        // What ran out of its time may be asked again with more of it.
        if !matches!(kept, Err(Unanswered::TimedOut(_))) {
            self.known.insert(text.to_owned(), kept);
        }
        answer
    }

    /// Sends a command that has the rest of the question's time.
    async fn run(
        &mut self,
        database: &str,
        mut command: RawDocumentBuf,
    ) -> Result<RawDocumentBuf, Failed> {
        let left = self.until.saturating_duration_since(Instant::now());
        let milliseconds = i64::try_from(left.as_millis()).unwrap_or(i64::MAX).max(1);
        crate::raw::put(&mut command, "maxTimeMS", milliseconds);
        self.session
            .try_run(database, command)
            .await?
            .map_err(|refusal| Failed::Refused(unanswered(&refusal)))
    }
}

/// A command of a question.
fn command_of(text: &str) -> Result<RawDocumentBuf, String> {
    let value: serde_json::Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| format!("{text:?} is no command in JSON: {error}"))?;
    let name = value.keys().next().cloned().unwrap_or_default();
    if !READING.contains(&name.as_str()) {
        return Err(format!(
            "{name:?} is no command that a check may send; there are {}",
            READING.join(", ")
        ));
    }
    RawDocumentBuf::try_from(&plain::bson(&value))
        .map_err(|error| format!("{text:?} is no command: {error}"))
}

fn unread(what: impl Into<String>) -> Failed {
    Failed::Refused(Unanswered::Failed(what.into()))
}

fn unanswered(refusal: &Refusal) -> Unanswered {
    match refusal.code {
        code::UNAUTHORIZED => Unanswered::Permission(refusal.to_string()),
        OUT_OF_TIME => Unanswered::TimedOut(0),
        NO_REPLICA_SET => Unanswered::OtherVersion,
        _ if refusal.is_unknown() => Unanswered::OtherVersion,
        _ => Unanswered::Failed(refusal.to_string()),
    }
}

/// The first two numbers of a version.
fn numbers_of(version: &str) -> (u32, u32) {
    let mut numbers = version
        .trim_start_matches('v')
        .split('.')
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_commands_that_read_are_sent() {
        let command = command_of(r#"{"currentOp": 1, "secs_running": {"$gte": 60}}"#).unwrap();
        assert_eq!(
            command
                .get_document("secs_running")
                .unwrap()
                .get_i32("$gte")
                .unwrap(),
            60
        );
        for wrong in [
            r#"{"dropDatabase": 1}"#,
            r#"{"find": "users", "serverStatus": 1}"#,
            r#"{"x": 1"#,
            "{}",
        ] {
            assert!(command_of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_right_that_is_missing_is_told_from_what_is_not_there() {
        let of = |answer: &RawDocumentBuf| unanswered(&Refusal::of(answer));
        let refused = rawdoc! { "ok": 0.0, "code": 13, "errmsg": "not authorized on admin" };
        assert!(matches!(of(&refused), Unanswered::Permission(_)));
        let refused = rawdoc! { "ok": 0.0, "code": 76, "errmsg": "not running with --replSet" };
        assert_eq!(of(&refused), Unanswered::OtherVersion);
        let refused = rawdoc! { "ok": 0.0, "code": 11600, "errmsg": "shutting down" };
        assert!(matches!(of(&refused), Unanswered::Failed(_)));
    }
}
