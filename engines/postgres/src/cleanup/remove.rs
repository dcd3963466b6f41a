//! Removes rows by their archive: batch by batch, each in a transaction of its own that locks the rows which nobody else holds,
//! and deletes those that still are what the archive holds and to which nobody refers.
//!
//! The rows are locked first and deleted by a second statement, which sees all that was committed until the locks were had: a
//! row that refers to one of them and was written in between is seen, so that no cascade takes what is not archived.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use fettler_engine::{CleanupTerms, EngineContext, EngineError, Pace, StreamSource, Target};
use fettler_fault_points::{Point, reached};
use fettler_model::{CleanupPlan, CleanupRemoved};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::wire::Session;

use super::{
    Visit,
    archive::{SegmentReader, prefix, segments},
    batch::{ArchivedRow, Batch, EngineErrorAt},
    data,
    rows::{RowsData, columns},
};

/// Bytes of archived text in one batch: a statement is held in memory at both ends, twice.
const BATCH_BYTES: u64 = 1 << 20;
/// A checkpoint at most so often.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Replicas are looked at so often.
const LOOK_AT_REPLICAS: Duration = Duration::from_secs(1);
/// Replicas may be behind by so many bytes of WAL, whatever time that is.
const REPLICA_BYTES: u64 = 256 << 20;
/// A batch is tried so often before its rows are left for the next pass.
const TRIES: u32 = 5;
/// Rows that somebody held are tried in so many passes.
const PASSES: u32 = 4;
/// Between two passes.
const BETWEEN_PASSES: Duration = Duration::from_secs(1);
/// Keys that are told.
const MOST_TOLD: usize = 100;

/// What of a segment stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stays {
    changed: u64,
    referenced: u64,
    busy: u64,
}

impl Stays {
    const fn sum(self) -> u64 {
        self.changed + self.referenced + self.busy
    }
}

/// How far a removal is, as the checkpoint keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Progress {
    /// Passes that were begun before this one.
    pass: u32,
    /// Segments of this pass that are not done, the current one first; all where none was begun.
    todo: Option<VecDeque<String>>,
    /// Rows of the current segment that are done.
    at_row: u64,
    /// Rows that were removed in this pass.
    in_this_pass: u64,
    /// Segments of which something stays that another pass may remove.
    again: Vec<String>,
    /// What stays of each segment.
    stays: BTreeMap<String, Stays>,
    removed: u64,
    waits_for_locks: u64,
    waits_for_replicas: u64,
    longest_ms: u64,
}

/// Removes.
pub(super) async fn remove(
    context: &EngineContext,
    target: &Target,
    plan: &CleanupPlan,
    archive: &dyn StreamSource,
    terms: &CleanupTerms,
) -> Result<CleanupRemoved, EngineError> {
    let table: RowsData = data(plan)?;
    let saved = context.checkpoints.load().await?;
    let progress = saved
        .and_then(|saved| Progress::deserialize(saved).ok())
        .unwrap_or_default();
    let mut visit = Visit::begin(context, target).await?;
    is_as_planned(&mut visit, &table).await?;
    visit.for_batches().await?;
    let mut work = Removal {
        context,
        archive,
        table: &table,
        visit,
        pace: Pace::new(terms),
        replica_lag: terms.replica_lag,
        progress,
        began: Instant::now(),
        saved: Instant::now(),
        looked: None,
        told: Vec::new(),
        stays: Stays::default(),
    };
    let done = work.passes().await;
    if matches!(done, Err(EngineError::Stopped)) {
        work.save().await?;
    }
    done?;
    reached(Point::CleanupRemoved);
    work.report().await
}

/// A table that was altered since is another one.
async fn is_as_planned(visit: &mut Visit, table: &RowsData) -> Result<(), EngineError> {
    let major = visit.server.major();
    let now = columns(&mut visit.session, table.oid, major).await?;
    if now == table.columns {
        return Ok(());
    }
    Err(EngineError::Unusable {
        what: format!("{} was altered or dropped since the plan was made", table.display()),
        remedy: "start the cleanup anew; what was removed so far can be put back with `fettler cleanup undo`"
            .to_owned(),
    })
}

struct Removal<'a> {
    context: &'a EngineContext,
    archive: &'a dyn StreamSource,
    table: &'a RowsData,
    visit: Visit,
    pace: Pace,
    replica_lag: Duration,
    progress: Progress,
    began: Instant,
    saved: Instant,
    looked: Option<Instant>,
    /// Keys of rows that stay.
    told: Vec<String>,
    /// Of the current segment.
    stays: Stays,
}

