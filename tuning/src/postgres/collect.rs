//! Asks a server for its [`Facts`]: catalogue and statistics by one statement each, as the server's own JSON.

use fettler_engine::{EngineError, StatementError, Workbench};
use serde::de::DeserializeOwned;

use super::facts::{Facts, NoStatements, Server, Setting, Statement, Table};

/// How many recorded statements are read: those with the most time.
const MOST_STATEMENTS: u32 = 300;
/// How many tables are looked at: the largest.
const MOST_TABLES: u32 = 2000;
/// Where it is said what tuning was doing.
const DOING: &str = "looking at what there is to tune";

const SERVER: &str = "
SELECT row_to_json(s) FROM (SELECT
    current_setting('server_version') AS version,
    current_setting('server_version_num')::int AS version_num,
    pg_is_in_recovery() AS in_recovery,
    pg_database_size(current_database())::float8 AS database_bytes,
    extract(epoch FROM now() - pg_postmaster_start_time())::float8 AS up_seconds,
    extract(epoch FROM now() - d.stats_reset)::float8 AS stats_seconds,
    coalesce(d.stats_reset, pg_postmaster_start_time())::text AS stats_reset,
    (SELECT count(*) FROM pg_stat_replication)::int AS replicas,
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int AS sessions,
    d.blks_hit::float8 AS blocks_hit, d.blks_read::float8 AS blocks_read, d.temp_bytes::float8 AS temp_bytes
    FROM pg_stat_database d WHERE d.datname = current_database()) s";

const SETTINGS: &str = "
SELECT json_object_agg(name, json_build_object('value', setting, 'unit', unit)) FROM pg_settings";

const COLUMNS: &str = "
SELECT a.attrelid, json_agg(json_build_object(
    'number', a.attnum, 'name', a.attname, 'not_null', a.attnotnull, 'boolean', a.atttypid = 'bool'::regtype,
    'sortable', t.typtype = 'e' OR t.typname = 'varchar' OR EXISTS (
        SELECT 1 FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
        WHERE m.amname = 'btree' AND o.opcdefault AND o.opcintype = coalesce(nullif(t.typbasetype, 0), t.oid)),
    'width', coalesce(s.avg_width, 8), 'distinct', coalesce(s.n_distinct, 0), 'null_share', coalesce(s.null_frac, 0),
    'correlation', coalesce(s.correlation, 0), 'commonest', coalesce(s.most_common_freqs[1], 0),
    'common_values', coalesce(array_length(s.most_common_freqs, 1), 0),
    'true_share', CASE WHEN a.atttypid = 'bool'::regtype THEN
        s.most_common_freqs[array_position(s.most_common_vals::text::text[], 't')] END,
    'statistics_target', coalesce(a.attstattarget, -1)) ORDER BY a.attnum) AS columns
FROM pg_attribute a JOIN chosen c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_stats s ON s.schemaname = c.nspname AND s.tablename = c.relname AND s.attname = a.attname AND NOT s.inherited
WHERE a.attnum > 0 AND NOT a.attisdropped GROUP BY a.attrelid";

const TABLES: &str = "
SELECT coalesce(json_agg(t), '[]') FROM (SELECT
    c.oid::bigint AS oid, c.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
    greatest(c.reltuples, 0)::float8 AS rows, c.relpages::float8 AS pages,
    CASE WHEN c.relpages > 0 THEN least(1, c.relallvisible::float8 / c.relpages) ELSE 0 END AS all_visible,
    c.bytes::float8 AS bytes, c.reloptions AS options,
    coalesce(s.seq_scan, 0)::float8 AS seq_scans, coalesce(s.idx_scan, 0)::float8 AS index_scans,
    coalesce(s.n_tup_ins, 0)::float8 AS inserted, coalesce(s.n_tup_upd, 0)::float8 AS updated,
    coalesce(s.n_tup_del, 0)::float8 AS deleted, coalesce(s.n_tup_hot_upd, 0)::float8 AS hot_updated,
    coalesce(s.n_live_tup, 0)::float8 AS live, coalesce(s.n_dead_tup, 0)::float8 AS dead,
    coalesce(k.columns, '[]') AS columns
    FROM chosen c LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid LEFT JOIN columns k ON k.attrelid = c.oid) t";

const CHOSEN: &str = "
SELECT c.*, n.nspname, pg_relation_size(c.oid) AS bytes FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY pg_relation_size(c.oid) DESC";

