//! Reading a backup: a stream's chunks in order, fetched ahead in ranges, opened, and compared with
//! their ids before a byte is handed out.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};

use crate::{
    Damage, Manifest, RepositoryError, StreamRecord, TenantRepository,
    index::{Entry, Index},
    layout::{Kind, ObjectName},
    seal::{ObjectSeal, unframe_exactly},
};

/// Bytes of a stream, before sealing, that are fetched with one request.
const RUN_BYTES: u64 = 4 << 20;

/// Ranges of one stream that are fetched and opened at once.
const RUNS_AHEAD: usize = 4;

/// Bytes between two chunks of a range that are fetched and thrown away rather than making it two.
const MOST_GAP_BYTES: u32 = 64 << 10;

/// Reads the streams of a backup. Streams may be read at the same time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BackupReader {
    tenant: TenantRepository,
    manifest: Arc<Manifest>,
}

/// Neighbouring chunks of a stream in one pack.
struct Run {
    pack: ObjectName,
    /// Where in the stream the first of them begins.
    offset: u64,
    entries: Vec<Entry>,
}

impl TenantRepository {
    /// A reader of this backup's streams.
    #[must_use]
    pub fn reader(&self, manifest: &Manifest) -> BackupReader {
        BackupReader {
            tenant: self.clone(),
            manifest: Arc::new(manifest.clone()),
        }
    }

    /// The lists of a stream's chunks, in order.
    pub(crate) fn index_parts(
        &self,
        stream: StreamRecord,
    ) -> impl futures::Stream<Item = Result<Index, RepositoryError>> + Send + use<> {
        let tenant = self.clone();
        let (name, inline) = (stream.name, stream.inline);
        let inline = inline.map(|text| {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .ok()
                .and_then(|list| Index::decode(&list))
                .ok_or_else(|| {
                    RepositoryError::damaged(
                        "manifest",
                        format!("the list of stream {name} does not read"),
                    )
                })
        });
        futures::stream::iter(stream.indexes)
            .then(move |reference| {
                let tenant = tenant.clone();
                async move { tenant.read_index(reference.name).await }
            })
            .chain(futures::stream::iter(inline))
    }

    pub(crate) async fn read_index(&self, name: ObjectName) -> Result<Index, RepositoryError> {
        let path = self.path(Kind::Index, name);
        let bytes = self
            .store()
            .get(&path)
            .await?
            .ok_or_else(|| RepositoryError::damaged(path.as_ref(), "it is missing"))?;
        let tenant = self.clone();
        self.cpu()
            .run(move || {
                let [list] = tenant
                    .sealer()
                    .open::<1>(Kind::Index, name, path.as_ref(), &bytes)?;
                Index::decode(&list)
                    .ok_or_else(|| RepositoryError::damaged(path, "its list does not read"))
            })
            .await
    }
}

impl BackupReader {
    /// The backup.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its streams, in the order of their names.
    #[must_use]
    pub fn streams(&self) -> &[StreamRecord] {
        &self.manifest.streams
    }

