//! A process as the kernel knows it.

use std::{fs, path::Path};

use fettler_engine::EngineError;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// A process: its id, and when it started in the kernel's ticks since the machine did. No two ever have both in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process(i32, u64);

impl Process {
    /// The process that a server wrote into the first line of `pid_file` and that works in `folder` or below. A process that
    /// happens to have the id today works elsewhere.
    #[must_use]
    pub fn of_server(pid_file: &Path, folder: &Path) -> Option<Self> {
        let text = fs::read_to_string(pid_file).ok()?;
        let id: i32 = text.lines().next()?.trim().parse().ok()?;
        let works_in = fs::read_link(format!("/proc/{id}/cwd")).ok()?;
        let folder = fs::canonicalize(folder).ok()?;
        works_in
            .starts_with(folder)
            .then(|| started(id).map(|started| Self(id, started)))?
    }

    /// Whether it runs.
    #[must_use]
    pub fn runs(self) -> bool {
        started(self.0) == Some(self.1)
    }

    /// Sends it a signal. One that is gone takes none, and that is no error.
    pub(crate) fn send(self, signal: Signal) -> Result<(), EngineError> {
        let Some(pid) = Pid::from_raw(self.0) else {
            return Ok(());
        };
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(EngineError::local(
                format!("stopping the sandbox's server, process {}", self.0),
                error.into(),
            )),
        }
    }
}

/// When a process started, in the kernel's ticks since the machine did; nothing where it has ended.
fn started(id: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold anything; after it, this is the twentieth field (proc_pid_stat(5)).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_folder_and_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(folder.path())
            .spawn()
            .unwrap();
        let pid_file = folder.path().join("pid");
        fs::write(&pid_file, format!("{}\nmore\n", child.id())).unwrap();
        let found = Process::of_server(&pid_file, folder.path()).unwrap();
        assert!(found.runs());
        assert!(!Process(found.0, found.1 + 1).runs());
        assert_eq!(Process::of_server(&pid_file, Path::new("/usr")), None);
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(text, format!("[{},{}]", found.0, found.1));
        found.send(Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(!found.runs());
        found.send(Signal::KILL).unwrap();
    }
}
