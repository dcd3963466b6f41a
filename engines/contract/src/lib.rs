//! What every database engine implements, and what it is given to do it.
//!
//! An engine turns a database into named streams of bytes and back, and says what is inside. It
//! knows nothing of jobs, of the ledger or of the repository: bytes go to a [`StreamSink`], come from
//! a [`StreamSource`], and everything else that it needs of the world is in [`EngineContext`].

mod context;
mod error;
mod progress;
mod rate;
mod row_hash;
mod streams;
#[cfg(feature = "testing")]
pub mod testing;

use std::{fmt, path::PathBuf};

use async_trait::async_trait;
use fettler_model::{
    DatabaseName, DatabaseUrl, Engine, ObjectFacts, Secret, SecretReference, ServerLoad, Warning,
};
use serde::{Deserialize, Serialize};

pub use context::{
    Artefact, Artefacts, AttemptName, Checkpoints, EngineContext, Fence, Unfenced, Unrecorded,
};
pub use error::EngineError;
pub use progress::ProgressMeter;
pub use rate::RateLimit;
pub use row_hash::{LongRow, ROW_HASH, RowHasher};
pub use streams::{
    Cut, StreamEnd, StreamFacts, StreamReader, StreamSink, StreamSource, StreamWriter,
};

/// A database that can be reached: its place and, resolved just now, its password.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it is.
    pub url: DatabaseUrl,
    /// The password, where one is needed.
    pub password: Option<Secret>,
}

/// Who a database is, whatever it is called and however it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The engine.
    pub engine: Engine,
    /// The server's version, as it writes it.
    pub version: String,
    /// The database's own identity (system identifier and oid, device and inode): two records of one
    /// database have the same one and exclude each other (rule 17).
    pub key: String,
    /// What must be as it was for a parent's content to be taken over unread: a new timeline or server
    /// has another one (rule 24).
    pub lineage: String,
    /// A name for the database, for people who gave none.
    pub suggested_name: DatabaseName,
    /// About how many bytes the database holds.
    pub estimated_bytes: u64,
}

/// One line of what a server allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightItem {
    /// What was looked at, such as `role`, `pg_dump`, `large objects`.
    pub subject: String,
    /// Whether it stops the work, or something will be missing, or all is well.
    pub level: PreflightLevel,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// How grave a [`PreflightItem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreflightLevel {
    /// All is well.
    Fine,
    /// It works, and something will be missing or slower.
    Missing,
    /// It cannot work.
    Stops,
}

/// What a backup reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackupOptions {
    /// Objects left out, by name or by pattern with `*` (such as `public.log_*`): their definitions are
    /// kept, their rows are not.
    pub exclude: Vec<String>,
}

/// What an engine says of a backup that it has read. It goes into the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackupReport {
    /// Who was read.
    pub identity: Identity,
    /// The moment of which the backup is, in the engine's own terms (an LSN, a data version).
    pub position: serde_json::Value,
    /// Everything that is inside, with fingerprints taken while it passed.
    pub objects: Vec<ObjectFacts>,
    /// Which hash of rows the fingerprints are sums of: [`ROW_HASH`], or another version's.
    #[serde(default)]
    pub row_hash: String,
    /// What the engine needs for a restore; nobody else reads it.
    pub engine_data: serde_json::Value,
    /// What a person should look at.
    pub warnings: Vec<Warning>,
}

/// Where and how a backup is put back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreOptions {
    /// Only these objects, by name, schema or pattern; empty restores everything.
    pub only: Vec<String>,
    /// Whether something that is there already may be replaced.
    pub overwrite: bool,
    /// Whether an earlier attempt's half-done work is removed first instead of being gone on with.
    pub start_again: bool,
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Bytes of content written.
    pub bytes: u64,
    /// Rows written, as far as the engine counts them.
    pub rows: u64,
    /// Statements of the restore that failed, in words. A proof counts each against the backup (rule 27).
    pub failed_statements: Vec<String>,
    /// What a person should look at.
    pub warnings: Vec<Warning>,
}

