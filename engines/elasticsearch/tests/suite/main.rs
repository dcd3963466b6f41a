//! The Elasticsearch engine on real servers: Elasticsearch 8.19 and OpenSearch 3.8.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod by_server;
mod cleanup;
mod common;
mod everything;
mod extract;
mod incremental;
mod moment;
mod part;
mod proof;
mod refusals;
mod resume;
mod sources;
mod whole;
