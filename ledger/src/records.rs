//! What the ledger keeps, as its callers see it.

use std::{collections::BTreeMap, time::Duration};

use fettler_model::{
    AttemptOutcome, AttemptToken, BackupFacts, BackupId, BackupState, DatabaseId, DatabaseName,
    DatabaseUrl, ExclusionClass, JobId, JobKindName, JobState, JobTerms, JobWindow, LoadLimits,
    PolicyId, PolicyName, PolicySpec, Priority, Problem, Progress, ProofFacts, Role, Scope,
    SecretReference, SlotClass, TenantId, TickOutcome, Timestamp, TokenId, TokenName, WaitReason,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// A tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TenantRecord {
    /// Its name, which is its id.
    pub id: TenantId,
    /// When it was added.
    pub created: Timestamp,
    /// How many turns it has for each of another's that has a weight of 1 (rule 16).
    pub weight: f64,
    /// None of its jobs is submitted with a higher priority.
    pub priority_ceiling: Priority,
}

/// A change to a tenant; what is none stays.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TenantChange {
    /// A new weight, from 0.001 to 1000.
    pub weight: Option<f64>,
    /// A new ceiling, for jobs that are submitted from now on.
    pub priority_ceiling: Option<Priority>,
}

/// A database that Fettler looks after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DatabaseRecord {
    /// Its id.
    pub id: DatabaseId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name, unique within the tenant.
    pub name: DatabaseName,
    /// Where it is.
    pub url: DatabaseUrl,
    /// Where its password lies.
    pub password: Option<SecretReference>,
    /// The database's own identity, once a job has asked it (rule 17).
    pub identity_key: Option<String>,
    /// Words by which workers and selectors choose it.
    pub labels: BTreeMap<String, String>,
    /// Where its proofs restore to, as the engines' contract writes it.
    pub sandbox: Value,
    /// When it was added.
    pub created: Timestamp,
    /// Its own terms for the jobs about it.
    #[serde(default)]
    pub terms: DatabaseTerms,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyRecord {
    /// Its id.
    pub id: PolicyId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name, unique within the tenant.
    pub name: PolicyName,
    /// The database that its jobs are about.
    pub database: Option<DatabaseId>,
    /// What it says.
    pub spec: PolicySpec,
    /// Its next due time; none while it is paused or its expression names no further time.
    pub next_due: Option<Timestamp>,
    /// The last job that it made.
    pub last_job: Option<JobId>,
    /// When it was added.
    pub created: Timestamp,
}

/// One due time of a policy, and what became of it (rule 18).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TickRecord {
    /// The policy.
    pub policy: PolicyId,
    /// The due time.
    pub due: Timestamp,
    /// What became of it.
    pub outcome: TickOutcome,
    /// When it was decided.
    pub decided: Timestamp,
}

/// What is to become of a due time. See [`crate::Ledger::tick`].
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// The policy.
    pub policy: PolicyId,
    /// The due time.
    pub due: Timestamp,
    /// What to do.
    pub action: TickAction,
    /// The policy's next due time after this one.
    pub next_due: Option<Timestamp>,
}

/// See [`Tick`].
#[derive(Clone, Debug, PartialEq)]
pub enum TickAction {
    /// Submit this job.
    Submit(Box<fettler_model::JobRequest>),
    /// Skip it, for this reason. [`TickOutcome::Job`] says that a job which is there already
    /// answers it.
    Record(TickOutcome),
}

/// What [`crate::Ledger::tick`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TickResult {
    /// This call decided the due time.
    Decided(TickOutcome),
    /// It was decided before, by this scheduler or another one; nothing was written.
    AlreadyTicked(TickOutcome),
}

/// The leadership that [`crate::Ledger::lead`] gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leadership {
    /// What is led.
    pub name: String,
    /// Who leads.
    pub holder: String,
    /// Rises with each change of the leader: what a former leader still writes can be refused.
    pub term: i64,
    /// Until when, by the ledger's clock.
    pub until: Timestamp,
}

/// A submitted job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// The job.
    pub job: JobId,
    /// Whether it was there before: the same idempotency key, or a unique key that is taken.
    pub existing: bool,
}

