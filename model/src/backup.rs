//! Backups: what the catalogue, the repository and the engines say of them.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{BackupId, DatabaseId, DatabaseName, Engine, TenantId, Timestamp};

/// What may be said of a backup (P4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackupState {
    /// Every byte that it names was durable when its manifest was written.
    Complete,
    /// A part of it was found damaged or missing.
    Damaged,
    /// Its manifest vanished from the store without a record of its forgetting.
    Vanished,
    /// It was forgotten by request or by a keep rule.
    Forgotten,
}

impl BackupState {
    /// The state's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Damaged => "damaged",
            Self::Vanished => "vanished",
            Self::Forgotten => "forgotten",
        }
    }
}

/// The content of a set of rows, whatever their order (rules 27 and 28): how many there are, and the
/// sum modulo 2^256 of their keyed hashes of 128 bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// Number of rows.
    pub rows: u64,
    /// Sum of the rows' hashes, least significant limb first.
    sum: [u64; 4],
}

impl Fingerprint {
    /// The fingerprint of no rows.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            rows: 0,
            sum: [0; 4],
        }
    }

    /// Adds one row by its 128-bit keyed hash, least significant limb first.
    #[inline]
    pub fn add_row_hash(&mut self, hash: [u64; 2]) {
        self.rows += 1;
        self.add_sum(&[hash[0], hash[1], 0, 0]);
    }

    /// Adds the rows of another fingerprint.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.add_sum(&other.sum);
    }

    #[inline]
    fn add_sum(&mut self, other: &[u64; 4]) {
        let mut carry = false;
        for (limb, add) in self.sum.iter_mut().zip(other) {
            let (partial, first) = limb.overflowing_add(*add);
            let (total, second) = partial.overflowing_add(u64::from(carry));
            *limb = total;
            carry = first || second;
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.rows)?;
        self.sum
            .iter()
            .rev()
            .try_for_each(|limb| write!(f, "{limb:016x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not a fingerprint");
        let (rows, digits) = text.split_once(':').ok_or_else(invalid)?;
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(invalid());
        }
        let mut sum = [0; 4];
        for (at, limb) in sum.iter_mut().rev().enumerate() {
            *limb =
                u64::from_str_radix(&digits[at * 16..at * 16 + 16], 16).map_err(|_| invalid())?;
        }
        Ok(Self {
            rows: rows.parse().map_err(|_| invalid())?,
            sum,
        })
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Fingerprint {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Fingerprint".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[0-9]+:[0-9a-f]{64}$"})
    }
}

/// What sort of thing inside a database an [`ObjectFacts`] speaks of.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// Rows: a table or a partition.
    Table,
    /// Large objects.
    LargeObjects,
    /// A counter that hands out numbers.
    Sequence,
    /// The definitions, as a digest.
    Schema,
    /// Rows that are computed, reported and not compared.
    MaterializedView,
}

/// One thing inside a backed-up database: what a proof compares and `diff` shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectFacts {
    /// What it is.
    pub kind: ObjectKind,
    /// Its name, as the engine's users write it, such as `public.orders`.
    pub name: String,
    /// Its content, taken from the bytes as they passed.
    pub fingerprint: Option<Fingerprint>,
    /// How many rows the server itself counted at the same point, by a path that shares nothing
    /// with the reading (rule 27).
    pub independent_rows: Option<u64>,
    /// Bytes of its streams.
    pub bytes: u64,
    /// For things without rows: their value or a digest of it, compared as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// How its rows were written (such as `binary` or `text`): a proof reads the copy the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

/// Something that a person should look at though the backup is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// A stable name, such as `backup.shrank`.
    pub code: String,
    /// What was seen and what to do.
    pub message: String,
}

/// What the catalogue knows of a backup; all of it can be read from the repository again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackupFacts {
    /// Its id.
    pub id: BackupId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The database's record, where there is one.
    pub database: Option<DatabaseId>,
    /// The database's name.
    pub database_name: DatabaseName,
    /// The engine.
    pub engine: Engine,
    /// The backup whose content it could take over.
    pub parent: Option<BackupId>,
    /// When the reading began.
    pub started: Timestamp,
    /// When the manifest was written.
    pub finished: Timestamp,
    /// Bytes read from the source, or taken over unread.
    pub bytes_read: u64,
    /// Bytes that no earlier backup held.
    pub bytes_new: u64,
    /// Bytes that were put into the store for it.
    pub bytes_stored: u64,
    /// Number of streams.
    pub streams: u64,
    /// Free words of the user's.
    pub tags: Vec<String>,
    /// What a person should look at.
    pub warnings: Vec<Warning>,
}

/// What a proof says (rules 27 and 29).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProofVerdict {
    /// The restored copy is the source as it was: fingerprints, counts by another path, schema.
    Proven,
    /// The copy is what was read, but nothing independent says that all was read.
    MatchesWhatWasRead,
    /// The copy differs, or the restore failed in part.
    Failed,
}

/// A proof of a backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProofFacts {
    /// Which backup was restored.
    pub backup: BackupId,
    /// What it says.
    pub verdict: ProofVerdict,
    /// When it ended.
    pub finished: Timestamp,
    /// How long the restore took: the measured recovery time.
    pub restore_seconds: f64,
    /// How many fingerprints and values were compared.
    pub fingerprints_compared: u64,
    /// What differed, in words.
    pub mismatches: Vec<String>,
}

/// Which backups are kept. A backup is kept when any rule wants it; the last good one always is (P8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeepRules {
    /// The newest N.
    pub last: u32,
    /// The newest of each of the last N hours that have one.
    pub hourly: u32,
    /// The newest of each of the last N days that have one.
    pub daily: u32,
    /// The newest of each of the last N ISO weeks that have one.
    pub weekly: u32,
    /// The newest of each of the last N months that have one.
    pub monthly: u32,
    /// The newest of each of the last N years that have one.
    pub yearly: u32,
    /// All that are younger than this many seconds.
    pub within_seconds: Option<u64>,
    /// All that carry one of these tags.
    pub tags: Vec<String>,
}

impl KeepRules {
    /// Whether no rule is given at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_does_not_depend_on_the_order_of_rows() {
        let hashes: Vec<[u64; 2]> = (0u64..9).map(|n| [(n * 77) | 1 << 63; 2]).collect();
        let mut forward = Fingerprint::empty();
        hashes.iter().for_each(|hash| forward.add_row_hash(*hash));
        let mut parts = [Fingerprint::empty(); 2];
        for (at, hash) in hashes.iter().rev().enumerate() {
            parts[at % 2].add_row_hash(*hash);
        }
        let mut merged = parts[0];
        merged.merge(&parts[1]);
        assert_eq!(forward, merged);
        assert_eq!(forward.to_string().parse(), Ok(forward));
    }

    #[test]
    fn a_row_doubled_and_another_lost_is_seen() {
        let (mut right, mut wrong) = (Fingerprint::empty(), Fingerprint::empty());
        for hash in [[1; 2], [2; 2]] {
            right.add_row_hash(hash);
            wrong.add_row_hash([1; 2]);
        }
        assert_eq!(right.rows, wrong.rows);
        assert_ne!(right, wrong);
    }

    #[test]
    fn the_sum_carries_through_all_limbs() {
        let mut sum: Fingerprint = format!("1:{}", "f".repeat(64)).parse().unwrap();
        sum.add_row_hash([1, 0]);
        assert_eq!(sum.to_string(), format!("2:{}", "0".repeat(64)));
    }
}
