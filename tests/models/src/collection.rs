//! Collection: what backups need is never deleted, whatever writers, forgetters and collectors of several
//! fleets do at the same time (P8, rules 21 to 23).
//!
//! It models
//! - `repository/src/writer.rs`: `begin_backup`, `already_there`, `announce`, `learn_segments`, `renew`, `all_listed`, `put_manifest`
//! - `repository/src/backups.rs`: `forget`, `bury`, `end_announcement`
//! - `repository/src/collect.rs`: `running`, `needs`, `stored`, `second_phase`, `first_phase`
//!
//! An old backup with one pack; a writer that takes that pack over and stores one of its own, and that may be
//! silent for as long as one likes, or die and be tried again; a forgetter of the old backup; two collectors.
//! Each request to the store is a step. The collectors' lock is left out on purpose: what is needed must be
//! safe without it, since a collector that hangs can go on after its lock was taken from it.

use stateright::{Model, Property};

/// Ticks of the grace.
const GRACE: u8 = 1;
/// The old backup's pack.
const OLD: usize = 0;
/// The writer's own.
const OWN: usize = 1;

/// The rules that can be switched off.
#[derive(Clone, Copy, Debug)]
pub struct Collections {
    /// How many collectors there are.
    pub collectors: usize,
    /// The last tick.
    pub last: u8,
    /// How often the writer may die.
    pub deaths: u8,
    /// Collections honour announcements of running backups (rule 21).
    pub announcements: bool,
    /// A silent backup gets a tombstone before what it may hold is deleted (rule 22).
    pub tombstones: bool,
    /// What was marked is looked at again before it is deleted (rule 23).
    pub second_look: bool,
    /// A writer looks whether its parent is still there after it has announced itself.
    pub looks_after_announcing: bool,
    /// A forgetting looks for announcements before it takes the manifest away.
    pub forgetting_honours_announcements: bool,
}

/// All rules hold.
pub const AS_BUILT: Collections = Collections {
    collectors: 1,
    last: 3,
    deaths: 1,
    announcements: true,
    tombstones: true,
    second_look: true,
    looks_after_announcing: true,
    forgetting_honours_announcements: true,
};

/// What lies at the writer's manifest's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// Nothing.
    Free,
    /// A manifest that names these packs.
    Manifest([bool; 2]),
    /// A tombstone.
    Tombstone,
}

/// The writer's announcement in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Announcement {
    since: u8,
    renewed: u8,
    /// The old backup is its parent.
    parent: bool,
    /// Its own pack stands in a segment.
    recorded: bool,
}

/// How far the writer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Writer {
    /// It has not begun, or begins again.
    Start,
    /// It has chosen a parent, or none, and not announced itself yet.
    Chosen(bool),
    /// It is announced.
    Announced(bool),
    /// It knows what it takes over.
    Knows {
        /// The old backup's pack too.
        takes_over: bool,
    },
    /// Its own pack is recorded.
    Recorded {
        /// The old backup's pack too.
        takes_over: bool,
    },
    /// Its own pack is stored.
    Stored {
        /// The old backup's pack too.
        takes_over: bool,
    },
    /// All that it will name was listed.
    Listed {
        /// The old backup's pack too.
        takes_over: bool,
    },
    /// Its manifest is written, its announcement not taken away.
    Committed,
    /// It has ended.
    Ended,
}

/// How far the forgetter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forgetter {
    /// It may begin.
    Start,
    /// Its record is written.
    Recorded,
    /// It has looked whether a running backup needs what it forgets.
    Looked {
        /// A running backup takes over from it.
        needed: bool,
    },
    /// It has ended.
    Ended,
}

/// How far a collector is, with what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Collector {
    stage: Stage,
    began: u8,
    /// What it saw of the running backup.
    running: Option<Announcement>,
    silent: bool,
    unneeded: [bool; 2],
    needs: [bool; 2],
}

/// See [`Collector`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It does not run.
    Idle,
    /// It knows the time.
    Began,
    /// It has listed the running backups.
    SawRunning,
    /// It has read the manifests.
    SawManifests,
    /// It has listed what is stored.
    SawStored,
    /// It has deleted.
    Deleted,
}

/// The store, and who works on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    now: u8,
    /// When each pack was written, while it is there.
    packs: [Option<u8>; 2],
    /// When each pack was marked.
    marks: [Option<u8>; 2],
    old_manifest: bool,
    forgotten: Option<u8>,
    name: Name,
    announcement: Option<Announcement>,
    writer: Writer,
    deaths: u8,
    forgetter: Forgetter,
    collectors: Vec<Collector>,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Time passes.
    Tick,
    /// The writer does what is next.
    Write,
    /// It renews its announcement.
    Renew,
    /// It dies; another attempt begins.
    Die,
    /// The forgetter does what is next.
    Forget,
    /// A collector does what is next.
    Collect(usize),
}

impl State {
    fn lists_old(&self) -> bool {
        self.old_manifest && self.forgotten.is_none()
    }

