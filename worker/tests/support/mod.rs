//! What the worker's tests share: a real ledger in a folder of its own, job kinds whose behaviour their
//! arguments say, and waiting for conditions. A test binary can run itself as a worker in a process of its
//! own, so that one can be killed.

#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use fettler_engine::SandboxSpec;
use fettler_jobs::{BackupPlace, JobContext, JobKind, Registry, Services};
use fettler_ledger::{DatabaseRecord, DatabaseTerms, JobRecord, Ledger, LedgerOptions};
use fettler_model::{
    AttemptToken, DatabaseId, DatabaseUrl, ExclusionClass, JobId, JobRequest, JobTerms, Priority,
    Problem, Secret, SecretReference, SlotClass, TenantId, Timestamp,
};
use fettler_repository::TenantRepository;
use fettler_worker::{Slots, Timing, WorkerBuilder, WorkerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What every wait of a test gives up after.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Times for tests that wait for no lease.
pub const QUICK: Timing = Timing {
    lease: Duration::from_secs(30),
    heartbeat: Duration::from_millis(100),
    drain: Duration::from_secs(10),
    cancel_grace: Duration::from_secs(10),
    stall: None,
};

/// Times for tests in which a worker vanishes (rule 5).
pub const SHORT_LEASE: Timing = Timing {
    lease: Duration::from_secs(3),
    heartbeat: Duration::from_secs(1),
    drain: Duration::from_secs(10),
    cancel_grace: Duration::from_secs(10),
    stall: None,
};

/// The process that runs jobs, as far as these tests need it.
struct TestServices {
    scratch: PathBuf,
}

#[async_trait]
impl Services for TestServices {
    async fn secret(&self, _: &TenantId, reference: &SecretReference) -> Result<Secret, Problem> {
        Err(Problem::permanent("test.secret", reference.to_string(), ""))
    }

    async fn repository(
        &self,
        _: &TenantId,
        _: &BackupPlace,
    ) -> Result<(TenantRepository, String), Problem> {
        Err(Problem::permanent("test.repository", "there is none", ""))
    }

    fn parallel(&self) -> usize {
        1
    }

    fn scratch(&self) -> PathBuf {
        self.scratch.clone()
    }

    fn collection_grace(&self) -> Duration {
        Duration::from_secs(3600)
    }

    fn default_sandbox(&self) -> SandboxSpec {
        SandboxSpec::Automatic
    }
}

/// What a test job does.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Act {
    /// Gives this back.
    Succeed { result: Value },
    /// Fails, with a class that passes.
    FailTransient,
    /// Fails for good.
    FailForGood,
    /// Fails so often, counted by checkpoint, then succeeds.
    FailTimes { times: u64 },
    /// Steps back once, then succeeds.
    SnoozeOnce,
    /// Panics.
    Panic,
    /// Saves a checkpoint and waits to be stopped; succeeds at once when it finds one.
    WaitAfterCheckpoint,
    /// Waits to be stopped, and then says that it was.
    Wait,
    /// Takes so long, unless it is asked to stop.
    WorkFor { millis: u64 },
    /// Waits for something that takes so long and counts nothing, with signs of life.
    WaitWithSigns { millis: u64 },
    /// Blocks its thread for ever after it was asked to stop.
    IgnoreStop,
    /// Checks the fence again and again and counts in a file; says in another file when the fence
    /// refused it.
    CountWhileFenced { folder: PathBuf },
    /// Ends its process.
    Abort,
    /// Tells the ledger who its database is, then waits for a file.
    Identify { key: String, until: PathBuf },
    /// Leaves its scratch folder behind and fails.
    LeaveScratch,
    /// Asks for a database by its id.
    ReadDatabase { id: DatabaseId },
    /// Submits a job that follows, and fails after that until it was tried twice.
    SubmitFollower,
}

