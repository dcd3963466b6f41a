//! A session for tuning: a statement is a database's name, a space, and a command in plain JSON; the answer is one line with
//! one value, which is JSON as checks have it ([`plain`]). Of a cursor that is its first batch.

use async_trait::async_trait;
use bson::{Document, RawDocumentBuf};
use fettler_engine::{AttemptName, EngineError, Line, StatementError, Target, Workbench};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::{ask::plain, params::Params, session::Session};

struct Bench(Session);

pub(crate) async fn open(
    target: &Target,
    name: &AttemptName,
) -> Result<Box<dyn Workbench>, EngineError> {
    let params = Params::of(target)?;
    let session = Session::open(&params, &name.to_string(), &CancellationToken::new()).await?;
    Ok(Box::new(Bench(session)))
}

fn wrong(statement: &str, what: &dyn std::fmt::Display) -> StatementError {
    StatementError::Refused {
        code: "command".to_owned(),
        message: format!("{statement:?} is no database and command: {what}"),
    }
}

fn command(statement: &str) -> Result<(&str, RawDocumentBuf), StatementError> {
    let (database, text) = statement
        .split_once(' ')
        .ok_or_else(|| wrong(statement, &"there is no space"))?;
    let fields: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| wrong(statement, &error))?;
    let raw = RawDocumentBuf::try_from(&plain::bson(&fields))
        .map_err(|error| wrong(statement, &error))?;
    Ok((database, raw))
}

#[async_trait]
impl Workbench for Bench {
    async fn run(&mut self, statement: &str) -> Result<Vec<Line>, StatementError> {
        let (database, command) = command(statement)?;
        match self.0.try_run(database, command).await? {
            Ok(answer) => {
                let document = Document::try_from(answer.as_ref())
                    .map_err(|error| wrong(statement, &error))?;
                let text = plain::document(&document).to_string();
                Ok(vec![vec![Some(text)]])
            }
            Err(refusal) => Err(StatementError::Refused {
                code: refusal.code.to_string(),
                message: refusal.message,
            }),
        }
    }

    async fn close(self: Box<Self>) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_statement_is_a_database_and_a_command_whose_fields_keep_their_order() {
        let (database, raw) =
            command(r#"shop {"createIndexes": "orders", "indexes": [{"key": {"z": 1, "a": -1}}]}"#)
                .unwrap();
        assert_eq!(database, "shop");
        let document = Document::try_from(raw.as_ref()).unwrap();
        let key = document.get_array("indexes").unwrap()[0]
            .as_document()
            .unwrap()
            .get_document("key")
            .unwrap();
        assert_eq!(key.keys().collect::<Vec<_>>(), ["z", "a"]);
        for text in ["shop", "shop [1]", "shop {"] {
            assert!(command(text).is_err(), "{text}");
        }
    }
}
