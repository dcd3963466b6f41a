//! The backup: what there is, then index by index the documents, then what the cluster has beside indices.
//!
//! Of each index: its statistics, a refresh, then a point in time, unless it is as the parent saw it. In this order, since a document that was changed and not
//! yet refreshed is counted already and not yet found by a search. Each shard is read at one moment, and not all shards are at
//! the same one: the backup says so.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use fettler_engine::{
    BackupOptions, BackupReport, Cut, EngineContext, EngineError, ROW_HASH, RowHasher, StreamEnd,
    StreamSink, Target,
};
use fettler_model::Warning;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    blocking,
    by_server::Snapshot,
    catalogue::{self, Catalogue, Definition, Index, Source, Unit},
    client::{Body, Client, encoded},
    error::Refusal,
    found::{self, Found},
    hits::Form,
    identify::{identity, store_bytes},
    json::sorted_text,
    order::{CollectError, Collector},
    params::Params,
    parts::{self, Part, Parts},
    read::{Opened, View, Way},
    select::Selection,
    server::Server,
    unchanged::{State, Stats},
};

/// Pieces of a stream that wait for the sink.
const PIECES_AHEAD: usize = 8;
/// The version of [`BackupData`] and of [`Definitions`].
pub(crate) const FORMAT: u32 = 1;
/// That of a backup whose documents the server holds.
pub(crate) const FORMAT_BY_SERVER: u32 = 2;
/// The warning that something may be missing which was written shortly before.
pub(crate) const NOT_REFRESHED: &str = "elasticsearch.not_refreshed";
/// The stream of all definitions.
const DEFINITIONS: &str = "definitions";

/// What a proof needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BackupData {
    /// The version of this description.
    pub(crate) format: u32,
    /// The family of the server, whose settings another one may not take.
    pub(crate) flavour: String,
    /// Indices and data streams.
    pub(crate) units: Vec<String>,
    /// The server's own snapshot that holds the documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<Snapshot>,
}

/// What a restore needs to know: the content of the stream of definitions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Definitions {
    pub(crate) format: u32,
    pub(crate) units: Vec<StoredUnit>,
    pub(crate) parts: Parts,
}

/// An index or a data stream in a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoredUnit {
    pub(crate) name: String,
    pub(crate) is_data_stream: bool,
    /// Of the index; of a data stream that of the newest index behind it.
    pub(crate) definition: Definition,
    /// The streams of its documents, the oldest index behind a data stream first.
    pub(crate) streams: Vec<String>,
}

/// How a backup is read that is broken or unusual on purpose.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Oddities {
    pub(crate) loses_a_document: bool,
    pub(crate) way: Way,
}

fn unusable(what: String) -> EngineError {
    EngineError::Unusable {
        what,
        remedy: "restore it with the version of Fettler that made it".to_owned(),
    }
}

impl BackupData {
    /// Reads what the backup left.
    pub(crate) fn of(report: &BackupReport) -> Result<Self, EngineError> {
        let data = Self::deserialize(&report.engine_data).map_err(|error| {
            unusable(format!(
                "the backup's notes for Elasticsearch cannot be read: {error}"
            ))
        })?;
        let is_known = match &data.snapshot {
            None => data.format == FORMAT,
            Some(_) => data.format == FORMAT_BY_SERVER,
        };
        if !is_known {
            return Err(unusable(format!(
                "the backup's notes have the format {}",
                data.format
            )));
        }
        Ok(data)
    }
}

impl Definitions {
    /// Reads the stream of definitions.
    pub(crate) async fn of_backup(
        backup: &dyn fettler_engine::StreamSource,
    ) -> Result<Self, EngineError> {
        let mut bytes = Vec::new();
        let mut pieces = backup.read(DEFINITIONS).await?;
        while let Some(piece) = pieces.try_next().await? {
            bytes.extend_from_slice(&piece);
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| unusable(format!("the stream of definitions cannot be read: {error}")))
    }

    pub(crate) async fn store(&self, sink: &dyn StreamSink) -> Result<(), EngineError> {
        let value = serde_json::to_value(self).expect("plain data can be JSON");
        let mut writer = sink.open(DEFINITIONS, Cut::Content).await?;
        writer.write(Bytes::from(sorted_text(&value))).await?;
        let end = StreamEnd {
            rows: self.units.len() as u64,
            ..StreamEnd::default()
        };
        writer.finish(end).await.map(drop)
    }
}

