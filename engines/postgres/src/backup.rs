//! Reading a database: one consistent moment, by several sessions, into streams.
//!
//! 1. A session fixes the moment (a snapshot), locks every table, and makes sure that no table was changed
//!    between the two: TRUNCATE after the snapshot would make rows vanish without a word. Where one was, it starts again.
//! 2. `pg_dump` writes the definitions of that moment.
//! 3. Sessions that share the snapshot copy the tables, in ranges of pages; each table is counted once more by
//!    a plain scan that knows nothing of ranges (rule 27).
//! 4. Large objects, sequences and roles are kept beside.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use fettler_engine::{
    BackupOptions, BackupReport, Cut, EngineContext, EngineError, Identity, ROW_HASH, StreamEnd,
    StreamSink, Target,
};
use fettler_model::{Fingerprint, ObjectFacts, ObjectKind, Warning};
use futures::{future::try_join_all, try_join};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument, Span};

use crate::{
    PostgresEngine,
    catalogue::{self, RELATIONS_A_STATEMENT, Relation, ServerFacts},
    connect::connect,
    copy::{BUFFER_BYTES, BUFFERS_WAITING, Copied, Format, Reading, copy_out},
    data::{
        BackupData, DATA_FORMAT, DEPENDENCIES_STREAM, GLOBALS_STREAM, SCHEMA_STREAM, TableData,
    },
    identify::{self, MissingRights, can_read_passwords, shortened},
    large_objects,
    names::{Pattern, display_name, literal, qualified},
    params::Params,
    schema,
    sessions::end_predecessors,
    tools::{self, Tool},
    wire::Session,
};

/// How often the moment is chosen anew because tables changed while it was fixed.
const MOMENTS_TRIED: u32 = 10;
/// How long a lock on a table is waited for: whoever waits for ours in turn must not wait long.
const LOCK_WAIT_SECONDS: u32 = 20;
/// How long `pg_dump` waits for one, which it needs while we have it: only a session that waits for our lock to go
/// can stand in its way, so that waiting is in vain.
const DUMP_LOCK_WAIT_SECONDS: u32 = 3;
/// Pages in one range of a table: 64 MiB. Ranges begin at fixed multiples, so that those of a table that
/// only grows keep their bytes.
pub(crate) const RANGE_PAGES: u64 = 8192;
/// Ranges that one table has at most; larger tables have longer ones.
const RANGES_LIMIT: u64 = 4096;

/// The moment that is read, and the session that holds it.
struct Moment {
    holder: Session,
    snapshot: String,
    relations: Vec<Relation>,
    tables: Vec<TableData>,
    server: ServerFacts,
    identity: Identity,
}

/// One piece of reading.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// The table by its place in the list; nothing for large objects.
    pub(crate) table: Option<usize>,
    /// For the message of an error.
    pub(crate) what: String,
    pub(crate) sql: String,
    pub(crate) kind: WorkKind,
    pub(crate) lock: Option<String>,
}

/// What a piece of reading gives.
#[derive(Clone, Debug)]
pub(crate) enum WorkKind {
    /// Rows, into this stream where there is one.
    Rows(Format, Option<String>),
    /// The number of rows.
    Count,
}

/// What was found in one object.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) bytes: u64,
    pub(crate) largest_row: u64,
    pub(crate) counted: Option<u64>,
}

/// Everything that was found, by the table's place in the list.
pub(crate) type Findings = BTreeMap<Option<usize>, Found>;

