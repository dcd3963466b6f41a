//! JUnit XML, as continuous integration reads it: what is open fails, what is set aside or not known is skipped.

use std::{collections::BTreeMap, fmt::Write as _};

use fettler_model::Status;

use super::{Listed, escaped};

/// A suite for each database.
pub(super) fn suites(findings: &[Listed]) -> String {
    let mut databases: BTreeMap<&str, Vec<&Listed>> = BTreeMap::new();
    for listed in findings {
        databases.entry(&listed.database).or_default().push(listed);
    }
    let mut xml =
        String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"fettler\">\n");
    for (database, cases) in databases {
        let count =
            |is: fn(&Status) -> bool| cases.iter().filter(|one| is(&one.finding.status)).count();
        let failures = count(|status| *status == Status::Open);
        let skipped = count(|status| {
            matches!(
                status,
                Status::Suppressed { .. } | Status::NotEvaluable { .. }
            )
        });
        line(
            &mut xml,
            &format!(
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" skipped=\"{skipped}\" errors=\"0\">",
                escaped(database),
                cases.len(),
            ),
        );
        for case in cases {
            one(&mut xml, case);
        }
        line(&mut xml, "  </testsuite>");
    }
    xml.push_str("</testsuites>");
    xml
}

fn one(xml: &mut String, listed: &Listed) {
    let finding = &listed.finding;
    line(
        xml,
        &format!(
            "    <testcase classname=\"{}\" name=\"{}\">",
            escaped(&finding.check),
            escaped(&finding.key)
        ),
    );
    match &finding.status {
        Status::Open => line(
            xml,
            &format!(
                "      <failure type=\"{}\" message=\"{}\">{} {}</failure>",
                finding.severity,
                escaped(&finding.title),
                escaped(&finding.why),
                escaped(&finding.fix.text),
            ),
        ),
        Status::Resolved => {}
        status => line(
            xml,
            &format!(
                "      <skipped message=\"{}\"/>",
                escaped(&super::told(status))
            ),
        ),
    }
    line(xml, "    </testcase>");
}

fn line(xml: &mut String, text: &str) {
    writeln!(xml, "{text}").expect("writing to a string does not fail");
}
