//! What a running attempt writes: heartbeats, checkpoints, its log. Everything is refused once the
//! attempt was superseded (P2).

use std::{collections::HashMap, time::Duration};

use fettler_fault_points::{Point, Rule, reached, without};
use fettler_model::{AttemptToken, JobId, JobKindName, Timestamp};
use serde_json::{Value, json};

use super::claim::alive_until;
use crate::{
    Beat, BeatAnswer, Fencing, Ledger, LedgerError, LogLine, Result, WorkerRecord, WorkerSkills,
    dialect::Column,
    row::{Fields, json_text},
    store::{Transaction, V},
};

/// How many lines of its log are kept with a job, and how long a line is.
const LOG_LINES: i64 = 1000;
const LOG_LINE_BYTES: usize = 2048;
/// The largest checkpoint that is taken: it points at what was done, it does not hold it.
const MAX_CHECKPOINT_BYTES: usize = 16 << 20;

impl Ledger {
    /// Renews the leases of all of a worker's jobs in one statement and brings back what became of
    /// them, in the order of `beats`.
    ///
    /// # Errors
    ///
    /// When the ledger is away: then no lease was renewed, or all were.
    pub async fn heartbeat(
        &self,
        worker: &str,
        beats: &[Beat],
        lease: Duration,
    ) -> Result<Vec<BeatAnswer>> {
        const DOING: &str = "renewing leases";
        let mut sorted: Vec<&Beat> = beats.iter().collect();
        sorted.sort_unstable_by_key(|beat| beat.job);
        let rows: Vec<Value> = sorted
            .iter()
            .map(|beat| {
                Ok(json!({
                    "vid": beat.job,
                    "vtoken": beat.token.value(),
                    "vprogress": beat.progress.as_ref().map(json_text).transpose()?,
                }))
            })
            .collect::<Result<_>>()?;
        let mut transaction = self.inner.store.begin(DOING).await?;
        let now = transaction.now().await?;
        let mut held = HashMap::new();
        if !rows.is_empty() {
            let sql = format!(
                "UPDATE job SET lease_until = $2, progress = COALESCE(vprogress, progress)
                 FROM {} v WHERE id = vid {} AND token = vtoken AND state = 1
                 RETURNING id, token, cancel",
                transaction.dialect.rows(
                    1,
                    &[
                        ("vid", Column::Text),
                        ("vtoken", Column::Number),
                        ("vprogress", Column::Text)
                    ]
                ),
                transaction.dialect.looked_up(1, "vid"),
            );
            let values = [V::S(json_text(&rows)?), V::N(now.plus(lease).micros())];
            for row in transaction.rows(sql, &values).await? {
                let fields = Fields::of(&row, DOING);
                let id: JobId = fields.parsed("id")?;
                let token = AttemptToken::from_value(fields.number("token")?);
                let answer = match fields.number_or_none("cancel")? {
                    Some(_) => BeatAnswer::CancelRequested,
                    None => BeatAnswer::Renewed,
                };
                held.insert((id, token), answer);
            }
        }
        announce(&mut transaction, worker, None, now, lease).await?;
        transaction.commit().await?;
        if !held.is_empty() {
            reached(Point::LeaseRenewed);
        }
        Ok(beats
            .iter()
            .map(|beat| {
                held.get(&(beat.job, beat.token))
                    .copied()
                    .unwrap_or(BeatAnswer::Superseded)
            })
            .collect())
    }

    /// Whether this attempt is the job's newest and runs.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Superseded`] when it is not.
    pub async fn check_fence(&self, fencing: Fencing) -> Result<()> {
        let row = self
            .inner
            .store
            .read_one(
                "checking a fence",
                "SELECT id FROM job WHERE id = $1 AND token = $2 AND state = 1",
                &[V::S(fencing.job.to_string()), V::N(fencing.token.value())],
            )
            .await?;
        row.map(drop).ok_or(superseded(fencing))
    }

