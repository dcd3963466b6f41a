//! Why a queued job does not run (P12): one typed reason, made by the code that refused it, with what
//! would end the wait and, where that is known, when.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DatabaseId, JobId, JobKindName, Problem, Scope, SlotClass, TenantId, Timestamp};

/// Why a queued job does not run (P12).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum WaitReason {
    /// Nothing stands against it: it waits for a free worker.
    Ready,
    /// Nothing stands against it but its turn: others of its tenant and kind come first.
    QueuedBehind {
        /// The one that comes next.
        job: JobId,
        /// How many come before it; counting ends at a hundred.
        ahead: u64,
    },
    /// It was asked for not before this moment.
    NotBefore {
        /// When it may run.
        at: Timestamp,
    },
    /// The last attempt failed and is tried again at this moment.
    RetryAt {
        /// When it is tried again.
        at: Timestamp,
        /// What the last attempt failed with.
        because: Problem,
    },
    /// The last attempt found that the time is not right.
    Snoozed {
        /// When it is tried again.
        at: Timestamp,
        /// What was found.
        because: Problem,
    },
    /// Its maintenance window is closed.
    WindowClosed {
        /// When it opens.
        opens: Timestamp,
    },
    /// Another job works on the same database.
    DatabaseBusy {
        /// The job that is waited for.
        job: JobId,
        /// Its kind.
        kind: JobKindName,
    },
    /// As many jobs of its tenant run as may.
    TenantLimit {
        /// The tenant.
        tenant: TenantId,
        /// How many may run at once.
        most: u64,
    },
    /// As many jobs about its database run as may.
    DatabaseLimit {
        /// The database.
        database: DatabaseId,
        /// How many may run at once.
        most: u64,
    },
    /// As many jobs about databases of its server run as may.
    ServerLimit {
        /// The server, `host:port`.
        server: String,
        /// How many may run at once.
        most: u64,
    },
    /// As many jobs of its kind run as may.
    KindLimit {
        /// The kind.
        kind: JobKindName,
        /// How many may run at once.
        most: u64,
    },
    /// As many jobs of its slot class run as may.
    ClassLimit {
        /// The slot class.
        class: SlotClass,
        /// How many may run at once.
        most: u64,
    },
    /// No worker that runs now knows this kind of job.
    NoWorkerForKind {
        /// The kind.
        kind: JobKindName,
    },
    /// The workers that run now know older versions of its kind only.
    NoWorkerForVersion {
        /// The kind.
        kind: JobKindName,
        /// The version that it needs.
        version: u32,
    },
    /// No worker that runs now reaches its database.
    NoWorkerReaches {
        /// The labels that a worker must have.
        labels: BTreeMap<String, String>,
    },
    /// A person paused what it belongs to.
    Paused {
        /// What was paused.
        what: Scope,
        /// What the person said about it.
        because: Option<String>,
    },
}

impl WaitReason {
    /// When the wait ends by itself, where a time ends it.
    #[must_use]
    pub const fn until(&self) -> Option<Timestamp> {
        match self {
            Self::NotBefore { at } | Self::RetryAt { at, .. } | Self::Snoozed { at, .. } => {
                Some(*at)
            }
            Self::WindowClosed { opens } => Some(*opens),
            _ => None,
        }
    }

