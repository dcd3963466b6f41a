//! The backup: what there is, all documents several collections at a time, then what was written meanwhile.
//!
//! | stream | holds |
//! |---|---|
//! | `catalogue` | a document for each collection and view: options and indexes |
//! | `users` | users and roles, where the server shows them |
//! | `documents/<digest of the namespace>/<part>` | documents as the server keeps them, one after another |
//! | `changes` | of each document that was written while the backup ran: namespace, `_id`, and what it was at the backup's moment |

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read as _},
    path::{Path, PathBuf},
};

use bson::{RawDocument, RawDocumentBuf};
use bytes::BytesMut;
use fettler_engine::{
    BackupOptions, BackupReport, Cut, EngineContext, EngineError, ROW_HASH, RowHasher, StreamEnd,
    StreamSink, Target,
};
use fettler_model::{Fingerprint, Warning};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use crate::{
    catalog::{self, Collection, Kind},
    changes::{history, number_of},
    follow::{Follower, NOT_ONE_MOMENT, count},
    found,
    identify::identity,
    params::Params,
    raw::put,
    read::{self, Range, RangeRead, Reading, SPOOLED_BYTES, Sessions},
    select::Selection,
    session::Session,
    shards::{balancer, map, oplogs::Oplogs},
    users,
};

/// The stream of collections and views.
pub(crate) const CATALOGUE: &str = "catalogue";
/// The stream of what was written meanwhile.
pub(crate) const CHANGES: &str = "changes";
/// The stream of users and roles.
const USERS: &str = "users";
/// Bytes that are handed to a stream at once.
const PIECE_BYTES: usize = 256 * 1024;
/// Bytes of a namespace's digest in the names of its streams.
const DIGEST_BYTES: usize = 12;
/// The version of [`BackupData`].
const DATA_FORMAT: u32 = 1;

/// What a restore needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BackupData {
    /// The version of this description.
    pub(crate) format: u32,
    /// The databases that were read.
    pub(crate) databases: Vec<String>,
    /// The collections whose documents were read.
    pub(crate) collections: Vec<CollectionData>,
}

/// A collection of a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CollectionData {
    pub(crate) database: String,
    pub(crate) name: String,
    /// The streams of its documents.
    pub(crate) streams: Vec<String>,
}

impl BackupData {
    /// Reads what the backup left.
    pub(crate) fn of(report: &BackupReport) -> Result<Self, EngineError> {
        let data =
            Self::deserialize(&report.engine_data).map_err(|error| EngineError::Unusable {
                what: format!("the backup's notes for MongoDB cannot be read: {error}"),
                remedy: "restore it with the version of Fettler that made it".to_owned(),
            })?;
        if data.format != DATA_FORMAT {
            return Err(EngineError::Unusable {
                what: format!("the backup's notes have the format {}", data.format),
                remedy: "restore it with the version of Fettler that made it".to_owned(),
            });
        }
        Ok(data)
    }
}

/// A part of a collection that is read by one task.
struct Part {
    collection: usize,
    range: Range,
    stream: String,
    spool: Option<PathBuf>,
}

/// Reads a server.
pub(crate) async fn backup(
    context: &EngineContext,
    source: &Target,
    options: &BackupOptions,
    sink: &dyn StreamSink,
    loses_a_document: bool,
) -> Result<BackupReport, EngineError> {
    context.progress.begin("prepare", 0, 0);
    let params = Params::of(source)?;
    let mut session = Session::of_attempt(&params, context).await?;
    let stopped = match session.hello.is_router {
        true => balancer::stop(context, &params, &mut session).await?,
        false => None,
    };
    let made = read_all(
        context,
        &params,
        &mut session,
        options,
        sink,
        loses_a_document,
    )
    .await;
    let Some(stopped) = stopped else { return made };
    // By a session of its own: that of the attempt is of no use where it was cancelled.
    match (made, stopped.start(context, &params).await) {
        (Ok(_), Err(error)) => Err(error),
        (made, _) => made,
    }
}

