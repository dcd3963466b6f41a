//! An attempt's lease as its own process sees it (rule 5): a deadline on this machine's monotonic clock
//! that started before the claim or the renewal was sent, so that it ends no later than the ledger's.
//! While the lease is in doubt the attempt waits before its next durable effect; once the ledger has said
//! that another attempt was made, it never goes on (P2).

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use fettler_engine::{EngineError, Fence};
use fettler_jobs::{StopReason, Stopping};
use tokio::sync::Notify;

/// The part of a lease that is kept in reserve: a durable effect that was let through in the last
/// moment has this long before the lease is over.
const RESERVE_PARTS: u32 = 10;

/// The lease of one attempt.
#[derive(Debug)]
pub(crate) struct Lease {
    state: Mutex<State>,
    changed: Notify,
    stopping: Stopping,
    reserve: Duration,
    /// How often the attempt had to wait for a renewal, for the log.
    pauses: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    HeldUntil(Instant),
    Superseded,
}

impl Lease {
    /// A lease of `duration` that was asked for at `asked`.
    pub(crate) fn new(asked: Instant, duration: Duration, stopping: Stopping) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::HeldUntil(asked + duration)),
            changed: Notify::new(),
            stopping,
            reserve: duration / RESERVE_PARTS,
            pauses: AtomicU64::new(0),
        })
    }

    /// The ledger has renewed the lease; the renewal was sent at `sent`.
    pub(crate) fn renew(&self, sent: Instant, duration: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::HeldUntil(until) = *state {
            *state = State::HeldUntil(until.max(sent + duration));
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// Another attempt has taken the job over.
    pub(crate) fn supersede(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Superseded;
        self.stopping.stop(StopReason::Superseded);
        self.changed.notify_waiters();
    }

    /// Whether another attempt has taken the job over.
    pub(crate) fn is_superseded(&self) -> bool {
        matches!(self.state(), State::Superseded)
    }

    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Fence for Lease {
    async fn check(&self) -> Result<(), EngineError> {
        let mut told = false;
        loop {
            // Registered before the state is read, so that no change in between is missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if fettler_fault_points::without(fettler_fault_points::Rule::Fence) {
                return Ok(());
            }
            match self.state() {
                State::Superseded => return Err(EngineError::Stopped),
                State::HeldUntil(until) if Instant::now() + self.reserve < until => return Ok(()),
                State::HeldUntil(_) => {}
            }
            if !told {
                told = true;
                let pauses = self.pauses.fetch_add(1, Relaxed) + 1;
                tracing::warn!(
                    pauses,
                    "the lease could not be renewed: the job paused before its next durable effect"
                );
            }
            // A job that is to stop anyway does not wait for a ledger that may be away for long.
            tokio::select! {
                () = changed => {}
                () = self.stopping.token().cancelled() => {
                    if self.is_superseded() || self.in_doubt() {
                        return Err(EngineError::Stopped);
                    }
                }
            }
        }
    }
}

impl Lease {
    /// Whether nothing durable may be done now, since the lease may be over.
    pub(crate) fn in_doubt(&self) -> bool {
        match self.state() {
            State::Superseded => true,
            State::HeldUntil(until) => Instant::now() + self.reserve >= until,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn long_ago() -> Instant {
        Instant::now() - 100 * SECOND
    }

    #[tokio::test]
    async fn a_fresh_lease_lets_effects_through() {
        let lease = Lease::new(Instant::now(), 30 * SECOND, Stopping::default());
        assert!(lease.check().now_or_never().expect("no waiting").is_ok());
    }

    #[tokio::test]
    async fn a_lease_in_doubt_makes_the_job_wait_until_it_is_renewed() {
        let lease = Lease::new(long_ago(), 30 * SECOND, Stopping::default());
        let mut check = lease.check();
        assert!(check.as_mut().now_or_never().is_none());
        lease.renew(Instant::now(), 30 * SECOND);
        assert!(check.await.is_ok());
    }

    #[tokio::test]
    async fn an_answer_that_comes_late_does_not_stretch_the_lease() {
        let lease = Lease::new(long_ago(), 30 * SECOND, Stopping::default());
        lease.renew(long_ago() + SECOND, 30 * SECOND);
        assert!(lease.check().now_or_never().is_none());
    }

    #[tokio::test]
    async fn p2_a_superseded_attempt_never_goes_on() {
        let stopping = Stopping::default();
        let lease = Lease::new(long_ago(), 30 * SECOND, stopping.clone());
        let mut check = lease.check();
        assert!(check.as_mut().now_or_never().is_none());
        lease.supersede();
        assert!(matches!(check.await, Err(EngineError::Stopped)));
        lease.renew(Instant::now(), 30 * SECOND);
        assert!(lease.check().await.is_err());
        assert_eq!(stopping.reason(), Some(StopReason::Superseded));
    }

    #[tokio::test]
    async fn a_job_that_is_to_stop_does_not_wait_for_its_lease() {
        let stopping = Stopping::default();
        let lease = Lease::new(long_ago(), 30 * SECOND, stopping.clone());
        stopping.stop(StopReason::Interrupted);
        assert!(matches!(lease.check().await, Err(EngineError::Stopped)));
        lease.renew(Instant::now(), 30 * SECOND);
        assert!(
            lease.check().await.is_ok(),
            "while the lease holds, a job may tidy up after the stop was asked for"
        );
    }
}