/// The name of the stream of a shard's documents.
fn stream_name(index: &str, shard: u32) -> String {
    format!("documents/{}/{shard:04}", encoded(index))
}

/// What all parts of a backup share.
struct Backup<'a> {
    context: &'a EngineContext,
    client: &'a Client,
    server: &'a Server,
    sink: &'a dyn StreamSink,
    folder: PathBuf,
    oddities: Oddities,
}

/// What was read of an index.
struct ReadIndex {
    found: Found,
    definition: Definition,
    streams: Vec<String>,
    is_point_in_time: bool,
    is_refreshed: bool,
}

/// A shard's stream, where it holds a document, and what was found in it.
type Shard = (Option<String>, Found);

/// How the shards of an index are read.
struct Reading<'a> {
    index: &'a str,
    form: Form,
    most_numbers: u64,
    /// What the index was like before the refresh, if that is certain.
    state: Option<State>,
}

impl ReadIndex {
    fn of(
        definition: Definition,
        shards: impl IntoIterator<Item = Shard>,
        is_point_in_time: bool,
        is_refreshed: bool,
    ) -> Self {
        let mut read = Self {
            found: Found::default(),
            definition,
            streams: Vec::new(),
            is_point_in_time,
            is_refreshed,
        };
        for (name, found) in shards {
            read.streams.extend(name);
            read.found.merge(&found);
        }
        read
    }
}

/// Reads a server.
pub(crate) async fn backup(
    context: &EngineContext,
    source: &Target,
    options: &BackupOptions,
    sink: &dyn StreamSink,
    oddities: Oddities,
) -> Result<BackupReport, EngineError> {
    backup_of(context, &Params::of(source)?, options, sink, oddities).await
}

/// Reads what the parameters name of a server.
pub(crate) async fn backup_of(
    context: &EngineContext,
    params: &Params,
    options: &BackupOptions,
    sink: &dyn StreamSink,
    oddities: Oddities,
) -> Result<BackupReport, EngineError> {
    context.progress.begin("prepare", 0, 0);
    let client = Client::of_attempt(params, context)?;
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
    let mut warnings = Vec::new();
    require_readable(&catalogue, &selection)?;
    warn_of_sources(&catalogue, &selection, &mut warnings);
    let estimated_bytes = store_bytes(&client).await?;
    let identity = identity(params, &server, estimated_bytes);
    let folder = empty_folder(&context.scratch.join("order"))?;
    let backup = Backup {
        context,
        client: &client,
        server: &server,
        sink,
        folder: folder.clone(),
        oddities,
    };

    context
        .progress
        .begin("reading", identity.estimated_bytes, 0);
    let mut objects = Vec::new();
    let mut units = Vec::new();
    let (mut is_point_in_time, mut not_refreshed) = (true, Vec::new());
    let chosen: Vec<&Unit> = catalogue
        .units
        .values()
        .filter(|unit| selection.has(&unit.name))
        .collect();
    let mut read = backup.units(&chosen, &selection).await?;
    for unit in chosen {
        let read = read.remove(&unit.name);
        let key = &context.fingerprint_key;
        let Some(last) = unit.indices.last() else {
            continue;
        };
        let Some(read) = read else {
            objects.extend(found::objects(key, &unit.name, &last.definition, None));
            warnings.push(Warning {
                code: "elasticsearch.excluded".to_owned(),
                message: format!("the documents of {} were left out, as was asked", unit.name),
            });
            units.push(stored(unit, last.definition.clone(), Vec::new()));
            continue;
        };
        let Some(newest) = read.last() else {
            warnings.push(Warning {
                code: "elasticsearch.gone".to_owned(),
                message: format!("{} was removed while the backup was made", unit.name),
            });
            continue;
        };
        let mut found = Found::default();
        read.iter().for_each(|index| found.merge(&index.found));
        objects.extend(found::objects(
            key,
            &unit.name,
            &newest.definition,
            Some(&found),
        ));
        is_point_in_time &= read.iter().all(|index| index.is_point_in_time);
        if read.iter().any(|index| !index.is_refreshed) {
            not_refreshed.push(unit.name.clone());
        }
        let streams = read.iter().flat_map(|index| index.streams.clone());
        units.push(stored(unit, newest.definition.clone(), streams.collect()));
    }
    // It is of no use any more; what is left of it goes with the scratch folder.
    let _left = std::fs::remove_dir_all(&folder);

    let parts = if selection.is_everything() {
        parts::read(&client, &server, &mut warnings).await?
    } else {
        Parts::new()
    };
    objects.extend(part_objects(&parts));
    if !not_refreshed.is_empty() {
        warnings.push(Warning {
            code: NOT_REFRESHED.to_owned(),
            message: format!(
                "the user may not refresh {}: what was written there shortly before may be missing",
                not_refreshed.join(", ")
            ),
        });
    }
    warnings.push(Warning {
        code: "elasticsearch.not_one_moment".to_owned(),
        message: if is_point_in_time {
            "each index was read at a point in time, which is one moment for each shard and not one for all".to_owned()
        } else {
            "the server has no point in time for every index: each shard was read by scroll, each at a moment of its own".to_owned()
        },
    });
    let data = BackupData {
        format: FORMAT,
        flavour: format!("{:?}", server.flavour),
        units: units.iter().map(|unit| unit.name.clone()).collect(),
        snapshot: None,
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
            "method": if is_point_in_time { "point_in_time" } else { "scroll" },
            "cluster": server.cluster_uuid,
        }),
        identity,
        objects,
        row_hash: ROW_HASH.to_owned(),
        engine_data: serde_json::to_value(&data).expect("plain data can be JSON"),
        warnings,
    })
}

