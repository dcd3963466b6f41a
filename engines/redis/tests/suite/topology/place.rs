//! The places of the suite, and clients that need none of the engine's code.

use std::collections::HashMap;

use fettler_test_servers::{RedisCluster, RedisOptions, RedisServer, SentinelRedis};
use redis::{Cmd, Connection, Value, cmd};

use crate::common::{client, fill, options, run};

pub const PASSWORD: &str = "suite7";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Single,
    Replica,
    Cluster,
    Sentinel,
}

/// Servers of one kind.
pub enum Place {
    Single(RedisServer),
    /// A primary and its replica.
    Replica(RedisServer, Box<RedisServer>),
    Cluster(RedisCluster),
    Sentinel(Box<SentinelRedis>),
}

fn settings() -> RedisOptions {
    options().setting("enable-debug-command", "yes")
}

impl Place {
    pub fn start(kind: Kind) -> Self {
        match kind {
            Kind::Single => {
                Self::Single(RedisServer::start(settings().password(PASSWORD)).unwrap())
            }
            Kind::Replica => {
                let primary = RedisServer::start(settings().password(PASSWORD)).unwrap();
                let of = format!("127.0.0.1 {}", primary.port());
                let replica =
                    RedisServer::start(settings().password(PASSWORD).setting("replicaof", &of))
                        .unwrap();
                wait_for_link(&primary.url());
                Self::Replica(primary, Box::new(replica))
            }
            Kind::Cluster => {
                Self::Cluster(RedisCluster::start(3, 0, &settings(), Some(PASSWORD)).unwrap())
            }
            Kind::Sentinel => Self::Sentinel(Box::new(
                SentinelRedis::start_with(PASSWORD, settings()).unwrap(),
            )),
        }
    }

    /// The URL of a backup and of a restore.
    pub fn url(&self) -> String {
        match self {
            Self::Single(server) => server.url(),
            Self::Replica(primary, _) => format!("{}?read=replica", primary.url()),
            Self::Cluster(cluster) => cluster.url(),
            Self::Sentinel(sentinel) => sentinel.url(),
        }
    }

    /// The URL of the very server that a backup reads, where that is one.
    pub fn read_url(&self) -> String {
        match self {
            // When a consumer was last seen is no part of replication: its replica has another moment.
            Self::Replica(_, replica) => replica.url(),
            _ => self.url(),
        }
    }

    /// The URLs of all that take writes.
    pub fn primaries(&self) -> Vec<String> {
        match self {
            Self::Single(server) => vec![server.url()],
            Self::Replica(primary, _) => vec![primary.url()],
            Self::Cluster(cluster) => cluster.nodes().iter().map(RedisServer::url).collect(),
            Self::Sentinel(sentinel) => {
                let port = sentinel.master_port().unwrap();
                let master = sentinel.servers().iter().find(|one| one.port() == port);
                vec![master.unwrap().url()]
            }
        }
    }

    /// A client for single commands.
    pub fn client(&self) -> Client {
        Client::new(&self.primaries())
    }

    /// Fills it with values of every type, in as many databases as it has; gives a server that holds the same.
    pub fn seed(&self) -> RedisServer {
        let reference = RedisServer::start(settings()).unwrap();
        let mut filled = client(&reference.url());
        fill(&mut filled);
        if let Self::Cluster(_) = self {
            for database in [1, 15] {
                run(&mut filled, &format!("SELECT {database}"));
                run(&mut filled, "FLUSHDB");
            }
            run(&mut filled, "SELECT 0");
            self.client().take_over(&mut filled);
        } else {
            fill(&mut client(&self.primaries()[0]));
        }
        self.settle();
        reference
    }

    /// Waits until what was written is where it is read.
    pub fn settle(&self) {
        if let Self::Replica(primary, _) = self {
            wait_for_link(&primary.url());
        }
    }

    /// Makes a user on every server.
    pub fn user(&self, rules: &[&str]) -> String {
        let servers: Vec<String> = match self {
            Self::Replica(primary, replica) => vec![primary.url(), replica.url()],
            Self::Sentinel(sentinel) => sentinel.servers().iter().map(RedisServer::url).collect(),
            _ => self.primaries(),
        };
        for url in servers {
            cmd("ACL")
                .arg("SETUSER")
                .arg("limited")
                .arg("on")
                .arg(">limited1")
                .arg(rules)
                .exec(&mut client(&url))
                .unwrap();
        }
        self.url()
            .replace(&format!(":{PASSWORD}@"), "limited:limited1@")
    }
}

/// Waits until every replica of a server has acknowledged all that was written.
pub fn wait_for_link(url: &str) {
    let mut asker = client(url);
    fettler_test_servers::wait_until(
        "a replica to follow",
        std::time::Duration::from_secs(60),
        || {
            run(&mut asker, "SET waits:for:replica 1");
            let acknowledged: u64 = cmd("WAIT").arg(1).arg(500).query(&mut asker).unwrap();
            run(&mut asker, "DEL waits:for:replica");
            acknowledged > 0
                && cmd("WAIT")
                    .arg(1)
                    .arg(2000)
                    .query::<u64>(&mut asker)
                    .unwrap()
                    > 0
        },
    )
    .unwrap();
}

