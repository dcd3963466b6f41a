//! Which indices are old, and which stay whatever their age is.

use std::collections::BTreeMap;

use fettler_engine::{EngineContext, EngineError, refuse};
use fettler_model::{CleanupItem, CleanupPlan, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    catalogue::{Catalogue, Index, Source, Unit},
    client::{Answer, Client, encoded},
    grants,
    params::Params,
    select::{Selection, fits},
    server::{Flavour, Server},
    unchanged,
};

use super::{CREATION_DATE, Going, IndicesData, is_on};

/// Indices that are told to stay.
const MOST_NOTES: usize = 50;
/// What lifecycles call the policy that an index is under.
const POLICIES: [&str; 3] = [
    "lifecycle.name",
    "plugins.index_state_management.policy_id",
    "opendistro.index_state_management.policy_id",
];

/// What the documents of an index say of their age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Age {
    pub(super) documents: u64,
    /// Documents that are not older than the cut-off.
    pub(super) young: u64,
    /// Documents that say no time.
    pub(super) without: u64,
    oldest: Option<String>,
    newest: Option<String>,
}

impl Age {
    /// Asks the server, which counts and compares itself.
    pub(super) async fn of(
        client: &Client,
        index: &str,
        field: &str,
        cutoff: Timestamp,
    ) -> Result<Answer<Self>, EngineError> {
        let asked = json!({
            "size": 0,
            "track_total_hits": true,
            "query": {"match_all": {}},
            "aggs": {
                "young": {"filter": {"range": {field: {
                    "gte": cutoff.micros().div_euclid(1000), "format": "epoch_millis",
                }}}},
                "without": {"filter": {"bool": {"must_not": {"exists": {"field": field}}}}},
                "oldest": {"min": {"field": field}},
                "newest": {"max": {"field": field}},
            },
        });
        let path = format!(
            "/{}/_search?allow_partial_search_results=false",
            encoded(index)
        );
        let answer = match client.try_ask(Method::POST, &path, asked).await? {
            Ok(answer) => answer,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let found = &answer["aggregations"];
        let number = |value: &Value| {
            value
                .as_u64()
                .ok_or_else(|| client.unexpected("asking how old documents are", &"no number"))
        };
        let text = |name: &str| found[name]["value_as_string"].as_str().map(str::to_owned);
        Ok(Ok(Self {
            documents: number(&answer["hits"]["total"]["value"])?,
            young: number(&found["young"]["doc_count"])?,
            without: number(&found["without"]["doc_count"])?,
            oldest: text("oldest"),
            newest: text("newest"),
        }))
    }

    /// Why an index of this age stays.
    pub(super) fn why_young(&self, field: &str) -> Option<String> {
        if self.young > 0 {
            Some(format!(
                "{} of its documents are not older than the cut-off by {field}",
                self.young
            ))
        } else if self.without > 0 {
            Some(format!(
                "{} of its documents have no {field}, and say no time",
                self.without
            ))
        } else {
            None
        }
    }
}

/// What an index is to the plan.
enum Seen {
    Goes(Going, CleanupItem),
    Stays(String),
    /// It is young, which needs no word.
    Young,
}

pub(super) struct Planning<'a> {
    pub(super) context: &'a EngineContext,
    pub(super) client: &'a Client,
    pub(super) server: &'a Server,
    pub(super) params: &'a Params,
    pub(super) pattern: &'a str,
    pub(super) field: &'a str,
}

