//! `fettler health`: looks at a database, and accounts for its score.

use fettler_checks::{Level, ScoreLine};
use fettler_jobs::{HealthArguments, HealthOutput};
use fettler_model::{DatabaseName, Finding, Status};
use serde_json::json;

use crate::{
    app::App,
    args::HealthArgs,
    commands::result_of,
    failure::{Exit, Outcome},
    run::{self, Asked},
    select, units,
};

pub(crate) async fn run(app: &App, args: &HealthArgs) -> Outcome {
    let database = select::database(app, &args.database, None).await?;
    let level = if args.basic {
        Level::Basic
    } else {
        Level::Full
    };
    let asked = Asked {
        kind: "health",
        database: Some(database.id),
        arguments: json!(HealthArguments { level }),
        submission: args.submission.clone(),
        title: format!("health of {}", database.name),
    };
    if args.submission.detach {
        return run::detach(app, &asked).await;
    }
    let job = run::run(app, &asked).await?;
    let output: HealthOutput = result_of(&job)?;
    let mut document = json!(output);
    document["database"] = json!(database.name);
    document["job"] = json!(job.id);
    app.output
        .result(&document, || text(&database.name, &output, args.explain));
    let is_wrong = output
        .report
        .findings
        .iter()
        .any(|finding| finding.status == Status::Open && finding.severity >= args.fail_on);
    Ok(if is_wrong {
        Exit::FoundWrong
    } else {
        Exit::Done
    })
}

fn text(name: &DatabaseName, output: &HealthOutput, explain: bool) -> String {
    let report = &output.report;
    let open: Vec<&Finding> = of_state(&report.findings, "open");
    let version = if report.version.is_empty() {
        report.engine.to_string()
    } else {
        format!("{} {}", report.engine, report.version)
    };
    let mut text = format!(
        "{name} ({version}): {} of 100, {}\n\n",
        report.score.points,
        match open.len() {
            0 => "nothing found".to_owned(),
            found => units::things(found as u64, "finding"),
        },
    );
    for dimension in &report.score.dimensions {
        text.push_str(&format!(
            "  {:13} {:>4} of 20   {}\n",
            dimension.dimension.as_str(),
            points(dimension.points),
            looked(dimension),
        ));
        for line in &dimension.lines {
            text.push_str(&format!("  {:>17}   {}\n", lost(line), line.why));
        }
    }
    for finding in open {
        text.push_str(&format!("\n{}", told(finding, explain)));
    }
    let aside = of_state(&report.findings, "suppressed").len();
    if aside > 0 {
        text.push_str(&format!(
            "\n{} set aside (`fettler findings --state suppressed`).\n",
            units::things(aside as u64, "finding")
        ));
    }
    text
}

fn of_state<'a>(findings: &'a [Finding], state: &str) -> Vec<&'a Finding> {
    findings
        .iter()
        .filter(|finding| finding.status.as_str() == state)
        .collect()
}

fn points(points: f64) -> String {
    if points.fract() == 0.0 {
        format!("{points:.0}")
    } else {
        format!("{points:.1}")
    }
}

fn lost(line: &ScoreLine) -> String {
    format!("-{}", points(line.points))
}

fn looked(dimension: &fettler_checks::DimensionScore) -> String {
    let mut parts = Vec::new();
    for (count, what) in [
        (dimension.passed, "passed"),
        (dimension.found, "found something"),
        (dimension.not_evaluable, "could not be made"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    if parts.is_empty() {
        "nothing to look at".to_owned()
    } else {
        format!("checks: {}", parts.join(", "))
    }
}

/// A finding in words.
pub(crate) fn told(finding: &Finding, explain: bool) -> String {
    let mut text = format!(
        "{}: {}\n",
        finding.severity.as_str().to_uppercase(),
        finding.title
    );
    text.push_str(&format!("    {}\n", finding.key));
    if explain {
        text.push_str(&format!("    Why: {}\n", finding.why));
    }
    text.push_str(&format!("    Fix: {}\n", finding.fix.text));
    if explain {
        for command in &finding.fix.commands {
            text.push_str(&format!("      {command}\n"));
        }
        for reference in &finding.references {
            text.push_str(&format!("    See: {reference}\n"));
        }
    }
    text
}
