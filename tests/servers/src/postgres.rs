//! PostgreSQL 15 (Debian's) and 18, as real servers: `initdb` into a folder of their own, TCP on loopback and a Unix socket,
//! passwords checked by SCRAM on both.
//!
//! By default nothing is synced to disk, which makes tests several times faster and still survives every `kill -9`: what a
//! process has written is in the system's cache. [`PostgresOptions::durable`] switches that off for measurements.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;

use crate::process::{Scratch, ServerProcess, User, log_tail, run};
use crate::{Result, ServerError, free_port, install, wait_until};

/// The superuser of every server.
const SUPERUSER: &str = "postgres";

/// Its password, with characters that a URL must escape, so that no test passes by luck.
const PASSWORD: &str = "s3cret/of:tests@home";

/// How long a start may take: recovery after `kill -9` included, on a machine that is busy with other tests.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long a stop in good order may take; it ends with a checkpoint.
const STOPPED_WITHIN: Duration = Duration::from_secs(120);

/// How often a start is tried with another port, when another process was quicker to take it.
const PORT_TRIES: u32 = 5;

/// A major version of PostgreSQL that tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PgMajor {
    /// Debian 12's: complete, with ICU, TLS, lz4 and zstd.
    V15,
    /// The newest: built without TLS, ICU, lz4 and zstd.
    V18,
}

impl PgMajor {
    /// All of them, oldest first, for tests that run on each.
    pub const ALL: [Self; 2] = [Self::V15, Self::V18];

    /// The number.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::V15 => 15,
            Self::V18 => 18,
        }
    }

    /// The folder with this version's programs: `pg_dump`, `psql`, `pgbench` and so on.
    ///
    /// # Errors
    ///
    /// [`ServerError::NotInstalled`].
    pub fn bin_dir(self) -> Result<PathBuf> {
        match self {
            Self::V15 => {
                install::program(Path::new(install::POSTGRES_15).join("postgres"))?;
                Ok(PathBuf::from(install::POSTGRES_15))
            }
            Self::V18 => install::server_folder("postgresql-18/bin"),
        }
    }
}

/// How a server is set up.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    settings: Vec<(String, String)>,
    initdb_arguments: Vec<String>,
    durable: bool,
    tls: bool,
    environment: Vec<(String, String)>,
}

impl PostgresOptions {
    /// Quick, not durable, no TLS, UTF-8 with the locale `C.UTF-8`, page checksums on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a parameter of `postgresql.conf`, over this crate's own choice where there is one.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Hands `initdb` an argument, such as `--wal-segsize=64` or `--locale=de_DE.UTF-8`.
    #[must_use]
    pub fn initdb_argument(mut self, argument: impl Into<String>) -> Self {
        self.initdb_arguments.push(argument.into());
        self
    }

    /// Syncs to disk as a server in production does: for measurements.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Offers TLS, with a certificate for `localhost` and `127.0.0.1` that signs itself (see
    /// [`PostgresServer::certificate`]). PostgreSQL 15 only.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }
}

/// A running server. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct PostgresServer {
    // Dropped in this order: the process before its folder.
    process: Option<ServerProcess>,
    client: Client,
    major: PgMajor,
    options: PostgresOptions,
    scratch: Scratch,
}

impl PostgresServer {
    /// Makes a cluster, starts a server on it, and waits until it takes connections.
    ///
    /// # Errors
    ///
    /// [`ServerError::NotInstalled`] where this version is missing; [`ServerError::Start`] with the end of the server's log.
    pub fn start(major: PgMajor, options: PostgresOptions) -> Result<Self> {
        let bin_dir = major.bin_dir()?;
        if options.tls && major == PgMajor::V18 {
            return Err(ServerError::Unsupported(
                "the tests' PostgreSQL 18 is built without TLS; use PgMajor::V15 for tests of TLS"
                    .to_owned(),
            ));
        }
        let user = User::for_postgres();
        let scratch = Scratch::new(&format!("pg{}", major.number()), user)?;
        let mut server = Self {
            process: None,
            client: Client {
                bin_dir,
                port: 0,
                socket_dir: scratch.path().to_path_buf(),
            },
            major,
            options,
            scratch,
        };
        server.init(user)?;
        let mut tries = 0;
        loop {
            server.client.port = free_port();
            tries += 1;
            match server.start_again() {
                Err(ServerError::Start { log, .. })
                    if tries < PORT_TRIES && log.contains("Address already in use") => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(server),
            }
        }
    }

