//! The queue: pops ids from Redis, claims them in the ledger, settles what became of them.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use fettler_ledger::{ClaimRequest, ClaimedBatch, Ledger, WorkerSkills};
use fettler_model::{JobId, JobKindName};
use fettler_queue::{Arrivals, Queue, QueueError, WireItem};
use redis::aio::MultiplexedConnection;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    RedisQueueOptions,
    bell::{self, RedisArrivals},
    keeper::{Forward, Keeper},
    link::{Link, State, unavailable},
    scripts::{Caller, Entry, InFlight, MAX_ITEMS, Memory, Popped, Verdict, wire_kind},
};

/// How long a worker pops by what was read of the routes to databases: so much later it hears of a new one.
const LINES_KEPT: Duration = Duration::from_secs(1);
/// How many pops in a row may give nothing but what the ledger refuses, before others have their turn.
const ROUNDS: usize = 32;

/// The queue of a fleet: Redis delivers, the ledger decides.
///
/// Three tasks in the background belong to it, and end when it is dropped: one keeps the memory of Redis true, one pushes
/// what commits through this ledger's handle make claimable, one listens for pushes of others.
pub struct RedisQueue {
    link: Arc<Link>,
    ledger: Ledger,
    forward: Arc<Forward>,
    pace: Mutex<Pace>,
    lines: Mutex<Option<Lines>>,
    _tasks: DropGuard,
}

/// What a worker of this process was found to serve.
#[derive(Debug)]
struct Lines {
    read: Instant,
    kinds: Vec<JobKindName>,
    skills: WorkerSkills,
    wire: Vec<String>,
}

/// When the ledger was last asked beside the claims of deliveries.
#[derive(Debug, Default)]
struct Pace {
    fell_back: Option<Instant>,
    looked: Option<Instant>,
}

