//! From a command to a finished job. The job is a row in the ledger like every other. Where a `fettler
//! up` runs in the folder, it is woken and the job is watched; otherwise a worker in this process runs
//! this very job, and ends with it.

mod there;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fettler_api::ClientError;
use fettler_jobs::{Registry, Services};
use fettler_ledger::{CancelOutcome, JobFilter, JobRecord, Ledger};
use fettler_model::{
    AttemptToken, DatabaseId, ErrorClass, JobId, JobRequest, JobState, JobTerms, Priority,
};
use fettler_worker::{LiveProgress, Slots, Timing, WorkerBuilder, WorkerError};
use tokio::{signal::unix::SignalKind, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    args::SubmissionArgs,
    failure::{Exit, Failure},
    folder::AdHoc,
    progress::Follower,
};

/// How often a watched job is looked at. Only what is shown depends on it.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a process that runs the job is asked whether it lives.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How often a worker of this process writes progress: it is the one who shows it.
const OWN_HEARTBEAT: Duration = Duration::from_secs(1);
/// At most so many jobs of killed commands are taken up at once.
const MAX_TAKEN_UP: usize = 16;

/// How often in a row the ledger may fail to answer a look, as it may while it is busy.
const MAX_BLIND_LOOKS: u32 = 50;
/// The problem of a command that did not even wait for its job to stop.
const LEFT_AT_ONCE: &str = "cli.left_at_once";

/// What a command asks for.
pub(crate) struct Asked {
    pub(crate) kind: &'static str,
    pub(crate) database: Option<DatabaseId>,
    pub(crate) arguments: serde_json::Value,
    /// How it is to be done.
    pub(crate) submission: SubmissionArgs,
    /// What is being done, for the reader of the progress.
    pub(crate) title: String,
}

impl Asked {
    /// About a repository and no database.
    pub(crate) fn about(
        kind: &'static str,
        arguments: &impl serde::Serialize,
        title: String,
    ) -> Self {
        Self {
            kind,
            database: None,
            arguments: serde_json::to_value(arguments).expect("arguments are plain data"),
            submission: SubmissionArgs::default(),
            title,
        }
    }
}

/// How a job was submitted, and who runs it.
pub(crate) struct Begun {
    pub(crate) job: JobId,
    title: String,
    /// Set where this process runs the job.
    mark: Option<AdHoc>,
}

/// Whether a process runs this folder.
pub(crate) async fn is_up(app: &App) -> bool {
    match app.socket().health().await {
        Ok(health) => {
            tracing::debug!(process = health.process, "the folder is run by a process");
            true
        }
        Err(error) => {
            // Somebody who listens and answers badly may still run jobs.
            matches!(error, ClientError::BadAnswer { .. })
        }
    }
}

/// A request as the ledger takes it.
pub(crate) fn request(
    app: &App,
    asked: &Asked,
    unique_key: Option<String>,
) -> Result<JobRequest, Failure> {
    let registry = Registry::standard();
    let kind = registry
        .get(asked.kind)
        .map_err(|error| Failure::usage(error.to_string(), "`fettler kinds` lists them"))?;
    kind.check_arguments(&asked.arguments)?;
    let how = &asked.submission;
    Ok(JobRequest {
        tenant: app.tenant().clone(),
        kind: kind.name(),
        kind_version: kind.version(),
        database: asked.database,
        arguments: asked.arguments.clone(),
        exclusion: kind.exclusion(),
        slot: kind.slot(),
        priority: how.priority.map(Priority::from).unwrap_or_default(),
        not_before: how.not_before,
        deadline: how.deadline,
        max_tries: how.max_tries.unwrap_or_else(|| kind.max_tries()),
        unique_key: unique_key.or_else(|| how.unique.clone()),
        retry_of: None,
        tags: how.job_tags.clone(),
        terms: JobTerms {
            timeout_seconds: how.timeout,
            ..JobTerms::default()
        },
    })
}

/// Submits a job and leaves it to `fettler up`.
pub(crate) async fn detach(app: &App, asked: &Asked) -> Result<Exit, Failure> {
    let (job, existing, runs) = if let Some(remote) = app.remote() {
        let accepted = there::submit(app, remote, asked).await?;
        (accepted.id, accepted.existing, true)
    } else {
        let request = request(app, asked, None)?;
        let submitted = app.ledger().await?.submit(request, None).await?;
        let runs = is_up(app).await;
        app.push(submitted.job).await?;
        (submitted.job, submitted.existing, runs)
    };
    app.output.result(
        &serde_json::json!({ "job": job, "kind": asked.kind, "state": "queued", "existing": existing }),
        || {
            let short = job.short();
            if existing {
                format!("Job {short} has this key and has not ended: no other one was made.")
            } else if runs {
                format!("Job {short} is submitted; `fettler jobs watch {short}` follows it.")
            } else {
                format!("Job {short} is queued, and runs once `fettler up` runs in this folder, or a worker of the fleet.")
            }
        },
    );
    Ok(Exit::Done)
}

