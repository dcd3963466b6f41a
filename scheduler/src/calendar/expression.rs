//! Reads a cron expression. The grammar is checked here field by field, because `croner` does not
//! say which field is wrong and lets slips pass (`1,,2`, `JAN` as a minute, `L` as a weekday, which never
//! matches); what passes is handed to `croner` with its names replaced by numbers.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::civil::{DateTime, date};

use super::CalendarError;

/// The longest expression that is read: every minute and every hour in lists fit.
const MAX_EXPRESSION_BYTES: usize = 512;

/// What the days on which clocks change mean to an expression; see the module above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rhythm {
    /// The hour field is `*` or `*/n`.
    Interval,
    /// Everything else.
    TimesOfDay,
}

/// An expression that can be matched against a wall clock without a zone.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    text: String,
    cron: Cron,
    rhythm: Rhythm,
    ever_matches: bool,
}

impl Expression {
    pub(super) fn parse(text: &str) -> Result<Self, CalendarError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(CalendarError::Empty);
        }
        if text.len() > MAX_EXPRESSION_BYTES {
            return Err(CalendarError::TooLong {
                bytes: text.len(),
                limit: MAX_EXPRESSION_BYTES,
            });
        }
        let fields = if text.starts_with('@') {
            nickname(text)?
        } else {
            text
        };
        let given: Vec<&str> = fields.split_whitespace().collect();
        let kinds = match given.len() {
            5 => &FIELDS[1..],
            6 => &FIELDS[..],
            found => {
                return Err(CalendarError::FieldCount {
                    expression: text.to_owned(),
                    found,
                });
            }
        };
        let mut plain = Vec::with_capacity(FIELDS.len());
        for (kind, given) in kinds.iter().zip(given) {
            plain.push(kind.read(given)?);
        }
        let (hour, day, weekday) = (kinds.len() - 4, kinds.len() - 3, kinds.len() - 1);
        let rhythm = if plain[hour].starts_with('*') && !plain[hour].contains(',') {
            Rhythm::Interval
        } else {
            Rhythm::TimesOfDay
        };
        // Vixie's cron: two restricted day fields match by either, unless one begins with `*`;
        // `+` is croner's sign for both.
        let stepped = |field: &str| field.starts_with("*/");
        if stepped(&plain[day]) || stepped(&plain[weekday]) {
            plain[weekday].insert(0, '+');
        }
        let cron = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Optional)
            .build()
            .parse(&plain.join(" "))
            .map_err(|error| CalendarError::Refused {
                expression: text.to_owned(),
                reason: error.to_string(),
            })?;
        let mut expression = Self {
            text: text.to_owned(),
            cron,
            rhythm,
            ever_matches: true,
        };
        // Dates and weekdays repeat every 400 years, and croner looks through three thousand. Done
        // once, because a search that finds nothing takes milliseconds.
        expression.ever_matches = expression
            .next_match(date(2000, 1, 1).at(0, 0, 0, 0), true)
            .is_some();
        Ok(expression)
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn rhythm(&self) -> Rhythm {
        self.rhythm
    }

    pub(super) fn ever_matches(&self) -> bool {
        self.ever_matches
    }

    /// The first match after `from`, which must be a whole second, or at it.
    pub(super) fn next_match(&self, from: DateTime, inclusive: bool) -> Option<DateTime> {
        // The errors of this search say that croner's limit (the year 5000) was reached.
        self.cron.find_next_occurrence(&from, inclusive).ok()
    }
}

fn nickname(text: &str) -> Result<&'static str, CalendarError> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        _ => {
            return Err(CalendarError::Nickname {
                nickname: text.to_owned(),
            });
        }
    })
}

/// What one field may hold.
struct Field {
    name: &'static str,
    min: u16,
    max: u16,
    /// The names of the values, the first one for `first_named`.
    names: &'static [&'static str],
    first_named: u16,
    example: &'static str,
}

