//! Which operation time stands for which moment.
//!
//! Each entry tells when it was made: to the millisecond (`wall`, MongoDB 4.2 and later), or to the second of its operation time.
//! So the prefix of the oplog that ends with an entry is **exactly what was written before the next entry was**, and a moment
//! needs no second's tolerance: one ends where the next begins. Where nothing is written the server's clock is asked.

use std::time::Duration;

use bson::RawDocument;
use fettler_model::{LogMoment, MOMENT_TOLERANCE, Timestamp};

use super::moment_of;

/// How exactly `wall` is told.
const WALL: Duration = Duration::from_millis(1);
/// How exactly an operation time is told.
const SECOND: Duration = Duration::from_secs(1);

/// When an entry was made at the latest.
pub(super) fn made_by(entry: &RawDocument, number: u64) -> Timestamp {
    match entry.get_datetime("wall") {
        Ok(wall) => Timestamp::from_micros(wall.timestamp_millis().saturating_mul(1000)).plus(WALL),
        Err(_) => {
            Timestamp::from_micros(i64::from(moment_of(number).time) * 1_000_000).plus(SECOND)
        }
    }
}

/// Puts moments to what is archived.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// The last that was taken.
    last: Option<LogMoment>,
    /// No moment begins before this one: there were others, before a gap.
    floor: Option<Timestamp>,
    moments: Vec<LogMoment>,
}

impl Clock {
    /// Goes on behind the last moment that is archived; nothing stands for what a gap swallowed.
    pub(super) fn new(last: Option<LogMoment>, continues: bool) -> Self {
        Self {
            last: last.filter(|_| continues),
            floor: last.map(|last| last.from),
            moments: Vec::new(),
        }
    }

    /// Notes an entry after which the oplog may be cut.
    pub(super) fn entry(&mut self, number: u64, made_by: Timestamp) {
        self.stands_until(made_by);
        // A clock that went back, as another primary's may be: what was made by it belongs to the moment before.
        let from = self.not_before(made_by);
        let moment = LogMoment {
            from,
            until: from.minus(MOMENT_TOLERANCE),
            offset: number,
        };
        match self.moments.last_mut() {
            Some(last) if last.from == from => {
                last.offset = number;
                last.until = last.until.max(moment.until);
            }
            _ => self.moments.push(moment),
        }
    }

    /// Notes that the server had nothing behind this number when its clock said so.
    pub(super) fn nothing_behind(&mut self, number: u64, asked: Timestamp) {
        let before = self.moments.last().copied().or(self.last);
        if before.is_some_and(|before| before.offset == number) {
            self.stands_until(asked);
        } else if before.is_none() {
            let from = self.not_before(asked);
            self.moments.push(LogMoment {
                from,
                until: from.minus(MOMENT_TOLERANCE),
                offset: number,
            });
        }
    }

    fn not_before(&self, moment: Timestamp) -> Timestamp {
        let before = self.moments.last().or(self.last.as_ref());
        before
            .map(|before| before.from)
            .or(self.floor)
            .map_or(moment, |floor| moment.max(floor))
    }

    /// The last moment stands until this one.
    fn stands_until(&mut self, moment: Timestamp) {
        let until = moment.minus(MOMENT_TOLERANCE);
        if let Some(last) = self.moments.last_mut() {
            last.until = last.until.max(until);
        } else if let Some(last) = self.last
            && last.until < until
        {
            self.moments.push(LogMoment { until, ..last });
        }
    }

    /// Whether there is something to take.
    pub(super) fn has_moments(&self) -> bool {
        !self.moments.is_empty()
    }

    /// All moments since the last were taken.
    pub(super) fn take(&mut self) -> Vec<LogMoment> {
        let moments = std::mem::take(&mut self.moments);
        self.last = moments.last().copied().or(self.last);
        moments
    }
}

#[cfg(test)]
mod tests {
    use bson::{DateTime, rawdoc};
    use fettler_model::{BackupId, Base, JobId, LogPosition, LogSpan, LogUnit, Timeline};

    use super::*;

