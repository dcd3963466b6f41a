//! Rescue: an accepted job ends, whoever dies and whatever the wire forgets (P1, rules 1, 2, 14 and 15).
//!
//! It models
//! - `ledger/src/job/submit.rs`: `submit_all`
//! - `ledger/src/job/rescue.rs`: `rescue`, `take_back`
//! - `ledger/src/job/complete.rs`: `complete_all`
//! - `ledger/src/job/control.rs`: `request_cancel`
//! - `queue/redis/src/keeper.rs`: `round`, `fill`
//! - `worker/src/rescue.rs`: `rescue`, `remove_artefacts`
//!
//! Two jobs, two workers, a wire. A submit commits and then pushes; a worker pops, claims, makes something
//! outside, removes it and reports. Anybody may die between any two steps; the wire may lose everything once.

use stateright::{Model, Property};

const JOBS: usize = 2;
const WORKERS: usize = 2;
/// So many processes die at most.
const DEATHS: u8 = 2;
/// A job is tried so often.
const MAX_TRIES: u8 = 2;

/// The rules that can be switched off.
#[derive(Clone, Copy, Debug)]
pub struct Rescues {
    /// Jobs whose lease ran out go back to the queue: a loop, not a step at launch.
    pub takes_back: bool,
    /// What the ledger says is queued and the wire does not hold is pushed again (rule 15).
    pub sweeps_the_wire: bool,
    /// A cancellation outlives the attempt that was to hear of it (rule 1).
    pub keeps_cancellations: bool,
    /// A worker that died spends no try (rule 2).
    pub loss_spends_no_try: bool,
    /// What is made outside is recorded before it is made (rule 6).
    pub records_before_making: bool,
}

/// All rules hold.
pub const AS_BUILT: Rescues = Rescues {
    takes_back: true,
    sweeps_the_wire: true,
    keeps_cancellations: true,
    loss_spends_no_try: true,
    records_before_making: true,
};

/// Where a job is, as the ledger says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Nobody has asked for it.
    NotYet,
    /// It waits.
    Queued,
    /// A worker runs it.
    Running(usize),
    /// It has succeeded.
    Succeeded,
    /// It was cancelled.
    Cancelled,
    /// Its tries are spent.
    Dead,
}

/// A job's row, and what was made for it outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    place: Place,
    /// Whether whoever submitted it has still to push it.
    to_push: bool,
    on_the_wire: bool,
    cancel: bool,
    tries: u8,
    /// How often it really failed.
    failed: u8,
    recorded: bool,
    made: bool,
    /// It was run after a lost attempt though it was to be cancelled.
    ran_cancelled: bool,
}

/// What a worker is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Worker {
    /// Nothing.
    Idle,
    /// It has popped a job's id.
    Popped(usize),
    /// It runs a job.
    Runs(usize),
    /// It has died and its leases have not run out yet.
    Dead(Option<usize>),
}

/// The ledger, the wire and the workers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    jobs: [Job; JOBS],
    workers: [Worker; WORKERS],
    deaths: u8,
    flushed: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A job is accepted.
    Submit(usize),
    /// It is pushed.
    Push(usize),
    /// Whoever was to push it dies.
    LosePush(usize),
    /// The wire loses everything.
    Flush,
    /// The ledger's queue is compared with the wire.
    Sweep(usize),
    /// A worker pops an id.
    Pop(usize, usize),
    /// It claims what it popped.
    Claim(usize),
    /// It records what it is about to make, or makes it, in the order of the rule.
    Record(usize),
    /// See [`Step::Record`].
    Make(usize),
    /// It removes what it made.
    Remove(usize),
    /// It reports success.
    Succeed(usize),
    /// It reports a failure.
    Fail(usize),
    /// Somebody asks for a cancellation.
    Cancel(usize),
    /// The worker hears of it and ends the attempt.
    HearCancel(usize),
    /// It dies.
    Die(usize),
    /// Its jobs are taken back.
    TakeBack(usize),
    /// It starts again.
    Start(usize),
    /// What an ended attempt left is removed.
    Tidy(usize),
}

impl State {
    fn is_running(&self, job: usize) -> bool {
        matches!(self.jobs[job].place, Place::Running(_))
    }
}

impl Rescues {
    fn back(&self, job: &mut Job, lost: bool) {
        if job.cancel && (self.keeps_cancellations || !lost) {
            job.place = Place::Cancelled;
            return;
        }
        if !lost {
            job.failed += 1;
        }
        if !(lost && self.loss_spends_no_try) {
            job.tries += 1;
        }
        if job.tries >= MAX_TRIES {
            job.place = Place::Dead;
        } else {
            job.place = Place::Queued;
            job.to_push = true;
        }
    }
}

