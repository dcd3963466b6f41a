//! What of a backup a restore of a part brings back, for the comparison of a copy.

use fettler_engine::{BackupReport, EngineError};
use fettler_model::{ObjectFacts, ObjectKind};

use crate::tables::matches;

/// The tables that the names fit.
pub(crate) fn chosen(
    report: &BackupReport,
    only: &[String],
) -> Result<Vec<ObjectFacts>, EngineError> {
    let is_chosen = |object: &&ObjectFacts| {
        only.is_empty() || (object.kind == ObjectKind::Table && matches(only, &object.name))
    };
    Ok(report.objects.iter().filter(is_chosen).cloned().collect())
}
