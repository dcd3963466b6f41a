//! SQLite: backups of live files, page by page.
//!
//! A backup is one stream, `database`: the pages of the file as one read transaction sees them, in
//! order. Restored, they are the file again, header and journal mode included, so that nothing of what
//! SQLite can hold (virtual tables, generated columns, triggers, pragmas) needs a translation.
//!
//! **One moment.** In WAL mode several connections begin their read transactions while one of them
//! holds the write lock for an instant: all of them see the same commit, and writers go on as soon as
//! the lock is released. In the rollback-journal modes a reader keeps writers out, so that the pages are
//! copied into the attempt's scratch folder first, under a read lock that is held as long as the copy
//! takes (a warning says so), and everything else reads the copy.
//!
//! **How the fingerprint is bound to the bytes.** The pages say nothing of rows, so that the rows
//! are read a second time, table by table, in the very same snapshot, by other connections than the one
//! that reads pages. A proof turns the streamed pages into a file, reads the rows of that file and
//! compares: it fails when the pages are not those of the snapshot. The count of each table comes from
//! `SELECT count(*)` of the source under the same snapshot, which walks a b-tree without the ranges that
//! the fingerprint is read in (rule 27).
//!
//! **No stream is taken over unread.** The file's change counter does not move in WAL mode, and a file
//! that was put back from elsewhere can carry any counter: nothing in the file proves that it is
//! unchanged. Unchanged pages are found chunk by chunk instead.
//!
//! The database file is only ever opened through SQLite: opening and closing it beside SQLite in the same
//! process would drop SQLite's POSIX locks.

mod ask;
mod cleanup;
mod connect;
mod copied;
mod extract;
mod facts;
mod files;
mod grants;
mod pages;
mod place;
mod restore;
mod scan;
mod snapshot;
mod tables;
mod workbench;

use std::path::PathBuf;

use async_trait::async_trait;
use fettler_engine::{
    Answers, Artefact, AttemptName, BackupOptions, BackupReport, Cleanup, DatabaseEngine,
    EngineContext, EngineError, ExtractFormat, ExtractReport, Extraction, GrantRequest, Grants,
    Identity, PreflightItem, Question, RestoreOptions, RestoreReport, Sandbox, SandboxRequest,
    SandboxSpec, StreamSink, StreamSource, Target, Workbench, chosen_format, folder_of,
};
use fettler_model::{DatabaseUrl, Engine, ObjectFacts};
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

/// The one stream of a backup.
pub const STREAM: &str = "database";

/// What the artefacts of this engine are: files, with what SQLite puts beside them.
const ARTEFACT_KIND: &str = "file";

/// SQLite.
#[derive(Debug, Clone, Copy, Default)]
pub struct SqliteEngine;

#[async_trait]
impl DatabaseEngine for SqliteEngine {
    fn engine(&self) -> Engine {
        Engine::Sqlite
    }

    async fn identify(&self, target: &Target) -> Result<Identity, EngineError> {
        let path = path_of(target)?;
        blocking(move || place::identify(&path)).await
    }

    async fn ask(
        &self,
        target: &Target,
        questions: &[Question],
        stop: &CancellationToken,
    ) -> Result<Answers, EngineError> {
        let path = path_of(target)?;
        let (questions, stop) = (questions.to_vec(), stop.clone());
        blocking(move || ask::ask(&path, &questions, &stop)).await
    }

    async fn workbench(
        &self,
        target: &Target,
        _name: &AttemptName,
    ) -> Result<Box<dyn Workbench>, EngineError> {
        workbench::open(target).await
    }

    fn grants(&self, request: &GrantRequest<'_>) -> Result<Grants, EngineError> {
        grants::grants(request)
    }

    async fn preflight(
        &self,
        target: &Target,
        options: &BackupOptions,
    ) -> Result<Vec<PreflightItem>, EngineError> {
        let path = path_of(target)?;
        let options = options.clone();
        blocking(move || place::preflight(&path, &options)).await
    }

    async fn backup(
        &self,
        context: &EngineContext,
        source: &Target,
        options: &BackupOptions,
        sink: &dyn StreamSink,
    ) -> Result<BackupReport, EngineError> {
        pages::backup(context, path_of(source)?, options, sink).await
    }

