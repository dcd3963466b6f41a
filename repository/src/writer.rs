//! Writing a backup: streams become chunks, chunks that are new become packs, and one manifest, written
//! last and only if absent, makes it a backup (rules 21, 22).
//!
//! Bytes flow through bounded stages: each stream fills a batch, the pool cuts, hashes and compresses it,
//! its new chunks are copied into the one pack that is being filled, and full packs are sealed and put by
//! a bounded number of uploads. A stage that is full makes the one before it wait. Before a pack is put,
//! it is recorded in a segment of the backup's own folder: whatever was put is found again by the next
//! attempt (P3).

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, Bytes};
use fettler_fault_points::{Point, Rule, reached, without};
use fettler_model::{BackupId, Timestamp};
use futures::{StreamExt, TryStreamExt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::{
    Fence, IndexReference, Manifest, ManifestSummary, PackUse, RepositoryError, StreamRecord,
    TenantRepository, Unfenced,
    announce::{Announcement, SegmentHead, SegmentPack},
    backups::Found,
    chunker::Chunker,
    index::{ChunkId, Entry, Index, IndexBuilder, MAX_ENTRIES, MAX_INLINE_ENTRIES},
    layout::{Kind, ObjectName},
    reuse::packs_to_take_over,
    seal::{self, HEADER_BYTES},
    store::{Put, SMALL_REQUESTS},
};

/// Bytes of a stream that are cut, hashed and compressed as one piece of work: more than the longest
/// chunk, and long enough that handing work over costs nothing beside it.
const BATCH_BYTES: usize = 2 << 20;

/// Batches of one stream that are worked on at once.
const BATCHES_IN_FLIGHT: usize = 2;

/// Emptied batches that are kept for the next ones: memory that is new each time costs the system a fault a page.
const BATCHES_KEPT: usize = 8;

/// How often an announcement is renewed by itself.
const RENEW_EVERY: Duration = Duration::from_secs(60);

/// At most so many backups in a row take streams over unread (rule 24).
const FULL_READ_EVERY: u32 = 30;

/// How often a backup chooses another parent because the one it chose was forgotten meanwhile.
const MOST_PARENT_CHOICES: u32 = 8;

/// A checkpoint closes the pack that is being filled when it holds at least one part in so many of a full
/// one; closing emptier ones would leave many small packs.
const CHECKPOINT_PACK_PART: usize = 4;

/// The longest name of a stream.
const MAX_STREAM_NAME_BYTES: usize = 4096;

/// From which backup is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// From none: everything is stored anew.
    None,
    /// From the newest of the same database.
    Auto,
    /// From this one.
    Backup(BackupId),
}

/// What a backup begins with.
#[derive(Clone)]
pub struct BeginBackup {
    /// Its id: that of the job, the same in each attempt.
    pub backup: BackupId,
    /// The key by which the backups of one database find each other; opaque here.
    pub database: String,
    /// From which backup is taken over.
    pub parent: Parent,
    /// Take no stream over unread (rule 24). Chunks that are there already are still not stored again.
    pub read_everything: bool,
    /// Asked before each durable effect.
    pub fence: Arc<dyn Fence>,
    /// Packs that are sealed and put at once.
    pub upload_parallel: usize,
}

impl fmt::Debug for BeginBackup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeginBackup")
            .field("backup", &self.backup)
            .field("database", &self.database)
            .field("parent", &self.parent)
            .finish_non_exhaustive()
    }
}

impl BeginBackup {
    /// A backup of this database that takes over from the newest one, unfenced.
    #[must_use]
    pub fn new(backup: BackupId, database: impl Into<String>) -> Self {
        Self {
            backup,
            database: database.into(),
            parent: Parent::Auto,
            read_everything: false,
            fence: Arc::new(Unfenced),
            upload_parallel: 2,
        }
    }
}

/// How a backup begins.
#[derive(Debug)]
pub enum Begun {
    /// It is to be written.
    Writer(BackupWriter),
    /// An earlier attempt has committed it (rule 22).
    AlreadyCommitted(Box<Manifest>),
}

/// How a stream is cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunking {
    /// Where the content says: an insertion moves few cuts.
    Content,
    /// At multiples of a page: for files whose pages change in place.
    Pages {
        /// Bytes of a page.
        page_bytes: u32,
    },
}

/// What is said of a stream at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamEnd {
    /// Rows in it.
    pub rows: u64,
    /// Says which state of the source it is: a later backup whose source still says the same takes the
    /// stream over unread.
    pub unchanged_marker: Option<String>,
}

/// What a manifest is committed with.
#[derive(Clone, Debug)]
pub struct ManifestBody {
    /// The database's name, for people.
    pub database_name: String,
    /// The engine's name.
    pub engine: String,
    /// Free words of the user's.
    pub tags: Vec<String>,
    /// When the reading began.
    pub started: Timestamp,
    /// Kept with the backup, not looked into.
    pub report: serde_json::Value,
}

/// A backup that was committed.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Its manifest; what was read, new and stored stands in its summary.
    pub manifest: Manifest,
    /// Whether another attempt of the same backup had committed it first (rule 22): then this is
    /// that attempt's manifest.
    pub adopted: bool,
}

/// What was counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes read from the source, or taken over unread.
    pub bytes_read: u64,
    /// Bytes that the parent does not hold, before compression.
    pub bytes_new: u64,
    /// Bytes that lie in the store for this backup alone, an earlier attempt's included.
    pub bytes_stored: u64,
}

/// A backup that is being written. Streams may be written at the same time. Dropping it leaves no backup;
/// what was put is found by the next attempt.
pub struct BackupWriter {
    inner: Arc<Inner>,
    renewing: JoinHandle<()>,
}

impl fmt::Debug for BackupWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupWriter")
            .field("backup", &self.inner.backup)
            .finish_non_exhaustive()
    }
}

impl Drop for BackupWriter {
    fn drop(&mut self) {
        self.inner.stop.cancel();
        self.renewing.abort();
    }
}

