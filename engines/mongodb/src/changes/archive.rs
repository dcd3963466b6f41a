//! Archiving: the oplog's entries as they come, from the last that is durable on.
//!
//! One loop reads and stores: while it stores, the server keeps what comes. Entries wait [`GATHER`] for others before they go to
//! the sink. Only entries that are settled in the whole set are read, so that none is taken back later. Once a minute it is looked
//! how far the oplog reaches back: whoever is too far behind loses what falls out of it.

use std::time::Duration;

use bson::{RawDocument, Timestamp as OperationTime, raw::RawBsonRef, rawdoc};
use bytes::BytesMut;
use fettler_engine::{ArchiveStart, ChangeBatch, ChangeSink, EngineContext, EngineError, Target};
use fettler_model::{LogPosition, Timestamp};
use tokio::time::{Instant, sleep};

use super::{
    clock::{Clock, made_by},
    history, is_left_out, moment_of, number_of,
    tail::{Entries, Tail, has, moment, newest, oldest},
};
use crate::{error::Refusal, identify::require_one_oplog, params::Params, session::Session};

/// How long what was read waits for more before it goes to the sink: with the time of a write to a store, less than the
/// second that may be lost.
const GATHER: Duration = Duration::from_millis(150);
/// Bytes that go to the sink without waiting for more.
const BATCH_BYTES: usize = 4 << 20;
/// How long moments alone wait: where nothing is written, a batch holds nothing else.
const GATHER_MOMENTS: Duration = Duration::from_secs(10);
/// How often a server where nothing is written is asked for its clock.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How often it is looked how far the oplog reaches back.
const WATCH_EVERY: Duration = Duration::from_secs(60);
/// Between two tries to reach a server that went away, at first and at last.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long is tried before the attempt ends, which everybody sees.
const TRY_FOR: Duration = Duration::from_secs(300);
/// What is being done, for messages.
const ARCHIVING: &str = "archiving the oplog";

/// Reads a server's oplog until it is stopped.
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
                "{} names one database, and the oplog is of all of them",
                source.url
            ),
            remedy: "archive the server: leave the database out of its URL (`--only` picks databases and collections at the restore)"
                .to_owned(),
        });
    }
    let mut start = start.clone();
    let mut wait = AGAIN_AFTER.0;
    let mut lost_since = None;
    let mut watch = Watch::default();
    loop {
        let before = start.end.clone();
        let outcome = follow(context, &params, &mut start, sink, &mut watch).await;
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
        tracing::warn!(%error, "the oplog could not be read on and is joined again");
        context.progress.item(&format!("lost: {error}"));
        let _stopped = context.stop.run_until_cancelled(sleep(wait)).await;
        context.check_stop()?;
        wait = (wait * 2).min(AGAIN_AFTER.1);
    }
}

/// An error for what has no oplog, or another one than was asked for.
fn require_oplog(params: &Params, session: &Session) -> Result<(), EngineError> {
    require_one_oplog(session)?;
    if params.wants_secondary && session.hello.is_primary && session.hello.set_name.is_some() {
        return Err(EngineError::Missing {
            code: "secondary",
            what: format!(
                "{} is the set's primary, and the URL says `readPreference=secondary`",
                session.server()
            ),
            remedy: "name a secondary, or leave `readPreference` out".to_owned(),
        });
    }
    Ok(())
}

/// Where to go on, and whether nothing is missing between.
async fn join(
    session: &mut Session,
    start: &ArchiveStart,
) -> Result<(OperationTime, bool), EngineError> {
    let present = match session.newest_moment().await? {
        Ok(Some(present)) => present,
        Ok(None) => {
            return Err(EngineError::Database {
                what: format!("the oplog of {} is empty yet", session.server()),
                transient: true,
            });
        }
        Err(refusal) if refusal.code == crate::error::code::UNAUTHORIZED => {
            return Err(refusal.doing(session.server(), ARCHIVING));
        }
        Err(refusal) => {
            return Err(EngineError::Missing {
                code: "oplog",
                what: format!(
                    "{} has no oplog that could be read: {refusal}",
                    session.server()
                ),
                remedy: "only members of a replica set have one, also of a set of one (`rs.initiate()`); back up more often where there is none"
                    .to_owned(),
            });
        }
    };
    let history = history(session);
    let of_this = |position: &Option<LogPosition>| {
        position
            .as_ref()
            .filter(|position| position.history == history)
            .map(|position| moment_of(position.offset))
    };
    if let Some(end) = of_this(&start.end) {
        if has(session, end).await? {
            return Ok((end, true));
        }
        if session.hello.is_secondary && present < end {
            return Err(EngineError::Database {
                what: format!(
                    "{} is a secondary that has not come to where the archive is",
                    session.server()
                ),
                transient: true,
            });
        }
    }
    if let Some(base) = of_this(&start.base)
        && has(session, base).await?
    {
        return Ok((base, false));
    }
    Ok((present, false))
}

