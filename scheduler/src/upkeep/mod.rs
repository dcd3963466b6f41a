//! What keeps the fleet in order beside the policies' own jobs. Each duty is a service that starts and
//! stops by itself.

mod backups;
mod collect;
mod heartbeat;
mod history;
mod silence;

pub(crate) use backups::follow_backups;
pub(crate) use collect::collect_daily;
pub(crate) use heartbeat::tell_outside;
pub(crate) use history::prune_history;
pub(crate) use silence::silence;

use fettler_ledger::{Idempotency, Result};
use fettler_model::{JobRequest, TenantId};
use serde_json::Value;

use crate::{
    Shared,
    request::{RequestOptions, request},
};

/// Submits a job of upkeep, once for this key.
async fn submit_once(
    shared: &Shared,
    tenant: &TenantId,
    kind: &str,
    arguments: Value,
    options: RequestOptions,
    key: String,
) -> Result<()> {
    let request: JobRequest = match request(&shared.registry, tenant, kind, arguments, options) {
        Ok(request) => request,
        Err(error) => {
            tracing::error!(%tenant, kind, %error, "a job of upkeep cannot be made");
            return Ok(());
        }
    };
    let idempotency = Idempotency {
        key: format!("upkeep/{key}"),
        // Rules may have been edited since; the key alone says that it was submitted.
        request_hash: [0; 32],
    };
    let submitted = shared.ledger.submit(request, Some(idempotency)).await?;
    if !submitted.existing {
        tracing::info!(%tenant, job.kind = kind, job.id = %submitted.job, "a job of upkeep was submitted");
    }
    Ok(())
}
