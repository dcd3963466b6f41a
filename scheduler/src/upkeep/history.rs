//! Keeps the history of ended jobs within its age and its size.

use std::{sync::Arc, time::Duration};

use crate::{Shared, again_and_again};

/// How often the history is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Prunes the history, until dropped.
pub(crate) async fn prune_history(shared: Arc<Shared>) {
    again_and_again("pruning the history", LOOK_EVERY, || async {
        let options = &shared.options;
        loop {
            let removed = shared
                .ledger
                .prune_history(options.history_kept, options.history_bytes)
                .await?;
            if removed == 0 {
                return Ok(());
            }
            tracing::info!(removed, "old jobs were removed from the history");
        }
    })
    .await;
}
