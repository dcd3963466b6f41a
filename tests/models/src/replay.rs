//! Histories of real ledgers, replayed: what the ledger recorded of its jobs, attempts, events and due times is
//! read into the steps of the models ([`crate::claim`], [`crate::rescue`], [`crate::tick`]) and accepted, or
//! refused with the first step that they do not allow.
//!
//! The models are bounded and their histories are not, so that their rules are applied here to any number of
//! jobs: a claim needs a job that waits, a database that nobody holds and a slot of each limit; an end is the
//! running attempt's own; a job goes on or ends as its attempts say; a due time has one job.
//!
//! It models
//! - `ledger/src/job/claim.rs`: `take`, `take_resources`
//! - `ledger/src/job/complete.rs`: `decide`, `complete_all`
//! - `ledger/src/job/rescue.rs`: `take_back`
//! - `ledger/src/job/finish.rs`: `finish`, `requeue`
//! - `ledger/src/policies.rs`: `tick_batch`

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use fettler_ledger::{
    AttemptRecord, EventPosition, EventRecord, JobFilter, JobRecord, Ledger, LimitRecord,
    Result as LedgerResult, TickRecord,
};
use fettler_model::{
    AttemptOutcome, AttemptToken, DatabaseId, ErrorClass, JobId, JobState, PolicyId, Scope,
    TickOutcome, Timestamp,
};
use thiserror::Error;

/// How many jobs or events are read at once.
const PAGE: usize = 1000;
/// How many due times of a policy are read.
const MOST_TICKS: usize = 100_000;
/// A job that lost its worker this often is dead.
const MAX_LOST: u32 = 100;

/// A transaction on a server reads the clock before it waits for the rows that it needs: times of different
/// transactions may be out of order by so much. The rows themselves never are.
pub const SERVER_SLACK: Duration = Duration::from_millis(500);

/// What a ledger recorded.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Its jobs, with their attempts.
    pub jobs: Vec<JobHistory>,
    /// Its events, in their order.
    pub events: Vec<EventRecord>,
    /// The due times of each policy.
    pub ticks: Vec<TickRecord>,
    /// The limits that held from before the first job until now.
    pub limits: Vec<LimitRecord>,
    /// The jobs that were accepted, as their submitters were told; all that are known when it is empty.
    pub accepted: Vec<JobId>,
    /// By how much the times of transactions may be out of order.
    pub slack: Duration,
}

/// A job as its ledger remembers it.
#[derive(Clone, Debug)]
pub struct JobHistory {
    /// Its record.
    pub job: JobRecord,
    /// Its attempts, in their order.
    pub attempts: Vec<AttemptRecord>,
}

/// What was replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Jobs.
    pub jobs: usize,
    /// Jobs that have ended.
    pub ended: usize,
    /// Attempts.
    pub attempts: usize,
    /// Attempts that were lost with their worker.
    pub lost: usize,
    /// Claims that had to wait in the replay for an end that was recorded as later.
    pub out_of_order: usize,
    /// Due times.
    pub ticks: usize,
}

/// The first step that the models do not allow.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{promise}: {what}{}", of.map_or_else(String::new, |job| format!(" (job {job})")))]
pub struct Refused {
    /// The promise or rule that it breaks.
    pub promise: &'static str,
    /// The job that it is about.
    pub of: Option<JobId>,
    /// What was found.
    pub what: String,
}

fn refused<T>(
    promise: &'static str,
    of: impl Into<Option<JobId>>,
    what: impl Into<String>,
) -> Result<T, Refused> {
    Err(Refused {
        promise,
        of: of.into(),
        what: what.into(),
    })
}

impl History {
    /// Reads all that a ledger remembers. Nothing may be writing to it meanwhile.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn read(ledger: &Ledger, slack: Duration) -> LedgerResult<Self> {
        let mut history = Self {
            limits: ledger.limits().await?,
            slack,
            ..Self::default()
        };
        let mut before = None;
        loop {
            let page = ledger
                .jobs(&JobFilter {
                    before,
                    limit: PAGE,
                    ..JobFilter::default()
                })
                .await?;
            let Some(last) = page.last() else { break };
            before = Some(last.id);
            for job in page {
                let attempts = ledger.attempts(job.id).await?;
                history.jobs.push(JobHistory { job, attempts });
            }
        }
        let mut position = EventPosition::default();
        loop {
            let page = ledger.events_after(position, PAGE).await?;
            let Some(last) = page.last() else { break };
            position = last.position;
            history.events.extend(page);
        }
        for policy in ledger.policies(None).await? {
            history
                .ticks
                .extend(ledger.ticks(policy.id, MOST_TICKS).await?);
        }
        Ok(history)
    }
}