const FIELDS: [Field; 6] = [
    Field::numeric("second", 0, 59, "0"),
    Field::numeric("minute", 0, 59, "0"),
    Field::numeric("hour", 0, 23, "2"),
    Field::numeric(DAY_OF_MONTH, 1, 31, "1"),
    Field {
        name: "month",
        min: 1,
        max: 12,
        names: &[
            "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
        ],
        first_named: 1,
        example: "JAN",
    },
    Field {
        name: DAY_OF_WEEK,
        min: 0,
        max: 7,
        names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
        first_named: 0,
        example: "MON",
    },
];

const DAY_OF_MONTH: &str = "day of month";
const DAY_OF_WEEK: &str = "day of week";

/// What is wrong with an item, and what to write instead.
struct Wrong {
    problem: String,
    remedy: String,
}

impl Field {
    const fn numeric(name: &'static str, min: u16, max: u16, example: &'static str) -> Self {
        Self {
            name,
            min,
            max,
            names: &[],
            first_named: 0,
            example,
        }
    }

    /// Checks a field and gives it back in croner's words.
    fn read(&self, given: &str) -> Result<String, CalendarError> {
        self.read_list(given).map_err(|wrong| CalendarError::Field {
            field: self.name,
            text: given.to_owned(),
            problem: wrong.problem,
            remedy: wrong.remedy,
        })
    }

    fn read_list(&self, given: &str) -> Result<String, Wrong> {
        let upper = given.to_ascii_uppercase();
        if upper == "*" || (upper == "?" && self.is_day()) {
            return Ok("*".into());
        }
        let items: Vec<String> = upper
            .split(',')
            .map(|item| self.read_item(item))
            .collect::<Result<_, _>>()?;
        // croner keeps one mark for both and would forget `L`.
        if items.iter().any(|item| item == "L") && items.iter().any(|item| item == "LW") {
            return Err(wrong(
                "`L` and `LW` stand together",
                "use one of them, or two policies",
            ));
        }
        Ok(items.join(","))
    }

    fn read_item(&self, item: &str) -> Result<String, Wrong> {
        if item.is_empty() {
            return Err(wrong(
                "an item of the list is empty",
                "remove the surplus comma",
            ));
        }
        if item == "*" || item == "?" {
            return Err(wrong(
                format!("`{item}` stands in a list"),
                "`*` means every value: write it alone, or list the values",
            ));
        }
        if let Some((range, step)) = item.split_once('/') {
            return self.read_step(range, step);
        }
        if self.name == DAY_OF_MONTH {
            if item == "L" || item == "LW" {
                return Ok(item.to_owned());
            }
            if let Some(day) = item.strip_suffix('W') {
                return Ok(format!("{}W", self.read_value(day)?));
            }
        }
        if self.name == DAY_OF_WEEK {
            return self.read_weekday(item);
        }
        self.read_range(item)
    }

    /// `MON`, `1-5`, `MON#2` (the second Monday of the month), `FRIL` or `FRI#L` (its last Friday).
    fn read_weekday(&self, item: &str) -> Result<String, Wrong> {
        if item == "L" {
            return Err(wrong(
                "`L` alone is no weekday",
                "write `SAT` for Saturdays, or `FRI#L` for the last Friday of the month",
            ));
        }
        if let Some((days, nth)) = item.split_once('#') {
            if !matches!(nth, "1" | "2" | "3" | "4" | "5" | "L") {
                return Err(wrong(
                    format!("`#{nth}` is not a week of the month"),
                    "use `#1` to `#5`, or `#L` for the last",
                ));
            }
            return Ok(format!("{}#{nth}", self.read_range(days)?));
        }
        match item.strip_suffix('L') {
            Some(day) => Ok(format!("{}#L", self.read_value(day)?)),
            None => self.read_range(item),
        }
    }

