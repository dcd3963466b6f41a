//! Random orders of submits, claims, ends, cancellations and lost leases, each beside a model in memory:
//! no job is lost (P1), none runs twice (P2), no database is held twice, and nobody stays parked
//! (rule 4) whatever came before what.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{collections::HashMap, time::Duration};

use fettler_ledger::{
    ClaimRequest, Claimed, DatabaseRecord, DatabaseTerms, Ended, Ending, Fencing, Ledger,
    LedgerError, LedgerOptions, WorkerSkills,
};
use fettler_model::{
    DatabaseId, DatabaseUrl, ExclusionClass, JobId, JobRequest, JobState, JobTerms, Priority,
    Problem, SlotClass, TenantId, Timestamp,
};
use proptest::prelude::*;

/// One thing that somebody does. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        database: Option<usize>,
        priority: i64,
    },
    Claim {
        room: usize,
    },
    Succeed {
        of: usize,
    },
    Fail {
        of: usize,
    },
    Drain {
        of: usize,
    },
    Repeat {
        of: usize,
    },
    Cancel {
        of: usize,
    },
    LoseAll,
    Identify {
        database: usize,
    },
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    let of = 0..64usize;
    prop_oneof![
        4 => (proptest::option::weighted(0.7, 0..3usize), 0..5i64)
            .prop_map(|(database, priority)| Step::Submit { database, priority }),
        4 => (1..4usize).prop_map(|room| Step::Claim { room }),
        3 => of.clone().prop_map(|of| Step::Succeed { of }),
        1 => of.clone().prop_map(|of| Step::Fail { of }),
        2 => of.clone().prop_map(|of| Step::Drain { of }),
        1 => of.clone().prop_map(|of| Step::Repeat { of }),
        1 => of.prop_map(|of| Step::Cancel { of }),
        1 => Just(Step::LoseAll),
        1 => (0..3usize).prop_map(|database| Step::Identify { database }),
        1 => Just(Step::Expire),
    ]
}

/// What the model knows of a job.
#[derive(Clone, Debug, PartialEq)]
enum Known {
    Queued,
    Running { token: Fencing, cancel: bool },
    Final,
}

struct World {
    ledger: Ledger,
    databases: Vec<DatabaseId>,
    order: Vec<JobId>,
    jobs: HashMap<JobId, (Option<usize>, Known)>,
    /// Claims whose attempt is over.
    stale: Vec<Fencing>,
}

impl World {
    async fn new(folder: &tempfile::TempDir) -> Self {
        let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
        let options = LedgerOptions {
            retry_base: Duration::ZERO,
            connections: 2,
            ..LedgerOptions::default()
        };
        let ledger = Ledger::open_with(&url, options).await.unwrap();
        let mut databases = Vec::new();
        for n in 0..3 {
            let (url, _) = DatabaseUrl::parse_with_password(&format!("/data/{n}.sqlite")).unwrap();
            let record = DatabaseRecord {
                id: DatabaseId::new(),
                tenant: TenantId::default_tenant(),
                name: format!("db{n}").parse().unwrap(),
                url,
                password: None,
                identity_key: None,
                labels: Default::default(),
                sandbox: serde_json::Value::Null,
                created: Timestamp::from_micros(0),
                terms: DatabaseTerms::default(),
            };
            databases.push(ledger.add_database(&record).await.unwrap().id);
        }
        Self {
            ledger,
            databases,
            order: Vec::new(),
            jobs: HashMap::new(),
            stale: Vec::new(),
        }
    }

    fn running(&self) -> Vec<(JobId, Fencing)> {
        let running = self.order.iter().filter_map(|id| match &self.jobs[id].1 {
            Known::Running { token, .. } => Some((*id, *token)),
            _ => None,
        });
        running.collect()
    }

    async fn claim(&mut self, room: usize) -> usize {
        let request = ClaimRequest {
            worker: "worker".to_owned(),
            kinds: vec!["noop".parse().unwrap()],
            long: 0,
            short: room,
            // Every lease has run out when somebody looks.
            lease: Duration::ZERO,
            skills: WorkerSkills::default(),
            only: None,
        };
        let jobs = self.ledger.claim(&request).await.unwrap().jobs;
        for Claimed { job, token, .. } in &jobs {
            let fencing = Fencing {
                job: job.id,
                token: *token,
            };
            let (database, known) = self.jobs[&job.id].clone();
            assert_eq!(known, Known::Queued, "{} is claimed once", job.id);
            if let Some(database) = database {
                for (other, _) in self.running() {
                    assert_ne!(
                        self.jobs[&other].0,
                        Some(database),
                        "a database is held once"
                    );
                }
            }
            self.set(
                job.id,
                Known::Running {
                    token: fencing,
                    cancel: false,
                },
            );
        }
        jobs.len()
    }

    fn set(&mut self, job: JobId, known: Known) {
        self.jobs.get_mut(&job).unwrap().1 = known;
    }