/// Reads all that is chosen.
async fn read_all(
    context: &EngineContext,
    params: &Params,
    session: &mut Session,
    options: &BackupOptions,
    sink: &dyn StreamSink,
    loses_a_document: bool,
) -> Result<BackupReport, EngineError> {
    let selection = Selection::of_backup(params.database.as_deref(), &options.exclude)?;
    let identity = identity(params, session).await?;
    let oplogs = Oplogs::of(context, params, session).await?;
    let mut warnings = Vec::new();

    let databases = catalog::databases(session, &selection, params.database.as_deref()).await?;
    let mut all = Vec::new();
    for database in &databases {
        context.check_stop()?;
        all.extend(catalog::collections(session, database).await?);
    }
    if session.hello.is_router {
        let mut divided = map::divided(session).await?;
        for one in &mut all {
            one.division = divided.remove(&one.namespace());
        }
    }
    store(sink, CATALOGUE, all.iter().map(|one| Ok(one.store()))).await?;
    let read: Vec<Collection> = all
        .iter()
        .filter(|one| one.kind != Kind::View && !selection.is_excluded(&one.database, &one.name))
        .cloned()
        .collect();

    let folder = context.scratch.join("mongodb");
    std::fs::create_dir_all(&folder)
        .map_err(|error| EngineError::local(format!("making {}", folder.display()), error))?;
    let start = oplogs.as_ref().map(|(_, start)| start.moment);
    let mut follower = match oplogs {
        Some(oplogs) => {
            let namespaces = read
                .iter()
                .enumerate()
                .filter(|(_, one)| one.kind.is_by_id())
                .map(|(number, one)| (one.namespace(), number))
                .collect();
            Some(Follower::new(
                context,
                namespaces,
                databases.clone(),
                oplogs,
                &folder,
            )?)
        }
        None => {
            warnings.push(Warning {
                code: NOT_ONE_MOMENT.to_owned(),
                message: "the server has no oplog that could be read: each document is as it was when its turn came"
                    .to_owned(),
            });
            None
        }
    };
    let before = own_counts(session, &read, follower.is_some()).await?;

    let total = read.len();
    context
        .progress
        .begin("reading", identity.estimated_bytes, 0);
    let mut parts = Vec::new();
    for (number, collection) in read.iter().enumerate() {
        context.check_stop()?;
        let digest = digest(&collection.namespace());
        let is_followed = follower.is_some() && collection.kind.is_by_id();
        for (at, range) in read::ranges(session, collection)
            .await?
            .into_iter()
            .enumerate()
        {
            parts.push(Part {
                collection: number,
                range,
                stream: format!("documents/{digest}/{at:04}"),
                spool: is_followed.then(|| folder.join(format!("{number}-{at}"))),
            });
        }
    }
    let sessions = Sessions::new(params);
    let hasher = RowHasher::new(&context.fingerprint_key);
    let reading = Reading {
        context,
        sessions: &sessions,
        hasher: &hasher,
        sink,
        loses_a_document,
    };
    let mut ranges: Vec<(usize, usize, RangeRead)> = stream::iter(0..parts.len())
        .map(|at| {
            let (reading, part) = (&reading, &parts[at]);
            let collection = &read[part.collection];
            async move {
                let done = reading
                    .range(collection, &part.range, &part.stream, part.spool.as_deref())
                    .await?;
                Ok::<_, EngineError>((at, part.collection, done))
            }
        })
        .buffer_unordered(context.parallel.max(1))
        .try_collect()
        .await?;
    ranges.sort_unstable_by_key(|(at, ..)| *at);

    let after = own_counts(session, &read, follower.is_some()).await?;
    let mut counts: Vec<Option<u64>> = before
        .into_iter()
        .zip(after)
        .map(|(before, after)| before.filter(|_| before == after))
        .collect();
    let mut position = serde_json::json!({ "method": "one by one" });
    if let Some(follower) = &mut follower {
        context.progress.begin("following the oplog", 0, 0);
        follower.catch_up(session).await?;
        position = serde_json::json!({
            "method": "oplog",
            "time": follower.moment().time,
            "increment": follower.moment().increment,
        });
        // What was read of a part, or not all at one moment, is nothing to play changes on.
        let is_one_moment = !follower
            .warnings
            .iter()
            .any(|warning| warning.code == NOT_ONE_MOMENT);
        let is_whole = params.database.is_none() && options.exclude.is_empty();
        if is_whole && is_one_moment && follower.is_of_one_oplog() {
            position["history"] = history(session).into();
            position["since"] = start.map(number_of).into();
        }
        let followed: Vec<(usize, (String, String))> = read
            .iter()
            .enumerate()
            .filter(|(_, one)| one.kind.is_by_id())
            .map(|(number, one)| (number, (one.database.clone(), one.name.clone())))
            .collect();
        let names: Vec<(String, String)> = followed.iter().map(|(_, name)| name.clone()).collect();
        let counted = follower.counts(session, &names).await?;
        for ((number, _), counted) in followed.into_iter().zip(counted) {
            counts[number] = counted;
        }
        warnings.append(&mut follower.warnings);
    }
    warnings.extend(uncounted(&read, &counts));

    let mut prints = vec![(Fingerprint::empty(), 0); total];
    for (_, number, range) in &ranges {
        let (print, bytes) = &mut prints[*number];
        print.merge(&range.fingerprint);
        *bytes += range.bytes;
        if let (Some(path), Some(follower)) = (&range.spool, &follower) {
            add_untouched(path, follower, *number, print)?;
        }
    }
    if let Some(follower) = follower {
        let names: Vec<String> = read.iter().map(Collection::namespace).collect();
        let changes = follower.into_changes().map(|change| {
            let (number, at_moment) = change?;
            let mut stored = RawDocumentBuf::new();
            put(&mut stored, "namespace", names[number].as_str());
            put(&mut stored, "id", at_moment.id);
            if let Some(document) = at_moment.document {
                let hash = read::hash(&hasher, read[number].kind, &document).map_err(|what| {
                    session.unexpected("reading what was written meanwhile", &what)
                })?;
                prints[number].0.add_row_hash(hash);
                put(&mut stored, "document", document);
            }
            Ok(stored)
        });
        store(sink, CHANGES, changes).await?;
    }
    // They are of no use any more; what is left goes with the scratch folder.
    let _left = std::fs::remove_dir_all(&folder);

    let mut objects = vec![found::collections(all.len())];
    for one in &all {
        let digest = one
            .definition(&context.fingerprint_key)
            .map_err(|what| session.unexpected("reading a definition", &what))?;
        objects.push(found::definition(one.namespace(), digest));
    }
    for (number, one) in read.iter().enumerate() {
        let (print, bytes) = prints[number];
        objects.push(found::documents(
            one.namespace(),
            print,
            counts[number],
            bytes,
        ));
    }
    if params.database.is_none() {
        match users::read(session).await? {
            Ok(users) => {
                let bytes = users.iter().map(|one| one.as_bytes().len() as u64).sum();
                store(sink, USERS, users.into_iter().map(Ok)).await?;
                objects.push(found::users(bytes));
            }
            Err(refusal) => warnings.push(Warning {
                code: "mongodb.no_users".to_owned(),
                message: format!("users and roles are not in the backup: {refusal}"),
            }),
        }
    }
    let data = BackupData {
        format: DATA_FORMAT,
        databases,
        collections: read
            .iter()
            .enumerate()
            .map(|(number, one)| CollectionData {
                database: one.database.clone(),
                name: one.name.clone(),
                streams: parts
                    .iter()
                    .filter(|part| part.collection == number)
                    .map(|part| part.stream.clone())
                    .collect(),
            })
            .collect(),
    };
    Ok(BackupReport {
        identity,
        position,
        objects,
        row_hash: ROW_HASH.to_owned(),
        engine_data: serde_json::to_value(&data).expect("plain data can be JSON"),
        warnings,
    })
}

