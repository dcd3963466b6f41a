//! The oplog's entries: which documents they are about, and what becomes of them.
//!
//! The form is that of MongoDB's own documentation and source (`src/mongo/db/repl/oplog_entry.idl`): `op` is `i`, `u`, `d`, `c`
//! or `n`; an update's `o` is the new document, or operators (`$v: 1`), or a difference (`$v: 2`). What belongs to a transaction
//! only says which documents it is about: whether it came to be is told by their content later.

use bson::{RawDocument, RawDocumentBuf, raw::RawBsonRef};

use crate::raw::{ID, id_of, put};

/// Commands that change what a namespace is, and so what its documents are.
const REMOVALS: [&str; 6] = [
    "drop",
    "dropDatabase",
    "renameCollection",
    "convertToCapped",
    "emptycapped",
    "importCollection",
];
/// Commands that change a definition and no document.
const DEFINITIONS: [&str; 7] = [
    "create",
    "collMod",
    "createIndexes",
    "commitIndexBuild",
    "dropIndexes",
    "deleteIndexes",
    "dropIndex",
];

/// What an entry says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// A document was put there.
    Insert {
        namespace: String,
        document: RawDocumentBuf,
    },
    /// A document was replaced by another one of the same `_id`.
    Replace {
        namespace: String,
        document: RawDocumentBuf,
    },
    /// Something in a document was changed.
    Modify {
        namespace: String,
        id: RawDocumentBuf,
        change: RawDocumentBuf,
    },
    /// A document was removed.
    Delete {
        namespace: String,
        id: RawDocumentBuf,
    },
    /// Something may have become of a document.
    Touch {
        namespace: String,
        id: RawDocumentBuf,
    },
    /// A collection or a database is no longer what it was, or has another definition.
    Shape {
        database: String,
        collection: Option<String>,
        command: String,
        is_removal: bool,
    },
}

/// Reads an entry.
///
/// # Errors
///
/// In words, for an entry of a form that is not known: what it changes could not be told.
pub(crate) fn changes(entry: &RawDocument) -> Result<Vec<Change>, String> {
    let mut found = Vec::new();
    read(entry, false, &mut found).map_err(|what| format!("an entry of the oplog {what}"))?;
    Ok(found)
}

fn read(entry: &RawDocument, is_grouped: bool, found: &mut Vec<Change>) -> Result<(), String> {
    let word = |name: &str| entry.get_str(name).map_err(|_| format!("has no `{name}`"));
    let object = || entry.get_document("o").map_err(|_| "has no `o`".to_owned());
    let kind = word("op")?;
    if kind == "n" {
        return Ok(());
    }
    let namespace = word("ns")?.to_owned();
    match kind {
        "i" => {
            let document = object()?;
            let Some(id) = id_of(document) else {
                // Only the server's own collections have such documents.
                return Ok(());
            };
            found.push(if is_grouped {
                Change::Touch { namespace, id }
            } else {
                Change::Insert {
                    namespace,
                    document: document.to_owned(),
                }
            });
        }
        "d" => {
            let id = id_of(object()?).ok_or("deletes what has no `_id`")?;
            found.push(if is_grouped {
                Change::Touch { namespace, id }
            } else {
                Change::Delete { namespace, id }
            });
        }
        "u" => {
            let id = entry
                .get_document("o2")
                .ok()
                .and_then(id_of)
                .ok_or("updates what has no `_id`")?;
            let change = object()?;
            let has_operators = change
                .iter()
                .flatten()
                .next()
                .is_some_and(|(name, _)| name.as_str().starts_with('$'));
            found.push(if is_grouped {
                Change::Touch { namespace, id }
            } else if has_operators {
                Change::Modify {
                    namespace,
                    id,
                    change: change.to_owned(),
                }
            } else {
                Change::Replace {
                    namespace,
                    document: whole(&id, change),
                }
            });
        }
        "c" => command(&namespace, object()?, found)?,
        // A collection's or a retryable write's own bookkeeping.
        "xi" | "xd" | "km" | "db" => {}
        other => return Err(format!("is of the kind {other:?}, which is not known")),
    }
    Ok(())
}

/// The new document with its `_id`, which comes first as a server keeps it.
fn whole(id: &RawDocument, document: &RawDocument) -> RawDocumentBuf {
    if matches!(document.get(ID), Ok(Some(_))) {
        return document.to_owned();
    }
    let mut made = id.to_owned();
    for (name, value) in document.iter().flatten() {
        put(&mut made, name.as_str(), value);
    }
    made
}

fn command(namespace: &str, object: &RawDocument, found: &mut Vec<Change>) -> Result<(), String> {
    let database = namespace.split('.').next().unwrap_or_default().to_owned();
    let Some(Ok((name, value))) = object.iter().next() else {
        return Err("is an empty command".to_owned());
    };
    let name = name.as_str();
    if name == "applyOps" {
        let Some(entries) = value.as_array() else {
            return Err("groups what is no list".to_owned());
        };
        for entry in entries {
            match entry {
                Ok(RawBsonRef::Document(entry)) => read(entry, true, found)?,
                _ => return Err("groups what is no entry".to_owned()),
            }
        }
        return Ok(());
    }
    let is_removal = REMOVALS.contains(&name);
    if is_removal || DEFINITIONS.contains(&name) {
        let mut shape = |database: String, collection: Option<String>| {
            found.push(Change::Shape {
                database,
                collection,
                command: name.to_owned(),
                is_removal,
            });
        };
        let mut split = |namespace: &str| {
            if let Some((database, collection)) = namespace.split_once('.') {
                shape(database.to_owned(), Some(collection.to_owned()));
            }
        };
        match (name, value.as_str()) {
            ("renameCollection", Some(from)) => {
                split(from);
                if let Ok(to) = object.get_str("to") {
                    split(to);
                }
            }
            (_, collection) => shape(database, collection.map(str::to_owned)),
        }
    }
    // `commitTransaction`, `abortTransaction`, `startIndexBuild`, `abortIndexBuild`, `dbCheck` and alike change no document that
    // another entry does not tell.
    Ok(())
}

