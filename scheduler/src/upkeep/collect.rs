//! A collection a day for each tenant's part of each repository.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use fettler_ledger::{BackupFilter, Result};
use fettler_model::{BackupState, Priority};
use serde_json::json;

use super::submit_once;
use crate::{Shared, again_and_again, request::RequestOptions};

/// How often it is looked whether a new day has begun.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Submits collections, until dropped.
pub(crate) async fn collect_daily(shared: Arc<Shared>) {
    again_and_again("submitting collections", LOOK_EVERY, || collect(&shared)).await;
}

async fn collect(shared: &Shared) -> Result<()> {
    let today = shared
        .ledger
        .now()
        .await?
        .to_jiff()
        .strftime("%Y-%m-%d")
        .to_string();
    // Forgotten backups are what a collection is for.
    let filter = BackupFilter {
        states: vec![
            BackupState::Complete,
            BackupState::Damaged,
            BackupState::Vanished,
            BackupState::Forgotten,
        ],
        ..BackupFilter::default()
    };
    let parts: BTreeSet<_> = shared
        .ledger
        .backups(&filter)
        .await?
        .into_iter()
        .map(|record| (record.facts.tenant, record.place))
        .collect();
    for (tenant, place) in parts {
        submit_once(
            shared,
            &tenant,
            "collect",
            json!({"place": place}),
            RequestOptions {
                priority: Priority::Low,
                unique_key: Some(format!("collect:{place}")),
                ..RequestOptions::default()
            },
            format!("collect/{today}/{place}"),
        )
        .await?;
    }
    Ok(())
}
