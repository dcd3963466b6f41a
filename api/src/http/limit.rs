//! How often and how much: the rate of each token and of each unknown address, as a bucket that fills
//! again with time.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use fettler_model::TokenId;

use super::problem::Refusal;

/// As many buckets are remembered; those that are full again are forgotten first.
const MAX_BUCKETS: usize = 10_000;
/// A bucket holds what comes in so many seconds.
const BURST_SECONDS: f64 = 2.0;

/// For how long a token counts as known.
const GOOD_FOR: Duration = Duration::from_secs(600);

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bearer {
    /// A token.
    Token(TokenId),
    /// An address without a token that is known.
    Peer(IpAddr),
    /// All whose address is not known.
    Nobody,
}

/// The rates of all.
#[derive(Debug)]
pub(crate) struct Rates {
    per_second: f64,
    buckets: Mutex<HashMap<Bearer, Bucket>>,
    /// The hashes of tokens that were good a moment ago.
    good: Mutex<HashMap<[u8; 32], Instant>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rates {
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            per_second: f64::from(per_second.max(1)),
            buckets: Mutex::default(),
            good: Mutex::default(),
        }
    }

    /// Remembers that a token was good. Who bears it is not slowed down by those who guess from the same
    /// address: behind a proxy all have the same one.
    pub(crate) fn was_good(&self, hash: [u8; 32]) {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.len() >= MAX_BUCKETS && !good.contains_key(&hash) {
            good.retain(|_, at| at.elapsed() < GOOD_FOR);
            if good.len() >= MAX_BUCKETS {
                return;
            }
        }
        good.insert(hash, Instant::now());
    }

    /// Refuses a request from where too many tokens were guessed, unless this one was good a moment ago. Whether
    /// it still is, is asked of the ledger.
    pub(crate) fn guesses(&self, peer: Bearer, hash: &[u8; 32]) -> Result<(), Refusal> {
        let good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.get(hash).is_some_and(|at| at.elapsed() < GOOD_FOR) {
            return Ok(());
        }
        drop(good);
        self.count(peer, 0.0)
    }

    /// Counts a request, or refuses it.
    pub(crate) fn take(&self, bearer: Bearer) -> Result<(), Refusal> {
        self.count(bearer, 1.0)
    }

    fn count(&self, bearer: Bearer, cost: f64) -> Result<(), Refusal> {
        let most = self.per_second * BURST_SECONDS;
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(&bearer) {
            let full = Duration::from_secs_f64(BURST_SECONDS);
            buckets.retain(|_, bucket| now.duration_since(bucket.at) < full);
            if buckets.len() >= MAX_BUCKETS {
                return Err(Refusal::too_many("too many callers ask at once", 1));
            }
        }
        let bucket = buckets.entry(bearer).or_insert(Bucket {
            left: most,
            at: now,
        });
        let refilled = now.duration_since(bucket.at).as_secs_f64() * self.per_second;
        bucket.left = (bucket.left + refilled).min(most);
        bucket.at = now;
        if bucket.left < 1.0 {
            let wait = (1.0 - bucket.left) / self.per_second;
            // Whole seconds, small and not negative.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let wait = wait.ceil() as u64;
            return Err(Refusal::too_many(
                format!("more than {} requests a second", self.per_second),
                wait,
            ));
        }
        bucket.left -= cost;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bearer_is_slowed_down_and_another_is_not() {
        let rates = Rates::new(5);
        let (one, other) = (Bearer::Token(TokenId::new()), Bearer::Token(TokenId::new()));
        let passed = (0..100).filter(|_| rates.take(one).is_ok()).count();
        assert!((10..12).contains(&passed), "{passed}");
        rates.take(other).unwrap();
        rates.guesses(one, &[1; 32]).unwrap_err();
        rates.was_good([1; 32]);
        rates.guesses(one, &[1; 32]).unwrap();
        rates.guesses(one, &[2; 32]).unwrap_err();
    }
}
