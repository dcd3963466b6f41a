//! A place for a proof: a server process of our own, or databases of ours on a server that was named.
//!
//! **Private.** `clickhouse` or `clickhouse-server` where the worker's machine has one that is not older than the source: on a
//! loopback port of its own with a password of its own, in a folder that only its user may enter, as a user without rights
//! where this process has the right to choose one (rule 31). It ends when this process ends, however that happens: it is
//! started by a shell that waits for the end of a pipe whose other end is here.
//!
//! **Named.** On a server that the operator names, databases whose names begin with `fettler_proof_` and a random word. What
//! does not begin with it is never touched, but for functions that the server did not have, which are recorded one by one.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{Ipv4Addr, TcpListener},
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
    catalogue::{PROOF_PREFIX, SCRATCH_PREFIX},
    http::{Session, numbers_of, random_word},
    identify,
    params::Params,
    shadow::drop_database,
    sql::quoted,
};

/// What the server's program is called, and what it is to be told first.
const PROGRAMS: [(&str, &[&str]); 2] = [("clickhouse-server", &[]), ("clickhouse", &["server"])];
/// What the names of sandboxes' folders begin with.
const FOLDER_PREFIX: &str = "clickhouse-";
/// How long a server may take to start.
const START_WAIT: Duration = Duration::from_secs(60);
/// How long it may take to stop before it is killed.
const STOP_WAIT: Duration = Duration::from_secs(20);
/// Between two looks at a server that starts or stops.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Runs the server, waits until nobody holds the other end of the pipe any more, and ends it.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
program=$1
shift
"$program" "$@" >out 2>&1 </dev/null &
server=$!
echo "$server" >pid
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

/// What is recorded of a private server.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct MadeServer {
    folder: PathBuf,
    /// Process id and start time in the kernel's ticks, once it runs.
    process: Option<(i32, u64)>,
}

/// Makes a place for a proof.
pub(crate) async fn open(
    context: &EngineContext,
    request: &SandboxRequest,
    program: Option<&Path>,
) -> Result<Sandbox, EngineError> {
    match (&request.spec, &request.server) {
        (SandboxSpec::Automatic, _) => open_private(context, request, program).await,
        (SandboxSpec::Server { .. } | SandboxSpec::SourceServer, Some(server)) => {
            open_named(context, request, server).await
        }
        (_, None) => Err(EngineError::Missing {
            code: "sandbox",
            what: "the sandbox's server is not known".to_owned(),
            remedy: "name its URL".to_owned(),
        }),
    }
}

/// An error where a server is older than the one that was backed up.
fn require_version(session: &Session, request: &SandboxRequest) -> Result<(), EngineError> {
    if session.version_numbers() >= numbers_of(&request.identity.version) {
        return Ok(());
    }
    Err(EngineError::Missing {
        code: "version",
        what: format!(
            "the sandbox's server {} has version {}, and the backup is of {}",
            session.server(),
            session.version,
            request.identity.version
        ),
        remedy: "name a server of that version or a newer one with `--sandbox clickhouse://…`"
            .to_owned(),
    })
}

fn artefact(kind: &str, name: &str, data: serde_json::Value) -> Artefact {
    Artefact {
        engine: Engine::Clickhouse,
        kind: kind.to_owned(),
        name: name.to_owned(),
        data,
        until_job_ends: false,
    }
}

/// Chooses names on a server that was named.
async fn open_named(
    context: &EngineContext,
    request: &SandboxRequest,
    server: &Target,
) -> Result<Sandbox, EngineError> {
    let params = Params::of(server)?;
    let session = Session::of_attempt(&params, context).await?;
    require_version(&session, request)?;
    if let Some(free_bytes) = identify::free_bytes(server).await?
        && free_bytes < request.estimated_bytes
    {
        return Err(EngineError::NoSpace {
            place: params.server(),
            free_bytes,
            needed_bytes: request.estimated_bytes,
        });
    }
    let prefix = format!("{PROOF_PREFIX}{}_", random_word());
    let artefact = artefact("databases", &prefix, serde_json::Value::Null);
    context.artefacts.record(&artefact).await?;
    Ok(Sandbox {
        target: Target {
            url: with_prefix(server, &prefix)?,
            password: server.password.clone(),
        },
        artefacts: vec![artefact],
        continued: false,
    })
}

/// The same server, where databases have something before their names.
fn with_prefix(server: &Target, prefix: &str) -> Result<DatabaseUrl, EngineError> {
    let invalid = |error: &dyn std::fmt::Display| EngineError::Missing {
        code: "url",
        what: format!("the sandbox's URL cannot be used: {error}"),
        remedy: "write it as `clickhouse://user@host:8123`".to_owned(),
    };
    let mut url = url::Url::parse(server.url.as_str()).map_err(|error| invalid(&error))?;
    url.set_path("");
    url.query_pairs_mut().append_pair("sandbox", prefix);
    DatabaseUrl::parse_with_password(url.as_str())
        .map(|(url, _)| url)
        .map_err(|error| invalid(&error))
}

