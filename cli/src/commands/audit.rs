//! `fettler audit`: who may do what in a database, what is encrypted and logged, and what is not as it was.

use std::{io::ErrorKind, path::Path};

use fettler_checks::{Releases, Snapshot, Verdict};
use fettler_jobs::{AuditArguments, AuditOutput};
use fettler_model::{DatabaseName, Engine, Finding, Status};
use serde_json::json;

use crate::{
    app::App,
    args::AuditArgs,
    commands::{health::told, result_of},
    failure::{Exit, Failure, Outcome},
    run::{self, Asked},
    select, units,
};

/// The largest file that is read as a list of releases or a baseline, in bytes: as much as a job's arguments may hold.
const LARGEST_FILE_BYTES: u64 = 1 << 20;

pub(crate) async fn run(app: &App, args: &AuditArgs) -> Outcome {
    let baseline = match &args.baseline {
        Some(file) => read_baseline(file)?,
        None => None,
    };
    let releases = match &args.releases {
        Some(file) => Some(read_releases(file)?),
        None => None,
    };
    let is_new = args.baseline.is_some() && baseline.is_none();
    let database = select::database(app, &args.database, None).await?;
    let asked = Asked {
        kind: "audit",
        database: Some(database.id),
        arguments: json!(AuditArguments {
            accept: args.accept.clone(),
            // What is new is compared with nothing: the file is written from what was seen.
            baseline: baseline.clone(),
            snapshot: args.baseline.is_some(),
            releases,
        }),
        submission: args.submission.clone(),
        title: format!("audit of {}", database.name),
    };
    if args.submission.detach {
        return run::detach(app, &asked).await;
    }
    let job = run::run(app, &asked).await?;
    let mut output: AuditOutput = result_of(&job)?;
    let seen = output.snapshot.take();
    if let (Some(file), Some(seen)) = (&args.baseline, seen) {
        let mut kept = baseline.unwrap_or_else(|| seen.clone());
        let accepted = kept.accept(&seen, &args.accept);
        if is_new || accepted > 0 {
            if seen.changes_since(&kept).is_empty() {
                kept.taken = seen.taken;
            }
            write_baseline(file, &kept)?;
        }
    }
    let mut document = json!(output);
    document["database"] = json!(database.name);
    document["job"] = json!(job.id);
    app.output
        .result(&document, || text(&database.name, &output, args.explain));
    Ok(if output.is_wrong(args.fail_on) {
        Exit::FoundWrong
    } else {
        Exit::Done
    })
}

fn read_baseline(file: &Path) -> Result<Option<Snapshot>, Failure> {
    let Some(text) = read(file)? else {
        return Ok(None);
    };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Failure::usage(
            format!("{} is no baseline of an audit: {error}", file.display()),
            "name a file that `fettler audit --baseline` has written, or one that is not there yet",
        )
    })
}

fn read_releases(file: &Path) -> Result<Releases, Failure> {
    let text = read(file)?.ok_or_else(|| {
        Failure::usage(
            format!("there is no file {}", file.display()),
            "name a list of releases; docs/audit.md shows its form",
        )
    })?;
    Releases::read(&text).map_err(|error| {
        Failure::usage(
            format!("{} is no list of releases: {error}", file.display()),
            "docs/audit.md shows its form",
        )
    })
}

/// The text of a file; nothing where it is not there.
fn read(file: &Path) -> Result<Option<String>, Failure> {
    let failed = |error: &std::io::Error| {
        Failure::local(format!("{} cannot be read", file.display()), error)
    };
    match std::fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
        Ok(metadata) if metadata.len() > LARGEST_FILE_BYTES => {
            return Err(Failure::usage(
                format!(
                    "{} is larger than {LARGEST_FILE_BYTES} bytes",
                    file.display()
                ),
                "compare with what the ledger keeps instead: leave `--baseline` out",
            ));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(file)
        .map(Some)
        .map_err(|error| failed(&error))
}

/// Written beside and moved into place: a file that is cut short would be no baseline.
fn write_baseline(file: &Path, snapshot: &Snapshot) -> Result<(), Failure> {
    let failed = |error: &std::io::Error| {
        Failure::local(format!("{} cannot be written", file.display()), error)
    };
    let mut text = serde_json::to_string_pretty(snapshot)
        .map_err(|error| failed(&std::io::Error::other(error)))?;
    text.push('\n');
    let beside = file.with_extension("new");
    std::fs::write(&beside, text).map_err(|error| failed(&error))?;
    std::fs::rename(&beside, file).map_err(|error| failed(&error))
}

fn text(name: &DatabaseName, output: &AuditOutput, explain: bool) -> String {
    let report = &output.report;
    let of_state = |state: &str| -> Vec<&Finding> {
        report
            .findings
            .iter()
            .filter(|finding| finding.status.as_str() == state)
            .collect()
    };
    let open = of_state("open");
    let mut text = format!(
        "{name} ({} {}): {} by {}\n\n",
        report.engine,
        report.version,
        match open.len() {
            0 => "nothing found".to_owned(),
            found => units::things(found as u64, "finding"),
        },
        units::things(report.checks.len() as u64, "check"),
    );
    for group in &report.groups {
        let mut parts = Vec::new();
        for (count, what) in [
            (group.passed, "passed"),
            (group.found, "found something"),
            (group.not_evaluable, "could not be made"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        }
        let told = if parts.is_empty() {
            "nothing to look at".to_owned()
        } else {
            parts.join(", ")
        };
        text.push_str(&format!("  {:15} {told}\n", group.group.as_str()));
    }
    if let Some(service) = report.service {
        text.push_str(&format!(
            "\nThe server belongs to {service}, which hides:\n"
        ));
        for hidden in &report.hidden {
            text.push_str(&format!("  {hidden}\n"));
        }
    }
    for finding in &open {
        text.push_str(&format!("\n{}", told(finding, explain)));
    }
    let unmade: Vec<_> = report
        .checks
        .iter()
        .filter(|line| line.verdict == Verdict::NotEvaluable)
        .collect();
    if !unmade.is_empty() {
        text.push_str(&format!(
            "\n{} could not be made{}\n",
            units::things(unmade.len() as u64, "check"),
            if explain {
                ":"
            } else {
                " (`--explain` says why; `fettler database grant-sql --for audit` what the role needs)."
            }
        ));
        for line in unmade.iter().filter(|_| explain) {
            let because = line.because.as_deref().unwrap_or_default();
            text.push_str(&format!("  {}: {because}\n", line.check));
        }
    }
    let aside = report
        .findings
        .iter()
        .filter(|finding| matches!(finding.status, Status::Suppressed { .. }))
        .count();
    if aside > 0 {
        text.push_str(&format!(
            "\n{} set aside (`fettler findings --state suppressed`).\n",
            units::things(aside as u64, "finding")
        ));
    }
    let drift = &report.drift;
    text.push_str(&match drift.since {
        // Nothing of the other engines is kept for comparison.
        None if report.engine != Engine::Postgres => String::new(),
        None => "\nRoles, grants, settings and schema are kept as they are; later audits tell what has changed.\n".to_owned(),
        Some(since) => format!(
            "\nCompared with {since}: {}{}.\n",
            match drift.changes {
                0 => "no change".to_owned(),
                changes => units::things(changes, "change"),
            },
            match drift.accepted {
                0 => String::new(),
                accepted => format!(", {accepted} accepted"),
            }
        ),
    });
    text
}
