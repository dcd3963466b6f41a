//! Sizes, times and shares as people write and read them.

use std::time::Duration;

use fettler_model::Timestamp;

/// Units of size: powers of ten, and powers of two with an `i`.
const SIZES: [(&str, u64); 11] = [
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("K", 1_000),
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("TIB", 1 << 40),
];

/// Reads a size such as `256MB`, `1.5GiB` or `4096`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let unit = unit.to_ascii_uppercase();
    let unit = match unit.as_str() {
        "M" => "MB",
        "G" => "GB",
        "T" => "TB",
        other => other,
    };
    let factor = SIZES.iter().find(|(name, _)| *name == unit);
    match (number.parse::<f64>(), factor) {
        // A size that a float cannot hold exactly is rounded by less than anybody can see.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        (Ok(number), Some((_, factor))) if number >= 0.0 => {
            let bytes = number * *factor as f64;
            if bytes < 1.0 || bytes > u64::MAX as f64 {
                Err("the size is out of bounds".to_owned())
            } else {
                Ok(bytes as u64)
            }
        }
        _ => Err("write a size as 4096, 256MB or 1.5GiB".to_owned()),
    }
}

/// Reads a time such as `90s`, `15m`, `24h`, `30d` or `2w`; a bare number is seconds.
pub(crate) fn duration_seconds(text: &str) -> Result<u64, String> {
    let wrong = || "write a time as 90s, 15m, 24h, 30d or 2w".to_owned();
    let (number, unit) = split(text);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(wrong)
}

/// The same, but not no time at all.
pub(crate) fn duration_seconds_above_0(text: &str) -> Result<u64, String> {
    match duration_seconds(text)? {
        0 => Err("a time above 0 is needed".to_owned()),
        seconds => Ok(seconds),
    }
}

/// Reads a moment such as `2026-01-31T22:00:00Z`, or a time from now such as `2h`.
pub(crate) fn moment_or_span(text: &str) -> Result<Timestamp, String> {
    if let Ok(seconds) = duration_seconds(text) {
        return Ok(Timestamp::now().plus(Duration::from_secs(seconds)));
    }
    text.parse::<jiff::Timestamp>()
        .map(Timestamp::from_jiff)
        .map_err(|_| "write a moment as 2026-01-31T22:00:00Z, or a time from now as 2h".to_owned())
}

/// Reads a share such as `5%` or `5`.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    text.trim_end_matches('%')
        .parse::<f64>()
        .ok()
        .filter(|share| *share > 0.0 && *share <= 100.0)
        .ok_or_else(|| "write a share above 0 % and up to 100 %, such as 5%".to_owned())
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let at = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(text.len());
    (&text[..at], text[at..].trim())
}

/// A size for people: three significant digits, powers of ten.
pub(crate) fn size(bytes: u64) -> String {
    let names = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut at = 0;
    while value >= 999.5 && at + 1 < names.len() {
        value /= 1000.0;
        at += 1;
    }
    if at == 0 {
        format!("{bytes} B")
    } else if value < 9.995 {
        format!("{value:.2} {}", names[at])
    } else if value < 99.95 {
        format!("{value:.1} {}", names[at])
    } else {
        format!("{value:.0} {}", names[at])
    }
}

/// A number for people, with thin groups of three.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things.
pub(crate) fn things(number: u64, one: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {one}{ending}", count(number))
}

/// A time span for people.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=9 => format!("{:.1} s", duration.as_secs_f64()),
        10..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min {} s", seconds / 60, seconds % 60),
        7_200..=172_799 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Reads a moment that has been, such as `2026-01-31T22:00:00Z` or `2026-01-31T22:00:00+01:00`.
pub(crate) fn past_moment(text: &str) -> Result<Timestamp, String> {
    text.parse::<jiff::Timestamp>()
        .map(Timestamp::from_jiff)
        .map_err(|_| {
            "write a moment with its zone, as 2026-01-31T22:00:00Z or 2026-01-31T22:00:00+01:00"
                .to_owned()
        })
}

/// A moment for people: to the second, in this machine's zone.
pub(crate) fn moment(time: Timestamp) -> String {
    time.to_jiff()
        .to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, expected) in [
            ("4096", 4096),
            ("256MB", 256_000_000),
            ("256 mb", 256_000_000),
            ("64M", 64_000_000),
            ("1.5GiB", 1_610_612_736),
            ("10k", 10_000),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for wrong in ["", "MB", "-3MB", "3 parsecs", "0"] {
            assert!(bytes(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn times_and_shares_are_read_as_people_write_them() {
        assert_eq!(duration_seconds("90"), Ok(90));
        assert_eq!(duration_seconds("2w"), Ok(1_209_600));
        assert!(duration_seconds("1.5h").is_err());
        assert!(duration_seconds("99999999999999999999d").is_err());
        assert_eq!(percent("5%"), Ok(5.0));
        assert!(percent("0").is_err());
        assert!(percent("101%").is_err());
    }

    #[test]
    fn sizes_and_numbers_are_written_shortly() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1_000), "1.00 kB");
        assert_eq!(size(256_000_000), "256 MB");
        assert_eq!(size(999_600), "1.00 MB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(7), "7");
        assert_eq!(things(1, "pack"), "1 pack");
        assert_eq!(things(2000, "pack"), "2,000 packs");
    }
}
