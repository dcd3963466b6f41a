//! The brakes on how fast a source is read: the one that a user sets (`--max-rate`), and the one that is set by itself while the
//! source's answers take longer than they did.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Mutex, time::Instant};

use crate::EngineError;

/// Lets through at most so many bytes a second over all who share it; unlimited by default.
#[derive(Debug, Default)]
pub struct RateLimit {
    bytes_per_second: Option<u64>,
    /// What a [`Throttle`] allows; 0 for anything.
    throttled: AtomicU64,
    /// All that was let through.
    passed: AtomicU64,
    /// When all that was let through so far will have been paid for.
    paid_until: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// No limit, or this many bytes a second (zero is taken as no limit).
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second: bytes_per_second.filter(|rate| *rate > 0),
            ..Self::default()
        }
    }

    /// Waits until `bytes` more may pass. Cancellation safe: at worst the bytes count as passed.
    pub async fn pass(&self, bytes: u64) {
        self.passed.fetch_add(bytes, Relaxed);
        let Some(rate) = self.bytes_per_second_now() else {
            return;
        };
        let ready = reserve(
            &mut *self.paid_until.lock().await,
            Instant::now(),
            Duration::from_secs_f64(bytes as f64 / rate as f64),
        );
        tokio::time::sleep_until(ready).await;
    }

    /// Bytes that were let through so far.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed.load(Relaxed)
    }

    /// Allows so many bytes a second from now on, beside what the user allows; or anything.
    pub fn throttle(&self, bytes_per_second: Option<u64>) {
        self.throttled
            .store(bytes_per_second.map_or(0, |rate| rate.max(1)), Relaxed);
    }

    /// Bytes a second that may pass now, where there is a limit.
    #[must_use]
    pub fn bytes_per_second_now(&self) -> Option<u64> {
        let throttled = Some(self.throttled.load(Relaxed)).filter(|rate| *rate > 0);
        match (self.bytes_per_second, throttled) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

/// Queues a cost behind what was let through so far, and says when it may pass.
fn reserve(paid_until: &mut Option<Instant>, now: Instant, cost: Duration) -> Instant {
    let ready = paid_until.map_or(now, |until| until.max(now));
    *paid_until = Some(ready + cost);
    ready
}

/// Asks a server, over one connection that stays, a question that costs it nothing.
#[async_trait]
pub trait LatencyProbe: Send {
    /// How long the answer took.
    async fn ask(&mut self) -> Result<Duration, EngineError>;
}

/// What a [`Throttle`] decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttled {
    /// All stays as it is.
    Same,
    /// Read at most so many bytes a second.
    To(u64),
    /// Read as fast as before.
    Free,
}

/// Decides how fast a source is read, by how long its answers take. Slows down quickly and speeds up slowly, as congestion
/// control does: a factor down while answers are late, a smaller one up while they are not, and free again once the limit
/// is above all that was ever read.
///
/// Pure: it is given samples and what was read between them.
#[derive(Clone, Debug)]
pub struct Throttle {
    /// How long answers took before the reading began, and the least since.
    calm: Duration,
    recent: VecDeque<Duration>,
    allowed: Option<f64>,
    /// The fastest that was read, in bytes a second.
    fastest: f64,
    /// Samples in a row that were not late.
    calm_samples: u32,
}

impl Throttle {
    /// How often the server is asked.
    pub const EVERY: Duration = Duration::from_millis(500);
    /// How many answers are waited for before the reading begins, to know how long they usually take.
    pub const FIRST_SAMPLES: usize = 5;
    /// Answers that take so many times as long as usual are late,
    const LATE_FACTOR: u32 = 5;
    /// and at least so much longer: what reading itself costs a server, and the noise of a busy machine, are below.
    const LATE_AT_LEAST: Duration = Duration::from_millis(50);
    /// The middle one of so many samples counts: one late answer is no sign.
    const WINDOW: usize = 5;
    const DOWN: f64 = 0.7;
    const UP: f64 = 1.2;
    /// So many samples in a row without a late one, and the rate rises.
    const CALM_SAMPLES: u32 = 4;
    /// Never below this: the work has to end, and holds a snapshot or a fork meanwhile.
    pub const LEAST: u64 = 1 << 20;

    /// Begins with the answers of a server that is not read yet. The middle one is what is usual.
    #[must_use]
    pub fn new(first: &[Duration]) -> Self {
        Self {
            calm: middle(first.iter().copied()),
            recent: VecDeque::new(),
            allowed: None,
            fastest: 0.0,
            calm_samples: 0,
        }
    }

    /// How long answers usually take.
    #[must_use]
    pub const fn usual(&self) -> Duration {
        self.calm
    }

    /// How long they take now: the middle one of the last samples.
    #[must_use]
    pub fn now(&self) -> Duration {
        middle(self.recent.iter().copied())
    }

