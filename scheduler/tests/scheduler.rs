//! Schedulers on a real ledger: each due time is decided once (rule 18), whoever leads; what was missed
//! follows the policy's rule; and backups are followed by what their policies ask for.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use fettler_jobs::{JobContext, JobKind, Registry};
use fettler_ledger::{DatabaseRecord, DatabaseTerms, JobFilter, Ledger, PolicyRecord, TickRecord};
use fettler_model::{
    BackupFacts, BackupId, CatchUp, DatabaseId, DatabaseUrl, Engine, ExclusionClass, JobId,
    JobRequest, JobState, KeepRules, Overlap, PolicyId, PolicySpec, Priority, Problem, ProofFacts,
    ProofVerdict, ProveEvery, SlotClass, TenantId, TickOutcome, Timestamp,
};
use fettler_scheduler::{Scheduler, SchedulerOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const LONG_AGO: Duration = Duration::from_secs(3 * 3600);

macro_rules! kind {
    ($kind:ident, $name:literal) => {
        struct $kind;

        #[async_trait]
        impl JobKind for $kind {
            const NAME: &'static str = $name;
            const EXCLUSION: ExclusionClass = ExclusionClass::Backup;
            const SLOT: SlotClass = SlotClass::Long;
            type Arguments = Value;
            type Output = Value;

            async fn run(&self, _: &JobContext, arguments: Value) -> Result<Value, Problem> {
                Ok(arguments)
            }
        }
    };
}

kind!(Backup, "backup");
kind!(Prove, "prove");
kind!(Retention, "retention");
kind!(Collect, "collect");

struct Fixture {
    folder: TempDir,
    ledger: Ledger,
    tenant: TenantId,
    database: DatabaseId,
}

struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("the scheduler does not panic");
    }

    /// As `kill -9` would: nothing is given up.
    async fn kill(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = open(&folder).await;
        let tenant = TenantId::default_tenant();
        ledger.ensure_tenant(&tenant).await.expect("a tenant");
        let (url, _) = DatabaseUrl::parse_with_password("/tmp/shop.sqlite").expect("a path");
        let record = DatabaseRecord {
            id: DatabaseId::new(),
            tenant: tenant.clone(),
            name: "shop".parse().expect("a name"),
            url,
            password: None,
            identity_key: None,
            labels: BTreeMap::new(),
            sandbox: Value::Null,
            created: Timestamp::now(),
            terms: DatabaseTerms::default(),
        };
        let database = ledger.add_database(&record).await.expect("added").id;
        Self {
            folder,
            ledger,
            tenant,
            database,
        }
    }

    /// A scheduler on a handle of its own, as in another process.
    async fn scheduler(&self) -> Running {
        let registry = Registry::empty()
            .with(Backup)
            .with(Prove)
            .with(Retention)
            .with(Collect);
        let options = SchedulerOptions {
            lead: Duration::from_secs(1),
            ..SchedulerOptions::default()
        };
        let ledger = open(&self.folder).await;
        let scheduler = Scheduler::new("test", ledger, Arc::new(registry), options);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(scheduler.run(shutdown.clone()));
        Running { shutdown, task }
    }

    fn spec(&self, cron: &str) -> PolicySpec {
        PolicySpec {
            kind: "backup".parse().expect("a kind"),
            arguments: json!({}),
            cron: cron.to_owned(),
            time_zone: "UTC".to_owned(),
            catch_up: CatchUp::Once,
            overlap: Overlap::Skip,
            window: None,
            jitter_seconds: 0,
            priority: Priority::Normal,
            keep: None,
            prove: ProveEvery::Never,
            timeout_seconds: None,
            paused: false,
        }
    }

    /// Whoever adds a policy says when it is first due.
    async fn add_policy(&self, spec: PolicySpec, next_due: Option<Timestamp>) -> PolicyId {
        let now = self.ledger.now().await.expect("a clock");
        let next_due = next_due.or_else(|| {
            let plan = fettler_scheduler::PolicyPlan::read(&spec).expect("a policy");
            plan.next_after(now)
        });
        let record = PolicyRecord {
            id: PolicyId::new(),
            tenant: self.tenant.clone(),
            name: format!("p{}", PolicyId::new().short())
                .parse()
                .expect("a name"),
            database: Some(self.database),
            spec,
            next_due,
            last_job: None,
            created: Timestamp::now(),
        };
        self.ledger.add_policy(&record).await.expect("added").id
    }

    async fn ticks(&self, policy: PolicyId) -> Vec<TickRecord> {
        let mut ticks = self.ledger.ticks(policy, 10_000).await.expect("ticks");
        ticks.reverse();
        ticks
    }

    async fn until_ticks(&self, policy: PolicyId, at_least: usize) -> Vec<TickRecord> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ticks = self.ticks(policy).await;
            if ticks.len() >= at_least {
                return ticks;
            }
            assert!(Instant::now() < deadline, "{ticks:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn jobs(&self, kind: &str) -> Vec<fettler_ledger::JobRecord> {
        let filter = JobFilter {
            kind: Some(kind.parse().expect("a kind")),
            limit: 1000,
            ..JobFilter::default()
        };
        self.ledger.jobs(&filter).await.expect("jobs")
    }

    async fn until_jobs(&self, kind: &str, count: usize) -> Vec<fettler_ledger::JobRecord> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let jobs = self.jobs(kind).await;
            if jobs.len() >= count {
                return jobs;
            }
            assert!(Instant::now() < deadline, "{kind}: {jobs:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn record_backup(&self) -> BackupId {
        let now = self.ledger.now().await.expect("a clock");
        let facts = BackupFacts {
            id: BackupId::of_job(JobId::new()),
            tenant: self.tenant.clone(),
            database: Some(self.database),
            database_name: "shop".parse().expect("a name"),
            engine: Engine::Sqlite,
            parent: None,
            started: now,
            finished: now,
            bytes_read: 1,
            bytes_new: 1,
            bytes_stored: 1,
            streams: 1,
            tags: Vec::new(),
            warnings: Vec::new(),
        };
        self.ledger
            .upsert_backup("/backups", &facts, None)
            .await
            .expect("recorded");
        // As the end of the backup's job would.
        self.ledger.poke();
        facts.id
    }
}

