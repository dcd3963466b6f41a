//! The protocols of claim, lease, rescue, tick and collection as small models, explored exhaustively within
//! bounds, and the histories of real ledgers replayed against what they allow.
//!
//! A model is the protocol without its bytes: each step is what one statement, one transaction or one request
//! does at once, and between any two steps anybody else may act, hang or die. Each risky rule is a switch:
//! as built it is on, and the checker finds no way to break a promise; with one rule switched off it must find
//! one, since a checker that finds nothing anywhere shows nothing.
//!
//! Each model begins with a list of the functions that it models. A test looks for them in the sources, so that
//! a function that is renamed or replaced takes its model along.

pub mod claim;
pub mod collection;
pub mod lease;
pub mod replay;
pub mod rescue;
pub mod tick;

use std::hash::Hash;

use stateright::{Checker, HasDiscoveries, Model};

/// Explores a model completely, on one core.
pub fn explore<M>(model: M) -> impl Checker<M>
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Clone + Send + Sync + std::fmt::Debug + PartialEq + 'static,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync,
{
    model.checker().threads(1).spawn_bfs().join()
}

/// Explores a model until the first way to break one of its properties is found.
pub fn explore_until_a_fault<M>(model: M) -> impl Checker<M>
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Clone + Send + Sync + std::fmt::Debug + PartialEq + 'static,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync,
{
    model
        .checker()
        .threads(1)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join()
}
