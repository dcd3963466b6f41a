//! MinIO as the S3 store of tests: the real server, with conditional PUT, multipart uploads and signature checks, on a
//! folder of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::process::{Scratch, ServerProcess, User, log_tail};
use crate::{Result, ServerError, free_port, install, server_folder, wait_until};

/// The only account.
const ACCESS_KEY: &str = "fettler-tests";

/// Its secret.
const SECRET_KEY: &str = "not-a-secret-outside-of-tests";

/// The region that requests are signed for: MinIO's own default.
const REGION: &str = "us-east-1";

/// How long a start may take on a machine that is busy with other tests.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long an answer to one look may take, before it is asked again.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// How long a stop in good order may take.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// How often a start is tried with another port, when another process was quicker to take it.
const PORT_TRIES: u32 = 5;

/// A running MinIO. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct MinioServer {
    // Dropped in this order: the process before its folder.
    process: Option<ServerProcess>,
    program: PathBuf,
    port: u16,
    scratch: Scratch,
}

impl MinioServer {
    /// Starts a server without buckets and waits until it takes requests.
    ///
    /// # Errors
    ///
    /// [`ServerError::NotInstalled`]; [`ServerError::Start`] with the end of the server's log.
    pub fn start() -> Result<Self> {
        let program = install::program(server_folder("minio/minio")?)?;
        let scratch = Scratch::new("minio", User::Current)?;
        let mut server = Self {
            process: None,
            program,
            port: 0,
            scratch,
        };
        let mut tries = 0;
        loop {
            server.port = free_port();
            tries += 1;
            match server.start_again() {
                Err(ServerError::Start { log, .. })
                    if tries < PORT_TRIES && log.contains("in use") => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(server),
            }
        }
    }

    /// Starts the server again after [`MinioServer::stop`] or [`MinioServer::kill_9`], on the same port and data, and waits
    /// until it takes requests. Nothing happens where it runs.
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
        for (name, _) in std::env::vars_os() {
            // Whoever runs the tests may use MinIO, too.
            if name.to_str().is_some_and(|name| name.starts_with("MINIO_")) {
                command.env_remove(name);
            }
        }
        command
            .env("MINIO_ROOT_USER", ACCESS_KEY)
            .env("MINIO_ROOT_PASSWORD", SECRET_KEY)
            .env("MINIO_BROWSER", "off")
            .env("MINIO_UPDATE", "off")
            .arg("server")
            .arg(self.data_dir())
            .arg("--address")
            .arg(format!("127.0.0.1:{}", self.port))
            .arg("--certs-dir")
            .arg(self.scratch.path().join("certificates"));
        let log = self.scratch.path().join("log");
        let mut process = ServerProcess::start(command, &log, Signal::KILL)?;
        let mut ended = None;
        let ready = wait_until("MinIO to take requests", READY_WITHIN, || {
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
                server: "MinIO".to_owned(),
                why,
                log: log_tail(&log),
            });
        }
        self.process = Some(process);
        Ok(())
    }

    /// Asks the server itself. It listens, and calls itself ready, before it takes requests: until then it answers them with
    /// 503. So the store must be healthy, and a request that nobody signed must be refused for just that.
    fn is_ready(&self) -> bool {
        let answers = |path: &str, status: &str| {
            self.ask(path).is_ok_and(|answer| {
                answer.contains(status) && answer.contains("\r\nServer: MinIO\r\n")
            })
        };
        answers("/minio/health/cluster", " 200 OK\r\n") && answers("/", " 403 Forbidden\r\n")
    }

    fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        write!(
            stream,
            "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{}\r\n\r\n",
            self.port
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Makes an empty bucket. Nothing happens where there is one of this name.
    ///
    /// # Errors
    ///
    /// [`ServerError::Unsupported`] for a name that S3 does not allow; [`ServerError::Io`].
    pub fn create_bucket(&self, name: &str) -> Result<()> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(3..=63).contains(&name.len())
            || !name.bytes().all(plain)
            || name.starts_with('-')
            || name.ends_with('-')
        {
            return Err(ServerError::Unsupported(format!(
                "'{name}' cannot be a bucket: 3 to 63 small letters, digits and hyphens, no hyphen at either end"
            )));
        }
        // On a single folder, a bucket is a folder: this is what MinIO's own request does, without having to sign one.
        let folder = self.data_dir().join(name);
        std::fs::create_dir_all(&folder).map_err(ServerError::io(format!("make the bucket {name}")))
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

    /// Stops the server in good order and starts it again on the same port.
    ///
    /// # Errors
    ///
    /// As [`MinioServer::stop`] and [`MinioServer::start_again`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
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

    /// The endpoint, such as `http://127.0.0.1:20312`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The `AWS_*` variables that make `object_store` and the AWS tools use this server.
    #[must_use]
    pub fn env(&self) -> Vec<(&'static str, String)> {
        self.env_via(&self.url())
    }

    /// The same with another endpoint: that of a proxy before this server.
    #[must_use]
    pub fn env_via(&self, endpoint: &str) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_ENDPOINT", endpoint.to_owned()),
            ("AWS_ENDPOINT_URL", endpoint.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_DEFAULT_REGION", REGION.to_owned()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// The account's name.
    #[must_use]
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// The account's secret.
    #[must_use]
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// The folder that holds the buckets, in MinIO's own format.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }
}
