//! Elasticsearch and OpenSearch: shards, mappings, refreshes, copies, old indices, and series that nothing ends. All of it is
//! advice: what these settings cost or save, and when, only people know.

mod collect;
mod report;

use fettler_engine::{EngineError, Workbench};
use fettler_model::{Engine, TuningRecord};

use crate::{Look, advice::Advice};

/// Looks at a cluster, and changes nothing. `now` is in seconds since 1970.
///
/// # Errors
///
/// When it cannot be asked.
pub async fn look(
    bench: &mut dyn Workbench,
    records: &[TuningRecord],
    now: f64,
) -> Result<Look, EngineError> {
    let facts = collect::collect(bench).await?;
    let mut advice = Advice::of(Engine::Elasticsearch);
    report::report(&mut advice, &facts, now);
    Ok(advice.end(facts.version, records))
}