/// Where a proof restores to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SandboxSpec {
    /// The best that the engine can make by itself without touching the source: a file, or a server
    /// process on a private socket.
    #[default]
    Automatic,
    /// A scratch database on this server.
    Server {
        /// The server.
        url: DatabaseUrl,
        /// Its password.
        password: Option<SecretReference>,
    },
    /// A scratch database on the source's own server: the dump's code runs there (rule 31), so that
    /// it has to be asked for.
    SourceServer,
}

/// A place that a proof restores into, and how to get rid of it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Where to restore to.
    pub target: Target,
    /// What was recorded before it was made; given to [`DatabaseEngine::remove_artefact`] at the end.
    pub artefacts: Vec<Artefact>,
    /// Whether it is the one that an earlier attempt left, with what that had put into it.
    pub continued: bool,
}

/// What is known when a sandbox is made.
#[derive(Clone, Debug)]
pub struct SandboxRequest {
    /// Where to make it.
    pub spec: SandboxSpec,
    /// The server that `spec` names with its password resolved, or the source for
    /// [`SandboxSpec::SourceServer`].
    pub server: Option<Target>,
    /// Who was backed up: the sandbox's version must be able to take it.
    pub identity: Identity,
    /// About how many bytes will be restored; space is looked for before anything is made.
    pub estimated_bytes: u64,
    /// The sandbox that an earlier attempt of the job left. It is gone on with where that can be done; it is of no use on
    /// another machine, or after the machine has started anew.
    pub left: Option<Artefact>,
}

/// A database engine.
///
/// All calls may be repeated after a crash at any point: a repeated backup reads under a new snapshot,
/// a repeated restore goes on from its checkpoint. They return [`EngineError::Stopped`] soon after
/// [`EngineContext::stop`] is cancelled.
#[async_trait]
pub trait DatabaseEngine: fmt::Debug + Send + Sync {
    /// Which engine this is.
    fn engine(&self) -> Engine;

    /// Whether this version can make fingerprints of a copy by this hash of rows, which a backup names in
    /// [`BackupReport::row_hash`].
    fn knows_row_hash(&self, name: &str) -> bool {
        name == ROW_HASH
    }

    /// Asks a database who it is.
    async fn identify(&self, target: &Target) -> Result<Identity, EngineError>;

    /// Says what role, version and tools allow, before any byte is read.
    async fn preflight(
        &self,
        target: &Target,
        options: &BackupOptions,
    ) -> Result<Vec<PreflightItem>, EngineError>;

    /// Reads the database at one consistent point into streams.
    async fn backup(
        &self,
        context: &EngineContext,
        source: &Target,
        options: &BackupOptions,
        sink: &dyn StreamSink,
    ) -> Result<BackupReport, EngineError>;

    /// Puts a backup back.
    async fn restore(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        report: &BackupReport,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<RestoreReport, EngineError>;

    /// Makes a place for a proof. Everything outside this process is recorded as an artefact before it
    /// is made and carries the attempt's name (rule 6).
    async fn open_sandbox(
        &self,
        context: &EngineContext,
        request: &SandboxRequest,
    ) -> Result<Sandbox, EngineError>;

    /// Ends what runs in a sandbox and keeps what lies in it, for the job's next attempt.
    async fn leave_sandbox(&self, sandbox: &Sandbox) -> Result<(), EngineError> {
        let _nothing_runs = sandbox;
        Ok(())
    }

    /// Removes what an attempt made, also when another process made it and died. Removing what is
    /// not there is no error.
    async fn remove_artefact(
        &self,
        artefact: &Artefact,
        server: Option<&Target>,
    ) -> Result<(), EngineError>;

    /// Reads a restored copy and says what is inside, in the very formats in which `expected` was read.
    /// Objects that the copy has beside the expected ones are told too.
    async fn facts(
        &self,
        context: &EngineContext,
        copy: &Target,
        expected: &BackupReport,
    ) -> Result<Vec<ObjectFacts>, EngineError>;

    /// How busy the server is, as far as it tells: cheap, and asked before long work.
    async fn load(&self, _target: &Target) -> Result<ServerLoad, EngineError> {
        Ok(ServerLoad::default())
    }

    /// About how many bytes are free where `target` would be restored to, if that can be told.
    async fn free_bytes(&self, target: &Target) -> Result<Option<u64>, EngineError>;
}

/// The folder of a target that is a file.
#[must_use]
pub fn folder_of(path: &std::path::Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