/// Reads the database.
pub(crate) async fn backup(
    engine: &PostgresEngine,
    context: &EngineContext,
    source: &Target,
    options: &BackupOptions,
    sink: &dyn StreamSink,
) -> Result<BackupReport, EngineError> {
    let params = Params::of(source)?;
    context.progress.begin("prepare", 0, 0);
    let mut warnings = Vec::new();
    end_predecessors(&params, context).await?;

    let excluded: Vec<Pattern> = options
        .exclude
        .iter()
        .map(|text| Pattern::parse(text))
        .collect();
    let archive = context.scratch.join(SCHEMA_STREAM);
    let (mut moment, dump) = fix_moment(engine, context, &params, &excluded, &archive).await?;
    let (definitions, (), ()) = try_join!(
        schema::definitions_of_archive(context, &dump, &archive),
        store_file(context, sink, SCHEMA_STREAM, &archive),
        store_globals(context, &params, &dump, &mut moment, sink, &mut warnings),
    )?;

    let holder = &mut moment.holder;
    let database = catalogue::database(holder, &moment.server).await?;
    let roles = catalogue::roles(holder).await?;
    let tablespaces = catalogue::tablespaces(holder).await?;
    let sequences = catalogue::sequences(holder, &moment.relations).await?;
    let dependencies = Work {
        table: None,
        what: "reading what needs what".to_owned(),
        sql: catalogue::COPY_DEPENDENCIES.to_owned(),
        kind: WorkKind::Rows(Format::Text, Some(DEPENDENCIES_STREAM.to_owned())),
        lock: None,
    };
    let reading = Reading::of(context, &context.stop);
    into_stream(
        holder,
        &dependencies,
        Format::Text,
        &reading,
        sink,
        DEPENDENCIES_STREAM,
    )
    .await?;
    let schema = schema::with_catalogue(holder, definitions, &context.fingerprint_key).await?;
    let invalid_indexes = schema::invalid_indexes(holder).await?;
    let views = catalogue::materialized_views(&moment.relations);
    let large_objects = large_objects::plan(holder, &moment.server).await?;
    let large_object_list = match &large_objects {
        Some(plan) => Some(large_objects::store_list(context, holder, plan, sink).await?),
        None => None,
    };

    note_what_is_missing(&mut moment, &excluded, &mut warnings);
    let work = plan(engine, &mut moment, large_objects.as_ref()).await?;
    let findings = read(context, &params, &mut moment, work, Some(sink)).await?;

    let position = position(&mut moment).await?;
    moment
        .holder
        .execute("COMMIT")
        .await
        .map_err(|error| error.doing("ending the moment that was read"))?;
    moment.holder.close().await;

    for (at, table) in moment.tables.iter_mut().enumerate() {
        table.largest_row = findings.get(&Some(at)).map_or(0, |found| found.largest_row);
    }
    let mut objects = table_facts(&moment.tables, &findings);
    objects.extend(sequences.iter().map(|sequence| {
        object(
            ObjectKind::Sequence,
            sequence.display(),
            Some(sequence.value()),
        )
    }));
    objects.extend(views.iter().map(|view| {
        object(
            ObjectKind::MaterializedView,
            display_name(&view.schema, &view.name),
            None,
        )
    }));
    objects.push(object(
        ObjectKind::Schema,
        schema::OBJECT_NAME.to_owned(),
        Some(schema.digest.clone()),
    ));
    if let Some(list) = &large_object_list {
        objects.push(large_objects::facts(
            list,
            findings.get(&None).copied().unwrap_or_default(),
        ));
    }
    let data = BackupData {
        format: DATA_FORMAT,
        server_version: moment.server.version,
        dump_major: dump.major,
        dump_version: dump.version,
        encoding: moment.server.encoding.clone(),
        database,
        roles,
        tablespaces,
        tables: moment.tables,
        sequences,
        views,
        large_objects: large_objects.map(super::large_objects::Plan::data),
        invalid_indexes,
        schema,
    };
    Ok(BackupReport {
        identity: moment.identity,
        position,
        objects,
        row_hash: ROW_HASH.to_owned(),
        engine_data: serde_json::to_value(&data).map_err(|error| EngineError::Database {
            what: format!("the backup's description cannot be written: {error}"),
            transient: false,
        })?,
        warnings,
    })
}

fn object(kind: ObjectKind, name: String, value: Option<String>) -> ObjectFacts {
    ObjectFacts {
        kind,
        name,
        fingerprint: None,
        independent_rows: None,
        bytes: 0,
        value,
        format: None,
    }
}

