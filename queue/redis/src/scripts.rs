//! The Lua scripts and what they take and give. Each changes the order in one step, on one node.

use std::{sync::LazyLock, time::Duration};

use fettler_ledger::QueuedJob;
use fettler_model::{JobId, JobKindName, SlotClass, Timestamp};
use fettler_queue::WireItem;
use redis::{RedisResult, Script, aio::MultiplexedConnection};

macro_rules! script {
    ($($file:literal),+) => {
        LazyLock::new(|| Script::new(concat!($(include_str!(concat!("lua/", $file))),+)))
    };
}

static PUSH: LazyLock<Script> = script!("common.lua", "push.lua");
static POP: LazyLock<Script> = script!("common.lua", "pop.lua");
static SETTLE: LazyLock<Script> = script!("common.lua", "settle.lua");
static WATCH: LazyLock<Script> = script!("watch.lua");
static FILLER: LazyLock<Script> = script!("filler.lua");

/// How many jobs one call pushes or settles: a call holds all of Redis up for about a millisecond.
pub(crate) const MAX_ITEMS: usize = 100;
/// How many jobs one call pops.
const MAX_POP: usize = 200;
/// How many kinds of a worker one call looks at.
const MAX_KINDS: usize = 256;

/// A job as the wire keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: JobId,
    record: String,
}

impl Entry {
    /// A job that somebody pushes; its place follows from its age and priority.
    pub(crate) fn of_item(item: &WireItem, ageing: Duration) -> Self {
        let rank = item
            .since
            .micros()
            .saturating_sub(micros(ageing).saturating_mul(item.priority.level()));
        Self::new(
            item.id,
            item.generation,
            item.slot,
            &wire_kind(&item.kind, &item.line),
            item.tenant.as_str(),
            rank,
            item.kind_version,
        )
    }

    /// A job as the ledger has it.
    pub(crate) fn of_job(job: &QueuedJob) -> Self {
        Self::new(
            job.id,
            job.attempt,
            job.slot,
            &wire_kind(&job.kind, &job.line),
            job.tenant.as_str(),
            Timestamp::micros(job.rank),
            job.kind_version,
        )
    }

    fn new(
        id: JobId,
        generation: u32,
        slot: SlotClass,
        kind: &str,
        tenant: &str,
        rank: i64,
        version: u32,
    ) -> Self {
        let slot = match slot {
            SlotClass::Long => 'l',
            SlotClass::Short => 's',
        };
        Self {
            id,
            record: format!("{generation} {slot} {kind} {tenant} {rank} {version}"),
        }
    }
}

/// A kind and a line of it, as the wire calls them: what a worker announces and pops.
pub(crate) fn wire_kind(kind: &JobKindName, line: &str) -> String {
    if line.is_empty() {
        kind.to_string()
    } else {
        format!("{kind}~{}", line.replace(' ', "~"))
    }
}

/// What a call found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory<T> {
    /// The memory that was known.
    Known(T),
    /// Another one: it is filled before it is used.
    Unknown,
}

/// A delivery in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InFlight {
    pub(crate) id: JobId,
    pub(crate) generation: u32,
}

/// What a pop gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Popped {
    pub(crate) deliveries: Vec<InFlight>,
    /// When a delivery that another has in flight comes back, unless it is settled.
    pub(crate) next_back: Option<Duration>,
    /// Entries that no push has written.
    pub(crate) damaged: u64,
    /// Deliveries that their popper left behind.
    pub(crate) given_back: u64,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Claimed,
    Refused,
    Undecided,
}

impl Verdict {
    const fn letter(self) -> &'static str {
        match self {
            Self::Claimed => "c",
            Self::Refused => "r",
            Self::Undecided => "w",
        }
    }
}

/// What a look at the memory gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) incarnation: String,
    pub(crate) work: Work,
}

/// What the one that looked is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Nothing,
    /// Push all that is queued. The mark names the request.
    Refill {
        mark: String,
    },
    /// Compare all that is queued.
    Sweep,
}

/// What the scripts are called with.
#[derive(Clone, Debug)]
pub(crate) struct Caller<'c> {
    pub(crate) base: &'c str,
    pub(crate) incarnation: &'c str,
    pub(crate) ageing: Duration,
}

