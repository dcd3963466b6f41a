//! The order that the scripts make, beside a model of it that is small enough to be read: random pushes and pops give the same
//! jobs in the same order.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::OnceLock,
    time::Duration,
};

use fettler_ledger::QueuedJob;
use fettler_model::{JobId, JobKindName, Priority, SlotClass, Timestamp};
use fettler_test_servers::{RedisOptions, RedisServer};
use proptest::prelude::*;

use crate::scripts::{Caller, Entry, Memory, Verdict, Work, watch};

/// No job rises within a test.
const AGEING: Duration = Duration::from_secs(3600);
const TENANTS: [&str; 4] = ["a", "b", "c", "d"];
const WEIGHTS: [f64; 4] = [1.0, 2.0, 0.5, 1.0];
const KINDS: [&str; 3] = ["k-0", "k-1", "k-2"];

#[derive(Clone, Debug)]
enum Step {
    /// A job of this tenant, kind and level.
    Push(usize, usize, i64),
    /// A worker with this room and these kinds.
    Pop(usize, Vec<usize>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let push = (0..TENANTS.len(), 0..KINDS.len(), 0..=4_i64)
        .prop_map(|(tenant, kind, level)| Step::Push(tenant, kind, level));
    let pop = (1..6_usize, prop::sample::subsequence(vec![0, 1, 2], 1..=3))
        .prop_map(|(room, kinds)| Step::Pop(room, kinds));
    prop::collection::vec(prop_oneof![3 => push, 1 => pop], 1..80)
}

/// A tenant's jobs of one kind, in the order of rank, with their levels.
type Jobs = BTreeSet<(i64, JobId, i64)>;

/// The order in words of Rust.
#[derive(Default)]
struct Model {
    /// By kind and tenant.
    queues: BTreeMap<(usize, usize), Jobs>,
    /// In which level's ring each queue stands.
    places: HashMap<(usize, usize), i64>,
    /// By level and tenant.
    turns: HashMap<(i64, usize), f64>,
    /// By level.
    current: HashMap<i64, f64>,
}

impl Model {
    fn place(&mut self, kind: usize, tenant: usize) {
        let head = self
            .queues
            .get(&(kind, tenant))
            .and_then(|queue| queue.first());
        let Some((_, _, level)) = head.copied() else {
            self.places.remove(&(kind, tenant));
            return;
        };
        if self.places.insert((kind, tenant), level) != Some(level) {
            let turn = self.turns.entry((level, tenant)).or_default();
            *turn = turn.max(self.current.get(&level).copied().unwrap_or_default());
        }
    }

    fn push(&mut self, kind: usize, tenant: usize, level: i64, rank: i64, id: JobId) {
        self.queues
            .entry((kind, tenant))
            .or_default()
            .insert((rank, id, level));
        self.place(kind, tenant);
    }