    /// The server that all tests of this binary share, started by the first that asks: with the options of
    /// [`PostgresOptions::new`] and `wal_level = logical`. It ends with the process. Tests keep apart by
    /// [`PostgresServer::create_database`]; one that makes roles names them after its database.
    ///
    /// # Panics
    ///
    /// When it cannot be started; the message says why.
    #[must_use]
    pub fn shared(major: PgMajor) -> &'static Self {
        static SHARED: Mutex<Option<HashMap<PgMajor, &'static PostgresServer>>> = Mutex::new(None);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = shared.get_or_insert_default();
        shared.entry(major).or_insert_with(|| {
            let options = PostgresOptions::new()
                .setting("wal_level", "logical")
                .setting("max_connections", "200");
            match Self::start(major, options) {
                Ok(server) => Box::leak(Box::new(server)),
                Err(error) => panic!("{error}"),
            }
        })
    }

    fn init(&self, user: User) -> Result<()> {
        let password_file = self.scratch.path().join("password");
        write(&password_file, PASSWORD)?;
        user.own(&password_file)?;
        let mut command = user.command(&self.client.bin_dir.join("initdb"), "KILL");
        command
            .args([
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--auth=scram-sha-256",
                "--data-checksums",
            ])
            .arg(format!("--username={SUPERUSER}"))
            .arg(format!("--pwfile={}", password_file.display()))
            .arg(format!("--pgdata={}", self.data_dir().display()))
            .args(&self.options.initdb_arguments)
            .current_dir("/");
        without_pg_variables(&mut command);
        run(command, "initdb", "")?;
        if self.options.tls {
            self.make_certificate(user)?;
        }
        let path = self.data_dir().join("postgresql.conf");
        let mut configuration = std::fs::read_to_string(&path)
            .map_err(ServerError::io(format!("read {}", path.display())))?;
        configuration.push_str(&self.configuration());
        write(&path, &configuration)
    }

    /// What this crate adds to `postgresql.conf`; the last line of a parameter counts.
    fn configuration(&self) -> String {
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            (
                "unix_socket_directories",
                self.scratch.path().display().to_string(),
            ),
            ("shared_buffers", "64MB".to_owned()),
            ("max_wal_size", "2GB".to_owned()),
            ("lc_messages", "C".to_owned()),
            ("log_line_prefix", "%m [%p] %u@%d ".to_owned()),
        ];
        if !self.options.durable {
            let quick = ["fsync", "synchronous_commit", "full_page_writes"];
            settings.extend(quick.map(|name| (name, "off".to_owned())));
        }
        if self.options.tls {
            settings.push(("ssl", "on".to_owned()));
            settings.push((
                "ssl_cert_file",
                self.certificate_path().display().to_string(),
            ));
            settings.push((
                "ssl_key_file",
                self.scratch.path().join("server.key").display().to_string(),
            ));
        }
        settings.extend(
            self.options
                .settings
                .iter()
                .map(|(name, value)| (name.as_str(), value.clone())),
        );
        let lines = settings
            .iter()
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")));
        std::iter::once("\n".to_owned()).chain(lines).collect()
    }

    fn make_certificate(&self, user: User) -> Result<()> {
        let key = self.scratch.path().join("server.key");
        let mut command = user.command(Path::new("openssl"), "KILL");
        command
            .args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "30",
                "-subj",
                "/CN=localhost",
            ])
            .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(self.certificate_path())
            .current_dir("/");
        run(command, "openssl", "").map(drop)
    }

    fn certificate_path(&self) -> PathBuf {
        self.scratch.path().join("server.crt")
    }

    /// What the server's environment holds beside this process' own, from its next start on.
    pub fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.options.environment = environment;
    }

    /// Starts the server again after [`PostgresServer::stop`] or [`PostgresServer::kill_9`], on the same port, and waits
    /// until it takes connections. Nothing happens where it runs.
    ///
    /// # Errors
    ///
    /// [`ServerError::Start`] with the end of the server's log.
    pub fn start_again(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process
            && process.ended()?.is_none()
        {
            return Ok(());
        }
        // Set by the server's own user: what a library that it names makes must be this user's.
        let mut command = User::for_postgres().command(Path::new("env"), "QUIT");
        let environment = self.options.environment.iter();
        command
            .args(environment.map(|(name, value)| format!("{name}={value}")))
            .arg(self.client.bin_dir.join("postgres"))
            .arg("-D")
            .arg(self.data_dir())
            .arg("-p")
            .arg(self.port().to_string());
        without_pg_variables(&mut command);
        let mut process = ServerProcess::start(command, &self.log_path(), Signal::QUIT)?;
        let mut ended = None;
        let ready = wait_until("PostgreSQL to take connections", READY_WITHIN, || {
            ended = process.ended().transpose();
            ended.is_some() || self.is_ready(process.id())
        });
        let why = match ended {
            Some(Ok(status)) => Some(status.to_string()),
            Some(Err(error)) => return Err(error),
            None => ready.err().map(|error| error.to_string()),
        };
        if let Some(why) = why {
            return Err(ServerError::Start {
                server: format!("PostgreSQL {}", self.major.number()),
                why,
                log: log_tail(&self.log_path()),
            });
        }
        self.process = Some(process);
        Ok(())
    }

    /// The server writes its state to the eighth line of its PID file; `pg_ctl` goes by the same.
    fn is_ready(&self, id: u32) -> bool {
        let Ok(file) = std::fs::read_to_string(self.data_dir().join("postmaster.pid")) else {
            return false;
        };
        let mut lines = file.lines();
        lines.next() == Some(id.to_string().as_str())
            && lines.nth(6).is_some_and(|state| state.trim() == "ready")
    }

    /// Stops the server in good order: connections are ended, a checkpoint is written. Nothing happens where it is stopped.
    ///
    /// # Errors
    ///
    /// [`ServerError::TimedOut`] where it does not stop.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.end(Signal::INT, STOPPED_WITHIN),
            None => Ok(()),
        }
    }

    /// Stops the server in good order and starts it again on the same port.
    ///
    /// # Errors
    ///
    /// As [`PostgresServer::stop`] and [`PostgresServer::start_again`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Kills the server and all of its backends at once, as a power cut would, and waits until they are gone.
    ///
    /// # Errors
    ///
    /// [`ServerError::TimedOut`] where they do not go.
    pub fn kill_9(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill_9(),
            None => Ok(()),
        }
    }

    /// The process id of the server; `None` while it is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(ServerProcess::id)
    }

    /// The version.
    #[must_use]
    pub fn major(&self) -> PgMajor {
        self.major
    }

    /// The loopback port; it stays the same over stops and starts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.client.port
    }

    /// The superuser's name.
    #[must_use]
    pub fn user(&self) -> &'static str {
        SUPERUSER
    }

    /// The superuser's password, unescaped.
    #[must_use]
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// The URL of a database over TCP, for the superuser, with the password.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.client.url(database)
    }

    /// The same through another port: that of a proxy before this server.
    #[must_use]
    pub fn url_via(&self, port: u16, database: &str) -> String {
        Client {
            port,
            ..self.client.clone()
        }
        .url(database)
    }

    /// The URL of a database over TCP for another role.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str, database: &str) -> String {
        self.client.url_as(user, password, database)
    }

    /// The URL of a database over the Unix socket, for the superuser, with the password.
    #[must_use]
    pub fn socket_url(&self, database: &str) -> String {
        format!(
            "postgres://{SUPERUSER}:{}@/{}?host={}&port={}",
            escape(PASSWORD),
            escape(database),
            escape(&self.client.socket_dir.display().to_string()),
            self.port()
        )
    }

    /// The folder with this version's programs.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.client.bin_dir
    }

    /// The cluster's folder.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// The certificate that clients trust, in PEM, where the server was started with [`PostgresOptions::tls`].
    #[must_use]
    pub fn certificate(&self) -> Option<PathBuf> {
        self.options.tls.then(|| self.certificate_path())
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// All that the server has logged.
    ///
    /// # Errors
    ///
    /// [`ServerError::Io`] where the file cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes =
            std::fs::read(self.log_path()).map_err(ServerError::io("read the server's log"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Runs SQL by `psql`, statement by statement, and stops at the first error. Gives back what it prints: a line a row,
    /// fields parted by `|`, without headings and without the last line's end.
    ///
    /// # Errors
    ///
    /// [`ServerError::Command`] with what `psql` said.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        self.client.psql(&self.url(database), sql)
    }

    /// Runs one of this version's programs (`pgbench`, `pg_dump`, …) as the superuser and gives back what it prints. The
    /// connection comes from the environment; the database is `database` unless the arguments name one.
    ///
    /// # Errors
    ///
    /// [`ServerError::NotInstalled`] or [`ServerError::Command`] with what the program said.
    pub fn run(&self, program: &str, database: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program, database)?;
        command.args(arguments);
        run(command, program, "")
    }

    /// The command behind [`PostgresServer::run`], for a test that lets it run beside other things.
    ///
    /// # Errors
    ///
    /// [`ServerError::NotInstalled`].
    pub fn command(&self, program: &str, database: &str) -> Result<Command> {
        let mut command = Command::new(install::program(self.client.bin_dir.join(program))?);
        without_pg_variables(&mut command);
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port().to_string())
            .env("PGUSER", SUPERUSER)
            .env("PGPASSWORD", PASSWORD)
            .env("PGDATABASE", database);
        Ok(command)
    }

    /// Makes an empty database whose name starts with `prefix`. It is dropped, with whoever is connected to it, when the
    /// value is.
    ///
    /// # Errors
    ///
    /// [`ServerError::Command`] with what the server said.
    pub fn create_database(&self, prefix: &str) -> Result<TestDatabase> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}_{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        // From template0, which nobody can be connected to: copies of it are made beside each other.
        self.psql(
            "postgres",
            &format!("CREATE DATABASE {} TEMPLATE template0", quote(&name)),
        )?;
        Ok(TestDatabase {
            name,
            client: self.client.clone(),
        })
    }
}

