//! The bounded pool that hashes, compresses and seals, so that the runtime's threads stay free for
//! waiting. One pool serves a whole process: jobs share the processors, they do not multiply threads.

use std::{fmt, num::NonZeroUsize, panic::AssertUnwindSafe, sync::Arc};

use tokio::sync::{Semaphore, oneshot};

/// Pieces of work that wait in the pool for each of its threads; more wait outside, without memory of
/// their own in the queue.
const QUEUED_PER_THREAD: usize = 4;

/// A bounded pool of threads for work that keeps a processor busy. Cheap to clone.
#[derive(Clone)]
pub struct CpuPool {
    threads: Arc<rayon::ThreadPool>,
    places: Arc<Semaphore>,
}

impl fmt::Debug for CpuPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuPool")
            .field("threads", &self.threads.current_num_threads())
            .finish()
    }
}

impl Default for CpuPool {
    /// A thread for each processor.
    fn default() -> Self {
        Self::new(std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }
}

impl CpuPool {
    /// A pool of this many threads.
    ///
    /// # Panics
    ///
    /// When the system gives no more threads, which leaves a process nothing to work with.
    #[must_use]
    pub fn new(threads: NonZeroUsize) -> Self {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .thread_name(|at| format!("fettler-cpu-{at}"))
            .build()
            .expect("the system gives a process the threads of its pool");
        Self {
            threads: Arc::new(pool),
            places: Arc::new(Semaphore::new(threads.get() * (1 + QUEUED_PER_THREAD))),
        }
    }

    /// How many threads there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Runs `work` in the pool and waits for it without blocking the runtime. A panic in it goes on in
    /// the caller. When the caller stops waiting, the work still runs to its end.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let (done, result) = oneshot::channel();
        self.threads.spawn(move || {
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
            drop(place);
            // Nobody may be waiting any more, which is no fault.
            let _no_longer_awaited = done.send(outcome);
        });
        match result.await.expect("the work sends its outcome always") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
