//! Which server it is: Elasticsearch or OpenSearch, its version, its cluster.

use fettler_engine::EngineError;
use serde_json::Value;

use crate::client::Client;

/// The two families, which share most requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    Elasticsearch,
    OpenSearch,
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) flavour: Flavour,
    /// Such as `(8, 19)`.
    pub(crate) version: (u32, u32),
    /// As it writes it.
    pub(crate) version_text: String,
    /// The cluster's own identity, made when it was made.
    pub(crate) cluster_uuid: String,
}

/// The oldest Elasticsearch whose answers are understood.
const OLDEST_ELASTICSEARCH: (u32, u32) = (7, 10);
/// From this version on vectors are left out of `_source` unless they are asked for.
const VECTORS_LEFT_OUT: (u32, u32) = (9, 2);

impl Server {
    /// Asks.
    pub(crate) async fn of(client: &Client) -> Result<Self, EngineError> {
        let doing = "asking who the server is";
        match client.try_get("/").await? {
            Ok(root) => Self::read(client, &root),
            // A server whose module for this page is missing still has a cluster.
            Err(refusal) if refusal.is_unknown() => {
                let state = client.get("/_cluster/state/version", doing).await?;
                let nodes = client
                    .get("/_nodes/_local?filter_path=nodes.*.version", doing)
                    .await?;
                let number = nodes["nodes"]
                    .as_object()
                    .and_then(|nodes| nodes.values().next())
                    .map(|node| node["version"].clone())
                    .unwrap_or_default();
                let root = serde_json::json!({
                    "cluster_uuid": state["cluster_uuid"],
                    "version": {"number": number},
                });
                Self::read(client, &root)
            }
            Err(refusal) => Err(refusal.doing(client.server(), doing)),
        }
    }

    fn read(client: &Client, root: &Value) -> Result<Self, EngineError> {
        let version = &root["version"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if version["build_flavor"] == "serverless" {
            return Err(EngineError::Missing {
                code: "serverless",
                what: format!(
                    "{} is serverless, and tells neither its shards nor its state",
                    client.server()
                ),
                remedy: "back up a cluster of your own".to_owned(),
            });
        }
        let server = Self {
            flavour: if version["distribution"] == "opensearch" {
                Flavour::OpenSearch
            } else {
                Flavour::Elasticsearch
            },
            version: parse_version(&text(&version["number"])),
            version_text: text(&version["number"]),
            cluster_uuid: text(&root["cluster_uuid"]),
        };
        if server.version == (0, 0) {
            return Err(client.unexpected("asking who the server is", &"it tells no version"));
        }
        if server.flavour == Flavour::Elasticsearch && server.version < OLDEST_ELASTICSEARCH {
            return Err(EngineError::Missing {
                code: "version",
                what: format!(
                    "{} is Elasticsearch {}, which is too old",
                    client.server(),
                    server.version_text
                ),
                remedy: "Elasticsearch 7.10 and later and OpenSearch are supported".to_owned(),
            });
        }
        // A cluster that has not formed yet.
        if matches!(server.cluster_uuid.as_str(), "" | "_na_") {
            return Err(EngineError::Busy {
                what: format!("{} is in no cluster yet", client.server()),
                wait: std::time::Duration::from_secs(15),
            });
        }
        Ok(server)
    }

    /// Its name and version, for people.
    pub(crate) fn title(&self) -> String {
        match self.flavour {
            Flavour::Elasticsearch => self.version_text.clone(),
            Flavour::OpenSearch => format!("OpenSearch {}", self.version_text),
        }
    }

    /// How a search asks for whole documents.
    pub(crate) fn whole_source(&self) -> Value {
        if self.flavour == Flavour::Elasticsearch && self.version >= VECTORS_LEFT_OUT {
            serde_json::json!({"exclude_vectors": false})
        } else {
            Value::Bool(true)
        }
    }
}

fn parse_version(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_asked_for_where_they_would_be_left_out() {
        let asks = |flavour, version| {
            Server {
                flavour,
                version,
                version_text: String::new(),
                cluster_uuid: String::new(),
            }
            .whole_source()
        };
        assert_eq!(asks(Flavour::Elasticsearch, (8, 19)), true);
        assert_eq!(asks(Flavour::OpenSearch, (9, 3)), true);
        for version in [(9, 2), (10, 0)] {
            let asked = asks(Flavour::Elasticsearch, version);
            assert_eq!(asked["exclude_vectors"], false);
        }
        assert_eq!(parse_version("8.19.0-SNAPSHOT"), (8, 19));
    }
}
