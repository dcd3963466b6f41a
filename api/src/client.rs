//! The side of the commands.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use fettler_ledger::JobRecord;
use fettler_model::JobId;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::net::UnixStream;

use crate::path::SocketPath;

/// How long a process on the same machine may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A longer answer is none of ours.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// What the process says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Its process id.
    pub process: u32,
    /// Its version.
    pub version: String,
    /// How many jobs wait.
    pub queued: u64,
    /// How many jobs run.
    pub running: u64,
}

/// Why the process did not answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("nobody answers at {0}")]
    NobodyThere(PathBuf),
    /// Somebody listens and says nothing of use.
    #[error("the process at {path} does not answer as it should: {what}")]
    BadAnswer {
        /// Where.
        path: PathBuf,
        /// What happened.
        what: String,
    },
}

/// A way to the process that runs `fettler up` in a folder.
#[derive(Clone, Debug)]
pub struct SocketClient {
    path: PathBuf,
}

impl SocketClient {
    /// The way through this socket; nobody is asked yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
        }
    }

    /// Asks the process how it is.
    ///
    /// # Errors
    ///
    /// When nobody is there, or the answer makes no sense.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.ask(Method::GET, "/healthz")
            .await
            .and_then(|body| self.read(&body))
    }

    /// Tells the process that jobs may be claimable or are to be cancelled.
    ///
    /// # Errors
    ///
    /// When nobody is there, or the answer makes no sense.
    pub async fn wake(&self) -> Result<(), ClientError> {
        self.ask(Method::POST, "/wake").await.map(drop)
    }

    /// A job, with its progress of this moment where it runs in that process.
    ///
    /// # Errors
    ///
    /// When nobody is there, or the answer makes no sense.
    pub async fn job(&self, id: JobId) -> Result<JobRecord, ClientError> {
        self.ask(Method::GET, &format!("/api/v1/jobs/{id}"))
            .await
            .and_then(|body| self.read(&body))
    }

    fn bad(&self, what: &impl ToString) -> ClientError {
        ClientError::BadAnswer {
            path: self.path.clone(),
            what: what.to_string(),
        }
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.bad(&error))
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Bytes, ClientError> {
        tokio::time::timeout(ANSWER_WITHIN, self.exchange(method, path))
            .await
            .map_err(|_| self.bad(&"it took too long"))?
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<Bytes, ClientError> {
        let nobody = |_| ClientError::NobodyThere(self.path.clone());
        let short = SocketPath::new(&self.path).map_err(nobody)?;
        let stream = UnixStream::connect(short.as_path()).await.map_err(nobody)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.bad(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "fettler")
            .body(Empty::<Bytes>::new())
            .expect("the request is built of constants and ids");
        // The connection moves the bytes while the answer is waited for; it ends with `sender`.
        let moving = tokio::spawn(connection);
        let answer = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| self.bad(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await
                .map_err(|error| self.bad(&error))?
                .to_bytes();
            if status == StatusCode::OK || status == StatusCode::NO_CONTENT {
                Ok(body)
            } else {
                Err(self.bad(&format!("{status}: {}", String::from_utf8_lossy(&body))))
            }
        }
        .await;
        moving.abort();
        answer
    }
}
