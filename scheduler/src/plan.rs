//! What is to become of one due time of a policy: the arithmetic of catch-up, overlap, window and jitter,
//! without any ledger or clock of its own, so that every rule can be tested by numbers.

use std::time::Duration;

use fettler_model::{
    CatchUp, ClockWindow, InvalidWindow, JobId, JobState, Overlap, PolicyId, PolicySpec,
    TickOutcome, Timestamp,
};

use crate::calendar::{Calendar, CalendarError};

/// A due time that is decided no later than this after it counts as on time: a handover between
/// schedulers takes less.
pub const ON_TIME_WITHIN: Duration = Duration::from_secs(120);

/// With [`CatchUp::All`]: how many missed due times of one outage run at most, the newest ones. A policy
/// that runs every minute would otherwise flood the fleet after a long outage.
pub const MAX_CAUGHT_UP_JOBS: usize = 100;

/// What a policy says, read and checked.
#[derive(Clone, Debug)]
pub struct PolicyPlan {
    calendar: Calendar,
    window: Option<ClockWindow>,
}

/// Why what a policy says cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPolicy {
    /// Its cron expression or its time zone.
    #[error(transparent)]
    Calendar(#[from] CalendarError),
    /// Its window.
    #[error(transparent)]
    Window(#[from] InvalidWindow),
}

/// The policy's last job, as far as the overlap rule asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastJob {
    /// The job.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
}

/// What is to be done about a due time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A job is submitted that runs not before this moment; the policy's last job is cancelled first
    /// when one is named.
    Run {
        /// Not before this moment, when it is not at once.
        not_before: Option<Timestamp>,
        /// The job to cancel.
        cancel: Option<JobId>,
    },
    /// Nothing runs.
    Skip(TickOutcome),
}

impl PolicyPlan {
    /// Reads what a policy says.
    ///
    /// # Errors
    ///
    /// When the expression, the zone or the window cannot be read.
    pub fn read(spec: &PolicySpec) -> Result<Self, InvalidPolicy> {
        Ok(Self {
            calendar: Calendar::parse(&spec.cron, &spec.time_zone)?,
            window: spec
                .window
                .as_ref()
                .map(|window| ClockWindow::read(window, &spec.time_zone))
                .transpose()?,
        })
    }

    /// The first due time strictly after this moment.
    #[must_use]
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        self.calendar.next_after(moment)
    }

    /// The due times after this moment, in order.
    pub fn upcoming(&self, moment: Timestamp) -> impl Iterator<Item = Timestamp> {
        self.calendar.upcoming(moment)
    }

    /// The next due time that a policy should have, when the one that it has is missing or later than
    /// its expression says, as after a clock that had jumped (rule 18).
    #[must_use]
    pub fn corrected(&self, next_due: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        let from_now = self.next_after(now)?;
        next_due
            .is_none_or(|due| due > from_now)
            .then_some(from_now)
    }

    /// Decides the due time `due` at the moment `now`.
    #[must_use]
    pub fn decide(
        &self,
        policy: PolicyId,
        spec: &PolicySpec,
        due: Timestamp,
        now: Timestamp,
        last_job: Option<LastJob>,
    ) -> Decision {
        if spec.paused {
            return Decision::Skip(TickOutcome::SkippedPaused);
        }
        let missed = self.is_missed(due, now);
        if missed && !self.is_caught_up(spec.catch_up, due, now) {
            return Decision::Skip(TickOutcome::SkippedMissed);
        }
        let start = due.plus(jitter(policy, spec.jitter_seconds)).max(now);
        if let Some(window) = &self.window
            && !window.is_open(start)
        {
            return Decision::Skip(TickOutcome::SkippedWindow);
        }
        // Whoever wants all that was missed wants them although they come at the same moment.
        if missed && spec.catch_up == CatchUp::All {
            return run(start, now, None);
        }
        let mut cancel = None;
        if let Some(last) = last_job.filter(|last| !last.state.is_final()) {
            let waits = last.state == JobState::Queued;
            match spec.overlap {
                // One that waits behind the running one is enough: a queue that grows with every
                // due time would never become shorter again.
                Overlap::Queue if !waits => {}
                Overlap::Skip | Overlap::Queue => {
                    return Decision::Skip(TickOutcome::SkippedOverlap { job: last.id });
                }
                Overlap::Cancel => cancel = Some(last.id),
            }
        }
        run(start, now, cancel)
    }

    /// Whether the due time passed while no scheduler ran: a later one has come since, or too much time
    /// has.
    fn is_missed(&self, due: Timestamp, now: Timestamp) -> bool {
        now.since(due) > ON_TIME_WITHIN || self.has_later(due, now)
    }

    fn has_later(&self, due: Timestamp, now: Timestamp) -> bool {
        self.next_after(due).is_some_and(|next| next <= now)
    }

    fn is_caught_up(&self, rule: CatchUp, due: Timestamp, now: Timestamp) -> bool {
        match rule {
            CatchUp::Skip => false,
            CatchUp::Once => !self.has_later(due, now),
            CatchUp::All => self
                .upcoming(due)
                .nth(MAX_CAUGHT_UP_JOBS - 1)
                .is_none_or(|later| later > now),
        }
    }
}

