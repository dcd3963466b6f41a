//! How far a cleanup is, as the job's checkpoint keeps it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use fettler_engine::{Checkpoints, EngineError};
use fettler_model::CleanupPlan;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a cleanup is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// The archive is written and read back.
    #[default]
    Archiving,
    /// What is in it is removed.
    Removing,
}

/// The checkpoint of a cleanup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CleanupProgress {
    pub(super) stage: Stage,
    pub(super) plan: Option<CleanupPlan>,
    /// The engine's own checkpoint within the stage.
    pub(super) engine: Option<Value>,
    /// What came of it, where nothing is left to be done but to forget the archive.
    pub(super) output: Option<Value>,
}

/// Keeps the progress of a cleanup, and the engine's own within it.
pub(super) struct Keeper {
    job: Arc<dyn Checkpoints>,
    state: Mutex<CleanupProgress>,
}

impl Keeper {
    /// What the last attempt has saved.
    pub(super) async fn load(job: Arc<dyn Checkpoints>) -> Result<Self, EngineError> {
        let progress = match job.load().await? {
            // A plan that cannot be read is not replaced by a later one: its archive may be there already.
            Some(saved) => {
                serde_json::from_value(saved).map_err(|error| EngineError::Unusable {
                    what: format!("the checkpoint of the cleanup cannot be read: {error}"),
                    remedy: "start the cleanup anew".to_owned(),
                })?
            }
            None => CleanupProgress::default(),
        };
        Ok(Self {
            job,
            state: Mutex::new(progress),
        })
    }

    fn state(&self) -> MutexGuard<'_, CleanupProgress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is.
    pub(super) fn progress(&self) -> CleanupProgress {
        self.state().clone()
    }

    /// Goes to another state, and saves it.
    pub(super) async fn go_to(&self, progress: CleanupProgress) -> Result<(), EngineError> {
        let value = to_value(&progress);
        *self.state() = progress;
        self.job.save(value).await
    }
}

fn to_value(progress: &CleanupProgress) -> Value {
    serde_json::to_value(progress).expect("plain data can be JSON")
}

#[async_trait]
impl Checkpoints for Keeper {
    async fn load(&self) -> Result<Option<Value>, EngineError> {
        Ok(self.state().engine.clone())
    }

    async fn save(&self, checkpoint: Value) -> Result<(), EngineError> {
        let value = {
            let mut state = self.state();
            state.engine = Some(checkpoint);
            to_value(&state)
        };
        self.job.save(value).await
    }
}
