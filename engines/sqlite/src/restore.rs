//! The restore of a whole file.
//!
//! The pages are written to a temporary file beside the target, which is checked and then renamed: the target
//! is the whole database or what it was before. The temporary file is named after the attempt and recorded. A
//! checkpoint says how much of it is durable; the next attempt takes the file over under its own name and
//! goes on, after it has compared what is there with the backup. Where only the renaming was left, it renames, or finds
//! that this was done.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use fettler_engine::{
    Artefact, BackupReport, Ending, EndingFile, EngineContext, EngineError, RestoreOptions,
    RestoreReport, StreamSource, folder_of,
};
use fettler_model::Warning;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::{
    STREAM, blocking,
    connect::{open_immutable, open_shared, refused},
    facts::EngineData,
    file_artefact, file_name_part,
    pages::interrupt_when_halted,
    place,
    scan::{self, Check},
};

/// So many bytes are written between two checkpoints.
const CHECKPOINT_BYTES: u64 = 32 << 20;

/// Buffers between the pipeline and the writing thread.
const BUFFERS_AHEAD: usize = 16;

/// How far a restore has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Checkpoint {
    /// The temporary file.
    file: PathBuf,
    /// The target, since a checkpoint for another one is of no use.
    target: PathBuf,
    /// So many bytes of it are durable.
    bytes: u64,
}

/// Restores a whole database to a file.
pub(crate) async fn whole(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    target: PathBuf,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    context.check_stop()?;
    let target = blocking(move || resolved(target)).await?;
    if let Some(done) = end_of_earlier(context, &target, options.overwrite).await? {
        return Ok(done);
    }
    let (looked_at, overwrite) = (target.clone(), options.overwrite);
    blocking(move || require_free(&looked_at, overwrite)).await?;

    let data = EngineData::of(report)?;
    let bytes_total = data.header.bytes();
    let part = part_path(context, &target);
    let durable = prepare(context, &part, &target, options.start_again, bytes_total).await?;
    let written = write_pages(context, backup, &part, &target, durable, bytes_total).await?;
    if written != bytes_total {
        return Err(EngineError::Unusable {
            what: format!("the backup's stream has {written} bytes instead of {bytes_total}"),
            remedy: "run `fettler verify` on the backup and restore another one".to_owned(),
        });
    }
    let warnings = check_copy(context, &part, &data).await?;
    fettler_fault_points::reached(fettler_fault_points::Point::RestoreDataDone);

    let done = RestoreReport {
        bytes: written,
        rows: report
            .objects
            .iter()
            .filter_map(|object| object.fingerprint)
            .map(|fingerprint| fingerprint.rows)
            .sum(),
        failed_statements: Vec::new(),
        warnings,
    };
    end(context, done, part, target, options.overwrite).await
}

/// Does what an earlier attempt has left of its end: nothing, or the renaming. Gives nothing where it did not come to its end.
pub(crate) async fn end_of_earlier(
    context: &EngineContext,
    target: &Path,
    overwrite: bool,
) -> Result<Option<RestoreReport>, EngineError> {
    let Some(Ending {
        report,
        file: Some(file),
    }) = Ending::load(context).await?
    else {
        return Ok(None);
    };
    let (looked_at, part) = (target.to_path_buf(), file.part.clone());
    let (is_done, can_be_done) =
        blocking(move || Ok((file.is_at(&looked_at), file.is_at(&file.part)))).await?;
    if is_done {
        let place = target.to_path_buf();
        blocking(move || place::sync_folder_of(&place)).await?;
        context.artefacts.removed(&file_artefact(&part)).await?;
        return Ok(Some(report));
    }
    if can_be_done {
        return end(context, report, part, target.to_path_buf(), overwrite)
            .await
            .map(Some);
    }
    Ok(None)
}

/// Gives a file that is whole and durable its name.
pub(crate) async fn end(
    context: &EngineContext,
    report: RestoreReport,
    part: PathBuf,
    target: PathBuf,
    overwrite: bool,
) -> Result<RestoreReport, EngineError> {
    let path = part.clone();
    let file = blocking(move || {
        EndingFile::of(&path)
            .map_err(|error| EngineError::local(format!("looking at {}", path.display()), error))
    })
    .await?;
    let ending = Ending {
        report,
        file: Some(file),
    };
    ending.save(context).await?;
    context.fence.check().await?;
    let from = part.clone();
    blocking(move || put_in_place(&from, &target, overwrite)).await?;
    context.artefacts.removed(&file_artefact(&part)).await?;
    Ok(ending.report)
}

/// The temporary file of this attempt, beside the target so that it can be renamed.
pub(crate) fn part_path(context: &EngineContext, target: &Path) -> PathBuf {
    let name = part_prefix(target);
    folder_of(target).join(format!("{name}{}.part", file_name_part(context)))
}

/// What the names of a target's temporary files begin with.
fn part_prefix(target: &Path) -> String {
    let name = target
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    format!(".{name}.")
}

