//! Paths of sockets. The system takes about a hundred bytes only; a socket in a deeper folder is reached
//! through the folder's open descriptor.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// The longest path of a socket that every system takes, with room for its end.
const MAX_PATH_BYTES: usize = 100;

/// A path that the system takes for a socket.
#[derive(Debug)]
pub(crate) struct SocketPath {
    path: PathBuf,
    /// Kept open while `path` goes through it.
    _folder: Option<File>,
}

impl SocketPath {
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= MAX_PATH_BYTES {
            return Ok(Self {
                path: path.to_path_buf(),
                _folder: None,
            });
        }
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::other("the socket's path names no file"))?;
        let folder = File::open(path.parent().unwrap_or(Path::new(".")))?;
        Ok(Self {
            path: PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name),
            _folder: Some(folder),
        })
    }

    pub(crate) fn as_path(&self) -> &Path {
        &self.path
    }
}
