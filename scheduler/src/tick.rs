//! The ticks: policies that are due, a page at a time, each due time in one transaction with its job and
//! the policy's next due time (rule 18). Nothing is done for what is not due: the scheduler sleeps until
//! the nearest due time or until it is told of a change.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fettler_ledger::{
    CancelOutcome, Leadership, Ledger, LedgerError, PolicyRecord, Result, Tick, TickAction,
    TickResult,
};
use fettler_model::{JobId, TickOutcome, Timestamp, Window};
use fettler_telemetry::metric;

use crate::{
    Shared,
    plan::{Decision, LastJob, PolicyPlan},
    request::{UnusablePolicy, policy_request},
    tell_once,
};

/// How many policies one page has. They are decided at the same time, and share a commit.
const POLICIES_PER_PAGE: usize = 1000;
/// How many policies are looked at together where all of them are: some milliseconds' worth, in which nothing else of the
/// scheduler has its turn.
const POLICIES_PER_LOOK: usize = 100;
/// How long a look at all policies pauses after each of these, in times of what that took: due times are not to be late
/// because of it, and nobody waits for it.
const LOOK_PAUSE: u32 = 4;
/// How many due times of one policy are decided before others get their turn, as after an outage.
const DUE_TIMES_PER_TURN: usize = 64;
/// The nearest due time is asked for this often, since another process may have changed it.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Changes within this time are looked at together.
const GATHER: Duration = Duration::from_millis(20);
/// A policy that cannot be read is looked at again after this time.
const UNUSABLE_WAIT: Duration = Duration::from_secs(3600);
/// How often the clock is compared with the one that never jumps.
const CLOCK_EVERY: Duration = Duration::from_secs(5);
/// A difference of this much is a jump.
const JUMP: Duration = Duration::from_secs(30);
/// Due times are compared with what the policies say at least this often. Whoever adds or edits a policy
/// sets its next due time; this finds what was left without one.
const CORRECT_EVERY: Duration = Duration::from_secs(300);

/// Decides due times, until dropped.
pub(crate) async fn tick_policies(shared: Arc<Shared>, leadership: Arc<Leadership>) {
    let mut wakeups = shared.ledger.wakeups();
    let mut failing = false;
    loop {
        let wait = match tick_due(&shared, &leadership).await {
            Ok(wait) => {
                failing = false;
                wait
            }
            Err(error) => {
                tell_once(&mut failing, "deciding due times", &error);
                LOOK_EVERY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = wakeups.changed() => tokio::time::sleep(GATHER.min(wait)).await,
        }
    }
}

/// Decides what is due now, and says how long there is nothing more to do.
async fn tick_due(shared: &Shared, leadership: &Leadership) -> Result<Duration> {
    let ledger = &shared.ledger;
    loop {
        let page = ledger.due(POLICIES_PER_PAGE).await?;
        let Some(longest_overdue) = page.first().and_then(|policy| policy.next_due) else {
            break;
        };
        let now = ledger.now().await?;
        let mut turns = begin_turns(shared, &page).await?;
        for _ in 0..DUE_TIMES_PER_TURN {
            if !tick_once(shared, leadership, &mut turns, now).await? {
                break;
            }
        }
        let late = ledger.now().await?.since(longest_overdue);
        metrics::gauge!(metric::SCHEDULER_LAG).set(late.as_secs_f64());
    }
    let Some(due) = ledger.next_due().await? else {
        return Ok(LOOK_EVERY);
    };
    Ok(due.since(ledger.now().await?).min(LOOK_EVERY))
}

/// A policy of which due times are decided.
struct Turn<'p> {
    policy: &'p PolicyRecord,
    plan: Arc<PolicyPlan>,
    /// The next due time to decide.
    next: Option<Timestamp>,
    last: Option<LastJob>,
}

/// What a policy says of its times; many say the same.
#[derive(PartialEq, Eq, Hash)]
struct Times<'p> {
    cron: &'p str,
    time_zone: &'p str,
    window: Option<&'p Window>,
}

/// Reads the policies of a page. One that cannot be read is put off.
async fn begin_turns<'p>(shared: &Shared, page: &'p [PolicyRecord]) -> Result<Vec<Turn<'p>>> {
    let states = states_of(shared, page.iter().filter_map(|policy| policy.last_job)).await?;
    let mut plans: HashMap<Times<'p>, Arc<PolicyPlan>> = HashMap::new();
    let mut turns = Vec::with_capacity(page.len());
    for policy in page {
        let spec = &policy.spec;
        let times = Times {
            cron: &spec.cron,
            time_zone: &spec.time_zone,
            window: spec.window.as_ref(),
        };
        let plan = match plans.get(&times) {
            Some(plan) => plan.clone(),
            None => match PolicyPlan::read(spec) {
                Ok(plan) => plans.entry(times).or_insert(Arc::new(plan)).clone(),
                Err(error) => {
                    put_off(shared, policy, &error.into()).await?;
                    continue;
                }
            },
        };
        turns.push(Turn {
            policy,
            plan,
            next: policy.next_due,
            // Of what was pruned from history nothing is known.
            last: policy.last_job.and_then(|job| states.get(&job).copied()),
        });
    }
    Ok(turns)
}

