//! The keys of a tenant: the data key, which never leaves the process unwrapped, and what is derived
//! from it. All are wiped from memory when dropped and none can be printed.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use fettler_model::BackupId;
use zeroize::Zeroizing;

use crate::layout::{Kind, ObjectName, random_bytes};

/// A 256-bit key.
pub(crate) type KeyBytes = Zeroizing<[u8; 32]>;

/// A tenant's data key: everything of the tenant's is sealed under keys that are derived from it.
pub(crate) struct DataKey(KeyBytes);

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(***)")
    }
}

impl DataKey {
    pub(crate) fn random() -> Self {
        Self(Zeroizing::new(random_bytes()))
    }

    pub(crate) const fn from_bytes(bytes: KeyBytes) -> Self {
        Self(bytes)
    }

    /// Another copy, to be wrapped anew; it is wiped like the first.
    pub(crate) fn copy(&self) -> Self {
        Self(self.0.clone())
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What is derived from the data key.
pub(crate) struct TenantKeys {
    seal: KeyBytes,
    chunk: KeyBytes,
    names: KeyBytes,
    fingerprints: KeyBytes,
    gear: Box<[u64; 256]>,
}

impl fmt::Debug for TenantKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantKeys(***)")
    }
}

impl Drop for TenantKeys {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut *self.gear);
    }
}

fn derive(context: &str, key: &DataKey) -> KeyBytes {
    Zeroizing::new(blake3::derive_key(context, key.expose()))
}

impl TenantKeys {
    pub(crate) fn derive(key: &DataKey) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("fettler repository v1 gear table");
        hasher.update(key.expose());
        let mut stream = hasher.finalize_xof();
        let mut gear = Box::new([0; 256]);
        for value in gear.iter_mut() {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            *value = u64::from_le_bytes(bytes);
        }
        Self {
            seal: derive("fettler repository v1 sealed objects", key),
            chunk: derive("fettler repository v1 chunk ids", key),
            names: derive("fettler repository v1 object names", key),
            fingerprints: derive("fettler repository v1 row fingerprints", key),
            gear,
        }
    }

    /// The key under which an object with this salt is sealed.
    pub(crate) fn object_key(&self, kind: Kind, salt: &[u8; 32]) -> LessSafeKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.seal);
        hasher.update(&[kind as u8]);
        hasher.update(salt);
        let key = Zeroizing::new(*hasher.finalize().as_bytes());
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).expect("an AES-256 key has 32 bytes"))
    }

    /// A chunk's id: nothing can be learned from it without the key (P5).
    #[inline]
    pub(crate) fn chunk_id(&self, chunk: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.chunk, chunk).as_bytes()
    }

    /// The name of what the repository holds of a backup: manifest, announcement, hold, forgetting.
    pub(crate) fn backup_name(&self, backup: BackupId) -> ObjectName {
        ObjectName(*blake3::keyed_hash(&self.names, backup.uuid().as_bytes()).as_bytes())
    }

    /// The name of the folder of a database's log.
    pub(crate) fn log_name(&self, database: &str) -> ObjectName {
        let mut hasher = blake3::Hasher::new_keyed(&self.names);
        hasher.update(b"change log of ");
        hasher.update(database.as_bytes());
        ObjectName(*hasher.finalize().as_bytes())
    }

    /// The key of row fingerprints (rule 28).
    pub(crate) fn fingerprint_key(&self) -> [u8; 32] {
        *self.fingerprints
    }

    /// The table by which content is cut.
    pub(crate) fn gear(&self) -> &[u64; 256] {
        &self.gear
    }
}