fn run(start: Timestamp, now: Timestamp, cancel: Option<JobId>) -> Decision {
    Decision::Run {
        not_before: (start > now).then_some(start),
        cancel,
    }
}

/// How long after its due times a policy's jobs start: always the same for a policy, and spread evenly
/// over all policies.
#[must_use]
pub fn jitter(policy: PolicyId, jitter_seconds: u32) -> Duration {
    if jitter_seconds == 0 {
        return Duration::ZERO;
    }
    let spread_micros = u64::from(jitter_seconds) * 1_000_000;
    Duration::from_micros(fnv1a(policy.uuid().as_bytes()) % spread_micros)
}

/// A hash that is the same in every version of this program.
fn fnv1a(bytes: &[u8]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let hash = bytes.iter().fold(OFFSET_BASIS, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    });
    // The low bits of this hash depend on few bits of the last bytes: fold the high ones in.
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use fettler_model::{Priority, ProveEvery, Window};

    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_jiff(text.parse().expect("a time"))
    }

    fn spec(cron: &str) -> PolicySpec {
        PolicySpec {
            kind: "backup".parse().expect("a kind"),
            arguments: serde_json::Value::Null,
            cron: cron.to_owned(),
            time_zone: "UTC".to_owned(),
            catch_up: CatchUp::Once,
            overlap: Overlap::Skip,
            window: None,
            jitter_seconds: 0,
            priority: Priority::Normal,
            keep: None,
            prove: ProveEvery::Never,
            timeout_seconds: None,
            paused: false,
        }
    }

    const AT_ONCE: Decision = Decision::Run {
        not_before: None,
        cancel: None,
    };

    /// What becomes of all due times from `from` until `now`.
    fn decide_all(spec: &PolicySpec, from: &str, now: &str) -> Vec<Decision> {
        let plan = PolicyPlan::read(spec).expect("a policy");
        let (from, now) = (at(from), at(now));
        plan.upcoming(from.minus(Duration::from_micros(1)))
            .take_while(|due| *due <= now)
            .map(|due| plan.decide(PolicyId::new(), spec, due, now, None))
            .collect()
    }

    fn runs(decisions: &[Decision]) -> Vec<bool> {
        decisions
            .iter()
            .map(|decision| match decision {
                Decision::Run { .. } => true,
                Decision::Skip(outcome) => {
                    assert_eq!(*outcome, TickOutcome::SkippedMissed);
                    false
                }
            })
            .collect()
    }

    #[test]
    fn a_due_time_runs_when_it_comes() {
        for rule in [CatchUp::Skip, CatchUp::Once, CatchUp::All] {
            let spec = PolicySpec {
                catch_up: rule,
                ..spec("0 * * * *")
            };
            let decisions = decide_all(&spec, "2026-01-05T10:00:00Z", "2026-01-05T10:00:31Z");
            assert_eq!(decisions, [AT_ONCE], "{rule:?}");
        }
    }

    #[test]
    fn due_times_that_were_missed_are_skipped_run_once_or_all_run() {
        let missed = |rule| {
            let spec = PolicySpec {
                catch_up: rule,
                ..spec("0 * * * *")
            };
            runs(&decide_all(
                &spec,
                "2026-01-05T10:00:00Z",
                "2026-01-05T12:30:00Z",
            ))
        };
        assert_eq!(missed(CatchUp::Skip), [false, false, false]);
        assert_eq!(missed(CatchUp::Once), [false, false, true]);
        assert_eq!(missed(CatchUp::All), [true, true, true]);
    }

    #[test]
    fn catching_up_with_all_is_bounded() {
        let spec = PolicySpec {
            catch_up: CatchUp::All,
            ..spec("* * * * *")
        };
        let decisions = runs(&decide_all(
            &spec,
            "2026-01-05T00:00:00Z",
            "2026-01-05T23:59:30Z",
        ));
        assert_eq!(decisions.len(), 1440);
        assert!(
            decisions[1440 - MAX_CAUGHT_UP_JOBS..]
                .iter()
                .all(|run| *run)
        );
        assert!(
            !decisions[..1440 - MAX_CAUGHT_UP_JOBS]
                .iter()
                .any(|run| *run)
        );
    }

    #[test]
    fn the_overlap_rule_skips_queues_one_or_cancels() {
        let (due, policy, job) = (at("2026-01-05T10:00:00Z"), PolicyId::new(), JobId::new());
        let decide = |overlap, state| {
            let spec = PolicySpec {
                overlap,
                ..spec("0 * * * *")
            };
            let last = LastJob { id: job, state };
            PolicyPlan::read(&spec)
                .expect("a policy")
                .decide(policy, &spec, due, due, Some(last))
        };
        let skipped = Decision::Skip(TickOutcome::SkippedOverlap { job });
        assert_eq!(decide(Overlap::Skip, JobState::Running), skipped);
        assert_eq!(decide(Overlap::Skip, JobState::Queued), skipped);
        assert_eq!(decide(Overlap::Queue, JobState::Running), AT_ONCE);
        assert_eq!(decide(Overlap::Queue, JobState::Queued), skipped);
        assert_eq!(
            decide(Overlap::Cancel, JobState::Running),
            Decision::Run {
                not_before: None,
                cancel: Some(job)
            }
        );
        for overlap in [Overlap::Skip, Overlap::Queue, Overlap::Cancel] {
            assert_eq!(decide(overlap, JobState::Dead), AT_ONCE, "{overlap:?}");
        }
    }

    #[test]
    fn jobs_start_in_the_window_only_and_in_the_policys_own_zone() {
        let spec = PolicySpec {
            time_zone: "America/New_York".to_owned(),
            window: Some(Window {
                from: "22:00".to_owned(),
                to: "04:00".to_owned(),
            }),
            ..spec("0 * * * *")
        };
        let plan = PolicyPlan::read(&spec).expect("a policy");
        let decide = |due| plan.decide(PolicyId::new(), &spec, at(due), at(due), None);
        // New York is five hours behind in winter and four in summer.
        assert_eq!(decide("2026-01-05T03:00:00Z"), AT_ONCE);
        assert_eq!(decide("2026-01-05T08:00:00Z"), AT_ONCE);
        let closed = Decision::Skip(TickOutcome::SkippedWindow);
        assert_eq!(decide("2026-01-05T02:00:00Z"), closed);
        assert_eq!(decide("2026-01-05T09:00:00Z"), closed);
        assert_eq!(decide("2026-07-05T02:00:00Z"), AT_ONCE);
        assert_eq!(decide("2026-07-05T08:00:00Z"), closed);
    }

    #[test]
    fn jitter_is_the_same_each_time_and_spreads_policies_over_its_whole_range() {
        let policies: Vec<_> = (0..400).map(|_| PolicyId::new()).collect();
        let starts: Vec<_> = policies.iter().map(|id| jitter(*id, 600)).collect();
        assert!(starts.iter().all(|start| *start < Duration::from_secs(600)));
        assert_eq!(starts[7], jitter(policies[7], 600));
        for quarter in 0..4 {
            let range =
                Duration::from_secs(quarter * 150)..Duration::from_secs(quarter * 150 + 150);
            let inside = starts.iter().filter(|start| range.contains(*start)).count();
            assert!((60..140).contains(&inside), "{inside} of 400 in {range:?}");
        }
    }

    #[test]
    fn a_job_with_jitter_waits_for_its_moment_after_the_due_time() {
        let spec = PolicySpec {
            jitter_seconds: 600,
            ..spec("0 * * * *")
        };
        let (due, policy) = (at("2026-01-05T10:00:00Z"), PolicyId::new());
        let decision = PolicyPlan::read(&spec)
            .expect("a policy")
            .decide(policy, &spec, due, due, None);
        let start = due.plus(jitter(policy, 600));
        assert_eq!(
            decision,
            Decision::Run {
                not_before: (start > due).then_some(start),
                cancel: None
            }
        );
    }

    #[test]
    fn a_next_due_time_that_a_jumped_clock_left_behind_is_computed_again() {
        let plan = PolicyPlan::read(&spec("0 * * * *")).expect("a policy");
        let now = at("2026-01-05T10:20:00Z");
        let right = at("2026-01-05T11:00:00Z");
        assert_eq!(
            plan.corrected(Some(at("2031-05-01T00:00:00Z")), now),
            Some(right)
        );
        assert_eq!(plan.corrected(None, now), Some(right));
        assert_eq!(plan.corrected(Some(right), now), None);
        // One that is due already is not lost.
        assert_eq!(plan.corrected(Some(at("2026-01-05T10:00:00Z")), now), None);
    }

    #[test]
    fn a_daily_policy_runs_once_on_the_days_on_which_clocks_are_changed() {
        let spec = PolicySpec {
            time_zone: "Europe/Berlin".to_owned(),
            ..spec("30 2 * * *")
        };
        let plan = PolicyPlan::read(&spec).expect("a policy");
        for (day, dues) in [
            (
                "2026-03-29T00:00:00Z",
                ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
            ),
            (
                "2026-10-25T00:00:00Z",
                ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
            ),
        ] {
            let found: Vec<_> = plan.upcoming(at(day)).take(2).collect();
            assert_eq!(found, dues.map(at));
        }
    }

    #[test]
    fn a_paused_policy_runs_nothing() {
        let spec = PolicySpec {
            paused: true,
            ..spec("0 * * * *")
        };
        let decisions = decide_all(&spec, "2026-01-05T10:00:00Z", "2026-01-05T10:00:01Z");
        assert_eq!(decisions, [Decision::Skip(TickOutcome::SkippedPaused)]);
    }
}
