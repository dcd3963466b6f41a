//! The balancer, which moves chunks between shards. It stands still while a backup runs, and is started again where it ran before:
//! by the backup itself, or by rescue when its worker died.

use bson::{RawDocument, rawdoc};
use fettler_engine::{Artefact, EngineContext, EngineError};
use fettler_model::Engine;

use crate::{params::Params, session::Session};

/// What its record is called.
pub(crate) const KIND: &str = "balancer";
/// How long the server may take to end a move that has begun, in milliseconds.
const PATIENCE: i64 = 120_000;

/// A balancer that was stopped.
pub(crate) struct Stopped(Artefact);

/// Stops the balancer of a router's cluster; nothing where it is off already.
pub(crate) async fn stop(
    context: &EngineContext,
    params: &Params,
    session: &mut Session,
) -> Result<Option<Stopped>, EngineError> {
    let doing = "asking whether chunks are moved between shards";
    let status = session
        .run("admin", rawdoc! { "balancerStatus": 1 }, doing)
        .await?;
    if !is_on(&status) {
        return Ok(None);
    }
    let artefact = Artefact {
        engine: Engine::Mongodb,
        kind: KIND.to_owned(),
        name: format!("{} {}", context.attempt, params.server()),
        data: serde_json::json!({ "was": "on" }),
        until_job_ends: false,
    };
    context.artefacts.record(&artefact).await?;
    let stop = rawdoc! { "balancerStop": 1, "maxTimeMS": PATIENCE };
    session.run("admin", stop, "stopping the balancer").await?;
    Ok(Some(Stopped(artefact)))
}

impl Stopped {
    /// Starts it again.
    pub(crate) async fn start(
        self,
        context: &EngineContext,
        params: &Params,
    ) -> Result<(), EngineError> {
        start(&mut Session::visit(params).await?).await?;
        context.artefacts.removed(&self.0).await
    }
}

/// Starts a balancer.
pub(crate) async fn start(session: &mut Session) -> Result<(), EngineError> {
    session
        .run(
            "admin",
            rawdoc! { "balancerStart": 1 },
            "starting the balancer again",
        )
        .await
        .map(drop)
}

/// Whether it may move anything: `mode` is `full`, `autoSplitOnly` (before 6.1) or `off`.
fn is_on(status: &RawDocument) -> bool {
    status.get_str("mode").is_ok_and(|mode| mode == "full")
        || status.get_bool("inBalancerRound").unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_on_where_it_may_move_or_does() {
        let on = |mode: &str, in_round: bool| {
            is_on(
                &rawdoc! { "mode": mode, "inBalancerRound": in_round, "numBalancerRounds": 7_i64 },
            )
        };
        assert!(on("full", false) && on("off", true));
        assert!(!on("off", false) && !on("autoSplitOnly", false));
    }
}
