//! What a benchmark stands on: a durable PostgreSQL and a Redis that writes its log every second, on ports and in folders
//! of their own, and workers as processes of their own.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::PoisonError,
    time::{Duration, Instant},
};

use fettler_ledger::Ledger;
use fettler_model::TenantId;
use fettler_queue_redis::{RedisQueue, RedisQueueOptions};
use fettler_test_servers::{
    PgMajor, PostgresOptions, PostgresServer, RedisOptions, RedisServer, TestDatabase,
};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use crate::{Result, latency::Asked, work::READY};

/// How often it is looked whether all jobs have ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a benchmark may take to end its jobs.
const PATIENCE: Duration = Duration::from_secs(1200);

/// The servers of a benchmark.
pub struct Stand {
    pub postgres: PostgresServer,
    pub redis: RedisServer,
    folder: TempDir,
}

impl Stand {
    /// Starts them.
    pub fn start() -> Result<Self> {
        let postgres = PostgresServer::start(
            PgMajor::V15,
            PostgresOptions::new()
                .durable()
                .setting("shared_buffers", "256MB")
                .setting("max_wal_size", "4GB")
                .setting("shared_preload_libraries", "pg_stat_statements")
                .setting("pg_stat_statements.track_planning", "on"),
        )?;
        Ok(Self {
            postgres,
            redis: redis()?,
            folder: tempfile::tempdir()?,
        })
    }

    /// A ledger of its own in PostgreSQL, and a Redis that knows nothing.
    pub async fn fleet(&self) -> Result<Fleet<'_>> {
        self.redis.flush_all()?;
        let database = self.postgres.create_database("bench")?;
        let url = database.url();
        let ledger = Ledger::open(&url).await?;
        ledger.ensure_tenant(&TenantId::default_tenant()).await?;
        let queue = RedisQueue::start(ledger.clone(), RedisQueueOptions::new(self.redis.url()))?;
        let (sql, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        Ok(Fleet {
            stand: self,
            url,
            ledger,
            queue,
            sql,
            _database: database,
        })
    }

    /// Where processes may put files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// A Redis with the persistence that is usual in production.
pub fn redis() -> Result<RedisServer> {
    Ok(RedisServer::start(
        RedisOptions::new()
            .setting("appendonly", "yes")
            .setting("appendfsync", "everysec"),
    )?)
}

/// One fleet: a ledger, the wire, and the handle of whoever submits.
pub struct Fleet<'s> {
    stand: &'s Stand,
    pub url: String,
    pub ledger: Ledger,
    /// Tells Redis of what this handle commits, as long as it is here.
    #[allow(dead_code, reason = "it works in the background")]
    queue: RedisQueue,
    pub sql: Client,
    _database: TestDatabase,
}

