//! The heartbeat: one statement for all of a worker's jobs, sent from a thread and a connection of its
//! own, so that no job can hold it up. It renews the leases, tells the ledger how far the jobs are, and
//! brings back cancellations and the news that an attempt was superseded.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use fettler_engine::ProgressMeter;
use fettler_fault_points::{Rule, without};
use fettler_jobs::{StopReason, Stopping};
use fettler_ledger::{Beat, BeatAnswer, Claimed, Ledger, LedgerOptions};
use fettler_model::{AttemptToken, JobId, Progress, SlotClass};
use fettler_telemetry::metric;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::lease::Lease;

/// After a heartbeat that failed the next one is sent after this part of the usual time.
const RETRY_PARTS: u32 = 5;
/// The heartbeat needs one connection; a second one lets a new one be opened while an old one hangs.
const CONNECTIONS: u32 = 2;

/// An attempt whose lease is kept.
#[derive(Debug)]
pub(crate) struct Beating {
    pub(crate) token: AttemptToken,
    pub(crate) slot: SlotClass,
    pub(crate) lease: Arc<Lease>,
    pub(crate) stopping: Stopping,
    pub(crate) progress: Arc<ProgressMeter>,
    /// What the ledger was told last.
    told: Option<Progress>,
}

/// The attempts that run in this worker.
#[derive(Debug)]
pub(crate) struct Heart {
    worker: String,
    lease: Duration,
    every: Duration,
    running: Mutex<HashMap<JobId, Beating>>,
    /// When the last heartbeat was sent that the ledger took.
    taken: Mutex<Option<Instant>>,
    /// Beats at once instead of at the next time.
    pub(crate) at_once: Notify,
}

/// How the heartbeat reaches the ledger.
#[derive(Clone, Debug)]
pub(crate) enum HeartLedger {
    /// Through connections of its own.
    Own { url: String, options: LedgerOptions },
    /// Through those of the jobs.
    Shared(Ledger),
}

impl Heart {
    pub(crate) fn new(worker: &str, lease: Duration, every: Duration) -> Arc<Self> {
        Arc::new(Self {
            worker: worker.to_owned(),
            lease,
            every,
            running: Mutex::default(),
            taken: Mutex::default(),
            at_once: Notify::new(),
        })
    }

    fn running(&self) -> MutexGuard<'_, HashMap<JobId, Beating>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the lease of an attempt from now on.
    pub(crate) fn add(
        &self,
        claimed: &Claimed,
        lease: Arc<Lease>,
        stopping: Stopping,
        progress: Arc<ProgressMeter>,
    ) {
        let beating = Beating {
            token: claimed.token,
            slot: claimed.job.slot,
            lease,
            stopping,
            progress,
            told: None,
        };
        let mut running = self.running();
        running.insert(claimed.job.id, beating);
        metrics::gauge!(metric::RUNNING).set(running.len() as f64);
    }

    /// Keeps it no longer: the attempt has ended.
    pub(crate) fn remove(&self, job: JobId, token: AttemptToken) {
        let mut running = self.running();
        if running
            .get(&job)
            .is_some_and(|beating| beating.token == token)
        {
            running.remove(&job);
            metrics::gauge!(metric::RUNNING).set(running.len() as f64);
        }
    }

    /// Asks the job to stop, if it runs here.
    pub(crate) fn stop(&self, job: JobId, reason: StopReason) {
        if let Some(beating) = self.running().get(&job) {
            beating.stopping.stop(reason);
        }
    }

    /// Asks all jobs of these classes to stop.
    pub(crate) fn stop_all(&self, slots: &[SlotClass], reason: StopReason) {
        for beating in self.running().values() {
            if slots.contains(&beating.slot) {
                beating.stopping.stop(reason);
            }
        }
    }

    /// How far a job is at this moment, if it runs here.
    pub(crate) fn progress(&self, job: JobId) -> Option<Progress> {
        self.running()
            .get(&job)
            .map(|beating| beating.progress.read())
    }

    /// Whether the ledger took a heartbeat within the time of a lease.
    pub(crate) fn renews(&self) -> bool {
        let taken = *self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.is_some_and(|sent| sent.elapsed() < self.lease)
    }

    /// How many attempts run.
    pub(crate) fn count(&self) -> usize {
        self.running().len()
    }

