//! What every database engine implements, and what it is given to do it.
//!
//! An engine turns a database into named streams of bytes and back, and says what is inside. It
//! knows nothing of jobs, of the ledger or of the repository: bytes go to a [`StreamSink`], come from
//! a [`StreamSource`], and everything else that it needs of the world is in [`EngineContext`].

mod changes;
mod cleanup;
mod context;
mod copies;
mod ending;
mod error;
mod extract;
mod grants;
mod picked;
mod progress;
mod question;
mod rate;
mod reached;
mod row_hash;
mod streams;
#[cfg(feature = "testing")]
pub mod testing;
mod workbench;

use std::{fmt, path::PathBuf};

use async_trait::async_trait;
use fettler_model::{
    DatabaseName, DatabaseUrl, Engine, JobId, LogPosition, ObjectFacts, Secret, SecretReference,
    ServerLoad, Warning,
};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

pub use changes::{ArchiveStart, ChangeBatch, ChangeSink, ChangeSource};
pub use cleanup::{
    Cleanup, CleanupArchive, CleanupRequest, CleanupTerms, Fate, Pace, RECORD_FORMAT, Record,
    RecordReader, RecordRemover, RecordRestorer, RecordWriter, Return, WholeFate, WholeRemover,
    cutoff, empty_plan, no_such_action, plan_data, prove_records, record_prefix, record_segments,
    refuse, remove_records, remove_wholes, restore_records,
};
pub use context::{
    Artefact, Artefacts, AttemptName, Checkpoints, EngineContext, Fence, Unfenced, Unrecorded,
};
pub use copies::CopyFacts;
pub use ending::{Ending, EndingFile};
pub use error::EngineError;
pub use extract::{
    ExtractFormat, ExtractReport, Extraction, PartWriter, chosen_format, near_names, no_such_part,
    put_csv_value, several_parts,
};
pub use grants::{Grant, GrantRequest, Grants, PASSWORD_PLACEHOLDER, Purpose};
pub use picked::Picked;
pub use progress::ProgressMeter;
pub use question::{Answer, Answers, Question, Refusal, Row, Versions, line_of_items};
pub use rate::{LatencyProbe, RateLimit, Throttle, Throttled};
pub use reached::{is_public, is_remote};
pub use row_hash::{LongRow, ROW_HASH, RowHasher};
pub use streams::{
    Cut, StreamEnd, StreamFacts, StreamReader, StreamSink, StreamSource, StreamWriter,
};
pub use workbench::{Line, StatementError, Workbench};

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
    /// Where the server itself is to put the backup, in the engine's own terms: its own snapshots or backups, in the stead of
    /// streams. What is read then are fingerprints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_server: Option<String>,
}

