//! Connections: reaching a server, logging in, commands and cursors.

use std::{io, net::SocketAddr, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use bson::{
    Binary, RawDocument, RawDocumentBuf, Timestamp, raw::RawBsonRef, rawdoc, spec::BinarySubtype,
};
use fettler_engine::{EngineContext, EngineError};
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::Refusal,
    params::{Mechanism, Params, Place},
    raw::put,
    scram::{Hash, Scram},
    shards::oplogs::CLUSTER_TIME,
    wire::{self, Sequence, Wire},
};

/// How long a server may take to accept a connection and a login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an answer may take. Commands that take as long as they take are sent with signs of life instead.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// The name of a session that belongs to no attempt.
pub(crate) const VISITOR: &str = "fettler";
/// The first version of the protocol of which everything here is (MongoDB 3.6; `OP_MSG`).
const OLDEST_WIRE_VERSION: i32 = 6;
/// Bytes of a batch that a cursor is asked for; a server ends one at 16 MiB by itself.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Documents of a cursor's first batch, before their size is known.
const FIRST_BATCH: i32 = 500;
/// Most documents asked for at once.
const LARGEST_BATCH: usize = 100_000;

/// Reaches a server; no login yet. Also gives the address that was reached.
async fn reach(params: &Params) -> Result<(Box<dyn Wire>, String), EngineError> {
    timeout(CONNECT_TIMEOUT, reach_somehow(params))
        .await
        .unwrap_or_else(|_| {
            Err(unreachable(
                params,
                &format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
            ))
        })
}

async fn reach_somehow(params: &Params) -> Result<(Box<dyn Wire>, String), EngineError> {
    let failed = |error: io::Error| unreachable(params, &error);
    match &params.place {
        Place::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(failed)?;
            let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            Ok((Box::new(stream), whole.display().to_string()))
        }
        Place::Tcp { host, port } => {
            let stream = if params.addresses.is_empty() {
                TcpStream::connect((host.as_str(), *port)).await
            } else {
                let addresses: Vec<SocketAddr> = params
                    .addresses
                    .iter()
                    .map(|address| SocketAddr::new(*address, *port))
                    .collect();
                TcpStream::connect(addresses.as_slice()).await
            }
            .map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            keep_alive(&stream).map_err(failed)?;
            let address = stream.peer_addr().map_err(failed)?.to_string();
            match &params.tls {
                None => Ok((Box::new(stream), address)),
                Some(files) => Ok((
                    Box::new(fettler_engine_tls::begin(files, host, stream).await?),
                    address,
                )),
            }
        }
    }
}

/// A machine that is gone without a word is noticed.
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

fn unreachable(params: &Params, what: &dyn std::fmt::Display) -> EngineError {
    EngineError::Unreachable {
        server: params.server(),
        what: what.to_string(),
    }
}

/// What a server says of itself at the first word.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hello {
    /// Takes writes.
    pub(crate) is_primary: bool,
    /// Is a replica set's secondary.
    pub(crate) is_secondary: bool,
    /// Routes to the shards of a cluster.
    pub(crate) is_router: bool,
    /// The replica set's name.
    pub(crate) set_name: Option<String>,
    /// Where the set's primary is.
    pub(crate) primary: Option<String>,
    /// The newest version of the protocol that it speaks.
    pub(crate) wire_version: i32,
    /// The ways in which the user may log in, where it tells.
    mechanisms: Vec<String>,
}

impl Hello {
    /// Whether it knows what a majority has.
    pub(crate) fn knows_majority(&self) -> bool {
        self.is_router || self.set_name.is_some()
    }

    fn of(answer: &RawDocument) -> Self {
        let flag = |name: &str| answer.get_bool(name).unwrap_or(false);
        let text = |name: &str| answer.get_str(name).ok().map(str::to_owned);
        Self {
            is_primary: flag("isWritablePrimary") || flag("ismaster"),
            is_secondary: flag("secondary"),
            is_router: answer.get_str("msg").is_ok_and(|said| said == "isdbgrid"),
            set_name: text("setName"),
            primary: text("primary"),
            wire_version: answer.get_i32("maxWireVersion").unwrap_or(0),
            mechanisms: answer
                .get_array("saslSupportedMechs")
                .map(|list| {
                    list.into_iter()
                        .filter_map(|one| Some(one.ok()?.as_str()?.to_owned()))
                        .collect()
                })
                .unwrap_or_default(),
        }
    }
}