impl fmt::Debug for RedisQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisQueue")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl RedisQueue {
    /// Starts the queue over this ledger, within a runtime. Redis need not be there: until it is, jobs are claimed from the
    /// ledger (rule 14).
    ///
    /// # Errors
    ///
    /// When the URL or the fleet's name cannot be used.
    pub fn start(ledger: Ledger, options: RedisQueueOptions) -> Result<Self, QueueError> {
        let link = Arc::new(Link::new(options)?);
        let stop = CancellationToken::new();
        let forward = Arc::new(Forward::new(link.clone(), ledger.clone()));
        tokio::spawn(Keeper::new(link.clone(), ledger.clone()).run(stop.clone()));
        tokio::spawn(forward.clone().run(stop.clone()));
        tokio::spawn(bell::listen(link.clone(), stop.clone()));
        Ok(Self {
            link,
            ledger,
            forward,
            pace: Mutex::default(),
            lines: Mutex::default(),
            _tasks: stop.drop_guard(),
        })
    }

    /// Whether Redis answers, as far as this process knows.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.link.state(), State::Up { .. })
    }

    /// What a worker pops: its kinds, in all versions that it knows and for all databases that it reaches.
    async fn kinds_of(&self, request: &ClaimRequest) -> Result<Vec<String>, QueueError> {
        {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(lines) = &*lines
                && lines.read.elapsed() < LINES_KEPT
                && lines.kinds == request.kinds
                && lines.skills == request.skills
            {
                return Ok(lines.wire.clone());
            }
        }
        let wire: Vec<String> = self
            .ledger
            .lines_for(request)
            .await?
            .iter()
            .map(|(kind, line)| wire_kind(kind, line))
            .collect();
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner) = Some(Lines {
            read: Instant::now(),
            kinds: request.kinds.clone(),
            skills: request.skills.clone(),
            wire: wire.clone(),
        });
        Ok(wire)
    }

    /// Claims from the ledger itself, at a bounded rate.
    async fn claim_slowly(&self, request: &ClaimRequest) -> Result<ClaimedBatch, QueueError> {
        let every = self.link.options.fallback_every;
        if let Some(left) = self.pace(every, |pace| &mut pace.fell_back) {
            return Ok(nothing(Some(left)));
        }
        let mut batch = self.ledger.claim(request).await?;
        if batch.jobs.is_empty() {
            // Nobody rings while Redis is away.
            batch.next_due_in = Some(batch.next_due_in.map_or(every, |due| due.min(every)));
        }
        Ok(batch)
    }

    /// Asks the ledger for what is due, and says that the worker is there.
    async fn look(
        &self,
        request: &ClaimRequest,
        next_back: Option<Duration>,
    ) -> Result<ClaimedBatch, QueueError> {
        let every = self.link.options.look_every;
        if let Some(left) = self.pace(every, |pace| &mut pace.looked) {
            return Ok(nothing(Some(next_back.map_or(left, |back| back.min(left)))));
        }
        let mut batch = self.ledger.claim_by_ids(request, &[]).await?;
        batch.next_due_in = [batch.next_due_in, next_back].into_iter().flatten().min();
        Ok(batch)
    }

    /// Remembers that something is done now, or says how long to wait until it may be.
    fn pace(
        &self,
        every: Duration,
        last: impl FnOnce(&mut Pace) -> &mut Option<Instant>,
    ) -> Option<Duration> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last(&mut pace);
        if let Some(at) = last {
            let left = every.saturating_sub(at.elapsed());
            if !left.is_zero() {
                return Some(left);
            }
        }
        *last = Some(Instant::now());
        None
    }

    /// Claims deliveries in the ledger and settles them.
    async fn claim(
        &self,
        request: &ClaimRequest,
        connection: &MultiplexedConnection,
        caller: &Caller<'_>,
        deliveries: &[InFlight],
    ) -> Result<ClaimedBatch, QueueError> {
        let ids: Vec<JobId> = deliveries.iter().map(|delivery| delivery.id).collect();
        fettler_fault_points::reached(fettler_fault_points::Point::WirePopped);
        let claim = self.ledger.claim_by_ids(request, &ids).await;
        let claimed: HashSet<JobId> = claim
            .iter()
            .flat_map(|batch| &batch.jobs)
            .map(|claimed| claimed.job.id)
            .collect();
        let left: Vec<JobId> = ids
            .iter()
            .copied()
            .filter(|id| !claimed.contains(id))
            .collect();
        // What was locked by somebody else at this moment is neither claimed nor refused.
        let undecided: HashSet<JobId> = if claim.is_err() {
            left.into_iter().collect()
        } else {
            match self.ledger.queued_among(&left).await {
                Ok(jobs) => jobs.iter().map(|job| job.id).collect(),
                Err(error) => {
                    tracing::debug!(%error, "what the ledger refused could not be read: it is delivered again");
                    left.into_iter().collect()
                }
            }
        };
        let verdicts: Vec<(InFlight, Verdict)> = deliveries
            .iter()
            .map(|delivery| {
                let verdict = if claimed.contains(&delivery.id) {
                    Verdict::Claimed
                } else if undecided.contains(&delivery.id) {
                    Verdict::Undecided
                } else {
                    Verdict::Refused
                };
                (*delivery, verdict)
            })
            .collect();
        self.settle(connection.clone(), caller.incarnation, verdicts);
        let mut batch = claim?;
        let place: HashMap<JobId, usize> = ids.into_iter().zip(0..).collect();
        batch
            .jobs
            .sort_by_key(|claimed| place.get(&claimed.job.id).copied());
        Ok(batch)
    }

    /// Tells Redis what became of deliveries, while the jobs already start. What is not told comes back, and the ledger
    /// refuses it then.
    fn settle(
        &self,
        mut connection: MultiplexedConnection,
        incarnation: &str,
        verdicts: Vec<(InFlight, Verdict)>,
    ) {
        let (link, incarnation) = (self.link.clone(), incarnation.to_owned());
        let ageing = self.ledger.ageing();
        tokio::spawn(async move {
            let caller = Caller {
                base: &link.base,
                incarnation: &incarnation,
                ageing,
            };
            let retry_after = link.options.retry_after;
            for some in verdicts.chunks(MAX_ITEMS) {
                if let Err(error) = caller.settle(&mut connection, some, retry_after).await {
                    link.failed("settling deliveries", &error).await;
                    break;
                }
            }
        });
    }
}

