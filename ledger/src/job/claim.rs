//! Claiming: one short transaction for a batch, durable before a job starts (rule 3). Candidates come in
//! the ledger's order or as a queue delivered them; one whose database is held parks there (rule 4).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use fettler_model::{
    AttemptToken, DatabaseId, DatabaseUrl, JobId, JobKindName, JobState, SlotClass, Timestamp,
    WaitReason,
};
use serde_json::{Value, json};

use super::{
    CLAIMABLE, COMMON, LIVE, Row,
    finish::{Finish, finish, wake_first},
    id_list,
    limits::{self, Limits},
    lines,
    order::{self, Hints, LinesSeen},
    plain,
};
use crate::{
    ClaimRequest, Claimed, ClaimedBatch, Fencing, JobRecord, Ledger, LedgerError, Result, codes,
    dialect::{Column, Dialect},
    row::{Fields, json_text},
    store::{Transaction, V},
};

const DOING: &str = "claiming jobs";
/// How many jobs one claim takes at most.
pub(super) const MAX_CLAIM: usize = 500;
/// How often a claim looks for more in place of those that it had to park.
const ROUNDS: usize = 8;
/// How many jobs a queue delivers at once at most.
const MAX_GIVEN: usize = 1000;
/// When a claim looks again that found nothing but what others were at.
const CONTENDED: Duration = Duration::from_millis(20);
/// How many delayed jobs become claimable in one claim.
const PROMOTED: i64 = 500;

/// Whether a job needs its database for itself.
pub(super) fn excludes(record: &JobRecord) -> bool {
    record.database.is_some() && record.exclusion.excludes(record.exclusion)
}

impl Ledger {
    /// Claims jobs for a worker, as many as it has room for: each gets a new fencing token (rule 2) and
    /// a lease. A job whose database is held by another one parks there and says why (P12).
    ///
    /// # Errors
    ///
    /// When the ledger is away; then nothing was claimed, or leases run out unused.
    pub async fn claim(&self, request: &ClaimRequest) -> Result<ClaimedBatch> {
        self.claim_from(request, request.only.as_deref()).await
    }

    /// Claims only these jobs, as a queue delivered them; the worker's room bounds how many.
    ///
    /// # Errors
    ///
    /// As [`Ledger::claim`].
    pub async fn claim_by_ids(
        &self,
        request: &ClaimRequest,
        ids: &[JobId],
    ) -> Result<ClaimedBatch> {
        self.claim_from(request, Some(ids)).await
    }

