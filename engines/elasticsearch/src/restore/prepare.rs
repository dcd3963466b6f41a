//! Before the documents: what is in the way at the target, and the indices and data streams that are made there.

use fettler_engine::{AttemptName, EngineError, RestoreOptions};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{Checkpoint, Restore, save, settings};
use crate::{
    backup::{Definitions, StoredUnit},
    catalogue::Definition,
    client::{Body, encoded},
    json::sorted_text,
    parts::{self, Kind},
    server::Server,
};

/// The name of the mark in a mapping's `_meta` that says that an index is not whole.
pub(crate) const MARK: &str = "fettler_restoring";
/// How to go on where something is in the way.
pub(super) const REPLACE_IT: &str = "name another server, put a prefix before all names (`?prefix=copy-` in the target's URL), or say that what is there may be replaced (`--overwrite`)";

/// What stands at the target under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum There {
    Nothing,
    /// An index, or a data stream with the newest index behind it.
    Thing {
        is_data_stream: bool,
        uuid: String,
        mark: Option<String>,
    },
    /// An alias, which is never removed.
    Alias,
}

impl Restore<'_> {
    /// Refuses what is in the way, or removes it where that was allowed. All is looked at before anything is removed.
    pub(super) async fn make_room(
        &self,
        units: &[&StoredUnit],
        definitions: &Definitions,
        kinds: &[Kind],
        server: &Server,
        checkpoint: &mut Checkpoint,
        options: &RestoreOptions,
    ) -> Result<(), EngineError> {
        let own = AttemptName::prefix_of(self.context.attempt.job);
        let mut to_remove = Vec::new();
        for unit in units {
            let place = self.place(&unit.name);
            match self.look_at(&place).await? {
                There::Nothing => forget(checkpoint, unit),
                There::Alias => {
                    return Err(EngineError::NotEmpty {
                        what: format!("{} has an alias that is called {place}", self.client.server()),
                        remedy: "remove the alias, name another server, or put a prefix before all names (`?prefix=copy-` in the target's URL)".to_owned(),
                    });
                }
                There::Thing {
                    uuid,
                    mark,
                    is_data_stream,
                } => {
                    let is_made = checkpoint.made.get(&unit.name) == Some(&uuid);
                    let is_own = mark.as_ref().is_some_and(|mark| mark.starts_with(&own));
                    if is_made && (is_own || checkpoint.whole.contains(&unit.name)) {
                        continue;
                    }
                    let may_go =
                        options.overwrite || is_own || (mark.is_some() && options.start_again);
                    if !may_go {
                        let half = if mark.is_some() {
                            " (left half-done by another restore)"
                        } else {
                            ""
                        };
                        return Err(EngineError::NotEmpty {
                            what: format!("{} has {place} already{half}", self.client.server()),
                            remedy: REPLACE_IT.to_owned(),
                        });
                    }
                    forget(checkpoint, unit);
                    to_remove.push((place, is_data_stream));
                }
            }
        }
        if !options.overwrite {
            self.require_no_other_parts(definitions, kinds, server)
                .await?;
        }
        for (place, is_data_stream) in to_remove {
            self.context.fence.check().await?;
            let path = if is_data_stream {
                format!("/_data_stream/{}", encoded(&place))
            } else {
                format!("/{}", encoded(&place))
            };
            self.client
                .ask(
                    Method::DELETE,
                    &path,
                    Body::Nothing,
                    format!("removing {place}"),
                )
                .await?;
        }
        save(self.context, checkpoint).await
    }

    /// Looks at what stands under a name.
    pub(super) async fn look_at(&self, place: &str) -> Result<There, EngineError> {
        let path = format!(
            "/{}?flat_settings=true&expand_wildcards=all",
            encoded(place)
        );
        let found = match self.client.try_get(&path).await? {
            Ok(found) => found,
            Err(refusal) if refusal.is_not_found() => return Ok(There::Nothing),
            Err(refusal) => {
                return Err(refusal.doing(self.client.server(), format!("looking at {place}")));
            }
        };
        // Behind a data stream are several, the newest last; behind an alias are any.
        let newest = found
            .as_object()
            .and_then(|found| found.iter().max_by_key(|(name, _)| (*name).clone()));
        let Some((name, value)) = newest else {
            return Ok(There::Nothing);
        };
        let is_data_stream = value["data_stream"] == place;
        if name != place && !is_data_stream {
            return Ok(There::Alias);
        }
        let definition = Definition::read(value);
        Ok(There::Thing {
            is_data_stream,
            uuid: definition.setting("uuid").unwrap_or_default().to_owned(),
            mark: definition.mappings["_meta"][MARK]
                .as_str()
                .map(ToOwned::to_owned),
        })
    }

    /// An error where the cluster has something else under the name of a template, a pipeline and so on.
    pub(super) async fn require_no_other_parts(
        &self,
        definitions: &Definitions,
        kinds: &[Kind],
        server: &Server,
    ) -> Result<(), EngineError> {
        if kinds
            .iter()
            .all(|kind| !definitions.parts.contains_key(kind))
        {
            return Ok(());
        }
        let there = parts::read(self.client, server, &mut Vec::new()).await?;
        for kind in kinds {
            for (name, value) in definitions.parts.get(kind).into_iter().flatten() {
                let other = there.get(kind).and_then(|there| there.get(name));
                if other.is_some_and(|other| sorted_text(other) != sorted_text(value)) {
                    return Err(EngineError::NotEmpty {
                        what: format!(
                            "{} has another {} that is called {name}",
                            self.client.server(),
                            kind.title()
                        ),
                        remedy: "choose indices alone with `--only NAME`, or say that what is there may be replaced (`--overwrite`)".to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    fn mark(&self) -> (String, Value) {
        (MARK.to_owned(), json!(self.context.attempt.to_string()))
    }

    /// Makes an index, unless it was made before.
    pub(super) async fn make_index(
        &self,
        unit: &StoredUnit,
        checkpoint: &mut Checkpoint,
    ) -> Result<(), EngineError> {
        if checkpoint.made.contains_key(&unit.name) {
            return Ok(());
        }
        let place = self.place(&unit.name);
        self.context.progress.item(&place);
        let mut mappings = unit.definition.mappings.clone();
        if !mappings.is_object() {
            mappings = json!({});
        }
        let mut meta = mappings["_meta"]
            .as_object()
            .cloned()
            .unwrap_or_else(Map::new);
        meta.extend([self.mark()]);
        mappings["_meta"] = Value::Object(meta);
        let body = json!({
            "settings": settings::at_first(&unit.definition, self.is_scratch()),
            "mappings": mappings,
        });
        self.context.fence.check().await?;
        let path = format!("/{}?wait_for_active_shards=1", encoded(&place));
        self.client
            .try_ask(Method::PUT, &path, body)
            .await?
            .map_err(|refusal| match refusal.status {
                400 => EngineError::Missing {
                    code: "definition",
                    what: format!(
                        "{} cannot make the index {place}: {refusal}",
                        self.client.server()
                    ),
                    remedy: "restore to a server that has the same plugins, analysis files and at least the same version, or leave this index out with `--only`".to_owned(),
                },
                _ => refusal.doing(self.client.server(), format!("making {place}")),
            })?;
        self.made(unit, &place, checkpoint).await
    }

    /// Makes a data stream, unless it was made before.
    pub(super) async fn make_stream(
        &self,
        unit: &StoredUnit,
        checkpoint: &mut Checkpoint,
    ) -> Result<(), EngineError> {
        if checkpoint.made.contains_key(&unit.name) {
            return Ok(());
        }
        let place = self.place(&unit.name);
        self.context.progress.item(&place);
        self.context.fence.check().await?;
        let path = encoded(&place);
        self.client
            .try_ask(Method::PUT, &format!("/_data_stream/{path}"), Body::Nothing)
            .await?
            .map_err(|refusal| match refusal.status {
                400 => EngineError::Missing {
                    code: "template",
                    what: format!(
                        "{} cannot make the data stream {place}: {refusal}",
                        self.client.server()
                    ),
                    remedy: "a data stream needs its index template: restore the templates too (`--only _templates`), or put a prefix before all names (`?prefix=copy-` in the target's URL), which makes it an index".to_owned(),
                },
                _ => refusal.doing(self.client.server(), format!("making {place}")),
            })?;
        let mark = Map::from_iter([self.mark()]);
        self.client
            .ask(
                Method::PUT,
                &format!("/{path}/_mapping"),
                json!({ "_meta": mark }),
                format!("marking {place} as half-done"),
            )
            .await?;
        self.client
            .ask(
                Method::PUT,
                &format!("/{path}/_settings"),
                settings::of_stream_at_first(),
                format!("preparing {place}"),
            )
            .await?;
        self.made(unit, &place, checkpoint).await
    }

    /// Remembers the identity of what was made.
    async fn made(
        &self,
        unit: &StoredUnit,
        place: &str,
        checkpoint: &mut Checkpoint,
    ) -> Result<(), EngineError> {
        if let There::Thing { uuid, .. } = self.look_at(place).await? {
            checkpoint.made.insert(unit.name.clone(), uuid);
        }
        save(self.context, checkpoint).await
    }
}

/// Forgets what was done for something that is not there any more.
fn forget(checkpoint: &mut Checkpoint, unit: &StoredUnit) {
    checkpoint.made.remove(&unit.name);
    checkpoint.whole.remove(&unit.name);
    for stream in &unit.streams {
        checkpoint.done.remove(stream);
    }
}
