//! Which settings an index is made with, and which it gets when its documents are there.

use serde_json::{Map, Value, json};

use crate::catalogue::Definition;

/// What no request may set: the server makes it, or it says where the old index came from.
const SERVERS_OWN: [&str; 11] = [
    "uuid",
    "creation_date",
    "provided_name",
    "version.",
    "resize.",
    "history.",
    "routing.allocation.initial_recovery.",
    "verified_before_close",
    "store.snapshot.",
    "soft_deletes.enabled",
    // Set by a server whose disk is full.
    "blocks.read_only_allow_delete",
];

/// What would get into the way while documents are written, and is put back when they are there.
const LATER: [&str; 9] = [
    "number_of_replicas",
    "auto_expand_replicas",
    "refresh_interval",
    "default_pipeline",
    "final_pipeline",
    "search.default_pipeline",
    "blocks.",
    "lifecycle.",
    "routing.allocation.total_shards_per_node",
];

/// What would work in a scratch place, or bind it to machines, and is not put there at all.
const NEVER_IN_SCRATCH: [&str; 4] = [
    "routing.allocation.",
    "plugins.index_state_management.",
    "opendistro.index_state_management.",
    "lifecycle.",
];

fn is_of(name: &str, list: &[&str]) -> bool {
    let name = name.strip_prefix("index.").unwrap_or(name);
    list.iter()
        .any(|one| name == *one || (one.ends_with('.') && name.starts_with(one)))
}

fn is_of_server(name: &str, value: &Value) -> bool {
    is_of(name, &SERVERS_OWN)
        || name == "index.frozen"
        || (name == "index.store.type" && value == "snapshot")
}

/// The settings to make an index with: no replicas and no refresh until its documents are there, no pipeline that would change
/// them, no lifecycle that would take it away.
pub(super) fn at_first(definition: &Definition, is_scratch: bool) -> Map<String, Value> {
    let mut settings: Map<String, Value> = definition
        .settings
        .iter()
        .filter(|(name, value)| {
            let is_left_out = is_scratch && is_of(name, &NEVER_IN_SCRATCH);
            !is_left_out && !is_of_server(name, value) && !is_of(name, &LATER)
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    settings.insert("index.number_of_replicas".to_owned(), json!(0));
    settings.insert("index.refresh_interval".to_owned(), json!("-1"));
    settings
}

/// The settings that an index gets when its documents are there.
pub(super) fn at_last(definition: &Definition, is_scratch: bool) -> Map<String, Value> {
    if is_scratch {
        return Map::from_iter([("index.refresh_interval".to_owned(), Value::Null)]);
    }
    let mut settings = Map::from_iter([
        ("index.refresh_interval".to_owned(), Value::Null),
        ("index.number_of_replicas".to_owned(), Value::Null),
    ]);
    settings.extend(
        definition
            .settings
            .iter()
            .filter(|(name, value)| is_of(name, &LATER) && !is_of_server(name, value))
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    settings
}

/// The settings of the index behind a data stream while documents are written.
pub(super) fn of_stream_at_first() -> Value {
    json!({
        "index.number_of_replicas": 0, "index.refresh_interval": "-1", "index.final_pipeline": "_none",
    })
}

/// Those that it gets when they are there: its template's for what was changed.
pub(super) fn of_stream_at_last(definition: &Definition) -> Map<String, Value> {
    let mut settings = Map::new();
    for name in ["number_of_replicas", "refresh_interval", "final_pipeline"] {
        let name = format!("index.{name}");
        let value = definition.settings.get(&name).cloned();
        settings.insert(name, value.unwrap_or_default());
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Definition {
        Definition::read(&json!({"settings": {
            "index.uuid": "u", "index.creation_date": "1", "index.provided_name": "x", "index.version.created": "8",
            "index.number_of_shards": "3", "index.number_of_replicas": "2", "index.refresh_interval": "5s",
            "index.default_pipeline": "p", "index.blocks.write": "true", "index.lifecycle.name": "l",
            "index.routing.allocation.require.box": "hot", "index.analysis.analyzer.a.type": "standard",
            "index.store.type": "snapshot",
        }}))
    }

    #[test]
    fn an_index_is_made_without_what_would_get_into_the_way_and_gets_it_later() {
        let first = at_first(&definition(), false);
        let names: Vec<&str> = first.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "index.number_of_shards",
                "index.routing.allocation.require.box",
                "index.analysis.analyzer.a.type",
                "index.number_of_replicas",
                "index.refresh_interval"
            ]
        );
        assert_eq!(first["index.number_of_replicas"], 0);
        let last = at_last(&definition(), false);
        assert_eq!(last["index.number_of_replicas"], "2");
        assert_eq!(last["index.refresh_interval"], "5s");
        assert_eq!(last["index.default_pipeline"], "p");
        assert_eq!(last["index.blocks.write"], "true");
        assert_eq!(last["index.lifecycle.name"], "l");
        assert_eq!(last.len(), 5);
    }

    #[test]
    fn in_a_scratch_place_nothing_is_set_that_works_by_itself() {
        let first = at_first(&definition(), true);
        assert!(!first.contains_key("index.routing.allocation.require.box"));
        let last = at_last(&definition(), true);
        assert_eq!(Value::Object(last), json!({"index.refresh_interval": null}));
    }
}
