//! A snapshot put back by the server, under other names where the target has a prefix.

use std::{collections::BTreeSet, time::Duration};

use fettler_engine::{EngineContext, EngineError};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Snapshot, gone, is_whole, look_at, path_of,
    place::{self, Repository},
};
use crate::client::Client;

/// How often a running restore is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a shard may have no place before the restore is given up: the server tries a shard several times within it.
const UNASSIGNED_FOR: Duration = Duration::from_secs(120);
/// What would work in a scratch place, or bind it to machines.
const LEFT_OUT_OF_SCRATCH: [&str; 7] = [
    "index.lifecycle.*",
    "index.plugins.index_state_management.*",
    "index.opendistro.index_state_management.*",
    "index.routing.allocation.*",
    "index.default_pipeline",
    "index.final_pipeline",
    "index.search.default_pipeline",
];

/// A restore by the server.
pub(crate) struct Restoring<'a> {
    pub(crate) context: &'a EngineContext,
    pub(crate) client: &'a Client,
    pub(crate) snapshot: &'a Snapshot,
    /// Before each name; empty where names stay.
    pub(crate) prefix: &'a str,
}

impl Restoring<'_> {
    /// Finds the snapshot at the target, which is told of the place, to be read only, where it does not know it. Gives what the
    /// place is called there.
    pub(crate) async fn find(&self) -> Result<String, EngineError> {
        let snapshot = self.snapshot;
        let of_source = Repository {
            name: snapshot.repository.clone(),
            kind: snapshot.kind.clone(),
            settings: snapshot.settings.clone(),
        };
        if let Some(known) = place::find(self.client, &of_source.name).await? {
            let found = look_at(self.client, &of_source.name, &snapshot.name).await?;
            if found.is_some_and(|found| self.is_it(&found)) {
                return Ok(of_source.name);
            }
            // The very place, and the snapshot is not in it any more.
            if known == of_source {
                return Err(gone(snapshot, self.client.server()));
            }
        }
        let mut to_be_read = of_source.to_be_read();
        to_be_read.name = format!("{}-read", of_source.name);
        if place::find(self.client, &to_be_read.name).await?.is_none() {
            self.context.fence.check().await?;
            to_be_read.register(self.client).await?;
        }
        match look_at(self.client, &to_be_read.name, &snapshot.name).await? {
            Some(found) if self.is_it(&found) => Ok(to_be_read.name),
            _ => Err(gone(snapshot, self.client.server())),
        }
    }

    fn is_it(&self, found: &Value) -> bool {
        found["uuid"] == self.snapshot.uuid.as_str() && is_whole(found)
    }

    /// Whether an index, or each index behind a data stream, is being or was put back from this very snapshot.
    pub(crate) async fn comes_from_it(&self, place: &str) -> Result<bool, EngineError> {
        let recovery = self.recovery().await?;
        let of_place = recovery
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(index, _)| is_behind(index, place));
        let mut any = false;
        for (_, index) in of_place {
            for shard in index["shards"].as_array().into_iter().flatten() {
                if shard["primary"] != true {
                    continue;
                }
                any = true;
                let source = &shard["source"];
                if shard["type"] != "SNAPSHOT" || source["snapshot"] != self.snapshot.name.as_str()
                {
                    return Ok(false);
                }
            }
        }
        Ok(any)
    }

    async fn recovery(&self) -> Result<Value, EngineError> {
        self.client
            .get(
                "/_recovery?expand_wildcards=all&filter_path=*.shards.primary,*.shards.type,*.shards.stage,*.shards.source.snapshot,\
                 *.shards.index.size",
                "looking how far shards are",
            )
            .await
    }

    /// Asks for indices and data streams.
    pub(crate) async fn ask(&self, repository: &str, names: &[&str]) -> Result<(), EngineError> {
        let mut asked = json!({
            "indices": names,
            "include_global_state": false,
            // Behind a prefix they get other names, and are put there one by one.
            "include_aliases": self.prefix.is_empty(),
        });
        if !self.prefix.is_empty() {
            asked["rename_pattern"] = json!("^(.+)$");
            asked["rename_replacement"] = json!(format!("{}$1", self.prefix));
            asked["index_settings"] = json!({
                "index.number_of_replicas": 0, "index.auto_expand_replicas": "false",
            });
            asked["ignore_index_settings"] = json!(LEFT_OUT_OF_SCRATCH);
        }
        self.context.fence.check().await?;
        let path = format!(
            "{}/_restore?wait_for_completion=false",
            path_of(repository, &self.snapshot.name)
        );
        let answer = self.client.try_ask(Method::POST, &path, asked).await?;
        answer.map(drop).map_err(|refusal| match refusal.status {
            400 | 500 => EngineError::Missing {
                code: "snapshot",
                what: format!(
                    "{} cannot put the snapshot {} back: {refusal}",
                    self.client.server(),
                    self.snapshot.name
                ),
                remedy: "restore to a server of the same family that is not older, with the same plugins".to_owned(),
            },
            _ => refusal.doing(self.client.server(), "putting a snapshot back"),
        })
    }

    /// Waits until every primary of these indices and data streams is there. Gives the bytes of them.
    pub(crate) async fn watch(&self, places: &[String]) -> Result<u64, EngineError> {
        let is_meant = |index: &str| places.iter().any(|place| is_behind(index, place));
        let (mut total, mut done) = (0, 0);
        let mut without_place = Duration::ZERO;
        loop {
            let recovery = self.recovery().await?;
            let (of_all, so_far) = bytes_of(&recovery, &is_meant);
            if of_all != total {
                total = of_all;
                self.context
                    .progress
                    .begin("the server's restore", total, 0);
                done = 0;
            }
            self.context.progress.add(so_far.saturating_sub(done), 0);
            done = so_far.max(done);
            let shards = self
                .client
                .get(
                    "/_cat/shards?format=json&h=index,shard,prirep,state,unassigned.reason,unassigned.details",
                    "looking where shards are",
                )
                .await?;
            let shards: Vec<&Value> = shards
                .as_array()
                .into_iter()
                .flatten()
                .filter(|shard| shard["prirep"] == "p")
                .filter(|shard| shard["index"].as_str().is_some_and(is_meant))
                .collect();
            let found: BTreeSet<&str> = shards
                .iter()
                .filter_map(|shard| shard["index"].as_str())
                .collect();
            let all_found = places
                .iter()
                .all(|place| found.iter().any(|index| is_behind(index, place)));
            if all_found && shards.iter().all(|shard| shard["state"] == "STARTED") {
                return Ok(total);
            }
            let unassigned = shards.iter().find(|shard| shard["state"] == "UNASSIGNED");
            match unassigned {
                None => without_place = Duration::ZERO,
                Some(shard) => {
                    without_place += LOOK_EVERY;
                    let failed = shard["unassigned.reason"] == "ALLOCATION_FAILED";
                    if failed && without_place >= UNASSIGNED_FOR / 4
                        || without_place >= UNASSIGNED_FOR
                    {
                        return Err(EngineError::Database {
                            what: format!(
                                "{} finds no place for shard {} of {}: {}",
                                self.client.server(),
                                shard["shard"].as_str().unwrap_or_default(),
                                shard["index"].as_str().unwrap_or_default(),
                                shard["unassigned.details"]
                                    .as_str()
                                    .or_else(|| shard["unassigned.reason"].as_str())
                                    .unwrap_or("it says no reason"),
                            ),
                            transient: false,
                        });
                    }
                }
            }
            self.context.progress.pulse();
            self.client.pause(LOOK_EVERY).await?;
        }
    }
}

