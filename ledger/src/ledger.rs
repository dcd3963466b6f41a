#![allow(clippy::todo, unused_variables, clippy::unused_async)]
//! Signatures.

use std::{sync::Arc, time::Duration};

use fettler_model::*;
use serde_json::Value;

use crate::*;

/// How a ledger is opened.
#[derive(Clone, Debug)]
pub struct LedgerOptions {
    /// The password of a `postgres://` ledger, where the URL holds none.
    pub password: Option<Secret>,
    /// A waiting job rises one priority level per this time (rule 16).
    pub ageing: Duration,
    /// The first retry waits up to this long; each further one up to twice as long as the one before.
    pub retry_base: Duration,
    /// No retry waits longer.
    pub retry_cap: Duration,
    /// How many connections are open at most.
    pub connections: u32,
}

impl Default for LedgerOptions {
    fn default() -> Self {
        Self {
            password: None,
            ageing: Duration::from_secs(300),
            retry_base: Duration::from_secs(5),
            retry_cap: Duration::from_secs(3600),
            connections: 8,
        }
    }
}

/// The ledger.
#[derive(Clone, Debug)]
pub struct Ledger {}

/// Tells when jobs may have become claimable. See [`Ledger::wakeups`].
#[derive(Debug)]
pub struct Wakeups {}

impl Wakeups {
    /// Waits until something may have become claimable since the last call. Cancellation safe.
    pub async fn changed(&mut self) {
        todo!()
    }
}

#[allow(missing_docs, clippy::missing_errors_doc)]
impl Ledger {
    /// Opens the ledger at `sqlite:/path/ledger.db` (made if missing, readable by its owner only) or
    /// `postgres://user@host/database`, and brings its schema up to date.
    pub async fn open(url: &str) -> Result<Self> {
        todo!()
    }
    /// The same with options.
    pub async fn open_with(url: &str, options: LedgerOptions) -> Result<Self> {
        todo!()
    }
    /// Closes the connections; commits on their way are finished.
    pub async fn close(&self) {
        todo!()
    }
    /// The ledger's clock.
    pub async fn now(&self) -> Result<Timestamp> {
        todo!()
    }
    /// Subscribes to "jobs may be claimable", as far as this process knows or is told.
    pub fn wakeups(&self) -> Wakeups {
        todo!()
    }
    /// Tells this process that jobs may be claimable, as another process said (the socket of `up`).
    pub fn poke(&self) {
        todo!()
    }
    /// Sets what is called (beside waking this process) when this handle has made jobs claimable or
    /// asked for a cancellation: the way to another process that runs the workers.
    pub fn set_wake_hook(&self, hook: Arc<dyn Fn() + Send + Sync>) {
        todo!()
    }
    /// Cancellations that this process asked for, at once (a heartbeat brings those of others).
    pub fn cancellations(&self) -> tokio::sync::broadcast::Receiver<JobId> {
        todo!()
    }

    // tenants, databases, secrets
    pub async fn add_tenant(&self, tenant: &TenantId) -> Result<TenantRecord> {
        todo!()
    }
    /// Adds it unless it is there.
    pub async fn ensure_tenant(&self, tenant: &TenantId) -> Result<()> {
        todo!()
    }
    pub async fn tenants(&self) -> Result<Vec<TenantRecord>> {
        todo!()
    }
    pub async fn tenant(&self, tenant: &TenantId) -> Result<TenantRecord> {
        todo!()
    }
    pub async fn remove_tenant(&self, tenant: &TenantId) -> Result<()> {
        todo!()
    }
    /// Adds a database; `id`, `identity_key` and `created` as given (`created` is set by the ledger).
    pub async fn add_database(&self, record: &DatabaseRecord) -> Result<DatabaseRecord> {
        todo!()
    }
    pub async fn edit_database(
        &self,
        id: DatabaseId,
        change: DatabaseChange,
    ) -> Result<DatabaseRecord> {
        todo!()
    }
    pub async fn databases(&self, tenant: Option<&TenantId>) -> Result<Vec<DatabaseRecord>> {
        todo!()
    }
    pub async fn database(&self, id: DatabaseId) -> Result<DatabaseRecord> {
        todo!()
    }
    /// By name, by id or by the URL of a tenant's database.
    pub async fn find_database(&self, tenant: &TenantId, name: &str) -> Result<DatabaseRecord> {
        todo!()
    }
    pub async fn remove_database(&self, id: DatabaseId) -> Result<()> {
        todo!()
    }
    /// Records the database's own identity (rule 17); what `asking` holds is held under it from then on.
    pub async fn set_identity(
        &self,
        id: DatabaseId,
        key: &str,
        asking: Option<Fencing>,
    ) -> Result<IdentityOutcome> {
        todo!()
    }
    pub async fn put_sealed(&self, tenant: &TenantId, sealed: &[u8]) -> Result<SealedId> {
        todo!()
    }
    pub async fn sealed(&self, tenant: &TenantId, id: SealedId) -> Result<Vec<u8>> {
        todo!()
    }
    pub async fn remove_sealed(&self, tenant: &TenantId, id: SealedId) -> Result<()> {
        todo!()
    }

