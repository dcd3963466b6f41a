//! The job kinds: what a worker can do. Each kind is one folder or file and one line in
//! [`Registry::standard`]. A kind says what it takes and gives, what it excludes, and does its work in
//! one async function over a [`JobContext`]; it is written so that it can run twice. How a job came
//! here, and how its attempts are counted, is not known here.

mod context;
mod kind;

pub use context::{
    BackupPlace, Catalogue, DatabaseRecord, JobContext, JobLedger, JobRecord, Services, StopReason,
    Stopping, UpkeepRecord,
};
pub use kind::{DynKind, JobKind, Registry, UnknownKind};
