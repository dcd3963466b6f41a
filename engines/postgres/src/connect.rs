//! Logging in. tokio-postgres speaks the start of the protocol (TLS, SCRAM with channel binding, MD5);
//! then its half of the connection is dropped, and the bare stream becomes a [`Session`].

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use fettler_engine::EngineError;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_postgres::{
    NoTls,
    config::{ChannelBinding as BindingMode, SslMode as DriverSslMode},
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};

use crate::{
    error::{ServerMessage, of_server},
    params::{Host, Params, SslMode},
    tls::{self, Shown},
    wire::{Session, Wire},
};

/// Logs in, under a name that tells everybody whose session it is (rule 6).
pub(crate) async fn connect(
    params: &Params,
    application_name: &str,
) -> Result<Session, EngineError> {
    let mut last = None;
    for (host, port) in &params.hosts {
        match connect_to(params, host, *port, application_name).await {
            Ok(session) => return Ok(session),
            // Only a host that does not answer is a reason to ask the next one.
            Err(error @ EngineError::Unreachable { .. }) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| EngineError::Unreachable {
        server: params.server(),
        what: "the URL names no host".to_owned(),
    }))
}

async fn connect_to(
    params: &Params,
    host: &Host,
    port: u16,
    application_name: &str,
) -> Result<Session, EngineError> {
    let attempt = async |mode: SslMode| {
        let attempt = connect_once(params, host, port, application_name, mode);
        match timeout(params.connect_timeout, attempt).await {
            Ok(answer) => answer,
            Err(_) => Err(unreachable(params, "it did not answer in time")),
        }
    };
    match attempt(params.ssl_mode).await {
        // As libpq: what TLS did not give may be had without it, where TLS is only preferred.
        Err(EngineError::LoginRefused { what, .. })
            if params.ssl_mode == SslMode::Prefer
                && matches!(host, Host::Tcp(_))
                && what.contains("pg_hba.conf") =>
        {
            attempt(SslMode::Disable).await
        }
        Err(EngineError::Missing { code: "tls", .. }) if params.ssl_mode == SslMode::Prefer => {
            attempt(SslMode::Disable).await
        }
        answer => answer,
    }
}

#[allow(clippy::needless_pass_by_value)]
fn unreachable(params: &Params, what: impl std::fmt::Display) -> EngineError {
    EngineError::Unreachable {
        server: params.server(),
        what: what.to_string(),
    }
}

async fn connect_once(
    params: &Params,
    host: &Host,
    port: u16,
    application_name: &str,
    mode: SslMode,
) -> Result<Session, EngineError> {
    let mut config = tokio_postgres::Config::new();
    config
        .user(&params.user)
        .dbname(&params.database)
        .application_name(application_name)
        .ssl_mode(match mode {
            SslMode::Disable => DriverSslMode::Disable,
            SslMode::Prefer => DriverSslMode::Prefer,
            _ => DriverSslMode::Require,
        });
    if let Some(password) = params.password() {
        config.password(password);
    }
    if let Some(options) = &params.options {
        config.options(options);
    }
    if params.require_channel_binding {
        config.channel_binding(BindingMode::Require);
    }
    match host {
        // The sockets of a folder are as private as the folder; libpq uses no TLS there either.
        Host::Unix(folder) => {
            config.ssl_mode(DriverSslMode::Disable);
            let path = folder.join(format!(".s.PGSQL.{port}"));
            let socket = UnixStream::connect(&path)
                .await
                .map_err(|error| unreachable(params, format!("{}: {error}", path.display())))?;
            log_in(params, &config, socket, NoTls, Shown::default()).await
        }
        Host::Tcp(name) => {
            let socket = if params.addresses.is_empty() {
                TcpStream::connect((name.as_str(), port)).await
            } else {
                let addresses: Vec<SocketAddr> = params
                    .addresses
                    .iter()
                    .map(|address| SocketAddr::new(*address, port))
                    .collect();
                TcpStream::connect(addresses.as_slice()).await
            }
            .map_err(|error| unreachable(params, error))?;
            socket
                .set_nodelay(true)
                .map_err(|error| unreachable(params, error))?;
            keep_alive(&socket).map_err(|error| unreachable(params, error))?;
            match tls::connector(params)?.filter(|_| mode != SslMode::Disable) {
                None => log_in(params, &config, socket, NoTls, Shown::default()).await,
                Some((mut connector, shown)) => {
                    let tls = MakeTlsConnect::<Returned<TcpStream>>::make_tls_connect(
                        &mut connector,
                        name,
                    )
                    .map_err(|error| unreachable(params, error))?;
                    log_in(params, &config, socket, tls, shown).await
                }
            }
        }
    }
}

