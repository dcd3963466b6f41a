//! The order of deliveries (rule 16), through the queue and the ledger's claim.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod fleet;

use std::time::{Duration, Instant};

use fettler_ledger::{ClaimRequest, Ledger};
use fettler_model::{JobId, JobRequest, Priority, SlotClass};
use fettler_queue::Queue as _;
use fettler_queue_redis::RedisQueue;
use fleet::{Fleet, eventually, request, room, submit_many, work_off};

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
async fn rule_16_a_flood_of_one_tenant_delays_small_ones_by_their_turns_only() {
    const SMALL: usize = 9;
    const EACH: usize = 5;
    let (_fleet, ledger, queue) = started(Fleet::new()).await;
    submit_many(&ledger, 2_000, "flood").await;
    work_off(&queue, &ledger, &room(50), 200).await;
    for n in 0..SMALL {
        submit_many(&ledger, EACH, &format!("small-{n}")).await;
    }
    let order = tenants(&queue, &ledger, (SMALL + 1) * EACH + 10).await;
    let last = order.iter().rposition(|tenant| tenant != "flood").unwrap();
    assert!(last <= (SMALL + 1) * EACH, "{order:?}");
    // The flood has its turns too.
    let floods = order[..last].iter().filter(|tenant| *tenant == "flood");
    assert!(floods.count() >= EACH - 1, "{order:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_16_a_batch_is_shared_between_tenants_too() {
    let (_fleet, ledger, queue) = started(Fleet::new()).await;
    submit_many(&ledger, 500, "flood").await;
    submit_many(&ledger, 20, "small").await;
    let batch = work_off(&queue, &ledger, &room(40), 40).await;
    let small = batch
        .iter()
        .filter(|(_, tenant)| tenant.as_str() == "small")
        .count();
    assert_eq!(small, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_16_tenants_take_turns_by_weight() {
    let mut fleet = Fleet::new();
    fleet.options.weights = [("heavy".parse().unwrap(), 3.0)].into();
    let (_fleet, ledger, queue) = started(fleet).await;
    submit_many(&ledger, 100, "heavy").await;
    submit_many(&ledger, 100, "light").await;
    let order = tenants(&queue, &ledger, 40).await;
    let heavy = order.iter().filter(|tenant| *tenant == "heavy").count();
    assert!((29..=31).contains(&heavy), "{order:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_16_a_tenant_that_was_idle_has_no_credit() {
    let (_fleet, ledger, queue) = started(Fleet::new()).await;
    submit_many(&ledger, 100, "busy").await;
    submit_many(&ledger, 1, "idle").await;
    tenants(&queue, &ledger, 51).await;
    submit_many(&ledger, 50, "idle").await;
    let order = tenants(&queue, &ledger, 20).await;
    let idle = order.iter().filter(|tenant| *tenant == "idle").count();
    assert!((9..=11).contains(&idle), "{order:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_16_an_endless_flood_at_the_highest_priority_delays_the_lowest_by_the_bound_only() {
    const AGEING: Duration = Duration::from_millis(400);
    let mut fleet = Fleet::new();
    fleet.ledger_options.ageing = AGEING;
    let (_fleet, ledger, queue) = started(fleet).await;
    let low = ledger
        .submit(request("small", Priority::Lowest), None)
        .await
        .unwrap()
        .job;
    let started = Instant::now();
    let mut late = 0;
    loop {
        for _ in 0..2 {
            ledger
                .submit(request("flood", Priority::Highest), None)
                .await
                .unwrap();
        }
        let done = work_off(&queue, &ledger, &room(1), 1).await;
        if done[0].0 == low {
            break;
        }
        if started.elapsed() > AGEING * 4 {
            late += 1;
        }
        // It stands in the highest level now, and its turn comes.
        assert!(late <= 3, "rule 16's bound");
    }
    assert!(started.elapsed() > AGEING * 3, "it had to rise first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_16_the_jobs_of_one_tenant_come_in_the_ledgers_own_order() {
    const KINDS: [&str; 3] = ["noop", "check", "report"];
    const LEVELS: [Priority; 5] = [
        Priority::Lowest,
        Priority::Low,
        Priority::Normal,
        Priority::High,
        Priority::Highest,
    ];
    let (_fleet, ledger, queue) = started(Fleet::new()).await;
    for n in 0..60 {
        let request = JobRequest {
            kind: KINDS[n * 7 % 3].parse().unwrap(),
            ..request("default", LEVELS[n * 13 % 5])
        };
        ledger.submit(request, None).await.unwrap();
    }
    let mut expected = Vec::new();
    for kind in KINDS {
        let page = ledger
            .queued_page(SlotClass::Short, &kind.parse().unwrap(), None, 100)
            .await
            .unwrap();
        expected.extend(page.into_iter().map(|job| (job.rank, job.id)));
    }
    expected.sort_unstable();
    let expected: Vec<JobId> = expected.into_iter().map(|(_, id)| id).collect();
    let all = ClaimRequest {
        kinds: KINDS.map(|kind| kind.parse().unwrap()).into(),
        ..room(1)
    };
    let order: Vec<JobId> = work_off(&queue, &ledger, &all, 60)
        .await
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(order, expected);
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
