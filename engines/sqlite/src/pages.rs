//! The backup: pages into the stream on one thread, rows into fingerprints on others.

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use fettler_engine::{
    BackupOptions, BackupReport, Cut, EngineContext, EngineError, ROW_HASH, StreamEnd, StreamSink,
    StreamWriter,
};
use fettler_model::Warning;
use fettler_telemetry::TRACE;
use rusqlite::Connection;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    STREAM, blocking, check,
    connect::refused,
    facts, file_name_part, place,
    scan::{self, Check, Found, Scan},
    snapshot::{Header, Request, Snapshot},
};

/// Bytes handed to the pipeline at once; a multiple of every page size.
const BUFFER_BYTES: usize = 1 << 20;

/// Buffers between the reading thread and the pipeline.
const BUFFERS_AHEAD: usize = 4;

/// The most connections that scan rows: each may hold one row in memory.
const MOST_SCANNERS: usize = 4;

/// Reads a database at one moment into the stream.
pub(crate) async fn backup(
    context: &EngineContext,
    path: PathBuf,
    options: &BackupOptions,
    sink: &dyn StreamSink,
) -> Result<BackupReport, EngineError> {
    context.check_stop()?;
    // Cancelled with the attempt, and when this function is left in any way.
    let halt = context.stop.child_token();
    let _stops_the_threads = halt.clone().drop_guard();

    let identified = path.clone();
    let identity = blocking(move || place::identify(&identified)).await?;
    let taken = {
        let (path, halt, context) = (path.clone(), halt.clone(), context.clone());
        let exclude = options.exclude.clone();
        blocking(move || {
            Snapshot::for_backup(&Request {
                path: &path,
                copy: context
                    .scratch
                    .join(format!("{}.copy.sqlite", file_name_part(&context))),
                connections: 1 + scanners(&context),
                exclude: &exclude,
                progress: &context.progress,
                halt: &halt,
            })
        })
        .await
    };
    let mut snapshot = taken?;
    interrupt_when_halted(&snapshot.connections, &halt);
    let header = snapshot.header.clone();
    context.progress.begin("reading", header.bytes(), 0);

    let mut writer = sink
        .open(
            STREAM,
            Cut::Pages {
                page_bytes: header.page_bytes,
            },
        )
        .await?;
    let (buffers, mut filled) = mpsc::channel(BUFFERS_AHEAD);
    let counted = snapshot.counted.take();
    let mut warnings = std::mem::take(&mut snapshot.warnings);
    let mut reader = snapshot.connections.remove(0);
    let mut rest = std::mem::take(&mut snapshot.connections);

    let scanning = {
        let (context, halt, path) = (context.clone(), halt.clone(), path.clone());
        move |connections: &mut [Connection]| {
            scan::scan(
                &Scan {
                    path: &path,
                    key: &context.fingerprint_key,
                    progress: &context.progress,
                    halt: &halt,
                    check: Some(Check::Quick),
                    counted: counted.as_ref(),
                },
                connections,
            )
        }
    };
    let reading = {
        let (halt, path, header) = (halt.clone(), path.clone(), header.clone());
        move |connection: &Connection| {
            read_pages(connection, &path, &header, &halt, &mut |bytes| {
                // The receiver is gone only when the backup has ended.
                buffers
                    .blocking_send(bytes)
                    .map_err(|_| EngineError::Stopped)
            })
        }
    };
    // With one connection pages come first, since the pipeline behind them has more to do.
    let alone = rest.is_empty();
    let (found, passed) = if alone {
        tokio::try_join!(
            blocking(move || {
                reading(&reader)?;
                drop(reading);
                scanning(std::slice::from_mut(&mut reader))
            }),
            pass_on(context, &mut filled, &mut *writer)
        )
    } else {
        tokio::try_join!(
            async {
                let (pages, found) = tokio::try_join!(
                    blocking(move || reading(&reader)),
                    blocking(move || scanning(&mut rest))
                )?;
                let () = pages;
                Ok::<Found, EngineError>(found)
            },
            pass_on(context, &mut filled, &mut *writer)
        )
    }
    .map_err(|error| stopped_or(context, error))?;
    if passed != header.bytes() {
        return Err(EngineError::Database {
            what: format!(
                "{passed} bytes of {} were read from {}",
                header.bytes(),
                path.display()
            ),
            transient: true,
        });
    }
    drop(snapshot);
    context.check_stop()?;

    let rows = found
        .objects
        .iter()
        .filter_map(|object| object.fingerprint)
        .map(|fingerprint| fingerprint.rows)
        .sum();
    writer
        .finish(StreamEnd {
            rows,
            unchanged_marker: None,
        })
        .await?;
    warnings.extend(warnings_of(&found));
    Ok(BackupReport {
        identity,
        position: serde_json::json!({
            "pages": header.pages,
            "schema_version": header.schema_version,
        }),
        engine_data: facts::engine_data(&header, &found),
        objects: facts::of_source(found),
        row_hash: ROW_HASH.to_owned(),
        warnings,
    })
}

