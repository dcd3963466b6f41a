//! The archive of rows: COPY's text form, cut into segments at the ends of rows, so that a removal that was interrupted need
//! not read all of it again.

use bytes::{Bytes, BytesMut};
use fettler_engine::{
    CleanupArchive, Cut, EngineContext, EngineError, RowHasher, StreamEnd, StreamReader,
    StreamSink, StreamSource, StreamWriter, Target,
};
use fettler_model::{CleanupPlan, Fingerprint, ObjectFacts, ObjectKind};
use futures::StreamExt as _;
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    copy::{BUFFERS_WAITING, Format, Reading, copy_out},
    extract::rows::{Row, Rows},
};

use super::{Visit, batch::ArchivedRow, data, rows::RowsData};

/// Bytes of a segment.
const SEGMENT_BYTES: u64 = 8 << 20;

/// What a table's rows come from.
pub(super) struct Source<'a> {
    /// The table as people write it.
    pub(super) name: String,
    /// What the names of its streams begin with.
    pub(super) prefix: String,
    /// Its columns in SQL, of the table `t`.
    pub(super) columns: String,
    /// The table in SQL, with ONLY where that is meant.
    pub(super) from: String,
    /// Which rows, in SQL.
    pub(super) condition: &'a str,
}

impl<'a> Source<'a> {
    /// The old rows of a table.
    pub(super) fn of(data: &'a RowsData, number: usize) -> Self {
        Self {
            name: data.display(),
            prefix: prefix(number),
            columns: data.column_list("t."),
            from: format!("ONLY {} AS t", data.sql_name()),
            condition: &data.condition,
        }
    }
}

/// What the names of a table's streams begin with.
pub(super) fn prefix(number: usize) -> String {
    format!("rows/{number:04}/")
}

/// Archives what a plan would remove.
pub(super) async fn write(
    context: &EngineContext,
    target: &Target,
    plan: &CleanupPlan,
    sink: &dyn StreamSink,
) -> Result<CleanupArchive, EngineError> {
    let tables: Vec<RowsData> = match &plan.what {
        fettler_model::CleanupAction::Partitions { .. } => super::partitions::tables(plan)?,
        _ => vec![data(plan)?],
    };
    let mut visit = Visit::begin(context, target).await?;
    // A long COPY is no batch.
    visit
        .session
        .execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL idle_in_transaction_session_timeout = 0")
        .await
        .map_err(|error| error.doing("beginning to archive"))?;
    let position = visit
        .session
        .one("SELECT txid_current_snapshot()::text, now()::text")
        .await
        .map_err(|error| error.doing("beginning to archive"))?;
    let mut objects = Vec::new();
    let mut visit = Some(visit);
    for (number, table) in tables.iter().enumerate() {
        let source = Source::of(table, number);
        let (back, facts) = table_out(context, visit.take(), &source, sink).await?;
        visit = Some(back);
        objects.push(facts);
    }
    if let Some(mut visit) = visit {
        visit
            .session
            .execute("COMMIT")
            .await
            .map_err(|error| error.doing("archiving"))?;
        visit.end().await;
    }
    Ok(CleanupArchive {
        rows: objects
            .iter()
            .filter_map(|object| object.fingerprint.as_ref())
            .map(|print| print.rows)
            .sum(),
        objects,
        position: json!({ "snapshot": position.text(0)?, "at": position.text(1)? }),
    })
}