/// What a command came to.
pub(crate) type Answer = Result<RawDocumentBuf, Refusal>;

/// A session of one task. Ends when it is dropped.
pub(crate) struct Session {
    wire: Box<dyn Wire>,
    server: String,
    /// The address that was reached.
    pub(crate) address: String,
    /// What the server said of itself.
    pub(crate) hello: Hello,
    /// The cluster's time that the server told last, with what vouches for it.
    pub(crate) cluster_time: Option<RawDocumentBuf>,
    stop: CancellationToken,
    last_id: i32,
    /// An answer is on its way that nobody waits for any more.
    is_broken: bool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Logs in, under a name that `currentOp` shows. Its commands end early when `stop` is cancelled.
    pub(crate) async fn open(
        params: &Params,
        name: &str,
        stop: &CancellationToken,
    ) -> Result<Self, EngineError> {
        let (wire, address) = stop
            .run_until_cancelled(reach(params))
            .await
            .ok_or(EngineError::Stopped)??;
        let mut session = Self {
            wire,
            server: params.server(),
            address,
            hello: Hello::default(),
            cluster_time: None,
            stop: stop.clone(),
            last_id: 0,
            is_broken: false,
        };
        timeout(CONNECT_TIMEOUT, session.log_in(params, name))
            .await
            .unwrap_or_else(|_| Err(unreachable(params, &"it does not answer the login")))?;
        Ok(session)
    }

    /// A session of an attempt.
    pub(crate) async fn of_attempt(
        params: &Params,
        context: &EngineContext,
    ) -> Result<Self, EngineError> {
        Self::open(params, &context.attempt.to_string(), &context.stop).await
    }

    /// A session that belongs to no attempt.
    pub(crate) async fn visit(params: &Params) -> Result<Self, EngineError> {
        Self::open(params, VISITOR, &CancellationToken::new()).await
    }

