//! The same through another Fettler (`--server`): the job is submitted over HTTP, and followed by its
//! events. A connection that is cut is opened again where it was.

use std::time::Duration;

use fettler_api::http::{Accepted, CancelAnswer, CancelWord};
use fettler_ledger::JobRecord;
use fettler_model::{JobId, Priority, Problem};
use serde_json::{Value, json};

use super::{Asked, Asks, LEFT_AT_ONCE, Signals, left};
use crate::{app::App, failure::Failure, progress::Follower, remote::Remote};

/// How long to wait before a stream is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// How often in a row a stream may bring nothing at all.
const MAX_SILENT_STREAMS: u32 = 30;

/// What Ctrl-C means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Whoever asked for the job: Ctrl-C cancels it.
    Owns,
    /// Somebody who looks on: Ctrl-C leaves it.
    Watches,
}

/// Submits a job.
pub(crate) async fn submit(app: &App, remote: &Remote, asked: &Asked) -> Result<Accepted, Failure> {
    let how = &asked.submission;
    let body = json!({
        "kind": asked.kind,
        "database": asked.database,
        "arguments": asked.arguments,
        "priority": how.priority.map(Priority::from).unwrap_or_default(),
        "not_before": how.not_before,
        "deadline": how.deadline,
        "max_tries": how.max_tries,
        "timeout_seconds": how.timeout,
        "unique": how.unique,
        "tags": how.job_tags,
    });
    let path = format!("/api/v1/jobs?tenant={}", app.tenant());
    remote.submit(&path, &body).await
}

/// Follows a job until it ends.
pub(crate) async fn follow(
    app: &App,
    remote: &Remote,
    job: JobId,
    title: &str,
    who: Who,
) -> Result<JobRecord, Failure> {
    let mut follower = Follower::new(app.output, title);
    let ended = until_its_end(remote, job, &mut follower, who).await;
    follower.finish();
    ended
}

async fn until_its_end(
    remote: &Remote,
    job: JobId,
    follower: &mut Follower,
    who: Who,
) -> Result<JobRecord, Failure> {
    let path = format!("/api/v1/jobs/{job}/events");
    let mut signals = Signals::listen()?;
    let mut record: JobRecord = remote.get(&format!("/api/v1/jobs/{job}")).await?;
    let mut after: Option<String> = None;
    let mut cancelled = false;
    let mut silent = 0;
    while !record.state.is_final() {
        follower.update(&record, None);
        let mut stream = match remote.events(&path, after.as_deref()).await {
            Ok(stream) => stream,
            Err(failure)
                if failure.problem.code == "server.unreachable" && silent < MAX_SILENT_STREAMS =>
            {
                silent += 1;
                tokio::time::sleep(REOPEN_AFTER).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let mut brought = false;
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                asks = signals.next() => {
                    match (who, asks, cancelled) {
                        (Who::Owns, Asks::Interrupt, false) => {
                            cancelled = true;
                            let path = format!("/api/v1/jobs/{job}/cancel");
                            let answer: CancelAnswer = remote.post(&path, &Value::Null).await?;
                            if answer.cancel == CancelWord::Requested {
                                follower.notice("The job is asked to stop; Ctrl-C again leaves without waiting.");
                            }
                        }
                        (Who::Owns, Asks::Interrupt, true) => {
                            let mut failure = left(&record, "cancellation was asked for");
                            LEFT_AT_ONCE.clone_into(&mut failure.problem.code);
                            return Err(failure);
                        }
                        _ => return Err(left(&record, "it goes on where it runs")),
                    }
                    continue;
                }
            };
            let Some(event) = event else { break };
            brought = true;
            after = event.id.or(after);
            if event.name == "job" {
                record = serde_json::from_str(&event.data).map_err(|error| {
                    Failure::from(Problem::permanent(
                        "server.answer",
                        format!("the other Fettler tells of the job what cannot be read: {error}"),
                        "see whether it is of this version or a newer one",
                    ))
                })?;
                follower.update(&record, None);
            }
        }
        if !record.state.is_final() {
            silent = if brought { 0 } else { silent + 1 };
            if silent > MAX_SILENT_STREAMS {
                return Err(left(&record, "the other side tells nothing of it"));
            }
            tokio::time::sleep(REOPEN_AFTER).await;
            record = remote.get(&format!("/api/v1/jobs/{job}")).await?;
        }
    }
    Ok(record)
}
