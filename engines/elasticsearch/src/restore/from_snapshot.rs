//! What is in the server's own snapshot: the server puts it back, and Fettler looks that nothing is in the way, watches, and
//! puts back what lies in the backup beside it.

use fettler_engine::{EngineError, RestoreOptions};
use reqwest::Method;
use serde_json::json;

use super::{
    Checkpoint, Failures, Restore,
    prepare::{REPLACE_IT, There},
    save,
};
use crate::{
    backup::{Definitions, StoredUnit},
    by_server::{Restoring, Snapshot},
    client::{Body, encoded},
    parts::Kind,
    server::Server,
};

/// What is to be put back.
pub(super) struct Wanted<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) units: &'a [&'a StoredUnit],
    pub(super) definitions: &'a Definitions,
    pub(super) kinds: &'a [Kind],
    pub(super) server: &'a Server,
    pub(super) options: &'a RestoreOptions,
}

pub(super) fn no_query(name: &str) -> EngineError {
    EngineError::Missing {
        code: "query",
        what: format!(
            "the documents of {name} are in the server's own snapshot, which comes back by whole indices"
        ),
        remedy: format!(
            "restore {name} under another name (`?prefix=copy-` in the target's URL), and take from it what you need"
        ),
    }
}

impl Restore<'_> {
    /// Puts back what is wanted; gives its bytes.
    pub(super) async fn take_from_snapshot(
        &self,
        wanted: &Wanted<'_>,
        checkpoint: &mut Checkpoint,
        failures: &mut Failures,
    ) -> Result<u64, EngineError> {
        let restoring = Restoring {
            context: self.context,
            client: self.client,
            snapshot: wanted.snapshot,
            prefix: self.prefix,
        };
        // Before anything is removed: what cannot be put back is not replaced.
        let repository = restoring.find().await?;
        let (mut to_ask, mut to_remove) = (Vec::new(), Vec::new());
        for unit in wanted.units {
            let place = self.place_in_snapshot(unit);
            let is_data_stream = match self.look_at(&place).await? {
                There::Nothing => {
                    to_ask.push(*unit);
                    continue;
                }
                There::Alias => {
                    return Err(EngineError::NotEmpty {
                        what: format!("{} has an alias that is called {place}", self.client.server()),
                        remedy: "remove the alias, name another server, or put a prefix before all names (`?prefix=copy-` in the target's URL)".to_owned(),
                    });
                }
                There::Thing { is_data_stream, .. } => is_data_stream,
            };
            if checkpoint.asked.contains(&unit.name) && restoring.comes_from_it(&place).await? {
                continue;
            }
            if !wanted.options.overwrite {
                return Err(EngineError::NotEmpty {
                    what: format!("{} has {place} already", self.client.server()),
                    remedy: REPLACE_IT.to_owned(),
                });
            }
            to_remove.push((place, is_data_stream));
            to_ask.push(*unit);
        }
        if !wanted.options.overwrite {
            self.require_no_other_parts(wanted.definitions, wanted.kinds, wanted.server)
                .await?;
        }
        for (place, is_data_stream) in to_remove {
            self.context.fence.check().await?;
            let kind = if is_data_stream { "_data_stream/" } else { "" };
            let path = format!("/{kind}{}", encoded(&place));
            let doing = format!("removing {place}");
            self.client
                .ask(Method::DELETE, &path, Body::Nothing, doing)
                .await?;
        }
        self.put_parts(wanted.definitions, wanted.kinds, failures)
            .await?;
        if !to_ask.is_empty() {
            checkpoint
                .asked
                .extend(to_ask.iter().map(|unit| unit.name.clone()));
            save(self.context, checkpoint).await?;
            let names: Vec<&str> = to_ask.iter().map(|unit| unit.name.as_str()).collect();
            restoring.ask(&repository, &names).await?;
        }
        self.context.progress.begin("the server's restore", 0, 0);
        let places: Vec<String> = wanted
            .units
            .iter()
            .map(|unit| self.place_in_snapshot(unit))
            .collect();
        let bytes = restoring.watch(&places).await?;
        if self.is_scratch() {
            for (unit, place) in wanted.units.iter().zip(&places) {
                self.put_aliases(unit, place, failures).await?;
            }
        }
        Ok(bytes)
    }

    /// The server's own renaming cuts no long names.
    fn place_in_snapshot(&self, unit: &StoredUnit) -> String {
        format!("{}{}", self.prefix, unit.name)
    }

    /// How many documents were put back, as the server counts them.
    pub(super) async fn documents(&self, units: &[&StoredUnit]) -> Result<u64, EngineError> {
        let mut all = 0;
        for unit in units {
            let place = self.place_in_snapshot(unit);
            all += self.count(&place, &json!({"match_all": {}})).await?;
        }
        Ok(all)
    }
}
