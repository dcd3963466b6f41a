//! A sharded cluster for tests: MongoDB's own router cannot be had on a test machine. Two servers with an oplog are its shards. A
//! database lies on one of them, as one that is not divided does; the router of the test sends each command there, and
//! answers by itself what is a router's alone, in the form of MongoDB's manual. Whether the shards share a time, as MongoDB's
//! do, is chosen: then each stands behind a door that tells it.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use bson::{Document, Timestamp, doc};
use fettler_test_servers::{MongodbClient, MongodbKind, MongodbServer};

use crate::common::{client, server};

/// What the router is, and what was asked of it.
#[derive(Debug)]
pub struct State {
    pub balancer_mode: &'static str,
    /// Of `config.collections`.
    pub divided: Vec<Document>,
    /// Commands of a router's own, as they came.
    pub asked: Vec<Document>,
    /// How often a shard was asked for what it has up to a time.
    pub waits: usize,
}

pub struct Cluster {
    pub shards: [MongodbServer; 2],
    pub state: Arc<Mutex<State>>,
    port: u16,
}

/// Where a database lies, also that of a sandbox.
fn shard_of(database: &str) -> usize {
    usize::from(database.ends_with("stock"))
}

/// The time that shards tell each other.
fn cluster_time() -> Document {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let time = Timestamp {
        time: u32::try_from(now.as_secs()).unwrap(),
        increment: 1,
    };
    doc! { "clusterTime": time, "signature": { "keyId": 0_i64 } }
}

impl Cluster {
    pub fn start(shares_time: bool) -> Self {
        let shards = [(); 2].map(|()| server(MongodbKind::WithOplog));
        let ports = [0, 1].map(|number: usize| shards[number].port());
        for (port, database) in ports.into_iter().zip(["shop", "stock"]) {
            // An oplog that is empty has no end.
            MongodbClient::new(port).insert(database, "begun", vec![doc! { "_id": 1 }]);
        }
        let state = Arc::new(Mutex::new(State {
            balancer_mode: "full",
            divided: Vec::new(),
            asked: Vec::new(),
            waits: 0,
        }));
        let doors = ports.map(|port| {
            if !shares_time {
                return port;
            }
            let state = state.clone();
            listen(move |stream| {
                let mut behind = TcpStream::connect(("127.0.0.1", port))?;
                relay(stream, |message, command| {
                    if let Ok(concern) = command.get_document("readConcern")
                        && concern.contains_key("afterClusterTime")
                    {
                        assert!(command.contains_key("$clusterTime"), "{command}");
                        state.lock().unwrap().waits += 1;
                    }
                    let mut answer = ask(&mut behind, message)?;
                    answer.insert("$clusterTime", cluster_time());
                    Ok(answer)
                })
            })
        });
        let router = state.clone();
        let port = listen(move |stream| {
            let mut behind = [None, None];
            relay(stream, |message, command| {
                if let Some(answer) = own(&router, command, ports, doors) {
                    return Ok(answer);
                }
                let number = shard_of(command.get_str("$db").unwrap());
                let shard = match &mut behind[number] {
                    Some(shard) => shard,
                    none => none.insert(TcpStream::connect(("127.0.0.1", ports[number]))?),
                };
                ask(shard, message)
            })
        });
        Self {
            shards,
            state,
            port,
        }
    }

    pub fn url(&self) -> String {
        format!("mongodb://127.0.0.1:{}/", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client of the shard that a database lies on.
    pub fn shard(&self, database: &str) -> MongodbClient {
        client(&self.shards[shard_of(database)])
    }

    /// The names of the commands of a router's own that were asked, without those that only look.
    pub fn asked(&self) -> Vec<String> {
        let asked = &self.state.lock().unwrap().asked;
        let names = asked.iter().map(|one| one.keys().next().unwrap().clone());
        names.filter(|name| name != "balancerStatus").collect()
    }
}

/// What a router answers by itself.
fn own(
    state: &Mutex<State>,
    command: &Document,
    ports: [u16; 2],
    doors: [u16; 2],
) -> Option<Document> {
    let name = command.keys().next().unwrap().as_str();
    let mut state = state.lock().unwrap();
    match name {
        "hello" | "isMaster" => {
            return Some(
                doc! { "isWritablePrimary": true, "msg": "isdbgrid", "maxWireVersion": 21, "ok": 1.0 },
            );
        }
        "listShards" => {
            let shard = |number: usize| doc! { "_id": format!("s{number}"), "host": format!("rs{number}/127.0.0.1:{}", doors[number]), "state": 1 };
            return Some(doc! { "shards": [shard(0), shard(1)], "ok": 1.0 });
        }
        "listDatabases" => {
            let mut names: Vec<String> = ports
                .iter()
                .filter(|port| TcpStream::connect(("127.0.0.1", **port)).is_ok())
                .flat_map(|port| MongodbClient::new(*port).databases())
                .collect();
            names.sort();
            names.dedup();
            let databases: Vec<Document> = names.iter().map(|name| doc! { "name": name }).collect();
            return Some(doc! { "databases": databases, "ok": 1.0 });
        }
        "find" if command.get_str("$db").unwrap() == "config" => {
            let found = match command.get_str("find").unwrap() {
                "collections" => state.divided.clone(),
                _ => Vec::new(),
            };
            return Some(
                doc! { "cursor": { "id": 0_i64, "ns": "config.collections", "firstBatch": found }, "ok": 1.0 },
            );
        }
        "balancerStatus" | "balancerStop" | "balancerStart" | "enableSharding"
        | "shardCollection" => {}
        _ => return None,
    }
    state.asked.push(command.clone());
    match name {
        "balancerStop" => state.balancer_mode = "off",
        "balancerStart" => state.balancer_mode = "full",
        _ => {}
    }
    Some(
        doc! { "mode": state.balancer_mode, "inBalancerRound": false, "numBalancerRounds": 7_i64, "ok": 1.0 },
    )
}

/// Serves each connection by itself, for as long as the test runs; gives the port.
fn listen(serve: impl Fn(TcpStream) -> std::io::Result<()> + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            let stream = stream.unwrap();
            // A client or a shard that has gone ends this connection alone.
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Answers message after message.
fn relay(
    mut stream: TcpStream,
    mut answer: impl FnMut(&[u8], &Document) -> std::io::Result<Document>,
) -> std::io::Result<()> {
    loop {
        let message = read(&mut stream)?;
        let command = Document::from_reader(&message[21..]).unwrap();
        let mut body = Vec::new();
        answer(&message, &command)?.to_writer(&mut body).unwrap();
        let asked = i32::from_le_bytes(message[4..8].try_into().unwrap());
        let mut told = Vec::new();
        for number in [21 + body.len() as i32, 1, asked, 2013, 0] {
            told.extend(number.to_le_bytes());
        }
        told.push(0);
        told.extend(body);
        stream.write_all(&told)?;
    }
}

/// Sends a message on as it is.
fn ask(behind: &mut TcpStream, message: &[u8]) -> std::io::Result<Document> {
    behind.write_all(message)?;
    let answer = read(behind)?;
    Ok(Document::from_reader(&answer[21..]).unwrap())
}

fn read(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; 16];
    stream.read_exact(&mut message)?;
    let length = i32::from_le_bytes(message[..4].try_into().unwrap());
    message.resize(usize::try_from(length).unwrap(), 0);
    stream.read_exact(&mut message[16..])?;
    Ok(message)
}
