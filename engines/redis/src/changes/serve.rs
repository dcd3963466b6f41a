//! Being a primary to one replica: the RDB of a restored backup, then the writes up to a moment.
//!
//! Writes are not sent to the target as commands: a primary expires keys by its own clock, and a write of yesterday may rest
//! upon a key that would be gone today. A replica leaves expiry to its primary, and its primary's stream says when.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use fettler_engine::{ChangeSource, EngineContext, EngineError};
use fettler_model::Secret;
use futures::TryStreamExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, ReadHalf, WriteHalf, split},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

use super::scanner::{Scanner, command};

/// How long the target may take to come.
const COMES_WITHIN: Duration = Duration::from_secs(60);
/// How long it may be silent: it says a word a second, and newlines while it loads.
const SILENCE: Duration = Duration::from_secs(300);
/// How often it is told that its primary lives, while nothing else is sent.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Bytes read of the RDB at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// The most arguments and bytes that a command of a replica has here.
const MOST_ARGUMENTS: usize = 64;
const MOST_ARGUMENT_BYTES: usize = 4096;

/// A place where the target finds its primary.
pub(super) struct Primary {
    listener: TcpListener,
    /// Where that is.
    pub(super) address: SocketAddr,
    /// What the target must know.
    token: Secret,
    /// The name of the history, which is nobody else's.
    replid: String,
}

/// What was played.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Played {
    pub(super) bytes: u64,
    pub(super) commands: u64,
    /// Bytes behind the last whole transaction, which have no effect.
    pub(super) left_out: u64,
}

impl Primary {
    /// Listens at an address of this machine; only who knows the token is served.
    pub(super) async fn listen(
        address: IpAddr,
        token: Secret,
        replid: String,
    ) -> Result<Self, EngineError> {
        let failed = |error| EngineError::local(format!("listening at {address}"), error);
        let listener = TcpListener::bind((address, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            token,
            replid,
        })
    }

    /// Serves the target until it has everything: all of the RDB, and the changes behind it.
    pub(super) async fn serve(
        &self,
        context: &EngineContext,
        rdb: &Path,
        changes: &dyn ChangeSource,
    ) -> Result<Played, EngineError> {
        let begin = changes.begin();
        let (reading, mut writing) = timeout(COMES_WITHIN, self.accept(begin))
            .await
            .map_err(|_| EngineError::Missing {
                code: "listen",
                what: format!(
                    "the target did not come to {} to be given its data",
                    self.address
                ),
                remedy: "a target is restored to a moment by being this worker's replica for a while: let it reach the worker at that address, \
                         or run the worker on a machine that it reaches"
                    .to_owned(),
            })??;
        send_rdb(context, rdb, &mut writing).await?;
        let (said, has) = watch::channel(0);
        let listening = listen_to_replica(BufReader::new(reading), said, context);
        let sending = send_changes(context, changes, writing, has);
        tokio::pin!(listening, sending);
        tokio::select! {
            played = &mut sending => played,
            Err(error) = &mut listening => Err(error),
        }
    }

    /// Waits for the target, and gives everybody else nothing.
    async fn accept(
        &self,
        begin: u64,
    ) -> Result<(ReadHalf<TcpStream>, WriteHalf<TcpStream>), EngineError> {
        loop {
            let (stream, peer) = self
                .listener
                .accept()
                .await
                .map_err(|error| EngineError::local("waiting for the target", error))?;
            match timeout(COMES_WITHIN / 4, self.greet(stream, begin)).await {
                Ok(Ok(halves)) => return Ok(halves),
                Ok(Err(error)) => tracing::warn!(%peer, %error, "a connection was refused"),
                Err(_) => tracing::warn!(%peer, "a connection was silent"),
            }
        }
    }