/// Joins the oplog and archives it until the link is lost or the work is stopped. `start` is where to go on afterwards.
async fn follow(
    context: &EngineContext,
    params: &Params,
    start: &mut ArchiveStart,
    sink: &dyn ChangeSink,
    watch: &mut Watch,
) -> Result<(), EngineError> {
    let mut session = Session::of_attempt(params, context).await?;
    require_oplog(params, &session)?;
    let (at, continues) = join(&mut session, start).await?;
    start.base = None;
    let mut tail = Tail::new(at);
    let mut flow = Flow {
        history: history(&session),
        begin: number_of(at),
        end: number_of(at),
        held: BytesMut::new(),
        since: None,
        clock: Clock::new(start.last_moment, continues),
        continues,
        stored: Instant::now(),
        asked: Instant::now(),
    };
    // The first batch says where the log goes on, and keeps others from going on with it.
    flow.store(context, start, sink).await?;
    loop {
        let read = flow.read(context, &mut session, &mut tail).await;
        if flow.is_due() || (read.is_err() && flow.has_something()) {
            flow.store(context, start, sink).await?;
        }
        read?;
        watch.look(&mut session, flow.end, context, sink).await?;
        context.progress.pulse();
    }
}

/// What was read and has not gone to the sink.
struct Flow {
    history: String,
    begin: u64,
    end: u64,
    held: BytesMut,
    /// Since when something is held.
    since: Option<Instant>,
    clock: Clock,
    continues: bool,
    stored: Instant,
    asked: Instant,
}

impl Flow {
    /// Reads what comes next, and asks for the server's clock where nothing comes.
    async fn read(
        &mut self,
        context: &EngineContext,
        session: &mut Session,
        tail: &mut Tail,
    ) -> Result<(), EngineError> {
        context.check_stop()?;
        if let Some(entries) = tail.next(session).await? {
            self.take(context, &entries)
                .map_err(|what| session.unexpected(ARCHIVING, &what))?;
        } else if self.asked.elapsed() >= ASK_EVERY {
            self.asked = Instant::now();
            if let Some(asked) = clock(session).await?
                && let Some(newest) = newest(session).await?
                && number_of(newest) == self.end
            {
                self.clock.nothing_behind(self.end, asked);
            }
        }
        Ok(())
    }

    fn take(&mut self, context: &EngineContext, entries: &Entries) -> Result<(), String> {
        for entry in entries.all() {
            let entry = entry?;
            let number = number_of(moment(entry)?);
            if !is_part_of_more(entry) {
                self.clock.entry(number, made_by(entry, number));
            }
            self.end = number;
            if changes_something(entry) {
                let bytes = entry.as_bytes();
                self.held.extend_from_slice(bytes);
                self.since.get_or_insert_with(Instant::now);
                context.progress.add(bytes.len() as u64, 1);
            }
        }
        Ok(())
    }

    fn has_something(&self) -> bool {
        self.end != self.begin || self.clock.has_moments()
    }

    fn is_due(&self) -> bool {
        self.held.len() >= BATCH_BYTES
            || self.since.is_some_and(|since| since.elapsed() >= GATHER)
            || (self.clock.has_moments() && self.stored.elapsed() >= GATHER_MOMENTS)
    }

    /// Gives the sink what was read. A write to the sink is never broken off, so that it is known what was written.
    async fn store(
        &mut self,
        context: &EngineContext,
        start: &mut ArchiveStart,
        sink: &dyn ChangeSink,
    ) -> Result<(), EngineError> {
        let moments = self.clock.take();
        let last = moments.last().copied();
        context.fence.check().await?;
        sink.append(ChangeBatch {
            history: self.history.clone(),
            begin: self.begin,
            last_number: Some(self.end),
            continues: self.continues,
            bytes: self.held.split().freeze(),
            moments,
        })
        .await?;
        (self.begin, self.continues, self.since) = (self.end, true, None);
        self.stored = Instant::now();
        start.end = Some(LogPosition {
            history: self.history.clone(),
            offset: self.end,
        });
        if let Some(last) = last {
            start.last_moment = Some(last);
            sink.is_at(last.last()).await;
            context
                .progress
                .item(&format!("everything up to {} is archived", last.last()));
        }
        Ok(())
    }
}

/// Whether a transaction goes on behind an entry: the oplog is not cut there.
fn is_part_of_more(entry: &RawDocument) -> bool {
    entry
        .get_document("o")
        .is_ok_and(|object| object.get_bool("partialTxn").unwrap_or(false))
}

