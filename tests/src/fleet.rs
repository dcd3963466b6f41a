//! A fleet on one machine: servers that all its processes share, and the processes.

use std::{path::PathBuf, time::Duration};

use fettler_test_servers::{
    MinioServer, PgMajor, PostgresServer, RedisOptions, RedisServer, TestDatabase, wait_until,
};

use crate::{Installation, Running};

/// How long a process may take until it answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// What opens the repositories of a fleet.
const PASSPHRASE: &str = "the fleet's own words";

/// What the machines of a fleet share: the ledger, the queue and a store.
#[derive(Debug)]
pub struct Shared {
    /// The queue.
    pub redis: RedisServer,
    /// The ledger.
    pub ledger: TestDatabase,
    /// The store, unless each machine has a folder.
    pub minio: Option<MinioServer>,
}

impl Shared {
    /// With a ledger on a server of this version, and a store.
    ///
    /// # Panics
    ///
    /// When a server cannot be started.
    #[must_use]
    pub fn new(major: PgMajor) -> Self {
        let minio = MinioServer::start().expect("a store can be started");
        minio
            .create_bucket("backups")
            .expect("a bucket can be made");
        Self {
            minio: Some(minio),
            ..Self::without_store(major)
        }
    }

    fn without_store(major: PgMajor) -> Self {
        Self {
            redis: RedisServer::start(RedisOptions::new()).expect("a Redis can be started"),
            ledger: PostgresServer::shared(major)
                .create_database("ledger")
                .expect("a database can be made"),
            minio: None,
        }
    }

    /// One machine of it, with a folder of its own.
    #[must_use]
    pub fn machine(&self) -> Installation {
        self.join(Installation::new())
    }

    fn join(&self, mut machine: Installation) -> Installation {
        machine = machine
            .with("FETTLER_LEDGER__URL", self.ledger.url())
            .with("FETTLER_QUEUE__URL", self.redis.url())
            .with("FETTLER_PASSPHRASE", PASSPHRASE);
        if let Some(minio) = &self.minio {
            machine = machine.with("FETTLER_REPOSITORY", "s3://backups/fleet");
            for (name, value) in minio.env_via(&minio.url()) {
                machine = machine.with(name, value);
            }
        }
        machine
    }
}

/// Waits until a process says where its interface answers.
///
/// # Panics
///
/// When it does not say so within a minute.
#[must_use]
pub fn url_of(running: &Running) -> String {
    let mut url = None;
    wait_until("the interface answers", PATIENCE, || {
        let log = running.log();
        let said = log.split("answers at ").nth(1);
        url = said
            .and_then(|rest| rest.split_whitespace().next())
            .map(str::to_owned);
        url.is_some()
    })
    .unwrap_or_else(|error| panic!("{error}: {}", running.log()));
    url.expect("it was waited for")
}

/// The processes of one fleet.
#[derive(Debug)]
pub(crate) struct Staff {
    // Dropped in this order: processes before what they work on.
    workers: Vec<Running>,
    api: Running,
    token: String,
    url: String,
    machine: Installation,
    _shared: Shared,
}

impl Staff {
    /// Starts an interface and so many workers, on machines with the variables of `client`.
    pub(crate) fn start(client: &Installation, workers: usize) -> Self {
        // Databases of tests are on servers of both versions, but never in one with the ledger.
        let shared = Shared::without_store(PgMajor::V18);
        // One key seals the passwords of all machines.
        let secrets = client.path("secrets.key");
        let mut machine = shared
            .join(client.alike())
            .with("FETTLER_KEYS__SECRETS_FILE", secrets.to_string_lossy());
        if client.variable("FETTLER_REPOSITORY").is_none() {
            let repository = client.folder().join("repository");
            machine = machine.with("FETTLER_REPOSITORY", repository.to_string_lossy());
        }
        let made = machine.json(&["token", "add", "tests", "--role", "admin", "--all-tenants"]);
        let token = made["text"]
            .as_str()
            .expect("a token has a text")
            .to_owned();
        let api = machine.alike();
        let running = api.start(&["api", "--listen", "127.0.0.1:0"]).on(api);
        let url = url_of(&running);
        let mut staff = Self {
            workers: Vec::new(),
            api: running,
            token,
            url,
            machine,
            _shared: shared,
        };
        staff.workers = (0..workers).map(|_| staff.start_worker()).collect();
        staff
    }

    pub(crate) fn start_worker(&self) -> Running {
        let machine = self.machine.alike();
        machine.start(&["worker"]).on(machine)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    fn running(&self) -> impl Iterator<Item = &Running> {
        std::iter::once(&self.api).chain(&self.workers)
    }

    pub(crate) fn logs(&self) -> String {
        self.running().map(Running::log).collect()
    }

    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        self.running().filter_map(Running::folder).collect()
    }
}