impl Removal<'_> {
    async fn passes(&mut self) -> Result<(), EngineError> {
        loop {
            if self.progress.todo.is_none() {
                self.progress.todo = Some(segments(self.archive, &prefix(0)).into());
            }
            self.told.clear();
            while let Some(segment) = self
                .progress
                .todo
                .as_ref()
                .and_then(|todo| todo.front().cloned())
            {
                self.segment(&segment).await?;
                let stays = std::mem::take(&mut self.stays);
                if stays.busy + stays.referenced > 0 {
                    self.progress.again.push(segment.clone());
                }
                self.progress.stays.remove(&segment);
                if stays.sum() > 0 {
                    self.progress.stays.insert(segment, stays);
                }
                if let Some(todo) = &mut self.progress.todo {
                    todo.pop_front();
                }
                self.progress.at_row = 0;
                self.save().await?;
            }
            let again = std::mem::take(&mut self.progress.again);
            // Rows that refer to each other go one after the other, as long as any goes; those that somebody holds are
            // tried some times.
            let is_worth_it = self.progress.in_this_pass > 0 || self.progress.pass + 1 < PASSES;
            if again.is_empty() || !is_worth_it {
                return Ok(());
            }
            self.progress.pass += 1;
            self.progress.in_this_pass = 0;
            self.progress.todo = Some(again.into());
            self.save().await?;
            self.rest(BETWEEN_PASSES).await?;
        }
    }

    async fn save(&mut self) -> Result<(), EngineError> {
        let value = serde_json::to_value(&self.progress).expect("plain data can be JSON");
        self.context.checkpoints.save(value).await?;
        self.saved = Instant::now();
        Ok(())
    }

    async fn rest(&mut self, time: Duration) -> Result<(), EngineError> {
        self.context
            .stop
            .run_until_cancelled(sleep(time))
            .await
            .ok_or(EngineError::Stopped)
    }

    async fn segment(&mut self, name: &str) -> Result<(), EngineError> {
        let mut reader = SegmentReader::open(self.archive, name, self.table.columns.len()).await?;
        // What an earlier attempt did is not looked at again: what of it stays, the next pass or run will find.
        for _ in 0..self.progress.at_row {
            if reader.next().await?.is_none() {
                break;
            }
        }
        if self.progress.at_row == 0 {
            // What stayed in an earlier pass is looked at anew.
            self.progress.stays.remove(name);
        }
        self.stays = self.progress.stays.get(name).copied().unwrap_or_default();
        let mut is_over = false;
        while !is_over {
            let (mut rows, mut bytes) = (Vec::new(), 0);
            let most = self.pace.batch_rows();
            while (rows.len() as u64) < most && bytes < BATCH_BYTES {
                let Some(row) = reader.next().await? else {
                    is_over = true;
                    break;
                };
                bytes += row.bytes;
                rows.push(row);
            }
            if rows.is_empty() {
                break;
            }
            self.wait_for_replicas().await?;
            self.batch(&rows).await?;
            self.progress.at_row += rows.len() as u64;
            if self.stays.sum() > 0 {
                self.progress.stays.insert(name.to_owned(), self.stays);
            }
            self.context.progress.add(bytes, rows.len() as u64);
            reached(Point::CleanupRemoving);
            if self.saved.elapsed() >= CHECKPOINT_EVERY {
                self.save().await?;
            }
        }
        Ok(())
    }

    /// Removes a batch, in several tries where that is needed.
    async fn batch(&mut self, rows: &[ArchivedRow]) -> Result<(), EngineError> {
        let batch = Batch::new(self.table, rows);
        for attempt in 0..TRIES {
            self.context.check_stop()?;
            self.context.fence.check().await?;
            let asked = Instant::now();
            let done = one(&mut self.visit.session, &batch, rows.len()).await;
            let took = asked.elapsed();
            match done {
                Ok(done) => {
                    self.took(took);
                    self.progress.removed += done.removed;
                    self.progress.in_this_pass += done.removed;
                    self.stays.changed += done.stays.changed;
                    self.stays.referenced += done.stays.referenced;
                    self.stays.busy += done.stays.busy;
                    for told in done.told {
                        if self.told.len() < MOST_TOLD {
                            self.told.push(told);
                        }
                    }
                    let rest = self
                        .pace
                        .after(rows.len() as u64, took, self.began.elapsed());
                    return self.rest(rest).await;
                }
                Err(at) if at.is_of_the_moment() => {
                    self.took(took);
                    self.visit
                        .session
                        .execute("ROLLBACK")
                        .await
                        .map_err(|error| error.doing("giving a batch up"))?;
                    self.progress.waits_for_locks += 1;
                    self.pace.refused();
                    if attempt + 1 == TRIES {
                        // Locks of rows are never waited for: somebody holds the table itself.
                        self.save().await?;
                        return Err(EngineError::Busy {
                            what: format!("somebody holds {} ({})", self.table.display(), at.error),
                            wait: Duration::from_secs(30),
                        });
                    }
                    self.rest(Duration::from_millis(250) * 2_u32.pow(attempt))
                        .await?;
                }
                Err(at) => return Err(at.error),
            }
        }
        Ok(())
    }

    fn took(&mut self, took: Duration) {
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.progress.longest_ms = self.progress.longest_ms.max(milliseconds);
    }

    /// Waits while a replica is further behind than it may be.
    async fn wait_for_replicas(&mut self) -> Result<(), EngineError> {
        if self
            .looked
            .is_some_and(|looked| looked.elapsed() < LOOK_AT_REPLICAS)
        {
            return Ok(());
        }
        let mut has_waited = false;
        loop {
            self.looked = Some(Instant::now());
            if !is_behind(&mut self.visit.session, self.replica_lag).await? {
                return Ok(());
            }
            if !has_waited {
                has_waited = true;
                self.progress.waits_for_replicas += 1;
                self.save().await?;
            }
            self.context.progress.pulse();
            self.rest(LOOK_AT_REPLICAS).await?;
        }
    }

    /// Counts what is left, and says what came of it.
    async fn report(mut self) -> Result<CleanupRemoved, EngineError> {
        let archived: u64 = self
            .archive
            .streams()
            .iter()
            .map(|stream| stream.rows)
            .sum();
        let mut stays = Stays::default();
        for of in self.progress.stays.values() {
            stays.changed += of.changed;
            stays.referenced += of.referenced;
            stays.busy += of.busy;
        }
        self.visit
            .session
            .execute("RESET statement_timeout; RESET enable_seqscan; SET statement_timeout = 0")
            .await
            .map_err(|error| error.doing("counting what is left"))?;
        let sql = format!(
            "SELECT count(*) FROM ONLY {} AS t WHERE {}",
            self.table.sql_name(),
            self.table.condition
        );
        let progress = &self.context.progress;
        let remaining: u64 = progress
            .while_waiting(self.visit.session.one(&sql))
            .await
            .map_err(|error| error.doing("counting what is left"))?
            .get(0)?;
        let mut removed = CleanupRemoved {
            removed: self.progress.removed,
            gone: archived.saturating_sub(self.progress.removed + stays.sum()),
            changed: stays.changed,
            referenced: stays.referenced,
            busy: stays.busy,
            kept: self.told,
            remaining: Some(remaining),
            longest_transaction_ms: self.progress.longest_ms,
            waits_for_replicas: self.progress.waits_for_replicas,
            waits_for_locks: self.progress.waits_for_locks,
            notes: Vec::new(),
        };
        if removed.removed > 0 {
            removed.notes.push(format!(
                "the space comes back to {} itself by autovacuum, or `--vacuum`; to the system by VACUUM FULL or pg_repack only",
                self.table.display()
            ));
        }
        if remaining > stays.sum() {
            removed.notes.push(format!(
                "{} rows older than the cut-off are not in the archive: they were written or changed after the plan, and stay for the next run",
                remaining - stays.sum()
            ));
        }
        self.visit.end().await;
        Ok(removed)
    }
}

