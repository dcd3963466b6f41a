//! What happens in a run, and when: made from a seed and nothing else, so that the same seed makes the same plan. (What the
//! fleet does in between is its own: the same plan may meet it at another moment.)

use std::{fmt, time::Duration};

use fettler_fault_points::{Point, Role, Rule};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::fleet::{GRACE_SECONDS, SLOTS, Slot};

/// How long faults go on, unless the run is a directed one.
const STORM: Duration = Duration::from_secs(7);
/// A directed pass ends when every point was hit, or after this time.
const DIRECTED_STORM: Duration = Duration::from_secs(150);
/// The rates of backups, in bytes a second.
const RATES: [u64; 3] = [1_500_000, 3_000_000, 12_000_000];
/// So slow that several collections fall between a backup's first pack and its manifest, and how long that goes on.
const SLOW_RATES: [u64; 1] = [450_000];
const SLOW_STORM: Duration = Duration::from_secs(14);
/// When the first process is upgraded, and the time between two.
const UPGRADES_FROM: Duration = Duration::from_millis(1_000);
const BETWEEN_UPGRADES: Duration = Duration::from_millis(700);
/// Faults of a random plan.
const FAULTS: usize = 5;

/// Whom a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// This process.
    Slot(Slot),
    /// The worker with the most running jobs at that moment.
    Busiest,
}

/// What the store does to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// Answers every third request with this status.
    Answers(u16),
    /// Takes so long that its clients give up, or nearly.
    Slow(Duration),
    /// Does what it is told and loses the answer, for every third write.
    LosesAnswers,
    /// Closes the connection before every third request.
    Cuts,
    /// Cannot be reached.
    Away,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and a start some time later.
    Kill(Who),
    /// `kill -9` of Redis, which forgets everything.
    KillRedis,
    /// `kill -9` of the ledger's PostgreSQL.
    KillLedger,
    /// `kill -9` of the store.
    KillStore,
    /// `FLUSHALL`.
    Flush,
    /// SIGSTOP, longer than a lease, and SIGCONT.
    Freeze(Who),
    /// The connections of a process to the ledger are cut.
    CutLedger(Who),
    /// Nothing passes between a process and the ledger, and the connections stay open.
    StallLedger(Who),
    /// The way to the ledger is slow.
    SlowLedger(Who),
    /// All connections to Redis are cut.
    CutWire,
    /// Nothing passes to or from Redis.
    StallWire,
    /// The store misbehaves.
    Store(StoreFault),
    /// A collection with this grace is asked for.
    Collect(u64),
    /// A fleet of another ledger backs up and collects in the same repository.
    Elsewhere,
    /// No file of a worker can grow.
    DiskFull(Who),
    /// The clock of a process is set this far ahead, or back.
    Clock(Slot, i64),
    /// The clock of the ledger's server is set this far ahead, or back.
    LedgerClock(i64),
    /// A process of the previous build is asked to stop, and one of the new build takes its place.
    Upgrade(Slot),
}

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed {
    /// When it begins.
    pub at: Duration,
    /// How long it lasts, where it does.
    pub lasts: Duration,
    /// What.
    pub fault: Fault,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it was made of, and what the load is made of.
    pub seed: u64,
    /// Whether each named point ends one process.
    pub directed: bool,
    /// How long faults go on.
    pub storm: Duration,
    /// The faults, in the order of their times.
    pub faults: Vec<Timed>,
    /// Processes that end at a point, as `FETTLER_FAULT_POINT` says it.
    pub ends: Vec<(Slot, String)>,
    /// Processes whose clock can be set.
    pub faked: Vec<Slot>,
    /// Whether the fleet's Redis has a replica and a sentinel: then the replica takes the place of a Redis that dies, and lines
    /// to Redis are not touched.
    pub sentinels: bool,
    /// Backups read at most so many bytes a second, one of these: so that there are moments to be hit in.
    pub rates: &'static [u64],
}