/// The tables as a proof compares them. Partitions that are restored through their parent count as one.
pub(crate) fn table_facts(tables: &[TableData], findings: &Findings) -> Vec<ObjectFacts> {
    let mut facts: BTreeMap<String, ObjectFacts> = BTreeMap::new();
    for (at, table) in tables
        .iter()
        .enumerate()
        .filter(|(_, table)| !table.excluded)
    {
        let found = findings.get(&Some(at)).copied().unwrap_or_default();
        let name = table.compared_as();
        let entry = facts.entry(name.clone()).or_insert_with(|| ObjectFacts {
            fingerprint: Some(Fingerprint::empty()),
            independent_rows: Some(0),
            format: Some(table.rows_as.as_str().to_owned()),
            ..object(ObjectKind::Table, name, None)
        });
        if let Some(sum) = &mut entry.fingerprint {
            sum.merge(&found.fingerprint);
        }
        entry.independent_rows = match (entry.independent_rows, found.counted) {
            (Some(sum), Some(counted)) => Some(sum + counted),
            _ => None,
        };
        entry.bytes += found.bytes;
    }
    facts.into_values().collect()
}

/// Fixes the moment and writes the definitions of it; tries again while tables change under its hands.
async fn fix_moment(
    engine: &PostgresEngine,
    context: &EngineContext,
    params: &Params,
    excluded: &[Pattern],
    archive: &Path,
) -> Result<(Moment, Tool), EngineError> {
    for tried in 1.. {
        context.check_stop()?;
        let again = |what: &dyn std::fmt::Display| {
            tracing::info!(tried, reason = %what, "the moment to read was chosen anew");
        };
        let mut moment = match try_moment(context, params, excluded).await {
            Ok(moment) => moment,
            Err(Changed::Yes(what)) if tried < MOMENTS_TRIED => {
                again(&what);
                continue;
            }
            Err(Changed::Yes(what)) => {
                return Err(EngineError::Busy {
                    what: format!("tables change too fast to find a moment: {what}"),
                    wait: std::time::Duration::from_secs(60),
                });
            }
            Err(Changed::No(error)) => return Err(error),
        };
        let major = moment.server.major();
        let dump = engine.tools.find("pg_dump", major, major).await?;
        match write_definitions(context, params, &dump, &mut moment, archive).await {
            Ok(()) => return Ok((moment, dump)),
            // Somebody waits for a lock that our lock stands in the way of, and pg_dump waits behind. Letting
            // go is the only way on.
            Err(error @ EngineError::Busy { .. }) if tried < MOMENTS_TRIED => again(&error),
            Err(error) => return Err(error),
        }
    }
    unreachable!("the last try returns")
}

/// Why a moment could not be had.
enum Changed {
    /// A table changed between the snapshot and the lock.
    Yes(String),
    No(EngineError),
}

impl From<EngineError> for Changed {
    fn from(error: EngineError) -> Self {
        Self::No(error)
    }
}

async fn try_moment(
    context: &EngineContext,
    params: &Params,
    excluded: &[Pattern],
) -> Result<Moment, Changed> {
    let name = context.attempt.to_string();
    let mut holder = connect(params, &name).await?;
    let mut witness = connect(params, &name).await?;
    let server = ServerFacts::read(&mut holder).await?;
    if server.major() < identify::OLDEST_MAJOR {
        return Err(Changed::No(EngineError::Missing {
            code: "version",
            what: format!("PostgreSQL {} is too old", server.version_text),
            remedy: format!(
                "version {} is the oldest that can be read",
                identify::OLDEST_MAJOR
            ),
        }));
    }
    let identity = identify::identity(&mut witness, params).await?;
    catalogue::settle(&mut holder, &server).await?;
    catalogue::settle(&mut witness, &server).await?;
    MissingRights::look(&mut witness).await?.check()?;

    let doing = "fixing the moment to read";
    let snapshot = holder
        .query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_export_snapshot()")
        .await
        .map_err(|error| error.doing(doing))?
        .first()
        .ok_or_else(|| EngineError::Database {
            what: "the server exported no snapshot".to_owned(),
            transient: false,
        })?
        .string(0)?;
    let relations = catalogue::relations(&mut holder, &server).await?;
    lock(context, &mut holder, &relations).await?;

    // With the locks held, nothing changes any more; what is there now must be what the snapshot shows.
    let now: BTreeMap<u32, String> = catalogue::relations(&mut witness, &server)
        .await?
        .into_iter()
        .map(|relation| (relation.oid, relation.mark))
        .collect();
    witness.close().await;
    for relation in relations
        .iter()
        .filter(|relation| matches!(relation.kind, 'r' | 'p'))
    {
        if now.get(&relation.oid) != Some(&relation.mark) {
            let name = display_name(&relation.schema, &relation.name);
            return Err(Changed::Yes(format!("{name} was changed or truncated")));
        }
    }
    let mut tables = catalogue::tables(&mut holder, &server, &relations).await?;
    for (table, relation) in tables
        .iter_mut()
        .zip(relations.iter().filter(|relation| relation.kind == 'r'))
    {
        table.excluded = excluded
            .iter()
            .any(|pattern| pattern.matches(&table.schema, &table.name))
            || (relation.unlogged && server.in_recovery);
    }
    Ok(Moment {
        holder,
        snapshot,
        relations,
        tables,
        server,
        identity,
    })
}

