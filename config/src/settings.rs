//! The settings themselves: every field with its meaning, its unit and its default. The names, types,
//! limits and descriptions of this file are all there is: the check of files, `fettler config show`
//! and the example files are made from them or tested against them.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use fettler_model::{DatabaseUrl, KeepRules, SecretReference, TenantId};
use ipnet::IpNet;
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
    /// The HTTP interface.
    pub api: ApiSettings,
    /// What a tenant's tokens may name beyond what is theirs; for one tenant in `config/tenants/NAME.toml`.
    pub allow: AllowSettings,
    /// Which addresses tenants may not name.
    pub deny: DenySettings,
    /// What is logged.
    pub log: LogSettings,
    /// Where traces are sent.
    pub traces: TraceSettings,
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
    /// `redis://host:port/database`, `rediss://` for TLS, or sentinels as `redis+sentinel://host:port,host:port/service`; when
    /// not given the ledger itself is the queue.
    #[schemars(extend("x-secret" = "url"))]
    pub url: Option<String>,
    /// The certificate (PEM) that signs the certificate of a Redis with TLS; those that the machine trusts when not given.
    #[schemars(with = "Option<String>", extend("x-path" = true))]
    pub root_certificate: Option<PathBuf>,
    /// The fleet's name: fleets of different names share a Redis without meeting.
    pub fleet: String,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            url: None,
            root_certificate: None,
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
    /// The key file that seals passwords which were given in URLs, the same one on every machine of a fleet;
    /// `secrets.key` in the folder when not given, made when the first password is sealed.
    #[schemars(with = "Option<String>", extend("x-path" = true))]
    pub secrets_file: Option<PathBuf>,
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
    /// A job that gives no sign of life for so many minutes has stalled: it is stopped and tried again. Zero lets
    /// jobs wait for ever.
    #[schemars(range(min = 0, max = 10_080))]
    pub stall_minutes: u32,
    /// How many connections a job opens to a database at once.
    #[schemars(range(min = 1, max = 64))]
    pub parallel: u32,
    /// Threads that compress and seal; as many as the machine has cores when not given.
    #[schemars(range(min = 1, max = 256))]
    pub cpu_threads: Option<u32>,
    /// How long a stopping worker waits: long jobs hand themselves back at once, short ones have half of the time to end.
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
            stall_minutes: 30,
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
    /// A reference, `env:NAME` or `file:PATH`, to a URL that the leading scheduler asks every minute while it does
    /// its work: whoever watches it there notices that the whole fleet is gone.
    #[schemars(extend("x-check" = "secret_reference"))]
    pub heartbeat_url: Option<SecretReference>,
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            lease_seconds: 15,
            history_days: 90,
            history_megabytes: 1024,
            silent_after_seconds: 300,
            heartbeat_url: None,
        }
    }
}

/// How long backups and what is left of them are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionSettings {
    /// The keep rules of `fettler forget` when none are given; none here either keeps all.
    pub keep: KeepRules,
    /// How long a pack that no backup names is kept before `fettler collect` deletes it. A running backup says once a minute that it
    /// lives: less than a few minutes would give it up.
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

/// The HTTP interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ApiSettings {
    /// Where it listens, as `127.0.0.1:8080`. When not given, `fettler up` has no HTTP interface, and `fettler api`
    /// listens at `127.0.0.1:8080`.
    pub listen: Option<String>,
    /// The certificate chain for TLS, a PEM file; plain HTTP without one.
    #[schemars(with = "Option<String>", extend("x-path" = true))]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's key, a PEM file.
    #[schemars(with = "Option<String>", extend("x-path" = true))]
    pub tls_key: Option<PathBuf>,
    /// No body of a request is larger.
    #[schemars(range(min = 1, max = 65_536))]
    pub max_body_kilobytes: u32,
    /// How many requests a token may send in a second, on average; twice as many at once.
    #[schemars(range(min = 1, max = 100_000))]
    pub requests_per_second: u32,
    /// How many streams of events are open at once.
    #[schemars(range(min = 1, max = 100_000))]
    pub open_streams: u32,
    /// How many connections are open at once; more wait.
    #[schemars(range(min = 1, max = 100_000))]
    pub connections: u32,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            listen: None,
            tls_certificate: None,
            tls_key: None,
            max_body_kilobytes: 1024,
            requests_per_second: 50,
            open_streams: 256,
            connections: 1024,
        }
    }
}

/// An address or a network, such as `10.1.2.3` or `10.1.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(pub IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map(Self)
            .map_err(|_| format!("{text:?} is no network: write `10.1.0.0/16` or `10.1.2.3`"))
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.0.to_string()
    }
}

impl JsonSchema for Network {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "x-check": "network"})
    }
}

/// What a tenant's tokens may name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AllowSettings {
    /// References to secrets, such as `file:/etc/acme/password`; a `*` at the end stands for any rest: `env:ACME_*`.
    pub references: Vec<String>,
    /// Folders, by their absolute paths, whose SQLite files may be named.
    pub paths: Vec<String>,
    /// Repositories beside the configured one.
    pub repositories: Vec<String>,
    /// Whether commands may be run on workers (hooks).
    pub commands: bool,
    /// Whether a proof may ask for a server process on a worker.
    pub process_sandboxes: bool,
    /// Addresses and networks that may be named although they are denied.
    pub networks: Vec<Network>,
}

/// Which addresses tenants may not name, beside link-local ones, the ledger and Redis.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DenySettings {
    /// Addresses and networks.
    pub networks: Vec<Network>,
    /// Whether the machines' own addresses (127.0.0.0/8, `::1`) are denied; they are in a fleet (with a queue or a ledger
    /// on a server) when nothing is said.
    pub loopback: Option<bool>,
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

/// Where traces are sent, by OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TraceSettings {
    /// The collector, such as `http://collector:4318`; the variable `OTEL_EXPORTER_OTLP_ENDPOINT` when not given, and no
    /// traces without either.
    #[schemars(extend("x-secret" = "url"))]
    pub endpoint: Option<String>,
    /// How many of a hundred traces that begin here are kept; one that began elsewhere is kept when it was kept there.
    #[schemars(range(min = 0, max = 100))]
    pub sample_percent: u32,
}

impl Default for TraceSettings {
    fn default() -> Self {
        Self {
            endpoint: None,
            sample_percent: 100,
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
            api: ApiSettings::default(),
            allow: AllowSettings::default(),
            deny: DenySettings::default(),
            log: LogSettings::default(),
            traces: TraceSettings::default(),
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
        self.keys
            .secrets_file
            .clone()
            .unwrap_or_else(|| self.folder.join("secrets.key"))
    }

    /// Whether several machines share the ledger or the queue.
    #[must_use]
    pub fn is_fleet(&self) -> bool {
        self.queue.url.is_some() || !self.ledger_url().starts_with("sqlite:")
    }

    /// Whether the machines' own addresses are denied to tenants.
    #[must_use]
    pub fn denies_loopback(&self) -> bool {
        self.deny.loopback.unwrap_or_else(|| self.is_fleet())
    }

    /// Where `fettler up` leaves the token of its HTTP interface, for the commands of this folder's owner.
    #[must_use]
    pub fn api_token_file(&self) -> PathBuf {
        self.folder.join("api.token")
    }

    /// The socket at which `fettler up` listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("fettler.sock")
    }
}
