//! A Redis Cluster: primaries that share the slots, and replicas of each.

use std::time::Duration;

use crate::{RedisOptions, RedisServer, Result, ServerError, wait_until};

/// How long the nodes may take to know each other and to agree.
const AGREES_WITHIN: Duration = Duration::from_secs(120);
/// How often they are introduced meanwhile.
const MEETINGS: u32 = 4;
/// A node that has been silent for so long is taken for dead, in milliseconds. A busy machine makes one silent for a while:
/// where no replica could take over, being quick to notice serves nobody.
const NODE_TIMEOUT: &str = "5000";
const NODE_TIMEOUT_WITHOUT_REPLICAS: &str = "30000";
/// The settings that are the ports for the other nodes, and for clients that speak TLS.
const BUS_PORT: &str = "cluster-port";
const TLS_PORT: &str = "tls-port";
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
        Self::start_nodes(primaries, replicas_each, options, password)
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
        let options = options
            .clone()
            .setting("tls-cluster", "yes")
            .port_setting(TLS_PORT);
        Self::start_nodes(primaries, 0, &options, password)
    }

    fn start_nodes(
        primaries: usize,
        replicas_each: usize,
        options: &RedisOptions,
        password: Option<&str>,
    ) -> Result<Self> {
        let timeout = match replicas_each {
            0 => NODE_TIMEOUT_WITHOUT_REPLICAS,
            _ => NODE_TIMEOUT,
        };
        let mut options = options
            .clone()
            .setting("cluster-enabled", "yes")
            .setting("cluster-node-timeout", timeout)
            .port_setting(BUS_PORT);
        if let Some(password) = password {
            options = options.password(password);
        }
        let nodes = (0..primaries * (1 + replicas_each))
            .map(|_| RedisServer::start(options.clone()))
            .collect::<Result<Vec<_>>>()?;
        let ports = nodes
            .iter()
            .map(|node| node.port_of(TLS_PORT).unwrap_or(node.port()))
            .collect();
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

    /// Introduces the nodes to each other, again where a busy machine let an introduction be forgotten.
    fn meet(&self) -> Result<()> {
        let mut agreed = Ok(());
        for _ in 0..MEETINGS {
            for (node, port) in self.nodes.iter().zip(&self.ports).skip(1) {
                let bus = node.port_of(BUS_PORT).unwrap_or_default();
                told(
                    &self.nodes[0],
                    &format!("CLUSTER MEET 127.0.0.1 {port} {bus}"),
                )?;
            }
            let within = AGREES_WITHIN / MEETINGS;
            agreed = wait_until("the cluster to agree", within, || self.agrees());
            if agreed.is_ok() {
                break;
            }
        }
        agreed
    }

    /// Whether each node knows all others and serves or knows who serves all slots.
    fn agrees(&self) -> bool {
        let all = format!("cluster_known_nodes:{}", self.nodes.len());
        self.nodes.iter().all(|node| {
            node.ask_lines("CLUSTER INFO", 8).is_ok_and(|lines| {
                let has = |wanted: &str| lines.iter().any(|line| line.trim() == wanted);
                has("cluster_state:ok") && has("cluster_slots_ok:16384") && has(&all)
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
