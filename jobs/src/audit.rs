//! `audit`: asks a database who may do what, what is encrypted and logged, how it is set, and what is known of its release;
//! compares roles, grants, settings and schema with what was accepted before; records what was found.
//!
//! 1. One connection is asked everything. It reads, and changes nothing.
//! 2. Answers are judged by the checks and by the list of releases.
//! 3. What later audits compare with is kept, by the first audit and by one that accepts changes, before findings are
//!    recorded: an attempt that is repeated finds it as it left it.
//! 4. Findings are recorded. They resolve findings of audits only: a check belongs to one job kind.
//!
//! A database that does not answer is a failed job and no report: of what was not seen nothing can be said.

use std::{path::PathBuf, time::Instant};

use async_trait::async_trait;
use fettler_checks::{
    AuditReport, Beside, Check, DriftReport, Releases, Seen, Snapshot, audit, counts,
    drift_questions, questions, service_of, service_question, snapshot_of,
};
use fettler_engine::{Answer, Question};
use fettler_model::{Engine, ExclusionClass, FindingChange, Problem, SlotClass, Status, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{JobContext, JobKind, health::own_library};

/// How many findings a report holds; the ledger keeps all of them. A job's result has a limit of its own.
const MOST_TOLD: usize = 1500;

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Audit;

/// What an audit takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuditArguments {
    /// Changes that are well, and are what later audits compare with: keys of findings, names of checks
    /// (`postgres.drift_roles`), or `all`.
    pub accept: Vec<String>,
    /// Compare with this instead of what the ledger keeps, which is left as it is then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Snapshot>,
    /// Give back, as `snapshot`, what a later audit can be told to compare with. Without a `baseline` nothing is compared
    /// then, and what the ledger keeps is left as it is.
    pub snapshot: bool,
    /// A list of releases instead of the one that ships.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub releases: Option<Releases>,
}

/// What an audit found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditOutput {
    /// The report.
    #[serde(flatten)]
    pub report: AuditReport,
    /// What has become of findings since the last audit.
    pub changes: Vec<FindingChange>,
    /// What a later audit can be told to compare with, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
}

#[async_trait]
impl JobKind for Audit {
    const NAME: &'static str = "audit";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Short;
    type Arguments = AuditArguments;
    type Output = AuditOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: AuditArguments,
    ) -> Result<AuditOutput, Problem> {
        let database = context.database().await?;
        let engine = database.url.engine();
        let library = own_library(context).await?;
        let checks: Vec<&Check> = library.of_audit(engine);
        if checks.is_empty() {
            return Err(Problem::permanent(
                "audit.no_checks",
                format!("there are no checks of an audit for {engine} yet"),
                "`fettler checks list` shows those that there are",
            ));
        }
        let releases = releases(context, arguments.releases.clone()).await?;
        let target = context
            .target(&database.url, database.password.as_ref())
            .await?;
        let asked: Vec<Question> = questions(&checks)
            .into_iter()
            .chain(service_question(engine))
            .chain(extensions_question(engine))
            .chain(drift_questions(engine))
            .collect();
        let began = Instant::now();
        let now = Timestamp::now();
        let answers = fettler_engines::engine(engine)
            .ask(&target, &asked, context.stopping.token())
            .await
            .map_err(|error| context.problem(error))?;
        let milliseconds = (began.elapsed().as_secs_f64() * 10_000.0).round() / 10.0;
        let service = service_of(&answers.answers);
        let version = answers.version.clone();
        let extensions = extensions_of(engine, &answers.answers);
        let beside = Beside::of(
            &releases,
            engine,
            &version,
            extensions.as_deref().map_err(Clone::clone),
            service,
            &now.to_jiff().strftime("%Y-%m-%d").to_string(),
        );
        let snapshot = snapshot_of(engine, &answers.answers, now);
        let seen = Seen {
            server: Ok(answers),
            ledger: Err("an audit does not look at backups".to_owned()),
        };
        let mut judged = audit(&checks, &seen, &beside);
        let compared = compared(context, &database.id, &arguments, &snapshot).await?;
        judged.join(snapshot.judged(&compared.with));
        let changes = snapshot.changes_since(&compared.with).len();

        // What was compared with a file is told, and is no history of the ledger's.
        let (recorded, conclusive): (Vec<_>, _) = if arguments.is_apart() {
            let of_checks = |check: &str| library.get(check).is_some();
            let findings = judged.findings.iter().filter(|one| of_checks(&one.check));
            let conclusive = judged.conclusive.iter().filter(|check| of_checks(check));
            (findings.cloned().collect(), conclusive.cloned().collect())
        } else {
            (judged.findings.clone(), judged.conclusive.clone())
        };
        let recorded = context
            .ledger
            .record_findings(database.id, &recorded, &conclusive)
            .await?;
        for finding in &mut judged.findings {
            if let Some(status) = recorded.suppressed.get(&finding.key) {
                finding.status = status.clone();
            }
        }
        if judged.findings.len() > MOST_TOLD {
            let more = judged.findings.len() - MOST_TOLD;
            // Those that could not be looked at stand last, and are told with their checks in any case.
            judged.findings.truncate(MOST_TOLD);
            context
                .ledger
                .log(&format!(
                    "{more} findings are not in the report; `fettler findings` lists all"
                ))
                .await;
        }
        Ok(AuditOutput {
            report: AuditReport {
                engine,
                version,
                service,
                hidden: service.map_or_else(Vec::new, |service| {
                    service
                        .hides()
                        .iter()
                        .map(|line| (*line).to_owned())
                        .collect()
                }),
                milliseconds,
                releases_as_of: releases.as_of,
                groups: counts(&judged.lines),
                checks: judged.lines,
                findings: judged.findings,
                drift: DriftReport {
                    since: compared.since,
                    accepted: compared.accepted,
                    changes: changes as u64,
                },
            },
            changes: recorded.changes,
            snapshot: arguments.snapshot.then_some(snapshot),
        })
    }
}

