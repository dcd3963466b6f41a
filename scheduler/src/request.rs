//! Makes the request for a job of a kind that the registry knows: the kind says which slot and exclusion
//! its jobs have and how often they are tried.

use fettler_jobs::{Registry, UnknownKind};
use fettler_ledger::PolicyRecord;
use fettler_model::{
    DatabaseId, JobKindName, JobRequest, JobTerms, JobWindow, PolicySpec, Priority, Problem,
    ProveEvery, TenantId, Timestamp,
};
use serde_json::Value;
use thiserror::Error;

use crate::{InvalidPolicy, PolicyPlan};

/// What a request has beside tenant, kind and arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestOptions {
    /// The database that the job is about.
    pub database: Option<DatabaseId>,
    /// How urgent it is.
    pub priority: Priority,
    /// Not before this moment.
    pub not_before: Option<Timestamp>,
    /// At most one queued or running job of the tenant has this key.
    pub unique_key: Option<String>,
    /// Free words of the user's.
    pub tags: Vec<String>,
    /// The terms under which it runs.
    pub terms: JobTerms,
}

/// Why no job can be made for a policy.
#[derive(Debug, Error)]
pub enum UnusablePolicy {
    /// Its kind is not known.
    #[error(transparent)]
    Kind(#[from] UnknownKind),
    /// Its kind cannot read its arguments.
    #[error(transparent)]
    Arguments(#[from] Problem),
    /// Its time cannot be read.
    #[error(transparent)]
    Time(#[from] InvalidPolicy),
    /// Its jobs are about a database, and it names none.
    #[error("a policy of kind {0} needs a database")]
    NoDatabase(JobKindName),
    /// It says how backups are kept or proven, and makes none.
    #[error("a policy of kind {0} makes no backups to keep or to prove")]
    NoBackups(JobKindName),
}

/// Whether a job of this kind is about a database, and can do nothing without one.
#[must_use]
pub fn needs_database(kind: &str) -> bool {
    matches!(kind, "backup" | "retention")
}

/// Reads what a policy says, and refuses what could never run.
///
/// # Errors
///
/// When kind, arguments or time cannot be used, or when they do not fit together.
pub fn check_policy(
    registry: &Registry,
    spec: &PolicySpec,
    has_database: bool,
) -> Result<PolicyPlan, UnusablePolicy> {
    let kind = registry.get(spec.kind.as_str())?;
    kind.check_arguments(&spec.arguments)?;
    if needs_database(spec.kind.as_str()) && !has_database {
        return Err(UnusablePolicy::NoDatabase(spec.kind.clone()));
    }
    let speaks_of_backups = spec.prove != ProveEvery::Never || spec.keep.is_some();
    if spec.kind.as_str() != "backup" && speaks_of_backups {
        return Err(UnusablePolicy::NoBackups(spec.kind.clone()));
    }
    Ok(PolicyPlan::read(spec)?)
}

/// The request for a job of this kind.
///
/// # Errors
///
/// When the kind is not known or cannot read the arguments.
pub fn request(
    registry: &Registry,
    tenant: &TenantId,
    kind: &str,
    arguments: Value,
    options: RequestOptions,
) -> Result<JobRequest, UnusablePolicy> {
    let kind = registry.get(kind)?;
    kind.check_arguments(&arguments)?;
    Ok(JobRequest {
        tenant: tenant.clone(),
        kind: kind.name(),
        kind_version: kind.version(),
        database: options.database,
        arguments,
        exclusion: kind.exclusion(),
        slot: kind.slot(),
        priority: options.priority,
        not_before: options.not_before,
        deadline: None,
        max_tries: kind.max_tries(),
        unique_key: options.unique_key,
        retry_of: None,
        tags: options.tags,
        terms: options.terms,
    })
}

/// The request for a job of a policy.
///
/// # Errors
///
/// As [`request`].
pub fn policy_request(
    registry: &Registry,
    policy: &PolicyRecord,
    not_before: Option<Timestamp>,
) -> Result<JobRequest, UnusablePolicy> {
    let options = RequestOptions {
        database: policy.database,
        priority: policy.spec.priority,
        not_before,
        terms: JobTerms {
            timeout_seconds: policy.spec.timeout_seconds,
            window: policy.spec.window.clone().map(|hours| JobWindow {
                hours,
                time_zone: policy.spec.time_zone.clone(),
            }),
            policy: Some(policy.id),
            trace: None,
        },
        ..RequestOptions::default()
    };
    request(
        registry,
        &policy.tenant,
        policy.spec.kind.as_str(),
        policy.spec.arguments.clone(),
        options,
    )
}
