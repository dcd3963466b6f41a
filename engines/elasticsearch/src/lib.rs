//! Elasticsearch and OpenSearch: indices and data streams, document by document, and back.
//!
//! The parts, in the order of a backup's life: [`params`] and [`client`] reach a server, [`server`] and [`identify`] ask who is
//! there and what is allowed, [`catalogue`] lists what there is, [`read`] gets documents page by page at one moment of each shard,
//! [`hits`] understands them, [`order`] puts them in the order of the backup, [`unchanged`] says what need not be read again, [`parts`] reads what the cluster has beside
//! indices, [`by_server`] lets the server make its own snapshots, [`restore`] puts everything back, [`sandbox`] makes a place for a proof, [`facts`] reads a copy for comparison, and [`cleanup`] removes old indices.
//!
//! **What is stored** are lines of bulk requests: a backup can be put back with nothing but a client that sends them. The text of
//! a document is kept but for white space between its tokens: numbers keep their digits, names that come twice stay.

mod ask;
mod backup;
mod by_server;
mod catalogue;
mod cleanup;
mod client;
mod copied;
mod error;
mod extract;
mod facts;
mod found;
mod grants;
mod hits;
mod identify;
mod json;
mod order;
mod params;
mod parts;
mod probe;
mod read;
mod restore;
mod sandbox;
mod select;
mod server;
mod unchanged;
mod workbench;

use async_trait::async_trait;
use fettler_engine::{
    Answers, Artefact, AttemptName, BackupOptions, BackupReport, Cleanup, DatabaseEngine,
    EngineContext, EngineError, ExtractFormat, ExtractReport, Extraction, GrantRequest, Grants,
    Held, Identity, LatencyProbe, PreflightItem, Question, RestoreOptions, RestoreReport, Sandbox,
    SandboxRequest, StreamSink, StreamSource, Target, Workbench, chosen_format,
};
use fettler_model::{Engine, ObjectFacts, ServerLoad};
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

use backup::Oddities;
use read::Way;

/// The engine for Elasticsearch 7.10 and later and for OpenSearch.
#[derive(Clone, Copy, Debug, Default)]
pub struct ElasticsearchEngine {
    oddities: Oddities,
}

impl ElasticsearchEngine {
    /// The engine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A reader that is broken on purpose: it loses a document of each shard. A proof must find that (rule 30); for nothing
    /// else.
    #[doc(hidden)]
    #[must_use]
    pub const fn broken_for_tests_that_loses_a_document() -> Self {
        Self {
            oddities: Oddities {
                loses_a_document: true,
                way: Way::Best,
            },
        }
    }

    /// Reads by scroll, as where the server has no point in time; for tests.
    #[doc(hidden)]
    #[must_use]
    pub const fn for_tests_that_scrolls() -> Self {
        Self {
            oddities: Oddities {
                loses_a_document: false,
                way: Way::Scroll,
            },
        }
    }
}

#[async_trait]
impl DatabaseEngine for ElasticsearchEngine {
    fn engine(&self) -> Engine {
        Engine::Elasticsearch
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
        backup::backup(context, source, options, sink, self.oddities).await
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
        _name: &AttemptName,
    ) -> Result<Box<dyn Workbench>, EngineError> {
        workbench::open(target)
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

    fn cleanup(&self) -> Option<&dyn Cleanup> {
        Some(self)
    }

    fn has_own_backups(&self) -> bool {
        true
    }

    fn doubts(&self, report: &BackupReport) -> Vec<String> {
        by_server::doubts(report)
    }

    async fn held(
        &self,
        server: &Target,
        _known: &[BackupReport],
    ) -> Result<Vec<Held>, EngineError> {
        by_server::held(server).await
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
