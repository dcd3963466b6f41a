//! Counts what reaches an S3 store, and lets it fail on purpose: an HTTP/1.1 proxy before MinIO that notes every request and
//! asks a rule what to do with it. Bodies pass through in pieces and are never held whole.
//!
//! Requests are passed on unchanged, the `Host` header too, so that their signatures stay valid.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::Result;
use crate::front::{Connections, Front};

/// The longest head of a request or an answer: many times what S3 clients send.
const HEAD_BYTES: u64 = 64 * 1024;

/// The longest line that announces a chunk.
const CHUNK_LINE_BYTES: u64 = 4 * 1024;

/// A request as the proxy saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Request {
    /// Its number since the proxy's start, from 0. Requests of parallel connections are numbered as their heads arrive.
    pub number: u64,
    /// `GET`, `PUT`, …
    pub method: String,
    /// The bucket.
    pub bucket: String,
    /// The object's key, decoded; empty for requests about the bucket.
    pub key: String,
    /// What follows the question mark, as sent: `partNumber=2&uploadId=…`, `list-type=2&prefix=…`.
    pub query: String,
    /// The length of the body as announced.
    pub body_bytes: u64,
    /// The status of the answer that the client was sent; `None` where it got none (yet).
    pub status: Option<u16>,
}

impl S3Request {
    /// Whether it was answered with success.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.status
            .is_some_and(|status| (200..300).contains(&status))
    }

    /// Whether it brings the bytes of an object, whole or in part.
    #[must_use]
    pub fn is_upload(&self) -> bool {
        self.method == "PUT" && !self.key.is_empty() && self.body_bytes > 0
    }
}

/// What the proxy does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum S3Action {
    /// Passes it on.
    Forward,
    /// Passes it on after a while.
    Delay(Duration),
    /// Answers with this status; the store never hears of it. A success is a lie, as of a store that ignores what it was told.
    Answer(u16),
    /// Closes the connection; the store never hears of it.
    CutBefore,
    /// Passes it on, and closes the connection when the store has answered: it is done, and the client does not know.
    CutAfter,
}

type Rule = Arc<dyn Fn(&S3Request) -> S3Action + Send + Sync>;

/// A proxy on a loopback port of its own, before an S3 store on another. Dropping it cuts its connections.
#[derive(Debug)]
pub struct S3Proxy {
    front: Front,
    state: Arc<State>,
}

struct State {
    requests: Mutex<Vec<S3Request>>,
    rule: Mutex<Rule>,
}

impl fmt::Debug for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("State")
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}

impl S3Proxy {
    /// Starts a proxy that passes everything on to the store on a loopback port.
    ///
    /// # Errors
    ///
    /// [`crate::ServerError::Io`] where no port can be had.
    pub fn start(store_port: u16) -> Result<Self> {
        let state = Arc::new(State {
            requests: Mutex::default(),
            rule: Mutex::new(Arc::new(|_: &S3Request| S3Action::Forward)),
        });
        let shared = Arc::clone(&state);
        let front = Front::start(
            store_port,
            Arc::new(Connections::default()),
            move |client, store| {
                // It ends with the connection, in whatever way that ends: the client and the record of requests both show it.
                let _ = shared.serve(&client, &store);
            },
        )?;
        Ok(Self { front, state })
    }