/// Takes ACCESS SHARE on every table, as `pg_dump` does.
async fn lock(
    context: &EngineContext,
    holder: &mut Session,
    relations: &[Relation],
) -> Result<(), Changed> {
    let tables: Vec<String> = relations
        .iter()
        .filter(|relation| matches!(relation.kind, 'r' | 'p'))
        .map(|relation| format!("ONLY {}", qualified(&relation.schema, &relation.name)))
        .collect();
    for part in tables.chunks(RELATIONS_A_STATEMENT) {
        let sql = format!(
            "SET LOCAL lock_timeout = '{LOCK_WAIT_SECONDS}s';
             LOCK TABLE {} IN ACCESS SHARE MODE; SET LOCAL lock_timeout = 0",
            part.join(", ")
        );
        let Some(answer) = context.stop.run_until_cancelled(holder.execute(&sql)).await else {
            return Err(Changed::No(EngineError::Stopped));
        };
        match answer {
            Ok(()) => {}
            // It was dropped, or its schema was.
            Err(error) if matches!(error.code(), Some("42P01" | "3F000")) => {
                return Err(Changed::Yes(error.to_string()));
            }
            Err(error) => {
                return Err(Changed::No(
                    error.doing("locking the tables against changes"),
                ));
            }
        }
    }
    Ok(())
}

/// Runs `pg_dump` under the snapshot.
async fn write_definitions(
    context: &EngineContext,
    params: &Params,
    dump: &Tool,
    moment: &mut Moment,
    archive: &Path,
) -> Result<(), EngineError> {
    let mut command = tools::connected(&dump.path, params, &context.attempt.to_string());
    command
        .args([
            "--format=custom",
            "--schema-only",
            "--create",
            "--no-password",
        ])
        .arg(format!("--snapshot={}", moment.snapshot))
        .arg(format!("--lock-wait-timeout={DUMP_LOCK_WAIT_SECONDS}s"))
        .arg(format!("--file={}", archive.display()));
    let ended = tools::run(command, "pg_dump", &context.stop, &mut |_| ()).await?;
    if !ended.status.success() {
        return Err(ended.error("pg_dump"));
    }
    Ok(())
}

/// Stores a file of this machine as a stream.
async fn store_file(
    context: &EngineContext,
    sink: &dyn StreamSink,
    name: &str,
    path: &Path,
) -> Result<(), EngineError> {
    let failed = |error| EngineError::local(format!("reading {}", path.display()), error);
    let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut writer = sink.open(name, Cut::Content).await?;
    loop {
        context.check_stop()?;
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let read = (&mut file)
            .take(BUFFER_BYTES as u64)
            .read_to_end(&mut buffer)
            .await
            .map_err(failed)?;
        if read == 0 {
            break;
        }
        writer.write(buffer.into()).await?;
    }
    writer.finish(StreamEnd::default()).await.map(drop)
}

