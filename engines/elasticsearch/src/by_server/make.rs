//! A backup by the server: what there is, the state of each index, the snapshot, and the fingerprints of what did not change
//! meanwhile.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use fettler_engine::{
    BackupOptions, BackupReport, Cut, EngineContext, EngineError, ROW_HASH, StreamEnd, StreamSink,
    Target,
};
use fettler_model::Warning;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Snapshot, is_whole, look_at, name_of, path_of,
    place::{Place, Repository},
    remove,
};
use crate::{
    backup::{BackupData, Definitions, FORMAT, FORMAT_BY_SERVER, part_objects, stored},
    catalogue::{Catalogue, Index, Source, Unit},
    client::{Client, encoded},
    facts,
    found::{self, Found},
    hits::Form,
    identify::{identity, store_bytes},
    params::Params,
    parts::{self, Parts},
    select::Selection,
    server::{Flavour, Server},
    unchanged::{State, Stats},
};

/// How often a running snapshot is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// From this version on Elasticsearch takes the state of its own features into a snapshot unless it is told not to.
const HAS_FEATURE_STATES: (u32, u32) = (7, 12);
/// How many failures of shards are told one by one.
const FAILURES_TOLD: usize = 5;

/// What an attempt leaves to the next one: a snapshot that runs was begun after these states were noted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Checkpoint {
    /// Where the snapshot was asked for.
    place: String,
    /// The state of each index before that, where it was certain.
    states: BTreeMap<String, State>,
}

/// What all parts of the work share.
struct Making<'a> {
    context: &'a EngineContext,
    client: &'a Client,
    server: &'a Server,
    sink: &'a dyn StreamSink,
}

/// Lets a server make a snapshot.
pub(crate) async fn backup(
    context: &EngineContext,
    source: &Target,
    options: &BackupOptions,
    place: &str,
    sink: &dyn StreamSink,
) -> Result<BackupReport, EngineError> {
    context.progress.begin("prepare", 0, 0);
    let place_named = Place::read(place)?;
    let params = Params::of(source)?;
    let client = Client::of_attempt(&params, context)?;
    let server = Server::of(&client).await?;
    let selection = Selection::of_backup(&params.only, &options.exclude);
    let catalogue = Catalogue::read(&client).await?;
    let names: Vec<&str> = catalogue.units.keys().map(String::as_str).collect();
    if let Some(pattern) = selection.names_nothing(&names) {
        return Err(EngineError::Missing {
            code: "selection",
            what: format!("{} has nothing that is called {pattern}", client.server()),
            remedy: "look at `GET /_cat/indices?expand_wildcards=all`".to_owned(),
        });
    }
    require_open(&catalogue, &selection)?;
    let estimated_bytes = store_bytes(&client).await?;
    let making = Making {
        context,
        client: &client,
        server: &server,
        sink,
    };
    let chosen: Vec<&Unit> = catalogue
        .units
        .values()
        .filter(|unit| selection.has(&unit.name) && !selection.leaves_out(&unit.name))
        .collect();
    let repository = place_named.ready(&client).await?;

    let name = name_of(context.attempt.job);
    let states = making.begin(&repository, place, &name, &chosen).await?;
    let made = making.watch(&repository, &name).await?;

    context
        .progress
        .begin("reading fingerprints", estimated_bytes, 0);
    let (mut objects, mut changed, mut units) = (Vec::new(), Vec::new(), Vec::new());
    for unit in &chosen {
        let Some(last) = unit.indices.last() else {
            continue;
        };
        let mut all = Some(Found::default());
        for index in &unit.indices {
            let form = form_of(unit);
            let before = states.get(&index.name);
            // Without `_source` there is nothing to read.
            let before = before.filter(|_| index.definition.source() != Source::Off);
            let found = making.found(index, form, before).await?;
            all = all.zip(found).map(|(mut all, found)| {
                all.merge(&found);
                all
            });
        }
        if all.is_none() {
            changed.push(unit.name.clone());
        }
        let key = &context.fingerprint_key;
        objects.extend(found::objects(
            key,
            &unit.name,
            &last.definition,
            all.as_ref(),
        ));
        units.push(stored(unit, last.definition.clone(), Vec::new()));
    }
    let mut warnings = vec![Warning {
        code: "elasticsearch.by_server".to_owned(),
        message: format!(
            "the documents lie in the server's own repository {} as the server writes them there: Fettler neither encrypts nor verifies them",
            repository.name
        ),
    }];
    if !changed.is_empty() {
        warnings.push(Warning {
            code: "elasticsearch.without_fingerprint".to_owned(),
            message: format!(
                "{} changed while the snapshot was taken, or cannot be read: there is nothing to compare a copy with",
                changed.join(", ")
            ),
        });
    }
    let parts = if selection.is_everything() {
        parts::read(&client, &server, &mut warnings).await?
    } else {
        Parts::new()
    };
    objects.extend(part_objects(&parts));
    let data = BackupData {
        format: FORMAT_BY_SERVER,
        flavour: format!("{:?}", server.flavour),
        units: units.iter().map(|unit| unit.name.clone()).collect(),
        snapshot: Some(Snapshot {
            repository: repository.name.clone(),
            kind: repository.kind,
            settings: repository.settings,
            name: name.clone(),
            uuid: made["uuid"].as_str().unwrap_or_default().to_owned(),
            changed,
        }),
    };
    Definitions {
        format: FORMAT,
        units,
        parts,
    }
    .store(sink)
    .await?;
    Ok(BackupReport {
        position: json!({
            "method": "snapshot",
            "cluster": server.cluster_uuid,
            "repository": repository.name,
            "snapshot": name,
            "begun": made["start_time"],
            "ended": made["end_time"],
        }),
        identity: identity(&params, &server, estimated_bytes),
        objects,
        row_hash: ROW_HASH.to_owned(),
        engine_data: serde_json::to_value(&data).expect("plain data can be JSON"),
        warnings,
    })
}

