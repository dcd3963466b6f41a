//! Reads a collection: in ranges of `_id` where the server keeps to them, several at once, or in one go.
//!
//! **Ranges go by `min` and `max`** with a hint on the index of `_id`, in the order of the index. Conditions (`$gte`, `$lt`)
//! compare within one type only: of a collection whose `_id`s are of several types, documents would be lost. A server that does
//! not keep to `min` and `max` (some that speak MongoDB's protocol ignore them) is found out before, and read in one go.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::Mutex,
};

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use bytes::{Bytes, BytesMut};
use fettler_engine::{Cut, EngineContext, EngineError, RowHasher, StreamEnd, StreamSink};
use fettler_model::Fingerprint;

use crate::{
    catalog::{Collection, Kind},
    error::Refusal,
    params::Params,
    raw::{id_key, id_of, number, put, sorted_form},
    session::{Cursor, Session},
};

/// Bytes of a collection that one range is meant to have.
const RANGE_BYTES: u64 = 256 * 1024 * 1024;
/// Most ranges of one collection.
const MOST_RANGES: u64 = 64;
/// Sampled documents for each range: the more, the more alike the ranges are.
const SAMPLES: u64 = 20;
/// Bytes that are handed to a stream at once.
const PIECE_BYTES: usize = 256 * 1024;

/// Documents from one `_id` up to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Range {
    /// The first, as a document of `_id` alone; from the beginning where there is none.
    pub(crate) from: Option<RawDocumentBuf>,
    /// The first that is no longer in it.
    pub(crate) to: Option<RawDocumentBuf>,
}

/// Divides a collection.
pub(crate) async fn ranges(
    session: &mut Session,
    collection: &Collection,
) -> Result<Vec<Range>, EngineError> {
    let whole = vec![Range::default()];
    if collection.kind != Kind::Plain {
        return Ok(whole);
    }
    let bytes = match session
        .try_run(
            &collection.database,
            rawdoc! { "collStats": collection.name.as_str() },
        )
        .await?
    {
        Ok(stats) => number(&stats, "size").unwrap_or(0),
        Err(_) => 0,
    };
    let wanted = (bytes / RANGE_BYTES).min(MOST_RANGES);
    if wanted < 2 {
        return Ok(whole);
    }
    let mut sample = bson::RawArrayBuf::new();
    let size = i64::try_from(wanted * SAMPLES).unwrap_or(i64::MAX);
    sample.push(rawdoc! { "$sample": { "size": size } });
    sample.push(rawdoc! { "$project": { "_id": 1 } });
    // The server's own order, by the collection's collation.
    sample.push(rawdoc! { "$sort": { "_id": 1 } });
    let command = rawdoc! { "aggregate": collection.name.as_str(), "pipeline": sample };
    let sampled = session
        .list(&collection.database, command, "dividing a collection")
        .await?;
    let ranges = divide(&sampled.unwrap_or_default());
    match ranges.get(ranges.len() / 2).map(|range| &range.from) {
        Some(Some(middle)) if keeps_to_ranges(session, collection, middle).await? => Ok(ranges),
        _ => Ok(whole),
    }
}

/// Ranges between every so many of sorted samples.
fn divide(samples: &[RawDocumentBuf]) -> Vec<Range> {
    let mut ranges = Vec::new();
    let (mut from, mut last) = (None, None);
    for sample in samples
        .iter()
        .skip(SAMPLES as usize / 2)
        .step_by(SAMPLES as usize)
    {
        let (Some(at), Ok(key)) = (id_of(sample), id_key(sample)) else {
            continue;
        };
        // The same document may be sampled twice.
        if key.is_none() || key == last {
            continue;
        }
        ranges.push(Range {
            from: from.replace(at.clone()),
            to: Some(at),
        });
        last = key;
    }
    ranges.push(Range { from, to: None });
    ranges
}

/// Whether the server reads no more than `min` and `max` say, tried at a document in the middle: from it on, it comes first;
/// and up to the one that follows on it, that one does not come.
async fn keeps_to_ranges(
    session: &mut Session,
    collection: &Collection,
    middle: &RawDocumentBuf,
) -> Result<bool, EngineError> {
    let key = |document: &RawDocumentBuf| id_key(document).ok().flatten();
    let mut look = async |max: Option<RawDocumentBuf>| {
        let mut command = rawdoc! {
            "find": collection.name.as_str(),
            "hint": { "_id": 1 },
            "min": middle.clone(),
            "limit": 2,
            "singleBatch": true,
        };
        if let Some(max) = max {
            put(&mut command, "max", max);
        }
        let found = session
            .list(&collection.database, command, "trying a range")
            .await?;
        Ok::<_, EngineError>(found.unwrap_or_default())
    };
    let from_it_on = look(None).await?;
    let [first, second] = from_it_on.as_slice() else {
        return Ok(false);
    };
    let Some(next) = id_of(second).filter(|_| key(first) == key(middle)) else {
        return Ok(false);
    };
    let between = look(Some(next)).await?;
    Ok(between.first().is_some_and(|one| key(one) == key(middle))
        && between.iter().all(|one| key(one) != key(second)))
}

