//! The engine against real servers, versions 15 and 18.

mod broken;
mod common;
mod everything;
mod login;
mod moment;
mod part;
mod refusals;
mod resume;
mod sandbox;
mod types;
