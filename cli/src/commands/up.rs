//! The services, each until it is stopped: `fettler up` (scheduler, worker and socket in one process, for one folder), and
//! the roles of a fleet, `fettler worker`, `fettler scheduler` and `fettler api`, as many processes of each as there are to be.

use std::{sync::Arc, time::Duration};

use fettler_api::{LiveProgress, Probes, Ready, Socket, http::HttpServer};
use fettler_jobs::Registry;
use fettler_model::{Problem, Secret, SecretReference};
use fettler_scheduler::{Scheduler, SchedulerOptions};
use fettler_telemetry::metric;
use fettler_worker::Worker;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::api::{self, OwnToken};
use crate::{
    app::App,
    args::{ProbesArg, SchedulerArgs, UpArgs, WorkerArgs},
    failure::{Exit, Failure, Outcome},
    folder::UpLock,
    run::{self, Signals},
    units,
};

pub(crate) async fn run(app: &App, args: &UpArgs) -> Outcome {
    let signals = Signals::listen()?;
    let address = args.listen.as_ref().or(app.settings().api.listen.as_ref());
    let up = Up::start(app, !args.no_scheduler, address.map(String::as_str)).await?;
    let mut what = format!("fettler is up in {}", app.settings().folder.display());
    if let (Some(url), Some(token)) = (&up.url, &up.token) {
        what.push_str(&format!(
            " and answers at {url} (token in {})",
            token.file().display()
        ));
    }
    serve(app, up, signals, &what).await
}

/// The HTTP interface of a fleet.
pub(crate) async fn api(app: &App) -> Outcome {
    let signals = Signals::listen()?;
    let mut up = Up::empty();
    // What it submits is pushed by the queue that listens to this process's ledger, after the answer (rule 14).
    app.queue().await?;
    let address = app.settings().api.listen.as_deref();
    let server = api::open(app, address.unwrap_or(api::USUAL_ADDRESS)).await?;
    let what = format!("Fettler answers at {}", server.url());
    up.add_api(app, server, None).await?;
    serve(app, up, signals, &what).await
}

/// A worker of a fleet, with its labels beside those of the settings.
pub(crate) async fn worker(app: &App, args: &WorkerArgs) -> Outcome {
    let signals = Signals::listen()?;
    let mut up = Up::empty();
    let mut labels = run::labels(app)?;
    labels.extend(args.labels.iter().cloned());
    let worker = run::worker(app).await?.labels(labels).build();
    let readiness = worker.readiness();
    up.add_probes(&args.probes, Arc::new(move || readiness.check()))
        .await?;
    let what = format!("The worker {} takes jobs", worker.id());
    up.add_worker(worker);
    serve(app, up, signals, &what).await
}

/// A scheduler of a fleet.
pub(crate) async fn scheduler(app: &App, args: &SchedulerArgs) -> Outcome {
    let signals = Signals::listen()?;
    let mut up = Up::empty();
    // What it submits is pushed by the queue that listens to this process's ledger.
    app.queue().await?;
    up.add_scheduler(app, &args.probes).await?;
    let what = format!("The scheduler {} stands by", run::process_name(app));
    serve(app, up, signals, &what).await
}

async fn serve(app: &App, up: Up, mut signals: Signals, what: &str) -> Outcome {
    app.output.notice(&format!(
        "{what} (process {}). Ctrl-C stops it in good order.",
        std::process::id()
    ));
    let began = std::time::Instant::now();
    let ended = up.until(&mut signals, app).await;
    app.output.notice(&format!(
        "fettler is down after {}.",
        units::span(began.elapsed())
    ));
    ended?;
    app.output.result(
        &serde_json::json!({
            "folder": app.settings().folder,
            "duration_seconds": began.elapsed().as_secs_f64(),
        }),
        String::new,
    );
    Ok(Exit::Done)
}

/// The parts that run.
pub(crate) struct Up {
    parts: JoinSet<Result<(), Failure>>,
    /// Stops the worker and the scheduler.
    drain: CancellationToken,
    /// Stops the socket, which answers until the jobs have stopped.
    close: CancellationToken,
    worker: Option<tokio::task::Id>,
    /// Where the HTTP interface answers.
    url: Option<String>,
    /// The token of this folder's commands.
    token: Option<OwnToken>,
    /// Held for as long as this runs.
    lock: Option<UpLock>,
}

impl Up {
    fn empty() -> Self {
        Self {
            parts: JoinSet::new(),
            drain: CancellationToken::new(),
            close: CancellationToken::new(),
            worker: None,
            url: None,
            token: None,
            lock: None,
        }
    }

    /// Starts all parts. Nothing else may run the folder.
    pub(crate) async fn start(
        app: &App,
        with_scheduler: bool,
        listen: Option<&str>,
    ) -> Result<Self, Failure> {
        let mut up = Self::empty();
        up.lock = Some(UpLock::take(&app.settings().folder)?);
        let ledger = app.ledger().await?.clone();
        let worker = run::worker(app).await?.build();
        let live = worker.live_progress();
        let socket = Socket::open(&app.settings().socket())?;
        if let Some(address) = listen {
            let server = api::open(app, address).await?;
            up.token = Some(OwnToken::leave(app, &server.url()).await?);
            up.add_api(app, server, Some(live.clone())).await?;
        }
        let stop = up.close.clone();
        up.parts.spawn(async move {
            socket
                .serve(ledger, live, stop)
                .await
                .map_err(Failure::from)
        });
        if with_scheduler && app.settings().scheduler.enabled {
            up.add_scheduler(app, &ProbesArg::default()).await?;
        }
        up.add_worker(worker);
        Ok(up)
    }