    /// The endpoint for clients; see also [`crate::MinioServer::env_via`].
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.front.port())
    }

    /// The requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<S3Request> {
        self.state.requests().clone()
    }

    /// How many requests with this method and a key that starts with `key_prefix` there were so far, failed ones too.
    #[must_use]
    pub fn count(&self, method: &str, key_prefix: &str) -> usize {
        let requests = self.state.requests();
        requests
            .iter()
            .filter(|request| request.method == method && request.key.starts_with(key_prefix))
            .count()
    }

    /// How many bytes of objects whose key starts with `key_prefix` were uploaded and answered
    /// with success; an upload whose answer was cut off is not among them.
    #[must_use]
    pub fn bytes_uploaded(&self, key_prefix: &str) -> u64 {
        let requests = self.state.requests();
        let uploads = requests
            .iter()
            .filter(|request| request.is_upload() && request.succeeded());
        uploads
            .filter(|request| request.key.starts_with(key_prefix))
            .map(|request| request.body_bytes)
            .sum()
    }

    /// Asks `rule` about every request from now on.
    pub fn decide(&self, rule: impl Fn(&S3Request) -> S3Action + Send + Sync + 'static) {
        *self
            .state
            .rule
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(rule);
    }

    /// Does `action` with every `n`th request (the `n`th from the proxy's start is the first), and passes the others on.
    ///
    /// # Panics
    ///
    /// When `n` is 0.
    pub fn every(&self, n: u64, action: S3Action) {
        assert!(n > 0, "every 0th request is none");
        self.decide(move |request| {
            if (request.number + 1).is_multiple_of(n) {
                action
            } else {
                S3Action::Forward
            }
        });
    }

    /// Passes everything on again.
    pub fn forward_all(&self) {
        self.decide(|_| S3Action::Forward);
    }

    /// Cuts every open connection. New ones are accepted.
    pub fn cut(&self) {
        self.front.cut();
    }

    /// Closes new connections at once, or takes them again: the store cannot be reached.
    pub fn refuse(&self, refuse: bool) {
        self.front.refuse(refuse);
    }
}