/// Removes what was made.
pub(crate) async fn remove(
    artefact: &Artefact,
    server: Option<&Target>,
) -> Result<(), EngineError> {
    if artefact.kind == "server" {
        let made =
            MadeServer::deserialize(&artefact.data).map_err(|error| EngineError::Unusable {
                what: format!("the record of {:?} cannot be read: {error}", artefact.name),
                remedy: "remove it by hand".to_owned(),
            })?;
        return remove_server(&made.folder, made.process).await;
    }
    let server = server.ok_or_else(|| EngineError::Missing {
        code: "server",
        what: format!(
            "the server of {} {} is not known",
            artefact.kind, artefact.name
        ),
        remedy: "drop it by hand".to_owned(),
    })?;
    let session = Session::visit(&Params::of(server)?).await?;
    let is_ours =
        artefact.name.starts_with(SCRATCH_PREFIX) || artefact.name.starts_with(PROOF_PREFIX);
    match artefact.kind.as_str() {
        "database" if is_ours => drop_database(&session, &artefact.name).await,
        "databases" if is_ours && artefact.name.len() > PROOF_PREFIX.len() => {
            let all = session
                .rows(
                    "SELECT name FROM system.databases",
                    "looking for a proof's databases",
                )
                .await?;
            for name in all.into_iter().flatten() {
                if name.starts_with(&artefact.name) {
                    drop_database(&session, &name).await?;
                }
            }
            Ok(())
        }
        "function" => {
            let drop = format!("DROP FUNCTION IF EXISTS {}", quoted(&artefact.name));
            session.run(&drop, &[], "dropping a proof's function").await
        }
        _ => Err(EngineError::Unusable {
            what: format!(
                "{} {} was not made by Fettler",
                artefact.kind, artefact.name
            ),
            remedy: "remove it by hand, if it was".to_owned(),
        }),
    }
}

