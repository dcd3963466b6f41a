//! The HTTP interface (`fettler api`, and `fettler up --listen`): submits jobs and follows them, shows and
//! changes what is looked after, for people with `curl`, for the command line (`--server`) and for programs.
//!
//! A request passes in this order: the connection's limits ([`serve`]), the guard of its route (who asks,
//! whether its role allows it, whether it asks too often: [`access`], [`limit`]), the reading of its body
//! and parameters ([`input`]), what a tenant may name ([`bounds`]), and then the ledger. Everything that is
//! answered is of the tenants that the token sees; a thing of another tenant is answered exactly like one
//! that does not exist (P6). A job is accepted when the ledger has committed it (P1), whatever Redis does
//! (rule 14).
//!
//! The routes are one list ([`routes`]), which the router, the guards and the OpenAPI document are made from.

pub mod access;
mod backups;
pub mod bounds;
mod control;
mod databases;
mod events;
mod findings;
mod fleet;
mod input;
mod jobs;
mod limit;
mod openapi;
mod policies;
mod problem;
mod route;
mod routes;
mod serve;
mod tenants;
mod tokens;
mod traced;

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use fettler_jobs::Registry;
use fettler_ledger::{Ledger, SealedId};
use fettler_model::{Problem, Secret, TenantId};
use fettler_telemetry::metric::{self, Counted};
use thiserror::Error;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use crate::LiveProgress;
use bounds::{Bounds, Deny};
use limit::Rates;
use problem::Refusal;

pub use backups::ProofList;
pub use control::{
    LimitInput, LimitList, Matching, PauseInput, PauseList, PriorityInput, ResumeAnswer,
    ResumeInput,
};
pub use databases::{DatabaseInput, DatabasePatch};
pub use events::EventDocument;
pub use findings::{FindingHistory, SuppressionInput};
pub use fleet::{KindDocument, KindList, WhoAmI, WorkerList};
pub use jobs::{
    Accepted, AttemptList, BatchAnswer, BatchResult, CancelAnswer, CancelWord, JobSubmission,
    LogPage,
};
pub use policies::{PolicyDocument, PolicyInput, PolicyPatch};
pub use problem::{FieldError, ProblemDocument};
pub use tenants::TenantInput;
pub use tokens::{NewTokenAnswer, TokenInput, TokenList};

/// How long a route may take to answer. Streams answer at once and go on.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The state that handlers share.
pub(crate) type App = Arc<Shared>;

/// Settings of the interface.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// No body is larger.
    pub max_body_bytes: usize,
    /// How many requests a token may send in a second, on average; twice as many at once.
    pub requests_per_second: u32,
    /// How many streams of events are open at once.
    pub max_streams: usize,
    /// How many connections are open at once.
    pub max_connections: usize,
    /// Certificate chain and key, as PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            max_body_bytes: 1 << 20,
            requests_per_second: 50,
            max_streams: 256,
            max_connections: 1024,
            tls: None,
        }
    }
}

/// What the process around the interface knows of tenants.
#[async_trait]
pub trait Surroundings: Send + Sync {
    /// What the operator listed for a tenant.
    ///
    /// # Errors
    ///
    /// When the tenant's settings cannot be read.
    fn bounds(&self, tenant: &TenantId) -> Result<Bounds, Problem>;

    /// Which addresses no tenant may name.
    fn deny(&self) -> &Deny;

    /// Where a tenant's backups go when nothing else is said.
    ///
    /// # Errors
    ///
    /// When the tenant's settings cannot be read.
    fn repository_place(&self, tenant: &TenantId) -> Result<String, Problem>;

    /// Seals a password for its tenant (P9).
    ///
    /// # Errors
    ///
    /// When it cannot be sealed.
    async fn seal(&self, tenant: &TenantId, secret: &Secret) -> Result<SealedId, Problem>;
}

/// Why the interface could not be opened or served.
#[derive(Debug, Error)]
pub enum HttpError {
    /// Nobody can listen there.
    #[error("nobody can listen at {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("the certificate or key {path} cannot be used: {what}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl From<HttpError> for Problem {
    fn from(error: HttpError) -> Self {
        let (code, remedy) = match &error {
            HttpError::Listen { .. } => (
                "api.listen",
                "choose an address of this machine and a port that is free, as `127.0.0.1:8080`",
            ),
            HttpError::Certificate { .. } => (
                "api.certificate",
                "name a PEM file with the whole chain as `--tls-certificate`, and its unencrypted key as `--tls-key`",
            ),
        };
        Self::permanent(code, error.to_string(), remedy)
    }
}

