//! The socket of the embedded size: how commands reach the process that runs `fettler up` in the same
//! folder. It wakes the workers, tells that the process lives, and shows a job with its progress of this
//! very moment. Everything else the commands do on the ledger themselves, so that nothing depends on a
//! process that may not be there.
//!
//! It is HTTP on a Unix socket that only the folder's owner can open: `POST /wake`, `GET /healthz`,
//! `GET /api/v1/jobs/{id}`.

mod client;
mod path;
mod probes;
mod server;

pub use client::{ClientError, Health, SocketClient};
pub use probes::{Probes, ProbesError, Ready};
pub use server::{LiveProgress, ServerError, Socket};
