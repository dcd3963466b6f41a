//! The ways of plain jobs on PostgreSQL: each step is one statement, which is a transaction of its own (rule 9). The condition
//! that decides stands in the statement (rule 3), so that what it leaves goes the way of the other jobs.
//!
//! A job is plain to submit when nothing has to be looked at before; to claim when it is short, excludes nobody, has neither
//! window nor deadline, and no limit refuses it; to end when it succeeded and held no database.

use std::{
    collections::{BTreeMap, HashSet},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use fettler_fault_points::{Point, reached};
use fettler_model::{
    AttemptOutcome, ExclusionClass, JobId, JobState, Priority, Scope, SlotClass, Timestamp,
};
use serde_json::json;

use super::{
    CLAIMABLE, COMMON, Completion, LIVE, Row, Submission,
    claim::MAX_CLAIM,
    finish::{EndColumns, into_history},
    id_list,
    limits::{self, LIMIT},
    queued::{self, queued_job},
    submit::{insert_sql, rows_of},
};
use crate::{
    ClaimRequest, Claimed, Ending, Fencing, Readied, Result, codes,
    dialect::Dialect,
    ledger::Shared,
    row::{Fields, json_text},
    store::V,
};

/// Whether nothing has to be looked at before a job can be inserted.
pub(super) fn is_plain(submission: &Submission) -> bool {
    let request = &submission.request;
    submission.idempotency.is_none()
        && request.unique_key.is_none()
        && request.database.is_none()
        && request.not_before.is_none()
}

/// Inserts jobs that are plain.
pub(super) async fn insert(shared: &Shared, batch: &[Submission]) -> Result<()> {
    const DOING: &str = "submitting a job";
    let dialect = shared.store.dialect;
    let now = dialect.clock().unwrap_or_default();
    let priority = format!(
        "LEAST(priority, COALESCE((SELECT ceiling FROM tenant t WHERE t.id = v.tenant), {}))",
        Priority::Highest.level()
    );
    let rows = rows_of(batch.iter(), None)?;
    let sql = format!(
        "{} RETURNING {}",
        insert_sql(dialect, shared, now, &priority),
        queued::COLUMNS
    );
    let inserted = shared
        .store
        .change(DOING, sql, &[V::S(json_text(&rows)?)])
        .await?;
    let readied = inserted
        .iter()
        .map(|row| Ok(Readied::Known(Box::new(queued_job(row)?))))
        .collect::<Result<_>>()?;
    shared.store.tell_ready(readied);
    Ok(())
}

/// What a claim of plain jobs gave.
pub(super) struct Plain {
    pub(super) claimed: Vec<Claimed>,
    /// When the next delayed job is due, as far as something was claimed.
    pub(super) next_due_in: Option<Duration>,
}

/// Claims those of these jobs that are plain.
pub(super) async fn claim(shared: &Shared, request: &ClaimRequest, ids: &[JobId]) -> Result<Plain> {
    const DOING: &str = "claiming jobs";
    let store = &shared.store;
    let lease = i64::try_from(request.lease.as_micros()).unwrap_or(i64::MAX / 8);
    let mut ids: Vec<JobId> = ids
        .iter()
        .copied()
        .take(request.short.min(MAX_CLAIM))
        .collect();
    // Two claims that meet the same jobs wait for each other in one order (rule 8). A job that was delivered twice takes one
    // slot.
    ids.sort_unstable();
    ids.dedup();
    let values = [
        V::S(id_list(ids)),
        V::T(&request.worker),
        V::N(lease),
        V::S(json_text(&request.kinds)?),
    ];
    let sql = claim_sql(store.dialect, shared.limits_seen.load(Relaxed));
    let changed = store.change(DOING, sql, &values).await?;
    if !changed.is_empty() {
        reached(Point::ClaimCommitted);
    }
    let mut plain = Plain {
        claimed: Vec::with_capacity(changed.len()),
        next_due_in: None,
    };
    for row in &changed {
        let next_due: Option<Timestamp> = Fields::of(row, DOING).time_or_none("next_due")?;
        let row = Row::read(row, DOING)?;
        let now = row.record.started.unwrap_or(row.record.submitted);
        plain.next_due_in = next_due.map(|due| due.since(now));
        plain.claimed.push(Claimed {
            token: row.token,
            lease_until: row.record.lease_until.unwrap_or(now),
            job: row.record,
        });
    }
    Ok(plain)
}

/// The statement of [`claim`]. Without limits it claims only where there are none. With them it takes a slot of each limit that
/// counts a job, and claims all that it finds or, where one of the limits has not room for all of them, nothing.
///
/// Rows are found by their ids, whatever the planner thinks of the other indexes, and nothing that was given is joined with
/// them: by statistics of a time when the table was small, a join reads a whole index with all that is dead in it.
fn claim_sql(dialect: Dialect, with_limits: bool) -> String {
    let plain = format!(
        "id {among} AND {CLAIMABLE} AND +slot = {short} AND kind || '' {kinds} AND line || '' = '' AND exclusion = {free}
         AND deadline IS NULL AND (terms IS NULL OR terms NOT LIKE '%\"window\"%') AND NOT EXISTS (SELECT 1 FROM pause)",
        among = dialect.among(1),
        kinds = dialect.among(4),
        short = codes::slot(SlotClass::Short),
        free = codes::exclusion(ExclusionClass::Free),
    );
    let update = |holds: &str| {
        format!(
            "UPDATE job SET state = 1, token = (((token >> 32) + 1) << 32) | floor(random() * 4294967296)::bigint,
                    worker = $2, started = {now}, lease_until = {now} + $3, holds = {holds}, progress = NULL",
            now = dialect.clock().unwrap_or_default(),
        )
    };
    let returning = format!(
        "RETURNING {COMMON}, {LIVE}, (SELECT MIN(d.due) FROM job d WHERE d.lane = 1) AS next_due"
    );
    if !with_limits {
        return format!(
            "{} WHERE {plain} AND NOT EXISTS (SELECT 1 FROM job_limit) {returning}",
            update("NULL"),
        );
    }
    format!(
        "WITH found AS MATERIALIZED (
             SELECT id AS fid, tenant AS ftenant, kind AS fkind FROM job
             WHERE {plain} AND (database_id IS NULL
                OR NOT EXISTS (SELECT 1 FROM job_limit WHERE name LIKE 'database/%' OR name LIKE 'server/%'))
             ORDER BY fid FOR UPDATE OF job SKIP LOCKED),
         counted AS MATERIALIZED (
             SELECT fid,
                    (SELECT string_agg('{LIMIT}' || name, E'\n' ORDER BY name) FROM job_limit
                     WHERE name IN ('{class}', 'kind/' || fkind, 'tenant/' || ftenant)) AS fholds
             FROM found),
         wanted AS MATERIALIZED (
             SELECT substr(held, {from}) AS wname, count(*) AS slots
             FROM counted CROSS JOIN LATERAL unnest(string_to_array(fholds, E'\n')) held GROUP BY 1),
         locked AS MATERIALIZED (
             SELECT name AS lname, most - running AS free FROM job_limit
             WHERE name IN (SELECT wname FROM wanted) ORDER BY name FOR UPDATE),
         room AS MATERIALIZED (
             SELECT COALESCE(bool_and(free >= slots), TRUE) AND count(*) = (SELECT count(*) FROM wanted) AS enough
             FROM wanted JOIN locked ON lname = wname),
         taken AS (UPDATE job_limit SET running = running + slots FROM wanted, room WHERE name = wname AND enough)
         {} WHERE id = ANY (ARRAY(SELECT fid FROM counted)) AND (SELECT enough FROM room) {returning}",
        update("(SELECT jsonb_object_agg(fid, fholds) FROM counted) ->> id"),
        class = Scope::Class(SlotClass::Short),
        from = LIMIT.len() + 1,
    )
}

