//! Texts with places for values: `{table} holds {bytes:size}`.

use std::fmt;

use fettler_engine::Row;
use serde_json::Value;

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    /// Bytes, in the largest unit that leaves a number above 1.
    Size,
    /// Seconds, likewise.
    Time,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(String, Form),
}

/// A text with places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template(Vec<Part>);

/// As people read it, with the names of its places.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Value(name, _) => write!(f, "{{{name}}}"),
        })
    }
}

impl Template {
    /// Reads a text. `{{` is a brace.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            let end = rest
                .find('}')
                .filter(|_| brace == "{")
                .ok_or("a brace stands alone; write it twice where it is meant")?;
            let place = &rest[..end];
            rest = &rest[end + 1..];
            let (name, form) = match place.split_once(':') {
                None => (place, Form::Plain),
                Some((name, "size")) => (name, Form::Size),
                Some((name, "time")) => (name, Form::Time),
                Some((_, other)) => {
                    return Err(format!(
                        "{other:?} is no way to write a value; there are `size` and `time`"
                    ));
                }
            };
            if name.is_empty() {
                return Err("a place has no name".to_owned());
            }
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Value(name.to_owned(), form));
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    /// The names of its places.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Value(name, _) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The text with a line's values. What the line does not have is `?`.
    #[must_use]
    pub fn fill(&self, row: &Row) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Value(name, form) => written(row.get(name), *form),
            })
            .collect()
    }
}

fn written(value: Option<&Value>, form: Form) -> String {
    match (value, form) {
        (None | Some(Value::Null), _) => "?".to_owned(),
        (Some(Value::String(text)), _) => text.clone(),
        (Some(Value::Number(number)), Form::Plain) => number.to_string(),
        (Some(Value::Number(number)), Form::Size) => size(number.as_f64().unwrap_or(0.0)),
        (Some(Value::Number(number)), Form::Time) => time(number.as_f64().unwrap_or(0.0)),
        (Some(other), _) => other.to_string(),
    }
}

/// Bytes as people write them, in powers of 1024.
fn size(bytes: f64) -> String {
    let mut number = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if number.abs() < 1024.0 {
            return in_unit(number, unit);
        }
        number /= 1024.0;
    }
    in_unit(number, "TiB")
}

/// Seconds as people write them.
fn time(seconds: f64) -> String {
    match seconds {
        below if below < 120.0 => in_unit(below, "s"),
        below if below < 7200.0 => in_unit(below / 60.0, "min"),
        below if below < 172_800.0 => in_unit(below / 3600.0, "h"),
        more => in_unit(more / 86_400.0, "days"),
    }
}

fn in_unit(number: f64, unit: &str) -> String {
    if number.fract().abs() < 0.05 || number >= 100.0 {
        format!("{number:.0} {unit}")
    } else {
        format!("{number:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_are_filled_and_what_is_not_there_is_a_question_mark() {
        let text = Template::read("{t}: {n:size} after {s:time}, {u}, {{n}}, {missing}").unwrap();
        let row = json!({"t": "public.t", "n": 1_610_612_736_u64, "s": 5400, "u": u64::MAX});
        assert_eq!(
            text.fill(row.as_object().unwrap()),
            "public.t: 1.5 GiB after 90 min, 18446744073709551615, {n}, ?"
        );
        assert_eq!(text.names().count(), 5);
    }

    #[test]
    fn a_brace_that_stands_alone_and_an_unknown_form_are_refused() {
        for wrong in ["{a", "a}", "{}", "{a:b}"] {
            assert!(Template::read(wrong).is_err(), "{wrong}");
        }
    }
}
