//! MongoDB: indexes that are missing (from the profiler, or from operations that a user gives), unused or served by others, and
//! documents that will not go well. Of documents only their forms are looked at (lengths of arrays, sizes), never values.

mod collect;
mod report;
mod shape;

use fettler_engine::{EngineError, Workbench};
use fettler_model::{Engine, TuningAction, TuningRecord};
use serde_json::{Value, json};

use crate::{
    Look, Wishes,
    advice::{Advice, told},
};

/// A command as the workbench takes it.
fn command(database: &str, command: &Value) -> String {
    format!("{database} {command}")
}

/// Looks at a server, and changes nothing. `now` is in seconds since 1970.
///
/// # Errors
///
/// When it cannot be asked.
pub async fn look(
    bench: &mut dyn Workbench,
    wishes: &Wishes,
    records: &[TuningRecord],
    now: f64,
) -> Result<Look, EngineError> {
    let facts = collect::collect(bench, &wishes.statements).await?;
    let mut advice = Advice::of(Engine::Mongodb);
    report::report(&mut advice, &facts, wishes, now);
    let mut look = advice.end(facts.version.clone(), records);
    look.statements = (facts.operations.len(), facts.unread);
    Ok(look)
}

/// How often an index was read since the server counts; below nothing where it does not tell.
///
/// # Errors
///
/// When the session is lost.
pub async fn index_reads(
    bench: &mut dyn Workbench,
    action: &TuningAction,
) -> Result<f64, EngineError> {
    let Some((database, collection)) = action.table.split_once('.') else {
        return Ok(-1.0);
    };
    let stats = told(
        bench,
        &command(
            database,
            &json!({"aggregate": collection, "pipeline": [{"$indexStats": {}}], "cursor": {}}),
        ),
    )
    .await?;
    let Ok(stats) = stats else {
        return Ok(-1.0);
    };
    Ok(stats["cursor"]["firstBatch"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["name"] == json!(action.object))
        .and_then(|one| one["accesses"]["ops"].as_f64())
        .unwrap_or(-1.0))
}