const INDEXES: &str = "
SELECT coalesce(json_agg(i), '[]') FROM (SELECT
    c.oid::bigint AS oid, i.indrelid::bigint AS table, n.nspname AS schema, c.relname AS name, m.amname AS method,
    i.indisunique AS unique, i.indisprimary AS primary, i.indisvalid AND i.indisready AS valid,
    CASE WHEN EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = c.oid) THEN 'a constraint'
         WHEN i.indisreplident THEN 'the replica identity' WHEN i.indisclustered THEN 'CLUSTER'
         WHEN EXISTS (SELECT 1 FROM pg_inherits h WHERE h.inhrelid = c.oid) OR c.relkind = 'I' THEN 'a partitioned index'
         WHEN EXISTS (SELECT 1 FROM pg_depend e WHERE e.objid = c.oid AND e.deptype = 'e') THEN 'an extension' END AS needed_by,
    (SELECT coalesce(json_agg(k ORDER BY o), '[]') FROM unnest(i.indkey::int2[]) WITH ORDINALITY u(k, o) WHERE o <= i.indnkeyatts) AS key,
    (SELECT coalesce(json_agg(concat_ws(' ', cl, co, op) ORDER BY o), '[]')
     FROM unnest(i.indclass::oid[], i.indcollation::oid[], i.indoption::int2[]) WITH ORDINALITY u(cl, co, op, o)) AS details,
    (SELECT coalesce(json_agg(k ORDER BY o), '[]') FROM unnest(i.indkey::int2[]) WITH ORDINALITY u(k, o) WHERE o > i.indnkeyatts) AS included,
    pg_get_expr(i.indexprs, i.indrelid) AS expressions, pg_get_expr(i.indpred, i.indrelid) AS predicate,
    pg_get_indexdef(c.oid) AS definition, pg_relation_size(c.oid)::float8 AS bytes, greatest(c.reltuples, 0)::float8 AS rows,
    coalesce(s.idx_scan, 0)::float8 AS scans
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am m ON m.oid = c.relam
    LEFT JOIN pg_stat_all_indexes s ON s.indexrelid = c.oid
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY c.oid) i";

const FOREIGN_KEYS: &str = "
SELECT coalesce(json_agg(k), '[]') FROM (SELECT conname AS name, conrelid::bigint AS table, conkey AS columns,
    confrelid::bigint AS referenced FROM pg_constraint WHERE contype = 'f' AND conparentid = 0) k";

/// Asks for everything.
pub(crate) async fn collect(bench: &mut dyn Workbench) -> Result<Facts, EngineError> {
    let mut server: Server = json(bench, SERVER).await?;
    // The counters moved in version 17.
    let checkpoints = if server.version_num >= 170_000 {
        "SELECT num_timed, num_requested FROM pg_stat_checkpointer"
    } else {
        "SELECT checkpoints_timed, checkpoints_req FROM pg_stat_bgwriter"
    };
    if let Some(line) = lines(bench, checkpoints).await?.first() {
        server.checkpoints_timed = number(line.first());
        server.checkpoints_requested = number(line.get(1));
    }
    let settings: std::collections::BTreeMap<String, Setting> = json(bench, SETTINGS).await?;
    let tables: Vec<Table> = json(
        bench,
        &format!("WITH chosen AS ({CHOSEN} LIMIT {MOST_TABLES}), columns AS ({COLUMNS}) {TABLES}"),
    )
    .await?;
    let indexes = json(bench, INDEXES).await?;
    let foreign_keys = json(bench, FOREIGN_KEYS).await?;
    let (statements, statements_seconds) = statements(bench, &server, &settings).await?;
    let hypopg = schema_of(bench, "hypopg").await?;
    let (memory_bytes, processors) = machine(bench).await?;
    Ok(Facts {
        server,
        settings,
        tables,
        indexes,
        foreign_keys,
        statements,
        statements_seconds,
        hypopg,
        memory_bytes,
        processors,
    })
}

/// The schema of an extension, where it is made in this database.
pub(crate) async fn schema_of(
    bench: &mut dyn Workbench,
    extension: &str,
) -> Result<Option<String>, EngineError> {
    let found = lines(
        bench,
        &format!(
            "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = '{extension}'"
        ),
    )
    .await?;
    Ok(found
        .into_iter()
        .next()
        .and_then(|line| line.into_iter().next().flatten()))
}

