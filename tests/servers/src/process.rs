//! Server processes and their folders, none of which outlives the tests.
//!
//! Three things see to that. A server that is dropped is killed by its process id and its folder removed. A server whose
//! test process dies, however it dies, gets a signal from the kernel (`PR_SET_PDEATHSIG`). And the folder of a process
//! that died is removed by its *janitor*: a shell that reads from a pipe which closes with the process.
//!
//! The kernel sends that signal when the *thread* that started the child ends, and every Rust test runs in a thread of its
//! own. So all servers are started by one thread that lives as long as the process.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal};

use crate::{Result, ServerError, wait_until};

/// How long a killed process may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// How many lines of a server's log an error shows.
const LOG_TAIL_LINES: usize = 25;

// --- users -----------------------------------------------------------------------------------------------------------------

/// Who a server runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// Whoever runs the tests.
    Current,
    /// `postgres`, where root runs the tests: PostgreSQL refuses root.
    Postgres,
}

impl User {
    /// The user for PostgreSQL.
    pub(crate) fn for_postgres() -> Self {
        if rustix::process::geteuid().is_root() {
            Self::Postgres
        } else {
            Self::Current
        }
    }

    /// A command that runs `program` as this user and dies with this process.
    pub(crate) fn command(self, program: &Path, death_signal: &str) -> Command {
        let mut command = Command::new("setpriv");
        if self == Self::Postgres {
            command.args([
                "--reuid",
                "postgres",
                "--regid",
                "postgres",
                "--init-groups",
            ]);
        }
        command
            .args(["--pdeathsig", death_signal, "--"])
            .arg(program);
        command
    }

    /// Gives a file or folder to this user.
    pub(crate) fn own(self, path: &Path) -> Result<()> {
        if self == Self::Current {
            return Ok(());
        }
        static IDS: OnceLock<Option<(u32, u32)>> = OnceLock::new();
        let (user, group) =
            IDS.get_or_init(postgres_ids)
                .ok_or_else(|| ServerError::NotInstalled {
                    program: "the user postgres".to_owned(),
                    looked_at: vec![PathBuf::from("/etc/passwd")],
                })?;
        std::os::unix::fs::chown(path, Some(user), Some(group)).map_err(ServerError::io(format!(
            "give {} to postgres",
            path.display()
        )))
    }
}

fn postgres_ids() -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

// --- folders ---------------------------------------------------------------------------------------------------------------

/// A folder that is removed when it is dropped, or by the janitor.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new folder, whose name starts with `kind`, and which belongs to `user`.
    pub(crate) fn new(kind: &str, user: User) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{kind}-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let scratch = Self(process_folder()?.join(name));
        std::fs::create_dir(&scratch.0)
            .map_err(ServerError::io(format!("make {}", scratch.0.display())))?;
        user.own(&scratch.0)?;
        Ok(scratch)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The last files of a process that has just been killed may still appear. What is left then is the janitor's.
        let _ = wait_until("a folder to be removed", Duration::from_secs(2), || {
            std::fs::remove_dir_all(&self.0).is_ok() || !self.0.exists()
        });
    }
}

/// The folder of this test process, which all of its servers' folders lie in.
fn process_folder() -> Result<&'static Path> {
    static FOLDER: Mutex<Option<&'static Path>> = Mutex::new(None);
    let mut folder = FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(folder) = *folder {
        return Ok(folder);
    }
    let nanoseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    let name = format!(
        "fettler-test-servers-{}-{nanoseconds:x}",
        std::process::id()
    );
    let path = temporary_folder().join(name);
    std::fs::create_dir_all(&path).map_err(ServerError::io(format!("make {}", path.display())))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(
        ServerError::io(format!("open {} to postgres", path.display())),
    )?;
    start_janitor(&path)?;
    let path: &'static Path = Box::leak(path.into_boxed_path());
    Ok(folder.insert(path))
}

/// The longest folder for temporary files that leaves room for the name of a Unix socket, whose path ends at 107 bytes.
const TEMPORARY_FOLDER_BYTES: usize = 48;

/// `$TMPDIR` where every user may get there and its name is short enough, else `/tmp`.
fn temporary_folder() -> PathBuf {
    let wanted = std::env::temp_dir();
    let open = |folder: &Path| {
        folder
            .metadata()
            .is_ok_and(|metadata| metadata.mode() & 0o001 != 0)
    };
    let usable = wanted.is_absolute()
        && wanted.as_os_str().len() <= TEMPORARY_FOLDER_BYTES
        && wanted.ancestors().all(open);
    if usable {
        wanted
    } else {
        PathBuf::from("/tmp")
    }
}

