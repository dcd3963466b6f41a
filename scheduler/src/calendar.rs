//! When a policy is due: a cron expression and an IANA time zone, turned into moments.
//!
//! The `croner` crate reads the expression and finds the next match on a wall clock that never
//! jumps. This module lays that clock over real time and holds the one rule for the days on which
//! clocks are changed, which no crate that we measured has (`docs/decisions/001-cron.md`):
//!
//! - An expression whose **hour field is `*` or `*/n`** is an **interval** (`*/15 * * * *`,
//!   `0 * * * *`, `0 */6 * * *`, `@hourly`). It follows elapsed time. When the clock goes back, it
//!   runs through the repeated time again. When the clock goes forward, the runs that the gap
//!   swallowed keep their distance in elapsed time, as if the clock had not been changed yet; where a
//!   run is due at that moment anyway, the two are one. So `0 * * * *` runs an hour after
//!   its last run also where the clock jumps by half an hour (Australia/Lord_Howe).
//! - **Every other** expression names **times of the day** (`30 2 * * *`, `*/15 2 * * *`,
//!   `0 9-17 * * *`, `@daily`). A time that does not exist runs at the first instant after the gap, and
//!   all times of one gap run there once. A time that exists twice runs the first time only.
//!
//! The form of the hour field decides, not what it matches: `0-23` is a list of times of the day.
//!
//! When both day fields are restricted, either matches (`0 0 13 * FRI` is every 13th and every Friday).
//! When one of them begins with `*` (`*/2`), both must match. Both as in Vixie's cron.
//!
//! Zones come from the database that is built into the program, so that every scheduler of a fleet
//! computes the same due times whatever its machine has installed (rule 18: one row a due time).

mod error;
mod expression;
mod zone;

#[cfg(test)]
mod tests;

pub use error::CalendarError;

use expression::{Expression, Rhythm};
use fettler_model::Timestamp;
use jiff::{
    civil::DateTime,
    tz::{AmbiguousOffset, Offset, TimeZone},
};

/// How many entries of a zone's history are looked through for one that changes the offset. Entries
/// that change only the zone's abbreviation exist, but never this many in a row.
const MAX_ENTRIES_WITHOUT_SHIFT: usize = 64;

/// A cron expression in a time zone.
#[derive(Clone, Debug)]
pub struct Calendar {
    expression: Expression,
    zone: TimeZone,
    zone_name: String,
}

/// A change of the offset from UTC.
#[derive(Clone, Copy, Debug)]
struct Shift {
    at: jiff::Timestamp,
    before: Offset,
    after: Offset,
}

impl Calendar {
    /// Reads an expression of five fields (minute, hour, day of month, month, day of week), or six
    /// with seconds in front, or a nickname such as `@daily`.
    ///
    /// # Errors
    /// Names the field that is wrong, or the zones that are called almost like `time_zone`.
    pub fn parse(expression: &str, time_zone: &str) -> Result<Self, CalendarError> {
        let expression = Expression::parse(expression)?;
        let (zone, zone_name) = zone::find(time_zone)?;
        Ok(Self {
            expression,
            zone,
            zone_name,
        })
    }