/// A machine that is gone without a word is noticed, also by a session that waits for hours.
fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    const IDLE: Duration = Duration::from_secs(60);
    const BETWEEN: Duration = Duration::from_secs(15);
    const PROBES: u32 = 6;
    rustix::net::sockopt::set_socket_keepalive(socket, true)?;
    rustix::net::sockopt::set_tcp_keepidle(socket, IDLE)?;
    rustix::net::sockopt::set_tcp_keepintvl(socket, BETWEEN)?;
    rustix::net::sockopt::set_tcp_keepcnt(socket, PROBES)?;
    Ok(())
}

async fn log_in<S, T>(
    params: &Params,
    config: &tokio_postgres::Config,
    socket: S,
    tls: T,
    shown: Shown,
) -> Result<Session, EngineError>
where
    S: Wire + 'static,
    T: TlsConnect<Returned<S>>,
    T::Stream: Send + 'static,
{
    let place = Place::default();
    let tls = ReturnedTls {
        tls,
        place: Arc::clone(&place),
        shown,
    };
    let socket = Returned::new(socket, &place, Shown::default());
    let answer = config.connect_raw(socket, tls).await.map(drop);
    // Whatever happened, the place must not keep a stream that itself points to the place.
    let wire = place.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (answer, wire) {
        (Ok(()), Some(wire)) => Ok(Session::new(wire, params.server().into())),
        (Ok(()), None) => Err(unreachable(params, "the connection was lost")),
        (Err(error), _) => Err(login_error(params, &error)),
    }
}

fn login_error(params: &Params, error: &tokio_postgres::Error) -> EngineError {
    if let Some(refusal) = error.as_db_error() {
        let message = ServerMessage {
            severity: refusal.severity().to_owned(),
            code: refusal.code().code().to_owned(),
            message: refusal.message().to_owned(),
            detail: refusal.detail().unwrap_or_default().to_owned(),
            hint: refusal.hint().unwrap_or_default().to_owned(),
        };
        return of_server(&params.server(), &message, "logging in");
    }
    let cause =
        std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let text = error.to_string();
    if text.contains("TLS") {
        return EngineError::Missing {
            code: "tls",
            what: format!("no TLS connection to {}: {cause}", params.server()),
            remedy: "check sslmode and sslrootcert in the database's URL, and that the server offers TLS (ssl = on)"
                .to_owned(),
        };
    }
    if text.contains("password") || cause.contains("password missing") {
        return EngineError::LoginRefused {
            server: params.server(),
            what: "it asks for a password, and none was given".to_owned(),
        };
    }
    if text.contains("authentication") {
        return EngineError::LoginRefused {
            server: params.server(),
            what: cause,
        };
    }
    unreachable(params, cause)
}

/// Where a stream goes when the driver lets go of it.
type Place = Arc<Mutex<Option<Box<dyn Wire>>>>;

/// A stream that goes to its place when it is dropped.
struct Returned<S: Wire + 'static> {
    stream: Option<S>,
    place: Place,
    shown: Shown,
}

impl<S: Wire + 'static> Returned<S> {
    fn new(stream: S, place: &Place, shown: Shown) -> Self {
        Self {
            stream: Some(stream),
            place: Arc::clone(place),
            shown,
        }
    }

    fn inner(self: Pin<&mut Self>) -> Pin<&mut S> {
        Pin::new(
            self.get_mut()
                .stream
                .as_mut()
                .expect("taken out only when dropped"),
        )
    }
}

impl<S: Wire + 'static> Drop for Returned<S> {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
            let replaced = place.replace(Box::new(stream));
            drop(place);
            drop(replaced);
        }
    }
}

impl<S: Wire + 'static> AsyncRead for Returned<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.inner().poll_read(cx, buf)
    }
}

impl<S: Wire + 'static> AsyncWrite for Returned<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }
}

impl<S: TlsStream + Wire + 'static> TlsStream for Returned<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.shown
            .end_point()
            .map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// A connector whose TLS stream goes to the same place when it is dropped.
struct ReturnedTls<T> {
    tls: T,
    place: Place,
    shown: Shown,
}

impl<S, T> TlsConnect<Returned<S>> for ReturnedTls<T>
where
    S: Wire + 'static,
    T: TlsConnect<Returned<S>>,
    T::Stream: Send + 'static,
{
    type Stream = Returned<T::Stream>;
    type Error = T::Error;
    type Future = Handshake<T::Future>;

    fn connect(self, stream: Returned<S>) -> Self::Future {
        Handshake {
            inner: Box::pin(self.tls.connect(stream)),
            place: self.place,
            shown: self.shown,
        }
    }
}

/// A handshake that runs.
struct Handshake<F> {
    inner: Pin<Box<F>>,
    place: Place,
    shown: Shown,
}

impl<F, S, E> Future for Handshake<F>
where
    F: Future<Output = Result<S, E>>,
    S: Wire + 'static,
{
    type Output = Result<Returned<S>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.inner.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(answer) => {
                let (place, shown) = (Arc::clone(&self.place), self.shown.clone());
                Poll::Ready(answer.map(|stream| Returned::new(stream, &place, shown)))
            }
        }
    }
}
