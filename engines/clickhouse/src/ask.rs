//! Answers questions of checks: a question is one SELECT, sent with settings under which nothing can be written, with a limit
//! of time that the server keeps, and read up to a limit of bytes.
//!
//! **What is hidden.** Many of the server's own tables show a user only those tables that it may see, and say nothing of the
//! others: an empty answer would pass for a sound one. A question that looks at such a table names the privilege
//! ([`Question::needs`]), which is asked for first.
//!
//! Three words stand alone instead of a SELECT, for audits: [`audit_words`] says what they give.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fettler_engine::{Answer, Answers, EngineError, Question, Refusal as Unanswered, Row, Target};
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    audit_words,
    error::Refusal,
    http::{Answer as Told, Session, WAIT_END},
    params::Params,
};

/// Bytes of an answer that are read: hundreds of long lines.
const MOST_BYTES: usize = 8 << 20;
/// What the server is told as the most rows; it may send a block's rest beyond it.
const MOST_ROWS: &str = "1000";
/// What is told of a limit that the server kept by itself.
const SILENCE: Duration = Duration::ZERO;
/// The words for what is being done.
const DOING: &str = "asking about the server's health";
/// The user's own setting of what it may change: nothing of data, nothing at all, or all but data.
const READS_ONLY: &str = "1";

/// The part of `FORMAT JSON` that is wanted.
#[derive(Deserialize)]
struct Table {
    meta: Vec<Column>,
    data: Vec<Row>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    r#type: String,
}

/// A server that is asked, and what was found out about the user.
struct Asked {
    session: Session,
    /// The user's own `readonly`.
    readonly: String,
    /// Privileges that were asked for, and whether the user has them.
    privileges: BTreeMap<String, Result<(), Unanswered>>,
}

/// Asks.
pub(crate) async fn ask(
    target: &Target,
    questions: &[Question],
    stop: &CancellationToken,
) -> Result<Answers, EngineError> {
    let params = Params::of(target)?;
    let began = Instant::now();
    let session = Session::open(&params, "fettler", stop).await?;
    let connected_in = began.elapsed();
    let began = Instant::now();
    session.rows("SELECT '1'", DOING).await?;
    let answered_in = began.elapsed();
    let readonly = session
        .rows(
            "SELECT value FROM system.settings WHERE name = 'readonly'",
            DOING,
        )
        .await?
        .into_iter()
        .flatten()
        .next()
        .unwrap_or_default();
    let mut asked = Asked {
        session,
        readonly,
        privileges: BTreeMap::new(),
    };
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        answers.push(asked.answer(question).await?);
    }
    Ok(Answers {
        version: asked.session.version.clone(),
        connected_in,
        answered_in,
        answers,
    })
}

impl Asked {
    async fn answer(&mut self, question: &Question) -> Result<Answer, EngineError> {
        let id = question.id.clone();
        if !question.versions.hold(self.session.version_numbers()) {
            return Ok(Answer::refused(id, Unanswered::OtherVersion));
        }
        let limit = question.timeout.max(Duration::from_secs(1));
        match tokio::time::timeout(limit, self.rows(question, limit)).await {
            Err(_) => Ok(Answer::refused(id, Unanswered::TimedOut(limit.as_secs()))),
            Ok(rows) => Ok(match rows? {
                Ok(rows) => Answer::of(id, rows),
                Err(refusal) => Answer::refused(id, refusal),
            }),
        }
    }