    /// Saves what the next attempt goes on from (P3), after what it speaks of is durable.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Superseded`] when the attempt is not the job's newest.
    pub async fn save_checkpoint(&self, fencing: Fencing, checkpoint: &Value) -> Result<()> {
        let data = json_text(checkpoint)?;
        if data.len() > MAX_CHECKPOINT_BYTES || data.contains("\\u0000") {
            return Err(LedgerError::Refused {
                what: format!(
                    "a checkpoint of {} bytes cannot be kept: {MAX_CHECKPOINT_BYTES} are the most, without NUL characters",
                    data.len()
                ),
                remedy: String::new(),
            });
        }
        let mut transaction = self.inner.store.begin("saving a checkpoint").await?;
        fence(&mut transaction, fencing).await?;
        let now = transaction.now().await?;
        transaction
            .execute(
                "INSERT INTO checkpoint (job, token, saved, data) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (job) DO UPDATE SET token = excluded.token, saved = excluded.saved, data = excluded.data",
                &[
                    V::S(fencing.job.to_string()),
                    V::N(fencing.token.value()),
                    V::N(now.micros()),
                    V::S(data),
                ],
            )
            .await?;
        transaction.commit().await?;
        reached(Point::CheckpointSaved);
        Ok(())
    }

    /// What the last attempt saved.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn load_checkpoint(&self, job: JobId) -> Result<Option<Value>> {
        const DOING: &str = "loading a checkpoint";
        let row = self
            .inner
            .store
            .read_one(
                DOING,
                "SELECT data FROM checkpoint WHERE job = $1",
                &[V::S(job.to_string())],
            )
            .await?;
        row.map(|row| Fields::of(&row, DOING).json("data"))
            .transpose()
    }

    /// Keeps lines with the job: the newest thousand, each cut to two kilobytes.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Superseded`] when the attempt is not the job's newest.
    pub async fn append_log(&self, fencing: Fencing, lines: &[String]) -> Result<()> {
        const DOING: &str = "keeping the log of a job";
        if lines.is_empty() {
            return Ok(());
        }
        let mut transaction = self.inner.store.begin(DOING).await?;
        fence(&mut transaction, fencing).await?;
        let now = transaction.now().await?;
        let job = fencing.job.to_string();
        let row = transaction
            .row(
                "SELECT COALESCE(MAX(number), 0) AS last FROM job_log WHERE job = $1",
                &[V::T(&job)],
            )
            .await?;
        let last = row
            .map(|row| Fields::of(&row, DOING).number("last"))
            .transpose()?
            .unwrap_or(0);
        let rows: Vec<Value> = lines
            .iter()
            .zip(last + 1..)
            .map(|(line, number)| json!({"number": number, "line": cut(line)}))
            .collect();
        let newest = last + i64::try_from(lines.len()).expect("a page of lines");
        transaction
            .execute(
                format!(
                    "INSERT INTO job_log (job, number, at, attempt, line)
                     SELECT $2, number, $3, $4, line FROM {} v WHERE number > $5",
                    transaction
                        .dialect
                        .rows(1, &[("number", Column::Number), ("line", Column::Text)])
                ),
                &[
                    V::S(json_text(&rows)?),
                    V::T(&job),
                    V::N(now.micros()),
                    V::N(fencing.token.attempt_number().into()),
                    V::N(newest - LOG_LINES),
                ],
            )
            .await?;
        transaction
            .execute(
                "DELETE FROM job_log WHERE job = $1 AND number <= $2",
                &[V::T(&job), V::N(newest - LOG_LINES)],
            )
            .await?;
        transaction.commit().await
    }

    /// The kept lines after this number, oldest first.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn log_lines(&self, job: JobId, after: u64) -> Result<Vec<LogLine>> {
        const DOING: &str = "reading the log of a job";
        let rows = self
            .inner
            .store
            .read(
                DOING,
                "SELECT number, at, attempt, line FROM job_log WHERE job = $1 AND number > $2 ORDER BY number",
                &[
                    V::S(job.to_string()),
                    V::N(i64::try_from(after).unwrap_or(i64::MAX)),
                ],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok(LogLine {
                    number: fields.number("number")?.unsigned_abs(),
                    at: fields.time("at")?,
                    attempt: fields.small("attempt")?,
                    line: fields.text("line")?,
                })
            })
            .collect()
    }

    /// Says that a worker is there and what it can run. Claims say so too.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn announce_worker(
        &self,
        worker: &str,
        kinds: &[JobKindName],
        lease: Duration,
    ) -> Result<()> {
        self.announce_skilled(worker, kinds, &WorkerSkills::default(), lease)
            .await
    }

    /// The same, with what it can beside that.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn announce_skilled(
        &self,
        worker: &str,
        kinds: &[JobKindName],
        skills: &WorkerSkills,
        lease: Duration,
    ) -> Result<()> {
        let mut transaction = self.inner.store.begin("announcing a worker").await?;
        let now = transaction.now().await?;
        announce(&mut transaction, worker, Some((kinds, skills)), now, lease).await?;
        transaction.commit().await
    }

    /// Says that a worker has gone, in good order.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn remove_worker(&self, worker: &str) -> Result<()> {
        self.inner.announced().remove(worker);
        let mut transaction = self.inner.store.begin("removing a worker").await?;
        transaction
            .execute("DELETE FROM worker WHERE id = $1", &[V::T(worker)])
            .await?;
        transaction.commit().await
    }

    /// The workers that the ledger has heard of, those that vanished too.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn workers(&self) -> Result<Vec<WorkerRecord>> {
        const DOING: &str = "listing workers";
        let rows = self
            .inner
            .store
            .read(
                DOING,
                "SELECT id, kinds, versions, labels, first_seen, last_seen, alive_until FROM worker ORDER BY id",
                &[],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok(WorkerRecord {
                    id: fields.text("id")?,
                    kinds: fields.json("kinds")?,
                    skills: WorkerSkills {
                        versions: fields.json("versions")?,
                        labels: fields.json("labels")?,
                    },
                    first_seen: fields.time("first_seen")?,
                    last_seen: fields.time("last_seen")?,
                    alive_until: fields.time("alive_until")?,
                })
            })
            .collect()
    }
}

