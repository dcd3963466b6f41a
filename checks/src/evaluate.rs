//! From answers to findings.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fettler_engine::{Answer, Answers, Question, Refusal, Row};
use fettler_model::{Area, Dimension, Engine, Finding, Fix, Severity, Status};
use serde_json::{Value, json};

use crate::{Beside, Check, Heading, Source, Template};

/// What is known of a database when its checks are judged.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What the server answered, or why it could not be asked.
    pub server: Result<Answers, String>,
    /// What the ledger knows of the database's backups, or why nothing can be said of them.
    pub ledger: Result<Row, String>,
}

/// What a check came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was made, and found nothing.
    Passed,
    /// What it found.
    Found(Vec<Finding>),
    /// It could not be made.
    NotEvaluable(String),
    /// The server's version has nothing that it could look at.
    NotApplicable,
}

/// What all checks came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// A line for each check: its id, where it stands, its outcome.
    pub checks: Vec<(String, Heading, Outcome)>,
    /// Checks that have seen everything that they look at: what one of them found before and does not now is gone. Those that
    /// could not be made, and those whose lines were cut, say nothing of what they have not found.
    pub conclusive: BTreeSet<String>,
}

/// What the server is to be asked for these checks.
#[must_use]
pub fn questions(checks: &[&Check]) -> Vec<Question> {
    checks
        .iter()
        .flat_map(|check| {
            check
                .variants
                .iter()
                .enumerate()
                .map(|(at, variant)| Question {
                    id: question_id(check, at),
                    versions: variant.versions,
                    needs: check.needs.clone(),
                    text: variant.question.trim().to_owned(),
                    timeout: Duration::from_secs(check.timeout_seconds),
                })
        })
        .collect()
}

fn question_id(check: &Check, variant: usize) -> String {
    format!("{}#{variant}", check.id)
}

/// The check that stands for the server's answering at all. It is no file, since there is nothing to ask.
pub(crate) fn reachable(engine: Engine) -> String {
    format!("{engine}.reachable")
}

/// Judges checks of one engine's health.
#[must_use]
pub fn evaluate(engine: Engine, checks: &[&Check], seen: &Seen) -> Evaluation {
    let mut evaluation = judge(checks, seen, None);
    evaluation.conclusive.insert(reachable(engine));
    let reached = match &seen.server {
        Ok(_) => Outcome::Passed,
        Err(why) => Outcome::Found(vec![not_reached(engine, why)]),
    };
    let line = (
        reachable(engine),
        Heading::Health(Dimension::Connectivity),
        reached,
    );
    evaluation.checks.insert(0, line);
    evaluation
}

/// Judges checks. What only an audit knows stands in `beside`.
pub(crate) fn judge(checks: &[&Check], seen: &Seen, beside: Option<&Beside>) -> Evaluation {
    let answers: BTreeMap<&str, &Answer> = match &seen.server {
        Ok(answers) => answers
            .answers
            .iter()
            .map(|answer| (answer.id.as_str(), answer))
            .collect(),
        Err(_) => BTreeMap::new(),
    };
    let mut conclusive = BTreeSet::new();
    let mut outcomes = Vec::with_capacity(checks.len());
    for check in checks {
        let (outcome, whole) = outcome(check, seen, &answers, beside);
        if whole && !matches!(outcome, Outcome::NotEvaluable(_)) {
            conclusive.insert(check.id.clone());
        }
        outcomes.push((check.id.clone(), check.heading, outcome));
    }
    Evaluation {
        checks: outcomes,
        conclusive,
    }
}

impl Evaluation {
    /// All findings, the gravest first; with those checks that could not be made, as such.
    #[must_use]
    pub fn findings(&self, checks: &[&Check]) -> Vec<Finding> {
        let mut findings: Vec<Finding> = Vec::new();
        for (id, _, outcome) in &self.checks {
            match outcome {
                Outcome::Found(found) => findings.extend(found.iter().cloned()),
                Outcome::NotEvaluable(because) => {
                    if let Some(check) = checks.iter().find(|check| check.id == *id) {
                        findings.push(not_evaluable(check, because));
                    }
                }
                Outcome::Passed | Outcome::NotApplicable => {}
            }
        }
        findings.sort_by(|a, b| {
            let rank =
                |one: &Finding| (one.status != Status::Open, std::cmp::Reverse(one.severity));
            rank(a).cmp(&rank(b)).then_with(|| a.key.cmp(&b.key))
        });
        findings
    }
}

