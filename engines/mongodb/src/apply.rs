//! An oplog's modification, applied to a document: operators (`$v: 1`: `$set` and `$unset`) and differences (`$v: 2`; MongoDB's
//! source, `src/mongo/db/update/document_diff_serialization.h`).
//!
//! Applying one that the document has already been through changes nothing that a later one does not mend: entries may be
//! applied from any point before the document was read, as long as all up to the end are.

use bson::{Bson, Document, RawDocument, RawDocumentBuf};

/// Applies a modification; nothing where it is of a form whose outcome depends on more than the document as it is here.
pub(crate) fn apply(document: &RawDocument, change: &RawDocument) -> Option<RawDocumentBuf> {
    let mut document = Document::try_from(document.to_owned()).ok()?;
    let change = Document::try_from(change.to_owned()).ok()?;
    let version = change.get("$v").and_then(|version| match version {
        Bson::Int32(version) => Some(i64::from(*version)),
        Bson::Int64(version) => Some(*version),
        Bson::Double(version) => Some(*version as i64),
        _ => None,
    });
    match version {
        Some(2) => difference(&mut document, change.get_document("diff").ok()?)?,
        None | Some(1) => operators(&mut document, &change)?,
        Some(_) => return None,
    }
    RawDocumentBuf::try_from(&document).ok()
}

fn operators(document: &mut Document, change: &Document) -> Option<()> {
    for (operator, fields) in change {
        let is_set = match operator.as_str() {
            "$set" => true,
            "$unset" => false,
            "$v" => continue,
            _ => return None,
        };
        for (path, value) in fields.as_document()? {
            let names: Vec<&str> = path.split('.').collect();
            set(document, &names, is_set.then_some(value))?;
        }
    }
    Some(())
}

/// Sets what a path leads to, or removes it. What a server would refuse, or has long changed into something else, is left to
/// be read anew.
fn set(document: &mut Document, path: &[&str], value: Option<&Bson>) -> Option<()> {
    let (name, rest) = path.split_first()?;
    if rest.is_empty() {
        match value {
            Some(value) => {
                document.insert(*name, value.clone());
            }
            None => {
                document.remove(name);
            }
        }
        return Some(());
    }
    match (document.get_mut(*name), value) {
        (Some(inner), _) => set_in(inner, rest, value),
        (None, None) => Some(()),
        (None, Some(_)) => {
            let mut inner = Document::new();
            set(&mut inner, rest, value)?;
            document.insert(*name, inner);
            Some(())
        }
    }
}

fn set_in(place: &mut Bson, path: &[&str], value: Option<&Bson>) -> Option<()> {
    match place {
        Bson::Document(inner) => set(inner, path, value),
        Bson::Array(items) => {
            let (index, rest) = path.split_first()?;
            let index: usize = index.parse().ok()?;
            if rest.is_empty() {
                return put_item(items, index, value.cloned().unwrap_or(Bson::Null));
            }
            set_in(items.get_mut(index)?, rest, value)
        }
        _ => None,
    }
}

/// The most items that an array may be filled up by.
const MOST_PADDING: usize = 1_500_000;

fn put_item(items: &mut Vec<Bson>, index: usize, value: Bson) -> Option<()> {
    if index >= items.len() {
        if index - items.len() > MOST_PADDING {
            return None;
        }
        items.resize(index + 1, Bson::Null);
    }
    items[index] = value;
    Some(())
}

/// `d` removes, `u` sets where a field is, `i` sets at the end, `s…` goes deeper.
fn difference(document: &mut Document, diff: &Document) -> Option<()> {
    for (name, value) in diff {
        match name.as_str() {
            "d" => {
                for (field, _) in value.as_document()? {
                    document.remove(field);
                }
            }
            "u" => {
                for (field, value) in value.as_document()? {
                    document.insert(field.clone(), value.clone());
                }
            }
            "i" => {
                for (field, value) in value.as_document()? {
                    document.remove(field);
                    document.insert(field.clone(), value.clone());
                }
            }
            deeper => {
                let field = deeper.strip_prefix('s')?;
                let diff = value.as_document()?;
                // What is no longer there was removed by a later entry.
                if let Some(inner) = document.get_mut(field) {
                    deeper_difference(inner, diff)?;
                }
            }
        }
    }
    Some(())
}

fn deeper_difference(place: &mut Bson, diff: &Document) -> Option<()> {
    let is_array = diff.get_bool("a").unwrap_or(false);
    match place {
        Bson::Document(inner) if !is_array => difference(inner, diff),
        Bson::Array(items) if is_array => array_difference(items, diff),
        // It is of another type by a later entry, which will tell.
        _ => Some(()),
    }
}