    /// What there is to tell the ledger: each job, and its progress where that has changed.
    fn beats(&self) -> Vec<Beat> {
        let mut beats: Vec<Beat> = self
            .running()
            .iter()
            .map(|(job, beating)| {
                let progress = beating.progress.read();
                Beat {
                    job: *job,
                    token: beating.token,
                    progress: (progress != Progress::default()
                        && beating.told.as_ref() != Some(&progress))
                    .then_some(progress),
                }
            })
            .collect();
        // Statements over many rows take them in one order (rule 8).
        beats.sort_by_key(|beat| beat.job);
        beats
    }

    /// Takes in what the ledger said to `beats`, which were sent at `sent`.
    fn apply(&self, beats: Vec<Beat>, answers: &[BeatAnswer], sent: Instant) {
        let mut running = self.running();
        for (beat, answer) in beats.into_iter().zip(answers) {
            // An attempt that ended meanwhile, or a newer one of the same job, is not meant.
            let Some(beating) = running
                .get_mut(&beat.job)
                .filter(|beating| beating.token == beat.token)
            else {
                continue;
            };
            match answer {
                BeatAnswer::Renewed => {}
                BeatAnswer::CancelRequested => beating.stopping.stop(StopReason::Cancelled),
                BeatAnswer::Superseded if without(Rule::Fence) => {}
                BeatAnswer::Superseded => {
                    tracing::warn!(job.id = %beat.job, "the attempt was superseded");
                    beating.lease.supersede();
                    continue;
                }
            }
            beating.lease.renew(sent, self.lease);
            if beat.progress.is_some() {
                beating.told = beat.progress;
            }
        }
    }

    /// Starts the thread. It ends when `stop` is cancelled.
    pub(crate) fn start(
        self: &Arc<Self>,
        ledger: HeartLedger,
        stop: CancellationToken,
    ) -> std::io::Result<JoinHandle<()>> {
        let heart = self.clone();
        std::thread::Builder::new()
            .name("fettler-heartbeat".to_owned())
            .spawn(move || {
                match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                {
                    Ok(runtime) => runtime.block_on(heart.beat_until(ledger, stop)),
                    // Without renewals the jobs pause at the end of their leases and are taken over.
                    Err(error) => tracing::error!(%error, "the heartbeat could not start"),
                }
            })
    }

    async fn beat_until(&self, ledger: HeartLedger, stop: CancellationToken) {
        let ledger = match ledger {
            HeartLedger::Shared(ledger) => ledger,
            HeartLedger::Own { url, mut options } => {
                options.connections = CONNECTIONS;
                tokio::select! {
                    ledger = self.open(&url, &options) => ledger,
                    () = stop.cancelled() => return,
                }
            }
        };
        let mut next = Instant::now() + self.every;
        let mut failed = 0_u32;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.at_once.notified() => {}
                () = stop.cancelled() => return,
            }
            let sent = Instant::now();
            let renewed = tokio::select! {
                renewed = self.beat(&ledger, sent) => renewed,
                () = stop.cancelled() => return,
            };
            match renewed {
                Ok(()) => {
                    if failed > 0 {
                        tracing::info!(failed, "leases are renewed again");
                    }
                    failed = 0;
                    next = sent + self.every;
                }
                Err(error) => {
                    if failed == 0 {
                        tracing::warn!(error, "leases could not be renewed");
                    }
                    failed += 1;
                    next = Instant::now() + self.every / RETRY_PARTS;
                }
            }
        }
    }

    async fn open(&self, url: &str, options: &LedgerOptions) -> Ledger {
        loop {
            match Ledger::open_with(url, options.clone()).await {
                Ok(ledger) => return ledger,
                Err(error) => {
                    tracing::warn!(%error, "the heartbeat could not open the ledger");
                    tokio::time::sleep(self.every / RETRY_PARTS).await;
                }
            }
        }
    }

    async fn beat(&self, ledger: &Ledger, sent: Instant) -> Result<(), String> {
        let beats = self.beats();
        // An answer that comes after the lease renews nothing.
        let answer = tokio::time::timeout(
            self.lease,
            ledger.heartbeat(&self.worker, &beats, self.lease),
        );
        match answer.await {
            Ok(Ok(answers)) => {
                *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(sent);
                self.apply(beats, &answers, sent);
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the ledger did not answer within the time of a lease".to_owned()),
        }
    }
}
