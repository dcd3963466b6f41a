//! A place for a proof: a server process of our own, or a server that was named and is empty.
//!
//! **Private.** `redis-server` on a socket in a folder that only its user may enter: no port, no persistence, no limit of
//! memory; as a user without rights on this machine where this process has the right to choose one (rule 31: libraries of
//! functions are code of the backup's). It ends when this process ends, however that happens: it is started by a shell that waits for the end of a pipe
//! whose other end is here. Its folder and, once it runs, its process are in its record.
//!
//! **Named.** A server without a key. A mark in it, a key that is named after the job, says that what it holds is ours; without
//! that mark it is never emptied.
//!
//! In both a restore finds the mark and puts moments of expiry off ([`crate::restore`]).

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fettler_engine::{
    Artefact, EngineContext, EngineError, Sandbox, SandboxRequest, SandboxSpec, Target,
};
use fettler_model::{DatabaseUrl, Engine, JobId};
use redis::cmd;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{
    connect::{Info, Session},
    identify::{free_memory, require_plain, visit},
    params::Params,
};

/// The database that the mark is in.
pub(crate) const MARK_DATABASE: u32 = 0;
/// The server's program.
const PROGRAM: &str = "redis-server";
/// What the names of sandboxes' folders begin with.
const FOLDER_PREFIX: &str = "redis-";
/// Databases of a private server; the backup's numbers have to fit.
const DATABASES: &str = "1024";
/// Bytes that the path of a socket may have.
const SOCKET_PATH_BYTES: usize = 107;
const SOCKET: &str = "socket";
const PID_FILE: &str = "pid";
/// How long a server may take to start.
const START_WAIT: Duration = Duration::from_secs(30);
/// How long it may take to stop before it is killed.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// Between two looks at a server that starts or stops.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The oldest version whose commands tell everything that is compared.
const OLDEST: (u32, u32) = (7, 0);
/// Runs the server, waits until nobody holds the other end of the pipe any more, and ends it.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
program=$1
shift
"$program" "$@" >log 2>&1 </dev/null &
server=$!
cat >/dev/null
kill -KILL "$server" 2>/dev/null
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

/// What is recorded of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum Made {
    /// A server of our own.
    Server {
        folder: PathBuf,
        /// Process id and start time in the kernel's ticks, once it runs.
        process: Option<(i32, u64)>,
    },
    /// The content of a server that was named.
    Content { mark: String },
}

/// The key that marks a sandbox of a job.
pub(crate) fn mark(job: JobId) -> String {
    format!("fettler/sandbox/{}", job.uuid().simple())
}

/// Whether the server is a sandbox of this job. A user who may not look is in none.
pub(crate) async fn is_marked(
    session: &mut Session,
    context: &EngineContext,
) -> Result<bool, EngineError> {
    has_mark(session, &mark(context.attempt.job)).await
}

async fn has_mark(session: &mut Session, mark: &str) -> Result<bool, EngineError> {
    session.select(MARK_DATABASE).await?;
    Ok(matches!(
        session.try_ask(cmd("EXISTS").arg(mark)).await?,
        Ok(redis::Value::Int(1))
    ))
}

async fn set_mark(session: &mut Session, context: &EngineContext) -> Result<(), EngineError> {
    session.select(MARK_DATABASE).await?;
    let set = cmd("SET")
        .arg(mark(context.attempt.job))
        .arg(context.attempt.to_string())
        .to_owned();
    session.ask(&set, "marking the sandbox").await
}

/// Makes a place for a proof.
pub(crate) async fn open(
    context: &EngineContext,
    request: &SandboxRequest,
) -> Result<Sandbox, EngineError> {
    match (&request.spec, &request.server) {
        (SandboxSpec::Automatic, _) => open_private(context, request).await,
        (SandboxSpec::Server { .. }, Some(server)) => open_named(context, server).await,
        (SandboxSpec::Server { .. }, None) => Err(EngineError::Missing {
            code: "sandbox",
            what: "the sandbox's server is not known".to_owned(),
            remedy: "name its URL".to_owned(),
        }),
        (SandboxSpec::SourceServer, _) => Err(EngineError::Missing {
            code: "sandbox",
            what: "a proof cannot run on the source's own Redis: it has no place apart from the source's keys"
                .to_owned(),
            remedy: "leave the sandbox automatic, or name an empty server".to_owned(),
        }),
    }
}

