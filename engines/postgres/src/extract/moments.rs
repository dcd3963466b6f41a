//! Dates, times and spans as text: ISO, in UTC, spans in the server's own style.

/// Days from 0000-03-01 (proleptic Gregorian) to 2000-01-01, from which the server counts.
const DAYS_TO_2000: i64 = 730_425;
const MICROSECONDS_A_SECOND: i64 = 1_000_000;
const MICROSECONDS_A_DAY: i64 = 86_400 * MICROSECONDS_A_SECOND;

/// Year (astronomical: 0 is 1 BC), month and day of a number of days since 2000-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    // Years begin in March, so that the day that some have more is their last.
    let days = days + DAYS_TO_2000;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era;
    if month < 10 {
        (year, month + 3, day)
    } else {
        (year + 1, month - 9, day)
    }
}

/// Adds the day, and tells whether it is before the year 1.
fn put_day(days: i64, out: &mut String) -> bool {
    let (year, month, day) = civil(days);
    let is_before = year <= 0;
    let shown = if is_before { 1 - year } else { year };
    out.push_str(&format!("{shown:04}-{month:02}-{day:02}"));
    is_before
}

/// Adds a `date`: days since 2000-01-01.
pub(super) fn put_date(days: i32, out: &mut String) {
    match days {
        i32::MAX => out.push_str("infinity"),
        i32::MIN => out.push_str("-infinity"),
        days => {
            if put_day(i64::from(days), out) {
                out.push_str(" BC");
            }
        }
    }
}

/// Adds hours, minutes and seconds, with as many digits behind the point as there are.
fn put_clock(microseconds: u64, out: &mut String) {
    let seconds = microseconds / 1_000_000;
    let rest = microseconds % 1_000_000;
    out.push_str(&format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    ));
    if rest > 0 {
        let digits = format!("{rest:06}");
        out.push('.');
        out.push_str(digits.trim_end_matches('0'));
    }
}

/// Adds a `time`: microseconds since midnight.
pub(super) fn put_time(microseconds: i64, out: &mut String) {
    put_clock(microseconds.unsigned_abs(), out);
}

/// Adds the zone of a `timetz`, which is kept in seconds west of Greenwich.
pub(super) fn put_time_zone(seconds_west: i32, out: &mut String) {
    out.push(if seconds_west <= 0 { '+' } else { '-' });
    let seconds = seconds_west.unsigned_abs();
    out.push_str(&format!("{:02}", seconds / 3600));
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    if minutes > 0 || rest > 0 {
        out.push_str(&format!(":{minutes:02}"));
    }
    if rest > 0 {
        out.push_str(&format!(":{rest:02}"));
    }
}

/// Adds a `timestamp` or, in UTC, a `timestamptz`: microseconds since 2000-01-01.
pub(super) fn put_timestamp(microseconds: i64, with_zone: bool, out: &mut String) {
    match microseconds {
        i64::MAX => out.push_str("infinity"),
        i64::MIN => out.push_str("-infinity"),
        microseconds => {
            let is_before = put_day(microseconds.div_euclid(MICROSECONDS_A_DAY), out);
            out.push(' ');
            put_clock(
                microseconds.rem_euclid(MICROSECONDS_A_DAY).unsigned_abs(),
                out,
            );
            if with_zone {
                out.push_str("+00");
            }
            if is_before {
                out.push_str(" BC");
            }
        }
    }
}

/// Adds an `interval` in the style `postgres`.
pub(super) fn put_interval(microseconds: i64, days: i32, months: i32, out: &mut String) {
    match (microseconds, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => return out.push_str("infinity"),
        (i64::MIN, i32::MIN, i32::MIN) => return out.push_str("-infinity"),
        _ => {}
    }
    let (mut is_first, mut was_negative) = (true, false);
    for (number, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if number == 0 {
            continue;
        }
        if !is_first {
            out.push(' ');
        }
        // A positive part behind a negative one has its sign.
        if was_negative && number > 0 {
            out.push('+');
        }
        out.push_str(&format!("{number} {unit}"));
        if number != 1 {
            out.push('s');
        }
        (is_first, was_negative) = (false, number < 0);
    }
    if is_first || microseconds != 0 {
        if !is_first {
            out.push(' ');
        }
        if microseconds < 0 {
            out.push('-');
        } else if was_negative {
            out.push('+');
        }
        put_clock(microseconds.unsigned_abs(), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (days, text) in [
            (0, "2000-01-01"),
            (59, "2000-02-29"),
            (60, "2000-03-01"),
            (-1, "1999-12-31"),
            (366, "2001-01-01"),
            (-730_119, "0001-01-01"),
            (-730_120, "0001-12-31 BC"),
            (i32::MAX, "infinity"),
        ] {
            let mut out = String::new();
            put_date(days, &mut out);
            assert_eq!(out, text);
        }
    }

    #[test]
    fn spans_keep_the_signs_of_their_parts() {
        for (microseconds, days, months, text) in [
            (0, 0, 0, "00:00:00"),
            (1, -1, 1, "1 mon -1 days +00:00:00.000001"),
            (-3_600_000_000, 0, -14, "-1 years -2 mons -01:00:00"),
            (0, 3, 25, "2 years 1 mon 3 days"),
        ] {
            let mut out = String::new();
            put_interval(microseconds, days, months, &mut out);
            assert_eq!(out, text);
        }
    }
}
