//! The ends that all paths share: a job moves to the history, or goes back to the queue; what it held is
//! released, and the first that is parked there is woken (rule 4).

use std::collections::{BTreeMap, BTreeSet};

use fettler_model::{AttemptOutcome, JobId, JobState, Problem, TenantId, Timestamp};
use serde_json::{Value, json};

use super::{
    COMMON, Row, claim, id_list,
    limits::{self, Limits},
};
use crate::{
    Result, codes,
    dialect::{Column, Dialect},
    row::{Fields, json_text},
    store::{Transaction, V},
};

/// The end of a job.
pub(super) struct Finish<'r> {
    pub(super) row: &'r Row,
    pub(super) state: JobState,
    /// How the attempt ended that ended it; none when no attempt ran.
    pub(super) outcome: Option<AttemptOutcome>,
    pub(super) result: Option<Value>,
    pub(super) problem: Option<Problem>,
    pub(super) tries: u32,
    pub(super) lost: u32,
}

impl<'r> Finish<'r> {
    /// The end of a job that does not run.
    pub(super) fn unrun(row: &'r Row, state: JobState) -> Self {
        Self {
            row,
            state,
            outcome: None,
            result: None,
            problem: row.record.problem.clone(),
            tries: row.record.tries,
            lost: row.record.lost,
        }
    }
}

/// Moves jobs to the history, each in the state that it ends in.
pub(super) async fn finish(
    transaction: &mut Transaction,
    now: Timestamp,
    ends: &[Finish<'_>],
) -> Result<()> {
    if ends.is_empty() {
        return Ok(());
    }
    let dialect = transaction.dialect;
    let first = transaction.positions(ends.len()).await?;
    let rows: Vec<Value> = ends
        .iter()
        .zip(first..)
        .map(|(end, seq)| {
            Ok(json!({
                "vid": end.row.id(),
                "vstate": codes::state(end.state),
                "voutcome": end.outcome.map(codes::outcome),
                "vresult": end.result.as_ref().map(json_text).transpose()?,
                "vproblem": end.problem.as_ref().map(json_text).transpose()?,
                "vtries": end.tries,
                "vlost": end.lost,
                "vseq": seq,
            }))
        })
        .collect::<Result<_>>()?;
    let source = dialect.rows(
        1,
        &[
            ("vid", Column::Text),
            ("vstate", Column::Number),
            ("voutcome", Column::Number),
            ("vresult", Column::Text),
            ("vproblem", Column::Text),
            ("vtries", Column::Number),
            ("vlost", Column::Number),
            ("vseq", Column::Number),
        ],
    );
    let values = [V::S(json_text(&rows)?), V::N(now.micros())];
    let columns = EndColumns {
        state: "vstate",
        outcome: "voutcome",
        problem: "vproblem",
        tries: "vtries",
        lost: "vlost",
        ended: "$2",
        position: dialect.position("vseq"),
    };
    if dialect == Dialect::Postgres {
        // One way to the server and one look at each row instead of three.
        let moved = format!(
            "WITH ends AS (SELECT * FROM {source} v),
                  gone AS (DELETE FROM job USING ends WHERE id = vid {looked_up} RETURNING job.*, ends.*),
                  forgotten AS (DELETE FROM checkpoint WHERE job = ANY (ARRAY(SELECT vid FROM ends)))
             {}",
            into_history(dialect, "gone ORDER BY vseq", &columns),
            looked_up = dialect.looked_up(1, "vid"),
        );
        transaction.execute(moved, &values).await?;
        return Ok(());
    }
    transaction
        .execute(
            into_history(
                dialect,
                &format!("{source} v JOIN job ON id = vid ORDER BY vseq"),
                &columns,
            ),
            &values,
        )
        .await?;
    let ids = id_list(ends.iter().map(|end| end.row.id()));
    for sql in [
        format!("DELETE FROM job WHERE id {}", dialect.among(1)),
        format!("DELETE FROM checkpoint WHERE job {}", dialect.among(1)),
    ] {
        transaction.execute(sql, &[V::T(&ids)]).await?;
    }
    Ok(())
}

/// What a job's end says beside what its row had, each as an expression. Its result is `vresult`.
pub(super) struct EndColumns<'c> {
    pub(super) state: &'c str,
    pub(super) outcome: &'c str,
    pub(super) problem: &'c str,
    pub(super) tries: &'c str,
    pub(super) lost: &'c str,
    pub(super) ended: &'c str,
    pub(super) position: &'c str,
}