    /// The server's name in messages.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    async fn log_in(&mut self, params: &Params, name: &str) -> Result<(), EngineError> {
        let greeting = |word: &str| {
            let mut greeting = RawDocumentBuf::new();
            put(&mut greeting, word, 1);
            put(
                &mut greeting,
                "client",
                rawdoc! {
                    "application": { "name": name },
                    "driver": { "name": "fettler", "version": env!("CARGO_PKG_VERSION") },
                    "os": { "type": std::env::consts::OS },
                },
            );
            if let Some(user) = &params.user {
                let user = format!("{}.{user}", params.auth_source);
                put(&mut greeting, "saslSupportedMechs", user);
            }
            greeting
        };
        let mut said = self.try_run("admin", greeting("hello")).await?;
        if said.as_ref().is_err_and(Refusal::is_unknown) {
            // Older servers know it by this name.
            said = self.try_run("admin", greeting("isMaster")).await?;
        }
        let said = said.map_err(|refusal| refusal.doing(&self.server, "greeting it"))?;
        self.hello = Hello::of(&said);
        if self.hello.wire_version < OLDEST_WIRE_VERSION {
            return Err(EngineError::Missing {
                code: "version",
                what: format!("{} is older than MongoDB 3.6", self.server),
                remedy: "update the server".to_owned(),
            });
        }
        let refused = |what: &str| EngineError::LoginRefused {
            server: params.server(),
            what: what.to_owned(),
        };
        match (params.mechanism, &params.user, &params.password) {
            (Some(Mechanism::X509), user, _) => {
                let mut command = rawdoc! { "authenticate": 1, "mechanism": "MONGODB-X509" };
                if let Some(user) = user {
                    put(&mut command, "user", user.as_str());
                }
                let said = self.try_run(&params.auth_source, command).await?;
                said.map(drop)
                    .map_err(|refusal| refused(&refusal.to_string()))
            }
            (_, None, _) => Ok(()),
            (_, Some(_), None) => Err(refused("no password was given")),
            (Some(Mechanism::Plain), Some(user), Some(password)) => {
                let payload = format!("\0{user}\0{}", password.expose());
                let command = sasl_start("PLAIN", payload.as_bytes());
                let said = self.try_run(&params.auth_source, command).await?;
                said.map(drop)
                    .map_err(|refusal| refused(&refusal.to_string()))
            }
            (mechanism, Some(user), Some(password)) => {
                let offered = |hash: Hash| {
                    self.hello
                        .mechanisms
                        .iter()
                        .any(|one| one == hash.mechanism())
                };
                let hash = match mechanism {
                    Some(Mechanism::ScramSha1) => Hash::Sha1,
                    Some(Mechanism::ScramSha256) => Hash::Sha256,
                    _ if offered(Hash::Sha1) && !offered(Hash::Sha256) => Hash::Sha1,
                    _ => Hash::Sha256,
                };
                self.scram(&params.auth_source, hash, user, password.expose())
                    .await
            }
        }
    }

    async fn scram(
        &mut self,
        source: &str,
        hash: Hash,
        user: &str,
        password: &str,
    ) -> Result<(), EngineError> {
        let refused = {
            let server = self.server.clone();
            move |what: String| EngineError::LoginRefused {
                server: server.clone(),
                what,
            }
        };
        let mut nonce = [0; 24];
        getrandom::fill(&mut nonce).map_err(|error| {
            EngineError::local("asking for random bytes", std::io::Error::other(error))
        })?;
        let nonce = BASE64_STANDARD_NO_PAD.encode(nonce);
        let scram = Scram::begin(hash, user, password, &nonce).map_err(&refused)?;
        let start = sasl_start(hash.mechanism(), scram.first().as_bytes());
        let said = self.try_run(source, start).await?;
        let said = said.map_err(|refusal| refused(refusal.to_string()))?;
        let (answer, expected) = scram
            .answer(
                &payload_of(&said)
                    .ok_or_else(|| refused("its answer cannot be read".to_owned()))?,
            )
            .map_err(&refused)?;
        let conversation = said.get_i32("conversationId").unwrap_or(1);
        let go_on = |payload: &[u8]| {
            rawdoc! {
                "saslContinue": 1,
                "conversationId": conversation,
                "payload": binary(payload),
            }
        };
        let said = self.try_run(source, go_on(answer.as_bytes())).await?;
        let mut said = said.map_err(|refusal| refused(refusal.to_string()))?;
        if !payload_of(&said).is_some_and(|last| expected.is(&last)) {
            return Err(refused(
                "the server does not know the password that it let in: it is another one than it says".to_owned(),
            ));
        }
        // A server that does not know the short exchange wants one more, empty message.
        if !said.get_bool("done").unwrap_or(false) {
            said = self
                .try_run(source, go_on(b""))
                .await?
                .map_err(|refusal| refused(refusal.to_string()))?;
        }
        if said.get_bool("done").unwrap_or(false) {
            Ok(())
        } else {
            Err(refused("the login does not come to an end".to_owned()))
        }
    }

    /// Sends a command to a database; a refusal is an answer too.
    pub(crate) async fn try_run(
        &mut self,
        database: &str,
        command: RawDocumentBuf,
    ) -> Result<Answer, EngineError> {
        match timeout(ANSWER_TIMEOUT, self.exchange(database, command, None)).await {
            Ok(answer) => answer,
            Err(_) => Err(EngineError::Unreachable {
                server: self.server.clone(),
                what: format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
            }),
        }
    }

    /// The same for a command that takes as long as it takes, with documents beside it.
    pub(crate) async fn exchange(
        &mut self,
        database: &str,
        mut command: RawDocumentBuf,
        sequence: Option<Sequence<'_>>,
    ) -> Result<Answer, EngineError> {
        put(&mut command, "$db", database);
        if self.hello.is_secondary {
            put(
                &mut command,
                "$readPreference",
                rawdoc! { "mode": "secondaryPreferred" },
            );
        }
        if self.is_broken {
            return Err(EngineError::Unreachable {
                server: self.server.clone(),
                what: "the connection was given up in the middle of an answer".to_owned(),
            });
        }
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        let message = wire::encode(id, &command, sequence);
        self.is_broken = true;
        let wire = &mut self.wire;
        let talk = async {
            wire::send(wire, &message).await?;
            wire::read_answer(wire, id).await
        };
        let answer = self
            .stop
            .run_until_cancelled(talk)
            .await
            .ok_or(EngineError::Stopped)?
            .map_err(|error| EngineError::Unreachable {
                server: self.server.clone(),
                what: format!("the connection was lost: {error}"),
            })?;
        self.is_broken = false;
        if let Ok(time) = answer.get_document(CLUSTER_TIME) {
            self.cluster_time = Some(time.to_owned());
        }
        let is_ok = match answer.get("ok") {
            Ok(Some(RawBsonRef::Double(ok))) => ok == 1.0,
            Ok(Some(RawBsonRef::Int32(ok))) => ok == 1,
            Ok(Some(RawBsonRef::Int64(ok))) => ok == 1,
            Ok(Some(RawBsonRef::Boolean(ok))) => ok,
            _ => false,
        };
        Ok(if is_ok {
            Ok(answer)
        } else {
            Err(Refusal::of(&answer))
        })
    }

    /// Sends a command whose refusal is an error.
    pub(crate) async fn run(
        &mut self,
        database: &str,
        command: RawDocumentBuf,
        doing: &str,
    ) -> Result<RawDocumentBuf, EngineError> {
        let answer = self.try_run(database, command).await?;
        answer.map_err(|refusal| refusal.doing(&self.server, doing))
    }

    /// An error for an answer that nobody can understand. `what` names no value of the database.
    pub(crate) fn unexpected(&self, doing: &str, what: &dyn std::fmt::Display) -> EngineError {
        EngineError::Database {
            what: format!(
                "{} answered what was not expected ({doing}): {what}",
                self.server
            ),
            transient: false,
        }
    }

    /// Sends a command that opens a cursor (`find`, `aggregate`, `listCollections`, `listIndexes`).
    pub(crate) async fn open_cursor(
        &mut self,
        database: &str,
        mut command: RawDocumentBuf,
        doing: &str,
    ) -> Result<Result<Cursor, Refusal>, EngineError> {
        let is_find =
            matches!(command.iter().next(), Some(Ok((name, _))) if name.as_str() == "find");
        if is_find && !matches!(command.get("batchSize"), Ok(Some(_))) {
            put(&mut command, "batchSize", FIRST_BATCH);
        } else if !is_find {
            put(&mut command, "cursor", RawDocumentBuf::new());
        }
        let answer = match self.try_run(database, command).await? {
            Ok(answer) => answer,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let head = CursorHead::of(&answer).ok_or_else(|| self.unexpected(doing, &"no cursor"))?;
        Ok(Ok(Cursor {
            database: database.to_owned(),
            collection: head.collection.to_owned(),
            id: head.id,
            doing: doing.to_owned(),
            batch_size: FIRST_BATCH,
            patience: None,
            answer: Some(answer),
        }))
    }

    /// All documents of a command that opens a cursor; for lists that are short.
    pub(crate) async fn list(
        &mut self,
        database: &str,
        command: RawDocumentBuf,
        doing: &str,
    ) -> Result<Result<Vec<RawDocumentBuf>, Refusal>, EngineError> {
        let mut cursor = match self.open_cursor(database, command, doing).await? {
            Ok(cursor) => cursor,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut found = Vec::new();
        while let Some(batch) = cursor.next(self).await? {
            for document in batch.documents() {
                found.push(
                    document
                        .map_err(|what| self.unexpected(doing, &what))?
                        .to_owned(),
                );
            }
        }
        Ok(Ok(found))
    }

    /// The newest moment of the server's oplog that is settled in the whole set; nothing where the oplog is empty.
    pub(crate) async fn newest_moment(
        &mut self,
    ) -> Result<Result<Option<Timestamp>, Refusal>, EngineError> {
        self.newest_of(true).await
    }

    /// The newest moment, of what is settled in the whole set or of what this server has.
    pub(crate) async fn newest_of(
        &mut self,
        is_settled: bool,
    ) -> Result<Result<Option<Timestamp>, Refusal>, EngineError> {
        let mut command = rawdoc! {
            "find": "oplog.rs",
            "sort": { "$natural": -1 },
            "limit": 1,
            "singleBatch": true,
        };
        if is_settled && self.hello.knows_majority() {
            put(&mut command, "readConcern", rawdoc! { "level": "majority" });
        }
        Ok(self
            .list("local", command, "looking at the oplog")
            .await?
            .map(|found| found.first().and_then(|one| one.get_timestamp("ts").ok())))
    }
}

fn binary(bytes: &[u8]) -> Binary {
    Binary {
        subtype: BinarySubtype::Generic,
        bytes: bytes.to_vec(),
    }
}

fn sasl_start(mechanism: &str, payload: &[u8]) -> RawDocumentBuf {
    rawdoc! {
        "saslStart": 1,
        "mechanism": mechanism,
        "payload": binary(payload),
        "options": { "skipEmptyExchange": true },
    }
}

fn payload_of(answer: &RawDocument) -> Option<String> {
    let payload = answer.get_binary("payload").ok()?;
    String::from_utf8(payload.bytes.to_vec()).ok()
}

/// A cursor of the server's.
#[derive(Debug)]
pub(crate) struct Cursor {
    database: String,
    collection: String,
    id: i64,
    doing: String,
    /// Documents to ask for at once.
    batch_size: i32,
    /// How long the server may wait for documents to come, where it follows what grows.
    patience: Option<Duration>,
    answer: Option<RawDocumentBuf>,
}

/// What an answer says of a cursor.
struct CursorHead<'a> {
    id: i64,
    collection: &'a str,
}

