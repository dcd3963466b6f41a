//! ClickHouse, as a database that is backed up, restored and proven.
//!
//! The way of a backup: [`http`] speaks with the server, [`catalogue`] lists what there is, [`shadow`] links each table's parts
//! into a scratch database where nothing changes them, [`backup`] has them read ([`pieces`]) in Native format, several at once, but for
//! those that the parent holds, while the server makes their [`fingerprint`]; [`by_server`] lets the server make a backup of its own
//! of them, [`cluster`] reads one server of each shard. The way back: [`restore`] makes definitions in the order
//! in which they need each other and gives tables their rows, [`sandbox`] makes a place for a proof, and [`facts`] reads a copy
//! for comparison. [`cleanup`] removes old partitions and what lies detached.
//!
//! **Why a shadow?** Parts are merged and dropped while they are read. A part that is linked elsewhere stays as it is, costs no
//! space until the original goes, and is found again by its hash in the next backup.
//!
//! **What a proof shares with a backup.** Nothing that moves rows: the server makes the fingerprint at the source from its parts
//! and in the copy from what came back there.

mod ask;
mod audit_words;
mod backup;
mod by_server;
mod catalogue;
mod cleanup;
mod cluster;
mod copied;
mod error;
mod extract;
mod facts;
mod fingerprint;
mod found;
mod freeze;
mod grants;
mod http;
mod identify;
mod mapping;
mod params;
mod pieces;
mod probe;
mod restore;
mod sandbox;
mod select;
mod shadow;
mod space;
mod sql;
mod workbench;

use std::path::PathBuf;

use async_trait::async_trait;
use fettler_engine::{
    Answers, Artefact, AttemptName, BackupOptions, BackupReport, Cleanup, CopyFacts,
    DatabaseEngine, EngineContext, EngineError, ExtractFormat, ExtractReport, Extraction,
    GrantRequest, Grants, Held, Identity, LatencyProbe, PreflightItem, Question, RestoreOptions,
    RestoreReport, Sandbox, SandboxRequest, StreamSink, StreamSource, Target, Workbench,
    chosen_format,
};
use fettler_model::{Engine, ObjectFacts, ServerLoad};
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

/// The engine for ClickHouse 18.16 and later.
#[derive(Clone, Debug, Default)]
pub struct ClickhouseEngine {
    /// The server's program for proofs; looked for in `PATH` where none is named.
    program: Option<PathBuf>,
}

impl ClickhouseEngine {
    /// The engine with a program for the servers of proofs, `clickhouse-server` or `clickhouse`.
    #[must_use]
    pub const fn with_program(program: PathBuf) -> Self {
        Self {
            program: Some(program),
        }
    }
}

#[async_trait]
impl DatabaseEngine for ClickhouseEngine {
    fn engine(&self) -> Engine {
        Engine::Clickhouse
    }

    fn knows_row_hash(&self, name: &str) -> bool {
        fingerprint::RowForm::of_name(name).is_some()
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
        if let Some(place) = &options.by_server {
            return by_server::backup(context, source, options, place, sink).await;
        }
        backup::backup(context, source, options, sink).await
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
        sandbox::open(context, request, self.program.as_deref()).await
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
        _name: &AttemptName,
    ) -> Result<Box<dyn Workbench>, EngineError> {
        workbench::open(target).await
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

    async fn ask(
        &self,
        target: &Target,
        questions: &[Question],
        stop: &CancellationToken,
    ) -> Result<Answers, EngineError> {
        ask::ask(target, questions, stop).await
    }

    fn cleanup(&self) -> Option<&dyn Cleanup> {
        Some(self)
    }

    fn has_own_backups(&self) -> bool {
        true
    }

    async fn held(
        &self,
        server: &Target,
        known: &[BackupReport],
    ) -> Result<Vec<Held>, EngineError> {
        by_server::held(server, known).await
    }

    async fn require_held(
        &self,
        report: &BackupReport,
        server: &Target,
    ) -> Result<(), EngineError> {
        by_server::require_held(report, server).await
    }

    async fn let_go(&self, server: &Target, held: &Held) -> Result<(), EngineError> {
        by_server::let_go(server, held).await
    }

    async fn free_bytes(&self, target: &Target) -> Result<Option<u64>, EngineError> {
        identify::free_bytes(target).await
    }
}
