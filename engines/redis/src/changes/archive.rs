//! Archiving: a server's writes as they happen, and what its clock says about them.
//!
//! Four things run beside each other for as long as the link holds. One reads the link as fast as the server sends. One asks
//! the server, over a connection of its own, for its clock, its offset and its clock again, which makes a moment
//! ([`LogMoment`]) that is true however late the link's bytes are. One gives the sink what has come, several times a second.
//! One acknowledges what the sink has made durable, once a second, and never more: a server that counts its replicas
//! (`WAIT`, `min-replicas-to-write`) may rely on it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use fettler_engine::{ArchiveStart, ChangeBatch, ChangeSink, EngineContext, EngineError, Target};
use fettler_model::{LogMoment, LogPosition, Timestamp};
use redis::{FromRedisValue as _, cmd, pipe};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    changes::{
        join::{Joined, join},
        scanner::command,
    },
    connect::{Info, Session, end_predecessors},
    identify::require_plain,
    locate::{Purpose, locate},
    params::Params,
    replica::{lost, receive},
};

/// How long what was read waits for more before it goes to the sink: with the time of a write to a store, less than the
/// second that may be lost.
const GATHER: Duration = Duration::from_millis(150);
/// Bytes that go to the sink without waiting for more.
const BATCH_BYTES: usize = 4 << 20;
/// How long moments alone wait: where nothing is written, a batch holds nothing else.
const GATHER_MOMENTS: Duration = Duration::from_secs(10);
/// How often the two are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How often the server is asked for its clock: several times within the second for which a moment stands.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How often what is durable is acknowledged.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_secs(1);
/// Bytes that wait for the sink. Beyond, the link is not read, and the server keeps the rest for us while it can.
const MOST_WAITING: usize = 32 << 20;
/// Bytes read at once.
const BUFFER_BYTES: usize = 64 * 1024;
/// Between two tries to reach a server that went away, at first and at last.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long is tried before the attempt ends, which everybody sees.
const TRY_FOR: Duration = Duration::from_secs(300);

/// Reads a server's writes until it is stopped.
pub(crate) async fn archive(
    context: &EngineContext,
    source: &Target,
    start: &ArchiveStart,
    sink: &dyn ChangeSink,
) -> Result<(), EngineError> {
    let params = Params::of(source)?;
    if params.database.is_some() {
        return Err(EngineError::Missing {
            code: "url",
            what: format!(
                "{} names one database, and a server's writes are those of all of them",
                source.url
            ),
            remedy: "archive the server: leave the number out of its URL".to_owned(),
        });
    }
    let mut start = start.clone();
    let mut wait = AGAIN_AFTER.0;
    let mut lost_since = None;
    loop {
        let before = start.end.clone();
        let outcome = follow(context, source, &mut start, sink).await;
        context.check_stop()?;
        let error = match outcome {
            Ok(()) => continue,
            Err(
                error @ (EngineError::Unreachable { .. }
                | EngineError::Busy { .. }
                | EngineError::Database {
                    transient: true, ..
                }),
            ) => error,
            Err(error) => return Err(error),
        };
        if start.end != before {
            wait = AGAIN_AFTER.0;
            lost_since = None;
        }
        if lost_since.get_or_insert_with(Instant::now).elapsed() > TRY_FOR {
            return Err(error);
        }
        tracing::warn!(%error, "the replication stream was lost and is joined again");
        context.progress.item(&format!("lost: {error}"));
        let _stopped = context.stop.run_until_cancelled(sleep(wait)).await;
        context.check_stop()?;
        wait = (wait * 2).min(AGAIN_AFTER.1);
    }
}