struct Inner {
    tenant: TenantRepository,
    backup: BackupId,
    /// The name of manifest and announcement.
    name: ObjectName,
    announcement: Announcement,
    parent: Option<Manifest>,
    reads_everything: bool,
    took_over: AtomicBool,
    fence: Arc<dyn Fence>,
    content: Arc<Chunker>,
    known: Mutex<Known>,
    filling: tokio::sync::Mutex<Filling>,
    emptied: Mutex<Vec<Vec<u8>>>,
    upload_parallel: u32,
    uploads: Arc<Semaphore>,
    unrecorded: Mutex<Vec<Recorded>>,
    recording: tokio::sync::Mutex<()>,
    /// Finished streams, and the names of those that are open.
    streams: Mutex<BTreeMap<String, Option<StreamRecord>>>,
    bytes_read: AtomicU64,
    bytes_new: AtomicU64,
    bytes_stored: AtomicU64,
    failed: OnceLock<RepositoryError>,
    stop: CancellationToken,
    /// What the backup is a part of: packs hold chunks of several streams, and belong to none of them.
    span: Span,
}

/// Whose a pack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The parent's.
    Parent,
    /// This backup's, of this attempt or an earlier one.
    Own,
}

struct KnownPack {
    name: ObjectName,
    bytes: u64,
    origin: Origin,
    durable: bool,
    used: u64,
}

/// What need not be stored, as it lies in the store already or soon will.
#[derive(Default)]
struct Known {
    chunks: HashMap<ChunkId, Place>,
    packs: Vec<KnownPack>,
    numbers: HashMap<ObjectName, u32>,
    /// Chunks that the backup needs, by pack and offset, so that each counts once.
    counted: HashSet<u64>,
}

#[derive(Clone, Copy)]
struct Place {
    pack: u32,
    offset: u32,
    sealed: u32,
    plain: u32,
}

impl Known {
    fn number(&mut self, name: ObjectName, bytes: u64, origin: Origin, durable: bool) -> u32 {
        let packs = &mut self.packs;
        *self.numbers.entry(name).or_insert_with(|| {
            packs.push(KnownPack {
                name,
                bytes,
                origin,
                durable,
                used: 0,
            });
            u32::try_from(packs.len() - 1).expect("four thousand million packs are not met")
        })
    }

    fn find(&self, id: &ChunkId) -> Option<Entry> {
        self.chunks.get(id).map(|place| Entry {
            id: *id,
            pack: place.pack,
            offset: place.offset,
            sealed: place.sealed,
            plain: place.plain,
        })
    }

    fn learn(&mut self, entry: &Entry) {
        self.chunks.entry(entry.id).or_insert(Place {
            pack: entry.pack,
            offset: entry.offset,
            sealed: entry.sealed,
            plain: entry.plain,
        });
    }

    /// Counts a chunk that the backup needs; says how many new bytes that means.
    fn count(&mut self, entry: &Entry) -> u64 {
        let place = u64::from(entry.pack) << 32 | u64::from(entry.offset);
        if !self.counted.insert(place) {
            return 0;
        }
        let pack = &mut self.packs[entry.pack as usize];
        pack.used += u64::from(entry.sealed);
        match pack.origin {
            Origin::Own => u64::from(entry.plain),
            Origin::Parent => 0,
        }
    }
}

/// The pack that is being filled.
#[derive(Default)]
struct Filling {
    pack: Option<OpenPack>,
}

/// A pack that is not sealed yet: the header and frames with room for their tags.
struct OpenPack {
    name: ObjectName,
    number: u32,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// A pack that is to stand in a segment before it is put.
struct Recorded {
    pack: SegmentPack,
    entries: Vec<Entry>,
}

/// A chunk on its way.
enum Prepared {
    /// It is in the store, or will be.
    Known(Entry),
    /// Framed and compressed, at this range of the batch's frames.
    New {
        id: ChunkId,
        plain: u32,
        range: std::ops::Range<usize>,
    },
}

impl TenantRepository {
    /// Begins a backup: announces it, chooses its parent, and finds what earlier attempts of it stored.
    ///
    /// # Errors
    ///
    /// When the backup was given up or forgotten, when the fence refuses, or when the store does.
    pub async fn begin_backup(&self, begin: BeginBackup) -> Result<Begun, RepositoryError> {
        self.inner.repository.writable()?;
        let name = self.sealer().keys.backup_name(begin.backup);
        if let Some(committed) = self.already_there(begin.backup).await? {
            return Ok(Begun::AlreadyCommitted(committed));
        }
        begin.fence.check().await.map_err(RepositoryError::Fenced)?;
        let (announcement, parent) = self.announce(&begin).await?;
        reached(Point::BackupAnnounced);

        let packs = self.sizes(Kind::Pack).await?;
        let damaged = self.names(Kind::Damage).await?;
        let mut known = Known::default();
        if let Some(parent) = &parent {
            self.learn_parent(parent, &packs, &damaged, &mut known)
                .await?;
        }
        let stored = self
            .learn_segments(begin.backup, &packs, &damaged, &mut known)
            .await?;

        let reads_everything = begin.read_everything
            || parent
                .as_ref()
                .is_none_or(|parent| parent.summary.since_full_read + 1 >= FULL_READ_EVERY);
        let upload_parallel =
            u32::try_from(begin.upload_parallel.clamp(1, 64)).expect("at most 64 uploads at once");
        let chunks = self.inner.repository.inner.chunks;
        let inner = Arc::new(Inner {
            tenant: self.clone(),
            backup: begin.backup,
            name,
            announcement,
            parent,
            reads_everything,
            took_over: AtomicBool::new(false),
            fence: begin.fence,
            content: Arc::new(Chunker::content(&self.sealer().keys, chunks)),
            known: Mutex::new(known),
            filling: tokio::sync::Mutex::default(),
            emptied: Mutex::default(),
            upload_parallel,
            uploads: Arc::new(Semaphore::new(upload_parallel as usize)),
            unrecorded: Mutex::default(),
            recording: tokio::sync::Mutex::default(),
            streams: Mutex::default(),
            bytes_read: AtomicU64::new(0),
            bytes_new: AtomicU64::new(0),
            bytes_stored: AtomicU64::new(stored),
            failed: OnceLock::new(),
            stop: CancellationToken::new(),
            span: Span::current(),
        });
        let renewing = tokio::spawn(Arc::clone(&inner).renew_for_ever().in_current_span());
        Ok(Begun::Writer(BackupWriter { inner, renewing }))
    }

