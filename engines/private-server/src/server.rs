//! A server's start and its end.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fettler_engine::{EngineContext, EngineError};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::{Place, Process, User, folder::failed};

/// How long a server may take to stop before it is killed.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// Between two looks at a server that starts or stops.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The file that holds what the server says, in its folder.
const LOG: &str = "log";
/// The file that holds its process' id.
const PID_FILE: &str = "server.pid";
/// Lines of it that an error quotes.
const LOG_LINES: usize = 5;
/// Runs the server, waits until nobody holds the other end of the pipe any more, and ends it.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
signal=$1
log=$2
pid_file=$3
shift 3
(trap - INT TERM HUP; exec "$@") >>"$log" 2>&1 </dev/null &
server=$!
echo "$server" >"$pid_file"
cat >/dev/null
kill -"$signal" "$server" 2>/dev/null
wait "$server"
"#;

/// The servers that this process has started, by folder.
static RUNNING: Mutex<BTreeMap<PathBuf, Running>> = Mutex::new(BTreeMap::new());

/// A server that runs. Dropping the pipe ends it.
#[derive(Debug)]
struct Running {
    pipe: Option<ChildStdin>,
    watchdog: Child,
}

/// The server of a folder, whether it runs or not.
#[derive(Clone, Debug)]
pub struct PrivateServer {
    /// Its folder.
    pub folder: PathBuf,
    /// Whom its programs run as; none for the user of this process.
    pub user: Option<User>,
    /// The signal that stops it at once; what it holds need not outlive it.
    pub stop: Signal,
}

impl PrivateServer {
    /// A program of the server, as its user and in its folder, without the environment of this process, which may hold secrets.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.folder)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        for name in ["PATH", "LD_LIBRARY_PATH", "JAVA_HOME"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(user) = self.user {
            command.uid(user.id).gid(user.group);
        }
        command
    }

    /// Starts the server. It may not answer yet: see [`wait_until_ready`].
    ///
    /// # Errors
    ///
    /// When no process can be started.
    pub fn start<I>(&self, program: &Path, arguments: I) -> Result<(), EngineError>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut watchdog = self.command(Path::new("/bin/sh"));
        watchdog
            .args(["-c", WATCHDOG, "fettler-sandbox"])
            .arg(self.stop.as_raw().to_string())
            .arg(self.folder.join(LOG))
            .arg(self.folder.join(PID_FILE))
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C at the terminal is for this process alone.
            .process_group(0);
        let mut watchdog = watchdog
            .spawn()
            .map_err(failed("starting a server in", &self.folder))?;
        let pipe = watchdog.stdin.take();
        RUNNING
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.folder.clone(), Running { pipe, watchdog });
        Ok(())
    }

    /// The server's process, if it runs and has begun to work in its folder.
    #[must_use]
    pub fn process(&self) -> Option<Process> {
        Process::of_server(&self.folder.join(PID_FILE), &self.folder)
    }

    /// Ends the server, if it runs, and what this process had started to watch it. The folder stays.
    ///
    /// # Errors
    ///
    /// When it may not be ended.
    pub async fn end(&self, process: Option<Process>) -> Result<(), EngineError> {
        let running = RUNNING
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.folder);
        let give_up = Instant::now() + STOP_WAIT;
        if let Some(process) = process {
            let mut signal = self.stop;
            while process.runs() {
                process.send(signal)?;
                if Instant::now() > give_up {
                    signal = Signal::KILL;
                }
                sleep(LOOK_EVERY).await;
            }
        }
        if let Some(mut running) = running {
            drop(running.pipe.take());
            // It ends the server, if that still runs, and then has nothing left to wait for.
            while running
                .watchdog
                .try_wait()
                .map_err(failed("waiting for the server in", &self.folder))?
                .is_none()
            {
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Ends the server and removes its folder. May be repeated.
    ///
    /// # Errors
    ///
    /// When the folder is none of this `place`, so that it may hold anything, and when it cannot be removed.
    pub async fn remove(self, place: Place, process: Option<Process>) -> Result<(), EngineError> {
        if !place.is_of(&self.folder) {
            return Err(EngineError::Unusable {
                what: format!("{} is no folder of a sandbox", self.folder.display()),
                remedy: "remove it by hand, if it is one".to_owned(),
            });
        }
        self.end(process).await?;
        let folder = self.folder.clone();
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(folder)).await;
        match removed {
            Ok(Err(error)) if self.folder.exists() => Err(failed("removing", &self.folder)(error)),
            _ => Ok(()),
        }
    }

    /// What the server said last.
    fn last_words(&self) -> String {
        let log = fs::read(self.folder.join(LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join(" | ")
    }
}

/// Tries to `connect` until the server answers, and gives what that gave.
///
/// # Errors
///
/// When the attempt is stopped, and when the server does not answer `within` this time: with what it said last.
pub async fn wait_until_ready<T, F>(
    context: &EngineContext,
    server: &PrivateServer,
    within: Duration,
    connect: impl Fn() -> F,
) -> Result<T, EngineError>
where
    F: Future<Output = Result<T, EngineError>>,
{
    let give_up = Instant::now() + within;
    loop {
        context.check_stop()?;
        match connect().await {
            Ok(connected) => return Ok(connected),
            Err(error) if Instant::now() > give_up => {
                return Err(EngineError::Database {
                    what: format!(
                        "the sandbox's server did not start: {error}; its log ends: {}",
                        server.last_words()
                    ),
                    transient: true,
                });
            }
            Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        prefix: "made-",
        socket: "",
    };

    fn server(folder: PathBuf) -> PrivateServer {
        PrivateServer {
            folder,
            user: None,
            stop: Signal::TERM,
        }
    }

    async fn started(server: &PrivateServer) -> Process {
        let script = "echo up; exec sleep 60";
        server.start(Path::new("/bin/sh"), ["-c", script]).unwrap();
        loop {
            match server.process() {
                Some(process) if !server.last_words().is_empty() => return process,
                _ => sleep(LOOK_EVERY).await,
            }
        }
    }

    #[tokio::test]
    async fn a_server_is_started_and_removed() {
        let base = tempfile::tempdir().unwrap();
        let server = server(base.path().join("made-1"));
        crate::make_folder(&server.folder, None).unwrap();
        let process = started(&server).await;
        assert_eq!(server.last_words(), "up");
        server.clone().remove(PLACE, Some(process)).await.unwrap();
        assert!(!process.runs());
        assert!(!server.folder.exists());
        server.remove(PLACE, Some(process)).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_ends_when_nobody_holds_its_pipe() {
        let base = tempfile::tempdir().unwrap();
        let server = server(base.path().join("made-2"));
        crate::make_folder(&server.folder, None).unwrap();
        let process = started(&server).await;
        // Without the process: only the pipe tells it.
        server.end(None).await.unwrap();
        assert!(!process.runs());
        assert!(server.folder.exists());
    }

    #[tokio::test]
    async fn only_folders_of_sandboxes_are_removed() {
        for folder in ["/", "/home", "made-relative"] {
            let server = server(PathBuf::from(folder));
            assert!(server.remove(PLACE, None).await.is_err(), "{folder}");
        }
    }
}
