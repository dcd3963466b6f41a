//! How long a server takes for an answer while it is read: asked over one connection that stays.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use fettler_engine::{EngineError, LatencyProbe, Target};

use crate::{client::Client, server::Server};

/// The words for what was being done.
const DOING: &str = "asking how long an answer takes";

/// See [`fettler_engine::DatabaseEngine::latency_probe`].
pub(crate) struct Probe(Client);

/// Connects.
pub(crate) async fn probe(target: &Target) -> Result<Option<Box<dyn LatencyProbe>>, EngineError> {
    let (session, _) = Client::of(target)?;
    // The first request has to connect.
    Server::of(&session).await?;
    Ok(Some(Box::new(Probe(session))))
}

#[async_trait]
impl LatencyProbe for Probe {
    async fn ask(&mut self) -> Result<Duration, EngineError> {
        let asked = Instant::now();
        self.0
            .get("/_cluster/health?local=true&filter_path=status", DOING)
            .await?;
        Ok(asked.elapsed())
    }
}
