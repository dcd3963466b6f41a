//! The Redis engine on real servers.

#![allow(clippy::unwrap_used)]

mod common;
mod everything;
mod incremental;
mod login;
mod part;
mod proof;
mod rdb_file;
mod refusals;
mod resume;
mod sandbox;
mod size;
