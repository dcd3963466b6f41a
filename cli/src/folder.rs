//! The folder of an installation: made for its owner alone, run by one `fettler up` at a time, and
//! marked by the commands that run a job in a process of their own.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use fettler_model::Problem;
use uuid::Uuid;

use crate::failure::Failure;

/// The folder of the user's own checks, where there is one.
pub(crate) fn own_checks(folder: &Path) -> Option<PathBuf> {
    let checks = folder.join("checks");
    checks.is_dir().then_some(checks)
}

/// Makes the folder, readable by its owner only.
pub(crate) fn make(folder: &Path) -> Result<(), Failure> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| {
            Failure::local(
                format!("the folder {} cannot be made", folder.display()),
                &error,
            )
        })
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// The right to run a folder; given up when dropped, also by a kill.
#[derive(Debug)]
pub(crate) struct UpLock {
    _file: File,
}

impl UpLock {
    /// Takes the right.
    pub(crate) fn take(folder: &Path) -> Result<Self, Failure> {
        make(folder)?;
        let path = folder.join("up.lock");
        let failed = |error: std::io::Error| {
            Failure::local(format!("{} cannot be locked", path.display()), &error)
        };
        let mut file = open_lock(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| writeln!(file, "{}", std::process::id()))
                    .map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Who it is helps the reader; that somebody is there is known without.
                let _unknown_owner = file.read_to_string(&mut owner);
                let owner = owner.trim();
                Err(Problem::permanent(
                    "up.already_runs",
                    format!(
                        "`fettler up` runs in the folder {} already{}",
                        folder.display(),
                        if owner.is_empty() {
                            String::new()
                        } else {
                            format!(", as process {owner}")
                        }
                    ),
                    format!(
                        "use it as it is (other commands work beside it), stop it with `kill {owner}`, or start this one in another folder with `--folder`"
                    ),
                )
                .into())
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// What the unique keys of jobs begin with that a command runs itself.
const AD_HOC: &str = "ad-hoc/";

/// The mark of a command that runs jobs itself. The jobs carry its id as their unique key; the mark's
/// file is locked as long as the command lives, so that jobs of a killed one can be told.
#[derive(Debug)]
pub(crate) struct AdHoc {
    id: Uuid,
    path: PathBuf,
    _file: File,
    jobs: std::sync::atomic::AtomicU32,
}

impl AdHoc {
    /// Sets the mark.
    pub(crate) fn begin(folder: &Path) -> Result<Self, Failure> {
        let running = folder.join("run");
        make(&running)?;
        let id = Uuid::now_v7();
        let path = running.join(format!("{}.lock", id.simple()));
        let failed = |error: std::io::Error| {
            Failure::local(format!("{} cannot be locked", path.display()), &error)
        };
        let file = open_lock(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            // The name is new, and a look by another command is over at once.
            Err(TryLockError::WouldBlock) => file.lock().map_err(failed)?,
        }
        Ok(Self {
            id,
            path,
            _file: file,
            jobs: std::sync::atomic::AtomicU32::new(0),
        })
    }

    /// A unique key for the next job of this command.
    pub(crate) fn key(&self) -> String {
        let number = self.jobs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        format!("{AD_HOC}{}/{number}", self.id.simple())
    }

    /// Whether a job with this unique key belongs to a command that is gone.
    pub(crate) fn is_orphaned(folder: &Path, unique_key: Option<&str>) -> bool {
        let Some(id) = unique_key
            .and_then(|key| key.strip_prefix(AD_HOC))
            .and_then(|rest| rest.split('/').next())
        else {
            return false;
        };
        let path = folder.join("run").join(format!("{id}.lock"));
        match File::open(&path) {
            // A shared lock is refused only while the command holds its own.
            Ok(file) => !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
            Err(_) => true,
        }
    }
}

impl Drop for AdHoc {
    fn drop(&mut self) {
        // A file that stays says no more than one that is gone: nobody holds its lock.
        let _left_behind = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_up_in_one_folder_is_refused_and_told_who_runs_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = UpLock::take(folder.path()).unwrap();
        let refused = UpLock::take(folder.path()).unwrap_err();
        assert_eq!(refused.problem.code, "up.already_runs");
        assert!(
            refused
                .problem
                .what
                .contains(&std::process::id().to_string())
        );
        drop(first);
        UpLock::take(folder.path()).unwrap();
    }

    #[test]
    fn a_job_is_orphaned_once_its_command_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let command = AdHoc::begin(folder.path()).unwrap();
        let key = command.key();
        assert_ne!(key, command.key());
        assert!(!AdHoc::is_orphaned(folder.path(), Some(&key)));
        drop(command);
        assert!(AdHoc::is_orphaned(folder.path(), Some(&key)));
        assert!(!AdHoc::is_orphaned(folder.path(), Some("prove/7")));
        assert!(!AdHoc::is_orphaned(folder.path(), None));
    }
}