/// All points of a role, as `FETTLER_FAULT_POINT` takes them.
#[must_use]
pub fn all_points(role: Role) -> String {
    let names: Vec<&str> = Point::ALL
        .iter()
        .filter(|point| point.role() == role && point.is_in_harness())
        .map(|point| point.name())
        .collect();
    names.join(",")
}

/// The points that the harness' fleet comes by.
pub fn points_of_harness() -> impl Iterator<Item = Point> {
    let all = Point::ALL.iter().copied();
    all.filter(|point| point.is_in_harness())
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

impl Plan {
    /// The random plan of a seed.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut faults: Vec<Timed> = (0..FAULTS)
            .map(|nth| {
                // Neighbouring seeds begin with different faults, so that a list of runs has them all.
                let kind = if nth == 0 {
                    usize::try_from(seed % KINDS as u64).expect("a small number")
                } else {
                    dice.random_range(0..KINDS)
                };
                let at = ms(dice.random_range(800..STORM.as_millis() as u64 - 1200));
                fault(kind, at, &mut dice)
            })
            .collect();
        faults.sort_by_key(|timed| timed.at);
        let ends = if dice.random_bool(0.6) {
            let points: Vec<Point> = points_of_harness().collect();
            let point = *points.choose(&mut dice).expect("there are points");
            let slots: Vec<Slot> = of_role(point.role());
            let slot = *slots.choose(&mut dice).expect("every role has slots");
            let times = dice.random_range(1..4);
            vec![(slot, format!("{}:{times}", point.name()))]
        } else {
            Vec::new()
        };
        let faked = faults
            .iter()
            .filter_map(|timed| match timed.fault {
                Fault::Clock(slot, _) => Some(slot),
                _ => None,
            })
            .collect();
        Self {
            seed,
            directed: false,
            storm: STORM,
            faults,
            ends,
            faked,
            sentinels: seed % KINDS as u64 == FAILOVER as u64,
            rates: &RATES,
        }
    }

    /// The random plan of a seed, during which a fleet of the previous build is upgraded: all but the last worker, which goes on
    /// beside the new ones. The first that is replaced brings the ledger's schema up to date, under load.
    #[must_use]
    pub fn upgrade(seed: u64) -> Self {
        let mut plan = Self::random(seed);
        let order = [2, 4, 0, 5, 3, 6, 1].map(|index: usize| SLOTS[index]);
        let upgrades = (0..).zip(order).map(|(nth, slot)| Timed {
            at: UPGRADES_FROM + nth * BETWEEN_UPGRADES,
            lasts: Duration::ZERO,
            fault: Fault::Upgrade(slot),
        });
        plan.faults.extend(upgrades);
        plan.faults.sort_by_key(|timed| timed.at);
        plan
    }

    /// The plan that hits every named point once, and each thing that is counted at least once.
    #[must_use]
    pub fn directed(seed: u64) -> Self {
        let every = |from: u64, step: u64, fault: Fault, lasts: u64| {
            (0..DIRECTED_STORM.as_secs() / step).map(move |nth| Timed {
                at: Duration::from_secs(from + nth * step),
                lasts: ms(lasts),
                fault,
            })
        };
        let mut faults: Vec<Timed> = every(6, 15, Fault::Flush, 0)
            .chain(every(9, 20, Fault::Freeze(Who::Busiest), 4_500))
            .chain(every(4, 6, Fault::Collect(3), 0))
            .chain([Timed {
                at: Duration::from_secs(25),
                lasts: ms(6_000),
                fault: Fault::KillRedis,
            }])
            .collect();
        faults.sort_by_key(|timed| timed.at);
        Self {
            seed,
            directed: true,
            storm: DIRECTED_STORM,
            faults,
            ends: Vec::new(),
            faked: Vec::new(),
            sentinels: true,
            rates: &RATES,
        }
    }

    /// The plan that shows the absence of a rule soonest.
    #[must_use]
    pub fn against(rule: Rule, seed: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut faults = Vec::new();
        match rule {
            // A zombie that goes on while its successor works.
            Rule::Fence => {
                for at in [1_500, 3_200] {
                    faults.push(Timed {
                        at: ms(at + dice.random_range(0..500)),
                        lasts: ms(4_300),
                        fault: Fault::Freeze(Who::Busiest),
                    });
                }
            }
            Rule::Rescue => faults.push(Timed {
                at: ms(2_000 + dice.random_range(0..2_000)),
                lasts: ms(1_000),
                fault: Fault::Kill(Who::Busiest),
            }),
            // Collections while backups run.
            Rule::Announcement => {
                for at in (1_500..SLOW_STORM.as_millis() as u64).step_by(700) {
                    faults.push(Timed {
                        at: ms(at),
                        lasts: Duration::ZERO,
                        fault: Fault::Collect(1),
                    });
                }
            }
        }
        let is_slow = rule == Rule::Announcement;
        Self {
            seed,
            directed: false,
            storm: if is_slow { SLOW_STORM } else { STORM },
            faults,
            ends: Vec::new(),
            faked: Vec::new(),
            sentinels: false,
            rates: if is_slow { &SLOW_RATES } else { &RATES },
        }
    }

    /// Whether the ledger's clock is set, which is that of all leases and due times.
    #[must_use]
    pub fn sets_ledger_clock(&self) -> bool {
        let mut faults = self.faults.iter();
        faults.any(|timed| matches!(timed.fault, Fault::LedgerClock(_)))
    }

    /// The points at which a process ends.
    #[must_use]
    pub fn armed(&self, slot: Slot) -> Option<String> {
        let mut own = self.ends.iter().filter(|(its, _)| *its == slot);
        own.next().map(|(_, point)| point.clone())
    }
}

