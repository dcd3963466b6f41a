//! Reading jobs. Live rows and history are looked at in one statement, so that a job which ends at that
//! moment is seen once (rule 12). Why a job waits is told by the resource that refused it and by the
//! workers that there are (P12).

use std::{collections::HashMap, time::Duration};

use fettler_model::{AttemptToken, JobId, JobState, TenantId, WaitReason};

use super::{
    COMMON, ENDED, LIVE, STANDS, STOOD,
    control::not_found,
    id_list,
    limits::{self, limit_reason},
    lines, record,
};
use crate::{
    AttemptRecord, Counts, JobFilter, JobRecord, Ledger, LedgerError, LimitRecord, PauseRecord,
    Result, WorkerRecord, WorkerSkills, codes,
    row::{Fields, json_text},
    store::V,
};

const DOING: &str = "reading jobs";
/// How many jobs a page has when nobody says, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// The shortest part of an id that is looked for.
const SHORTEST_PART: usize = 4;
/// How many ended jobs one pruning removes.
const PRUNED: i64 = 500;

impl Ledger {
    /// One job, live or ended.
    ///
    /// # Errors
    ///
    /// When there is none with this id.
    pub async fn job(&self, id: JobId) -> Result<JobRecord> {
        let text = id.to_string();
        let rows = self.select("id = $1", &[V::T(&text)], 2).await?;
        // A statement sees one moment, so that there is one.
        rows.into_iter().next().ok_or_else(|| not_found(&text))
    }

