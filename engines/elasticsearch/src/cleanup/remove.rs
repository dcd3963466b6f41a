//! The removal of an index: writes are blocked, it is looked at once more while nobody can write to it, and deleted if it still is
//! what the archive holds. Otherwise the block goes, and the index stays.

use std::collections::BTreeMap;

use async_trait::async_trait;
use fettler_engine::{
    EngineContext, EngineError, StreamSource, WholeFate, WholeRemover, remove_wholes,
};
use fettler_fault_points::{Point, reached};
use fettler_model::CleanupRemoved;
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::{
    backup::Definitions,
    catalogue::{Definition, Index, definition},
    client::{Body, Client, encoded},
    params::Params,
    unchanged,
};

use super::{Going, IndicesData, is_on, plan::Age};

/// What a block of writes sets, and what a server sets and takes away by itself as its disk fills. Nothing of it is a change.
const BLOCK: [&str; 3] = [
    "index.blocks.write",
    "index.verified_read_only",
    "index.blocks.read_only_allow_delete",
];

/// Removes indices.
pub(super) async fn remove(
    context: &EngineContext,
    client: &Client,
    params: &Params,
    data: &IndicesData,
    archive: &dyn StreamSource,
) -> Result<CleanupRemoved, EngineError> {
    let definitions = Definitions::of_backup(archive).await?;
    let mut remover = Remover {
        client,
        params,
        data,
        archived: definitions
            .units
            .into_iter()
            .map(|unit| (unit.name, unit.definition))
            .collect(),
    };
    remove_wholes(context, &data.names(), &mut remover).await
}

struct Remover<'a> {
    client: &'a Client,
    params: &'a Params,
    data: &'a IndicesData,
    /// As the archive holds them, by name.
    archived: BTreeMap<String, Definition>,
}

#[async_trait]
impl WholeRemover for Remover<'_> {
    async fn remove(&mut self, number: usize) -> Result<WholeFate, EngineError> {
        let going = &self.data.indices[number];
        let Some(now) = definition(self.client, &going.name).await? else {
            return Ok(WholeFate::gone());
        };
        if now.setting("uuid") != Some(&going.uuid) {
            return Ok(WholeFate::changed("it is another one than at the plan"));
        }
        let Some(archived) = self.archived.get(&going.name) else {
            return Ok(WholeFate::changed("the archive does not hold it"));
        };
        // What a full disk has made read-only takes no writes, and no other block either.
        let was_blocked = is_on(&archived.settings, "blocks.write")
            || is_on(&now.settings, "blocks.read_only_allow_delete");
        if !was_blocked && let Some(why) = self.block(&going.name, &now).await? {
            unblock(self.client, &going.name).await?;
            return Ok(WholeFate::busy(why));
        }
        reached(Point::CleanupDetached);
        let done = self.look_and_delete(going, archived).await;
        let stays = match &done {
            Ok(None) => false,
            Ok(Some(_)) => true,
            // What was to stop, or cannot be reached, is tried with a client of its own.
            Err(_) => {
                if !was_blocked {
                    let visitor = Client::visitor(self.params)?;
                    if let Err(error) = unblock(&visitor, &going.name).await {
                        tracing::warn!(%error, index = going.name, "an index stays blocked for writes until the cleanup goes on");
                    }
                }
                false
            }
        };
        if stays && !was_blocked {
            unblock(self.client, &going.name).await?;
        }
        Ok(done?.unwrap_or_else(WholeFate::removed))
    }
}