impl Caller<'_> {
    fn ageing(&self) -> i64 {
        micros(self.ageing).max(1)
    }

    /// Pushes up to [`MAX_ITEMS`]; says how many were new.
    pub(crate) async fn push(
        &self,
        connection: &mut MultiplexedConnection,
        entries: &[Entry],
    ) -> RedisResult<Memory<u64>> {
        let mut call = PUSH.prepare_invoke();
        call.key(self.base).arg(self.incarnation).arg(self.ageing());
        for entry in entries {
            call.arg(entry.id.to_string()).arg(&entry.record);
        }
        let added: i64 = call.invoke_async(connection).await?;
        Ok(u64::try_from(added).map_or(Memory::Unknown, Memory::Known))
    }

    /// Pops what there is for this room and these kinds.
    pub(crate) async fn pop(
        &self,
        connection: &mut MultiplexedConnection,
        kinds: &[String],
        (long, short): (usize, usize),
        visible_after: Duration,
    ) -> RedisResult<Memory<Popped>> {
        let mut call = POP.prepare_invoke();
        call.key(self.base)
            .arg(self.incarnation)
            .arg(self.ageing())
            .arg(millis(visible_after))
            .arg(long.min(MAX_POP))
            .arg(short.min(MAX_POP));
        for kind in kinds.iter().take(MAX_KINDS) {
            call.arg(kind);
        }
        let (known, next_back, damaged, given_back, flat): (i64, i64, u64, u64, Vec<String>) =
            call.invoke_async(connection).await?;
        if known != 1 {
            return Ok(Memory::Unknown);
        }
        let mut popped = Popped {
            deliveries: Vec::with_capacity(flat.len() / 2),
            next_back: u64::try_from(next_back).ok().map(Duration::from_millis),
            damaged,
            given_back,
        };
        for pair in flat.chunks_exact(2) {
            // An id that is none stays in flight and comes back: it is dropped there by `forget`.
            match (pair[0].parse(), pair[1].parse()) {
                (Ok(id), Ok(generation)) => popped.deliveries.push(InFlight { id, generation }),
                _ => {
                    popped.damaged += 1;
                    self.forget(connection, &pair[0]).await?;
                }
            }
        }
        Ok(Memory::Known(popped))
    }

    /// Drops an entry whose name is not an id.
    async fn forget(&self, connection: &mut MultiplexedConnection, name: &str) -> RedisResult<()> {
        redis::pipe()
            .atomic()
            .zrem(format!("{}flight", self.base), name)
            .ignore()
            .hdel(format!("{}jobs", self.base), name)
            .ignore()
            .query_async(connection)
            .await
    }

    /// Settles up to [`MAX_ITEMS`] deliveries.
    pub(crate) async fn settle(
        &self,
        connection: &mut MultiplexedConnection,
        verdicts: &[(InFlight, Verdict)],
        retry_after: Duration,
    ) -> RedisResult<()> {
        let mut call = SETTLE.prepare_invoke();
        call.key(self.base)
            .arg(self.incarnation)
            .arg(self.ageing())
            .arg(millis(retry_after));
        for (delivery, verdict) in verdicts {
            call.arg(delivery.id.to_string())
                .arg(delivery.generation)
                .arg(verdict.letter());
        }
        // A memory that is not known any more has nothing in flight.
        let _requeued: i64 = call.invoke_async(connection).await?;
        Ok(())
    }
}

/// Looks at the memory; see `watch.lua`.
pub(crate) async fn watch(
    connection: &mut MultiplexedConnection,
    base: &str,
    replication: &str,
    holder: &str,
    lease: Duration,
    is_missing: bool,
) -> RedisResult<Watched> {
    let (incarnation, work, mark): (String, String, String) = WATCH
        .key(base)
        .arg(uuid::Uuid::new_v4().to_string())
        .arg(replication)
        .arg(holder)
        .arg(millis(lease))
        .arg(u8::from(is_missing))
        .invoke_async(connection)
        .await?;
    let work = match work.as_str() {
        "refill" => Work::Refill { mark },
        "sweep" => Work::Sweep,
        _ => Work::Nothing,
    };
    Ok(Watched { incarnation, work })
}

/// Renews the lease of the one that fills; says whether it still has it.
pub(crate) async fn renew_filler(
    connection: &mut MultiplexedConnection,
    base: &str,
    holder: &str,
    lease: Duration,
) -> RedisResult<bool> {
    let held: i64 = FILLER
        .key(base)
        .arg(holder)
        .arg(millis(lease))
        .arg("renew")
        .invoke_async(connection)
        .await?;
    Ok(held == 1)
}

/// Ends the lease of the one that fills. `done` names the request that was fulfilled, and when the next sweep is.
pub(crate) async fn end_filler(
    connection: &mut MultiplexedConnection,
    base: &str,
    holder: &str,
    done: Option<(&str, Duration)>,
) -> RedisResult<()> {
    let (what, mark, next) = done.map_or(("failed", "", Duration::ZERO), |(mark, next)| {
        ("done", mark, next)
    });
    let _held: i64 = FILLER
        .key(base)
        .arg(holder)
        .arg(0)
        .arg(what)
        .arg(mark)
        .arg(millis(next).max(1))
        .invoke_async(connection)
        .await?;
    Ok(())
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 8)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 8)
}
