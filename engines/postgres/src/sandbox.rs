//! A place for a proof: a server process of our own, or a scratch database on a server that was named.
//!
//! **Private.** `initdb` and `postgres`, as a user without rights on this machine, listening on a socket in a folder
//! that only that user may enter. It ends when this process ends, however that happens: it is started by a shell
//! that waits for the end of a pipe whose other end is here. Its folder stays for the job's next attempt, which starts a
//! server on it again, on the same machine and as long as that has not started anew: the server syncs nothing, so that
//! what it wrote outlives every process, and not the machine.
//!
//! **Shared.** A role without superuser rights and a database that it makes. No role, grant or owner of the
//! backup is made there. The next attempt gives the role another password, so that an earlier one that still lives is shut out.
//!
//! Rule 31: the dump's own code (index expressions, generated columns, checks, views, event triggers) runs without superuser
//! rights. In the private server the backup's roles are superusers only while definitions are made, which runs none of it; rows are
//! copied, views computed and statistics gathered by a role that never was one.

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
use fettler_model::{DatabaseUrl, Engine, Secret};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{
    PostgresEngine,
    catalogue::{self, ServerFacts},
    connect::connect,
    data::{BackupData, RoleData},
    identify::VISITOR,
    names::{literal, quote_ident},
    params::{Host, Params},
    restore::archive::{Archive, Login, Section},
    wire::Session,
};

/// The superuser of a private server. The blank keeps it apart from the backup's roles.
const ROOT_ROLE: &str = "fettler sandbox root";
/// The role that rows are copied as.
const WORK_ROLE: &str = "fettler sandbox";
/// The database that a proof fills.
const DATABASE: &str = "fettler_proof";
/// The setting by which a session knows that it is in a sandbox.
const SETTING: &str = "fettler.sandbox";
/// Bytes that the path of a socket may have.
const SOCKET_PATH_BYTES: usize = 107;
/// The name of the socket in its folder.
const SOCKET_NAME: &str = ".s.PGSQL.5432";
/// How long a server may take to start.
const START_WAIT: Duration = Duration::from_secs(60);
/// How long it may take to start on what an earlier attempt left, and to replay that server's log.
const RECOVERY_WAIT: Duration = Duration::from_secs(600);
/// Where the kernel tells one start of the machine from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How long it may take to stop before it is killed.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// Between two looks at a server that starts or stops.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What a restored database needs beside its rows: indexes, WAL, the system's own tables.
const SPACE_BASE_BYTES: u64 = 256 * 1024 * 1024;
/// The settings of a private server: nothing in it has to outlive a crash, and it has to be small.
const SERVER_SETTINGS: &str = "
listen_addresses = ''
unix_socket_permissions = 0700
fsync = off
synchronous_commit = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
max_wal_size = 1GB
checkpoint_timeout = 1h
autovacuum = off
shared_buffers = 32MB
maintenance_work_mem = 32MB
max_connections = 40
max_locks_per_transaction = 1024
max_parallel_workers = 0
session_replication_role = replica
log_min_messages = fatal
fettler.sandbox = private
";
/// Runs the server, waits until nobody holds the other end of the pipe any more, and ends it.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
"$1" -D "$2" >>"$3" 2>&1 </dev/null &
server=$!
cat >/dev/null
kill -QUIT "$server" 2>/dev/null
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

/// In what kind of sandbox a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In none: a user's own server.
    None,
    Private,
    Shared,
}

/// Asks a session in what kind of sandbox it is.
pub(crate) async fn kind_of(session: &mut Session) -> Result<Kind, EngineError> {
    Ok(
        match catalogue::setting(session, SETTING).await?.as_deref() {
            Some("private") => Kind::Private,
            Some("shared") => Kind::Shared,
            _ => Kind::None,
        },
    )
}

/// What is recorded of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum Made {
    Server {
        folder: PathBuf,
        /// Process id and start time in the kernel's ticks, once it runs.
        process: Option<(i32, u64)>,
        /// The machine's start in which it was made.
        #[serde(default)]
        boot: String,
    },
    Database {
        role: Option<String>,
    },
}

/// Makes a place for a proof.
pub(crate) async fn open(
    engine: &PostgresEngine,
    context: &EngineContext,
    request: &SandboxRequest,
) -> Result<Sandbox, EngineError> {
    match (&request.spec, &request.server) {
        (SandboxSpec::Automatic, _) => open_private(engine, context, request).await,
        (_, Some(server)) => open_shared(engine, context, request, server).await,
        (_, None) => Err(EngineError::Missing {
            code: "sandbox",
            what: "the sandbox's server is not known".to_owned(),
            remedy: "name its URL".to_owned(),
        }),
    }
}

