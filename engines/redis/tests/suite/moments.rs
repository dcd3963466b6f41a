//! Points in time: what is written behind a backup is archived, and brings the backup to any second.
//!
//! How many random seconds are tried is `FETTLER_MOMENTS` (5 where it is not set).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use fettler_engine::{
    ArchiveStart, BackupReport, DatabaseEngine as _, EngineError, RestoreOptions,
    testing::{MemoryLog, MemorySource},
};
use fettler_model::{
    BackupId, Base, GapCause, JobId, LogMoment, NoMoment, Plan, Restorable, Timeline, Timestamp,
};
use fettler_test_servers::{RedisServer, SentinelRedis};
use rand::RngExt as _;
use redis::{Connection, cmd, pipe};
use tokio::task::JoinHandle;

use crate::common::{Attempt, ENGINE, back_up, client, run, server, target};

/// An archive that runs beside a test.
struct Archiving {
    log: Arc<MemoryLog>,
    attempt: Attempt,
    running: JoinHandle<Result<(), EngineError>>,
}

impl Archiving {
    fn begin(url: &str, start: ArchiveStart) -> Self {
        Self::go_on(url, start, Arc::default())
    }

    fn go_on(url: &str, start: ArchiveStart, log: Arc<MemoryLog>) -> Self {
        let attempt = Attempt::new();
        let (context, sink, source) = (attempt.context.clone(), log.clone(), target(url));
        let running =
            tokio::spawn(async move { ENGINE.archive(&context, &source, &start, &*sink).await });
        Self {
            log,
            attempt,
            running,
        }
    }

    /// Waits until everything up to now is archived.
    async fn caught_up(&self) {
        let now = Timestamp::now();
        let began = std::time::Instant::now();
        while !self
            .log
            .batches()
            .iter()
            .any(|batch| batch.moments.last().is_some_and(|last| last.until > now))
        {
            assert!(!self.running.is_finished(), "the archive has ended");
            assert!(began.elapsed() < Duration::from_secs(40), "nothing comes");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn end(self) -> Arc<MemoryLog> {
        self.attempt.context.stop.cancel();
        let outcome = self.running.await.unwrap();
        assert!(matches!(outcome, Err(EngineError::Stopped)), "{outcome:?}");
        self.log
    }
}

/// A backup to play on.
struct Based {
    backup: MemorySource,
    report: BackupReport,
    base: Base,
}

impl Based {
    async fn of(url: &str) -> Self {
        let (backup, report) = back_up(url).await;
        let position = ENGINE.log_position(&report).expect("a position");
        let base = Base {
            backup: BackupId::of_job(JobId::new()),
            since: position.offset,
            position,
        };
        Self {
            backup,
            report,
            base,
        }
    }

    fn start(&self) -> ArchiveStart {
        ArchiveStart {
            base: Some(self.base.position.clone()),
            ..ArchiveStart::default()
        }
    }
}

fn plan(log: &MemoryLog, bases: &[Base], at: Timestamp) -> Result<Plan, NoMoment> {
    let (spans, moments) = log.spans();
    // The timeline borrows what it is given.
    let moments: &'static [Vec<LogMoment>] = moments.leak();
    Timeline::new(spans.leak(), bases).plan(at, &|span| &moments[span])
}

fn restorable(log: &MemoryLog, bases: &[Base]) -> Restorable {
    let (spans, moments) = log.spans();
    let moments: &'static [Vec<LogMoment>] = moments.leak();
    Timeline::new(spans.leak(), bases).restorable(&|span| &moments[span])
}

async fn restore_to(log: &MemoryLog, based: &Based, at: Timestamp, copy: &RedisServer) {
    let plan = plan(log, std::slice::from_ref(&based.base), at).expect("a moment");
    ENGINE
        .restore_to_moment(
            &Attempt::new().context,
            &based.backup,
            &based.report,
            &log.changes(&plan),
            &target(&copy.url()),
            &RestoreOptions {
                overwrite: true,
                ..RestoreOptions::default()
            },
        )
        .await
        .unwrap();
    let role: Vec<redis::Value> = cmd("ROLE").query(&mut client(&copy.url())).unwrap();
    assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()));
    let auth: Vec<String> = run_text(&mut client(&copy.url()), "CONFIG GET masterauth");
    assert_eq!(auth[1], "");
}

