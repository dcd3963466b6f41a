//! Another Fettler, over HTTP: the side of the commands with `--server`. A refusal comes back as the problem
//! that the other side named, so that a reader sees the same words as beside the ledger.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fettler_api::http::{Page, ProblemDocument};
use fettler_config::Settings;
use fettler_model::{Problem, Secret};
use futures::StreamExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use crate::failure::{Exit, Failure};

/// How long the other side may take to answer. A stream of events is not bounded by it.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// A longer answer is none of ours.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// For how long one request is sent again while the other side says that it is asked too often.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many rows are asked for at once.
const PAGE: usize = 500;
/// An event is not longer.
const MAX_EVENT_BYTES: usize = 8 * 1024 * 1024;
/// Where a token is looked for.
const TOKEN_VARIABLE: &str = "FETTLER_TOKEN";

/// The way to another Fettler.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    http: reqwest::Client,
    base: Url,
    token: Option<Secret>,
}

/// One server-sent event.
#[derive(Debug, Default)]
pub(crate) struct ServerEvent {
    pub(crate) id: Option<String>,
    pub(crate) name: String,
    pub(crate) data: String,
}

/// A text as a part of a path or of a query.
pub(crate) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

impl Remote {
    /// The way to `server`. The token is the one in `FETTLER_TOKEN`, or the one that `fettler up` has left in
    /// this folder for the address at which it listens.
    pub(crate) fn new(server: &str, settings: &Settings) -> Result<Self, Failure> {
        let wrong = |what: String| {
            Failure::usage(
                format!("--server {server:?} cannot be used: {what}"),
                "write it as `https://fettler.internal` or `http://127.0.0.1:8080`",
            )
        };
        let base = Url::parse(server).map_err(|error| wrong(error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(wrong(format!(
                "{:?} is neither http nor https",
                base.scheme()
            )));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(wrong(
                "a token does not belong into the URL, but into FETTLER_TOKEN".to_owned(),
            ));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_WITHIN)
            // A token must not follow to where another server points.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        let token = std::env::var(TOKEN_VARIABLE)
            .ok()
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
            .or_else(|| left_token(settings, &base))
            .map(Secret::new);
        Ok(Self { http, base, token })
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, Failure> {
        let url = self
            .base
            .join(path)
            .map_err(|error| self.strange(&error.to_string()))?;
        let request = self.http.request(method, url);
        Ok(match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        })
    }

    fn away(&self, error: &reqwest::Error) -> Failure {
        // The error's own sources say what happened; its first line only which request it was.
        let mut what = String::new();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            what = inner.to_string();
            source = inner.source();
        }
        Failure::from(Problem::transient(
            "server.unreachable",
            format!("{} does not answer: {what}", self.base),
            "see whether `fettler api` or `fettler up --listen` runs there, and whether this machine reaches it",
        ))
    }

    fn strange(&self, what: &str) -> Failure {
        Failure::from(Problem::permanent(
            "server.answer",
            format!("{} does not answer as Fettler does: {what}", self.base),
            "see whether the URL names a Fettler, of this version or a newer one",
        ))
    }

    /// Sends a request, and gives its answer when it is one that was hoped for. Where the other side is asked too often, it
    /// has done nothing yet: the request is sent again when it says so.
    async fn send(&self, mut request: RequestBuilder) -> Result<Response, Failure> {
        let began = Instant::now();
        let response = loop {
            let again = request.try_clone();
            let response = request.send().await.map_err(|error| self.away(&error))?;
            match (again, pause_asked_for(&response)) {
                (Some(again), Some(pause)) if began.elapsed() + pause <= PATIENCE => {
                    tracing::debug!(?pause, "the server is asked too often");
                    tokio::time::sleep(pause).await;
                    request = again;
                }
                _ => break response,
            }
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.body(response).await?;
        let Ok(problem) = serde_json::from_slice::<ProblemDocument>(&body) else {
            return Err(self.strange(&status.to_string()));
        };
        Err(refused(status, &problem))
    }

    async fn body(&self, response: Response) -> Result<Vec<u8>, Failure> {
        let mut stream = response.bytes_stream();
        let mut body = Vec::new();
        while let Some(part) = stream.next().await {
            let part = part.map_err(|error| self.away(&error))?;
            if body.len() + part.len() > MAX_ANSWER_BYTES {
                return Err(self.strange("its answer does not end"));
            }
            body.extend_from_slice(&part);
        }
        Ok(body)
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.strange(&error.to_string()))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self.request(Method::GET, path)?.timeout(ANSWER_WITHIN);
        let response = self.send(request).await?;
        self.read(response).await
    }