impl<'a> CursorHead<'a> {
    fn of(answer: &'a RawDocument) -> Option<Self> {
        let cursor = answer.get_document("cursor").ok()?;
        Some(Self {
            id: cursor.get_i64("id").ok()?,
            collection: cursor.get_str("ns").ok()?.split_once('.')?.1,
        })
    }
}

/// Documents as the server sent them.
#[derive(Debug)]
pub(crate) struct Batch(RawDocumentBuf);

impl Batch {
    /// Each document, or what is wrong with the answer.
    pub(crate) fn documents(&self) -> impl Iterator<Item = Result<&RawDocument, String>> {
        let list = self.0.get_document("cursor").ok().and_then(|cursor| {
            cursor
                .get_array("firstBatch")
                .or_else(|_| cursor.get_array("nextBatch"))
                .ok()
        });
        let missing = list
            .is_none()
            .then(|| Err("a cursor without documents".to_owned()));
        list.into_iter()
            .flatten()
            .map(|element| match element {
                Ok(RawBsonRef::Document(document)) => Ok(document),
                Ok(_) => Err("a batch with what is no document".to_owned()),
                Err(error) => Err(error.to_string()),
            })
            .chain(missing)
    }

    /// Bytes of the whole answer.
    pub(crate) fn bytes(&self) -> usize {
        self.0.as_bytes().len()
    }
}

