//! What Redis loses, forgets, doubles or holds by mistake costs time, never a job (P1, rules 13 to 15).

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod fleet;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use fettler_ledger::{JobFilter, Ledger};
use fettler_model::{JobId, JobState, Priority};
use fettler_queue::{Queue, WireItem};
use fettler_queue_redis::RedisQueue;
use fettler_test_servers::{RedisOptions, RedisServer, TcpProxy};
use fleet::{Fleet, eventually, request, room, submit_many, work_off};
use redis::AsyncCommands as _;

/// The longest delay after Redis is back.
const DELAY: Duration = Duration::from_secs(10);

/// How many entries Redis knows of.
async fn known(fleet: &Fleet) -> usize {
    let mut redis = fleet.redis().await;
    redis.hlen(format!("{}jobs", fleet.base())).await.unwrap()
}

async fn wait_known(fleet: &Fleet, count: usize) {
    eventually("entries in Redis", || async {
        (known(fleet).await == count).then_some(())
    })
    .await;
}

/// Waits until the first page is there again; how long the rest takes is the machine's affair.
async fn delivered_again(fleet: &Fleet, since: Instant) {
    eventually("the first page", || async {
        (known(fleet).await > 0).then_some(())
    })
    .await;
    assert!(since.elapsed() < DELAY, "{:?}", since.elapsed());
}

async fn wait_up(queue: &RedisQueue, up: bool) {
    eventually("Redis to come or go", || async {
        (queue.is_up() == up).then_some(())
    })
    .await;
}

/// Works all jobs off and shows that each came once and has ended by its first attempt.
async fn all_end_once(queue: &RedisQueue, ledger: &Ledger, ids: &[JobId]) {
    let done = work_off(queue, ledger, &room(200), ids.len()).await;
    let distinct: HashSet<JobId> = done.iter().map(|(id, _)| *id).collect();
    assert_eq!(distinct.len(), done.len(), "none twice");
    assert_eq!(distinct, ids.iter().copied().collect(), "none lost");
    let counts = ledger.counts().await.unwrap();
    assert_eq!((counts.queued, counts.running), (0, 0));
    let filter = JobFilter {
        states: vec![JobState::Succeeded],
        limit: 1000,
        ..JobFilter::default()
    };
    for job in ledger.jobs(&filter).await.unwrap() {
        assert_eq!(job.attempt, 1);
    }
}

