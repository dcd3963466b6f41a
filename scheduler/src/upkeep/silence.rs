//! The watch for silence (P11): every scheduler looks, also those that do not lead, whether somebody leads
//! and whether what is due is decided. What should have run and did not is told as loudly as a failure.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use fettler_ledger::Result;
use fettler_model::{PolicyId, Timestamp};

use crate::{LEAD, Shared, tell_once, tick::overdue};

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Nobody may lead for this many times the lead's own duration.
const LEADERLESS_LEADS: u32 = 3;

#[derive(Default)]
struct Heard {
    leaderless_since: Option<Instant>,
    told_leaderless: bool,
    told_overdue: HashSet<(PolicyId, Timestamp)>,
}

/// Looks for silence, until dropped.
pub(crate) async fn silence(shared: Arc<Shared>) {
    let mut heard = Heard::default();
    let mut failing = false;
    loop {
        match look(&shared, &mut heard).await {
            Ok(()) => failing = false,
            Err(error) => tell_once(&mut failing, "watching for silence", &error),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(shared: &Shared, heard: &mut Heard) -> Result<()> {
    if shared.ledger.leader(LEAD).await?.is_some() {
        if heard.told_leaderless {
            tracing::info!("a scheduler leads again");
        }
        heard.leaderless_since = None;
        heard.told_leaderless = false;
    } else {
        let since = *heard.leaderless_since.get_or_insert_with(Instant::now);
        let allowed = shared.options.lead * LEADERLESS_LEADS;
        if since.elapsed() > allowed && !heard.told_leaderless {
            heard.told_leaderless = true;
            tracing::error!(
                seconds = since.elapsed().as_secs(),
                "no scheduler leads: no policy becomes a job"
            );
        }
    }
    let late = overdue(shared, shared.options.silent_after).await?;
    let now: HashSet<_> = late
        .iter()
        .filter_map(|policy| policy.next_due.map(|due| (policy.id, due)))
        .collect();
    for policy in &late {
        let Some(due) = policy.next_due else { continue };
        if !heard.told_overdue.contains(&(policy.id, due)) {
            tracing::error!(
                policy = %policy.name,
                tenant = %policy.tenant,
                %due,
                "the policy should have run and did not"
            );
        }
    }
    heard.told_overdue = now;
    Ok(())
}
