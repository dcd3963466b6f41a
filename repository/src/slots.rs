//! Key slots: the tenant's data key, wrapped under a key that a person or a machine holds. Slots lie in
//! the repository with what they open (rule 19); every slot of a tenant opens the same data key, so
//! that changing a passphrase touches no backup.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use fettler_model::{Secret, Timestamp};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    RepositoryError,
    keys::{DataKey, KeyBytes},
    layout::{FORMAT, random_bytes},
    seal::Binding,
};

/// The word that a key file's line begins with.
const KEY_FILE_WORD: &str = "fettler-key-1";

/// The longest key file that is read.
const MAX_KEY_FILE_BYTES: u64 = 16 * 1024;

/// The most that a slot may ask of the machine that opens it: whoever can write to the store could
/// otherwise stop every reader.
const MAX_COST: PassphraseCost = PassphraseCost {
    memory_kib: 1 << 20,
    passes: 32,
};

/// What opens a tenant's data key.
#[derive(Clone, Debug)]
pub enum Unlock {
    /// A file with a key of 256 bits, see [`create_key_file`].
    KeyFile(PathBuf),
    /// A passphrase.
    Passphrase(Secret),
}

/// How much work a passphrase costs to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassphraseCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
}

impl Default for PassphraseCost {
    /// The second choice of RFC 9106 for machines with little memory: 64 MiB, three passes.
    fn default() -> Self {
        Self {
            memory_kib: 64 * 1024,
            passes: 3,
        }
    }
}

/// What kind of key a slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeySlotKind {
    /// A key file.
    KeyFile,
    /// A passphrase.
    Passphrase,
}

/// A slot as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeySlot {
    /// Its id.
    pub id: String,
    /// What opens it.
    pub kind: KeySlotKind,
    /// When it was made.
    pub created: Timestamp,
}

/// A slot as it lies in the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoredSlot {
    pub(crate) format: u32,
    pub(crate) kind: KeySlotKind,
    pub(crate) created: Timestamp,
    /// Which data key it holds: slots of another one were left by a creation that lost a race.
    pub(crate) data_key_id: String,
    pub(crate) salt: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) argon2id: Option<PassphraseCost>,
    pub(crate) wrapped: String,
    /// Against accidents: a digest of the other fields, so that a damaged slot is not taken for a wrong
    /// passphrase.
    pub(crate) check: String,
}

impl StoredSlot {
    /// A slot as it lies in the store, if it is what was written.
    pub(crate) fn read(object: &str, bytes: &[u8]) -> Result<Self, RepositoryError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |error: serde_json::Error| {
            RepositoryError::damaged(object, format!("it does not read: {error}"))
        };
        let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
        let slot: Self = match serde_json::from_slice(bytes) {
            Ok(slot) => slot,
            Err(_) if format > FORMAT => return Err(Self::newer(object, format)),
            Err(error) => return Err(damaged(error)),
        };
        if slot.check != slot.digest() {
            return Err(RepositoryError::damaged(
                object,
                "it is not what was written: its check does not match",
            ));
        }
        if slot.format > FORMAT {
            return Err(Self::newer(object, slot.format));
        }
        Ok(slot)
    }

    fn newer(object: &str, version: u32) -> RepositoryError {
        RepositoryError::NewerFormat {
            object: object.to_owned(),
            version,
            known: FORMAT,
        }
    }

    fn digest(&self) -> String {
        let kind = match self.kind {
            KeySlotKind::KeyFile => "key_file",
            KeySlotKind::Passphrase => "passphrase",
        };
        let cost = self.argon2id.map_or_else(String::new, |cost| {
            format!("{} {}", cost.memory_kib, cost.passes)
        });
        crate::open::digest(&format!(
            "{} {kind} {} {} {} {cost} {}",
            self.format, self.created, self.data_key_id, self.salt, self.wrapped
        ))
    }
}

/// The key of a person or a machine, read once and tried on slots.
pub(crate) enum UnlockKey {
    File(KeyBytes),
    Passphrase(Secret),
}

impl UnlockKey {
    pub(crate) fn read(unlock: &Unlock) -> Result<Self, RepositoryError> {
        match unlock {
            Unlock::KeyFile(path) => read_key_file(path).map(Self::File),
            Unlock::Passphrase(secret) => Ok(Self::Passphrase(secret.clone())),
        }
    }

    const fn kind(&self) -> KeySlotKind {
        match self {
            Self::File(_) => KeySlotKind::KeyFile,
            Self::Passphrase(_) => KeySlotKind::Passphrase,
        }
    }

