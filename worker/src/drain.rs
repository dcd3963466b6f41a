//! How a worker ends. It takes nothing more from then on, since what was claimed then would only be held back from other
//! workers until the last running job has stopped. Long jobs are asked to stop at once, and go on elsewhere from their
//! checkpoint; short ones have time to end, also those that were claimed and have not begun, so that a rolling restart
//! costs no attempt of theirs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use fettler_ledger::{ClaimRequest, ClaimedBatch};
use fettler_model::SlotClass;
use fettler_queue::{Arrivals, Queue, QueueError, WireItem};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::readiness::LastAsked;

/// How far a worker is in its drain.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    /// Nothing more is taken, and long jobs are asked to stop.
    begun: CancellationToken,
    /// Short jobs are asked to stop too.
    hurries: CancellationToken,
    /// Claims that are on their way, and claimed jobs that have not begun.
    not_begun: AtomicUsize,
    /// One fewer of them.
    fewer: Notify,
}

impl Drain {
    pub(crate) fn begin(&self) {
        self.begun.cancel();
    }

    pub(crate) fn hurry(&self) {
        self.hurries.cancel();
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Whether a job of this class is to stop.
    pub(crate) fn asks(&self, slot: SlotClass) -> bool {
        match slot {
            SlotClass::Long => self.begun.is_cancelled(),
            SlotClass::Short => self.hurries.is_cancelled(),
        }
    }

    /// How much of the time of a drain short jobs have before they are asked to stop.
    pub(crate) fn patience(whole: Duration) -> Duration {
        whole / 2
    }

    /// How long a job of this class may take to stop when it is asked to.
    pub(crate) fn grace(whole: Duration, slot: SlotClass) -> Duration {
        match slot {
            SlotClass::Long => whole,
            SlotClass::Short => whole - Self::patience(whole),
        }
    }

    fn add(&self, count: usize) {
        self.not_begun.fetch_add(count, Ordering::SeqCst);
    }

    /// A claim came to nothing, or a claimed job begins.
    pub(crate) fn take_off_one(&self) {
        // An attempt that another process claimed was never counted.
        let _ = self
            .not_begun
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
                count.checked_sub(1)
            });
        self.fewer.notify_waiters();
    }

    /// Waits until all that was claimed has begun. To be asked once the drain has begun.
    pub(crate) async fn all_begun(&self) {
        loop {
            let mut fewer = std::pin::pin!(self.fewer.notified());
            fewer.as_mut().enable();
            if self.not_begun.load(Ordering::SeqCst) == 0 {
                return;
            }
            fewer.await;
        }
    }
}

/// The queue as a worker asks it: it gives nothing more once the worker drains; and it notes when it was asked.
#[derive(Debug)]
pub(crate) struct UntilDrain {
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) drain: Arc<Drain>,
    pub(crate) asked: Arc<LastAsked>,
}

#[async_trait]
impl Queue for UntilDrain {
    async fn push(&self, items: &[WireItem]) -> Result<(), QueueError> {
        self.queue.push(items).await
    }

    async fn take(&self, request: &ClaimRequest) -> Result<ClaimedBatch, QueueError> {
        // Counted before the look, so that whoever begins the drain then sees this claim.
        self.drain.add(1);
        let taken = if self.drain.has_begun() {
            Ok(ClaimedBatch::default())
        } else {
            self.queue.take(request).await.inspect(|_| self.asked.now())
        };
        if let Ok(batch) = &taken {
            self.drain.add(batch.jobs.len());
        }
        self.drain.take_off_one();
        taken
    }

    fn arrivals(&self) -> Box<dyn Arrivals> {
        self.queue.arrivals()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_jobs_are_asked_first_and_what_was_claimed_is_waited_for() {
        let drain = Drain::default();
        drain.add(2);
        drain.begin();
        assert!(drain.asks(SlotClass::Long) && !drain.asks(SlotClass::Short));
        let mut begun = Box::pin(drain.all_begun());
        drain.take_off_one();
        assert!(futures::poll!(&mut begun).is_pending());
        drain.take_off_one();
        drain.take_off_one();
        begun.await;
        drain.hurry();
        assert!(drain.asks(SlotClass::Short));
    }
}
