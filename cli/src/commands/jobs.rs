//! `fettler jobs`: what was asked for, what runs, what waits and why (P12), and what came of it.

use std::{collections::HashMap, time::Duration};

use fettler_ledger::{CancelOutcome, JobFilter, JobRecord};
use fettler_model::{
    DatabaseId, JobId, JobState, JobTerms, Priority, Problem, Progress, TenantId, Timestamp,
    WaitReason,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    app::App,
    args::{JobArg, JobsArgs, JobsCommand, JobsListArgs, JobsMatchArgs},
    desk::Desk,
    failure::{Exit, Failure, Outcome},
    output::{pairs, table},
    run, select, units,
};

/// Without `--all`, jobs that ended longer ago are not listed.
const RECENT: Duration = Duration::from_secs(24 * 3600);
/// So many lines of a job's log are shown to people; the document has all.
const SHOWN_LINES: usize = 30;

/// A job; the fields of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    id: JobId,
    kind: String,
    state: JobState,
    tenant: TenantId,
    database: Option<String>,
    submitted: Timestamp,
    started: Option<Timestamp>,
    ended: Option<Timestamp>,
    /// Why it waits, while it is queued (P12).
    wait: Option<WaitReason>,
    /// The same in words.
    wait_text: Option<String>,
    /// What would end the wait, in words.
    wait_ends: Option<String>,
    /// When the wait ends by itself, where a time ends it.
    wait_until: Option<Timestamp>,
    priority: Priority,
    /// The moment after which it is not started any more.
    deadline: Option<Timestamp>,
    terms: JobTerms,
    progress: Option<Progress>,
    attempts: u32,
    tries: u32,
    max_tries: u32,
    worker: Option<String>,
    cancel_requested: Option<Timestamp>,
    retry_of: Option<JobId>,
    tags: Vec<String>,
    arguments: Value,
    result: Option<Value>,
    problem: Option<Problem>,
}

impl Shown {
    fn of(job: JobRecord, names: &HashMap<DatabaseId, String>) -> Self {
        Self {
            id: job.id,
            kind: job.kind.to_string(),
            state: job.state,
            tenant: job.tenant,
            database: job
                .database
                .map(|id| names.get(&id).cloned().unwrap_or_else(|| id.to_string())),
            submitted: job.submitted,
            started: job.started,
            ended: job.ended,
            wait_text: job.wait.as_ref().map(ToString::to_string),
            wait_ends: job.wait.as_ref().map(WaitReason::ends_when),
            wait_until: job.wait.as_ref().and_then(WaitReason::until),
            priority: job.priority,
            deadline: job.deadline,
            terms: job.terms,
            wait: job.wait,
            progress: job.progress,
            attempts: job.attempt,
            tries: job.tries,
            max_tries: job.max_tries,
            worker: job.worker,
            cancel_requested: job.cancel_requested,
            retry_of: job.retry_of,
            tags: job.tags,
            arguments: job.arguments,
            result: job.result,
            problem: job.problem,
        }
    }

    /// What there is to say beside the state.
    fn remark(&self) -> String {
        match (self.state, &self.wait_text, &self.progress, &self.problem) {
            (JobState::Queued, Some(why), _, _) => why.clone(),
            (JobState::Running, _, _, _) if self.cancel_requested.is_some() => {
                "asked to stop".to_owned()
            }
            (JobState::Running, _, Some(progress), _) => {
                let of = if progress.bytes_total > 0 {
                    format!(" of {}", units::size(progress.bytes_total))
                } else {
                    String::new()
                };
                format!("{} {}{of}", progress.phase, units::size(progress.bytes))
            }
            (JobState::Dead, _, _, Some(problem)) => problem.what.clone(),
            _ => String::new(),
        }
    }
}

