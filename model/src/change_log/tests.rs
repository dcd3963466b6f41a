use proptest::prelude::*;

use super::*;

fn second(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn moment(at: i64, offset: u64) -> LogMoment {
    LogMoment {
        from: second(at),
        until: second(at),
        offset,
    }
}

fn base(history: &str, offset: u64) -> Base {
    Base {
        backup: BackupId::of_job(crate::JobId::new()),
        position: LogPosition {
            history: history.to_owned(),
            offset,
        },
        since: offset,
    }
}

/// A log of spans with their moments.
struct Log {
    spans: Vec<LogSpan>,
    moments: Vec<Vec<LogMoment>>,
}

impl Log {
    fn of(spans: &[(&str, u64, u64, bool, &[LogMoment])]) -> Self {
        Self {
            spans: spans
                .iter()
                .map(|(history, begin, end, continues, moments)| {
                    LogSpan::new((*history).to_owned(), *begin, *end, *continues, moments)
                })
                .collect(),
            moments: spans.iter().map(|span| span.4.to_vec()).collect(),
        }
    }

    fn plan(&self, bases: &[Base], at: i64) -> Result<Plan, NoMoment> {
        let line = Timeline::new(&self.spans, bases);
        let wanted = line.wanted(Some(second(at)));
        line.plan(second(at), &|span| {
            assert!(wanted.contains(&span), "moments that nobody asked for");
            &self.moments[span]
        })
    }

    fn restorable(&self, bases: &[Base]) -> Restorable {
        let line = Timeline::new(&self.spans, bases);
        let wanted = line.wanted(None);
        line.restorable(&|span| {
            assert!(wanted.contains(&span), "moments that nobody asked for");
            &self.moments[span]
        })
    }
}

fn two_runs() -> Log {
    Log::of(&[
        (
            "a",
            100,
            200,
            false,
            &[moment(10, 100), moment(11, 150), moment(12, 200)],
        ),
        ("a", 200, 300, true, &[moment(13, 210), moment(20, 300)]),
        ("b", 50, 90, false, &[moment(40, 60), moment(41, 90)]),
    ])
}

#[test]
fn a_second_is_made_of_the_newest_backup_before_it_and_the_changes_since() {
    let (log, bases) = (two_runs(), [base("a", 120), base("a", 200), base("b", 55)]);
    let plan = log.plan(&bases, 11).unwrap();
    assert_eq!(
        (plan.backup, plan.begin, plan.end),
        (bases[0].backup, 120, 150)
    );
    assert_eq!(plan.spans, 0..1);
    let plan = log.plan(&bases, 13).unwrap();
    assert_eq!(
        (plan.backup, plan.begin, plan.end),
        (bases[1].backup, 200, 210)
    );
    let plan = log.plan(&bases, 42).unwrap();
    assert_eq!(
        (plan.backup, plan.begin, plan.end),
        (bases[2].backup, 55, 90)
    );
}

#[test]
fn a_backup_that_needs_earlier_changes_gets_them_or_is_none() {
    let log = Log::of(&[
        ("a", 100, 200, false, &[moment(10, 150)]),
        ("a", 200, 300, true, &[moment(11, 220), moment(12, 300)]),
    ]);
    let needs = |since| Base {
        since,
        ..base("a", 210)
    };
    let plan = log.plan(&[needs(150)], 12).unwrap();
    assert_eq!((plan.begin, plan.end, plan.spans), (150, 300, 0..2));
    let plan = log.plan(&[needs(205)], 12).unwrap();
    assert_eq!((plan.begin, plan.end, plan.spans), (205, 300, 1..2));
    // Before its own place it makes no moment, though changes are there.
    assert!(log.plan(&[needs(150)], 10).is_err());
    assert!(log.plan(&[needs(99)], 12).is_err());
    assert_eq!(log.restorable(&[needs(99)]), Restorable::default());
}

#[test]
fn an_object_says_what_its_offsets_count() {
    let bytes = LogSpan::new("a".to_owned(), 10, 20, true, &[]);
    assert!(bytes.fits(10) && !bytes.fits(9));
    let numbers = bytes.clone().counted_in(LogUnit::Numbers);
    assert!(numbers.fits(0) && numbers.fits(1_000_000));
    let empty = LogSpan::new("a".to_owned(), 10, 10, true, &[]).counted_in(LogUnit::Numbers);
    assert!(empty.fits(0) && !empty.fits(1));
    // What was written before there were two units is read, and written, as it was.
    let written = serde_json::to_value(&bytes).unwrap();
    assert_eq!(written.get("unit"), None);
    assert_eq!(serde_json::from_value::<LogSpan>(written).unwrap(), bytes);
    let written = serde_json::to_value(&numbers).unwrap();
    assert_eq!(written["unit"], "numbers");
    assert_eq!(serde_json::from_value::<LogSpan>(written).unwrap(), numbers);
}

#[test]
fn what_lies_before_the_first_moment_or_in_a_gap_is_refused_with_the_nearest_moments() {
    let (log, bases) = (two_runs(), [base("a", 120), base("b", 55)]);
    let none = |before: Option<i64>, after: Option<i64>| {
        Err(NoMoment {
            before: before.map(second),
            after: after.map(second),
        })
    };
    // The moment at 10 lies before the backup.
    assert_eq!(log.plan(&bases, 10), none(None, Some(11)));
    assert_eq!(log.plan(&bases, 17), none(Some(14), Some(20)));
    assert_eq!(log.plan(&bases, 30), none(Some(21), Some(40)));
    assert_eq!(log.plan(&bases, 43), none(Some(42), None));
    assert_eq!(log.plan(&[], 12), none(None, None));
    assert_eq!(log.plan(&bases[..1], 41), none(Some(21), None));
}

#[test]
fn gaps_are_told_with_their_cause() {
    let (log, bases) = (two_runs(), [base("a", 120), base("b", 55)]);
    let restorable = log.restorable(&bases);
    assert_eq!(
        restorable.whole,
        Some(Stretch {
            from: second(11),
            until: second(42)
        })
    );
    let gap = |from, until, cause| Gap {
        from: second(from),
        until: second(until),
        cause,
    };
    assert_eq!(
        restorable.gaps,
        [
            gap(14, 20, GapCause::NotPlaced),
            gap(21, 40, GapCause::ChangesLost)
        ]
    );
    assert_eq!(log.restorable(&[]), Restorable::default());
}

#[test]
fn a_history_that_was_renamed_by_a_failover_goes_on() {
    let log = Log::of(&[
        ("old", 0, 100, false, &[moment(1, 10), moment(2, 100)]),
        ("new", 100, 200, true, &[moment(3, 150)]),
    ]);
    let bases = [base("old", 5)];
    assert_eq!(log.plan(&bases, 3).unwrap().spans, 0..2);
    assert!(Timeline::new(&log.spans, &bases).end_has_a_base());
}

#[test]
fn a_backup_at_the_border_of_a_gap_belongs_to_what_it_can_be_played_on() {
    let log = Log::of(&[
        ("a", 0, 100, false, &[moment(1, 100)]),
        ("a", 100, 100, false, &[moment(2, 100)]),
        ("a", 100, 150, true, &[moment(3, 150)]),
    ]);
    let bases = [base("a", 100)];
    assert_eq!(log.plan(&bases, 3).unwrap().end, 150);
    assert!(Timeline::new(&log.spans, &bases).end_has_a_base());
}

#[test]
fn a_clock_that_goes_back_makes_no_second_stand_for_what_came_later() {
    let mut moments = vec![moment(100, 10)];
    LogMoment::note(&mut moments, None, (second(50), 20, second(50)));
    assert_eq!(moments[1].from, second(100));
    assert_eq!(moments[1].last(), second(51));
    let log = Log::of(&[("a", 0, 20, false, &moments)]);
    let bases = [base("a", 0)];
    // The second of the later change is refused rather than guessed.
    assert!(log.plan(&bases, 100).is_err());
}

#[test]
fn a_moment_is_three_numbers() {
    let mut one = moment(5, 7);
    one.until = second(6);
    let text = serde_json::to_string(&one).unwrap();
    assert_eq!(text, "[5000000,1000000,7]");
    assert_eq!(serde_json::from_str::<LogMoment>(&text).unwrap(), one);
}

proptest! {
    /// The definition of a moment, against a server that is simulated: whatever the order of writes and questions is.
    #[test]
    fn a_planned_second_holds_what_was_acknowledged_a_second_before_and_nothing_that_began_after(
        steps in proptest::collection::vec((1i64..900_000, 0u8..3), 1..200),
        cut in proptest::collection::vec(any::<bool>(), 200),
        at in 0i64..60_000_000,
    ) {
        let (mut now, mut offset) = (0i64, 0u64);
        let mut writes = Vec::new();
        let mut moments: Vec<LogMoment> = Vec::new();
        for (wait, what) in steps {
            now += wait;
            if what == 0 {
                let began = now - wait / 2;
                offset += 1;
                writes.push((began, now, offset));
            } else {
                let told = (Timestamp::from_micros(now - 1), offset, Timestamp::from_micros(now));
                LogMoment::note(&mut moments, None, told);
            }
        }
        // Cut into objects wherever.
        let mut spans: Vec<Vec<LogMoment>> = vec![Vec::new()];
        for (moment, cut) in moments.iter().zip(cut) {
            if cut { spans.push(Vec::new()); }
            spans.last_mut().unwrap().push(*moment);
        }
        let mut begin = 0;
        let mut listed = Vec::new();
        for (number, moments) in spans.iter().enumerate() {
            let end = moments.last().map_or(begin, |last| last.offset);
            listed.push(("a", begin, end, number > 0, moments.as_slice()));
            begin = end;
        }
        let log = Log::of(&listed);
        let bases = [base("a", 0)];
        let line = Timeline::new(&log.spans, &bases);
        let planned = line.plan(Timestamp::from_micros(at), &|span| &log.moments[span]);
        match planned {
            Ok(plan) => for (began, acknowledged, offset) in &writes {
                if *acknowledged < at - 1_000_000 {
                    prop_assert!(*offset <= plan.end);
                }
                if *began > at {
                    prop_assert!(*offset > plan.end);
                }
            },
            Err(near) => {
                // What is offered instead can be restored.
                for near in [near.before, near.after].into_iter().flatten() {
                    prop_assert!(line.plan(near, &|span| &log.moments[span]).is_ok(), "{near}");
                }
                let told = line.restorable(&|span| &log.moments[span]);
                if let Some(whole) = told.whole {
                    let at = Timestamp::from_micros(at);
                    prop_assert!(
                        at < whole.from || at > whole.until
                            || told.gaps.iter().any(|gap| gap.from <= at && at <= gap.until)
                    );
                }
            }
        }
    }
}