    /// What an earlier attempt, or whoever gave the backup up, left at its name.
    async fn already_there(
        &self,
        backup: BackupId,
    ) -> Result<Option<Box<Manifest>>, RepositoryError> {
        let lost = |why: &str| RepositoryError::LostAnnouncement {
            backup,
            why: why.to_owned(),
        };
        let name = self.sealer().keys.backup_name(backup);
        let found = self.read_manifest(backup).await?;
        if self.has(Kind::Forgotten, name).await? && !self.has(Kind::Hold, name).await? {
            return Err(lost("it was committed before and then forgotten"));
        }
        match found {
            Some(Found::Backup(manifest)) => Ok(Some(manifest)),
            Some(Found::Tombstone { why }) => Err(lost(&why)),
            None => Ok(None),
        }
    }

    /// Announces the backup with its parent, and then looks whether the parent is still there: a
    /// forgetting either sees the announcement or is seen here (rule 21).
    async fn announce(
        &self,
        begin: &BeginBackup,
    ) -> Result<(Announcement, Option<Manifest>), RepositoryError> {
        let name = self.sealer().keys.backup_name(begin.backup);
        let path = self.path(Kind::Announcement, name);
        let earlier = match self
            .get_json::<Announcement>(Kind::Announcement, name)
            .await
        {
            Ok(earlier) => earlier.map(|(earlier, when)| earlier.since.unwrap_or(when)),
            // It is written anew.
            Err(RepositoryError::Damaged(_)) => None,
            Err(error) => return Err(error),
        };
        let mut announcement = Announcement {
            backup: begin.backup,
            database: begin.database.clone(),
            parent: None,
            since: earlier,
        };
        let mut unreadable = HashSet::new();
        for _choice in 0..MOST_PARENT_CHOICES {
            announcement.parent = match begin.parent {
                Parent::None => None,
                Parent::Backup(id) => Some(id),
                Parent::Auto => self
                    .backups()
                    .await?
                    .backups
                    .iter()
                    .rfind(|other| {
                        other.database == begin.database
                            && other.id != begin.backup
                            && !unreadable.contains(&other.id)
                    })
                    .map(|other| other.id),
            };
            let bytes = self
                .sealer()
                .seal_json(Kind::Announcement, name, &announcement);
            if !without(Rule::Announcement) {
                self.store().put_over(&path, bytes).await?;
            }
            if announcement.since.is_none() {
                announcement.since = self
                    .store()
                    .head(&path)
                    .await?
                    .map(|listed| listed.modified);
            }
            let Some(id) = announcement.parent else {
                return Ok((announcement, None));
            };
            match self.manifest(id).await {
                Ok(parent) => return Ok((announcement, Some(parent))),
                Err(RepositoryError::NoSuchBackup(_)) if begin.parent == Parent::Auto => {}
                // Damage is not inherited (rule 24): an older backup, or none, serves as well.
                Err(RepositoryError::Damaged(damage)) if begin.parent == Parent::Auto => {
                    tracing::warn!(%damage, "the newest backup cannot be taken over from");
                    unreadable.insert(id);
                }
                Err(error) => return Err(error),
            }
        }
        // Backups vanish faster than they can be announced: this one does without.
        announcement.parent = None;
        let bytes = self
            .sealer()
            .seal_json(Kind::Announcement, name, &announcement);
        self.store().put_over(&path, bytes).await?;
        Ok((announcement, None))
    }