/// Whether an entry is to be kept. What a transaction groups is told apart when it is played.
fn changes_something(entry: &RawDocument) -> bool {
    let word = |name: &str| entry.get_str(name).unwrap_or_default();
    let database = word("ns").split('.').next().unwrap_or_default();
    word("op") != "n" && !is_left_out(database)
}

/// The server's clock.
async fn clock(session: &mut Session) -> Result<Option<Timestamp>, EngineError> {
    let mut said = session.try_run("admin", rawdoc! { "hello": 1 }).await?;
    if said.as_ref().is_err_and(Refusal::is_unknown) {
        // Older servers know it by this name.
        said = session.try_run("admin", rawdoc! { "isMaster": 1 }).await?;
    }
    let said = said.map_err(|refusal| refusal.doing(session.server(), "asking for its clock"))?;
    Ok(match said.get("localTime") {
        Ok(Some(RawBsonRef::DateTime(time))) => Some(Timestamp::from_micros(
            time.timestamp_millis().saturating_mul(1000),
        )),
        _ => None,
    })
}

/// Looks how far the oplog reaches back.
#[derive(Default)]
struct Watch {
    looked: Option<Instant>,
    has_warned: bool,
}

impl Watch {
    async fn look(
        &mut self,
        session: &mut Session,
        end: u64,
        context: &EngineContext,
        sink: &dyn ChangeSink,
    ) -> Result<(), EngineError> {
        if self
            .looked
            .is_some_and(|looked| looked.elapsed() < WATCH_EVERY)
        {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let (Some(oldest), Some(newest)) = (oldest(session).await?, newest(session).await?) else {
            return Ok(());
        };
        let window = Window {
            oldest: oldest.time,
            end: moment_of(end).time,
            newest: newest.time,
        };
        context.progress.item(&window.to_string());
        tracing::debug!(%window, "looked how far the oplog reaches back");
        let is_short = window.is_short();
        if is_short && !self.has_warned {
            sink.warn(&format!(
                "the archive is about to lose changes: {window} (`replSetResizeOplog` makes the oplog of {} larger; look whether the store is slow)",
                session.server()
            ))
            .await;
        }
        self.has_warned = is_short;
        Ok(())
    }
}

/// How far the oplog reaches back, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Window {
    oldest: u32,
    end: u32,
    newest: u32,
}

impl Window {
    /// How far behind the archive is where more than half of what the oplog holds was used up by that.
    fn is_short(self) -> bool {
        /// Nobody is woken for less: a batch is on its way.
        const LEAST_LAG_SECONDS: u32 = 30;
        let lag = self.newest.saturating_sub(self.end);
        let left = self.end.saturating_sub(self.oldest);
        lag >= LEAST_LAG_SECONDS && left < lag
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = |from: u32, to: u32| f64::from(to.saturating_sub(from)) / 3600.0;
        write!(
            f,
            "the oplog reaches back {:.1} h, and the archive is {} s behind its end",
            hours(self.oldest, self.newest),
            self.newest.saturating_sub(self.end)
        )
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    #[test]
    fn a_window_is_short_when_the_lag_has_eaten_half_of_it() {
        let window = |oldest, end, newest| Window {
            oldest,
            end,
            newest,
        };
        assert!(!window(0, 100_000, 100_005).is_short());
        assert!(!window(0, 60_000, 100_000).is_short());
        assert!(window(0, 40_000, 100_000).is_short());
        // It has rolled over already.
        assert!(window(90_000, 40_000, 100_000).is_short());
        // A young oplog is no short one.
        assert!(!window(0, 5, 20).is_short());
        assert_eq!(
            window(0, 99_000, 108_000).to_string(),
            "the oplog reaches back 30.0 h, and the archive is 9000 s behind its end"
        );
    }

    #[test]
    fn what_changes_nothing_is_not_kept_and_transactions_are_not_cut() {
        assert!(!changes_something(&rawdoc! { "op": "n", "ns": "" }));
        assert!(!changes_something(
            &rawdoc! { "op": "u", "ns": "config.transactions" }
        ));
        assert!(changes_something(&rawdoc! { "op": "i", "ns": "shop.a" }));
        assert!(changes_something(
            &rawdoc! { "op": "c", "ns": "admin.$cmd" }
        ));
        let part = rawdoc! { "op": "c", "o": { "applyOps": [], "partialTxn": true } };
        let whole = rawdoc! { "op": "c", "o": { "applyOps": [] } };
        assert!(is_part_of_more(&part) && !is_part_of_more(&whole));
    }
}
