//! What a manifest says: a backup's head, which a listing reads, and its body with streams and packs.

use std::collections::BTreeMap;

use fettler_model::{BackupId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::layout::ObjectName;

/// The head of a backup: what lists show, read without the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestSummary {
    /// Its id.
    pub id: BackupId,
    /// The key by which the backups of one database find each other.
    pub database: String,
    /// The database's name at the time.
    pub database_name: String,
    /// The engine's name.
    pub engine: String,
    /// The backup whose content was taken over where it had not changed.
    pub parent: Option<BackupId>,
    /// Free words of the user's.
    pub tags: Vec<String>,
    /// When the reading began.
    pub started: Timestamp,
    /// When the manifest was written.
    pub finished: Timestamp,
    /// Bytes in all streams.
    pub bytes_read: u64,
    /// Bytes that the parent did not hold, before compression.
    pub bytes_new: u64,
    /// Bytes that were put into the store for it.
    pub bytes_stored: u64,
    /// Number of streams.
    pub streams: u64,
    /// How many backups in a row took streams over unread, up to this one (rule 24).
    pub since_full_read: u32,
    /// Whether a pack or an index that it names was found damaged or missing (rule 24): it is not
    /// complete then. Not stored with it but found at each reading.
    #[serde(skip)]
    pub damaged: bool,
    /// Whether it is held. Not stored with it but found at each reading.
    #[serde(skip)]
    pub held: bool,
}

/// One pack that a backup needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackUse {
    /// The pack's name.
    pub(crate) name: ObjectName,
    /// Its bytes.
    pub(crate) bytes: u64,
    /// Bytes of it that the backup needs.
    pub(crate) used: u64,
}

impl PackUse {
    /// The pack's name in the store.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.to_string()
    }

    /// Its bytes, and how many of them the backup needs.
    #[must_use]
    pub const fn bytes_and_used(&self) -> (u64, u64) {
        (self.bytes, self.used)
    }
}

/// An object that lists chunks of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexReference {
    /// The object's name.
    pub(crate) name: ObjectName,
    /// Its bytes.
    pub(crate) bytes: u64,
}

/// One stream of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRecord {
    /// Its name.
    pub name: String,
    /// Bytes in it.
    pub bytes: u64,
    /// Rows in it.
    pub rows: u64,
    /// Says which state of the source it is, see [`crate::StreamEnd`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchanged_marker: Option<String>,
    /// The objects that list its chunks, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) indexes: Vec<IndexReference>,
    /// The list of its last (often only) chunks, in base64, when it is short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inline: Option<String>,
}

/// The body of a manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Body {
    pub(crate) report: serde_json::Value,
    pub(crate) streams: Vec<StreamRecord>,
    pub(crate) packs: Vec<PackUse>,
}

/// The head of the object at a manifest's name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(crate) enum Head {
    /// A backup. The body follows, so many bytes as it is sealed.
    Backup {
        body_bytes: u64,
        #[serde(flatten)]
        summary: Box<ManifestSummary>,
    },
    /// This backup will never be (rule 22).
    Tombstone { backup: BackupId, why: String },
}

/// A backup as its manifest tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// What lists show.
    pub summary: ManifestSummary,
    /// What the writer wanted to be kept with the backup; nothing that the repository looks into.
    pub report: serde_json::Value,
    /// The streams, in the order of their names.
    pub streams: Vec<StreamRecord>,
    /// Everything in the store that the streams need, indexes apart.
    pub packs: Vec<PackUse>,
}

impl Manifest {
    /// The backup's id.
    #[must_use]
    pub const fn id(&self) -> BackupId {
        self.summary.id
    }

    /// A stream by its name.
    #[must_use]
    pub fn stream(&self, name: &str) -> Option<&StreamRecord> {
        self.streams.iter().find(|stream| stream.name == name)
    }

    pub(crate) fn pack_sizes(&self) -> BTreeMap<ObjectName, u64> {
        self.packs
            .iter()
            .map(|pack| (pack.name, pack.bytes))
            .collect()
    }

    pub(crate) fn indexes(&self) -> impl Iterator<Item = &IndexReference> {
        self.streams.iter().flat_map(|stream| &stream.indexes)
    }
}

/// A manifest that is there and cannot be read: reported, never hidden.
#[derive(Clone, Debug)]
pub struct UnreadableBackup {
    /// The object in the store.
    pub object: String,
    /// What is wrong with it.
    pub error: crate::RepositoryError,
}

/// All backups of a tenant.
#[derive(Clone, Debug, Default)]
pub struct BackupListing {
    /// Those that can be read, oldest first.
    pub backups: Vec<ManifestSummary>,
    /// Those that cannot.
    pub unreadable: Vec<UnreadableBackup>,
}