fn outcome(
    check: &Check,
    seen: &Seen,
    answers: &BTreeMap<&str, &Answer>,
    beside: Option<&Beside>,
) -> (Outcome, bool) {
    match (check.source, &seen.server, &seen.ledger) {
        (Source::Server | Source::Connection, Err(why), _) => (
            Outcome::NotEvaluable(format!("the server could not be asked: {why}")),
            false,
        ),
        (Source::Connection, Ok(answers), _) => of_rows(check, &[connection(answers)], true),
        (Source::Ledger, _, Ok(row)) => of_rows(check, std::slice::from_ref(row), true),
        (Source::Ledger, _, Err(why)) => (Outcome::NotEvaluable(why.clone()), false),
        (Source::Release, ..) => match beside.map(|beside| &beside.release) {
            Some(Ok(row)) => of_rows(check, std::slice::from_ref(row), true),
            Some(Err(why)) => (Outcome::NotEvaluable(why.clone()), false),
            None => (Outcome::NotEvaluable(OF_AUDITS.to_owned()), false),
        },
        (Source::Vulnerabilities, ..) => match beside.map(|beside| &beside.vulnerabilities) {
            Some(Ok(rows)) => of_rows(check, rows, true),
            Some(Err(why)) => (Outcome::NotEvaluable(why.clone()), false),
            None => (Outcome::NotEvaluable(OF_AUDITS.to_owned()), false),
        },
        (Source::Server, Ok(_), _) => {
            for at in 0..check.variants.len() {
                let Some(answer) = answers.get(question_id(check, at).as_str()) else {
                    return (
                        Outcome::NotEvaluable("the question was not asked".to_owned()),
                        false,
                    );
                };
                match &answer.rows {
                    Err(Refusal::OtherVersion) => {}
                    Err(refusal) => {
                        let why = match (beside.and_then(|beside| beside.service), &check.managed) {
                            (Some(service), Some(instead)) => {
                                format!("{service} hides it: {instead}")
                            }
                            _ => refusal.to_string(),
                        };
                        return (Outcome::NotEvaluable(why), false);
                    }
                    Ok(rows) => return of_rows(check, rows, !answer.truncated),
                }
            }
            (Outcome::NotApplicable, true)
        }
    }
}

/// Why a check of releases cannot be made by a look at the health.
const OF_AUDITS: &str = "the list of releases is read by audits only";

/// The line that a check of the connection judges.
fn connection(answers: &Answers) -> Row {
    let milliseconds = |time: Duration| json!((time.as_secs_f64() * 10_000.0).round() / 10.0);
    Row::from_iter([
        (
            "connected_in_milliseconds".to_owned(),
            milliseconds(answers.connected_in),
        ),
        (
            "answered_in_milliseconds".to_owned(),
            milliseconds(answers.answered_in),
        ),
    ])
}

/// What stands for the object in the key of a check that could not be made.
pub(crate) const NOT_EVALUABLE: &str = "not_evaluable";

/// The column by which a question says that something was hidden from it, in words.
const HIDDEN: &str = "not_evaluable";

/// What lines come to, and whether nothing was hidden.
fn of_rows(check: &Check, rows: &[Row], whole: bool) -> (Outcome, bool) {
    let (hidden, shown): (Vec<&Row>, Vec<&Row>) = rows
        .iter()
        .partition(|row| row.get(HIDDEN).is_some_and(Value::is_string));
    let hidden = hidden
        .first()
        .and_then(|row| row.get(HIDDEN))
        .and_then(Value::as_str);
    match (of_shown(check, &shown), hidden) {
        // What was seen counts, whatever else is hidden.
        (Outcome::Passed, Some(because)) => (Outcome::NotEvaluable(because.to_owned()), false),
        (outcome, hidden) => (outcome, whole && hidden.is_none()),
    }
}

