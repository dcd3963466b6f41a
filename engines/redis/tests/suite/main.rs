//! The Redis engine on real servers.

#![allow(clippy::unwrap_used)]

mod common;
mod everything;
mod incremental;
mod login;
mod part;
mod proof;
mod refusals;
mod resume;
mod sandbox;
mod size;