/// How many kinds of faults a random plan chooses from.
const KINDS: usize = 24;
/// The kind that a sentinel answers.
const FAILOVER: usize = 22;

fn of_role(role: Role) -> Vec<Slot> {
    SLOTS
        .iter()
        .copied()
        .filter(|slot| slot.role == role)
        .collect()
}

fn fault(kind: usize, at: Duration, dice: &mut StdRng) -> Timed {
    let worker = Slot {
        role: Role::Worker,
        number: dice.random_range(0..4),
    };
    let number = dice.random_range(0..2);
    let down = dice.random_range(300..2_500);
    let anyone = *SLOTS.choose(dice).expect("there are slots");
    let (fault, lasts) = match kind {
        0 | 1 => (Fault::Kill(Who::Busiest), down),
        2 => (Fault::Kill(Who::Slot(anyone)), down),
        3 => (
            Fault::Kill(Who::Slot(Slot {
                role: Role::Scheduler,
                number,
            })),
            down,
        ),
        4 => (
            Fault::Kill(Who::Slot(Slot {
                role: Role::Api,
                number,
            })),
            down,
        ),
        5 => (Fault::KillRedis, down),
        6 => (Fault::KillLedger, down),
        7 => (Fault::KillStore, down),
        8 => (Fault::Flush, 0),
        23 => (
            // Leases end by it: what a dead worker held is taken up so much later, once it was set back.
            Fault::LedgerClock(*[-45, -20, 20, 45].choose(dice).expect("there are some")),
            down + 1_500,
        ),
        FAILOVER => (Fault::KillRedis, down + 2_000),
        9 | 10 => (Fault::Freeze(Who::Busiest), dice.random_range(3_600..5_500)),
        11 => (
            Fault::Freeze(Who::Slot(anyone)),
            dice.random_range(3_600..5_500),
        ),
        12 => (Fault::CutLedger(Who::Slot(anyone)), down),
        13 => (Fault::StallLedger(Who::Busiest), down + 2_500),
        14 => (Fault::SlowLedger(Who::Slot(worker)), down + 1_000),
        15 => (Fault::CutWire, down),
        16 => (Fault::StallWire, down + 1_000),
        17 => (
            Fault::Store(
                *[
                    StoreFault::Answers(500),
                    StoreFault::Answers(503),
                    StoreFault::Slow(ms(700)),
                    StoreFault::Cuts,
                    StoreFault::Away,
                ]
                .choose(dice)
                .expect("there are some"),
            ),
            down + 500,
        ),
        18 => (Fault::Store(StoreFault::LosesAnswers), down + 1_000),
        19 => (
            Fault::Collect(*[3, GRACE_SECONDS].choose(dice).expect("there are some")),
            0,
        ),
        20 => (
            *[Fault::Elsewhere, Fault::DiskFull(Who::Slot(worker))]
                .choose(dice)
                .expect("there are some"),
            down,
        ),
        _ => (
            Fault::Clock(
                anyone,
                *[-600, -45, 45, 600].choose(dice).expect("there are some"),
            ),
            down + 1_500,
        ),
    };
    Timed {
        at,
        lasts: ms(lasts),
        fault,
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(slot) => f.write_str(&slot.name()),
            Self::Busiest => f.write_str("the busiest worker"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(who) => write!(f, "kill -9 {who}"),
            Self::KillRedis => f.write_str("kill -9 Redis"),
            Self::KillLedger => f.write_str("kill -9 the ledger's PostgreSQL"),
            Self::KillStore => f.write_str("kill -9 the store"),
            Self::Flush => f.write_str("FLUSHALL"),
            Self::Freeze(who) => write!(f, "SIGSTOP {who}"),
            Self::CutLedger(who) => write!(f, "cut {who} from the ledger"),
            Self::StallLedger(who) => {
                write!(f, "half-open connections between {who} and the ledger")
            }
            Self::SlowLedger(who) => write!(f, "slow line between {who} and the ledger"),
            Self::CutWire => f.write_str("cut Redis off"),
            Self::StallWire => f.write_str("half-open connections to Redis"),
            Self::Store(StoreFault::Answers(status)) => write!(f, "the store answers {status}"),
            Self::Store(StoreFault::Slow(by)) => write!(f, "the store takes {by:?} longer"),
            Self::Store(StoreFault::LosesAnswers) => {
                f.write_str("the store loses answers to writes")
            }
            Self::Store(StoreFault::Cuts) => f.write_str("the store closes connections"),
            Self::Store(StoreFault::Away) => f.write_str("the store is away"),
            Self::Collect(grace) => write!(f, "a collection with a grace of {grace} s"),
            Self::Elsewhere => f.write_str("another fleet backs up and collects"),
            Self::DiskFull(who) => write!(f, "disk full at {who}"),
            Self::LedgerClock(ahead) => write!(f, "the ledger's clock {ahead:+} s"),
            Self::Upgrade(slot) => write!(f, "upgrade of {}", slot.name()),
            Self::Clock(slot, ahead) => write!(f, "the clock of {} {ahead:+} s", slot.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_plan_and_another_one_another() {
        for seed in 0..200 {
            assert_eq!(Plan::random(seed), Plan::random(seed));
            assert_ne!(Plan::random(seed), Plan::random(seed + 1));
        }
    }

    #[test]
    fn a_list_of_seeds_has_every_kind_of_fault() {
        let names: std::collections::BTreeSet<String> = (0..60)
            .flat_map(|seed| Plan::random(seed).faults)
            .map(|timed| format!("{:?}", timed.fault))
            .map(|name| name.split(['(', ' ']).next().unwrap_or_default().to_owned())
            .collect();
        let expected = [
            "Clock",
            "Collect",
            "CutLedger",
            "CutWire",
            "DiskFull",
            "Elsewhere",
            "Flush",
            "Freeze",
            "Kill",
            "KillLedger",
            "KillRedis",
            "KillStore",
            "LedgerClock",
            "SlowLedger",
            "StallLedger",
            "StallWire",
            "Store",
        ];
        assert_eq!(
            names,
            expected.iter().map(|name| (*name).to_owned()).collect()
        );
    }
}
