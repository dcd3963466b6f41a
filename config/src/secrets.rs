//! From a reference to the secret (P9), and the sealing of passwords that were given in a URL: the
//! ledger keeps them encrypted with a key that lies in a file of the folder, so that a copy of the
//! ledger alone opens nothing.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use fettler_model::{Problem, Secret, SecretReference, TenantId};
use thiserror::Error;
use zeroize::Zeroizing;

/// A file that holds a secret is not longer.
const MAX_SECRET_BYTES: u64 = 64 * 1024;
/// The length of the key that seals, in bytes.
const KEY_BYTES: usize = 32;
/// The first byte of a sealed secret: the form of what follows.
const SEALED_FORM: u8 = 1;

/// Why a secret could not be had.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The variable is not there.
    #[error("the environment variable {0}, which holds a secret, is not set")]
    NoVariable(String),
    /// The file cannot be read.
    #[error("the file {path}, which holds a secret, cannot be read: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds nothing.
    #[error("the file {0}, which should hold a secret, is empty")]
    Empty(PathBuf),
    /// A sealed secret is opened by [`SealedSecrets`] only.
    #[error("the secret is sealed in the ledger and cannot be read from here")]
    NotHere,
    /// The key file of sealed secrets cannot be read.
    #[error("the key file {path}, with which passwords are sealed, cannot be read: {source}")]
    NoKey {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The key file of sealed secrets is damaged.
    #[error("the key file {0} does not hold a key")]
    NotAKey(PathBuf),
    /// The key file could not be written.
    #[error("the key file {path} cannot be made: {source}")]
    CannotMakeKey {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The sealed bytes do not open.
    #[error("a sealed password does not open with the key in {0}")]
    DoesNotOpen(PathBuf),
}

impl From<SecretError> for Problem {
    fn from(error: SecretError) -> Self {
        let remedy = match &error {
            SecretError::NoVariable(name) => {
                format!("set {name} for the process that runs the job, or refer to a file")
            }
            SecretError::File { .. } | SecretError::Empty(_) => {
                "check that the file exists, that this user may read it and that its first line is the secret".to_owned()
            }
            SecretError::NotHere => String::new(),
            SecretError::NoKey { .. } => {
                "in a fleet it is one file for all machines: copy it from the one where the password was given, and name it in `keys.secrets_file`; or give the password anew with `fettler database edit --password`".to_owned()
            }
            SecretError::NotAKey(_) | SecretError::DoesNotOpen(_) => {
                "bring the key file back from where the folder was copied, or give the password anew with `fettler database edit --password`".to_owned()
            }
            SecretError::CannotMakeKey { .. } => {
                "check that this user may write to the folder and that the disk is not full".to_owned()
            }
        };
        Self::permanent("config.secret", error.to_string(), remedy)
    }
}

/// A resolved secret, and what should be said about where it lies.
#[derive(Debug)]
pub struct Resolved {
    /// The secret.
    pub secret: Secret,
    /// A word for the reader of the log, when others may read the file too.
    pub warning: Option<String>,
}

/// Resolves `env:` and `file:` references.
///
/// # Errors
///
/// When the variable or the file is not there, or the reference is a sealed one.
pub fn resolve(reference: &SecretReference) -> Result<Resolved, SecretError> {
    match reference {
        SecretReference::Environment(name) => std::env::var(name)
            .ok()
            .filter(|value| !value.is_empty())
            .map(|value| Resolved {
                secret: Secret::new(value),
                warning: None,
            })
            .ok_or_else(|| SecretError::NoVariable(name.clone())),
        SecretReference::File(path) => read_secret_file(path),
        SecretReference::Sealed(_) => Err(SecretError::NotHere),
    }
}

fn read_secret_file(path: &Path) -> Result<Resolved, SecretError> {
    let failed = |source| SecretError::File {
        path: path.to_path_buf(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_SECRET_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(SecretError::Empty(path.to_path_buf()));
    }
    Ok(Resolved {
        secret: Secret::new(line.to_owned()),
        warning: (mode & 0o077 != 0).then(|| {
            format!(
                "the file {} holds a secret and can be read by others: `chmod 600` it",
                path.display()
            )
        }),
    })
}

/// Seals passwords with the key of a folder. The key file is made when the first one is sealed.
#[derive(Clone, Debug)]
pub struct SealedSecrets {
    key_file: PathBuf,
}

impl SealedSecrets {
    /// The sealing by the key in this file.
    #[must_use]
    pub fn new(key_file: PathBuf) -> Self {
        Self { key_file }
    }

    /// Seals a secret of a tenant.
    ///
    /// # Errors
    ///
    /// When the key file can neither be read nor made.
    pub fn seal(&self, tenant: &TenantId, secret: &Secret) -> Result<Vec<u8>, SecretError> {
        let key = self.key(true)?;
        let mut bytes = secret.expose().as_bytes().to_vec();
        let nonce = key
            .seal_in_place_append_tag(Aad::from(tenant.as_str()), &mut bytes)
            .map_err(|_| SecretError::NotAKey(self.key_file.clone()))?;
        let mut sealed = vec![SEALED_FORM];
        sealed.extend_from_slice(nonce.as_ref());
        sealed.append(&mut bytes);
        Ok(sealed)
    }

    /// Opens what [`Self::seal`] made for this tenant.
    ///
    /// # Errors
    ///
    /// When the key is not there or not the one, or the secret is another tenant's (P6).
    pub fn open(&self, tenant: &TenantId, sealed: &[u8]) -> Result<Secret, SecretError> {
        let does_not_open = || SecretError::DoesNotOpen(self.key_file.clone());
        let key = self.key(false)?;
        let (form, rest) = sealed.split_first().ok_or_else(does_not_open)?;
        if *form != SEALED_FORM || rest.len() < NONCE_LEN {
            return Err(does_not_open());
        }
        let (nonce, bytes) = rest.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| does_not_open())?;
        let mut bytes = Zeroizing::new(bytes.to_vec());
        let opened = key
            .open_in_place(nonce, Aad::from(tenant.as_str()), &mut bytes)
            .map_err(|_| does_not_open())?;
        let text = std::str::from_utf8(opened).map_err(|_| does_not_open())?;
        Ok(Secret::new(text.to_owned()))
    }

    fn key(&self, make: bool) -> Result<RandomizedNonceKey, SecretError> {
        let not_a_key = || SecretError::NotAKey(self.key_file.clone());
        if make && !self.key_file.exists() {
            self.make_key()?;
        }
        let text = Zeroizing::new(std::fs::read_to_string(&self.key_file).map_err(|source| {
            SecretError::NoKey {
                path: self.key_file.clone(),
                source,
            }
        })?);
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        hex::decode_to_slice(text.trim(), key.as_mut()).map_err(|_| not_a_key())?;
        RandomizedNonceKey::new(&AES_256_GCM, key.as_ref()).map_err(|_| not_a_key())
    }

    /// Makes the key file. Of two processes that do so at once one wins, and both use its key: the file
    /// gets its name when it is complete, and only if the name is free.
    fn make_key(&self) -> Result<(), SecretError> {
        let failed = |source| SecretError::CannotMakeKey {
            path: self.key_file.clone(),
            source,
        };
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(key.as_mut())
            .map_err(|_| failed(std::io::Error::other("the system gave no random bytes")))?;
        let draft = self
            .key_file
            .with_extension(format!("draft-{}", uuid::Uuid::new_v4().simple()));
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(Zeroizing::new(hex::encode(key.as_ref())).as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            match std::fs::hard_link(&draft, &self.key_file) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        };
        let written = write();
        if let Err(error) = std::fs::remove_file(&draft)
            && error.kind() != std::io::ErrorKind::NotFound
            && written.is_ok()
        {
            return Err(failed(error));
        }
        written.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn p6_a_sealed_password_opens_for_its_tenant_only() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = SealedSecrets::new(folder.path().join("secrets.key"));
        let ann: TenantId = "ann".parse().unwrap();
        let bob: TenantId = "bob".parse().unwrap();
        let sealed = secrets.seal(&ann, &Secret::new("hunter2".into())).unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"hunter2"));
        assert_eq!(secrets.open(&ann, &sealed).unwrap().expose(), "hunter2");
        assert!(matches!(
            secrets.open(&bob, &sealed),
            Err(SecretError::DoesNotOpen(_))
        ));
    }

    #[test]
    fn the_key_file_is_for_its_owner_alone_and_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets.key");
        let tenant = TenantId::default_tenant();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (path, tenant) = (path.clone(), tenant.clone());
                std::thread::spawn(move || {
                    SealedSecrets::new(path)
                        .seal(&tenant, &Secret::new("x".into()))
                        .unwrap()
                })
            })
            .collect();
        for thread in threads {
            let sealed = thread.join().unwrap();
            let secrets = SealedSecrets::new(path.clone());
            assert_eq!(secrets.open(&tenant, &sealed).unwrap().expose(), "x");
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_secret_in_a_file_that_others_can_read_is_warned_about() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "hunter2\nsecond line\n").unwrap();
        for (mode, warned) in [(0o644, true), (0o600, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let resolved = resolve(&SecretReference::File(path.clone())).unwrap();
            assert_eq!(resolved.secret.expose(), "hunter2");
            assert_eq!(resolved.warning.is_some(), warned);
        }
    }
}