impl Cursor {
    /// The same, where the server waits so long for documents that are yet to come.
    pub(crate) fn waiting(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// The next documents; nothing at the end.
    pub(crate) async fn next(
        &mut self,
        session: &mut Session,
    ) -> Result<Option<Batch>, EngineError> {
        self.try_next(session)
            .await?
            .map_err(|refusal| refusal.doing(session.server(), &self.doing))
    }

    /// The same; a refusal is an answer too.
    pub(crate) async fn try_next(
        &mut self,
        session: &mut Session,
    ) -> Result<Result<Option<Batch>, Refusal>, EngineError> {
        if let Some(first) = self.answer.take() {
            return Ok(Ok(Some(self.seen(Batch(first)))));
        }
        if self.id == 0 {
            return Ok(Ok(None));
        }
        let mut command = rawdoc! {
            "getMore": self.id,
            "collection": self.collection.as_str(),
            "batchSize": self.batch_size,
        };
        if let Some(patience) = self.patience {
            let millis = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
            put(&mut command, "maxTimeMS", millis);
        }
        let answer = match session.try_run(&self.database, command).await? {
            Ok(answer) => answer,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let head =
            CursorHead::of(&answer).ok_or_else(|| session.unexpected(&self.doing, &"no cursor"))?;
        self.id = head.id;
        Ok(Ok(Some(self.seen(Batch(answer)))))
    }

    /// Lets the next batch be of about [`BATCH_BYTES`].
    fn seen(&mut self, batch: Batch) -> Batch {
        let documents = batch.documents().count();
        if let Some(each) = batch.bytes().checked_div(documents) {
            let most = (BATCH_BYTES / each.max(1)).clamp(1, LARGEST_BATCH);
            self.batch_size = i32::try_from(most).unwrap_or(FIRST_BATCH);
        }
        batch
    }
}