impl AuditArguments {
    /// Whether what is compared with is not the ledger's.
    const fn is_apart(&self) -> bool {
        self.baseline.is_some() || self.snapshot
    }
}

/// What an audit compares with.
struct Compared {
    with: Snapshot,
    since: Option<Timestamp>,
    accepted: u64,
}

async fn compared(
    context: &JobContext,
    database: &fettler_model::DatabaseId,
    arguments: &AuditArguments,
    now: &Snapshot,
) -> Result<Compared, Problem> {
    if let Some(given) = &arguments.baseline {
        if given.engine != now.engine {
            return Err(Problem::permanent(
                "audit.baseline",
                format!(
                    "the baseline is one of {}, and the database is one of {}",
                    given.engine, now.engine
                ),
                "give the file that an audit of this database has written",
            ));
        }
        let mut with = given.clone();
        let accepted = with.accept(now, &arguments.accept);
        return Ok(Compared {
            since: Some(given.taken),
            with,
            accepted,
        });
    }
    if arguments.snapshot {
        return Ok(Compared {
            with: now.clone(),
            since: None,
            accepted: 0,
        });
    }
    // One that another version has written in another form is begun anew, as if there were none.
    let kept = context
        .ledger
        .audit_baseline(*database)
        .await?
        .and_then(|kept| serde_json::from_value::<Snapshot>(kept).ok());
    let Some(kept) = kept else {
        keep(context, database, now).await?;
        return Ok(Compared {
            with: now.clone(),
            since: None,
            accepted: 0,
        });
    };
    let mut with = kept.clone();
    let accepted = with.accept(now, &arguments.accept);
    if accepted > 0 && now.changes_since(&with).is_empty() {
        with.taken = now.taken;
    }
    if with != kept {
        keep(context, database, &with).await?;
    }
    Ok(Compared {
        since: Some(kept.taken),
        with,
        accepted,
    })
}

async fn keep(
    context: &JobContext,
    database: &fettler_model::DatabaseId,
    snapshot: &Snapshot,
) -> Result<(), Problem> {
    context
        .ledger
        .keep_audit_baseline(*database, &json!(snapshot))
        .await
}

/// The list of releases: the one that was given, the installation's own (`releases.json` in its folder of checks), or the
/// one that ships.
async fn releases(context: &JobContext, given: Option<Releases>) -> Result<Releases, Problem> {
    let wrong = |field: String| {
        Problem::permanent(
            "audit.releases",
            format!("the list of releases cannot be read: {field}"),
            "docs/audit.md shows its form",
        )
    };
    if let Some(given) = given {
        given.check().map_err(|error| wrong(error.to_string()))?;
        return Ok(given);
    }
    let Some(folder) = context.services.own_checks() else {
        return Ok(Releases::shipped());
    };
    let file: PathBuf = folder.join("releases.json");
    let text = tokio::task::spawn_blocking(move || std::fs::read_to_string(file))
        .await
        .expect("reading a file does not panic");
    match text {
        Ok(text) => Releases::read(&text).map_err(|error| wrong(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Releases::shipped()),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// The name of the question for installed extensions, some of which have vulnerabilities of their own.
const EXTENSIONS: &str = "audit.extensions";

fn extensions_question(engine: Engine) -> Option<Question> {
    (engine == Engine::Postgres).then(|| Question {
        id: EXTENSIONS.to_owned(),
        versions: fettler_engine::Versions::default(),
        needs: None,
        text: "SELECT extname::text AS extension FROM pg_catalog.pg_extension".to_owned(),
        timeout: std::time::Duration::from_secs(4),
    })
}

fn extensions_of(engine: Engine, answers: &[Answer]) -> Result<Vec<String>, String> {
    if extensions_question(engine).is_none() {
        return Ok(Vec::new());
    }
    let answer = answers
        .iter()
        .find(|answer| answer.id == EXTENSIONS)
        .ok_or_else(|| "the question for extensions was not asked".to_owned())?;
    let rows = answer.rows.as_ref().map_err(ToString::to_string)?;
    Ok(rows
        .iter()
        .filter_map(|row| row.get("extension")?.as_str().map(ToOwned::to_owned))
        .collect())
}

impl AuditOutput {
    /// Whether something at least so grave is open.
    #[must_use]
    pub fn is_wrong(&self, from: fettler_model::Severity) -> bool {
        self.report
            .findings
            .iter()
            .any(|finding| finding.status == Status::Open && finding.severity >= from)
    }
}
