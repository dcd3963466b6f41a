//! What is in a server, as a backup says it and a proof compares it.
//!
//! | object | compared by |
//! |---|---|
//! | table `shop.orders` | the fingerprint that the server made of its rows, and their number by the notes of its parts |
//! | schema `shop.orders` | a keyed digest of its definition; not where it speaks with something outside |
//! | schema `function f` | a keyed digest of its definition |
//! | schema `access`, `named collection n` | not compared: a restore leaves them out unless it is asked |

use fettler_model::{ObjectFacts, ObjectKind};

use crate::{
    catalogue::{Content, TableDefinition},
    sql::{with_databases_renamed, without_replication},
};

/// The object of a table's rows, without anything yet.
pub(crate) fn table(name: &str) -> ObjectFacts {
    object(ObjectKind::Table, name.to_owned())
}

/// The object of a definition. `name_at_source` says what a database was called where it was backed up.
pub(crate) fn definition(
    key: &[u8; 32],
    table: &TableDefinition,
    name_at_source: &dyn Fn(&str) -> Option<String>,
) -> ObjectFacts {
    let database = name_at_source(&table.database).unwrap_or_else(|| table.database.clone());
    let name = format!("{database}.{}", table.name);
    let create = without_replication(&with_databases_renamed(&table.create, name_at_source));
    ObjectFacts {
        // In a sandbox nothing speaks with anything outside: something else stands there.
        value: (table.content != Content::Outside).then(|| digest(key, &create)),
        ..object(ObjectKind::Schema, name)
    }
}

/// The object of a function.
pub(crate) fn function(key: &[u8; 32], name: &str, create: &str) -> ObjectFacts {
    ObjectFacts {
        value: Some(digest(key, create)),
        ..object(ObjectKind::Schema, format!("function {name}"))
    }
}

/// An object that is only listed.
pub(crate) fn listed(name: &str, bytes: u64) -> ObjectFacts {
    ObjectFacts {
        bytes,
        ..object(ObjectKind::Schema, name.to_owned())
    }
}

fn digest(key: &[u8; 32], text: &str) -> String {
    blake3::keyed_hash(key, text.trim().as_bytes()).to_hex()[..32].to_owned()
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