/// Stands for a namespace, which may be of any letters, in the names of streams.
fn digest(namespace: &str) -> String {
    hex::encode(&blake3::hash(namespace.as_bytes()).as_bytes()[..DIGEST_BYTES])
}

/// The counts of those collections that the oplog says nothing of.
async fn own_counts(
    session: &mut Session,
    collections: &[Collection],
    is_followed: bool,
) -> Result<Vec<Option<u64>>, EngineError> {
    let mut counts = Vec::with_capacity(collections.len());
    for one in collections {
        counts.push(if is_followed && one.kind.is_by_id() {
            None
        } else {
            count(session, &one.database, &one.name).await?
        });
    }
    Ok(counts)
}

/// Says which collections nobody could count at the moment of the backup.
fn uncounted(collections: &[Collection], counts: &[Option<u64>]) -> Option<Warning> {
    const NAMED: usize = 5;
    let names: Vec<String> = collections
        .iter()
        .zip(counts)
        .filter(|(_, count)| count.is_none())
        .map(|(one, _)| one.namespace())
        .collect();
    let (first, more) = names.split_at(names.len().min(NAMED));
    let more = if more.is_empty() {
        String::new()
    } else {
        format!(" and {} more", more.len())
    };
    (!names.is_empty()).then(|| Warning {
        code: "mongodb.not_counted".to_owned(),
        message: format!(
            "{}{more} were written to while they were read, and could not be counted by another way at the moment of the backup: they cannot be proven, only compared",
            first.join(", ")
        ),
    })
}

/// Adds the documents of a file of keys that nobody wrote meanwhile.
fn add_untouched(
    path: &Path,
    follower: &Follower<'_>,
    number: usize,
    print: &mut Fingerprint,
) -> Result<(), EngineError> {
    let failed = |error| EngineError::local(format!("reading {}", path.display()), error);
    let file = File::open(path).map_err(failed)?;
    let entries = file.metadata().map_err(failed)?.len() / SPOOLED_BYTES as u64;
    let mut file = BufReader::new(file);
    let mut entry = [0; SPOOLED_BYTES];
    for _ in 0..entries {
        file.read_exact(&mut entry).map_err(failed)?;
        let (key, hash) = read::spooled(&entry);
        if !follower.has(number, key) {
            print.add_row_hash(hash);
        }
    }
    Ok(())
}

/// Writes documents into a stream of their own.
async fn store(
    sink: &dyn StreamSink,
    name: &str,
    documents: impl Iterator<Item = Result<RawDocumentBuf, EngineError>>,
) -> Result<(), EngineError> {
    let mut writer = sink.open(name, Cut::Content).await?;
    let mut held = BytesMut::new();
    let mut rows = 0;
    for document in documents {
        let document: RawDocumentBuf = document?;
        let document: &RawDocument = &document;
        held.extend_from_slice(document.as_bytes());
        rows += 1;
        if held.len() >= PIECE_BYTES {
            writer.write(held.split().freeze()).await?;
        }
    }
    if !held.is_empty() {
        writer.write(held.freeze()).await?;
    }
    writer
        .finish(StreamEnd {
            rows,
            ..StreamEnd::default()
        })
        .await?;
    Ok(())
}

/// Namespaces and what stands for them; for restores.
pub(crate) fn by_namespace(data: &BackupData) -> HashMap<String, &CollectionData> {
    data.collections
        .iter()
        .map(|one| (format!("{}.{}", one.database, one.name), one))
        .collect()
}