fn of_shown(check: &Check, rows: &[&Row]) -> Outcome {
    let mut found: BTreeMap<String, Finding> = BTreeMap::new();
    for row in rows {
        match finding(check, row) {
            Ok(None) => {}
            // One object has one finding of a check: the gravest.
            Ok(Some(finding)) => match found.get(&finding.key) {
                Some(known) if known.severity >= finding.severity => {}
                _ => {
                    found.insert(finding.key.clone(), finding);
                }
            },
            // One line that cannot be judged is enough for nothing to have passed.
            Err(because) => return Outcome::NotEvaluable(because),
        }
    }
    if found.is_empty() {
        Outcome::Passed
    } else {
        Outcome::Found(found.into_values().collect())
    }
}

fn finding(check: &Check, row: &Row) -> Result<Option<Finding>, String> {
    if !check.when.holds(row).map_err(|error| error.to_string())? {
        return Ok(None);
    }
    let mut severity = check.severity;
    for (when, graver) in &check.graver {
        if when.holds(row).map_err(|error| error.to_string())? {
            severity = *graver;
            break;
        }
    }
    let object = check.object.fill(row);
    let evidence = if check.evidence.is_empty() {
        row.iter()
            .filter(|(name, _)| *name != HIDDEN)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    } else {
        check
            .evidence
            .iter()
            .map(|name| (name.clone(), row.get(name).cloned().unwrap_or(Value::Null)))
            .collect()
    };
    Ok(Some(Finding {
        key: Finding::key_of(&check.id, &object),
        check: check.id.clone(),
        engine: check.engine,
        area: check.area,
        dimension: check.heading.dimension(),
        severity,
        title: check.title.fill(row),
        object,
        evidence,
        why: check.why.clone(),
        fix: check.fix(row),
        references: check.references.clone(),
        status: Status::Open,
    }))
}

fn not_evaluable(check: &Check, because: &str) -> Finding {
    Finding {
        // Beside the key of what the check finds: that it cannot be made says nothing of what it found before.
        key: Finding::key_of(&check.id, NOT_EVALUABLE),
        check: check.id.clone(),
        engine: check.engine,
        area: check.area,
        dimension: check.heading.dimension(),
        severity: Severity::Info,
        object: String::new(),
        title: format!("{} could not be looked at", check.id),
        evidence: Row::new(),
        why: check.why.clone(),
        fix: Fix {
            text: "Give the role that Fettler logs in as the right to see it, where that is what is missing.".to_owned(),
            commands: Vec::new(),
        },
        references: check.references.clone(),
        status: Status::NotEvaluable {
            because: because.to_owned(),
        },
    }
}

fn not_reached(engine: Engine, why: &str) -> Finding {
    let check = reachable(engine);
    Finding {
        key: check.clone(),
        check,
        engine,
        area: Area::Health,
        dimension: Some(Dimension::Connectivity),
        severity: Severity::Critical,
        object: String::new(),
        title: "The database does not let Fettler in".to_owned(),
        evidence: Row::from_iter([("answer".to_owned(), json!(why))]),
        why: "Whoever else uses it may be kept out for the same reason, and nothing else about it can be told."
            .to_owned(),
        fix: Fix {
            text: "See that the server runs, that host and port are right, and that the user may log in."
                .to_owned(),
            commands: Vec::new(),
        },
        references: Vec::new(),
        status: Status::Open,
    }
}

