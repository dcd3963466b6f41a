//! Rows on their way into the copy. Each stream is one transaction that also notes that it is done, so
//! that an attempt that follows another skips it, and never writes a row twice.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use fettler_engine::{EngineContext, EngineError, StreamReader, StreamSource};
use futures::{StreamExt, future::try_join_all};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::{
    backup::{copy_span, speak},
    catalogue::{self, ServerFacts},
    connect::connect,
    copy::{BINARY_HEADER, BINARY_TRAILER, Format},
    data::{BackupData, LARGE_OBJECTS_STREAM, LargeObjectFacts, SequenceData, TableData},
    error::WireError,
    names::{literal, qualified, quote_ident},
    params::Params,
    wire::Session,
};

use super::{
    batches::Batches,
    large_rows::{LargeRows, LargeTable, LargeTables},
    place::{self, MARKER_SCHEMA, grant_sql, note_sql},
};

/// A table whose only stream has at least this many bytes is emptied and filled in one transaction, so that its
/// rows are written frozen. For smaller ones the extra file costs more than it saves.
const FREEZE_FROM_BYTES: u64 = 1024 * 1024;
/// Large objects made in one transaction.
const OBJECTS_A_TRANSACTION: usize = 500;
/// Sequences set by one statement.
const SEQUENCES_A_STATEMENT: usize = 200;

/// One stream to be copied in.
#[derive(Clone, Debug)]
struct Load {
    stream: String,
    bytes: u64,
    what: String,
    kind: LoadKind,
}

#[derive(Clone, Debug)]
enum LoadKind {
    Rows {
        copy: String,
        format: Format,
        /// The table to empty first.
        truncate: Option<String>,
        /// How its large values get in, where there are some.
        large: Option<Arc<LargeTable>>,
    },
    /// Pages of large objects, of this size.
    Pages(u64),
}

/// Which large objects are restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LargeObjects {
    None,
    /// All, without owners and grants.
    Alone,
    WithOwners,
}

/// What was written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) bytes: AtomicU64,
    pub(crate) rows: AtomicU64,
    /// Streams that the server refused, with what it said.
    pub(crate) refused: Mutex<Vec<String>>,
}

impl Written {
    fn refuse(&self, what: String) {
        self.refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what);
    }

    pub(crate) fn refusals(&self) -> Vec<String> {
        std::mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Copies all streams in, by several sessions.
pub(crate) async fn load(
    context: &EngineContext,
    params: &Params,
    backup: &dyn StreamSource,
    data: &BackupData,
    chosen: &(dyn Fn(&TableData) -> bool + Sync),
    large_objects: LargeObjects,
    large: &LargeTables,
) -> Result<Written, EngineError> {
    let with_large_objects = large_objects != LargeObjects::None;
    let name = context.attempt.to_string();
    let written = Written::default();
    let mut session = connect(params, &name).await?;
    let server = ServerFacts::read(&mut session).await?;
    let done = done(&mut session, &written).await?;
    let bytes: HashMap<&str, u64> = backup
        .streams()
        .iter()
        .map(|stream| (stream.name.as_str(), stream.bytes))
        .collect();
    let bytes_of = |stream: &str| bytes.get(stream).copied().unwrap_or(0);
    if with_large_objects && data.large_objects.is_some() {
        let with_owners = large_objects == LargeObjects::WithOwners;
        make_large_objects(context, &mut session, backup, &done, &written, with_owners).await?;
    }
    session.close().await;

    let mut loads: Vec<Load> = Vec::new();
    for table in data.tables.iter().filter(|table| chosen(table)) {
        for stream in &table.streams {
            loads.push(load_of(
                table,
                stream,
                bytes_of(stream),
                large.get(table.oid),
            ));
        }
    }
    if let Some(objects) = data.large_objects.as_ref().filter(|_| with_large_objects) {
        loads.extend(objects.streams.iter().map(|stream| Load {
            stream: stream.clone(),
            bytes: bytes_of(stream),
            what: "the large objects".to_owned(),
            kind: LoadKind::Pages(objects.page_bytes),
        }));
    }
    loads.sort_by_key(|load| std::cmp::Reverse(load.bytes));
    let total = loads.iter().map(|load| load.bytes).sum();
    context.progress.begin("rows", total, 0);
    let mut left = VecDeque::new();
    for load in loads {
        if done.contains(&load.stream) {
            context.progress.add(load.bytes, 0);
        } else {
            left.push_back(load);
        }
    }
    let sessions = context.parallel.clamp(1, left.len().max(1));
    let left = Mutex::new(left);
    let mut workers = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        let mut session = connect(params, &name).await?;
        catalogue::settle(&mut session, &server).await?;
        speak(&mut session, &data.encoding).await?;
        session
            .execute("SET synchronous_commit = off")
            .await
            .map_err(|error| error.doing("preparing a session"))?;
        workers.push(worker(context, session, backup, &left, &written));
    }
    try_join_all(workers).await?;
    Ok(written)
}

