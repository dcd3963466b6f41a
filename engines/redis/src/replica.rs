//! Reading a server as a replica does: the whole of it at one moment, as an RDB.
//!
//! The RDB goes into a file of the scratch folder as fast as the server sends it, since a server cuts off a replica that
//! reads slowly; a [`Follower`] reads the file behind it. Nothing is acknowledged: a replica that acknowledges an offset says
//! that the write is safe with it (`WAIT`, `min-replicas-to-write`), and a backup of one moment is safe with nothing after
//! that. The link ends with the RDB's last byte.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use fettler_engine::{EngineContext, EngineError};
use redis::cmd;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    connect::{Wire, reach},
    error::Refusal,
    params::Params,
};

/// How long a server may be silent: it says a newline every ten seconds while it prepares the RDB.
const SILENCE: Duration = Duration::from_secs(90);
/// Bytes of a line of the protocol; a refusal is longer than most.
const LONGEST_LINE: usize = 4096;
/// Bytes read at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// Bytes of the mark that ends an RDB whose length was not known before.
const MARK_BYTES: usize = 40;

/// The moment of an RDB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// The replication id.
    pub(crate) replid: String,
    /// The offset in that history.
    pub(crate) offset: u64,
}

/// How the server announced the RDB.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ends {
    AfterBytes(u64),
    WithMark([u8; MARK_BYTES]),
}

/// A link to a server, up to the RDB's first byte.
pub(crate) struct Link {
    wire: Box<dyn Wire>,
    server: String,
    /// The moment.
    pub(crate) moment: Moment,
    ends: Ends,
    /// Bytes of the RDB that were read already.
    ahead: Vec<u8>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("server", &self.server)
            .field("moment", &self.moment)
            .finish_non_exhaustive()
    }
}

/// Asks a server for all that it has. A refusal (`Ok(Err(…))`) means that it has to be read in another way.
pub(crate) async fn begin(
    params: &Params,
    context: &EngineContext,
) -> Result<Result<Link, Refusal>, EngineError> {
    context
        .stop
        .run_until_cancelled(begin_link(params, context))
        .await
        .ok_or(EngineError::Stopped)?
}

/// What a replica is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Everything at one moment.
    Rdb,
    /// What is written from now on.
    Writes,
}

/// Reaches a server, logs in and introduces itself as a replica. A refusal (`Ok(Err(…))`) means that the server allows none.
pub(crate) async fn introduce<'a>(
    params: &Params,
    context: &'a EngineContext,
    reads: Reads,
) -> Result<Result<Lines<'a>, Refusal>, EngineError> {
    let (wire, _) = reach(params).await?;
    let mut lines = Lines {
        wire,
        server: params.server(),
        ahead: Vec::new(),
        progress: context,
    };
    if let Some(password) = &params.password {
        let mut login = cmd("AUTH");
        if let Some(user) = &params.user {
            login.arg(user);
        }
        if let Err(refusal) = lines.ask(login.arg(password.expose())).await? {
            return Err(refusal.doing(&lines.server, "logging in"));
        }
    }
    // What an older server does not know of these it refuses, and does without.
    let mut capabilities = vec![
        cmd("CLIENT")
            .arg("SETNAME")
            .arg(context.attempt.to_string())
            .to_owned(),
        cmd("REPLCONF").arg("listening-port").arg(0).to_owned(),
    ];
    if reads == Reads::Rdb {
        // Since Redis 7.0: no stream of writes is kept for us while we read.
        capabilities.push(cmd("REPLCONF").arg("rdb-only").arg(1).to_owned());
    }
    for capability in &capabilities {
        let _unknown = lines.ask(capability).await?;
    }
    let known = lines
        .ask(
            cmd("REPLCONF")
                .arg("capa")
                .arg("eof")
                .arg("capa")
                .arg("psync2"),
        )
        .await?;
    Ok(known.map(|_| lines))
}