/// The server's program, with what it is to be told first.
fn find_program(named: Option<&Path>) -> Result<(PathBuf, &'static [&'static str]), EngineError> {
    if let Some(path) = named {
        let name = path.file_name().unwrap_or_default();
        let words = PROGRAMS
            .iter()
            .find(|(program, _)| *program == name)
            .map_or(PROGRAMS[0].1, |(_, words)| *words);
        return Ok((path.to_owned(), words));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    PROGRAMS
        .iter()
        .find_map(|(program, words)| {
            let found = folders
                .iter()
                .map(|folder| folder.join(program))
                .find(|program| program.is_file())?;
            Some((found, *words))
        })
        .ok_or_else(|| EngineError::Missing {
            code: "clickhouse-server",
            what: "a proof needs a ClickHouse server, and neither clickhouse-server nor clickhouse is in a folder of PATH".to_owned(),
            remedy: "install ClickHouse on the worker's machine, or name a server with `--sandbox clickhouse://…`, where a proof works in databases of its own".to_owned(),
        })
}

/// Starts a server.
async fn open_private(
    context: &EngineContext,
    request: &SandboxRequest,
    program: Option<&Path>,
) -> Result<Sandbox, EngineError> {
    let (program, words) = find_program(program)?;
    let user = run_as();
    let folder = base_folder(&context.kept, user).join(format!(
        "{FOLDER_PREFIX}{}-{}",
        &context.attempt.job.uuid().simple().to_string()[20..],
        context.attempt.token
    ));
    let name = format!("{} {}", context.attempt, folder.display());
    let recorded = server_artefact(&name, &folder, None);
    context.artefacts.record(&recorded).await?;
    let started = start(context, request, &program, words, &folder, user).await;
    let recorded = server_artefact(&name, &folder, process_of(&folder));
    match started {
        Ok(target) => {
            context.artefacts.record(&recorded).await?;
            Ok(Sandbox {
                target,
                artefacts: vec![recorded],
                continued: false,
            })
        }
        Err(error) => {
            remove(&recorded, None).await?;
            context.artefacts.removed(&recorded).await?;
            Err(error)
        }
    }
}

fn server_artefact(name: &str, folder: &Path, process: Option<(i32, u64)>) -> Artefact {
    let made = MadeServer {
        folder: folder.to_owned(),
        process,
    };
    let data = serde_json::to_value(&made).expect("plain data can be JSON");
    artefact("server", name, data)
}

/// The user and group without rights that the server runs as; nothing where this process is such a user itself.
fn run_as() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").ok()?;
    ["clickhouse", "nobody"].iter().find_map(|wanted| {
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

/// The folder to make the server's folder in: the worker's own where the server's user can get there.
fn base_folder(kept: &Path, user: Option<(u32, u32)>) -> PathBuf {
    let kept = fs::canonicalize(kept).unwrap_or_else(|_| kept.to_owned());
    if user.is_none_or(|user| can_pass(&kept, user)) {
        kept
    } else {
        PathBuf::from("/var/tmp")
    }
}

/// Says what failed in a folder.
fn failed(what: &str, folder: &Path) -> impl FnOnce(io::Error) -> EngineError + use<> {
    let what = format!("{what} {}", folder.display());
    move |error| EngineError::local(what, error)
}

/// The two files of a server's configuration. The root element's old name is understood by all versions.
fn configuration(folder: &Path, port: u16, password: &str) -> (String, String) {
    let folder = folder.display();
    let server = format!(
        "<yandex>\n<logger><level>warning</level><log>{folder}/log</log><errorlog>{folder}/errors</errorlog></logger>\n<http_port>{port}</http_port>\n<listen_host>127.0.0.1</listen_host>\n<path>{folder}/data/</path>\n<tmp_path>{folder}/tmp/</tmp_path>\n<user_files_path>{folder}/files/</user_files_path>\n<users_config>{folder}/users.xml</users_config>\n<default_profile>default</default_profile>\n<default_database>default</default_database>\n<mark_cache_size>536870912</mark_cache_size>\n<max_concurrent_queries>100</max_concurrent_queries>\n<max_table_size_to_drop>0</max_table_size_to_drop>\n<max_partition_size_to_drop>0</max_partition_size_to_drop>\n</yandex>\n"
    );
    let users = format!(
        "<yandex>\n<profiles><default/></profiles>\n<quotas><default/></quotas>\n<users><default><password>{password}</password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default></users>\n</yandex>\n"
    );
    (server, users)
}

/// Starts a server in a folder of its own; says how to reach it.
async fn start(
    context: &EngineContext,
    request: &SandboxRequest,
    program: &Path,
    words: &[&str],
    folder: &Path,
    user: Option<(u32, u32)>,
) -> Result<Target, EngineError> {
    fs::create_dir(folder).map_err(failed("making", folder))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
        .map_err(failed("closing", folder))?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(failed("looking for a port for the server in", folder))?
        .port();
    let password = format!("{}{}", random_word(), random_word());
    let (server, users) = configuration(folder, port, &password);
    for (name, text) in [("config.xml", server), ("users.xml", users)] {
        let path = folder.join(name);
        fs::write(&path, text).map_err(failed("writing to", folder))?;
        if let Some((user, group)) = user {
            chown(&path, Some(user), Some(group)).map_err(failed("giving away", folder))?;
        }
    }
    if let Some((user, group)) = user {
        chown(folder, Some(user), Some(group)).map_err(failed("giving away", folder))?;
    }
    context.fence.check().await?;
    let mut watchdog = Command::new("/bin/sh");
    watchdog
        .current_dir(folder)
        .args(["-c", WATCHDOG, "fettler-sandbox"])
        .arg(program)
        .args(words)
        .arg(format!(
            "--config-file={}",
            folder.join("config.xml").display()
        ))
        .env("CLICKHOUSE_WATCHDOG_ENABLE", "0")
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

    let text = format!("clickhouse://default@127.0.0.1:{port}/?sandbox=");
    let (url, _) =
        DatabaseUrl::parse_with_password(&text).map_err(|error| EngineError::Database {
            what: format!("the sandbox's own URL: {error}"),
            transient: false,
        })?;
    let target = Target {
        url,
        password: Some(Secret::new(password)),
    };
    let params = Params::of(&target)?;
    let give_up = Instant::now() + START_WAIT;
    loop {
        context.check_stop()?;
        match Session::of_attempt(&params, context).await {
            Ok(session) => {
                require_version(&session, request)?;
                return Ok(target);
            }
            Err(error) if Instant::now() > give_up => {
                let log = fs::read_to_string(folder.join("errors")).unwrap_or_default();
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

/// The server of a folder, if it runs: its id and when it started. A process that happens to have the id today works in
/// another folder.
fn process_of(folder: &Path) -> Option<(i32, u64)> {
    let text = fs::read_to_string(folder.join("pid")).ok()?;
    let id: i32 = text.trim().parse().ok()?;
    let command = fs::read_to_string(format!("/proc/{id}/cmdline")).ok()?;
    command
        .contains(&folder.display().to_string())
        .then(|| started(id).map(|started| (id, started)))?
}

/// When a process started, in the kernel's ticks since the machine did.
fn started(id: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold anything; after it, this is the twentieth field.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18)?.parse().ok())?
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
        // Nothing in it is to be kept.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_ours_is_never_dropped() {
        let (url, password) = DatabaseUrl::parse_with_password("clickhouse://127.0.0.1:1").unwrap();
        let server = Target { url, password };
        for (kind, name) in [
            ("database", "shop"),
            ("databases", PROOF_PREFIX),
            ("databases", ""),
        ] {
            let error = remove(
                &artefact(kind, name, serde_json::Value::Null),
                Some(&server),
            )
            .await
            .unwrap_err();
            // The server is not even there: it is looked for first.
            assert!(!error.to_string().is_empty());
        }
    }
}
