//! Space that nobody uses: free pages, which VACUUM gives back to the system, and a WAL that has grown.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use fettler_engine::{CleanupTerms, EngineContext, EngineError, Pace, folder_of, refuse};
use fettler_fault_points::{Point, reached};
use fettler_model::{CleanupAction, CleanupItem, CleanupPlan, CleanupRemoved};
use rusqlite::Connection;
use tokio::time::sleep;

use crate::{blocking, connect::refused, place};

use super::open;

/// `auto_vacuum` of a file whose free pages can be given back piece by piece.
const INCREMENTAL: i64 = 2;

/// What a file uses.
struct Space {
    page_bytes: u64,
    pages: u64,
    free: u64,
    auto_vacuum: i64,
    wal_bytes: u64,
    is_wal: bool,
}

fn look(path: &Path, connection: &Connection) -> rusqlite::Result<Space> {
    let number = |pragma: &str| {
        connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0))
    };
    let journal: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    Ok(Space {
        page_bytes: number("page_size")?.unsigned_abs(),
        pages: number("page_count")?.unsigned_abs(),
        free: number("freelist_count")?.unsigned_abs(),
        auto_vacuum: number("auto_vacuum")?,
        wal_bytes: std::fs::metadata(wal).map_or(0, |found| found.len()),
        is_wal: journal.eq_ignore_ascii_case("wal"),
    })
}

/// Plans.
pub(super) fn plan(
    path: &Path,
    connection: &Connection,
    plan: &mut CleanupPlan,
) -> Result<(), EngineError> {
    let asked = |error| refused(path, "planning the cleanup of", error);
    let space = look(path, connection).map_err(asked)?;
    let name = path.display().to_string();
    match plan.what.clone() {
        CleanupAction::Vacuum { only, dead_percent } => {
            if !only.is_empty() {
                refuse(
                    plan,
                    "a SQLite file is vacuumed as a whole",
                    "leave `--only` out",
                );
            }
            if space.free == 0 || space.free * 100 < space.pages * u64::from(dead_percent) {
                plan.notes.push(format!(
                    "{} of {} pages are free, less than {dead_percent} in a hundred",
                    space.free, space.pages
                ));
                return Ok(());
            }
            let is_incremental = space.auto_vacuum == INCREMENTAL;
            plan.items.push(CleanupItem {
                name,
                rows: space.free,
                bytes: space.free * space.page_bytes,
                note: if is_incremental {
                    "PRAGMA incremental_vacuum".to_owned()
                } else {
                    "VACUUM".to_owned()
                },
                ..CleanupItem::default()
            });
            if is_incremental {
                return Ok(());
            }
            plan.notes.push(
                "VACUUM writes the file anew: nobody else can write until it is done, and row numbers of tables without INTEGER PRIMARY KEY may change"
                    .to_owned(),
            );
            // The new file beside the old one, and its way back through a journal or the WAL.
            let needed = (space.pages - space.free) * space.page_bytes * 2;
            let free = place::free_bytes(&folder_of(path))?;
            if free < needed {
                refuse(
                    plan,
                    format!(
                        "VACUUM needs about {needed} bytes beside the file, and {free} are free"
                    ),
                    "free some space",
                );
            }
        }
        _ if space.is_wal && space.wal_bytes > 0 => plan.items.push(CleanupItem {
            name: format!("{name}-wal"),
            rows: space.wal_bytes.div_ceil(space.page_bytes.max(1)),
            bytes: space.wal_bytes,
            note: "PRAGMA wal_checkpoint(TRUNCATE)".to_owned(),
            ..CleanupItem::default()
        }),
        _ => plan.notes.push(if space.is_wal {
            "the WAL is empty".to_owned()
        } else {
            "the file is not in WAL mode".to_owned()
        }),
    }
    Ok(())
}

