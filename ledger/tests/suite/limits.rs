//! Limits, pauses and windows: what keeps a job back, and what it says about it (P12, rules 3 and 4).

use fettler_ledger::{LimitRecord, Readied, WorkerSkills};
use fettler_model::{JobWindow, Scope, Window};

use super::*;

fn scope(name: &str) -> Scope {
    name.parse().unwrap()
}

fn of(tenant: &str) -> JobRequest {
    JobRequest {
        tenant: tenant.parse().unwrap(),
        ..request("noop")
    }
}

/// How often a queue's delivery was tried before all of these had run, as a queue outside the ledger does: each job
/// is delivered when a commit names it, and once more for each time.
async fn deliver_all(ledger: &Ledger, first: Vec<JobId>, slots: usize) -> (usize, usize) {
    let mut readied = ledger.readied();
    let (mut tried, mut ended, total) = (0, 0, first.len());
    let mut waiting: std::collections::VecDeque<JobId> = first.into();
    let mut running: std::collections::VecDeque<Claimed> = std::collections::VecDeque::new();
    let mut idle = 0;
    while ended < total {
        let room = ClaimRequest {
            short: slots - running.len(),
            long: 0,
            ..room("worker", LONG)
        };
        let some: Vec<JobId> = waiting.drain(..waiting.len().min(room.short * 4)).collect();
        tried += some.len();
        let batch = ledger.claim_by_ids(&room, &some).await.unwrap();
        running.extend(batch.jobs);
        // What there was no room for comes again, and is not counted.
        for job in ledger.queued_among(&some).await.unwrap() {
            tried -= 1;
            waiting.push_back(job.id);
        }
        if running.len() < 2 && total - ended >= 2 && waiting.is_empty() {
            idle += 1;
        }
        if let Some(claimed) = running.pop_front() {
            let end = ledger.complete(fencing(&claimed), succeeded()).await;
            assert_eq!(end.unwrap(), Ended::Final(JobState::Succeeded));
            ended += 1;
        }
        while let Ok(some) = readied.try_recv() {
            waiting.extend(some.iter().map(Readied::id));
        }
    }
    (tried, idle)
}

async fn limit(ledger: &Ledger, name: &str) -> LimitRecord {
    ledger.limit(&scope(name)).await.unwrap()
}

