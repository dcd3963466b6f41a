//! Connections: the bytes to and from a server, and sessions that send commands over them.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use fettler_engine::{AttemptName, EngineContext, EngineError};
use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, Pipeline, RedisConnectionInfo, Value,
    aio::MultiplexedConnection, cmd,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::AbortHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Refusal, of_library, refusal_of},
    params::{Params, Place},
};

/// How long a server may take to accept a connection and a login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an answer may take: a server works on one command at a time, and another client's may be long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// The name of a session that belongs to no attempt.
pub(crate) const VISITOR: &str = "fettler";

/// Bytes to and from a server, with or without TLS.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Reaches a server; no login yet. Also gives the address that was reached.
pub(crate) async fn reach(params: &Params) -> Result<(Box<dyn Wire>, String), EngineError> {
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
        Place::Tcp { host, .. } => {
            let stream = tcp(params).await.map_err(failed)?;
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

/// The address of this machine at which a server sees it.
pub(crate) async fn local_address(params: &Params) -> Result<IpAddr, EngineError> {
    let failed = |error: io::Error| unreachable(params, &error);
    let connected = timeout(CONNECT_TIMEOUT, tcp(params))
        .await
        .map_err(|_| unreachable(params, &"it does not accept a connection"))?
        .map_err(failed)?;
    Ok(connected.local_addr().map_err(failed)?.ip())
}

/// A connection to a server that listens at an address.
async fn tcp(params: &Params) -> io::Result<TcpStream> {
    let Place::Tcp { host, port } = &params.place else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    if params.addresses.is_empty() {
        return TcpStream::connect((host.as_str(), *port)).await;
    }
    let addresses: Vec<SocketAddr> = params
        .addresses
        .iter()
        .map(|address| SocketAddr::new(*address, *port))
        .collect();
    TcpStream::connect(addresses.as_slice()).await
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

/// What a command came to.
pub(crate) type Answer = Result<Value, Refusal>;

/// A session of one task. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    connection: MultiplexedConnection,
    driver: AbortHandle,
    server: String,
    /// The address that was reached.
    pub(crate) address: String,
    stop: CancellationToken,
    database: u32,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// Logs in, in database 0, under a name that `CLIENT LIST` shows. Its commands end early when `stop` is cancelled.
    pub(crate) async fn open(
        params: &Params,
        name: &str,
        stop: &CancellationToken,
    ) -> Result<Self, EngineError> {
        let (wire, address) = stop
            .run_until_cancelled(reach(params))
            .await
            .ok_or(EngineError::Stopped)??;
        let server = params.server();
        let mut login = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(user) = &params.user {
            login = login.set_username(user);
        }
        if let Some(password) = &params.password {
            login = login.set_password(password.expose());
        }
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_TIMEOUT));
        let made = timeout(
            CONNECT_TIMEOUT,
            MultiplexedConnection::new_with_config(&login, wire, config),
        );
        let (connection, driver) = stop
            .run_until_cancelled(made)
            .await
            .ok_or(EngineError::Stopped)?
            .map_err(|_| unreachable(params, &"it does not answer the login"))?
            .map_err(|error| of_library(&server, &error, "logging in"))?;
        let driver = tokio::spawn(driver).abort_handle();
        let mut session = Self {
            connection,
            driver,
            server,
            address,
            stop: stop.clone(),
            database: 0,
        };
        // The first command that needs a login tells whether there is one.
        if let Err(refusal) = session
            .try_ask(cmd("CLIENT").arg("SETNAME").arg(name))
            .await?
            && !refusal.is_not_allowed()
        {
            return Err(refusal.doing(&session.server, "logging in"));
        }
        Ok(session)
    }

    /// A session of an attempt.
    pub(crate) async fn of_attempt(
        params: &Params,
        context: &EngineContext,
    ) -> Result<Self, EngineError> {
        Self::open(params, &context.attempt.to_string(), &context.stop).await
    }

    /// The server's name in messages.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Sends a command; a refusal is an answer too.
    pub(crate) async fn try_ask(&mut self, command: &Cmd) -> Result<Answer, EngineError> {
        let answer = self
            .stop
            .run_until_cancelled(self.connection.send_packed_command(command))
            .await
            .ok_or(EngineError::Stopped)?;
        match answer {
            Ok(Value::ServerError(error)) => Ok(Err(Refusal::from(&error))),
            Ok(value) => Ok(Ok(value)),
            Err(error) => match refusal_of(&error) {
                Some(refusal) => Ok(Err(refusal)),
                None => Err(of_library(&self.server, &error, name_of(command))),
            },
        }
    }

    /// Sends a command and reads the answer as a type.
    pub(crate) async fn ask<T: FromRedisValue>(
        &mut self,
        command: &Cmd,
        doing: &str,
    ) -> Result<T, EngineError> {
        let answer = self.try_ask(command).await?;
        let value = answer.map_err(|refusal| refusal.doing(&self.server, doing))?;
        T::from_redis_value(value).map_err(|error| self.unexpected(doing, &error))
    }

    /// Sends commands at once; each has its own answer.
    pub(crate) async fn ask_all(
        &mut self,
        commands: &Pipeline,
    ) -> Result<Vec<Answer>, EngineError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self
            .stop
            .run_until_cancelled(
                self.connection
                    .send_packed_commands(commands, 0, commands.len()),
            )
            .await
            .ok_or(EngineError::Stopped)?
            .map_err(|error| of_library(&self.server, &error, "a batch of commands"))?;
        if answers.len() != commands.len() {
            return Err(self.unexpected(
                "a batch of commands",
                &format!("{} answers to {}", answers.len(), commands.len()),
            ));
        }
        Ok(answers
            .into_iter()
            .map(|value| match value {
                Value::ServerError(error) => Err(Refusal::from(&error)),
                value => Ok(value),
            })
            .collect())
    }

    /// Makes a database the session's.
    pub(crate) async fn select(&mut self, database: u32) -> Result<(), EngineError> {
        if self.database != database {
            let doing = format!("choosing database {database}");
            self.ask::<()>(cmd("SELECT").arg(database), &doing).await?;
            self.database = database;
        }
        Ok(())
    }

    /// The command that makes a database the session's, for a batch whose first command it will be; nothing where it is
    /// that already.
    pub(crate) fn selecting(&mut self, database: u32) -> Option<Cmd> {
        (self.database != database).then(|| {
            self.database = database;
            cmd("SELECT").arg(database).to_owned()
        })
    }

    /// What `INFO` tells.
    pub(crate) async fn info(&mut self) -> Result<Info, EngineError> {
        let text: String = self.ask(&cmd("INFO"), "asking who the server is").await?;
        Ok(Info::read(&text))
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
}