/// Starts the shell that removes `folder` when this process has ended. Signals that end a whole process group (Ctrl-C, a
/// CI's time-out) must not reach it before its work is done, hence the group of its own and the trap.
fn start_janitor(folder: &Path) -> Result<()> {
    const SCRIPT: &str = r#"
        trap '' HUP INT TERM
        cat >/dev/null
        tries=0
        until rm -rf -- "$1" 2>/dev/null; do
            tries=$((tries + 1))
            [ "$tries" -lt 100 ] || exit 1
            sleep 0.1
        done
    "#;
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", SCRIPT, "fettler-test-servers-janitor"])
        .arg(folder);
    command
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let janitor = command
        .spawn()
        .map_err(ServerError::io("start the janitor"))?;
    // Neither waited for nor dropped: the pipe stays open for as long as this process lives, and not a moment longer.
    std::mem::forget(janitor);
    Ok(())
}

// --- processes -------------------------------------------------------------------------------------------------------------

/// A server process. Killed when dropped.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    child: Child,
    death_signal: Signal,
}

impl ServerProcess {
    /// Starts a command made by [`User::command`], whose output goes to the end of the file `log`. `death_signal` is what
    /// ends it quickly, with all of its children.
    pub(crate) fn start(mut command: Command, log: &Path, death_signal: Signal) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(ServerError::io(format!("write {}", log.display())))?;
        let errors = output
            .try_clone()
            .map_err(ServerError::io("share the log"))?;
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0);
        let what = format!("run {command:?}");
        let child = spawn(command).map_err(ServerError::io(what))?;
        Ok(Self {
            child,
            death_signal,
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .map_err(ServerError::io("ask whether a server has ended"))
    }

    /// Sends a signal, and waits until the process is gone.
    pub(crate) fn end(&mut self, signal: Signal, within: Duration) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        self.signal(signal)?;
        let what = format!("process {} to end after {signal:?}", self.id());
        let mut failure = None;
        wait_until(&what, within, || match self.ended() {
            Ok(status) => status.is_some(),
            Err(error) => {
                failure = Some(error);
                true
            }
        })?;
        failure.map_or(Ok(()), Err)
    }

    /// Kills the process and all of its children at once, as a power cut would: the process is stopped first, so that it
    /// can neither start another child nor tell those that there are to end in good order.
    pub(crate) fn kill_9(&mut self) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        self.signal(Signal::STOP)?;
        let children = children_of(self.id())?;
        for child in &children {
            kill(*child, Signal::KILL)?;
        }
        self.end(Signal::KILL, GONE_WITHIN)?;
        wait_until("a killed server's children to be gone", GONE_WITHIN, || {
            children.iter().all(|child| !is_alive(*child))
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.id(), signal)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // An error has nowhere to go here; the kernel's signal remains as the last resort.
        if self.end(self.death_signal, GONE_WITHIN).is_err() {
            let _ = self.kill_9();
        }
    }
}

/// Starts a command in the thread that lives as long as the process (see the head of this file).
fn spawn(command: Command) -> std::io::Result<Child> {
    type Request = (Command, mpsc::SyncSender<std::io::Result<Child>>);
    static STARTER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::Builder::new()
            .name("server-starter".to_owned())
            .spawn(move || {
                for (mut command, answer) in requests {
                    // Whoever asked has gone: its child is dropped, and the kernel ends it with this process.
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a thread can be started");
        sender
    });
    let (sender, answer) = mpsc::sync_channel(1);
    starter
        .send((command, sender))
        .expect("the starter never ends");
    answer.recv().expect("the starter answers every request")
}

fn kill(id: u32, signal: Signal) -> Result<()> {
    let id = i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .expect("the kernel gave this process id");
    match rustix::process::kill_process(id, signal) {
        // It has ended by itself in the meantime.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(ServerError::io(format!(
            "send {signal:?} to process {}",
            id.as_raw_nonzero()
        ))(error.into())),
    }
}

/// The parent and the state of a process, from `/proc`.
fn stat(id: u32) -> Option<(u32, char)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one is regular.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

fn is_alive(id: u32) -> bool {
    stat(id).is_some_and(|(_, state)| state != 'Z')
}

fn children_of(parent: u32) -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc").map_err(ServerError::io("read /proc"))?;
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(ids
        .filter(|id| stat(*id).is_some_and(|(its_parent, _)| its_parent == parent))
        .collect())
}

/// The last lines of a log, for an error.
pub(crate) fn log_tail(log: &Path) -> String {
    let text = match std::fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("({} cannot be read: {error})", log.display()),
    };
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

/// Runs a command to its end with `input`, and gives back what it wrote to standard output.
pub(crate) fn run(mut command: Command, program: &str, input: &str) -> Result<String> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(ServerError::io(format!("run {program}")))?;
    let mut stdin = child.stdin.take().expect("standard input is piped");
    let output = std::thread::scope(|scope| {
        // Beside the reading, since a program may fill its output before it has read all of its input. One that ends early
        // closes the pipe; its exit code then says more than this error.
        scope.spawn(move || std::io::Write::write_all(&mut stdin, input.as_bytes()));
        child.wait_with_output()
    });
    let output = output.map_err(ServerError::io(format!("read what {program} wrote")))?;
    if !output.status.success() {
        return Err(ServerError::Command {
            program: program.to_owned(),
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr)
                .trim_end()
                .to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
