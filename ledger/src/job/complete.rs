//! The end of an attempt: what becomes of the job, and everything that follows from it, in one
//! transaction. Many ends share a commit.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use fettler_fault_points::{Point, Rule, reached, without};
use fettler_model::{AttemptOutcome, ErrorClass, JobId, JobState, Problem, Timestamp};
use serde_json::Value;

use super::{
    COMMON, LIVE, Row,
    attempt::superseded,
    finish::{Finish, Requeue, finish, release, requeue},
    id_list, plain,
};
use crate::{
    Ended, Ending, Fencing, Ledger, LedgerError, LedgerOptions, Result, codes,
    dialect::Dialect,
    ledger::Shared,
    row::Fields,
    store::{Transaction, V},
};

const DOING: &str = "ending an attempt";
/// How long a snooze lasts that names no time.
const SNOOZE: Duration = Duration::from_secs(60);
/// A job that killed its own process this often is dead (rule 7).
const MAX_DEATHS: u32 = 2;
/// The largest result that is kept.
const MAX_RESULT_BYTES: usize = 4 << 20;

/// An attempt's end on its way into the ledger.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) fencing: Fencing,
    pub(crate) ending: Ending,
    /// Where within its longest time the next try falls: drawn once, so that a batch that is tried
    /// again says the same.
    pub(crate) jitter: f64,
}

impl Ledger {
    /// Ends an attempt. Saying the same again (since the answer was lost) gives the same answer.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Superseded`] when the attempt is not the job's newest: its result is refused.
    pub async fn complete(&self, fencing: Fencing, ending: Ending) -> Result<Ended> {
        let completion = Completion {
            fencing,
            ending: storable(ending),
            jitter: rand::random_range(0.0..1.0),
        };
        self.inner.completions.call(completion).await
    }
}

/// The ending as every database can keep it: a result that cannot be kept is a failure.
fn storable(ending: Ending) -> Ending {
    match ending {
        Ending::Succeeded { result } => {
            let text = result.to_string();
            if text.len() > MAX_RESULT_BYTES {
                return Ending::Failed {
                    problem: Problem::permanent(
                        "job.result",
                        format!(
                            "the result has {} bytes, and {MAX_RESULT_BYTES} are the most",
                            text.len()
                        ),
                        "",
                    ),
                };
            }
            Ending::Succeeded {
                result: without_nul(result),
            }
        }
        Ending::Failed { problem } => Ending::Failed {
            problem: clean(problem),
        },
        Ending::Died { problem } => Ending::Died {
            problem: clean(problem),
        },
    }
}

fn clean(mut problem: Problem) -> Problem {
    for text in [&mut problem.code, &mut problem.what, &mut problem.remedy] {
        if text.contains('\0') {
            *text = text.replace('\0', "\u{fffd}");
        }
    }
    problem
}

fn without_nul(value: Value) -> Value {
    match value {
        Value::String(text) if text.contains('\0') => Value::String(text.replace('\0', "\u{fffd}")),
        Value::Array(items) => items.into_iter().map(without_nul).collect(),
        Value::Object(members) => members
            .into_iter()
            .map(|(name, value)| (name.replace('\0', "\u{fffd}"), without_nul(value)))
            .collect(),
        other => other,
    }
}

