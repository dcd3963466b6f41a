//! The server's own snapshots, which Fettler registers a place for, runs, watches, restores, compares and lets go.
//!
//! A snapshot holds what each shard had committed when its turn came. Fettler reads the documents too, for their fingerprint and
//! not to store them: of an index that nobody wrote to between the moment before the snapshot was asked for and the moment after
//! it was done, what is read afterwards is what the snapshot holds. Of others no fingerprint can be had, and the backup says so: a
//! proof of it compares what it can, and does not call it proven.
//!
//! The snapshot's name is made from the job's id, so that an attempt finds the snapshot of an earlier one, running or done.

mod make;
mod place;
mod restore;

use fettler_engine::{BackupReport, EngineError, Held, Target};
use fettler_model::JobId;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    backup::BackupData,
    client::{Body, Client, encoded},
};

pub(crate) use make::backup;
pub(crate) use restore::Restoring;

/// What the names of snapshots begin with that Fettler asked for; the job's id follows.
const PREFIX: &str = "fettler-";

/// A snapshot, and where the server has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// What the server calls the place.
    pub(crate) repository: String,
    /// The kind of the place (`fs`, `s3`, `gcs`, `azure`, …) and its settings, as the server shows them: without secrets. Another
    /// server is told of the place by them.
    pub(crate) kind: String,
    pub(crate) settings: Map<String, Value>,
    /// The snapshot's name.
    pub(crate) name: String,
    /// Its identity, which the server made.
    pub(crate) uuid: String,
    /// Indices and data streams whose documents have no fingerprint, since they changed while the snapshot was taken or cannot be read.
    pub(crate) changed: Vec<String>,
}

/// The name of the snapshot that a job makes.
fn name_of(job: JobId) -> String {
    format!("{PREFIX}{}", job.uuid().simple())
}

/// The job whose snapshot has this name.
fn job_of(name: &str) -> Option<JobId> {
    let digits = name.strip_prefix(PREFIX)?;
    let job: JobId = digits.parse().ok()?;
    (name_of(job) == name).then_some(job)
}

fn path_of(repository: &str, snapshot: &str) -> String {
    format!("/_snapshot/{}/{}", encoded(repository), encoded(snapshot))
}

/// What a proof cannot compare.
pub(crate) fn doubts(report: &BackupReport) -> Vec<String> {
    let snapshot = BackupData::of(report).ok().and_then(|data| data.snapshot);
    let changed = snapshot.map(|snapshot| snapshot.changed);
    changed
        .unwrap_or_default()
        .into_iter()
        .map(|name| {
            format!(
                "{name} was written to while the server took its snapshot, or cannot be read: nobody knows which documents it holds"
            )
        })
        .collect()
}

/// All snapshots of Fettler's in all places that answer.
pub(crate) async fn held(server: &Target) -> Result<Vec<Held>, EngineError> {
    let (client, _) = Client::of(server)?;
    let places = client.get("/_snapshot", "listing the places of snapshots");
    let mut held = Vec::new();
    for place in places.await?.as_object().into_iter().flatten() {
        let (repository, of_server) = place;
        if is_read_only(of_server) {
            continue;
        }
        let path = format!(
            "/_snapshot/{}/{PREFIX}*?verbose=false&ignore_unavailable=true",
            encoded(repository)
        );
        let found = match client.try_get(&path).await? {
            Ok(found) => found,
            // A place that is broken or not to be read says nothing of the others.
            Err(refusal) => {
                tracing::warn!(repository, %refusal, "a place of snapshots could not be listed");
                continue;
            }
        };
        for snapshot in snapshots_of(&found) {
            let name = snapshot["snapshot"].as_str().unwrap_or_default();
            if let Some(job) = job_of(name) {
                held.push(Held {
                    job,
                    place: repository.clone(),
                    name: name.to_owned(),
                });
            }
        }
    }
    Ok(held)
}

fn is_read_only(repository: &Value) -> bool {
    let value = &repository["settings"]["readonly"];
    value == "true" || value == true
}

/// The snapshots in an answer; 7.10 tells them for each place.
fn snapshots_of(answer: &Value) -> Vec<&Value> {
    let of_places = answer["responses"].as_array().into_iter().flatten();
    of_places
        .map(|place| &place["snapshots"])
        .chain([&answer["snapshots"]])
        .filter_map(Value::as_array)
        .flatten()
        .collect()
}

/// Asks for a snapshot; nothing where it is not there.
async fn look_at(
    client: &Client,
    repository: &str,
    name: &str,
) -> Result<Option<Value>, EngineError> {
    match client.try_get(&path_of(repository, name)).await? {
        Ok(answer) => Ok(snapshots_of(&answer).first().map(|found| (*found).clone())),
        Err(refusal) if refusal.is_not_found() => Ok(None),
        Err(refusal) => Err(refusal.doing(client.server(), format!("looking at {name}"))),
    }
}

/// An error where the snapshot of a backup is gone, or is another one.
pub(crate) async fn require_held(
    report: &BackupReport,
    server: &Target,
) -> Result<(), EngineError> {
    let Some(snapshot) = BackupData::of(report)?.snapshot else {
        return Ok(());
    };
    let (client, _) = Client::of(server)?;
    let found = look_at(&client, &snapshot.repository, &snapshot.name).await?;
    if found.is_some_and(|found| found["uuid"] == snapshot.uuid.as_str() && is_whole(&found)) {
        return Ok(());
    }
    Err(gone(&snapshot, client.server()))
}

fn gone(snapshot: &Snapshot, server: &str) -> EngineError {
    EngineError::Unusable {
        what: format!(
            "{server} has no whole snapshot {} in {} any more",
            snapshot.name, snapshot.repository
        ),
        remedy: "take another backup; `fettler forget` removes this one from the list".to_owned(),
    }
}

fn is_whole(snapshot: &Value) -> bool {
    snapshot["state"] == "SUCCESS"
}

/// Removes a snapshot, or ends one that runs.
pub(crate) async fn let_go(server: &Target, held: &Held) -> Result<(), EngineError> {
    let (client, _) = Client::of(server)?;
    if job_of(&held.name) != Some(held.job) {
        return Ok(());
    }
    remove(&client, &held.place, &held.name).await
}

async fn remove(client: &Client, repository: &str, name: &str) -> Result<(), EngineError> {
    let removed = client
        .try_ask(Method::DELETE, &path_of(repository, name), Body::Nothing)
        .await?;
    match removed {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.is_not_found() => Ok(()),
        Err(refusal) => Err(refusal.doing(client.server(), format!("removing {name}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_snapshot_is_known_by_its_name_and_others_are_not() {
        let job = JobId::new();
        assert_eq!(job_of(&name_of(job)), Some(job));
        for other in ["fettler-", "fettler-1", "nightly-1", "FETTLER-x", ""] {
            assert_eq!(job_of(other), None, "{other}");
        }
    }

    #[test]
    fn snapshots_are_found_in_both_forms_of_the_answer() {
        let of_one = json!({"snapshots": [{"snapshot": "a"}]});
        let of_many = json!({"responses": [
            {"repository": "x", "snapshots": [{"snapshot": "a"}, {"snapshot": "b"}]},
            {"repository": "y", "error": {}},
        ]});
        assert_eq!(snapshots_of(&of_one).len(), 1);
        assert_eq!(snapshots_of(&of_many).len(), 2);
        assert!(snapshots_of(&json!({})).is_empty());
    }
}