/// The command that reads a range.
fn find(collection: &Collection, range: &Range, is_of_set: bool) -> RawDocumentBuf {
    let mut command = rawdoc! { "find": collection.name.as_str() };
    match collection.kind {
        Kind::Capped => put(&mut command, "sort", rawdoc! { "$natural": 1 }),
        Kind::TimeSeries | Kind::View => {}
        Kind::Plain | Kind::Clustered if range == &Range::default() => {
            put(&mut command, "sort", rawdoc! { "_id": 1 });
        }
        Kind::Plain | Kind::Clustered => put(&mut command, "hint", rawdoc! { "_id": 1 }),
    }
    if let Some(from) = &range.from {
        put(&mut command, "min", from.clone());
    }
    if let Some(to) = &range.to {
        put(&mut command, "max", to.clone());
    }
    if is_of_set {
        // What may still be rolled back is no part of a backup.
        put(&mut command, "readConcern", rawdoc! { "level": "majority" });
    }
    command
}

/// Opens a cursor over a range.
pub(crate) async fn open(
    session: &mut Session,
    collection: &Collection,
    range: &Range,
) -> Result<Result<Cursor, Refusal>, EngineError> {
    let command = find(collection, range, session.hello.knows_majority());
    let doing = format!("reading {}", collection.namespace());
    session
        .open_cursor(&collection.database, command, &doing)
        .await
}

/// Adds a document to a fingerprint: as its bytes, or by its fields in any order where the server has an order of its own.
pub(crate) fn hash(
    hasher: &RowHasher,
    kind: Kind,
    document: &RawDocument,
) -> Result<[u64; 2], String> {
    if kind == Kind::TimeSeries {
        return Ok(hasher.hash(&sorted_form(document)?));
    }
    Ok(hasher.hash(document.as_bytes()))
}

/// What a range held.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeRead {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) bytes: u64,
    /// Where the keys and hashes of its documents lie, one by one, where they were asked for.
    pub(crate) spool: Option<PathBuf>,
}

/// Sessions that are lent out, one to a task.
#[derive(Debug)]
pub(crate) struct Sessions {
    params: Params,
    idle: Mutex<Vec<Session>>,
}

impl Sessions {
    /// None yet.
    pub(crate) fn new(params: &Params) -> Self {
        Self {
            params: params.clone(),
            idle: Mutex::default(),
        }
    }

    /// One that idles, or a new one.
    pub(crate) async fn take(&self, context: &EngineContext) -> Result<Session, EngineError> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .pop();
        match idle {
            Some(session) => Ok(session),
            None => Session::of_attempt(&self.params, context).await,
        }
    }

    /// Gives one back that is in order.
    pub(crate) fn give_back(&self, session: Session) {
        self.idle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(session);
    }
}

/// What a range is read with.
pub(crate) struct Reading<'a> {
    pub(crate) context: &'a EngineContext,
    pub(crate) sessions: &'a Sessions,
    pub(crate) hasher: &'a RowHasher,
    pub(crate) sink: &'a dyn StreamSink,
    /// Only for the test of rule 30.
    pub(crate) loses_a_document: bool,
}

