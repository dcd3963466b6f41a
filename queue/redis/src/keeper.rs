//! What goes on in the background of each process: one task watches whether Redis is there and whether its memory is still the
//! one that the fleet filled, and fills or compares it when it is this process's turn (rule 15); one pushes what commits
//! of this process have made claimable.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use fettler_ledger::{Ledger, LedgerError, QueuedJob, Readied};
use fettler_model::{JobId, TenantId};
use redis::{RedisError, aio::MultiplexedConnection};
use thiserror::Error;
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};
use tokio_util::sync::CancellationToken;

use crate::{
    link::Link,
    scripts::{self, Caller, Entry, InFlight, MAX_ITEMS, Memory, Verdict, Work},
};

/// The first pause while Redis is away; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: the queue is back within this time after its Redis.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The pause after the ledger could not be read for a refill.
const LEDGER_PAUSE: Duration = Duration::from_secs(5);
/// How many jobs are read from the ledger at once, and names from Redis.
const PAGE: usize = 500;
/// What reading a page costs beside its jobs, in jobs.
const PAGE_COST: usize = 20;
/// Between two pages' worth of a sweep, which nobody waits for.
const SWEEP_PAUSE: Duration = Duration::from_millis(10);
/// How many pages one run reads at most: what arrives faster than it reads was pushed by whoever submitted it.
const MAX_PAGES: usize = 20_000;
/// How many jobs of the ledger's commits are gathered before they are pushed.
const MAX_PENDING: usize = 2_000;
/// A damaged memory is emptied at most this often: where that does not help, jobs go on coming from the ledger.
const MEND_EVERY: Duration = Duration::from_secs(60);
/// How many weights are written at once.
const MAX_WEIGHTS: usize = 500;

