//! `fettler worker`: runs jobs of the fleet until it is stopped. With `--only` it runs one job and ends: a worker starts
//! such a process for a job whose last attempt took its worker down with it (rule 7).

use fettler_model::{AttemptToken, JobId};
use tokio_util::sync::CancellationToken;

use super::up;
use crate::{
    app::App,
    args::WorkerArgs,
    failure::{Exit, Failure, Outcome},
    run::{self, Signals},
};

pub(crate) async fn run(app: &App, args: &WorkerArgs) -> Outcome {
    match args.only {
        Some(job) => only(app, job, args.token).await,
        None => up::worker(app, args).await,
    }
}

async fn only(app: &App, job: JobId, token: Option<i64>) -> Outcome {
    let builder = run::worker(app).await?;
    let worker = match token {
        Some(token) => builder.adopt(job, AttemptToken::from_value(token)),
        None => builder.only(vec![job]),
    }
    .build();
    let stop = CancellationToken::new();
    if token.is_some() {
        stop_with_the_worker(stop.clone());
    }
    let mut signals = Signals::listen()?;
    let mut running = tokio::spawn(worker.run(stop.clone()));
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            _ = signals.next() => stop.cancel(),
        }
    };
    match ended {
        Ok(Ok(())) => Ok(Exit::Done),
        Ok(Err(error)) => Err(error.into()),
        Err(panic) => Err(Failure::from(fettler_model::Problem::permanent(
            "worker.panicked",
            format!("the worker ended unexpectedly: {panic}"),
            "",
        ))),
    }
}

/// Drains when the worker that started this process is gone: it holds the other end of the standard input. A thread of its
/// own reads, since nothing can break a read off.
fn stop_with_the_worker(stop: CancellationToken) {
    std::thread::spawn(move || {
        // An error is an end as well.
        let _end = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        stop.cancel();
    });
}
