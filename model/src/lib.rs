//! The words that all rooms of Fettler share: ids, times, secrets, jobs, policies, backups,
//! findings and problems. There is no I/O here and nothing that knows how a word is stored or sent.

mod access;
mod backup;
mod change_log;
mod cleanup;
mod finding;
mod id;
mod job;
mod load;
mod policy;
mod problem;
mod scope;
mod secret;
mod target;
mod time;
mod tuning;
mod wait;
mod window;

pub use access::Role;
pub use backup::{
    BackupFacts, BackupState, Fingerprint, KeepRules, ObjectFacts, ObjectKind, ProofFacts,
    ProofVerdict, Warning,
};
pub use change_log::{
    Base, Gap, GapCause, LogMoment, LogPosition, LogSpan, LogUnit, MOMENT_TOLERANCE, NoMoment,
    Plan, Restorable, Stretch, Timeline,
};
pub use cleanup::{
    CleanupAction, CleanupItem, CleanupPlan, CleanupRefusal, CleanupRemoved, CleanupUndone,
    Referenced,
};
pub use finding::{
    Area, Dimension, Finding, FindingChange, FindingStep, Fix, Protection, RecordedFindings,
    Severity, Status, UnknownWord,
};
pub use id::{
    AttemptToken, BackupId, DatabaseId, DatabaseName, InvalidName, JobId, JobKindName, PolicyId,
    PolicyName, TenantId, TokenId, TokenName,
};
pub use job::{
    AttemptOutcome, ExclusionClass, JobRequest, JobState, JobTerms, Priority, Progress, SlotClass,
};
pub use load::{LoadLimits, ServerLoad};
pub use policy::{CatchUp, Overlap, PolicySpec, ProveEvery, TickOutcome, Window};
pub use problem::{ErrorClass, Problem};
pub use scope::{InvalidScope, Scope};
pub use secret::{InvalidReference, Secret, SecretReference};
pub use target::{DatabaseUrl, Engine, InvalidUrl, SENTINEL_PORT};
pub use time::Timestamp;
pub use tuning::{
    ActionKind, Compared, Expectation, JudgedBy, Measurement, StatementTime, TuningAction,
    TuningRecord, TuningState,
};
pub use wait::WaitReason;
pub use window::{ClockWindow, InvalidWindow, JobWindow};
