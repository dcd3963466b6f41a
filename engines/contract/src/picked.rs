//! How an answer that is a tree (JSON, or what can be written as such) becomes lines of named values: the part that questions
//! to engines without a query language of tables share.
//!
//! A question is one or more requests, each a line that the engine knows as one, with lines below it that say what to take:
//!
//! ```text
//! GET /_nodes/stats/breaker
//! each /nodes/*/breakers/*
//! node: /nodes/{1}/name
//! breaker: {2}
//! tripped: tripped | 0
//! ```
//!
//! - `each POINTER`: a line for each place that the pointer meets, where `*` is any name or position. What stands before the first
//!   `*` must be there: an answer without it has hidden something, and is no empty list. `any POINTER` takes its absence for
//!   an empty list, and `first N POINTER` takes the first N places of a list that the request has put in order. One request of a
//!   question has one of them at most; without, the answer is one line.
//! - `where POINTER`: the server has what is asked about only where this is there; elsewhere there is nothing to ask of.
//! - `NAME: VALUE`: a pointer from the place (`jvm/mem/heap`) or from the answer's root (`/nodes/{1}/name`), in which `{1}` is
//!   what the first `*` met, or `{1}` alone. `A | B` is the first that is there, and a number or a text in `'` stands for
//!   itself. `number(…)` reads a text as a number, `count(…)` counts what a pointer with `*` meets, `sum(…)` adds it up, and
//!   `thousandth(…)` and `billionth(…)` make seconds of smaller units.
//! - A request without such lines gives the plain values that stand at its places.
//!
//! What requests without `each` give stands in every line. Names with blanks are written with `_` in their stead.

use serde_json::{Map, Value, json};

use crate::{Refusal, Row};

/// A request of a question, and what is taken of its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Picked {
    /// The request, as it stands in the question.
    pub request: String,
    only_where: Option<Pointer>,
    each: Option<Each>,
    values: Vec<(String, Vec<Term>)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Each {
    pointer: Pointer,
    may_be_absent: bool,
    most: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum Term {
    At(Pointer),
    Literal(Value),
    Number(Pointer),
    Count(Pointer),
    Sum(Pointer),
    Divided(Pointer, f64),
}

#[derive(Clone, Debug, PartialEq)]
struct Pointer {
    from_root: bool,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Name(String),
    Any,
    /// What a `*` of the place met, by its number from 0.
    Met(usize),
}

/// A place in an answer, and what its `*` met on the way.
struct Place<'a> {
    value: &'a Value,
    met: Vec<String>,
}

impl Pointer {
    /// The steps of a pointer are parted by `/`; `~1` is a `/` in a name, and `~0` a `~`, as in RFC 6901.
    fn read(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let is_whole = text.matches('(').count() == text.matches(')').count();
        if text.is_empty() || text.contains(char::is_whitespace) || !is_whole {
            return Err(format!(
                "{text:?} is no pointer; write names with `/` between them"
            ));
        }
        let (from_root, rest) = match text.strip_prefix('/') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let steps = rest
            .split('/')
            .filter(|step| !step.is_empty())
            .map(|step| match step {
                "*" => Ok(Step::Any),
                met if met.starts_with('{') => met
                    .strip_prefix('{')
                    .and_then(|met| met.strip_suffix('}'))
                    .and_then(|met| met.parse::<usize>().ok())
                    .and_then(|met| met.checked_sub(1))
                    .map(Step::Met)
                    .ok_or_else(|| format!("{met:?} names no `*`; write `{{1}}` for the first")),
                name => Ok(Step::Name(name.replace("~1", "/").replace("~0", "~"))),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { from_root, steps })
    }

    /// Whether all of the way up to the first `*` is there.
    fn begins_in(&self, root: &Value) -> bool {
        let mut value = root;
        for step in &self.steps {
            let Step::Name(name) = step else { break };
            let Some(next) = child(value, name) else {
                return false;
            };
            value = next;
        }
        true
    }

    /// All places that it meets.
    fn meets<'a>(&self, root: &'a Value, place: &Place<'a>) -> Vec<Place<'a>> {
        let mut places = vec![Place {
            value: if self.from_root { root } else { place.value },
            met: Vec::new(),
        }];
        for step in &self.steps {
            places = places
                .into_iter()
                .flat_map(|at| -> Vec<Place<'a>> {
                    let to = |value: Option<&'a Value>| {
                        value
                            .map(|value| Place {
                                value,
                                met: at.met.clone(),
                            })
                            .into_iter()
                            .collect()
                    };
                    match step {
                        Step::Name(name) => to(child(at.value, name)),
                        Step::Met(number) => to(place
                            .met
                            .get(*number)
                            .and_then(|name| child(at.value, name))),
                        Step::Any => children(at.value)
                            .into_iter()
                            .map(|(name, value)| Place {
                                value,
                                met: at.met.iter().cloned().chain([name]).collect(),
                            })
                            .collect(),
                    }
                })
                .collect();
        }
        places
    }
}

