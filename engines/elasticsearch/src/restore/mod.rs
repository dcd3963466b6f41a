//! The restore: indices are made, documents written into them by bulk requests, several streams at once, and what was put off
//! is put back: replicas, refresh, pipelines, lifecycles, aliases.
//!
//! Until an index is whole, a mark in its mapping (`_meta`) says whose work it is. A checkpoint says which streams are done; it
//! counts for an index as long as that is the very one that was made. Where a query says which documents are meant, the others
//! are taken out before the mark goes ([`query`]).
//!
//! Where the target's URL has a prefix, everything gets another name: indices and aliases. Data streams come back as indices
//! there, and what the cluster has beside indices is not put back, since it would work there.

mod bulk;
mod from_snapshot;
mod prepare;
mod query;
mod settings;

pub(crate) use prepare::MARK;

use std::collections::{BTreeMap, BTreeSet};

use fettler_engine::{
    BackupReport, EngineContext, EngineError, RestoreOptions, RestoreReport, StreamSource, Target,
};
use fettler_model::Warning;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use crate::{
    backup::{BackupData, Definitions, StoredUnit},
    by_server::Snapshot,
    client::{Body, Client, encoded},
    params::Params,
    parts::{self, Kind, Part},
    select::Selection,
    server::Server,
};

use bulk::Outcome;
use query::Query;

/// How many refusals are told one by one.
const REFUSALS_TOLD: usize = 20;
/// The longest name of an index, in bytes.
const LONGEST_NAME: usize = 255;

/// How far a restore has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    /// The target, since a checkpoint for another one is of no use.
    target: String,
    /// What was chosen.
    only: Vec<String>,
    /// The indices and data streams that were made: the identity of each.
    made: BTreeMap<String, String>,
    /// Streams that are done.
    done: BTreeSet<String>,
    /// Indices and data streams that are whole and have everything back.
    whole: BTreeSet<String>,
    /// Those that the server was asked to put back from its own snapshot.
    #[serde(default)]
    asked: BTreeSet<String>,
}

/// What all parts of a restore share.
struct Restore<'a> {
    context: &'a EngineContext,
    client: &'a Client,
    /// Before each name; empty where names stay.
    prefix: &'a str,
}

/// What an index is called behind a prefix. A name that would become too long ends with a digest of what it loses.
pub(crate) fn placed(prefix: &str, name: &str) -> String {
    let whole = format!("{prefix}{name}");
    if whole.len() <= LONGEST_NAME || prefix.is_empty() {
        return whole;
    }
    let digest = blake3::hash(name.as_bytes()).to_hex();
    let mut end = LONGEST_NAME - 17;
    while !whole.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{}", &whole[..end], &digest[..16])
}

/// Puts a backup back.
pub(crate) async fn restore(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    target: &Target,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    let data = BackupData::of(report)?;
    let params = Params::of(target)?;
    let place = target.url.to_string();
    restore_to(
        context,
        backup,
        data.snapshot.as_ref(),
        &params,
        place,
        options,
    )
    .await
}