    async fn rows(
        &mut self,
        question: &Question,
        limit: Duration,
    ) -> Result<Result<Vec<Row>, Unanswered>, EngineError> {
        if let Some(privilege) = &question.needs
            && let Err(refusal) = self.may(privilege).await?
        {
            return Ok(Err(refusal));
        }
        let text = question.text.trim();
        match text {
            "ANONYMOUS" => return Ok(audit_words::anonymous(&self.session).await),
            "NETWORK" => return Ok(Ok(audit_words::network(&self.session).await)),
            "USERS" => return audit_words::users(&self.session).await,
            _ => {}
        }
        if !is_query(text) {
            return Ok(Err(Unanswered::Failed(
                "a question is one SELECT, without a semicolon".to_owned(),
            )));
        }
        let seconds = limit.as_secs().to_string();
        let mut settings = vec![];
        // Who may change nothing may not even set a limit; the connection ends then, and with it the statement.
        if self.readonly != READS_ONLY {
            settings.extend([
                ("max_execution_time", seconds.as_str()),
                ("max_result_rows", MOST_ROWS),
                ("result_overflow_mode", "break"),
                ("max_threads", "1"),
                ("cancel_http_readonly_queries_on_client_close", "1"),
                ("output_format_json_quote_64bit_integers", "0"),
                ("output_format_json_quote_denormals", "0"),
                WAIT_END,
            ]);
            if self.readonly == "0" {
                settings.push(("readonly", READS_ONLY));
            }
        }
        let sql = format!("{text}\nFORMAT JSON");
        let told: Told<Option<Vec<u8>>> = self
            .session
            .try_bytes(&sql, &settings, MOST_BYTES, DOING)
            .await?;
        Ok(match told {
            Err(refusal) => Err(unanswered(&refusal, limit)),
            Ok(None) => Err(Unanswered::Failed(format!(
                "the answer is longer than {MOST_BYTES} bytes"
            ))),
            Ok(Some(body)) => read(&body, limit),
        })
    }