/// Stores bytes as a stream.
async fn store_bytes(sink: &dyn StreamSink, name: &str, bytes: Vec<u8>) -> Result<(), EngineError> {
    let mut writer = sink.open(name, Cut::Content).await?;
    let mut bytes = Bytes::from(bytes);
    while !bytes.is_empty() {
        writer
            .write(bytes.split_to(bytes.len().min(BUFFER_BYTES)))
            .await?;
    }
    writer.finish(StreamEnd::default()).await.map(drop)
}

/// Stores the roles. A server that does not tell them is no reason to have no backup.
async fn store_globals(
    context: &EngineContext,
    params: &Params,
    dump: &Tool,
    moment: &mut Moment,
    sink: &dyn StreamSink,
    warnings: &mut Vec<Warning>,
) -> Result<(), EngineError> {
    let with_passwords = can_read_passwords(&mut moment.holder).await?;
    let mut command = tools::connected(
        &dump.sibling("pg_dumpall"),
        params,
        &context.attempt.to_string(),
    );
    command
        .args(["--globals-only", "--no-password"])
        .arg(format!("--database={}", conninfo(&params.database)));
    if !with_passwords {
        command.arg("--no-role-passwords");
        warnings.push(Warning {
            code: "postgres.role_passwords".to_owned(),
            message: "roles were kept without their passwords: the role may not read pg_authid"
                .to_owned(),
        });
    }
    let mut text = Vec::new();
    let ended = tools::run(command, "pg_dumpall", &context.stop, &mut |line| {
        // psql's own words, with a token that is another one in each run.
        if !line.starts_with(b"\\") {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
    })
    .await?;
    if !ended.status.success() {
        warnings.push(Warning {
            code: "postgres.roles".to_owned(),
            message: format!(
                "the roles could not be kept, make them by hand before a restore: pg_dumpall said {}",
                ended.complaints.trim()
            ),
        });
        return Ok(());
    }
    store_bytes(sink, GLOBALS_STREAM, text).await
}

/// A database's name for programs that take connection strings there.
pub(crate) fn conninfo(database: &str) -> String {
    format!(
        "dbname='{}'",
        database.replace('\\', "\\\\").replace('\'', "\\'")
    )
}

fn note_what_is_missing(moment: &mut Moment, excluded: &[Pattern], warnings: &mut Vec<Warning>) {
    let foreign: Vec<String> = moment
        .relations
        .iter()
        .filter(|relation| relation.kind == 'f')
        .map(|relation| display_name(&relation.schema, &relation.name))
        .collect();
    let mut warn = |code: &str, message: String| {
        warnings.push(Warning {
            code: format!("postgres.{code}"),
            message,
        });
    };
    if !foreign.is_empty() {
        let names = shortened(&foreign, ", ");
        warn(
            "foreign_tables",
            format!("of the foreign tables {names} only the definitions were kept"),
        );
    }
    let unlogged: Vec<String> = moment
        .relations
        .iter()
        .filter(|relation| relation.unlogged && relation.kind == 'r' && moment.server.in_recovery)
        .map(|relation| display_name(&relation.schema, &relation.name))
        .collect();
    if !unlogged.is_empty() {
        let names = shortened(&unlogged, ", ");
        warn(
            "unlogged_tables",
            format!("a standby has no rows of the unlogged tables {names}"),
        );
    }
    for pattern in excluded {
        let fits = |table: &TableData| pattern.matches(&table.schema, &table.name);
        if !moment.tables.iter().any(fits) {
            warn(
                "exclude",
                format!(
                    "no table fits the pattern {:?} that was to be left out",
                    pattern.as_str()
                ),
            );
        }
    }
}

/// Splits the reading into pieces, large tables first.
async fn plan(
    engine: &PostgresEngine,
    moment: &mut Moment,
    large_objects: Option<&large_objects::Plan>,
) -> Result<VecDeque<Work>, EngineError> {
    let oids: Vec<u32> = moment.tables.iter().map(|table| table.oid).collect();
    let sizes = catalogue::sizes(&mut moment.holder, &oids, &moment.server).await?;
    let access_methods: BTreeMap<u32, &str> = moment
        .relations
        .iter()
        .map(|relation| (relation.oid, relation.access_method.as_str()))
        .collect();
    let mut order: Vec<usize> = (0..moment.tables.len()).collect();
    let bytes_of = |oid: u32| sizes.get(&oid).map_or(0, |(_, bytes)| *bytes);
    order.sort_by_key(|at| std::cmp::Reverse(bytes_of(moment.tables[*at].oid)));
    let mut work = VecDeque::new();
    for at in order {
        let table = &mut moment.tables[at];
        if table.excluded {
            continue;
        }
        let pages = sizes.get(&table.oid).map_or(0, |(pages, _)| *pages);
        let can_split = moment.server.major() >= 14
            && access_methods.get(&table.oid) == Some(&"heap")
            && table.condition.is_empty();
        let ranges = if can_split {
            ranges(pages, engine.range_pages)
        } else {
            vec![Range::All]
        };
        for (number, range) in ranges.iter().enumerate() {
            if engine.skips_a_range && number == 1 {
                continue;
            }
            let stream = format!("table/{}/{number:04}", table.oid);
            table.streams.push(stream.clone());
            work.push_back(Work {
                table: Some(at),
                what: format!("reading {}", table.display()),
                sql: copy_sql(table, *range),
                kind: WorkKind::Rows(table.rows_as, Some(stream)),
                lock: Some(table.quoted()),
            });
        }
        work.push_back(count_work(at, table));
    }
    if let Some(plan) = large_objects {
        work.extend(plan.work());
    }
    Ok(work)
}

/// The count that shares nothing with the ranges.
pub(crate) fn count_work(at: usize, table: &TableData) -> Work {
    Work {
        table: Some(at),
        what: format!("counting {}", table.display()),
        sql: plain_count(&format!("ONLY {} {}", table.quoted(), table.condition)),
        kind: WorkKind::Count,
        lock: Some(table.quoted()),
    }
}

/// Counts by reading the table itself from its first page to its last: an index that lacks rows must not
/// decide.
pub(crate) fn plain_count(from: &str) -> String {
    let switch = |to: &str| {
        format!(
            "SET enable_indexscan = {to}; SET enable_indexonlyscan = {to}; SET enable_bitmapscan = {to};"
        )
    };
    format!(
        "{} SELECT count(*) FROM {from}; {}",
        switch("off"),
        switch("on")
    )
}

/// A part of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    All,
    /// From this page, to before that page.
    Pages(u64, Option<u64>),
}