pub(crate) async fn run(app: &App, args: &JobsArgs) -> Outcome {
    match &args.command {
        None => list(app, &args.list).await,
        Some(JobsCommand::Show(arg)) => show(app, arg).await,
        Some(JobsCommand::Watch(arg)) => watch(app, arg).await,
        Some(JobsCommand::Cancel(args)) => match &args.job {
            Some(job) => cancel(app, &JobArg { job: job.clone() }).await,
            None => cancel_matching(app, &args.matching).await,
        },
        Some(JobsCommand::Retry(arg)) => retry(app, arg).await,
        Some(JobsCommand::Replay(args)) => replay(app, args).await,
        Some(JobsCommand::Priority { job, level }) => {
            priority(app, &JobArg { job: job.clone() }, (*level).into()).await
        }
    }
}

async fn names(app: &App, desk: &Desk<'_>) -> Result<HashMap<DatabaseId, String>, Failure> {
    Ok(desk
        .databases(app.tenant())
        .await?
        .into_iter()
        .map(|record| (record.id, record.name.to_string()))
        .collect())
}

async fn find(app: &App, desk: &Desk<'_>, arg: &JobArg) -> Result<JobRecord, Failure> {
    desk.find_job(app.tenant(), &arg.job).await
}

async fn list(app: &App, args: &JobsListArgs) -> Outcome {
    let desk = app.desk().await?;
    let database = match &args.database {
        Some(name) => Some(select::existing_database(app, name).await?.id),
        None => None,
    };
    let filter = JobFilter {
        tenant: Some(app.tenant().clone()),
        states: args.state.clone(),
        kind: args.kind.clone(),
        database,
        limit: args.limit,
        ..JobFilter::default()
    };
    let names = names(app, &desk).await?;
    let since = desk.now().await?.minus(RECENT);
    let jobs: Vec<Shown> = desk
        .jobs(&filter)
        .await?
        .into_iter()
        .filter(|job| args.all || job.ended.is_none_or(|ended| ended >= since))
        .map(|job| Shown::of(job, &names))
        .collect();
    app.output.result(&json!({ "jobs": jobs }), || {
        if jobs.is_empty() {
            return if args.all {
                "No jobs.".to_owned()
            } else {
                "No jobs in the last day; `--all` lists older ones.".to_owned()
            };
        }
        table(
            &[
                "job",
                "kind",
                "database",
                "state",
                "submitted",
                "took",
                "tries",
                "",
            ],
            jobs.iter().map(|job| {
                vec![
                    job.id.short(),
                    job.kind.clone(),
                    job.database.clone().unwrap_or_default(),
                    job.state.to_string(),
                    units::moment(job.submitted),
                    match (job.started, job.ended) {
                        (Some(started), Some(ended)) => units::span(ended.since(started)),
                        (Some(started), None) if job.state == JobState::Running => {
                            units::span(Timestamp::now().since(started))
                        }
                        _ => String::new(),
                    },
                    job.attempts.to_string(),
                    job.remark(),
                ]
            }),
        )
    });
    Ok(Exit::Done)
}

async fn show(app: &App, arg: &JobArg) -> Outcome {
    let desk = app.desk().await?;
    let record = find(app, &desk, arg).await?;
    let id = record.id;
    let attempts = desk.attempts(id).await?;
    let log = desk.log_lines(id).await?;
    let shown = Shown::of(record, &names(app, &desk).await?);
    let mut document = json!(shown);
    document["attempt_list"] = json!(attempts);
    document["log"] = json!(log);
    app.output.result(&document, || {
        let mut text = text(&shown);
        if !attempts.is_empty() {
            text.push('\n');
            text.push_str(&table(
                &["attempt", "worker", "started", "took", "outcome", "because"],
                attempts.iter().map(|attempt| {
                    vec![
                        attempt.number.to_string(),
                        attempt.worker.clone().unwrap_or_default(),
                        units::moment(attempt.started),
                        attempt.ended.map_or_else(String::new, |ended| {
                            units::span(ended.since(attempt.started))
                        }),
                        attempt
                            .outcome
                            .map_or("runs", |outcome| outcome.as_str())
                            .to_owned(),
                        attempt
                            .problem
                            .as_ref()
                            .map_or_else(String::new, |problem| problem.what.clone()),
                    ]
                }),
            ));
            text.push('\n');
        }
        let skipped = log.len().saturating_sub(SHOWN_LINES);
        if skipped > 0 {
            text.push_str(&format!("\n({skipped} lines more with --json)"));
        }
        for line in &log[skipped..] {
            text.push_str(&format!("\n{}  {}", units::moment(line.at), line.line));
        }
        text
    });
    Ok(Exit::Done)
}