    async fn greet(
        &self,
        stream: TcpStream,
        begin: u64,
    ) -> std::io::Result<(ReadHalf<TcpStream>, WriteHalf<TcpStream>)> {
        stream.set_nodelay(true)?;
        let (reading, mut writing) = split(stream);
        let mut reading = BufReader::new(reading);
        let mut is_known = false;
        loop {
            let words = read_command(&mut reading).await?;
            let name = words.first().map(|name| name.to_ascii_uppercase());
            let answer = match name.as_deref() {
                Some(b"AUTH") => {
                    is_known = words.last().is_some_and(|word| {
                        blake3::hash(word) == blake3::hash(self.token.expose().as_bytes())
                    });
                    if !is_known {
                        writing.write_all(b"-WRONGPASS wrong password\r\n").await?;
                        return Err(std::io::Error::other("it does not know the password"));
                    }
                    "+OK\r\n".to_owned()
                }
                // A replica begins with it, and goes on to log in whatever the answer is.
                Some(b"PING") if is_known => "+PONG\r\n".to_owned(),
                Some(b"REPLCONF") if is_known => "+OK\r\n".to_owned(),
                Some(b"PSYNC") if is_known => {
                    let answer = format!("+FULLRESYNC {} {begin}\r\n", self.replid);
                    writing.write_all(answer.as_bytes()).await?;
                    // What it says from now on it says once it has the RDB.
                    return Ok((reading.into_inner(), writing));
                }
                _ if !is_known => "-NOAUTH Authentication required.\r\n".to_owned(),
                _ => "-ERR unknown command\r\n".to_owned(),
            };
            writing.write_all(answer.as_bytes()).await?;
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` gives it away")]
fn gone(error: std::io::Error) -> EngineError {
    EngineError::Unreachable {
        server: "the target".to_owned(),
        what: format!("it left while it was given its data: {error}"),
    }
}

async fn send_rdb(
    context: &EngineContext,
    rdb: &Path,
    writing: &mut WriteHalf<TcpStream>,
) -> Result<(), EngineError> {
    let failed = |error| EngineError::local(format!("reading {}", rdb.display()), error);
    let mut file = tokio::fs::File::open(rdb).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    let announced = format!("${length}\r\n");
    writing
        .write_all(announced.as_bytes())
        .await
        .map_err(gone)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        context.check_stop()?;
        let read = file.read(&mut buffer).await.map_err(failed)?;
        if read == 0 {
            return Ok(());
        }
        writing.write_all(&buffer[..read]).await.map_err(gone)?;
        context.progress.add(read as u64, 0);
    }
}

/// Sends the changes, and waits until the replica says that it has them.
async fn send_changes(
    context: &EngineContext,
    changes: &dyn ChangeSource,
    mut writing: WriteHalf<TcpStream>,
    mut has: watch::Receiver<u64>,
) -> Result<Played, EngineError> {
    let begin = changes.begin();
    let wanted = changes.end() - begin;
    let mut scanner = Scanner::new();
    let mut stream = changes.read().await?;
    let mut sent = 0;
    while sent < wanted {
        context.check_stop()?;
        let piece: Bytes = stream
            .try_next()
            .await?
            .ok_or_else(|| EngineError::Unusable {
                what: format!(
                    "{} bytes of the archived changes are missing",
                    wanted - sent
                ),
                remedy: "check the repository (`fettler check`), and restore to an earlier moment"
                    .to_owned(),
            })?;
        let here = usize::try_from(wanted - sent).map_or(piece.len(), |left| left.min(piece.len()));
        scanner
            .take(&piece[..here])
            .map_err(|error| EngineError::Unusable {
                what: format!("the archived changes cannot be played: {error}"),
                remedy: "restore to an earlier moment, or another backup".to_owned(),
            })?;
        writing.write_all(&piece[..here]).await.map_err(gone)?;
        sent += here as u64;
        context.progress.add(here as u64, 0);
    }
    // The replica answers with what it has done; a transaction whose end does not come is never done.
    let whole = begin + scanner.whole();
    if scanner.whole() == sent {
        let ask = command(&[b"REPLCONF", b"GETACK", b"*"]);
        writing.write_all(&ask).await.map_err(gone)?;
    }
    loop {
        context.check_stop()?;
        context.progress.pulse();
        if *has.borrow_and_update() >= whole {
            return Ok(Played {
                bytes: sent,
                commands: scanner.commands(),
                left_out: sent - scanner.whole(),
            });
        }
        tokio::select! {
            changed = has.changed() => if changed.is_err() {
                // Whoever listened has the reason.
                std::future::pending::<()>().await;
            },
            () = sleep(PING_EVERY), if scanner.whole() == sent => {
                let ping = command(&[b"PING"]);
                writing.write_all(&ping).await.map_err(gone)?;
            }
        }
    }
}

/// Hears what the replica says of itself until it leaves.
async fn listen_to_replica(
    mut reading: BufReader<ReadHalf<TcpStream>>,
    said: watch::Sender<u64>,
    context: &EngineContext,
) -> Result<(), EngineError> {
    loop {
        let words = timeout(SILENCE, read_command(&mut reading))
            .await
            .map_err(|_| gone(std::io::ErrorKind::TimedOut.into()))?
            .map_err(gone)?;
        context.progress.pulse();
        if let [_, what, offset, ..] = words.as_slice()
            && what.eq_ignore_ascii_case(b"ACK")
            && let Some(offset) = std::str::from_utf8(offset)
                .ok()
                .and_then(|text| text.parse().ok())
        {
            said.send_replace(offset);
        }
    }
}

/// Reads one command in the protocol's form.
async fn read_command(
    reading: &mut BufReader<ReadHalf<TcpStream>>,
) -> std::io::Result<Vec<Vec<u8>>> {
    let wrong = || std::io::Error::other("it says what no replica says");
    let mut line = read_line(reading).await?;
    while line.is_empty() {
        line = read_line(reading).await?;
    }
    let number = |line: &[u8], sign: &[u8]| {
        let number = std::str::from_utf8(line.strip_prefix(sign)?).ok()?;
        number.parse::<usize>().ok()
    };
    let count = number(&line, b"*")
        .filter(|count| (1..=MOST_ARGUMENTS).contains(count))
        .ok_or_else(wrong)?;
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let length = number(&read_line(reading).await?, b"$")
            .filter(|length| *length <= MOST_ARGUMENT_BYTES)
            .ok_or_else(wrong)?;
        let mut word = vec![0; length + 2];
        reading.read_exact(&mut word).await?;
        word.truncate(length);
        words.push(word);
    }
    Ok(words)
}

async fn read_line(reading: &mut BufReader<ReadHalf<TcpStream>>) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        match reading.read_u8().await? {
            b'\n' => break,
            byte if line.len() < MOST_ARGUMENT_BYTES => line.push(byte),
            _ => return Err(std::io::Error::other("a line without an end")),
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(line)
}