/// A backup that a server made by itself because Fettler asked it to, and holds where it was told to put it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The job that asked for it.
    pub job: JobId,
    /// Where the server has it, as the server calls the place.
    pub place: String,
    /// What the server calls it.
    pub name: String,
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
    /// Whether what changes rows by itself (merges, expiry) is left standing, until [`DatabaseEngine::compare_copy`] lets it go.
    pub still: bool,
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

    /// Says in the engine's own language what a role needs. Asks nobody: the URL alone decides.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] for a role whose name the engine cannot take.
    fn grants(&self, request: &GrantRequest<'_>) -> Result<Grants, EngineError>;

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

    /// The objects of a backup that a restore of `only` brings back as a whole; all where nothing is named.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] where the names cannot be read.
    fn chosen(
        &self,
        report: &BackupReport,
        only: &[String],
    ) -> Result<Vec<ObjectFacts>, EngineError>;

    /// Whether a whole database is restored into a place that holds nothing else: a database, a file.
    fn has_place_of_its_own(&self) -> bool {
        false
    }

    /// Reads a copy that was restored with [`RestoreOptions::still`] into a database that people use, for a comparison with what
    /// was read of the source; then lets go what stood still.
    ///
    /// # Errors
    ///
    /// Those of [`DatabaseEngine::facts`] and of the backup's streams.
    async fn compare_copy(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        report: &BackupReport,
        target: &Target,
        only: &[String],
    ) -> Result<CopyFacts, EngineError> {
        let _streams_are_not_needed = backup;
        let expected = self.chosen(report, only)?;
        let found = self.facts(context, target, report).await?;
        let is_all = only.is_empty() && self.has_place_of_its_own();
        Ok(CopyFacts::of(expected, found, is_all))
    }

    /// The open formats in which a part of a backup can be written, the usual one first.
    fn extract_formats(&self) -> &'static [ExtractFormat] {
        &[]
    }

    /// Writes one part of a backup in an open format. Reads the streams of that part only, and holds a buffer and a row in
    /// memory. No server is asked.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] for a part that is not there, means several, or a format that the engine does not write;
    /// those of the backup's streams and of `out`.
    async fn extract(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        report: &BackupReport,
        what: &Extraction,
        out: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> Result<ExtractReport, EngineError> {
        let _nothing_can_be_written = (context, backup, report, out);
        chosen_format(self.engine(), self.extract_formats(), Some(what.format))
            .map(|_| ExtractReport::default())
    }

    /// How busy the server is, as far as it tells: cheap, and asked before long work.
    async fn load(&self, _target: &Target) -> Result<ServerLoad, EngineError> {
        Ok(ServerLoad::default())
    }

    /// A connection that tells how long the server takes for an answer; none where there is no server.
    ///
    /// # Errors
    ///
    /// Those of connecting.
    async fn latency_probe(
        &self,
        target: &Target,
    ) -> Result<Option<Box<dyn LatencyProbe>>, EngineError> {
        let _no_server_tells = target;
        Ok(None)
    }

    /// Answers questions about the database, which stand in its own language, over one connection, read-only, each within its
    /// time. A question that cannot be answered has a [`Refusal`] for an answer; an error is a database that cannot be asked.
    async fn ask(
        &self,
        target: &Target,
        questions: &[Question],
        stop: &CancellationToken,
    ) -> Result<Answers, EngineError> {
        let _unasked = (target, questions, stop);
        Err(EngineError::Missing {
            code: "questions",
            what: format!("{} is not asked about its health yet", self.engine()),
            remedy: "`fettler ping` says whether it answers".to_owned(),
        })
    }

    /// What removes old and abandoned things by plan, where the engine has it.
    fn cleanup(&self) -> Option<&dyn Cleanup> {
        None
    }

    /// A session in which statements are tried, timed and run, under the attempt's name: for tuning.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] where the engine is not tuned yet; those of connecting.
    async fn workbench(
        &self,
        target: &Target,
        name: &AttemptName,
    ) -> Result<Box<dyn Workbench>, EngineError> {
        let _nobody_works = (target, name);
        Err(EngineError::Missing {
            code: "tuning",
            what: format!("{} is not tuned yet", self.engine()),
            remedy: "PostgreSQL is; `fettler health` looks at the others".to_owned(),
        })
    }

    /// The place of a backup in the server's order of changes, where changes can be archived and played on it.
    fn log_position(&self, _report: &BackupReport) -> Option<LogPosition> {
        None
    }

    /// The offset from which on a backup needs changes, where that is not its own place: what ends behind it, as a transaction
    /// does, may have begun before.
    fn changes_since(&self, report: &BackupReport) -> Option<u64> {
        self.log_position(report).map(|position| position.offset)
    }

    /// Reads the server's changes as they happen, with moments, until the work is stopped. What the sink has made durable
    /// is acknowledged to the server, and nothing else. A lost link is taken up again where the server still has
    /// what comes next; otherwise the next batch does not [continue](ChangeBatch::continues) the last one.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] where the engine or the server cannot; [`EngineError::Stopped`] at the end.
    async fn archive(
        &self,
        _context: &EngineContext,
        _source: &Target,
        _start: &ArchiveStart,
        _sink: &dyn ChangeSink,
    ) -> Result<(), EngineError> {
        Err(no_changes(self.engine()))
    }

    /// Puts a backup back and plays changes on it, so that the target is as the source was at the end of `changes`.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] where the engine or the target cannot; those of [`DatabaseEngine::restore`].
    async fn restore_to_moment(
        &self,
        _context: &EngineContext,
        _backup: &dyn StreamSource,
        _report: &BackupReport,
        _changes: &dyn ChangeSource,
        _target: &Target,
        _options: &RestoreOptions,
    ) -> Result<RestoreReport, EngineError> {
        Err(no_changes(self.engine()))
    }

    /// Whether servers of this engine can make backups by themselves ([`BackupOptions::by_server`]).
    fn has_own_backups(&self) -> bool {
        false
    }

    /// What of a backup nothing can be compared with, and why. Such a backup can match what was read, and is not proven.
    fn doubts(&self, _report: &BackupReport) -> Vec<String> {
        Vec::new()
    }

    /// The backups that a server holds for Fettler, of any job; those that run too. `known` are backups that say where the server has
    /// put some: a server may not remember it.
    async fn held(
        &self,
        _server: &Target,
        _known: &[BackupReport],
    ) -> Result<Vec<Held>, EngineError> {
        Ok(Vec::new())
    }

    /// Whether the server still holds what a backup says that it does. Nothing where the content is in the backup's streams.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unusable`] where it does not.
    async fn require_held(
        &self,
        _report: &BackupReport,
        _server: &Target,
    ) -> Result<(), EngineError> {
        Ok(())
    }

    /// Lets a server remove what it holds, or end what it is making. What is not there is no error.
    async fn let_go(&self, server: &Target, held: &Held) -> Result<(), EngineError> {
        let _nothing_is_held = (server, held);
        Ok(())
    }

    /// About how many bytes are free where `target` would be restored to, if that can be told.
    async fn free_bytes(&self, target: &Target) -> Result<Option<u64>, EngineError>;
}

fn no_changes(engine: Engine) -> EngineError {
    EngineError::Missing {
        code: "archive",
        what: format!("the changes of {engine} databases cannot be archived"),
        remedy: "back up more often; changes between backups are archived for Redis and MongoDB"
            .to_owned(),
    }
}

/// The folder of a target that is a file.
#[must_use]
pub fn folder_of(path: &std::path::Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
