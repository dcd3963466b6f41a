//! MongoDB: the databases of a server or a replica set at one moment, document by document, and back.
//!
//! The parts, in the order of a backup's life: [`params`], [`fettler_engine_tls`], [`scram`], [`wire`] and [`session`] reach a server,
//! [`identify`] asks who is there and what is allowed, [`catalog`] lists what there is, [`read`] reads collections as the bytes
//! that the server sends, [`follow`] makes one moment of it with [`oplog`] and [`apply`], [`restore`] and [`insert`] put it
//! back, [`shards`] does the same for a cluster behind a router, [`sandbox`] makes a place for a proof, and [`facts`] reads a copy for comparison. [`changes`] archives the oplog behind
//! a backup, and plays it on what was put back.
//!
//! **Documents are never taken apart.** A document is the bytes that the server keeps; its fingerprint is of these bytes, so
//! that the order of its fields counts, and the type of each number. Only `_id` is looked at.
//!
//! **What a proof shares with a backup.** The way of asking. A backup reads by ranges and follows the oplog, a proof reads each
//! collection of the copy in one go, and the count of documents is the server's own.

mod apply;
mod ask;
mod backup;
mod catalog;
mod changes;
mod cleanup;
mod copied;
mod error;
mod extract;
mod facts;
mod follow;
mod found;
mod grants;
mod identify;
mod insert;
mod oplog;
mod params;
mod probe;
mod raw;
mod read;
mod restore;
mod sandbox;
mod scram;
mod select;
mod session;
mod shards;
mod users;
mod wire;
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

/// The engine for MongoDB 3.6 and later, and for what speaks its protocol.
#[derive(Clone, Copy, Debug, Default)]
pub struct MongodbEngine {
    /// Only for the test of rule 30.
    loses_a_document: bool,
}

impl MongodbEngine {
    /// The engine.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            loses_a_document: false,
        }
    }

    /// A reader that is broken on purpose: it loses the first document of each stream. A proof must find that (rule 30); for
    /// nothing else.
    #[doc(hidden)]
    #[must_use]
    pub const fn broken_for_tests_that_loses_a_document() -> Self {
        Self {
            loses_a_document: true,
        }
    }
}

#[async_trait]
impl DatabaseEngine for MongodbEngine {
    fn engine(&self) -> Engine {
        Engine::Mongodb
    }

    async fn identify(&self, target: &Target) -> Result<Identity, EngineError> {
        identify::identify(target).await
    }

    async fn load(&self, target: &Target) -> Result<ServerLoad, EngineError> {
        identify::load(target).await
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
        backup::backup(context, source, options, sink, self.loses_a_document).await
    }

    async fn restore(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        report: &BackupReport,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<RestoreReport, EngineError> {
        restore::restore(context, backup, report, target, options).await
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

    async fn ask(
        &self,
        target: &Target,
        questions: &[Question],
        stop: &CancellationToken,
    ) -> Result<Answers, EngineError> {
        ask::ask(target, questions, stop).await
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
        &extract::FORMATS
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
        extract::extract(context, backup, report, what, out).await
    }

    fn log_position(&self, report: &BackupReport) -> Option<LogPosition> {
        changes::log_position(report)
    }

    fn changes_since(&self, report: &BackupReport) -> Option<u64> {
        changes::changes_since(report)
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
        restore::restore_to_moment(context, backup, report, changes, target, options).await
    }

    fn cleanup(&self) -> Option<&dyn Cleanup> {
        Some(self)
    }

    async fn free_bytes(&self, target: &Target) -> Result<Option<u64>, EngineError> {
        identify::free_bytes(target).await
    }
}