/// Replays a history.
///
/// # Errors
///
/// With the first thing that no run of the models can have made.
pub fn replay(history: &History) -> Result<Replayed, Refused> {
    let mut replayed = Replayed {
        jobs: history.jobs.len(),
        ticks: history.ticks.len(),
        ..Replayed::default()
    };
    let known: HashSet<JobId> = history.jobs.iter().map(|job| job.job.id).collect();
    if let Some(lost) = history.accepted.iter().find(|job| !known.contains(job)) {
        return refused(
            "P1",
            *lost,
            "the job was accepted, and the ledger does not know it",
        );
    }
    for job in &history.jobs {
        check_job(job, history.slack)?;
        replayed.ended += usize::from(job.job.state.is_final());
        replayed.attempts += job.attempts.len();
        replayed.lost += count(job, AttemptOutcome::Lost);
    }
    check_tokens(history)?;
    check_events(history)?;
    check_ticks(history)?;
    replayed.out_of_order = run(history)?;
    Ok(replayed)
}

fn count(job: &JobHistory, outcome: AttemptOutcome) -> usize {
    job.attempts
        .iter()
        .filter(|attempt| attempt.outcome == Some(outcome))
        .count()
}

/// Whether a job's attempts lead to where it is: what the model of rescue does with each outcome.
fn check_job(history: &JobHistory, slack: Duration) -> Result<(), Refused> {
    let (job, attempts) = (&history.job, &history.attempts);
    let id = job.id;
    if attempts.len() != job.attempt as usize
        && !(job.state == JobState::Queued && attempts.len() <= job.attempt as usize)
    {
        let what = format!(
            "{} attempts were made and {} are known",
            job.attempt,
            attempts.len()
        );
        return refused("P2", id, what);
    }
    let mut before: Option<&AttemptRecord> = None;
    let mut tries = 0;
    for (number, attempt) in (1..).zip(attempts) {
        if attempt.token.attempt_number() != number {
            let what = format!("attempt {number} has the token {}", attempt.token);
            return refused("rule 2", id, what);
        }
        if attempt.started.plus(slack) < job.submitted {
            return refused(
                "P2",
                id,
                format!("attempt {number} started before the job was submitted"),
            );
        }
        if let Some(before) = before {
            match (before.outcome, before.ended) {
                (
                    Some(
                        AttemptOutcome::Failed
                        | AttemptOutcome::Lost
                        | AttemptOutcome::Interrupted
                        | AttemptOutcome::Snoozed,
                    ),
                    Some(ended),
                ) => {
                    if attempt.started.plus(slack) < ended {
                        let what =
                            format!("attempt {number} started before the one before had ended");
                        return refused("P2", id, what);
                    }
                }
                (outcome, _) => {
                    let what = format!("attempt {number} came after one that ended as {outcome:?}");
                    return refused("P2", id, what);
                }
            }
            if before.outcome == Some(AttemptOutcome::Failed) && tries >= job.max_tries {
                return refused(
                    "rule 2",
                    id,
                    "it was tried again though its tries were spent",
                );
            }
        }
        if attempt.ended.is_some_and(|ended| ended < attempt.started) {
            return refused(
                "P2",
                id,
                format!("attempt {number} ended before it started"),
            );
        }
        if attempt.outcome == Some(AttemptOutcome::Failed) {
            tries += 1;
        }
        before = Some(attempt);
    }
    let last = before.and_then(|attempt| attempt.outcome);
    let fits = match job.state {
        JobState::Running => before.is_some() && last.is_none(),
        JobState::Succeeded => last == Some(AttemptOutcome::Succeeded),
        JobState::Dead => match last {
            Some(AttemptOutcome::Failed) => tries >= job.max_tries || !passes(job),
            Some(AttemptOutcome::Lost) => job.lost >= MAX_LOST,
            _ => false,
        },
        JobState::Cancelled => match last {
            Some(AttemptOutcome::Cancelled) => true,
            Some(AttemptOutcome::Succeeded) => false,
            _ => before.is_none_or(|attempt| attempt.ended.is_some()),
        },
        JobState::Expired => job.deadline.is_some(),
        JobState::Queued => !matches!(
            last,
            Some(AttemptOutcome::Succeeded | AttemptOutcome::Cancelled)
        ),
    };
    if !fits {
        let what = format!(
            "the job is {} and its last attempt ended as {last:?}",
            job.state
        );
        return refused("P1", id, what);
    }
    let expired_while_failing =
        job.state == JobState::Expired && last == Some(AttemptOutcome::Failed);
    if job.tries != tries && !(expired_while_failing && job.tries + 1 == tries) {
        let what = format!(
            "{} tries were counted and {tries} attempts failed",
            job.tries
        );
        return refused("rule 2", id, what);
    }
    if job.lost as usize != count(history, AttemptOutcome::Lost) {
        return refused(
            "rule 2",
            id,
            "the count of lost attempts is not that of its attempts",
        );
    }
    Ok(())
}

