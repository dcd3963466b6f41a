//! `fettler findings`: what looks at databases have found, and what became of it.

use std::collections::BTreeMap;

use fettler_checks::{Listed, export};
use fettler_jobs::{AuditOutput, HealthOutput};
use fettler_ledger::{FindingFilter, FindingRecord};
use fettler_model::{DatabaseId, DatabaseName, Finding, Status};
use serde_json::{Value, json};

use crate::{
    app::App,
    args::{FindingsArgs, FindingsCommand, FindingsFilterArgs, SuppressArgs},
    commands::result_of,
    failure::{Exit, Failure, Outcome},
    output::{pairs, table},
    select, units,
};

pub(crate) async fn run(app: &App, args: &FindingsArgs) -> Outcome {
    match &args.command {
        None => list(app, &args.filter).await,
        Some(FindingsCommand::Suppress(args)) => suppress(app, args).await,
        Some(FindingsCommand::Unsuppress { database, key }) => {
            let database = select::existing_database(app, database).await?;
            let record = app
                .desk()
                .await?
                .suppress_finding(&database, key, None, None)
                .await?;
            app.output.result(&record, || {
                format!("{key} of {} is not set aside any more.", database.name)
            });
            Ok(Exit::Done)
        }
        Some(FindingsCommand::History { database, key }) => history(app, database, key).await,
        Some(FindingsCommand::Export { form, filter }) => {
            let (findings, names) = listed(app, filter).await?;
            let findings: Vec<Listed> = findings
                .into_iter()
                .map(|record| Listed {
                    database: names
                        .get(&record.database)
                        .map_or_else(|| record.database.to_string(), ToString::to_string),
                    finding: record.finding,
                    opened: record.opened,
                    changed: record.changed,
                    seen: record.seen,
                })
                .collect();
            let now = app.desk().await?.now().await?;
            app.output.verbatim(&export(
                (*form).into(),
                &findings,
                env!("CARGO_PKG_VERSION"),
                now,
            ));
            Ok(Exit::Done)
        }
        Some(FindingsCommand::Diff { from, to }) => diff(app, from, to).await,
    }
}

type Names = BTreeMap<DatabaseId, DatabaseName>;

/// The findings that are asked for, and what their databases are called.
async fn listed(
    app: &App,
    args: &FindingsFilterArgs,
) -> Result<(Vec<FindingRecord>, Names), Failure> {
    let desk = app.desk().await?;
    let names: Names = desk
        .databases(app.tenant())
        .await?
        .into_iter()
        .map(|record| (record.id, record.name))
        .collect();
    let database = match &args.database {
        Some(name) => Some(select::existing_database(app, name).await?.id),
        None => None,
    };
    let states = if args.state.is_empty() {
        vec!["open".to_owned()]
    } else {
        args.state
            .iter()
            .map(|state| state.as_str().to_owned())
            .collect()
    };
    let filter = FindingFilter {
        tenant: Some(app.tenant().clone()),
        database,
        states,
        area: args.area,
        severity: args.severity,
        check: args.check.clone(),
        limit: args.limit,
        offset: 0,
    };
    Ok((desk.findings(&filter).await?, names))
}

async fn list(app: &App, args: &FindingsFilterArgs) -> Outcome {
    let (findings, names) = listed(app, args).await?;
    let documents: Vec<Value> = findings
        .iter()
        .map(|record| {
            let mut document = json!(record);
            document["database_name"] = json!(names.get(&record.database));
            document
        })
        .collect();
    app.output.result(&json!({ "findings": documents }), || {
        if findings.is_empty() {
            return "No finding fits. `fettler health DATABASE` looks at a database.".to_owned();
        }
        table(
            &["severity", "database", "finding", "since", "status", "what"],
            findings.iter().map(|record| {
                vec![
                    record.finding.severity.to_string(),
                    names
                        .get(&record.database)
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                    record.finding.key.clone(),
                    units::moment(record.opened),
                    status(record),
                    record.finding.title.clone(),
                ]
            }),
        )
    });
    Ok(Exit::Done)
}

fn status(record: &FindingRecord) -> String {
    match &record.finding.status {
        Status::Suppressed {
            until: Some(until),
            because,
        } => {
            format!("set aside until {}: {because}", units::moment(*until))
        }
        Status::Suppressed {
            until: None,
            because,
        } => format!("set aside: {because}"),
        Status::NotEvaluable { because } => format!("not evaluable: {because}"),
        Status::Open if record.times_opened > 1 => {
            format!("open, for the {}. time", record.times_opened)
        }
        Status::Open | Status::Resolved => record.finding.status.as_str().to_owned(),
    }
}