async fn begin_link(
    params: &Params,
    context: &EngineContext,
) -> Result<Result<Link, Refusal>, EngineError> {
    let mut lines = match introduce(params, context, Reads::Rdb).await? {
        Ok(lines) => lines,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let answer = match lines.ask(cmd("PSYNC").arg("?").arg(-1)).await? {
        Ok(answer) => answer,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let moment = moment_of(&answer).ok_or_else(|| lines.unexpected("PSYNC"))?;
    let header = lines.line().await?;
    if let Some(refusal) = refusal_in(&header) {
        return Err(refusal.doing(&lines.server, "waiting for the RDB"));
    }
    let ends = ends_of(&header).ok_or_else(|| lines.unexpected("the RDB's announcement"))?;
    Ok(Ok(Link {
        wire: lines.wire,
        server: lines.server,
        moment,
        ends,
        ahead: lines.ahead,
    }))
}

fn moment_of(answer: &str) -> Option<Moment> {
    let mut words = answer.strip_prefix("FULLRESYNC ")?.split(' ');
    Some(Moment {
        replid: words.next()?.to_owned(),
        offset: words.next()?.parse().ok()?,
    })
}

fn ends_of(header: &[u8]) -> Option<Ends> {
    let announced = header.strip_prefix(b"$")?;
    match announced.strip_prefix(b"EOF:") {
        Some(mark) => Some(Ends::WithMark(mark.try_into().ok()?)),
        None => Some(Ends::AfterBytes(
            std::str::from_utf8(announced).ok()?.parse().ok()?,
        )),
    }
}

fn refusal_in(line: &[u8]) -> Option<Refusal> {
    let text = String::from_utf8_lossy(line.strip_prefix(b"-")?).into_owned();
    let (code, message) = text.split_once(' ').unwrap_or((&text, ""));
    Some(Refusal {
        code: code.to_owned(),
        message: message.to_owned(),
    })
}

/// The beginning of a link: commands out, lines in.
pub(crate) struct Lines<'a> {
    pub(crate) wire: Box<dyn Wire>,
    server: String,
    /// Bytes that were read behind the last line.
    pub(crate) ahead: Vec<u8>,
    progress: &'a EngineContext,
}

impl Lines<'_> {
    /// Sends a command whose answer is one line; gives the line without its sign.
    pub(crate) async fn ask(
        &mut self,
        command: &redis::Cmd,
    ) -> Result<Result<String, Refusal>, EngineError> {
        self.wire
            .write_all(&command.get_packed_command())
            .await
            .map_err(|error| lost(&self.server, &error))?;
        self.wire
            .flush()
            .await
            .map_err(|error| lost(&self.server, &error))?;
        let line = self.line().await?;
        match (line.first(), refusal_in(&line)) {
            (_, Some(refusal)) => Ok(Err(refusal)),
            (Some(b'+'), _) => Ok(Ok(String::from_utf8_lossy(&line[1..]).into_owned())),
            _ => Err(self.unexpected("a command of a replica")),
        }
    }

    /// The next line that is not empty: newlines are signs of life.
    async fn line(&mut self) -> Result<Vec<u8>, EngineError> {
        loop {
            while let Some(end) = self.ahead.iter().position(|byte| *byte == b'\n') {
                let rest = self.ahead.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.ahead, rest);
                line.truncate(end);
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                self.progress.progress.pulse();
                if !line.is_empty() {
                    return Ok(line);
                }
            }
            if self.ahead.len() > LONGEST_LINE {
                return Err(self.unexpected("a line without an end"));
            }
            let mut buffer = [0; LONGEST_LINE];
            let read = receive(&mut self.wire, &self.server, &mut buffer).await?;
            self.ahead.extend_from_slice(&buffer[..read]);
        }
    }

    fn unexpected(&self, doing: &str) -> EngineError {
        EngineError::Database {
            what: format!("{} answered what was not expected to {doing}", self.server),
            transient: false,
        }
    }
}