impl Planning<'_> {
    pub(super) async fn make(&self, mut plan: CleanupPlan) -> Result<CleanupPlan, EngineError> {
        if self.pattern.is_empty() || self.field.is_empty() || self.field.contains(['*', ',']) {
            return Err(EngineError::Missing {
                code: "selection",
                what: "`indices` is a name or a pattern, and `field` is one field".to_owned(),
                remedy: "write `--indices 'logs-*' --field @timestamp`".to_owned(),
            });
        }
        if let Some(missing) = self.missing_privileges().await? {
            refuse(
                &mut plan,
                format!("the user may not remove indices: it lacks {missing}"),
                grants::for_cleanup(self.server.flavour),
            );
            return Ok(plan);
        }
        let catalogue = Catalogue::read(self.client).await?;
        self.require_some(&catalogue)?;
        let mut notes = self.of_others(&catalogue);
        let members = members(&catalogue);
        let cutoff = plan.cutoff.unwrap_or(plan.made);
        let mut going = Vec::new();
        let mut sizes = None;
        for unit in catalogue.units.values() {
            let [index] = unit.indices.as_slice() else {
                continue;
            };
            if unit.is_data_stream || !self.is_meant(&unit.name) {
                continue;
            }
            self.context.check_stop()?;
            self.context.progress.item(&index.name);
            let seen = match why_stays(index, &members) {
                Some(why) => Seen::Stays(why),
                None => self.look_at(index, cutoff).await?,
            };
            match seen {
                Seen::Young => {}
                Seen::Stays(why) => notes.push(format!("{} stays: {why}", index.name)),
                Seen::Goes(one, mut item) => {
                    if sizes.is_none() {
                        sizes = Some(self.sizes().await?);
                    }
                    item.bytes = sizes
                        .as_ref()
                        .and_then(|sizes| sizes.get(&index.name).copied())
                        .unwrap_or(0);
                    plan.depends
                        .extend(policy(index).map(|policy| {
                            format!("{} is under the policy {policy}, which may move or remove it by itself", index.name)
                        }));
                    going.push(one);
                    plan.items.push(item);
                }
            }
        }
        plan.depends.extend(of_aliases(&members, &going));
        let more = notes.len().saturating_sub(MOST_NOTES);
        plan.notes.extend(notes.into_iter().take(MOST_NOTES));
        if more > 0 {
            plan.notes.push(format!("and {more} more stay"));
        }
        plan.can_be_undone = true;
        plan.engine_data = json!(IndicesData {
            field: self.field.to_owned(),
            cutoff,
            indices: going,
        });
        Ok(plan)
    }

    /// Whether the pattern and the URL name it.
    fn is_meant(&self, name: &str) -> bool {
        fits(self.pattern, name) && Selection::of_backup(&self.params.only, &[]).has(name)
    }

    /// An error where the pattern names nothing at all.
    fn require_some(&self, catalogue: &Catalogue) -> Result<(), EngineError> {
        let is_there = catalogue.servers_own.iter().any(|name| self.is_meant(name))
            || catalogue.units.values().any(|unit| {
                self.is_meant(&unit.name)
                    || unit.indices.iter().any(|index| self.is_meant(&index.name))
            });
        if is_there {
            return Ok(());
        }
        Err(EngineError::Missing {
            code: "selection",
            what: format!(
                "{} has no index that is called {}",
                self.client.server(),
                self.pattern
            ),
            remedy: "look at `GET /_cat/indices`".to_owned(),
        })
    }

    /// A word on what the pattern names and never goes.
    fn of_others(&self, catalogue: &Catalogue) -> Vec<String> {
        let is_named = |unit: &&Unit| {
            unit.is_data_stream
                && (self.is_meant(&unit.name)
                    || unit.indices.iter().any(|index| self.is_meant(&index.name)))
        };
        let own = catalogue
            .servers_own
            .iter()
            .filter(|name| self.is_meant(name));
        let streams = catalogue.units.values().filter(is_named);
        own.map(|name| format!("{name} stays: it belongs to the server itself"))
            .chain(streams.map(|unit| {
                format!(
                    "{} stays: it is a data stream, whose lifecycle policy or retention removes its old indices",
                    unit.name
                )
            }))
            .collect()
    }

    async fn look_at(&self, index: &Index, cutoff: Timestamp) -> Result<Seen, EngineError> {
        let by_creation = match self.kind_of_field(&index.name).await? {
            Kind::Date => false,
            Kind::None if self.field == CREATION_DATE => true,
            Kind::None => {
                return Ok(Seen::Stays(format!("it has no field {}", self.field)));
            }
            Kind::Other(kind) => {
                return Ok(Seen::Stays(format!(
                    "its field {} is of the type {kind}, and no date",
                    self.field
                )));
            }
        };
        let Some(uuid) = index.definition.setting("uuid") else {
            return Ok(Seen::Stays("it has no identity".to_owned()));
        };
        // Before the documents: what is written in between is seen as a change.
        let state = unchanged::words(self.client, index).await?;
        let mut item = CleanupItem {
            name: index.name.clone(),
            ..CleanupItem::default()
        };
        if by_creation {
            let Some(made) = made(index).filter(|made| *made < cutoff) else {
                return Ok(Seen::Young);
            };
            item.rows = self.count(&index.name).await?;
            item.oldest = Some(made.to_string());
            item.newest = Some(made.to_string());
            "by when it was made".clone_into(&mut item.note);
        } else {
            let answer = Age::of(self.client, &index.name, self.field, cutoff).await?;
            let age = match answer {
                Ok(age) => age,
                Err(refusal) if refusal.is_full() || refusal.status >= 500 => {
                    return Err(refusal.doing(
                        self.client.server(),
                        format!("asking how old {} is", index.name),
                    ));
                }
                Err(refusal) => {
                    return Ok(Seen::Stays(format!(
                        "its documents cannot be asked ({refusal})"
                    )));
                }
            };
            if age.young > 0 {
                return Ok(Seen::Young);
            }
            if let Some(why) = age.why_young(self.field) {
                return Ok(Seen::Stays(why));
            }
            if age.documents == 0 {
                return Ok(Seen::Stays(format!(
                    "it holds no document; `--field {CREATION_DATE}` goes by when it was made"
                )));
            }
            item.rows = age.documents;
            (item.oldest, item.newest) = (age.oldest, age.newest);
        }
        let Some(state) = state else {
            return Ok(Seen::Stays(
                "it is written to at this moment, a shard of it is missing, or its statistics may not be read"
                    .to_owned(),
            ));
        };
        let going = Going {
            name: index.name.clone(),
            uuid: uuid.to_owned(),
            state,
            by_creation,
        };
        Ok(Seen::Goes(going, item))
    }

    async fn kind_of_field(&self, index: &str) -> Result<Kind, EngineError> {
        let path = format!(
            "/{}/_field_caps?fields={}",
            encoded(index),
            encoded(self.field)
        );
        let answer = self.client.get(&path, "asking for a field").await?;
        let Some(kinds) = answer["fields"][self.field].as_object() else {
            return Ok(Kind::None);
        };
        let other = kinds
            .keys()
            .find(|kind| !matches!(kind.as_str(), "date" | "date_nanos"));
        Ok(other.map_or(Kind::Date, |kind| Kind::Other(kind.clone())))
    }

    async fn count(&self, index: &str) -> Result<u64, EngineError> {
        let path = format!("/{}/_count", encoded(index));
        let answer = self.client.get(&path, "counting documents").await?;
        Ok(answer["count"].as_u64().unwrap_or(0))
    }

    /// Bytes of the primaries, by index.
    async fn sizes(&self) -> Result<BTreeMap<String, u64>, EngineError> {
        let path = format!(
            "/{}/_stats/store?filter_path=indices.*.primaries.store.size_in_bytes",
            encoded(self.pattern).replace("%2A", "*")
        );
        let answer = self.client.try_get(&path).await?.unwrap_or_default();
        let indices = answer["indices"].as_object().into_iter().flatten();
        Ok(indices
            .filter_map(|(name, told)| {
                let bytes = told["primaries"]["store"]["size_in_bytes"].as_u64()?;
                Some((name.clone(), bytes))
            })
            .collect())
    }

    /// What the user would need and has not, where the server tells that.
    async fn missing_privileges(&self) -> Result<Option<String>, EngineError> {
        if self.server.flavour == Flavour::OpenSearch {
            return Ok(None);
        }
        let asked = json!({"index": [{
            "names": [self.pattern],
            "privileges": ["read", "view_index_metadata", "monitor", "maintenance", "manage"],
        }]});
        let answer = self
            .client
            .try_ask(Method::POST, "/_security/user/_has_privileges", asked)
            .await?
            .unwrap_or_default();
        Ok(lacks(&answer["index"][self.pattern]))
    }
}

