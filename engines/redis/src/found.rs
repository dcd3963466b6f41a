//! What is in a server, as a backup says it and a proof compares it.
//!
//! | object | compared by |
//! |---|---|
//! | `db0` | the fingerprint of all its keys, and their number as the server itself counted it |
//! | `db0/hash` | the fingerprint of its keys of one type, as text |
//! | `functions` | a keyed digest of the libraries' code |
//! | `acl users`, `configuration` | not compared: a restore leaves them out unless it is asked |
//!
//! **The independent count** (rule 27) of a database is the one that the server writes before its keys: the size of
//! its own table at the moment of the fork, which no reading of keys has a part in.

use std::collections::BTreeMap;

use fettler_model::{Fingerprint, ObjectFacts, ObjectKind};

use crate::records::Kind;

/// The name of the object for functions.
const FUNCTIONS: &str = "functions";

/// What was found in the keys of one database.
#[derive(Clone, Debug, Default)]
pub(crate) struct FoundDatabase {
    /// By type.
    pub(crate) kinds: BTreeMap<Kind, Fingerprint>,
    /// Bytes of keys and values.
    pub(crate) bytes: u64,
    /// Keys that were left out.
    pub(crate) left_out: u64,
    /// How many keys the server counted.
    pub(crate) counted: Option<u64>,
}

impl FoundDatabase {
    /// Adds what was found in the same database of another node of the cluster.
    pub(crate) fn add(&mut self, other: &Self) {
        for (kind, fingerprint) in &other.kinds {
            self.kinds.entry(*kind).or_default().merge(fingerprint);
        }
        self.bytes += other.bytes;
        self.left_out += other.left_out;
    }
}

/// What was found in all databases.
pub(crate) type Found = BTreeMap<u32, FoundDatabase>;

/// The objects of what was found.
pub(crate) fn objects(found: &Found) -> Vec<ObjectFacts> {
    let mut objects = Vec::new();
    for (number, database) in found {
        let mut all = Fingerprint::empty();
        for fingerprint in database.kinds.values() {
            all.merge(fingerprint);
        }
        objects.push(ObjectFacts {
            fingerprint: Some(all),
            independent_rows: database
                .counted
                .map(|counted| counted.saturating_sub(database.left_out)),
            bytes: database.bytes,
            ..object(ObjectKind::Table, format!("db{number}"))
        });
        objects.extend(
            database
                .kinds
                .iter()
                .map(|(kind, fingerprint)| ObjectFacts {
                    value: Some(fingerprint.to_string()),
                    ..object(ObjectKind::Table, format!("db{number}/{}", kind.name()))
                }),
        );
    }
    objects
}

/// The object of libraries of functions, in any order.
pub(crate) fn functions(key: &[u8; 32], code: &[Vec<u8>]) -> ObjectFacts {
    let mut sorted: Vec<&Vec<u8>> = code.iter().collect();
    sorted.sort_unstable();
    let mut hasher = blake3::Hasher::new_keyed(key);
    for library in sorted {
        hasher.update(&(library.len() as u64).to_le_bytes());
        hasher.update(library);
    }
    ObjectFacts {
        value: Some(format!("{}:{}", code.len(), hasher.finalize().to_hex())),
        ..object(ObjectKind::Schema, FUNCTIONS.to_owned())
    }
}

/// An object that is only listed.
pub(crate) fn listed(name: &str, bytes: u64) -> ObjectFacts {
    ObjectFacts {
        bytes,
        ..object(ObjectKind::Schema, name.to_owned())
    }
}

fn object(kind: ObjectKind, name: String) -> ObjectFacts {
    ObjectFacts {
        kind,
        name,
        fingerprint: None,
        independent_rows: None,
        bytes: 0,
        value: None,
        format: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_were_left_out_are_left_out_of_the_count_too() {
        let database = FoundDatabase {
            left_out: 2,
            counted: Some(5),
            ..FoundDatabase::default()
        };
        let found = objects(&Found::from([(3, database)]));
        assert_eq!(found[0].name, "db3");
        assert_eq!(found[0].independent_rows, Some(3));
    }

    #[test]
    fn the_order_of_libraries_means_nothing_and_their_borders_do() {
        let of = |code: &[&str]| {
            let code: Vec<Vec<u8>> = code.iter().map(|one| one.as_bytes().to_vec()).collect();
            functions(&[1; 32], &code).value
        };
        assert_eq!(of(&["ab", "c"]), of(&["c", "ab"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
    }
}