/// Joins the stream and archives it until the link is lost or the work is stopped. `start` is where to go on afterwards.
async fn follow(
    context: &EngineContext,
    source: &Target,
    start: &mut ArchiveStart,
    sink: &dyn ChangeSink,
) -> Result<(), EngineError> {
    // After a failover it is another server, which goes on with the same history.
    let params = locate(source, Purpose::Read, &context.stop).await?;
    let mut session = Session::of_attempt(&params, context).await?;
    end_predecessors(&mut session, context).await?;
    let info = session.info().await?;
    if info.is_of_a_cluster() {
        return Err(EngineError::Missing {
            code: "archive",
            what: format!(
                "{} is a node of a Redis Cluster, whose writes cannot be archived yet: each primary has an order of its own",
                params.server()
            ),
            remedy: "back the cluster up more often; each backup can be restored by itself"
                .to_owned(),
        });
    }
    require_plain(&params, &info)?;
    let joining = join(
        &params,
        context,
        &mut session,
        start.end.as_ref(),
        start.base.as_ref(),
    );
    let Joined {
        lines,
        at,
        continues,
    } = context
        .stop
        .run_until_cancelled(joining)
        .await
        .ok_or(EngineError::Stopped)??;
    start.base = None;
    let flow = Flow::new(at.offset, &lines.ahead, start.last_moment);
    let (reading, writing) = tokio::io::split(lines.wire);
    let (durable, acknowledged) = watch::channel(at.offset);
    let (broken, over) = (CancellationToken::new(), CancellationToken::new());
    let server = params.server();
    let helpers = async {
        let all = async {
            tokio::try_join!(
                read(reading, &server, &flow, context),
                ask(&mut session, &flow),
                acknowledge(writing, &server, acknowledged),
            )
        };
        let outcome = over.run_until_cancelled(all).await;
        broken.cancel();
        match outcome {
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Ok(()),
        }
    };
    let store = async {
        let outcome = store(
            context, &flow, &at, continues, start, sink, &broken, &durable,
        )
        .await;
        over.cancel();
        outcome
    };
    let (helped, stored) = tokio::join!(helpers, store);
    stored.and(helped)
}

/// What has come and has not gone to the sink.
struct Flow {
    state: Mutex<State>,
    room: Notify,
}

struct State {
    /// The offset of the first byte that waits.
    begin: u64,
    waiting: BytesMut,
    /// Since when.
    since: Instant,
    moments: Vec<LogMoment>,
    /// The last moment that went to the sink.
    last: Option<LogMoment>,
}

impl Flow {
    fn new(begin: u64, ahead: &[u8], last: Option<LogMoment>) -> Self {
        Self {
            state: Mutex::new(State {
                begin,
                waiting: BytesMut::from(ahead),
                since: Instant::now(),
                moments: Vec::new(),
                last,
            }),
            room: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, bytes: &[u8]) {
        if self.waiting.is_empty() {
            self.since = Instant::now();
        }
        self.waiting.extend_from_slice(bytes);
    }

    fn is_due(&self, stored: Instant) -> bool {
        let bytes = self.waiting.len();
        bytes >= BATCH_BYTES
            || (bytes > 0 && self.since.elapsed() >= GATHER)
            || (!self.moments.is_empty() && stored.elapsed() >= GATHER_MOMENTS)
    }

    /// Takes all bytes, and the moments that they reach.
    fn take(&mut self, history: &str, continues: bool) -> ChangeBatch {
        let bytes = self.waiting.split().freeze();
        let (begin, end) = (self.begin, self.begin + bytes.len() as u64);
        self.begin = end;
        let reached = self.moments.partition_point(|moment| moment.offset <= end);
        let moments: Vec<LogMoment> = self.moments.drain(..reached).collect();
        self.last = moments.last().copied().or(self.last);
        ChangeBatch {
            history: history.to_owned(),
            begin,
            last_number: None,
            continues,
            bytes,
            moments,
        }
    }
}

/// Reads the link.
async fn read(
    mut link: impl AsyncRead + Unpin,
    server: &str,
    flow: &Flow,
    context: &EngineContext,
) -> Result<(), EngineError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        while flow.state().waiting.len() >= MOST_WAITING {
            flow.room.notified().await;
        }
        let read = receive(&mut link, server, &mut buffer).await?;
        flow.state().add(&buffer[..read]);
        context.progress.add(read as u64, 0);
    }
}

/// Asks the server for its clock and its offset.
async fn ask(session: &mut Session, flow: &Flow) -> Result<(), EngineError> {
    let mut questions = pipe();
    questions
        .add_command(cmd("TIME"))
        .add_command(cmd("INFO").arg("replication").to_owned())
        .add_command(cmd("TIME"));
    loop {
        let began = Instant::now();
        let mut answers = Vec::with_capacity(3);
        for answer in session.ask_all(&questions).await? {
            answers.push(answer.map_err(|refusal| {
                refusal.doing(session.server(), "asking for the clock and the offset")
            })?);
        }
        let told = told(answers).ok_or_else(|| {
            session.unexpected(
                "asking for the clock and the offset",
                &"no clock or no offset",
            )
        })?;
        {
            let mut state = flow.state();
            let before = state.last;
            LogMoment::note(&mut state.moments, before, told);
        }
        sleep(ASK_EVERY.saturating_sub(began.elapsed())).await;
    }
}