/// What one transaction did.
struct Done {
    removed: u64,
    stays: Stays,
    told: Vec<String>,
}

async fn one(session: &mut Session, batch: &Batch<'_>, rows: usize) -> Result<Done, EngineErrorAt> {
    session
        .execute("BEGIN")
        .await
        .map_err(|error| EngineErrorAt::of(error, "beginning a batch"))?;
    let locked = batch.lock(session).await?;
    let removed = if locked.is_empty() {
        Vec::new()
    } else {
        batch.delete(session, &locked).await?
    };
    let mut done = Done {
        removed: removed.len() as u64,
        stays: Stays::default(),
        told: Vec::new(),
    };
    if removed.len() < rows {
        let mut is_removed = vec![false; rows];
        let mut is_locked = vec![false; rows];
        removed.iter().for_each(|row| is_removed[*row] = true);
        locked.iter().for_each(|row| is_locked[*row] = true);
        let left: Vec<usize> = (0..rows).filter(|row| !is_removed[*row]).collect();
        for (row, is_same) in batch.there(session, &left).await? {
            let why = match (is_same, is_locked[row]) {
                (false, _) => {
                    done.stays.changed += 1;
                    "changed"
                }
                (true, true) => {
                    done.stays.referenced += 1;
                    "referred to"
                }
                (true, false) => {
                    done.stays.busy += 1;
                    "held by somebody"
                }
            };
            if done.told.len() < MOST_TOLD {
                done.told.push(format!("{}: {why}", batch.key_of(row)));
            }
        }
    }
    session
        .execute("COMMIT")
        .await
        .map_err(|error| EngineErrorAt::of(error, "committing a batch"))?;
    Ok(done)
}

/// Whether a replica is further behind than it may be. What the role may not see is not waited for.
async fn is_behind(session: &mut Session, most: Duration) -> Result<bool, EngineError> {
    let row = session
        .one(&format!(
            "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming' AND (
                extract(epoch FROM replay_lag) * 1000 > {}
                OR pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) > {REPLICA_BYTES}))",
            most.as_millis()
        ))
        .await
        .map_err(|error| error.doing("looking at replicas"))?;
    row.flag(0)
}
