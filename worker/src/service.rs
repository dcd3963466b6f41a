//! The tower services between apalis and an attempt: one that runs the job, and around it one that keeps
//! the lease and reports the end, so that a panic that a layer in between has caught is reported too.

use std::{
    any::Any,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use apalis_core::{error::BoxDynError, task::Task};
use fettler_queue::Delivery;
use futures::future::BoxFuture;
use serde_json::Value;
use tower::{Layer, Service};

use crate::{
    Shared,
    attempt::{Attempt, Failure},
};

/// Runs the job of an attempt that [`Report`] has begun.
#[derive(Clone, Debug)]
pub(crate) struct RunJob {
    pub(crate) shared: Arc<Shared>,
}

impl Service<Task<Delivery>> for RunJob {
    type Response = Value;
    type Error = BoxDynError;
    type Future = BoxFuture<'static, Result<Value, BoxDynError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxDynError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, task: Task<Delivery>) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move {
            let attempt: &Attempt = task.data().get_checked()?;
            Ok(attempt.run(&shared).await?)
        })
    }
}

/// Makes [`Report`].
#[derive(Clone, Debug)]
pub(crate) struct ReportLayer {
    pub(crate) shared: Arc<Shared>,
}

impl<S> Layer<S> for ReportLayer {
    type Service = Report<S>;

    fn layer(&self, inner: S) -> Report<S> {
        Report {
            inner,
            shared: self.shared.clone(),
        }
    }
}

/// Begins an attempt, has it run, and reports its end. It never fails: what went wrong is the job's.
#[derive(Clone, Debug)]
pub(crate) struct Report<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Task<Delivery>> for Report<S>
where
    S: Service<Task<Delivery>, Response = Value, Error = BoxDynError>,
    S::Future: Send + 'static,
{
    type Response = ();
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<(), Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx).map(|ready| match ready {
            // The services inside are always ready, so that there is nothing to pass on.
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "a layer of the worker is not ready");
                Ok(())
            }
        })
    }

    fn call(&mut self, mut task: Task<Delivery>) -> Self::Future {
        let shared = self.shared.clone();
        let attempt = Attempt::begin(&shared, task.args.claimed.clone(), task.args.asked);
        let slot = task.args.slot.take();
        task.inject_data(attempt.clone());
        let run = self.inner.call(task);
        Box::pin(async move {
            let outcome = run.await.map_err(as_failure);
            let _reporting = match slot {
                Some(slot) => Some(slot.work_is_over().await),
                None => None,
            };
            attempt.report(&shared, outcome).await;
            Ok(())
        })
    }
}

/// Everything inside fails with a [`Failure`]; an error of a layer in between becomes the job's problem.
fn as_failure(error: BoxDynError) -> Failure {
    match error.downcast::<Failure>() {
        Ok(failure) => *failure,
        Err(other) => Failure::Problem(fettler_model::Problem::transient(
            "worker.layer",
            format!("the worker could not run the job: {other}"),
            "",
        )),
    }
}

/// What the layer that catches panics makes of one.
#[allow(clippy::borrowed_box)]
pub(crate) fn on_panic(payload: &Box<dyn Any + Send>) -> Failure {
    let what = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned());
    Failure::Panicked(what)
}