/// `l` is the new length, `u0` sets an item, `s0` goes deeper.
fn array_difference(items: &mut Vec<Bson>, diff: &Document) -> Option<()> {
    for (name, value) in diff {
        match name.as_str() {
            "a" => {}
            "l" => {
                let length = match value {
                    Bson::Int32(length) => usize::try_from(*length).ok()?,
                    Bson::Int64(length) => usize::try_from(*length).ok()?,
                    _ => return None,
                };
                if length < items.len() {
                    items.truncate(length);
                } else if length > items.len() {
                    put_item(items, length - 1, Bson::Null)?;
                }
            }
            name => {
                let (kind, index) = name.split_at_checked(1)?;
                let index: usize = index.parse().ok()?;
                match kind {
                    "u" => put_item(items, index, value.clone())?,
                    "s" => {
                        if let Some(inner) = items.get_mut(index) {
                            deeper_difference(inner, value.as_document()?)?;
                        }
                    }
                    _ => return None,
                }
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn applied(document: &RawDocument, change: &RawDocument) -> RawDocumentBuf {
        let once = apply(document, change).unwrap();
        assert_eq!(apply(&once, change).unwrap(), once, "applied twice");
        once
    }

    #[test]
    fn operators_set_and_unset_by_path() {
        let document = rawdoc! { "_id": 1, "a": { "b": [1, { "c": 2 }] }, "z": 0 };
        assert_eq!(
            applied(
                &document,
                &rawdoc! { "$v": 1, "$set": { "a.b.1.c": 3, "n.m": "x" }, "$unset": { "z": true } }
            ),
            rawdoc! { "_id": 1, "a": { "b": [1, { "c": 3 }] }, "n": { "m": "x" } }
        );
        assert_eq!(
            applied(&document, &rawdoc! { "$set": { "a.b.3": true } }),
            rawdoc! { "_id": 1, "a": { "b": [1, { "c": 2 }, null, true] }, "z": 0 }
        );
    }

    /// As `$inc`, `$push`, `$pull` and a new field are written by MongoDB 5 and later.
    #[test]
    fn differences_are_those_of_the_documentation() {
        let document = rawdoc! { "_id": 1, "count": 4, "tags": ["a", "b"], "deep": { "x": 1, "y": 2 }, "old": 1 };
        assert_eq!(
            applied(
                &document,
                &rawdoc! { "$v": 2, "diff": { "d": { "old": false }, "u": { "count": 5 }, "i": { "new": true }, "sdeep": { "u": { "x": 9 } } } },
            ),
            rawdoc! { "_id": 1, "count": 5, "tags": ["a", "b"], "deep": { "x": 9, "y": 2 }, "new": true }
        );
        assert_eq!(
            applied(
                &document,
                &rawdoc! { "$v": 2, "diff": { "stags": { "a": true, "u2": "c" } } }
            ),
            rawdoc! { "_id": 1, "count": 4, "tags": ["a", "b", "c"], "deep": { "x": 1, "y": 2 }, "old": 1 }
        );
        assert_eq!(
            applied(
                &document,
                &rawdoc! { "$v": 2, "diff": { "stags": { "a": true, "l": 1 } } }
            ),
            rawdoc! { "_id": 1, "count": 4, "tags": ["a"], "deep": { "x": 1, "y": 2 }, "old": 1 }
        );
        let nested = rawdoc! { "_id": 1, "list": [{ "n": 1 }, { "n": 2 }] };
        assert_eq!(
            applied(
                &nested,
                &rawdoc! { "$v": 2, "diff": { "slist": { "a": true, "s1": { "u": { "n": 7 } } } } }
            ),
            rawdoc! { "_id": 1, "list": [{ "n": 1 }, { "n": 7 }] }
        );
    }

    #[test]
    fn all_entries_from_any_point_before_the_reading_lead_to_the_end() {
        let entries = [
            rawdoc! { "$v": 2, "diff": { "i": { "a": { "x": 1 } } } },
            rawdoc! { "$v": 2, "diff": { "sa": { "u": { "x": 2 } } } },
            rawdoc! { "$v": 2, "diff": { "u": { "a": [1, 2] } } },
            rawdoc! { "$v": 2, "diff": { "sa": { "a": true, "u2": 3 } } },
            rawdoc! { "$v": 2, "diff": { "d": { "a": false }, "i": { "b": 1 } } },
        ];
        let mut states = vec![rawdoc! { "_id": 1 }];
        for entry in &entries {
            states.push(apply(states.last().unwrap(), entry).unwrap());
        }
        for (read_at, state) in states.iter().enumerate() {
            for from in 0..=read_at {
                let end = entries[from..]
                    .iter()
                    .try_fold(state.clone(), |state, entry| apply(&state, entry))
                    .unwrap();
                assert_eq!(
                    &end,
                    states.last().unwrap(),
                    "read at {read_at}, applied from {from}"
                );
            }
        }
    }

    #[test]
    fn what_depends_on_more_is_not_guessed() {
        for change in [
            rawdoc! { "$inc": { "a": 1 } },
            rawdoc! { "$v": 3, "diff": {} },
            rawdoc! { "$set": { "a.b": 1 } },
        ] {
            assert_eq!(
                apply(&rawdoc! { "_id": 1, "a": 1 }, &change),
                None,
                "{change:?}"
            );
        }
    }
}