/// Submits a job and sees it through.
pub(crate) async fn run(app: &App, asked: &Asked) -> Result<JobRecord, Failure> {
    if let Some(remote) = app.remote() {
        let job = there::submit(app, remote, asked).await?.id;
        return succeeded(there::follow(app, remote, job, &asked.title, there::Who::Owns).await?);
    }
    let begun = submit(app, asked).await?;
    follow(app, begun).await
}

/// Submits a job.
pub(crate) async fn submit(app: &App, asked: &Asked) -> Result<Begun, Failure> {
    let ledger = app.ledger().await?;
    let mark = if is_up(app).await {
        None
    } else {
        Some(AdHoc::begin(&app.settings().folder)?)
    };
    let key = mark.as_ref().map(AdHoc::key);
    let submitted = ledger.submit(request(app, asked, key)?, None).await?;
    tracing::info!(job.id = %submitted.job, job.kind = asked.kind, "submitted a job");
    Ok(Begun {
        job: submitted.job,
        title: asked.title.clone(),
        mark,
    })
}

/// Sees a submitted job through to its end.
pub(crate) async fn follow(app: &App, begun: Begun) -> Result<JobRecord, Failure> {
    let mut follower = Follower::new(app.output, &begun.title);
    let ended = if begun.mark.is_some() {
        follow_here(app, begun.job, &mut follower).await
    } else {
        follow_there(app, begun.job, &mut follower).await
    };
    follower.finish();
    drop(begun.mark);
    succeeded(ended?)
}

/// The result of a job that ended well; the failure of one that did not.
pub(crate) fn succeeded(job: JobRecord) -> Result<JobRecord, Failure> {
    match (job.state, job.problem.clone()) {
        (JobState::Succeeded, _) => Ok(job),
        (_, Some(problem)) => Err(Failure {
            exit: Exit::Failed,
            problem,
        }),
        (state, None) => Err(Failure {
            exit: Exit::Failed,
            problem: fettler_model::Problem::permanent(
                format!("job.{state}"),
                format!("job {} is {state}", job.id.short()),
                format!("`fettler jobs retry {}` does it again", job.id.short()),
            ),
        }),
    }
}

/// A worker in this process.
struct OwnWorker {
    task: JoinHandle<Result<(), WorkerError>>,
    stop: CancellationToken,
    live: LiveProgress,
}

/// A worker as the settings have it.
pub(crate) async fn worker(app: &App) -> Result<WorkerBuilder, Failure> {
    let settings = app.settings();
    let ledger = app.ledger().await?.clone();
    let services: Arc<dyn Services> = app.services().await?.clone();
    let name = process_name(app);
    let url = settings.ledger_url();
    let config = app.sources.file.clone();
    // The process of its own must find the same settings: it is given the same options.
    let options: Vec<String> = app
        .sources
        .flags
        .iter()
        .flat_map(|flag| [flag.name.to_owned(), crate::output::plain(&flag.value)])
        .collect();
    let isolate = move |job: JobId, token: AttemptToken| {
        let program = std::env::current_exe().unwrap_or_else(|_| "fettler".into());
        let mut command = tokio::process::Command::new(program);
        command
            .arg("worker")
            .arg("--only")
            .arg(job.to_string())
            .arg("--token")
            .arg(token.value().to_string())
            .args(&options)
            .kill_on_drop(true);
        if let Some(file) = &config {
            command.arg("--config").arg(file);
        }
        command
    };
    let worker = WorkerBuilder::new(&name, ledger, Arc::new(Registry::standard()), services)
        .heartbeat_over(&url, fettler_ledger::LedgerOptions::default())
        .slots(Slots {
            long: settings.worker.long_slots as usize,
            short: settings.worker.short_slots as usize,
        })
        .timing(timing(app))
        .labels(labels(app)?)
        .isolate(isolate);
    Ok(match app.queue().await? {
        Some(queue) => worker.queue(queue),
        None => worker,
    })
}

