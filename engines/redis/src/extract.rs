//! A backup as an RDB file: what a server of its own can be started from.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use fettler_engine::{
    BackupReport, Ending, EndingFile, EngineContext, EngineError, RestoreOptions, RestoreReport,
    StreamSource, folder_of,
};
use futures::TryStreamExt as _;
use tokio::sync::mpsc;

use crate::{
    blocking,
    connect::Info,
    rdb::{Writer, needed_version},
    records::{RecordEvent, RecordReader, StoredError},
    restore::{KEY_STREAMS, unrestored_users},
    sandbox,
    select::Selection,
    server_data::ServerData,
};

/// Pieces of streams that wait to be written.
const PIECES_AHEAD: usize = 8;

/// The first version of RDB that holds functions.
const FUNCTIONS_VERSION: u32 = 10;

/// What the writing thread is told.
enum Piece {
    Bytes(Bytes),
    /// A stream is whole.
    End,
    /// All streams are whole.
    Done,
}

/// Why a piece could not be written.
enum Failure {
    Stored(StoredError),
    Local(io::Error),
    TooOld,
}

impl From<StoredError> for Failure {
    fn from(error: StoredError) -> Self {
        Self::Stored(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Local(error)
    }
}

/// Restores keys and functions of a backup, or what `options` names of them, to a file as an RDB. Servers of the source's
/// version and newer start from it, as `dump.rdb` in their folder; a key that has expired meanwhile is left out by the server.
/// Users and configuration have no place in an RDB.
///
/// The file has its name once it is whole and durable; until then, and after an error, it lies beside under the attempt's.
///
/// # Errors
///
/// [`EngineError::NotEmpty`] where the file is there and may not be replaced; those of the backup's streams and of the disk.
pub async fn restore_to_file(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    path: &Path,
    options: &RestoreOptions,
) -> Result<RestoreReport, EngineError> {
    if let Some(Ending { report, file }) = Ending::load(context).await?
        && file.is_some_and(|file| file.is_at(path))
    {
        return Ok(report);
    }
    require_free(path, options)?;
    let name = context.attempt.to_string().replace('/', "-");
    let part = folder_of(path).join(format!(".{name}.rdb"));
    let artefact = sandbox::file_artefact(&part);
    context.artefacts.record(&artefact).await?;
    let written = write_rdb(context, backup, report, &part, &options.only).await?;

    let failed = |error| EngineError::local(format!("writing {}", path.display()), error);
    let ending = Ending {
        report: written,
        file: Some(EndingFile::of(&part).map_err(failed)?),
    };
    ending.save(context).await?;
    context.fence.check().await?;
    require_free(path, options)?;
    std::fs::rename(&part, path)
        .and_then(|()| File::open(folder_of(path))?.sync_all())
        .map_err(failed)?;
    context.artefacts.removed(&artefact).await?;
    Ok(ending.report)
}

fn require_free(path: &Path, options: &RestoreOptions) -> Result<(), EngineError> {
    if path.exists() && !options.overwrite {
        return Err(EngineError::NotEmpty {
            what: format!("{} is there already", path.display()),
            remedy: "name another file, or say with `--overwrite` that it may be replaced"
                .to_owned(),
        });
    }
    Ok(())
}

/// Writes what is chosen of a backup as an RDB to a file, which is durable at the end, and gone after an error.
pub(crate) async fn write_rdb(
    context: &EngineContext,
    backup: &dyn StreamSource,
    report: &BackupReport,
    path: &Path,
    only: &[String],
) -> Result<RestoreReport, EngineError> {
    let selection = Selection::of_restore(only)?;
    let functions = if selection.functions {
        ServerData::of_backup(backup).await?.functions
    } else {
        Vec::new()
    };
    let (send, pieces) = mpsc::channel(PIECES_AHEAD);
    let job = Job {
        path: path.to_owned(),
        server: report.identity.version.clone(),
        functions,
        selection,
    };
    let writing = blocking(move || job.run(pieces));
    let reading = async move {
        for stream in backup.streams() {
            if !stream.name.starts_with(KEY_STREAMS) {
                continue;
            }
            let mut bytes = backup.read(&stream.name).await?;
            while let Some(piece) = bytes.try_next().await? {
                context.check_stop()?;
                context.progress.add(piece.len() as u64, 0);
                if send.send(Piece::Bytes(piece)).await.is_err() {
                    // Whoever listened has the reason.
                    return Ok(());
                }
            }
            let _heard = send.send(Piece::End).await;
        }
        context.fence.check().await?;
        let _heard = send.send(Piece::Done).await;
        Ok(())
    };
    let (read, written): (Result<(), EngineError>, _) = tokio::join!(reading, writing);
    let mut written = read.and(written)?;
    written.warnings.extend(unrestored_users(report));
    Ok(written)
}

/// What the writing thread does.
struct Job {
    path: PathBuf,
    /// The version of the server that was backed up.
    server: String,
    functions: Vec<Vec<u8>>,
    selection: Selection,
}

impl Job {
    fn run(self, pieces: mpsc::Receiver<Piece>) -> Result<RestoreReport, EngineError> {
        let written = self.write(pieces);
        if written.is_err() {
            let _gone_already = std::fs::remove_file(&self.path);
        }
        written
    }

