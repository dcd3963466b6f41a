//! The pipe of a copy: a repository of its own in the worker's scratch folder, under a key of its own, which ends with the job.
//!
//! It lies on one machine and is gone on with there; on another one, or where it is damaged, the copy reads its source again. The
//! key is removed first: what may be left of a folder that is being removed cannot be read by anybody.

use std::path::{Path, PathBuf};

use fettler_engine::{Artefact, EngineError, Target};
use fettler_model::{Engine, Problem};
use fettler_repository::{
    CreateKey, OpenOptions, Repository, TenantRepository, Unlock, create_key_file,
};

use crate::JobContext;

/// What the artefact is.
const KIND: &str = "copy-data";
/// What the folder's name begins with.
const FOLDER: &str = "copy-";

/// An open pipe.
pub(super) struct Pipe {
    pub(super) repository: TenantRepository,
    /// Whether it is the one that an earlier attempt left.
    pub(super) continued: bool,
    artefact: Artefact,
}

fn folder_of(context: &JobContext) -> PathBuf {
    context
        .services
        .scratch()
        .join(format!("{FOLDER}{}", context.job.id.uuid().simple()))
}

fn key_of(folder: &Path) -> PathBuf {
    folder.join("key")
}

fn artefact_of(engine: Engine, folder: &Path) -> Artefact {
    Artefact {
        engine,
        kind: KIND.to_owned(),
        name: folder.display().to_string(),
        data: serde_json::Value::Null,
        until_job_ends: true,
    }
}

/// Opens the pipe that an earlier attempt of the job left on this machine, or makes one.
pub(super) async fn open(context: &JobContext, engine: Engine) -> Result<Pipe, Problem> {
    let folder = folder_of(context);
    let artefact = artefact_of(engine, &folder);
    context
        .artefacts
        .record(&artefact)
        .await
        .map_err(|error| context.problem(error))?;
    if key_of(&folder).exists() {
        match open_at(context, &folder).await {
            Ok(repository) => {
                return Ok(Pipe {
                    repository,
                    continued: true,
                    artefact,
                });
            }
            Err(problem) => {
                let line = format!("the pipe that an earlier attempt left is of no use: {problem}");
                context.ledger.log(&line).await;
            }
        }
    }
    let made = folder.clone();
    blocking(move || {
        remove_folder(&made)?;
        std::fs::create_dir_all(&made)
            .and_then(|()| private(&made))
            .map_err(|error| {
                EngineError::local(
                    format!("the folder {} cannot be made", made.display()),
                    error,
                )
            })
    })
    .await
    .map_err(|error| context.problem(error))?;
    create_key_file(&key_of(&folder))?;
    Ok(Pipe {
        repository: open_at(context, &folder).await?,
        continued: false,
        artefact,
    })
}

async fn open_at(context: &JobContext, folder: &Path) -> Result<TenantRepository, Problem> {
    let place = folder.join("streams");
    let options = OpenOptions {
        create: true,
        ..OpenOptions::default()
    };
    let repository = Repository::open(&place.to_string_lossy(), options).await?;
    let unlock = Unlock::KeyFile(key_of(folder));
    Ok(repository
        .tenant(&context.job.tenant, &unlock, CreateKey::IfAbsent)
        .await?)
}

impl Pipe {
    /// Removes it and says so.
    pub(super) async fn remove(self, context: &JobContext) -> Result<(), EngineError> {
        drop(self.repository);
        // A newer attempt may go on with it.
        context.fence.check().await?;
        let folder = PathBuf::from(&self.artefact.name);
        blocking(move || remove_folder(&folder)).await?;
        context.artefacts.removed(&self.artefact).await
    }
}

/// Bytes that lie in the folder of a job's pipe.
pub(super) async fn bytes_of(context: &JobContext) -> u64 {
    fn of(folder: &Path) -> u64 {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.metadata() {
                Ok(found) if found.is_dir() => of(&entry.path()),
                Ok(found) => found.len(),
                Err(_) => 0,
            })
            .sum()
    }
    let folder = folder_of(context);
    tokio::task::spawn_blocking(move || of(&folder))
        .await
        .unwrap_or(0)
}

fn remove_folder(folder: &Path) -> Result<(), EngineError> {
    let gone = |removed: std::io::Result<()>| match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(EngineError::local(
            format!("removing {}", folder.display()),
            error,
        )),
        _ => Ok(()),
    };
    gone(std::fs::remove_file(key_of(folder)))?;
    gone(std::fs::remove_dir_all(folder))
}

fn private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // The runtime is going down.
        Err(_) => Err(EngineError::Stopped),
    }
}

/// Removes what an attempt made outside, whoever of a job made it: its engine, or the job itself.
///
/// # Errors
///
/// Where it cannot be removed yet.
pub async fn remove_artefact(
    artefact: &Artefact,
    server: Option<&Target>,
) -> Result<(), EngineError> {
    if artefact.kind != KIND {
        return fettler_engines::engine(artefact.engine)
            .remove_artefact(artefact, server)
            .await;
    }
    let folder = PathBuf::from(&artefact.name);
    let is_a_pipe = folder
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix(FOLDER))
        .is_some_and(uuid_like);
    if !is_a_pipe {
        return Err(EngineError::Unusable {
            what: format!("{} is no folder of a copy", folder.display()),
            remedy: "remove it by hand".to_owned(),
        });
    }
    blocking(move || remove_folder(&folder)).await
}

fn uuid_like(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipe_is_removed_by_its_record_and_nothing_else_is() {
        let scratch = tempfile::tempdir().unwrap();
        let pipe = scratch.path().join(format!("{FOLDER}{}", "0a".repeat(16)));
        std::fs::create_dir_all(pipe.join("streams")).unwrap();
        std::fs::write(key_of(&pipe), "key").unwrap();
        let artefact = artefact_of(Engine::Redis, &pipe);
        for _ in 0..2 {
            remove_artefact(&artefact, None).await.unwrap();
            assert!(!pipe.exists());
        }
        let other = artefact_of(Engine::Redis, scratch.path());
        assert!(remove_artefact(&other, None).await.is_err());
        assert!(scratch.path().exists());
    }
}
