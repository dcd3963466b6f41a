//! What can be wrong with an expression or a zone, told so that the reader can repair it.

use fettler_model::{ErrorClass, Problem};

/// Why an expression or a time zone was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CalendarError {
    /// Nothing was given.
    #[error("the cron expression is empty")]
    Empty,
    /// More text than any sensible expression has.
    #[error("the cron expression has {bytes} bytes, at most {limit} are read")]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// Not five and not six fields.
    #[error("the cron expression `{expression}` has {found} field(s) instead of five or six")]
    FieldCount {
        /// What was given.
        expression: String,
        /// How many fields it has.
        found: usize,
    },
    /// A word after `@` that means nothing.
    #[error("`{nickname}` is not a known nickname of a cron expression")]
    Nickname {
        /// What was given.
        nickname: String,
    },
    /// One field cannot be read.
    #[error("the {field} field `{text}` of the cron expression is wrong: {problem}")]
    Field {
        /// `second`, `minute`, `hour`, `day of month`, `month` or `day of week`.
        field: &'static str,
        /// The field as it was given.
        text: String,
        /// What is wrong with it.
        problem: String,
        /// What to write instead.
        remedy: String,
    },
    /// The fields look right one by one, but the parser of the whole refused.
    #[error("the cron expression `{expression}` was refused: {reason}")]
    Refused {
        /// What was given.
        expression: String,
        /// The parser's words.
        reason: String,
    },
    /// There is no such zone.
    #[error("`{time_zone}` is not a time zone of the IANA database")]
    UnknownTimeZone {
        /// What was given, cut if long.
        time_zone: String,
        /// Zones whose names are almost the same, the nearest first.
        near: Vec<String>,
    },
}

impl CalendarError {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Empty | Self::FieldCount { .. } => {
                "write minute, hour, day of month, month and day of week with blanks between, \
                 such as `0 2 * * *` for every night at two; seconds may stand in front"
                    .into()
            }
            Self::TooLong { .. } => "use ranges and steps such as `0-30/5` instead of lists, or several policies".into(),
            Self::Nickname { .. } => {
                "use @hourly, @daily, @midnight, @weekly, @monthly, @yearly or @annually; every 15 minutes is `*/15 * * * *`"
                    .into()
            }
            Self::Field { remedy, .. } => remedy.clone(),
            Self::Refused { .. } => "write the fields in a simpler form".into(),
            Self::UnknownTimeZone { near, .. } if near.is_empty() => {
                "give the name of a place such as `Europe/Berlin`, or `UTC`".into()
            }
            Self::UnknownTimeZone { near, .. } => format!("did you mean `{}`?", near.join("`, `")),
        }
    }

    /// Trying again with the same words gives the same.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        ErrorClass::Permanent
    }

    const fn code(&self) -> &'static str {
        match self {
            Self::UnknownTimeZone { .. } => "scheduler.time_zone",
            _ => "scheduler.cron",
        }
    }
}

impl From<CalendarError> for Problem {
    fn from(error: CalendarError) -> Self {
        Self::new(
            error.class(),
            error.code(),
            error.to_string(),
            error.remedy(),
        )
    }
}
