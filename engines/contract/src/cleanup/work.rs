//! The removal of records and their return: what is the same for every engine whose archive is made of records. Batches of a
//! [`Pace`], several passes over what somebody holds, checkpoints, and the sum of what came of it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use fettler_fault_points::{Point, reached};
use fettler_model::{CleanupRemoved, CleanupUndone};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::sleep;

use super::{
    CleanupTerms, Pace,
    records::{Record, RecordReader, record_prefix, record_segments},
};
use crate::{EngineContext, EngineError, StreamSource};

/// Bytes of a batch.
const BATCH_BYTES: u64 = 4 << 20;
/// Rows that an undo puts back at once.
const UNDO_ROWS: usize = 500;
/// Keys that are told.
pub(super) const MOST_TOLD: usize = 100;
/// How often a batch is tried while somebody holds the database.
const TRIES: u32 = 5;
/// How often what somebody holds is tried.
const PASSES: u32 = 3;
const BETWEEN_PASSES: Duration = Duration::from_secs(1);
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);
const LOOK_AT_REPLICAS: Duration = Duration::from_secs(1);
/// When a database that somebody holds is to be looked at again.
const BUSY_RETRY: Duration = Duration::from_secs(30);

/// What became of a thing that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was removed.
    Removed,
    /// It was not there any more.
    Gone,
    /// It is not what the archive holds, and stays.
    Changed,
    /// Something else refers to it, and it stays.
    Referenced,
    /// Somebody holds it; it is tried again later.
    Busy,
}

/// What became of a thing that was to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// It was put back, or would be.
    Restored,
    /// It is there as it was.
    There,
    /// Its place is taken by something else, which stays.
    Taken,
    /// It refers to something that is not there.
    WithoutParent,
}

/// What an engine does with one batch.
#[async_trait]
pub trait RecordRemover: Send {
    /// Removes those of the records that still are what the archive holds, which the server finds in the very command that
    /// removes; says what became of each, in their order. May be repeated.
    ///
    /// # Errors
    ///
    /// [`EngineError::Busy`] where nothing was done because somebody holds the database: it is tried again, in smaller pieces.
    async fn remove(&mut self, records: &[Record]) -> Result<Vec<Fate>, EngineError>;

    /// A record's key for people.
    fn shown(&self, record: &Record) -> String;

    /// Whether a replica is further behind than this. What cannot be told is not waited for.
    ///
    /// # Errors
    ///
    /// Those of asking.
    async fn is_behind(&mut self, most: Duration) -> Result<bool, EngineError> {
        let _no_replicas_are_known = most;
        Ok(false)
    }
}

/// What an engine does to put one batch back.
#[async_trait]
pub trait RecordRestorer: Send {
    /// Puts back what is not there, and nothing else; with `dry_run` only looks. Says what became of each, in their order. May
    /// be repeated.
    ///
    /// # Errors
    ///
    /// Those of the server.
    async fn put_back(
        &mut self,
        records: &[Record],
        dry_run: bool,
    ) -> Result<Vec<Return>, EngineError>;

    /// A record's key for people.
    fn shown(&self, record: &Record) -> String;
}

/// How many stay, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Stays {
    changed: u64,
    referenced: u64,
    busy: u64,
}

impl Stays {
    const fn sum(self) -> u64 {
        self.changed + self.referenced + self.busy
    }

    const fn add(&mut self, other: Self) {
        self.changed += other.changed;
        self.referenced += other.referenced;
        self.busy += other.busy;
    }
}

/// How far a removal is, as the checkpoint keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Removal {
    /// Passes that were begun before this one.
    pass: u32,
    /// Segments of this pass that are not done, the current one first; all where none was begun.
    todo: Option<VecDeque<String>>,
    /// Records of the current segment that are done.
    at_record: u64,
    /// What stays of the current segment so far.
    current: Stays,
    removed_in_pass: u64,
    /// Segments of which something stays that another pass may remove.
    again: Vec<String>,
    /// What stays of those.
    again_stays: Stays,
    /// What stays of the segments that are done with.
    stays: Stays,
    removed: u64,
    waits_for_locks: u64,
    waits_for_replicas: u64,
    longest_ms: u64,
}

