//! Numbers that stand for closed sets of words in narrow rows. They are part of the schema: a number
//! never changes its meaning.

use fettler_model::{AttemptOutcome, ExclusionClass, JobState, SlotClass};

pub(crate) const QUEUED: i64 = 0;
pub(crate) const RUNNING: i64 = 1;

/// Claimable or running.
pub(crate) const LANE_OPEN: i64 = 0;
/// Waits for a time.
pub(crate) const LANE_DELAYED: i64 = 1;
/// Waits for a resource.
pub(crate) const LANE_PARKED: i64 = 2;

/// Nothing but a free worker is waited for, or the resource at which the job is parked.
pub(crate) const WAIT_NONE: i64 = 0;
/// A time that was asked for.
pub(crate) const WAIT_NOT_BEFORE: i64 = 1;
/// The time of the next try.
pub(crate) const WAIT_RETRY: i64 = 2;
/// The end of a snooze.
pub(crate) const WAIT_SNOOZE: i64 = 3;
/// The opening of its maintenance window.
pub(crate) const WAIT_WINDOW: i64 = 4;

pub(crate) const fn state(state: JobState) -> i64 {
    match state {
        JobState::Queued => QUEUED,
        JobState::Running => RUNNING,
        JobState::Succeeded => 2,
        JobState::Dead => 3,
        JobState::Cancelled => 4,
        JobState::Expired => 5,
    }
}

pub(crate) const fn state_of(code: i64) -> Option<JobState> {
    Some(match code {
        QUEUED => JobState::Queued,
        RUNNING => JobState::Running,
        2 => JobState::Succeeded,
        3 => JobState::Dead,
        4 => JobState::Cancelled,
        5 => JobState::Expired,
        _ => return None,
    })
}

pub(crate) const fn exclusion(class: ExclusionClass) -> i64 {
    match class {
        ExclusionClass::Free => 0,
        ExclusionClass::Backup => 1,
        ExclusionClass::Write => 2,
    }
}

pub(crate) const fn exclusion_of(code: i64) -> Option<ExclusionClass> {
    Some(match code {
        0 => ExclusionClass::Free,
        1 => ExclusionClass::Backup,
        2 => ExclusionClass::Write,
        _ => return None,
    })
}

pub(crate) const fn slot(class: SlotClass) -> i64 {
    match class {
        SlotClass::Long => 0,
        SlotClass::Short => 1,
    }
}

pub(crate) const fn slot_of(code: i64) -> Option<SlotClass> {
    Some(match code {
        0 => SlotClass::Long,
        1 => SlotClass::Short,
        _ => return None,
    })
}

pub(crate) const fn outcome(outcome: AttemptOutcome) -> i64 {
    match outcome {
        AttemptOutcome::Succeeded => 0,
        AttemptOutcome::Failed => 1,
        AttemptOutcome::Interrupted => 2,
        AttemptOutcome::Snoozed => 3,
        AttemptOutcome::Lost => 4,
        AttemptOutcome::Cancelled => 5,
    }
}

pub(crate) const fn outcome_of(code: i64) -> Option<AttemptOutcome> {
    Some(match code {
        0 => AttemptOutcome::Succeeded,
        1 => AttemptOutcome::Failed,
        2 => AttemptOutcome::Interrupted,
        3 => AttemptOutcome::Snoozed,
        4 => AttemptOutcome::Lost,
        5 => AttemptOutcome::Cancelled,
        _ => return None,
    })
}
