//! What of a backup a restore of a part brings back, for the comparison of a copy.

use fettler_engine::{BackupReport, EngineError};
use fettler_model::ObjectFacts;

use crate::{parts::Part, select::Selection};

/// The indices and data streams that the names fit. The parts of a cluster are listed in a backup and not compared.
pub(crate) fn chosen(
    report: &BackupReport,
    only: &[String],
) -> Result<Vec<ObjectFacts>, EngineError> {
    let selection = Selection::of_restore(only)?;
    if selection.has_queries() {
        return Err(EngineError::Missing {
            code: "query",
            what: "what a query finds cannot be compared with its source".to_owned(),
            remedy: "copy whole indices, or back up and restore with the query".to_owned(),
        });
    }
    let is_chosen = |object: &&ObjectFacts| {
        Part::of_word(&object.name).is_none() && selection.has(&object.name)
    };
    Ok(report.objects.iter().filter(is_chosen).cloned().collect())
}
