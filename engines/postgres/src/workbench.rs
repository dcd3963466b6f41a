//! A session for tuning: statements one by one, their refusals told with the server's code.

use async_trait::async_trait;
use fettler_engine::{AttemptName, EngineError, Line, StatementError, Target, Workbench};

use crate::{connect::connect, error::WireErrorKind, params::Params, wire::Session};

/// The words for what was being done.
const DOING: &str = "tuning";

/// See [`fettler_engine::DatabaseEngine::workbench`].
struct Bench(Session);

/// Opens it: nothing is waited for without an end unless a statement asks for it, and names are the catalogue's own unless
/// they are qualified.
pub(crate) async fn open(
    target: &Target,
    name: &AttemptName,
) -> Result<Box<dyn Workbench>, EngineError> {
    let mut session = connect(&Params::of(target)?, &name.to_string()).await?;
    session
        .execute(
            "SELECT pg_catalog.set_config('search_path', '', false);
             SET lock_timeout = 2000; SET statement_timeout = 30000; SET client_min_messages = error; SET TimeZone = 'UTC'",
        )
        .await
        .map_err(|error| error.doing(DOING))?;
    Ok(Box::new(Bench(session)))
}

#[async_trait]
impl Workbench for Bench {
    async fn run(&mut self, statement: &str) -> Result<Vec<Line>, StatementError> {
        let rows = match self.0.query(statement).await {
            Ok(rows) => rows,
            Err(error) => {
                let code = error.code().unwrap_or_default().to_owned();
                return Err(match &error.kind {
                    // The server ends the session, or stops: 57P01 to 57P03.
                    WireErrorKind::Server(message) if !code.starts_with("57P") => {
                        StatementError::Refused {
                            code,
                            message: message.to_string(),
                        }
                    }
                    _ => StatementError::Lost(error.doing(DOING)),
                });
            }
        };
        rows.iter()
            .map(|row| {
                (0..row.len())
                    .map(|column| row.maybe_string(column).map_err(StatementError::Lost))
                    .collect()
            })
            .collect()
    }

    async fn close(self: Box<Self>) {
        self.0.close().await;
    }
}
