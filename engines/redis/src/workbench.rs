//! A session for tuning: a statement is a command, its words as a list of JSON strings; the answer is one line with one value,
//! which is JSON. Text that is no UTF-8 is told as nothing: such a key cannot be named in a statement either.

use async_trait::async_trait;
use fettler_engine::{AttemptName, EngineError, Line, StatementError, Target, Workbench};
use redis::{Value as RedisValue, cmd};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    connect::Session,
    locate::{Purpose, locate},
};

struct Bench(Session);

pub(crate) async fn open(
    target: &Target,
    name: &AttemptName,
) -> Result<Box<dyn Workbench>, EngineError> {
    let stop = CancellationToken::new();
    let params = locate(target, Purpose::Write, &stop).await?;
    let session = Session::open(&params, &name.to_string(), &stop).await?;
    Ok(Box::new(Bench(session)))
}

#[async_trait]
impl Workbench for Bench {
    async fn run(&mut self, statement: &str) -> Result<Vec<Line>, StatementError> {
        let words: Vec<String> =
            serde_json::from_str(statement).map_err(|error| StatementError::Refused {
                code: "words".to_owned(),
                message: format!("{statement} is no list of words: {error}"),
            })?;
        let mut words = words.iter();
        let mut command = cmd(words.next().map_or("", String::as_str));
        for word in words {
            command.arg(word);
        }
        match self.0.try_ask(&command).await? {
            Ok(value) => Ok(vec![vec![Some(plain(&value).to_string())]]),
            Err(refusal) => Err(StatementError::Refused {
                code: refusal.code,
                message: refusal.message,
            }),
        }
    }

    async fn close(self: Box<Self>) {}
}

fn plain(value: &RedisValue) -> Value {
    match value {
        RedisValue::Int(number) => json!(number),
        RedisValue::Double(number) => json!(number),
        RedisValue::Boolean(flag) => json!(flag),
        RedisValue::BulkString(bytes) => {
            std::str::from_utf8(bytes).map_or(Value::Null, |text| json!(text))
        }
        RedisValue::SimpleString(text) => json!(text),
        RedisValue::VerbatimString { text, .. } => json!(text),
        RedisValue::Okay => json!("OK"),
        RedisValue::Array(items) | RedisValue::Set(items) => {
            Value::Array(items.iter().map(plain).collect())
        }
        RedisValue::Map(pairs) => Value::Object(
            pairs
                .iter()
                .filter_map(|(name, value)| match plain(name) {
                    Value::String(name) => Some((name, plain(value))),
                    _ => None,
                })
                .collect::<Map<_, _>>(),
        ),
        _ => Value::Null,
    }
}
