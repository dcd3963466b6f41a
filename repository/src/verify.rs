//! Looking whether what was stored is still there and still what was stored: one backup, or everything.
//! What is found damaged is recorded, so that no later backup inherits it (rule 24).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use fettler_model::BackupId;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    Damage, Manifest, RepositoryError, TenantRepository,
    backups::Found,
    index::Entry,
    layout::{Kind, ObjectName, random_bytes},
    reader::open_chunk,
    seal::{Sealer, read_header},
};

/// Packs that are read at once: each is in memory as a whole.
const PACKS_AT_ONCE: usize = 2;

/// Damaged chunks of one pack that are reported one by one.
const MOST_DAMAGES_OF_A_PACK: usize = 16;

/// How thoroughly is looked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Depth {
    /// Manifest, indexes, and that every pack is there with its size.
    Listing,
    /// Besides, so many of a hundred packs, chosen by chance, read and authenticated.
    Sample {
        /// Out of a hundred; at least one pack.
        percent: f64,
    },
    /// Every byte.
    Everything,
}

/// What a verify found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VerifyReport {
    /// Which backup was looked at.
    pub backup: BackupId,
    /// What is damaged; nothing when all is well.
    pub damaged: Vec<Damage>,
    /// Packs that the backup needs.
    pub packs: u64,
    /// Packs that were read.
    pub packs_read: u64,
    /// Bytes that were read and authenticated.
    pub bytes_read: u64,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.damaged.is_empty()
    }
}

/// What a verification of a backup has read and found sound: another attempt reads the rest (P3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The names of the packs.
    packs: BTreeSet<String>,
    /// The bytes in them.
    bytes: u64,
}

impl Verified {
    /// The bytes that need not be read again.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What a check of the whole repository found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CheckReport {
    /// Backups that were looked at.
    pub backups: u64,
    /// What is damaged or missing.
    pub damaged: Vec<Damage>,
    /// Backups that need something that is damaged.
    pub incomplete: Vec<BackupId>,
    /// Backups that the caller knows, and that are neither there nor were forgotten on purpose.
    pub vanished: Vec<BackupId>,
    /// Packs that backups need.
    pub packs: u64,
    /// Packs that were read.
    pub packs_read: u64,
    /// Bytes that were read and authenticated.
    pub bytes_read: u64,
    /// Packs that no backup names; a collection removes them in time.
    pub packs_without_backup: u64,
}

impl CheckReport {
    /// Whether nothing is damaged or has vanished.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.damaged.is_empty() && self.vanished.is_empty()
    }
}

/// A chunk of a pack, and where it is needed.
#[derive(Clone, Copy)]
struct Needed {
    entry: Entry,
    /// Place of the stream in the list of streams.
    stream: u32,
    offset: u64,
}

/// A pack that is to be there.
#[derive(Default)]
struct ExpectedPack {
    bytes: u64,
    chunks: Vec<Needed>,
}

impl TenantRepository {
    /// Looks at one backup. `progress` is told the bytes of each pack that was read.
    ///
    /// # Errors
    ///
    /// When there is no such backup, the store does not answer, or `stop` is cancelled. Damage is no
    /// error but stands in the report.
    pub async fn verify(
        &self,
        id: BackupId,
        depth: Depth,
        progress: &mut (dyn FnMut(u64) + Send),
        stop: &CancellationToken,
    ) -> Result<VerifyReport, RepositoryError> {
        let nothing = Mutex::default();
        self.verify_on(id, depth, &nothing, progress, stop).await
    }

    /// The same, going on from what was found sound before; what is found sound now is added to it. The report counts
    /// both.
    ///
    /// # Errors
    ///
    /// As [`TenantRepository::verify`].
    pub async fn verify_on(
        &self,
        id: BackupId,
        depth: Depth,
        verified: &Mutex<Verified>,
        progress: &mut (dyn FnMut(u64) + Send),
        stop: &CancellationToken,
    ) -> Result<VerifyReport, RepositoryError> {
        let mut report = VerifyReport {
            backup: id,
            damaged: Vec::new(),
            packs: 0,
            packs_read: 0,
            bytes_read: 0,
        };
        let manifest = match self.manifest(id).await {
            Ok(manifest) => manifest,
            Err(RepositoryError::Damaged(damage)) => {
                if self.inner.repository.writable().is_ok() {
                    let name = self.sealer().keys.backup_name(id);
                    self.mark_damaged(name, &damage.what).await?;
                }
                report.damaged.push(damage);
                return Ok(report);
            }
            Err(error) => return Err(error),
        };
        let mut look = Look::new(self).await?;
        look.expect(&manifest).await?;
        report.packs = look.packs.len() as u64;
        look.listed_sizes();
        let mut chosen = look.choose(match depth {
            Depth::Listing => None,
            Depth::Sample { percent } => Some(percent),
            Depth::Everything => Some(100.0),
        });
        {
            // Of a pack that is not there any more, or that this backup does not need, nothing was verified.
            let mut verified = verified.lock().unwrap_or_else(PoisonError::into_inner);
            let (mut packs, mut bytes) = (BTreeSet::new(), 0);
            chosen.retain(|(name, pack)| {
                let name = name.to_string();
                let known = verified.packs.contains(&name);
                if known {
                    packs.insert(name);
                    bytes += pack.bytes;
                }
                !known
            });
            (report.packs_read, report.bytes_read) = (packs.len() as u64, bytes);
            *verified = Verified { packs, bytes };
        }
        let (packs, bytes) = look.read(chosen, Some(verified), progress, stop).await?;
        report.packs_read += packs;
        report.bytes_read += bytes;
        report.damaged = look.finish().await?;
        Ok(report)
    }