fn child<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => fields.get(name).or_else(|| {
            name.contains('_')
                .then(|| {
                    fields
                        .iter()
                        .find(|(known, _)| known.replace(' ', "_") == name)
                })
                .flatten()
                .map(|(_, value)| value)
        }),
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        _ => None,
    }
}

fn children(value: &Value) -> Vec<(String, &Value)> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), value))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(at, value)| (at.to_string(), value))
            .collect(),
        _ => Vec::new(),
    }
}

impl Term {
    fn read(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let within = |name: &str| {
            text.strip_prefix(name)?
                .strip_prefix('(')?
                .strip_suffix(')')
        };
        if let Some(literal) = text
            .strip_prefix('\'')
            .and_then(|text| text.strip_suffix('\''))
        {
            return Ok(Self::Literal(json!(literal)));
        }
        if let Ok(number) = text.parse::<i64>() {
            return Ok(Self::Literal(json!(number)));
        }
        if let Some(pointer) = within("number") {
            return Pointer::read(pointer).map(Self::Number);
        }
        if let Some(pointer) = within("count") {
            return Pointer::read(pointer).map(Self::Count);
        }
        if let Some(pointer) = within("sum") {
            return Pointer::read(pointer).map(Self::Sum);
        }
        for (name, by) in [("thousandth", 1e3), ("billionth", 1e9)] {
            if let Some(pointer) = within(name) {
                return Ok(Self::Divided(Pointer::read(pointer)?, by));
            }
        }
        Pointer::read(text).map(Self::At)
    }

    fn value(&self, root: &Value, place: &Place<'_>) -> Option<Value> {
        match self {
            Self::Literal(value) => Some(value.clone()),
            Self::At(pointer) => match pointer.steps.as_slice() {
                // The name itself, and not what lies below it.
                [Step::Met(number)] if !pointer.from_root => {
                    place.met.get(*number).map(|name| json!(name))
                }
                _ => first(pointer, root, place),
            },
            Self::Number(pointer) => {
                first(pointer, root, place).and_then(|value| as_number(&value))
            }
            Self::Divided(pointer, by) => first(pointer, root, place)
                .and_then(|value| as_number(&value)?.as_f64())
                .map(|number| json!((number / by).round() as i64)),
            Self::Count(pointer) => Some(json!(pointer.meets(root, place).len())),
            Self::Sum(pointer) => sum(pointer.meets(root, place).into_iter().map(|at| at.value)),
        }
        .filter(|value| !value.is_null())
    }
}

fn first(pointer: &Pointer, root: &Value, place: &Place<'_>) -> Option<Value> {
    pointer
        .meets(root, place)
        .into_iter()
        .next()
        .map(|at| at.value.clone())
}

fn as_number(value: &Value) -> Option<Value> {
    match value {
        Value::Number(_) => Some(value.clone()),
        Value::String(text) => {
            let text = text.trim();
            text.parse::<i64>()
                .map(|number| json!(number))
                .or_else(|_| text.parse::<f64>().map(|number| json!(number)))
                .ok()
        }
        _ => None,
    }
}

/// A sum of whole numbers is whole. What is no number makes none.
fn sum<'a>(values: impl Iterator<Item = &'a Value>) -> Option<Value> {
    let (mut whole, mut broken, mut is_whole) = (0_i64, 0.0, true);
    for value in values {
        match value.as_i64() {
            Some(number) => whole = whole.saturating_add(number),
            None => {
                broken += value.as_f64()?;
                is_whole = false;
            }
        }
    }
    Some(if is_whole {
        json!(whole)
    } else {
        json!(whole as f64 + broken)
    })
}

