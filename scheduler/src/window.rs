//! The hours in which a policy's jobs may start.

use std::sync::LazyLock;

use fettler_model::{Timestamp, Window};
use jiff::{
    civil::Time,
    tz::{TimeZone, TimeZoneDatabase},
};
use thiserror::Error;

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// Why a window was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidWindow {
    /// One of its ends is not a time of the day.
    #[error("{text:?} is not a time of the day: write the window's `{field}` as HH:MM")]
    NotATime {
        /// `from` or `to`.
        field: &'static str,
        /// What was given.
        text: String,
    },
    /// It would never be open.
    #[error(
        "the window opens and closes at {0}, so that it is never open: leave it out to allow all hours"
    )]
    Empty(String),
    /// There is no such zone.
    #[error("there is no time zone {0:?}")]
    UnknownTimeZone(String),
}

/// A [`Window`] in its zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockWindow {
    from: Time,
    to: Time,
    zone: TimeZone,
}

impl ClockWindow {
    /// Reads a window.
    ///
    /// # Errors
    ///
    /// When an end is not `HH:MM`, both are the same, or there is no such zone.
    pub fn read(window: &Window, time_zone: &str) -> Result<Self, InvalidWindow> {
        let from = read_time("from", &window.from)?;
        let to = read_time("to", &window.to)?;
        if from == to {
            return Err(InvalidWindow::Empty(window.from.clone()));
        }
        let zone = ZONES
            .get(time_zone.trim())
            .map_err(|_| InvalidWindow::UnknownTimeZone(time_zone.to_owned()))?;
        Ok(Self { from, to, zone })
    }

    /// Whether it is open at this moment. It opens on the minute of `from` and is closed
    /// from the minute of `to` on.
    #[must_use]
    pub fn is_open(&self, moment: Timestamp) -> bool {
        let time = self.zone.to_datetime(moment.to_jiff()).time();
        if self.from < self.to {
            self.from <= time && time < self.to
        } else {
            self.from <= time || time < self.to
        }
    }
}

fn read_time(field: &'static str, text: &str) -> Result<Time, InvalidWindow> {
    let invalid = || InvalidWindow::NotATime {
        field,
        text: text.to_owned(),
    };
    let (hour, minute) = text.split_once(':').ok_or_else(invalid)?;
    let number = |digits: &str| -> Option<i8> {
        (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()))
            .then(|| digits.parse().ok())
            .flatten()
    };
    let (hour, minute) = number(hour).zip(number(minute)).ok_or_else(invalid)?;
    Time::new(hour, minute, 0, 0).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(from: &str, to: &str) -> Result<ClockWindow, InvalidWindow> {
        let window = Window {
            from: from.to_owned(),
            to: to.to_owned(),
        };
        ClockWindow::read(&window, "UTC")
    }

    #[test]
    fn what_is_no_time_of_the_day_is_refused_by_name() {
        for bad in ["24:00", "7:00", "07:60", "0700", "07:00:00", "-1:00", ""] {
            let error = window("01:00", bad).expect_err(bad);
            assert!(error.to_string().contains("`to`"), "{error}");
        }
        assert!(window("01:00", "01:00").is_err());
    }

    #[test]
    fn a_window_over_midnight_is_open_on_both_sides_of_it() {
        let window = window("22:00", "04:00").expect("a window");
        let open = |time: &str| {
            let moment = format!("2026-01-05T{time}Z").parse().expect("a time");
            window.is_open(Timestamp::from_jiff(moment))
        };
        assert!(open("22:00:00") && open("23:59:59") && open("00:00:00") && open("03:59:59"));
        assert!(!open("04:00:00") && !open("12:00:00") && !open("21:59:59"));
    }
}