    /// Whether the user has a privilege on all of the server.
    async fn may(&mut self, privilege: &str) -> Result<Result<(), Unanswered>, EngineError> {
        if let Some(known) = self.privileges.get(privilege) {
            return Ok(known.clone());
        }
        let lacks = Unanswered::Permission(format!(
            "it needs the privilege {privilege} ON *.*, and would see a part only without"
        ));
        let check = format!("CHECK GRANT {privilege} ON *.*");
        let held = match self.session.try_rows(&check, &[], DOING).await? {
            Ok(rows) => rows.first().is_some_and(|row| row[0] == "1"),
            // Before 24.10 there is no such question, and before 20.4 there are no privileges.
            Err(_) if self.session.version_numbers() < (20, 4) => true,
            Err(_) => {
                let shown = self.session.try_lines("SHOW GRANTS", DOING).await;
                match shown {
                    Ok(Ok(lines)) => lines.iter().any(|line| grants(line, privilege)),
                    Ok(Err(refusal)) => {
                        return Ok(Err(Unanswered::Permission(format!(
                            "what the user may see cannot be told: {refusal}"
                        ))));
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let known = if held { Ok(()) } else { Err(lacks) };
        self.privileges.insert(privilege.to_owned(), known.clone());
        Ok(known)
    }
}

/// Whether a line of `SHOW GRANTS` gives a privilege on everything. A privilege to read, or to show all, holds that to show
/// tables and columns.
fn grants(line: &str, privilege: &str) -> bool {
    let Some((privileges, place)) = line
        .strip_prefix("GRANT ")
        .and_then(|rest| rest.split_once(" ON "))
    else {
        return false;
    };
    place.starts_with("*.*")
        && privileges.split(", ").any(|one| {
            one == privilege
                || one == "ALL"
                || (privilege.starts_with("SHOW ") && one == "SHOW")
                || (privilege == "SHOW TABLES" && one == "SELECT")
        })
}

/// Whether a text is one statement that reads. The server refuses the rest too, which is told in fewer words here.
fn is_query(text: &str) -> bool {
    let begins = |word: &str| {
        text.get(..word.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(word))
            && text[word.len()..].starts_with(|next: char| next.is_whitespace() || next == '(')
    };
    (begins("SELECT") || begins("WITH")) && !text.contains(';')
}

/// Why a question has no answer, where no limit of time was set.
pub(crate) fn unanswered_at_once(refusal: &Refusal) -> Unanswered {
    unanswered(refusal, SILENCE)
}

fn unanswered(refusal: &Refusal, limit: Duration) -> Unanswered {
    match refusal.code {
        _ if refusal.is_not_allowed() => Unanswered::Permission(refusal.to_string()),
        // TIMEOUT_EXCEEDED, QUERY_WAS_CANCELLED
        159 | 394 => Unanswered::TimedOut(limit.as_secs()),
        _ => Unanswered::Failed(refusal.to_string()),
    }
}

/// Whole numbers of 64 bits are in quotes where the user may not set that they are not.
fn with_numbers(table: Table) -> Vec<Row> {
    let numbers: Vec<&str> = table
        .meta
        .iter()
        .filter(|column| {
            let inner = column.r#type.trim_start_matches("Nullable(");
            inner.starts_with("Int") || inner.starts_with("UInt")
        })
        .map(|column| column.name.as_str())
        .collect();
    let mut rows = table.data;
    for row in &mut rows {
        for name in &numbers {
            if let Some(value) = row.get_mut(*name)
                && let Some(number) = value.as_str().and_then(|text| text.parse().ok())
            {
                *value = Value::Number(number);
            }
        }
    }
    rows
}

/// The lines of an answer.
fn read(body: &[u8], limit: Duration) -> Result<Vec<Row>, Unanswered> {
    match serde_json::from_slice::<Table>(body) {
        Ok(table) => Ok(with_numbers(table)),
        Err(error) => {
            let text = String::from_utf8_lossy(body);
            Err(if text.contains("DB::Exception") {
                unanswered(&Refusal::read(&text), limit)
            } else {
                Unanswered::Failed(format!("an answer cannot be understood: {error}"))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_one_statement_that_reads() {
        for good in ["SELECT 1", "select\n1", "WITH 1 AS a SELECT a", "SELECT(1)"] {
            assert!(is_query(good), "{good}");
        }
        for wrong in [
            "INSERT INTO t SELECT 1",
            "SELECT 1; DROP TABLE t",
            "SYSTEM RELOAD CONFIG",
            "SELECTED",
            "",
        ] {
            assert!(!is_query(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_grant_of_a_part_is_no_grant_of_the_whole() {
        let shows = |line: &str| grants(line, "SHOW TABLES");
        for enough in [
            "GRANT SHOW TABLES ON *.* TO fettler",
            "GRANT SHOW, SELECT(a) ON *.* TO fettler",
            "GRANT SELECT, INSERT ON *.* TO fettler",
            "GRANT ALL ON *.* TO fettler WITH GRANT OPTION",
        ] {
            assert!(shows(enough), "{enough}");
        }
        for little in [
            "GRANT SELECT ON system.* TO fettler",
            "GRANT SHOW DATABASES ON *.* TO fettler",
            "GRANT readers TO fettler",
        ] {
            assert!(!shows(little), "{little}");
        }
    }

    #[test]
    fn an_error_in_the_midst_of_an_answer_is_no_empty_one() {
        let body = br#"{"meta": [], "data": [ Code: 241, e.displayText() = DB::Exception: Memory limit exceeded"#;
        let refused = read(body, Duration::from_secs(4)).unwrap_err();
        assert!(matches!(refused, Unanswered::Failed(_)), "{refused}");
        let rows = read(
            br#"{"meta": [{"name": "n", "type": "UInt64"}, {"name": "t", "type": "String"}], "data": [{"n": "18446744073709551615", "t": "7"}, {"n": 7, "t": ""}]}"#,
            Duration::from_secs(4),
        )
        .unwrap();
        assert_eq!(
            (&rows[0]["n"], &rows[0]["t"]),
            (&u64::MAX.into(), &"7".into())
        );
        assert_eq!(rows[1]["n"], 7);
    }
}
