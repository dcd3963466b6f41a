//! The report of an audit: every check with what came of it, since an auditor asks for what passed as well, and the findings.

use std::collections::BTreeSet;

use fettler_engine::Row;
use fettler_model::{Engine, Finding, Status, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Check, Evaluation, Group, Heading, Outcome, Releases, Seen, Service, evaluate::judge};

/// What an audit knows beside the server's answers.
#[derive(Clone, Debug)]
pub struct Beside {
    /// How old the server's release is, or why that cannot be said.
    pub release: Result<Row, String>,
    /// Its known vulnerabilities, likewise.
    pub vulnerabilities: Result<Vec<Row>, String>,
    /// The managed service that the server belongs to.
    pub service: Option<Service>,
}

impl Beside {
    /// What is known of a server of this version with these extensions. `today` is a day such as `2026-05-14`.
    #[must_use]
    pub fn of(
        releases: &Releases,
        engine: Engine,
        version: &str,
        extensions: Result<&[String], String>,
        service: Option<Service>,
        today: &str,
    ) -> Self {
        Self {
            release: releases.row(engine, version, today),
            vulnerabilities: extensions
                .and_then(|extensions| releases.open(engine, version, extensions, today)),
            service,
        }
    }
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was made, and found nothing.
    Passed,
    /// It found something.
    Found,
    /// It could not be made, which is no pass.
    NotEvaluable,
    /// The server's version has nothing that it could look at.
    NotApplicable,
}

/// A check of an audit, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckLine {
    /// The check.
    pub check: String,
    /// Where it stands.
    pub group: Group,
    /// What came of it.
    pub verdict: Verdict,
    /// Why it could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// A part of an audit, in numbers of checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupReport {
    /// Which part.
    pub group: Group,
    /// How many looked and found nothing.
    pub passed: u32,
    /// How many found something.
    pub found: u32,
    /// How many could not be made.
    pub not_evaluable: u32,
    /// How many have nothing to look at on this version.
    pub not_applicable: u32,
}

/// What was compared with what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DriftReport {
    /// When what it was compared with was seen; none where this audit is the first and keeps what it saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// How many changes were accepted by this audit.
    pub accepted: u64,
    /// How many differ.
    pub changes: u64,
}

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AuditReport {
    /// The database engine.
    pub engine: Engine,
    /// The server's version, as it writes it.
    pub version: String,
    /// The managed service that the server belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// What that service keeps to itself, and where it is said instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<String>,
    /// How long asking took.
    pub milliseconds: f64,
    /// The day up to which the list of releases knows.
    pub releases_as_of: String,
    /// The parts, in numbers.
    pub groups: Vec<GroupReport>,
    /// Every check, with what came of it.
    pub checks: Vec<CheckLine>,
    /// What was found, the gravest first; then what could not be looked at.
    pub findings: Vec<Finding>,
    /// What was compared with an earlier state.
    pub drift: DriftReport,
}

/// What all checks of an audit came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// Every check, with what came of it.
    pub lines: Vec<CheckLine>,
    /// What was found, and what could not be looked at.
    pub findings: Vec<Finding>,
    /// The checks that have seen everything that they look at.
    pub conclusive: BTreeSet<String>,
}

impl Judged {
    /// Adds what others found, and puts all in the order of a report.
    pub fn join(&mut self, other: Self) {
        self.lines.extend(other.lines);
        self.findings.extend(other.findings);
        self.conclusive.extend(other.conclusive);
        self.findings.sort_by(|a, b| {
            let rank =
                |one: &Finding| (one.status != Status::Open, std::cmp::Reverse(one.severity));
            rank(a).cmp(&rank(b)).then_with(|| a.key.cmp(&b.key))
        });
    }
}

/// Judges the checks of an audit.
#[must_use]
pub fn audit(checks: &[&Check], seen: &Seen, beside: &Beside) -> Judged {
    let evaluation: Evaluation = judge(checks, seen, Some(beside));
    let findings = evaluation.findings(checks);
    let lines = evaluation
        .checks
        .iter()
        .filter_map(|(check, heading, outcome)| match heading {
            Heading::Audit(group) => Some(line(check, *group, outcome)),
            Heading::Health(_) => None,
        })
        .collect();
    Judged {
        lines,
        findings,
        conclusive: evaluation.conclusive,
    }
}

fn line(check: &str, group: Group, outcome: &Outcome) -> CheckLine {
    let (verdict, because) = match outcome {
        Outcome::Passed => (Verdict::Passed, None),
        Outcome::Found(_) => (Verdict::Found, None),
        Outcome::NotEvaluable(because) => (Verdict::NotEvaluable, Some(because.clone())),
        Outcome::NotApplicable => (Verdict::NotApplicable, None),
    };
    CheckLine {
        check: check.to_owned(),
        group,
        verdict,
        because,
    }
}

/// The parts of an audit, in numbers.
#[must_use]
pub fn counts(lines: &[CheckLine]) -> Vec<GroupReport> {
    let count = |group: Group, verdict: Verdict| {
        let found = lines
            .iter()
            .filter(|line| line.group == group && line.verdict == verdict)
            .count();
        u32::try_from(found).unwrap_or(u32::MAX)
    };
    Group::ALL
        .into_iter()
        .filter(|group| lines.iter().any(|line| line.group == *group))
        .map(|group| GroupReport {
            group,
            passed: count(group, Verdict::Passed),
            found: count(group, Verdict::Found),
            not_evaluable: count(group, Verdict::NotEvaluable),
            not_applicable: count(group, Verdict::NotApplicable),
        })
        .collect()
}
