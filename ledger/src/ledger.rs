//! The handle: what all subjects share.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use fettler_model::{JobId, Secret, Timestamp};
use tokio::sync::broadcast;

use crate::{
    Ended, Readied, Result, Steps, Submitted,
    batch::Batcher,
    job::{Completion, LinesSeen, Submission},
    store::Store,
    wake::{Wake, Wakeups},
};

/// How a ledger is opened.
#[derive(Clone, Debug)]
pub struct LedgerOptions {
    /// The password of a `postgres://` ledger, where the URL holds none.
    pub password: Option<Secret>,
    /// A waiting job rises one priority level per this time (rule 16).
    pub ageing: Duration,
    /// The first retry waits up to this long; each further one up to twice as long as the one before.
    pub retry_base: Duration,
    /// No retry waits longer.
    pub retry_cap: Duration,
    /// How long a request over many jobs goes on before it says where to continue.
    pub bulk: Duration,
    /// How many connections are open at most.
    pub connections: u32,
    /// Asked before each statement: for tests that let each of them fail in turn.
    pub steps: Option<Steps>,
}

impl Default for LedgerOptions {
    fn default() -> Self {
        Self {
            password: None,
            ageing: Duration::from_secs(300),
            retry_base: Duration::from_secs(5),
            retry_cap: Duration::from_secs(3600),
            bulk: Duration::from_secs(10),
            connections: 8,
            steps: None,
        }
    }
}

/// The ledger. Cheap to clone; all clones share connections, batches and wake-ups.
#[derive(Clone)]
pub struct Ledger {
    pub(crate) inner: Arc<Inner>,
}

/// What batches work with beside their items.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) options: LedgerOptions,
    pub(crate) wake: Wake,
    /// Whether there were limits when it was last looked.
    pub(crate) limits_seen: AtomicBool,
}

pub(crate) struct Inner {
    pub(crate) store: Arc<Store>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) submits: Batcher<Submission, Submitted>,
    pub(crate) completions: Batcher<Completion, Ended>,
    announced: Mutex<HashMap<String, Instant>>,
    last_sweep: Mutex<Option<Instant>>,
    pub(crate) lines_seen: LinesSeen,
}

impl Inner {
    /// When each worker of this process was last announced.
    pub(crate) fn announced(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.announced
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// When all leases were last looked through.
    pub(crate) fn last_sweep(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last_sweep
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("dialect", &self.inner.store.dialect)
            .finish_non_exhaustive()
    }
}

impl Ledger {
    /// Opens the ledger at `sqlite:/path/ledger.db` (made if missing, readable by its owner only) or
    /// `postgres://user@host/database`, and brings its schema up to date.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or when a newer Fettler has written it.
    pub async fn open(url: &str) -> Result<Self> {
        Self::open_with(url, LedgerOptions::default()).await
    }

    /// The same with options.
    ///
    /// # Errors
    ///
    /// As [`Ledger::open`].
    pub async fn open_with(url: &str, options: LedgerOptions) -> Result<Self> {
        let store = Arc::new(Store::open(url, &options).await?);
        let shared = Arc::new(Shared {
            store: store.clone(),
            options,
            wake: Wake::new(),
            limits_seen: AtomicBool::new(false),
        });
        let submits = {
            let shared = shared.clone();
            Batcher::start(Arc::new(move |batch| {
                let shared = shared.clone();
                Box::pin(async move { crate::job::submit_all(&shared, batch).await })
            }))
        };
        let completions = {
            let shared = shared.clone();
            Batcher::start(Arc::new(move |batch| {
                let shared = shared.clone();
                Box::pin(async move { crate::job::complete_all(&shared, batch).await })
            }))
        };
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                shared,
                submits,
                completions,
                announced: Mutex::new(HashMap::new()),
                last_sweep: Mutex::new(None),
                lines_seen: LinesSeen::default(),
            }),
        })
    }

    /// Closes the connections. Commits that are on their way are finished; later calls are refused.
    pub async fn close(&self) {
        self.inner.store.close().await;
    }

    /// The ledger's clock.
    ///
    /// # Errors
    ///
    /// When the ledger is away.
    pub async fn now(&self) -> Result<Timestamp> {
        self.inner.store.now().await
    }

    /// Subscribes to "jobs may be claimable", as far as this process knows or is told.
    #[must_use]
    pub fn wakeups(&self) -> Wakeups {
        self.inner.shared.wake.wakeups()
    }

    /// The jobs that commits of this handle make claimable, batch by batch: submitted, due, handed back, woken
    /// where they were parked. A listener that fell behind (`Lagged`) reads [`Ledger::queued_page`].
    #[must_use]
    pub fn readied(&self) -> broadcast::Receiver<Arc<[Readied]>> {
        self.inner.store.ready.subscribe()
    }

    /// The time in which a waiting job rises one priority level (rule 16).
    #[must_use]
    pub fn ageing(&self) -> Duration {
        self.inner.shared.options.ageing
    }

    /// Tells this process that jobs may be claimable, as another process said (the socket of `up`).
    pub fn poke(&self) {
        self.inner.shared.wake.poke();
    }

    /// Sets what is called, beside waking this process, when this handle has made jobs claimable or
    /// asked for a cancellation: the way to the process that runs the workers. It must not block.
    pub fn set_wake_hook(&self, hook: Arc<dyn Fn() + Send + Sync>) {
        self.inner.shared.wake.set_hook(hook);
    }

    /// The cancellations that this process asks for, at once; heartbeats bring those of others.
    #[must_use]
    pub fn cancellations(&self) -> broadcast::Receiver<JobId> {
        self.inner.shared.wake.cancellations()
    }
}