    async fn claim_from(
        &self,
        request: &ClaimRequest,
        ids: Option<&[JobId]>,
    ) -> Result<ClaimedBatch> {
        let mut claimed = Vec::new();
        let mut left = None;
        if let Some(ids) = ids
            && !ids.is_empty()
            && self.inner.store.dialect == Dialect::Postgres
        {
            self.keep_announced(request).await?;
            let plain = plain::claim(&self.inner.shared, request, ids).await?;
            let taken: HashSet<JobId> = plain.claimed.iter().map(|one| one.job.id).collect();
            let rest: Vec<JobId> = ids
                .iter()
                .copied()
                .filter(|id| !taken.contains(id))
                .collect();
            if rest.is_empty() && plain.next_due_in != Some(Duration::ZERO) {
                return Ok(ClaimedBatch {
                    jobs: plain.claimed,
                    next_due_in: plain.next_due_in,
                });
            }
            claimed = plain.claimed;
            left = Some(rest);
        }
        let ids = left.as_deref().or(ids);
        let outlook = self.outlook(request, ids).await?;
        let (due, now) = (outlook.due, outlook.now);
        let is_due = due.is_some_and(|due| due <= now);
        if !outlook.is_ready && !is_due {
            self.keep_announced(request).await?;
            return Ok(ClaimedBatch {
                jobs: claimed,
                next_due_in: due.map(|due| due.since(now)),
            });
        }
        let routes = if outlook.has_routes {
            lines::routes(&self.inner.store).await?
        } else {
            BTreeSet::new()
        };
        let mut transaction = self.inner.store.begin(DOING).await?;
        // Asked again: an attempt starts after the one before has ended.
        let now = transaction.now().await?;
        if is_due {
            promote(&mut transaction, now).await?;
        }
        let announce = self.must_announce(request);
        if announce {
            super::attempt::announce(
                &mut transaction,
                &request.worker,
                Some((&request.kinds, &request.skills)),
                now,
                request.lease,
            )
            .await?;
        }
        let batch = Batch {
            request,
            now,
            ageing: self.inner.shared.options.ageing,
            seen: &self.inner.lines_seen,
            has_rules: outlook.has_rules,
            lines: lines::lines_for(request, &routes),
            room: Room::of_request(request).without(&claimed),
        };
        let outcome = match ids {
            Some(ids) => claim_given(&mut transaction, &batch, ids).await?,
            None => claim_in_order(&mut transaction, &batch).await?,
        };
        let next_due = if is_due {
            let row = transaction
                .row("SELECT MIN(due) AS due FROM job WHERE lane = 1", &[])
                .await?;
            row.map(|row| Fields::of(&row, DOING).time_or_none("due"))
                .transpose()?
                .flatten()
        } else {
            due
        };
        transaction.commit().await?;
        if !outcome.claimed.is_empty() {
            fettler_fault_points::reached(fettler_fault_points::Point::ClaimCommitted);
        }
        if announce {
            self.announced(request);
        }
        let mut next_due_in = next_due.map(|due| due.since(now));
        if outcome.claimed.is_empty() && outcome.is_contended {
            next_due_in = Some(next_due_in.map_or(CONTENDED, |due| due.min(CONTENDED)));
        }
        claimed.extend(outcome.claimed);
        Ok(ClaimedBatch {
            jobs: claimed,
            next_due_in,
        })
    }

    /// What a claim is about to meet: asked without a lock, so that an idle worker costs nothing. Where jobs are given, it is
    /// not asked whether there are any.
    async fn outlook(&self, request: &ClaimRequest, given: Option<&[JobId]>) -> Result<Outlook> {
        let store = &self.inner.store;
        let dialect = store.dialect;
        let (ready, kinds) = match given {
            Some(_) => ("0 AS ready_long, 0 AS ready_short".to_owned(), None),
            None => {
                let of = |slot| {
                    format!(
                        "CASE WHEN EXISTS (SELECT 1 FROM job WHERE slot = {slot} AND kind {} AND lane = 0 AND state = 0)
                              THEN 1 ELSE 0 END",
                        dialect.among(1)
                    )
                };
                (
                    format!("{} AS ready_long, {} AS ready_short", of(0), of(1)),
                    Some(V::S(json_text(&request.kinds)?)),
                )
            }
        };
        let sql = format!(
            "SELECT (SELECT MIN(due) FROM job WHERE lane = 1) AS due, {ready}, {clock} AS now,
                    CASE WHEN EXISTS (SELECT 1 FROM job_limit) THEN 1 ELSE 0 END AS limits,
                    CASE WHEN EXISTS (SELECT 1 FROM pause) THEN 1 ELSE 0 END AS pauses,
                    CASE WHEN EXISTS (SELECT 1 FROM database_record WHERE route <> '') THEN 1 ELSE 0 END AS routes",
            clock = dialect.clock().unwrap_or("0"),
        );
        let values: Vec<V<'_>> = kinds.into_iter().collect();
        let row = store
            .read_one(DOING, sql, &values)
            .await?
            .ok_or(LedgerError::Damaged {
                doing: DOING,
                what: "a statement that gives one row gave none".to_owned(),
            })?;
        let fields = Fields::of(&row, DOING);
        let is_ready = match given {
            Some(ids) => !ids.is_empty(),
            None => {
                (request.long > 0 && fields.number("ready_long")? != 0)
                    || (request.short > 0 && fields.number("ready_short")? != 0)
            }
        };
        let has_limits = fields.number("limits")? != 0;
        self.inner.shared.limits_seen.store(has_limits, Relaxed);
        Ok(Outlook {
            due: fields.time_or_none("due")?,
            now: match dialect.clock() {
                Some(_) => fields.time("now")?,
                None => Timestamp::now(),
            },
            is_ready,
            has_rules: has_limits || fields.number("pauses")? != 0,
            has_routes: fields.number("routes")? != 0,
        })
    }