/// Whether what a job failed with would have let it be tried again.
fn passes(job: &JobRecord) -> bool {
    job.problem.as_ref().is_some_and(|problem| {
        problem.class == ErrorClass::Transient && problem.code != "job.process_died"
    })
}

/// No token is given out twice.
fn check_tokens(history: &History) -> Result<(), Refused> {
    for job in &history.jobs {
        let mut seen: BTreeSet<AttemptToken> = BTreeSet::new();
        for attempt in &job.attempts {
            if !seen.insert(attempt.token) {
                return refused("rule 2", job.job.id, "a token was used twice");
            }
        }
    }
    Ok(())
}

/// Each end is one event, each attempt that was lost and went back another.
fn check_events(history: &History) -> Result<(), Refused> {
    let mut ends: HashMap<JobId, Vec<&str>> = HashMap::new();
    let mut lost: HashMap<JobId, usize> = HashMap::new();
    let mut last = EventPosition::default();
    for event in &history.events {
        if event.position <= last {
            return refused("rule 10", event.job, "the positions of events do not rise");
        }
        last = event.position;
        let Some(job) = event.job else { continue };
        match event.kind.as_str() {
            "job.attempt_lost" => *lost.entry(job).or_default() += 1,
            kind => {
                let state = kind.strip_prefix("job.").unwrap_or_default();
                if ["succeeded", "dead", "cancelled", "expired"].contains(&state) {
                    ends.entry(job).or_default().push(state);
                }
            }
        }
    }
    for history in &history.jobs {
        let job = &history.job;
        let told = ends.get(&job.id).map_or(&[][..], Vec::as_slice);
        let state = job.state.to_string();
        let right = if job.state.is_final() {
            told == [state.as_str()]
        } else {
            told.is_empty()
        };
        if !right {
            let what = format!("the job is {state}, and its events say {told:?}");
            return refused("P1", job.id, what);
        }
        let went_back = history
            .attempts
            .iter()
            .rev()
            .skip(usize::from(
                job.state.is_final() && ended_by_attempt(history),
            ))
            .filter(|attempt| attempt.outcome == Some(AttemptOutcome::Lost))
            .count();
        if lost.get(&job.id).copied().unwrap_or(0) != went_back {
            return refused(
                "rule 10",
                job.id,
                "its events do not tell of each lost attempt",
            );
        }
    }
    Ok(())
}

/// Whether the job's last attempt ended it, rather than a cancellation or a deadline while it waited.
fn ended_by_attempt(history: &JobHistory) -> bool {
    let ended = history.attempts.last().and_then(|attempt| attempt.ended);
    ended.is_some() && ended == history.job.ended
}

/// Each due time has one outcome, and each job of a policy is one due time's.
fn check_ticks(history: &History) -> Result<(), Refused> {
    let mut decided: HashSet<(PolicyId, Timestamp)> = HashSet::new();
    let mut made: HashMap<JobId, Timestamp> = HashMap::new();
    for tick in &history.ticks {
        if !decided.insert((tick.policy, tick.due)) {
            return refused(
                "rule 18",
                None,
                format!("the due time {} was decided twice", tick.due),
            );
        }
        if let TickOutcome::Job { job } = tick.outcome
            && let Some(other) = made.insert(job, tick.due)
        {
            let what = format!("the due times {other} and {} have one job", tick.due);
            return refused("rule 18", job, what);
        }
    }
    let policies: HashSet<PolicyId> = history.ticks.iter().map(|tick| tick.policy).collect();
    for job in &history.jobs {
        let job = &job.job;
        let of_a_tick = job.retry_of.is_none()
            && job
                .terms
                .policy
                .is_some_and(|policy| policies.contains(&policy));
        if of_a_tick && !made.contains_key(&job.id) {
            return refused(
                "rule 18",
                job.id,
                "its policy made it, and no due time names it",
            );
        }
    }
    Ok(())
}

/// One step of the run, as its ledger timed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Ends come first where times are the same: they are what a claim waits for.
    End,
    Claim,
}

/// The rows that a claim of the model writes.
struct Rows<'h> {
    running: HashMap<JobId, AttemptToken>,
    holders: HashMap<DatabaseId, JobId>,
    limits: BTreeMap<String, (u64, u64)>,
    of: HashMap<JobId, &'h JobRecord>,
}

