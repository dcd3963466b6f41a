//! The Redis engine on real servers.

#![allow(clippy::unwrap_used)]

mod cleanup;
mod common;
mod everything;
mod extract;
mod incremental;
mod login;
mod moments;
mod part;
mod proof;
mod rdb_file;
mod refusals;
mod resume;
mod sandbox;
mod size;
mod topology;