/// Why a round of the keeper ended early.
#[derive(Debug, Error)]
enum Interrupted {
    #[error(transparent)]
    Redis(#[from] RedisError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The memory changed, or another process took over: whoever looks next goes on.
    #[error("the memory changed while it was being filled")]
    Overtaken,
}

/// Watches and fills.
pub(crate) struct Keeper {
    link: Arc<Link>,
    ledger: Ledger,
    /// Who this process is among those that fill.
    holder: String,
    /// The memory into which weights were written, and which.
    weighed: Option<(String, Vec<(TenantId, f64)>)>,
    /// When this process last emptied the memory.
    mended: Option<Instant>,
}

impl Keeper {
    pub(crate) fn new(link: Arc<Link>, ledger: Ledger) -> Self {
        Self {
            link,
            ledger,
            holder: uuid::Uuid::new_v4().to_string(),
            weighed: None,
            mended: None,
        }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let link = self.link.clone();
            let round = tokio::select! {
                round = self.round() => round,
                () = stop.cancelled() => return,
            };
            let wait = match round {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    tokio::select! {
                        () = link.nudge.notified() => {}
                        () = tokio::time::sleep(link.options.watch_every) => {}
                        () = stop.cancelled() => return,
                    }
                    continue;
                }
                Err(Interrupted::Redis(error)) => {
                    link.failed("looking at its memory", &error).await;
                    let wait = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
                Err(Interrupted::Ledger(error)) => {
                    tracing::warn!(%error, "the queue's Redis could not be filled from the ledger for the moment");
                    LEDGER_PAUSE
                }
                Err(Interrupted::Overtaken) => FIRST_PAUSE,
            };
            // Not woken: what failed is the cause of the wake-ups.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One look at the memory, and the work that it gives.
    async fn round(&mut self) -> Result<(), Interrupted> {
        let link = self.link.clone();
        let mut connection = link.connect().await?;
        if let Some(damaged) = link.take_damaged() {
            self.mend(&mut connection, &damaged).await?;
        }
        let replication = replication_id(&mut connection).await?;
        let is_missing = link.take_missing();
        let options = &link.options;
        let watched = scripts::watch(
            &mut connection,
            &link.base,
            &replication,
            &self.holder,
            options.filler_lease,
            is_missing,
        )
        .await
        .inspect_err(|_| {
            if is_missing {
                link.missed();
            }
        })?;
        self.weigh(&mut connection, &watched.incarnation).await?;
        link.is_up(&watched.incarnation);
        let (mark, is_refill) = match &watched.work {
            Work::Nothing => return Ok(()),
            Work::Refill { mark } => (mark.as_str(), true),
            Work::Sweep => ("", false),
        };
        let outcome = self
            .fill(&mut connection, &watched.incarnation, is_refill)
            .await;
        let done = outcome.is_ok().then_some((mark, options.sweep_every));
        match &outcome {
            Ok(added) if is_refill => {
                tracing::info!(jobs = added, "the queue's Redis was filled from the ledger");
            }
            Ok(added) => tracing::debug!(
                jobs = added,
                "the queue's Redis was compared with the ledger"
            ),
            // A connection that is dead cannot end the lease: it ends by itself.
            Err(Interrupted::Redis(_)) => return outcome.map(drop),
            Err(_) => {}
        }
        scripts::end_filler(&mut connection, &link.base, &self.holder, done).await?;
        outcome.map(drop)
    }

    /// Empties a memory that was found damaged, unless somebody has done so already: it is filled again.
    async fn mend(
        &mut self,
        connection: &mut MultiplexedConnection,
        damaged: &str,
    ) -> Result<(), RedisError> {
        let now: Option<String> = redis::cmd("GET")
            .arg(format!("{}incarnation", self.link.base))
            .query_async(connection)
            .await?;
        let is_late = self.mended.is_some_and(|at| at.elapsed() < MEND_EVERY);
        if is_late || now.as_deref() != Some(damaged) {
            return Ok(());
        }
        self.mended = Some(Instant::now());
        wipe(connection, &self.link.base).await?;
        tracing::warn!(
            "the queue's Redis held what no push had written: it was emptied and is filled again"
        );
        Ok(())
    }

    /// Writes the weights of the tenants where they are not those that this memory was given.
    async fn weigh(
        &mut self,
        connection: &mut MultiplexedConnection,
        incarnation: &str,
    ) -> Result<(), Interrupted> {
        let weights = match self.ledger.weights().await {
            Ok(weights) => weights,
            // Redis is of use without them, the more so while the ledger is busy.
            Err(error) => {
                tracing::debug!(%error, "the weights of tenants could not be read");
                return Ok(());
            }
        };
        let written = (incarnation.to_owned(), weights);
        if self.weighed.as_ref() == Some(&written) {
            return Ok(());
        }
        let key = format!("{}weights", self.link.base);
        let weights: Vec<(&str, f64)> = written
            .1
            .iter()
            .map(|(tenant, weight)| (tenant.as_str(), *weight))
            .collect();
        let mut pipe = redis::pipe();
        pipe.atomic().del(&key).ignore();
        for some in weights.chunks(MAX_WEIGHTS) {
            pipe.hset_multiple(&key, some).ignore();
        }
        pipe.query_async::<()>(connection).await?;
        self.weighed = Some(written);
        Ok(())
    }

    /// Pushes all that the ledger has claimable, the first pages of all tenants and kinds first; a push changes nothing where the job is
    /// known. A sweep then drops what the ledger does not know as claimable any more.
    async fn fill(
        &self,
        connection: &mut MultiplexedConnection,
        incarnation: &str,
        is_refill: bool,
    ) -> Result<u64, Interrupted> {
        let link = &self.link;
        let caller = Caller {
            base: &link.base,
            incarnation,
            ageing: self.ledger.ageing(),
        };
        let mut added = 0;
        let mut lines: VecDeque<_> = self
            .ledger
            .queued_lines()
            .await?
            .into_iter()
            .map(|line| (line, None))
            .collect();
        let mut read = 0;
        for _ in 0..MAX_PAGES {
            let Some((line, after)) = lines.pop_front() else {
                break;
            };
            let page = self.ledger.queued_page(&line, after, PAGE).await?;
            added += push(&caller, connection, &page).await?;
            if is_refill {
                fettler_fault_points::reached(fettler_fault_points::Point::RefillPushed);
            }
            self.renew(connection).await?;
            if page.len() == PAGE {
                let after = page.last().map(|job| (job.rank, job.id));
                lines.push_back((line, after));
            }
            // Small tenants have small pages: a sweep of many of them is not to take forever.
            read += page.len() + PAGE_COST;
            if !is_refill && read >= PAGE {
                read = 0;
                tokio::time::sleep(SWEEP_PAUSE).await;
            }
        }
        if !is_refill {
            self.drop_gone(&caller, connection).await?;
        }
        Ok(added)
    }

    async fn renew(&self, connection: &mut MultiplexedConnection) -> Result<(), Interrupted> {
        let lease = self.link.options.filler_lease;
        if scripts::renew_filler(connection, &self.link.base, &self.holder, lease).await? {
            Ok(())
        } else {
            Err(Interrupted::Overtaken)
        }
    }

    /// Drops entries whose jobs are not claimable any more: cancelled, expired, claimed from the ledger itself.
    async fn drop_gone(
        &self,
        caller: &Caller<'_>,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), Interrupted> {
        let key = format!("{}jobs", self.link.base);
        let mut cursor = 0_u64;
        for _ in 0..MAX_PAGES {
            let (next, flat): (u64, Vec<String>) = redis::cmd("HSCAN")
                .arg(&key)
                .arg(cursor)
                .arg("COUNT")
                .arg(PAGE)
                .query_async(connection)
                .await?;
            let entries: Vec<InFlight> = flat
                .chunks_exact(2)
                .filter_map(|pair| {
                    let id = pair[0].parse().ok()?;
                    let generation = pair[1].split(' ').next()?.parse().ok()?;
                    Some(InFlight { id, generation })
                })
                .collect();
            let ids: Vec<JobId> = entries.iter().map(|entry| entry.id).collect();
            let alive: HashSet<JobId> = self
                .ledger
                .queued_among(&ids)
                .await?
                .iter()
                .map(|job| job.id)
                .collect();
            let gone: Vec<(InFlight, Verdict)> = entries
                .into_iter()
                .filter(|entry| !alive.contains(&entry.id))
                .map(|entry| (entry, Verdict::Refused))
                .collect();
            for some in gone.chunks(MAX_ITEMS) {
                caller.settle(connection, some, Duration::ZERO).await?;
            }
            // One that became claimable between the two looks was pushed in vain, and is pushed again.
            let gone: Vec<JobId> = gone.iter().map(|(entry, _)| entry.id).collect();
            let back = self.ledger.queued_among(&gone).await?;
            push(caller, connection, &back).await?;
            self.renew(connection).await?;
            cursor = next;
            if cursor == 0 {
                break;
            }
            tokio::time::sleep(SWEEP_PAUSE).await;
        }
        Ok(())
    }
}

/// Pushes jobs as the ledger has them; says how many were new.
async fn push(
    caller: &Caller<'_>,
    connection: &mut MultiplexedConnection,
    jobs: &[QueuedJob],
) -> Result<u64, Interrupted> {
    let mut added = 0;
    for some in jobs.chunks(MAX_ITEMS) {
        let entries: Vec<Entry> = some.iter().map(Entry::of_job).collect();
        match caller.push(connection, &entries).await? {
            Memory::Known(new) => added += new,
            Memory::Unknown => return Err(Interrupted::Overtaken),
        }
    }
    Ok(added)
}

/// The replication id of the server: a new one may have lost what the old one had. Empty where it is not told.
async fn replication_id(connection: &mut MultiplexedConnection) -> Result<String, RedisError> {
    let told: Result<String, RedisError> = redis::cmd("INFO")
        .arg("replication")
        .query_async(connection)
        .await;
    match told {
        Ok(text) => Ok(text
            .lines()
            .find_map(|line| line.trim().strip_prefix("master_replid:"))
            .unwrap_or_default()
            .to_owned()),
        // Some hosted servers and narrow rights do not tell: the incarnation and the sweep remain.
        Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// Removes all that the queue holds, its incarnation first: everybody then waits for the refill.
async fn wipe(connection: &mut MultiplexedConnection, base: &str) -> Result<(), RedisError> {
    redis::cmd("DEL")
        .arg(format!("{base}incarnation"))
        .query_async::<()>(connection)
        .await?;
    // The hash tag's braces mean nothing in a pattern.
    let pattern = format!("{base}*");
    let mut cursor = 0_u64;
    loop {
        let (next, names): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(&pattern)
            .arg("COUNT")
            .arg(PAGE)
            .query_async(connection)
            .await?;
        if !names.is_empty() {
            redis::cmd("UNLINK")
                .arg(names)
                .query_async::<()>(connection)
                .await?;
        }
        cursor = next;
        if cursor == 0 {
            return Ok(());
        }
    }
}

/// Pushes what commits of this process have made claimable.
#[derive(Debug)]
pub(crate) struct Forward {
    link: Arc<Link>,
    ledger: Ledger,
    readied: tokio::sync::Mutex<broadcast::Receiver<Arc<[Readied]>>>,
}

impl Forward {
    pub(crate) fn new(link: Arc<Link>, ledger: Ledger) -> Self {
        let readied = tokio::sync::Mutex::new(ledger.readied());
        Self {
            link,
            ledger,
            readied,
        }
    }

    /// Pushes as soon as there is something.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        // They are read where a worker that takes can read them too, before it takes.
        let mut signal = self.ledger.readied();
        loop {
            tokio::select! {
                told = signal.recv() => match told {
                    Ok(_) | Err(RecvError::Lagged(_)) => self.pending().await,
                    Err(RecvError::Closed) => return,
                },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Pushes what there is now.
    pub(crate) async fn pending(&self) {
        let mut readied = self.readied.lock().await;
        loop {
            let mut jobs = Vec::new();
            while jobs.len() < MAX_PENDING {
                match readied.try_recv() {
                    Ok(some) => jobs.extend_from_slice(&some),
                    Err(TryRecvError::Lagged(_)) => self.link.missed(),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            if jobs.is_empty() {
                return;
            }
            self.push(jobs).await;
        }
    }

    async fn push(&self, mut readied: Vec<Readied>) {
        let Some((mut connection, incarnation)) = self.link.up().await else {
            return self.link.missed();
        };
        let caller = Caller {
            base: &self.link.base,
            incarnation: &incarnation,
            ageing: self.ledger.ageing(),
        };
        while !readied.is_empty() {
            let page = readied.drain(..PAGE.min(readied.len()));
            let pushed = async {
                let jobs = self.ledger.queued(page).await?;
                push(&caller, &mut connection, &jobs).await
            };
            match pushed.await {
                Ok(_) => continue,
                Err(Interrupted::Redis(error)) => self.link.failed("pushing", &error).await,
                Err(Interrupted::Ledger(error)) => {
                    tracing::warn!(%error, "jobs that became claimable could not be read to be pushed: they are found by filling the queue again");
                }
                Err(Interrupted::Overtaken) => {}
            }
            return self.link.missed();
        }
    }
}
