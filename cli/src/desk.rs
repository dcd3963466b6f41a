//! Where a command looks and what it changes: the ledger of this folder, or another Fettler over HTTP
//! (`--server`). Both give the same records, so that a command prints the same whichever it asked.

use fettler_api::http::{
    Accepted, AttemptList, CancelAnswer, CancelWord, FindingHistory, LimitList, LogPage, Matching,
    PauseInput, PauseList, PolicyDocument, PriorityInput, ResumeAnswer, SuppressionInput,
    TokenList,
};
use fettler_ledger::{
    AttemptRecord, BackupFilter, BackupRecord, BulkCancel, BulkReplay, CancelOutcome,
    DatabaseRecord, FindingFilter, FindingRecord, JobFilter, JobRecord, Ledger, LedgerError,
    LimitRecord, LogLine, PauseRecord, PolicyRecord, Submitted, TenantRecord, TokenRecord,
};
use fettler_model::{FindingChange, JobId, Priority, Scope, TenantId, Timestamp, TokenId};
use fettler_scheduler::PolicyPlan;
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    remote::{Remote, escaped},
};

/// More rows than a command prints.
const MOST: usize = 10_000;
/// As many lines as a job's log keeps.
const MOST_LINES: usize = 10_000;

/// Here or there.
pub(crate) enum Desk<'a> {
    /// The ledger of this folder.
    Here(&'a Ledger),
    /// Another Fettler.
    There(&'a Remote),
}

fn of(tenant: &TenantId) -> Vec<(&'static str, String)> {
    vec![("tenant", tenant.to_string())]
}

fn words<T>(all: &[T], word: impl Fn(&T) -> &'static str) -> String {
    all.iter().map(word).collect::<Vec<_>>().join(",")
}

/// A filter as the interface takes it.
fn matching(filter: &JobFilter, after: Option<JobId>, dry_run: bool) -> Value {
    json!(Matching {
        tenant: filter.tenant.clone(),
        states: filter.states.clone(),
        kind: filter.kind.clone(),
        database: filter.database.map(|id| id.to_string()),
        tag: filter.tag.clone(),
        after,
        dry_run,
    })
}

impl Desk<'_> {
    /// Now: by the ledger's clock, or by this machine's where the ledger is elsewhere.
    pub(crate) async fn now(&self) -> Result<Timestamp, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.now().await?),
            Self::There(_) => Ok(Timestamp::now()),
        }
    }

    // --- jobs ---

    pub(crate) async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobRecord>, Failure> {
        let remote = match self {
            Self::Here(ledger) => return Ok(ledger.jobs(filter).await?),
            Self::There(remote) => remote,
        };
        let mut query = Vec::new();
        if let Some(tenant) = &filter.tenant {
            query.push(("tenant", tenant.to_string()));
        }
        if !filter.states.is_empty() {
            query.push(("state", words(&filter.states, |state| state.as_str())));
        }
        if let Some(kind) = &filter.kind {
            query.push(("kind", kind.to_string()));
        }
        if let Some(database) = filter.database {
            query.push(("database", database.to_string()));
        }
        remote
            .list("/api/v1/jobs", &query, filter.limit.max(1))
            .await
    }

    /// The job whose id begins or ends like this.
    pub(crate) async fn find_job(
        &self,
        tenant: &TenantId,
        part: &str,
    ) -> Result<JobRecord, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.find_job(Some(tenant), part).await?),
            Self::There(remote) => remote.get(&format!("/api/v1/jobs/{}", escaped(part))).await,
        }
    }

    pub(crate) async fn attempts(&self, id: JobId) -> Result<Vec<AttemptRecord>, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.attempts(id).await?),
            Self::There(remote) => {
                let list: AttemptList = remote.get(&format!("/api/v1/jobs/{id}/attempts")).await?;
                Ok(list.attempts)
            }
        }
    }

    pub(crate) async fn log_lines(&self, id: JobId) -> Result<Vec<LogLine>, Failure> {
        let remote = match self {
            Self::Here(ledger) => return Ok(ledger.log_lines(id, 0).await?),
            Self::There(remote) => remote,
        };
        let mut lines = Vec::new();
        let mut after = 0;
        while lines.len() < MOST_LINES {
            let path = format!("/api/v1/jobs/{id}/logs?limit=1000&cursor={after}");
            let page: LogPage = remote.get(&path).await?;
            lines.extend(page.lines);
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        Ok(lines)
    }

    pub(crate) async fn cancel(&self, id: JobId) -> Result<CancelOutcome, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.request_cancel(id).await?),
            Self::There(remote) => {
                let path = format!("/api/v1/jobs/{id}/cancel");
                let answer: CancelAnswer = remote.post(&path, &Value::Null).await?;
                Ok(match answer.cancel {
                    CancelWord::Cancelled => CancelOutcome::Cancelled,
                    CancelWord::Requested => CancelOutcome::Requested,
                    CancelWord::AlreadyEnded => CancelOutcome::AlreadyEnded(answer.state),
                })
            }
        }
    }

    pub(crate) async fn retry(&self, id: JobId) -> Result<Submitted, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.retry(id).await?),
            Self::There(remote) => {
                let path = format!("/api/v1/jobs/{id}/retry");
                let accepted: Accepted = remote.submit(&path, &Value::Null).await?;
                Ok(Submitted {
                    job: accepted.id,
                    existing: accepted.existing,
                })
            }
        }
    }

    // --- control ---

    pub(crate) async fn set_priority(
        &self,
        id: JobId,
        priority: Priority,
    ) -> Result<JobRecord, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.set_priority(id, priority).await?),
            Self::There(remote) => {
                let path = format!("/api/v1/jobs/{id}/priority");
                remote.post(&path, &json!(PriorityInput { priority })).await
            }
        }
    }

    /// Cancels all that match, however many requests that takes.
    pub(crate) async fn cancel_matching(
        &self,
        filter: &JobFilter,
        dry_run: bool,
    ) -> Result<BulkCancel, Failure> {
        let mut done = BulkCancel::default();
        loop {
            let part: BulkCancel = match self {
                Self::Here(ledger) => ledger.cancel_matching(filter, done.next, dry_run).await?,
                Self::There(remote) => {
                    let body = matching(filter, done.next, dry_run);
                    remote.post("/api/v1/jobs/cancel", &body).await?
                }
            };
            done.cancelled += part.cancelled;
            done.asked += part.asked;
            done.next = part.next;
            if done.next.is_none() {
                return Ok(done);
            }
        }
    }

    /// Submits all that match again, likewise.
    pub(crate) async fn replay_matching(
        &self,
        filter: &JobFilter,
        dry_run: bool,
    ) -> Result<BulkReplay, Failure> {
        let mut done = BulkReplay::default();
        loop {
            let part: BulkReplay = match self {
                Self::Here(ledger) => ledger.replay_matching(filter, done.next, dry_run).await?,
                Self::There(remote) => {
                    let body = matching(filter, done.next, dry_run);
                    remote.post("/api/v1/jobs/replay", &body).await?
                }
            };
            done.submitted += part.submitted;
            done.already += part.already;
            done.refused += part.refused;
            done.first_refusal = done.first_refusal.or(part.first_refusal);
            done.next = part.next;
            if done.next.is_none() {
                return Ok(done);
            }
        }
    }

    pub(crate) async fn pauses(&self) -> Result<Vec<PauseRecord>, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.pauses().await?),
            Self::There(remote) => {
                let list: PauseList = remote.get("/api/v1/pauses").await?;
                Ok(list.pauses)
            }
        }
    }

    pub(crate) async fn pause(
        &self,
        scope: &Scope,
        because: Option<&str>,
    ) -> Result<PauseRecord, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.pause(scope, because).await?),
            Self::There(remote) => {
                let input = PauseInput {
                    scope: scope.clone(),
                    because: because.map(ToOwned::to_owned),
                };
                remote.post("/api/v1/pauses", &json!(input)).await
            }
        }
    }

    /// How many jobs may start that could not.
    pub(crate) async fn resume(&self, scope: &Scope) -> Result<u64, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.resume(scope).await?),
            Self::There(remote) => {
                let answer: ResumeAnswer = remote
                    .post("/api/v1/pauses/resume", &json!({ "scope": scope }))
                    .await?;
                Ok(answer.woken)
            }
        }
    }

    pub(crate) async fn limits(&self) -> Result<Vec<LimitRecord>, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.limits().await?),
            Self::There(remote) => {
                let list: LimitList = remote.get("/api/v1/limits").await?;
                Ok(list.limits)
            }
        }
    }

    pub(crate) async fn set_limit(&self, scope: &Scope, most: u64) -> Result<LimitRecord, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.set_limit(scope, most).await?),
            Self::There(remote) => {
                let body = json!({ "scope": scope, "most": most });
                remote.put("/api/v1/limits", &body).await
            }
        }
    }

    pub(crate) async fn remove_limit(&self, scope: &Scope) -> Result<(), Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.remove_limit(scope).await?),
            Self::There(remote) => {
                let path = format!("/api/v1/limits?scope={}", escaped(&scope.to_string()));
                remote.delete(&path, None).await
            }
        }
    }

    // --- what is looked after ---

    pub(crate) async fn databases(
        &self,
        tenant: &TenantId,
    ) -> Result<Vec<DatabaseRecord>, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.databases(Some(tenant)).await?),
            Self::There(remote) => remote.list("/api/v1/databases", &of(tenant), MOST).await,
        }
    }

    /// A database by its name, its id or its URL.
    pub(crate) async fn find_database(
        &self,
        tenant: &TenantId,
        name: &str,
    ) -> Result<Option<DatabaseRecord>, Failure> {
        match self {
            Self::Here(ledger) => match ledger.find_database(tenant, name).await {
                Ok(record) => Ok(Some(record)),
                Err(LedgerError::NotFound { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Self::There(remote) => {
                let path = format!("/api/v1/databases/{}?tenant={tenant}", escaped(name));
                remote.look_for(&path).await
            }
        }
    }

    pub(crate) async fn policies(&self, tenant: &TenantId) -> Result<Vec<PolicyRecord>, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.policies(Some(tenant)).await?),
            Self::There(remote) => remote.list("/api/v1/policies", &of(tenant), MOST).await,
        }
    }

    /// A policy with its coming due times and what became of the last ones.
    pub(crate) async fn policy(
        &self,
        tenant: &TenantId,
        name: &str,
        times: usize,
    ) -> Result<PolicyDocument, Failure> {
        match self {
            Self::Here(ledger) => {
                let policy = ledger.find_policy(tenant, name).await?;
                if times == 0 {
                    // What it says need not be readable for that.
                    return Ok(PolicyDocument {
                        policy,
                        upcoming: Vec::new(),
                        ticks: Vec::new(),
                    });
                }
                let ticks = ledger.ticks(policy.id, times).await?;
                let plan =
                    PolicyPlan::read(&policy.spec).map_err(crate::commands::refused_policy)?;
                let upcoming = plan.upcoming(ledger.now().await?).take(times).collect();
                Ok(PolicyDocument {
                    policy,
                    upcoming,
                    ticks,
                })
            }
            Self::There(remote) => {
                let path = format!("/api/v1/policies/{}?tenant={tenant}", escaped(name));
                let mut document: PolicyDocument = remote.get(&path).await?;
                document.upcoming.truncate(times);
                document.ticks.truncate(times);
                Ok(document)
            }
        }
    }

    pub(crate) async fn tenants(&self) -> Result<Vec<TenantRecord>, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.tenants().await?),
            Self::There(remote) => remote.list("/api/v1/tenants", &[], MOST).await,
        }
    }

    pub(crate) async fn tenant(&self, tenant: &TenantId) -> Result<TenantRecord, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.tenant(tenant).await?),
            Self::There(remote) => remote.get(&format!("/api/v1/tenants/{tenant}")).await,
        }
    }

    pub(crate) async fn add_tenant(&self, tenant: &TenantId) -> Result<TenantRecord, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.add_tenant(tenant).await?),
            Self::There(remote) => remote.post("/api/v1/tenants", &json!({"id": tenant})).await,
        }
    }

    pub(crate) async fn remove_tenant(&self, tenant: &TenantId) -> Result<(), Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.remove_tenant(tenant).await?),
            Self::There(remote) => {
                remote
                    .delete(&format!("/api/v1/tenants/{tenant}"), None)
                    .await
            }
        }
    }

    // --- what came of it ---

    pub(crate) async fn backups(
        &self,
        filter: &BackupFilter,
    ) -> Result<Vec<BackupRecord>, Failure> {
        let remote = match self {
            Self::Here(ledger) => return Ok(ledger.backups(filter).await?),
            Self::There(remote) => remote,
        };
        let mut query = Vec::new();
        if let Some(tenant) = &filter.tenant {
            query.push(("tenant", tenant.to_string()));
        }
        if let Some(database) = filter.database {
            query.push(("database", database.to_string()));
        }
        if !filter.states.is_empty() {
            query.push(("state", words(&filter.states, |state| state.as_str())));
        }
        let most = if filter.limit == 0 {
            MOST
        } else {
            filter.limit
        };
        remote.list("/api/v1/backups", &query, most).await
    }

    /// The findings that fit, the gravest first.
    pub(crate) async fn findings(
        &self,
        filter: &FindingFilter,
    ) -> Result<Vec<FindingRecord>, Failure> {
        let remote = match self {
            Self::Here(ledger) => return Ok(ledger.findings(filter).await?),
            Self::There(remote) => remote,
        };
        let mut query = vec![("state", filter.states.join(","))];
        if let Some(tenant) = &filter.tenant {
            query.push(("tenant", tenant.to_string()));
        }
        if let Some(database) = filter.database {
            query.push(("database", database.to_string()));
        }
        if let Some(area) = filter.area {
            query.push(("area", area.to_string()));
        }
        if let Some(severity) = filter.severity {
            query.push(("severity", severity.to_string()));
        }
        if let Some(check) = &filter.check {
            query.push(("check", check.clone()));
        }
        remote
            .list("/api/v1/findings", &query, filter.limit.max(1))
            .await
    }

    /// Sets a finding aside, or takes that back where no reason is given.
    pub(crate) async fn suppress_finding(
        &self,
        database: &DatabaseRecord,
        key: &str,
        until: Option<Timestamp>,
        because: Option<&str>,
    ) -> Result<FindingRecord, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger
                .suppress_finding(&database.tenant, database.id, key, until, because)
                .await?),
            Self::There(remote) => {
                let input = SuppressionInput {
                    tenant: Some(database.tenant.clone()),
                    database: database.id.to_string(),
                    key: key.to_owned(),
                    because: because.map(ToOwned::to_owned),
                    until,
                };
                remote
                    .post("/api/v1/findings/suppress", &json!(input))
                    .await
            }
        }
    }

    /// How a finding came to be what it is, the newest step first.
    pub(crate) async fn finding_history(
        &self,
        database: &DatabaseRecord,
        key: &str,
    ) -> Result<Vec<FindingChange>, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger
                .finding_history(&database.tenant, database.id, key)
                .await?),
            Self::There(remote) => {
                let path = format!(
                    "/api/v1/databases/{}/findings/history?tenant={}&key={}",
                    database.id,
                    database.tenant,
                    escaped(key)
                );
                let history: FindingHistory = remote.get(&path).await?;
                Ok(history.steps)
            }
        }
    }

    // --- who has access ---

    pub(crate) async fn tokens(
        &self,
        tenant: Option<&TenantId>,
    ) -> Result<Vec<TokenRecord>, Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.tokens(tenant).await?),
            Self::There(remote) => {
                let query = tenant.map_or_else(String::new, |tenant| format!("?tenant={tenant}"));
                let list: TokenList = remote.get(&format!("/api/v1/tokens{query}")).await?;
                Ok(list.tokens)
            }
        }
    }

    pub(crate) async fn remove_token(&self, id: TokenId) -> Result<(), Failure> {
        match self {
            Self::Here(ledger) => Ok(ledger.remove_token(id).await?),
            Self::There(remote) => remote.delete(&format!("/api/v1/tokens/{id}"), None).await,
        }
    }
}
