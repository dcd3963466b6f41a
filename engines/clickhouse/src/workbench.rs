//! A session for tuning: a statement is one of SQL; what is nothing is told as an empty text.

use async_trait::async_trait;
use fettler_engine::{EngineError, Line, StatementError, Target, Workbench};

use crate::{http::Session, params::Params};

/// The words for what is being done.
const DOING: &str = "tuning";

struct Bench(Session);

pub(crate) async fn open(target: &Target) -> Result<Box<dyn Workbench>, EngineError> {
    let params = Params::of(target)?;
    let session = Session::visit(&params).await?;
    // What people write means this database where it names none.
    let database = params.database.as_deref().unwrap_or("default");
    Ok(Box::new(Bench(session.in_database(database))))
}

#[async_trait]
impl Workbench for Bench {
    async fn run(&mut self, statement: &str) -> Result<Vec<Line>, StatementError> {
        let first = statement.split_whitespace().next().unwrap_or_default();
        let is_query = ["SELECT", "WITH", "SHOW"]
            .iter()
            .any(|word| word.eq_ignore_ascii_case(first));
        let answer = if is_query {
            self.0.try_rows(statement, &[], DOING).await?
        } else {
            self.0
                .try_run(statement, &[], DOING)
                .await?
                .map(|()| vec![])
        };
        match answer {
            Ok(rows) => Ok(rows
                .into_iter()
                .map(|row| row.into_iter().map(Some).collect())
                .collect()),
            Err(refusal) => Err(StatementError::Refused {
                code: refusal.code.to_string(),
                message: refusal.message,
            }),
        }
    }

    async fn close(self: Box<Self>) {}
}
