//! Who a server is, what it allows, how busy it is.

use std::time::Instant;

use fettler_engine::{BackupOptions, EngineError, Identity, PreflightItem, PreflightLevel, Target};
use fettler_model::{DatabaseName, Engine, ServerLoad};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    backup::{what_is_lost, why_unreadable},
    catalogue::Catalogue,
    client::Client,
    grants::for_backups,
    params::{Login, Params},
    parts,
    select::Selection,
    server::{Flavour, Server},
};

/// The longest name that a database may have in Fettler.
const LONGEST_NAME: usize = 63;

/// Asks a server who it is.
pub(crate) async fn identify(target: &Target) -> Result<Identity, EngineError> {
    let (client, params) = Client::of(target)?;
    let server = Server::of(&client).await?;
    let bytes = store_bytes(&client).await?;
    Ok(identity(&params, &server, bytes))
}

/// Who a server is, by what it tells. A cluster is the same by whatever name and node it is reached.
pub(crate) fn identity(params: &Params, server: &Server, estimated_bytes: u64) -> Identity {
    let part = if params.only.is_empty() {
        String::new()
    } else {
        format!("/{}", params.only.join(","))
    };
    Identity {
        engine: Engine::Elasticsearch,
        version: server.title(),
        key: format!("elasticsearch:{}{part}", server.cluster_uuid),
        lineage: server.cluster_uuid.clone(),
        suggested_name: suggested_name(&params.host, server.flavour),
        estimated_bytes,
    }
}

/// Bytes of all primary shards; 0 where the user may not know.
pub(crate) async fn store_bytes(client: &Client) -> Result<u64, EngineError> {
    let path = "/_stats/store?expand_wildcards=all&filter_path=_all.primaries.store.size_in_bytes";
    match client.try_get(path).await? {
        Ok(stats) => Ok(stats["_all"]["primaries"]["store"]["size_in_bytes"]
            .as_u64()
            .unwrap_or(0)),
        Err(refusal) if refusal.status == 401 => {
            Err(refusal.doing(client.server(), "asking for its size"))
        }
        Err(_) => Ok(0),
    }
}

/// The first part of the host's name, or the engine's.
fn suggested_name(host: &str, flavour: Flavour) -> DatabaseName {
    let word = if host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok() {
        ""
    } else {
        host.split('.').next().unwrap_or_default()
    };
    let mut name: String = word
        .chars()
        .filter(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '-' | '_'))
        .skip_while(|letter| !letter.is_ascii_alphanumeric())
        .take(LONGEST_NAME)
        .collect();
    if name.is_empty() || name == "localhost" {
        name = match flavour {
            Flavour::Elasticsearch => "elasticsearch",
            Flavour::OpenSearch => "opensearch",
        }
        .to_owned();
    }
    name.trim_end_matches(['-', '_'])
        .parse()
        .unwrap_or_else(|_| "elasticsearch".parse().expect("the word is a valid name"))
}

