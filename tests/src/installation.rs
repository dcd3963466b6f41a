//! The binary `fettler` and a folder that it works in, in either of its sizes.

use std::{
    ffi::OsStr,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use fettler_test_servers::wait_until;
use serde_json::Value;
use tempfile::TempDir;

use crate::fleet::Staff;

/// The two sizes that Fettler has: what is promised holds in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All of it in the process of a command, or of `fettler up`, and in one folder.
    Embedded,
    /// An interface and workers on machines of their own; commands ask the interface with `--server`.
    Fleet,
}

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it told.
    pub stderr: String,
}

impl Answer {
    /// The one JSON document that it printed.
    ///
    /// # Panics
    ///
    /// When it printed anything else.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not one JSON document ({error}): {self:#?}"))
    }

    /// The same, after a look that it ended well.
    ///
    /// # Panics
    ///
    /// When it did not.
    #[allow(clippy::must_use_candidate, clippy::return_self_not_must_use)]
    pub fn done(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }
}

/// A Fettler in a folder of its own: no setting and no secret of the machine reaches it.
#[derive(Debug)]
pub struct Installation {
    folder: TempDir,
    environment: Vec<(String, String)>,
    size: Size,
    workers: usize,
    staff: OnceLock<Box<Staff>>,
}

/// Workers that a fleet has from the start.
const WORKERS: usize = 2;

impl Default for Installation {
    fn default() -> Self {
        Self::new()
    }
}

impl Installation {
    /// An empty folder.
    ///
    /// # Panics
    ///
    /// When the folder cannot be made.
    #[must_use]
    pub fn new() -> Self {
        Self::of_size(Size::Embedded)
    }

    /// The same in a size. The processes of a fleet start with the first command, on machines that know all variables; the command
    /// itself knows nothing but the interface's address and a token.
    ///
    /// # Panics
    ///
    /// When the folder cannot be made.
    #[must_use]
    pub fn of_size(size: Size) -> Self {
        Self {
            folder: TempDir::with_prefix("fettler-e2e-").expect("a temporary folder can be made"),
            environment: Vec::new(),
            size,
            workers: WORKERS,
            staff: OnceLock::new(),
        }
    }

    /// Whoever runs jobs is started by the test, with [`Installation::start_worker`].
    #[must_use]
    pub fn without_workers(mut self) -> Self {
        self.workers = 0;
        self
    }

