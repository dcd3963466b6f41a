//! Whether an index is as the parent saw it, so that its documents need not be read.
//!
//! Elasticsearch numbers every change of a shard (`max_seq_no`), a new primary begins a new term, and an index that was made
//! anew or put back from a snapshot has another UUID or another history. Where all of these are what they were, no document
//! has changed. Three things would make that wrong, and are looked at:
//!
//! - A change that has its number and is not yet done (`local_checkpoint` is behind `max_seq_no`) would be missed by the
//!   backup that notes the number, and by all that follow: such a state is not noted.
//! - The numbers and the terms come from two answers; a primary that is replaced between them would pair the number of one
//!   term with another term. So the terms are asked for before and after.
//! - A search does not see a change before a refresh. The state is asked for first, then comes the refresh, then the reading:
//!   what the state speaks of is in the backup.

use std::collections::BTreeMap;

use fettler_engine::{EngineError, ROW_HASH};
use fettler_model::Fingerprint;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    catalogue::Index,
    client::{Client, encoded},
    found::Found,
    hits::Form,
    json::sorted_text,
    server::Server,
};

/// The version of how documents lie in a stream and of what a marker says.
const FORMAT: u32 = 1;

/// What the statistics of an index say.
pub(crate) struct Stats {
    /// The largest number of the history of any shard: how many digits the order of documents needs.
    pub(crate) most_numbers: u64,
    /// What the index is like, where that could be told for certain.
    pub(crate) state: Option<State>,
}

impl Stats {
    /// Asks for them; nothing where the index is gone.
    pub(crate) async fn of(
        client: &Client,
        server: &Server,
        index: &Index,
        form: Form,
        key: &[u8; 32],
    ) -> Result<Option<Self>, EngineError> {
        let Some(seen) = look(client, &index.name).await? else {
            return Ok(None);
        };
        let state = seen
            .words(index)
            .map(|facts| State::new(&facts, server, index, form, key));
        Ok(Some(Self {
            most_numbers: most_numbers(&seen.of_index),
            state,
        }))
    }
}

/// What every primary of an index is like, in words that are the same as long as no document changes; nothing where the index is
/// gone, or that cannot be told for certain.
pub(crate) async fn words(client: &Client, index: &Index) -> Result<Option<String>, EngineError> {
    let seen = look(client, &index.name).await?;
    Ok(seen.and_then(|seen| seen.words(index)))
}

/// What a server tells of an index.
struct Seen {
    of_index: Value,
    /// The terms, where they were the same before and after.
    terms: Option<Value>,
}

impl Seen {
    fn words(&self, index: &Index) -> Option<String> {
        state(&self.of_index, self.terms.as_ref()?, index)
    }
}

/// Asks for statistics; nothing where the index is gone.
async fn look(client: &Client, index: &str) -> Result<Option<Seen>, EngineError> {
    let terms_before = terms(client, index).await?;
    let path = format!(
        "/{}/_stats?level=shards&expand_wildcards=all&filter_path=indices.*.uuid,indices.*.shards.*.routing.primary,\
         indices.*.shards.*.seq_no,indices.*.shards.*.commit.user_data.history_uuid",
        encoded(index)
    );
    let stats = match client.try_get(&path).await? {
        Ok(stats) => stats,
        Err(refusal) if refusal.is_not_found() => return Ok(None),
        // Only the speed of reading goes by it, or a cleanup that leaves it alone.
        Err(refusal) if refusal.is_not_allowed() => Value::Null,
        Err(refusal) => return Err(refusal.doing(client.server(), "asking for statistics")),
    };
    let terms_after = terms(client, index).await?;
    Ok(Some(Seen {
        of_index: stats["indices"][index].clone(),
        terms: terms_after.filter(|after| Some(after) == terms_before.as_ref()),
    }))
}

/// The primary term of each shard; nothing where it is not told.
async fn terms(client: &Client, index: &str) -> Result<Option<Value>, EngineError> {
    let path = format!(
        "/_cluster/state/metadata/{}?expand_wildcards=all&filter_path=metadata.indices.*.primary_terms",
        encoded(index)
    );
    let answer = client.try_get(&path).await?;
    Ok(answer
        .ok()
        .map(|state| state["metadata"]["indices"][index]["primary_terms"].clone())
        .filter(Value::is_object))
}

fn copies(of_index: &Value) -> impl Iterator<Item = (&str, &Value)> {
    of_index["shards"]
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(shard, copies)| {
            let copies = copies.as_array().into_iter().flatten();
            copies.map(move |copy| (shard.as_str(), copy))
        })
}

fn most_numbers(of_index: &Value) -> u64 {
    copies(of_index)
        .filter_map(|(_, copy)| copy["seq_no"]["max_seq_no"].as_u64())
        .max()
        .unwrap_or(0)
}

/// What every primary is like, in words that are the same as long as nothing changes; nothing unless every primary tells
/// all of it and has done everything that has a number.
fn state(of_index: &Value, terms: &Value, index: &Index) -> Option<String> {
    let mut primaries = BTreeMap::new();
    for (shard, copy) in copies(of_index).filter(|(_, copy)| copy["routing"]["primary"] == true) {
        let number = copy["seq_no"]["max_seq_no"].as_i64()?;
        if copy["seq_no"]["local_checkpoint"].as_i64()? != number {
            return None;
        }
        let history = copy["commit"]["user_data"]["history_uuid"].as_str()?;
        let term = terms[shard].as_u64()?;
        primaries.insert(
            shard.parse::<u32>().ok()?,
            format!("{history} {term} {number}"),
        );
    }
    let is_whole = primaries.keys().copied().eq(0..index.definition.shards());
    let uuid = of_index["uuid"]
        .as_str()
        .or_else(|| index.definition.setting("uuid"))?;
    is_whole.then(|| {
        let primaries: Vec<String> = primaries.into_values().collect();
        format!("{uuid} {}", primaries.join(" "))
    })
}

