//! Leases and fencing: what keeps a superseded attempt from spoiling what its successor does (P2, rules 2, 5
//! and 6), and a living worker from being robbed (rule 5).
//!
//! It models
//! - `worker/src/lease.rs`: `new`, `renew`, `supersede`, `check`
//! - `worker/src/heart.rs`: `beat`, `apply`
//! - `ledger/src/job/attempt.rs`: `heartbeat`, `fence`, `save_checkpoint`
//! - `ledger/src/job/complete.rs`: `complete_all`
//! - `ledger/src/job/rescue.rs`: `rescue`, `take_back`
//! - `ledger/src/store.rs`: `noticed`, `since_outage`
//! - `engines/postgres/src/restore/place.rs`: `take_over`, `advance`, `superseded`
//!
//! One job, two workers, a clock of few ticks. A renewal is sent, taken by the ledger and answered in three
//! steps. Faults: a worker is stopped for as long as one likes and goes on, in the middle of an effect too; the
//! ledger is away for a while; the ledger is put back to an earlier copy of itself.

use stateright::{Model, Property};

/// Ticks that a lease holds.
const LEASE: u8 = 3;
/// A worker that lives has its renewal answered within so many ticks, while the ledger is there.
const RENEWED_WITHIN: u8 = 2;
/// The last tick.
const LAST: u8 = 9;
const WORKERS: usize = 2;
/// So many attempts are made at most.
const ATTEMPTS: u8 = 3;

/// What goes wrong, and the rules that can be switched off.
#[derive(Clone, Copy, Debug)]
pub struct Leases {
    /// One worker may be stopped and go on later.
    pub stops: bool,
    /// The ledger may be away once.
    pub outage: bool,
    /// The ledger may be put back to an earlier copy once.
    pub put_back: bool,
    /// A write to the ledger is refused unless it carries the newest token (P2).
    pub fence: bool,
    /// The target checks and keeps the token with each effect (rule 6).
    pub target_keeps_token: bool,
    /// A token has a random part (rule 2).
    pub random_part: bool,
    /// A lease counts from when its renewal was sent, not from when the answer came (rule 5).
    pub counts_from_sending: bool,
    /// After an outage rescue waits one lease (rule 5).
    pub waits_after_outage: bool,
}

/// All rules hold, and nothing goes wrong by itself.
pub const AS_BUILT: Leases = Leases {
    stops: false,
    outage: false,
    put_back: false,
    fence: true,
    target_keeps_token: true,
    random_part: true,
    counts_from_sending: true,
    waits_after_outage: true,
};

/// A fencing token: the number of the attempt, and what is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    number: u8,
    drawn: u8,
}

/// The job's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    number: u8,
    /// The token of the running attempt.
    running: Option<Token>,
    lease_until: u8,
    ended: bool,
}

/// A renewal on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Renewal {
    /// There is none.
    None,
    /// Sent at this tick.
    Sent(u8),
    /// The ledger has answered what was sent at this tick.
    Answered(u8, bool),
}

/// A worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Worker {
    token: Option<Token>,
    /// Until when it holds the lease, by its own clock.
    until: u8,
    /// When what it holds was asked for.
    asked: u8,
    renewal: Renewal,
    /// It knows that it was superseded.
    superseded: bool,
    /// Its fence let an effect through that it has not done yet.
    about_to: bool,
    stopped: bool,
    was_stopped: bool,
}

/// The ledger, the workers, the target outside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    now: u8,
    row: Row,
    drawn: u8,
    /// Who made the newest attempt.
    newest: Option<usize>,
    up: bool,
    /// When the ledger was last found to be away.
    away_at: Option<u8>,
    outages: u8,
    copy: Option<Row>,
    was_put_back: bool,
    workers: [Worker; WORKERS],
    /// The token that the target keeps.
    marker: u8,
    /// The newest attempt of which an effect stands in the target.
    outside: u8,
    stops: u8,
    stale_write: bool,
    stale_effect: bool,
    robbed: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Time passes.
    Tick,
    /// A worker claims the job.
    Claim(usize),
    /// A worker sends a renewal.
    Send(usize),
    /// The ledger takes it in.
    Renew(usize),
    /// The worker hears the answer.
    Hear(usize),
    /// The worker asks its own fence.
    Check(usize),
    /// It does what the fence let through.
    Effect(usize),
    /// It writes to the ledger for the attempt.
    Write(usize),
    /// It reports the end.
    Complete(usize),
    /// It is stopped.
    Stop(usize),
    /// It goes on.
    Continue(usize),
    /// The job is taken back.
    Rescue,
    /// The ledger goes away.
    Away,
    /// It is back.
    Back,
    /// It is copied.
    Copy,
    /// It is put back to the copy.
    PutBack,
}

impl State {
    fn writes(&self, worker: usize) -> Option<Token> {
        let worker = &self.workers[worker];
        worker
            .token
            .filter(|_| !worker.stopped && !worker.superseded)
    }
}