pub(crate) fn stored(unit: &Unit, definition: Definition, streams: Vec<String>) -> StoredUnit {
    StoredUnit {
        name: unit.name.clone(),
        is_data_stream: unit.is_data_stream,
        definition,
        streams,
    }
}

pub(crate) fn part_objects(parts: &Parts) -> Vec<fettler_model::ObjectFacts> {
    Part::ALL
        .iter()
        .filter_map(|part| {
            let bytes: usize = part
                .kinds()
                .iter()
                .filter_map(|kind| parts.get(kind))
                .flatten()
                .map(|(name, value)| name.len() + value.to_string().len())
                .sum();
            (bytes > 0).then(|| found::listed(part.word(), bytes as u64))
        })
        .collect()
}

/// An error that names every index whose documents cannot be read at all. A backup without them would be called complete.
fn require_readable(catalogue: &Catalogue, selection: &Selection) -> Result<(), EngineError> {
    let read = catalogue
        .units
        .values()
        .filter(|unit| selection.has(&unit.name) && !selection.leaves_out(&unit.name));
    let why: Vec<String> = read.flat_map(why_unreadable).collect();
    if why.is_empty() {
        return Ok(());
    }
    Err(EngineError::Missing {
        code: "source",
        what: format!("documents cannot be read: {}", why.join("; ")),
        remedy: "open what is closed, or leave it out by name (`--exclude NAME`): its definition is kept then, and its documents are not".to_owned(),
    })
}

/// Why documents of an index or a data stream cannot be read.
pub(crate) fn why_unreadable(unit: &Unit) -> Vec<String> {
    unit.indices
        .iter()
        .filter_map(|index| {
            if !index.is_open {
                return Some(format!("{} is closed", index.name));
            }
            (index.definition.source() == Source::Off)
                .then(|| format!("{} has no `_source`", index.name))
        })
        .collect()
}

/// What is lost of an index or a data stream whose documents can be read.
pub(crate) fn what_is_lost(unit: &Unit) -> Option<&'static str> {
    let sources: Vec<Source> = unit
        .indices
        .iter()
        .map(|one| one.definition.source())
        .collect();
    if sources.contains(&Source::Thinned) {
        Some(
            "keeps only some fields in `_source`: the others can be searched for there, and are in no backup",
        )
    } else if sources.contains(&Source::Rebuilt) {
        Some(
            "has a synthetic `_source`: documents are backed up as the server makes them anew, not as they were written",
        )
    } else {
        None
    }
}

fn warn_of_sources(catalogue: &Catalogue, selection: &Selection, warnings: &mut Vec<Warning>) {
    for unit in catalogue.units.values() {
        if selection.has(&unit.name)
            && !selection.leaves_out(&unit.name)
            && let Some(lost) = what_is_lost(unit)
        {
            warnings.push(Warning {
                code: "elasticsearch.source".to_owned(),
                message: format!("{} {lost}", unit.name),
            });
        }
    }
}

