//! The rule for shifts against a walk through every minute, and the named cases.

use std::collections::BTreeMap;

use jiff::{SignedDuration, civil, tz::TimeZoneDatabase};
use proptest::prelude::*;

use super::*;

fn moment(text: &str) -> Timestamp {
    Timestamp::from_jiff(text.parse().unwrap())
}

fn calendar(expression: &str, zone: &str) -> Calendar {
    Calendar::parse(expression, zone).unwrap()
}

/// The due times after `from`, as the wall clock with its offset.
fn due(expression: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let calendar = calendar(expression, zone);
    calendar
        .upcoming(moment(from))
        .take(count)
        .map(|due| {
            let zoned = due.to_jiff().to_zoned(calendar.zone.clone());
            zoned.strftime("%m-%d %H:%M %z").to_string()
        })
        .collect()
}

mod reference {
    //! The rule once more, by walking through every minute; nothing here is shared with the code.

    use super::*;

    pub type Hit = fn(i8, i8) -> bool;

    fn civil_at(offset: Offset, second: i64) -> civil::DateTime {
        offset.to_datetime(jiff::Timestamp::from_second(second).unwrap())
    }

    /// Times of the day: due at the first minute at which the wall clock has reached, for the first
    /// time, a time that it had not reached before.
    pub fn times_of_day(
        offset_at: &dyn Fn(i64) -> Offset,
        from: i64,
        to: i64,
        hit: Hit,
    ) -> Vec<i64> {
        let mut reached = civil_at(offset_at(from), from);
        let mut found = Vec::new();
        for second in (from + 60..=to).step_by(60) {
            let clock = civil_at(offset_at(second), second);
            let mut is_due = false;
            while reached < clock {
                reached = reached.checked_add(SignedDuration::from_mins(1)).unwrap();
                is_due |= hit(reached.hour(), reached.minute());
            }
            if is_due {
                found.push(second);
            }
        }
        found
    }

    /// Intervals: due whenever the wall clock matches, and, for as long after a gap as the gap is
    /// long, whenever a clock that nobody has changed matches.
    pub fn interval(offset_at: &dyn Fn(i64) -> Offset, from: i64, to: i64, hit: Hit) -> Vec<i64> {
        let mut last = offset_at(from);
        let mut unchanged = None;
        let mut found = Vec::new();
        for second in (from + 60..=to).step_by(60) {
            let offset = offset_at(second);
            if offset != last {
                let gap = i64::from(offset.seconds() - last.seconds());
                unchanged = (gap > 0).then_some((second + gap, last));
                last = offset;
            }
            let clock = civil_at(offset, second);
            let mut is_due = hit(clock.hour(), clock.minute());
            if let Some((until, before)) = unchanged
                && second < until
            {
                let clock = civil_at(before, second);
                is_due |= hit(clock.hour(), clock.minute());
            }
            if is_due {
                found.push(second);
            }
        }
        found
    }
}