    /// The same, for something that may not be there.
    pub(crate) async fn look_for<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Option<T>, Failure> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(failure) if failure.problem.code == "ledger.not_found" => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// All rows of a list, up to so many.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        most: usize,
    ) -> Result<Vec<T>, Failure> {
        let mut all = Vec::new();
        let mut cursor: Option<String> = None;
        while all.len() < most {
            let limit = PAGE.min(most - all.len()).to_string();
            let mut parameters = vec![format!("limit={limit}")];
            parameters.extend(
                query
                    .iter()
                    .map(|(name, value)| format!("{name}={}", escaped(value))),
            );
            if let Some(cursor) = &cursor {
                parameters.push(format!("cursor={}", escaped(cursor)));
            }
            let page: Page<T> = self
                .get(&format!("{path}?{}", parameters.join("&")))
                .await?;
            all.extend(page.items);
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        all.truncate(most);
        Ok(all)
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, Failure> {
        self.change(Method::POST, path, Some(body), None).await
    }

    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, Failure> {
        self.change(Method::PUT, path, Some(body), None).await
    }

    /// Sends a change of what has this `ETag`.
    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        etag: &str,
    ) -> Result<T, Failure> {
        self.change(Method::PATCH, path, Some(body), Some(etag))
            .await
    }

    async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> Result<T, Failure> {
        let mut request = self.request(method, path)?.timeout(ANSWER_WITHIN);
        if let Some(body) = body {
            request = request
                .header(header::CONTENT_TYPE, "application/json")
                .body(body.to_string());
        }
        if let Some(etag) = etag {
            request = request.header(header::IF_MATCH, etag);
        }
        let response = self.send(request).await?;
        self.read(response).await
    }

    /// Submits a job, once even if the answer is lost on its way and the request is sent again.
    pub(crate) async fn submit<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, Failure> {
        let key = uuid::Uuid::new_v4().to_string();
        let mut last = None;
        for _ in 0..2 {
            let request = self
                .request(Method::POST, path)?
                .timeout(ANSWER_WITHIN)
                .header("idempotency-key", &key)
                .header(header::CONTENT_TYPE, "application/json")
                .body(body.to_string());
            match self.send(request).await {
                Ok(response) => return self.read(response).await,
                Err(failure) if failure.problem.code == "server.unreachable" => {
                    last = Some(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(last.unwrap_or_else(|| self.strange("nothing was sent")))
    }

    /// Something with its `ETag`.
    pub(crate) async fn get_marked<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<(T, String), Failure> {
        let request = self.request(Method::GET, path)?.timeout(ANSWER_WITHIN);
        let response = self.send(request).await?;
        let etag = response
            .headers()
            .get(header::ETAG)
            .and_then(|value| value.to_str().ok())
            .map(ToOwned::to_owned)
            .ok_or_else(|| self.strange("it says of nothing which state it is in"))?;
        Ok((self.read(response).await?, etag))
    }

    pub(crate) async fn delete(&self, path: &str, etag: Option<&str>) -> Result<(), Failure> {
        let mut request = self.request(Method::DELETE, path)?.timeout(ANSWER_WITHIN);
        if let Some(etag) = etag {
            request = request.header(header::IF_MATCH, etag);
        }
        self.send(request).await.map(drop)
    }

    /// Opens a stream of events, after the one with this id.
    pub(crate) async fn events(
        &self,
        path: &str,
        after: Option<&str>,
    ) -> Result<EventStream, Failure> {
        let mut request = self
            .request(Method::GET, path)?
            .header(header::ACCEPT, "text/event-stream");
        if let Some(id) = after {
            request = request.header("last-event-id", id);
        }
        let response = self.send(request).await?;
        Ok(EventStream {
            body: Box::pin(response.bytes_stream()),
            text: Vec::new(),
        })
    }
}

/// Events as they come.
pub(crate) struct EventStream {
    body: std::pin::Pin<Box<dyn futures::Stream<Item = reqwest::Result<Bytes>> + Send>>,
    text: Vec<u8>,
}

impl EventStream {
    /// The next event; none when the stream has ended, or was cut.
    pub(crate) async fn next(&mut self) -> Option<ServerEvent> {
        loop {
            while let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.text.drain(..end + 2).collect();
                if let Some(event) = read_event(&String::from_utf8_lossy(&block)) {
                    return Some(event);
                }
            }
            if self.text.len() > MAX_EVENT_BYTES {
                return None;
            }
            match self.body.next().await {
                Some(Ok(part)) => self.text.extend_from_slice(&part),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a stream of events was cut");
                    return None;
                }
                None => return None,
            }
        }
    }
}

/// Reads the lines of one event; comments are none.
fn read_event(block: &str) -> Option<ServerEvent> {
    let mut event = ServerEvent::default();
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => event.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut event.name),
            "data" => event.data.push_str(value),
            _ => {}
        }
    }
    (!event.name.is_empty() || !event.data.is_empty()).then_some(event)
}

