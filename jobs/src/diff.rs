//! `diff`: which tables differ between two backups, by their fingerprints alone: nothing is read but the two manifests.

use std::collections::BTreeMap;

use async_trait::async_trait;
use fettler_model::{BackupId, ExclusionClass, ObjectFacts, ObjectKind, Problem, SlotClass};
use fettler_repository::TenantRepository;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupPlace, JobContext, JobKind, report_of};

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Diff;

/// What a comparison takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiffArguments {
    /// The repository; the configured one when nothing is said.
    #[serde(default)]
    pub place: BackupPlace,
    /// The earlier backup.
    pub before: BackupId,
    /// The later one.
    pub after: BackupId,
    /// Tells what is the same too.
    #[serde(default)]
    pub all: bool,
}

/// What a comparison found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DiffOutput {
    /// The earlier backup.
    pub from: BackupId,
    /// The later one.
    pub to: BackupId,
    /// Whether nothing differs.
    pub same: bool,
    /// What differs, or all.
    pub objects: Vec<Difference>,
}

/// What became of one thing inside a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Difference {
    /// What it is.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// What became of it.
    pub change: Change,
    /// Its rows in the earlier backup.
    pub rows_before: Option<u64>,
    /// Its rows in the later one.
    pub rows_after: Option<u64>,
}

/// How something differs between two backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is in the later one only.
    Added,
    /// It is in the earlier one only.
    Removed,
    /// Its content is another.
    Changed,
    /// Its content is the same.
    Same,
    /// Nothing was kept by which it could be compared.
    Unknown,
}

#[async_trait]
impl JobKind for Diff {
    const NAME: &'static str = "diff";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Short;
    type Arguments = DiffArguments;
    type Output = DiffOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: DiffArguments,
    ) -> Result<DiffOutput, Problem> {
        let (repository, _) = context
            .services
            .repository(&context.job.tenant, &arguments.place)
            .await?;
        let DiffArguments { before, after, .. } = arguments;
        diff(&repository, before, after, arguments.all).await
    }
}

/// Compares two backups of a repository; what is the same is told with `all` only.
///
/// # Errors
///
/// When a manifest cannot be read.
pub async fn diff(
    repository: &TenantRepository,
    from: BackupId,
    to: BackupId,
    all: bool,
) -> Result<DiffOutput, Problem> {
    let before = report_of(&repository.manifest(from).await?)?;
    let after = report_of(&repository.manifest(to).await?)?;
    let mut objects = compare(
        &before.objects,
        &after.objects,
        before.row_hash == after.row_hash,
    );
    let same = objects.iter().all(|object| object.change == Change::Same);
    if !all {
        objects.retain(|object| object.change != Change::Same);
    }
    Ok(DiffOutput {
        from,
        to,
        same,
        objects,
    })
}

fn compare(before: &[ObjectFacts], after: &[ObjectFacts], same_hash: bool) -> Vec<Difference> {
    let key = |object: &ObjectFacts| (object.kind, object.name.clone());
    let rows = |object: &ObjectFacts| object.fingerprint.map(|print| print.rows);
    let mut old: BTreeMap<_, _> = before.iter().map(|object| (key(object), object)).collect();
    let mut differences: Vec<Difference> = after
        .iter()
        .map(|object| {
            let earlier = old.remove(&key(object));
            let change = match earlier {
                None => Change::Added,
                Some(earlier) => compare_one(earlier, object, same_hash),
            };
            Difference {
                kind: object.kind,
                name: object.name.clone(),
                change,
                rows_before: earlier.and_then(rows),
                rows_after: rows(object),
            }
        })
        .collect();
    differences.extend(old.into_values().map(|object| Difference {
        kind: object.kind,
        name: object.name.clone(),
        change: Change::Removed,
        rows_before: rows(object),
        rows_after: None,
    }));
    differences.sort_by(|one, other| (one.kind, &one.name).cmp(&(other.kind, &other.name)));
    differences
}

fn compare_one(before: &ObjectFacts, after: &ObjectFacts, same_hash: bool) -> Change {
    match (before.fingerprint, after.fingerprint) {
        // A row that is written in another format, or hashed in another way, has another hash, though it is the same.
        (Some(one), Some(other)) if same_hash && before.format == after.format => {
            if one == other && before.value == after.value {
                Change::Same
            } else {
                Change::Changed
            }
        }
        (Some(one), Some(other)) if one.rows != other.rows => Change::Changed,
        (None, None) if before.value.is_some() && after.value.is_some() => {
            if before.value == after.value {
                Change::Same
            } else {
                Change::Changed
            }
        }
        _ => Change::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use fettler_model::Fingerprint;

    use super::*;

    fn table_of(name: &str, rows: &[u8], format: &str) -> ObjectFacts {
        let mut fingerprint = Fingerprint::empty();
        rows.iter()
            .for_each(|row| fingerprint.add_row_hash([u64::from(*row); 2]));
        ObjectFacts {
            kind: ObjectKind::Table,
            name: name.to_owned(),
            fingerprint: Some(fingerprint),
            independent_rows: None,
            bytes: 0,
            value: None,
            format: Some(format.to_owned()),
        }
    }

    #[test]
    fn tables_that_changed_came_or_went_are_told_and_the_same_ones_are_the_same() {
        let before = [
            table_of("a", &[1, 2], "binary"),
            table_of("b", &[1], "binary"),
            table_of("c", &[1], "binary"),
            table_of("d", &[1], "binary"),
        ];
        let after = [
            table_of("a", &[1, 3], "binary"),
            table_of("b", &[1], "binary"),
            table_of("d", &[1], "text"),
            table_of("e", &[], "binary"),
        ];
        let changes: Vec<(String, Change)> = compare(&before, &after, true)
            .into_iter()
            .map(|difference| (difference.name, difference.change))
            .collect();
        assert_eq!(
            changes,
            [
                ("a".to_owned(), Change::Changed),
                ("b".to_owned(), Change::Same),
                ("c".to_owned(), Change::Removed),
                ("d".to_owned(), Change::Unknown),
                ("e".to_owned(), Change::Added),
            ]
        );
        let by_another_hash = compare(&before[1..2], &after[1..2], false);
        assert_eq!(by_another_hash[0].change, Change::Unknown);
    }
}
