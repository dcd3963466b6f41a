//! `tune`: looks at a database's statements and statistics, says what would make it faster, and where it is told to, does what
//! is safe: one thing at a time, its way back written down before it is done, measured before and after, and taken back where
//! it did not help.
//!
//! Run twice, or taken up again after its process died, it first settles what an earlier attempt has begun: what is half made
//! is removed, what is made is measured. What cannot be judged yet, because nobody has run the statements in question, is left
//! to the next `tune` of the database.

mod steps;

use async_trait::async_trait;
use fettler_engine::{EngineError, Workbench};
use fettler_model::{
    DatabaseId, Engine, ExclusionClass, Finding, FindingChange, JobId, JudgedBy, Measurement,
    Problem, SlotClass, StatementTime, Timestamp, TuningAction, TuningRecord,
};
use fettler_tuning::{
    Look, MOST_STATEMENT_BYTES, MOST_STATEMENTS, Wishes,
    postgres::{self, Earlier},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::steps::Work;
use crate::{DatabaseRecord, JobContext, JobKind};

/// How long another job that changes the same database is waited for before this one is tried again.
const LOCKED_WAIT: std::time::Duration = std::time::Duration::from_secs(30);

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Tune;

/// What tuning takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TuneArguments {
    /// Whether what is safe is done, rather than told only.
    pub apply: bool,
    /// For how many seconds the statements are looked at after each change, at most, before it is decided whether it stays.
    pub observe_seconds: u64,
    /// At most so many changes, those that bring the most.
    pub most_actions: u32,
    /// The job whose changes are taken back; nothing else is done then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo: Option<JobId>,
    /// Standbys of the database, which may read indexes that it does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<DatabaseId>,
    /// What the server does not tell, and what is asked for.
    pub wishes: Wishes,
}

impl Default for TuneArguments {
    fn default() -> Self {
        Self {
            apply: false,
            observe_seconds: 600,
            most_actions: 10,
            undo: None,
            replicas: Vec::new(),
            wishes: Wishes::default(),
        }
    }
}

/// What tuning gives.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TuneOutput {
    /// The database engine.
    pub engine: Engine,
    /// The server's version.
    pub version: String,
    /// How many recorded statements were judged.
    pub statements: usize,
    /// How many could not be read, and were left out.
    pub unread_statements: usize,
    /// How many seconds the recorded statements span; 0 where the server does not tell.
    pub span_seconds: f64,
    /// Who has judged indexes.
    pub judged_by: JudgedBy,
    /// What was found, the gravest first.
    pub findings: Vec<Finding>,
    /// What has become of findings since the last look.
    pub changes: Vec<FindingChange>,
    /// What is left to do, what is safe first.
    pub plan: Vec<TuningAction>,
    /// What was done, or was begun before and has been settled now.
    pub done: Vec<TuningRecord>,
}

#[async_trait]
impl JobKind for Tune {
    const NAME: &'static str = "tune";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = TuneArguments;
    type Output = TuneOutput;

    async fn run(
        &self,
        context: &JobContext,
        arguments: TuneArguments,
    ) -> Result<TuneOutput, Problem> {
        let database = context.database().await?;
        let mut bench = open(context, &database).await?;
        let work = context
            .stopping
            .token()
            .run_until_cancelled(run(context, &database, &arguments, bench.as_mut()))
            .await;
        match work {
            Some(done) => {
                bench.close().await;
                done
            }
            None => {
                // What the server is at goes on without its client unless it is told.
                drop(bench);
                if arguments.apply || arguments.undo.is_some() {
                    steps::end_own_sessions(context, &database).await;
                }
                Err(context.stopping.problem())
            }
        }
    }
}

async fn open(
    context: &JobContext,
    database: &DatabaseRecord,
) -> Result<Box<dyn Workbench>, Problem> {
    let target = context
        .target(&database.url, database.password.as_ref())
        .await?;
    fettler_engines::engine(database.url.engine())
        .workbench(&target, &context.attempt_name())
        .await
        .map_err(|error| context.problem(error))
}

