//! What an action needs of a session: it is made beside those who work, within the time that locks may be waited for; what
//! a killed attempt has left is removed; and statements are counted before and after.

use fettler_engine::{AttemptName, EngineError, StatementError, Workbench};
use fettler_model::{ActionKind, JobId, Measurement, StatementTime, Timestamp, TuningAction};

use super::{
    collect::{lines, number, schema_of},
    facts::quote,
};

/// How many statements are counted, those on the table first.
const MOST_COUNTED: usize = 300;
/// How many of those that are elsewhere: enough to tell how the machine fares.
const MOST_ELSEWHERE: usize = 40;
/// Where it is said what tuning was doing.
const DOING: &str = "changing what was planned";
/// The key of the lock that keeps two jobs from changing one database at the same time.
const LOCK: i64 = 0x6665_7474_7475_6e65;

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Takes the lock that one job at a time has; `false` where another one has it.
///
/// # Errors
///
/// When the session is lost.
pub async fn lock(bench: &mut dyn Workbench) -> Result<bool, EngineError> {
    let told = lines(bench, &format!("SELECT pg_try_advisory_lock({LOCK})")).await?;
    Ok(told
        .first()
        .and_then(|line| line.first().cloned().flatten())
        .as_deref()
        == Some("t"))
}

/// Ends what attempts of a job still do on the server, but for this session: it notices late that they are gone.
///
/// # Errors
///
/// When they do not end, or the session is lost.
pub async fn end_sessions(bench: &mut dyn Workbench, job: JobId) -> Result<(), EngineError> {
    let prefix = literal(&AttemptName::prefix_of(job));
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE starts_with(application_name, {prefix}) AND pid <> pg_backend_pid()"
    );
    for _ in 0..100 {
        if lines(bench, &sql).await?.is_empty() {
            return Ok(());
        }
        lines(bench, "SELECT pg_sleep(0.1)").await?;
    }
    Err(EngineError::Database {
        what: "the sessions of an earlier attempt of this job do not end".to_owned(),
        transient: true,
    })
}

/// Whether an index is there, and whether it is valid.
async fn index_state(bench: &mut dyn Workbench, name: &str) -> Result<Option<bool>, EngineError> {
    let found = lines(
        bench,
        &format!(
            "SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass({})",
            literal(name)
        ),
    )
    .await?;
    Ok(found
        .first()
        .map(|line| line.first().cloned().flatten().as_deref() == Some("t")))
}