/// Whether an index is the one that is meant, or is behind the data stream that is.
fn is_behind(index: &str, place: &str) -> bool {
    if index == place {
        return true;
    }
    // `.ds-NAME-2026.11.22-000001`, or `.ds-NAME-000001`.
    let Some(rest) = index
        .strip_prefix(".ds-")
        .and_then(|rest| rest.strip_prefix(place))
        .and_then(|rest| rest.strip_prefix('-'))
    else {
        return false;
    };
    !rest.is_empty()
        && rest
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
}

/// Bytes that come back from the snapshot in all, and so far.
fn bytes_of(recovery: &Value, is_meant: &impl Fn(&str) -> bool) -> (u64, u64) {
    let mut all = (0, 0);
    let of_indices = recovery.as_object().into_iter().flatten();
    for (_, index) in of_indices.filter(|(name, _)| is_meant(name)) {
        for shard in index["shards"].as_array().into_iter().flatten() {
            if shard["primary"] != true {
                continue;
            }
            let size = &shard["index"]["size"];
            let bytes = |name: &str| size[name].as_u64().unwrap_or(0);
            all.0 += bytes("total_in_bytes");
            all.1 += bytes("recovered_in_bytes") + bytes("reused_in_bytes");
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_known_by_its_name_or_by_the_data_stream_before_it() {
        for (index, place, expected) in [
            ("shop", "shop", true),
            ("shop-1", "shop", false),
            (".ds-logs-2026.11.22-000001", "logs", true),
            (".ds-logs-000002", "logs", true),
            (".ds-logs-web-000002", "logs", false),
            (".ds-logs-", "logs", false),
        ] {
            assert_eq!(is_behind(index, place), expected, "{index} {place}");
        }
    }

    #[test]
    fn bytes_are_those_of_the_primaries_that_are_meant() {
        let shard = |primary: bool, total: u64, done: u64| json!({"primary": primary, "index": {"size": {"total_in_bytes": total, "recovered_in_bytes": done}}});
        let recovery = json!({
            "a": {"shards": [shard(true, 10, 4), shard(false, 10, 10), shard(true, 5, 5)]},
            "b": {"shards": [shard(true, 99, 9)]},
        });
        assert_eq!(bytes_of(&recovery, &|name| name == "a"), (15, 9));
    }
}