    fn names(takes_over: bool) -> [bool; 2] {
        [takes_over, true]
    }

    fn all_there(&self, names: [bool; 2]) -> bool {
        (0..2).all(|pack| !names[pack] || self.packs[pack].is_some())
    }

    fn is_active(writer: Writer) -> bool {
        !matches!(
            writer,
            Writer::Start | Writer::Chosen(_) | Writer::Committed | Writer::Ended
        )
    }
}

impl Collections {
    fn write(&self, state: &mut State) {
        state.writer = match state.writer {
            Writer::Start => match state.name {
                Name::Free => Writer::Chosen(state.lists_old()),
                Name::Manifest(_) => Writer::Committed,
                Name::Tombstone => Writer::Ended,
            },
            Writer::Chosen(parent) => {
                let earlier = state.announcement;
                state.announcement = Some(Announcement {
                    since: earlier.map_or(state.now, |earlier| earlier.since),
                    renewed: state.now,
                    parent,
                    recorded: earlier.is_some_and(|earlier| earlier.recorded),
                });
                Writer::Announced(parent)
            }
            // Forgotten meanwhile: another choice.
            Writer::Announced(true) if self.looks_after_announcing && !state.lists_old() => {
                Writer::Chosen(false)
            }
            Writer::Announced(parent) => {
                let takes_over = parent && state.packs[OLD].is_some();
                let knows_own = state.packs[OWN].is_some()
                    && state
                        .announcement
                        .is_some_and(|announcement| announcement.recorded);
                if knows_own {
                    Writer::Stored { takes_over }
                } else {
                    Writer::Knows { takes_over }
                }
            }
            Writer::Knows { takes_over } => {
                if let Some(announcement) = &mut state.announcement {
                    announcement.recorded = true;
                }
                Writer::Recorded { takes_over }
            }
            Writer::Recorded { takes_over } => {
                state.packs[OWN] = Some(state.now);
                Writer::Stored { takes_over }
            }
            Writer::Stored { takes_over } => {
                if state.all_there(State::names(takes_over)) {
                    Writer::Listed { takes_over }
                } else {
                    Writer::Ended
                }
            }
            Writer::Listed { takes_over } => match state.name {
                Name::Free => {
                    state.name = Name::Manifest(State::names(takes_over));
                    Writer::Committed
                }
                Name::Manifest(_) | Name::Tombstone => Writer::Ended,
            },
            Writer::Committed => {
                state.announcement = None;
                Writer::Ended
            }
            Writer::Ended => Writer::Ended,
        };
    }

    fn forget(&self, state: &mut State) {
        state.forgetter = match state.forgetter {
            Forgetter::Start => {
                state.forgotten = Some(state.now);
                Forgetter::Recorded
            }
            Forgetter::Recorded => Forgetter::Looked {
                needed: self.forgetting_honours_announcements
                    && state
                        .announcement
                        .is_some_and(|announcement| announcement.parent),
            },
            Forgetter::Looked { needed } => {
                state.old_manifest &= needed;
                Forgetter::Ended
            }
            Forgetter::Ended => Forgetter::Ended,
        };
    }

    fn collect(&self, state: &mut State, number: usize) {
        let mut collector = state.collectors[number];
        let is_old = |written: u8| collector.began >= written && collector.began - written >= GRACE;
        match collector.stage {
            Stage::Idle => {
                collector = idle();
                collector.began = state.now;
                collector.stage = Stage::Began;
            }
            Stage::Began => {
                collector.running = state.announcement.filter(|_| self.announcements);
                collector.silent = collector
                    .running
                    .is_some_and(|announcement| is_old(announcement.renewed));
                collector.stage = Stage::SawRunning;
            }
            Stage::SawRunning if collector.silent => {
                if self.tombstones && state.name == Name::Free {
                    state.name = Name::Tombstone;
                }
                state.announcement = None;
                collector.silent = false;
                collector.running = None;
            }
            Stage::SawRunning => {
                let parent = collector
                    .running
                    .is_some_and(|announcement| announcement.parent);
                if state.old_manifest {
                    if state.forgotten.is_some_and(is_old) && !parent {
                        state.old_manifest = false;
                    } else {
                        collector.needs[OLD] = true;
                    }
                }
                if let Name::Manifest(names) = state.name {
                    for (need, name) in collector.needs.iter_mut().zip(names) {
                        *need |= name;
                    }
                }
                let recorded = collector.running.is_some()
                    && state
                        .announcement
                        .is_some_and(|announcement| announcement.recorded);
                collector.needs[OWN] |= recorded;
                collector.stage = Stage::SawManifests;
            }
            Stage::SawManifests => {
                for pack in 0..2 {
                    collector.unneeded[pack] = state.packs[pack].is_some_and(|written| {
                        !collector.needs[pack]
                            && collector
                                .running
                                .is_none_or(|announcement| written < announcement.since)
                    });
                }
                // What is not asked any more is forgotten, so that states that are alike are one.
                collector.running = None;
                collector.needs = [false; 2];
                collector.stage = Stage::SawStored;
            }
            Stage::SawStored => {
                for pack in 0..2 {
                    let due = state.marks[pack].is_some_and(is_old);
                    if due && (collector.unneeded[pack] || !self.second_look) {
                        state.packs[pack] = None;
                    }
                    if due {
                        state.marks[pack] = None;
                    }
                }
                collector.began = 0;
                collector.stage = Stage::Deleted;
            }
            Stage::Deleted => {
                for pack in 0..2 {
                    if collector.unneeded[pack]
                        && state.packs[pack].is_some()
                        && state.marks[pack].is_none()
                    {
                        state.marks[pack] = Some(state.now);
                    }
                }
                collector = idle();
            }
        }
        state.collectors[number] = collector;
    }
}