    async fn restore(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        report: &BackupReport,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<RestoreReport, EngineError> {
        let path = path_of(target)?;
        if options.only.is_empty() {
            restore::whole(context, backup, report, path, options).await
        } else {
            tables::restore_some(context, backup, report, path, options).await
        }
    }

    /// A file in the attempt's scratch folder, or in the folder that the request names as a SQLite
    /// path. A server for other engines is of no use here, and the source's own folder is never used.
    async fn open_sandbox(
        &self,
        context: &EngineContext,
        request: &SandboxRequest,
    ) -> Result<Sandbox, EngineError> {
        if let Some(left) = &request.left {
            let path = PathBuf::from(&left.name);
            let looked_at = path.clone();
            if blocking(move || Ok(restore::has_begun(&looked_at))).await? {
                context.artefacts.record(left).await?;
                return Ok(Sandbox {
                    target: Target {
                        url: url_of(&path)?,
                        password: None,
                    },
                    artefacts: vec![left.clone()],
                    continued: true,
                });
            }
        }
        let folder = match &request.spec {
            SandboxSpec::Server { url, .. } => url
                .path()
                .filter(|path| path.is_dir())
                .unwrap_or_else(|| context.kept.clone()),
            SandboxSpec::Automatic | SandboxSpec::SourceServer => context.kept.clone(),
        };
        let needed_bytes = request.estimated_bytes;
        let looked_at = folder.clone();
        blocking(move || place::require_space(&looked_at, needed_bytes)).await?;
        let path = folder.join(format!("{}.sandbox.sqlite", file_name_part(context)));
        let artefact = Artefact {
            until_job_ends: true,
            ..file_artefact(&path)
        };
        context.artefacts.record(&artefact).await?;
        Ok(Sandbox {
            target: Target {
                url: url_of(&path)?,
                password: None,
            },
            artefacts: vec![artefact],
            continued: false,
        })
    }

    async fn remove_artefact(
        &self,
        artefact: &Artefact,
        _server: Option<&Target>,
    ) -> Result<(), EngineError> {
        if artefact.kind != ARTEFACT_KIND {
            return Err(EngineError::Unusable {
                what: format!(
                    "{} {:?} is nothing that the SQLite engine makes",
                    artefact.kind, artefact.name
                ),
                remedy: "remove it by hand".to_owned(),
            });
        }
        let path = PathBuf::from(&artefact.name);
        blocking(move || place::remove_database_files(&path)).await
    }

    async fn facts(
        &self,
        context: &EngineContext,
        copy: &Target,
        expected: &BackupReport,
    ) -> Result<Vec<ObjectFacts>, EngineError> {
        facts::of_copy(context, path_of(copy)?, expected).await
    }

    fn chosen(
        &self,
        report: &BackupReport,
        only: &[String],
    ) -> Result<Vec<ObjectFacts>, EngineError> {
        copied::chosen(report, only)
    }

    fn has_place_of_its_own(&self) -> bool {
        true
    }

    fn extract_formats(&self) -> &'static [ExtractFormat] {
        &extract::FORMATS
    }

    async fn extract(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        report: &BackupReport,
        what: &Extraction,
        out: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> Result<ExtractReport, EngineError> {
        chosen_format(self.engine(), self.extract_formats(), Some(what.format))?;
        extract::extract(context, backup, report, what, out).await
    }

    fn cleanup(&self) -> Option<&dyn Cleanup> {
        Some(self)
    }

    async fn free_bytes(&self, target: &Target) -> Result<Option<u64>, EngineError> {
        let folder = folder_of(&path_of(target)?);
        blocking(move || place::free_bytes(&folder)).await.map(Some)
    }
}

/// The file that a target names, made absolute: a relative name could be one of SQLite's special ones
/// (`:memory:`).
fn path_of(target: &Target) -> Result<PathBuf, EngineError> {
    let path = target.url.path().ok_or_else(|| EngineError::Missing {
        code: "database_file",
        what: format!("{} names no file", target.url),
        remedy: "name the database by its path".to_owned(),
    })?;
    std::path::absolute(&path)
        .map_err(|error| EngineError::local(format!("looking for {}", path.display()), error))
}

fn url_of(path: &std::path::Path) -> Result<DatabaseUrl, EngineError> {
    DatabaseUrl::try_from(format!("sqlite:{}", path.display())).map_err(|error| {
        EngineError::Missing {
            code: "database_file",
            what: format!("{} cannot be a database's place: {error}", path.display()),
            remedy: "name another folder".to_owned(),
        }
    })
}

/// The attempt's name as a part of file names.
fn file_name_part(context: &EngineContext) -> String {
    context.attempt.to_string().replace('/', "-")
}

fn file_artefact(path: &std::path::Path) -> Artefact {
    Artefact {
        engine: Engine::Sqlite,
        kind: ARTEFACT_KIND.to_owned(),
        name: path.display().to_string(),
        data: serde_json::Value::Null,
        until_job_ends: false,
    }
}

/// Runs work that blocks on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down.
            Err(_) => Err(EngineError::Stopped),
        },
    }
}

/// An error once the work is to stop.
fn check(halt: &CancellationToken) -> Result<(), EngineError> {
    if halt.is_cancelled() {
        Err(EngineError::Stopped)
    } else {
        Ok(())
    }
}