/// Reads what comes next; the end of the connection is an error.
pub(crate) async fn receive(
    wire: &mut (impl AsyncRead + Unpin),
    server: &str,
    buffer: &mut [u8],
) -> Result<usize, EngineError> {
    match timeout(SILENCE, wire.read(buffer)).await {
        Err(_) => Err(EngineError::Unreachable {
            server: server.to_owned(),
            what: format!("it has been silent for {} s", SILENCE.as_secs()),
        }),
        Ok(Err(error)) => Err(lost(server, &error)),
        Ok(Ok(0)) => Err(lost(server, &"it closed the connection")),
        Ok(Ok(read)) => Ok(read),
    }
}

pub(crate) fn lost(server: &str, what: &dyn std::fmt::Display) -> EngineError {
    EngineError::Unreachable {
        server: server.to_owned(),
        what: format!("the replication link was lost: {what}"),
    }
}

impl Link {
    /// Writes the RDB into a file as it comes and says how far it is to the followers of `spool`.
    pub(crate) async fn receive(
        self,
        context: &EngineContext,
        spool: &RdbSpool,
    ) -> Result<(), EngineError> {
        let answer = context
            .stop
            .run_until_cancelled(self.receive_all(context, spool))
            .await
            .unwrap_or(Err(EngineError::Stopped));
        spool.end(answer.is_ok());
        answer
    }

    async fn receive_all(
        mut self,
        context: &EngineContext,
        spool: &RdbSpool,
    ) -> Result<(), EngineError> {
        let mut buffer = std::mem::take(&mut self.ahead);
        let mut tail = Tail::new(self.ends.clone());
        loop {
            let (ready, ended) = tail.take(&buffer);
            let count = ready.len() as u64;
            spool.write(ready).await?;
            context.progress.add(count, 0);
            if ended {
                return Ok(());
            }
            context.rate.pass(count).await;
            buffer.resize(BUFFER_BYTES, 0);
            let read = receive(&mut self.wire, &self.server, &mut buffer).await?;
            buffer.truncate(read);
        }
    }
}

/// Tells the RDB's bytes from the mark behind them.
struct Tail {
    ends: Ends,
    /// Bytes that may be the mark's.
    held: Vec<u8>,
}

impl Tail {
    fn new(ends: Ends) -> Self {
        Self {
            ends,
            held: Vec::new(),
        }
    }

    /// Takes the next bytes; gives those that are surely the RDB's, and whether it ended.
    fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        match &mut self.ends {
            Ends::AfterBytes(left) => {
                let here = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= here as u64;
                (bytes[..here].to_vec(), *left == 0)
            }
            Ends::WithMark(mark) => {
                self.held.extend_from_slice(bytes);
                // The server sends nothing behind the mark before it was acknowledged.
                let ended = self.held.ends_with(mark);
                let keep = self.held.len().min(MARK_BYTES);
                let rest = self.held.split_off(self.held.len() - keep);
                (std::mem::replace(&mut self.held, rest), ended)
            }
        }
    }
}

/// An RDB in a file, which is read while it grows. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct RdbSpool {
    file: Arc<File>,
    state: Arc<(Mutex<Filled>, Condvar)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Filled {
    bytes: u64,
    /// Whether no more will come, and if so whether all is there.
    ended: Option<bool>,
}

impl RdbSpool {
    /// A spool in this folder; its file has no name, so that nothing is left of it whatever happens.
    pub(crate) fn new(folder: &Path) -> Result<Self, EngineError> {
        let path = folder.join("dump.rdb");
        let failed = |error| EngineError::local(format!("making {}", path.display()), error);
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        std::fs::remove_file(&path).map_err(failed)?;
        Ok(Self {
            file: Arc::new(file),
            state: Arc::default(),
        })
    }

