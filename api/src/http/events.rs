//! What happens, as it happens: server-sent events that a reader resumes where it was (rule 10). An event's
//! id is its position in the ledger; who sends the last one as `Last-Event-ID` misses none after it. The
//! events of one job come with the job's state and progress in between, which have no id: they tell the
//! state of a moment, and a new reader gets the newest.

use std::{convert::Infallible, fmt, str::FromStr, time::Duration};

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use fettler_ledger::{EventFilter, EventPosition, EventRecord, JobRecord, LedgerError};
use fettler_model::{JobId, TenantId, Timestamp};
use futures::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    time::Instant,
};

use super::{App, access::Caller, input::Parameters, jobs, problem::Refusal};

/// While somebody reads, the ledger is asked this often whether something happened. What is delivered does
/// not depend on it, only when.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The state of a job that somebody follows is looked at this often.
const LOOK_AT_JOB_EVERY: Duration = Duration::from_millis(500);
/// While the ledger is away it is asked this often.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// A comment is sent after so long a silence, so that both ends see that the other is there.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A stream ends after so long. Its reader comes back where it was, and its token is looked at again.
const LONGEST_STREAM: Duration = Duration::from_secs(15 * 60);
/// How many events are read at once.
const PAGE: usize = 200;
/// How many events wait for a slow reader.
const BUFFERED: usize = 64;
/// When to try again when all streams are taken.
const STREAM_RETRY_SECONDS: u64 = 5;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventDocument {
    /// Where it stands: give it as `Last-Event-ID` to go on after it.
    pub id: String,
    /// When it happened.
    pub at: Timestamp,
    /// Whose it is.
    pub tenant: TenantId,
    /// What happened, such as `job.succeeded` or `backup.damaged`.
    pub kind: String,
    /// The job that it is about.
    pub job: Option<JobId>,
    /// What else there is to say.
    pub data: Value,
}

/// Which events are read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsQuery {
    /// Only this tenant's.
    tenant: Option<TenantId>,
    /// Begin after this event, as the header `Last-Event-ID` says it too. Without either a stream begins now.
    #[schemars(regex(pattern = r"^[0-9]{1,18}-[0-9]{1,18}$"))]
    after: Option<String>,
    /// `false` ends the stream when everything was sent that has happened so far.
    follow: Option<bool>,
}

/// Which events of a job are read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobEventsQuery {
    /// Begin after this event, as the header `Last-Event-ID` says it too. Without either all are sent.
    #[schemars(regex(pattern = r"^[0-9]{1,18}-[0-9]{1,18}$"))]
    after: Option<String>,
    /// `false` ends the stream when everything was sent that has happened so far.
    follow: Option<bool>,
}

/// A position as text.
struct Id(EventPosition);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.transaction, self.0.number)
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            is_plain.then(|| text.parse().ok()).flatten()
        };
        text.split_once('-')
            .and_then(|(transaction, at)| {
                Some(Self(EventPosition {
                    transaction: number(transaction)?,
                    number: number(at)?,
                }))
            })
            .ok_or_else(|| format!("{text:?} is no id of an event"))
    }
}

impl From<EventRecord> for EventDocument {
    fn from(event: EventRecord) -> Self {
        Self {
            id: Id(event.position).to_string(),
            at: event.at,
            tenant: event.tenant,
            kind: event.kind,
            job: event.job,
            data: event.data,
        }
    }
}

/// Tells streams that something happened.
#[derive(Debug)]
pub(crate) struct Tail {
    newest: watch::Sender<EventPosition>,
}

impl Tail {
    pub(crate) fn new() -> Self {
        Self {
            newest: watch::Sender::new(EventPosition::default()),
        }
    }
}

