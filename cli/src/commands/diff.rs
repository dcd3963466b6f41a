//! `fettler diff`: which tables differ between two backups, by their fingerprints alone: nothing is read
//! but the two manifests.

use std::collections::BTreeMap;

use fettler_model::{BackupId, ObjectFacts, ObjectKind};
use serde::Serialize;

use crate::{
    app::App,
    args::DiffArgs,
    commands::show::kind_word,
    failure::{Exit, Outcome},
    output::table,
    select,
    services::Use,
    units,
};

/// The fields of `--json`.
#[derive(Debug, Serialize)]
struct Document {
    from: BackupId,
    to: BackupId,
    /// Whether nothing differs.
    same: bool,
    objects: Vec<Difference>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Difference {
    kind: ObjectKind,
    name: String,
    change: Change,
    rows_before: Option<u64>,
    rows_after: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    Added,
    Removed,
    Changed,
    Same,
    /// Nothing was kept by which it could be compared.
    Unknown,
}

pub(crate) async fn run(app: &App, args: &DiffArgs) -> Outcome {
    let repository = app.repository(Use::Read).await?;
    let listing = repository.backups().await?;
    let from = select::find_backup(&listing, &args.from, repository.place())?;
    let to = select::find_backup(&listing, &args.to, repository.place())?;
    let before = fettler_jobs::report_of(&repository.manifest(from.id).await?)?;
    let after = fettler_jobs::report_of(&repository.manifest(to.id).await?)?;
    let mut objects = compare(&before.objects, &after.objects);
    let same = objects.iter().all(|object| object.change == Change::Same);
    if !args.all {
        objects.retain(|object| object.change != Change::Same);
    }
    let document = Document {
        from: from.id,
        to: to.id,
        same,
        objects,
    };
    app.output.result(&document, || text(&document));
    Ok(Exit::Done)
}

fn compare(before: &[ObjectFacts], after: &[ObjectFacts]) -> Vec<Difference> {
    let key = |object: &ObjectFacts| (kind_word(object.kind), object.name.clone());
    let rows = |object: &ObjectFacts| object.fingerprint.map(|print| print.rows);
    let mut old: BTreeMap<_, _> = before.iter().map(|object| (key(object), object)).collect();
    let mut differences: Vec<Difference> = after
        .iter()
        .map(|object| {
            let earlier = old.remove(&key(object));
            let change = match earlier {
                None => Change::Added,
                Some(earlier) => compare_one(earlier, object),
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
    differences.sort_by(|one, other| {
        (kind_word(one.kind), &one.name).cmp(&(kind_word(other.kind), &other.name))
    });
    differences
}

fn compare_one(before: &ObjectFacts, after: &ObjectFacts) -> Change {
    match (before.fingerprint, after.fingerprint) {
        // A row that is written in another format has another hash, though it is the same.
        (Some(one), Some(other)) if before.format == after.format => {
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

fn text(document: &Document) -> String {
    if document.objects.is_empty() {
        return format!(
            "Nothing differs between {} and {}.",
            document.from.short(),
            document.to.short()
        );
    }
    let rows = |rows: Option<u64>| rows.map_or_else(|| "-".to_owned(), units::count);
    table(
        &[
            "what",
            "name",
            "change",
            "rows before",
            "rows after",
            "difference",
        ],
        document.objects.iter().map(|object| {
            let difference = match (object.rows_before, object.rows_after) {
                (Some(before), Some(after)) if after >= before => {
                    format!("+{}", units::count(after - before))
                }
                (Some(before), Some(after)) => format!("-{}", units::count(before - after)),
                _ => String::new(),
            };
            vec![
                kind_word(object.kind).to_owned(),
                object.name.clone(),
                match object.change {
                    Change::Added => "added",
                    Change::Removed => "removed",
                    Change::Changed => "changed",
                    Change::Same => "same",
                    Change::Unknown => "unknown",
                }
                .to_owned(),
                rows(object.rows_before),
                rows(object.rows_after),
                difference,
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use fettler_model::Fingerprint;

    use super::*;

    fn table_of(name: &str, rows: &[u8], format: &str) -> ObjectFacts {
        let mut fingerprint = Fingerprint::empty();
        rows.iter()
            .for_each(|row| fingerprint.add_row_hash(&[*row; 32]));
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
        let changes: Vec<(String, Change)> = compare(&before, &after)
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
    }
}
