//! The order of deliveries (rule 16), the same on every queue: functions over a place, through the queue
//! and the ledger's claim.

use std::time::{Duration, Instant};

use fettler_ledger::{ClaimRequest, Ending, Fencing, Ledger, TenantChange, WorkerSkills};
use fettler_model::{JobId, JobRequest, Priority, TenantId};
use fettler_queue::Queue;

use super::{Place, SOON, request};

const NOOP: [&str; 1] = ["noop"];

fn of(tenant: &str, priority: Priority) -> JobRequest {
    JobRequest {
        tenant: tenant.parse().unwrap(),
        priority,
        ..request("noop")
    }
}

fn room(kinds: &[&str], short: usize) -> ClaimRequest {
    ClaimRequest {
        worker: "worker".to_owned(),
        kinds: kinds.iter().map(|kind| kind.parse().unwrap()).collect(),
        long: 0,
        short,
        lease: super::NEVER,
        skills: WorkerSkills::default(),
        only: None,
    }
}

async fn submit_many(ledger: &Ledger, count: usize, tenant: &str) {
    let requests = vec![(of(tenant, Priority::Normal), None); count];
    for submitted in ledger.submit_batch(requests).await {
        submitted.unwrap();
    }
}

/// Takes and ends jobs until there were so many; gives them back in the order in which they came.
async fn work_off(
    queue: &dyn Queue,
    ledger: &Ledger,
    room: &ClaimRequest,
    count: usize,
) -> Vec<(JobId, TenantId)> {
    let mut done = Vec::with_capacity(count);
    let mut arrivals = queue.arrivals();
    let started = Instant::now();
    while done.len() < count {
        assert!(
            started.elapsed() < SOON,
            "{} of {count} jobs came",
            done.len()
        );
        // As the worker's loop does, a ledger or queue that is busy is asked again.
        let batch = queue.take(room).await.unwrap_or_default();
        if batch.jobs.is_empty() {
            let longest = Duration::from_secs(1);
            let wait = batch.next_due_in.map_or(longest, |wait| wait.min(longest));
            tokio::select! {
                () = arrivals.next() => {}
                () = tokio::time::sleep(wait) => {}
            }
            continue;
        }
        let ends = batch.jobs.into_iter().map(|claimed| async move {
            let fencing = Fencing {
                job: claimed.job.id,
                token: claimed.token,
            };
            let ending = Ending::Succeeded {
                result: serde_json::Value::Null,
            };
            ledger.complete(fencing, ending).await.unwrap();
            (claimed.job.id, claimed.job.tenant)
        });
        done.extend(futures::future::join_all(ends).await);
    }
    done
}

/// The tenants of the next jobs, one by one.
async fn tenants(queue: &dyn Queue, ledger: &Ledger, count: usize) -> Vec<String> {
    work_off(queue, ledger, &room(&NOOP, 1), count)
        .await
        .into_iter()
        .map(|(_, tenant)| tenant.to_string())
        .collect()
}

fn count(order: &[String], tenant: &str) -> usize {
    order.iter().filter(|of| *of == tenant).count()
}

pub async fn rule_16_a_flood_of_one_tenant_delays_small_ones_by_their_turns_only(
    place: &dyn Place,
) {
    const SMALL: usize = 9;
    const EACH: usize = 5;
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    submit_many(&ledger, 2_000, "flood").await;
    work_off(&*queue, &ledger, &room(&NOOP, 50), 200).await;
    for n in 0..SMALL {
        submit_many(&ledger, EACH, &format!("small-{n}")).await;
    }
    let order = tenants(&*queue, &ledger, (SMALL + 1) * EACH + 10).await;
    let last = order.iter().rposition(|tenant| tenant != "flood").unwrap();
    assert!(last <= (SMALL + 1) * EACH, "{order:?}");
    // The flood has its turns too; one may go to a delivery that the ledger refuses, such as a job that was pushed once more while it was claimed.
    assert!(count(&order[..last], "flood") >= EACH - 2, "{order:?}");
}

pub async fn rule_16_a_batch_is_shared_between_tenants_too(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    submit_many(&ledger, 500, "flood").await;
    submit_many(&ledger, 20, "small").await;
    let batch = work_off(&*queue, &ledger, &room(&NOOP, 40), 40).await;
    let small = batch
        .iter()
        .filter(|(_, tenant)| tenant.as_str() == "small");
    assert_eq!(small.count(), 20);
}

pub async fn rule_16_tenants_take_turns_by_weight(place: &dyn Place) {
    let ledger = place.ledger().await;
    let heavy: TenantId = "heavy".parse().unwrap();
    ledger.add_tenant(&heavy).await.unwrap();
    let change = TenantChange {
        weight: Some(3.0),
        ..TenantChange::default()
    };
    ledger.edit_tenant(&heavy, change).await.unwrap();
    let queue = place.queue(&ledger).await;
    submit_many(&ledger, 100, "heavy").await;
    submit_many(&ledger, 100, "light").await;
    let order = tenants(&*queue, &ledger, 40).await;
    assert!((29..=31).contains(&count(&order, "heavy")), "{order:?}");
}

pub async fn rule_16_a_tenant_that_was_idle_has_no_credit(place: &dyn Place) {
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    submit_many(&ledger, 100, "busy").await;
    submit_many(&ledger, 1, "idle").await;
    tenants(&*queue, &ledger, 51).await;
    submit_many(&ledger, 50, "idle").await;
    let order = tenants(&*queue, &ledger, 20).await;
    assert!((9..=11).contains(&count(&order, "idle")), "{order:?}");
}

pub async fn rule_16_an_endless_flood_at_the_highest_priority_delays_the_lowest_by_the_bound_only(
    place: &dyn Place,
) {
    const AGEING: Duration = Duration::from_millis(400);
    let ledger = place.ledger_that_ages(AGEING).await;
    let queue = place.queue(&ledger).await;
    let low = ledger
        .submit(of("small", Priority::Lowest), None)
        .await
        .unwrap()
        .job;
    let started = Instant::now();
    let mut late = 0;
    loop {
        for _ in 0..2 {
            let urgent = of("flood", Priority::Highest);
            ledger.submit(urgent, None).await.unwrap();
        }
        let done = work_off(&*queue, &ledger, &room(&NOOP, 1), 1).await;
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

pub async fn rule_16_the_jobs_of_one_tenant_come_in_the_ledgers_own_order(place: &dyn Place) {
    const KINDS: [&str; 3] = ["noop", "check", "report"];
    const LEVELS: [Priority; 5] = [
        Priority::Lowest,
        Priority::Low,
        Priority::Normal,
        Priority::High,
        Priority::Highest,
    ];
    let ledger = place.ledger().await;
    let queue = place.queue(&ledger).await;
    for n in 0..60 {
        let request = JobRequest {
            kind: KINDS[n * 7 % 3].parse().unwrap(),
            ..of("default", LEVELS[n * 13 % 5])
        };
        ledger.submit(request, None).await.unwrap();
    }
    let mut expected = Vec::new();
    for line in ledger.queued_lines().await.unwrap() {
        let page = ledger.queued_page(&line, None, 100).await.unwrap();
        expected.extend(page.into_iter().map(|job| (job.rank, job.id)));
    }
    expected.sort_unstable();
    let expected: Vec<JobId> = expected.into_iter().map(|(_, id)| id).collect();
    let order: Vec<JobId> = work_off(&*queue, &ledger, &room(&KINDS, 1), 60)
        .await
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(order, expected);
}