    /// Above this an answer is late.
    #[must_use]
    pub fn late(&self) -> Duration {
        (self.calm * Self::LATE_FACTOR).max(self.calm + Self::LATE_AT_LEAST)
    }

    /// Takes a sample, and how many bytes a second were read since the last one.
    pub fn sample(&mut self, answer: Duration, bytes_per_second: f64) -> Throttled {
        self.fastest = self.fastest.max(bytes_per_second);
        if self.recent.len() == Self::WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(answer);
        self.calm = self.calm.min(answer);
        if self.recent.len() < Self::WINDOW {
            return Throttled::Same;
        }
        if self.now() > self.late() {
            self.calm_samples = 0;
            let from = self.allowed.unwrap_or(bytes_per_second);
            return self.allow((from * Self::DOWN).max(Self::LEAST as f64));
        }
        self.calm_samples += 1;
        let Some(allowed) = self.allowed else {
            return Throttled::Same;
        };
        if self.calm_samples < Self::CALM_SAMPLES {
            return Throttled::Same;
        }
        let allowed = allowed * Self::UP;
        if allowed > self.fastest {
            self.allowed = None;
            return Throttled::Free;
        }
        self.allow(allowed)
    }

    fn allow(&mut self, rate: f64) -> Throttled {
        if self
            .allowed
            .is_some_and(|allowed| (allowed - rate).abs() < 1.0)
        {
            return Throttled::Same;
        }
        self.allowed = Some(rate);
        // A rate of bytes is far below 2^53 and positive.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let whole = rate as u64;
        Throttled::To(whole)
    }
}

/// The middle one; nothing of none.
fn middle(samples: impl Iterator<Item = Duration>) -> Duration {
    let mut sorted: Vec<Duration> = samples.collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: f64 = 100e6;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn feed(throttle: &mut Throttle, answer: Duration, times: usize) -> Vec<Throttled> {
        (0..times)
            .map(|_| throttle.sample(answer, throttle.allowed.unwrap_or(FAST)))
            .filter(|decided| *decided != Throttled::Same)
            .collect()
    }

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

    #[test]
    fn the_lower_of_both_brakes_holds() {
        let rate = RateLimit::new(Some(10));
        assert_eq!(rate.bytes_per_second_now(), Some(10));
        rate.throttle(Some(3));
        assert_eq!(rate.bytes_per_second_now(), Some(3));
        rate.throttle(Some(30));
        assert_eq!(rate.bytes_per_second_now(), Some(10));
        rate.throttle(None);
        assert_eq!(rate.bytes_per_second_now(), Some(10));
        let free = RateLimit::new(Some(0));
        assert_eq!(free.bytes_per_second_now(), None);
        free.throttle(Some(0));
        assert_eq!(free.bytes_per_second_now(), Some(1));
    }

    #[test]
    fn late_answers_make_the_rate_sink_to_the_least_and_no_further() {
        let mut throttle = Throttle::new(&[ms(1); 5]);
        let decided = feed(&mut throttle, ms(80), 60);
        assert_eq!(decided[0], Throttled::To(70_000_000));
        assert_eq!(decided.last(), Some(&Throttled::To(Throttle::LEAST)));
        let rates: Vec<u64> = decided
            .iter()
            .map(|decided| match decided {
                Throttled::To(rate) => *rate,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(rates.windows(2).all(|two| two[1] < two[0]), "{rates:?}");
    }

    #[test]
    fn answers_as_usual_change_nothing_and_neither_does_one_late_one() {
        let mut throttle = Throttle::new(&[ms(1), ms(2), ms(1), ms(40), ms(1)]);
        assert_eq!(throttle.usual(), ms(1));
        for answer in [1, 2, 30, 500, 1, 3, 45, 900, 1, 1, 20] {
            assert_eq!(throttle.sample(ms(answer), FAST), Throttled::Same);
        }
    }

    #[test]
    fn a_server_that_is_far_away_is_not_taken_for_a_busy_one() {
        let mut throttle = Throttle::new(&[ms(90); 5]);
        assert_eq!(feed(&mut throttle, ms(150), 20), []);
        assert!(matches!(
            feed(&mut throttle, ms(500), 6)[0],
            Throttled::To(_)
        ));
    }

    #[test]
    fn the_rate_rises_slowly_once_answers_are_as_usual_and_is_free_in_the_end() {
        let mut throttle = Throttle::new(&[ms(1); 5]);
        feed(&mut throttle, ms(100), 10);
        let decided = feed(&mut throttle, ms(1), 100);
        assert_eq!(decided.last(), Some(&Throttled::Free));
        let rates: Vec<u64> = decided
            .iter()
            .filter_map(|decided| match decided {
                Throttled::To(rate) => Some(*rate),
                _ => None,
            })
            .skip(3)
            .collect();
        assert!(rates.windows(2).all(|two| two[1] > two[0]), "{rates:?}");
        assert_eq!(feed(&mut throttle, ms(1), 20), []);
    }
}
