//! Collection: deleting what no backup needs, in two phases and never on a guess (rule 23).
//!
//! One call does what is due. It first lists the running backups, then the manifests, then what lies in the
//! store: in this order nothing that is committed meanwhile is overlooked. What nobody names is marked.
//! What was marked a grace time ago, and still is named by nobody, is deleted. A running backup that has
//! been silent for longer than the grace is given up: a tombstone takes its manifest's name, so that
//! it can never be committed, whichever comes first (rule 22).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use fettler_fault_points::{Point, reached};
use fettler_model::{BackupId, Timestamp};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    Fence, Manifest, RepositoryError, TenantRepository, Unfenced,
    announce::Announcement,
    backups::Found,
    layout::{Kind, ObjectName, TRIALS},
    store::{Listed, Put, SMALL_REQUESTS},
};

/// Clocks of stores count whole seconds, and parts of one store may differ by a little: what was written
/// so shortly before a running backup was announced counts as its own. A shorter grace says that the
/// store's clock is better.
const CLOCK_MARGIN: Duration = Duration::from_secs(60);

/// A collection that has not renewed its lock for so long, or for the grace if that is shorter, is dead.
const LOCK_STALE_AFTER: Duration = Duration::from_secs(30 * 60);

/// A collection renews its lock when one part in so many of that time has passed.
const LOCK_RENEW_PART: u32 = 6;

/// Objects that are deleted between two looks at fence, lock and stop.
const DELETE_BATCH: usize = 256;

/// How long records of forgettings and tombstones are kept: longer than any attempt lives or any other
/// fleet's catalogue goes without looking.
const KEEP_RECORDS: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// How a collection is run.
#[derive(Clone)]
pub struct CollectOptions {
    /// How long an object that nobody names is kept, and how long a running backup may be silent.
    pub grace: Duration,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Asks for an early end; what was not done then is done by the next collection.
    pub stop: CancellationToken,
    /// Asked before each durable effect.
    pub fence: Arc<dyn Fence>,
}

impl fmt::Debug for CollectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectOptions")
            .field("grace", &self.grace)
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}

impl CollectOptions {
    /// A collection with this grace, unfenced.
    #[must_use]
    pub fn with_grace(grace: Duration) -> Self {
        Self {
            grace,
            dry_run: false,
            stop: CancellationToken::new(),
            fence: Arc::new(Unfenced),
        }
    }
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CollectReport {
    /// Objects that were found unnamed and marked now.
    pub marked_objects: u64,
    /// Bytes in them.
    pub marked_bytes: u64,
    /// Objects that were marked earlier and wait for the end of the grace.
    pub waiting_objects: u64,
    /// Objects that were deleted.
    pub deleted_objects: u64,
    /// Bytes in them.
    pub deleted_bytes: u64,
    /// Running backups that were silent for too long and were given up.
    pub given_up: Vec<BackupId>,
    /// Objects that backups need.
    pub needed_objects: u64,
}

/// What the first phase saw, for the second.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Marks {
    manifests: Vec<ObjectName>,
    objects: Vec<ObjectName>,
}

/// Who collects. The object with the highest number counts; each change of hands is a new number that
/// only one can take.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct LockRecord {
    held: bool,
}

impl TenantRepository {
    /// Marks what nobody needs, and deletes what was marked a grace time ago.
    ///
    /// # Errors
    ///
    /// When another collection runs; when a backup vanished without a record of its forgetting, or a
    /// manifest, an index or an announcement cannot be read: then nothing more is deleted. When the
    /// fence or the store refuses.
    pub async fn collect(
        &self,
        options: &CollectOptions,
    ) -> Result<CollectReport, RepositoryError> {
        self.inner.repository.writable()?;
        options
            .fence
            .check()
            .await
            .map_err(RepositoryError::Fenced)?;
        let now = self.store_now().await?;
        if options.dry_run {
            return Collection::new(self, options, now, None).run().await;
        }
        let stale_after = LOCK_STALE_AFTER.min(options.grace);
        let lock = self.take_lock(now, stale_after).await?;
        let mut collection = Collection::new(self, options, now, Some(lock));
        let outcome = collection.run().await;
        let released = match collection.lock {
            Some(lock) => self.release_lock(lock.number).await,
            None => Ok(()),
        };
        let report = outcome?;
        released?;
        Ok(report)
    }