    // policies, ticks, leader
    pub async fn add_policy(&self, record: &PolicyRecord) -> Result<PolicyRecord> {
        todo!()
    }
    pub async fn edit_policy(&self, id: PolicyId, change: PolicyChange) -> Result<PolicyRecord> {
        todo!()
    }
    pub async fn policies(&self, tenant: Option<&TenantId>) -> Result<Vec<PolicyRecord>> {
        todo!()
    }
    pub async fn policies_of(&self, database: DatabaseId) -> Result<Vec<PolicyRecord>> {
        todo!()
    }
    pub async fn policy(&self, id: PolicyId) -> Result<PolicyRecord> {
        todo!()
    }
    pub async fn find_policy(&self, tenant: &TenantId, name: &str) -> Result<PolicyRecord> {
        todo!()
    }
    pub async fn remove_policy(&self, id: PolicyId) -> Result<()> {
        todo!()
    }
    /// Policies whose next due time has come, by the ledger's clock, oldest first.
    pub async fn due(&self, limit: usize) -> Result<Vec<PolicyRecord>> {
        todo!()
    }
    /// The nearest next due time of all policies.
    pub async fn next_due(&self) -> Result<Option<Timestamp>> {
        todo!()
    }
    /// Decides one due time, in one transaction with its job and the policy's next due time (rule 18).
    /// Fenced by `leader` when given: a former leader's tick is refused as a conflict.
    pub async fn tick(&self, tick: &Tick, leader: Option<&Leadership>) -> Result<TickResult> {
        todo!()
    }
    /// Sets the next due time without a tick (a policy that is new, or whose time had jumped).
    pub async fn set_next_due(&self, policy: PolicyId, next_due: Option<Timestamp>) -> Result<()> {
        todo!()
    }
    /// The newest ticks of a policy, newest first.
    pub async fn ticks(&self, policy: PolicyId, limit: usize) -> Result<Vec<TickRecord>> {
        todo!()
    }
    /// Takes or renews the lead; none while another holds it.
    pub async fn lead(
        &self,
        name: &str,
        holder: &str,
        duration: Duration,
    ) -> Result<Option<Leadership>> {
        todo!()
    }
    /// Gives the lead up at once.
    pub async fn resign(&self, leadership: &Leadership) -> Result<()> {
        todo!()
    }
    /// Who leads, if the lease has not run out.
    pub async fn leader(&self, name: &str) -> Result<Option<Leadership>> {
        todo!()
    }

