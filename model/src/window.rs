//! Windows: the hours in which jobs may start, in a time zone, and when they open and close.

use std::sync::LazyLock;

use jiff::{
    civil::{DateTime, Time},
    tz::{TimeZone, TimeZoneDatabase},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Timestamp, Window};

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// The hours in which a job may run: it starts within them, and stops at its next checkpoint when they end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobWindow {
    /// The hours.
    #[serde(flatten)]
    pub hours: Window,
    /// The IANA time zone in which they are read.
    pub time_zone: String,
}

impl JobWindow {
    /// Reads the window.
    ///
    /// # Errors
    ///
    /// As [`ClockWindow::read`].
    pub fn clock(&self) -> Result<ClockWindow, InvalidWindow> {
        ClockWindow::read(&self.hours, &self.time_zone)
    }
}

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

    /// When it is next open: at this moment, where it is open now.
    #[must_use]
    pub fn next_open(&self, moment: Timestamp) -> Timestamp {
        if self.is_open(moment) {
            moment
        } else {
            self.next(self.from, moment)
        }
    }

    /// When it closes next.
    #[must_use]
    pub fn next_close(&self, moment: Timestamp) -> Timestamp {
        self.next(self.to, moment)
    }

    /// The first moment after this one at which clocks show this time. A time that a change of the clocks leaves out
    /// is the first instant after the gap.
    fn next(&self, time: Time, moment: Timestamp) -> Timestamp {
        let mut date = self.zone.to_datetime(moment.to_jiff()).date();
        // The third day is only needed where the calendar itself ends.
        for _ in 0..3 {
            let at = DateTime::from_parts(date, time);
            if let Ok(at) = self.zone.to_ambiguous_timestamp(at).compatible() {
                let at = Timestamp::from_jiff(at);
                if at > moment {
                    return at;
                }
            }
            let Ok(tomorrow) = date.tomorrow() else { break };
            date = tomorrow;
        }
        moment
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

    #[test]
    fn a_window_says_when_it_opens_and_when_it_closes() {
        let at = |text: &str| Timestamp::from_jiff(text.parse().expect("a time"));
        let night = window("22:00", "04:00").expect("a window");
        let noon = at("2026-01-05T12:00:00Z");
        assert_eq!(night.next_open(noon), at("2026-01-05T22:00:00Z"));
        assert_eq!(night.next_close(noon), at("2026-01-06T04:00:00Z"));
        let open = at("2026-01-05T23:00:00Z");
        assert_eq!(night.next_open(open), open);
        assert_eq!(night.next_close(open), at("2026-01-06T04:00:00Z"));
        assert_eq!(
            night.next_open(at("2026-01-06T04:00:00Z")),
            at("2026-01-06T22:00:00Z")
        );
    }

    #[test]
    fn a_window_follows_the_clocks_of_its_zone() {
        let at = |text: &str| Timestamp::from_jiff(text.parse().expect("a time"));
        let hours = Window {
            from: "02:30".to_owned(),
            to: "05:00".to_owned(),
        };
        let window = ClockWindow::read(&hours, "Europe/Berlin").expect("a window");
        // The day on which 02:30 does not exist there.
        assert_eq!(
            window.next_open(at("2026-03-28T23:30:00Z")),
            at("2026-03-29T01:30:00Z")
        );
        assert_eq!(
            window.next_close(at("2026-03-28T23:30:00Z")),
            at("2026-03-29T03:00:00Z")
        );
    }
}
