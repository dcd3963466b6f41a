//! `ping`: asks a database who it is, and says how long the answer took. The smallest of all jobs: it shows that a worker
//! reaches the database with the credentials that the record names.

use std::time::Instant;

use async_trait::async_trait;
use fettler_model::{ExclusionClass, Problem, SlotClass};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{JobContext, JobKind};

/// The kind.
#[derive(Debug, Clone, Copy)]
pub struct Ping;

/// What a ping takes: nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PingArguments {}

/// What a ping found.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PingOutput {
    /// The database engine.
    pub engine: String,
    /// The server's version, as it writes it.
    pub version: String,
    /// About how many bytes the database holds.
    pub bytes: u64,
    /// How long connecting and asking took.
    pub milliseconds: f64,
}

#[async_trait]
impl JobKind for Ping {
    const NAME: &'static str = "ping";
    const EXCLUSION: ExclusionClass = ExclusionClass::Free;
    const SLOT: SlotClass = SlotClass::Short;
    type Arguments = PingArguments;
    type Output = PingOutput;

    async fn run(
        &self,
        context: &JobContext,
        PingArguments {}: PingArguments,
    ) -> Result<PingOutput, Problem> {
        let database = context.database().await?;
        let target = context
            .target(&database.url, database.password.as_ref())
            .await?;
        let engine = fettler_engines::engine(database.url.engine());
        let asked = Instant::now();
        let identity = engine
            .identify(&target)
            .await
            .map_err(|error| context.problem(error))?;
        Ok(PingOutput {
            engine: identity.engine.as_str().to_owned(),
            version: identity.version,
            bytes: identity.estimated_bytes,
            milliseconds: asked.elapsed().as_secs_f64() * 1000.0,
        })
    }
}
