//! What an orchestrator and Prometheus ask of a process that has no other interface: `GET /healthz` (the process lives),
//! `GET /readyz` (it does its work), `GET /metrics` (what it counted). None of it tells of tenants' content; bind it where only
//! the fleet's own network reaches it.

use std::{fmt, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use fettler_model::Problem;
use fettler_telemetry::metric::Counted;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::server::problem;

/// Whether the process does its work; in words, why it does not.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The address cannot be listened at.
#[derive(Debug, Error)]
#[error("probes cannot be answered at {address}: {source}")]
pub struct ProbesError {
    address: SocketAddr,
    source: std::io::Error,
}

impl From<ProbesError> for Problem {
    fn from(error: ProbesError) -> Self {
        Self::permanent(
            "api.probes",
            error.to_string(),
            "choose another address with `--listen`, or stop what listens there",
        )
    }
}

/// Answers probes.
pub struct Probes {
    listener: TcpListener,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    ready: Ready,
    counted: Counted,
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl Probes {
    /// Listens.
    ///
    /// # Errors
    ///
    /// When the address cannot be had.
    pub async fn listen(
        address: SocketAddr,
        ready: Ready,
        counted: Counted,
    ) -> Result<Self, ProbesError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ProbesError { address, source })?;
        Ok(Self {
            listener,
            shared: Shared { ready, counted },
        })
    }

    /// Where, with the port that the system chose for port 0.
    ///
    /// # Errors
    ///
    /// When the system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`.
    ///
    /// # Errors
    ///
    /// When the socket breaks.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), std::io::Error> {
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self.shared);
        axum::serve(self.listener, router)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    match (shared.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            &Problem::transient(
                "api.not_ready",
                why,
                "its log says what is wrong, if it stays so",
            ),
        ),
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        shared.counted.render(),
    )
        .into_response()
}