#[cfg(test)]
mod tests {
    use bson::{Timestamp, rawdoc};

    use super::*;

    fn entry(op: &str, object: RawDocumentBuf, object2: Option<RawDocumentBuf>) -> RawDocumentBuf {
        let mut entry = rawdoc! {
            "ts": Timestamp { time: 7, increment: 1 }, "t": 1_i64, "v": 2_i64, "op": op, "ns": "shop.orders",
        };
        put(&mut entry, "o", object);
        if let Some(object2) = object2 {
            put(&mut entry, "o2", object2);
        }
        entry
    }

    #[test]
    fn writes_are_told_apart() {
        let namespace = "shop.orders".to_owned();
        let document = rawdoc! { "_id": 1, "a": 2 };
        assert_eq!(
            changes(&entry("i", document.clone(), None)).unwrap(),
            [Change::Insert {
                namespace: namespace.clone(),
                document: document.clone()
            }]
        );
        assert_eq!(
            changes(&entry("d", rawdoc! { "_id": 1 }, None)).unwrap(),
            [Change::Delete {
                namespace: namespace.clone(),
                id: rawdoc! { "_id": 1 }
            }]
        );
        let id = rawdoc! { "_id": 1 };
        for replaced in [rawdoc! { "_id": 1, "a": 2 }, rawdoc! { "a": 2 }] {
            assert_eq!(
                changes(&entry("u", replaced, Some(id.clone()))).unwrap(),
                [Change::Replace {
                    namespace: namespace.clone(),
                    document: document.clone()
                }]
            );
        }
        for change in [
            rawdoc! { "$v": 1, "$set": { "a": 3 } },
            rawdoc! { "$v": 2, "diff": { "u": { "a": 3 } } },
            rawdoc! { "$inc": { "a": 1 } },
        ] {
            assert_eq!(
                changes(&entry("u", change.clone(), Some(id.clone()))).unwrap(),
                [Change::Modify {
                    namespace: namespace.clone(),
                    id: id.clone(),
                    change
                }]
            );
        }
        assert_eq!(
            changes(&entry("n", rawdoc! { "msg": "periodic noop" }, None)).unwrap(),
            []
        );
    }

    #[test]
    fn a_transaction_tells_which_documents_it_is_about() {
        let grouped = rawdoc! {
            "applyOps": [
                { "op": "i", "ns": "shop.orders", "o": { "_id": 5 } },
                { "op": "u", "ns": "shop.stock", "o": { "$v": 2, "diff": {} }, "o2": { "_id": "x" } },
                { "op": "d", "ns": "shop.orders", "o": { "_id": 6 } },
            ],
            "prepare": true,
        };
        let found = changes(&entry("c", grouped, None)).unwrap();
        let touch = |namespace: &str, id: RawDocumentBuf| Change::Touch {
            namespace: namespace.to_owned(),
            id,
        };
        assert_eq!(
            found,
            [
                touch("shop.orders", rawdoc! { "_id": 5 }),
                touch("shop.stock", rawdoc! { "_id": "x" }),
                touch("shop.orders", rawdoc! { "_id": 6 }),
            ]
        );
    }

    #[test]
    fn what_changes_a_collection_itself_is_told() {
        let shapes = |object: RawDocumentBuf| -> Vec<(String, Option<String>, bool)> {
            changes(&entry("c", object, None))
                .unwrap()
                .into_iter()
                .map(|change| match change {
                    Change::Shape {
                        database,
                        collection,
                        is_removal,
                        ..
                    } => (database, collection, is_removal),
                    other => panic!("{other:?}"),
                })
                .collect()
        };
        let at = |name: &str| Some(name.to_owned());
        assert_eq!(
            shapes(rawdoc! { "drop": "orders" }),
            [("shop".to_owned(), at("orders"), true)]
        );
        assert_eq!(
            shapes(rawdoc! { "dropDatabase": 1 }),
            [("shop".to_owned(), None, true)]
        );
        assert_eq!(
            shapes(rawdoc! { "create": "new" }),
            [("shop".to_owned(), at("new"), false)]
        );
        assert_eq!(
            shapes(rawdoc! { "renameCollection": "shop.a.b", "to": "web.c" }),
            [
                ("shop".to_owned(), at("a.b"), true),
                ("web".to_owned(), at("c"), true)
            ]
        );
        assert_eq!(shapes(rawdoc! { "commitTransaction": 1 }), []);
    }

    #[test]
    fn what_is_not_known_is_no_silence() {
        for bad in [
            rawdoc! { "op": "x", "ns": "a.b", "o": {} },
            rawdoc! { "op": "u", "ns": "a.b", "o": { "a": 1 } },
            rawdoc! { "op": "i", "ns": "a.b" },
            rawdoc! { "ns": "a.b" },
        ] {
            assert!(changes(&bad).is_err(), "{bad:?}");
        }
    }
}
