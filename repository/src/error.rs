//! What can go wrong in a repository, told to the person who has to deal with it.

use fettler_model::{BackupId, ErrorClass, Problem, TenantId};
use serde::Serialize;
use thiserror::Error;

/// A part of the repository that is not what was written there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The object in the store.
    pub object: String,
    /// A stream that needs it, where it is known.
    pub stream: Option<String>,
    /// Where in that stream the first damaged byte is.
    pub offset: Option<u64>,
    /// What was found.
    pub what: String,
}

impl Damage {
    pub(crate) fn of(object: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            object: object.into(),
            stream: None,
            offset: None,
            what: what.into(),
        }
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.object, self.what)?;
        if let Some(stream) = &self.stream {
            write!(f, " (stream {stream}")?;
            if let Some(offset) = self.offset {
                write!(f, " at byte {offset}")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// Why the repository could not do what it was asked.
#[derive(Clone, Debug, Error)]
pub enum RepositoryError {
    /// The place is not written in a form that is understood.
    #[error("{place:?} names no repository: {why}")]
    UnknownPlace {
        /// What was given.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no repository at the place.
    #[error("there is no repository at {place}")]
    Missing {
        /// The place.
        place: String,
    },
    /// What is at the place is something else.
    #[error("what lies at {place} is not a repository: {what}")]
    NotARepository {
        /// The place.
        place: String,
        /// What was found.
        what: String,
    },
    /// A newer version wrote this.
    #[error("{object} has format {version}, and this version of Fettler reads up to {known}")]
    NewerFormat {
        /// The object.
        object: String,
        /// Its format.
        version: u32,
        /// The newest that is understood.
        known: u32,
    },
    /// The store refuses the request.
    #[error("{place} refused to {operation}: {what}")]
    StoreRefused {
        /// The repository's place.
        place: String,
        /// What was tried.
        operation: String,
        /// What the store said.
        what: String,
    },
    /// The store does not answer, or answers with an error of its own.
    #[error("{place} could not {operation}: {what}")]
    StoreUnavailable {
        /// The repository's place.
        place: String,
        /// What was tried.
        operation: String,
        /// What was said.
        what: String,
    },
    /// The disk or the quota is full.
    #[error("{place} has no space left to {operation}")]
    NoSpace {
        /// The repository's place.
        place: String,
        /// What was tried.
        operation: String,
    },
    /// The store overwrites where it was told to create only (rule 23).
    #[error("{place} overwrote an object that was to be created only if absent")]
    IgnoresCreateOnly {
        /// The repository's place.
        place: String,
    },
    /// The key does not open the tenant's data key.
    #[error("the key that was given does not open the backups of tenant {tenant} at {place}")]
    WrongKey {
        /// The tenant.
        tenant: TenantId,
        /// The repository's place.
        place: String,
    },
    /// A key file cannot be used or made.
    #[error("key file {path}: {what}")]
    KeyFile {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// Nothing was ever stored for the tenant.
    #[error("the repository at {place} holds nothing of tenant {tenant}")]
    NoSuchTenant {
        /// The tenant.
        tenant: TenantId,
        /// The repository's place.
        place: String,
    },
    /// All of the tenant's keys were destroyed.
    #[error("the keys of tenant {tenant} at {place} are gone")]
    KeysDestroyed {
        /// The tenant.
        tenant: TenantId,
        /// The repository's place.
        place: String,
    },
    /// The last key of a tenant is not removed.
    #[error("this is the only key that opens the tenant's backups")]
    LastKey,
    /// There is no key with this id.
    #[error("there is no key {0:?}")]
    NoSuchKey(String),
    /// There is no such backup.
    #[error("there is no backup {0} in the repository")]
    NoSuchBackup(BackupId),
    /// The backup has no such stream.
    #[error("backup {backup} has no stream {stream:?}")]
    NoSuchStream {
        /// The backup.
        backup: BackupId,
        /// The stream's name.
        stream: String,
    },
    /// Something is not what was written.
    #[error("damaged: {0}")]
    Damaged(Damage),
    /// Collection gave this backup up for dead, or a person abandoned it.
    #[error("backup {backup} cannot be completed any more: {why}")]
    LostAnnouncement {
        /// The backup.
        backup: BackupId,
        /// What happened.
        why: String,
    },
    /// A held backup is not forgotten.
    #[error("backup {0} is held")]
    Held(BackupId),
    /// A backup claims to be from the future, so ages mean nothing (rule 23).
    #[error("backup {backup} is dated {dated}, which has not come yet")]
    FutureBackup {
        /// The backup.
        backup: BackupId,
        /// Its date.
        dated: String,
    },
    /// Another collection is at work.
    #[error("another collection runs in {place}")]
    CollectionRuns {
        /// The repository's place.
        place: String,
    },
    /// Collection stopped rather than guess (rule 23).
    #[error("collection stopped and deleted nothing more: {why}")]
    CollectionStopped {
        /// What it met.
        why: String,
    },
    /// A stream's name was used before in this backup.
    #[error("stream {0:?} was written before in this backup")]
    StreamTwice(String),
    /// A stream was not finished when its backup was to be committed.
    #[error("stream {0:?} is not finished")]
    StreamOpen(String),
    /// The fence said that this attempt is not to go on (P2).
    #[error("{0}")]
    Fenced(Problem),
    /// The work was asked to stop.
    #[error("stopped")]
    Stopped,
    /// A bound of the format was met.
    #[error("{0}")]
    TooLarge(String),
}

impl RepositoryError {
    /// What the error means for the attempt that met it.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::StoreUnavailable { .. } | Self::NoSpace { .. } => ErrorClass::Transient,
            Self::CollectionRuns { .. } => ErrorClass::Snooze,
            Self::Fenced(problem) => problem.class,
            Self::Stopped => ErrorClass::Cancelled,
            _ => ErrorClass::Permanent,
        }
    }

    /// The stable name of the kind of error.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::UnknownPlace { .. } => "repository.unknown_place",
            Self::Missing { .. } => "repository.missing",
            Self::NotARepository { .. } => "repository.not_a_repository",
            Self::NewerFormat { .. } => "repository.newer_format",
            Self::StoreRefused { .. } => "repository.store_refused",
            Self::StoreUnavailable { .. } => "repository.store_unavailable",
            Self::NoSpace { .. } => "repository.no_space",
            Self::IgnoresCreateOnly { .. } => "repository.ignores_create_only",
            Self::WrongKey { .. } => "repository.wrong_key",
            Self::KeyFile { .. } => "repository.key_file",
            Self::NoSuchTenant { .. } => "repository.no_such_tenant",
            Self::KeysDestroyed { .. } => "repository.keys_destroyed",
            Self::LastKey => "repository.last_key",
            Self::NoSuchKey(_) => "repository.no_such_key",
            Self::NoSuchBackup(_) => "repository.no_such_backup",
            Self::NoSuchStream { .. } => "repository.no_such_stream",
            Self::Damaged(_) => "repository.damaged",
            Self::LostAnnouncement { .. } => "repository.lost_announcement",
            Self::Held(_) => "repository.held",
            Self::FutureBackup { .. } => "repository.future_backup",
            Self::CollectionRuns { .. } => "repository.collection_runs",
            Self::CollectionStopped { .. } => "repository.collection_stopped",
            Self::StreamTwice(_) => "repository.stream_twice",
            Self::StreamOpen(_) => "repository.stream_open",
            Self::Fenced(problem) => &problem.code,
            Self::Stopped => "job.cancelled",
            Self::TooLarge(_) => "repository.too_large",
        }
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::UnknownPlace { .. } => {
                "name a folder (`/srv/backups`, `./backups`, `file:///srv/backups`) or a bucket (`s3://bucket/prefix`)".into()
            }
            Self::Missing { place } => {
                format!("check that {place} is spelled right; the first backup to it makes the repository")
            }
            Self::NotARepository { .. } => {
                "name an empty place, or the one where the repository was made".into()
            }
            Self::NewerFormat { .. } => "use the version of Fettler that wrote it, or a newer one".into(),
            Self::StoreRefused { place, .. } if place.starts_with("s3://") => format!(
                "check that the bucket of {place} exists and that AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and (for another provider) AWS_ENDPOINT_URL are set; the account needs s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject there"
            ),
            Self::StoreRefused { place, .. } => format!(
                "give the user that runs Fettler the right to read and write {place}"
            ),
            Self::StoreUnavailable { place, .. } if place.starts_with("s3://") => format!(
                "check the network and AWS_ENDPOINT_URL (AWS_ALLOW_HTTP=true for http://) for {place}; it is tried again"
            ),
            Self::StoreUnavailable { place, .. } => format!("check the disk or mount below {place}"),
            Self::NoSpace { place, .. } => format!(
                "free some space for {place}, or forget backups and collect; nothing half-written is listed"
            ),
            Self::IgnoresCreateOnly { .. } => {
                "use a store that honours `If-None-Match: *` on PUT (AWS S3, MinIO, Ceph Squid or newer), or switch conditional writes on there; without them two writers could destroy each other's backups".into()
            }
            Self::WrongKey { .. } => {
                "give the key file or passphrase that the repository was first used with, or one that was added since".into()
            }
            Self::KeyFile { remedy, .. } => remedy.clone(),
            Self::NoSuchTenant { .. } => "check the tenant's name and the repository; a first backup makes its key".into(),
            Self::KeysDestroyed { .. } => {
                "restore the `keys` folder of the tenant from a copy of the repository; without it the backups cannot be read by anyone".into()
            }
            Self::LastKey => "add another key first".into(),
            Self::NoSuchKey(_) => "list the keys to see their ids".into(),
            Self::NoSuchBackup(_) => "list the backups to see what is there".into(),
            Self::NoSuchStream { .. } => "show the backup to see its streams".into(),
            Self::Damaged(_) => {
                "run a new backup: it stores what is damaged anew; check the store's disks, and restore from an older backup or from a copy of the repository meanwhile".into()
            }
            Self::LostAnnouncement { .. } => "run a new backup".into(),
            Self::Held(_) => "release the hold first".into(),
            Self::FutureBackup { .. } => {
                "correct the clock of this machine or of the one that made the backup; nothing is forgotten until then".into()
            }
            Self::CollectionRuns { .. } | Self::Stopped => String::new(),
            Self::CollectionStopped { .. } => {
                "run a check of the repository, which names what is missing or unreadable, and forget what cannot be saved".into()
            }
            Self::StreamTwice(_) => "give every stream of a backup a name of its own".into(),
            Self::StreamOpen(_) => "finish every stream before the backup is committed".into(),
            Self::Fenced(problem) => problem.remedy.clone(),
            Self::TooLarge(_) => "split the backup".into(),
        }
    }

    pub(crate) fn damaged(object: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged(Damage::of(object, what))
    }
}

impl From<RepositoryError> for Problem {
    fn from(error: RepositoryError) -> Self {
        match error {
            RepositoryError::Fenced(problem) => problem,
            RepositoryError::Stopped => Self::cancelled(),
            RepositoryError::CollectionRuns { .. } => Self::snooze(
                "repository.collection_runs",
                error.to_string(),
                std::time::Duration::from_secs(60),
            ),
            error => Self::new(
                error.class(),
                error.code(),
                error.to_string(),
                error.remedy(),
            ),
        }
    }
}
