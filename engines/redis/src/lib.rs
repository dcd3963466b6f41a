//! Redis and Valkey: all databases of a server at one moment, key by key, and back.
//!
//! The parts, in the order of a backup's life: [`params`], [`locate`], [`fettler_engine_tls`] and [`connect`] reach a server ([`cluster`]
//! all primaries of one), [`identify`] asks who is
//! there and what is allowed, [`replica`] receives an RDB as a replica does (or [`scan`] reads key by key), [`rdb`]
//! understands it, [`collect`] turns keys into fingerprints and into [`records`] in the order of the backup, [`restore`]
//! puts them back ([`extract`] into a file), [`sandbox`] makes a server for a proof, and [`facts`] reads a copy for comparison.
//! [`changes`] archives what is written behind the RDB and brings a restored backup to a moment.
//!
//! **Why not the RDB itself?** A server writes its keys in the order of a hash table whose seed is new at each start, and one
//! value in many encodings. Stored as it is, nothing of yesterday's backup would be found again after a restart. Keys are
//! therefore stored in an order and a form of our own, which depend on nothing but the keys and their values.
//!
//! **What a proof shares with a backup.** Nothing that reads keys: a backup reads the RDB, a proof asks the restored copy
//! by commands, and the count of keys is the server's own.

mod ask;
mod audit_words;
mod backup;
mod changes;
mod cleanup;
mod cluster;
mod collect;
mod connect;
mod copied;
mod error;
mod extract;
mod facts;
mod found;
mod grants;
mod identify;
mod kept_words;
mod locate;
mod params;
mod part_file;
mod probe;
mod rdb;
mod records;
mod replica;
mod restore;
mod sandbox;
mod scan;
mod select;
mod server_data;
mod workbench;

use async_trait::async_trait;
use fettler_engine::{
    Answers, ArchiveStart, Artefact, AttemptName, BackupOptions, BackupReport, ChangeSink,
    ChangeSource, Cleanup, CopyFacts, DatabaseEngine, EngineContext, EngineError, ExtractFormat,
    ExtractReport, Extraction, GrantRequest, Grants, Identity, LatencyProbe, PreflightItem,
    Question, RestoreOptions, RestoreReport, Sandbox, SandboxRequest, StreamSink, StreamSource,
    Target, Workbench, chosen_format,
};
use fettler_model::{Engine, LogPosition, ObjectFacts, ServerLoad};
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

pub use extract::restore_to_file;

/// The engine for Redis 5 and later and for Valkey.
#[derive(Clone, Copy, Debug, Default)]
pub struct RedisEngine {
    /// Only for the test of rule 30.
    loses_a_key: bool,
}

impl RedisEngine {
    /// The engine.
    #[must_use]
    pub const fn new() -> Self {
        Self { loses_a_key: false }
    }

    /// A reader that is broken on purpose: it loses a key. A proof must find that (rule 30); for nothing else.
    #[doc(hidden)]
    #[must_use]
    pub const fn broken_for_tests_that_loses_a_key() -> Self {
        Self { loses_a_key: true }
    }
}

#[async_trait]
impl DatabaseEngine for RedisEngine {
    fn engine(&self) -> Engine {
        Engine::Redis
    }

    async fn identify(&self, target: &Target) -> Result<Identity, EngineError> {
        identify::identify(target).await
    }

    async fn load(&self, target: &Target) -> Result<ServerLoad, EngineError> {
        identify::load(target).await
    }

    async fn ask(
        &self,
        target: &Target,
        questions: &[Question],
        stop: &CancellationToken,
    ) -> Result<Answers, EngineError> {
        ask::ask(target, questions, stop).await
    }

    fn grants(&self, request: &GrantRequest<'_>) -> Result<Grants, EngineError> {
        grants::grants(request)
    }

    async fn preflight(
        &self,
        target: &Target,
        options: &BackupOptions,
    ) -> Result<Vec<PreflightItem>, EngineError> {
        identify::preflight(target, options).await
    }

    async fn backup(
        &self,
        context: &EngineContext,
        source: &Target,
        options: &BackupOptions,
        sink: &dyn StreamSink,
    ) -> Result<BackupReport, EngineError> {
        backup::backup(context, source, options, sink, self.loses_a_key).await
    }

    async fn restore(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        report: &BackupReport,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<RestoreReport, EngineError> {
        match target.url.path() {
            Some(path) => extract::restore_to_file(context, backup, report, &path, options).await,
            None => restore::restore(context, backup, report, target, options).await,
        }
    }

    async fn open_sandbox(
        &self,
        context: &EngineContext,
        request: &SandboxRequest,
    ) -> Result<Sandbox, EngineError> {
        sandbox::open(context, request).await
    }

    async fn remove_artefact(
        &self,
        artefact: &Artefact,
        server: Option<&Target>,
    ) -> Result<(), EngineError> {
        sandbox::remove(artefact, server).await
    }

    async fn facts(
        &self,
        context: &EngineContext,
        copy: &Target,
        expected: &BackupReport,
    ) -> Result<Vec<ObjectFacts>, EngineError> {
        facts::facts(context, copy, expected).await
    }

    fn chosen(
        &self,
        report: &BackupReport,
        only: &[String],
    ) -> Result<Vec<ObjectFacts>, EngineError> {
        copied::chosen(report, only)
    }

    async fn compare_copy(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        report: &BackupReport,
        target: &Target,
        only: &[String],
    ) -> Result<CopyFacts, EngineError> {
        copied::compare(context, backup, report, target, only).await
    }

    async fn workbench(
        &self,
        target: &Target,
        name: &AttemptName,
    ) -> Result<Box<dyn Workbench>, EngineError> {
        workbench::open(target, name).await
    }

    async fn latency_probe(
        &self,
        target: &Target,
    ) -> Result<Option<Box<dyn LatencyProbe>>, EngineError> {
        probe::probe(target).await
    }

    fn extract_formats(&self) -> &'static [ExtractFormat] {
        &part_file::FORMATS
    }

    async fn extract(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        report: &BackupReport,
        what: &Extraction,
        out: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> Result<ExtractReport, EngineError> {
        chosen_format(self.engine(), self.extract_formats(), Some(what.format))?;
        part_file::extract(context, backup, report, what, out).await
    }

    fn log_position(&self, report: &BackupReport) -> Option<LogPosition> {
        backup::log_position(report)
    }

    async fn archive(
        &self,
        context: &EngineContext,
        source: &Target,
        start: &ArchiveStart,
        sink: &dyn ChangeSink,
    ) -> Result<(), EngineError> {
        changes::archive::archive(context, source, start, sink).await
    }

    async fn restore_to_moment(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        report: &BackupReport,
        changes: &dyn ChangeSource,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<RestoreReport, EngineError> {
        changes::restore::restore_to_moment(context, backup, report, changes, target, options).await
    }

    fn cleanup(&self) -> Option<&dyn Cleanup> {
        Some(self)
    }

    async fn free_bytes(&self, target: &Target) -> Result<Option<u64>, EngineError> {
        identify::free_bytes(target).await
    }
}

/// Runs work that blocks on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down.
            Err(_) => Err(EngineError::Stopped),
        },
    }
}