const fn form_of(unit: &Unit) -> Form {
    if unit.is_data_stream {
        Form::Create
    } else {
        Form::Index
    }
}

/// A closed index has no numbers and cannot be read, and would be in the snapshot unseen. One without `_source` is no obstacle
/// to a server's own snapshot; it has no fingerprint.
fn require_open(catalogue: &Catalogue, selection: &Selection) -> Result<(), EngineError> {
    let closed: Vec<&str> = catalogue
        .units
        .values()
        .filter(|unit| selection.has(&unit.name) && !selection.leaves_out(&unit.name))
        .flat_map(|unit| &unit.indices)
        .filter(|index| !index.is_open)
        .map(|index| index.name.as_str())
        .collect();
    if closed.is_empty() {
        return Ok(());
    }
    Err(EngineError::Missing {
        code: "source",
        what: format!("{} cannot be looked at: closed", closed.join(", ")),
        remedy: "open what is closed, or leave it out by name (`--exclude NAME`)".to_owned(),
    })
}

impl Making<'_> {
    /// Notes the state of each index and asks for the snapshot, or finds the one that an earlier attempt asked for. Gives the
    /// states that were noted before it was asked for.
    async fn begin(
        &self,
        repository: &Repository,
        place: &str,
        name: &str,
        chosen: &[&Unit],
    ) -> Result<BTreeMap<String, State>, EngineError> {
        let left = self.context.checkpoints.load().await?;
        let left = left
            .and_then(|left| Checkpoint::deserialize(left).ok())
            .filter(|left| left.place == place);
        if let Some(there) = look_at(self.client, &repository.name, name).await? {
            if is_whole(&there) || there["state"] == "IN_PROGRESS" {
                return Ok(left.unwrap_or_default().states);
            }
            self.context.fence.check().await?;
            remove(self.client, &repository.name, name).await?;
        }
        let mut states = BTreeMap::new();
        for unit in chosen {
            for index in &unit.indices {
                if let Some(state) = self.state(index, form_of(unit)).await? {
                    states.insert(index.name.clone(), state);
                }
            }
        }
        let checkpoint = Checkpoint {
            place: place.to_owned(),
            states,
        };
        self.context
            .checkpoints
            .save(serde_json::to_value(&checkpoint).expect("plain data can be JSON"))
            .await?;
        let names: Vec<&str> = chosen.iter().map(|unit| unit.name.as_str()).collect();
        let mut asked = json!({
            "indices": names,
            "include_global_state": true,
            "partial": false,
            "ignore_unavailable": false,
        });
        if self.server.flavour == Flavour::Elasticsearch {
            asked["metadata"] = json!({"made_by": self.context.attempt.to_string()});
            if self.server.version >= HAS_FEATURE_STATES {
                asked["feature_states"] = json!(["none"]);
            }
        }
        if names.is_empty() {
            // An empty list would mean everything.
            asked["indices"] = json!(["-*"]);
        }
        self.context.fence.check().await?;
        self.client
            .ask(
                Method::PUT,
                &format!(
                    "{}?wait_for_completion=false",
                    path_of(&repository.name, name)
                ),
                asked,
                "asking for a snapshot",
            )
            .await?;
        Ok(checkpoint.states)
    }

    async fn state(&self, index: &Index, form: Form) -> Result<Option<State>, EngineError> {
        let key = &self.context.fingerprint_key;
        let stats = Stats::of(self.client, self.server, index, form, key).await?;
        Ok(stats.and_then(|stats| stats.state))
    }

    /// Waits for the snapshot, with what it has done so far. Gives what the server says of it at its end.
    async fn watch(&self, repository: &Repository, name: &str) -> Result<Value, EngineError> {
        self.context.progress.begin("the server's snapshot", 0, 0);
        let (mut total, mut done) = (0, 0);
        loop {
            let path = format!("{}/_status", path_of(&repository.name, name));
            // Between the request and its beginning, and for a moment at its end, a server may know nothing of it here.
            if let Ok(status) = self.client.try_get(&path).await? {
                let (of_all, so_far) = progress_of(&status["snapshots"][0]);
                if of_all != total {
                    total = of_all;
                    self.context
                        .progress
                        .begin("the server's snapshot", total, 0);
                    done = 0;
                }
                self.context.progress.add(so_far.saturating_sub(done), 0);
                done = so_far.max(done);
            }
            let Some(found) = look_at(self.client, &repository.name, name).await? else {
                return Err(EngineError::Database {
                    what: format!("somebody removed the snapshot {name} while it was made"),
                    transient: true,
                });
            };
            match found["state"].as_str().unwrap_or_default() {
                "SUCCESS" => return Ok(found),
                "IN_PROGRESS" | "STARTED" | "INIT" => {}
                state => {
                    let what = format!(
                        "the server ended the snapshot {name} as {state}: {}",
                        failures_of(&found)
                    );
                    self.context.fence.check().await?;
                    remove(self.client, &repository.name, name).await?;
                    return Err(EngineError::Database {
                        what,
                        transient: true,
                    });
                }
            }
            self.context.progress.pulse();
            self.client.pause(LOOK_EVERY).await?;
        }
    }

    /// The documents of an index that nobody wrote to since its state was noted; nothing of another one.
    async fn found(
        &self,
        index: &Index,
        form: Form,
        before: Option<&State>,
    ) -> Result<Option<Found>, EngineError> {
        self.context.progress.item(&index.name);
        let Some(before) = before else {
            return Ok(None);
        };
        if self.state(index, form).await?.as_ref() != Some(before) {
            return Ok(None);
        }
        let stream = format!("fingerprints/{}", encoded(&index.name));
        if let Some(marker) = self.sink.parent_marker(&stream).await?
            && let Some(found) = found_in(before, &marker)
            && self.sink.take_over(&stream, &marker).await?.is_some()
        {
            return Ok(Some(found));
        }
        let (client, server) = (self.client, self.server);
        let found =
            facts::read(self.context, client, server, &index.name, &index.definition).await?;
        // What was read is of a later moment than the state: only if nothing happened until now are they the same.
        if self.state(index, form).await?.as_ref() != Some(before) {
            return Ok(None);
        }
        let marker = marker_of(before, &found);
        let mut writer = self.sink.open(&stream, Cut::Content).await?;
        writer.write(Bytes::from(format!("{marker}\n"))).await?;
        writer
            .finish(StreamEnd {
                unchanged_marker: Some(marker),
                ..StreamEnd::default()
            })
            .await?;
        Ok(Some(found))
    }
}

