//! What nobody uses any more: replication slots without a reader, prepared transactions that were never ended, idle sessions, temporary
//! tables of sessions that are gone; and what only needs to be put in order: tables full of dead rows, invalid indexes.
//!
//! None of it can be put back, so that none of it is archived, and each is looked at once more in the statement that removes it.

use fettler_engine::{EngineContext, EngineError, Target, no_such_action};
use fettler_model::{CleanupAction, CleanupItem, CleanupPlan, CleanupRemoved, Engine};
use serde::{Deserialize, Serialize};

use crate::names::{Pattern, display_name, literal, qualified, quote_ident};

use super::{Visit, data, refuse};

/// One thing that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Orphan {
    /// As people write it.
    name: String,
    /// Removes it if it still is what the plan found: one row where it did, none where it is another or gone. Where it is no query
    /// (VACUUM, REINDEX), `still` asks first.
    statement: String,
    /// A query that gives a row while it still is what the plan found.
    still: Option<String>,
}

/// Plans.
pub(super) async fn plan(visit: &mut Visit, plan: &mut CleanupPlan) -> Result<(), EngineError> {
    let found = match plan.what.clone() {
        CleanupAction::Slots {
            only,
            inactive_for_seconds,
            retained_bytes,
        } => slots(visit, plan, &only, inactive_for_seconds, retained_bytes).await?,
        CleanupAction::PreparedTransactions { older_than_seconds } => {
            prepared(visit, plan, older_than_seconds).await?
        }
        CleanupAction::Sessions {
            idle_in_transaction_seconds,
            idle_seconds,
        } => sessions(visit, plan, idle_in_transaction_seconds, idle_seconds).await?,
        CleanupAction::TemporaryTables {} => temporary(visit, plan).await?,
        CleanupAction::Vacuum { only, dead_percent } => {
            vacuum(visit, plan, &only, dead_percent).await?
        }
        CleanupAction::Reindex { only } => reindex(visit, plan, &only).await?,
        _ => {
            return Err(no_such_action(
                Engine::Postgres,
                &plan.what,
                "rows, partitions, slots, prepared transactions, sessions, temporary tables, vacuum, repack and reindex",
            ));
        }
    };
    plan.engine_data = serde_json::to_value(&found).expect("plain data can be JSON");
    Ok(())
}

pub(super) fn is_meant(only: &[String], schema: &str, name: &str) -> bool {
    only.is_empty()
        || only
            .iter()
            .any(|one| Pattern::parse(one).matches(schema, name))
}

async fn slots(
    visit: &mut Visit,
    plan: &mut CleanupPlan,
    only: &[String],
    inactive_for_seconds: u64,
    retained_bytes: u64,
) -> Result<Vec<Orphan>, EngineError> {
    let knows_since = visit.server.major() >= 17;
    if !knows_since && inactive_for_seconds > 0 && retained_bytes == 0 {
        refuse(
            plan,
            "before version 17 a server does not say since when a slot has no reader",
            "say `--retained 1GiB`: a slot without a reader that holds back so much WAL",
        );
        return Ok(Vec::new());
    }
    let since = if knows_since {
        "inactive_since"
    } else {
        "NULL::timestamptz"
    };
    let mut conditions = vec!["NOT active".to_owned()];
    if knows_since {
        conditions.push(format!(
            "inactive_since <= clock_timestamp() - interval '1 second' * {inactive_for_seconds}"
        ));
    }
    if retained_bytes > 0 {
        conditions.push(format!(
            "pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) >= {retained_bytes}"
        ));
    }
    let conditions = conditions.join(" AND ");
    let rows = visit
        .session
        .query(&format!(
            "SELECT slot_name, slot_type, COALESCE(plugin, ''), COALESCE(database, ''), {since}::text,
                GREATEST(COALESCE(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0), 0)::bigint
             FROM pg_replication_slots WHERE NOT temporary AND {conditions} ORDER BY slot_name"
        ))
        .await
        .map_err(|error| error.doing("looking at replication slots"))?;
    let mut found = Vec::new();
    for row in &rows {
        let name = row.string(0)?;
        if !is_meant(only, "", &name) {
            continue;
        }
        let (of_type, plugin, database) = (row.text(1)?, row.text(2)?, row.text(3)?);
        let again = if of_type == "physical" {
            format!(
                "SELECT pg_create_physical_replication_slot({});",
                literal(&name)
            )
        } else {
            format!(
                "SELECT pg_create_logical_replication_slot({}, {}); in {database}",
                literal(&name),
                literal(plugin)
            )
        };
        plan.items.push(CleanupItem {
            name: name.clone(),
            rows: 1,
            bytes: row.get(5)?,
            oldest: row.maybe_string(4)?,
            newest: None,
            note: format!("{of_type} slot; made anew with: {again} (what it held back is gone)"),
        });
        found.push(Orphan {
            statement: format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {} AND {conditions}",
                literal(&name)
            ),
            name,
            still: None,
        });
    }
    Ok(found)
}

