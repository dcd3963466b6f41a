//! Announcements: what a running backup says of itself, so that forgetting and collection of any fleet
//! leave alone what it needs (rule 21).

use fettler_model::{BackupId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::layout::ObjectName;

/// A running backup, as its announcement tells it. The object's own time says when it was renewed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Announcement {
    pub(crate) backup: BackupId,
    pub(crate) database: String,
    /// The backup from which packs are taken over: it must stay until this one is committed.
    pub(crate) parent: Option<BackupId>,
    /// When, by the store's clock, the backup was first announced. Whatever was written since may be
    /// its own.
    pub(crate) since: Option<Timestamp>,
}

/// A pack of a running backup, recorded before it is put (P3): what was put and recorded is found again
/// by the next attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentPack {
    pub(crate) name: ObjectName,
    pub(crate) bytes: u64,
}

/// The first frame of a segment; the second is an index of the packs' chunks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SegmentHead {
    pub(crate) backup: BackupId,
    pub(crate) packs: Vec<SegmentPack>,
}

/// A backup that was forgotten on purpose.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ForgottenRecord {
    pub(crate) backup: BackupId,
    pub(crate) reason: String,
    pub(crate) when: Timestamp,
}

/// Why an object is marked as damaged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DamageRecord {
    pub(crate) what: String,
    pub(crate) when: Timestamp,
}
