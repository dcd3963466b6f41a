//! Finds what `install.sh` installed. The folders and their order are the same as there: change both together.

use std::path::{Path, PathBuf};

use crate::{Result, ServerError};

/// Where the script unpacks things when the checkout lies below a folder that the user `postgres` cannot pass.
const MACHINE_FOLDER: &str = "/var/lib/fettler-test-servers";

/// Where Debian's package puts the programs of PostgreSQL 15.
pub(crate) const POSTGRES_15: &str = "/usr/lib/postgresql/15/bin";

/// Where Debian's package puts Redis.
pub(crate) const REDIS_SERVER: &str = "/usr/bin/redis-server";

/// The folder below which `install.sh` unpacks what is not a Debian package, as far as it holds anything. A test finds
/// there, for instance, `python/bin/python` with the packages that `tools/read_backup.py` imports.
///
/// # Errors
///
/// [`ServerError::NotInstalled`] where `entry` is in none of the folders that the script uses.
pub fn server_folder(entry: &str) -> Result<PathBuf> {
    let looked_at: Vec<PathBuf> = candidates()
        .into_iter()
        .map(|folder| folder.join(entry))
        .collect();
    looked_at
        .iter()
        .find(|path| path.exists())
        .cloned()
        .ok_or_else(|| ServerError::NotInstalled {
            program: entry.to_owned(),
            looked_at: looked_at.clone(),
        })
}

/// The program at `path`, or an error that says how to install it.
pub(crate) fn program(path: PathBuf) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path);
    }
    Err(ServerError::NotInstalled {
        program: path
            .file_name()
            .unwrap_or(path.as_os_str())
            .display()
            .to_string(),
        looked_at: vec![path],
    })
}

fn candidates() -> Vec<PathBuf> {
    if let Some(folder) =
        std::env::var_os("FETTLER_TEST_SERVERS").filter(|folder| !folder.is_empty())
    {
        return vec![PathBuf::from(folder)];
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate lies two folders below the repository");
    vec![repository.join(".servers"), PathBuf::from(MACHINE_FOLDER)]
}