/// What the stream of a fingerprint ends with: the bytes of the documents too, which are in no stream.
fn marker_of(state: &State, found: &Found) -> String {
    format!("{}/{}", state.marker(found), found.bytes)
}

fn found_in(state: &State, marker: &str) -> Option<Found> {
    let (marker, bytes) = marker.rsplit_once('/')?;
    let found = state.found(marker)?;
    Some(Found {
        bytes: bytes.parse().ok()?,
        ..found
    })
}

/// Bytes that a snapshot has to copy, and has copied.
fn progress_of(status: &Value) -> (u64, u64) {
    let stats = &status["stats"];
    let bytes = |name: &str| stats[name]["size_in_bytes"].as_u64();
    let total = bytes("incremental").or_else(|| bytes("total"));
    let done = bytes("processed").or_else(|| (status["state"] == "SUCCESS").then_some(total?));
    (total.unwrap_or(0), done.unwrap_or(0))
}

/// Why shards could not be taken, in words.
fn failures_of(snapshot: &Value) -> String {
    let failures = snapshot["failures"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let mut told: Vec<String> = failures
        .iter()
        .take(FAILURES_TOLD)
        .map(|failure| {
            let text = |name: &str| failure[name].as_str().unwrap_or_default().to_owned();
            format!(
                "{} (shard {}): {}",
                text("index"),
                failure["shard_id"],
                text("reason")
            )
        })
        .collect();
    if failures.len() > FAILURES_TOLD {
        told.push(format!("and {} more", failures.len() - FAILURES_TOLD));
    }
    if told.is_empty() {
        let reason = snapshot["reason"].as_str().unwrap_or("it says no reason");
        told.push(reason.to_owned());
    }
    told.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_what_the_snapshot_copies_itself() {
        let running = json!({"state": "STARTED", "stats": {
            "incremental": {"file_count": 3, "size_in_bytes": 500},
            "processed": {"file_count": 1, "size_in_bytes": 200},
            "total": {"file_count": 9, "size_in_bytes": 900},
        }});
        assert_eq!(progress_of(&running), (500, 200));
        let done = json!({"state": "SUCCESS", "stats": {
            "incremental": {"size_in_bytes": 500}, "total": {"size_in_bytes": 900},
        }});
        assert_eq!(progress_of(&done), (500, 500));
        assert_eq!(progress_of(&Value::Null), (0, 0));
    }

    #[test]
    fn failures_name_index_shard_and_reason_and_are_not_too_many() {
        let failure = |at: u32| json!({"index": "shop", "shard_id": at, "reason": "no primary"});
        let all: Vec<Value> = (0..7).map(failure).collect();
        let told = failures_of(&json!({ "failures": all }));
        assert!(told.starts_with("shop (shard 0): no primary; "), "{told}");
        assert!(told.ends_with("and 2 more"), "{told}");
        assert_eq!(failures_of(&json!({"reason": "disk"})), "disk");
    }
}