    /// The key that wraps in a slot with this salt. Slow for a passphrase: not for a runtime's thread.
    fn wrapping_key(&self, salt: &[u8; 32], cost: Option<PassphraseCost>) -> Option<LessSafeKey> {
        let material: KeyBytes = match (self, cost) {
            (Self::File(key), None) => key.clone(),
            (Self::Passphrase(secret), Some(cost)) => {
                if cost.memory_kib > MAX_COST.memory_kib || cost.passes > MAX_COST.passes {
                    return None;
                }
                let parameters =
                    argon2::Params::new(cost.memory_kib, cost.passes, 1, Some(32)).ok()?;
                let mut key = Zeroizing::new([0; 32]);
                argon2::Argon2::new(
                    argon2::Algorithm::Argon2id,
                    argon2::Version::V0x13,
                    parameters,
                )
                .hash_password_into(secret.expose().as_bytes(), salt, &mut *key)
                .ok()?;
                key
            }
            _ => return None,
        };
        let mut hasher = blake3::Hasher::new_derive_key("fettler repository v1 key slot");
        hasher.update(&*material);
        hasher.update(salt);
        let key = Zeroizing::new(*hasher.finalize().as_bytes());
        Some(LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM, &*key).expect("an AES-256 key has 32 bytes"),
        ))
    }

    /// A new slot for the data key.
    pub(crate) fn wrap(
        &self,
        binding: Binding,
        data_key: &DataKey,
        data_key_id: &str,
        cost: PassphraseCost,
    ) -> Result<StoredSlot, RepositoryError> {
        let salt: [u8; 32] = random_bytes();
        let cost = matches!(self, Self::Passphrase(_)).then_some(cost);
        let key = self.wrapping_key(&salt, cost).ok_or_else(|| {
            RepositoryError::TooLarge("the cost of the passphrase is out of bounds".into())
        })?;
        let mut wrapped = data_key.expose().to_vec();
        // The wrapping key belongs to this salt alone, so that its one nonce may be zero.
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key([0; 12]),
            associated(binding, data_key_id),
            &mut wrapped,
        )
        .expect("a key is far below AES-GCM's bound");
        let mut slot = StoredSlot {
            format: FORMAT,
            kind: self.kind(),
            created: Timestamp::now(),
            data_key_id: data_key_id.to_owned(),
            salt: hex::encode(salt),
            argon2id: cost,
            wrapped: hex::encode(wrapped),
            check: String::new(),
        };
        slot.check = slot.digest();
        Ok(slot)
    }

    /// The data key, if this key opens the slot.
    pub(crate) fn unwrap(&self, binding: Binding, slot: &StoredSlot) -> Option<DataKey> {
        let mut salt = [0; 32];
        hex::decode_to_slice(&slot.salt, &mut salt).ok()?;
        let key = self.wrapping_key(&salt, slot.argon2id)?;
        let mut wrapped = Zeroizing::new(hex::decode(&slot.wrapped).ok()?);
        let opened = key
            .open_in_place(
                Nonce::assume_unique_for_key([0; 12]),
                associated(binding, &slot.data_key_id),
                &mut wrapped,
            )
            .ok()?;
        let bytes: &[u8; 32] = (&*opened).try_into().ok()?;
        Some(DataKey::from_bytes(Zeroizing::new(*bytes)))
    }
}

fn associated(binding: Binding, data_key_id: &str) -> Aad<Vec<u8>> {
    let mut bytes = b"fettler key slot 1".to_vec();
    bytes.extend_from_slice(&binding.repository.0);
    bytes.extend_from_slice(&binding.folder.0);
    bytes.extend_from_slice(data_key_id.as_bytes());
    Aad::from(bytes)
}

/// Makes a key file with a new random key, readable by its owner only. A file that is there is never
/// written over.
///
/// # Errors
///
/// When the file exists or cannot be written.
pub fn create_key_file(path: &Path) -> Result<(), RepositoryError> {
    use std::os::unix::fs::OpenOptionsExt;
    let error = |error: std::io::Error| {
        let (what, remedy) = if error.kind() == std::io::ErrorKind::AlreadyExists {
            (
                "there is a file already".to_owned(),
                "use it, or name another file: a key that is written over is lost with all backups that it opens",
            )
        } else {
            (
                format!("it cannot be made: {error}"),
                "name a file in a folder that this user may write to",
            )
        };
        key_file_error(path, what, remedy)
    };
    let key = Zeroizing::new(random_bytes::<32>());
    let digits = Zeroizing::new(hex::encode(*key));
    let text = Zeroizing::new(format!(
        "# A key of Fettler. Without it, nothing that was sealed with it can be restored: keep a copy\n\
         # of this file somewhere else, and keep it secret.\n\
         {KEY_FILE_WORD} {}\n",
        *digits
    ));
    // Written beside its place and linked into it, so that a crash leaves no half key that would be
    // taken for a whole one.
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let staged = folder.join(format!(".fettler-key-{}", hex::encode(random_bytes::<8>())));
    let outcome = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&staged)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::hard_link(&staged, path)
    })();
    if let Err(left) = std::fs::remove_file(&staged)
        && left.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(file = %staged.display(), error = %left, "a staged key file was left behind");
    }
    outcome.map_err(error)?;
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(error)
}

fn read_key_file(path: &Path) -> Result<KeyBytes, RepositoryError> {
    let unreadable = |error: std::io::Error| {
        let remedy = if error.kind() == std::io::ErrorKind::NotFound {
            "name the key file that the repository was first used with; it cannot be made again"
        } else {
            "let this user read it"
        };
        key_file_error(path, format!("it cannot be read: {error}"), remedy)
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    {
        use std::os::unix::fs::PermissionsExt;
        if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 {
            tracing::warn!(file = %path.display(), "the key file can be read by other users; run chmod 600 on it");
        }
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_KEY_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    let malformed = || {
        key_file_error(
            path,
            format!("it holds no line `{KEY_FILE_WORD}` with 64 hexadecimal digits"),
            "name a key file that Fettler made, whole as it was",
        )
    };
    let digits = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(KEY_FILE_WORD))
        .ok_or_else(malformed)?;
    let mut key = Zeroizing::new([0; 32]);
    hex::decode_to_slice(digits.trim(), &mut *key).map_err(|_| malformed())?;
    Ok(key)
}

fn key_file_error(path: &Path, what: String, remedy: &str) -> RepositoryError {
    RepositoryError::KeyFile {
        path: path.display().to_string(),
        what,
        remedy: remedy.to_owned(),
    }
}