fn text(job: &Shown) -> String {
    let moment = |time: Option<Timestamp>| time.map_or_else(String::new, units::moment);
    pairs(&[
        ("job", job.id.to_string()),
        ("kind", job.kind.clone()),
        ("database", job.database.clone().unwrap_or_default()),
        ("state", job.state.to_string()),
        ("", job.remark()),
        ("until", job.wait_ends.clone().unwrap_or_default()),
        ("priority", job.priority.as_str().to_owned()),
        (
            "window",
            job.terms
                .window
                .as_ref()
                .map_or_else(String::new, |window| {
                    format!(
                        "{} to {} in {}",
                        window.hours.from, window.hours.to, window.time_zone
                    )
                }),
        ),
        (
            "timeout",
            job.terms
                .timeout_seconds
                .map_or_else(String::new, |seconds| {
                    units::span(Duration::from_secs(seconds))
                }),
        ),
        ("deadline", moment(job.deadline)),
        ("submitted", units::moment(job.submitted)),
        ("started", moment(job.started)),
        ("ended", moment(job.ended)),
        (
            "tries",
            format!(
                "{} of {} spent, {} attempts",
                job.tries, job.max_tries, job.attempts
            ),
        ),
        ("worker", job.worker.clone().unwrap_or_default()),
        (
            "repeats",
            job.retry_of.map_or_else(String::new, JobId::short),
        ),
        ("tags", job.tags.join(" ")),
        (
            "to do",
            job.problem
                .as_ref()
                .map_or_else(String::new, |problem| problem.remedy.clone()),
        ),
        (
            "arguments",
            if job.arguments.is_null() {
                String::new()
            } else {
                job.arguments.to_string()
            },
        ),
        (
            "result",
            job.result.as_ref().map_or_else(String::new, |result| {
                serde_json::to_string_pretty(result).unwrap_or_default()
            }),
        ),
    ])
}

async fn watch(app: &App, arg: &JobArg) -> Outcome {
    let desk = app.desk().await?;
    let record = find(app, &desk, arg).await?;
    let title = format!("{} {}", record.kind, record.id.short());
    let ended = run::watch_only(app, record.id, &title).await?;
    let state = ended.state;
    let problem = ended.problem.clone();
    let shown = Shown::of(ended, &names(app, &desk).await?);
    app.output.result(&shown, || {
        format!("Job {} is {}.", shown.id.short(), shown.state)
    });
    if state == JobState::Succeeded {
        return Ok(Exit::Done);
    }
    if let (Some(problem), false) = (problem, app.output.json) {
        app.output
            .notice(&format!("{}\n{}", problem.what, problem.remedy));
    }
    Ok(Exit::Failed)
}

async fn cancel(app: &App, arg: &JobArg) -> Outcome {
    let desk = app.desk().await?;
    let record = find(app, &desk, arg).await?;
    let outcome = desk.cancel(record.id).await?;
    let short = record.id.short();
    let (word, text, exit) = match outcome {
        CancelOutcome::Cancelled => (
            "cancelled",
            format!("Job {short} is cancelled."),
            Exit::Done,
        ),
        CancelOutcome::Requested => (
            "requested",
            format!("Job {short} is asked to stop; `fettler jobs watch {short}` waits for it."),
            Exit::Done,
        ),
        CancelOutcome::AlreadyEnded(state) => (
            "already_ended",
            format!("Job {short} had ended: it is {state}."),
            Exit::Nothing,
        ),
    };
    if outcome == CancelOutcome::Requested && app.remote().is_none() {
        // The process that runs it hears of it at once instead of with its next heartbeat.
        if let Err(error) = app.socket().wake().await {
            tracing::debug!(%error, "no other process was woken");
        }
    }
    app.output
        .result(&json!({ "job": record.id, "cancel": word }), || text);
    Ok(exit)
}

