//! The comparison at the heart of a proof: what the backup says was in the source against what is in
//! the restored copy (rules 27 to 30). Pure, so that every way to be wrong has a test.

use std::collections::BTreeMap;

use fettler_model::{ObjectFacts, ObjectKind, ProofVerdict};

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// What may be said of the backup.
    pub(crate) verdict: ProofVerdict,
    /// Fingerprints, counts and values that were compared.
    pub(crate) compared: u64,
    /// What differed, in words.
    pub(crate) mismatches: Vec<String>,
    /// What keeps a backup that matches from being proven.
    pub(crate) doubts: Vec<String>,
}

/// Compares the objects of a backup with those of its restored copy.
pub(crate) fn compare(
    expected: &[ObjectFacts],
    copy: &[ObjectFacts],
    failed_statements: &[String],
) -> Comparison {
    let mut found = Comparison {
        verdict: ProofVerdict::Failed,
        compared: 0,
        mismatches: failed_statements
            .iter()
            .map(|statement| format!("a statement of the restore failed: {statement}"))
            .collect(),
        doubts: Vec::new(),
    };
    let mut copies: BTreeMap<(String, &str), &ObjectFacts> =
        copy.iter().map(|object| (key(object), object)).collect();
    if expected.is_empty() {
        found
            .doubts
            .push("the backup lists no objects to compare".to_owned());
    }
    for object in expected {
        let copied = copies.remove(&key(object));
        found.compare_object(object, copied);
    }
    for extra in copies.values() {
        // A view that is computed at the restore is no sign of a wrong copy.
        if extra.kind != ObjectKind::MaterializedView {
            found.mismatches.push(format!(
                "{} is in the copy and was not in the backup",
                named(extra)
            ));
        }
    }
    found.verdict = match (found.mismatches.is_empty(), found.doubts.is_empty()) {
        (false, _) => ProofVerdict::Failed,
        (true, false) => ProofVerdict::MatchesWhatWasRead,
        (true, true) => ProofVerdict::Proven,
    };
    found
}

impl Comparison {
    /// Adds what could not be compared: a backup that matches otherwise is not proven.
    pub(crate) fn doubt(&mut self, doubts: Vec<String>) {
        if !doubts.is_empty() && self.verdict == ProofVerdict::Proven {
            self.verdict = ProofVerdict::MatchesWhatWasRead;
        }
        self.doubts.extend(doubts);
    }

    fn compare_object(&mut self, object: &ObjectFacts, copied: Option<&ObjectFacts>) {
        // The count by another path says whether the reader read everything: it needs no copy.
        if let Some(read) = object.fingerprint {
            match object.independent_rows {
                Some(counted) => {
                    self.compared += 1;
                    if counted != read.rows {
                        self.mismatches.push(format!(
                            "{}: the server counted {counted} rows, and {} were read",
                            named(object),
                            read.rows
                        ));
                    }
                }
                None => self.doubts.push(format!(
                    "nothing independent counted the rows of {}",
                    named(object)
                )),
            }
        }
        if object.kind == ObjectKind::MaterializedView
            || (object.fingerprint.is_none() && object.value.is_none())
        {
            return;
        }
        let Some(copied) = copied else {
            self.mismatches
                .push(format!("{} is missing in the copy", named(object)));
            return;
        };
        if let Some(expected) = object.fingerprint {
            self.compared += 1;
            match copied.fingerprint {
                Some(found) if found == expected => {}
                Some(found) if found.rows != expected.rows => self.mismatches.push(format!(
                    "{}: {} rows in the copy instead of {}",
                    named(object),
                    found.rows,
                    expected.rows
                )),
                Some(_) => self.mismatches.push(format!(
                    "{}: the same number of rows, but their content differs",
                    named(object)
                )),
                None => self.mismatches.push(format!(
                    "{}: the copy's rows could not be fingerprinted",
                    named(object)
                )),
            }
        }
        if let Some(expected) = &object.value {
            self.compared += 1;
            if copied.value.as_ref() != Some(expected) {
                self.mismatches.push(format!(
                    "{}: {} in the copy instead of {}",
                    named(object),
                    copied.value.as_deref().unwrap_or("nothing"),
                    expected
                ));
            }
        }
    }
}

