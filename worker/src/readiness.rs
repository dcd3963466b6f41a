//! Whether a worker works: it asked for jobs a moment ago, or it is full and its leases are renewed. The common fault of
//! this field is a worker that looks alive and takes nothing.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::heart::Heart;

/// A worker that has room asks at least every few seconds.
const ASKS_WITHIN: Duration = Duration::from_secs(15);

/// Tells whether a worker is ready. It outlives the worker, and is not ready then.
#[derive(Clone, Debug)]
pub struct Readiness {
    pub(crate) asked: Arc<LastAsked>,
    pub(crate) heart: Arc<Heart>,
    pub(crate) slots: usize,
}

/// When the worker last asked for jobs and was answered.
#[derive(Debug, Default)]
pub(crate) struct LastAsked(Mutex<Option<Instant>>);

impl LastAsked {
    pub(crate) fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn ago(&self) -> Option<Duration> {
        let asked = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.map(|asked| asked.elapsed())
    }
}

impl Readiness {
    /// Whether the worker works.
    ///
    /// # Errors
    ///
    /// In words, why it does not.
    pub fn check(&self) -> Result<(), String> {
        let asked = self.asked.ago();
        if asked.is_some_and(|ago| ago < ASKS_WITHIN) {
            return Ok(());
        }
        let running = self.heart.count();
        if running >= self.slots && self.heart.renews() {
            return Ok(());
        }
        Err(match asked {
            None => "the worker has not been answered by ledger or queue yet".to_owned(),
            Some(_) if running >= self.slots => {
                "all slots are taken, and the leases of their jobs are not renewed".to_owned()
            }
            Some(ago) => format!(
                "the worker has room, and last asked for jobs {} s ago",
                ago.as_secs()
            ),
        })
    }
}
