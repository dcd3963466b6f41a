//! The real binary over a benchmark's ledger and Redis: its interface, its workers, and what it says on the command line.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fettler_test_servers::free_port;
use serde_json::Value;

use crate::{Result, stand::Stand};

/// How long the interface may take to answer for the first time.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How often it is asked meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How the binary is called.
pub struct Programs {
    binary: PathBuf,
    folder: PathBuf,
    ledger: String,
    queue: String,
}

impl Programs {
    /// Over this ledger. The binary lies beside this program.
    pub fn of(stand: &Stand, ledger: &str) -> Result<Self> {
        let binary = std::env::current_exe()?.with_file_name("fettler");
        if !binary.exists() {
            return Err("build the binary first: cargo build --release".into());
        }
        Ok(Self {
            binary,
            folder: stand.folder().to_owned(),
            ledger: ledger.to_owned(),
            queue: stand.redis.url(),
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("FETTLER_FOLDER", self.folder.join("fettler"))
            .env("FETTLER_LEDGER__URL", &self.ledger)
            .env("FETTLER_QUEUE__URL", &self.queue)
            .env("FETTLER_API__REQUESTS_PER_SECOND", "100000")
            .stdin(Stdio::null());
        command
    }

    /// What a command says that has to succeed.
    pub fn told(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(arguments).arg("--json").output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn start(&self, arguments: &[&str], log: &str) -> Result<Process> {
        let log = std::fs::File::create(self.folder.join(log))?;
        let child = self
            .command(arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Process(child))
    }

    /// A worker with the settings of an installation.
    pub fn worker(&self) -> Result<Process> {
        self.start(&["worker"], "worker.log")
    }

    /// The interface, once it answers, and a token for it.
    pub async fn interface(&self) -> Result<Interface> {
        let token = self.told(&["token", "add", "bench", "--role", "operator"])?;
        let address = format!("127.0.0.1:{}", free_port());
        let interface = Interface {
            _process: self.start(&["api", "--listen", &address], "api.log")?,
            token: token["text"].as_str().ok_or("no token")?.to_owned(),
            jobs: format!("http://{address}/api/v1/jobs"),
        };
        let (client, begun) = (interface.client()?, Instant::now());
        let ready = format!("http://{address}/readyz");
        while client.get(&ready).send().await.is_err() {
            if begun.elapsed() > READY_WITHIN {
                return Err("the interface does not answer".into());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(interface)
    }
}

/// The interface's process.
pub struct Interface {
    _process: Process,
    token: String,
    /// Where jobs are submitted.
    pub jobs: String,
}

impl Interface {
    /// A client that bears the token.
    pub fn client(&self) -> Result<reqwest::Client> {
        let mut headers = reqwest::header::HeaderMap::new();
        let value = format!("Bearer {}", self.token);
        headers.insert(reqwest::header::AUTHORIZATION, value.parse()?);
        Ok(reqwest::Client::builder()
            .default_headers(headers)
            .no_proxy()
            .build()?)
    }
}

/// A process that is killed when this is dropped.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
