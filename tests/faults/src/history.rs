//! What the ledger recorded of a run, replayed against the models of the protocols: a step that they do not allow is a
//! violation, whatever became of the jobs.

use std::time::Duration;

use fettler_ledger::Ledger;
use fettler_model::JobId;
use fettler_models::replay::{History, Replayed, replay};

use crate::{Result, Trouble, check::Findings, fleet::Fleet, load::Accepted};

/// By how much the times of transactions may be out of order: one reads the ledger's clock before it waits for rows, and the
/// process that holds these may be stopped, or its line, for as long as a plan says.
const SLACK: Duration = Duration::from_secs(10);

/// Replays the run of a fleet that writes no more.
///
/// # Errors
///
/// When the ledger does not answer.
pub fn check(
    fleet: &Fleet<'_>,
    accepted: &[Accepted],
    findings: &mut Findings,
) -> Result<Option<Replayed>> {
    let unreadable = |error| Trouble::unreadable("the ledger's history", error);
    let url = fleet
        .ledger
        .url_as("fleet", &fleet.servers.secrets.ledger_password);
    let mut history = fleet
        .servers
        .wait_for(async {
            let ledger = Ledger::open(&url).await?;
            History::read(&ledger, SLACK).await
        })
        .map_err(unreadable)?;
    for job in accepted {
        let id: Result<JobId, _> = job.id.parse();
        history
            .accepted
            .push(id.map_err(|error| Trouble::unreadable("a job's id", error))?);
    }
    match replay(&history) {
        Ok(replayed) => Ok(Some(replayed)),
        Err(refused) => {
            findings.wrong(refused.promise, format!("the models refuse it: {refused}"));
            Ok(None)
        }
    }
}
