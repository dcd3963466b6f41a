//! The indices and data streams of a server, with their definitions, and what of them cannot be read.

use std::collections::BTreeMap;

use fettler_engine::EngineError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    client::{Client, encoded},
    sandbox,
};

/// Documents that a page may hold unless an index says otherwise.
pub(crate) const MOST_DOCUMENTS: u64 = 10_000;
/// What the names of indices begin with that belong to a server's own modules and that no client writes.
const SERVERS_OWN: [&str; 6] = [
    ".opendistro",
    ".opensearch-",
    ".plugins-",
    ".security",
    ".tasks",
    ".ds-.",
];

/// How much of what was indexed `_source` still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// All, byte by byte.
    Whole,
    /// Fields were left out of it.
    Thinned,
    /// The server makes it anew from its fields when it is asked for (synthetic or derived `_source`).
    Rebuilt,
    /// Nothing: documents cannot be read.
    Off,
}

/// How an index is made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Definition {
    /// Flat: `index.number_of_shards` and so on.
    pub(crate) settings: Map<String, Value>,
    pub(crate) mappings: Value,
    pub(crate) aliases: Value,
}

impl Definition {
    /// Reads what `GET /index?flat_settings=true` tells of one index.
    pub(crate) fn read(value: &Value) -> Self {
        Self {
            settings: value["settings"].as_object().cloned().unwrap_or_default(),
            mappings: value["mappings"].clone(),
            aliases: value["aliases"].clone(),
        }
    }

    /// A setting as text, without `index.` before its name.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(&format!("index.{name}"))?.as_str()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.setting(name)?.parse().ok()
    }

    /// How many primary shards it has.
    pub(crate) fn shards(&self) -> u32 {
        self.number("number_of_shards")
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(1)
            .max(1)
    }

    /// The most documents that one answer may hold.
    pub(crate) fn most_documents(&self) -> u64 {
        self.number("max_result_window")
            .unwrap_or(MOST_DOCUMENTS)
            .clamp(1, MOST_DOCUMENTS)
    }

    /// How much of what was indexed can be read back.
    pub(crate) fn source(&self) -> Source {
        let source = &self.mappings["_source"];
        let is_listed = |name: &str| source[name].as_array().is_some_and(|list| !list.is_empty());
        let mode = self
            .setting("mapping.source.mode")
            .or_else(|| source["mode"].as_str());
        let is_rebuilt = match mode {
            Some(mode) => mode.eq_ignore_ascii_case("synthetic"),
            None => matches!(self.setting("mode"), Some("logsdb" | "time_series")),
        } || self.setting("derived_source.enabled") == Some("true");
        if source["enabled"] == false
            || mode.is_some_and(|mode| mode.eq_ignore_ascii_case("disabled"))
        {
            Source::Off
        } else if is_rebuilt {
            Source::Rebuilt
        } else if is_listed("includes") || is_listed("excludes") {
            Source::Thinned
        } else {
            Source::Whole
        }
    }
}

/// An index of a server.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    pub(crate) name: String,
    pub(crate) is_open: bool,
    pub(crate) definition: Definition,
}

/// What a backup has as one thing: an index, or a data stream with the indices behind it, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) is_data_stream: bool,
    pub(crate) indices: Vec<Index>,
}

/// What a server has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalogue {
    /// By name.
    pub(crate) units: BTreeMap<String, Unit>,
    /// Indices that belong to the server itself and are not read.
    pub(crate) servers_own: Vec<String>,
}

const LISTING: &str = "listing indices";

impl Catalogue {
    /// Asks for everything but scratch indices of proofs.
    pub(crate) async fn read(client: &Client) -> Result<Self, EngineError> {
        let mut catalogue = Self::read_all(client).await?;
        catalogue.units.retain(|name, _| !sandbox::is_scratch(name));
        Ok(catalogue)
    }

    /// Asks for everything.
    pub(crate) async fn read_all(client: &Client) -> Result<Self, EngineError> {
        let indices = client
            .get("/*?expand_wildcards=all&flat_settings=true", LISTING)
            .await?;
        let state = client
            .try_get("/_cluster/state/metadata?expand_wildcards=all&filter_path=metadata.indices.*.state,metadata.indices.*.system")
            .await?
            .unwrap_or_default();
        let mut streams = client.try_get("/_data_stream?expand_wildcards=all").await?;
        // OpenSearch lists hidden ones without being asked to, and takes no such parameter.
        if streams
            .as_ref()
            .is_err_and(|refusal| refusal.reason.contains("unrecognized parameter"))
        {
            streams = client.try_get("/_data_stream").await?;
        }
        let streams = match streams {
            Ok(streams) => streams,
            Err(refusal) if refusal.is_unknown() || refusal.is_not_found() => Value::Null,
            Err(refusal) => return Err(refusal.doing(client.server(), "listing data streams")),
        };
        Ok(Self::of(&indices, &state["metadata"]["indices"], &streams))
    }

