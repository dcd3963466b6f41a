//! SARIF 2.1.0 (OASIS). A finding is a result about a logical place, a database's object; there are no files.

use std::collections::BTreeMap;

use fettler_model::{Severity, Status};
use serde_json::{Value, json};

use super::Listed;

/// The log, with one run.
pub(super) fn log(findings: &[Listed], version: &str) -> Value {
    let mut rules: BTreeMap<&str, Value> = BTreeMap::new();
    for listed in findings {
        let finding = &listed.finding;
        rules.entry(&finding.check).or_insert_with(|| {
            json!({
                "id": finding.check,
                "fullDescription": {"text": finding.why},
                "help": {"text": finding.fix.text},
                "properties": {"area": finding.area, "engine": finding.engine},
            })
        });
    }
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "Fettler",
                "semanticVersion": version,
                "rules": rules.into_values().collect::<Vec<_>>(),
            }},
            "results": findings.iter().map(result).collect::<Vec<_>>(),
        }],
    })
}

fn result(listed: &Listed) -> Value {
    let finding = &listed.finding;
    // `open` is SARIF's word for what could not be decided.
    let (kind, level) = match &finding.status {
        Status::NotEvaluable { .. } => ("open", "none"),
        Status::Resolved => ("pass", "none"),
        Status::Open | Status::Suppressed { .. } => ("fail", level(finding.severity)),
    };
    let mut result = json!({
        "ruleId": finding.check,
        "kind": kind,
        "level": level,
        "message": {"text": finding.title},
        "locations": [{"logicalLocations": [{
            "name": if finding.object.is_empty() { &listed.database } else { &finding.object },
            "fullyQualifiedName": format!("{}/{}", listed.database, finding.object),
            "kind": "resource",
        }]}],
        "partialFingerprints": {"fettler/v1": format!("{}/{}", listed.database, finding.key)},
        "properties": {
            "severity": finding.severity,
            "status": super::told(&finding.status),
            "evidence": finding.evidence,
            "opened": listed.opened,
        },
    });
    if let Status::Suppressed { because, .. } = &finding.status {
        result["suppressions"] = json!([{"kind": "external", "justification": because}]);
    }
    result
}

const fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Info | Severity::Low => "note",
        Severity::Medium => "warning",
        Severity::High | Severity::Critical => "error",
    }
}