/// A connection that was interrupted says so in many words; what counts is that it was asked to.
fn stopped_or(context: &EngineContext, error: EngineError) -> EngineError {
    if context.stop.is_cancelled() {
        EngineError::Stopped
    } else {
        error
    }
}

pub(crate) fn scanners(context: &EngineContext) -> usize {
    context.parallel.clamp(1, MOST_SCANNERS)
}

/// Ends long statements (a count, a check of the file) once the work is to stop. The task ends with
/// `halt`, which every caller cancels when it is done.
pub(crate) fn interrupt_when_halted(connections: &[Connection], halt: &CancellationToken) {
    let handles: Vec<_> = connections
        .iter()
        .map(Connection::get_interrupt_handle)
        .collect();
    let halt = halt.clone();
    tokio::spawn(async move {
        halt.cancelled().await;
        for handle in handles {
            handle.interrupt();
        }
    });
}

#[tracing::instrument(target = TRACE, name = "read pages", skip_all, fields(db.system.name = "sqlite"))]
async fn pass_on(
    context: &EngineContext,
    filled: &mut mpsc::Receiver<Bytes>,
    writer: &mut dyn StreamWriter,
) -> Result<u64, EngineError> {
    let mut passed = 0;
    while let Some(bytes) = filled.recv().await {
        let count = bytes.len() as u64;
        tokio::select! {
            () = context.rate.pass(count) => {}
            () = context.stop.cancelled() => return Err(EngineError::Stopped),
        }
        writer.write(bytes).await?;
        context.progress.add(count, 0);
        passed += count;
    }
    Ok(passed)
}

/// Reads all pages in order and hands them on in large buffers.
pub(crate) fn read_pages(
    connection: &Connection,
    path: &Path,
    header: &Header,
    halt: &CancellationToken,
    hand_on: &mut dyn FnMut(Bytes) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let asked = |error| refused(path, "reading pages of", error);
    let mut read = 0;
    if header.pages > 0 {
        let mut statement = connection
            .prepare("SELECT pgno, data FROM sqlite_dbpage('main')")
            .map_err(asked)?;
        let mut rows = statement.query([]).map_err(asked)?;
        let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
        while let Some(row) = rows.next().map_err(asked)? {
            let number: i64 = row.get(0).map_err(asked)?;
            let page = row
                .get_ref(1)
                .and_then(|value| value.as_blob().map_err(Into::into))
                .map_err(asked)?;
            read += 1;
            if number.unsigned_abs() != read || page.len() != header.page_bytes as usize {
                return Err(EngineError::Database {
                    what: format!("page {read} of {} could not be read", path.display()),
                    transient: false,
                });
            }
            buffer.extend_from_slice(page);
            if buffer.len() == BUFFER_BYTES {
                check(halt)?;
                hand_on(buffer.split().freeze())?;
                buffer = BytesMut::with_capacity(BUFFER_BYTES);
            }
        }
        if !buffer.is_empty() {
            hand_on(buffer.freeze())?;
        }
    }
    if read != header.pages {
        return Err(EngineError::Database {
            what: format!(
                "{read} pages of {} were read from {}",
                header.pages,
                path.display()
            ),
            transient: false,
        });
    }
    Ok(())
}

fn warnings_of(found: &Found) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if !found.complaints.is_empty() {
        warnings.push(Warning {
            code: "sqlite.damaged".to_owned(),
            message: format!(
                "the database was damaged before it was read; SQLite says: {}",
                found.complaints.join("; ")
            ),
        });
    }
    if found.orphans > 0 {
        warnings.push(Warning {
            code: "sqlite.foreign_keys".to_owned(),
            message: format!(
                "{}{} rows refer to rows that are not there; `PRAGMA foreign_key_check` lists them",
                if found.orphans == scan::ORPHANS {
                    "at least "
                } else {
                    ""
                },
                found.orphans
            ),
        });
    }
    if let Some(why) = &found.unchecked {
        warnings.push(Warning {
            code: "sqlite.unchecked".to_owned(),
            message: format!("SQLite could not check the file: {why}"),
        });
    }
    warnings
}
