//! How far the work is: counters that many tasks add to and one reader looks at now and then.

use std::{
    future::Future,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fettler_model::Progress;

/// How often a long wait says that it goes on.
const PULSE_EVERY: Duration = Duration::from_secs(1);

/// Counts the bytes and rows of the phase that runs. Adding is cheap enough for every buffer.
#[derive(Debug, Default)]
pub struct ProgressMeter {
    bytes: AtomicU64,
    rows: AtomicU64,
    bytes_total: AtomicU64,
    rows_total: AtomicU64,
    words: Mutex<(String, String)>,
    /// Rises with every sign of life.
    pulses: AtomicU64,
}

impl ProgressMeter {
    /// Begins a phase: counters start at nothing. A total of zero means that nobody knows.
    pub fn begin(&self, phase: &str, bytes_total: u64, rows_total: u64) {
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        *words = (phase.to_owned(), String::new());
        self.bytes.store(0, Relaxed);
        self.rows.store(0, Relaxed);
        self.bytes_total.store(bytes_total, Relaxed);
        self.rows_total.store(rows_total, Relaxed);
        self.pulse();
    }

    /// Says what is being worked on.
    pub fn item(&self, item: &str) {
        self.pulse();
        item.clone_into(&mut self.words.lock().unwrap_or_else(PoisonError::into_inner).1);
    }

    /// Adds what was done.
    pub fn add(&self, bytes: u64, rows: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.rows.fetch_add(rows, Relaxed);
        self.pulse();
    }

    /// A sign of life where there is nothing to count: the work goes on. Work that gives none for long is taken for
    /// stalled.
    pub fn pulse(&self) {
        self.pulses.fetch_add(1, Relaxed);
    }

    /// Waits for something that takes as long as it takes and counts nothing (an index that is built, a table that a
    /// server counts), with signs of life. Only for what ends by itself when its other side is gone.
    pub async fn while_waiting<F: Future>(&self, wait: F) -> F::Output {
        let mut wait = std::pin::pin!(wait);
        loop {
            if let Ok(done) = tokio::time::timeout(PULSE_EVERY, &mut wait).await {
                self.pulse();
                return done;
            }
            self.pulse();
        }
    }

    /// How many signs of life there were.
    #[must_use]
    pub fn pulses(&self) -> u64 {
        self.pulses.load(Relaxed)
    }

    /// How far it is now.
    #[must_use]
    pub fn read(&self) -> Progress {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        Progress {
            phase: words.0.clone(),
            item: words.1.clone(),
            bytes: self.bytes.load(Relaxed),
            rows: self.rows.load(Relaxed),
            bytes_total: self.bytes_total.load(Relaxed),
            rows_total: self.rows_total.load(Relaxed),
        }
    }
}
