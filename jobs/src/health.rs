//! `health`: asks a database what its checks want to know, judges the answers, records what was found, and accounts for a
//! score of 100. It reads, and changes nothing. A database that does not answer is a finding and not a failed job: it is the
//! very thing that one looks for.

use std::time::Instant;

use async_trait::async_trait;
use fettler_checks::{Check, HealthReport, Level, Library, Seen, evaluate, questions, score};
use fettler_engine::{EngineError, Row};
use fettler_model::{ErrorClass, ExclusionClass, FindingChange, Problem, Protection, SlotClass};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{DatabaseRecord, JobContext, JobKind};

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Health;

/// What a look takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthArguments {
    /// `basic` for what is cheap enough for every minute, `full` for all checks.
    pub level: Level,
}

/// What a look found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HealthOutput {
    /// The report.
    #[serde(flatten)]
    pub report: HealthReport,
    /// What has become of findings since the last look.
    pub changes: Vec<FindingChange>,
}

#[async_trait]
impl JobKind for Health {
    const NAME: &'static str = "health";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Short;
    type Arguments = HealthArguments;
    type Output = HealthOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: HealthArguments,
    ) -> Result<HealthOutput, Problem> {
        let database = context.database().await?;
        let target = context
            .target(&database.url, database.password.as_ref())
            .await?;
        let library = own_library(context).await?;
        let engine = database.url.engine();
        let checks: Vec<&Check> = library.of(engine, arguments.level);
        if checks.is_empty() {
            return Err(Problem::permanent(
                "health.no_checks",
                format!("there are no checks for {engine} yet"),
                "`fettler checks list` shows those that there are; `fettler ping` says whether the database answers",
            ));
        }
        let began = Instant::now();
        let asked = fettler_engines::engine(engine)
            .ask(&target, &questions(&checks), context.stopping.token())
            .await;
        let server = match asked {
            Ok(answers) => Ok(answers),
            Err(EngineError::Stopped) => return Err(context.stopping.problem()),
            Err(error) => Err(silence(error)?),
        };
        let milliseconds = (began.elapsed().as_secs_f64() * 10_000.0).round() / 10.0;
        let seen = Seen {
            server,
            ledger: protection_row(&database, &context.ledger.protection(database.id).await?),
        };
        let evaluation = evaluate(engine, &checks, &seen);
        let mut findings = evaluation.findings(&checks);
        let recorded = context
            .ledger
            .record_findings(database.id, &findings, &evaluation.conclusive)
            .await?;
        for finding in &mut findings {
            if let Some(status) = recorded.suppressed.get(&finding.key) {
                finding.status = status.clone();
            }
        }
        let score = score(&evaluation, &findings);
        Ok(HealthOutput {
            report: HealthReport {
                engine,
                version: seen
                    .server
                    .map(|answers| answers.version)
                    .unwrap_or_default(),
                level: arguments.level,
                milliseconds,
                score,
                findings,
            },
            changes: recorded.changes,
        })
    }
}

/// The checks of this process: those that ship, and the operator's own.
pub(crate) async fn own_library(context: &JobContext) -> Result<Library, Problem> {
    let own = context.services.own_checks();
    tokio::task::spawn_blocking(move || match own {
        None => Ok(Library::shipped()),
        Some(folder) => Library::shipped().with_folder(&folder),
    })
    .await
    .expect("reading checks does not panic")
    .map_err(|error| {
        Problem::permanent("checks.unreadable", error.to_string(), error.remedy.clone())
    })
}

/// Why a database does not answer, in words for a finding. What is no fault of the database's is the job's own failure.
fn silence(error: EngineError) -> Result<String, Problem> {
    match &error {
        EngineError::Unreachable { .. }
        | EngineError::LoginRefused { .. }
        | EngineError::Busy { .. } => Ok(error.to_string()),
        EngineError::Missing { code, .. } if *code != "questions" => Ok(error.to_string()),
        EngineError::Database { .. } => Ok(error.to_string()),
        _ => {
            let problem = Problem::from(error);
            debug_assert_ne!(problem.class, ErrorClass::Cancelled);
            Err(problem)
        }
    }
}

/// The line that checks of the ledger judge; nothing where Fettler has nothing to do with the database's backups, since
/// another tool may well make them.
fn protection_row(database: &DatabaseRecord, known: &Protection) -> Result<Row, String> {
    if known.backups == 0 && !known.has_policy {
        return Err(
            "Fettler does not back this database up, and cannot tell whether something else does"
                .to_owned(),
        );
    }
    let seconds =
        |then: Option<fettler_model::Timestamp>| then.map(|then| known.now.since(then).as_secs());
    let words = |seconds: Option<u64>| match seconds {
        None => "not there".to_owned(),
        Some(seconds) if seconds < 7200 => format!("{} min old", seconds / 60),
        Some(seconds) if seconds < 172_800 => format!("{} h old", seconds / 3600),
        Some(seconds) => format!("{} days old", seconds / 86_400),
    };
    let (backup, proof) = (seconds(known.last_backup), seconds(known.last_proof));
    Ok(Row::from_iter([
        ("database".to_owned(), json!(database.name)),
        ("backups".to_owned(), json!(known.backups)),
        ("backup_age_seconds".to_owned(), json!(backup)),
        ("backup_age".to_owned(), json!(words(backup))),
        ("proofs".to_owned(), json!(known.proofs)),
        ("proof_age_seconds".to_owned(), json!(proof)),
        ("proof_age".to_owned(), json!(words(proof))),
        (
            "last_proof_failed".to_owned(),
            json!(known.last_proof_failed),
        ),
    ]))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fettler_model::{DatabaseId, DatabaseUrl, TenantId, Timestamp};

    use super::*;

    #[test]
    fn p11_nothing_is_said_of_backups_that_are_not_ours_and_a_missing_one_that_is_is_told() {
        let database = DatabaseRecord {
            id: DatabaseId::new(),
            tenant: TenantId::default_tenant(),
            name: "shop".parse().unwrap(),
            url: DatabaseUrl::parse_with_password("/shop.sqlite").unwrap().0,
            password: None,
            sandbox: fettler_engine::SandboxSpec::Automatic,
        };
        let now = Timestamp::now();
        let mut known = Protection {
            now,
            backups: 0,
            last_backup: None,
            proofs: 0,
            last_proof: None,
            last_proof_failed: false,
            has_policy: false,
        };
        assert!(protection_row(&database, &known).is_err());
        known.has_policy = true;
        let row = protection_row(&database, &known).unwrap();
        assert_eq!(row["backup_age"], "not there");
        known.backups = 1;
        known.last_backup = Some(now.minus(Duration::from_secs(7200)));
        let row = protection_row(&database, &known).unwrap();
        assert_eq!(
            (&row["backup_age"], &row["backup_age_seconds"]),
            (&json!("2 h old"), &json!(7200))
        );
    }
}
