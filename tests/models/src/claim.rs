//! Claims: who gets a job, under exclusion and limits, and who is woken when something becomes free (rules 3
//! and 4).
//!
//! It models
//! - `ledger/src/job/claim.rs`: `lock_candidates`, `decide`, `lock_resources`, `park`, `take_resources`, `take`
//! - `ledger/src/job/limits.rs`: `limit_against`, `pass_on`, `write`, `give_back`
//! - `ledger/src/job/finish.rs`: `release`, `wake_first`
//!
//! Five jobs want one database, or one slot of a limit, or both, or nothing; two workers claim. A claim chooses without a
//! lock, locks the job's row, reads limit and database, and writes; it can die between any two of these, which
//! rolls it back. The net below rule 4 (`Ledger::expire`) is left out on purpose: wake-ups must suffice without.

use stateright::{Model, Property};

/// How many run at once under the limit.
const MOST: u8 = 1;
const WORKERS: usize = 2;

/// What a job needs.
struct Needs {
    database: bool,
    limit: bool,
}

const fn needs(database: bool, limit: bool) -> Needs {
    Needs { database, limit }
}

/// In the order of their age.
const JOBS: [Needs; 5] = [
    needs(false, true),
    needs(true, true),
    needs(true, false),
    needs(false, true),
    needs(false, false),
];

/// The rules that can be switched off.
#[derive(Clone, Copy, Debug)]
pub struct Claims {
    /// The rows are locked, and the condition that decides stands in the statement that writes (rule 3).
    pub condition_in_the_write: bool,
    /// A limit's slots are counted under the lock of its row.
    pub limits_under_lock: bool,
    /// Whether a database is held is read under the lock under which a refused job parks there.
    pub parks_under_lock: bool,
    /// A woken job that is refused elsewhere passes its turn on.
    pub turns_are_passed_on: bool,
}

/// All rules hold.
pub const AS_BUILT: Claims = Claims {
    condition_in_the_write: true,
    limits_under_lock: true,
    parks_under_lock: true,
    turns_are_passed_on: true,
};

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// It can be claimed.
    Queued,
    /// It waits for the database.
    AtDatabase,
    /// It waits for a slot of the limit.
    AtLimit,
    /// It runs.
    Running,
    /// It has ended.
    Ended,
}

/// A worker's claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// There is none.
    Idle,
    /// It chose a job without a lock.
    Chosen(usize),
    /// It holds the job's row.
    Locked(usize),
    /// It has read what decides.
    Decided(usize, Verdict),
}

/// What a claim is about to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The job runs.
    Take,
    /// It parks here.
    Park(Place),
}

/// The ledger's rows and what the workers are at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    places: [Place; JOBS.len()],
    /// How many attempts of each job run.
    attempts: [u8; JOBS.len()],
    /// Who holds the database, as its row says.
    holder: Option<usize>,
    /// How many slots are taken, as the limit's row says.
    running: u8,
    claims: [Claim; WORKERS],
    database_lock: Option<usize>,
    limit_lock: Option<usize>,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A worker chooses a job.
    Choose(usize, usize),
    /// It locks the job's row, or finds it locked or gone.
    Lock(usize),
    /// It locks and reads limit and database.
    Read(usize),
    /// It writes and commits.
    Write(usize),
    /// It dies; its transaction is rolled back.
    Die(usize),
    /// A running attempt ends.
    End(usize),
}

impl State {
    fn is_locked_by_another(&self, worker: usize, job: usize) -> bool {
        self.claims.iter().enumerate().any(|(other, claim)| {
            other != worker
                && matches!(claim, Claim::Locked(locked) | Claim::Decided(locked, _) if *locked == job)
        })
    }

    fn is_free_for(lock: Option<usize>, worker: usize) -> bool {
        lock.is_none_or(|holder| holder == worker)
    }

    fn wake_first(&mut self, at: Place) {
        if let Some(job) = self.places.iter().position(|place| *place == at) {
            self.places[job] = Place::Queued;
        }
    }

    fn leave(&mut self, worker: usize) {
        self.claims[worker] = Claim::Idle;
        for lock in [&mut self.database_lock, &mut self.limit_lock] {
            if *lock == Some(worker) {
                *lock = None;
            }
        }
    }

    fn running_where(&self, needs: fn(&Needs) -> bool) -> u8 {
        (0..JOBS.len())
            .filter(|job| needs(&JOBS[*job]))
            .map(|job| self.attempts[job])
            .sum()
    }
}

impl Claims {
    fn write(&self, state: &mut State, job: usize, verdict: Verdict) {
        let needs = &JOBS[job];
        match verdict {
            Verdict::Take => {
                let holds = state.places[job] == Place::Queued
                    && (!needs.database || state.holder.is_none());
                if self.condition_in_the_write && !holds {
                    // The whole claim is rolled back.
                    return;
                }
                state.places[job] = Place::Running;
                state.attempts[job] += 1;
                if needs.database {
                    state.holder = Some(job);
                }
                if needs.limit {
                    state.running += 1;
                }
            }
            Verdict::Park(at) => {
                if state.places[job] != Place::Queued {
                    return;
                }
                state.places[job] = at;
                if !self.turns_are_passed_on {
                    return;
                }
                if at == Place::AtDatabase && needs.limit && state.running < MOST {
                    state.wake_first(Place::AtLimit);
                }
                if at == Place::AtLimit && needs.database && state.holder.is_none() {
                    state.wake_first(Place::AtDatabase);
                }
            }
        }
    }
}