impl Model for Rescues {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let job = Job {
            place: Place::NotYet,
            to_push: false,
            on_the_wire: false,
            cancel: false,
            tries: 0,
            failed: 0,
            recorded: false,
            made: false,
            ran_cancelled: false,
        };
        vec![State {
            jobs: [job; JOBS],
            workers: [Worker::Idle; WORKERS],
            deaths: 0,
            flushed: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for (number, job) in state.jobs.iter().enumerate() {
            if job.place == Place::NotYet {
                steps.push(Step::Submit(number));
            }
            if job.to_push {
                steps.push(Step::Push(number));
                if state.deaths < DEATHS {
                    steps.push(Step::LosePush(number));
                }
            }
            let popped = state.workers.contains(&Worker::Popped(number));
            if self.sweeps_the_wire
                && job.place == Place::Queued
                && !job.on_the_wire
                && !job.to_push
                && !popped
            {
                steps.push(Step::Sweep(number));
            }
            // Cancellations of one job are enough to see.
            if number == 0 && !job.cancel && matches!(job.place, Place::Queued | Place::Running(_))
            {
                steps.push(Step::Cancel(number));
            }
            if job.recorded && !state.is_running(number) {
                steps.push(Step::Tidy(number));
            }
        }
        if !state.flushed {
            steps.push(Step::Flush);
        }
        for (number, worker) in state.workers.iter().enumerate() {
            match *worker {
                Worker::Idle => steps.extend(
                    (0..JOBS)
                        .filter(|job| state.jobs[*job].on_the_wire)
                        .map(|job| Step::Pop(number, job)),
                ),
                Worker::Popped(_) => steps.push(Step::Claim(number)),
                Worker::Runs(job) => {
                    let job = &state.jobs[job];
                    if job.cancel {
                        steps.push(Step::HearCancel(number));
                    }
                    let first = if self.records_before_making {
                        !job.recorded
                    } else {
                        job.made && !job.recorded
                    };
                    if first {
                        steps.push(Step::Record(number));
                    }
                    let may_make = !self.records_before_making || job.recorded;
                    if may_make && !job.made {
                        steps.push(Step::Make(number));
                    }
                    if job.made && job.recorded {
                        steps.push(Step::Remove(number));
                    }
                    if !job.made {
                        steps.extend([Step::Succeed(number), Step::Fail(number)]);
                    }
                }
                Worker::Dead(Some(_)) if self.takes_back => steps.push(Step::TakeBack(number)),
                Worker::Dead(Some(_)) => {}
                Worker::Dead(None) => steps.push(Step::Start(number)),
            }
            if state.deaths < DEATHS && !matches!(worker, Worker::Dead(_) | Worker::Idle) {
                steps.push(Step::Die(number));
            }
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Submit(job) => {
                state.jobs[job].place = Place::Queued;
                state.jobs[job].to_push = true;
            }
            Step::Push(job) => {
                state.jobs[job].to_push = false;
                state.jobs[job].on_the_wire = true;
            }
            Step::LosePush(job) => {
                state.jobs[job].to_push = false;
                state.deaths += 1;
            }
            Step::Flush => {
                state.flushed = true;
                for job in &mut state.jobs {
                    job.on_the_wire = false;
                }
            }
            Step::Sweep(job) => state.jobs[job].on_the_wire = true,
            Step::Pop(worker, job) => {
                state.jobs[job].on_the_wire = false;
                state.workers[worker] = Worker::Popped(job);
            }
            Step::Claim(worker) => {
                let Worker::Popped(job) = state.workers[worker] else {
                    return None;
                };
                let row = &mut state.jobs[job];
                if row.place == Place::Queued {
                    row.ran_cancelled |= row.cancel;
                    row.place = Place::Running(worker);
                    state.workers[worker] = Worker::Runs(job);
                } else {
                    // The ledger knows better than the wire.
                    state.workers[worker] = Worker::Idle;
                }
            }
            Step::Record(worker) => state.running(worker)?.recorded = true,
            Step::Make(worker) => state.running(worker)?.made = true,
            Step::Remove(worker) => {
                let job = state.running(worker)?;
                job.made = false;
                job.recorded = false;
            }
            Step::Succeed(worker) => {
                state.running(worker)?.place = Place::Succeeded;
                state.workers[worker] = Worker::Idle;
            }
            Step::Fail(worker) => {
                self.back(state.running(worker)?, false);
                state.workers[worker] = Worker::Idle;
            }
            Step::Cancel(job) => {
                let row = &mut state.jobs[job];
                row.cancel = true;
                if row.place == Place::Queued {
                    row.place = Place::Cancelled;
                }
            }
            Step::HearCancel(worker) => {
                state.running(worker)?.place = Place::Cancelled;
                state.workers[worker] = Worker::Idle;
            }
            Step::Die(worker) => {
                state.deaths += 1;
                state.workers[worker] = match state.workers[worker] {
                    Worker::Runs(job) => Worker::Dead(Some(job)),
                    _ => Worker::Dead(None),
                };
            }
            Step::TakeBack(worker) => {
                let Worker::Dead(Some(job)) = state.workers[worker] else {
                    return None;
                };
                self.back(&mut state.jobs[job], true);
                state.workers[worker] = Worker::Dead(None);
            }
            Step::Start(worker) => state.workers[worker] = Worker::Idle,
            Step::Tidy(job) => {
                state.jobs[job].made = false;
                state.jobs[job].recorded = false;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "P1: an accepted job is never stuck",
                |model, state: &State| {
                    let mut steps = Vec::new();
                    model.actions(state, &mut steps);
                    // The wire losing everything, or somebody cancelling, is no help to count on.
                    steps.retain(|step| !matches!(step, Step::Flush | Step::Cancel(_)));
                    !steps.is_empty()
                        || state.jobs.iter().all(|job| {
                            matches!(job.place, Place::Succeeded | Place::Cancelled | Place::Dead)
                        })
                },
            ),
            Property::always("P2: a job runs in one place", |_, state: &State| {
                (0..JOBS).all(|job| {
                    state
                        .workers
                        .iter()
                        .filter(|worker| **worker == Worker::Runs(job))
                        .count()
                        <= 1
                })
            }),
            Property::always(
                "rule 1: a job that is to be cancelled does not run again",
                |_, state: &State| state.jobs.iter().all(|job| !job.ran_cancelled),
            ),
            Property::always(
                "rule 2: a job is dead only by its own failures",
                |_, state: &State| {
                    state
                        .jobs
                        .iter()
                        .all(|job| job.place != Place::Dead || job.failed >= MAX_TRIES)
                },
            ),
            Property::always("rule 6: nothing is left outside", |model, state: &State| {
                let mut steps = Vec::new();
                model.actions(state, &mut steps);
                steps.retain(|step| !matches!(step, Step::Flush | Step::Cancel(_)));
                !steps.is_empty() || state.jobs.iter().all(|job| !job.made)
            }),
            Property::sometimes("all jobs succeed", |_, state: &State| {
                state.jobs.iter().all(|job| job.place == Place::Succeeded)
            }),
        ]
    }
}

impl State {
    fn running(&mut self, worker: usize) -> Option<&mut Job> {
        match self.workers[worker] {
            Worker::Runs(job) => Some(&mut self.jobs[job]),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use stateright::Checker as _;

    use super::*;
    use crate::{explore, explore_until_a_fault};

    #[test]
    fn p1_every_accepted_job_ends_whoever_dies_and_whatever_the_wire_forgets() {
        let checked = explore(AS_BUILT);
        checked.assert_properties();
        assert!(checked.unique_state_count() > 10_000);
    }

    #[test]
    fn without_rescue_a_job_is_stuck_with_its_dead_worker() {
        let broken = Rescues {
            takes_back: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery("P1: an accepted job is never stuck");
    }

    #[test]
    fn without_the_sweep_a_job_that_the_wire_forgot_is_stuck() {
        let broken = Rescues {
            sweeps_the_wire: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery("P1: an accepted job is never stuck");
    }

    #[test]
    fn a_rescue_that_forgets_the_cancellation_runs_the_job_again() {
        let broken = Rescues {
            keeps_cancellations: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken)
            .assert_any_discovery("rule 1: a job that is to be cancelled does not run again");
    }

    #[test]
    fn a_loss_that_spends_a_try_kills_a_job_that_never_failed() {
        let broken = Rescues {
            loss_spends_no_try: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken)
            .assert_any_discovery("rule 2: a job is dead only by its own failures");
    }

    #[test]
    fn what_is_made_before_it_is_recorded_is_left_behind() {
        let broken = Rescues {
            records_before_making: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery("rule 6: nothing is left outside");
    }
}
