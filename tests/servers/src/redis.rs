//! Redis: the real server on a folder of its own. It keeps nothing over `kill -9` unless a test asks for its log of
//! commands, so that what a Redis without persistence loses is lost here too.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::install::REDIS_SERVER;
use crate::process::{Scratch, ServerProcess, User, log_tail};
use crate::{Result, ServerError, free_port, install, wait_until};

/// How long a start may take on a machine that is busy with other tests.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long an answer to one look may take, before it is asked again.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// How long a stop in good order may take.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// How often a start is tried with another port, when another process was quicker to take it.
const PORT_TRIES: u32 = 5;

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    password: Option<String>,
    persistent: bool,
    settings: Vec<(String, String)>,
    /// Settings that are a free port each.
    ports: Vec<String>,
    /// The port of the server to watch, and what it is called.
    watches: Option<(u16, String)>,
}

impl RedisOptions {
    /// No password, nothing kept on disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks clients for a password; a sentinel and a replica give it to the servers instead. It must be plain: it stands in
    /// the URL as it is.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Writes every command to disk before it is answered, so that all is there after `kill -9`.
    #[must_use]
    pub fn persistent(mut self) -> Self {
        self.persistent = true;
        self
    }

    /// A sentinel that watches the server on this loopback port under this name, alone, and replaces it by a replica when it
    /// has been gone for half a second.
    #[must_use]
    pub fn sentinel_of(mut self, port: u16, service: &str) -> Self {
        self.watches = Some((port, service.to_owned()));
        self
    }

    /// One more setting, as in `redis.conf`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A setting that is a port of the server's own, such as `tls-port`: a free one, which [`RedisServer::port_of`] tells.
    #[must_use]
    pub fn port_setting(mut self, name: &str) -> Self {
        self.ports.push(name.to_owned());
        self
    }
}

/// A running Redis. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct RedisServer {
    // Dropped in this order: the process before its folder.
    process: Option<ServerProcess>,
    program: PathBuf,
    options: RedisOptions,
    port: u16,
    /// The ports of [`RedisOptions::port_setting`], by the setting's name.
    other_ports: Vec<(String, u16)>,
    scratch: Scratch,
}

impl RedisServer {
    /// Starts an empty server and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`ServerError::NotInstalled`]; [`ServerError::Start`] with the end of the server's log.
    pub fn start(options: RedisOptions) -> Result<Self> {
        let plain = |text: &String| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !options.password.as_ref().is_none_or(plain) {
            return Err(ServerError::Unsupported(
                "the password of a test's Redis is made of letters and digits".to_owned(),
            ));
        }
        let program = install::program(PathBuf::from(REDIS_SERVER))?;
        let scratch = Scratch::new("redis", User::Current)?;
        let mut server = Self {
            process: None,
            program,
            options,
            port: 0,
            other_ports: Vec::new(),
            scratch,
        };
        let mut tries = 0;
        loop {
            server.port = free_port();
            server.other_ports = server
                .options
                .ports
                .iter()
                .map(|name| (name.clone(), free_port()))
                .collect();
            tries += 1;
            match server.start_again() {
                Err(ServerError::Start { log, .. })
                    if tries < PORT_TRIES && log.contains("in use") => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(server),
            }
        }
    }

