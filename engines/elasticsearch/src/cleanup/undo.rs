//! The undo: an index that is not there is made again with its documents and its aliases, one after the other, and compared with the
//! archive. What is there stays.

use fettler_engine::{AttemptName, EngineContext, EngineError, RestoreOptions, StreamSource};
use fettler_fault_points::{Point, reached};
use fettler_model::{CleanupUndone, Fingerprint};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    backup::{Definitions, StoredUnit},
    catalogue::{Definition, definition},
    client::Client,
    facts, found,
    params::Params,
    restore::{self, MARK},
    server::Server,
};

use super::{IndicesData, archive::fingerprint, is_on, remove::unblock};

pub(super) struct Undoing<'a> {
    pub(super) context: &'a EngineContext,
    pub(super) client: &'a Client,
    pub(super) server: &'a Server,
    pub(super) params: &'a Params,
    /// What checkpoints call the server.
    pub(super) place: String,
    pub(super) data: &'a IndicesData,
    pub(super) archive: &'a dyn StreamSource,
    pub(super) dry_run: bool,
}

/// What stands under the name of an index.
enum There {
    /// Nothing, or what this undo has begun.
    Nothing,
    /// The index itself, which was never removed.
    Never(Definition),
    /// An index that may have come back by an undo.
    Another,
    /// Something else, which is told.
    Else(&'static str),
}

impl Undoing<'_> {
    pub(super) async fn all(&self) -> Result<CleanupUndone, EngineError> {
        let definitions = Definitions::of_backup(self.archive).await?;
        let mut undone = CleanupUndone::default();
        for unit in &definitions.units {
            self.context.check_stop()?;
            self.context.fence.check().await?;
            self.context.progress.item(&unit.name);
            self.one(unit, &mut undone).await?;
        }
        Ok(undone)
    }

    async fn one(&self, unit: &StoredUnit, undone: &mut CleanupUndone) -> Result<(), EngineError> {
        let rows = rows_of(self.archive, unit);
        let skip = |undone: &mut CleanupUndone, why: &str| {
            undone.taken += rows;
            undone.skipped.push(format!("{}: {why}", unit.name));
        };
        match self.there(&unit.name).await? {
            There::Nothing if self.dry_run => undone.restored += rows,
            There::Nothing => {
                let archived = fingerprint(self.context, self.archive, unit).await?;
                let refused = self.make(unit).await?;
                let is_back = self.is_there(unit, &archived).await?;
                if is_back {
                    undone.restored += rows;
                } else {
                    skip(undone, "not all of its documents were taken by the server");
                }
                undone.notes.extend(refused);
                undone.notes.extend(self.without_template(unit).await?);
                reached(Point::CleanupUndoing);
            }
            There::Never(now) => {
                let is_blocked = is_on(&now.settings, "blocks.write")
                    && !is_on(&unit.definition.settings, "blocks.write");
                if is_blocked && !self.dry_run {
                    // A cleanup that ended in the middle has left it so.
                    unblock(self.client, &unit.name).await?;
                }
                undone.there += rows;
            }
            There::Another => {
                let archived = fingerprint(self.context, self.archive, unit).await?;
                if self.is_there(unit, &archived).await? {
                    undone.there += rows;
                } else {
                    skip(undone, "another index of this name is there, and stays");
                }
            }
            There::Else(why) => skip(undone, why),
        }
        Ok(())
    }

    async fn there(&self, name: &str) -> Result<There, EngineError> {
        let Some(now) = definition(self.client, name).await? else {
            return Ok(There::Nothing);
        };
        let Some(uuid) = now.setting("uuid") else {
            return Ok(There::Else("an alias or a data stream has this name"));
        };
        let own = AttemptName::prefix_of(self.context.attempt.job);
        Ok(match now.mappings["_meta"][MARK].as_str() {
            Some(mark) if mark.starts_with(&own) => There::Nothing,
            Some(_) => There::Else(
                "another undo or restore has left it half-done: remove it, and undo again",
            ),
            None if self.is_of_plan(name, uuid) => There::Never(now),
            None => There::Another,
        })
    }

    fn is_of_plan(&self, name: &str, uuid: &str) -> bool {
        self.data
            .indices
            .iter()
            .any(|going| going.name == name && going.uuid == uuid)
    }

    /// Makes an index with all that it had; what the server refused of it.
    async fn make(&self, unit: &StoredUnit) -> Result<Vec<String>, EngineError> {
        let params = Params {
            only: Vec::new(),
            ..self.params.clone()
        };
        let options = RestoreOptions {
            only: vec![unit.name.clone()],
            ..RestoreOptions::default()
        };
        let report = restore::restore_to(
            self.context,
            self.archive,
            None,
            &params,
            self.place.clone(),
            &options,
        )
        .await?;
        Ok(report.failed_statements)
    }

    /// Whether the index holds the documents of the archive, and no others.
    async fn is_there(
        &self,
        unit: &StoredUnit,
        archived: &Fingerprint,
    ) -> Result<bool, EngineError> {
        let Some(now) = definition(self.client, &unit.name).await? else {
            return Ok(false);
        };
        let found = facts::read(self.context, self.client, self.server, &unit.name, &now).await?;
        Ok(found.fingerprint == *archived)
    }

    /// Takes away the aliases that a template of the server has given to an index that came back; says what else it gave.
    async fn without_template(&self, unit: &StoredUnit) -> Result<Vec<String>, EngineError> {
        let Some(now) = definition(self.client, &unit.name).await? else {
            return Ok(Vec::new());
        };
        let extra: Vec<&String> = names(&now.aliases)
            .filter(|alias| unit.definition.aliases[alias.as_str()].is_null())
            .collect();
        for alias in extra {
            let actions = json!({"actions": [{"remove": {"index": unit.name, "alias": alias}}]});
            self.client
                .ask(
                    Method::POST,
                    "/_aliases",
                    actions,
                    format!("taking an alias from {}", unit.name),
                )
                .await?;
        }
        let digest = |definition: &Definition| {
            let key = &self.context.fingerprint_key;
            found::objects(key, &unit.name, definition, None)[1]
                .value
                .clone()
        };
        let is_same = digest(&now) == digest(&unit.definition);
        Ok((!is_same)
            .then(|| {
                format!(
                    "{} has other mappings or settings than it had: a template of the server has a say in them",
                    unit.name
                )
            })
            .into_iter()
            .collect())
    }
}

fn names(aliases: &Value) -> impl Iterator<Item = &String> {
    aliases.as_object().into_iter().flat_map(|all| all.keys())
}

/// The documents of an index in the archive.
fn rows_of(archive: &dyn StreamSource, unit: &StoredUnit) -> u64 {
    archive
        .streams()
        .iter()
        .filter(|stream| unit.streams.contains(&stream.name))
        .map(|stream| stream.rows)
        .sum()
}
