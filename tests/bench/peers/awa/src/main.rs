//! awa: no-op jobs on the same PostgreSQL as the fleet's, by its queue storage.
//!
//!     awa-bench postgres://… rate JOBS CONCURRENCY SUBMITTERS        prints jobs a second
//!     awa-bench postgres://… open-loop RATE SECONDS CONCURRENCY      prints what each job waited, as JSON
//!
//! Its settings are the ones that its documentation and its own throughput benchmark use, but for the history, which is
//! kept as the fleet keeps its own; [`Queue::start`] says each. Submitter and worker are one process with a pool each:
//! the fleet's are two processes.

use std::{
    collections::HashMap,
    env,
    error::Error,
    str::FromStr as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use awa::{
    Client, InsertOpts, JobArgs, JobResult, QueueConfig, QueueStorage, QueueStorageConfig,
    insert_with, migrations, model::insert::params_with,
};
use serde::{Deserialize, Serialize};
use sqlx::{
    ConnectOptions as _, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::task::JoinSet;

/// Anything that went wrong.
type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// The queue of all jobs.
const QUEUE: &str = "bench";
/// The most jobs of one bulk call, as the fleet's.
const CALL: usize = 1000;
/// How many jobs warm connections and plans up before anything is counted, as the fleet's.
const WARM_UP: usize = 200;
/// How often it is looked whether all jobs have ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a benchmark may take to end its jobs.
const PATIENCE: Duration = Duration::from_secs(1200);
/// Connections of the worker: what awa's documentation asks for one queue (`queues * 4 + 20`).
const WORKER_CONNECTIONS: u32 = 24;
/// Connections of whoever submits single jobs, each of which is a transaction of its own.
const SUBMITTER_CONNECTIONS: u32 = 32;

/// How many heads the queue has (`enqueue_shards`), as awa advises for a hot one, so that those who submit do not wait for
/// one another: as many as there are bulk calls at once. It costs the order over all jobs, which no benchmark asks for.
const HEADS: u8 = 4;

/// A job that does nothing.
#[derive(Debug, Serialize, Deserialize, JobArgs)]
struct Noop {}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .init();
    let words: Vec<String> = env::args().skip(1).collect();
    let [url, what, figures @ ..] = &words[..] else {
        return Err("awa-bench URL rate|open-loop FIGURE…".into());
    };
    let figures: Vec<u32> = figures
        .iter()
        .map(|word| word.parse())
        .collect::<Result<_, _>>()?;
    match (what.as_str(), &figures[..]) {
        ("rate", &[jobs, concurrency, submitters]) => {
            println!(
                "{}",
                rate(url, jobs as usize, concurrency, submitters).await?
            );
        }
        ("open-loop", &[rate, seconds, concurrency]) => {
            let measured = open_loop(url, rate, seconds, concurrency).await?;
            println!("{}", serde_json::to_string(&measured)?);
        }
        _ => return Err(
            "awa-bench URL rate JOBS CONCURRENCY SUBMITTERS | open-loop RATE SECONDS CONCURRENCY"
                .into(),
        ),
    }
    Ok(())
}

/// Jobs a second, from the first bulk call to the last job's completion.
async fn rate(url: &str, jobs: usize, concurrency: u32, submitters: u32) -> Result<f64> {
    let queue = Queue::start(url, concurrency, submitters).await?;
    let begun = Instant::now();
    let left = Arc::new(Mutex::new(jobs));
    let mut calls = JoinSet::new();
    for _ in 0..submitters {
        let (store, pool, left) = (queue.store.clone(), queue.submitter.clone(), left.clone());
        calls.spawn(async move {
            loop {
                let count = {
                    let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
                    let count = CALL.min(*left);
                    *left -= count;
                    count
                };
                if count == 0 {
                    return Result::<()>::Ok(());
                }
                let jobs = (0..count)
                    .map(|_| params_with(&Noop {}, options()))
                    .collect::<Result<Vec<_>, _>>()?;
                // The bulk call that awa's documentation advises for its queue storage: COPY into the queue's own tables.
                store.enqueue_params_copy(&pool, &jobs).await?;
            }
        });
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    let all = usize::from(HEADS) + jobs;
    queue.all_ended(all).await?;
    let rate = jobs as f64 / begun.elapsed().as_secs_f64();
    if queue.ends().await?.len() != all {
        return Err("not every job ended well".into());
    }
    queue.client.shutdown(PATIENCE).await;
    Ok(rate)
}

/// What an open loop tells.
#[derive(Serialize)]
struct Measured {
    waits: Vec<Wait>,
    /// How many bytes the database's log of changes grew by.
    wal_bytes: i64,
    /// The database's size, in words.
    size: String,
}

/// When a job was asked for, in microseconds since 1970, and how long it took from there, in milliseconds.
#[derive(Serialize)]
struct Wait {
    asked: u64,
    to_start: f64,
    to_end: f64,
}

/// Single submissions at a fixed rate, whatever becomes of them.
async fn open_loop(url: &str, rate: u32, seconds: u32, concurrency: u32) -> Result<Measured> {
    const TICK: Duration = Duration::from_millis(5);
    let queue = Queue::start(url, concurrency, SUBMITTER_CONNECTIONS).await?;
    for _ in 0..WARM_UP {
        submit(&queue.submitter).await?;
    }
    let warm = usize::from(HEADS) + WARM_UP;
    queue.all_ended(warm).await?;
    let before = queue.wal_position().await?;
    let asked = Arc::new(Mutex::new(HashMap::new()));
    let (begun, mut sent) = (Instant::now(), 0_usize);
    let mut every = tokio::time::interval(TICK);
    let mut calls: JoinSet<Result<()>> = JoinSet::new();
    let until = Duration::from_secs(u64::from(seconds));
    while begun.elapsed() < until {
        every.tick().await;
        let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as usize;
        for _ in sent..due {
            let (pool, asked) = (queue.submitter.clone(), asked.clone());
            calls.spawn(async move {
                let at = micros();
                let job = submit(&pool).await?;
                asked
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(job, at);
                Ok(())
            });
        }
        sent = due;
        while let Some(done) = calls.try_join_next() {
            done??;
        }
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    queue.all_ended(warm + sent).await?;
    let wal_bytes = queue.wal_position().await? - before;
    let waits = queue
        .waits(&asked.lock().unwrap_or_else(PoisonError::into_inner).clone())
        .await?;
    let size = queue.size().await?;
    queue.client.shutdown(PATIENCE).await;
    Ok(Measured {
        waits,
        wal_bytes,
        size,
    })
}

/// Submits one job by awa's call for single ones, and gives its number. Each call notifies the worker, and PostgreSQL lets
/// transactions that notify commit one at a time: one sync of the disk bounds the rate, however many heads there are.
async fn submit(pool: &PgPool) -> Result<i64> {
    Ok(insert_with(pool, &Noop {}, options()).await?.id)
}

/// What a job is submitted with.
fn options() -> InsertOpts {
    InsertOpts {
        queue: QUEUE.to_owned(),
        ..InsertOpts::default()
    }
}

/// Microseconds since 1970.
fn micros() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}

/// awa in a database of its own: its tables, a worker, and the connections of whoever submits.
struct Queue {
    client: Client,
    store: Arc<QueueStorage>,
    submitter: PgPool,
    /// When the first line of each job ran.
    started: Arc<Mutex<Vec<(i64, u64)>>>,
}

impl Queue {
    /// Makes the tables and starts a worker that runs so many jobs at once.
    async fn start(url: &str, concurrency: u32, connections: u32) -> Result<Self> {
        /// awa drops what has ended when it rotates its partitions, by default after a second. The fleet keeps its history
        /// for days, so awa keeps a day: the retention that it documents for completed jobs.
        const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
        /// How often the partitions of leases and of claims are rotated: awa's defaults.
        const ROTATED: Duration = Duration::from_secs(1);
        let pool = connect(url, WORKER_CONNECTIONS).await?;
        migrations::run(&pool).await?;
        // Queue storage with receipts is the newest engine and the default of 0.6; 16, 8 and 8 partitions are its defaults.
        let storage = QueueStorageConfig::default();
        let store = QueueStorage::new(storage.clone())?;
        store.install(&pool).await?;
        sqlx::query(
            "INSERT INTO awa.queue_meta (queue, enqueue_shards) VALUES ($1, $2)
             ON CONFLICT (queue) DO UPDATE SET enqueue_shards = EXCLUDED.enqueue_shards",
        )
        .bind(QUEUE)
        .bind(i16::from(HEADS))
        .execute(&pool)
        .await?;
        let started = Arc::new(Mutex::new(Vec::new()));
        let notes = started.clone();
        let queue = QueueConfig {
            max_workers: concurrency,
            // Jobs without a deadline, as the fleet's here, take awa's short path: a claim of many jobs is one row. A
            // worker that dies is still found by its heartbeats.
            deadline_duration: Duration::ZERO,
            // As in awa's own benchmarks; a notification wakes it before.
            poll_interval: Duration::from_millis(50),
            // One claimer that takes up to 512 jobs at a time, and the completion of up to 512 at a time after a
            // millisecond, are the defaults.
            ..QueueConfig::default()
        };
        let client = Client::builder(pool)
            .queue(QUEUE, queue)
            .queue_storage(storage, KEPT, ROTATED)
            .claim_rotate_interval(ROTATED)
            .register::<Noop, _, _>(move |Noop {}, context| {
                let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
                notes.push((context.job.id, micros()));
                async { Ok(JobResult::Completed) }
            })
            .build()?;
        client.start().await?;
        let queue = Self {
            client,
            store: Arc::new(store),
            submitter: connect(url, connections).await?,
            started,
        };
        queue.make_heads().await?;
        Ok(queue)
    }

    /// Makes each head of the queue by one bulk call of one job, in turn: the first job that needs a head makes it, and
    /// two that do so at once conflict.
    async fn make_heads(&self) -> Result<()> {
        for made in 1..=usize::from(HEADS) {
            let job = params_with(&Noop {}, options())?;
            self.store
                .enqueue_params_copy(&self.submitter, &[job])
                .await?;
            self.all_ended(made).await?;
        }
        Ok(())
    }

    /// Waits until so many jobs have ended.
    async fn all_ended(&self, jobs: usize) -> Result<()> {
        let begun = Instant::now();
        while self
            .started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
            < jobs
            || self.ended().await? < jobs
        {
            if begun.elapsed() > PATIENCE {
                return Err("the jobs do not end".into());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// How many jobs have ended, by the tables where awa keeps them: its own exact count looks at every job that waits
    /// or runs, too, and would slow down what is measured.
    async fn ended(&self) -> Result<usize> {
        let count: i64 = sqlx::query_scalar(
            "SELECT (SELECT COALESCE(sum(completed_count), 0)::bigint FROM awa.receipt_completion_batches)
                  + (SELECT count(*) FROM awa.done_entries)",
        )
        .fetch_one(&self.submitter)
        .await?;
        Ok(usize::try_from(count)?)
    }

    /// When each job ended well, in microseconds since 1970. awa takes the time just before the statement that ends the
    /// jobs; the fleet takes it within that statement.
    ///
    /// The tables were filled a moment ago: without statistics PostgreSQL may join them row by row, for many minutes.
    async fn ends(&self) -> Result<HashMap<i64, i64>> {
        sqlx::query("ANALYZE").execute(&self.submitter).await?;
        let rows: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT job_id, (extract(epoch FROM finalized_at) * 1000000)::bigint FROM awa.terminal_jobs
             WHERE state = 'completed'",
        )
        .fetch_all(&self.submitter)
        .await?;
        Ok(rows.into_iter().collect())
    }

    /// How long these jobs waited.
    async fn waits(&self, asked: &HashMap<i64, u64>) -> Result<Vec<Wait>> {
        let ends = self.ends().await?;
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let waits: Vec<Wait> = started
            .iter()
            .filter_map(|(job, started)| {
                let (asked, ended) = (*asked.get(job)?, *ends.get(job)?);
                let since = |then: f64| (then - asked as f64) / 1000.0;
                Some(Wait {
                    asked,
                    to_start: since(*started as f64),
                    to_end: since(ended as f64),
                })
            })
            .collect();
        if waits.len() == asked.len() {
            Ok(waits)
        } else {
            Err(format!("{} of {} jobs ended well, once", waits.len(), asked.len()).into())
        }
    }

    /// Where the database's log of changes stands.
    async fn wal_position(&self) -> Result<i64> {
        Ok(
            sqlx::query_scalar("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
                .fetch_one(&self.submitter)
                .await?,
        )
    }

    /// The database's size, in words.
    async fn size(&self) -> Result<String> {
        Ok(sqlx::query_scalar(
            "SELECT 'database ' || pg_size_pretty(pg_database_size(current_database())) || ', dead rows '
                 || sum(n_dead_tup) || ' of all tables'
             FROM pg_stat_user_tables WHERE schemaname = 'awa'",
        )
        .fetch_one(&self.submitter)
        .await?)
    }
}

/// A pool that lets whoever waits for a connection wait: an open loop counts that. Slow statements, as those of awa's
/// migrations are, fill no log.
async fn connect(url: &str, connections: u32) -> Result<PgPool> {
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        .connect_with(PgConnectOptions::from_str(url)?.disable_statement_logging())
        .await?)
}