/// The privileges that an answer says are not there.
fn lacks(told: &Value) -> Option<String> {
    let missing: Vec<&str> = told
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, has)| **has == Value::Bool(false))
        .map(|(name, _)| name.as_str())
        .collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// What a field is in an index.
enum Kind {
    Date,
    Other(String),
    None,
}

/// When an index was made.
fn made(index: &Index) -> Option<Timestamp> {
    let millis: i64 = index.definition.setting(CREATION_DATE)?.parse().ok()?;
    Some(Timestamp::from_micros(millis.checked_mul(1000)?))
}

/// The policy that an index is under.
fn policy(index: &Index) -> Option<String> {
    POLICIES
        .iter()
        .find_map(|name| index.definition.setting(name))
        .map(str::to_owned)
}

/// The indices behind each alias, with what the alias says of each.
type Members<'a> = BTreeMap<&'a str, Vec<(&'a str, &'a Value)>>;

fn members(catalogue: &Catalogue) -> Members<'_> {
    let mut members: Members<'_> = BTreeMap::new();
    for index in catalogue.units.values().flat_map(|unit| &unit.indices) {
        for (alias, value) in index.definition.aliases.as_object().into_iter().flatten() {
            members
                .entry(alias)
                .or_default()
                .push((index.name.as_str(), value));
        }
    }
    members
}