    /// The running attempt that this process was started for (rule 7): the claim as it stands.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Superseded`] when the attempt is not the job's newest or does not run.
    pub async fn claimed(&self, fencing: Fencing) -> Result<Claimed> {
        let sql = format!(
            "SELECT {COMMON}, {LIVE} FROM job j WHERE id = $1 AND token = $2 AND state = 1"
        );
        let values = [V::S(fencing.job.to_string()), V::N(fencing.token.value())];
        let row = self
            .inner
            .store
            .read_one(DOING, sql, &values)
            .await?
            .ok_or(LedgerError::Superseded {
                job: fencing.job,
                token: fencing.token,
            })?;
        let job = Row::read(&row, DOING)?.record;
        let lease_until = job.lease_until.unwrap_or(job.submitted);
        Ok(Claimed {
            job,
            token: fencing.token,
            lease_until,
        })
    }

    fn must_announce(&self, request: &ClaimRequest) -> bool {
        let announced = self.inner.announced();
        announced
            .get(&request.worker)
            .is_none_or(|at: &Instant| at.elapsed() > request.lease / 3)
    }

    fn announced(&self, request: &ClaimRequest) {
        self.inner
            .announced()
            .insert(request.worker.clone(), Instant::now());
    }

    /// Says that a worker is there which found nothing to do.
    async fn keep_announced(&self, request: &ClaimRequest) -> Result<()> {
        if self.must_announce(request) {
            self.announce_skilled(
                &request.worker,
                &request.kinds,
                &request.skills,
                request.lease,
            )
            .await?;
            self.announced(request);
        }
        Ok(())
    }
}

/// Makes delayed jobs claimable whose time has come.
async fn promote(transaction: &mut Transaction, now: Timestamp) -> Result<()> {
    let skip_locked = transaction.dialect.skip_locked();
    let promoted = transaction
        .rows(
            format!(
                "UPDATE job SET lane = 0, wait = 0
                 WHERE id IN (SELECT id FROM job WHERE lane = 1 AND due <= $1 ORDER BY due LIMIT {PROMOTED} {skip_locked})
                 RETURNING id"
            ),
            &[V::N(now.micros())],
        )
        .await?;
    for row in &promoted {
        let id = Fields::of(row, DOING).parsed("id")?;
        transaction.ready.push(id);
    }
    Ok(())
}

/// See [`Ledger::outlook`].
struct Outlook {
    /// The next due time of a delayed job.
    due: Option<Timestamp>,
    /// The ledger's clock.
    now: Timestamp,
    /// Something may be claimable.
    is_ready: bool,
    /// There are limits or pauses.
    has_rules: bool,
    /// There are databases that not every worker reaches.
    has_routes: bool,
}

/// What a batch of claims works with.
struct Batch<'r> {
    request: &'r ClaimRequest,
    now: Timestamp,
    ageing: Duration,
    seen: &'r LinesSeen,
    /// There are limits or pauses.
    has_rules: bool,
    /// The lines of each kind that the worker can serve.
    lines: Vec<(JobKindName, String)>,
    /// What the worker has room for.
    room: Room,
}

/// What a batch of claims gave.
#[derive(Default)]
struct Outcome {
    claimed: Vec<Claimed>,
    /// Others were at the same jobs, so that there may be more than this.
    is_contended: bool,
}

/// Claims from the ledger's own order.
async fn claim_in_order(transaction: &mut Transaction, batch: &Batch<'_>) -> Result<Outcome> {
    let mut room = batch.room;
    let mut outcome = Outcome::default();
    let mut passed = HashSet::new();
    let mut hints = Hints::default();
    if batch.has_rules {
        match Hints::read(transaction).await? {
            Some(read) => hints = read,
            // Everything is paused.
            None => return Ok(outcome),
        }
    }
    for _ in 0..ROUNDS {
        let chosen = order::choose(
            transaction,
            &batch.lines,
            &room,
            &hints,
            &passed,
            batch.seen,
            (batch.now, batch.ageing),
        )
        .await?;
        if chosen.jobs.is_empty() {
            return Ok(outcome);
        }
        let candidates = lock_candidates(transaction, batch, &chosen.jobs).await?;
        let locked: HashSet<JobId> = candidates.iter().map(Row::id).collect();
        passed.extend(chosen.jobs.iter().filter(|id| !locked.contains(*id)));
        let before = outcome.claimed.len();
        decide(
            transaction,
            batch,
            candidates,
            &mut room,
            &mut hints,
            &mut outcome.claimed,
        )
        .await?;
        let new = outcome.claimed[before..].iter().map(|one| one.job.id);
        chosen.charge(transaction, new).await?;
        if room.is_full() {
            break;
        }
    }
    outcome.is_contended = !passed.is_empty();
    Ok(outcome)
}

