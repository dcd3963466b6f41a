//! Elasticsearch 8.19 and OpenSearch 3.8: the real servers, from their own jars, each on a folder of its own.
//!
//! Elasticsearch is its core and its HTTP layer: it has no security, no data streams, no lifecycle policies, no script language,
//! no ingest processors. OpenSearch has its modules, and no security either.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;

use crate::process::{Scratch, ServerProcess, User, log_tail};
use crate::{Result, ServerError, free_port, install, server_folder, wait_until};

/// How long a start may take on a machine that is busy with other tests.
const READY_WITHIN: Duration = Duration::from_secs(240);

/// How long an answer to one look may take, before it is asked again.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// How often a start is tried with other ports, when another process was quicker to take them.
const PORT_TRIES: u32 = 5;

/// The Java that Debian's package brings, for Elasticsearch.
const JAVA_17: &str = "/usr/lib/jvm/java-17-openjdk-amd64/bin/java";

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SearchKind {
    /// Elasticsearch 8.19, without the modules beside its core.
    Elasticsearch,
    /// OpenSearch 3.8, with its modules.
    OpenSearch,
}

/// A running server. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct SearchServer {
    // Dropped in this order: the process before its folder.
    process: Option<ServerProcess>,
    kind: SearchKind,
    settings: Vec<String>,
    port: u16,
    transport_port: u16,
    scratch: Scratch,
}

