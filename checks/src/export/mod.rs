//! Findings in the forms that other tools read. Each form is a pure function of what is listed.

mod html;
mod junit;
mod ocsf;
mod sarif;

use fettler_model::{Finding, Status, Timestamp};
use serde::Serialize;
use serde_json::json;

/// A finding, and what it is about.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// The database's name.
    pub database: String,
    /// The finding with its status now.
    #[serde(flatten)]
    pub finding: Finding,
    /// When it was opened.
    pub opened: Timestamp,
    /// When it last changed.
    pub changed: Timestamp,
    /// When it was last seen.
    pub seen: Timestamp,
}

/// The forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As Fettler itself has them.
    Json,
    /// The Open Cybersecurity Schema Framework: an array of Compliance Findings (class 2003).
    Ocsf,
    /// The Static Analysis Results Interchange Format 2.1.0.
    Sarif,
    /// JUnit XML: a suite for each database, a case for each finding.
    Junit,
    /// A page for people, in one file.
    Html,
}

/// The text of a form. `version` is Fettler's own, `now` the moment of the export.
#[must_use]
pub fn export(form: Form, findings: &[Listed], version: &str, now: Timestamp) -> String {
    let pretty = |document: serde_json::Value| {
        serde_json::to_string_pretty(&document)
            .expect("documents hold text, numbers and lists only")
    };
    match form {
        Form::Json => pretty(json!({ "findings": findings })),
        Form::Ocsf => pretty(ocsf::events(findings, version)),
        Form::Sarif => pretty(sarif::log(findings, version)),
        Form::Junit => junit::suites(findings),
        Form::Html => html::page(findings, now),
    }
}

/// Text as it stands in XML and HTML. Characters that XML has no place for become a replacement.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(' '),
            control if control.is_control() => out.push('\u{fffd}'),
            plain => out.push(plain),
        }
    }
    out
}

/// A status in words.
fn told(status: &Status) -> String {
    match status {
        Status::Open => "open".to_owned(),
        Status::Resolved => "resolved".to_owned(),
        Status::Suppressed {
            until: Some(until),
            because,
        } => {
            format!("set aside until {until}: {because}")
        }
        Status::Suppressed {
            until: None,
            because,
        } => format!("set aside: {because}"),
        Status::NotEvaluable { because } => format!("not evaluable: {because}"),
    }
}

#[cfg(test)]
mod tests {
    use fettler_model::{Area, Dimension, Engine, Fix, Severity};

    use super::*;

    fn listed(severity: Severity, status: Status) -> Listed {
        let at = Timestamp::from_micros(1_764_000_000_000_000);
        Listed {
            database: "shop & <sons>".to_owned(),
            finding: Finding {
                key: "postgres.inactive_slots:a\"b".to_owned(),
                check: "postgres.inactive_slots".to_owned(),
                engine: Engine::Postgres,
                area: Area::Health,
                dimension: Some(Dimension::Replication),
                severity,
                object: "a\"b".to_owned(),
                title: "Nobody reads <a>\u{1b}[31m".to_owned(),
                evidence: json!({"retained_bytes": 7}).as_object().unwrap().clone(),
                why: "It keeps WAL.".to_owned(),
                fix: Fix {
                    text: "Drop it.".to_owned(),
                    commands: vec!["SELECT 1 < 2".to_owned()],
                },
                references: vec!["CIS 1.2".to_owned()],
                status,
            },
            opened: at,
            changed: at,
            seen: at,
        }
    }

    #[test]
    fn each_form_says_what_is_open_set_aside_resolved_and_not_known() {
        let because = || "moved <soon>".to_owned();
        let all = [
            listed(Severity::High, Status::Open),
            listed(
                Severity::Low,
                Status::Suppressed {
                    until: None,
                    because: because(),
                },
            ),
            listed(Severity::Info, Status::NotEvaluable { because: because() }),
            listed(Severity::Medium, Status::Resolved),
        ];
        let now = Timestamp::from_micros(1_764_000_000_000_000);
        for (name, form) in [
            ("json", Form::Json),
            ("ocsf", Form::Ocsf),
            ("sarif", Form::Sarif),
            ("junit", Form::Junit),
            ("html", Form::Html),
        ] {
            let text = export(form, &all, "1.2.3", now);
            assert!(!text.contains("<a>") || matches!(form, Form::Json | Form::Ocsf | Form::Sarif));
            assert!(!text.contains('\u{1b}'), "{name}");
            insta::assert_snapshot!(name, text);
        }
    }
}
