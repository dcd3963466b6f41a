//! How others reach Fettler: the HTTP interface ([`http`]), and the socket of the embedded size, by which
//! commands reach the process that runs `fettler up` in the same folder. The socket wakes the workers, tells that the process
//! lives, and shows a job with its progress of this very moment. Everything else the commands of that folder do on the ledger
//! themselves, so that nothing depends on a process that may not be there.
//!
//! The socket is HTTP on a Unix socket that only the folder's owner can open: `POST /wake`, `GET /healthz`,
//! `GET /api/v1/jobs/{id}`.

mod client;
pub mod http;
mod path;
mod probes;
mod server;

pub use client::{ClientError, Health, SocketClient};
pub use probes::{Probes, ProbesError, Ready};
pub use server::{LiveProgress, ServerError, Socket};
