//! Tables whose files are mostly empty room, written anew beside their use by `pg_repack`.
//!
//! VACUUM gives the room of dead rows to the table, and hardly ever to the system. VACUUM FULL does, and locks the table for as long
//! as it takes. `pg_repack` copies the table, applies what was written meanwhile, and swaps the files in a moment's lock.

use fettler_engine::{EngineContext, EngineError, Target};
use fettler_model::{CleanupItem, CleanupPlan, CleanupRemoved};
use serde::{Deserialize, Serialize};

use crate::{
    error::WireError,
    names::{display_name, qualified},
    params::Params,
    tools::{self, Tools},
};

use super::{Visit, data, orphans::is_meant, refuse};

/// The program, and its extension.
const PROGRAM: &str = "pg_repack";
/// Smaller tables are not worth it.
const SMALLEST_BYTES: u64 = 512 * 1024;
/// What `pg_repack` waits for the lock of the swap, in seconds. Each try holds up others for less than a second.
const WAIT_SECONDS: &str = "30";
/// The first half of the advisory lock that `pg_repack` holds for a table; the second is made of the table's OID.
const LOCK_CLASS: u32 = 16_185_446;

/// What is written anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Work {
    /// The version of the extension, and so of the program.
    version: String,
    tables: Vec<Table>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Table {
    name: String,
    sql: String,
    oid: u32,
    /// Its file. Another one means that somebody has written it anew.
    file: u32,
}

/// Plans.
pub(super) async fn plan(
    visit: &mut Visit,
    plan: &mut CleanupPlan,
    tools: &Tools,
    only: &[String],
    empty_percent: u32,
) -> Result<(), EngineError> {
    let version = visit
        .session
        .query("SELECT extversion FROM pg_extension WHERE extname = 'pg_repack'")
        .await
        .map_err(|error| error.doing("looking for pg_repack"))?;
    let Some(version) = version.first() else {
        refuse(
            plan,
            "the extension pg_repack is not in this database",
            "install it at the server (Debian: postgresql-15-repack, with the server's version) and run CREATE EXTENSION pg_repack",
        );
        return Ok(());
    };
    let version = version.string(0)?;
    if tools.of_version(PROGRAM, &version).await.is_none() {
        refuse(
            plan,
            format!(
                "the program pg_repack of version {version}, like the extension's, was not found where the worker runs"
            ),
            format!(
                "install it there, or name its folder in {}",
                tools::FOLDERS_VARIABLE
            ),
        );
        return Ok(());
    }
    let tables = roomy(visit, plan, only, empty_percent).await?;
    if !tables.is_empty() {
        plan.notes.push(
            "each table is copied with its indexes, one after the other: the largest must fit on the server's disk once more"
                .to_owned(),
        );
    }
    plan.engine_data =
        serde_json::to_value(Work { version, tables }).expect("plain data can be JSON");
    Ok(())
}

/// Tables of whose file so much in a hundred is empty by an estimate: its rows, by the widths that ANALYZE has seen, need no more.
async fn roomy(
    visit: &mut Visit,
    plan: &mut CleanupPlan,
    only: &[String],
    empty_percent: u32,
) -> Result<Vec<Table>, EngineError> {
    // A row has a pointer of 4 bytes and a header of 24, and ends at a multiple of 8; a page has a header of 24.
    let rows = visit
        .session
        .query(&format!(
            "WITH block AS (SELECT current_setting('block_size')::numeric AS bytes), sized AS (
                SELECT n.nspname, c.relname, c.oid, pg_relation_filenode(c.oid) AS file, c.reltuples,
                    pg_relation_size(c.oid) AS bytes, pg_total_relation_size(c.oid) AS whole,
                    ceil(c.reltuples::numeric * (28 + ceil(w.width / 8) * 8) * 100
                        / ((block.bytes - 24) * COALESCE((SELECT option_value::int FROM pg_options_to_table(c.reloptions)
                            WHERE option_name = 'fillfactor'), 100))) * block.bytes AS needed,
                    EXISTS (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisunique AND x.indisvalid AND x.indimmediate
                        AND x.indpred IS NULL AND x.indexprs IS NULL AND NOT EXISTS (SELECT FROM pg_attribute a
                            WHERE a.attrelid = c.oid AND a.attnum = ANY(x.indkey) AND NOT a.attnotnull)) AS has_key
                FROM block, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                CROSS JOIN LATERAL (SELECT sum((1 - s.null_frac) * s.avg_width)::numeric AS width, count(*) AS seen FROM pg_stats s
                    WHERE s.schemaname = n.nspname AND s.tablename = c.relname AND NOT s.inherited) w
                WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.reltuples >= 0 AND n.nspname !~ '^pg_'
                    AND n.nspname NOT IN ('information_schema', 'repack') AND pg_relation_size(c.oid) >= {SMALLEST_BYTES}
                    AND w.seen = (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))
             SELECT nspname, relname, oid, file, reltuples::bigint, bytes, whole, (bytes - needed)::bigint,
                (100 * (bytes - needed) / bytes)::int, has_key
             FROM sized WHERE bytes - needed >= bytes * {empty_percent}::numeric / 100 ORDER BY bytes - needed DESC"
        ))
        .await
        .map_err(|error| error.doing("looking for tables with empty room"))?;
    let mut found = Vec::new();
    for row in &rows {
        let (schema, table) = (row.string(0)?, row.string(1)?);
        if !is_meant(only, &schema, &table) {
            continue;
        }
        let name = display_name(&schema, &table);
        if !row.flag(9)? {
            plan.notes.push(format!(
                "{name} is about {} % empty and left out: it has no primary key, nor another unique one without NULL, which pg_repack needs",
                row.text(8)?
            ));
            continue;
        }
        plan.items.push(CleanupItem {
            name: name.clone(),
            rows: row.get(4)?,
            bytes: row.get(7)?,
            note: format!(
                "about {} % of its {} bytes are empty, by its statistics; the copy with its indexes takes up to {} bytes",
                row.text(8)?,
                row.text(5)?,
                row.text(6)?
            ),
            ..CleanupItem::default()
        });
        found.push(Table {
            name,
            sql: qualified(&schema, &table),
            oid: row.get(2)?,
            file: row.get(3)?,
        });
    }
    Ok(found)
}