impl Leases {
    /// Whether a living worker's heartbeat is overdue: it beats before time goes on.
    fn must_beat(state: &State) -> bool {
        state.up
            && state.workers.iter().any(|worker| {
                worker.token.is_some()
                    && !worker.stopped
                    && !worker.superseded
                    && state.now - worker.asked >= RENEWED_WITHIN
            })
    }

    /// Whether the ledger takes a write of this attempt; remembers one that it should have refused.
    fn takes(self, state: &mut State, worker: usize, token: Token) -> bool {
        if self.fence && state.row.running != Some(token) {
            state.workers[worker].superseded = true;
            return false;
        }
        state.stale_write |= state.newest != Some(worker);
        true
    }

    fn can_rescue(self, state: &State) -> bool {
        state.up
            && state.row.running.is_some()
            && state.row.lease_until < state.now
            && (!self.waits_after_outage
                || state.away_at.is_none_or(|away| state.now - away >= LEASE))
    }
}

impl Model for Leases {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let worker = Worker {
            token: None,
            until: 0,
            asked: 0,
            renewal: Renewal::None,
            superseded: false,
            about_to: false,
            stopped: false,
            was_stopped: false,
        };
        vec![State {
            now: 0,
            row: Row {
                number: 0,
                running: None,
                lease_until: 0,
                ended: false,
            },
            drawn: 0,
            newest: None,
            up: true,
            away_at: None,
            outages: 0,
            copy: None,
            was_put_back: false,
            workers: [worker; WORKERS],
            marker: 0,
            outside: 0,
            stops: 0,
            stale_write: false,
            stale_effect: false,
            robbed: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.now < LAST && !Self::must_beat(state) {
            steps.push(Step::Tick);
        }
        let claimable =
            state.up && state.row.running.is_none() && !state.row.ended && state.drawn < ATTEMPTS;
        for (number, worker) in state.workers.iter().enumerate() {
            if worker.stopped {
                steps.push(Step::Continue(number));
                continue;
            }
            if self.stops && state.stops == 0 && worker.token.is_some() {
                steps.push(Step::Stop(number));
            }
            if claimable && worker.token.is_none_or(|_| worker.superseded) {
                steps.push(Step::Claim(number));
            }
            if let Renewal::Answered(..) = worker.renewal {
                steps.push(Step::Hear(number));
            }
            if worker.about_to {
                steps.push(Step::Effect(number));
            }
            if worker.token.is_some() && !worker.superseded {
                if worker.renewal == Renewal::None && worker.asked < state.now {
                    steps.push(Step::Send(number));
                }
                if !worker.about_to && state.now < worker.until {
                    steps.push(Step::Check(number));
                }
                if state.up {
                    steps.extend([Step::Write(number), Step::Complete(number)]);
                }
            }
        }
        for (number, worker) in state.workers.iter().enumerate() {
            // What was sent arrives also while its sender is stopped.
            if state.up && matches!(worker.renewal, Renewal::Sent(_)) {
                steps.push(Step::Renew(number));
            }
        }
        if self.can_rescue(state) {
            steps.push(Step::Rescue);
        }
        if self.outage && state.up && state.outages == 0 && state.row.running.is_some() {
            steps.push(Step::Away);
        }
        if !state.up {
            steps.push(Step::Back);
        }
        if self.put_back && state.copy.is_none() {
            steps.push(Step::Copy);
        }
        if self.put_back && state.copy.is_some() && !state.was_put_back {
            steps.push(Step::PutBack);
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Tick => {
                state.now += 1;
                if !state.up {
                    // Each try to reach it says so.
                    state.away_at = Some(state.now);
                }
            }
            Step::Claim(worker) => {
                state.row.number += 1;
                state.drawn += 1;
                let token = Token {
                    number: state.row.number,
                    drawn: if self.random_part { state.drawn } else { 0 },
                };
                state.row.running = Some(token);
                state.row.lease_until = state.now + LEASE;
                state.newest = Some(worker);
                let claimed = &mut state.workers[worker];
                claimed.token = Some(token);
                claimed.until = state.now + LEASE;
                claimed.asked = state.now;
                claimed.renewal = Renewal::None;
                claimed.superseded = false;
                claimed.about_to = false;
            }
            Step::Send(worker) => state.workers[worker].renewal = Renewal::Sent(state.now),
            Step::Renew(worker) => {
                let Renewal::Sent(sent) = state.workers[worker].renewal else {
                    return None;
                };
                let token = state.workers[worker].token?;
                let held = state.row.running == Some(token);
                if held {
                    state.row.lease_until = state.now + LEASE;
                }
                state.workers[worker].renewal = Renewal::Answered(sent, held);
            }
            Step::Hear(worker) => {
                let now = state.now;
                let hearing = &mut state.workers[worker];
                let Renewal::Answered(sent, held) = hearing.renewal else {
                    return None;
                };
                hearing.renewal = Renewal::None;
                if held {
                    let from = if self.counts_from_sending { sent } else { now };
                    hearing.until = hearing.until.max(from + LEASE);
                    hearing.asked = hearing.asked.max(sent);
                } else {
                    hearing.superseded = true;
                }
            }
            Step::Check(worker) => state.workers[worker].about_to = true,
            Step::Effect(worker) => {
                state.workers[worker].about_to = false;
                let number = state.workers[worker].token?.number;
                if self.target_keeps_token {
                    if number < state.marker {
                        state.workers[worker].superseded = true;
                        return Some(state);
                    }
                    state.marker = number;
                }
                state.stale_effect |= number < state.outside;
                state.outside = state.outside.max(number);
            }
            Step::Write(worker) => {
                let token = state.writes(worker)?;
                self.takes(&mut state, worker, token);
            }
            Step::Complete(worker) => {
                let token = state.writes(worker)?;
                if self.takes(&mut state, worker, token) {
                    state.row.running = None;
                    state.row.ended = true;
                    state.workers[worker].superseded = true;
                }
            }
            Step::Stop(worker) => {
                state.stops += 1;
                state.workers[worker].stopped = true;
                state.workers[worker].was_stopped = true;
            }
            Step::Continue(worker) => state.workers[worker].stopped = false,
            Step::Rescue => {
                let token = state.row.running.take();
                state.robbed |= !state.was_put_back
                    && state
                        .workers
                        .iter()
                        .any(|worker| worker.token == token && !worker.was_stopped);
            }
            Step::Away => {
                state.up = false;
                state.outages += 1;
                state.away_at = Some(state.now);
            }
            Step::Back => state.up = true,
            Step::Copy => state.copy = Some(state.row),
            Step::PutBack => {
                state.row = state.copy?;
                state.was_put_back = true;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "P2: what a superseded attempt writes is refused",
                |_, state: &State| !state.stale_write,
            ),
            Property::always(
                "P2: no effect of an older attempt comes after one of a newer",
                |_, state: &State| !state.stale_effect,
            ),
            Property::always(
                "rule 5: who thinks that it holds the lease holds it",
                |_, state: &State| {
                    state.was_put_back
                        || state.workers.iter().all(|worker| {
                            worker.token.is_none()
                                || worker.superseded
                                || state.now >= worker.until
                                || state.row.running == worker.token
                        })
                },
            ),
            Property::always(
                "rule 5: a worker that lives is not robbed",
                |_, state: &State| !state.robbed,
            ),
            Property::sometimes("the job ends", |_, state: &State| state.row.ended),
        ]
    }
}

#[cfg(test)]
mod tests {
    use stateright::Checker as _;