const fn idle() -> Collector {
    Collector {
        stage: Stage::Idle,
        began: 0,
        running: None,
        silent: false,
        unneeded: [false; 2],
        needs: [false; 2],
    }
}

impl Model for Collections {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: 0,
            packs: [Some(0), None],
            marks: [None; 2],
            old_manifest: true,
            forgotten: None,
            name: Name::Free,
            announcement: None,
            writer: Writer::Start,
            deaths: 0,
            forgetter: Forgetter::Start,
            collectors: vec![idle(); self.collectors],
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.now < self.last {
            steps.push(Step::Tick);
        }
        if state.writer != Writer::Ended {
            steps.push(Step::Write);
        }
        if State::is_active(state.writer) {
            if state
                .announcement
                .is_none_or(|announcement| announcement.renewed < state.now)
            {
                steps.push(Step::Renew);
            }
            if state.deaths < self.deaths {
                steps.push(Step::Die);
            }
        }
        if state.forgetter != Forgetter::Ended {
            steps.push(Step::Forget);
        }
        steps.extend((0..self.collectors).map(Step::Collect));
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Tick => state.now += 1,
            Step::Write => self.write(&mut state),
            Step::Renew => match (&mut state.announcement, state.name) {
                (Some(announcement), Name::Free) => announcement.renewed = state.now,
                // It lost its announcement, or its name is taken: it fails.
                _ => state.writer = Writer::Ended,
            },
            Step::Die => {
                state.deaths += 1;
                state.writer = Writer::Start;
            }
            Step::Forget => self.forget(&mut state),
            Step::Collect(number) => self.collect(&mut state, number),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "P8: a backup that is listed has all its packs",
                |_, state: &State| match state.name {
                    Name::Manifest(names) => state.all_there(names),
                    Name::Free | Name::Tombstone => true,
                },
            ),
            Property::always(
                "P8: a backup that nobody forgot has all its packs",
                |_, state: &State| !state.lists_old() || state.packs[OLD].is_some(),
            ),
            Property::sometimes("what nobody needs is deleted", |_, state: &State| {
                state.packs == [None, None]
            }),
            Property::sometimes(
                "a backup is committed that takes over from one that is being forgotten",
                |_, state: &State| {
                    state.name == Name::Manifest([true, true]) && state.forgotten.is_some()
                },
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use stateright::Checker as _;

    use super::*;
    use crate::{explore, explore_until_a_fault};

    const LISTED: &str = "P8: a backup that is listed has all its packs";

    #[test]
    fn p8_nothing_that_a_backup_needs_is_deleted_whatever_happens_beside_a_collection() {
        let checked = explore(AS_BUILT);
        checked.assert_properties();
        assert!(checked.unique_state_count() > 10_000);
    }

    #[test]
    fn p8_nothing_that_a_backup_needs_is_deleted_by_the_collectors_of_two_fleets() {
        let model = Collections {
            collectors: 2,
            last: 2,
            deaths: 0,
            ..AS_BUILT
        };
        let checked = explore(model);
        checked.assert_properties();
        assert!(checked.unique_state_count() > 10_000);
    }

    #[test]
    fn without_announcements_what_a_running_backup_stored_is_deleted() {
        let broken = Collections {
            announcements: false,
            deaths: 0,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery(LISTED);
    }

    #[test]
    fn without_tombstones_a_late_manifest_names_what_is_gone() {
        let broken = Collections {
            tombstones: false,
            deaths: 0,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery(LISTED);
    }

    #[test]
    fn without_the_second_look_what_was_marked_too_early_is_deleted() {
        let broken = Collections {
            second_look: false,
            deaths: 0,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery(LISTED);
    }

    #[test]
    fn a_writer_that_does_not_look_for_its_parent_again_takes_over_what_is_gone() {
        let broken = Collections {
            looks_after_announcing: false,
            deaths: 0,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery(LISTED);
    }

    #[test]
    fn a_forgetting_that_looks_for_no_announcement_takes_the_parent_away() {
        let broken = Collections {
            forgetting_honours_announcements: false,
            deaths: 0,
            ..AS_BUILT
        };
        explore_until_a_fault(broken).assert_any_discovery(LISTED);
    }
}