/// Gives the space back.
pub(super) async fn remove(
    context: &EngineContext,
    path: PathBuf,
    plan: &CleanupPlan,
    terms: &CleanupTerms,
) -> Result<CleanupRemoved, EngineError> {
    context.fence.check().await?;
    let removed = if matches!(plan.what, CleanupAction::Checkpoint {}) {
        let work = blocking(move || checkpoint(&path));
        context.progress.while_waiting(work).await?
    } else if plan.items.first().is_some_and(|item| item.note != "VACUUM") {
        incremental(context, &path, terms).await?
    } else {
        let work = blocking(move || vacuum(&path));
        context.progress.while_waiting(work).await?
    };
    reached(Point::CleanupRemoved);
    Ok(removed)
}

fn vacuum(path: &Path) -> Result<CleanupRemoved, EngineError> {
    let asked = |error| refused(path, "vacuuming", error);
    let connection = open(path)?;
    let before = look(path, &connection).map_err(asked)?;
    let began = Instant::now();
    connection.execute_batch("VACUUM").map_err(asked)?;
    let after = look(path, &connection).map_err(asked)?;
    Ok(CleanupRemoved {
        removed: before.pages.saturating_sub(after.pages),
        remaining: Some(after.free),
        longest_transaction_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        notes: if after.is_wal {
            vec![
                "what VACUUM wrote is in the WAL: `--checkpoint` moves it into the file".to_owned(),
            ]
        } else {
            Vec::new()
        },
        ..CleanupRemoved::default()
    })
}

/// Gives free pages back in short transactions, with rests between.
async fn incremental(
    context: &EngineContext,
    path: &Path,
    terms: &CleanupTerms,
) -> Result<CleanupRemoved, EngineError> {
    let mut pace = Pace::new(terms);
    let began = Instant::now();
    let mut removed = CleanupRemoved::default();
    loop {
        context.check_stop()?;
        context.fence.check().await?;
        let (pages, opened) = (pace.batch_rows(), path.to_path_buf());
        let asked = Instant::now();
        let (before, after) = blocking(move || {
            let failed = |error| refused(&opened, "vacuuming", error);
            let connection = open(&opened)?;
            let before = look(&opened, &connection).map_err(failed)?;
            // The pragma gives back a page with each step.
            connection
                .prepare(&format!("PRAGMA incremental_vacuum({pages})"))
                .and_then(|mut statement| {
                    let mut steps = statement.query([])?;
                    while steps.next()?.is_some() {}
                    Ok(())
                })
                .map_err(failed)?;
            let after = look(&opened, &connection).map_err(failed)?;
            Ok((before, after))
        })
        .await?;
        let took = asked.elapsed();
        let given = before.free.saturating_sub(after.free);
        removed.removed += given;
        removed.remaining = Some(after.free);
        removed.longest_transaction_ms = removed
            .longest_transaction_ms
            .max(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        context.progress.add(given * after.page_bytes, given);
        reached(Point::CleanupRemoving);
        if given == 0 || after.free == 0 {
            return Ok(removed);
        }
        let rest = pace.after(given, took, began.elapsed());
        context
            .stop
            .run_until_cancelled(sleep(rest))
            .await
            .ok_or(EngineError::Stopped)?;
    }
}

fn checkpoint(path: &Path) -> Result<CleanupRemoved, EngineError> {
    let asked = |error| refused(path, "moving the WAL into", error);
    let connection = open(path)?;
    let before = look(path, &connection).map_err(asked)?;
    let began = Instant::now();
    let (is_busy, frames, moved): (i64, i64, i64) = connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .map_err(asked)?;
    let after = look(path, &connection).map_err(asked)?;
    let pages = |space: &Space| space.wal_bytes.div_ceil(space.page_bytes.max(1));
    let mut removed = CleanupRemoved {
        removed: pages(&before).saturating_sub(pages(&after)),
        remaining: Some(pages(&after)),
        longest_transaction_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        ..CleanupRemoved::default()
    };
    if is_busy != 0 {
        removed.busy = pages(&after);
        removed.notes.push(format!(
            "somebody reads or writes: {moved} of {frames} pages were moved, and the WAL keeps its size until they let go"
        ));
    }
    Ok(removed)
}