/// Removes what the records of the archive's first thing say. Goes on from the context's checkpoint.
///
/// # Errors
///
/// Those of the remover, the archive and the checkpoints; [`EngineError::Stopped`].
pub async fn remove_records(
    context: &EngineContext,
    archive: &dyn StreamSource,
    terms: &CleanupTerms,
    remover: &mut dyn RecordRemover,
) -> Result<CleanupRemoved, EngineError> {
    let mut work = Removing {
        context,
        archive,
        terms,
        pace: Pace::new(terms),
        progress: load(context).await?,
        began: Instant::now(),
        saved: Instant::now(),
        looked: None,
        told: Vec::new(),
    };
    let done = work.passes(remover).await;
    if matches!(done, Err(EngineError::Stopped)) {
        work.save().await?;
    }
    done?;
    reached(Point::CleanupRemoved);
    let archived: u64 = archive.streams().iter().map(|stream| stream.rows).sum();
    let progress = work.progress;
    Ok(CleanupRemoved {
        removed: progress.removed,
        gone: archived.saturating_sub(progress.removed + progress.stays.sum()),
        changed: progress.stays.changed,
        referenced: progress.stays.referenced,
        busy: progress.stays.busy,
        kept: work.told,
        remaining: None,
        longest_transaction_ms: progress.longest_ms,
        waits_for_replicas: progress.waits_for_replicas,
        waits_for_locks: progress.waits_for_locks,
        notes: Vec::new(),
    })
}

/// What the context's checkpoint holds.
pub(super) async fn load<T: DeserializeOwned + Default>(
    context: &EngineContext,
) -> Result<T, EngineError> {
    match context.checkpoints.load().await? {
        Some(saved) => serde_json::from_value(saved).map_err(|error| EngineError::Unusable {
            what: format!("the checkpoint of the cleanup cannot be read: {error}"),
            remedy: "start it anew".to_owned(),
        }),
        None => Ok(T::default()),
    }
}

/// Saves a checkpoint.
pub(super) async fn save<T: Serialize + Sync>(
    context: &EngineContext,
    progress: &T,
) -> Result<(), EngineError> {
    let value = serde_json::to_value(progress).expect("plain data can be JSON");
    context.checkpoints.save(value).await
}

async fn rest(context: &EngineContext, time: Duration) -> Result<(), EngineError> {
    context
        .stop
        .run_until_cancelled(sleep(time))
        .await
        .ok_or(EngineError::Stopped)
}

struct Removing<'a> {
    context: &'a EngineContext,
    archive: &'a dyn StreamSource,
    terms: &'a CleanupTerms,
    pace: Pace,
    progress: Removal,
    began: Instant,
    saved: Instant,
    looked: Option<Instant>,
    /// Keys of what stays, with the reasons.
    told: Vec<String>,
}