    /// The states of these jobs, of those that there are.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn states(&self, jobs: &[JobId]) -> Result<HashMap<JobId, JobState>> {
        if jobs.is_empty() {
            return Ok(HashMap::new());
        }
        let among = self.inner.store.dialect.among(1);
        let sql = format!(
            "SELECT id, state FROM job WHERE id {among} UNION ALL SELECT id, state FROM history WHERE id {among}"
        );
        let rows = self
            .inner
            .store
            .read(DOING, sql, &[V::S(id_list(jobs.iter().copied()))])
            .await?;
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                Ok((fields.parsed("id")?, fields.code("state", codes::state_of)?))
            })
            .collect()
    }

    /// The job whose id begins or ends like this (four digits or more), of this tenant or of all.
    ///
    /// # Errors
    ///
    /// When none or several fit.
    pub async fn find_job(&self, tenant: Option<&TenantId>, part: &str) -> Result<JobRecord> {
        let pattern = id_pattern(part).ok_or_else(|| not_found(part))?;
        let (condition, values) = part_condition(tenant, &pattern);
        let mut found = self.select(&condition, &values, 2).await?;
        match found.len() {
            0 => Err(not_found(part)),
            1 => Ok(found.remove(0)),
            _ => Err(LedgerError::Ambiguous {
                what: "job",
                name: part.to_owned(),
            }),
        }
    }

    /// A page of jobs, newest first.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobRecord>> {
        let (conditions, values) = conditions(filter)?;
        let limit = match filter.limit {
            0 => PAGE,
            limit => limit.min(MAX_PAGE),
        };
        self.select(&conditions.join(" AND "), &values, limit).await
    }

    async fn select(
        &self,
        condition: &str,
        values: &[V<'_>],
        limit: usize,
    ) -> Result<Vec<JobRecord>> {
        let sql = format!(
            "SELECT * FROM (
                 SELECT * FROM (SELECT {COMMON}, {LIVE}, {STANDS} FROM job j WHERE {condition} ORDER BY id DESC LIMIT {limit}) l
                 UNION ALL
                 SELECT * FROM (SELECT {COMMON}, {ENDED}, {STOOD} FROM history WHERE {condition} ORDER BY id DESC LIMIT {limit}) h
             ) u ORDER BY id DESC LIMIT {limit}"
        );
        let rows = self.inner.store.read(DOING, sql, values).await?;
        let records = rows
            .iter()
            .map(|row| record(row, DOING))
            .collect::<Result<Vec<_>>>()?;
        if records
            .iter()
            .all(|record| record.state != JobState::Queued)
        {
            return Ok(records);
        }
        let reasons = Reasons::read(self).await?;
        records
            .into_iter()
            .zip(&rows)
            .map(|(mut record, row)| {
                if record.state == JobState::Queued {
                    record.wait = reasons.of(&record, Fields::of(row, DOING))?;
                }
                Ok(record)
            })
            .collect()
    }

    /// The attempts of a job, oldest first.
    ///
    /// # Errors
    ///
    /// When there is no such job.
    pub async fn attempts(&self, job: JobId) -> Result<Vec<AttemptRecord>> {
        let id = job.to_string();
        let rows = self
            .inner
            .store
            .read(
                DOING,
                "SELECT number, token, worker, started, ended, outcome, problem FROM attempt WHERE job = $1
                 UNION ALL
                 SELECT 2147483647, token, worker, started, CAST(NULL AS BIGINT), CAST(NULL AS INTEGER), CAST(NULL AS TEXT)
                 FROM job WHERE id = $1 AND state = 1
                 UNION ALL
                 SELECT 2147483647, token, worker, started, ended, outcome, problem
                 FROM history WHERE id = $1 AND outcome IS NOT NULL
                 ORDER BY 1",
                &[V::T(&id)],
            )
            .await?;
        if rows.is_empty() {
            self.job(job).await?;
        }
        rows.iter()
            .map(|row| {
                let fields = Fields::of(row, DOING);
                let token = AttemptToken::from_value(fields.number("token")?);
                Ok(AttemptRecord {
                    number: token.attempt_number(),
                    token,
                    worker: fields.text_or_none("worker")?,
                    started: fields.time("started")?,
                    ended: fields.time_or_none("ended")?,
                    outcome: fields
                        .number_or_none("outcome")?
                        .and_then(codes::outcome_of),
                    problem: fields.json_or_none("problem")?,
                })
            })
            .collect()
    }

    /// How many jobs are queued and running.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn counts(&self) -> Result<Counts> {
        let row = self
            .inner
            .store
            .read_one(
                "counting jobs",
                "SELECT COUNT(*) AS live, COALESCE(SUM(state), 0) AS running FROM job",
                &[],
            )
            .await?;
        let Some(row) = row else {
            return Ok(Counts::default());
        };
        let fields = Fields::of(&row, DOING);
        let live = fields.number("live")?.unsigned_abs();
        let running = fields.number("running")?.unsigned_abs();
        Ok(Counts {
            queued: live - running,
            running,
        })
    }

    /// Removes a page of the oldest history that is older than `keep`, or beyond `max_bytes`, and returns
    /// how many jobs were removed: none when all is within both.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn prune_history(&self, keep: Duration, max_bytes: u64) -> Result<u64> {
        const DOING: &str = "pruning the history";
        let store = &self.inner.store;
        let row = store
            .read_one(
                DOING,
                "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes FROM history",
                &[],
            )
            .await?;
        let held = row
            .map(|row| Fields::of(&row, DOING).number("bytes"))
            .transpose()?
            .unwrap_or(0)
            .unsigned_abs();
        let mut transaction = store.begin(DOING).await?;
        let now = transaction.now().await?;
        let mut excess = held.saturating_sub(max_bytes);
        let oldest = transaction
            .rows(
                format!("SELECT id, ended, bytes FROM history ORDER BY tx, seq LIMIT {PRUNED}"),
                &[],
            )
            .await?;
        let too_old = now.minus(keep);
        let mut gone: Vec<String> = Vec::new();
        for row in &oldest {
            let fields = Fields::of(row, DOING);
            if fields.time("ended")? >= too_old && excess == 0 {
                break;
            }
            excess = excess.saturating_sub(fields.number("bytes")?.unsigned_abs());
            gone.push(fields.text("id")?);
        }
        if gone.is_empty() {
            return Ok(0);
        }
        gone.sort_unstable();
        let list = json_text(&gone)?;
        let among = transaction.dialect.among(1);
        for (table, column) in [
            ("attempt", "job"),
            ("job_log", "job"),
            ("event", "job"),
            ("history", "id"),
        ] {
            transaction
                .execute(
                    format!("DELETE FROM {table} WHERE {column} {among}"),
                    &[V::T(&list)],
                )
                .await?;
        }
        transaction.commit().await?;
        Ok(gone.len() as u64)
    }
}