/// Cuts a table into ranges of pages. The last one has no end: the table may have grown since it was
/// measured.
pub(crate) fn ranges(pages: u64, range_pages: u64) -> Vec<Range> {
    let mut step = range_pages.max(1);
    while pages.div_ceil(step) > RANGES_LIMIT {
        step *= 2;
    }
    let count = pages.div_ceil(step);
    if count < 2 {
        return vec![Range::All];
    }
    (0..count)
        .map(|at| Range::Pages(at * step, (at + 1 < count).then(|| (at + 1) * step)))
        .collect()
}

/// The statement that copies a part of a table.
pub(crate) fn copy_sql(table: &TableData, range: Range) -> String {
    let columns = table.quoted_columns();
    let from = table.quoted();
    let format = table.rows_as.clause();
    let condition = match range {
        Range::All if table.condition.is_empty() => {
            let list = if columns.is_empty() {
                String::new()
            } else {
                format!(" ({columns})")
            };
            return format!("COPY {from}{list} TO STDOUT {format}");
        }
        Range::All => table.condition.clone(),
        Range::Pages(0, Some(to)) => format!("WHERE ctid < '({to},0)'"),
        Range::Pages(begin, Some(to)) => {
            format!("WHERE ctid >= '({begin},0)' AND ctid < '({to},0)'")
        }
        Range::Pages(begin, None) => format!("WHERE ctid >= '({begin},0)'"),
    };
    format!("COPY (SELECT {columns} FROM ONLY {from} {condition}) TO STDOUT {format}")
}