    fn read_step(&self, range: &str, step: &str) -> Result<String, Wrong> {
        let (plain, first, last) = if range == "*" {
            (String::from("*"), self.min, self.max)
        } else if range.contains('-') {
            let plain = self.read_range(range)?;
            let (first, last) = bounds(&plain);
            (plain, first, last)
        } else {
            return Err(wrong(
                format!("`{range}/{step}` has a step but no range"),
                format!(
                    "write `{}-{}/{step}`, or `*/{step}` for the whole range",
                    if range.is_empty() { "5" } else { range },
                    self.max
                ),
            ));
        };
        let Ok(step) = number(step) else {
            return Err(wrong(
                format!("the step `{step}` is not a number"),
                "write the step in digits, such as `*/5`",
            ));
        };
        if step == 0 {
            return Err(wrong(
                "the step is 0",
                "write a step of at least 1, such as `*/5`",
            ));
        }
        if step > last - first {
            return Err(wrong(
                format!("a step of {step} reaches only the first value, {first}"),
                format!(
                    "write `{first}`, or a step of at most {}",
                    (last - first).max(1)
                ),
            ));
        }
        Ok(format!("{plain}/{step}"))
    }

    /// A value, or a range of two, with names replaced.
    fn read_range(&self, item: &str) -> Result<String, Wrong> {
        let Some((from, to)) = item.split_once('-') else {
            return Ok(self.read_value(item)?.to_string());
        };
        let first = self.read_value(from)?;
        let mut last = self.read_value(to)?;
        // A week that ends on Sunday: 5-7, not 5-0.
        if self.name == DAY_OF_WEEK && last == 0 && first > 0 {
            last = 7;
        }
        if first > last {
            return Err(wrong(
                format!("the range `{item}` runs backwards"),
                format!("split it: `{from}-{},{}-{to}`", self.max, self.min),
            ));
        }
        Ok(format!("{first}-{last}"))
    }

    fn read_value(&self, text: &str) -> Result<u16, Wrong> {
        if let Some(place) = self.names.iter().position(|name| *name == text) {
            // The longest list of names has twelve entries.
            return Ok(self.first_named + u16::try_from(place).unwrap_or(self.max));
        }
        let allowed = self.allowed();
        match number(text) {
            Ok(value) if (self.min..=self.max).contains(&value) => Ok(value),
            Ok(_) | Err(NotANumber::TooLarge) => {
                Err(wrong(format!("{text} is out of range"), allowed))
            }
            Err(NotANumber::OtherSigns) => Err(wrong(
                format!("`{text}` is neither a number nor a name of this field"),
                allowed,
            )),
        }
    }

    fn allowed(&self) -> String {
        let names = match (self.names.first(), self.names.last()) {
            (Some(first), Some(last)) => format!(", a name from {first} to {last}"),
            _ => String::new(),
        };
        let last_day = if self.name == DAY_OF_MONTH {
            ", `L` for the month's last day"
        } else {
            ""
        };
        format!(
            "use {} to {}{names}{last_day}, a list, a range, a step or `*`, such as `{}`",
            self.min, self.max, self.example
        )
    }

    fn is_day(&self) -> bool {
        self.name == DAY_OF_MONTH || self.name == DAY_OF_WEEK
    }
}

fn wrong(problem: impl Into<String>, remedy: impl Into<String>) -> Wrong {
    Wrong {
        problem: problem.into(),
        remedy: remedy.into(),
    }
}

enum NotANumber {
    TooLarge,
    OtherSigns,
}

/// Digits only: `parse` alone would let `+5` pass.
fn number(text: &str) -> Result<u16, NotANumber> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NotANumber::OtherSigns);
    }
    text.parse().map_err(|_| NotANumber::TooLarge)
}

/// The ends of a range that [`Field::read_range`] has written.
fn bounds(plain: &str) -> (u16, u16) {
    let mut ends = plain.split('-').filter_map(|end| number(end).ok());
    let first = ends.next().unwrap_or(0);
    (first, ends.next().unwrap_or(first))
}
