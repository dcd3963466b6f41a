//! ClickHouse: types and codecs (measured on a sample of the column), parts and partitions that are too small, and statements
//! that no sorting key serves, as the server itself explains them. All of it is advice: columns and keys are changed by
//! rewriting tables.

mod columns;
mod parts;
mod statements;

use fettler_engine::{EngineError, Line, StatementError, Workbench};
use fettler_model::{Engine, TuningRecord};

use crate::{Look, Wishes, advice::Advice};

/// Databases of the server's own.
const OWN: &str = "('system', 'INFORMATION_SCHEMA', 'information_schema')";

/// Looks at a server, and changes nothing.
///
/// # Errors
///
/// When it cannot be asked.
pub async fn look(
    bench: &mut dyn Workbench,
    wishes: &Wishes,
    records: &[TuningRecord],
) -> Result<Look, EngineError> {
    let mut advice = Advice::of(Engine::Clickhouse);
    let version = match asked(bench, "SELECT version()").await? {
        Ok(lines) => lines.first().map(|line| text(line, 0)).unwrap_or_default(),
        Err(why) => {
            return Err(EngineError::Database {
                what: format!("asking for the version: {why}"),
                transient: false,
            });
        }
    };
    parts::look(&mut advice, bench).await?;
    columns::look(&mut advice, bench).await?;
    let judged = statements::look(&mut advice, bench, &wishes.statements).await?;
    let mut look = advice.end(version, records);
    look.statements = judged;
    Ok(look)
}

/// Asks; a refusal is an answer too.
async fn asked(
    bench: &mut dyn Workbench,
    sql: &str,
) -> Result<Result<Vec<Line>, String>, EngineError> {
    match bench.run(sql).await {
        Ok(lines) => Ok(Ok(lines)),
        Err(StatementError::Refused { code, message }) => Ok(Err(format!("{message} ({code})"))),
        Err(StatementError::Lost(error)) => Err(error),
    }
}

fn text(line: &Line, at: usize) -> String {
    line.get(at).cloned().flatten().unwrap_or_default()
}

fn number(line: &Line, at: usize) -> f64 {
    text(line, at).parse().unwrap_or(0.0)
}

fn quote(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}
