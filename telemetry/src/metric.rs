//! The metrics that processes count themselves, by name. What the ledger knows (depth, reasons, ages) is not
//! counted but asked for when somebody looks, so that any process can answer for the whole fleet.
//!
//! Durations are seconds, sizes bytes, as Prometheus has it. A label never holds a secret, an address or an
//! unbounded set of values.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Attempts that ended, by `tenant`, `kind` and `outcome`.
pub const ATTEMPTS: &str = "fettler_attempts_total";
/// How long attempts ran, by `kind`.
pub const ATTEMPT_SECONDS: &str = "fettler_attempt_duration_seconds";
/// Attempts that run in this process now.
pub const RUNNING: &str = "fettler_worker_running";
/// Room for attempts in this process, by `slot`.
pub const SLOTS: &str = "fettler_worker_slots";
/// Jobs taken back from workers that vanished, by `kind`.
pub const TAKEOVERS: &str = "fettler_lease_takeovers_total";
/// Attempts that gave no sign of life for too long, by `kind`.
pub const STALLS: &str = "fettler_stalled_attempts_total";
/// Writes of superseded attempts that the ledger refused, by `what` they were.
pub const REFUSED_ZOMBIES: &str = "fettler_zombie_writes_refused_total";
/// Requests to the backups' store, by `operation` and `outcome`. Tries count one each.
pub const STORE_REQUESTS: &str = "fettler_store_requests_total";
/// How long they took, by `operation`.
pub const STORE_SECONDS: &str = "fettler_store_request_duration_seconds";
/// Bytes to and from the store, by `direction`.
pub const STORE_BYTES: &str = "fettler_store_bytes_total";
/// Bytes that backups read from databases, by `tenant`.
pub const BACKUP_READ: &str = "fettler_backup_read_bytes_total";
/// Bytes that backups added to the repository, by `tenant`.
pub const BACKUP_STORED: &str = "fettler_backup_stored_bytes_total";
/// Heartbeats of the leading scheduler to the URL outside, by `outcome`.
pub const HEARTBEATS_SENT: &str = "fettler_heartbeats_sent_total";
/// How late the newest tick was decided.
pub const SCHEDULER_LAG: &str = "fettler_scheduler_lag_seconds";
/// Whether this process leads the schedulers.
pub const SCHEDULER_LEADS: &str = "fettler_scheduler_leads";

/// Bounds of attempts: seconds to hours.
const ATTEMPT_BOUNDS: [f64; 11] = [
    0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 28800.0,
];
/// Bounds of requests to the store.
const REQUEST_BOUNDS: [f64; 9] = [0.005, 0.02, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0];
/// How often what was observed is put into its bounds, so that it does not pile up where nobody looks.
const UPKEEP_EVERY: Duration = Duration::from_secs(10);

/// What this process has counted so far.
#[derive(Clone, Debug)]
pub struct Counted(PrometheusHandle);

impl Counted {
    /// In Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }
}

/// Begins to count: before, counts go nowhere and cost nothing. None when this process counts already.
#[must_use]
pub fn count() -> Option<Counted> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(ATTEMPT_SECONDS.to_owned()), &ATTEMPT_BOUNDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Full(STORE_SECONDS.to_owned()), &REQUEST_BOUNDS)
        })
        .expect("there are bounds")
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).ok()?;
    describe();
    let upkeep = handle.clone();
    std::thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || {
            loop {
                std::thread::sleep(UPKEEP_EVERY);
                upkeep.run_upkeep();
            }
        })
        .ok()?;
    Some(Counted(handle))
}

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!(ATTEMPTS, "Attempts that ended");
    describe_histogram!(ATTEMPT_SECONDS, "How long attempts ran");
    describe_gauge!(RUNNING, "Attempts that run in this process now");
    describe_gauge!(SLOTS, "Room for attempts in this process");
    describe_counter!(TAKEOVERS, "Jobs taken back from workers that vanished");
    describe_counter!(STALLS, "Attempts that gave no sign of life for too long");
    describe_counter!(
        HEARTBEATS_SENT,
        "Heartbeats to the URL outside that were taken or not"
    );
    describe_counter!(
        REFUSED_ZOMBIES,
        "Writes of superseded attempts that the ledger refused"
    );
    describe_counter!(STORE_REQUESTS, "Requests to the store of backups");
    describe_histogram!(STORE_SECONDS, "How long requests to the store took");
    describe_counter!(STORE_BYTES, "Bytes to and from the store of backups");
    describe_counter!(BACKUP_READ, "Bytes that backups read from databases");
    describe_counter!(BACKUP_STORED, "Bytes that backups added to the repository");
    describe_gauge!(SCHEDULER_LAG, "How late the newest tick was decided");
    describe_gauge!(SCHEDULER_LEADS, "Whether this process leads the schedulers");
}