    /// Starts the server again after [`RedisServer::stop`] or [`RedisServer::kill_9`], on the same port and folder, and
    /// waits until it answers. Nothing happens where it runs.
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
        let mut command = User::Current.command(&self.program, "KILL");
        if let Some((port, service)) = &self.options.watches {
            // A sentinel writes what it learns into its configuration.
            let path = self.scratch.path().join("sentinel.conf");
            let mut text = format!(
                "sentinel monitor {service} 127.0.0.1 {port} 1\nsentinel down-after-milliseconds {service} 500\nsentinel failover-timeout {service} 5000\n"
            );
            if let Some(password) = &self.options.password {
                text.push_str(&format!("sentinel auth-pass {service} {password}\n"));
            }
            std::fs::write(&path, text).map_err(ServerError::io("configure a sentinel"))?;
            command.arg(path).arg("--sentinel");
        }
        command
            .args(["--bind", "127.0.0.1", "--daemonize", "no"])
            .args(["--port", &self.port.to_string()])
            .arg("--dir")
            .arg(self.scratch.path());
        if self.options.watches.is_none() {
            command.args(["--save", ""]);
        }
        if let Some(password) = &self.options.password
            && self.options.watches.is_none()
        {
            command.args(["--requirepass", password, "--masterauth", password]);
        }
        if self.options.persistent {
            command.args(["--appendonly", "yes", "--appendfsync", "always"]);
        }
        for (name, value) in &self.options.settings {
            command.args([&format!("--{name}"), value]);
        }
        for (name, port) in &self.other_ports {
            command.args([format!("--{name}"), port.to_string()]);
        }
        let log = self.scratch.path().join("log");
        let mut process = ServerProcess::start(command, &log, Signal::KILL)?;
        let mut ended = None;
        let ready = wait_until("Redis to answer", READY_WITHIN, || {
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
                server: "Redis".to_owned(),
                why,
                log: log_tail(&log),
            });
        }
        self.process = Some(process);
        Ok(())
    }

    /// Whether the server answers commands: not while it still loads what it kept.
    fn is_ready(&self) -> bool {
        self.ask("PING")
            .is_ok_and(|answer| answer.starts_with("+PONG"))
    }

    /// Sends one command as a line and gives back the first line of the answer.
    fn ask(&self, command: &str) -> std::io::Result<String> {
        Ok(self.ask_lines(command, 1)?.remove(0))
    }

    /// Sends one command as a line and gives back the first lines of the answer, as the protocol writes them.
    pub(crate) fn ask_lines(&self, command: &str, lines: usize) -> std::io::Result<Vec<String>> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut answer = String::new();
        if let Some(password) = &self.options.password {
            write!(stream, "AUTH {password}\r\n")?;
            reader.read_line(&mut answer)?;
            answer.clear();
        }
        write!(stream, "{command}\r\n")?;
        (0..lines)
            .map(|_| {
                let mut line = String::new();
                reader.read_line(&mut line)?;
                Ok(line)
            })
            .collect()
    }

    /// Removes everything that the server holds, as an operator's `FLUSHALL` does.
    ///
    /// # Errors
    ///
    /// [`ServerError::Io`] where the server does not answer; [`ServerError::Unsupported`] with its answer where it refuses.
    pub fn flush_all(&self) -> Result<()> {
        let answer = self
            .ask("FLUSHALL")
            .map_err(ServerError::io("flush Redis"))?;
        if answer.starts_with("+OK") {
            Ok(())
        } else {
            Err(ServerError::Unsupported(answer.trim_end().to_owned()))
        }
    }

    /// Stops the server in good order. Nothing happens where it is stopped.
    ///
    /// # Errors
    ///
    /// [`ServerError::TimedOut`] where it does not stop.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.end(Signal::TERM, STOPPED_WITHIN),
            None => Ok(()),
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

    /// The process id of the server; `None` while it is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(ServerProcess::id)
    }

    /// The loopback port; it stays the same over stops and starts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port that a [`RedisOptions::port_setting`] was given.
    #[must_use]
    pub fn port_of(&self, setting: &str) -> Option<u16> {
        let mut ports = self.other_ports.iter();
        ports
            .find(|(name, _)| name == setting)
            .map(|(_, port)| *port)
    }

    /// The URL, such as `redis://127.0.0.1:20312/`, with the password where there is one.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_via(self.port)
    }

    /// The same with another port: that of a proxy before this server.
    #[must_use]
    pub fn url_via(&self, port: u16) -> String {
        match &self.options.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{port}/"),
            None => format!("redis://127.0.0.1:{port}/"),
        }
    }
}
