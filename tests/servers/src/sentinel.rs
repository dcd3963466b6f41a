//! A Redis that outlives its server: a master, a replica, and a sentinel that puts the one in the other's place.

use std::time::Duration;

use crate::{RedisOptions, RedisServer, Result, wait_until};

/// What the sentinel calls the two servers.
const SERVICE: &str = "fleet";
/// A sentinel looks for replicas every ten seconds.
const KNOWS_WITHIN: Duration = Duration::from_secs(40);
/// A failover that came to nothing is tried again after twice its timeout.
const REPLACES_WITHIN: Duration = Duration::from_secs(120);

/// Two servers and their sentinel.
#[derive(Debug)]
pub struct SentinelRedis {
    servers: [RedisServer; 2],
    sentinel: RedisServer,
    password: String,
}

impl SentinelRedis {
    /// Starts them, and waits until the sentinel could replace the master.
    ///
    /// # Errors
    ///
    /// When one does not start, or the replica is not found.
    pub fn start(password: &str) -> Result<Self> {
        Self::start_with(password, RedisOptions::new())
    }

    /// The same with more settings for the two servers.
    ///
    /// # Errors
    ///
    /// When one does not start, or the replica is not found.
    pub fn start_with(password: &str, options: RedisOptions) -> Result<Self> {
        let servers = options
            .password(password)
            .setting("repl-diskless-sync-delay", "0");
        let master = RedisServer::start(servers.clone())?;
        let replica = RedisServer::start(
            servers.setting("replicaof", &format!("127.0.0.1 {}", master.port())),
        )?;
        wait_until("the replica to follow its master", KNOWS_WITHIN, || {
            let link = replica.ask_lines("INFO replication", 8);
            link.is_ok_and(|lines| lines.iter().any(|line| line.contains("link_status:up")))
        })?;
        let watches = RedisOptions::new()
            .password(password)
            .sentinel_of(master.port(), SERVICE);
        let sentinel = RedisServer::start(watches)?;
        wait_until("the sentinel to know the replica", KNOWS_WITHIN, || {
            let command = format!("SENTINEL replicas {SERVICE}");
            // The number of replicas, as the protocol writes the length of a list.
            let known = sentinel.ask_lines(&command, 1);
            known.is_ok_and(|lines| lines[0].trim() == "*1")
        })?;
        Ok(Self {
            servers: [master, replica],
            sentinel,
            password: password.to_owned(),
        })
    }

    /// The URL by which clients follow the master.
    #[must_use]
    pub fn url(&self) -> String {
        format!(
            "redis+sentinel://:{}@127.0.0.1:{}/{SERVICE}",
            self.password,
            self.sentinel.port()
        )
    }

    /// The port of the sentinel.
    #[must_use]
    pub fn sentinel_port(&self) -> u16 {
        self.sentinel.port()
    }

    /// The two servers.
    #[must_use]
    pub fn servers(&self) -> &[RedisServer; 2] {
        &self.servers
    }

    /// The port of the master, as the sentinel says it; none where it does not answer.
    #[must_use]
    pub fn master_port(&self) -> Option<u16> {
        let command = format!("SENTINEL get-master-addr-by-name {SERVICE}");
        let lines = self.sentinel.ask_lines(&command, 5).ok()?;
        lines.last()?.trim().parse().ok()
    }

    /// The master, as the sentinel has it at this moment.
    #[must_use]
    pub fn master(&mut self) -> Option<&mut RedisServer> {
        let port = self.master_port()?;
        self.servers.iter_mut().find(|server| server.port() == port)
    }

    /// Waits until the sentinel names a master that runs: the other one, where the master was killed.
    ///
    /// # Errors
    ///
    /// When it names none in time.
    pub fn wait_for_master(&mut self) -> Result<()> {
        wait_until(
            "the sentinel to name a live master",
            REPLACES_WITHIN,
            || self.master().is_some_and(|master| master.pid().is_some()),
        )
    }

    /// Starts again what was killed. The sentinel makes a former master a replica.
    ///
    /// # Errors
    ///
    /// When one does not start.
    pub fn start_again(&mut self) -> Result<()> {
        self.servers
            .iter_mut()
            .try_for_each(RedisServer::start_again)
    }
}