/// A command's own name; its arguments may be anybody's secrets.
fn name_of(command: &Cmd) -> String {
    match command.args_iter().next() {
        Some(redis::Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned(),
        _ => "a command".to_owned(),
    }
}

/// Ends the sessions of earlier attempts of the job (rule 6), as far as the server lets their list be seen.
pub(crate) async fn end_predecessors(
    session: &mut Session,
    context: &EngineContext,
) -> Result<(), EngineError> {
    let Ok(list) = session.try_ask(cmd("CLIENT").arg("LIST")).await? else {
        return Ok(());
    };
    let list = String::from_redis_value(list).unwrap_or_default();
    let (prefix, own) = (
        AttemptName::prefix_of(context.attempt.job),
        context.attempt.to_string(),
    );
    for line in list.lines() {
        let field = |wanted: &str| {
            line.split(' ')
                .find_map(|field| field.strip_prefix(wanted)?.strip_prefix('='))
        };
        if let (Some(id), Some(name)) = (field("id"), field("name"))
            && name.starts_with(&prefix)
            && name != own
        {
            // One that is gone by now is no error.
            let _gone = session
                .try_ask(cmd("CLIENT").arg("KILL").arg("ID").arg(id))
                .await?;
        }
    }
    Ok(())
}

/// What `INFO` tells, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Info(HashMap<String, String>);

impl Info {
    /// Reads what `INFO` answered.
    pub(crate) fn read(text: &str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_owned(), value.trim_end().to_owned()))
                .collect(),
        )
    }

    /// One line's value; empty where the server does not tell it.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// One line's number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.text(name).parse().ok()
    }

    /// Whether the server is a node of a cluster.
    pub(crate) fn is_of_a_cluster(&self) -> bool {
        self.text("cluster_enabled") == "1"
    }

    /// The keys of each database that holds some.
    pub(crate) fn keys(&self) -> std::collections::BTreeMap<u32, u64> {
        self.0
            .iter()
            .filter_map(|(name, value)| {
                let database = name.strip_prefix("db")?.parse().ok()?;
                let keys = value.split(',').next()?.strip_prefix("keys=")?;
                Some((database, keys.parse().ok()?))
            })
            .collect()
    }

    /// The version of Redis whose commands the server understands, such as `(7, 0)`; Valkey tells it beside its own.
    pub(crate) fn version(&self) -> (u32, u32) {
        let mut parts = self
            .text("redis_version")
            .split('.')
            .map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    /// Its version as people know it.
    pub(crate) fn version_text(&self) -> String {
        match self.text("valkey_version") {
            "" => self.text("redis_version").to_owned(),
            valkey => format!("Valkey {valkey}"),
        }
    }

    /// The newest version of RDB that the server reads.
    pub(crate) fn rdb_version(&self) -> u32 {
        match self.version() {
            (0..=6, _) => 9,
            (7, 0 | 1) => 10,
            (7, 2 | 3) => 11,
            _ => 12,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_info_tells_is_read() {
        let info = Info::read(
            "# Server\r\nredis_version:7.0.15\r\n# Keyspace\r\ndb0:keys=12,expires=1,avg_ttl=0\r\ndb11:keys=3,expires=0,avg_ttl=0\r\n",
        );
        assert_eq!(info.version(), (7, 0));
        assert_eq!(info.rdb_version(), 10);
        assert_eq!(info.keys(), [(0, 12), (11, 3)].into());
        assert_eq!(info.number("used_memory"), None);
    }
}