/// Whether anything of this target lies here, be it only a temporary file.
pub(crate) fn has_begun(target: &Path) -> bool {
    let prefix = part_prefix(target);
    let is_part = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(&prefix);
    target.exists()
        || fs::read_dir(folder_of(target)).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| is_part(&entry.file_name())))
        })
}

/// The target behind symbolic links, so that a link stays one.
fn resolved(target: PathBuf) -> Result<PathBuf, EngineError> {
    match fs::canonicalize(&target) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(target),
        Err(error) => Err(EngineError::local(
            format!("looking at {}", target.display()),
            error,
        )),
    }
}

/// An error where something is in the way.
pub(crate) fn require_free(target: &Path, overwrite: bool) -> Result<(), EngineError> {
    let folder = folder_of(target);
    if !folder.is_dir() {
        return Err(EngineError::Missing {
            code: "folder",
            what: format!("there is no folder {}", folder.display()),
            remedy: "make it, or name another place".to_owned(),
        });
    }
    if target.is_dir() {
        return Err(EngineError::NotEmpty {
            what: format!("{} is a folder", target.display()),
            remedy: "name the file to restore to, inside the folder".to_owned(),
        });
    }
    let in_the_way = std::iter::once(target.to_path_buf())
        .chain(place::side_files(target))
        .find(|file| fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0));
    match in_the_way {
        Some(file) if !overwrite => Err(EngineError::NotEmpty {
            what: format!("{} exists and is not empty", file.display()),
            remedy: "name another file, or say `--overwrite` to replace the database".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Makes the temporary file ready, by taking over what the last attempt left or by beginning anew, and says how
/// many of its bytes are durable.
async fn prepare(
    context: &EngineContext,
    part: &Path,
    target: &Path,
    start_again: bool,
    bytes_total: u64,
) -> Result<u64, EngineError> {
    let left = match context.checkpoints.load().await? {
        Some(value) => Checkpoint::deserialize(&value)
            .ok()
            .filter(|checkpoint| checkpoint.target == target),
        None => None,
    };
    let artefact = Artefact {
        until_job_ends: true,
        ..file_artefact(part)
    };
    context.artefacts.record(&artefact).await?;
    context.fence.check().await?;
    let part = part.to_path_buf();
    let (durable, gone) = blocking(move || {
        let mut durable = 0;
        let mut gone = None;
        if let Some(left) = left {
            let length = fs::metadata(&left.file).map_or(0, |metadata| metadata.len());
            if start_again || length < left.bytes {
                place::remove_database_files(&left.file)?;
            } else {
                durable = left.bytes;
                if left.file != part {
                    fs::rename(&left.file, &part).map_err(|error| {
                        EngineError::local(format!("renaming {}", left.file.display()), error)
                    })?;
                }
            }
            if left.file != part {
                place::remove_side_files(&left.file)?;
                gone = Some(left.file);
            }
        }
        place::require_space(&folder_of(&part), bytes_total.saturating_sub(durable))?;
        Ok((durable, gone))
    })
    .await?;
    if let Some(gone) = gone {
        context.artefacts.removed(&file_artefact(&gone)).await?;
    }
    Ok(durable)
}

enum Command {
    Write(Bytes),
    Sync(oneshot::Sender<()>),
}

/// Writes the stream to the temporary file and returns its length.
async fn write_pages(
    context: &EngineContext,
    backup: &dyn StreamSource,
    part: &Path,
    target: &Path,
    durable: u64,
    bytes_total: u64,
) -> Result<u64, EngineError> {
    let mut stream = backup.read(STREAM).await?;
    let (commands, received) = mpsc::channel(BUFFERS_AHEAD);
    let path = part.to_path_buf();
    let writing = blocking(move || write_commands(&path, received, durable));
    let feeding = async {
        let mut passed = 0u64;
        let mut since_checkpoint = 0u64;
        loop {
            let next = tokio::select! {
                next = stream.next() => next,
                () = context.stop.cancelled() => return Err(EngineError::Stopped),
            };
            let Some(bytes) = next.transpose()? else {
                break;
            };
            let count = bytes.len() as u64;
            if passed + count > bytes_total {
                // Told with the length at the end; the disk is not to be filled with it.
                passed += count;
                break;
            }
            if commands.send(Command::Write(bytes)).await.is_err() {
                break;
            }
            passed += count;
            since_checkpoint += count;
            context.progress.add(count, 0);
            if since_checkpoint >= CHECKPOINT_BYTES && passed > durable {
                since_checkpoint = 0;
                let (synced, done) = oneshot::channel();
                if commands.send(Command::Sync(synced)).await.is_err() || done.await.is_err() {
                    break;
                }
                context.fence.check().await?;
                let checkpoint = Checkpoint {
                    file: part.to_path_buf(),
                    target: target.to_path_buf(),
                    bytes: passed,
                };
                context
                    .checkpoints
                    .save(serde_json::to_value(checkpoint).expect("plain data can be JSON"))
                    .await?;
            }
        }
        drop(commands);
        Ok(passed)
    };
    // Where the writing thread failed, its error is the one to tell.
    let (written, passed) = tokio::join!(writing, feeding);
    written?;
    passed
}

/// Writes what it is given, in order, and syncs at the end. What an earlier attempt wrote is compared and
/// only written again where it differs.
fn write_commands(
    path: &Path,
    mut received: mpsc::Receiver<Command>,
    durable: u64,
) -> Result<(), EngineError> {
    let failed =
        |error: io::Error| EngineError::local(format!("writing {}", path.display()), error);
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed)?;
    file.set_len(durable).map_err(failed)?;
    let mut offset = 0u64;
    let mut there = Vec::new();
    while let Some(command) = received.blocking_recv() {
        match command {
            Command::Write(bytes) => {
                let end = offset + bytes.len() as u64;
                let is_there = end <= durable && {
                    there.resize(bytes.len(), 0);
                    file.read_exact_at(&mut there, offset).map_err(failed)?;
                    there == bytes
                };
                if !is_there {
                    file.write_all_at(&bytes, offset).map_err(failed)?;
                }
                offset = end;
            }
            Command::Sync(synced) => {
                file.sync_data().map_err(failed)?;
                // Nobody waits any more when the restore was stopped.
                let _ = synced.send(());
            }
        }
    }
    file.sync_all().map_err(failed)
}

/// Runs SQLite's own check on the restored file before it takes its place.
async fn check_copy(
    context: &EngineContext,
    part: &Path,
    data: &EngineData,
) -> Result<Vec<Warning>, EngineError> {
    let halt = context.stop.child_token();
    let _stops_the_thread = halt.clone().drop_guard();
    let path = part.to_path_buf();
    context.progress.item("checking the file");
    let connection = blocking(move || open_immutable(&path)).await?;
    interrupt_when_halted(std::slice::from_ref(&connection), &halt);
    let (path, sound) = (part.to_path_buf(), data.sound);
    let checked = blocking(move || match scan::check_file(&connection, Check::Quick) {
        Ok(complaints) => Ok(complaints),
        // The source could not be checked either.
        Err(error) if !sound => Ok(vec![error.to_string()]),
        Err(error) => Err(refused(&path, "checking", error)),
    })
    .await;
    context.check_stop()?;
    let complaints = checked?;
    if complaints.is_empty() {
        return Ok(Vec::new());
    }
    let said = complaints.join("; ");
    if data.sound {
        return Err(EngineError::Unusable {
            what: format!("the restored file is damaged, though the source was not: {said}"),
            remedy: "run `fettler verify` on the backup and restore another one".to_owned(),
        });
    }
    Ok(vec![Warning {
        code: "sqlite.damaged".to_owned(),
        message: format!(
            "the database was damaged or could not be checked when it was backed up, and is so again; SQLite says: {said}"
        ),
    }])
}

/// Renames the temporary file to the target, and takes away what an older database left beside it: a WAL of
/// another database would be applied to this one.
fn put_in_place(part: &Path, target: &Path, overwrite: bool) -> Result<(), EngineError> {
    require_free(target, overwrite)?;
    let _lock = retire(target)?;
    place::remove_side_files(target)?;
    fs::rename(part, target).map_err(|error| {
        EngineError::local(
            format!("renaming {} to {}", part.display(), target.display()),
            error,
        )
    })?;
    place::sync_folder_of(target)
}

/// Makes sure that nobody is using the database that is about to be replaced, and keeps others out
/// until the returned connection is dropped.
fn retire(target: &Path) -> Result<Option<rusqlite::Connection>, EngineError> {
    if !fs::metadata(target).is_ok_and(|metadata| metadata.len() > 0) {
        return Ok(None);
    }
    let in_use = |what: &dyn std::fmt::Display| EngineError::NotEmpty {
        what: format!("{} is in use: {what}", target.display()),
        remedy: "stop what uses it and try again".to_owned(),
    };
    let connection = open_shared(target)?;
    // Leaving WAL mode needs that no other connection is open, and moves the WAL into the file.
    let mode = connection.query_row("PRAGMA journal_mode = DELETE", [], |row| {
        row.get::<_, String>(0)
    });
    let locked = match mode {
        Ok(mode) if mode == "wal" => {
            return Err(in_use(&"another connection has it open in WAL mode"));
        }
        Ok(_) => connection.execute_batch("BEGIN EXCLUSIVE"),
        Err(error) => Err(error),
    };
    match locked.map_err(|error| (error.sqlite_error_code(), error)) {
        Ok(()) => Ok(Some(connection)),
        // What is no usable database may be replaced like any other file.
        Err((
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt),
            _,
        )) => Ok(None),
        Err((
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked),
            error,
        )) => Err(in_use(&error)),
        Err((_, error)) => Err(refused(target, "replacing", error)),
    }
}
