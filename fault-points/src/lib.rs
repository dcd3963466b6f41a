//! Named moments in the code at which the fault harness (`tests/faults`) ends a process, as `kill -9` or a power cut would
//! at just that moment. The list below is all there are; the harness hits each of them and looks at what is left.
//!
//! Without the feature `fault-points` the functions here are empty and are compiled to nothing. Only the harness asks for the
//! feature, so that `cargo build --release` makes a binary without it (`tests/faults` looks that this stays so). With it:
//!
//! - `FETTLER_FAULT_POINT=collect.marked` ends the process by SIGKILL when it reaches this point; `collect.marked:3` when it
//!   does so for the third time; several points stand with commas between them.
//! - `FETTLER_FAULT_LATCHES=FOLDER` makes each point end one process only, among all that share the folder: whoever makes
//!   the file of the point's name there. The file tells that the point was hit.
//! - `FETTLER_FAULT_STOPS=1`: the process is stopped there by SIGSTOP instead, and goes on when it is told so by SIGCONT.
//! - `FETTLER_FAULT_WITHOUT=fence` leaves a rule of the protocols out, so that the harness' checker can show that it would
//!   find its absence.

/// Which process passes a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `fettler worker`.
    Worker,
    /// `fettler scheduler`.
    Scheduler,
    /// `fettler api`.
    Api,
}

/// A rule that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Rule 2: writes of an attempt that was superseded are refused, and it hears of that.
    Fence,
    /// Jobs whose lease has run out are taken back.
    Rescue,
    /// Rule 21: a running backup announces itself.
    Announcement,
}

impl Rule {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Fence, Self::Rescue, Self::Announcement];

    /// Its name in `FETTLER_FAULT_WITHOUT`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fence => "fence",
            Self::Rescue => "rescue",
            Self::Announcement => "announcement",
        }
    }
}

