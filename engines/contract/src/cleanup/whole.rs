//! The removal of things that go as a whole, such as partitions and indices: one after the other, with a checkpoint of what came of
//! each.

use async_trait::async_trait;
use fettler_fault_points::{Point, reached};
use fettler_model::CleanupRemoved;
use serde::{Deserialize, Serialize};

use super::work::{Fate, MOST_TOLD, load, save};
use crate::{EngineContext, EngineError};

/// What became of a thing, and why it stays where it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeFate {
    /// What became of it.
    pub fate: Fate,
    /// Why it stays.
    pub why: String,
}

impl WholeFate {
    /// It is not there any more, by this attempt's doing.
    #[must_use]
    pub const fn removed() -> Self {
        Self::of(Fate::Removed)
    }

    /// It was not there.
    #[must_use]
    pub const fn gone() -> Self {
        Self::of(Fate::Gone)
    }

    /// It is not what the archive holds, and stays.
    #[must_use]
    pub fn changed(why: impl Into<String>) -> Self {
        Self {
            fate: Fate::Changed,
            why: why.into(),
        }
    }

    /// Somebody holds it, and it stays.
    #[must_use]
    pub fn busy(why: impl Into<String>) -> Self {
        Self {
            fate: Fate::Busy,
            why: why.into(),
        }
    }

    const fn of(fate: Fate) -> Self {
        Self {
            fate,
            why: String::new(),
        }
    }
}

/// What an engine does with one thing.
#[async_trait]
pub trait WholeRemover: Send {
    /// Removes the thing of this number in the plan, if it still is what the archive holds. May be repeated, also for what an
    /// attempt before has removed, or left in the middle.
    ///
    /// # Errors
    ///
    /// Those of the server; nothing may stand in a half-done state then that the next attempt cannot take up.
    async fn remove(&mut self, number: usize) -> Result<WholeFate, EngineError>;
}

/// How far it is, as the checkpoint keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Progress {
    /// Things that are done with.
    done: usize,
    removed: CleanupRemoved,
}

/// Removes things as a whole, by their names in the plan's order. Goes on from the context's checkpoint.
///
/// # Errors
///
/// Those of the remover and the checkpoints; [`EngineError::Stopped`].
pub async fn remove_wholes(
    context: &EngineContext,
    names: &[String],
    remover: &mut dyn WholeRemover,
) -> Result<CleanupRemoved, EngineError> {
    let mut progress: Progress = load(context).await?;
    for (number, name) in names.iter().enumerate().skip(progress.done) {
        context.check_stop()?;
        context.fence.check().await?;
        context.progress.item(name);
        let WholeFate { fate, why } = remover.remove(number).await?;
        reached(Point::CleanupRemoving);
        let removed = &mut progress.removed;
        match fate {
            Fate::Removed => removed.removed += 1,
            Fate::Gone => removed.gone += 1,
            Fate::Changed => removed.changed += 1,
            Fate::Referenced => removed.referenced += 1,
            Fate::Busy => removed.busy += 1,
        }
        if !matches!(fate, Fate::Removed | Fate::Gone) && removed.kept.len() < MOST_TOLD {
            removed.kept.push(format!("{name}: {why}"));
        }
        progress.done = number + 1;
        save(context, &progress).await?;
    }
    reached(Point::CleanupRemoved);
    Ok(progress.removed)
}