/// What earlier attempts have done.
async fn done(session: &mut Session, written: &Written) -> Result<HashSet<String>, EngineError> {
    let rows = session
        .query(&format!("SELECT item, rows FROM {MARKER_SCHEMA}.done"))
        .await
        .map_err(|error| error.doing("asking what is restored already"))?;
    rows.iter()
        .map(|row| {
            written.rows.fetch_add(row.get(1)?, Relaxed);
            row.string(0)
        })
        .collect()
}

fn load_of(table: &TableData, stream: &str, bytes: u64, large: Option<Arc<LargeTable>>) -> Load {
    let into = match &table.through {
        Some((schema, name)) => qualified(schema, name),
        None => table.quoted(),
    };
    let columns = if table.columns.is_empty() {
        String::new()
    } else {
        format!(" ({})", table.quoted_columns())
    };
    let alone = table.streams.len() == 1 && table.through.is_none() && table.condition.is_empty();
    let freeze = alone && bytes >= FREEZE_FROM_BYTES;
    let format = table.rows_as.as_str();
    let options = if freeze {
        format!("(FORMAT {format}, FREEZE)")
    } else {
        format!("(FORMAT {format})")
    };
    Load {
        stream: stream.to_owned(),
        bytes,
        what: table.display(),
        kind: LoadKind::Rows {
            copy: format!("COPY {into}{columns} FROM STDIN {options}"),
            format: table.rows_as,
            truncate: freeze.then_some(into),
            large,
        },
    }
}

async fn worker(
    context: &EngineContext,
    mut session: Session,
    backup: &dyn StreamSource,
    left: &Mutex<VecDeque<Load>>,
    written: &Written,
) -> Result<(), EngineError> {
    loop {
        context.check_stop()?;
        let next = left
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        let Some(load) = next else {
            break;
        };
        context.progress.item(&load.what);
        match load_one(context, &mut session, backup, &load).await {
            Ok(rows) => {
                written.bytes.fetch_add(load.bytes, Relaxed);
                written.rows.fetch_add(rows, Relaxed);
            }
            // The server refuses these rows whoever brings them: the rest may be restored nevertheless.
            Err(EngineError::Database {
                what,
                transient: false,
            }) => {
                roll_back(&mut session).await?;
                written.refuse(what);
            }
            Err(error) => return Err(error),
        }
    }
    session.close().await;
    Ok(())
}

async fn roll_back(session: &mut Session) -> Result<(), EngineError> {
    session
        .execute("ROLLBACK")
        .await
        .map_err(|error| error.doing("giving a refused table up"))
}