async fn act(context: &JobContext, act: Act) -> Result<Value, Problem> {
    match act {
        Act::Succeed { result } => {
            context.progress.begin("working", 10, 1);
            context.progress.add(10, 1);
            context.ledger.log("did the work").await;
            Ok(result)
        }
        Act::FailTransient => Err(Problem::transient("test.transient", "it failed", "")),
        Act::FailForGood => Err(Problem::permanent(
            "test.permanent",
            "it cannot be",
            "fix it",
        )),
        Act::FailTimes { times } => {
            let before = load(context).await?.as_u64().unwrap_or(0);
            if before == times {
                return Ok(json!({"failed": before}));
            }
            save(context, json!(before + 1)).await?;
            Err(Problem::transient("test.transient", "it failed", ""))
        }
        Act::SnoozeOnce => {
            if load(context).await?.is_null() {
                save(context, json!(true)).await?;
                return Err(Problem::snooze("test.busy", "not now", Duration::ZERO));
            }
            Ok(json!({"tries_spent": context.job.tries_spent}))
        }
        Act::Panic => panic!("a mistake in the job"),
        Act::WaitAfterCheckpoint => {
            let found = load(context).await?;
            if !found.is_null() {
                return Ok(json!({"found": found, "attempt": context.job.token.attempt_number()}));
            }
            save(context, json!({"packs": 7})).await?;
            context.ledger.log("waiting").await;
            context.stopping.token().cancelled().await;
            Err(context.stopping.problem())
        }
        Act::Wait => {
            context.ledger.log("waiting").await;
            context.stopping.token().cancelled().await;
            Err(context.stopping.problem())
        }
        Act::WorkFor { millis } => {
            context.ledger.log("waiting").await;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(millis)) => Ok(Value::Null),
                () = context.stopping.token().cancelled() => Err(Problem::interrupted()),
            }
        }
        Act::WaitWithSigns { millis } => {
            let wait = tokio::time::sleep(Duration::from_millis(millis));
            context.progress.while_waiting(wait).await;
            Ok(Value::Null)
        }
        Act::IgnoreStop => {
            context.ledger.log("waiting").await;
            std::future::pending().await
        }
        Act::CountWhileFenced { folder } => count_while_fenced(context, &folder).await,
        Act::Abort => {
            context.ledger.log("about to die").await;
            std::process::abort()
        }
        Act::Identify { key, until } => {
            let database = context.job.database.expect("the job has a database");
            context.ledger.set_identity(database, &key).await?;
            context.ledger.log("identified").await;
            while !until.exists() {
                if context.stopping.reason().is_some() {
                    return Err(context.stopping.problem());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(Value::Null)
        }
        Act::LeaveScratch => {
            let engine = context.engine_context([0; 32], None).await?;
            std::fs::write(engine.scratch.join("left"), "bytes").expect("the folder is there");
            Err(Problem::permanent("test.permanent", "it failed", ""))
        }
        Act::ReadDatabase { id } => {
            let record = context.ledger.database(id).await?;
            Ok(json!(record.name))
        }
        Act::SubmitFollower => {
            let follower = context
                .ledger
                .submit(JobRequest {
                    unique_key: Some("follower".to_owned()),
                    ..request("quick", Act::Succeed { result: json!(1) })
                })
                .await?;
            let before = load(context).await?;
            save(context, json!(follower)).await?;
            if before.is_null() {
                return Err(Problem::transient("test.transient", "once more", ""));
            }
            Ok(json!([before, follower]))
        }
    }
}

