//! The job kinds: what a worker can do. Each kind is one folder or file and one line in
//! [`Registry::standard`]. A kind says what it takes and gives, what it excludes, and does its work in
//! one async function over a [`JobContext`]; it is written so that it can run twice. How a job came
//! here, and how its attempts are counted, is not known here.

mod archive;
mod backup;
mod check;
mod collect;
mod context;
mod diff;
mod forget;
mod hooks;
mod inspect;
mod kind;
mod load;
mod ping;
mod prove;
mod restore;
mod retention;
mod verify;

pub use archive::report_of;
pub use backup::{Backup, BackupArguments, BackupOutput, facts_of_manifest};
pub use check::{Check, CheckArguments, CheckOutput};
pub use collect::{Collect, CollectArguments, CollectOutput};
pub use context::{
    BackupPlace, Catalogue, DatabaseRecord, JobContext, JobLedger, JobRecord, Services, StopReason,
    Stopping, UpkeepRecord,
};
pub use diff::{Change, Diff, DiffArguments, DiffOutput, Difference, diff};
pub use forget::{
    BY_REQUEST, Forget, ForgetArguments, ForgetOutput, Hold, HoldArguments, HoldOutput,
};
pub use hooks::Hooks;
pub use inspect::{Inspect, InspectArguments, InspectOutput, StreamOutput};
pub use kind::{DynKind, JobKind, Registry, UnknownKind};
pub use load::check_load;
pub use ping::{Ping, PingArguments, PingOutput};
pub use prove::{Prove, ProveArguments, ProveOutput};
pub use restore::{Restore, RestoreArguments, RestoreOutput};
pub use retention::{Retention, RetentionArguments, RetentionDecision, RetentionOutput};
pub use verify::{DamageOutput, Verify, VerifyArguments, VerifyOutput};

impl Registry {
    /// All job kinds of Fettler.
    #[must_use]
    pub fn standard() -> Self {
        Self::empty()
            .with(Backup)
            .with(Check)
            .with(Collect)
            .with(Diff)
            .with(Forget)
            .with(Hold)
            .with(Inspect)
            .with(Ping)
            .with(Prove)
            .with(Restore)
            .with(Retention)
            .with(Verify)
    }
}