/// Copies one stream in, in one transaction.
async fn load_one(
    context: &EngineContext,
    session: &mut Session,
    backup: &dyn StreamSource,
    load: &Load,
) -> Result<u64, EngineError> {
    let doing = format!("restoring {}", load.what);
    let (begin, copy, format, large) = match &load.kind {
        LoadKind::Rows {
            copy,
            format,
            truncate,
            large,
        } => {
            let truncate = truncate
                .as_ref()
                .map(|table| format!("; TRUNCATE ONLY {table}"))
                .unwrap_or_default();
            let room = large
                .as_ref()
                .map(|large| format!("; {}", large.begin_sql()))
                .unwrap_or_default();
            (
                format!("BEGIN{truncate}{room}"),
                copy.clone(),
                *format,
                large.clone(),
            )
        }
        LoadKind::Pages(_) => (
            "BEGIN; CREATE TEMP TABLE fettler_pages (object oid, page int4, data bytea) ON COMMIT DROP".to_owned(),
            "COPY fettler_pages (object, page, data) FROM STDIN (FORMAT binary)".to_owned(),
            Format::Binary,
            None,
        ),
    };
    session
        .execute(&begin)
        .await
        .map_err(|error| error.doing(&doing))?;
    let reader = backup.read(&load.stream).await?;
    let rows = copy_in(context, session, &copy, format, large, reader, &doing)
        .instrument(copy_span(&load.what))
        .await?;
    if let LoadKind::Pages(page_bytes) = load.kind {
        session
            .execute(&format!(
                "SELECT sum(length(lo_put(object, page::int8 * {page_bytes}, data)::text))
                 FROM (SELECT * FROM fettler_pages ORDER BY object, page) AS pages"
            ))
            .await
            .map_err(|error| error.doing(&doing))?;
    }
    let noted = session
        .query(&note_sql(context, &load.stream, &rows.to_string()))
        .await
        .map_err(|error| error.doing(&doing))?;
    if noted.is_empty() {
        return Err(place::superseded());
    }
    context.fence.check().await?;
    session
        .execute("COMMIT")
        .await
        .map_err(|error| error.doing(&doing))?;
    Ok(rows)
}

/// Sends a stream by COPY, in a task of its own.
async fn copy_in(
    context: &EngineContext,
    session: &mut Session,
    copy: &str,
    format: Format,
    large: Option<Arc<LargeTable>>,
    reader: StreamReader,
    doing: &str,
) -> Result<u64, EngineError> {
    let mut lent = session.lend();
    let (copy, doing_there) = (copy.to_owned(), doing.to_owned());
    let mut batches = Batches::of(format);
    let mut large = large.map(LargeRows::new);
    let (stop, progress) = (
        context.stop.clone(),
        std::sync::Arc::clone(&context.progress),
    );
    let sending = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut reader = reader;
        let work = async {
            let mut rows = 0;
            lent.begin_copy_in(&copy)
                .await
                .map_err(|error| error.doing(&doing_there))?;
            while let Some(piece) = reader.next().await {
                match piece {
                    Ok(bytes) => {
                        rows += match &mut large {
                            None => send(&mut lent, &copy, &bytes, &mut batches)
                                .await
                                .map_err(|error| error.doing(&doing_there)),
                            Some(large) => large
                                .send(&mut lent, &copy, &bytes, &mut batches)
                                .await
                                .map_err(|error| error.doing(&doing_there)),
                        }?;
                        progress.add(bytes.len() as u64, 0);
                    }
                    Err(error) => {
                        if large.as_ref().is_none_or(LargeRows::copies) {
                            lent.abandon_copy_in()
                                .await
                                .map_err(|error| error.doing(&doing_there))?;
                        }
                        return Err(error);
                    }
                }
            }
            rows += lent
                .end_copy_in()
                .await
                .map_err(|error| error.doing(&doing_there))?;
            Ok(rows)
        };
        let rows = stop
            .run_until_cancelled(work)
            .await
            .unwrap_or(Err(EngineError::Stopped));
        (lent, rows)
    }));
    let (lent, rows) = sending.await.map_err(|error| EngineError::Database {
        what: format!("{doing}: the writer broke down: {error}"),
        transient: true,
    })?;
    session.give_back(lent);
    rows
}

/// Sends one piece of a stream, as several COPY where its rows are large. Gives back the rows of those that ended.
pub(super) async fn send(
    session: &mut Session,
    copy: &str,
    mut bytes: &[u8],
    batches: &mut Batches,
) -> Result<u64, WireError> {
    let mut rows = 0;
    while let Some(end) = batches.end_in(bytes) {
        session.copy_in(&bytes[..end]).await?;
        session.copy_in(&BINARY_TRAILER).await?;
        rows += session.end_copy_in().await?;
        session.begin_copy_in(copy).await?;
        session.copy_in(&BINARY_HEADER).await?;
        bytes = &bytes[end..];
    }
    session.copy_in(bytes).await?;
    Ok(rows)
}

