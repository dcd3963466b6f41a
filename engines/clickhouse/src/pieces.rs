//! The pieces of a backup: shadows of all tables, then their parts, several at once; parts that the parent holds are not read.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use fettler_engine::{Cut, EngineContext, EngineError, StreamEnd, StreamSink, StreamWriter};
use fettler_model::{Fingerprint, Warning};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    backup::{PartStream, TableRecord},
    catalogue::{Catalogue, Content, TableDefinition},
    fingerprint::{AS_STORED, RowForm, RowHash},
    http::{AnswerTail, Session, Setting, WAIT_END},
    select::Excluded,
    shadow::{Piece, Shadow, Shadows},
    sql::{in_stream_name, literal, quoted},
};

/// Bytes that are handed on at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// One part, in the order of its rows.
const IN_ORDER: [Setting; 2] = [("max_threads", "1"), ("apply_mutations_on_fly", "0")];

/// What of a piece becomes a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Its rows, of a server or of a shard of a cluster.
    Rows { shard: Option<u32> },
    /// Nothing but its fingerprint: the rows lie elsewhere.
    Fingerprints,
}

/// What was found in a table.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) counted: Option<u64>,
    pub(crate) bytes: u64,
}

impl Totals {
    /// Adds what was found in the same table elsewhere.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.fingerprint.merge(&other.fingerprint);
        self.counted = self.counted.zip(other.counted).map(|(all, one)| all + one);
        self.bytes += other.bytes;
    }
}

/// A piece that is to be read.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Its number among the records.
    pub(crate) table: usize,
    pub(crate) definition: Arc<TableDefinition>,
    pub(crate) piece: Piece,
    pub(crate) stream: String,
    /// The columns that are read.
    columns: Arc<Vec<String>>,
    reading: Reading,
}

/// All tables with their shadows, not read yet.
#[derive(Debug, Default)]
pub(crate) struct Shadowed {
    pub(crate) records: Vec<TableRecord>,
    pub(crate) jobs: Vec<Job>,
    /// Which shadow is whose, by the number of its record.
    pub(crate) shadows: Vec<(usize, Shadow)>,
    pub(crate) warnings: Vec<Warning>,
}

/// Makes the shadows of all tables.
pub(crate) async fn make_shadows(
    context: &EngineContext,
    session: &Session,
    scratch: &str,
    catalogue: &Catalogue,
    excluded: &Excluded,
    reading: Reading,
) -> Result<Shadowed, EngineError> {
    let mut shadows = Shadows::new(session, scratch).await?;
    let mut all = Shadowed::default();
    for table in &catalogue.tables {
        context.check_stop()?;
        context.fence.check().await?;
        context.progress.item(&table.full_name());
        let is_excluded = table.has_rows() && excluded.has(&table.full_name());
        let mut record = TableRecord {
            definition: table.clone(),
            read: Vec::new(),
            parts: Vec::new(),
            own: Vec::new(),
            is_excluded,
        };
        if table.has_rows() && !is_excluded {
            record.read = readable(session, table);
            let at = all.records.len();
            match shadows.of(table).await? {
                None => continue,
                Some(pieces) => all.jobs.extend(jobs_of(&record, at, pieces, reading)),
            }
            all.shadows
                .extend(shadows.made.drain(..).map(|shadow| (at, shadow)));
        }
        all.records.push(record);
    }
    all.warnings = shadows.warnings;
    Ok(all)
}

/// What is to be read of a table.
pub(crate) fn jobs_of(
    record: &TableRecord,
    at: usize,
    pieces: Vec<Piece>,
    reading: Reading,
) -> Vec<Job> {
    let definition = Arc::new(record.definition.clone());
    let columns = Arc::new(record.read.clone());
    let names = stream_names(&definition, &pieces, reading);
    pieces
        .into_iter()
        .zip(names)
        .map(|(piece, stream)| Job {
            table: at,
            definition: Arc::clone(&definition),
            piece,
            stream,
            columns: Arc::clone(&columns),
            reading,
        })
        .collect()
}

/// Reads pieces, and notes at each record which streams it has. Gives what was found, record by record.
pub(crate) async fn read_all(
    context: &EngineContext,
    session: &Session,
    jobs: Vec<Job>,
    records: &mut [TableRecord],
    sink: &dyn StreamSink,
) -> Result<Vec<Totals>, EngineError> {
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
            shard: match job.reading {
                Reading::Rows { shard } => shard,
                Reading::Fingerprints => None,
            },
        });
    }
    Ok(totals)
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
fn stream_names(table: &TableDefinition, pieces: &[Piece], reading: Reading) -> Vec<String> {
    let mut used: BTreeMap<String, u32> = BTreeMap::new();
    let kind = match reading {
        Reading::Rows { shard: None } => "rows".to_owned(),
        Reading::Rows { shard: Some(shard) } => format!("rows-of-shard-{shard}"),
        Reading::Fingerprints => "fingerprints".to_owned(),
    };
    let place = format!(
        "{kind}/{}.{}",
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
    let (fingerprint, counted, writer) = match job.reading {
        Reading::Rows { .. } => {
            let reading = read_stream(context, session, job, &condition, &doing, sink);
            tokio::try_join!(fingerprint, counted, reading)?
        }
        Reading::Fingerprints => {
            let (fingerprint, counted) = tokio::try_join!(fingerprint, counted)?;
            let mut writer = sink.open(&job.stream, Cut::Content).await?;
            writer
                .write(Bytes::from(format!("{fingerprint}\n")))
                .await?;
            (fingerprint, counted, writer)
        }
    };
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
) -> Result<Box<dyn StreamWriter>, EngineError> {
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
        let names = stream_names(
            &table,
            &[piece(Some("ff")), piece(Some("ff")), piece(None)],
            Reading::Rows { shard: None },
        );
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
