//! Cleanup: what an engine does to remove old and abandoned things without surprise (P7).
//!
//! A plan is made once and kept. What can be put back is archived and read back first; then it is removed piece by piece, and a
//! piece only if the server itself finds that it still is what the archive holds. How fast is decided by a [`Pace`], which is
//! pure.

mod records;
mod whole;
mod work;

use std::time::Duration;

use async_trait::async_trait;
use fettler_model::{
    CleanupAction, CleanupPlan, CleanupRefusal, CleanupRemoved, CleanupUndone, Engine, JobId,
    ObjectFacts, Timestamp,
};
use serde::de::DeserializeOwned;

use crate::{EngineContext, EngineError, StreamSink, StreamSource, Target};

pub use records::{
    RECORD_FORMAT, Record, RecordReader, RecordWriter, prove_records, record_prefix,
    record_segments,
};
pub use whole::{WholeFate, WholeRemover, remove_wholes};
pub use work::{Fate, RecordRemover, RecordRestorer, Return, remove_records, restore_records};

/// What is to be planned.
#[derive(Clone, Debug)]
pub struct CleanupRequest {
    /// What is to go.
    pub what: CleanupAction,
    /// Whether it is archived first. What cannot be identified and compared is refused then.
    pub archive: bool,
}

/// How a removal is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CleanupTerms {
    /// Rows, keys or documents that one transaction removes at most.
    pub batch_rows: u64,
    /// At most so many of them a second.
    pub rows_per_second: Option<u64>,
    /// No rest between batches, whatever the server's answers take. Replicas are still waited for.
    pub full_speed: bool,
    /// Replicas may be behind by so much.
    pub replica_lag: Duration,
}

impl Default for CleanupTerms {
    fn default() -> Self {
        Self {
            batch_rows: Self::BATCH_ROWS,
            rows_per_second: None,
            full_speed: false,
            replica_lag: Self::REPLICA_LAG,
        }
    }
}

impl CleanupTerms {
    /// Rows of a batch where nothing is said.
    pub const BATCH_ROWS: u64 = 1000;
    /// Lag of replicas that is waited for where nothing is said.
    pub const REPLICA_LAG: Duration = Duration::from_secs(10);
}

/// What an archive holds.
#[derive(Clone, Debug, PartialEq)]
pub struct CleanupArchive {
    /// What is inside, with fingerprints taken while it passed.
    pub objects: Vec<ObjectFacts>,
    /// The moment of which it is, in the engine's own terms.
    pub position: serde_json::Value,
    /// Rows in all.
    pub rows: u64,
}

/// A plan of nothing, at this moment of the server's clock.
#[must_use]
pub fn empty_plan(engine: Engine, what: &CleanupAction, now: Timestamp) -> CleanupPlan {
    CleanupPlan {
        engine,
        what: what.clone(),
        made: now,
        cutoff: cutoff(what, now),
        items: Vec::new(),
        depends: Vec::new(),
        refusals: Vec::new(),
        notes: Vec::new(),
        can_be_undone: false,
        engine_data: serde_json::Value::Null,
    }
}

/// Adds a reason why nothing is done.
pub fn refuse(plan: &mut CleanupPlan, what: impl Into<String>, remedy: impl Into<String>) {
    plan.refusals.push(CleanupRefusal {
        what: what.into(),
        remedy: remedy.into(),
    });
}

/// What a plan kept for its engine.
///
/// # Errors
///
/// [`EngineError::Unusable`] where it cannot be read.
pub fn plan_data<T: DeserializeOwned>(plan: &CleanupPlan) -> Result<T, EngineError> {
    serde_json::from_value(plan.engine_data.clone()).map_err(|error| EngineError::Unusable {
        what: format!("the plan of the cleanup cannot be read: {error}"),
        remedy: "a newer Fettler may have made it: use that version or a later one".to_owned(),
    })
}

/// The refusal of an action that an engine does not have.
#[must_use]
pub fn no_such_action(engine: Engine, what: &CleanupAction, has: &str) -> EngineError {
    EngineError::Missing {
        code: "cleanup_action",
        what: format!(
            "{engine} has no cleanup of {}",
            what.name().replace('_', " ")
        ),
        remedy: format!("it has {has}"),
    }
}