/// A client of all primaries: it asks a server itself for the slot of a key, and for who serves it.
pub struct Client {
    nodes: Vec<Connection>,
    owners: Vec<(u16, u16, usize)>,
    slots: HashMap<Vec<u8>, u16>,
}

impl Client {
    fn new(urls: &[String]) -> Self {
        let mut nodes: Vec<Connection> = urls.iter().map(|url| client(url)).collect();
        let mut owners = vec![(0, 16383, 0)];
        if nodes.len() > 1 {
            let ports: Vec<u16> = urls
                .iter()
                .map(|url| {
                    url.trim_end_matches('/')
                        .rsplit_once(':')
                        .unwrap()
                        .1
                        .parse()
                        .unwrap()
                })
                .collect();
            let told: Vec<Vec<Value>> = cmd("CLUSTER").arg("SLOTS").query(&mut nodes[0]).unwrap();
            owners = told
                .into_iter()
                .map(|line| {
                    let number = |value: &Value| redis::from_redis_value(value.clone()).unwrap();
                    let Value::Array(primary) = &line[2] else {
                        panic!("{line:?}");
                    };
                    let port: u16 = number(&primary[1]);
                    let owner = ports.iter().position(|one| *one == port).unwrap();
                    (number(&line[0]), number(&line[1]), owner)
                })
                .collect();
        }
        Self {
            nodes,
            owners,
            slots: HashMap::new(),
        }
    }

    /// The slot of a key, as the server says it.
    pub fn slot(&mut self, key: &[u8]) -> u16 {
        if let Some(slot) = self.slots.get(key) {
            return *slot;
        }
        let slot = cmd("CLUSTER")
            .arg("KEYSLOT")
            .arg(key)
            .query(&mut self.nodes[0])
            .unwrap();
        self.slots.insert(key.to_vec(), slot);
        slot
    }

    /// The server that a key belongs to.
    pub fn of(&mut self, key: &[u8]) -> &mut Connection {
        if self.nodes.len() == 1 {
            return &mut self.nodes[0];
        }
        let slot = self.slot(key);
        let owner = self
            .owners
            .iter()
            .find(|(first, last, _)| (*first..=*last).contains(&slot))
            .unwrap();
        &mut self.nodes[owner.2]
    }

    /// Every server.
    pub fn nodes(&mut self) -> &mut [Connection] {
        &mut self.nodes
    }

    /// Sends a command of words, whose second is the key.
    pub fn run(&mut self, words: &str) -> Value {
        let key = words.split(' ').nth(1).unwrap_or_default().to_owned();
        run(self.of(key.as_bytes()), words)
    }

    /// Sends a command for a key.
    pub fn exec(&mut self, key: &str, command: &Cmd) {
        command.exec(self.of(key.as_bytes())).unwrap();
    }

    /// The keys of the present database, everywhere.
    pub fn keys(&mut self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for node in &mut self.nodes {
            let keys: Vec<Vec<u8>> = cmd("KEYS").arg("*").query(node).unwrap();
            all.extend(keys);
        }
        all.sort();
        all
    }

    /// Takes over the keys of database 0 and the functions of another server.
    fn take_over(&mut self, from: &mut Connection) {
        let keys: Vec<Vec<u8>> = cmd("KEYS").arg("*").query(from).unwrap();
        for key in keys {
            let value: Vec<u8> = cmd("DUMP").arg(&key).query(from).unwrap();
            let expiry: i64 = cmd("PEXPIRETIME").arg(&key).query(from).unwrap();
            cmd("RESTORE")
                .arg(&key)
                .arg(expiry.max(0))
                .arg(value)
                .arg("ABSTTL")
                .exec(self.of(&key))
                .unwrap();
        }
        let functions: Vec<u8> = cmd("FUNCTION").arg("DUMP").query(from).unwrap();
        for node in &mut self.nodes {
            cmd("FUNCTION")
                .arg("RESTORE")
                .arg(&functions)
                .exec(node)
                .unwrap();
        }
    }

    /// The server's own digest of every value, and its expiry, by key.
    pub fn digests(&mut self) -> HashMap<Vec<u8>, (String, i64)> {
        let keys = self.keys();
        keys.into_iter()
            .map(|key| {
                let node = self.of(&key);
                let digest: Vec<String> = cmd("DEBUG")
                    .arg("DIGEST-VALUE")
                    .arg(&key)
                    .query(node)
                    .unwrap();
                let expiry: i64 = cmd("PEXPIRETIME").arg(&key).query(node).unwrap();
                (key, (digest.concat(), expiry))
            })
            .collect()
    }
}

/// The digests of a server that runs alone.
pub fn digests_of(url: &str) -> HashMap<Vec<u8>, (String, i64)> {
    Client::new(&[url.to_owned()]).digests()
}

/// An empty server that tells digests.
pub fn plain() -> RedisServer {
    RedisServer::start(settings()).unwrap()
}