async fn prepared(
    visit: &mut Visit,
    plan: &mut CleanupPlan,
    older_than_seconds: u64,
) -> Result<Vec<Orphan>, EngineError> {
    let rows = visit
        .session
        .query(&format!(
            "SELECT gid, owner, prepared::text FROM pg_prepared_xacts WHERE database = current_database()
                 AND prepared <= clock_timestamp() - interval '1 second' * {older_than_seconds} ORDER BY prepared"
        ))
        .await
        .map_err(|error| error.doing("looking at prepared transactions"))?;
    let mut found = Vec::new();
    for row in &rows {
        let gid = row.string(0)?;
        plan.items.push(CleanupItem {
            name: gid.clone(),
            rows: 1,
            oldest: row.maybe_string(2)?,
            note: format!(
                "prepared by {}; it is rolled back, and what it wrote is gone for good",
                row.text(1)?
            ),
            ..CleanupItem::default()
        });
        found.push(Orphan {
            still: Some(format!(
                "SELECT 1 FROM pg_prepared_xacts WHERE gid = {} AND prepared = {}::timestamptz",
                literal(&gid),
                literal(row.text(2)?)
            )),
            statement: format!("ROLLBACK PREPARED {}", literal(&gid)),
            name: gid,
        });
    }
    Ok(found)
}

async fn sessions(
    visit: &mut Visit,
    plan: &mut CleanupPlan,
    idle_in_transaction: Option<u64>,
    idle: Option<u64>,
) -> Result<Vec<Orphan>, EngineError> {
    let mut states = Vec::new();
    for (seconds, state) in [
        (
            idle_in_transaction,
            "('idle in transaction', 'idle in transaction (aborted)')",
        ),
        (idle, "('idle')"),
    ] {
        if let Some(seconds) = seconds {
            states.push(format!(
                "(state IN {state} AND state_change <= clock_timestamp() - interval '1 second' * {seconds})"
            ));
        }
    }
    if states.is_empty() {
        refuse(
            plan,
            "nothing says which sessions are meant",
            "say `--idle-in-transaction 1h`, or `--idle 1d`",
        );
        return Ok(Vec::new());
    }
    let states = states.join(" OR ");
    // Fettler's own sessions have jobs that look after them.
    let rows = visit
        .session
        .query(&format!(
            "SELECT pid, backend_start::text, state_change::text, state, COALESCE(usename, ''), COALESCE(application_name, '')
             FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                 AND backend_type = 'client backend' AND application_name NOT LIKE 'fettler%' AND ({states}) ORDER BY state_change"
        ))
        .await
        .map_err(|error| error.doing("looking at sessions"))?;
    let mut found = Vec::new();
    for row in &rows {
        let (pid, begun, changed): (u32, _, _) = (row.get(0)?, row.text(1)?, row.string(2)?);
        let name = format!("session {pid}");
        plan.items.push(CleanupItem {
            name: name.clone(),
            rows: 1,
            oldest: Some(changed.clone()),
            note: format!("{} of {} ({})", row.text(3)?, row.text(4)?, row.text(5)?),
            ..CleanupItem::default()
        });
        found.push(Orphan {
            // The very session, and since then without a word.
            statement: format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {pid} AND backend_start = {}::timestamptz
                    AND state_change = {}::timestamptz",
                literal(begun),
                literal(&changed)
            ),
            name,
            still: None,
        });
    }
    Ok(found)
}