/// Makes what an action says. Made already, nothing is done; half made by a killed attempt, that is removed first.
///
/// # Errors
///
/// [`StatementError::Refused`] where the server does not do it, as when locks were not to be had in time: nothing is left then.
pub async fn apply(bench: &mut dyn Workbench, action: &TuningAction) -> Result<(), StatementError> {
    match action.kind {
        ActionKind::CreateIndex => match index_state(bench, &action.object).await? {
            Some(true) => return Ok(()),
            Some(false) => remove(bench, &action.object).await?,
            None => {}
        },
        ActionKind::DropIndex if index_state(bench, &action.object).await?.is_none() => {
            return Ok(());
        }
        _ => {}
    }
    for statement in &action.apply {
        if let Err(error) = unhurried(bench, statement).await {
            if action.kind == ActionKind::CreateIndex
                && matches!(error, StatementError::Refused { .. })
            {
                // What CONCURRENTLY leaves is invalid, and is kept up by writers all the same.
                remove(bench, &action.object).await?;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Takes back what an action has done, wholly or in part.
///
/// # Errors
///
/// [`StatementError::Refused`] where the server does not do it.
pub async fn take_back(
    bench: &mut dyn Workbench,
    action: &TuningAction,
) -> Result<(), StatementError> {
    match action.kind {
        ActionKind::CreateIndex => return remove(bench, &action.object).await,
        ActionKind::DropIndex => match index_state(bench, &action.object).await? {
            Some(true) => return Ok(()),
            Some(false) => remove(bench, &action.object).await?,
            None => {}
        },
        _ => {}
    }
    for statement in &action.undo {
        unhurried(bench, statement).await?;
    }
    Ok(())
}

async fn remove(bench: &mut dyn Workbench, index: &str) -> Result<(), StatementError> {
    unhurried(bench, &format!("DROP INDEX CONCURRENTLY IF EXISTS {index}")).await
}

/// Runs a statement that may take hours to work, though only seconds to wait for a lock.
async fn unhurried(bench: &mut dyn Workbench, statement: &str) -> Result<(), StatementError> {
    bench
        .run("SET statement_timeout = 0; SET lock_timeout = 5000")
        .await?;
    let answer = bench.run(statement).await.map(drop);
    bench
        .run("SET statement_timeout = 30000; SET lock_timeout = 2000")
        .await?;
    answer
}

/// Counts the statements with these ids, or those whose texts name the action's table, and how often its index was read.
///
/// # Errors
///
/// When the session is lost.
pub async fn measure(
    bench: &mut dyn Workbench,
    action: &TuningAction,
) -> Result<Measurement, EngineError> {
    let mut measurement = Measurement {
        at: Some(Timestamp::now()),
        ..Measurement::default()
    };
    if let Some(schema) = schema_of(bench, "pg_stat_statements").await? {
        // The table's bare name: texts are as people write them.
        let bare = action.table.rsplit('.').next().unwrap_or(&action.table);
        let bare = bare.trim_matches('"');
        let ids: Vec<String> = action.helps.iter().map(|id| literal(id)).collect();
        let ids = if ids.is_empty() {
            "NULL".to_owned()
        } else {
            ids.join(", ")
        };
        let sql = format!(
            "SELECT queryid::text, sum(calls), sum(total_exec_time),
               sum(shared_blks_hit + shared_blks_read + local_blks_hit + local_blks_read + temp_blks_read + temp_blks_written),
               bool_or(queryid::text IN ({ids}) OR position({} IN query) > 0) AS concerned
             FROM {}.pg_stat_statements
             WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND queryid IS NOT NULL
               AND query !~* '^\\s*(create|alter|drop|vacuum|analyze|explain|prepare|deallocate|set|reset|show|begin|commit|reindex)\\M'
               AND query !~* '\\mpg_(stat|catalog|class|index|attribute|sleep)'
             GROUP BY queryid ORDER BY concerned DESC, sum(calls) DESC LIMIT {MOST_COUNTED}",
            literal(bare),
            quote(&schema),
        );
        match bench.run(&sql).await {
            Ok(found) => {
                for line in &found {
                    let Some(id) = line.first().cloned().flatten() else {
                        continue;
                    };
                    let one = StatementTime {
                        id,
                        calls: number(line.get(1)),
                        total_ms: number(line.get(2)),
                        blocks: Some(number(line.get(3))),
                    };
                    if line.get(4).cloned().flatten().as_deref() == Some("t") {
                        measurement.statements.push(one);
                    } else if measurement.elsewhere.len() < MOST_ELSEWHERE {
                        measurement.elsewhere.push(one);
                    }
                }
            }
            Err(StatementError::Refused { .. }) => {}
            Err(error) => return Err(error.doing(DOING)),
        }
    }
    if matches!(action.kind, ActionKind::CreateIndex) {
        let reads = lines(
            bench,
            &format!(
                "SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_all_indexes WHERE indexrelid = to_regclass({})",
                literal(&action.object)
            ),
        )
        .await?;
        measurement.index_reads = reads.first().map_or(0.0, |line| number(line.first()));
    }
    Ok(measurement)
}

/// The name of an index that tuning makes: the same for the same index, at most as long as names are, and told from others'.
pub(crate) fn index_name(table: &str, what: &str, id: &str) -> String {
    // 63 bytes are the longest that a name can be.
    let mut middle = format!("{table}_{what}");
    let mut most = 63 - "fettler__".len() - id.len();
    while !middle.is_char_boundary(most.min(middle.len())) {
        most -= 1;
    }
    middle.truncate(most);
    format!("fettler_{middle}_{id}")
}

/// The same id for the same change, whoever plans it.
pub(crate) fn action_id(what: &str) -> String {
    hex::encode(&blake3::hash(what.as_bytes()).as_bytes()[..4])
}
