//! The archive of partitions: their rows in Native, as a backup has them, and what they are known by.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use fettler_engine::{
    CleanupArchive, Cut, EngineContext, EngineError, StreamEnd, StreamFacts, StreamSink,
    StreamSource, StreamWriter,
};
use fettler_model::{Fingerprint, ObjectFacts};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    backup::TableRecord,
    fingerprint::{RowForm, RowHash},
    found,
    http::Session,
    pieces::{Reading, Totals, jobs_of, read_all},
    shadow::{Piece, Shadows},
    sql::{literal, table as full_table},
};

use super::{
    partitions::{Partition, PartitionsData},
    scratch::{beside, with_scratch},
};

/// The stream that says what the others hold.
const CONTENTS: &str = "cleanup";

/// A partition in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) partition: Partition,
    pub(super) record: TableRecord,
    pub(super) fingerprint: Fingerprint,
    /// A digest of each stream, made when it was read.
    digests: BTreeMap<String, String>,
}

/// What the archive holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contents {
    /// How rows were hashed.
    row_hash: String,
    pub(super) partitions: Vec<Stored>,
}

impl Contents {
    pub(super) async fn of(archive: &dyn StreamSource) -> Result<Self, EngineError> {
        let mut bytes = Vec::new();
        let mut pieces = archive.read(CONTENTS).await?;
        while let Some(piece) = pieces.try_next().await? {
            bytes.extend_from_slice(&piece);
        }
        serde_json::from_slice(&bytes).map_err(|error| EngineError::Unusable {
            what: format!("what the archive holds cannot be read: {error}"),
            remedy: "a newer Fettler may have made it: use that version or a later one".to_owned(),
        })
    }

    /// What makes fingerprints as those of the archive were made.
    pub(super) fn hash(&self, context: &EngineContext) -> Result<RowHash, EngineError> {
        let form = RowForm::of_name(&self.row_hash).ok_or_else(|| EngineError::Unusable {
            what: format!("the archive's fingerprints are made by {:?}", self.row_hash),
            remedy: "use the version of Fettler that made it".to_owned(),
        })?;
        Ok(RowHash::new(form, &context.fingerprint_key))
    }
}

/// Writes the partitions of a plan.
pub(super) async fn write(
    context: &EngineContext,
    session: &Session,
    data: &PartitionsData,
    sink: &dyn StreamSink,
) -> Result<CleanupArchive, EngineError> {
    let digesting = Digesting {
        sink,
        digests: Digests::default(),
    };
    let form = RowForm::of_version(session.version_numbers());
    let (records, totals) = with_scratch(context, session, async |scratch: &str| {
        read(context, session, data, scratch, &digesting).await
    })
    .await?;
    let digests = digesting
        .digests
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let (mut objects, mut rows) = (Vec::new(), 0);
    let mut contents = Contents {
        row_hash: form.name().to_owned(),
        partitions: Vec::new(),
    };
    for ((partition, record), total) in data.partitions.iter().zip(records).zip(totals) {
        let name = data.shown(partition);
        let fingerprint = total.fingerprint;
        if let Some(counted) = total.counted.filter(|counted| *counted != fingerprint.rows) {
            return Err(EngineError::Database {
                what: format!(
                    "archiving {name}: {} rows were read where the server counts {counted}",
                    fingerprint.rows
                ),
                transient: true,
            });
        }
        rows += fingerprint.rows;
        objects.push(ObjectFacts {
            fingerprint: Some(fingerprint),
            independent_rows: total.counted,
            bytes: total.bytes,
            ..found::table(&name)
        });
        let of_record = record
            .parts
            .iter()
            .filter_map(|part| Some((part.stream.clone(), digests.get(&part.stream)?.clone())));
        contents.partitions.push(Stored {
            partition: partition.clone(),
            digests: of_record.collect(),
            fingerprint,
            record,
        });
    }
    let text = serde_json::to_vec(&contents).expect("plain data can be JSON");
    let mut writer = sink.open(CONTENTS, Cut::Content).await?;
    writer.write(Bytes::from(text)).await?;
    writer.finish(StreamEnd::default()).await?;
    Ok(CleanupArchive {
        objects,
        position: json!({ "method": "shadows", "moment": "each partition at a moment of its own" }),
        rows,
    })
}

