//! The settings themselves: every field with its meaning, its unit and its default. The names, types,
//! limits and descriptions of this file are all there is: the check of files, `fettler config show`
//! and the example files are made from them or tested against them.

use std::path::{Path, PathBuf};

use fettler_model::{DatabaseUrl, KeepRules, SecretReference, TenantId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The folder of this installation: ledger, keys, socket, scratch files, and the repository unless
    /// it lies elsewhere.
    #[schemars(with = "String", extend("x-path" = true))]
    pub folder: PathBuf,
    /// The tenant whose things a command works on.
    #[schemars(extend("x-check" = "tenant"))]
    pub tenant: TenantId,
    /// Where jobs, databases, policies and the catalogue of backups are kept.
    pub ledger: LedgerSettings,
    /// How jobs reach workers on other machines.
    pub queue: QueueSettings,
    /// Where backups go.
    pub repository: RepositorySettings,
    /// What opens the tenant's data key.
    pub keys: KeySettings,
    /// How jobs are run.
    pub worker: WorkerSettings,
    /// How policies become jobs.
    pub scheduler: SchedulerSettings,
    /// How long backups and what is left of them are kept.
    pub retention: RetentionSettings,
    /// Where proofs restore to, for databases that say nothing themselves.
    pub sandbox: SandboxSettings,
    /// What is logged.
    pub log: LogSettings,
}

/// Where the ledger is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LedgerSettings {
    /// `sqlite:/path` or `postgres://user@host/database`; the file `ledger.db` in the folder when not
    /// given.
    #[schemars(extend("x-secret" = "url"))]
    pub url: Option<String>,
}

/// How jobs reach workers on other machines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// `redis://host:port/database`, or `rediss://` for TLS; when not given the ledger itself is the queue.
    #[schemars(extend("x-secret" = "url"))]
    pub url: Option<String>,
    /// The fleet's name: fleets of different names share a Redis without meeting.
    pub fleet: String,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            url: None,
            fleet: "fettler".to_owned(),
        }
    }
}

/// Where the repository is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RepositorySettings {
    /// A folder's path, or `s3://bucket/prefix` (with `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_REGION` and, for other stores than Amazon's, `AWS_ENDPOINT_URL`); the folder `repository`
    /// in the installation's folder when not given.
    #[schemars(extend("x-path" = true))]
    pub place: Option<String>,
}

/// What opens the tenant's data key: a key file or a passphrase, not both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeySettings {
    /// The key file; `keys/<tenant>.key` in the folder when neither this nor a passphrase is given.
    #[schemars(with = "Option<String>", extend("x-path" = true))]
    pub file: Option<PathBuf>,
    /// A reference to a passphrase, `env:NAME` or `file:PATH`.
    #[schemars(extend("x-check" = "secret_reference"))]
    pub passphrase: Option<SecretReference>,
}

/// How jobs are run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerSettings {
    /// The worker's name in listings; the machine's name and the process's number when not given.
    pub name: Option<String>,
    /// The worker's labels, such as `zone=dmz`: databases that ask for them (`fettler database add --reach`) can be
    /// reached by it.
    pub labels: Vec<String>,
    /// How many long jobs (backups, restores, proofs) run at once.
    #[schemars(range(min = 1, max = 64))]
    pub long_slots: u32,
    /// How many short jobs run at once.
    #[schemars(range(min = 1, max = 1024))]
    pub short_slots: u32,
    /// How long a job belongs to a worker that is not heard of any more.
    #[schemars(range(min = 2, max = 3600))]
    pub lease_seconds: u32,
    /// How often a worker renews its leases; at most half of `lease_seconds`.
    #[schemars(range(min = 1, max = 1800))]
    pub heartbeat_seconds: u32,
    /// How many connections a job opens to a database at once.
    #[schemars(range(min = 1, max = 64))]
    pub parallel: u32,
    /// Threads that compress and seal; as many as the machine has cores when not given.
    #[schemars(range(min = 1, max = 256))]
    pub cpu_threads: Option<u32>,
    /// How long a stopping worker waits for its jobs to hand themselves back.
    #[schemars(range(min = 1, max = 3600))]
    pub drain_seconds: u32,
    /// The folder for temporary files; `scratch` in the installation's folder when not given.
    #[schemars(with = "Option<String>", extend("x-path" = true))]
    pub scratch: Option<PathBuf>,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            name: None,
            labels: Vec::new(),
            long_slots: 2,
            short_slots: 16,
            lease_seconds: 30,
            heartbeat_seconds: 10,
            parallel: 4,
            cpu_threads: None,
            drain_seconds: 30,
            scratch: None,
        }
    }
}