async fn count_while_fenced(
    context: &JobContext,
    folder: &std::path::Path,
) -> Result<Value, Problem> {
    let token = context.job.token;
    let mut count = 0_u64;
    loop {
        if let Err(error) = context.fence.check().await {
            std::fs::write(folder.join(format!("refused-{token}")), error.to_string())
                .expect("the folder is there");
            // A zombie tries to write all the same.
            let refused = context
                .checkpoints
                .save(json!({"zombie": true}))
                .await
                .is_err();
            assert!(refused, "the checkpoint of a superseded attempt was taken");
            return Ok(json!({"zombie": true}));
        }
        count += 1;
        // In one step: a process that is stopped in the middle of a write leaves an empty file.
        let beside = folder.join(format!("counting-{token}"));
        std::fs::write(&beside, count.to_string()).expect("the folder is there");
        std::fs::rename(&beside, folder.join(format!("count-{token}"))).expect("it was written");
        if folder.join("enough").exists() && token.attempt_number() > 1 {
            return Ok(json!({"counted_by": token.attempt_number()}));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn load(context: &JobContext) -> Result<Value, Problem> {
    Ok(context.checkpoints.load().await?.unwrap_or(Value::Null))
}

async fn save(context: &JobContext, value: Value) -> Result<(), Problem> {
    Ok(context.checkpoints.save(value).await?)
}

/// A long kind that needs its database for itself.
pub struct Slow;

#[async_trait]
impl JobKind for Slow {
    const NAME: &'static str = "slow";
    const EXCLUSION: ExclusionClass = ExclusionClass::Backup;
    const SLOT: SlotClass = SlotClass::Long;
    type Arguments = Act;
    type Output = Value;

    async fn run(&self, context: &JobContext, arguments: Act) -> Result<Value, Problem> {
        act(context, arguments).await
    }
}

/// A short kind that runs beside everything.
pub struct Quick;

#[async_trait]
impl JobKind for Quick {
    const NAME: &'static str = "quick";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Short;
    type Arguments = Act;
    type Output = Value;

    async fn run(&self, context: &JobContext, arguments: Act) -> Result<Value, Problem> {
        act(context, arguments).await
    }
}

/// A request for a test job.
pub fn request(kind: &str, act: Act) -> JobRequest {
    JobRequest {
        tenant: TenantId::default_tenant(),
        kind: kind.parse().expect("a kind"),
        kind_version: 1,
        database: None,
        arguments: serde_json::to_value(act).expect("plain data"),
        exclusion: if kind == "slow" {
            ExclusionClass::Backup
        } else {
            ExclusionClass::Free
        },
        slot: if kind == "slow" {
            SlotClass::Long
        } else {
            SlotClass::Short
        },
        priority: Priority::Normal,
        not_before: None,
        deadline: None,
        max_tries: 3,
        unique_key: None,
        retry_of: None,
        tags: Vec::new(),
        terms: JobTerms::default(),
    }
}

/// A ledger in a folder of its own.
pub struct Fixture {
    pub folder: TempDir,
    pub url: String,
    pub ledger: Ledger,
}

pub fn options() -> LedgerOptions {
    LedgerOptions {
        retry_base: Duration::from_millis(5),
        retry_cap: Duration::from_millis(20),
        ..LedgerOptions::default()
    }
}

impl Fixture {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
        let ledger = Ledger::open_with(&url, options()).await.expect("a ledger");
        ledger
            .ensure_tenant(&TenantId::default_tenant())
            .await
            .expect("a tenant");
        Self {
            folder,
            url,
            ledger,
        }
    }

    /// A builder for a worker on a handle of its own, as in another process.
    pub async fn other_builder(&self) -> WorkerBuilder {
        let ledger = Ledger::open_with(&self.url, options())
            .await
            .expect("a ledger");
        self.builder_on(ledger)
    }

    /// A builder for a worker that shares this handle.
    pub fn builder(&self) -> WorkerBuilder {
        self.builder_on(self.ledger.clone())
    }

    fn builder_on(&self, ledger: Ledger) -> WorkerBuilder {
        builder(ledger, &self.url, self.scratch())
    }

    pub fn scratch(&self) -> PathBuf {
        self.folder.path().join("scratch")
    }

    pub async fn submit(&self, kind: &str, act: Act) -> JobId {
        self.submit_request(request(kind, act)).await
    }

    pub async fn submit_request(&self, request: JobRequest) -> JobId {
        self.ledger.submit(request, None).await.expect("a job").job
    }

    pub async fn add_database(&self, name: &str, tenant: &TenantId) -> DatabaseId {
        let path = format!("/tmp/{name}.sqlite");
        self.add_database_of(name, tenant, Path::new(&path)).await
    }

    /// A database of the default tenant that lies in this file.
    pub async fn add_database_at(&self, name: &str, path: &Path) -> DatabaseId {
        self.add_database_of(name, &TenantId::default_tenant(), path)
            .await
    }

    async fn add_database_of(&self, name: &str, tenant: &TenantId, path: &Path) -> DatabaseId {
        self.ledger.ensure_tenant(tenant).await.expect("a tenant");
        let (url, _) = DatabaseUrl::parse_with_password(&path.display().to_string())
            .expect("a path is a database");
        let record = DatabaseRecord {
            id: DatabaseId::new(),
            tenant: tenant.clone(),
            name: name.parse().expect("a name"),
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

    pub async fn job(&self, job: JobId) -> JobRecord {
        self.ledger.job(job).await.expect("the job is there")
    }

    /// Waits until the job is as wanted.
    pub async fn until(
        &self,
        job: JobId,
        what: &str,
        wanted: impl Fn(&JobRecord) -> bool,
    ) -> JobRecord {
        self.until_within(PATIENCE, job, what, wanted).await
    }

    pub async fn until_within(
        &self,
        patience: Duration,
        job: JobId,
        what: &str,
        wanted: impl Fn(&JobRecord) -> bool,
    ) -> JobRecord {
        let deadline = Instant::now() + patience;
        loop {
            let record = self.job(job).await;
            if wanted(&record) {
                return record;
            }
            assert!(Instant::now() < deadline, "not {what}: {record:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn until_final(&self, job: JobId) -> JobRecord {
        self.until(job, "final", |record| record.state.is_final())
            .await
    }

    /// Waits until the job has logged this line so often.
    pub async fn until_logged(&self, job: JobId, line: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = self.ledger.log_lines(job, 0).await.expect("its log");
            if lines.iter().filter(|kept| kept.line == line).count() >= times {
                return;
            }
            if Instant::now() > deadline {
                let record = self.job(job).await;
                panic!("{line:?} was not logged: {lines:?} {record:#?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Waits for a condition.
pub async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn builder(ledger: Ledger, url: &str, scratch: PathBuf) -> WorkerBuilder {
    let registry = Registry::empty().with(Slow).with(Quick);
    WorkerBuilder::new(
        "test",
        ledger,
        Arc::new(registry),
        Arc::new(TestServices { scratch }),
    )
    .heartbeat_over(url, options())
    .slots(Slots { long: 2, short: 4 })
    .timing(QUICK)
}

/// A worker that runs in this process.
pub struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), WorkerError>>,
}

impl Running {
    pub fn start(builder: WorkerBuilder) -> Self {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(builder.build().run(shutdown.clone()));
        Self { shutdown, task }
    }

    /// Asks it to drain, and waits until it has.
    pub async fn drain(self) {
        self.shutdown.cancel();
        self.ended().await;
    }

    /// Waits until it ends by itself.
    pub async fn ended(self) {
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the worker ends")
            .expect("the worker does not panic")
            .expect("the worker ends well");
    }

    pub fn abandon(&self) {
        self.task.abort();
    }
}

/// What a test binary that is to be a worker is told.
const CHILD: &str = "FETTLER_TEST_WORKER";

#[derive(Serialize, Deserialize)]
struct ChildOrder {
    url: String,
    scratch: PathBuf,
    adopt: Option<(JobId, AttemptToken)>,
    lease_ms: u64,
    heartbeat_ms: u64,
}

/// The command that runs this very test binary as a worker.
pub fn child_command(
    fixture: &Fixture,
    adopt: Option<(JobId, AttemptToken)>,
    timing: Timing,
) -> Command {
    child_command_of(&fixture.url, &fixture.scratch(), adopt, timing)
}

pub fn child_command_of(
    url: &str,
    scratch: &std::path::Path,
    adopt: Option<(JobId, AttemptToken)>,
    timing: Timing,
) -> Command {
    let millis = |time: Duration| u64::try_from(time.as_millis()).expect("short");
    let order = ChildOrder {
        url: url.to_owned(),
        scratch: scratch.to_owned(),
        adopt,
        lease_ms: millis(timing.lease),
        heartbeat_ms: millis(timing.heartbeat),
    };
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command
        .args(["--exact", "worker_process", "--nocapture", "--ignored"])
        .env(CHILD, serde_json::to_string(&order).expect("plain data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// What the test called `worker_process` does in a process that [`child_command`] has started.
pub fn be_a_worker() {
    let Ok(order) = std::env::var(CHILD) else {
        return;
    };
    let order: ChildOrder = serde_json::from_str(&order).expect("an order");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let ledger = Ledger::open_with(&order.url, options())
            .await
            .expect("a ledger");
        let mut builder = builder(ledger, &order.url, order.scratch).timing(Timing {
            lease: Duration::from_millis(order.lease_ms),
            heartbeat: Duration::from_millis(order.heartbeat_ms),
            ..QUICK
        });
        if let Some((job, token)) = order.adopt {
            builder = builder.adopt(job, token);
        }
        builder
            .build()
            .run(CancellationToken::new())
            .await
            .expect("the worker ends well");
    });
}

/// A process that is killed when the test ends.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}
