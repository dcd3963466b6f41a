//! PostgreSQL, logically: the definitions by `pg_dump`, the rows by COPY, at one consistent moment, by
//! several sessions at once; and back.
//!
//! Everything that surprises about it stands where it is handled. The parts, in the order of a backup's life:
//! [`params`] and [`connect`] log in, [`wire`] is a session, [`identify`] asks who is there and what is allowed, [`backup`]
//! reads, [`restore`] puts back, [`sandbox`] makes a server for a proof, [`facts`] reads a copy for comparison, [`extract`] writes a table into a file, and [`large_values`] says how
//! values of hundreds of megabytes get in and out of it.

mod ask;
mod backup;
mod catalogue;
mod cleanup;
mod compared;
mod connect;
mod copied;
mod copy;
mod data;
mod error;
mod extract;
mod facts;
mod grants;
mod identify;
mod large_objects;
mod large_values;
mod load;
mod names;
mod params;
mod probe;
mod restore;
mod sandbox;
mod schema;
mod sessions;
mod tls;
mod tools;
mod wire;
mod workbench;

use std::path::PathBuf;

use async_trait::async_trait;
use fettler_engine::{
    Answers, Artefact, AttemptName, BackupOptions, BackupReport, DatabaseEngine, EngineContext,
    EngineError, ExtractFormat, ExtractReport, Extraction, GrantRequest, Grants, Identity,
    LatencyProbe, PreflightItem, Question, RestoreOptions, RestoreReport, Sandbox, SandboxRequest,
    StreamSink, StreamSource, Target, Workbench, chosen_format,
};
use fettler_model::{Engine, ObjectFacts, ServerLoad};
use params::Params;
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;
use tools::Tools;

/// The engine for PostgreSQL 10 and later.
#[derive(Clone, Debug)]
pub struct PostgresEngine {
    tools: Tools,
    range_pages: u64,
    /// Only for the test of rule 30.
    skips_a_range: bool,
}

impl Default for PostgresEngine {
    fn default() -> Self {
        Self {
            tools: Tools::default(),
            range_pages: backup::RANGE_PAGES,
            skips_a_range: false,
        }
    }
}

impl PostgresEngine {
    /// Looks for PostgreSQL's programs in these folders only, instead of in those that `FETTLER_PG_BIN` names
    /// or the usual ones.
    #[must_use]
    pub fn with_program_folders(mut self, folders: Vec<PathBuf>) -> Self {
        self.tools.folders = Some(folders);
        self
    }

    /// A reader that is broken on purpose: it loses the second range of every table. A proof must find that
    /// (rule 30); for nothing else.
    #[doc(hidden)]
    #[must_use]
    pub fn broken_for_tests_that_skips_a_range(mut self) -> Self {
        self.skips_a_range = true;
        self
    }

    /// Cuts tables into ranges of this many pages instead of 64 MiB.
    #[must_use]
    pub fn with_range_pages(mut self, pages: u64) -> Self {
        self.range_pages = pages.max(1);
        self
    }
}

#[async_trait]
impl DatabaseEngine for PostgresEngine {
    fn engine(&self) -> Engine {
        Engine::Postgres
    }

    async fn identify(&self, target: &Target) -> Result<Identity, EngineError> {
        identify::identify(target).await
    }

    async fn load(&self, target: &Target) -> Result<ServerLoad, EngineError> {
        load::load(target).await
    }

    async fn ask(
        &self,
        target: &Target,
        questions: &[Question],
        stop: &CancellationToken,
    ) -> Result<Answers, EngineError> {
        ask::ask(target, questions, stop).await
    }

    fn cleanup(&self) -> Option<&dyn fettler_engine::Cleanup> {
        Some(self)
    }

    async fn workbench(
        &self,
        target: &Target,
        name: &AttemptName,
    ) -> Result<Box<dyn Workbench>, EngineError> {
        workbench::open(target, name).await
    }

    fn grants(&self, request: &GrantRequest<'_>) -> Result<Grants, EngineError> {
        grants::grants(request)
    }

    async fn preflight(
        &self,
        target: &Target,
        options: &BackupOptions,
    ) -> Result<Vec<PreflightItem>, EngineError> {
        identify::preflight(self, target, options).await
    }

    async fn backup(
        &self,
        context: &EngineContext,
        source: &Target,
        options: &BackupOptions,
        sink: &dyn StreamSink,
    ) -> Result<BackupReport, EngineError> {
        let answer = backup::backup(self, context, source, options, sink).await;
        sessions::end_own_after_failure(source, context, &answer).await;
        answer
    }

    async fn restore(
        &self,
        context: &EngineContext,
        backup: &dyn StreamSource,
        report: &BackupReport,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<RestoreReport, EngineError> {
        let answer = restore::restore(self, context, backup, report, target, options).await;
        sessions::end_own_after_failure(target, context, &answer).await;
        answer
    }

    async fn open_sandbox(
        &self,
        context: &EngineContext,
        request: &SandboxRequest,
    ) -> Result<Sandbox, EngineError> {
        sandbox::open(self, context, request).await
    }

    async fn leave_sandbox(&self, sandbox: &Sandbox) -> Result<(), EngineError> {
        sandbox::leave(sandbox).await
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
        let answer = facts::facts(self, context, copy, expected).await;
        sessions::end_own_after_failure(copy, context, &answer).await;
        answer
    }

    fn chosen(
        &self,
        report: &BackupReport,
        only: &[String],
    ) -> Result<Vec<ObjectFacts>, EngineError> {
        copied::chosen(report, only)
    }

    fn has_place_of_its_own(&self) -> bool {
        true
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

    async fn free_bytes(&self, target: &Target) -> Result<Option<u64>, EngineError> {
        self.free_bytes_at(&Params::of(target)?).await
    }
}