fn key(object: &ObjectFacts) -> (String, &str) {
    (format!("{:?}", object.kind), object.name.as_str())
}

fn named(object: &ObjectFacts) -> String {
    let kind = match object.kind {
        ObjectKind::Table => "table",
        ObjectKind::LargeObjects => "large objects",
        ObjectKind::Sequence => "sequence",
        ObjectKind::Schema => "schema",
        ObjectKind::MaterializedView => "materialised view",
    };
    format!("{kind} {}", object.name)
}

#[cfg(test)]
mod tests {
    use fettler_model::Fingerprint;

    use super::*;

    fn table(name: &str, rows: &[u8], counted: Option<u64>) -> ObjectFacts {
        let mut fingerprint = Fingerprint::empty();
        rows.iter()
            .for_each(|row| fingerprint.add_row_hash([u64::from(*row); 2]));
        ObjectFacts {
            kind: ObjectKind::Table,
            name: name.to_owned(),
            fingerprint: Some(fingerprint),
            independent_rows: counted,
            bytes: 0,
            value: None,
            format: None,
        }
    }

    fn verdict(expected: &[ObjectFacts], copy: &[ObjectFacts]) -> ProofVerdict {
        compare(expected, copy, &[]).verdict
    }

    #[test]
    fn p4_an_equal_copy_with_equal_counts_is_proven() {
        let source = [table("a", &[1, 2], Some(2))];
        assert_eq!(verdict(&source, &source), ProofVerdict::Proven);
    }

    #[test]
    fn rule_27_without_an_independent_count_a_copy_only_matches_what_was_read() {
        let source = [table("a", &[1, 2], None)];
        assert_eq!(verdict(&source, &source), ProofVerdict::MatchesWhatWasRead);
    }

    #[test]
    fn rule_30_a_reader_that_skipped_a_range_is_not_proven_though_the_copy_equals_what_was_read() {
        let read = [table("a", &[1, 2], Some(3))];
        assert_eq!(verdict(&read, &read), ProofVerdict::Failed);
    }

    #[test]
    fn a_row_doubled_and_another_lost_is_found() {
        let source = [table("a", &[1, 2], Some(2))];
        let copy = [table("a", &[1, 1], Some(2))];
        assert_eq!(verdict(&source, &copy), ProofVerdict::Failed);
    }

    #[test]
    fn a_missing_table_and_an_extra_table_are_found() {
        let source = [table("a", &[1], Some(1))];
        let found = compare(&source, &[table("b", &[1], Some(1))], &[]);
        assert_eq!(found.mismatches.len(), 2, "{found:?}");
    }

    #[test]
    fn rule_27_a_failed_statement_of_the_restore_counts_against_the_backup() {
        let source = [table("a", &[1], Some(1))];
        let found = compare(&source, &source, &["CREATE INDEX i".to_owned()]);
        assert_eq!(found.verdict, ProofVerdict::Failed);
    }

    #[test]
    fn a_backup_without_objects_is_never_proven() {
        assert_eq!(verdict(&[], &[]), ProofVerdict::MatchesWhatWasRead);
    }

    #[test]
    fn a_sequence_that_stands_elsewhere_is_found() {
        let at = |value: &str| ObjectFacts {
            kind: ObjectKind::Sequence,
            fingerprint: None,
            value: Some(value.to_owned()),
            ..table("s", &[], None)
        };
        assert_eq!(verdict(&[at("41")], &[at("41")]), ProofVerdict::Proven);
        assert_eq!(verdict(&[at("41")], &[at("1")]), ProofVerdict::Failed);
    }

    #[test]
    fn what_could_not_be_compared_keeps_a_backup_from_being_proven_and_excuses_nothing() {
        let with = |verdict| {
            let mut comparison = Comparison {
                verdict,
                compared: 1,
                mismatches: Vec::new(),
                doubts: Vec::new(),
            };
            comparison.doubt(vec!["shop was written to".to_owned()]);
            comparison.verdict
        };
        assert_eq!(with(ProofVerdict::Proven), ProofVerdict::MatchesWhatWasRead);
        assert_eq!(with(ProofVerdict::Failed), ProofVerdict::Failed);
    }
}