/// A state of an index, of which nothing but being the same or not can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State(String);

impl State {
    fn new(facts: &str, server: &Server, index: &Index, form: Form, key: &[u8; 32]) -> Self {
        let text = format!(
            "{FORMAT} {ROW_HASH} {form:?} {:?} {} {facts} {}",
            server.flavour,
            server.version_text,
            sorted_text(&index.definition.mappings)
        );
        Self(blake3::keyed_hash(key, text.as_bytes()).to_hex()[..32].to_owned())
    }

    /// What a stream ends with that was read at this state or later, and holds what was found.
    pub(crate) fn marker(&self, found: &Found) -> String {
        let counted = found
            .counted
            .map_or_else(|| "-".to_owned(), |count| count.to_string());
        format!("{}/{counted}/{}", self.0, found.fingerprint)
    }

    /// What was found in a stream with that marker, if it is of this state. The bytes are the stream's to tell.
    pub(crate) fn found(&self, marker: &str) -> Option<Found> {
        let rest = marker.strip_prefix(self.0.as_str())?.strip_prefix('/')?;
        let (counted, fingerprint) = rest.split_once('/')?;
        let counted = match counted {
            "-" => None,
            number => Some(number.parse().ok()?),
        };
        Some(Found {
            fingerprint: fingerprint.parse::<Fingerprint>().ok()?,
            counted,
            bytes: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{catalogue::Definition, server::Flavour};

    fn index() -> Index {
        Index {
            name: "shop".to_owned(),
            is_open: true,
            definition: Definition::read(&json!({
                "settings": {"index.number_of_shards": "2", "index.uuid": "u"},
                "mappings": {"properties": {"a": {"type": "long"}}}, "aliases": {},
            })),
        }
    }

    fn primary(number: i64, done: i64, history: &str) -> Value {
        json!({
            "routing": {"primary": true},
            "seq_no": {"max_seq_no": number, "local_checkpoint": done},
            "commit": {"user_data": {"history_uuid": history}},
        })
    }

    fn stats() -> Value {
        json!({"uuid": "u", "shards": {
            "0": [primary(7, 7, "h0"), {"routing": {"primary": false}, "seq_no": {"max_seq_no": 9}}],
            "1": [primary(-1, -1, "h1")],
        }})
    }

    #[test]
    fn a_state_changes_with_each_number_term_and_history() {
        let terms = json!({"0": 1, "1": 3});
        let whole = state(&stats(), &terms, &index()).unwrap();
        assert_eq!(whole, "u h0 1 7 h1 3 -1");
        assert_eq!(most_numbers(&stats()), 9);
        let mut other = stats();
        other["shards"]["0"][0] = primary(8, 8, "h0");
        assert_ne!(state(&other, &terms, &index()).unwrap(), whole);
        other["shards"]["0"][0] = primary(7, 7, "another");
        assert_ne!(state(&other, &terms, &index()).unwrap(), whole);
        let later = json!({"0": 2, "1": 3});
        assert_ne!(state(&stats(), &later, &index()).unwrap(), whole);
    }

    #[test]
    fn a_state_that_is_not_certain_is_none() {
        let terms = json!({"0": 1, "1": 3});
        let mut behind = stats();
        behind["shards"]["0"][0] = primary(7, 6, "h0");
        assert_eq!(state(&behind, &terms, &index()), None);
        let mut missing = stats();
        missing["shards"].as_object_mut().unwrap().remove("1");
        assert_eq!(state(&missing, &terms, &index()), None);
        assert_eq!(state(&stats(), &json!({"0": 1}), &index()), None);
        assert_eq!(state(&Value::Null, &terms, &index()), None);
    }

    #[test]
    fn a_marker_gives_back_what_was_found_and_only_for_its_state() {
        let server = |version: &str| Server {
            flavour: Flavour::Elasticsearch,
            version: (8, 19),
            version_text: version.to_owned(),
            cluster_uuid: "c".to_owned(),
        };
        let key = [7; 32];
        let state = State::new("facts", &server("8.19.2"), &index(), Form::Index, &key);
        let mut found = Found::default();
        found.fingerprint.add_row_hash([1, 2]);
        found.counted = Some(1);
        let back = state.found(&state.marker(&found)).unwrap();
        assert_eq!(back.fingerprint, found.fingerprint);
        assert_eq!(back.counted, Some(1));
        found.counted = None;
        assert_eq!(state.found(&state.marker(&found)).unwrap().counted, None);
        let mut mapped = index();
        mapped.definition.mappings = json!({"properties": {"a": {"type": "keyword"}}});
        for other in [
            State::new("other", &server("8.19.2"), &index(), Form::Index, &key),
            State::new("facts", &server("9.0.0"), &index(), Form::Index, &key),
            State::new("facts", &server("8.19.2"), &index(), Form::Create, &key),
            State::new("facts", &server("8.19.2"), &mapped, Form::Index, &key),
            State::new("facts", &server("8.19.2"), &index(), Form::Index, &[8; 32]),
        ] {
            assert!(other.found(&state.marker(&found)).is_none());
        }
        assert!(state.found("").is_none());
    }
}
