//! The ledger's steps as whoever tries its failures sees them: each statement and each commit asks first whether
//! it goes on, fails before it has an effect, or has its effect and loses the answer. Nothing asks in a process
//! that was not told to.

use std::{fmt, sync::Arc};

use crate::LedgerError;

/// What is about to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepKind {
    /// A transaction begins.
    Begin,
    /// A statement within a transaction.
    Statement,
    /// A transaction is committed.
    Commit,
    /// A statement that reads, on its own.
    Read,
}

/// What becomes of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StepFate {
    /// It is done.
    #[default]
    GoesOn,
    /// It fails and has no effect.
    Fails,
    /// It is done, and nobody hears of it. A statement of a transaction is then rolled back with it.
    AnswerLost,
}

type Ask = dyn Fn(StepKind, &'static str) -> StepFate + Send + Sync;

/// Asked before each step, with what the ledger is doing. See [`crate::LedgerOptions::steps`].
#[derive(Clone)]
pub struct Steps(Arc<Ask>);

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Steps")
    }
}

impl Steps {
    /// Asks this function. It must not block.
    pub fn new(ask: impl Fn(StepKind, &'static str) -> StepFate + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// What becomes of a step, where somebody is to be asked.
    pub(crate) fn fate(of: Option<&Self>, kind: StepKind, doing: &'static str) -> StepFate {
        of.map_or(StepFate::GoesOn, |steps| (steps.0)(kind, doing))
    }
}

/// The error of a step that was let fail.
pub(crate) fn failed(doing: &'static str) -> LedgerError {
    LedgerError::Unavailable {
        doing,
        what: "the step was let fail".to_owned(),
    }
}