/// What a check makes of its own examples: the lines that do not do what they are there for.
///
/// # Errors
///
/// Each line that should fire and does not, or the other way round, or cannot be judged.
pub fn outcome_of_example(check: &Check) -> Result<(), Vec<String>> {
    let mut wrong = Vec::new();
    let lines = [
        ("fires", &check.examples.fires, true),
        ("passes", &check.examples.passes, false),
    ];
    for (list, rows, fires) in lines {
        for (at, row) in rows.iter().enumerate() {
            match finding(check, row) {
                Err(error) => wrong.push(format!("examples.{list}[{at}]: {error}")),
                Ok(found) if found.is_some() != fires => wrong.push(format!(
                    "examples.{list}[{at}]: the line {}",
                    if fires {
                        "is no finding"
                    } else {
                        "is a finding"
                    }
                )),
                Ok(Some(_)) => {
                    let unknown = [&check.title, &check.object, &check.fix_text]
                        .into_iter()
                        .chain(&check.fix_commands)
                        .flat_map(Template::names)
                        .find(|name| row.get(*name).is_none_or(Value::is_null));
                    if let Some(name) = unknown {
                        wrong.push(format!("examples.{list}[{at}]: a text names {name:?}, which the line does not have"));
                    }
                }
                Ok(None) => {}
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Level, Library, read_check};

    const AGE: &str = "
id: postgres.age
engine: postgres
dimension: integrity
severity: medium
question: SELECT 1
when: row.age > 10
graver: [{when: row.age > 100, severity: critical}]
object: '{name}'
title: '{name} is {age} old'
why: It is old.
fix: {text: 'Make it young.', commands: ['VACUUM {name}']}
examples:
  fires: [{name: a, age: 11}]
  passes: [{name: a, age: 1}]
";

    fn judged(rows: Result<Vec<Row>, Refusal>) -> Outcome {
        let check = read_check("x", AGE).unwrap();
        let id = questions(&[&check])[0].id.clone();
        let answer = match rows {
            Ok(rows) => Answer::of(id, rows),
            Err(refusal) => Answer::refused(id, refusal),
        };
        let seen = Seen {
            server: Ok(Answers {
                version: "18".to_owned(),
                connected_in: Duration::ZERO,
                answered_in: Duration::ZERO,
                answers: vec![answer],
            }),
            ledger: Err("no ledger".to_owned()),
        };
        evaluate(Engine::Postgres, &[&check], &seen).checks[1]
            .2
            .clone()
    }

    fn row(value: &Value) -> Row {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn each_line_that_the_expression_takes_is_a_finding_as_grave_as_it_is() {
        let Outcome::Found(found) = judged(Ok(vec![
            row(&json!({"name": "a", "age": 11})),
            row(&json!({"name": "b", "age": 9})),
            row(&json!({"name": "c", "age": 101})),
        ])) else {
            panic!("two are found");
        };
        let told: Vec<(&str, Severity, &str)> = found
            .iter()
            .map(|one| (one.key.as_str(), one.severity, one.title.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                ("postgres.age:a", Severity::Medium, "a is 11 old"),
                ("postgres.age:c", Severity::Critical, "c is 101 old"),
            ]
        );
        assert_eq!(found[1].fix.commands, ["VACUUM c"]);
    }

    #[test]
    fn what_may_not_be_asked_or_cannot_be_judged_never_passes() {
        for refused in [
            Err(Refusal::Permission("pg_monitor".to_owned())),
            Err(Refusal::TimedOut(4)),
            Ok(vec![row(&json!({"name": "a", "age": null}))]),
            Ok(vec![row(&json!({"name": "a"}))]),
        ] {
            assert!(matches!(judged(refused), Outcome::NotEvaluable(_)));
        }
        assert_eq!(judged(Err(Refusal::OtherVersion)), Outcome::NotApplicable);
        assert_eq!(judged(Ok(Vec::new())), Outcome::Passed);
    }

    #[test]
    fn the_checks_that_ship_do_what_their_examples_say() {
        let library = Library::shipped();
        for check in library.iter() {
            assert_eq!(outcome_of_example(check), Ok(()), "{}", check.id);
            let named = check.evidence.iter().map(String::as_str);
            for name in named.chain(check.title.names()).chain(check.object.names()) {
                assert!(
                    check.examples.fires[0].contains_key(name),
                    "{}: the example has no {name}",
                    check.id
                );
            }
        }
    }

    #[test]
    fn postgres_has_25_checks_and_each_other_engine_has_12() {
        let library = Library::shipped();
        for (engine, least) in [
            (Engine::Postgres, 25),
            (Engine::Sqlite, 12),
            (Engine::Redis, 12),
            (Engine::Mongodb, 12),
            (Engine::Clickhouse, 12),
            (Engine::Elasticsearch, 12),
        ] {
            let count = library.of(engine, Level::Full).len();
            assert!(count >= least, "{engine} has {count}");
        }
    }
}