    /// Looks at everything of the tenant's: every manifest, every index, every pack with its size, and the
    /// bytes of so many of a hundred packs. `known` are the backups that the caller's catalogue believes
    /// to be here.
    ///
    /// # Errors
    ///
    /// When the store does not answer. Damage is no error but stands in the report.
    pub async fn check(
        &self,
        read_percent: Option<f64>,
        known: &[BackupId],
        progress: &mut (dyn FnMut(u64) + Send),
        stop: &CancellationToken,
    ) -> Result<CheckReport, RepositoryError> {
        let mut report = CheckReport::default();
        let mut look = Look::new(self).await?;
        let forgotten = self.names(Kind::Forgotten).await?;
        let held = self.names(Kind::Hold).await?;
        let mut present = HashSet::new();
        let mut manifests = Vec::new();
        for listed in self.list(Kind::Manifest).await? {
            if stop.is_cancelled() {
                return Err(RepositoryError::Stopped);
            }
            let Some(name) = listed.name() else {
                look.damaged.push(Damage::of(
                    &*listed.path.to_string(),
                    "it has no manifest's name",
                ));
                continue;
            };
            match self.read_manifest_named(name).await {
                Ok(Some(Found::Backup(manifest))) => {
                    present.insert(manifest.id());
                    if !forgotten.contains(&name) || held.contains(&name) {
                        look.expect(&manifest).await?;
                        manifests.push(*manifest);
                    }
                }
                Ok(_) => {}
                Err(RepositoryError::Damaged(damage)) => {
                    look.marks.push((name, damage.what.clone()));
                    look.damaged.push(damage);
                }
                Err(error @ RepositoryError::NewerFormat { .. }) => {
                    look.damaged
                        .push(Damage::of(listed.path.to_string(), error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        for id in known {
            let name = self.sealer().keys.backup_name(*id);
            if !present.contains(id) && !forgotten.contains(&name) {
                report.vanished.push(*id);
            }
        }
        report.backups = manifests.len() as u64;
        report.packs = look.packs.len() as u64;
        report.packs_without_backup = look
            .listed_packs
            .keys()
            .filter(|name| !look.packs.contains_key(name))
            .count() as u64;
        look.listed_sizes();
        let chosen = look.choose(read_percent);
        (report.packs_read, report.bytes_read) = look.read(chosen, None, progress, stop).await?;
        report.damaged = look.finish().await?;
        let (damaged_logs, bytes) = self.check_logs(read_percent.is_some(), progress).await?;
        report.damaged.extend(damaged_logs);
        report.bytes_read += bytes;
        let damaged = self.names(Kind::Damage).await?;
        report.incomplete = manifests
            .iter()
            .filter(|manifest| crate::backups::needs_any(manifest, &damaged))
            .map(Manifest::id)
            .collect();
        Ok(report)
    }
}

/// A look at what some backups need.
struct Look<'a> {
    tenant: &'a TenantRepository,
    listed_packs: BTreeMap<ObjectName, u64>,
    listed_indexes: BTreeMap<ObjectName, u64>,
    streams: Vec<String>,
    packs: BTreeMap<ObjectName, ExpectedPack>,
    /// Chunks that are expected already, by pack and offset: backups share most of them.
    chunks: HashSet<(ObjectName, u32)>,
    indexes: HashSet<ObjectName>,
    damaged: Vec<Damage>,
    /// Objects to be recorded as damaged.
    marks: Vec<(ObjectName, String)>,
}

impl<'a> Look<'a> {
    async fn new(tenant: &'a TenantRepository) -> Result<Self, RepositoryError> {
        Ok(Self {
            tenant,
            listed_packs: tenant.sizes(Kind::Pack).await?,
            listed_indexes: tenant.sizes(Kind::Index).await?,
            streams: Vec::new(),
            packs: BTreeMap::new(),
            chunks: HashSet::new(),
            indexes: HashSet::new(),
            damaged: Vec::new(),
            marks: Vec::new(),
        })
    }

    /// Reads the indexes of a backup and notes what it needs.
    async fn expect(&mut self, manifest: &Manifest) -> Result<(), RepositoryError> {
        for (name, bytes) in manifest.pack_sizes() {
            self.packs.entry(name).or_default().bytes = bytes;
        }
        for stream in &manifest.streams {
            let number = u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
            let all_known = stream.inline.is_none()
                && stream
                    .indexes
                    .iter()
                    .all(|index| self.indexes.contains(&index.name));
            if all_known {
                continue;
            }
            self.streams.push(stream.name.clone());
            let mut missing = false;
            for index in &stream.indexes {
                if self.indexes.insert(index.name) {
                    let found = self.listed_indexes.get(&index.name).copied();
                    missing |= found.is_none();
                    if found != Some(index.bytes) {
                        self.index_damage(index.name, &stream.name, size_told(found, index.bytes));
                    }
                }
            }
            if missing {
                continue;
            }
            let mut offset = 0;
            let mut parts = std::pin::pin!(self.tenant.index_parts(stream.clone()));
            let mut references = stream.indexes.iter();
            loop {
                let reference = references.next();
                match parts.try_next().await {
                    Ok(None) => break,
                    Ok(Some(index)) => {
                        for entry in &index.entries {
                            let name = index.packs[entry.pack as usize];
                            if self.chunks.insert((name, entry.offset)) {
                                self.packs.entry(name).or_default().chunks.push(Needed {
                                    entry: *entry,
                                    stream: number,
                                    offset,
                                });
                            }
                            offset += u64::from(entry.plain);
                        }
                    }
                    Err(RepositoryError::Damaged(damage)) => {
                        if let Some(reference) = reference {
                            self.index_damage(reference.name, &stream.name, damage.what);
                        } else {
                            self.damaged.push(Damage {
                                stream: Some(stream.name.clone()),
                                ..damage
                            });
                        }
                        offset = u64::MAX;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            if offset != u64::MAX && offset != stream.bytes {
                let name = self.tenant.sealer().keys.backup_name(manifest.id());
                self.damaged.push(Damage {
                    object: self.tenant.path(Kind::Manifest, name).to_string(),
                    stream: Some(stream.name.clone()),
                    offset: Some(offset),
                    what: format!("its chunks make {offset} bytes instead of {}", stream.bytes),
                });
            }
        }
        Ok(())
    }

    fn index_damage(&mut self, name: ObjectName, stream: &str, what: String) {
        let object = self.tenant.path(Kind::Index, name).to_string();
        if self.damaged.iter().any(|damage| damage.object == object) {
            return;
        }
        self.marks.push((name, what.clone()));
        self.damaged.push(Damage {
            object,
            stream: Some(stream.to_owned()),
            offset: None,
            what,
        });
    }

    /// Compares the sizes of packs with the listing; what does not fit is not read.
    fn listed_sizes(&mut self) {
        let wrong: Vec<(ObjectName, String)> = self
            .packs
            .iter()
            .filter_map(|(name, pack)| {
                let found = self.listed_packs.get(name).copied();
                (found != Some(pack.bytes)).then(|| (*name, size_told(found, pack.bytes)))
            })
            .collect();
        for (name, what) in wrong {
            let pack = self.packs.remove(&name).unwrap_or_default();
            let first = pack
                .chunks
                .iter()
                .min_by_key(|needed| (needed.stream, needed.offset));
            self.damaged.push(Damage {
                object: self.tenant.path(Kind::Pack, name).to_string(),
                stream: first.map(|needed| self.streams[needed.stream as usize].clone()),
                offset: first.map(|needed| needed.offset),
                what: what.clone(),
            });
            self.marks.push((name, what));
        }
    }

    /// Takes out the packs that are to be read: all, or so many of a hundred by chance.
    fn choose(&mut self, percent: Option<f64>) -> Vec<(ObjectName, ExpectedPack)> {
        let Some(percent) = percent else {
            return Vec::new();
        };
        let mut all: Vec<_> = std::mem::take(&mut self.packs).into_iter().collect();
        let wanted = (all.len() as f64 * percent.clamp(0.0, 100.0) / 100.0).ceil() as usize;
        let wanted = wanted.max(1).min(all.len());
        // The first steps of a shuffle.
        for at in 0..wanted {
            let random = usize::try_from(u64::from_le_bytes(random_bytes()) >> 1)
                .expect("pointers have 64 bits on all machines that are supported");
            let other = at + random % (all.len() - at);
            all.swap(at, other);
        }
        all.truncate(wanted);
        all
    }

    /// Reads packs and opens every chunk in them that is needed.
    async fn read(
        &mut self,
        chosen: Vec<(ObjectName, ExpectedPack)>,
        verified: Option<&Mutex<Verified>>,
        progress: &mut (dyn FnMut(u64) + Send),
        stop: &CancellationToken,
    ) -> Result<(u64, u64), RepositoryError> {
        let (mut packs, mut total) = (0, 0);
        let tenant = self.tenant;
        let mut reading = futures::stream::iter(chosen.into_iter().map(|(name, pack)| {
            let sealer = tenant.sealer().clone();
            async move {
                let path = tenant.path(Kind::Pack, name);
                let bytes = tenant.store().get(&path).await?;
                let object = path.to_string();
                let read = tenant
                    .cpu()
                    .run(move || match bytes {
                        Some(bytes) => (
                            bytes.len() as u64,
                            examine(&sealer, name, &object, &bytes, &pack),
                        ),
                        None => (0, vec![(None, "it is missing".to_owned())]),
                    })
                    .await;
                Ok::<_, RepositoryError>((name, path, read))
            }
        }))
        .buffer_unordered(PACKS_AT_ONCE);
        loop {
            let next = tokio::select! {
                next = reading.next() => next,
                () = stop.cancelled() => return Err(RepositoryError::Stopped),
            };
            let Some(next) = next else { break };
            let (name, path, (bytes, found)) = next?;
            packs += 1;
            total += bytes;
            progress(bytes);
            if let (Some(verified), true) = (verified, found.is_empty()) {
                let mut verified = verified.lock().unwrap_or_else(PoisonError::into_inner);
                verified.packs.insert(name.to_string());
                verified.bytes += bytes;
            }
            if let Some((_, what)) = found.first() {
                self.marks.push((name, what.clone()));
            }
            for (needed, what) in found {
                self.damaged.push(Damage {
                    object: path.to_string(),
                    stream: needed.map(|needed| self.streams[needed.stream as usize].clone()),
                    offset: needed.map(|needed| needed.offset),
                    what,
                });
            }
        }
        Ok((packs, total))
    }

    /// Records what is damaged, where the store lets itself be written to, and gives the damages back.
    async fn finish(mut self) -> Result<Vec<Damage>, RepositoryError> {
        if self.tenant.inner.repository.writable().is_ok() {
            for (name, what) in &self.marks {
                self.tenant.mark_damaged(*name, what).await?;
            }
        }
        self.damaged.sort_by(|one, other| {
            (&one.object, &one.stream, one.offset).cmp(&(
                &other.object,
                &other.stream,
                other.offset,
            ))
        });
        Ok(self.damaged)
    }
}

fn size_told(found: Option<u64>, bytes: u64) -> String {
    found.map_or_else(
        || "it is missing".to_owned(),
        |found| format!("it has {found} bytes instead of {bytes}"),
    )
}

/// What is wrong with a pack, and where that is needed. Runs in the pool.
fn examine(
    sealer: &Sealer,
    name: ObjectName,
    object: &str,
    bytes: &Bytes,
    pack: &ExpectedPack,
) -> Vec<(Option<Needed>, String)> {
    let first = pack
        .chunks
        .iter()
        .min_by_key(|needed| (needed.stream, needed.offset))
        .copied();
    match read_header(object, Kind::Pack, bytes) {
        Ok(salt) if salt == name.0 => {}
        Ok(_) => return vec![(first, "its header is the one of another pack".to_owned())],
        Err(RepositoryError::Damaged(damage)) => return vec![(first, damage.what)],
        Err(error) => return vec![(first, error.to_string())],
    }
    let seal = sealer.object(Kind::Pack, name, &name.0);
    let mut found = Vec::new();
    for needed in &pack.chunks {
        let begin = needed.entry.offset as usize;
        let outcome = bytes
            .get(begin..begin + needed.entry.sealed as usize)
            .ok_or("it was cut short")
            .and_then(|frame| open_chunk(&seal, sealer, &needed.entry, frame));
        if let Err(what) = outcome {
            found.push((Some(*needed), what.to_owned()));
            if found.len() == MOST_DAMAGES_OF_A_PACK {
                break;
            }
        }
    }
    found
}
