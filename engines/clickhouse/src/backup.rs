//! The backup: shadows of all tables, then their parts, several at once; parts that the parent holds are not read.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use fettler_engine::{
    BackupOptions, BackupReport, Cut, EngineContext, EngineError, StreamEnd, StreamSink, Target,
};
use fettler_model::{Fingerprint, ObjectFacts, Warning};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use crate::{
    catalogue::{Catalogue, Content, TableDefinition},
    fingerprint::{AS_STORED, RowForm, RowHash},
    found,
    http::{AnswerTail, Session, Setting, WAIT_END},
    identify::identity,
    params::Params,
    select::Excluded,
    shadow::{Piece, Scratch, Shadows},
    sql::{hides_a_secret, in_stream_name, literal, quoted},
};

/// The stream of all definitions.
pub(crate) const DEFINITIONS: &str = "definitions";
/// The version of [`BackupData`] and [`Definitions`].
const DATA_FORMAT: u32 = 1;
/// Bytes that are handed on at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// One part, in the order of its rows.
const IN_ORDER: [Setting; 2] = [("max_threads", "1"), ("apply_mutations_on_fly", "0")];

/// What a restore and a proof need to know before they read a stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BackupData {
    /// The version of this description.
    pub(crate) format: u32,
    /// The databases that were read.
    pub(crate) databases: Vec<String>,
    /// Digests of the columns of each table, by full name.
    pub(crate) columns: BTreeMap<String, String>,
    /// Names of functions.
    pub(crate) functions: Vec<String>,
}

impl BackupData {
    /// Reads what the backup left.
    pub(crate) fn of(report: &BackupReport) -> Result<Self, EngineError> {
        Self::deserialize(&report.engine_data)
            .map_err(|error| unusable(&error))
            .and_then(|data| {
                if data.format == DATA_FORMAT {
                    Ok(data)
                } else {
                    Err(unusable(&format!("they have the format {}", data.format)))
                }
            })
    }
}

fn unusable(what: &dyn std::fmt::Display) -> EngineError {
    EngineError::Unusable {
        what: format!("the backup's notes for ClickHouse cannot be read: {what}"),
        remedy: "restore it with the version of Fettler that made it".to_owned(),
    }
}

/// A stream of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartStream {
    pub(crate) stream: String,
    pub(crate) partition_id: String,
    pub(crate) partition: String,
    pub(crate) rows: u64,
}

/// A table with its streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableRecord {
    #[serde(flatten)]
    pub(crate) definition: TableDefinition,
    /// The columns that its streams hold.
    pub(crate) read: Vec<String>,
    pub(crate) parts: Vec<PartStream>,
    /// Its rows were left out by request.
    pub(crate) is_excluded: bool,
}

/// What the stream of definitions holds, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Definitions {
    pub(crate) format: u32,
    pub(crate) version: String,
    pub(crate) databases: BTreeMap<String, String>,
    pub(crate) tables: Vec<TableRecord>,
    pub(crate) functions: BTreeMap<String, String>,
    pub(crate) access: Option<Vec<String>>,
    pub(crate) collections: Vec<String>,
}

