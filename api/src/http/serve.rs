//! Connections: how many, how long they may be silent, TLS, and their end in good order.

use std::{io, net::SocketAddr, path::Path, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{HttpError, access::Peer};

/// A head of a request that takes longer is none; a connection that is kept open for more requests is
/// closed after so long a silence.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// A TLS handshake that takes longer is none.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long answers on their way may take once the interface is stopped.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait when the system has no room for a connection.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(100);
/// More headers than any client sends.
const MAX_HEADERS: usize = 64;
/// What is read of a head before it is refused.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Reads the certificate chain and its key.
pub(crate) fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, HttpError> {
    let wrong = |path: &Path, what: String| HttpError::Certificate {
        path: path.to_path_buf(),
        what,
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(certificate, "it holds no certificate".to_owned()));
    }
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(certificate, error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| wrong(certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Takes connections until `stop`, and lets those end that are being answered.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    max_connections: usize,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(max_connections));
    let connections = TaskTracker::new();
    loop {
        // What finds no room waits with the system, in its queue.
        let accepted = async {
            let permit = room.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_unless_passing(&error).await;
                continue;
            }
        };
        let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, peer, tls, router, stop).await {
                tracing::debug!(%peer, error, "a connection broke");
            }
            drop(permit);
        });
    }
    connections.close();
    if tokio::time::timeout(DRAIN_WITHIN, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "connections were cut when the interface stopped"
        );
    }
}

/// An error of one connection passes with it; anything else (no descriptors left) takes a moment to pass.
async fn pause_unless_passing(error: &io::Error) {
    let is_passing = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    );
    if !is_passing {
        tracing::warn!(%error, "a connection could not be taken");
        tokio::time::sleep(NO_ROOM_PAUSE).await;
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: CancellationToken,
) -> Result<(), String> {
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    match tls {
        None => answer(stream, peer, router, stop).await,
        Some(acceptor) => {
            let handshake = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream));
            let stream = handshake
                .await
                .map_err(|_| "the TLS handshake took too long".to_owned())?
                .map_err(|error| error.to_string())?;
            answer(stream, peer, router, stop).await
        }
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: Router,
    stop: CancellationToken,
) -> Result<(), String> {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip()));
        router.clone().oneshot(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(|error| error.to_string()),
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await.map_err(|error| error.to_string())
}