fn major_of(version: &str) -> u32 {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// Starts a server.
async fn open_private(
    engine: &PostgresEngine,
    context: &EngineContext,
    request: &SandboxRequest,
) -> Result<Sandbox, EngineError> {
    let major = major_of(&request.identity.version);
    let server = engine.tools.find("postgres", major, major).await?;
    let user = run_as()?;
    if let Some(left) = &request.left
        && let Some(folder) = usable_folder(left)
    {
        match go_on_in(context, &server.path, left, folder, user).await {
            Err(error) if !matches!(error, EngineError::Stopped) => {
                tracing::warn!(%error, "no server starts on what an earlier attempt left, and a new sandbox is made");
                remove(left, None).await?;
                context.artefacts.removed(left).await?;
            }
            outcome => return outcome,
        }
    }
    let base = base_folder(&context.kept, user)?;
    let needed = request
        .estimated_bytes
        .saturating_mul(3)
        .div_euclid(2)
        .saturating_add(SPACE_BASE_BYTES);
    let free = free_bytes_of(&base)?;
    if free < needed {
        return Err(EngineError::NoSpace {
            place: base.display().to_string(),
            free_bytes: free,
            needed_bytes: needed,
        });
    }
    let folder = base.join(format!(
        "pg-{}-{}",
        &context.attempt.job.uuid().simple().to_string()[20..],
        context.attempt.token
    ));
    let name = format!("{} {}", context.attempt, folder.display());
    let artefact = server_artefact(&name, &folder, None);
    context.artefacts.record(&artefact).await?;
    let made = async {
        make(context, &server.path, &folder, user).await?;
        start(context, &server.path, &folder, user, START_WAIT).await
    };
    let process = match made.await {
        Ok(process) => process,
        Err(error) => {
            remove(&artefact, None).await?;
            context.artefacts.removed(&artefact).await?;
            return Err(error);
        }
    };
    let artefact = server_artefact(&name, &folder, process);
    context.artefacts.record(&artefact).await?;
    Ok(Sandbox {
        target: private_target(&folder, DATABASE)?,
        artefacts: vec![artefact],
        continued: false,
    })
}

/// The folder of a server that an earlier attempt left, where a server can go on with it.
fn usable_folder(left: &Artefact) -> Option<PathBuf> {
    let Ok(Made::Server { folder, boot, .. }) = Made::deserialize(&left.data) else {
        return None;
    };
    let has_a_cluster = folder.join("data").join("PG_VERSION").is_file();
    (has_a_cluster && !boot.is_empty() && boot == this_boot()).then_some(folder)
}

fn this_boot() -> String {
    let text = fs::read_to_string(BOOT_ID).unwrap_or_default();
    text.trim().to_owned()
}

/// Starts a server on what an earlier attempt left. What that attempt still runs is ended first.
async fn go_on_in(
    context: &EngineContext,
    postgres: &Path,
    left: &Artefact,
    folder: PathBuf,
    user: Option<(u32, u32)>,
) -> Result<Sandbox, EngineError> {
    context.artefacts.record(left).await?;
    end_server(&folder, process_of(&folder.join("data"))).await?;
    let process = start(context, postgres, &folder, user, RECOVERY_WAIT).await?;
    let artefact = server_artefact(&left.name, &folder, process);
    context.artefacts.record(&artefact).await?;
    Ok(Sandbox {
        target: private_target(&folder, DATABASE)?,
        artefacts: vec![artefact],
        continued: true,
    })
}

fn server_artefact(name: &str, folder: &Path, process: Option<(i32, u64)>) -> Artefact {
    artefact(
        "server",
        name.to_owned(),
        &Made::Server {
            folder: folder.to_owned(),
            process,
            boot: this_boot(),
        },
    )
}

fn artefact(kind: &str, name: String, made: &Made) -> Artefact {
    Artefact {
        engine: Engine::Postgres,
        kind: kind.to_owned(),
        name,
        data: serde_json::to_value(made).expect("plain data can be JSON"),
        until_job_ends: true,
    }
}

/// How to reach a database of the private server in this folder.
fn private_target(folder: &Path, database: &str) -> Result<Target, EngineError> {
    let url = format!(
        "postgres://{}@{}/{database}?sslmode=disable",
        percent_encoded(ROOT_ROLE),
        percent_encoded(&folder.display().to_string())
    );
    let (url, _) =
        DatabaseUrl::parse_with_password(&url).map_err(|error| EngineError::Database {
            what: format!("the sandbox's own URL: {error}"),
            transient: false,
        })?;
    Ok(Target {
        url,
        password: None,
    })
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// The user and group that the server runs as; nothing where this process has no right to choose.
/// PostgreSQL refuses to run as root.
fn run_as() -> Result<Option<(u32, u32)>, EngineError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")
        .map_err(|error| EngineError::local("reading /etc/passwd", error))?;
    ["postgres", "nobody"]
        .iter()
        .find_map(|wanted| {
            users.lines().find_map(|line| {
                let mut fields = line.split(':');
                (fields.next() == Some(wanted)).then_some(())?;
                let mut numbers = fields.skip(1).map(|field| field.parse().ok());
                Some(Some((numbers.next()??, numbers.next()??)))
            })
        })
        .ok_or_else(|| EngineError::Missing {
            code: "user",
            what: "PostgreSQL does not run as root, and this machine has neither a user postgres nor nobody".to_owned(),
            remedy: "run Fettler as another user, or make a user postgres".to_owned(),
        })
}

/// The folder to make the server's folder in: the worker's own where the server's user can get there and a
/// socket's path still fits, else one for temporary files.
fn base_folder(kept: &Path, user: Option<(u32, u32)>) -> Result<PathBuf, EngineError> {
    let kept = fs::canonicalize(kept).unwrap_or_else(|_| kept.to_owned());
    let candidates = [kept, PathBuf::from("/var/tmp"), std::env::temp_dir()];
    // `/pg-`, twelve digits of the job, `-`, sixteen of the token, `/` and the socket.
    let longest = SOCKET_PATH_BYTES - "/pg-".len() - 12 - 1 - 16 - 1 - SOCKET_NAME.len();
    candidates
        .iter()
        .find(|folder| {
            folder.as_os_str().len() <= longest
                && folder.is_dir()
                && user.is_none_or(|user| can_pass(folder, user))
        })
        .cloned()
        .ok_or_else(|| EngineError::Missing {
            code: "folder",
            what: "no folder was found for the sandbox's server that its user can enter and whose path is short enough for a socket".to_owned(),
            remedy: "set TMPDIR to such a folder".to_owned(),
        })
}

/// Whether a user can pass through a folder and all that are above it.
fn can_pass(folder: &Path, (user, group): (u32, u32)) -> bool {
    folder.ancestors().all(|folder| {
        fs::metadata(folder).is_ok_and(|metadata| {
            let mode = metadata.permissions().mode();
            let bit = if metadata.uid() == user {
                0o100
            } else if metadata.gid() == group {
                0o010
            } else {
                0o001
            };
            mode & bit != 0
        })
    })
}

fn free_bytes_of(folder: &Path) -> Result<u64, EngineError> {
    let found = rustix::fs::statvfs(folder).map_err(|error| {
        EngineError::local(format!("looking at {}", folder.display()), error.into())
    })?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// A program of the server, as its user.
fn command(program: &Path, folder: &Path, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null());
    if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
        command.env("LD_LIBRARY_PATH", path);
    }
    if let Some((user, group)) = user {
        command.uid(user).gid(group);
    }
    command
}

