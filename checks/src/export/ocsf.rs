//! OCSF 1.3, Compliance Finding (class 2003 of category 2, Findings).

use fettler_model::{Severity, Status};
use serde_json::{Value, json};

use super::Listed;

const CATEGORY: u32 = 2;
const CLASS: u32 = 2003;
/// The version of the schema that the attributes are of.
const SCHEMA: &str = "1.3.0";

/// One event for each finding.
pub(super) fn events(findings: &[Listed], version: &str) -> Value {
    findings
        .iter()
        .map(|listed| event(listed, version))
        .collect()
}

fn event(listed: &Listed, version: &str) -> Value {
    let finding = &listed.finding;
    let milliseconds = |time: fettler_model::Timestamp| time.micros() / 1000;
    // 1 Create, 2 Update, 3 Close.
    let activity = match &finding.status {
        Status::Resolved => 3,
        _ if listed.opened == listed.seen => 1,
        _ => 2,
    };
    // 1 New, 3 Suppressed, 4 Resolved; 99 Other.
    let (status_id, status) = match &finding.status {
        Status::Open => (1, "New"),
        Status::Suppressed { .. } => (3, "Suppressed"),
        Status::Resolved => (4, "Resolved"),
        Status::NotEvaluable { .. } => (99, "Not evaluable"),
    };
    // 0 Unknown, 1 Pass, 3 Fail.
    let (compliance_id, compliance) = match &finding.status {
        Status::NotEvaluable { .. } => (0, "Unknown"),
        Status::Resolved => (1, "Pass"),
        Status::Open | Status::Suppressed { .. } => (3, "Fail"),
    };
    json!({
        "activity_id": activity,
        "category_uid": CATEGORY,
        "class_uid": CLASS,
        "type_uid": CLASS * 100 + activity,
        "time": milliseconds(listed.seen),
        "severity_id": severity_id(finding.severity),
        "severity": finding.severity,
        "status_id": status_id,
        "status": status,
        "status_detail": super::told(&finding.status),
        "message": finding.title,
        "metadata": {
            "version": SCHEMA,
            "product": {"name": "Fettler", "vendor_name": "Fettler", "version": version},
        },
        "finding_info": {
            "uid": format!("{}/{}", listed.database, finding.key),
            "title": finding.title,
            "desc": finding.why,
            "types": [finding.area],
            "created_time": milliseconds(listed.opened),
            "modified_time": milliseconds(listed.changed),
            "last_seen_time": milliseconds(listed.seen),
            "analytic": {"type_id": 1, "type": "Rule", "uid": finding.check},
        },
        "compliance": {
            "control": finding.check,
            "standards": standards(listed),
            "status_id": compliance_id,
            "status": compliance,
        },
        "remediation": {"desc": finding.fix.text, "references": finding.references},
        "resources": [{
            "name": listed.database,
            "type": format!("{} database", finding.engine),
            "uid": listed.database,
        }],
        "unmapped": {"evidence": finding.evidence, "object": finding.object},
    })
}

/// What the finding refers to; a standard must be named, so that our own rules are where there is no other.
fn standards(listed: &Listed) -> Vec<String> {
    if listed.finding.references.is_empty() {
        vec!["Fettler checks".to_owned()]
    } else {
        listed.finding.references.clone()
    }
}

const fn severity_id(severity: Severity) -> u32 {
    match severity {
        Severity::Info => 1,
        Severity::Low => 2,
        Severity::Medium => 3,
        Severity::High => 4,
        Severity::Critical => 5,
    }
}