async fn retry(app: &App, arg: &JobArg) -> Outcome {
    let desk = app.desk().await?;
    let record = find(app, &desk, arg).await?;
    let submitted = desk.retry(record.id).await?;
    let is_up = match app.remote() {
        Some(_) => true,
        None => {
            app.push(submitted.job).await?;
            run::is_up(app).await
        }
    };
    app.output.result(
        &json!({ "job": submitted.job, "retry_of": record.id, "existing": submitted.existing }),
        || {
            let short = submitted.job.short();
            let how = if is_up {
                format!("`fettler jobs watch {short}` follows it")
            } else {
                "it runs once `fettler up` runs in this folder, or a worker of the fleet".to_owned()
            };
            format!("Job {short} does {} again: {how}.", record.id.short())
        },
    );
    Ok(Exit::Done)
}

/// The filter of a command that is about many jobs of the tenant.
async fn filter(app: &App, args: &JobsMatchArgs) -> Result<JobFilter, Failure> {
    if !args.all_matching {
        return Err(Failure::usage(
            "which jobs are meant was not said",
            "name one, or say `--all-matching` for all of the tenant's that match the other options",
        ));
    }
    let database = match &args.database {
        Some(name) => Some(select::existing_database(app, name).await?.id),
        None => None,
    };
    Ok(JobFilter {
        tenant: Some(app.tenant().clone()),
        states: args.state.clone(),
        kind: args.kind.clone(),
        database,
        tag: args.tag.clone(),
        ..JobFilter::default()
    })
}

async fn cancel_matching(app: &App, args: &JobsMatchArgs) -> Outcome {
    let filter = filter(app, args).await?;
    let desk = app.desk().await?;
    let done = app
        .readying(desk.cancel_matching(&filter, args.dry_run))
        .await?;
    let document = json!({
        "cancelled": done.cancelled,
        "asked": done.asked,
        "dry_run": args.dry_run,
    });
    app.output.result(&document, || {
        if args.dry_run {
            format!(
                "{} jobs that wait would be cancelled, {} that run would be asked to stop.",
                done.cancelled, done.asked
            )
        } else {
            format!(
                "{} jobs that waited are cancelled, {} that run are asked to stop.",
                done.cancelled, done.asked
            )
        }
    });
    Ok(if done.cancelled + done.asked == 0 {
        Exit::Nothing
    } else {
        Exit::Done
    })
}

async fn replay(app: &App, args: &JobsMatchArgs) -> Outcome {
    let filter = filter(app, args).await?;
    let desk = app.desk().await?;
    let done = app
        .readying(desk.replay_matching(&filter, args.dry_run))
        .await?;
    let document = json!({
        "submitted": done.submitted,
        "already": done.already,
        "refused": done.refused,
        "first_refusal": done.first_refusal.as_ref().map(|(job, problem)| json!({"job": job, "problem": problem})),
        "dry_run": args.dry_run,
    });
    app.output.result(&document, || {
        if args.dry_run {
            return format!("{} jobs would be done again.", done.submitted);
        }
        let mut text = format!("{} jobs are done again", done.submitted);
        if done.already > 0 {
            text.push_str(&format!(", {} had been before", done.already));
        }
        if let Some((job, problem)) = &done.first_refusal {
            text.push_str(&format!(
                ", {} cannot be: {} ({})",
                done.refused,
                problem.what,
                job.short()
            ));
        }
        text.push('.');
        text
    });
    Ok(if done.refused > 0 {
        Exit::Failed
    } else if done.submitted == 0 {
        Exit::Nothing
    } else {
        Exit::Done
    })
}

async fn priority(app: &App, arg: &JobArg, priority: Priority) -> Outcome {
    let desk = app.desk().await?;
    let record = find(app, &desk, arg).await?;
    let changed = app.readying(desk.set_priority(record.id, priority)).await?;
    let shown = Shown::of(changed, &names(app, &desk).await?);
    app.output.result(&shown, || {
        let capped = if shown.priority == priority {
            ""
        } else {
            ", the highest that its tenant may have"
        };
        format!(
            "Job {} has the priority {}{capped}.",
            shown.id.short(),
            shown.priority.as_str()
        )
    });
    Ok(Exit::Done)
}
