//! What Redis gives out beside the order that every queue keeps (`queue/tests/suite/order.rs`).

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod fleet;

use std::time::Duration;

use fettler_ledger::Ledger;
use fettler_model::{JobRequest, Priority};
use fettler_queue::Queue as _;
use fettler_queue_redis::RedisQueue;
use fleet::{Fleet, eventually, request, room, work_off};

async fn started(mut fleet: Fleet) -> (Fleet, Ledger, RedisQueue) {
    fleet.options.sweep_every = Duration::from_secs(3600);
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    eventually("Redis", || async { queue.is_up().then_some(()) }).await;
    (fleet, ledger, queue)
}

/// The tenants of the next jobs, one by one.
async fn tenants(queue: &RedisQueue, ledger: &Ledger, count: usize) -> Vec<String> {
    work_off(queue, ledger, &room(1), count)
        .await
        .into_iter()
        .map(|(_, tenant)| tenant.to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_13_only_announced_kinds_are_popped() {
    let (fleet, ledger, queue) = started(Fleet::new()).await;
    for kind in ["noop", "other"] {
        let request = JobRequest {
            kind: kind.parse().unwrap(),
            ..request("default", Priority::Normal)
        };
        ledger.submit(request, None).await.unwrap();
    }
    assert_eq!(tenants(&queue, &ledger, 1).await.len(), 1);
    let batch = queue.take(&room(10)).await.unwrap();
    assert_eq!(batch.jobs, []);
    // It waits in Redis, not in flight.
    use redis::AsyncCommands as _;
    let mut redis = fleet.redis().await;
    let in_flight: usize = redis
        .zcard(format!("{}flight", fleet.base()))
        .await
        .unwrap();
    assert_eq!(in_flight, 0);
}