/// Why an index stays, whatever its age is.
fn why_stays(index: &Index, members: &Members<'_>) -> Option<String> {
    let definition = &index.definition;
    let settings = &definition.settings;
    let begins = |prefix: &str| settings.keys().any(|name| name.starts_with(prefix));
    let is_mounted = begins("index.store.snapshot.")
        || begins("index.searchable_snapshot.")
        || matches!(
            definition.setting("store.type"),
            Some("snapshot" | "remote_snapshot")
        );
    let why = if !index.is_open {
        "it is closed, and cannot be read".to_owned()
    } else if is_on(settings, "hidden") || index.name.starts_with('.') {
        "it is hidden".to_owned()
    } else if is_mounted {
        "it is mounted from a snapshot".to_owned()
    } else if is_on(settings, "xpack.ccr.following_index") {
        "it follows an index of another cluster".to_owned()
    } else if let Some(block) = ["read_only", "read", "metadata"]
        .iter()
        .find(|block| is_on(settings, &format!("blocks.{block}")))
    {
        format!("it is blocked (index.blocks.{block})")
    } else if let Some(alias) = written_through(&index.name, members) {
        format!("it is what is written to through the alias {alias}")
    } else {
        match definition.source() {
            Source::Whole => return None,
            Source::Off => "it has no `_source`, and cannot be archived".to_owned(),
            Source::Thinned => {
                "it keeps only some fields in `_source`, and cannot be archived whole".to_owned()
            }
            Source::Rebuilt => {
                "its `_source` is made anew by the server, and cannot be archived as it was written"
                    .to_owned()
            }
        }
    };
    Some(why)
}

/// The alias through which an index is written to: one that says so, or that has no other index and does not say otherwise.
fn written_through<'a>(index: &str, members: &Members<'a>) -> Option<&'a str> {
    members.iter().find_map(|(alias, behind)| {
        let (_, value) = behind.iter().find(|(name, _)| *name == index)?;
        let is_written = match value["is_write_index"].as_bool() {
            Some(told) => told,
            None => behind.len() == 1,
        };
        is_written.then_some(*alias)
    })
}