    /// Learns which chunks of the parent can be taken over. Packs that are missing or cut are recorded
    /// as damaged (rule 24).
    async fn learn_parent(
        &self,
        parent: &Manifest,
        packs: &BTreeMap<ObjectName, u64>,
        damaged: &HashSet<ObjectName>,
        known: &mut Known,
    ) -> Result<(), RepositoryError> {
        let mut sound = Vec::with_capacity(parent.packs.len());
        for pack in &parent.packs {
            if damaged.contains(&pack.name) {
                continue;
            }
            match packs.get(&pack.name) {
                Some(bytes) if *bytes == pack.bytes => sound.push(pack.clone()),
                found => {
                    let what = found.map_or_else(
                        || "it is missing".to_owned(),
                        |bytes| format!("it has {bytes} bytes instead of {}", pack.bytes),
                    );
                    tracing::warn!(pack = %pack.name, what, "a pack of the parent backup is damaged; what it held is stored anew");
                    self.mark_damaged(pack.name, &what).await?;
                }
            }
        }
        let full_pack_bytes = self.inner.repository.inner.pack_bytes as u64;
        let kept = packs_to_take_over(&sound, full_pack_bytes);
        for pack in sound.iter().filter(|pack| kept.contains(&pack.name)) {
            known.number(pack.name, pack.bytes, Origin::Parent, true);
        }
        let references: Vec<&StreamRecord> = parent.streams.iter().collect();
        for stream in references {
            let mut parts = std::pin::pin!(self.index_parts(stream.clone()));
            loop {
                match parts.try_next().await {
                    Ok(Some(index)) => known.learn_index(&index),
                    Ok(None) => break,
                    // What the rest of the stream held is stored anew.
                    Err(RepositoryError::Damaged(damage)) => {
                        tracing::warn!(%damage, "an index of the parent backup is damaged");
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Finds the packs that earlier attempts of this backup put. Gives back the bytes in them.
    async fn learn_segments(
        &self,
        backup: BackupId,
        packs: &BTreeMap<ObjectName, u64>,
        damaged: &HashSet<ObjectName>,
        known: &mut Known,
    ) -> Result<u64, RepositoryError> {
        let name = self.sealer().keys.backup_name(backup);
        let mut stored = 0;
        for (head, index) in self.segments(name).await? {
            for pack in &head.packs {
                if packs.get(&pack.name) == Some(&pack.bytes) && !damaged.contains(&pack.name) {
                    known.number(pack.name, pack.bytes, Origin::Own, true);
                    stored += pack.bytes;
                }
            }
            known.learn_index(&index);
        }
        Ok(stored)
    }

    /// The segments of a running backup. One that cannot be read is as good as none: what it recorded
    /// is stored again.
    pub(crate) async fn segments(
        &self,
        backup: ObjectName,
    ) -> Result<Vec<(SegmentHead, Index)>, RepositoryError> {
        let listed = self
            .store()
            .list(&self.inner.folder.segments(backup))
            .await?;
        futures::stream::iter(listed.into_iter().map(|listed| async move {
            let Some(name) = listed.name() else {
                return Ok(None);
            };
            let object = listed.path.as_ref();
            let Some(bytes) = self.store().get(&listed.path).await? else {
                return Ok(None);
            };
            let read = || -> Result<(SegmentHead, Index), RepositoryError> {
                let [head, index] = self
                    .sealer()
                    .open::<2>(Kind::Segment, name, object, &bytes)?;
                let head: SegmentHead = seal::from_json(object, &head)?;
                if self.sealer().keys.backup_name(head.backup) != backup {
                    return Err(RepositoryError::damaged(
                        object,
                        "it belongs to another backup",
                    ));
                }
                let index = Index::decode(&index)
                    .ok_or_else(|| RepositoryError::damaged(object, "its list does not read"))?;
                Ok((head, index))
            };
            match read() {
                Ok(segment) => Ok(Some(segment)),
                Err(error @ RepositoryError::Damaged(_)) => {
                    tracing::warn!(%error, "a segment of a running backup is damaged");
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        }))
        .buffer_unordered(SMALL_REQUESTS)
        .try_filter_map(|segment| async move { Ok(segment) })
        .try_collect()
        .await
    }
}

impl Known {
    /// Learns the chunks of an index that lie in packs that are known.
    fn learn_index(&mut self, index: &Index) {
        let numbers: Vec<Option<u32>> = index
            .packs
            .iter()
            .map(|name| self.numbers.get(name).copied())
            .collect();
        for entry in &index.entries {
            if let Some(pack) = numbers[entry.pack as usize] {
                self.learn(&Entry { pack, ..*entry });
            }
        }
    }
}

impl BackupWriter {
    /// The backup's id.
    #[must_use]
    pub fn id(&self) -> BackupId {
        self.inner.backup
    }

    /// The backup from which is taken over.
    #[must_use]
    pub fn parent(&self) -> Option<&Manifest> {
        self.inner.parent.as_ref()
    }

    /// Whether no stream is taken over unread (rule 24).
    #[must_use]
    pub fn reads_everything(&self) -> bool {
        self.inner.reads_everything
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.counters()
    }

    /// Begins a stream. Several may be open at once.
    ///
    /// # Errors
    ///
    /// When the name was used before in this backup, or the backup has failed.
    pub fn open_stream(
        &self,
        name: &str,
        chunking: Chunking,
    ) -> Result<StreamWriter, RepositoryError> {
        self.inner.healthy()?;
        self.inner.reserve(name)?;
        let chunker = match chunking {
            Chunking::Content => Arc::clone(&self.inner.content),
            Chunking::Pages { page_bytes } => Arc::new(Chunker::pages(
                page_bytes,
                self.inner.tenant.inner.repository.inner.chunks,
            )),
        };
        Ok(StreamWriter {
            inner: Arc::clone(&self.inner),
            name: name.to_owned(),
            chunker,
            pending: Vec::new(),
            in_flight: VecDeque::new(),
            index: IndexBuilder::default(),
            indexes: Vec::new(),
            bytes: 0,
            finished: false,
        })
    }

    /// Takes the parent's stream of this name over unread, if it ended with this marker and everything
    /// that it needs is there, undamaged and worth keeping (rules 24, 25).
    ///
    /// # Errors
    ///
    /// When the name was used before in this backup, or the store does not answer.
    pub async fn take_over(
        &self,
        name: &str,
        unchanged_marker: &str,
    ) -> Result<Option<StreamRecord>, RepositoryError> {
        let inner = &self.inner;
        inner.healthy()?;
        if inner.reads_everything {
            return Ok(None);
        }
        let Some(stream) = inner
            .parent
            .as_ref()
            .and_then(|parent| parent.stream(name))
            .filter(|stream| stream.unchanged_marker.as_deref() == Some(unchanged_marker))
        else {
            return Ok(None);
        };
        inner.reserve(name)?;
        let taken = inner.take_over(stream).await;
        if matches!(taken, Ok(true)) {
            lock(&inner.streams).insert(name.to_owned(), Some(stream.clone()));
            inner.took_over.store(true, Ordering::Relaxed);
            inner.bytes_read.fetch_add(stream.bytes, Ordering::Relaxed);
            return Ok(Some(stream.clone()));
        }
        lock(&inner.streams).remove(name);
        taken.map(|_| None)
    }

    /// The marker with which the parent's stream of this name ended; nothing where everything is to be read.
    #[must_use]
    pub fn parent_marker(&self, name: &str) -> Option<&str> {
        let parent = self.inner.parent.as_ref();
        parent
            .filter(|_| !self.inner.reads_everything)
            .and_then(|parent| parent.stream(name))
            .and_then(|stream| stream.unchanged_marker.as_deref())
    }

    /// Makes what was written so far durable, so that the next attempt finds it, and renews the
    /// announcement. Chunks that are still on their way through a stream come later.
    ///
    /// # Errors
    ///
    /// When the fence refuses, the announcement was lost, or a write failed.
    pub async fn checkpoint(&self) -> Result<(), RepositoryError> {
        let least = self.inner.tenant.inner.repository.inner.pack_bytes / CHECKPOINT_PACK_PART;
        self.inner.close_pack(least).await?;
        self.inner.uploaded().await?;
        self.inner.renew().await
    }

    /// Commits the backup (rule 22): everything that it names is there with its size, then the manifest
    /// is written, only if absent, and read back. From then on it is a backup.
    ///
    /// # Errors
    ///
    /// When a stream is still open, something failed before, the fence refuses, or the backup was given
    /// up by a collection.
    pub async fn commit(&self, body: ManifestBody) -> Result<Committed, RepositoryError> {
        let inner = &self.inner;
        inner.healthy()?;
        inner.close_pack(0).await?;
        inner.uploaded().await?;

        let mut streams = Vec::new();
        for (name, record) in lock(&inner.streams).iter() {
            let record = record
                .as_ref()
                .ok_or_else(|| RepositoryError::StreamOpen(name.clone()))?;
            streams.push(record.clone());
        }
        let packs = inner.needed_packs()?;
        inner.all_listed(&packs, &streams).await?;

        let counters = inner.counters();
        let since_full_read = match &inner.parent {
            Some(parent) if inner.took_over.load(Ordering::Relaxed) => {
                parent.summary.since_full_read + 1
            }
            _ => 0,
        };
        let mut manifest = Manifest {
            summary: ManifestSummary {
                id: inner.backup,
                database: inner.announcement.database.clone(),
                database_name: body.database_name,
                engine: body.engine,
                parent: inner.parent.as_ref().map(Manifest::id),
                tags: body.tags,
                started: body.started,
                finished: Timestamp::now(),
                bytes_read: counters.bytes_read,
                bytes_new: counters.bytes_new,
                bytes_stored: counters.bytes_stored,
                streams: streams.len() as u64,
                since_full_read,
                damaged: false,
                held: false,
            },
            report: body.report,
            streams,
            packs,
        };
        // What the manifest itself takes is not known before it is sealed; its text alone is near enough.
        manifest.summary.bytes_stored +=
            inner.tenant.seal_manifest(inner.name, &manifest).len() as u64;
        inner.put_manifest(manifest).await
    }
}

impl Inner {
    fn healthy(&self) -> Result<(), RepositoryError> {
        self.failed.get().cloned().map_or(Ok(()), Err)
    }

    /// Remembers the first failure: the backup cannot succeed any more.
    fn fail(&self, error: RepositoryError) {
        let _first_failure_counts = self.failed.set(error);
    }

    fn counters(&self) -> Counters {
        Counters {
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_new: self.bytes_new.load(Ordering::Relaxed),
            bytes_stored: self.bytes_stored.load(Ordering::Relaxed),
        }
    }

    fn reserve(&self, name: &str) -> Result<(), RepositoryError> {
        if name.len() > MAX_STREAM_NAME_BYTES {
            return Err(RepositoryError::TooLarge(format!(
                "the name of a stream has {} bytes; {MAX_STREAM_NAME_BYTES} are allowed",
                name.len()
            )));
        }
        let mut streams = lock(&self.streams);
        if streams.contains_key(name) {
            return Err(RepositoryError::StreamTwice(name.to_owned()));
        }
        streams.insert(name.to_owned(), None);
        Ok(())
    }

    /// Whether the parent's stream was taken over.
    async fn take_over(&self, stream: &StreamRecord) -> Result<bool, RepositoryError> {
        let mut entries = Vec::new();
        let mut parts = std::pin::pin!(self.tenant.index_parts(stream.clone()));
        loop {
            let index = match parts.try_next().await {
                Ok(Some(index)) => index,
                Ok(None) => break,
                Err(RepositoryError::Damaged(damage)) => {
                    tracing::warn!(%damage, "a stream is read anew since its index is damaged");
                    return Ok(false);
                }
                Err(error) => return Err(error),
            };
            let known = lock(&self.known);
            for entry in &index.entries {
                let name = index.packs[entry.pack as usize];
                let Some(pack) = known.numbers.get(&name) else {
                    return Ok(false);
                };
                entries.push(Entry {
                    pack: *pack,
                    ..*entry
                });
            }
        }
        let mut known = lock(&self.known);
        let new: u64 = entries.iter().map(|entry| known.count(entry)).sum();
        self.bytes_new.fetch_add(new, Ordering::Relaxed);
        Ok(true)
    }

    /// Hashes and compresses the chunks of a batch and places those that are new.
    async fn store_batch(
        self: Arc<Self>,
        batch: Vec<u8>,
        ends: Vec<usize>,
    ) -> Result<Vec<Entry>, RepositoryError> {
        self.healthy()?;
        let this = Arc::clone(&self);
        let (prepared, frames) = self
            .tenant
            .cpu()
            .run(move || {
                let prepared = this.prepare(&batch, &ends);
                this.keep_batch(batch);
                prepared
            })
            .await;
        let is_new = |prepared: &Prepared| matches!(prepared, Prepared::New { .. });
        if !prepared.iter().any(is_new) {
            return Ok(prepared
                .into_iter()
                .map(|prepared| match prepared {
                    Prepared::Known(entry) => entry,
                    Prepared::New { .. } => unreachable!("none of them is new"),
                })
                .collect());
        }
        let mut filling = self.filling.lock().await;
        let mut entries = Vec::with_capacity(prepared.len());
        for chunk in prepared {
            entries.push(match chunk {
                Prepared::Known(entry) => entry,
                Prepared::New { id, plain, range } => {
                    // Another stream, or this batch, may have brought the same chunk meanwhile.
                    let twin = lock(&self.known).find(&id);
                    match twin {
                        Some(entry) => entry,
                        None => self.place(&mut filling, id, plain, &frames[range]).await?,
                    }
                }
            });
        }
        Ok(entries)
    }

    /// An empty batch with room for [`BATCH_BYTES`].
    fn new_batch(&self) -> Vec<u8> {
        lock(&self.emptied)
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(BATCH_BYTES))
    }

    /// Keeps a batch that was worked on for another one to be filled.
    fn keep_batch(&self, mut batch: Vec<u8>) {
        let mut emptied = lock(&self.emptied);
        if batch.capacity() == BATCH_BYTES && emptied.len() < BATCHES_KEPT {
            batch.clear();
            emptied.push(batch);
        }
    }

    /// Hashes the chunks of a batch and frames those that are new. Runs in the pool.
    fn prepare(&self, batch: &[u8], ends: &[usize]) -> (Vec<Prepared>, Vec<u8>) {
        let mut frames = Vec::new();
        let mut begin = 0;
        let prepared = ends
            .iter()
            .map(|end| {
                let chunk = &batch[begin..*end];
                begin = *end;
                let id = self.tenant.sealer().keys.chunk_id(chunk);
                if let Some(entry) = lock(&self.known).find(&id) {
                    return Prepared::Known(entry);
                }
                let at = frames.len();
                seal::append_frame(chunk, &mut frames);
                Prepared::New {
                    id,
                    plain: u32::try_from(chunk.len()).expect("a chunk is at most some MiB"),
                    range: at..frames.len(),
                }
            })
            .collect();
        (prepared, frames)
    }

    /// Copies a new chunk's frame into the pack that is being filled; waits for an upload to end when it
    /// is full.
    async fn place(
        self: &Arc<Self>,
        filling: &mut Filling,
        id: ChunkId,
        plain: u32,
        frame: &[u8],
    ) -> Result<Entry, RepositoryError> {
        let full = self.tenant.inner.repository.inner.pack_bytes;
        if filling
            .pack
            .as_ref()
            .is_some_and(|pack| pack.bytes.len() + frame.len() > full)
        {
            self.send_off(filling).await?;
        }
        let pack = filling.pack.get_or_insert_with(|| {
            let name = ObjectName::random();
            let mut bytes = Vec::with_capacity(full.max(HEADER_BYTES + frame.len()));
            bytes.extend_from_slice(&seal::header(Kind::Pack, &name.0));
            OpenPack {
                name,
                number: lock(&self.known).number(name, 0, Origin::Own, false),
                bytes,
                entries: Vec::new(),
            }
        });
        let number = |length: usize| u32::try_from(length).expect("a pack is below 4 GiB");
        let entry = Entry {
            id,
            pack: pack.number,
            offset: number(pack.bytes.len()),
            sealed: number(frame.len()),
            plain,
        };
        pack.bytes.extend_from_slice(frame);
        pack.entries.push(entry);
        lock(&self.known).learn(&entry);
        Ok(entry)
    }

    /// Hands the filled pack to an upload, as soon as one is free.
    async fn send_off(self: &Arc<Self>, filling: &mut Filling) -> Result<(), RepositoryError> {
        let permit = Arc::clone(&self.uploads)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        self.healthy()?;
        if let Some(pack) = filling.pack.take() {
            let span = tracing::info_span!(
            target: fettler_telemetry::TRACE,
            parent: &self.span,
                "pack",
                fettler.pack = %pack.name,
                fettler.pack.bytes = pack.bytes.len(),
                fettler.pack.chunks = pack.entries.len(),
            );
            tokio::spawn(Arc::clone(self).upload(pack, permit).instrument(span));
        }
        Ok(())
    }

    /// Closes the pack that is being filled if it holds at least so many bytes.
    async fn close_pack(self: &Arc<Self>, least: usize) -> Result<(), RepositoryError> {
        let mut filling = self.filling.lock().await;
        if filling
            .pack
            .as_ref()
            .is_some_and(|pack| pack.bytes.len() >= least)
        {
            self.send_off(&mut filling).await?;
        }
        Ok(())
    }

    /// Waits until no upload runs.
    async fn uploaded(&self) -> Result<(), RepositoryError> {
        let all = self
            .uploads
            .acquire_many(self.upload_parallel)
            .await
            .expect("the semaphore is never closed");
        drop(all);
        self.healthy()
    }

    /// Seals, records and puts a pack.
    async fn upload(self: Arc<Self>, pack: OpenPack, permit: OwnedSemaphorePermit) {
        let stop = self.stop.clone();
        tokio::select! {
            outcome = self.seal_and_put(pack) => if let Err(error) = outcome {
                self.fail(error);
            },
            () = stop.cancelled() => self.fail(RepositoryError::Stopped),
        }
        drop(permit);
    }

    async fn seal_and_put(&self, pack: OpenPack) -> Result<(), RepositoryError> {
        let OpenPack {
            name,
            number,
            mut bytes,
            entries,
        } = pack;
        let seal = self.tenant.sealer().object(Kind::Pack, name, &name.0);
        let (bytes, entries) = self
            .tenant
            .cpu()
            .run(move || {
                for entry in &entries {
                    let frame = entry.offset as usize..(entry.offset + entry.sealed) as usize;
                    seal.seal_in_place(u64::from(entry.offset), &mut bytes[frame]);
                }
                (Bytes::from(bytes), entries)
            })
            .await;
        let size = bytes.len() as u64;
        self.record(Recorded {
            pack: SegmentPack { name, bytes: size },
            entries,
        })
        .await?;
        reached(Point::PackRecorded);
        self.fence.check().await.map_err(RepositoryError::Fenced)?;
        let path = self.tenant.path(Kind::Pack, name);
        if self.tenant.store().put_new(&path, bytes.into()).await? == Put::Exists {
            return Err(RepositoryError::damaged(
                path,
                "another pack has the random name that was drawn for this one",
            ));
        }
        reached(Point::PackStored);
        let mut known = lock(&self.known);
        let pack = &mut known.packs[number as usize];
        pack.bytes = size;
        pack.durable = true;
        self.bytes_stored.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    /// Writes a segment that records the pack, together with whatever other packs arrived while the last
    /// segment was on its way.
    async fn record(&self, pack: Recorded) -> Result<(), RepositoryError> {
        let own = pack.pack.name;
        lock(&self.unrecorded).push(pack);
        let _one_at_a_time = self.recording.lock().await;
        self.healthy()?;
        let packs = std::mem::take(&mut *lock(&self.unrecorded));
        if !packs.iter().any(|recorded| recorded.pack.name == own) {
            // The segment before this one took it along.
            lock(&self.unrecorded).extend(packs);
            return Ok(());
        }
        self.fence.check().await.map_err(RepositoryError::Fenced)?;
        let head = SegmentHead {
            backup: self.backup,
            packs: packs.iter().map(|recorded| recorded.pack.clone()).collect(),
        };
        let mut index = IndexBuilder::default();
        for recorded in &packs {
            for entry in &recorded.entries {
                index.push(*entry, || recorded.pack.name);
            }
        }
        let name = ObjectName::random();
        let bytes = self.tenant.sealer().seal(
            Kind::Segment,
            name,
            &[&seal::to_json(&head), &index.take().encode()],
        );
        let path = object_store::path::Path::from(format!(
            "{}/{name}",
            self.tenant.inner.folder.segments(self.name)
        ));
        let written = self.tenant.store().put_new(&path, bytes.into()).await;
        if let Err(error) = &written {
            // The other packs of this segment must not be put either.
            self.fail(error.clone());
        }
        written.map(drop)
    }

    /// Renews the announcement, and fails the backup when it was lost (rule 21).
    async fn renew(&self) -> Result<(), RepositoryError> {
        if without(Rule::Announcement) {
            return Ok(());
        }
        self.fence.check().await.map_err(RepositoryError::Fenced)?;
        let path = self.tenant.path(Kind::Announcement, self.name);
        let store = self.tenant.store();
        let lost = |why: &str| RepositoryError::LostAnnouncement {
            backup: self.backup,
            why: why.to_owned(),
        };
        match self.tenant.read_manifest_named(self.name).await? {
            Some(Found::Tombstone { why }) => return Err(lost(&why)),
            Some(Found::Backup(_)) => return Err(lost("another attempt has committed it")),
            None => {}
        }
        if store.size(&path).await?.is_none() {
            return Err(lost("its announcement was taken away"));
        }
        let bytes =
            self.tenant
                .sealer()
                .seal_json(Kind::Announcement, self.name, &self.announcement);
        store.put_over(&path, bytes).await
    }

    async fn renew_for_ever(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            match self.renew().await {
                Ok(()) => {}
                // The grace is far longer than one renewal: the next one may succeed.
                Err(error) if error.class() == fettler_model::ErrorClass::Transient => {
                    tracing::warn!(backup = %self.backup, %error, "an announcement could not be renewed");
                }
                Err(error) => {
                    self.fail(error);
                    return;
                }
            }
        }
    }

    /// The packs that finished streams need.
    fn needed_packs(&self) -> Result<Vec<PackUse>, RepositoryError> {
        let known = lock(&self.known);
        let mut packs = Vec::new();
        for pack in known.packs.iter().filter(|pack| pack.used > 0) {
            if !pack.durable {
                return Err(RepositoryError::damaged(
                    self.tenant.path(Kind::Pack, pack.name),
                    "its upload did not end",
                ));
            }
            packs.push(PackUse {
                name: pack.name,
                bytes: pack.bytes,
                used: pack.used,
            });
        }
        packs.sort_by_key(|pack| pack.name);
        Ok(packs)
    }

    /// Looks whether the store lists everything that the manifest will name, with its size (rule 22).
    async fn all_listed(
        &self,
        packs: &[PackUse],
        streams: &[StreamRecord],
    ) -> Result<(), RepositoryError> {
        let indexes = streams
            .iter()
            .flat_map(|stream| &stream.indexes)
            .map(|index| (index.name, index.bytes));
        let packs = packs.iter().map(|pack| (pack.name, pack.bytes));
        for (kind, needed) in [
            (Kind::Pack, packs.collect::<Vec<_>>()),
            (Kind::Index, indexes.collect()),
        ] {
            if needed.is_empty() {
                continue;
            }
            let listed = self.tenant.sizes(kind).await?;
            for (name, bytes) in needed {
                let found = listed.get(&name).copied();
                if found != Some(bytes) {
                    let what = found.map_or_else(
                        || "it is missing though it was written".to_owned(),
                        |found| format!("it has {found} bytes instead of {bytes}"),
                    );
                    // The next attempt stores anew what it held.
                    self.tenant.mark_damaged(name, &what).await?;
                    return Err(RepositoryError::damaged(self.tenant.path(kind, name), what));
                }
            }
        }
        Ok(())
    }

    async fn put_manifest(&self, manifest: Manifest) -> Result<Committed, RepositoryError> {
        let tenant = &self.tenant;
        let path = tenant.path(Kind::Manifest, self.name);
        let lost = |why: &str| RepositoryError::LostAnnouncement {
            backup: self.backup,
            why: why.to_owned(),
        };
        let object = tenant.seal_manifest(self.name, &manifest);
        reached(Point::ManifestNext);
        self.fence.check().await.map_err(RepositoryError::Fenced)?;
        let put = tenant.store().put_new(&path, object.clone().into()).await?;
        if put == Put::Exists {
            // Another attempt, or a collection that gave the backup up, was first.
            let committed = match tenant.read_manifest_named(self.name).await? {
                Some(Found::Backup(manifest)) => *manifest,
                Some(Found::Tombstone { why }) => return Err(lost(&why)),
                None => return Err(lost("its manifest was taken away again")),
            };
            self.clean_up().await;
            return Ok(Committed {
                manifest: committed,
                adopted: true,
            });
        }
        reached(Point::ManifestWritten);
        if tenant.store().get(&path).await?.as_ref() != Some(&object) {
            return Err(RepositoryError::damaged(
                path,
                "what is read back is not what was written",
            ));
        }
        if tenant.has(Kind::Forgotten, self.name).await? {
            // An earlier attempt had committed it, and it was forgotten since: what it named may be gone.
            tenant.store().delete(&path).await?;
            return Err(lost("it was committed before and then forgotten"));
        }
        self.clean_up().await;
        Ok(Committed {
            manifest,
            adopted: false,
        })
    }

    /// Takes the announcement away. The backup is committed: what is left here is collected later.
    async fn clean_up(&self) {
        if let Err(error) = self.tenant.end_announcement(self.backup).await {
            tracing::warn!(backup = %self.backup, %error, "the announcement of a committed backup was left behind");
        }
    }
}

/// A stream that is being written. Dropping it without [`StreamWriter::finish`] leaves no stream.
pub struct StreamWriter {
    inner: Arc<Inner>,
    name: String,
    chunker: Arc<Chunker>,
    pending: Vec<u8>,
    in_flight: VecDeque<JoinHandle<Result<Vec<Entry>, RepositoryError>>>,
    index: IndexBuilder,
    indexes: Vec<IndexReference>,
    bytes: u64,
    finished: bool,
}

impl fmt::Debug for StreamWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamWriter")
            .field("name", &self.name)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        for batch in &self.in_flight {
            batch.abort();
        }
        if !self.finished {
            // The name is free again.
            lock(&self.inner.streams).remove(&self.name);
        }
    }
}

impl StreamWriter {
    /// Adds bytes; waits while the stages behind are full. A call that is not awaited to its end leaves
    /// the stream unusable.
    ///
    /// # Errors
    ///
    /// When the backup has failed: the fence refused, a write did not succeed, the announcement was lost.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), RepositoryError> {
        self.bytes += bytes.len() as u64;
        self.inner
            .bytes_read
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        while !bytes.is_empty() {
            if self.pending.capacity() == 0 {
                // Short streams take no more memory than they need.
                self.pending = if bytes.len() < BATCH_BYTES / 4 {
                    Vec::with_capacity(bytes.len())
                } else {
                    self.inner.new_batch()
                };
            }
            let room = BATCH_BYTES - self.pending.len();
            let part = bytes.len().min(room);
            self.pending.extend_from_slice(&bytes[..part]);
            bytes.advance(part);
            if self.pending.len() == BATCH_BYTES {
                self.dispatch(false).await?;
            }
        }
        Ok(())
    }

    /// Ends the stream.
    ///
    /// # Errors
    ///
    /// As [`StreamWriter::write`].
    pub async fn finish(mut self, end: StreamEnd) -> Result<StreamRecord, RepositoryError> {
        self.dispatch(true).await?;
        while !self.in_flight.is_empty() {
            self.collect().await?;
        }
        let mut record = StreamRecord {
            name: self.name.clone(),
            bytes: self.bytes,
            rows: end.rows,
            unchanged_marker: end.unchanged_marker,
            indexes: Vec::new(),
            inline: None,
        };
        if self.index.len() > MAX_INLINE_ENTRIES {
            self.flush_index().await?;
        } else if self.index.len() > 0 {
            use base64::Engine;
            let list = self.index.take().encode();
            record.inline = Some(base64::engine::general_purpose::STANDARD.encode(list));
        }
        record.indexes = std::mem::take(&mut self.indexes);
        self.finished = true;
        lock(&self.inner.streams).insert(self.name.clone(), Some(record.clone()));
        Ok(record)
    }

    /// Cuts what is pending and hands the chunks on; what is behind the last cut stays.
    async fn dispatch(&mut self, last: bool) -> Result<(), RepositoryError> {
        self.inner.healthy()?;
        if self.pending.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.pending);
        let chunker = Arc::clone(&self.chunker);
        let (mut batch, ends) = self
            .inner
            .tenant
            .cpu()
            .run(move || {
                let ends = chunker.cuts(&batch, last);
                (batch, ends)
            })
            .await;
        let end = ends.last().copied().unwrap_or(0);
        if !last {
            self.pending = self.inner.new_batch();
            self.pending.extend_from_slice(&batch[end..]);
        }
        batch.truncate(end);
        while self.in_flight.len() >= BATCHES_IN_FLIGHT {
            self.collect().await?;
        }
        self.in_flight.push_back(tokio::spawn(
            Arc::clone(&self.inner)
                .store_batch(batch, ends)
                .in_current_span(),
        ));
        Ok(())
    }

    /// Waits for the oldest batch and lists its chunks.
    async fn collect(&mut self) -> Result<(), RepositoryError> {
        let Some(batch) = self.in_flight.front_mut() else {
            return Ok(());
        };
        let outcome = match batch.await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(RepositoryError::Stopped),
        };
        self.in_flight.pop_front();
        let entries = outcome?;
        {
            let mut known = lock(&self.inner.known);
            let mut new = 0;
            for entry in entries {
                new += known.count(&entry);
                let name = known.packs[entry.pack as usize].name;
                self.index.push(entry, || name);
            }
            self.inner.bytes_new.fetch_add(new, Ordering::Relaxed);
        }
        if self.index.len() >= MAX_ENTRIES {
            self.flush_index().await?;
        }
        Ok(())
    }

    /// Writes the list of chunks as an object.
    async fn flush_index(&mut self) -> Result<(), RepositoryError> {
        let inner = &self.inner;
        let tenant = &inner.tenant;
        let name = ObjectName::random();
        let list = self.index.take();
        let sealer = tenant.sealer().clone();
        let object = tenant
            .cpu()
            .run(move || sealer.seal(Kind::Index, name, &[&list.encode()]))
            .await;
        let bytes = object.len() as u64;
        inner.fence.check().await.map_err(RepositoryError::Fenced)?;
        let path = tenant.path(Kind::Index, name);
        if tenant.store().put_new(&path, object.into()).await? == Put::Exists {
            return Err(RepositoryError::damaged(
                path,
                "another index has the random name that was drawn for this one",
            ));
        }
        inner.bytes_stored.fetch_add(bytes, Ordering::Relaxed);
        self.indexes.push(IndexReference { name, bytes });
        Ok(())
    }
}

/// Locks state that no panic can leave half-changed: each holder makes one short change.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