    /// Sets a variable for every command.
    ///
    /// # Panics
    ///
    /// When a fleet knows its variables already.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        assert!(self.staff.get().is_none(), "the fleet runs already");
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// A variable that was set.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        let mut set = self.environment.iter().rev();
        set.find(|(set, _)| set == name)
            .map(|(_, value)| value.as_str())
    }

    /// Another machine that knows the same.
    pub(crate) fn alike(&self) -> Self {
        Self {
            environment: self.environment.clone(),
            ..Self::new()
        }
    }

    fn staff(&self) -> &Staff {
        self.staff
            .get_or_init(|| Box::new(Staff::start(self, self.workers)))
    }

    /// Starts a process that runs jobs: `fettler up` in this folder, or a worker of the fleet.
    pub fn start_worker(&self) -> Running {
        match self.size {
            Size::Embedded => self.start(&["up"]),
            Size::Fleet => self.staff().start_worker(),
        }
    }

    /// What the processes of a fleet have said so far.
    #[must_use]
    pub fn logs(&self) -> String {
        self.staff
            .get()
            .map_or_else(String::new, |staff| staff.logs())
    }

    /// Every folder in which anything of it is written, for those who search it.
    #[must_use]
    pub fn folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.folder()];
        if let Some(staff) = self.staff.get() {
            folders.extend(staff.folders());
        }
        folders
    }

    /// Short leases, so that a takeover takes seconds.
    #[must_use]
    pub fn with_short_leases(self) -> Self {
        self.with("FETTLER_WORKER__LEASE_SECONDS", "3")
            .with("FETTLER_WORKER__HEARTBEAT_SECONDS", "1")
    }

    /// Where everything of it lies.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("fettler")
    }

    /// A path beside the folder, for databases and copies.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The binary, for commands that run it in surroundings of their own.
    #[must_use]
    pub fn binary(&self) -> &'static Path {
        binary()
    }

    /// A command that is ready to run.
    pub fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("FETTLER_REPOSITORY")
            .env_remove("FETTLER_PASSPHRASE")
            .env_remove("FETTLER_ENV")
            .env("FETTLER_FOLDER", self.folder())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        match self.size {
            Size::Embedded => {
                command.envs(self.environment.iter().map(|(name, value)| (name, value)));
            }
            Size::Fleet => {
                let staff = self.staff();
                command
                    .env("FETTLER_SERVER", staff.url())
                    .env("FETTLER_TOKEN", staff.token());
            }
        }
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn run(&self, arguments: &[impl AsRef<OsStr>]) -> Answer {
        let output = self
            .command(arguments)
            .output()
            .expect("the built binary can be started");
        Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command with `--json`, which must end well, and gives its document.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        self.run(&all).done().json()
    }

    /// Starts a command that goes on beside the test.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn start(&self, arguments: &[impl AsRef<OsStr>]) -> Running {
        let log = tempfile::NamedTempFile::new_in(self.folder.path())
            .expect("a temporary file can be made");
        let (file, path) = log.keep().expect("the file can be kept");
        let out = file.try_clone().expect("a file can be opened twice");
        let child = self
            .command(arguments)
            .stdout(out)
            .stderr(file)
            .spawn()
            .expect("the built binary can be started");
        Running {
            child,
            log: path,
            machine: None,
        }
    }
}

/// A command that runs; it is killed when the value is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
    machine: Option<Installation>,
}

impl Running {
    /// The same, on a machine that goes with it.
    pub(crate) fn on(mut self, machine: Installation) -> Self {
        self.machine = Some(machine);
        self
    }

    /// The folder of the machine that goes with it.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        self.machine
            .as_ref()
            .map(|machine| machine.folder.path().to_owned())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed and told so far.
    ///
    /// # Panics
    ///
    /// When its output cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        File::open(&self.log)
            .and_then(|mut file| file.read_to_end(&mut text))
            .expect("the output of a running command can be read");
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Ends it as a power cut would.
    ///
    /// # Panics
    ///
    /// When it cannot be waited for.
    pub fn kill_9(&mut self) {
        // It may have ended by itself: then there is nothing to kill.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    /// Asks it to stop, as an init system does, and waits for its exit code.
    ///
    /// # Panics
    ///
    /// When it does not stop within a minute.
    pub fn terminate(&mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .expect("a child can be signalled");
        self.wait(Duration::from_secs(60))
    }

    /// Waits for its end and gives its exit code; -1 when a signal ended it.
    ///
    /// # Panics
    ///
    /// When it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let mut code = None;
        let child = &mut self.child;
        let ended = wait_until("the command ends", limit, || {
            code = child.try_wait().expect("a child can be waited for");
            code.is_some()
        });
        assert!(ended.is_ok(), "it does not end: {}", self.log());
        code.and_then(|status| status.code()).unwrap_or(-1)
    }

    /// Whether it still runs.
    ///
    /// # Panics
    ///
    /// When it cannot be asked.
    pub fn runs(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_9();
    }
}

/// The binary as this very source makes it: the one that `FETTLER_TEST_BINARY` names (`tests/run` sets
/// it to what its own build has made), otherwise built now.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(built) = std::env::var_os("FETTLER_TEST_BINARY") {
            return PathBuf::from(built);
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the tests lie in the workspace");
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--package",
                "fettler",
                "--bin",
                "fettler",
            ])
            .args(["--message-format", "json-render-diagnostics"])
            .current_dir(root)
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo can be started");
        assert!(built.status.success(), "the binary cannot be built");
        String::from_utf8_lossy(&built.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .expect("cargo names the binary that it built")
    })
}