/// Moves the jobs of those attempts to the history that succeeded, are their jobs' newest and held no database; gives back the
/// slots of their limits. Says which.
pub(super) async fn succeed(shared: &Shared, batch: &[Completion]) -> Result<HashSet<JobId>> {
    const DOING: &str = "ending an attempt";
    let mut ends = serde_json::Map::new();
    for completion in batch {
        if let Ending::Succeeded { result } = &completion.ending {
            let Fencing { job, token } = completion.fencing;
            // Where an attempt is ended twice, the first word counts.
            ends.entry(job.to_string())
                .or_insert(json!({"token": token.value(), "result": json_text(result)?}));
        }
    }
    if ends.is_empty() {
        return Ok(HashSet::new());
    }
    let sql = succeed_sql(shared.store.dialect, shared.limits_seen.load(Relaxed));
    let changed = shared
        .store
        .change(DOING, sql, &[V::S(json_text(&ends)?)])
        .await?;
    let (mut ended, mut freed) = (HashSet::new(), BTreeMap::new());
    for row in &changed {
        let fields = Fields::of(row, DOING);
        match fields.text_or_none("freed")? {
            Some(limit) => {
                freed.insert(limit, fields.number("slots")?);
            }
            None => {
                ended.insert(fields.parsed("id")?);
            }
        }
    }
    if !freed.is_empty() {
        match limits::wake_for(&shared.store, &freed).await {
            Ok(true) => shared.wake.wake(),
            Ok(false) => {}
            // The attempts have ended. What is parked is woken by the next end, or by whoever looks after what was forgotten.
            Err(error) => {
                tracing::debug!(%error, "jobs that are parked at limits were not woken");
            }
        }
    }
    Ok(ended)
}