/// Writes them anew, one after the other. One that an attempt before this one has written has another file, and is left alone.
pub(super) async fn remove(
    context: &EngineContext,
    target: &Target,
    plan: &CleanupPlan,
    tools: &Tools,
) -> Result<CleanupRemoved, EngineError> {
    let work: Work = data(plan)?;
    let params = Params::of(target)?;
    let mut visit = Visit::begin(context, target).await?;
    let mut removed = CleanupRemoved::default();
    for table in &work.tables {
        context.check_stop()?;
        context.fence.check().await?;
        context.progress.item(&table.name);
        if file_of(&mut visit, table).await? != Some(table.file) {
            removed.gone += 1;
            continue;
        }
        if let Err(error) = drop_leftovers(&mut visit, table).await {
            if error.code() != Some("55P03") {
                return Err(error.doing("removing what a pg_repack that was killed has left"));
            }
            removed.busy += 1;
            removed.kept.push(format!("{}: {error}", table.name));
            continue;
        }
        let Some(program) = tools.of_version(PROGRAM, &work.version).await else {
            return Err(EngineError::Missing {
                code: PROGRAM,
                what: format!("pg_repack {} was not found", work.version),
                remedy: "install it where the worker runs".to_owned(),
            });
        };
        let mut command = tools::connected(&program, &params, &context.attempt.to_string());
        command.args(["--no-order", "--no-kill-backend", "--no-superuser-check"]);
        command.args(["--wait-timeout", WAIT_SECONDS, "--table", &table.sql]);
        let ended = tools::run(command, PROGRAM, &context.stop, &mut |_| ()).await?;
        if file_of(&mut visit, table).await? != Some(table.file) {
            removed.removed += 1;
        } else if ended.status.success() {
            // It gave up for the lock, and says so.
            removed.busy += 1;
            let said = ended.complaints.trim().lines().last().unwrap_or_default();
            removed.kept.push(format!("{}: {said}", table.name));
        } else {
            return Err(ended.error(PROGRAM));
        }
        context.progress.add(0, 1);
    }
    visit.end().await;
    Ok(removed)
}

async fn file_of(visit: &mut Visit, table: &Table) -> Result<Option<u32>, EngineError> {
    let rows = visit
        .session
        .query(&format!(
            "SELECT pg_relation_filenode(oid) FROM pg_class WHERE oid = {}",
            table.oid
        ))
        .await
        .map_err(|error| error.doing("looking at a table's file"))?;
    rows.first().map(|row| row.get(0)).transpose()
}

/// A `pg_repack` that was killed leaves its trigger and its log on the table, and no other begins there. They go, unless one works.
async fn drop_leftovers(visit: &mut Visit, table: &Table) -> Result<(), WireError> {
    let Table { sql, oid, .. } = table;
    let lock = format!("({LOCK_CLASS}, (-2147483648 + {oid}::bigint)::int)");
    let drops = format!(
        "DROP TRIGGER IF EXISTS repack_trigger ON {sql}; DROP TABLE IF EXISTS repack.log_{oid}; \
         DROP TABLE IF EXISTS repack.table_{oid}; DROP TYPE IF EXISTS repack.pk_{oid}"
    );
    visit
        .session
        .execute(&format!(
            "DO $$ BEGIN
               IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = {oid} AND tgname = 'repack_trigger')
                   AND pg_try_advisory_xact_lock{lock} THEN {drops}; END IF;
             END $$"
        ))
        .await
}
