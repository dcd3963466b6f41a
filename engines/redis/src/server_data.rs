//! What a server has beside keys: functions, users, configuration. One small stream of JSON.

use fettler_engine::{Cut, EngineError, StreamEnd, StreamSink, StreamSource};
use fettler_model::Warning;
use futures::TryStreamExt as _;
use redis::{FromRedisValue, Value, cmd};
use serde::{Deserialize, Serialize};

use crate::{connect::Session, error::Refusal};

/// The stream's name.
pub(crate) const STREAM: &str = "server";
/// Settings whose values are secrets, in any part of their names.
const SECRET_WORDS: [&str; 4] = ["pass", "auth", "secret", "token"];

/// Bytes that are text in nearly all cases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Hex { hex: String },
}

impl Text {
    fn of(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(
            |error| Self::Hex {
                hex: hex::encode(error.into_bytes()),
            },
            Self::Plain,
        )
    }

    fn bytes(self) -> Result<Vec<u8>, EngineError> {
        match self {
            Self::Plain(text) => Ok(text.into_bytes()),
            Self::Hex { hex } => hex::decode(hex).map_err(|error| unusable(&error)),
        }
    }
}

/// What stands in the stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Stored {
    functions: Vec<Text>,
    users: Option<Vec<String>>,
    configuration: Option<Vec<(String, String)>>,
}

/// What a server has beside keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerData {
    /// The code of its libraries of functions.
    pub(crate) functions: Vec<Vec<u8>>,
    /// Its users as `ACL LIST` writes them, with hashes of their passwords; nothing where they may not be read.
    pub(crate) users: Option<Vec<String>>,
    /// Its settings without secrets; nothing where they may not be read.
    pub(crate) configuration: Option<Vec<(String, String)>>,
}

impl ServerData {
    /// Reads what may be read; what may not is a warning. Functions are what the backup found.
    pub(crate) async fn read(
        session: &mut Session,
        functions: Vec<Vec<u8>>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, EngineError> {
        let mut missing = |what: &str, refusal: &Refusal| {
            warnings.push(Warning {
                code: "redis.not_read".to_owned(),
                message: format!(
                    "the {what} could not be read and is not in the backup: {refusal}"
                ),
            });
        };
        let users = match session.try_ask(cmd("ACL").arg("LIST")).await? {
            Ok(value) => Vec::<String>::from_redis_value(value).ok(),
            Err(refusal) => {
                missing("list of users", &refusal);
                None
            }
        };
        let configuration = match session.try_ask(cmd("CONFIG").arg("GET").arg("*")).await? {
            Ok(value) => Vec::<(String, String)>::from_redis_value(value)
                .ok()
                .map(without_secrets),
            Err(refusal) => {
                missing("configuration", &refusal);
                None
            }
        };
        Ok(Self {
            functions,
            users,
            configuration,
        })
    }

    /// Writes the stream; gives the bytes of users and configuration.
    pub(crate) async fn store(&self, sink: &dyn StreamSink) -> Result<(), EngineError> {
        let stored = Stored {
            functions: self.functions.iter().cloned().map(Text::of).collect(),
            users: self.users.clone(),
            configuration: self.configuration.clone(),
        };
        let bytes = serde_json::to_vec(&stored).expect("plain data can be JSON");
        let mut writer = sink.open(STREAM, Cut::Content).await?;
        writer.write(bytes.into()).await?;
        writer.finish(StreamEnd::default()).await.map(drop)
    }

    /// Reads the stream of a backup.
    pub(crate) async fn of_backup(backup: &dyn StreamSource) -> Result<Self, EngineError> {
        let bytes = backup
            .read(STREAM)
            .await?
            .try_fold(Vec::new(), |mut all, piece| async move {
                all.extend_from_slice(&piece);
                Ok(all)
            })
            .await?;
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| unusable(&error))?;
        Ok(Self {
            functions: stored
                .functions
                .into_iter()
                .map(Text::bytes)
                .collect::<Result<_, _>>()?,
            users: stored.users,
            configuration: stored.configuration,
        })
    }
}