/// Decides one due time of each policy that has one by `now`, all at once. Whether there were any.
async fn tick_once(
    shared: &Shared,
    leadership: &Leadership,
    turns: &mut [Turn<'_>],
    now: Timestamp,
) -> Result<bool> {
    let (mut deciding, mut ticks) = (Vec::new(), Vec::new());
    for turn in turns.iter_mut() {
        let Some(due) = turn.next.filter(|due| *due <= now) else {
            continue;
        };
        turn.next = turn.plan.next_after(due);
        match action(shared, turn, due, now).await? {
            Some(action) => {
                ticks.push(Tick {
                    policy: turn.policy.id,
                    due,
                    action,
                    next_due: turn.next,
                });
                deciding.push((turn, due));
            }
            None => turn.next = None,
        }
    }
    if ticks.is_empty() {
        return Ok(false);
    }
    let results = shared.ledger.tick_all(ticks, Some(leadership)).await;
    let mut failure = Ok(());
    let mut more = Vec::new();
    for ((turn, due), result) in deciding.into_iter().zip(results) {
        let outcome = match result {
            Ok(TickResult::Decided(outcome)) => {
                say(turn.policy, due, &outcome);
                outcome
            }
            Ok(TickResult::AlreadyTicked(outcome)) => outcome,
            Err(error) => {
                turn.next = None;
                // It was removed while it was being looked at.
                if !matches!(error, LedgerError::NotFound { .. }) {
                    failure = Err(error);
                }
                continue;
            }
        };
        if let TickOutcome::Job { job } = outcome
            && turn.next.is_some_and(|due| due <= now)
        {
            more.push((turn, job));
        }
    }
    failure?;
    let states = states_of(shared, more.iter().map(|(_, job)| *job)).await?;
    for (turn, job) in more {
        turn.last = states.get(&job).copied();
    }
    Ok(true)
}

/// What is done about a due time; nothing where the policy cannot be used, which is then put off.
async fn action(
    shared: &Shared,
    turn: &Turn<'_>,
    due: Timestamp,
    now: Timestamp,
) -> Result<Option<TickAction>> {
    let policy = turn.policy;
    let decision = turn
        .plan
        .decide(policy.id, &policy.spec, due, now, turn.last);
    let (not_before, cancel) = match decision {
        Decision::Skip(outcome) => return Ok(Some(TickAction::Record(outcome))),
        Decision::Run { not_before, cancel } => (not_before, cancel),
    };
    let request = match policy_request(&shared.registry, policy, not_before) {
        Ok(request) => request,
        Err(error) => {
            put_off(shared, policy, &error).await?;
            return Ok(None);
        }
    };
    if let Some(job) = cancel {
        cancel_last(&shared.ledger, job).await?;
    }
    Ok(Some(TickAction::Submit(Box::new(request))))
}

async fn states_of(
    shared: &Shared,
    jobs: impl Iterator<Item = JobId>,
) -> Result<HashMap<JobId, LastJob>> {
    let jobs: Vec<JobId> = jobs.collect();
    let states = shared.ledger.states(&jobs).await?;
    let last = |(id, state)| (id, LastJob { id, state });
    Ok(states.into_iter().map(last).collect())
}

/// A policy that cannot be read must not hold up the others, nor be forgotten.
async fn put_off(shared: &Shared, policy: &PolicyRecord, error: &UnusablePolicy) -> Result<()> {
    tracing::error!(
        policy = %policy.name,
        tenant = %policy.tenant,
        %error,
        "the policy cannot be used: no job is made for it until it is edited"
    );
    let later = shared.ledger.now().await?.plus(UNUSABLE_WAIT);
    shared.ledger.set_next_due(policy.id, Some(later)).await
}

async fn cancel_last(ledger: &Ledger, job: JobId) -> Result<()> {
    match ledger.request_cancel(job).await {
        Ok(CancelOutcome::Cancelled | CancelOutcome::Requested) => {
            tracing::info!(job.id = %job, "the policy's last job is cancelled, since the next is due");
            Ok(())
        }
        Ok(CancelOutcome::AlreadyEnded(_)) | Err(LedgerError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn say(policy: &PolicyRecord, due: Timestamp, outcome: &TickOutcome) {
    match outcome {
        TickOutcome::Job { job } => tracing::info!(
            policy = %policy.name,
            tenant = %policy.tenant,
            %due,
            job.id = %job,
            "the policy was due"
        ),
        skipped => tracing::warn!(
            policy = %policy.name,
            tenant = %policy.tenant,
            %due,
            ?skipped,
            "a due time of the policy was skipped"
        ),
    }
}

/// Computes next due times again that are missing or later than what the policies say (rule 18): at the
/// beginning, when the clock has jumped, and now and then. Until dropped.
pub(crate) async fn correct_due_times(shared: Arc<Shared>) {
    let mut clocks: Option<(Timestamp, Instant)> = None;
    let mut corrected: Option<Instant> = None;
    let mut failing = false;
    loop {
        let round = async {
            let (ledger_now, steady_now) = (shared.ledger.now().await?, Instant::now());
            let jumped = clocks.is_some_and(|(ledger_then, steady_then)| {
                has_jumped(ledger_then, ledger_now, steady_now - steady_then)
            });
            if jumped {
                tracing::warn!(now = %ledger_now, "the ledger's clock jumped: due times are computed again");
            }
            let due = corrected.is_none_or(|at| at.elapsed() >= CORRECT_EVERY);
            if jumped || due {
                correct(&shared).await?;
                corrected = Some(Instant::now());
            }
            clocks = Some((ledger_now, steady_now));
            Ok(())
        };
        match round.await {
            Ok(()) => failing = false,
            Err(error) => tell_once(&mut failing, "correcting due times", &error),
        }
        tokio::time::sleep(CLOCK_EVERY).await;
    }
}

fn has_jumped(then: Timestamp, now: Timestamp, elapsed: Duration) -> bool {
    let expected = then.plus(elapsed);
    now.since(expected) > JUMP || expected.since(now) > JUMP
}

/// Looks at all policies once, a page at a time: due times are decided meanwhile.
pub(crate) async fn correct(shared: &Shared) -> Result<()> {
    let now = shared.ledger.now().await?;
    let mut last = None;
    loop {
        let began = Instant::now();
        let page = shared
            .ledger
            .policies_page(None, last.as_ref(), POLICIES_PER_LOOK)
            .await?;
        let Some(policy) = page.last() else {
            return Ok(());
        };
        last = Some((policy.tenant.clone(), policy.name.clone()));
        for policy in &page {
            correct_policy(shared, policy, now).await?;
        }
        if page.len() < POLICIES_PER_LOOK {
            return Ok(());
        }
        tokio::time::sleep(began.elapsed() * LOOK_PAUSE).await;
    }
}

async fn correct_policy(shared: &Shared, policy: &PolicyRecord, now: Timestamp) -> Result<()> {
    let Ok(plan) = PolicyPlan::read(&policy.spec) else {
        // The ticks say what is wrong with it, when they meet it.
        if policy.next_due.is_none() {
            shared.ledger.set_next_due(policy.id, Some(now)).await?;
        }
        return Ok(());
    };
    if policy.spec.paused && policy.next_due.is_none() {
        return Ok(());
    }
    let Some(right) = plan.corrected(policy.next_due, now) else {
        return Ok(());
    };
    tracing::info!(
        policy = %policy.name,
        tenant = %policy.tenant,
        was = policy.next_due.map(tracing::field::display),
        is = %right,
        "the policy's next due time was computed again"
    );
    match shared.ledger.set_next_due(policy.id, Some(right)).await {
        Err(LedgerError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

/// What [`crate::upkeep::silence`] asks: the policies that are overdue by more than `by`.
pub(crate) async fn overdue(shared: &Shared, by: Duration) -> Result<Vec<PolicyRecord>> {
    let now = shared.ledger.now().await?;
    let due = shared.ledger.due(POLICIES_PER_PAGE).await?;
    Ok(due
        .into_iter()
        .filter(|policy| policy.next_due.is_some_and(|due| now.since(due) > by))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_forth_or_back_is_noticed_and_one_that_is_slewed_is_not() {
        let then = Timestamp::from_micros(1_800_000_000_000_000);
        let minute = Duration::from_secs(60);
        assert!(!has_jumped(then, then.plus(minute), minute));
        assert!(!has_jumped(then, then.plus(minute + minute / 10), minute));
        assert!(has_jumped(then, then.plus(60 * minute), minute));
        assert!(has_jumped(then, then.minus(60 * minute), minute));
    }
}