async fn open(folder: &TempDir) -> Ledger {
    let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
    Ledger::open(&url).await.expect("a ledger")
}

/// The due times that must each have exactly one row: none is left out between the first and the last.
fn assert_every_second_once(ticks: &[TickRecord]) {
    for pair in ticks.windows(2) {
        assert_eq!(
            pair[1].due.since(pair[0].due),
            Duration::from_secs(1),
            "{pair:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_18_two_schedulers_decide_each_due_time_once_and_a_handover_loses_none() {
    let fixture = Fixture::new().await;
    let spec = PolicySpec {
        catch_up: CatchUp::All,
        overlap: Overlap::Cancel,
        ..fixture.spec("* * * * * *")
    };
    let policy = fixture.add_policy(spec, None).await;
    let one = fixture.scheduler().await;
    let two = fixture.scheduler().await;
    fixture.until_ticks(policy, 2).await;
    // One of the two leads; after both of these steps the other one has taken over at least once.
    one.kill().await;
    let so_far = fixture.ticks(policy).await.len();
    fixture.until_ticks(policy, so_far + 2).await;
    let three = fixture.scheduler().await;
    two.kill().await;
    let so_far = fixture.ticks(policy).await.len();
    let ticks = fixture.until_ticks(policy, so_far + 2).await;
    three.stop().await;
    assert_every_second_once(&ticks);
    let made: Vec<JobId> = ticks
        .iter()
        .filter_map(|tick| match tick.outcome {
            TickOutcome::Job { job } => Some(job),
            _ => None,
        })
        .collect();
    assert_eq!(made.len(), ticks.len(), "{ticks:?}");
    assert!(fixture.jobs("backup").await.len() >= made.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_is_skipped_run_once_or_all_run() {
    let fixture = Fixture::new().await;
    let now = fixture.ledger.now().await.unwrap();
    let mut policies = Vec::new();
    // Half an hour from any due time, so that none is on time.
    let minute = (now.to_jiff().to_zoned(jiff::tz::TimeZone::UTC).minute() + 30) % 60;
    for rule in [CatchUp::Skip, CatchUp::Once, CatchUp::All] {
        let spec = PolicySpec {
            catch_up: rule,
            ..fixture.spec(&format!("{minute} * * * *"))
        };
        let plan = fettler_scheduler::PolicyPlan::read(&spec).unwrap();
        let first = plan.next_after(now.minus(LONG_AGO));
        policies.push(fixture.add_policy(spec, first).await);
    }
    let scheduler = fixture.scheduler().await;
    let mut made = Vec::new();
    for policy in policies {
        let ticks = fixture.until_ticks(policy, 3).await;
        assert_eq!(ticks.len(), 3);
        made.push(
            ticks
                .iter()
                .filter(|tick| matches!(tick.outcome, TickOutcome::Job { .. }))
                .count(),
        );
        let next = fixture.ledger.policy(policy).await.unwrap().next_due;
        assert!(next.unwrap() > now);
    }
    scheduler.stop().await;
    assert_eq!(made, [0, 1, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_due_time_is_skipped_while_the_last_job_runs_or_ends_it() {
    let fixture = Fixture::new().await;
    let skip = fixture.add_policy(fixture.spec("* * * * * *"), None).await;
    let cancel = PolicySpec {
        overlap: Overlap::Cancel,
        ..fixture.spec("* * * * * *")
    };
    let cancel = fixture.add_policy(cancel, None).await;
    let scheduler = fixture.scheduler().await;
    let skipped = fixture.until_ticks(skip, 3).await;
    let cancelled = fixture.until_ticks(cancel, 3).await;
    scheduler.stop().await;
    // No worker runs, so that the first job still waits.
    let TickOutcome::Job { job: first } = skipped[0].outcome else {
        panic!("{skipped:?}");
    };
    assert!(
        skipped[1..]
            .iter()
            .all(|tick| tick.outcome == TickOutcome::SkippedOverlap { job: first }),
        "{skipped:?}"
    );
    let jobs: Vec<JobId> = cancelled
        .iter()
        .filter_map(|tick| match tick.outcome {
            TickOutcome::Job { job } => Some(job),
            _ => None,
        })
        .collect();
    assert!(jobs.len() >= 2, "{cancelled:?}");
    for job in &jobs[..jobs.len() - 1] {
        let state = fixture.ledger.job(*job).await.unwrap().state;
        assert_eq!(state, JobState::Cancelled);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_18_a_next_due_time_that_a_jumped_clock_left_in_the_future_is_computed_again() {
    let fixture = Fixture::new().await;
    let now = fixture.ledger.now().await.unwrap();
    let years_ahead = now.plus(Duration::from_secs(5 * 365 * 24 * 3600));
    let policy = fixture
        .add_policy(fixture.spec("* * * * * *"), Some(years_ahead))
        .await;
    let scheduler = fixture.scheduler().await;
    fixture.until_ticks(policy, 1).await;
    scheduler.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_removed_ticks_no_more_and_a_broken_one_holds_up_no_other() {
    let fixture = Fixture::new().await;
    let past = fixture.ledger.now().await.unwrap().minus(LONG_AGO);
    let broken = fixture
        .add_policy(fixture.spec("every so often"), Some(past))
        .await;
    let removed = fixture.add_policy(fixture.spec("* * * * * *"), None).await;
    let stays = fixture.add_policy(fixture.spec("* * * * * *"), None).await;
    let scheduler = fixture.scheduler().await;
    fixture.until_ticks(removed, 1).await;
    fixture.ledger.remove_policy(removed).await.unwrap();
    let so_far = fixture.ticks(stays).await.len();
    fixture.until_ticks(stays, so_far + 2).await;
    scheduler.stop().await;
    assert!(fixture.ticks(removed).await.is_empty());
    assert!(fixture.ticks(broken).await.is_empty());
    let next = fixture.ledger.policy(broken).await.unwrap().next_due;
    assert!(next.unwrap() > past, "it was put off, not forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_followed_by_retention_collection_and_one_proof_a_week() {
    let fixture = Fixture::new().await;
    let keep = KeepRules {
        daily: 7,
        ..KeepRules::default()
    };
    let spec = PolicySpec {
        keep: Some(keep.clone()),
        prove: ProveEvery::Weekly,
        ..fixture.spec("0 2 1 1 *")
    };
    fixture.add_policy(spec, None).await;
    let first = fixture.record_backup().await;
    let scheduler = fixture.scheduler().await;
    let retention = fixture.until_jobs("retention", 1).await;
    assert_eq!(
        retention[0].arguments,
        json!({"place": "/backups", "keep": keep})
    );
    let proofs = fixture.until_jobs("prove", 1).await;
    assert_eq!(
        proofs[0].arguments,
        json!({"place": "/backups", "backup": first})
    );
    assert_eq!(proofs[0].database, Some(fixture.database));
    let collections = fixture.until_jobs("collect", 1).await;
    assert_eq!(collections[0].arguments, json!({"place": "/backups"}));

    // The week's proof is there: the next backup needs none, and retention comes again.
    let proof = ProofFacts {
        backup: first,
        verdict: ProofVerdict::Proven,
        finished: fixture.ledger.now().await.unwrap(),
        restore_seconds: 1.0,
        fingerprints_compared: 1,
        mismatches: Vec::new(),
    };
    fixture.ledger.record_proof(&proof, None).await.unwrap();
    for job in [&retention[0], &proofs[0]] {
        fixture.ledger.request_cancel(job.id).await.unwrap();
    }
    fixture.record_backup().await;
    fixture.until_jobs("retention", 2).await;
    scheduler.stop().await;

    // Another leader does not do it all again.
    let next = fixture.scheduler().await;
    let marker = fixture.add_policy(fixture.spec("* * * * * *"), None).await;
    fixture.until_ticks(marker, 2).await;
    next.stop().await;
    assert_eq!(fixture.jobs("retention").await.len(), 2);
    assert_eq!(fixture.jobs("prove").await.len(), 1);
    assert_eq!(fixture.jobs("collect").await.len(), 1);
}

#[test]
fn a_request_for_an_unknown_kind_or_with_unreadable_arguments_is_refused() {
    let registry = Registry::empty().with(Backup);
    let request = |kind: &str| -> Result<JobRequest, _> {
        fettler_scheduler::request(
            &registry,
            &TenantId::default_tenant(),
            kind,
            json!({}),
            fettler_scheduler::RequestOptions::default(),
        )
    };
    assert!(request("bakcup").is_err());
    let made = request("backup").unwrap();
    assert_eq!((made.slot, made.max_tries), (SlotClass::Long, 5));
}
