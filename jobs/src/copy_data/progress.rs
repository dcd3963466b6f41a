//! How far a copy has come, as the job's checkpoint keeps it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use fettler_engine::{Artefact, Artefacts, Checkpoints, EngineError, RestoreReport};
use fettler_model::Warning;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::AT_SOURCE;

/// What a copy is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// The source is read into the pipe.
    #[default]
    Reading,
    /// The target is filled from the pipe.
    Restoring,
    /// The target is compared.
    Comparing,
}

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Restored {
    pub(super) bytes: u64,
    pub(super) rows: u64,
    pub(super) failed_statements: Vec<String>,
    pub(super) warnings: Vec<Warning>,
}

impl From<RestoreReport> for Restored {
    fn from(report: RestoreReport) -> Self {
        Self {
            bytes: report.bytes,
            rows: report.rows,
            failed_statements: report.failed_statements,
            warnings: report.warnings,
        }
    }
}

/// The checkpoint of a copy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CopyProgress {
    pub(super) stage: Stage,
    /// Set where the source was read again after the target had been begun with: what is there is of an older moment, is the
    /// job's own, and goes.
    pub(super) begins_again: bool,
    pub(super) restored: Option<Restored>,
    /// The engine's own checkpoint within the stage.
    pub(super) engine: Option<Value>,
}

impl CopyProgress {
    /// What follows from a pipe that is not the one of the attempt before.
    #[must_use]
    pub(super) fn without_pipe(self) -> Self {
        let has_begun = self.stage == Stage::Comparing
            || (self.stage == Stage::Restoring && self.engine.is_some());
        Self {
            begins_again: self.begins_again || has_begun,
            ..Self::default()
        }
    }

    fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("plain data can be JSON")
    }
}

/// Keeps the progress of a copy, and the engine's own within it.
pub(super) struct Keeper {
    job: Arc<dyn Checkpoints>,
    state: Mutex<CopyProgress>,
}

impl Keeper {
    /// What the last attempt has saved.
    pub(super) async fn load(job: Arc<dyn Checkpoints>) -> Result<Self, EngineError> {
        let saved = job.load().await?;
        let progress = saved
            .and_then(|saved| CopyProgress::deserialize(saved).ok())
            .unwrap_or_default();
        Ok(Self {
            job,
            state: Mutex::new(progress),
        })
    }

    fn state(&self) -> MutexGuard<'_, CopyProgress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is.
    pub(super) fn progress(&self) -> CopyProgress {
        self.state().clone()
    }

    /// Goes to another state, and saves it.
    pub(super) async fn go_to(&self, progress: CopyProgress) -> Result<(), EngineError> {
        let value = progress.to_value();
        *self.state() = progress;
        self.job.save(value).await
    }
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
            state.to_value()
        };
        self.job.save(value).await
    }
}

/// Marks what is made on the source, so that whoever removes it later goes there and not to the target.
pub(super) struct AtSource(pub(super) Arc<dyn Artefacts>);

#[async_trait]
impl Artefacts for AtSource {
    async fn record(&self, artefact: &Artefact) -> Result<(), EngineError> {
        let mut marked = artefact.clone();
        match &mut marked.data {
            Value::Object(members) => {
                members.insert(AT_SOURCE.to_owned(), Value::Bool(true));
            }
            Value::Null => marked.data = serde_json::json!({ AT_SOURCE: true }),
            // No engine keeps anything else there; it stays as it is.
            _ => {}
        }
        self.0.record(&marked).await
    }

    async fn removed(&self, artefact: &Artefact) -> Result<(), EngineError> {
        self.0.removed(artefact).await
    }

    async fn left(&self) -> Result<Vec<Artefact>, EngineError> {
        self.0.left().await
    }

    async fn give_up(&self, left: &Artefact) -> Result<(), EngineError> {
        self.0.give_up(left).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_begun_with_a_lost_pipe_is_begun_again_and_nothing_else_is_replaced() {
        let at = |stage, engine: Option<Value>| {
            CopyProgress {
                stage,
                engine,
                ..CopyProgress::default()
            }
            .without_pipe()
            .begins_again
        };
        assert!(!at(Stage::Reading, Some(json!(1))));
        // The engine saves once what was in the way was looked at: before, nothing of the target is the job's.
        assert!(!at(Stage::Restoring, None));
        assert!(at(Stage::Restoring, Some(json!(1))));
        assert!(at(Stage::Comparing, None));
        let again = CopyProgress {
            begins_again: true,
            ..CopyProgress::default()
        };
        assert!(again.without_pipe().begins_again);
    }
}
