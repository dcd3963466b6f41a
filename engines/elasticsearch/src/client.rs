//! Requests to a server, and what it answers.

use std::{fmt, time::Duration};

use bytes::{Bytes, BytesMut};
use fettler_engine::{EngineContext, EngineError, Target};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Certificate, Identity, Method, Response,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
    redirect::Policy,
};
use serde_json::Value;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    error::Refusal,
    params::{Login, Params},
};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a server may be silent while it works on a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// How often a request is sent again that the server has no room for.
const FULL_TRIES: u32 = 8;
/// The first pause before that; each is twice as long as the one before it.
const FULL_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of an answer that is no page of documents: a cluster's whole metadata fits.
const ANSWER_BYTES: usize = 512 << 20;
/// Who asks, where a server's list of tasks and its slow log show it.
const OPAQUE_ID: HeaderName = HeaderName::from_static("x-opaque-id");
/// What of a name stands as it is in a request's path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// A name as it stands in the path of a request.
pub(crate) fn encoded(name: &str) -> String {
    utf8_percent_encode(name, PLAIN).to_string()
}

/// What a request came to.
pub(crate) type Answer<T = Value> = Result<T, Refusal>;

/// What a request carries.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Nothing,
    Json(Value),
    /// Lines of JSON.
    Lines(Bytes),
}

impl From<Value> for Body {
    fn from(value: Value) -> Self {
        Self::Json(value)
    }
}

/// A client of one server. A clone shares its connections.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    server: String,
    stop: CancellationToken,
}

impl Client {
    /// A client that belongs to no attempt.
    pub(crate) fn visitor(params: &Params) -> Result<Self, EngineError> {
        Self::new(params, "fettler", &CancellationToken::new())
    }

    /// A client that belongs to no attempt, of a target.
    pub(crate) fn of(target: &Target) -> Result<(Self, Params), EngineError> {
        let params = Params::of(target)?;
        Ok((Self::visitor(&params)?, params))
    }

    /// A client of an attempt. Its requests end early when the attempt is to stop.
    pub(crate) fn of_attempt(
        params: &Params,
        context: &EngineContext,
    ) -> Result<Self, EngineError> {
        Self::new(params, &context.attempt.to_string(), &context.stop)
    }

    /// A client that belongs to no attempt, whose requests end early when `stop` is cancelled.
    pub(crate) fn visitor_until(
        params: &Params,
        stop: &CancellationToken,
    ) -> Result<Self, EngineError> {
        Self::new(params, "fettler", stop)
    }

    fn new(params: &Params, name: &str, stop: &CancellationToken) -> Result<Self, EngineError> {
        let mut headers = HeaderMap::new();
        if let Ok(name) = HeaderValue::from_str(name) {
            headers.insert(OPAQUE_ID, name);
        }
        if let Some(login) = authorization(&params.login) {
            headers.insert(AUTHORIZATION, login?);
        }
        let mut builder = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(ANSWER_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(60))
            .http1_only()
            // A login goes to nobody but the server that was named.
            .redirect(Policy::none())
            .no_proxy();
        if !params.addresses.is_empty() {
            let addresses: Vec<_> = params
                .addresses
                .iter()
                .map(|address| (*address, params.port).into())
                .collect();
            builder = builder.resolve_to_addrs(&params.host, &addresses);
        }
        if let Some(path) = &params.ca {
            let pem = std::fs::read(path).map_err(|error| unusable(path, &error))?;
            let found =
                Certificate::from_pem_bundle(&pem).map_err(|error| unusable(path, &error))?;
            if found.is_empty() {
                return Err(unusable(path, &"it holds no certificate"));
            }
            builder = builder.tls_certs_only(found);
        }
        if let Some((certificate, key)) = &params.identity {
            let mut pem = std::fs::read(key).map_err(|error| unusable(key, &error))?;
            pem.push(b'\n');
            pem.extend(std::fs::read(certificate).map_err(|error| unusable(certificate, &error))?);
            let identity =
                Identity::from_pem(&pem).map_err(|error| unusable(certificate, &error))?;
            builder = builder.identity(identity);
        }
        let http = builder.build().map_err(|error| EngineError::Missing {
            code: "tls",
            what: format!("no client for {} can be made: {error}", params.server()),
            remedy: "check `ca`, `cert` and `key` in the database's URL".to_owned(),
        })?;
        Ok(Self {
            http,
            base: params.base(),
            server: params.server(),
            stop: stop.clone(),
        })
    }

    /// The server's name in messages.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Sends a request and waits where the server has no room for it; gives the answer once its head is there.
    async fn send(
        &self,
        method: &Method,
        path: &str,
        body: &Body,
    ) -> Result<Response, EngineError> {
        let mut pause = FULL_PAUSE;
        let mut tries = 0;
        loop {
            let mut request = self
                .http
                .request(method.clone(), format!("{}{path}", self.base));
            request = match body {
                Body::Nothing => request,
                Body::Json(value) => request
                    .header(CONTENT_TYPE, "application/json")
                    .body(value.to_string()),
                Body::Lines(lines) => request
                    .header(CONTENT_TYPE, "application/x-ndjson")
                    .body(lines.clone()),
            };
            let sent = self
                .stop
                .run_until_cancelled(request.send())
                .await
                .ok_or(EngineError::Stopped)?
                .map_err(|error| self.unreachable(&error))?;
            tries += 1;
            if sent.status().as_u16() != 429 || tries == FULL_TRIES {
                return Ok(sent);
            }
            self.pause(pause).await?;
            pause *= 2;
        }
    }