/// The conditions of a filter on live and on ended jobs, and their values.
pub(super) fn conditions(filter: &JobFilter) -> Result<(Vec<String>, Vec<V<'static>>)> {
    let mut conditions = vec!["1 = 1".to_owned()];
    let mut values: Vec<V<'static>> = Vec::new();
    let mut with = |condition: &str, value: V<'static>| {
        values.push(value);
        conditions.push(condition.replace('?', &format!("${}", values.len())));
    };
    if let Some(tenant) = &filter.tenant {
        with("tenant = ?", V::S(tenant.to_string()));
    }
    if let Some(kind) = &filter.kind {
        with("kind = ?", V::S(kind.to_string()));
    }
    if let Some(database) = filter.database {
        with("database_id = ?", V::S(database.to_string()));
    }
    if let Some(before) = filter.before {
        with("id < ?", V::S(before.to_string()));
    }
    if let Some(tag) = &filter.tag {
        // Tags are kept as a JSON array of texts: its own quotes bound the word.
        let word = json_text(tag)?
            .replace('\\', "\\\\")
            .replace('%', "\\%")
            .replace('_', "\\_");
        with("tags LIKE ? ESCAPE '\\'", V::S(format!("%{word}%")));
    }
    if !filter.states.is_empty() {
        let codes: Vec<String> = filter
            .states
            .iter()
            .map(|state| codes::state(*state).to_string())
            .collect();
        conditions.push(format!("state IN ({})", codes.join(", ")));
    }
    Ok((conditions, values))
}

/// What tells why jobs wait (P12): the limits and pauses that there are, and what the living workers know. A job
/// that parked says itself at which it did; one that no claim has looked at yet is told what every claim
/// leaves it out for.
struct Reasons {
    limits: Vec<LimitRecord>,
    pauses: Vec<PauseRecord>,
    workers: Vec<WorkerRecord>,
}

impl Reasons {
    async fn read(ledger: &Ledger) -> Result<Self> {
        let now = ledger.now().await?;
        let workers = ledger.workers().await?;
        Ok(Self {
            limits: ledger.limits().await?,
            pauses: ledger.pauses().await?,
            workers: workers
                .into_iter()
                .filter(|worker| worker.alive_until > now)
                .collect(),
        })
    }

    fn of(&self, record: &JobRecord, fields: Fields<'_>) -> Result<Option<WaitReason>> {
        let reason = match fields.number("lane")? {
            codes::LANE_PARKED => self.where_parked(fields)?,
            codes::LANE_OPEN => Some(self.in_line(record, fields)?),
            _ => None,
        };
        Ok(reason.or_else(|| record.wait.clone()))
    }

    fn where_parked(&self, fields: Fields<'_>) -> Result<Option<WaitReason>> {
        let name = fields.text("parked_at")?;
        if let Some(name) = limits::limit_of(&name) {
            return Ok(self
                .limits
                .iter()
                .find(|limit| limit.scope.to_string() == name)
                .and_then(|limit| limit_reason(limit.scope.clone(), limit.most)));
        }
        if let Some(name) = limits::pause_of(&name) {
            return Ok(self
                .pauses
                .iter()
                .find(|pause| pause.scope.to_string() == name)
                .map(paused));
        }
        let holder = (
            fields.parsed_or_none("holder")?,
            fields.parsed_or_none("holder_kind")?,
        );
        Ok(match holder {
            (Some(job), Some(kind)) => Some(WaitReason::DatabaseBusy { job, kind }),
            _ => None,
        })
    }

