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
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let ready = {
            let mut paid_until = self.paid_until.lock().await;
            let start = paid_until.map_or_else(Instant::now, |until| until.max(Instant::now()));
            *paid_until = Some(start + cost);
            start
        };
        tokio::time::sleep_until(ready).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_over_all_who_share_it() {
        let limit = RateLimit::new(Some(1000));
        let began = Instant::now();
        for _ in 0..5 {
            limit.pass(500).await;
        }
        assert_eq!(began.elapsed().as_millis(), 2000);
    }
}