/// Claims what a queue delivered, in the order in which it did.
async fn claim_given(
    transaction: &mut Transaction,
    batch: &Batch<'_>,
    ids: &[JobId],
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    if ids.is_empty() {
        return Ok(outcome);
    }
    let candidates = lock_candidates(transaction, batch, ids).await?;
    decide(
        transaction,
        batch,
        candidates,
        &mut { batch.room },
        &mut Hints::default(),
        &mut outcome.claimed,
    )
    .await?;
    Ok(outcome)
}

/// How many jobs of each class the worker still has room for.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) long: usize,
    pub(super) short: usize,
}

impl Room {
    fn of_request(request: &ClaimRequest) -> Self {
        Self {
            long: request.long.min(MAX_CLAIM),
            short: request.short.min(MAX_CLAIM),
        }
    }

    /// The room that these claims leave.
    fn without(mut self, claimed: &[Claimed]) -> Self {
        for claimed in claimed {
            let free = match claimed.job.slot {
                SlotClass::Long => &mut self.long,
                SlotClass::Short => &mut self.short,
            };
            *free = free.saturating_sub(1);
        }
        self
    }

    fn of(&mut self, row: &Row) -> &mut usize {
        if row.is_long() {
            &mut self.long
        } else {
            &mut self.short
        }
    }

    const fn is_full(&self) -> bool {
        self.long == 0 && self.short == 0
    }
}

/// Locks those of these jobs that are claimable and not locked by somebody else, and gives them in the
/// order given.
async fn lock_candidates(
    transaction: &mut Transaction,
    batch: &Batch<'_>,
    ids: &[JobId],
) -> Result<Vec<Row>> {
    let dialect = transaction.dialect;
    let sql = format!(
        "SELECT {COMMON}, {LIVE} FROM job WHERE id {} AND {CLAIMABLE} ORDER BY id LIMIT {MAX_GIVEN} {}",
        dialect.among(1),
        dialect.skip_locked()
    );
    let values = [V::S(id_list(ids.iter().copied()))];
    let rows = transaction.rows(sql, &values).await?;
    let served: HashSet<(&JobKindName, &str)> = batch
        .lines
        .iter()
        .map(|(kind, line)| (kind, line.as_str()))
        .collect();
    let mut candidates = rows
        .iter()
        .map(|row| Row::read(row, DOING))
        .collect::<Result<Vec<_>>>()?;
    // What this worker cannot run is another one's.
    candidates.retain(|row| served.contains(&(&row.record.kind, row.record.line.as_str())));
    let place: HashMap<JobId, usize> = ids.iter().copied().zip(0..).collect();
    candidates.sort_by_key(|row| place.get(&row.id()).copied());
    Ok(candidates)
}

/// What a claim has to know of the databases of its candidates.
#[derive(Debug, Default)]
pub(super) struct Databases {
    /// What excludes jobs on each: its own identity, or its record until that is known (rule 17).
    resources: HashMap<DatabaseId, String>,
    servers: HashMap<DatabaseId, String>,
}

impl Databases {
    /// The server that a job's database is on.
    pub(super) fn server_of(&self, row: &Row) -> Option<&str> {
        self.servers.get(&row.record.database?).map(String::as_str)
    }

    /// What a job must hold alone.
    pub(super) fn resource_of(&self, row: &Row) -> Option<&String> {
        self.resources
            .get(&row.record.database.filter(|_| excludes(&row.record))?)
    }
}

