//! The connection: made when it is needed, dropped at the first sign that it is dead, bounded in every wait. Whether Redis is
//! there is one state that the whole process shares, so that its loss and its return are each said once (rule 14).

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use fettler_queue::QueueError;
use redis::{AsyncConnectionConfig, Client, RedisError, aio::MultiplexedConnection};
use tokio::sync::{Notify, watch};

use crate::{RedisQueueOptions, server::Server};

/// Whether Redis is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nobody knows yet.
    Starting,
    /// It answers, and its memory has this name.
    Up { incarnation: Arc<str> },
    /// It was there and is not, or never was.
    Lost,
}

/// What all parts of a queue share.
pub(crate) struct Link {
    server: Server,
    connection: tokio::sync::Mutex<Option<MultiplexedConnection>>,
    state: watch::Sender<State>,
    bell: watch::Sender<u64>,
    /// Jobs were not pushed: the memory has to be filled again.
    missing: AtomicBool,
    /// The memory in which a script met what no push had written.
    damaged: Mutex<Option<Arc<str>>>,
    /// Wakes the keeper.
    pub(crate) nudge: Notify,
    pub(crate) base: String,
    pub(crate) options: RedisQueueOptions,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("base", &self.base)
            .field("state", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(options: RedisQueueOptions) -> Result<Self, QueueError> {
        let bad = |what: String| QueueError::Unavailable {
            doing: "reading its URL",
            what,
        };
        let server = Server::named(&options).map_err(bad)?;
        if options.fleet.is_empty() || options.fleet.contains(['{', '}', ' ', '\n']) {
            return Err(bad(
                "the fleet's name is empty or holds braces or spaces".to_owned()
            ));
        }
        Ok(Self {
            server,
            connection: tokio::sync::Mutex::default(),
            state: watch::Sender::new(State::Starting),
            bell: watch::Sender::new(0),
            missing: AtomicBool::new(false),
            damaged: Mutex::default(),
            nudge: Notify::new(),
            base: format!("fettler:{{{}}}:", options.fleet),
            options,
        })
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(crate) fn bell(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }

    /// Something may have arrived.
    pub(crate) fn ring(&self) {
        self.bell
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A client for the server that holds the queue.
    pub(crate) async fn client(&self) -> Result<Client, RedisError> {
        self.server.client(&self.options).await
    }

    /// The connection, made now where there is none.
    pub(crate) async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = &*held {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.options.connect_within))
            .set_response_timeout(Some(self.options.answer_within));
        let made = self
            .client()
            .await?
            .get_multiplexed_async_connection_with_config(&config)
            .await;
        if made.is_err() {
            self.server.forget_node();
        }
        let connection = made?;
        *held = Some(connection.clone());
        Ok(connection)
    }

    /// The connection, where Redis is there, and the name of its memory.
    pub(crate) async fn up(&self) -> Option<(MultiplexedConnection, Arc<str>)> {
        let State::Up { incarnation } = self.state() else {
            return None;
        };
        match self.connect().await {
            Ok(connection) => Some((connection, incarnation)),
            Err(error) => {
                self.failed("connecting", &error).await;
                None
            }
        }
    }

    /// Waits until it is known whether Redis is there, for as long as a connection may take.
    pub(crate) async fn settled(&self) {
        let mut states = self.states();
        let known = states.wait_for(|state| *state != State::Starting);
        // Not known in time is the same as lost.
        let _late = tokio::time::timeout(self.options.connect_within, known).await;
    }

    /// A call failed: the connection is not used again, and the keeper looks for another.
    pub(crate) async fn failed(&self, doing: &'static str, error: &RedisError) {
        *self.connection.lock().await = None;
        if let Some((node, _)) = error.redirect_node()
            && let Some((host, port)) = node.rsplit_once(':')
            && let Ok(port) = port.parse()
        {
            self.server.moved_to(host, port);
            tracing::debug!(%node, "a cluster named the node that holds the queue");
            self.nudge.notify_one();
            return;
        }
        if let State::Up { incarnation } = self.state()
            && is_of_a_script(error)
        {
            *self.damaged.lock().unwrap_or_else(PoisonError::into_inner) = Some(incarnation);
        }
        let was_up = self.state.send_if_modified(|state| {
            let news = *state != State::Lost;
            *state = State::Lost;
            news
        });
        if was_up {
            tracing::warn!(
                doing,
                %error,
                "the queue's Redis was lost: jobs are taken from the ledger, slowly, until it is back"
            );
            // Workers that wait for a push take from the ledger now.
            self.ring();
        }
        self.nudge.notify_one();
    }

    /// Redis answered, and its memory has this name.
    pub(crate) fn is_up(&self, incarnation: &str) {
        let mut was_lost = false;
        let is_new = self.state.send_if_modified(|state| {
            was_lost = *state == State::Lost;
            let is_new =
                !matches!(&*state, State::Up { incarnation: known } if **known == *incarnation);
            if is_new {
                *state = State::Up {
                    incarnation: incarnation.into(),
                };
            }
            is_new
        });
        if was_lost {
            tracing::info!("the queue's Redis is back");
        }
        if is_new {
            self.ring();
        }
    }

    /// The memory is not the one that was known: the keeper looks at it now.
    pub(crate) fn memory_changed(&self) {
        self.nudge.notify_one();
    }

    /// Jobs could not be pushed: they are found by filling again.
    pub(crate) fn missed(&self) {
        self.missing.store(true, SeqCst);
        self.nudge.notify_one();
    }

    pub(crate) fn take_missing(&self) -> bool {
        self.missing.swap(false, SeqCst)
    }

    /// The memory that was found damaged, told once.
    pub(crate) fn take_damaged(&self) -> Option<Arc<str>> {
        self.damaged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// Whether a script met keys that it cannot work with, as opposed to a server that does not work just now.
fn is_of_a_script(error: &RedisError) -> bool {
    matches!(error.code(), Some("WRONGTYPE" | "ERR")) && error.to_string().contains("script")
}

/// An error of Redis as the queue's callers see it.
pub(crate) fn unavailable(doing: &'static str, error: &RedisError) -> QueueError {
    QueueError::Unavailable {
        doing,
        what: error.to_string(),
    }
}