fn run_text<T: redis::FromRedisValue>(client: &mut Connection, words: &str) -> T {
    redis::from_redis_value(run(client, words)).unwrap()
}

/// A write as its client saw it.
#[derive(Clone, Copy, Debug)]
struct Written {
    began: Timestamp,
    acknowledged: Timestamp,
    number: u64,
}

/// Writes numbers into a list, and pairs of counters within transactions, until it is told to stop.
fn write_until(url: String, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<Written>> {
    std::thread::spawn(move || {
        let mut client = client(&url);
        let mut written = Vec::new();
        let mut number = 0;
        while !stop.load(Relaxed) {
            number += 1;
            let began = Timestamp::now();
            pipe()
                .atomic()
                .cmd("SELECT")
                .arg(number % 3)
                .cmd("RPUSH")
                .arg("numbers")
                .arg(number)
                .cmd("SELECT")
                .arg(5)
                .cmd("INCR")
                .arg("one")
                .cmd("INCR")
                .arg("two")
                .exec(&mut client)
                .unwrap();
            written.push(Written {
                began,
                acknowledged: Timestamp::now(),
                number,
            });
            std::thread::sleep(Duration::from_micros(number % 7 * 500));
        }
        written
    })
}

/// What a copy holds: the numbers, in order.
fn numbers_in(copy: &RedisServer) -> Vec<u64> {
    let mut client = client(&copy.url());
    let mut numbers = Vec::new();
    for database in 0..3 {
        run(&mut client, &format!("SELECT {database}"));
        numbers.extend(run_text::<Vec<u64>>(&mut client, "LRANGE numbers 0 -1"));
    }
    numbers.sort_unstable();
    run(&mut client, "SELECT 5");
    let pair: Vec<Option<u64>> = run_text(&mut client, "MGET one two");
    assert_eq!(pair[0], pair[1], "a transaction was cut");
    assert_eq!(pair[0].unwrap_or(0), numbers.len() as u64, "one was cut");
    numbers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_seconds_hold_what_was_acknowledged_a_second_before_and_nothing_that_began_after() {
    let (source, copy) = (server(), server());
    let based = Based::of(&source.url()).await;
    let archive = Archiving::begin(&source.url(), based.start());
    archive.caught_up().await;
    let stop = Arc::new(AtomicBool::new(false));
    let began = Timestamp::now();
    let writer = write_until(source.url(), stop.clone());
    tokio::time::sleep(Duration::from_secs(4)).await;
    // The link is cut, twice: what was written meanwhile comes after it.
    for _ in 0..2 {
        run(&mut client(&source.url()), "CLIENT KILL TYPE replica");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    stop.store(true, Relaxed);
    let written = writer.join().unwrap();
    let ended = Timestamp::now();
    archive.caught_up().await;
    let log = archive.end().await;
    assert!(
        log.batches()[1..].iter().all(|batch| batch.continues),
        "a link that was cut leaves no gap"
    );
    assert!(written.len() > 500, "{}", written.len());

    let tries: u32 = std::env::var("FETTLER_MOMENTS")
        .ok()
        .and_then(|number| number.parse().ok())
        .unwrap_or(5);
    let mut seen = Vec::new();
    for attempt in 0..tries {
        let micros = rand::rng().random_range(began.micros()..=ended.micros() + 1_000_000);
        let mut at = Timestamp::from_micros(micros);
        if let Err(near) = plan(&log, std::slice::from_ref(&based.base), at) {
            // While the link was cut nobody knew the server's clock; the nearest moment is one.
            at = near.before.or(near.after).expect("a moment nearby");
        }
        restore_to(&log, &based, at, &copy).await;
        let numbers = numbers_in(&copy);
        assert!(
            numbers.iter().copied().eq(1..=numbers.len() as u64),
            "no prefix"
        );
        for one in &written {
            let is_there = one.number <= numbers.len() as u64;
            if one.acknowledged < at.minus(Duration::from_secs(1)) {
                assert!(is_there, "try {attempt}: {one:?} is missing at {at}");
            }
            if one.began > at {
                assert!(!is_there, "try {attempt}: {one:?} is there at {at}");
            }
        }
        seen.push(numbers.len());
    }
    assert!(seen.iter().any(|count| *count > 0), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_later_writes_use_is_there_however_long_ago_it_expired() {
    let (source, copy) = (server(), server());
    let mut writer = client(&source.url());
    run(&mut writer, "SET lasting 1 EX 1000");
    run(&mut writer, "SET in:the:rdb value PX 12000");
    let based = Based::of(&source.url()).await;
    let archive = Archiving::begin(&source.url(), based.start());
    archive.caught_up().await;
    run(&mut writer, "SET short:lived 41 PX 300");
    run(&mut writer, "INCR short:lived");
    run(&mut writer, "COPY short:lived kept");
    run(&mut writer, "PERSIST kept");
    run(&mut writer, "COPY in:the:rdb was:in:the:rdb");
    run(&mut writer, "PERSIST was:in:the:rdb");
    run(&mut writer, "SET moment x PXAT 4102444800123");
    run(&mut writer, "EVAL return(redis.call('SET','scripted',1)) 0");
    archive.caught_up().await;
    let log = archive.end().await;
    // Both have expired by the time of the restore.
    while run_text::<u64>(&mut writer, "EXISTS in:the:rdb short:lived") > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let last = restorable(&log, std::slice::from_ref(&based.base))
        .whole
        .unwrap()
        .until;
    restore_to(&log, &based, last, &copy).await;
    let mut copied = client(&copy.url());
    let kept: String = run_text(&mut copied, "GET kept");
    assert_eq!(kept, "42");
    let renamed: String = run_text(&mut copied, "GET was:in:the:rdb");
    assert_eq!(renamed, "value");
    let gone: Option<String> = run_text(&mut copied, "GET short:lived");
    assert_eq!(gone, None);
    let at: i64 = run_text(&mut copied, "PEXPIRETIME moment");
    assert_eq!(at, 4_102_444_800_123);
    let left: i64 = run_text(&mut copied, "TTL lasting");
    assert!((900..1000).contains(&left), "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_its_history_leaves_a_gap_that_is_told() {
    let mut source = server();
    run(&mut client(&source.url()), "SET a 1");
    let before = Based::of(&source.url()).await;
    let archive = Archiving::begin(&source.url(), before.start());
    archive.caught_up().await;
    let lost_at = Timestamp::now();
    source.kill_9().unwrap();
    source.start_again().unwrap();
    run(&mut client(&source.url()), "SET b 2");
    archive.caught_up().await;
    let after = Based::of(&source.url()).await;
    run(&mut client(&source.url()), "SET c 3");
    archive.caught_up().await;
    let log = archive.end().await;

    let bases = [before.base.clone(), after.base.clone()];
    let told = restorable(&log, &bases);
    let lost: Vec<_> = told
        .gaps
        .iter()
        .filter(|gap| gap.cause == GapCause::ChangesLost)
        .collect();
    assert_eq!(lost.len(), 1, "{told:?}");
    assert!(lost[0].from >= lost_at && lost[0].until > lost[0].from);
    let middle =
        Timestamp::from_micros(i64::midpoint(lost[0].from.micros(), lost[0].until.micros()));
    let near = plan(&log, &bases, middle).unwrap_err();
    assert_eq!(
        (near.before, near.after),
        (Some(lost[0].from), Some(lost[0].until))
    );
    let copy = server();
    restore_to(&log, &after, told.whole.unwrap().until, &copy).await;
    let values: Vec<Option<String>> = run_text(&mut client(&copy.url()), "MGET a b c");
    assert_eq!(values, [None, Some("2".to_owned()), Some("3".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_durable_and_wait_counts_it() {
    let source = server();
    let based = Based::of(&source.url()).await;
    let archive = Archiving::begin(&source.url(), based.start());
    archive.caught_up().await;
    let mut writer = client(&source.url());
    run(&mut writer, "SET a 1");
    let replicas: u64 = run_text(&mut writer, "WAIT 1 10000");
    assert_eq!(replicas, 1);
    let there: usize = archive
        .log
        .batches()
        .iter()
        .map(|batch| {
            batch
                .bytes
                .windows(3)
                .filter(|bytes| bytes == b"SET")
                .count()
        })
        .sum();
    assert_eq!(there, 1, "it was acknowledged before it was in the log");
    archive.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_holds_keys_or_may_not_be_a_replica_is_refused_with_the_remedy() {
    let (source, copy) = (server(), server());
    let based = Based::of(&source.url()).await;
    let archive = Archiving::begin(&source.url(), based.start());
    archive.caught_up().await;
    let log = archive.end().await;
    let last = restorable(&log, std::slice::from_ref(&based.base))
        .whole
        .unwrap()
        .until;
    let plan = plan(&log, std::slice::from_ref(&based.base), last).unwrap();
    let restore = async |url: String| {
        ENGINE
            .restore_to_moment(
                &Attempt::new().context,
                &based.backup,
                &based.report,
                &log.changes(&plan),
                &target(&url),
                &RestoreOptions::default(),
            )
            .await
    };
    let mut there = client(&copy.url());
    run(&mut there, "SET precious 1");
    let refused = restore(copy.url()).await;
    assert!(
        matches!(refused, Err(EngineError::NotEmpty { .. })),
        "{refused:?}"
    );
    run(&mut there, "DEL precious");
    run(
        &mut there,
        "ACL SETUSER small on >pass ~* &* +@all -replicaof -slaveof",
    );
    let url = format!("redis://small:pass@127.0.0.1:{}/", copy.port());
    match restore(url).await {
        Err(EngineError::Missing { code, remedy, .. }) => {
            assert_eq!(code, "replicaof");
            assert!(remedy.contains("+replicaof"), "{remedy}");
        }
        other => panic!("{other:?}"),
    }
    let masterauth: Vec<String> = run_text(&mut there, "CONFIG GET masterauth");
    assert_eq!(masterauth[1], "");
    let narrowed = ENGINE
        .archive(
            &Attempt::new().context,
            &target(&format!("{}3", source.url())),
            &ArchiveStart::default(),
            &*log,
        )
        .await;
    assert!(matches!(
        narrowed,
        Err(EngineError::Missing { code: "url", .. })
    ));
}

/// Two batches of the same bytes make the same writes, and a batch says where it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_goes_on_where_the_last_one_stopped() {
    let source = server();
    let based = Based::of(&source.url()).await;
    let first = Archiving::begin(&source.url(), based.start());
    first.caught_up().await;
    let log = first.end().await;
    run(&mut client(&source.url()), "SET between attempts");
    let last = log.batches().pop().unwrap();
    let start = ArchiveStart {
        end: Some(fettler_model::LogPosition {
            history: last.history.clone(),
            offset: last.end(),
        }),
        base: Some(based.base.position.clone()),
        last_moment: log
            .batches()
            .iter()
            .rev()
            .find_map(|batch| batch.moments.last().copied()),
    };
    let second = Archiving::go_on(&source.url(), start, log);
    second.caught_up().await;
    let log = second.end().await;
    assert!(log.batches()[1..].iter().all(|batch| batch.continues));
    let mut before: BTreeMap<&str, u64> = BTreeMap::new();
    let batches = log.batches();
    for batch in &batches {
        if let Some(end) = before.insert(&batch.history, batch.end()) {
            assert_eq!(end, batch.begin, "a byte twice or none");
        }
    }
    let copy = server();
    let until = restorable(&log, std::slice::from_ref(&based.base))
        .whole
        .unwrap()
        .until;
    restore_to(&log, &based, until, &copy).await;
    let value: String = run_text(&mut client(&copy.url()), "GET between");
    assert_eq!(value, "attempts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_by_sentinels_goes_on_after_a_failover() {
    let mut servers = SentinelRedis::start_with("moments7", crate::common::options()).unwrap();
    let based = Based::of(&servers.url()).await;
    let archiving = Archiving::begin(&servers.url(), based.start());
    archiving.caught_up().await;
    let mut writer = client(&servers.master().unwrap().url());
    run(&mut writer, "SET before 1");
    let safe: u64 = cmd("WAIT").arg(2).arg(20_000).query(&mut writer).unwrap();
    assert_eq!(safe, 2, "its replica and the archive have it");
    servers.master().unwrap().kill_9().unwrap();
    servers.wait_for_master().unwrap();
    let mut writer = client(&servers.master().unwrap().url());
    run(&mut writer, "SET after 2");
    // It takes a while until it has joined the new primary: for the seconds before nobody's clock was asked.
    archiving.caught_up().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let at = Timestamp::now();
    archiving.caught_up().await;
    let log = archiving.end().await;
    let copy = server();
    restore_to(&log, &based, at, &copy).await;
    let both: (Option<u64>, Option<u64>) = cmd("MGET")
        .arg("before")
        .arg("after")
        .query(&mut client(&copy.url()))
        .unwrap();
    assert_eq!(both, (Some(1), Some(2)));
}