async fn table_out(
    context: &EngineContext,
    visit: Option<Visit>,
    source: &Source<'_>,
    sink: &dyn StreamSink,
) -> Result<(Visit, ObjectFacts), EngineError> {
    let mut visit = visit.ok_or(EngineError::Stopped)?;
    context.progress.item(&source.name);
    let doing = format!("archiving rows of {}", source.name);
    // The server's own count, by another path than the reading (rule 27).
    let sql = format!(
        "SELECT count(*) FROM {} WHERE {}",
        source.from, source.condition
    );
    let counted: u64 = context
        .progress
        .while_waiting(visit.session.one(&sql))
        .await
        .map_err(|error| error.doing(&doing))?
        .get(0)?;
    let sql = format!(
        "COPY (SELECT {} FROM {} WHERE {}) TO STDOUT {}",
        source.columns,
        source.from,
        source.condition,
        Format::Text.clause()
    );
    let (sender, mut receiver) = mpsc::channel(BUFFERS_WAITING);
    let reading = Reading::of(context, &context.stop);
    let reader = {
        let doing = doing.clone();
        tokio::spawn(async move {
            let copied = copy_out(
                &mut visit.session,
                &sql,
                Format::Text,
                &reading,
                Some(&sender),
                &doing,
            )
            .await;
            (visit, copied)
        })
    };
    let written = async {
        let mut segments = Segments::new(sink, source.prefix.clone());
        while let Some(buffer) = receiver.recv().await {
            segments.put(buffer).await?;
        }
        segments.end().await
    }
    .await;
    // A writer that failed hangs up, and the reader ends.
    drop(receiver);
    let (visit, copied) = reader.await.map_err(|error| EngineError::Database {
        what: format!("{doing}: {error}"),
        transient: true,
    })?;
    let written = match (written, copied) {
        (Err(error), _) => return Err(error),
        (Ok(_), Err(error)) => return Err(error),
        (Ok(bytes), Ok(copied)) => (bytes, copied),
    };
    let (bytes, copied) = written;
    if copied.fingerprint.rows != counted {
        return Err(EngineError::Database {
            what: format!(
                "{doing}: {} rows were read where the server counts {counted}",
                copied.fingerprint.rows
            ),
            transient: true,
        });
    }
    let facts = ObjectFacts {
        kind: ObjectKind::Table,
        name: source.name.clone(),
        fingerprint: Some(copied.fingerprint),
        independent_rows: Some(counted),
        bytes,
        value: Some(source.prefix.clone()),
        format: Some(Format::Text.as_str().to_owned()),
    };
    Ok((visit, facts))
}

/// Writes bytes into streams that end where rows end.
struct Segments<'a> {
    sink: &'a dyn StreamSink,
    prefix: String,
    number: usize,
    open: Option<Box<dyn StreamWriter>>,
    rows: u64,
    bytes: u64,
    in_all: u64,
}

impl<'a> Segments<'a> {
    fn new(sink: &'a dyn StreamSink, prefix: String) -> Self {
        Self {
            sink,
            prefix,
            number: 0,
            open: None,
            rows: 0,
            bytes: 0,
            in_all: 0,
        }
    }

    async fn put(&mut self, mut buffer: Bytes) -> Result<(), EngineError> {
        while !buffer.is_empty() {
            let is_full = self.bytes >= SEGMENT_BYTES;
            let end = is_full
                .then(|| buffer.iter().position(|byte| *byte == b'\n'))
                .flatten();
            let piece = match end {
                Some(end) => buffer.split_to(end + 1),
                None => std::mem::take(&mut buffer),
            };
            self.rows += piece.iter().filter(|byte| **byte == b'\n').count() as u64;
            self.bytes += piece.len() as u64;
            self.in_all += piece.len() as u64;
            if self.open.is_none() {
                let name = format!("{}{:06}", self.prefix, self.number);
                self.open = Some(self.sink.open(&name, Cut::Content).await?);
            }
            if let Some(open) = &mut self.open {
                open.write(piece).await?;
            }
            if end.is_some() {
                self.close().await?;
            }
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), EngineError> {
        if let Some(open) = self.open.take() {
            let end = StreamEnd {
                rows: self.rows,
                unchanged_marker: None,
            };
            open.finish(end).await?;
            self.number += 1;
            (self.rows, self.bytes) = (0, 0);
        }
        Ok(())
    }

    async fn end(mut self) -> Result<u64, EngineError> {
        self.close().await?;
        Ok(self.in_all)
    }
}

/// The names of a table's segments, in order.
pub(super) fn segments(archive: &dyn StreamSource, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = archive
        .streams()
        .iter()
        .filter(|stream| stream.name.starts_with(prefix))
        .map(|stream| stream.name.clone())
        .collect();
    names.sort_unstable();
    names
}

/// Reads an archive back, row by row, and compares with what was read of the server.
pub(super) async fn prove(
    context: &EngineContext,
    archive: &dyn StreamSource,
    objects: &[ObjectFacts],
) -> Result<(), EngineError> {
    for object in objects {
        let prefix = object.value.as_deref().unwrap_or_default();
        let print = prove_one(context, archive, prefix).await?;
        if object.fingerprint.as_ref() != Some(&print) {
            return Err(differs(&object.name));
        }
    }
    Ok(())
}

/// The fingerprint of a table's rows as the archive holds them.
pub(super) async fn prove_one(
    context: &EngineContext,
    archive: &dyn StreamSource,
    prefix: &str,
) -> Result<Fingerprint, EngineError> {
    let hasher = RowHasher::new(&context.fingerprint_key);
    let mut print = Fingerprint::empty();
    for name in segments(archive, prefix) {
        let mut stream = archive.read(&name).await?;
        let mut rest = BytesMut::new();
        while let Some(piece) = stream.next().await {
            context.check_stop()?;
            let piece = piece?;
            context.progress.add(piece.len() as u64, 0);
            rest.extend_from_slice(&piece);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let row = rest.split_to(end + 1);
                hasher.add(&row, &mut print);
            }
        }
        if !rest.is_empty() {
            return Err(differs(&name));
        }
    }
    Ok(print)
}