    fn of(indices: &Value, state: &Value, streams: &Value) -> Self {
        let mut catalogue = Self::default();
        let mut behind: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
        for stream in streams["data_streams"].as_array().into_iter().flatten() {
            let name = stream["name"].as_str().unwrap_or_default();
            for (at, index) in stream["indices"]
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
            {
                behind.insert(index["index_name"].as_str().unwrap_or_default(), (name, at));
            }
        }
        let mut members: BTreeMap<String, BTreeMap<usize, Index>> = BTreeMap::new();
        for (name, value) in indices.as_object().into_iter().flatten() {
            if state[name]["system"] == true || SERVERS_OWN.iter().any(|own| name.starts_with(own))
            {
                catalogue.servers_own.push(name.clone());
                continue;
            }
            let definition = Definition::read(value);
            let index = Index {
                name: name.clone(),
                is_open: state[name]["state"] != "close"
                    && definition.setting("verified_before_close") != Some("true"),
                definition,
            };
            match behind.get(name.as_str()) {
                Some((stream, at)) => {
                    members
                        .entry((*stream).to_owned())
                        .or_default()
                        .insert(*at, index);
                }
                None => {
                    catalogue.units.insert(
                        name.clone(),
                        Unit {
                            name: name.clone(),
                            is_data_stream: false,
                            indices: vec![index],
                        },
                    );
                }
            }
        }
        for (name, indices) in members {
            catalogue.units.insert(
                name.clone(),
                Unit {
                    name,
                    is_data_stream: true,
                    indices: indices.into_values().collect(),
                },
            );
        }
        catalogue
    }
}

/// Asks for one index as it is now; nothing where it is gone.
pub(crate) async fn definition(
    client: &Client,
    name: &str,
) -> Result<Option<Definition>, EngineError> {
    let path = format!("/{}?flat_settings=true", encoded(name));
    match client.try_get(&path).await? {
        Ok(found) => Ok(Some(Definition::read(&found[name]))),
        Err(refusal) if refusal.is_not_found() => Ok(None),
        Err(refusal) => Err(refusal.doing(client.server(), LISTING)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn source(settings: impl Into<Value>, mappings: impl Into<Value>) -> Source {
        let (settings, mappings): (Value, Value) = (settings.into(), mappings.into());
        Definition::read(&json!({"settings": settings, "mappings": mappings})).source()
    }

    #[test]
    fn what_source_lacks_is_told_by_mapping_and_settings() {
        let none = || json!({});
        assert_eq!(source(none(), none()), Source::Whole);
        assert_eq!(
            source(none(), json!({"_source": {"enabled": false}})),
            Source::Off
        );
        assert_eq!(
            source(none(), json!({"_source": {"excludes": ["a"]}})),
            Source::Thinned
        );
        assert_eq!(
            source(none(), json!({"_source": {"includes": ["a.*"]}})),
            Source::Thinned
        );
        assert_eq!(
            source(none(), json!({"_source": {"mode": "synthetic"}})),
            Source::Rebuilt
        );
        assert_eq!(
            source(json!({"index.mapping.source.mode": "SYNTHETIC"}), none()),
            Source::Rebuilt
        );
        assert_eq!(
            source(json!({"index.mode": "logsdb"}), none()),
            Source::Rebuilt
        );
        assert_eq!(
            source(
                json!({"index.mode": "logsdb", "index.mapping.source.mode": "stored"}),
                none()
            ),
            Source::Whole
        );
        assert_eq!(
            source(json!({"index.derived_source.enabled": "true"}), none()),
            Source::Rebuilt
        );
        assert_eq!(
            source(json!({"index.mapping.source.mode": "disabled"}), none()),
            Source::Off
        );
    }

    #[test]
    fn indices_behind_a_data_stream_are_one_thing_in_their_order() {
        let index =
            |uuid: &str| json!({"settings": {"index.uuid": uuid}, "mappings": {}, "aliases": {}});
        let indices = json!({
            ".ds-logs-000002": index("b"), ".ds-logs-000001": index("a"), "shop": index("c"),
            ".security-7": index("d"), "hidden": index("e"),
        });
        let streams = json!({"data_streams": [{"name": "logs", "indices": [
            {"index_name": ".ds-logs-000001"}, {"index_name": ".ds-logs-000002"},
        ]}]});
        let state = json!({"shop": {"state": "close"}, "hidden": {"system": true}});
        let catalogue = Catalogue::of(&indices, &state, &streams);
        assert_eq!(catalogue.units.keys().collect::<Vec<_>>(), ["logs", "shop"]);
        let logs = &catalogue.units["logs"];
        assert!(logs.is_data_stream);
        let uuids: Vec<&str> = logs
            .indices
            .iter()
            .filter_map(|index| index.definition.setting("uuid"))
            .collect();
        assert_eq!(uuids, ["a", "b"]);
        assert!(!catalogue.units["shop"].indices[0].is_open);
        assert_eq!(catalogue.servers_own, [".security-7", "hidden"]);
    }
}
