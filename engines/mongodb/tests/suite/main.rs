//! The MongoDB engine on servers of its protocol.

#![allow(clippy::unwrap_used)]

mod common;
mod everything;
mod login;
mod part;
mod proof;
mod ranges;
mod refusals;
mod resume;
mod sandbox;
