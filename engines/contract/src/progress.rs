//! How far the work is: counters that many tasks add to and one reader looks at now and then.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use fettler_model::Progress;

/// Counts the bytes and rows of the phase that runs. Adding is cheap enough for every buffer.
#[derive(Debug, Default)]
pub struct ProgressMeter {
    bytes: AtomicU64,
    rows: AtomicU64,
    bytes_total: AtomicU64,
    rows_total: AtomicU64,
    words: Mutex<(String, String)>,
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
    }

    /// Says what is being worked on.
    pub fn item(&self, item: &str) {
        item.clone_into(&mut self.words.lock().unwrap_or_else(PoisonError::into_inner).1);
    }

    /// Adds what was done.
    pub fn add(&self, bytes: u64, rows: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.rows.fetch_add(rows, Relaxed);
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
