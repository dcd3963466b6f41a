//! Two servers of MongoDB's protocol, since MongoDB's own cannot be had on a test machine: one in Java, in memory and with an
//! oplog, and FerretDB over PostgreSQL, without one.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::postgres::{PgMajor, PostgresServer, TestDatabase};
use crate::process::{Scratch, ServerProcess, User, log_tail};
use crate::{Result, ServerError, free_port, install, server_folder, wait_until};

/// How long a start may take on a machine that is busy with other tests.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Where Debian's package puts Java.
const JAVA: &str = "/usr/bin/java";

/// Memory of the Java server in MiB.
const JAVA_MEGABYTES: u32 = 1024;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MongodbKind {
    /// In Java, in memory, with an oplog; without users, sessions, transactions, and `min` and `max` (which it ignores).
    WithOplog,
    /// FerretDB over PostgreSQL; without an oplog, views, TTL, `Decimal128`, `NaN`, code, `MinKey`, and `min` and `max` (which
    /// it ignores). Its users are PostgreSQL's.
    OnDisk,
}

impl MongodbKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::WithOplog, Self::OnDisk];
}

/// A running server. Dropping it kills it and removes what it kept.
#[derive(Debug)]
pub struct MongodbServer {
    // Dropped in this order: the process before what it uses.
    process: Option<ServerProcess>,
    kind: MongodbKind,
    megabytes: u32,
    port: u16,
    database: Option<TestDatabase>,
    scratch: Scratch,
}

impl MongodbServer {
    /// Starts an empty server and waits until it takes connections.
    ///
    /// # Errors
    ///
    /// [`ServerError::NotInstalled`]; [`ServerError::Start`] with the end of the server's log.
    pub fn start(kind: MongodbKind) -> Result<Self> {
        Self::start_with(kind, JAVA_MEGABYTES)
    }

    /// Starts the one in memory with so many MiB of it.
    ///
    /// # Errors
    ///
    /// As [`MongodbServer::start`].
    pub fn start_with_memory(megabytes: u32) -> Result<Self> {
        Self::start_with(MongodbKind::WithOplog, megabytes)
    }

    fn start_with(kind: MongodbKind, megabytes: u32) -> Result<Self> {
        let database = match kind {
            MongodbKind::WithOplog => None,
            MongodbKind::OnDisk => {
                Some(PostgresServer::shared(PgMajor::V18).create_database("ferretdb")?)
            }
        };
        let mut server = Self {
            process: None,
            kind,
            megabytes,
            port: free_port(),
            database,
            scratch: Scratch::new("mongodb", User::Current)?,
        };
        server.start_again()?;
        Ok(server)
    }

    /// Starts the server again after [`MongodbServer::kill_9`], on the same port. The one in memory is empty then. Nothing
    /// happens where it runs.
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
        let command = self.command()?;
        let log = self.scratch.path().join("log");
        let mut process = ServerProcess::start(command, &log, Signal::KILL)?;
        let mut ended = None;
        let ready = wait_until("a MongoDB server to answer", READY_WITHIN, || {
            ended = process.ended().transpose();
            ended.is_some() || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
        });
        let why = match ended {
            Some(Ok(status)) => Some(status.to_string()),
            Some(Err(error)) => return Err(error),
            None => ready.err().map(|error| error.to_string()),
        };
        if let Some(why) = why {
            return Err(ServerError::Start {
                server: format!("MongoDB ({:?})", self.kind),
                why,
                log: log_tail(&log),
            });
        }
        self.process = Some(process);
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        match &self.database {
            None => {
                let folder = server_folder("mongodb-java")?;
                let java = install::program(PathBuf::from(JAVA))?;
                let mut command = User::Current.command(&java, "KILL");
                let classes = |part: &str| folder.join(part).display().to_string();
                command
                    .arg(format!("-Xmx{}m", self.megabytes))
                    .args([
                        "-cp",
                        &format!("{}:{}", classes("jars/*"), classes("classes")),
                    ])
                    .args(["Launch", &self.port.to_string()]);
                Ok(command)
            }
            Some(database) => {
                let program = server_folder("ferretdb/ferretdb")?;
                let program: &Path = &program;
                let mut command = User::Current.command(program, "KILL");
                command
                    .arg(format!("127.0.0.1:{}", self.port))
                    .arg(database.url());
                Ok(command)
            }
        }
    }

    /// Kills the server at once and waits until it is gone.
    ///
    /// # Errors
    ///
    /// [`ServerError::TimedOut`] where it does not go.
    pub fn kill_9(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill_9(),
            None => Ok(()),
        }
    }

    /// Which server it is.
    #[must_use]
    pub fn kind(&self) -> MongodbKind {
        self.kind
    }

    /// The loopback port; it stays the same over starts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL, such as `mongodb://127.0.0.1:20312/`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_via(self.port)
    }

    /// The same with another port: that of a proxy before this server.
    #[must_use]
    pub fn url_via(&self, port: u16) -> String {
        format!("mongodb://127.0.0.1:{port}/")
    }

    /// The URL of a user of PostgreSQL's, whom FerretDB lets in by the same password.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        let password: String = password
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect();
        format!(
            "mongodb://{user}:{password}@127.0.0.1:{}/?authMechanism=PLAIN",
            self.port
        )
    }
}
