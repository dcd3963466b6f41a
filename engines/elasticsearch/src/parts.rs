//! What a cluster has beside indices: templates, pipelines, lifecycle policies, stored scripts, settings.

use std::collections::BTreeMap;

use fettler_engine::EngineError;
use fettler_model::Warning;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    client::{Body, Client, encoded},
    server::{Flavour, Server},
};

/// A part of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// Stored scripts and search templates.
    Scripts,
    /// Ingest pipelines and, where there are some, search pipelines.
    Pipelines,
    /// Lifecycle policies: of ILM or of index state management.
    Lifecycle,
    /// Component templates, index templates, and those of the old kind.
    Templates,
    /// Settings of the cluster that outlive a restart.
    Settings,
}

/// What may stand in a cluster under a name, and the requests for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Script,
    IngestPipeline,
    SearchPipeline,
    LifecyclePolicy,
    StatePolicy,
    ComponentTemplate,
    IndexTemplate,
    OldTemplate,
    Setting,
}

impl Part {
    pub(crate) const ALL: [Self; 5] = [
        Self::Scripts,
        Self::Pipelines,
        Self::Lifecycle,
        Self::Templates,
        Self::Settings,
    ];

    /// The word that names it where a part of a backup is chosen. No index can have this name.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Scripts => "_scripts",
            Self::Pipelines => "_pipelines",
            Self::Lifecycle => "_lifecycle",
            Self::Templates => "_templates",
            Self::Settings => "_settings",
        }
    }

    pub(crate) fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.word() == word)
    }

    /// The kinds of things that it has, in the order in which they are put back: what others name comes first.
    pub(crate) const fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Scripts => &[Kind::Script],
            Self::Pipelines => &[Kind::IngestPipeline, Kind::SearchPipeline],
            Self::Lifecycle => &[Kind::LifecyclePolicy, Kind::StatePolicy],
            Self::Templates => &[
                Kind::ComponentTemplate,
                Kind::IndexTemplate,
                Kind::OldTemplate,
            ],
            Self::Settings => &[Kind::Setting],
        }
    }
}

impl Kind {
    /// How people call one.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Script => "stored script",
            Self::IngestPipeline => "ingest pipeline",
            Self::SearchPipeline => "search pipeline",
            Self::LifecyclePolicy | Self::StatePolicy => "lifecycle policy",
            Self::ComponentTemplate => "component template",
            Self::IndexTemplate => "index template",
            Self::OldTemplate => "template",
            Self::Setting => "cluster setting",
        }
    }

    /// The request that lists all.
    const fn listing(self) -> &'static str {
        match self {
            Self::Script => "/_cluster/state/metadata?filter_path=metadata.stored_scripts",
            Self::IngestPipeline => "/_ingest/pipeline",
            Self::SearchPipeline => "/_search/pipeline",
            Self::LifecyclePolicy => "/_ilm/policy",
            Self::StatePolicy => "/_plugins/_ism/policies?size=10000",
            Self::ComponentTemplate => "/_component_template",
            Self::IndexTemplate => "/_index_template",
            Self::OldTemplate => "/_template",
            Self::Setting => "/_cluster/settings?flat_settings=true",
        }
    }

    /// Whether such a server may have it.
    fn is_of(self, server: &Server) -> bool {
        match self {
            Self::LifecyclePolicy => server.flavour == Flavour::Elasticsearch,
            Self::SearchPipeline | Self::StatePolicy => server.flavour == Flavour::OpenSearch,
            _ => true,
        }
    }

    /// What stands in the answer to the listing, by name, as it would be put back.
    fn read(self, answer: &Value) -> BTreeMap<String, Value> {
        let of_map = |map: &Value| -> BTreeMap<String, Value> {
            map.as_object()
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        let of_list = |list: &Value, name: &str, content: &str| -> BTreeMap<String, Value> {
            list.as_array()
                .into_iter()
                .flatten()
                .filter_map(|one| Some((one[name].as_str()?.to_owned(), one[content].clone())))
                .collect()
        };
        let mut found = match self {
            Self::Script => of_map(&answer["metadata"]["stored_scripts"])
                .into_iter()
                .map(|(name, script)| (name, json!({ "script": script })))
                .collect(),
            Self::IngestPipeline | Self::SearchPipeline | Self::OldTemplate => of_map(answer),
            Self::LifecyclePolicy => of_map(answer)
                .into_iter()
                .map(|(name, value)| (name, json!({"policy": value["policy"]})))
                .collect(),
            Self::StatePolicy => of_list(&answer["policies"], "_id", "policy")
                .into_iter()
                .map(|(name, policy)| (name, json!({ "policy": policy })))
                .collect(),
            Self::ComponentTemplate => {
                of_list(&answer["component_templates"], "name", "component_template")
            }
            Self::IndexTemplate => of_list(&answer["index_templates"], "name", "index_template"),
            Self::Setting => of_map(&answer["persistent"]),
        };
        for value in found.values_mut() {
            without_what_the_server_adds(self, value);
        }
        // What a server brings itself, it brings to the next one too, in that one's version.
        found.retain(|name, value| {
            let is_servers_own = name.starts_with('.') && self == Self::OldTemplate;
            !is_managed(value) && !is_servers_own
        });
        found
    }

    /// The request that puts one back.
    fn putting(self, name: &str, value: &Value) -> (String, Value) {
        let name_in_path = encoded(name);
        let path = match self {
            Self::Script => format!("/_scripts/{name_in_path}"),
            Self::IngestPipeline => format!("/_ingest/pipeline/{name_in_path}"),
            Self::SearchPipeline => format!("/_search/pipeline/{name_in_path}"),
            Self::LifecyclePolicy => format!("/_ilm/policy/{name_in_path}"),
            Self::StatePolicy => format!("/_plugins/_ism/policies/{name_in_path}"),
            Self::ComponentTemplate => format!("/_component_template/{name_in_path}"),
            Self::IndexTemplate => format!("/_index_template/{name_in_path}"),
            Self::OldTemplate => format!("/_template/{name_in_path}"),
            Self::Setting => {
                let persistent = Map::from_iter([(name.to_owned(), value.clone())]);
                return (
                    "/_cluster/settings".to_owned(),
                    json!({ "persistent": persistent }),
                );
            }
        };
        (path, value.clone())
    }
}

