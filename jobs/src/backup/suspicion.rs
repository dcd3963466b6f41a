//! What makes a complete backup suspicious beside its parent: it shrank by half, or a table vanished.

use std::collections::BTreeSet;

use fettler_engine::BackupReport;
use fettler_model::{ObjectKind, Warning};

/// Below this, halving says nothing.
const SMALL_BYTES: u64 = 1024 * 1024;
/// How many vanished tables are named one by one.
const NAMED_TABLES: usize = 10;

/// Looks at a backup beside its parent.
pub(super) fn compare_with_parent(parent: &BackupReport, now: &BackupReport) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let (before, after) = (bytes(parent), bytes(now));
    if before >= SMALL_BYTES && after < before / 2 {
        warnings.push(Warning {
            code: "backup.shrank".to_owned(),
            message: format!(
                "the database holds {after} bytes, less than half of the {before} bytes that the backup before held: \
                 look whether rows were lost before older backups are forgotten"
            ),
        });
    }
    let present: BTreeSet<&str> = tables(now).collect();
    let vanished: Vec<&str> = tables(parent)
        .filter(|name| !present.contains(name))
        .collect();
    if !vanished.is_empty() {
        let more = vanished.len().saturating_sub(NAMED_TABLES);
        let mut named = vanished[..vanished.len().min(NAMED_TABLES)].join(", ");
        if more > 0 {
            named = format!("{named} and {more} more");
        }
        warnings.push(Warning {
            code: "backup.tables_vanished".to_owned(),
            message: format!(
                "tables of the backup before are gone: {named}; `fettler diff` shows what changed"
            ),
        });
    }
    warnings
}

fn bytes(report: &BackupReport) -> u64 {
    report.objects.iter().map(|object| object.bytes).sum()
}

fn tables(report: &BackupReport) -> impl Iterator<Item = &str> {
    report
        .objects
        .iter()
        .filter(|object| object.kind == ObjectKind::Table)
        .map(|object| object.name.as_str())
}

#[cfg(test)]
mod tests {
    use fettler_engine::Identity;
    use fettler_model::{Engine, ObjectFacts};

    use super::*;

    fn report(tables: &[(&str, u64)]) -> BackupReport {
        BackupReport {
            identity: Identity {
                engine: Engine::Sqlite,
                version: String::new(),
                key: String::new(),
                lineage: String::new(),
                suggested_name: "a".parse().unwrap(),
                estimated_bytes: 0,
            },
            position: serde_json::Value::Null,
            objects: tables
                .iter()
                .map(|(name, bytes)| ObjectFacts {
                    kind: ObjectKind::Table,
                    name: (*name).to_owned(),
                    fingerprint: None,
                    independent_rows: None,
                    bytes: *bytes,
                    value: None,
                    format: None,
                })
                .collect(),
            row_hash: String::new(),
            engine_data: serde_json::Value::Null,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_backup_that_shrank_by_half_is_suspicious() {
        let codes = |before, after| -> Vec<String> {
            compare_with_parent(&report(&[("a", before)]), &report(&[("a", after)]))
                .into_iter()
                .map(|warning| warning.code)
                .collect()
        };
        assert_eq!(codes(10 << 20, 4 << 20), ["backup.shrank"]);
        assert!(codes(10 << 20, 6 << 20).is_empty());
        assert!(codes(1000, 10).is_empty());
    }

    #[test]
    fn a_vanished_table_is_named() {
        let found = compare_with_parent(&report(&[("a", 1), ("b", 1)]), &report(&[("a", 1)]));
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains("gone: b;"), "{found:?}");
    }
}