/// A number that a run at full size sets; see docs/testing.md.
fn asked_for(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_flushall_with_many_queued_loses_and_doubles_nothing() {
    let jobs = asked_for("FETTLER_TEST_JOBS", 20_000);
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let mut fleet = Fleet::at(server.url());
    fleet.options.sweep_every = Duration::from_secs(3600);
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    let mut ids = submit_many(&ledger, jobs, "default").await;
    wait_known(&fleet, jobs).await;
    // Some are done before.
    let before = work_off(&queue, &ledger, &room(100), 500).await;
    let gone: HashSet<JobId> = before.iter().map(|(id, _)| *id).collect();
    ids.retain(|id| !gone.contains(id));
    server.flush_all().unwrap();
    let flushed = Instant::now();
    delivered_again(&fleet, flushed).await;
    wait_known(&fleet, ids.len()).await;
    all_end_once(&queue, &ledger, &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_redis_that_is_killed_and_comes_back_empty_loses_nothing() {
    let mut server = RedisServer::start(RedisOptions::new().password("Secret7")).unwrap();
    let mut fleet = Fleet::at(server.url());
    fleet.options.sweep_every = Duration::from_secs(3600);
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    let mut ids = submit_many(&ledger, 2_000, "default").await;
    wait_known(&fleet, ids.len()).await;
    server.kill_9().unwrap();
    // Accepted while Redis is away (rule 14).
    ids.extend(submit_many(&ledger, 500, "default").await);
    wait_up(&queue, false).await;
    server.start_again().unwrap();
    let back = Instant::now();
    delivered_again(&fleet, back).await;
    wait_known(&fleet, ids.len()).await;
    all_end_once(&queue, &ledger, &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_14_while_redis_is_away_jobs_are_claimed_from_the_ledger_slowly() {
    let mut server = RedisServer::start(RedisOptions::new()).unwrap();
    let mut fleet = Fleet::at(server.url());
    fleet.options.fallback_every = Duration::from_millis(100);
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    wait_up(&queue, true).await;
    server.kill_9().unwrap();
    let ids = submit_many(&ledger, 50, "default").await;
    let started = Instant::now();
    let done = work_off(&queue, &ledger, &room(10), 50).await;
    assert_eq!(done.len(), ids.len());
    // Ten at a time, not more often than was said.
    assert!(started.elapsed() >= Duration::from_millis(400));
    assert!(!queue.is_up());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_14_a_redis_that_was_never_there_delays_nothing_for_long() {
    let port = fettler_test_servers::free_port();
    let fleet = Fleet::at(format!("redis://127.0.0.1:{port}/"));
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    let ids = submit_many(&ledger, 5, "default").await;
    let started = Instant::now();
    all_end_once(&queue, &ledger, &ids).await;
    assert!(started.elapsed() < DELAY);
    let item = WireItem::from(&ledger.job(ids[0]).await.unwrap());
    assert!(queue.push(&[item]).await.is_err());
}

/// Cuts the line in a way of the caller's, for some seconds, while jobs come in; mends it; waits until all have ended.
async fn through_a_bad_line(cut: fn(&TcpProxy), mend: fn(&TcpProxy)) {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let proxy = TcpProxy::start(server.port()).unwrap();
    let mut fleet = Fleet::at(server.url_via(proxy.port()));
    fleet.options.sweep_every = Duration::from_secs(3600);
    fleet.options.answer_within = Duration::from_millis(500);
    fleet.options.connect_within = Duration::from_millis(500);
    let ledger = fleet.open_ledger().await;
    let queue = Arc::new(fleet.start_queue(&ledger));
    let mut ids = submit_many(&ledger, 1_000, "default").await;
    // Directly: the proxy is about to be cut.
    fleet.options.url = server.url();
    wait_known(&fleet, ids.len()).await;
    cut(&proxy);
    let began = Instant::now();
    ids.extend(submit_many(&ledger, 200, "default").await);
    let (working, other) = (queue.clone(), ledger.clone());
    let first = ids.len() / 100;
    let worker = tokio::spawn(async move { work_off(&*working, &other, &room(1), first).await });
    wait_up(&queue, false).await;
    // They come, slowly, though Redis is away.
    let done = worker.await.unwrap();
    assert_eq!(done.len(), first);
    let outage = Duration::from_secs(asked_for("FETTLER_TEST_OUTAGE", 0) as u64);
    eventually("the end of the outage", || async {
        (began.elapsed() >= outage).then_some(())
    })
    .await;
    assert!(!queue.is_up());
    mend(&proxy);
    let mended = Instant::now();
    let gone: HashSet<JobId> = done.iter().map(|(id, _)| *id).collect();
    ids.retain(|id| !gone.contains(id));
    wait_up(&queue, true).await;
    assert!(mended.elapsed() < DELAY, "{:?}", mended.elapsed());
    let next = work_off(&*queue, &ledger, &room(1), 1).await;
    assert!(mended.elapsed() < DELAY, "{:?}", mended.elapsed());
    ids.retain(|id| *id != next[0].0);
    all_end_once(&queue, &ledger, &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_redis_that_refuses_for_some_seconds_loses_and_doubles_nothing() {
    through_a_bad_line(
        |proxy| {
            proxy.refuse(true);
            proxy.cut();
        },
        |proxy| proxy.refuse(false),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_redis_that_answers_nothing_for_some_seconds_loses_and_doubles_nothing() {
    through_a_bad_line(|proxy| proxy.stall(true), |proxy| proxy.stall(false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_waits_hears_of_a_push_after_the_line_was_cut() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let proxy = TcpProxy::start(server.port()).unwrap();
    let mut fleet = Fleet::at(server.url_via(proxy.port()));
    fleet.options.sweep_every = Duration::from_secs(3600);
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    wait_up(&queue, true).await;
    let mut arrivals = queue.arrivals();
    proxy.cut();
    // The new subscription says that something may have arrived.
    tokio::time::timeout(DELAY, arrivals.next()).await.unwrap();
    wait_up(&queue, true).await;
    // Another process submits and pushes, directly.
    fleet.options.url = server.url();
    let other = fleet.open_ledger().await;
    let pushing = fleet.start_queue(&other);
    wait_up(&pushing, true).await;
    let ids = submit_many(&other, 1, "default").await;
    let started = Instant::now();
    all_end_once(&queue, &ledger, &ids).await;
    assert!(started.elapsed() < DELAY);
}

/// Pops as a worker does, and dies before the claim.
async fn pop_and_die(fleet: &Fleet, short: usize) -> Vec<String> {
    let pop = redis::Script::new(concat!(
        include_str!("../src/lua/common.lua"),
        include_str!("../src/lua/pop.lua")
    ));
    let mut redis = fleet.redis().await;
    let incarnation: String = redis
        .get(format!("{}incarnation", fleet.base()))
        .await
        .unwrap();
    let visible = fleet.options.visible_after.as_millis().to_string();
    let ageing = fleet.ledger_options.ageing.as_micros().to_string();
    let (known, _, _, _, flat): (i64, i64, i64, i64, Vec<String>) = pop
        .key(fleet.base())
        .arg(incarnation)
        .arg(ageing)
        .arg(visible)
        .arg(0)
        .arg(short)
        .arg("noop")
        .invoke_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(known, 1);
    flat.into_iter().step_by(2).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_13_what_a_dead_worker_had_popped_is_given_back_soon() {
    let mut fleet = Fleet::new();
    fleet.options.sweep_every = Duration::from_secs(3600);
    fleet.options.visible_after = Duration::from_secs(4);
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    let ids = submit_many(&ledger, 20, "default").await;
    wait_known(&fleet, ids.len()).await;
    let lost = pop_and_die(&fleet, 5).await;
    assert_eq!(lost.len(), 5);
    let first = work_off(&queue, &ledger, &room(10), 15).await;
    assert!(first.iter().all(|(id, _)| !lost.contains(&id.to_string())));
    // An idle worker is told when to look again.
    let started = Instant::now();
    let rest = work_off(&queue, &ledger, &room(10), 5).await;
    assert!(started.elapsed() < DELAY);
    assert!(rest.iter().all(|(id, _)| lost.contains(&id.to_string())));
    wait_known(&fleet, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_13_a_push_is_idempotent_by_id_and_generation() {
    let mut fleet = Fleet::new();
    fleet.options.sweep_every = Duration::from_secs(3600);
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    let ids = submit_many(&ledger, 10, "default").await;
    wait_known(&fleet, ids.len()).await;
    let mut items = Vec::new();
    for id in &ids {
        items.push(WireItem::from(&ledger.job(*id).await.unwrap()));
    }
    for _ in 0..3 {
        queue.push(&items).await.unwrap();
    }
    let stale: Vec<String> = pop_and_die(&fleet, 1).await;
    // One that is in flight is not queued beside it.
    queue.push(&items).await.unwrap();
    let mut redis = fleet.redis().await;
    let queued: usize = redis
        .zcard(format!("{}queue:s:noop:default", fleet.base()))
        .await
        .unwrap();
    assert_eq!(queued, 9);
    // A newer generation replaces an older one; an older one changes nothing.
    let newer = WireItem {
        generation: 7,
        ..items[9].clone()
    };
    queue.push(&[newer, items[9].clone()]).await.unwrap();
    let record: String = redis
        .hget(format!("{}jobs", fleet.base()), items[9].id.to_string())
        .await
        .unwrap();
    assert!(record.starts_with("7 "), "{record}");
    assert_eq!(stale.len(), 1);
    let done = work_off(&queue, &ledger, &room(10), 10).await;
    assert_eq!(done.len(), 10);
    // Late pushes of what has ended are delivered to nobody.
    queue.push(&items).await.unwrap();
    let batch = queue.take(&room(10)).await.unwrap();
    assert_eq!(batch.jobs, []);
    wait_known(&fleet, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_push_has_written_is_dropped_and_delays_nobody() {
    let mut fleet = Fleet::new();
    fleet.options.sweep_every = Duration::from_secs(3600);
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    let ids = submit_many(&ledger, 10, "default").await;
    wait_known(&fleet, ids.len()).await;
    let mut redis = fleet.redis().await;
    let base = fleet.base();
    let list = format!("{base}queue:s:noop:default");
    // Before all others: without a record, with one that cannot be read, with one whose name is no id.
    for (name, record) in [
        ("poison", None),
        ("\u{1}\u{2}'\"]]", Some("rubbish")),
        ("no-id", Some("0 s noop default 1 1")),
    ] {
        redis.zadd::<_, _, _, ()>(&list, name, 1).await.unwrap();
        if let Some(record) = record {
            redis
                .hset::<_, _, _, ()>(format!("{base}jobs"), name, record)
                .await
                .unwrap();
        }
    }
    all_end_once(&queue, &ledger, &ids).await;
    wait_known(&fleet, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_the_wrong_type_is_cleaned_up_and_the_queue_filled_again() {
    let mut fleet = Fleet::new();
    fleet.options.sweep_every = Duration::from_secs(3600);
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    let ids = submit_many(&ledger, 300, "default").await;
    wait_known(&fleet, ids.len()).await;
    let mut redis = fleet.redis().await;
    let list = format!("{}queue:s:noop:default", fleet.base());
    redis.del::<_, ()>(&list).await.unwrap();
    redis.set::<_, _, ()>(&list, "rubbish").await.unwrap();
    all_end_once(&queue, &ledger, &ids).await;
    wait_up(&queue, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_15_a_sweep_finds_what_redis_has_lost_and_drops_what_is_gone() {
    let fleet = Fleet::new();
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    let ids = submit_many(&ledger, 20, "default").await;
    wait_known(&fleet, ids.len()).await;
    let mut redis = fleet.redis().await;
    let base = fleet.base();
    // As a failover loses single ids.
    for id in &ids[..5] {
        redis
            .zrem::<_, _, ()>(format!("{base}queue:s:noop:default"), id.to_string())
            .await
            .unwrap();
        redis
            .hdel::<_, _, ()>(format!("{base}jobs"), id.to_string())
            .await
            .unwrap();
    }
    wait_known(&fleet, ids.len()).await;
    for id in &ids[10..] {
        ledger.request_cancel(*id).await.unwrap();
    }
    wait_known(&fleet, 10).await;
    let done = work_off(&queue, &ledger, &room(10), 10).await;
    assert!(done.iter().all(|(id, _)| ids[..10].contains(id)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_15_a_new_replication_id_starts_a_refill() {
    let mut server = RedisServer::start(RedisOptions::new().persistent()).unwrap();
    let mut fleet = Fleet::at(server.url());
    fleet.options.sweep_every = Duration::from_secs(3600);
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    let ids = submit_many(&ledger, 20, "default").await;
    wait_known(&fleet, ids.len()).await;
    let mut redis = fleet.redis().await;
    let incarnation = format!("{}incarnation", fleet.base());
    let before: String = redis.get(&incarnation).await.unwrap();
    redis
        .hdel::<_, _, ()>(format!("{}jobs", fleet.base()), ids[3].to_string())
        .await
        .unwrap();
    redis
        .zrem::<_, _, ()>(
            format!("{}queue:s:noop:default", fleet.base()),
            ids[3].to_string(),
        )
        .await
        .unwrap();
    server.kill_9().unwrap();
    server.start_again().unwrap();
    // The memory is the same, its history is not.
    wait_known(&fleet, ids.len()).await;
    let mut redis = fleet.redis().await;
    let after: String = redis.get(&incarnation).await.unwrap();
    assert_eq!(before, after);
    all_end_once(&queue, &ledger, &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_15_one_process_fills_and_another_goes_on_when_it_died() {
    let mut fleet = Fleet::new();
    fleet.options.sweep_every = Duration::from_secs(3600);
    fleet.options.filler_lease = Duration::from_secs(1);
    let ledger = fleet.open_ledger().await;
    let ids = submit_many(&ledger, 50, "default").await;
    // One that died while it filled.
    let mut redis = fleet.redis().await;
    redis
        .set_options::<_, _, ()>(
            format!("{}filler", fleet.base()),
            "somebody",
            redis::SetOptions::default().with_expiration(redis::SetExpiry::PX(1000)),
        )
        .await
        .unwrap();
    let started = Instant::now();
    let queue = fleet.start_queue(&ledger);
    all_end_once(&queue, &ledger, &ids).await;
    assert!(started.elapsed() < DELAY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_no_error_shows_the_password_of_the_url() {
    let fleet = Fleet::at("redis://user:hunter2@127.0.0.1:1/".to_owned());
    let ledger = fleet.open_ledger().await;
    let queue = fleet.start_queue(&ledger);
    let shown = format!("{queue:?} {:?}", fleet.options);
    assert!(!shown.contains("hunter2"), "{shown}");
    let id = ledger
        .submit(request("default", Priority::Normal), None)
        .await
        .unwrap()
        .job;
    let item = WireItem::from(&ledger.job(id).await.unwrap());
    let error = queue.push(&[item]).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    for url in ["redis://user:hunter2@[", "http://hunter2/", "hunter2"] {
        let mut options = fleet.options.clone();
        options.url = url.to_owned();
        let error = RedisQueue::start(ledger.clone(), options).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