    fn pop(&mut self, kinds: &[usize]) -> Option<JobId> {
        let (kind, tenant) = kinds
            .iter()
            .filter_map(|kind| {
                // The first of a kind: the highest level, the earliest turn, the first name.
                self.places
                    .iter()
                    .filter(|((of, _), _)| of == kind)
                    .map(|((_, tenant), level)| (-level, self.turns[&(*level, *tenant)], *tenant))
                    .min_by(|a, b| a.partial_cmp(b).expect("turns are numbers"))
                    .map(|(level, turn, tenant)| {
                        let (rank, _, _) = self.queues[&(*kind, tenant)]
                            .first()
                            .expect("a queue in a ring is not empty");
                        (level, turn, *rank, *kind, tenant)
                    })
            })
            .min_by(|a, b| a.partial_cmp(b).expect("turns are numbers"))
            .map(|(_, _, _, kind, tenant)| (kind, tenant))?;
        let (_, id, level) = self
            .queues
            .get_mut(&(kind, tenant))
            .and_then(BTreeSet::pop_first)
            .expect("it was seen");
        let turn = self.turns[&(level, tenant)];
        let current = self.current.entry(level).or_default();
        *current = current.max(turn);
        self.turns
            .insert((level, tenant), turn + 1.0 / WEIGHTS[tenant]);
        self.place(kind, tenant);
        Some(id)
    }
}

async fn compare(url: &str, base: &str, steps: &[Step]) {
    let mut connection = redis::Client::open(url)
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap();
    let lease = Duration::from_secs(60);
    let watched = watch(&mut connection, base, "", "test", lease, false)
        .await
        .unwrap();
    assert!(matches!(watched.work, Work::Refill { .. }));
    let weights: Vec<(&str, f64)> = TENANTS.into_iter().zip(WEIGHTS).collect();
    redis::cmd("HSET")
        .arg(format!("{base}weights"))
        .arg(weights)
        .query_async::<()>(&mut connection)
        .await
        .unwrap();
    let caller = Caller {
        base,
        incarnation: &watched.incarnation,
        ageing: AGEING,
    };
    let kinds: Vec<JobKindName> = KINDS.iter().map(|kind| kind.parse().unwrap()).collect();
    let mut model = Model::default();
    let start = Timestamp::now().micros();
    for (n, step) in (0..).zip(steps) {
        match step {
            Step::Push(tenant, kind, level) => {
                let ageing = i64::try_from(AGEING.as_micros()).unwrap();
                // Every rank once; the scripts break the last tie by names and the model by numbers.
                let rank = start - level * ageing - n * 1_000;
                let job = QueuedJob {
                    id: JobId::new(),
                    attempt: 0,
                    tenant: TENANTS[*tenant].parse().unwrap(),
                    priority: Priority::from_level(*level),
                    kind: kinds[*kind].clone(),
                    kind_version: 1,
                    line: String::new(),
                    slot: SlotClass::Short,
                    rank: Timestamp::from_micros(rank),
                };
                let entry = Entry::of_job(&job);
                let first = caller
                    .push(&mut connection, std::slice::from_ref(&entry))
                    .await;
                assert_eq!(first.unwrap(), Memory::Known(1));
                let again = caller.push(&mut connection, &[entry]).await;
                assert_eq!(again.unwrap(), Memory::Known(0));
                model.push(*kind, *tenant, *level, rank, job.id);
            }
            Step::Pop(room, of) => {
                let mine: Vec<String> = of.iter().map(|kind| kinds[*kind].to_string()).collect();
                let popped = caller
                    .pop(&mut connection, &mine, (0, *room), lease)
                    .await
                    .unwrap();
                let Memory::Known(popped) = popped else {
                    panic!("the memory is known");
                };
                let expected: Vec<JobId> =
                    std::iter::from_fn(|| model.pop(of)).take(*room).collect();
                let got: Vec<JobId> = popped.deliveries.iter().map(|one| one.id).collect();
                assert_eq!(got, expected);
                let verdicts: Vec<_> = popped
                    .deliveries
                    .into_iter()
                    .map(|one| (one, Verdict::Claimed))
                    .collect();
                caller
                    .settle(&mut connection, &verdicts, Duration::ZERO)
                    .await
                    .unwrap();
            }
        }
    }
    let left: usize = model.queues.values().map(BTreeSet::len).sum();
    let known: usize = redis::cmd("HLEN")
        .arg(format!("{base}jobs"))
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(known, left, "nothing is left behind");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rule_16_the_scripts_make_the_order_of_the_model(steps in steps()) {
        static SERVER: OnceLock<(RedisServer, tokio::runtime::Runtime)> = OnceLock::new();
        let (server, runtime) = SERVER.get_or_init(|| {
            let server = RedisServer::start(RedisOptions::new()).unwrap();
            (server, tokio::runtime::Runtime::new().unwrap())
        });
        let base = format!("fettler:{{{}}}:", JobId::new());
        runtime.block_on(compare(&server.url(), &base, &steps));
    }
}
