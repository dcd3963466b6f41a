//! The servers of the fleet, which all runs share: starting them takes longer than a run. A run has a database, a fleet name
//! in Redis and a prefix in the store of its own, so that none sees another's.

use std::{os::unix::fs::PermissionsExt, path::Path};

use fettler_repository::{OpenOptions, Repository};
use fettler_test_servers::{
    MinioServer, PgMajor, PostgresOptions, PostgresServer, RedisOptions, RedisServer,
};
use object_store::{ObjectStoreExt, aws::AmazonS3Builder, path::Path as ObjectPath};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::NamedTempFile;

use crate::{Result, Trouble, fleet::SLOTS};

/// Where Debian's package `faketime` puts its library, in a folder of the machine's architecture.
const LIBRARIES: &str = "/usr/lib";
const FAKETIME: &str = "faketime/libfaketimeMT.so.1";

/// The bucket of all runs.
pub const BUCKET: &str = "backups";

/// Rows of the PostgreSQL database that is backed up.
const SOURCE_ROWS: u32 = 6_000;

/// Packs and chunks of the runs' repositories are so much smaller than usual: some MB have as many packs, and as many moments
/// between them, as some hundred.
const SIZES_DIVIDED_BY: u32 = 16;

/// The object that makes a place a repository, and holds its sizes.
const REPOSITORY: &str = "fettler-repository.json";

/// All of them.
#[derive(Debug)]
pub struct Servers {
    /// The ledger's.
    pub ledger: PostgresServer,
    /// The one with the database that is backed up; no fault touches it.
    pub source: PostgresServer,
    /// The wire.
    pub redis: RedisServer,
    /// The store.
    pub minio: MinioServer,
    /// Words that may appear nowhere but where they are kept (P9).
    pub secrets: Secrets,
    repository: Vec<u8>,
    runtime: tokio::runtime::Runtime,
    /// The file that says by how much the clock of the ledger's server is ahead, and whether that server looks there.
    clock: NamedTempFile,
    has_clock: bool,
}

/// Everything that must stay secret in a run.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// The password of every ledger role.
    pub ledger_password: String,
    /// The password of the source's role.
    pub source_password: String,
    /// Redis' password.
    pub redis_password: String,
}

impl Secrets {
    fn new() -> Self {
        // Not from a plan's seed: a secret that can be guessed is none.
        let mut dice = StdRng::from_rng(&mut rand::rng());
        let mut word = |of: &str| format!("{of}Hush{:024x}", dice.random::<u128>() >> 32);
        Self {
            ledger_password: word("ledger"),
            source_password: word("source"),
            redis_password: word("redis"),
        }
    }
}

