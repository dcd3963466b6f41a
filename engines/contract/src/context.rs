//! What an engine is given beside the database: the attempt's name, the fence, checkpoints, the record
//! of what it makes outside, progress, limits.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use async_trait::async_trait;
use fettler_model::{AttemptToken, Engine, JobId};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{EngineError, ProgressMeter, RateLimit};

/// The name that an attempt's sessions carry in a database (rule 6): `fettler/<job>/<token>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptName {
    /// The job.
    pub job: JobId,
    /// The attempt's fencing token.
    pub token: AttemptToken,
}

impl fmt::Display for AttemptName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fettler/{}/{}", self.job.uuid().simple(), self.token)
    }
}

impl AttemptName {
    /// What the names of all attempts of this job begin with.
    #[must_use]
    pub fn prefix_of(job: JobId) -> String {
        format!("fettler/{}/", job.uuid().simple())
    }
}

impl FromStr for AttemptName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (job, token) = text
            .strip_prefix("fettler/")
            .and_then(|rest| rest.split_once('/'))
            .ok_or(())?;
        Ok(Self {
            job: job.parse().map_err(|_| ())?,
            token: AttemptToken::from_value(i64::from_str_radix(token, 16).map_err(|_| ())?),
        })
    }
}

/// Something that an attempt makes outside the ledger: a scratch database, a server process, a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Artefact {
    /// Whose it is.
    pub engine: Engine,
    /// What it is, in the engine's own words, such as `database`, `process`, `folder`.
    pub kind: String,
    /// Its name, which holds the attempt's name or is made from it.
    pub name: String,
    /// What the engine needs to remove it (a place, a process id); no secrets.
    pub data: serde_json::Value,
    /// Whether it is left to the job's next attempt when this one is lost or interrupted, which goes on with it
    /// (see [`Artefacts::left`]); otherwise it is removed with its attempt.
    #[serde(default)]
    pub until_job_ends: bool,
}

/// The record of what an attempt makes outside (rule 6).
#[async_trait]
pub trait Artefacts: Send + Sync {
    /// Records it, durably, before it is made. Recording the same engine, kind and name again replaces
    /// the data.
    async fn record(&self, artefact: &Artefact) -> Result<(), EngineError>;

    /// Says that it is gone.
    async fn removed(&self, artefact: &Artefact) -> Result<(), EngineError>;

    /// What earlier attempts of the job have left to this one, newest first. Recording one again makes it this
    /// attempt's own.
    async fn left(&self) -> Result<Vec<Artefact>, EngineError> {
        Ok(Vec::new())
    }

    /// Gives up something that was left: whoever can removes it.
    async fn give_up(&self, left: &Artefact) -> Result<(), EngineError> {
        let _nobody_kept_it = left;
        Ok(())
    }
}

/// Says whether this attempt still is the job's newest and its lease holds (P2).
#[async_trait]
pub trait Fence: Send + Sync {
    /// Waits while the lease is in doubt; an error when the attempt was superseded. Called before
    /// each durable effect. Cheap while the lease is fresh.
    async fn check(&self) -> Result<(), EngineError>;
}

/// What an attempt left for the next one (P3).
#[async_trait]
pub trait Checkpoints: Send + Sync {
    /// What the last attempt saved.
    async fn load(&self) -> Result<Option<serde_json::Value>, EngineError>;

    /// Saves, after what it speaks of is durable; refused when the attempt was superseded.
    async fn save(&self, checkpoint: serde_json::Value) -> Result<(), EngineError>;
}

/// A fence for work that nobody else can take up.
#[derive(Debug, Clone, Copy)]
pub struct Unfenced;

#[async_trait]
impl Fence for Unfenced {
    async fn check(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

/// No record and no checkpoints, for work that nobody takes up again.
#[derive(Debug, Clone, Copy)]
pub struct Unrecorded;

#[async_trait]
impl Artefacts for Unrecorded {
    async fn record(&self, _: &Artefact) -> Result<(), EngineError> {
        Ok(())
    }

    async fn removed(&self, _: &Artefact) -> Result<(), EngineError> {
        Ok(())
    }
}

#[async_trait]
impl Checkpoints for Unrecorded {
    async fn load(&self) -> Result<Option<serde_json::Value>, EngineError> {
        Ok(None)
    }

    async fn save(&self, _: serde_json::Value) -> Result<(), EngineError> {
        Ok(())
    }
}

/// What an engine's long calls are given.
#[derive(Clone)]
pub struct EngineContext {
    /// The attempt that works.
    pub attempt: AttemptName,
    /// Cancelled when the work is to stop soon, whether by request or because the worker drains.
    pub stop: CancellationToken,
    /// Where progress is counted.
    pub progress: Arc<ProgressMeter>,
    /// Asked before each durable effect.
    pub fence: Arc<dyn Fence>,
    /// Told what is made outside.
    pub artefacts: Arc<dyn Artefacts>,
    /// What the last attempt left, and where to leave something for the next.
    pub checkpoints: Arc<dyn Checkpoints>,
    /// The tenant's key for row hashes (rule 28).
    pub fingerprint_key: [u8; 32],
    /// The brake on reading.
    pub rate: Arc<RateLimit>,
    /// A folder for temporary files, which exists and belongs to this attempt.
    pub scratch: PathBuf,
    /// A folder of this machine for files that the job's next attempt is to find ([`Artefact::until_job_ends`]).
    pub kept: PathBuf,
    /// How many connections may work at once.
    pub parallel: usize,
}

impl fmt::Debug for EngineContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineContext")
            .field("attempt", &self.attempt)
            .field("scratch", &self.scratch)
            .field("parallel", &self.parallel)
            .finish_non_exhaustive()
    }
}

impl EngineContext {
    /// An error once the work is to stop.
    ///
    /// # Errors
    ///
    /// [`EngineError::Stopped`].
    pub fn check_stop(&self) -> Result<(), EngineError> {
        if self.stop.is_cancelled() {
            Err(EngineError::Stopped)
        } else {
            Ok(())
        }
    }
}