#[async_trait]
impl Queue for RedisQueue {
    async fn push(&self, items: &[WireItem]) -> Result<(), QueueError> {
        const DOING: &str = "pushing";
        if items.is_empty() {
            return Ok(());
        }
        self.link.settled().await;
        let Some((mut connection, incarnation)) = self.link.up().await else {
            self.link.missed();
            return Err(QueueError::Unavailable {
                doing: DOING,
                what: "Redis does not answer".to_owned(),
            });
        };
        let ageing = self.ledger.ageing();
        let caller = Caller {
            base: &self.link.base,
            incarnation: &incarnation,
            ageing,
        };
        for some in items.chunks(MAX_ITEMS) {
            let entries: Vec<Entry> = some
                .iter()
                .map(|item| Entry::of_item(item, ageing))
                .collect();
            match caller.push(&mut connection, &entries).await {
                Ok(Memory::Known(_)) => {}
                // It is filled from the ledger, which has these jobs.
                Ok(Memory::Unknown) => {
                    self.link.missed();
                    return Ok(());
                }
                Err(error) => {
                    self.link.failed(DOING, &error).await;
                    self.link.missed();
                    return Err(unavailable(DOING, &error));
                }
            }
        }
        Ok(())
    }

    async fn take(&self, request: &ClaimRequest) -> Result<ClaimedBatch, QueueError> {
        if request.only.is_some() {
            return Ok(self.ledger.claim(request).await?);
        }
        self.link.settled().await;
        for _ in 0..ROUNDS {
            // What this process itself has made claimable takes part in the order.
            self.forward.pending().await;
            let Some((mut connection, incarnation)) = self.link.up().await else {
                return self.claim_slowly(request).await;
            };
            let caller = Caller {
                base: &self.link.base,
                incarnation: &incarnation,
                ageing: self.ledger.ageing(),
            };
            let room = (request.long, request.short);
            let visible_after = self.link.options.visible_after;
            let kinds = self.kinds_of(request).await?;
            let pop = caller.pop(&mut connection, &kinds, room, visible_after);
            let popped = match pop.await {
                Ok(Memory::Known(popped)) => popped,
                Ok(Memory::Unknown) => {
                    self.link.memory_changed();
                    return self.claim_slowly(request).await;
                }
                Err(error) => {
                    self.link.failed("taking jobs", &error).await;
                    return self.claim_slowly(request).await;
                }
            };
            say(&popped);
            if popped.deliveries.is_empty() {
                return self.look(request, popped.next_back).await;
            }
            let batch = self
                .claim(request, &connection, &caller, &popped.deliveries)
                .await?;
            if !batch.jobs.is_empty() {
                return Ok(batch);
            }
        }
        Ok(nothing(Some(Duration::ZERO)))
    }

    fn arrivals(&self) -> Box<dyn Arrivals> {
        Box::new(RedisArrivals {
            bell: self.link.bell(),
            ledger: self.ledger.wakeups(),
        })
    }
}

fn nothing(next_due_in: Option<Duration>) -> ClaimedBatch {
    ClaimedBatch {
        jobs: Vec::new(),
        next_due_in,
    }
}

fn say(popped: &Popped) {
    if popped.damaged > 0 {
        tracing::warn!(
            entries = popped.damaged,
            "entries that no push has written were dropped from the queue's Redis"
        );
    }
    if popped.given_back > 0 {
        tracing::info!(
            deliveries = popped.given_back,
            "deliveries that were left behind were given back"
        );
    }
}