fn unusable(error: &dyn std::fmt::Display) -> EngineError {
    EngineError::Unusable {
        what: format!("the backup's stream `{STREAM}` cannot be read: {error}"),
        remedy: "restore with the version of Fettler that made it, or take another backup"
            .to_owned(),
    }
}

fn without_secrets(settings: Vec<(String, String)>) -> Vec<(String, String)> {
    settings
        .into_iter()
        .filter(|(name, _)| !SECRET_WORDS.iter().any(|word| name.contains(word)))
        .collect()
}

/// The code of all libraries of functions of a server, by its own list; none before Redis 7.0.
pub(crate) async fn functions_of(
    session: &mut Session,
) -> Result<Result<Vec<(String, Vec<u8>)>, Refusal>, EngineError> {
    let asked = cmd("FUNCTION").arg("LIST").arg("WITHCODE").to_owned();
    let answer = match session.try_ask(&asked).await? {
        Ok(Value::Array(libraries)) => libraries,
        Ok(_) => return Err(session.unexpected("listing functions", &"no list")),
        Err(refusal) if refusal.is_unknown() => return Ok(Ok(Vec::new())),
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut found = Vec::new();
    for library in answer {
        let (mut name, mut code) = (None, None);
        for (field, value) in library
            .into_map_iter()
            .map_err(|_| session.unexpected("listing functions", &"no library"))?
        {
            match String::from_redis_value(field).as_deref() {
                Ok("library_name") => name = String::from_redis_value(value).ok(),
                Ok("library_code") => code = Vec::<u8>::from_redis_value(value).ok(),
                _ => {}
            }
        }
        match (name, code) {
            (Some(name), Some(code)) => found.push((name, code)),
            _ => return Err(session.unexpected("listing functions", &"a library without code")),
        }
    }
    Ok(Ok(found))
}

/// The name that a library gives itself in its first line: `#!lua name=shop`.
pub(crate) fn library_name(code: &[u8]) -> Option<String> {
    let first = code.split(|byte| *byte == b'\n').next()?;
    String::from_utf8_lossy(first)
        .split_whitespace()
        .find_map(|word| word.strip_prefix("name=").map(ToOwned::to_owned))
}

/// The users of a server as `ACL LIST` writes them; nothing where the list may not be read.
pub(crate) async fn users_of(session: &mut Session) -> Result<Option<Vec<String>>, EngineError> {
    let answer = session.try_ask(cmd("ACL").arg("LIST")).await?;
    Ok(answer
        .ok()
        .and_then(|value| Vec::<String>::from_redis_value(value).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_librarys_name_stands_in_its_first_line() {
        assert_eq!(library_name(b"#!lua name=shop\nreturn 1").unwrap(), "shop");
        assert_eq!(library_name(b"return 1"), None);
    }

    #[test]
    fn p9_no_secret_of_the_configuration_is_stored() {
        let settings = [
            "maxmemory",
            "requirepass",
            "masterauth",
            "tls-key-file-pass",
            "masteruser",
        ]
        .map(|name| (name.to_owned(), "x".to_owned()));
        let kept: Vec<String> = without_secrets(settings.to_vec())
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(kept, ["maxmemory", "masteruser"]);
    }

    #[tokio::test]
    async fn what_is_stored_comes_back_also_when_it_is_no_text() {
        let sink = fettler_engine::testing::MemorySink::default();
        let data = ServerData {
            functions: vec![b"#!lua name=x".to_vec(), vec![0xff, 0]],
            users: Some(vec!["user default on".to_owned()]),
            configuration: None,
        };
        data.store(&sink).await.unwrap();
        assert_eq!(ServerData::of_backup(&sink.source()).await.unwrap(), data);
    }
}
