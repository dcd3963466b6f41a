//! Silence is an alarm (P11): what should have been heard of and was not raises one event, whoever watches, and
//! clears itself; a URL outside hears of the leader (rule 18).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use fettler_jobs::Registry;
use fettler_ledger::{
    DatabaseRecord, DatabaseTerms, EventPosition, Ledger, PolicyRecord, SilenceKind,
};
use fettler_model::{
    BackupFacts, BackupId, CatchUp, DatabaseId, DatabaseUrl, Engine, JobId, JobKindName, Overlap,
    PolicyId, PolicySpec, Priority, ProofFacts, ProofVerdict, ProveEvery, Secret, TenantId,
    Timestamp,
};
use fettler_scheduler::{Scheduler, SchedulerOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const LEASE: Duration = Duration::from_millis(50);

struct Fixture {
    folder: TempDir,
    ledger: Ledger,
}

async fn open(folder: &TempDir) -> Ledger {
    let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
    Ledger::open(&url).await.expect("a ledger")
}

fn options() -> SchedulerOptions {
    SchedulerOptions {
        lead: Duration::from_secs(1),
        silent_after: Duration::from_millis(100),
        silence_every: Duration::from_millis(50),
        heartbeat_every: Duration::from_millis(50),
        ..SchedulerOptions::default()
    }
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = open(&folder).await;
        ledger
            .ensure_tenant(&TenantId::default_tenant())
            .await
            .expect("a tenant");
        Self { folder, ledger }
    }

    /// Another process leads and does nothing: ours can only watch.
    async fn somebody_else_leads(&self) {
        let led = self.ledger.lead("scheduler", "somebody", HOUR).await;
        assert!(led.expect("the ledger answers").is_some());
    }

    async fn scheduler(&self, options: SchedulerOptions) -> (CancellationToken, JoinHandle<()>) {
        let scheduler = Scheduler::new(
            "watch",
            open(&self.folder).await,
            Arc::new(Registry::empty()),
            options,
        );
        let stop = CancellationToken::new();
        (stop.clone(), tokio::spawn(scheduler.run(stop)))
    }

    async fn database(&self) -> DatabaseId {
        let (url, _) = DatabaseUrl::parse_with_password("/tmp/shop.sqlite").expect("a path");
        let record = DatabaseRecord {
            id: DatabaseId::new(),
            tenant: TenantId::default_tenant(),
            name: "shop".parse().expect("a name"),
            url,
            password: None,
            identity_key: None,
            labels: BTreeMap::new(),
            sandbox: Value::Null,
            created: Timestamp::now(),
            terms: DatabaseTerms::default(),
        };
        self.ledger.add_database(&record).await.expect("added").id
    }

    async fn policy(&self, database: Option<DatabaseId>, next_due: Timestamp) -> PolicyId {
        let record = PolicyRecord {
            id: PolicyId::new(),
            tenant: TenantId::default_tenant(),
            name: "nightly".parse().expect("a name"),
            database,
            spec: PolicySpec {
                kind: "backup".parse().expect("a kind"),
                arguments: json!({}),
                cron: "0 2 * * *".to_owned(),
                time_zone: "UTC".to_owned(),
                catch_up: CatchUp::Once,
                overlap: Overlap::Skip,
                window: None,
                jitter_seconds: 0,
                priority: Priority::Normal,
                keep: None,
                prove: ProveEvery::Daily,
                timeout_seconds: None,
                paused: false,
            },
            next_due: Some(next_due),
            last_job: None,
            created: Timestamp::now(),
        };
        self.ledger.add_policy(&record).await.expect("added").id
    }

    async fn told(&self, kind: &str) -> usize {
        let events = self
            .ledger
            .events_after(EventPosition::default(), 1000)
            .await
            .expect("events");
        events.iter().filter(|event| event.kind == kind).count()
    }

    async fn until_told(&self, kind: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.told(kind).await == 0 {
            assert!(Instant::now() < deadline, "{kind} is told");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn silences(&self, kind: SilenceKind) -> usize {
        self.ledger.silences(kind).await.expect("silences").len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_a_policy_that_did_not_tick_is_told_once_and_clears_itself() {
    let fixture = Fixture::new().await;
    fixture.somebody_else_leads().await;
    let policy = fixture.policy(None, Timestamp::now().minus(HOUR)).await;
    let (stop, one) = fixture.scheduler(options()).await;
    let (stop_too, other) = fixture.scheduler(options()).await;
    fixture.until_told("silence.policy").await;
    assert_eq!(fixture.silences(SilenceKind::Policy).await, 1);
    let later = Timestamp::now().plus(HOUR);
    fixture
        .ledger
        .set_next_due(policy, Some(later))
        .await
        .expect("set");
    fixture.until_told("silence.policy.over").await;
    assert_eq!(fixture.silences(SilenceKind::Policy).await, 0);
    assert_eq!(
        fixture.told("silence.policy").await,
        1,
        "two watch, one tells"
    );
    stop.cancel();
    stop_too.cancel();
    one.await.expect("it ends");
    other.await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_a_worker_that_vanished_is_told_until_another_stands_in_for_it() {
    let fixture = Fixture::new().await;
    let kinds: [JobKindName; 2] = ["backup", "prove"].map(|kind| kind.parse().expect("a kind"));
    fixture
        .ledger
        .announce_worker("gone", &kinds, LEASE)
        .await
        .expect("announced");
    let (stop, task) = fixture.scheduler(options()).await;
    fixture.until_told("silence.worker").await;
    // One that can less is no replacement.
    fixture
        .ledger
        .announce_worker("lesser", &kinds[..1], HOUR)
        .await
        .expect("announced");
    assert_eq!(fixture.told("silence.worker.over").await, 0);
    fixture
        .ledger
        .announce_worker("next", &kinds, HOUR)
        .await
        .expect("announced");
    fixture.until_told("silence.worker.over").await;
    stop.cancel();
    task.await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_a_proof_that_grew_old_is_told_until_there_is_a_new_one() {
    let fixture = Fixture::new().await;
    fixture.somebody_else_leads().await;
    let database = fixture.database().await;
    fixture
        .policy(Some(database), Timestamp::now().plus(HOUR))
        .await;
    let finished = Timestamp::now().minus(72 * HOUR);
    let facts = BackupFacts {
        id: BackupId::of_job(JobId::new()),
        tenant: TenantId::default_tenant(),
        database: Some(database),
        database_name: "shop".parse().expect("a name"),
        engine: Engine::Sqlite,
        parent: None,
        started: finished,
        finished,
        bytes_read: 1,
        bytes_new: 1,
        bytes_stored: 1,
        streams: 1,
        tags: Vec::new(),
        warnings: Vec::new(),
    };
    fixture
        .ledger
        .upsert_backup("/backups", &facts, None)
        .await
        .expect("recorded");
    let (stop, task) = fixture.scheduler(options()).await;
    fixture.until_told("silence.proof").await;
    let proof = ProofFacts {
        backup: facts.id,
        verdict: ProofVerdict::Proven,
        finished: Timestamp::now(),
        restore_seconds: 1.0,
        fingerprints_compared: 1,
        mismatches: Vec::new(),
    };
    fixture
        .ledger
        .record_proof(&proof, None)
        .await
        .expect("recorded");
    fixture.until_told("silence.proof.over").await;
    stop.cancel();
    task.await.expect("it ends");
}

/// A server that counts who asks, as one outside does.
async fn count_askers() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!(
        "http://{}/ping/a-key",
        listener.local_addr().expect("bound")
    );
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            if stream.read(&mut request).await.is_ok_and(|bytes| bytes > 0) {
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _gone = stream.write_all(answer.as_bytes()).await;
            }
        }
    });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_18_the_leader_alone_tells_a_url_outside_that_the_fleet_is_there() {
    let fixture = Fixture::new().await;
    let (url, asked) = count_askers().await;
    let options = || SchedulerOptions {
        heartbeat_url: Some(Secret::new(url.clone())),
        ..options()
    };
    let leadership = fixture
        .ledger
        .lead("scheduler", "somebody", HOUR)
        .await
        .expect("the ledger answers")
        .expect("nobody leads");
    // It watches, as an overdue policy shows, and does not lead: it tells nobody.
    let policy = fixture.policy(None, Timestamp::now().minus(HOUR)).await;
    let (stop, task) = fixture.scheduler(options()).await;
    fixture.until_told("silence.policy").await;
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    fixture.ledger.remove_policy(policy).await.expect("removed");
    fixture.ledger.resign(&leadership).await.expect("resigned");
    let deadline = Instant::now() + PATIENCE;
    while asked.load(Ordering::SeqCst) < 2 {
        assert!(Instant::now() < deadline, "the URL is asked");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    task.await.expect("it ends");
}
