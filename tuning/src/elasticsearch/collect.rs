//! What a cluster tells of its nodes and indices.

use fettler_engine::{EngineError, StatementError, Workbench};
use serde_json::Value;

use crate::advice::told;

/// An index.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) name: String,
    pub(super) primaries: f64,
    pub(super) replicas: f64,
    pub(super) documents: f64,
    pub(super) deleted: f64,
    /// Of the primaries alone.
    pub(super) bytes: f64,
    /// When it was made, in seconds since 1970.
    pub(super) created: f64,
    /// Since the nodes hold it.
    pub(super) indexed: f64,
    pub(super) queries: f64,
    pub(super) refreshes: f64,
    pub(super) segments: f64,
    /// As it was set, where it was.
    pub(super) refresh_interval: Option<String>,
    /// Whether a policy or a data stream ends it.
    pub(super) has_policy: bool,
    /// Fields with all of their parts.
    pub(super) fields: usize,
    pub(super) is_dynamic: bool,
    /// Texts that are kept as words and as a whole, as a dynamic mapping makes them.
    pub(super) twice: Vec<String>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) version: String,
    pub(super) data_nodes: f64,
    /// Bytes of heap of the nodes that hold data.
    pub(super) heap: f64,
    pub(super) shards: f64,
    pub(super) indices: Vec<Index>,
    /// Why policies are not told, where they are not.
    pub(super) no_policies: Option<String>,
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .or_else(|| value.as_str()?.parse().ok())
        .unwrap_or(0.0)
}

async fn needed(bench: &mut dyn Workbench, path: &str) -> Result<Value, EngineError> {
    told(bench, &format!("GET {path}"))
        .await?
        .map_err(|message| {
            StatementError::Refused {
                code: path.to_owned(),
                message,
            }
            .doing("looking at the cluster")
        })
}

pub(super) async fn collect(bench: &mut dyn Workbench) -> Result<Facts, EngineError> {
    let mut facts = Facts::default();
    let nodes = needed(bench, "/_nodes/jvm").await?;
    for node in nodes["nodes"]
        .as_object()
        .into_iter()
        .flat_map(|nodes| nodes.values())
    {
        facts.version = node["version"].as_str().unwrap_or_default().to_owned();
        let holds_data = node["roles"].as_array().is_none_or(|roles| {
            roles
                .iter()
                .any(|role| role.as_str().is_some_and(|role| role.starts_with("data")))
        });
        if holds_data {
            facts.data_nodes += 1.0;
            facts.heap += number(&node["jvm"]["mem"]["heap_max_in_bytes"]);
        }
    }
    let listed = needed(
        bench,
        "/_cat/indices?format=json&bytes=b&expand_wildcards=open&h=index,pri,rep,docs.count,docs.deleted,pri.store.size,creation.date",
    )
    .await?;
    let stats = needed(bench, "/_stats/indexing,search,refresh,segments").await?;
    let settings = needed(
        bench,
        "/_all/_settings?flat_settings=true&expand_wildcards=open",
    )
    .await?;
    let mappings = needed(bench, "/_mapping?expand_wildcards=open").await?;
    let policies = policies(bench, &mut facts).await?;
    for one in listed.as_array().into_iter().flatten() {
        let Some(name) = one["index"].as_str() else {
            continue;
        };
        facts.shards += number(&one["pri"]) * (1.0 + number(&one["rep"]));
        // The server's own.
        if name.starts_with('.') && !name.starts_with(".ds-") {
            continue;
        }
        let setting = |setting: &str| {
            settings[name]["settings"][setting]
                .as_str()
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
        };
        let all = &stats["indices"][name]["primaries"];
        let mut index = Index {
            name: name.to_owned(),
            primaries: number(&one["pri"]),
            replicas: number(&one["rep"]),
            documents: number(&one["docs.count"]),
            deleted: number(&one["docs.deleted"]),
            bytes: number(&one["pri.store.size"]),
            created: number(&one["creation.date"]) / 1000.0,
            indexed: number(&all["indexing"]["index_total"]),
            queries: number(&stats["indices"][name]["total"]["search"]["query_total"]),
            refreshes: number(&all["refresh"]["total"]),
            segments: number(&all["segments"]["count"]),
            refresh_interval: setting("index.refresh_interval"),
            has_policy: name.starts_with(".ds-")
                || setting("index.lifecycle.name").is_some()
                || setting("index.plugins.index_state_management.policy_id").is_some()
                || policies.iter().any(|managed| managed == name),
            is_dynamic: true,
            ..Index::default()
        };
        let mapping = &mappings[name]["mappings"];
        index.is_dynamic = mapping["dynamic"]
            .as_str()
            .map_or(mapping["dynamic"] != Value::Bool(false), |word| {
                word == "true" || word == "runtime"
            });
        fields(&mapping["properties"], "", &mut index);
        facts.indices.push(index);
    }
    Ok(facts)
}

/// Indices that OpenSearch's own module manages; Elasticsearch writes its policy into the index's settings.
async fn policies(
    bench: &mut dyn Workbench,
    facts: &mut Facts,
) -> Result<Vec<String>, EngineError> {
    let path = "GET /_plugins/_ism/explain/*";
    match told(bench, path).await? {
        Ok(told) => Ok(told
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, one)| {
                one["index.plugins.index_state_management.policy_id"].is_string()
                    || one["policy_id"].is_string()
            })
            .map(|(name, _)| name.clone())
            .collect()),
        Err(why) => {
            if why.contains("403") {
                facts.no_policies = Some(why);
            }
            Ok(Vec::new())
        }
    }
}

/// Counts fields, and remembers those that are there twice.
fn fields(properties: &Value, path: &str, index: &mut Index) {
    for (name, field) in properties.as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        index.fields += 1;
        let parts = field["fields"].as_object();
        index.fields += parts.map_or(0, serde_json::Map::len);
        let keyword = &field["fields"]["keyword"];
        // 256 is what a dynamic mapping says, and hardly ever what a person does.
        if field["type"] == "text" && keyword["type"] == "keyword" && keyword["ignore_above"] == 256
        {
            index.twice.push(path.clone());
        }
        fields(&field["properties"], &path, index);
    }
}