impl Model for Claims {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            places: [Place::Queued; JOBS.len()],
            attempts: [0; JOBS.len()],
            holder: None,
            running: 0,
            claims: [Claim::Idle; WORKERS],
            database_lock: None,
            limit_lock: None,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for worker in 0..WORKERS {
            match state.claims[worker] {
                Claim::Idle => steps.extend(
                    (0..JOBS.len())
                        .filter(|job| state.places[*job] == Place::Queued)
                        .map(|job| Step::Choose(worker, job)),
                ),
                Claim::Chosen(_) => steps.push(Step::Lock(worker)),
                Claim::Locked(_) => steps.extend([Step::Read(worker), Step::Die(worker)]),
                Claim::Decided(..) => steps.extend([Step::Write(worker), Step::Die(worker)]),
            }
        }
        steps.extend(
            (0..JOBS.len())
                .filter(|job| state.attempts[*job] > 0)
                .map(Step::End),
        );
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Choose(worker, job) => state.claims[worker] = Claim::Chosen(job),
            Step::Lock(worker) => {
                let Claim::Chosen(job) = state.claims[worker] else {
                    return None;
                };
                let skipped = self.condition_in_the_write
                    && (state.places[job] != Place::Queued
                        || state.is_locked_by_another(worker, job));
                state.claims[worker] = if skipped {
                    Claim::Idle
                } else {
                    Claim::Locked(job)
                };
            }
            Step::Read(worker) => {
                let Claim::Locked(job) = state.claims[worker] else {
                    return None;
                };
                let needs = &JOBS[job];
                // Limits before databases, as releases lock them: nobody waits in a circle.
                if needs.limit && self.limits_under_lock {
                    if !State::is_free_for(state.limit_lock, worker) {
                        return None;
                    }
                    state.limit_lock = Some(worker);
                }
                if needs.database && self.parks_under_lock {
                    if !State::is_free_for(state.database_lock, worker) {
                        return None;
                    }
                    state.database_lock = Some(worker);
                }
                let verdict = if needs.limit && state.running >= MOST {
                    Verdict::Park(Place::AtLimit)
                } else if needs.database && state.holder.is_some() {
                    Verdict::Park(Place::AtDatabase)
                } else {
                    Verdict::Take
                };
                state.claims[worker] = Claim::Decided(job, verdict);
            }
            Step::Write(worker) => {
                let Claim::Decided(job, verdict) = state.claims[worker] else {
                    return None;
                };
                self.write(&mut state, job, verdict);
                state.leave(worker);
            }
            Step::Die(worker) => state.leave(worker),
            Step::End(job) => {
                let needs = &JOBS[job];
                // It writes the rows that claims lock, and waits for them.
                if (needs.limit && state.limit_lock.is_some())
                    || (needs.database && state.database_lock.is_some())
                {
                    return None;
                }
                state.attempts[job] -= 1;
                state.places[job] = Place::Ended;
                if needs.limit {
                    state.running = state.running.saturating_sub(1);
                    if state.running < MOST {
                        state.wake_first(Place::AtLimit);
                    }
                }
                if needs.database && state.holder == Some(job) {
                    state.holder = None;
                    state.wake_first(Place::AtDatabase);
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("P2: a job has one running attempt", |_, state: &State| {
                state.attempts.iter().all(|running| *running <= 1)
            }),
            Property::always("one job at a time has the database", |_, state: &State| {
                state.running_where(|needs| needs.database) <= 1
            }),
            Property::always("no more run than the limit allows", |_, state: &State| {
                state.running_where(|needs| needs.limit) <= MOST
            }),
            Property::always(
                "rule 4: no job waits for what is free",
                |_, state: &State| {
                    let somebody_comes = state.claims.iter().any(|claim| *claim != Claim::Idle)
                        || state.places.contains(&Place::Queued);
                    let waits = |at| state.places.contains(&at);
                    somebody_comes
                        || !(waits(Place::AtDatabase) && state.holder.is_none()
                            || waits(Place::AtLimit) && state.running < MOST)
                },
            ),
            Property::sometimes("all jobs end", |_, state: &State| {
                state.places.iter().all(|place| *place == Place::Ended)
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
    fn p1_p2_claims_keep_exclusion_and_limits_and_leave_nobody_waiting() {
        let checked = explore(AS_BUILT);
        checked.assert_properties();
        assert!(checked.unique_state_count() > 1_000);
    }

    #[test]
    fn without_the_condition_in_the_writing_statement_a_job_runs_twice() {
        let broken = Claims {
            condition_in_the_write: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery("P2: a job has one running attempt");
    }

    #[test]
    fn a_limit_that_is_counted_without_its_lock_is_exceeded() {
        let broken = Claims {
            limits_under_lock: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery("no more run than the limit allows");
    }

    #[test]
    fn a_job_that_parks_without_the_lock_misses_the_release_and_waits_for_ever() {
        let broken = Claims {
            parks_under_lock: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery("rule 4: no job waits for what is free");
    }

    #[test]
    fn a_turn_that_is_not_passed_on_leaves_the_next_in_line_waiting_for_ever() {
        let broken = Claims {
            turns_are_passed_on: false,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery("rule 4: no job waits for what is free");
    }
}
