//! The connections to the ledger's database: one that writes and several that read on SQLite, a pool on
//! PostgreSQL; transactions; and what the database's errors mean.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::{Duration, Instant},
};

use fettler_model::{JobId, Timestamp};
use sqlx::{
    Any, AnyConnection, AnyPool, AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _,
    any::{AnyConnectOptions, AnyPoolOptions, AnyRow},
    pool::PoolConnection,
};
use tokio::sync::broadcast;
use url::Url;

use crate::{
    LedgerError, LedgerOptions, Readied, Result,
    dialect::Dialect,
    migrate,
    steps::{self, StepFate, StepKind, Steps},
};

/// How long SQLite waits for another process that writes.
const BUSY_WAIT: Duration = Duration::from_secs(30);
/// How long a caller waits for a free connection.
const ACQUIRE_WAIT: Duration = Duration::from_secs(60);
/// How long a PostgreSQL statement may run, and wait for a lock; how long a transaction may stand open
/// with nothing to do before the server ends it.
const STATEMENT_SECONDS: u32 = 60;
const LOCK_WAIT_SECONDS: u32 = 20;
const IDLE_IN_TRANSACTION_SECONDS: u32 = 60;
/// How often an opening is tried again while another process holds the SQLite file.
const OPEN_TRIES: u32 = 20;
/// A connection that was used within this time is used again without asking whether it still is one.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// One connection of so many may be kept at hand.
const KEPT_OF: u32 = 2;
/// A connection that is kept at hand goes back to the pool after this time, which closes what has grown old.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// How many commits a slow listener to [`Store::ready`] may be behind before it has to read what it missed.
const READY_COMMITS: usize = 1024;

/// The ledger's database.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) dialect: Dialect,
    writers: AnyPool,
    readers: AnyPool,
    /// Connections for statements that stand alone: the pool asks the server twice for each use of one of its own.
    at_hand: Mutex<Vec<AtHand>>,
    most_at_hand: usize,
    /// When the database was last found to be away (rule 5).
    outage: Mutex<Option<Instant>>,
    /// The jobs that each commit has made claimable: what a queue has to hear of.
    pub(crate) ready: broadcast::Sender<Arc<[Readied]>>,
    steps: Option<Steps>,
}

/// A connection that is kept at hand.
#[derive(Debug)]
struct AtHand {
    connection: PoolConnection<Any>,
    taken: Instant,
    used: Instant,
}