    fn in_line(&self, record: &JobRecord, fields: Fields<'_>) -> Result<WaitReason> {
        let stops = limits::pauses_on(record);
        if let Some(pause) = self
            .pauses
            .iter()
            .find(|pause| stops.contains(&pause.scope.to_string()))
        {
            return Ok(paused(pause));
        }
        if let Some(reason) = self.without_worker(record) {
            return Ok(reason);
        }
        let counts = limits::limits_on(record, None);
        let full = self
            .limits
            .iter()
            .find(|limit| limit.running >= limit.most && counts.contains(&limit.scope.to_string()));
        if let Some(reason) = full.and_then(|limit| limit_reason(limit.scope.clone(), limit.most)) {
            return Ok(reason);
        }
        let ahead = fields.number("ahead")?.unsigned_abs();
        Ok(match fields.parsed_or_none("first")? {
            Some(job) if ahead > 0 => WaitReason::QueuedBehind { job, ahead },
            _ => WaitReason::Ready,
        })
    }
}

impl Reasons {
    /// What the living workers lack for a job.
    fn without_worker(&self, record: &JobRecord) -> Option<WaitReason> {
        let mut able: Vec<&WorkerSkills> = self
            .workers
            .iter()
            .filter(|worker| worker.kinds.contains(&record.kind))
            .map(|worker| &worker.skills)
            .collect();
        let kind = record.kind.clone();
        if able.is_empty() {
            return Some(WaitReason::NoWorkerForKind { kind });
        }
        let version = record.kind_version;
        able.retain(|skills| skills.versions.get(&kind).copied().unwrap_or(1) >= version);
        if able.is_empty() {
            return Some(WaitReason::NoWorkerForVersion { kind, version });
        }
        let labels = lines::labels_of(&record.line);
        able.retain(|skills| lines::reaches(&skills.labels, &labels));
        able.is_empty()
            .then_some(WaitReason::NoWorkerReaches { labels })
    }
}

fn paused(pause: &PauseRecord) -> WaitReason {
    WaitReason::Paused {
        what: pause.scope.clone(),
        because: pause.because.clone(),
    }
}

/// The digits of a part of an id, as they are looked for: with the hyphens of a whole id where the part
/// begins one.
fn id_pattern(part: &str) -> Option<Vec<String>> {
    let part = part.trim().to_ascii_lowercase();
    let digits: String = part.chars().filter(|c| *c != '-').collect();
    let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex || digits.len() < SHORTEST_PART || digits.len() > 32 {
        return None;
    }
    Some(vec![
        format!("{}%", hyphenated(&digits, 0)),
        format!("%{}", hyphenated(&digits, 32 - digits.len())),
    ])
}

/// Puts an id's hyphens into digits that stand at this offset of it.
fn hyphenated(digits: &str, offset: usize) -> String {
    let mut text = String::with_capacity(36);
    for (at, digit) in (offset..).zip(digits.chars()) {
        if matches!(at, 8 | 12 | 16 | 20) && at > offset {
            text.push('-');
        }
        text.push(digit);
    }
    text
}

fn part_condition<'v>(tenant: Option<&'v TenantId>, pattern: &'v [String]) -> (String, Vec<V<'v>>) {
    let mut values = vec![V::T(&pattern[0]), V::T(&pattern[1])];
    let mut condition = "(id LIKE $1 OR id LIKE $2)".to_owned();
    if let Some(tenant) = tenant {
        values.push(V::T(tenant.as_str()));
        condition.push_str(" AND tenant = $3");
    }
    (condition, values)
}

/// The same for the catalogue.
pub(crate) fn find_by_part<'v>(
    tenant: Option<&'v TenantId>,
    pattern: &'v [String],
) -> (String, Vec<V<'v>>) {
    part_condition(tenant, pattern)
}

/// See [`id_pattern`].
pub(crate) fn pattern_of(part: &str) -> Option<Vec<String>> {
    id_pattern(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_an_id_is_found_at_its_beginning_and_at_its_end() {
        assert_eq!(
            id_pattern("0198a1b2-C3").unwrap(),
            ["0198a1b2-c3%", "%0198a1b2c3"]
        );
        assert_eq!(id_pattern("a1b2c3d4e5f6a7").unwrap()[1], "%a1-b2c3d4e5f6a7");
        assert!(id_pattern("abc").is_none());
        assert!(id_pattern("shop").is_none());
    }
}
