//! A job whose worker died is next run alone, in a process of its own (rule 7): if it kills that too, no
//! neighbour is harmed, and the ledger counts it against the job alone.
//!
//! The worker keeps its claim and its heartbeat; the child is told job and token, adopts the claim, and
//! reports the end itself. When it goes away without having done so, the worker reports that it died.
//! The child's standard input is open for as long as the worker lives: a child whose worker was killed
//! notices its end there, and hands the job back, which may be one that never ends by itself.

use std::{fmt, os::unix::process::ExitStatusExt, process::ExitStatus};

use fettler_model::{AttemptToken, JobId, Problem};
use tokio::process::Command;

/// Makes the command that runs one claimed job in a process of its own.
pub trait Isolate: Send + Sync + 'static {
    /// The command for this job and token: it is to end in [`crate::WorkerBuilder::adopt`], and to drain when its
    /// standard input ends.
    fn command(&self, job: JobId, token: AttemptToken) -> Command;
}

impl<F: Fn(JobId, AttemptToken) -> Command + Send + Sync + 'static> Isolate for F {
    fn command(&self, job: JobId, token: AttemptToken) -> Command {
        self(job, token)
    }
}

impl fmt::Debug for dyn Isolate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Isolate")
    }
}

/// What is said of a job whose own process went away without reporting an end.
pub(crate) fn died(status: ExitStatus) -> Problem {
    let how = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => "went away".to_owned(),
    };
    Problem::transient(
        "job.process_died",
        format!("the process of its own that the job ran in {how}"),
        "see whether the machine ran out of memory (`dmesg`); `fettler jobs show` tells what the job did last",
    )
}

/// What is said of a job for which no process could be started.
pub(crate) fn cannot_start(error: &std::io::Error) -> Problem {
    Problem::transient(
        "worker.isolation",
        format!("a process of its own could not be started for the job: {error}"),
        "see whether the machine has memory and process ids left",
    )
}
