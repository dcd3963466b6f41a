//! A brake on how fast a source is read (`--max-rate`).

use std::time::Duration;

use tokio::{sync::Mutex, time::Instant};

/// Lets through at most so many bytes a second over all who share it; unlimited by default.
#[derive(Debug, Default)]
pub struct RateLimit {
    bytes_per_second: Option<u64>,
    /// When all that was let through so far will have been paid for.
    paid_until: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// No limit, or this many bytes a second (zero is taken as no limit).
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second: bytes_per_second.filter(|rate| *rate > 0),
            paid_until: Mutex::new(None),
        }
    }

    /// Waits until `bytes` more may pass. Cancellation safe: at worst the bytes count as passed.
    pub async fn pass(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else {
            return;
        };
        let ready = reserve(
            &mut *self.paid_until.lock().await,
            Instant::now(),
            Duration::from_secs_f64(bytes as f64 / rate as f64),
        );
        tokio::time::sleep_until(ready).await;
    }
}

/// Queues a cost behind what was let through so far, and says when it may pass.
fn reserve(paid_until: &mut Option<Instant>, now: Instant, cost: Duration) -> Instant {
    let ready = paid_until.map_or(now, |until| until.max(now));
    *paid_until = Some(ready + cost);
    ready
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_all_who_share_it_and_a_pause_earns_no_credit() {
        let second = Duration::from_secs(1);
        let (mut paid_until, began) = (None, Instant::now());
        let waits: Vec<u64> = (0..3)
            .map(|_| (reserve(&mut paid_until, began, second) - began).as_secs())
            .collect();
        assert_eq!(waits, [0, 1, 2]);
        let later = began + second * 60;
        assert_eq!(reserve(&mut paid_until, later, second), later);
        assert_eq!(reserve(&mut paid_until, later, second), later + second);
    }
}
