//! Settings in layers, with the place of every value and of every mistake, and references to secrets.
//!
//! [`load`] reads defaults, `fettler.toml` (or YAML), the overlay of an environment, the overlay of a
//! tenant, environment variables and flags into one [`Settings`]. What a field means, which values it
//! takes and what it is when nothing is said stands in `settings.rs` and nowhere else.
//!
//! Documents are read by parsers that keep places instead of by a ready-made layering library, because
//! those tell the file of a value but not its line, and stop at the first mistake.

mod document;
mod layers;
mod mistake;
mod schema;
mod secrets;
mod settings;
mod show;

pub use document::{Origin, Source};
pub use layers::{Flag, Loaded, Sources, load};
pub use mistake::{ConfigError, Mistake};
pub use secrets::{Resolved, SealedSecrets, SecretError, resolve};
pub use settings::{
    AllowSettings, ApiSettings, DenySettings, KeyChoice, KeySettings, LedgerSettings, LogFormat,
    LogSettings, Network, QueueSettings, RepositorySettings, RetentionSettings, SandboxKind,
    SandboxSettings, SchedulerSettings, Settings, TraceSettings, WorkerSettings,
};
pub use show::Shown;