/// An idempotency key with a hash of the request that it came with (rule 12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The key, the caller's own; it is the tenant's alone.
    pub key: String,
    /// A hash of the request: the same key with another hash is refused.
    pub request_hash: [u8; 32],
}

/// A job, live or ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its kind.
    pub kind: JobKindName,
    /// The version of the kind whose arguments it holds.
    pub kind_version: u32,
    /// The database that it is about.
    pub database: Option<DatabaseId>,
    /// The kind's arguments.
    pub arguments: Value,
    /// What may run beside it on its database.
    pub exclusion: ExclusionClass,
    /// Which slot of a worker it takes.
    pub slot: SlotClass,
    /// How urgent it is.
    pub priority: Priority,
    /// When it was submitted.
    pub submitted: Timestamp,
    /// The time before which it does not run: asked for, or set by a retry or a snooze.
    pub not_before: Option<Timestamp>,
    /// Expired after this moment.
    pub deadline: Option<Timestamp>,
    /// Dead after this many tries.
    pub max_tries: u32,
    /// At most one queued or running job of the tenant has this key.
    pub unique_key: Option<String>,
    /// The job that this one repeats.
    pub retry_of: Option<JobId>,
    /// Free words of the user's.
    pub tags: Vec<String>,
    /// Its state.
    pub state: JobState,
    /// Why it waits (P12), while it is queued.
    pub wait: Option<WaitReason>,
    /// How many attempts were started.
    pub attempt: u32,
    /// How many tries were spent.
    pub tries: u32,
    /// How many attempts were lost with their worker.
    pub lost: u32,
    /// Whether its next attempt runs alone in a process of its own, because the last one was lost
    /// with its worker (rule 7).
    pub isolated: bool,
    /// The worker of the newest attempt.
    pub worker: Option<String>,
    /// When the newest attempt started.
    pub started: Option<Timestamp>,
    /// When the job ended.
    pub ended: Option<Timestamp>,
    /// When the lease of the running attempt ends, unless it is renewed.
    pub lease_until: Option<Timestamp>,
    /// When its cancellation was asked for.
    pub cancel_requested: Option<Timestamp>,
    /// How far the running attempt is.
    pub progress: Option<Progress>,
    /// What it gave.
    pub result: Option<Value>,
    /// What it failed with: the last attempt, while it is queued again; for good, when it is dead.
    pub problem: Option<Problem>,
    /// The terms under which it runs.
    pub terms: JobTerms,
    /// What it asks of a worker beside its kind, while it lives: a newer version, labels that reach its database;
    /// empty for nothing.
    pub line: String,
}

/// How many jobs of a scope may run at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitRecord {
    /// Which jobs it counts.
    pub scope: Scope,
    /// How many may run at once.
    pub most: u64,
    /// How many run now.
    pub running: u64,
    /// When it was set first.
    pub created: Timestamp,
}

/// A scope whose jobs do not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PauseRecord {
    /// Which jobs wait.
    pub scope: Scope,
    /// Since when.
    pub since: Timestamp,
    /// What was said about it.
    pub because: Option<String>,
}

/// A database's own terms for the jobs about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DatabaseTerms {
    /// Its maintenance window: jobs about it that name no window of their own run within it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<JobWindow>,
    /// How busy its server may be when a long job on it begins.
    #[serde(skip_serializing_if = "LoadLimits::is_empty")]
    pub load: LoadLimits,
    /// The labels that a worker must have to reach it (rule 17).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub reach: BTreeMap<String, String>,
}

/// What a worker asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimRequest {
    /// The worker's own id, never used by another process or by the same one after a restart.
    pub worker: String,
    /// The kinds that it can run.
    pub kinds: Vec<JobKindName>,
    /// How many long jobs it has room for.
    pub long: usize,
    /// How many short jobs it has room for.
    pub short: usize,
    /// How long the claim holds without renewal.
    pub lease: Duration,
    /// Only these jobs: for a worker that was started for one job.
    pub only: Option<Vec<JobId>>,
    /// What it can beside that.
    pub skills: WorkerSkills,
}