/// Starts a server.
async fn open_private(
    context: &EngineContext,
    request: &SandboxRequest,
) -> Result<Sandbox, EngineError> {
    let program = find_program()?;
    require_memory(request.estimated_bytes)?;
    let user = run_as();
    let folder = base_folder(&context.kept, user)?.join(format!(
        "{FOLDER_PREFIX}{}-{}",
        &context.attempt.job.uuid().simple().to_string()[20..],
        context.attempt.token
    ));
    let name = format!("{} {}", context.attempt, folder.display());
    let artefact = server_artefact(&name, &folder, None);
    context.artefacts.record(&artefact).await?;
    match start(context, &program, &folder, user).await {
        Ok(process) => {
            let artefact = server_artefact(&name, &folder, process);
            context.artefacts.record(&artefact).await?;
            Ok(Sandbox {
                target: private_target(&folder)?,
                artefacts: vec![artefact],
                continued: false,
            })
        }
        Err(error) => {
            remove(&artefact, None).await?;
            context.artefacts.removed(&artefact).await?;
            Err(error)
        }
    }
}

fn server_artefact(name: &str, folder: &Path, process: Option<(i32, u64)>) -> Artefact {
    artefact(
        "server",
        name,
        &Made::Server {
            folder: folder.to_owned(),
            process,
        },
    )
}

fn artefact(kind: &str, name: &str, made: &Made) -> Artefact {
    Artefact {
        engine: Engine::Redis,
        kind: kind.to_owned(),
        name: name.to_owned(),
        data: serde_json::to_value(made).expect("plain data can be JSON"),
        until_job_ends: false,
    }
}

/// How to reach the private server in this folder.
fn private_target(folder: &Path) -> Result<Target, EngineError> {
    let path: String = folder
        .join(SOCKET)
        .display()
        .to_string()
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect();
    let (url, _) =
        DatabaseUrl::parse_with_password(&format!("redis+unix://{path}")).map_err(|error| {
            EngineError::Database {
                what: format!("the sandbox's own URL: {error}"),
                transient: false,
            }
        })?;
    Ok(Target {
        url,
        password: None,
    })
}

/// Looks for the server's program where programs are.
fn find_program() -> Result<PathBuf, EngineError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(PROGRAM))
        .find(|program| program.is_file())
        .ok_or_else(|| EngineError::Missing {
            code: PROGRAM,
            what: format!("a proof needs the program {PROGRAM}, which is in no folder of PATH"),
            remedy: "install Redis (7.0 or newer) on the worker's machine, or name an empty server with `--sandbox redis://…`".to_owned(),
        })
}

/// An error where the machine has not the memory for a copy: its kernel would end some process.
fn require_memory(needed_bytes: u64) -> Result<(), EngineError> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kibibytes| kibibytes * 1024);
    match available {
        Some(free_bytes) if free_bytes < needed_bytes => Err(EngineError::NoSpace {
            place: "the memory of this machine".to_owned(),
            free_bytes,
            needed_bytes,
        }),
        _ => Ok(()),
    }
}

/// The user and group without rights that the server runs as; nothing where this process is such a user itself, or the
/// machine has none.
fn run_as() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").ok()?;
    ["redis", "nobody"].iter().find_map(|wanted| {
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(wanted))?;
        let mut numbers = line.split(':').skip(2).map(|field| field.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    })
}

/// Whether a user can pass through a folder and all that are above it.
fn can_pass(folder: &Path, (user, group): (u32, u32)) -> bool {
    folder.ancestors().all(|folder| {
        fs::metadata(folder).is_ok_and(|metadata| {
            let bit = if metadata.uid() == user {
                0o100
            } else if metadata.gid() == group {
                0o010
            } else {
                0o001
            };
            metadata.permissions().mode() & bit != 0
        })
    })
}

/// The folder to make the server's folder in: the worker's own where the server's user can get there and a socket's path
/// still fits, else one for temporary files.
fn base_folder(kept: &Path, user: Option<(u32, u32)>) -> Result<PathBuf, EngineError> {
    let kept = fs::canonicalize(kept).unwrap_or_else(|_| kept.to_owned());
    // Twelve digits of the job, `-`, sixteen of the token, `/` and the socket.
    let longest = SOCKET_PATH_BYTES - 1 - FOLDER_PREFIX.len() - 12 - 1 - 16 - 1 - SOCKET.len();
    [kept, PathBuf::from("/var/tmp"), std::env::temp_dir()]
        .into_iter()
        .find(|folder| {
            folder.as_os_str().len() <= longest
                && folder.is_dir()
                && user.is_none_or(|user| can_pass(folder, user))
        })
        .ok_or_else(|| EngineError::Missing {
            code: "folder",
            what: "no folder was found for the sandbox's server that its user can enter and whose path is short enough for a socket"
                .to_owned(),
            remedy: "set TMPDIR to such a folder".to_owned(),
        })
}