    fn millis(millis: i64) -> Timestamp {
        Timestamp::from_micros(millis * 1000)
    }

    /// The number up to which a moment reaches; nothing where it cannot be told.
    fn reached(batches: &[(u64, u64, Vec<LogMoment>)], at: Timestamp) -> Option<u64> {
        let spans: Vec<LogSpan> = batches
            .iter()
            .map(|(begin, end, moments)| {
                LogSpan::new("a".to_owned(), *begin, *end, *begin > 0, moments)
                    .counted_in(LogUnit::Numbers)
            })
            .collect();
        let base = Base {
            backup: BackupId::of_job(JobId::new()),
            position: LogPosition {
                history: "a".to_owned(),
                offset: 1,
            },
            since: 0,
        };
        Timeline::new(&spans, &[base])
            .plan(at, &|span| &batches[span].2)
            .ok()
            .map(|plan| plan.end)
    }

    #[test]
    fn a_moment_holds_all_entries_made_before_it_and_no_other() {
        let mut clock = Clock::default();
        let made = [
            (1, 10_000),
            (2, 10_000),
            (3, 10_001),
            (4, 15_500),
            (5, 60_000),
        ];
        let mut batches = Vec::new();
        for (number, wall) in made {
            clock.entry(number, millis(wall).plus(WALL));
            if number % 2 == 0 {
                batches.push((number - 2, number, clock.take()));
            }
        }
        clock.nothing_behind(5, millis(70_000));
        batches.push((4, 5, clock.take()));
        for at in 10_001..=70_000 {
            let expected = made.iter().rev().find(|(_, wall)| *wall < at);
            assert_eq!(
                reached(&batches, millis(at)),
                expected.map(|(number, _)| *number),
                "{at}"
            );
        }
        assert_eq!(reached(&batches, millis(10_000)), None);
        assert_eq!(reached(&batches, millis(70_001)), None, "nobody knows");
    }

    #[test]
    fn a_clock_that_goes_back_leaves_the_order_as_it_is() {
        let mut clock = Clock::default();
        for (number, wall) in [(1, 5000), (2, 4000), (3, 4999), (4, 6000)] {
            clock.entry(number, millis(wall));
        }
        let batches = [(0, 4, clock.take())];
        assert_eq!(reached(&batches, millis(5000)), Some(3));
        assert_eq!(reached(&batches, millis(5999)), Some(3));
        assert_eq!(reached(&batches, millis(4500)), None);
        assert_eq!(reached(&batches, millis(6000)), Some(4));
    }

    #[test]
    fn an_answer_that_others_overtook_says_nothing() {
        let mut clock = Clock::default();
        clock.entry(5, millis(1000));
        clock.nothing_behind(4, millis(9000));
        let batches = [(0, 5, clock.take())];
        assert_eq!(reached(&batches, millis(1000)), Some(5));
        assert_eq!(reached(&batches, millis(1001)), None);
    }

    #[test]
    fn nothing_stands_for_what_a_gap_swallowed() {
        let mut before = Clock::default();
        before.entry(5, millis(1000));
        let last = before.take().pop();
        let mut clock = Clock::new(last, false);
        clock.entry(50, millis(9000));
        let moments = clock.take();
        assert_eq!(moments.len(), 1, "{moments:?}");
        assert_eq!((moments[0].offset, moments[0].from), (50, millis(9000)));
        let mut clock = Clock::new(last, true);
        clock.entry(6, millis(9000));
        assert_eq!(clock.take().len(), 2, "the last one stands until the next");
        // Behind a gap, where nothing is written.
        let mut clock = Clock::new(last, false);
        clock.nothing_behind(40, millis(8000));
        assert_eq!(clock.take()[0].offset, 40);
    }

    #[test]
    fn an_entry_without_a_clock_is_made_within_the_second_of_its_operation_time() {
        let number = 7 << 32 | 3;
        assert_eq!(made_by(&rawdoc! {}, number), millis(8000));
        let wall = rawdoc! { "wall": DateTime::from_millis(7123) };
        assert_eq!(made_by(&wall, number), millis(7124));
    }
}