/// Puts back what streams hold, or the server's own snapshot. `place` is what checkpoints call the target.
pub(crate) async fn restore_to(
    context: &EngineContext,
    backup: &dyn StreamSource,
    snapshot: Option<&Snapshot>,
    params: &Params,
    place: String,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    context.check_stop()?;
    if !params.only.is_empty() {
        return Err(EngineError::Missing {
            code: "url",
            what: "a target is a whole server, and its URL names indices".to_owned(),
            remedy: "leave them out of the URL, and choose what is restored with `--only NAME`"
                .to_owned(),
        });
    }
    let client = Client::of_attempt(params, context)?;
    let server = Server::of(&client).await?;
    let definitions = Definitions::of_backup(backup).await?;
    let selection = Selection::of_restore(&options.only)?;
    let units = chosen(&definitions, &selection)?;
    let restore = Restore {
        context,
        client: &client,
        prefix: &params.prefix,
    };
    let mut checkpoint = left_checkpoint(context, place, options).await?;
    let kinds: Vec<Kind> = Part::ALL
        .into_iter()
        .filter(|part| restore.prefix.is_empty() && selection.has_part(*part))
        .flat_map(|part| part.kinds().iter().copied())
        .collect();

    let queries: Vec<Query<'_>> = units
        .iter()
        .filter_map(|unit| {
            let query = selection.query(&unit.name)?;
            Some(Query { unit, query })
        })
        .collect();
    let asked_of = |unit: &StoredUnit| queries.iter().find(|query| query.unit.name == unit.name);

    let mut failures = Failures::default();
    let mut warnings = Vec::new();
    context.progress.begin("preparing", 0, 0);
    if let Some(snapshot) = snapshot {
        let found = from_snapshot::Wanted {
            snapshot,
            units: &units,
            definitions: &definitions,
            kinds: &kinds,
            server: &server,
            options,
        };
        if let Some(query) = queries.first() {
            return Err(from_snapshot::no_query(&query.unit.name));
        }
        let bytes = restore
            .take_from_snapshot(&found, &mut checkpoint, &mut failures)
            .await?;
        let left_out = what_was_left_out(&restore, &definitions, &selection, &[]);
        return Ok(RestoreReport {
            bytes,
            rows: restore.documents(&units).await?,
            failed_statements: failures.told(),
            warnings: left_out,
        });
    }
    for query in &queries {
        restore.try_query(query).await?;
    }
    restore
        .make_room(
            &units,
            &definitions,
            &kinds,
            &server,
            &mut checkpoint,
            options,
        )
        .await?;
    for unit in &units {
        if !restore.is_stream(unit) {
            restore.make_index(unit, &mut checkpoint).await?;
            if let Some(query) = asked_of(unit) {
                restore.try_on_what_was_made(query, &mut checkpoint).await?;
            }
        }
    }
    // Only now: a template would have a say in how an index is made.
    restore
        .put_parts(&definitions, &kinds, &mut failures)
        .await?;
    for unit in &units {
        if restore.is_stream(unit) {
            restore.make_stream(unit, &mut checkpoint).await?;
            if let Some(query) = asked_of(unit) {
                restore.try_on_what_was_made(query, &mut checkpoint).await?;
            }
        }
    }
    context.progress.begin("restoring", backup_bytes(backup), 0);
    let checkpoint = Mutex::new(checkpoint);
    let outcome = restore
        .write(backup, &units, &checkpoint, &mut failures)
        .await?;
    let mut checkpoint = checkpoint.into_inner();
    if !queries.is_empty() {
        context
            .progress
            .begin("taking out what was not asked for", 0, 0);
    }
    let mut taken_out = 0;
    for query in &queries {
        let name = &query.unit.name;
        if checkpoint.whole.contains(name) {
            continue;
        }
        let found = restore.keep_what_is_found(&server, query).await?;
        taken_out += found.taken_out;
        if found.kept == 0 {
            warnings.push(Warning {
                code: "elasticsearch.query".to_owned(),
                message: format!("no document of {name} is what the query asks for"),
            });
        }
    }
    context.progress.begin("finishing", 0, 0);
    for unit in &units {
        if !checkpoint.whole.contains(&unit.name) {
            restore.finish(unit, &mut failures).await?;
            checkpoint.whole.insert(unit.name.clone());
            save(context, &checkpoint).await?;
        }
    }
    warnings.extend(what_was_left_out(
        &restore,
        &definitions,
        &selection,
        &units,
    ));
    if outcome.there_already > 0 {
        warnings.push(Warning {
            code: "elasticsearch.there_already".to_owned(),
            message: format!(
                "{} documents of data streams were there already, by an earlier attempt or under an id that comes twice",
                outcome.there_already
            ),
        });
    }
    Ok(RestoreReport {
        bytes: outcome.bytes,
        rows: outcome.documents.saturating_sub(taken_out),
        failed_statements: failures.told(),
        warnings,
    })
}

/// What was refused and does not end the restore.
#[derive(Debug, Default)]
struct Failures {
    told: Vec<String>,
    more: usize,
}

impl Failures {
    fn tell(&mut self, what: String) {
        if self.told.len() < REFUSALS_TOLD {
            self.told.push(what);
        } else {
            self.more += 1;
        }
    }