/// Reads a server.
pub(crate) async fn backup(
    context: &EngineContext,
    source: &Target,
    options: &BackupOptions,
    sink: &dyn StreamSink,
) -> Result<BackupReport, EngineError> {
    context.progress.begin("prepare", 0, 0);
    let params = Params::of(source)?;
    let excluded = Excluded::of(&options.exclude)?;
    let session = Session::of_attempt(&params, context).await?;
    end_predecessors(&session, context).await?;
    let mut catalogue = Catalogue::read(&session, params.database.as_deref(), None).await?;
    if let Some(database) = &params.database
        && catalogue.databases.is_empty()
    {
        return Err(EngineError::Missing {
            code: "database",
            what: format!("{} has no database {database}", params.server()),
            remedy: "look at `SHOW DATABASES`, and whether the user may see it".to_owned(),
        });
    }
    if params.database.is_none() {
        catalogue.read_server(&session).await?;
    }
    let scratch = Scratch::make(&session, context).await?;
    let read = read_tables(context, &session, &scratch, &catalogue, &excluded, sink).await;
    // Also after a failure: what is left then is found by the record.
    let dropped = match &read {
        // This session's statements are stopped.
        Err(EngineError::Stopped) => match Session::visit(&params).await {
            Ok(visit) => scratch.drop(&visit, context).await,
            Err(error) => Err(error),
        },
        _ => scratch.drop(&session, context).await,
    };
    let (tables, totals, mut warnings) = read?;
    dropped?;

    warnings.extend(warnings_of(&catalogue));
    let identity = identity(&params, &session).await?;
    let definitions = Definitions {
        format: DATA_FORMAT,
        version: session.version.clone(),
        databases: catalogue.databases.clone(),
        tables,
        functions: catalogue.functions.clone(),
        access: catalogue.access.clone(),
        collections: catalogue.collections.clone(),
    };
    store_definitions(&definitions, sink).await?;
    let form = RowForm::of_version(session.version_numbers());
    let data = BackupData {
        format: DATA_FORMAT,
        databases: catalogue.databases.keys().cloned().collect(),
        columns: catalogue
            .tables
            .iter()
            .map(|table| (table.full_name(), table.columns_digest()))
            .collect(),
        functions: catalogue.functions.keys().cloned().collect(),
    };
    let mut objects = objects_of(context, &catalogue, &definitions, &totals);
    objects.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(BackupReport {
        identity,
        position: serde_json::json!({
            "method": "shadows",
            "moment": "each table at a moment of its own",
        }),
        objects,
        row_hash: form.name().to_owned(),
        engine_data: serde_json::to_value(&data).expect("plain data can be JSON"),
        warnings,
    })
}

/// Ends statements that earlier attempts of the job left running.
pub(crate) async fn end_predecessors(
    session: &Session,
    context: &EngineContext,
) -> Result<(), EngineError> {
    let job = fettler_engine::AttemptName::prefix_of(context.attempt.job);
    let own = format!("{}/", context.attempt);
    let kill = format!(
        "KILL QUERY WHERE startsWith(query_id, {}) AND NOT startsWith(query_id, {}) ASYNC",
        literal(&job),
        literal(&own)
    );
    // A user who may not has left nothing that blocks: each attempt works in a database of its own.
    let _refused = session
        .try_run(&kill, &[], "ending an earlier attempt")
        .await?;
    Ok(())
}

/// What was found in a table.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    fingerprint: Fingerprint,
    counted: Option<u64>,
    bytes: u64,
}

type Read = (Vec<TableRecord>, Vec<Totals>, Vec<Warning>);

/// A piece that is to be read.
struct Job {
    /// Its number among the records.
    table: usize,
    definition: Arc<TableDefinition>,
    piece: Piece,
    stream: String,
    /// The columns that are read.
    columns: Arc<Vec<String>>,
}

