//! A worker's slots (rule 17): a delivery holds one from its claim until its work is over, so that no
//! more is claimed than can start at once, and a long job never takes the place of a short one.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use apalis_core::task::Task;
use fettler_model::SlotClass;
use futures::future::BoxFuture;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tower::{Layer, Service};

use crate::Delivery;

/// The slots of a worker.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    long: Arc<Semaphore>,
    short: Arc<Semaphore>,
    freed: Arc<Notify>,
}

impl Slots {
    pub(crate) fn new(long: usize, short: usize) -> Self {
        Self {
            long: Arc::new(Semaphore::new(long)),
            short: Arc::new(Semaphore::new(short)),
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
    freed: Arc<Notify>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The slot is free before it is said.
        drop(self.permit.take());
        self.freed.notify_one();
    }
}

/// Makes [`ReleaseSlot`]: the layer that a worker on [`crate::Deliveries`] has outside all others.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReleaseSlotLayer;

impl<S> Layer<S> for ReleaseSlotLayer {
    type Service = ReleaseSlot<S>;

    fn layer(&self, inner: S) -> ReleaseSlot<S> {
        ReleaseSlot { inner }
    }
}

/// Frees a delivery's slot when all that is inside has ended: its work and the report of its end.
#[derive(Clone, Debug)]
pub struct ReleaseSlot<S> {
    inner: S,
}

impl<S> Service<Task<Delivery>> for ReleaseSlot<S>
where
    S: Service<Task<Delivery>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut task: Task<Delivery>) -> Self::Future {
        let slot = task.args.slot.take();
        let work = self.inner.call(task);
        Box::pin(async move {
            let outcome = work.await;
            drop(slot);
            outcome
        })
    }
}
