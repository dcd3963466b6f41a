//! What tuning does on a server, for whichever engine it is: the look, the lock, making, taking back, measuring and judging.
//!
//! PostgreSQL has all of it. The other engines keep no times of statements that could be compared: what is safe there is either
//! measured before it is made (on a copy), or counted by the server as it is used, or it stays until somebody takes it back.

use std::pin::Pin;

use fettler_engine::{EngineError, StatementError, Workbench};
use fettler_model::{
    ActionKind, Compared, Engine, JobId, Measurement, Timestamp, TuningAction, TuningRecord,
};
use serde_json::Value;

use crate::{
    Look, Verdict, Wishes, clickhouse, elasticsearch, judge, mongodb,
    postgres::{self, Earlier},
    redis, sqlite,
};

/// Looks at a database, and changes nothing.
///
/// # Errors
///
/// When it cannot be asked.
pub fn look<'a>(
    engine: Engine,
    bench: &'a mut dyn Workbench,
    wishes: &'a Wishes,
    earlier: &'a Earlier,
    now: Timestamp,
) -> Pin<Box<dyn Future<Output = Result<Look, EngineError>> + Send + 'a>> {
    // In a box, so that whoever waits need not know what all of them hold meanwhile.
    Box::pin(async move {
        match engine {
            Engine::Postgres => postgres::look(bench, wishes, earlier, now).await,
            Engine::Sqlite => sqlite::look(bench, wishes, &earlier.records).await,
            Engine::Redis => redis::look(bench, &earlier.records).await,
            Engine::Mongodb => {
                mongodb::look(bench, wishes, &earlier.records, seconds_of(now)).await
            }
            Engine::Elasticsearch => {
                elasticsearch::look(bench, &earlier.records, seconds_of(now)).await
            }
            Engine::Clickhouse => clickhouse::look(bench, wishes, &earlier.records).await,
        }
    })
}

/// Seconds since 1970.
#[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are exact")]
fn seconds_of(time: Timestamp) -> f64 {
    time.to_jiff().as_second() as f64
}

/// Takes the lock that one job at a time has; `false` where another one has it. Where a server has none, what two jobs do at
/// the same time is the same.
///
/// # Errors
///
/// When the session is lost.
pub async fn lock(engine: Engine, bench: &mut dyn Workbench) -> Result<bool, EngineError> {
    match engine {
        Engine::Postgres => postgres::lock(bench).await,
        _ => Ok(true),
    }
}

/// Ends what attempts of a job still do on the server, but for this session.
///
/// # Errors
///
/// When they do not end, or the session is lost.
pub async fn end_sessions(
    engine: Engine,
    bench: &mut dyn Workbench,
    job: JobId,
) -> Result<(), EngineError> {
    match engine {
        Engine::Postgres => postgres::end_sessions(bench, job).await,
        _ => Ok(()),
    }
}

/// Makes what an action says; made already, nothing is done.
///
/// # Errors
///
/// [`StatementError::Refused`] where the server does not do it.
pub async fn apply(
    engine: Engine,
    bench: &mut dyn Workbench,
    action: &TuningAction,
) -> Result<(), StatementError> {
    match engine {
        Engine::Postgres => postgres::apply(bench, action).await,
        _ => run_all(bench, &action.apply).await,
    }
}

/// Takes back what an action has done, wholly or in part.
///
/// # Errors
///
/// [`StatementError::Refused`] where the server does not do it.
pub async fn take_back(
    engine: Engine,
    bench: &mut dyn Workbench,
    action: &TuningAction,
) -> Result<(), StatementError> {
    match engine {
        Engine::Postgres => postgres::take_back(bench, action).await,
        _ => run_all(bench, &action.undo).await,
    }
}

/// The actions of these engines can all be repeated.
async fn run_all(bench: &mut dyn Workbench, statements: &[String]) -> Result<(), StatementError> {
    for statement in statements {
        match bench.run(statement).await {
            Ok(_) => {}
            // MongoDB's IndexNotFound: it was taken back before.
            Err(StatementError::Refused { code, .. }) if code == "27" => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Counts what says how an action fares.
///
/// # Errors
///
/// When the session is lost.
pub async fn measure(
    engine: Engine,
    bench: &mut dyn Workbench,
    action: &TuningAction,
) -> Result<Measurement, EngineError> {
    match engine {
        Engine::Postgres => postgres::measure(bench, action).await,
        _ => Ok(Measurement {
            index_reads: match engine {
                Engine::Mongodb => mongodb::index_reads(bench, action).await?,
                _ => 0.0,
            },
            at: Some(Timestamp::now()),
            ..Measurement::default()
        }),
    }
}

/// Counts what there is, without a look: for looks to come.
///
/// # Errors
///
/// When the database cannot be asked.
pub async fn count(engine: Engine, bench: &mut dyn Workbench) -> Result<Value, EngineError> {
    match engine {
        Engine::Postgres => postgres::count(bench).await,
        _ => Ok(Value::Null),
    }
}

/// Judges an action by what was measured since it was made, `seconds` ago.
#[must_use]
pub fn judged(
    engine: Engine,
    record: &TuningRecord,
    looks: &[Measurement],
    seconds: f64,
) -> (Verdict, Vec<Compared>) {
    let kind = record.action.kind;
    let why = match (engine, kind) {
        (Engine::Postgres, _) => return judge(record, looks, seconds),
        (Engine::Sqlite, ActionKind::CreateIndex) => {
            format!("measured on a copy: {}", record.action.reason)
        }
        _ => format!(
            "it is made, and can be taken back: {}",
            record.action.reason
        ),
    };
    (Verdict::Keep(why), Vec::new())
}