/// The statement of [`succeed`]: a row for each job, and with limits one for each limit that got slots back.
fn succeed_sql(dialect: Dialect, with_limits: bool) -> String {
    // A database's name begins with the one or the other (see `claim::record_name`).
    let held = if with_limits {
        "(holds IS NULL OR holds NOT LIKE '%record:%' AND holds NOT LIKE '%database:%')"
    } else {
        "holds IS NULL"
    };
    let gone = format!(
        "WITH given AS MATERIALIZED (SELECT $1::jsonb AS ends),
              gone AS (DELETE FROM job WHERE id = ANY (ARRAY(SELECT jsonb_object_keys(ends) FROM given))
                       AND token = ((SELECT ends FROM given) -> id ->> 'token')::bigint AND state = 1 AND {held}
                       RETURNING job.*, (SELECT ends FROM given) -> id ->> 'result' AS vresult),
              forgotten AS (DELETE FROM checkpoint WHERE job = ANY (ARRAY(SELECT id FROM gone)))"
    );
    let into_history = into_history(
        dialect,
        "gone ORDER BY id",
        &EndColumns {
            state: &codes::state(JobState::Succeeded).to_string(),
            outcome: &codes::outcome(AttemptOutcome::Succeeded).to_string(),
            problem: "CAST(NULL AS TEXT)",
            tries: "tries",
            lost: "lost",
            ended: dialect.clock().unwrap_or_default(),
            position: dialect.position(""),
        },
    );
    if !with_limits {
        return format!(
            "{gone} {into_history} RETURNING id, CAST(NULL AS TEXT) AS freed, 0 AS slots"
        );
    }
    format!(
        "{gone},
         freed AS MATERIALIZED (
             SELECT substr(held, {from}) AS fname, count(*) AS slots
             FROM gone CROSS JOIN LATERAL unnest(string_to_array(holds, E'\\n')) held GROUP BY 1),
         locked AS MATERIALIZED (
             SELECT name AS lname FROM job_limit WHERE name IN (SELECT fname FROM freed) ORDER BY name FOR UPDATE),
         given_back AS (
             UPDATE job_limit SET running = GREATEST(running - slots, 0)
             FROM locked JOIN freed ON fname = lname WHERE name = lname),
         moved AS ({into_history} RETURNING id)
         SELECT id, CAST(NULL AS TEXT) AS freed, CAST(0 AS BIGINT) AS slots FROM moved
         UNION ALL SELECT NULL, fname, slots FROM freed",
        from = LIMIT.len() + 1,
    )
}