macro_rules! points {
    ($($variant:ident = $name:literal, $role:ident, $meaning:literal;)*) => {
        /// A moment in the code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Point {
            $(#[doc = $meaning] $variant,)*
        }

        impl Point {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in `FETTLER_FAULT_POINT`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whose point it is. Others pass some of them too.
            #[must_use]
            pub const fn role(self) -> Role {
                match self { $(Self::$variant => Role::$role,)* }
            }

            /// What has happened by then, and what has not.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

points! {
    SubmitCommitted = "submit.committed", Api, "The ledger has committed a submission; nobody has been answered or woken.";
    LeadTaken = "lead.taken", Scheduler, "The lead was taken or renewed; nothing was done with it.";
    TickCommitted = "tick.committed", Scheduler, "A due time was decided and its job is in the ledger; nobody was told.";
    RefillPushed = "refill.pushed", Worker, "A page of a refill is in Redis; the refill goes on.";
    WirePopped = "wire.popped", Worker, "Ids were popped from Redis; the ledger has not been asked for them.";
    ClaimCommitted = "claim.committed", Worker, "Jobs were claimed; the worker does not know yet.";
    AttemptBegun = "attempt.begun", Worker, "An attempt begins; no heartbeat has renewed its lease.";
    LeaseRenewed = "lease.renewed", Worker, "Leases of running attempts were renewed; the worker does not know yet.";
    CheckpointSaved = "checkpoint.saved", Worker, "A checkpoint is in the ledger; the job has not gone on.";
    BackupAnnounced = "backup.announced", Worker, "A backup is announced, and its parent chosen; nothing was read.";
    PackRecorded = "backup.pack_recorded", Worker, "A segment records a pack that is not yet in the store.";
    PackStored = "backup.pack_stored", Worker, "A pack is in the store; the backup goes on.";
    ManifestNext = "backup.manifest_next", Worker, "All packs and indexes are in the store; the manifest is not.";
    ManifestWritten = "backup.manifest_written", Worker, "The manifest is in the store; the catalogue does not know.";
    BackupCatalogued = "backup.catalogued", Worker, "The catalogue knows the backup; its job has not ended.";
    AttemptDone = "attempt.done", Worker, "An attempt has done its work; the ledger has not been told.";
    EndCommitted = "end.committed", Worker, "The ends of attempts are in the ledger; the worker does not know yet.";
    RescueTaking = "rescue.taking", Worker, "Lost jobs are taken back in a transaction that is not committed.";
    RescueTaken = "rescue.taken", Worker, "Lost jobs were taken back; nobody was told.";
    RetentionForgotten = "retention.forgotten", Worker, "The repository has forgotten a backup; the catalogue has not.";
    CollectMarked = "collect.marked", Worker, "The first phase of a collection has marked objects; its second one is for later.";
    CollectDeleting = "collect.deleting", Worker, "Some of the objects that are to be deleted are gone, others are not.";
    RestoreDataDone = "restore.data_done", Worker, "A restore has all rows or pages in place; indexes, or the file's name, are missing.";
    RestoreDone = "restore.done", Worker, "A restore is whole, and nothing tells its target from another database; its job has not ended.";
    SandboxOpen = "prove.sandbox_open", Worker, "A proof has made its sandbox; nothing was restored into it.";
    SandboxFilled = "prove.sandbox_filled", Worker, "A proof has restored into its sandbox; nothing was compared or removed.";
    CleanupArchived = "cleanup.archived", Worker, "What a cleanup removes is archived and read back; nothing was removed.";
    CleanupDetached = "cleanup.detached", Worker, "A partition was taken out of its table; it was neither looked at again nor dropped.";
    CleanupRemoving = "cleanup.removing", Worker, "A batch of a cleanup was removed; the checkpoint may not know.";
    CleanupRemoved = "cleanup.removed", Worker, "All that a cleanup removes was removed; nothing was counted.";
    CleanupUndoing = "cleanup.undoing", Worker, "A batch was put back; the checkpoint may not know.";
    TuneWritten = "tune.written", Worker, "A change of a tuning is written down with its way back; it was not made.";
    TuneMade = "tune.made", Worker, "A change of a tuning was made; the ledger does not know.";
    ArtefactRecorded = "artefact.recorded", Worker, "Something outside the ledger was recorded; it was not made.";
    ArtefactRemoved = "artefact.removed", Worker, "What an ended attempt had left was removed; its record was not.";
}

impl Point {
    /// Whether the harness' own fleet comes by it: its load holds no cleanups and no tunings, whose tests end processes there
    /// themselves.
    #[must_use]
    pub const fn is_in_harness(self) -> bool {
        !matches!(
            self,
            Self::CleanupArchived
                | Self::CleanupDetached
                | Self::CleanupRemoving
                | Self::CleanupRemoved
                | Self::CleanupUndoing
                | Self::TuneWritten
                | Self::TuneMade
        )
    }

    /// The point of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|point| point.name() == name)
    }
}

/// Says that this moment is reached: the process goes on, or ends here.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn reached(_: Point) {}

/// Whether a rule is left out.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
#[must_use]
pub const fn without(_: Rule) -> bool {
    false
}

#[cfg(feature = "fault-points")]
pub use armed::{reached, without};

#[cfg(feature = "fault-points")]
mod armed {
    use std::{
        fs::OpenOptions,
        io::Write as _,
        path::PathBuf,
        sync::{
            LazyLock,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    };

    use rustix::process::{Signal, getpid, kill_process};

    use crate::{Point, Rule};

    struct Armed {
        point: Point,
        /// How often it is still passed before the process ends.
        left: AtomicU32,
    }

    struct Plan {
        armed: Vec<Armed>,
        latches: Option<PathBuf>,
        /// Whether a process stops instead of ending.
        stops: bool,
        without: Vec<Rule>,
    }

    static PLAN: LazyLock<Plan> = LazyLock::new(|| {
        let words = |name: &str| std::env::var(name).unwrap_or_default();
        let armed = words("FETTLER_FAULT_POINT")
            .split(',')
            .filter(|word| !word.is_empty())
            .map(|word| {
                let (name, times) = word.split_once(':').unwrap_or((word, "1"));
                let point = Point::named(name);
                let times: Option<u32> = times.parse().ok().filter(|times| *times > 0);
                match (point, times) {
                    (Some(point), Some(times)) => Armed {
                        point,
                        left: AtomicU32::new(times),
                    },
                    _ => panic!("FETTLER_FAULT_POINT: there is no point {word:?}"),
                }
            })
            .collect();
        let without = words("FETTLER_FAULT_WITHOUT")
            .split(',')
            .filter(|word| !word.is_empty())
            .map(|word| {
                let mut rules = Rule::ALL.iter().copied();
                rules
                    .find(|rule| rule.name() == word)
                    .unwrap_or_else(|| panic!("FETTLER_FAULT_WITHOUT: there is no rule {word:?}"))
            })
            .collect();
        Plan {
            armed,
            latches: std::env::var_os("FETTLER_FAULT_LATCHES").map(PathBuf::from),
            stops: std::env::var_os("FETTLER_FAULT_STOPS").is_some(),
            without,
        }
    });

    /// Says that this moment is reached: the process goes on, or ends here.
    pub fn reached(point: Point) {
        for armed in PLAN.armed.iter().filter(|armed| armed.point == point) {
            // It stays at nothing once it is there: a latch may have been taken by another process.
            let before = armed
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    Some(left.saturating_sub(1))
                });
            if before == Ok(1) && is_ours(point) {
                if PLAN.stops {
                    let _ = kill_process(getpid(), Signal::STOP);
                    // The signal may reach this thread last.
                    std::thread::sleep(Duration::from_millis(200));
                } else {
                    end();
                }
            }
        }
    }

    /// Whether no other process has ended at this point.
    fn is_ours(point: Point) -> bool {
        let Some(folder) = &PLAN.latches else {
            return true;
        };
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(folder.join(point.name()));
        match made {
            Ok(mut file) => {
                // The file's name is what counts.
                let _ = write!(file, "{}", std::process::id());
                true
            }
            Err(_) => false,
        }
    }

    fn end() -> ! {
        let _ = kill_process(getpid(), Signal::KILL);
        // The signal may reach this thread last.
        loop {
            std::thread::park();
        }
    }

    /// Whether a rule is left out.
    #[must_use]
    pub fn without(rule: Rule) -> bool {
        PLAN.without.contains(&rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        for point in Point::ALL {
            assert_eq!(Point::named(point.name()), Some(*point));
        }
        assert_eq!(Point::named("nowhere"), None);
    }
}
