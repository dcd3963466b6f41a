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
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use fettler_engine::{
    Artefact, EngineContext, EngineError, Sandbox, SandboxRequest, SandboxSpec, Target,
};
use fettler_model::{DatabaseUrl, Engine, JobId};
use fettler_private_server::{Place, PrivateServer, Process, User, make_folder, wait_until_ready};
use redis::cmd;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    connect::{Info, Session},
    identify::{free_memory, require_plain, visit},
    locate::{Purpose, locate},
    params::Params,
};

/// The database that the mark is in.
pub(crate) const MARK_DATABASE: u32 = 0;
/// The server's program.
const PROGRAM: &str = "redis-server";
/// Where private servers are.
const PLACE: Place = Place {
    prefix: "redis-",
    socket: "socket",
};
/// How a private server is started. The backup's numbers of databases have to fit.
const SERVER_ARGUMENTS: [&str; 18] = [
    "--port",
    "0",
    "--protected-mode",
    "yes",
    "--daemonize",
    "no",
    "--save",
    "",
    "--appendonly",
    "no",
    "--maxmemory",
    "0",
    "--databases",
    "1024",
    "--unixsocketperm",
    "700",
    "--loglevel",
    "warning",
];
const PID_FILE: &str = "pid";
/// How long a server may take to start.
const START_WAIT: Duration = Duration::from_secs(30);
/// The oldest version whose commands tell everything that is compared.
const OLDEST: (u32, u32) = (7, 0);
/// What is recorded of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum Made {
    /// A server of our own.
    Server {
        folder: PathBuf,
        /// Once it runs.
        process: Option<Process>,
    },
    /// The content of a server that was named.
    Content { mark: String },
    /// A file that has not its name yet.
    File { path: PathBuf },
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
    let user = User::first_of(&["redis", "nobody"]);
    let folder = PLACE.folder(context, user)?;
    let name = format!("{} {}", context.attempt, folder.display());
    let artefact = server_artefact(&name, &folder, None);
    context.artefacts.record(&artefact).await?;
    let server = server(folder, user);
    match start(context, &program, &server).await {
        Ok(process) => {
            let artefact = server_artefact(&name, &server.folder, process);
            context.artefacts.record(&artefact).await?;
            Ok(Sandbox {
                target: private_target(&server.folder)?,
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

/// The server of a folder. It keeps nothing, so that it can be killed.
const fn server(folder: PathBuf, user: Option<User>) -> PrivateServer {
    PrivateServer {
        folder,
        user,
        stop: Signal::KILL,
    }
}

fn process_of(folder: &Path) -> Option<Process> {
    Process::of_server(&folder.join(PID_FILE), folder)
}

fn server_artefact(name: &str, folder: &Path, process: Option<Process>) -> Artefact {
    artefact(
        "server",
        name,
        &Made::Server {
            folder: folder.to_owned(),
            process,
        },
    )
}

/// A file that an attempt writes before it gives it its name.
pub(crate) fn file_artefact(path: &Path) -> Artefact {
    artefact(
        "file",
        &path.display().to_string(),
        &Made::File {
            path: path.to_owned(),
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
        .join(PLACE.socket)
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

/// Starts a server in a folder of its own; gives its process.
async fn start(
    context: &EngineContext,
    program: &Path,
    server: &PrivateServer,
) -> Result<Option<Process>, EngineError> {
    let folder = &server.folder;
    make_folder(folder, server.user)?;
    context.fence.check().await?;
    let socket = folder.join(PLACE.socket);
    let pid_file = folder.join(PID_FILE);
    let paths = [
        ("--dir", folder.as_os_str()),
        ("--unixsocket", socket.as_os_str()),
        ("--pidfile", pid_file.as_os_str()),
    ];
    let arguments = SERVER_ARGUMENTS.iter().map(OsStr::new);
    let paths = paths
        .iter()
        .flat_map(|(name, path)| [OsStr::new(name), path]);
    server.start(program, arguments.chain(paths))?;
    let params = Params::of(&private_target(folder)?)?;
    let mut session = wait_until_ready(context, server, START_WAIT, || {
        Session::of_attempt(&params, context)
    })
    .await?;
    let info = session.info().await?;
    require_version(&params, &info)?;
    set_mark(&mut session, context).await?;
    Ok(process_of(folder))
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

/// Marks a server that was named and is empty.
async fn open_named(context: &EngineContext, server: &Target) -> Result<Sandbox, EngineError> {
    let params = locate(server, Purpose::Write, &context.stop).await?;
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
        Made::Server { folder, process } => remove_server(folder, process).await,
        Made::Content { mark } => remove_content(&mark, server).await,
        Made::File { path } => match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(EngineError::local(
                format!("removing {}", path.display()),
                error,
            )),
            _ => Ok(()),
        },
    }
}

/// Empties a server that carries our mark.
async fn remove_content(mark: &str, server: Option<&Target>) -> Result<(), EngineError> {
    let server = server.ok_or_else(|| EngineError::Missing {
        code: "sandbox",
        what: "the sandbox's server is not known, and cannot be emptied".to_owned(),
        remedy: "empty it by hand (`FLUSHALL`), if it holds nothing else".to_owned(),
    })?;
    let params = locate(server, Purpose::Write, &CancellationToken::new()).await?;
    let mut session = visit(&params).await?;
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

async fn remove_server(folder: PathBuf, process: Option<Process>) -> Result<(), EngineError> {
    let process = process
        .filter(|process| process.runs())
        .or_else(|| process_of(&folder));
    server(folder, None).remove(PLACE, process).await
}
