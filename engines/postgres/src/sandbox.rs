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
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use fettler_engine::{
    Artefact, EngineContext, EngineError, Sandbox, SandboxRequest, SandboxSpec, Target,
};
use fettler_model::{DatabaseUrl, Engine, Secret};
use fettler_private_server::{
    Place, PrivateServer, Process, User, free_bytes_of, make_folder, wait_until_ready,
};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

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
/// Where private servers are.
const PLACE: Place = Place {
    prefix: "pg-",
    socket: ".s.PGSQL.5432",
};
/// How long a server may take to start.
const START_WAIT: Duration = Duration::from_secs(60);
/// How long it may take to start on what an earlier attempt left, and to replay that server's log.
const RECOVERY_WAIT: Duration = Duration::from_secs(600);
/// Where the kernel tells one start of the machine from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
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
        /// Once it runs.
        process: Option<Process>,
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
    let folder = PLACE.folder(context, user)?;
    let needed = request
        .estimated_bytes
        .saturating_mul(3)
        .div_euclid(2)
        .saturating_add(SPACE_BASE_BYTES);
    let base = folder.parent().unwrap_or(&folder);
    let free = free_bytes_of(base)?;
    if free < needed {
        return Err(EngineError::NoSpace {
            place: base.display().to_string(),
            free_bytes: free,
            needed_bytes: needed,
        });
    }
    let name = format!("{} {}", context.attempt, folder.display());
    let artefact = server_artefact(&name, &folder, None);
    context.artefacts.record(&artefact).await?;
    let private = private_server(folder, user);
    let made = async {
        make(context, &server.path, &private).await?;
        start(context, &server.path, &private, START_WAIT).await
    };
    let process = match made.await {
        Ok(process) => process,
        Err(error) => {
            remove(&artefact, None).await?;
            context.artefacts.removed(&artefact).await?;
            return Err(error);
        }
    };
    let artefact = server_artefact(&name, &private.folder, process);
    context.artefacts.record(&artefact).await?;
    Ok(Sandbox {
        target: private_target(&private.folder, DATABASE)?,
        artefacts: vec![artefact],
        continued: false,
    })
}

/// The server of a folder. What it keeps is replayed from its log.
const fn private_server(folder: PathBuf, user: Option<User>) -> PrivateServer {
    PrivateServer {
        folder,
        user,
        stop: Signal::QUIT,
    }
}

/// The server of a cluster, if it runs.
fn process_of(data: &Path) -> Option<Process> {
    Process::of_server(&data.join("postmaster.pid"), data)
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
    user: Option<User>,
) -> Result<Sandbox, EngineError> {
    context.artefacts.record(left).await?;
    let server = private_server(folder, user);
    server.end(process_of(&server.folder.join("data"))).await?;
    let process = start(context, postgres, &server, RECOVERY_WAIT).await?;
    let artefact = server_artefact(&left.name, &server.folder, process);
    context.artefacts.record(&artefact).await?;
    Ok(Sandbox {
        target: private_target(&server.folder, DATABASE)?,
        artefacts: vec![artefact],
        continued: true,
    })
}

fn server_artefact(name: &str, folder: &Path, process: Option<Process>) -> Artefact {
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

/// Whom the server runs as. PostgreSQL refuses to run as root.
fn run_as() -> Result<Option<User>, EngineError> {
    match User::first_of(&["postgres", "nobody"]) {
        None if User::may_be_chosen() => Err(EngineError::Missing {
            code: "user",
            what: "PostgreSQL does not run as root, and this machine has neither a user postgres nor nobody".to_owned(),
            remedy: "run Fettler as another user, or make a user postgres".to_owned(),
        }),
        user => Ok(user),
    }
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
    server: &PrivateServer,
) -> Result<(), EngineError> {
    let folder = &server.folder;
    let failed = |what: &str| failed(what, folder);
    make_folder(folder, server.user)?;
    let data = folder.join("data");
    let mut said = String::new();
    for locale in ["C.UTF-8", "C"] {
        let mut initdb = server.command(&postgres.with_file_name("initdb"));
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
    server: &PrivateServer,
    within: Duration,
) -> Result<Option<Process>, EngineError> {
    let data = server.folder.join("data");
    context.fence.check().await?;
    server.start(postgres, [OsStr::new("-D"), data.as_os_str()])?;
    let params = Params::of(&private_target(&server.folder, "postgres")?)?;
    let session = wait_until_ready(context, server, within, || connect(&params, VISITOR)).await?;
    session.close().await;
    Ok(process_of(&data))
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
        } => remove_server(folder, process).await,
        Made::Database { role } => remove_database(&artefact.name, role.as_deref(), server).await,
    }
}

async fn remove_server(folder: PathBuf, process: Option<Process>) -> Result<(), EngineError> {
    let process = process
        .filter(|process| process.runs())
        .or_else(|| process_of(&folder.join("data")));
    private_server(folder, None).remove(PLACE, process).await
}

/// Ends what runs in a sandbox, and keeps its folder. A server that another attempt has started there since is left alone.
pub(crate) async fn leave(sandbox: &Sandbox) -> Result<(), EngineError> {
    for artefact in &sandbox.artefacts {
        if let Ok(Made::Server {
            folder,
            process: Some(process),
            ..
        }) = Made::deserialize(&artefact.data)
            && process.runs()
        {
            private_server(folder, None).end(Some(process)).await?;
        }
    }
    Ok(())
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
            remedy: crate::grants::make_databases(&params.user),
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
}