/// Does all the work by several sessions that share the moment.
async fn read(
    context: &EngineContext,
    params: &Params,
    moment: &mut Moment,
    work: VecDeque<Work>,
    sink: Option<&dyn StreamSink>,
) -> Result<Findings, EngineError> {
    context
        .progress
        .begin("read", moment.identity.estimated_bytes, 0);
    let sessions = context.parallel.clamp(1, work.len().max(1));
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        literal(&moment.snapshot)
    );
    let mut readers = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        let mut session = connect(params, &context.attempt.to_string()).await?;
        catalogue::settle(&mut session, &moment.server).await?;
        speak(&mut session, &moment.server.encoding).await?;
        session
            .execute(&begin)
            .await
            .map_err(|error| error.doing("sharing the moment between sessions"))?;
        readers.push(session);
    }
    let shared = Shared::new(context, work);
    let refused = Mutex::new(VecDeque::new());
    let workers = readers
        .into_iter()
        .map(|session| worker(&shared, session, sink, Some(&refused)));
    try_join_all(workers).await?;

    // A table that somebody waits to change is locked for all but the session that locked it first.
    let refused = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !refused.is_empty() {
        speak(&mut moment.holder, &moment.server.encoding).await?;
        for work in refused {
            shared.one(&mut moment.holder, work, sink).await?;
        }
        speak(&mut moment.holder, "UTF8").await?;
    }
    Ok(shared.findings())
}

/// The last of the settings under which rows are read: the database's own encoding, which costs no
/// conversion and cannot fail.
pub(crate) async fn speak(session: &mut Session, encoding: &str) -> Result<(), EngineError> {
    session
        .execute(&format!("SET client_encoding = {}", literal(encoding)))
        .await
        .map_err(|error| error.doing("preparing a session"))
}

/// What the sessions of one reading share.
pub(crate) struct Shared {
    work: Mutex<VecDeque<Work>>,
    findings: Mutex<Findings>,
    reading: Reading,
    stop: CancellationToken,
    progress: Arc<fettler_engine::ProgressMeter>,
}

impl Shared {
    pub(crate) fn new(context: &EngineContext, work: VecDeque<Work>) -> Self {
        Self::going_on(context, work, Findings::default())
    }

    /// Adds to what was found before.
    pub(crate) fn going_on(
        context: &EngineContext,
        work: VecDeque<Work>,
        findings: Findings,
    ) -> Self {
        Self {
            work: Mutex::new(work),
            findings: Mutex::new(findings),
            reading: Reading::of(context, &context.stop),
            stop: context.stop.clone(),
            progress: Arc::clone(&context.progress),
        }
    }

