//! Leaves a source room: while its answers take longer than they did before it was read, it is read more slowly.
//!
//! A task of its own asks the server over one connection, twice a second, a question that costs nothing, and gives the time to
//! the [`Throttle`], which decides. A server that cannot be asked is read without this brake, and that is said.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fettler_engine::{
    DatabaseEngine, EngineContext, LatencyProbe, RateLimit, Target, Throttle, Throttled,
};
use tokio::task::JoinHandle;

use crate::JobContext;

/// Between the first answers, which say how long one usually takes.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How long this process waits to see how late it is itself.
const OWN_PAUSE: Duration = Duration::from_millis(2);

/// Watches a source until it is dropped.
pub(crate) struct Watch {
    task: Option<JoinHandle<()>>,
    rate: Arc<RateLimit>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        self.rate.throttle(None);
    }
}

/// Begins to watch a source, whose usual answers are measured first. `full_speed` leaves it unwatched.
pub(crate) async fn watch(
    context: &JobContext,
    working: &EngineContext,
    engine: &dyn DatabaseEngine,
    source: &Target,
    full_speed: bool,
) -> Watch {
    let rate = working.rate.clone();
    let mut watch = Watch {
        task: None,
        rate: rate.clone(),
    };
    if full_speed {
        return watch;
    }
    let mut probe = match engine.latency_probe(source).await {
        Ok(Some(probe)) => probe,
        Ok(None) => return watch,
        Err(error) => {
            context
                .ledger
                .log(&format!(
                    "the source is read without regard to its latency, which cannot be asked for: {error}"
                ))
                .await;
            return watch;
        }
    };
    let mut first = Vec::with_capacity(Throttle::FIRST_SAMPLES);
    while first.len() < Throttle::FIRST_SAMPLES {
        match answer(&mut *probe).await {
            Some(took) => first.push(took),
            None => return watch,
        }
        tokio::time::sleep(FIRST_PAUSE).await;
    }
    let context = context.clone();
    watch.task = Some(tokio::spawn(follow(
        context,
        probe,
        rate,
        Throttle::new(&first),
    )));
    watch
}

/// How long an answer took, less what this process was late itself; nothing where the server does not answer.
async fn answer(probe: &mut dyn LatencyProbe) -> Option<Duration> {
    let began = Instant::now();
    tokio::time::sleep(OWN_PAUSE).await;
    let own = began.elapsed().saturating_sub(OWN_PAUSE);
    let took = probe.ask().await.ok()?;
    Some(took.saturating_sub(own))
}

/// Asks and decides until the reading is over, or the server does not answer any more: then the reading will say so.
async fn follow(
    context: JobContext,
    mut probe: Box<dyn LatencyProbe>,
    rate: Arc<RateLimit>,
    mut throttle: Throttle,
) {
    let mut is_slowed = false;
    let (mut passed, mut asked) = (rate.passed(), Instant::now());
    loop {
        tokio::time::sleep(Throttle::EVERY).await;
        let Some(took) = answer(&mut *probe).await else {
            rate.throttle(None);
            return;
        };
        let now = (rate.passed(), Instant::now());
        let seconds = now.1.duration_since(asked).as_secs_f64().max(0.001);
        let bytes_per_second = now.0.saturating_sub(passed) as f64 / seconds;
        (passed, asked) = now;
        match throttle.sample(took, bytes_per_second) {
            Throttled::Same => {}
            Throttled::To(allowed) => {
                rate.throttle(Some(allowed));
                if !is_slowed {
                    is_slowed = true;
                    let line = format!(
                        "the source's answers take {} ms instead of {} ms: it is read more slowly, at {} KiB a second for now",
                        throttle.now().as_millis(),
                        throttle.usual().as_millis(),
                        allowed / 1024
                    );
                    context.ledger.log(&line).await;
                }
                tracing::debug!(
                    bytes_per_second = allowed,
                    milliseconds = throttle.now().as_millis(),
                    "the source is read at another rate"
                );
            }
            Throttled::Free => {
                rate.throttle(None);
                is_slowed = false;
                context
                    .ledger
                    .log("the source's answers take as long as usual: it is read at full speed again")
                    .await;
            }
        }
    }
}
