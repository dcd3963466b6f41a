//! Jobs: how they are stored and read. What is done with them has a file each.

mod attempt;
mod claim;
mod complete;
mod control;
mod finish;
mod limits;
mod lines;
mod order;
mod plain;
mod queued;
mod read;
mod rescue;
mod submit;

use fettler_model::{AttemptToken, JobId, JobState, Priority, SlotClass, WaitReason};
use sqlx::any::AnyRow;

pub(crate) use attempt::fence;
pub(crate) use claim::{identity_name, record_name};
pub(crate) use complete::{Completion, complete_all};
pub(crate) use finish::{event, wake_first};
pub(crate) use lines::{check_labels, line, route};
pub(crate) use order::{LinesSeen, WEIGHT};
pub(crate) use read::{find_by_part, pattern_of};
pub(crate) use submit::{Submission, submit_all, submit_in};

use crate::{JobRecord, Result, codes, row::Fields};

/// The columns that a job has while it lives and after it has ended.
const COMMON: &str = "id, tenant, kind, kind_version, database_id, arguments, exclusion, slot, priority, submitted, \
    due, deadline, max_tries, unique_key, retry_of, tags, problem, tries, lost, cancel, state, token, worker, started, progress, terms";

/// The rest of a live job's columns, in the order of [`ENDED`].
const LIVE: &str = "CAST(NULL AS BIGINT) AS ended, CAST(NULL AS TEXT) AS result, lane, parked_at, wait, isolated, \
    lease_until, rank, holds, died, line";

/// The rest of an ended job's columns.
const ENDED: &str = "ended, result, 0 AS lane, CAST(NULL AS TEXT) AS parked_at, 0 AS wait, 0 AS isolated, \
    CAST(NULL AS BIGINT) AS lease_until, submitted AS rank, CAST(NULL AS TEXT) AS holds, 0 AS died, \
    CAST('' AS TEXT) AS line";

/// True of a job that may be claimed, in a statement that names jobs by id. The plus keeps databases from looking for the lane in
/// the index of the order: by an id there is one job.
const CLAIMABLE: &str = "+lane = 0 AND state = 0";

/// Where a live job stands: who holds the database at which it is parked; how many claimable jobs of its
/// tenant and kind come before it (counted to a hundred), and which comes first.
const STANDS: &str = "(SELECT r.job FROM resource r WHERE r.name = j.parked_at) AS holder, \
    (SELECT r.kind FROM resource r WHERE r.name = j.parked_at) AS holder_kind, \
    CASE WHEN j.lane = 0 AND j.state = 0 THEN (SELECT COUNT(*) FROM (SELECT a.id FROM job a \
        WHERE a.slot = j.slot AND a.kind = j.kind AND a.lane = 0 AND a.line = j.line AND a.tenant = j.tenant AND a.state = 0 \
          AND (a.rank, a.id || '') < (j.rank, j.id || '') LIMIT 100) c) ELSE 0 END AS ahead, \
    CASE WHEN j.lane = 0 AND j.state = 0 THEN (SELECT a.id FROM job a \
        WHERE a.slot = j.slot AND a.kind = j.kind AND a.lane = 0 AND a.line = j.line AND a.tenant = j.tenant AND a.state = 0 \
        ORDER BY a.rank, a.id || '' LIMIT 1) END AS first";

/// The same of an ended job.
const STOOD: &str = "CAST(NULL AS TEXT) AS holder, CAST(NULL AS TEXT) AS holder_kind, \
    CAST(0 AS BIGINT) AS ahead, CAST(NULL AS TEXT) AS first";

/// A live job as the ledger's own code works with it.
#[derive(Clone, Debug)]
struct Row {
    record: JobRecord,
    token: AttemptToken,
    lane: i64,
    /// What its attempt holds: the database first, then slots of limits.
    holds: Vec<String>,
    died: u32,
}

