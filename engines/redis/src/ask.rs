//! Answers questions of checks. A question is lines of commands that read; what they answer becomes one line of named
//! values:
//!
//! - `INFO`, or a section of it: its fields as they are called there;
//! - `CONFIG GET name …`: `config_name`, with `_` for `-`;
//! - a command that answers a number: the command's words, such as `slowlog_len`;
//! - `KEYS OF ALL DATABASES`: `keys` and `expires`, added up from `INFO keyspace`.
//!
//! Three words give a line for each thing instead, and stand alone: `DATABASES` (`INFO keyspace`), `REPLICAS`
//! (`INFO replication`) and `LATENCY LATEST`. What an audit asks stands alone as well: [`crate::audit_words`], [`crate::kept_words`].

use std::time::{Duration, Instant};

use fettler_engine::{Answer, Answers, EngineError, Question, Refusal as Unanswered, Row, Target};
use redis::{Cmd, FromRedisValue, Value as RedisValue, cmd};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    audit_words,
    connect::{Info, Session, VISITOR},
    error::Refusal,
    kept_words,
    locate::{Purpose, locate},
    params::Params,
};

/// The line that adds up `INFO keyspace`.
const ALL_KEYS: &str = "KEYS OF ALL DATABASES";

/// What may be asked: commands that read and tell nothing of what is stored.
const READING: [&str; 7] = [
    "INFO",
    "CONFIG GET",
    "SLOWLOG LEN",
    "LATENCY LATEST",
    "DBSIZE",
    "LASTSAVE",
    "ACL WHOAMI",
];

/// Why a question has no answer: the server's word, or the connection's end.
pub(crate) enum Failed {
    Refused(Unanswered),
    Lost(EngineError),
}

impl From<EngineError> for Failed {
    fn from(error: EngineError) -> Self {
        Self::Lost(error)
    }
}

/// Asks.
pub(crate) async fn ask(
    target: &Target,
    questions: &[Question],
    stop: &CancellationToken,
) -> Result<Answers, EngineError> {
    let params = locate(target, Purpose::Write, stop).await?;
    let began = Instant::now();
    let mut session = Session::open(&params, VISITOR, stop).await?;
    let connected_in = began.elapsed();
    let began = Instant::now();
    // Whoever may not even do this is told by the questions.
    let _pong = session.try_ask(&cmd("PING")).await?;
    let answered_in = began.elapsed();
    let info = session.info().await?;
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        answers.push(answer(&params, &mut session, &info, question).await?);
    }
    Ok(Answers {
        version: info.version_text(),
        connected_in,
        answered_in,
        answers,
    })
}

async fn answer(
    params: &Params,
    session: &mut Session,
    info: &Info,
    question: &Question,
) -> Result<Answer, EngineError> {
    let id = question.id.clone();
    if !question.versions.hold(info.version()) {
        return Ok(Answer::refused(id, Unanswered::OtherVersion));
    }
    let limit = question.timeout.max(Duration::from_millis(1));
    match tokio::time::timeout(limit, rows(params, session, &question.text)).await {
        Err(_) => Ok(Answer::refused(id, Unanswered::TimedOut(limit.as_secs()))),
        Ok(Ok(rows)) => Ok(Answer::of(id, rows)),
        Ok(Err(Failed::Refused(refusal))) => Ok(Answer::refused(id, refusal)),
        Ok(Err(Failed::Lost(error))) => Err(error),
    }
}

async fn rows(params: &Params, session: &mut Session, text: &str) -> Result<Vec<Row>, Failed> {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    match lines.as_slice() {
        ["DATABASES"] => {
            let info = told(session, "INFO keyspace").await?;
            Ok(parts_of(&text_of(info)?, "db", "database"))
        }
        ["REPLICAS"] => {
            let info = told(session, "INFO replication").await?;
            Ok(parts_of(&text_of(info)?, "slave", "replica"))
        }
        ["LATENCY LATEST"] => latency(told(session, "LATENCY LATEST").await?),
        ["ANONYMOUS"] => audit_words::anonymous(params, session).await,
        ["NETWORK"] => audit_words::network(params, session).await,
        ["USERS"] => audit_words::users(session).await,
        ["ACL LOG"] => audit_words::log(session).await,
        ["MODULES"] => audit_words::modules(session).await,
        ["CLIENTS"] => audit_words::clients(session).await,
        ["KEPT USERS"] => kept_words::users(session).await,
        ["KEPT SETTINGS"] => kept_words::settings(session).await,
        ["KEPT MODULES"] => kept_words::modules(session).await,
        lines => {
            let mut row = Row::new();
            for line in lines {
                if *line == ALL_KEYS {
                    add_totals(&mut row, &text_of(told(session, "INFO keyspace").await?)?);
                    continue;
                }
                let value = told(session, line).await?;
                add(&mut row, line, value)?;
            }
            Ok(vec![row])
        }
    }
}

/// Counts keys, and those with a time to live, over all databases.
fn add_totals(row: &mut Row, keyspace: &str) {
    let databases = parts_of(keyspace, "db", "database");
    for name in ["keys", "expires"] {
        let sum: i64 = databases
            .iter()
            .filter_map(|database| database.get(name).and_then(Value::as_i64))
            .sum();
        row.insert(name.to_owned(), json!(sum));
    }
}