/// A database of one test. Dropping it drops the database.
#[derive(Debug)]
pub struct TestDatabase {
    name: String,
    client: Client,
}

impl TestDatabase {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its URL over TCP, for the superuser, with the password.
    #[must_use]
    pub fn url(&self) -> String {
        self.client.url(&self.name)
    }

    /// Its URL over TCP for another role.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.client.url_as(user, password, &self.name)
    }

    /// Runs SQL in it, as [`PostgresServer::psql`] does.
    ///
    /// # Errors
    ///
    /// [`ServerError::Command`] with what `psql` said.
    pub fn psql(&self, sql: &str) -> Result<String> {
        self.client.psql(&self.url(), sql)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // A server that the test has stopped or killed takes the database with it when it is dropped.
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote(&self.name));
        let _ = self.client.psql(&self.client.url("postgres"), &drop);
    }
}

/// What it takes to reach a server.
#[derive(Clone, Debug)]
struct Client {
    bin_dir: PathBuf,
    port: u16,
    socket_dir: PathBuf,
}

impl Client {
    fn url(&self, database: &str) -> String {
        self.url_as(SUPERUSER, PASSWORD, database)
    }

    fn url_as(&self, user: &str, password: &str, database: &str) -> String {
        format!(
            "postgres://{}:{}@127.0.0.1:{}/{}",
            escape(user),
            escape(password),
            self.port,
            escape(database)
        )
    }

    fn psql(&self, url: &str, sql: &str) -> Result<String> {
        let mut command = Command::new(self.bin_dir.join("psql"));
        without_pg_variables(&mut command);
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-f",
            "-",
            "-d",
            url,
        ]);
        let mut output = run(command, "psql", sql)?;
        if output.ends_with('\n') {
            output.pop();
        }
        Ok(output)
    }
}

/// Whoever runs the tests may have `PGHOST` and its like set; a test must not connect there.
fn without_pg_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PG")) {
            command.env_remove(name);
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(ServerError::io(format!("write {}", path.display())))
}

/// Percent-encodes all but the characters that are plain in every part of a URL.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
