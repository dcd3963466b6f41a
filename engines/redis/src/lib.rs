//! Redis and Valkey: all databases of a server at one moment, key by key, and back.
//!
//! The parts, in the order of a backup's life: [`params`], [`tls`] and [`connect`] reach a server, [`identify`] asks who is
//! there and what is allowed, [`replica`] receives an RDB as a replica does (or [`scan`] reads key by key), [`rdb`]
//! understands it, [`collect`] turns keys into fingerprints and into [`records`] in the order of the backup, [`restore`]
//! puts them back ([`extract`] into a file), [`sandbox`] makes a server for a proof, and [`facts`] reads a copy for comparison.
//!
//! **Why not the RDB itself?** A server writes its keys in the order of a hash table whose seed is new at each start, and one
//! value in many encodings. Stored as it is, nothing of yesterday's backup would be found again after a restart. Keys are
//! therefore stored in an order and a form of our own, which depend on nothing but the keys and their values.
//!
//! **What a proof shares with a backup.** Nothing that reads keys: a backup reads the RDB, a proof asks the restored copy
//! by commands, and the count of keys is the server's own.

mod backup;
mod collect;
mod connect;
mod error;
mod extract;
mod facts;
mod found;
mod identify;
mod params;
mod rdb;
mod records;
mod replica;
mod restore;
mod sandbox;
mod scan;
mod select;
mod server_data;
mod tls;

use async_trait::async_trait;
use fettler_engine::{
    Artefact, BackupOptions, BackupReport, DatabaseEngine, EngineContext, EngineError, Identity,
    PreflightItem, RestoreOptions, RestoreReport, Sandbox, SandboxRequest, StreamSink,
    StreamSource, Target,
};
use fettler_model::{Engine, ObjectFacts, ServerLoad};

pub use extract::write_rdb;

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
            Some(path) => extract::write_rdb(context, backup, report, &path, options).await,
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
