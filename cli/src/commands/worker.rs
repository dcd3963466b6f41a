//! `fettler worker --only JOB`: runs one job in this process and ends. A worker starts it for a job
//! whose last attempt took its worker down with it (rule 7); the command line keeps it hidden.

use fettler_model::AttemptToken;
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    args::WorkerArgs,
    failure::{Exit, Failure, Outcome},
    run::{self, Signals},
};

pub(crate) async fn run(app: &App, args: &WorkerArgs) -> Outcome {
    let builder = run::worker(app).await?;
    let worker = match args.token {
        Some(token) => builder.adopt(args.only, AttemptToken::from_value(token)),
        None => builder.only(vec![args.only]),
    }
    .build();
    let stop = CancellationToken::new();
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
