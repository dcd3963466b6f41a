//! The backup repository: what turns streams of bytes into sealed objects in a store and back. It knows
//! nothing of databases, jobs or ledgers; `docs/repository-format.md` describes every byte of it.
//!
//! [`Repository`] is an opened store, [`TenantRepository`] one tenant's part of it with its keys,
//! [`BackupWriter`] a backup that is being written, [`BackupReader`] one that is read. The rest is upkeep:
//! verify, check, retention, forgetting, collection, keys.

mod announce;
mod backups;
mod change_log;
mod chunker;
mod collect;
mod cpu;
mod error;
mod fence;
mod index;
mod keys;
mod layout;
mod manifest;
mod open;
mod reader;
mod retention;
mod reuse;
mod seal;
mod slots;
mod store;
mod tenant;
mod verify;
mod writer;

pub use change_log::{ChangeLog, LogEntry, LogPart};
pub use collect::{CollectOptions, CollectReport};
pub use cpu::CpuPool;
pub use error::{Damage, RepositoryError};
pub use fence::{Fence, Unfenced};
pub use manifest::{
    BackupListing, IndexReference, Manifest, ManifestSummary, PackUse, StreamRecord,
    UnreadableBackup,
};
pub use open::{CreateKey, OpenOptions, Repository, Retries};
pub use reader::BackupReader;
pub use retention::{Candidate, KeepReason, Kept, RetentionPlan, plan_retention};
pub use slots::{KeySlot, KeySlotKind, PassphraseCost, Unlock, create_key_file};
pub use tenant::{Statistics, TenantRepository};
pub use verify::{CheckReport, Depth, Verified, VerifyReport};
pub use writer::{
    BackupWriter, BeginBackup, Begun, Chunking, Committed, Counters, ManifestBody, Parent,
    StreamEnd, StreamWriter,
};
