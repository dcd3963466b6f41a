//! Each single step of a backup, a restore, a proof and a collection fails in turn (P1 to P4, P8): each statement
//! of the ledger, each call of the queue, each request to the store, once before it has an effect and once after
//! it, its answer lost.
//!
//! A clean run counts the steps by what they do; then there is one run a step, in a world of its own. After each,
//! the fleet of one goes on, and everything is looked at from outside: the job ended well, the ledger's record is
//! a run of the models, every backup that is listed verifies, what a backup needs is there, no slot is held and
//! nothing is left outside.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod support;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path as FilePath, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use fettler_engine::SandboxSpec;
use fettler_jobs::{BackupPlace, Registry, Services};
use fettler_ledger::{
    BackupFilter, ClaimRequest, ClaimedBatch, Idempotency, Ledger, LedgerOptions, StepFate, Steps,
};
use fettler_model::{
    BackupId, DatabaseId, JobId, JobRequest, JobState, Problem, ProofVerdict, Scope, Secret,
    SecretReference, TenantId,
};
use fettler_models::replay::{History, replay};
use fettler_queue::{Arrivals, LedgerQueue, Queue, QueueError, WireItem};
use fettler_repository::{
    CpuPool, CreateKey, Depth, OpenOptions, PassphraseCost, Repository, Retries, TenantRepository,
    Unlock,
};
use fettler_worker::{Slots, Timing, WorkerBuilder};
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, path::Path,
};
use serde_json::{Value, json};
use support::{Fixture, PATIENCE, Running, request};
use tokio_util::sync::CancellationToken;

const PLACE: &str = "the tests' store";
/// Runs that are on their way at once.
const AT_ONCE: usize = 6;
/// Steps that a worker does again and again beside the job: the first few stand for all.
const MOST_OF_A_KIND: usize = 3;
/// How long the fleet takes for what a lost answer leaves running.
const SHORT: Timing = Timing {
    lease: Duration::from_millis(800),
    heartbeat: Duration::from_millis(200),
    drain: Duration::from_secs(10),
    cancel_grace: Duration::from_secs(10),
    stall: None,
};

/// One step that fails: what it is, the how-manieth of its kind, and how.
#[derive(Clone, Debug)]
struct Fault {
    step: String,
    nth: usize,
    fate: StepFate,
}

/// Counts the steps and lets one of them fail.
#[derive(Debug, Default)]
struct Faults {
    state: Mutex<FaultState>,
}

#[derive(Debug, Default)]
struct FaultState {
    armed: bool,
    counts: BTreeMap<String, usize>,
    fault: Option<Fault>,
    bit: bool,
}

impl Faults {
    fn arm(&self, fault: Option<Fault>) {
        let mut state = self.state.lock().unwrap();
        state.armed = true;
        state.fault = fault;
    }

    /// Lets everything go on from now; says what was counted, and whether the fault bit.
    fn disarm(&self) -> (BTreeMap<String, usize>, bool) {
        let mut state = self.state.lock().unwrap();
        state.armed = false;
        (std::mem::take(&mut state.counts), state.bit)
    }

    fn fate(&self, step: &str) -> StepFate {
        let mut state = self.state.lock().unwrap();
        if !state.armed {
            return StepFate::GoesOn;
        }
        let count = state.counts.entry(step.to_owned()).or_default();
        *count += 1;
        let nth = *count;
        match &state.fault {
            Some(fault) if fault.step == step && fault.nth == nth => {
                let fate = fault.fate;
                state.bit = true;
                fate
            }
            _ => StepFate::GoesOn,
        }
    }
}

/// A store whose requests are steps.
#[derive(Debug)]
struct StepStore {
    inner: object_store::memory::InMemory,
    faults: Arc<Faults>,
}

impl fmt::Display for StepStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StepStore")
    }
}

impl StepStore {
    /// Objects are told apart by the folder that says what they are, since their names are random.
    fn fate(&self, what: &str, path: Option<&Path>) -> StepFate {
        let folder = path.map_or_else(String::new, |path| {
            path.parts()
                .map(|part| part.as_ref().to_owned())
                .filter(|part| part.len() < 20)
                .collect::<Vec<_>>()
                .join("/")
        });
        self.faults.fate(&format!("store: {what} {folder}"))
    }

    fn failed() -> StoreError {
        StoreError::Generic {
            store: "test",
            source: "the step was let fail".into(),
        }
    }

    fn answer<T>(fate: StepFate, done: object_store::Result<T>) -> object_store::Result<T> {
        match fate {
            StepFate::AnswerLost => Err(Self::failed()),
            _ => done,
        }
    }
}