/// What handlers work with.
pub(crate) struct Shared {
    pub(crate) ledger: Ledger,
    pub(crate) registry: Arc<Registry>,
    pub(crate) surroundings: Arc<dyn Surroundings>,
    pub(crate) options: HttpOptions,
    pub(crate) live: Option<LiveProgress>,
    pub(crate) rates: Rates,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) tail: events::Tail,
    pub(crate) stop: CancellationToken,
    /// What this process counts itself; none where another part of it shows that.
    pub(crate) counted: Option<Counted>,
    pub(crate) document: axum::body::Bytes,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// An interface that listens, and that nobody answers yet.
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<tokio_rustls::TlsAcceptor>,
    options: HttpOptions,
}

impl fmt::Debug for HttpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpServer")
            .field("address", &self.address)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl HttpServer {
    /// Listens at `address`, such as `127.0.0.1:8080`; port 0 takes one that is free.
    ///
    /// # Errors
    ///
    /// When nobody can listen there, or the certificate cannot be used.
    pub async fn open(address: &str, options: HttpOptions) -> Result<Self, HttpError> {
        let tls = match &options.tls {
            Some((certificate, key)) => Some(serve::acceptor(certificate, key)?),
            None => None,
        };
        let failed = |source| HttpError::Listen {
            address: address.to_owned(),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            tls,
            options,
        })
    }

    /// Where it listens, as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Answers until `stop`: requests on their way are answered, streams end.
    pub async fn serve(
        self,
        ledger: Ledger,
        registry: Arc<Registry>,
        surroundings: Arc<dyn Surroundings>,
        live: Option<LiveProgress>,
        stop: CancellationToken,
    ) {
        let document = openapi::document(&routes::all());
        let document = serde_json::to_vec(&document).expect("the document is plain data");
        let app: App = Arc::new(Shared {
            rates: Rates::new(self.options.requests_per_second),
            streams: Arc::new(Semaphore::new(self.options.max_streams)),
            tail: events::Tail::new(),
            document: document.into(),
            ledger,
            registry,
            surroundings,
            live,
            counted: metric::count(),
            stop: stop.clone(),
            options: self.options,
        });
        let tailing = tokio::spawn(events::follow(app.clone()));
        let router = router(&app);
        serve::serve(
            self.listener,
            self.tls,
            router,
            app.options.max_connections,
            stop,
        )
        .await;
        // It stops by the same token; what it ended with is of no interest any more.
        let _ended = tailing.await;
    }
}

/// All that requests pass.
fn router(app: &App) -> Router {
    route::router(app, routes::all())
        .fallback(|| async {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "request.route",
                "there is no such route",
                "/api/openapi.json names all routes",
            )
        })
        .method_not_allowed_fallback(|| async {
            Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "request.method",
                "the route does not know this method",
                "the header `Allow` names those that it knows",
            )
        })
        .layer(from_fn(input::readable))
        .layer(from_fn_with_state(app.clone(), finished))
        .layer(from_fn(traced::traced))
}

/// Sees that an answer comes in time, and says how it may be kept.
async fn finished(State(_): State<App>, request: Request, next: Next) -> Response {
    let mut response = tokio::time::timeout(ANSWER_WITHIN, next.run(request))
        .await
        .unwrap_or_else(|_| {
            Refusal::unavailable(format!(
                "the answer was not there within {} seconds",
                ANSWER_WITHIN.as_secs()
            ))
            .into_response()
        });
    let headers = response.headers_mut();
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[schemars(rename = "PageOf{T}")]
pub struct Page<T> {
    /// The things, in the list's order.
    pub items: Vec<T>,
    /// Give it as `cursor` to get the next page; none when this is the last one.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// Makes a page of one row more than was asked for.
    fn of(mut items: Vec<T>, limit: usize, cursor: impl Fn(&T) -> String) -> Self {
        let is_more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| is_more).map(cursor);
        Self { items, next }
    }
}

/// Refuses what is beyond a tenant's bounds.
impl From<bounds::OutOfBounds> for Refusal {
    fn from(error: bounds::OutOfBounds) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "access.out_of_bounds",
            error.to_string(),
            error.remedy(),
        )
        .at(&error.field, error.what.clone())
    }
}
