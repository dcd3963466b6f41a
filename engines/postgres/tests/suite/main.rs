//! The engine against real servers, versions 15 and 18.

// What a test may do and the engine may not: panic on a broken set-up, and say things in the shortest way.
#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::type_complexity,
    clippy::cmp_owned,
    clippy::cloned_ref_to_slice_refs
)]

mod broken;
mod common;
mod everything;
mod extract;
mod load;
mod login;
mod measure;
mod memory;
mod moment;
mod part;
mod refusals;
mod resume;
mod sandbox;
mod types;