async fn read_tables(
    context: &EngineContext,
    session: &Session,
    scratch: &Scratch,
    catalogue: &Catalogue,
    excluded: &Excluded,
    sink: &dyn StreamSink,
) -> Result<Read, EngineError> {
    let mut shadows = Shadows::new(session, &scratch.name).await?;
    let mut records = Vec::new();
    let mut jobs = Vec::new();
    for table in &catalogue.tables {
        context.check_stop()?;
        context.fence.check().await?;
        context.progress.item(&table.full_name());
        let is_excluded = table.has_rows() && excluded.has(&table.full_name());
        let mut record = TableRecord {
            definition: table.clone(),
            read: Vec::new(),
            parts: Vec::new(),
            is_excluded,
        };
        if table.has_rows() && !is_excluded {
            record.read = readable(session, table);
            let (definition, columns) = (Arc::new(table.clone()), Arc::new(record.read.clone()));
            match shadows.of(table).await? {
                None => continue,
                Some(pieces) => {
                    let names = stream_names(table, &pieces);
                    jobs.extend(pieces.into_iter().zip(names).map(|(piece, stream)| Job {
                        table: records.len(),
                        definition: Arc::clone(&definition),
                        piece,
                        stream,
                        columns: Arc::clone(&columns),
                    }));
                }
            }
        }
        records.push(record);
    }
    let rows = jobs.iter().filter_map(|job| job.piece.rows).sum();
    context.progress.begin("reading", 0, rows);
    let form = RowForm::of_version(session.version_numbers());
    let hash = RowHash::new(form, &context.fingerprint_key);
    let mut totals = vec![
        Totals {
            counted: Some(0),
            ..Totals::default()
        };
        records.len()
    ];
    let mut done = stream::iter(jobs)
        .map(|job: Job| {
            let hash = &hash;
            async move {
                let read = read_piece(context, session, hash, &job, sink).await?;
                Ok::<_, EngineError>((job, read))
            }
        })
        .buffered(context.parallel.max(1));
    while let Some((job, (fingerprint, counted, bytes))) = done.try_next().await? {
        let total = &mut totals[job.table];
        total.fingerprint.merge(&fingerprint);
        total.counted = total.counted.zip(counted).map(|(all, one)| all + one);
        total.bytes += bytes;
        records[job.table].parts.push(PartStream {
            stream: job.stream,
            partition_id: job.piece.partition_id,
            partition: job.piece.partition,
            rows: fingerprint.rows,
        });
    }
    drop(done);
    Ok((records, totals, shadows.warnings))
}

/// The columns that are read: all that rows hold, unless the server could not take one back.
fn readable(session: &Session, table: &TableDefinition) -> Vec<String> {
    let takes_all =
        table.content == Content::Parts || session.knows("insert_allow_materialized_columns");
    table
        .columns
        .iter()
        .filter(|column| column.is_stored() && (takes_all || column.default_kind != "MATERIALIZED"))
        .map(|column| column.name.clone())
        .collect()
}

/// What the streams of a table's pieces are called: by the hash of what they hold where there is one, so that a later
/// backup finds them again; by their number otherwise.
fn stream_names(table: &TableDefinition, pieces: &[Piece]) -> Vec<String> {
    let mut used: BTreeMap<String, u32> = BTreeMap::new();
    let place = format!(
        "rows/{}.{}",
        in_stream_name(&table.database),
        in_stream_name(&table.name)
    );
    pieces
        .iter()
        .map(|piece| {
            let what = piece.hash.as_deref().unwrap_or("part");
            let name = format!("{place}/{}/{what}", in_stream_name(&piece.partition_id));
            let count = used.entry(name.clone()).or_default();
            *count += 1;
            format!("{name}-{count}")
        })
        .collect()
}

/// Says which state of a part a stream holds, with the fingerprint that was made of it.
fn marker(state: &str, fingerprint: &Fingerprint) -> String {
    format!("{state}/{fingerprint}")
}

/// What a marker begins with.
fn state_of(job: &Job, hash: &RowHash) -> Option<String> {
    let part = job.piece.hash.as_ref()?;
    // A table without an identity of its own may be another one of the same name.
    if job
        .definition
        .uuid
        .bytes()
        .all(|byte| matches!(byte, b'0' | b'-'))
    {
        return None;
    }
    let text = format!("1 {} {} {part}", job.definition.shape(), hash.identity());
    Some(blake3::hash(text.as_bytes()).to_hex()[..32].to_owned())
}

