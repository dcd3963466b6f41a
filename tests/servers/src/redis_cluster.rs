//! A Redis Cluster: primaries that share the slots, and replicas of each.

use std::time::Duration;

use crate::{RedisOptions, RedisServer, Result, ServerError, free_port, wait_until};

/// How long the nodes may take to know each other and to agree.
const AGREES_WITHIN: Duration = Duration::from_secs(60);
/// A node that has been silent for so long is taken for dead, in milliseconds; a busy machine makes one silent for a while.
const NODE_TIMEOUT: &str = "5000";
/// Lines of an answer to `CLUSTER SLOTS`: a range's length, begin and end; and of each member of its shard.
const LINES_OF_RANGE: usize = 3;
const LINES_OF_MEMBER: usize = 7;
/// The number of slots.
const SLOTS: usize = 16384;

/// The nodes of a cluster, the primaries first.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    /// Where clients reach them: with TLS another port than the node's own.
    ports: Vec<u16>,
    password: Option<String>,
}

impl RedisCluster {
    /// Starts so many primaries, each with the same number of replicas, and waits until all slots are served and all replicas
    /// follow.
    ///
    /// # Errors
    ///
    /// When a node does not start, or they do not agree in time.
    pub fn start(
        primaries: usize,
        replicas_each: usize,
        options: &RedisOptions,
        password: Option<&str>,
    ) -> Result<Self> {
        Self::start_nodes(primaries, replicas_each, options, password, || None)
    }

    /// The same without replicas, whose nodes and clients speak TLS. `options` name the certificates.
    ///
    /// # Errors
    ///
    /// When a node does not start, or they do not agree in time.
    pub fn start_with_tls(
        primaries: usize,
        options: &RedisOptions,
        password: Option<&str>,
    ) -> Result<Self> {
        let options = options.clone().setting("tls-cluster", "yes");
        Self::start_nodes(primaries, 0, &options, password, || Some(free_port()))
    }

    fn start_nodes(
        primaries: usize,
        replicas_each: usize,
        options: &RedisOptions,
        password: Option<&str>,
        tls_port: impl Fn() -> Option<u16>,
    ) -> Result<Self> {
        let options = match password {
            Some(password) => options.clone().password(password),
            None => options.clone(),
        };
        let (mut nodes, mut ports) = (Vec::new(), Vec::new());
        for _ in 0..primaries * (1 + replicas_each) {
            let mut options = options
                .clone()
                .setting("cluster-enabled", "yes")
                .setting("cluster-node-timeout", NODE_TIMEOUT)
                .setting("cluster-port", &free_port().to_string());
            let tls_port = tls_port();
            if let Some(port) = tls_port {
                options = options.setting("tls-port", &port.to_string());
            }
            let node = RedisServer::start(options)?;
            ports.push(tls_port.unwrap_or(node.port()));
            nodes.push(node);
        }
        let cluster = Self {
            nodes,
            ports,
            password: password.map(ToOwned::to_owned),
        };
        cluster.share_slots(primaries)?;
        cluster.meet()?;
        cluster.follow(primaries)?;
        Ok(cluster)
    }

    /// Gives each primary its slots and an epoch of its own.
    fn share_slots(&self, primaries: usize) -> Result<()> {
        for (at, node) in self.nodes.iter().enumerate() {
            told(node, &format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1))?;
        }
        for (at, node) in self.nodes.iter().take(primaries).enumerate() {
            let (first, end) = (SLOTS * at / primaries, SLOTS * (at + 1) / primaries);
            told(node, &format!("CLUSTER ADDSLOTSRANGE {first} {}", end - 1))?;
        }
        Ok(())
    }

    /// Introduces the nodes to each other.
    fn meet(&self) -> Result<()> {
        for (node, port) in self.nodes.iter().zip(&self.ports).skip(1) {
            let bus = bus_port(node)?;
            told(
                &self.nodes[0],
                &format!("CLUSTER MEET 127.0.0.1 {port} {bus}"),
            )?;
        }
        let all = format!("cluster_known_nodes:{}", self.nodes.len());
        wait_until("the cluster to agree", AGREES_WITHIN, || {
            self.nodes.iter().all(|node| {
                node.ask_lines("CLUSTER INFO", 8).is_ok_and(|lines| {
                    let has = |wanted: &str| lines.iter().any(|line| line.trim() == wanted);
                    has("cluster_state:ok") && has("cluster_slots_ok:16384") && has(&all)
                })
            })
        })
    }

    /// Makes the other nodes replicas, by turns.
    fn follow(&self, primaries: usize) -> Result<()> {
        for (at, node) in self.nodes.iter().enumerate().skip(primaries) {
            let primary = &self.nodes[at % primaries];
            let id = primary
                .ask_lines("CLUSTER MYID", 2)
                .map_err(ServerError::io("ask a node for its id"))?
                .pop()
                .unwrap_or_default();
            let command = format!("CLUSTER REPLICATE {}", id.trim());
            wait_until("a replica to know its primary", AGREES_WITHIN, || {
                told(node, &command).is_ok()
            })?;
        }
        wait_until("the replicas to follow", AGREES_WITHIN, || {
            self.nodes.iter().skip(primaries).all(|node| {
                node.ask_lines("INFO replication", 8)
                    .is_ok_and(|lines| lines.iter().any(|line| line.contains("link_status:up")))
            })
        })?;
        // Each node tells of all members of all shards. A replica is left out until its place in the stream was heard of.
        let members = self.nodes.len() / primaries;
        let lines_of_shard = LINES_OF_RANGE + members * LINES_OF_MEMBER;
        let whole = format!("*{}", members + 2);
        wait_until("every node to know every replica", AGREES_WITHIN, || {
            self.nodes.iter().all(|node| {
                node.ask_lines("CLUSTER SLOTS", 1 + primaries * lines_of_shard)
                    .is_ok_and(|lines| {
                        let mut shards = lines[1..].chunks(lines_of_shard);
                        shards.all(|shard| shard[0].trim() == whole)
                    })
            })
        })
    }

    /// The nodes, the primaries of the beginning first.
    #[must_use]
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// A node, to be stopped or killed.
    pub fn node(&mut self, at: usize) -> &mut RedisServer {
        &mut self.nodes[at]
    }

    /// The URL that names all nodes, with the password where there is one.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self
            .ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let login = match &self.password {
            Some(password) => format!(":{password}@"),
            None => String::new(),
        };
        format!("redis://{login}{}", hosts.join(","))
    }
}

fn bus_port(node: &RedisServer) -> Result<u16> {
    node.ask_lines("CONFIG GET cluster-port", 5)
        .map_err(ServerError::io("ask a node for its port"))?
        .pop()
        .and_then(|line| line.trim().parse().ok())
        .ok_or_else(|| ServerError::Unsupported("a node has no port for others".to_owned()))
}

/// Sends a command that answers `OK`.
fn told(node: &RedisServer, command: &str) -> Result<()> {
    let answer = node
        .ask_lines(command, 1)
        .map_err(ServerError::io("tell a node"))?
        .remove(0);
    if answer.starts_with("+OK") {
        Ok(())
    } else {
        Err(ServerError::Unsupported(format!(
            "{command}: {}",
            answer.trim_end()
        )))
    }
}
