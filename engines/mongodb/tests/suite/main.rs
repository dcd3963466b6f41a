//! The MongoDB engine on servers of its protocol.

#![allow(clippy::unwrap_used)]

mod cleanup;
mod cluster;
mod common;
mod everything;
mod extract;
mod login;
mod moments;
mod part;
mod proof;
mod ranges;
mod refusals;
mod resume;
mod sandbox;
mod shards;