    /// The store's clock, read from an object just written.
    async fn store_now(&self) -> Result<Timestamp, RepositoryError> {
        let path = Path::from(format!("{TRIALS}/{}", ObjectName::random()));
        self.store().put_new(&path, "now".into()).await?;
        let listed = self.store().head(&path).await?;
        self.store().delete(&path).await?;
        listed
            .map(|listed| listed.modified)
            .ok_or_else(|| RepositoryError::StoreUnavailable {
                place: self.place().to_owned(),
                operation: format!("read {path}"),
                what: "what was just written is not there".into(),
            })
    }

    async fn highest_lock(&self) -> Result<(u64, Vec<Listed>), RepositoryError> {
        let listed = self.list(Kind::Lock).await?;
        let number = listed
            .iter()
            .filter_map(Listed::name)
            .map(ObjectName::as_number)
            .max()
            .unwrap_or(0);
        Ok((number, listed))
    }

    async fn take_lock(
        &self,
        now: Timestamp,
        stale_after: Duration,
    ) -> Result<HeldLock, RepositoryError> {
        let busy = || RepositoryError::CollectionRuns {
            place: self.place().to_owned(),
        };
        let (highest, _) = self.highest_lock().await?;
        if highest > 0 {
            let name = ObjectName::number(highest);
            match self.get_json::<LockRecord>(Kind::Lock, name).await {
                Ok(Some((LockRecord { held: true }, since))) if now.since(since) < stale_after => {
                    return Err(busy());
                }
                // It was released, its holder is dead, or it changed hands just now, which the write
                // below finds out.
                Ok(_) => {}
                // A lock that does not read is as good as a dead one's once it is old.
                Err(RepositoryError::Damaged(_)) => {
                    let written = self.store().head(&self.path(Kind::Lock, name)).await?;
                    if written.is_some_and(|lock| now.since(lock.modified) < stale_after) {
                        return Err(busy());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.write_lock(highest + 1, true).await?;
        Ok(HeldLock {
            number: highest + 1,
            renew_every: stale_after / LOCK_RENEW_PART,
            renewed: std::time::Instant::now(),
        })
    }

    /// Takes a lock's number; an error when another one was quicker or has gone on since.
    async fn write_lock(&self, number: u64, held: bool) -> Result<(), RepositoryError> {
        let name = ObjectName::number(number);
        let put = self
            .put_json_new(Kind::Lock, name, &LockRecord { held })
            .await?;
        let (highest, listed) = self.highest_lock().await?;
        if put == Put::Exists || highest != number {
            if put == Put::Created {
                self.store().delete(&self.path(Kind::Lock, name)).await?;
            }
            return Err(RepositoryError::CollectionRuns {
                place: self.place().to_owned(),
            });
        }
        let old = listed
            .into_iter()
            .filter(|listed| listed.name().is_some_and(|name| name.as_number() < number));
        self.store().delete_all(old.map(|listed| listed.path)).await
    }

    async fn release_lock(&self, number: u64) -> Result<(), RepositoryError> {
        match self.write_lock(number + 1, false).await {
            // Somebody took this collection for dead.
            Err(RepositoryError::CollectionRuns { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Whether a collection saw a manifest of this name: a backup that vanished can then be forgotten.
    pub(crate) async fn was_seen_by_a_collection(
        &self,
        name: ObjectName,
    ) -> Result<bool, RepositoryError> {
        for listed in self.list(Kind::Marks).await? {
            let Some(marks) = listed.name() else { continue };
            if let Some((marks, _)) = self.get_json::<Marks>(Kind::Marks, marks).await?
                && marks.manifests.contains(&name)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The lock of a running collection.
struct HeldLock {
    number: u64,
    renew_every: Duration,
    renewed: std::time::Instant,
}

struct Collection<'a> {
    tenant: &'a TenantRepository,
    options: &'a CollectOptions,
    /// The store's clock when the collection began.
    now: Timestamp,
    /// None when nothing is to be changed.
    lock: Option<HeldLock>,
    report: CollectReport,
}

/// What the backups need.
struct Needs {
    manifests: BTreeSet<ObjectName>,
    forgotten: HashSet<ObjectName>,
    objects: HashSet<ObjectName>,
    indexes: BTreeSet<ObjectName>,
    /// What was written later may be a running backup's.
    oldest_running: Timestamp,
}

impl<'a> Collection<'a> {
    fn new(
        tenant: &'a TenantRepository,
        options: &'a CollectOptions,
        now: Timestamp,
        lock: Option<HeldLock>,
    ) -> Self {
        Self {
            tenant,
            options,
            now,
            lock,
            report: CollectReport::default(),
        }
    }

    async fn run(&mut self) -> Result<CollectReport, RepositoryError> {
        // The order of the first two is what makes the whole safe, see above.
        let running = self.running().await?;
        let needs = self.needs(&running).await?;
        let stored = self.stored().await?;
        let unneeded: BTreeMap<ObjectName, &(Kind, Listed)> = stored
            .iter()
            .filter(|(name, (_, listed))| {
                !needs.objects.contains(name) && listed.modified < needs.oldest_running
            })
            .map(|(name, found)| (*name, found))
            .collect();
        self.report.needed_objects = needs.objects.len() as u64;
        let waiting = self.second_phase(&needs, &unneeded).await?;
        self.first_phase(&needs, &unneeded, &waiting).await?;
        self.logs().await?;
        self.tidy(&needs, &stored).await?;
        Ok(self.report.clone())
    }

    /// The running backups, after those that have been silent for too long were given up.
    async fn running(&mut self) -> Result<Vec<(Timestamp, Announcement)>, RepositoryError> {
        let announced = self.tenant.announcements().await.map_err(stopped)?;
        let mut running = Vec::new();
        for (listed, announcement) in announced {
            if !self.is_old(listed.modified) {
                running.push((listed.modified, announcement));
                continue;
            }
            self.report.given_up.push(announcement.backup);
            if self.lock.is_none() {
                continue;
            }
            self.may_go_on().await?;
            let why = "it was silent for so long that a collection took it for dead";
            let buried = self.tenant.bury(announcement.backup, why).await?;
            if buried == Put::Exists
                && let Some(Found::Backup(_)) =
                    self.tenant.read_manifest(announcement.backup).await?
            {
                // It was committed, and only its announcement was left behind.
                self.report.given_up.pop();
            }
            self.tenant.end_announcement(announcement.backup).await?;
        }
        Ok(running)
    }

    /// What manifests and running backups name. Stops when anything cannot be read.
    async fn needs(
        &mut self,
        running: &[(Timestamp, Announcement)],
    ) -> Result<Needs, RepositoryError> {
        let tenant = self.tenant;
        let parents: HashSet<BackupId> = running
            .iter()
            .filter_map(|(_, announcement)| announcement.parent)
            .collect();
        let forgotten: BTreeMap<ObjectName, Timestamp> = tenant
            .list(Kind::Forgotten)
            .await?
            .iter()
            .filter_map(|listed| Some((listed.name()?, listed.modified)))
            .collect();
        let held = tenant.names(Kind::Hold).await?;
        let mut needs = Needs {
            manifests: BTreeSet::new(),
            forgotten: forgotten.keys().copied().collect(),
            objects: HashSet::new(),
            indexes: BTreeSet::new(),
            oldest_running: Timestamp::from_micros(i64::MAX),
        };
        let listed = tenant.list(Kind::Manifest).await?;
        let mut read = futures::stream::iter(listed.into_iter().map(|listed| async move {
            let name = listed.name().ok_or_else(|| {
                RepositoryError::damaged(listed.path.as_ref(), "it has no manifest's name")
            })?;
            let found = tenant.read_manifest_named(name).await?;
            Ok::<_, RepositoryError>((name, listed.modified, found))
        }))
        .buffer_unordered(SMALL_REQUESTS);
        let mut finished_forgettings = Vec::new();
        let mut old_tombstones = Vec::new();
        while let Some((name, modified, found)) = read.try_next().await.map_err(stopped)? {
            match found {
                // Forgotten a grace time ago, so that every backup that could have chosen it as its
                // parent before is among those that run, or has ended.
                Some(Found::Backup(manifest))
                    if !held.contains(&name)
                        && !parents.contains(&manifest.id())
                        && forgotten.get(&name).is_some_and(|when| self.is_old(*when)) =>
                {
                    finished_forgettings.push(tenant.path(Kind::Manifest, name));
                }
                Some(Found::Backup(manifest)) => {
                    needs.manifests.insert(name);
                    needs.take(&manifest);
                }
                Some(Found::Tombstone { .. }) if self.now.since(modified) > KEEP_RECORDS => {
                    old_tombstones.push(tenant.path(Kind::Manifest, name));
                }
                Some(Found::Tombstone { .. }) | None => {}
            }
        }
        drop(read);
        for (written, announcement) in running {
            let name = tenant.sealer().keys.backup_name(announcement.backup);
            for (head, _) in tenant.segments(name).await? {
                needs
                    .objects
                    .extend(head.packs.iter().map(|pack| pack.name));
            }
            let since = announcement
                .since
                .unwrap_or(*written)
                .minus(CLOCK_MARGIN.min(self.options.grace));
            needs.oldest_running = needs.oldest_running.min(since);
        }
        if self.lock.is_some() {
            self.may_go_on().await?;
            finished_forgettings.extend(old_tombstones);
            tenant.store().delete_all(finished_forgettings).await?;
        }
        Ok(needs)
    }

    /// Packs and indexes that are in the store.
    async fn stored(&self) -> Result<BTreeMap<ObjectName, (Kind, Listed)>, RepositoryError> {
        let mut stored = BTreeMap::new();
        for kind in [Kind::Pack, Kind::Index] {
            for listed in self.tenant.list(kind).await? {
                if let Some(name) = listed.name() {
                    stored.insert(name, (kind, listed));
                }
            }
        }
        Ok(stored)
    }

    /// An error unless a manifest that a collection saw, and this one did not, came or was forgotten since this
    /// one looked.
    async fn has_not_vanished(&mut self, manifest: ObjectName) -> Result<(), RepositoryError> {
        let tenant = self.tenant;
        // In the order in which a forgetting writes.
        if tenant.has(Kind::Manifest, manifest).await?
            || tenant.has(Kind::Forgotten, manifest).await?
        {
            return Ok(());
        }
        // A collection that took this one for dead may have tidied the record of the forgetting away.
        self.may_go_on().await?;
        Err(RepositoryError::CollectionStopped {
            why: format!(
                "{} was there at the last collection and has vanished without a record of its forgetting",
                tenant.path(Kind::Manifest, manifest)
            ),
        })
    }

    /// Deletes what was marked a grace time ago and still is not needed. Gives back what was marked and
    /// waits.
    async fn second_phase(
        &mut self,
        needs: &Needs,
        unneeded: &BTreeMap<ObjectName, &(Kind, Listed)>,
    ) -> Result<HashSet<ObjectName>, RepositoryError> {
        let tenant = self.tenant;
        let mut waiting = HashSet::new();
        let mut due = BTreeSet::new();
        let mut done = Vec::new();
        for listed in tenant.list(Kind::Marks).await? {
            let Some(name) = listed.name() else { continue };
            let marks = match tenant.get_json::<Marks>(Kind::Marks, name).await {
                Ok(Some((marks, _))) => marks,
                Ok(None) => continue,
                // What it marked is marked again.
                Err(RepositoryError::Damaged(_)) => {
                    done.push(listed.path);
                    continue;
                }
                Err(error) => return Err(stopped(error)),
            };
            for name in &marks.manifests {
                if !needs.manifests.contains(name) && !needs.forgotten.contains(name) {
                    self.has_not_vanished(*name).await?;
                }
            }
            if self.is_old(listed.modified) {
                due.extend(marks.objects);
                done.push(listed.path);
            } else {
                waiting.extend(marks.objects);
            }
        }
        due.retain(|name| unneeded.contains_key(name));
        self.report.waiting_objects = waiting
            .iter()
            .filter(|name| unneeded.contains_key(name))
            .count() as u64;
        if !due.is_empty() {
            self.all_indexes_read(needs).await?;
        }
        let due: Vec<_> = due.iter().filter_map(|name| unneeded.get(name)).collect();
        for batch in due.chunks(DELETE_BATCH) {
            if self.lock.is_some() {
                self.may_go_on().await?;
                let paths: Vec<_> = batch
                    .iter()
                    .map(|(_, listed)| listed.path.clone())
                    .collect();
                tenant.store().delete_all(paths).await?;
            }
            self.report.deleted_objects += batch.len() as u64;
            self.report.deleted_bytes += batch.iter().map(|(_, listed)| listed.size).sum::<u64>();
        }
        if self.lock.is_some() {
            tenant.store().delete_all(done).await?;
        }
        Ok(waiting)
    }

    /// Whoever cannot read what backups consist of does not delete what they may consist of.
    async fn all_indexes_read(&self, needs: &Needs) -> Result<(), RepositoryError> {
        let tenant = self.tenant;
        futures::stream::iter(
            needs
                .indexes
                .iter()
                .copied()
                .map(|name| async move { tenant.read_index(name).await.map(drop) }),
        )
        .buffer_unordered(SMALL_REQUESTS)
        .try_collect::<()>()
        .await
        .map_err(stopped)
    }

    /// Marks what is not needed and was not marked before.
    async fn first_phase(
        &mut self,
        needs: &Needs,
        unneeded: &BTreeMap<ObjectName, &(Kind, Listed)>,
        waiting: &HashSet<ObjectName>,
    ) -> Result<(), RepositoryError> {
        let tenant = self.tenant;
        let mut objects = Vec::new();
        for (name, (kind, listed)) in unneeded {
            if waiting.contains(name) {
                continue;
            }
            // What the second phase has just deleted is not there any more.
            if self.lock.is_some()
                && self.report.deleted_objects > 0
                && !tenant.has(*kind, *name).await?
            {
                continue;
            }
            objects.push(*name);
            self.report.marked_objects += 1;
            self.report.marked_bytes += listed.size;
        }
        if objects.is_empty() || self.lock.is_none() {
            return Ok(());
        }
        self.may_go_on().await?;
        let marks = Marks {
            manifests: needs.manifests.iter().copied().collect(),
            objects,
        };
        tenant
            .put_json_new(Kind::Marks, ObjectName::random(), &marks)
            .await?;
        reached(Point::CollectMarked);
        Ok(())
    }

    /// Deletes the changes that no backup needs any more.
    async fn logs(&mut self) -> Result<(), RepositoryError> {
        let is_trial = self.lock.is_none();
        if !is_trial {
            self.may_go_on().await?;
        }
        let (objects, bytes) = self
            .tenant
            .prune_logs(self.now, self.options.grace, is_trial)
            .await
            .map_err(stopped)?;
        self.report.deleted_objects += objects;
        self.report.deleted_bytes += bytes;
        Ok(())
    }

    /// Removes what is left of things that are over: segments and damage records of what is gone, records
    /// that nobody can need any more, files that a crash left half-written.
    async fn tidy(
        &mut self,
        needs: &Needs,
        stored: &BTreeMap<ObjectName, (Kind, Listed)>,
    ) -> Result<(), RepositoryError> {
        if self.lock.is_none() {
            return Ok(());
        }
        self.may_go_on().await?;
        let tenant = self.tenant;
        let announced = tenant.names(Kind::Announcement).await?;
        let mut over: Vec<Path> = Vec::new();
        for listed in tenant.list(Kind::Segment).await? {
            let backup = listed.path.parts().rev().nth(1);
            let backup = backup.and_then(|name| name.as_ref().parse::<ObjectName>().ok());
            if backup.is_some_and(|backup| !announced.contains(&backup))
                && self.is_old(listed.modified)
            {
                over.push(listed.path);
            }
        }
        for listed in tenant.list(Kind::Damage).await? {
            let gone = listed.name().is_some_and(|name| {
                !stored.contains_key(&name)
                    && !needs.objects.contains(&name)
                    && !needs.manifests.contains(&name)
            });
            if gone && self.is_old(listed.modified) {
                over.push(listed.path);
            }
        }
        for listed in tenant.list(Kind::Forgotten).await? {
            let gone = listed
                .name()
                .is_some_and(|name| !needs.manifests.contains(&name));
            if gone && self.now.since(listed.modified) > KEEP_RECORDS {
                over.push(listed.path);
            }
        }
        for listed in tenant.store().list(&TRIALS.into()).await? {
            if self.is_old(listed.modified) {
                over.push(listed.path);
            }
        }
        tenant.store().delete_all(over).await?;
        if let Some(folder) = tenant.store().local_folder() {
            let (folder, grace) = (folder.to_owned(), self.options.grace);
            let outcome =
                tokio::task::spawn_blocking(move || remove_staged_files(&folder, grace)).await;
            if let Err(error) = outcome.expect("walking a folder does not panic") {
                tracing::warn!(%error, "half-written files could not be removed");
            }
        }
        Ok(())
    }

    fn is_old(&self, written: Timestamp) -> bool {
        is_old(self.now, self.options.grace, written)
    }

    /// Asked before each durable effect: stop, fence, and whether the lock still is this collection's.
    async fn may_go_on(&mut self) -> Result<(), RepositoryError> {
        if self.options.stop.is_cancelled() {
            return Err(RepositoryError::Stopped);
        }
        self.options
            .fence
            .check()
            .await
            .map_err(RepositoryError::Fenced)?;
        let Some(lock) = &mut self.lock else {
            return Ok(());
        };
        if lock.renewed.elapsed() > lock.renew_every {
            self.tenant.write_lock(lock.number + 1, true).await?;
            lock.number += 1;
            lock.renewed = std::time::Instant::now();
        } else if self.tenant.highest_lock().await?.0 != lock.number {
            return Err(RepositoryError::CollectionRuns {
                place: self.tenant.place().to_owned(),
            });
        }
        Ok(())
    }
}

/// Whether what was written then is older than the grace.
pub(crate) fn is_old(now: Timestamp, grace: Duration, written: Timestamp) -> bool {
    now.since(written) >= grace && now >= written
}

impl Needs {
    fn take(&mut self, manifest: &Manifest) {
        self.objects
            .extend(manifest.packs.iter().map(|pack| pack.name));
        for index in manifest.indexes() {
            self.objects.insert(index.name);
            self.indexes.insert(index.name);
        }
    }
}

/// An error that keeps a collection from knowing what is needed.
fn stopped(error: RepositoryError) -> RepositoryError {
    match error {
        RepositoryError::Damaged(damage) => RepositoryError::CollectionStopped {
            why: format!("{damage}"),
        },
        RepositoryError::NewerFormat { .. } => RepositoryError::CollectionStopped {
            why: error.to_string(),
        },
        other => other,
    }
}

/// Removes the files that writes leave beside their place when the process dies: they have a `#` in
/// their names and are no objects.
fn remove_staged_files(folder: &std::path::Path, grace: Duration) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            remove_staged_files(&entry.path(), grace)?;
        } else if kind.is_file()
            && entry.file_name().to_string_lossy().contains('#')
            && let Ok(metadata) = entry.metadata()
            && metadata
                .modified()?
                .elapsed()
                .is_ok_and(|age| age >= grace.max(CLOCK_MARGIN))
        {
            match std::fs::remove_file(entry.path()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}