    /// The first due time strictly after `after`; none if the expression never matches a day that
    /// exists (`0 0 30 2 *`), or not before the year 5000.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        if !self.expression.ever_matches() {
            return None;
        }
        let after = after.to_jiff();
        let due = match self.expression.rhythm() {
            Rhythm::TimesOfDay => self.next_on_the_clock(after),
            Rhythm::Interval => self.next_by_elapsed_time(after),
        };
        due.map(Timestamp::from_jiff)
    }

    /// All due times strictly after `after`, in order.
    pub fn upcoming(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> {
        std::iter::successors(self.next_after(after), |&due| self.next_after(due))
    }

    /// The expression as it was given, without surrounding blanks.
    #[must_use]
    pub fn expression(&self) -> &str {
        self.expression.text()
    }

    /// The zone's name as the database spells it.
    #[must_use]
    pub fn time_zone(&self) -> &str {
        &self.zone_name
    }

    fn next_on_the_clock(&self, after: jiff::Timestamp) -> Option<jiff::Timestamp> {
        let mut from = whole_second(self.zone.to_datetime(after));
        // In the second pass of a repeated time everything up to its end has run in the first.
        if let Some(shift) = self.shift_until(after)
            && shift.after < shift.before
        {
            from = from.max(shift.before.to_datetime(shift.at));
        }
        let mut time = self.expression.next_match(from, true)?;
        // The first instants of ever later wall times are never earlier, so the first one that lies
        // after `after` is the answer. More than two rounds need shifts within hours of each other.
        loop {
            let due = self.first_instant(time)?;
            if due > after {
                return Some(due);
            }
            time = self.expression.next_match(time, false)?;
        }
    }

    /// When a wall time is due: at its first occurrence, or where the gap that holds it ends.
    fn first_instant(&self, time: DateTime) -> Option<jiff::Timestamp> {
        match self.zone.to_ambiguous_timestamp(time).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(time).ok(),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(time).ok(),
            AmbiguousOffset::Gap { before, .. } => {
                let elapsed = before.to_timestamp(time).ok()?;
                Some(self.shift_until(elapsed).map_or(elapsed, |shift| shift.at))
            }
        }
    }

    /// Walks from shift to shift; between two of them the wall clock runs evenly.
    fn next_by_elapsed_time(&self, after: jiff::Timestamp) -> Option<jiff::Timestamp> {
        let mut from = after;
        let mut inclusive = false;
        // Ends because every round either returns or moves on to the next shift, and the regular
        // match is found, or is known not to exist, without regard to shifts.
        loop {
            let offset = self.zone.to_offset(from);
            let regular = self.match_at_offset(offset, from, inclusive)?;
            let due = match self.match_swallowed_by_gap(from, inclusive) {
                Some(swallowed) => regular.min(swallowed),
                None => regular,
            };
            match self.shift_after(from, offset) {
                Some(shift) if shift <= due => {
                    from = shift;
                    inclusive = true;
                }
                _ => return Some(due),
            }
        }
    }

    fn match_at_offset(
        &self,
        offset: Offset,
        from: jiff::Timestamp,
        inclusive: bool,
    ) -> Option<jiff::Timestamp> {
        let from = whole_second(offset.to_datetime(from));
        let time = self.expression.next_match(from, inclusive)?;
        offset.to_timestamp(time).ok()
    }

    /// The next run that the last gap took away, at its distance in elapsed time. As long as a gap is
    /// long, so long after it such runs can lie.
    fn match_swallowed_by_gap(
        &self,
        from: jiff::Timestamp,
        inclusive: bool,
    ) -> Option<jiff::Timestamp> {
        let shift = self.shift_until(from)?;
        let gap_end = shift.after.to_datetime(shift.at);
        if shift.after <= shift.before || shift.before.to_datetime(from) >= gap_end {
            return None;
        }
        let due = self.match_at_offset(shift.before, from, inclusive)?;
        (shift.before.to_datetime(due) < gap_end).then_some(due)
    }

    /// The last change of the offset at or before `moment`.
    fn shift_until(&self, moment: jiff::Timestamp) -> Option<Shift> {
        let just_after = moment
            .checked_add(jiff::SignedDuration::from_nanos(1))
            .unwrap_or(moment);
        self.zone
            .preceding(just_after)
            .take(MAX_ENTRIES_WITHOUT_SHIFT)
            .find_map(|entry| {
                let at = entry.timestamp();
                let just_before = at.checked_sub(jiff::SignedDuration::from_secs(1)).ok()?;
                let before = self.zone.to_offset(just_before);
                (before != entry.offset()).then_some(Shift {
                    at,
                    before,
                    after: entry.offset(),
                })
            })
    }

    /// When the offset next becomes another than `offset`, strictly after `moment`.
    fn shift_after(&self, moment: jiff::Timestamp, offset: Offset) -> Option<jiff::Timestamp> {
        self.zone
            .following(moment)
            .take(MAX_ENTRIES_WITHOUT_SHIFT)
            .find(|entry| entry.offset() != offset)
            .map(|entry| entry.timestamp())
    }
}

/// Cron knows whole seconds only.
fn whole_second(time: DateTime) -> DateTime {
    time.with()
        .subsec_nanosecond(0)
        .build()
        .expect("a time without its fraction of a second is in range")
}