/// The error of a write that a newer attempt, or the job's end, forbids.
pub(crate) const fn superseded(fencing: Fencing) -> LedgerError {
    LedgerError::Superseded {
        job: fencing.job,
        token: fencing.token,
    }
}

/// Refuses to go on unless the attempt is the job's newest and runs; it stays so until the commit.
pub(crate) async fn fence(transaction: &mut Transaction, fencing: Fencing) -> Result<()> {
    if without(Rule::Fence) {
        return Ok(());
    }
    let sql = format!(
        "SELECT id FROM job WHERE id = $1 AND token = $2 AND state = 1 {}",
        transaction.dialect.for_share()
    );
    let values = [V::S(fencing.job.to_string()), V::N(fencing.token.value())];
    transaction
        .row(sql, &values)
        .await?
        .map(drop)
        .ok_or(superseded(fencing))
}

/// Writes that a worker is alive; its kinds stay as they are when none are given.
pub(super) async fn announce(
    transaction: &mut Transaction,
    worker: &str,
    can: Option<(&[JobKindName], &WorkerSkills)>,
    now: Timestamp,
    lease: Duration,
) -> Result<()> {
    let from = if can.is_some() { "excluded" } else { "worker" };
    let nothing = WorkerSkills::default();
    let (kinds, skills) = can.unwrap_or((&[], &nothing));
    transaction
        .execute(
            format!(
                "INSERT INTO worker (id, kinds, first_seen, last_seen, alive_until, swept, versions, labels)
                 VALUES ($1, $2, $3, $3, $4, 0, $5, $6)
                 ON CONFLICT (id) DO UPDATE SET kinds = {from}.kinds, versions = {from}.versions, labels = {from}.labels,
                    last_seen = excluded.last_seen, alive_until = excluded.alive_until, swept = 0"
            ),
            &[
                V::T(worker),
                V::S(json_text(kinds)?),
                V::N(now.micros()),
                V::N(alive_until(now, lease).micros()),
                V::S(json_text(&skills.versions)?),
                V::S(json_text(&skills.labels)?),
            ],
        )
        .await?;
    Ok(())
}

/// A line as it is kept: of a bounded length, without what a database cannot hold.
fn cut(line: &str) -> String {
    let mut end = line.len().min(LOG_LINE_BYTES);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end].replace('\0', "\u{fffd}")
}
