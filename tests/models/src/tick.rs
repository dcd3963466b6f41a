//! Ticks: each due time of a policy has one outcome, whoever leads and whatever the clock does (rule 18).
//!
//! It models
//! - `ledger/src/policies.rs`: `tick_batch`, `lead`, `check_leader`, `set_next_due`
//! - `scheduler/src/tick.rs`: `tick_once`, `correct`
//! - `scheduler/src/plan.rs`: `corrected`
//!
//! One policy that is due at each whole hour, two schedulers, a lead that runs out. A scheduler reads what is
//! due and decides it later, in one transaction; it may die or lose the lead in between. The ledger's clock
//! goes on by hours, and jumps once to any of them.

use stateright::{Model, Property};

/// The last hour.
const LAST: usize = 5;
/// Hours that a lead holds.
const LEAD: usize = 1;
const SCHEDULERS: usize = 2;
/// The lead changes hands so often at most.
const TERMS: u8 = 4;

/// The rules that can be switched off.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    /// A due time has one row, and whoever finds it there decides nothing.
    pub unique_row: bool,
    /// The row, its job and the next due time are one transaction.
    pub one_transaction: bool,
    /// A due time that is later than what the expression says is computed again.
    pub corrects: bool,
    /// Only a due time that is too late is corrected, never one that is overdue.
    pub corrects_backwards_only: bool,
    /// A decision counts only while its maker leads.
    pub checks_the_lead: bool,
}

/// All rules hold.
pub const AS_BUILT: Ticks = Ticks {
    unique_row: true,
    one_transaction: true,
    corrects: true,
    corrects_backwards_only: true,
    checks_the_lead: true,
};

/// What a scheduler is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheduler {
    /// Nothing.
    Idle,
    /// It has read, in this term, that this hour is due.
    Read(usize, u8),
    /// Without [`Ticks::one_transaction`]: the job of this hour is submitted, the row not written.
    Submitted(usize, u8),
}

/// The ledger, its clock and the schedulers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    now: usize,
    jumped: bool,
    next_due: usize,
    /// The hours that have a row.
    rows: [bool; LAST + 2],
    /// The jobs of each hour.
    jobs: [u8; LAST + 2],
    /// Hours that were passed over without a row.
    lost: bool,
    leader: Option<(usize, usize)>,
    term: u8,
    schedulers: [Scheduler; SCHEDULERS],
    /// A decision was written by one who no longer led.
    written_by_another: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An hour passes.
    Hour,
    /// The clock jumps.
    Jump(usize),
    /// A scheduler takes the lead or renews it.
    Lead(usize),
    /// It reads what is due.
    Read(usize),
    /// It decides what it read.
    Decide(usize),
    /// It dies and starts again.
    Die(usize),
    /// The leader computes the next due time again.
    Correct(usize),
}

impl State {
    fn leads(&self, scheduler: usize) -> bool {
        self.leader
            .is_some_and(|(holder, until)| holder == scheduler && until >= self.now)
    }

    fn go_on_from(&mut self, hour: usize) {
        self.next_due = (hour + 1).min(LAST + 1);
    }
}