impl Each {
    /// A line that says of what a request gives lines; nothing for another line.
    fn read(line: &str) -> Result<Option<Self>, String> {
        let Some((word, rest)) = line.split_once(' ') else {
            return Ok(None);
        };
        let (pointer, may_be_absent, most) = match word {
            "each" => (rest, false, usize::MAX),
            "any" => (rest, true, usize::MAX),
            "first" => {
                let (most, pointer) = rest
                    .split_once(' ')
                    .and_then(|(most, pointer)| Some((most.parse().ok()?, pointer)))
                    .ok_or_else(|| format!("{line:?}: write `first 100 /list/*`"))?;
                (pointer, false, most)
            }
            _ => return Ok(None),
        };
        Ok(Some(Self {
            pointer: Pointer::read(pointer)?,
            may_be_absent,
            most,
        }))
    }
}

impl Picked {
    /// Takes a question apart. `is_request` knows the lines that are requests.
    ///
    /// # Errors
    ///
    /// Which line is wrong, in words.
    pub fn read(text: &str, is_request: impl Fn(&str) -> bool) -> Result<Vec<Self>, String> {
        let mut all: Vec<Self> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if is_request(line) {
                all.push(Self {
                    request: line.to_owned(),
                    only_where: None,
                    each: None,
                    values: Vec::new(),
                });
                continue;
            }
            let last = all
                .last_mut()
                .ok_or_else(|| format!("{line:?} is no request, and a question begins with one"))?;
            if let Some(each) = Each::read(line)? {
                if last.each.is_some() {
                    return Err(format!("{line:?}: a request has one list"));
                }
                last.each = Some(each);
            } else if let Some(pointer) = line.strip_prefix("where ") {
                last.only_where = Some(Pointer::read(pointer)?);
            } else {
                let (name, terms) = line.split_once(": ").ok_or_else(|| {
                    format!("{line:?} is neither a request nor `name: pointer` nor `each pointer`")
                })?;
                let terms = terms
                    .split(" | ")
                    .map(Term::read)
                    .collect::<Result<_, _>>()?;
                last.values.push((name.trim().to_owned(), terms));
            }
        }
        if all.is_empty() {
            return Err("there is no request in it".to_owned());
        }
        if all.iter().filter(|one| one.each.is_some()).count() > 1 {
            return Err("one request of a question gives its lines, not several".to_owned());
        }
        Ok(all)
    }

    /// The lines of a question whose requests were answered so.
    ///
    /// # Errors
    ///
    /// [`Refusal::OtherVersion`] where there is nothing to ask of, [`Refusal::Failed`] where a list is not in its answer.
    pub fn rows(asked: &[(Self, Value)]) -> Result<Vec<Row>, Refusal> {
        let mut shared = Row::new();
        let mut lines: Option<Vec<Row>> = None;
        for (picked, answer) in asked {
            let root = Place {
                value: answer,
                met: Vec::new(),
            };
            if let Some(pointer) = &picked.only_where
                && !pointer.begins_in(answer)
            {
                return Err(Refusal::OtherVersion);
            }
            match &picked.each {
                None => shared.extend(picked.taken(answer, &root)),
                Some(each) => {
                    if !each.may_be_absent && !each.pointer.begins_in(answer) {
                        return Err(Refusal::Failed(format!(
                            "the answer to `{}` does not hold what it should",
                            picked.request
                        )));
                    }
                    lines = Some(
                        each.pointer
                            .meets(answer, &root)
                            .iter()
                            .take(each.most)
                            .map(|place| picked.taken(answer, place))
                            .collect(),
                    );
                }
            }
        }
        Ok(match lines {
            None => vec![shared],
            Some(lines) => lines
                .into_iter()
                .map(|line| shared.clone().into_iter().chain(line).collect())
                .collect(),
        })
    }

    fn taken(&self, root: &Value, place: &Place<'_>) -> Map<String, Value> {
        if self.values.is_empty() {
            return place
                .value
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(_, value)| !value.is_object() && !value.is_array())
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
        }
        self.values
            .iter()
            .map(|(name, terms)| {
                let value = terms
                    .iter()
                    .find_map(|term| term.value(root, place))
                    .unwrap_or(Value::Null);
                (name.clone(), value)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_request(line: &str) -> bool {
        line.starts_with("GET ")
    }

    fn rows(text: &str, answers: &[Value]) -> Result<Vec<Row>, Refusal> {
        let asked: Vec<(Picked, Value)> = Picked::read(text, is_request)
            .map_err(Refusal::Failed)?
            .into_iter()
            .zip(answers.iter().cloned())
            .collect();
        Picked::rows(&asked)
    }

    #[test]
    fn each_place_is_a_line_with_what_lies_above_and_beside_it() {
        let stats = json!({"nodes": {
            "n1": {"name": "a", "breakers": {"parent": {"tripped": 2}, "request": {"tripped": 0}}},
            "n2": {"name": "b", "breakers": {"parent": {}}},
        }});
        let limits = json!({"defaults": {"cluster.max": "1000"}, "list": [{"n": 1}, {"n": 2}]});
        let text = "GET /limits\nlimit: number(/transient/cluster.max | 0) ";
        assert!(rows(text, std::slice::from_ref(&limits)).is_err());
        let text = "
            GET /limits
            limit: number(/transient/cluster.max) | number(/defaults/cluster.max)
            lists: count(/list/*)
            sum: sum(/list/*/n)
            GET /stats
            each /nodes/*/breakers/*
            node: /nodes/{1}/name
            breaker: {2}
            tripped: tripped | 0
            kind: 'x'";
        let found = rows(text, &[limits, stats]).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(
            json!(found[0]),
            json!({"limit": 1000, "lists": 2, "sum": 3, "node": "a", "breaker": "parent", "tripped": 2, "kind": "x"})
        );
        assert_eq!(json!(found[2]["tripped"]), json!(0));
    }

    #[test]
    fn a_list_that_is_not_there_is_no_empty_one_unless_the_question_says_so() {
        assert!(rows("GET /a\neach /nodes/*", &[json!({})]).is_err());
        assert_eq!(rows("GET /a\nany /nodes/*", &[json!({})]), Ok(Vec::new()));
        let asked = "GET /a\nwhere /engine\nx: /engine/x";
        assert_eq!(rows(asked, &[json!({})]), Err(Refusal::OtherVersion));
        assert_eq!(
            rows(asked, &[json!({"engine": {"x": 1}})]).unwrap()[0]["x"],
            1
        );
        assert_eq!(
            rows("GET /a\neach /nodes/*", &[json!({"nodes": {}})]),
            Ok(Vec::new())
        );
    }

    #[test]
    fn what_is_missing_is_null_and_a_request_alone_gives_its_plain_values() {
        let found = rows("GET /a\nx: deep/er", &[json!({"deep": {}})]).unwrap();
        assert_eq!(json!(found), json!([{"x": null}]));
        let found = rows(
            "GET /a\nx: /most_recent_(ms)",
            &[json!({"most recent (ms)": 7})],
        )
        .unwrap();
        assert_eq!(json!(found), json!([{"x": 7}]));
        let list = json!([{"ms": 1500}, {"ms": 2}, {}]);
        let found = rows("GET /a\nfirst 2 /*\nseconds: thousandth(ms)", &[list]).unwrap();
        assert_eq!(json!(found), json!([{"seconds": 2}, {"seconds": 0}]));
        let found = rows("GET /a", &[json!({"status": "green", "n": 1, "list": []})]).unwrap();
        assert_eq!(json!(found), json!([{"status": "green", "n": 1}]));
    }

    #[test]
    fn a_line_that_is_neither_request_nor_value_is_told() {
        for wrong in [
            "",
            "x: y",
            "GET /a\nwhat is this",
            "GET /a\neach /a/*\neach /b/*",
            "GET /a\neach /a/*\nGET /b\neach /b/*",
            "GET /a\nx: {0}",
            "GET /a\nfirst /list/*",
        ] {
            assert!(Picked::read(wrong, is_request).is_err(), "{wrong:?}");
        }
    }
}