impl Row {
    fn read(row: &AnyRow, doing: &'static str) -> Result<Self> {
        let fields = Fields::of(row, doing);
        let record = record(row, doing)?;
        Ok(Self {
            token: AttemptToken::from_value(fields.number("token")?),
            lane: fields.number("lane")?,
            holds: fields
                .text_or_none("holds")?
                .map(|holds| holds.lines().map(ToOwned::to_owned).collect())
                .unwrap_or_default(),
            died: fields.small("died")?,
            record,
        })
    }

    fn id(&self) -> JobId {
        self.record.id
    }

    /// What its attempt holds, as [`finish::release`] takes it.
    fn held(&self) -> impl Iterator<Item = (String, JobId)> + '_ {
        self.holds.iter().map(|name| (name.clone(), self.id()))
    }

    fn is_long(&self) -> bool {
        self.record.slot == SlotClass::Long
    }
}

/// Reads a job. Why it waits at a resource stands in columns that only [`read`] selects.
fn record(row: &AnyRow, doing: &'static str) -> Result<JobRecord> {
    let fields = Fields::of(row, doing);
    let state = fields.code("state", codes::state_of)?;
    let token = AttemptToken::from_value(fields.number("token")?);
    let problem = fields.json_or_none("problem")?;
    let due = fields.time_or_none("due")?;
    let wait = match (state, fields.number("wait")?, due, &problem) {
        (JobState::Queued, codes::WAIT_NOT_BEFORE, Some(at), _) => {
            Some(WaitReason::NotBefore { at })
        }
        (JobState::Queued, codes::WAIT_RETRY, Some(at), Some(because)) => {
            Some(WaitReason::RetryAt {
                at,
                because: fettler_model::Problem::clone(because),
            })
        }
        (JobState::Queued, codes::WAIT_SNOOZE, Some(at), Some(because)) => {
            Some(WaitReason::Snoozed {
                at,
                because: because.clone(),
            })
        }
        (JobState::Queued, codes::WAIT_WINDOW, Some(opens), _) => {
            Some(WaitReason::WindowClosed { opens })
        }
        (JobState::Queued, ..) => Some(WaitReason::Ready),
        _ => None,
    };
    let tags = fields.json_or_none("tags")?.unwrap_or_default();
    Ok(JobRecord {
        id: fields.parsed("id")?,
        tenant: fields.parsed("tenant")?,
        kind: fields.parsed("kind")?,
        kind_version: fields.small("kind_version")?,
        database: fields.parsed_or_none("database_id")?,
        arguments: fields.json("arguments")?,
        exclusion: fields.code("exclusion", codes::exclusion_of)?,
        slot: fields.code("slot", codes::slot_of)?,
        priority: Priority::from_level(fields.number("priority")?),
        submitted: fields.time("submitted")?,
        not_before: due,
        deadline: fields.time_or_none("deadline")?,
        max_tries: fields.small("max_tries")?,
        unique_key: fields.text_or_none("unique_key")?,
        retry_of: fields.parsed_or_none("retry_of")?,
        tags,
        state,
        wait,
        attempt: token.attempt_number(),
        tries: fields.small("tries")?,
        lost: fields.small("lost")?,
        isolated: fields.number("isolated")? != 0,
        worker: fields.text_or_none("worker")?,
        started: fields.time_or_none("started")?,
        ended: fields.time_or_none("ended")?,
        lease_until: if state == JobState::Running {
            fields.time_or_none("lease_until")?
        } else {
            None
        },
        cancel_requested: fields.time_or_none("cancel")?,
        progress: fields.json_or_none("progress")?,
        terms: fields.json_or_none("terms")?.unwrap_or_default(),
        line: fields.text("line")?,
        result: fields.json_or_none("result")?,
        problem,
    })
}

/// Ids as the JSON array that [`crate::dialect::Dialect::among`] takes, in their order (rule 8).
fn id_list(ids: impl IntoIterator<Item = JobId>) -> String {
    let mut ids: Vec<JobId> = ids.into_iter().collect();
    ids.sort_unstable();
    serde_json::to_string(&ids).expect("ids are written as text")
}