async fn run(
    context: &JobContext,
    database: &DatabaseRecord,
    arguments: &TuneArguments,
    bench: &mut dyn Workbench,
) -> Result<TuneOutput, Problem> {
    let failed = |error: EngineError| context.problem(error);
    let engine = database.url.engine();
    let given = &arguments.wishes.statements;
    if given.len() > MOST_STATEMENTS || given.iter().any(|one| one.len() > MOST_STATEMENT_BYTES) {
        return Err(Problem::permanent(
            "tune.statements",
            format!("`wishes.statements` has {} statements", given.len()),
            format!("give at most {MOST_STATEMENTS}, of at most {MOST_STATEMENT_BYTES} bytes each"),
        ));
    }
    let changes_something = arguments.apply || arguments.undo.is_some();
    if changes_something {
        fettler_tuning::end_sessions(engine, bench, context.job.id)
            .await
            .map_err(failed)?;
        if !fettler_tuning::lock(engine, bench).await.map_err(failed)? {
            return Err(Problem::snooze(
                "tune.locked",
                "another job changes this database",
                LOCKED_WAIT,
            ));
        }
    }
    let samples = context.ledger.tuning_samples(database.id).await?;
    let mut work = Work {
        context,
        database,
        bench,
    };
    let mut done = Vec::new();
    if let Some(job) = arguments.undo {
        done = work.undo(job).await?;
    } else if arguments.apply {
        context.progress.begin("settle", 0, 0);
        done = work.settle(arguments.observe_seconds).await?;
    }
    let (mut look, changes) = looked(&mut work, arguments, samples.clone()).await?;
    context
        .ledger
        .keep_tuning_sample(database.id, look.sample.clone())
        .await?;
    if arguments.apply && arguments.undo.is_none() {
        let open = done.iter().filter(|record| record.state.is_open()).count();
        let planned: Vec<TuningAction> = look
            .plan
            .iter()
            .filter(|action| action.safe)
            .take((arguments.most_actions as usize).saturating_sub(open))
            .cloned()
            .collect();
        let all = planned.len() as u64;
        let last = samples.last().map(|(_, sample)| counted(sample));
        for (at, action) in planned.into_iter().enumerate() {
            context.progress.begin("apply", 0, all);
            context.progress.add(0, at as u64);
            context.progress.item(&action.object);
            let before = last.clone().unwrap_or_default();
            done.push(work.take(action, before, arguments.observe_seconds).await?);
        }
        if !done.is_empty() {
            // Looks to come count from here: what was counted before says nothing of what there is now.
            let counted = fettler_tuning::count(engine, work.bench)
                .await
                .map_err(|error| context.problem(error))?;
            context
                .ledger
                .keep_tuning_sample(database.id, counted)
                .await?;
            look.plan
                .retain(|action| !done.iter().any(|record| record.action.id == action.id));
        }
    }
    Ok(TuneOutput {
        engine: database.url.engine(),
        version: look.version,
        statements: look.statements.0,
        unread_statements: look.statements.1,
        span_seconds: look.span_seconds,
        judged_by: look.judged_by,
        findings: look.findings,
        changes,
        plan: look.plan,
        done,
    })
}

/// One look, with what earlier ones have left and what standbys tell; what it found is recorded.
async fn looked(
    work: &mut Work<'_>,
    arguments: &TuneArguments,
    samples: Vec<(Timestamp, Value)>,
) -> Result<(Look, Vec<FindingChange>), Problem> {
    let (context, database) = (work.context, work.database);
    context.progress.begin("look", 0, 0);
    let mut earlier = Earlier {
        samples,
        records: context.ledger.tunings(database.id).await?,
        replicas: Vec::new(),
    };
    if !arguments.replicas.is_empty() && database.url.engine() != Engine::Postgres {
        return Err(Problem::permanent(
            "tune.replicas",
            format!(
                "standbys are asked for PostgreSQL only, and {} is none",
                database.name
            ),
            "leave `replicas` (`--replica`) out",
        ));
    }
    for id in &arguments.replicas {
        let standby = context.ledger.database(*id).await?;
        let mut bench = open(context, &standby).await?;
        let reads = postgres::replica_reads(bench.as_mut()).await;
        bench.close().await;
        earlier
            .replicas
            .push(reads.map_err(|error| context.problem(error))?);
    }
    let look = fettler_tuning::look(
        database.url.engine(),
        work.bench,
        &arguments.wishes,
        &earlier,
        Timestamp::now(),
    );
    let mut look = context
        .progress
        .while_waiting(look)
        .await
        .map_err(|error| context.problem(error))?;
    let recorded = context
        .ledger
        .record_findings(database.id, &look.findings, &look.conclusive)
        .await?;
    for finding in &mut look.findings {
        if let Some(status) = recorded.suppressed.get(&finding.key) {
            finding.status = status.clone();
        }
    }
    for action in &mut look.plan {
        if recorded.suppressed.contains_key(&action.finding) {
            action.safe = false;
            "its finding was set aside".clone_into(&mut action.unsafe_because);
        }
    }
    Ok((look, recorded.changes))
}

/// The statements' counters of a sample.
fn counted(sample: &Value) -> Measurement {
    let statements = sample["statements"].as_array().into_iter().flatten();
    Measurement {
        statements: statements
            .filter_map(|one| {
                Some(StatementTime {
                    id: one[0].as_str()?.to_owned(),
                    calls: one[1].as_f64()?,
                    total_ms: one[2].as_f64()?,
                    blocks: one[4].as_f64(),
                })
            })
            .collect(),
        ..Measurement::default()
    }
}