    fn told(mut self) -> Vec<String> {
        if self.more > 0 {
            self.told.push(format!("and {} more", self.more));
        }
        self.told
    }
}

async fn left_checkpoint(
    context: &EngineContext,
    target: String,
    options: &RestoreOptions,
) -> Result<Checkpoint, EngineError> {
    let fresh = Checkpoint {
        target,
        only: options.only.clone(),
        ..Checkpoint::default()
    };
    let left = context
        .checkpoints
        .load()
        .await?
        .and_then(|left| Checkpoint::deserialize(left).ok())
        .filter(|left| {
            !options.start_again && (&left.target, &left.only) == (&fresh.target, &fresh.only)
        });
    Ok(left.unwrap_or(fresh))
}

async fn save(context: &EngineContext, checkpoint: &Checkpoint) -> Result<(), EngineError> {
    let checkpoint = serde_json::to_value(checkpoint).expect("plain data can be JSON");
    context.checkpoints.save(checkpoint).await
}

fn backup_bytes(backup: &dyn StreamSource) -> u64 {
    backup.streams().iter().map(|stream| stream.bytes).sum()
}

/// The indices and data streams that are meant.
fn chosen<'a>(
    definitions: &'a Definitions,
    selection: &Selection,
) -> Result<Vec<&'a StoredUnit>, EngineError> {
    let names: Vec<&str> = definitions
        .units
        .iter()
        .map(|unit| unit.name.as_str())
        .collect();
    if let Some(pattern) = selection.names_nothing(&names) {
        let some: Vec<&str> = names.iter().copied().take(20).collect();
        return Err(EngineError::Missing {
            code: "selection",
            what: format!("the backup has nothing that is called {pattern}"),
            remedy: format!("it has {}", some.join(", ")),
        });
    }
    Ok(definitions
        .units
        .iter()
        .filter(|unit| selection.has(&unit.name))
        .collect())
}

/// A word on what a whole restore does not put back.
fn what_was_left_out(
    restore: &Restore<'_>,
    definitions: &Definitions,
    selection: &Selection,
    units: &[&StoredUnit],
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let has_settings = definitions.parts.contains_key(&Kind::Setting);
    if selection.is_everything() && restore.prefix.is_empty() && has_settings {
        warnings.push(Warning {
            code: "elasticsearch.settings_not_restored".to_owned(),
            message: "the cluster's settings are in the backup and were not restored; `--only _settings` restores them".to_owned(),
        });
    }
    let empty: Vec<&str> = units
        .iter()
        .filter(|unit| unit.definition.source() == crate::catalogue::Source::Off)
        .map(|unit| unit.name.as_str())
        .collect();
    if !empty.is_empty() {
        warnings.push(Warning {
            code: "elasticsearch.source".to_owned(),
            message: format!(
                "only the definitions of {} were restored: they have no `_source`",
                empty.join(", ")
            ),
        });
    }
    warnings
}

