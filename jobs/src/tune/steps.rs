//! One action from its first line in the ledger to the verdict: written down with its way back, made, looked at, kept or taken
//! back. Each step can be repeated.

use std::time::Duration;

use fettler_engine::{EngineError, StatementError, Workbench};
use fettler_fault_points::{Point, reached};
use fettler_model::{
    ActionKind, Engine, JobId, Measurement, Problem, Timestamp, TuningAction, TuningRecord,
    TuningState,
};
use fettler_tuning::Verdict;
use tokio::time::{Instant, sleep};

use super::open;
use crate::{DatabaseRecord, JobContext};

/// Between two looks at the statements while a change is observed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// For how long statements are looked at before an index is removed, at most.
const LONGEST_BASELINE: Duration = Duration::from_secs(60);
/// How many looks of a time are kept, at most.
const MOST_LOOKS: u32 = 30;
/// The codes of servers that could not have a lock in time.
const LOCKED: [&str; 3] = ["55P03", "40P01", "DatabaseBusy"];
/// How often a change is tried while locks are not to be had.
const TRIES: u32 = 4;
/// How long is waited between.
const BETWEEN_TRIES: Duration = Duration::from_secs(5);

/// What a job works on.
pub(super) struct Work<'a> {
    pub(super) context: &'a JobContext,
    pub(super) database: &'a DatabaseRecord,
    pub(super) bench: &'a mut dyn Workbench,
}

