//! Brings a ledger's schema up to date when it is opened: each step in order, in a transaction, under
//! a lock that other processes wait for.
//!
//! A rolling upgrade has older programs beside newer ones: steps expand first, so that those can go on, and what they
//! need is taken away a release later. Each step says which programs can go on with it; a schema that is too new
//! for this one is refused before anything is read from it.

use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use crate::{
    LedgerError, Result,
    dialect::Dialect,
    store::{Transaction, database_error},
};

/// A change of the schema.
struct Step {
    sql: &'static str,
    /// The oldest schema version whose programs can go on with a ledger that has taken it.
    usable_from: i64,
}

const fn step(sql: &'static str, usable_from: i64) -> Step {
    Step { sql, usable_from }
}

/// The steps, from version 1. A step that was released is never changed: a change is a new step.
const STEPS: &[Step] = &[
    step(include_str!("../migrations/0001_first.sql"), 1),
    step(include_str!("../migrations/0002_limits.sql"), 2),
    step(include_str!("../migrations/0003_tokens.sql"), 3),
    step(include_str!("../migrations/0004_silences.sql"), 4),
    step(
        include_str!("../migrations/0005_left_to_the_next_attempt.sql"),
        4,
    ),
    // Two tables that older programs know nothing of and need not.
    step(include_str!("../migrations/0006_findings.sql"), 4),
    // Another index for the same order: older programs sort for themselves.
    step(include_str!("../migrations/0007_turns_are_not_ids.sql"), 4),
    // A table of audits, which older programs do not make.
    step(include_str!("../migrations/0008_audit_baseline.sql"), 4),
    // The same.
    step(include_str!("../migrations/0009_tuning.sql"), 4),
];

/// The step from which on a ledger says who can go on with it.
const SAYS_WHO_MAY_USE_IT: i64 = 5;

const DOING: &str = "bringing its schema up to date";

/// The key of the lock on PostgreSQL, where any number serves that nobody else uses.
const LOCK: i64 = 0x6665_7474_6c65_7201;

/// Runs the steps that are missing.
pub(crate) async fn migrate(transaction: &mut Transaction, dialect: Dialect) -> Result<()> {
    let connection = transaction.connection();
    if dialect == Dialect::Postgres {
        // SQLite's BEGIN IMMEDIATE is the lock there.
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(LOCK)
            .execute(&mut *connection)
            .await
            .map_err(|error| database_error(DOING, error))?;
    }
    run(
        connection,
        "CREATE TABLE IF NOT EXISTS ledger_schema (version BIGINT NOT NULL PRIMARY KEY)".to_owned(),
    )
    .await?;
    let found: i64 = sqlx::query("SELECT COALESCE(MAX(version), 0) FROM ledger_schema")
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|error| database_error(DOING, error))?;
    let known = i64::try_from(STEPS.len()).expect("there are few steps");
    if found > known {
        let needed: i64 = sqlx::query(
            "SELECT COALESCE(MAX(usable_from), 0) FROM ledger_schema WHERE version > $1",
        )
        .bind(known)
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|error| database_error(DOING, error))?;
        if needed > known {
            return Err(LedgerError::NewerSchema { found, known });
        }
        tracing::info!(
            found,
            known,
            "a newer Fettler has brought the ledger's schema up to date, and this one can go on with it"
        );
    }
    for (step, version) in STEPS
        .iter()
        .zip(1..)
        .filter(|(_, version)| *version > found)
    {
        run(connection, dialect.migration(step.sql)).await?;
        let insert = if version < SAYS_WHO_MAY_USE_IT {
            sqlx::query("INSERT INTO ledger_schema (version) VALUES ($1)").bind(version)
        } else {
            sqlx::query("INSERT INTO ledger_schema (version, usable_from) VALUES ($1, $2)")
                .bind(version)
                .bind(step.usable_from)
        };
        insert
            .execute(&mut *connection)
            .await
            .map_err(|error| database_error(DOING, error))?;
        tracing::info!(version, "the ledger's schema was brought up to date");
    }
    Ok(())
}

async fn run(connection: &mut AnyConnection, sql: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .map(drop)
        .map_err(|error| database_error(DOING, error))
}