fn differs(name: &str) -> EngineError {
    EngineError::Unusable {
        what: format!(
            "the archive of {name} is not what was read of the server; nothing was removed"
        ),
        remedy: "run `fettler check` on the repository, then start the cleanup anew".to_owned(),
    }
}

/// Reads the rows of one segment.
pub(super) struct SegmentReader {
    stream: StreamReader,
    rows: Rows,
    columns: usize,
    name: String,
    is_over: bool,
}

impl SegmentReader {
    /// Opens a segment whose rows have so many columns.
    pub(super) async fn open(
        archive: &dyn StreamSource,
        name: &str,
        columns: usize,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            stream: archive.read(name).await?,
            rows: Rows::new(Format::Text),
            columns,
            name: name.to_owned(),
            is_over: false,
        })
    }

    /// The next row.
    pub(super) async fn next(&mut self) -> Result<Option<ArchivedRow>, EngineError> {
        loop {
            if let Some(row) = self.held()? {
                return Ok(Some(row));
            }
            if self.is_over {
                return if self.rows.is_whole() {
                    Ok(None)
                } else {
                    Err(self.malformed("it ends within a row"))
                };
            }
            match self.stream.next().await {
                Some(piece) => self.rows.feed(&piece?),
                None => self.is_over = true,
            }
        }
    }

    fn held(&mut self) -> Result<Option<ArchivedRow>, EngineError> {
        let mut values = Vec::with_capacity(self.columns);
        let mut is_text = true;
        let row = match self.rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.malformed(error.0)),
        };
        let bytes = match row {
            Row::Text(line) => line.len() as u64 + 1,
            Row::Binary(fields, _) => fields.len() as u64,
        };
        // A table without columns has no key either.
        let mut room = Vec::new();
        let read = row.values(&[], &mut room, |_, value| {
            values.push(match value.map(std::str::from_utf8) {
                None => None,
                Some(Ok(text)) => Some(text.to_owned()),
                Some(Err(_)) => {
                    is_text = false;
                    None
                }
            });
        });
        match read {
            Err(error) => Err(self.malformed(error.0)),
            Ok(()) if !is_text => Err(self.malformed("a value is not UTF-8")),
            Ok(()) if values.len() != self.columns => {
                Err(self.malformed("a row has another number of columns"))
            }
            Ok(()) => Ok(Some(ArchivedRow { values, bytes })),
        }
    }

    fn malformed(&self, why: &str) -> EngineError {
        EngineError::Unusable {
            what: format!("{} of the archive cannot be read: {why}", self.name),
            remedy: "run `fettler verify` on it".to_owned(),
        }
    }
}