/// Looks whether something happened, for all streams at once and only while there are some.
pub(crate) async fn follow(app: App) {
    let newest = &app.tail.newest;
    loop {
        let pause = if newest.receiver_count() == 0 {
            LOOK_EVERY
        } else {
            match app.ledger.newest_event().await {
                Ok(position) => {
                    newest.send_if_modified(|known| std::mem::replace(known, position) != position);
                    LOOK_EVERY
                }
                Err(error) => {
                    tracing::debug!(%error, "the newest event could not be read");
                    AWAY_PAUSE
                }
            }
        };
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Where a reader was.
fn resumed(headers: &HeaderMap, after: Option<&str>) -> Result<Option<EventPosition>, Refusal> {
    let header = match headers.get("last-event-id") {
        Some(value) => Some(value.to_str().map_err(|_| {
            Refusal::parameter("Last-Event-ID", "it holds characters that no id has")
        })?),
        None => None,
    };
    header
        .map(|text| ("Last-Event-ID", text))
        .or(after.map(|text| ("after", text)))
        .map(|(name, text)| {
            text.parse()
                .map(|Id(position)| position)
                .map_err(|error| Refusal::parameter(name, error))
        })
        .transpose()
}

/// `GET /api/v1/events`.
pub(crate) async fn all(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Parameters(query): Parameters<EventsQuery>,
) -> Result<Response, Refusal> {
    let after = resumed(&headers, query.after.as_deref())?;
    let tenant = caller.listed(&app, query.tenant).await?;
    let position = match after {
        Some(position) => position,
        None => app.ledger.newest_event().await?,
    };
    let reader = Reader::open(app, query.follow != Some(false))?;
    let filter = EventFilter { tenant, job: None };
    Ok(reader.stream(|reader| async move { reader.read_all(filter, position).await }))
}

/// `GET /api/v1/jobs/{job}/events`.
pub(crate) async fn of_job(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Path(job): Path<String>,
    Parameters(query): Parameters<JobEventsQuery>,
) -> Result<Response, Refusal> {
    let after = resumed(&headers, query.after.as_deref())?;
    let job = jobs::find(&app, &caller, &job).await?;
    let position = after.unwrap_or_default();
    let filter = EventFilter {
        tenant: None,
        job: Some(job.id),
    };
    if job.state.is_final() && after.is_some() {
        let more = app.ledger.events(&filter, position, 1).await?;
        if more.is_empty() {
            // This is how a browser is told not to come back.
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
    }
    let reader = Reader::open(app, query.follow != Some(false))?;
    Ok(reader.stream(|reader| async move { reader.read_job(job, filter, position).await }))
}

/// Why a stream ends.
enum End {
    /// Nothing more is to come, nobody reads any more, or its time is over.
    Over,
    /// The ledger failed for good.
    Failed(LedgerError),
}

impl From<LedgerError> for End {
    fn from(error: LedgerError) -> Self {
        Self::Failed(error)
    }
}

/// One stream, from the side of the ledger.
struct Reader {
    app: App,
    follows: bool,
    to: mpsc::Sender<Event>,
    from: Option<mpsc::Receiver<Event>>,
    happened: watch::Receiver<EventPosition>,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    fn open(app: App, follows: bool) -> Result<Self, Refusal> {
        let place = app.streams.clone().try_acquire_owned().map_err(|_| {
            Refusal::too_many(
                format!(
                    "{} streams are open, and no more are given",
                    app.options.max_streams
                ),
                STREAM_RETRY_SECONDS,
            )
        })?;
        let (to, from) = mpsc::channel(BUFFERED);
        Ok(Self {
            happened: app.tail.newest.subscribe(),
            follows,
            to,
            from: Some(from),
            until: Instant::now() + LONGEST_STREAM,
            _place: place,
            app,
        })
    }

    /// Reads in a task of its own, which ends when nobody takes the events any more.
    fn stream<F>(mut self, read: impl FnOnce(Self) -> F) -> Response
    where
        F: Future<Output = Result<(), End>> + Send + 'static,
    {
        let from = self.from.take();
        let reading = read(self);
        tokio::spawn(async move {
            if let Err(End::Failed(error)) = reading.await {
                tracing::warn!(%error, "a stream of events ended early");
            }
        });
        let events = stream::unfold(from, |from| async move {
            let mut from = from?;
            let event = from.recv().await?;
            Some((Ok::<_, Infallible>(event), Some(from)))
        });
        Sse::new(events)
            .keep_alive(KeepAlive::new().interval(HEARTBEAT))
            .into_response()
    }

    async fn send(&self, event: Event) -> Result<(), End> {
        self.to.send(event).await.map_err(|_| End::Over)
    }

    /// Sends the events after a position; gives the position of the last one.
    async fn send_page(
        &self,
        filter: &EventFilter,
        position: &mut EventPosition,
    ) -> Result<usize, End> {
        let page = match self.app.ledger.events(filter, *position, PAGE).await {
            Ok(page) => page,
            Err(LedgerError::Unavailable { .. } | LedgerError::Busy { .. }) if self.follows => {
                self.wait(AWAY_PAUSE).await?;
                return Ok(0);
            }
            Err(error) => return Err(error.into()),
        };
        let sent = page.len();
        for event in page {
            *position = event.position;
            let document = EventDocument::from(event);
            let text = serde_json::to_string(&document).expect("an event is plain data");
            let event = Event::default()
                .id(&document.id)
                .event(&document.kind)
                .data(text);
            self.send(event).await?;
        }
        Ok(sent)
    }

    /// Waits for a while, unless the stream has to end.
    async fn wait(&self, pause: Duration) -> Result<(), End> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.ending() => Err(End::Over),
        }
    }

    /// Ends when the stream has to.
    async fn ending(&self) {
        tokio::select! {
            () = self.app.stop.cancelled() => {}
            () = self.to.closed() => {}
            () = tokio::time::sleep_until(self.until) => {}
        }
    }

    async fn read_all(
        mut self,
        filter: EventFilter,
        mut position: EventPosition,
    ) -> Result<(), End> {
        loop {
            // What happens from here on is told again.
            self.happened.mark_unchanged();
            while self.send_page(&filter, &mut position).await? == PAGE {}
            if !self.follows {
                return Ok(());
            }
            let mut happened = self.happened.clone();
            tokio::select! {
                told = happened.changed() => if told.is_err() { return Ok(()) },
                () = self.ending() => return Ok(()),
            }
        }
    }

    async fn read_job(
        self,
        first: JobRecord,
        filter: EventFilter,
        mut position: EventPosition,
    ) -> Result<(), End> {
        let id = first.id;
        let mut job = first;
        let mut shown = String::new();
        loop {
            let text = serde_json::to_string(&job).expect("a job is plain data");
            if text != shown {
                self.send(Event::default().event("job").data(&text)).await?;
                shown = text;
            }
            let is_final = job.state.is_final();
            let mut sent = 0;
            loop {
                let page = self.send_page(&filter, &mut position).await?;
                sent += page;
                if page < PAGE {
                    break;
                }
            }
            if !self.follows {
                return Ok(());
            }
            if is_final {
                // The event of its end becomes visible a moment after the job's own row did.
                let ended = self
                    .app
                    .ledger
                    .events(&filter, EventPosition::default(), PAGE)
                    .await?;
                let is_told = ended.iter().any(|event| {
                    event.kind == format!("job.{}", job.state) && event.position <= position
                });
                if is_told {
                    return Ok(());
                }
            }
            tracing::trace!(job.id = %id, sent, "a stream of a job waits");
            self.wait(LOOK_AT_JOB_EVERY).await?;
            if !is_final {
                job = match self.app.ledger.job(id).await {
                    Ok(mut job) => {
                        jobs::show_progress(&self.app, &mut job);
                        job
                    }
                    Err(LedgerError::Unavailable { .. } | LedgerError::Busy { .. }) => job,
                    Err(error) => return Err(error.into()),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written() {
        let Id(position) = "812-44".parse().unwrap();
        assert_eq!(Id(position).to_string(), "812-44");
        for bad in [
            "",
            "-",
            "1",
            "1-",
            "+1-2",
            "1-2-3",
            "x-1",
            "99999999999999999999-1",
        ] {
            assert!(bad.parse::<Id>().is_err(), "{bad:?}");
        }
    }
}