/// Reads what is to be known of these jobs' databases. The records of those that exclude others stay as they
/// are until the commit.
pub(super) async fn database_facts<'r>(
    transaction: &mut Transaction,
    rows: impl Iterator<Item = &'r Row>,
) -> Result<Databases> {
    let mut facts = Databases::default();
    let (mut shared, mut all) = (BTreeSet::new(), BTreeSet::new());
    for row in rows {
        if let Some(database) = row.record.database {
            all.insert(database);
            if excludes(&row.record) {
                shared.insert(database);
                facts.resources.insert(database, record_name(database));
            }
        }
    }
    if all.is_empty() {
        return Ok(facts);
    }
    let dialect = transaction.dialect;
    let lock = if shared.is_empty() {
        ""
    } else {
        dialect.for_share()
    };
    let sql = format!(
        "SELECT id, identity_key, url FROM database_record WHERE id {} ORDER BY id {lock}",
        dialect.among(1),
    );
    for row in &transaction.rows(sql, &[V::S(json_text(&all)?)]).await? {
        let fields = Fields::of(row, DOING);
        let id = fields.parsed("id")?;
        if let Some(identity) = fields.text_or_none("identity_key")?
            && shared.contains(&id)
        {
            facts.resources.insert(id, identity_name(&identity));
        }
        let url = DatabaseUrl::try_from(fields.text("url")?);
        if let Some(server) = url.ok().and_then(|url| url.server()) {
            facts.servers.insert(id, server);
        }
    }
    Ok(facts)
}

/// What stands against a job now.
enum Refusal {
    /// It waits for a time: its window is closed.
    Until(Timestamp),
    /// It parks under this name.
    At(String),
}

/// A job that is claimed, and what it holds: its database first, then slots of limits.
struct Taken {
    row: Row,
    resource: Option<String>,
    limits: Vec<String>,
}

/// Claims, parks, delays or expires each candidate. Says in `hints` what is full now.
async fn decide(
    transaction: &mut Transaction,
    batch: &Batch<'_>,
    candidates: Vec<Row>,
    room: &mut Room,
    hints: &mut Hints,
    claimed: &mut Vec<Claimed>,
) -> Result<()> {
    let now = batch.now;
    let (expired, candidates): (Vec<Row>, Vec<Row>) = candidates
        .into_iter()
        .partition(|row| row.record.deadline.is_some_and(|at| at <= now));
    let ends: Vec<Finish<'_>> = expired
        .iter()
        .map(|row| Finish::unrun(row, JobState::Expired))
        .collect();
    finish(transaction, now, &ends).await?;

    let all = || candidates.iter().chain(&expired);
    let databases = database_facts(transaction, all()).await?;
    let (limit_names, pause_names) = if batch.has_rules {
        limits::names_of(all().map(|row| (row, databases.server_of(row))))
    } else {
        Default::default()
    };
    let mut limits = Limits::lock(transaction, limit_names, pause_names).await?;
    let mut holders = lock_resources(transaction, &databases.resources, now).await?;

    let (mut taken, mut parked, mut delayed) = (Vec::new(), Vec::new(), Vec::new());
    let mut passed: BTreeSet<String> = BTreeSet::new();
    for row in &expired {
        let names = limits.known(limits::limits_on(&row.record, databases.server_of(row)));
        limits.pass_on(&names, None);
        passed.extend(databases.resource_of(row).cloned());
    }
    for row in candidates {
        let free = room.of(&row);
        if *free == 0 {
            continue;
        }
        let names = limits.known(limits::limits_on(&row.record, databases.server_of(&row)));
        let resource = databases.resource_of(&row).cloned();
        let refusal = if let Some(name) = limits.pause_against(&row.record) {
            Some(Refusal::At(name))
        } else if let Some(opens) = closed_until(&row, now) {
            Some(Refusal::Until(opens))
        } else {
            limits.limit_against(&names).map(Refusal::At)
        };
        if let Some(refusal) = refusal {
            // Whatever it would have got is free for the next in line there.
            limits.pass_on(
                &names,
                match &refusal {
                    Refusal::At(name) => Some(name),
                    Refusal::Until(_) => None,
                },
            );
            passed.extend(resource);
            match refusal {
                Refusal::At(name) => parked.push((row, name)),
                Refusal::Until(opens) => delayed.push((row, opens)),
            }
            continue;
        }
        if let Some(name) = &resource {
            let holder = holders.entry(name.clone()).or_default();
            if holder.is_some() {
                limits.pass_on(&names, None);
                parked.push((row, name.clone()));
                continue;
            }
            *holder = Some((row.id(), row.record.kind.clone()));
        }
        *free -= 1;
        limits.take(&names);
        taken.push(Taken {
            row,
            resource,
            limits: names,
        });
    }
    park(transaction, &parked).await?;
    delay(transaction, &delayed).await?;
    limits.write(transaction).await?;
    limits.tell(hints);
    take_resources(transaction, &taken, now).await?;
    for name in passed {
        if holders.get(&name).is_none_or(Option::is_none) {
            wake_first(transaction, &name).await?;
        }
    }
    take(transaction, batch.request, now, taken, claimed).await
}

