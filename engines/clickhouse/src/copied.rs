//! A copy in a server that people use: what of it is compared, and what is let go afterwards.
//!
//! Merges stand still until the comparison is over: a table that replaces, sums or forgets rows has all that it was given.

use fettler_engine::{BackupReport, CopyFacts, EngineContext, EngineError, StreamSource, Target};
use fettler_model::ObjectFacts;

use crate::{
    facts, restore,
    select::{Chosen, Selection},
};

/// The tables that a restore of `only` brings back with all their rows; functions where all is restored.
pub(crate) fn chosen(
    report: &BackupReport,
    only: &[String],
) -> Result<Vec<ObjectFacts>, EngineError> {
    let selection = Selection::of(only)?;
    let is_chosen = |object: &&ObjectFacts| {
        selection.is_everything() || selection.of_table(&object.name) == Chosen::Everything
    };
    Ok(report.objects.iter().filter(is_chosen).cloned().collect())
}

/// Compares, and lets merges begin.
pub(crate) async fn compare(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    target: &Target,
    only: &[String],
) -> Result<CopyFacts, EngineError> {
    let expected = chosen(report, only)?;
    let read = facts::facts(context, target, report).await;
    let let_go = restore::let_merge(context, backup, target, only).await;
    let found = read?;
    let_go?;
    let mut compared = CopyFacts::of(expected, found, false);
    let is_partition = |name: &&String| name.contains('/');
    if let Some(part) = only.iter().find(is_partition) {
        compared.notes.push(format!(
            "{part}: a partition has no fingerprint of its own in a backup, and was not compared"
        ));
    }
    Ok(compared)
}