impl Rows<'_> {
    fn database_of(&self, job: JobId) -> Option<DatabaseId> {
        let record = self.of[&job];
        record
            .database
            .filter(|_| record.exclusion.excludes(record.exclusion))
    }

    fn limits_of(&self, job: JobId) -> Vec<String> {
        let record = self.of[&job];
        let mut scopes = vec![
            Scope::Tenant(record.tenant.clone()),
            Scope::Kind(record.kind.clone()),
            Scope::Class(record.slot),
        ];
        scopes.extend(record.database.map(Scope::Database));
        scopes.iter().map(ToString::to_string).collect()
    }

    /// What stands against a claim.
    fn against(&self, job: JobId) -> Option<(&'static str, String)> {
        if self.running.contains_key(&job) {
            return Some(("P2", "it was claimed while an attempt of it ran".to_owned()));
        }
        if let Some(holder) = self.database_of(job).and_then(|id| self.holders.get(&id)) {
            let what = format!("it was claimed while {holder} had its database");
            return Some(("rule 3", what));
        }
        self.limits_of(job).iter().find_map(|name| {
            self.limits
                .get(name)
                .filter(|(most, running)| running >= most)
                .map(|(most, _)| {
                    (
                        "rule 3",
                        format!("more than {most} ran at once under the limit {name}"),
                    )
                })
        })
    }

    fn claim(&mut self, job: JobId, token: AttemptToken) {
        self.running.insert(job, token);
        if let Some(database) = self.database_of(job) {
            self.holders.insert(database, job);
        }
        for name in self.limits_of(job) {
            if let Some((_, running)) = self.limits.get_mut(&name) {
                *running += 1;
            }
        }
    }

    fn end(&mut self, job: JobId, token: AttemptToken) -> bool {
        if self.running.get(&job) != Some(&token) {
            return false;
        }
        self.running.remove(&job);
        if let Some(database) = self.database_of(job) {
            self.holders.remove(&database);
        }
        for name in self.limits_of(job) {
            if let Some((_, running)) = self.limits.get_mut(&name) {
                *running -= 1;
            }
        }
        true
    }
}

/// Runs all claims and ends in the order of their times. A claim that finds what it needs taken waits for the
/// ends of the next moment, as long as clocks may be out of order. Gives back how many waited.
fn run(history: &History) -> Result<usize, Refused> {
    let mut steps: Vec<(Timestamp, Step, JobId, AttemptToken)> = Vec::new();
    for job in &history.jobs {
        for attempt in &job.attempts {
            steps.push((attempt.started, Step::Claim, job.job.id, attempt.token));
            if let Some(ended) = attempt.ended {
                steps.push((ended, Step::End, job.job.id, attempt.token));
            }
        }
    }
    // A claim and an end of one attempt at one time are in that order.
    steps.sort_unstable_by_key(|(at, step, job, token)| (*at, *step, *job, *token));
    let mut rows = Rows {
        running: HashMap::new(),
        holders: HashMap::new(),
        limits: history
            .limits
            .iter()
            .map(|limit| (limit.scope.to_string(), (limit.most, 0)))
            .collect(),
        of: history
            .jobs
            .iter()
            .map(|job| (job.job.id, &job.job))
            .collect(),
    };
    // Claims that wait for an end, and ends that wait for their own claim.
    let mut claims: Vec<(Timestamp, JobId, AttemptToken)> = Vec::new();
    let mut ends: Vec<(JobId, AttemptToken)> = Vec::new();
    let mut waited = 0;
    for (at, step, job, token) in steps {
        if let Some((_, late, _)) = claims
            .iter()
            .find(|(since, ..)| since.plus(history.slack) < at)
        {
            let (promise, what) = rows
                .against(*late)
                .unwrap_or(("P2", "it was claimed out of turn".to_owned()));
            return refused(promise, *late, what);
        }
        match step {
            Step::Claim if rows.against(job).is_none() => rows.claim(job, token),
            Step::Claim => {
                waited += 1;
                claims.push((at, job, token));
            }
            Step::End if rows.end(job, token) => {}
            Step::End => ends.push((job, token)),
        }
        settle(&mut rows, &mut claims, &mut ends);
    }
    if let Some((_, job, _)) = claims.first() {
        let (promise, what) = rows
            .against(*job)
            .unwrap_or(("P2", "it was claimed out of turn".to_owned()));
        return refused(promise, *job, what);
    }
    if let Some((job, _)) = ends.first() {
        return refused("P2", *job, "an attempt ended that was not the running one");
    }
    Ok(waited)
}

/// Does what waited and can be done now.
fn settle(
    rows: &mut Rows<'_>,
    claims: &mut Vec<(Timestamp, JobId, AttemptToken)>,
    ends: &mut Vec<(JobId, AttemptToken)>,
) {
    loop {
        if let Some(place) = claims
            .iter()
            .position(|(_, job, _)| rows.against(*job).is_none())
        {
            let (_, job, token) = claims.remove(place);
            rows.claim(job, token);
            continue;
        }
        let Some(place) = ends
            .iter()
            .position(|(job, token)| rows.running.get(job) == Some(token))
        else {
            return;
        };
        let (job, token) = ends.remove(place);
        rows.end(job, token);
    }
}
