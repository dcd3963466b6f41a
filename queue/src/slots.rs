//! A worker's slots (rule 17): a delivery holds one from its claim until its work is over, so that no
//! more is claimed than can start at once, and a long job never takes the place of a short one. While the
//! end of a job is on its way to the ledger the next one may take its slot; as many ends as there are slots
//! may be on their way, so that a slow ledger is not outrun.

use std::sync::Arc;

use fettler_model::SlotClass;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The slots of a worker.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    long: Arc<Semaphore>,
    short: Arc<Semaphore>,
    reports: Arc<Semaphore>,
    freed: Arc<Notify>,
}

impl Slots {
    pub(crate) fn new(long: usize, short: usize) -> Self {
        Self {
            long: Arc::new(Semaphore::new(long)),
            short: Arc::new(Semaphore::new(short)),
            reports: Arc::new(Semaphore::new(long + short)),
            freed: Arc::new(Notify::new()),
        }
    }

    /// How many are free, long and short.
    pub(crate) fn free(&self) -> (usize, usize) {
        (
            self.long.available_permits(),
            self.short.available_permits(),
        )
    }

    /// Takes a slot. Only one task takes, and it claims no more than were free; should a queue deliver
    /// more nevertheless, the job runs beside the others rather than not at all.
    pub(crate) fn take(&self, class: SlotClass) -> Slot {
        let slots = match class {
            SlotClass::Long => &self.long,
            SlotClass::Short => &self.short,
        };
        let permit = slots.clone().try_acquire_owned().ok();
        if permit.is_none() {
            tracing::warn!(
                slot = class.as_str(),
                "a job was delivered without a free slot"
            );
        }
        Slot {
            permit,
            reports: self.reports.clone(),
            freed: self.freed.clone(),
        }
    }

    /// Waits until a slot was freed since the last call.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }
}

/// A slot, taken until it is dropped.
#[derive(Debug)]
pub struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    reports: Arc<Semaphore>,
    freed: Arc<Notify>,
}

impl Slot {
    /// The work is over and its end is to be reported: frees the slot, once no more ends are on their way than there are
    /// slots. Dropped when the ledger has taken the end in.
    pub async fn work_is_over(self) -> Reporting {
        // The semaphore is never closed.
        let permit = self.reports.clone().acquire_owned().await.ok();
        drop(self);
        Reporting { _permit: permit }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The slot is free before it is said.
        drop(self.permit.take());
        self.freed.notify_one();
    }
}

/// The end of a job on its way to the ledger.
#[derive(Debug)]
pub struct Reporting {
    _permit: Option<OwnedSemaphorePermit>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rule_17_a_slot_is_free_while_the_end_is_reported_and_no_more_ends_are_under_way_than_slots()
     {
        let slots = Slots::new(0, 2);
        let (first, second) = (slots.take(SlotClass::Short), slots.take(SlotClass::Short));
        assert_eq!(slots.free(), (0, 0));
        let reporting = (first.work_is_over().await, second.work_is_over().await);
        assert_eq!(slots.free(), (0, 2), "their jobs are over");

        let third = slots.take(SlotClass::Short);
        let mut waiting = Box::pin(third.work_is_over());
        assert!(
            futures::poll!(&mut waiting).is_pending(),
            "two ends are on their way"
        );
        assert_eq!(slots.free(), (0, 1), "so the third job keeps its slot");
        drop(reporting.0);
        waiting.await;
        assert_eq!(slots.free(), (0, 2));
    }
}
