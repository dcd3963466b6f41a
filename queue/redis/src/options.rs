//! How the wire is used.

use std::{fmt, time::Duration};

/// Where Redis is and how it is used. All processes of a fleet use the same.
#[derive(Clone)]
pub struct RedisQueueOptions {
    /// `redis://[user:password@]host:port/[database]`, `rediss://` for TLS, or sentinels as
    /// `redis+sentinel://[user:password@]host:port,host:port/service[/database]` (`rediss+sentinel://` for TLS). Never shown.
    pub url: String,
    /// The certificate (PEM) that signs Redis' own, where it is none that this machine trusts. For `rediss://` only.
    pub root_certificate: Option<Vec<u8>>,
    /// The fleet's name: fleets of different names share a Redis without meeting. It is the hash tag of all keys.
    pub fleet: String,
    /// How long a connection may take to be made.
    pub connect_within: Duration,
    /// How long any one answer may take.
    pub answer_within: Duration,
    /// A delivery that was popped and neither claimed nor refused within this time is given back: its popper has died.
    pub visible_after: Duration,
    /// A delivery that the ledger could not decide on at once comes back after this time.
    pub retry_after: Duration,
    /// While Redis is away, jobs are claimed from the ledger itself at most this often (rule 14).
    pub fallback_every: Duration,
    /// A worker that finds nothing asks the ledger for what is due at most this often.
    pub look_every: Duration,
    /// The memory of Redis is looked at this often, for whether it is still the same (rule 15).
    pub watch_every: Duration,
    /// The whole of Redis is compared with the ledger this often, by one process of the fleet.
    pub sweep_every: Duration,
    /// How long the one that fills or compares may be silent before another takes over.
    pub filler_lease: Duration,
}

impl RedisQueueOptions {
    /// The usual.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            root_certificate: None,
            fleet: "fettler".to_owned(),
            connect_within: Duration::from_secs(2),
            answer_within: Duration::from_secs(2),
            visible_after: Duration::from_secs(5),
            retry_after: Duration::from_millis(500),
            fallback_every: Duration::from_millis(500),
            look_every: Duration::from_millis(200),
            watch_every: Duration::from_secs(1),
            sweep_every: Duration::from_secs(30),
            filler_lease: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for RedisQueueOptions {
    /// Without the URL, which may hold a password (P9).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisQueueOptions")
            .field("fleet", &self.fleet)
            .finish_non_exhaustive()
    }
}
