//! The suite of the engine for ClickHouse, against the server of 2018 and the engine of today. What only one of them has is
//! tested against that one, and its test says so.

#![allow(clippy::unwrap_used)]

mod by_server;
mod cleanup;
mod cluster;
mod common;
mod everything;
mod extract;
mod incremental;
mod part;
mod proof;
mod refusals;
mod resume;
mod shadows;