    // jobs
    pub async fn submit(
        &self,
        request: JobRequest,
        idempotency: Option<Idempotency>,
    ) -> Result<Submitted> {
        todo!()
    }
    /// Each request has an answer of its own: a bad one fails alone (rule 8).
    pub async fn submit_batch(
        &self,
        requests: Vec<(JobRequest, Option<Idempotency>)>,
    ) -> Vec<Result<Submitted>> {
        todo!()
    }
    pub async fn claim(&self, request: &ClaimRequest) -> Result<ClaimedBatch> {
        todo!()
    }
    /// Claims these jobs only, as a queue delivered them; the slots still bound how many.
    pub async fn claim_by_ids(
        &self,
        request: &ClaimRequest,
        ids: &[JobId],
    ) -> Result<ClaimedBatch> {
        todo!()
    }
    /// Renews the leases of all of a worker's jobs in one statement; answers in the order of `beats`.
    pub async fn heartbeat(
        &self,
        worker: &str,
        beats: &[Beat],
        lease: Duration,
    ) -> Result<Vec<BeatAnswer>> {
        todo!()
    }
    /// Whether this attempt is the job's newest and runs.
    pub async fn check_fence(&self, fencing: Fencing) -> Result<()> {
        todo!()
    }
    pub async fn save_checkpoint(&self, fencing: Fencing, checkpoint: &Value) -> Result<()> {
        todo!()
    }
    pub async fn load_checkpoint(&self, job: JobId) -> Result<Option<Value>> {
        todo!()
    }
    pub async fn complete(&self, fencing: Fencing, ending: Ending) -> Result<Ended> {
        todo!()
    }
    pub async fn request_cancel(&self, job: JobId) -> Result<CancelOutcome> {
        todo!()
    }
    /// Submits an ended job again as a new job that names the old one.
    pub async fn retry(&self, job: JobId) -> Result<Submitted> {
        todo!()
    }
    /// Takes back up to a page of jobs whose lease ran out. Nothing is taken back within one `lease`
    /// of an outage of the ledger (rule 5). Call again at once when a full page came.
    pub async fn rescue(&self, lease: Duration) -> Result<Vec<Rescued>> {
        todo!()
    }
    /// Ends queued jobs whose deadline has passed, and frees what is parked where nothing holds it (the
    /// net below rule 4). Returns the expired.
    pub async fn expire(&self) -> Result<Vec<JobId>> {
        todo!()
    }
    pub async fn job(&self, id: JobId) -> Result<JobRecord> {
        todo!()
    }
    /// By the beginning or the end of the id (at least four digits).
    pub async fn find_job(&self, tenant: Option<&TenantId>, part: &str) -> Result<JobRecord> {
        todo!()
    }
    /// Newest first.
    pub async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobRecord>> {
        todo!()
    }
    pub async fn attempts(&self, job: JobId) -> Result<Vec<AttemptRecord>> {
        todo!()
    }
    /// Keeps lines with the job: the newest thousand, each cut to two kilobytes.
    pub async fn append_log(&self, fencing: Fencing, lines: &[String]) -> Result<()> {
        todo!()
    }
    /// The lines after this number, oldest first.
    pub async fn log_lines(&self, job: JobId, after: u64) -> Result<Vec<LogLine>> {
        todo!()
    }
    pub async fn counts(&self) -> Result<Counts> {
        todo!()
    }
    /// Says that a worker is there and what it can run; `heartbeat` and `claim` do so too.
    pub async fn announce_worker(
        &self,
        worker: &str,
        kinds: &[JobKindName],
        lease: Duration,
    ) -> Result<()> {
        todo!()
    }
    /// Says that a worker is gone, in good order.
    pub async fn remove_worker(&self, worker: &str) -> Result<()> {
        todo!()
    }
    pub async fn workers(&self) -> Result<Vec<WorkerRecord>> {
        todo!()
    }
    /// Removes the oldest history until none is older than `keep` and at most `max_bytes` are held;
    /// a page per call, returning how many jobs were removed.
    pub async fn prune_history(&self, keep: Duration, max_bytes: u64) -> Result<u64> {
        todo!()
    }

    // artefacts
    pub async fn record_artefact(&self, fencing: Fencing, name: &str, data: &Value) -> Result<()> {
        todo!()
    }
    /// Not fenced: whoever removes what an ended attempt left says so too.
    pub async fn remove_artefact(&self, job: JobId, token: AttemptToken, name: &str) -> Result<()> {
        todo!()
    }
    /// What attempts left that have ended, oldest first.
    pub async fn orphaned_artefacts(&self, limit: usize) -> Result<Vec<ArtefactRecord>> {
        todo!()
    }

    // catalogue
    pub async fn upsert_backup(
        &self,
        place: &str,
        facts: &BackupFacts,
        fencing: Option<Fencing>,
    ) -> Result<()> {
        todo!()
    }
    pub async fn set_backup_state(
        &self,
        id: BackupId,
        state: BackupState,
        why: &str,
        fencing: Option<Fencing>,
    ) -> Result<()> {
        todo!()
    }
    pub async fn record_proof(&self, proof: &ProofFacts, fencing: Option<Fencing>) -> Result<()> {
        todo!()
    }
    pub async fn backup(&self, id: BackupId) -> Result<BackupRecord> {
        todo!()
    }
    /// By the beginning or the end of the id (at least four digits).
    pub async fn find_backup(&self, tenant: Option<&TenantId>, part: &str) -> Result<BackupRecord> {
        todo!()
    }
    pub async fn backups(&self, filter: &BackupFilter) -> Result<Vec<BackupRecord>> {
        todo!()
    }
    pub async fn proofs(&self, backup: BackupId) -> Result<Vec<ProofFacts>> {
        todo!()
    }

    // events
    pub async fn events_after(
        &self,
        position: EventPosition,
        limit: usize,
    ) -> Result<Vec<EventRecord>> {
        todo!()
    }
}