/// Reads a piece, or takes it over; gives its fingerprint, the server's own count, and its bytes.
async fn read_piece(
    context: &EngineContext,
    session: &Session,
    hash: &RowHash,
    job: &Job,
    sink: &dyn StreamSink,
) -> Result<(Fingerprint, Option<u64>, u64), EngineError> {
    context.check_stop()?;
    let state = state_of(job, hash);
    if let Some(state) = &state
        && let Some(known) = sink.parent_marker(&job.stream).await?
        && let Some(fingerprint) = known
            .strip_prefix(state.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .and_then(|text| text.parse::<Fingerprint>().ok())
        && let Some(facts) = sink.take_over(&job.stream, &known).await?
    {
        context.progress.add(facts.bytes, facts.rows);
        return Ok((fingerprint, job.piece.rows, facts.bytes));
    }
    let condition = format!("_part = {}", literal(&job.piece.part));
    let doing = format!("reading {}", job.definition.full_name());
    let stored = job.definition.stored();
    let fingerprint = context.progress.while_waiting(hash.of(
        session,
        &job.piece.table,
        &stored,
        Some(&condition),
        &doing,
    ));
    let counted = async {
        match job.piece.rows {
            Some(rows) => Ok(Some(rows)),
            None => count(session, &job.piece.table, &condition, &doing).await,
        }
    };
    let reading = read_stream(context, session, job, &condition, &doing, sink);
    let (fingerprint, counted, writer) = tokio::try_join!(fingerprint, counted, reading)?;
    context.progress.add(0, fingerprint.rows);
    let facts = writer
        .finish(StreamEnd {
            rows: fingerprint.rows,
            unchanged_marker: state.map(|state| marker(&state, &fingerprint)),
        })
        .await?;
    Ok((fingerprint, counted, facts.bytes))
}

/// The count of rows of which the part's own notes know nothing, since some are deleted.
async fn count(
    session: &Session,
    table: &str,
    condition: &str,
    doing: &str,
) -> Result<Option<u64>, EngineError> {
    let rows = session
        .rows(
            &format!("SELECT toString(count()) FROM {table} WHERE {condition}"),
            doing,
        )
        .await?;
    Ok(rows.first().and_then(|row| row[0].parse().ok()))
}

/// Streams a part's rows.
async fn read_stream(
    context: &EngineContext,
    session: &Session,
    job: &Job,
    condition: &str,
    doing: &str,
    sink: &dyn StreamSink,
) -> Result<Box<dyn fettler_engine::StreamWriter>, EngineError> {
    let names: Vec<String> = job.columns.iter().map(|name| quoted(name)).collect();
    let sql = format!(
        "SELECT {} FROM {} WHERE {condition} FORMAT Native",
        names.join(", "),
        job.piece.table
    );
    let settings = [AS_STORED.as_slice(), &IN_ORDER].concat();
    let mut writer = sink.open(&job.stream, Cut::Content).await?;
    let mut rows = std::pin::pin!(session.read(&sql, &settings, doing).await?);
    let (mut tail, mut hasher) = (AnswerTail::default(), blake3::Hasher::new());
    let mut buffer = BytesMut::new();
    while let Some(bytes) = rows.try_next().await? {
        context.rate.pass(bytes.len() as u64).await;
        context.progress.add(bytes.len() as u64, 0);
        tail.take(&bytes);
        hasher.update(&bytes);
        buffer.extend_from_slice(&bytes);
        if buffer.len() >= BUFFER_BYTES {
            writer.write(buffer.split().freeze()).await?;
        }
    }
    if !buffer.is_empty() {
        writer.write(buffer.freeze()).await?;
    }
    if tail.may_be_an_error() {
        confirm(session, &sql, &settings, doing, &hasher.finalize()).await?;
    }
    Ok(writer)
}

/// Asks for the same rows again, so that the answer's status tells whether they are whole.
async fn confirm(
    session: &Session,
    sql: &str,
    settings: &[Setting],
    doing: &str,
    expected: &blake3::Hash,
) -> Result<(), EngineError> {
    let settings = [settings, &[WAIT_END]].concat();
    let mut rows = std::pin::pin!(session.read(sql, &settings, doing).await?);
    let mut hasher = blake3::Hasher::new();
    while let Some(bytes) = rows.try_next().await? {
        hasher.update(&bytes);
    }
    if hasher.finalize() == *expected {
        return Ok(());
    }
    Err(EngineError::Unreachable {
        server: session.server(),
        what: format!("{doing}: the answer broke off with an error"),
    })
}

async fn store_definitions(
    definitions: &Definitions,
    sink: &dyn StreamSink,
) -> Result<(), EngineError> {
    let text = serde_json::to_vec_pretty(definitions).expect("plain data can be JSON");
    let mut writer = sink.open(DEFINITIONS, Cut::Content).await?;
    writer.write(Bytes::from(text)).await?;
    writer.finish(StreamEnd::default()).await.map(drop)
}

fn objects_of(
    context: &EngineContext,
    catalogue: &Catalogue,
    definitions: &Definitions,
    totals: &[Totals],
) -> Vec<ObjectFacts> {
    let key = &context.fingerprint_key;
    let same = |name: &str| {
        catalogue
            .databases
            .contains_key(name)
            .then(|| name.to_owned())
    };
    let mut objects = Vec::new();
    for (record, total) in definitions.tables.iter().zip(totals) {
        let table = &record.definition;
        objects.push(found::definition(key, table, &same));
        if table.has_rows() && !record.is_excluded {
            objects.push(ObjectFacts {
                fingerprint: Some(total.fingerprint),
                independent_rows: total.counted,
                bytes: total.bytes,
                ..found::table(&table.full_name())
            });
        }
    }
    for (name, create) in &definitions.functions {
        objects.push(found::function(key, name, create));
    }
    if let Some(access) = &definitions.access {
        let bytes = access.iter().map(|line| line.len() as u64).sum();
        objects.push(found::listed("access", bytes));
    }
    for name in &definitions.collections {
        objects.push(found::listed(&format!("named collection {name}"), 0));
    }
    objects
}

fn warnings_of(catalogue: &Catalogue) -> Vec<Warning> {
    let warning = |code: &str, message: String| Warning {
        code: format!("clickhouse.{code}"),
        message,
    };
    let mut warnings = Vec::new();
    if catalogue
        .tables
        .iter()
        .filter(|table| table.has_rows())
        .count()
        > 1
    {
        warnings.push(warning(
            "not_one_moment",
            "each table is as it was at one moment, and not all tables at the same one".to_owned(),
        ));
    }
    for table in &catalogue.tables {
        if hides_a_secret(&table.create) {
            warnings.push(warning(
                "hidden_secret",
                format!("the definition of {} has a secret that the server hides: put it in after a restore", table.full_name()),
            ));
        }
        if table.engine == "Set" {
            warnings.push(warning(
                "set",
                format!(
                    "the rows of {} cannot be read from a table of the engine Set",
                    table.full_name()
                ),
            ));
        }
    }
    if !catalogue.collections.is_empty() {
        warnings.push(warning(
            "named_collections",
            format!(
                "what is in named collections the server shows to nobody: {}",
                catalogue.collections.join(", ")
            ),
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_named_by_what_they_hold_and_never_twice() {
        let table = TableDefinition {
            database: "a.b".to_owned(),
            name: "t/1".to_owned(),
            engine: "MergeTree".to_owned(),
            create: String::new(),
            columns: Vec::new(),
            content: Content::Parts,
            uuid: String::new(),
            inner: None,
        };
        let piece = |hash: Option<&str>| Piece {
            table: String::new(),
            part: String::new(),
            partition_id: "202601".to_owned(),
            partition: String::new(),
            rows: None,
            hash: hash.map(str::to_owned),
        };
        let names = stream_names(&table, &[piece(Some("ff")), piece(Some("ff")), piece(None)]);
        assert_eq!(
            names,
            [
                "rows/a%2Eb.t%2F1/202601/ff-1",
                "rows/a%2Eb.t%2F1/202601/ff-2",
                "rows/a%2Eb.t%2F1/202601/part-1"
            ]
        );
    }

    #[test]
    fn a_marker_gives_the_fingerprint_back() {
        let fingerprint: Fingerprint = format!("7:{}", "a".repeat(64)).parse().unwrap();
        let text = marker("state", &fingerprint);
        let rest = text
            .strip_prefix("state")
            .unwrap()
            .strip_prefix('/')
            .unwrap();
        assert_eq!(rest.parse(), Ok(fingerprint));
    }
}