async fn temporary(visit: &mut Visit, plan: &mut CleanupPlan) -> Result<Vec<Orphan>, EngineError> {
    // Before version 16 the server does not say which of these numbers belong to sessions that live.
    if visit.server.major() < 16 {
        refuse(
            plan,
            "before version 16 a server does not say whose temporary tables are whose",
            "leave it to autovacuum, which drops them when it comes to the database",
        );
        return Ok(Vec::new());
    }
    // A backend's number is taken by the next session, which clears the schema when it first uses it: what is left meanwhile
    // keeps the transaction counter from being frozen.
    let backends = "pg_stat_get_backend_idset()";
    let rows = visit
        .session
        .query(&format!(
            "SELECT n.nspname, c.relname, pg_total_relation_size(c.oid), age(c.relfrozenxid)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND c.relpersistence = 't' AND n.nspname ~ '^pg_temp_[0-9]+$'
                 AND substring(n.nspname FROM 9)::int NOT IN (SELECT {backends}) ORDER BY 1, 2"
        ))
        .await
        .map_err(|error| error.doing("looking for temporary tables"))?;
    let mut found = Vec::new();
    for row in &rows {
        let (schema, table) = (row.string(0)?, row.string(1)?);
        let name = display_name(&schema, &table);
        plan.items.push(CleanupItem {
            name: name.clone(),
            rows: 1,
            bytes: row.get(2)?,
            note: format!("its session is gone; {} transactions old", row.text(3)?),
            ..CleanupItem::default()
        });
        found.push(Orphan {
            still: Some(format!(
                "SELECT 1 WHERE to_regclass({}) IS NOT NULL AND substring({} FROM 9)::int NOT IN (SELECT {backends})",
                literal(&qualified(&schema, &table)),
                literal(&schema)
            )),
            statement: format!("DROP TABLE {}", qualified(&schema, &table)),
            name,
        });
    }
    Ok(found)
}

async fn vacuum(
    visit: &mut Visit,
    plan: &mut CleanupPlan,
    only: &[String],
    dead_percent: u32,
) -> Result<Vec<Orphan>, EngineError> {
    let rows = visit
        .session
        .query(&format!(
            "SELECT schemaname, relname, n_dead_tup, n_live_tup, pg_total_relation_size(relid),
                COALESCE(GREATEST(last_vacuum, last_autovacuum)::text, 'never')
             FROM pg_stat_user_tables WHERE n_dead_tup >= 50
                 AND n_dead_tup * 100 >= (n_dead_tup + n_live_tup) * {dead_percent}::bigint ORDER BY n_dead_tup DESC"
        ))
        .await
        .map_err(|error| error.doing("looking for dead rows"))?;
    let mut found = Vec::new();
    for row in &rows {
        let (schema, table) = (row.string(0)?, row.string(1)?);
        if !is_meant(only, &schema, &table) {
            continue;
        }
        let name = display_name(&schema, &table);
        plan.items.push(CleanupItem {
            name: name.clone(),
            rows: row.get(2)?,
            bytes: row.get(4)?,
            oldest: row.maybe_string(5)?,
            newest: None,
            note: format!("dead rows beside {} live ones", row.text(3)?),
        });
        found.push(Orphan {
            name,
            statement: format!("VACUUM (ANALYZE) {}", qualified(&schema, &table)),
            still: None,
        });
    }
    Ok(found)
}

