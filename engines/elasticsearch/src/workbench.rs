//! A session for tuning: a statement is a method and a path, and JSON on the next line where the request carries some; the
//! answer is one line with one value, which is JSON.

use async_trait::async_trait;
use fettler_engine::{EngineError, Line, StatementError, Target, Workbench};
use reqwest::Method;
use serde_json::Value;

use crate::client::{Body, Client};

struct Bench(Client);

pub(crate) fn open(target: &Target) -> Result<Box<dyn Workbench>, EngineError> {
    Ok(Box::new(Bench(Client::of(target)?.0)))
}

fn wrong(statement: &str) -> StatementError {
    StatementError::Refused {
        code: "request".to_owned(),
        message: format!("{statement:?} is no method, path and JSON"),
    }
}

#[async_trait]
impl Workbench for Bench {
    async fn run(&mut self, statement: &str) -> Result<Vec<Line>, StatementError> {
        let (head, body) = statement.split_once('\n').unwrap_or((statement, ""));
        let (method, path) = head.split_once(' ').ok_or_else(|| wrong(statement))?;
        let method = match method {
            "GET" => Method::GET,
            "PUT" => Method::PUT,
            "POST" => Method::POST,
            _ => return Err(wrong(statement)),
        };
        let body = if body.is_empty() {
            Body::Nothing
        } else {
            Body::Json(serde_json::from_str::<Value>(body).map_err(|_| wrong(statement))?)
        };
        match self.0.try_ask(method, path, body).await? {
            Ok(answer) => Ok(vec![vec![Some(answer.to_string())]]),
            Err(refusal) => Err(StatementError::Refused {
                code: refusal.status.to_string(),
                message: format!("{}: {}", refusal.kind, refusal.reason),
            }),
        }
    }

    async fn close(self: Box<Self>) {}
}