/// When a job's window opens, while it is closed. A window that cannot be read was refused when the job was
/// submitted.
fn closed_until(row: &Row, now: Timestamp) -> Option<Timestamp> {
    let window = row.record.terms.window.as_ref()?.clock().ok()?;
    (!window.is_open(now)).then(|| window.next_open(now))
}

/// The name of a database as a resource while its identity is not known.
pub(crate) fn record_name(id: DatabaseId) -> String {
    format!("record:{id}")
}

/// The name of a database as a resource.
pub(crate) fn identity_name(identity: &str) -> String {
    format!("database:{identity}")
}

type Holders = BTreeMap<String, Option<(JobId, JobKindName)>>;

/// Locks the rows of these resources, in the order of their names, once for the whole batch.
async fn lock_resources(
    transaction: &mut Transaction,
    names: &HashMap<DatabaseId, String>,
    now: Timestamp,
) -> Result<Holders> {
    if names.is_empty() {
        return Ok(Holders::new());
    }
    let dialect = transaction.dialect;
    let mut sorted: Vec<&String> = names.values().collect();
    sorted.sort_unstable();
    sorted.dedup();
    let list = json_text(&sorted)?;
    transaction
        .execute(
            format!(
                "INSERT INTO resource (name, since) SELECT name, $2 FROM {} v WHERE 1 = 1 ORDER BY name
                 ON CONFLICT (name) DO NOTHING",
                dialect.rows(1, &[("name", Column::Text)])
            ),
            &[
                V::S(json_text(
                    &sorted
                        .iter()
                        .map(|name| json!({"name": name}))
                        .collect::<Vec<_>>(),
                )?),
                V::N(now.micros()),
            ],
        )
        .await?;
    let sql = format!(
        "SELECT name, job, kind FROM resource WHERE name {} ORDER BY name {}",
        dialect.among(1),
        dialect.for_update()
    );
    let rows = transaction.rows(sql, &[V::S(list)]).await?;
    rows.iter()
        .map(|row| {
            let fields = Fields::of(row, DOING);
            let holder = match (
                fields.parsed_or_none("job")?,
                fields.parsed_or_none("kind")?,
            ) {
                (Some(job), Some(kind)) => Some((job, kind)),
                _ => None,
            };
            Ok((fields.text("name")?, holder))
        })
        .collect()
}

/// Parks jobs at the resources that refused them; their age and place stay (rule 4).
async fn park(transaction: &mut Transaction, parked: &[(Row, String)]) -> Result<()> {
    if parked.is_empty() {
        return Ok(());
    }
    let rows: Vec<Value> = parked
        .iter()
        .map(|(row, name)| json!({"vid": row.id(), "vname": name}))
        .collect();
    transaction
        .execute(
            format!(
                "UPDATE job SET lane = 2, parked_at = vname FROM {} v WHERE id = vid AND {CLAIMABLE}",
                transaction
                    .dialect
                    .rows(1, &[("vid", Column::Text), ("vname", Column::Text)])
            ),
            &[V::S(json_text(&rows)?)],
        )
        .await?;
    Ok(())
}