/// An engine that cleans.
#[async_trait]
pub trait Cleanup: Send + Sync {
    /// Looks what would go, and what depends on it. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] for an action that the engine does not have, or something that is not there.
    async fn plan(
        &self,
        context: &EngineContext,
        target: &Target,
        request: &CleanupRequest,
    ) -> Result<CleanupPlan, EngineError>;

    /// Writes all that the plan would remove into an archive.
    async fn archive(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        sink: &dyn StreamSink,
    ) -> Result<CleanupArchive, EngineError>;

    /// Reads an archive back, and finds whether it holds what was read. Asks no server.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unusable`] where it does not.
    async fn prove(
        &self,
        context: &EngineContext,
        plan: &CleanupPlan,
        archive: &dyn StreamSource,
        objects: &[ObjectFacts],
    ) -> Result<(), EngineError>;

    /// Removes what the plan says: with an archive only what is in it, by key and content. Goes on from the context's
    /// checkpoint.
    async fn remove(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        archive: Option<&dyn StreamSource>,
        terms: &CleanupTerms,
    ) -> Result<CleanupRemoved, EngineError>;

    /// Puts back what an archive holds, or (`dry_run`) says what would be put back. Goes on from the context's checkpoint. `job` is
    /// the cleanup that is undone: what it may have left at the server is ended first.
    async fn undo(
        &self,
        context: &EngineContext,
        target: &Target,
        plan: &CleanupPlan,
        archive: &dyn StreamSource,
        job: JobId,
        dry_run: bool,
    ) -> Result<CleanupUndone, EngineError>;
}

/// The cut-off of an action, by the clock of the server.
#[must_use]
pub fn cutoff(what: &CleanupAction, now: Timestamp) -> Option<Timestamp> {
    what.older_than_seconds()
        .map(|seconds| now.minus(Duration::from_secs(seconds)))
}

/// Decides how many rows the next batch has and how long to rest before it, by how long batches took: short transactions, a
/// share of the time only, and less of it while the server is slower than it was.
///
/// Pure: it is told what happened.
#[derive(Clone, Debug)]
pub struct Pace {
    most: u64,
    rows_per_second: Option<u64>,
    full_speed: bool,
    now: f64,
    /// The least that a row took so far, in seconds: what the server needs when nobody is in the way.
    calm: Option<f64>,
    /// A limit of rows a second, and when all rows so far will have been paid for, in seconds since the begin.
    owed: f64,
}

impl Pace {
    /// A transaction is to take about so long: nobody who waits for it waits longer.
    pub const TARGET: Duration = Duration::from_millis(60);
    /// The work takes one part of so many of the time.
    const SHARE: f64 = 4.0;
    /// A row that takes so many times as long as the quickest did is a sign of a busy server.
    const LATE_FACTOR: f64 = 4.0;
    /// Then it rests so many times longer.
    const LATE_REST: f64 = 4.0;
    /// No rest is longer.
    const MOST_REST: Duration = Duration::from_secs(5);
    const LEAST_ROWS: f64 = 10.0;
    const FIRST_ROWS: f64 = 100.0;

    /// Begins with small batches.
    #[must_use]
    pub fn new(terms: &CleanupTerms) -> Self {
        let most = terms.batch_rows.max(1);
        Self {
            most,
            rows_per_second: terms.rows_per_second.filter(|rate| *rate > 0),
            full_speed: terms.full_speed,
            now: Self::FIRST_ROWS.min(most as f64),
            calm: None,
            owed: 0.0,
        }
    }