/// Says what failed in a folder.
fn failed(what: &str, folder: &Path) -> impl FnOnce(io::Error) -> EngineError + use<> {
    let what = format!("{what} {}", folder.display());
    move |error| EngineError::local(what, error)
}

/// Makes a cluster.
async fn make(
    context: &EngineContext,
    postgres: &Path,
    folder: &Path,
    user: Option<(u32, u32)>,
) -> Result<(), EngineError> {
    let failed = |what: &str| failed(what, folder);
    fs::create_dir(folder).map_err(failed("making"))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(failed("closing"))?;
    if let Some((user, group)) = user {
        chown(folder, Some(user), Some(group)).map_err(failed("giving away"))?;
    }
    let data = folder.join("data");
    let mut said = String::new();
    for locale in ["C.UTF-8", "C"] {
        let mut initdb = command(&postgres.with_file_name("initdb"), folder, user);
        initdb
            .args(["--auth=trust", "--encoding=UTF8", "--no-sync"])
            .arg(format!("--username={ROOT_ROLE}"))
            .arg(format!("--locale={locale}"))
            .arg("-D")
            .arg(&data);
        let output = tokio::process::Command::from(initdb)
            .kill_on_drop(true)
            .output();
        let output = context
            .stop
            .run_until_cancelled(output)
            .await
            .ok_or(EngineError::Stopped)?
            .map_err(failed("running initdb in"))?;
        if output.status.success() {
            said.clear();
            break;
        }
        said = String::from_utf8_lossy(&output.stderr).into_owned();
    }
    if !said.is_empty() {
        return Err(EngineError::Database {
            what: format!("initdb failed in {}: {}", folder.display(), said.trim()),
            transient: false,
        });
    }
    let settings = data.join("postgresql.conf");
    let mut text = fs::read_to_string(&settings).map_err(failed("reading the settings in"))?;
    text.push_str(SERVER_SETTINGS);
    text.push_str(&format!(
        "unix_socket_directories = '{}'\n",
        folder.display()
    ));
    fs::write(&settings, text).map_err(failed("writing the settings in"))
}

