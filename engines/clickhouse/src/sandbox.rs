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
    ffi::OsString,
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

use fettler_engine::{
    Artefact, EngineContext, EngineError, Sandbox, SandboxRequest, SandboxSpec, Target,
};
use fettler_model::{DatabaseUrl, Engine, Secret};
use fettler_private_server::{Place, PrivateServer, Process, User, make_folder, wait_until_ready};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    catalogue::{PROOF_PREFIX, SCRATCH_PREFIX},
    freeze,
    http::{Session, numbers_of, random_word},
    identify,
    params::Params,
    shadow::drop_database,
    sql::quoted,
};

/// What the server's program is called, and what it is to be told first.
const PROGRAMS: [(&str, &[&str]); 2] = [("clickhouse-server", &[]), ("clickhouse", &["server"])];
/// Where private servers are. Every process may look for a port, so that there is no socket whose path would have to fit.
const PLACE: Place = Place {
    prefix: "clickhouse-",
    socket: "",
};
/// The server is to be one process, which ends when it is told to.
const WITHOUT_WATCHDOG: &str = "CLICKHOUSE_WATCHDOG_ENABLE=0";
/// How long a server may take to start.
const START_WAIT: Duration = Duration::from_secs(60);
/// What is recorded of a private server.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct MadeServer {
    folder: PathBuf,
    /// Once it runs.
    process: Option<Process>,
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
    // A proof of a cluster has all its rows on one server.
    let kept: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| name != "cluster")
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    url.query_pairs_mut()
        .clear()
        .extend_pairs(kept)
        .append_pair("sandbox", prefix);
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
        let server = private_server(made.folder, None);
        let process = made.process.filter(|process| process.runs());
        let process = process.or_else(|| server.process());
        return server.remove(PLACE, process).await;
    }
    let server = server.ok_or_else(|| EngineError::Missing {
        code: "server",
        what: format!(
            "the server of {} {} is not known",
            artefact.kind, artefact.name
        ),
        remedy: "drop it by hand".to_owned(),
    })?;
    let mut params = Params::of(server)?;
    // A shard's server, which the cluster's own named.
    if let Some(host) = artefact.data["host"].as_str() {
        params = params.of_other(host)?;
    }
    let session = Session::visit(&params).await?;
    let is_ours =
        artefact.name.starts_with(SCRATCH_PREFIX) || artefact.name.starts_with(PROOF_PREFIX);
    match artefact.kind.as_str() {
        "database" if is_ours => {
            drop_database(&session, &artefact.name).await?;
            freeze::remove(&session, &artefact.name).await
        }
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
    let user = User::first_of(&["clickhouse", "nobody"]);
    let folder = PLACE.folder(context, user)?;
    let name = format!("{} {}", context.attempt, folder.display());
    let recorded = server_artefact(&name, &folder, None);
    context.artefacts.record(&recorded).await?;
    let server = private_server(folder, user);
    let started = start(context, request, &program, words, &server).await;
    let recorded = server_artefact(&name, &server.folder, server.process());
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

/// The server of a folder. It keeps nothing, so that it can be killed.
const fn private_server(folder: PathBuf, user: Option<User>) -> PrivateServer {
    PrivateServer {
        folder,
        user,
        stop: Signal::KILL,
    }
}

fn server_artefact(name: &str, folder: &Path, process: Option<Process>) -> Artefact {
    let made = MadeServer {
        folder: folder.to_owned(),
        process,
    };
    let data = serde_json::to_value(&made).expect("plain data can be JSON");
    artefact("server", name, data)
}

/// The two files of a server's configuration. The root element's old name is understood by all versions.
fn configuration(folder: &Path, port: u16, password: &str) -> (String, String) {
    let folder = folder.display();
    let server = format!(
        "<yandex>\n<logger><level>warning</level><log>{folder}/messages</log><errorlog>{folder}/errors</errorlog></logger>\n<http_port>{port}</http_port>\n<listen_host>127.0.0.1</listen_host>\n<path>{folder}/data/</path>\n<tmp_path>{folder}/tmp/</tmp_path>\n<user_files_path>{folder}/files/</user_files_path>\n<users_config>{folder}/users.xml</users_config>\n<default_profile>default</default_profile>\n<default_database>default</default_database>\n<mark_cache_size>536870912</mark_cache_size>\n<max_concurrent_queries>100</max_concurrent_queries>\n<max_table_size_to_drop>0</max_table_size_to_drop>\n<max_partition_size_to_drop>0</max_partition_size_to_drop>\n</yandex>\n"
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
    server: &PrivateServer,
) -> Result<Target, EngineError> {
    let folder = &server.folder;
    let failed = |what: &str| {
        let what = format!("{what} {}", folder.display());
        move |error| EngineError::local(what, error)
    };
    make_folder(folder, server.user)?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(failed("looking for a port for the server in"))?
        .port();
    let password = format!("{}{}", random_word(), random_word());
    let (settings, users) = configuration(folder, port, &password);
    for (name, text) in [("config.xml", settings), ("users.xml", users)] {
        let path = folder.join(name);
        fs::write(&path, text).map_err(failed("writing to"))?;
        if let Some(user) = server.user {
            chown(&path, Some(user.id), Some(user.group)).map_err(failed("giving away"))?;
        }
    }
    context.fence.check().await?;
    let mut arguments: Vec<OsString> = vec![WITHOUT_WATCHDOG.into(), program.into()];
    arguments.extend(words.iter().map(OsString::from));
    let mut file = OsString::from("--config-file=");
    file.push(folder.join("config.xml"));
    arguments.push(file);
    server.start(Path::new("/usr/bin/env"), arguments)?;

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
    let session = wait_until_ready(context, server, START_WAIT, || {
        Session::of_attempt(&params, context)
    })
    .await?;
    require_version(&session, request)?;
    Ok(target)
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