/// What becomes of aliases.
fn of_aliases(members: &Members<'_>, going: &[Going]) -> Vec<String> {
    let goes = |name: &str| going.iter().any(|one| one.name == name);
    members
        .iter()
        .filter_map(|(alias, behind)| {
            let some = behind.iter().filter(|(name, _)| goes(name)).count();
            match some {
                0 => None,
                some if some == behind.len() => Some(format!(
                    "the alias {alias} leads to nothing else, and goes with them"
                )),
                some => Some(format!(
                    "the alias {alias} leads to {some} of them and to {} others",
                    behind.len() - some
                )),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Definition;

    fn index(name: &str, settings: impl Into<Value>, aliases: impl Into<Value>) -> Unit {
        let (settings, aliases): (Value, Value) = (settings.into(), aliases.into());
        Unit {
            name: name.to_owned(),
            is_data_stream: false,
            indices: vec![Index {
                name: name.to_owned(),
                is_open: name != "closed",
                definition: Definition::read(
                    &json!({"settings": settings, "mappings": {}, "aliases": aliases}),
                ),
            }],
        }
    }

    fn catalogue(units: Vec<Unit>) -> Catalogue {
        Catalogue {
            units: units
                .into_iter()
                .map(|unit| (unit.name.clone(), unit))
                .collect(),
            servers_own: Vec::new(),
        }
    }

    /// The settings of indices that no test server can have, in the form of the products' documentation.
    #[test]
    fn what_is_written_to_mounted_hidden_or_not_whole_stays() {
        let none = || json!({});
        let catalogue = catalogue(vec![
            index("plain", none(), json!({"all": {}})),
            index(
                "other",
                none(),
                json!({"all": {}, "some": {"is_write_index": false}}),
            ),
            index("alone", none(), json!({"one": {}})),
            index("written", none(), json!({"roll": {"is_write_index": true}})),
            index("rolled", none(), json!({"roll": {"is_write_index": false}})),
            index("closed", none(), none()),
            index(".kibana_1", none(), none()),
            index("hidden", json!({"index.hidden": "true"}), none()),
            index(
                "mounted",
                json!({"index.store.type": "snapshot", "index.store.snapshot.repository_name": "r"}),
                none(),
            ),
            index(
                "partial",
                json!({"index.store.snapshot.partial": "true"}),
                none(),
            ),
            index(
                "remote",
                json!({"index.store.type": "remote_snapshot"}),
                none(),
            ),
            index(
                "follower",
                json!({"index.xpack.ccr.following_index": "true"}),
                none(),
            ),
            index("synthetic", json!({"index.mode": "logsdb"}), none()),
            index(
                "readonly",
                json!({"index.blocks.read_only": "true"}),
                none(),
            ),
            // A server whose disk is full sets this: old indices are what is to go then.
            index(
                "flooded",
                json!({"index.blocks.read_only_allow_delete": "true"}),
                none(),
            ),
        ]);
        let members = members(&catalogue);
        let going: Vec<&str> = catalogue
            .units
            .values()
            .filter(|unit| why_stays(&unit.indices[0], &members).is_none())
            .map(|unit| unit.name.as_str())
            .collect();
        assert_eq!(going, ["flooded", "other", "plain", "rolled"]);
    }

    #[test]
    fn what_becomes_of_aliases_is_told() {
        let catalogue = catalogue(vec![
            index(
                "a",
                json!({}),
                json!({"both": {}, "first": {"is_write_index": false}}),
            ),
            index("b", json!({}), json!({"both": {}})),
        ]);
        let going = [Going {
            name: "a".to_owned(),
            uuid: String::new(),
            state: String::new(),
            by_creation: false,
        }];
        assert_eq!(
            of_aliases(&members(&catalogue), &going),
            [
                "the alias both leads to 1 of them and to 1 others",
                "the alias first leads to nothing else, and goes with them"
            ]
        );
    }

    /// An answer of the security module in its documented form; the test servers have none.
    #[test]
    fn privileges_that_are_missing_are_named() {
        let told = json!({"read": true, "manage": false, "monitor": true, "maintenance": false});
        let missing = lacks(&told).unwrap();
        assert!(missing.contains("manage") && missing.contains("maintenance"));
        assert_eq!(lacks(&json!({"read": true})), None);
        assert_eq!(lacks(&Value::Null), None);
    }
}