/// Says what failed in a folder.
fn failed(what: &str, folder: &Path) -> impl FnOnce(io::Error) -> EngineError + use<> {
    let what = format!("{what} {}", folder.display());
    move |error| EngineError::local(what, error)
}

/// Starts a server in a folder of its own; gives its process.
async fn start(
    context: &EngineContext,
    program: &Path,
    folder: &Path,
    user: Option<(u32, u32)>,
) -> Result<Option<(i32, u64)>, EngineError> {
    fs::create_dir(folder).map_err(failed("making", folder))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
        .map_err(failed("closing", folder))?;
    if let Some((user, group)) = user {
        chown(folder, Some(user), Some(group)).map_err(failed("giving away", folder))?;
    }
    context.fence.check().await?;
    let mut watchdog = Command::new("/bin/sh");
    watchdog
        .current_dir(folder)
        .args(["-c", WATCHDOG, "fettler-sandbox"])
        .arg(program)
        .args([
            "--port",
            "0",
            "--protected-mode",
            "yes",
            "--daemonize",
            "no",
        ])
        .args(["--save", "", "--appendonly", "no", "--maxmemory", "0"])
        .args(["--databases", DATABASES, "--unixsocketperm", "700"])
        .arg("--dir")
        .arg(folder)
        .arg("--unixsocket")
        .arg(folder.join(SOCKET))
        .arg("--pidfile")
        .arg(folder.join(PID_FILE))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A Ctrl-C at the terminal is for this process alone.
        .process_group(0);
    if let Some((user, group)) = user {
        watchdog.uid(user).gid(group);
    }
    let mut watchdog = watchdog
        .spawn()
        .map_err(failed("starting a server in", folder))?;
    let pipe = watchdog.stdin.take();
    RUNNING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(folder.to_owned(), Running { pipe, watchdog });

    let params = Params::of(&private_target(folder)?)?;
    let give_up = Instant::now() + START_WAIT;
    loop {
        context.check_stop()?;
        match Session::of_attempt(&params, context).await {
            Ok(mut session) => {
                let info = session.info().await?;
                require_version(&params, &info)?;
                set_mark(&mut session, context).await?;
                return Ok(process_of(folder));
            }
            Err(error) if Instant::now() > give_up => {
                let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(EngineError::Database {
                    what: format!(
                        "the sandbox's server did not start: {error}; its log ends: {}",
                        tail.join(" | ")
                    ),
                    transient: true,
                });
            }
            Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}

fn require_version(params: &Params, info: &Info) -> Result<(), EngineError> {
    if info.version() >= OLDEST {
        return Ok(());
    }
    Err(EngineError::Missing {
        code: "version",
        what: format!(
            "the sandbox's server {} is of version {}, which does not tell all that a proof compares",
            params.server(),
            info.version_text()
        ),
        remedy: format!("use version {}.{} or newer", OLDEST.0, OLDEST.1),
    })
}

/// The server of a folder, if it runs: its id and when it started. A process that happens to have the id today works in
/// another folder.
fn process_of(folder: &Path) -> Option<(i32, u64)> {
    let text = fs::read_to_string(folder.join(PID_FILE)).ok()?;
    let id: i32 = text.trim().parse().ok()?;
    let works_in = fs::read_link(format!("/proc/{id}/cwd")).ok()?;
    let folder = fs::canonicalize(folder).ok()?;
    (works_in == folder).then(|| started(id).map(|started| (id, started)))?
}

/// When a process started, in the kernel's ticks since the machine did.
fn started(id: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold anything; after it, this is the twentieth field.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18)?.parse().ok())?
}