/// The statement that writes jobs' rows to the history, where `from` says which, in which order.
pub(super) fn into_history(dialect: Dialect, from: &str, end: &EndColumns<'_>) -> String {
    let EndColumns {
        state,
        outcome,
        problem,
        tries,
        lost,
        ended,
        position,
    } = end;
    format!(
        "INSERT INTO history ({COMMON}, ended, outcome, result, bytes, tx, seq)
         SELECT id, tenant, kind, kind_version, database_id, arguments, exclusion, slot, priority, submitted,
                due, deadline, max_tries, unique_key, retry_of, tags, {problem}, {tries}, {lost}, cancel, {state},
                token, worker, started, progress, terms, {ended}, {outcome}, vresult,
                400 + octet_length(arguments) + COALESCE(octet_length(vresult), 0) + COALESCE(octet_length({problem}), 0),
                {tx}, {position}
         FROM {from}",
        tx = dialect.transaction(),
    )
}

/// A job that goes back to the queue after an attempt.
pub(super) struct Requeue<'r> {
    pub(super) row: &'r Row,
    pub(super) outcome: AttemptOutcome,
    pub(super) problem: Option<Problem>,
    /// Not before this moment, and why ([`codes::WAIT_RETRY`] or [`codes::WAIT_SNOOZE`]).
    pub(super) due: Option<(Timestamp, i64)>,
    pub(super) tries: u32,
    pub(super) lost: u32,
    pub(super) died: u32,
    pub(super) isolated: bool,
}

/// Puts a job back into the queue, with its age and its place, and keeps what became of the attempt.
pub(super) async fn requeue(
    transaction: &mut Transaction,
    now: Timestamp,
    back: &Requeue<'_>,
) -> Result<()> {
    let row = back.row;
    let problem = back.problem.as_ref().map(json_text).transpose()?;
    let (lane, due, wait) = match back.due {
        Some((at, wait)) => (codes::LANE_DELAYED, Some(at.micros()), wait),
        None => (codes::LANE_OPEN, None, codes::WAIT_NONE),
    };
    let requeued = transaction
        .execute(
            "UPDATE job SET state = 0, lane = $1, due = $2, wait = $3, problem = $4, tries = $5, lost = $6, died = $7,
                    isolated = $8, holds = NULL, lease_until = NULL, progress = NULL
             WHERE id = $9 AND token = $10 AND state = 1",
            &[
                V::N(lane),
                V::ON(due),
                V::N(wait),
                V::OT(problem.clone()),
                V::N(back.tries.into()),
                V::N(back.lost.into()),
                V::N(back.died.into()),
                V::N(back.isolated.into()),
                V::S(row.id().to_string()),
                V::N(row.token.value()),
            ],
        )
        .await?;
    if requeued > 0 && lane == codes::LANE_OPEN {
        transaction.ready.push(row.id());
    }
    transaction
        .execute(
            "INSERT INTO attempt (job, number, token, worker, started, ended, outcome, problem)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            &[
                V::S(row.id().to_string()),
                V::N(row.token.attempt_number().into()),
                V::N(row.token.value()),
                V::OT(row.record.worker.clone()),
                V::N(row.record.started.unwrap_or(now).micros()),
                V::N(now.micros()),
                V::N(codes::outcome(back.outcome)),
                V::OT(problem),
            ],
        )
        .await?;
    if matches!(back.outcome, AttemptOutcome::Failed | AttemptOutcome::Lost) {
        let data = json!({
            "attempt": row.token.attempt_number(),
            "outcome": back.outcome,
            "problem": back.problem,
            "not_before": back.due.map(|(at, _)| at),
        });
        event(
            transaction,
            now,
            &row.record.tenant,
            &format!("job.attempt_{}", back.outcome.as_str()),
            Some(row.id()),
            &data,
        )
        .await?;
    }
    Ok(())
}

/// Releases what these jobs held, in the order of its names, limits before databases as claims lock them,
/// and wakes the first parked of each: as many as there is room for now.
pub(super) async fn release(
    transaction: &mut Transaction,
    held: impl IntoIterator<Item = (String, JobId)>,
) -> Result<()> {
    let held: BTreeSet<(String, JobId)> = held.into_iter().collect();
    let mut slots: BTreeMap<String, i64> = BTreeMap::new();
    let mut databases = Vec::new();
    for (name, job) in held {
        match limits::limit_of(&name) {
            Some(limit) => *slots.entry(limit.to_owned()).or_default() += 1,
            None => databases.push((name, job)),
        }
    }
    limits::give_back(transaction, slots).await?;
    for (name, job) in databases {
        let released = transaction
            .execute(
                "UPDATE resource SET job = NULL, kind = NULL WHERE name = $1 AND job = $2",
                &[V::T(&name), V::S(job.to_string())],
            )
            .await?;
        if released > 0 {
            wake_first(transaction, &name).await?;
        }
    }
    Ok(())
}