fn item(subject: &str, level: PreflightLevel, message: &str, remedy: &str) -> PreflightItem {
    PreflightItem {
        subject: subject.to_owned(),
        level,
        message: message.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// Looks at what a server allows.
pub(crate) async fn preflight(
    target: &Target,
    options: &BackupOptions,
) -> Result<Vec<PreflightItem>, EngineError> {
    let (client, params) = Client::of(target)?;
    let server = Server::of(&client).await?;
    let grant = for_backups(server.flavour);
    let mut items = vec![item(
        "server",
        PreflightLevel::Fine,
        &format!("{:?} {}", server.flavour, server.version_text),
        "",
    )];
    items.extend(look_at_transport(&params));
    items.extend(look_at_privileges(&client, &server, grant).await?);
    let catalogue = match Catalogue::read(&client).await {
        Ok(catalogue) => catalogue,
        Err(EngineError::Missing {
            code: "permission",
            what,
            ..
        }) => {
            items.push(item("indices", PreflightLevel::Stops, &what, grant));
            return Ok(items);
        }
        Err(error) => return Err(error),
    };
    let selection = Selection::of_backup(&params.only, &options.exclude);
    let is_by_server = options.by_server.is_some();
    items.extend(look_at_indices(&catalogue, &selection, is_by_server));
    let mut warnings = Vec::new();
    parts::read(&client, &server, &mut warnings).await?;
    for warning in warnings {
        items.push(item(
            "cluster",
            PreflightLevel::Missing,
            &warning.message,
            grant,
        ));
    }
    items.push(item(
        "moment",
        PreflightLevel::Fine,
        "each shard is read at one moment, and not all shards at the same one",
        "",
    ));
    Ok(items)
}

/// Whether a password would be seen on the way.
fn look_at_transport(params: &Params) -> Option<PreflightItem> {
    let is_here = params.host == "localhost"
        || params
            .host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    let has_login = !matches!(params.login, Login::Nobody);
    (!params.is_tls && has_login && !is_here).then(|| {
        item(
            "TLS",
            PreflightLevel::Missing,
            "the password goes to the server as it is",
            "write `elasticsearch+https://…` where the server offers TLS",
        )
    })
}

/// What the user may do, where the server tells that.
async fn look_at_privileges(
    client: &Client,
    server: &Server,
    grant: &str,
) -> Result<Option<PreflightItem>, EngineError> {
    if server.flavour == Flavour::OpenSearch {
        return Ok(None);
    }
    let asked = json!({"index": [{
        "names": ["*"], "privileges": ["read", "view_index_metadata", "monitor", "maintenance"],
    }]});
    let answer = client
        .try_ask(Method::POST, "/_security/user/_has_privileges", asked)
        .await?;
    let Ok(answer) = answer else {
        return Ok(None);
    };
    let of = |name: &str| answer["index"]["*"][name] != Value::Bool(false);
    let subject = "privileges";
    Ok(Some(if !of("read") || !of("view_index_metadata") {
        item(
            subject,
            PreflightLevel::Missing,
            "not every index may be read: those that may not are not in the backup, or end it",
            grant,
        )
    } else if !of("maintenance") || !of("monitor") {
        item(
            subject,
            PreflightLevel::Missing,
            "indices may not be refreshed or their statistics not be read: what was written shortly before may be missing",
            grant,
        )
    } else {
        item(subject, PreflightLevel::Fine, "all indices may be read", "")
    }))
}

/// Indices whose documents cannot be read as they were written, by name, before anything starts.
fn look_at_indices(
    catalogue: &Catalogue,
    selection: &Selection,
    is_by_server: bool,
) -> Vec<PreflightItem> {
    let mut items = Vec::new();
    let exclude = "open it, or leave it out by name (`--exclude NAME`)";
    for unit in catalogue
        .units
        .values()
        .filter(|unit| selection.has(&unit.name))
    {
        if selection.leaves_out(&unit.name) {
            continue;
        }
        // The server's own snapshots hold what no `_source` has.
        if is_by_server && unit.indices.iter().all(|index| index.is_open) {
            continue;
        }
        for why in why_unreadable(unit) {
            items.push(item(&unit.name, PreflightLevel::Stops, &why, exclude));
        }
        if let Some(lost) = what_is_lost(unit) {
            items.push(item(
                &unit.name,
                PreflightLevel::Missing,
                lost,
                "take the server's own snapshots beside this backup, if that matters",
            ));
        }
    }
    if !catalogue.servers_own.is_empty() {
        items.push(item(
            "system indices",
            PreflightLevel::Fine,
            &format!(
                "{} belong to the server's own modules and are not read",
                catalogue.servers_own.join(", ")
            ),
            "",
        ));
    }
    items
}

/// How busy a server is.
pub(crate) async fn load(target: &Target) -> Result<ServerLoad, EngineError> {
    let (client, _) = Client::of(target)?;
    // The first request has to connect.
    Server::of(&client).await?;
    let began = Instant::now();
    client
        .get(
            "/_cluster/health?filter_path=status",
            "looking how busy the server is",
        )
        .await?;
    let latency = began.elapsed();
    let stats = client
        .try_get("/_nodes/stats/http?filter_path=nodes.*.http.current_open")
        .await?
        .unwrap_or_default();
    let connections = stats["nodes"].as_object().map(|nodes| {
        nodes
            .values()
            .filter_map(|node| node["http"]["current_open"].as_u64())
            .sum::<u64>()
            .saturating_sub(1)
    });
    Ok(ServerLoad {
        connections,
        replication_lag_seconds: None,
        latency_milliseconds: u64::try_from(latency.as_millis()).ok(),
    })
}

/// Bytes free on the disks of all data nodes, as far as they tell.
pub(crate) async fn free_bytes(target: &Target) -> Result<Option<u64>, EngineError> {
    let (client, _) = Client::of(target)?;
    Server::of(&client).await?;
    free_disk(&client).await
}

/// The same, of a client.
pub(crate) async fn free_disk(client: &Client) -> Result<Option<u64>, EngineError> {
    let stats = client
        .try_get("/_nodes/stats/fs?filter_path=nodes.*.fs.total.available_in_bytes")
        .await?
        .unwrap_or_default();
    Ok(stats["nodes"].as_object().map(|nodes| {
        nodes
            .values()
            .filter_map(|node| node["fs"]["total"]["available_in_bytes"].as_u64())
            .sum()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_from_the_host() {
        for (host, name) in [
            ("search.example.com", "search"),
            ("10.0.0.1", "opensearch"),
            ("[::1]", "opensearch"),
            ("localhost", "opensearch"),
        ] {
            assert_eq!(suggested_name(host, Flavour::OpenSearch).as_str(), name);
        }
    }
}