/// The record of statements, and for how many seconds it has been kept.
async fn statements(
    bench: &mut dyn Workbench,
    server: &Server,
    settings: &std::collections::BTreeMap<String, Setting>,
) -> Result<(Result<Vec<Statement>, NoStatements>, f64), EngineError> {
    if server.version_num < 130_000 {
        return Ok((Err(NoStatements::TooOld), 0.0));
    }
    let Some(schema) = schema_of(bench, "pg_stat_statements").await? else {
        let loaded = settings.contains_key("pg_stat_statements.max");
        let why = if loaded {
            NoStatements::NotMade
        } else {
            NoStatements::NotLoaded
        };
        return Ok((Err(why), 0.0));
    };
    let schema = super::facts::quote(&schema);
    // A role that may not see others' statements is shown their times without their texts.
    let sql = format!(
        "SELECT coalesce(json_agg(s), '[]') FROM (SELECT queryid::text AS id, min(query) AS text, sum(calls)::float8 AS calls,
             sum(total_exec_time) AS total_ms, sum(rows)::float8 AS rows, sum(shared_blks_read)::float8 AS blocks_read,
             sum(temp_blks_written)::float8 AS temp_blocks,
             sum(shared_blks_hit + shared_blks_read + local_blks_hit + local_blks_read + temp_blks_read + temp_blks_written)::float8 AS blocks
         FROM {schema}.pg_stat_statements
         WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND queryid IS NOT NULL
         GROUP BY queryid ORDER BY sum(total_exec_time) DESC LIMIT {MOST_STATEMENTS}) s"
    );
    let found: Vec<Statement> = match bench.run(&sql).await {
        Ok(lines) => read(lines)?,
        Err(StatementError::Refused { code, .. }) if code == "55000" => {
            return Ok((Err(NoStatements::NotLoaded), 0.0));
        }
        Err(StatementError::Refused { code, .. }) if code == "42501" => {
            return Ok((Err(NoStatements::NotAllowed), 0.0));
        }
        Err(error) => return Err(error.doing(DOING)),
    };
    if !found.is_empty()
        && found
            .iter()
            .all(|statement| statement.text == "<insufficient privilege>")
    {
        return Ok((Err(NoStatements::NotAllowed), 0.0));
    }
    let seconds = if server.version_num >= 140_000 {
        let sql = format!(
            "SELECT extract(epoch FROM now() - stats_reset) FROM {schema}.pg_stat_statements_info"
        );
        match bench.run(&sql).await {
            Ok(lines) => lines.first().map_or(0.0, |line| number(line.first())),
            Err(StatementError::Refused { .. }) => 0.0,
            Err(error) => return Err(error.doing(DOING)),
        }
    } else {
        server.up_seconds
    };
    Ok((Ok(found), seconds))
}

/// A file of the server's machine, where the role may read it.
async fn file_of(bench: &mut dyn Workbench, path: &str) -> Result<Option<String>, EngineError> {
    match bench.run(&format!("SELECT pg_read_file('{path}')")).await {
        Ok(lines) => Ok(lines
            .into_iter()
            .next()
            .and_then(|line| line.into_iter().next().flatten())),
        Err(StatementError::Refused { .. }) => Ok(None),
        Err(StatementError::Lost(error)) => Err(error),
    }
}

/// Memory and processors of the server's machine, which only some roles may see, and only on Linux.
async fn machine(bench: &mut dyn Workbench) -> Result<(Option<u64>, Option<u32>), EngineError> {
    let all = file_of(bench, "/proc/meminfo").await?.and_then(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .map(|kilobytes| kilobytes * 1024)
    });
    // A container's share is what counts, where there is one.
    let share = match all {
        None => None,
        Some(_) => file_of(bench, "/sys/fs/cgroup/memory.max")
            .await?
            .and_then(|text| text.trim().parse::<u64>().ok()),
    };
    let processors = file_of(bench, "/proc/cpuinfo")
        .await?
        .map(|text| {
            text.lines()
                .filter(|line| line.starts_with("processor"))
                .count()
        })
        .and_then(|count| u32::try_from(count).ok())
        .filter(|count| *count > 0);
    let memory = match (all, share) {
        (Some(all), Some(share)) => Some(all.min(share)),
        (all, _) => all,
    };
    Ok((memory, processors))
}

pub(crate) async fn lines(
    bench: &mut dyn Workbench,
    sql: &str,
) -> Result<Vec<fettler_engine::Line>, EngineError> {
    bench.run(sql).await.map_err(|error| error.doing(DOING))
}

async fn json<T: DeserializeOwned>(bench: &mut dyn Workbench, sql: &str) -> Result<T, EngineError> {
    read(lines(bench, sql).await?)
}

fn read<T: DeserializeOwned>(lines: Vec<fettler_engine::Line>) -> Result<T, EngineError> {
    let text = lines
        .into_iter()
        .next()
        .and_then(|line| line.into_iter().next().flatten())
        .unwrap_or_else(|| "null".to_owned());
    serde_json::from_str(&text).map_err(|error| EngineError::Database {
        what: format!("{DOING}: an answer cannot be read: {error}"),
        transient: false,
    })
}

pub(crate) fn number(value: Option<&Option<String>>) -> f64 {
    value
        .and_then(Option::as_deref)
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}