impl Restore<'_> {
    /// Puts back what the cluster has beside indices.
    async fn put_parts(
        &self,
        definitions: &Definitions,
        kinds: &[Kind],
        failures: &mut Failures,
    ) -> Result<(), EngineError> {
        for kind in kinds {
            for (name, value) in definitions.parts.get(kind).into_iter().flatten() {
                self.context.fence.check().await?;
                if let Err(refusal) = parts::put(self.client, *kind, name, value).await? {
                    failures.tell(format!("the {} {name}: {refusal}", kind.title()));
                }
            }
        }
        Ok(())
    }

    /// What something is called at the target.
    fn place(&self, name: &str) -> String {
        placed(self.prefix, name)
    }

    /// Whether it comes back as a data stream.
    fn is_stream(&self, unit: &StoredUnit) -> bool {
        unit.is_data_stream && self.prefix.is_empty()
    }

    fn is_scratch(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// Writes the documents that are not there yet.
    async fn write(
        &self,
        backup: &dyn StreamSource,
        units: &[&StoredUnit],
        checkpoint: &Mutex<Checkpoint>,
        failures: &mut Failures,
    ) -> Result<Outcome, EngineError> {
        let done = checkpoint.lock().await.done.clone();
        let work: Vec<(&StoredUnit, &String)> = units
            .iter()
            .flat_map(|unit| unit.streams.iter().map(move |stream| (*unit, stream)))
            .filter(|(_, stream)| !done.contains(*stream))
            .collect();
        let mut all = Outcome::default();
        let mut writes = stream::iter(0..work.len())
            .map(|at| {
                let (unit, name) = work[at];
                async move {
                    self.context.progress.item(&unit.name);
                    let place = self.place(&unit.name);
                    let outcome =
                        bulk::write(self.context, self.client, backup, name, &place).await?;
                    let mut checkpoint = checkpoint.lock().await;
                    // A document that was refused is refused again, and has to be told again.
                    if outcome.refused.is_empty() {
                        checkpoint.done.insert(name.clone());
                        save(self.context, &checkpoint).await?;
                    }
                    Ok::<_, EngineError>((at, outcome))
                }
            })
            .buffer_unordered(self.context.parallel.max(1));
        while let Some((at, outcome)) = writes.try_next().await? {
            for (kind, count) in &outcome.refused {
                failures.tell(format!("{count} documents of {}: {kind}", work[at].0.name));
            }
            all.merge(outcome);
        }
        Ok(all)
    }

    /// Puts back what was put off; the mark goes.
    async fn finish(&self, unit: &StoredUnit, failures: &mut Failures) -> Result<(), EngineError> {
        let place = self.place(&unit.name);
        let path = encoded(&place);
        self.context.progress.item(&place);
        self.context.fence.check().await?;
        let original = unit.definition.mappings["_meta"].clone();
        let meta = if original.is_object() {
            original
        } else {
            json!({})
        };
        self.client
            .ask(
                Method::PUT,
                &format!("/{path}/_mapping"),
                json!({ "_meta": meta }),
                format!("ending the restore of {place}"),
            )
            .await?;
        let settings = if self.is_stream(unit) {
            settings::of_stream_at_last(&unit.definition)
        } else {
            settings::at_last(&unit.definition, self.is_scratch())
        };
        let refreshed = self
            .client
            .try_ask(Method::POST, &format!("/{path}/_refresh"), Body::Nothing)
            .await?;
        if let Err(refusal) = refreshed {
            failures.tell(format!("refreshing {place}: {refusal}"));
        }
        let put = Body::Json(Value::Object(settings));
        if let Err(refusal) = self
            .client
            .try_ask(Method::PUT, &format!("/{path}/_settings"), put)
            .await?
        {
            failures.tell(format!("the settings of {place}: {refusal}"));
        }
        self.put_aliases(unit, &place, failures).await
    }

    async fn put_aliases(
        &self,
        unit: &StoredUnit,
        place: &str,
        failures: &mut Failures,
    ) -> Result<(), EngineError> {
        if unit.is_data_stream {
            return Ok(());
        }
        let Some(aliases) = unit.definition.aliases.as_object() else {
            return Ok(());
        };
        for (alias, value) in aliases {
            let mut add = value.as_object().cloned().unwrap_or_else(Map::new);
            add.insert("index".to_owned(), json!(place));
            add.insert("alias".to_owned(), json!(self.place(alias)));
            let actions = json!({"actions": [{ "add": add }]});
            if let Err(refusal) = self
                .client
                .try_ask(Method::POST, "/_aliases", actions)
                .await?
            {
                failures.tell(format!("the alias {alias} of {place}: {refusal}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_behind_a_prefix_is_one_that_an_index_can_have() {
        assert_eq!(placed("", "shop"), "shop");
        assert_eq!(placed("copy-", ".kibana"), "copy-.kibana");
        let (one, other) = ("é".repeat(120) + "a", "é".repeat(120) + "b");
        let long = placed("fettler-proof-0123456789ab-", &one);
        assert!(long.len() <= LONGEST_NAME && long.starts_with("fettler-proof-0123456789ab-é"));
        assert_ne!(long, placed("fettler-proof-0123456789ab-", &other));
    }
}
