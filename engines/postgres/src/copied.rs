//! What of a backup a restore of a part brings back, for the comparison of a copy.

use std::collections::BTreeSet;

use fettler_engine::{BackupReport, EngineError};
use fettler_model::{ObjectFacts, ObjectKind};

use crate::{data::BackupData, names::Pattern};

/// The tables and sequences that the names fit. What comes with them (partitions, owned sequences) is not compared by itself.
pub(crate) fn chosen(
    report: &BackupReport,
    only: &[String],
) -> Result<Vec<ObjectFacts>, EngineError> {
    if only.is_empty() {
        return Ok(report.objects.clone());
    }
    let data = BackupData::of(report)?;
    let patterns: Vec<Pattern> = only.iter().map(|text| Pattern::parse(text)).collect();
    let fits =
        |schema: &str, name: &str| patterns.iter().any(|pattern| pattern.matches(schema, name));
    let tables: BTreeSet<String> = data
        .tables
        .iter()
        .filter(|table| fits(&table.schema, &table.name))
        .map(crate::data::TableData::compared_as)
        .collect();
    let sequences: BTreeSet<String> = data
        .sequences
        .iter()
        .filter(|sequence| fits(&sequence.schema, &sequence.name))
        .map(crate::data::SequenceData::display)
        .collect();
    Ok(report
        .objects
        .iter()
        .filter(|object| match object.kind {
            ObjectKind::Table => tables.contains(&object.name),
            ObjectKind::Sequence => sequences.contains(&object.name),
            _ => false,
        })
        .cloned()
        .collect())
}
