//! Commands of the user's that run before and after a job, on the worker's machine. They run in
//! `sh -c`; a failure or a time-out fails the job, and what they printed goes to the job's log.

use std::{process::Stdio, time::Duration};

use fettler_model::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, process::Command};

use crate::JobContext;

/// How long a hook may take when nothing is said.
const DEFAULT_TIMEOUT_SECONDS: u64 = 300;
/// How much of what a hook prints is kept.
const KEPT_OUTPUT_BYTES: u64 = 16 * 1024;

/// Commands around a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hooks {
    /// Runs before the source is touched; a failure fails the job.
    pub before: Option<String>,
    /// Runs after the work is durable; a failure fails the job, the work stays.
    pub after: Option<String>,
    /// Each hook is ended after this many seconds.
    pub timeout_seconds: Option<u64>,
}

impl Hooks {
    /// Runs the command that stands before the work, if there is one.
    ///
    /// # Errors
    ///
    /// When the command fails or takes too long, or the job is stopped meanwhile.
    pub async fn run_before(&self, context: &JobContext) -> Result<(), Problem> {
        self.run(context, "before", self.before.as_deref()).await
    }

    /// Runs the command that stands after the work, if there is one.
    ///
    /// # Errors
    ///
    /// When the command fails or takes too long, or the job is stopped meanwhile.
    pub async fn run_after(&self, context: &JobContext) -> Result<(), Problem> {
        self.run(context, "after", self.after.as_deref()).await
    }

    async fn run(
        &self,
        context: &JobContext,
        when: &str,
        command: Option<&str>,
    ) -> Result<(), Problem> {
        let Some(command) = command else {
            return Ok(());
        };
        let limit = Duration::from_secs(self.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS));
        let failed = |what: String| {
            Problem::permanent(
                "job.hook_failed",
                format!("the hook {when} the {} job {what}", context.job.kind),
                "see the job's log for what it printed, mend the command, and submit the job again",
            )
        };
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(command)
            .env("FETTLER_JOB", context.job.id.to_string())
            .env("FETTLER_JOB_KIND", context.job.kind.as_str())
            .env("FETTLER_TENANT", context.job.tenant.as_str())
            .env_remove("FETTLER_PASSPHRASE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(format!("could not be started: {error}")))?;
        let stdout = child.stdout.take().expect("the output is piped");
        let stderr = child.stderr.take().expect("the output is piped");
        let work = async {
            let (out, err, status) = tokio::join!(head_of(stdout), head_of(stderr), child.wait());
            (out + &err, status)
        };
        let (printed, status) = tokio::select! {
            // It has a time of its own.
            ended = context.progress.while_waiting(tokio::time::timeout(limit, work)) => ended.map_err(|_| {
                failed(format!("did not end within {} s and was stopped", limit.as_secs()))
            })?,
            () = context.stopping.token().cancelled() => return Err(context.stopping.problem()),
        };
        for line in printed.lines() {
            context.ledger.log(&format!("hook {when}: {line}")).await;
        }
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failed(format!("failed: {status}"))),
            Err(error) => Err(failed(format!("could not be waited for: {error}"))),
        }
    }
}

/// Reads all, so that the command never blocks, and keeps the beginning.
async fn head_of(mut pipe: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    // What cannot be read of a hook's output is no reason to fail its job.
    let _ = (&mut pipe)
        .take(KEPT_OUTPUT_BYTES)
        .read_to_end(&mut kept)
        .await;
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}