async fn reindex(
    visit: &mut Visit,
    plan: &mut CleanupPlan,
    only: &[String],
) -> Result<Vec<Orphan>, EngineError> {
    let rows = visit
        .session
        .query(
            "SELECT n.nspname, i.relname, t.relname, pg_relation_size(i.oid), i.oid,
                i.relname ~ '_cc(new|old)[0-9]*$'
             FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
             JOIN pg_namespace n ON n.oid = i.relnamespace
             WHERE NOT x.indisvalid AND i.relkind = 'i' AND n.nspname !~ '^pg_'
                 AND NOT EXISTS (SELECT FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid
                     WHERE l.relation = i.oid AND l.mode IN ('ShareUpdateExclusiveLock', 'AccessExclusiveLock'))
             ORDER BY 1, 2",
        )
        .await
        .map_err(|error| error.doing("looking for invalid indexes"))?;
    if visit.server.major() < 12 && !rows.is_empty() {
        refuse(
            plan,
            "before version 12 an index cannot be made anew beside its use",
            "drop the invalid indexes, and create them again with CREATE INDEX CONCURRENTLY",
        );
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for row in &rows {
        let (schema, index, table) = (row.string(0)?, row.string(1)?, row.string(2)?);
        if !is_meant(only, &schema, &table) && !is_meant(only, &schema, &index) {
            continue;
        }
        let name = display_name(&schema, &index);
        let sql = qualified(&schema, &index);
        // What a REINDEX CONCURRENTLY that failed left beside the index itself is of no use.
        let is_left = row.flag(5)?;
        let (statement, note) = if is_left {
            (
                format!("DROP INDEX CONCURRENTLY {sql}"),
                "left by an attempt to make an index anew; it is dropped",
            )
        } else {
            (
                format!("REINDEX INDEX CONCURRENTLY {sql}"),
                "invalid: it is kept up to date, and no query uses it; it is made anew",
            )
        };
        plan.items.push(CleanupItem {
            name: name.clone(),
            rows: 1,
            bytes: row.get(3)?,
            oldest: None,
            newest: None,
            note: format!("index of {}; {note}", quote_ident(&table)),
        });
        found.push(Orphan {
            name,
            statement,
            still: Some(format!(
                "SELECT 1 FROM pg_index WHERE indexrelid = {} AND NOT indisvalid",
                row.get::<u32>(4)?
            )),
        });
    }
    Ok(found)
}

/// Removes, or puts in order. What was done before it was interrupted is not found again by its own question.
pub(super) async fn remove(
    context: &EngineContext,
    target: &Target,
    plan: &CleanupPlan,
) -> Result<CleanupRemoved, EngineError> {
    let orphans: Vec<Orphan> = data(plan)?;
    let mut visit = Visit::begin(context, target).await?;
    let mut removed = CleanupRemoved::default();
    for orphan in &orphans {
        context.check_stop()?;
        context.fence.check().await?;
        context.progress.item(&orphan.name);
        let doing = format!("cleaning {}", orphan.name);
        if let Some(still) = &orphan.still {
            let rows = visit
                .session
                .query(still)
                .await
                .map_err(|error| error.doing(&doing))?;
            if rows.is_empty() {
                removed.gone += 1;
                continue;
            }
        }
        let is_question = orphan.statement.starts_with("SELECT");
        match visit.session.query(&orphan.statement).await {
            Ok(rows) if is_question && rows.is_empty() => removed.gone += 1,
            Ok(_) => removed.removed += 1,
            // Somebody holds it, or it is in use again.
            Err(error) if matches!(error.code(), Some("55P03" | "55006" | "40P01")) => {
                removed.busy += 1;
                removed.kept.push(format!("{}: {error}", orphan.name));
            }
            Err(error) => return Err(error.doing(&doing)),
        }
        context.progress.add(0, 1);
    }
    visit.end().await;
    Ok(removed)
}
