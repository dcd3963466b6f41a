//! Where a server's files are.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use fettler_engine::{EngineContext, EngineError};

use crate::User;

/// Bytes that the path of a socket may have (unix(7): `sun_path` with its closing zero has 108).
const SOCKET_PATH_BYTES: usize = 107;
/// Twelve digits of the job, a dash, sixteen of the token.
const NAME_BYTES: usize = 12 + 1 + 16;

/// How the folders of an engine's servers are named, and what has to fit into their paths.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// What the names of folders begin with. Only such folders are ever removed.
    pub prefix: &'static str,
    /// The name of the server's socket in its folder; empty where it has none.
    pub socket: &'static str,
}

impl Place {
    /// The folder for the server of an attempt, which is not made yet: in the worker's own folder where the server's user can
    /// get there and the path of a socket still fits, else in one for temporary files.
    ///
    /// # Errors
    ///
    /// When there is no such folder.
    pub fn folder(
        self,
        context: &EngineContext,
        user: Option<User>,
    ) -> Result<PathBuf, EngineError> {
        let kept = fs::canonicalize(&context.kept).unwrap_or_else(|_| context.kept.clone());
        let longest =
            SOCKET_PATH_BYTES - 1 - self.prefix.len() - NAME_BYTES - 1 - self.socket.len();
        let base = [kept, PathBuf::from("/var/tmp"), std::env::temp_dir()]
            .into_iter()
            .find(|folder| {
                folder.as_os_str().len() <= longest
                    && folder.is_dir()
                    && user.is_none_or(|user| user.can_pass(folder))
            })
            .ok_or_else(|| EngineError::Missing {
                code: "folder",
                what: "no folder was found for the sandbox's server that its user can enter and whose path is short enough for a socket"
                    .to_owned(),
                remedy: "set TMPDIR to such a folder".to_owned(),
            })?;
        Ok(base.join(format!(
            "{}{}-{}",
            self.prefix,
            &context.attempt.job.uuid().simple().to_string()[20..],
            context.attempt.token
        )))
    }

    /// Whether a path is that of a folder that [`Place::folder`] named.
    #[must_use]
    pub fn is_of(self, folder: &Path) -> bool {
        folder.is_absolute()
            && folder
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(self.prefix))
    }
}

/// Makes a folder that only the server's user may enter.
///
/// # Errors
///
/// When the file system refuses.
pub fn make_folder(folder: &Path, user: Option<User>) -> Result<(), EngineError> {
    fs::create_dir(folder).map_err(failed("making", folder))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
        .map_err(failed("closing", folder))?;
    match user {
        Some(user) => {
            chown(folder, Some(user.id), Some(user.group)).map_err(failed("giving away", folder))
        }
        None => Ok(()),
    }
}

/// The bytes that a user without rights may still write to the file system of a folder.
///
/// # Errors
///
/// When the file system does not say.
pub fn free_bytes_of(folder: &Path) -> Result<u64, EngineError> {
    let found = rustix::fs::statvfs(folder)
        .map_err(io::Error::from)
        .map_err(failed("looking at", folder))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Says what failed in a folder.
pub(crate) fn failed(what: &str, folder: &Path) -> impl FnOnce(io::Error) -> EngineError + use<> {
    let what = format!("{what} {}", folder.display());
    move |error| EngineError::local(what, error)
}