/// Ends a batch of attempts. Most succeed and held no database: those end in one statement, the others in one transaction.
pub(crate) async fn complete_all(
    shared: &Shared,
    batch: Vec<Completion>,
) -> Result<Vec<Result<Ended>>> {
    if shared.store.dialect != Dialect::Postgres {
        return complete_in_transaction(shared, batch).await;
    }
    let mut succeeded = plain::succeed(shared, &batch).await?;
    let mut results: Vec<Option<Result<Ended>>> = batch
        .iter()
        .map(|completion| {
            // Where one attempt is reported twice, the second report finds what the first has written.
            succeeded
                .remove(&completion.fencing.job)
                .then_some(Ok(Ended::Final(JobState::Succeeded)))
        })
        .collect();
    let rest: Vec<Completion> = batch
        .into_iter()
        .zip(&results)
        .filter(|(_, result)| result.is_none())
        .map(|(completion, _)| completion)
        .collect();
    if rest.is_empty() {
        reached(Point::EndCommitted);
    } else {
        let mut others = complete_in_transaction(shared, rest).await?.into_iter();
        for result in &mut results {
            if result.is_none() {
                *result = others.next();
            }
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// Ends a batch of attempts in one transaction.
async fn complete_in_transaction(
    shared: &Shared,
    batch: Vec<Completion>,
) -> Result<Vec<Result<Ended>>> {
    let mut transaction = shared.store.begin(DOING).await?;
    let now = transaction.now().await?;
    let rows = lock_rows(&mut transaction, &batch).await?;
    let mut results = Vec::with_capacity(batch.len());
    let mut ends = Vec::new();
    let mut backs = Vec::new();
    let mut seen = HashSet::new();
    for completion in &batch {
        let fencing = completion.fencing;
        let row = rows.get(&fencing.job);
        match row {
            Some(row)
                if (row.token == fencing.token || without(Rule::Fence))
                    && row.record.state == JobState::Running
                    && seen.insert(fencing.job) =>
            {
                match decide(row, completion, now, &shared.options) {
                    Decision::End(end) => {
                        results.push(Ok(Ended::Final(end.state)));
                        ends.push(end);
                    }
                    Decision::Back(back) => {
                        results.push(Ok(Ended::Queued {
                            not_before: back.due.map(|(at, _)| at),
                        }));
                        backs.push(back);
                    }
                }
            }
            _ if seen.contains(&fencing.job) => results.push(Err(LedgerError::Busy {
                doing: DOING,
                what: "the attempt was ended twice at the same moment".to_owned(),
            })),
            _ => results.push(ended_before(&mut transaction, fencing).await?),
        }
    }
    finish(&mut transaction, now, &ends).await?;
    for back in &backs {
        requeue(&mut transaction, now, back).await?;
    }
    let held: Vec<(String, JobId)> = ends
        .iter()
        .map(|end| end.row)
        .chain(backs.iter().map(|back| back.row))
        .flat_map(Row::held)
        .collect();
    let wake = !held.is_empty() || !backs.is_empty();
    release(&mut transaction, held).await?;
    transaction.commit().await?;
    reached(Point::EndCommitted);
    if wake {
        shared.wake.wake();
    }
    Ok(results)
}

/// The live rows of the batch, locked in the order of their ids (rule 8).
async fn lock_rows(
    transaction: &mut Transaction,
    batch: &[Completion],
) -> Result<HashMap<JobId, Row>> {
    let dialect = transaction.dialect;
    let sql = format!(
        "SELECT {COMMON}, {LIVE} FROM job WHERE id {} ORDER BY id {}",
        dialect.among(1),
        dialect.for_update()
    );
    let ids = id_list(batch.iter().map(|completion| completion.fencing.job));
    let rows = transaction.rows(sql, &[V::S(ids)]).await?;
    rows.iter()
        .map(|row| Row::read(row, DOING).map(|row| (row.id(), row)))
        .collect()
}

/// What became of an attempt that does not run any more: the answer that was lost, or a refusal.
async fn ended_before(transaction: &mut Transaction, fencing: Fencing) -> Result<Result<Ended>> {
    let id = fencing.job.to_string();
    let values = [V::T(&id), V::N(fencing.token.value())];
    let history = transaction
        .row(
            "SELECT state FROM history WHERE id = $1 AND token = $2 AND outcome IS NOT NULL AND outcome <> 4",
            &values,
        )
        .await?;
    if let Some(row) = history {
        let state = Fields::of(&row, DOING).code("state", codes::state_of)?;
        return Ok(Ok(Ended::Final(state)));
    }
    let attempt = transaction
        .row(
            "SELECT j.due AS due FROM attempt a JOIN job j ON j.id = a.job AND j.token = a.token
             WHERE a.job = $1 AND a.token = $2 AND a.outcome <> 4",
            &values,
        )
        .await?;
    Ok(match attempt {
        Some(row) => Ok(Ended::Queued {
            not_before: Fields::of(&row, DOING).time_or_none("due")?,
        }),
        None => Err(superseded(fencing)),
    })
}

enum Decision<'r> {
    End(Finish<'r>),
    Back(Requeue<'r>),
}

/// What becomes of a job whose attempt ended like this.
fn decide<'r>(
    row: &'r Row,
    completion: &Completion,
    now: Timestamp,
    options: &LedgerOptions,
) -> Decision<'r> {
    let record = &row.record;
    let spent = record.tries.saturating_add(1);
    let end = |state, outcome, result, problem, tries| {
        Decision::End(Finish {
            row,
            state,
            outcome: Some(outcome),
            result,
            problem,
            tries,
            lost: record.lost,
        })
    };
    let (problem, died) = match &completion.ending {
        Ending::Succeeded { result } => {
            return end(
                JobState::Succeeded,
                AttemptOutcome::Succeeded,
                Some(result.clone()),
                None,
                record.tries,
            );
        }
        Ending::Failed { problem } => (problem, row.died),
        Ending::Died { problem } => (problem, row.died + 1),
    };
    // A cancellation that was asked for is kept, however the attempt ended (rule 1).
    if record.cancel_requested.is_some() || problem.class == ErrorClass::Cancelled {
        return end(
            JobState::Cancelled,
            AttemptOutcome::Cancelled,
            None,
            Some(problem.clone()),
            record.tries,
        );
    }
    if record.deadline.is_some_and(|at| at <= now) {
        return end(
            JobState::Expired,
            AttemptOutcome::Failed,
            None,
            Some(problem.clone()),
            record.tries,
        );
    }
    let has_died = died > row.died;
    let (outcome, tries, due) = match problem.class {
        ErrorClass::Interrupted => (AttemptOutcome::Interrupted, record.tries, None),
        ErrorClass::Snooze => {
            let wait = problem
                .retry_after_seconds
                .map_or(SNOOZE, Duration::from_secs)
                .max(Duration::from_secs(1));
            let due = (now.plus(wait), codes::WAIT_SNOOZE);
            (AttemptOutcome::Snoozed, record.tries, Some(due))
        }
        ErrorClass::Transient if spent < record.max_tries && (!has_died || died < MAX_DEATHS) => {
            let wait = backoff(options, spent, completion.jitter);
            (
                AttemptOutcome::Failed,
                spent,
                Some((now.plus(wait), codes::WAIT_RETRY)),
            )
        }
        _ => {
            return end(
                JobState::Dead,
                AttemptOutcome::Failed,
                None,
                Some(problem.clone()),
                spent,
            );
        }
    };
    Decision::Back(Requeue {
        row,
        outcome,
        problem: Some(problem.clone()),
        due,
        tries,
        lost: record.lost,
        died,
        isolated: has_died,
    })
}

/// Exponential backoff with full jitter: anywhere between nothing and twice the last try's longest.
fn backoff(options: &LedgerOptions, tries: u32, jitter: f64) -> Duration {
    let doublings = tries.saturating_sub(1).min(31);
    let longest = options
        .retry_base
        .saturating_mul(1 << doublings)
        .min(options.retry_cap);
    longest.mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_cap_and_is_spread_over_all_of_it() {
        let options = LedgerOptions {
            retry_base: Duration::from_secs(5),
            retry_cap: Duration::from_secs(60),
            ..LedgerOptions::default()
        };
        let longest: Vec<u64> = (1..7)
            .map(|n| backoff(&options, n, 1.0).as_secs())
            .collect();
        assert_eq!(longest, [5, 10, 20, 40, 60, 60]);
        assert_eq!(backoff(&options, 3, 0.0), Duration::ZERO);
        assert_eq!(backoff(&options, u32::MAX, 0.5).as_secs(), 30);
    }
}