#[async_trait]
impl ObjectStore for StepStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let fate = self.fate("put", Some(location));
        if fate == StepFate::Fails {
            return Err(Self::failed());
        }
        Self::answer(fate, self.inner.put_opts(location, payload, options).await)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let fate = self.fate("get", Some(location));
        if fate == StepFate::GoesOn {
            self.inner.get_opts(location, options).await
        } else {
            Err(Self::failed())
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        match self.fate("delete", None) {
            StepFate::GoesOn => self.inner.delete_stream(locations),
            StepFate::Fails => futures::stream::once(async { Err(Self::failed()) }).boxed(),
            StepFate::AnswerLost => self
                .inner
                .delete_stream(locations)
                .map(|_| Err(Self::failed()))
                .boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        if self.fate("list", prefix) == StepFate::GoesOn {
            self.inner.list(prefix)
        } else {
            futures::stream::once(async { Err(Self::failed()) }).boxed()
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A queue whose calls are steps.
#[derive(Debug)]
struct StepQueue {
    inner: LedgerQueue,
    faults: Arc<Faults>,
}

impl StepQueue {
    fn failed() -> QueueError {
        QueueError::Unavailable {
            doing: "a step",
            what: "it was let fail".to_owned(),
        }
    }
}

#[async_trait]
impl Queue for StepQueue {
    async fn push(&self, items: &[WireItem]) -> Result<(), QueueError> {
        match self.faults.fate("queue: push") {
            StepFate::Fails => Err(Self::failed()),
            fate => {
                self.inner.push(items).await?;
                match fate {
                    StepFate::AnswerLost => Err(Self::failed()),
                    _ => Ok(()),
                }
            }
        }
    }

    async fn take(&self, request: &ClaimRequest) -> Result<ClaimedBatch, QueueError> {
        let fate = self.faults.fate("queue: take");
        if fate == StepFate::Fails {
            return Err(Self::failed());
        }
        let batch = self.inner.take(request).await?;
        match fate {
            StepFate::AnswerLost => Err(Self::failed()),
            _ => Ok(batch),
        }
    }

    fn arrivals(&self) -> Box<dyn Arrivals> {
        self.inner.arrivals()
    }
}

/// The process that runs the jobs.
struct World {
    fixture: Fixture,
    faults: Arc<Faults>,
    /// The worker's own handle of the ledger, whose statements are steps.
    ledger: Ledger,
    repository: TenantRepository,
    database: DatabaseId,
    source: PathBuf,
}

struct WorldServices {
    scratch: PathBuf,
    repository: TenantRepository,
}

#[async_trait]
impl Services for WorldServices {
    async fn secret(&self, _: &TenantId, reference: &SecretReference) -> Result<Secret, Problem> {
        Err(Problem::permanent("test.secret", reference.to_string(), ""))
    }

    async fn repository(
        &self,
        _: &TenantId,
        _: &BackupPlace,
    ) -> Result<(TenantRepository, String), Problem> {
        Ok((self.repository.clone(), PLACE.to_owned()))
    }

    fn parallel(&self) -> usize {
        1
    }

    fn scratch(&self) -> PathBuf {
        self.scratch.clone()
    }

    fn collection_grace(&self) -> Duration {
        Duration::ZERO
    }

    fn default_sandbox(&self) -> SandboxSpec {
        SandboxSpec::Automatic
    }
}

fn make_source(path: &FilePath, rows: u64) {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch("CREATE TABLE entry (id INTEGER PRIMARY KEY, note TEXT); BEGIN")
        .unwrap();
    for id in 0..rows {
        connection
            .execute(
                "INSERT INTO entry VALUES (?1, hex(randomblob(100)))",
                [i64::try_from(id).unwrap()],
            )
            .unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
}

fn content(path: &FilePath) -> Vec<(i64, String)> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let mut statement = connection
        .prepare("SELECT id, note FROM entry ORDER BY id")
        .unwrap();
    statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

impl World {
    async fn new() -> Self {
        let fixture = Fixture::new().await;
        let faults = Arc::new(Faults::default());
        let asked = faults.clone();
        let ledger = Ledger::open_with(
            &fixture.url,
            LedgerOptions {
                steps: Some(Steps::new(move |kind, doing| {
                    asked.fate(&format!("ledger: {kind:?} while {doing}"))
                })),
                ..support::options()
            },
        )
        .await
        .unwrap();
        let store = Arc::new(StepStore {
            inner: object_store::memory::InMemory::new(),
            faults: faults.clone(),
        });
        let options = OpenOptions {
            create: true,
            cpu: CpuPool::new(std::num::NonZeroUsize::MIN),
            passphrase_cost: PassphraseCost {
                memory_kib: 64,
                passes: 1,
            },
            retries: Retries(0),
            new_with_sizes_divided_by: 64,
        };
        let repository = Repository::with_store(store, PLACE, options)
            .await
            .unwrap()
            .tenant(
                &TenantId::default_tenant(),
                &Unlock::Passphrase(Secret::new("correct horse battery staple".to_owned())),
                CreateKey::IfAbsent,
            )
            .await
            .unwrap();
        let source = fixture.folder.path().join("source.sqlite");
        make_source(&source, 400);
        let database = fixture.add_database_at("source", &source).await;
        fixture
            .ledger
            .set_limit(&Scope::Tenant(TenantId::default_tenant()), 2)
            .await
            .unwrap();
        Self {
            fixture,
            faults,
            ledger,
            repository,
            database,
            source,
        }
    }

    fn worker(&self) -> Running {
        let services = WorldServices {
            scratch: self.fixture.scratch(),
            repository: self.repository.clone(),
        };
        let queue = StepQueue {
            inner: LedgerQueue::new(self.ledger.clone()),
            faults: self.faults.clone(),
        };
        Running::start(
            WorkerBuilder::new(
                "test",
                self.ledger.clone(),
                Arc::new(Registry::standard()),
                Arc::new(services),
            )
            .queue(Arc::new(queue))
            .slots(Slots { long: 2, short: 2 })
            .timing(SHORT),
        )
    }

    /// Submits as a client does that hears nothing: the same again, with the same key.
    async fn submit(&self, kind: &str, arguments: Value) -> JobId {
        let registry = Registry::standard();
        let found = registry.get(kind).unwrap();
        let request = JobRequest {
            kind: kind.parse().unwrap(),
            database: Some(self.database),
            arguments,
            exclusion: found.exclusion(),
            slot: found.slot(),
            max_tries: 5,
            ..request("quick", support::Act::Wait)
        };
        let key = Idempotency {
            key: format!("{kind}/{}", JobId::new()),
            request_hash: [1; 32],
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ledger.submit(request.clone(), Some(key.clone())).await {
                Ok(submitted) => return submitted.job,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    /// Runs a job in a fleet of one, and waits for its end.
    async fn run(&self, kind: &str, arguments: Value) -> JobId {
        let worker = self.worker();
        let job = self.submit(kind, arguments).await;
        self.fixture.until_final(job).await;
        worker.drain().await;
        job
    }

    async fn back_up(&self) -> BackupId {
        let job = self.run("backup", json!({})).await;
        assert_eq!(self.fixture.job(job).await.state, JobState::Succeeded);
        BackupId::of_job(job)
    }

    fn target(&self) -> PathBuf {
        self.fixture.folder.path().join("restored.sqlite")
    }

    /// What must hold whatever failed.
    async fn check(&self, what: &str) {
        let ledger = &self.fixture.ledger;
        let history = History::read(ledger, Duration::ZERO).await.unwrap();
        if let Err(refused) = replay(&history) {
            panic!("{what}: the ledger's record is no run of the models: {refused}");
        }
        let deadline = Instant::now() + PATIENCE;
        while !ledger.orphaned_artefacts(10).await.unwrap().is_empty() {
            assert!(
                Instant::now() < deadline,
                "{what}: something was left outside"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for limit in ledger.limits().await.unwrap() {
            assert_eq!(limit.running, 0, "{what}: a slot is leaked");
        }
        let left = std::fs::read_dir(self.fixture.scratch()).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{what}: a scratch folder is left over");
        let listed = self.repository.backups().await.unwrap();
        assert!(listed.unreadable.is_empty(), "{what}: {listed:?}");
        for backup in &listed.backups {
            let report = self
                .repository
                .verify(
                    backup.id,
                    Depth::Everything,
                    &mut |_| {},
                    &CancellationToken::new(),
                )
                .await
                .unwrap();
            assert!(report.is_ok(), "{what}: {report:?}");
        }
        let complete = ledger.backups(&BackupFilter::default()).await.unwrap();
        for record in &complete {
            assert!(
                listed
                    .backups
                    .iter()
                    .any(|backup| backup.id == record.facts.id),
                "{what}: the catalogue lists a backup that is not there"
            );
        }
        assert_eq!(complete.len(), listed.backups.len(), "{what}");
    }
}

/// What is tried.
#[derive(Clone, Copy, Debug)]
enum Scenario {
    Backup,
    Restore,
    Prove,
    Collect,
}

impl Scenario {
    /// Makes the world, runs the job with this fault, looks at what came of it. Gives back the steps that were
    /// counted and whether the fault bit.
    async fn run(self, fault: Option<Fault>) -> (BTreeMap<String, usize>, bool) {
        let what = format!("{self:?} with {fault:?}");
        let world = World::new().await;
        let (kind, arguments) = match self {
            Self::Backup => {
                world.back_up().await;
                ("backup", json!({}))
            }
            Self::Restore => {
                let backup = world.back_up().await;
                let to = world.target();
                ("restore", json!({"backup": backup, "to": to}))
            }
            Self::Prove => ("prove", json!({"backup": world.back_up().await})),
            Self::Collect => {
                let forgotten = world.back_up().await;
                rewrite(&world.source);
                world.back_up().await;
                world
                    .repository
                    .forget(forgotten, "a test", &fettler_repository::Unfenced)
                    .await
                    .unwrap();
                world
                    .fixture
                    .ledger
                    .set_backup_state(
                        forgotten,
                        fettler_model::BackupState::Forgotten,
                        "a test",
                        None,
                    )
                    .await
                    .unwrap();
                // Marks, so that the run that counts deletes.
                world.run("collect", json!({})).await;
                ("collect", json!({}))
            }
        };
        world.faults.arm(fault);
        let worker = world.worker();
        let job = world.submit(kind, arguments).await;
        let record = world.fixture.until_final(job).await;
        let (counts, bit) = world.faults.disarm();
        // What the attempt left is removed by the worker that goes on.
        assert_eq!(
            record.state,
            JobState::Succeeded,
            "{what}: {:?}",
            record.problem
        );
        world.check(&what).await;
        match self {
            Self::Backup => assert_eq!(world.repository.backups().await.unwrap().backups.len(), 2),
            Self::Restore => {
                assert_eq!(content(&world.target()), content(&world.source), "{what}");
            }
            Self::Prove => {
                let backups = world.repository.backups().await.unwrap().backups;
                let known = world.fixture.ledger.backup(backups[0].id).await.unwrap();
                let proof = known
                    .last_proof
                    .unwrap_or_else(|| panic!("{what}: no proof"));
                assert_eq!(proof.verdict, ProofVerdict::Proven, "{what}");
            }
            Self::Collect => {
                worker.drain().await;
                // The next ones do what this one left: in the end nothing is stored that nobody needs.
                world.run("collect", json!({})).await;
                let job = world.run("collect", json!({})).await;
                let output = world.fixture.job(job).await.result.unwrap();
                assert_eq!(output["marked_objects"], 0, "{what}: {output}");
                assert_eq!(output["waiting_objects"], 0, "{what}: {output}");
                world.check(&what).await;
                return (counts, bit);
            }
        }
        worker.drain().await;
        (counts, bit)
    }

    /// One run a step.
    async fn each_step_fails(self) {
        let (counts, _) = self.run(None).await;
        let mut faults = Vec::new();
        for (step, count) in &counts {
            let most = if step.starts_with("store") {
                *count
            } else {
                (*count).min(MOST_OF_A_KIND)
            };
            let has_effect = ["store: put", "store: delete", "ledger: Commit", "queue"]
                .iter()
                .any(|kind| step.starts_with(kind));
            for nth in 1..=most {
                let mut fates = vec![StepFate::Fails];
                if has_effect {
                    fates.push(StepFate::AnswerLost);
                }
                faults.extend(fates.into_iter().map(|fate| Fault {
                    step: step.clone(),
                    nth,
                    fate,
                }));
            }
        }
        let planned = faults.len();
        let bits: Vec<bool> = futures::stream::iter(faults)
            .map(|fault| async move { tokio::spawn(self.run(Some(fault))).await.unwrap().1 })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let bit = bits.iter().filter(|bit| **bit).count();
        println!(
            "{self:?}: {} kinds of steps, {planned} runs, {bit} in which the fault bit",
            counts.len()
        );
        // What a worker does beside the job may come sooner or later; what the job does comes each time.
        assert!(bit * 10 >= planned * 9, "{bit} of {planned} faults bit");
        assert!(planned > 30, "{counts:#?}");
    }
}

fn rewrite(path: &FilePath) {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch("UPDATE entry SET note = hex(randomblob(100))")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_p3_a_backup_ends_well_whichever_of_its_steps_fails() {
    Scenario::Backup.each_step_fails().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_restore_ends_well_whichever_of_its_steps_fails() {
    Scenario::Restore.each_step_fails().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_p4_a_proof_ends_well_whichever_of_its_steps_fails() {
    Scenario::Prove.each_step_fails().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_p8_a_collection_ends_well_whichever_of_its_steps_fails() {
    Scenario::Collect.each_step_fails().await;
}