    fn write(&self, mut pieces: mpsc::Receiver<Piece>) -> Result<RestoreReport, EngineError> {
        let failed = |failure| match failure {
            Failure::Local(error) => {
                EngineError::local(format!("writing {}", self.path.display()), error)
            }
            Failure::Stored(error) => EngineError::Unusable {
                what: error.to_string(),
                remedy: "verify the backup, and take another one".to_owned(),
            },
            Failure::TooOld => EngineError::Unusable {
                what: format!(
                    "the backup holds what Redis {} cannot have in its files",
                    self.server
                ),
                remedy: "restore it to a server".to_owned(),
            },
        };
        let version = rdb_version(&self.server);
        let begin = || -> Result<Writer<File>, Failure> {
            let mut writer = Writer::new(File::create(&self.path)?, version)?;
            writer.aux(b"redis-ver", self.server.as_bytes())?;
            if version >= FUNCTIONS_VERSION {
                for code in &self.functions {
                    writer.function(code)?;
                }
            }
            Ok(writer)
        };
        let mut writer = begin().map_err(failed)?;
        let mut report = RestoreReport::default();
        let mut reader = RecordReader::new();
        let mut is_meant = false;
        while let Some(piece) = pieces.blocking_recv() {
            match piece {
                Piece::Bytes(bytes) => {
                    report.bytes += bytes.len() as u64;
                    reader
                        .feed(&bytes, &mut |event| {
                            match event {
                                RecordEvent::Begin(head, size) => {
                                    is_meant = self.selection.has(head.database, head.key);
                                    if is_meant {
                                        if needed_version(head.kind, &size) > version {
                                            return Err(Failure::TooOld);
                                        }
                                        report.rows += 1;
                                        writer.begin(&head, &size)?;
                                    }
                                }
                                RecordEvent::Element(element) if is_meant => {
                                    writer.element(&element)?;
                                }
                                RecordEvent::End if is_meant => writer.end()?,
                                RecordEvent::Element(_) | RecordEvent::End => {}
                            }
                            Ok(())
                        })
                        .map_err(failed)?;
                }
                Piece::End => {
                    std::mem::take(&mut reader)
                        .finish()
                        .map_err(|error| failed(error.into()))?;
                }
                Piece::Done => {
                    let end = || -> Result<(), Failure> {
                        writer.finish()?.sync_all()?;
                        Ok(())
                    };
                    return end().map_err(failed).map(|()| report);
                }
            }
        }
        // Whoever read the backup has the reason.
        Err(EngineError::Stopped)
    }
}

/// The newest version of RDB that a server of this version reads, as an identity writes versions.
pub(crate) fn rdb_version(server: &str) -> u32 {
    // All versions of Valkey read what Redis 7.2 wrote.
    let version = if server.starts_with("Valkey") {
        "7.2"
    } else {
        server
    };
    Info::read(&format!("redis_version:{version}\r\n")).rdb_version()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_reads_its_own_version() {
        for (server, version) in [
            ("5.0.3", 9),
            ("6.2.14", 9),
            ("7.0.15", 10),
            ("7.2.4", 11),
            ("7.4.1", 12),
            ("8.0.0", 12),
            ("Valkey 8.0.1", 11),
        ] {
            assert_eq!(rdb_version(server), version, "{server}");
        }
    }
}