    /// Waits, unless the attempt is to stop.
    pub(crate) async fn pause(&self, time: Duration) -> Result<(), EngineError> {
        self.stop
            .run_until_cancelled(sleep(time))
            .await
            .ok_or(EngineError::Stopped)
    }

    fn unreachable(&self, error: &reqwest::Error) -> EngineError {
        let mut what = String::new();
        let mut source: Option<&dyn std::error::Error> = Some(error);
        // The library's own words hold the address of the request, which says nothing more; what lies below says why.
        while let Some(error) = source {
            if source.is_some() && error.source().is_none() {
                what = error.to_string();
            }
            source = error.source();
        }
        EngineError::Unreachable {
            server: self.server.clone(),
            what,
        }
    }

    /// Reads the body of an answer up to so many bytes; nothing where it is longer.
    async fn body(&self, mut answer: Response, most: usize) -> Result<Option<Bytes>, EngineError> {
        let announced = answer.content_length().unwrap_or(0);
        if announced > most as u64 {
            return Ok(None);
        }
        let mut body = BytesMut::with_capacity(announced as usize);
        while let Some(piece) = self
            .stop
            .run_until_cancelled(answer.chunk())
            .await
            .ok_or(EngineError::Stopped)?
            .map_err(|error| self.unreachable(&error))?
        {
            if body.len() + piece.len() > most {
                return Ok(None);
            }
            body.extend_from_slice(&piece);
        }
        Ok(Some(body.freeze()))
    }

    /// Sends a request; a refusal is an answer too. Nothing where the answer is longer than `most` bytes.
    pub(crate) async fn try_bytes(
        &self,
        method: Method,
        path: &str,
        body: &Body,
        most: usize,
    ) -> Result<Answer<Option<Bytes>>, EngineError> {
        let answer = self.send(&method, path, body).await?;
        let status = answer.status();
        let body = self.body(answer, most).await?;
        if status.is_success() {
            return Ok(Ok(body));
        }
        Ok(Err(Refusal::read(
            status.as_u16(),
            &body.unwrap_or_default(),
        )))
    }

    /// Sends a request and reads the answer as JSON; a refusal is an answer too.
    pub(crate) async fn try_ask(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> Result<Answer, EngineError> {
        let answer = self
            .try_bytes(method, path, &body.into(), ANSWER_BYTES)
            .await?;
        match answer {
            Err(refusal) => Ok(Err(refusal)),
            Ok(None) => Err(self.unexpected(path, &"the answer is too long")),
            Ok(Some(bytes)) if bytes.is_empty() => Ok(Ok(Value::Null)),
            Ok(Some(bytes)) => serde_json::from_slice(&bytes)
                .map(Ok)
                .map_err(|error| self.unexpected(path, &error)),
        }
    }

    /// Sends a request and reads the answer as JSON.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
        doing: impl fmt::Display,
    ) -> Result<Value, EngineError> {
        self.try_ask(method, path, body)
            .await?
            .map_err(|refusal| refusal.doing(&self.server, doing))
    }

    /// Asks for something.
    pub(crate) async fn get(
        &self,
        path: &str,
        doing: impl fmt::Display,
    ) -> Result<Value, EngineError> {
        self.ask(Method::GET, path, Body::Nothing, doing).await
    }

    /// Asks for something; a refusal is an answer too.
    pub(crate) async fn try_get(&self, path: &str) -> Result<Answer, EngineError> {
        self.try_ask(Method::GET, path, Body::Nothing).await
    }

    /// An error for an answer that nobody can understand. `what` names no value of the database.
    pub(crate) fn unexpected(&self, doing: &str, what: &dyn fmt::Display) -> EngineError {
        EngineError::Database {
            what: format!(
                "{} answered what was not expected ({doing}): {what}",
                self.server
            ),
            transient: false,
        }
    }
}

fn authorization(login: &Login) -> Option<Result<HeaderValue, EngineError>> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = match login {
        Login::Nobody => return None,
        Login::User { name, password } => format!(
            "Basic {}",
            STANDARD.encode(format!("{name}:{}", password.expose()))
        ),
        Login::ApiKey(key) => format!("ApiKey {}", key.expose()),
        Login::Bearer(token) => format!("Bearer {}", token.expose()),
    };
    let header = HeaderValue::from_str(&text).map(|mut value| {
        value.set_sensitive(true);
        value
    });
    Some(header.map_err(|_| EngineError::Missing {
        code: "password",
        what: "the password, key or token holds what no request can carry".to_owned(),
        remedy: "check the reference to it".to_owned(),
    }))
}

fn unusable(path: &std::path::Path, error: &dyn fmt::Display) -> EngineError {
    EngineError::Missing {
        code: "tls",
        what: format!("{} cannot be used for TLS: {error}", path.display()),
        remedy: "check `ca`, `cert` and `key` in the database's URL".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_in_a_path_whatever_it_holds() {
        assert_eq!(encoded("logs-2026.11_a"), "logs-2026.11_a");
        assert_eq!(encoded("a+b%é&"), "a%2Bb%25%C3%A9%26");
    }
}