/// Starts a server on a cluster.
async fn start(
    context: &EngineContext,
    postgres: &Path,
    folder: &Path,
    user: Option<(u32, u32)>,
    within: Duration,
) -> Result<Option<(i32, u64)>, EngineError> {
    let failed = |what: &str| failed(what, folder);
    let data = folder.join("data");
    let log = folder.join("log");
    context.fence.check().await?;
    let mut watchdog = command(Path::new("/bin/sh"), folder, user);
    watchdog
        .args(["-c", WATCHDOG, "fettler-sandbox"])
        .arg(postgres)
        .args([&data, &log])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A Ctrl-C at the terminal is for this process alone.
        .process_group(0);
    let mut watchdog = watchdog.spawn().map_err(failed("starting a server in"))?;
    let pipe = watchdog.stdin.take();
    RUNNING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(folder.to_owned(), Running { pipe, watchdog });

    let params = Params::of(&private_target(folder, "postgres")?)?;
    let give_up = Instant::now() + within;
    loop {
        context.check_stop()?;
        match connect(&params, VISITOR).await {
            Ok(session) => {
                session.close().await;
                return Ok(process_of(&data));
            }
            Err(error) if Instant::now() > give_up => {
                let log = fs::read_to_string(&log).unwrap_or_default();
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

/// The server of a cluster, if it runs: its id and when it started. A process that happens to have the id
/// today works in another folder.
fn process_of(data: &Path) -> Option<(i32, u64)> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let id: i32 = text.lines().next()?.trim().parse().ok()?;
    let works_in = fs::read_link(format!("/proc/{id}/cwd")).ok()?;
    let data = fs::canonicalize(data).ok()?;
    (works_in == data).then(|| started(id).map(|started| (id, started)))?
}

/// When a process started, in the kernel's ticks since the machine did.
fn started(id: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold anything; after it, this is the twentieth field.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18)?.parse().ok())?
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
        Made::Server {
            folder, process, ..
        } => remove_server(&folder, process).await,
        Made::Database { role } => remove_database(&artefact.name, role.as_deref(), server).await,
    }
}

async fn remove_server(folder: &Path, process: Option<(i32, u64)>) -> Result<(), EngineError> {
    let is_ours = folder
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("pg-"));
    if !folder.is_absolute() || !is_ours {
        return Err(EngineError::Unusable {
            what: format!("{} is no folder of a sandbox", folder.display()),
            remedy: "remove it by hand, if it is one".to_owned(),
        });
    }
    let process = process
        .filter(|(id, start)| started(*id) == Some(*start))
        .or_else(|| process_of(&folder.join("data")));
    end_server(folder, process).await?;
    let removed = {
        let folder = folder.to_owned();
        tokio::task::spawn_blocking(move || fs::remove_dir_all(folder)).await
    };
    match removed {
        Ok(Err(error)) if folder.exists() => Err(EngineError::local(
            format!("removing {}", folder.display()),
            error,
        )),
        _ => Ok(()),
    }
}

/// Ends what runs in a sandbox, and keeps its folder. A server that another attempt has started there since is left alone.
pub(crate) async fn leave(sandbox: &Sandbox) -> Result<(), EngineError> {
    for artefact in &sandbox.artefacts {
        if let Ok(Made::Server {
            folder,
            process: Some((id, start)),
            ..
        }) = Made::deserialize(&artefact.data)
            && started(id) == Some(start)
        {
            end_server(&folder, Some((id, start))).await?;
        }
    }
    Ok(())
}

