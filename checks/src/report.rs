//! The report of one look: what was found, and a score whose every point can be accounted for.

use std::collections::{BTreeMap, BTreeSet};

use fettler_model::{Dimension, Engine, Finding, Severity, Status};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Evaluation, Level, Outcome, evaluate::NOT_EVALUABLE};

/// How many points of the 100 each of the five dimensions has.
pub const POINTS_OF_A_DIMENSION: f64 = 20.0;

/// A line of the account: where points went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScoreLine {
    /// How many points were taken.
    pub points: f64,
    /// The finding, or the check that could not be made.
    pub key: String,
    /// Why, in words.
    pub why: String,
}

/// What one dimension has left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DimensionScore {
    /// Which.
    pub dimension: Dimension,
    /// Points of [`POINTS_OF_A_DIMENSION`].
    pub points: f64,
    /// Where the others went, the most first. Together they may be more than there were: nothing falls below 0.
    pub lines: Vec<ScoreLine>,
    /// How many checks looked and found nothing.
    pub passed: u32,
    /// How many found something.
    pub found: u32,
    /// How many could not be made.
    pub not_evaluable: u32,
    /// How many have nothing to look at on this version.
    pub not_applicable: u32,
}

/// The score of 100.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Score {
    /// The sum of the dimensions, rounded down: 100 is only what is whole.
    pub points: u32,
    /// The account.
    pub dimensions: Vec<DimensionScore>,
}

/// What a look at a database's health found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HealthReport {
    /// The database engine.
    pub engine: Engine,
    /// The server's version, as it writes it; empty where it could not be asked.
    pub version: String,
    /// Which checks were made.
    pub level: Level,
    /// How long asking took.
    pub milliseconds: f64,
    /// The score, with its account.
    pub score: Score,
    /// What was found, the gravest first; then what could not be looked at.
    pub findings: Vec<Finding>,
}

/// What a finding of this severity takes from its dimension.
const fn cost(severity: Severity) -> f64 {
    match severity {
        Severity::Info => 0.0,
        Severity::Low => 1.0,
        Severity::Medium => 4.0,
        Severity::High => 10.0,
        Severity::Critical => 20.0,
    }
}

/// Makes the account. A check takes points once, for the gravest of what it found, since ten tables with one cause are one
/// cause; one that could not be made takes its share of the dimension, as nobody knows what it would have found; what
/// somebody has set aside takes none.
#[must_use]
pub fn score(evaluation: &Evaluation, findings: &[Finding]) -> Score {
    let mut gravest: BTreeMap<&str, (&Finding, usize)> = BTreeMap::new();
    for finding in findings.iter().filter(|one| one.status == Status::Open) {
        let entry = gravest.entry(&finding.check).or_insert((finding, 0));
        entry.1 += 1;
        if finding.severity > entry.0.severity {
            entry.0 = finding;
        }
    }
    // Somebody knows that these cannot be made, and has said why that is well.
    let aside: BTreeSet<&str> = findings
        .iter()
        .filter(|one| {
            matches!(one.status, Status::Suppressed { .. })
                && one.key == Finding::key_of(&one.check, NOT_EVALUABLE)
        })
        .map(|one| one.check.as_str())
        .collect();
    let dimensions: Vec<DimensionScore> = Dimension::ALL
        .iter()
        .map(|dimension| of_dimension(*dimension, evaluation, &gravest, &aside))
        .collect();
    let dimensions = match gravest.values().find(|(one, _)| is_reachability(one)) {
        Some((unreached, _)) => unknown(dimensions, unreached),
        None => dimensions,
    };
    let sum: f64 = dimensions.iter().map(|one| one.points).sum();
    // A tenth of a tenth keeps what adds up to a whole from being rounded down for want of a bit.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it lies between 0 and 100"
    )]
    let points = (sum + 0.01).floor().clamp(0.0, 100.0) as u32;
    Score { points, dimensions }
}

/// Whether a finding says that the database does not let anybody in.
fn is_reachability(finding: &Finding) -> bool {
    finding.check == crate::evaluate::reachable(finding.engine)
}

/// The account of a database of which nothing is known, whatever the ledger says of its backups.
fn unknown(dimensions: Vec<DimensionScore>, unreached: &Finding) -> Vec<DimensionScore> {
    dimensions
        .into_iter()
        .map(|dimension| DimensionScore {
            points: 0.0,
            lines: vec![ScoreLine {
                points: POINTS_OF_A_DIMENSION,
                key: unreached.key.clone(),
                why: format!("{}: {}", unreached.severity, unreached.title),
            }],
            ..dimension
        })
        .collect()
}