/// Marks a server that was named and is empty.
async fn open_named(context: &EngineContext, server: &Target) -> Result<Sandbox, EngineError> {
    let params = Params::of(server)?;
    if params.database.is_some() {
        return Err(EngineError::Missing {
            code: "sandbox",
            what: "the sandbox's URL names one database, and a proof needs the whole server"
                .to_owned(),
            remedy: "leave the number out".to_owned(),
        });
    }
    let mut session = Session::of_attempt(&params, context).await?;
    let info = session.info().await?;
    require_plain(&params, &info)?;
    require_version(&params, &info)?;
    let keys: u64 = info.keys().values().sum();
    if keys > 0 {
        return Err(EngineError::NotEmpty {
            what: format!("the sandbox's server {} holds {keys} keys", params.server()),
            remedy: "name a server that is empty: a proof empties it at its end".to_owned(),
        });
    }
    if info.number("maxmemory").unwrap_or(0) > 0 && free_memory(&info).is_none() {
        return Err(EngineError::Missing {
            code: "eviction",
            what: format!(
                "the sandbox's server {} evicts keys when its memory is full ({})",
                params.server(),
                info.text("maxmemory_policy")
            ),
            remedy: "`CONFIG SET maxmemory-policy noeviction` there, or name another server"
                .to_owned(),
        });
    }
    let mark = mark(context.attempt.job);
    let name = format!("{} {}", context.attempt, params.server());
    let artefact = artefact("content", &name, &Made::Content { mark });
    context.artefacts.record(&artefact).await?;
    context.fence.check().await?;
    set_mark(&mut session, context).await?;
    Ok(Sandbox {
        target: server.clone(),
        artefacts: vec![artefact],
        continued: false,
    })
}

/// Removes what was made.
pub(crate) async fn remove(
    artefact: &Artefact,
    server: Option<&Target>,
) -> Result<(), EngineError> {
    let made = Made::deserialize(&artefact.data).map_err(|error| EngineError::Unusable {
        what: format!(
            "the record of {} {:?} cannot be read: {error}",
            artefact.kind, artefact.name
        ),
        remedy: "remove it by hand".to_owned(),
    })?;
    match made {
        Made::Server { folder, process } => remove_server(&folder, process).await,
        Made::Content { mark } => remove_content(&mark, server).await,
    }
}

/// Empties a server that carries our mark.
async fn remove_content(mark: &str, server: Option<&Target>) -> Result<(), EngineError> {
    let server = server.ok_or_else(|| EngineError::Missing {
        code: "sandbox",
        what: "the sandbox's server is not known, and cannot be emptied".to_owned(),
        remedy: "empty it by hand (`FLUSHALL`), if it holds nothing else".to_owned(),
    })?;
    let mut session = visit(&Params::of(server)?).await?;
    if !has_mark(&mut session, mark).await? {
        return Ok(());
    }
    // The functions go too: the server was empty. One that knows none has none.
    let _unknown = session
        .try_ask(cmd("FUNCTION").arg("FLUSH").arg("ASYNC"))
        .await?;
    let flush = cmd("FLUSHALL").arg("ASYNC").to_owned();
    session.ask(&flush, "emptying the sandbox").await
}

async fn remove_server(folder: &Path, process: Option<(i32, u64)>) -> Result<(), EngineError> {
    let is_ours = folder
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(FOLDER_PREFIX));
    if !folder.is_absolute() || !is_ours {
        return Err(EngineError::Unusable {
            what: format!("{} is no folder of a sandbox", folder.display()),
            remedy: "remove it by hand, if it is one".to_owned(),
        });
    }
    let process = process
        .filter(|(id, start)| started(*id) == Some(*start))
        .or_else(|| process_of(folder));
    end_server(folder, process).await?;
    let removed = {
        let folder = folder.to_owned();
        tokio::task::spawn_blocking(move || fs::remove_dir_all(folder)).await
    };
    match removed {
        Ok(Err(error)) if folder.exists() => Err(failed("removing", folder)(error)),
        _ => Ok(()),
    }
}

/// Ends the server of a folder, if it runs, and what this process had started to watch it.
async fn end_server(folder: &Path, process: Option<(i32, u64)>) -> Result<(), EngineError> {
    let running = RUNNING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(folder);
    let give_up = Instant::now() + STOP_WAIT;
    if let Some((id, start)) = process {
        let mut signal = Signal::TERM;
        while started(id) == Some(start) {
            kill(id, signal)?;
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
            .map_err(|error| EngineError::local("waiting for a sandbox's server", error))?
            .is_none()
        {
            sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

fn kill(id: i32, signal: Signal) -> Result<(), EngineError> {
    let Some(pid) = Pid::from_raw(id) else {
        return Ok(());
    };
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(EngineError::local(
            format!("stopping the sandbox's server, process {id}"),
            error.into(),
        )),
    }
}