    async fn write(&self, bytes: Vec<u8>) -> Result<(), EngineError> {
        let count = bytes.len() as u64;
        let file = Arc::clone(&self.file);
        let written = tokio::task::spawn_blocking(move || (&*file).write_all(&bytes)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(EngineError::local(
                    "writing the RDB to the scratch folder",
                    error,
                ));
            }
            Err(_) => return Err(EngineError::Stopped),
        }
        self.change(|filled| filled.bytes += count);
        Ok(())
    }

    pub(crate) fn end(&self, whole: bool) {
        self.change(|filled| filled.ended = Some(whole));
    }

    fn change(&self, change: impl FnOnce(&mut Filled)) {
        change(&mut self.state.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.state.1.notify_all();
    }

    /// Reads the RDB from its beginning, waiting for what has not come yet. Blocks.
    pub(crate) fn follow(&self) -> Follower {
        Follower {
            spool: self.clone(),
            at: 0,
        }
    }
}

/// Reads an RDB while it grows.
#[derive(Debug)]
pub(crate) struct Follower {
    spool: RdbSpool,
    at: u64,
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (state, changed) = &*self.spool.state;
        let mut filled = state.lock().unwrap_or_else(PoisonError::into_inner);
        while filled.bytes == self.at && filled.ended.is_none() {
            filled = changed.wait(filled).unwrap_or_else(PoisonError::into_inner);
        }
        let Filled { bytes, ended } = *filled;
        drop(filled);
        if ended == Some(false) {
            return Err(io::Error::other("the replication link was lost"));
        }
        let there =
            usize::try_from(bytes - self.at).map_or(buffer.len(), |there| there.min(buffer.len()));
        let read = self.spool.file.read_at(&mut buffer[..there], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_announcements_of_an_rdb_are_understood() {
        assert_eq!(ends_of(b"$17"), Some(Ends::AfterBytes(17)));
        let mark = [b'a'; MARK_BYTES];
        let announced = [b"$EOF:".as_slice(), &mark].concat();
        assert_eq!(ends_of(&announced), Some(Ends::WithMark(mark)));
        assert_eq!(ends_of(b"$EOF:short"), None);
        assert_eq!(ends_of(b"*1"), None);
    }

    #[test]
    fn the_mark_is_told_from_the_rdb_wherever_the_bytes_are_cut() {
        let mark: [u8; MARK_BYTES] = std::array::from_fn(|at| b'A' + at as u8 % 26);
        let rdb: Vec<u8> = (0..1000u32).map(|at| at as u8).chain(*b"ABC").collect();
        let sent = [rdb.as_slice(), &mark].concat();
        for cut in [1, 7, 39, 40, 41, 500, 2000] {
            let mut tail = Tail::new(Ends::WithMark(mark));
            let mut got = Vec::new();
            let mut ended = false;
            for piece in sent.chunks(cut) {
                assert!(!ended);
                let (ready, now) = tail.take(piece);
                got.extend(ready);
                ended = now;
            }
            assert!(ended);
            assert_eq!(got, rdb, "in pieces of {cut}");
        }
    }

    #[test]
    fn bytes_behind_a_known_length_are_not_the_rdbs() {
        let mut tail = Tail::new(Ends::AfterBytes(5));
        assert_eq!(tail.take(b"abc"), (b"abc".to_vec(), false));
        assert_eq!(tail.take(b"defg"), (b"de".to_vec(), true));
    }

    #[test]
    fn a_moment_is_read() {
        let moment = moment_of("FULLRESYNC 8371b4fb1155b71f4a04d3e1bc3e18c4a990aeeb 42").unwrap();
        assert_eq!(moment.offset, 42);
        assert_eq!(moment_of("CONTINUE"), None);
    }

    #[test]
    fn a_follower_reads_what_grows_and_learns_of_a_lost_link() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let spool = RdbSpool::new(folder.path()).unwrap();
        let mut follower = spool.follow();
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            follower.read_to_end(&mut all).map(|_| all)
        });
        runtime.block_on(async {
            spool.write(b"one".to_vec()).await.unwrap();
            spool.write(b"two".to_vec()).await.unwrap();
        });
        spool.end(true);
        assert_eq!(reading.join().unwrap().unwrap(), b"onetwo");
        let broken = RdbSpool::new(folder.path()).unwrap();
        broken.end(false);
        assert!(broken.follow().read(&mut [0; 8]).is_err());
    }
}
