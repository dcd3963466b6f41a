//! The Redis queue passes the suite that the embedded queue passes, on a real Redis.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod fleet;
#[path = "../../tests/suite/mod.rs"]
mod suite;

use std::sync::Arc;

use fettler_ledger::Ledger;
use fettler_queue::Queue;
use fleet::Fleet;
use suite::Place;

#[async_trait::async_trait]
impl Place for Fleet {
    async fn ledger(&self) -> Ledger {
        self.open_ledger().await
    }

    async fn queue(&self, ledger: &Ledger) -> Arc<dyn Queue> {
        Arc::new(self.start_queue(ledger))
    }
}

macro_rules! conformance {
    ($($name:ident),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            suite::$name(&Fleet::new()).await;
        })+
    };
}

conformance!(
    a_submitted_job_is_delivered_without_a_poll,
    a_job_of_another_process_is_delivered_at_once_when_it_is_pushed,
    a_job_of_another_process_is_found_when_nobody_says_so,
    a_delayed_job_is_delivered_when_it_is_due,
    a_push_that_is_repeated_delivers_nothing_twice,
    p2_every_job_is_delivered_to_one_of_many_workers,
    p12_a_kind_that_no_worker_announced_is_not_delivered,
    rule_16_what_is_urgent_is_delivered_first,
    rule_17_a_long_job_never_delays_a_short_one,
    rule_17_no_more_is_claimed_than_there_are_slots,
    a_slot_is_free_again_after_a_failure,
    an_error_of_ledger_or_queue_ends_no_worker,
    what_never_started_is_handed_back_at_the_end,
);
