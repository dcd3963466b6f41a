//! What this process offers to the jobs that it runs: secrets, repositories, the pool that compresses and
//! seals, a place for temporary files.

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use fettler_api::http::bounds::Deny;
use fettler_config::{KeyChoice, SandboxKind, SealedSecrets, Settings, Sources};
use fettler_engine::SandboxSpec;
use fettler_jobs::{BackupPlace, Services};
use fettler_ledger::{Ledger, SealedId};
use fettler_model::{DatabaseUrl, Problem, Secret, SecretReference, TenantId};
use fettler_repository::{
    CpuPool, CreateKey, OpenOptions, Repository, RepositoryError, TenantRepository, Unlock,
    create_key_file,
};

use crate::{failure::Failure, folder, output::Output, premises};

/// What a repository is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// To read: what is not there is an error.
    Read,
    /// To back up: repository and key are made at first use.
    BackUp,
}

/// The services of this process.
pub(crate) struct LocalServices {
    sources: Sources,
    own: Settings,
    tenants: Mutex<HashMap<TenantId, Arc<Settings>>>,
    ledger: Ledger,
    sealed: SealedSecrets,
    cpu: CpuPool,
    output: Output,
    /// Which addresses no tenant may name.
    deny: Deny,
    /// Opened once and shared: unwrapping a key by a passphrase is slow on purpose.
    open: tokio::sync::Mutex<HashMap<(TenantId, String), TenantRepository>>,
}

impl fmt::Debug for LocalServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalServices")
            .field("folder", &self.own.folder)
            .finish_non_exhaustive()
    }
}

impl LocalServices {
    pub(crate) fn new(
        sources: Sources,
        own: Settings,
        ledger: Ledger,
        output: Output,
    ) -> Result<Self, Failure> {
        let scratch = own.scratch();
        folder::make(&scratch)?;
        let cpu = own
            .worker
            .cpu_threads
            .and_then(|threads| NonZeroUsize::new(threads as usize))
            .map_or_else(CpuPool::default, CpuPool::new);
        Ok(Self {
            sealed: SealedSecrets::new(own.secrets_key_file()),
            deny: premises::deny(&own),
            sources,
            own,
            tenants: Mutex::default(),
            ledger,
            cpu,
            output,
            open: tokio::sync::Mutex::default(),
        })
    }

    /// The settings as they hold for a tenant.
    pub(crate) fn settings_of(&self, tenant: &TenantId) -> Result<Arc<Settings>, Problem> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(settings) = tenants.get(tenant) {
            return Ok(settings.clone());
        }
        let settings = if *tenant == self.own.tenant {
            self.own.clone()
        } else {
            let sources = self
                .sources
                .clone()
                .flag("--tenant", "tenant", Some(tenant.to_string()));
            fettler_config::load(&sources)?.settings
        };
        let settings = Arc::new(settings);
        tenants.insert(tenant.clone(), settings.clone());
        Ok(settings)
    }

    /// Seals a password that was given in a URL.
    pub(crate) async fn seal(
        &self,
        tenant: &TenantId,
        secret: &Secret,
    ) -> Result<SecretReference, Failure> {
        Ok(SecretReference::Sealed(
            self.seal_secret(tenant, secret).await?,
        ))
    }

    /// The same, for the interface.
    pub(crate) async fn seal_secret(
        &self,
        tenant: &TenantId,
        secret: &Secret,
    ) -> Result<SealedId, Problem> {
        let sealed = self.sealed.seal(tenant, secret)?;
        Ok(self.ledger.put_sealed(tenant, &sealed).await?)
    }

    /// Which addresses no tenant may name.
    pub(crate) const fn denied(&self) -> &Deny {
        &self.deny
    }

    /// What opens the tenant's data key, by the settings.
    pub(crate) async fn unlock(&self, tenant: &TenantId) -> Result<Unlock, Problem> {
        match self.settings_of(tenant)?.key() {
            KeyChoice::File(path) => Ok(Unlock::KeyFile(path)),
            KeyChoice::Passphrase(reference) => {
                Ok(Unlock::Passphrase(self.secret(tenant, &reference).await?))
            }
        }
    }

    /// Opens the tenant's part of the repository at `place`, or of the configured one.
    pub(crate) async fn open(
        &self,
        tenant: &TenantId,
        place: Option<&str>,
        how: Use,
    ) -> Result<(TenantRepository, String), Problem> {
        let settings = self.settings_of(tenant)?;
        let place = place.map_or_else(|| settings.repository_place(), ToOwned::to_owned);
        let mut open = self.open.lock().await;
        let known = (tenant.clone(), place.clone());
        if let Some(repository) = open.get(&known) {
            return Ok((repository.clone(), place));
        }
        let options = OpenOptions {
            create: how == Use::BackUp,
            cpu: self.cpu.clone(),
            ..OpenOptions::default()
        };
        let repository = Repository::open(&place, options).await?;
        let unlock = self.unlock(tenant).await?;
        if let (Use::BackUp, Unlock::KeyFile(path)) = (how, &unlock)
            && !path.exists()
        {
            self.make_key(&repository, tenant, path).await?;
        }
        let create = match how {
            Use::BackUp => CreateKey::IfAbsent,
            Use::Read => CreateKey::Never,
        };
        let opened = repository.tenant(tenant, &unlock, create).await?;
        open.insert(known, opened.clone());
        Ok((opened, place))
    }

    /// Makes the key file of a tenant that has stored nothing yet, and says so loudly.
    async fn make_key(
        &self,
        repository: &Repository,
        tenant: &TenantId,
        path: &Path,
    ) -> Result<(), Problem> {
        if let Some(parent) = path.parent() {
            folder::make(parent).map_err(|failure| failure.problem)?;
        }
        // The key is tried before it gets its name: where backups are sealed with another one, a new
        // file of that name would only hide that the right one is missing.
        let draft = path.with_extension(format!("draft-{}", uuid::Uuid::new_v4().simple()));
        create_key_file(&draft)?;
        let tried = repository
            .tenant(tenant, &Unlock::KeyFile(draft.clone()), CreateKey::Never)
            .await;
        let made = match tried {
            Err(RepositoryError::NoSuchTenant { .. }) => std::fs::hard_link(&draft, path)
                .map(|()| true)
                .or_else(|error| {
                    // Another command was quicker; its key is the one.
                    if error.kind() == std::io::ErrorKind::AlreadyExists {
                        Ok(false)
                    } else {
                        Err(Failure::local(
                            format!("the key file {} cannot be made", path.display()),
                            &error,
                        )
                        .problem)
                    }
                }),
            Err(RepositoryError::WrongKey { .. }) | Ok(_) => Err(Problem::permanent(
                "repository.key_missing",
                format!(
                    "the repository at {} holds backups of tenant {tenant} already, and the key file {} is not there",
                    repository.place(),
                    path.display()
                ),
                "bring the key file back, or name it with `--key-file`; a passphrase goes into FETTLER_PASSPHRASE",
            )),
            Err(other) => Err(other.into()),
        };
        if let Err(error) = std::fs::remove_file(&draft) {
            tracing::warn!(file = %draft.display(), %error, "a draft of a key file was left behind");
        }
        if made? {
            self.output.loud(&[
                &format!("A new key was made: {}", path.display()),
                "NOTHING THAT IS BACKED UP CAN BE RESTORED WITHOUT IT.",
                "Keep a copy of this file somewhere else, where the backups are not.",
            ]);
        }
        Ok(())
    }
}

