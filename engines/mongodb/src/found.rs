//! What is in a server, as a backup says it and a proof compares it.
//!
//! | object | compared by |
//! |---|---|
//! | table `shop.orders` | the fingerprint of its documents, and their number as the server itself counted it |
//! | schema `shop.orders` | a keyed digest of its options and indexes; of a view, its definition |
//! | schema `collections` | how many there are, so that a server without any is compared too |
//! | schema `users and roles` | not compared: a restore leaves them out |

use fettler_model::{Fingerprint, ObjectFacts, ObjectKind};

/// The name of the object for the list of collections.
const COLLECTIONS: &str = "collections";
/// The name of the object for users and roles.
const USERS: &str = "users and roles";

/// Whether an object is about the whole server, and not about a collection.
pub(crate) fn is_of_the_server(name: &str) -> bool {
    name == COLLECTIONS || name == USERS
}

/// The documents of a collection.
pub(crate) fn documents(
    namespace: String,
    fingerprint: Fingerprint,
    counted: Option<u64>,
    bytes: u64,
) -> ObjectFacts {
    ObjectFacts {
        fingerprint: Some(fingerprint),
        independent_rows: counted,
        bytes,
        ..object(ObjectKind::Table, namespace)
    }
}

/// What a collection or a view is.
pub(crate) fn definition(namespace: String, digest: String) -> ObjectFacts {
    ObjectFacts {
        value: Some(digest),
        ..object(ObjectKind::Schema, namespace)
    }
}

/// How many collections and views there are.
pub(crate) fn collections(count: usize) -> ObjectFacts {
    ObjectFacts {
        value: Some(count.to_string()),
        ..object(ObjectKind::Schema, COLLECTIONS.to_owned())
    }
}

/// Users and roles, which are only listed.
pub(crate) fn users(bytes: u64) -> ObjectFacts {
    ObjectFacts {
        bytes,
        ..object(ObjectKind::Schema, USERS.to_owned())
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
