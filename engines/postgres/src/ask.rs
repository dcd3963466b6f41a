//! Answers questions of checks: one session that writes nothing, each question a statement of its own within its time, all
//! values with their types, by way of the server's own JSON.

use std::time::Instant;

use fettler_engine::{Answer, Answers, EngineError, Question, Refusal, Row, Target};
use tokio_util::sync::CancellationToken;

use crate::{
    catalogue::ServerFacts,
    connect::connect,
    error::{WireError, WireErrorKind},
    identify::VISITOR,
    params::Params,
    wire::Session,
};

/// What holds for all questions: nothing is written, no lock is waited for longer than a second, names mean the
/// catalogue's own things whatever lies in the database, and no processors are taken from others.
const SETTLE: &str = "
    SELECT pg_catalog.set_config('search_path', '', false);
    SET default_transaction_read_only = on; SET lock_timeout = 1000; SET client_min_messages = error;
    SET TimeZone = 'UTC'; SET max_parallel_workers_per_gather = 0";

/// Asks.
pub(crate) async fn ask(
    target: &Target,
    questions: &[Question],
    stop: &CancellationToken,
) -> Result<Answers, EngineError> {
    stop.run_until_cancelled(asked(target, questions))
        .await
        .ok_or(EngineError::Stopped)?
}

async fn asked(target: &Target, questions: &[Question]) -> Result<Answers, EngineError> {
    let params = Params::of(target)?;
    let began = Instant::now();
    let mut session = connect(&params, VISITOR).await?;
    let connected_in = began.elapsed();
    let server = ServerFacts::read(&mut session).await?;
    session
        .execute(SETTLE)
        .await
        .map_err(|error| error.doing("preparing to ask"))?;
    let began = Instant::now();
    session
        .one("SELECT 1")
        .await
        .map_err(|error| error.doing("asking how long an answer takes"))?;
    let answered_in = began.elapsed();
    // 10.23 is 100023, 9.6.24 would be 90624.
    let version = (server.major(), server.version % 10_000);
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        let answer = if question.versions.hold(version) {
            match one(&mut session, question).await {
                Ok(rows) => Answer::of(question.id.clone(), rows),
                Err(error) => Answer::refused(question.id.clone(), refusal(error, question)?),
            }
        } else {
            Answer::refused(question.id.clone(), Refusal::OtherVersion)
        };
        answers.push(answer);
    }
    session.close().await;
    Ok(Answers {
        version: server.version_text,
        connected_in,
        answered_in,
        answers,
    })
}

/// Why one question has no answer.
enum Unanswered {
    Wire(WireError),
    Lacks(String),
    NoJson(String),
}

impl From<WireError> for Unanswered {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

async fn one(session: &mut Session, question: &Question) -> Result<Vec<Row>, Unanswered> {
    if let Some(role) = &question.needs {
        // Of a role that this version does not have nobody is a member but a superuser.
        let may = session
            .query(&format!(
                "SELECT 1 FROM pg_catalog.pg_roles r WHERE r.rolname = {} AND pg_has_role(current_user, r.oid, 'USAGE')
                 UNION ALL SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = current_user AND rolsuper",
                crate::names::literal(role)
            ))
            .await?;
        if may.is_empty() {
            return Err(Unanswered::Lacks(role.clone()));
        }
    }
    // Time-outs in between would end the session's next statement: each sets its own.
    let sql = format!(
        "SET statement_timeout = {}; \
         SELECT coalesce(json_agg(row_to_json(answer)), '[]') FROM (SELECT * FROM (\n{}\n) AS asked LIMIT {}) AS answer",
        question.timeout.as_millis(),
        question.text.trim().trim_end_matches(';'),
        Answers::MOST_ROWS + 1,
    );
    let row = session.one(&sql).await?;
    let text = row
        .text(0)
        .map_err(|error| Unanswered::NoJson(error.to_string()))?;
    serde_json::from_str(text).map_err(|error| Unanswered::NoJson(error.to_string()))
}

/// What the server's refusal means for the one question; an error where there is no session any more.
fn refusal(error: Unanswered, question: &Question) -> Result<Refusal, EngineError> {
    let error = match error {
        Unanswered::Lacks(role) => {
            return Ok(Refusal::Permission(format!(
                "it is no member of {role}, and would see a part only ({})",
                crate::grants::membership(&role, "its name")
            )));
        }
        Unanswered::NoJson(what) => return Ok(Refusal::Failed(what)),
        Unanswered::Wire(error) => error,
    };
    let message = match &error.kind {
        WireErrorKind::Server(message) => message.to_string(),
        _ => return Err(error.doing("asking about its health")),
    };
    match error.code() {
        Some("42501") => Ok(Refusal::Permission(message)),
        Some("57014") => Ok(Refusal::TimedOut(question.timeout.as_secs())),
        // The server shuts down, or has ended the session.
        Some("57P01" | "57P02" | "57P03") => Err(error.doing("asking about its health")),
        _ => Ok(Refusal::Failed(message)),
    }
}