    use super::*;
    use crate::{explore, explore_until_a_fault};

    #[test]
    fn p2_a_stopped_worker_that_goes_on_spoils_nothing() {
        let model = Leases {
            stops: true,
            ..AS_BUILT
        };
        let checked = explore(model);
        checked.assert_properties();
        assert!(checked.unique_state_count() > 10_000);
    }

    #[test]
    fn rule_5_an_outage_of_the_ledger_robs_nobody_and_spoils_nothing() {
        let model = Leases {
            outage: true,
            ..AS_BUILT
        };
        explore(model).assert_properties();
    }

    #[test]
    fn rule_2_a_ledger_that_was_put_back_hands_out_no_old_token() {
        let model = Leases {
            put_back: true,
            target_keeps_token: false,
            ..AS_BUILT
        };
        let checked = explore(model);
        checked.assert_no_discovery("P2: what a superseded attempt writes is refused");
    }

    #[test]
    fn without_the_fence_a_zombie_writes() {
        let broken = Leases {
            stops: true,
            fence: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken)
            .assert_any_discovery("P2: what a superseded attempt writes is refused");
    }

    #[test]
    fn a_target_that_keeps_no_token_takes_a_zombies_effect() {
        let broken = Leases {
            stops: true,
            target_keeps_token: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken)
            .assert_any_discovery("P2: no effect of an older attempt comes after one of a newer");
    }

    #[test]
    fn a_token_without_a_random_part_comes_back_from_a_ledger_that_was_put_back() {
        let broken = Leases {
            put_back: true,
            random_part: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken)
            .assert_any_discovery("P2: what a superseded attempt writes is refused");
    }

    #[test]
    fn a_lease_that_counts_from_the_answer_is_held_by_two() {
        let broken = Leases {
            stops: true,
            counts_from_sending: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken)
            .assert_any_discovery("rule 5: who thinks that it holds the lease holds it");
    }

    #[test]
    fn a_rescue_that_does_not_wait_after_an_outage_robs_a_living_worker() {
        let broken = Leases {
            outage: true,
            waits_after_outage: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken)
            .assert_any_discovery("rule 5: a worker that lives is not robbed");
    }
}