/// Makes a folder that holds nothing, whatever an earlier attempt left there.
fn empty_folder(folder: &Path) -> Result<PathBuf, EngineError> {
    let failed = |error| EngineError::local(format!("making {}", folder.display()), error);
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(failed)?;
    }
    std::fs::create_dir_all(folder).map_err(failed)?;
    Ok(folder.to_owned())
}

impl Backup<'_> {
    /// Reads the documents of what is meant. Those of one shard are read several at a time, the others one after the other and
    /// their shards several at a time: memory is bounded by how many shards are read at once.
    async fn units(
        &self,
        chosen: &[&Unit],
        selection: &Selection,
    ) -> Result<BTreeMap<String, Vec<ReadIndex>>, EngineError> {
        let is_single =
            |unit: &Unit| unit.indices.len() == 1 && unit.indices[0].definition.shards() == 1;
        let (single, several): (Vec<&Unit>, Vec<&Unit>) = chosen
            .iter()
            .filter(|unit| !selection.leaves_out(&unit.name))
            .partition(|unit| is_single(unit));
        let mut read: BTreeMap<String, Vec<ReadIndex>> = stream::iter(0..single.len())
            .map(|at| {
                let unit = single[at];
                async move { Ok::<_, EngineError>((unit.name.clone(), self.unit(unit).await?)) }
            })
            .buffer_unordered(self.context.parallel.max(1))
            .try_collect()
            .await?;
        for unit in several {
            read.insert(unit.name.clone(), self.unit(unit).await?);
        }
        Ok(read)
    }

    /// Reads an index, or the indices behind a data stream; without those that are gone by now.
    async fn unit(&self, unit: &Unit) -> Result<Vec<ReadIndex>, EngineError> {
        let form = if unit.is_data_stream {
            Form::Create
        } else {
            Form::Index
        };
        let mut read = Vec::new();
        for index in &unit.indices {
            self.context.progress.item(&index.name);
            read.extend(self.index(index, form).await?);
        }
        Ok(read)
    }

    /// Reads an index; nothing where it is gone. Shards that are as the parent saw them are taken over unread.
    async fn index(&self, index: &Index, form: Form) -> Result<Option<ReadIndex>, EngineError> {
        let key = &self.context.fingerprint_key;
        let Some(stats) = Stats::of(self.client, self.server, index, form, key).await? else {
            return Ok(None);
        };
        let mut shards: Vec<Option<Shard>> = Vec::new();
        for shard in 0..index.definition.shards() {
            let name = stream_name(&index.name, shard);
            shards.push(self.take_over(name, stats.state.as_ref()).await?);
        }
        if shards.iter().all(Option::is_some) {
            return Ok(Some(ReadIndex::of(
                index.definition.clone(),
                shards.into_iter().flatten(),
                true,
                true,
            )));
        }
        let is_refreshed = match self.refresh(&index.name).await? {
            Ok(()) => true,
            Err(refusal) if refusal.is_not_found() => return Ok(None),
            Err(refusal) if refusal.is_not_allowed() => false,
            Err(refusal) => {
                return Err(
                    refusal.doing(self.client.server(), format!("refreshing {}", index.name))
                );
            }
        };
        let opened = View::open(
            self.client,
            self.server,
            &index.name,
            &index.definition,
            self.oddities.way,
        )
        .await?;
        let Some(Opened {
            view,
            is_point_in_time,
        }) = opened
        else {
            return Ok(None);
        };
        // As it is now: a field that came between has a place in it.
        let definition = catalogue::definition(self.client, &index.name).await?;
        let how = Reading {
            index: &index.name,
            form,
            most_numbers: stats.most_numbers,
            // What is not refreshed does not hold all that the state speaks of.
            state: stats.state.filter(|_| is_refreshed),
        };
        let read = stream::iter(shards.into_iter().enumerate())
            .map(|(shard, taken)| {
                let (view, how) = (&view, &how);
                async move {
                    match taken {
                        Some(taken) => Ok(taken),
                        None => self.shard(view, shard as u32, how).await,
                    }
                }
            })
            .buffered(self.context.parallel.max(1))
            .try_collect::<Vec<Shard>>()
            .await;
        view.close().await?;
        Ok(Some(ReadIndex::of(
            definition.unwrap_or_else(|| index.definition.clone()),
            read?,
            is_point_in_time,
            is_refreshed,
        )))
    }

    /// Takes a shard's documents over unread if the parent holds them at that state.
    async fn take_over(
        &self,
        name: String,
        state: Option<&State>,
    ) -> Result<Option<Shard>, EngineError> {
        if let Some(state) = state
            && let Some(marker) = self.sink.parent_marker(&name).await?
            && let Some(mut found) = state.found(&marker)
            && let Some(facts) = self.sink.take_over(&name, &marker).await?
        {
            self.context.progress.add(facts.bytes, facts.rows);
            found.bytes = facts.bytes;
            return Ok(Some((Some(name), found)));
        }
        Ok(None)
    }

    async fn refresh(&self, index: &str) -> Result<Result<(), Refusal>, EngineError> {
        let path = format!("/{}/_refresh?expand_wildcards=all", encoded(index));
        let answer = self
            .client
            .try_ask(Method::POST, &path, Body::Nothing)
            .await?;
        if let Ok(answer) = &answer
            && answer["_shards"]["failed"]
                .as_u64()
                .is_some_and(|failed| failed > 0)
        {
            return Err(EngineError::Busy {
                what: format!("some shards of {index} are not there to be refreshed"),
                wait: std::time::Duration::from_secs(15),
            });
        }
        Ok(answer.map(drop))
    }

    /// Reads a shard and stores it; its stream where it holds a document.
    async fn shard(
        &self,
        view: &View<'_>,
        shard: u32,
        how: &Reading<'_>,
    ) -> Result<Shard, EngineError> {
        let doing = format!("reading {}", how.index);
        let mut reader = view.shard(shard);
        reader.count().await?;
        let hasher = RowHasher::new(&self.context.fingerprint_key);
        let mut collector = Collector::of_backup(
            hasher,
            how.form,
            how.most_numbers,
            &self.folder,
            self.oddities.loses_a_document,
        );
        while let Some(page) = reader.next(self.context).await? {
            let bytes = page.len() as u64;
            let before = collector.fingerprint().rows;
            collector = take(collector, page, &doing).await?;
            self.context
                .progress
                .add(bytes, collector.fingerprint().rows - before);
        }
        let mut found = Found {
            fingerprint: collector.fingerprint(),
            counted: reader.count().await?,
            bytes: 0,
        };
        if found.fingerprint.rows == 0 {
            return Ok((None, found));
        }
        let name = stream_name(how.index, shard);
        let end = StreamEnd {
            rows: found.fingerprint.rows,
            unchanged_marker: how.state.as_ref().map(|state| state.marker(&found)),
        };
        found.bytes = self.store(&name, collector, end, &doing).await?;
        Ok((Some(name), found))
    }

    /// Writes a stream; gives its bytes.
    async fn store(
        &self,
        name: &str,
        collector: Collector,
        end: StreamEnd,
        doing: &str,
    ) -> Result<u64, EngineError> {
        let (send, mut pieces) = mpsc::channel::<Bytes>(PIECES_AHEAD);
        let context = doing.to_owned();
        let draining = blocking(move || {
            let drained = collector
                .drain(&mut |piece| send.blocking_send(piece).map_err(|_| CollectError::Unheard));
            match drained {
                // Whoever listened has the reason.
                Ok(()) | Err(CollectError::Unheard) => Ok(()),
                Err(error) => Err(error.doing(&context)),
            }
        });
        let writing = async {
            let mut writer = self.sink.open(name, Cut::Content).await?;
            while let Some(piece) = pieces.recv().await {
                self.context.check_stop()?;
                self.context.progress.pulse();
                writer.write(piece).await?;
            }
            Ok::<_, EngineError>(writer)
        };
        let (written, drained) = tokio::join!(writing, draining);
        let writer = written?;
        // Only what was read to its end is a stream.
        drained?;
        Ok(writer.finish(end).await?.bytes)
    }
}

/// Gives a page to a collector, on a thread of its own.
pub(crate) async fn take(
    mut collector: Collector,
    page: Bytes,
    doing: &str,
) -> Result<Collector, EngineError> {
    let doing = doing.to_owned();
    blocking(move || match collector.take(&page) {
        Ok(()) => Ok(collector),
        Err(error) => Err(error.doing(&doing)),
    })
    .await
}