#[test]
fn every_shift_of_every_zone_follows_the_rule() {
    const DAY: i64 = 86_400;
    type Walk = fn(&dyn Fn(i64) -> Offset, i64, i64, reference::Hit) -> Vec<i64>;
    let cases: [(&str, Walk, reference::Hit); 9] = [
        ("30 2 * * *", reference::times_of_day, |h, m| {
            h == 2 && m == 30
        }),
        ("0 0 * * *", reference::times_of_day, |h, m| {
            h == 0 && m == 0
        }),
        ("30 0 * * *", reference::times_of_day, |h, m| {
            h == 0 && m == 30
        }),
        ("30 2,14 * * *", reference::times_of_day, |h, m| {
            (h == 2 || h == 14) && m == 30
        }),
        ("*/15 0-3 * * *", reference::times_of_day, |h, m| {
            h <= 3 && m % 15 == 0
        }),
        ("0 * * * *", reference::interval, |_, m| m == 0),
        ("7 * * * *", reference::interval, |_, m| m == 7),
        ("*/15 * * * *", reference::interval, |_, m| m % 15 == 0),
        ("0 */2 * * *", reference::interval, |h, m| {
            h % 2 == 0 && m == 0
        }),
    ];
    let from: jiff::Timestamp = "2020-01-01T00:00:00Z".parse().unwrap();
    let until: jiff::Timestamp = "2031-01-01T00:00:00Z".parse().unwrap();
    let zones = TimeZoneDatabase::bundled();
    // Most zones are other names of a few rules: the walks through one shift are done once.
    let mut walked: BTreeMap<(i64, i32, i32), Vec<Vec<i64>>> = BTreeMap::new();
    let (mut names, mut gaps, mut folds, mut half_hours) = (0, 0, 0, 0);
    for name in zones.available() {
        names += 1;
        let zone = zones.get(name.as_str()).unwrap();
        let calendars = cases.map(|(expression, ..)| calendar(expression, name.as_str()));
        for entry in zone.following(from) {
            let at = entry.timestamp().as_second();
            if entry.timestamp() >= until {
                break;
            }
            let offset_at = |second| zone.to_offset(jiff::Timestamp::from_second(second).unwrap());
            let (before, after) = (offset_at(at - 1).seconds(), offset_at(at).seconds());
            match after - before {
                0 => continue,
                shift if shift > 0 => gaps += 1,
                _ => folds += 1,
            }
            half_hours += u32::from((after - before).abs() == 1_800);
            // Zones that share a shift are all tried for one year only, to keep the test short.
            let year = offset_at(at).to_datetime(entry.timestamp()).year();
            let is_known = walked.contains_key(&(at, before, after));
            if is_known && year != 2026 {
                continue;
            }
            let (from, to) = (at - DAY, at + DAY);
            let expected = walked.entry((at, before, after)).or_insert_with(|| {
                cases
                    .iter()
                    .map(|(_, walk, hit)| walk(&offset_at, from, to, *hit))
                    .collect()
            });
            for (calendar, expected) in calendars.iter().zip(expected) {
                let found: Vec<i64> = calendar
                    .upcoming(Timestamp::from_micros(from * 1_000_000))
                    .map(|due| due.micros() / 1_000_000)
                    .take_while(|due| *due <= to)
                    .collect();
                assert_eq!(
                    &found,
                    expected,
                    "{} in {name} around {}",
                    calendar.expression(),
                    entry.timestamp()
                );
            }
        }
    }
    // The database must be the real one, with everything that the rule speaks of.
    assert!(names > 500 && gaps > 1_000 && folds > 1_000 && half_hours > 10);
}

#[test]
fn a_quarter_of_an_hour_lasts_a_quarter_of_an_hour_in_every_zone() {
    let zones = TimeZoneDatabase::bundled();
    let from = moment("2026-01-01T00:00:00Z");
    for zone in zones.available() {
        let calendar = calendar("*/15 * * * *", zone.as_str());
        for entry in calendar.zone.following(from.to_jiff()).take(2) {
            let before = entry.timestamp() - SignedDuration::from_hours(3);
            let runs: Vec<i64> = calendar
                .upcoming(Timestamp::from_jiff(before))
                .take(30)
                .map(Timestamp::micros)
                .collect();
            for pair in runs.windows(2) {
                assert_eq!(pair[1] - pair[0], 900_000_000, "{zone} at {before}");
            }
        }
    }
}

#[test]
fn a_time_inside_a_gap_runs_at_the_first_instant_after_it() {
    assert_eq!(
        due("30 2 * * *", "Europe/Berlin", "2026-03-27T23:00:00Z", 3),
        [
            "03-28 02:30 +0100",
            "03-29 03:00 +0200",
            "03-30 02:30 +0200"
        ]
    );
}