/// How long the other side wants to be left alone, if it was asked too often.
fn pause_asked_for(response: &Response) -> Option<Duration> {
    (response.status() == StatusCode::TOO_MANY_REQUESTS)
        .then(|| response.headers().get(header::RETRY_AFTER)?.to_str().ok())
        .flatten()
        .and_then(|seconds| seconds.parse().ok())
        .map(Duration::from_secs)
}

/// What the other side said, as a failure of this one.
fn refused(status: StatusCode, problem: &ProblemDocument) -> Failure {
    let mut what = problem.detail.clone();
    for error in &problem.errors {
        // The field is named already where it is the only thing to say.
        what = format!("{what} ({}: {})", error.field, error.message);
    }
    let is_usage = matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY
    );
    let remedy = if status == StatusCode::UNAUTHORIZED {
        format!(
            "set {TOKEN_VARIABLE} to a token of that Fettler; `fettler token add` makes one there"
        )
    } else {
        problem.remedy.clone()
    };
    Failure {
        exit: if is_usage { Exit::Usage } else { Exit::Failed },
        problem: Problem::permanent(problem.code().to_owned(), what, remedy),
    }
}

/// The token that `fettler up` has left for the commands of its folder, if it listens at this address.
fn left_token(settings: &Settings, base: &Url) -> Option<String> {
    let text = std::fs::read_to_string(settings.api_token_file()).ok()?;
    let (url, token) = text.trim().split_once('\n')?;
    let there = Url::parse(url).ok()?;
    (there.origin() == base.origin()).then(|| token.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_and_a_comment_is_none() {
        let event = read_event("id: 1-2\nevent: job\ndata: {\"a\":1}\n\n").unwrap();
        assert_eq!(
            (event.id.as_deref(), event.name.as_str()),
            (Some("1-2"), "job")
        );
        assert_eq!(event.data, "{\"a\":1}");
        assert!(read_event(":\n\n").is_none());
    }

    #[test]
    fn a_token_is_given_only_to_the_address_that_it_was_left_for() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::defaults(folder.path());
        std::fs::write(
            settings.api_token_file(),
            "http://127.0.0.1:8080\nfettler_x\n",
        )
        .unwrap();
        let at = |text: &str| left_token(&settings, &Url::parse(text).unwrap());
        assert_eq!(at("http://127.0.0.1:8080/").as_deref(), Some("fettler_x"));
        assert_eq!(at("http://127.0.0.1:9999/"), None);
        assert_eq!(at("https://elsewhere/"), None);
    }

    #[test]
    fn a_server_that_cannot_be_one_is_refused() {
        let settings = Settings::defaults(std::path::Path::new("/nowhere"));
        for bad in ["fettler", "ftp://x/", "http://me:secret@x/"] {
            let failure = Remote::new(bad, &settings).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage, "{bad}");
        }
    }
}