    /// The reason's name, as it stands in documents and metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::QueuedBehind { .. } => "queued_behind",
            Self::NotBefore { .. } => "not_before",
            Self::RetryAt { .. } => "retry_at",
            Self::Snoozed { .. } => "snoozed",
            Self::WindowClosed { .. } => "window_closed",
            Self::DatabaseBusy { .. } => "database_busy",
            Self::TenantLimit { .. } => "tenant_limit",
            Self::DatabaseLimit { .. } => "database_limit",
            Self::ServerLimit { .. } => "server_limit",
            Self::KindLimit { .. } => "kind_limit",
            Self::ClassLimit { .. } => "class_limit",
            Self::NoWorkerForKind { .. } => "no_worker_for_kind",
            Self::NoWorkerForVersion { .. } => "no_worker_for_version",
            Self::NoWorkerReaches { .. } => "no_worker_reaches",
            Self::Paused { .. } => "paused",
        }
    }

    /// What would end the wait.
    #[must_use]
    pub fn ends_when(&self) -> String {
        match self {
            Self::Ready => "a worker has a free slot".to_owned(),
            Self::QueuedBehind { .. } => "its turn comes".to_owned(),
            Self::NotBefore { at } | Self::RetryAt { at, .. } | Self::Snoozed { at, .. } => {
                format!("it is {at}")
            }
            Self::WindowClosed { opens } => format!("the window opens at {opens}"),
            Self::DatabaseBusy { job, .. } => format!("job {} ends", job.short()),
            Self::TenantLimit { .. }
            | Self::DatabaseLimit { .. }
            | Self::ServerLimit { .. }
            | Self::KindLimit { .. }
            | Self::ClassLimit { .. } => {
                "one of those ends, or `fettler limit set` raises the limit".to_owned()
            }
            Self::NoWorkerForKind { kind } => {
                format!("a worker is started that knows the kind {kind}")
            }
            Self::NoWorkerForVersion { .. } => "a newer Fettler is started as a worker".to_owned(),
            Self::NoWorkerReaches { labels } => {
                let words: Vec<String> = labels
                    .iter()
                    .map(|(name, value)| format!(" --label {name}={value}"))
                    .collect();
                format!("`fettler worker{}` is started", words.concat())
            }
            Self::Paused { .. } => "`fettler resume` is said".to_owned(),
        }
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("waits for a free worker"),
            Self::QueuedBehind { job, ahead } => {
                let more = if *ahead >= 100 { " or more" } else { "" };
                write!(
                    f,
                    "behind {ahead}{more} of its tenant and kind, {} first",
                    job.short()
                )
            }
            Self::NotBefore { at } => write!(f, "not before {at}"),
            Self::RetryAt { at, because } => write!(f, "tried again at {at}, after: {because}"),
            Self::Snoozed { at, because } => write!(f, "snoozed until {at}: {because}"),
            Self::WindowClosed { opens } => {
                write!(f, "the maintenance window is closed until {opens}")
            }
            Self::DatabaseBusy { job, kind } => {
                write!(f, "the database is busy with {kind} {}", job.short())
            }
            Self::TenantLimit { tenant, most } => {
                write!(f, "{most} of tenant {tenant} run, the most that may")
            }
            Self::DatabaseLimit { most, .. } => {
                write!(f, "{most} on its database run, the most that may")
            }
            Self::ServerLimit { server, most } => {
                write!(f, "{most} on the server {server} run, the most that may")
            }
            Self::KindLimit { kind, most } => {
                write!(f, "{most} of kind {kind} run, the most that may")
            }
            Self::ClassLimit { class, most } => {
                write!(f, "{most} {} jobs run, the most that may", class.as_str())
            }
            Self::NoWorkerForKind { kind } => write!(f, "no worker runs jobs of kind {kind}"),
            Self::NoWorkerForVersion { kind, version } => {
                write!(f, "no worker knows version {version} of {kind}")
            }
            Self::NoWorkerReaches { labels } => {
                let words: Vec<String> = labels
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                write!(
                    f,
                    "no worker reaches the database: it takes {}",
                    words.join(" ")
                )
            }
            Self::Paused { what, because } => {
                let what = match what {
                    Scope::All => "everything".to_owned(),
                    Scope::Policy(_) => "its policy".to_owned(),
                    Scope::Database(_) => "its database".to_owned(),
                    other => other.to_string().replace('/', " "),
                };
                write!(f, "{what} is paused")?;
                because
                    .as_ref()
                    .map_or(Ok(()), |because| write!(f, ": {because}"))
            }
        }
    }
}