    /// Reads a stream from its beginning, in pieces of at most a chunk. The pieces are authentic; an error
    /// names the object, and the place in the stream, of what is not.
    ///
    /// # Errors
    ///
    /// When the backup has no such stream.
    pub fn read(
        &self,
        name: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, RepositoryError>>, RepositoryError> {
        let stream = self
            .manifest
            .stream(name)
            .ok_or_else(|| RepositoryError::NoSuchStream {
                backup: self.manifest.id(),
                stream: name.to_owned(),
            })?;
        let tenant = self.tenant.clone();
        let (name, whole) = (Arc::<str>::from(name), stream.bytes);
        let mut offset = 0;
        let ends = Arc::clone(&name);
        let mut handed_out = 0;
        let pieces = self
            .tenant
            .index_parts(stream.clone())
            .map_ok(move |index| {
                let runs = runs(&index, &mut offset);
                futures::stream::iter(runs.into_iter().map(Ok))
            })
            .try_flatten()
            .map_ok(move |run| tenant.clone().fetch(run, Arc::clone(&name)))
            .try_buffered(RUNS_AHEAD)
            .map_ok(|chunks| futures::stream::iter(chunks.into_iter().map(Ok)))
            .try_flatten()
            .boxed();
        // That a stream ends where its record says is the last thing that is looked at.
        let checked = pieces
            .map(Some)
            .chain(futures::stream::iter([None]))
            .filter_map(move |piece| {
                let outcome = match piece {
                    Some(Ok(bytes)) => {
                        handed_out += bytes.len() as u64;
                        Some(Ok(bytes))
                    }
                    Some(Err(error)) => {
                        handed_out = whole;
                        Some(Err(error))
                    }
                    None if handed_out == whole => None,
                    None => Some(Err(RepositoryError::Damaged(Damage {
                        object: "manifest".to_owned(),
                        stream: Some(ends.to_string()),
                        offset: Some(handed_out),
                        what: format!("the stream ends here instead of at {whole}"),
                    }))),
                };
                futures::future::ready(outcome)
            });
        Ok(checked.boxed())
    }
}

impl TenantRepository {
    /// Fetches and opens neighbouring chunks.
    async fn fetch(self, run: Run, stream: Arc<str>) -> Result<Vec<Bytes>, RepositoryError> {
        let path = self.path(Kind::Pack, run.pack);
        let (Some(first), Some(last)) = (run.entries.first(), run.entries.last()) else {
            return Ok(Vec::new());
        };
        let begin = first.offset;
        let end = last.offset + last.sealed;
        let damage = {
            let (object, stream) = (path.to_string(), stream.to_string());
            move |offset: u64, what: &str| {
                RepositoryError::Damaged(Damage {
                    object: object.clone(),
                    stream: Some(stream.clone()),
                    offset: Some(offset),
                    what: what.to_owned(),
                })
            }
        };
        let Some(sealed) = self
            .store()
            .get_range(&path, u64::from(begin)..u64::from(end))
            .await?
        else {
            return Err(damage(run.offset, "it is missing"));
        };
        let keys = self.sealer().clone();
        self.cpu()
            .run(move || {
                let seal = keys.object(Kind::Pack, run.pack, &run.pack.0);
                let mut offset = run.offset;
                let mut chunks = Vec::with_capacity(run.entries.len());
                for entry in &run.entries {
                    let at = (entry.offset - begin) as usize;
                    let frame = sealed.get(at..at + entry.sealed as usize);
                    let chunk = frame
                        .ok_or("it was cut short")
                        .and_then(|frame| open_chunk(&seal, &keys, entry, frame))
                        .map_err(|what| damage(offset, what))?;
                    offset += chunk.len() as u64;
                    chunks.push(Bytes::from(chunk));
                }
                Ok(chunks)
            })
            .await
    }
}

/// Opens a chunk and compares it with its id (rule 20).
pub(crate) fn open_chunk(
    seal: &ObjectSeal,
    sealer: &crate::seal::Sealer,
    entry: &Entry,
    frame: &[u8],
) -> Result<Vec<u8>, &'static str> {
    let mut frame = frame.to_vec();
    let opened = seal
        .open_in_place(u64::from(entry.offset), &mut frame)
        .ok_or("a chunk's seal does not match: it was changed or belongs elsewhere")?;
    let chunk = unframe_exactly(opened, entry.plain as usize)
        .ok_or("a chunk does not unpack to its length")?;
    if sealer.keys.chunk_id(&chunk) != entry.id {
        return Err("a chunk is not the one that its list names");
    }
    Ok(chunk)
}

/// The chunks of an index as ranges to be fetched; moves `offset` to the end of them in the stream.
fn runs(index: &Index, offset: &mut u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut plain = 0;
    for entry in &index.entries {
        let pack = index.packs[entry.pack as usize];
        let joins = runs.last().is_some_and(|run| {
            run.entries.last().is_some_and(|last| {
                let end = last.offset + last.sealed;
                run.pack == pack
                    && entry.offset >= end
                    && entry.offset - end <= MOST_GAP_BYTES
                    && plain + u64::from(entry.plain) <= RUN_BYTES
            })
        });
        match runs.last_mut() {
            Some(run) if joins => run.entries.push(*entry),
            _ => {
                plain = 0;
                runs.push(Run {
                    pack,
                    offset: *offset,
                    entries: vec![*entry],
                });
            }
        }
        plain += u64::from(entry.plain);
        *offset += u64::from(entry.plain);
    }
    runs
}