/// Wakes the first that is parked under a name: exactly that one is tried again (rule 4).
pub(crate) async fn wake_first(transaction: &mut Transaction, name: &str) -> Result<bool> {
    wake(transaction, name, 1).await
}

/// Wakes the first few; says whether there was any.
pub(super) async fn wake(transaction: &mut Transaction, name: &str, count: i64) -> Result<bool> {
    Ok(wake_some(transaction, name, count).await? > 0)
}

/// Wakes the first few; says how many there were.
pub(super) async fn wake_some(
    transaction: &mut Transaction,
    name: &str,
    count: i64,
) -> Result<u64> {
    let dialect = transaction.dialect;
    let first = format!(
        "SELECT id FROM job WHERE lane = 2 AND parked_at = $1 ORDER BY rank, id LIMIT $2 {}",
        dialect.skip_locked()
    );
    let woken = transaction
        .rows(
            format!(
                "UPDATE job SET lane = 0, parked_at = NULL WHERE id {} RETURNING id",
                dialect.among_rows(&first)
            ),
            &[V::T(name), V::N(count)],
        )
        .await?;
    for row in &woken {
        let id = Fields::of(row, transaction.doing()).parsed("id")?;
        transaction.ready.push(id);
    }
    Ok(woken.len() as u64)
}

/// Queued jobs that were next in line have gone: those behind them take their turns, at the limits and
/// databases that have room.
pub(super) async fn pass_turns(transaction: &mut Transaction, rows: &[Row]) -> Result<()> {
    let next: Vec<&Row> = rows
        .iter()
        .filter(|row| row.lane == codes::LANE_OPEN)
        .collect();
    if next.is_empty() {
        return Ok(());
    }
    let facts = claim::database_facts(transaction, next.iter().copied()).await?;
    let (names, _) = limits::names_of(next.iter().map(|row| (*row, facts.server_of(row))));
    let mut met = Limits::lock(transaction, names, BTreeSet::new()).await?;
    for row in &next {
        let names = met.known(limits::limits_on(&row.record, facts.server_of(row)));
        met.pass_on(&names, None);
    }
    met.write(transaction).await?;
    let databases: BTreeSet<&String> = next
        .iter()
        .filter_map(|row| facts.resource_of(row))
        .collect();
    for name in databases {
        let free = transaction
            .row(
                "SELECT name FROM resource WHERE name = $1 AND job IS NULL",
                &[V::T(name)],
            )
            .await?;
        if free.is_some() {
            wake_first(transaction, name).await?;
        }
    }
    Ok(())
}

/// Writes an event.
pub(crate) async fn event(
    transaction: &mut Transaction,
    now: Timestamp,
    tenant: &TenantId,
    kind: &str,
    job: Option<JobId>,
    data: &Value,
) -> Result<()> {
    let dialect = transaction.dialect;
    let seq = transaction.positions(1).await?;
    transaction
        .execute(
            format!(
                "INSERT INTO event (tx, seq, at, tenant, kind, job, data)
                 SELECT {}, {}, $2, $3, $4, $5, $6 FROM (SELECT $1 AS given) g",
                dialect.transaction(),
                dialect.position("given"),
            ),
            &[
                V::N(seq),
                V::N(now.micros()),
                V::T(tenant.as_str()),
                V::T(kind),
                V::OT(job.map(|job| job.to_string())),
                V::S(json_text(data)?),
            ],
        )
        .await?;
    Ok(())
}

impl Transaction {
    /// Takes `count` positions in the order of events and returns the first. PostgreSQL gives them out
    /// by itself, see [`crate::dialect::Dialect::position`].
    pub(crate) async fn positions(&mut self, count: usize) -> Result<i64> {
        let count = i64::try_from(count).expect("a batch is small");
        if self.dialect == Dialect::Postgres {
            return Ok(0);
        }
        let doing = self.doing();
        let row = self
            .row(
                "UPDATE positions SET last = last + $1 WHERE one = 1 RETURNING last",
                &[V::N(count)],
            )
            .await?
            .ok_or(crate::LedgerError::Damaged {
                doing,
                what: "the counter of positions is gone".to_owned(),
            })?;
        let last = crate::row::Fields::of(&row, doing).number("last")?;
        Ok(last - count + 1)
    }
}