impl Remover<'_> {
    /// Blocks writes, and waits until those that had begun are done; why that was not possible.
    async fn block(&self, name: &str, now: &Definition) -> Result<Option<String>, EngineError> {
        if is_on(&now.settings, "blocks.write") {
            // Of an attempt that died, perhaps before all writes were done: only a new block waits for them.
            unblock(self.client, name).await?;
        }
        let path = format!("/{}/_block/write", encoded(name));
        let answer = self
            .client
            .try_ask(Method::PUT, &path, Body::Nothing)
            .await?;
        Ok(match answer {
            Ok(answer) if answer["shards_acknowledged"] == true => None,
            Ok(_) => Some("not every shard has taken the block of writes".to_owned()),
            Err(refusal) if refusal.is_not_allowed() => {
                return Err(refusal.doing(self.client.server(), format!("blocking {name}")));
            }
            Err(refusal) => Some(format!("writes cannot be blocked ({refusal})")),
        })
    }

    /// What became of it where it stays; nothing where it was deleted.
    async fn look_and_delete(
        &self,
        going: &Going,
        archived: &Definition,
    ) -> Result<Option<WholeFate>, EngineError> {
        if let Some(why) = self.why_changed(going, archived).await? {
            return Ok(Some(WholeFate::changed(why)));
        }
        let path = format!("/{}", encoded(&going.name));
        let deleted = self
            .client
            .try_ask(Method::DELETE, &path, Body::Nothing)
            .await?;
        match deleted {
            Ok(_) => Ok(None),
            Err(refusal) if refusal.is_not_found() => Ok(Some(WholeFate::gone())),
            Err(refusal) if refusal.kind == "snapshot_in_progress_exception" => Ok(Some(
                WholeFate::busy("a snapshot of it is being made at this moment"),
            )),
            Err(refusal) => {
                Err(refusal.doing(self.client.server(), format!("removing {}", going.name)))
            }
        }
    }

    /// Why it is not what the archive holds, or not old any more.
    async fn why_changed(
        &self,
        going: &Going,
        archived: &Definition,
    ) -> Result<Option<String>, EngineError> {
        let Some(now) = definition(self.client, &going.name).await? else {
            return Ok(None);
        };
        if let Some(what) = what_differs(archived, &now) {
            return Ok(Some(format!("its {what} are not those of the archive")));
        }
        let index = Index {
            name: going.name.clone(),
            is_open: true,
            definition: now,
        };
        let state = unchanged::words(self.client, &index).await?;
        if state.as_ref() != Some(&going.state) {
            return Ok(Some(
                "it was written to since the plan, or has another primary".to_owned(),
            ));
        }
        if going.by_creation {
            return Ok(None);
        }
        // What was written just before the plan may not have been seen by its search.
        let age = Age::of(self.client, &going.name, &self.data.field, self.data.cutoff)
            .await?
            .map_err(|refusal| {
                refusal.doing(
                    self.client.server(),
                    format!("asking how old {} is", going.name),
                )
            })?;
        Ok(age.why_young(&self.data.field))
    }
}

/// Lets an index be written to again.
pub(super) async fn unblock(client: &Client, name: &str) -> Result<(), EngineError> {
    let path = format!("/{}/_settings", encoded(name));
    let body: Map<String, Value> = Map::from_iter([(BLOCK[0].to_owned(), Value::Null)]);
    match client.try_ask(Method::PUT, &path, json!(body)).await? {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.is_not_found() => Ok(()),
        Err(refusal) => Err(refusal.doing(
            client.server(),
            format!("taking the block of writes from {name}"),
        )),
    }
}

/// What of a definition is another than it was, but for the block.
fn what_differs(archived: &Definition, now: &Definition) -> Option<&'static str> {
    let settings = |definition: &Definition| {
        let mut settings = definition.settings.clone();
        settings.retain(|name, _| !BLOCK.contains(&name.as_str()));
        settings
    };
    if archived.aliases != now.aliases {
        Some("aliases")
    } else if archived.mappings != now.mappings {
        Some("mappings")
    } else if settings(archived) != settings(now) {
        Some("settings")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_the_block_is_a_change() {
        let of = |settings: Value, aliases: Value| {
            Definition::read(&json!({"settings": settings, "mappings": {}, "aliases": aliases}))
        };
        let before = of(json!({"index.uuid": "u"}), json!({"a": {}}));
        let blocked = json!({"index.uuid": "u", "index.blocks.write": "true"});
        assert_eq!(
            what_differs(&before, &of(blocked.clone(), json!({"a": {}}))),
            None
        );
        assert_eq!(
            what_differs(&before, &of(blocked, json!({}))),
            Some("aliases")
        );
        let other = json!({"index.uuid": "u", "index.priority": "5"});
        assert_eq!(
            what_differs(&before, &of(other, json!({"a": {}}))),
            Some("settings")
        );
    }
}
