//! The order of the ledger's own claims (rule 16) beside a model of it that is small enough to be read: random
//! submissions and claims give the same jobs in the same order.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fettler_ledger::{
    ClaimRequest, Ending, Fencing, Ledger, LedgerOptions, TenantChange, WorkerSkills,
};
use fettler_model::{ExclusionClass, JobId, JobRequest, JobTerms, Priority, SlotClass, TenantId};
use proptest::prelude::*;
use serde_json::Value;

/// No job rises within a test.
const AGEING: Duration = Duration::from_secs(3600);
const TENANTS: [&str; 4] = ["a", "b", "c", "d"];
const WEIGHTS: [f64; 4] = [1.0, 2.0, 0.5, 1.0];
/// What a job costs each of them, in the same numbers.
const STEPS: [u64; 4] = [2, 1, 4, 2];
const KINDS: [&str; 3] = ["k-0", "k-1", "k-2"];

#[derive(Clone, Debug)]
enum Step {
    /// A job of this tenant, kind and level.
    Submit(usize, usize, i64),
    /// A worker that knows these kinds takes one job.
    Claim(Vec<usize>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let submit = (0..TENANTS.len(), 0..KINDS.len(), 0..=4_i64)
        .prop_map(|(tenant, kind, level)| Step::Submit(tenant, kind, level));
    let claim = prop::sample::subsequence(vec![0, 1, 2], 1..=3).prop_map(Step::Claim);
    prop::collection::vec(prop_oneof![1 => submit, 1 => claim], 1..80)
}

/// The order in words of Rust.
#[derive(Default)]
struct Model {
    /// Level (the highest first), the order of submission, tenant, kind.
    waiting: BTreeSet<(std::cmp::Reverse<i64>, usize, usize, usize)>,
    /// By level and tenant.
    turns: BTreeMap<(i64, usize), u64>,
    /// By level.
    current: BTreeMap<i64, u64>,
}

impl Model {
    fn claim(&mut self, kinds: &[usize]) -> Option<usize> {
        let mine: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, _, _, kind)| kinds.contains(kind))
            .copied()
            .collect();
        let tenants: BTreeSet<usize> = mine.iter().map(|(_, _, tenant, _)| *tenant).collect();
        let turn = |level: i64, tenant: usize| {
            let own = self.turns.get(&(level, tenant)).copied().unwrap_or(0);
            own.max(self.current.get(&level).copied().unwrap_or(0))
        };
        // The level first, then the turn, then the age.
        let best = mine
            .into_iter()
            .min_by_key(|(level, number, tenant, _)| (*level, turn(level.0, *tenant), *number))?;
        let (level, number, tenant, _) = best;
        // A tenant that is alone shares nothing.
        if tenants.len() > 1 {
            let served = turn(level.0, tenant);
            let current = self.current.entry(level.0).or_default();
            *current = served.max(*current);
            self.turns.insert((level.0, tenant), served + STEPS[tenant]);
        }
        self.waiting.remove(&best);
        Some(number)
    }
}

async fn compare(steps: &[Step]) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
    let options = LedgerOptions {
        ageing: AGEING,
        ..LedgerOptions::default()
    };
    let ledger = Ledger::open_with(&url, options).await.unwrap();
    for (tenant, weight) in TENANTS.into_iter().zip(WEIGHTS) {
        let tenant: TenantId = tenant.parse().unwrap();
        ledger.add_tenant(&tenant).await.unwrap();
        let change = TenantChange {
            weight: Some(weight),
            ..TenantChange::default()
        };
        ledger.edit_tenant(&tenant, change).await.unwrap();
    }
    let mut model = Model::default();
    let mut numbers: BTreeMap<JobId, usize> = BTreeMap::new();
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Submit(tenant, kind, level) => {
                let request = JobRequest {
                    tenant: TENANTS[*tenant].parse().unwrap(),
                    kind: KINDS[*kind].parse().unwrap(),
                    kind_version: 1,
                    database: None,
                    arguments: Value::Null,
                    exclusion: ExclusionClass::Free,
                    slot: SlotClass::Short,
                    priority: Priority::from_level(*level),
                    not_before: None,
                    deadline: None,
                    max_tries: 1,
                    unique_key: None,
                    retry_of: None,
                    tags: Vec::new(),
                    terms: JobTerms::default(),
                };
                let job = ledger.submit(request, None).await.unwrap().job;
                numbers.insert(job, number);
                let level = std::cmp::Reverse(*level);
                model.waiting.insert((level, number, *tenant, *kind));
            }
            Step::Claim(kinds) => {
                let request = ClaimRequest {
                    worker: "worker".to_owned(),
                    kinds: kinds
                        .iter()
                        .map(|kind| KINDS[*kind].parse().unwrap())
                        .collect(),
                    long: 0,
                    short: 1,
                    lease: AGEING,
                    only: None,
                    skills: WorkerSkills::default(),
                };
                let claimed = ledger.claim(&request).await.unwrap().jobs;
                let got: Vec<usize> = claimed.iter().map(|one| numbers[&one.job.id]).collect();
                assert_eq!(got, Vec::from_iter(model.claim(kinds)), "step {number}");
                for one in claimed {
                    let fencing = Fencing {
                        job: one.job.id,
                        token: one.token,
                    };
                    let result = Value::Null;
                    ledger
                        .complete(fencing, Ending::Succeeded { result })
                        .await
                        .unwrap();
                }
            }
        }
    }
    ledger.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rule_16_the_claims_make_the_order_of_the_model(steps in steps()) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(compare(&steps));
    }
}
