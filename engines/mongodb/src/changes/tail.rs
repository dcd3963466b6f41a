//! The end of the oplog, as it grows.

use std::time::Duration;

use bson::{RawDocument, Timestamp, rawdoc};
use fettler_engine::EngineError;
use tokio::time::sleep;

use crate::{
    error::{Refusal, code},
    raw::put,
    session::{Batch, Cursor, Session},
};

/// How long the server waits for the next entry before it answers that there is none.
const AWAIT: Duration = Duration::from_millis(100);
/// How long is waited before a server is asked again that ends a cursor at the oplog's end.
const POLL: Duration = Duration::from_millis(50);
/// What is being done, for messages.
const TAILING: &str = "reading the oplog's end";

/// Reads what comes behind an operation time. The entry of that time itself must be there: where it is not, others behind it
/// are gone too.
pub(super) struct Tail {
    cursor: Option<Cursor>,
    /// The last entry that was read.
    at: Timestamp,
    /// Whether the entry of `at` was seen by this cursor.
    is_begun: bool,
}

/// Entries behind the last that were read.
pub(super) struct Entries {
    batch: Batch,
    skips_first: bool,
}

impl Entries {
    pub(super) fn all(&self) -> impl Iterator<Item = Result<&RawDocument, String>> {
        self.batch.documents().skip(usize::from(self.skips_first))
    }
}

impl Tail {
    pub(super) fn new(at: Timestamp) -> Self {
        Self {
            cursor: None,
            at,
            is_begun: false,
        }
    }

    /// What comes next; nothing where nothing came for a moment.
    pub(super) async fn next(
        &mut self,
        session: &mut Session,
    ) -> Result<Option<Entries>, EngineError> {
        let mut cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => {
                self.is_begun = false;
                self.open(session).await?
            }
        };
        let batch = match cursor.try_next(session).await? {
            Ok(Some(batch)) => batch,
            // A server that follows nothing, or that has nothing to follow yet.
            Ok(None) => {
                sleep(POLL).await;
                return Ok(None);
            }
            // What was to come next may be gone: the next cursor tells.
            Err(refusal)
                if matches!(
                    refusal.code,
                    code::CURSOR_NOT_FOUND | code::CAPPED_POSITION_LOST
                ) =>
            {
                return Ok(None);
            }
            Err(refusal) => return Err(doing(session, &refusal)),
        };
        let times = batch
            .documents()
            .map(|entry| entry.and_then(moment))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|what| session.unexpected(TAILING, &what))?;
        let skips_first = !self.is_begun && !times.is_empty();
        if skips_first && times[0] != self.at {
            return Err(rolled_over(session));
        }
        self.is_begun |= skips_first;
        self.cursor = Some(cursor);
        let Some(last) = times.get(usize::from(skips_first)..).and_then(<[_]>::last) else {
            return Ok(None);
        };
        if !times.is_sorted() {
            return Err(session.unexpected(TAILING, &"entries out of their order"));
        }
        self.at = *last;
        Ok(Some(Entries { batch, skips_first }))
    }

    async fn open(&self, session: &mut Session) -> Result<Cursor, EngineError> {
        let mut command = rawdoc! {
            "find": "oplog.rs",
            "filter": { "ts": { "$gte": self.at } },
            "tailable": true,
            "awaitData": true,
        };
        go_straight(session, &mut command);
        if session.hello.set_name.is_some() {
            // What is not settled in the set may be taken back.
            put(&mut command, "readConcern", rawdoc! { "level": "majority" });
        }
        match session.open_cursor("local", command, TAILING).await? {
            Ok(cursor) => Ok(cursor.waiting(AWAIT)),
            Err(refusal) => Err(doing(session, &refusal)),
        }
    }
}

/// An entry's operation time.
pub(super) fn moment(entry: &RawDocument) -> Result<Timestamp, String> {
    entry
        .get_timestamp("ts")
        .map_err(|error| format!("an entry of the oplog without its time: {error}"))
}

fn doing(session: &Session, refusal: &Refusal) -> EngineError {
    refusal.doing(session.server(), TAILING)
}

fn rolled_over(session: &Session) -> EngineError {
    EngineError::Database {
        what: format!(
            "the oplog of {} no longer has what was read last",
            session.server()
        ),
        transient: true,
    }
}

/// The oldest entry's operation time; nothing where there is none.
pub(super) async fn oldest(session: &mut Session) -> Result<Option<Timestamp>, EngineError> {
    first(session, rawdoc! {}, 1).await
}

/// The newest of what this server has, settled or not.
pub(super) async fn newest(session: &mut Session) -> Result<Option<Timestamp>, EngineError> {
    first(session, rawdoc! {}, -1).await
}

/// Whether the oplog has the entry of an operation time.
pub(super) async fn has(session: &mut Session, at: Timestamp) -> Result<bool, EngineError> {
    let found = first(session, rawdoc! { "ts": { "$gte": at } }, 1).await?;
    Ok(found == Some(at))
}

/// Before MongoDB 4.4 (version 9 of the protocol) a server reads the oplog from its beginning, unless it is told that it need not.
fn go_straight(session: &Session, command: &mut bson::RawDocumentBuf) {
    const FINDS_BY_ITSELF: i32 = 9;
    if session.hello.wire_version < FINDS_BY_ITSELF {
        put(command, "oplogReplay", true);
    }
}

async fn first(
    session: &mut Session,
    filter: bson::RawDocumentBuf,
    order: i32,
) -> Result<Option<Timestamp>, EngineError> {
    let mut command = rawdoc! {
        "find": "oplog.rs",
        "filter": filter,
        "limit": 1,
        "singleBatch": true,
    };
    if order < 0 {
        put(&mut command, "sort", rawdoc! { "$natural": order });
    } else {
        go_straight(session, &mut command);
    }
    let found = session
        .list("local", command, TAILING)
        .await?
        .map_err(|refusal| doing(session, &refusal))?;
    found
        .first()
        .map(|entry| moment(entry).map_err(|what| session.unexpected(TAILING, &what)))
        .transpose()
}
