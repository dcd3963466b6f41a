//! The heartbeat to the outside (rule 18): while the leader leads, reaches its ledger and is not behind with its
//! ticks, it asks a URL. Whoever watches that URL notices when nobody asks any more, also when the whole fleet is
//! gone and nothing of it can tell.

use std::{sync::Arc, time::Duration};

use fettler_telemetry::metric;

use crate::{Shared, tick::overdue};

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Asks the URL, where there is one, until dropped.
pub(crate) async fn tell_outside(shared: Arc<Shared>) {
    let Some(url) = &shared.options.heartbeat_url else {
        return std::future::pending().await;
    };
    let client = match reqwest::Client::builder().timeout(ANSWER_WITHIN).build() {
        Ok(client) => client,
        Err(error) => {
            let error = error.without_url();
            tracing::error!(%error, "no heartbeat can be sent outside");
            return std::future::pending().await;
        }
    };
    let mut every = tokio::time::interval(shared.options.heartbeat_every);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        every.tick().await;
        match overdue(&shared, shared.options.silent_after).await {
            Ok(late) if late.is_empty() => {}
            // Whoever watches outside is to hear of it: no heartbeat is the alarm.
            Ok(_) | Err(_) => {
                metrics::counter!(metric::HEARTBEATS_SENT, "outcome" => "withheld").increment(1);
                continue;
            }
        }
        let answer = client
            .get(url.expose())
            .send()
            .await
            .and_then(reqwest::Response::error_for_status);
        match answer {
            Ok(_) => {
                failing = false;
                metrics::counter!(metric::HEARTBEATS_SENT, "outcome" => "taken").increment(1);
            }
            Err(error) => {
                // The URL may hold a key (P9).
                let error = error.without_url();
                if failing {
                    tracing::debug!(%error, "the heartbeat outside still fails");
                } else {
                    tracing::warn!(%error, "the heartbeat outside was not taken");
                }
                failing = true;
                metrics::counter!(metric::HEARTBEATS_SENT, "outcome" => "failed").increment(1);
            }
        }
    }
}
