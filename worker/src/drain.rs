//! The queue as a worker asks it: it gives nothing more once the worker drains, since what was claimed then would only be
//! held back from other workers until the last running job has stopped; and it notes when it was asked.

use std::sync::Arc;

use async_trait::async_trait;
use fettler_ledger::{ClaimRequest, ClaimedBatch};
use fettler_queue::{Arrivals, Queue, QueueError, WireItem};
use tokio_util::sync::CancellationToken;

use crate::readiness::LastAsked;

/// See the module.
#[derive(Debug)]
pub(crate) struct UntilDrain {
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) draining: CancellationToken,
    pub(crate) asked: Arc<LastAsked>,
}

#[async_trait]
impl Queue for UntilDrain {
    async fn push(&self, items: &[WireItem]) -> Result<(), QueueError> {
        self.queue.push(items).await
    }

    async fn take(&self, request: &ClaimRequest) -> Result<ClaimedBatch, QueueError> {
        if self.draining.is_cancelled() {
            return Ok(ClaimedBatch::default());
        }
        let taken = self.queue.take(request).await?;
        self.asked.now();
        Ok(taken)
    }

    fn arrivals(&self) -> Box<dyn Arrivals> {
        self.queue.arrivals()
    }
}