impl Work<'_> {
    const fn engine(&self) -> Engine {
        self.database.url.engine()
    }

    /// Takes an action, and decides whether it stays. `before` is what was counted of its statements some time ago.
    pub(super) async fn take(
        &mut self,
        action: TuningAction,
        before: Measurement,
        observe_seconds: u64,
    ) -> Result<TuningRecord, Problem> {
        let baseline = self.baseline(&action, observe_seconds).await?;
        let mut record = TuningRecord {
            made: self.count(&action).await?,
            baseline,
            action,
            job: self.context.job.id,
            state: TuningState::Applying,
            begun: Timestamp::now(),
            applied: None,
            before,
            compared: Vec::new(),
            why: String::new(),
        };
        // From here on whoever comes later can take it back.
        self.write(&record).await?;
        reached(Point::TuneWritten);
        self.make(&mut record).await?;
        if record.state == TuningState::Observing {
            self.observe(&mut record, observe_seconds).await?;
        }
        Ok(record)
    }

    /// Looks at the statements for a while before an index is removed: whether they are slower afterwards is told by how they
    /// fared shortly before, and by where that was going.
    async fn baseline(
        &mut self,
        action: &TuningAction,
        observe_seconds: u64,
    ) -> Result<Vec<Measurement>, Problem> {
        let mut looks = Vec::new();
        if action.kind != ActionKind::DropIndex || self.engine() != Engine::Postgres {
            return Ok(looks);
        }
        let length = (Duration::from_secs(observe_seconds) / 2).min(LONGEST_BASELINE);
        let end = Instant::now() + length;
        let every = LOOK_EVERY.max(length / MOST_LOOKS);
        while Instant::now() < end {
            looks.push(self.count(action).await?);
            self.context.progress.pulse();
            sleep(every.min(end.saturating_duration_since(Instant::now()))).await;
        }
        Ok(looks)
    }

    /// Settles what was begun and not decided: by an attempt that died, or by a job that could not tell yet.
    pub(super) async fn settle(
        &mut self,
        observe_seconds: u64,
    ) -> Result<Vec<TuningRecord>, Problem> {
        let mut settled = Vec::new();
        for mut record in self.context.ledger.tunings(self.database.id).await? {
            if !record.state.is_open() {
                continue;
            }
            fettler_tuning::end_sessions(self.engine(), self.bench, record.job)
                .await
                .map_err(|error| self.context.problem(error))?;
            let is_own = record.job == self.context.job.id;
            if record.state == TuningState::Applying {
                self.make(&mut record).await?;
            }
            if record.state == TuningState::Observing {
                let seconds = if is_own { observe_seconds } else { 0 };
                self.observe(&mut record, seconds).await?;
            }
            settled.push(record);
        }
        Ok(settled)
    }

    /// Takes back whatever a job has done and is still there, the newest first.
    pub(super) async fn undo(&mut self, job: JobId) -> Result<Vec<TuningRecord>, Problem> {
        let mut all = self.context.ledger.tunings(self.database.id).await?;
        all.retain(|record| record.job == job);
        if all.is_empty() {
            return Err(Problem::permanent(
                "tune.nothing_to_undo",
                format!("job {} has changed nothing in this database", job.short()),
                "`fettler jobs list --kind tune` lists the jobs of tuning; their results say what each has done",
            ));
        }
        fettler_tuning::end_sessions(self.engine(), self.bench, job)
            .await
            .map_err(|error| self.context.problem(error))?;
        let mut undone = Vec::new();
        for mut record in all.into_iter().rev() {
            if record.state.is_open() || record.state == TuningState::Kept {
                self.back(
                    &mut record,
                    TuningState::Undone,
                    "it was asked for".to_owned(),
                )
                .await?;
            }
            undone.push(record);
        }
        Ok(undone)
    }

    /// Makes what was written down; tries again while locks are not to be had.
    async fn make(&mut self, record: &mut TuningRecord) -> Result<(), Problem> {
        let engine = self.engine();
        let mut tries = 1;
        loop {
            self.context
                .fence
                .check()
                .await
                .map_err(|error| self.context.problem(error))?;
            let made = self
                .context
                .progress
                .while_waiting(fettler_tuning::apply(engine, self.bench, &record.action))
                .await;
            match made {
                Ok(()) => break,
                Err(StatementError::Lost(error)) => return Err(self.context.problem(error)),
                // lock_not_available, deadlock_detected; SQLite's SQLITE_BUSY.
                Err(StatementError::Refused { code, .. })
                    if LOCKED.contains(&code.as_str()) && tries < TRIES =>
                {
                    tries += 1;
                    self.context.progress.pulse();
                    sleep(BETWEEN_TRIES).await;
                }
                Err(error) => {
                    let why = format!("the server did not do it: {error}");
                    // Whatever is half made goes; where even that cannot be, it stays begun, and whoever comes next removes it.
                    return self.back(record, TuningState::Failed, why).await;
                }
            }
        }
        reached(Point::TuneMade);
        record.state = TuningState::Observing;
        record.applied = Some(Timestamp::now());
        // Since the statements were counted they went on for as long as it took: that was still before.
        record.made = self.count(&record.action).await?;
        self.write(record).await
    }

    /// Looks at the statements until it is clear whether an action stays, or the time is over.
    async fn observe(&mut self, record: &mut TuningRecord, seconds: u64) -> Result<(), Problem> {
        let end = Instant::now() + Duration::from_secs(seconds);
        self.context
            .progress
            .item(&format!("watching {}", record.action.object));
        let every = LOOK_EVERY.max(Duration::from_secs(seconds) / MOST_LOOKS);
        let mut looks = Vec::new();
        loop {
            looks.push(self.count(&record.action).await?);
            let age = record
                .applied
                .map_or(0.0, |applied| Timestamp::now().since(applied).as_secs_f64());
            let (verdict, compared) = fettler_tuning::judged(self.engine(), record, &looks, age);
            record.compared = compared;
            let is_last = Instant::now() >= end;
            // A first moment may be a lucky or an unlucky one: half the time is looked at before it is decided, where times
            // of statements decide.
            let is_enough =
                is_last || self.engine() != Engine::Postgres || age * 2.0 >= seconds_of(seconds);
            match verdict {
                Verdict::Keep(why) if is_enough => {
                    record.state = TuningState::Kept;
                    record.why = why;
                    record.baseline.clear();
                    return self.write(record).await;
                }
                Verdict::TakeBack(why) if is_enough => {
                    return self.back(record, TuningState::TakenBack, why).await;
                }
                Verdict::Wait(why) if is_last => {
                    record.why = format!("{why}: the next `tune --apply` decides");
                    return self.write(record).await;
                }
                _ => {}
            }
            self.context.progress.pulse();
            sleep(every.min(end.saturating_duration_since(Instant::now()))).await;
        }
    }

    async fn back(
        &mut self,
        record: &mut TuningRecord,
        state: TuningState,
        why: String,
    ) -> Result<(), Problem> {
        let engine = self.engine();
        let mut tries = 1;
        loop {
            let answer = self
                .context
                .progress
                .while_waiting(fettler_tuning::take_back(
                    engine,
                    self.bench,
                    &record.action,
                ))
                .await;
            match answer {
                Ok(()) => break,
                Err(StatementError::Lost(error)) => return Err(self.context.problem(error)),
                Err(StatementError::Refused { code, .. })
                    if LOCKED.contains(&code.as_str()) && tries < TRIES =>
                {
                    tries += 1;
                    sleep(BETWEEN_TRIES).await;
                }
                Err(StatementError::Refused { code, message }) => {
                    // It stays written down as it was: whoever comes next takes it back.
                    return Err(Problem::transient(
                        "tune.not_taken_back",
                        format!(
                            "{} could not be taken back: {message} ({code})",
                            record.action.object
                        ),
                        format!(
                            "run it by hand if it stays so: {}",
                            record.action.undo.join("; ")
                        ),
                    ));
                }
            }
        }
        record.state = state;
        record.why = why;
        record.baseline.clear();
        self.write(record).await
    }

    async fn count(&mut self, action: &TuningAction) -> Result<Measurement, Problem> {
        fettler_tuning::measure(self.engine(), self.bench, action)
            .await
            .map_err(|error| self.context.problem(error))
    }

    async fn write(&mut self, record: &TuningRecord) -> Result<(), Problem> {
        self.context
            .ledger
            .record_tuning(self.database.id, record)
            .await
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds of observation are few")]
const fn seconds_of(seconds: u64) -> f64 {
    seconds as f64
}

/// Ends on the server what this job was at, as far as that can be done quickly; what is half made is removed by whoever comes
/// next.
pub(super) async fn end_own_sessions(context: &JobContext, database: &DatabaseRecord) {
    const LIMIT: Duration = Duration::from_secs(10);
    let work = async {
        let mut bench = open(context, database).await?;
        let ended: Result<(), EngineError> =
            fettler_tuning::end_sessions(database.url.engine(), bench.as_mut(), context.job.id)
                .await;
        bench.close().await;
        ended.map_err(|error| context.problem(error))
    };
    match tokio::time::timeout(LIMIT, work).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => {
            tracing::debug!(%problem, "own sessions were left to end by themselves");
        }
        Err(_) => tracing::debug!("own sessions were left to end by themselves"),
    }
}
