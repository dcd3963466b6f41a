//! What a copy in a living database is compared by: `copy-data` restores into a place that people use, where other things may
//! lie beside, and where rows may go by themselves.

use std::collections::BTreeSet;

use fettler_model::{ObjectFacts, ObjectKind};

/// Both sides of the comparison of a copy with what was read of its source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CopyFacts {
    /// What the copy is to hold.
    pub expected: Vec<ObjectFacts>,
    /// What it holds of that, and whatever else counts against it.
    pub found: Vec<ObjectFacts>,
    /// What lies beside it and is none of its business, by name.
    pub beside: Vec<String>,
    /// What a person should know of the comparison, such as what was left out of it.
    pub notes: Vec<String>,
}

impl CopyFacts {
    /// Compares with `expected`. What was found besides counts against the copy where it was to be all of its place, and lies
    /// beside it otherwise.
    #[must_use]
    pub fn of(
        expected: Vec<ObjectFacts>,
        found: Vec<ObjectFacts>,
        is_all_of_its_place: bool,
    ) -> Self {
        let known: BTreeSet<(String, String)> = expected.iter().map(key).collect();
        let (own, other): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|object| is_all_of_its_place || known.contains(&key(object)));
        let mut beside: Vec<String> = other
            .into_iter()
            .filter(|object| object.kind == ObjectKind::Table)
            .map(|object| object.name)
            .collect();
        beside.dedup();
        Self {
            expected,
            found: own,
            beside,
            notes: Vec::new(),
        }
    }
}

fn key(object: &ObjectFacts) -> (String, String) {
    (format!("{:?}", object.kind), object.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> ObjectFacts {
        ObjectFacts {
            kind: ObjectKind::Table,
            name: name.to_owned(),
            fingerprint: None,
            independent_rows: None,
            bytes: 0,
            value: None,
            format: None,
        }
    }

    #[test]
    fn what_lies_beside_a_part_is_told_apart_and_counts_against_a_whole() {
        let found = vec![table("a"), table("b")];
        let part = CopyFacts::of(vec![table("a")], found.clone(), false);
        assert_eq!((part.found.len(), part.beside), (1, vec!["b".to_owned()]));
        let whole = CopyFacts::of(vec![table("a")], found, true);
        assert_eq!((whole.found.len(), whole.beside.len()), (2, 0));
    }
}