impl Removing<'_> {
    async fn save(&mut self) -> Result<(), EngineError> {
        save(self.context, &self.progress).await?;
        self.saved = Instant::now();
        Ok(())
    }

    async fn passes(&mut self, remover: &mut dyn RecordRemover) -> Result<(), EngineError> {
        loop {
            if self.progress.todo.is_none() {
                let all = record_segments(self.archive, &record_prefix(0));
                self.progress.todo = Some(all.into());
            }
            while let Some(name) = self
                .progress
                .todo
                .as_ref()
                .and_then(|todo| todo.front().cloned())
            {
                self.segment(&name, remover).await?;
                let progress = &mut self.progress;
                let stays = std::mem::take(&mut progress.current);
                if stays.busy + stays.referenced > 0 {
                    progress.again.push(name);
                    progress.again_stays.add(stays);
                } else {
                    progress.stays.add(stays);
                }
                if let Some(todo) = &mut progress.todo {
                    todo.pop_front();
                }
                progress.at_record = 0;
                self.save().await?;
            }
            let progress = &mut self.progress;
            let again = std::mem::take(&mut progress.again);
            let again_stays = std::mem::take(&mut progress.again_stays);
            // What refers to each other goes one after the other, as long as any goes; what somebody holds is tried some times.
            let is_worth_it = progress.removed_in_pass > 0 || progress.pass + 1 < PASSES;
            if again.is_empty() || !is_worth_it {
                progress.stays.add(again_stays);
                return Ok(());
            }
            progress.pass += 1;
            progress.removed_in_pass = 0;
            progress.todo = Some(again.into());
            self.told.clear();
            self.save().await?;
            if again_stays.busy > 0 {
                rest(self.context, BETWEEN_PASSES).await?;
            }
        }
    }

    async fn segment(
        &mut self,
        name: &str,
        remover: &mut dyn RecordRemover,
    ) -> Result<(), EngineError> {
        let mut reader = RecordReader::open(self.archive, name).await?;
        for _ in 0..self.progress.at_record {
            if reader.next().await?.is_none() {
                break;
            }
        }
        loop {
            let most = usize::try_from(self.pace.batch_rows()).unwrap_or(usize::MAX);
            let records = batch(&mut reader, most).await?;
            if records.is_empty() {
                return Ok(());
            }
            self.wait_for_replicas(remover).await?;
            let fates = self.one(&records, remover).await?;
            for (record, fate) in records.iter().zip(fates) {
                self.count(record, fate, remover);
            }
            self.progress.at_record += records.len() as u64;
            let bytes = records.iter().map(Record::bytes).sum();
            self.context.progress.add(bytes, records.len() as u64);
            reached(Point::CleanupRemoving);
            if self.saved.elapsed() >= CHECKPOINT_EVERY {
                self.save().await?;
            }
        }
    }

    fn count(&mut self, record: &Record, fate: Fate, remover: &dyn RecordRemover) {
        let current = &mut self.progress.current;
        let why = match fate {
            Fate::Removed => {
                self.progress.removed += 1;
                self.progress.removed_in_pass += 1;
                return;
            }
            Fate::Gone => return,
            Fate::Changed => {
                current.changed += 1;
                "changed"
            }
            Fate::Referenced => {
                current.referenced += 1;
                "referred to"
            }
            Fate::Busy => {
                current.busy += 1;
                "held by somebody"
            }
        };
        if self.told.len() < MOST_TOLD {
            self.told.push(format!("{}: {why}", remover.shown(record)));
        }
    }

    /// One batch, in several tries where that is needed, and the rest after it.
    async fn one(
        &mut self,
        records: &[Record],
        remover: &mut dyn RecordRemover,
    ) -> Result<Vec<Fate>, EngineError> {
        for attempt in 0..TRIES {
            self.context.check_stop()?;
            self.context.fence.check().await?;
            let asked = Instant::now();
            let done = remover.remove(records).await;
            let took = asked.elapsed();
            match done {
                Ok(fates) => {
                    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                    self.progress.longest_ms = self.progress.longest_ms.max(milliseconds);
                    let rows = records.len() as u64;
                    let time = self.pace.after(rows, took, self.began.elapsed());
                    // A stop during the rest loses nothing but what the checkpoint would have told.
                    match rest(self.context, time).await {
                        Ok(()) | Err(EngineError::Stopped) => return Ok(fates),
                        Err(error) => return Err(error),
                    }
                }
                Err(EngineError::Busy { what, .. }) => {
                    self.progress.waits_for_locks += 1;
                    self.pace.refused();
                    if attempt + 1 == TRIES {
                        self.save().await?;
                        return Err(EngineError::Busy {
                            what,
                            wait: BUSY_RETRY,
                        });
                    }
                    rest(
                        self.context,
                        Duration::from_millis(250) * 2_u32.pow(attempt),
                    )
                    .await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Vec::new())
    }

    async fn wait_for_replicas(
        &mut self,
        remover: &mut dyn RecordRemover,
    ) -> Result<(), EngineError> {
        if self
            .looked
            .is_some_and(|looked| looked.elapsed() < LOOK_AT_REPLICAS)
        {
            return Ok(());
        }
        let mut has_waited = false;
        loop {
            self.looked = Some(Instant::now());
            if !remover.is_behind(self.terms.replica_lag).await? {
                return Ok(());
            }
            if !has_waited {
                has_waited = true;
                self.progress.waits_for_replicas += 1;
                self.save().await?;
            }
            self.context.progress.pulse();
            rest(self.context, LOOK_AT_REPLICAS).await?;
        }
    }
}

async fn batch(reader: &mut RecordReader, most: usize) -> Result<Vec<Record>, EngineError> {
    let (mut records, mut bytes) = (Vec::new(), 0);
    while records.len() < most && bytes < BATCH_BYTES {
        let Some(record) = reader.next().await? else {
            break;
        };
        bytes += record.bytes();
        records.push(record);
    }
    Ok(records)
}

/// How far an undo is, as the checkpoint keeps it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Undoing {
    pass: u32,
    todo: Option<VecDeque<String>>,
    at_record: u64,
    restored_in_pass: u64,
    undone: CleanupUndone,
}

