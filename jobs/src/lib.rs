//! The job kinds: what a worker can do. Each kind is one folder or file and one line in
//! [`Registry::standard`]. A kind says what it takes and gives, what it excludes, and does its work in
//! one async function over a [`JobContext`]; it is written so that it can run twice. How a job came
//! here, and how its attempts are counted, is not known here.

mod archive;
mod archiving;
mod audit;
mod backup;
mod browse;
mod by_server;
mod check;
mod cleanup;
mod collect;
mod context;
mod copy_data;
mod diff;
mod extract;
mod forget;
mod health;
mod hooks;
mod inspect;
mod kind;
mod load;
mod moments;
mod ping;
mod prove;
mod restore;
mod retention;
mod throttle;
mod tune;
mod verify;

pub use archive::report_of;
pub use archiving::{Archive, ArchiveArguments, ArchiveOutput};
pub use audit::{Audit, AuditArguments, AuditOutput};
pub use backup::{Backup, BackupArguments, BackupOutput, facts_of_manifest};
pub use browse::{BrowseOutput, ContainerOutput, PartOutput, browse};
pub use by_server::TAG as BY_SERVER;
pub use check::{Check, CheckArguments, CheckOutput};
pub use cleanup::{
    Cleanup, CleanupArguments, CleanupOutput, CleanupUndo, CleanupUndoArguments, CleanupUndoOutput,
    KEEP_UNDO_DAYS, is_cleanup_archive,
};
pub use collect::{Collect, CollectArguments, CollectOutput};
pub use context::{
    BackupPlace, Catalogue, DatabaseRecord, JobContext, JobLedger, JobRecord, Services, StopReason,
    Stopping, UpkeepRecord,
};
pub use copy_data::{AT_SOURCE, CopyData, CopyDataArguments, CopyDataOutput, remove_artefact};
pub use diff::{Change, Diff, DiffArguments, DiffOutput, Difference, diff};
pub use extract::{ExtractRequest, READER_GONE, extract, extract_format};
pub use forget::{
    BY_REQUEST, Forget, ForgetArguments, ForgetOutput, Hold, HoldArguments, HoldOutput,
};
pub use health::{Health, HealthArguments, HealthOutput};
pub use hooks::Hooks;
pub use inspect::{Inspect, InspectArguments, InspectOutput, StreamOutput};
pub use kind::{DynKind, JobKind, Registry, UnknownKind};
pub use load::check_load;
pub use moments::{log_position, restorable};
pub use ping::{Ping, PingArguments, PingOutput};
pub use prove::{Prove, ProveArguments, ProveOutput};
pub use restore::{Restore, RestoreArguments, RestoreOutput};
pub use retention::{Retention, RetentionArguments, RetentionDecision, RetentionOutput};
pub use tune::{Tune, TuneArguments, TuneOutput};
pub use verify::{DamageOutput, Verify, VerifyArguments, VerifyOutput};

impl Registry {
    /// All job kinds of Fettler.
    #[must_use]
    pub fn standard() -> Self {
        Self::empty()
            .with(Archive)
            .with(Audit)
            .with(Backup)
            .with(Check)
            .with(Cleanup)
            .with(CleanupUndo)
            .with(Collect)
            .with(CopyData)
            .with(Diff)
            .with(Forget)
            .with(Health)
            .with(Hold)
            .with(Inspect)
            .with(Ping)
            .with(Prove)
            .with(Restore)
            .with(Retention)
            .with(Tune)
            .with(Verify)
    }
}