/// Sends one line.
async fn told(session: &mut Session, line: &str) -> Result<RedisValue, Failed> {
    let upper = line.to_ascii_uppercase();
    if !READING
        .iter()
        .any(|known| upper == *known || upper.starts_with(&format!("{known} ")))
    {
        return Err(Failed::Refused(Unanswered::Failed(format!(
            "{line:?} is no command that a check may send; there are {}",
            READING.join(", ")
        ))));
    }
    let mut words = line.split_whitespace();
    let mut command: Cmd = cmd(words.next().unwrap_or_default());
    for word in words {
        command.arg(word);
    }
    session
        .try_ask(&command)
        .await?
        .map_err(|refusal| Failed::Refused(unanswered(&refusal)))
}

pub(crate) fn unanswered(refusal: &Refusal) -> Unanswered {
    if refusal.code == "NOPERM" {
        Unanswered::Permission(refusal.message.clone())
    } else {
        Unanswered::Failed(format!("{} {}", refusal.code, refusal.message))
    }
}

pub(crate) fn unread(error: &dyn std::fmt::Display) -> Failed {
    Failed::Refused(Unanswered::Failed(format!(
        "an answer cannot be understood: {error}"
    )))
}

pub(crate) fn text_of(value: RedisValue) -> Result<String, Failed> {
    String::from_redis_value(value).map_err(|error| unread(&error))
}

/// Puts one answer into the line.
fn add(row: &mut Row, line: &str, value: RedisValue) -> Result<(), Failed> {
    let words: Vec<String> = line
        .split_whitespace()
        .map(str::to_ascii_lowercase)
        .collect();
    match words[0].as_str() {
        "info" => {
            for (name, text) in fields(&text_of(value)?) {
                row.insert(name.to_owned(), read(text));
            }
        }
        "config" => {
            let pairs: Vec<(String, String)> =
                FromRedisValue::from_redis_value(value).map_err(|error| unread(&error))?;
            for (name, text) in pairs {
                row.insert(format!("config_{}", name.replace('-', "_")), read(&text));
            }
        }
        _ => {
            let value = match value {
                RedisValue::Int(number) => json!(number),
                other => json!(text_of(other)?),
            };
            row.insert(words.join("_"), value);
        }
    }
    Ok(())
}

/// The fields of `INFO`.
fn fields(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.trim_end().split_once(':'))
}

/// A value by what it looks like.
fn read(text: &str) -> Value {
    if let Ok(number) = text.parse::<i64>() {
        return json!(number);
    }
    if let Ok(number) = text.parse::<u64>() {
        return json!(number);
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && text.contains('.') => json!(number),
        _ => json!(text),
    }
}

/// Lines of fields whose names are a word and a number: `db0:keys=1,expires=0`.
fn parts_of(text: &str, prefix: &str, name: &str) -> Vec<Row> {
    fields(text)
        .filter(|(field, value)| {
            field.strip_prefix(prefix).is_some_and(|number| {
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            }) && value.contains('=')
        })
        .map(|(field, value)| {
            let mut row: Row = value
                .split(',')
                .filter_map(|part| part.split_once('='))
                .map(|(name, value)| (name.to_owned(), read(value)))
                .collect();
            row.insert(name.to_owned(), json!(field));
            row
        })
        .collect()
}

/// `LATENCY LATEST`: an event's name, when it was last seen, and how long it took then and at most.
fn latency(value: RedisValue) -> Result<Vec<Row>, Failed> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        });
    let RedisValue::Array(events) = value else {
        return Err(unread(&"it is no list"));
    };
    events
        .into_iter()
        .map(|event| {
            let RedisValue::Array(mut parts) = event else {
                return Err(unread(&"an event is no list"));
            };
            // Valkey adds a sum and a count.
            parts.truncate(4);
            let (name, at, last, most): (String, i64, i64, i64) =
                FromRedisValue::from_redis_value(RedisValue::Array(parts))
                    .map_err(|error| unread(&error))?;
            Ok(Row::from_iter([
                ("event".to_owned(), json!(name)),
                (
                    "seconds_ago".to_owned(),
                    json!(now.saturating_sub(at).max(0)),
                ),
                ("last_milliseconds".to_owned(), json!(last)),
                ("most_milliseconds".to_owned(), json!(most)),
            ]))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_info_tells_keeps_its_types_and_lists_become_lines() {
        let mut row = Row::new();
        let text = "# Memory\r\nused_memory:1024\r\nmem_fragmentation_ratio:1.53\r\nrole:master\r\nversion:7.0.15\r\n";
        let value = RedisValue::BulkString(text.as_bytes().to_vec());
        assert!(add(&mut row, "INFO", value).is_ok());
        assert_eq!(
            json!(row),
            json!({"used_memory": 1024, "mem_fragmentation_ratio": 1.53, "role": "master", "version": "7.0.15"})
        );
        let keyspace = "db0:keys=3,expires=1,avg_ttl=7\r\ndb12:keys=1,expires=0,avg_ttl=0\r\n";
        let rows = parts_of(keyspace, "db", "database");
        assert_eq!(rows.len(), 2);
        assert_eq!(
            json!(rows[1]),
            json!({"keys": 1, "expires": 0, "avg_ttl": 0, "database": "db12"})
        );
    }
}