    async fn end(&mut self, of: usize, ending: Ending) {
        let running = self.running();
        if running.is_empty() {
            return;
        }
        let (job, fencing) = running[of % running.len()];
        let cancel = matches!(self.jobs[&job].1, Known::Running { cancel: true, .. });
        let succeeded = matches!(ending, Ending::Succeeded { .. });
        let ended = self.ledger.complete(fencing, ending).await.unwrap();
        match ended {
            Ended::Final(state) => {
                assert_eq!(state == JobState::Cancelled, cancel && !succeeded);
                self.set(job, Known::Final);
            }
            Ended::Queued { .. } => {
                assert!(!cancel && !succeeded);
                self.set(job, Known::Queued);
            }
        }
        self.stale.push(fencing);
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Submit { database, priority } => {
                let request = JobRequest {
                    tenant: TenantId::default_tenant(),
                    kind: "noop".parse().unwrap(),
                    kind_version: 1,
                    database: database.map(|n| self.databases[n]),
                    arguments: serde_json::Value::Null,
                    exclusion: ExclusionClass::Write,
                    slot: SlotClass::Short,
                    priority: Priority::from_level(priority),
                    not_before: None,
                    deadline: None,
                    max_tries: 2,
                    unique_key: None,
                    retry_of: None,
                    tags: Vec::new(),
                    terms: JobTerms::default(),
                };
                let job = self.ledger.submit(request, None).await.unwrap().job;
                self.order.push(job);
                self.jobs.insert(job, (database, Known::Queued));
            }
            Step::Claim { room } => {
                self.claim(room).await;
            }
            Step::Succeed { of } => {
                let result = serde_json::Value::Null;
                self.end(of, Ending::Succeeded { result }).await;
            }
            Step::Fail { of } => {
                let problem = Problem::transient("test.failed", "failed", "");
                self.end(of, Ending::Failed { problem }).await;
            }
            Step::Drain { of } => {
                let problem = Problem::interrupted();
                self.end(of, Ending::Failed { problem }).await;
            }
            Step::Repeat { of } => {
                if self.stale.is_empty() {
                    return;
                }
                // What an attempt that is over says once more changes nothing.
                let stale = self.stale[of % self.stale.len()];
                let before = self.ledger.job(stale.job).await.unwrap();
                let problem = Problem::permanent("test.zombie", "zombie", "");
                let said = self
                    .ledger
                    .complete(stale, Ending::Failed { problem })
                    .await;
                if let Err(error) = said {
                    assert!(matches!(error, LedgerError::Superseded { .. }));
                }
                assert_eq!(self.ledger.job(stale.job).await.unwrap(), before);
            }
            Step::Cancel { of } => {
                if self.order.is_empty() {
                    return;
                }
                let job = self.order[of % self.order.len()];
                self.ledger.request_cancel(job).await.unwrap();
                let known = match self.jobs[&job].1.clone() {
                    Known::Running { token, .. } => Known::Running {
                        token,
                        cancel: true,
                    },
                    _ => Known::Final,
                };
                self.set(job, known);
            }
            Step::LoseAll => {
                let running = self.running();
                let mut lost = 0;
                // The clock ticks in microseconds: a lease of nothing may end at this very one.
                while lost < running.len() {
                    for rescued in self.ledger.rescue(Duration::ZERO).await.unwrap() {
                        lost += 1;
                        let known = match rescued.ended {
                            Ended::Final(_) => Known::Final,
                            Ended::Queued { .. } => Known::Queued,
                        };
                        self.set(rescued.job, known);
                    }
                }
                self.stale
                    .extend(running.into_iter().map(|(_, fencing)| fencing));
            }
            Step::Identify { database } => {
                let key = format!("identity of {database}");
                let id = self.databases[database];
                self.ledger.set_identity(id, &key, None).await.unwrap();
            }
            Step::Expire => {
                assert_eq!(self.ledger.expire().await.unwrap(), []);
            }
        }
        let counts = self.ledger.counts().await.unwrap();
        let queued = self
            .jobs
            .values()
            .filter(|(_, known)| *known == Known::Queued)
            .count();
        assert_eq!(counts.queued, queued as u64);
        assert_eq!(counts.running, self.running().len() as u64);
    }

    /// Runs what is left. No net is needed: nobody is forgotten at a resource.
    async fn finish(mut self) {
        loop {
            while !self.running().is_empty() {
                self.end(
                    0,
                    Ending::Succeeded {
                        result: serde_json::Value::Null,
                    },
                )
                .await;
            }
            if self.claim(3).await == 0 {
                break;
            }
        }
        for (job, (_, known)) in &self.jobs {
            assert_eq!(*known, Known::Final, "{job} was left behind");
            assert!(self.ledger.job(*job).await.unwrap().state.is_final());
        }
        self.ledger.close().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_no_job_is_lost_doubled_or_left_behind(steps in proptest::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let mut world = World::new(&folder).await;
            for step in steps {
                world.step(step).await;
            }
            world.finish().await;
        });
    }
}