impl Reading<'_> {
    /// Reads a range into a stream; the keys of its documents into a file where that is named.
    pub(crate) async fn range(
        &self,
        collection: &Collection,
        range: &Range,
        stream: &str,
        spool: Option<&Path>,
    ) -> Result<RangeRead, EngineError> {
        let mut session = self.sessions.take(self.context).await?;
        let server = session.server().to_owned();
        let doing = format!("reading {}", collection.namespace());
        self.context.progress.item(&collection.namespace());
        let mut cursor = open(&mut session, collection, range)
            .await?
            .map_err(|refusal| refusal.doing(&server, &doing))?;
        let mut writer = self.sink.open(stream, Cut::Content).await?;
        let mut keys = spool.map(Spool::new).transpose()?;
        let mut read = RangeRead::default();
        let mut held = BytesMut::with_capacity(PIECE_BYTES * 2);
        let mut rows = 0;
        while let Some(batch) = cursor.next(&mut session).await? {
            self.context.rate.pass(batch.bytes() as u64).await;
            let (mut bytes, mut documents) = (0, 0);
            for document in batch.documents() {
                let document = document.map_err(|what| session.unexpected(&doing, &what))?;
                documents += 1;
                if self.loses_a_document && rows == 0 && documents == 1 {
                    continue;
                }
                let hash = hash(self.hasher, collection.kind, document)
                    .map_err(|what| session.unexpected(&doing, &what))?;
                match &mut keys {
                    Some(keys) => {
                        let key =
                            id_key(document).map_err(|what| session.unexpected(&doing, &what))?;
                        keys.push(key.unwrap_or_default(), hash)?;
                    }
                    None => read.fingerprint.add_row_hash(hash),
                }
                bytes += document.as_bytes().len() as u64;
                held.extend_from_slice(document.as_bytes());
                if held.len() >= PIECE_BYTES {
                    writer.write(held.split().freeze()).await?;
                    held.reserve(PIECE_BYTES * 2);
                }
            }
            rows += documents;
            read.bytes += bytes;
            self.context.progress.add(bytes, documents);
            self.context.check_stop()?;
        }
        if !held.is_empty() {
            writer.write(Bytes::from(held)).await?;
        }
        writer
            .finish(StreamEnd {
                rows,
                ..StreamEnd::default()
            })
            .await?;
        read.spool = keys.map(Spool::finish).transpose()?;
        self.sessions.give_back(session);
        Ok(read)
    }
}

/// A file of keys and hashes, 32 bytes a document.
struct Spool {
    path: PathBuf,
    file: BufWriter<File>,
}

/// Bytes a document in a file of keys.
pub(crate) const SPOOLED_BYTES: usize = 32;

impl Spool {
    fn new(path: &Path) -> Result<Self, EngineError> {
        let file = File::create(path)
            .map_err(|error| EngineError::local(format!("making {}", path.display()), error))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
        })
    }

    fn push(&mut self, key: [u8; 16], hash: [u64; 2]) -> Result<(), EngineError> {
        let mut entry = [0; SPOOLED_BYTES];
        entry[..16].copy_from_slice(&key);
        entry[16..24].copy_from_slice(&hash[0].to_le_bytes());
        entry[24..].copy_from_slice(&hash[1].to_le_bytes());
        self.file
            .write_all(&entry)
            .map_err(|error| EngineError::local(format!("writing {}", self.path.display()), error))
    }

    fn finish(mut self) -> Result<PathBuf, EngineError> {
        self.file.flush().map_err(|error| {
            EngineError::local(format!("writing {}", self.path.display()), error)
        })?;
        Ok(self.path)
    }
}

/// Reads one entry of a file of keys.
pub(crate) fn spooled(entry: &[u8; SPOOLED_BYTES]) -> ([u8; 16], [u64; 2]) {
    let limb = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| entry[at + byte]));
    (std::array::from_fn(|at| entry[at]), [limb(16), limb(24)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_on_each_other_from_the_least_to_the_greatest() {
        let samples: Vec<RawDocumentBuf> = (0..100).map(|n| rawdoc! { "_id": n / 30 }).collect();
        let ranges = divide(&samples);
        assert_eq!(ranges.first().unwrap().from, None);
        assert_eq!(ranges.last().unwrap().to, None);
        for pair in ranges.windows(2) {
            assert_eq!(pair[0].to, pair[1].from);
        }
        // Five places, of which two are one document.
        assert_eq!(ranges.len(), 5);
        assert_eq!(divide(&[]), [Range::default()]);
    }

    #[test]
    fn a_range_is_asked_for_by_min_and_max_and_never_by_conditions() {
        let collection = Collection {
            database: "d".to_owned(),
            name: "c".to_owned(),
            kind: Kind::Plain,
            options: RawDocumentBuf::new(),
            indexes: Vec::new(),
            division: None,
        };
        let range = Range {
            from: Some(rawdoc! { "_id": 1 }),
            to: Some(rawdoc! { "_id": "x" }),
        };
        let command = find(&collection, &range, true);
        assert_eq!(
            command,
            rawdoc! {
                "find": "c", "hint": { "_id": 1 }, "min": { "_id": 1 }, "max": { "_id": "x" },
                "readConcern": { "level": "majority" },
            }
        );
        assert_eq!(
            find(&collection, &Range::default(), false),
            rawdoc! { "find": "c", "sort": { "_id": 1 } }
        );
    }
}
