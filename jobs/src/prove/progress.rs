//! How far a proof has come in its sandbox, as the job's checkpoint keeps it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use fettler_engine::{Artefact, Checkpoints, EngineError, Sandbox};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::JobContext;

/// What the restore into the sandbox came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Restored {
    /// How long it took, over all attempts.
    pub(super) seconds: f64,
    /// What failed of it, in words.
    pub(super) failed_statements: Vec<String>,
}

/// The checkpoint of a proof. It holds for one sandbox only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ProofProgress {
    /// The name of the sandbox' first artefact.
    sandbox: String,
    /// How long earlier attempts have restored, in seconds.
    seconds: f64,
    /// Set once the whole backup is in the sandbox.
    restored: Option<Restored>,
    /// The engine's own checkpoint: of the restore until all is restored, of the comparison from then on.
    engine: Option<Value>,
}

impl ProofProgress {
    /// What the last attempt has saved; none where it cannot be read.
    pub(super) async fn load(context: &JobContext) -> Result<Option<Self>, EngineError> {
        let saved = context.checkpoints.load().await?;
        Ok(saved.and_then(|saved| Self::deserialize(saved).ok()))
    }

    /// Begins in a new sandbox.
    pub(super) async fn begin(
        context: &JobContext,
        sandbox: &Sandbox,
    ) -> Result<Self, EngineError> {
        let name = sandbox
            .artefacts
            .first()
            .map(|artefact| artefact.name.clone());
        let progress = Self {
            sandbox: name.unwrap_or_default(),
            seconds: 0.0,
            restored: None,
            engine: None,
        };
        context.checkpoints.save(progress.to_value()).await?;
        Ok(progress)
    }

    /// Whether it is of this sandbox.
    pub(super) fn is_of(&self, artefact: &Artefact) -> bool {
        self.sandbox == artefact.name
    }

    fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("plain data can be JSON")
    }
}

/// Keeps the progress of a proof, and the engine's own within it.
pub(super) struct Keeper {
    job: Arc<dyn Checkpoints>,
    state: Mutex<ProofProgress>,
    began: Instant,
}

/// Keeps this progress in the job's checkpoint.
pub(super) fn keeper(context: &JobContext, progress: ProofProgress) -> Arc<Keeper> {
    Arc::new(Keeper {
        job: context.checkpoints.clone(),
        state: Mutex::new(progress),
        began: Instant::now(),
    })
}

impl Keeper {
    fn state(&self) -> MutexGuard<'_, ProofProgress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the restore came to, once it was all.
    pub(super) fn restored(&self) -> Option<Restored> {
        self.state().restored.clone()
    }

    /// How long this and earlier attempts have restored.
    pub(super) fn seconds(&self) -> f64 {
        self.state().seconds + self.began.elapsed().as_secs_f64()
    }

    /// Everything is in the sandbox.
    pub(super) async fn filled(&self, restored: Restored) -> Result<(), EngineError> {
        let value = {
            let mut state = self.state();
            state.restored = Some(restored);
            state.engine = None;
            state.to_value()
        };
        self.job.save(value).await
    }

    /// Waits for a restore, and saves now and then how long it has taken.
    pub(super) async fn timing<T>(
        &self,
        every: Duration,
        restore: impl Future<Output = T>,
    ) -> Result<T, EngineError> {
        let mut restore = std::pin::pin!(restore);
        loop {
            match tokio::time::timeout(every, &mut restore).await {
                Ok(ended) => return Ok(ended),
                Err(_) => self.job.save(self.with_time()).await?,
            }
        }
    }

    fn with_time(&self) -> Value {
        let state = self.state().clone();
        ProofProgress {
            seconds: state.seconds + self.began.elapsed().as_secs_f64(),
            ..state
        }
        .to_value()
    }
}

#[async_trait]
impl Checkpoints for Keeper {
    async fn load(&self) -> Result<Option<Value>, EngineError> {
        Ok(self.state().engine.clone())
    }

    async fn save(&self, checkpoint: Value) -> Result<(), EngineError> {
        self.state().engine = Some(checkpoint);
        self.job.save(self.with_time()).await
    }
}
