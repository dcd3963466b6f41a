//! Group commit (rule 9): a batch is what arrived while the last commit was on its way, so that a lone
//! call waits for nobody and a thousand calls share few commits. A batch is not a common fate (rule 8):
//! when it fails, it is halved until the one row that is to blame fails alone.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use crate::{LedgerError, Result};

/// How many calls wait before further callers do.
const WAITING: usize = 4096;
/// How many calls share a commit at most.
const BATCH: usize = 500;
/// How often a batch is tried again that met somebody else's lock.
const BUSY_TRIES: u32 = 5;

/// Does a batch in one transaction: an answer for each item, in their order, or an error for all.
pub(crate) type Work<I, O> =
    Arc<dyn Fn(Vec<I>) -> BoxFuture<'static, Result<Vec<Result<O>>>> + Send + Sync>;

/// Collects calls into batches.
pub(crate) struct Batcher<I, O> {
    sender: mpsc::Sender<(I, oneshot::Sender<Result<O>>)>,
}

impl<I: Clone + Send + Sync + 'static, O: Send + 'static> Batcher<I, O> {
    /// Starts the task that does the batches; it ends when the batcher is dropped and its calls are
    /// answered.
    pub(crate) fn start(work: Work<I, O>) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(I, oneshot::Sender<Result<O>>)>(WAITING);
        tokio::spawn(async move {
            let mut calls = Vec::with_capacity(BATCH);
            while receiver.recv_many(&mut calls, BATCH).await > 0 {
                let (items, answers): (Vec<I>, Vec<_>) = calls.drain(..).unzip();
                let results = halving(&work, items).await;
                for (answer, result) in answers.into_iter().zip(results) {
                    // A caller that went away does not want the answer; the work is done.
                    let _gone = answer.send(result);
                }
            }
        });
        Self { sender }
    }

    /// Does one item. When the caller goes away, the work is done nevertheless.
    pub(crate) async fn call(&self, item: I) -> Result<O> {
        let (answer, result) = oneshot::channel();
        self.sender
            .send((item, answer))
            .await
            .map_err(|_| LedgerError::Closed)?;
        result.await.map_err(|_| LedgerError::Closed)?
    }
}

/// Does the items as one batch, and where that fails as two halves.
pub(crate) fn halving<'w, I: Clone + Send + Sync + 'static, O: Send + 'static>(
    work: &'w Work<I, O>,
    items: Vec<I>,
) -> BoxFuture<'w, Vec<Result<O>>> {
    Box::pin(async move {
        let count = items.len();
        let mut tries = 0;
        let error = loop {
            match work(items.clone()).await {
                Ok(results) => {
                    debug_assert_eq!(results.len(), count, "an answer for each item");
                    return results;
                }
                Err(LedgerError::Busy { .. }) if tries < BUSY_TRIES => {
                    tries += 1;
                    let most = 5u64 << tries;
                    tokio::time::sleep(Duration::from_millis(rand::random_range(1..=most))).await;
                }
                Err(error) => break error,
            }
        };
        let everybodys = matches!(
            error,
            LedgerError::Unavailable { .. } | LedgerError::Busy { .. } | LedgerError::Closed
        );
        if count <= 1 || everybodys {
            return (0..count).map(|_| Err(error.clone())).collect();
        }
        let mut first = items;
        let second = first.split_off(count / 2);
        let mut results = halving(work, first).await;
        results.extend(halving(work, second).await);
        results
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn refusing(bad: u32, calls: Arc<AtomicUsize>) -> Work<u32, u32> {
        Arc::new(move |items: Vec<u32>| {
            calls.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                if items.contains(&bad) {
                    return Err(LedgerError::Database {
                        doing: "testing",
                        what: "a bad row".to_owned(),
                    });
                }
                Ok(items.into_iter().map(|item| Ok(item * 2)).collect())
            })
        })
    }

    #[tokio::test]
    async fn rule_8_only_the_bad_row_of_a_batch_fails() {
        let calls = Arc::new(AtomicUsize::new(0));
        let results = halving(&refusing(37, calls.clone()), (0..64).collect()).await;
        for (item, result) in (0..64).zip(results) {
            assert_eq!(result.ok(), (item != 37).then_some(item * 2));
        }
        assert_eq!(
            calls.load(Ordering::Relaxed),
            13,
            "twice for each halving, and once for all"
        );
    }

    #[tokio::test]
    async fn rule_9_calls_that_arrive_together_share_a_batch() {
        let calls = Arc::new(AtomicUsize::new(0));
        let batcher = Batcher::start(refusing(u32::MAX, calls.clone()));
        let results = futures::future::join_all((0..100).map(|item| batcher.call(item))).await;
        assert!(results.iter().all(Result::is_ok));
        assert!(calls.load(Ordering::Relaxed) <= 3, "{calls:?}");
    }
}