impl SearchServer {
    /// The server of this kind that all tests of a program share; it is started when it is asked for first.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn shared(kind: SearchKind) -> &'static Self {
        static SHARED: Mutex<Vec<&'static SearchServer>> = Mutex::new(Vec::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.iter().find(|server| server.kind == kind) {
            return server;
        }
        let server = Self::start(kind, &[])
            .unwrap_or_else(|error| panic!("{kind:?} cannot be started: {error}"));
        let server: &'static Self = Box::leak(Box::new(server));
        shared.push(server);
        server
    }

    /// Starts an empty server with these settings beside its own and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`ServerError::NotInstalled`]; [`ServerError::Start`] with the end of the server's log.
    pub fn start(kind: SearchKind, settings: &[(&str, &str)]) -> Result<Self> {
        let mut server = Self {
            process: None,
            kind,
            settings: settings
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            port: 0,
            transport_port: 0,
            scratch: Scratch::new("search", User::Current)?,
        };
        let mut tries = 0;
        loop {
            (server.port, server.transport_port) = (free_port(), free_port());
            tries += 1;
            match server.start_again() {
                Err(ServerError::Start { log, .. })
                    if tries < PORT_TRIES && log.contains("in use") => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(server),
            }
        }
    }

    /// Starts the server again after [`SearchServer::kill_9`], on the same port and folder, and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`ServerError::NotInstalled`]; [`ServerError::Start`] with the end of the server's log.
    pub fn start_again(&mut self) -> Result<()> {
        for folder in ["config", "plugins", "logs", "snapshots", "tmp"] {
            let folder = self.scratch.path().join(folder);
            std::fs::create_dir_all(&folder).map_err(ServerError::io("make a server's folder"))?;
        }
        let log = self.scratch.path().join("log");
        let mut process = ServerProcess::start(self.command()?, &log, Signal::KILL)?;
        let mut ended = None;
        let ready = wait_until("a search server to answer", READY_WITHIN, || {
            ended = process.ended().transpose();
            ended.is_some() || self.is_ready()
        });
        let why = match ended {
            Some(Ok(status)) => Some(status.to_string()),
            Some(Err(error)) => return Err(error),
            None => ready.err().map(|error| error.to_string()),
        };
        if let Some(why) = why {
            return Err(ServerError::Start {
                server: format!("{:?}", self.kind),
                why,
                log: log_tail(&log),
            });
        }
        self.process = Some(process);
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let place = |entry: &str| server_folder(entry);
        let scratch = self.scratch.path();
        let temporary = format!("-Djava.io.tmpdir={}", scratch.join("tmp").display());
        let mut command;
        match self.kind {
            SearchKind::Elasticsearch => {
                let installed = place("elasticsearch")?;
                command = User::Current.command(&install::program(PathBuf::from(JAVA_17))?, "KILL");
                command
                    .args(["-Xms512m", "-Xmx512m", &temporary])
                    .arg("--module-path")
                    .arg(installed.join("jars"))
                    .args(["--add-modules=ALL-MODULE-PATH,jdk.net", "-cp"])
                    .arg(installed.join("classes"))
                    .arg("StartElasticsearch")
                    .arg(scratch)
                    .arg(installed.join("modules"));
            }
            SearchKind::OpenSearch => {
                let installed = place("opensearch")?;
                command = User::Current.command(&java_of_opensearch(&installed)?, "KILL");
                command
                    .args(["-Xms512m", "-Xmx512m", &temporary, "-cp"])
                    .arg(format!(
                        "{}:{}/*",
                        installed.join("classes").display(),
                        installed.join("jars").display()
                    ))
                    .arg("StartOpenSearch")
                    .arg(scratch);
            }
        }
        let snapshots = scratch.join("snapshots");
        command
            .args([self.port.to_string(), self.transport_port.to_string()])
            // A test machine's disk may be nearly full, and is not the server's concern.
            .arg("cluster.routing.allocation.disk.threshold_enabled=false")
            .arg(format!("path.repo={}", snapshots.display()));
        if self.kind == SearchKind::Elasticsearch {
            // On such a disk it would also put off all merges, and a forced one would never end.
            command.arg("indices.merge.disk.check_interval=0s");
        }
        command.args(&self.settings);
        Ok(command)
    }

    fn is_ready(&self) -> bool {
        self.request("GET", "/_cluster/health", "")
            .is_ok_and(|(status, body)| status == 200 && body.contains("\"status\":\"green\""))
    }

    /// Sends a request as a client of the tests' own, and gives status and body of the answer. A body of several lines is sent
    /// as lines of JSON.
    ///
    /// # Errors
    ///
    /// [`ServerError::Io`] where the server does not answer.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let asked = || -> std::io::Result<(u16, String)> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_read_timeout(Some(READY_WITHIN.min(ANSWERS_WITHIN * 12)))?;
            let kind = if body.trim_end().contains('\n') {
                "application/x-ndjson"
            } else {
                "application/json"
            };
            write!(
                stream,
                "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            )?;
            stream.write_all(body.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            let border = answer
                .windows(4)
                .position(|four| four == b"\r\n\r\n")
                .ok_or(std::io::ErrorKind::UnexpectedEof)?;
            let head = String::from_utf8_lossy(&answer[..border]).into_owned();
            let mut body = answer[border + 4..].to_vec();
            // It sends long answers in chunks, also to a client that speaks HTTP 1.0.
            if head
                .to_ascii_lowercase()
                .contains("transfer-encoding: chunked")
            {
                body = without_chunks(&body).ok_or(std::io::ErrorKind::InvalidData)?;
            }
            let status = head
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok())
                .ok_or(std::io::ErrorKind::InvalidData)?;
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        asked().map_err(ServerError::io(format!("ask for {method} {path}")))
    }

    /// Kills the server as a power cut would.
    ///
    /// # Errors
    ///
    /// [`ServerError::Io`], [`ServerError::TimedOut`].
    pub fn kill_9(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill_9(),
            None => Ok(()),
        }
    }

    /// Which server it is.
    #[must_use]
    pub const fn kind(&self) -> SearchKind {
        self.kind
    }

    /// The port of its HTTP interface, on loopback.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = match self.kind {
            SearchKind::Elasticsearch => "elasticsearch",
            SearchKind::OpenSearch => "opensearch",
        };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }
}

/// A body that was sent in chunks.
fn without_chunks(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let line = body.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&body[..line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(body.get(line + 2..line + 2 + size)?);
        body = body.get(line + 2 + size + 2..)?;
    }
}

/// The Java that `install.sh` found or installed for OpenSearch.
fn java_of_opensearch(installed: &Path) -> Result<PathBuf> {
    let note = installed.join("java");
    let path = std::fs::read_to_string(&note)
        .map_err(ServerError::io(format!("read {}", note.display())))?;
    install::program(PathBuf::from(path.trim()))
}
