//! The embedded queue: the queued rows of the ledger are the queue (rule 9), and a notification within
//! the process is the push. Another process pokes through the socket of `up`; one that cannot is found by
//! the slow look that [`crate::Deliveries`] takes now and then.

use async_trait::async_trait;
use fettler_ledger::{ClaimRequest, ClaimedBatch, Ledger, Wakeups};

use crate::{Arrivals, Queue, QueueError, WireItem};

/// The queue of an embedded fleet.
#[derive(Clone, Debug)]
pub struct LedgerQueue {
    ledger: Ledger,
}

impl LedgerQueue {
    /// The queue that this ledger is.
    #[must_use]
    pub const fn new(ledger: Ledger) -> Self {
        Self { ledger }
    }
}

#[async_trait]
impl Queue for LedgerQueue {
    async fn push(&self, items: &[WireItem]) -> Result<(), QueueError> {
        // What is pushed is in the ledger already.
        if !items.is_empty() {
            self.ledger.poke();
        }
        Ok(())
    }

    async fn take(&self, request: &ClaimRequest) -> Result<ClaimedBatch, QueueError> {
        Ok(self.ledger.claim(request).await?)
    }

    fn arrivals(&self) -> Box<dyn Arrivals> {
        Box::new(self.ledger.wakeups())
    }
}

#[async_trait]
impl Arrivals for Wakeups {
    async fn next(&mut self) {
        self.changed().await;
    }
}