impl Store {
    pub(crate) async fn open(url: &str, options: &LedgerOptions) -> Result<Self> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        if let Some(path) = url.strip_prefix("sqlite:") {
            Self::open_sqlite(path.strip_prefix("//").unwrap_or(path), options).await
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            Self::open_postgres(url, options).await
        } else {
            Err(LedgerError::BadUrl {
                what: "the ledger's URL names neither a SQLite file nor a PostgreSQL database"
                    .to_owned(),
                remedy: "write it as `sqlite:/path/ledger.db` or `postgres://user@host/database`"
                    .to_owned(),
            })
        }
    }

    async fn open_sqlite(path: &str, options: &LedgerOptions) -> Result<Self> {
        let path = prepare_file(path)?;
        let url = Url::from_file_path(&path).map_err(|()| bad_path(&path, "it is not absolute"))?;
        let connect = AnyConnectOptions::from_str(&format!("sqlite://{}?mode=rw", url.path()))
            .map_err(|error| bad_path(&path, &error.to_string()))?
            .disable_statement_logging();
        let pool = |connections: u32| {
            AnyPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_WAIT)
                // A connection to a file neither ages nor breaks.
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
                .after_connect(|connection, _| {
                    Box::pin(async move {
                        let pragmas = format!(
                            "PRAGMA busy_timeout = {}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                             PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -16384",
                            BUSY_WAIT.as_millis()
                        );
                        sqlx::raw_sql(AssertSqlSafe(pragmas)).execute(connection).await?;
                        Ok(())
                    })
                })
                .connect_lazy_with(connect.clone())
        };
        let store = Self {
            dialect: Dialect::Sqlite,
            writers: pool(1),
            readers: pool(options.connections.max(2) - 1),
            at_hand: Mutex::default(),
            most_at_hand: 0,
            outage: Mutex::new(None),
            ready: broadcast::channel(READY_COMMITS).0,
            steps: options.steps.clone(),
        };
        store.migrate().await?;
        Ok(store)
    }

    async fn open_postgres(url: &str, options: &LedgerOptions) -> Result<Self> {
        // No message repeats the URL: it may hold a password.
        let bad = |what: String| LedgerError::BadUrl {
            what: format!("the ledger's URL cannot be read: {what}"),
            remedy: "write it as `postgres://user@host:port/database`".to_owned(),
        };
        let mut url = Url::parse(url).map_err(|error| bad(error.to_string()))?;
        if let Some(password) = &options.password {
            url.set_password(Some(password.expose()))
                .map_err(|()| bad("it cannot hold a password".to_owned()))?;
        }
        let connect = AnyConnectOptions::from_str(url.as_str())
            .map_err(|error| bad(error.to_string()))?
            .disable_statement_logging();
        let pool = AnyPoolOptions::new()
            .max_connections(options.connections.max(2))
            .acquire_timeout(ACQUIRE_WAIT.min(Duration::from_secs(15)))
            .test_before_acquire(false)
            .before_acquire(|connection, facts| {
                Box::pin(async move {
                    if facts.idle_for > TRUSTED_FOR {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .after_connect(|connection, _| {
                Box::pin(async move {
                    // The table of jobs is empty at one moment and full at the next, and a plan is made once: all statements are
                    // written for an index, and a plan that reads a whole table because it was empty would be kept.
                    const PLANS: &str = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";
                    let settings = format!(
                        "SET application_name = 'fettler ledger'; SET statement_timeout = '{STATEMENT_SECONDS}s'; \
                         SET lock_timeout = '{LOCK_WAIT_SECONDS}s'; \
                         SET idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_SECONDS}s'; \
                         SET synchronous_commit = 'on'; SET client_min_messages = 'warning'; SET jit = off; {PLANS}"
                    );
                    sqlx::raw_sql(AssertSqlSafe(settings)).execute(connection).await?;
                    Ok(())
                })
            })
            .connect_lazy_with(connect);
        let store = Self {
            dialect: Dialect::Postgres,
            writers: pool.clone(),
            readers: pool,
            at_hand: Mutex::default(),
            most_at_hand: (options.connections / KEPT_OF) as usize,
            outage: Mutex::new(None),
            ready: broadcast::channel(READY_COMMITS).0,
            steps: options.steps.clone(),
        };
        store.migrate().await?;
        Ok(store)
    }

    async fn migrate(&self) -> Result<()> {
        let mut tries = 0;
        loop {
            let outcome = async {
                let mut transaction = self.begin("opening it").await?;
                migrate::migrate(&mut transaction, self.dialect).await?;
                transaction.commit().await
            }
            .await;
            match outcome {
                // The switch of a new file to WAL does not wait for other processes by itself.
                Err(LedgerError::Busy { .. }) if tries < OPEN_TRIES => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => return other,
            }
        }
    }

    /// Begins a transaction that writes.
    pub(crate) async fn begin(&self, doing: &'static str) -> Result<Transaction> {
        if Steps::fate(self.steps.as_ref(), StepKind::Begin, doing) != StepFate::GoesOn {
            return Err(self.noticed(steps::failed(doing)));
        }
        let transaction = self
            .writers
            .begin_with(self.dialect.begin())
            .await
            .map_err(|error| self.noticed(database_error(doing, error)))?;
        Ok(Transaction {
            inner: transaction,
            dialect: self.dialect,
            doing,
            ready: Vec::new(),
            tell: self.ready.clone(),
            steps: self.steps.clone(),
        })
    }

    /// A connection to read with: each statement sees one moment.
    pub(crate) async fn reader(&self, doing: &'static str) -> Result<PoolConnection<Any>> {
        self.readers
            .acquire()
            .await
            .map_err(|error| self.noticed(database_error(doing, error)))
    }

    /// The ledger's clock.
    pub(crate) async fn now(&self) -> Result<Timestamp> {
        match self.dialect.clock() {
            None => Ok(Timestamp::now()),
            Some(_) => clock(self.dialect, &mut *self.reader("asking its clock").await?).await,
        }
    }

    /// Remembers an outage when this error is one, so that rescue gives workers time to renew (rule 5).
    pub(crate) fn noticed(&self, error: LedgerError) -> LedgerError {
        if matches!(error, LedgerError::Unavailable { .. }) {
            *self.outage.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        error
    }

    /// How long ago the database was last found to be away.
    pub(crate) fn since_outage(&self) -> Option<Duration> {
        self.outage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .map(|at| at.elapsed())
    }

    pub(crate) async fn close(&self) {
        self.kept().clear();
        self.readers.close().await;
        self.writers.close().await;
    }
}

/// A transaction that writes. Dropped without a commit, it leaves nothing.
pub(crate) struct Transaction {
    inner: sqlx::Transaction<'static, Any>,
    pub(crate) dialect: Dialect,
    doing: &'static str,
    /// The jobs that become claimable with its commit.
    pub(crate) ready: Vec<JobId>,
    tell: broadcast::Sender<Arc<[Readied]>>,
    steps: Option<Steps>,
}

impl Transaction {
    pub(crate) fn connection(&mut self) -> &mut AnyConnection {
        &mut self.inner
    }

    /// The ledger's clock.
    pub(crate) async fn now(&mut self) -> Result<Timestamp> {
        clock(self.dialect, &mut self.inner).await
    }

    pub(crate) async fn commit(self) -> Result<()> {
        let doing = self.doing;
        let fate = self.fate(StepKind::Commit);
        if fate == StepFate::Fails {
            return Err(steps::failed(doing));
        }
        self.inner
            .commit()
            .await
            .map_err(|error| database_error(doing, error))?;
        if fate == StepFate::AnswerLost {
            return Err(steps::failed(doing));
        }
        if !self.ready.is_empty() {
            // Nobody listens where the ledger is its own queue.
            let readied: Arc<[Readied]> = self.ready.into_iter().map(Readied::Named).collect();
            let _nobody_listens = self.tell.send(readied);
        }
        Ok(())
    }

    fn fate(&self, kind: StepKind) -> StepFate {
        Steps::fate(self.steps.as_ref(), kind, self.doing)
    }

    /// Without the answer a statement's transaction cannot go on: both fates end in a rollback.
    fn statement_goes_on(&self) -> Result<()> {
        match self.fate(StepKind::Statement) {
            StepFate::GoesOn => Ok(()),
            StepFate::Fails | StepFate::AnswerLost => Err(steps::failed(self.doing)),
        }
    }

    /// Runs a statement and says how many rows it changed.
    pub(crate) async fn execute(
        &mut self,
        sql: impl Into<String>,
        values: &[V<'_>],
    ) -> Result<u64> {
        self.statement_goes_on()?;
        bound(sql.into(), values)
            .execute(&mut *self.inner)
            .await
            .map(|done| done.rows_affected())
            .map_err(|error| database_error(self.doing, error))
    }

    /// Runs a statement that returns rows.
    pub(crate) async fn rows(
        &mut self,
        sql: impl Into<String>,
        values: &[V<'_>],
    ) -> Result<Vec<AnyRow>> {
        self.statement_goes_on()?;
        bound(sql.into(), values)
            .fetch_all(&mut *self.inner)
            .await
            .map_err(|error| database_error(self.doing, error))
    }

    /// Runs a statement that returns at most one row.
    pub(crate) async fn row(
        &mut self,
        sql: impl Into<String>,
        values: &[V<'_>],
    ) -> Result<Option<AnyRow>> {
        Ok(self.rows(sql, values).await?.pop())
    }

    pub(crate) const fn doing(&self) -> &'static str {
        self.doing
    }
}

impl Store {
    /// Reads rows in one statement.
    pub(crate) async fn read(
        &self,
        doing: &'static str,
        sql: impl Into<String>,
        values: &[V<'_>],
    ) -> Result<Vec<AnyRow>> {
        let sql = sql.into();
        if Steps::fate(self.steps.as_ref(), StepKind::Read, doing) != StepFate::GoesOn {
            return Err(self.noticed(steps::failed(doing)));
        }
        let rows = async {
            match self.dialect {
                Dialect::Postgres => self.alone(sql, values).await,
                Dialect::Sqlite => {
                    let mut connection = self.readers.acquire().await?;
                    bound(sql, values).fetch_all(&mut *connection).await
                }
            }
        };
        rows.await
            .map_err(|error| self.noticed(database_error(doing, error)))
    }

    /// Changes rows in one statement, which is a transaction of its own.
    pub(crate) async fn change(
        &self,
        doing: &'static str,
        sql: String,
        values: &[V<'_>],
    ) -> Result<Vec<AnyRow>> {
        let fate = Steps::fate(self.steps.as_ref(), StepKind::Commit, doing);
        if fate == StepFate::Fails {
            return Err(self.noticed(steps::failed(doing)));
        }
        let changed = self
            .alone(sql, values)
            .await
            .map_err(|error| self.noticed(database_error(doing, error)))?;
        if fate == StepFate::AnswerLost {
            return Err(self.noticed(steps::failed(doing)));
        }
        Ok(changed)
    }

    /// Runs a statement that is a transaction of its own.
    async fn alone(&self, sql: String, values: &[V<'_>]) -> Result<Vec<AnyRow>, sqlx::Error> {
        let mut at_hand = self.at_hand().await?;
        let rows = bound(sql, values)
            .fetch_all(&mut *at_hand.connection)
            .await?;
        self.keep_at_hand(at_hand);
        Ok(rows)
    }

    /// A connection for one statement.
    async fn at_hand(&self) -> Result<AtHand, sqlx::Error> {
        let kept = self.kept().pop();
        if let Some(mut kept) = kept
            && kept.taken.elapsed() < KEPT_FOR
            && (kept.used.elapsed() < TRUSTED_FOR || kept.connection.ping().await.is_ok())
        {
            return Ok(kept);
        }
        let taken = Instant::now();
        Ok(AtHand {
            connection: self.writers.acquire().await?,
            taken,
            used: taken,
        })
    }

    /// Keeps a connection on which all went well, where there is not another one already.
    fn keep_at_hand(&self, mut connection: AtHand) {
        connection.used = Instant::now();
        let mut kept = self.kept();
        if kept.len() < self.most_at_hand && !self.writers.is_closed() {
            kept.push(connection);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<AtHand>> {
        self.at_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whoever listens of jobs that became claimable.
    pub(crate) fn tell_ready(&self, jobs: Vec<Readied>) {
        // Nobody listens where the ledger is its own queue.
        let _nobody_listens = self.ready.send(jobs.into());
    }

    /// Reads at most one row.
    pub(crate) async fn read_one(
        &self,
        doing: &'static str,
        sql: impl Into<String>,
        values: &[V<'_>],
    ) -> Result<Option<AnyRow>> {
        Ok(self.read(doing, sql, values).await?.pop())
    }
}

/// A value for a statement's parameter.
#[derive(Clone, Debug)]
pub(crate) enum V<'a> {
    /// Text.
    T(&'a str),
    /// Text that was made for the statement.
    S(String),
    /// Text or nothing.
    OT(Option<String>),
    /// A number.
    N(i64),
    /// A number or nothing.
    ON(Option<i64>),
    /// Bytes.
    B(&'a [u8]),
}

fn bound<'q>(
    sql: String,
    values: &[V<'_>],
) -> sqlx::query::Query<'q, Any, sqlx::any::AnyArguments> {
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for value in values {
        query = match value {
            V::T(text) => query.bind((*text).to_owned()),
            V::S(text) => query.bind(text.clone()),
            V::OT(text) => query.bind(text.clone()),
            V::N(number) => query.bind(*number),
            V::ON(number) => query.bind(*number),
            V::B(bytes) => query.bind(bytes.to_vec()),
        };
    }
    query
}

async fn clock(dialect: Dialect, connection: &mut AnyConnection) -> Result<Timestamp> {
    const DOING: &str = "asking its clock";
    match dialect.clock() {
        None => Ok(Timestamp::now()),
        Some(clock) => sqlx::query(AssertSqlSafe(format!("SELECT {clock}")))
            .fetch_one(connection)
            .await
            .and_then(|row| row.try_get(0))
            .map(Timestamp::from_micros)
            .map_err(|error| database_error(DOING, error)),
    }
}

/// Makes the file and its folder, for the owner's eyes only, and gives its absolute path.
fn prepare_file(path: &str) -> Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
    let path =
        std::path::absolute(path).map_err(|error| bad_path(Path::new(path), &error.to_string()))?;
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| bad_path(&path, &error.to_string()))?;
    }
    // SQLite gives its other files the permissions of this one.
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| bad_path(&path, &error.to_string()))?;
    Ok(path)
}

fn bad_path(path: &Path, why: &str) -> LedgerError {
    LedgerError::BadUrl {
        what: format!(
            "the ledger's file {} cannot be opened: {why}",
            path.display()
        ),
        remedy: "name a file in a folder that this user may write to".to_owned(),
    }
}

/// What an error of the database means.
#[allow(clippy::needless_pass_by_value, reason = "it is given to `map_err`")]
pub(crate) fn database_error(doing: &'static str, error: sqlx::Error) -> LedgerError {
    let what = error.to_string();
    match &error {
        sqlx::Error::Database(inner) => {
            let code = inner.code().unwrap_or_default();
            let busy = match &*code {
                // SQLite: busy, locked, and their extended codes. PostgreSQL: serialization failure,
                // deadlock, lock not available.
                "5" | "6" | "261" | "262" | "517" | "773" | "40001" | "40P01" | "55P03" => true,
                _ => false,
            };
            // PostgreSQL: connection exceptions, no resources (connections, disk, memory), shutdown, crash,
            // starting up. SQLite: an I/O error (and its extended codes), a full disk.
            let away = match code.parse::<i64>() {
                Ok(number) if code.len() < 5 => matches!(number & 0xff, 10 | 13),
                _ => {
                    code.starts_with("08")
                        || code.starts_with("53")
                        || matches!(&*code, "57P01" | "57P02" | "57P03" | "57P05" | "25P03")
                }
            };
            if busy {
                LedgerError::Busy { doing, what }
            } else if away {
                LedgerError::Unavailable { doing, what }
            } else {
                LedgerError::Database { doing, what }
            }
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::PoolTimedOut => LedgerError::Unavailable { doing, what },
        sqlx::Error::PoolClosed => LedgerError::Closed,
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. } => LedgerError::Damaged { doing, what },
        _ => LedgerError::Database { doing, what },
    }
}