impl Model for Ticks {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: 0,
            jumped: false,
            next_due: 1,
            rows: [false; LAST + 2],
            jobs: [0; LAST + 2],
            lost: false,
            leader: None,
            term: 0,
            schedulers: [Scheduler::Idle; SCHEDULERS],
            written_by_another: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.now < LAST {
            steps.push(Step::Hour);
        }
        if !state.jumped {
            steps.extend((0..=LAST).filter(|hour| *hour != state.now).map(Step::Jump));
        }
        for (number, scheduler) in state.schedulers.iter().enumerate() {
            let can_lead = state
                .leader
                .is_none_or(|(holder, until)| holder == number || until < state.now);
            if can_lead && state.term < TERMS {
                steps.push(Step::Lead(number));
            }
            match scheduler {
                Scheduler::Idle => {
                    if state.leads(number) {
                        if state.next_due <= state.now {
                            steps.push(Step::Read(number));
                        }
                        if self.corrects {
                            steps.push(Step::Correct(number));
                        }
                    }
                }
                Scheduler::Read(..) | Scheduler::Submitted(..) => {
                    steps.extend([Step::Decide(number), Step::Die(number)]);
                }
            }
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Hour => state.now += 1,
            Step::Jump(hour) => {
                state.now = hour;
                state.jumped = true;
                // A lead that a clock ahead gave out would hold too long: its holder renews it or dies.
                if let Some((_, until)) = &mut state.leader {
                    *until = (*until).min(hour + LEAD);
                }
            }
            Step::Lead(scheduler) => {
                let until = state.now + LEAD;
                match state.leader {
                    Some((holder, held)) if holder == scheduler && held >= state.now => {
                        if held == until {
                            return None;
                        }
                    }
                    _ => state.term += 1,
                }
                state.leader = Some((scheduler, until));
            }
            Step::Read(scheduler) => {
                state.schedulers[scheduler] = Scheduler::Read(state.next_due, state.term);
            }
            Step::Die(scheduler) => state.schedulers[scheduler] = Scheduler::Idle,
            Step::Decide(scheduler) => {
                let (hour, term, submitted) = match state.schedulers[scheduler] {
                    Scheduler::Read(hour, term) => (hour, term, false),
                    Scheduler::Submitted(hour, term) => (hour, term, true),
                    Scheduler::Idle => return None,
                };
                let leads = state.leads(scheduler) && state.term == term;
                if self.checks_the_lead && !leads {
                    state.schedulers[scheduler] = Scheduler::Idle;
                    return Some(state);
                }
                if self.unique_row && state.rows[hour] && !submitted {
                    // It was decided before: the next due time goes on if it stands still.
                    if state.next_due == hour {
                        state.go_on_from(hour);
                    }
                    state.schedulers[scheduler] = Scheduler::Idle;
                    return Some(state);
                }
                if !self.one_transaction && !submitted {
                    state.jobs[hour] += 1;
                    state.schedulers[scheduler] = Scheduler::Submitted(hour, term);
                    return Some(state);
                }
                state.written_by_another |= !leads;
                if !submitted {
                    state.jobs[hour] += 1;
                }
                state.rows[hour] = true;
                state.go_on_from(hour);
                state.schedulers[scheduler] = Scheduler::Idle;
            }
            Step::Correct(_) => {
                let from_now = (state.now + 1).min(LAST + 1);
                let is_wrong = if self.corrects_backwards_only {
                    state.next_due > from_now
                } else {
                    state.next_due != from_now
                };
                if !is_wrong {
                    return None;
                }
                state.next_due = from_now;
            }
        }
        state.lost |= (1..state.next_due).any(|hour| !state.rows[hour]);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "rule 18: a due time has one job at most",
                |_, state: &State| state.jobs.iter().all(|jobs| *jobs <= 1),
            ),
            Property::always(
                "rule 18: no due time is passed over without an outcome",
                |_, state: &State| !state.lost,
            ),
            Property::always(
                "rule 18: a due time that the clock brought too far ahead comes back",
                |model, state: &State| {
                    // Once the leader has looked, nothing that is to come is left out.
                    let mut steps = Vec::new();
                    model.actions(state, &mut steps);
                    let can_correct = steps.iter().any(|step| {
                        matches!(step, Step::Correct(_) | Step::Lead(_) | Step::Decide(_))
                            && model.next_state(state, *step).is_some()
                    });
                    // Where the bound leaves nobody to lead, nobody corrects.
                    state.term == TERMS || can_correct || state.next_due <= state.now + 1
                },
            ),
            Property::always("only the leader decides", |_, state: &State| {
                !state.written_by_another
            }),
            Property::sometimes("every hour has its job", |_, state: &State| {
                (1..=LAST).all(|hour| state.jobs[hour] == 1)
            }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use stateright::Checker as _;

    use super::*;
    use crate::{explore, explore_until_a_fault};

    #[test]
    fn rule_18_each_due_time_has_one_outcome_whoever_leads_and_whatever_the_clock_does() {
        let checked = explore(AS_BUILT);
        checked.assert_properties();
        assert!(checked.unique_state_count() > 10_000);
    }

    #[test]
    fn without_the_unique_row_a_clock_that_jumps_doubles_a_job() {
        let broken = Ticks {
            unique_row: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken)
            .assert_any_discovery("rule 18: a due time has one job at most");
    }

    #[test]
    fn a_job_outside_the_transaction_of_its_row_is_doubled_by_a_death() {
        let broken = Ticks {
            one_transaction: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken)
            .assert_any_discovery("rule 18: a due time has one job at most");
    }

    #[test]
    fn a_correction_that_goes_forwards_too_passes_due_times_over() {
        let broken = Ticks {
            corrects_backwards_only: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken)
            .assert_any_discovery("rule 18: no due time is passed over without an outcome");
    }

    #[test]
    fn without_correction_a_clock_that_was_ahead_leaves_due_times_out() {
        let broken = Ticks {
            corrects: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery(
            "rule 18: a due time that the clock brought too far ahead comes back",
        );
    }

    #[test]
    fn a_decision_without_a_look_at_the_lead_is_made_by_one_who_lost_it() {
        let broken = Ticks {
            checks_the_lead: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery("only the leader decides");
    }
}