async fn suppress(app: &App, args: &SuppressArgs) -> Outcome {
    if args.because.trim().is_empty() {
        return Err(Failure::usage(
            "no reason is given",
            "say why with `--because`",
        ));
    }
    if args
        .until
        .is_some_and(|until| until <= fettler_model::Timestamp::now())
    {
        return Err(Failure::usage(
            "the time until which it is to be set aside is over",
            "name a moment to come, or leave `--until` out",
        ));
    }
    let database = select::existing_database(app, &args.database).await?;
    let record = app
        .desk()
        .await?
        .suppress_finding(&database, &args.key, args.until, Some(args.because.trim()))
        .await?;
    app.output.result(&record, || {
        let until = args.until.map_or_else(
            || "for good".to_owned(),
            |until| format!("until {}", units::moment(until)),
        );
        format!("{} of {} is set aside {until}.", args.key, database.name)
    });
    Ok(Exit::Done)
}

async fn history(app: &App, database: &str, key: &str) -> Outcome {
    let database = select::existing_database(app, database).await?;
    let steps = app.desk().await?.finding_history(&database, key).await?;
    if steps.is_empty() {
        return Err(Failure::usage(
            format!("{} has no finding {key:?}", database.name),
            "`fettler findings` lists them",
        ));
    }
    app.output.result(&json!({ "steps": steps }), || {
        table(
            &["when", "what", "job", "about"],
            steps.iter().map(|step| {
                let about = ["severity", "title", "because"]
                    .iter()
                    .filter_map(|field| step.data[field].as_str())
                    .collect::<Vec<_>>()
                    .join(": ");
                vec![
                    units::moment(step.at),
                    step.step.as_str().to_owned(),
                    step.job
                        .map(fettler_model::JobId::short)
                        .unwrap_or_default(),
                    about,
                ]
            }),
        )
    });
    Ok(Exit::Done)
}

async fn diff(app: &App, from: &str, to: &str) -> Outcome {
    let desk = app.desk().await?;
    let mut looks = Vec::new();
    for part in [from, to] {
        let job = desk.find_job(app.tenant(), part).await?;
        let (findings, points) = match job.kind.as_str() {
            "health" if job.result.is_some() => {
                let report = result_of::<HealthOutput>(&job)?.report;
                (report.findings, Some(report.score.points))
            }
            "audit" if job.result.is_some() => {
                (result_of::<AuditOutput>(&job)?.report.findings, None)
            }
            _ => {
                return Err(Failure::usage(
                    format!("job {} is no look that has ended", job.id.short()),
                    "`fettler jobs --kind health` and `fettler jobs --kind audit` list them",
                ));
            }
        };
        looks.push((job.database, job.kind, findings, points));
    }
    let (newer, older) = (looks.pop(), looks.pop());
    let (Some((new_of, new_kind, new, new_points)), Some((old_of, old_kind, old, old_points))) =
        (newer, older)
    else {
        unreachable!("two were asked for");
    };
    if new_of != old_of || new_kind != old_kind {
        return Err(Failure::usage(
            "the two jobs looked at different databases, or one at the health and one at the rights",
            "name two looks of one kind at one database",
        ));
    }
    let open = |findings: Vec<Finding>| -> BTreeMap<String, Finding> {
        findings
            .into_iter()
            .filter(|finding| finding.status == Status::Open)
            .map(|finding| (finding.key.clone(), finding))
            .collect()
    };
    let unknown: Vec<String> = new
        .iter()
        .filter(|finding| matches!(finding.status, Status::NotEvaluable { .. }))
        .map(|finding| finding.check.clone())
        .collect();
    let (old, new) = (open(old), open(new));
    let mut rows = Vec::new();
    for (key, finding) in &new {
        match old.get(key) {
            None => rows.push(("new", key.clone(), finding.title.clone())),
            Some(before) if before.severity != finding.severity => rows.push((
                "changed",
                key.clone(),
                format!(
                    "{} was {}: {}",
                    finding.severity, before.severity, finding.title
                ),
            )),
            Some(_) => {}
        }
    }
    for (key, finding) in &old {
        if !new.contains_key(key) {
            let word = if unknown.contains(&finding.check) {
                "unknown"
            } else {
                "gone"
            };
            rows.push((word, key.clone(), finding.title.clone()));
        }
    }
    let document: Vec<Value> = rows
        .iter()
        .map(|(what, key, title)| json!({"what": what, "key": key, "title": title}))
        .collect();
    app.output.result(
        &json!({"score": {"from": old_points, "to": new_points}, "differences": document}),
        || {
            // Only a look at the health has a score.
            let score = match (old_points, new_points) {
                (Some(old), Some(new)) => {
                    format!(
                        "{}\n",
                        pairs(&[("score", format!("{old}, then {new} of 100"))])
                    )
                }
                _ => String::new(),
            };
            if rows.is_empty() {
                return format!("{score}Both looks found the same.");
            }
            let lines = rows
                .iter()
                .map(|(what, key, title)| vec![(*what).to_owned(), key.clone(), title.clone()]);
            format!("{score}{}", table(&["", "finding", "what"], lines))
        },
    );
    Ok(Exit::Done)
}