/// How policies become jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerSettings {
    /// Whether `fettler up` runs policies.
    pub enabled: bool,
    /// How long a scheduler leads that is not heard of any more.
    #[schemars(range(min = 2, max = 3600))]
    pub lease_seconds: u32,
    /// How long ended jobs are kept in the ledger.
    #[schemars(range(min = 1, max = 36_500))]
    pub history_days: u32,
    /// How much room ended jobs may take in the ledger; the oldest go first.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub history_megabytes: u32,
    /// A policy that is overdue by so much is reported as silent.
    #[schemars(range(min = 10, max = 86_400))]
    pub silent_after_seconds: u32,
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            lease_seconds: 15,
            history_days: 90,
            history_megabytes: 1024,
            silent_after_seconds: 300,
        }
    }
}

/// How long backups and what is left of them are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionSettings {
    /// The keep rules of `fettler forget` when none are given; none here either keeps all.
    pub keep: KeepRules,
    /// How long a pack that no backup names is kept before `fettler collect` deletes it.
    #[schemars(range(max = 31_536_000))]
    pub collection_grace_seconds: u64,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self {
            keep: KeepRules::default(),
            collection_grace_seconds: 86_400,
        }
    }
}

/// What a sandbox is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxKind {
    /// The best that the engine can make without touching the source: a file, or a server process on
    /// a private socket.
    #[default]
    Automatic,
    /// A scratch database on the server at `url`.
    Server,
    /// A scratch database on the source's own server; the dump's code runs there.
    SourceServer,
}

/// Where proofs restore to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxSettings {
    /// What a sandbox is.
    pub kind: SandboxKind,
    /// For `server`: which server, as `postgres://user@host/database` without a password.
    #[schemars(with = "Option<String>", extend("x-check" = "database_url"))]
    pub url: Option<DatabaseUrl>,
    /// For `server`: a reference to its password, `env:NAME` or `file:PATH`.
    #[schemars(extend("x-check" = "secret_reference"))]
    pub password: Option<SecretReference>,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, to the standard error output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// Which events, such as `info` or `warn,fettler_worker=debug`.
    pub filter: String,
    /// The form of the lines.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            filter: "warn,fettler=info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// What opens the tenant's data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyChoice {
    /// A key file, which the first backup makes if it is not there.
    File(PathBuf),
    /// A passphrase.
    Passphrase(SecretReference),
}

impl Settings {
    /// What holds when nothing is set, for an installation in this folder.
    #[must_use]
    pub fn defaults(folder: &Path) -> Self {
        Self {
            folder: folder.to_path_buf(),
            tenant: TenantId::default_tenant(),
            ledger: LedgerSettings::default(),
            queue: QueueSettings::default(),
            repository: RepositorySettings::default(),
            keys: KeySettings::default(),
            worker: WorkerSettings::default(),
            scheduler: SchedulerSettings::default(),
            retention: RetentionSettings::default(),
            sandbox: SandboxSettings::default(),
            log: LogSettings::default(),
        }
    }

    /// Where the ledger is.
    #[must_use]
    pub fn ledger_url(&self) -> String {
        self.ledger
            .url
            .clone()
            .unwrap_or_else(|| format!("sqlite:{}", self.folder.join("ledger.db").display()))
    }

    /// Where the repository is.
    #[must_use]
    pub fn repository_place(&self) -> String {
        self.repository.place.clone().unwrap_or_else(|| {
            self.folder
                .join("repository")
                .to_string_lossy()
                .into_owned()
        })
    }

    /// What opens the tenant's data key.
    #[must_use]
    pub fn key(&self) -> KeyChoice {
        match (&self.keys.file, &self.keys.passphrase) {
            (Some(file), _) => KeyChoice::File(file.clone()),
            (None, Some(reference)) => KeyChoice::Passphrase(reference.clone()),
            (None, None) => KeyChoice::File(
                self.folder
                    .join("keys")
                    .join(format!("{}.key", self.tenant)),
            ),
        }
    }

    /// The folder for temporary files.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.worker
            .scratch
            .clone()
            .unwrap_or_else(|| self.folder.join("scratch"))
    }

    /// The key that seals passwords given in URLs.
    #[must_use]
    pub fn secrets_key_file(&self) -> PathBuf {
        self.folder.join("secrets.key")
    }

    /// The socket at which `fettler up` listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("fettler.sock")
    }
}
