//! Sessions over the HTTP interface: a statement is one request, its rows or its data one answer.
//!
//! **An answer that breaks off.** A server that fails in the middle of an answer has sent its `200 OK` long ago. New
//! servers break the connection; those of 2018 write the error behind the rows and end the answer in good order. The last
//! bytes of each answer are therefore looked at ([`AnswerTail`]): where they may be an error, the statement is repeated with
//! an answer that the server holds back until it is whole, whose status tells.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use fettler_engine::{EngineContext, EngineError};
use futures::{Stream, StreamExt as _};
use reqwest::{Body, Certificate, Client, Identity, Response, redirect};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::{error::Refusal, params::Params};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long nothing may come from a server that works on a statement, such as the hash of a large part.
const SILENCE: Duration = Duration::from_secs(3600);
/// How long an idle connection is kept: below the three seconds after which old servers close it.
const IDLE: Duration = Duration::from_secs(2);
/// A machine that is gone without a word is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Bytes at the end of an answer in which an error would stand.
const TAIL_BYTES: usize = 16 * 1024;
/// What each error holds.
const EXCEPTION: &[u8] = b"DB::Exception";

/// A setting of a statement.
pub(crate) type Setting = (&'static str, &'static str);

/// What a statement came to.
pub(crate) type Answer<T> = Result<T, Refusal>;

/// A server, as one attempt speaks to it. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    client: Client,
    params: Arc<Params>,
    /// What the ids of this session's statements begin with.
    label: String,
    stop: CancellationToken,
    /// What a name without a database means.
    database: String,
    settings: Arc<BTreeSet<String>>,
    /// The version as the server writes it.
    pub(crate) version: String,
    /// The address that was reached.
    pub(crate) address: String,
}

#[derive(Deserialize)]
struct Table {
    data: Vec<Vec<serde_json::Value>>,
}

impl Session {
    /// A session of an attempt, whose name its statements carry.
    pub(crate) async fn of_attempt(
        params: &Params,
        context: &EngineContext,
    ) -> Result<Self, EngineError> {
        Self::open(params, &context.attempt.to_string(), &context.stop).await
    }

    /// A session that belongs to no attempt.
    pub(crate) async fn visit(params: &Params) -> Result<Self, EngineError> {
        Self::open(params, "fettler", &CancellationToken::new()).await
    }

    /// A session of somebody, whose name its statements carry. They end early when `stop` is cancelled.
    pub(crate) async fn open(
        params: &Params,
        label: &str,
        stop: &CancellationToken,
    ) -> Result<Self, EngineError> {
        let mut session = Self {
            client: client(params)?,
            params: Arc::new(params.clone()),
            label: label.to_owned(),
            stop: stop.clone(),
            // A user's own database may be gone; this one is always there.
            database: "system".to_owned(),
            settings: Arc::default(),
            version: String::new(),
            address: params.server(),
        };
        let response = session
            .send("SELECT version()", &[], None, "logging in")
            .await?
            .map_err(|refusal| refusal.doing(&params.server(), "logging in"))?;
        if let Some(address) = response.remote_addr() {
            session.address = address.to_string();
        }
        let version = session.text(response, "logging in").await?;
        version.trim().clone_into(&mut session.version);
        let known = session
            .rows(
                "SELECT name FROM system.settings",
                "asking which settings there are",
            )
            .await?;
        session.settings = Arc::new(known.into_iter().flatten().collect());
        Ok(session)
    }

    /// The same session, where a name without a database means one of this database.
    pub(crate) fn in_database(&self, database: &str) -> Self {
        Self {
            database: database.to_owned(),
            ..self.clone()
        }
    }

    /// How it is reached.
    pub(crate) fn params(&self) -> &Params {
        &self.params
    }

    /// The server's name in messages.
    pub(crate) fn server(&self) -> String {
        self.params.server()
    }

    /// The first two numbers of the version.
    pub(crate) fn version_numbers(&self) -> (u32, u32) {
        numbers_of(&self.version)
    }