/// Lets jobs wait for a time, with their age and their place.
async fn delay(transaction: &mut Transaction, delayed: &[(Row, Timestamp)]) -> Result<()> {
    for (row, opens) in delayed {
        transaction
            .execute(
                "UPDATE job SET lane = $1, due = $2, wait = $3 WHERE id = $4 AND state = 0 AND +lane = 0",
                &[
                    V::N(codes::LANE_DELAYED),
                    V::N(opens.micros()),
                    V::N(codes::WAIT_WINDOW),
                    V::S(row.id().to_string()),
                ],
            )
            .await?;
    }
    Ok(())
}

/// Writes who holds the resources; the condition that decides stands in the statement (rule 3).
async fn take_resources(
    transaction: &mut Transaction,
    taken: &[Taken],
    now: Timestamp,
) -> Result<()> {
    let rows: Vec<Value> = taken
        .iter()
        .filter_map(|Taken { row, resource, .. }| {
            resource
                .as_ref()
                .map(|name| json!({"vname": name, "vjob": row.id(), "vkind": row.record.kind}))
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let written = transaction
        .execute(
            format!(
                "UPDATE resource SET job = vjob, kind = vkind, since = $2 FROM {} v WHERE name = vname AND job IS NULL",
                transaction.dialect.rows(
                    1,
                    &[
                        ("vname", Column::Text),
                        ("vjob", Column::Text),
                        ("vkind", Column::Text)
                    ]
                )
            ),
            &[V::S(json_text(&rows)?), V::N(now.micros())],
        )
        .await?;
    if written == rows.len() as u64 {
        Ok(())
    } else {
        Err(LedgerError::Busy {
            doing: DOING,
            what: "a resource was taken at the same moment".to_owned(),
        })
    }
}

/// Makes the jobs this worker's: new tokens, new leases.
async fn take(
    transaction: &mut Transaction,
    request: &ClaimRequest,
    now: Timestamp,
    taken: Vec<Taken>,
    claimed: &mut Vec<Claimed>,
) -> Result<()> {
    if taken.is_empty() {
        return Ok(());
    }
    let lease_until = now.plus(request.lease);
    let mut tokens = HashMap::with_capacity(taken.len());
    let rows: Vec<Value> = taken
        .iter()
        .map(
            |Taken {
                 row,
                 resource,
                 limits,
             }| {
                let token = AttemptToken::new(row.token.attempt_number() + 1, rand::random());
                tokens.insert(row.id(), token);
                let limits = limits.iter().map(|name| limits::limit_name(name));
                let holds: Vec<String> = resource.iter().cloned().chain(limits).collect();
                let holds = (!holds.is_empty()).then(|| holds.join("\n"));
                json!({"vid": row.id(), "vtoken": token.value(), "vholds": holds})
            },
        )
        .collect();
    let sql = format!(
        "UPDATE job SET state = 1, token = vtoken, worker = $2, started = $3, lease_until = $4, holds = vholds, progress = NULL
         FROM {} v WHERE id = vid AND {CLAIMABLE}
         RETURNING id",
        transaction.dialect.rows(
            1,
            &[
                ("vid", Column::Text),
                ("vtoken", Column::Number),
                ("vholds", Column::Text)
            ]
        )
    );
    let values = [
        V::S(json_text(&rows)?),
        V::T(&request.worker),
        V::N(now.micros()),
        V::N(lease_until.micros()),
    ];
    let changed = transaction.rows(sql, &values).await?.len();
    if changed != taken.len() {
        return Err(LedgerError::Busy {
            doing: DOING,
            what: "a job was changed at the same moment".to_owned(),
        });
    }
    for Taken { row, .. } in taken {
        let token = tokens[&row.id()];
        claimed.push(Claimed {
            token,
            lease_until,
            job: JobRecord {
                state: JobState::Running,
                wait: None::<WaitReason>,
                attempt: token.attempt_number(),
                worker: Some(request.worker.clone()),
                started: Some(now),
                lease_until: Some(lease_until),
                progress: None,
                ..row.record
            },
        });
    }
    Ok(())
}

/// How long a worker counts as alive after it was heard of.
pub(super) fn alive_until(now: Timestamp, lease: Duration) -> Timestamp {
    now.plus(lease)
}