/// Puts back what the records of the archive's first thing say, or (`dry_run`) says what would be put back. Goes on from the
/// context's checkpoint.
///
/// # Errors
///
/// Those of the restorer, the archive and the checkpoints; [`EngineError::Stopped`].
pub async fn restore_records(
    context: &EngineContext,
    archive: &dyn StreamSource,
    dry_run: bool,
    restorer: &mut dyn RecordRestorer,
) -> Result<CleanupUndone, EngineError> {
    let mut progress: Undoing = if dry_run {
        Undoing::default()
    } else {
        load(context).await?
    };
    let mut saved = Instant::now();
    loop {
        if progress.todo.is_none() {
            progress.todo = Some(record_segments(archive, &record_prefix(0)).into());
        }
        while let Some(name) = progress
            .todo
            .as_ref()
            .and_then(|todo| todo.front().cloned())
        {
            let mut reader = RecordReader::open(archive, &name).await?;
            for _ in 0..progress.at_record {
                if reader.next().await?.is_none() {
                    break;
                }
            }
            loop {
                let records = batch(&mut reader, UNDO_ROWS).await?;
                if records.is_empty() {
                    break;
                }
                context.check_stop()?;
                context.fence.check().await?;
                let returns = restorer.put_back(&records, dry_run).await?;
                for (record, came) in records.iter().zip(returns) {
                    progress.count(record, came, restorer);
                }
                progress.at_record += records.len() as u64;
                let bytes = records.iter().map(Record::bytes).sum();
                context.progress.add(bytes, records.len() as u64);
                if !dry_run {
                    reached(Point::CleanupUndoing);
                    if saved.elapsed() >= CHECKPOINT_EVERY {
                        save(context, &progress).await?;
                        saved = Instant::now();
                    }
                }
            }
            if let Some(todo) = &mut progress.todo {
                todo.pop_front();
            }
            progress.at_record = 0;
        }
        // What refers to something that came back later has its turn now.
        if dry_run || progress.undone.without_parent == 0 || progress.restored_in_pass == 0 {
            return Ok(progress.undone);
        }
        progress.pass += 1;
        progress.todo = None;
        progress.restored_in_pass = 0;
        progress.undone.without_parent = 0;
        progress
            .undone
            .skipped
            .retain(|told| !told.ends_with(PARENT));
        save(context, &progress).await?;
    }
}

const PARENT: &str = "refers to something that is not there";

impl Undoing {
    fn count(&mut self, record: &Record, came: Return, restorer: &dyn RecordRestorer) {
        let undone = &mut self.undone;
        let is_first = self.pass == 0;
        let why = match came {
            Return::Restored => {
                undone.restored += 1;
                self.restored_in_pass += 1;
                return;
            }
            // Later passes find what the first has put back.
            Return::There => {
                undone.there += u64::from(is_first);
                return;
            }
            Return::Taken if !is_first => return,
            Return::Taken => {
                undone.taken += 1;
                "its place is taken"
            }
            Return::WithoutParent => {
                undone.without_parent += 1;
                PARENT
            }
        };
        if undone.skipped.len() < MOST_TOLD {
            undone
                .skipped
                .push(format!("{}: {why}", restorer.shown(record)));
        }
    }
}