/// Links the partitions into a scratch database, and reads them there; a record for each.
async fn read(
    context: &EngineContext,
    session: &Session,
    data: &PartitionsData,
    scratch: &str,
    sink: &dyn StreamSink,
) -> Result<(Vec<TableRecord>, Vec<Totals>), EngineError> {
    let shadow = full_table(scratch, "rows");
    beside(session, data, &shadow).await?;
    for partition in &data.partitions {
        context.check_stop()?;
        session
            .run(
                &format!(
                    "ALTER TABLE {shadow} ATTACH PARTITION ID {} FROM {}",
                    literal(&partition.id),
                    data.table()
                ),
                &[],
                &format!("linking {}", data.shown(partition)),
            )
            .await?;
    }
    let pieces = Shadows::new(session, scratch)
        .await?
        .pieces("rows", true, None)
        .await?;
    let (mut records, mut jobs) = (Vec::new(), Vec::new());
    for (at, partition) in data.partitions.iter().enumerate() {
        let record = TableRecord {
            read: readable(session, data),
            definition: data.definition.clone(),
            parts: Vec::new(),
            own: Vec::new(),
            is_excluded: false,
        };
        let own: Vec<Piece> = pieces
            .iter()
            .filter(|piece| piece.partition_id == partition.id)
            .cloned()
            .collect();
        jobs.extend(jobs_of(&record, at, own, Reading::Rows { shard: None }));
        records.push(record);
    }
    let totals = read_all(context, session, jobs, &mut records, sink).await?;
    Ok((records, totals))
}

/// The columns that are read: all that rows hold and that the server takes back.
fn readable(session: &Session, data: &PartitionsData) -> Vec<String> {
    let takes_all = session.knows("insert_allow_materialized_columns");
    data.definition
        .columns
        .iter()
        .filter(|column| column.is_stored() && (takes_all || column.default_kind != "MATERIALIZED"))
        .map(|column| column.name.clone())
        .collect()
}

/// Reads the archive back: each stream is what was read of the server. Whether the server makes the same rows of it is
/// tried out before a partition is removed.
pub(super) async fn prove(
    context: &EngineContext,
    archive: &dyn StreamSource,
    objects: &[ObjectFacts],
) -> Result<(), EngineError> {
    let contents = Contents::of(archive).await?;
    let mut is_whole = contents.partitions.len() == objects.len();
    for (stored, object) in contents.partitions.iter().zip(objects) {
        is_whole &= object.fingerprint == Some(stored.fingerprint)
            && stored.digests.len() == stored.record.parts.len()
            && stored
                .record
                .parts
                .iter()
                .map(|part| part.rows)
                .sum::<u64>()
                == stored.fingerprint.rows;
        for (name, digest) in &stored.digests {
            context.check_stop()?;
            let mut hasher = blake3::Hasher::new();
            let mut pieces = archive.read(name).await?;
            while let Some(piece) = pieces.try_next().await? {
                context.progress.add(piece.len() as u64, 0);
                hasher.update(&piece);
            }
            is_whole &= hasher.finalize().to_hex().as_str() == digest;
        }
        if !is_whole {
            return Err(EngineError::Unusable {
                what: format!(
                    "the archive of {} is not what was read of the server; nothing was removed",
                    object.name
                ),
                remedy: "run `fettler check` on the repository, then start the cleanup anew"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

/// Digests of streams, by name.
type Digests = Arc<Mutex<BTreeMap<String, String>>>;

/// A sink that makes a digest of each stream.
struct Digesting<'a> {
    sink: &'a dyn StreamSink,
    digests: Digests,
}

struct DigestingWriter {
    name: String,
    writer: Box<dyn StreamWriter>,
    hasher: blake3::Hasher,
    digests: Digests,
}

#[async_trait]
impl StreamSink for Digesting<'_> {
    async fn open(&self, name: &str, cut: Cut) -> Result<Box<dyn StreamWriter>, EngineError> {
        Ok(Box::new(DigestingWriter {
            name: name.to_owned(),
            writer: self.sink.open(name, cut).await?,
            hasher: blake3::Hasher::new(),
            digests: Arc::clone(&self.digests),
        }))
    }

    async fn take_over(
        &self,
        _name: &str,
        _unchanged_marker: &str,
    ) -> Result<Option<StreamFacts>, EngineError> {
        Ok(None)
    }
}

#[async_trait]
impl StreamWriter for DigestingWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), EngineError> {
        self.hasher.update(&bytes);
        self.writer.write(bytes).await
    }

    async fn finish(self: Box<Self>, end: StreamEnd) -> Result<StreamFacts, EngineError> {
        let digest = self.hasher.finalize().to_hex().to_string();
        self.digests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.name, digest);
        self.writer.finish(end).await
    }
}