/// Makes the large objects, still empty, with their owners, grants and comments.
async fn make_large_objects(
    context: &EngineContext,
    session: &mut Session,
    backup: &dyn StreamSource,
    done: &HashSet<String>,
    written: &Written,
    with_owners: bool,
) -> Result<(), EngineError> {
    context.progress.item("large objects");
    let mut reader = backup.read(LARGE_OBJECTS_STREAM).await?;
    let mut text = Vec::new();
    let mut batch = Vec::with_capacity(OBJECTS_A_TRANSACTION);
    let mut number = 0;
    loop {
        let piece = reader.next().await.transpose()?;
        let at_end = piece.is_none();
        text.extend_from_slice(piece.as_deref().unwrap_or_default());
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        for line in text[..whole]
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            batch.push(
                serde_json::from_slice::<LargeObjectFacts>(line).map_err(|error| {
                    EngineError::Unusable {
                        what: format!("the list of large objects cannot be read: {error}"),
                        remedy: "verify the backup".to_owned(),
                    }
                })?,
            );
            if batch.len() == OBJECTS_A_TRANSACTION {
                make_some(
                    context,
                    session,
                    &batch,
                    &format!("{LARGE_OBJECTS_STREAM}#{number}"),
                    done,
                    written,
                    with_owners,
                )
                .await?;
                number += 1;
                batch.clear();
            }
        }
        text.drain(..whole);
        if at_end {
            break;
        }
    }
    make_some(
        context,
        session,
        &batch,
        &format!("{LARGE_OBJECTS_STREAM}#{number}"),
        done,
        written,
        with_owners,
    )
    .await
}

async fn make_some(
    context: &EngineContext,
    session: &mut Session,
    objects: &[LargeObjectFacts],
    item: &str,
    done: &HashSet<String>,
    written: &Written,
    with_owners: bool,
) -> Result<(), EngineError> {
    if objects.is_empty() || done.contains(item) {
        return Ok(());
    }
    context.check_stop()?;
    let doing = "making the large objects";
    let mut sql = String::from("BEGIN;");
    for object in objects {
        sql.push_str(&format!("SELECT pg_catalog.lo_create({});", object.oid));
    }
    sql.push_str(&note_sql(context, item, "0"));
    session
        .execute(&sql)
        .await
        .map_err(|error| error.doing(doing))?;
    context.fence.check().await?;
    session
        .execute("COMMIT")
        .await
        .map_err(|error| error.doing(doing))?;
    // Each by itself: a role that is missing here must not cost the object. All of it may be repeated.
    for object in objects {
        let on = format!("LARGE OBJECT {}", object.oid);
        let mut statements = Vec::new();
        if with_owners {
            statements.push(format!(
                "ALTER {on} OWNER TO {}",
                quote_ident(&object.owner)
            ));
        }
        if let Some(comment) = &object.comment {
            statements.push(format!("COMMENT ON {on} IS {}", literal(comment)));
        }
        if let Some(grants) = object.grants.as_ref().filter(|_| with_owners) {
            statements.push(format!(
                "REVOKE ALL ON {on} FROM {}",
                quote_ident(&object.owner)
            ));
            statements.extend(grants.iter().map(|grant| grant_sql(grant, &on)));
        }
        for statement in statements {
            if let Err(error) = session.execute(&statement).await {
                written.refuse(format!("{error} (statement: {statement})"));
            }
        }
    }
    Ok(())
}

/// Sets the sequences to where they stood.
pub(crate) async fn set_sequences(
    session: &mut Session,
    sequences: &[&SequenceData],
) -> Result<Vec<String>, EngineError> {
    let mut failed = Vec::new();
    let statement = |sequence: &SequenceData| {
        format!(
            "SELECT pg_catalog.setval({}, {}, {})",
            literal(&qualified(&sequence.schema, &sequence.name)),
            sequence.last_value,
            sequence.is_called
        )
    };
    for part in sequences.chunks(SEQUENCES_A_STATEMENT) {
        let all: Vec<String> = part.iter().map(|sequence| statement(sequence)).collect();
        if session.execute(&all.join(";")).await.is_ok() {
            continue;
        }
        for sequence in part {
            if let Err(error) = session.execute(&statement(sequence)).await {
                failed.push(format!("{error} (statement: {})", statement(sequence)));
            }
        }
    }
    Ok(failed)
}