    async fn add_api(
        &mut self,
        app: &App,
        server: HttpServer,
        live: Option<LiveProgress>,
    ) -> Result<(), Failure> {
        self.url = Some(server.url());
        let ledger = app.ledger().await?.clone();
        let surroundings = api::surroundings(app).await?;
        let registry = Arc::new(Registry::standard());
        let stop = self.drain.clone();
        self.parts.spawn(async move {
            server
                .serve(ledger, registry, surroundings, live, stop)
                .await;
            Ok(())
        });
        Ok(())
    }

    async fn add_scheduler(&mut self, app: &App, probes: &ProbesArg) -> Result<(), Failure> {
        let settings = &app.settings().scheduler;
        let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
        let scheduler = Scheduler::new(
            &run::process_name(app),
            app.ledger().await?.clone(),
            Arc::new(Registry::standard()),
            SchedulerOptions {
                lead: seconds(settings.lease_seconds),
                history_kept: seconds(86_400) * settings.history_days,
                history_bytes: u64::from(settings.history_megabytes) * 1_000_000,
                silent_after: seconds(settings.silent_after_seconds),
                heartbeat_url: heartbeat_url(settings.heartbeat_url.as_ref())?,
                ..SchedulerOptions::default()
            },
        );
        let readiness = scheduler.readiness();
        self.add_probes(probes, Arc::new(move || readiness.check()))
            .await?;
        let stop = self.drain.clone();
        self.parts.spawn(async move {
            scheduler.run(stop).await;
            Ok(())
        });
        Ok(())
    }

    /// Answers an orchestrator until the jobs have stopped, where it was asked to.
    async fn add_probes(&mut self, probes: &ProbesArg, ready: Ready) -> Result<(), Failure> {
        let Some(address) = probes.listen else {
            return Ok(());
        };
        let counted = metric::count().ok_or_else(|| {
            Problem::permanent("cli.metrics", "this process counts for somebody else", "")
        })?;
        let probes = Probes::listen(address, ready, counted).await?;
        let stop = self.drain.clone();
        self.parts.spawn(async move {
            let served = probes.serve(stop).await;
            served.map_err(|error| Failure::local("the probes cannot be answered", &error))
        });
        Ok(())
    }

    fn add_worker(&mut self, worker: Worker) {
        let stop = self.drain.clone();
        let id = self
            .parts
            .spawn(async move { worker.run(stop).await.map_err(Failure::from) })
            .id();
        self.worker = Some(id);
    }

    /// Stops all in good order.
    pub(crate) async fn finish(mut self) -> Result<(), Failure> {
        self.drain.cancel();
        let mut ended = Ok(());
        while let Some(part) = self.parts.join_next_with_id().await {
            let (id, result) = match part {
                Ok(part) => part,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            if Some(id) == self.worker {
                self.close.cancel();
            }
            ended = ended.and(result);
        }
        ended
    }

    /// Runs until a signal, or until a part fails; then stops all in good order: the jobs stop at
    /// their next checkpoint and go back. A second Ctrl-C leaves at once.
    pub(crate) async fn until(mut self, signals: &mut Signals, app: &App) -> Result<(), Failure> {
        let token = self.token.take();
        let ended = self.ended(signals, app).await;
        if let Some(token) = token {
            token.take_away(app).await;
        }
        ended
    }

    async fn ended(mut self, signals: &mut Signals, app: &App) -> Result<(), Failure> {
        let mut asked = false;
        let mut ended = Ok(());
        loop {
            tokio::select! {
                part = self.parts.join_next_with_id() => {
                    let (id, result) = match part {
                        None => return ended,
                        Some(Ok(part)) => part,
                        Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                    };
                    if result.is_err() && ended.is_ok() {
                        ended = result;
                    }
                    // Without one part the others are of no use.
                    self.drain.cancel();
                    if Some(id) == self.worker {
                        self.close.cancel();
                    }
                }
                _ = signals.next() => {
                    if asked {
                        return Err(Failure::from(fettler_model::Problem::permanent(
                            "up.left",
                            "the process left before its jobs had stopped",
                            "they are taken up again when their leases have run out",
                        )));
                    }
                    asked = true;
                    app.output.notice("Stopping: running jobs stop at their next checkpoint and go back. Again to leave at once.");
                    self.drain.cancel();
                }
            }
        }
    }
}

/// The URL that the leading scheduler tells that it is there.
fn heartbeat_url(reference: Option<&SecretReference>) -> Result<Option<Secret>, Failure> {
    let Some(reference) = reference else {
        return Ok(None);
    };
    let resolved = fettler_config::resolve(reference).map_err(Problem::from)?;
    if let Some(warning) = resolved.warning {
        tracing::warn!("{warning}");
    }
    Ok(Some(resolved.secret))
}