impl Fleet<'_> {
    /// Starts a worker that runs so many jobs at once, and waits until it takes some.
    pub fn worker(&self, slots: usize) -> Result<WorkerProcess> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["work", "--slots", &slots.to_string()])
            .args(["--ledger", &self.url])
            .args(["--redis", &self.stand.redis.url()])
            .arg("--scratch")
            .arg(self.stand.folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What a worker logs is written as in production, and read by nobody.
            .stderr(std::fs::File::create(
                self.stand.folder().join("worker.log"),
            )?)
            .spawn()?;
        let out = child.stdout.take().ok_or("the worker has no output")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let worker = WorkerProcess {
            child,
            name: line
                .trim()
                .strip_prefix(READY)
                .unwrap_or_default()
                .trim()
                .to_owned(),
        };
        if line.starts_with(READY) {
            Ok(worker)
        } else {
            Err(std::fs::read_to_string(self.stand.folder().join("worker.log"))?.into())
        }
    }

    /// Waits until no job is left that has not ended.
    pub async fn all_ended(&self) -> Result<()> {
        let looked = self
            .sql
            .prepare("SELECT EXISTS (SELECT 1 FROM job)")
            .await?;
        let begun = Instant::now();
        while self.sql.query_one(&looked, &[]).await?.get(0) {
            if begun.elapsed() > PATIENCE {
                return Err("the jobs do not end".into());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Begins to count anew which statements the ledger's database runs.
    pub async fn count_statements(&self) -> Result<()> {
        self.sql
            .batch_execute(
                "CREATE EXTENSION IF NOT EXISTS pg_stat_statements; SELECT pg_stat_statements_reset()",
            )
            .await?;
        Ok(())
    }

    /// Tells which statements took the most of the database's time.
    pub async fn tell_statements(&self) -> Result<()> {
        let rows = self
            .sql
            .query(
                "SELECT calls, rows, total_exec_time + total_plan_time, wal_bytes::bigint, regexp_replace(query, '\\s+', ' ', 'g')
                 FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid AND d.datname = current_database()
                 ORDER BY 3 DESC LIMIT 30",
                &[],
            )
            .await?;
        let updates = self
            .sql
            .query_one(
                "SELECT n_tup_upd, n_tup_hot_upd, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'job'",
                &[],
            )
            .await?;
        let (updated, in_place, dead): (i64, i64, i64) =
            (updates.get(0), updates.get(1), updates.get(2));
        eprintln!(
            "jobs were updated {updated} times, {in_place} of them in place; {dead} dead rows"
        );
        for row in rows {
            let (calls, touched): (i64, i64) = (row.get(0), row.get(1));
            let (millis, wal): (f64, i64) = (row.get(2), row.get(3));
            let text: String = row.get(4);
            let text: String = text.chars().take(150).collect();
            eprintln!("{calls:>7} calls {touched:>8} rows {millis:>8.0} ms {wal:>10} WAL  {text}");
        }
        Ok(())
    }

    /// How many jobs ended.
    pub async fn ended(&self) -> Result<usize> {
        let count: i64 = self
            .sql
            .query_one("SELECT count(*) FROM history", &[])
            .await?
            .get(0);
        Ok(usize::try_from(count)?)
    }

    /// Waits until these jobs have ended.
    pub async fn ended_of(&self, asked: &Asked) -> Result<()> {
        let ids: Vec<String> = asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .map(ToString::to_string)
            .collect();
        let looked = self
            .sql
            .prepare("SELECT EXISTS (SELECT 1 FROM job WHERE id = ANY ($1::text[]))")
            .await?;
        while self.sql.query_one(&looked, &[&ids]).await?.get(0) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Where the database's log of changes stands.
    pub async fn wal_position(&self) -> Result<i64> {
        Ok(self
            .sql
            .query_one(
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint",
                &[],
            )
            .await?
            .get(0))
    }

    /// How many bytes it has grown by.
    pub async fn wal_since(&self, before: i64) -> Result<i64> {
        Ok(self.wal_position().await? - before)
    }

    /// The ledger's size, in words.
    pub async fn size(&self) -> Result<String> {
        Ok(self
            .sql
            .query_one(
                "SELECT 'ledger ' || pg_size_pretty(pg_database_size(current_database())) || ', dead rows '
                     || (SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'job') || ' of jobs, '
                     || (SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'history') || ' of the history'",
                &[],
            )
            .await?
            .get(0))
    }

    /// How many jobs ended well.
    pub async fn succeeded(&self) -> Result<usize> {
        let count: i64 = self
            .sql
            .query_one("SELECT count(*) FROM history WHERE problem IS NULL", &[])
            .await?
            .get(0);
        Ok(usize::try_from(count)?)
    }
}

/// A worker process, which ends when this is dropped.
pub struct WorkerProcess {
    child: Child,
    name: String,
}

impl WorkerProcess {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the ledger calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kills it at once, with all that it is at.
    pub fn kill(mut self) -> Result<()> {
        Ok(self.child.kill()?)
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // Its standard input ends, and it drains.
        drop(self.child.stdin.take());
        let _gone = self.child.wait();
    }
}