    /// Runs a statement; settings that the server does not know are left out.
    pub(crate) async fn try_run(
        &self,
        sql: &str,
        settings: &[Setting],
        doing: &str,
    ) -> Result<Answer<()>, EngineError> {
        match self.send(sql, settings, None, doing).await? {
            Ok(response) => {
                let body = self.text(response, doing).await?;
                Ok(if body.contains("DB::Exception") {
                    Err(Refusal::read(&body))
                } else {
                    Ok(())
                })
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// The same, where a refusal is an error.
    pub(crate) async fn run(
        &self,
        sql: &str,
        settings: &[Setting],
        doing: &str,
    ) -> Result<(), EngineError> {
        self.try_run(sql, settings, doing)
            .await?
            .map_err(|refusal| refusal.doing(&self.server(), doing))
    }

    /// The rows of a query whose columns are all text. Absent values are empty.
    pub(crate) async fn try_rows(
        &self,
        sql: &str,
        settings: &[Setting],
        doing: &str,
    ) -> Result<Answer<Vec<Vec<String>>>, EngineError> {
        let sql = format!("{sql} FORMAT JSONCompact");
        let body = match self.send(&sql, settings, None, doing).await? {
            Ok(response) => self.text(response, doing).await?,
            Err(refusal) => return Ok(Err(refusal)),
        };
        match serde_json::from_str::<Table>(&body) {
            Ok(table) => Ok(Ok(table
                .data
                .into_iter()
                .map(|row| row.into_iter().map(text_of).collect())
                .collect())),
            Err(_) if body.contains("DB::Exception") => Ok(Err(Refusal::read(&body))),
            Err(error) => Err(EngineError::Unreachable {
                server: self.server(),
                what: format!("{doing}: its answer is no table ({error})"),
            }),
        }
    }

    /// The same, where a refusal is an error.
    pub(crate) async fn rows(
        &self,
        sql: &str,
        doing: &str,
    ) -> Result<Vec<Vec<String>>, EngineError> {
        self.try_rows(sql, &[], doing)
            .await?
            .map_err(|refusal| refusal.doing(&self.server(), doing))
    }

    /// The lines of an answer.
    pub(crate) async fn try_lines(
        &self,
        sql: &str,
        doing: &str,
    ) -> Result<Answer<Vec<String>>, EngineError> {
        let rows = self.try_rows(sql, &[], doing).await?;
        Ok(rows.map(|rows| rows.into_iter().flatten().collect()))
    }

    /// Whether the server knows a setting.
    pub(crate) fn knows(&self, setting: &str) -> bool {
        self.settings.contains(setting)
    }

    /// Whether a table of the server's own has a column: what it has differs between versions.
    pub(crate) async fn has_column(&self, table: &str, column: &str) -> Result<bool, EngineError> {
        let sql = format!(
            "SELECT name FROM system.columns WHERE database = 'system' AND table = '{table}' AND name = '{column}'"
        );
        Ok(!self
            .rows(&sql, "asking what the server tells")
            .await?
            .is_empty())
    }

    /// The bytes of an answer, up to so many; nothing where it is longer. A refusal is an answer too.
    pub(crate) async fn try_bytes(
        &self,
        sql: &str,
        settings: &[(&str, &str)],
        most: usize,
        doing: &str,
    ) -> Result<Answer<Option<Vec<u8>>>, EngineError> {
        let mut response = match self.send(sql, settings, None, doing).await? {
            Ok(response) => response,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut body = Vec::new();
        while let Some(piece) = self
            .stop
            .run_until_cancelled(response.chunk())
            .await
            .ok_or(EngineError::Stopped)?
            .map_err(|error| lost(&self.server(), doing, &error))?
        {
            if body.len() + piece.len() > most {
                return Ok(Ok(None));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Ok(Some(body)))
    }

    /// The bytes of an answer as they come.
    pub(crate) async fn read(
        &self,
        sql: &str,
        settings: &[Setting],
        doing: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, EngineError>> + use<>, EngineError> {
        let response = self
            .send(sql, settings, None, doing)
            .await?
            .map_err(|refusal| refusal.doing(&self.server(), doing))?;
        let (server, doing, stop) = (self.server(), doing.to_owned(), self.stop.clone());
        Ok(response
            .bytes_stream()
            .take_until(stop.clone().cancelled_owned())
            .map(move |bytes| bytes.map_err(|error| lost(&server, &doing, &error)))
            .chain(futures::stream::iter(
                std::iter::from_fn(move || {
                    stop.is_cancelled().then_some(Err(EngineError::Stopped))
                })
                .take(1),
            )))
    }

    /// Runs an INSERT whose data follows.
    pub(crate) async fn write(
        &self,
        insert: &str,
        settings: &[Setting],
        data: Body,
        doing: &str,
    ) -> Result<Answer<()>, EngineError> {
        match self.send(insert, settings, Some(data), doing).await? {
            Ok(response) => {
                let body = self.text(response, doing).await?;
                Ok(if body.contains("DB::Exception") {
                    Err(Refusal::read(&body))
                } else {
                    Ok(())
                })
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    async fn send(
        &self,
        sql: &str,
        settings: &[(&str, &str)],
        data: Option<Body>,
        doing: &str,
    ) -> Result<Answer<Response>, EngineError> {
        let mut query: Vec<(&str, &str)> = settings
            .iter()
            .filter(|(name, _)| *name == WAIT_END.0 || self.settings.contains(*name))
            .copied()
            .collect();
        let id = format!("{}/{}", self.label, random_word());
        query.push(("query_id", &id));
        query.push(("database", &self.database));
        let body = match data {
            Some(data) => {
                query.push(("query", sql));
                data
            }
            None => Body::from(sql.to_owned()),
        };
        let mut url =
            url::Url::parse(&self.params.base()).map_err(|error| EngineError::Missing {
                code: "url",
                what: format!("the database's URL cannot be used: {error}"),
                remedy: "write it as `clickhouse://user@host:8123/database`".to_owned(),
            })?;
        url.query_pairs_mut().extend_pairs(query);
        let mut request = self.client.post(url).body(body);
        if let Some(user) = &self.params.user {
            request = request.header("X-ClickHouse-User", user);
        }
        if let Some(password) = &self.params.password {
            request = request.header("X-ClickHouse-Key", password.expose());
        }
        let sent = self
            .stop
            .run_until_cancelled(request.send())
            .await
            .ok_or(EngineError::Stopped)?;
        let response = sent.map_err(|error| lost(&self.server(), doing, &error))?;
        if response.status().is_success() {
            return Ok(Ok(response));
        }
        let status = response.status();
        let body = self.text(response, doing).await?;
        let mut refusal = Refusal::read(&body);
        if refusal.code == 0 {
            refusal.message = format!("{status} {}", refusal.message);
            if matches!(status.as_u16(), 502..=504) {
                return Err(EngineError::Unreachable {
                    server: self.server(),
                    what: format!("{doing}: {}", refusal.message),
                });
            }
        }
        Ok(Err(refusal))
    }

    async fn text(&self, response: Response, doing: &str) -> Result<String, EngineError> {
        let read = self
            .stop
            .run_until_cancelled(response.bytes())
            .await
            .ok_or(EngineError::Stopped)?;
        let bytes = read.map_err(|error| lost(&self.server(), doing, &error))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Asks the server to answer only when it knows how the statement ended.
pub(crate) const WAIT_END: Setting = ("wait_end_of_query", "1");

/// The last bytes of an answer.
#[derive(Debug, Default)]
pub(crate) struct AnswerTail(Vec<u8>);

impl AnswerTail {
    /// Takes the next bytes.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        let new = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        self.0.extend_from_slice(new);
        let surplus = self.0.len().saturating_sub(TAIL_BYTES);
        self.0.drain(..surplus);
    }

    /// Whether an error may stand there. Rows that hold the words are taken for one too.
    pub(crate) fn may_be_an_error(&self) -> bool {
        self.0
            .windows(EXCEPTION.len())
            .any(|window| window == EXCEPTION)
    }
}

/// A value as text; absent ones are empty.
fn text_of(value: serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    }
}

fn client(params: &Params) -> Result<Client, EngineError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| EngineError::Missing {
        code: "tls",
        what: format!("{what}: {error}"),
        remedy: "name files in PEM form that this process may read".to_owned(),
    };
    let mut builder = Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE)
        .pool_idle_timeout(IDLE)
        .tcp_keepalive(KEEP_ALIVE)
        .http1_only();
    if !params.addresses.is_empty() {
        builder = builder.resolve_to_addrs(&params.host, &params.socket_addresses());
    }
    if let Some(files) = &params.tls {
        if let Some(ca) = &files.ca {
            let pem =
                std::fs::read(ca).map_err(|error| failed(&ca.display().to_string(), &error))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .map_err(|error| failed(&ca.display().to_string(), &error))?;
            for certificate in certificates {
                builder = builder.add_root_certificate(certificate);
            }
        }
        if let Some(path) = &files.identity {
            let pem =
                std::fs::read(path).map_err(|error| failed(&path.display().to_string(), &error))?;
            let identity = Identity::from_pem(&pem)
                .map_err(|error| failed(&path.display().to_string(), &error))?;
            builder = builder.identity(identity);
        }
    }
    builder
        .build()
        .map_err(|error| failed("a connection cannot be prepared", &error))
}

fn lost(server: &str, doing: &str, error: &reqwest::Error) -> EngineError {
    // The address holds the statement: it is not for messages.
    let mut what = String::new();
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(inner) = source {
        what = inner.to_string();
        source = inner.source();
    }
    if what.is_empty() {
        what = if error.is_timeout() {
            "no answer in time".to_owned()
        } else {
            "the connection was lost".to_owned()
        };
    }
    EngineError::Unreachable {
        server: server.to_owned(),
        what: format!("{doing}: {what}"),
    }
}

/// Sixteen hexadecimal digits that nobody can guess.
pub(crate) fn random_word() -> String {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    hex::encode(bytes)
}

/// The first two numbers of a version.
pub(crate) fn numbers_of(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_behind_the_rows_is_seen_wherever_buffers_are_cut() {
        let answer = [
            vec![0xff; 40_000],
            b"Code: 241, e.displayText() = DB::Exception: Memory limit".to_vec(),
        ]
        .concat();
        for cut in [1, 7, 1000, 50_000] {
            let mut tail = AnswerTail::default();
            answer.chunks(cut).for_each(|bytes| tail.take(bytes));
            assert!(tail.may_be_an_error(), "{cut}");
        }
        let mut tail = AnswerTail::default();
        tail.take(&vec![0xff; 40_000]);
        assert!(!tail.may_be_an_error());
    }

    #[test]
    fn versions_are_compared_by_their_first_numbers() {
        assert_eq!(numbers_of("26.9.2.1"), (26, 9));
        assert_eq!(numbers_of("18.16.1"), (18, 16));
        assert!(numbers_of("9.1") < numbers_of("10.0"));
    }
}
