//! The side of `fettler up`.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use fettler_ledger::{Ledger, LedgerError};
use fettler_model::{JobId, Problem, Progress};
use thiserror::Error;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::{Health, path::SocketPath};

/// How far a job is that runs in this process; none when it does not run here.
pub type LiveProgress = Arc<dyn Fn(JobId) -> Option<Progress> + Send + Sync>;

/// Why the socket could not be opened or served.
#[derive(Debug, Error)]
pub enum ServerError {
    /// It cannot be made.
    #[error("the socket {path} cannot be opened: {source}")]
    Bind {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It broke while being served.
    #[error("the socket {path} cannot be served any longer: {source}")]
    Serve {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<ServerError> for Problem {
    fn from(error: ServerError) -> Self {
        Self::permanent(
            "api.socket",
            error.to_string(),
            "check that this user may write to the folder, and that it is on a file system that knows sockets",
        )
    }
}

/// An open socket that nobody answers yet.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

#[derive(Clone)]
struct Shared {
    ledger: Ledger,
    progress: LiveProgress,
}

impl Socket {
    /// Opens the socket for the folder's owner alone. The caller holds the folder's lock, so that what
    /// lies at `path` was left by a process that is gone.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn open(path: &Path) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Bind {
            path: path.to_path_buf(),
            source,
        };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            _ => {}
        }
        let short = SocketPath::new(path).map_err(failed)?;
        let listener = UnixListener::bind(short.as_path()).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self {
            path: path.to_path_buf(),
            listener,
        })
    }

    /// Answers until `stop`; requests on their way are answered, then the socket is removed.
    ///
    /// # Errors
    ///
    /// When the socket breaks.
    pub async fn serve(
        self,
        ledger: Ledger,
        progress: LiveProgress,
        stop: CancellationToken,
    ) -> Result<(), ServerError> {
        let router = Router::new()
            .route("/wake", post(wake))
            .route("/healthz", get(health))
            .route("/api/v1/jobs/{id}", get(job))
            .with_state(Shared { ledger, progress });
        let served = axum::serve(self.listener, router)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await;
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket was left behind");
        }
        served.map_err(|source| ServerError::Serve {
            path: self.path,
            source,
        })
    }
}

async fn wake(State(shared): State<Shared>) -> StatusCode {
    shared.ledger.poke();
    StatusCode::NO_CONTENT
}

async fn health(State(shared): State<Shared>) -> Response {
    // A process that cannot reach its ledger lives, and can do nothing.
    match shared.ledger.counts().await {
        Ok(counts) => Json(Health {
            process: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            queued: counts.queued,
            running: counts.running,
        })
        .into_response(),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, &error.into()),
    }
}

async fn job(State(shared): State<Shared>, UrlPath(id): UrlPath<JobId>) -> Response {
    match shared.ledger.job(id).await {
        Ok(mut record) => {
            if let Some(progress) = (shared.progress)(id) {
                record.progress = Some(progress);
            }
            Json(record).into_response()
        }
        Err(error @ LedgerError::NotFound { .. }) => problem(StatusCode::NOT_FOUND, &error.into()),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, &error.into()),
    }
}

/// The answer to a request that failed, as RFC 9457 has it.
pub(crate) fn problem(status: StatusCode, problem: &Problem) -> Response {
    let body = serde_json::json!({
        "type": format!("urn:fettler:problem:{}", problem.code),
        "title": problem.what,
        "status": status.as_u16(),
        "detail": problem.remedy,
    });
    (
        status,
        [(header::CONTENT_TYPE, "application/problem+json")],
        body.to_string(),
    )
        .into_response()
}