fn of_dimension(
    dimension: Dimension,
    evaluation: &Evaluation,
    gravest: &BTreeMap<&str, (&Finding, usize)>,
    aside: &BTreeSet<&str>,
) -> DimensionScore {
    let of_it: Vec<_> = evaluation
        .checks
        .iter()
        .filter(|(_, heading, _)| heading.dimension() == Some(dimension))
        .collect();
    let applicable = of_it
        .iter()
        .filter(|(_, _, outcome)| *outcome != Outcome::NotApplicable)
        .count();
    let mut score = DimensionScore {
        dimension,
        points: POINTS_OF_A_DIMENSION,
        lines: Vec::new(),
        passed: 0,
        found: 0,
        not_evaluable: 0,
        not_applicable: 0,
    };
    for (id, _, outcome) in of_it {
        match outcome {
            Outcome::Passed => score.passed += 1,
            Outcome::NotApplicable => score.not_applicable += 1,
            Outcome::NotEvaluable(because) => {
                score.not_evaluable += 1;
                if aside.contains(id.as_str()) {
                    continue;
                }
                let share =
                    POINTS_OF_A_DIMENSION / f64::from(u32::try_from(applicable).unwrap_or(1));
                score.lines.push(ScoreLine {
                    points: (share * 10.0).round() / 10.0,
                    key: id.clone(),
                    why: format!("{id} could not be looked at: {because}"),
                });
            }
            Outcome::Found(_) => {
                score.found += 1;
                // All of it may have been set aside.
                let Some((finding, count)) = gravest.get(id.as_str()) else {
                    continue;
                };
                let points = cost(finding.severity);
                if points > 0.0 {
                    let others = match count {
                        1 => String::new(),
                        more => format!(" (and {} more)", more - 1),
                    };
                    score.lines.push(ScoreLine {
                        points,
                        key: finding.key.clone(),
                        why: format!("{}: {}{others}", finding.severity, finding.title),
                    });
                }
            }
        }
    }
    score.lines.sort_by(|a, b| {
        b.points
            .total_cmp(&a.points)
            .then_with(|| a.key.cmp(&b.key))
    });
    let lost: f64 = score.lines.iter().map(|line| line.points).sum();
    let left = (POINTS_OF_A_DIMENSION - lost).max(0.0);
    // A dimension of which nothing at all could be looked at is not half well for a share that was rounded.
    score.points = if lost > 0.0 && score.passed + score.found == 0 {
        0.0
    } else {
        (left * 10.0).round() / 10.0
    };
    score
}

#[cfg(test)]
mod tests {
    use fettler_model::{Area, Fix};

    use crate::Heading;

    use super::*;

    fn finding(check: &str, object: &str, severity: Severity) -> Finding {
        Finding {
            key: Finding::key_of(check, object),
            check: check.to_owned(),
            engine: Engine::Postgres,
            area: Area::Health,
            dimension: Some(Dimension::Resources),
            severity,
            object: object.to_owned(),
            title: "t".to_owned(),
            evidence: serde_json::Map::new(),
            why: String::new(),
            fix: Fix::default(),
            references: Vec::new(),
            status: Status::Open,
        }
    }

    fn of(checks: Vec<(&str, Outcome)>) -> Evaluation {
        Evaluation {
            checks: checks
                .into_iter()
                .map(|(id, outcome)| {
                    (
                        id.to_owned(),
                        Heading::Health(Dimension::Resources),
                        outcome,
                    )
                })
                .collect(),
            conclusive: BTreeSet::new(),
        }
    }

    #[test]
    fn every_point_that_is_not_there_has_a_line() {
        let two = vec![
            finding("a", "x", Severity::Medium),
            finding("a", "y", Severity::High),
        ];
        let evaluation = of(vec![
            ("a", Outcome::Found(two.clone())),
            ("b", Outcome::Passed),
            ("c", Outcome::NotEvaluable("no right".to_owned())),
            ("d", Outcome::Passed),
            ("e", Outcome::NotApplicable),
        ]);
        let score = score(&evaluation, &two);
        let resources = &score.dimensions[2];
        assert_eq!(resources.lines[0].points, 10.0);
        assert_eq!(resources.lines[0].key, "a:y");
        assert!(resources.lines[0].why.ends_with("(and 1 more)"));
        // One of the four that apply.
        assert_eq!(resources.lines[1].points, 5.0);
        assert_eq!(resources.points, 5.0);
        assert_eq!(score.points, 85);
    }

    #[test]
    fn what_was_set_aside_costs_nothing_and_what_was_not_looked_at_is_not_well() {
        let mut aside = finding("a", "", Severity::Critical);
        let found = of(vec![("a", Outcome::Found(vec![aside.clone()]))]);
        assert_eq!(score(&found, std::slice::from_ref(&aside)).points, 80);
        aside.status = Status::Suppressed {
            until: None,
            because: "known".to_owned(),
        };
        assert_eq!(score(&found, &[aside]).points, 100);
        let third = || Outcome::NotEvaluable("no".to_owned());
        let none = of(vec![("a", third()), ("b", third()), ("c", third())]);
        assert_eq!(score(&none, &[]).points, 80);
        let mut known = finding("a", "not_evaluable", Severity::Info);
        known.status = Status::Suppressed {
            until: None,
            because: "another tool does it".to_owned(),
        };
        let one = of(vec![("a", third()), ("b", Outcome::Passed)]);
        assert_eq!(score(&one, &[]).points, 90);
        assert_eq!(score(&one, &[known]).points, 100);
    }
}