/// This worker's labels, as the settings have them.
pub(crate) fn labels(app: &App) -> Result<BTreeMap<String, String>, Failure> {
    app.settings()
        .worker
        .labels
        .iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                Ok((name.to_owned(), value.to_owned()))
            }
            _ => Err(Failure::usage(
                format!("{word:?} in the setting worker.labels is no label"),
                "write it as NAME=VALUE, such as `zone=dmz`",
            )),
        })
        .collect()
}

/// The worker's times, as the settings have them.
pub(crate) fn timing(app: &App) -> Timing {
    let worker = &app.settings().worker;
    let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
    Timing {
        lease: seconds(worker.lease_seconds),
        heartbeat: seconds(worker.heartbeat_seconds),
        drain: seconds(worker.drain_seconds),
        stall: (worker.stall_minutes > 0).then(|| seconds(worker.stall_minutes * 60)),
        ..Timing::default()
    }
}

/// The name of this process in listings.
pub(crate) fn process_name(app: &App) -> String {
    if let Some(name) = &app.settings().worker.name {
        return name.clone();
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_else(|| "worker".to_owned());
    format!("{name}-{}", std::process::id())
}

impl OwnWorker {
    async fn start(app: &App, jobs: Vec<JobId>) -> Result<Self, Failure> {
        let usual = timing(app);
        let worker = worker(app)
            .await?
            .timing(Timing {
                heartbeat: usual.heartbeat.min(OWN_HEARTBEAT),
                ..usual
            })
            .only(jobs)
            .build();
        let live = worker.live_progress();
        let stop = CancellationToken::new();
        let task = tokio::spawn(worker.run(stop.clone()));
        Ok(Self { task, stop, live })
    }

    /// Waits for its end, after everything that it reports was reported.
    async fn end(self) -> Result<(), Failure> {
        match self.task.await {
            Ok(ended) => Ok(ended?),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

/// What the user's signals ask for.
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

/// A signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// Ctrl-C.
    Interrupt,
    /// Somebody stops the process.
    Terminate,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let failed = |error| Failure::local("signals cannot be listened to", &error);
        Ok(Self {
            interrupt: tokio::signal::unix::signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: tokio::signal::unix::signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// The next signal. Cancellation safe.
    pub(crate) async fn next(&mut self) -> Asks {
        tokio::select! {
            _ = self.interrupt.recv() => Asks::Interrupt,
            _ = self.terminate.recv() => Asks::Terminate,
        }
    }
}

/// Runs the job in this process, and with it what killed commands left.
async fn follow_here(app: &App, job: JobId, follower: &mut Follower) -> Result<JobRecord, Failure> {
    let ledger = app.ledger().await?;
    let mut jobs = vec![job];
    for left in left_behind(app, ledger).await? {
        follower.notice(&format!(
            "A {} job ({}) was left by a command that was killed; it is taken up here.",
            left.kind,
            left.id.short()
        ));
        jobs.push(left.id);
    }
    let others = jobs.len() > 1;
    let worker = OwnWorker::start(app, jobs.clone()).await?;
    let live = worker.live.clone();
    let watched = watch(app, job, follower, Some(&worker.stop), Some(&live)).await;
    if let Err(failure) = &watched {
        worker.stop.cancel();
        if failure.problem.code == LEFT_AT_ONCE {
            return watched;
        }
    } else if others {
        follow_others(app, &jobs[1..], follower, &worker.stop, &live).await?;
    }
    let ended = worker.end().await;
    let record = watched?;
    ended?;
    Ok(record)
}

/// Jobs of commands that were killed.
async fn left_behind(app: &App, ledger: &Ledger) -> Result<Vec<JobRecord>, Failure> {
    let live = ledger
        .jobs(&JobFilter {
            states: vec![JobState::Queued, JobState::Running],
            limit: 1000,
            ..JobFilter::default()
        })
        .await?;
    Ok(live
        .into_iter()
        .filter(|job| AdHoc::is_orphaned(&app.settings().folder, job.unique_key.as_deref()))
        .take(MAX_TAKEN_UP)
        .collect())
}

/// Waits for jobs that were taken up beside the command's own. A signal hands them back.
async fn follow_others(
    app: &App,
    jobs: &[JobId],
    follower: &mut Follower,
    stop: &CancellationToken,
    live: &LiveProgress,
) -> Result<(), Failure> {
    let ledger = app.ledger().await?;
    let mut signals = Signals::listen()?;
    for job in jobs {
        loop {
            let record = ledger.job(*job).await?;
            if record.state.is_final() {
                follower.notice(&format!(
                    "The {} job {} that was taken up is {}.",
                    record.kind,
                    record.id.short(),
                    record.state
                ));
                break;
            }
            follower.update(&record, live(*job));
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = signals.next() => {
                    follower.notice("What was taken up is handed back; the next command goes on with it.");
                    stop.cancel();
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Watches a job that the process runs which runs the folder; runs it here when that one has gone.
async fn follow_there(
    app: &App,
    job: JobId,
    follower: &mut Follower,
) -> Result<JobRecord, Failure> {
    let gone = async {
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            if !is_up(app).await {
                // A restart takes a moment; it is no reason to take the job away.
                tokio::time::sleep(ASK_EVERY).await;
                if !is_up(app).await {
                    return;
                }
            }
        }
    };
    {
        let watched = watch(app, job, follower, None, None);
        tokio::select! {
            watched = watched => return watched,
            () = gone => {}
        }
    }
    follower.notice("The process that ran `fettler up` is gone; the job goes on here.");
    follow_here(app, job, follower).await
}

/// Looks at a job until it has ended. The first Ctrl-C cancels the job, the second leaves it.
async fn watch(
    app: &App,
    job: JobId,
    follower: &mut Follower,
    own_worker: Option<&CancellationToken>,
    live: Option<&LiveProgress>,
) -> Result<JobRecord, Failure> {
    let ledger = app.ledger().await?;
    let socket = app.socket();
    let mut signals = Signals::listen()?;
    let mut cancelled = false;
    let mut blind_looks = 0;
    loop {
        let record = match ledger.job(job).await {
            Ok(record) => record,
            Err(error)
                if error.class() == ErrorClass::Transient && blind_looks < MAX_BLIND_LOOKS =>
            {
                blind_looks += 1;
                tracing::debug!(%error, "the job could not be looked at");
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        blind_looks = 0;
        if record.state.is_final() {
            return Ok(record);
        }
        let progress = match live {
            Some(live) => live(job),
            // The other process knows more than it has written so far.
            None if record.state == JobState::Running => socket
                .job(job)
                .await
                .ok()
                .and_then(|record| record.progress),
            None => None,
        };
        follower.update(&record, progress);
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            asks = signals.next() => match (asks, cancelled) {
                (Asks::Interrupt, false) => {
                    cancelled = true;
                    if ledger.request_cancel(job).await? == CancelOutcome::Requested {
                        follower.notice("The job is asked to stop; Ctrl-C again leaves without waiting.");
                    }
                }
                (Asks::Interrupt, true) => {
                    let mut failure = left(&record, "cancellation was asked for");
                    LEFT_AT_ONCE.clone_into(&mut failure.problem.code);
                    return Err(failure);
                }
                (Asks::Terminate, _) => {
                    let how = if own_worker.is_some() {
                        "it is handed back, and the next command in this folder goes on with it"
                    } else {
                        "it goes on in the process that runs the folder"
                    };
                    return Err(left(&record, how));
                }
            }
        }
    }
}

fn left(job: &JobRecord, how: &str) -> Failure {
    Failure {
        exit: Exit::Failed,
        problem: fettler_model::Problem::permanent(
            "cli.left",
            format!("job {} was left before its end: {how}", job.id.short()),
            format!(
                "`fettler jobs show {}` tells what came of it",
                job.id.short()
            ),
        ),
    }
}

/// Follows a job that is there already, whoever runs it: for `fettler jobs watch`.
pub(crate) async fn watch_only(app: &App, job: JobId, title: &str) -> Result<JobRecord, Failure> {
    if let Some(remote) = app.remote() {
        return there::follow(app, remote, job, title, there::Who::Watches).await;
    }
    let mut follower = Follower::new(app.output, title);
    let ledger = app.ledger().await?;
    let socket = app.socket();
    let mut signals = Signals::listen()?;
    let ended = loop {
        let record = match ledger.job(job).await {
            Ok(record) => record,
            Err(error) => break Err(error.into()),
        };
        if record.state.is_final() {
            break Ok(record);
        }
        let progress = match record.state {
            JobState::Running => socket
                .job(job)
                .await
                .ok()
                .and_then(|record| record.progress),
            _ => None,
        };
        follower.update(&record, progress);
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            // Watching is not owning: the job goes on.
            _ = signals.next() => break Err(left(&record, "it goes on where it runs")),
        }
    };
    follower.finish();
    ended
}