impl State {
    fn requests(&self) -> std::sync::MutexGuard<'_, Vec<S3Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes requests on, one after the other, until either side closes the connection.
    fn serve(&self, client: &TcpStream, store: &TcpStream) -> std::io::Result<()> {
        let mut from_client = BufReader::new(client);
        let mut from_store = BufReader::new(store);
        let (mut to_client, mut to_store) = (client, store);
        while let Some(head) = Head::read(&mut from_client)? {
            let request = self.note(&head)?;
            let rule = Arc::clone(&self.rule.lock().unwrap_or_else(PoisonError::into_inner));
            let action = rule(&request);
            if head.field("expect").is_some() && !matches!(action, S3Action::CutBefore) {
                to_client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            match action {
                S3Action::CutBefore => return Ok(()),
                S3Action::Answer(status) => {
                    head.request_body()?
                        .pass(&mut from_client, &mut std::io::sink())?;
                    self.answered(request.number, status);
                    to_client.write_all(stand_in(status, &request).as_bytes())?;
                    continue;
                }
                S3Action::Delay(pause) => std::thread::sleep(pause),
                S3Action::Forward | S3Action::CutAfter => {}
            }
            // A store that refuses a request may answer and close before it has read the body: its answer counts.
            let sent = to_store
                .write_all(head.text.as_bytes())
                .and_then(|()| head.request_body()?.pass(&mut from_client, &mut to_store));
            let answer = loop {
                let Some(answer) = Head::read(&mut from_store)? else {
                    return Ok(());
                };
                // The client has had its 100 from here.
                if !(100..200).contains(&answer.status()?) {
                    break answer;
                }
            };
            let body = answer.answer_body(&head.method)?;
            if action == S3Action::CutAfter {
                return body.pass(&mut from_store, &mut std::io::sink());
            }
            // Noted before it is sent, so that a client which has its answer also finds it counted.
            self.answered(request.number, answer.status()?);
            to_client.write_all(answer.text.as_bytes())?;
            body.pass(&mut from_store, &mut to_client)?;
            if sent.is_err() || matches!(body, Body::UntilClose) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn note(&self, head: &Head) -> std::io::Result<S3Request> {
        let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
        let path = path.trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let body_bytes = match head.request_body()? {
            Body::Bytes(bytes) => bytes,
            Body::Chunks | Body::UntilClose => 0,
        };
        let mut requests = self.requests();
        let request = S3Request {
            number: u64::try_from(requests.len()).expect("requests can be counted"),
            method: head.method.clone(),
            bucket: decode(bucket),
            key: decode(key),
            query: query.to_owned(),
            body_bytes,
            status: None,
        };
        requests.push(request.clone());
        Ok(request)
    }

    fn answered(&self, number: u64, status: u16) {
        let index = usize::try_from(number).expect("the number came from an index");
        self.requests()[index].status = Some(status);
    }
}

/// The answer in the store's place, in the store's own form.
fn stand_in(status: u16, request: &S3Request) -> String {
    if (200..300).contains(&status) {
        return format!(
            "HTTP/1.1 {status} On Purpose\r\nETag: \"00000000000000000000000000000000\"\r\nContent-Length: 0\r\n\r\n"
        );
    }
    let body = if request.method == "HEAD" {
        String::new()
    } else {
        format!(
            "<?xml version=\"1.0\"?><Error><Code>Refused</Code><Message>status {status} on purpose</Message></Error>"
        )
    };
    let length = body.len();
    format!(
        "HTTP/1.1 {status} On Purpose\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// The first line and the fields of a request or an answer.
struct Head {
    /// As it came, with the empty line at its end.
    text: String,
    /// The first word: a method, or the protocol of an answer.
    method: String,
    /// The second word: a target, or the status of an answer.
    target: String,
}

/// How the length of a body is told.
#[derive(Clone, Copy, Debug)]
enum Body {
    Bytes(u64),
    Chunks,
    UntilClose,
}

impl Head {
    /// Reads a head; `None` where the connection was closed in good order.
    fn read(from: &mut impl BufRead) -> std::io::Result<Option<Self>> {
        let mut text = String::new();
        let mut limited = from.take(HEAD_BYTES);
        loop {
            let before = text.len();
            if limited.read_line(&mut text)? == 0 {
                return if text.is_empty() {
                    Ok(None)
                } else {
                    Err(bad("a head that is cut short or too long"))
                };
            }
            if text[before..].trim_end().is_empty() {
                break;
            }
        }
        let mut words = text.split_ascii_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Err(bad("a first line without a target"));
        };
        let (method, target) = (method.to_owned(), target.to_owned());
        Ok(Some(Self {
            text,
            method,
            target,
        }))
    }

    fn field(&self, name: &str) -> Option<&str> {
        let fields = self
            .text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        let mut found = fields.filter(|(its_name, _)| its_name.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.trim())
    }

    fn status(&self) -> std::io::Result<u16> {
        self.target
            .parse()
            .map_err(|_| bad("an answer without a status"))
    }

    /// The body, where a length is told.
    fn told_body(&self) -> std::io::Result<Option<Body>> {
        if self
            .field("transfer-encoding")
            .is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked"))
        {
            return Ok(Some(Body::Chunks));
        }
        let length = self.field("content-length").map(str::parse).transpose();
        Ok(length
            .map_err(|_| bad("a length that is no number"))?
            .map(Body::Bytes))
    }

    fn request_body(&self) -> std::io::Result<Body> {
        Ok(self.told_body()?.unwrap_or(Body::Bytes(0)))
    }

    fn answer_body(&self, method: &str) -> std::io::Result<Body> {
        if method == "HEAD" || matches!(self.status()?, 204 | 304) {
            return Ok(Body::Bytes(0));
        }
        Ok(self.told_body()?.unwrap_or(Body::UntilClose))
    }
}

impl Body {
    fn pass(self, from: &mut impl BufRead, to: &mut impl Write) -> std::io::Result<()> {
        match self {
            Self::Bytes(bytes) => pass_bytes(bytes, from, to),
            Self::UntilClose => std::io::copy(from, to).map(drop),
            Self::Chunks => loop {
                let line = pass_line(from, to)?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size =
                    u64::from_str_radix(size, 16).map_err(|_| bad("a chunk without a size"))?;
                if size == 0 {
                    // Trailers, up to an empty line.
                    while !pass_line(from, to)?.trim_end().is_empty() {}
                    return Ok(());
                }
                pass_bytes(size, from, to)?;
                pass_line(from, to)?;
            },
        }
    }
}

fn pass_bytes(bytes: u64, from: &mut impl BufRead, to: &mut impl Write) -> std::io::Result<()> {
    let passed = std::io::copy(&mut from.take(bytes), to)?;
    if passed == bytes {
        Ok(())
    } else {
        Err(bad("a body that is cut short"))
    }
}

fn pass_line(from: &mut impl BufRead, to: &mut impl Write) -> std::io::Result<String> {
    let mut line = String::new();
    from.take(CHUNK_LINE_BYTES).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(bad("a line that is cut short or too long"));
    }
    to.write_all(line.as_bytes())?;
    Ok(line)
}

fn bad(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what)
}

/// Decodes what is percent-encoded.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail
            .get(..2)
            .filter(|_| first == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