fn is_managed(value: &Value) -> bool {
    [&value["_meta"], &value["policy"]["_meta"]]
        .iter()
        .any(|meta| meta["managed"] == true)
}

/// Takes away what a server tells of a thing and does not take back.
fn without_what_the_server_adds(kind: Kind, value: &mut Value) {
    let fields = match kind {
        Kind::StatePolicy => value["policy"].as_object_mut(),
        _ => value.as_object_mut(),
    };
    let Some(fields) = fields else { return };
    let added: &[&str] = match kind {
        Kind::StatePolicy => &[
            "policy_id",
            "last_updated_time",
            "schema_version",
            "error_notification",
            "user",
        ],
        Kind::ComponentTemplate | Kind::IndexTemplate | Kind::IngestPipeline => &[
            "created_date",
            "created_date_millis",
            "modified_date",
            "modified_date_millis",
        ],
        _ => &[],
    };
    fields.retain(|name, value| {
        !added.contains(&name.as_str()) || (name == "error_notification" && !value.is_null())
    });
}

/// What a cluster has, by kind and name.
pub(crate) type Parts = BTreeMap<Kind, BTreeMap<String, Value>>;

/// Asks for all parts. What the user may not read is warned of.
pub(crate) async fn read(
    client: &Client,
    server: &Server,
    warnings: &mut Vec<Warning>,
) -> Result<Parts, EngineError> {
    let mut parts = Parts::new();
    for kind in Part::ALL.iter().flat_map(|part| part.kinds()) {
        if !kind.is_of(server) {
            continue;
        }
        match client.try_get(kind.listing()).await? {
            Ok(answer) => {
                let found = kind.read(&answer);
                if !found.is_empty() {
                    parts.insert(*kind, found);
                }
            }
            // The server has not the module, or none of these.
            Err(refusal) if refusal.is_unknown() || refusal.is_not_found() => {}
            Err(refusal) if refusal.is_not_allowed() => warnings.push(Warning {
                code: "elasticsearch.not_readable".to_owned(),
                message: format!("no {} is in the backup: {refusal}", kind.title()),
            }),
            Err(refusal) => {
                return Err(
                    refusal.doing(client.server(), format!("reading each {}", kind.title()))
                );
            }
        }
    }
    Ok(parts)
}

/// Puts one thing back; a refusal is for the caller to tell.
pub(crate) async fn put(
    client: &Client,
    kind: Kind,
    name: &str,
    value: &Value,
) -> Result<crate::client::Answer, EngineError> {
    let (path, body) = kind.putting(name, value);
    client.try_ask(Method::PUT, &path, Body::Json(body)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_of_one_part_and_its_word_is_no_name_of_an_index() {
        for part in Part::ALL {
            assert!(part.word().starts_with('_') && !part.kinds().is_empty());
            assert_eq!(Part::of_word(part.word()), Some(part));
        }
        assert_eq!(Part::of_word("shop"), None);
    }

    #[test]
    fn things_are_read_as_they_are_put_back() {
        let policy =
            json!({"warm": {"version": 3, "modified_date": "x", "policy": {"phases": {}}}});
        let read = Kind::LifecyclePolicy.read(&policy);
        assert_eq!(read["warm"], json!({"policy": {"phases": {}}}));
        let state = json!({"policies": [{"_id": "p", "_seq_no": 1, "policy": {"policy_id": "p", "states": [], "last_updated_time": 5}}]});
        let read = Kind::StatePolicy.read(&state);
        assert_eq!(read["p"], json!({"policy": {"states": []}}));
        let templates = json!({"index_templates": [
            {"name": "own", "index_template": {"index_patterns": ["a*"], "created_date_millis": 7}},
            {"name": "logs", "index_template": {"index_patterns": ["logs-*"], "_meta": {"managed": true}}},
        ]});
        let read = Kind::IndexTemplate.read(&templates);
        assert_eq!(read.len(), 1);
        assert_eq!(read["own"], json!({"index_patterns": ["a*"]}));
        let scripts =
            json!({"metadata": {"stored_scripts": {"s": {"lang": "painless", "source": "1"}}}});
        let read = Kind::Script.read(&scripts);
        let (path, body) = Kind::Script.putting("s", &read["s"]);
        assert_eq!(path, "/_scripts/s");
        assert_eq!(body, json!({"script": {"lang": "painless", "source": "1"}}));
        let (path, body) = Kind::Setting.putting("a.b", &json!("1"));
        assert_eq!(
            (path.as_str(), body),
            ("/_cluster/settings", json!({"persistent": {"a.b": "1"}}))
        );
    }
}