#[async_trait]
impl Services for LocalServices {
    async fn secret(
        &self,
        tenant: &TenantId,
        reference: &SecretReference,
    ) -> Result<Secret, Problem> {
        if let SecretReference::Sealed(id) = reference {
            // The ledger gives a sealed secret to its own tenant only, and it opens for that one only.
            let sealed = self.ledger.sealed(tenant, *id).await?;
            return Ok(self.sealed.open(tenant, &sealed)?);
        }
        let resolved = fettler_config::resolve(reference)?;
        if let Some(warning) = resolved.warning {
            tracing::warn!("{warning}");
        }
        Ok(resolved.secret)
    }

    async fn admit(&self, tenant: &TenantId, url: &DatabaseUrl) -> Result<DatabaseUrl, Problem> {
        // What the operator's own tenant names was named by the operator, as was a sandbox of the settings.
        if *tenant == self.own.tenant {
            return Ok(url.clone());
        }
        let settings = self.settings_of(tenant)?;
        let is_sandbox_of_settings = [&*settings, &self.own]
            .iter()
            .any(|settings| settings.sandbox.url.as_ref() == Some(url));
        if is_sandbox_of_settings {
            return Ok(url.clone());
        }
        let bounds = premises::bounds(&settings);
        self.deny.pinned(&bounds, url).await.map_err(|error| {
            let (code, what) = ("tenant.address", error.to_string());
            if error.may_pass {
                Problem::transient(
                    code,
                    what,
                    "see whether this machine's resolver knows the name",
                )
            } else {
                Problem::permanent(code, what, error.remedy())
            }
        })
    }

    async fn repository(
        &self,
        tenant: &TenantId,
        place: &BackupPlace,
    ) -> Result<(TenantRepository, String), Problem> {
        self.open(tenant, place.0.as_deref(), Use::BackUp).await
    }

    fn parallel(&self) -> usize {
        self.own.worker.parallel as usize
    }

    fn scratch(&self) -> PathBuf {
        self.own.scratch()
    }

    fn collection_grace(&self) -> Duration {
        Duration::from_secs(self.own.retention.collection_grace_seconds)
    }

    fn own_checks(&self) -> Option<PathBuf> {
        crate::folder::own_checks(&self.own.folder)
    }

    fn default_sandbox(&self) -> SandboxSpec {
        let sandbox = &self.own.sandbox;
        match (sandbox.kind, &sandbox.url) {
            (SandboxKind::Server, Some(url)) => SandboxSpec::Server {
                url: url.clone(),
                password: sandbox.password.clone(),
            },
            (SandboxKind::SourceServer, _) => SandboxSpec::SourceServer,
            // A server without a URL does not pass the check of the settings.
            (SandboxKind::Server, None) | (SandboxKind::Automatic, _) => SandboxSpec::Automatic,
        }
    }
}