/// What a worker can beside running the first version of its kinds (rule 17).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerSkills {
    /// The newest version that it knows of a kind; 1 where none is named.
    pub versions: BTreeMap<JobKindName, u32>,
    /// Its labels: databases that ask for some of them can be reached by it.
    pub labels: BTreeMap<String, String>,
}

/// The claimable jobs of one slot class, kind and tenant: an order of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedLine {
    /// Which slot they take.
    pub slot: SlotClass,
    /// Their kind.
    pub kind: JobKindName,
    /// What they ask of a worker beside that; empty for nothing.
    pub line: String,
    /// Whose they are.
    pub tenant: TenantId,
}

/// A claimable job, as a queue has to know it (rule 13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedJob {
    /// The job.
    pub id: JobId,
    /// The number of its last attempt.
    pub attempt: u32,
    /// Whose it is.
    pub tenant: TenantId,
    /// How urgent it is.
    pub priority: Priority,
    /// Its kind.
    pub kind: JobKindName,
    /// The version of its kind.
    pub kind_version: u32,
    /// What it asks of a worker beside that; empty for nothing.
    pub line: String,
    /// Which slot it takes.
    pub slot: SlotClass,
    /// Its place in the order of claims, smaller first: the time from which its age counts, less one ageing
    /// interval for each priority level.
    pub rank: Timestamp,
}

/// A job that a commit made claimable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readied {
    /// All that a queue has to know was in the commit's own answer.
    Known(Box<QueuedJob>),
    /// What else there is to know is still to be read; see [`crate::Ledger::queued`].
    Named(JobId),
}

impl Readied {
    /// Which job.
    #[must_use]
    pub fn id(&self) -> JobId {
        match self {
            Self::Known(job) => job.id,
            Self::Named(id) => *id,
        }
    }
}

/// A job that the worker owns until the lease ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// The job.
    pub job: JobRecord,
    /// The attempt's fencing token.
    pub token: AttemptToken,
    /// When the lease ends by the ledger's clock.
    pub lease_until: Timestamp,
}

/// What a claim gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimedBatch {
    /// The jobs, in the order in which they are to start.
    pub jobs: Vec<Claimed>,
    /// How long until a delayed job is due, when one is: nothing wakes a worker for it.
    pub next_due_in: Option<Duration>,
}

/// A running job in a heartbeat.
#[derive(Clone, Debug, PartialEq)]
pub struct Beat {
    /// The job.
    pub job: JobId,
    /// The attempt's token.
    pub token: AttemptToken,
    /// How far it is, when that changed.
    pub progress: Option<Progress>,
}

/// What a heartbeat brings back for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeatAnswer {
    /// The lease holds for another period.
    Renewed,
    /// The lease holds, and the job is to be cancelled.
    CancelRequested,
    /// The attempt is not the newest any more, or the job has ended.
    Superseded,
}

/// How an attempt ended, as its worker reports it.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// The work is done.
    Succeeded {
        /// What it gave.
        result: Value,
    },
    /// It was not done; the problem's class decides what becomes of the job: transient is tried again
    /// with backoff, permanent is dead, snooze and interrupted spend no try, cancelled ends it.
    Failed {
        /// Why.
        problem: Problem,
    },
    /// The process of its own that it ran in died with it (rule 7).
    Died {
        /// What was seen.
        problem: Problem,
    },
}

/// What became of a job when its attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// The job ended in this state.
    Final(JobState),
    /// It is queued again.
    Queued {
        /// Not before this moment, when it waits for one.
        not_before: Option<Timestamp>,
    },
}

/// What [`crate::Ledger::request_cancel`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// It was queued, and is cancelled.
    Cancelled,
    /// It runs, and its attempt is asked to stop.
    Requested,
    /// It had ended before.
    AlreadyEnded(JobState),
}

/// What [`crate::Ledger::cancel_matching`] did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BulkCancel {
    /// So many waited, and are cancelled.
    pub cancelled: u64,
    /// So many run, and are asked to stop.
    pub asked: u64,
    /// There is more to do than fitted the time of one request: asked for again from here, it goes on.
    #[serde(default)]
    pub next: Option<JobId>,
}