pub async fn rule_3_a_limit_is_never_exceeded_and_leaves_no_slot_idle(place: &Place) {
    let jobs = std::env::var("FETTLER_TEST_JOBS").map_or(300, |text| text.parse().unwrap());
    let ledger = place.open().await;
    ledger.set_limit(&scope("tenant/acme"), 2).await.unwrap();
    let ids = submit_many(&ledger, jobs, "acme").await;
    // Delivered one by one by a queue that knows nothing of limits.
    let (tried, idle) = deliver_all(&ledger, ids, 10).await;
    assert!(tried < 3 * jobs, "{tried} deliveries of {jobs} jobs");
    assert_eq!(idle, 0, "a slot stood idle");
    assert_eq!(limit(&ledger, "tenant/acme").await.running, 0);

    // By many workers at once, from the ledger's own order.
    submit_many(&ledger, jobs, "acme").await;
    let most = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let now = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for n in 0..3 {
        let (ledger, most, now) = (place.open().await, most.clone(), now.clone());
        workers.spawn(async move {
            use std::sync::atomic::Ordering::SeqCst;
            let room = room(&format!("worker-{n}"), LONG);
            loop {
                let jobs = ledger.claim(&room).await.unwrap_or_default().jobs;
                if jobs.is_empty() {
                    if ledger.counts().await.unwrap().queued == 0 {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
                for claimed in jobs {
                    let running = now.fetch_add(1, SeqCst) + 1;
                    most.fetch_max(running, SeqCst);
                    now.fetch_sub(1, SeqCst);
                    ledger
                        .complete(fencing(&claimed), succeeded())
                        .await
                        .unwrap();
                }
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
    let counts = ledger.counts().await.unwrap();
    assert_eq!((counts.queued, counts.running), (0, 0));
    assert!(most.load(std::sync::atomic::Ordering::SeqCst) <= 2);
    assert_eq!(limit(&ledger, "tenant/acme").await.running, 0);
}

/// Limits that hold back and limits that do not, on deliveries to many workers at once that meet each other in them.
pub async fn rule_3_deliveries_to_many_workers_keep_all_limits(place: &Place) {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };
    const WORKERS: usize = 4;
    const EACH: usize = 150;
    let ledger = place.open().await;
    for (name, most) in [("tenant/acme", 3), ("kind/noop", 6), ("class/short", 1000)] {
        ledger.set_limit(&scope(name), most).await.unwrap();
    }
    let mut ids = submit_many(&ledger, EACH, "acme").await;
    ids.extend(submit_many(&ledger, EACH, "other").await);
    let waiting = Arc::new(Mutex::new(ids));
    let left = Arc::new(AtomicUsize::new(2 * EACH));
    let (running, of_acme) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut workers = tokio::task::JoinSet::new();
    for n in 0..WORKERS {
        let ledger = place.open().await;
        let (waiting, left) = (waiting.clone(), left.clone());
        let (running, of_acme) = (running.clone(), of_acme.clone());
        workers.spawn(async move {
            let mut readied = ledger.readied();
            let room = room(&format!("worker-{n}"), LONG);
            let deliver_again = |ids: Vec<JobId>| waiting.lock().unwrap().extend(ids);
            while left.load(SeqCst) > 0 {
                let some: Vec<JobId> = {
                    let mut waiting = waiting.lock().unwrap();
                    let rest = waiting.len().saturating_sub(3);
                    waiting.split_off(rest)
                };
                let jobs = ledger
                    .claim_by_ids(&room, &some)
                    .await
                    .unwrap_or_default()
                    .jobs;
                let is_acme = |one: &&Claimed| one.job.tenant.as_str() == "acme";
                let acme = jobs.iter().filter(is_acme).count();
                assert!(running.fetch_add(jobs.len(), SeqCst) + jobs.len() <= 6);
                assert!(of_acme.fetch_add(acme, SeqCst) + acme <= 3);
                // What somebody else was at, or there was no room for, comes again.
                let again = ledger.queued_among(&some).await.unwrap();
                deliver_again(again.iter().map(|job| job.id).collect());
                for (nth, claimed) in jobs.iter().enumerate() {
                    running.fetch_sub(1, SeqCst);
                    of_acme.fetch_sub(usize::from(is_acme(&claimed)), SeqCst);
                    // Some end the long way: they are handed back.
                    let ending = if (n + nth) % 5 == 4 {
                        failed(Problem::interrupted())
                    } else {
                        left.fetch_sub(1, SeqCst);
                        succeeded()
                    };
                    ledger.complete(fencing(claimed), ending).await.unwrap();
                }
                while let Ok(some) = readied.try_recv() {
                    deliver_again(some.iter().map(Readied::id).collect());
                }
                if jobs.is_empty() {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    let all = async {
        while let Some(ended) = workers.join_next().await {
            ended.unwrap();
        }
    };
    // Nothing stays parked where nobody wakes it.
    tokio::time::timeout(Duration::from_secs(120), all)
        .await
        .unwrap();
    for name in ["tenant/acme", "kind/noop", "class/short"] {
        assert_eq!(limit(&ledger, name).await.running, 0, "{name}");
    }
}

pub async fn rule_3_a_limit_on_a_flood_costs_few_claims_and_leaves_others_alone(place: &Place) {
    let ledger = place.open().await;
    ledger.set_limit(&scope("tenant/flood"), 2).await.unwrap();
    submit_many(&ledger, 2_000, "flood").await;
    submit_many(&ledger, 10, "small").await;
    let ten = ClaimRequest {
        long: 0,
        short: 12,
        ..room("worker", LONG)
    };
    let jobs = ledger.claim(&ten).await.unwrap().jobs;
    let small = jobs.iter().filter(|one| one.job.tenant.as_str() == "small");
    assert_eq!((jobs.len(), small.count()), (12, 10));
    assert_eq!(limit(&ledger, "tenant/flood").await.running, 2);
    // What is full is not looked at: the flood stays where it is.
    let parked: usize = ledger
        .jobs(&JobFilter {
            tenant: Some("flood".parse().unwrap()),
            states: vec![JobState::Queued],
            limit: 1000,
            ..JobFilter::default()
        })
        .await
        .unwrap()
        .iter()
        .filter(|job| matches!(job.wait, Some(WaitReason::TenantLimit { most: 2, .. })))
        .count();
    assert_eq!(parked, 1000, "each says why it waits");
    for claimed in &jobs {
        ledger
            .complete(fencing(claimed), succeeded())
            .await
            .unwrap();
    }
    assert_eq!(ledger.claim(&ten).await.unwrap().jobs.len(), 2);
}

pub async fn rule_3_a_limit_counts_what_runs_when_it_comes_and_lets_go_when_it_goes(place: &Place) {
    let ledger = place.open().await;
    let database = add_database(&ledger, "shop").await;
    submit_many(&ledger, 5, "acme").await;
    submit(&ledger, backup_of(database)).await;
    let two = ClaimRequest {
        short: 2,
        ..room("worker", LONG)
    };
    let running = ledger.claim(&two).await.unwrap().jobs;
    assert_eq!(running.len(), 3);
    for (name, count) in [
        ("tenant/acme", 2),
        ("kind/noop", 2),
        ("kind/backup", 1),
        ("class/long", 1),
        (&*format!("database/{database}"), 1),
    ] {
        let set = ledger.set_limit(&scope(name), 1).await.unwrap();
        assert_eq!((set.running, set.most), (count, 1), "{name}");
    }
    claim_none(&ledger).await;
    let end = |n: usize| ledger.complete(fencing(&running[n]), succeeded());
    let shorts: Vec<usize> = (0..3)
        .filter(|n| running[*n].job.slot == SlotClass::Short)
        .collect();
    end(shorts[0]).await.unwrap();
    claim_none(&ledger).await;
    end(shorts[1]).await.unwrap();
    let next = claim_one(&ledger, LONG).await;
    claim_none(&ledger).await;
    // Raised: as many as there is room for.
    ledger.set_limit(&scope("kind/noop"), 10).await.unwrap();
    claim_none(&ledger).await;
    ledger.set_limit(&scope("tenant/acme"), 2).await.unwrap();
    claim_one(&ledger, LONG).await;
    claim_none(&ledger).await;
    // Gone.
    ledger.remove_limit(&scope("tenant/acme")).await.unwrap();
    claim_one(&ledger, LONG).await;
    ledger.complete(fencing(&next), succeeded()).await.unwrap();
    let names: Vec<String> = ledger
        .limits()
        .await
        .unwrap()
        .iter()
        .map(|limit| limit.scope.to_string())
        .collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let gone = ledger.remove_limit(&scope("tenant/acme")).await;
    assert!(matches!(gone, Err(LedgerError::NotFound { .. })));
    for bad in [0, 2_000_000] {
        let refused = ledger.set_limit(&scope("tenant/acme"), bad).await;
        assert!(matches!(refused, Err(LedgerError::Refused { .. })));
    }
    assert!(ledger.set_limit(&Scope::All, 1).await.is_err());
}

pub async fn rule_3_a_job_that_is_delivered_twice_takes_one_slot(place: &Place) {
    let ledger = place.open().await;
    ledger.set_limit(&scope("tenant/acme"), 5).await.unwrap();
    // The first claim finds out that there are limits.
    for _ in 0..2 {
        let job = submit_many(&ledger, 1, "acme").await[0];
        let claimed = ledger
            .claim_by_ids(&room("worker", LONG), &[job, job])
            .await
            .unwrap()
            .jobs;
        assert_eq!(claimed.len(), 1);
        assert_eq!(limit(&ledger, "tenant/acme").await.running, 1);
        ledger
            .complete(fencing(&claimed[0]), succeeded())
            .await
            .unwrap();
        assert_eq!(limit(&ledger, "tenant/acme").await.running, 0);
    }
}

pub async fn rule_3_a_count_that_is_wrong_is_mended(place: &Place) {
    let ledger = place.open().await;
    ledger.set_limit(&scope("tenant/acme"), 2).await.unwrap();
    submit_many(&ledger, 3, "acme").await;
    let running = ledger.claim(&room("worker", LONG)).await.unwrap().jobs;
    assert_eq!(running.len(), 2);
    place
        .execute("UPDATE job_limit SET running = 17 WHERE name = 'tenant/acme'")
        .await;
    // A process that has just begun looks through everything.
    let other = place.open().await;
    eventually("the count", || async {
        other.rescue(SHORT).await.unwrap();
        (limit(&other, "tenant/acme").await.running == 2).then_some(())
    })
    .await;
    for claimed in &running {
        ledger
            .complete(fencing(claimed), succeeded())
            .await
            .unwrap();
    }
    claim_one(&ledger, LONG).await;
    assert_eq!(limit(&ledger, "tenant/acme").await.running, 1);
}

pub async fn rule_4_who_is_refused_elsewhere_passes_its_slot_on(place: &Place) {
    let ledger = place.open().await;
    let shop = add_database(&ledger, "shop").await;
    let other = add_database(&ledger, "other").await;
    ledger.set_limit(&scope("kind/backup"), 1).await.unwrap();
    let busy = submit(&ledger, backup_of(shop)).await;
    let holder = claim_one(&ledger, LONG).await;
    assert_eq!(holder.job.id, busy);
    // Delivered while the limit is full: both park at it.
    let first = submit(&ledger, backup_of(shop)).await;
    let second = submit(&ledger, backup_of(other)).await;
    let room = room("worker", LONG);
    let none = ledger.claim_by_ids(&room, &[first, second]).await.unwrap();
    assert_eq!(none.jobs, []);
    // Another attempt holds the shop without a slot of the limit: as when two records become one database.
    ledger.remove_limit(&scope("kind/backup")).await.unwrap();
    ledger.set_limit(&scope("kind/backup"), 2).await.unwrap();
    let jobs = ledger
        .claim_by_ids(&room, &[first, second])
        .await
        .unwrap()
        .jobs;
    let ids: Vec<JobId> = jobs.iter().map(|one| one.job.id).collect();
    assert_eq!(
        ids,
        [second],
        "the first waits for its database, and not for the limit"
    );
    assert!(matches!(
        ledger.job(first).await.unwrap().wait,
        Some(WaitReason::DatabaseBusy { job, .. }) if job == busy
    ));
    // The cancelled first in line passes the database on.
    let third = submit(&ledger, backup_of(shop)).await;
    ledger.claim_by_ids(&room, &[third]).await.unwrap();
    ledger
        .complete(fencing(&holder), succeeded())
        .await
        .unwrap();
    ledger.request_cancel(first).await.unwrap();
    let next = ledger.claim_by_ids(&room, &[third]).await.unwrap().jobs;
    assert_eq!(next.len(), 1);
}

pub async fn p12_a_job_that_is_kept_back_says_by_what(place: &Place) {
    let ledger = place.open().await;
    let (url, _) = DatabaseUrl::parse_with_password("postgres://ann@DB1.example.com/app").unwrap();
    let record = DatabaseRecord {
        id: DatabaseId::new(),
        name: "app".parse().unwrap(),
        url,
        ..ledger
            .database(add_database(&ledger, "shop").await)
            .await
            .unwrap()
    };
    let app = ledger.add_database(&record).await.unwrap().id;
    ledger
        .announce_worker("worker", &room("worker", LONG).kinds, LONG)
        .await
        .unwrap();
    let free = |database| JobRequest {
        database: Some(database),
        ..request("noop")
    };
    submit(&ledger, free(app)).await;
    claim_one(&ledger, LONG).await;
    let why = async |name: &str| {
        ledger.set_limit(&scope(name), 1).await.unwrap();
        let id = submit(&ledger, free(app)).await;
        // Once as the ledger's order leaves it out or refuses it, once as it was delivered.
        claim_none(&ledger).await;
        let first = ledger.job(id).await.unwrap().wait.unwrap();
        let given = ledger.claim_by_ids(&room("worker", LONG), &[id]).await;
        assert_eq!(given.unwrap().jobs, []);
        let parked = ledger.job(id).await.unwrap().wait.unwrap();
        assert_eq!(first, parked, "{name}");
        assert!(!parked.ends_when().is_empty());
        ledger.request_cancel(id).await.unwrap();
        ledger.remove_limit(&scope(name)).await.unwrap();
        parked
    };
    let most = 1;
    assert_eq!(
        why("tenant/default").await,
        WaitReason::TenantLimit {
            tenant: tenant(),
            most
        }
    );
    assert_eq!(
        why("kind/noop").await,
        WaitReason::KindLimit {
            kind: "noop".parse().unwrap(),
            most
        }
    );
    assert_eq!(
        why("class/short").await,
        WaitReason::ClassLimit {
            class: SlotClass::Short,
            most
        }
    );
    assert_eq!(
        why(&format!("database/{app}")).await,
        WaitReason::DatabaseLimit {
            database: app,
            most
        }
    );
    assert_eq!(
        why("server/db1.example.com:5432").await,
        WaitReason::ServerLimit {
            server: "db1.example.com:5432".to_owned(),
            most
        }
    );
}

pub async fn p12_a_job_says_who_comes_before_it(place: &Place) {
    let ledger = place.open().await;
    ledger
        .announce_worker("worker", &room("worker", LONG).kinds, LONG)
        .await
        .unwrap();
    let ids = submit_many(&ledger, 3, "acme").await;
    let mut ordered = ids.clone();
    ordered.sort_unstable();
    let waits: Vec<WaitReason> = ledger
        .jobs(&JobFilter::default())
        .await
        .unwrap()
        .into_iter()
        .map(|job| job.wait.unwrap())
        .collect();
    let ahead = waits
        .iter()
        .filter_map(|wait| match wait {
            WaitReason::QueuedBehind { job, ahead } => Some((*job, *ahead)),
            _ => None,
        })
        .collect::<HashMap<_, _>>();
    assert_eq!(ahead.len(), 1, "both name the same first: {waits:?}");
    assert!(waits.contains(&WaitReason::Ready));
    assert!(
        waits
            .iter()
            .any(|wait| matches!(wait, WaitReason::QueuedBehind { ahead: 2, .. }))
    );
    // Others' jobs are no word of theirs (P6).
    let small = submit_many(&ledger, 1, "small").await;
    assert_eq!(
        ledger.job(small[0]).await.unwrap().wait,
        Some(WaitReason::Ready)
    );
}

pub async fn a_paused_tenant_starts_nothing_and_goes_on_in_order(place: &Place) {
    let ledger = place.open().await;
    let mut expected = Vec::new();
    for n in 0..40 {
        let level = [Priority::Normal, Priority::High][n % 2];
        let job = JobRequest {
            priority: level,
            ..of("acme")
        };
        expected.push((std::cmp::Reverse(level), submit(&ledger, job).await));
    }
    let acme = scope("tenant/acme");
    let paused = ledger.pause(&acme, Some("they move house")).await.unwrap();
    assert_eq!(paused.because.as_deref(), Some("they move house"));
    assert_eq!(ledger.pauses().await.unwrap(), [paused]);
    claim_none(&ledger).await;
    // Neither what a queue delivers, nor what comes meanwhile.
    let ids: Vec<JobId> = expected.iter().map(|(_, id)| *id).collect();
    let room_for_all = ClaimRequest {
        short: 100,
        ..room("worker", LONG)
    };
    let given = ledger.claim_by_ids(&room_for_all, &ids[..30]).await;
    assert_eq!(given.unwrap().jobs, []);
    expected.push((
        std::cmp::Reverse(Priority::Normal),
        submit(&ledger, of("acme")).await,
    ));
    let other = submit(&ledger, of("other")).await;
    assert_eq!(claim_one(&ledger, LONG).await.job.id, other);
    for (_, id) in &expected {
        let wait = ledger.job(*id).await.unwrap().wait.unwrap();
        assert_eq!(
            wait,
            WaitReason::Paused {
                what: acme.clone(),
                because: Some("they move house".to_owned())
            }
        );
    }
    assert_eq!(ledger.resume(&acme).await.unwrap(), 30);
    expected.sort_by_key(|(level, _)| *level);
    let order: Vec<JobId> = ledger
        .claim(&room_for_all)
        .await
        .unwrap()
        .jobs
        .iter()
        .map(|one| one.job.id)
        .collect();
    let expected: Vec<JobId> = expected.into_iter().map(|(_, id)| id).collect();
    assert_eq!(order, expected);
    let again = ledger.resume(&acme).await;
    assert!(matches!(again, Err(LedgerError::NotFound { .. })));
}

pub async fn a_pause_stops_what_it_names(place: &Place) {
    let ledger = place.open().await;
    let shop = add_database(&ledger, "shop").await;
    let policy = PolicyId::new();
    let job = JobRequest {
        database: Some(shop),
        terms: JobTerms {
            policy: Some(policy),
            ..JobTerms::default()
        },
        ..request("noop")
    };
    for what in [
        Scope::All,
        Scope::Tenant(tenant()),
        Scope::Kind("noop".parse().unwrap()),
        Scope::Database(shop),
        Scope::Policy(policy),
    ] {
        let id = submit(&ledger, job.clone()).await;
        ledger.pause(&what, None).await.unwrap();
        claim_none(&ledger).await;
        let wait = ledger.job(id).await.unwrap().wait.unwrap();
        let reason = WaitReason::Paused {
            what: what.clone(),
            because: None,
        };
        assert_eq!(wait, reason);
        // A pause of something else stops nothing.
        ledger.resume(&what).await.unwrap();
        ledger
            .pause(&Scope::Policy(PolicyId::new()), None)
            .await
            .unwrap();
        let claimed = claim_one(&ledger, LONG).await;
        assert_eq!(claimed.job.id, id);
        assert_eq!(claimed.job.terms.policy, Some(policy));
        ledger
            .complete(fencing(&claimed), succeeded())
            .await
            .unwrap();
    }
    let server = ledger.pause(&scope("server/db1:5432"), None).await;
    assert!(matches!(server, Err(LedgerError::Refused { .. })));
}

pub async fn a_job_runs_in_its_window_only(place: &Place) {
    let ledger = place.open().await;
    let now = ledger.now().await.unwrap();
    let clock = |moment: Timestamp| {
        let text = moment.to_string();
        text[11..16].to_owned()
    };
    let hour = |n: u64| now.plus(Duration::from_secs(3600 * n));
    let closed = JobWindow {
        hours: Window {
            from: clock(hour(2)),
            to: clock(hour(3)),
        },
        time_zone: "UTC".to_owned(),
    };
    let open = JobWindow {
        hours: Window {
            from: clock(hour(23)),
            to: clock(hour(2)),
        },
        time_zone: "UTC".to_owned(),
    };
    let shop = add_database(&ledger, "shop").await;
    let change = DatabaseChange {
        terms: Some(DatabaseTerms {
            window: Some(closed.clone()),
            ..DatabaseTerms::default()
        }),
        ..DatabaseChange::default()
    };
    ledger.edit_database(shop, change).await.unwrap();
    // The database's, where the job has none of its own.
    let waits = submit(&ledger, backup_of(shop)).await;
    let runs = JobRequest {
        terms: JobTerms {
            window: Some(open),
            ..JobTerms::default()
        },
        ..backup_of(shop)
    };
    let runs = submit(&ledger, runs).await;
    assert_eq!(claim_one(&ledger, LONG).await.job.id, runs);
    let job = ledger.job(waits).await.unwrap();
    let Some(WaitReason::WindowClosed { opens }) = job.wait else {
        panic!("{:?}", job.wait);
    };
    assert_eq!(clock(opens), closed.hours.from);
    assert!(opens.since(now) <= Duration::from_secs(2 * 3600));
    let bad = JobRequest {
        terms: JobTerms {
            window: Some(JobWindow {
                time_zone: "Mars/Olympus".to_owned(),
                ..closed
            }),
            ..JobTerms::default()
        },
        ..request("noop")
    };
    let refused = ledger.submit(bad, None).await.unwrap_err();
    assert!(refused.to_string().contains("Mars/Olympus"), "{refused}");
}

pub async fn a_job_that_waits_is_given_another_priority(place: &Place) {
    let ledger = place.open().await;
    let ids = submit_many(&ledger, 3, "acme").await;
    let mut ids = ids;
    ids.sort_unstable();
    let mut readied = ledger.readied();
    let changed = ledger
        .set_priority(ids[2], Priority::Highest)
        .await
        .unwrap();
    assert_eq!(changed.priority, Priority::Highest);
    let heard = readied.try_recv().unwrap();
    assert_eq!(*heard, [Readied::Named(ids[2])], "a queue hears of it");
    let low = ledger.set_priority(ids[0], Priority::Lowest).await.unwrap();
    assert_eq!(low.priority, Priority::Lowest);
    let order: Vec<JobId> = ledger
        .claim(&room("worker", LONG))
        .await
        .unwrap()
        .jobs
        .iter()
        .map(|one| one.job.id)
        .collect();
    assert_eq!(order, [ids[2], ids[1], ids[0]]);
    let late = ledger.set_priority(ids[0], Priority::High).await;
    assert!(
        matches!(late, Err(LedgerError::Conflict { .. })),
        "{late:?}"
    );
    // No higher than its tenant may.
    let acme: TenantId = "acme".parse().unwrap();
    ledger.add_tenant(&acme).await.unwrap();
    let change = TenantChange {
        priority_ceiling: Some(Priority::High),
        ..TenantChange::default()
    };
    ledger.edit_tenant(&acme, change).await.unwrap();
    let id = submit_many(&ledger, 1, "acme").await[0];
    let capped = ledger.set_priority(id, Priority::Highest).await.unwrap();
    assert_eq!(capped.priority, Priority::High);
}

pub async fn many_jobs_are_cancelled_while_they_run(place: &Place) {
    let count: usize =
        std::env::var("FETTLER_TEST_JOBS").map_or(1_300, |text| text.parse().unwrap());
    let jobs = count as u64;
    let ledger = place.open().await;
    submit_many(&ledger, count, "acme").await;
    let other = submit_many(&ledger, 1, "other").await[0];
    ledger.set_limit(&scope("tenant/acme"), 5).await.unwrap();
    let running: Vec<Claimed> = ledger
        .claim(&room("worker", LONG))
        .await
        .unwrap()
        .jobs
        .into_iter()
        .filter(|one| one.job.tenant.as_str() == "acme")
        .collect();
    assert_eq!(running.len(), 5);
    let filter = JobFilter {
        tenant: Some("acme".parse().unwrap()),
        ..JobFilter::default()
    };
    let would = ledger.cancel_matching(&filter, None, true).await.unwrap();
    assert_eq!((would.cancelled, would.asked), (jobs - 5, 5));
    assert_eq!(
        ledger.counts().await.unwrap().queued,
        jobs - 5,
        "nothing was done"
    );

    // Beside the cancellation, a worker goes on claiming and ending.
    let worker = tokio::spawn({
        let ledger = place.open().await;
        async move {
            for claimed in running {
                let end = ledger.complete(fencing(&claimed), succeeded()).await;
                assert_eq!(end.unwrap(), Ended::Final(JobState::Succeeded));
                let more = ledger
                    .claim(&room("worker", LONG))
                    .await
                    .unwrap_or_default();
                for claimed in more.jobs {
                    let end = failed(Problem::interrupted());
                    ledger.complete(fencing(&claimed), end).await.unwrap();
                }
            }
        }
    });
    let done = ledger.cancel_matching(&filter, None, false).await.unwrap();
    worker.await.unwrap();
    assert!(done.cancelled + done.asked >= jobs - 5 - 5, "{done:?}");
    // What ran meanwhile, and went back, was asked to stop: it ended then (rule 1).
    let left = ledger.cancel_matching(&filter, None, false).await.unwrap();
    assert_eq!((left.cancelled, left.asked), (0, 0));
    assert_eq!(limit(&ledger, "tenant/acme").await.running, 0);
    let other = ledger.job(other).await.unwrap();
    assert!(other.cancel_requested.is_none(), "it matched nothing");
}

pub async fn dead_jobs_are_replayed_once_by_filter(place: &Place) {
    let ledger = place.open().await;
    let ids = submit_many(&ledger, 4, "acme").await;
    for claimed in ledger.claim(&room("worker", LONG)).await.unwrap().jobs {
        let end = if claimed.job.id == ids[0] {
            succeeded()
        } else {
            failed(Problem::permanent("test.dead", "it failed", ""))
        };
        ledger.complete(fencing(&claimed), end).await.unwrap();
    }
    let filter = JobFilter {
        tenant: Some("acme".parse().unwrap()),
        ..JobFilter::default()
    };
    let would = ledger.replay_matching(&filter, None, true).await.unwrap();
    assert_eq!(
        (would.submitted, ledger.counts().await.unwrap().queued),
        (3, 0)
    );
    let done = ledger.replay_matching(&filter, None, false).await.unwrap();
    assert_eq!((done.submitted, done.already, done.refused), (3, 0, 0));
    let again = ledger.replay_matching(&filter, None, false).await.unwrap();
    assert_eq!((again.submitted, again.already), (0, 3));
    let queued = ledger
        .jobs(&JobFilter {
            states: vec![JobState::Queued],
            ..filter
        })
        .await
        .unwrap();
    let old: HashSet<JobId> = queued.iter().filter_map(|job| job.retry_of).collect();
    assert_eq!(old, ids[1..].iter().copied().collect());
    let strangers = JobFilter {
        tenant: Some("other".parse().unwrap()),
        ..JobFilter::default()
    };
    let none = ledger
        .replay_matching(&strangers, None, true)
        .await
        .unwrap();
    assert_eq!(none.submitted, 0);
}

pub async fn what_is_asked_of_very_many_is_done_in_several_requests(place: &Place) {
    let ledger = place.open().await;
    let ids = submit_many(&ledger, 1_100, "acme").await;
    let filter = JobFilter {
        tenant: Some("acme".parse().unwrap()),
        ..JobFilter::default()
    };
    let hasty = place
        .open_with(LedgerOptions {
            bulk: Duration::ZERO,
            ..LedgerOptions::default()
        })
        .await;
    let mut after = None;
    let mut cancelled = Vec::new();
    for _ in 0..3 {
        let done = hasty.cancel_matching(&filter, after, false).await.unwrap();
        cancelled.push(done.cancelled);
        after = done.next;
    }
    assert_eq!(
        (cancelled.as_slice(), after),
        ([500, 500, 100].as_slice(), None)
    );
    let filter = JobFilter {
        states: vec![JobState::Cancelled],
        ..filter
    };
    let mut submitted = Vec::new();
    for _ in 0..3 {
        let done = hasty.replay_matching(&filter, after, false).await.unwrap();
        assert_eq!((done.already, done.refused), (0, 0), "none is met twice");
        submitted.push(done.submitted);
        after = done.next;
    }
    assert_eq!(
        (submitted.as_slice(), after),
        ([500, 500, 100].as_slice(), None)
    );
    assert_eq!(ledger.counts().await.unwrap().queued, ids.len() as u64);
}

fn dmz() -> std::collections::BTreeMap<String, String> {
    [("zone".to_owned(), "dmz".to_owned())].into()
}

pub async fn rule_17_a_job_runs_only_where_its_database_is_reached(place: &Place) {
    let ledger = place.open().await;
    let inside = add_database(&ledger, "inside").await;
    let outside = add_database(&ledger, "outside").await;
    let reach = |reach| DatabaseChange {
        terms: Some(DatabaseTerms {
            reach,
            ..DatabaseTerms::default()
        }),
        ..DatabaseChange::default()
    };
    ledger.edit_database(inside, reach(dmz())).await.unwrap();
    let mut unreached = Vec::new();
    for _ in 0..20 {
        let look = JobRequest {
            database: Some(inside),
            ..request("noop")
        };
        unreached.push(submit(&ledger, look).await);
    }
    let reached = submit(&ledger, backup_of(outside)).await;
    let after = submit(&ledger, request("noop")).await;
    // What it does not reach delays nothing of what it does.
    let plain = ledger.claim(&room("plain", LONG)).await.unwrap().jobs;
    let ids: HashSet<JobId> = plain.iter().map(|one| one.job.id).collect();
    assert_eq!(ids, HashSet::from([reached, after]));
    assert_eq!(
        ledger.job(unreached[0]).await.unwrap().wait,
        Some(WaitReason::NoWorkerReaches { labels: dmz() })
    );
    // Nor by a queue that delivers it there.
    let given = ledger.claim_by_ids(&room("plain", LONG), &unreached).await;
    assert_eq!(given.unwrap().jobs, []);
    let mut labels = dmz();
    labels.insert("rack".to_owned(), "7".to_owned());
    let there = ClaimRequest {
        skills: WorkerSkills {
            labels,
            ..WorkerSkills::default()
        },
        ..room("there", LONG)
    };
    assert_eq!(ledger.claim(&there).await.unwrap().jobs.len(), 10);
    assert!(matches!(
        ledger.job(unreached[19]).await.unwrap().wait,
        Some(WaitReason::Ready | WaitReason::QueuedBehind { .. })
    ));
    // It moves where everybody reaches it.
    let mut readied = ledger.readied();
    ledger
        .edit_database(inside, reach(Default::default()))
        .await
        .unwrap();
    assert_eq!(readied.try_recv().unwrap().len(), 10, "a queue hears of it");
    let plain = ledger.claim(&room("plain", LONG)).await.unwrap().jobs;
    assert_eq!(plain.len(), 10);
    let bad = [("zone".to_owned(), "a b".to_owned())].into();
    let refused = ledger.edit_database(inside, reach(bad)).await.unwrap_err();
    assert!(refused.remedy().contains("NAME=VALUE"), "{refused}");
}

pub async fn a_newer_version_of_a_kind_waits_for_a_worker_that_knows_it(place: &Place) {
    let ledger = place.open().await;
    let newer = JobRequest {
        kind_version: 2,
        ..request("noop")
    };
    let newer = submit(&ledger, newer).await;
    let older = submit(&ledger, request("noop")).await;
    assert_eq!(claim_one(&ledger, LONG).await.job.id, older);
    assert_eq!(
        ledger.job(newer).await.unwrap().wait,
        Some(WaitReason::NoWorkerForVersion {
            kind: "noop".parse().unwrap(),
            version: 2
        })
    );
    let next = submit(&ledger, request("noop")).await;
    let skilled = ClaimRequest {
        skills: WorkerSkills {
            versions: [("noop".parse().unwrap(), 3)].into(),
            ..WorkerSkills::default()
        },
        ..room("skilled", LONG)
    };
    let claimed = ledger.claim(&skilled).await.unwrap().jobs;
    let ids: HashSet<JobId> = claimed.iter().map(|one| one.job.id).collect();
    assert_eq!(ids, HashSet::from([newer, next]));
    assert!(claimed.iter().any(|one| one.job.kind_version == 2));
    let workers = ledger.workers().await.unwrap();
    let known = workers.iter().find(|worker| worker.id == "skilled");
    assert_eq!(known.unwrap().skills, skilled.skills);
}