impl Servers {
    /// Starts them.
    ///
    /// # Errors
    ///
    /// When one does not start.
    pub fn start() -> Result<Self> {
        let secrets = Secrets::new();
        let ledger = PostgresServer::start(
            PgMajor::V15,
            PostgresOptions::new().setting("max_connections", "400"),
        )?;
        let mut roles = format!(
            "CREATE ROLE fleet LOGIN PASSWORD '{}';",
            secrets.ledger_password
        );
        for slot in SLOTS {
            roles.push_str(&format!(
                "CREATE ROLE {} LOGIN PASSWORD '{}' IN ROLE fleet;",
                slot.name(),
                secrets.ledger_password
            ));
        }
        ledger.psql("postgres", &roles)?;
        let source = PostgresServer::start(
            PgMajor::V15,
            PostgresOptions::new().setting("max_connections", "200"),
        )?;
        source.psql(
            "postgres",
            &format!(
                "CREATE ROLE shop SUPERUSER LOGIN PASSWORD '{}';",
                secrets.source_password
            ),
        )?;
        source.psql("postgres", "CREATE DATABASE shop OWNER shop")?;
        source.psql(
            "shop",
            &format!(
                "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, body text NOT NULL);
                 INSERT INTO item SELECT n, 'item ' || n, md5(n::text) || md5((n * 7)::text) FROM generate_series(1, {SOURCE_ROWS}) n;
                 CREATE INDEX item_by_name ON item (name);
                 CREATE TABLE sale (id bigserial PRIMARY KEY, item int NOT NULL REFERENCES item, amount numeric NOT NULL);
                 INSERT INTO sale (item, amount) SELECT 1 + n % {SOURCE_ROWS}, n * 0.25 FROM generate_series(1, {SOURCE_ROWS}) n;"
            ),
        )?;
        let redis = RedisServer::start(RedisOptions::new().password(&secrets.redis_password))?;
        let minio = MinioServer::start()?;
        minio.create_bucket(BUCKET)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Trouble::io("start a runtime"))?;
        let repository = runtime.block_on(small_repository())?;
        Ok(Self {
            ledger,
            source,
            redis,
            minio,
            secrets,
            repository,
            runtime,
            clock: clock_file()?,
            has_clock: false,
        })
    }

    /// Gives the ledger's server a clock of its own, which [`Servers::set_ledger_clock`] sets, or the machine's again.
    ///
    /// # Errors
    ///
    /// When it does not start again.
    pub fn give_ledger_a_clock(&mut self, own: bool) -> Result<()> {
        if self.has_clock == own {
            return Ok(());
        }
        self.set_ledger_clock(0)?;
        let environment = match own {
            true => fake_clock(self.clock.path())?,
            false => Vec::new(),
        };
        self.ledger.stop()?;
        self.ledger.set_environment(environment);
        self.ledger.start_again()?;
        self.has_clock = own;
        Ok(())
    }

    /// Sets the clock of the ledger's server.
    ///
    /// # Errors
    ///
    /// When its file cannot be written.
    pub fn set_ledger_clock(&self, ahead_seconds: i64) -> Result<()> {
        std::fs::write(self.clock.path(), format!("{ahead_seconds:+}"))
            .map_err(Trouble::io("set a clock"))
    }

    /// Makes an empty repository with small packs below this prefix.
    ///
    /// # Errors
    ///
    /// When the store refuses it.
    pub fn make_repository(&self, prefix: &str) -> Result<()> {
        let store = AmazonS3Builder::new()
            .with_endpoint(self.minio.url())
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_access_key_id(self.minio.access_key())
            .with_secret_access_key(self.minio.secret_key())
            .with_bucket_name(BUCKET)
            .build()
            .map_err(|error| Trouble::unreadable("the store", error))?;
        let path = ObjectPath::from(format!("{prefix}/{REPOSITORY}"));
        self.runtime
            .block_on(store.put(&path, self.repository.clone().into()))
            .map_err(|error| Trouble::unreadable("the store", error))?;
        Ok(())
    }

    /// Starts again what a run has left stopped.
    ///
    /// # Errors
    ///
    /// When one does not start.
    pub fn all_up(&mut self) -> Result<()> {
        self.ledger.start_again()?;
        self.redis.start_again()?;
        self.minio.start_again()?;
        Ok(())
    }

    /// Runs what is to be waited for.
    pub fn wait_for<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The URL of the source database, with its password.
    #[must_use]
    pub fn source_url(&self, database: &str) -> String {
        self.source
            .url_as("shop", &self.secrets.source_password, database)
    }

    /// Removes the objects of a run: the store's folder is its truth, and asking it to delete them one by one takes longer
    /// than a run.
    ///
    /// # Errors
    ///
    /// When they cannot be removed.
    pub fn forget_objects(&self, prefix: &str) -> Result<()> {
        let folder = self.minio.data_dir().join(BUCKET).join(prefix);
        remove(&folder)
    }
}

/// A file that the user of the ledger's server can read.
fn clock_file() -> Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix("fettler-clock-")
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile()
        .map_err(Trouble::io("make a clock"))
}

/// The environment of a process whose clock is ahead by what this file says.
///
/// # Errors
///
/// When the library is missing that does it.
pub(crate) fn fake_clock(file: &Path) -> Result<Vec<(String, String)>> {
    let folders = std::fs::read_dir(LIBRARIES).into_iter().flatten().flatten();
    let mut found = folders
        .map(|folder| folder.path().join(FAKETIME))
        .filter(|library| library.exists());
    let library = found.next().ok_or_else(|| Trouble::Missing {
        program: "libfaketime".to_owned(),
        looked_at: Path::new(LIBRARIES).join("*").join(FAKETIME),
    })?;
    let settings = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        // A clock that is set does not change the one that never jumps.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    Ok(settings
        .map(|(name, value)| (name.to_owned(), value))
        .into())
}

/// The object that makes a place a repository, with small sizes in it.
async fn small_repository() -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().map_err(Trouble::io("make a folder"))?;
    let options = OpenOptions {
        create: true,
        new_with_sizes_divided_by: SIZES_DIVIDED_BY,
        ..OpenOptions::default()
    };
    Repository::open(&folder.path().display().to_string(), options)
        .await
        .map_err(|error| Trouble::unreadable("a new repository", error))?;
    std::fs::read(folder.path().join(REPOSITORY)).map_err(Trouble::io("read a new repository"))
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Trouble::io(format!("remove {}", folder.display()))(error))
        }
        _ => Ok(()),
    }
}
