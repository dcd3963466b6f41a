//! Which objects a repository consists of and how they are named. Names are random, or hashes under the
//! tenant's key: they tell a store nothing.

use std::{fmt, str::FromStr};

use fettler_model::TenantId;
use object_store::path::Path;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The format that is written, and the newest that is read.
pub(crate) const FORMAT: u32 = 1;

/// The object that makes a place a repository.
pub(crate) const CONFIG: &str = "fettler-repository.json";

/// The folder of trials of create-only-if-absent.
pub(crate) const TRIALS: &str = "trials";

/// The folder of the tenants.
pub(crate) const TENANTS: &str = "tenants";

/// The folder of a tenant's wrapped keys.
pub(crate) const KEYS: &str = "keys";

/// What a sealed object is. The number is part of what is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Whose folder this is.
    Tenant = 1,
    /// Chunks.
    Pack = 2,
    /// The chunks of a stream, or of a part of it.
    Index = 3,
    /// A backup, or the tombstone that keeps it from being one.
    Manifest = 4,
    /// A backup that is being made.
    Announcement = 5,
    /// Packs of a backup that is being made.
    Segment = 6,
    /// A backup was forgotten on purpose.
    Forgotten = 7,
    /// A backup is held.
    Hold = 8,
    /// An object was found damaged.
    Damage = 9,
    /// What the first phase of a collection saw.
    Marks = 10,
    /// Who collects.
    Lock = 11,
    /// Changes of a database.
    Log = 12,
}

impl Kind {
    /// The folder, within the tenant's, of objects of this kind.
    pub(crate) const fn folder(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Pack => "packs",
            Self::Index => "indexes",
            Self::Manifest => "manifests",
            Self::Announcement => "announcements",
            Self::Segment => "segments",
            Self::Forgotten => "forgotten",
            Self::Hold => "holds",
            Self::Damage => "damage",
            Self::Marks => "marks",
            Self::Lock => "locks",
            Self::Log => "logs",
        }
    }
}

/// The name of a sealed object: 256 bits, random or a keyed hash, 64 hexadecimal digits in the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectName(pub(crate) [u8; 32]);

impl ObjectName {
    pub(crate) fn random() -> Self {
        Self(random_bytes())
    }

    /// A number as a name: its eight bytes, big-endian, after 24 zero bytes.
    pub(crate) fn number(number: u64) -> Self {
        let mut name = [0; 32];
        name[24..].copy_from_slice(&number.to_be_bytes());
        Self(name)
    }

    pub(crate) fn as_number(self) -> u64 {
        u64::from_be_bytes(self.0[24..].try_into().expect("eight bytes"))
    }
}

/// Bits from the system's generator. The one of the cryptographic library mixes the timing of the processor in, which
/// costs each process a tenth of a second.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random generator works");
    bytes
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for ObjectName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut name = [0; 32];
        // Upper-case digits would be a second name of one object.
        if text.len() != 64 || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(());
        }
        hex::decode_to_slice(text, &mut name).map_err(|_| ())?;
        Ok(Self(name))
    }
}

impl Serialize for ObjectName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(|()| serde::de::Error::custom("not the name of an object"))
    }
}

/// A repository's own identity, in the clear in its config object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RepositoryId(pub(crate) [u8; 16]);

/// A tenant's folder: a hash of its name under the repository's identity. Whoever can list the store
/// can check a guess at a tenant's name, and learns nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TenantFolder(pub(crate) [u8; 16]);

impl TenantFolder {
    pub(crate) fn of(repository: RepositoryId, tenant: &TenantId) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("fettler repository v1 tenant folder");
        hasher.update(&repository.0);
        hasher.update(tenant.as_str().as_bytes());
        let mut folder = [0; 16];
        hasher.finalize_xof().fill(&mut folder);
        Self(folder)
    }

    pub(crate) fn path(self) -> Path {
        Path::from(format!("{TENANTS}/{}", hex::encode(self.0)))
    }

    /// The folder of a kind of objects.
    pub(crate) fn folder(self, kind: Kind) -> Path {
        Path::from(format!(
            "{TENANTS}/{}/{}",
            hex::encode(self.0),
            kind.folder()
        ))
    }

    /// An object of a kind that lies directly in the kind's folder.
    pub(crate) fn object(self, kind: Kind, name: ObjectName) -> Path {
        Path::from(format!(
            "{TENANTS}/{}/{}/{name}",
            hex::encode(self.0),
            kind.folder()
        ))
    }

    /// The folder of the segments of a backup.
    pub(crate) fn segments(self, backup: ObjectName) -> Path {
        Path::from(format!(
            "{TENANTS}/{}/{}/{backup}",
            hex::encode(self.0),
            Kind::Segment.folder()
        ))
    }

    /// The folder of a database's log.
    pub(crate) fn log(self, log: ObjectName) -> Path {
        Path::from(format!("{}/{log}", self.folder(Kind::Log)))
    }

    /// An object of a log.
    pub(crate) fn log_object(self, log: ObjectName, name: ObjectName) -> Path {
        Path::from(format!("{}/{name}", self.log(log)))
    }

    /// The object that says whose folder this is.
    pub(crate) fn tenant_object(self) -> Path {
        Path::from(format!("{TENANTS}/{}/tenant", hex::encode(self.0)))
    }

    /// The folder of the wrapped keys.
    pub(crate) fn keys(self) -> Path {
        Path::from(format!("{TENANTS}/{}/{KEYS}", hex::encode(self.0)))
    }
}