/// Ends the server of a folder, if it runs, and what this process had started to watch it.
async fn end_server(folder: &Path, process: Option<(i32, u64)>) -> Result<(), EngineError> {
    let running = RUNNING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(folder);
    let give_up = Instant::now() + STOP_WAIT;
    if let Some((id, start)) = process {
        let mut signal = Signal::QUIT;
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
        // It has nothing left to wait for but the server, which is gone.
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

/// Makes a role for a scratch database on a server that others use too.
async fn open_shared(
    engine: &PostgresEngine,
    context: &EngineContext,
    request: &SandboxRequest,
    server: &Target,
) -> Result<Sandbox, EngineError> {
    let params = Params::of(server)?;
    let mut session = connect(&params, &context.attempt.to_string()).await?;
    let facts = ServerFacts::read(&mut session).await?;
    let wanted = major_of(&request.identity.version);
    if facts.major() < wanted {
        return Err(EngineError::Missing {
            code: "version",
            what: format!(
                "the sandbox's server is PostgreSQL {}, and the backup is of version {wanted}",
                facts.version_text
            ),
            remedy: format!("name a server of version {wanted} or later"),
        });
    }
    let row = session
        .one("SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user")
        .await
        .map_err(|error| error.doing("looking at the role's rights"))?;
    let (is_superuser, creates_databases, creates_roles) =
        (row.flag(0)?, row.flag(1)?, row.flag(2)?);
    if !is_superuser && !creates_databases {
        return Err(EngineError::Missing {
            code: "permission",
            what: format!(
                "the role {} may not create a database for a proof",
                quote_ident(&params.user)
            ),
            remedy: format!("ALTER ROLE {} CREATEDB", quote_ident(&params.user)),
        });
    }
    if let Some(free) = engine.free_bytes_at(&params).await? {
        let needed = request.estimated_bytes.saturating_mul(3) / 2 + SPACE_BASE_BYTES;
        if free < needed {
            return Err(EngineError::NoSpace {
                place: params.server(),
                free_bytes: free,
                needed_bytes: needed,
            });
        }
    }
    let left = match &request.left {
        Some(left) => usable_role(&mut session, left).await?,
        None => None,
    };
    let continued = left.is_some();
    let (database, role) = left.unwrap_or_else(|| {
        let simple = context.attempt.job.uuid().simple().to_string();
        let database = format!("fettler_proof_{}_{}", &simple[20..], context.attempt.token);
        let role = (is_superuser || creates_roles).then(|| database.clone());
        (database, role)
    });
    let made = Made::Database { role: role.clone() };
    let artefact = artefact("database", database.clone(), &made);
    context.artefacts.record(&artefact).await?;
    context.fence.check().await?;
    let password = match &role {
        None => server.password.clone(),
        Some(role) => {
            let secret = hex_secret();
            let name = quote_ident(role);
            let statement = if continued {
                format!("ALTER ROLE {name} PASSWORD {}", literal(&secret))
            } else {
                format!(
                    "CREATE ROLE {name} LOGIN CREATEDB NOSUPERUSER NOCREATEROLE PASSWORD {}",
                    literal(&secret)
                )
            };
            session
                .execute(&statement)
                .await
                .map_err(|error| error.doing("making a role for the proof"))?;
            Some(Secret::new(secret))
        }
    };
    session.close().await;
    let target = shared_target(&params, role.as_deref(), &database, server, password)?;
    if role.is_some() {
        let probe = Params::of(&target)?.with_database("postgres");
        if let Err(error) = connect(&probe, VISITOR).await {
            remove(&artefact, Some(server)).await?;
            context.artefacts.removed(&artefact).await?;
            return Err(match error {
                EngineError::LoginRefused { server, what } => EngineError::Missing {
                    code: "sandbox_role",
                    what: format!("{server} does not let the proof's own role log in: {what}"),
                    remedy: "let roles named fettler_proof_… log in by password (pg_hba.conf), or name a sandbox server with a role that has CREATEDB and is no superuser"
                        .to_owned(),
                },
                other => other,
            });
        }
    }
    Ok(Sandbox {
        target,
        artefacts: vec![artefact],
        continued,
    })
}

/// The scratch database that an earlier attempt left on this server and its role, where both are still there.
async fn usable_role(
    session: &mut Session,
    left: &Artefact,
) -> Result<Option<(String, Option<String>)>, EngineError> {
    let Ok(Made::Database { role }) = Made::deserialize(&left.data) else {
        return Ok(None);
    };
    let of_role = role.as_ref().map_or_else(
        || "true".to_owned(),
        |role| {
            let name = literal(role);
            format!("EXISTS (SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = {name})")
        },
    );
    let is_there = session
        .one(&format!(
            "SELECT {of_role} AND EXISTS (SELECT 1 FROM pg_catalog.pg_database WHERE datname = {})",
            literal(&left.name)
        ))
        .await
        .map_err(|error| error.doing("looking for what an earlier attempt left"))?
        .flag(0)?;
    Ok(is_there.then(|| (left.name.clone(), role)))
}

fn hex_secret() -> String {
    let random: [u8; 24] = rand::random();
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same server, another user and database, in sessions that know that they are in a sandbox.
fn shared_target(
    params: &Params,
    role: Option<&str>,
    database: &str,
    server: &Target,
    password: Option<Secret>,
) -> Result<Target, EngineError> {
    let invalid = |what: String| EngineError::Database {
        what: format!("the sandbox's URL: {what}"),
        transient: false,
    };
    let mut url =
        url::Url::parse(server.url.as_str()).map_err(|error| invalid(error.to_string()))?;
    let kept: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| !matches!(name.as_ref(), "options" | "user" | "dbname"))
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    url.query_pairs_mut()
        .clear()
        .extend_pairs(kept)
        .append_pair("user", role.unwrap_or(&params.user))
        .append_pair("dbname", database)
        .append_pair(
            "options",
            &format!(
                "{} -c {SETTING}=shared",
                params.options.as_deref().unwrap_or_default()
            ),
        );
    let (url, _) = DatabaseUrl::parse_with_password(url.as_str())
        .map_err(|error| invalid(error.to_string()))?;
    Ok(Target { url, password })
}

async fn remove_database(
    name: &str,
    role: Option<&str>,
    server: Option<&Target>,
) -> Result<(), EngineError> {
    let Some(server) = server else {
        return Err(EngineError::Missing {
            code: "sandbox",
            what: format!(
                "the server of the scratch database {} is not known",
                quote_ident(name)
            ),
            remedy: "drop it by hand".to_owned(),
        });
    };
    if !name.starts_with("fettler_proof_") {
        return Err(EngineError::Unusable {
            what: format!("{} is no scratch database", quote_ident(name)),
            remedy: "drop it by hand, if it is one".to_owned(),
        });
    }
    let params = Params::of(server)?;
    let mut session = connect(&params, VISITOR).await?;
    crate::restore::drop_database_on(&mut session, name).await?;
    if let Some(role) = role {
        session
            .execute(&format!("DROP ROLE IF EXISTS {}", quote_ident(role)))
            .await
            .map_err(|error| error.doing("dropping the proof's role"))?;
    }
    session.close().await;
    Ok(())
}

/// Keeps the dump's own code from running as a superuser in a private sandbox; elsewhere it does nothing.
#[derive(Debug)]
pub(crate) struct Guard<'a> {
    roles: Option<&'a [RoleData]>,
}

impl<'a> Guard<'a> {
    pub(crate) fn new(kind: Kind, data: &'a BackupData) -> Self {
        Self {
            roles: (kind == Kind::Private).then_some(&data.roles),
        }
    }

    /// Makes the backup's roles and the one that rows are copied as. May be repeated.
    pub(crate) async fn make_roles(&self, session: &mut Session) -> Result<(), EngineError> {
        let Some(roles) = self.roles else {
            return Ok(());
        };
        let mut statements = vec![
            format!(
                "CREATE ROLE {} LOGIN NOSUPERUSER BYPASSRLS",
                quote_ident(WORK_ROLE)
            ),
            // From version 17 on, an event trigger may fire at a login.
            format!(
                "ALTER ROLE {} SET event_triggers = off",
                quote_ident(ROOT_ROLE)
            ),
        ];
        for role in roles {
            statements.push(format!("CREATE ROLE {}", quote_ident(&role.name)));
        }
        for predefined in ["pg_read_all_data", "pg_write_all_data", "pg_maintain"] {
            statements.push(format!("GRANT {predefined} TO {}", quote_ident(WORK_ROLE)));
        }
        for role in roles {
            let name = quote_ident(&role.name);
            statements.push(format!("GRANT {name} TO {}", quote_ident(WORK_ROLE)));
            if role.superuser {
                statements.push(format!("ALTER ROLE {name} SUPERUSER"));
            }
            for group in &role.member_of {
                statements.push(format!("GRANT {} TO {name}", quote_ident(group)));
            }
        }
        for statement in statements {
            match session.execute(&statement).await {
                Ok(()) => {}
                // It is there already; or it is a predefined role that this version does not have.
                Err(error) if matches!(error.code(), Some("42710" | "42704" | "0LP01")) => {}
                Err(error) => return Err(error.doing("making the backup's roles in the sandbox")),
            }
        }
        Ok(())
    }

    async fn each_superuser(&self, session: &mut Session, what: &str) -> Result<(), EngineError> {
        for role in self
            .roles
            .unwrap_or_default()
            .iter()
            .filter(|role| role.superuser)
        {
            session
                .execute(&format!("ALTER ROLE {} {what}", quote_ident(&role.name)))
                .await
                .map_err(|error| error.doing("changing a role in the sandbox"))?;
        }
        Ok(())
    }

    /// From here on none of the backup's roles is a superuser.
    pub(crate) async fn lower(&self, session: &mut Session) -> Result<(), EngineError> {
        self.each_superuser(session, "NOSUPERUSER").await
    }

    /// How to connect for what may run the dump's own code.
    pub(crate) fn params(&self, params: &Params) -> Params {
        match self.roles {
            Some(_) => params.with_user(WORK_ROLE, None),
            None => params.clone(),
        }
    }

    /// Gives the marker to the role that copies rows.
    pub(crate) async fn open_marker(
        &self,
        session: &mut Session,
        schema: &str,
    ) -> Result<(), EngineError> {
        if self.roles.is_none() {
            return Ok(());
        }
        let role = quote_ident(WORK_ROLE);
        let database = quote_ident(&current_database(session).await?);
        session
            .execute(&format!(
                "ALTER SCHEMA {schema} OWNER TO {role};
                 ALTER TABLE {schema}.attempt OWNER TO {role};
                 ALTER TABLE {schema}.done OWNER TO {role};
                 ALTER TABLE {schema}.failed OWNER TO {role};
                 GRANT CREATE, TEMPORARY ON DATABASE {database} TO {role}"
            ))
            .await
            .map_err(|error| error.doing("opening the marker in the sandbox"))
    }

    /// Runs the part of the archive that comes after the rows. Gives back the statements that failed.
    pub(crate) async fn post_data(
        &self,
        context: &EngineContext,
        archive: &Archive,
        chosen: Option<&[String]>,
        session: &mut Session,
        own: &Login,
        resumed: bool,
    ) -> Result<Vec<String>, EngineError> {
        let mut failed = Vec::new();
        let mut keep = |mut failures: crate::restore::archive::Failures| {
            if resumed {
                failures.forgive_repetitions();
            }
            failed.extend(failures.words());
        };
        let list = match chosen {
            Some(list) => list.to_vec(),
            None => archive.list(context, Some(Section::PostData)).await?,
        };
        // In a sandbox, indexes and keys are built with the rights of the tables' owners, who are no superusers any more. A
        // check would run with ours; the owners of event triggers have to be superusers while these are made.
        let apart = |list: Vec<String>, kinds: &[&str]| -> (Vec<String>, Vec<String>) {
            let is_apart = |line: &String| self.roles.is_some() && entry_is(line, kinds);
            list.into_iter().partition(is_apart)
        };
        let (checks, list) = apart(list, &["CHECK CONSTRAINT"]);
        let (of_superusers, list) = apart(list, &["EVENT TRIGGER", "PUBLICATION"]);
        let [built, attached, rest] = around_attachments(list);
        let without_rights = Login {
            params: self.params(&own.params),
            is_own: false,
        };
        let steps = [
            (built, own.clone(), context.parallel, false),
            (attached, own.clone(), 1, false),
            (rest, own.clone(), context.parallel, false),
            (checks, without_rights, 1, false),
            (of_superusers, own.clone(), 1, true),
        ];
        for (number, (list, login, jobs, raised)) in steps.into_iter().enumerate() {
            if list.is_empty() {
                continue;
            }
            let path = context.scratch.join(format!("post-data-{number}.list"));
            fs::write(&path, list.join("\n")).map_err(|error| {
                EngineError::local(format!("writing {}", path.display()), error)
            })?;
            if raised {
                self.each_superuser(session, "SUPERUSER").await?;
            }
            let answer = archive
                .restore(context, &login, Section::PostData, Some(&path), jobs)
                .await;
            if raised {
                self.lower(session).await?;
            }
            keep(answer?);
        }
        Ok(failed)
    }
}

/// What is made before partitions of indexes are attached, the attachments, and the rest.
///
/// An index over partitions becomes valid with the attachment that completes it. Two sessions that complete two levels of
/// it at the same moment each miss what the other does, and leave it invalid for good; so attachments come one after
/// the other, and before the foreign keys that need a valid index.
fn around_attachments(list: Vec<String>) -> [Vec<String>; 3] {
    if !list.iter().any(|line| entry_is(line, &["INDEX ATTACH"])) {
        return [list, Vec::new(), Vec::new()];
    }
    let (attached, list): (Vec<String>, Vec<String>) = list
        .into_iter()
        .partition(|line| entry_is(line, &["INDEX ATTACH"]));
    let (built, rest) = list
        .into_iter()
        .partition(|line| entry_is(line, &["INDEX", "CONSTRAINT"]));
    [built, attached, rest]
}

/// Whether a line of an archive's contents is of one of these kinds, or a comment on one.
fn entry_is(line: &str, kinds: &[&str]) -> bool {
    let Some((_, rest)) = line.split_once("; ") else {
        return false;
    };
    let rest = rest.splitn(3, ' ').nth(2).unwrap_or_default();
    kinds.iter().any(|kind| {
        rest.strip_prefix(kind)
            .is_some_and(|rest| rest.starts_with(' '))
            || rest.starts_with(&format!("COMMENT - {kind} "))
    })
}

async fn current_database(session: &mut Session) -> Result<String, EngineError> {
    session
        .one("SELECT current_database()")
        .await
        .map_err(|error| error.doing("asking for the database's name"))?
        .string(0)
}

impl PostgresEngine {
    /// About how many bytes are free where a server keeps its data: known where the server is on this machine.
    pub(crate) async fn free_bytes_at(&self, params: &Params) -> Result<Option<u64>, EngineError> {
        let is_here = params.hosts.iter().all(|(host, _)| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => matches!(name.as_str(), "localhost" | "127.0.0.1" | "::1"),
        });
        if !is_here {
            return Ok(None);
        }
        let mut session = None;
        for database in [params.database.as_str(), "postgres", "template1"] {
            match connect(&params.with_database(database), VISITOR).await {
                Ok(found) => {
                    session = Some(found);
                    break;
                }
                Err(EngineError::Missing {
                    code: "database", ..
                }) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(mut session) = session else {
            return Ok(None);
        };
        // Only some roles may know where the data lies.
        let Ok(row) = session
            .one("SELECT current_setting('data_directory'), (SELECT system_identifier FROM pg_control_system())")
            .await
        else {
            return Ok(None);
        };
        let data = PathBuf::from(row.text(0)?);
        session.close().await;
        // A forwarded port leads to another machine, whose folder of this name is not here, or is another one.
        let is_this_one = process_of(&data).is_some();
        Ok(if is_this_one {
            free_bytes_of(&data).ok()
        } else {
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_apart_by_their_kind() {
        let event = "3210; 3466 16400 EVENT TRIGGER - guard postgres";
        assert!(entry_is(event, &["EVENT TRIGGER"]));
        assert!(entry_is(
            "5; 0 0 COMMENT - EVENT TRIGGER guard postgres",
            &["EVENT TRIGGER"]
        ));
        assert!(!entry_is(
            "6; 2620 7 TRIGGER public t guard postgres",
            &["EVENT TRIGGER"]
        ));
    }

    #[test]
    fn partitions_of_indexes_are_attached_between_the_indexes_and_the_foreign_keys() {
        let lines = |lines: &[&str]| -> Vec<String> {
            lines.iter().map(|line| (*line).to_owned()).collect()
        };
        let index = "1; 1259 7 INDEX public parts_v ann";
        let key = "2; 2606 8 CONSTRAINT public parts parts_pkey ann";
        let attached = "3; 0 0 INDEX ATTACH public parts_2026_pkey ann";
        let foreign = "4; 2606 9 FK CONSTRAINT public t t_fkey ann";
        assert_eq!(
            around_attachments(lines(&[index, key, attached, foreign])),
            [lines(&[index, key]), lines(&[attached]), lines(&[foreign])]
        );
        assert_eq!(
            around_attachments(lines(&[index, foreign])),
            [lines(&[index, foreign]), Vec::new(), Vec::new()]
        );
    }

    #[test]
    fn only_folders_of_sandboxes_are_removed() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for folder in ["/", "/home", "pg-relative"] {
            assert!(
                runtime
                    .block_on(remove_server(Path::new(folder), None))
                    .is_err()
            );
        }
    }
}