/// What [`crate::Ledger::replay_matching`] did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BulkReplay {
    /// So many are submitted again.
    pub submitted: u64,
    /// So many had been replayed before.
    pub already: u64,
    /// So many cannot be submitted any more.
    pub refused: u64,
    /// The first of those, and why.
    pub first_refusal: Option<(JobId, Problem)>,
    /// There is more to do than fitted the time of one request: asked for again from here, it goes on.
    #[serde(default)]
    pub next: Option<JobId>,
}

/// A job that was taken back from an attempt that vanished.
#[derive(Clone, Debug, PartialEq)]
pub struct Rescued {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: JobKindName,
    /// Whose it is.
    pub tenant: TenantId,
    /// The attempt that was lost.
    pub token: AttemptToken,
    /// The worker that had it.
    pub worker: Option<String>,
    /// What became of the job.
    pub ended: Ended,
}

/// One attempt of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptRecord {
    /// From 1.
    pub number: u32,
    /// Its token.
    pub token: AttemptToken,
    /// The worker that ran it.
    pub worker: Option<String>,
    /// When it started.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// How it ended; none while it runs.
    pub outcome: Option<AttemptOutcome>,
    /// What it failed with.
    pub problem: Option<Problem>,
}

/// A line of the log that is kept with a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    /// Rises from 1 within the job.
    pub number: u64,
    /// When it was written.
    pub at: Timestamp,
    /// The attempt that wrote it.
    pub attempt: u32,
    /// What it says.
    pub line: String,
}

/// Which jobs to list. The default lists the newest hundred of all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// In one of these states; none given means all.
    pub states: Vec<JobState>,
    /// Of this kind.
    pub kind: Option<JobKindName>,
    /// About this database.
    pub database: Option<DatabaseId>,
    /// Carrying this tag.
    pub tag: Option<String>,
    /// Older than this one: the last of the page before.
    pub before: Option<JobId>,
    /// At most this many; zero means a hundred.
    pub limit: usize,
}

/// Something that an attempt made outside the ledger (rule 6).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArtefactRecord {
    /// The job whose attempt made it.
    pub job: JobId,
    /// Whose job it is.
    pub tenant: TenantId,
    /// The database that the job is about.
    pub database: Option<DatabaseId>,
    /// The attempt.
    pub token: AttemptToken,
    /// Names it within the job: recording the same name again replaces the data.
    pub name: String,
    /// What is needed to remove it.
    pub data: Value,
    /// When it was recorded.
    pub recorded: Timestamp,
}

/// A backup in the catalogue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackupRecord {
    /// The repository that holds it, as text.
    pub place: String,
    /// What is known of it.
    pub facts: BackupFacts,
    /// What may be said of it.
    pub state: BackupState,
    /// Why that may be said.
    pub state_why: Option<String>,
    /// Its last proof.
    pub last_proof: Option<ProofFacts>,
}

/// Which backups to list: all of them by default, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BackupFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// In this repository.
    pub place: Option<String>,
    /// Of this database.
    pub database: Option<DatabaseId>,
    /// In one of these states; none given means all but the forgotten.
    pub states: Vec<BackupState>,
    /// After this one in the list: the last of the page before, by when it finished and its id.
    pub before: Option<(Timestamp, BackupId)>,
    /// At most this many; zero means all.
    pub limit: usize,
}

/// The attempt that writes, where a write is fenced (P2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fencing {
    /// The job.
    pub job: JobId,
    /// The attempt's token.
    pub token: AttemptToken,
}

/// Where an event stands. Positions rise in the order in which readers can see events (rule 10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventPosition {
    /// The transaction that wrote it, where transactions overlap; zero where they do not.
    pub transaction: i64,
    /// Its number.
    pub number: i64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    /// Where it stands.
    pub position: EventPosition,
    /// When it happened.
    pub at: Timestamp,
    /// Whose it is.
    pub tenant: TenantId,
    /// What happened, such as `job.succeeded` or `backup.damaged`.
    pub kind: String,
    /// The job that it is about.
    pub job: Option<JobId>,
    /// What else there is to say.
    pub data: Value,
}

