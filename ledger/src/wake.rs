//! Who is told when jobs may be claimable: the workers of this process at once, and those of another
//! process through a hook (the socket of `up`).

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use fettler_model::JobId;
use tokio::sync::{broadcast, watch};

/// How many cancellations a slow listener may miss before heartbeats bring them.
const CANCELLATIONS: usize = 256;

/// What is called for the workers of other processes.
pub(crate) type Hook = Arc<dyn Fn() + Send + Sync>;

/// Tells of changes.
pub(crate) struct Wake {
    changes: watch::Sender<u64>,
    cancellations: broadcast::Sender<JobId>,
    hook: Mutex<Option<Hook>>,
}

impl Wake {
    pub(crate) fn new() -> Self {
        Self {
            changes: watch::Sender::new(0),
            cancellations: broadcast::Sender::new(CANCELLATIONS),
            hook: Mutex::new(None),
        }
    }

    /// Jobs may be claimable, because of what this handle has written.
    pub(crate) fn wake(&self) {
        self.poke();
        let hook = self
            .hook
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(hook) = hook {
            hook();
        }
    }

    /// Jobs may be claimable, as somebody else says.
    pub(crate) fn poke(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A cancellation was asked for.
    pub(crate) fn cancelled(&self, job: JobId) {
        // Nobody listens where no worker runs.
        let _nobody_listens = self.cancellations.send(job);
        self.wake();
    }

    pub(crate) fn set_hook(&self, hook: Hook) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }

    pub(crate) fn wakeups(&self) -> Wakeups {
        Wakeups {
            changes: self.changes.subscribe(),
        }
    }

    pub(crate) fn cancellations(&self) -> broadcast::Receiver<JobId> {
        self.cancellations.subscribe()
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wake").finish_non_exhaustive()
    }
}

/// Tells when jobs may have become claimable. See [`crate::Ledger::wakeups`].
#[derive(Clone, Debug)]
pub struct Wakeups {
    changes: watch::Receiver<u64>,
}

impl Wakeups {
    /// Waits until something may have become claimable since the last call, or since the subscription.
    /// Cancellation safe: a change that came meanwhile is not lost.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The ledger is gone: nothing will be claimable any more.
            std::future::pending::<()>().await;
        }
    }
}