    fn next(&self) -> Option<Work> {
        self.work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    pub(crate) fn findings(self) -> Findings {
        self.findings
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, table: Option<usize>, add: impl FnOnce(&mut Found)) {
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        add(findings.entry(table).or_default());
    }

    /// Does one piece of work. The session runs in a task of its own meanwhile.
    async fn one(
        &self,
        session: &mut Session,
        work: Work,
        sink: Option<&dyn StreamSink>,
    ) -> Result<(), EngineError> {
        self.progress.item(&work.what);
        match &work.kind {
            WorkKind::Count => {
                let counting = self.progress.while_waiting(session.one(&work.sql));
                let answer = self.stop.run_until_cancelled(counting).await;
                let counted: u64 = answer
                    .ok_or(EngineError::Stopped)?
                    .map_err(|error| error.doing(&work.what))?
                    .get(0)?;
                self.add(work.table, |found| found.counted = Some(counted));
            }
            WorkKind::Rows(format, stream) => {
                let span = copy_span(work.what.trim_start_matches("reading "));
                let copied = match (sink, stream) {
                    (Some(sink), Some(stream)) => {
                        into_stream(session, &work, *format, &self.reading, sink, stream)
                            .instrument(span)
                            .await?
                    }
                    _ => {
                        copy_out(session, &work.sql, *format, &self.reading, None, &work.what)
                            .instrument(span)
                            .await?
                    }
                };
                self.add(work.table, |found| {
                    found.fingerprint.merge(&copied.fingerprint);
                    found.bytes += copied.bytes;
                    found.largest_row = found.largest_row.max(copied.largest_row);
                });
            }
        }
        Ok(())
    }
}

/// A `COPY` in a trace, by OpenTelemetry's conventions for databases.
pub(crate) fn copy_span(what: &str) -> Span {
    tracing::info_span!(
            target: fettler_telemetry::TRACE,
            "copy",
        otel.name = format!("COPY {what}"),
        otel.kind = "client",
        db.system.name = "postgresql",
        db.operation.name = "COPY",
        db.collection.name = what,
    )
}

/// Works until nothing is left to do. Without `refused`, locks are waited for.
pub(crate) async fn worker(
    shared: &Shared,
    mut session: Session,
    sink: Option<&dyn StreamSink>,
    refused: Option<&Mutex<VecDeque<Work>>>,
) -> Result<(), EngineError> {
    while let Some(work) = shared.next() {
        if shared.stop.is_cancelled() {
            return Err(EngineError::Stopped);
        }
        if let (Some(lock), Some(refused)) = (&work.lock, refused) {
            let sql = format!(
                "SAVEPOINT locking; LOCK TABLE ONLY {lock} IN ACCESS SHARE MODE NOWAIT; RELEASE locking"
            );
            match session.execute(&sql).await {
                Ok(()) => {}
                Err(error) if error.code() == Some("55P03") => {
                    session
                        .execute("ROLLBACK TO locking")
                        .await
                        .map_err(|error| error.doing(&work.what))?;
                    refused
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push_back(work);
                    continue;
                }
                Err(error) => return Err(error.doing(&work.what)),
            }
        }
        shared.one(&mut session, work, sink).await?;
    }
    session.close().await;
    Ok(())
}

/// Copies into a stream: the session reads and hashes in a task of its own, and the buffers are handed
/// to the sink here.
async fn into_stream(
    session: &mut Session,
    work: &Work,
    format: Format,
    reading: &Reading,
    sink: &dyn StreamSink,
    stream: &str,
) -> Result<Copied, EngineError> {
    let mut writer = sink.open(stream, Cut::Content).await?;
    let (sender, mut buffers) = mpsc::channel::<Bytes>(BUFFERS_WAITING);
    let mut lent = session.lend();
    let (sql, what, reading) = (work.sql.clone(), work.what.clone(), reading.clone());
    let copying = AbortOnDropHandle::new(tokio::spawn(async move {
        let copied = copy_out(&mut lent, &sql, format, &reading, Some(&sender), &what).await;
        (lent, copied)
    }));
    let mut written = Ok(());
    while let Some(buffer) = buffers.recv().await {
        written = writer.write(buffer).await;
        if written.is_err() {
            break;
        }
    }
    drop(buffers);
    let (lent, copied) = copying.await.map_err(|error| EngineError::Database {
        what: format!("{}: the reader broke down: {error}", work.what),
        transient: false,
    })?;
    session.give_back(lent);
    written?;
    let copied = copied?;
    let end = StreamEnd {
        rows: copied.fingerprint.rows,
        unchanged_marker: None,
    };
    writer.finish(end).await?;
    Ok(copied)
}

/// Where in the server's history the moment lies.
async fn position(moment: &mut Moment) -> Result<serde_json::Value, EngineError> {
    let row = moment
        .holder
        .one(
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                to_char(transaction_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
        )
        .await
        .map_err(|error| error.doing("asking for the position"))?;
    Ok(serde_json::json!({
        "lsn_at_end": row.maybe(0)?,
        "snapshot": moment.snapshot,
        "begun": row.text(1)?,
        "standby": moment.server.in_recovery,
        "lineage": moment.identity.lineage,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_a_table_without_a_gap_and_begin_at_fixed_places() {
        assert_eq!(ranges(0, 100), [Range::All]);
        assert_eq!(ranges(100, 100), [Range::All]);
        assert_eq!(
            ranges(101, 100),
            [Range::Pages(0, Some(100)), Range::Pages(100, None)]
        );
        assert_eq!(ranges(250, 100)[..2], ranges(350, 100)[..2]);
        assert!(ranges(u64::from(u32::MAX), 1).len() as u64 <= RANGES_LIMIT);
    }
}