/// A worker that the ledger has heard of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerRecord {
    /// Its own id.
    pub id: String,
    /// What it can run.
    pub kinds: Vec<JobKindName>,
    /// What it can beside that.
    #[serde(flatten)]
    pub skills: WorkerSkills,
    /// When it was first heard of.
    pub first_seen: Timestamp,
    /// When it was last heard of.
    pub last_seen: Timestamp,
    /// Until when it counts as alive.
    pub alive_until: Timestamp,
}

/// How many jobs there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Queued, for whatever reason.
    pub queued: u64,
    /// Running.
    pub running: u64,
}

/// An id under which a secret was sealed.
pub type SealedId = Uuid;

/// What [`crate::Ledger::set_identity`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityOutcome {
    /// The identity is known now, and the job (if one asked) holds the database under it.
    Known,
    /// Another job works on the same database under another record: the asking job must step back.
    Busy {
        /// The job that works on it.
        job: JobId,
        /// Its kind.
        kind: JobKindName,
    },
}

/// A change to a database's record; what is none stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DatabaseChange {
    /// A new name.
    pub name: Option<DatabaseName>,
    /// A new place; the identity is asked for again.
    pub url: Option<DatabaseUrl>,
    /// A new password, or none.
    pub password: Option<Option<SecretReference>>,
    /// New labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// A new sandbox.
    pub sandbox: Option<Value>,
    /// New terms, for jobs that are submitted from now on.
    pub terms: Option<DatabaseTerms>,
}

/// A change to a policy; what is none stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyChange {
    /// A new name.
    pub name: Option<PolicyName>,
    /// Another database, or none.
    pub database: Option<Option<DatabaseId>>,
    /// What it says now.
    pub spec: Option<PolicySpec>,
    /// Its next due time.
    pub next_due: Option<Option<Timestamp>>,
}

/// Which events to read: all of them by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// About this job.
    pub job: Option<JobId>,
}

/// A token that is to be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// Its name.
    pub name: TokenName,
    /// Whose things it sees; none sees all.
    pub tenant: Option<TenantId>,
    /// What it may do.
    pub role: Role,
    /// Refused from this moment on.
    pub expires: Option<Timestamp>,
    /// The hash of its text.
    pub hash: [u8; 32],
}

/// A token, without what opens anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenRecord {
    /// Its id.
    pub id: TokenId,
    /// Its name, unique within its tenant.
    pub name: TokenName,
    /// Whose things it sees; none sees all.
    pub tenant: Option<TenantId>,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created: Timestamp,
    /// Refused from this moment on.
    pub expires: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used: Option<Timestamp>,
}

/// A token that somebody bears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownToken {
    /// The token.
    pub record: TokenRecord,
    /// Whether its time is over, by the ledger's clock.
    pub is_expired: bool,
    /// Whether its use is worth recording.
    pub is_touch_due: bool,
}

/// What the catalogue says of one repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepositoryStatistics {
    /// The repository, as text.
    pub place: String,
    /// How many backups it has.
    pub backups: u64,
    /// How many of them are damaged.
    pub damaged: u64,
    /// How many of them are proven.
    pub proven: u64,
    /// Bytes of their sources, all backups together.
    pub bytes_read: u64,
    /// Bytes that were put into the store for them.
    pub bytes_stored: u64,
    /// When the oldest one was finished.
    pub oldest: Timestamp,
    /// When the newest one was finished.
    pub newest: Timestamp,
}

/// How many live jobs there are of one kind in one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobCount {
    /// The kind.
    pub kind: JobKindName,
    /// The state.
    pub state: JobState,
    /// How many.
    pub jobs: u64,
    /// When the oldest of them was submitted, or was to begin.
    pub oldest: Timestamp,
}

/// How many jobs of a tenant wait for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitCount {
    /// The tenant.
    pub tenant: TenantId,
    /// The name of the reason, as [`WaitReason`] has it.
    pub reason: String,
    /// How many.
    pub jobs: u64,
}

/// When the backups of a database were last proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastProof {
    /// Whose it is.
    pub tenant: TenantId,
    /// The database.
    pub database: DatabaseId,
    /// When its newest backup was complete.
    pub backed_up: Timestamp,
    /// When one of its backups was last found proven; none when none ever was.
    pub proven: Option<Timestamp>,
}