    /// Rows of the next batch.
    #[must_use]
    // A number of rows is positive and far below 2^53.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn batch_rows(&self) -> u64 {
        (self.now as u64).clamp(1, self.most)
    }

    /// Takes what a batch was, and says how long to rest. `elapsed` is the time since the begin.
    pub fn after(&mut self, rows: u64, took: Duration, elapsed: Duration) -> Duration {
        let rows = rows.max(1);
        let (seconds, target) = (took.as_secs_f64(), Self::TARGET.as_secs_f64());
        let a_row = seconds / rows as f64;
        let is_full = rows as f64 >= self.now * 0.5;
        // Small batches have their own cost: of them nothing follows.
        let calm = self.calm.unwrap_or(a_row);
        if is_full {
            self.calm = Some(calm.min(a_row));
        }
        if seconds > target * 2.0 {
            self.now = (self.now / 2.0).max(Self::LEAST_ROWS.min(self.most as f64));
        } else if seconds < target * 0.7 && is_full {
            self.now = (self.now * 1.5).min(self.most as f64);
        }
        let mut rest = if self.full_speed {
            0.0
        } else {
            let is_late = seconds > target && a_row > calm * Self::LATE_FACTOR;
            let times = if is_late { Self::LATE_REST } else { 1.0 };
            seconds * (Self::SHARE - 1.0) * times
        };
        rest = rest.min(Self::MOST_REST.as_secs_f64());
        if let Some(rate) = self.rows_per_second {
            // A pause earns no credit.
            let now = elapsed.as_secs_f64();
            self.owed = self.owed.max(now - seconds) + rows as f64 / rate as f64;
            rest = rest.max(self.owed - now);
        }
        Duration::from_secs_f64(rest.max(0.0))
    }

    /// Somebody held a lock, or a statement took too long: the next batch is smaller.
    pub fn refused(&mut self) {
        self.now = (self.now / 2.0).max(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pace: &mut Pace, a_row: Duration, batches: usize) -> (u64, Duration, Duration) {
        let (mut rows, mut worked, mut rested) = (0, Duration::ZERO, Duration::ZERO);
        for _ in 0..batches {
            let batch = pace.batch_rows();
            let took = a_row * u32::try_from(batch).unwrap();
            worked += took;
            rested += pace.after(batch, took, worked + rested);
            rows += batch;
        }
        (rows, worked, rested)
    }

    #[test]
    fn batches_grow_until_they_take_as_long_as_they_may_and_rest_longer_than_they_work() {
        let mut pace = Pace::new(&CleanupTerms::default());
        assert_eq!(pace.batch_rows(), 100);
        let (_, worked, rested) = run(&mut pace, Duration::from_micros(20), 50);
        assert_eq!(pace.batch_rows(), 1000);
        assert!(rested >= worked * 2, "{worked:?} {rested:?}");
        let mut slow = Pace::new(&CleanupTerms::default());
        run(&mut slow, Duration::from_millis(1), 50);
        assert!(slow.batch_rows() <= 120, "{}", slow.batch_rows());
    }

    #[test]
    fn a_server_that_gets_slower_is_left_more_time() {
        let mut pace = Pace::new(&CleanupTerms::default());
        run(&mut pace, Duration::from_micros(20), 50);
        let rows = pace.batch_rows();
        let took = Duration::from_millis(100);
        let usual = took * 3;
        assert!(pace.after(rows, took, Duration::from_secs(60)) >= usual * 4);
        let full_speed = CleanupTerms {
            full_speed: true,
            ..CleanupTerms::default()
        };
        let mut pace = Pace::new(&full_speed);
        assert_eq!(pace.after(100, took, took), Duration::ZERO);
    }

    #[test]
    fn a_rate_is_kept() {
        let terms = CleanupTerms {
            rows_per_second: Some(1000),
            full_speed: true,
            ..CleanupTerms::default()
        };
        let mut pace = Pace::new(&terms);
        let (rows, worked, rested) = run(&mut pace, Duration::from_micros(10), 20);
        let rate = rows as f64 / (worked + rested).as_secs_f64();
        assert!((950.0..=1050.0).contains(&rate), "{rate}");
    }

    #[test]
    fn what_was_refused_is_tried_in_smaller_pieces() {
        let mut pace = Pace::new(&CleanupTerms::default());
        for _ in 0..20 {
            pace.refused();
        }
        assert_eq!(pace.batch_rows(), 1);
    }
}
