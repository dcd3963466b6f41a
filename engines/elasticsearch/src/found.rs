//! What is in a server, as a backup says it and a proof compares it.
//!
//! | object | compared by |
//! |---|---|
//! | table `shop` | the fingerprint of an index's or a data stream's documents, and their number as the server counted it |
//! | schema `shop` | a keyed digest of its mappings and its lasting settings |
//! | `_templates` and the other parts of a cluster | not compared: a scratch place has none of its own |
//!
//! **The independent count** (rule 27) is the server's own, asked for at the very moment that is read, from its index and
//! not from the documents.

use fettler_model::{Fingerprint, ObjectFacts, ObjectKind};
use serde_json::{Map, Value, json};

use crate::{catalogue::Definition, json::digest};

/// What settings begin with that are not compared: what a server makes itself, what says where shards lie and how many copies
/// there are, and what is left out in a scratch place since it would work there (lifecycles, pipelines, blocks).
const NOT_COMPARED: [&str; 26] = [
    "uuid",
    "creation_date",
    "provided_name",
    "version.",
    "resize.",
    "history.",
    "routing.allocation.",
    "verified_before_close",
    "number_of_replicas",
    "auto_expand_replicas",
    "refresh_interval",
    "lifecycle.",
    "plugins.index_state_management.",
    "opendistro.index_state_management.",
    "default_pipeline",
    "final_pipeline",
    "search.default_pipeline",
    "blocks.",
    "hidden",
    "store.snapshot.",
    "store.type",
    "priority",
    "replication.type",
    "frozen",
    "soft_deletes.",
    "translog.",
];

/// Whether a setting, without `index.` before it, is compared.
fn is_compared(name: &str) -> bool {
    !NOT_COMPARED
        .iter()
        .any(|prefix| name == *prefix || (prefix.ends_with('.') && name.starts_with(prefix)))
}

/// What of a definition is compared.
fn compared(definition: &Definition) -> Value {
    let settings: Map<String, Value> = definition
        .settings
        .iter()
        .filter(|(name, _)| is_compared(name.strip_prefix("index.").unwrap_or(name)))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut mappings = definition.mappings.clone();
    if let Some(fields) = mappings.as_object_mut() {
        fields.retain(|name, value| {
            name != "_meta" || value.as_object().is_some_and(|meta| !meta.is_empty())
        });
    }
    json!({"settings": settings, "mappings": mappings})
}

/// What was found in an index or a data stream.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) fingerprint: Fingerprint,
    /// How many documents the server counted.
    pub(crate) counted: Option<u64>,
    /// Bytes of its documents.
    pub(crate) bytes: u64,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            fingerprint: Fingerprint::empty(),
            counted: Some(0),
            bytes: 0,
        }
    }
}

impl Found {
    /// Adds another shard, or another index of one data stream.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.fingerprint.merge(&other.fingerprint);
        self.counted = self.counted.zip(other.counted).map(|(one, two)| one + two);
        self.bytes += other.bytes;
    }
}

/// The objects of an index or a data stream; `found` is nothing where its documents were left out.
pub(crate) fn objects(
    key: &[u8; 32],
    name: &str,
    definition: &Definition,
    found: Option<&Found>,
) -> [ObjectFacts; 2] {
    let table = ObjectFacts {
        fingerprint: found.map(|found| found.fingerprint),
        independent_rows: found.and_then(|found| found.counted),
        bytes: found.map_or(0, |found| found.bytes),
        ..object(ObjectKind::Table, name)
    };
    let schema = ObjectFacts {
        value: Some(digest(key, &compared(definition))),
        ..object(ObjectKind::Schema, name)
    };
    [table, schema]
}

/// An object that is only listed.
pub(crate) fn listed(name: &str, bytes: u64) -> ObjectFacts {
    ObjectFacts {
        bytes,
        ..object(ObjectKind::Schema, name)
    }
}

fn object(kind: ObjectKind, name: &str) -> ObjectFacts {
    ObjectFacts {
        kind,
        name: name.to_owned(),
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
    fn a_definition_is_the_same_in_another_place_and_another_with_another_field() {
        let of = |settings: Value, mappings: Value| {
            let definition = Definition::read(&json!({"settings": settings, "mappings": mappings}));
            objects(&[1; 32], "x", &definition, None)[1].value.clone()
        };
        let field = |kind: &str| json!({"properties": {"a": {"type": kind}}});
        let source = of(
            json!({"index.uuid": "a", "index.version.created": "1", "index.number_of_shards": "2", "index.number_of_replicas": "1", "index.routing.allocation.include._tier_preference": "x"}),
            field("long"),
        );
        let mut made = field("long");
        made["_meta"] = json!({});
        assert_eq!(
            source,
            of(
                json!({"index.uuid": "b", "index.number_of_shards": "2"}),
                made
            )
        );
        assert_ne!(
            source,
            of(json!({"index.number_of_shards": "2"}), field("keyword"))
        );
        assert_ne!(
            source,
            of(json!({"index.number_of_shards": "3"}), field("long"))
        );
    }

    #[test]
    fn a_count_that_is_missing_once_is_missing() {
        let mut all = Found::default();
        all.merge(&Found {
            counted: Some(3),
            ..Found::default()
        });
        assert_eq!(all.counted, Some(3));
        all.merge(&Found {
            counted: None,
            ..Found::default()
        });
        assert_eq!(all.counted, None);
    }
}