#[test]
fn several_times_inside_one_gap_run_once() {
    assert_eq!(
        due("*/15 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2),
        ["03-29 03:00 +0200", "03-30 02:00 +0200"]
    );
}

#[test]
fn a_time_that_exists_twice_runs_the_first_time_only() {
    assert_eq!(
        due("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
        ["10-25 02:30 +0200", "10-26 02:30 +0100"]
    );
    // Also for a scheduler that looks for the first time within the second pass.
    assert_eq!(
        due("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", 1),
        ["10-26 02:30 +0100"]
    );
}

#[test]
fn an_hourly_run_happens_in_both_passes_of_a_repeated_hour() {
    assert_eq!(
        due("0 * * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", 3),
        [
            "10-25 02:00 +0200",
            "10-25 02:00 +0100",
            "10-25 03:00 +0100"
        ]
    );
}

#[test]
fn an_hourly_run_is_not_doubled_by_a_gap_of_an_hour() {
    assert_eq!(
        due("7 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3),
        [
            "03-29 01:07 +0100",
            "03-29 03:07 +0200",
            "03-29 04:07 +0200"
        ]
    );
}

#[test]
fn an_interval_of_hours_keeps_its_elapsed_time_across_a_gap() {
    assert_eq!(
        due("0 */2 * * *", "Europe/Berlin", "2026-03-28T22:30:00Z", 3),
        [
            "03-29 00:00 +0100",
            "03-29 03:00 +0200",
            "03-29 04:00 +0200"
        ]
    );
}

#[test]
fn lord_howe_shifts_by_half_an_hour() {
    let zone = "Australia/Lord_Howe";
    // Forward at 02:00 to 02:30.
    assert_eq!(
        due("0 * * * *", zone, "2026-10-03T14:00:00Z", 3),
        [
            "10-04 01:00 +1030",
            "10-04 02:30 +1100",
            "10-04 03:00 +1100"
        ]
    );
    assert_eq!(
        due("*/15 * * * *", zone, "2026-10-03T15:10:00Z", 3),
        [
            "10-04 01:45 +1030",
            "10-04 02:30 +1100",
            "10-04 02:45 +1100"
        ]
    );
    assert_eq!(
        due("15 2 * * *", zone, "2026-10-03T14:00:00Z", 1),
        ["10-04 02:30 +1100"]
    );
    // Back at 02:00 to 01:30.
    assert_eq!(
        due("*/15 * * * *", zone, "2026-04-04T14:40:00Z", 4),
        [
            "04-05 01:45 +1100",
            "04-05 01:30 +1030",
            "04-05 01:45 +1030",
            "04-05 02:00 +1030"
        ]
    );
    assert_eq!(
        due("45 1 * * *", zone, "2026-04-04T14:40:00Z", 2),
        ["04-05 01:45 +1100", "04-06 01:45 +1030"]
    );
}

#[test]
fn midnight_itself_can_be_missing_or_repeated() {
    assert_eq!(
        due("0 0 * * *", "Africa/Cairo", "2026-04-23T12:00:00Z", 2),
        ["04-24 01:00 +0300", "04-25 00:00 +0300"]
    );
    assert_eq!(
        due("30 0 * * *", "America/Havana", "2026-10-31T12:00:00Z", 2),
        ["11-01 00:30 -0400", "11-02 00:30 -0500"]
    );
    // Cairo goes back at midnight to 23:00 of the day before.
    assert_eq!(
        due("30 23 * * *", "Africa/Cairo", "2026-10-29T12:00:00Z", 2),
        ["10-29 23:30 +0300", "10-30 23:30 +0200"]
    );
}

#[test]
fn a_gap_of_three_hours_and_a_gap_of_a_day_are_gaps_like_others() {
    assert_eq!(
        due("30 0 * * *", "Antarctica/Casey", "2020-10-03T12:00:00Z", 2),
        ["10-04 03:01 +1100", "10-05 00:30 +1100"]
    );
    // Samoa had no 30 December 2011.
    assert_eq!(
        due("0 12 30 12 *", "Pacific/Apia", "2011-06-01T00:00:00Z", 2),
        ["12-31 00:00 +1400", "12-30 12:00 +1400"]
    );
}

#[test]
fn restricted_days_match_by_either_as_in_vixies_cron() {
    assert_eq!(
        due("0 0 13 * FRI", "UTC", "2026-02-01T00:00:00Z", 4),
        [
            "02-06 00:00 +0000",
            "02-13 00:00 +0000",
            "02-20 00:00 +0000",
            "02-27 00:00 +0000"
        ]
    );
    assert_eq!(
        due("0 0 13 * FRI", "UTC", "2026-04-10T00:00:00Z", 2),
        ["04-13 00:00 +0000", "04-17 00:00 +0000"]
    );
    // A field that begins with a star does not widen the other one.
    assert_eq!(
        due("0 0 */2 * MON", "UTC", "2026-06-01T12:00:00Z", 2),
        ["06-15 00:00 +0000", "06-29 00:00 +0000"]
    );
}

#[test]
fn names_sundays_last_days_and_seconds_are_understood() {
    let from = "2026-01-01T00:00:00Z";
    let same = [
        ("0 0 * JAN,mar sun", "0 0 * 1,3 0"),
        ("0 0 * * 7", "0 0 * * 0"),
        ("0 0 * * FRI-SUN", "0 0 * * 0,5,6"),
        ("0 0 * * sun-tue", "0 0 * * 0-2"),
        ("0 0 ? * ?", "@daily"),
        ("@midnight", "@daily"),
        ("@hourly", "0 * * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@annually", "@yearly"),
        ("@yearly", "0 0 1 1 *"),
        ("0 30 2 * * *", "30 2 * * *"),
    ];
    for (left, right) in same {
        assert_eq!(
            due(left, "UTC", from, 30),
            due(right, "UTC", from, 30),
            "{left}"
        );
    }
    assert_eq!(
        due("0 0 L * *", "UTC", from, 3),
        [
            "01-31 00:00 +0000",
            "02-28 00:00 +0000",
            "03-31 00:00 +0000"
        ]
    );
    assert_eq!(due("0 0 * * MON#2", "UTC", from, 1), ["01-12 00:00 +0000"]);
    assert_eq!(due("0 0 * * 5L", "UTC", from, 1), ["01-30 00:00 +0000"]);
    assert_eq!(due("0 0 LW * *", "UTC", from, 1), ["01-30 00:00 +0000"]);
    let seconds: Vec<i64> = calendar("*/20 * * * * *", "UTC")
        .upcoming(Timestamp::from_micros(1))
        .take(3)
        .map(Timestamp::micros)
        .collect();
    assert_eq!(seconds, [20_000_000, 40_000_000, 60_000_000]);
}

#[test]
fn what_never_matches_is_never_due_and_what_is_rare_is_found() {
    for never in ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "* * 30 2 *"] {
        assert_eq!(
            calendar(never, "Europe/Berlin").next_after(moment("2026-01-01T00:00:00Z")),
            None
        );
    }
    assert_eq!(
        calendar("0 * 29 2 *", "Europe/Berlin").next_after(moment("2096-03-01T00:00:00Z")),
        Some(moment("2104-02-28T23:00:00Z"))
    );
}

#[test]
fn the_ends_of_time_do_not_panic() {
    for expression in ["30 2 * * *", "*/15 * * * *"] {
        let calendar = calendar(expression, "Europe/Berlin");
        assert_eq!(calendar.next_after(Timestamp::from_micros(i64::MAX)), None);
        assert!(
            calendar
                .next_after(Timestamp::from_micros(i64::MIN))
                .is_some()
        );
    }
}

#[test]
fn errors_name_the_field_and_what_to_write_instead() {
    let cases = [
        ("61 * * * *", "minute", "0 to 59"),
        ("0 24 * * *", "hour", "0 to 23"),
        ("0 0 0 * *", "day of month", "1 to 31"),
        ("0 0 * 13 *", "month", "JAN"),
        ("0 0 * * 8", "day of week", "MON"),
        ("60 0 0 * * *", "second", "0 to 59"),
        ("JAN * * * *", "minute", "0 to 59"),
        ("0 0 * * Monday", "day of week", "MON"),
        ("1,,2 * * * *", "minute", "comma"),
        ("5/15 * * * *", "minute", "5-59/15"),
        ("*/0 * * * *", "minute", "*/5"),
        ("*/60 * * * *", "minute", "write `0`"),
        ("30-10 * * * *", "minute", "30-59,0-10"),
        ("0 0 * * L", "day of week", "FRI#L"),
        ("0 0 * * MON#6", "day of week", "#5"),
        ("0 0 L,LW * *", "day of month", "one of them"),
        ("0 99999999999 * * *", "hour", "0 to 23"),
        ("+5 * * * *", "minute", "0 to 59"),
        ("0 *,5 * * *", "hour", "alone"),
    ];
    for (expression, expected, remedy) in cases {
        let error = Calendar::parse(expression, "UTC").unwrap_err();
        let CalendarError::Field { field, .. } = &error else {
            panic!("{expression}: {error}");
        };
        assert_eq!(*field, expected, "{expression}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(
            error.remedy().contains(remedy),
            "{expression}: {}",
            error.remedy()
        );
    }
    for (expression, message) in [
        ("", "empty"),
        ("0 0 * *", "4 field(s)"),
        ("0 0 0 * * * *", "7 field(s)"),
        ("@every 5m", "@every 5m"),
    ] {
        let error = Calendar::parse(expression, "UTC").unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.remedy().contains('@') || error.remedy().contains("0 2 * * *"));
    }
    assert!(Calendar::parse(&"1,".repeat(1_000), "UTC").is_err());
}

#[test]
fn unknown_zones_suggest_the_nearest_names() {
    for (given, near) in [
        ("Europe/Berln", "Europe/Berlin"),
        ("Berlin", "Europe/Berlin"),
        ("America/NewYork", "America/New_York"),
        ("america/new york", "America/New_York"),
        ("Australia/LordHowe", "Australia/Lord_Howe"),
    ] {
        let error = Calendar::parse("@daily", given).unwrap_err();
        assert!(error.remedy().contains(near), "{given}: {}", error.remedy());
    }
    let error = Calendar::parse("@daily", "Nowhere/Atall").unwrap_err();
    assert!(
        error.remedy().contains("Europe/Berlin"),
        "{}",
        error.remedy()
    );
    assert_eq!(
        calendar("@daily", "europe/berlin").time_zone(),
        "Europe/Berlin"
    );
}

fn any_expression() -> impl Strategy<Value = String> {
    let minute = prop::sample::select(vec!["*", "*/7", "*/15", "0", "59", "5-40/10", "1,2,30"]);
    let hour = prop::sample::select(vec!["*", "*/5", "*/6", "0", "2", "1-3", "23", "0-23"]);
    let day = prop::sample::select(vec!["*", "*", "1", "L", "*/2", "15W", "31"]);
    let month = prop::sample::select(vec!["*", "*", "3,10", "APR", "2"]);
    let weekday = prop::sample::select(vec!["*", "*", "SUN", "1-5", "6#L", "*/3"]);
    (minute, hour, day, month, weekday).prop_map(|(m, h, d, n, w)| format!("{m} {h} {d} {n} {w}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn due_times_only_go_forward_and_do_not_depend_on_where_the_search_starts(
        expression in any_expression(),
        zone in prop::sample::select(vec![
            "UTC", "Europe/Berlin", "Australia/Lord_Howe", "Africa/Cairo", "America/Havana",
            "Africa/Casablanca", "Asia/Kathmandu", "America/Nuuk",
        ]),
        after in 1_577_836_800_000_000_i64..1_924_991_999_999_999,
        share in 0.0_f64..1.0,
    ) {
        let calendar = calendar(&expression, zone);
        let mut last = Timestamp::from_micros(after);
        for due in calendar.upcoming(last).take(5) {
            prop_assert!(due > last);
            prop_assert_eq!(due.micros() % 1_000_000, 0);
            prop_assert_eq!(calendar.next_after(last), Some(due));
            // From anywhere in between, the same due time follows.
            #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
            let between = last.micros() + ((due.micros() - last.micros() - 1) as f64 * share) as i64;
            prop_assert_eq!(calendar.next_after(Timestamp::from_micros(between)), Some(due));
            last = due;
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic_and_what_it_reads_is_kept(
        expression in "[0-9*/,?LW#A-Za-z@ -]{0,24}",
    ) {
        match Calendar::parse(&expression, "UTC") {
            Ok(calendar) => prop_assert_eq!(calendar.expression(), expression.trim()),
            Err(error) => {
                prop_assert!(!error.remedy().is_empty());
                // Whatever passes our own grammar, croner must know.
                prop_assert!(!matches!(error, CalendarError::Refused { .. }), "{}", error);
            }
        }
    }

    #[test]
    fn what_the_grammar_accepts_croner_accepts(
        fields in prop::collection::vec(
            prop::sample::select(vec![
                "*", "?", "*/2", "*/3,1", "1", "2-4", "1-5/2", "1,3", "L", "LW", "5W", "MON", "JAN",
                "2#1", "3L", "FRI-SUN", "1-3#L", "7", "0", "SUN-SUN", "FEB-APR/2", "0-7",
            ]),
            5..=6,
        ),
    ) {
        let expression = fields.join(" ");
        if let Err(error) = Calendar::parse(&expression, "UTC") {
            prop_assert!(!matches!(error, CalendarError::Refused { .. }), "{}", error);
        }
    }
}