/// What `TIME`, `INFO replication` and `TIME` answered.
fn told(answers: Vec<redis::Value>) -> Option<(Timestamp, u64, Timestamp)> {
    let [before, info, after]: [redis::Value; 3] = answers.try_into().ok()?;
    let clock = |time| {
        let (seconds, micros) = <(i64, i64)>::from_redis_value(time).ok()?;
        Some(Timestamp::from_micros(seconds * 1_000_000 + micros))
    };
    let info = Info::read(&String::from_redis_value(info).ok()?);
    // A replica tells its own offset under the same name.
    Some((
        clock(before)?,
        info.number("master_repl_offset")?,
        clock(after)?,
    ))
}

/// Says to the server what is durable.
async fn acknowledge(
    mut link: impl AsyncWrite + Unpin,
    server: &str,
    durable: watch::Receiver<u64>,
) -> Result<(), EngineError> {
    loop {
        let offset = durable.borrow().to_string();
        let words = command(&[b"REPLCONF", b"ACK", offset.as_bytes()]);
        let sent = async {
            link.write_all(&words).await?;
            link.flush().await
        };
        sent.await.map_err(|error| lost(server, &error))?;
        sleep(ACKNOWLEDGE_EVERY).await;
    }
}

/// Gives the sink what has come. A write to the sink is never broken off, so that it is known what was written.
#[expect(clippy::too_many_arguments, reason = "the parts of one loop")]
async fn store(
    context: &EngineContext,
    flow: &Flow,
    at: &LogPosition,
    mut continues: bool,
    start: &mut ArchiveStart,
    sink: &dyn ChangeSink,
    broken: &CancellationToken,
    durable: &watch::Sender<u64>,
) -> Result<(), EngineError> {
    let mut stored = Instant::now();
    // The first batch says where the log goes on, and keeps others from going on with it.
    let mut is_first = true;
    loop {
        let ends = broken.is_cancelled() || context.stop.is_cancelled();
        let batch = {
            let mut state = flow.state();
            (is_first || ends || state.is_due(stored)).then(|| state.take(&at.history, continues))
        };
        if let Some(batch) = batch {
            flow.room.notify_one();
            let (end, last) = (batch.end(), batch.moments.last().copied());
            if is_first || !batch.bytes.is_empty() || last.is_some() {
                context.fence.check().await?;
                sink.append(batch).await?;
            }
            (is_first, continues, stored) = (false, true, Instant::now());
            start.end = Some(LogPosition {
                history: at.history.clone(),
                offset: end,
            });
            if let Some(last) = last {
                start.last_moment = Some(last);
                sink.is_at(last.until).await;
                context
                    .progress
                    .item(&format!("everything up to {} is archived", last.until));
            }
            // Nobody listens once the link is lost.
            let _unheard = durable.send(end);
        }
        if ends {
            return Ok(());
        }
        context.progress.pulse();
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            () = broken.cancelled() => {}
            () = context.stop.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(offset: u64) -> LogMoment {
        LogMoment {
            from: Timestamp::from_micros(offset.cast_signed()),
            until: Timestamp::from_micros(offset.cast_signed()),
            offset,
        }
    }

    #[test]
    fn a_moment_waits_for_the_bytes_before_it() {
        let flow = Flow::new(100, b"abc", None);
        let mut state = flow.state();
        state.moments = vec![moment(100), moment(103), moment(110)];
        let batch = state.take("a", false);
        assert_eq!((batch.begin, batch.end()), (100, 103));
        assert_eq!(batch.moments, [moment(100), moment(103)]);
        state.add(b"defghij");
        let batch = state.take("a", true);
        assert_eq!((batch.begin, batch.moments), (103, vec![moment(110)]));
        assert_eq!(state.last, Some(moment(110)));
        assert_eq!(state.take("a", true).end(), 110);
    }
}
